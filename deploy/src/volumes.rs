//! A machine whose volumes fail, wait and hang as its kernel's device mapper is told, and Ringway inside.

use std::path::Path;
use std::time::Duration;

use crate::error::Result;
use crate::hardware::programs::{self, FRONT, RINGWAY, RINGWAYD};
use crate::image::{self, Kernel};
use crate::lab::{Lab, wait_for};
use crate::pace::WATCHDOG;
use crate::qemu::{Guest, Image, push};
use crate::tree::Tree;
use crate::{ensure, qemu};

/// The machine.
#[derive(Debug)]
pub struct Machine<'lab> {
    lab: &'lab Lab,
    guest: Guest,
    /// Words that the front-end was told.
    told: u32,
}

impl<'lab> Machine<'lab> {
    /// Boots it; its volumes lie on memory, `/dev/ram0`.
    pub fn boot(lab: &'lab Lab) -> Result<Machine<'lab>> {
        qemu::require_qemu()?;
        let kernel = Kernel::find()?;
        let initramfs = lab.path("machine.cpio");
        image::write_initramfs(&kernel, &["brd", "dm_mod", "dm_delay", "dm_flakey"], &initramfs)?;
        let mut tree = Tree::of_system();
        for folder in ["/run/lock", "/var/lib"] {
            tree.folder(Path::new(folder));
        }
        programs::ringway(lab, &mut tree)?;
        tree.program(Path::new(DMSETUP))?;
        image::append_archive(tree.into_archive(), &initramfs)?;
        let mut line = Vec::new();
        push(&mut line, "-machine", "q35".into());
        push(&mut line, "-accel", "tcg,thread=single".into());
        push(&mut line, "-cpu", "max".into());
        push(&mut line, "-m", "768".into());
        let image = Image { kernel: kernel.image, initramfs, append: "quiet ipv6.disable=1".into() };
        let guest = Guest::start(lab, "machine", &[qemu::QEMU.into()], line, &image)?.wait_until_up(lab)?;
        Ok(Machine { lab, guest, told: 0 })
    }

    /// Ends it.
    pub fn power_off(self) -> Result<()> {
        self.guest.power_off()
    }

    /// Runs a line in the shell, which must succeed; gives what it wrote.
    pub fn shell(&mut self, line: &str) -> Result<String> {
        let ended = self.guest.shell(line)?;
        ensure!(ended.code == 0, "{line}: exit code {}\n{}", ended.code, ended.output);
        self.lab.say(line);
        Ok(ended.output.trim().to_string())
    }

    /// Changes the kernel's device mapper; there is no udev that makes its nodes.
    pub fn dmsetup(&mut self, line: &str) -> Result<()> {
        self.shell(&format!("DM_DISABLE_UDEV=1 {DMSETUP} {line}")).map(drop)
    }

    /// Makes a volume of the whole memory disk, `/dev/mapper/NAME`: what does it, and what follows the disk in its table's line.
    pub fn volume(&mut self, name: &str, kind: &str, rest: &str) -> Result<()> {
        self.dmsetup(&format!("create {name} --table '{}'", table(kind, rest)))
    }

    /// Gives a volume another table.
    pub fn change(&mut self, name: &str, kind: &str, rest: &str) -> Result<()> {
        self.dmsetup(&format!("suspend {name}"))?;
        self.dmsetup(&format!("reload {name} --table '{}'", table(kind, rest)))?;
        self.dmsetup(&format!("resume {name}"))
    }

    /// Starts ringwayd, again if it was killed; returns when it answers.
    pub fn start_ringwayd(&mut self) -> Result<()> {
        self.guest.launch("ringwayd", &[RINGWAYD, "--cores", "0"])?;
        wait_for("an answer of ringwayd", WATCHDOG, || {
            let report = self.guest.program("ringwayd")?;
            ensure!(report.code.is_none(), "ringwayd ended:\n{}", report.output);
            Ok((self.guest.run(&[RINGWAY, "mgmtdev", "show"], WATCHDOG)?.code == 0).then_some(()))
        })
    }

    /// Kills ringwayd, and waits until it is gone but for what the kernel does for it.
    pub fn kill_ringwayd(&mut self) -> Result<()> {
        let output = self.guest.end("ringwayd")?.output;
        self.lab.say(format_args!("ringwayd killed; its log:\n{}", output.trim()));
        Ok(())
    }

    /// Runs `ringway`; gives its exit code and what it said.
    pub fn ringway(&mut self, line: &str) -> Result<(i32, String)> {
        let words: Vec<&str> = [RINGWAY].into_iter().chain(line.split_whitespace()).collect();
        let ended = self.guest.run(&words, WATCHDOG)?;
        self.lab.say(format_args!("ringway {line}: {}\n{}", ended.code, ended.output.trim()));
        Ok((ended.code, ended.output))
    }

    /// Runs `ringway`, which must succeed.
    pub fn well(&mut self, line: &str) -> Result<String> {
        let (code, said) = self.ringway(line)?;
        ensure!(code == 0, "ringway {line}: exit code {code}: {said}");
        Ok(said)
    }

    /// Runs `ringway` until it says a text, or does not.
    pub fn until(&mut self, line: &str, text: &str, is_said: bool) -> Result<String> {
        wait_for(&format!("{line} with {text:?}: {is_said}"), WATCHDOG, || {
            let said = self.well(line)?;
            std::thread::sleep(Duration::from_millis(300));
            Ok((said.contains(text) == is_said).then_some(said))
        })
    }

    /// A guest on a device's disk.
    pub fn start_front(&mut self, device: &str) -> Result<()> {
        self.told = 0;
        self.guest.launch("front", &[FRONT, "ask", &format!("/run/ringway/dev/{device}.sock"), "packed"])?;
        self.front_says("ready").map(drop)
    }

    /// Ends it.
    pub fn end_front(&mut self) -> Result<()> {
        self.guest.end("front").map(drop)
    }

    /// Tells the guest a word; gives the number by which [`Machine::answer`] asks for what came of it.
    pub fn tell(&mut self, word: &str) -> Result<u32> {
        self.guest.tell("front", word)?;
        self.told += 1;
        self.lab.say(format_args!("the guest: {word}"));
        Ok(self.told)
    }

    /// What came of a word; `None`: nothing yet.
    pub fn answered(&mut self, number: u32) -> Result<Option<String>> {
        let report = self.guest.program("front")?;
        ensure!(report.code.is_none(), "the front-end ended:\n{}", report.output);
        let begin = format!("{number} ");
        Ok(report.output.lines().find_map(|line| line.strip_prefix(&begin)).map(str::to_string))
    }

    /// What came of a word, as soon as something has.
    pub fn answer(&mut self, number: u32) -> Result<String> {
        let answer = wait_for(&format!("the answer to word {number}"), WATCHDOG, || self.answered(number))?;
        self.lab.say(format_args!("  {answer}"));
        Ok(answer)
    }

    /// Tells the guest a word, which must come to this.
    pub fn asks(&mut self, word: &str, wanted: &str) -> Result<()> {
        let number = self.tell(word)?;
        let answer = self.answer(number)?;
        ensure!(answer == wanted, "{word}: {answer}, and not {wanted}");
        Ok(())
    }

    /// Mappings of guests' memory that ringwayd has.
    pub fn guests_mapped(&mut self) -> Result<usize> {
        let pid = self.guest.program("ringwayd")?.pid;
        let count = self.shell(&format!("grep -c memfd /proc/{pid}/maps || true"))?;
        count.parse().map_err(|_| crate::error::Error::new(format!("a number, and not {count}")))
    }

    fn front_says(&mut self, text: &str) -> Result<()> {
        wait_for(&format!("the front-end's {text}"), WATCHDOG, || {
            let report = self.guest.program("front")?;
            ensure!(report.code.is_none(), "the front-end ended:\n{}", report.output);
            Ok(report.output.contains(text).then_some(()))
        })
    }
}

fn table(kind: &str, rest: &str) -> String {
    format!("0 {SECTORS} {kind} /dev/ram0 0 {rest}")
}

/// Of the memory disk, as the kernel makes it: 16 MiB.
const SECTORS: u64 = 32_768;
const DMSETUP: &str = "/usr/sbin/dmsetup";
