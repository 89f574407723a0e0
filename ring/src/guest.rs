//! Maps of a guest's memory, made from file descriptors that a front-end passed.
//!
//! An address from a guest is a *claim*. Only a lookup here turns a claim and a length into a [`HostSlice`], which can
//! be read and written for as long as the map is held. A map never changes: a new memory table makes a new map that
//! shares the [`Region`]s that stayed. Knows neither messages nor devices.
//!
//! ```text
//!   gpa:   |---- region 0 ----|-- region 1 --|        |--- region 2 ---|
//!                        ^^^^^^^^^^^                ^^^^^
//!                        a claim over two adjoining  a miss
//!                        regions: two lookups
//! ```
//!
//! Sessions build maps; any number of workers read them. Addresses and sizes are in bytes.

use std::any::Any;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::fs::{FileType, SealFlags};
use rustix::mm::Advice;

use crate::mapping::Mapping;
use crate::sigbus;

use directory::Directory;
use poison::LastLook;

mod directory;
mod poison;

/// What `poison` is made of: the process's own atomics even under loom, since maps are made outside of models. The model below
/// has loom's.
mod atomics {
    pub(super) use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
}

/// The most regions in one map. vhost-user front-ends use up to 509 memory slots.
pub const MAX_REGIONS: usize = 512;

/// What a front-end says of one region. All numbers in bytes; all are claims.
#[derive(Debug)]
pub struct RegionSpec {
    /// Guest physical address of the first byte.
    pub gpa: u64,
    /// Size.
    pub size: u64,
    /// Address of the first byte in the front-end's own address space.
    pub user_addr: u64,
    /// Where in the file the region starts. Need not be a multiple of the page size.
    pub file_offset: u64,
    /// The file.
    pub file: OwnedFd,
}

/// One mapped region. Unmapped when the last map that holds it is dropped.
#[derive(Debug)]
pub struct Region {
    gpa: u64,
    user_addr: u64,
    file_offset: u64,
    /// Kept so that a successor of this process can be given the guest's memory.
    file: OwnedFd,
    device: u64,
    inode: u64,
    sealed: bool,
    mapping: Arc<Mapping>,
}

