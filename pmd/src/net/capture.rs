//! Copies of the frames that pass a queue, for an operator who looks on.
//!
//! ```text
//!   pump --wanted? copy--> [ so many bytes, of a queue ] <--exchanged for an empty one-- whoever reads
//!              |
//!              +-- no room, or just exchanged --> count
//! ```
//!
//! Nothing is decided here: frames go on as they do without it. A frame is copied as its sender left it, before a checksum is
//! completed or a segment cut, with the tag that its receiver gets. What the kernel or a function tells of a frame after it
//! took it is counted by them and not seen here.
//!
//! The pump writes, from its worker: it never waits (it looks a bounded number of times whether the buffer is free), allocates
//! nothing, and makes no system call; whoever reads never waits in the lock, so that the worker has nobody to wake. A queue at
//! which nobody looks on costs a look at a flag a burst.

mod filter;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, TryLockError};
use std::time::{Duration, Instant};

use ringway_ring::chain::Burst;

use super::frame::{Frame, Frames};
use super::side::{Load, Passage};
use crate::counters::{DropReason, QueueCounters};

pub use self::filter::{BadFilter, Filter, MOST_TESTS};

/// Which frames are wanted, and how much of each.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// Only those that it lets pass; None: all.
    pub filter: Option<Filter>,
    /// Bytes of each at most.
    pub snaplen: u32,
    /// Only those that were dropped.
    pub only_drops: bool,
}

/// What is captured of one queue.
#[derive(Debug)]
pub struct QueueCapture {
    wanted: Arc<Wanted>,
    /// Never grows.
    filled: Mutex<Vec<u8>>,
    missed: AtomicU64,
    /// Nobody wants any more: what is shown is not copied, though it may still stand in the list of those who look on.
    is_closed: AtomicBool,
}

/// A frame that was captured.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record<'a> {
    /// When, in [cycles](ringway_ring::tsc::cycles).
    pub at: u64,
    /// Frames of the queue that were wanted and found no room since the capture began.
    pub missed: u64,
    /// Its bytes on the wire.
    pub len: u32,
    /// Why it went no further at this queue.
    pub dropped: Option<DropReason>,
    /// Its beginning: as much as was wanted.
    pub bytes: &'a [u8],
}

impl Record<'_> {
    /// Bytes that it takes in a buffer.
    pub fn space(&self) -> usize {
        RECORD_BYTES + self.bytes.len()
    }
}

