//! The rules that a back-end must pass, one check a rule, each over a real socket against a session with `sim/net`.

use std::os::fd::AsFd;
use std::sync::Arc;

use ringway_control::frontends::life::status;
use ringway_control::frontends::session::{Command, Report};
use ringway_pmd::counters::DropReason;
use ringway_pmd::net::MIN_MTU;
use ringway_pmd::notify::EventFd;
use ringway_ring::features::Features;
use ringway_ring::memory::{HostMemory, PageKind};
use ringway_ring::position::Position;
use ringway_ring::queue::Format;
use ringway_vhost_user::frontend::{BackendMessage, Frontend, FrontendError, MemoryRegion, VringAddr};
use ringway_vhost_user::message::{
    ConfigRange, FLAG_NEED_REPLY, MemRegion, Request, VRING_NO_FD, VringAddrs, VringState, encode_mem_table,
    protocol,
};

use crate::support::*;

/// A rule: its number and text in the project's reference, and what checks it or why nothing does.
struct Row {
    number: u8,
    rule: &'static str,
    check: Check,
}

enum Check {
    By(fn()),
    Waived(&'static str),
}
use Check::{By, Waived};

const ROWS: &[Row] = &[
    row(
        1,
        "protocol features may be settled before features; bit 30 need not be acked",
        By(protocol_features_first),
    ),
    row(2, "features without bit 30 enable all rings, with it they start disabled", By(bit_30_and_enabling)),
    row(3, "started and enabled are independent", By(started_and_enabled)),
    row(4, "a ring starts with its kick descriptor, or without one is polled", By(start_of_a_ring)),
    row(5, "started and disabled: nothing is delivered, what is sent is dropped", By(started_but_disabled)),
    row(6, "GET_VRING_BASE stops and returns the position", By(stop_returns_the_position)),
    row(7, "all rings stopped: no writes to the guest, requests are answered", By(suspended)),
    row(8, "CALL, ERR, KICK, ENABLE and MEM_TABLE may change while running", By(changes_while_running)),
    row(9, "need_reply is answered, GET messages are unchanged by it", By(acknowledgements)),
    row(10, "SET_MEM_TABLE replaces the set; unmapped rings fail alone", By(memory_table)),
    row(11, "ADD_MEM_REG and REM_MEM_REG", By(memory_slots)),
    row(12, "ring addresses are the front-end's own", By(user_addresses)),
    row(13, "dirty log", Waived("comes with migration; LOG_SHMFD and LOG_ALL are not offered: see row 23")),
    row(14, "IOTLB", Waived("comes with a vIOMMU; ACCESS_PLATFORM is not offered: see row 23")),
    row(15, "configuration space", By(configuration)),
    row(16, "split in-flight records", By(split_records)),
    row(17, "packed in-flight records", By(packed_records)),
    row(18, "a reconnecting front-end repeats the handshake and goes on", By(reconnect)),
    row(19, "device state", Waived("comes with migration; DEVICE_STATE is not offered: see row 23")),
    row(20, "host notifier", Waived("comes with hardware rings; HOST_NOTIFIER is not offered: see row 23")),
    row(21, "STATUS", By(device_status)),
    row(22, "RESET_DEVICE; INBAND_NOTIFICATIONS needs BACKEND_REQ and REPLY_ACK", By(reset_and_in_band)),
    row(23, "what is wrong, unknown or not offered is refused", By(refusals)),
    row(24, "conventions of back-end programs", Waived("are the daemon's, not the protocol's")),
];

const fn row(number: u8, rule: &'static str, check: Check) -> Row {
    Row { number, rule, check }
}

#[test]
fn every_rule_is_checked_or_waived_with_a_reason() {
    for (row, number) in ROWS.iter().zip(1..) {
        assert_eq!(row.number, number);
        match row.check {
            By(check) => {
                println!("{number:2}  {}", row.rule);
                check();
            }
            Waived(why) => println!("{number:2}  {}: waived: it {why}", row.rule),
        }
    }
    assert_eq!(ROWS.len(), 24);
}

fn protocol_features_first() {
    let (_running, stream) = start_sim("row1", 1);
    let mut peer = Raw::new(stream);
    peer.agree();
    let (mut running, mut frontend) = sim_with_frontend("row1", 1);
    let offered = frontend.handshake_with(0).unwrap();
    assert!(offered.contains(Features::VERSION_1));
    // Bit 30 was offered and is not acked.
    frontend.send(Request::SetFeatures, &Features::VERSION_1.0.to_ne_bytes(), &[]).unwrap();
    let features = running.wait_for(|report| match report {
        Report::Negotiated { features, .. } => Some(*features),
        _ => None,
    });
    assert_eq!(features, Features::VERSION_1);
}

fn bit_30_and_enabling() {
    for (bit_30, enabled) in [(Features::NONE, true), (Features::PROTOCOL_FEATURES, false)] {
        let (mut running, mut frontend) = sim_with_frontend("row2", 2);
        frontend.handshake().unwrap();
        frontend.send(Request::SetFeatures, &(Features::VERSION_1 | bit_30).0.to_ne_bytes(), &[]).unwrap();
        running.wait_for_rings(|rings| rings.iter().all(|ring| ring.enabled == enabled && !ring.started));
    }
    // Traffic without a single SET_VRING_ENABLE.
    let (_running, mut frontend) = sim_with_frontend("row2", 1);
    let rig = Rig::new(Format::Split, 2);
    frontend.handshake().unwrap();
    frontend.send(Request::SetFeatures, &rig.features.0.to_ne_bytes(), &[]).unwrap();
    frontend.set_mem_table(&[rig.region()]).unwrap();
    let mut pair = HandPair::new(&rig, 0, Position::START);
    rig.start_ring(&mut frontend, 0, 0);
    rig.start_ring(&mut frontend, 1, 0);
    pair.exchange(3);
}

fn started_and_enabled() {
    let (mut running, mut frontend) = sim_with_frontend("row3", 1);
    let rig = Rig::new(Format::Split, 2);
    rig.introduce(&mut frontend);
    frontend.enable_ring(0, true).unwrap();
    running.wait_for_rings(|rings| rings[0].enabled && !rings[0].started);
    rig.start_ring(&mut frontend, 1, 0);
    running.wait_for_rings(|rings| rings[1].started && !rings[1].enabled && rings[0].core().is_none());
    frontend.stop_ring(1).unwrap();
    rig.start_ring(&mut frontend, 0, 0);
    running.wait_for_rings(|rings| rings[0].started && rings[0].enabled && rings[0].core().is_some());
    frontend.stop_ring(0).unwrap();
    running.wait_for_rings(|rings| !rings[0].started && rings[0].enabled);
}

fn start_of_a_ring() {
    let (mut running, mut frontend) = sim_with_frontend("row4", 1);
    let rig = Rig::new(Format::Split, 2);
    frontend.handshake().unwrap();
    // In the most unusual order: kick first, memory last.
    let kick = Arc::new(EventFd::new().unwrap());
    for queue in 0..2 {
        frontend.set_vring_kick(queue, Some(kick.as_fd())).unwrap();
        frontend.enable_ring(queue, true).unwrap();
        frontend.set_vring_addr(queue, rig.addr(queue)).unwrap();
        let num = VringState { index: queue, num: Rig::SIZE.into() }.encode();
        frontend.send(Request::SetVringNum, &num, &[]).unwrap();
    }
    frontend.set_features(rig.features).unwrap();
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.kick = Some(Arc::clone(&kick));
    pair.post(1);
    pair.send(1);
    pair.rests();
    frontend.set_mem_table(&[rig.region()]).unwrap();
    pair.settle(1, true);
    let rings = running.wait_for_rings(|rings| rings.iter().all(|ring| ring.core().is_some()));
    assert!(rings.iter().all(|ring| ring.kicks));
    // Kicks without reason are harmless.
    for _ in 0..1000 {
        kick.signal();
    }
    pair.exchange(10);
    // Polled: no descriptor, no kick.
    pair.kick = None;
    for queue in 0..2 {
        frontend.set_vring_kick(queue, None).unwrap();
    }
    running.wait_for_rings(|rings| rings.iter().all(|ring| ring.core().is_some() && !ring.kicks));
    pair.exchange(10);
}

fn started_but_disabled() {
    for format in [Format::Split, Format::Packed] {
        let (running, mut frontend) = sim_with_frontend("row5", 1);
        let rig = Rig::new(format, 2);
        rig.introduce(&mut frontend);
        let mut pair = HandPair::new(&rig, 0, Position::START);
        rig.start_ring(&mut frontend, 0, rig.fresh());
        rig.start_ring(&mut frontend, 1, rig.fresh());
        pair.post(8);
        pair.send(5);
        // Not told yet whether it is enabled: a ring that was just started keeps what is in it.
        pair.rests();
        frontend.enable_ring(0, false).unwrap();
        frontend.enable_ring(1, false).unwrap();
        pair.settle(5, false);
        // They are given back before they are counted.
        eventually(|| running.shared.counters[1].snapshot().drops.contains(&(DropReason::TxDisabled, 5)));
        frontend.enable_ring(0, true).unwrap();
        frontend.enable_ring(1, true).unwrap();
        pair.send(5);
        pair.settle(5, true);
        // The transmit queue alone: what it sends has nowhere to go.
        frontend.enable_ring(0, false).unwrap();
        pair.send(1);
        pair.settle(1, false);
    }
}

fn stop_returns_the_position() {
    for format in [Format::Split, Format::Packed] {
        let (mut running, mut frontend) = sim_with_frontend("row6", 1);
        let rig = Rig::new(format, 2);
        rig.introduce(&mut frontend);
        // From a place that is not the start, past the end of the ring.
        let at = match format {
            Format::Split => Position { avail_idx: 65530, used_idx: 65530, ..Position::START },
            Format::Packed => Position { avail_idx: 60, avail_wrap: false, used_idx: 60, used_wrap: false },
        };
        let mut pair = HandPair::new(&rig, 0, at);
        pair.start(&mut frontend, at.to_vhost_base(format));
        // More buffers than frames: those not filled are given back.
        pair.post(6);
        pair.exchange(10);
        let after = |count: u16| {
            let moved = match format {
                Format::Split => Position {
                    avail_idx: 65530u16.wrapping_add(count),
                    used_idx: 65530u16.wrapping_add(count),
                    ..at
                },
                Format::Packed => {
                    let idx = 60 + count;
                    let (idx, wrap) = if idx >= Rig::SIZE { (idx - Rig::SIZE, true) } else { (idx, false) };
                    Position { avail_idx: idx, avail_wrap: wrap, used_idx: idx, used_wrap: wrap }
                }
            };
            moved.to_vhost_base(format)
        };
        let bases = [frontend.stop_ring(0).unwrap(), frontend.stop_ring(1).unwrap()];
        assert_eq!(bases, [after(10), after(10)], "{format:?}");
        running.wait_for_rings(|rings| rings.iter().all(|ring| !ring.started && ring.core().is_none()));
        // And on from there, both halves of a packed base included.
        for queue in 0..2 {
            rig.start_ring(&mut frontend, queue, bases[queue as usize]);
        }
        pair.send(3);
        pair.settle(3, true);
        // Stopped twice: the same answer. A stray number in the request is no matter.
        let base = frontend.stop_ring(1).unwrap();
        let answer =
            frontend.query(Request::GetVringBase, &VringState { index: 1, num: 77 }.encode()).unwrap();
        assert_eq!(VringState::decode(answer.payload().unwrap()), VringState { index: 1, num: base });
    }
    // DPDK's packed base: the lower half alone.
    let (_running, mut frontend) = sim_with_frontend("row6", 1);
    let rig = Rig::new(Format::Packed, 2);
    rig.introduce(&mut frontend);
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, 0x8000);
    pair.exchange(3);
    assert_eq!(frontend.stop_ring(0).unwrap(), 0x8003_8003);
}

