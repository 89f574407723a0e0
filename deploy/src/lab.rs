//! One peer test: its folder, its turn on the machine, and its logs when it fails.
//!
//! ```text
//! target/lab/
//!   kernel/PACKAGE/{boot,lib}   what deploy/test unpacked
//!   agent/                      the guest's agent, built statically
//!   turn                        locked by the running test: two at a time would disturb each other's cores
//!   runs/TEST/*.log             kept until the test runs again
//! /tmp/ringway-lab-PID-N/*.sock  gone with the test
//! ```
//! Sockets lie in a folder of their own because their paths may have 107 bytes at most, and a build's folder may lie deep.

use std::fs::{self, File};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::FlockOperation;

use crate::ensure;
use crate::error::{Context, Error, Result};

/// A running test's place.
#[derive(Debug)]
pub struct Lab {
    folder: PathBuf,
    sockets: PathBuf,
    start: Instant,
    /// Progress is not told.
    quiet: bool,
    /// Held for as long as the test runs.
    _turn: File,
}

impl Lab {
    /// Runs a test in its turn; if it fails, prints the end of every log that it left, and panics.
    pub fn run(name: &str, test: impl FnOnce(&Lab) -> Result<()>) {
        if let Err(error) = Lab::attempt(name, test) {
            #[expect(clippy::panic, reason = "a failed test panics")]
            {
                panic!("{name}: {error}")
            }
        }
    }

    /// Runs something in its turn; if it fails, prints the end of every log that it left.
    pub fn attempt(name: &str, test: impl FnOnce(&Lab) -> Result<()>) -> Result<()> {
        let lab = Lab::new(name, false)?;
        let outcome = catch_unwind(AssertUnwindSafe(|| test(&lab)));
        lab.say(format_args!("{}", if matches!(outcome, Ok(Ok(()))) { "passed" } else { "FAILED" }));
        match outcome {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => {
                lab.show_logs();
                Err(error)
            }
            Err(panic) => {
                lab.show_logs();
                resume_unwind(panic)
            }
        }
    }

    /// A place for who has a standard output of its own: nothing is printed, and logs are left where they are.
    pub fn quiet(name: &str) -> Result<Lab> {
        Lab::new(name, true)
    }

    fn new(name: &str, quiet: bool) -> Result<Lab> {
        let root = root()?;
        let folder = root.join("runs").join(name);
        if folder.exists() {
            fs::remove_dir_all(&folder).context(|| format!("empty {}", folder.display()))?;
        }
        fs::create_dir_all(&folder).context(|| folder.display().to_string())?;
        let turn = File::create(root.join("turn")).context(|| "the lab's turn file".into())?;
        let waiting_since = Instant::now();
        while rustix::fs::flock(&turn, FlockOperation::NonBlockingLockExclusive).is_err() {
            ensure!(
                waiting_since.elapsed() < TURN_LIMIT,
                "another peer test has held {}/turn for too long",
                root.display()
            );
            std::thread::sleep(Duration::from_millis(50));
        }
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let number = RUNS.fetch_add(1, Ordering::Relaxed);
        let sockets = std::env::temp_dir().join(format!("ringway-lab-{}-{number}", std::process::id()));
        fs::create_dir_all(&sockets).context(|| sockets.display().to_string())?;
        Ok(Lab { folder, sockets, start: Instant::now(), quiet, _turn: turn })
    }

    /// Where the test keeps its files.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Where the test keeps its sockets.
    pub fn sockets(&self) -> &Path {
        &self.sockets
    }

    /// A socket of the test.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.sockets.join(name)
    }

    /// A file of the test.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// A line of progress, with the time since the test began.
    pub fn say(&self, line: impl std::fmt::Display) {
        if !self.quiet {
            println!("[{:6.2}] {line}", self.start.elapsed().as_secs_f64());
        }
    }

    fn show_logs(&self) {
        let Ok(entries) = fs::read_dir(&self.folder) else { return };
        let mut logs: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        logs.retain(|path| path.extension().is_some_and(|extension| extension == "log"));
        logs.sort();
        for log in logs {
            println!("---- end of {}", log.display());
            print!("{}", tail(&log, LOG_LINES));
        }
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        // What is left there is of no use to anybody.
        let _ = fs::remove_dir_all(&self.sockets);
    }
}

/// The lab's folder in the build's target folder.
pub fn root() -> Result<PathBuf> {
    if let Some(folder) = std::env::var_os("RINGWAY_LAB") {
        return Ok(PathBuf::from(folder));
    }
    Ok(target_folder()?.join("lab"))
}

/// The build's target folder, from where the running program lies: `TARGET/[TRIPLE/]PROFILE/[deps/]PROGRAM`.
pub fn target_folder() -> Result<PathBuf> {
    let program = std::env::current_exe().context(|| "the running program".into())?;
    // Cargo keeps this file at the top of every target folder; between it and the profile may lie a triple.
    let top = program.ancestors().skip(2).take(3).find(|folder| folder.join(RUSTC_INFO).exists());
    top.map(Path::to_path_buf).ok_or_else(|| {
        Error::new(format!("{} does not lie in a target folder: set RINGWAY_LAB", program.display()))
    })
}

/// The last `lines` lines of a text file, or why there are none.
pub fn tail(path: &Path, lines: usize) -> String {
    match fs::read(path) {
        Ok(bytes) => {
            let text = String::from_utf8_lossy(&bytes);
            let skip = text.lines().count().saturating_sub(lines);
            text.lines().skip(skip).fold(String::new(), |all, line| all + line + "\n")
        }
        Err(error) => format!("({error})\n"),
    }
}

/// Asks `done` every few milliseconds until it gives a value; an error names what was waited for.
pub fn wait_for<T>(what: &str, limit: Duration, mut done: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = done()? {
            return Ok(value);
        }
        ensure!(start.elapsed() < limit, "{what}: not within {:.1} s", limit.as_secs_f64());
        std::thread::sleep(Duration::from_millis(5));
    }
}

const RUSTC_INFO: &str = ".rustc_info.json";
const TURN_LIMIT: Duration = Duration::from_secs(1200);
const LOG_LINES: usize = 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_target_folder_is_cargos() {
        assert!(target_folder().unwrap().join(RUSTC_INFO).exists());
    }

    #[test]
    fn tail_gives_the_last_lines_and_names_a_missing_file() {
        let path = std::env::temp_dir().join(format!("ringway-lab-tail-{}", std::process::id()));
        fs::write(&path, "1\n2\n3\n").unwrap();
        assert_eq!(tail(&path, 2), "2\n3\n");
        fs::remove_file(&path).unwrap();
        assert!(tail(&path, 2).starts_with('('));
    }

    #[test]
    fn waiting_ends_with_the_value_or_names_what_did_not_come() {
        let mut turns = 0;
        let third = wait_for("third turn", Duration::from_secs(5), || {
            turns += 1;
            Ok((turns == 3).then_some(turns))
        });
        assert_eq!(third.unwrap(), 3);
        let never = wait_for("never", Duration::from_millis(20), || Ok(None::<()>));
        assert_eq!(never.unwrap_err().to_string(), "never: not within 0.0 s");
    }
}
