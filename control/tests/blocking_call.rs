//! Front-ends that make their call descriptors block the worker: they are faulted by name, the core is held once however many
//! descriptors and front-ends do so together, and the other guests of that core go on.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use ringway_control::operator::api::{DeviceEntry, Queue, VstatsShow};
use ringway_control::subsystem::{Options, Subsystem};
use ringway_guest::{Guest, GuestOptions};
use ringway_ring::features::Features;
use ringway_ring::layout::{DriverConfig, Layout};
use ringway_ring::memory::HostMemory;
use ringway_ring::position::Position;
use ringway_ring::queue::{Completion, DriverBuffer, DriverRing, Format, RingSize};
use ringway_vhost_user::frontend::{Frontend, MemoryRegion, VringAddr};
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::OFlags;

const SOON: Duration = Duration::from_secs(20);
const GPA: u64 = 0x1000_0000;
const PAIRS: u32 = 16;

#[test]
fn front_end_whose_call_descriptor_blocks_is_faulted_and_its_neighbour_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Subsystem::start(Options::embedded(folder.path())).unwrap();
    let (good, bad) = (add(&plane, "good", 1), add(&plane, "bad", 1));
    let mut neighbour = Guest::connect(&good, GuestOptions::default()).unwrap();
    receive(&mut neighbour, 1000);

    let mut hostile = ByHand::connect(&bad, 1);
    // Its error descriptor blocks as well, which the session writes.
    let err: OwnedFd = eventfd(0, EventfdFlags::empty()).unwrap();
    hostile.frontend.set_vring_err(1, Some(err.as_fd())).unwrap();
    hostile.frontend.queue_num().unwrap();
    make_block(&err);
    make_block(&hostile.rings[1].call);
    hostile.rings[1].offer();

    let faulted = wait_for_fault(&plane, "bad", 1);
    receive(&mut neighbour, 1000);
    assert_eq!(neighbour.stats().corrupt, 0);
    // It cannot hold the core again at once, not even by connecting anew.
    drop(hostile);
    wait_for_connection(&bad);
    assert!(faulted.elapsed() > Duration::from_millis(1500), "{:?}", faulted.elapsed());
    plane.stop();
}

