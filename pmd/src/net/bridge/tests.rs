//! Parts of a bridge that a test polls by hand, in one thread: as many as it likes, and one that is not polled is held.

use std::collections::BTreeMap;
use std::io;
use std::sync::Mutex;

use ringway_ring::guest::GuestMap;
use ringway_ring::memory::{HostMemory, PageKind};
use ringway_ring::queue::RingFault;

use super::*;
use crate::counters::{Example, QueueCounters, Tally};
use crate::net::announce::Announcement;
use crate::net::offload::{Offload, Offloads};
use crate::net::rates::PortRates;
use crate::net::side::{Passage, Refused};

const FRAME: usize = 60;
/// Frames that a source may have out: as much memory as it has.
const SLOTS: usize = 512;

/// What one port has sent and got, by the last byte of addresses.
#[derive(Debug, Default)]
struct Log {
    /// To whom, and a number.
    sends: Vec<(Mac, u32)>,
    back: usize,
    /// From whom, and the number.
    got: Vec<(u8, u32)>,
    /// How many of those were shown to it.
    shown: usize,
    sent_drops: BTreeMap<usize, u64>,
    got_drops: BTreeMap<usize, u64>,
    /// Frames that it takes.
    room: usize,
    /// Frames that it may have out, if they are fewer than it has memory for.
    slots: Option<usize>,
}

impl Log {
    fn lost(&self, reason: DropReason) -> u64 {
        self.sent_drops.get(&(reason as usize)).copied().unwrap_or(0)
    }

    fn from(&self, sender: u8) -> Vec<u32> {
        self.got.iter().filter(|(from, _)| *from == sender).map(|(_, number)| *number).collect()
    }
}

type Shared = Arc<Mutex<Log>>;

#[derive(Debug)]
struct Sends {
    log: Shared,
    map: Arc<GuestMap>,
    burst: Burst,
    from: Mac,
    taken: usize,
    tally: Tally,
    counters: Arc<QueueCounters>,
}

impl Sends {
    fn new(from: Mac, log: Shared) -> Sends {
        let bytes = (SLOTS * FRAME) as u64;
        let memory = HostMemory::allocate_on(PageKind::Base, "test", bytes.next_multiple_of(4096)).unwrap();
        let map = Arc::new(memory.guest_map(0).unwrap());
        let burst = Burst::try_new(Arc::clone(&map)).unwrap();
        Sends { log, map, burst, from, taken: 0, tally: Tally::default(), counters: Arc::default() }
    }
}

impl Source for Sends {
    fn ingress(&self) -> Ingress {
        Ingress { header_len: 0, max_frame: 1518, may: Offloads::default(), only: None, by_vlan: false }
    }
    fn is_faulted(&self) -> bool {
        false
    }
    fn peek(&mut self, frames: usize) -> usize {
        self.burst.clear();
        let log = self.log.lock().unwrap();
        let may = log.slots.map_or(frames, |slots| (log.back + slots - self.taken).min(frames));
        let next = log.sends.iter().enumerate().skip(self.taken).take(may);
        for (nth, (to, number)) in next {
            assert!(nth < log.back + SLOTS, "its place is read");
            let mut bytes = [0; FRAME];
            bytes[..6].copy_from_slice(&to.0);
            bytes[6..12].copy_from_slice(&self.from.0);
            bytes[20..24].copy_from_slice(&number.to_le_bytes());
            let at = (nth % SLOTS * FRAME) as u64;
            self.map.resolve(at, FRAME as u64).unwrap().write(&bytes);
            assert!(self.burst.push_own(nth as u16, at, FRAME as u32));
        }
        self.burst.chains().len()
    }
    fn burst(&self) -> &Burst {
        &self.burst
    }
    fn reserve(&mut self, _frames: usize) -> io::Result<()> {
        Ok(())
    }
    fn take(&mut self, frames: usize) {
        self.taken += frames;
    }
    fn give_back(&mut self, frames: usize) {
        let mut log = self.log.lock().unwrap();
        // Whoever reads one of them from now on has something else.
        for nth in log.back..log.back + frames {
            let at = (nth % SLOTS * FRAME) as u64;
            self.map.resolve(at, FRAME as u64).unwrap().write(&[0xee; FRAME]);
        }
        log.back += frames;
        assert!(log.back <= self.taken);
    }
    fn publish(&mut self) {}
    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
    fn count_drops(&mut self, reason: DropReason, frames: u64) {
        *self.log.lock().unwrap().sent_drops.entry(reason as usize).or_default() += frames;
    }
    fn set_example(&self, _reason: DropReason, _example: Example) {}
    fn fail(&mut self, fault: RingFault) {
        panic!("{fault:?}");
    }
    fn arm(&mut self) -> Option<bool> {
        Some(self.peek(1) > 0)
    }
    fn disarm(&mut self) {}
    fn wake_source(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Something that is done while a frame is delivered.
type Hook = Arc<Mutex<Option<Box<dyn FnMut() + Send>>>>;

struct Gets {
    log: Shared,
    hook: Hook,
    tally: Tally,
    counters: Arc<QueueCounters>,
}

impl std::fmt::Debug for Gets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gets").finish_non_exhaustive()
    }
}

