//! Where the three areas of a ring lie: sizes, alignment, and the claims of a front-end turned into words.
//!
//! | area | split (virtio 1.3 §2.7) | align | packed (§2.8.10) | align |
//! | --- | --- | --- | --- | --- |
//! | descriptor | table, 16 N | 16 | ring, 16 N | 16 |
//! | driver | available ring, 6 + 2 N | 2 | driver event suppression, 4 | 4 |
//! | device | used ring, 6 + 8 N | 4 | device event suppression, 4 | 4 |
//!
//! Sizes and addresses are in bytes; N is the ring's size in entries. The event index words are always part of the
//! area, negotiated or not.

use std::sync::Arc;

use crate::features::Features;
use crate::guest::{GuestMap, HostSlice, Miss};
use crate::position::Position;
use crate::queue::{Format, QueueConfig, RingSize, SetupError};
use crate::words::{RawWords, Words};

/// Something for each area of a ring: addresses, or the words of each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Areas<T> {
    /// Descriptor area: the table (split) or the descriptor ring (packed).
    pub desc: T,
    /// Driver area: the available ring (split) or driver event suppression (packed).
    pub driver: T,
    /// Device area: the used ring (split) or device event suppression (packed).
    pub device: T,
}

/// A driver-side queue before it runs: in memory of our own, which the device sees too. What
/// [`DriverConfig::start_split`] or [`DriverConfig::start_packed`] makes of it begins with an empty ring.
#[derive(Debug, Clone)]
pub struct DriverConfig {
    /// Entries.
    pub size: RingSize,
    /// The negotiated features; those that concern the ring are honoured.
    pub features: Features,
    /// The memory that ring and buffers lie in.
    pub map: Arc<GuestMap>,
    /// The areas, by guest physical address: see [`Layout::at`].
    pub areas: Areas<u64>,
    /// Where the device starts: [`Position::START`] on a device that was reset. Both sides must be told the same, and
    /// available and used position must be the same place.
    pub position: Position,
}

/// How a ring is laid out in one block of memory: offsets of its areas, each on a cache line of its own so that what
/// one side writes shares no line with what the other writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Offsets in bytes from the start of the block, which must be aligned to [`Layout::ALIGN`].
    pub offsets: Areas<u64>,
    /// Bytes of the whole block, a multiple of [`Layout::ALIGN`].
    pub total: u64,
}

impl Layout {
    /// Alignment of the block in bytes: two cache lines, since processors fetch lines in pairs.
    pub const ALIGN: u64 = 128;

    /// The layout of a ring.
    pub fn new(format: Format, size: RingSize) -> Layout {
        let len = sizes(format, size);
        let driver = len.desc.next_multiple_of(Layout::ALIGN);
        let device = (driver + len.driver).next_multiple_of(Layout::ALIGN);
        let total = (device + len.device).next_multiple_of(Layout::ALIGN);
        Layout { offsets: Areas { desc: 0, driver, device }, total }
    }

    /// Addresses of the areas in a block that starts at `base`.
    pub fn at(&self, base: u64) -> Areas<u64> {
        let Areas { desc, driver, device } = self.offsets;
        Areas { desc: base + desc, driver: base + driver, device: base + device }
    }
}

impl QueueConfig {
    /// Finds the areas in the guest's memory.
    pub(crate) fn resolve(&self, format: Format) -> Result<Areas<RawWords>, SetupError> {
        let claims =
            Areas { desc: self.desc_user_addr, driver: self.driver_user_addr, device: self.device_user_addr };
        resolve(format, self.size, claims, |address, len| self.map.resolve_user(address, len))
    }
}

impl DriverConfig {
    /// Finds the areas in the memory that holds them.
    pub(crate) fn resolve(&self, format: Format) -> Result<Areas<RawWords>, SetupError> {
        resolve(format, self.size, self.areas, |address, len| self.map.resolve(address, len))
    }
}

impl<W: Words> Areas<W> {
    /// Refuses areas that are too small for a ring, and a size that is not one of `format`.
    pub(crate) fn check(&self, format: Format, size: RingSize) -> Result<(), SetupError> {
        RingSize::new(format, size.get().into())?;
        let need = sizes(format, size);
        for (words, len) in
            [(&self.desc, need.desc), (&self.driver, need.driver), (&self.device, need.device)]
        {
            if (words.size() as u64) < len {
                return Err(SetupError::Unmapped { address: 0, len });
            }
        }
        Ok(())
    }
}

