//! What both ring formats have in common: configuration, the traits of either side, and the named faults.

use std::sync::Arc;

use crate::chain::{Burst, Chain};
use crate::features::Features;
use crate::guest::{GuestMap, HostSlice};
use crate::inflight::RecordFault;
use crate::position::{Position, PositionSlot};
use crate::walk::{F_NEXT, F_WRITE};

pub use crate::format::Format;

/// A ring size that is legal for its format: 1 to 32,768, for split rings a power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RingSize(u16);

impl RingSize {
    /// Checks a claimed size.
    pub fn new(format: Format, size: u32) -> Result<RingSize, SetupError> {
        match u16::try_from(size) {
            Ok(n) if (1..=32768).contains(&n) && (format == Format::Packed || n.is_power_of_two()) => {
                Ok(RingSize(n))
            }
            _ => Err(SetupError::Size { size }),
        }
    }
    /// Entries.
    #[inline]
    pub fn get(self) -> u16 {
        self.0
    }
}

/// A device-side queue before it runs. [`QueueConfig::activate_split`] or [`QueueConfig::activate_packed`] makes it
/// run; what runs is dropped to stop it, and its position read from `keeper`.
#[derive(Debug, Clone)]
pub struct QueueConfig {
    /// Entries.
    pub size: RingSize,
    /// The negotiated features; those that concern the ring are honoured.
    pub features: Features,
    /// The guest's memory.
    pub map: Arc<GuestMap>,
    /// Descriptor area (split) or descriptor ring (packed), by the front-end's own address.
    pub desc_user_addr: u64,
    /// Driver area: the available ring (split) or driver event suppression (packed).
    pub driver_user_addr: u64,
    /// Device area: the used ring (split) or device event suppression (packed).
    pub device_user_addr: u64,
    /// Where to start: at its used position, so that what a predecessor took and did not complete is taken anew.
    pub position: Position,
    /// Where the position is kept, one store a burst.
    pub keeper: PositionSlot,
    /// Complete a run of chains by one used entry, where IN_ORDER was negotiated. Only for queues whose chains all
    /// complete with length 0 (net TX).
    pub skip_used: bool,
}

/// Why a queue cannot be activated. Each but `NoMemory` is the front-end's fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum SetupError {
    /// The size is not legal.
    #[error("ring size {size} is not legal: 1 to 32768, a power of two for split rings")]
    Size {
        /// The claimed size.
        size: u32,
    },
    /// An area is not aligned as virtio 1.3 §2.7, §2.8.10 demand.
    #[error("ring area at {address:#x} is not aligned to {align}")]
    Misaligned {
        /// The claimed address.
        address: u64,
        /// The alignment needed, in bytes.
        align: u64,
    },
    /// An area does not lie in guest memory as a whole.
    #[error("ring area at {address:#x} of {len} bytes is not inside guest memory")]
    Unmapped {
        /// The claimed address.
        address: u64,
        /// Its length in bytes.
        len: u64,
    },
    /// A starting index that cannot be one of this ring.
    #[error("starting position is beyond the ring")]
    Position,
    /// What is recorded of the chains that a predecessor had does not fit the ring.
    #[error("the in-flight record does not fit the ring: {0}")]
    Record(#[from] RecordFault),
    /// The process has no mapping left for the queue's scratch memory.
    #[error("no mapping is left for the queue's scratch memory")]
    NoMemory,
}

