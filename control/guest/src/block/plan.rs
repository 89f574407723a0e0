//! Where things are in a block port's memory, in bytes from its start.
//!
//! ```text
//!   | rings | heads: header and status, a line for each slot | tables of descriptors | data of the slots of queue 0, 1, .. |
//! ```
//! Data begins at pages if it may be as long as one, else at sectors, and as far behind as is asked for. There is room before
//! and behind it, for a header and a status that share its descriptor.

use ringway_ring::layout::{Areas, Layout};
use ringway_ring::queue::{IndirectTable, RingSize};

use super::config::SECTOR;
use super::options::{BlockOptions, Shape};
use super::request::HEADER_BYTES;
use crate::error::GuestError;

/// See the head of this file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    layout: Layout,
    queues: u64,
    depth: u64,
    ring_bytes: u64,
    table_bytes: u64,
    /// Between the data of two slots.
    stride: u64,
    /// Data behind the beginning of its room.
    shift: u64,
    /// Descriptors of a request at most.
    pub(crate) descriptors: u16,
}

/// Where a slot's things are.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Place {
    pub(crate) header: u64,
    pub(crate) status: u64,
    pub(crate) table: u64,
    pub(crate) data: u64,
}

impl Plan {
    pub(crate) fn new(options: &BlockOptions, size: RingSize) -> Result<Plan, GuestError> {
        let BlockOptions { max_bytes, depth, queue_size, .. } = *options;
        if max_bytes == 0 || max_bytes > MAX_REQUEST {
            return Err(GuestError::RequestLen { bytes: max_bytes, most: MAX_REQUEST });
        }
        let segment = options.segment_bytes.unwrap_or(max_bytes).clamp(1, max_bytes);
        let descriptors =
            max_bytes.div_ceil(segment) + OVERHEAD + u32::from(options.shape == Shape::SplitHeader);
        let in_ring = if options.indirect { 1 } else { descriptors };
        let most = u32::from(queue_size) / in_ring;
        if depth == 0 || u32::from(depth) > most {
            return Err(GuestError::Depth { depth, most, descriptors: in_ring, queue_size });
        }
        let layout = Layout::new(options.format, size);
        let unit = if u64::from(max_bytes) >= PAGE { PAGE } else { SECTOR };
        let around = if options.shape == Shape::Joined { 2 * LINE } else { 0 };
        let shift = u64::from(options.shift) + around / 2;
        Ok(Plan {
            layout,
            queues: options.queues.into(),
            depth: depth.into(),
            ring_bytes: layout.total.next_multiple_of(PAGE),
            table_bytes: (u64::from(descriptors) * IndirectTable::DESCRIPTOR as u64).next_multiple_of(LINE),
            stride: (u64::from(max_bytes) + u64::from(options.shift) + around).next_multiple_of(unit),
            shift,
            descriptors: descriptors as u16,
        })
    }

    fn heads_at(&self) -> u64 {
        self.queues * self.ring_bytes
    }

    fn tables_at(&self) -> u64 {
        self.heads_at() + self.queues * self.depth * LINE
    }

    fn data_at(&self) -> u64 {
        (self.tables_at() + self.queues * self.depth * self.table_bytes).next_multiple_of(PAGE)
    }

    /// All of the memory.
    pub(crate) fn total(&self) -> u64 {
        (self.data_at() + self.queues * self.depth * self.stride).next_multiple_of(PAGE)
    }

    /// The areas of a ring in a memory that starts at `base`.
    pub(crate) fn ring(&self, queue: u16, base: u64) -> Areas<u64> {
        self.layout.at(base + u64::from(queue) * self.ring_bytes)
    }

    /// Where the things of a slot are.
    pub(crate) fn place(&self, queue: u16, slot: u16, base: u64) -> Place {
        let nth = u64::from(queue) * self.depth + u64::from(slot);
        let head = base + self.heads_at() + nth * LINE;
        Place {
            header: head,
            status: head + u64::from(HEADER_BYTES),
            table: base + self.tables_at() + nth * self.table_bytes,
            data: base + self.data_at() + nth * self.stride + self.shift,
        }
    }
}

/// Bytes of data in a request at most.
const MAX_REQUEST: u32 = 1 << 24;

/// Descriptors of a request beside those of its data: one for the header, one for the status.
const OVERHEAD: u32 = 2;

const PAGE: u64 = 4096;

/// A cache line, in bytes.
const LINE: u64 = 64;

#[cfg(test)]
mod tests {
    use ringway_ring::queue::Format;

    use super::*;

    #[test]
    fn nothing_overlaps_and_data_is_aligned_as_asked() {
        for (max_bytes, shift, shape) in
            [(512, 0, Shape::Usual), (4096, 3, Shape::Joined), (1 << 20, 512, Shape::Joined)]
        {
            let options = BlockOptions {
                queues: 3,
                depth: 5,
                max_bytes,
                shift,
                shape,
                segment_bytes: Some(65536),
                ..BlockOptions::default()
            };
            let plan = Plan::new(&options, RingSize::new(Format::Split, 128).unwrap()).unwrap();
            let base = 1 << 32;
            let mut spans = Vec::new();
            for queue in 0..3 {
                spans.push((plan.ring(queue, base).desc, plan.layout.total));
                for slot in 0..5 {
                    let place = plan.place(queue, slot, base);
                    spans.push((place.header, 17));
                    spans.push((place.table, u64::from(plan.descriptors) * 16));
                    let around = if shape == Shape::Joined { 64 } else { 0 };
                    assert_eq!((place.data - around - u64::from(shift)) % u64::from(max_bytes.min(4096)), 0);
                    spans.push((place.data - around, u64::from(max_bytes) + around * 2));
                }
            }
            spans.sort_unstable();
            assert!(spans.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{spans:x?}");
            let (start, len) = spans[spans.len() - 1];
            assert!(start + len <= base + plan.total());
        }
    }

    #[test]
    fn depth_that_the_ring_has_no_room_for_is_refused() {
        let size = RingSize::new(Format::Split, 128).unwrap();
        let plan = |depth, indirect| {
            Plan::new(&BlockOptions { depth, indirect, queue_size: 128, ..BlockOptions::default() }, size)
        };
        assert!(plan(42, false).is_ok() && plan(128, true).is_ok());
        assert!(matches!(
            plan(43, false),
            Err(GuestError::Depth { depth: 43, most: 42, descriptors: 3, .. })
        ));
        assert!(matches!(plan(129, true), Err(GuestError::Depth { .. })));
    }
}