/// Bytes of each area.
fn sizes(format: Format, size: RingSize) -> Areas<u64> {
    let n = u64::from(size.get());
    match format {
        Format::Split => Areas { desc: 16 * n, driver: 6 + 2 * n, device: 6 + 8 * n },
        Format::Packed => Areas { desc: 16 * n, driver: 4, device: 4 },
    }
}

/// What each area is aligned to.
fn alignment(format: Format) -> Areas<u64> {
    match format {
        Format::Split => SPLIT_ALIGN,
        Format::Packed => PACKED_ALIGN,
    }
}

/// One area of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Area {
    /// Where it is said to be.
    pub address: u64,
    /// Its bytes.
    pub len: u64,
    /// What its address must be a multiple of.
    pub align: u64,
}

impl Areas<u64> {
    /// Each area with its bytes and its alignment.
    pub fn of(&self, format: Format, size: RingSize) -> [Area; 3] {
        let (len, align) = (sizes(format, size), alignment(format));
        [
            Area { address: self.desc, len: len.desc, align: align.desc },
            Area { address: self.driver, len: len.driver, align: align.driver },
            Area { address: self.device, len: len.device, align: align.device },
        ]
    }
}

fn resolve<'map>(
    format: Format,
    size: RingSize,
    claims: Areas<u64>,
    lookup: impl Fn(u64, u64) -> Result<HostSlice<'map>, Miss>,
) -> Result<Areas<RawWords>, SetupError> {
    let area = |Area { address, len, align }: Area| {
        if !address.is_multiple_of(align) {
            return Err(SetupError::Misaligned { address, align });
        }
        let slice = lookup(address, len).map_err(|_| SetupError::Unmapped { address, len })?;
        // A region may be mapped so that the front-end's alignment is not ours.
        if !(slice.as_ptr().addr() as u64).is_multiple_of(align) {
            return Err(SetupError::Misaligned { address, align });
        }
        // SAFETY: validity: the slice is inside the map, which the ring holds beside these words and drops after
        // them. Alignment: checked above. Bounds: the ring's code derives offsets from indexes below the size that
        // `len` was computed from, which `Areas::check` makes sure of. Concurrency: no reference to this memory
        // is ever made; the other side accesses it at any time.
        Ok(unsafe { RawWords::new(slice.as_ptr(), len as usize) })
    };
    let [desc, driver, device] = claims.of(format, size);
    Ok(Areas { desc: area(desc)?, driver: area(driver)?, device: area(device)? })
}

/// virtio 1.3 §2.7, in bytes.
const SPLIT_ALIGN: Areas<u64> = Areas { desc: 16, driver: 2, device: 4 };
/// virtio 1.3 §2.8.10.1, in bytes.
const PACKED_ALIGN: Areas<u64> = Areas { desc: 16, driver: 4, device: 4 };

#[cfg(test)]
mod tests {
    use super::*;

    fn size(format: Format, n: u32) -> RingSize {
        RingSize::new(format, n).unwrap()
    }

    #[test]
    fn areas_of_a_layout_share_no_line_and_hold_their_bytes() {
        for (format, n) in
            [(Format::Split, 1), (Format::Split, 32768), (Format::Packed, 3), (Format::Packed, 32768)]
        {
            let layout = Layout::new(format, size(format, n));
            let need = sizes(format, size(format, n));
            let Areas { desc, driver, device } = layout.offsets;
            assert_eq!(desc, 0);
            assert!(
                need.desc <= driver && driver + need.driver <= device && device + need.device <= layout.total
            );
            assert!([driver, device, layout.total].iter().all(|at| at % Layout::ALIGN == 0));
        }
    }

    #[test]
    fn layout_at_a_base_moves_every_area() {
        let layout = Layout::new(Format::Split, size(Format::Split, 8));
        assert_eq!(layout.at(0x1000), Areas { desc: 0x1000, driver: 0x1080, device: 0x1100 });
    }
}
