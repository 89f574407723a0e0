//! The instruction counts that are committed, and what has grown since.
//!
//! A count is the compiler's work as much as ours, so a file holds a set of counts for each key (see
//! [`crate::callgrind::key`]), and only counts of the same key are compared.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::Path as FilePath;

use serde::{Deserialize, Serialize};

use crate::callgrind::Count;
use crate::error::BenchError;

/// A file of counts.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Baseline {
    sets: BTreeMap<String, Set>,
}

/// Instructions for each descriptor or frame, to two decimals, by the path's name.
pub type Set = BTreeMap<String, f64>;

/// A path whose count is not what it was.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Change {
    /// The path's name.
    pub name: String,
    /// What the baseline has.
    pub old: f64,
    /// What it is now.
    pub new: f64,
}

/// Counts beside a baseline.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Comparison {
    /// More than [`TOLERANCE`] above.
    pub grown: Vec<Change>,
    /// More than [`TOLERANCE`] below.
    pub shrunk: Vec<Change>,
    /// Counted, and not in the baseline.
    pub unknown: Vec<String>,
    /// In the baseline, and not counted.
    pub gone: Vec<String>,
}

impl Change {
    /// How much more it is, as a share.
    pub fn growth(&self) -> f64 {
        self.new / self.old - 1.0
    }
}

impl Comparison {
    /// Nothing has grown, and the baseline has just what was counted.
    pub fn holds(&self) -> bool {
        self.grown.is_empty() && self.unknown.is_empty() && self.gone.is_empty()
    }
}

impl Baseline {
    /// Reads a file; one that is not there has no counts.
    ///
    /// # Errors
    /// It cannot be read, or is no baseline.
    pub fn read(file: &FilePath) -> Result<Baseline, BenchError> {
        let text = match fs::read_to_string(file) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Baseline::default()),
            Err(source) => return Err(BenchError::System { what: file.display().to_string(), source }),
        };
        serde_json::from_str(&text).map_err(|error| {
            BenchError::Usage(format!(
                "{} is no baseline: {error}; --write-baseline makes one once it is out of the way",
                file.display()
            ))
        })
    }

    /// Writes it, in the order of names, a line for each path.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write(&self, file: &FilePath) -> Result<(), BenchError> {
        let what = || file.display().to_string();
        let text = serde_json::to_string_pretty(self)
            .map_err(|error| BenchError::System { what: what(), source: error.into() })?;
        fs::write(file, text + "\n").map_err(BenchError::system(what()))
    }

    /// The counts for a key.
    pub fn set(&self, key: &str) -> Option<&Set> {
        self.sets.get(key)
    }

    /// The keys that it has counts for.
    pub fn keys(&self) -> impl Iterator<Item = &str> {
        self.sets.keys().map(String::as_str)
    }

    /// Puts a set of counts in the place of the one for the same key.
    pub fn put(&mut self, key: &str, set: Set) {
        self.sets.insert(key.to_owned(), set);
    }
}

/// The counts that a baseline has: those of our own code.
pub fn set_of(counts: &[Count]) -> Set {
    let ours = counts.iter().filter(|count| count.path.is_ours());
    ours.map(|count| (count.path.to_string(), (count.each() * 100.0).round() / 100.0)).collect()
}

/// What has become of each path of `old`.
pub fn compare(old: &Set, new: &Set) -> Comparison {
    let changes = old.iter().filter_map(|(name, &old)| {
        let new = *new.get(name)?;
        Some(Change { name: name.clone(), old, new })
    });
    let (mut grown, mut shrunk) = (Vec::new(), Vec::new());
    for change in changes {
        if change.growth() > TOLERANCE {
            grown.push(change);
        } else if change.growth() < -TOLERANCE {
            shrunk.push(change);
        }
    }
    let missing =
        |of: &Set, from: &Set| of.keys().filter(|name| !from.contains_key(*name)).cloned().collect();
    Comparison { grown, shrunk, unknown: missing(new, old), gone: missing(old, new) }
}

/// How much more a path may come to, as a share.
pub const TOLERANCE: f64 = 0.02;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ring::Path;

    fn set(counts: &[(&str, f64)]) -> Set {
        counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn growth_above_two_in_a_hundred_is_found() {
        let old = set(&[("a", 100.0), ("b", 100.0), ("c", 100.0), ("d", 50.0)]);
        let new = set(&[("a", 101.9), ("b", 102.1), ("c", 97.0), ("d", 50.0)]);
        let found = compare(&old, &new);
        assert_eq!(found.grown, [Change { name: "b".to_owned(), old: 100.0, new: 102.1 }]);
        assert!((found.grown[0].growth() - 0.021).abs() < 1e-9);
        assert_eq!(found.shrunk, [Change { name: "c".to_owned(), old: 100.0, new: 97.0 }]);
        assert!(!found.holds());
    }

    #[test]
    fn less_and_as_much_hold() {
        let old = set(&[("a", 100.0), ("b", 10.0)]);
        assert!(compare(&old, &old).holds());
        assert!(compare(&old, &set(&[("a", 50.0), ("b", 10.19)])).holds());
    }

    #[test]
    fn path_that_came_or_went_does_not_hold() {
        let (one, two) = (set(&[("a", 1.0)]), set(&[("a", 1.0), ("b", 1.0)]));
        assert_eq!(compare(&one, &two).unknown, ["b"]);
        assert_eq!(compare(&two, &one).gone, ["b"]);
        assert!(!compare(&one, &two).holds() && !compare(&two, &one).holds());
    }

    #[test]
    fn sets_of_other_keys_stay_when_one_is_written() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ring.json");
        let mut baseline = Baseline::read(&file).unwrap();
        assert_eq!(baseline, Baseline::default());
        baseline.put("old compiler", set(&[("a", 1.5)]));
        baseline.put("new compiler", set(&[("a", 1.25)]));
        baseline.write(&file).unwrap();
        let mut again = Baseline::read(&file).unwrap();
        assert_eq!(again, baseline);
        again.put("new compiler", set(&[("a", 1.0)]));
        assert_eq!(again.set("old compiler"), Some(&set(&[("a", 1.5)])));
        assert_eq!(again.set("new compiler"), Some(&set(&[("a", 1.0)])));
        assert_eq!(again.set("another"), None);
        assert_eq!(again.keys().collect::<Vec<_>>(), ["new compiler", "old compiler"]);
    }

    #[test]
    fn file_that_is_no_baseline_is_an_error_that_names_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("ring.json");
        fs::write(&file, "[1]").unwrap();
        let error = Baseline::read(&file).unwrap_err().to_string();
        assert!(error.contains("ring.json is no baseline"), "{error}");
    }

    #[test]
    fn only_our_own_paths_are_kept_to_two_decimals() {
        let counts: Vec<Count> =
            Path::all().into_iter().map(|path| Count { path, units: 3, instructions: 100 }).collect();
        let set = set_of(&counts);
        assert_eq!(set.len(), Path::all().iter().filter(|path| path.is_ours()).count());
        assert!(set.keys().all(|name| name.starts_with("ringway ")));
        assert!(set.values().all(|count| (count - 33.33).abs() < 1e-9));
    }
}
