//! Reads and writes of a disk's bytes, to and from the memory of a guest, and what else a disk does: flushes, ranges that are
//! given back or zeroed.
//!
//! A ring belongs to the thread that has it work, and is made anew once another has: nothing is out then.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use io_uring::squeue::Entry;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode};
use memmap2::MmapMut;
use ringway_ring::chain::Span;
use ringway_ring::guest::{GuestMap, LastHit};
use rustix::thread::CpuSet;

use super::{Finished, Operations, Registered};
use crate::notify::EventFd;

/// See the module's head. An operation is put in under the number of a slot, of which no other is out.
#[derive(Debug)]
pub(crate) struct DiskRing {
    operations: Operations<Memory>,
    setup: Setup,
    hint: LastHit,
    /// The thread that has it work. None: none yet.
    thread: Option<u64>,
    /// What all rings of that thread may need of the kernel's threads, this one's share among it.
    promised: Option<Arc<AtomicU32>>,
    /// Ranges that are out.
    ranges: u16,
    /// Reads and writes that are out.
    transfers: u16,
}

/// What a ring is made from, again if need be.
#[derive(Debug)]
struct Setup {
    entries: u32,
    /// Reads and writes that may be out.
    transfers: u16,
    /// Signalled when something is finished: one for whatever ring there is.
    news: EventFd,
    /// The guest's memory, pinned for this ring and others.
    fixed: Option<Arc<Registered>>,
    /// The kernel has it by numbers in the ring that there is.
    is_lent: bool,
    /// Where the kernel's own threads work that do for this ring what cannot be done at once. None: wherever its thread may.
    helpers: Option<CpuSet>,
}

struct Memory {
    map: Arc<GuestMap>,
    /// `segments` vectors a slot, whose pages are there once they were used.
    vectors: MmapMut,
    segments: usize,
    /// Rooms to copy to, side by side; none where no copy is ever needed.
    rooms: MmapMut,
    /// By room: it is out.
    is_room_out: Box<[bool]>,
    /// By slot.
    slots: Box<[Slot]>,
}

/// What is known of a slot.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    /// Its operation was put in and not reaped.
    is_out: bool,
    /// It is one of a range.
    is_range: bool,
    /// The room of its operation.
    room: Option<u8>,
}

/// Into which direction bytes go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    /// To memory.
    Read,
    /// From memory. With true, it lasts when it is finished.
    Write(bool),
}

/// How memory must lie that bytes go to and from: powers of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Alignment {
    /// Of its address.
    pub(crate) address: u32,
    /// Of its length.
    pub(crate) len: u32,
}

impl Alignment {
    /// Any memory will do.
    pub(crate) const NONE: Alignment = Alignment { address: 1, len: 1 };
}

/// How it went with an operation that was to be put in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// So many bytes are on their way.
    In(u64),
    /// There is no room now.
    Busy,
    /// The memory does not lie as it must.
    Misaligned,
    /// There are no bytes to move.
    Nothing,
    /// There is no ring for this thread: the error's number.
    Failed(i32),
}

/// What a ring is for.
pub(crate) struct Room {
    /// Operations at a time.
    pub(crate) slots: u16,
    /// Reads and writes among them.
    pub(crate) transfers: u16,
    /// Pieces of memory of one.
    pub(crate) segments: u16,
    /// Rooms to copy to.
    pub(crate) rooms: u8,
}

impl DiskRing {
    /// Room for the slots' operations and one more, on guest memory in `map`.
    ///
    /// # Errors
    /// No memory, or no descriptor.
    pub(crate) fn new(
        file: OwnedFd,
        map: Arc<GuestMap>,
        room: &Room,
        helpers: Option<CpuSet>,
        fixed: Option<Arc<Registered>>,
    ) -> io::Result<DiskRing> {
        let (slots, segments) = (usize::from(room.slots), usize::from(room.segments.max(1)));
        let rooms = usize::from(room.rooms);
        let mut setup = Setup {
            fixed,
            is_lent: false,
            entries: u32::from(room.slots) + 1,
            transfers: room.transfers.min(room.slots),
            news: EventFd::new()?,
            helpers,
        };
        let memory = Memory {
            map,
            vectors: MmapMut::map_anon(slots * segments * VECTOR_BYTES)?,
            segments,
            // Never empty: there is no such mapping.
            rooms: MmapMut::map_anon(rooms.max(1) * ROOM_BYTES)?,
            is_room_out: vec![false; rooms].into(),
            slots: vec![Slot::default(); slots].into(),
        };
        let ring = setup.ring(file.as_fd())?;
        let operations = Operations::on(ring, file, memory);
        let hint = LastHit::default();
        Ok(DiskRing { operations, setup, hint, thread: None, promised: None, ranges: 0, transfers: 0 })
    }

