//! Devices joined by a link and by a bridge, between driver-side rings of the test's own and real workers: each frame
//! arrives where it belongs, once, as its receiver agreed to take it, and what does not arrive is counted by name.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of a test stop it where something is not as it must be"
)]

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_engine::{Clock, Engine, EngineConfig, IdlePolicy, Watcher};
use ringway_pmd::counters::{DropReason, Example, QueueCounters, QueueStats};
use ringway_pmd::drivers::bridge::BridgeBus;
use ringway_pmd::drivers::link::LinkBus;
use ringway_pmd::net::offload::{HEAD_BYTES, NetHeader, Offload, Offloads, check, complete_checksum};
use ringway_pmd::net::{F_CSUM, F_GUEST_CSUM, F_GUEST_TSO4, F_HOST_TSO4, F_MRG_RXBUF, Mac, header_len};
use ringway_pmd::notify::EventFd;
use ringway_pmd::vdpa::{
    Berth, DeviceSpec, Ended, FaultReporter, ManagementBus, ManagementDevice, QueueBinding, ServiceError,
    VdpaDevice,
};
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::layout::{DriverConfig, Layout};
use ringway_ring::memory::HostMemory;
use ringway_ring::position::{Position, PositionPage};
use ringway_ring::queue::{Completion, DriverBuffer, DriverRing, Format, QueueConfig, RingSize};
use ringway_ring::tsc;

#[path = "joined/announce.rs"]
mod announce;
#[path = "joined/quiet.rs"]
mod quiet;
#[path = "joined/races.rs"]
mod races;
#[path = "../src/net/tap/scene.rs"]
mod scene;
#[path = "joined/taps.rs"]
mod taps;

const GPA: u64 = 0x4000_0000;
const MEMORY: u64 = 32 << 20;
const RING: u16 = 256;
const SOON: Duration = Duration::from_secs(20);
const WITHIN: Duration = Duration::from_secs(10);

struct Nobody;

impl Watcher for Nobody {
    fn pump_ended(&self) {
        panic!("a pump ended");
    }
}

fn engine(cores: usize) -> Engine {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let cores = (0..1024).rev().filter(|core| allowed.is_set(*core)).take(cores).collect();
    let clock = Clock { cycles: tsc::cycles, hertz: tsc::hertz() };
    Engine::start(EngineConfig { cores, idle: IdlePolicy::Adaptive, clock }).unwrap()
}

/// One whose clock runs 256 times slower than the real one: a sender waits for 2.56 s, so that a test that is held up
/// on a busy machine still brings its buffers in time.
fn patient_engine() -> Engine {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let core = (0..1024).rev().find(|core| allowed.is_set(*core)).unwrap();
    let clock = Clock { cycles: || tsc::cycles() >> 8, hertz: tsc::hertz() >> 8 };
    Engine::start(EngineConfig { cores: vec![core], idle: IdlePolicy::Poll, clock }).unwrap()
}

/// What a guest agreed on, and how large its buffers are.
#[derive(Clone, Copy)]
struct Setup {
    format: Format,
    features: Features,
    pairs: u16,
    buffer: usize,
    mtu: u16,
    spoofchk: bool,
    flood_pps: Option<&'static str>,
}

impl Default for Setup {
    fn default() -> Self {
        Setup {
            format: Format::Split,
            features: Features::VERSION_1 | F_MRG_RXBUF,
            pairs: 1,
            buffer: 1600,
            mtu: 1500,
            spoofchk: false,
            flood_pps: None,
        }
    }
}

/// A guest's NIC: the driver's rings, and the device behind them.
struct Nic {
    device: Box<dyn VdpaDevice>,
    rings: Vec<Box<dyn DriverRing>>,
    counters: Vec<Arc<QueueCounters>>,
    /// Its queues start where they stopped.
    goes_on: bool,
    setup: Setup,
    features: Features,
    memory: HostMemory,
    map: Arc<GuestMap>,
    /// Buffers that are posted, by pair.
    posted: Vec<BTreeMap<u32, DriverBuffer>>,
    next_token: u32,
    free: u64,
    berth: Berth,
    mac: Mac,
    /// Its queues have kick descriptors.
    kicks: bool,
    kicked: BTreeMap<u16, Arc<EventFd>>,
    /// How long a start waits for a worker.
    within: Duration,
    positions: Arc<PositionPage>,
}

impl Nic {
    fn new(mgmtdev: &mut dyn ManagementDevice, name: &str, setup: Setup, engine: &Engine) -> Nic {
        let mac = Mac::from_name(name);
        let word = if setup.spoofchk { "on" } else { "off" };
        let flood = setup.flood_pps.map(|pps| ("flood_pps", pps));
        let attributes = [("spoofchk", word)].into_iter().chain(flood);
        let spec = DeviceSpec {
            name: name.to_owned(),
            mac: Some(mac),
            mtu: Some(setup.mtu),
            max_vqp: Some(setup.pairs),
            attributes: attributes.map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
            ..DeviceSpec::default()
        };
        let device = mgmtdev.create(&spec).unwrap();
        let features = match setup.format {
            Format::Split => setup.features,
            Format::Packed => setup.features | Features::RING_PACKED,
        };
        assert!(device.features().contains(features));
        let memory = HostMemory::allocate("test", MEMORY).unwrap();
        let map = Arc::new(memory.guest_map(GPA).unwrap());
        let core = engine.cores()[0];
        let berth = Berth {
            name: name.to_owned(),
            engine: engine.clone(),
            core_of: Arc::new(move |_| core),
            watcher: Arc::new(Nobody),
        };
        Nic {
            device,
            rings: Vec::new(),
            counters: (0..setup.pairs * 2).map(|_| Arc::default()).collect(),
            goes_on: false,
            posted: vec![BTreeMap::new(); setup.pairs.into()],
            next_token: 0,
            free: GPA + (1 << 20),
            setup,
            features,
            memory,
            map,
            berth,
            mac,
            kicks: false,
            kicked: BTreeMap::new(),
            within: WITHIN,
            positions: PositionPage::anonymous().unwrap(),
        }
    }

    /// Starts every pair, `enabled` of them for receiving.
    fn start(&mut self, enabled: u16) {
        self.try_start(enabled).unwrap();
    }

    fn try_start(&mut self, enabled: u16) -> Result<(), ServiceError> {
        let size = RingSize::new(self.setup.format, RING.into()).unwrap();
        let layout = Layout::new(self.setup.format, size);
        self.rings.clear();
        for index in 0..self.setup.pairs * 2 {
            let at = u64::from(index) * layout.total.next_multiple_of(64);
            let config = DriverConfig {
                size,
                features: self.features,
                map: Arc::clone(&self.map),
                areas: layout.at(GPA + at),
                position: Position::START,
            };
            self.rings.push(match self.setup.format {
                Format::Split => Box::new(config.start_split().unwrap()),
                Format::Packed => Box::new(config.start_packed().unwrap()),
            });
        }
        self.device.negotiated(self.features).unwrap();
        for group in 0..self.setup.pairs {
            self.start_pair(group, group < enabled)?;
        }
        Ok(())
    }

