//! The worker's turns, one by one, under a clock that advances by the same step at each reading: what a turn reads of
//! the clock is what it does.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[path = "../../tests/common/mod.rs"]
mod common;

use super::*;
use crate::alarm::Alarm;
use crate::tenant::Seat;
use common::{Queue, TestPump, kick};

const STEP: u64 = 100;

thread_local! {
    static TIME: Cell<u64> = const { Cell::new(0) };
    static READINGS: Cell<u64> = const { Cell::new(0) };
}

/// Nanoseconds of this thread's own.
fn fake_clock() -> Clock {
    fn cycles() -> u64 {
        READINGS.set(READINGS.get() + 1);
        TIME.set(TIME.get() + STEP);
        TIME.get()
    }
    Clock { cycles, hertz: 1_000_000_000 }
}

fn advance(ns: u64) {
    TIME.set(TIME.get() + ns);
}

fn worker(idle: IdlePolicy) -> Worker {
    crate::contain::install_hook();
    let desk = Desk::new(0, idle, Arc::new(Alarm::new())).expect("a desk");
    Worker::new(desk, fake_clock())
}

fn place(worker: &Worker, queue: &Arc<Queue>) -> (u32, Arc<Seat>) {
    let pump = TestPump::new(queue);
    let seat = Seat::new("p", pump.as_ref()).expect("a seat");
    let slot = worker.desk.admit().expect("room");
    seat.watch(&worker.desk.epoll, slot).expect("watched");
    assert!(worker.desk.deliver(slot, Tenant::new(pump, queue.clone(), Arc::clone(&seat))).is_ok(), "open");
    (slot, seat)
}

fn turns(worker: &mut Worker, turns: usize) {
    for _ in 0..turns {
        worker.turn();
    }
}

/// Turns until a condition holds; fails after what is far beyond any of the worker's times.
fn turns_until(worker: &mut Worker, what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..100_000 {
        if condition() {
            return;
        }
        worker.turn();
    }
    assert!(condition(), "turned in vain until {what}");
}

fn polls(queue: &Queue) -> u64 {
    queue.polls.load(Ordering::Relaxed)
}

fn arms(queue: &Queue) -> u64 {
    queue.arms.load(Ordering::Relaxed)
}

fn asleep(seat: &Seat) -> bool {
    seat.account.read("").asleep
}

#[test]
fn pump_is_armed_after_50_us_without_work_and_not_before() {
    let mut worker = worker(IdlePolicy::Poll);
    let queue = Queue::with_kick();
    let (_, seat) = place(&worker, &queue);
    turns(&mut worker, 100);
    queue.send(1);
    worker.turn();
    let moved_at = TIME.get();
    turns_until(&mut worker, "it is armed", || arms(&queue) > 0);
    let idle = TIME.get() - moved_at;
    assert!((50_000..50_000 + 5 * STEP).contains(&idle), "armed after {idle} ns");
    assert!(asleep(&seat) && worker.active.is_empty());
    let before = polls(&queue);
    turns(&mut worker, 10_000);
    assert_eq!((polls(&queue), arms(&queue)), (before, 1), "asleep it is not touched");
}

#[test]
fn kicked_pump_is_disarmed_once_and_polled_again() {
    let mut worker = worker(IdlePolicy::Poll);
    let queue = Queue::with_kick();
    let (_, seat) = place(&worker, &queue);
    for round in 1..=5 {
        turns_until(&mut worker, "it sleeps", || asleep(&seat));
        // Its kick is never read: this one finds the eventfd signalled by the last.
        queue.send(1);
        turns_until(&mut worker, "the work is done", || queue.done() == round);
        assert_eq!(queue.disarms.load(Ordering::Relaxed), round);
    }
}

#[test]
fn pump_that_its_owner_wakes_is_polled_and_one_that_is_awake_stays_so() {
    let mut worker = worker(IdlePolicy::Poll);
    let queue = Queue::with_kick();
    let (slot, seat) = place(&worker, &queue);
    worker.desk.wake(slot);
    turns(&mut worker, 3);
    assert_eq!(queue.disarms.load(Ordering::Relaxed), 0);
    for round in 1..=3 {
        turns_until(&mut worker, "it sleeps", || asleep(&seat));
        let before = polls(&queue);
        worker.desk.wake(slot);
        worker.turn();
        assert!(!asleep(&seat) && polls(&queue) > before);
        assert_eq!(queue.disarms.load(Ordering::Relaxed), round);
    }
}