/// Why a region or a map was refused. All but `Map` and `Stat` are the front-end's fault.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The file cannot be asked about.
    #[error("cannot examine the region's file: {0}")]
    Stat(#[source] io::Error),
    /// The kernel did not map it.
    #[error("cannot map the region: {0}")]
    Map(#[source] io::Error),
    /// The descriptor is no file of memory.
    #[error("region's descriptor is not a regular file on tmpfs or hugetlbfs (file system type {magic:#x})")]
    NotMemory {
        /// The type of its file system, as `statfs(2)` has it.
        magic: u64,
    },
    /// The region has no bytes.
    #[error("region at {gpa:#x} is empty")]
    Empty {
        /// Where it was to be.
        gpa: u64,
    },
    /// Address (guest physical or front-end's) or file offset, plus size, exceed 64 bits.
    #[error("region at {address:#x} of {size:#x} bytes wraps around")]
    Wrap {
        /// The claimed address or offset.
        address: u64,
        /// The claimed size.
        size: u64,
    },
    /// The file is smaller than the region claims.
    #[error("region ends at byte {end:#x} of a file of {file_size:#x} bytes")]
    BeyondFile {
        /// Claimed end in the file.
        end: u64,
        /// The file's size.
        file_size: u64,
    },
    /// Two regions claim the same guest physical or front-end address.
    #[error("regions overlap at {address:#x}")]
    Overlap {
        /// First address that both claim.
        address: u64,
    },
    /// More than [`MAX_REGIONS`].
    #[error("{count} regions are more than the {MAX_REGIONS} that one map holds")]
    TooMany {
        /// How many there were.
        count: usize,
    },
    /// A region to be removed is not in the map.
    #[error("no region at {gpa:#x} of {size:#x} bytes with front-end address {user_addr:#x}")]
    NoSuchRegion {
        /// Guest physical address asked for.
        gpa: u64,
        /// Front-end's address asked for.
        user_addr: u64,
        /// Size asked for.
        size: u64,
    },
}

/// A claim that no region covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no guest memory at {address:#x}, {len} bytes")]
pub struct Miss {
    /// The address claimed.
    pub address: u64,
    /// The length claimed.
    pub len: u64,
}

impl RegionSpec {
    /// Addresses of this process that the region takes once it is mapped: whole pages of its file around the bytes claimed,
    /// which may be far more than those.
    ///
    /// # Errors
    /// The file is none that would be mapped.
    pub fn mapped_bytes(&self) -> Result<u64, MapError> {
        let page = FileFacts::read(self.file.as_fd())?.page_bytes as u64;
        let lead = self.file_offset & (page - 1);
        let whole = lead.checked_add(self.size).and_then(|bytes| bytes.checked_next_multiple_of(page));
        Ok(whole.unwrap_or(u64::MAX))
    }
}

impl Region {
    /// Checks the claims against the file (a regular file on tmpfs or hugetlbfs, large enough) and maps it.
    ///
    /// The file may be truncated later all the same: see [`Region::is_sealed`] and [`crate::sigbus`].
    pub fn map(spec: RegionSpec) -> Result<Arc<Region>, MapError> {
        let RegionSpec { gpa, size, user_addr, file_offset, file } = spec;
        if size == 0 {
            return Err(MapError::Empty { gpa });
        }
        for address in [gpa, user_addr, file_offset] {
            // The last byte must have an address; one past it may be 2^64.
            if address.checked_add(size - 1).is_none() {
                return Err(MapError::Wrap { address, size });
            }
        }
        let facts = FileFacts::read(file.as_fd())?;
        let end = file_offset.checked_add(size).ok_or(MapError::Wrap { address: file_offset, size })?;
        if end > facts.size {
            return Err(MapError::BeyondFile { end, file_size: facts.size });
        }
        let len = usize::try_from(size).map_err(|_| MapError::Wrap { address: gpa, size })?;
        let mapping =
            Mapping::new(file.as_fd(), file_offset, len, facts.page_bytes).map_err(MapError::Map)?;
        Ok(Arc::new(Region {
            gpa,
            user_addr,
            file_offset,
            file,
            device: facts.device,
            inode: facts.inode,
            sealed: facts.sealed,
            mapping: Arc::new(mapping),
        }))
    }

    /// A region that shows memory of our own, mapped already, at its own address.
    pub(crate) fn of_mapping(
        mapping: Arc<Mapping>,
        file: BorrowedFd<'_>,
        gpa: u64,
    ) -> Result<Arc<Region>, MapError> {
        let size = mapping.len() as u64;
        if gpa.checked_add(size - 1).is_none() {
            return Err(MapError::Wrap { address: gpa, size });
        }
        let facts = FileFacts::read(file)?;
        Ok(Arc::new(Region {
            gpa,
            user_addr: mapping.start().addr() as u64,
            file_offset: 0,
            file: file.try_clone_to_owned().map_err(MapError::Stat)?,
            device: facts.device,
            inode: facts.inode,
            sealed: facts.sealed,
            mapping,
        }))
    }

    /// Guest physical address of the first byte.
    pub fn gpa(&self) -> u64 {
        self.gpa
    }
    /// Size in bytes.
    pub fn size(&self) -> u64 {
        self.mapping.len() as u64
    }
    /// Addresses of this process that it takes: see [`RegionSpec::mapped_bytes`].
    pub fn mapped_bytes(&self) -> u64 {
        self.mapping.pages().1 as u64
    }
    /// Front-end's address of the first byte.
    pub fn user_addr(&self) -> u64 {
        self.user_addr
    }
    /// Where in its file the region starts.
    pub fn file_offset(&self) -> u64 {
        self.file_offset
    }
    /// The file that it shows.
    pub fn file(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
    /// Address of the first byte in this process: what a DMA mapping is made from. Valid while the region is held.
    pub fn host_address(&self) -> u64 {
        self.mapping.start().addr() as u64
    }
    /// Bytes in one page of the file: the base page size, or that of its hugetlbfs.
    pub fn page_bytes(&self) -> u64 {
        self.mapping.page_bytes() as u64
    }
    /// True if the file was sealed against shrinking when it was mapped, so that it can never be truncated.
    pub fn is_sealed(&self) -> bool {
        self.sealed
    }
    /// True once a fault in this region was contained (see [`crate::sigbus`]).
    pub fn is_poisoned(&self) -> bool {
        self.mapping.is_poisoned()
    }
    /// True if mapping `spec` anew would give the same memory at the same place (device, inode, offset, gpa, size,
    /// user address), so that this region can stay.
    pub fn is_same(&self, spec: &RegionSpec) -> bool {
        (self.gpa, self.size(), self.user_addr, self.file_offset)
            == (spec.gpa, spec.size, spec.user_addr, spec.file_offset)
            && rustix::fs::fstat(&spec.file)
                .is_ok_and(|stat| (stat.st_dev, stat.st_ino) == (self.device, self.inode))
    }

    fn entry(&self) -> Entry {
        Entry { gpa: self.gpa, size: self.size(), host: self.mapping.start() }
    }
}

/// What the kernel says of a region's file.
pub(crate) struct FileFacts {
    pub(crate) size: u64,
    pub(crate) page_bytes: usize,
    device: u64,
    inode: u64,
    sealed: bool,
}

impl FileFacts {
    pub(crate) fn read(file: BorrowedFd<'_>) -> Result<FileFacts, MapError> {
        let stat_error = |error: rustix::io::Errno| MapError::Stat(error.into());
        let system = rustix::fs::fstatfs(file).map_err(stat_error)?;
        let stat = rustix::fs::fstat(file).map_err(stat_error)?;
        // statfs(2) has the types as 32-bit numbers, whatever the width of the field.
        let magic = u64::from(system.f_type as u32);
        let page_bytes = match magic {
            TMPFS_MAGIC => rustix::param::page_size(),
            HUGETLBFS_MAGIC => system.f_bsize as usize,
            _ => return Err(MapError::NotMemory { magic }),
        };
        // devtmpfs calls itself tmpfs, and holds /dev/mem; tmpfs holds sockets and pipes.
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || !page_bytes.is_power_of_two() {
            return Err(MapError::NotMemory { magic });
        }
        let sealed = rustix::fs::fcntl_get_seals(file).is_ok_and(|seals| seals.contains(SealFlags::SHRINK));
        Ok(FileFacts {
            size: u64::try_from(stat.st_size).unwrap_or(0),
            page_bytes,
            device: stat.st_dev,
            inode: stat.st_ino,
            sealed,
        })
    }
}

/// An ordered set of regions.
#[derive(Debug)]
pub struct GuestMap {
    /// What a lookup needs of each region and nothing else, by guest physical address.
    entries: Box<[Entry]>,
    /// The regions, in the same order; they keep what `entries` points to.
    regions: Box<[Arc<Region>]>,
    /// Which of them an address may be in.
    directory: Directory,
    /// Indexes of the regions by the front-end's address.
    by_user: Box<[u16]>,
    last_look: LastLook,
    /// After the regions, so that it is dropped when they are unmapped.
    _kept: Option<Arc<dyn Any + Send + Sync>>,
}

/// A region as lookups see it: 24 bytes.
#[derive(Debug, Clone, Copy)]
struct Entry {
    gpa: u64,
    size: u64,
    host: *mut u8,
}

// SAFETY: the pointers in `entries` lead into mappings that `regions` holds; they are only handed out as `HostSlice`s
// borrowed from the map, whose accesses tolerate any other writer. Nothing in it is tied to a thread.
unsafe impl Send for GuestMap {}
// SAFETY: as above; methods on a shared reference change nothing but atomics.
unsafe impl Sync for GuestMap {}

/// Bytes of a guest that were found in its map: valid to read and write, never to be borrowed as a Rust reference,
/// since the guest writes to them at the same time. Access goes through [`crate::copy`].
#[derive(Debug, Clone, Copy)]
pub struct HostSlice<'map> {
    start: *mut u8,
    /// Bytes.
    len: usize,
    /// Held for as long as the map.
    map: PhantomData<&'map GuestMap>,
}

/// The region that the last lookup hit, kept by each queue so that most lookups cost one comparison.
///
/// A hint, never trusted: one that comes from another map costs a search.
#[derive(Debug, Clone, Copy, Default)]
pub struct LastHit(pub(crate) u32);

impl GuestMap {
    /// Orders the regions and refuses overlaps (in guest physical or in front-end addresses) and more than
    /// [`MAX_REGIONS`]. A map without regions is legal: every lookup misses.
    pub fn new(mut regions: Vec<Arc<Region>>) -> Result<GuestMap, MapError> {
        if regions.len() > MAX_REGIONS {
            return Err(MapError::TooMany { count: regions.len() });
        }
        regions.sort_by_key(|region| region.gpa);
        refuse_overlap(regions.iter().map(|region| (region.gpa, region.size())))?;
        let mut by_user: Vec<u16> = (0..regions.len() as u16).collect();
        by_user.sort_by_key(|&index| regions[usize::from(index)].user_addr);
        refuse_overlap(by_user.iter().map(|&index| {
            let region = &regions[usize::from(index)];
            (region.user_addr, region.size())
        }))?;
        let places: Vec<_> = regions.iter().map(|region| (region.gpa, region.size())).collect();
        Ok(GuestMap {
            directory: Directory::new(&places),
            entries: regions.iter().map(|region| region.entry()).collect(),
            regions: regions.into(),
            by_user: by_user.into(),
            // No count: the first question looks.
            last_look: LastLook::new(),
            _kept: None,
        })
    }

    /// The same map, which keeps `what` for as long as anybody holds it. Maps made from it do not.
    pub fn keeping(self, what: Arc<dyn Any + Send + Sync>) -> GuestMap {
        GuestMap { _kept: Some(what), ..self }
    }

    /// A map with one region more; the others are shared (vhost-user `ADD_MEM_REG`).
    pub fn with(&self, region: Arc<Region>) -> Result<GuestMap, MapError> {
        let mut regions = self.regions.to_vec();
        regions.push(region);
        GuestMap::new(regions)
    }

    /// A map without the region that has exactly these addresses and size; the others are shared. vhost-user
    /// `REM_MEM_REG`, which says nothing about the file.
    pub fn without(&self, gpa: u64, user_addr: u64, size: u64) -> Result<GuestMap, MapError> {
        let mut regions = self.regions.to_vec();
        regions.retain(|region| (region.gpa, region.user_addr, region.size()) != (gpa, user_addr, size));
        if regions.len() == self.regions.len() {
            return Err(MapError::NoSuchRegion { gpa, user_addr, size });
        }
        GuestMap::new(regions)
    }

    /// The regions in order of their guest physical address.
    pub fn regions(&self) -> &[Arc<Region>] {
        &self.regions
    }

    /// The longest prefix of `len` bytes at `gpa` that is contiguous in this process: a range that crosses into an
    /// adjoining region takes two lookups. Never empty unless `len` is 0 (a zero length with a bad address misses).
    ///
    /// Budget: no allocation, no lock, no system call, no panic. One subtraction and two comparisons where the region
    /// of the last hit covers the address; else a look into a table, and a search where many regions are near.
    #[inline(always)]
    pub fn lookup(&self, hint: &mut LastHit, gpa: u64, len: u32) -> Result<HostSlice<'_>, Miss> {
        if let Some(entry) = self.entries.get(hint.0 as usize) {
            let at = gpa.wrapping_sub(entry.gpa);
            if at < entry.size {
                return Ok(entry.prefix(at, len.into()));
            }
        }
        self.search(hint, gpa, len)
    }

    /// The region that an address lies in: its first address, and all of its bytes.
    #[inline]
    pub(crate) fn region_around(&self, gpa: u64) -> Option<(u64, HostSlice<'_>)> {
        let (_, entry) = self.entry_of(gpa)?;
        Some((entry.gpa, entry.prefix(0, entry.size)))
    }

    /// The whole range in one piece, by guest physical address.
    pub fn resolve(&self, gpa: u64, len: u64) -> Result<HostSlice<'_>, Miss> {
        let miss = Miss { address: gpa, len };
        let (_, entry) = self.entry_of(gpa).ok_or(miss)?;
        whole(entry, gpa - entry.gpa, len).ok_or(miss)
    }

    /// The whole range in one piece, by the front-end's own address (vhost-user ring addresses).
    pub fn resolve_user(&self, user_addr: u64, len: u64) -> Result<HostSlice<'_>, Miss> {
        let miss = Miss { address: user_addr, len };
        let (entry, at) = self.by_user(user_addr).ok_or(miss)?;
        whole(entry, at, len).ok_or(miss)
    }

    /// Where the whole range lies in the guest's memory, by the front-end's own address.
    pub fn gpa_of_user(&self, user_addr: u64, len: u64) -> Result<u64, Miss> {
        let miss = Miss { address: user_addr, len };
        let (entry, at) = self.by_user(user_addr).ok_or(miss)?;
        whole(entry, at, len).map(|_| entry.gpa + at).ok_or(miss)
    }

    /// The last region whose own addresses begin at or below `user_addr`, and how far that is in it.
    fn by_user(&self, user_addr: u64) -> Option<(&Entry, u64)> {
        let after =
            self.by_user.partition_point(|&index| self.regions[usize::from(index)].user_addr <= user_addr);
        let index = usize::from(*self.by_user.get(after.wrapping_sub(1))?);
        Some((self.entries.get(index)?, user_addr - self.regions.get(index)?.user_addr))
    }

    /// True once a fault in this guest's memory was contained (see [`crate::sigbus`]): its file was truncated.
    ///
    /// Two loads of words that hardly ever change, whatever the number of regions.
    #[inline]
    pub fn is_poisoned(&self) -> bool {
        let regions = sigbus::poisoned_regions();
        self.last_look.is_poisoned(regions, || self.regions.iter().any(|region| region.is_poisoned()))
    }

    /// The region that covers `gpa`, and its index.
    #[inline(always)]
    fn entry_of(&self, gpa: u64) -> Option<(usize, &Entry)> {
        let (first, last) = self.directory.regions_near(gpa)?;
        let rest = self.entries.get(first + 1..=last)?;
        let index = first + rest.partition_point(|entry| entry.gpa <= gpa);
        let entry = self.entries.get(index)?;
        (gpa.wrapping_sub(entry.gpa) < entry.size).then_some((index, entry))
    }

    /// The rest of [`GuestMap::lookup`], where the last hit does not help.
    #[inline(never)]
    fn search(&self, hint: &mut LastHit, gpa: u64, len: u32) -> Result<HostSlice<'_>, Miss> {
        match self.entry_of(gpa) {
            Some((index, entry)) => {
                hint.0 = index as u32;
                Ok(entry.prefix(gpa - entry.gpa, len.into()))
            }
            None => missed(gpa, len),
        }
    }
}

