//! The table of limits says what the code does: each value is that of its constant, each has a test at its border, and
//! each number that the code has a name for is in the table or known to be no limit.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::collections::BTreeSet;
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
        assert!(sources.contains(&format!("fn {test}()")), "{name}: no test {test}");
        rows += 1;
    }
    assert!(rows > 30, "{rows} rows were understood");
}

/// Whoever adds a constant of a number or a time says whether it is a limit: as a row of the table, or below.
#[test]
fn every_number_with_a_name_is_in_the_table_or_known_to_be_no_limit() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let table = fs::read_to_string(root.join("docs/limits.md")).unwrap();
    let mut known: BTreeSet<(String, String)> = BTreeSet::new();
    let listed = NO_LIMITS.lines().filter(|line| !line.is_empty() && !line.starts_with('#'));
    for line in listed {
        let (file, names) = line.split_once(": ").unwrap();
        known.extend(names.split(' ').map(|name| (file.to_owned(), name.to_owned())));
    }
    let mut untold = Vec::new();
    for part in
        ["ring/src", "engine/src", "pmd/src", "control/src", "control/vhost-user/src", "control/guest/src"]
    {
        visit(&root.join(part), &mut |path| {
            let file = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            let text = fs::read_to_string(path).unwrap();
            for name in numbers(&text) {
                let is_known = known.remove(&(file.clone(), name.to_owned()));
                let is_limit = table.contains(&format!("| `{file}` `{name}` |"));
                assert!(!(is_known && is_limit), "{file} {name} is in both lists");
                if !is_known && !is_limit {
                    untold.push(format!("{file}: {name}"));
                }
            }
        });
    }
    assert!(untold.is_empty(), "a row in docs/limits.md, or a line in no_limits.txt, for {untold:#?}");
    assert!(known.is_empty(), "in no_limits.txt, and not in the code: {known:?}");
}

/// The constants of a file, outside of its tests, that are a number or a time.
fn numbers(text: &str) -> BTreeSet<&str> {
    const TYPES: [&str; 10] = ["u8", "u16", "u32", "u64", "u128", "usize", "i32", "i64", "isize", "Duration"];
    let end = text.find("mod tests {").unwrap_or(text.len());
    let declared = text[..end].lines().filter_map(|line| {
        let (before, rest) = line.split_once("const ")?;
        let (name, rest) = rest.split_once(": ")?;
        let is_item = before.trim_start().is_empty() || before.trim_start().starts_with("pub");
        let (kind, _) = rest.split_once(" = ").or_else(|| rest.split_once(" ="))?;
        (is_item && name != "_" && TYPES.contains(&kind)).then_some(name)
    });
    declared.collect()
}

/// What has a name and is no limit, by what it is instead.
const NO_LIMITS: &str = include_str!("no_limits.txt");

fn visit(folder: &Path, each: &mut dyn FnMut(&Path)) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let is_test = path.file_name().is_some_and(|name| name == "tests.rs" || name == "deaths.rs");
        if path.is_dir() {
            visit(&path, each);
        } else if path.extension().is_some_and(|end| end == "rs") && !is_test {
            each(&path);
        }
    }
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