#[test]
fn core_is_held_once_by_all_descriptors_of_all_front_ends_together() {
    const GUESTS: usize = 8;
    let folder = tempfile::tempdir().unwrap();
    let mut options = Options::embedded(folder.path());
    options.settings.cores = vec![core()];
    let plane = Subsystem::start(options).unwrap();
    // What one descriptor costs.
    let one = add(&plane, "one", 1);
    let mut alone = ByHand::connect(&one, 1);
    make_block(&alone.rings[1].call);
    alone.rings[1].offer();
    let faulted = wait_for_fault(&plane, "one", 1);
    let turn_of_one = longest_turn(&plane);
    drop(alone);
    wait_for_connection(&one);
    let debt_of_one = faulted.elapsed();

    let sockets: Vec<PathBuf> = (0..GUESTS).map(|n| add(&plane, &format!("bad{n}"), PAIRS)).collect();
    let mut neighbour = ByHand::connect(&add(&plane, "good", 1), 1);
    neighbour.exchange();
    let mut hostile: Vec<ByHand> = sockets.iter().map(|socket| ByHand::connect(socket, PAIRS)).collect();
    for ring in hostile.iter_mut().flat_map(|guest| &mut guest.rings) {
        make_block(&ring.call);
    }
    let begun = Instant::now();
    for ring in hostile.iter_mut().flat_map(|guest| &mut guest.rings) {
        ring.offer();
    }
    // The calls of a neighbour come all the while, whoever makes them.
    let mut held = 0;
    while begun.elapsed() < Duration::from_millis(500) || held == 0 {
        neighbour.exchange();
        assert!(begun.elapsed() < SOON, "no call blocked");
        held = (0..GUESTS).map(|n| blocked_calls(&plane, &format!("bad{n}"))).sum();
    }
    for n in 0..GUESTS {
        let name = format!("bad{n}");
        assert!(
            blocked_calls(&plane, &name) <= 1,
            "{name} held the core {} times",
            blocked_calls(&plane, &name)
        );
    }
    // One for all, unless their sessions had no processor for the 100 ms in which the worker calls nobody.
    let at_most = 1 + begun.elapsed().as_millis() as u64 / 100;
    assert!(held <= at_most, "the core was held {held} times in {:?}", begun.elapsed());
    // A turn lasts also while others have the core; each descriptor's own call would take seconds.
    let turn = longest_turn(&plane);
    let most = 16 * turn_of_one + 250_000;
    assert!(turn < most, "the core was held for {turn} us; by one descriptor {turn_of_one} us");
    // Each takes what its rings hold all the same, but for the ring that was faulted and what waits for it.
    for guest in &mut hostile {
        let begun = Instant::now();
        while guest.rings.iter_mut().map(|ring| u32::from(!ring.is_taken())).sum::<u32>() > 2 {
            assert!(begun.elapsed() < SOON, "rings stand still whose call another made block");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    // They pay for it as one that blocked with one descriptor does.
    let faulted = Instant::now();
    drop(hostile);
    for socket in &sockets {
        wait_for_connection(socket);
    }
    assert!(faulted.elapsed() < 3 * debt_of_one, "{:?}, after one {debt_of_one:?}", faulted.elapsed());
    plane.stop();
}

#[test]
fn front_end_in_debt_that_hangs_up_is_let_go_of_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Subsystem::start(Options::embedded(folder.path())).unwrap();
    let bad = add(&plane, "bad", PAIRS);
    let mut hostile = ByHand::connect(&bad, PAIRS);
    make_block(&hostile.rings[1].call);
    hostile.rings[1].offer();
    let faulted = wait_for_fault(&plane, "bad", 1);
    let is_served = || plane.engine().workers().iter().any(|worker| !worker.pumps.is_empty());
    assert!(is_served(), "its other rings are");
    drop(hostile);
    while is_served() {
        assert!(faulted.elapsed() < SOON, "its rings are served for ever");
        std::thread::sleep(Duration::from_millis(1));
    }
    let let_go = faulted.elapsed();
    wait_for_connection(&bad);
    assert!(
        2 * let_go < faulted.elapsed(),
        "let go of after {let_go:?}, debt paid after {:?}",
        faulted.elapsed()
    );
    plane.stop();
}

#[test]
fn front_end_that_leaves_while_its_call_blocks_pays_as_one_that_stays() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Subsystem::start(Options::embedded(folder.path())).unwrap();
    let (stays, leaves) = (add(&plane, "stays", 1), add(&plane, "leaves", 1));
    let mut hostile = ByHand::connect(&stays, 1);
    make_block(&hostile.rings[1].call);
    hostile.rings[1].offer();
    let faulted = wait_for_fault(&plane, "stays", 1);
    drop(hostile);
    wait_for_connection(&stays);
    let debt = faulted.elapsed();

    // Its worker makes no call for a while.
    std::thread::sleep(Duration::from_millis(300));
    let mut hostile = ByHand::connect(&leaves, 1);
    make_block(&hostile.rings[1].call);
    hostile.rings[1].offer();
    let begun = Instant::now();
    while plane.engine().stuck(Duration::from_micros(100)).is_empty()
        && blocked_calls_of(&plane, "leaves", 1) == 0
    {
        assert!(begun.elapsed() < SOON, "no call blocked");
    }
    let left = Instant::now();
    drop(hostile);
    wait_for_connection(&leaves);
    assert!(2 * left.elapsed() > debt, "let in anew after {:?}, who stayed after {debt:?}", left.elapsed());
    plane.stop();
}

