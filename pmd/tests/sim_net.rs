//! `sim/net` between driver-side rings: what is sent comes back whole, once, in order; what cannot is dropped under its
//! name; what breaks the rules faults its ring alone.

#![expect(clippy::unwrap_used, reason = "helpers of a test stop it where something is not as it must be")]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;
use ringway_engine::{Armed, Budget, Polled, Pump};
use ringway_pmd::counters::{DropReason, QueueCounters};
use ringway_pmd::drivers::sim_net::{Loop, SimNet};
use ringway_pmd::net::transfer::BLOCKED_NS;
use ringway_pmd::net::{F_MRG_RXBUF, header_len};
use ringway_pmd::notify::EventFd;
use ringway_pmd::vdpa::{
    ClassSpec, DeviceHost, DeviceSpec, DriverError, FaultReporter, MakePump as _, ManagementDevice, NetSpec,
    QueueBinding, VdpaDevice,
};
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::layout::{DriverConfig, Layout};
use ringway_ring::memory::HostMemory;
use ringway_ring::position::{Position, PositionPage};
use ringway_ring::queue::{Completion, DriverBuffer, DriverRing, Format, QueueConfig, RingFault, RingSize};
use ringway_ring::tsc;

/// A driver of either format.
type Driver = Box<dyn DriverRing>;

/// Both queues of a pair seen from the guest, and the pump between them.
struct Bed {
    rx: Driver,
    tx: Driver,
    pump: Box<dyn Pump>,
    map: Arc<GuestMap>,
    counters: [Arc<QueueCounters>; 2],
    faults: [FaultReporter; 2],
    header: usize,
    /// Next free byte of buffer memory.
    free: u64,
    _memory: HostMemory,
}

#[derive(Clone, Copy)]
struct Setup {
    format: Format,
    features: Features,
    size: u16,
    mtu: u16,
    swap: bool,
    rx_started: bool,
    rx_enabled: bool,
    tx_enabled: bool,
    kick: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            format: Format::Split,
            features: Features::VERSION_1 | F_MRG_RXBUF,
            size: 64,
            mtu: 1500,
            swap: false,
            rx_started: true,
            rx_enabled: true,
            tx_enabled: true,
            kick: true,
        }
    }
}

const GPA: u64 = 0x4000_0000;
const RINGS: u64 = 1 << 20;
const MEMORY: u64 = 32 << 20;

impl Bed {
    fn new(setup: Setup) -> Bed {
        let features = match setup.format {
            Format::Split => setup.features,
            Format::Packed => setup.features | Features::RING_PACKED,
        };
        let memory = HostMemory::allocate("test", MEMORY).unwrap();
        let map = Arc::new(memory.guest_map(GPA).unwrap());
        let size = RingSize::new(setup.format, setup.size.into()).unwrap();
        let layout = Layout::new(setup.format, size);
        let positions = PositionPage::anonymous().unwrap();
        let attention = Arc::new(EventFd::new().unwrap());
        let counters: [Arc<QueueCounters>; 2] = Default::default();
        let faults = [(); 2].map(|()| FaultReporter::new(Arc::clone(&attention)));
        let mut drivers = Vec::new();
        let mut bindings = Vec::new();
        for index in 0..2u16 {
            let at = u64::from(index) * layout.total;
            let config = DriverConfig {
                size,
                features,
                map: Arc::clone(&map),
                areas: layout.at(GPA + at),
                position: Position::START,
            };
            let driver: Driver = match setup.format {
                Format::Split => Box::new(config.start_split().unwrap()),
                Format::Packed => Box::new(config.start_packed().unwrap()),
            };
            drivers.push(driver);
            let areas = layout.at(memory.address() + at);
            if index == 0 && !setup.rx_started {
                continue;
            }
            bindings.push(QueueBinding {
                index,
                enabled: if index == 0 { setup.rx_enabled } else { setup.tx_enabled },
                format: setup.format,
                config: QueueConfig {
                    size,
                    features,
                    map: Arc::clone(&map),
                    desc_user_addr: areas.desc,
                    driver_user_addr: areas.driver,
                    device_user_addr: areas.device,
                    position: Position::START,
                    keeper: positions.slot(index.into()).unwrap(),
                    skip_used: false,
                },
                record: None,
                kick: setup.kick.then(|| Arc::new(EventFd::new().unwrap())),
                call: None,
                counters: Arc::clone(&counters[usize::from(index)]),
                fault: faults[usize::from(index)].clone(),
            });
        }
        let swap = if setup.swap { "on" } else { "off" };
        let net = NetSpec { mtu: Some(setup.mtu), ..NetSpec::default() };
        let mut spec = DeviceSpec::net("test", net);
        spec.attributes.insert("swap".into(), swap.into());
        let pump = Loop::new(&spec).unwrap().pump(0, bindings).unwrap();
        let tx = drivers.pop().unwrap();
        let rx = drivers.pop().unwrap();
        let header = header_len(features);
        Bed { rx, tx, pump, map, counters, faults, header, free: GPA + RINGS, _memory: memory }
    }