impl QueueCapture {
    /// With a buffer of `bytes`, whose pages are there.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new(wanted: Arc<Wanted>, bytes: usize) -> Result<QueueCapture, std::collections::TryReserveError> {
        Ok(QueueCapture {
            wanted,
            filled: Mutex::new(buffer(bytes)?),
            missed: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
        })
    }

    /// Nothing is copied from now on.
    pub(crate) fn close(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    /// Frames that were wanted and found no room.
    pub fn missed(&self) -> u64 {
        self.missed.load(Ordering::Relaxed)
    }

    /// Whoever reads: takes what is captured, for an empty [`buffer`] of the same size. False: a worker that does not run is
    /// about to write; it is tried again later.
    pub fn exchange(&self, empty: &mut Vec<u8>) -> bool {
        empty.clear();
        let Some(mut filled) = within(&self.filled, EXCHANGE_WITHIN) else { return false };
        std::mem::swap(&mut *filled, empty);
        true
    }

    /// Worker: copies a frame, if it is wanted and there is room.
    fn put(&self, from: Passage<'_>, dropped: Option<DropReason>, at: u64) {
        let Wanted { filter, snaplen, only_drops } = &*self.wanted;
        if self.is_closed.load(Ordering::Relaxed) || (*only_drops && dropped.is_none()) {
            return;
        }
        let mut looked_at = [0; filter::LOOKED_AT];
        let head: &[u8] = match filter {
            Some(filter) => {
                let head = from.copy(&mut looked_at);
                if !filter.takes(head) {
                    return;
                }
                head
            }
            None => &[],
        };
        self.write(from.frame.len, (from.frame.len).min(*snaplen), dropped, at, |room| {
            from.copy(room);
            // What it was wanted for is what is shown of it, whatever its sender has made of it meanwhile.
            let same = head.len().min(room.len());
            if let (Some(room), Some(head)) = (room.get_mut(..same), head.get(..same)) {
                room.copy_from_slice(head);
            }
        });
    }

    /// Worker: the same with a frame of our own.
    fn put_bytes(&self, frame: &[u8], dropped: Option<DropReason>, at: u64) {
        let Wanted { filter, snaplen, only_drops } = &*self.wanted;
        let is_open = !self.is_closed.load(Ordering::Relaxed);
        let is_taken = is_open && filter.as_ref().is_none_or(|filter| filter.takes(frame));
        if (*only_drops && dropped.is_none()) || !is_taken {
            return;
        }
        let len = frame.len() as u32;
        self.write(len, len.min(*snaplen), dropped, at, |room| {
            if let Some(frame) = frame.get(..room.len()) {
                room.copy_from_slice(frame);
            }
        });
    }

    #[inline]
    fn write(
        &self,
        len: u32,
        taken: u32,
        dropped: Option<DropReason>,
        at: u64,
        fill: impl FnOnce(&mut [u8]),
    ) {
        let Some(mut filled) = soon(&self.filled) else { return self.miss() };
        let begin = filled.len();
        let end = begin + RECORD_BYTES + taken as usize;
        // Within what it has: nothing is allocated.
        if end > filled.capacity() {
            return self.miss();
        }
        let reason = dropped.map_or(0, |reason| reason as u64 + 1);
        for word in [at, self.missed(), u64::from(len) | u64::from(taken) << 32, reason] {
            filled.extend_from_slice(&word.to_le_bytes());
        }
        filled.resize(end, 0);
        fill(filled.get_mut(begin + RECORD_BYTES..).unwrap_or_default());
    }

    /// Written by one thread at a time.
    fn miss(&self) {
        self.missed.store(self.missed() + 1, Ordering::Relaxed);
    }
}

/// An empty buffer with room for `bytes`, whose pages are there: no worker has to wait for the kernel to find some.
///
/// # Errors
/// There is no memory.
pub fn buffer(bytes: usize) -> Result<Vec<u8>, std::collections::TryReserveError> {
    let mut buffer = Vec::new();
    buffer.try_reserve_exact(bytes)?;
    buffer.resize(bytes, 0xff);
    buffer.clear();
    Ok(buffer)
}

/// What was captured, in order.
pub fn records(mut bytes: &[u8]) -> impl Iterator<Item = Record<'_>> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_first_chunk::<RECORD_BYTES>()?;
        let mut words = head.as_chunks::<8>().0.iter().map(|word| u64::from_le_bytes(*word));
        let (at, missed, lens, reason) = (words.next()?, words.next()?, words.next()?, words.next()?);
        let (frame, rest) = rest.split_at_checked((lens >> 32) as usize)?;
        bytes = rest;
        let dropped = (reason as usize).checked_sub(1).and_then(|nth| DropReason::ALL.get(nth)).copied();
        Some(Record { at, missed, len: lens as u32, dropped, bytes: frame })
    })
}

/// Those who look on at a queue. Part of its counters.
#[derive(Debug, Default)]
pub struct Onlookers {
    of: Mutex<Vec<Arc<QueueCapture>>>,
    /// Frames that passed while the list was just being changed.
    unseen: AtomicU64,
}

impl Onlookers {
    /// One more, or one less; `are_there` says afterwards whether there are any. False: a worker that does not run is about to
    /// look; nothing is changed.
    pub(crate) fn change(
        &self,
        are_there: &AtomicBool,
        change: impl FnOnce(&mut Vec<Arc<QueueCapture>>),
    ) -> bool {
        let Some(mut of) = within(&self.of, EXCHANGE_WITHIN) else { return false };
        change(&mut of);
        // Under the lock: of two that change the list at a time, the later one says what is so.
        are_there.store(!of.is_empty(), Ordering::Relaxed);
        true
    }

