//! `ringway-bench report`.

use std::fs;
use std::path::PathBuf;

use ringway_bench::host::Host;
use ringway_bench::record::Record;
use ringway_bench::report::Report;
use serde::Serialize;

use super::{Failure, print_json};

#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct Arguments {
    /// Folder with result files: *.json, on each line what a command prints with -j
    folder: PathBuf,
    /// Where the page goes [default: report.html in the folder]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What was made.
#[derive(Debug, Serialize)]
struct Made {
    page: PathBuf,
    records: usize,
    /// Files and lines that could not be read.
    not_read: Vec<String>,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> Result<(), Failure> {
    let page = arguments.out.clone().unwrap_or_else(|| arguments.folder.join("report.html"));
    let report = Report::read(&arguments.folder, &page)
        .map_err(|error| format!("cannot read {}: {error}", arguments.folder.display()))?;
    for problem in &report.problems {
        eprintln!("warning: {}: {}", problem.source.escape_debug(), problem.why.escape_debug());
    }
    fs::write(&page, report.page()).map_err(|error| format!("cannot write {}: {error}", page.display()))?;
    let records = report.records.len();
    if json {
        let not_read = report.problems.into_iter().map(|problem| problem.source).collect();
        return print_json(&Record::new(
            "report",
            Host::read(),
            arguments,
            &Made { page, records, not_read },
        )?);
    }
    println!("{}: {records} results, {} not read", page.display(), report.problems.len());
    Ok(())
}
