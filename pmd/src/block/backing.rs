//! What the requests of a queue go to: the contract between the pump of a block queue and memory, a file, an NVMe queue pair.
//!
//! A backing's queue belongs to one pump and lives on its worker. Budget of every method but those that say otherwise: no
//! allocation, no lock, no panic, no waiting; a system call only in [`BackingQueue::turn`], which does not wait.

use std::os::fd::BorrowedFd;

use ringway_ring::chain::Span;

use crate::counters::DropReason;

/// What is to be done. Offsets and lengths are in bytes, inside the disk as it was when the request was taken, and multiples of
/// its block size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// Into the guest's memory.
    Read {
        /// From where on the disk.
        offset: u64,
    },
    /// From the guest's memory.
    Write {
        /// To where on the disk.
        offset: u64,
        /// It lasts before it is told to be done: the guest has no write cache.
        is_durable: bool,
    },
    /// What was told to be written before lasts.
    Flush,
    /// The guest does not need what is there.
    Discard {
        /// From where on the disk.
        offset: u64,
        /// How much.
        len: u64,
    },
    /// Zeroes are read there.
    WriteZeroes {
        /// From where on the disk.
        offset: u64,
        /// How much.
        len: u64,
        /// The space may be given back.
        may_unmap: bool,
        /// As of a write.
        is_durable: bool,
    },
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is done.
    Done,
    /// It failed: the guest is told of an error, the operator of the reason.
    Failed(DropReason),
    /// The disk does not do such a thing.
    Unsupported,
}

/// What became of a request that was handed over.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Submitted {
    /// It ended at once.
    Ended(Outcome),
    /// It ends in a later turn, once.
    Taken,
    /// There is no room for it now: it is handed over again later.
    Full,
}

/// Requests that a backing has, with their data.
pub trait Taken {
    /// The data of a request: what the guest has written (to be read) or is to be given (to be written). Empty for a slot that is
    /// not taken, and for all once the guest was given up: what is left of a read or write then ends as it is.
    fn data(&self, slot: u16) -> Span<'_>;
}

/// What a turn came to: requests that ended.
#[derive(Debug)]
pub struct Ended {
    list: Vec<(u16, Outcome)>,
}

impl Ended {
    /// Room for so many; not on a worker.
    pub fn new(most: u16) -> Ended {
        Ended { list: Vec::with_capacity(most.into()) }
    }

    /// A request ended. There is room for each that was taken.
    #[inline]
    pub fn push(&mut self, slot: u16, outcome: Outcome) {
        if self.list.len() < self.list.capacity() {
            self.list.push((slot, outcome));
        }
    }

    /// No more room: the others end in the next turn.
    #[inline]
    pub fn is_full(&self) -> bool {
        self.list.len() == self.list.capacity()
    }

    /// Takes one.
    #[inline]
    pub fn pop(&mut self) -> Option<(u16, Outcome)> {
        self.list.pop()
    }
}

/// What became of a request to be woken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wake {
    /// The wake source becomes readable when something ends, or nothing is under way.
    Armed,
    /// Something ended meanwhile, or goes on only in turns.
    HasWork,
}

/// A backing's part for one queue.
pub trait BackingQueue: Send + 'static {
    /// Hands a request over. `slot` names it until it ends: below the number of slots that the queue was made for, and of no other
    /// request under way. `data` is valid as long as the guest's map is held, which whoever made this queue holds, and can be asked
    /// for again in [`BackingQueue::turn`]. A read or write whose data is empty is not handed over.
    fn submit(&mut self, slot: u16, operation: Operation, data: Span<'_>) -> Submitted;

    /// Hands on what was submitted, goes on with what is under way (some `bytes` at most, where bytes are moved by the core), and
    /// tells what ended. Returns true if it got on with something.
    fn turn(&mut self, taken: &dyn Taken, bytes: u64, ended: &mut Ended) -> bool;

    /// Asks to be woken.
    fn arm(&mut self) -> Wake {
        Wake::HasWork
    }

    /// Takes that back.
    fn disarm(&mut self) {}

    /// What becomes readable then, if it can be.
    fn wake_source(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}
