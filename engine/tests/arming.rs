//! Sleeping and waking over real eventfds and a real epoll.

mod common;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::*;
use ringway_engine::{Engine, IdlePolicy, Placed};

fn place(engine: &Engine, queue: &Arc<Queue>) -> Placed {
    engine.place(engine.cores()[0], "p", TestPump::new(queue), queue.clone()).expect("places")
}

/// One unit at a time, at pauses around the time that a pump takes to arm: whatever is lost hangs this for good.
fn no_wake_up_is_lost(idle: IdlePolicy) {
    let engine = engine(&cores()[..1], idle);
    std::thread::scope(|scope| {
        for sender in 0..3u64 {
            let engine = &engine;
            scope.spawn(move || {
                let queue = Queue::with_kick();
                let mut placed = place(engine, &queue);
                let mut random = 0x9e37_79b9_7f4a_7c15u64.wrapping_mul(sender + 1);
                // Fewer where sender and worker share a core, and each pause costs a time slice.
                let began = Instant::now();
                let mut sent = 0;
                while sent < 2_000 && (sent < 100 || began.elapsed() < Duration::from_secs(3)) {
                    sent += 1;
                    queue.send(1);
                    let start = Instant::now();
                    while queue.done() < sent {
                        assert!(start.elapsed() < LONG, "unit {sent} was never fetched");
                        std::thread::yield_now();
                    }
                    random ^= random << 13;
                    random ^= random >> 7;
                    random ^= random << 17;
                    let pause = Duration::from_nanos(random % 110_000);
                    let start = Instant::now();
                    while start.elapsed() < pause {
                        std::thread::yield_now();
                    }
                }
                placed.retire(LONG).expect("retires");
                assert_eq!(queue.done(), sent);
                assert!(queue.read(|queue| &queue.disarms) > 0, "it never slept, so nothing was tested");
            });
        }
    });
}

#[test]
fn polling_worker_loses_no_wake_up() {
    no_wake_up_is_lost(IdlePolicy::Poll);
}

#[test]
fn adaptive_worker_loses_no_wake_up() {
    no_wake_up_is_lost(IdlePolicy::Adaptive);
}

#[test]
fn hand_overs_wake_a_sleeping_worker() {
    let engine = engine(&cores()[..1], IdlePolicy::Adaptive);
    for _ in 0..300 {
        let queue = Queue::with_kick();
        let mut placed = place(&engine, &queue);
        placed.retire(LONG).expect("retires");
        std::thread::sleep(Duration::from_micros(120));
    }
    assert!(engine.workers()[0].wakeups > 0, "it never slept, so nothing was tested");
}

#[test]
fn busy_worker_looks_for_those_that_sleep_beside_it() {
    for idle in [IdlePolicy::Poll, IdlePolicy::Adaptive] {
        let engine = engine(&cores()[..1], idle);
        let (busy, sleeper) = (Queue::new(), Queue::with_kick());
        busy.work.store(u64::MAX / 2, Ordering::SeqCst);
        let (_busy, sleeping) = (place(&engine, &busy), place(&engine, &sleeper));
        wait_until("the busy one runs", || busy.done() > 0);
        let slept = engine.workers()[0].sleep_cycles;
        for round in 1..=20 {
            wait_until("it sleeps", || sleeping.stats().asleep);
            sleeper.send(1);
            wait_until("the work is done", || sleeper.done() == round);
        }
        assert_eq!(engine.workers()[0].sleep_cycles, slept, "the busy one never let the worker sleep");
    }
}

#[test]
fn idle_adaptive_worker_with_a_hundred_pumps_neither_turns_nor_uses_its_core() {
    let engine = engine(&cores()[..1], IdlePolicy::Adaptive);
    let queues: Vec<_> = (0..100).map(|_| Queue::with_kick()).collect();
    let placed: Vec<_> = queues.iter().map(|queue| place(&engine, queue)).collect();
    wait_until("all sleep", || placed.iter().all(|placed| placed.stats().asleep));
    let rest = Duration::from_millis(500);
    // It has its last turn when it is given its core for that.
    let mut slept = 0;
    wait_until("it neither turns nor runs any more", || {
        let before = engine.workers().remove(0);
        let cpu_before = cpu_time_ns(before.tid);
        std::thread::sleep(rest);
        let after = engine.workers().remove(0);
        slept = after.sleep_cycles - before.sleep_cycles;
        (after.turns, after.wakeups) == (before.turns, before.wakeups) && cpu_time_ns(after.tid) == cpu_before
    });
    assert!(slept >= rest.as_nanos() as u64 * 9 / 10, "a sleep that goes on is counted: {slept}");
    queues[57].send(1);
    wait_until("a kick still wakes it", || queues[57].done() == 1);
}