/// What the other side did to a ring that the specification forbids. Faults that ring, never anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[repr(u8)]
pub enum RingFault {
    /// The available index ran more than a ring ahead.
    #[error("available index ran more than the ring's size ahead")]
    AvailIndex = 1,
    /// A head or next index beyond the descriptor table.
    #[error("descriptor index beyond the table")]
    DescIndex,
    /// A chain longer than the ring, the table or [`crate::chain::MAX_CHAIN`]; also a loop.
    #[error("descriptor chain too long or circular")]
    ChainLength,
    /// An indirect descriptor nested, chained, of a bad length, or not negotiated.
    #[error("malformed indirect descriptor")]
    Indirect,
    /// A readable descriptor after a writable one.
    #[error("readable descriptor after a writable one")]
    Order,
    /// An address or length outside guest memory.
    #[error("descriptor points outside guest memory")]
    Unmapped,
    /// The chain's lengths add up to more than 4 GiB.
    #[error("descriptor chain longer than 4 GiB in bytes")]
    Overflow,
    /// A packed buffer id beyond the ring.
    #[error("buffer id beyond the ring")]
    BufferId,
    /// The peer truncated memory that it shared.
    #[error("peer truncated memory that it shared")]
    Poisoned,
    /// The chain has a direction that this queue cannot have (a writable buffer on a transmit queue).
    #[error("buffer of the wrong direction for this queue")]
    Direction,
    /// A chain too short for what must be in it (a net header).
    #[error("buffer shorter than its header")]
    TooShort,
    /// Driver side: the device's used index ran ahead of what was made available.
    #[error("used index ran ahead of what was made available")]
    UsedIndex,
    /// Driver side: the device completed a chain that it does not have.
    #[error("device completed a buffer that it does not have")]
    UsedId,
    /// The peer made its call descriptor block whoever signals it.
    #[error("call descriptor blocks whoever signals it")]
    CallBlocked,
    /// Driver side: the device says that it wrote more than a buffer holds.
    #[error("device says that it wrote more than the buffer holds")]
    UsedLength,
    /// A chain that the device has already, and did not complete.
    #[error("buffer made available twice")]
    Twice,
}

impl RingFault {
    /// Every fault, in order of its number (from 1).
    pub const ALL: [RingFault; 16] = [
        RingFault::AvailIndex,
        RingFault::DescIndex,
        RingFault::ChainLength,
        RingFault::Indirect,
        RingFault::Order,
        RingFault::Unmapped,
        RingFault::Overflow,
        RingFault::BufferId,
        RingFault::Poisoned,
        RingFault::Direction,
        RingFault::TooShort,
        RingFault::UsedIndex,
        RingFault::UsedId,
        RingFault::CallBlocked,
        RingFault::UsedLength,
        RingFault::Twice,
    ];
    /// The name that operators see.
    pub fn name(self) -> &'static str {
        match self {
            RingFault::AvailIndex => "avail_index",
            RingFault::DescIndex => "desc_index",
            RingFault::ChainLength => "chain_length",
            RingFault::Indirect => "indirect",
            RingFault::Order => "order",
            RingFault::Unmapped => "unmapped",
            RingFault::Overflow => "overflow",
            RingFault::BufferId => "buffer_id",
            RingFault::Poisoned => "truncated_memory",
            RingFault::Direction => "direction",
            RingFault::TooShort => "too_short",
            RingFault::UsedIndex => "used_index",
            RingFault::UsedId => "used_id",
            RingFault::CallBlocked => "call_blocked",
            RingFault::UsedLength => "used_length",
            RingFault::Twice => "twice",
        }
    }
}

/// The device's side of a virtqueue, whichever the format. Owned by one pump.
///
/// One burst: [`peek`](DeviceRing::peek), work, [`consume`](DeviceRing::consume) and
/// [`complete`](DeviceRing::complete) for each chain done, [`publish`](DeviceRing::publish) once. Chains peeked but
/// not consumed are peeked again next time.
///
/// Budget of every method: no allocation, no lock, no system call, no panic.
pub trait DeviceRing: Send {
    /// Adds to `burst` (cleared first) up to `max_chains` chains that the driver has made available and that were not
    /// consumed yet, fewer if its room for segments runs out; checks and translates each. A fault ends the burst
    /// before the chain that is at fault: what precedes it can be worked on; the fault is returned when it is first
    /// in line. Also prefetches what the next peek will read.
    fn peek(&mut self, burst: &mut Burst, max_chains: usize) -> Result<usize, RingFault>;

    /// Takes the first `chains` of what was last peeked, in order.
    fn consume(&mut self, chains: &[Chain]);

    /// Completes a consumed chain with `written` bytes; not visible to the driver before `publish`. Chains complete
    /// in the order in which they were consumed; in any order if the ring follows them one by one (see
    /// [`crate::inflight`]).
    fn complete(&mut self, chain: &Chain, written: u32);

    /// Makes every completed chain visible at once, keeps the position, and tells whether the driver asked to be
    /// notified of them. Does nothing and returns false if there are none.
    fn publish(&mut self) -> bool;

    /// Asks the driver for kicks, then looks once more: true if chains are available (then kicks may be disabled
    /// again), so that none is missed.
    fn enable_kicks(&mut self) -> bool;

