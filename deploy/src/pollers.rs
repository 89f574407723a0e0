//! A machine whose workers poll while its kernel writes to a disk, and Ringway inside.
//!
//! ```text
//! core 0      the agent, and whatever the kernel puts there
//! core 1, 2   workers that poll, or what is tried in their place
//! /dev/vda    a disk with a file system, written to throughout
//! ```
//! What is measured is how long the kernel's own work on every core takes: `statistics.rs` of the agent.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use crate::error::{Context, Error, Result};
use crate::hardware::programs::{self, RINGWAY, RINGWAYD};
use crate::image::{self, Kernel};
use crate::lab::{Lab, wait_for};
use crate::pace::WATCHDOG;
use crate::qemu::{self, Guest, Image, push};
use crate::tree::Tree;
use crate::{ensure, process};

/// The machine.
#[derive(Debug)]
pub struct Machine<'lab> {
    lab: &'lab Lab,
    guest: Guest,
}

impl<'lab> Machine<'lab> {
    /// Boots it with these words on its kernel's command line, and has its disk written to from then on.
    pub fn boot(lab: &'lab Lab, words: &str) -> Result<Machine<'lab>> {
        qemu::require_qemu()?;
        let kernel = Kernel::find()?;
        let initramfs = lab.path("machine.cpio");
        image::write_initramfs(&kernel, &["virtio_blk", "crc32c_generic", "ext4"], &initramfs)?;
        let mut tree = Tree::of_system();
        for folder in ["/run/lock", "/var/lib", "/disk"] {
            tree.folder(Path::new(folder));
        }
        programs::ringway(lab, &mut tree)?;
        tree.program(Path::new(CHRT))?;
        image::append_archive(tree.into_archive(), &initramfs)?;
        let disk = lab.path("disk.img");
        File::create(&disk)?.set_len(DISK_BYTES)?;
        let words_of_mke2fs = ["-q", "-t", "ext4", "-F"].map(String::from);
        let made =
            process::run(MKE2FS, &[&words_of_mke2fs[..], &[disk.display().to_string()]].concat(), WATCHDOG)?;
        ensure!(made.code == 0, "mke2fs: {}", made.stderr);
        let mut line = Vec::new();
        push(&mut line, "-machine", "q35".into());
        // A thread for each core: one for all plays them in turn, a tenth of a second each, which is what is to be measured.
        push(&mut line, "-accel", "tcg,thread=multi".into());
        push(&mut line, "-cpu", "max".into());
        push(&mut line, "-smp", "3".into());
        push(&mut line, "-m", "512".into());
        push(&mut line, "-drive", format!("file={},if=none,id=d0,format=raw,cache=unsafe", disk.display()));
        push(&mut line, "-device", "virtio-blk-pci,drive=d0,num-queues=3".into());
        let append = format!("quiet ipv6.disable=1 {words}");
        let image = Image { kernel: kernel.image, initramfs, append };
        let guest = Guest::start(lab, "machine", &[qemu::QEMU.into()], line, &image)?.wait_until_up(lab)?;
        let mut machine = Machine { lab, guest };
        machine.shell("mount -t ext4 /dev/vda /disk && mount -t debugfs none /sys/kernel/debug")?;
        let writes = "while :; do dd if=/dev/zero of=/disk/file bs=64k count=256 conv=fsync; done";
        machine.guest.launch("writer", &["/bin/busybox", "sh", "-c", writes])?;
        Ok(machine)
    }

    /// Ends it.
    pub fn power_off(mut self) -> Result<()> {
        self.guest.end("writer")?;
        self.guest.power_off()
    }

    /// Runs a line in the shell, which must succeed; gives what it wrote.
    pub fn shell(&mut self, line: &str) -> Result<String> {
        let ended = self.guest.shell(line)?;
        ensure!(ended.code == 0, "{line}: exit code {}\n{}", ended.code, ended.output);
        Ok(ended.output.trim().to_string())
    }

    /// Has nothing kept from real-time tasks any more: neither by the bound on all of them, nor, where the kernel has it, by
    /// the server of everybody else.
    pub fn free_real_time(&mut self) -> Result<()> {
        self.shell(
            "echo -1 > /proc/sys/kernel/sched_rt_runtime_us; \
             for core in /sys/kernel/debug/sched/fair_server/cpu*; do \
             [ ! -d $core ] || echo 0 > $core/runtime; done",
        )
        .map(drop)
    }

    /// Starts ringwayd with workers that poll on cores 1 and 2, as `how` begins the line; returns when both do.
    pub fn start_ringwayd(&mut self, how: &[&str]) -> Result<()> {
        let words = [RINGWAYD, "--cores", "1-2", "--idle", "poll"];
        self.guest.launch("ringwayd", &[how, &words[..]].concat())?;
        wait_for("an answer of ringwayd", WATCHDOG, || {
            let report = self.guest.program("ringwayd")?;
            ensure!(report.code.is_none(), "ringwayd ended:\n{}", report.output);
            Ok((self.guest.run(&[RINGWAY, "core", "show"], WATCHDOG)?.code == 0).then_some(()))
        })
    }

    /// Kills ringwayd.
    pub fn kill_ringwayd(&mut self) -> Result<()> {
        let output = self.guest.end("ringwayd")?.output;
        self.lab.say(format_args!("ringwayd killed; its log:\n{}", output.trim()));
        Ok(())
    }

    /// Runs `ringway`, which must succeed.
    pub fn ringway(&mut self, line: &str) -> Result<String> {
        let words: Vec<&str> = [RINGWAY].into_iter().chain(line.split_whitespace()).collect();
        let ended = self.guest.run(&words, WATCHDOG)?;
        ensure!(ended.code == 0, "ringway {line}: exit code {}: {}", ended.code, ended.output);
        Ok(ended.output)
    }

    /// Has a shell spin on core 1 at a real-time priority.
    pub fn start_spinner(&mut self) -> Result<()> {
        // Each becomes the next.
        let spin = ["/bin/busybox", "taskset", "2", "/bin/busybox", "sh", "-c", "while :; do :; done"];
        self.guest.launch("spinner", &[&FIFO[..], &spin[..]].concat())
    }

    /// Ends it.
    pub fn end_spinner(&mut self) -> Result<()> {
        self.guest.end("spinner").map(drop)
    }

    /// Begins to collect statistics of all cores.
    pub fn begin_collecting(&mut self, seconds: u64) -> Result<()> {
        self.guest.launch("statistics", &["/init", "--collect-statistics", &seconds.to_string()])
    }

    /// How long the longest read took, and how many there were; None: within `limit` it has not come to an end.
    pub fn collected(&mut self, limit: Duration) -> Result<Option<(Duration, u64)>> {
        let begun = std::time::Instant::now();
        loop {
            let report = self.guest.program("statistics")?;
            if let Some(code) = report.code {
                ensure!(code == 0, "the statistics: exit code {code}\n{}", report.output);
                self.guest.end("statistics")?;
                return read_report(&report.output).map(Some);
            }
            if begun.elapsed() > limit {
                return Ok(None);
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// `33 reads, the longest 4567 us`.
fn read_report(text: &str) -> Result<(Duration, u64)> {
    let number = |nth: usize| -> Result<u64> {
        let word = text.split_whitespace().nth(nth).unwrap_or_default();
        word.parse().map_err(|_| Error::new(format!("a report, and not {text}")))
    };
    let (reads, longest) = (number(0)?, number(4).context(|| text.into())?);
    Ok((Duration::from_micros(longest), reads))
}

/// Begins a line whose program may run on isolated cores as well, as the unit's `CPUAffinity=` has it.
pub const ALL_CORES: [&str; 3] = ["/bin/busybox", "taskset", "7"];
/// Begins a line whose program is to have a real-time priority.
pub const FIFO: [&str; 3] = [CHRT, "-f", "50"];
const CHRT: &str = "/usr/bin/chrt";
const MKE2FS: &str = "/usr/sbin/mke2fs";
const DISK_BYTES: u64 = 128 << 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn report_of_statistics_is_read() {
        let report = read_report("33 reads, the longest 4567 us\n").unwrap();
        assert_eq!(report, (Duration::from_micros(4567), 33));
        assert!(read_report("").is_err());
    }
}