#[test]
fn polling_worker_turns_on_while_its_pumps_sleep() {
    let engine = engine(&cores()[..1], IdlePolicy::Poll);
    let queue = Queue::with_kick();
    let placed = place(&engine, &queue);
    wait_until("it sleeps", || placed.stats().asleep);
    let before = engine.workers()[0].turns;
    wait_until("the worker turns", || engine.workers()[0].turns > before + 1_000);
    assert_eq!(engine.workers()[0].sleep_cycles, 0);
    engine.set_idle(IdlePolicy::Adaptive);
    wait_until("it sleeps under the new policy", || engine.workers()[0].sleep_cycles > 0);
    let sleeps = engine.workers()[0].sleep_cycles;
    engine.set_idle(IdlePolicy::Poll);
    let turns = engine.workers()[0].turns;
    wait_until("it turns again", || engine.workers()[0].turns > turns + 1_000);
    assert!(engine.workers()[0].sleep_cycles >= sleeps);
}

#[test]
fn sleeping_worker_wakes_for_a_deadline() {
    let engine = engine(&cores()[..1], IdlePolicy::Adaptive);
    let queue = Queue::with_kick();
    queue.blocked.store(true, Ordering::SeqCst);
    queue.work.store(1, Ordering::SeqCst);
    queue.within_ns.store(2_000_000, Ordering::SeqCst);
    let _placed = place(&engine, &queue);
    // Nobody kicks: it is its deadline alone that has it polled and armed again.
    wait_until("it was armed ten times", || queue.read(|queue| &queue.arms) >= 10);
    let worker = &engine.workers()[0];
    assert!(worker.wakeups >= 5, "the worker slept in between: {} wake-ups", worker.wakeups);
    queue.blocked.store(false, Ordering::SeqCst);
    wait_until("it is done without a kick", || queue.done() == 1);
}

#[test]
fn pump_without_kick_is_served_by_a_worker_that_naps() {
    let engine = engine(&cores()[..1], IdlePolicy::Adaptive);
    let queue = Queue::new();
    queue.cannot_sleep.store(true, Ordering::SeqCst);
    let placed = place(&engine, &queue);
    wait_until("it is shown so", || placed.stats().cannot_sleep);
    for round in 1..=50 {
        queue.send(1);
        wait_until("the work is done", || queue.done() == round);
    }
    let before = engine.workers().remove(0);
    let (cpu_before, begun) = (cpu_time_ns(before.tid), Instant::now());
    std::thread::sleep(Duration::from_millis(500));
    let after = engine.workers().remove(0);
    assert!(after.wakeups > before.wakeups, "it naps");
    let used = Duration::from_nanos(cpu_time_ns(after.tid) - cpu_before);
    let passed = begun.elapsed();
    assert!(used * 10 < passed * 7, "{used:?} of {passed:?} used by a pump without work");
}

/// Pumps are kicked, placed and retired at once; a pump that panics while it is armed is no wake source any more.
#[test]
fn kicks_during_hand_overs_reach_nobody_else() {
    let engine = engine(&cores(), IdlePolicy::Adaptive);
    let stop = Stop::default();
    let (shared, idle) = (Queue::with_kick(), Queue::with_kick());
    let bystander = place(&engine, &idle);
    wait_until("the bystander sleeps", || bystander.stats().asleep);
    let disarms = idle.read(|queue| &queue.disarms);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.is_set() {
                kick(shared.kick.get().expect("a kick"));
                std::thread::sleep(Duration::from_micros(20));
            }
        });
        let _stop = stop.when_dropped();
        for round in 0..400u64 {
            let core = cores()[(round % cores().len() as u64) as usize];
            // Two at a time have the same kick: each is woken by it.
            let mut one = engine.place(core, "p", TestPump::new(&shared), shared.clone()).expect("places");
            let mut two = engine.place(core, "p", TestPump::new(&shared), shared.clone()).expect("places");
            one.move_to(engine.cores()[0], LONG).expect("moves");
            one.retire(LONG).expect("retires");
            two.retire(LONG).expect("retires");
        }
    });
    assert_eq!(idle.read(|queue| &queue.disarms), disarms, "nobody kicked the bystander");
    assert!(bystander.stats().asleep);
    assert_eq!(engine.workers().iter().map(|worker| worker.pumps.len()).sum::<usize>(), 1);
    wait_until("the workers rest: the kicked descriptor is in no epoll", || {
        let before: Vec<u64> = engine.workers().iter().map(|worker| worker.wakeups).collect();
        for _ in 0..20 {
            kick(shared.kick.get().expect("a kick"));
            std::thread::sleep(Duration::from_millis(1));
        }
        engine.workers().iter().map(|worker| worker.wakeups).collect::<Vec<_>>() == before
    });
}

/// Has wake sources and nothing to do.
struct Sources(Vec<std::os::fd::OwnedFd>);

