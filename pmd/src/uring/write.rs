//! Writes out of guest memory and of bytes of ours.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use io_uring::opcode;
use memmap2::MmapMut;
use ringway_ring::chain::{Burst, Chain};
use ringway_ring::guest::GuestMap;

use super::{Finished, Operations};

/// Writes to a file, each of `OWN` bytes of ours at most and then of guest memory, or of a copy in a room.
#[derive(Debug)]
pub(crate) struct WriteRing<const OWN: usize> {
    operations: Operations<Memory<OWN>>,
    room_bytes: usize,
}

struct Memory<const OWN: usize> {
    /// None of it moves.
    slots: Box<[Slot<OWN>]>,
    /// A room a slot, whose pages are there once they were used.
    rooms: MmapMut,
}

/// One write.
struct Slot<const OWN: usize> {
    own: [u8; OWN],
    vectors: [libc::iovec; VECTORS],
    /// Holds the guest's memory that the vectors lead into.
    guest: Option<Arc<GuestMap>>,
    /// The kernel may read what is here and what it points to.
    is_out: bool,
}

// SAFETY: the pointers lead into memory that is held beside them, and are read by the kernel alone; nothing in it is tied
// to a thread.
unsafe impl<const OWN: usize> Send for Slot<OWN> {}

/// Part of a chain: `len` bytes behind the first `skip`.
#[derive(Clone, Copy)]
pub(crate) struct FromGuest<'burst> {
    /// What the chain is of.
    pub(crate) burst: &'burst Burst,
    /// Its readable bytes are meant.
    pub(crate) chain: &'burst Chain,
    /// Bytes left out.
    pub(crate) skip: usize,
    /// Bytes.
    pub(crate) len: usize,
}

/// How it went with a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// So many bytes of the guest's go out, or of the room's.
    In(usize),
    /// It is out, or too many are.
    Busy,
    /// It is in more pieces than a write can be.
    ManyPieces,
}

impl<const OWN: usize> WriteRing<OWN> {
    /// `count` writes at a time, each with a room of `room_bytes`.
    ///
    /// # Errors
    /// No memory, or no descriptor.
    pub(crate) fn new(file: OwnedFd, count: u16, room_bytes: usize) -> io::Result<WriteRing<OWN>> {
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let slot = |_| Slot { own: [0; OWN], vectors: [nothing; VECTORS], guest: None, is_out: false };
        let memory = Memory {
            slots: (0..count).map(slot).collect(),
            rooms: MmapMut::map_anon(usize::from(count) * room_bytes)?,
        };
        Ok(WriteRing { operations: Operations::new(file, count.into(), memory)?, room_bytes })
    }

    /// The bytes of ours in a slot, and its room; None while its write is out.
    pub(crate) fn own(&mut self, slot: u16) -> Option<(&mut [u8; OWN], &mut [u8])> {
        let start = usize::from(slot) * self.room_bytes;
        let Memory { slots, rooms, .. } = &mut self.operations.parts.memory;
        let slot = slots.get_mut(usize::from(slot)).filter(|slot| !slot.is_out)?;
        Some((&mut slot.own, rooms.get_mut(start..start + self.room_bytes)?))
    }

    /// Puts a write in, as the slot's number, of the slot's first `own` bytes and then of guest memory. The file takes it
    /// at once or not at all.
    pub(crate) fn write(&mut self, slot: u16, own: usize, from: FromGuest<'_>) -> Put {
        let FromGuest { burst, chain, skip, len } = from;
        let slots = &mut self.operations.parts.memory.slots;
        let Some(slot_) = slots.get_mut(usize::from(slot)).filter(|slot| !slot.is_out) else {
            return Put::Busy;
        };
        if !slot_.guest.as_ref().is_some_and(|map| Arc::ptr_eq(map, burst.map())) {
            slot_.guest = Some(Arc::clone(burst.map()));
        }
        let (mut count, mut skip, mut left) = (slot_.put_own(own), skip, len);
        for part in burst.readable(chain) {
            if left == 0 {
                break;
            }
            let step = skip.min(part.len());
            let piece = part.part(step, left);
            skip -= step;
            if piece.len() == 0 {
                continue;
            }
            let Some(vector) = slot_.vectors.get_mut(count) else { return Put::ManyPieces };
            *vector = libc::iovec { iov_base: piece.as_ptr().cast(), iov_len: piece.len() };
            left -= piece.len();
            count += 1;
        }
        if self.push(slot, count) { Put::In(len - left) } else { Put::Busy }
    }