fn suspended() {
    let (_running, mut frontend) = sim_with_frontend("row7", 1);
    let rig = Rig::new(Format::Split, 2);
    rig.introduce(&mut frontend);
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, 0);
    pair.exchange(5);
    frontend.stop_ring(0).unwrap();
    frontend.stop_ring(1).unwrap();
    pair.post(4);
    pair.send(4);
    pair.rests();
    assert_eq!(frontend.queue_num().unwrap(), 1);
    assert_eq!(frontend.status().unwrap(), 0);
}

fn changes_while_running() {
    let (_running, mut frontend) = sim_with_frontend("row8", 1);
    let rig = Rig::new(Format::Packed, 2);
    rig.introduce(&mut frontend);
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, rig.fresh());
    let [kick, call, err] = [(); 3].map(|()| Arc::new(EventFd::new().unwrap()));
    pair.kick = Some(Arc::clone(&kick));
    pair.exchange(3);
    pair.rx.enable_calls();
    for round in 0..20 {
        // With a frame on its way through, but for ENABLE, which may drop it.
        if round % 5 != 3 {
            pair.post(1);
            pair.send(1);
        }
        match round % 5 {
            0 => frontend.set_vring_call(0, Some(call.as_fd())).unwrap(),
            1 => frontend.set_vring_err(1, Some(err.as_fd())).unwrap(),
            2 => frontend.set_vring_kick(1, Some(kick.as_fd())).unwrap(),
            3 => {
                frontend.enable_ring(0, false).unwrap();
                frontend.enable_ring(0, true).unwrap();
                pair.post(1);
                pair.send(1);
            }
            _ => frontend.set_mem_table(&[rig.region()]).unwrap(),
        }
        pair.settle(1, true);
    }
    assert!(call.clear(), "the new call descriptor is used");
    assert!(!err.clear());
}