    /// Has the device serve a pair from the start of its rings.
    fn start_pair(&mut self, group: u16, enabled: bool) -> Result<(), ServiceError> {
        let size = RingSize::new(self.setup.format, RING.into()).unwrap();
        let layout = Layout::new(self.setup.format, size);
        let attention = Arc::new(EventFd::new().unwrap());
        if self.kicks {
            let kicks = [group * 2, group * 2 + 1].map(|index| (index, Arc::new(EventFd::new().unwrap())));
            self.kicked.extend(kicks);
        }
        let kept = |index: u16| self.positions.slot(index.into()).unwrap().load();
        let binding = |index: u16| {
            let areas =
                layout.at(self.memory.address() + u64::from(index) * layout.total.next_multiple_of(64));
            QueueBinding {
                index,
                enabled,
                format: self.setup.format,
                config: QueueConfig {
                    size,
                    features: self.features,
                    map: Arc::clone(&self.map),
                    desc_user_addr: areas.desc,
                    driver_user_addr: areas.driver,
                    device_user_addr: areas.device,
                    position: kept(index).filter(|_| self.goes_on).unwrap_or(Position::START),
                    keeper: self.positions.slot(index.into()).unwrap(),
                    skip_used: false,
                },
                kick: self.kicked.get(&index).cloned(),
                call: None,
                counters: Arc::clone(&self.counters[usize::from(index)]),
                fault: FaultReporter::new(Arc::clone(&attention)),
            }
        };
        let queues = vec![binding(group * 2), binding(group * 2 + 1)];
        self.device.service().unwrap().start(group, queues, &self.berth, self.within)
    }

    fn stop(&mut self) {
        for group in 0..self.setup.pairs {
            self.device.service().unwrap().stop(group, WITHIN).unwrap();
        }
    }

    fn allocate(&mut self, len: usize) -> u64 {
        let at = self.free;
        self.free += len as u64 + 7;
        if self.free > GPA + MEMORY {
            self.free = GPA + (1 << 20);
            return self.allocate(len);
        }
        at
    }

    /// Posts receive buffers on a pair.
    fn post(&mut self, pair: u16, count: usize) {
        for _ in 0..count {
            let len = self.setup.buffer;
            let buffer = DriverBuffer { gpa: self.allocate(len), len: len as u32, writable: true };
            let token = self.next_token;
            self.next_token += 1;
            self.rings[usize::from(pair) * 2].add(&[buffer], token).unwrap();
            self.posted[usize::from(pair)].insert(token, buffer);
        }
        self.rings[usize::from(pair) * 2].publish();
        self.kick(pair * 2);
    }

    fn kick(&self, queue: u16) {
        if let Some(kick) = self.kicked.get(&queue) {
            kick.signal();
        }
    }

    /// Sends a frame behind a header.
    fn send(&mut self, pair: u16, header: NetHeader, frame: &[u8]) {
        let ours = header_len(self.features);
        let mut bytes = header.to_bytes()[..ours].to_vec();
        bytes.extend_from_slice(frame);
        let gpa = self.allocate(bytes.len());
        self.map.resolve(gpa, bytes.len() as u64).unwrap().write(&bytes);
        let ring = &mut self.rings[usize::from(pair) * 2 + 1];
        let deadline = Instant::now() + SOON;
        while ring.free_slots() == 0 {
            assert!(Instant::now() < deadline);
            ring.collect(&mut [Completion::default(); 64]).unwrap();
        }
        ring.add(&[DriverBuffer { gpa, len: bytes.len() as u32, writable: false }], 0).unwrap();
        ring.publish();
        self.kick(pair * 2 + 1);
    }

    fn send_plain(&mut self, pair: u16, frame: &[u8]) {
        self.send(pair, NetHeader::default(), frame);
    }

    /// What has arrived on a pair: header and frame.
    fn received(&mut self, pair: u16) -> Vec<(NetHeader, Vec<u8>)> {
        let mut done = [Completion::default(); 64];
        let count = self.rings[usize::from(pair) * 2].collect(&mut done).unwrap();
        let mut frames = Vec::new();
        let mut chains = done[..count].iter();
        while let Some(first) = chains.next() {
            let mut bytes = self.bytes(pair, first);
            let buffers = u16::from_le_bytes([bytes[10], bytes[11]]);
            for _ in 1..buffers {
                let next = chains.next().expect("all buffers of a frame are published at once");
                bytes.extend(self.bytes(pair, next));
            }
            let header = NetHeader::from_bytes(&bytes[..12].try_into().unwrap());
            frames.push((header, bytes[12..].to_vec()));
        }
        frames
    }

    fn bytes(&mut self, pair: u16, completion: &Completion) -> Vec<u8> {
        let buffer = self.posted[usize::from(pair)].remove(&completion.token).unwrap();
        let mut bytes = vec![0; completion.written as usize];
        self.map.resolve(buffer.gpa, bytes.len() as u64).unwrap().read(&mut bytes);
        bytes
    }

    /// Waits until `count` frames have arrived on a pair.
    fn expect(&mut self, pair: u16, count: usize) -> Vec<(NetHeader, Vec<u8>)> {
        let deadline = Instant::now() + SOON;
        let mut frames = Vec::new();
        while frames.len() < count {
            assert!(Instant::now() < deadline, "{} of {count} frames arrived", frames.len());
            frames.extend(self.received(pair));
        }
        assert_eq!(frames.len(), count);
        frames
    }

    fn stats(&self, queue: u16) -> QueueStats {
        self.counters[usize::from(queue)].snapshot()
    }

    fn example(&self, queue: u16, reason: DropReason) -> Option<Example> {
        self.stats(queue).examples.into_iter().find(|(other, _)| *other == reason).map(|(_, example)| example)
    }

    fn drops(&self, queue: u16, reason: DropReason) -> u64 {
        self.stats(queue).drops.into_iter().find(|(other, _)| *other == reason).unwrap().1
    }

    /// Waits until so many frames of a queue were dropped for a reason.
    fn expect_drops(&self, queue: u16, reason: DropReason, count: u64) {
        let deadline = Instant::now() + SOON;
        while self.drops(queue, reason) != count {
            assert!(Instant::now() < deadline, "{reason:?}: {:?}", self.stats(queue));
        }
    }
}

fn link() -> Box<dyn ManagementDevice> {
    LinkBus.make("l", &BTreeMap::new(), 0).unwrap()
}

fn bridge(engine: &Engine) -> Box<dyn ManagementDevice> {
    BridgeBus.make("b", &BTreeMap::new(), engine.cores()[0]).unwrap()
}

/// A frame between two stations.
fn frame(to: Mac, from: Mac, len: usize, seed: u8) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(13).wrapping_add(seed)).collect();
    bytes[..6].copy_from_slice(&to.0);
    bytes[6..12].copy_from_slice(&from.0);
    bytes
}

/// A TCP frame as a driver sends it that leaves checksum and segmentation to the device, and its claim.
fn large(to: Mac, from: Mac, payload: usize, mss: u16) -> (Vec<u8>, NetHeader) {
    let payload: Vec<u8> = (0..payload).map(|at| (at * 7) as u8).collect();
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(from.0, to.0)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1, 2, 1000, 500)
        .ack(7)
        .write(&mut frame, &payload)
        .unwrap();
    // The pseudo header's sum in the checksum's place.
    let mut sum = 6 + (frame.len() - 34) as u32;
    for pair in frame[26..34].chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    let folded = (sum & 0xffff) + (sum >> 16);
    frame[50..52].copy_from_slice(&(folded as u16).to_be_bytes());
    let claim = NetHeader::from_bytes(&[1, 1, 54, 0, mss as u8, (mss >> 8) as u8, 34, 0, 16, 0, 0, 0]);
    (frame, claim)
}