#[test]
fn front_end_whose_error_descriptor_blocks_pays_and_is_told_of_no_error_any_more() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Subsystem::start(Options::embedded(folder.path())).unwrap();
    let socket = add(&plane, "bad", 2);
    let mut hostile = ByHand::connect(&socket, 2);
    let errs = [0; 2].map(|_| eventfd(0, EventfdFlags::NONBLOCK).unwrap());
    for (ring, err) in [1, 3].into_iter().zip(&errs) {
        hostile.frontend.set_vring_err(ring, Some(err.as_fd())).unwrap();
    }
    hostile.frontend.queue_num().unwrap();
    make_block(&errs[0]);
    // Each fault, of whatever kind, is told at the ring's error descriptor.
    let fault = |hostile: &mut ByHand, ring: usize| {
        hostile.rings[ring].buffer.gpa = 0x10;
        hostile.rings[ring].offer();
        let begun = Instant::now();
        while faults_of(&plane, "bad", ring as u16) == 0 {
            assert!(begun.elapsed() < SOON, "no fault of ring {ring}");
            std::thread::sleep(Duration::from_millis(1));
        }
    };
    fault(&mut hostile, 1);
    fault(&mut hostile, 3);
    let faulted = Instant::now();
    std::thread::sleep(Duration::from_millis(100));
    assert!(rustix::io::read(&errs[1], &mut [0u8; 8]).is_err(), "an error was told");
    // It pays as one whose call blocked does.
    drop(hostile);
    wait_for_connection(&socket);
    assert!(faulted.elapsed() > Duration::from_millis(1500), "{:?}", faulted.elapsed());

    // One that does not block is told.
    let late: OwnedFd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
    let good = add(&plane, "good", 1);
    let mut honest = ByHand::connect(&good, 1);
    honest.frontend.set_vring_err(1, Some(late.as_fd())).unwrap();
    honest.frontend.queue_num().unwrap();
    honest.rings[1].buffer.gpa = 0x10;
    honest.rings[1].offer();
    let within = Timespec { tv_sec: SOON.as_secs() as i64, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&late, PollFlags::IN)], Some(&within)), Ok(1), "no error was told");
    plane.stop();
}

#[test]
fn front_end_that_makes_its_session_block_too_pays_once_and_loses_those_rings() {
    let folder = tempfile::tempdir().unwrap();
    let plane = Subsystem::start(Options::embedded(folder.path())).unwrap();
    let (one, bad) = (add(&plane, "one", 1), add(&plane, "bad", PAIRS));
    let mut alone = ByHand::connect(&one, 1);
    make_block(&alone.rings[1].call);
    alone.rings[1].offer();
    let faulted = wait_for_fault(&plane, "one", 1);
    drop(alone);
    wait_for_connection(&one);
    let debt_of_one = faulted.elapsed();

    let mut hostile = ByHand::connect(&bad, PAIRS);
    // Its session makes these non-blocking again before each call; the front-end takes that back as fast as it can.
    let raced = [3, 5, 7, 9];
    let calls: Vec<OwnedFd> = raced.map(|n| hostile.rings[n].call.try_clone().unwrap()).into();
    for n in raced.into_iter().chain([1]) {
        make_block(&hostile.rings[n].call);
    }
    hostile.rings[1].offer();
    let faulted = wait_for_fault(&plane, "bad", 1);
    let is_over = Arc::new(AtomicBool::new(false));
    let racer = {
        let is_over = Arc::clone(&is_over);
        std::thread::spawn(move || {
            while !is_over.load(Ordering::Relaxed) {
                calls.iter().for_each(|call| rustix::fs::fcntl_setfl(call, OFlags::RDWR).unwrap());
            }
        })
    };
    raced.into_iter().for_each(|n| hostile.rings[n].offer());
    while blocked_calls(&plane, "bad") < 3 {
        assert!(faulted.elapsed() < SOON, "no call of its session blocked");
        for n in raced {
            let ring = &mut hostile.rings[n];
            if ring.is_taken() {
                ring.is_taken = false;
                ring.offer();
            }
        }
    }
    is_over.store(true, Ordering::Relaxed);
    racer.join().unwrap();
    let raced_for = faulted.elapsed();
    drop(hostile);
    wait_for_connection(&bad);
    let debt = faulted.elapsed() - raced_for;
    assert!(debt < 2 * debt_of_one, "{debt:?}, after one {debt_of_one:?}");
    plane.stop();
}