    /// Puts a read or write in. More pieces than a slot has room for, and what the kernel does not do at once, are left for the
    /// next.
    pub(crate) fn transfer(
        &mut self,
        slot: u16,
        way: Way,
        offset: u64,
        data: Span<'_>,
        alignment: Alignment,
    ) -> Put {
        if let Err(error) = self.settle() {
            return Put::Failed(error);
        }
        let has_room = self.has_room_for_transfer();
        let DiskRing { operations, hint, setup, .. } = self;
        if !has_room {
            return Put::Busy;
        }
        let Some((vectors, map)) = operations.parts.memory.vectors_of(slot) else { return Put::Busy };
        let (address_mask, len_mask) = (u64::from(alignment.address) - 1, u64::from(alignment.len) - 1);
        let (mut count, mut bytes, mut alone) = (0, 0u64, (0, 0));
        'pieces: for piece in data.pieces() {
            let (mut gpa, mut left) = (piece.gpa, piece.slice.len() as u64);
            while left > 0 {
                let Some(vector) = vectors.get_mut(count * VECTOR_BYTES..(count + 1) * VECTOR_BYTES) else {
                    break 'pieces;
                };
                // Found once more, in the map that is held here.
                let Ok(found) = map.lookup(hint, gpa, left.min(MOST) as u32) else {
                    return Put::Failed(libc::EFAULT);
                };
                let (address, len) = (found.as_ptr() as u64, found.len() as u64);
                if address & address_mask != 0 || len & len_mask != 0 {
                    return Put::Misaligned;
                }
                let (base, length) = vector.split_at_mut(VECTOR_BYTES / 2);
                base.copy_from_slice(&address.to_ne_bytes());
                length.copy_from_slice(&len.to_ne_bytes());
                (alone, count, bytes) = ((address, len), count + 1, bytes + len);
                (gpa, left) = (gpa + len, left - len);
            }
        }
        let list: *const libc::iovec = vectors.as_ptr().cast();
        let fixed = setup
            .fixed
            .as_deref()
            .filter(|_| setup.is_lent)
            .and_then(|fixed| number_of(fixed, vectors, count));
        let entry = match (way, count) {
            (_, 0) => return Put::Nothing,
            (way, count) if let Some(number) = fixed => {
                fixed_entry(way, alone, list, count as u32, number, offset)
            }
            (Way::Read, 1) => {
                opcode::Read::new(FILE, alone.0 as *mut u8, alone.1 as u32).offset(offset).build()
            }
            (Way::Write(lasts), 1) => opcode::Write::new(FILE, alone.0 as *const u8, alone.1 as u32)
                .offset(offset)
                .rw_flags(flags(lasts))
                .build(),
            (Way::Read, _) => opcode::Readv::new(FILE, list, count as u32).offset(offset).build(),
            (Way::Write(lasts), _) => {
                opcode::Writev::new(FILE, list, count as u32).offset(offset).rw_flags(flags(lasts)).build()
            }
        };
        // SAFETY: the addresses lie in the map, which is part of the memory, and whose bytes are never borrowed; the vectors are
        // those of the slot, of which nothing else is out, and are given to nobody before this is reaped.
        self.put(slot.into(), &entry, bytes, |entry, operations| unsafe { operations.push(entry) })
    }

    /// The same, of at most a room's bytes, by way of a room. What was read is there for [`DiskRing::take_room`].
    pub(crate) fn transfer_by_room(&mut self, slot: u16, way: Way, offset: u64, data: Span<'_>) -> Put {
        if let Err(error) = self.settle() {
            return Put::Failed(error);
        }
        if !self.has_room_for_transfer() {
            return Put::Busy;
        }
        let Memory { rooms, is_room_out, slots, .. } = &mut self.operations.parts.memory;
        let free = is_room_out.iter().position(|is_out| !is_out);
        let own = slots.get_mut(usize::from(slot)).filter(|own| !own.is_out && own.room.is_none());
        let (Some(nth), Some(own)) = (free, own) else { return Put::Busy };
        let Some(room) = rooms.get_mut(nth * ROOM_BYTES..(nth + 1) * ROOM_BYTES) else { return Put::Busy };
        let len = data.len().min(ROOM_BYTES as u64) as usize;
        let entry = match way {
            Way::Read => opcode::Read::new(FILE, room.as_mut_ptr(), len as u32).offset(offset).build(),
            Way::Write(lasts) => {
                data.read(room.get_mut(..len).unwrap_or_default());
                opcode::Write::new(FILE, room.as_ptr(), len as u32)
                    .offset(offset)
                    .rw_flags(flags(lasts))
                    .build()
            }
        };
        own.room = Some(nth as u8);
        if let Some(is_out) = is_room_out.get_mut(nth) {
            *is_out = true;
        }
        // SAFETY: the room is part of the memory, and was marked as out: nobody borrows it until it is taken back, after this was
        // reaped.
        let put = self.put(slot.into(), &entry, len as u64, |entry, ring| unsafe { ring.push(entry) });
        if put == Put::Busy {
            self.take_room(slot, 0, Span::EMPTY);
        }
        put
    }

    /// Takes the room of a slot's operation back, which was reaped, if it had one; and copies the first `len` bytes from there.
    pub(crate) fn take_room(&mut self, slot: u16, len: usize, into: Span<'_>) -> bool {
        let Memory { rooms, is_room_out, slots, .. } = &mut self.operations.parts.memory;
        let own = slots.get_mut(usize::from(slot)).filter(|own| !own.is_out);
        let Some(nth) = own.and_then(|own| own.room.take()).map(usize::from) else { return false };
        if let Some(is_out) = is_room_out.get_mut(nth) {
            *is_out = false;
        }
        if let Some(room) = rooms.get(nth * ROOM_BYTES..nth * ROOM_BYTES + len.min(ROOM_BYTES)) {
            into.write(room);
        }
        true
    }

    /// Puts a write of zeroes in, of as many as it can be at once.
    pub(crate) fn zero(&mut self, slot: u16, offset: u64, len: u64) -> Put {
        if let Err(error) = self.settle() {
            return Put::Failed(error);
        }
        if !self.has_room_for_transfer() {
            return Put::Busy;
        }
        let Some((vectors, _)) = self.operations.parts.memory.vectors_of(slot) else { return Put::Busy };
        let (mut count, mut bytes) = (0, 0);
        for vector in vectors.chunks_exact_mut(VECTOR_BYTES) {
            let step = (len - bytes).min(ZEROES.0.len() as u64);
            if step == 0 {
                break;
            }
            let (base, length) = vector.split_at_mut(VECTOR_BYTES / 2);
            base.copy_from_slice(&(ZEROES.0.as_ptr() as u64).to_ne_bytes());
            length.copy_from_slice(&step.to_ne_bytes());
            (count, bytes) = (count + 1, bytes + step);
        }
        let list = vectors.as_ptr().cast();
        let entry = opcode::Writev::new(FILE, list, count).offset(offset).build();
        // SAFETY: the zeroes are never written and stay for good; the vectors are as in `transfer`.
        self.put(slot.into(), &entry, bytes, |entry, ring| unsafe { ring.push(entry) })
    }

    /// Has a range of the file be what `mode` says (`fallocate(2)`).
    pub(crate) fn allocate(&mut self, slot: u16, mode: i32, offset: u64, len: u64) -> Put {
        let entry = opcode::Fallocate::new(FILE, len).offset(offset).mode(mode).build();
        // SAFETY: it points to nothing.
        self.put_range(slot, &entry, len, |entry, ring| unsafe { ring.push(entry) })
    }

    /// Tells a block device that nobody needs a range.
    pub(crate) fn discard(&mut self, slot: u16, offset: u64, len: u64) -> Put {
        let mut command = [0; 16];
        // Where an entry has its third address, which is the length here.
        command[..8].copy_from_slice(&len.to_ne_bytes());
        let entry =
            opcode::UringCmd16::new(FILE, BLOCK_URING_CMD_DISCARD).addr(Some(offset)).cmd(command).build();
        // SAFETY: it points to nothing: what stands for an address is an offset.
        self.put_range(slot, &entry, len, |entry, ring| unsafe { ring.push(entry) })
    }

    /// Has what was written last. Its number is [`DiskRing::FLUSH`].
    pub(crate) fn flush(&mut self) -> Put {
        let entry = opcode::Fsync::new(FILE).flags(FsyncFlags::DATASYNC).build();
        // SAFETY: it points to nothing.
        self.put(DiskRing::FLUSH, &entry, 0, |entry, ring| unsafe { ring.push(entry) })
    }

    /// What a flush is put in as.
    pub(crate) const FLUSH: u64 = u64::MAX;
    /// What nothing is put in as; should it come late, it is nobody's.
    const NOTHING: u64 = u64::MAX - 1;

    #[inline]
    fn has_room_for_transfer(&self) -> bool {
        self.transfers < self.setup.transfers
    }

    /// See [`DiskRing::put`]. A range is the work of one of the kernel's threads for as long as it takes: few are out.
    fn put_range(
        &mut self,
        slot: u16,
        entry: &Entry,
        bytes: u64,
        push: impl FnOnce(&Entry, &mut Operations<Memory>) -> bool,
    ) -> Put {
        if self.ranges >= RANGES_OUT {
            return Put::Busy;
        }
        let put = self.put(slot.into(), entry, bytes, push);
        if let (Put::In(_), Some(slot)) = (put, self.operations.parts.memory.slot(slot.into())) {
            slot.is_range = true;
            self.transfers -= 1;
            self.ranges += 1;
        }
        put
    }

    fn put(
        &mut self,
        tag: u64,
        entry: &Entry,
        bytes: u64,
        push: impl FnOnce(&Entry, &mut Operations<Memory>) -> bool,
    ) -> Put {
        if let Err(error) = self.settle() {
            return Put::Failed(error);
        }
        if self.operations.parts.memory.slot(tag).is_some_and(|slot| slot.is_out) {
            return Put::Busy;
        }
        let entry = entry.clone().user_data(tag);
        if !push(&entry, &mut self.operations) {
            return Put::Busy;
        }
        if let Some(slot) = self.operations.parts.memory.slot(tag) {
            (slot.is_out, slot.is_range) = (true, false);
            self.transfers += 1;
        }
        Put::In(bytes)
    }

    /// Enters the kernel if something was put in, or has gone on there. True: it did.
    pub(crate) fn look(&mut self) -> bool {
        let is_asked = self.asks();
        if is_asked {
            self.operations.enter();
        }
        is_asked
    }

    /// Something is to be handed to the kernel, or to be done in it.
    #[inline]
    fn asks(&mut self) -> bool {
        let queue = self.operations.parts.ring.submission();
        !queue.is_empty() || queue.taskrun() || queue.cq_overflow()
    }

    /// The next operation that is finished.
    pub(crate) fn reap(&mut self) -> Option<Finished> {
        // What the kernel did not take is handed over in the next look.
        self.operations.is_refused = false;
        let finished = self.operations.reap()?;
        if let Some(slot) = self.operations.parts.memory.slot(finished.tag) {
            slot.is_out = false;
            let out = if slot.is_range { &mut self.ranges } else { &mut self.transfers };
            *out = out.saturating_sub(1);
        }
        Some(finished)
    }

    /// Nothing is finished that was not seen. From then on, the wake source tells.
    pub(crate) fn is_quiet(&mut self) -> bool {
        !self.asks() && self.operations.parts.ring.completion().is_empty()
    }

    /// Something was put in and not reaped: the wake source tells of it.
    pub(crate) fn is_out(&self) -> bool {
        self.operations.pending > 0
    }

    /// What becomes readable when something is finished. It is never read.
    pub(crate) fn wake_source(&self) -> BorrowedFd<'_> {
        self.setup.news.as_fd()
    }

    /// Has the ring work for this thread.
    ///
    /// # Errors
    /// There is none: the error's number.
    #[inline]
    fn settle(&mut self) -> Result<(), i32> {
        let thread = this_thread();
        if self.thread == Some(thread) { Ok(()) } else { self.move_to(thread) }
    }

    #[cold]
    fn move_to(&mut self, thread: u64) -> Result<(), i32> {
        if self.operations.pending > 0 {
            return Err(libc::EBUSY);
        }
        let number = |error: io::Error| error.raw_os_error().unwrap_or(libc::EIO);
        if self.thread.take().is_some() {
            let file = self.operations.parts.file.as_fd();
            self.operations.parts.ring = self.setup.ring(file).map_err(number)?;
        }
        self.give_helpers_back();
        self.operations.parts.ring.submitter().register_enable_rings().map_err(number)?;
        // The kernel makes what it keeps of this thread when the first operation comes: one that does nothing, at once.
        // SAFETY: it points to nothing.
        if unsafe { self.operations.push(&opcode::Nop::new().build().user_data(DiskRing::NOTHING)) } {
            self.operations.enter();
            while self.operations.reap().is_some() {}
        }
        let submitter = self.operations.parts.ring.submitter();
        if let Some(helpers) = &self.setup.helpers {
            // Of this thread. What the kernel refuses costs time, and nothing else.
            let _ = submitter.register_iowq_aff(&cpu_set(helpers));
        }
        // They belong to the thread, and one that waits for a disk that hangs is nobody else's: there may be one for whatever all
        // rings of this thread can have out. The kernel makes them when they are needed.
        let promised = promised();
        let most = promised.fetch_add(self.setup.share(), Ordering::Relaxed) + self.setup.share();
        let _ = submitter.register_iowq_max_workers(&mut [most, most]);
        self.promised = Some(promised);
        self.thread = Some(thread);
        Ok(())
    }
}

