//! What a map knows of its poison, under loom: a handler that poisons one region of another guest and one of this, beside two
//! who ask.

use loom::sync::Arc;
use loom::thread;

use atomics::{AtomicBool, AtomicU64, Ordering};
use poison::LastLook;

#[path = "poison.rs"]
mod poison;

mod atomics {
    pub(super) use loom::sync::atomic::{AtomicBool, AtomicU64, Ordering};
}

/// A process: the count of its poisoned regions, the map's only region, and what the map knows.
struct Process {
    count: AtomicU64,
    region: AtomicBool,
    last: LastLook,
}

impl Process {
    /// Asks as a ring does: the count that was seen, and the answer.
    fn ask(&self) -> (u64, bool) {
        let count = self.count.load(Ordering::Acquire);
        (count, self.last.is_poisoned(count, || self.region.load(Ordering::Relaxed)))
    }
}

#[test]
fn who_sees_the_count_of_a_fault_in_the_map_knows_the_map_poisoned() {
    // Three threads in every order are too many: those in which threads are interrupted twice at most.
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(2);
    model.check(|| {
        let process = Arc::new(Process {
            count: AtomicU64::new(0),
            region: AtomicBool::new(false),
            last: LastLook::new(),
        });
        let of = |asks: u32| {
            let process = Arc::clone(&process);
            thread::spawn(move || {
                let mut was_poisoned = false;
                for _ in 0..asks {
                    let (count, is_poisoned) = process.ask();
                    assert!(is_poisoned || count < 2, "the fault is counted and not known");
                    assert!(is_poisoned || !was_poisoned, "poison does not go");
                    was_poisoned = is_poisoned;
                }
            })
        };
        let askers = [of(2), of(1)];
        // Another guest's region, then the map's own, as the handler does it.
        process.count.fetch_add(1, Ordering::Release);
        process.region.store(true, Ordering::Relaxed);
        process.count.fetch_add(1, Ordering::Release);
        for asker in askers {
            asker.join().unwrap();
        }
        assert_eq!(process.ask(), (2, true));
    });
}

#[test]
fn map_without_a_fault_is_never_taken_for_poisoned() {
    loom::model(|| {
        let process = Arc::new(Process {
            count: AtomicU64::new(0),
            region: AtomicBool::new(false),
            last: LastLook::new(),
        });
        let asker = {
            let process = Arc::clone(&process);
            thread::spawn(move || assert!(!process.ask().1))
        };
        process.count.fetch_add(1, Ordering::Release);
        assert!(!process.ask().1);
        asker.join().unwrap();
    });
}
