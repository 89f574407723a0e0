//! A machine of an operator's own, for a document's commands: namespaces in which only a test's processes are seen, whose `/srv`,
//! `/run` and `/var/lib` are the test's, with no interface but `lo` and without KVM. Needs root.
//!
//! A [`Terminal`] is a shell in it. Each is used by one thread; all of them, and what runs in them, go with the [`Host`].

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::ChildStdin;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::daemon::binaries;
use crate::error::{Context, Error, Result};
use crate::lab::{Lab, wait_for};
use crate::pace::WATCHDOG;
use crate::process::Process;
use crate::{ensure, fail};

/// The machine.
#[derive(Debug)]
pub struct Host<'lab> {
    lab: &'lab Lab,
    /// The first process of its namespaces.
    first: Terminal<'lab>,
    pid: u32,
    terminals: u32,
}

impl<'lab> Host<'lab> {
    /// Makes it; its shells begin in the test's folder.
    pub fn start(lab: &'lab Lab) -> Result<Host<'lab>> {
        let words =
            ["unshare", "--mount", "--pid", "--net", "--fork", "--mount-proc", "--kill-child", "bash"];
        let mut first = Terminal::start(lab, "host", &words)?;
        fs::create_dir_all(lab.path("srv"))?;
        let said = first.run(
            "mount --bind srv /srv\nmount -t tmpfs run /run\nmkdir /run/lock\nmount -t tmpfs lib /var/lib\n\
             [ ! -e /dev/kvm ] || mount --bind /dev/null /dev/kvm\nip link set lo up",
        )?;
        ensure!(said.code == 0, "{}", said.text);
        let outer = first.shell.pid();
        let children = fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"))?;
        let pid = children.split_whitespace().next().and_then(|pid| pid.parse().ok());
        let pid = pid.ok_or_else(|| Error::new(format!("unshare has no child: {children}")))?;
        Ok(Host { lab, first, pid, terminals: 0 })
    }

    /// Its first shell.
    pub fn shell(&mut self) -> &mut Terminal<'lab> {
        &mut self.first
    }

    /// Another shell in it.
    pub fn terminal(&mut self) -> Result<Terminal<'lab>> {
        self.terminals += 1;
        let pid = self.pid.to_string();
        let words = ["nsenter", "--target", &pid, "--mount", "--pid", "--net", "bash"];
        Terminal::start(self.lab, &format!("terminal-{}", self.terminals), &words)
    }

    /// A path of its own tree of files, as the test reaches it.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root{path}", self.pid))
    }

    /// Ends it, and with it all that still runs there.
    pub fn end(mut self) -> Result<()> {
        self.first.input = None;
        self.first.shell.wait(WATCHDOG).map(drop)
    }
}

/// What a command came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Said {
    /// The exit code.
    pub code: i32,
    /// What was written, errors among it.
    pub text: String,
}

/// A shell.
#[derive(Debug)]
pub struct Terminal<'lab> {
    lab: &'lab Lab,
    name: String,
    shell: Process,
    input: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
    commands: u32,
}

impl<'lab> Terminal<'lab> {
    fn start(lab: &'lab Lab, name: &str, words: &[&str]) -> Result<Terminal<'lab>> {
        let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", binaries()?.display());
        let begin = ["-i", &path, "HOME=/root", "TERM=vt100"];
        let words: Vec<String> = begin.iter().chain(words).map(|word| (*word).to_string()).collect();
        let log = lab.path(&format!("{name}.log"));
        let (shell, input, output) = Process::start_talking("/usr/bin/env", &words, &log)?;
        let name = name.to_string();
        let mut terminal = Terminal { lab, name, shell, input: Some(input), output, commands: 0 };
        let said = terminal.run(&format!("cd '{}'", lab.folder().display()))?;
        ensure!(said.code == 0, "{}", said.text);
        Ok(terminal)
    }

    /// Runs commands to their end, in the shell itself. One that ends the shell is an error.
    pub fn run(&mut self, text: &str) -> Result<Said> {
        self.write(text)?;
        let mark = format!("ended-{}-{}-", self.name, self.commands);
        let input = self.input.as_mut().ok_or_else(|| Error::new("the shell has ended"))?;
        writeln!(input, "code=$?; echo; echo {mark}$code.")?;
        let begun = Instant::now();
        let mut said = String::new();
        loop {
            match self.output.recv_timeout(Duration::from_millis(100)) {
                Ok(bytes) => said.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout) => {
                    ensure!(begun.elapsed() < WATCHDOG, "no end of {text}\n{said}");
                }
                Err(RecvTimeoutError::Disconnected) => fail!("it ended the shell: {text}\n{said}"),
            }
            let Some((text, code)) = said.split_once(&format!("\n{mark}")) else { continue };
            if let Some((code, _)) = code.split_once('.') {
                let code = code.parse().context(|| format!("exit code {code}"))?;
                return Ok(Said { code, text: text.to_string() });
            }
        }
    }

    /// Types commands, and leaves them running.
    pub fn write(&mut self, text: &str) -> Result<()> {
        self.commands += 1;
        let file = self.lab.path(&format!("{}-{}.sh", self.name, self.commands));
        fs::write(&file, text)?;
        let input = self.input.as_mut().ok_or_else(|| Error::new("the shell has ended"))?;
        writeln!(input, ". '{}' 2>&1", file.display())?;
        Ok(())
    }

    /// The program that runs in it now has it: its keyboard, and what it says. The shell goes with what is given.
    pub fn into_parts(self) -> Result<(Process, ChildStdin, Receiver<Vec<u8>>)> {
        let input = self.input.ok_or_else(|| Error::new("the shell has ended"))?;
        Ok((self.shell, input, self.output))
    }
}

/// Waits for a command to succeed, which is tried again and again.
pub fn wait_until(terminal: &mut Terminal<'_>, command: &str) -> Result<()> {
    wait_for(command, WATCHDOG, || Ok((terminal.run(command)?.code == 0).then_some(())))
}
