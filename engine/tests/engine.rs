//! The engine from outside: placing, moving, retiring, panics, shutdown.

mod common;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use common::*;
use ringway_engine::{
    Armed, Budget, Engine, EngineConfig, HowEnded, IdlePolicy, NotPlaced, PlaceError, Polled, Pump,
    StartError,
};

fn start_error(cores: &[usize]) -> StartError {
    Engine::start(EngineConfig { cores: cores.to_vec(), idle: IdlePolicy::Adaptive, clock: clock() })
        .expect_err("it must not start")
}

#[test]
fn no_core_and_a_core_named_twice_are_refused() {
    assert!(matches!(start_error(&[]), StartError::NoCores));
    let core = cores()[0];
    assert!(matches!(start_error(&[core, core]), StartError::Duplicate(twice) if twice == core));
}

#[test]
fn pin_to_a_core_that_does_not_exist_names_the_core_and_leaves_no_worker() {
    for missing in [1000, 5000] {
        let error = start_error(&[cores()[0], missing]);
        assert!(matches!(error, StartError::Pin { core, .. } if core == missing), "{error}");
        assert!(error.to_string().contains(&format!("core {missing}")), "{error}");
    }
}

#[test]
fn worker_runs_on_exactly_its_core() {
    let cores = cores();
    let engine = engine(&cores, IdlePolicy::Adaptive);
    assert_eq!(engine.cores(), cores);
    for (worker, core) in engine.workers().iter().zip(&cores) {
        assert_eq!(worker.core, *core);
        let tid = rustix::thread::Pid::from_raw(worker.tid).expect("a thread id");
        let mask = rustix::thread::sched_getaffinity(Some(tid)).expect("affinity");
        assert!(mask.count() == 1 && mask.is_set(*core));
        let name = std::fs::read_to_string(format!("/proc/self/task/{}/comm", worker.tid)).expect("runs");
        assert_eq!(name.trim(), format!("rw-core-{core}"));
    }
}

#[test]
fn placed_pump_moves_its_work_and_accounts_for_it() {
    for idle in [IdlePolicy::Poll, IdlePolicy::Adaptive] {
        let core = cores()[0];
        let engine = engine(&[core], idle);
        let queue = Queue::with_kick();
        let mut placed = engine.place(core, "vm0 rx0", TestPump::new(&queue), queue.clone()).expect("places");
        assert_eq!(placed.core(), core);
        queue.send(1_000);
        wait_until("all is done", || queue.done() == 1_000);
        wait_until("it is accounted for", || engine.workers()[0].items == 1_000);
        let stats = placed.stats();
        assert_eq!((stats.name.as_str(), stats.items), ("vm0 rx0", 1_000));
        assert_eq!(stats.bursts, 1_000u64.div_ceil(64));
        let worker = &engine.workers()[0];
        assert_eq!((worker.items, worker.bursts, worker.idle), (1_000, stats.bursts, idle));
        assert!(worker.busy_cycles >= stats.busy_cycles && stats.busy_cycles > 0);
        assert_eq!(worker.pumps.len(), 1);
        let retired = placed.retire(LONG).expect("retires");
        assert_eq!((retired.end, retired.in_flight), (HowEnded::Retired, false));
        assert!(matches!(placed.retire(LONG), Err(PlaceError::Gone)));
        assert!(engine.workers()[0].pumps.is_empty());
        assert_eq!(engine.workers()[0].items, 1_000, "past pumps stay in the worker's account");
    }
}

#[test]
fn place_on_a_core_without_worker_is_refused_and_gives_the_pump_back() {
    let engine = engine(&cores()[..1], IdlePolicy::Adaptive);
    let queue = Queue::new();
    let refused = engine.place(999, "p", TestPump::new(&queue), queue.clone());
    assert!(matches!(refused, Err(NotPlaced { why: PlaceError::NoSuchCore(999), .. })));
    assert!(queue.dropped_on.get().is_none());
    drop(refused);
    assert!(queue.dropped_on.get().is_some());
}