fn acknowledgements() {
    let (_running, stream) = start_sim("row9", 1);
    let mut peer = Raw::new(stream);
    peer.agree();
    assert_eq!(peer.ask(Request::SetOwner, &[], &[]), Some(0));
    assert_eq!(peer.ask(Request::SetFeatures, &Features::VERSION_1.0.to_ne_bytes(), &[]), Some(0));
    assert_ne!(peer.ask(Request::SetFeatures, &u64::MAX.to_ne_bytes(), &[]), Some(0));
    for flags in [0, FLAG_NEED_REPLY] {
        assert!(peer.send(Request::GetProtocolFeatures as u32, flags, &[], &[]));
        let Heard::Answer(frame) = peer.hear() else { panic!("closed") };
        assert_eq!(frame.payload(), Some(&protocol::OFFERED.to_ne_bytes()[..]));
    }
    // Nothing is answered that was not to be: the next thing heard answers the next request.
    assert!(peer.send(Request::SetVringEnable as u32, 0, &VringState { index: 0, num: 1 }.encode(), &[]));
    assert!(peer.send(Request::GetQueueNum as u32, 0, &[], &[]));
    let Heard::Answer(frame) = peer.hear() else { panic!("closed") };
    assert_eq!(frame.header.request, Request::GetQueueNum as u32);
}

