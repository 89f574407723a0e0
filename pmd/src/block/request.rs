//! What a guest asks of a disk, read once and checked (virtio 1.3 §5.2.6).
//!
//! With VERSION_1 the borders of descriptors mean nothing: the readable part is a header of 16 bytes and then data, the writable
//! part is data and then one byte of status.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use ringway_ring::chain::Span;
use ringway_ring::guest::HostSlice;

use super::backing::Operation;
use super::{RangeLimits, SECTOR};
use crate::counters::{DropReason, RequestKind};
use crate::limit::Limits;

/// What requests are checked against: shared by the queues of a device with its session, which changes it.
#[derive(Debug)]
pub(super) struct Shape {
    /// Sectors.
    pub(super) capacity: AtomicU64,
    /// Writes last before they are told to be done.
    pub(super) write_through: AtomicBool,
    /// Nothing is written.
    pub(super) is_read_only: bool,
    /// Bytes of a logical block.
    pub(super) blk_size: u32,
    pub(super) discard: Option<RangeLimits>,
    pub(super) write_zeroes: Option<RangeLimits>,
    /// What identifies the disk, padded with zeroes.
    pub(super) serial: [u8; SERIAL],
    /// How much is done for the guest.
    pub(super) limits: Limits,
}

/// A request, as far as it can be told without its ranges.
#[derive(Debug, Clone, Copy)]
pub(super) struct Request<'burst> {
    /// What is asked.
    pub(super) ask: Ask,
    /// Its data.
    pub(super) data: Span<'burst>,
    /// Bytes that the device writes if it succeeds, status included.
    pub(super) writes: u32,
    /// Where its status goes.
    pub(super) status: HostSlice<'burst>,
}

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ask {
    /// An operation on the disk.
    Do(Operation),
    /// Operations on the ranges that its data lists.
    Ranges(OnRanges),
    /// What identifies the disk.
    GetId,
    /// Nothing that the disk does.
    Unsupported,
    /// Nothing that can be done.
    Refused(DropReason),
}

impl Ask {
    /// The kind of what is done on the disk, if anything is.
    #[inline]
    pub(super) fn kind(self) -> Option<RequestKind> {
        match self {
            Ask::Do(Operation::Read { .. }) => Some(RequestKind::Read),
            Ask::Do(Operation::Write { .. }) => Some(RequestKind::Write),
            Ask::Do(Operation::Flush) => Some(RequestKind::Flush),
            Ask::Do(Operation::Discard { .. }) | Ask::Ranges(OnRanges::Discard) => Some(RequestKind::Discard),
            Ask::Do(Operation::WriteZeroes { .. }) | Ask::Ranges(OnRanges::WriteZeroes) => {
                Some(RequestKind::WriteZeroes)
            }
            Ask::GetId | Ask::Unsupported | Ask::Refused(_) => None,
        }
    }
}

/// What is asked for ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OnRanges {
    Discard,
    WriteZeroes,
}

impl<'burst> Request<'burst> {
    /// Reads a chain. None: it has no header or no room for a status, so that it cannot be answered.
    #[inline]
    pub(super) fn read(
        readable: Span<'burst>,
        writable: Span<'burst>,
        shape: &Shape,
    ) -> Option<Request<'burst>> {
        let mut header = [0; HEADER];
        if readable.len() < HEADER as u64 || writable.len() == 0 {
            return None;
        }
        readable.read(&mut header);
        let status = writable.part(writable.len() - 1, 1).pieces().next()?.slice;
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        // Bit 31 was a barrier once, and is still seen.
        let kind = u32::from_le_bytes([t0, t1, t2, t3]) & !BARRIER;
        let sector = u64::from_le_bytes(sector);
        let input = writable.part(0, writable.len() - 1);
        let output = readable.part(HEADER as u64, readable.len());
        let (ask, data, writes) = match kind {
            IN => {
                let ask = shape.place(sector, input.len()).map(|offset| Operation::Read { offset });
                (ask.map_or_else(Ask::Refused, Ask::Do), input, input.len() as u32)
            }
            OUT => (shape.write(sector, output.len()), output, 0),
            FLUSH => (Ask::Do(Operation::Flush), Span::EMPTY, 0),
            GET_ID => (Ask::GetId, input, input.len().min(SERIAL as u64) as u32),
            DISCARD => (shape.ranges(OnRanges::Discard, output.len()), output, 0),
            WRITE_ZEROES => (shape.ranges(OnRanges::WriteZeroes, output.len()), output, 0),
            _ => (Ask::Unsupported, Span::EMPTY, 0),
        };
        Some(Request { ask, data, writes: writes.saturating_add(1), status })
    }
}

