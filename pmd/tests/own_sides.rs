//! A driver's own source and sink, outside of the data path's own: a sink that finishes frames when it likes, in order, while
//! everything else goes on; on a pump of their own and on a bridge.

#![expect(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ringway_engine::{Armed, Budget, Clock, Engine, EngineConfig, IdlePolicy, Polled, Pump, Watcher};
use ringway_pmd::counters::{DropReason, Example, QueueCounters, Tally};
use ringway_pmd::net::Mac;
use ringway_pmd::net::fabric::{Fabric, Port, Side};
use ringway_pmd::net::frame::Ingress;
use ringway_pmd::net::offload::{Offload, Offloads};
use ringway_pmd::net::scratch::Scratch;
use ringway_pmd::net::side::{Passage, Refused, Sink, Source};
use ringway_pmd::net::transfer::{Transfer, TransferOptions};
use ringway_pmd::vdpa::{Ended, Placer, ServeError};
use ringway_ring::chain::Burst;
use ringway_ring::guest::GuestMap;
use ringway_ring::memory::HostMemory;
use ringway_ring::queue::RingFault;
use ringway_ring::tsc;

const FRAME: usize = 64;
/// Bytes before the Ethernet header; a chain with fewer is a fault.
const HEADER: usize = 12;
const SLOTS: u64 = 512;

/// A source of numbered frames that lie in memory of its own, a slot each.
#[derive(Debug)]
struct Frames {
    shared: Arc<FramesShared>,
    map: Arc<GuestMap>,
    burst: Burst,
    to: Mac,
    from: Mac,
    taken: u64,
    is_faulted: bool,
    published: u64,
    tally: Tally,
    counters: Arc<QueueCounters>,
}

/// What a test sees of it, and sets.
#[derive(Debug)]
struct FramesShared {
    /// How many it has to send, and how many it was given back.
    has: AtomicU64,
    back: AtomicU64,
    dropped: AtomicU64,
    /// The first of them that is a fault.
    broken: AtomicU64,
    /// It panics when it is asked next.
    panics: AtomicBool,
    order: Arc<Order>,
}

/// What a source and a sink did, one after the other.
#[derive(Debug, Default)]
struct Order(Mutex<Vec<Done>>);

impl Order {
    fn note(&self, done: Done) {
        self.0.lock().unwrap().push(done);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    /// The sink, with so many frames since it was made.
    Delivered(u64),
    /// The source, likewise.
    GivenBack(u64),
    Failed,
}

impl Frames {
    fn new(to: Mac, from: Mac) -> (Box<Frames>, Arc<FramesShared>) {
        Frames::noted(to, from, Arc::default())
    }

