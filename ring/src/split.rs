//! Split virtqueues (virtio 1.3 §2.7): see [`crate::queue`] for the contract of either side.
//!
//! ```text
//!   descriptor table      available ring (driver writes)        used ring (device writes)
//!   16 bytes each         flags | idx | ring[N] | used_event    flags | idx | ring[N] | avail_event
//!   addr                  0       2     4         4 + 2 N       0       2     4         4 + 8 N
//!   len flags next
//! ```
//!
//! Indexes run freely over 16 bits; an entry's place is the index modulo the ring's size, a power of two.

/// The device's side.
pub mod device;
/// The driver's side.
pub mod driver;

/// Offset of `flags` in either ring, in bytes.
pub(crate) const FLAGS: usize = 0;
/// Offset of `idx` in either ring.
pub(crate) const IDX: usize = 2;
/// Offset of the first element in either ring.
const RING: usize = 4;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT` and `VIRTQ_USED_F_NO_NOTIFY`: the same bit in the two `flags`.
const F_NO_NOTIFICATION: u16 = 1;

/// Offset of element `slot` of the available ring; of `used_event` for `slot` = N.
#[inline(always)]
pub(crate) fn avail_at(slot: u16) -> usize {
    RING + 2 * usize::from(slot)
}

/// Offset of element `slot` of the used ring; of `avail_event` for `slot` = N.
#[inline(always)]
pub(crate) fn used_at(slot: u16) -> usize {
    RING + 8 * usize::from(slot)
}

/// Offset of descriptor `index` in the table.
#[inline(always)]
fn desc_at(index: u16) -> usize {
    16 * usize::from(index)
}

/// A free-running 16-bit index of one side's own, which changes with every chain, kept in 32 bits.
///
/// Compilers load an aligned 16-bit field with a 32-bit instruction. A load that is wider than the store before it waits
/// until that store, and every one before it, has reached the cache: those to lines that the other side's core still has
/// too. What changes with every chain is therefore never narrower than what it may be loaded by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Index(u32);

impl Index {
    #[inline(always)]
    const fn new(index: u16) -> Index {
        Index(index as u32)
    }

    #[inline(always)]
    const fn get(self) -> u16 {
        self.0 as u16
    }

    /// The index `count` further.
    #[inline(always)]
    const fn plus(self, count: u16) -> Index {
        Index::new(self.get().wrapping_add(count))
    }

    /// How far it is from `earlier`.
    #[inline(always)]
    const fn since(self, earlier: Index) -> u16 {
        self.get().wrapping_sub(earlier.get())
    }

    /// The index just behind, which is the farthest one away.
    #[inline(always)]
    const fn farthest(self) -> Index {
        self.plus(u16::MAX)
    }

    #[inline(always)]
    fn advance(&mut self, count: u16) {
        *self = self.plus(count);
    }
}
