//! An io_uring for one direction of a netdev: operations are put in, entered without waiting, and reaped.
//!
//! The unsafe part: what an operation points to must stay until it is reaped. The two users of this module, the reader
//! and the writer, own that memory, keep it while anything is out, and wait for what is out when they are dropped.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use io_uring::squeue::{Entry, Flags};
use io_uring::{IoUring, opcode, types};

/// See the module's head.
pub(super) struct Ring {
    ring: IoUring,
    netdev: OwnedFd,
    /// Operations that were put in and not reaped.
    pending: usize,
}

/// A finished operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Finished {
    /// What it was put in as.
    pub(super) tag: u64,
    /// Bytes, or the negative error number.
    pub(super) result: i32,
}

impl Ring {
    /// Room for `entries` operations on a netdev.
    pub(super) fn new(netdev: OwnedFd, entries: u32) -> io::Result<Ring> {
        // A pump moves between threads, so neither SINGLE_ISSUER nor what needs it.
        let ring = IoUring::builder().dontfork().build(entries)?;
        Ok(Ring { ring, netdev, pending: 0 })
    }

    /// Registers buffers, so that the kernel need not look their pages up for each read. False: not possible here (the
    /// limit of locked memory), which only costs time.
    pub(super) fn register(&mut self, buffers: &[libc::iovec]) -> bool {
        // SAFETY: the buffers are mapped for as long as this ring lives: the reader owns both, and drops the ring first.
        unsafe { self.ring.submitter().register_buffers(buffers) }.is_ok()
    }

    /// Puts a read in, which finds something at once or fails (a file's O_NONBLOCK alone would have it wait in the
    /// background where the file can be asked without waiting), of up to `len` bytes to `to`; into a registered buffer, if it has a number. With `is_linked`, the
    /// next one runs after this one, whatever became of it: a frame is shorter than the room for it, and a short read
    /// would break the softer kind of link (`io_uring_enter(2)`, IOSQE_IO_LINK). False: no room.
    pub(super) fn read(
        &mut self,
        tag: u64,
        to: *mut u8,
        len: u32,
        buffer: Option<u16>,
        is_linked: bool,
    ) -> bool {
        let netdev = types::Fd(self.netdev.as_raw_fd());
        let entry = match buffer {
            Some(buffer) => {
                opcode::ReadFixed::new(netdev, to, len, buffer).rw_flags(libc::RWF_NOWAIT).build()
            }
            None => opcode::Read::new(netdev, to, len).rw_flags(libc::RWF_NOWAIT).build(),
        };
        self.push(entry.user_data(tag).flags(if is_linked { Flags::IO_HARDLINK } else { Flags::empty() }))
    }

    /// Puts a write in, which the netdev takes at once or not at all, of what `count` vectors at `vectors` name. False: no room.
    pub(super) fn write(&mut self, tag: u64, vectors: *const libc::iovec, count: u32) -> bool {
        let netdev = types::Fd(self.netdev.as_raw_fd());
        let entry = opcode::Writev::new(netdev, vectors, count).rw_flags(libc::RWF_NOWAIT);
        self.push(entry.build().user_data(tag))
    }

    fn push(&mut self, entry: Entry) -> bool {
        // SAFETY: what the entry points to is owned by the reader or writer that owns this ring, is not moved while
        // `pending` counts the operation, and is waited for when they are dropped.
        let is_in = unsafe { self.ring.submission().push(&entry) }.is_ok();
        self.pending += usize::from(is_in);
        is_in
    }

    /// Hands everything that was put in to the kernel; does not wait. What the netdev can do at once is finished when
    /// this returns.
    pub(super) fn enter(&self) {
        // What the kernel does not take now (a signal, no memory) stays in the queue and goes in with the next.
        let _ = self.ring.submit();
    }

    /// The next operation that is finished.
    pub(super) fn reap(&mut self) -> Option<Finished> {
        let entry = self.ring.completion().next()?;
        self.pending = self.pending.saturating_sub(1);
        Some(Finished { tag: entry.user_data(), result: entry.result() })
    }

    /// Operations that are not reaped.
    pub(super) fn pending(&self) -> usize {
        self.pending
    }

    /// The netdev.
    pub(super) fn netdev(&self) -> &OwnedFd {
        &self.netdev
    }

    /// Waits until nothing is out. Not on a worker. A netdev's operations never wait for a peer.
    pub(super) fn settle(&mut self) {
        while self.pending > 0 {
            if self.ring.submit_and_wait(1).is_err_and(|error| error.kind() != io::ErrorKind::Interrupted) {
                return;
            }
            while self.reap().is_some() {}
        }
    }
}

impl std::fmt::Debug for Ring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ring")
            .field("netdev", &self.netdev)
            .field("pending", &self.pending)
            .finish_non_exhaustive()
    }
}
