//! One watched range in the table of the handler: a few words under a version, so that a reader which interrupts the
//! writer, or runs beside it, either has all of them as one range or knows that it has not.

use super::atomics::{AtomicBool, AtomicUsize, Ordering, fence};

/// One range of addresses. Written under the table's lock, read by handlers at any time.
#[derive(Debug)]
pub(super) struct Slot {
    /// Odd while the words below change.
    version: AtomicUsize,
    start: AtomicUsize,
    /// 0: free.
    len: AtomicUsize,
    page_bytes: AtomicUsize,
    poisoned: AtomicBool,
}

impl Slot {
    /// A free one.
    pub(super) fn new() -> Slot {
        Slot {
            version: AtomicUsize::new(0),
            start: AtomicUsize::new(0),
            len: AtomicUsize::new(0),
            page_bytes: AtomicUsize::new(1),
            poisoned: AtomicBool::new(false),
        }
    }

    /// Replaces the range, by one of length 0 to retract it. One caller at a time.
    pub(super) fn publish(&self, start: usize, len: usize, page_bytes: usize) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        // Release: pairs with the Acquire fence in `read`: who sees a word below sees the odd version.
        fence(Ordering::Release);
        self.start.store(start, Ordering::Relaxed);
        self.len.store(len, Ordering::Relaxed);
        self.page_bytes.store(page_bytes, Ordering::Relaxed);
        self.poisoned.store(false, Ordering::Relaxed);
        // Release: pairs with the Acquire load in `read`: who sees this version sees the words above.
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// The range and its page size, or None if it is free or changing.
    pub(super) fn read(&self) -> Option<(usize, usize, usize)> {
        let version = self.version.load(Ordering::Acquire);
        let words = (
            self.start.load(Ordering::Relaxed),
            self.len.load(Ordering::Relaxed),
            self.page_bytes.load(Ordering::Relaxed),
        );
        // Acquire: pairs with the Release fence in `publish`.
        fence(Ordering::Acquire);
        let stable = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        (stable && words.1 != 0).then_some(words)
    }

    /// Marks the range; true if it was not marked before.
    pub(super) fn poison(&self) -> bool {
        !self.poisoned.swap(true, Ordering::Relaxed)
    }

    /// True once marked, until the next range.
    #[inline(always)]
    pub(super) fn is_poisoned(&self) -> bool {
        self.poisoned.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn slot_that_is_changing_is_not_read() {
        let slot = Slot::new();
        assert_eq!(slot.read(), None);
        slot.publish(0x1000, 0x2000, 0x1000);
        assert_eq!(slot.read(), Some((0x1000, 0x2000, 0x1000)));
        slot.version.fetch_add(1, Ordering::Relaxed);
        assert_eq!(slot.read(), None);
    }
}