impl DiskRing {
    fn give_helpers_back(&mut self) {
        if let Some(promised) = self.promised.take() {
            promised.fetch_sub(self.setup.share(), Ordering::Relaxed);
        }
    }
}

impl Memory {
    fn slot(&mut self, tag: u64) -> Option<&mut Slot> {
        self.slots.get_mut(usize::try_from(tag).ok()?)
    }

    /// The vectors of a slot of which nothing is out, and what they may lead into.
    #[inline]
    fn vectors_of(&mut self, slot: u16) -> Option<(&mut [u8], &GuestMap)> {
        self.slots.get(usize::from(slot)).filter(|own| !own.is_out)?;
        let bytes = self.segments * VECTOR_BYTES;
        let first = usize::from(slot) * bytes;
        Some((self.vectors.get_mut(first..first + bytes)?, &self.map))
    }
}

impl Setup {
    /// How many of the kernel's threads may work for it at a time: for its reads and writes, its ranges and a flush.
    fn share(&self) -> u32 {
        u32::from(self.transfers) + u32::from(RANGES_OUT) + 1
    }

    /// A ring that is of no thread yet.
    fn ring(&mut self, file: BorrowedFd<'_>) -> io::Result<IoUring> {
        let build = |set: &dyn Fn(&mut io_uring::Builder)| {
            let mut builder = IoUring::builder();
            builder.dontfork().setup_r_disabled();
            set(&mut builder);
            builder.build(self.entries)
        };
        // Where the kernel is older, with less.
        let ring = build(&|builder| {
            builder.setup_single_issuer().setup_defer_taskrun().setup_taskrun_flag().setup_submit_all();
        })
        .or_else(|_| build(&|_| {}))?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        ring.submitter().register_eventfd(self.news.as_fd().as_raw_fd())?;
        // Where the kernel cannot, it looks pages up.
        self.is_lent = self.fixed.as_ref().is_some_and(|fixed| fixed.lend(&ring).is_ok());
        Ok(ring)
    }
}