fn memory_table() {
    let (mut running, mut frontend) = sim_with_frontend("row10", 1);
    let rig = Rig::new(Format::Split, 2);
    rig.introduce(&mut frontend);
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, 0);
    pair.exchange(3);
    // Eight regions, at offsets in one file, with the rig's between them.
    let extra = HostMemory::allocate_on(PageKind::Base, "extra", 8 << 12).unwrap();
    let more = |n: u64| MemoryRegion {
        gpa: n << 32 | 1 << 40,
        size: 4096,
        user_addr: extra.address() + (n << 12),
        file_offset: n << 12,
        file: extra.file(),
    };
    let mut regions: Vec<_> = (0..7).map(more).collect();
    regions.insert(3, rig.region());
    frontend.set_mem_table(&regions).unwrap();
    assert_eq!(
        running.wait_for(|report| match report {
            Report::Memory { regions: 8, bytes } => Some(*bytes),
            _ => None,
        }),
        rig.memory.size() + 7 * 4096
    );
    pair.exchange(3);
    // Nine are refused, and so are overlaps and regions beyond their file; what was stays.
    let wire: Vec<_> =
        (0..9).map(|n| MemRegion { gpa: n << 32, size: 4096, user_addr: n << 32, mmap_offset: 0 }).collect();
    let refused = frontend.send(Request::SetMemTable, &encode_mem_table(&wire), &[extra.file(); 8]);
    assert!(matches!(refused, Err(FrontendError::Refused { .. })), "{refused:?}");
    let beyond = MemoryRegion { size: 1 << 30, ..more(0) };
    assert!(frontend.set_mem_table(&[rig.region(), beyond]).is_err());
    assert!(
        frontend
            .set_mem_table(&[rig.region(), more(1), MemoryRegion { gpa: more(1).gpa + 4095, ..more(2) }])
            .is_err()
    );
    pair.exchange(3);
    // Without the rings' region the rings fail, and only they; with it they go on where they were.
    frontend.set_mem_table(&[more(0)]).unwrap();
    running.wait_for_rings(|rings| rings.iter().all(|ring| ring.fault == Some("ring_unmapped")));
    assert_eq!(frontend.queue_num().unwrap(), 1);
    pair.post(1);
    pair.send(1);
    pair.rests();
    frontend.set_mem_table(&[more(0), rig.region()]).unwrap();
    pair.settle(1, true);
    running.wait_for_rings(|rings| rings.iter().all(|ring| ring.fault.is_none() && ring.core().is_some()));
    assert_eq!(frontend.status().unwrap() & status::NEEDS_RESET, 0);
}

