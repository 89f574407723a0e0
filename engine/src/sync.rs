//! Atomics, fences and what is built on them between threads: the process's own, or loom's under `cfg(loom)`, where
//! the model check runs the same protocols.

#[cfg(not(loom))]
pub(crate) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

#[cfg(loom)]
pub(crate) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};

pub(crate) use native::{Exchange, Futex};

#[cfg(not(loom))]
mod native {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Duration;

    use crossbeam::atomic::AtomicCell;
    use rustix::thread::futex;

    /// A cell that holds a value or none, filled and emptied by one atomic exchange.
    pub(crate) struct Exchange<T>(AtomicCell<Option<T>>);

    impl<T> std::fmt::Debug for Exchange<T> {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Exchange").finish_non_exhaustive()
        }
    }

    impl<T: Send> Exchange<T> {
        pub(crate) fn new() -> Exchange<T> {
            // A cell that needed a lock would make a worker wait.
            const { assert!(AtomicCell::<Option<T>>::is_lock_free()) };
            Exchange(AtomicCell::new(None))
        }

        /// Fills the cell, which is empty. Releases what the caller did before.
        pub(crate) fn put(&self, value: T) {
            self.0.store(Some(value));
        }

        /// Empties the cell. Acquires what its filler did before.
        pub(crate) fn take(&self) -> Option<T> {
            self.0.take()
        }
    }

    /// A count that can be waited on.
    #[derive(Debug, Default)]
    pub(crate) struct Futex(AtomicU32);

    impl Futex {
        pub(crate) fn new() -> Futex {
            Futex::default()
        }

        /// The count. Acquire: pairs with the Release in `raise`.
        pub(crate) fn seen(&self) -> u32 {
            self.0.load(Ordering::Acquire)
        }

        /// Counts and wakes all that wait. Neither waits nor allocates.
        pub(crate) fn raise(&self) {
            // Release: pairs with the Acquire in `seen`.
            self.0.fetch_add(1, Ordering::Release);
            let _ = futex::wake(&self.0, futex::Flags::PRIVATE, u32::MAX >> 1);
        }

        /// Waits until the count is no longer `seen`, at most for `within`. May return early: look again.
        pub(crate) fn wait(&self, seen: u32, within: Option<Duration>) {
            let within = within.map(|within| rustix::time::Timespec {
                tv_sec: i64::try_from(within.as_secs()).unwrap_or(i64::MAX),
                tv_nsec: within.subsec_nanos().into(),
            });
            // Its errors (timed out, interrupted, changed before the wait) all mean: look again.
            let _ = futex::wait(&self.0, futex::Flags::PRIVATE, seen, within.as_ref());
        }
    }
}

#[cfg(loom)]
mod native {
    use std::time::Duration;

    use loom::sync::atomic::{AtomicU32, Ordering};
    use loom::sync::{Condvar, Mutex};

    /// The model's cell: loom sees the exchange of `full`, with the orderings of crossbeam's cell. The value itself
    /// passes beside it; loom runs one thread at a time.
    #[derive(Debug)]
    pub(crate) struct Exchange<T> {
        full: AtomicU32,
        value: std::sync::Mutex<Option<T>>,
    }

    impl<T: Send> Exchange<T> {
        pub(crate) fn new() -> Exchange<T> {
            Exchange { full: AtomicU32::new(0), value: std::sync::Mutex::new(None) }
        }

        pub(crate) fn put(&self, value: T) {
            *self.value.lock().expect("one at a time") = Some(value);
            assert_eq!(self.full.swap(1, Ordering::AcqRel), 0, "the cell was empty");
        }

        pub(crate) fn take(&self) -> Option<T> {
            if self.full.swap(0, Ordering::AcqRel) == 0 {
                return None;
            }
            self.value.lock().expect("one at a time").take()
        }
    }

    /// The model's futex: the kernel compares and queues under its lock. There is no time in the model.
    #[derive(Debug)]
    pub(crate) struct Futex {
        count: AtomicU32,
        queue: Mutex<()>,
        woken: Condvar,
    }

    impl Futex {
        pub(crate) fn new() -> Futex {
            Futex { count: AtomicU32::new(0), queue: Mutex::new(()), woken: Condvar::new() }
        }

        pub(crate) fn seen(&self) -> u32 {
            self.count.load(Ordering::Acquire)
        }

        pub(crate) fn raise(&self) {
            self.count.fetch_add(1, Ordering::Release);
            let _queue = self.queue.lock().expect("never poisoned");
            self.woken.notify_all();
        }

        pub(crate) fn wait(&self, seen: u32, _within: Option<Duration>) {
            let queue = self.queue.lock().expect("never poisoned");
            if self.count.load(Ordering::Relaxed) == seen {
                drop(self.woken.wait(queue).expect("never poisoned"));
            }
        }
    }
}