    fn buffer(&mut self, len: usize) -> u64 {
        let at = self.free;
        self.free += len as u64 + 7; // deliberately unaligned
        assert!(self.free < GPA + MEMORY);
        at
    }

    /// Posts one receive chain of segments of these sizes.
    fn post(&mut self, token: u32, sizes: &[usize]) -> Vec<DriverBuffer> {
        let buffers: Vec<DriverBuffer> = sizes
            .iter()
            .map(|&len| DriverBuffer { gpa: self.buffer(len), len: len as u32, writable: true })
            .collect();
        self.rx.add(&buffers, token).unwrap();
        self.rx.publish();
        buffers
    }

    /// Sends bytes (header included) cut into segments at `cuts`.
    fn send_raw(&mut self, token: u32, bytes: &[u8], cuts: &[usize]) {
        let mut edges: Vec<usize> = cuts.iter().map(|cut| cut % bytes.len().max(1)).collect();
        edges.extend([0, bytes.len()]);
        edges.sort_unstable();
        edges.dedup();
        let mut buffers = Vec::new();
        for pair in edges.windows(2) {
            let part = &bytes[pair[0]..pair[1]];
            let gpa = self.buffer(part.len());
            self.map.resolve(gpa, part.len() as u64).unwrap().write(part);
            buffers.push(DriverBuffer { gpa, len: part.len() as u32, writable: false });
        }
        self.tx.add(&buffers, token).unwrap();
        self.tx.publish();
    }

    fn send(&mut self, token: u32, frame: &[u8], cuts: &[usize]) {
        let mut bytes = vec![0xee; self.header]; // claims of the sender's header must not arrive
        bytes.extend_from_slice(frame);
        self.send_raw(token, &bytes, cuts);
    }

    fn poll(&mut self) -> Polled {
        self.pump.poll(&Budget::default(), tsc::cycles())
    }

    fn received(&mut self) -> Vec<Completion> {
        let mut done = [Completion::default(); 64];
        let count = self.rx.collect(&mut done).unwrap();
        done[..count].to_vec()
    }

    fn sent(&mut self) -> usize {
        self.tx.collect(&mut [Completion::default(); 64]).unwrap()
    }

    fn read(&self, buffers: &[DriverBuffer], len: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        for buffer in buffers {
            let mut part = vec![0; buffer.len as usize];
            self.map.resolve(buffer.gpa, buffer.len.into()).unwrap().read(&mut part);
            bytes.extend(part);
        }
        bytes.truncate(len);
        bytes
    }

    fn drops(&self, reason: DropReason) -> u64 {
        // The sender's own and its receiver's.
        let of = |counters: &Arc<QueueCounters>| {
            counters.snapshot().drops.into_iter().find(|(other, _)| *other == reason).unwrap().1
        };
        self.counters.iter().map(of).sum()
    }
}

fn create(spec: DeviceSpec) -> Result<Box<dyn VdpaDevice>, DriverError> {
    SimNet::new().create(&spec, DeviceHost::unheard())
}