#[test]
fn kick_that_finds_nothing_costs_one_idle_spell() {
    let mut worker = worker(IdlePolicy::Poll);
    let queue = Queue::with_kick();
    let (_, seat) = place(&worker, &queue);
    turns_until(&mut worker, "it sleeps", || asleep(&seat));
    kick(queue.kick.get().expect("a kick"));
    turns_until(&mut worker, "it is awake", || !asleep(&seat));
    turns_until(&mut worker, "it sleeps again", || asleep(&seat));
    assert_eq!(queue.disarms.load(Ordering::Relaxed), 1);
}

#[test]
fn pump_that_finds_work_while_arming_stays_and_is_armed_50_us_later() {
    /// Always has work when asked, never when polled.
    struct Undecided(Arc<Queue>);
    impl crate::Pump for Undecided {
        fn poll(&mut self, _: &Budget, _: u64) -> Polled {
            self.0.polls.fetch_add(1, Ordering::Relaxed);
            Polled::Blocked
        }
        fn arm(&mut self) -> Armed {
            self.0.arms.fetch_add(1, Ordering::Relaxed);
            Armed::HasWork
        }
        fn disarm(&mut self) {
            self.0.disarms.fetch_add(1, Ordering::Relaxed);
        }
        fn wake_sources(&self) -> Vec<std::os::fd::BorrowedFd<'_>> {
            Vec::new()
        }
    }
    let mut worker = worker(IdlePolicy::Adaptive);
    let queue = Queue::new();
    let pump = Box::new(Undecided(queue.clone()));
    let seat = Seat::new("p", pump.as_ref()).expect("a seat");
    let slot = worker.desk.admit().expect("room");
    assert!(worker.desk.deliver(slot, Tenant::new(pump, queue.clone(), seat)).is_ok(), "open");
    let began = TIME.get();
    while TIME.get() - began < 1_000_000 {
        assert_eq!(worker.turn(), Next::Turn);
    }
    assert!((18..=20).contains(&arms(&queue)), "{} times armed in a millisecond", arms(&queue));
    assert_eq!(queue.disarms.load(Ordering::Relaxed), 0);
    let account = worker.desk.account.read(0, 1);
    assert_eq!(account.busy.cycles(), 0, "blocked is idle");
}

#[test]
fn blocked_pump_sleeps_until_its_deadline() {
    let mut worker = worker(IdlePolicy::Adaptive);
    let queue = Queue::with_kick();
    queue.blocked.store(true, Ordering::Relaxed);
    queue.within_ns.store(300_000, Ordering::Relaxed);
    queue.work.store(1, Ordering::Relaxed);
    let (_, seat) = place(&worker, &queue);
    turns_until(&mut worker, "it sleeps", || asleep(&seat));
    let slept_at = TIME.get();
    let Next::Sleep { until } = worker.turn() else { panic!("nothing else is to do") };
    assert!((299_000..=300_000).contains(&(until - slept_at)));
    advance(until - TIME.get() - 5 * STEP);
    worker.turn();
    assert!(asleep(&seat), "not before its deadline");
    queue.blocked.store(false, Ordering::Relaxed);
    turns_until(&mut worker, "it is done", || queue.done() == 1);
    assert!(TIME.get() - until < 2_000);
}

#[test]
fn pump_kicked_before_its_deadline_has_none_any_more() {
    let mut worker = worker(IdlePolicy::Adaptive);
    let queue = Queue::with_kick();
    queue.within_ns.store(300_000, Ordering::Relaxed);
    let (_, seat) = place(&worker, &queue);
    turns_until(&mut worker, "it sleeps", || asleep(&seat));
    queue.within_ns.store(0, Ordering::Relaxed);
    queue.send(1);
    turns_until(&mut worker, "it is awake", || queue.done() == 1);
    turns_until(&mut worker, "it sleeps again", || asleep(&seat));
    advance(1_000_000);
    turns(&mut worker, 10);
    assert!(asleep(&seat));
    assert_eq!(worker.turn(), Next::Sleep { until: u64::MAX });
}

