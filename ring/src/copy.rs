//! Copies from, to and between memory that a peer writes at the same time.
//!
//! One primitive that the compiler cannot reason about (it must neither re-read a source nor assume that a
//! destination keeps what was written); nowhere else does shared memory get touched but through [`crate::words`].

use std::arch::asm;
use std::marker::PhantomData;

use crate::guest::HostSlice;

impl<'map> HostSlice<'map> {
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
        let at = at.min(self.len);
        HostSlice { start: self.start.wrapping_add(at), len: len.min(self.len - at), map: PhantomData }
    }
    /// Copies the first `into.len()` bytes out, or as many as there are; returns how many.
    #[inline]
    pub fn read(self, into: &mut [u8]) -> usize {
        let len = into.len().min(self.len);
        // SAFETY: `len` bytes can be written at `into` and read at `start`, which its map keeps mapped. The two are
        // disjoint: `into` is borrowed exclusively and guest memory is never borrowed.
        unsafe { copy(into.as_mut_ptr(), self.start, len) };
        len
    }
    /// Copies bytes in, as many as fit; returns how many.
    #[inline]
    pub fn write(self, from: &[u8]) -> usize {
        let len = from.len().min(self.len);
        // SAFETY: `len` bytes can be read at `from` and written at `start`, which its map keeps mapped. No Rust
        // reference to guest memory exists, so that nothing borrowed is changed.
        unsafe { copy(self.start, from.as_ptr(), len) };
        len
    }
    /// Copies from another slice, as many as both have; returns how many. The two may overlap only if a guest made
    /// them so; the bytes are then unspecified.
    #[inline]
    pub fn copy_from(self, from: HostSlice<'_>) -> usize {
        let len = from.len.min(self.len);
        // SAFETY: `len` bytes can be read at one and written at the other; both maps keep them mapped.
        unsafe { copy(self.start, from.start, len) };
        len
    }
    /// Asks for the line of byte `at` to be read into the cache.
    #[inline]
    pub fn prefetch_read(self, at: usize) {
        prefetch_read(self.start.wrapping_add(at));
    }
    /// Asks for the line of byte `at` to be owned by this core's cache.
    #[inline]
    pub fn prefetch_write(self, at: usize) {
        prefetch_write(self.start.wrapping_add(at));
    }
}

/// Asks for a line to be read into the cache. Any address will do: a prefetch never faults.
#[inline(always)]
pub(crate) fn prefetch_read(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint without architectural effect, whatever the address.
    unsafe {
        asm!("prefetcht0 byte ptr [{}]", in(reg) line, options(readonly, nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint without architectural effect, whatever the address.
    unsafe {
        asm!("prfm pldl1keep, [{}]", in(reg) line, options(readonly, nostack, preserves_flags));
    }
}

/// Asks for a line to be owned by this core's cache. Any address will do: a prefetch never faults. (x86-64 processors
/// without PREFETCHW take it as a no-op.)
#[inline(always)]
pub(crate) fn prefetch_write(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: a hint without architectural effect, whatever the address.
    unsafe {
        asm!("prefetchw byte ptr [{}]", in(reg) line, options(readonly, nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: a hint without architectural effect, whatever the address.
    unsafe {
        asm!("prfm pstl1keep, [{}]", in(reg) line, options(readonly, nostack, preserves_flags));
    }
}

/// Copies `len` bytes. Each byte of the source is read at least once and each of the destination written at least
/// once, in no order; the compiler knows neither.
///
/// # Safety
/// `len` bytes at `from` can be read and `len` at `to` written, whoever else reads or writes them; neither is covered
/// by a Rust reference that forbids it.
#[inline]
pub(crate) unsafe fn copy(to: *mut u8, from: *const u8, len: usize) {
    #[cfg(target_arch = "x86_64")]
    // SAFETY: the caller's promise; the direction flag is clear by the ABI.
    unsafe {
        asm!("rep movsb", inout("rcx") len => _, inout("rdi") to => _, inout("rsi") from => _,
             options(nostack, preserves_flags));
    }
    #[cfg(target_arch = "aarch64")]
    // SAFETY: the caller's promise.
    unsafe {
        for at in 0..len {
            to.add(at).write_volatile(from.add(at).read_volatile());
        }
    }
}