fn frame(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at as u8).wrapping_mul(13).wrapping_add(seed)).collect()
}

fn formats() -> impl Strategy<Value = Format> {
    prop_oneof![Just(Format::Split), Just(Format::Packed)]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn frames_however_cut_come_back_whole_once_and_in_order(
        format in formats(),
        mergeable in any::<bool>(),
        swap in any::<bool>(),
        single in any::<bool>(),
        frames in prop::collection::vec((14usize..1518, prop::collection::vec(0usize..1600, 0..4)), 1..12),
        room in prop::collection::vec(prop::collection::vec(1usize..700, 1..4), 1..4),
    ) {
        let features = Features::VERSION_1 | if mergeable { F_MRG_RXBUF } else { Features::NONE };
        let mut bed = Bed::new(Setup { format, features, swap, size: 128, ..Setup::default() });
        // Receive buffers: of odd sizes where frames may span them, else large enough for any frame.
        let mut posted = BTreeMap::new();
        let slots = if mergeable { 32 } else { frames.len() };
        for token in 0..slots as u32 {
            let mut sizes = room[token as usize % room.len()].clone();
            match (mergeable, single) {
                (true, false) => sizes[0] += 400,
                // Frames that one buffer takes among those that several do.
                (true, true) => sizes = vec![if token % 3 == 0 { 400 } else { 1700 }],
                (false, false) => sizes.push(1600),
                (false, true) => sizes = vec![1700],
            }
            let buffers = bed.post(token, &sizes);
            posted.insert(token, buffers);
        }
        let mut expected = Vec::new();
        for (token, (len, cuts)) in frames.iter().enumerate() {
            let bytes = frame(*len, token as u8);
            bed.send(token as u32, &bytes, cuts);
            let mut want = bytes;
            if swap {
                let (to, from): ([u8; 6], [u8; 6]) = (want[0..6].try_into().unwrap(), want[6..12].try_into().unwrap());
                want[0..6].copy_from_slice(&from);
                want[6..12].copy_from_slice(&to);
            }
            expected.push(want);
        }
        let mut completions = Vec::new();
        let mut sent = 0;
        for _ in 0..8 {
            bed.poll();
            completions.extend(bed.received());
            sent += bed.sent();
        }
        let mut next = completions.iter();
        for want in &expected {
            // num_buffers of the first header tells how many completions make the frame.
            let Some(first) = next.next() else { prop_assert!(mergeable, "frame missing"); break };
            let buffers = &posted[&first.token];
            let head = bed.read(buffers, first.written as usize);
            prop_assert_eq!(&head[..10], &[0u8; 10][..], "nothing of the sender's header arrives");
            let count = u16::from_le_bytes([head[10], head[11]]);
            prop_assert!(count >= 1 && (mergeable || count == 1));
            let mut got = head[bed.header..].to_vec();
            for _ in 1..count {
                let more = next.next().unwrap();
                got.extend(bed.read(&posted[&more.token], more.written as usize));
            }
            prop_assert_eq!(&got, want);
        }
        prop_assert!(next.next().is_none(), "nothing comes twice");
        let (count, bytes) = (completions.len() as u64, completions.iter().map(|one| u64::from(one.written)).sum::<u64>());
        let stats = bed.counters[0].snapshot();
        prop_assert_eq!((stats.received_desc, stats.completed_desc), (count, count));
        let arrived = expected.len().min(stats.packets as usize);
        let headers = arrived as u64 * bed.header as u64;
        prop_assert_eq!((stats.packets, stats.bytes + headers), (arrived as u64, bytes));
        if !mergeable {
            prop_assert_eq!(sent, expected.len());
        }
    }
}

