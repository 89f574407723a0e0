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

use crate::guest::{GuestMap, HostSlice, Miss};

mod held;
mod span;
mod windows;
use windows::Windows;

pub use held::Held;
pub use span::{Piece, Span};

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

/// A piece of a chain, found in the map of the burst that it is in, and made nowhere but here and in [`windows`].
#[derive(Debug, Clone, Copy)]
struct Segment {
    start: *mut u8,
    /// Guest physical.
    gpa: u64,
    len: u32,
}

/// A chain of one descriptor, as it was read: claims of the driver.
pub(crate) struct Single {
    /// What completes it.
    pub(crate) id: u16,
    /// Guest physical address of its buffer.
    pub(crate) gpa: u64,
    /// Bytes.
    pub(crate) len: u32,
    /// The device writes it.
    pub(crate) write: bool,
}

/// Chains peeked from one queue in one go, with their segments translated: scratch memory of the pump that owns the
/// queue, allocated once. It holds the map that its segments lie in, so they stay valid while it lives.
pub struct Burst {
    /// Every segment lies in it.
    map: Arc<GuestMap>,
    /// Regions of `map`.
    windows: Windows,
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
        let windows = Windows::default();
        Ok(Burst { map, windows, scratch: Scratch::new()?, chain_count: 0, segment_count: 0 })
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
        // SAFETY: `chain_count` grows only in `put_singles` and `Open::finish`, each over places that it wrote before.
        // Nothing unwrites them.
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

    /// Where the guest has the segments of a chain of this burst, in order, readable ones first: what a device that reads
    /// and writes the guest's memory itself is told, and what a log of written pages is.
    #[inline]
    pub fn addresses(&self, chain: &Chain) -> impl ExactSizeIterator<Item = u64> + Clone {
        self.segments(chain.first as usize, chain.segments()).iter().map(|segment| segment.gpa)
    }

