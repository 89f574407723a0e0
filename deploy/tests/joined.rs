//! Guests joined with each other and with the host: links, bridges and TAPs, end to end.
//!
//! Two kernels speak with each other through Ringway, so what arrives is judged by them: replies of every size, TCP's content
//! by SHA-256 at both ends, numbered datagrams. Whatever NICs and TAPs count is compared with what Ringway counts for them,
//! to the packet. Boots are dear: each serves many checks.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::{Duration, Instant};

use ringway_lab::agent::{
    CastOrder, Command, EchoOrder, Nic as ShownNic, Offload, TcpOrder, TcpReport, TrafficReport,
};
use ringway_lab::daemon::{Daemon, DeviceStats};
use ringway_lab::error::{Context, Result};
use ringway_lab::exchange::TCP_PORT;
use ringway_lab::lab::{Lab, wait_for};
use ringway_lab::netns::Netns;
use ringway_lab::pace::{Pace, WATCHDOG};
use ringway_lab::qemu::{Boot, Guest, Nic};
use ringway_lab::station::Station;
use ringway_lab::testpmd::{FrontEnd, Role, Testpmd};
use ringway_lab::{ensure, exchange};

/// A guest's device, the NIC that is connected to it, and the words that add it.
#[derive(Debug, Clone)]
struct Port {
    device: String,
    mgmtdev: String,
    nic: Nic,
    words: Vec<String>,
}

impl Port {
    /// A device `vmN` of that management device, and its NIC.
    fn new(lab: &Lab, number: u8, mgmtdev: &str) -> Port {
        let device = format!("vm{number}");
        let nic = Nic::new(number, lab.socket("dev").join(format!("{device}.sock")));
        let words = vec!["mac".to_string(), nic.mac.clone()];
        Port { device, mgmtdev: mgmtdev.into(), nic, words }
    }

    fn with(mut self, change: impl FnOnce(Nic) -> Nic) -> Port {
        self.nic = change(self.nic);
        self
    }

    fn words(mut self, words: &[&str]) -> Port {
        self.words.extend(words.iter().map(|word| (*word).to_string()));
        self
    }

    /// With that many queue pairs.
    fn pairs(self, pairs: u32) -> Port {
        self.with(|nic| nic.pairs(pairs)).words(&["max_vqp", &pairs.to_string()])
    }

    /// With that MTU, and rings that hold enough of its frames.
    fn mtu(self, mtu: u32) -> Port {
        self.with(|nic| nic.mtu(mtu).ring_size(1024)).words(&["mtu", &mtu.to_string()])
    }

    fn add(&self, daemon: &Daemon) -> Result<()> {
        let words: Vec<&str> = self.words.iter().map(String::as_str).collect();
        daemon.add_to(&self.mgmtdev, &self.device, &words)
    }

    /// Sets the NIC up with all its queue pairs and its two addresses in a network, as a host number.
    fn configure(&self, station: &mut Station, network: u8, host: u8) -> Result<ShownNic> {
        if self.nic.pairs > 1 {
            station.set_channels(&self.nic.mac, self.nic.pairs)?;
        }
        address(station, &self.nic.mac, network, host)?;
        station.link_up(&self.nic.mac)
    }
}

/// Gives a NIC its two addresses in a network.
fn address(station: &mut Station, nic: &str, network: u8, host: u8) -> Result<()> {
    station.add_address(nic, &format!("{}/24", four(network, host)))?;
    station.add_address(nic, &format!("{}/64", six(network, host)))
}

const fn four(network: u8, host: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(10, 77, network, host))
}

fn six(network: u8, host: u8) -> IpAddr {
    IpAddr::V6(Ipv6Addr::new(0xfd77, u16::from(network), 0, 0, 0, 0, 0, u16::from(host)))
}

/// One end of a join: how its station and how Ringway know it.
struct End<'a> {
    station: &'a mut Station,
    /// The NIC's Ethernet address, or the TAP's name.
    nic: &'a str,
    /// The device: the guest's, or the TAP's side.
    device: &'a str,
    mtu: usize,
    network: u8,
    host: u8,
}

impl End<'_> {
    fn shown(&mut self) -> Result<ShownNic> {
        self.station.nic(self.nic)
    }

    fn stats(&self, daemon: &Daemon) -> Result<DeviceStats> {
        daemon.stats(self.device)
    }
}

