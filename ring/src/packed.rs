//! Packed virtqueues (virtio 1.3 §2.8): see [`crate::queue`] for the contract of either side.
//!
//! ```text
//!   descriptor ring, 16 bytes each      event suppression, one area a side
//!   0     8    12  14                   0         2
//!   addr  len  id  flags                off_wrap  flags
//! ```
//!
//! Both sides walk the one ring and keep a wrap counter that changes at its end. A descriptor is available if its AVAIL
//! bit equals the walker's counter and its USED bit does not; it is used if both equal it. Of a batch, the flags of the
//! first descriptor are written last: they make all of it visible at once.

/// The device's side.
pub mod device;
/// The driver's side.
pub mod driver;

use crate::queue::need_event;

/// Offset of the address in a descriptor, in bytes.
const ADDR: usize = 0;
/// Offset of the length; 64 bits from here on hold length, id and flags.
const LEN: usize = 8;
/// Offset of the buffer id.
const ID: usize = 12;
/// Offset of the flags.
pub(crate) const FLAGS: usize = 14;
/// `VIRTQ_DESC_F_AVAIL` and `VIRTQ_DESC_F_USED` together.
pub(crate) const F_BOTH: u16 = F_AVAIL | F_USED;
/// `VIRTQ_DESC_F_AVAIL`.
const F_AVAIL: u16 = 1 << 7;
/// `VIRTQ_DESC_F_USED`.
const F_USED: u16 = 1 << 15;

/// The AVAIL and USED bits of an available descriptor in a lap with this wrap counter.
#[inline(always)]
pub(crate) const fn available(wrap: bool) -> u16 {
    if wrap { F_AVAIL } else { F_USED }
}

/// The AVAIL and USED bits of a used descriptor in a lap with this wrap counter.
#[inline(always)]
pub(crate) const fn used(wrap: bool) -> u16 {
    if wrap { F_BOTH } else { 0 }
}

/// Offset of a field of descriptor `slot`.
#[inline(always)]
pub(crate) fn field(slot: u16, field: usize) -> usize {
    16 * usize::from(slot) + field
}

/// A place in the ring and the wrap counter there, as virtio 1.3 §2.8.10 writes them: the counter above 15 bits of the
/// slot. Kept in 32 bits for the reason that [`Index`](crate::split::Index) is, and in one word, so that a copy of it
/// does not load together what was stored apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cursor(u32);

impl Cursor {
    /// `slot` is below the ring's size.
    #[inline(always)]
    pub(crate) const fn new(slot: u16, wrap: bool) -> Cursor {
        Cursor(slot as u32 & SLOT | (wrap as u32) << 15)
    }

    /// Below the ring's size.
    #[inline(always)]
    pub(crate) const fn slot(self) -> u16 {
        (self.0 & SLOT) as u16
    }

    #[inline(always)]
    pub(crate) const fn wrap(self) -> bool {
        self.0 & WRAP != 0
    }

    /// `slots` further, at most once round.
    #[inline(always)]
    pub(crate) fn advance(&mut self, slots: u16, size: u16) {
        // Both are at most 2^15, so that the sum fits into 16 bits.
        let (slot, wrap) = (self.slot() + slots, self.wrap());
        *self = if slot >= size { Cursor::new(slot - size, !wrap) } else { Cursor::new(slot, wrap) };
    }
}

/// The slot of a [`Cursor`].
const SLOT: u32 = 0x7fff;
/// The wrap counter of a [`Cursor`].
const WRAP: u32 = 1 << 15;

/// `pvirtq_event_suppress` as one word: `off_wrap` below, `flags` above (virtio 1.3 §2.8.10).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Suppression(u32);

impl Suppression {
    /// `RING_EVENT_FLAGS_ENABLE`.
    const ENABLE: Suppression = Suppression(0);
    /// `RING_EVENT_FLAGS_DISABLE`.
    const DISABLE: Suppression = Suppression(1 << 16);

    /// `RING_EVENT_FLAGS_DESC`: tell when the descriptor at `cursor` is available, or used.
    fn at(cursor: Cursor) -> Suppression {
        Suppression(2 << 16 | cursor.0)
    }

    fn is_disable(self) -> bool {
        self.0 >> 16 == 1
    }

    /// The descriptor asked for, if it is one: a hint from the peer, any 15 bits.
    fn event(self) -> Option<Cursor> {
        (self.0 >> 16 == 2).then_some(Cursor(self.0 & (SLOT | WRAP)))
    }
}

/// True if going `slots` forward to `now` passed `event`. As a hint, an event beyond the ring is compared as it is.
fn passed(event: Cursor, now: Cursor, slots: u16, size: u16) -> bool {
    // Slots of the lap before `now`'s count downwards from 0.
    let at = if event.wrap() == now.wrap() { event.slot() } else { event.slot().wrapping_sub(size) };
    need_event(at, now.slot(), now.slot().wrapping_sub(slots))
}
