//! What a block port shall be like.

use std::time::Duration;

use ringway_ring::features::Features;
use ringway_ring::memory::PageKind;
use ringway_ring::queue::Format;

/// How a request lies in descriptors. Their borders mean nothing to a device (virtio 1.3 §5.2.6).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Shape {
    /// Header, data and status each in descriptors of their own, as all known drivers do.
    #[default]
    Usual,
    /// The header in two descriptors, of 4 and of 12 bytes.
    SplitHeader,
    /// The header shares a descriptor with data that the device reads, the status with data that it writes.
    Joined,
}

/// What a block port shall be like.
#[derive(Debug, Clone, Copy)]
pub struct BlockOptions {
    /// Ring layout.
    pub format: Format,
    /// Virtqueues.
    pub queues: u16,
    /// Entries in each ring.
    pub queue_size: u16,
    /// Requests under way at most, a queue.
    pub depth: u16,
    /// Bytes of data in a request at most.
    pub max_bytes: u32,
    /// Data is cut into descriptors of so many bytes; one for all of it without.
    pub segment_bytes: Option<u32>,
    /// Data begins so many bytes behind where a page or a sector does.
    pub shift: u16,
    /// How requests lie in descriptors.
    pub shape: Shape,
    /// Each request takes one descriptor, which leads to a table of them.
    pub indirect: bool,
    /// Negotiate RING_EVENT_IDX, as every Linux guest does.
    pub event_idx: bool,
    /// Of what the device offers of its own, this is not taken.
    pub decline: Features,
    /// The pages of its memory; the largest there are without it.
    pub pages: Option<PageKind>,
    /// Give the device its memory by one table, also if it takes it region by region.
    pub table: bool,
    /// Keep a region in which the back-end records what it has in flight, if it knows how to, as QEMU does.
    pub inflight: bool,
    /// How long the back-end may take to be there, and for an answer.
    pub patience: Duration,
}

impl Default for BlockOptions {
    fn default() -> Self {
        BlockOptions {
            format: Format::Split,
            queues: 1,
            queue_size: 128,
            depth: 32,
            max_bytes: 4096,
            segment_bytes: None,
            shift: 0,
            shape: Shape::Usual,
            indirect: false,
            event_idx: true,
            decline: Features::NONE,
            pages: None,
            table: true,
            inflight: true,
            patience: Duration::from_secs(5),
        }
    }
}
