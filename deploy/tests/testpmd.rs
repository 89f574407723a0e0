//! DPDK's virtio-user as the front-end: a second implementation of the rings, polled, at full speed.
//!
//! testpmd sends a batch, and whatever returns is sent again. Once it has stopped and emptied its receive rings, every
//! frame that its rings accepted must have been counted and returned by Ringway, and received.

use std::time::Duration;

use ringway_lab::agent::Offload;
use ringway_lab::daemon::Daemon;
use ringway_lab::error::Result;
use ringway_lab::lab::{Lab, wait_for};
use ringway_lab::netns::Netns;
use ringway_lab::pace::WATCHDOG;
use ringway_lab::testpmd::{FrontEnd, Role, Testpmd};
use ringway_lab::{ensure, exchange, fail};

#[test]
#[ignore = "needs dpdk-testpmd: run deploy/test"]
fn split_rings() {
    Lab::run("testpmd-split", |lab| matrix(lab, false));
}

#[test]
#[ignore = "needs dpdk-testpmd: run deploy/test"]
fn packed_rings() {
    Lab::run("testpmd-packed", |lab| matrix(lab, true));
}

#[test]
#[ignore = "needs dpdk-testpmd: run deploy/test"]
fn testpmd_owns_the_socket_and_is_replaced() {
    Lab::run("testpmd-server", |lab| {
        let mut daemon = Daemon::start(lab, &["--cores", "1"])?;
        let socket = lab.socket("front.sock");
        daemon.add("vm0", &["mode", "client", "socket", &socket.display().to_string()])?;
        for (turn, packed) in [false, true].into_iter().enumerate() {
            let front = FrontEnd { server: true, packed, ..FrontEnd::new(&socket) };
            let testpmd = exchange(lab, &daemon, &format!("server{turn}"), "vm0", front, DURATION)?;
            testpmd.kill()?;
            // A killed testpmd leaves its socket, and the next one does not replace it.
            std::fs::remove_file(&socket)?;
        }
        daemon.terminate()
    });
}

/// Linux sends TCP behind a routing header (RFC 8754), as large frames through a TAP, to a front-end that takes none: what is
/// cut up here has checksums that the receiver's kernel finds right.
#[test]
#[ignore = "makes network namespaces, needs dpdk-testpmd: run deploy/test as root"]
fn segments_behind_a_routing_header_in_two_namespaces_have_right_checksums() {
    Lab::run("testpmd-routing-header", |lab| {
        let mut daemon = Daemon::start(lab, &["--cores", "1"])?;
        let (sends, takes) = (Netns::new("sends")?, Netns::new("takes")?);
        daemon.add_to("bridge/b", "a", &["tap", "rwa", "netns", sends.name()])?;
        daemon.add_to("bridge/b", "v", &[])?;
        let front = FrontEnd { queue_size: 256, ..FrontEnd::new(daemon.socket("v")) };
        let (interface, netns) = ("rwb".to_owned(), takes.name().to_owned());
        let role = Role::FrontEndAndTap { front, interface, netns };
        let mut testpmd = Testpmd::start(lab, "front", &role, "io")?;
        testpmd.command("start")?;
        for (netns, interface, address) in [(&sends, "rwa", "fd00::1/64"), (&takes, "rwb", "fd00::2/64")] {
            netns.ip(&["link", "set", "lo", "up"])?;
            netns.ip(&["addr", "add", address, "dev", interface, "nodad"])?;
            netns.ip(&["link", "set", interface, "up"])?;
        }
        for setting in ["all/seg6_enabled", "rwb/seg6_enabled", "all/forwarding"] {
            takes.sysctl(&format!("net/ipv6/conf/{setting}"), "1")?;
        }
        // By way of the first to the second, both of which the receiver has.
        let (first, last) = ("fd00:2::2", "fd00:9::9");
        for address in [first, last] {
            takes.ip(&["-6", "addr", "add", &format!("{address}/128"), "dev", "lo"])?;
        }
        sends.ip(&["-6", "route", "add", &format!("{last}/128"), "via", "fd00::2"])?;
        let to_first = format!("{first}/128");
        let by_segments = ["encap", "seg6", "mode", "inline", "segs", last, "via", "fd00::2", "dev", "rwa"];
        sends.ip(&[&["-6", "route", "add", &to_first][..], &by_segments].concat())?;
        let (mut from, mut to) = (sends.station(lab, "sends")?, takes.station(lab, "takes")?);
        // The receiver finds every checksum for itself.
        for offload in [Offload::TxChecksum, Offload::Tso, Offload::Gso, Offload::Gro] {
            to.set_offload("rwb", offload, false)?;
        }
        exchange::serve(&mut to)?;
        for address in ["fd00::2", first] {
            let report = exchange::tcp(&mut from, &mut to, address.parse().unwrap(), BYTES)?;
            lab.say(format_args!("{address}: {report:?}"));
        }
        let shown = daemon.ctl(&["dev", "vstats", "show", "v"])?;
        lab.say(&shown);
        ensure!(shown.contains("large frames cut into"), "nothing was cut: {shown}");
        let counters = to.shell("busybox grep ^Tcp: /proc/net/snmp")?.output;
        let mut lines = counters.lines().map(str::split_whitespace);
        let (Some(names), Some(values)) = (lines.next(), lines.next()) else { fail!("{counters}") };
        let wrong = names.zip(values).find(|(name, _)| *name == "InCsumErrors");
        ensure!(wrong.is_some_and(|(_, count)| count == "0"), "wrong checksums: {counters}");
        testpmd.quit()?;
        daemon.terminate()
    });
}