/// The TCP payload of a frame whose checksums were found right.
fn payload(frame: &[u8]) -> Vec<u8> {
    let packet = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
    let Some(etherparse::NetSlice::Ipv4(ip)) = &packet.net else { panic!("{packet:?}") };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    let Some(etherparse::TransportSlice::Tcp(tcp)) = &packet.transport else { panic!("{packet:?}") };
    assert_eq!(tcp.checksum(), tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).unwrap());
    tcp.payload().to_vec()
}

fn all_formats() -> impl Iterator<Item = (Format, Format)> {
    let formats = [Format::Split, Format::Packed];
    formats.into_iter().flat_map(move |one| formats.map(|other| (one, other)))
}

#[test]
fn link_carries_frames_both_ways_between_any_formats() {
    let engine = engine(1);
    for (one, other) in all_formats() {
        let mut link = link();
        let mut a = Nic::new(&mut *link, "a", Setup { format: one, ..Setup::default() }, &engine);
        let mut b =
            Nic::new(&mut *link, "b", Setup { format: other, buffer: 300, ..Setup::default() }, &engine);
        a.start(1);
        b.start(1);
        for round in 0..40usize {
            a.post(0, 4);
            b.post(0, 24);
            let there = frame(b.mac, a.mac, 60 + round * 36, round as u8);
            let back = frame(a.mac, b.mac, 1514 - round * 36, round as u8);
            a.send_plain(0, &there);
            b.send_plain(0, &back);
            assert_eq!(b.expect(0, 1)[0], (NetHeader::default(), there));
            assert_eq!(a.expect(0, 1)[0], (NetHeader::default(), back));
            // What is not needed of the buffers stays posted; enough room for all rounds.
            let used = b.posted[0].len();
            if used > 200 {
                b.stop();
                b.posted[0].clear();
                b.start(1);
            }
            if a.posted[0].len() > 100 {
                a.stop();
                a.posted[0].clear();
                a.start(1);
            }
        }
        a.stop();
        b.stop();
        assert_eq!((a.stats(1).packets, b.stats(0).packets), (40, 40));
        assert_eq!((b.stats(1).packets, a.stats(0).packets), (40, 40));
    }
}

#[test]
fn link_maps_pairs_onto_those_that_the_receiver_has_enabled() {
    let engine = engine(2);
    let mut link = link();
    let mut a = Nic::new(&mut *link, "a", Setup { pairs: 4, ..Setup::default() }, &engine);
    let mut b =
        Nic::new(&mut *link, "b", Setup { pairs: 4, format: Format::Packed, ..Setup::default() }, &engine);
    a.start(4);
    b.start(2);
    for pair in 0..4 {
        b.post(pair, 8);
    }
    for pair in 0..4u16 {
        let sent = frame(b.mac, a.mac, 100, pair as u8);
        a.send_plain(pair, &sent);
        assert_eq!(b.expect(pair % 2, 1)[0].1, sent, "pair {pair}");
    }
    // Disabled pairs of the sender are drained and dropped.
    b.send_plain(3, &frame(a.mac, b.mac, 100, 9));
    b.expect_drops(7, DropReason::TxDisabled, 1);
}

#[test]
fn frames_to_nobody_are_dropped_by_name_until_somebody_comes() {
    let engine = engine(1);
    let mut link = link();
    let mut a = Nic::new(&mut *link, "a", Setup::default(), &engine);
    a.start(1);
    let mut b = Nic::new(&mut *link, "b", Setup::default(), &engine);
    let sent = frame(b.mac, a.mac, 64, 1);
    a.send_plain(0, &sent);
    a.expect_drops(1, DropReason::PeerDown, 1);
    b.start(1);
    b.post(0, 8);
    a.send_plain(0, &sent);
    assert_eq!(b.expect(0, 1)[0].1, sent);
    // The device is removed with its session still there, and another one takes its place.
    link.removed("b");
    let mut c = Nic::new(&mut *link, "c", Setup::default(), &engine);
    c.start(1);
    c.post(0, 8);
    a.send_plain(0, &sent);
    assert_eq!(c.expect(0, 1)[0].1, sent);
    drop(b);
    a.send_plain(0, &sent);
    assert_eq!(c.expect(0, 1)[0].1, sent);
    drop(c);
    assert!(ringway_pmd::later::settle(SOON));
    a.send_plain(0, &sent);
    a.expect_drops(1, DropReason::PeerDown, 2);
}

#[test]
fn receiver_without_buffers_holds_its_sender_back_and_then_loses_frames_that_are_counted() {
    let engine = engine(1);
    let mut link = link();
    let mut a = Nic::new(&mut *link, "a", Setup::default(), &engine);
    let mut b = Nic::new(&mut *link, "b", Setup::default(), &engine);
    a.start(1);
    b.start(1);
    b.post(0, 2);
    for seed in 0..5 {
        a.send_plain(0, &frame(b.mac, a.mac, 64, seed));
    }
    assert_eq!(b.expect(0, 2).len(), 2);
    b.expect_drops(0, DropReason::NoRxBuffer, 3);
    a.stop();
    assert_eq!(a.stats(1).packets, b.stats(0).packets + 3);
    a.start(1);
    // Buffers come in time.
    a.send_plain(0, &frame(b.mac, a.mac, 64, 9));
    b.post(0, 1);
    b.expect(0, 1);
}

#[test]
fn mtu_of_sender_and_receiver_is_enforced_apart() {
    let engine = engine(1);
    let mut link = link();
    let jumbo = Setup { mtu: 9000, buffer: 9100, ..Setup::default() };
    let mut a = Nic::new(&mut *link, "a", jumbo, &engine);
    let mut b = Nic::new(&mut *link, "b", Setup { buffer: 4000, ..Setup::default() }, &engine);
    a.start(1);
    b.start(1);
    b.post(0, 4);
    a.post(0, 4);
    a.send_plain(0, &frame(b.mac, a.mac, 9018, 1));
    b.expect_drops(0, DropReason::RxOversize, 1);
    assert_eq!(b.example(0, DropReason::RxOversize), Some(Example::Bytes(9018)));
    a.send_plain(0, &frame(b.mac, a.mac, 9019, 1));
    a.expect_drops(1, DropReason::Oversize, 1);
    assert_eq!(a.example(1, DropReason::Oversize), Some(Example::Bytes(9019)));
    b.send_plain(0, &frame(a.mac, b.mac, 1519, 1));
    b.expect_drops(1, DropReason::Oversize, 1);
    a.send_plain(0, &frame(b.mac, a.mac, 1518, 1));
    assert_eq!(b.expect(0, 1)[0].1.len(), 1518);
}

const OFFLOADING: Features = Features(
    Features::VERSION_1.0 | F_MRG_RXBUF.0 | F_CSUM.0 | F_HOST_TSO4.0 | F_GUEST_CSUM.0 | F_GUEST_TSO4.0,
);

