//! The reaper: one thread that drops the pumps whose holders have gone, so that neither workers nor holders do. A drop
//! may be the last of a guest's memory and take its time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use rustix::thread::futex;

use crate::desk::Desk;

/// What the reaper sleeps on.
#[derive(Debug, Default)]
pub(crate) struct Alarm {
    /// Counts what was raised.
    raised: AtomicU32,
    stop: AtomicBool,
}

impl Alarm {
    /// Wakes the reaper. Any thread; neither waits nor allocates.
    pub(crate) fn raise(&self) {
        // Release: pairs with the Acquire in `run`; what was buried before is found.
        self.raised.fetch_add(1, Ordering::Release);
        let _ = futex::wake(&self.raised, futex::Flags::PRIVATE, 1);
    }

    /// Asks the reaper to end.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.raise();
    }
}

/// The reaper's thread.
pub(crate) fn run(alarm: &Alarm, desks: &[Arc<Desk>]) {
    loop {
        // Acquire: pairs with the Release in `raise`. Read before the sweep: what is buried during it changes this
        // word, and the wait returns at once.
        let seen = alarm.raised.load(Ordering::Acquire);
        sweep(desks);
        if alarm.stop.load(Ordering::Acquire) {
            break;
        }
        let _ = futex::wait(&alarm.raised, futex::Flags::PRIVATE, seen, None);
    }
    for desk in desks {
        desk.set_reaperless();
    }
    sweep(desks);
}

fn sweep(desks: &[Arc<Desk>]) {
    for desk in desks.iter().filter(|desk| desk.graves.has_mail()) {
        desk.graves.collect(|slot| desk.reclaim(slot as u32));
    }
}