/// A front-end whose rings the test drives itself; the odd ones transmit.
struct ByHand {
    frontend: Frontend,
    rings: Vec<Ring>,
    _memory: HostMemory,
}

struct Ring {
    driver: Box<dyn DriverRing>,
    buffer: DriverBuffer,
    kick: OwnedFd,
    call: OwnedFd,
    is_taken: bool,
}

impl ByHand {
    fn connect(socket: &Path, pairs: u32) -> ByHand {
        let mut frontend = Frontend::connect(socket, SOON).unwrap();
        frontend.handshake().unwrap();
        frontend.set_features(Features::VERSION_1).unwrap();
        let memory = HostMemory::allocate("hand", 1 << 20).unwrap();
        let map = Arc::new(memory.guest_map(GPA).unwrap());
        let region = MemoryRegion {
            gpa: GPA,
            size: memory.size(),
            user_addr: memory.address(),
            file_offset: 0,
            file: memory.file(),
        };
        frontend.set_mem_table(&[region]).unwrap();
        let size = RingSize::new(Format::Split, 16).unwrap();
        let layout = Layout::new(Format::Split, size);
        let mut rings = Vec::new();
        for index in 0..2 * pairs {
            let at = u64::from(index) << 12;
            let config = DriverConfig {
                size,
                features: Features::VERSION_1,
                map: Arc::clone(&map),
                areas: layout.at(GPA + at),
                position: Position::START,
            };
            let driver = Box::new(config.start_split().unwrap());
            let call: OwnedFd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
            let kick: OwnedFd = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
            let areas = layout.at(memory.address() + at);
            let address =
                VringAddr { desc: areas.desc, driver: areas.driver, device: areas.device, log: None };
            frontend.start_ring(index, 16, 0, address, Some(kick.as_fd()), Some(call.as_fd())).unwrap();
            let is_receive = index % 2 == 0;
            let len = if is_receive { 2048 } else { 72 };
            let buffer = DriverBuffer { gpa: GPA + 0x8_0000 + at, len, writable: is_receive };
            rings.push(Ring { driver, buffer, kick, call, is_taken: false });
        }
        frontend.set_status(15).unwrap();
        for index in 0..2 * pairs {
            frontend.enable_ring(index, true).unwrap();
        }
        frontend.queue_num().unwrap();
        ByHand { frontend, rings, _memory: memory }
    }

    /// Sends a frame, waits for the calls of both rings and takes what they tell of.
    fn exchange(&mut self) {
        self.rings.iter_mut().for_each(Ring::offer);
        for ring in &mut self.rings {
            ring.is_taken = false;
            while !ring.is_taken() {
                let mut fds = [PollFd::new(&ring.call, PollFlags::IN)];
                let within = Timespec { tv_sec: SOON.as_secs() as i64, tv_nsec: 0 };
                assert_eq!(poll(&mut fds, Some(&within)), Ok(1), "a call was lost");
                // Reset before the look, so that none is missed in between.
                let _ = rustix::io::read(&ring.call, &mut [0u8; 8]);
            }
        }
    }
}

impl Ring {
    /// Makes its buffer available.
    fn offer(&mut self) {
        self.driver.add(&[self.buffer], 0).unwrap();
        self.driver.publish();
        rustix::io::write(&self.kick, &1u64.to_ne_bytes()).unwrap();
    }

    /// Its buffer came back.
    fn is_taken(&mut self) -> bool {
        self.is_taken |= self.driver.collect(&mut [Completion::default(); 1]).unwrap() == 1;
        self.is_taken
    }
}

