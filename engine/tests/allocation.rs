//! No allocation on a worker: a counting allocator that knows whose thread it is on.

#[path = "common/allocations.rs"]
mod allocations;
mod common;

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::*;
use ringway_engine::{Armed, Budget, Engine, IdlePolicy, Polled, Pump};

/// Marks the thread that polls it, for good; allocates when told to.
struct Marking {
    pump: TestPump,
    polled: Arc<AtomicBool>,
    violates: Arc<AtomicBool>,
}

impl Pump for Marking {
    fn poll(&mut self, budget: &Budget, now: u64) -> Polled {
        allocations::watch();
        self.polled.store(true, Ordering::SeqCst);
        if self.violates.load(Ordering::SeqCst) {
            std::hint::black_box(Box::new(now));
        }
        self.pump.poll(budget, now)
    }
    fn arm(&mut self) -> Armed {
        self.pump.arm()
    }
    fn disarm(&mut self) {
        self.pump.disarm();
    }
    fn begin_stop(&mut self) -> bool {
        self.pump.begin_stop()
    }
    fn stopped(&mut self) -> bool {
        self.pump.stopped()
    }
    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        self.pump.wake_sources()
    }
}

/// Traffic with pauses long enough to arm, sleep and wake; hand-overs of every kind beside it.
fn exercise(engine: &Engine, queue: &Arc<Queue>) {
    for round in 0..100u64 {
        let before = queue.done();
        queue.send(200);
        wait_until("the work is done", || queue.done() == before + 200);
        let other = Queue::with_kick();
        other.in_flight.store(round % 4 == 0, Ordering::SeqCst);
        other.cannot_sleep.store(round % 5 == 0, Ordering::SeqCst);
        other.within_ns.store(round % 3 * 50_000, Ordering::SeqCst);
        let core = engine.cores()[(round % engine.cores().len() as u64) as usize];
        let mut placed = engine.place(core, "other", TestPump::new(&other), other.clone()).expect("places");
        other.send(1);
        wait_until("the other's work is done", || other.done() == 1);
        if round % 8 == 1 {
            placed.move_to(engine.cores()[0], LONG).expect("moves");
        }
        std::thread::sleep(Duration::from_micros(100));
        if round % 4 == 0 {
            let _ = placed.retire(Duration::from_micros(50));
            other.in_flight.store(false, Ordering::SeqCst);
        }
        if round % 2 == 0 {
            drop(placed);
        } else {
            placed.retire(LONG).expect("retires");
        }
        engine.set_idle(if round % 2 == 0 { IdlePolicy::Poll } else { IdlePolicy::Adaptive });
    }
}

#[test]
fn workers_neither_allocate_nor_free_and_a_pump_that_does_is_caught() {
    let engine = engine(&cores(), IdlePolicy::Adaptive);
    let violates = Arc::new(AtomicBool::new(false));
    let marking: Vec<_> = engine
        .cores()
        .iter()
        .map(|&core| {
            let (queue, polled) = (Queue::with_kick(), Arc::new(AtomicBool::new(false)));
            let pump = Marking {
                pump: TestPump(queue.clone()),
                polled: Arc::clone(&polled),
                violates: Arc::clone(&violates),
            };
            let placed = engine.place(core, "marking", Box::new(pump), queue.clone()).expect("places");
            wait_until("its worker is marked", || polled.load(Ordering::SeqCst));
            (placed, queue)
        })
        .collect();
    let queue = &marking[0].1;

    let before = allocations::calls();
    exercise(&engine, queue);
    assert_eq!(allocations::calls(), before, "the workers called the allocator");
    let worker = &engine.workers()[0];
    assert!(worker.wakeups > 0 && worker.items >= 20_000, "it slept and worked: {worker:?}");

    violates.store(true, Ordering::SeqCst);
    queue.send(1);
    wait_until("the planted allocation is counted", || allocations::calls() >= before + 2);
}