fn memory_slots() {
    let (mut running, mut frontend) = sim_with_frontend("row11", 1);
    let rig = Rig::new(Format::Split, 2);
    frontend.handshake().unwrap();
    let slots = frontend.max_mem_slots().unwrap();
    assert_eq!(slots, 509);
    frontend.set_features(rig.features).unwrap();
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, 0);
    frontend.add_mem_reg(&rig.region()).unwrap();
    pair.exchange(3);
    let extra = HostMemory::allocate_on(PageKind::Base, "extra", 4096).unwrap();
    let more = |n: u64| MemoryRegion {
        gpa: 1 << 40 | n << 12,
        size: 4096,
        user_addr: 1 << 40 | n << 12,
        file_offset: 0,
        file: extra.file(),
    };
    for n in 1..slots {
        frontend.add_mem_reg(&more(n)).unwrap();
    }
    assert!(frontend.add_mem_reg(&more(slots)).is_err(), "slot 510");
    pair.exchange(3);
    // Without its descriptor; with two.
    let single = wire(&more(slots)).encode_single();
    assert!(frontend.send(Request::AddMemReg, &single, &[]).is_err());
    assert!(frontend.send(Request::AddMemReg, &single, &[extra.file(), extra.file()]).is_err());
    // Removed by addresses and size, whatever the offset says; a stray descriptor is no matter; twice is.
    let single = MemRegion { mmap_offset: 12345, ..wire(&more(7)) }.encode_single();
    frontend.send(Request::RemMemReg, &single, &[extra.file()]).unwrap();
    assert!(frontend.rem_mem_reg(&more(7)).is_err());
    frontend.add_mem_reg(&more(7)).unwrap();
    for n in 1..slots {
        frontend.rem_mem_reg(&more(n)).unwrap();
    }
    pair.exchange(3);
    frontend.rem_mem_reg(&rig.region()).unwrap();
    running.wait_for_rings(|rings| rings.iter().all(|ring| ring.fault == Some("ring_unmapped")));
    frontend.add_mem_reg(&rig.region()).unwrap();
    pair.exchange(3);
}

fn wire(region: &MemoryRegion<'_>) -> MemRegion {
    let MemoryRegion { gpa, size, user_addr, file_offset, .. } = *region;
    MemRegion { gpa, size, user_addr, mmap_offset: file_offset }
}

fn user_addresses() {
    let (mut running, mut frontend) = sim_with_frontend("row12", 1);
    let rig = Rig::new(Format::Split, 2);
    rig.introduce(&mut frontend);
    // By guest physical address: no such ring.
    let shift = Rig::GPA.wrapping_sub(rig.memory.address());
    let VringAddr { desc, driver, device, log } = rig.addr(0);
    let gpa = VringAddr {
        desc: desc.wrapping_add(shift),
        driver: driver.wrapping_add(shift),
        device: device.wrapping_add(shift),
        log,
    };
    frontend.enable_ring(0, true).unwrap();
    frontend.start_ring(0, Rig::SIZE.into(), 0, gpa, None, None).unwrap();
    running.wait_for_rings(|rings| rings[0].fault == Some("ring_unmapped"));
    // The log bit was not offered.
    let logged = VringAddrs { index: 0, flags: VringAddrs::FLAG_LOG, desc, device, driver, log: 0 };
    assert!(frontend.send(Request::SetVringAddr, &logged.encode(), &[]).is_err());
    for (addr, fault) in [
        (VringAddr { desc: desc + 8, ..rig.addr(0) }, "ring_misaligned"),
        (VringAddr { driver: driver + 1, ..rig.addr(0) }, "ring_misaligned"),
        (VringAddr { device: device + 2, ..rig.addr(0) }, "ring_misaligned"),
        // One byte too far.
        (
            VringAddr { desc: rig.memory.address() + rig.memory.size() - 16 * 64 + 16, ..rig.addr(0) },
            "ring_unmapped",
        ),
        (VringAddr { device: u64::MAX - 3, ..rig.addr(0) }, "ring_unmapped"),
    ] {
        frontend.set_vring_addr(0, rig.addr(0)).unwrap();
        running.wait_for_rings(|rings| rings[0].fault.is_none() && rings[0].core().is_some());
        frontend.set_vring_addr(0, addr).unwrap();
        running.wait_for_rings(|rings| rings[0].fault == Some(fault) && rings[0].core().is_none());
    }
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, 0);
    pair.exchange(3);
}

