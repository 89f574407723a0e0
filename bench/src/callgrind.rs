//! Counting instructions: this program runs itself under valgrind's callgrind, which counts each instruction between the
//! entry of one function and its return, on a processor of its own making. The same program gives the same counts on any
//! machine that has the same instruction set, however busy it is.
//!
//! ```text
//!   parent                          child, under callgrind
//!   ringway-bench ring              ringway-bench ring --counted
//!     |                               for each path: warm up, end_part(), whole batches, end_part()
//!     |  <- one line of JSON --       what each path is and how many units it did
//!     |  <- PREFIX.1, PREFIX.2 ..     a file for each part: what was counted since the part before
//! ```
//!
//! The parts of warm-ups are not looked at.

use std::fs;
use std::hint::black_box;
use std::path::Path as FilePath;
use std::process::{Command, Stdio};

use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::ring::Path;

/// What the child did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    /// See [`key`].
    pub key: String,
    /// Paths and units done, in the order of their parts.
    pub paths: Vec<(Path, u64)>,
}

/// Instructions of one path.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Count {
    /// The path.
    pub path: Path,
    /// Units that were done: descriptors or frames.
    pub units: u64,
    /// Instructions that it took.
    pub instructions: u64,
}

impl Count {
    /// Instructions for each unit.
    pub fn each(&self) -> f64 {
        self.instructions as f64 / self.units as f64
    }
}

/// What a count depends on beside the program: the compiler, and the instruction set that it compiled for and that is
/// found when it runs.
pub fn key() -> String {
    let mut key = format!("{}, {}", env!("RINGWAY_RUSTC"), std::env::consts::ARCH);
    for feature in env!("RINGWAY_TARGET_FEATURES").split(',').filter(|feature| !feature.is_empty()) {
        key.push('+');
        key.push_str(feature);
    }
    // Copies choose by it when they run.
    #[cfg(target_arch = "x86_64")]
    if std::arch::is_x86_feature_detected!("avx") {
        key.push_str(", avx found");
    }
    key
}

/// The child's part: does every path's batches between ends of parts. Says what it did; callgrind says what it took.
///
/// # Errors
/// Those of the paths.
pub fn count_here(paths: &[Path]) -> Result<Counted, BenchError> {
    let mut done = Vec::with_capacity(paths.len());
    for path in paths {
        let mut bench = path.bench()?;
        end_part();
        let units = bench.run(UNITS)?;
        end_part();
        done.push((*path, units));
    }
    Ok(Counted { key: key(), paths: done })
}

/// Runs this program's `words` under callgrind, which must come to [`count_here`] and print what it says as a line of
/// JSON. Returns the key and the counts.
///
/// # Errors
/// valgrind is not here, or something went wrong under it.
pub fn count(words: &[&str]) -> Result<(String, Vec<Count>), BenchError> {
    if cfg!(debug_assertions) {
        return Err(BenchError::Usage(
            "this build was not optimised, its counts say nothing: build with --release".to_owned(),
        ));
    }
    let folder = tempfile::tempdir().map_err(BenchError::system("cannot make a directory"))?;
    let program = std::env::current_exe().map_err(BenchError::system("cannot find this program"))?;
    let prefix = folder.path().join(PREFIX);
    let child = Command::new(VALGRIND)
        .args(["--tool=callgrind", "--collect-atstart=no", "--combine-dumps=no", "--quiet"])
        .args(["--toggle-collect=*measured_work*", "--dump-before=*end_part*"])
        .arg(format!("--callgrind-out-file={}", prefix.display()))
        .arg(program)
        .args(words)
        .stdin(Stdio::null())
        .output()
        .map_err(|source| match source.kind() {
            std::io::ErrorKind::NotFound => BenchError::MissingPeer {
                program: VALGRIND.to_owned(),
                package: "valgrind",
                variable: "PATH",
            },
            _ => BenchError::System { what: format!("cannot start {VALGRIND}"), source },
        })?;
    let failed = |what: String| BenchError::Peer { peer: "callgrind".to_owned(), what };
    if !child.status.success() {
        let said = String::from_utf8_lossy(&child.stderr);
        let last: Vec<&str> = said.lines().rev().take(LAST_WORDS).collect();
        let last: Vec<&str> = last.into_iter().rev().collect();
        return Err(failed(format!("ended with {}: {}", child.status, last.join("; "))));
    }
    let counted: Counted = serde_json::from_slice(&child.stdout)
        .map_err(|error| failed(format!("the program under it did not say what it did: {error}")))?;
    let counts = counted
        .paths
        .into_iter()
        .enumerate()
        .map(|(nth, (path, units))| {
            // Parts are numbered from 1; the first of each two is the warm-up.
            let instructions = read_part(&folder.path().join(format!("{PREFIX}.{}", 2 * nth + 2)))?;
            Ok(Count { path, units, instructions })
        })
        .collect::<Result<Vec<Count>, BenchError>>()?;
    Ok((counted.key, counts))
}

fn read_part(file: &FilePath) -> Result<u64, BenchError> {
    let text = fs::read_to_string(file).map_err(BenchError::system(format!("{}", file.display())))?;
    total(&text).filter(|&total| total > 0).ok_or_else(|| BenchError::Peer {
        peer: "callgrind".to_owned(),
        what: "counted nothing: the function that it is to count was not found".to_owned(),
    })
}

/// The sum of a part: of the one event that is counted, instructions.
fn total(text: &str) -> Option<u64> {
    let is_of_instructions = text.lines().any(|line| line == "events: Ir");
    let line = text.lines().find_map(|line| line.strip_prefix("totals:"))?;
    is_of_instructions.then(|| line.trim().parse().ok())?
}

/// Where callgrind ends a part: known to it by name.
#[inline(never)]
fn end_part() {
    black_box(());
}

const VALGRIND: &str = "valgrind";
const PREFIX: &str = "part";
const LAST_WORDS: usize = 5;
/// Descriptors or frames of a path that are counted: every entry of its rings sixteen times, so that each way of wrapping
/// around has its share.
const UNITS: u64 = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    const PART: &str = "# callgrind format\nversion: 1\npid: 7\npart: 2\n\nevents: Ir\nsummary: 1234\n\nfn=(1)\n0 1234\n\ntotals: 1234\n";

    #[test]
    fn total_of_a_part_is_read() {
        assert_eq!(total(PART), Some(1234));
    }

    #[test]
    fn part_of_other_events_or_without_a_total_is_none() {
        assert_eq!(total(&PART.replace("events: Ir", "events: Ir Dr")), None);
        assert_eq!(total(&PART.replace("totals", "others")), None);
        assert_eq!(total(""), None);
    }

    #[test]
    fn instructions_are_told_for_each_unit() {
        let path = Path::all()[0];
        assert!((Count { path, units: 200, instructions: 500 }.each() - 2.5).abs() < 1e-12);
    }

    #[test]
    fn child_does_whole_batches_of_every_path() {
        let counted = count_here(&Path::all()).unwrap();
        assert_eq!(counted.paths.len(), Path::all().len());
        assert!(counted.paths.iter().all(|(_, units)| *units == UNITS));
        assert!(counted.key.starts_with("rustc "), "{}", counted.key);
    }
}
