//! A DPDK testpmd that is started, asked and told what to do at its console.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::{Identity, Memory};
use crate::error::BenchError;
use crate::mortal;

/// A running one. Killed when dropped.
#[derive(Debug)]
pub(crate) struct Console {
    child: Child,
    input: ChildStdin,
    said: Arc<Mutex<Vec<String>>>,
    pub(crate) identity: Identity,
}

/// What it counted of all that it forwarded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Forwarded {
    /// Packets received, sent, and dropped since what they were to be sent to was full.
    pub rx: u64,
    /// See `rx`.
    pub tx: u64,
    /// See `rx`.
    pub dropped: u64,
    /// Cycles that it spent on them; 0 if it does not count these.
    pub cycles: u64,
    /// Bursts in which it sent them; 0 if it does not count these.
    pub bursts: u64,
}

impl Console {
    /// Starts a program, or the one that is found, with these flags, and waits until it says a line that `is_ready`.
    pub(crate) fn start(
        program: Option<&Path>,
        flags: Vec<String>,
        is_ready: impl Fn(&str) -> bool,
    ) -> Result<Console, BenchError> {
        let program = match program {
            Some(named) if named.is_file() => named.to_owned(),
            Some(named) => return Err(missing(named.display().to_string())),
            None => find()?,
        };
        // Into a pipe it would keep its lines until it has a page of them; waiting for one of them then takes luck.
        let mut child = mortal::command("stdbuf")
            .arg("--output=L")
            .arg(&program)
            .args(&flags)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .map_err(BenchError::system(format!("cannot start stdbuf (coreutils) {}", program.display())))?;
        let said = Arc::new(Mutex::new(Vec::new()));
        for stream in [child.stdout.take().map(Stream::Out), child.stderr.take().map(Stream::Error)]
            .into_iter()
            .flatten()
        {
            stream.collect_into(Arc::clone(&said));
        }
        let Some(input) = child.stdin.take() else {
            return Err(BenchError::Usage("bug: a child without its input".to_owned()));
        };
        let identity = Identity { name: "dpdk".to_owned(), version: String::new(), flags };
        let mut console = Console { child, input, said, identity };
        console.wait("did not come up", |lines| lines.iter().any(|line| is_ready(line)))?;
        console.identity.version = version(&console.lines());
        Ok(console)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it said since it was last asked.
    pub(crate) fn lines(&self) -> Vec<String> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Waits until what it said is enough.
    pub(crate) fn wait(
        &mut self,
        otherwise: &str,
        enough: impl Fn(&[String]) -> bool,
    ) -> Result<(), BenchError> {
        let begun = Instant::now();
        while !enough(&self.lines()) {
            let is_over = matches!(self.child.try_wait(), Ok(Some(_)) | Err(_));
            if is_over || begun.elapsed() > PATIENCE {
                let what = if is_over { "ended at once" } else { otherwise };
                let lines = self.lines();
                let end = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
                return Err(BenchError::Peer {
                    peer: "dpdk-testpmd".to_owned(),
                    what: format!("{what}; it said last:\n{end}"),
                });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(())
    }

    /// Gives a command and waits for all of its answer. It must be running.
    pub(crate) fn ask(&mut self, command: &str) -> Result<Vec<String>, BenchError> {
        self.said.lock().unwrap_or_else(PoisonError::into_inner).clear();
        // No command, but what is typed is shown: the answer is all that comes before.
        let line = format!("{command}\n{END}\n");
        self.input.write_all(line.as_bytes()).map_err(BenchError::system("cannot give testpmd a command"))?;
        self.wait("did not answer", |lines| lines.iter().any(|line| line.contains(END)))?;
        Ok(self.lines())
    }

    /// What it has forwarded so far.
    pub(crate) fn forwarded(&mut self) -> Result<Forwarded, BenchError> {
        let lines = self.ask("show fwd stats all")?;
        forwarded(&lines).ok_or_else(|| BenchError::Peer {
            peer: "dpdk-testpmd".to_owned(),
            what: format!("told no statistics: {}", lines.join("\n")),
        })
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where its words come from.
enum Stream {
    Out(std::process::ChildStdout),
    Error(std::process::ChildStderr),
}

impl Stream {
    /// Reads on, on a thread of its own, so that the program never waits for a reader.
    fn collect_into(self, lines: Arc<Mutex<Vec<String>>>) {
        let reader: Box<dyn std::io::Read + Send> = match self {
            Stream::Out(stream) => Box::new(stream),
            Stream::Error(stream) => Box::new(stream),
        };
        std::thread::spawn(move || {
            for line in BufReader::new(reader).lines().map_while(Result::ok) {
                let mut lines = lines.lock().unwrap_or_else(PoisonError::into_inner);
                if lines.len() < MOST_LINES {
                    lines.push(line);
                }
            }
        });
    }
}

/// Reads the answer to `show fwd stats all`: each port, and behind them all of them together.
fn forwarded(lines: &[String]) -> Option<Forwarded> {
    let number = |line: &str, name: &str| -> Option<u64> {
        let (_, rest) = line.split_once(name)?;
        let digits: String = rest.trim_start().chars().take_while(char::is_ascii_digit).collect();
        digits.parse().ok()
    };
    let last = |name: &str| lines.iter().rev().find_map(|line| number(line, name));
    Some(Forwarded {
        rx: last("RX-packets:")?,
        tx: last("TX-packets:")?,
        dropped: last("TX-dropped:")?,
        cycles: last("total cycles=").or_else(|| last("busy cycles=")).unwrap_or_default(),
        bursts: lines.iter().filter_map(|line| number(line, "TX-bursts :")).sum(),
    })
}

/// The part of its command line that is for the environment of DPDK: its lcore 0 on `main`, its lcore 1, which forwards, on
/// `core`.
pub(crate) fn environment(main: usize, core: usize, role: &str, memory: Memory) -> Vec<String> {
    let mut line = vec!["-v".to_owned(), "--lcores".to_owned(), format!("0@{main},1@{core}")];
    line.extend(["--main-lcore", "0", "--no-pci", "--no-telemetry"].map(str::to_owned));
    line.push(format!("--file-prefix=ringway-bench-{role}-{}", std::process::id()));
    line.extend(["-m".to_owned(), MEMORY_MIB.to_string()]);
    match memory {
        Memory::Huge => line.extend(["--in-memory", "--single-file-segments"].map(str::to_owned)),
        Memory::Base => line.push("--no-huge".to_owned()),
    }
    line
}

/// The program: named by the environment, or on the path.
fn find() -> Result<PathBuf, BenchError> {
    if let Some(named) = std::env::var_os(VARIABLE) {
        let path = PathBuf::from(named);
        return if path.is_file() { Ok(path) } else { Err(missing(path.display().to_string())) };
    }
    let paths = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&paths)
        .map(|folder| folder.join(PROGRAM))
        .find(|path| path.is_file())
        .ok_or_else(|| missing(PROGRAM.to_owned()))
}

fn missing(program: String) -> BenchError {
    BenchError::MissingPeer { program, package: "dpdk-dev", variable: VARIABLE }
}

/// The version that a testpmd tells of itself; `unknown` of one that tells none.
///
/// # Errors
/// It cannot be run.
pub fn version_of(program: &Path) -> Result<String, BenchError> {
    let mut command = mortal::command(program);
    // It says so before it looks at its arguments.
    command.args([
        "-v",
        "--no-huge",
        "--no-pci",
        "--no-telemetry",
        "--in-memory",
        "-m",
        "64",
        "--",
        "--help",
    ]);
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(BenchError::system(format!("cannot run {}", program.display())))?;
    let said = [output.stdout, output.stderr].concat();
    Ok(version(&String::from_utf8_lossy(&said).lines().map(str::to_owned).collect::<Vec<_>>()))
}

/// What it told of its version: `EAL: RTE Version: 'DPDK 22.11.11'`.
fn version(lines: &[String]) -> String {
    let told = lines.iter().find_map(|line| line.split_once("RTE Version:"));
    told.map_or_else(|| "unknown".to_owned(), |(_, version)| version.trim_matches([' ', '\'']).to_owned())
}

/// Names the program, if it is not on the path.
const VARIABLE: &str = "RINGWAY_DPDK_TESTPMD";
const PROGRAM: &str = "dpdk-testpmd";
const PATIENCE: Duration = Duration::from_secs(30);
pub(crate) const MEMORY_MIB: u64 = 256;
const MOST_LINES: usize = 10_000;
const LAST_LINES: usize = 12;
/// No command of its.
const END: &str = "end-of-answer";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_is_what_the_peer_tells() {
        let lines = ["EAL: Detected CPU lcores: 2", "EAL: RTE Version: 'DPDK 22.11.11'"].map(str::to_owned);
        assert_eq!(version(&lines), "DPDK 22.11.11");
        assert_eq!(version(&lines[..1]), "unknown");
    }

    #[test]
    fn what_was_forwarded_is_that_of_all_ports() {
        let told = "
  ---------------------- Forward statistics for port 0  ----------------------
  RX-packets: 100            RX-dropped: 0             RX-total: 100
  TX-packets: 90             TX-dropped: 10            TX-total: 100
  RX-bursts : 345515739 [99% of 0 pkts + 1% of 32 pkts]
  TX-bursts : 4 [0% of 0 pkts + 100% of 32 pkts]
  ---------------------- Forward statistics for port 1  ----------------------
  RX-packets: 50             RX-dropped: 0             RX-total: 50
  TX-packets: 50             TX-dropped: 0             TX-total: 50
  TX-bursts : 2 [0% of 0 pkts + 100% of 32 pkts]
  +++++++++++++++ Accumulated forward statistics for all ports+++++++++++++++
  RX-packets: 150            RX-dropped: 0             RX-total: 150
  TX-packets: 140            TX-dropped: 10            TX-total: 150

  CPU cycles/packet=154.11 (total cycles=25022 / total macswap packets=150) at 2600 MHz Clock";
        let lines: Vec<String> = told.lines().map(str::to_owned).collect();
        let found = Forwarded { rx: 150, tx: 140, dropped: 10, cycles: 25_022, bursts: 6 };
        assert_eq!(forwarded(&lines), Some(found));
        assert_eq!(forwarded(&lines[..3]), None);
    }
}