fn configuration() {
    let (running, mut frontend) = sim_with_frontend("row15", 2);
    frontend.handshake().unwrap();
    let config = frontend.config(0, 12).unwrap();
    assert_eq!(u16::from_le_bytes([config[8], config[9]]), 2, "queue pairs");
    assert_eq!(u16::from_le_bytes([config[10], config[11]]), 9000, "MTU");
    assert_eq!(frontend.config(6, 4).unwrap(), &config[6..10]);
    // Behind the device's own bytes there are zeros, up to what a message can carry.
    assert_eq!(frontend.config(12, 244).unwrap(), [0; 244]);
    for (offset, size) in [(0, 0), (255, 2), (u32::MAX, 1), (256, 1)] {
        let refused = frontend.config(offset, size);
        assert!(matches!(refused, Err(FrontendError::Refused { .. })), "{offset}+{size}: {refused:?}");
    }
    // Nothing can be written; a migration may say what is there.
    assert!(frontend.set_config(0, &[1, 2, 3, 4, 5, 6], false).is_err());
    assert!(frontend.set_config(0, &[1], true).is_err());
    frontend.set_config(0, &config, true).unwrap();
    // A change is told on the back-end channel.
    frontend.set_backend_req_fd().unwrap();
    assert!(running.handle.send(Command::ConfigChanged));
    assert_eq!(frontend.backend_message(SOON).unwrap(), Some(BackendMessage::ConfigChanged));
    // The MTU; and an announcement.
    frontend.set_mtu(1500).unwrap();
    frontend.set_mtu(9000).unwrap();
    assert!(frontend.set_mtu(9001).is_err());
    assert!(frontend.set_mtu(MIN_MTU - 1).is_err());
    assert!(frontend.send(Request::NetSetMtu, &0x1_0000_05dcu64.to_ne_bytes(), &[]).is_err());
    frontend.send_rarp([2, 0, 0, 0, 0, 1]).unwrap();
}

fn split_records() {
    crate::inflight::records_are_the_front_ends(Format::Split);
}

fn packed_records() {
    crate::inflight::records_are_the_front_ends(Format::Packed);
}

fn reconnect() {
    for format in [Format::Split, Format::Packed] {
        let (mut running, mut frontend) = sim_with_frontend("row18", 1);
        let rig = Rig::new(format, 2);
        let mut pair = HandPair::new(&rig, 0, Position::START);
        rig.introduce(&mut frontend);
        frontend.handshake().expect("a second SET_OWNER changes nothing");
        pair.start(&mut frontend, rig.fresh());
        // In the third and fourth round the receive ring is full: not one descriptor of it is used.
        pair.post(10);
        pair.exchange(70);
        for round in 1..5 {
            if round == 3 {
                let room = pair.rx.free_slots() as u32;
                pair.post(room);
            }
            // Lost without a word, with buffers posted and frames on their way.
            drop(frontend);
            let shared = running.shared.clone();
            let (device, _) = running.wait_for_end();
            pair.send(3);
            let (again, stream) = start(device.unwrap(), shared);
            running = again;
            frontend = Frontend::from_stream(stream);
            rig.introduce(&mut frontend);
            let base = match format {
                // QEMU reads the used index; DPDK says 0 and leaves it to us.
                Format::Split if round % 2 == 0 => (70 * round + 3 * (round - 1)) & 0xffff,
                Format::Split => 0,
                // Nobody can know: what it was at first.
                Format::Packed => rig.fresh(),
            };
            pair.start(&mut frontend, base);
            pair.settle(3, true);
            pair.post(3);
            for _ in 0..70 {
                pair.send(1);
                pair.settle(1, true);
                pair.post(1);
            }
        }
    }
}