#[test]
fn offloads_that_both_agreed_on_pass_through_untouched() {
    let engine = engine(1);
    for (one, other) in all_formats() {
        let mut link = link();
        let offloading = Setup { features: OFFLOADING, buffer: 4096, ..Setup::default() };
        let mut a = Nic::new(&mut *link, "a", Setup { format: one, ..offloading }, &engine);
        let mut b = Nic::new(&mut *link, "b", Setup { format: other, ..offloading }, &engine);
        a.start(1);
        b.start(1);
        b.post(0, 40);
        let (sent, claim) = large(b.mac, a.mac, 60_000, 1448);
        a.send(0, claim, &sent);
        assert_eq!(b.expect(0, 1)[0], (claim, sent));
        assert_eq!((b.stats(0).segmented, b.stats(0).checksums), (0, 0));
        // A claim of a verified checksum, and a lie about the headers' length, are not passed on.
        let (sent, _) = large(b.mac, a.mac, 1000, 1448);
        let checksum_only = NetHeader::from_bytes(&[3, 0, 200, 0, 0, 0, 34, 0, 16, 0, 0, 0]);
        a.send(0, checksum_only, &sent);
        let got = b.expect(0, 1)[0].0;
        assert_eq!(got, NetHeader::from_bytes(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]));
    }
}

#[test]
fn what_the_receiver_did_not_agree_on_is_done_for_it() {
    let engine = patient_engine();
    let plain = Features::VERSION_1 | F_MRG_RXBUF;
    for (features, buffer) in
        [(plain, 2048), (Features::VERSION_1, 2048), (plain | F_GUEST_CSUM, 300), (plain, 200)]
    {
        let mut link = link();
        let mut a = Nic::new(&mut *link, "a", Setup { features: OFFLOADING, ..Setup::default() }, &engine);
        let mut b = Nic::new(&mut *link, "b", Setup { features, buffer, ..Setup::default() }, &engine);
        a.start(1);
        b.start(1);
        let (sent, claim) = large(b.mac, a.mac, 30_000, 1448);
        let expected: Vec<u8> = sent[54..].to_vec();
        a.send(0, claim, &sent);
        // Fewer buffers than the segments take: more come while they wait. The frame is neither lost nor doubled.
        let mut whole = Vec::new();
        let mut count = 0;
        let deadline = Instant::now() + SOON;
        while whole.len() < expected.len() || b.stats(0).segmented == 0 {
            assert!(Instant::now() < deadline, "{} bytes", whole.len());
            if b.posted[0].len() < 16 {
                b.post(0, 16);
            }
            for (header, mut frame) in b.received(0) {
                assert!(frame.len() <= 1514);
                if features.contains(F_GUEST_CSUM) {
                    let head = &frame[..frame.len().min(HEAD_BYTES)];
                    let offload = check(header, Offloads::CHECKSUM, frame.len() as u32, head).unwrap();
                    let Offload::Checksum { start, offset } = offload else { panic!("{offload:?}") };
                    complete_checksum(&mut frame, start, offset);
                } else {
                    assert_eq!(header, NetHeader::default());
                }
                whole.extend(payload(&frame));
                count += 1;
            }
        }
        assert_eq!(whole, expected);
        assert_eq!(count, 30_000usize.div_ceil(1448));
        assert_eq!((b.stats(0).segmented, b.stats(0).segments), (1, count as u64));
        // A checksum alone.
        let (sent, _) = large(b.mac, a.mac, 1000, 1448);
        b.post(0, 16);
        a.send(0, NetHeader::from_bytes(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0, 0, 0]), &sent);
        let (_, mut frame) = b.expect(0, 1).remove(0);
        if features.contains(F_GUEST_CSUM) {
            complete_checksum(&mut frame, 34, 16);
        }
        assert_eq!(payload(&frame), sent[54..]);
    }
}

#[test]
fn lies_about_offloads_are_dropped_by_name_and_harm_nobody() {
    let engine = engine(1);
    let mut link = link();
    let mut a = Nic::new(&mut *link, "a", Setup { features: OFFLOADING, ..Setup::default() }, &engine);
    let mut b = Nic::new(&mut *link, "b", Setup::default(), &engine);
    a.start(1);
    b.start(1);
    b.post(0, 8);
    let (sent, _) = large(b.mac, a.mac, 3000, 1448);
    for lie in [
        // Checksum beyond the end; in the Ethernet header; no segment size; UDP that is TCP; unknown kind.
        [1, 0, 0, 0, 0, 0, 0xff, 0xff, 16, 0, 0, 0],
        [1, 0, 0, 0, 0, 0, 4, 0, 2, 0, 0, 0],
        [1, 1, 54, 0, 0, 0, 34, 0, 16, 0, 0, 0],
        [1, 5, 54, 0, 100, 0, 34, 0, 6, 0, 0, 0],
        [1, 77, 54, 0, 100, 0, 34, 0, 16, 0, 0, 0],
    ] {
        a.send(0, NetHeader::from_bytes(&lie), &sent);
    }
    a.expect_drops(1, DropReason::BadOffload, 5);
    // Segments longer than the MTU.
    let (sent, claim) = large(b.mac, a.mac, 6000, 3000);
    a.send(0, claim, &sent);
    a.expect_drops(1, DropReason::Oversize, 1);
    a.send_plain(0, &frame(b.mac, a.mac, 64, 1));
    b.expect(0, 1);
}

#[test]
fn bridge_floods_what_it_does_not_know_and_sends_the_rest_to_one_port() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let formats = [Format::Split, Format::Packed, Format::Split, Format::Packed];
    let mut nics: Vec<Nic> = formats
        .into_iter()
        .enumerate()
        .map(|(n, format)| {
            Nic::new(&mut *bridge, &format!("p{n}"), Setup { format, ..Setup::default() }, &engine)
        })
        .collect();
    for nic in &mut nics {
        nic.start(1);
        nic.post(0, 64);
    }
    let macs: Vec<Mac> = nics.iter().map(|nic| nic.mac).collect();
    // Unknown: to all others.
    let unknown = frame(macs[1], macs[0], 100, 1);
    nics[0].send_plain(0, &unknown);
    for nic in &mut nics[1..] {
        assert_eq!(nic.expect(0, 1)[0].1, unknown);
    }
    // Known by now: back to one port only.
    let answer = frame(macs[0], macs[1], 100, 2);
    nics[1].send_plain(0, &answer);
    assert_eq!(nics[0].expect(0, 1)[0].1, answer);
    nics[0].send_plain(0, &unknown);
    assert_eq!(nics[1].expect(0, 1)[0].1, unknown);
    let everybody = frame(Mac([0xff; 6]), macs[3], 300, 3);
    nics[3].send_plain(0, &everybody);
    for nic in &mut nics[..3] {
        assert_eq!(nic.expect(0, 1)[0].1, everybody);
    }
    // Between bridge and neighbours only; and to a station behind the same port.
    nics[0].send_plain(0, &frame(Mac([1, 0x80, 0xc2, 0, 0, 0]), macs[0], 64, 1));
    nics[0].expect_drops(1, DropReason::ReservedAddress, 1);
    let reserved = Some(Example::Address(Mac([1, 0x80, 0xc2, 0, 0, 0])));
    assert_eq!(nics[0].example(1, DropReason::ReservedAddress), reserved);
    nics[0].send_plain(0, &frame(macs[0], Mac([2, 0, 0, 0, 0, 9]), 64, 1));
    nics[0].expect_drops(1, DropReason::SamePort, 1);
    assert_eq!(nics[0].example(1, DropReason::SamePort), Some(Example::Address(macs[0])));
    // The table, as operators see it.
    let deadline = Instant::now() + SOON;
    loop {
        let learned = bridge.stations().unwrap();
        let mut devices: Vec<String> = learned.stations.iter().map(|(_, device, _)| device.clone()).collect();
        devices.sort();
        if devices == ["p0", "p0", "p1", "p3"] {
            break;
        }
        assert!(Instant::now() < deadline, "{learned:?}");
    }
    // Moved to another port; its station is there from then on.
    nics[2].send_plain(0, &frame(macs[0], macs[1], 64, 7));
    assert_eq!(nics[0].expect(0, 1).len(), 1);
    nics[0].send_plain(0, &frame(macs[1], macs[0], 64, 8));
    assert_eq!(nics[2].expect(0, 1).len(), 1);
    assert!(nics[1].received(0).is_empty());
    // A port that stops is forgotten: what is for it is flooded again, then dropped where nobody else is.
    nics[2].stop();
    let lost = frame(macs[1], macs[0], 64, 9);
    nics[0].send_plain(0, &lost);
    for nic in [1, 3] {
        assert_eq!(nics[nic].expect(0, 1)[0].1, lost);
    }
}

