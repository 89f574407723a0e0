//! Access to the words of a ring: one implementation on raw shared memory, one on loom's types.
//!
//! A ring area is never a Rust reference, since the peer writes it at the same time: ring code sees it through
//! [`Words`], one relaxed access a word, and orders these accesses by fences of its own. Nothing here checks what the
//! words mean. Owned by one ring, used from one thread at a time; offsets are in bytes.
//!
//! One place is accessed by several widths (a packed descriptor's flags alone, and with length and id), which Rust's memory
//! model does not define for accesses that race. Those that race are of one width, since either side knows what the other
//! stores there: the driver makes a batch available by 16 bits of flags, and by these the device looks for it; the device
//! makes a batch used by 64 bits of length, id and flags, and by these the driver looks for it. Every other access to the
//! same bytes is ordered behind one of the two, by the fences that pair there. A guest's own code is not Rust's; for it
//! counts that an aligned 64-bit store is one store on x86-64 and aarch64.

use crate::guest::HostSlice;
use crate::sync::{Ordering, fence};

/// One area of a ring (descriptors, driver area, device area) as little-endian words.
///
/// Every access is a single relaxed atomic (or volatile) access; ordering comes from explicit fences in the ring
/// code. Offsets are in bytes from the area's start, aligned to the word's size and inside the area: ring code
/// computes them from checked indexes only.
pub trait Words: Send {
    /// Bytes in the area. Rings refuse areas that are too small for them when they are made.
    fn size(&self) -> usize;
    /// Reads 16 bits.
    fn read_u16(&self, at: usize) -> u16;
    /// Reads 32 bits.
    fn read_u32(&self, at: usize) -> u32;
    /// Reads 64 bits.
    fn read_u64(&self, at: usize) -> u64;
    /// Writes 16 bits.
    fn write_u16(&self, at: usize, value: u16);
    /// Writes 32 bits.
    fn write_u32(&self, at: usize, value: u32);
    /// Writes 64 bits.
    fn write_u64(&self, at: usize, value: u64);
    /// Writes 64 bits, whole or not at all, after all that was written before (Release).
    #[inline]
    fn write_release_u64(&self, at: usize, value: u64) {
        fence(Ordering::Release);
        self.write_u64(at, value);
    }
    /// Reads two adjoining 32-bit words that need not be aligned to 64 bits together (an element of a used ring), the
    /// lower one in the low half.
    #[inline]
    fn read_pair(&self, at: usize) -> u64 {
        u64::from(self.read_u32(at)) | u64::from(self.read_u32(at + 4)) << 32
    }
    /// Writes a run of such pairs from `at` on, 8 bytes each.
    #[inline]
    fn write_pairs(&self, at: usize, pairs: &[u64]) {
        for (index, &pair) in pairs.iter().enumerate() {
            self.write_u32(at + 8 * index, pair as u32);
            self.write_u32(at + 8 * index + 4, (pair >> 32) as u32);
        }
    }
    /// Asks for the line at `at` to be read into the cache.
    #[inline]
    fn prefetch_read(&self, at: usize) {
        let _ = at;
    }
    /// Asks for the line at `at` to be owned by this core's cache.
    #[inline]
    fn prefetch_write(&self, at: usize) {
        let _ = at;
    }
}

/// A ring area in shared memory.
///
/// Bounds are checked once, when a ring is made over it ([`Words::size`]); single accesses check them in debug builds
/// only. So nobody outside of this crate can have one: its rings alone are made of it, and none hands it out.
///
/// ```compile_fail,E0624
/// let mut area = [0u64; 2];
/// let words = unsafe { ringway_ring::words::RawWords::new(area.as_mut_ptr().cast(), 16) };
/// ```
#[derive(Debug)]
pub struct RawWords {
    start: *mut u8,
    /// Bytes.
    len: usize,
}

// SAFETY: the memory belongs to no thread; whoever made the value answers for its validity wherever it goes.
unsafe impl Send for RawWords {}

impl RawWords {
    /// The `len` bytes from `start` on.
    ///
    /// # Safety
    ///
    /// - Validity: the bytes stay mapped, readable and writable, for as long as the value is used.
    /// - Alignment: `start` is aligned as its offsets assume (16 for descriptors, 4 for a used ring, 2 for an available
    ///   ring), so that each access is aligned to its width.
    /// - Bounds: whoever holds the value passes only offsets of words that lie in the area.
    /// - Aliasing and concurrency: no Rust reference to the bytes exists; others may read and write them at any time,
    ///   by accesses as relaxed as these.
    pub(crate) unsafe fn new(start: *mut u8, len: usize) -> RawWords {
        RawWords { start, len }
    }

    #[inline(always)]
    fn at<T>(&self, at: usize) -> *mut T {
        debug_assert!(
            at.checked_add(size_of::<T>()).is_some_and(|end| end <= self.len),
            "{at} in {}",
            self.len
        );
        let word: *mut T = self.start.wrapping_add(at).cast();
        debug_assert!(word.is_aligned());
        word
    }
}

macro_rules! relaxed {
    ($read:ident, $write:ident, $int:ty, $atomic:ident) => {
        #[inline(always)]
        fn $read(&self, at: usize) -> $int {
            // SAFETY: valid, aligned and free of references by the contract of `RawWords::new`; in bounds since `at`
            // is (same contract).
            let word = unsafe { std::sync::atomic::$atomic::from_ptr(self.at(at)) };
            <$int>::from_le(word.load(std::sync::atomic::Ordering::Relaxed))
        }
        #[inline(always)]
        fn $write(&self, at: usize, value: $int) {
            // SAFETY: as for the read.
            let word = unsafe { std::sync::atomic::$atomic::from_ptr(self.at(at)) };
            word.store(value.to_le(), std::sync::atomic::Ordering::Relaxed);
        }
    };
}

