//! A Linux guest's disk, end to end: ext4, virtio_blk, QEMU, vhost-user, `ringwayd`.
//!
//! One boot serves several checks. The disk is memory in a file on tmpfs, so that it outlives the daemon.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use ringway_lab::daemon::Daemon;
use ringway_lab::disk::{BLKDISCARD, Disk, E2FSCK, FIO, FSTRIM, MKE2FS};
use ringway_lab::ensure;
use ringway_lab::error::{Context, Result};
use ringway_lab::lab::{Lab, wait_for};
use ringway_lab::pace::WATCHDOG;
use ringway_lab::qemu::{Boot, Guest};

#[test]
#[ignore = "needs QEMU >= 8, fio and the 6.12 guest kernel: run deploy/test"]
fn disk_with_one_split_queue() {
    Lab::run("disk-split", |lab| life(lab, false, 1));
}

#[test]
#[ignore = "needs QEMU >= 8, fio and the 6.12 guest kernel: run deploy/test"]
fn disk_with_four_packed_queues() {
    Lab::run("disk-packed", |lab| life(lab, true, 4));
}

/// The file that a disk is kept in; gone with the test.
struct Kept(PathBuf);

impl Kept {
    fn new(name: &str) -> Kept {
        Kept(PathBuf::from(format!("/dev/shm/ringway-lab-{}-{name}", std::process::id())))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A guest with a disk, and what it does with it.
struct Bench<'lab> {
    lab: &'lab Lab,
    guest: Guest,
}

impl Bench<'_> {
    fn run(&mut self, words: &[&str]) -> Result<String> {
        let begun = Instant::now();
        let ended = self.guest.run(words, MOST)?;
        ensure!(ended.code == 0, "{}: exit code {}\n{}", words.join(" "), ended.code, ended.output);
        self.lab.say(format_args!("{} ({} ms)", words.join(" "), begun.elapsed().as_millis()));
        Ok(ended.output)
    }

    fn shell(&mut self, line: &str) -> Result<String> {
        let ended = self.guest.shell(line)?;
        ensure!(ended.code == 0, "{line}: exit code {}\n{}", ended.code, ended.output);
        Ok(ended.output.trim().to_string())
    }

    fn mount(&mut self) -> Result<()> {
        self.shell("mount -t ext4 -o discard /dev/vda /mnt").map(drop)
    }

    /// The file system is without fault.
    fn check(&mut self) -> Result<()> {
        self.shell("umount /mnt")?;
        self.run(&[E2FSCK, "-f", "-n", "/dev/vda"]).map(drop)
    }

    /// Writes at random, with every block verified after it; in the background.
    fn load(&mut self) -> Result<()> {
        let words: Vec<&str> = [FIO, "--directory=/mnt", "--runtime=60"].into_iter().chain(LOAD).collect();
        self.guest.launch("fio", &words)
    }

    /// The load ended well.
    fn load_ended(&mut self) -> Result<()> {
        let ended = wait_for("the end of fio", MOST, || {
            let program = self.guest.program("fio")?;
            Ok(program.code.map(|code| (code, program.output)))
        })?;
        ensure!(ended.0 == 0, "fio: exit code {}\n{}", ended.0, ended.1);
        self.guest.end("fio").map(drop)
    }
}

fn life(lab: &Lab, packed: bool, queues: u16) -> Result<()> {
    let kept = Kept::new(lab.folder().file_name().and_then(|name| name.to_str()).unwrap_or("disk"));
    let path = kept.0.display().to_string();
    let mut daemon = Daemon::start(lab, &["--cores", "1"])?;
    daemon.add_to("sim/blk", "d0", &["size", "96M", "path", &path, "serial", "lab-disk"])?;
    let disk = Disk::new(daemon.socket("d0")).queues(queues).packed(packed);
    let guest =
        Guest::begin_with(lab, "guest", Boot::new(4).memory_mib(512), &[], &[disk])?.wait_until_up(lab)?;
    let mut bench = Bench { lab, guest };

    let seen = bench.shell("cd /sys/block/vda; cat size serial queue/write_cache")?;
    ensure!(seen == "196608\nlab-diskwrite back", "{seen}");
    ensure!(bench.shell("ls /sys/block/vda/mq | wc -l")? == queues.to_string(), "queues");
    let features = daemon.features("d0")?;
    ensure!(features.iter().any(|name| name == "RING_PACKED") == packed, "{features:?}");

    // Made, filled, verified, trimmed, checked.
    bench.run(&[MKE2FS, "-q", "-t", "ext4", "/dev/vda"])?;
    bench.mount()?;
    bench.shell("cp /proc/kallsyms /mnt/symbols && md5sum /mnt/symbols > /mnt/sum && sync")?;
    let words: Vec<&str> = [FIO, "--directory=/mnt"].into_iter().chain(LOAD).collect();
    bench.run(&words)?;
    bench.shell("rm /mnt/load*")?;
    let trimmed = bench.run(&[FSTRIM, "-v", "/mnt"])?;
    lab.say(trimmed.trim());
    bench.shell("echo 3 > /proc/sys/vm/drop_caches && md5sum -c /mnt/sum")?;
    bench.check()?;

    // Made larger while it is in use.
    bench.mount()?;
    daemon.ctl(&["dev", "set", "name", "d0", "size", "128M"])?;
    wait_for("the guest to see a larger disk", WATCHDOG, || {
        Ok((bench.shell("cat /sys/block/vda/size")? == "262144").then_some(()))
    })?;

    // The daemon is restarted under load, and dies under it.
    for dies in [false, true, true] {
        bench.load()?;
        std::thread::sleep(Duration::from_millis(700));
        if dies {
            daemon.kill()?
        } else {
            daemon.terminate()?
        }
        daemon.start_again()?;
        bench.load_ended().context(|| format!("after the daemon's end (killed: {dies})"))?;
    }
    bench.shell("rm /mnt/load*; echo 3 > /proc/sys/vm/drop_caches && md5sum -c /mnt/sum")?;
    bench.check()?;

    // The guest restarts itself.
    bench.guest.reboot()?;
    bench.mount()?;
    bench.shell("md5sum -c /mnt/sum")?;
    bench.check()?;
    bench.run(&[BLKDISCARD, "/dev/vda"])?;
    bench.shell("[ -z \"$(dd if=/dev/vda bs=1M count=8 2>/dev/null | tr -d '\\000')\" ]")?;

    let stats = daemon.stats("d0")?;
    ensure!(stats.drops() == 0 && stats.faults() == 0, "{stats:?}");
    ensure!(
        stats.queues.iter().filter(|queue| queue.packets > 0).count() == usize::from(queues),
        "{stats:?}"
    );
    bench.guest.power_off()
}

/// What is written and verified: every request of its own block, several at a time.
const LOAD: [&str; 11] = [
    "--name=load",
    "--size=24M",
    "--rw=randrw",
    "--bs=4k-64k",
    "--direct=1",
    "--ioengine=libaio",
    "--iodepth=16",
    "--numjobs=2",
    "--verify=crc32c",
    "--verify_backlog=32",
    "--serialize_overlap=1",
];

const MOST: Duration = Duration::from_secs(120);