#[test]
fn sizes_across_the_limits_are_delivered_or_dropped_by_name() {
    for format in [Format::Split, Format::Packed] {
        let mut bed = Bed::new(Setup { format, ..Setup::default() });
        bed.post(0, &[2048]);
        bed.post(1, &[2048]);
        for (token, len) in [13, 14, 1518, 1519].into_iter().enumerate() {
            bed.send(token as u32, &frame(len, 1), &[]);
        }
        assert_eq!(bed.poll(), Polled::Moved(4));
        let lengths: Vec<u32> = bed.received().iter().map(|done| done.written).collect();
        assert_eq!(lengths, [14 + 12, 1518 + 12]);
        assert_eq!((bed.drops(DropReason::Runt), bed.drops(DropReason::Oversize)), (1, 1));
        assert_eq!(bed.sent(), 4);
    }
}

#[test]
fn sender_without_receive_buffers_waits_and_is_then_dropped_and_counted() {
    let mut bed = Bed::new(Setup::default());
    bed.send(0, &frame(60, 1), &[]);
    let start = tsc::cycles();
    assert_eq!(bed.pump.poll(&Budget::default(), start), Polled::Blocked);
    assert_eq!(bed.sent(), 0, "the descriptor stays while there is hope");
    assert!(matches!(bed.pump.arm(), Armed::Sleep { within_ns: Some(1..=10_000_000) }));
    bed.pump.disarm();
    let later = start + tsc::hertz() / 50; // 20 ms
    assert_eq!(bed.pump.poll(&Budget::default(), later), Polled::Moved(1));
    assert_eq!((bed.sent(), bed.drops(DropReason::NoRxBuffer)), (1, 1));
}

#[test]
fn blocked_frame_is_delivered_when_a_buffer_comes() {
    let mut bed = Bed::new(Setup::default());
    bed.send(0, &frame(60, 1), &[]);
    assert_eq!(bed.poll(), Polled::Blocked);
    bed.post(0, &[2048]);
    assert_eq!(bed.poll(), Polled::Moved(1));
    assert_eq!(bed.received().len(), 1);
}

#[test]
fn frame_larger_than_every_buffer_is_dropped_not_waited_for() {
    let features = Features::VERSION_1;
    let mut bed = Bed::new(Setup { features, ..Setup::default() });
    bed.post(0, &[512]);
    bed.send(0, &frame(1000, 1), &[]);
    bed.send(1, &frame(100, 2), &[]);
    assert_eq!(bed.poll(), Polled::Moved(2));
    assert_eq!(bed.drops(DropReason::RxBufferTooSmall), 1);
    assert_eq!(bed.received().len(), 1, "the next frame takes the buffer");
}

#[test]
fn frame_that_spans_more_buffers_than_guessed_is_delivered() {
    let mut bed = Bed::new(Setup { mtu: 9000, ..Setup::default() });
    for token in 0..60 {
        bed.post(token, &[200]);
    }
    bed.send(0, &frame(9014, 1), &[]);
    assert_eq!(bed.poll(), Polled::Moved(1));
    assert_eq!(bed.received().len(), (9014 + 12usize).div_ceil(200));
}

#[test]
fn disabled_queues_drop_what_is_sent_under_their_own_names() {
    for (setup, reason) in [
        (Setup { tx_enabled: false, ..Setup::default() }, DropReason::TxDisabled),
        (Setup { rx_enabled: false, ..Setup::default() }, DropReason::RxDisabled),
        (Setup { rx_started: false, ..Setup::default() }, DropReason::RxDisabled),
    ] {
        let mut bed = Bed::new(setup);
        if setup.rx_started {
            bed.post(0, &[2048]);
        }
        bed.send(0, &frame(60, 1), &[]);
        assert_eq!(bed.poll(), Polled::Moved(1));
        assert_eq!((bed.sent(), bed.drops(reason)), (1, 1));
        assert!(bed.received().is_empty());
    }
}

#[test]
fn chain_shorter_than_its_header_faults_the_transmit_ring_by_name() {
    for format in [Format::Split, Format::Packed] {
        let mut bed = Bed::new(Setup { format, ..Setup::default() });
        bed.post(0, &[2048]);
        bed.send(0, &frame(60, 1), &[]);
        bed.send_raw(1, &[0; 11], &[3, 5]);
        assert_eq!(bed.poll(), Polled::Moved(1), "what came before goes through");
        assert_eq!(bed.received().len(), 1);
        assert_eq!(bed.poll(), Polled::Idle);
        assert_eq!(bed.faults[1].reported(), Some(RingFault::TooShort));
        assert_eq!(bed.faults[0].reported(), None);
    }
}