impl Sink for Gets {
    fn takes(&self) -> Offloads {
        Offloads::default()
    }
    fn is_usable(&self) -> bool {
        true
    }
    fn deliver(&mut self, from: Passage<'_>, _scratch: &mut Scratch) -> Result<(), Refused> {
        if let Some(mut hook) = self.hook.lock().unwrap().take() {
            hook();
        }
        let mut log = self.log.lock().unwrap();
        if log.got.len() >= log.room {
            return Err(Refused::Starved);
        }
        let mut bytes = [0; FRAME];
        from.copy(&mut bytes);
        log.got.push((bytes[11], u32::from_le_bytes(bytes[20..24].try_into().unwrap())));
        Ok(())
    }
    fn put_bytes(&mut self, _: &[u8], _: &[u8], _: Offload) -> Result<(), Refused> {
        Err(Refused::Starved)
    }
    fn publish(&mut self) {
        let mut log = self.log.lock().unwrap();
        log.shown = log.got.len();
    }
    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
    fn count_drops(&mut self, reason: DropReason, frames: u64) {
        *self.log.lock().unwrap().got_drops.entry(reason as usize).or_default() += frames;
    }
    fn set_example(&mut self, _reason: DropReason, _example: Example) {}
    fn arm(&mut self) -> Option<bool> {
        Some(false)
    }
    fn disarm(&mut self) {}
    fn wake_source(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// Ports by their numbers, which are slots and the last bytes of their addresses, each in a part.
struct Scene {
    stations: Arc<Stations>,
    known: Vec<Fdb>,
    /// Not in a part just now.
    ports: Vec<BridgePort>,
    parts: Vec<Arc<Mutex<BridgePump<true>>>>,
    logs: BTreeMap<u8, Shared>,
    hooks: BTreeMap<u8, Hook>,
    /// Slots of ports that are in none for longer.
    held: Vec<u16>,
    now: u64,
}

fn mac(port: u8) -> Mac {
    Mac([2, 0, 0, 0, 0, port])
}

const ALL: Mac = Mac([0xff; 6]);

impl Scene {
    fn new(parts: &[&[u8]]) -> Scene {
        let ageing = ticks(300 * tsc::hertz());
        let options = FdbOptions { capacity: 8192, ports: 64, per_port: 1024, ageing, seed: [1, 2] };
        let stations = Arc::new(Stations::new(options));
        let known = vec![*stations.empty_fdb().unwrap()];
        let (logs, hooks) = (BTreeMap::new(), BTreeMap::new());
        let (ports, parts_of, held) = (Vec::new(), Vec::new(), Vec::new());
        let mut scene = Scene { stations, known, ports, parts: parts_of, logs, hooks, held, now: 1 << 50 };
        for port in parts.iter().flat_map(|part| part.iter()) {
            let log: Shared = Arc::new(Mutex::new(Log { room: usize::MAX, ..Log::default() }));
            let hook = Hook::default();
            let sends = Sends::new(mac(*port), Arc::clone(&log));
            let gets = Gets {
                log: Arc::clone(&log),
                hook: Arc::clone(&hook),
                tally: Tally::default(),
                counters: Arc::default(),
            };
            scene.ports.push(BridgePort {
                slot: (*port).into(),
                sources: vec![(0, Box::new(sends))],
                sinks: vec![(0, Box::new(gets))],
                flood: None,
                rates: Arc::<PortRates>::default(),
                announcement: Arc::new(Announcement::new(Arc::default())),
                reflects: false,
                vlans: None,
            });
            scene.logs.insert(*port, log);
            scene.hooks.insert(*port, hook);
        }
        scene.place(parts);
        scene
    }

    /// Has the ports, which no part has, in these.
    fn place(&mut self, parts: &[&[u8]]) {
        let mut of_part: Vec<Vec<BridgePort>> = Vec::new();
        for part in parts {
            let is_in = |port: &mut BridgePort| part.contains(&(port.slot as u8));
            of_part.push(self.ports.extract_if(.., is_in).collect());
        }
        let told: Vec<Vec<PartPort>> = of_part
            .iter()
            .map(|ports| {
                let map = |port: &BridgePort| Arc::clone(port.sources[0].1.burst().map());
                let told = |port: &BridgePort| PartPort {
                    slot: port.slot,
                    sources: vec![(0, map(port))],
                    has_sinks: true,
                    later: 0,
                    vlans: None,
                };
                ports.iter().map(told).collect()
            })
            .collect();
        let mut known = self.known.remove(0);
        std::mem::take(&mut self.known).iter().for_each(|other| known.merge(other, ticks(self.now)));
        let views = self.stations.views(parts.len());
        for ((ports, part), view) in of_part.into_iter().zip(Part::all(&told).unwrap()).zip(views) {
            let mut fdb = self.stations.empty_fdb().unwrap();
            fdb.copy_from(&known);
            let stations = Arc::clone(&self.stations);
            let held = self.held.clone();
            let knowledge = Knowledge { fdb, since: 0, stations, view, news: Arc::default(), held };
            let scratch = Scratch::new(true).unwrap();
            let pump = BridgePump::new(ports, knowledge, tsc::hertz(), scratch, Some(Box::new(part)));
            self.parts.push(Arc::new(Mutex::new(pump)));
        }
    }

    /// Polls one part so many times, which takes so long each.
    fn poll(&mut self, part: usize, times: usize, micros: u64) {
        let mut pump = self.parts[part].lock().unwrap();
        for _ in 0..times {
            self.now += micros * tsc::hertz() / 1_000_000;
            pump.poll(&Budget::default(), self.now);
        }
    }

    /// Has a part sleep for as long as it likes to, and look then; for how many nanoseconds it did.
    fn sleep(&mut self, part: usize) -> u64 {
        let mut pump = self.parts[part].lock().unwrap();
        let slept = match pump.arm() {
            Armed::Sleep { within_ns: Some(within_ns) } => {
                self.now += within_ns * tsc::hertz() / 1_000_000_000;
                pump.disarm();
                within_ns
            }
            Armed::Sleep { within_ns: None } => panic!("nobody wakes it"),
            Armed::HasWork | Armed::CannotSleep => 0,
        };
        pump.poll(&Budget::default(), self.now);
        slept
    }

    /// Polls all so many times.
    fn turn(&mut self, times: usize) {
        for _ in 0..times {
            (0..self.parts.len()).for_each(|part| self.poll(part, 1, 1));
        }
    }

    fn log(&self, port: u8) -> std::sync::MutexGuard<'_, Log> {
        self.logs[&port].lock().unwrap()
    }

    fn send(&self, from: u8, to: Mac, numbers: std::ops::Range<u32>) {
        self.log(from).sends.extend(numbers.map(|number| (to, number)));
    }

    /// Everybody has heard of all.
    fn introduce(&mut self) {
        let ports: Vec<u8> = self.logs.keys().copied().collect();
        for port in &ports {
            self.send(*port, ALL, 0..1);
            self.turn(4);
        }
        for port in &ports {
            let log = self.log(*port);
            assert_eq!((log.got.len(), log.back, log.sends.len()), (ports.len() - 1, 1, 1));
        }
        ports.iter().for_each(|port| self.log(*port).got.clear());
    }

    /// Has these parts end, which are polled for so long; whether they did.
    fn end(&mut self, parts: &[usize], times: usize, micros: u64) -> bool {
        let mut is_over: Vec<bool> =
            parts.iter().map(|part| self.parts[*part].lock().unwrap().begin_stop()).collect();
        for _ in 0..times {
            for (part, is_over) in parts.iter().zip(&mut is_over) {
                if !*is_over {
                    self.poll(*part, 1, micros);
                    *is_over = self.parts[*part].lock().unwrap().stopped();
                }
            }
        }
        is_over.into_iter().all(|is_over| is_over)
    }

    /// Has the ports in other parts: all end, and are made anew.
    fn move_to(&mut self, parts: &[&[u8]]) {
        let all: Vec<usize> = (0..self.parts.len()).collect();
        assert!(self.end(&all, 1000, 1));
        self.place_again(parts);
    }

    /// Has the ports of all parts, which have ended, in these.
    fn place_again(&mut self, parts: &[&[u8]]) {
        for pump in self.parts.drain(..) {
            let (ports, fdb, _) = Arc::into_inner(pump).unwrap().into_inner().unwrap().into_parts();
            self.ports.extend(ports);
            self.known.push(*fdb);
        }
        self.place(parts);
    }

    /// Frames that a port has back, and of those, what found a lane full.
    fn back_and_lost(&self, port: u8) -> (usize, u64) {
        let log = self.log(port);
        (log.back, log.lost(DropReason::LaneFull))
    }

    fn lost(&self) -> u64 {
        let lost = |log: &Shared| {
            let log = log.lock().unwrap();
            log.sent_drops.values().chain(log.got_drops.values()).sum::<u64>()
        };
        self.logs.values().map(lost).sum()
    }
}

#[test]
fn sender_of_one_frame_to_a_held_part_is_served_again_in_a_moment_and_reaches_everybody_else() {
    let mut scene = Scene::new(&[&[1, 2], &[3]]);
    scene.introduce();
    scene.send(1, mac(3), 0..1);
    scene.send(1, mac(2), 0..1000);
    // The second part is held.
    scene.poll(0, 3_000, 200);
    assert!(scene.log(2).from(1).len() < 300, "its memory is read for as long as that may be");
    scene.poll(0, 3_000, 200);
    assert_eq!(scene.log(2).from(1), (0..1000).collect::<Vec<_>>());
    assert_eq!(scene.back_and_lost(1), (1002, 1));
    // What is for it meanwhile waits for nobody.
    scene.send(1, mac(3), 0..10);
    scene.poll(0, 100, 10);
    assert_eq!(scene.back_and_lost(1), (1012, 11));
    // It turns again: nothing of that is read any more, and what comes then is.
    scene.turn(4);
    assert!(scene.log(3).got.is_empty());
    scene.send(1, mac(3), 20..500);
    scene.turn(100);
    assert_eq!(scene.log(3).from(1), (20..500).collect::<Vec<_>>());
    assert_eq!((scene.back_and_lost(1), scene.lost()), ((1492, 11), 11));
}

#[test]
fn source_that_can_have_few_frames_out_waits_for_a_held_part_no_longer_than_others() {
    let mut scene = Scene::new(&[&[1, 2], &[3]]);
    scene.introduce();
    // As a TAP, or a small ring: what it has out keeps it from having more.
    scene.log(1).slots = Some(32);
    scene.send(1, mac(3), 0..1);
    scene.send(1, mac(2), 0..1000);
    scene.poll(0, 3_000, 200);
    assert_eq!(scene.log(2).from(1).len(), 31);
    scene.poll(0, 3_000, 200);
    assert_eq!(scene.log(2).from(1), (0..1000).collect::<Vec<_>>());
    assert_eq!(scene.back_and_lost(1), (1002, 1));
}

#[test]
fn sender_that_waits_for_what_it_has_sent_to_a_held_part_has_it_back_though_its_core_sleeps() {
    let mut scene = Scene::new(&[&[1, 2], &[3]]);
    scene.introduce();
    scene.send(1, mac(3), 0..5);
    scene.poll(0, 1, 1);
    let (begun, mut slept) = (scene.now, 0);
    while scene.log(1).back < 6 {
        assert!(scene.now - begun < 2 * tsc::hertz());
        slept = scene.sleep(0).max(slept);
    }
    assert!(scene.now - begun > tsc::hertz() * 9 / 10 && slept > 9_000_000, "{slept}");
    assert_eq!(scene.back_and_lost(1), (6, 5));
    // Nothing is out: it need not look.
    assert_eq!(scene.parts[0].lock().unwrap().arm(), Armed::Sleep { within_ns: None });
}

#[test]
fn while_in_which_a_part_did_not_turn_itself_says_little_of_another_and_late_looks_are_counted() {
    let mut scene = Scene::new(&[&[1, 2], &[3]]);
    scene.introduce();
    scene.send(1, mac(3), 0..5);
    scene.poll(0, 5, 10_000_000);
    assert_eq!(scene.log(1).back, 1);
    scene.poll(0, 190, 5_000);
    assert_eq!(scene.log(1).back, 1);
    scene.poll(0, 20, 5_000);
    assert_eq!(scene.back_and_lost(1), (6, 5));
}

#[test]
fn frames_that_wait_for_a_part_that_is_slow_and_goes_on_are_not_taken_back() {
    let mut scene = Scene::new(&[&[1, 2], &[3]]);
    scene.introduce();
    scene.send(1, mac(3), 0..2000);
    for _ in 0..100 {
        // A turn in twenty milliseconds.
        scene.poll(0, 400, 50);
        scene.poll(1, 1, 1);
    }
    assert_eq!(scene.log(3).from(1), (0..2000).collect::<Vec<_>>());
    assert_eq!(scene.lost(), 0);
}

#[test]
fn frames_that_a_held_part_has_begun_to_read_are_waited_for_and_come_whole() {
    let mut scene = Scene::new(&[&[1, 2], &[3]]);
    scene.introduce();
    scene.send(1, mac(3), 0..100);
    scene.poll(0, 10, 1);
    // Held while it delivers the first of them; the sender goes on meanwhile, until it may not.
    scene.send(1, mac(2), 0..1000);
    let (sender, now) = (Arc::clone(&scene.parts[0]), scene.now);
    let log = Arc::clone(&scene.logs[&1]);
    let seen = Arc::new(Mutex::new((0, 0)));
    let to_test = Arc::clone(&seen);
    *scene.hooks[&3].lock().unwrap() = Some(Box::new(move || {
        let mut pump = sender.lock().unwrap();
        for turn in 0..6_000 {
            pump.poll(&Budget::default(), now + turn * tsc::hertz() / 5_000);
        }
        let log = log.lock().unwrap();
        *seen.lock().unwrap() = (log.back, log.lost(DropReason::LaneFull));
    }));
    scene.now += tsc::hertz() * 2;
    scene.poll(1, 1, 1);
    let (back, lost) = *to_test.lock().unwrap();
    assert_eq!(back, 1, "the first that went there is being read");
    assert_eq!(lost, 100 - 32, "nobody had begun to read the others");
    scene.turn(100);
    assert_eq!(scene.log(3).from(1), (0..32).collect::<Vec<_>>());
    assert_eq!(scene.log(2).from(1), (0..1000).collect::<Vec<_>>());
    assert_eq!(scene.log(1).back, 1101);
    scene.send(1, mac(3), 100..200);
    scene.turn(100);
    assert_eq!(scene.log(3).from(1), (0..32).chain(100..200).collect::<Vec<_>>());
    assert_eq!(scene.lost(), 68);
}

#[test]
fn frames_of_one_lane_go_back_though_their_reader_is_held_in_the_next() {
    let mut scene = Scene::new(&[&[1, 2], &[3], &[4, 5]]);
    scene.introduce();
    scene.send(1, mac(4), 0..20);
    scene.send(3, mac(5), 0..20);
    (0..2).for_each(|part| scene.poll(part, 1, 1));
    let (sender, now) = (Arc::clone(&scene.parts[0]), scene.now);
    let [from, to] = [1, 4].map(|port| Arc::clone(&scene.logs[&port]));
    let seen = Arc::new(Mutex::new(None));
    let to_test = Arc::clone(&seen);
    // In the second lane's first frame.
    *scene.hooks[&5].lock().unwrap() = Some(Box::new(move || {
        sender.lock().unwrap().poll(&Budget::default(), now + 1);
        let (from, to) = (from.lock().unwrap(), to.lock().unwrap());
        *seen.lock().unwrap() = Some((from.back, to.got.len(), to.shown));
    }));
    scene.poll(2, 1, 1);
    assert_eq!(to_test.lock().unwrap().take(), Some((21, 20, 20)), "shown to their receiver before");
    scene.turn(4);
    assert_eq!(scene.log(5).from(3), (0..20).collect::<Vec<_>>());
    assert_eq!((scene.back_and_lost(3), scene.lost()), ((21, 0), 0));
}

#[test]
fn parts_end_beside_one_that_is_held_whatever_is_on_its_way_there() {
    let mut scene = Scene::new(&[&[1], &[2], &[3]]);
    scene.introduce();
    for from in [1, 2] {
        scene.send(from, mac(3), 0..50);
    }
    // And what it has put in before.
    scene.send(3, mac(1), 0..20);
    for part in [2, 0, 1, 0, 1] {
        scene.poll(part, 1, 1);
    }
    let before = scene.log(1).from(3).len();
    assert!(!scene.end(&[0, 1], 100, 100), "for a moment it is waited for");
    assert!(scene.end(&[0, 1], 2_000, 500));
    assert_eq!([1, 2].map(|from| scene.back_and_lost(from)), [(51, 50); 2]);
    assert!(before <= 20 && scene.log(1).from(3) == (0..20).collect::<Vec<_>>());
    // It turns again and finds that nobody has anything for it.
    assert!(scene.end(&[2], 10, 1));
    assert!(scene.log(3).got.is_empty());
}

#[test]
fn frames_to_stations_of_a_part_that_is_held_go_to_nobody_else_once_the_others_are_made_anew() {
    let places: [&[&[u8]]; 2] = [&[&[1], &[2]], &[&[1, 2]]];
    for parts in places {
        let mut scene = Scene::new(&[&[1], &[2], &[3]]);
        scene.introduce();
        assert!(scene.end(&[0, 1], 3_000, 500));
        let _held = scene.parts.pop();
        scene.held.push(3);
        scene.place_again(parts);
        scene.send(1, mac(3), 0..10);
        scene.send(1, ALL, 10..11);
        scene.turn(4);
        assert_eq!(scene.log(2).from(1), [10]);
        assert_eq!(scene.back_and_lost(1), (12, 10));
    }
}

#[test]
fn flows_among_three_parts_keep_their_order_and_lose_nothing_while_ports_move() {
    let places: [&[&[u8]]; 4] = [
        &[&[1, 2], &[3, 4], &[5, 6]],
        &[&[1, 5], &[3], &[2, 4, 6]],
        &[&[6], &[1, 2, 3, 4], &[5]],
        &[&[1, 3, 5], &[2, 4, 6]],
    ];
    let mut scene = Scene::new(places[0]);
    scene.introduce();
    let ports: Vec<u8> = (1..=6).collect();
    let flows = || ports.iter().flat_map(|from| ports.iter().map(move |to| (*from, *to)));
    for round in 0..40u32 {
        for (from, to) in flows().filter(|(from, to)| from != to) {
            scene.send(from, mac(to), round * 50..(round + 1) * 50);
        }
        // In the middle of it.
        scene.turn(3);
        scene.move_to(places[round as usize % places.len()]);
        scene.turn(if round % 3 == 0 { 1 } else { 20 });
    }
    scene.turn(400);
    for (from, to) in flows().filter(|(from, to)| from != to) {
        assert_eq!(scene.log(to).from(from), (0..2000).collect::<Vec<_>>(), "{from} to {to}");
    }
    assert_eq!(scene.lost(), 0);
}

#[test]
fn station_that_moves_among_three_parts_is_found_by_all_where_it_was_heard_last() {
    let mut scene = Scene::new(&[&[1, 2], &[3], &[4]]);
    scene.introduce();
    for round in 0..30u32 {
        let at = [1, 3, 4, 2, 3, 1, 4][round as usize % 7];
        // Port 2's address, from wherever.
        let source = |scene: &mut Scene, at: u8, from: Mac| {
            for pump in &scene.parts {
                let mut pump = pump.lock().unwrap();
                for member in &mut pump.ports {
                    if member.port.slot == u16::from(at) {
                        let log = Arc::clone(&scene.logs[&at]);
                        let mut sends = Sends::new(from, log);
                        sends.taken = scene.log(at).back;
                        member.port.sources[0].1 = Box::new(sends);
                    }
                }
            }
        };
        source(&mut scene, at, mac(99));
        scene.send(at, ALL, round..round + 1);
        scene.turn(4);
        source(&mut scene, at, mac(at));
        for (port, log) in &scene.logs {
            let mut log = log.lock().unwrap();
            assert_eq!(log.got.len(), usize::from(*port != at));
            log.got.clear();
        }
        for from in (1..=4).filter(|from| *from != at) {
            scene.send(from, mac(99), round..round + 1);
        }
        scene.turn(6);
        for (port, log) in &scene.logs {
            let mut log = log.lock().unwrap();
            assert_eq!(log.got.len(), if *port == at { 3 } else { 0 }, "round {round} at {at}: {port}");
            log.got.clear();
        }
    }
    assert_eq!(scene.lost(), 0);
}

#[test]
fn senders_of_all_parts_have_their_share_of_a_part_that_is_slower_than_they() {
    let mut scene = Scene::new(&[&[1, 2], &[3, 4], &[5]]);
    scene.introduce();
    for from in 1..=4 {
        scene.send(from, mac(5), 0..4000);
    }
    // Which turns once while the others turn four times.
    for _ in 0..100 {
        for _ in 0..4 {
            scene.poll(0, 1, 5);
            scene.poll(1, 1, 5);
        }
        scene.poll(2, 1, 5);
    }
    let had = [1, 2, 3, 4].map(|from| scene.log(5).from(from).len());
    let all: usize = had.iter().sum();
    assert!(all >= 4000, "{had:?}");
    assert!(had.iter().all(|had| *had >= all / 8), "{had:?}");
    scene.turn(2000);
    for from in 1..=4 {
        assert_eq!(scene.log(5).from(from), (0..4000).collect::<Vec<_>>());
    }
    assert_eq!(scene.lost(), 0);
}