#[test]
fn retired_sleepers_and_nappers_leave_nothing_behind() {
    let mut worker = worker(IdlePolicy::Adaptive);
    let (napper, sleeper, timed) = (Queue::new(), Queue::with_kick(), Queue::with_kick());
    napper.cannot_sleep.store(true, Ordering::Relaxed);
    timed.within_ns.store(1_000_000, Ordering::Relaxed);
    let placed = [place(&worker, &napper), place(&worker, &sleeper), place(&worker, &timed)];
    turns_until(&mut worker, "all sleep", || placed.iter().all(|(_, seat)| asleep(seat)));
    assert_eq!((worker.listening, worker.napping), (2, 1));
    for (slot, _) in &placed {
        assert!(worker.desk.recall(*slot, RETIRE, std::time::Duration::ZERO).is_err());
    }
    worker.turn();
    assert_eq!((worker.listening, worker.napping, worker.active.len()), (0, 0, 0));
    assert_eq!(worker.deadlines.earliest(), u64::MAX);
    for (slot, seat) in &placed {
        assert!(worker.desk.recall(*slot, RETIRE, std::time::Duration::ZERO).is_ok());
        assert!(!asleep(seat));
    }
    for queue in [&napper, &sleeper, &timed] {
        assert_eq!(queue.disarms.load(Ordering::Relaxed), arms(queue), "what was armed was disarmed");
    }
}

#[test]
fn pump_that_stops_with_work_in_flight_sleeps_until_that_ends() {
    for is_woken in [true, false] {
        let mut worker = worker(IdlePolicy::Adaptive);
        let queue = Queue::with_kick();
        queue.in_flight.store(true, Ordering::Relaxed);
        let (slot, _) = place(&worker, &queue);
        worker.turn();
        let recall = |worker: &Worker| worker.desk.recall(slot, RETIRE, std::time::Duration::ZERO);
        assert!(recall(&worker).is_err());
        let began = polls(&queue);
        let until = loop {
            if let Next::Sleep { until } = worker.turn() {
                break until;
            }
        };
        assert!(polls(&queue) - began < 1_000, "its core rests");
        assert!((9_000_000..=10_000_000).contains(&(until - TIME.get())), "it is looked at in any case");
        queue.in_flight.store(false, Ordering::Relaxed);
        if is_woken {
            queue.send(1)
        } else {
            advance(10_000_000)
        }
        worker.sleep(until);
        worker.turn();
        worker.turn();
        assert!(recall(&worker).is_ok());
        assert_eq!((worker.listening, worker.deadlines.earliest()), (0, u64::MAX));
        assert_eq!(queue.disarms.load(Ordering::Relaxed), arms(&queue));
    }
}

#[test]
fn pump_that_cannot_sleep_naps_in_doubling_steps_and_is_shown_so() {
    let mut worker = worker(IdlePolicy::Adaptive);
    let queue = Queue::new();
    queue.cannot_sleep.store(true, Ordering::Relaxed);
    let (_, seat) = place(&worker, &queue);
    turns_until(&mut worker, "it naps", || asleep(&seat));
    assert!(seat.account.read("").cannot_sleep);
    let mut naps = Vec::new();
    for _ in 0..6 {
        let (before, at) = (polls(&queue), TIME.get());
        turns_until(&mut worker, "it is polled", || polls(&queue) > before);
        naps.push((TIME.get() - at) / 1_000);
        assert!(asleep(&seat), "one fruitless poll, then the next nap");
    }
    assert_eq!(naps, [8, 16, 32, 64, 64, 64]);
    assert!(matches!(worker.turn(), Next::Sleep { .. }), "the worker sleeps through the nap");
    // Work ends the napping; the pump is polled for a whole spell before it naps again.
    queue.send(1);
    turns_until(&mut worker, "the work is done", || queue.done() == 1);
    let at = TIME.get();
    turns_until(&mut worker, "it naps again", || asleep(&seat));
    assert!(TIME.get() - at >= 50_000);
    queue.cannot_sleep.store(false, Ordering::Relaxed);
    turns_until(&mut worker, "it can sleep", || !seat.account.read("").cannot_sleep);
    assert_eq!(worker.napping, 0);
}

