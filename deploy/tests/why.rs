//! `ringway why` where the peer is none of ours: QEMU, its firmware's driver and Linux in its guest bring each cause about, and it is gone
//! once it is mended.
//!
//! What keeps a worker from its core, and the host's own interfaces, are the kernel's: `control/tests/operator/{why,taps}.rs` have those,
//! `volumes.rs` disks that hang.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use ringway_lab::agent::CastOrder;
use ringway_lab::daemon::Daemon;
use ringway_lab::disk::Disk;
use ringway_lab::ensure;
use ringway_lab::error::{Context, Error, Result};
use ringway_lab::lab::{Lab, wait_for};
use ringway_lab::pace::WATCHDOG;
use ringway_lab::process::Process;
use ringway_lab::qemu::{Boot, Guest, Nic, QEMU, require_qemu, steady_traffic};
use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
use serde_json::{Value, json};

/// What is said of a device once this is its first cause, and what to do. What else runs on the worker's core is the emulated processor's.
fn why(lab: &Lab, daemon: &Daemon, device: &str, cause: &str) -> Result<String> {
    let mut last = Value::Null;
    let first = wait_for(&format!("why {device}: {cause}"), WATCHDOG, || {
        let mut said = daemon.json(&["why", device])?["why"][device].take();
        let causes = said.as_array_mut().map(std::mem::take).unwrap_or_default();
        let is_of_core =
            |cause: &Value| cause["cause"].as_str().is_some_and(|word| word.starts_with("core_"));
        let first = causes.into_iter().find(|cause| !is_of_core(cause)).unwrap_or_default();
        // Where none but that is left, nothing else keeps them.
        let word = first["cause"].as_str().unwrap_or("none");
        let is_it = word == cause;
        if first["cause"] != last["cause"] {
            lab.say(format_args!("{device}: {first}"));
        }
        last.clone_from(&first);
        Ok(is_it.then_some(first))
    });
    let first = first.context(|| last.to_string())?;
    Ok(format!("{}; try: {}", first["says"], first["try"]))
}

/// The same, of what has to go on meanwhile.
fn why_during(
    lab: &Lab,
    daemon: &Daemon,
    (device, cause): (&str, &str),
    mut turn: impl FnMut() -> Result<()>,
) -> Result<String> {
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let asks = scope.spawn(|| {
            let said = why(lab, daemon, device, cause);
            is_over.store(true, Ordering::Relaxed);
            said
        });
        while !is_over.load(Ordering::Relaxed) && !asks.is_finished() {
            turn()?;
        }
        asks.join().map_err(|_| Error::new("whoever asked panicked"))?
    })
}

/// Has the kernel give the daemon no more than so much of something, for now.
fn limit(daemon: &Daemon, of: Resource, most: Option<u64>) -> Result<()> {
    let pid = daemon.pid().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    // Of none it would be this process's own.
    let pid = pid.ok_or_else(|| Error::new("no daemon runs"))?;
    // What it may be raised to stays as it was given to this process and to the daemon: to raise that takes a capability.
    let given = getrlimit(of);
    let bound = Rlimit { current: most.or(given.current), maximum: given.maximum };
    prlimit(Some(pid), of, bound).map(drop).context(|| format!("a limit on the daemon's {of:?}"))
}

/// A file in memory; gone with the test.
struct Shared(PathBuf);

