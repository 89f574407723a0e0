//! Atomics and fences: the process's own, or loom's under `cfg(loom)`. Ring code imports them only from here.

#[cfg(not(loom))]
pub use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering};

#[cfg(loom)]
pub use loom::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, AtomicU64, Ordering, fence};

#[cfg(not(any(loom, test)))]
pub use std::sync::atomic::fence;

#[cfg(test)]
#[cfg(not(loom))]
pub use counted::fence;

/// Fences that this crate's unit tests can count.
#[cfg(test)]
#[cfg(not(loom))]
pub(crate) mod counted {
    use std::cell::Cell;
    use std::sync::atomic::Ordering;

    thread_local! {
        static FULL: Cell<u64> = const { Cell::new(0) };
        static ALL: Cell<u64> = const { Cell::new(0) };
    }

    /// A fence that is counted.
    #[inline]
    pub fn fence(order: Ordering) {
        ALL.set(ALL.get() + 1);
        if order == Ordering::SeqCst {
            FULL.set(FULL.get() + 1);
        }
        std::sync::atomic::fence(order);
    }

    /// Fences of this thread so far: sequentially consistent ones, and all.
    pub(crate) fn so_far() -> (u64, u64) {
        (FULL.get(), ALL.get())
    }
}
