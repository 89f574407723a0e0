//! The serial console of a guest that was booted from a disk of [`crate::system`]'s, with a shell on it: what is typed there, and what
//! is said.

use std::fmt;
use std::io::{Read as _, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use crate::error::{Context, Result};
use crate::host::{Said, Terminal};
use crate::lab::wait_for;
use crate::pace::WATCHDOG;
use crate::process::Process;
use crate::{ensure, fail, system};

/// The console.
pub struct Console {
    input: Box<dyn Write>,
    output: Receiver<Vec<u8>>,
    unread: Vec<u8>,
    commands: u32,
    /// The shell that QEMU was started from, where it has the console of a terminal.
    _shell: Option<Process>,
}

impl fmt::Debug for Console {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Console").field("commands", &self.commands).finish_non_exhaustive()
    }
}

impl Console {
    /// That of a QEMU which listens there for who wants it; returns when the guest has booted from its disk.
    pub fn at(path: &Path) -> Result<Console> {
        let stream = wait_for("the guest's console", WATCHDOG, || Ok(UnixStream::connect(path).ok()))?;
        let mut from = stream.try_clone()?;
        let (sender, output) = mpsc::channel();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = from.read(&mut bytes) {
                if sender.send(bytes[..count].to_vec()).is_err() {
                    return;
                }
            }
        });
        Console::booted(Box::new(stream), output, None)
    }

    /// That of a QEMU which was started in this terminal, and has it; returns when the guest has booted from its disk.
    pub fn in_terminal(terminal: Terminal<'_>) -> Result<Console> {
        let (shell, input, output) = terminal.into_parts()?;
        Console::booted(Box::new(input), output, Some(shell))
    }

    fn booted(input: Box<dyn Write>, output: Receiver<Vec<u8>>, shell: Option<Process>) -> Result<Console> {
        let mut console = Console { input, output, unread: Vec::new(), commands: 0, _shell: shell };
        let said = console.until(system::UP, BOOTS_WITHIN)?;
        ensure!(said.contains("SYSLINUX"), "the firmware booted something else:\n{said}");
        console.run("stty -echo; PS1=")?;
        Ok(console)
    }

    /// Types a command and waits for its end.
    pub fn run(&mut self, line: &str) -> Result<Said> {
        self.commands += 1;
        self.write(&format!("{line}\n"))?;
        // What is typed may be shown, and is not what is waited for.
        self.write(&format!("echo en''ded-{}-$?.\n", self.commands))?;
        let text = self.until(&format!("ended-{}-", self.commands), WATCHDOG)?.replace('\r', "");
        let code = self.until(".", WATCHDOG)?;
        Ok(Said { code: code.parse().context(|| format!("exit code of {line}: {code}"))?, text })
    }

    /// Types these characters.
    pub fn write(&mut self, text: &str) -> Result<()> {
        self.input.write_all(text.as_bytes())?;
        self.input.flush()?;
        Ok(())
    }

    /// What is said up to this text.
    pub fn until(&mut self, text: &str, limit: Duration) -> Result<String> {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.unread.windows(text.len()).position(|window| window == text.as_bytes()) {
                let said: Vec<u8> = self.unread.drain(..at + text.len()).take(at).collect();
                return Ok(String::from_utf8_lossy(&said).into_owned());
            }
            match self.output.recv_timeout(Duration::from_millis(100)) {
                Ok(bytes) => self.unread.extend_from_slice(&bytes),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => {
                    fail!("QEMU ended:\n{}", String::from_utf8_lossy(&self.unread))
                }
            }
            let said = String::from_utf8_lossy(&self.unread);
            ensure!(begun.elapsed() < limit, "no `{text}` on the guest's console:\n{said}");
        }
    }
}

/// Two translations of the kernel, of which one unpacks it.
const BOOTS_WITHIN: Duration = Duration::from_secs(180);