#[test]
fn worker_that_is_full_refuses_one_more_by_name_and_gives_it_back_until_another_goes() {
    let core = cores()[0];
    let engine = engine(&[core], IdlePolicy::Adaptive);
    let queue = Queue::new();
    let mut placed = Vec::new();
    let refused = loop {
        match engine.place(core, "p", TestPump::new(&queue), queue.clone()) {
            Ok(one) => placed.push(one),
            Err(refused) => break refused,
        }
        assert!(placed.len() < 1 << 20, "it is never full");
    };
    println!("{} pumps on one worker", placed.len());
    assert!(matches!(refused.why, PlaceError::Full(on) if on == core), "{refused}");
    assert!(refused.to_string().contains("serve the device by another core"), "{refused}");
    assert!(queue.dropped_on.get().is_none(), "it came back");
    // Again, as often as one likes; nothing is used up by being refused.
    let refused = engine.place(core, "p", refused.pump, queue.clone()).expect_err("it is full still");
    placed.pop().expect("one").retire(LONG).expect("retires");
    placed.push(engine.place(core, "p", refused.pump, queue.clone()).expect("there is room for it now"));
    assert_eq!(engine.workers()[0].pumps.len(), placed.len());
    assert!(engine.place(core, "p", TestPump::new(&queue), queue.clone()).is_err());
}

#[test]
fn retirement_waits_for_work_in_flight_and_times_out_usably() {
    let core = cores()[0];
    let engine = engine(&[core], IdlePolicy::Adaptive);
    let queue = Queue::new();
    queue.in_flight.store(true, Ordering::SeqCst);
    let mut placed = engine.place(core, "p", TestPump::new(&queue), queue.clone()).expect("places");
    let error = placed.retire(Duration::from_millis(20)).expect_err("work is in flight");
    assert!(matches!(error, PlaceError::Timeout { core: on, .. } if on == core), "{error}");
    let polls = queue.read(|q| &q.polls);
    wait_until("it is polled on", || queue.read(|q| &q.polls) > polls);
    queue.in_flight.store(false, Ordering::SeqCst);
    let retired = placed.retire(LONG).expect("nothing is in flight any more");
    assert!(!retired.in_flight);
    assert_eq!(queue.read(|q| &q.stops), 1, "it begins to stop once");
}

#[test]
fn revoked_pump_comes_back_with_its_work_in_flight() {
    let core = cores()[0];
    let engine = engine(&[core], IdlePolicy::Poll);
    let queue = Queue::new();
    queue.in_flight.store(true, Ordering::SeqCst);
    let mut placed = engine.place(core, "p", TestPump::new(&queue), queue.clone()).expect("places");
    assert!(placed.retire(Duration::from_millis(5)).is_err());
    let retired = placed.revoke(LONG).expect("the worker lets go");
    assert!(retired.in_flight);
    queue.given_back.store(true, Ordering::SeqCst);
    std::thread::sleep(Duration::from_millis(5));
    assert_eq!(queue.misused.load(Ordering::SeqCst), 0);
}

#[test]
fn dropped_handle_retires_and_the_pump_is_dropped_off_the_worker() {
    let core = cores()[0];
    let engine = engine(&[core], IdlePolicy::Adaptive);
    // In its last, the drop itself panics: the reaper survives it.
    for panics_in in [0, 0, IN_DROP, 0] {
        let queue = Queue::with_kick();
        queue.panics_in.store(panics_in, Ordering::SeqCst);
        let placed = engine.place(core, "p", TestPump::new(&queue), queue.clone()).expect("places");
        drop(placed);
        wait_until("it is dropped", || queue.dropped_on.get().is_some());
        assert_eq!(queue.dropped_on.get().map(String::as_str), Some("rw-reaper"));
    }
    wait_until("no slot is held", || engine.workers()[0].pumps.is_empty());
}