    /// Tells the driver that kicks are not needed.
    fn disable_kicks(&mut self);

    /// Chains (split) or slots (packed: 1 or 0) available and not consumed, cheaply, without checking them.
    fn has_available(&mut self) -> bool;

    /// Where a successor has to go on, as it was last kept: at what was published. Chains that were consumed but not
    /// published count as not taken, so that posted but unfilled buffers are the driver's again after a stop.
    fn position(&self) -> Position;
}

/// A buffer for the driver's side: one element of a chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DriverBuffer {
    /// Guest physical address.
    pub gpa: u64,
    /// Bytes.
    pub len: u32,
    /// The device writes it.
    pub writable: bool,
}

/// A table of descriptors in memory of the driver, each a buffer of one chain (virtio 1.3 §2.7.5.3, §2.8.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IndirectTable {
    /// Guest physical address.
    pub(crate) gpa: u64,
    /// Bytes.
    pub(crate) len: u32,
    /// Bytes that the device may write to the buffers.
    pub(crate) writable: u32,
}

impl IndirectTable {
    /// Bytes of a descriptor.
    pub const DESCRIPTOR: usize = 16;

    /// Writes the table of a chain for a ring of `format` to `place`, which is at `gpa`. None without buffers, or if
    /// they do not fit there.
    #[inline]
    pub fn write(
        format: Format,
        place: HostSlice<'_>,
        gpa: u64,
        buffers: &[DriverBuffer],
    ) -> Option<IndirectTable> {
        let len = buffers.len() * Self::DESCRIPTOR;
        if buffers.is_empty() || len > place.len() {
            return None;
        }
        let mut writable = 0u32;
        for (nth, buffer) in buffers.iter().enumerate() {
            let mut flags = 0;
            if buffer.writable {
                flags |= F_WRITE;
                writable = writable.saturating_add(buffer.len);
            }
            // A packed ring's table is gone through in order: NEXT is reserved in it (virtio 1.3 §2.8.7).
            let (next, more) = match format {
                Format::Split if nth + 1 < buffers.len() => (nth as u64 + 1, F_NEXT),
                Format::Split | Format::Packed => (0, 0),
            };
            let flags: u64 = match format {
                Format::Split => u64::from(flags | more) << 32 | next << 48,
                Format::Packed => u64::from(flags) << 48,
            };
            place.put_word(nth * Self::DESCRIPTOR, buffer.gpa);
            place.put_word(nth * Self::DESCRIPTOR + 8, u64::from(buffer.len) | flags);
        }
        Some(IndirectTable { gpa, len: len as u32, writable })
    }
}

/// A completed chain, as the driver's side collects it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Completion {
    /// The token given to [`DriverRing::add`].
    pub token: u32,
    /// Bytes that the device says it wrote.
    pub written: u32,
}

/// The ring has no room for the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no room in the ring")]
pub struct RingFull;

/// The driver's side of a virtqueue, whichever the format: used by the built-in guest, and by drivers that drive a
/// virtio function.
pub trait DriverRing: Send {
    /// Descriptors that are free.
    fn free_slots(&self) -> usize;
    /// Makes a chain available, not visible to the device before `publish`. `token` comes back on completion.
    fn add(&mut self, buffers: &[DriverBuffer], token: u32) -> Result<(), RingFull>;
    /// The same of a chain whose buffers stand in a table, which takes one descriptor. The device must have been
    /// negotiated `INDIRECT_DESC` with, and the table stay as it is until it is done.
    fn add_indirect(&mut self, table: &IndirectTable, token: u32) -> Result<(), RingFull>;
    /// Makes every added chain visible at once; true if the device asked to be kicked for them.
    fn publish(&mut self) -> bool;
    /// Takes up to `into.len()` completed chains; returns how many. A device that breaks the rules is a fault.
    fn collect(&mut self, into: &mut [Completion]) -> Result<usize, RingFault>;
    /// Asks the device for calls; true if completions are already there.
    fn enable_calls(&mut self) -> bool;
    /// Tells the device that calls are not needed.
    fn disable_calls(&mut self);
}

/// True if moving an index from `old` to `new` passed `event`: `vring_need_event` (virtio 1.3 §2.7.7.2, §2.7.10). All
/// three run freely over 16 bits.
#[inline(always)]
pub(crate) fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}
