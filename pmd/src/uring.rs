//! Operations of an io_uring on one file, and the owners of all that the kernel reads and writes for them.
//!
//! ```text
//!   ReadRing:   operations + rooms of ours, which are seen like guest memory
//!   StreamRing: one read that goes on + rooms, and the ring in which the kernel is given them
//!   WriteRing:  operations + own bytes, vectors, rooms to copy to + the maps of the guests whose memory is out
//!   DiskRing:   operations + vectors, rooms to copy to + the map of the guest
//!   Registered: a guest's memory, pinned, for DiskRings
//! ```
//!
//! What an operation works on belongs to the same value as the ring it was put into, does not move, and stays until the
//! operation is finished: dropped with one that does not finish, all of it is left to the kernel for good. So no caller has
//! a promise to keep, and all that is unsafe about it is here. Operations find something at once or fail, and none waits; but
//! those of disks, which end when the disk ends them.
//!
//! Owned by one pump. Budget of all but making and dropping: no allocation, no lock, one system call to enter, no panic.

mod disk;
mod fixed;
mod read;
mod stream;
mod write;

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::squeue::Entry;
use io_uring::{IoUring, cqueue, types};

pub(crate) use disk::Put as DiskPut;
pub(crate) use disk::{Alignment, DiskRing, ROOM_BYTES, Room, Way};
pub(crate) use fixed::Registered;
pub(crate) use read::ReadRing;
pub(crate) use stream::{Found, StreamRing};
#[cfg(test)]
pub(crate) use write::VECTORS;
pub(crate) use write::{FromGuest, Put, WriteRing};

/// A ring of operations on a file, beside the memory that they work on.
struct Operations<Memory> {
    /// Dropped in [`Drop`] alone, once nothing is out.
    parts: ManuallyDrop<Parts<Memory>>,
    /// Operations that were put in and not reaped.
    pending: usize,
    /// The kernel did not take all of them when it was asked to.
    is_refused: bool,
    is_leaked: bool,
}

struct Parts<Memory> {
    // Goes first: its registered buffers are in the memory.
    ring: IoUring,
    file: OwnedFd,
    memory: Memory,
}

/// A finished operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Finished {
    /// What it was put in as.
    pub(crate) tag: u64,
    /// Bytes, or the negative error number.
    pub(crate) result: i32,
}

impl<Memory> Operations<Memory> {
    /// Room for `entries` operations on a file.
    fn new(file: OwnedFd, entries: u32, memory: Memory) -> io::Result<Operations<Memory>> {
        // A pump moves between threads, so neither SINGLE_ISSUER nor what needs it.
        Ok(Operations::on(IoUring::builder().dontfork().build(entries)?, file, memory))
    }

    /// The same, on a ring that is there.
    fn on(ring: IoUring, file: OwnedFd, memory: Memory) -> Operations<Memory> {
        Operations {
            parts: ManuallyDrop::new(Parts { ring, file, memory }),
            pending: 0,
            is_refused: false,
            is_leaked: false,
        }
    }

    fn file(&self) -> types::Fd {
        types::Fd(self.parts.file.as_raw_fd())
    }

    /// Puts an operation in. False: no room.
    ///
    /// # Safety
    /// What the entry points to is part of the memory, or held by it; it stays where it is, and is neither written nor
    /// borrowed as what could not be so from outside, until the operation is reaped.
    unsafe fn push(&mut self, entry: &Entry) -> bool {
        // SAFETY: the caller's promise, until it is reaped; and if it never is, the memory is never freed.
        let is_in = unsafe { self.parts.ring.submission().push(entry) }.is_ok();
        self.pending += usize::from(is_in);
        is_in
    }

    /// Hands everything that was put in to the kernel; does not wait. What the file can do at once is finished when this
    /// returns. What the kernel does not take now (a signal, no memory) is handed over again by [`Operations::reap`].
    fn enter(&mut self) {
        let _ = self.parts.ring.submit();
        self.is_refused = !self.parts.ring.submission().is_empty();
    }

    /// Gives the memory up for good: nothing is waited for, and nothing of it is ever freed.
    fn leak(&mut self) {
        self.is_leaked = true;
    }

    /// The next operation that is finished.
    fn reap(&mut self) -> Option<Finished> {
        self.reap_flagged().map(|(finished, _)| finished)
    }

    /// The same, with the kernel's flags. One that goes on is not finished by what it has found.
    fn reap_flagged(&mut self) -> Option<(Finished, u32)> {
        if self.is_refused {
            self.enter();
        }
        let entry = self.parts.ring.completion().next()?;
        if !cqueue::more(entry.flags()) {
            self.pending = self.pending.saturating_sub(1);
        }
        Some((Finished { tag: entry.user_data(), result: entry.result() }, entry.flags()))
    }
}

impl<Memory> Drop for Operations<Memory> {
    /// Waits until nothing is out. Not on a worker. Operations never wait for a peer.
    fn drop(&mut self) {
        if self.is_leaked {
            return;
        }
        while self.pending > 0 {
            let waited = self.parts.ring.submit_and_wait(1);
            if waited.is_err_and(|error| error.kind() != io::ErrorKind::Interrupted) {
                // The kernel may still work on the memory: it keeps all of it.
                return;
            }
            while self.reap().is_some() {}
        }
        // SAFETY: this is where it is dropped, once, and nothing uses it after.
        unsafe { ManuallyDrop::drop(&mut self.parts) }
    }
}

impl<Memory> std::fmt::Debug for Operations<Memory> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operations")
            .field("file", &self.parts.file)
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}
