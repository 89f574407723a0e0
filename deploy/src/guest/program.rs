//! Programs: run to their end, or in the background with their output in a file.

use std::fs::File;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use ringway_lab::agent::{ProgramReport, ShellReport};
use ringway_lab::error::{Context, Error, Result};
use rustix::process::{Pid, Signal};

/// Runs a program to its end; at `limit` it is killed.
pub(crate) fn run(words: &[String], limit: Duration) -> Result<ShellReport> {
    let output = PathBuf::from(format!("/tmp/ringway-run-{}", std::process::id()));
    let mut child = spawn(words, &output, Stdio::null())?;
    let deadline = Instant::now() + limit;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            break child.wait()?;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let text = text(&output)?;
    std::fs::remove_file(output)?;
    Ok(ShellReport { code: code(status), output: text })
}

/// A program in the background.
pub(crate) struct Program {
    child: Child,
    output: PathBuf,
}

impl Program {
    /// Starts it; what one of the same name wrote before is gone.
    pub(crate) fn start(name: &str, words: &[String]) -> Result<Program> {
        let output = Path::new("/tmp").join(format!("{name}.log"));
        Ok(Program { child: spawn(words, &output, Stdio::piped())?, output })
    }

    /// Writes a line to its input.
    pub(crate) fn tell(&mut self, line: &str) -> Result<()> {
        let input = self.child.stdin.as_mut().ok_or_else(|| Error::new("no input pipe"))?;
        writeln!(input, "{line}").context(|| "its input".into())
    }

    /// How it stands.
    pub(crate) fn report(&mut self) -> Result<ProgramReport> {
        let code = self.child.try_wait()?.map(code);
        Ok(ProgramReport { pid: self.child.id(), code, output: text(&self.output)? })
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: i32) -> Result<()> {
        let signal =
            Signal::from_named_raw(signal).ok_or_else(|| Error::new(format!("{signal} is no signal")))?;
        rustix::process::kill_process(Pid::from_child(&self.child), signal).context(|| format!("{signal:?}"))
    }

    /// Kills it unless it has ended.
    pub(crate) fn end(&mut self) -> Result<ProgramReport> {
        // It may have ended already.
        let _ = self.child.kill();
        self.child.wait()?;
        self.report()
    }
}

fn spawn(words: &[String], output: &Path, input: Stdio) -> Result<Child> {
    let (program, rest) = words.split_first().ok_or_else(|| Error::new("no program named"))?;
    let log = File::create(output).context(|| output.display().to_string())?;
    Command::new(program)
        .args(rest)
        .env("PATH", "/sbin:/usr/sbin:/usr/bin:/bin")
        .stdin(input)
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context(|| program.clone())
}

fn code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}

/// A file's end as text.
fn text(path: &Path) -> Result<String> {
    let bytes = std::fs::read(path).context(|| path.display().to_string())?;
    Ok(String::from_utf8_lossy(&bytes[bytes.len().saturating_sub(OUTPUT_BYTES)..]).into_owned())
}

const OUTPUT_BYTES: usize = 128 << 10;