#[test]
fn dropped_handle_of_a_pump_in_flight_is_reaped_once_it_stops() {
    let core = cores()[0];
    let engine = engine(&[core], IdlePolicy::Adaptive);
    let queue = Queue::new();
    queue.in_flight.store(true, Ordering::SeqCst);
    let mut placed = engine.place(core, "p", TestPump::new(&queue), queue.clone()).expect("places");
    assert!(placed.retire(Duration::from_millis(5)).is_err());
    drop(placed);
    std::thread::sleep(Duration::from_millis(10));
    assert!(queue.dropped_on.get().is_none(), "in flight, so still with its worker");
    queue.in_flight.store(false, Ordering::SeqCst);
    wait_until("it is dropped", || queue.dropped_on.get().is_some());
    assert_eq!(queue.dropped_on.get().map(String::as_str), Some("rw-reaper"));
}

#[test]
fn dropped_handle_of_a_pump_that_panicked_is_reaped() {
    let core = cores()[0];
    let engine = engine(&[core], IdlePolicy::Adaptive);
    let queue = Queue::with_kick();
    queue.panics_in.store(IN_POLL, Ordering::SeqCst);
    let placed = engine.place(core, "p", TestPump::new(&queue), queue.clone()).expect("places");
    wait_until("it is taken out", || placed.has_ended());
    drop(placed);
    wait_until("it is dropped", || queue.dropped_on.get().is_some());
    assert_eq!(queue.dropped_on.get().map(String::as_str), Some("rw-reaper"));
    wait_until("its slot is free", || engine.workers()[0].pumps.is_empty());
}

#[test]
fn move_of_a_pump_in_flight_times_out_and_succeeds_once_it_has_stopped() {
    let cores = cores();
    let (first, last) = (cores[0], cores[cores.len() - 1]);
    if first == last {
        eprintln!("left out: there is one core only");
        return;
    }
    let engine = engine(&cores, IdlePolicy::Adaptive);
    let queue = Queue::with_kick();
    queue.in_flight.store(true, Ordering::SeqCst);
    let mut placed = engine.place(first, "p", TestPump::new(&queue), queue.clone()).expect("places");
    let pumps = || engine.workers().iter().map(|worker| worker.pumps.len()).collect::<Vec<_>>();
    // More often than there are slots to leak would take too long; the lists show what is held.
    for _ in 0..5 {
        let error = placed.move_to(last, Duration::from_millis(2)).expect_err("work is in flight");
        assert!(matches!(error, PlaceError::Timeout { core, .. } if core == first), "{error}");
        assert_eq!((placed.core(), pumps()), (first, vec![1, 0]));
    }
    queue.in_flight.store(false, Ordering::SeqCst);
    placed.move_to(last, LONG).expect("moves");
    assert_eq!((placed.core(), pumps()), (last, vec![0, 1]));
    queue.send(1);
    wait_until("it works there", || queue.done() == 1);
}

#[test]
fn move_keeps_the_pump_its_name_and_its_account() {
    let cores = cores();
    let (first, last) = (cores[0], cores[cores.len() - 1]);
    let engine = engine(&cores, IdlePolicy::Adaptive);
    let queue = Queue::with_kick();
    let mut placed = engine.place(first, "p", TestPump::new(&queue), queue.clone()).expect("places");
    for (round, core) in [last, last, first, last].into_iter().enumerate() {
        placed.move_to(core, LONG).expect("moves");
        assert_eq!(placed.core(), core);
        queue.send(10);
        let sum = 10 * (round as u64 + 1);
        wait_until("the new worker does the work", || queue.done() == sum);
        wait_until("it is accounted for", || placed.stats().items == sum);
    }
    assert!(matches!(placed.move_to(999, LONG), Err(PlaceError::NoSuchCore(999))));
    placed.retire(LONG).expect("retires");
    assert!(matches!(placed.move_to(first, LONG), Err(PlaceError::Gone)));
}