impl Words for RawWords {
    relaxed!(read_u16, write_u16, u16, AtomicU16);
    relaxed!(read_u32, write_u32, u32, AtomicU32);
    relaxed!(read_u64, write_u64, u64, AtomicU64);

    #[inline(always)]
    fn size(&self) -> usize {
        self.len
    }

    #[inline(always)]
    fn read_pair(&self, at: usize) -> u64 {
        // SAFETY: in bounds and valid by the contract of `RawWords::new`; `Pair` asks for the alignment of 4 that used
        // elements have. Volatile: the peer may write meanwhile, which makes the value wrong, not the access.
        u64::from_le(unsafe { self.at::<Pair>(at).read_volatile() }.0)
    }

    #[inline(always)]
    fn write_pairs(&self, at: usize, pairs: &[u64]) {
        for (index, &pair) in pairs.iter().enumerate() {
            // SAFETY: as for `read_pair`.
            unsafe { self.at::<Pair>(at + 8 * index).write_volatile(Pair(pair.to_le())) };
        }
    }

    #[inline(always)]
    fn prefetch_read(&self, at: usize) {
        prefetch::<false>(self.start.wrapping_add(at));
    }

    #[inline(always)]
    fn prefetch_write(&self, at: usize) {
        prefetch::<true>(self.start.wrapping_add(at));
    }
}

/// 64 bits aligned as 32: one machine access where the machine can.
#[derive(Clone, Copy)]
#[repr(C, packed(4))]
struct Pair(u64);

/// Reads the descriptor (16 bytes) at byte `at` of a table in guest memory, each half once; None beyond its end.
/// Guests may place tables at any alignment.
#[inline]
pub(crate) fn read_descriptor(table: HostSlice<'_>, at: usize) -> Option<(u64, u64)> {
    if at.checked_add(16)? > table.len() {
        return None;
    }
    let start = table.as_ptr().wrapping_add(at);
    if start.cast::<u64>().is_aligned() {
        // SAFETY: aligned (checked above), inside `table` (checked above), which is valid while its map is held; no
        // reference to guest memory exists, and other writers are tolerated by atomics.
        let half = |at| unsafe { std::sync::atomic::AtomicU64::from_ptr(start.wrapping_add(at).cast()) };
        let relaxed = std::sync::atomic::Ordering::Relaxed;
        Some((u64::from_le(half(0).load(relaxed)), u64::from_le(half(8).load(relaxed))))
    } else {
        let mut bytes = [0u8; 16];
        table.part(at, 16).read(&mut bytes);
        let value = u128::from_le_bytes(bytes);
        Some((value as u64, (value >> 64) as u64))
    }
}

#[inline(always)]
fn prefetch<const WRITE: bool>(line: *const u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_ET0, _MM_HINT_T0, _mm_prefetch};
        // SAFETY: a prefetch is a hint: it never faults, whatever the address, and changes no memory.
        unsafe {
            if WRITE {
                _mm_prefetch::<_MM_HINT_ET0>(line.cast());
            } else {
                _mm_prefetch::<_MM_HINT_T0>(line.cast());
            }
        }
    }
    #[cfg(target_arch = "aarch64")]
    {
        // SAFETY: as above.
        unsafe {
            if WRITE {
                std::arch::asm!("prfm pstl1keep, [{}]", in(reg) line, options(nostack, readonly, preserves_flags));
            } else {
                std::arch::asm!("prfm pldl1keep, [{}]", in(reg) line, options(nostack, readonly, preserves_flags));
            }
        }
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    let _ = line;
}

/// A ring area in loom's memory: 16-bit words, wider accesses composed of them. Clones share the words.
#[cfg(loom)]
#[derive(Debug, Clone)]
pub struct LoomWords(std::sync::Arc<Vec<crate::sync::AtomicU16>>);

#[cfg(loom)]
impl LoomWords {
    /// `len` bytes of zeros; inside a loom model only.
    pub fn new(len: usize) -> LoomWords {
        LoomWords(std::sync::Arc::new((0..len.div_ceil(2)).map(|_| crate::sync::AtomicU16::new(0)).collect()))
    }
}

#[cfg(loom)]
impl Words for LoomWords {
    fn size(&self) -> usize {
        2 * self.0.len()
    }
    fn read_u16(&self, at: usize) -> u16 {
        self.0[at / 2].load(crate::sync::Ordering::Relaxed)
    }
    fn read_u32(&self, at: usize) -> u32 {
        u32::from(self.read_u16(at)) | u32::from(self.read_u16(at + 2)) << 16
    }
    fn read_u64(&self, at: usize) -> u64 {
        u64::from(self.read_u32(at)) | u64::from(self.read_u32(at + 4)) << 32
    }
    fn write_u16(&self, at: usize, value: u16) {
        self.0[at / 2].store(value, crate::sync::Ordering::Relaxed);
    }
    fn write_u32(&self, at: usize, value: u32) {
        self.write_u16(at, value as u16);
        self.write_u16(at + 2, (value >> 16) as u16);
    }
    fn write_u64(&self, at: usize, value: u64) {
        self.write_u32(at, value as u32);
        self.write_u32(at + 4, (value >> 32) as u32);
    }
    /// Whole for whoever looks at the upper 16 bits first.
    fn write_release_u64(&self, at: usize, value: u64) {
        self.write_u32(at, value as u32);
        self.write_u16(at + 4, (value >> 32) as u16);
        fence(Ordering::Release);
        self.write_u16(at + 6, (value >> 48) as u16);
    }
}