impl ringway_engine::Pump for Sources {
    fn poll(&mut self, _: &ringway_engine::Budget, _: u64) -> ringway_engine::Polled {
        ringway_engine::Polled::Idle
    }
    fn arm(&mut self) -> ringway_engine::Armed {
        ringway_engine::Armed::Sleep { within_ns: None }
    }
    fn disarm(&mut self) {}
    fn wake_sources(&self) -> Vec<std::os::fd::BorrowedFd<'_>> {
        self.0.iter().map(std::os::fd::AsFd::as_fd).collect()
    }
}

#[test]
fn wake_sources_that_cannot_be_watched_are_refused() {
    // Each of them is an eventfd and a duplicate of it.
    let most = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let room = rustix::process::Rlimit { current: most, maximum: most };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, room).expect("may be raised so far");
    let engine = engine(&cores()[..1], IdlePolicy::Adaptive);
    let refuse = |sources| {
        let placed = engine.place(engine.cores()[0], "p", Box::new(Sources(sources)), Queue::new());
        let refused = placed.expect_err("it cannot be watched");
        assert!(engine.workers()[0].pumps.is_empty());
        // The pump is not lost with the attempt.
        assert!(!refused.pump.wake_sources().is_empty());
        refused.why
    };
    // A regular file has no readiness to wait for; nothing of what was watched before it stays.
    let why = refuse(vec![event(), std::fs::File::open("/proc/self/exe").expect("opens").into()]);
    assert!(matches!(why, ringway_engine::PlaceError::WakeSource(_)), "{why:?}");
    let why = refuse((0..=ringway_engine::pump::MAX_WAKE_SOURCES).map(|_| event()).collect());
    assert!(matches!(why, ringway_engine::PlaceError::TooManySources(4097)), "{why:?}");
    // Any fewer are watched.
    for count in [ringway_engine::pump::MAX_WAKE_SOURCES - 1, ringway_engine::pump::MAX_WAKE_SOURCES] {
        let pump = Box::new(Sources((0..count).map(|_| event()).collect()));
        let placed = engine.place(engine.cores()[0], "p", pump, Queue::new());
        placed.map_err(|refused| refused.why).expect("watched").retire(LONG).expect("given back");
    }
}

/// Runs a test of this file in a process of its own, whose limits it may change. True: this is that process.
fn is_alone(test: &str) -> bool {
    if std::env::var_os("RINGWAY_ALONE").is_some() {
        return true;
    }
    let mut command = std::process::Command::new(std::env::current_exe().expect("a program"));
    let output = command.args(["--exact", test]).env("RINGWAY_ALONE", "1").output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    false
}

#[test]
fn pump_whose_wake_sources_find_no_descriptors_comes_back_and_the_others_go_on() {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    if !is_alone("pump_whose_wake_sources_find_no_descriptors_comes_back_and_the_others_go_on") {
        return;
    }
    let engine = engine(&cores()[..1], IdlePolicy::Adaptive);
    let queue = Queue::with_kick();
    let mut other = place(&engine, &queue);
    let before = getrlimit(Resource::Nofile);
    let is_open = |fd: u64| std::path::Path::new(&format!("/proc/self/fd/{fd}")).symlink_metadata().is_ok();
    let open = || (0..1024).filter(|fd| is_open(*fd)).count();
    let mut pump: Box<dyn ringway_engine::Pump> = Box::new(Sources((0..3).map(|_| event()).collect()));
    let held = open();
    for room in 0..=3 {
        wait_until("the other sleeps", || other.stats().asleep);
        let limit = (0..).filter(|fd| !is_open(*fd)).nth(room);
        setrlimit(Resource::Nofile, Rlimit { current: limit, maximum: before.maximum }).expect("lowered");
        let placed = engine.place(engine.cores()[0], "p", pump, Queue::new());
        queue.send(1);
        wait_until("the other is woken and works", || queue.done() == room as u64 + 1);
        setrlimit(Resource::Nofile, before).expect("raised again");
        pump = match placed {
            Ok(mut placed) => {
                assert_eq!(room, 3, "placed with less than it needs");
                placed.retire(LONG).expect("given back").pump
            }
            Err(refused) => {
                assert!(room < 3, "{refused}");
                let error = match &refused.why {
                    ringway_engine::PlaceError::WakeSource(error) => error.raw_os_error(),
                    _ => None,
                };
                assert_eq!(error, Some(rustix::io::Errno::MFILE.raw_os_error()), "{refused}");
                assert!(refused.to_string().contains("LimitNOFILE"), "{refused}");
                refused.pump
            }
        };
        assert_eq!(pump.wake_sources().len(), 3);
        assert_eq!(open(), held, "those that it did find are free again");
    }
    other.retire(LONG).expect("given back");
}

/// What the kernel says a thread of this process has used of its core.
fn cpu_time_ns(tid: i32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/schedstat")).expect("schedstat");
    stat.split_whitespace().next().and_then(|ns| ns.parse().ok()).expect("a number")
}