#[test]
fn thousand_pumps_that_cannot_sleep_share_a_bounded_part_of_the_core() {
    let mut worker = worker(IdlePolicy::Poll);
    let queues: Vec<_> = (0..1_000)
        .map(|_| {
            let queue = Queue::new();
            queue.cannot_sleep.store(true, Ordering::Relaxed);
            place(&worker, &queue);
            queue
        })
        .collect();
    let began = TIME.get();
    while TIME.get() - began < 50_000_000 {
        worker.turn();
    }
    let count = |queues: &[Arc<Queue>]| queues.iter().map(|queue| polls(queue)).sum::<u64>();
    let (before, began) = (count(&queues), TIME.get());
    while TIME.get() - began < 20_000_000 {
        worker.turn();
    }
    // 20 ms in steps of 2.062 ms each.
    let polled = count(&queues) - before;
    assert!((8_000..11_000).contains(&polled), "{polled} polls in 20 ms");
    assert!(queues.iter().all(|queue| polls(queue) > 0));
}

#[test]
fn worker_with_active_pumps_alone_never_looks_at_its_epoll() {
    let mut worker = worker(IdlePolicy::Poll);
    let (queues, seats): (Vec<_>, Vec<_>) = (0..3)
        .map(|_| {
            let queue = Queue::with_kick();
            (Arc::clone(&queue), place(&worker, &queue).1)
        })
        .unzip();
    turns_until(&mut worker, "all have slept", || seats.iter().all(|seat| asleep(seat)));
    queues.iter().for_each(|queue| queue.send(1));
    turns_until(&mut worker, "all are awake", || !seats.iter().any(|seat| asleep(seat)));
    let first_look = worker.next_look;
    let (before, turns) = (READINGS.get(), 5_000);
    for _ in 0..turns {
        queues.iter().for_each(|queue| queue.send(1));
        worker.turn();
    }
    assert_eq!(worker.next_look, first_look);
    assert_eq!(READINGS.get() - before, 3 * turns, "one reading of the clock a poll, and nothing else");
}

/// Sleepers beside a busy pump: the epoll is looked at as often as for one of them, and the turns cost the same.
#[test]
fn thousand_sleepers_cost_a_busy_pump_nothing() {
    let measure = |sleepers: usize| {
        let mut worker = worker(IdlePolicy::Poll);
        let seats: Vec<_> = (0..sleepers).map(|_| place(&worker, &Queue::with_kick()).1).collect();
        turns_until(&mut worker, "all sleep", || seats.iter().all(|seat| asleep(seat)));
        let busy = Queue::new();
        place(&worker, &busy);
        worker.turn();
        let (readings, began) = (READINGS.get(), TIME.get());
        let mut best = u64::MAX;
        for _ in 0..10 {
            let start = cpu_time_ns();
            for _ in 0..2_000 {
                busy.work.fetch_add(1, Ordering::Relaxed);
                worker.turn();
            }
            best = best.min(cpu_time_ns() - start);
        }
        assert_eq!(polls(&busy), 20_001);
        let looks = READINGS.get() - readings - 20_000;
        assert!(looks <= (TIME.get() - began) / 20_000 + 1, "{looks} looks in {} ns", TIME.get() - began);
        assert!(looks >= (TIME.get() - began) / 21_000, "{looks} looks in {} ns", TIME.get() - began);
        best
    };
    let (one, thousand) = (measure(1), measure(1_000));
    // A turn that walked a thousand sleepers would cost tens of times as much.
    assert!(thousand < 3 * one, "2,000 turns: {one} ns with one sleeper, {thousand} ns with a thousand");
}

#[test]
fn more_kicks_than_one_look_takes_all_arrive() {
    let mut worker = worker(IdlePolicy::Poll);
    let queues: Vec<_> = (0..3 * EVENTS)
        .map(|_| {
            let queue = Queue::with_kick();
            (place(&worker, &queue).1, queue)
        })
        .collect();
    turns_until(&mut worker, "all sleep", || queues.iter().all(|(seat, _)| asleep(seat)));
    queues.iter().for_each(|(_, queue)| queue.send(1));
    let awake = |queues: &[(Arc<Seat>, Arc<Queue>)]| queues.iter().filter(|(seat, _)| !asleep(seat)).count();
    turns_until(&mut worker, "the first are awake", || awake(&queues) > 0);
    assert_eq!(awake(&queues), EVENTS);
    worker.turn();
    assert_eq!(awake(&queues), 2 * EVENTS, "a look that was full is followed by the next");
    worker.turn();
    assert_eq!(awake(&queues), 3 * EVENTS);
    worker.turn();
    assert!(queues.iter().all(|(_, queue)| queue.done() == 1));
}

