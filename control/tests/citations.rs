//! Each section of the virtio specification that the code names is one that there is: by number, with its title in the list
//! below, so that a slip of the pen is found.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs;
use std::path::Path;

/// Sections of virtio 1.3 that are cited.
const SECTIONS: &str = include_str!("virtio_1_3_sections.txt");

#[test]
fn cited_sections_of_the_specification_exist_and_listed_ones_are_cited() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap();
    let listed: Vec<&str> = SECTIONS.lines().filter_map(|line| line.split(' ').next()).collect();
    let mut cited = Vec::new();
    for part in ["ring", "engine", "pmd", "control", "bench", "docs"] {
        collect(&root.join(part), &mut cited);
    }
    assert!(cited.len() > 50, "{} citations were found", cited.len());
    for (file, section) in &cited {
        assert!(listed.contains(&section.as_str()), "{file}: virtio 1.3 has no §{section} in the list");
    }
    for section in listed {
        assert!(cited.iter().any(|(_, other)| other == section), "§{section} is listed and cited nowhere");
    }
}

/// The sections behind each `virtio 1.3`: one, or several with commas.
fn collect(folder: &Path, cited: &mut Vec<(String, String)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            collect(&path, cited);
        } else if path.extension().is_some_and(|end| end == "rs" || end == "md") {
            for behind in fs::read_to_string(&path).unwrap().split("virtio 1.3 ").skip(1) {
                let words = behind.split([' ', '\n']).take_while(|word| word.starts_with('§'));
                for word in words {
                    let number = word.trim_start_matches('§').trim_end_matches(|c: char| !c.is_ascii_digit());
                    cited.push((path.display().to_string(), number.to_owned()));
                    if !word.ends_with(',') {
                        break;
                    }
                }
            }
        }
    }
}
