//! What a worker polls: the contract between a driver's data path and the worker that runs it.
//!
//! A pump is made by a driver, placed on a worker, polled in bursts, and given back when retired. It is polled by one
//! thread at a time, and never after its retirement was acknowledged: whoever holds that acknowledgement may unmap
//! the memory the pump worked on.
//!
//! ```text
//!             place                 empty for some 50 us: arm()
//!   session ---------> [ active ] -----------------------------> [ asleep ]
//!      ^                  |  ^                                       |
//!      |      retire      |  +--------- wake source: disarm() -------+
//!      +------------------+----------------------- retire -----------+
//! ```

use std::any::Any;
use std::os::fd::BorrowedFd;

/// How much one poll may take, so that no single pump can hold its core.
///
/// A pump ends its burst at the first bound it reaches; it may finish the unit (a frame, a request) it has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Descriptor chains.
    pub chains: u32,
    /// Descriptors, over all chains: a chain of 1,024 descriptors costs 1,024.
    pub descriptors: u32,
    /// Bytes copied.
    pub bytes: u64,
}

impl Default for Budget {
    fn default() -> Self {
        Budget { chains: 64, descriptors: 2048, bytes: 1 << 20 }
    }
}

/// What one poll did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Polled {
    /// Nothing to do.
    Idle,
    /// This many units (frames, requests) were moved, dropped or completed. Never 0.
    Moved(u32),
    /// There is work, but the far side cannot take it now (no buffer on the receiving side). Counts as idle time.
    Blocked,
}

/// What became of [`Pump::arm`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Armed {
    /// Every wake source is armed: the pump need not be polled before one fires, or before `within_ns` nanoseconds
    /// have passed (a bounded wait for a blocked receiver), if given.
    Sleep {
        /// The longest sleep, in nanoseconds.
        within_ns: Option<u64>,
    },
    /// Work came while arming; the pump disarmed itself again and wants to be polled.
    HasWork,
    /// A far side has no way to wake anybody (a front-end that polls: no kick descriptor). The worker naps in
    /// bounded steps instead, and shows the pump so. Those sides that can wake may have been armed: they do.
    CannotSleep,
}

/// One direction of one queue (or what a driver binds to it), polled by one worker.
///
/// Every method but `wake_sources` runs on the worker's thread and keeps its rules: no allocation, no lock, no
/// blocking, no logging, no panic. A panic is contained all the same: the pump is taken out and its owner told.
///
/// It is [`Any`], so that whoever made it can take it apart when it was given back.
pub trait Pump: Send + Any {
    /// Moves at most `budget`, publishes once and notifies at most once per ring. `now` is the worker's clock in
    /// cycles at the start of this poll.
    fn poll(&mut self, budget: &Budget, now: u64) -> Polled;

    /// Told after each [`Pump::poll`] that moved something how many cycles it took, by the clock that the worker has read anyway:
    /// for who counts how long bursts take. What it published had been published by then.
    fn took(&mut self, _cycles: u64) {}

    /// Asks the far sides for a wake-up (enables kicks) and then looks once more for work, so that none is missed.
    fn arm(&mut self) -> Armed;

    /// Takes the request for wake-ups back: the pump is about to be polled again, or to be stopped. Called once after
    /// each `arm` that answered `Sleep` or `CannotSleep`, never after `HasWork`.
    fn disarm(&mut self);

    /// Begins to stop: takes no new work. Returns true when nothing is in flight any more; else the worker polls
    /// on until [`Pump::stopped`]: it arms and disarms the pump as before, which is then woken by what is in flight, and within
    /// 10 ms in any case. Pumps that finish all work within one poll keep the default.
    ///
    /// A pump that was given back after it stopped may be placed again (a move to another core); its next poll takes
    /// new work again.
    fn begin_stop(&mut self) -> bool {
        true
    }

    /// True when nothing is in flight any more after [`Pump::begin_stop`].
    fn stopped(&mut self) -> bool {
        true
    }

    /// Nobody waits for what is in flight any more: from here on, whatever ends, nothing of the peers' memory is written or
    /// read. Called by whoever has the pump back before it had stopped, and who places it again until it has; it takes no new
    /// work ever.
    fn give_up(&mut self) {}

    /// The descriptors whose becoming readable wakes this pump. Asked for once, by the thread that places the pump:
    /// duplicates of them sit in the worker's edge-triggered epoll until the pump was given back. They are never
    /// read. At most [`MAX_WAKE_SOURCES`].
    fn wake_sources(&self) -> Vec<BorrowedFd<'_>>;
}

/// Told by a worker, on its thread, that a pump was taken out because it panicked. Must keep the worker's rules: no
/// lock, no allocation, no waiting (write an eventfd).
pub trait Watcher: Send + Sync {
    /// The pump has been taken out; [`retire`](crate::Placed::retire) gives the reason.
    fn pump_ended(&self);
}

/// The most wake sources that one pump may have.
pub const MAX_WAKE_SOURCES: usize = 4096;