    /// Frames that no onlooker saw, since the list was just being changed.
    pub(crate) fn unseen(&self) -> u64 {
        self.unseen.load(Ordering::Relaxed)
    }

    /// Worker: shows everybody a frame.
    #[cold]
    pub(crate) fn show(&self, from: Passage<'_>, dropped: Option<DropReason>, at: u64) {
        match soon(&self.of) {
            Some(of) => of.iter().for_each(|capture| capture.put(from, dropped, at)),
            None => drop(self.unseen.fetch_add(1, Ordering::Relaxed)),
        }
    }

    /// Worker: shows everybody a frame of our own.
    #[cold]
    pub(crate) fn show_bytes(&self, frame: &[u8], dropped: Option<DropReason>, at: u64) {
        match soon(&self.of) {
            Some(of) => of.iter().for_each(|capture| capture.put_bytes(frame, dropped, at)),
            None => drop(self.unseen.fetch_add(1, Ordering::Relaxed)),
        }
    }
}

/// Worker: shows those who look on at a queue frames that all came to the same there.
#[cold]
#[inline(never)]
pub(super) fn show(counters: &QueueCounters, load: Load<'_>, dropped: Option<DropReason>, at: u64) {
    load.passages(false).for_each(|from| counters.capture(from, dropped, at));
}

/// Worker: shows those who look on at a sender's queue the first `frames` of a burst, each with why it is dropped if it is.
#[cold]
#[inline(never)]
pub(super) fn show_taken(counters: &QueueCounters, load: Load<'_>, frames: usize, at: u64) {
    let taken = load.passages(false).take(frames);
    taken.for_each(|from| counters.capture(from, from.frame.dropped, at));
}

/// Worker: shows those who look on at a sender's queue the first `frames` of a burst that nobody looked at, behind `skip` bytes
/// each.
#[cold]
#[inline(never)]
pub(super) fn show_waiting(
    counters: &QueueCounters,
    burst: &Burst,
    skip: usize,
    frames: usize,
    why: DropReason,
) {
    let at = ringway_ring::tsc::cycles();
    for chain in burst.chains().iter().take(frames) {
        let Some(len) = chain.readable_bytes.checked_sub(skip as u32) else { continue };
        let frame = Frame { len, ..Frames::EMPTY };
        let from = Passage { burst, chain, skip, frame: &frame, beginning: &Frames::NO_HEAD, swap: false };
        counters.capture(from, Some(why), at);
    }
}

/// Worker: the lock, unless somebody has it for longer than it takes to exchange a buffer.
fn soon<T>(mutex: &Mutex<T>) -> Option<MutexGuard<'_, T>> {
    for _ in 0..LOOKS {
        match mutex.try_lock() {
            Ok(guard) => return Some(guard),
            Err(TryLockError::Poisoned(poisoned)) => return Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => std::hint::spin_loop(),
        }
    }
    None
}

/// Anybody else: the lock, as soon as the worker lets go of it; not waited for in it.
fn within<T>(mutex: &Mutex<T>, time: Duration) -> Option<MutexGuard<'_, T>> {
    let begun = Instant::now();
    loop {
        if let Some(guard) = soon(mutex) {
            return Some(guard);
        }
        if begun.elapsed() >= time {
            return None;
        }
        std::thread::sleep(EXCHANGE_STEP);
    }
}

/// Bytes before each frame in a buffer: four words.
const RECORD_BYTES: usize = 32;

/// How often a worker looks whether a buffer is free: some hundred nanoseconds, several times what an exchange takes.
const LOOKS: u32 = 32;

/// How long whoever reads waits for a worker that has no CPU to finish its copy.
const EXCHANGE_WITHIN: Duration = Duration::from_millis(5);
const EXCHANGE_STEP: Duration = Duration::from_micros(50);

#[cfg(test)]
mod tests;