    #[inline]
    fn slice(&self, index: usize) -> Option<HostSlice<'_>> {
        self.slices(index, 1).next()
    }

    #[inline]
    fn slices(&self, first: usize, count: usize) -> impl ExactSizeIterator<Item = HostSlice<'_>> + Clone {
        // SAFETY: every segment was found in `map` since the burst last took hold of one, and the slice borrows the burst,
        // which holds it meanwhile.
        self.segments(first, count).iter().map(|segment| unsafe { segment.slice() })
    }

    /// Some of the segments of the chains peeked; none if not all of them are.
    #[inline]
    fn segments(&self, first: usize, count: usize) -> &[Segment] {
        // Neither is more than 32 bits.
        let end = first + count;
        if end > self.segment_count {
            return &[];
        }
        // SAFETY: they are below `segment_count`, which grows only in `put_singles`, by the segments that it wrote, and in
        // `Open::finish`, by those that `Open::put` wrote. So all of them are places of the scratch memory, and written;
        // nothing unwrites them.
        unsafe { self.scratch.segments.get_unchecked(first..end).assume_init_ref() }
    }

    /// Clears it for segments in `map`; takes hold of `map` if that is another one than before.
    #[inline]
    pub(crate) fn begin(&mut self, map: &Arc<GuestMap>) {
        self.clear();
        if !Arc::ptr_eq(&self.map, map) {
            self.map = Arc::clone(map);
            self.windows = Windows::default();
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
        self.put_single(&Single { id, gpa, len, write: false }) == Put::Done
    }

    /// Clears it for chains that are pushed, which lie in `map`; takes hold of `map` if that is another one than before.
    #[inline]
    pub fn restart(&mut self, map: &Arc<GuestMap>) {
        self.begin(map);
    }

    /// Adds a chain of these readable pieces, each of which must be in the burst's map: guest physical address and bytes. False:
    /// one is not, or there is no room.
    #[inline]
    pub fn push_pieces(&mut self, id: u16, pieces: &[(u64, u32)]) -> bool {
        if let [(gpa, len)] = *pieces
            && self.push_own(id, gpa, len)
        {
            return true;
        }
        let mut chain = self.open();
        let mut bytes = 0u32;
        for (gpa, len) in pieces {
            if !matches!(chain.put(*gpa, *len, false), Ok(true)) {
                return false;
            }
            bytes = bytes.saturating_add(*len);
        }
        chain.finish(id, 1, bytes, 0)
    }

    /// Chains in it.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.chain_count
    }

    /// Adds chains of one descriptor in a region where others lay: those that `read` makes of `heads`, in order, to the
    /// first that is not such a chain. `read` returns what the caller goes on with then, beside the chain if it is one.
    /// Returns how many were added, and that.
    #[inline(always)]
    pub(crate) fn put_singles<Head, Rest>(
        &mut self,
        heads: impl Iterator<Item = Head>,
        mut read: impl FnMut(Head) -> Option<(Option<Single>, Rest)>,
    ) -> (u16, Option<Rest>) {
        let Burst { windows, scratch, .. } = self;
        let first = self.segment_count as u32;
        let Room { chains, segments } = &mut **scratch;
        let chains = chains.get_mut(self.chain_count..).unwrap_or_default();
        let segments = segments.get_mut(self.segment_count..).unwrap_or_default();
        let (mut done, mut rest) = (0u32, None);
        for (head, (chain, segment)) in heads.zip(chains.iter_mut().zip(segments)) {
            let Some((single, other)) = read(head) else { break };
            // Looked up before anything is made of it: this loop has more to keep than there are registers.
            let found = single.and_then(|single| Some((windows.find(single.gpa, single.len)?, single)));
            let Some((found, single)) = found else {
                rest = Some(other);
                break;
            };
            segment.write(found);
            chain.write(single.write_at(first + done));
            done += 1;
        }
        self.chain_count += done as usize;
        self.segment_count += done as usize;
        (done as u16, rest)
    }

    /// Adds a chain of one descriptor whose buffer lies in one region, wherever.
    #[inline]
    pub(crate) fn put_single(&mut self, single: &Single) -> Put {
        let found = self.windows.find(single.gpa, single.len);
        let Some(segment) = found.or_else(|| self.windows.look_up(&self.map, single.gpa, single.len)) else {
            return Put::Elsewhere;
        };
        let Room { chains, segments } = &mut *self.scratch;
        let (Some(chain), Some(place)) =
            (chains.get_mut(self.chain_count), segments.get_mut(self.segment_count))
        else {
            return Put::Full;
        };
        place.write(segment);
        chain.write(single.write_at(self.segment_count as u32));
        self.chain_count += 1;
        self.segment_count += 1;
        Put::Done
    }

    /// Begins a chain behind those that are there.
    #[inline(always)]
    pub(crate) fn open(&mut self) -> Open<'_> {
        let Burst { map, windows, scratch, chain_count, segment_count } = self;
        let Room { chains, segments } = &mut **scratch;
        Open {
            map,
            windows,
            chain: chains.get_mut(*chain_count),
            segments: segments.get_mut(*segment_count..).unwrap_or_default().iter_mut(),
            chain_count,
            segment_count,
            readable: 0,
            writable: 0,
        }
    }
}

/// How it went with a chain of one descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Put {
    /// It is in the burst.
    Done,
    /// Its buffer does not lie in one region.
    Elsewhere,
    /// No room.
    Full,
}

impl Single {
    /// The chain over the one segment at `first`.
    #[inline(always)]
    fn write_at(&self, first: u32) -> Chain {
        let Single { id, len, write, .. } = *self;
        let writable = u16::from(write);
        // All bits or none.
        let writable_bytes = len & u32::from(writable).wrapping_neg();
        Chain {
            id,
            slots: 1,
            first,
            readable: writable ^ 1,
            writable,
            readable_bytes: len ^ writable_bytes,
            writable_bytes,
        }
    }
}