    fn noted(to: Mac, from: Mac, order: Arc<Order>) -> (Box<Frames>, Arc<FramesShared>) {
        let memory = HostMemory::allocate("test", SLOTS * FRAME as u64).unwrap();
        let map = Arc::new(memory.guest_map(0).unwrap());
        let [has, back, dropped, broken] = [0, 0, 0, u64::MAX].map(AtomicU64::new);
        let panics = AtomicBool::new(false);
        let shared = Arc::new(FramesShared { has, back, dropped, broken, panics, order });
        let burst = Burst::try_new(Arc::clone(&map)).unwrap();
        let (to_test, tally) = (Arc::clone(&shared), Tally::default());
        let frames = Frames {
            shared,
            map,
            burst,
            to,
            from,
            taken: 0,
            is_faulted: false,
            published: 0,
            tally,
            counters: Arc::default(),
        };
        (Box::new(frames), to_test)
    }
}

impl Source for Frames {
    fn ingress(&self) -> Ingress {
        Ingress { header_len: HEADER, max_frame: 1518, may: Offloads::default(), only: None, by_vlan: false }
    }
    fn is_faulted(&self) -> bool {
        self.is_faulted
    }
    fn peek(&mut self, frames: usize) -> usize {
        self.burst.clear();
        assert!(!self.shared.panics.load(Ordering::SeqCst), "asked to panic");
        let end = self.shared.has.load(Ordering::SeqCst).min(self.taken + frames as u64);
        for number in self.taken..end {
            let at = number % SLOTS * FRAME as u64;
            let mut bytes = [0; FRAME];
            let frame = &mut bytes[HEADER..];
            frame[..6].copy_from_slice(&self.to.0);
            frame[6..12].copy_from_slice(&self.from.0);
            frame[20..28].copy_from_slice(&number.to_le_bytes());
            self.map.resolve(at, FRAME as u64).unwrap().write(&bytes);
            let is_broken = number == self.shared.broken.load(Ordering::SeqCst);
            let len = if is_broken { HEADER - 1 } else { FRAME };
            assert!(self.burst.push_own(number as u16, at, len as u32));
        }
        self.burst.chains().len()
    }
    fn burst(&self) -> &Burst {
        &self.burst
    }
    fn reserve(&mut self, frames: usize) -> std::io::Result<()> {
        assert!(frames as u64 <= SLOTS);
        Ok(())
    }
    fn take(&mut self, frames: usize) {
        self.taken += frames as u64;
    }
    fn give_back(&mut self, frames: usize) {
        let back = self.shared.back.fetch_add(frames as u64, Ordering::SeqCst) + frames as u64;
        assert!(back <= self.taken);
    }
    fn publish(&mut self) {
        let back = self.shared.back.load(Ordering::SeqCst);
        if back > self.published {
            self.published = back;
            self.shared.order.note(Done::GivenBack(back));
        }
    }
    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
    fn count_drops(&mut self, _reason: DropReason, frames: u64) {
        self.shared.dropped.fetch_add(frames, Ordering::SeqCst);
    }
    fn set_example(&self, _reason: DropReason, _example: Example) {}
    fn fail(&mut self, _fault: RingFault) {
        self.is_faulted = true;
        self.shared.order.note(Done::Failed);
    }
    fn arm(&mut self) -> Option<bool> {
        None
    }
    fn disarm(&mut self) {}
    fn wake_source(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A sink that keeps frames where they are until it is told to go on; or, where `order` is, that is finished at once.
#[derive(Debug)]
struct Later {
    shared: Arc<LaterShared>,
    order: Option<Arc<Order>>,
    published: u64,
    /// Where the frames lie that it has not finished.
    out: Vec<(Arc<GuestMap>, u64)>,
    given: u64,
    finished: u64,
    tally: Tally,
    counters: Arc<QueueCounters>,
}

/// What a test sees of it, and sets.
#[derive(Debug, Default)]
struct LaterShared {
    /// How many it may finish.
    may: AtomicU64,
    /// By frame, in order: from whom, and its number, as they were when it finished with it.
    got: Mutex<Vec<(Mac, u64)>>,
    given: AtomicU64,
    dropped: AtomicU64,
}

impl Later {
    fn new() -> (Box<Later>, Arc<LaterShared>) {
        Later::noted(None)
    }

    fn noted(order: Option<Arc<Order>>) -> (Box<Later>, Arc<LaterShared>) {
        let shared = Arc::<LaterShared>::default();
        let (to_test, tally) = (Arc::clone(&shared), Tally::default());
        let later = Later {
            shared,
            order,
            published: 0,
            out: Vec::new(),
            given: 0,
            finished: 0,
            tally,
            counters: Arc::default(),
        };
        (Box::new(later), to_test)
    }
}

impl Sink for Later {
    fn takes(&self) -> Offloads {
        Offloads::default()
    }
    fn is_usable(&self) -> bool {
        true
    }
    fn deliver(&mut self, from: Passage<'_>, _scratch: &mut Scratch) -> Result<(), Refused> {
        if self.defers() {
            let gpa = from.burst.addresses(from.chain).next().unwrap();
            self.out.push((Arc::clone(from.burst.map()), gpa + from.skip as u64));
        }
        self.given += 1;
        self.shared.given.store(self.given, Ordering::SeqCst);
        Ok(())
    }
    fn put_bytes(&mut self, _: &[u8], _: &[u8], _: Offload) -> Result<(), Refused> {
        Err(Refused::Starved)
    }
    fn publish(&mut self) {
        if self.given > self.published {
            self.published = self.given;
            self.order.iter().for_each(|order| order.note(Done::Delivered(self.given)));
        }
    }
    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
    fn count_drops(&mut self, _reason: DropReason, frames: u64) {
        self.shared.dropped.fetch_add(frames, Ordering::SeqCst);
    }
    fn set_example(&mut self, _reason: DropReason, _example: Example) {}
    fn arm(&mut self) -> Option<bool> {
        None
    }
    fn disarm(&mut self) {}
    fn wake_source(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn defers(&self) -> bool {
        self.order.is_none()
    }
    fn given(&self) -> u64 {
        self.given
    }
    fn finished(&mut self) -> u64 {
        let end = self.shared.may.load(Ordering::SeqCst).min(self.given);
        for (map, gpa) in self.out.drain(..(end - self.finished) as usize) {
            let mut frame = [0; FRAME - HEADER];
            map.resolve(gpa, frame.len() as u64).unwrap().read(&mut frame);
            let from = Mac(frame[6..12].try_into().unwrap());
            let number = u64::from_le_bytes(frame[20..28].try_into().unwrap());
            self.shared.got.lock().unwrap().push((from, number));
        }
        self.finished = end;
        end
    }
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, last])
}

fn options() -> TransferOptions {
    TransferOptions { swap_mac: false, absent: DropReason::PeerDown, hertz: 1_000_000_000 }
}

/// Every frame of a sender, in order.
fn all_of(got: &LaterShared, from: Mac) -> Vec<u64> {
    got.got.lock().unwrap().iter().filter(|(sender, _)| *sender == from).map(|(_, number)| *number).collect()
}

#[test]
fn frames_that_are_out_go_back_in_order_as_they_are_finished_while_others_are_taken() {
    let (a, a_state) = Frames::new(mac(9), mac(1));
    let (b, b_state) = Frames::new(mac(9), mac(2));
    let (sink, sink_state) = Later::new();
    let mut pump = Transfer::new(Some(sink), vec![a, b], options()).unwrap();
    let budget = Budget::default();
    a_state.has.store(100, Ordering::SeqCst);
    b_state.has.store(100, Ordering::SeqCst);
    let mut now = 0;
    let mut poll = |pump: &mut Transfer, times: usize| {
        let mut last = Polled::Idle;
        for _ in 0..times {
            now += 1;
            last = pump.poll(&budget, now);
        }
        last
    };
    // All of both are taken though nothing is finished.
    assert_eq!(poll(&mut pump, 10), Polled::Idle);
    assert_eq!(sink_state.given.load(Ordering::SeqCst), 200);
    assert_eq!((a_state.back.load(Ordering::SeqCst), b_state.back.load(Ordering::SeqCst)), (0, 0));
    // One by one they go back, each to its own.
    for may in 1..=200 {
        sink_state.may.store(may, Ordering::SeqCst);
        assert_eq!(poll(&mut pump, 1), Polled::Moved(1));
        let back = [&a_state, &b_state].map(|state| state.back.load(Ordering::SeqCst));
        assert_eq!(back[0] + back[1], may);
        let of_a = all_of(&sink_state, mac(1)).len() as u64;
        assert_eq!(back, [of_a, may - of_a]);
    }
    let numbers: Vec<u64> = (0..100).collect();
    assert_eq!((all_of(&sink_state, mac(1)), all_of(&sink_state, mac(2))), (numbers.clone(), numbers));
    // A pump that is to stop takes nothing new, and is stopped once all is back.
    a_state.has.store(110, Ordering::SeqCst);
    poll(&mut pump, 1);
    assert!(matches!(pump.arm(), Armed::CannotSleep));
    pump.disarm();
    assert!(!pump.begin_stop());
    a_state.has.store(120, Ordering::SeqCst);
    poll(&mut pump, 2);
    assert!(!pump.stopped());
    sink_state.may.store(210, Ordering::SeqCst);
    poll(&mut pump, 1);
    assert!(pump.stopped());
    assert_eq!(a_state.back.load(Ordering::SeqCst), 110);
    // It may be placed again.
    poll(&mut pump, 1);
    sink_state.may.store(220, Ordering::SeqCst);
    poll(&mut pump, 1);
    assert_eq!(a_state.back.load(Ordering::SeqCst), 120);
    assert_eq!(a_state.dropped.load(Ordering::SeqCst) + sink_state.dropped.load(Ordering::SeqCst), 0);
}

#[test]
fn sink_that_finishes_nothing_is_given_as_much_as_may_be_out_and_no_more() {
    let (source, state) = Frames::new(mac(9), mac(1));
    let (sink, sink_state) = Later::new();
    let mut pump = Transfer::new(Some(sink), vec![source], options()).unwrap();
    state.has.store(400, Ordering::SeqCst);
    for now in 0..100 {
        pump.poll(&Budget::default(), now);
    }
    assert_eq!(sink_state.given.load(Ordering::SeqCst), 256);
    assert!(matches!(pump.arm(), Armed::CannotSleep));
    pump.disarm();
    for may in [1, 300, 400] {
        sink_state.may.store(may, Ordering::SeqCst);
        for now in 0..100 {
            pump.poll(&Budget::default(), now);
        }
    }
    assert_eq!(state.back.load(Ordering::SeqCst), 400);
    assert_eq!(all_of(&sink_state, mac(1)), (0..400).collect::<Vec<_>>());
}

struct Nobody;

impl Watcher for Nobody {
    fn pump_ended(&self) {}
}

fn wait(what: &str, is_so: impl Fn() -> bool) {
    let begun = Instant::now();
    while !is_so() {
        assert!(begun.elapsed() < Duration::from_secs(20), "{what}");
        std::thread::yield_now();
    }
}

/// A port of a bridge with a source and a sink of a driver's own.
struct Own {
    port: Port,
    sends: Arc<FramesShared>,
    gets: Arc<LaterShared>,
}

impl Own {
    fn new(fabric: &Arc<Fabric>, placer: &Placer, to: Mac, from: Mac, may: u64) -> Own {
        let port = fabric.port(None).unwrap();
        let (sends, gets) = (Frames::new(to, from), Later::new());
        gets.1.may.store(may, Ordering::SeqCst);
        Own::attach(port, placer, sends, gets)
    }