#[test]
fn writable_buffer_on_the_transmit_ring_faults_it() {
    let mut bed = Bed::new(Setup::default());
    bed.post(0, &[2048]);
    let gpa = bed.buffer(100);
    bed.tx.add(&[DriverBuffer { gpa, len: 100, writable: true }], 0).unwrap();
    bed.tx.publish();
    bed.poll();
    assert_eq!(bed.faults[1].reported(), Some(RingFault::Direction));
}

#[test]
fn readable_buffer_on_the_receive_ring_faults_it_and_its_sender_goes_on() {
    let mut bed = Bed::new(Setup::default());
    let gpa = bed.buffer(2048);
    bed.rx.add(&[DriverBuffer { gpa, len: 2048, writable: false }], 0).unwrap();
    bed.rx.publish();
    bed.send(0, &frame(60, 1), &[]);
    bed.poll();
    assert_eq!(bed.faults[0].reported(), Some(RingFault::Direction));
    assert_eq!(bed.faults[1].reported(), None);
    bed.poll();
    assert_eq!((bed.sent(), bed.drops(DropReason::RxDisabled)), (1, 1));
}

#[test]
fn frames_before_a_buffer_at_fault_stay_and_those_behind_it_are_dropped() {
    for format in [Format::Split, Format::Packed] {
        let mut bed = Bed::new(Setup { format, ..Setup::default() });
        let posted = [bed.post(0, &[2048]), bed.post(1, &[2048])];
        let gpa = bed.buffer(2048);
        bed.rx.add(&[DriverBuffer { gpa, len: 2048, writable: false }], 2).unwrap();
        bed.rx.publish();
        for token in 0..4 {
            bed.send(token, &frame(60, token as u8), &[]);
        }
        bed.poll();
        assert_eq!(bed.faults[0].reported(), Some(RingFault::Direction));
        for (token, buffers) in posted.iter().enumerate() {
            assert_eq!(bed.read(buffers, bed.header + 60)[bed.header..], frame(60, token as u8));
        }
        assert_eq!(bed.read(&[DriverBuffer { gpa, len: 2048, writable: false }], 2048), [0; 2048]);
        bed.poll();
        assert_eq!((bed.sent(), bed.drops(DropReason::RxDisabled)), (4, 2));
    }
}

#[test]
fn buffers_of_many_bursts_in_one_poll_keep_what_was_written_to_them() {
    for format in [Format::Split, Format::Packed] {
        let mut bed = Bed::new(Setup { format, size: 256, ..Setup::default() });
        let posted: Vec<_> = (0..200).map(|token| bed.post(token, &[2048])).collect();
        for token in 0..200 {
            bed.send(token, &frame(60 + token as usize, token as u8), &[]);
        }
        while bed.poll() != Polled::Idle {}
        let came: Vec<_> = std::iter::repeat_with(|| bed.received()).take(4).flatten().collect();
        assert_eq!(came.len(), 200);
        for one in came {
            let buffers = &posted[one.token as usize];
            let len = 60 + one.token as usize;
            assert_eq!(one.written as usize, bed.header + len);
            assert_eq!(bed.read(buffers, bed.header + len)[bed.header..], frame(len, one.token as u8));
        }
        let stats = bed.counters[0].snapshot();
        assert_eq!((stats.received_desc, stats.packets), (200, 200));
    }
}

#[test]
fn address_outside_memory_faults_and_counts() {
    let mut bed = Bed::new(Setup::default());
    bed.tx.add(&[DriverBuffer { gpa: 0x10, len: 100, writable: false }], 0).unwrap();
    bed.tx.publish();
    bed.poll();
    assert_eq!(bed.faults[1].reported(), Some(RingFault::Unmapped));
    let faults = bed.counters[1].snapshot().faults;
    assert!(faults.contains(&(RingFault::Unmapped, 1)), "{faults:?}");
}

