//! Bytes of a chain, one after the other, whatever pieces they are in.

use super::{Burst, Chain, Segment};
use crate::guest::HostSlice;

/// Bytes of a chain: those behind the first `skip` of some of its segments. Borrowed from what holds the map that they lie in.
#[derive(Debug, Clone, Copy)]
pub struct Span<'held> {
    segments: &'held [Segment],
    skip: u64,
    len: u64,
}

/// A piece of a [`Span`] that lies in one region of the guest's memory.
#[derive(Debug, Clone, Copy)]
pub struct Piece<'held> {
    /// Where the guest has it.
    pub gpa: u64,
    /// Where we have it.
    pub slice: HostSlice<'held>,
}

impl Burst {
    /// What the device may read of a chain of this burst.
    #[inline]
    pub fn readable_span(&self, chain: &Chain) -> Span<'_> {
        let segments = self.segments(chain.first as usize, chain.readable.into());
        // SAFETY: the burst holds the map that its segments were found in, and is borrowed with them.
        unsafe { Span::new(segments, chain.readable_bytes.into()) }
    }

    /// What the device may write of a chain of this burst.
    #[inline]
    pub fn writable_span(&self, chain: &Chain) -> Span<'_> {
        let first = chain.first as usize + usize::from(chain.readable);
        let segments = self.segments(first, chain.writable.into());
        // SAFETY: as in `readable_span`.
        unsafe { Span::new(segments, chain.writable_bytes.into()) }
    }
}

impl<'held> Span<'held> {
    /// No bytes.
    pub const EMPTY: Span<'static> = Span { segments: &[], skip: 0, len: 0 };

    /// All `len` bytes of `segments`.
    ///
    /// # Safety
    /// Each of them lies in a map that is held for as long as they are borrowed.
    #[inline]
    pub(super) unsafe fn new(segments: &'held [Segment], len: u64) -> Span<'held> {
        Span { segments, skip: 0, len }
    }

    /// Bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(self) -> u64 {
        self.len
    }

    /// The `len` bytes from `at` on, or what there is of them.
    #[inline]
    #[must_use]
    pub fn part(self, at: u64, len: u64) -> Span<'held> {
        let at = at.min(self.len);
        let (mut segments, mut skip) = (self.segments, self.skip + at);
        while let [first, rest @ ..] = segments
            && skip >= u64::from(first.len)
        {
            skip -= u64::from(first.len);
            segments = rest;
        }
        Span { segments, skip, len: len.min(self.len - at) }
    }

    /// Its pieces, in order, none of them empty.
    #[inline]
    pub fn pieces(self) -> impl Iterator<Item = Piece<'held>> + Clone {
        let (mut skip, mut left) = (self.skip, self.len);
        self.segments.iter().filter_map(move |segment| {
            let at = skip.min(segment.len.into());
            skip -= at;
            let len = left.min(u64::from(segment.len) - at);
            left -= len;
            // SAFETY: whoever made the span promised that the map is held for as long as the segments are borrowed.
            let slice = unsafe { segment.slice() }.part(at as usize, len as usize);
            (len > 0).then_some(Piece { gpa: segment.gpa + at, slice })
        })
    }

    /// Copies the first bytes out, as many as there are and fit; returns how many.
    #[inline]
    pub fn read(self, into: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.part(0, into.len() as u64).pieces() {
            done += piece.slice.read(into.get_mut(done..).unwrap_or_default());
        }
        done
    }

    /// Copies bytes in, as many as fit; returns how many.
    #[inline]
    pub fn write(self, from: &[u8]) -> usize {
        let mut done = 0;
        for piece in self.part(0, from.len() as u64).pieces() {
            done += piece.slice.write(from.get(done..).unwrap_or_default());
        }
        done
    }
}
