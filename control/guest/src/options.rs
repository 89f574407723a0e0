//! What a guest shall be like.

use std::time::Duration;

use ringway_ring::memory::PageKind;
use ringway_ring::queue::Format;

use crate::frame::{Addresses, Sizes};

/// What a guest reads and writes of each frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Touch {
    /// Nothing: frames are written once, what comes is counted by descriptor, and of some all is read (see
    /// [`GuestOptions::whole_every`]).
    None,
    /// The first 46 bytes, and of some all (see [`GuestOptions::whole_every`]).
    Header,
    /// Every byte: written before it is sent, compared when it comes.
    All,
}

/// What a guest shall be like.
#[derive(Debug, Clone, Copy)]
pub struct GuestOptions {
    /// Ring layout.
    pub format: Format,
    /// Queue pairs.
    pub pairs: u16,
    /// Entries in each ring.
    pub queue_size: u16,
    /// Lengths of its frames, from the Ethernet header on, without frame check sequence, in bytes.
    pub sizes: Sizes,
    /// What is read and written of each frame.
    pub touch: Touch,
    /// Of one frame in so many (a power of two) every byte is looked at, also if only heads are touched; of none without
    /// it.
    pub whole_every: Option<u64>,
    /// Frames under way at most, a ring's worth without it. Two guests that send to each other count what comes as
    /// answers to what went: half a ring each, so that all of it fits into one of them.
    pub window: Option<u16>,
    /// Negotiate MRG_RXBUF.
    pub mergeable: bool,
    /// Negotiate RING_EVENT_IDX, as every Linux guest does.
    pub event_idx: bool,
    /// Negotiate IN_ORDER.
    pub in_order: bool,
    /// Where its frames go, and where they come from.
    pub addresses: Addresses,
    /// One frame in so many goes to an address that nobody has. Frames of others that come by that are counted apart.
    pub flood: Option<u32>,
    /// Bytes that a receive buffer tells the device it has, header included; without it, room for its own longest frame.
    pub rx_buffer: Option<u32>,
    /// The pages of its memory; the largest there are without it. On base pages, what a back-end touches of its guests
    /// is told apart from its own memory to the page.
    pub pages: Option<PageKind>,
    /// Scatter the buffers, each on base pages of its own, so that neighbours in a ring are in different ones of this
    /// many regions of memory; without it, the buffers are side by side in one region.
    pub regions: Option<u16>,
    /// How long the back-end may take for an answer.
    pub patience: Duration,
    /// How long nothing may come before all that is under way counts as lost; what comes later is counted as it comes.
    /// Longer than any thread is without a processor, where nothing is lost.
    pub give_up: Duration,
}

impl Default for GuestOptions {
    fn default() -> Self {
        GuestOptions {
            format: Format::Split,
            pairs: 1,
            queue_size: 256,
            sizes: Sizes::Fixed(64),
            touch: Touch::Header,
            whole_every: Some(16),
            window: None,
            mergeable: true,
            event_idx: false,
            in_order: false,
            addresses: Addresses::TO_ALL,
            flood: None,
            rx_buffer: None,
            pages: None,
            regions: None,
            patience: Duration::from_secs(5),
            give_up: Duration::from_millis(500),
        }
    }
}
