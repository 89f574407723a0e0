//! The table of limits says what the code does: each value is that of its constant, and each test that it names is there.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs;
use std::path::Path;

#[test]
fn every_row_of_the_table_agrees_with_the_code() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let table = fs::read_to_string(root.join("docs/limits.md")).unwrap();
    let mut sources = String::new();
    for part in ["ring", "engine", "pmd", "control"] {
        collect(&root.join(part), &mut sources);
    }
    let mut rows = 0;
    for row in table.lines().filter(|line| line.starts_with("| `")) {
        let cells: Vec<&str> = row.split('|').map(str::trim).collect();
        let [_, limit, value, _, _, _, _, test, _] = cells[..] else {
            unreachable!("not seven columns: {row}")
        };
        let (file, name) = limit.trim_matches('`').split_once("` `").unwrap();
        let source = fs::read_to_string(root.join(file)).unwrap();
        let start = format!("const {name}: ");
        let found = source.lines().find_map(|line| line.split_once(&start)?.1.split_once(" = "));
        let found = found.map(|(_, value)| value.trim_end_matches(';'));
        assert_eq!(found, Some(value.trim_matches('`')), "{file} {name}");
        let test = test.trim_matches('`');
        assert!(test.is_empty() || sources.contains(&format!("fn {test}()")), "{name}: no test {test}");
        rows += 1;
    }
    assert!(rows > 30, "{rows} rows were understood");
}

fn collect(folder: &Path, sources: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, sources);
        } else if path.extension().is_some_and(|end| end == "rs") {
            sources.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}
