//! Descriptor chains, checked and translated.

use std::sync::Arc;

use crate::guest::{GuestMap, HostSlice};

/// The most descriptors in one chain, indirect ones included: QEMU's own limit (`VIRTQUEUE_MAX_SIZE`).
pub const MAX_CHAIN: usize = 1024;

/// One chain in a [`Burst`]: lengths are what its descriptors claim, checked to be inside guest memory.
#[derive(Debug, Clone, Copy)]
pub struct Chain {
    /// What completes it: the head's index (split) or the buffer id (packed).
    pub id: u16,
    /// Ring slots it takes: 1 in a split ring, the descriptors of the chain in a packed one (1 if indirect).
    pub slots: u16,
    /// First of its segments in the burst.
    pub(crate) first: u32,
    /// Segments that the driver lets the device read; they come first.
    pub(crate) readable: u16,
    /// Segments that the driver lets the device write.
    pub(crate) writable: u16,
    /// Bytes in the readable segments.
    pub readable_bytes: u32,
    /// Bytes in the writable segments.
    pub writable_bytes: u32,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) start: *mut u8,
    pub(crate) len: u32,
}

/// Chains peeked from one queue in one go, with their segments translated: scratch memory of the pump that owns the
/// queue, allocated once. It holds the map that its segments lie in, so they stay valid while it lives.
#[derive(Debug)]
pub struct Burst {
    pub(crate) map: Arc<GuestMap>,
    pub(crate) chains: Vec<Chain>,
    pub(crate) segments: Vec<Segment>,
}

// SAFETY: the segments point into `map`, which the burst holds; they are only ever turned into `HostSlice`s borrowed
// from the burst, whose accesses tolerate any other writer. Nothing in it is tied to a thread.
unsafe impl Send for Burst {}

impl Burst {
    /// The most chains in one burst.
    pub const CHAINS: usize = 64;

    /// Scratch for queues whose buffers lie in `map`.
    pub fn new(map: Arc<GuestMap>) -> Burst {
        Burst {
            map,
            chains: Vec::with_capacity(Burst::CHAINS),
            segments: Vec::with_capacity(MAX_CHAIN + 4 * Burst::CHAINS),
        }
    }
    /// Forgets what was peeked.
    #[inline]
    pub fn clear(&mut self) {
        self.chains.clear();
        self.segments.clear();
    }
    /// The chains peeked, in ring order.
    #[inline]
    pub fn chains(&self) -> &[Chain] {
        &self.chains
    }
    /// The segments of a chain of this burst that the device may read, in order.
    #[inline]
    pub fn readable(&self, chain: &Chain) -> impl ExactSizeIterator<Item = HostSlice<'_>> + Clone {
        self.slices(chain.first as usize, chain.readable.into())
    }
    /// The segments of a chain of this burst that the device may write, in order.
    #[inline]
    pub fn writable(&self, chain: &Chain) -> impl ExactSizeIterator<Item = HostSlice<'_>> + Clone {
        self.slices(chain.first as usize + usize::from(chain.readable), chain.writable.into())
    }
    #[inline]
    fn slices(&self, first: usize, count: usize) -> impl ExactSizeIterator<Item = HostSlice<'_>> + Clone {
        self.segments.get(first..first + count).unwrap_or_default().iter().map(|segment| HostSlice {
            start: segment.start,
            len: segment.len as usize,
            map: std::marker::PhantomData,
        })
    }
}
