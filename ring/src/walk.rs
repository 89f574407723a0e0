//! Gathering one chain: translation, limits and order, for direct and indirect descriptors of either ring format.
//!
//! Ring code reads the descriptors of the ring itself and hands each to a [`Gather`]; indirect tables are read here.
//! Every word is read once; what was read is checked and used. No allocation, no lock, no system call, no panic path.

use std::mem::MaybeUninit;

use crate::chain::{Burst, Chain, MAX_CHAIN, Segment};
use crate::guest::{GuestMap, HostSlice, LastHit};
use crate::queue::RingFault;
use crate::words::read_descriptor;

/// `VIRTQ_DESC_F_NEXT`: the chain goes on (virtio 1.3 §2.7.5, §2.8.2).
pub(crate) const F_NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`: the device writes the buffer.
pub(crate) const F_WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`: the buffer is a table of descriptors.
pub(crate) const F_INDIRECT: u16 = 4;

/// Why a chain could not be added to a burst.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stop {
    /// The chain breaks the rules.
    Fault(RingFault),
    /// The burst has no room for it now.
    Full,
}

impl From<RingFault> for Stop {
    fn from(fault: RingFault) -> Stop {
        Stop::Fault(fault)
    }
}

/// The regions that buffers were last found in, as a ring's inner loop keeps them in registers: two, since most guests
/// have memory below and above 4 GiB. Made from the map that the ring holds; a look at them is a lookup that costs two
/// comparisons.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Windows([Window; 2]);

#[derive(Debug, Clone, Copy)]
struct Window {
    gpa: u64,
    /// Bytes.
    len: u64,
    start: *mut u8,
}

// SAFETY: the pointers lead into a map that the ring holds beside them; they go with it to whatever thread.
unsafe impl Send for Windows {}

impl Windows {
    /// None yet.
    pub(crate) const NONE: Windows = Windows([Window { gpa: 0, len: 0, start: std::ptr::null_mut() }; 2]);

    /// A buffer that lies in one of them as a whole.
    #[inline(always)]
    pub(crate) fn find(&self, gpa: u64, len: u32) -> Option<Segment> {
        let [first, second] = &self.0;
        first.find(gpa, len).or_else(|| second.find(gpa, len))
    }

    /// Looks a buffer up that lies in none of them, and has the next ones in its region found faster. None if it does
    /// not lie in one region as a whole.
    #[inline(never)]
    pub(crate) fn look_up(
        &mut self,
        map: &GuestMap,
        hint: &mut LastHit,
        gpa: u64,
        len: u32,
    ) -> Option<Segment> {
        let slice = map.lookup(hint, gpa, len).ok()?;
        let region = map.regions().get(hint.0 as usize)?;
        let whole = map.resolve(region.gpa(), region.size()).ok()?;
        self.0 = [Window { gpa: region.gpa(), len: region.size(), start: whole.start }, self.0[0]];
        (slice.len == len as usize).then_some(Segment { start: slice.start, len })
    }
}

impl Window {
    #[inline(always)]
    fn find(&self, gpa: u64, len: u32) -> Option<Segment> {
        let at = gpa.wrapping_sub(self.gpa);
        // An empty buffer needs an address that exists too.
        let fits = at < self.len && u64::from(len) <= self.len - at;
        fits.then(|| Segment { start: self.start.wrapping_add(at as usize), len })
    }
}

/// A chain being gathered behind the chains of a burst.
pub(crate) struct Gather<'a> {
    map: &'a GuestMap,
    hint: &'a mut LastHit,
    windows: &'a mut Windows,
    /// Room for its segments.
    segments: std::slice::IterMut<'a, MaybeUninit<Segment>>,
    /// The burst is empty: what does not fit now never will.
    alone: bool,
    descriptors: usize,
    readable: u16,
    writable: u16,
    readable_bytes: u64,
    writable_bytes: u64,
}

