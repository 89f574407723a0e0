//! One page from all results in a folder: self-contained HTML, with charts drawn here as SVG, no script, and nothing
//! fetched from anywhere.
//!
//! A result is a [`Record`]; a file holds one on each line. What cannot be read is named on the page. Nothing that was
//! read is dropped: what has no section of its own is shown as tables.

// Where a value is drawn.
pub mod axis;
// Charts as SVG.
pub mod chart;
// Escaped markup.
pub mod html;
// The page.
mod page;
// Lenient readers of what records hold.
mod reading;
// Results of commands that have a form of their own.
mod sections;
// Results of any form, as tables.
mod tables;
// The targets that results are held against.
mod targets;
// What the results have of the targets.
mod verdicts;

use std::fs;
use std::io;
use std::path::Path;

use crate::record::{Record, SCHEMA, SUITE};

pub use reading::Sourced;

/// What was read from a folder.
#[derive(Debug, Default)]
pub struct Report {
    /// The results, by command and then by time.
    pub records: Vec<Sourced>,
    /// What could not be read.
    pub problems: Vec<Problem>,
}

/// Something that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The file's name, with the line.
    pub source: String,
    /// Why, and what to do.
    pub why: String,
}

impl Report {
    /// Reads every file of a folder but `except`, which may be the page of the last time.
    ///
    /// # Errors
    /// The folder itself cannot be read.
    pub fn read(folder: &Path, except: &Path) -> io::Result<Report> {
        let mut report = Report::default();
        let mut entries = fs::read_dir(folder)?.collect::<Result<Vec<_>, _>>()?;
        entries.sort_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let (path, name) = (entry.path(), entry.file_name().to_string_lossy().into_owned());
            if same_file(&path, except) {
                continue;
            }
            if path.extension().is_none_or(|extension| extension != "json") || !path.is_file() {
                report.problem(name, "not a result file: those are named *.json");
                continue;
            }
            match fs::read(&path) {
                Ok(bytes) => report.take(&name, &String::from_utf8_lossy(&bytes)),
                Err(error) => report.problem(name, format!("cannot be read: {error}")),
            }
        }
        report.records.sort_by(|a, b| {
            let key = |sourced: &Sourced| (order(&sourced.record.command), sourced.record.at);
            key(a).cmp(&key(b)).then_with(|| a.record.command.cmp(&b.record.command))
        });
        Ok(report)
    }

    /// The page.
    pub fn page(&self) -> String {
        page::page(self)
    }

    /// What the results have of the targets, as lines of text.
    pub fn told(&self) -> String {
        let line = |one: verdicts::Verdict| {
            let verdicts::Verdict { what, target, measured, source, .. } = &one;
            format!("{}: {what}: {measured}, target {target} ({source})\n", one.word())
        };
        verdicts::verdicts(&self.records).into_iter().map(line).collect()
    }

    /// Takes the records of a file's text.
    fn take(&mut self, name: &str, text: &str) {
        let lines: Vec<(usize, &str)> =
            text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).collect();
        if lines.is_empty() {
            return self.problem(name, "empty: the command that was to write it may have failed");
        }
        for (number, line) in &lines {
            let source = if lines.len() > 1 { format!("{name}:{}", number + 1) } else { name.to_owned() };
            match serde_json::from_str::<Record>(line) {
                Ok(record) if record.suite != SUITE => {
                    self.problem(source, format!("a result of `{}`, not of {SUITE}", record.suite));
                }
                Ok(record) if record.schema > SCHEMA => self.problem(
                    source,
                    format!("of form {}, newer than {SCHEMA}: use a newer {SUITE}", record.schema),
                ),
                Ok(record) => self.records.push(Sourced { source, record }),
                Err(error) => self.problem(
                    source,
                    format!("not a result: {error}; a file holds what `{SUITE} -j` prints, one on a line"),
                ),
            }
        }
    }

    fn problem(&mut self, source: impl Into<String>, why: impl Into<String>) {
        self.problems.push(Problem { source: source.into(), why: why.into() });
    }
}

