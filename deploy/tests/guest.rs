//! A Linux guest's NIC on `sim/net`, end to end: virtio_net, QEMU, vhost-user, `ringwayd`.
//!
//! One boot serves several checks. Whatever a guest counts is compared with what Ringway counts for the same device.

use std::time::{Duration, Instant};

use ringway_lab::agent::FramesOrder;
use ringway_lab::daemon::{Daemon, DeviceStats};
use ringway_lab::ensure;
use ringway_lab::error::{Context, Result};
use ringway_lab::lab::{Lab, wait_for};
use ringway_lab::pace::{Pace, WATCHDOG};
use ringway_lab::process::Process;
use ringway_lab::qemu::{
    Chardev, Guest, Nic, QEMU, all_came_back, every_length, require_qemu, steady_traffic,
};

/// Who connects, from the device's side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Mode {
    /// Ringway owns the socket.
    Server,
    /// QEMU owns it.
    Client,
}

/// One device, the NIC that is connected to it, and the words that add it.
#[derive(Debug, Clone)]
struct Pair {
    device: String,
    nic: Nic,
    words: Vec<String>,
}

impl Pair {
    /// A device `vmN` and its NIC.
    fn new(lab: &Lab, number: u8, mode: Mode, pairs: u32) -> Pair {
        let device = format!("vm{number}");
        let mut words = vec!["max_vqp".to_string(), pairs.to_string()];
        let nic = match mode {
            Mode::Server => Nic::new(number, lab.socket("dev").join(format!("{device}.sock"))),
            Mode::Client => {
                let socket = lab.socket(&format!("{device}-vmm.sock"));
                words.extend(["mode".into(), "client".into(), "socket".into(), socket.display().to_string()]);
                Nic::new(number, socket).chardev(Chardev::Listens)
            }
        };
        Pair { device, nic: nic.pairs(pairs), words }
    }

    fn with(mut self, change: impl FnOnce(Nic) -> Nic) -> Pair {
        self.nic = change(self.nic);
        self
    }

    fn word(mut self, word: &str) -> Pair {
        self.words.push(word.into());
        self
    }