#[test]
fn sixty_four_ports_hear_everybody_and_each_other() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let mut nics: Vec<Nic> = (0..64)
        .map(|n| {
            let format = if n % 2 == 0 { Format::Split } else { Format::Packed };
            Nic::new(&mut *bridge, &format!("p{n}"), Setup { format, ..Setup::default() }, &engine)
        })
        .collect();
    for nic in &mut nics {
        nic.start(1);
        nic.post(0, 80);
    }
    for n in 0..64 {
        let from = nics[n].mac;
        nics[n].send_plain(0, &frame(Mac([0xff; 6]), from, 64, n as u8));
        for (other, nic) in nics.iter_mut().enumerate().filter(|(other, _)| *other != n) {
            assert_eq!(nic.expect(0, 1)[0].1[6..12], from.0, "{n} to {other}");
        }
    }
    // All are known by now.
    for n in 0..64 {
        let (from, to) = (nics[n].mac, nics[(n + 1) % 64].mac);
        nics[n].send_plain(0, &frame(to, from, 64, n as u8));
        assert_eq!(nics[(n + 1) % 64].expect(0, 1)[0].1[6..12], from.0);
    }
    for nic in &mut nics {
        assert!(nic.received(0).is_empty());
        assert_eq!((nic.stats(0).packets, nic.stats(1).packets), (64, 2));
    }
}

#[test]
fn slow_port_of_a_bridge_costs_the_others_nothing() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let mut nics: Vec<Nic> =
        (0..3).map(|n| Nic::new(&mut *bridge, &format!("p{n}"), Setup::default(), &engine)).collect();
    for nic in &mut nics {
        nic.start(1);
    }
    nics[0].post(0, 200);
    // Port 1 posts nothing.
    nics[2].post(0, 10);
    let everybody = frame(Mac([0xff; 6]), nics[2].mac, 64, 1);
    for _ in 0..100 {
        nics[2].send_plain(0, &everybody);
    }
    nics[0].expect(0, 100);
    nics[1].expect_drops(0, DropReason::NoRxBuffer, 100);
    assert_eq!(nics[2].stats(1).packets, 100);
}

#[test]
fn spoofed_addresses_and_floods_are_bounded_where_the_operator_asks() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let mut a = Nic::new(&mut *bridge, "a", Setup { spoofchk: true, ..Setup::default() }, &engine);
    let mut b = Nic::new(&mut *bridge, "b", Setup::default(), &engine);
    a.start(1);
    b.start(1);
    b.post(0, 200);
    for last in [8, 9] {
        a.send_plain(0, &frame(b.mac, Mac([2, 9, 9, 9, 9, last]), 64, 1));
    }
    a.expect_drops(1, DropReason::SpoofedMac, 2);
    assert_eq!(a.example(1, DropReason::SpoofedMac), Some(Example::Address(Mac([2, 9, 9, 9, 9, 9]))));
    a.send_plain(0, &frame(b.mac, a.mac, 64, 1));
    b.expect(0, 1);
    // The default of 20,000 a second, with at most 1,024 at once.
    let everybody = frame(Mac([0xff; 6]), a.mac, 64, 1);
    let (begun, mut sent) = (Instant::now(), 0);
    // A busy machine may send fewer than that for a while.
    while a.drops(1, DropReason::FloodLimit) == 0 {
        assert!(begun.elapsed() < SOON, "{:?}", a.stats(1));
        for _ in 0..1000 {
            a.send_plain(0, &everybody);
            if b.posted[0].len() < 100 {
                b.post(0, 100);
            }
            b.received(0);
        }
        sent += 1000;
        while a.stats(1).completed_desc < sent + 3 {
            assert!(begun.elapsed() < SOON, "{:?}", a.stats(1));
        }
    }
    assert_eq!(a.example(1, DropReason::FloodLimit), Some(Example::Address(Mac([0xff; 6]))));
    let flooded = a.stats(1).packets - 1;
    assert_eq!(flooded + a.drops(1, DropReason::FloodLimit), sent);
    assert!(
        flooded as f64 <= 1024.0 + 20_000.0 * begun.elapsed().as_secs_f64(),
        "{flooded} in {:?}",
        begun.elapsed()
    );
}

#[test]
fn frames_that_nobody_would_get_take_nothing_of_the_bound_on_floods() {
    // Its clock is so slow that no further token comes while this runs.
    let engine = patient_engine();
    let mut bridge = bridge(&engine);
    let sends = Setup { pairs: 2, flood_pps: Some("1"), ..Setup::default() };
    let mut a = Nic::new(&mut *bridge, "a", sends, &engine);
    let mut b = Nic::new(&mut *bridge, "b", Setup { pairs: 2, ..Setup::default() }, &engine);
    let everybody = frame(Mac([0xff; 6]), a.mac, 64, 1);
    a.start(2);
    let flood =
        |a: &mut Nic, pair: u16, frames: usize| (0..frames).for_each(|_| a.send_plain(pair, &everybody));
    // Nobody else is there; then one is, but with receiving disabled.
    flood(&mut a, 0, 100);
    a.expect_drops(1, DropReason::PeerDown, 100);
    b.try_start(0).unwrap();
    flood(&mut a, 1, 100);
    a.expect_drops(3, DropReason::PeerDown, 100);
    assert_eq!(a.drops(1, DropReason::FloodLimit) + a.drops(3, DropReason::FloodLimit), 0);
    // Once somebody would get them: as many as the least burst, and not one more.
    b.stop();
    b.try_start(1).unwrap();
    b.post(0, 100);
    flood(&mut a, 0, 31);
    b.expect(0, 31);
    flood(&mut a, 0, 1);
    b.expect(0, 1);
    assert_eq!(a.drops(1, DropReason::FloodLimit), 0);
    flood(&mut a, 0, 1);
    a.expect_drops(1, DropReason::FloodLimit, 1);
    // In one burst with what passes: addressed frames are none of these.
    b.send_plain(0, &frame(a.mac, b.mac, 64, 1));
    let deadline = Instant::now() + SOON;
    while b.stats(1).completed_desc == 0 {
        assert!(Instant::now() < deadline);
    }
    a.send_plain(0, &frame(b.mac, a.mac, 64, 1));
    flood(&mut a, 0, 2);
    a.send_plain(0, &frame(b.mac, a.mac, 64, 1));
    b.expect(0, 2);
    a.expect_drops(1, DropReason::FloodLimit, 3);
}

