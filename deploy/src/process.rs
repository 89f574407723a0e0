//! A program that ends when its owner lets go, and by the kernel's hand should the owner itself be killed.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, waitid};

use crate::ensure;
use crate::error::{Context, Error, Result};
use crate::lab::{tail, wait_for};
use crate::pace::WATCHDOG;

/// A running program.
#[derive(Debug)]
pub struct Process {
    child: Child,
    name: String,
    log: PathBuf,
}

impl Process {
    /// Starts `program arguments…`; both output streams go to `log`, which is appended to.
    pub fn start(program: impl AsRef<Path>, arguments: &[String], log: &Path) -> Result<Process> {
        let file = append(log)?;
        let mut command = bound_to_owner(program.as_ref(), arguments);
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        Process::spawn(command, program.as_ref(), log)
    }

    /// As [`Process::start`], with a socket for its input and its output; what it says of errors is logged.
    pub fn start_on(
        program: impl AsRef<Path>,
        arguments: &[String],
        socket: UnixStream,
        log: &Path,
    ) -> Result<Process> {
        let mut command = bound_to_owner(program.as_ref(), arguments);
        command.stdin(OwnedFd::from(socket.try_clone()?)).stdout(OwnedFd::from(socket)).stderr(append(log)?);
        Process::spawn(command, program.as_ref(), log)
    }

    /// As [`Process::start`], with a pipe for its input and its output's lines handed over as they come; they are logged as
    /// well.
    pub fn start_talking(
        program: impl AsRef<Path>,
        arguments: &[String],
        log: &Path,
    ) -> Result<(Process, ChildStdin, mpsc::Receiver<Vec<u8>>)> {
        let mut file = append(log)?;
        let mut command = bound_to_owner(program.as_ref(), arguments);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(file.try_clone()?);
        let mut process = Process::spawn(command, program.as_ref(), log)?;
        let input = process.child.stdin.take().ok_or_else(|| Error::new("no input pipe"))?;
        let mut output = process.child.stdout.take().ok_or_else(|| Error::new("no output pipe"))?;
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = output.read(&mut bytes) {
                // A full disk loses log lines, not the test.
                let _ = std::io::Write::write_all(&mut file, &bytes[..count]);
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Ok((process, input, receiver))
    }

    fn spawn(mut command: Command, program: &Path, log: &Path) -> Result<Process> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let child = command.spawn().context(|| format!("start {}", program.display()))?;
        Ok(Process { child, name, log: log.to_path_buf() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// An error with the end of its log unless it still runs.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => Err(Error::new(format!(
                "{} ended by itself ({status}); the end of its log:\n{}",
                self.name,
                tail(&self.log, 20)
            ))),
        }
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).context(|| format!("{signal:?} to {}", self.name))
    }

    /// Has it stand (SIGSTOP), and waits until its last thread does.
    pub fn stand(&self) -> Result<()> {
        self.signal(Signal::STOP)?;
        let its = WaitId::Pid(Pid::from_child(&self.child));
        waitid(its, WaitIdOptions::STOPPED).map(drop).context(|| format!("stop of {}", self.name))
    }

    /// Waits for its end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        wait_for(&format!("end of {}", self.name), limit, || Ok(self.child.try_wait()?))
    }

    /// Ends it with SIGKILL, and waits until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill().context(|| format!("kill {}", self.name))?;
        self.wait(WATCHDOG).map(|_| ())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What a program that was waited for left.
#[derive(Debug)]
pub struct Finished {
    /// Its exit code, 128 + signal when one ended it.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

/// Runs a program to its end, which must come within `limit`.
pub fn run(program: impl AsRef<Path>, arguments: &[String], limit: Duration) -> Result<Finished> {
    let program = program.as_ref();
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context(|| format!("start {}", program.display()))?;
    let (mut stdout, mut stderr) = (child.stdout.take(), child.stderr.take());
    let read_out = std::thread::spawn(move || read_all(stdout.as_mut().map(|pipe| pipe as &mut dyn Read)));
    let read_err = std::thread::spawn(move || read_all(stderr.as_mut().map(|pipe| pipe as &mut dyn Read)));
    let start = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if start.elapsed() > limit {
            child.kill()?;
            child.wait()?;
            ensure!(
                false,
                "{} {} did not end within {:.0} s",
                program.display(),
                arguments.join(" "),
                limit.as_secs_f64()
            );
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    Ok(Finished {
        code: status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)),
        stdout: read_out.join().unwrap_or_default(),
        stderr: read_err.join().unwrap_or_default(),
    })
}

/// The first line that a program prints when asked for its version; `None` when it cannot be started.
pub fn first_line(program: &str, argument: &str) -> Option<String> {
    let output =
        Command::new(program).arg(argument).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    BufReader::new(output.stdout.as_slice()).lines().next()?.ok()
}

/// A command whose process is killed when the thread that starts it ends (`setpriv` is part of every Debian system).
fn bound_to_owner(program: &Path, arguments: &[String]) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program).args(arguments);
    command
}

fn append(log: &Path) -> Result<File> {
    File::options().create(true).append(true).open(log).context(|| format!("log {}", log.display()))
}

fn read_all(pipe: Option<&mut dyn Read>) -> String {
    let mut bytes = Vec::new();
    if let Some(pipe) = pipe {
        // What could be read before an error is still worth showing.
        let _ = pipe.read_to_end(&mut bytes);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(words: &[&str]) -> Vec<String> {
        words.iter().map(|word| (*word).to_string()).collect()
    }

    #[test]
    fn run_gives_code_and_both_streams() {
        let finished =
            run("sh", &words(&["-c", "echo out; echo err >&2; exit 3"]), Duration::from_secs(10)).unwrap();
        assert_eq!(
            (finished.code, finished.stdout.as_str(), finished.stderr.as_str()),
            (3, "out\n", "err\n")
        );
    }

    #[test]
    fn run_ends_a_program_that_takes_too_long() {
        let error = run("sleep", &words(&["60"]), Duration::from_millis(50)).unwrap_err();
        assert!(error.to_string().contains("did not end"), "{error}");
    }

    #[test]
    fn a_process_ends_with_its_owner() {
        let log = std::env::temp_dir().join(format!("ringway-lab-process-{}", std::process::id()));
        let process = Process::start("sleep", &words(&["60"]), &log).unwrap();
        let pid = Pid::from_raw(process.pid() as i32).unwrap();
        rustix::process::test_kill_process(pid).unwrap();
        drop(process);
        assert!(rustix::process::test_kill_process(pid).is_err());
        std::fs::remove_file(log).unwrap();
    }

    #[test]
    fn check_names_a_program_that_ended() {
        let log = std::env::temp_dir().join(format!("ringway-lab-check-{}", std::process::id()));
        let mut process = Process::start("sh", &words(&["-c", "echo why; exit 4"]), &log).unwrap();
        assert_eq!(process.wait(Duration::from_secs(10)).unwrap().code(), Some(4));
        assert!(process.check().unwrap_err().to_string().contains("why"));
        std::fs::remove_file(log).unwrap();
    }
}