/// Fills a counter, and has its writers wait.
fn make_block(fd: &OwnedFd) {
    rustix::fs::fcntl_setfl(fd, OFlags::RDWR | OFlags::NONBLOCK).unwrap();
    while rustix::io::write(fd, &(u64::MAX - 1).to_ne_bytes()).is_err() {
        // Signalled before.
        let _ = rustix::io::read(fd, &mut [0u8; 8]);
    }
    rustix::fs::fcntl_setfl(fd, OFlags::RDWR).unwrap();
}

/// The last core that this process may use.
fn core() -> usize {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    (0..1024).rev().find(|core| allowed.is_set(*core)).unwrap()
}

fn add(plane: &Subsystem, name: &str, pairs: u32) -> PathBuf {
    let entry = DeviceEntry {
        name: name.into(),
        mgmtdev: "sim/net".into(),
        max_vqp: Some(pairs as u16),
        ..DeviceEntry::default()
    };
    plane.add(&entry).unwrap().socket
}

fn receive(guest: &mut Guest, frames: u64) {
    let (begun, before) = (Instant::now(), guest.stats().received);
    while guest.stats().received - before < frames {
        assert!(begun.elapsed() < SOON, "no traffic: {:?}", guest.stats());
        guest.turn(16).unwrap();
    }
}

/// Waits until somebody may connect again.
fn wait_for_connection(socket: &Path) {
    let begun = Instant::now();
    while !Frontend::connect(socket, SOON).is_ok_and(|mut again| again.handshake().is_ok()) {
        assert!(begun.elapsed() < SOON, "nobody is let in any more");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The longest turn of a worker lately, in microseconds.
fn longest_turn(plane: &Subsystem) -> u64 {
    let workers = plane.engine().workers();
    let longest = |worker: &ringway_engine::WorkerStats| {
        worker.longest_turn_cycles / (ringway_ring::tsc::hertz() / 1_000_000)
    };
    workers.iter().map(longest).max().unwrap()
}

/// Waits until a queue was faulted for its call descriptor; returns when.
fn wait_for_fault(plane: &Subsystem, name: &str, queue: u16) -> Instant {
    let begun = Instant::now();
    while blocked_calls_of(plane, name, queue) == 0 {
        assert!(begun.elapsed() < SOON, "the fault was not told");
        std::thread::sleep(Duration::from_millis(5));
    }
    Instant::now()
}

/// How often queues of a device with all pairs were faulted for their call descriptors.
fn blocked_calls(plane: &Subsystem, name: &str) -> u64 {
    (0..2 * PAIRS as u16).map(|queue| blocked_calls_of(plane, name, queue)).sum()
}

/// How often a queue was faulted, for whatever reason.
fn faults_of(plane: &Subsystem, name: &str, queue: u16) -> u64 {
    let asked = Queue { name: name.into(), qidx: Some(queue.into()) };
    let shown: serde_json::Value = plane.call("dev.vstats.show", &asked).unwrap();
    let text = shown.to_string();
    let (_, faults) = text.split_once("\"faults\":{").unwrap();
    let faults = faults.split('}').next().unwrap();
    faults.split(|c: char| !c.is_ascii_digit()).filter_map(|number| number.parse::<u64>().ok()).sum()
}

fn blocked_calls_of(plane: &Subsystem, name: &str, queue: u16) -> u64 {
    let asked = Queue { name: name.into(), qidx: Some(queue.into()) };
    let shown: serde_json::Value = plane.call("dev.vstats.show", &asked).unwrap();
    let _: VstatsShow = serde_json::from_value(shown.clone()).unwrap();
    let text = shown.to_string();
    let Some((_, rest)) = text.split_once("\"call_blocked\":") else { return 0 };
    rest.split(|c: char| !c.is_ascii_digit()).next().unwrap().parse().unwrap_or(0)
}
