//! `ringway-bench targets`: every row of the table of targets in one go, each by the command that it is measured by.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use ringway_bench::backend::testpmd_version;
use ringway_bench::progress;
use ringway_bench::record::Record;
use ringway_bench::report::Report;
use serde::Serialize;

use super::Failure;

#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct Arguments {
    /// Where the results and their page are put; results that are there already are not measured again, those of another
    /// --testpmd are
    folder: PathBuf,
    /// Another testpmd beside the one that is found, such as the newest
    #[arg(long, value_name = "PATH")]
    testpmd: Option<PathBuf>,
    /// Measurements whose name contains one of these words, separated by commas
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// Show the commands, and run none
    #[arg(long)]
    list: bool,
    /// Seconds of each round
    #[arg(long, default_value_t = 0.25)]
    seconds: f64,
    /// Rounds that count
    #[arg(long, default_value_t = 7)]
    rounds: u32,
    /// Cores of the generator, separated by commas
    #[arg(long, default_value = "0")]
    cores: String,
    /// Core of the back-end
    #[arg(long, default_value_t = 1)]
    backend_core: usize,
}

/// A measurement: its file's name, and the words of its command.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Measurement {
    name: String,
    words: Vec<String>,
    /// Beside another testpmd than the one that is found.
    is_given: bool,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> Result<(), Failure> {
    if json {
        return Err("targets: its folder holds what -j prints, a file for each command".into());
    }
    let wanted = |one: &Measurement| {
        arguments.only.is_empty() || arguments.only.iter().any(|word| one.name.contains(word.as_str()))
    };
    let measurements: Vec<Measurement> = measurements(arguments).into_iter().filter(wanted).collect();
    if measurements.is_empty() {
        return Err(format!("--only {}: there is none of that name", arguments.only.join(",")).into());
    }
    if arguments.list {
        for Measurement { name, words, .. } in &measurements {
            println!("{name}: ringway-bench -j {}", words.join(" "));
        }
        return Ok(());
    }
    fs::create_dir_all(&arguments.folder)?;
    let program = std::env::current_exe()?;
    let mut failed = Vec::new();
    let given = match &arguments.testpmd {
        Some(path) if measurements.iter().any(|one| one.is_given) => {
            Some((path.display().to_string(), testpmd_version(path)?))
        }
        _ => None,
    };
    for (nth, Measurement { name, words, is_given }) in measurements.iter().enumerate() {
        let path = arguments.folder.join(format!("{name}.json"));
        let wanted = given.as_ref().filter(|_| *is_given);
        if path.exists() && wanted.is_none_or(|(peer, version)| is_beside(&path, peer, version)) {
            continue;
        }
        progress::show(&format!("{} of {}: {name}", nth + 1, measurements.len()));
        // Under another name until it is whole: what was broken off is measured again.
        let unfinished = arguments.folder.join(format!("{name}.unfinished"));
        let part = arguments.folder.join(format!("{name}-part.json"));
        let output = Command::new(&program)
            .arg("-j")
            .args(words)
            .stdin(Stdio::null())
            .stdout(File::create(&unfinished)?)
            .stderr(Stdio::piped())
            .output()?;
        if output.status.success() {
            fs::rename(&unfinished, &path)?;
            remove_if_there(&part)?;
        } else {
            let why = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            let why = why.lines().last().unwrap_or("it said nothing").to_owned();
            // Each line is a measurement of its own: those that were made stand, until all are.
            let whole = whole_lines(&fs::read_to_string(&unfinished)?);
            fs::remove_file(&unfinished)?;
            let kept = whole.lines().count();
            if kept > 0 {
                fs::write(&part, whole)?;
                failed.push(format!("{name}: {why} ({kept} of its results are in {})", part.display()));
            } else {
                failed.push(format!("{name}: {why}"));
            }
        }
    }
    progress::show("");
    let page = arguments.folder.join("report.html");
    let report = Report::read(&arguments.folder, &page)?;
    fs::write(&page, report.page())?;
    print!("{}", report.told());
    println!("{}", page.display());
    failed.iter().for_each(|what| eprintln!("not measured: {what}"));
    match failed.len() {
        0 => Ok(()),
        count => Err(format!("{count} of {} could not be measured", measurements.len()).into()),
    }
}

/// Whether all of a file's results are beside this peer, of this version.
fn is_beside(path: &Path, peer: &str, version: &str) -> bool {
    let Ok(text) = fs::read_to_string(path) else { return false };
    text.lines().all(|line| {
        serde_json::from_str::<Record>(line).is_ok_and(|record| {
            record.parameters["peer"] == peer && record.result["peer"]["version"] == version
        })
    })
}

/// The lines that are results as a whole.
fn whole_lines(text: &str) -> String {
    let whole = text.lines().filter(|line| serde_json::from_str::<Record>(line).is_ok());
    whole.map(|line| format!("{line}\n")).collect()
}

