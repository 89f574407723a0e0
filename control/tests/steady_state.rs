//! The data path under traffic allocates nothing and makes no system call: proved by a counting allocator and by a
//! seccomp filter on the worker that kills, both formats, through a loop, a link and a bridge; and a planted violation is
//! caught by each. Meanwhile others read all that is counted, as those do who scrape and who look (`ringway top`): they
//! cost the data path no call and no lock either.
//!
//! Each case runs in a process of its own, since what the filter kills is the process. The worker gets its filter from
//! a pump that is placed on it beside the one under test.
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

#[path = "../../engine/tests/common/allocations.rs"]
mod allocations;

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ringway_control::frontends::session::{self, DeviceShared, SessionSetup};
use ringway_engine::{Armed, Budget, Clock, Engine, EngineConfig, IdlePolicy, Polled, Pump, Watcher};
use ringway_guest::load::BATCH;
use ringway_guest::{Guest, GuestOptions};
use ringway_pmd::counters::QueueCounters;
use ringway_pmd::drivers::bridge::BridgeKind;
use ringway_pmd::drivers::link::LinkKind;
use ringway_pmd::drivers::sim_net::SimNet;
use ringway_pmd::notify::EventFd;
use ringway_pmd::vdpa::{DeviceHost, DeviceSpec, ManagementDevice, MgmtKind, NetSpec};
use ringway_ring::position::PositionPage;
use ringway_ring::queue::Format;
use ringway_ring::tsc;
use ringway_vhost_user::frontend::Frontend;

/// A pump that, when told, watches its worker's thread, and commits what the case plants. Always busy, so that the
/// worker has no reason to sleep.
struct Sentinel {
    watch: Arc<AtomicBool>,
    watching: bool,
    plant: Plant,
    own: EventFd,
    polls: u32,
}

/// What stands between sender and receiver.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    Loop,
    Link,
    Bridge,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Plant {
    Nothing,
    SystemCall,
    Allocation,
}

impl Pump for Sentinel {
    fn poll(&mut self, _: &Budget, _: u64) -> Polled {
        if !self.watching && self.watch.load(Ordering::Relaxed) {
            self.watching = true;
            deny_system_calls();
            allocations::watch();
        }
        if self.watching {
            self.polls += 1;
            if self.polls == PLANT_AT {
                match self.plant {
                    Plant::Nothing => {}
                    Plant::SystemCall => drop(self.own.signal()),
                    Plant::Allocation => drop(std::hint::black_box(Box::new(7u64))),
                }
            }
        }
        Polled::Moved(1)
    }
    fn arm(&mut self) -> Armed {
        Armed::HasWork
    }
    fn disarm(&mut self) {}
    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

/// The poll of the sentinel at which a violation is planted.
const PLANT_AT: u32 = 10_000;

struct Nobody;

impl Watcher for Nobody {
    fn pump_ended(&self) {}
}

/// Whatever this thread asks of the kernel from now on kills the process.
fn deny_system_calls() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let arch = std::env::consts::ARCH.try_into().unwrap();
    let filter =
        SeccompFilter::new(Default::default(), SeccompAction::KillProcess, SeccompAction::Allow, arch);
    let program: BpfProgram = filter.unwrap().try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
}

/// The child: traffic through a real session for a while, then some more under watch. Exits with the number of
/// allocations seen (at most 100), or is killed.
fn child(way: Way, format: Format, plant: Plant) -> ! {
    let core = *allowed_cores().last().unwrap();
    let clock = Clock { cycles: slow_cycles, hertz: tsc::hertz() };
    let engine =
        Engine::start(EngineConfig { cores: vec![core], idle: IdlePolicy::Adaptive, clock }).unwrap();
    let nothing = BTreeMap::new();
    let (mut mgmtdev, ends): (Box<dyn ManagementDevice>, u64) = match way {
        Way::Loop => (Box::new(SimNet::new()), 1),
        Way::Link => (LinkKind.make("l", &nothing, core).unwrap(), 2),
        Way::Bridge => (BridgeKind.make("b", &nothing, core).unwrap(), 2),
    };
    let mut guests = Vec::new();
    let mut sessions = Vec::new();
    let counted: Vec<Arc<QueueCounters>> = (0..2 * ends).map(|_| Arc::default()).collect();
    for end in 0..ends {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut spec = DeviceSpec::net(format!("steady{end}"), NetSpec::default());
        if way == Way::Bridge {
            // The guest sends to everybody.
            spec.attributes.insert("flood_pps".into(), "off".into());
        }
        sessions.push(session::spawn(SessionSetup {
            id: end + 1,
            device: mgmtdev.create(&spec, DeviceHost::unheard()).unwrap(),
            shared: Arc::new(DeviceShared {
                name: spec.name,
                counters: counted[2 * end as usize..][..2].to_vec(),
                positions: PositionPage::anonymous().unwrap(),
                records: None,
                lease: None,
                cores: vec![AtomicUsize::new(core)],
                log: Default::default(),
            }),
            stream: theirs,
            engine: engine.clone(),
            lease: ringway_control::frontends::budget::Lease::alone(),
            reports: Arc::new(|_, _| {}),
        }));
        // On a busy machine a worker has no processor for longer than half a second.
        let give_up = Duration::from_secs(60);
        let options = GuestOptions { format, give_up, ..GuestOptions::default() };
        guests.push(Guest::start(Frontend::from_stream(ours), options).unwrap());
    }

    let watch = Arc::new(AtomicBool::new(false));
    let sentinel = Sentinel {
        watch: Arc::clone(&watch),
        watching: false,
        plant,
        own: EventFd::new().unwrap(),
        polls: 0,
    };
    let read = Arc::new(AtomicU64::new(0));
    for _ in 0..READERS {
        read_on(engine.clone(), counted.clone(), Arc::clone(&read));
    }
    let _placed = engine.place(core, "sentinel", Box::new(sentinel), Arc::new(Nobody)).unwrap();
    traffic(&mut guests, 100_000);
    watch.store(true, Ordering::Relaxed);
    let before = read.load(Ordering::Relaxed);
    traffic(&mut guests, 500_000);
    assert!(read.load(Ordering::Relaxed) > before + u64::from(READERS), "nobody read meanwhile");
    for counters in &counted {
        let stats = counters.snapshot();
        assert!(stats.burst_sizes.count() > 0 && stats.latency.count() > 0, "{stats:?}");
    }
    for guest in &guests {
        let stats = guest.stats();
        assert_eq!((stats.corrupt, stats.stale), (0, 0), "frames were damaged");
        // A bridge presses nobody back.
        assert!(way == Way::Bridge || stats.skipped == 0, "frames were lost");
    }
    std::process::exit(allocations::calls().min(100) as i32)
}

