//! A range of this process's addresses that shows a part of a shared file: placed so that huge pages fit, watched for
//! truncation, unmapped when its last holder drops it. Knows nothing of guests.

use std::io;
use std::os::fd::BorrowedFd;

use memmap2::{MmapOptions, MmapRaw};
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::sigbus::Watch;

/// Bytes of a file, mapped shared, readable and writable.
#[derive(Debug)]
pub(crate) struct Mapping {
    /// First byte that was asked for; the mapped range may begin up to a page before it.
    start: *mut u8,
    /// Bytes asked for.
    len: usize,
    /// Size of the pages of the file system, in bytes.
    page_bytes: usize,
    /// Contains faults in the range. Before `range`, so that it is dropped first: no fault is contained in a range
    /// that is being unmapped.
    watch: Watch,
    /// Owns the address range.
    range: Range,
}

/// Who unmaps: `MmapRaw` where the kernel chose a good place, this module where it had to choose itself.
#[derive(Debug)]
enum Range {
    Raw(MmapRaw),
    Placed { start: *mut u8, len: usize },
}

// SAFETY: a mapping is an address range of the process, bound to no thread; what lies in it is only ever accessed by
// means that tolerate other writers (see `crate::copy` and `crate::words`). Its own fields never change.
unsafe impl Send for Mapping {}
// SAFETY: as above: all methods on a shared reference only read fields.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps `len` bytes at `offset` of a file whose pages have `page_bytes` (a power of two). The caller has checked
    /// that the range lies in the file and does not wrap.
    pub(crate) fn new(
        file: BorrowedFd<'_>,
        offset: u64,
        len: usize,
        page_bytes: usize,
    ) -> io::Result<Mapping> {
        let too_large = || io::Error::from(io::ErrorKind::OutOfMemory);
        let lead = offset as usize & (page_bytes - 1);
        let mapped = lead
            .checked_add(len)
            .and_then(|n| n.checked_next_multiple_of(page_bytes))
            .ok_or_else(too_large)?;
        let range = Range::new(file, offset - lead as u64, mapped)?;
        let (base, mapped) = (range.start(), range.len());
        // SAFETY: the range was mapped just now and is unmapped by nobody else; the advice changes what a core dump
        // contains, not the memory. A kernel that refuses it only makes dumps larger.
        let _ = unsafe { rustix::mm::madvise(base.cast(), mapped, Advice::LinuxDontDump) };
        // SAFETY: `lead + len` is at most the length of the range.
        let start = unsafe { base.add(lead) };
        // SAFETY: the range is a shared mapping of whole pages of the file, which this value owns, and the watch is
        // dropped before it; what lies in it is only ever accessed by means that expect any content.
        let watch = unsafe { Watch::new(base, mapped, page_bytes)? };
        Ok(Mapping { start, len, page_bytes, watch, range })
    }

    /// Has the whole range show another file from its start on, from one access to the next: the kernel holds up those
    /// that come in between. The caller has checked that the file is long enough.
    pub(crate) fn show(&self, file: BorrowedFd<'_>) -> io::Result<()> {
        let (start, len) = self.pages();
        // SAFETY: MAP_FIXED replaces the range that this value owns and nothing else, by a mapping of the same length,
        // readable and writable as before. Whoever accesses it expects any content, by accesses that tolerate other writers.
        unsafe {
            rustix::mm::mmap(
                start.cast(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED,
                file,
                0,
            )?;
        }
        Ok(())
    }

    /// First byte.
    #[inline]
    pub(crate) fn start(&self) -> *mut u8 {
        self.start
    }

    /// Bytes.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// True once a fault in it was contained.
    #[inline]
    pub(crate) fn is_poisoned(&self) -> bool {
        self.watch.is_poisoned()
    }

    /// The mapped range: that of whole pages around the bytes asked for.
    pub(crate) fn pages(&self) -> (*mut u8, usize) {
        (self.range.start(), self.range.len())
    }

    /// Bytes in a page of the file.
    pub(crate) fn page_bytes(&self) -> usize {
        self.page_bytes
    }
}

impl Range {
    /// Maps, at an address that is congruent to the offset modulo [`HUGE_BYTES`] if a huge page fits into it.
    fn new(file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Range> {
        let map = MmapOptions::new().offset(offset).len(len).map_raw(&file)?;
        let misplaced = (map.as_mut_ptr().addr() ^ offset as usize) & (HUGE_BYTES - 1) != 0;
        if !misplaced || len < HUGE_BYTES {
            Ok(Range::Raw(map))
        } else {
            drop(map);
            Range::place(file, offset, len)
        }
    }

    /// Reserves more addresses than needed, maps the file in the right place among them and returns the rest.
    fn place(file: BorrowedFd<'_>, offset: u64, len: usize) -> io::Result<Range> {
        let reserved = len.checked_add(HUGE_BYTES).ok_or(io::ErrorKind::OutOfMemory)?;
        // SAFETY: the kernel chooses free addresses; nothing that exists is touched.
        let base = unsafe {
            rustix::mm::mmap_anonymous(std::ptr::null_mut(), reserved, ProtFlags::empty(), MapFlags::PRIVATE)?
        };
        let lead = (offset as usize).wrapping_sub(base.addr()) & (HUGE_BYTES - 1);
        let start = base.cast::<u8>().wrapping_add(lead);
        // SAFETY: MAP_FIXED replaces `[start, start + len)`, which lies in the reservation made above (`lead` is below
        // HUGE_BYTES), owned by this function alone.
        let placed = unsafe {
            rustix::mm::mmap(
                start.cast(),
                len,
                ProtFlags::READ | ProtFlags::WRITE,
                MapFlags::SHARED | MapFlags::FIXED,
                file,
                offset,
            )
        };
        let tail = reserved - len - lead;
        // SAFETY: gives back the parts of the reservation before and after the file (all of it if the file could not
        // be mapped); they were never accessible and nothing points to them. Lengths are multiples of the base page:
        // `len`, `reserved` and `lead` are, since `offset` and `base` are.
        unsafe {
            if placed.is_err() {
                let _ = rustix::mm::munmap(base, reserved);
            } else {
                if lead > 0 {
                    let _ = rustix::mm::munmap(base, lead);
                }
                if tail > 0 {
                    let _ = rustix::mm::munmap(start.wrapping_add(len).cast(), tail);
                }
            }
        }
        placed?;
        Ok(Range::Placed { start, len })
    }

    fn start(&self) -> *mut u8 {
        match self {
            Range::Raw(map) => map.as_mut_ptr(),
            Range::Placed { start, .. } => *start,
        }
    }

    fn len(&self) -> usize {
        match self {
            Range::Raw(map) => map.len(),
            Range::Placed { len, .. } => *len,
        }
    }
}

impl Drop for Range {
    fn drop(&mut self) {
        if let Range::Placed { start, len } = *self {
            // SAFETY: the range was mapped by `place` and belongs to this value alone; every pointer into it is held
            // by something that borrows or holds the mapping.
            let _ = unsafe { rustix::mm::munmap(start.cast(), len) };
        }
    }
}

/// The huge page that mappings of ordinary files are placed for: that of x86-64, and of aarch64 with 4 KiB pages.
pub(crate) const HUGE_BYTES: usize = 2 << 20;
