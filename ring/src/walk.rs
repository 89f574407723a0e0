//! Gathering one chain: translation, limits and order, for direct and indirect descriptors of either ring format.
//!
//! Ring code reads the descriptors of the ring itself and hands each to a [`Gather`]; indirect tables are read here.
//! Every word is read once; what was read is checked and used. No allocation, no lock, no system call, no panic path.

use crate::chain::{Burst, MAX_CHAIN, Open};
use crate::guest::{HostSlice, Miss};
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

impl From<Miss> for Stop {
    fn from(_: Miss) -> Stop {
        Stop::Fault(RingFault::Unmapped)
    }
}

/// A chain being gathered behind the chains of a burst.
pub(crate) struct Gather<'burst> {
    open: Open<'burst>,
    descriptors: usize,
    readable_bytes: u64,
    writable_bytes: u64,
}

impl<'burst> Gather<'burst> {
    /// Begins a chain.
    #[inline(always)]
    pub(crate) fn new(burst: &'burst mut Burst) -> Gather<'burst> {
        Gather { open: burst.open(), descriptors: 0, readable_bytes: 0, writable_bytes: 0 }
    }

    /// Adds one descriptor's buffer.
    #[inline(always)]
    pub(crate) fn add(&mut self, gpa: u64, len: u32, write: bool) -> Result<(), Stop> {
        // virtio 1.3 §2.7.4.2, §2.8.17: "The driver MUST place any device-writable descriptor elements after any
        // device-readable descriptor elements."
        if !write && self.open.has_writable() {
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
        match self.open.put(gpa, len, write)? {
            true => Ok(()),
            // A chain that crosses more regions than a burst has room for.
            false if self.open.is_alone() => Err(RingFault::ChainLength.into()),
            false => Err(Stop::Full),
        }
    }

    /// Adds the buffers of an indirect table whose entries are chained by `next`: split rings.
    #[inline(never)]
    pub(crate) fn add_chained_table(&mut self, gpa: u64, len: u32) -> Result<(), Stop> {
        let table = Table::new(&mut self.open, gpa, len)?;
        let (mut index, mut visited) = (0, 1);
        loop {
            let (addr, word) = table.entry(&mut self.open, index)?;
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
        let table = Table::new(&mut self.open, gpa, len)?;
        for index in 0..table.count {
            let (addr, word) = table.entry(&mut self.open, index)?;
            // virtio 1.3 §2.8.7: in a table of a packed ring WRITE is the only valid flag; all others are ignored.
            let flags = (word >> 48) as u16;
            self.add(addr, word as u32, flags & F_WRITE != 0)?;
        }
        Ok(())
    }

    /// The chain is complete, and part of the burst.
    #[inline(always)]
    pub(crate) fn finish(self, id: u16, slots: u16) -> Result<(), Stop> {
        let Gather { open, readable_bytes, writable_bytes, .. } = self;
        // virtio 1.3 §2.7.5.2: the bytes of all descriptors of a chain together must not exceed 2^32.
        if readable_bytes + writable_bytes > u64::from(u32::MAX) {
            return Err(RingFault::Overflow.into());
        }
        // Both fit: their sum does.
        let is_in = open.finish(id, slots, readable_bytes as u32, writable_bytes as u32);
        if is_in { Ok(()) } else { Err(Stop::Full) }
    }
}

/// An indirect table in guest memory.
struct Table<'burst> {
    gpa: u64,
    /// Entries.
    count: u32,
    /// The part of it before the first region boundary: mostly all of it.
    head: HostSlice<'burst>,
}

impl<'burst> Table<'burst> {
    fn new(open: &mut Open<'burst>, gpa: u64, len: u32) -> Result<Table<'burst>, RingFault> {
        // virtio 1.3 §2.7.5.3, §2.8.7: a table of whole descriptors, at least one.
        if len == 0 || !len.is_multiple_of(16) {
            return Err(RingFault::Indirect);
        }
        if gpa.checked_add((len - 1).into()).is_none() {
            return Err(RingFault::Unmapped);
        }
        let head = open.lookup(gpa, len).map_err(|_| RingFault::Unmapped)?;
        Ok(Table { gpa, count: len / 16, head })
    }

    /// Entry `index`, which is below `count`: address, and the other three fields in one word.
    #[inline]
    fn entry(&self, open: &mut Open<'burst>, index: u32) -> Result<(u64, u64), RingFault> {
        match read_descriptor(self.head, index as usize * 16) {
            Some(entry) => Ok(entry),
            None => self.entry_beyond(open, index),
        }
    }

    /// An entry at or behind a region boundary, which may lie in several regions itself.
    #[cold]
    fn entry_beyond(&self, open: &mut Open<'burst>, index: u32) -> Result<(u64, u64), RingFault> {
        let mut bytes = [0u8; 16];
        let mut done = 0;
        while let Some(rest) = bytes.get_mut(done..).filter(|rest| !rest.is_empty()) {
            // Inside the table, whose end was checked not to wrap.
            let gpa = self.gpa + u64::from(index) * 16 + done as u64;
            let slice = open.lookup(gpa, rest.len() as u32).map_err(|_| RingFault::Unmapped)?;
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