/// The place of a command's section: what matters most comes first.
fn order(command: &str) -> usize {
    let known = ["compare", "tap", "net", "blk", "scale", "ring", "limits", "idle"];
    known.iter().position(|name| *name == command).unwrap_or(known.len())
}

fn same_file(a: &Path, b: &Path) -> bool {
    match (a.canonicalize(), b.canonicalize()) {
        (Ok(a), Ok(b)) => a == b,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn line(command: &str, at: u64) -> String {
        let host = crate::host::Host::read();
        let record = json!({
            "suite": SUITE, "schema": SCHEMA, "command": command, "words": [command], "at": at, "host": host,
            "parameters": {},
        });
        record.to_string()
    }

    #[test]
    fn a_file_holds_a_result_on_each_line_and_broken_ones_are_named() {
        let mut report = Report::default();
        report.take("a.json", &format!("{}\n\n{{\n{}\n", line("net", 1), line("scale", 2)));
        let sources: Vec<&str> = report.records.iter().map(|sourced| sourced.source.as_str()).collect();
        assert_eq!(sources, ["a.json:1", "a.json:4"]);
        assert_eq!(report.problems.len(), 1);
        assert_eq!(report.problems[0].source, "a.json:3");
    }

    #[test]
    fn targets_are_told_as_on_the_page() {
        let mut report = Report::default();
        let spread = |median: f64| json!({"median": median, "low": median, "high": median});
        for (bound, ratio) in [(false, 1.6), (false, 1.4), (true, 1.6)] {
            let mut one: serde_json::Value = serde_json::from_str(&line("compare", 1)).unwrap();
            one["parameters"] = json!({"job": "net", "peer": "dpdk", "size": "64", "touch": "none"});
            one["peer"] = json!({"name": "p", "version": "1"});
            (one["ratio"], one["generator_bound"]) = (spread(ratio), json!(bound));
            report.take("a.json", &one.to_string());
        }
        let told = report.told();
        let words: Vec<&str> = told.lines().filter_map(|line| Some(line.split_once(": ")?.0)).collect();
        assert_eq!(words, ["reached", "missed", "generator-bound, not counted"], "{told}");
        let first = "throughput beside p 1: net, 64 B, touch none: 1.6 ×, target ≥ 1.5 × (a.json)";
        assert!(told.contains(first), "{told}");
        assert!(report.page().contains("generator-bound, not counted"));
    }

    #[test]
    fn other_suites_newer_forms_and_empty_files_are_named() {
        let mut report = Report::default();
        report.take("suite.json", &line("net", 1).replace(SUITE, "another"));
        report.take("form.json", &line("net", 1).replace("\"schema\":1", "\"schema\":99"));
        report.take("empty.json", "\n");
        let sources: Vec<&str> = report.problems.iter().map(|problem| problem.source.as_str()).collect();
        assert_eq!(sources, ["suite.json", "form.json", "empty.json"]);
        assert!(report.records.is_empty() && report.problems[1].why.contains("99"));
    }

    #[test]
    fn a_folder_is_read_in_order_without_the_page_itself() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| fs::write(folder.path().join(name), text).unwrap();
        file("b.json", &line("other", 5));
        file("a.json", &line("net", 9));
        file("c.json", &line("net", 3));
        file("report.html", "old");
        file("notes.txt", "x");
        let report = Report::read(folder.path(), &folder.path().join("report.html")).unwrap();
        let found: Vec<(&str, u64)> =
            report.records.iter().map(|one| (one.record.command.as_str(), one.record.at)).collect();
        assert_eq!(found, [("net", 3), ("net", 9), ("other", 5)]);
        let problems: Vec<&str> = report.problems.iter().map(|problem| problem.source.as_str()).collect();
        assert_eq!(problems, ["notes.txt"]);
    }
}