impl Drop for DiskRing {
    /// What is out may be out for as long as a disk hangs: it keeps all that it works on, for good.
    fn drop(&mut self) {
        if self.operations.pending > 0 {
            self.operations.leak();
        } else {
            self.give_helpers_back();
        }
    }
}

/// Under which number the kernel has all of what the first `count` vectors lead to.
#[inline]
fn number_of(fixed: &Registered, vectors: &[u8], count: usize) -> Option<u16> {
    if count > 1 && !fixed.takes_lists() {
        return None;
    }
    let mut all = vectors.chunks_exact(VECTOR_BYTES).take(count).map(|vector| {
        let (base, len) = vector.split_at(VECTOR_BYTES / 2);
        let word = |bytes: &[u8]| bytes.try_into().map(u64::from_ne_bytes).unwrap_or(u64::MAX);
        fixed.number(word(base), word(len))
    });
    let first = all.next()??;
    all.all(|number| number == Some(first)).then_some(first)
}

/// A read or write of memory that the kernel has under a number.
#[inline]
fn fixed_entry(
    way: Way,
    (address, len): (u64, u64),
    list: *const libc::iovec,
    count: u32,
    number: u16,
    offset: u64,
) -> Entry {
    match (way, count) {
        (Way::Read, 1) => {
            opcode::ReadFixed::new(FILE, address as *mut u8, len as u32, number).offset(offset).build()
        }
        (Way::Write(lasts), 1) => opcode::WriteFixed::new(FILE, address as *const u8, len as u32, number)
            .offset(offset)
            .rw_flags(flags(lasts))
            .build(),
        (Way::Read, _) => opcode::ReadvFixed::new(FILE, list, count, number).offset(offset).build(),
        (Way::Write(lasts), _) => {
            opcode::WritevFixed::new(FILE, list, count, number).offset(offset).rw_flags(flags(lasts)).build()
        }
    }
}

