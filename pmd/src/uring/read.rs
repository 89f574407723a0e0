//! Reads into rooms of ours.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use io_uring::opcode;
use io_uring::squeue::Flags;
use ringway_ring::guest::GuestMap;
use ringway_ring::memory::{HostMemory, PageKind};

use super::{Finished, Operations};

/// Reads of a file into rooms, which lie side by side in one region of a map. The bytes may be looked at at any time, as a
/// guest's may: the kernel is one more who writes there.
#[derive(Debug)]
pub(crate) struct ReadRing {
    operations: Operations<Rooms>,
    room_bytes: u32,
    count: u16,
    is_registered: bool,
}

struct Rooms {
    map: Arc<GuestMap>,
}

impl ReadRing {
    /// `count` rooms of `room_bytes` each, and as many reads at a time.
    ///
    /// # Errors
    /// No memory, or no descriptor.
    pub(crate) fn new(file: OwnedFd, name: &str, count: u16, room_bytes: u32) -> io::Result<ReadRing> {
        let bytes = u64::from(count) * u64::from(room_bytes);
        // On base pages: huge ones would be there whether or not something comes.
        let memory = HostMemory::allocate_on(PageKind::Base, name, bytes)?;
        let map = Arc::new(memory.guest_map(0).map_err(io::Error::other)?);
        let rooms: Vec<libc::iovec> = (0..u64::from(count))
            .filter_map(|room| map.resolve(room * u64::from(room_bytes), room_bytes.into()).ok())
            .map(|room| libc::iovec { iov_base: room.as_ptr().cast(), iov_len: room.len() })
            .collect();
        let operations = Operations::new(file, count.into(), Rooms { map })?;
        // SAFETY: the rooms lie in the map, which stays for as long as the ring. Where it is not possible (the limit of
        // locked memory), each read looks its pages up, which only costs time.
        let is_registered = unsafe { operations.parts.ring.submitter().register_buffers(&rooms) }.is_ok();
        Ok(ReadRing { operations, room_bytes, count, is_registered })
    }

    /// The map that the rooms lie in, from address 0 on.
    pub(crate) fn map(&self) -> &Arc<GuestMap> {
        &self.operations.parts.memory.map
    }

    /// Where a room begins in the map.
    pub(crate) fn address(&self, room: u16) -> u64 {
        u64::from(room) * u64::from(self.room_bytes)
    }

    /// Puts a read in, as `tag`, which finds something at once or fails (a file's O_NONBLOCK alone would have it wait in the
    /// background where the file can be asked without waiting). With `is_linked`, the next one runs after this one, whatever
    /// became of it: what is read is shorter than the room for it, and a short read would break the softer kind of link
    /// (`io_uring_enter(2)`, IOSQE_IO_LINK). False: no such room, or too many reads.
    pub(crate) fn read(&mut self, tag: u64, room: u16, is_linked: bool) -> bool {
        let (gpa, len) = (self.address(room), self.room_bytes);
        if room >= self.count {
            return false;
        }
        let Ok(slice) = self.map().resolve(gpa, len.into()) else { return false };
        let (to, file) = (slice.as_ptr(), self.operations.file());
        let entry = if self.is_registered {
            opcode::ReadFixed::new(file, to, len, room).rw_flags(libc::RWF_NOWAIT).build()
        } else {
            opcode::Read::new(file, to, len).rw_flags(libc::RWF_NOWAIT).build()
        };
        let flags = if is_linked { Flags::IO_HARDLINK } else { Flags::empty() };
        // SAFETY: it points into the map, which is part of the memory, and whose bytes are never borrowed.
        unsafe { self.operations.push(&entry.user_data(tag).flags(flags)) }
    }

    /// Hands everything that was put in to the kernel; does not wait.
    pub(crate) fn enter(&mut self) {
        self.operations.enter();
    }

    /// The next read that is finished.
    pub(crate) fn reap(&mut self) -> Option<Finished> {
        self.operations.reap()
    }

    /// Reads that are not reaped.
    pub(crate) fn pending(&self) -> usize {
        self.operations.pending
    }

    /// The file.
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.operations.parts.file.as_fd()
    }
}
