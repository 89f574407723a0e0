//! What documents tell an operator to do, done as it is written.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::ChildStdin;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::{Duration, Instant};

use ringway_lab::daemon::binaries;
use ringway_lab::document::{Block, Place, blocks};
use ringway_lab::error::{Context, Error, Result};
use ringway_lab::lab::{Lab, wait_for};
use ringway_lab::pace::WATCHDOG;
use ringway_lab::process::{self, Process};
use ringway_lab::{ensure, fail, system};

#[test]
#[ignore = "needs QEMU >= 8, syslinux, growpart, the 6.12 guest kernel and root: run deploy/test"]
fn disks_are_served_as_their_document_says() {
    Lab::run("document-disks", |lab| {
        // Under the name that the document has; its own is a few hundred megabytes that are not at hand.
        system::write_image(lab, &IN_GUEST, &lab.path("debian-12-nocloud-amd64.qcow2"))?;
        let document = include_str!("../../docs/disks.md");
        let mut host = Host::start(lab)?;
        let mut guest = None;
        for block in blocks(document)? {
            lab.say(&block);
            let said = match block.place {
                Place::Host => {
                    let said = host.run(lab, &block)?;
                    // From the firmware's first word on.
                    if guest.is_none() && block.text.contains("qemu-system") {
                        guest = Some(Console::of(&host)?);
                    }
                    said
                }
                Place::Guest => {
                    let console = guest
                        .as_mut()
                        .ok_or_else(|| Error::new(format!("{block} comes before its guest")))?;
                    console.run(&block)?
                }
            };
            lab.say(said.trim());
            std::thread::sleep(READS_ON);
        }
        host.end()?;
        let image = format!("{}?offset={}", lab.path("srv/vm0.img").display(), system::root_offset());
        let checked = process::run(E2FSCK, &["-f".into(), "-n".into(), image], WATCHDOG)?;
        ensure!(checked.code == 0, "{}{}", checked.stdout, checked.stderr);
        lab.say(checked.stdout.lines().last().unwrap_or_default());
        Ok(())
    });
}

/// A machine of the operator's own: a shell that sees only its own processes, whose `/srv`, `/run` and `/var/lib` are the test's.
struct Host {
    shell: Process,
    input: Option<ChildStdin>,
    output: Receiver<Vec<u8>>,
}

impl Host {
    fn start(lab: &Lab) -> Result<Host> {
        let path = format!("PATH={}:/usr/sbin:/usr/bin:/sbin:/bin", binaries()?.display());
        let words = ["-i", &path, "HOME=/root", "unshare", "--mount", "--pid", "--fork", "--mount-proc"];
        let words = words.into_iter().chain(["--kill-child", "bash", "-eu", "-o", "pipefail"]);
        let words: Vec<String> = words.map(str::to_string).collect();
        let (shell, input, output) = Process::start_talking("/usr/bin/env", &words, &lab.path("host.log"))?;
        let mut host = Host { shell, input: Some(input), output };
        std::fs::create_dir_all(lab.path("srv"))?;
        let text = format!(
            "cd '{}'\nmount --bind srv /srv\nmount -t tmpfs run /run\nmkdir /run/lock\nmount -t tmpfs lib /var/lib\n\
             [ ! -e /dev/kvm ] || mount --bind /dev/null /dev/kvm\n",
            lab.folder().display()
        );
        host.run(lab, &Block { place: Place::Host, line: 0, text })?;
        Ok(host)
    }

    /// Runs the commands; the first that fails ends the shell.
    fn run(&mut self, lab: &Lab, block: &Block) -> Result<String> {
        let file = lab.path(&format!("block-{}.sh", block.line));
        std::fs::write(&file, &block.text)?;
        let input = self.input.as_mut().ok_or_else(|| Error::new("the shell has ended"))?;
        writeln!(input, ". '{}'; echo; echo ended-{}", file.display(), block.line)?;
        let end = format!("\nended-{}\n", block.line);
        let begun = Instant::now();
        let mut said = String::new();
        loop {
            match self.output.recv_timeout(Duration::from_millis(100)) {
                Ok(bytes) => said.push_str(&String::from_utf8_lossy(&bytes)),
                Err(RecvTimeoutError::Timeout) => {
                    ensure!(begun.elapsed() < WATCHDOG, "no end of {block}\n{said}")
                }
                Err(RecvTimeoutError::Disconnected) => fail!("a command failed in {block}\n{said}"),
            }
            if let Some(at) = said.find(&end) {
                said.truncate(at);
                return Ok(said);
            }
        }
    }