impl Entry {
    /// What there is of `len` bytes at `at`, which the caller found to be below the size.
    #[inline(always)]
    fn prefix<'map>(&self, at: u64, len: u64) -> HostSlice<'map> {
        let len = len.min(self.size - at) as usize;
        // Stays inside the mapping: `at` is below its size.
        HostSlice { start: self.host.wrapping_add(at as usize), len, map: PhantomData }
    }
}

impl HostSlice<'_> {
    /// # Safety
    /// The bytes are mapped, readable and writable, and stay so for as long as the slice's lifetime.
    #[inline(always)]
    pub(crate) unsafe fn new(start: *mut u8, len: usize) -> Self {
        HostSlice { start, len, map: PhantomData }
    }

    /// Bytes.
    #[inline]
    #[allow(clippy::len_without_is_empty)]
    pub fn len(self) -> usize {
        self.len
    }
    /// Where it begins: for I/O vectors that the kernel reads or writes. Valid for as long as the map is held; whoever
    /// passes it on sees to that. No Rust reference may be made of it.
    #[inline]
    pub fn as_ptr(self) -> *mut u8 {
        self.start
    }
    /// The part from `at` on, at most `len` bytes; empty if `at` is beyond the end.
    #[inline]
    #[must_use]
    pub fn part(self, at: usize, len: usize) -> Self {
        let at = at.min(self.len);
        HostSlice { start: self.start.wrapping_add(at), len: len.min(self.len - at), map: PhantomData }
    }
    /// The `len` bytes from `at` on; None if they are not all inside.
    #[inline(always)]
    pub fn get(self, at: usize, len: usize) -> Option<Self> {
        let holds = at <= self.len && len <= self.len - at;
        holds.then(|| HostSlice { start: self.start.wrapping_add(at), len, map: PhantomData })
    }
    /// Makes the pages under the slice present and writable now, so that no first touch waits for the kernel to zero
    /// them. Takes time in proportion to the length: for sessions, in steps, never for workers.
    ///
    /// # Errors
    /// `InvalidInput` before Linux 5.14; `EFAULT` if the file behind was truncated.
    pub fn populate(self) -> io::Result<()> {
        if self.len == 0 {
            return Ok(());
        }
        let lead = self.start.addr() & (rustix::param::page_size() - 1);
        // SAFETY: the slice lies in a mapping that its borrow holds, and with it the page in which it starts; the
        // advice makes pages present and changes no byte.
        unsafe {
            rustix::mm::madvise(
                self.start.wrapping_sub(lead).cast(),
                self.len + lead,
                Advice::LinuxPopulateWrite,
            )?;
        }
        Ok(())
    }
}

#[cold]
fn missed<'map>(gpa: u64, len: u32) -> Result<HostSlice<'map>, Miss> {
    Err(Miss { address: gpa, len: len.into() })
}

/// All of `len` bytes at `at` of a region, `at` itself being inside it, or nothing.
fn whole<'map>(entry: &Entry, at: u64, len: u64) -> Option<HostSlice<'map>> {
    (at < entry.size && len <= entry.size - at).then(|| entry.prefix(at, len))
}

/// Refuses ranges, in order of their addresses, of which one begins before its predecessor ended.
fn refuse_overlap(mut ranges: impl Iterator<Item = (u64, u64)>) -> Result<(), MapError> {
    let Some((mut start, mut size)) = ranges.next() else { return Ok(()) };
    for (next, next_size) in ranges {
        if next - start < size {
            return Err(MapError::Overlap { address: next });
        }
        (start, size) = (next, next_size);
    }
    Ok(())
}

const TMPFS_MAGIC: u64 = 0x0102_1994;
const HUGETLBFS_MAGIC: u64 = 0x9584_58f6;

#[cfg(test)]
#[cfg(loom)]
mod model;
#[cfg(test)]
mod tests;
