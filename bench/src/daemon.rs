//! A `ringwayd` of our own, on a directory that goes with it.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::mortal;

/// Why the daemon could not be started or asked.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// A program of Ringway's is not beside this one.
    #[error("{program} is not beside this program in {folder}: build it with `cargo build --release`")]
    Missing {
        /// Its name.
        program: &'static str,
        /// Where it was looked for.
        folder: String,
    },
    /// The system.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: &'static str,
        /// What the system said.
        source: std::io::Error,
    },
    /// A command failed.
    #[error("ringway {command} failed:\n{output}")]
    Command {
        /// Its words.
        command: String,
        /// What it printed.
        output: String,
    },
    /// The daemon ended instead of coming up.
    #[error("ringwayd ended with {0}: what it said stands above")]
    Ended(std::process::ExitStatus),
    /// The daemon did not come up.
    #[error("ringwayd did not answer within {0:?}")]
    Silent(Duration),
}

/// A running daemon. Killed when dropped.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    ringway: PathBuf,
    folder: tempfile::TempDir,
}

impl Daemon {
    /// Starts `ringwayd` with these arguments beside those for its folder, and waits until it answers.
    ///
    /// It inherits where the calling thread may run: start it before pinning that.
    pub fn start(arguments: &[&str]) -> Result<Daemon, DaemonError> {
        let mut daemon = Daemon::spawn(arguments)?;
        let begun = Instant::now();
        while daemon.ringway(&["mgmtdev", "show"]).is_err() {
            if let Ok(Some(status)) = daemon.child.try_wait() {
                return Err(DaemonError::Ended(status));
            }
            if begun.elapsed() > PATIENCE {
                return Err(DaemonError::Silent(PATIENCE));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(daemon)
    }

    /// Starts `ringwayd` and does not wait.
    pub fn spawn(arguments: &[&str]) -> Result<Daemon, DaemonError> {
        let system = |what| move |source| DaemonError::System { what, source };
        let folder = tempfile::tempdir().map_err(system("cannot make a directory"))?;
        let mut child = mortal::command(beside("ringwayd")?)
            .arg("--ctl")
            .arg(folder.path().join("ctl.sock"))
            .arg("--state-dir")
            .arg(folder.path().join("state"))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(system("cannot start ringwayd"))?;
        // What it logs is passed on, so that a failure explains itself.
        if let Some(log) = child.stderr.take() {
            std::thread::spawn(move || {
                for line in BufReader::new(log).lines().map_while(Result::ok) {
                    if line.contains("WARN") || line.contains("ERROR") || line.starts_with("error") {
                        eprintln!("ringwayd: {line}");
                    }
                }
            });
        }
        Ok(Daemon { child, ringway: beside("ringway")?, folder })
    }

    /// Runs a command as an operator would; returns what it prints.
    pub fn ringway(&self, words: &[&str]) -> Result<String, DaemonError> {
        let output = Command::new(&self.ringway)
            .arg("--ctl")
            .arg(self.ctl())
            .args(words)
            .output()
            .map_err(|source| DaemonError::System { what: "cannot run ringway", source })?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        if output.status.success() {
            Ok(text(&output.stdout))
        } else {
            Err(DaemonError::Command { command: words.join(" "), output: text(&output.stderr) })
        }
    }

    /// The operator's socket.
    pub fn ctl(&self) -> PathBuf {
        self.folder.path().join("ctl.sock")
    }

    /// Where a device's socket is.
    pub fn socket(&self, device: &str) -> PathBuf {
        self.folder.path().join("dev").join(format!("{device}.sock"))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The path of a program that is installed or built beside this one.
pub(crate) fn beside(program: &'static str) -> Result<PathBuf, DaemonError> {
    let own = std::env::current_exe().unwrap_or_default();
    let folder = own.parent().unwrap_or(Path::new("."));
    // Cargo's tests lie in a folder below that of the programs.
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    let path = folder.join(program);
    if path.is_file() {
        Ok(path)
    } else {
        Err(DaemonError::Missing { program, folder: folder.display().to_string() })
    }
}

/// How long the daemon may take to answer for the first time.
const PATIENCE: Duration = Duration::from_secs(10);