fn flags(lasts: bool) -> i32 {
    if lasts { libc::RWF_DSYNC } else { 0 }
}

/// A number of this thread's own.
#[inline]
fn this_thread() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    thread_local! {
        static OWN: Cell<u64> = const { Cell::new(0) };
    }
    OWN.with(|own| {
        if own.get() == 0 {
            own.set(NEXT.fetch_add(1, Ordering::Relaxed));
        }
        own.get()
    })
}

/// How many of the kernel's threads the rings of this thread may need in all.
fn promised() -> Arc<AtomicU32> {
    thread_local! {
        static OWN: Arc<AtomicU32> = Arc::default();
    }
    OWN.with(Arc::clone)
}

fn cpu_set(cores: &CpuSet) -> libc::cpu_set_t {
    // SAFETY: a set of cores is an array of numbers, and none of them is set if all are 0.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    for core in (0..CpuSet::MAX_CPU).filter(|core| cores.is_set(*core)) {
        // SAFETY: it is below the set's size, which is that of `CpuSet`.
        unsafe { libc::CPU_SET(core, &mut set) };
    }
    set
}

/// Zeroes to be written, where any memory must lie well.
#[repr(align(4096))]
struct Zeroes([u8; 65536]);
static ZEROES: Zeroes = Zeroes([0; 65536]);