/// Reads everything that is counted, over and over.
fn read_on(engine: Engine, counted: Vec<Arc<QueueCounters>>, read: Arc<AtomicU64>) {
    std::thread::spawn(move || {
        loop {
            let moved: u64 = counted.iter().map(|counters| counters.snapshot().latency.count()).sum();
            let turns: u64 = engine.workers().iter().map(|worker| worker.busy_turns.count()).sum();
            std::hint::black_box(moved + turns);
            read.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

/// Two that scrape, and three that look.
const READERS: u32 = 5;

/// A clock that runs 16,384 times slower than the real one: the guest's thread may be held up for most of a second
/// before its queues count as idle and the worker looks after sleepers, so that a busy machine does not end the steady
/// state.
fn slow_cycles() -> u64 {
    tsc::cycles() >> 14
}

/// Moves so many frames, and at least for as long that the sentinel has its turn.
fn traffic(guests: &mut [Guest], frames: u64) {
    let received = |guests: &[Guest]| guests.iter().map(|guest| guest.stats().received).sum::<u64>();
    let (begun, goal) = (Instant::now(), received(guests) + frames);
    while received(guests) < goal || begun.elapsed() < Duration::from_millis(300) {
        assert!(begun.elapsed() < Duration::from_secs(60), "no traffic: {:?}", received(guests));
        for _ in 0..64 {
            for guest in &mut *guests {
                guest.turn(BATCH).unwrap();
            }
        }
    }
}

fn allowed_cores() -> Vec<usize> {
    let set = rustix::thread::sched_getaffinity(None).unwrap();
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|&core| set.is_set(core)).collect()
}

/// Runs one case in a process of its own.
fn run(case: &str) -> ExitStatus {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "case_in_a_process_of_its_own", "--nocapture"])
        .env(CASE, case)
        .status()
        .unwrap()
}

const CASE: &str = "RINGWAY_TEST_STEADY_STATE_CASE";

/// Not a test by itself: what the others start. Without a case there is nothing to do.
#[test]
fn case_in_a_process_of_its_own() {
    let Ok(case) = std::env::var(CASE) else { return };
    let way = match case.split('+').nth(2) {
        Some("link") => Way::Link,
        Some("bridge") => Way::Bridge,
        _ => Way::Loop,
    };
    let format = if case.starts_with("packed") { Format::Packed } else { Format::Split };
    let plant = match case.split('+').nth(1) {
        Some("syscall") => Plant::SystemCall,
        Some("allocation") => Plant::Allocation,
        _ => Plant::Nothing,
    };
    child(way, format, plant)
}

#[test]
fn split_traffic_allocates_nothing_and_makes_no_system_call() {
    assert_eq!(run("split").code(), Some(0));
}

#[test]
fn packed_traffic_allocates_nothing_and_makes_no_system_call() {
    assert_eq!(run("packed").code(), Some(0));
}

#[test]
fn traffic_of_joined_devices_allocates_nothing_and_makes_no_system_call() {
    for case in ["split++link", "packed++link", "split++bridge", "packed++bridge"] {
        assert_eq!(run(case).code(), Some(0), "{case}");
    }
}

#[test]
fn planted_system_call_kills() {
    assert_eq!(run("split+syscall").signal(), Some(31), "SIGSYS");
}

#[test]
fn planted_allocation_is_counted() {
    assert_eq!(run("packed+allocation").code(), Some(2), "one allocation and its release");
}