/// A chain of any number of descriptors that is being put behind those of a burst; part of it once it is finished.
pub(crate) struct Open<'burst> {
    map: &'burst GuestMap,
    windows: &'burst mut Windows,
    /// Where it goes; none if there is no room.
    chain: Option<&'burst mut MaybeUninit<Chain>>,
    /// Room for its segments, behind those that were put.
    segments: std::slice::IterMut<'burst, MaybeUninit<Segment>>,
    chain_count: &'burst mut usize,
    segment_count: &'burst mut usize,
    /// Segments put.
    readable: u16,
    writable: u16,
}

impl<'burst> Open<'burst> {
    /// True if the burst has no other: what does not fit now never will.
    #[inline(always)]
    pub(crate) fn is_alone(&self) -> bool {
        *self.chain_count == 0
    }

    /// True if a buffer that the device writes was put.
    #[inline(always)]
    pub(crate) fn has_writable(&self) -> bool {
        self.writable > 0
    }

    /// Puts a buffer, mostly as one segment. False: there is no room.
    ///
    /// # Errors
    /// No region covers it.
    #[inline(always)]
    pub(crate) fn put(&mut self, gpa: u64, len: u32, write: bool) -> Result<bool, Miss> {
        match self.windows.find(gpa, len) {
            Some(segment) => Ok(self.put_segment(segment, write)),
            None => self.put_elsewhere(gpa, len, write),
        }
    }

    /// Puts a buffer that lies elsewhere than the last ones, or crosses adjoining regions.
    #[inline(never)]
    fn put_elsewhere(&mut self, mut gpa: u64, len: u32, write: bool) -> Result<bool, Miss> {
        if let Some(segment) = self.windows.look_up(self.map, gpa, len) {
            return Ok(self.put_segment(segment, write));
        }
        let mut left = len;
        loop {
            // A buffer of length 0 must have an address that exists, too.
            let slice = self.lookup(gpa, left)?;
            if !self.put_segment(Segment::new(slice, gpa), write) {
                return Ok(false);
            }
            if slice.len() >= left as usize {
                return Ok(true);
            }
            left -= slice.len() as u32;
            gpa = gpa.checked_add(slice.len() as u64).ok_or(Miss { address: gpa, len: left.into() })?;
        }
    }

    #[inline(always)]
    fn put_segment(&mut self, segment: Segment, write: bool) -> bool {
        let Some(place) = self.segments.next() else { return false };
        place.write(segment);
        match write {
            true => self.writable += 1,
            false => self.readable += 1,
        }
        true
    }

    /// What there is in one piece of memory that is no part of the chain: a table of descriptors.
    #[inline(always)]
    pub(crate) fn lookup(&mut self, gpa: u64, len: u32) -> Result<HostSlice<'burst>, Miss> {
        self.map.lookup(&mut self.windows.hint, gpa, len)
    }

    /// Makes it part of the burst. False: there is no room.
    #[inline(always)]
    pub(crate) fn finish(self, id: u16, slots: u16, readable_bytes: u32, writable_bytes: u32) -> bool {
        let Open { chain, chain_count, segment_count, readable, writable, .. } = self;
        let Some(place) = chain else { return false };
        let first = *segment_count as u32;
        let chain = Chain { id, slots, first, readable, writable, readable_bytes, writable_bytes };
        place.write(chain);
        *chain_count += 1;
        *segment_count += chain.segments();
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

impl fmt::Debug for Burst {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Burst")
            .field("chains", &self.chains())
            .field("segments", &self.segment_count)
            .finish_non_exhaustive()
    }
}

impl Segment {
    /// Of bytes that were found at `gpa`, 2^32 - 1 at most.
    #[inline(always)]
    fn new(slice: HostSlice<'_>, gpa: u64) -> Segment {
        Segment { start: slice.as_ptr(), gpa, len: slice.len() as u32 }
    }

    /// # Safety
    /// The map that it was found in is held for as long as `'map`.
    #[inline(always)]
    unsafe fn slice<'map>(&self) -> HostSlice<'map> {
        // SAFETY: it was made of a slice of the map that the caller holds.
        unsafe { HostSlice::new(self.start, self.len as usize) }
    }
}