#[test]
fn panic_in_any_call_takes_out_that_pump_alone_and_names_it() {
    let core = cores()[0];
    let engine = engine(&[core], IdlePolicy::Adaptive);
    let bystander = Queue::with_kick();
    let _bystander =
        engine.place(core, "bystander", TestPump::new(&bystander), bystander.clone()).expect("places");
    let mut expected = 0;
    for place in [IN_POLL, IN_ARM, IN_DISARM, IN_BEGIN_STOP] {
        let queue = Queue::with_kick();
        let mut placed = engine.place(core, "victim", TestPump::new(&queue), queue.clone()).expect("places");
        wait_until("it sleeps", || placed.stats().asleep);
        queue.panics_in.store(place, Ordering::SeqCst);
        if place == IN_BEGIN_STOP {
            assert!(!placed.has_ended());
        } else {
            queue.send(1);
            wait_until("its owner is told", || queue.ended.load(Ordering::SeqCst));
            assert!(placed.has_ended());
            assert!(matches!(placed.move_to(core, LONG), Err(PlaceError::Ended)));
        }
        expected += 1;
        let retired = placed.retire(LONG).expect("is given back");
        let HowEnded::Panicked(message) = retired.end else {
            panic!("it ended otherwise: {:?}", retired.end)
        };
        assert!(message.contains(&format!("planted in call {place}")), "{message}");
        assert!(message.contains("common/mod.rs:"), "{message}");
        assert!(placed.has_ended() && queue.ended.load(Ordering::SeqCst));
        assert_eq!(engine.workers()[0].panics, expected);
        let before = bystander.done();
        bystander.send(5);
        wait_until("the others go on", || bystander.done() == before + 5);
    }
    assert_eq!(bystander.misused.load(Ordering::SeqCst), 0);
}

#[test]
fn pump_that_panics_while_it_is_moved_is_given_back_with_its_reason() {
    let cores = cores();
    let (first, last) = (cores[0], cores[cores.len() - 1]);
    if first == last {
        eprintln!("left out: there is one core only");
        return;
    }
    let engine = engine(&cores, IdlePolicy::Adaptive);
    let queue = Queue::with_kick();
    let mut placed = engine.place(first, "p", TestPump::new(&queue), queue.clone()).expect("places");
    queue.panics_in.store(IN_BEGIN_STOP, Ordering::SeqCst);
    assert!(matches!(placed.move_to(last, LONG), Err(PlaceError::Ended)));
    let retired = placed.retire(LONG).expect("is given back");
    assert!(matches!(&retired.end, HowEnded::Panicked(message) if message.contains("planted in call 4")));
    assert!(engine.workers().iter().all(|worker| worker.pumps.is_empty()));
}

#[test]
fn shutdown_gives_back_what_is_held_and_drops_the_rest_off_the_workers() {
    let cores = cores();
    let engine = engine(&cores, IdlePolicy::Poll);
    let (held, left, late) = (Queue::with_kick(), Queue::with_kick(), Queue::with_kick());
    let core = cores[0];
    let mut placed = engine.place(core, "held", TestPump::new(&held), held.clone()).expect("places");
    let dropped_later = engine.place(core, "late", TestPump::new(&late), late.clone()).expect("places");
    drop(engine.place(core, "left", TestPump::new(&left), left.clone()).expect("places"));
    let tids: Vec<i32> = engine.workers().iter().map(|worker| worker.tid).collect();
    engine.clone().shutdown();
    // The kernel reaps a thread a moment after it was joined.
    for tid in tids {
        let task = format!("/proc/self/task/{tid}");
        wait_until("its thread has ended", || !std::path::Path::new(&task).exists());
    }
    let retired = placed.retire(Duration::ZERO).expect("it was given back");
    assert_eq!((retired.end, retired.in_flight), (HowEnded::Retired, false));
    assert!(left.dropped_on.get().is_some_and(|thread| thread == "rw-reaper"), "{:?}", left.dropped_on);
    drop(dropped_later);
    assert!(late.dropped_on.get().is_some_and(|thread| !thread.starts_with("rw-")), "{:?}", late.dropped_on);
    let refused = engine.place(core, "p", TestPump::new(&held), held.clone());
    assert!(matches!(refused, Err(NotPlaced { why: PlaceError::Full(on), .. }) if on == core));
    engine.shutdown();
}