impl<'a> Gather<'a> {
    /// Begins a chain. `burst` must hold `map`.
    #[inline(always)]
    pub(crate) fn new(
        burst: &'a mut Burst,
        map: &'a GuestMap,
        hint: &'a mut LastHit,
        windows: &'a mut Windows,
    ) -> Gather<'a> {
        Gather {
            map,
            hint,
            windows,
            alone: burst.len() == 0,
            segments: burst.room(),
            descriptors: 0,
            readable: 0,
            writable: 0,
            readable_bytes: 0,
            writable_bytes: 0,
        }
    }

    /// Adds one descriptor's buffer.
    #[inline(always)]
    pub(crate) fn add(&mut self, gpa: u64, len: u32, write: bool) -> Result<(), Stop> {
        // virtio 1.3 §2.7.4.2, §2.8.17: "The driver MUST place any device-writable descriptor elements after any
        // device-readable descriptor elements."
        if !write && self.writable > 0 {
            return Err(RingFault::Order.into());
        }
        self.descriptors += 1;
        if self.descriptors > MAX_CHAIN {
            return Err(RingFault::ChainLength.into());
        }
        match write {
            true => self.writable_bytes += u64::from(len),
            false => self.readable_bytes += u64::from(len),
        }
        match self.windows.find(gpa, len) {
            Some(segment) => self.put(segment, write),
            None => self.add_elsewhere(gpa, len, write),
        }
    }

    /// Adds a buffer that lies elsewhere than the last ones, or crosses adjoining regions.
    #[inline(never)]
    fn add_elsewhere(&mut self, mut gpa: u64, len: u32, write: bool) -> Result<(), Stop> {
        if let Some(segment) = self.windows.look_up(self.map, self.hint, gpa, len) {
            return self.put(segment, write);
        }
        let mut left = len;
        loop {
            // A buffer of length 0 must have an address that exists, too.
            let slice = self.map.lookup(self.hint, gpa, left).map_err(|_| RingFault::Unmapped)?;
            self.put(Segment { start: slice.start, len: slice.len as u32 }, write)?;
            if slice.len >= left as usize {
                return Ok(());
            }
            left -= slice.len as u32;
            gpa = gpa.checked_add(slice.len as u64).ok_or(RingFault::Unmapped)?;
        }
    }

    #[inline(always)]
    fn put(&mut self, segment: Segment, write: bool) -> Result<(), Stop> {
        match self.segments.next() {
            Some(slot) => {
                slot.write(segment);
            }
            // A chain that crosses more regions than a burst has room for.
            None if self.alone => return Err(RingFault::ChainLength.into()),
            None => return Err(Stop::Full),
        }
        match write {
            true => self.writable += 1,
            false => self.readable += 1,
        }
        Ok(())
    }

    /// Adds the buffers of an indirect table whose entries are chained by `next`: split rings.
    #[inline(never)]
    pub(crate) fn add_chained_table(&mut self, gpa: u64, len: u32) -> Result<(), Stop> {
        let table = Table::new(self.map, self.hint, gpa, len)?;
        let (mut index, mut visited) = (0, 1);
        loop {
            let (addr, word) = table.entry(self.map, self.hint, index)?;
            let flags = (word >> 32) as u16;
            // virtio 1.3 §2.7.5.3.1: "A driver MUST NOT set VIRTQ_DESC_F_INDIRECT within an indirect descriptor".
            if flags & F_INDIRECT != 0 {
                return Err(RingFault::Indirect.into());
            }
            self.add(addr, word as u32, flags & F_WRITE != 0)?;
            if flags & F_NEXT == 0 {
                return Ok(());
            }
            visited += 1;
            index = (word >> 48) as u32;
            if index >= table.count {
                return Err(RingFault::DescIndex.into());
            }
            // More entries than the table has: a loop.
            if visited > table.count {
                return Err(RingFault::ChainLength.into());
            }
        }
    }

    /// Adds all buffers of an indirect table in their order: packed rings.
    #[inline(never)]
    pub(crate) fn add_plain_table(&mut self, gpa: u64, len: u32) -> Result<(), Stop> {
        let table = Table::new(self.map, self.hint, gpa, len)?;
        for index in 0..table.count {
            let (addr, word) = table.entry(self.map, self.hint, index)?;
            // virtio 1.3 §2.8.7: in a table of a packed ring WRITE is the only valid flag; all others are ignored.
            let flags = (word >> 48) as u16;
            self.add(addr, word as u32, flags & F_WRITE != 0)?;
        }
        Ok(())
    }

    /// The chain is complete.
    #[inline(always)]
    pub(crate) fn finish(self, id: u16, slots: u16) -> Result<Chain, Stop> {
        // virtio 1.3 §2.7.4.1, §2.8.5: the bytes of all descriptors of a chain together must not exceed 2^32.
        if self.readable_bytes + self.writable_bytes > u64::from(u32::MAX) {
            return Err(RingFault::Overflow.into());
        }
        Ok(Chain {
            id,
            slots,
            first: 0,
            readable: self.readable,
            writable: self.writable,
            // Both fit: their sum does.
            readable_bytes: self.readable_bytes as u32,
            writable_bytes: self.writable_bytes as u32,
        })
    }
}

/// An indirect table in guest memory.
struct Table<'a> {
    gpa: u64,
    /// Entries.
    count: u32,
    /// The part of it before the first region boundary: mostly all of it.
    head: HostSlice<'a>,
}

impl<'a> Table<'a> {
    fn new(map: &'a GuestMap, hint: &mut LastHit, gpa: u64, len: u32) -> Result<Table<'a>, RingFault> {
        // virtio 1.3 §2.7.5.3, §2.8.7: a table of whole descriptors, at least one.
        if len == 0 || !len.is_multiple_of(16) {
            return Err(RingFault::Indirect);
        }
        if gpa.checked_add((len - 1).into()).is_none() {
            return Err(RingFault::Unmapped);
        }
        let head = map.lookup(hint, gpa, len).map_err(|_| RingFault::Unmapped)?;
        Ok(Table { gpa, count: len / 16, head })
    }

    /// Entry `index`, which is below `count`: address, and the other three fields in one word.
    #[inline]
    fn entry(&self, map: &'a GuestMap, hint: &mut LastHit, index: u32) -> Result<(u64, u64), RingFault> {
        match read_descriptor(self.head, index as usize * 16) {
            Some(entry) => Ok(entry),
            None => self.entry_beyond(map, hint, index),
        }
    }

    /// An entry at or behind a region boundary, which may lie in several regions itself.
    #[cold]
    fn entry_beyond(&self, map: &GuestMap, hint: &mut LastHit, index: u32) -> Result<(u64, u64), RingFault> {
        let mut bytes = [0u8; 16];
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            // Inside the table, whose end was checked not to wrap.
            let gpa = self.gpa + u64::from(index) * 16 + done as u64;
            let slice = map.lookup(hint, gpa, rest.len() as u32).map_err(|_| RingFault::Unmapped)?;
            let read = slice.read(rest);
            if read == 0 {
                return Err(RingFault::Unmapped);
            }
            done += read;
        }
        let value = u128::from_le_bytes(bytes);
        Ok((value as u64, (value >> 64) as u64))
    }
}