/// In order or not, mergeable or not, vectorised or not, with one queue pair and with four.
fn matrix(lab: &Lab, packed: bool) -> Result<()> {
    let mut daemon = Daemon::start(lab, &["--cores", "1"])?;
    let mut turn = 0;
    for queues in [1, 4] {
        let device = format!("vm{queues}");
        daemon.add(&device, &["max_vqp", &queues.to_string()])?;
        for (in_order, mergeable, vectorized) in [
            (false, true, false),
            (true, true, false),
            (false, false, false),
            (true, false, false),
            (false, false, true),
            (true, false, true),
        ] {
            let front = FrontEnd {
                packed,
                in_order,
                mergeable,
                vectorized,
                queues,
                ..FrontEnd::new(daemon.socket(&device))
            };
            turn += 1;
            exchange(lab, &daemon, &format!("turn{turn:02}"), &device, front, DURATION)?.quit()?;
        }
    }
    daemon.check()?;
    daemon.terminate()
}

/// One testpmd's traffic, counted on both sides.
fn exchange(
    lab: &Lab,
    daemon: &Daemon,
    name: &str,
    device: &str,
    front: FrontEnd,
    duration: Duration,
) -> Result<Testpmd> {
    let queues = front.queues;
    let what = format!(
        "{}, in_order={}, mergeable={}, vectorized={}, {queues} pairs",
        if front.packed { "packed" } else { "split" },
        u8::from(front.in_order),
        u8::from(front.mergeable),
        u8::from(front.vectorized),
    );
    lab.say(format_args!("{name}: {what}"));
    let before = daemon.stats(device).unwrap_or_default();
    let mut testpmd = Testpmd::start(lab, name, &Role::front_end(front.clone()), "mac")?;
    let features = daemon.features(device)?;
    for (feature, wanted) in
        [("RING_PACKED", front.packed), ("IN_ORDER", front.in_order), ("MRG_RXBUF", front.mergeable)]
    {
        ensure!(
            features.iter().any(|name| name == feature) == wanted,
            "{what}: {feature} wanted: {wanted}: {features:?}"
        );
    }
    let paths = testpmd.paths()?;
    ensure!(
        !vectorized_is_possible(&front)? || paths.iter().any(|path| path.contains("vectorized Rx")),
        "{what}: {paths:?}"
    );
    testpmd.command("start tx_first 8")?;
    std::thread::sleep(duration);
    testpmd.command("stop")?;
    // Frames that were under way are in the receive rings by now, or soon: take them without sending them again.
    testpmd.command("set fwd rxonly")?;
    testpmd.command("start")?;
    let stats = wait_for("every frame back", WATCHDOG, || {
        let stats = testpmd.stats()?;
        Ok(Some(stats).filter(|stats| stats.rx_packets == stats.tx_packets))
    });
    let last = testpmd.stats()?;
    let after = daemon.stats(device)?;
    let (tx, rx) = (after.tx_packets() - before.tx_packets(), after.rx_packets() - before.rx_packets());
    lab.say(format_args!(
        "{name}: {:.2} million packets a second; testpmd sent {} and received {}, Ringway took {tx} and gave {rx}",
        last.tx_packets as f64 / duration.as_secs_f64() / 1e6,
        last.tx_packets,
        last.rx_packets
    ));
    ensure!(
        after.drops() == before.drops() && after.faults() == 0 && last.rx_nombuf == 0 && last.rx_errors == 0,
        "{what}: drops or faults: {last:?} {before:?} {after:?}"
    );
    ensure!(
        last.tx_packets == tx && tx == rx && rx == last.rx_packets && stats.is_ok(),
        "{what}: frames are missing: {last:?} {before:?} {after:?}"
    );
    ensure!(last.tx_packets > MINIMUM, "{what}: hardly any traffic: {last:?}");
    let by_queue = testpmd.extended_stats()?;
    for queue in 0..queues {
        for (name, side) in [("tx", 1), ("rx", 0)] {
            let theirs = by_queue.get(&format!("{name}_q{queue}_good_packets")).copied().unwrap_or(0);
            let at = (queue * 2 + side) as usize;
            let earlier = before.queues.get(at).map_or(0, |queue| queue.packets);
            let ours = after.queues.get(at).map_or(0, |queue| queue.packets) - earlier;
            ensure!(
                theirs == ours && ours > 0,
                "{what}: {name} queue {queue}: testpmd counts {theirs}, Ringway {ours}"
            );
        }
    }
    testpmd.command("stop")?;
    Ok(testpmd)
}

/// Whether virtio-user has a vectorised receive path for what is asked: packed rings need AVX-512 and in-order use, split
/// rings the absence of the latter; neither takes mergeable buffers.
fn vectorized_is_possible(front: &FrontEnd) -> Result<bool> {
    let avx512 = std::fs::read_to_string("/proc/cpuinfo")?.contains("avx512f");
    let order_fits = if front.packed { front.in_order && avx512 } else { !front.in_order };
    Ok(front.vectorized && !front.mergeable && order_fits)
}

const BYTES: u64 = 40_000_000;
const DURATION: Duration = Duration::from_millis(1500);
/// Some 3,000 a second: far below what the slowest machine moves, far above a wedged ring's handful.
const MINIMUM: u64 = 5000;