impl Shape {
    /// Where `len` bytes at a sector are on the disk, if they are all on it and whole blocks.
    #[inline]
    fn place(&self, sector: u64, len: u64) -> Result<u64, DropReason> {
        let capacity = self.capacity.load(Ordering::Relaxed);
        if !len.is_multiple_of(self.blk_size.into())
            || !sector.wrapping_mul(SECTOR).is_multiple_of(self.blk_size.into())
        {
            return Err(DropReason::Misaligned);
        }
        // No sum wraps: a chain has less than 2^32 bytes.
        if sector > capacity || len / SECTOR > capacity - sector {
            return Err(DropReason::BeyondEnd);
        }
        Ok(sector * SECTOR)
    }

    #[inline]
    fn write(&self, sector: u64, len: u64) -> Ask {
        if self.is_read_only {
            return Ask::Refused(DropReason::ReadOnly);
        }
        let is_durable = self.write_through.load(Ordering::Relaxed);
        match self.place(sector, len) {
            Ok(offset) => Ask::Do(Operation::Write { offset, is_durable }),
            Err(why) => Ask::Refused(why),
        }
    }

    /// Ranges of so many bytes of data.
    fn ranges(&self, what: OnRanges, len: u64) -> Ask {
        let Some(limits) = self.limits(what) else { return Ask::Unsupported };
        if self.is_read_only {
            return Ask::Refused(DropReason::ReadOnly);
        }
        let fits =
            len > 0 && len.is_multiple_of(RANGE as u64) && len / RANGE as u64 <= limits.max_ranges.into();
        if fits { Ask::Ranges(what) } else { Ask::Refused(DropReason::BadRange) }
    }

    fn limits(&self, what: OnRanges) -> Option<RangeLimits> {
        match what {
            OnRanges::Discard => self.discard,
            OnRanges::WriteZeroes => self.write_zeroes,
        }
    }

    /// The operation for a range as it stands in a request's data.
    ///
    /// # Errors
    /// It cannot be: the outcome is that of the whole request.
    pub(super) fn range(&self, what: OnRanges, range: [u8; RANGE]) -> Result<Operation, Ask> {
        let [sector @ .., n0, n1, n2, n3, f0, f1, f2, f3] = range;
        let (sector, sectors) = (u64::from_le_bytes(sector), u32::from_le_bytes([n0, n1, n2, n3]));
        let flags = u32::from_le_bytes([f0, f1, f2, f3]);
        let known = if what == OnRanges::WriteZeroes { UNMAP } else { 0 };
        if flags & !known != 0 {
            return Err(Ask::Unsupported);
        }
        if self.limits(what).is_none_or(|limits| sectors > limits.max_sectors) {
            return Err(Ask::Refused(DropReason::BadRange));
        }
        let len = u64::from(sectors) * SECTOR;
        let offset = self.place(sector, len).map_err(Ask::Refused)?;
        Ok(match what {
            OnRanges::Discard => Operation::Discard { offset, len },
            OnRanges::WriteZeroes => Operation::WriteZeroes {
                offset,
                len,
                may_unmap: flags & UNMAP != 0,
                is_durable: self.write_through.load(Ordering::Relaxed),
            },
        })
    }
}

/// Bytes of a request's header.
pub(super) const HEADER: usize = 16;
/// Bytes of a range.
pub(super) const RANGE: usize = 16;
/// The most bytes of what identifies a disk.
pub(super) const SERIAL: usize = 20;
const BARRIER: u32 = 1 << 31;
const UNMAP: u32 = 1;
const IN: u32 = 0;
const OUT: u32 = 1;
const FLUSH: u32 = 4;
const GET_ID: u32 = 8;
const DISCARD: u32 = 11;
const WRITE_ZEROES: u32 = 13;