#[test]
fn shutdown_lets_go_of_what_never_stops() {
    let core = cores()[0];
    let engine = engine(&[core], IdlePolicy::Adaptive);
    let queue = Queue::new();
    queue.in_flight.store(true, Ordering::SeqCst);
    let mut placed = engine.place(core, "p", TestPump::new(&queue), queue.clone()).expect("places");
    drop(engine);
    assert!(placed.retire(Duration::ZERO).expect("the worker let go").in_flight);
}

/// Hangs in its poll for as long as it is told to.
struct Hanging(Arc<AtomicBool>);

impl Pump for Hanging {
    fn poll(&mut self, _: &Budget, _: u64) -> Polled {
        while self.0.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Polled::Idle
    }
    fn arm(&mut self) -> Armed {
        Armed::Sleep { within_ns: None }
    }
    fn disarm(&mut self) {}
    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

#[test]
fn pump_that_hangs_is_named_with_its_worker() {
    let core = cores()[0];
    let engine = engine(&[core], IdlePolicy::Adaptive);
    let hangs = Arc::new(AtomicBool::new(true));
    let pump = Box::new(Hanging(Arc::clone(&hangs)));
    let _placed = engine.place(core, "vm3 tx1", pump, Queue::new()).expect("places");
    let mut found = Vec::new();
    wait_until("it is found stuck", || {
        found = engine.stuck(Duration::from_millis(5));
        !found.is_empty()
    });
    assert_eq!((found[0].core, found[0].pump.as_str()), (core, "vm3 tx1"));
    assert!(found[0].since > Duration::from_millis(5));
    let worker = &engine.workers()[0];
    assert_eq!((worker.current_pump.as_deref(), worker.tid), (Some("vm3 tx1"), found[0].tid));
    hangs.store(false, Ordering::SeqCst);
    wait_until("it is no longer stuck", || engine.workers()[0].current_pump.is_none());
    // It may be polled once more just then.
    wait_until("it sleeps", || engine.stuck(Duration::ZERO).is_empty());
}

/// Hangs in one of its methods until it is let go.
struct HangsIn {
    method: &'static str,
    hangs: Arc<AtomicBool>,
    /// Work to begin with, and what is in flight at the end.
    left: u32,
}

impl HangsIn {
    fn at(&self, method: &str) {
        while method == self.method && self.hangs.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Pump for HangsIn {
    fn poll(&mut self, _: &Budget, _: u64) -> Polled {
        self.at("poll");
        Polled::Idle
    }
    fn arm(&mut self) -> Armed {
        self.at("arm");
        Armed::Sleep { within_ns: Some(1_000_000) }
    }
    fn disarm(&mut self) {
        self.at("disarm");
    }
    fn begin_stop(&mut self) -> bool {
        self.at("begin_stop");
        false
    }
    fn stopped(&mut self) -> bool {
        self.at("stopped");
        self.left = self.left.saturating_sub(1);
        self.left == 0
    }
    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

#[test]
fn pump_that_hangs_in_any_of_its_methods_is_named() {
    let core = cores()[0];
    for method in ["poll", "arm", "disarm", "begin_stop", "stopped"] {
        let engine = engine(&[core], IdlePolicy::Adaptive);
        let hangs = Arc::new(AtomicBool::new(true));
        // It has stopped when it is asked for the second time, as by an order that is given twice.
        let pump = Box::new(HangsIn { method, hangs: Arc::clone(&hangs), left: 2 });
        let mut placed = engine.place(core, method, pump, Queue::new()).expect("places");
        if method.contains("stop") {
            let error = placed.retire(Duration::from_millis(10)).expect_err("it hangs");
            assert!(matches!(error, PlaceError::Timeout { .. }), "{method}: {error}");
        }
        wait_until("it is found stuck", || {
            engine.stuck(Duration::from_millis(5)).iter().any(|stuck| stuck.pump == method)
        });
        hangs.store(false, Ordering::SeqCst);
        placed.retire(Duration::from_secs(20)).expect("given back");
    }
}

#[test]
fn shutdown_leaves_a_worker_behind_that_a_pump_holds() {
    let core = cores()[0];
    let engine = engine(&[core], IdlePolicy::Adaptive);
    let hangs = Arc::new(AtomicBool::new(true));
    let pump = Box::new(Hanging(Arc::clone(&hangs)));
    let mut placed = engine.place(core, "p", pump, Queue::new()).expect("places");
    wait_until("it hangs", || !engine.stuck(Duration::from_millis(5)).is_empty());
    let tid = engine.workers()[0].tid;
    engine.shutdown();
    let error = placed.retire(Duration::from_millis(1)).expect_err("the worker still has it");
    assert!(matches!(error, PlaceError::Timeout { .. }), "{error}");
    hangs.store(false, Ordering::SeqCst);
    assert!(placed.retire(LONG).is_ok(), "let go, the worker gives back and ends");
    wait_until("its thread has ended", || !std::path::Path::new(&format!("/proc/self/task/{tid}")).exists());
}

/// Several threads place, move and retire as fast as they can, under traffic. No pump is touched once it was given
/// back, and none is lost.
#[test]
fn thousands_of_hand_overs_under_traffic_touch_nothing_after_its_acknowledgement() {
    let cores = cores();
    let engine = engine(&cores, IdlePolicy::Adaptive);
    let (stop, hand_overs) = (Stop::default(), AtomicU64::new(0));
    let running = Queue::with_kick();
    let _running =
        engine.place(cores[0], "running", TestPump::new(&running), running.clone()).expect("places");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.is_set() {
                running.send(3);
                std::thread::sleep(Duration::from_micros(100));
            }
        });
        let _stop = stop.when_dropped();
        let movers: Vec<_> = (0..4u64)
            .map(|mover| {
                let (engine, cores, hand_overs) = (engine.clone(), cores.clone(), &hand_overs);
                scope.spawn(move || {
                    for round in 0..500u64 {
                        let at = |n: u64| cores[(n % cores.len() as u64) as usize];
                        let queue = Queue::with_kick();
                        let mut placed = engine
                            .place(at(mover + round), "p", TestPump::new(&queue), queue.clone())
                            .expect("places");
                        queue.send(round % 5);
                        if round % 3 == 0 {
                            placed.move_to(at(mover + round + 1), LONG).expect("moves");
                        }
                        if round % 7 == 0 {
                            drop(placed);
                            wait_until("it is dropped", || queue.dropped_on.get().is_some());
                            queue.given_back.store(true, Ordering::SeqCst);
                        } else {
                            let retired = placed.retire(LONG).expect("retires");
                            queue.given_back.store(true, Ordering::SeqCst);
                            assert_eq!(retired.end, HowEnded::Retired);
                        }
                        assert!(queue.dropped_on.get().is_none_or(|thread| !thread.starts_with("rw-core")));
                        assert_eq!(queue.misused.load(Ordering::SeqCst), 0);
                        hand_overs.fetch_add(1, Ordering::SeqCst);
                    }
                })
            })
            .collect();
        for mover in movers {
            mover.join().expect("no failure");
        }
    });
    assert_eq!(hand_overs.into_inner(), 2_000);
    wait_until("only the running one is left", || {
        engine.workers().iter().map(|worker| worker.pumps.len()).sum::<usize>() == 1
    });
    wait_until("traffic was never lost", || running.work.load(Ordering::SeqCst) == 0);
}
