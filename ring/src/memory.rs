//! Memory of our own: a memfd on the largest pages there are, shareable with a back-end or front-end.
//!
//! Tried in this order: 1 GiB hugetlb pages, 2 MiB hugetlb pages, transparent huge pages (`MADV_COLLAPSE`), ordinary
//! pages. What it reports is what it got, read back from the kernel, not what it asked for. Every page is there when
//! the call returns, whatever the kind: running out of memory is an error of the call, never a fault later. That takes
//! time in proportion to the size: for control threads and sessions.
//!
//! Not an allocator: one piece, given back as a whole. Its bytes are reached through a [`GuestMap`], like a guest's.

use std::fmt;
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FallocateFlags, MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::Advice;

use crate::guest::{GuestMap, MapError, Region};
use crate::mapping::{HUGE_BYTES, Mapping};

/// The pages that memory really stands on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageKind {
    /// hugetlbfs, 1 GiB.
    Hugetlb1G,
    /// hugetlbfs, 2 MiB.
    Hugetlb2M,
    /// Transparent huge pages, 2 MiB, over at least the part that was asked for.
    Thp,
    /// The base page size, 4 KiB on x86-64.
    Base,
}

impl PageKind {
    /// Bytes in a page.
    pub fn bytes(self) -> u64 {
        match self {
            PageKind::Hugetlb1G => 1 << 30,
            PageKind::Hugetlb2M | PageKind::Thp => HUGE_BYTES as u64,
            PageKind::Base => rustix::param::page_size() as u64,
        }
    }
}

impl fmt::Display for PageKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PageKind::Hugetlb1G => "hugetlb-1G",
            PageKind::Hugetlb2M => "hugetlb-2M",
            PageKind::Thp => "thp",
            PageKind::Base => "4k",
        })
    }
}

/// Memory of our own, mapped shared, zeroed, sealed against shrinking and growing.
#[derive(Debug)]
pub struct HostMemory {
    kind: PageKind,
    file: OwnedFd,
    mapping: Arc<Mapping>,
}

impl HostMemory {
    /// Allocates at least `size` bytes (rounded up to the page kind's size) on the best pages there are; 1 GiB pages
    /// only if they would be half used.
    ///
    /// # Errors
    /// `InvalidInput` for no bytes; those of the last attempt, on ordinary pages.
    pub fn allocate(name: &str, size: u64) -> io::Result<HostMemory> {
        let kinds = [PageKind::Hugetlb1G, PageKind::Hugetlb2M, PageKind::Thp];
        kinds
            .into_iter()
            .filter(|&kind| kind != PageKind::Hugetlb1G || size >= kind.bytes() / 2)
            .find_map(|kind| HostMemory::allocate_on(kind, name, size).ok())
            .map_or_else(|| HostMemory::allocate_on(PageKind::Base, name, size), Ok)
    }

    /// Allocates on this kind of pages or fails.
    ///
    /// # Errors
    /// `InvalidInput` for no bytes; `OutOfMemory` or `StorageFull` if there are not so many pages of the kind;
    /// `Unsupported` if the kernel does not make transparent huge pages of it all.
    pub fn allocate_on(kind: PageKind, name: &str, size: u64) -> io::Result<HostMemory> {
        let size = size.checked_next_multiple_of(kind.bytes()).ok_or(io::ErrorKind::InvalidInput)?;
        let len = usize::try_from(size).map_err(|_| io::ErrorKind::InvalidInput)?;
        if len == 0 {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "no memory asked for"));
        }
        let flags = match kind {
            PageKind::Hugetlb1G => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
            PageKind::Hugetlb2M => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
            PageKind::Thp | PageKind::Base => MemfdFlags::empty(),
        };
        let file = rustix::fs::memfd_create(name, flags | MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
        rustix::fs::ftruncate(&file, size)?;
        rustix::fs::fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let page_bytes = match kind {
            PageKind::Hugetlb1G | PageKind::Hugetlb2M => kind.bytes() as usize,
            PageKind::Thp | PageKind::Base => rustix::param::page_size(),
        };
        // Reserves hugetlb pages, or finds at once that there are not enough.
        let mapping = Mapping::new(file.as_fd(), 0, len, page_bytes)?;
        if kind == PageKind::Thp {
            // Before there are small pages to be copied into the huge ones.
            collapse(&mapping);
        }
        // Takes the pages now: a reservation does not hold against a cgroup's limit.
        populate(&mapping)?;
        rustix::io::retry_on_intr(|| rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, size))?;
        if kind == PageKind::Thp {
            require_huge(&mapping)?;
        }
        Ok(HostMemory { kind, file, mapping: Arc::new(mapping) })
    }

    /// The pages it stands on.
    pub fn kind(&self) -> PageKind {
        self.kind
    }
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.mapping.len() as u64
    }
    /// Address of the first byte in this process: what a vhost-user front-end names as `userspace_addr`.
    pub fn address(&self) -> u64 {
        self.mapping.start().addr() as u64
    }
    /// The file behind it, to be passed to a peer.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
    /// All of it as a map of one region at `gpa`, whose front-end address is [`HostMemory::address`]: how the owner
    /// itself reads and writes it. It stays mapped for as long as either is held.
    ///
    /// # Errors
    /// `Wrap` if `gpa` is so high that it would wrap around; `Stat` without a free file descriptor.
    pub fn guest_map(&self, gpa: u64) -> Result<GuestMap, MapError> {
        GuestMap::new(vec![Region::of_mapping(Arc::clone(&self.mapping), self.file(), gpa)?])
    }
}

