//! The lab proved against itself: DPDK's vhost back-end in Ringway's place. When a test against Ringway fails and these pass, it
//! is not the lab.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::process::{Command, Stdio};
use std::time::Duration;

use ringway_lab::agent::{CastOrder, EchoOrder, Offload};
use ringway_lab::error::Result;
use ringway_lab::image::{Archive, Kernel};
use ringway_lab::lab::{Lab, wait_for};
use ringway_lab::netns::Netns;
use ringway_lab::pace::WATCHDOG;
use ringway_lab::qemu::{Boot, Guest, Nic, all_came_back, every_length, steady_traffic};
use ringway_lab::station::Station;
use ringway_lab::testpmd::{FrontEnd, Role, Testpmd};
use ringway_lab::{ensure, exchange};

#[test]
#[ignore = "needs cpio: run deploy/test"]
fn cpio_lists_what_the_archive_holds() {
    let mut archive = Archive::default();
    archive.folder("bin");
    archive.file("bin/a", 0o755, b"content");
    archive.file("init", 0o755, &[7; 4097]);
    let folder = std::env::temp_dir().join(format!("ringway-lab-cpio-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("a.cpio"), archive.finish()).unwrap();
    let mut cpio = Command::new("cpio");
    cpio.args(["--extract", "--quiet", "--make-directories", "--file=a.cpio"]).current_dir(&folder);
    let status = cpio.stdin(Stdio::null()).status().expect("cpio is not installed: run deploy/test");
    assert!(status.success());
    assert_eq!(std::fs::read(folder.join("bin/a")).unwrap(), b"content");
    assert_eq!(std::fs::read(folder.join("init")).unwrap(), [7; 4097]);
    std::fs::remove_dir_all(folder).unwrap();
}

#[test]
#[ignore = "needs the 6.12 guest kernel and xz: run deploy/test"]
fn the_kernels_modules_come_in_an_order_in_which_they_load() {
    Lab::run("modules", |_| {
        let names: Vec<String> = Kernel::find()?
            .modules(&["virtio_net", "virtio_pci"])?
            .into_iter()
            .map(|module| module.name)
            .collect();
        ensure!(names == ["failover", "net_failover", "virtio_net"], "{names:?}");
        Ok(())
    });
}

#[test]
#[ignore = "needs QEMU >= 8, the 6.12 guest kernel and dpdk-testpmd: run deploy/test"]
fn a_guests_frames_return_from_a_dpdk_back_end() {
    Lab::run("guest-and-dpdk", |lab| {
        let socket = lab.socket("v.sock");
        let mut back = Testpmd::start(lab, "back", &Role::back_end(&socket, 1), "io")?;
        back.command("start")?;
        let nic = Nic::new(1, &socket);
        let mut guest = Guest::boot(lab, "guest", 1, std::slice::from_ref(&nic))?;
        lab.say(format_args!("{:?}", guest.link_up(&nic.mac)?));
        let report = guest.frames(every_length(&nic, 1500))?;
        lab.say(format_args!("{report:?}"));
        all_came_back(&report)?;
        guest.start_traffic(steady_traffic(&nic))?;
        std::thread::sleep(Duration::from_secs(2));
        let report = guest.stop_traffic(&nic.mac)?;
        lab.say(format_args!("{report:?}"));
        ensure!(report.received > 0 && report.corrupt == 0 && report.duplicated == 0, "{report:?}");
        let device = guest.devices()?.remove(0).device;
        guest.unbind(&device)?;
        ensure!(guest.nics()?.is_empty() && !guest.devices()?[0].bound, "still bound");
        guest.bind(&device)?;
        guest.link_up(&nic.mac)?;
        all_came_back(&guest.frames(every_length(&nic, 1500))?)?;
        guest.reboot()?;
        guest.link_up(&nic.mac)?;
        all_came_back(&guest.frames(every_length(&nic, 1500))?)?;
        lab.say(format_args!("{:?}", guest.nic(&nic.mac)?));
        lab.say(format_args!("{:?}", guest.shell("busybox uname -a; exit 3")?));
        guest.power_off()?;
        back.quit()
    });
}

#[test]
#[ignore = "needs QEMU >= 8, the 6.12 guest kernel and dpdk-testpmd: run deploy/test"]
fn a_guests_four_packed_queue_pairs_carry_frames_to_a_dpdk_back_end() {
    Lab::run("guest-and-dpdk-4", |lab| {
        let socket = lab.socket("v.sock");
        let mut back = Testpmd::start(lab, "back", &Role::back_end(&socket, 4), "io")?;
        back.command("start")?;
        let nic = Nic::new(1, &socket).packed(true).pairs(4);
        let mut guest = Guest::boot(lab, "guest", 2, std::slice::from_ref(&nic))?;
        guest.set_channels(&nic.mac, 4)?;
        let shown = guest.link_up(&nic.mac)?;
        ensure!(shown.pairs == 4 && shown.has(34), "{shown:?}");
        all_came_back(&guest.frames(every_length(&nic, 1500))?)?;
        let stats = back.extended_stats()?;
        for queue in 0..4 {
            let name = format!("rx_q{queue}_good_packets");
            ensure!(stats.get(&name).is_some_and(|packets| *packets > 0), "{name} is not above 0: {stats:?}");
        }
        guest.power_off()?;
        back.quit()
    });
}

#[test]
#[ignore = "needs dpdk-testpmd: run deploy/test"]
fn dpdk_front_ends_of_every_kind_talk_to_a_dpdk_back_end() {
    Lab::run("dpdk-and-dpdk", |lab| -> Result<()> {
        let socket = lab.socket("v.sock");
        let mut back = Testpmd::start(lab, "back", &Role::back_end(&socket, 1), "io")?;
        back.command("start")?;
        for (packed, vectorized) in [(false, false), (true, false), (false, true), (true, true)] {
            let front = FrontEnd {
                packed,
                vectorized,
                mergeable: !vectorized,
                in_order: packed,
                ..FrontEnd::new(&socket)
            };
            let name = format!("front{}{}", u8::from(packed), u8::from(vectorized));
            let mut front = Testpmd::start(lab, &name, &Role::front_end(front), "mac")?;
            front.command("start tx_first 8")?;
            std::thread::sleep(Duration::from_millis(500));
            front.command("stop")?;
            front.command("set fwd rxonly")?;
            front.command("start")?;
            let stats = wait_for("every frame back", WATCHDOG, || {
                Ok(Some(front.stats()?).filter(|stats| stats.rx_packets == stats.tx_packets))
            })?;
            lab.say(format_args!("{name}: {stats:?}"));
            ensure!(stats.tx_packets > 256, "no traffic: {stats:?}");
            let queue = front.extended_stats()?.get("rx_q0_good_packets").copied();
            ensure!(queue == Some(stats.rx_packets), "by queue {queue:?}, in all {stats:?}");
            front.quit()?;
        }
        back.quit()
    });
}

#[test]
#[ignore = "needs iproute2 and root: run deploy/test"]
fn two_namespaces_exchange_everything_over_a_veth_pair() {
    Lab::run("namespaces", |lab| {
        let (here, there) = (Netns::new("here")?, Netns::new("there")?);
        here.join("v0", &there, "v1")?;
        let (mut one, mut other) = (here.station(lab, "one")?, there.station(lab, "other")?);
        for (station, nic, last) in [(&mut one, "v0", 1), (&mut other, "v1", 2)] {
            station.add_address(nic, &format!("10.9.0.{last}/24"))?;
            station.add_address(nic, &format!("fd00:9::{last}/64"))?;
            station.set_up(nic)?;
            exchange::serve(station)?;
        }
        for (station, nic) in [(&mut one, "v0"), (&mut other, "v1")] {
            lab.say(format_args!("{:?}", station.link_up(nic)?));
        }
        for to in [FOUR_OF_OTHER, SIX_OF_OTHER] {
            exchange_all(lab, &mut one, &mut other, to, 100 << 20)?;
        }
        let shown = other.shell("busybox ip addr show dev v1; exit 3")?;
        ensure!(shown.code == 3 && shown.output.contains("10.9.0.2/24"), "{shown:?}");
        // An interface that was given away is there, and its addresses are not.
        let third = Netns::new("third")?;
        there.give("v1", &third)?;
        ensure!(other.nics()?.is_empty(), "still there");
        let mut elsewhere = third.station(lab, "elsewhere")?;
        ensure!(elsewhere.nic("v1")?.mac.len() == 17, "not there");
        Ok(())
    });
}

#[test]
#[ignore = "needs QEMU >= 8, the 6.12 guest kernel and dpdk-testpmd: run deploy/test"]
fn two_guests_exchange_everything_over_a_dpdk_back_end() {
    Lab::run("guests-and-dpdk", |lab| {
        let sockets = vec![lab.socket("v0.sock"), lab.socket("v1.sock")];
        let role = Role::BackEnds { sockets: sockets.clone(), queues: 1 };
        let mut back = Testpmd::start(lab, "back", &role, "io")?;
        back.command("start")?;
        let nics = [Nic::new(1, &sockets[0]), Nic::new(2, &sockets[1]).packed(true).without_offloads()];
        let begin = |name, nic| Guest::begin(lab, name, Boot::new(1).ipv6(), std::slice::from_ref(nic));
        let (one, other) = (begin("one", &nics[0])?, begin("other", &nics[1])?);
        let (mut one, mut other) = (one.wait_until_up(lab)?, other.wait_until_up(lab)?);
        for (guest, nic, last) in [(&mut one, &nics[0], 1), (&mut other, &nics[1], 2)] {
            guest.add_address(&nic.mac, &format!("10.9.0.{last}/24"))?;
            guest.add_address(&nic.mac, &format!("fd00:9::{last}/64"))?;
            lab.say(format_args!("{:?}", guest.link_up(&nic.mac)?));
            exchange::serve(guest)?;
        }
        let shown = [one.nic(&nics[0].mac)?, other.nic(&nics[1].mac)?];
        for feature in [VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM] {
            ensure!(shown[0].has(feature) && !shown[1].has(feature), "feature {feature}: {shown:?}");
        }
        for to in [FOUR_OF_OTHER, SIX_OF_OTHER] {
            exchange_all(lab, &mut one, &mut other, to, 16 << 20)?;
        }
        // TCP has had its own losses.
        let lost_before = back.port_stats(0)?.rx_packets - back.port_stats(1)?.tx_packets;
        let (sent, received) = exchange::udp(&mut one, &mut other, FOUR_OF_OTHER, (20_000, 1000, 0))?;
        lab.say(format_args!("flood: {sent:?} {received:?}"));
        wait_for("equal counters of guests and testpmd", WATCHDOG, || {
            // A driver counts what it sent when it gets it back, for which it takes its time until it is spoken to.
            let few = EchoOrder { longest: 3, ..exchange::every_size(FOUR_OF_OTHER, 1500) };
            exchange::echo(&mut one, few)?;
            let ports = [back.port_stats(0)?, back.port_stats(1)?];
            let guests = [one.nic(&nics[0].mac)?, other.nic(&nics[1].mac)?];
            let lost = ports[0].rx_packets - ports[1].tx_packets - lost_before;
            let equal = (0..2).all(|side| {
                guests[side].tx_packets == ports[side].rx_packets
                    && guests[side].rx_packets == ports[side].tx_packets
            });
            let accounted = lost + received.overflowed == sent.sent - received.received;
            Ok((equal && accounted).then(|| lab.say(format_args!("counters agree: {ports:?}"))))
        })?;
        let nic = nics[0].mac.as_str();
        for on in [false, true] {
            // DPDK's back-end cuts no TCP segments, so TSO stays off.
            for offload in [Offload::TxChecksum, Offload::Gso, Offload::Gro] {
                one.set_offload(nic, offload, on)?;
                ensure!(one.nic(nic)?.offloads.contains(&offload) == on, "{offload:?} should be {on}");
            }
        }
        one.start_pulse(FOUR_OF_OTHER, 5)?;
        std::thread::sleep(Duration::from_secs(1));
        let report = one.stop_pulse(FOUR_OF_OTHER)?;
        lab.say(format_args!("{report:?}"));
        ensure!(report.received > 0 && report.corrupt == 0 && report.duplicated == 0, "{report:?}");
        let source = "02:00:00:00:00:77".to_string();
        let before = other.nic(&nics[1].mac)?.rx_packets;
        let destination = nics[1].mac.clone();
        one.cast(CastOrder { nic: nic.into(), destination, source, length: 100, frames: 50 })?;
        wait_for("50 frames of another source", WATCHDOG, || {
            Ok((other.nic(&nics[1].mac)?.rx_packets >= before + 50).then_some(()))
        })?;
        one.power_off()?;
        other.power_off()?;
        back.quit()
    });
}

#[test]
#[ignore = "needs dpdk-testpmd: run deploy/test"]
fn frames_circulate_between_two_ports_over_a_dpdk_back_end() {
    Lab::run("dpdk-pair", |lab| {
        let sockets = vec![lab.socket("v0.sock"), lab.socket("v1.sock")];
        let role = Role::BackEnds { sockets: sockets.clone(), queues: 1 };
        let mut back = Testpmd::start(lab, "back", &role, "io")?;
        back.command("start")?;
        let macs = ["52:54:00:00:00:01", "52:54:00:00:00:02"].map(String::from);
        let front = |port: usize| FrontEnd {
            packed: port == 1,
            mac: Some(macs[port].clone()),
            peer: Some(macs[1 - port].clone()),
            ..FrontEnd::new(&sockets[port])
        };
        let mut pair = Testpmd::start(lab, "pair", &Role::FrontEnds(vec![front(0), front(1)]), "mac")?;
        let stats = pair.circulate(2, 4, Duration::from_secs(1))?;
        lab.say(format_args!("{stats:?}"));
        for (sender, receiver) in [(0, 1), (1, 0)] {
            ensure!(
                stats[sender].tx_packets == stats[receiver].rx_packets && stats[sender].tx_packets > 1000,
                "frames are missing from {sender} to {receiver}: {stats:?}"
            );
        }
        pair.quit()?;
        back.quit()
    });
}

/// Echo of every size, TCP each way, UDP without a loss.
fn exchange_all(lab: &Lab, one: &mut Station, other: &mut Station, to: IpAddr, bytes: u64) -> Result<()> {
    lab.say(format_args!("{to}: {:?}", exchange::echo(one, exchange::every_size(to, 1500))?));
    lab.say(format_args!("{to}: {:?}", exchange::echo(one, exchange::fragmented_sizes(to, 1500))?));
    let report = exchange::tcp(one, other, to, bytes)?;
    lab.say(format_args!("{to}: {report:?}"));
    let (sent, received) = exchange::udp(one, other, to, (2000, 1000, 2000))?;
    lab.say(format_args!("{to}: {sent:?} {received:?}"));
    ensure!(
        sent.sent == 2000 && received.received == 2000 && received.overflowed == 0,
        "datagrams are missing"
    );
    Ok(())
}

const FOUR_OF_OTHER: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 2));
const SIX_OF_OTHER: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfd00, 9, 0, 0, 0, 0, 0, 2));
const VIRTIO_NET_F_CSUM: u32 = 0;
const VIRTIO_NET_F_GUEST_CSUM: u32 = 1;