#[test]
fn moves_between_cores_and_ports_that_come_and_go_lose_nothing_of_the_others() {
    let engine = engine(2);
    let cores = engine.cores().to_vec();
    if cores.len() < 2 {
        return;
    }
    let mut bridge = bridge(&engine);
    let mut a = Nic::new(&mut *bridge, "a", Setup::default(), &engine);
    let mut b = Nic::new(&mut *bridge, "b", Setup { format: Format::Packed, ..Setup::default() }, &engine);
    a.start(1);
    b.start(1);
    a.post(0, 1);
    b.send_plain(0, &frame(a.mac, b.mac, 64, 0));
    a.expect(0, 1);
    for round in 0..50u16 {
        b.post(0, 8);
        for seed in 0..8 {
            a.send_plain(0, &frame(b.mac, a.mac, 64, seed));
        }
        bridge
            .set(&BTreeMap::from([("core".to_owned(), cores[usize::from(round) % 2].to_string())]))
            .unwrap();
        a.device.service().unwrap().follow_cores(WITHIN).unwrap();
        let mut c = Nic::new(&mut *bridge, "c", Setup::default(), &engine);
        c.start(1);
        c.stop();
        b.expect(0, 8);
    }
    assert_eq!(b.stats(0).packets, 400);
}

/// Hears nothing.
struct Deaf;

impl Watcher for Deaf {
    fn pump_ended(&self) {}
}

/// A pump that holds its worker for as long as it is told to.
struct Holder(Arc<std::sync::atomic::AtomicBool>);

impl ringway_engine::Pump for Holder {
    fn poll(&mut self, _: &ringway_engine::Budget, _: u64) -> ringway_engine::Polled {
        while self.0.load(std::sync::atomic::Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        ringway_engine::Polled::Idle
    }
    fn arm(&mut self) -> ringway_engine::Armed {
        ringway_engine::Armed::Sleep { within_ns: None }
    }
    fn disarm(&mut self) {}
    fn wake_sources(&self) -> Vec<std::os::fd::BorrowedFd<'_>> {
        Vec::new()
    }
}

/// Has the first worker held until the switch is off.
fn hold(engine: &Engine) -> (Arc<std::sync::atomic::AtomicBool>, ringway_engine::Placed) {
    let holds = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let pump = Box::new(Holder(Arc::clone(&holds)));
    let placed = engine.place(engine.cores()[0], "holder", pump, Arc::new(Deaf)).unwrap();
    let begun = Instant::now();
    // Another pump's worker may be without a CPU for as long.
    while !engine.stuck(Duration::from_millis(2)).iter().any(|stuck| stuck.pump == "holder") {
        assert!(begun.elapsed() < SOON);
    }
    (holds, placed)
}

/// A plain frame goes from one to the other, once.
fn passes(from: &mut Nic, to: &mut Nic, seed: u8) {
    to.post(0, 1);
    let bytes = frame(to.mac, from.mac, 100, seed);
    from.send_plain(0, &bytes);
    assert_eq!(to.expect(0, 1)[0].1, bytes);
}

/// Runs a test of this file in a process of its own, whose limits it may change. True: this is that process.
fn is_alone(test: &str) -> bool {
    if std::env::var_os("RINGWAY_ALONE").is_some() {
        return true;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test]).env("RINGWAY_ALONE", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    false
}

/// Lets this process open `more` descriptors, and does something then.
fn with_descriptors<T>(more: u64, what: impl FnOnce() -> T) -> T {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let before = getrlimit(Resource::Nofile);
    let open = |fd: &u64| std::path::Path::new(&format!("/proc/self/fd/{fd}")).symlink_metadata().is_ok();
    // The number below which so many are free.
    let limit = (0..).filter(|fd| !open(fd)).nth(more as usize).unwrap();
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: before.maximum }).unwrap();
    let done = what();
    setrlimit(Resource::Nofile, before).unwrap();
    done
}

#[test]
fn port_that_no_worker_takes_leaves_the_others_of_its_bridge_in_service() {
    if is_alone("port_that_no_worker_takes_leaves_the_others_of_its_bridge_in_service") {
        // Three are its own.
        refused_without_descriptors(true, 3..4);
    }
}

#[test]
fn port_that_no_worker_takes_leaves_the_other_end_of_its_link_in_service() {
    if is_alone("port_that_no_worker_takes_leaves_the_other_end_of_its_link_in_service") {
        // The first pump may find the two that it needs beside the newcomer's three, and the second one none.
        refused_without_descriptors(false, 3..5);
    }
}

/// In a process of its own, and once: what an engine before it leaves closes its descriptors when it likes.
fn refused_without_descriptors(is_bridge: bool, more: std::ops::Range<u64>) {
    let engine = engine(1);
    let mut mgmtdev = if is_bridge { bridge(&engine) } else { link() };
    // Watched by nobody: none of them may be told that a pump ended.
    let mut make = |name: &str| {
        let mut nic = Nic::new(&mut *mgmtdev, name, Setup::default(), &engine);
        nic.kicks = true;
        nic
    };
    let mut old: Vec<Nic> = if is_bridge { vec![make("a"), make("b")] } else { vec![make("a")] };
    let mut newcomer = make("newcomer");
    old.iter_mut().for_each(|nic| nic.start(1));
    for more in more {
        newcomer.kicked.clear();
        let refused = with_descriptors(more, || newcomer.try_start(1)).unwrap_err();
        let is_named = matches!(&refused, ServiceError::NotPlaced(why) if why.contains("LimitNOFILE"));
        assert!(is_named, "{more}: {refused}");
        assert!(!newcomer.device.service().unwrap().is_started(0));
        assert!(newcomer.device.service().unwrap().take_ended(WITHIN).is_empty());
        for nic in &mut old {
            assert!(nic.device.service().unwrap().is_started(0));
            assert!(nic.device.service().unwrap().take_ended(WITHIN).is_empty());
        }
        if let [a, b] = &mut old[..] {
            passes(a, b, more as u8);
            passes(b, a, more as u8);
        }
    }
    newcomer.start(1);
    passes(&mut old[0], &mut newcomer, 1);
    passes(&mut newcomer, &mut old[0], 2);
}