/// What the two ends of a join exchange: everything, once.
fn everything(
    lab: &Lab,
    daemon: &Daemon,
    what: &str,
    ends: &mut [End<'_>; 2],
    six_first: bool,
) -> Result<()> {
    let [one, other] = ends;
    let (network, host, mtu) = (other.network, other.host, one.mtu.min(other.mtu));
    let both = (four(network, host), six(network, host));
    let (to, also_to) = if six_first { (both.1, both.0) } else { both };

    // A neighbour is found by the first, which takes its time.
    one.station.echo(EchoOrder { longest: 0, ..exchange::every_size(to, mtu) })?;
    let every = exchange::echo(one.station, exchange::every_size(to, mtu))?;
    let fragmented = exchange::echo(one.station, exchange::fragmented_sizes(also_to, mtu))?;
    let moved = exchange::tcp(one.station, other.station, to, LARGE_BYTES)?;
    exchange::tcp(one.station, other.station, also_to, SMALL_BYTES)?;
    lab.say(format_args!(
        "{what}: {} sizes in {} ms, {} in fragments; {} MB each way in {} ms",
        every.received,
        every.elapsed_ms,
        fragmented.received,
        LARGE_BYTES / 1_000_000,
        elapsed_ms(&moved)
    ));

    let (sent, received) = exchange::udp(one.station, other.station, to, (1000, 1000, 2000))?;
    ensure!(received.received == sent.sent, "{what}: paced datagrams are missing: {sent:?} {received:?}");
    for flood_from_other in [false, true] {
        let (from, into) = if flood_from_other { (&mut *other, &mut *one) } else { (&mut *one, &mut *other) };
        flood(lab, daemon, what, from, into)?;
    }
    agree(lab, daemon, what, ends)
}

/// As many datagrams as the sender can send: what does not arrive must be counted, by Ringway or by the receiver's kernel.
fn flood(lab: &Lab, daemon: &Daemon, what: &str, from: &mut End<'_>, into: &mut End<'_>) -> Result<()> {
    let drops = |from: &End<'_>, into: &End<'_>| -> Result<u64> {
        Ok(into.stats(daemon)?.rx_drops() + from.stats(daemon)?.tx_drops())
    };
    let kernel = |from: &mut End<'_>, into: &mut End<'_>| -> Result<u64> {
        Ok(from.shown()?.tx_dropped + into.shown()?.rx_dropped)
    };
    let (before, kernel_before) = (drops(from, into)?, kernel(from, into)?);
    let overflowed_before = into.station.udp_received(exchange::UDP_PORT, 0)?.overflowed;
    let to = four(into.network, into.host);
    let (sent, received) = exchange::udp(from.station, into.station, to, (FLOOD, 1000, 0))?;
    let lost = sent.sent - received.received;
    let dropped = drops(from, into)? - before;
    let by_kernels = kernel(from, into)? - kernel_before + received.overflowed - overflowed_before;
    lab.say(format_args!(
        "{what}: {} datagrams in {} ms, lost {lost}: {dropped} dropped by Ringway, {by_kernels} by kernels",
        sent.sent, sent.elapsed_ms
    ));
    // Neighbours are asked after now and then: such a frame may be dropped among them.
    ensure!(
        (lost..=lost + 2).contains(&(dropped + by_kernels)),
        "{what}: lost {lost}, but {dropped} dropped by Ringway and {by_kernels} by kernels: {sent:?} {received:?}"
    );
    Ok(())
}

/// NICs, TAPs and Ringway count the same, to the packet, since they were made.
fn agree(lab: &Lab, daemon: &Daemon, what: &str, ends: &mut [End<'_>; 2]) -> Result<()> {
    let mut last = String::new();
    let outcome = wait_for(&format!("{what}: counters that agree"), WATCHDOG, || {
        // A driver counts what it sent when it gets it back, for which it takes its time until it is spoken to.
        let [one, other] = &mut *ends;
        let (to_one, to_other) = (four(one.network, one.host), four(other.network, other.host));
        one.station.echo(EchoOrder { longest: 3, ..exchange::every_size(to_other, 1500) })?;
        other.station.echo(EchoOrder { longest: 3, ..exchange::every_size(to_one, 1500) })?;
        std::thread::sleep(Duration::from_millis(50));
        let shown = [one.shown()?, other.shown()?];
        let stats = [one.stats(daemon)?, other.stats(daemon)?];
        let all = [(0, 1), (1, 0)].into_iter().all(|(at, across)| {
            let (nic, ours, theirs) = (&shown[at], &stats[at], &stats[across]);
            // A kernel's driver against what Ringway took and gave, then one device against the other. A TAP receives what its
            // side of Ringway is given, as a guest does.
            nic.tx_packets == ours.tx_packets() + ours.tx_drops()
                && nic.rx_packets == ours.rx_packets()
                && ours.tx_packets() == theirs.rx_frames() + theirs.rx_drops()
                && ours.faults() == 0
        });
        last = format!("{shown:#?} {stats:#?}");
        Ok(all.then_some(()))
    });
    outcome.context(|| last.clone())?;
    lab.say(format_args!("{what}: counters agree"));
    Ok(())
}

fn elapsed_ms(report: &TcpReport) -> u64 {
    [&report.sent, &report.fetched].into_iter().flatten().map(|end| end.elapsed_ms).max().unwrap_or(0)
}

#[test]
#[ignore = "needs QEMU >= 8 and the 6.12 guest kernel: run deploy/test"]
fn two_guests_on_links_exchange_everything() {
    Lab::run("joined-link", |lab| two_guests(lab, "link"));
}

#[test]
#[ignore = "needs QEMU >= 8 and the 6.12 guest kernel: run deploy/test"]
fn two_guests_on_bridges_exchange_everything() {
    Lab::run("joined-bridge", |lab| two_guests(lab, "bridge"));
}

/// Two guests with four NICs each, each pair joined apart from the others: whatever kinds of rings, numbers of queues, offloads
/// and MTUs meet.
fn two_guests(lab: &Lab, kind: &str) -> Result<()> {
    let mut daemon = Daemon::start(lab, &["--cores", "0,1"])?;
    let port = |number: u8, network: u8| Port::new(lab, number, &format!("{kind}/n{network}"));
    let packed = |nic: Nic| nic.packed(true);
    let ports = [
        // Split rings and everything offloaded.
        [port(11, 1), port(21, 1)],
        // Split against packed, four pairs of each.
        [port(12, 2).pairs(4), port(22, 2).pairs(4).with(packed)],
        // No offloads, whole buffers only, against all of them.
        [port(13, 3).with(|nic| packed(nic.without_offloads()).property("mrg_rxbuf=off")), port(23, 3)],
        // Jumbo frames; no offloads on the other side this time.
        [
            port(14, 4).mtu(9000).with(packed),
            port(24, 4).mtu(9000).with(|nic| packed(nic.without_offloads())),
        ],
    ];
    for port in ports.iter().flatten() {
        port.add(&daemon)?;
    }
    if kind == "link" {
        let third = daemon.ctl_raw(&["dev", "add", "name", "third", "mgmtdev", "link/n1"])?;
        ensure!(third.code != 0, "a link took a third device: {third:?}");
    }
    let nics = |side: usize| ports.iter().map(|pair| pair[side].nic.clone()).collect::<Vec<_>>();
    let boot = Boot::new(2).ipv6().memory_mib(512);
    let (one, other) =
        (Guest::begin(lab, "one", boot, &nics(0))?, Guest::begin(lab, "other", boot, &nics(1))?);
    let (mut one, mut other) = (one.wait_until_up(lab)?, other.wait_until_up(lab)?);
    exchange::serve(&mut one)?;
    exchange::serve(&mut other)?;
    for (network, pair) in (1..).zip(&ports) {
        let shown = [pair[0].configure(&mut one, network, 1)?, pair[1].configure(&mut other, network, 2)?];
        for (port, nic) in pair.iter().zip(&shown) {
            let offloads = !port.nic.properties.iter().any(|property| property == "csum=off");
            for feature in [VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_HOST_TSO4] {
                ensure!(nic.has(feature) == offloads, "feature {feature} should be {offloads}: {nic:?}");
            }
            ensure!(nic.has(VIRTIO_F_RING_PACKED) == port.nic.packed, "packed or not: {nic:?}");
            ensure!(nic.pairs == port.nic.pairs && nic.mtu == port.nic.mtu.unwrap_or(1500), "{nic:?}");
        }
    }
    for (network, pair) in (1..).zip(&ports) {
        let what = format!("{kind}/n{network}");
        let [near, far] = pair;
        let mtu = near.nic.mtu.unwrap_or(1500) as usize;
        let mut ends = [
            End { station: &mut one, nic: &near.nic.mac, device: &near.device, mtu, network, host: 1 },
            End { station: &mut other, nic: &far.nic.mac, device: &far.device, mtu, network, host: 2 },
        ];
        everything(lab, &daemon, &what, &mut ends, network % 2 == 0)?;
    }
    for port in &ports[1] {
        let stats = daemon.stats(&port.device)?;
        let idle = stats.queues.iter().filter(|queue| queue.queue_type == "tx" && queue.packets == 0).count();
        lab.say(format_args!("{}: {idle} of four transmit queues never used", port.device));
    }

    // The kernel's own switches, on a side at a time.
    let (near, far) = (ports[0][0].nic.mac.clone(), ports[0][1].nic.mac.clone());
    for offloads in [&[Offload::Tso][..], &[Offload::TxChecksum, Offload::Gso], &[Offload::Gro]] {
        for (station, nic) in [(&mut *one, &near), (&mut *other, &far)] {
            for offload in offloads {
                station.set_offload(nic, *offload, false)?;
                ensure!(!station.nic(nic)?.offloads.contains(offload), "{offload:?} is still on");
            }
        }
        exchange::tcp(&mut one, &mut other, four(1, 2), SMALL_BYTES)?;
        for offload in offloads {
            one.set_offload(&near, *offload, true)?;
        }
        exchange::tcp(&mut one, &mut other, six(1, 2), SMALL_BYTES)?;
        for offload in offloads {
            other.set_offload(&far, *offload, true)?;
        }
    }
    lab.say("offloads switched off and on on either side");
    one.power_off()?;
    other.power_off()?;
    daemon.check()?;
    daemon.terminate()
}

#[test]
#[ignore = "needs QEMU >= 8, the 6.12 guest kernel and root: run deploy/test"]
fn a_guest_and_the_host_exchange_everything_over_taps() {
    Lab::run("joined-tap", |lab| {
        let (host, elsewhere) = (Netns::new("host")?, Netns::new("elsewhere")?);
        let mut daemon = Daemon::start(lab, &["--cores", "0,1"])?;
        let direct = Port::new(lab, 1, "tap/rwt0").words(&["netns", host.name()]);
        let jumbo = Port::new(lab, 2, "tap/rwt1")
            .mtu(9000)
            .words(&["netns", host.name()])
            .with(|nic| nic.packed(true).without_offloads());
        let bridged = Port::new(lab, 3, "bridge/br0").with(|nic| nic.packed(true));
        for port in [&direct, &jumbo, &bridged] {
            port.add(&daemon)?;
        }
        daemon.add_to("bridge/br0", "host0", &["tap", "rwt2", "netns", host.name()])?;
        let nics = [direct.nic.clone(), jumbo.nic.clone(), bridged.nic.clone()];
        let mut guest = Guest::boot_as(lab, "guest", Boot::new(2).ipv6().memory_mib(512), &nics)?;
        let mut station = host.station(lab, "host")?;
        exchange::serve(&mut guest)?;
        exchange::serve(&mut station)?;
        let taps =
            [(&direct, "rwt0", "rwt0", 1), (&jumbo, "rwt1", "rwt1", 2), (&bridged, "rwt2", "host0", 3)];
        for (port, tap, _, network) in taps {
            port.configure(&mut guest, network, 2)?;
            address(&mut station, tap, network, 1)?;
            lab.say(format_args!("{:?}", station.link_up(tap)?));
        }
        for (port, tap, side, network) in taps {
            let mtu = port.nic.mtu.unwrap_or(1500) as usize;
            let shown = station.nic(tap)?;
            ensure!(shown.mtu as usize == mtu, "the TAP's MTU should be {mtu}: {shown:?}");
            let mut ends = [
                End { station: &mut station, nic: tap, device: side, mtu, network, host: 1 },
                End { station: &mut guest, nic: &port.nic.mac, device: &port.device, mtu, network, host: 2 },
            ];
            everything(lab, &daemon, &port.mgmtdev, &mut ends, network % 2 == 1)?;
        }
        for on in [false, true] {
            for offload in [Offload::Tso, Offload::TxChecksum, Offload::Gro] {
                station.set_offload("rwt0", offload, on)?;
            }
            exchange::tcp(&mut station, &mut guest, four(1, 2), SMALL_BYTES)?;
        }

        operators_move_and_delete_taps(lab, &daemon, &mut guest, &mut station, [&host, &elsewhere])?;
        a_new_daemon_joins_them_again(lab, &mut daemon, &mut guest, &mut station)?;
        guest.power_off()?;
        daemon.check()?;
        daemon.terminate()
    });
}

/// A TAP moved to another namespace goes on there; one that is deleted under traffic disturbs nothing beside it, and its device
/// can be removed.
fn operators_move_and_delete_taps(
    lab: &Lab,
    daemon: &Daemon,
    guest: &mut Guest,
    station: &mut Station,
    [host, elsewhere]: [&Netns; 2],
) -> Result<()> {
    let beside = four(3, 1);
    guest.start_pulse(beside, 5)?;
    exchange::tcp(guest, station, four(1, 1), SMALL_BYTES)?;
    let (mut quiet, pace) = (Pace::default(), daemon.pace()?);
    guest.pulse_resumed(beside, ANSWERED, Instant::now())?;
    quiet.saw(gap(&guest.pulse(beside)?));
    host.give("rwt0", elsewhere)?;
    let mut moved_to = elsewhere.station(lab, "elsewhere")?;
    address(&mut moved_to, "rwt0", 1, 1)?;
    moved_to.link_up("rwt0")?;
    exchange::serve(&mut moved_to)?;
    exchange::echo(&mut moved_to, exchange::every_size(four(1, 2), 1500))?;
    exchange::tcp(guest, &mut moved_to, four(1, 1), SMALL_BYTES)?;
    lab.say("TAP moved to another namespace: its traffic goes on");

    guest.start_pulse(four(1, 1), 2)?;
    guest.pulse_resumed(four(1, 1), 0, Instant::now())?;
    elsewhere.ip(&["link", "delete", "rwt0"])?;
    guest.pulse_stalled(four(1, 1))?;
    guest.stop_pulse(four(1, 1))?;
    lab.say(format_args!("TAP deleted under traffic; shown as\n{}", daemon.ctl(&["dev", "show"])?));
    pace.allows("the removal", REMOVED, daemon.delete("vm1")?)?;

    // A host's port that goes takes nothing with it, and comes back with all its words.
    station.start_pulse(four(2, 2), 5)?;
    went_on(lab, guest, "a TAP that was moved and deleted", beside, quiet)?;
    daemon.delete("host0")?;
    std::thread::sleep(Duration::from_millis(300));
    let added = Instant::now();
    daemon.add_to("bridge/br0", "host0", &["tap", "rwt2", "netns", host.name()])?;
    bring_up(station, "rwt2", 3)?;
    let received = guest.pulse(beside)?.received;
    let took = guest.pulse_resumed(beside, received, added)?;
    lab.say(format_args!("host's port removed and added: traffic again after {} ms", took.as_millis()));
    went_on(lab, station, "a host's port that was removed", four(2, 2), quiet)?;
    station.stop_pulse(four(2, 2))?;
    guest.stop_pulse(beside).map(|_| ())
}

/// Killed and started again under traffic, with a bridge and TAPs: everything is joined as before.
fn a_new_daemon_joins_them_again(
    lab: &Lab,
    daemon: &mut Daemon,
    guest: &mut Guest,
    station: &mut Station,
) -> Result<()> {
    for round in 0..3 {
        for to in [four(2, 1), four(3, 1)] {
            guest.start_pulse(to, 5)?;
        }
        std::thread::sleep(Duration::from_millis(400));
        if round == 2 {
            daemon.terminate()?
        } else {
            daemon.kill()?
        }
        std::thread::sleep(Duration::from_millis(300));
        let mut received = Vec::new();
        for to in [four(2, 1), four(3, 1)] {
            received.push(guest.pulse(to)?.received);
        }
        let started = daemon.start_again()?;
        for (tap, network) in [("rwt1", 2), ("rwt2", 3)] {
            bring_up(station, tap, network)?;
        }
        for (to, received) in [four(2, 1), four(3, 1)].into_iter().zip(received) {
            ensure!(received > 0, "no traffic to {to} before the daemon's end");
            let took = guest.pulse_resumed(to, received, started)?;
            lab.say(format_args!("round {round}: replies of {to} again after {} ms", took.as_millis()));
            let report = guest.stop_pulse(to)?;
            ensure!(report.corrupt == 0, "{report:?}");
        }
    }
    exchange::tcp(station, guest, four(2, 2), SMALL_BYTES)?;
    exchange::tcp(station, guest, six(3, 2), SMALL_BYTES)?;
    Ok(())
}

/// Waits for a TAP that was made anew, and gives it what the kernel took with the old one.
fn bring_up(station: &mut Station, tap: &str, network: u8) -> Result<()> {
    wait_for(&format!("TAP {tap}"), WATCHDOG, || {
        Ok(station.nics()?.iter().any(|nic| nic.name == tap).then_some(()))
    })?;
    // One that outlived its daemon has its addresses still.
    let known = station.shell(&format!("busybox ip addr show dev {tap}"))?.output;
    if !known.contains(&four(network, 1).to_string()) {
        address(station, tap, network, 1)?;
    }
    station.link_up(tap).map(|_| ())
}

#[test]
#[ignore = "needs QEMU >= 8 and the 6.12 guest kernel: run deploy/test"]
fn whatever_goes_under_traffic_the_rest_goes_on() {
    Lab::run("joined-changes", |lab| {
        let mut daemon = Daemon::start(lab, &["--cores", "0,1"])?;
        let link =
            [Port::new(lab, 11, "link/l0"), Port::new(lab, 21, "link/l0").with(|nic| nic.packed(true))];
        let bridge = [
            Port::new(lab, 12, "bridge/br0"),
            Port::new(lab, 22, "bridge/br0").words(&["spoofchk", "on"]),
            Port::new(lab, 32, "bridge/br0").with(|nic| nic.packed(true)),
        ];
        for port in link.iter().chain(&bridge) {
            port.add(&daemon)?;
        }
        let nics = [
            vec![link[0].nic.clone(), bridge[0].nic.clone()],
            vec![link[1].nic.clone(), bridge[1].nic.clone()],
        ];
        let third_nic = std::slice::from_ref(&bridge[2].nic);
        let boot = Boot::new(1);
        let first = Guest::begin(lab, "first", boot, &nics[0])?;
        let second = Guest::begin(lab, "second", boot, &nics[1])?;
        let third = Guest::begin(lab, "third", boot, third_nic)?;
        let (mut first, mut second, mut third) =
            (first.wait_until_up(lab)?, second.wait_until_up(lab)?, third.wait_until_up(lab)?);
        let guests = [&mut first, &mut second, &mut third];
        for (port, guest, network, host) in [
            (&link[0], 0, LINK, 1),
            (&link[1], 1, LINK, 2),
            (&bridge[0], 0, BRIDGE, 1),
            (&bridge[1], 1, BRIDGE, 2),
            (&bridge[2], 2, BRIDGE, 3),
        ] {
            guests[guest].add_address(&port.nic.mac, &format!("{}/24", four(network, host)))?;
            guests[guest].link_up(&port.nic.mac)?;
        }
        // How long a device that is added again takes while nothing is sent, until its guest's link is there.
        let mac = &bridge[2].nic.mac;
        let returns = Pace::of(|| {
            daemon.delete(&bridge[2].device)?;
            third.link_lost(mac)?;
            let added = Instant::now();
            bridge[2].add(&daemon)?;
            third.link_up(mac)?;
            Ok(added.elapsed())
        })?;
        let mut paces = Paces { returns, removals: daemon.pace()?, quiet: Pace::default() };
        for to in WATCHED {
            first.start_pulse(to, 5)?;
            first.pulse_resumed(to, 0, Instant::now())?;
        }
        // Longer than any change is watched for.
        std::thread::sleep(Duration::from_secs(2));
        for to in WATCHED {
            paces.quiet.saw(gap(&first.pulse(to)?));
        }

        cores_are_moved(lab, &daemon, &mut first, &mut second)?;
        pulse_anew(&mut first, &mut paces)?;
        a_lie_about_the_source_is_counted(lab, &daemon, &mut second, &mut third, &bridge)?;
        undisturbed(lab, &mut first, "false sources", &WATCHED, &paces)?;

        // Either end of the link, then a port of the bridge, then that of the sender itself.
        let [link_end, near, far] = WATCHED;
        for (port, through_it, spared) in [
            (&link[1], link_end, &[near, far][..]),
            (&link[0], link_end, &[near, far]),
            (&bridge[2], far, &[link_end, near]),
            (&bridge[0], near, &[link_end]),
        ] {
            removed_and_added(lab, &daemon, &mut first, port, (through_it, spared), &mut paces)?;
        }
        pulse_anew(&mut first, &mut paces)?;

        // The whole bridge: the link does not notice.
        let start = Instant::now();
        daemon.ctl(&["mgmtdev", "del", "bridge/br0"])?;
        paces.removals.allows("the removal of the bridge", REMOVED, start.elapsed())?;
        let shown = daemon.ctl(&["dev", "show"])?;
        for port in &bridge {
            ensure!(!shown.contains(&port.device), "{} is still there: {shown}", port.device);
        }
        first.pulse_stalled(near)?;
        undisturbed(lab, &mut first, "removal of the whole bridge", &[link_end], &paces)?;
        for to in [near, far] {
            pulse_again(&mut first, to)?;
        }
        let added = Instant::now();
        daemon.ctl(&["mgmtdev", "add", "name", "bridge/br0", "ageing", "60"])?;
        for port in &bridge {
            port.add(&daemon)?;
        }
        for to in [near, far] {
            let took = first.pulse_resumed(to, ANSWERED, added)?;
            lab.say(format_args!("bridge made again: replies of {to} after {} ms", took.as_millis()));
            paces.returns.allows("the bridge's return", BACK, took)?;
        }
        pulse_anew(&mut first, &mut paces)?;

        // VMMs that are killed: a port of the bridge, then the link's other end together with another port.
        third.kill()?;
        std::thread::sleep(Duration::from_millis(500));
        undisturbed(lab, &mut first, "a killed VMM on the bridge", &[link_end, near], &paces)?;
        let mut third = Guest::boot_as(lab, "third-again", boot, third_nic)?;
        third.add_address(&bridge[2].nic.mac, &format!("{}/24", four(BRIDGE, 3)))?;
        third.link_up(&bridge[2].nic.mac)?;
        pulse_anew(&mut first, &mut paces)?;
        let down_before = daemon.stats(&link[0].device)?.dropped_as("peer_down");
        second.kill()?;
        std::thread::sleep(Duration::from_millis(700));
        undisturbed(lab, &mut first, "a killed VMM on link and bridge", &[far], &paces)?;
        let down = daemon.stats(&link[0].device)?.dropped_as("peer_down") - down_before;
        lab.say(format_args!("{down} frames to a link without its other end were counted"));
        ensure!(down > 0, "what was sent to nobody was not counted");
        // And the first itself, under traffic both ways: its peer's devices and the daemon stay.
        third.start_pulse(four(BRIDGE, 1), 2)?;
        std::thread::sleep(Duration::from_millis(200));
        first.kill()?;
        std::thread::sleep(Duration::from_millis(200));
        daemon.check()?;
        let stats = daemon.stats(&bridge[2].device)?;
        ensure!(stats.faults() == 0, "{stats:?}");
        third.power_off()?;
        daemon.terminate()
    });
}

/// What goes on undisturbed takes here.
struct Paces {
    /// Until a device that is added again has its guest's link, while nothing is sent.
    returns: Pace,
    /// An unused device's addition and removal.
    removals: Pace,
    /// The longest gaps of pulses.
    quiet: Pace,
}

/// Starts the first guest's pulses anew once each is answered, so that gaps that had to be are forgotten.
fn pulse_anew(first: &mut Guest, paces: &mut Paces) -> Result<()> {
    for to in WATCHED {
        pulse_again(first, to)?;
    }
    for to in WATCHED {
        first.pulse_resumed(to, ANSWERED, Instant::now())?;
        pulse_again(first, to)?;
    }
    std::thread::sleep(Duration::from_millis(200));
    for to in WATCHED {
        paces.quiet.saw(gap(&first.pulse(to)?));
    }
    Ok(())
}

/// Starts one pulse anew. It has an identifier of its own: a late reply to the one before it does not count.
fn pulse_again(first: &mut Guest, to: IpAddr) -> Result<()> {
    let report = first.stop_pulse(to)?;
    ensure!(report.corrupt == 0, "{to}: {report:?}");
    first.start_pulse(to, 5)
}

/// These pulses go on, and have had no gap that matters.
fn undisturbed(lab: &Lab, first: &mut Guest, despite: &str, which: &[IpAddr], paces: &Paces) -> Result<()> {
    which.iter().try_for_each(|to| went_on(lab, first, despite, *to, paces.quiet))
}

/// A pulse goes on, and has had no gap that matters.
fn went_on(lab: &Lab, station: &mut Station, despite: &str, to: IpAddr, quiet: Pace) -> Result<()> {
    let received = station.pulse(to)?.received;
    station.pulse_resumed(to, received + ANSWERED, Instant::now())?;
    let report = station.pulse(to)?;
    lab.say(format_args!(
        "{despite}: {to} answered {} of {}, longest gap {} ms; undisturbed at most {quiet:?}",
        report.received, report.sent, report.longest_gap_ms
    ));
    ensure!(report.corrupt == 0, "{despite}: {to}: {report:?}");
    quiet.allows(&format!("{despite}: a gap of {to}"), GAP, gap(&report))
}

/// The longest gap of a pulse so far.
fn gap(report: &TrafficReport) -> Duration {
    Duration::from_millis(report.longest_gap_ms)
}

/// Cores changed again and again under TCP and pulses: nothing stops and no content changes.
fn cores_are_moved(lab: &Lab, daemon: &Daemon, first: &mut Guest, second: &mut Guest) -> Result<()> {
    exchange::serve(second)?;
    let order = |network| TcpOrder {
        to: std::net::SocketAddr::new(four(network, 2), TCP_PORT),
        seed: u64::from(exchange::new_run()),
        send_bytes: MOVED_BYTES,
        fetch_bytes: MOVED_BYTES,
    };
    let orders = [("link", order(LINK)), ("bridge", order(BRIDGE))];
    for (job, order) in &orders {
        first.start(job, Command::Tcp(order.clone()))?;
    }
    // TCP alone makes gaps of its own.
    std::thread::sleep(Duration::from_millis(300));
    let mut quiet = Pace::default();
    for to in WATCHED {
        quiet.saw(gap(&first.pulse(to)?));
    }
    for round in 0..8 {
        let core = if round % 2 == 0 { "1" } else { "0" };
        daemon.ctl(&["dev", "set", "name", "vm11", "core", core])?;
        daemon.ctl(&["dev", "set", "name", "vm21", "core", if round % 4 < 2 { "0" } else { "1" }])?;
        daemon.ctl(&["mgmtdev", "set", "name", "bridge/br0", "core", core])?;
        std::thread::sleep(Duration::from_millis(150));
    }
    let mut ends = Vec::new();
    for (job, _) in &orders {
        let report: TcpReport = first.finish(job)?;
        ends.extend([report.sent, report.fetched].into_iter().flatten());
    }
    let mut served = Vec::new();
    wait_for("the server's ends of all transfers", WATCHDOG, || {
        served.extend(second.tcp_served(TCP_PORT)?);
        Ok((served.len() >= ends.len()).then_some(()))
    })?;
    for end in &ends {
        let same = served
            .iter()
            .any(|other| other.seed == end.seed && other.sender != end.sender && other.sha256 == end.sha256);
        ensure!(same && end.bytes == MOVED_BYTES, "the two ends differ: {end:?} {served:?}");
    }
    for to in WATCHED {
        went_on(lab, first, "core moves", to, quiet)?;
    }
    lab.say(format_args!("cores moved 24 times under {} MB of TCP each way", 2 * MOVED_BYTES / 1_000_000));
    Ok(())
}

/// A guest that claims another's address where that is not allowed: counted, and seen by nobody.
fn a_lie_about_the_source_is_counted(
    lab: &Lab,
    daemon: &Daemon,
    liar: &mut Guest,
    hearer: &mut Guest,
    bridge: &[Port; 3],
) -> Result<()> {
    let before = daemon.stats(&bridge[1].device)?;
    let heard_before = hearer.nic(&bridge[2].nic.mac)?.rx_packets;
    let nic = bridge[1].nic.mac.clone();
    let lie = CastOrder {
        nic: nic.clone(),
        destination: bridge[2].nic.mac.clone(),
        source: bridge[0].nic.mac.clone(),
        length: 100,
        frames: LIES,
    };
    liar.cast(lie.clone())?;
    wait_for("the lies' counter", WATCHDOG, || {
        let lies =
            daemon.stats(&bridge[1].device)?.dropped_as("spoofed_mac") - before.dropped_as("spoofed_mac");
        Ok((lies >= LIES).then_some(()))
    })?;
    let lies = daemon.stats(&bridge[1].device)?.dropped_as("spoofed_mac") - before.dropped_as("spoofed_mac");
    let heard = hearer.nic(&bridge[2].nic.mac)?.rx_packets - heard_before;
    lab.say(format_args!("{LIES} false sources sent, {lies} counted; {heard} other frames heard meanwhile"));
    ensure!(lies == LIES, "{LIES} lies were sent and {lies} counted");
    ensure!(heard < LIES, "{heard} frames were heard: the lies among them");
    // The truth passes.
    let (sent, heard_before) = (LIES, hearer.nic(&bridge[2].nic.mac)?.rx_packets);
    liar.cast(CastOrder { source: nic, ..lie })?;
    wait_for("true frames", WATCHDOG, || {
        Ok((hearer.nic(&bridge[2].nic.mac)?.rx_packets - heard_before >= sent).then_some(()))
    })
}

/// A device removed under traffic and added again: its own traffic comes back, what it is no part of never stops.
fn removed_and_added(
    lab: &Lab,
    daemon: &Daemon,
    first: &mut Guest,
    port: &Port,
    (through_it, spared): (IpAddr, &[IpAddr]),
    paces: &mut Paces,
) -> Result<()> {
    pulse_anew(first, paces)?;
    paces.removals.allows("the removal", REMOVED, daemon.delete(&port.device)?)?;
    first.pulse_stalled(through_it)?;
    undisturbed(lab, first, &format!("removal of {}", port.device), spared, paces)?;
    // What lay in the rings meanwhile is answered as soon as they run: only replies to a pulse that began since tell that
    // traffic goes on.
    pulse_again(first, through_it)?;
    let added = Instant::now();
    port.add(daemon)?;
    let took = first.pulse_resumed(through_it, ANSWERED, added)?;
    lab.say(format_args!("{}: traffic {} ms after it was added again", port.device, took.as_millis()));
    paces.returns.allows("traffic's return", BACK, took)?;
    undisturbed(lab, first, &format!("return of {}", port.device), spared, paces)
}

#[test]
#[ignore = "needs dpdk-testpmd: run deploy/test"]
fn every_frame_of_two_dpdk_ports_on_a_link_is_accounted_for() {
    Lab::run("joined-testpmd-link", |lab| circulate(lab, "link"));
}

#[test]
#[ignore = "needs dpdk-testpmd: run deploy/test"]
fn every_frame_of_two_dpdk_ports_on_a_bridge_is_accounted_for() {
    Lab::run("joined-testpmd-bridge", |lab| circulate(lab, "bridge"));
}

/// Two virtio-user ports at full speed, of every kind of ring: what one's rings accepted is delivered to the other, or dropped
/// and named.
fn circulate(lab: &Lab, kind: &str) -> Result<()> {
    let mut daemon = Daemon::start(lab, &["--cores", "1"])?;
    for (turn, (packed, mergeable, queues)) in [
        ([false, false], true, 1),
        ([true, true], true, 1),
        ([false, true], false, 1),
        ([true, false], true, 4),
        ([true, true], false, 4),
    ]
    .into_iter()
    .enumerate()
    {
        let (name, mgmtdev) = (format!("turn{turn}"), format!("{kind}/t{turn}"));
        let what = format!("{mgmtdev}: packed {packed:?}, mergeable {mergeable}, {queues} pairs");
        let macs = [0, 1].map(|port| format!("52:54:00:77:{turn:02x}:{port:02x}"));
        let devices = [0, 1].map(|port| format!("t{turn}p{port}"));
        for (device, mac) in devices.iter().zip(&macs) {
            daemon.add_to(&mgmtdev, device, &["mac", mac, "max_vqp", &queues.to_string()])?;
        }
        let front = |port: usize| FrontEnd {
            packed: packed[port],
            mergeable,
            queues,
            mac: Some(macs[port].clone()),
            peer: Some(macs[1 - port].clone()),
            ..FrontEnd::new(daemon.socket(&devices[port]))
        };
        let role = Role::FrontEnds(vec![front(0), front(1)]);
        let mut testpmd = Testpmd::start(lab, &name, &role, "mac")?;
        let stats = testpmd.circulate(2, 8, CIRCULATION)?;
        let ours = [daemon.stats(&devices[0])?, daemon.stats(&devices[1])?];
        for (sender, receiver) in [(0, 1), (1, 0)] {
            let (sent, got) = (&stats[sender], &stats[receiver]);
            let (taken, given) = (&ours[sender], &ours[receiver]);
            lab.say(format_args!(
                "{what}: port {sender} sent {} ({:.2} million a second), port {receiver} received {}; Ringway took {}, \
                 gave {}, dropped {} + {}",
                sent.tx_packets,
                sent.tx_packets as f64 / CIRCULATION.as_secs_f64() / 1e6,
                got.rx_packets,
                taken.tx_packets(),
                given.rx_packets(),
                taken.tx_drops(),
                given.rx_drops()
            ));
            ensure!(
                sent.tx_packets == taken.tx_packets() + taken.tx_drops()
                    && taken.tx_packets() == given.rx_packets() + given.rx_drops()
                    && given.rx_packets() == got.rx_packets
                    && got.rx_nombuf == 0
                    && got.rx_errors == 0,
                "{what}: frames are missing from {sender} to {receiver}: {stats:?} {ours:?}"
            );
            ensure!(sent.tx_packets > MINIMUM, "{what}: hardly any traffic: {stats:?}");
            ensure!(taken.faults() == 0, "{what}: {taken:?}");
            // Every reason has a name of its own.
            let named: u64 = ["no_rx_buffer", "rx_buffer_too_small", "peer_down", "flood_limit"]
                .into_iter()
                .map(|reason| taken.dropped_as(reason))
                .sum();
            ensure!(taken.drops() == named, "{what}: drops that should not be: {taken:?}");
        }
        testpmd.quit()?;
        if turn == 0 {
            // With all its devices; else it goes with its last.
            daemon.ctl(&["mgmtdev", "del", &mgmtdev])?;
        } else {
            for device in &devices {
                daemon.delete(device)?;
            }
        }
        let left = daemon.ctl(&["mgmtdev", "show"])?;
        ensure!(!left.contains(&mgmtdev), "{mgmtdev} stays without its devices: {left}");
    }
    daemon.check()?;
    daemon.terminate()
}

const LINK: u8 = 1;
const BRIDGE: u8 = 2;
/// To whom the first guest pulses: its link's other end, and both others on the bridge.
const WATCHED: [IpAddr; 3] = [four(LINK, 2), four(BRIDGE, 2), four(BRIDGE, 3)];
const LARGE_BYTES: u64 = 100_000_000;
const SMALL_BYTES: u64 = 8_000_000;
const MOVED_BYTES: u64 = 40_000_000;
const FLOOD: u64 = 20_000;
const LIES: u64 = 300;
/// More than a few replies: traffic goes on.
const ANSWERED: u64 = 5;
/// In multiples of what an unused device's addition and removal take.
const REMOVED: u32 = 30;
/// Until a device that is added again carries traffic, in multiples of what its guest's link takes. Some 60 ms; a guest's
/// kernel that has lost its neighbours, or a front-end that connects only at its second attempt, needs a second.
const BACK: u32 = 10;
/// A pulse's gap, in multiples of the longest that was undisturbed.
const GAP: u32 = 20;
const CIRCULATION: Duration = Duration::from_millis(1500);
/// Some 3,000 a second: far below what the slowest machine moves, far above a wedged ring's handful.
const MINIMUM: u64 = 5000;
const VIRTIO_NET_F_CSUM: u32 = 0;
const VIRTIO_NET_F_GUEST_CSUM: u32 = 1;
const VIRTIO_NET_F_HOST_TSO4: u32 = 11;
const VIRTIO_F_RING_PACKED: u32 = 34;
