//! Descriptor chains, checked and translated, and the scratch memory that a burst of them is peeked into.
//!
//! ```text
//!   Burst   chains:   [ 0 ][ 1 ][ 2 ] ...          in ring order
//!                        \     \
//!           segments: [ r ][ r  r  w ][ ...        readable ones first, each inside the map that the burst holds
//! ```
//!
//! A burst belongs to the pump that owns the queue. Lengths are in bytes.

use std::alloc::{Layout, handle_alloc_error};
use std::fmt;
use std::io;
use std::mem::MaybeUninit;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use memmap2::MmapMut;

use crate::guest::{GuestMap, HostSlice};

/// The most descriptors in one chain, indirect ones included: QEMU's own limit (`VIRTQUEUE_MAX_SIZE`).
pub const MAX_CHAIN: usize = 1024;

/// One chain in a [`Burst`]: lengths are what its descriptors claim, checked to be inside guest memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
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

impl Chain {
    /// Segments, readable and writable: what it costs to work on the chain. One for each descriptor, more where a
    /// descriptor crosses regions of guest memory.
    #[inline]
    pub fn segments(&self) -> usize {
        usize::from(self.readable) + usize::from(self.writable)
    }
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Segment {
    pub(crate) start: *mut u8,
    pub(crate) len: u32,
}

/// Chains peeked from one queue in one go, with their segments translated: scratch memory of the pump that owns the
/// queue, allocated once. It holds the map that its segments lie in, so they stay valid while it lives.
pub struct Burst {
    /// Every segment lies in it.
    map: Arc<GuestMap>,
    scratch: Scratch,
    /// Of the scratch memory's chains, those that were peeked.
    chain_count: usize,
    /// Of its segments, those that belong to peeked chains.
    segment_count: usize,
}

// SAFETY: the segments point into `map`, which the burst holds; they are only ever turned into `HostSlice`s borrowed
// from the burst, whose accesses tolerate any other writer. Nothing in it is tied to a thread.
unsafe impl Send for Burst {}

impl Burst {
    /// The most chains in one burst.
    pub const CHAINS: usize = 64;

    /// The most segments in one burst, and so in one chain: the longest chain, and room for the descriptors of it that
    /// cross regions.
    pub const SEGMENTS: usize = MAX_CHAIN + 4 * Burst::CHAINS;

    /// Scratch for queues whose buffers lie in `map`. As an allocation would, it ends the process if there is no memory.
    pub fn new(map: Arc<GuestMap>) -> Burst {
        Burst::try_new(map).unwrap_or_else(|_| handle_alloc_error(Layout::new::<Room>()))
    }

    /// The same, for where peers have a part in how much there is: they can use up the mappings and the addresses that
    /// a process may have.
    ///
    /// # Errors
    /// The kernel gave no mapping.
    pub fn try_new(map: Arc<GuestMap>) -> io::Result<Burst> {
        Ok(Burst { map, scratch: Scratch::new()?, chain_count: 0, segment_count: 0 })
    }

    /// Forgets what was peeked.
    #[inline]
    pub fn clear(&mut self) {
        self.chain_count = 0;
        self.segment_count = 0;
    }

    /// The chains peeked, in ring order.
    #[inline]
    pub fn chains(&self) -> &[Chain] {
        let peeked = self.scratch.chains.get(..self.chain_count).unwrap_or_default();
        // SAFETY: `chain_count` grows only in `commit_singles` and `push`, over places that were written before, by
        // `Singles::push` and by `push` itself. Nothing unwrites them.
        unsafe { peeked.assume_init_ref() }
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

    /// The one readable segment of a chain that has just this one and none to write: the common case on transmit
    /// queues. None for any other chain.
    #[inline]
    pub fn single_readable(&self, chain: &Chain) -> Option<HostSlice<'_>> {
        if (chain.readable, chain.writable) == (1, 0) { self.slice(chain.first as usize) } else { None }
    }

    /// The one writable segment of a chain that has just this one and none to read: the common case on receive queues.
    /// None for any other chain.
    #[inline]
    pub fn single_writable(&self, chain: &Chain) -> Option<HostSlice<'_>> {
        if (chain.readable, chain.writable) == (0, 1) { self.slice(chain.first as usize) } else { None }
    }