    fn add(&self, daemon: &Daemon) -> Result<()> {
        daemon.add(&self.device, &self.words.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// What keeps frames from it becomes one of these, or that nothing does.
    fn why(&self, lab: &Lab, daemon: &Daemon, causes: &[&str]) -> Result<()> {
        let named: Vec<String> = causes.iter().map(|cause| format!("\"cause\":\"{cause}\"")).collect();
        let mut last = String::new();
        wait_for(&format!("why {}: {}", self.device, causes.join(" or ")), WATCHDOG, || {
            let said = daemon.ctl(&["-j", "why", &self.device])?;
            if said != last {
                lab.say(said.trim());
                last.clone_from(&said);
            }
            Ok(named.iter().any(|cause| said.contains(cause)).then_some(()))
        })
    }

    /// Sends every length up to an MTU and compares both sides' counts; gives what the device did meanwhile.
    fn frames(&self, lab: &Lab, daemon: &Daemon, guest: &mut Guest, order: FramesOrder) -> Result<()> {
        let before = daemon.stats(&self.device)?;
        let nic_before = guest.link_up(&self.nic.mac)?;
        let report = guest.frames(order)?;
        let nic_after = guest.nic(&self.nic.mac)?;
        let after = daemon.stats(&self.device)?;
        lab.say(format_args!(
            "{}: {} frames out, {} back in {} ms; Ringway: {} out, {} back",
            self.device,
            report.sent,
            report.received,
            report.elapsed_ms,
            after.tx_packets() - before.tx_packets(),
            after.rx_packets() - before.rx_packets()
        ));
        all_came_back(&report)?;
        ensure!(
            nic_after.tx_packets - nic_before.tx_packets == report.sent
                && nic_after.rx_packets - nic_before.rx_packets == report.sent,
            "{}: the guest's driver counts otherwise: {nic_before:?} {nic_after:?}",
            self.device
        );
        ensure!(
            after.tx_packets() - before.tx_packets() == report.sent
                && after.rx_packets() - before.rx_packets() == report.sent
                && after.drops() == before.drops()
                && after.faults() == 0,
            "{}: Ringway counts otherwise: {before:?} {after:?}",
            self.device
        );
        Ok(())
    }

    /// Has the guest use all of the device's queue pairs.
    fn use_all_pairs(&self, guest: &mut Guest) -> Result<()> {
        guest.link_up(&self.nic.mac)?;
        if self.nic.pairs > 1 {
            guest.set_channels(&self.nic.mac, self.nic.pairs)?;
        }
        let nic = guest.nic(&self.nic.mac)?;
        ensure!(nic.pairs == self.nic.pairs, "{} queue pairs wanted: {nic:?}", self.nic.pairs);
        Ok(())
    }

    /// Waits until more frames are back than `received`; gives how long after `since` that was.
    fn resumed(&self, guest: &mut Guest, received: u64, since: Instant) -> Result<Duration> {
        wait_for(&format!("{}: traffic again", self.device), WATCHDOG, || {
            Ok((guest.traffic(&self.nic.mac)?.received > received).then(|| since.elapsed()))
        })
    }

    /// Waits until each queue of each pair has moved frames since its device was made.
    fn every_queue_carries(&self, daemon: &Daemon) -> Result<()> {
        let mut last = DeviceStats::default();
        let carried = wait_for(&format!("{}: traffic on every queue", self.device), WATCHDOG, || {
            last = daemon.stats(&self.device)?;
            let carried = |queue_type: &str| {
                let queues = last.queues.iter().filter(|queue| queue.queue_type == queue_type);
                queues.filter(|queue| queue.packets > 0).count() as u32
            };
            Ok((carried("rx") == self.nic.pairs && carried("tx") == self.nic.pairs).then_some(()))
        });
        carried.context(|| format!("{last:?}"))
    }

    /// How long a device that is removed and added again takes until its guest's link is there, while nothing is sent.
    fn pace_of_return(&self, daemon: &Daemon, guest: &mut Guest) -> Result<Pace> {
        Pace::of(|| {
            daemon.delete(&self.device)?;
            guest.link_lost(&self.nic.mac)?;
            let added = Instant::now();
            self.add(daemon)?;
            guest.link_up(&self.nic.mac)?;
            Ok(added.elapsed())
        })
    }

    /// The longest gap of background traffic that nothing has disturbed yet.
    fn quiet(&self, guest: &mut Guest) -> Result<Pace> {
        let mut quiet = Pace::default();
        quiet.saw(Duration::from_millis(guest.traffic(&self.nic.mac)?.longest_gap_ms));
        Ok(quiet)
    }

    /// Its traffic goes on, and has had no gap that matters.
    fn undisturbed(&self, lab: &Lab, guest: &mut Guest, quiet: Pace) -> Result<()> {
        let received = guest.traffic(&self.nic.mac)?.received;
        self.resumed(guest, received, Instant::now())?;
        let report = guest.traffic(&self.nic.mac)?;
        lab.say(format_args!("meanwhile beside it: {report:?}; undisturbed at most {quiet:?}"));
        ensure!(report.corrupt == 0, "another guest was disturbed: {report:?}");
        quiet.allows("a gap beside it", GAP, Duration::from_millis(report.longest_gap_ms))
    }

    /// Stops background traffic, which must have moved, and shown nothing changed.
    fn stop_traffic(&self, lab: &Lab, guest: &mut Guest) -> Result<()> {
        let report = guest.stop_traffic(&self.nic.mac)?;
        lab.say(format_args!("{}: {report:?}", self.device));
        ensure!(report.received > 0 && report.corrupt == 0, "{}: {report:?}", self.device);
        Ok(())
    }
}

#[test]
#[ignore = "needs QEMU >= 8 and the 6.12 guest kernel: run deploy/test"]
fn split_rings_one_pair() {
    Lab::run("split-1", |lab| life(lab, Mode::Server, false, 1));
}

#[test]
#[ignore = "needs QEMU >= 8 and the 6.12 guest kernel: run deploy/test"]
fn packed_rings_one_pair() {
    Lab::run("packed-1", |lab| life(lab, Mode::Client, true, 1));
}

#[test]
#[ignore = "needs QEMU >= 8 and the 6.12 guest kernel: run deploy/test"]
fn split_rings_four_pairs() {
    Lab::run("split-4", |lab| life(lab, Mode::Client, false, 4));
}

#[test]
#[ignore = "needs QEMU >= 8 and the 6.12 guest kernel: run deploy/test"]
fn packed_rings_four_pairs() {
    Lab::run("packed-4", |lab| life(lab, Mode::Server, true, 4));
}

/// Every length returns: after the boot, after the driver was taken off and put back, after the guest restarted itself, after
/// a reset, and after the device was removed under traffic and added again.
fn life(lab: &Lab, mode: Mode, packed: bool, pairs: u32) -> Result<()> {
    let mut daemon = Daemon::start(lab, &["--cores", "1"])?;
    let pair = Pair::new(lab, 0, mode, pairs).with(|nic| nic.packed(packed));
    pair.add(&daemon)?;
    pair.why(lab, &daemon, &["waiting"])?;
    let mut guest = Guest::boot(lab, "guest", 2, std::slice::from_ref(&pair.nic))?;
    let mac = pair.nic.mac.as_str();
    pair.use_all_pairs(&mut guest)?;
    let nic = guest.nic(mac)?;
    lab.say(format_args!("{nic:?}"));
    for (feature, wanted) in [
        (VIRTIO_F_VERSION_1, true),
        (VIRTIO_F_RING_PACKED, packed),
        (VIRTIO_NET_F_MQ, pairs > 1),
        (VIRTIO_NET_F_MRG_RXBUF, true),
        (VIRTIO_F_RING_INDIRECT_DESC, true),
        (VIRTIO_F_RING_EVENT_IDX, true),
    ] {
        ensure!(nic.has(feature) == wanted, "feature {feature} should be {wanted}: {nic:?}");
    }

    pair.frames(lab, &daemon, &mut guest, every_length(&pair.nic, 1500))?;
    pair.every_queue_carries(&daemon)?;

    let returns = pair.pace_of_return(&daemon, &mut guest)?;

    let device = nic.device;
    guest.unbind(&device)?;
    ensure!(guest.nics()?.is_empty(), "the NIC is still there without its driver");
    pair.why(lab, &daemon, &["driver_not_up"])?;
    guest.bind(&device)?;
    pair.use_all_pairs(&mut guest)?;
    lab.say("driver taken off and put back");
    pair.frames(lab, &daemon, &mut guest, every_length(&pair.nic, 1500))?;

    guest.reboot()?;
    pair.use_all_pairs(&mut guest)?;
    lab.say("guest restarted");
    pair.frames(lab, &daemon, &mut guest, every_length(&pair.nic, 1500))?;

    guest.start_traffic(steady_traffic(&pair.nic))?;
    guest.reset()?;
    pair.use_all_pairs(&mut guest)?;
    lab.say("guest reset under traffic");
    pair.frames(lab, &daemon, &mut guest, every_length(&pair.nic, 1500))?;

    guest.start_traffic(steady_traffic(&pair.nic))?;
    pair.resumed(&mut guest, 0, Instant::now())?;
    std::thread::sleep(Duration::from_millis(500));
    // The guest's processor is emulated, and may want the worker's core.
    pair.why(lab, &daemon, &["none", "core_taken"])?;
    let pace = daemon.pace()?;
    let took = daemon.delete(&pair.device)?;
    lab.say(format_args!("device removed under traffic in {took:?}, an unused one in {pace:?}"));
    pace.allows("the removal", REMOVED, took)?;
    let shown = daemon.ctl(&["dev", "show"])?;
    ensure!(!shown.contains(&pair.device), "removed, but still shown: {shown}");
    ensure!(
        mode == Mode::Client || !pair.nic.socket.exists(),
        "removed, but {} is still there",
        pair.nic.socket.display()
    );
    let stalled = guest.traffic_stalled(mac)?;
    let added = Instant::now();
    pair.add(&daemon)?;
    pair.resumed(&mut guest, stalled.received, added)?;
    pair.every_queue_carries(&daemon)?;
    let took = added.elapsed();
    lab.say(format_args!(
        "traffic on every queue {took:?} after the device was added again, the link {returns:?}"
    ));
    returns.allows("traffic's return", BACK, took)?;
    pair.stop_traffic(lab, &mut guest)?;
    pair.frames(lab, &daemon, &mut guest, every_length(&pair.nic, 1500))?;
    guest.power_off()?;
    daemon.check()?;
    daemon.terminate()
}

#[test]
#[ignore = "needs QEMU >= 8 and the 6.12 guest kernel: run deploy/test"]
fn traffic_resumes_by_itself_after_the_daemon_is_stopped_and_started() {
    Lab::run("daemon-restarts", |lab| {
        let mut daemon = Daemon::start(lab, &["--cores", "1"])?;
        let devices = [
            Pair::new(lab, 0, Mode::Server, 1),
            Pair::new(lab, 1, Mode::Server, 2).with(|nic| nic.packed(true)),
            Pair::new(lab, 2, Mode::Client, 2),
            Pair::new(lab, 3, Mode::Client, 1).with(|nic| nic.packed(true)),
        ];
        for pair in &devices {
            pair.add(&daemon)?;
        }
        let nics: Vec<Nic> = devices.iter().map(|pair| pair.nic.clone()).collect();
        let mut guest = Guest::boot(lab, "guest", 2, &nics)?;
        for pair in &devices {
            pair.use_all_pairs(&mut guest)?;
        }
        let mut returns = Pace::default();
        for _ in 0..2 {
            daemon.terminate()?;
            for pair in &devices {
                guest.link_lost(&pair.nic.mac)?;
            }
            let started = daemon.start_again()?;
            for pair in &devices {
                guest.link_up(&pair.nic.mac)?;
            }
            returns.saw(started.elapsed());
        }
        for pair in &devices {
            guest.start_traffic(steady_traffic(&pair.nic))?;
        }
        // Where a ring stands when the daemon ends is a matter of chance: several rounds.
        for round in 0..ROUNDS {
            let how = if round % 2 == 0 { "SIGTERM" } else { "SIGKILL" };
            for pair in &devices {
                let received = guest.traffic(&pair.nic.mac)?.received;
                pair.resumed(&mut guest, received, Instant::now())?;
            }
            std::thread::sleep(Duration::from_millis(700));
            match how {
                "SIGTERM" => daemon.terminate()?,
                _ => daemon.kill()?,
            }
            let mut before = Vec::new();
            for pair in &devices {
                let report = guest.traffic_stalled(&pair.nic.mac)?;
                ensure!(report.received > 0, "{} before the daemon's end: {report:?}", pair.device);
                before.push(report.received);
            }
            let started = daemon.start_again()?;
            let mut slowest = Duration::ZERO;
            for (pair, received) in devices.iter().zip(before) {
                let took = pair.resumed(&mut guest, received, started)?;
                pair.every_queue_carries(&daemon)?;
                let all = started.elapsed();
                lab.say(format_args!(
                    "round {round}, {how}: {} again after {} ms, seen on every queue after {} ms",
                    pair.device,
                    took.as_millis(),
                    all.as_millis()
                ));
                slowest = slowest.max(all);
            }
            returns.allows(&format!("traffic's return after {how}"), BACK, slowest)?;
        }
        for pair in &devices {
            pair.stop_traffic(lab, &mut guest)?;
        }
        for pair in &devices {
            pair.frames(lab, &daemon, &mut guest, every_length(&pair.nic, 1500))?;
        }
        guest.power_off()?;
        daemon.terminate()
    });
}

/// The network boot ROM drives the NIC; no kernel is needed.
#[test]
#[ignore = "needs QEMU >= 8: run deploy/test"]
fn memory_that_a_vmm_does_not_share_is_named_where_the_operator_looks() {
    Lab::run("memory-not-shared", |lab| {
        lab.say(format_args!("QEMU {}", require_qemu()?));
        let mut daemon = Daemon::start(lab, &["--cores", "1"])?;
        let pair = Pair::new(lab, 0, Mode::Server, 1);
        pair.add(&daemon)?;
        let words = [
            "-accel tcg -m 256 -nodefaults -display none -netdev vhost-user,id=n,chardev=c",
            "-device virtio-net-pci,netdev=n,bootindex=0",
        ];
        let mut arguments: Vec<String> =
            words.join(" ").split_whitespace().map(|word| word.to_string()).collect();
        let socket = pair.nic.socket.display();
        // Before the netdev that names it.
        arguments.splice(0..0, ["-chardev".into(), format!("socket,id=c,path={socket}")]);
        let mut vmm = Process::start(QEMU, &arguments, &lab.path("qemu.log"))?;
        let note = "note: started, not run: no guest memory";
        let shown = wait_for("the note", WATCHDOG, || {
            vmm.check()?;
            Ok(Some(daemon.ctl(&["dev", "show", "vm0"])?).filter(|shown| shown.contains(note)))
        })?;
        ensure!(shown.contains("share=on") && shown.contains("memory 0 regions"), "{shown}");
        let why = daemon.ctl(&["why", "vm0"])?;
        ensure!(why.starts_with("vm0: ") && why.contains("shares no memory of its guest"), "{why}");
        let counted = daemon.ctl(&["dev", "vstats", "show", "vm0"])?;
        ensure!(counted.contains("queue 0 started, not run: no guest memory"), "{counted}");
        let events = daemon.ctl(&["events", "--once", "--since", "0"])?;
        ensure!(events.matches("session.not_run").count() == 1, "{events}");
        ensure!(!events.contains("running=2"), "{events}");
        vmm.kill()?;
        daemon.terminate()
    });
}

#[test]
#[ignore = "needs QEMU >= 8 and the 6.12 guest kernel: run deploy/test"]
fn a_device_whose_vmm_was_killed_accepts_the_next_one_at_once() {
    Lab::run("vmm-killed", |lab| {
        let mut daemon = Daemon::start(lab, &["--cores", "1"])?;
        let devices = [
            Pair::new(lab, 0, Mode::Server, 1),
            Pair::new(lab, 1, Mode::Client, 1).with(|nic| nic.packed(true)),
        ];
        let bystander = Pair::new(lab, 2, Mode::Server, 1);
        for pair in devices.iter().chain([&bystander]) {
            pair.add(&daemon)?;
        }
        let nics: Vec<Nic> = devices.iter().map(|pair| pair.nic.clone()).collect();
        let mut other = Guest::boot(lab, "bystander", 1, std::slice::from_ref(&bystander.nic))?;
        bystander.use_all_pairs(&mut other)?;
        let mut first = Guest::boot(lab, "first", 1, &nics)?;
        for pair in &devices {
            pair.use_all_pairs(&mut first)?;
            first.start_traffic(steady_traffic(&pair.nic))?;
        }
        other.start_traffic(steady_traffic(&bystander.nic))?;
        for pair in &devices {
            pair.resumed(&mut first, 0, Instant::now())?;
        }
        // What nothing disturbs is looked at for so long.
        bystander.resumed(&mut other, 0, Instant::now())?;
        std::thread::sleep(Duration::from_millis(700));
        let quiet = bystander.quiet(&mut other)?;
        first.kill()?;
        std::thread::sleep(Duration::from_millis(700));
        bystander.undisturbed(lab, &mut other, quiet)?;

        let mut next = Guest::boot(lab, "next", 1, &nics)?;
        for pair in &devices {
            pair.use_all_pairs(&mut next)?;
            pair.frames(lab, &daemon, &mut next, every_length(&pair.nic, 1500))?;
        }
        bystander.stop_traffic(lab, &mut other)?;
        next.power_off()?;
        other.power_off()?;
        daemon.terminate()
    });
}

#[test]
#[ignore = "needs QEMU >= 8 and the 6.12 guest kernel: run deploy/test"]
fn a_frozen_vmm_delays_neither_its_devices_removal_nor_another_guest() {
    Lab::run("vmm-frozen", |lab| {
        let mut daemon = Daemon::start(lab, &["--cores", "1"])?;
        let frozen = Pair::new(lab, 0, Mode::Server, 1);
        let bystander = Pair::new(lab, 1, Mode::Server, 1).with(|nic| nic.packed(true));
        frozen.add(&daemon)?;
        bystander.add(&daemon)?;
        let mut other = Guest::boot(lab, "bystander", 1, std::slice::from_ref(&bystander.nic))?;
        bystander.use_all_pairs(&mut other)?;
        let mut guest = Guest::boot(lab, "frozen", 1, std::slice::from_ref(&frozen.nic))?;
        frozen.use_all_pairs(&mut guest)?;
        guest.start_traffic(steady_traffic(&frozen.nic))?;
        other.start_traffic(steady_traffic(&bystander.nic))?;
        frozen.resumed(&mut guest, 0, Instant::now())?;
        bystander.resumed(&mut other, 0, Instant::now())?;
        // What nothing disturbs is looked at for so long.
        std::thread::sleep(Duration::from_millis(700));
        let (quiet, pace) = (bystander.quiet(&mut other)?, daemon.pace()?);

        guest.freeze()?;
        let took = daemon.delete(&frozen.device)?;
        lab.say(format_args!("device of a frozen VMM removed in {took:?}, an unused one in {pace:?}"));
        pace.allows("the removal", REMOVED, took)?;
        let added = Instant::now();
        frozen.add(&daemon)?;
        pace.allows("adding it again", REMOVED, added.elapsed())?;
        bystander.undisturbed(lab, &mut other, quiet)?;

        let thawed = Instant::now();
        guest.thaw()?;
        let before = guest.traffic(&frozen.nic.mac)?.received;
        let took = frozen.resumed(&mut guest, before, thawed)?;
        lab.say(format_args!("thawed: traffic again after {} ms", took.as_millis()));
        frozen.stop_traffic(lab, &mut guest)?;
        frozen.frames(lab, &daemon, &mut guest, every_length(&frozen.nic, 1500))?;
        bystander.stop_traffic(lab, &mut other)?;
        guest.power_off()?;
        other.power_off()?;
        daemon.terminate()
    });
}

#[test]
#[ignore = "needs QEMU >= 8 and the 6.12 guest kernel: run deploy/test"]
fn frames_return_whatever_the_driver_negotiates() {
    Lab::run("features", |lab| {
        let mut daemon = Daemon::start(lab, &["--cores", "1"])?;
        let jumbo = Pair::new(lab, 0, Mode::Server, 1)
            .with(|nic| nic.mtu(9000).ring_size(1024))
            .word("mtu")
            .word("9000")
            .word("swap")
            .word("on");
        let packed_jumbo = Pair::new(lab, 1, Mode::Server, 1)
            .with(|nic| nic.mtu(9000).packed(true).ring_size(1024))
            .word("mtu")
            .word("9000");
        let plain = [
            Pair::new(lab, 2, Mode::Server, 1).with(|nic| nic.property("mrg_rxbuf=off")),
            Pair::new(lab, 3, Mode::Server, 1).with(|nic| nic.packed(true).property("mrg_rxbuf=off")),
            Pair::new(lab, 4, Mode::Server, 1).with(|nic| nic.property("event_idx=off")),
            Pair::new(lab, 5, Mode::Server, 1).with(|nic| nic.packed(true).property("event_idx=off")),
            Pair::new(lab, 6, Mode::Server, 1).with(|nic| nic.property("indirect_desc=off").ring_size(1024)),
            Pair::new(lab, 7, Mode::Server, 1).with(|nic| nic.packed(true).property("indirect_desc=off")),
        ];
        let all: Vec<&Pair> = [&jumbo, &packed_jumbo].into_iter().chain(&plain).collect();
        for pair in &all {
            pair.add(&daemon)?;
        }
        let nics: Vec<Nic> = all.iter().map(|pair| pair.nic.clone()).collect();
        let mut guest = Guest::boot(lab, "guest", 1, &nics)?;
        for pair in [&jumbo, &packed_jumbo] {
            let nic = guest.nic(&pair.nic.mac)?;
            ensure!(nic.mtu == 9000 && nic.has(VIRTIO_NET_F_MTU), "the MTU did not reach the guest: {nic:?}");
            let swapped = pair.device == jumbo.device;
            let order = FramesOrder { swapped, ..every_length(&pair.nic, 9000) };
            pair.frames(lab, &daemon, &mut guest, order)?;
        }
        for pair in &plain {
            let nic = guest.nic(&pair.nic.mac)?;
            let off = [
                ("mrg_rxbuf=off", VIRTIO_NET_F_MRG_RXBUF),
                ("event_idx=off", VIRTIO_F_RING_EVENT_IDX),
                ("indirect_desc=off", VIRTIO_F_RING_INDIRECT_DESC),
            ];
            for (property, feature) in off {
                let wanted = !pair.nic.properties.iter().any(|set| set == property);
                ensure!(nic.has(feature) == wanted, "feature {feature} should be {wanted}: {nic:?}");
            }
            lab.say(format_args!("{}: {:?}", pair.device, pair.nic.properties));
            pair.frames(lab, &daemon, &mut guest, every_length(&pair.nic, 1500))?;
        }
        guest.power_off()?;
        daemon.terminate()
    });
}

const ROUNDS: u32 = 8;
/// In multiples of what an unused device's addition and removal take.
const REMOVED: u32 = 30;
/// In multiples of what the link's return takes while nothing is sent.
const BACK: u32 = 10;
/// In multiples of the longest gap before.
const GAP: u32 = 20;
const VIRTIO_NET_F_MTU: u32 = 3;
const VIRTIO_NET_F_MRG_RXBUF: u32 = 15;
const VIRTIO_NET_F_MQ: u32 = 22;
const VIRTIO_F_RING_INDIRECT_DESC: u32 = 28;
const VIRTIO_F_RING_EVENT_IDX: u32 = 29;
const VIRTIO_F_VERSION_1: u32 = 32;
const VIRTIO_F_RING_PACKED: u32 = 34;