#[test]
fn port_whose_pump_cannot_be_placed_any_more_is_told_so_and_not_of_a_panic() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let mut a = Nic::new(&mut *bridge, "a", Setup::default(), &engine);
    let mut b = Nic::new(&mut *bridge, "b", Setup::default(), &engine);
    for nic in [&mut a, &mut b] {
        nic.berth.watcher = Arc::new(Deaf);
        nic.start(1);
    }
    // A core that has no worker: neither the new plan nor the old one can be placed.
    bridge.set(&BTreeMap::from([("core".to_owned(), "999".to_owned())])).unwrap();
    b.stop();
    // It is tried again for a while first.
    assert!(a.device.service().unwrap().take_ended(WITHIN).is_empty());
    let begun = Instant::now();
    while a.device.service().unwrap().is_started(0) {
        assert!(begun.elapsed() < SOON);
        std::thread::sleep(Duration::from_millis(5));
    }
    let ended = a.device.service().unwrap().take_ended(WITHIN);
    assert!(matches!(&ended[..], [(0, Ended::NotPlaced(why))] if why.contains("core 999")), "{ended:?}");
    bridge.set(&BTreeMap::from([("core".to_owned(), engine.cores()[0].to_string())])).unwrap();
    for nic in [&mut a, &mut b] {
        nic.start(1);
    }
    passes(&mut a, &mut b, 1);
}

#[test]
fn port_whose_pump_cannot_be_placed_for_a_moment_is_served_again_and_told_nothing() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    // Watched by nobody: none of them may be told that a pump ended.
    let mut a = Nic::new(&mut *bridge, "a", Setup::default(), &engine);
    let mut b = Nic::new(&mut *bridge, "b", Setup::default(), &engine);
    let mut c = Nic::new(&mut *bridge, "c", Setup::default(), &engine);
    for nic in [&mut a, &mut b, &mut c] {
        nic.start(1);
    }
    bridge.set(&BTreeMap::from([("core".to_owned(), "999".to_owned())])).unwrap();
    c.stop();
    assert_eq!(a.device.service().unwrap().core(0), None, "nobody serves it");
    bridge.set(&BTreeMap::from([("core".to_owned(), engine.cores()[0].to_string())])).unwrap();
    passes(&mut a, &mut b, 1);
    passes(&mut b, &mut a, 2);
    for nic in [&mut a, &mut b] {
        assert!(nic.device.service().unwrap().take_ended(WITHIN).is_empty());
    }
}

#[test]
fn start_that_a_held_worker_does_not_answer_leaves_nothing_behind() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let mut a = Nic::new(&mut *bridge, "a", Setup::default(), &engine);
    let mut b = Nic::new(&mut *bridge, "b", Setup::default(), &engine);
    let mut c = Nic::new(&mut *bridge, "c", Setup::default(), &engine);
    a.start(1);
    b.start(1);
    let (holds, _holder) = hold(&engine);
    c.within = Duration::from_millis(20);
    let refused = c.try_start(1).unwrap_err();
    assert!(matches!(refused, ServiceError::Stuck(_)), "{refused}");
    assert!(!c.device.service().unwrap().is_started(0), "it is told that none is in service");
    holds.store(false, std::sync::atomic::Ordering::SeqCst);
    // The others go on, though nobody asks for a change.
    passes(&mut a, &mut b, 1);
    // Nor does one serve what was refused.
    b.stop();
    b.start(1);
    assert!(!c.device.service().unwrap().is_started(0));
    passes(&mut a, &mut b, 2);
    c.within = WITHIN;
    c.start(1);
    passes(&mut a, &mut c, 3);
}

#[test]
fn stop_that_a_held_worker_does_not_answer_leaves_the_others_in_service() {
    for is_bridge in [true, false] {
        let engine = engine(1);
        let mut mgmtdev = if is_bridge { bridge(&engine) } else { link() };
        // A third port of the bridge stops, or the second pair of the link's end.
        let pairs = if is_bridge { 1 } else { 2 };
        let setup = || Setup { pairs, ..Setup::default() };
        let mut a = Nic::new(&mut *mgmtdev, "a", setup(), &engine);
        let mut b = Nic::new(&mut *mgmtdev, "b", setup(), &engine);
        let mut c = is_bridge.then(|| Nic::new(&mut *mgmtdev, "c", setup(), &engine));
        [&mut a, &mut b].into_iter().chain(&mut c).for_each(|nic| nic.start(pairs));
        passes(&mut a, &mut b, 1);
        let (holds, _holder) = hold(&engine);
        let group = pairs - 1;
        let service = c.as_mut().unwrap_or(&mut b).device.service().unwrap();
        let stuck = service.stop(group, Duration::from_millis(20)).unwrap_err();
        assert!(matches!(stuck, ServiceError::Stuck(_)), "{stuck}");
        assert!(service.is_started(group), "a worker has it");
        holds.store(false, std::sync::atomic::Ordering::SeqCst);
        passes(&mut a, &mut b, 2);
        passes(&mut b, &mut a, 3);
        let stopped = c.as_mut().unwrap_or(&mut b);
        assert!(!stopped.device.service().unwrap().is_started(group), "it is out in the end");
        stopped.start_pair(group, true).unwrap();
        passes(&mut a, &mut b, 4);
    }
}

#[test]
fn move_that_a_held_worker_does_not_answer_leaves_all_in_service() {
    for is_bridge in [true, false] {
        let engine = engine(2);
        let mut mgmtdev = if is_bridge { bridge(&engine) } else { link() };
        let mut a = Nic::new(&mut *mgmtdev, "a", Setup::default(), &engine);
        let mut b = Nic::new(&mut *mgmtdev, "b", Setup::default(), &engine);
        let core = Arc::new(std::sync::atomic::AtomicUsize::new(engine.cores()[0]));
        for nic in [&mut a, &mut b] {
            let core = Arc::clone(&core);
            nic.berth.core_of = Arc::new(move |_| core.load(std::sync::atomic::Ordering::SeqCst));
            nic.start(1);
        }
        passes(&mut a, &mut b, 1);
        let (holds, _holder) = hold(&engine);
        core.store(engine.cores()[1], std::sync::atomic::Ordering::SeqCst);
        bridge_core(&mut *mgmtdev, is_bridge, engine.cores()[1]);
        let stuck = a.device.service().unwrap().follow_cores(Duration::from_millis(20)).unwrap_err();
        assert!(matches!(stuck, ServiceError::Stuck(_)), "{stuck}");
        // It is to stay where it was after all, so that nothing is left to move.
        core.store(engine.cores()[0], std::sync::atomic::Ordering::SeqCst);
        bridge_core(&mut *mgmtdev, is_bridge, engine.cores()[0]);
        holds.store(false, std::sync::atomic::Ordering::SeqCst);
        passes(&mut a, &mut b, 2);
        passes(&mut b, &mut a, 3);
        assert_eq!(a.device.service().unwrap().core(0), Some(engine.cores()[0]));
    }
}

/// Decides on the core of a bridge; a link has none of its own.
fn bridge_core(mgmtdev: &mut dyn ManagementDevice, is_bridge: bool, core: usize) {
    if is_bridge {
        mgmtdev.set(&BTreeMap::from([("core".to_owned(), core.to_string())])).unwrap();
    }
}