#[test]
fn arming_finds_work_that_came_meanwhile() {
    let mut bed = Bed::new(Setup::default());
    assert_eq!(bed.poll(), Polled::Idle);
    bed.post(0, &[2048]);
    bed.send(0, &frame(60, 1), &[]);
    assert_eq!(bed.pump.arm(), Armed::HasWork);
    assert_eq!(bed.poll(), Polled::Moved(1));
    assert_eq!(bed.pump.arm(), Armed::Sleep { within_ns: None });
}

#[test]
fn frame_waits_for_a_buffer_as_long_as_it_may_and_no_longer() {
    let mut bed = Bed::new(Setup::default());
    let long = (u128::from(BLOCKED_NS) * u128::from(tsc::hertz()) / 1_000_000_000) as u64;
    bed.send(0, &frame(60, 1), &[]);
    let poll =
        |bed: &mut Bed, now| (bed.pump.poll(&Budget::default(), now), bed.drops(DropReason::NoRxBuffer));
    assert_eq!(poll(&mut bed, 1000), (Polled::Blocked, 0));
    assert_eq!(poll(&mut bed, 1000 + long - 1), (Polled::Blocked, 0));
    assert_eq!(poll(&mut bed, 1000 + long), (Polled::Moved(1), 1));
    // Those that follow do not wait anew, until a buffer comes.
    bed.send(1, &frame(60, 1), &[]);
    assert_eq!(poll(&mut bed, 1000 + long + 1), (Polled::Moved(1), 2));
    bed.post(0, &[2048]);
    bed.send(2, &frame(60, 1), &[]);
    assert_eq!(poll(&mut bed, 1000 + long + 2), (Polled::Moved(1), 2));
    bed.send(3, &frame(60, 1), &[]);
    assert_eq!(poll(&mut bed, 1000 + long + 3), (Polled::Blocked, 2));
    assert_eq!(poll(&mut bed, 1000 + 2 * long + 2), (Polled::Blocked, 2));
    assert_eq!(poll(&mut bed, 1000 + 2 * long + 3), (Polled::Moved(1), 3));
}

#[test]
fn front_end_without_kicks_cannot_be_slept_on() {
    let mut bed = Bed::new(Setup { kick: false, ..Setup::default() });
    assert_eq!(bed.pump.arm(), Armed::CannotSleep);
    assert!(bed.pump.wake_sources().is_empty());
}

#[test]
fn counters_agree_with_what_was_moved() {
    let mut bed = Bed::new(Setup::default());
    for token in 0..8 {
        bed.post(token, &[2048]);
        bed.send(token, &frame(100, 1), &[]);
    }
    bed.poll();
    for counters in &bed.counters {
        let stats = counters.snapshot();
        assert_eq!((stats.received_desc, stats.completed_desc, stats.packets, stats.bytes), (8, 8, 8, 800));
    }
}

#[test]
fn devices_are_refused_with_the_reason_when_asked_for_what_cannot_be() {
    let spec = |net: NetSpec| DeviceSpec::net("x", net);
    let refusal = |spec: DeviceSpec| create(spec).err().unwrap().to_string();
    let named = |net: NetSpec| refusal(spec(net));
    for pairs in [0, 17] {
        assert!(named(NetSpec { max_vqp: Some(pairs), ..NetSpec::default() }).contains("1 to 16"));
    }
    for mtu in [67, 9001] {
        assert!(named(NetSpec { mtu: Some(mtu), ..NetSpec::default() }).contains("68 to 9000"));
    }
    for (mtu, pairs) in [(68, 1), (8999, 15), (9000, 16)] {
        create(spec(NetSpec { mtu: Some(mtu), max_vqp: Some(pairs), ..NetSpec::default() })).unwrap();
    }
    let mac = Some("01:00:00:00:00:01".parse().unwrap());
    assert!(named(NetSpec { mac, ..NetSpec::default() }).contains("unicast"));
    let features = Some(Features(1 << 60));
    assert!(refusal(DeviceSpec { features, ..spec(NetSpec::default()) }).contains("bits 60"));
    let attributes = BTreeMap::from([("swap".into(), "maybe".into())]);
    assert!(refusal(DeviceSpec { attributes, ..spec(NetSpec::default()) }).contains("on or off"));
    assert!(refusal(DeviceSpec { class: ClassSpec::Block, ..spec(NetSpec::default()) }).contains("network"));
}