impl Shared {
    fn new(name: &str) -> Shared {
        Shared(PathBuf::from(format!("/dev/shm/ringway-lab-{}-{name}", std::process::id())))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// A QEMU whose firmware drives the NIC, with this memory; no kernel is needed.
fn firmware(lab: &Lab, socket: &Path, memory: &str, mib: u64) -> Result<Process> {
    let words = format!(
        "-accel tcg -m {mib} -object {memory},id=m,size={mib}M -machine pc,memory-backend=m -nodefaults -display none \
         -chardev socket,id=c,path={} -netdev vhost-user,id=n,chardev=c -device virtio-net-pci,netdev=n,bootindex=0",
        socket.display()
    );
    let words: Vec<String> = words.split_whitespace().map(str::to_owned).collect();
    Process::start(QEMU, &words, &lab.path("qemu.log"))
}

#[test]
#[ignore = "needs QEMU >= 8: run deploy/test"]
fn memory_that_a_vmm_keeps_or_takes_away_or_that_this_host_has_not_is_named_as_the_cause() {
    Lab::run("why-memory", |lab| {
        lab.say(format_args!("QEMU {}", require_qemu()?));
        let mut daemon = Daemon::start(lab, &["--cores", "1"])?;

        // QEMU hands over the file, and has pages of its own.
        daemon.add("private", &[])?;
        let socket = daemon.socket("private");
        why(lab, &daemon, "private", "waiting")?;
        let mut vmm = firmware(lab, &socket, "memory-backend-memfd,share=off", 256)?;
        let said = why(lab, &daemon, "private", "no_buffers")?;
        ensure!(said.contains("share=on"), "{said}");
        vmm.kill()?;
        why(lab, &daemon, "private", "waiting")?;

        // The file of a guest's memory is cut off, while QEMU stands and does not come across that itself: a frame of another does.
        daemon.add_to("link/l", "cut", &[])?;
        daemon.add_to("link/l", "sender", &[])?;
        let file = Shared::new("memory");
        let memory = format!("memory-backend-file,share=on,mem-path={}", file.0.display());
        let mut vmm = firmware(lab, &daemon.socket("cut"), &memory, 256)?;
        wait_for("its queues run", WATCHDOG, || {
            vmm.check()?;
            let shown = daemon.json(&["dev", "show", "cut"])?;
            let rings = shown["dev"]["cut"]["rings"].as_array().cloned().unwrap_or_default();
            Ok((!rings.is_empty() && rings.iter().all(|ring| ring["runs"] == true)).then_some(()))
        })?;
        vmm.stand()?;
        File::options().write(true).open(&file.0)?.set_len(0)?;
        let socket = daemon.socket("sender");
        let mut sender = firmware(lab, &socket, "memory-backend-memfd,share=on", 256)?;
        let said = why(lab, &daemon, "cut", "ring_fault")?;
        sender.kill()?;
        ensure!(said.contains("truncated_memory") && said.contains("restart the VM"), "{said}");
        vmm.kill()?;
        why(lab, &daemon, "cut", "waiting")?;

        // More than the daemon has addresses for.
        daemon.add("vast", &[])?;
        limit(&daemon, Resource::As, Some(ADDRESSES))?;
        let mut vmm = firmware(lab, &daemon.socket("vast"), "memory-backend-memfd,share=on", VAST_MIB)?;
        let said = why(lab, &daemon, "vast", "host_failure")?;
        ensure!(said.contains("this host lacked what") && said.contains("memory"), "{said}");
        vmm.kill()?;
        daemon.terminate()
    });
}

#[test]
#[ignore = "needs QEMU >= 8, fio and the 6.12 guest kernel: run deploy/test"]
fn what_keeps_frames_and_requests_from_a_linux_guest_is_named_until_it_is_mended() {
    Lab::run("why-guest", |lab| {
        let mut daemon = Daemon::start(lab, &["--cores", "1"])?;
        let file = lab.path("disk");
        File::create(&file)?.set_len(DISK_BYTES)?;
        for (name, mgmtdev, words) in [
            ("vm0", "sim/net", "max_vqp 2"),
            ("one", "link/l", ""),
            ("other", "link/l", ""),
            ("liar", "bridge/b", "spoofchk on mac 52:54:00:12:34:03"),
            ("deaf", "bridge/b", ""),
            ("small", "sim/net", "mtu 1500"),
            ("slow", "sim/blk", "size 64M"),
            ("cut", "file", &format!("path {}", file.display())),
        ] {
            daemon.add_to(mgmtdev, name, &words.split_whitespace().collect::<Vec<_>>())?;
            why(lab, &daemon, name, "waiting")?;
        }
        let nic = |number: u8, name: &str| Nic::new(number, daemon.socket(name));
        let nics = [
            nic(0, "vm0").pairs(2),
            nic(1, "one"),
            nic(2, "other"),
            nic(3, "liar"),
            nic(4, "deaf").packed(true),
            nic(5, "small").mtu(9000),
        ];
        let disks = ["slow", "cut"].map(|name| Disk::new(daemon.socket(name)));
        let booting = Guest::begin_with(lab, "guest", Boot::new(2).memory_mib(512), &nics, &disks)?;
        // QEMU is there, and its guest's kernel is not.
        let said = why(lab, &daemon, "vm0", "driver_not_up")?;
        ensure!(said.contains("wait for the guest to boot"), "{said}");
        let mut guest = booting.wait_until_up(lab)?;
        let [vm0, one, other, liar, deaf, small] = nics.each_ref().map(|nic| nic.mac.as_str());

        // Its interface is down since it booted.
        let said = why(lab, &daemon, "vm0", "no_buffers")?;
        ensure!(said.contains("bring the interface up in the guest"), "{said}");
        // A guest that uses fewer queues than it may lacks nothing.
        guest.link_up(vm0)?;
        for pairs in [1, 2] {
            guest.set_channels(vm0, pairs)?;
            why(lab, &daemon, "vm0", "idle")?;
        }

        // The VMM's link, its guest's processor, and the guest's driver.
        let stopped = |said: String| {
            let is_it = said.contains("its queues ran, and were stopped") && said.contains("set_link");
            if is_it { Ok(()) } else { Err(Error::new(said)) }
        };
        guest.qmp_with("set_link", json!({ "name": "n0", "up": false }))?;
        stopped(why(lab, &daemon, "vm0", "driver_not_up")?)?;
        guest.qmp_with("set_link", json!({ "name": "n0", "up": true }))?;
        why(lab, &daemon, "vm0", "idle")?;
        guest.qmp("stop")?;
        stopped(why(lab, &daemon, "vm0", "driver_not_up")?)?;
        guest.qmp("cont")?;
        why(lab, &daemon, "vm0", "idle")?;
        let device = guest.nic(vm0)?.device;
        guest.unbind(&device)?;
        stopped(why(lab, &daemon, "vm0", "driver_not_up")?)?;
        guest.bind(&device)?;
        guest.link_up(vm0)?;
        why(lab, &daemon, "vm0", "idle")?;

        // What it sends.
        guest.start_traffic(steady_traffic(&nics[0]))?;
        why(lab, &daemon, "vm0", "none")?;
        guest.stop_traffic(vm0)?;

        // A larger MTU than the device has.
        guest.set_up(small)?;
        let said = why(lab, &daemon, "small", "breach")?;
        ensure!(said.contains("mtu: ") && said.contains("host_mtu"), "{said}");

        // The other end of a link.
        guest.link_up(one)?;
        guest.link_up(other)?;
        why(lab, &daemon, "one", "idle")?;
        daemon.delete("other")?;
        let cast = |from: &str, to: &str, source: &str| CastOrder {
            nic: from.into(),
            destination: to.into(),
            source: source.into(),
            length: 100,
            frames: 50,
        };
        let lost =
            why_during(lab, &daemon, ("one", "peer_down"), || guest.cast(cast(one, other, one)).map(drop))?;
        ensure!(lost.contains("link/l has no other device: ringway dev add name OTHER"), "{lost}");
        daemon.add_to("link/l", "other", &[])?;
        why_during(lab, &daemon, ("one", "none"), || guest.cast(cast(one, other, one)).map(drop))?;

        // Another's address, and a receiver whose interface is down.
        guest.link_up(liar)?;
        guest.link_up(deaf)?;
        let lies = why_during(lab, &daemon, ("liar", "spoofed_mac"), || {
            guest.cast(cast(liar, deaf, "52:54:00:12:34:ff")).map(drop)
        })?;
        ensure!(lies.contains("last from 52:54:00:12:34:ff, the device's is "), "{lies}");
        guest.link_down(deaf)?;
        let lost = why_during(lab, &daemon, ("deaf", "no_rx_buffer"), || {
            guest.cast(cast(liar, deaf, liar)).map(drop)
        })?;
        ensure!(lost.contains("loses frames"), "{lost}");
        guest.link_up(deaf)?;
        why_during(lab, &daemon, ("deaf", "none"), || guest.cast(cast(liar, deaf, liar)).map(drop))?;

        // As much as it may send, in its queue for half a minute.
        daemon.ctl(&["dev", "set", "name", "liar", "max_tx_pps", "5"])?;
        guest.cast(CastOrder { frames: 150, ..cast(liar, deaf, liar) })?;
        let said = why(lab, &daemon, "liar", "rate")?;
        ensure!(said.contains("max_tx_pps"), "{said}");
        daemon.ctl(&["dev", "set", "name", "liar", "max_tx_pps", "0"])?;
        why(lab, &daemon, "liar", "idle")?;

        // Disks: as much as it may ask for, and a file that became smaller than its disk.
        why(lab, &daemon, "slow", "idle")?;
        daemon.ctl(&["dev", "set", "name", "slow", "iops", "2"])?;
        let reads = |disk: &str| {
            format!(
                "while :; do dd if={disk} of=/dev/null bs=64k count=8; echo 3 > /proc/sys/vm/drop_caches; done"
            )
        };
        guest.launch("reader", &["/bin/busybox", "sh", "-c", &reads("/dev/vda")])?;
        let said = why(lab, &daemon, "slow", "rate")?;
        ensure!(said.contains("(iops, bps)"), "{said}");
        daemon.ctl(&["dev", "set", "name", "slow", "iops", "0"])?;
        why(lab, &daemon, "slow", "none")?;
        guest.end("reader")?;
        why(lab, &daemon, "cut", "idle")?;
        let file = File::options().write(true).open(&file)?;
        file.set_len(0)?;
        let said = why(lab, &daemon, "cut", "failing")?;
        ensure!(said.contains("became smaller"), "{said}");
        file.set_len(DISK_BYTES)?;
        why(lab, &daemon, "cut", "idle")?;
        // The kernel takes no more of the daemon's in the file than up to a bound, which is less than the disk.
        limit(&daemon, Resource::Fsize, Some(DISK_BYTES / 2))?;
        let writes = format!(
            "while :; do dd if=/dev/zero of=/dev/vdb bs=4k seek={} count=1 conv=fsync; done",
            DISK_BYTES * 3 / 4 / 4096
        );
        guest.launch("writer", &["/bin/busybox", "sh", "-c", &writes])?;
        let said = why(lab, &daemon, "cut", "backing_failed")?;
        ensure!(said.contains("ringway dev show has the error"), "{said}");
        let shown = daemon.ctl(&["dev", "show", "cut"])?;
        ensure!(shown.contains("File too large"), "{shown}");
        limit(&daemon, Resource::Fsize, None)?;
        why(lab, &daemon, "cut", "none")?;
        guest.end("writer")?;
        why(lab, &daemon, "cut", "idle")?;

        guest.power_off()?;
        why(lab, &daemon, "vm0", "waiting")?;
        daemon.terminate()
    });
}

/// What the daemon may map, and a guest's memory beyond it, of which next to nothing is ever used.
const ADDRESSES: u64 = 8 << 30;
const VAST_MIB: u64 = 16 << 10;
const DISK_BYTES: u64 = 16 << 20;