/// Has the kernel make huge pages of the mapping, whatever its policy for shared memory.
fn collapse(mapping: &Mapping) {
    let (start, len) = mapping.pages();
    // SAFETY: the range belongs to `mapping`, which is borrowed; either advice moves pages and changes no byte. What
    // they return says little (collapse fails as a whole if one page of many could not be had): see `require_huge`.
    unsafe {
        let _ = rustix::mm::madvise(start.cast(), len, Advice::LinuxHugepage);
        let _ = libc::madvise(start.cast(), len, MADV_COLLAPSE);
    }
}

/// Looks at what came of [`collapse`], which may be tried once more: some pages may have been busy.
fn require_huge(mapping: &Mapping) -> io::Result<()> {
    let (start, len) = mapping.pages();
    if pmd_mapped_bytes(start.addr(), len)? == len as u64 {
        return Ok(());
    }
    collapse(mapping);
    let huge = pmd_mapped_bytes(start.addr(), len)?;
    if huge == len as u64 {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::Unsupported,
        format!("the kernel made huge pages of {huge} of {len} bytes"),
    ))
}

/// Bytes of shared memory that are mapped by whole huge pages in `[start, start + len)`, as the kernel says.
fn pmd_mapped_bytes(start: usize, len: usize) -> io::Result<u64> {
    let smaps = fs::read_to_string("/proc/self/smaps")?;
    let mut inside = false;
    let mut sum = 0;
    for line in smaps.lines() {
        let first = line.split_ascii_whitespace().next().unwrap_or_default();
        if let Some((from, to)) = first.split_once('-')
            && let (Ok(from), Ok(to)) = (usize::from_str_radix(from, 16), usize::from_str_radix(to, 16))
        {
            inside = start <= from && to <= start + len;
        } else if inside && first == "ShmemPmdMapped:" {
            let kib = line.split_ascii_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok());
            sum += kib.unwrap_or(0) << 10;
        }
    }
    Ok(sum)
}