/// A guest's second processor changes addresses and header of a frame while they are exchanged: each frame that arrives has
/// addresses that stood there, the other way round, nothing of the header, and the rest as it is.
#[test]
fn exchanged_addresses_are_read_once_however_they_are_timed() {
    const ONE: [u8; 12] = [2; 12];
    const OTHER: [u8; 12] = [4; 12];
    for (format, pieces) in [(Format::Split, 1), (Format::Packed, 1), (Format::Split, 2), (Format::Packed, 8)]
    {
        let mut bed = Bed::new(Setup { format, swap: true, size: 128, ..Setup::default() });
        let rest = frame(300, 7);
        let sent = [&[0; 12][..], &ONE, &rest].concat();
        let gpa = bed.buffer(sent.len());
        bed.map.resolve(gpa, sent.len() as u64).unwrap().write(&sent);
        let cuts = match pieces {
            1 => vec![0, sent.len()],
            2 => vec![0, 12 + 7, sent.len()],
            _ => vec![0, 5, 12, 12 + 1, 12 + 6, 12 + 11, 12 + 13, 12 + 40, sent.len()],
        };
        let chain: Vec<DriverBuffer> = cuts
            .windows(2)
            .map(|cut| DriverBuffer {
                gpa: gpa + cut[0] as u64,
                len: (cut[1] - cut[0]) as u32,
                writable: false,
            })
            .collect();
        let stop = Arc::new(AtomicBool::new(false));
        let flipper = {
            let (map, stop) = (Arc::clone(&bed.map), Arc::clone(&stop));
            std::thread::spawn(move || {
                let place = map.resolve(gpa, 24).unwrap();
                // A claim of TSO.
                let claim = [1, 1, 54, 0, 0, 1, 34, 0, 16, 0, 0, 0];
                while !stop.load(Ordering::Relaxed) {
                    for (header, addresses) in [(claim, OTHER), ([0; 12], ONE)] {
                        place.write(&[header, addresses].concat());
                        (0..40).for_each(|_| std::hint::spin_loop());
                    }
                }
            })
        };
        let room = (0..64).map(|_| DriverBuffer { gpa: bed.buffer(400), len: 400, writable: true });
        let room: Vec<DriverBuffer> = room.collect();
        let begun = std::time::Instant::now();
        let (mut seen, mut count) = ([false; 2], 0);
        // On a machine whose only processor is taken, both may not be seen: then for so long.
        while count < 4_000 || (seen != [true; 2] && begun.elapsed().as_secs() < 20) {
            for (token, buffer) in room.iter().enumerate().take(bed.tx.free_slots() / chain.len()) {
                bed.rx.add(&[*buffer], token as u32).unwrap();
                bed.tx.add(&chain, 0).unwrap();
            }
            bed.rx.publish();
            bed.tx.publish();
            while bed.poll() != Polled::Idle {}
            bed.sent();
            bed.sent();
            loop {
                let done = bed.received();
                for completion in &done {
                    let got = bed.read(&[room[completion.token as usize]], completion.written as usize);
                    assert_eq!((got.len(), &got[..10]), (sent.len(), &[0; 10][..]), "{format:?} {pieces}");
                    assert!(got[24..] == rest[..], "{format:?} {pieces}");
                    // Two processors may write and read half of each.
                    assert!(got[12..24].iter().all(|byte| [2, 4].contains(byte)), "{:?}", &got[12..24]);
                    seen = [seen[0] || got[12..24] == ONE, seen[1] || got[12..24] == OTHER];
                }
                count += done.len();
                if done.is_empty() {
                    break;
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        flipper.join().unwrap();
    }
}
