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
const FLAGS: usize = 0;
/// Offset of `idx` in either ring.
const IDX: usize = 2;
/// Offset of the first element in either ring.
const RING: usize = 4;
/// `VIRTQ_AVAIL_F_NO_INTERRUPT` and `VIRTQ_USED_F_NO_NOTIFY`: the same bit in the two `flags`.
const F_NO_NOTIFICATION: u16 = 1;

/// Offset of element `slot` of the available ring; of `used_event` for `slot` = N.
#[inline(always)]
fn avail_at(slot: u16) -> usize {
    RING + 2 * usize::from(slot)
}

/// Offset of element `slot` of the used ring; of `avail_event` for `slot` = N.
#[inline(always)]
fn used_at(slot: u16) -> usize {
    RING + 8 * usize::from(slot)
}

/// Offset of descriptor `index` in the table.
#[inline(always)]
fn desc_at(index: u16) -> usize {
    16 * usize::from(index)
}
