//! The reaper: one thread that drops the pumps whose holders have gone, so that neither workers nor holders do. A drop
//! may be the last of a guest's memory and take its time.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::desk::Desk;
use crate::sync::Futex;

/// What the reaper sleeps on.
#[derive(Debug)]
pub(crate) struct Alarm {
    /// Counts what was raised.
    raised: Futex,
    stop: AtomicBool,
}

impl Alarm {
    pub(crate) fn new() -> Alarm {
        Alarm { raised: Futex::new(), stop: AtomicBool::new(false) }
    }

    /// Wakes the reaper. Any thread; neither waits nor allocates.
    pub(crate) fn raise(&self) {
        self.raised.raise();
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
        // Before the sweep: what is buried during it makes the wait return at once.
        let seen = alarm.raised.seen();
        sweep(desks);
        if alarm.stop.load(Ordering::Acquire) {
            break;
        }
        alarm.raised.wait(seen, None);
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