#[test]
fn each_active_pump_is_polled_once_a_turn_whoever_leaves() {
    let mut worker = worker(IdlePolicy::Poll);
    let queues: Vec<_> = (0..8)
        .map(|_| {
            let queue = Queue::with_kick();
            (place(&worker, &queue), queue)
        })
        .collect();
    worker.turn();
    for (leaving, ((slot, _), queue)) in queues.iter().enumerate().step_by(3) {
        let before: Vec<u64> = queues.iter().map(|(_, queue)| polls(queue)).collect();
        if leaving == 3 {
            queue.panics_in.store(common::IN_POLL, Ordering::Relaxed);
        } else {
            assert!(worker.desk.recall(*slot, RETIRE, std::time::Duration::ZERO).is_err());
        }
        worker.turn();
        for (index, (_, queue)) in queues.iter().enumerate() {
            let polled = polls(queue) - before[index];
            assert_eq!(
                polled,
                u64::from(index % 3 != 0 || index > leaving),
                "pump {index}, leaving {leaving}"
            );
        }
    }
    assert_eq!(worker.active.len(), 5);
    for (place, slot) in worker.active.iter().enumerate() {
        let tenant = worker.tenants[*slot as usize].as_ref().expect("a tenant");
        assert_eq!(tenant.state, State::Active(place as u32));
    }
}

#[test]
fn adaptive_worker_spins_50_us_then_sleeps_for_ever_and_polling_one_never_does() {
    let mut adaptive = worker(IdlePolicy::Adaptive);
    let began = TIME.get();
    let next = loop {
        match adaptive.turn() {
            Next::Turn => {}
            next => break next,
        }
    };
    assert_eq!(next, Next::Sleep { until: u64::MAX });
    assert!((50_000..51_000).contains(&(TIME.get() - began)));
    adaptive.desk.set_idle(IdlePolicy::Poll);
    for _ in 0..2_000 {
        assert_eq!(adaptive.turn(), Next::Turn);
    }
    adaptive.desk.set_idle(IdlePolicy::Adaptive);
    assert_eq!(adaptive.turn(), Next::Turn, "the change of policy was mail");
}

#[test]
fn sleeping_worker_wakes_for_mail_posted_before_and_for_kicks() {
    let mut worker = worker(IdlePolicy::Adaptive);
    let queue = Queue::with_kick();
    let (_, seat) = place(&worker, &queue);
    // With mail it does not sleep at all: this returns.
    worker.sleep(u64::MAX);
    assert_eq!(worker.desk.account.read(0, 1).wakeups, 0);
    turns_until(&mut worker, "it sleeps", || asleep(&seat));
    queue.send(1);
    worker.sleep(u64::MAX);
    assert_eq!(worker.desk.account.read(0, 1).wakeups, 1);
    assert!(!asleep(&seat), "roused by the time the sleep ends");
    worker.turn();
    assert_eq!(queue.done(), 1);
}

#[test]
fn stop_gives_everything_back_at_once_or_at_the_last_moment() {
    let mut worker = worker(IdlePolicy::Adaptive);
    let (ready, flying) = (Queue::with_kick(), Queue::new());
    flying.in_flight.store(true, Ordering::Relaxed);
    let ((ready_slot, seat), (flying_slot, _)) = (place(&worker, &ready), place(&worker, &flying));
    turns_until(&mut worker, "one sleeps", || asleep(&seat));
    worker.desk.close();
    let began = TIME.get();
    assert_eq!(worker.turn(), Next::Turn);
    let back = |worker: &Worker, slot| worker.desk.recall(slot, 0, std::time::Duration::ZERO);
    assert!(matches!(back(&worker, ready_slot).expect("it had stopped").ending, Ending::Stopped));
    while worker.turn() != Next::Stop {
        advance(100_000);
    }
    assert!((500_000_000..501_000_000).contains(&(TIME.get() - began)));
    assert!(matches!(back(&worker, flying_slot).expect("it was let go of").ending, Ending::InFlight));
    assert!(worker.desk.admit().is_err());
}

