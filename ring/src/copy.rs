//! Copies from, to and between memory that a peer writes at the same time.
//!
//! One primitive that the compiler cannot reason about (it must neither re-read a source nor assume that a
//! destination keeps what was written); nowhere else does shared memory get touched but through [`crate::words`].
//! The primitive is inline assembly, one file per architecture. It may read a byte twice and write it twice, so a word
//! that a peer changes meanwhile can come out as old and new mixed: what is copied out is a claim, to be checked in the
//! copy. Not for words whose order matters: those are [`crate::words`]'.
//!
//! Any thread, on slices that it holds. Budget of every method: no allocation, no lock, no system call, no panic.

use crate::guest::HostSlice;

#[cfg(target_arch = "aarch64")]
#[path = "copy/aarch64.rs"]
mod machine;
#[cfg(target_arch = "x86_64")]
#[path = "copy/x86_64.rs"]
mod machine;

impl<'map> HostSlice<'map> {
    /// Copies the first `into.len()` bytes out, or as many as there are; returns how many.
    #[inline]
    pub fn read(self, into: &mut [u8]) -> usize {
        let len = into.len().min(self.len());
        // SAFETY: `len` bytes can be written at `into` and read at `start`, which its map keeps mapped. The two are
        // disjoint: `into` is borrowed exclusively and guest memory is never borrowed.
        unsafe { copy(into.as_mut_ptr(), self.as_ptr(), len) };
        len
    }
    /// Copies bytes in, as many as fit; returns how many.
    #[inline]
    pub fn write(self, from: &[u8]) -> usize {
        let len = from.len().min(self.len());
        // SAFETY: `len` bytes can be read at `from` and written at `start`, which its map keeps mapped. No Rust
        // reference to guest memory exists, so that nothing borrowed is changed.
        unsafe { copy(self.as_ptr(), from.as_ptr(), len) };
        len
    }
    /// The 8 bytes from `at` on as a little-endian number; 0 if not all of them are inside.
    ///
    /// Heads of frames are read and written so, with a single instruction each. Bytes that are stored in parts and then
    /// loaded as a whole have to wait until *all* stores before them are done, those to a peer's lines too.
    #[inline(always)]
    pub fn word(self, at: usize) -> u64 {
        if !self.holds_word(at) {
            return 0;
        }
        // SAFETY: 8 bytes can be read there; the map keeps them mapped.
        u64::from_le(unsafe { machine::load_word(self.as_ptr().wrapping_add(at)) })
    }
    /// Writes a little-endian number of 8 bytes from `at` on; nothing if not all of them are inside.
    #[inline(always)]
    pub fn put_word(self, at: usize, word: u64) {
        if self.holds_word(at) {
            // SAFETY: 8 bytes can be written there; the map keeps them mapped, and no Rust reference to them exists.
            unsafe { machine::store_word(self.as_ptr().wrapping_add(at), word.to_le()) }
        }
    }
    /// The same, but a word that is there already is left alone: its line then stays in the peer's cache as well.
    #[inline(always)]
    pub fn keep_word(self, at: usize, word: u64) {
        if self.word(at) != word {
            self.put_word(at, word);
        }
    }
    /// Makes the first lines of a buffer this core's own, for a header of `at` bytes and `len` bytes behind it that will be copied
    /// there: by a store to each of one or two, whose value does not matter. What stood there is lost, whether or not something is copied
    /// there then: for buffers that are the device's to write. A line on which nothing but the header is, which mostly
    /// [is there already](HostSlice::keep_word), is asked for to be read.
    ///
    /// A store waits for its line while what follows goes on, and many stores one after another wait together; those of a copy are among
    /// others, of which the processor holds so few that hardly two copies' lines are waited for at once. To ask by PREFETCHW for a line
    /// that the peer has read does not help: some processors take a line that is here to be read for one that is here.
    #[inline]
    pub fn own_behind(self, at: usize, len: usize) {
        let start = self.as_ptr();
        let next = 64 - start.addr() % 64;
        self.put_word(at, 0);
        if at >= next {
            prefetch_read(start);
        } else if next - at < len {
            self.put_word(next, 0);
        }
    }
    #[inline(always)]
    fn holds_word(self, at: usize) -> bool {
        at <= self.len() && self.len() - at >= size_of::<u64>()
    }
    /// Copies from another slice, as many as both have; returns how many. The two may overlap only if a guest made
    /// them so; the bytes are then unspecified.
    #[inline]
    pub fn copy_from(self, from: HostSlice<'_>) -> usize {
        let len = from.len().min(self.len());
        // SAFETY: `len` bytes can be read at one and written at the other; both maps keep them mapped.
        unsafe { copy(self.as_ptr(), from.as_ptr(), len) };
        len
    }
    /// Asks for the line of byte `at` to be read into the cache.
    #[inline]
    pub fn prefetch_read(self, at: usize) {
        prefetch_read(self.as_ptr().wrapping_add(at));
    }
    /// Asks for the line of byte `at` to be owned by this core's cache.
    #[inline]
    pub fn prefetch_write(self, at: usize) {
        prefetch_write(self.as_ptr().wrapping_add(at));
    }
}

/// Asks for a line to be owned by this core's cache. Any address will do: a prefetch never faults.
#[inline(always)]
pub(crate) fn prefetch_write(line: *const u8) {
    machine::prefetch_write(line);
}

/// Asks for a line to be read into the cache. Any address will do: a prefetch never faults.
#[inline(always)]
pub(crate) fn prefetch_read(line: *const u8) {
    machine::prefetch_read(line);
}

/// Copies `len` bytes. Each byte of the source is read at least once and each of the destination written at least
/// once, in no order; the compiler knows neither.
///
/// # Safety
/// `len` bytes at `from` can be read and `len` at `to` written, whoever else reads or writes them; neither is covered
/// by a Rust reference that forbids it.
#[inline(always)]
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    // SAFETY: the caller's promise.
    unsafe { machine::copy(to, from, len) }
}

#[cfg(test)]
mod tests;