fn device_status() {
    let (mut running, mut frontend) = sim_with_frontend("row21", 1);
    let rig = Rig::new(Format::Split, 2);
    frontend.handshake().unwrap();
    assert_eq!(frontend.status().unwrap(), 0);
    let acked = status::ACKNOWLEDGE | status::DRIVER;
    frontend.set_status(acked | status::FEATURES_OK).unwrap();
    assert_eq!(frontend.status().unwrap(), acked, "FEATURES_OK does not hold before features");
    frontend.set_features(rig.features).unwrap();
    frontend.set_mem_table(&[rig.region()]).unwrap();
    frontend.set_status(acked | status::FEATURES_OK).unwrap();
    assert_eq!(frontend.status().unwrap(), acked | status::FEATURES_OK);
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, 0);
    pair.post(2);
    pair.send(1);
    // Nothing before DRIVER_OK.
    pair.rests();
    frontend.set_status(acked | status::FEATURES_OK | status::DRIVER_OK).unwrap();
    pair.settle(1, true);
    running.wait_for(|report| matches!(report, Report::Status(15)).then_some(()));
    // Bits are not taken back, and there are eight.
    assert!(frontend.set_status(acked).is_err());
    assert!(frontend.send(Request::SetStatus, &256u64.to_ne_bytes(), &[]).is_err());
    assert_eq!(frontend.status().unwrap(), 15);
    // 0 resets: rings stop and are disabled.
    frontend.set_status(0).unwrap();
    pair.send(1);
    pair.rests();
    running.wait_for_rings(|rings| rings.iter().all(|ring| !ring.started && !ring.enabled));
    assert_eq!(frontend.status().unwrap(), 0);
    // And again from the start, with the memory that is there.
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, 0);
    pair.exchange(3);
    frontend.set_status(15).unwrap();
    pair.exchange(3);
    frontend.set_status(status::FAILED | 15).unwrap();
    pair.send(1);
    pair.rests();
}

fn reset_and_in_band() {
    let (mut running, mut frontend) = sim_with_frontend("row22", 1);
    let rig = Rig::new(Format::Packed, 2);
    rig.introduce(&mut frontend);
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, rig.fresh());
    pair.exchange(5);
    frontend.reset_device().unwrap();
    running.wait_for_rings(|rings| rings.iter().all(|ring| !ring.started && !ring.enabled));
    pair.send(1);
    pair.rests();
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, rig.fresh());
    pair.exchange(5);
    // RESET_OWNER, which is deprecated, disables.
    frontend.send(Request::ResetOwner, &[], &[]).unwrap();
    running.wait_for_rings(|rings| rings.iter().all(|ring| ring.started && !ring.enabled));

    let (running, stream) = start_sim("row22", 1);
    let mut peer = Raw::new(stream);
    let bits = protocol::INBAND_NOTIFICATIONS | protocol::REPLY_ACK;
    assert_eq!(peer.ask(Request::SetProtocolFeatures, &bits.to_ne_bytes(), &[]), None);
    let (_, reason) = running.wait_for_end();
    assert!(reason.contains("INBAND_NOTIFICATIONS"), "{reason}");

    // Kicks and calls as messages.
    let (mut running, mut frontend) = sim_with_frontend("row22", 1);
    rig.introduce(&mut frontend);
    frontend.set_backend_req_fd().unwrap();
    let mut pair = HandPair::new(&rig, 0, Position::START);
    pair.start(&mut frontend, rig.fresh());
    pair.exchange(1);
    frontend.kick_in_band(0).unwrap();
    frontend.kick_in_band(1).unwrap();
    running.wait_for_rings(|rings| rings.iter().all(|ring| ring.kicks && ring.core().is_some()));
    for _ in 0..3 {
        pair.rx.enable_calls();
        pair.post(1);
        pair.send(1);
        frontend.kick_in_band(1).unwrap();
        pair.settle(1, true);
        let called = std::iter::from_fn(|| frontend.backend_message(SOON).unwrap());
        assert!(called.into_iter().any(|message| message == BackendMessage::Call(0)));
    }
}