    fn attach(
        port: Port,
        placer: &Placer,
        (source, sends): (Box<Frames>, Arc<FramesShared>),
        (sink, gets): (Box<Later>, Arc<LaterShared>),
    ) -> Own {
        let sides = vec![(0, true, Side::Sink(sink)), (1, true, Side::Source(source))];
        port.attach(sides, placer, Duration::from_secs(10)).unwrap();
        Own { port, sends, gets }
    }

    fn send(&self, more: u64) {
        self.sends.has.fetch_add(more, Ordering::SeqCst);
    }
}

/// A bridge, and where its pump runs.
fn bridge() -> (Placer, Arc<Fabric>) {
    let (mut placers, fabric) = bridge_on(1);
    (placers.remove(0), fabric)
}

/// A bridge, and where its parts run, on so many cores or as many as there are.
fn bridge_on(cores: usize) -> (Vec<Placer>, Arc<Fabric>) {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let cores: Vec<usize> = (0..1024).rev().filter(|core| allowed.is_set(*core)).take(cores).collect();
    let clock = Clock { cycles: tsc::cycles, hertz: tsc::hertz() };
    let engine =
        Engine::start(EngineConfig { cores: cores.clone(), idle: IdlePolicy::Adaptive, clock }).unwrap();
    let (fabric, _settings) = Fabric::bridge("b", cores[0], Duration::from_secs(300), [1, 2]);
    let placer = |core| Placer {
        name: "p".into(),
        engine: engine.clone(),
        core_of: Arc::new(move |_| core),
        watcher: Arc::new(Nobody),
    };
    (cores.into_iter().map(placer).collect(), fabric)
}

/// Three frames and a fault, in one burst: all else is visible before anything of the sender's is.
const ORDER: [Done; 3] = [Done::Delivered(3), Done::GivenBack(3), Done::Failed];

#[test]
fn receiver_is_published_before_its_sender_and_both_before_the_sender_fails() {
    let order = Arc::<Order>::default();
    let (source, state) = Frames::noted(mac(9), mac(1), Arc::clone(&order));
    let (sink, _) = Later::noted(Some(Arc::clone(&order)));
    let mut pump = Transfer::new(Some(sink), vec![source], options()).unwrap();
    state.broken.store(3, Ordering::SeqCst);
    state.has.store(5, Ordering::SeqCst);
    for now in 0..3 {
        pump.poll(&Budget::default(), now);
    }
    assert_eq!(*order.0.lock().unwrap(), ORDER);
}

#[test]
fn receiver_on_a_bridge_is_published_before_its_sender_and_both_before_the_sender_fails() {
    let order = Arc::<Order>::default();
    let (placer, fabric) = bridge();
    let gets = Later::noted(Some(Arc::clone(&order)));
    let _receiver = Own::attach(fabric.port(None).unwrap(), &placer, Frames::new(mac(1), mac(2)), gets);
    let sends = Frames::noted(mac(2), mac(1), Arc::clone(&order));
    let sender = Own::attach(fabric.port(None).unwrap(), &placer, sends, Later::new());
    sender.sends.broken.store(3, Ordering::SeqCst);
    sender.send(5);
    wait("the fault", || order.0.lock().unwrap().contains(&Done::Failed));
    assert_eq!(*order.0.lock().unwrap(), ORDER);
}

#[test]
fn port_of_a_bridge_that_finishes_nothing_holds_up_nobody_but_who_sends_to_it() {
    let (placer, fabric) = bridge();
    // 1 and 2 talk to each other, 3 to the one that finishes nothing.
    let (one, two, three, stuck) = (mac(1), mac(2), mac(3), mac(9));
    let stuck_port = Own::new(&fabric, &placer, one, stuck, u64::MAX);
    let ports = [(two, one), (one, two), (stuck, three)]
        .map(|(to, from)| Own::new(&fabric, &placer, to, from, u64::MAX));
    // Each is heard of once, so that nothing is flooded after.
    for own in [&stuck_port].into_iter().chain(&ports) {
        own.send(1);
        wait("heard of", || own.sends.back.load(Ordering::SeqCst) == 1);
    }
    let before = stuck_port.gets.given.load(Ordering::SeqCst);
    stuck_port.gets.may.store(before, Ordering::SeqCst);
    let [a, b, c] = &ports;
    c.send(50);
    wait("given to the one that is stuck", || stuck_port.gets.given.load(Ordering::SeqCst) == before + 50);
    // The others go on.
    for own in [a, b] {
        own.send(1000);
    }
    for own in [a, b] {
        wait("the others", || own.sends.back.load(Ordering::SeqCst) == 1001);
    }
    assert_eq!(c.sends.back.load(Ordering::SeqCst), 1, "finished before its receiver was");
    // Its queues stay in service while it reads.
    let stopped = c.port.stop(0, Duration::from_millis(20));
    assert!(matches!(stopped, Err(ServeError::Stuck(_))), "{stopped:?}");
    assert!(c.port.is_started(0));
    stuck_port.gets.may.store(before + 20, Ordering::SeqCst);
    wait("the first twenty", || c.sends.back.load(Ordering::SeqCst) == 21);
    stuck_port.gets.may.store(u64::MAX, Ordering::SeqCst);
    wait("all", || c.sends.back.load(Ordering::SeqCst) == 51);
    wait("out of service", || !c.port.is_started(0));
    assert_eq!(all_of(&stuck_port.gets, three), (0..51).collect::<Vec<_>>());
    a.send(1000);
    wait("the others, after", || a.sends.back.load(Ordering::SeqCst) == 2001);
    let lost = |own: &Own| own.sends.dropped.load(Ordering::SeqCst) + own.gets.dropped.load(Ordering::SeqCst);
    assert_eq!(ports.iter().chain([&stuck_port]).map(lost).sum::<u64>(), 0);
}

#[test]
fn port_on_another_core_that_finishes_nothing_holds_up_nobody_even_who_sends_to_it() {
    let (placers, fabric) = bridge_on(2);
    let [here, there] = &placers[..] else { return println!("left out: this needs two cores") };
    let (one, two, three, stuck) = (mac(1), mac(2), mac(3), mac(9));
    let stuck_port = Own::new(&fabric, there, one, stuck, u64::MAX);
    // 1 and 2 talk to each other across the cores, 3 from the other core to the one that finishes nothing.
    let a = Own::new(&fabric, here, two, one, u64::MAX);
    let b = Own::new(&fabric, there, one, two, u64::MAX);
    let c = Own::new(&fabric, here, stuck, three, u64::MAX);
    let all = [&stuck_port, &a, &b, &c];
    for own in all {
        let heard = || all.iter().map(|own| own.gets.got.lock().unwrap().len()).sum::<usize>();
        let before = heard();
        own.send(1);
        wait("heard of", || own.sends.back.load(Ordering::SeqCst) == 1 && heard() > before);
    }
    wait("learned everywhere", || {
        c.send(1);
        let sent = c.sends.has.load(Ordering::SeqCst);
        wait("an answer", || c.sends.back.load(Ordering::SeqCst) == sent);
        let last = |own: &Own| own.gets.got.lock().unwrap().last().copied();
        last(&a) != Some((three, sent - 1)) && last(&b) != Some((three, sent - 1))
    });
    let sent = c.sends.has.load(Ordering::SeqCst);
    let before = stuck_port.gets.given.load(Ordering::SeqCst);
    stuck_port.gets.may.store(before, Ordering::SeqCst);
    c.send(10);
    wait("given to the one that is stuck", || stuck_port.gets.given.load(Ordering::SeqCst) == before + 10);
    for own in [&a, &b] {
        own.send(1000);
    }
    for own in [&a, &b] {
        wait("the others", || own.sends.back.load(Ordering::SeqCst) == 1001);
    }
    // What it has not finished is kept for it, as much as there is room for; the rest is dropped there.
    c.send(50);
    wait("all", || c.sends.back.load(Ordering::SeqCst) == sent + 60);
    let lost = |own: &Own| own.sends.dropped.load(Ordering::SeqCst) + own.gets.dropped.load(Ordering::SeqCst);
    assert_eq!((stuck_port.gets.given.load(Ordering::SeqCst), lost(&stuck_port)), (before + 16, 44));
    stuck_port.gets.may.store(u64::MAX, Ordering::SeqCst);
    wait("what was kept", || all_of(&stuck_port.gets, three) == (0..sent + 16).collect::<Vec<_>>());
    assert_eq!([&a, &b, &c].into_iter().map(lost).sum::<u64>(), 0);
}

#[test]
fn part_that_panics_takes_nobody_with_it_and_its_ports_are_told() {
    let (placers, fabric) = bridge_on(2);
    let [here, there] = &placers[..] else { return println!("left out: this needs two cores") };
    let (one, two, three, four) = (mac(1), mac(2), mac(3), mac(4));
    let a = Own::new(&fabric, here, two, one, u64::MAX);
    let b = Own::new(&fabric, here, one, two, u64::MAX);
    let c = Own::new(&fabric, there, one, three, u64::MAX);
    let d = Own::new(&fabric, here, three, four, u64::MAX);
    for own in [&a, &b, &c, &d] {
        own.send(1);
        wait("heard of", || own.sends.back.load(Ordering::SeqCst) == 1);
    }
    c.sends.panics.store(true, Ordering::SeqCst);
    // Frames are on their way there.
    d.send(2000);
    let ended = || c.port.take_ended(Duration::from_secs(10));
    let begun = Instant::now();
    let told = loop {
        if let Some(told) = ended().pop() {
            break told;
        }
        assert!(begun.elapsed() < Duration::from_secs(20));
    };
    assert!(matches!(told, (0, Ended::Panicked(_))), "{told:?}");
    assert!(!c.port.is_started(0));
    // Everything of the others is served, and what was for it is finished.
    for own in [&a, &b] {
        own.send(1000);
        wait("the others", || own.sends.back.load(Ordering::SeqCst) == 1001);
        assert!(own.port.is_started(0));
    }
    wait("what was for it", || d.sends.back.load(Ordering::SeqCst) == 2001);
    assert_eq!(a.port.core(0), d.port.core(0));
}

#[test]
fn frame_that_comes_back_from_a_port_that_reflects_cuts_nobody_off() {
    let (placer, fabric) = bridge();
    let (guest, other) = (mac(1), mac(3));
    let group = Mac([0xff; 6]);
    let one = Own::new(&fabric, &placer, group, guest, u64::MAX);
    let two = Own::new(&fabric, &placer, guest, other, u64::MAX);
    let port = fabric.port(None).unwrap().reflecting();
    let gets = Later::new();
    gets.1.may.store(u64::MAX, Ordering::SeqCst);
    // What comes back is the guest's own.
    let uplink = Own::attach(port, &placer, Frames::new(group, guest), gets);
    one.send(3);
    wait("the broadcasts", || all_of(&uplink.gets, guest).len() == 3);
    uplink.send(3);
    wait("their end", || uplink.sends.dropped.load(Ordering::SeqCst) == 3);
    two.send(5);
    wait("what is for the guest", || all_of(&one.gets, other).len() == 5);
    assert_eq!((all_of(&two.gets, guest).len(), all_of(&one.gets, guest).len()), (3, 0), "heard twice");
    assert!(all_of(&uplink.gets, other).is_empty(), "it is not behind the port that reflects");
    // It is there, once it left this one.
    one.port.stop(0, Duration::from_secs(10)).unwrap();
    uplink.send(2);
    wait("the guest from there", || all_of(&two.gets, guest).len() == 5);
    two.send(1);
    wait("what is for the guest there", || all_of(&uplink.gets, other).len() == 1);
}

#[test]
fn frame_to_everybody_whose_sender_cannot_be_learned_goes_to_no_port_that_reflects() {
    let (placer, fabric) = bridge();
    // No station has this address: it is never learned, as one beyond a port's share is not.
    let (nobody, group) = (Mac([0; 6]), Mac([0xff; 6]));
    let one = Own::new(&fabric, &placer, group, nobody, u64::MAX);
    let known = Own::new(&fabric, &placer, group, mac(2), u64::MAX);
    let port = fabric.port(None).unwrap().reflecting();
    let gets = Later::new();
    gets.1.may.store(u64::MAX, Ordering::SeqCst);
    let uplink = Own::attach(port, &placer, Frames::new(group, nobody), gets);
    one.send(3);
    wait("the other's", || all_of(&known.gets, nobody).len() == 3);
    known.send(1);
    wait("what comes from one that is known", || all_of(&uplink.gets, mac(2)).len() == 1);
    assert!(all_of(&uplink.gets, nobody).is_empty(), "it would come back, and be heard twice");
    // With nobody else there it is dropped, as what is too much for all.
    known.port.stop(0, Duration::from_secs(10)).unwrap();
    one.send(2);
    wait("its drops", || one.sends.dropped.load(Ordering::SeqCst) == 2);
}