#[test]
fn pump_that_was_admitted_before_its_worker_stopped_and_comes_after_goes_back() {
    let mut worker = worker(IdlePolicy::Adaptive);
    let queue = Queue::with_kick();
    let pump = TestPump::new(&queue);
    let seat = Seat::new("p", pump.as_ref()).expect("a seat");
    let slot = worker.desk.admit().expect("room");
    seat.watch(&worker.desk.epoll, slot).expect("watched");
    worker.desk.close();
    let Err(tenant) = worker.desk.deliver(slot, Tenant::new(pump, queue.clone(), Arc::clone(&seat))) else {
        panic!("nobody would ever take it");
    };
    worker.desk.release(slot, &seat);
    while worker.turn() != Next::Stop {}
    assert!(queue.dropped_on.get().is_none() && worker.desk.seats().is_empty());
    assert_eq!((polls(&queue), tenant.pump.wake_sources().len()), (0, 1));
}

#[test]
fn watcher_that_panics_does_not_take_the_worker_with_it() {
    struct Rude;
    impl crate::Watcher for Rude {
        fn pump_ended(&self) {
            panic!("rude");
        }
    }
    let mut worker = worker(IdlePolicy::Poll);
    let queue = Queue::new();
    queue.panics_in.store(common::IN_POLL, Ordering::Relaxed);
    let pump = TestPump::new(&queue);
    let seat = Seat::new("p", pump.as_ref()).expect("a seat");
    let slot = worker.desk.admit().expect("room");
    assert!(worker.desk.deliver(slot, Tenant::new(pump, Arc::new(Rude), Arc::clone(&seat))).is_ok(), "open");
    turns(&mut worker, 3);
    assert!(seat.has_ended());
    let tenant = worker.desk.recall(slot, RETIRE, std::time::Duration::ZERO).expect("given back");
    let Ending::Panicked(caught) = tenant.ending else { panic!("it panicked") };
    assert!(caught.message().starts_with("planted in call 1"), "{}", caught.message());
}

#[test]
fn full_worker_refuses_the_next_pump() {
    let worker = worker(IdlePolicy::Poll);
    for _ in 0..SLOTS {
        worker.desk.admit().expect("room");
    }
    assert!(matches!(worker.desk.admit(), Err(crate::PlaceError::Full(0))));
}

fn cpu_time_ns() -> u64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

#[test]
fn worker_that_gives_way_rests_in_bounded_counted_steps_and_no_longer_when_told() {
    let mut worker = worker(IdlePolicy::Poll);
    let queue = Queue::with_kick();
    place(&worker, &queue);
    let read = |worker: &Worker| worker.desk.account.read(TIME.get(), 1_000_000_000);
    turns(&mut worker, 100_000);
    assert_eq!(read(&worker).rests, 0);
    worker.desk.set_gives_way(true);
    let began = TIME.get();
    turns(&mut worker, 100_000);
    let (rests, periods) = (read(&worker).rests, (TIME.get() - began) / crate::pace::REST_EVERY_NS);
    assert!(periods > 3 && rests.abs_diff(periods) <= 1, "{rests} rests in {periods} periods");
    // It works between them.
    queue.send(1);
    turns_until(&mut worker, "the work is done", || queue.done() == 1);
    assert!(read(&worker).rest_cycles > 0);
    worker.desk.set_gives_way(false);
    turns(&mut worker, 100);
    let rests = read(&worker).rests;
    turns(&mut worker, 100_000);
    assert_eq!(read(&worker).rests, rests);
}

#[test]
fn worker_that_gives_way_and_sleeps_is_not_woken_to_rest() {
    let mut worker = worker(IdlePolicy::Adaptive);
    worker.desk.set_gives_way(true);
    let mut next = worker.turn();
    for _ in 0..100_000 {
        if next != Next::Turn {
            break;
        }
        next = worker.turn();
    }
    assert_eq!(next, Next::Sleep { until: u64::MAX });
    // Awake again it rests.
    worker.desk.set_idle(IdlePolicy::Poll);
    worker.sleep(u64::MAX);
    turns(&mut worker, 100_000);
    assert!(worker.desk.account.read(TIME.get(), 1_000_000_000).rests > 0);
}