/// Makes every page present and enters it into this process's page table.
fn populate(mapping: &Mapping) -> io::Result<()> {
    let (start, len) = mapping.pages();
    // SAFETY: the range belongs to `mapping`, which is borrowed; the advice changes no byte.
    match unsafe { rustix::mm::madvise(start.cast(), len, Advice::LinuxPopulateWrite) } {
        // Before Linux 5.14: the pages are taken by fallocate, and entered at the first touch of each.
        Ok(()) | Err(Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Linux 6.1, `include/uapi/asm-generic/mman-common.h`: not every C library's headers have it.
const MADV_COLLAPSE: libc::c_int = 25;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::guest::{LastHit, RegionSpec};

    /// One number, in KiB, that the kernel has for the mapping that begins at `address`.
    fn smaps_kib(address: u64, key: &str) -> u64 {
        let smaps = fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = smaps.lines().skip_while(|line| !line.starts_with(&format!("{address:x}-")));
        let line = lines.find(|line| line.starts_with(&format!("{key}:"))).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// What the kernel says, by other means than the allocation looked at.
    fn kind_by_kernel(memory: &HostMemory) -> PageKind {
        match smaps_kib(memory.address(), "KernelPageSize") << 10 {
            0x4000_0000 => PageKind::Hugetlb1G,
            0x20_0000 => PageKind::Hugetlb2M,
            _ if smaps_kib(memory.address(), "ShmemPmdMapped") << 10 == memory.size() => PageKind::Thp,
            _ => PageKind::Base,
        }
    }

    #[test]
    fn allocation_reports_the_pages_that_the_kernel_reports() {
        for size in [1, 4096, 100_000, 2 << 20, 5 << 20, 16 << 20] {
            let memory = HostMemory::allocate("best", size).unwrap();
            assert_eq!(memory.kind(), kind_by_kernel(&memory), "{size} bytes");
            assert!(memory.size() >= size && memory.size().is_multiple_of(memory.kind().bytes()));
            assert_ne!(memory.kind(), PageKind::Hugetlb1G, "1 GiB for {size} bytes");
        }
    }

    #[test]
    fn each_kind_is_what_it_says_or_an_error() {
        for kind in [PageKind::Hugetlb1G, PageKind::Hugetlb2M, PageKind::Thp, PageKind::Base] {
            match HostMemory::allocate_on(kind, "each", 3 << 20) {
                Ok(memory) => {
                    assert_eq!((memory.kind(), kind_by_kernel(&memory)), (kind, kind));
                    assert_eq!(memory.size(), (3u64 << 20).next_multiple_of(kind.bytes()));
                    assert!(memory.address().is_multiple_of(kind.bytes()));
                }
                Err(error) => {
                    assert_ne!(kind, PageKind::Base, "{error}");
                    eprintln!("left out: {kind} pages: {error}");
                }
            }
        }
    }

    #[test]
    fn more_hugetlb_pages_than_there_are_is_an_error_of_the_call() {
        // 32 TiB: reserving them fails at once, whatever the machine.
        let size = 1 << 45;
        let error = HostMemory::allocate_on(PageKind::Hugetlb2M, "too many", size).unwrap_err();
        assert!(
            [io::ErrorKind::OutOfMemory, io::ErrorKind::StorageFull].contains(&error.kind())
                || error.raw_os_error() == Some(libc::ENOSYS),
            "{error}"
        );
    }

    #[test]
    fn mapping_that_cannot_have_huge_pages_is_not_taken_for_one() {
        let file = rustix::fs::memfd_create("small", MemfdFlags::CLOEXEC).unwrap();
        rustix::fs::ftruncate(&file, 1 << 20).unwrap();
        let mapping = Mapping::new(file.as_fd(), 0, 1 << 20, rustix::param::page_size()).unwrap();
        populate(&mapping).unwrap();
        let error = require_huge(&mapping).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert_eq!(error.to_string(), "the kernel made huge pages of 0 of 1048576 bytes");
    }

    #[test]
    fn no_bytes_or_too_many_are_refused() {
        for size in [0, u64::MAX, 1 << 63] {
            assert!(HostMemory::allocate("none", size).is_err(), "{size:#x}");
        }
    }

    #[test]
    fn memory_is_zeroed_present_and_sealed() {
        let memory = HostMemory::allocate("sealed", 1 << 20).unwrap();
        assert!(rustix::fs::ftruncate(memory.file(), 0).is_err());
        assert!(rustix::fs::ftruncate(memory.file(), memory.size() * 2).is_err());
        if !matches!(memory.kind(), PageKind::Hugetlb1G | PageKind::Hugetlb2M) {
            assert_eq!(smaps_kib(memory.address(), "Rss") << 10, memory.size());
        }
        let map = memory.guest_map(0).unwrap();
        let mut bytes = vec![1; 1 << 20];
        map.resolve(0, memory.size()).unwrap().read(&mut bytes);
        assert!(bytes.iter().all(|&byte| byte == 0));
        assert!(map.regions()[0].is_sealed());
    }

    #[test]
    fn guest_map_and_a_peer_that_maps_the_file_see_the_same_bytes() {
        let memory = HostMemory::allocate("shared", 1 << 20).unwrap();
        let map = memory.guest_map(0x1_0000_0000).unwrap();
        let region = &map.regions()[0];
        assert_eq!((region.gpa(), region.size()), (0x1_0000_0000, memory.size()));
        assert_eq!((region.user_addr(), region.host_address()), (memory.address(), memory.address()));

        let spec = RegionSpec {
            gpa: 0x1_0000_0000,
            size: memory.size(),
            user_addr: memory.address(),
            file_offset: 0,
            file: memory.file().try_clone_to_owned().unwrap(),
        };
        assert!(region.is_same(&spec));
        let peer = GuestMap::new(vec![Region::map(spec).unwrap()]).unwrap();
        map.lookup(&mut LastHit::default(), 0x1_0000_1234, 5).unwrap().write(b"hello");
        let mut seen = [0; 5];
        peer.resolve_user(memory.address() + 0x1234, 5).unwrap().read(&mut seen);
        assert_eq!(&seen, b"hello");
    }

    #[test]
    fn guest_map_outlives_the_memory_it_was_made_from() {
        let memory = HostMemory::allocate_on(PageKind::Base, "short", 4096).unwrap();
        let map = memory.guest_map(0).unwrap();
        drop(memory);
        assert_eq!(map.resolve(0, 4).unwrap().write(&[1; 4]), 4);
    }

    #[test]
    fn guest_map_that_would_wrap_is_refused() {
        let memory = HostMemory::allocate_on(PageKind::Base, "high", 8192).unwrap();
        assert!(matches!(memory.guest_map(u64::MAX - 4095), Err(MapError::Wrap { .. })));
        assert!(memory.guest_map(u64::MAX - 8191).is_ok());
    }

    #[test]
    fn kinds_are_shown_by_their_names() {
        let kinds = [PageKind::Hugetlb1G, PageKind::Hugetlb2M, PageKind::Thp, PageKind::Base];
        assert_eq!(kinds.map(|kind| kind.to_string()), ["hugetlb-1G", "hugetlb-2M", "thp", "4k"]);
    }
}