fn refusals() {
    // Everything that is not offered, with the payload that it has.
    let unsupported = [
        (Request::SetLogBase, 16),
        (Request::SetLogFd, 0),
        (Request::IotlbMsg, 32),
        (Request::SetVringEndian, 8),
        (Request::CreateCryptoSession, 100),
        (Request::CloseCryptoSession, 8),
        (Request::PostcopyAdvise, 0),
        (Request::PostcopyListen, 0),
        (Request::PostcopyEnd, 0),
        (Request::GpuSetSocket, 0),
        (Request::GetSharedObject, 16),
        (Request::SetDeviceStateFd, 8),
        (Request::CheckDeviceState, 0),
        (Request::GetShmemConfig, 0),
    ];
    let (mut running, stream) = start_sim("row23", 1);
    let mut peer = Raw::new(stream);
    peer.agree();
    let file = HostMemory::allocate_on(PageKind::Base, "file", 4096).unwrap();
    let fd = [file.file()];
    for (request, size) in unsupported {
        for fds in [&[][..], &fd] {
            assert_eq!(peer.ask(request, &vec![0; size], fds), Some(1), "{request:?}");
        }
    }
    assert_eq!(running.wait_for_breach(), "request_unsupported");
    // Without need_reply, the connection is closed.
    for (request, size) in unsupported {
        let (running, stream) = start_sim("row23", 1);
        let mut peer = Raw::new(stream);
        assert!(peer.send(request as u32, 0, &vec![0; size], &[]));
        assert!(matches!(peer.hear(), Heard::Closed), "{request:?}");
        let (device, reason) = running.wait_for_end();
        assert!(device.is_some() && reason.starts_with("request_unsupported"), "{reason}");
    }
    // Unknown numbers, the reply flag, descriptors where none belong, both or neither with a kick, a wrong index.
    let index = |index: u64| index.to_ne_bytes();
    for number in [0, 45, 1000, u32::MAX] {
        assert!(peer.send(number, FLAG_NEED_REPLY, &[], &[]));
        assert!(
            matches!(peer.hear(), Heard::Answer(frame) if frame.payload() == Some(&1u64.to_ne_bytes()[..]))
        );
    }
    let state = |index, num| VringState { index, num }.encode();
    assert_eq!(peer.ask(Request::SetOwner, &[], &fd), Some(1));
    assert_eq!(peer.ask(Request::SetVringKick, &index(0), &[]), Some(1));
    assert_eq!(peer.ask(Request::SetVringKick, &index(VRING_NO_FD), &fd), Some(1));
    assert_eq!(peer.ask(Request::SetVringKick, &index(0), &fd), Some(1), "a file is no eventfd");
    assert_eq!(peer.ask(Request::SetVringKick, &index(1 << 9), &[]), Some(1));
    assert_eq!(peer.ask(Request::SetVringEnable, &state(0, 2), &[]), Some(1));
    for wrong in [2, 0xff, 0x100, 0x1_0000, 0x1_0001, u32::MAX] {
        for request in
            [Request::SetVringNum, Request::SetVringBase, Request::SetVringEnable, Request::VringKick]
        {
            assert_eq!(peer.ask(request, &state(wrong, 1), &[]), Some(1), "{request:?} {wrong:#x}");
        }
    }
    for size in [0, 32769, 0x1_0000, 0x1_0040, u32::MAX] {
        assert_eq!(peer.ask(Request::SetVringNum, &state(0, size), &[]), Some(1), "size {size}");
    }
    let range = ConfigRange { offset: 0, size: 200, flags: 0 };
    assert_eq!(peer.ask(Request::SetConfig, &range.encode(&[0; 4]), &[]), Some(1));
    assert_eq!(peer.ask(Request::SetBackendReqFd, &[], &fd), Some(1), "a file is no socket");
    // After all that, it still answers.
    assert_eq!(peer.ask(Request::SetOwner, &[], &[]), Some(0));
}