    /// Every segment of every chain, in order.
    #[inline]
    pub fn all_segments(&self) -> impl ExactSizeIterator<Item = HostSlice<'_>> + Clone {
        self.slices(0, self.segment_count)
    }

    #[inline]
    fn slice(&self, index: usize) -> Option<HostSlice<'_>> {
        self.segments(index, 1).first().map(Segment::slice)
    }

    #[inline]
    fn slices(&self, first: usize, count: usize) -> impl ExactSizeIterator<Item = HostSlice<'_>> + Clone {
        self.segments(first, count).iter().map(Segment::slice)
    }

    /// Some of the segments of the chains peeked; none if not all of them are.
    #[inline]
    fn segments(&self, first: usize, count: usize) -> &[Segment] {
        // Neither is more than 32 bits.
        let end = first + count;
        if end > self.segment_count {
            return &[];
        }
        // SAFETY: they are below `segment_count`, which grows only in `commit_singles` and `push`, over places that were
        // written before: by `Place::put`, each chain's one, and by `Gather::add`, as many as the chain counts. So all
        // of them are places of the scratch memory, and written; nothing unwrites them.
        unsafe { self.scratch.segments.get_unchecked(first..end).assume_init_ref() }
    }

    /// Clears it for segments in `map`; takes hold of `map` if that is another one than before.
    #[inline]
    pub(crate) fn begin(&mut self, map: &Arc<GuestMap>) {
        self.clear();
        if !Arc::ptr_eq(&self.map, map) {
            self.map = Arc::clone(map);
        }
    }

    /// The map that every segment lies in.
    #[inline]
    pub fn map(&self) -> &Arc<GuestMap> {
        &self.map
    }

    /// Adds a chain of one readable segment, which must lie in one region of the burst's map: for frames in memory of
    /// our own. False: it does not, or there is no room.
    #[inline]
    pub fn push_own(&mut self, id: u16, gpa: u64, len: u32) -> bool {
        let Ok(slice) = self.map.resolve(gpa, len.into()) else { return false };
        let segment = Segment { start: slice.start, len };
        if !self.singles().push(id, segment, false) {
            return false;
        }
        self.commit_singles(1);
        true
    }

    /// Chains in it.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.chain_count
    }

    /// Room for chains of one segment each, behind what was peeked; they are part of the burst once they were
    /// [committed](Burst::commit_singles).
    #[inline(always)]
    pub(crate) fn singles(&mut self) -> Singles<'_> {
        let Room { chains, segments } = &mut *self.scratch;
        Singles {
            chains: chains.get_mut(self.chain_count..).unwrap_or_default().iter_mut(),
            segments: segments.get_mut(self.segment_count..).unwrap_or_default().iter_mut(),
            first: self.segment_count as u32,
        }
    }

    /// Makes `count` chains that were pushed as [`Burst::singles`] part of the burst.
    #[inline(always)]
    pub(crate) fn commit_singles(&mut self, count: usize) {
        self.chain_count += count;
        self.segment_count += count;
    }

    /// Room for the segments of one chain behind those of the peeked ones. Segments put there must lie in the burst's
    /// map; [`Burst::push`] makes them part of the burst.
    #[inline(always)]
    pub(crate) fn room(&mut self) -> std::slice::IterMut<'_, MaybeUninit<Segment>> {
        self.scratch.segments.get_mut(self.segment_count..).unwrap_or_default().iter_mut()
    }

    /// Adds a chain over the segments put behind the others. False: no room.
    #[inline(always)]
    pub(crate) fn push(&mut self, chain: Chain) -> bool {
        let Some(slot) = self.scratch.chains.get_mut(self.chain_count) else { return false };
        slot.write(Chain { first: self.segment_count as u32, ..chain });
        self.chain_count += 1;
        self.segment_count += chain.segments();
        true
    }
}

/// Room for chains and segments.
#[repr(C)]
struct Room {
    chains: [MaybeUninit<Chain>; Burst::CHAINS],
    segments: [MaybeUninit<Segment>; Burst::SEGMENTS],
}

/// Pages of their own for a [`Room`], private to this process. None is there before it is touched, and none is shared
/// with the heap, so that the scratch memory of an idle queue costs nothing.
struct Scratch(MmapMut);

impl Scratch {
    fn new() -> io::Result<Scratch> {
        Ok(Scratch(MmapMut::map_anon(size_of::<Room>())?))
    }
}

impl Deref for Scratch {
    type Target = Room;
    #[inline(always)]
    fn deref(&self) -> &Room {
        // SAFETY: the mapping is as large as a room and aligned to pages, lives as long as `self`, is borrowed with it,
        // and any bytes are a valid room, all of whose parts are `MaybeUninit`.
        unsafe { &*self.0.as_ptr().cast() }
    }
}

impl DerefMut for Scratch {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut Room {
        // SAFETY: as in `deref`; borrowed exclusively with `self`.
        unsafe { &mut *self.0.as_mut_ptr().cast() }
    }
}

/// Where chains of one segment each are put.
pub(crate) struct Singles<'burst> {
    chains: std::slice::IterMut<'burst, MaybeUninit<Chain>>,
    segments: std::slice::IterMut<'burst, MaybeUninit<Segment>>,
    /// Index of the next segment.
    first: u32,
}

/// Where a chain of one segment is put.
pub(crate) struct Place<'burst> {
    chain: &'burst mut MaybeUninit<Chain>,
    segment: &'burst mut MaybeUninit<Segment>,
    /// Index of the segment.
    first: u32,
}

impl<'burst> Singles<'burst> {
    /// The places, in order.
    #[inline(always)]
    pub(crate) fn places(self) -> impl Iterator<Item = Place<'burst>> {
        let first = self.first;
        let places = self.chains.zip(self.segments).enumerate();
        places.map(move |(nth, (chain, segment))| Place { chain, segment, first: first + nth as u32 })
    }

    /// Puts a chain of one segment, which must lie in the burst's map. False: no room.
    #[inline(always)]
    pub(crate) fn push(&mut self, id: u16, segment: Segment, write: bool) -> bool {
        let (Some(chain), Some(slot)) = (self.chains.next(), self.segments.next()) else { return false };
        Place { chain, segment: slot, first: self.first }.put(id, segment, write);
        self.first += 1;
        true
    }
}

impl Place<'_> {
    /// Puts a chain of one segment, which must lie in the burst's map.
    #[inline(always)]
    pub(crate) fn put(self, id: u16, segment: Segment, write: bool) {
        self.segment.write(segment);
        self.chain.write(Chain {
            id,
            slots: 1,
            first: self.first,
            readable: u16::from(!write),
            writable: u16::from(write),
            readable_bytes: if write { 0 } else { segment.len },
            writable_bytes: if write { segment.len } else { 0 },
        });
    }
}

impl fmt::Debug for Burst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Burst")
            .field("chains", &self.chains())
            .field("segments", &self.segment_count)
            .finish_non_exhaustive()
    }
}

impl Segment {
    #[inline(always)]
    fn slice<'map>(&self) -> HostSlice<'map> {
        HostSlice { start: self.start, len: self.len as usize, map: std::marker::PhantomData }
    }
}