/// The one registered file.
const FILE: Fixed = Fixed(0);
/// Bytes of a room, and so of what is copied at a time.
pub(crate) const ROOM_BYTES: usize = 128 << 10;
/// Bytes of a `struct iovec`.
const VECTOR_BYTES: usize = 16;
/// Bytes of one piece at most: what is beyond is another's.
const MOST: u64 = 1 << 30;
/// Ranges of a queue that are given back or zeroed at a time.
const RANGES_OUT: u16 = 4;
/// `_IO(0x12, 0)` of the kernel's `blkdev.h`.
const BLOCK_URING_CMD_DISCARD: u32 = 0x1200;

#[cfg(test)]
mod tests {
    use ringway_ring::memory::{HostMemory, PageKind};

    use super::*;

    fn ring(transfers: u16) -> DiskRing {
        let memory = HostMemory::allocate_on(PageKind::Base, "test", 1 << 20).unwrap();
        let map = Arc::new(memory.guest_map(0).unwrap());
        let file = tempfile::tempfile_in("/var/tmp").unwrap();
        file.set_len(1 << 20).unwrap();
        let room = Room { slots: 64, segments: 4, transfers, rooms: 0 };
        DiskRing::new(file.into(), map, &room, None, None).unwrap()
    }

    /// What the kernel has as a limit for this thread.
    fn limit(ring: &DiskRing) -> u32 {
        let mut limits = [0, 0];
        ring.operations.parts.ring.submitter().register_iowq_max_workers(&mut limits).unwrap();
        limits[0]
    }

    #[test]
    fn each_ring_of_a_thread_has_helpers_of_its_own() {
        let (mut first, mut second) = (ring(64), ring(16));
        first.settle().unwrap();
        second.settle().unwrap();
        assert_eq!(limit(&second), (64 + 4 + 1) + (16 + 4 + 1));
        drop(second);
        // What hangs keeps its own.
        assert_eq!(first.flush(), Put::In(0));
        drop(first);
        let mut third = ring(16);
        third.settle().unwrap();
        assert_eq!(limit(&third), (64 + 4 + 1) + (16 + 4 + 1));
    }

    #[test]
    fn ring_has_as_many_out_as_it_has_helpers() {
        let mut ring = ring(16);
        let count = |puts: Vec<Put>| puts.iter().filter(|put| matches!(put, Put::In(_))).count();
        let ranges = (0..20).map(|slot| ring.allocate(slot, 0, 0, 4096)).collect();
        assert_eq!(count(ranges), 4);
        let transfers = (20..64).map(|slot| ring.zero(slot, 0, 4096)).collect();
        assert_eq!(count(transfers), 16);
        assert_eq!(ring.flush(), Put::In(0));
        while ring.is_out() {
            ring.look();
            while ring.reap().is_some() {}
        }
        assert_eq!((ring.ranges, ring.transfers), (0, 0));
        assert!(matches!(ring.allocate(0, 0, 0, 4096), Put::In(_)));
    }
}