    fn end(mut self) -> Result<()> {
        // The shell reads the end of its input, and takes with it what still runs.
        self.input = None;
        self.shell.wait(WATCHDOG).map(drop)
    }
}

/// The guest's serial console, with a shell on it.
struct Console {
    stream: UnixStream,
    unread: Vec<u8>,
    commands: u32,
}

impl Console {
    /// Returns when the guest has booted from its disk.
    fn of(host: &Host) -> Result<Console> {
        // As it is called in the host's own tree of files.
        let path = format!("/proc/{}/root/run/vm0.console", host.shell.pid());
        let stream =
            wait_for("the guest's console", WATCHDOG, || Ok(UnixStream::connect(Path::new(&path)).ok()))?;
        stream.set_read_timeout(Some(Duration::from_millis(100)))?;
        let mut console = Console { stream, unread: Vec::new(), commands: 0 };
        let said = console.until(system::UP, BOOTS_WITHIN)?;
        ensure!(said.contains("SYSLINUX"), "the firmware booted something else:\n{said}");
        console.line("stty -echo; PS1=")?;
        Ok(console)
    }

    fn run(&mut self, block: &Block) -> Result<String> {
        let mut said = String::new();
        for line in block.text.lines() {
            if line == "poweroff" {
                writeln!(self.stream, "{line}")?;
                return Ok(said);
            }
            let (code, output) = self.line(line)?;
            ensure!(code == 0, "exit code {code} of `{line}` in {block}\n{output}");
            said.push_str(&output);
        }
        Ok(said)
    }

    /// Types a command; gives its exit code and what it said.
    fn line(&mut self, line: &str) -> Result<(i32, String)> {
        self.commands += 1;
        // What is typed may be shown, and is not what is waited for.
        writeln!(self.stream, "{line}")?;
        writeln!(self.stream, "echo en''ded-{}-$?.", self.commands)?;
        let said = self.until(&format!("ended-{}-", self.commands), WATCHDOG)?;
        let code = self.until(".", WATCHDOG)?;
        Ok((code.parse().context(|| format!("exit code of {line}: {code}"))?, said))
    }

    /// What is said up to this text.
    fn until(&mut self, text: &str, limit: Duration) -> Result<String> {
        let begun = Instant::now();
        loop {
            if let Some(at) = self.unread.windows(text.len()).position(|window| window == text.as_bytes()) {
                let said: Vec<u8> = self.unread.drain(..at + text.len()).take(at).collect();
                return Ok(String::from_utf8_lossy(&said).into_owned());
            }
            let mut bytes = [0; 4096];
            match self.stream.read(&mut bytes) {
                Ok(0) => fail!("QEMU ended"),
                Ok(count) => self.unread.extend_from_slice(&bytes[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error.into()),
            }
            let said = String::from_utf8_lossy(&self.unread);
            ensure!(begun.elapsed() < limit, "no `{text}` on the guest's console:\n{said}");
        }
    }
}

/// What the document's commands need in the guest, as a distribution's image has it.
const IN_GUEST: [&str; 5] =
    ["/usr/bin/growpart", "/usr/sbin/sfdisk", "/usr/bin/partx", "/usr/bin/flock", "/usr/sbin/resize2fs"];
const E2FSCK: &str = "/usr/sbin/e2fsck";
/// An operator reads on before the next command.
const READS_ON: Duration = Duration::from_secs(1);
/// Two translations of the kernel, of which one unpacks it.
const BOOTS_WITHIN: Duration = Duration::from_secs(180);