fn remove_if_there(path: &Path) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// All of them, in the order of the table.
fn measurements(arguments: &Arguments) -> Vec<Measurement> {
    let Arguments { seconds, rounds, cores, backend_core, .. } = arguments;
    let how = format!("--seconds {seconds} --rounds {rounds} --cores {cores} --backend-core {backend_core}");
    let mut all = Vec::new();
    let mut one = |name: String, line: &str, more: &[&str]| {
        let words = line.split_whitespace().chain(more.iter().copied()).map(str::to_owned).collect();
        let is_given = name.ends_with("-given");
        all.push(Measurement { name, words, is_given });
    };
    let given = arguments.testpmd.as_ref().map(|path| path.display().to_string());
    let peers: Vec<(&str, Option<&str>)> =
        std::iter::once(("dpdk", None)).chain(given.as_deref().map(|path| ("given", Some(path)))).collect();
    for (peer, path) in peers {
        let more: Vec<&str> = path.map_or(Vec::new(), |path| vec!["--peer", path]);
        for job in ["net", "link"] {
            for size in [64, 1518] {
                for touch in ["none", "header"] {
                    let line = format!("compare {job} --size {size} --touch {touch} {how}");
                    one(format!("{job}-{size}-{touch}-{peer}"), &line, &more);
                }
                let line = format!("compare {job} --size {size} --driver testpmd {how}");
                one(format!("{job}-{size}-driver-{peer}"), &line, &more);
            }
        }
    }
    for size in [64, 1518] {
        let line = format!("compare bridge --size {size} --ports 2,4,16,64 {how}");
        one(format!("bridge-{size}-ovs"), &line, &[]);
    }
    let line = format!("compare bridge --ports 2,4,16,64 --talk one --no-rates {how}");
    one("bridge-64-one-ovs".to_owned(), &line, &[]);
    let line = format!("compare bridge --ports 2,4,16,64 --flood 5 --no-rates {how}");
    one("bridge-64-flood-ovs".to_owned(), &line, &[]);
    one("bridge-64-link".to_owned(), &format!("compare bridge --peer link {how}"), &[]);
    one("tap".to_owned(), &format!("tap {how}"), &[]);
    let on = format!("--core {} --worker-core {backend_core}", cores.split(',').next().unwrap_or("0"));
    for ring in ["split", "packed"] {
        one(format!("regions-{ring}"), &format!("scale --only regions --ring {ring} {on}"), &[]);
        one(format!("bridge-cores-{ring}"), &format!("scale --only bridge-cores --ring {ring} {on}"), &[]);
    }
    // Each of those who look has to have come to it in a round.
    one("watched".to_owned(), &format!("scale --only watched --seconds 3 --rounds 8 {on}"), &[]);
    all
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::Cli;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn arguments(words: &[&str]) -> Arguments {
        Line::parse_from(["targets"].iter().chain(words)).arguments
    }

    #[test]
    fn every_command_is_one_that_there_is_and_has_a_file_of_its_own() {
        let all = measurements(&arguments(&["/x", "--testpmd", "/y/dpdk-testpmd", "--rounds", "3"]));
        for Measurement { name, words, .. } in &all {
            let line = ["ringway-bench", "-j"].into_iter().chain(words.iter().map(String::as_str));
            if let Err(why) = Cli::try_parse_from(line) {
                panic!("{name}: {why}");
            }
        }
        let mut names: Vec<&str> = all.iter().map(|one| one.name.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), all.len());
        let given: Vec<&Measurement> =
            all.iter().filter(|one| one.words.contains(&"/y/dpdk-testpmd".to_owned())).collect();
        assert_eq!(given.len(), 12);
        assert!(given.iter().all(|one| one.is_given));
    }

    fn line(peer: &str, version: &str) -> String {
        let result = serde_json::json!({"peer": {"name": "dpdk", "version": version}});
        let host = ringway_bench::host::Host::read();
        let record = Record::new("compare", host, &serde_json::json!({"peer": peer}), &result).unwrap();
        serde_json::to_string(&record).unwrap()
    }

    #[test]
    fn what_was_measured_beside_another_peer_or_version_is_measured_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.json");
        let ours = line("/y/dpdk-testpmd", "DPDK 26.11.0");
        for (text, kept) in [
            (format!("{ours}\n{ours}\n"), true),
            (format!("{ours}\n{}\n", line("/y/dpdk-testpmd", "DPDK 25.11.0")), false),
            (line("/z/dpdk-testpmd", "DPDK 26.11.0"), false),
            ("{".to_owned(), false),
        ] {
            fs::write(&path, &text).unwrap();
            assert_eq!(is_beside(&path, "/y/dpdk-testpmd", "DPDK 26.11.0"), kept, "{text}");
        }
        assert!(!is_beside(&folder.path().join("none"), "/y/dpdk-testpmd", "DPDK 26.11.0"));
    }

    #[test]
    fn of_what_was_broken_off_whole_results_stay() {
        let one = line("ovs", "3.1");
        assert_eq!(whole_lines(&format!("{one}\n{one}\n{}", &one[..40])), format!("{one}\n{one}\n"));
        assert_eq!(whole_lines("{"), "");
    }
}
