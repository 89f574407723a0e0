//! Copies from, to and between memory that a peer writes at the same time.
//!
//! One primitive that the compiler cannot reason about (it must neither re-read a source nor assume that a
//! destination keeps what was written); nowhere else does shared memory get touched but through [`crate::words`].

use crate::guest::HostSlice;

impl HostSlice<'_> {
    /// Bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(self) -> usize {
        self.len
    }
    /// The part from `at` on, at most `len` bytes; empty if `at` is beyond the end.
    #[inline]
    #[must_use]
    pub fn part(self, at: usize, len: usize) -> Self {
        let _ = (at, len);
        unimplemented!("skeleton")
    }
    /// Copies the first `into.len()` bytes out, or as many as there are; returns how many.
    #[inline]
    pub fn read(self, into: &mut [u8]) -> usize {
        let _ = into;
        unimplemented!("skeleton")
    }
    /// Copies bytes in, as many as fit; returns how many.
    #[inline]
    pub fn write(self, from: &[u8]) -> usize {
        let _ = from;
        unimplemented!("skeleton")
    }
    /// Copies from another slice, as many as both have; returns how many. The two may overlap only if a guest made
    /// them so; the bytes are then unspecified.
    #[inline]
    pub fn copy_from(self, from: HostSlice<'_>) -> usize {
        let _ = from;
        unimplemented!("skeleton")
    }
    /// Asks for the line of byte `at` to be read into the cache.
    #[inline]
    pub fn prefetch_read(self, at: usize) {
        let _ = at;
    }
    /// Asks for the line of byte `at` to be owned by this core's cache.
    #[inline]
    pub fn prefetch_write(self, at: usize) {
        let _ = at;
    }
}
