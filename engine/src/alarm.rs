//! What wakes the reaper.

use std::sync::atomic::{AtomicBool, Ordering};

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

    /// How often it was raised, for [`Alarm::wait`].
    pub(crate) fn seen(&self) -> u32 {
        self.raised.seen()
    }

    /// Sleeps until it is raised, or returns at once if it was since `seen`.
    pub(crate) fn wait(&self, seen: u32) {
        self.raised.wait(seen, None);
    }

    /// Whether the reaper was asked to end.
    pub(crate) fn must_stop(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }
}