    /// The same, of the first `len` bytes of the slot's room.
    pub(crate) fn write_room(&mut self, slot: u16, own: usize, len: usize) -> Put {
        let Some((_, room)) = self.own(slot) else { return Put::Busy };
        let Some(room) = room.get_mut(..len) else { return Put::ManyPieces };
        let copied = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: len };
        let Some(slot_) = self.operations.parts.memory.slots.get_mut(usize::from(slot)) else {
            return Put::Busy;
        };
        let count = slot_.put_own(own);
        let Some(vector) = slot_.vectors.get_mut(count) else { return Put::ManyPieces };
        *vector = copied;
        if self.push(slot, count + 1) { Put::In(len) } else { Put::Busy }
    }

    fn push(&mut self, slot: u16, count: usize) -> bool {
        let file = self.operations.file();
        let Some(slot_) = self.operations.parts.memory.slots.get_mut(usize::from(slot)) else { return false };
        let entry =
            opcode::Writev::new(file, slot_.vectors.as_ptr(), count as u32).rw_flags(libc::RWF_NOWAIT);
        // SAFETY: the vectors lead to the slot's own bytes and room, which `own` gives to nobody while it is out, and into
        // the guest's memory, which is never borrowed. The slot holds that too, and is changed only while it is not out. All
        // of it is part of the memory, and slots are never moved.
        let is_in = unsafe { self.operations.push(&entry.build().user_data(slot.into())) };
        if let Some(slot) = self.operations.parts.memory.slots.get_mut(usize::from(slot)) {
            slot.is_out = is_in;
        }
        is_in
    }

    /// Holds no guest's memory any more, if nothing is out. Unmaps it, if nobody else holds it: not on a worker.
    pub(crate) fn let_go(&mut self) {
        if self.operations.pending == 0 {
            self.operations.parts.memory.slots.iter_mut().for_each(|slot| slot.guest = None);
        }
    }

    /// Hands everything that was put in to the kernel; does not wait.
    pub(crate) fn enter(&mut self) {
        self.operations.enter();
    }

    /// The next write that is finished.
    pub(crate) fn reap(&mut self) -> Option<Finished> {
        let finished = self.operations.reap()?;
        if let Some(slot) = self.operations.parts.memory.slots.get_mut(finished.tag as usize) {
            slot.is_out = false;
        }
        Some(finished)
    }

    /// Writes that are not reaped.
    pub(crate) fn pending(&self) -> usize {
        self.operations.pending
    }
}

impl<const OWN: usize> Slot<OWN> {
    /// Has the write begin with so many bytes of ours. Returns the vectors that it has then.
    fn put_own(&mut self, len: usize) -> usize {
        let own = self.own.get_mut(..len).unwrap_or_default();
        self.vectors[0] = libc::iovec { iov_base: own.as_mut_ptr().cast(), iov_len: own.len() };
        1
    }
}

/// Pieces of one write, our own bytes included: what a Linux driver makes of its largest frame, and some.
pub(crate) const VECTORS: usize = 24;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn what_the_kernel_did_not_take_is_handed_over_again() {
        let (file, host) = UnixDatagram::pair().unwrap();
        let mut ring = WriteRing::<4>::new(file.into(), 2, 64).unwrap();
        let (own, room) = ring.own(0).unwrap();
        own.copy_from_slice(b"own ");
        room[..4].copy_from_slice(b"room");
        assert_eq!(ring.write_room(0, 4, 4), Put::In(4));
        assert!(ring.own(0).is_none() && ring.own(1).is_some());
        // As after a call that the kernel had no memory for.
        ring.operations.is_refused = true;
        assert_eq!(ring.reap(), Some(Finished { tag: 0, result: 8 }));
        assert!(!ring.operations.is_refused && ring.pending() == 0 && ring.own(0).is_some());
        let mut got = [0; 16];
        assert_eq!(host.recv(&mut got).unwrap(), 8);
        assert_eq!(got[..8], *b"own room");
    }

    #[test]
    fn slots_and_rooms_that_are_not_there_are_refused() {
        let (file, _host) = UnixDatagram::pair().unwrap();
        let mut ring = WriteRing::<4>::new(file.into(), 2, 64).unwrap();
        assert!(ring.own(2).is_none());
        assert_eq!(ring.write_room(2, 4, 4), Put::Busy);
        assert_eq!(ring.write_room(1, 4, 65), Put::ManyPieces);
        assert_eq!(ring.write_room(1, 4, 64), Put::In(64));
        assert_eq!(ring.write_room(1, 4, 64), Put::Busy);
    }
}