#[test]
fn port_that_is_dropped_waits_neither_for_a_worker_nor_for_the_lock() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let mut a = Nic::new(&mut *bridge, "a", Setup::default(), &engine);
    let mut b = Nic::new(&mut *bridge, "b", Setup::default(), &engine);
    let spare = Nic::new(&mut *bridge, "spare", Setup::default(), &engine);
    a.start(1);
    b.start(1);
    let (holds, _holder) = hold(&engine);
    // A session that waits for the worker, under the lock.
    let session = std::thread::spawn(move || {
        a.stop();
        a
    });
    std::thread::sleep(Duration::from_millis(50));
    let begun = Instant::now();
    // One that never ran, and one that runs, as after a session that ended badly.
    drop(spare.device);
    bridge.removed("b");
    drop(b.device);
    // Another of the same name, at once.
    let mut b = Nic::new(&mut *bridge, "b", Setup::default(), &engine);
    assert!(begun.elapsed() < Duration::from_secs(1), "waited for {:?}", begun.elapsed());
    assert!(!session.is_finished(), "the worker was not held");
    holds.store(false, std::sync::atomic::Ordering::SeqCst);
    let mut a = session.join().unwrap();
    a.start(1);
    b.start(1);
    passes(&mut a, &mut b, 1);
    passes(&mut b, &mut a, 2);
    assert!(ringway_pmd::later::settle(SOON));
    // Nothing of the dropped ones is served any more: a frame to everybody has one receiver.
    let before = a.stats(1).packets;
    passes(&mut a, &mut b, 3);
    assert_eq!(a.stats(1).packets, before + 1);
}

#[test]
fn frames_that_are_wrong_are_not_counted_as_the_receivers_want_of_buffers() {
    let engine = engine(1);
    let mut link = link();
    let mut a = Nic::new(&mut *link, "a", Setup { spoofchk: true, ..Setup::default() }, &engine);
    let mut b = Nic::new(&mut *link, "b", Setup::default(), &engine);
    a.start(1);
    b.start(1);
    let (to, from) = (b.mac, a.mac);
    // Behind a frame that waits for a buffer in vain.
    let good = frame(to, from, 100, 1);
    let forged = frame(to, Mac([2; 6]), 100, 2);
    for bytes in [&good[..], &good[..10], &forged[..], &good[..]] {
        a.send_plain(0, bytes);
    }
    b.expect_drops(0, DropReason::NoRxBuffer, 2);
    a.expect_drops(1, DropReason::Runt, 1);
    a.expect_drops(1, DropReason::SpoofedMac, 1);
    let begun = Instant::now();
    while (a.stats(1).packets, a.stats(1).bytes) != (2, 200) {
        assert!(begun.elapsed() < SOON, "{:?}", a.stats(1));
    }
    assert_eq!(b.drops(0, DropReason::NoRxBuffer), 2);
}

#[test]
fn joined_devices_have_as_many_pairs_as_simulated_ones() {
    for (pairs, is_good) in [(0, false), (1, true), (15, true), (16, true), (17, false)] {
        let spec = DeviceSpec { name: "p".into(), max_vqp: Some(pairs), ..DeviceSpec::default() };
        assert_eq!(link().create(&spec).is_ok(), is_good, "{pairs}");
    }
}

#[test]
fn places_of_a_bridge_are_bounded_with_those_that_wind_up_and_refused_by_name() {
    let engine = engine(1);
    let mut bridge = bridge(&engine);
    let mut create = |at: usize| {
        bridge
            .create(&DeviceSpec { name: format!("p{at}"), ..DeviceSpec::default() })
            .map_err(|why| why.to_string())
    };
    let most = usize::from(ringway_pmd::net::fabric::MOST_PORTS);
    let mut devices: Vec<_> = (0..most).map(|at| create(at).unwrap()).collect();
    // Its session has not ended: the device is not dropped, though the registry has forgotten it.
    let refused = create(most).err().unwrap();
    assert!(refused.contains("no place on bridge/b") && refused.contains("try again"), "{refused}");
    devices.pop();
    create(most).unwrap();
}

#[test]
fn frame_of_which_some_segments_were_delivered_goes_on_where_it_was_when_pumps_are_made_anew() {
    let engine = patient_engine();
    let mut link = link();
    let offloads = F_CSUM | F_HOST_TSO4;
    let sends = Setup { features: Setup::default().features | offloads, pairs: 2, ..Setup::default() };
    let mut a = Nic::new(&mut *link, "a", sends, &engine);
    let mut b = Nic::new(&mut *link, "b", Setup::default(), &engine);
    a.start(2);
    b.start(1);
    let (bytes, claim) = large(b.mac, a.mac, 10_000, 1000);
    // Room for three segments of ten.
    b.post(0, 3);
    a.send(0, claim, &bytes);
    let mut arrived = b.expect(0, 3);
    // Another pair of the sender stops and starts: the pump that holds the frame is made anew, several times.
    for _ in 0..5 {
        a.device.service().unwrap().stop(1, WITHIN).unwrap();
        a.start_pair(1, true).unwrap();
    }
    b.post(0, 20);
    arrived.extend(b.expect(0, 7));
    std::thread::sleep(Duration::from_millis(50));
    assert!(b.received(0).is_empty(), "delivered twice");
    let sent: Vec<u8> = (0..10_000usize).map(|at| (at * 7) as u8).collect();
    let got: Vec<u8> = arrived.iter().flat_map(|(_, frame)| payload(frame)).collect();
    assert!(got == sent, "{} bytes of {}", got.len(), sent.len());
    // The next one goes from its start.
    a.send(0, claim, &bytes);
    let got: Vec<u8> = b.expect(0, 10).iter().flat_map(|(_, frame)| payload(frame)).collect();
    assert!(got == sent);
}

#[test]
fn frame_whose_sender_stops_in_the_middle_of_it_is_neither_delivered_twice_nor_lost_untold() {
    for format in [Format::Split, Format::Packed] {
        let engine = patient_engine();
        let mut link = link();
        let features = Setup::default().features | F_CSUM | F_HOST_TSO4;
        let mut a = Nic::new(&mut *link, "a", Setup { format, features, ..Setup::default() }, &engine);
        let mut b = Nic::new(&mut *link, "b", Setup::default(), &engine);
        a.goes_on = true;
        a.start(1);
        b.start(1);
        let (bytes, claim) = large(b.mac, a.mac, 10_000, 1000);
        // Room for three segments of ten.
        b.post(0, 3);
        a.send(0, claim, &bytes);
        let first = b.expect(0, 3);
        a.stop();
        assert_eq!(a.drops(1, DropReason::TxDisabled), 1, "{format:?}: the rest of it is counted");
        a.start_pair(0, true).unwrap();
        b.post(0, 20);
        std::thread::sleep(Duration::from_millis(50));
        assert!(b.received(0).is_empty(), "{format:?}: delivered twice");
        // The next one is whole, and a stop between two frames loses none.
        for _ in 0..2 {
            a.send(0, claim, &bytes);
            let got: Vec<u8> = b.expect(0, 10).iter().flat_map(|(_, frame)| payload(frame)).collect();
            let sent: Vec<u8> = (0..10_000usize).map(|at| (at * 7) as u8).collect();
            assert!(got == sent && payload(&first[0].1) == sent[..1000]);
            a.stop();
            a.start_pair(0, true).unwrap();
            b.post(0, 20);
        }
        assert_eq!(a.drops(1, DropReason::TxDisabled), 1);
    }
}
