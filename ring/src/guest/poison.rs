//! What a map knows of faults in its regions: two words, of which the second is looked up only when the count of poisoned
//! regions in this process is another than at the last look. Read by sessions and workers at once, without a lock.

use super::atomics::{AtomicBool, AtomicU64, Ordering};

/// The outcome of the last look at a map's regions.
#[derive(Debug)]
pub(super) struct LastLook {
    /// How many regions of this process were poisoned then.
    count: AtomicU64,
    /// One of the map's was.
    found: AtomicBool,
}

impl LastLook {
    /// None was taken yet.
    pub(super) fn new() -> LastLook {
        LastLook { count: AtomicU64::new(u64::MAX), found: AtomicBool::new(false) }
    }

    /// Whether a region of the map is poisoned. `count`: regions of this process that are, as read before; `look`: looks at
    /// the map's own.
    #[inline(always)]
    pub(super) fn is_poisoned(&self, count: u64, look: impl FnOnce() -> bool) -> bool {
        // Acquire: pairs with the Release in `look`.
        if count == self.count.load(Ordering::Acquire) {
            return self.found.load(Ordering::Relaxed);
        }
        self.look(count, look)
    }

    /// Looks at every region, since one in this process was poisoned after the last look.
    #[cold]
    fn look(&self, count: u64, look: impl FnOnce() -> bool) -> bool {
        if look() {
            self.found.store(true, Ordering::Relaxed);
        }
        // Release: pairs with the Acquire in `is_poisoned`: who sees this count sees what was found.
        self.count.store(count, Ordering::Release);
        self.found.load(Ordering::Relaxed)
    }
}
