//! DMA: how a device comes to reach a guest's memory, and nothing else.
//!
//! A *space* is what a function can reach: one a function, whatever the host has for it ([`DmaSpace`]). Devices that share a
//! function share its space; each has a *window* of it ([`Window`]) and sees guest physical address `gpa` at `base + gpa`. A
//! device alone on its function has the window at base 0.
//!
//! Mapping pins memory and takes time (seconds for a large guest), so it is done on the session's thread, in steps of at most
//! [`STEP`] bytes, with a look at whether the device is being removed between two of them. A new map is a difference: what
//! stays is not touched.

use std::fmt;
use std::io;
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringway_ring::guest::{GuestMap, Region};
use ringway_ring::memory::{HostMemory, PageKind};

/// The most bytes that are mapped in one step: some 100 ms of pinning base pages.
pub const STEP: u64 = 1 << 30;

/// What a function can reach by DMA: addresses of its own (IOVA) with memory behind them. Its implementation knows what the
/// host has for it (a VFIO container); the rest does not.
pub trait DmaSpace: Send + Sync {
    /// Puts `len` bytes of a region, `at` bytes behind its start, behind `iova`. All numbers are multiples of the host's page
    /// size, and nothing is behind these addresses.
    ///
    /// # Errors
    /// The host's: memory that it cannot pin, or a limit.
    fn map(&self, iova: u64, region: &Region, at: u64, len: u64) -> io::Result<()>;
    /// Takes what one call of `map` put there away again. Once this returns, no DMA reaches that memory.
    ///
    /// # Errors
    /// The host's. What was there may be there still.
    fn unmap(&self, iova: u64, len: u64) -> io::Result<()>;
    /// Addresses that can be used at all.
    fn ranges(&self) -> Vec<RangeInclusive<u64>>;
    /// At least `size` bytes of zeros, in whole pages and in one region, for memory of our own that `map` is then to put behind
    /// `iova`: any of this process's, unless only some can be reached there.
    ///
    /// # Errors
    /// There is none.
    fn allocate(&self, iova: u64, size: u64) -> io::Result<GuestMap> {
        let memory = HostMemory::allocate_on(PageKind::Base, "ringway-dma", size)?;
        memory.guest_map(iova).map_err(io::Error::other)
    }
}

/// Whether what takes long is still wanted.
#[derive(Debug, Clone, Copy)]
pub struct Cancel<'a>(&'a AtomicBool);

impl<'a> Cancel<'a> {
    /// Cancelled once `flag` is true.
    pub fn on(flag: &'a AtomicBool) -> Cancel<'a> {
        Cancel(flag)
    }
    /// Never cancelled.
    pub fn never() -> Cancel<'static> {
        static NEVER: AtomicBool = AtomicBool::new(false);
        Cancel(&NEVER)
    }
    /// It is not wanted any more.
    pub fn is_cancelled(self) -> bool {
        // Relaxed: the flag publishes nothing else.
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a map was not put in force. What was mapped before is mapped still, but for `Lost`.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The device is being removed.
    #[error("the device is being removed")]
    Cancelled,
    /// The guest has memory where the device's window, or what the function can reach, has ended.
    #[error("guest memory at {gpa:#x}, {size:#x} bytes, is beyond what the device can reach")]
    Beyond {
        /// Where it is.
        gpa: u64,
        /// How much of it.
        size: u64,
    },
    /// The guest's memory, or its place in its file, is not whole pages.
    #[error("guest memory at {gpa:#x}, {size:#x} bytes, is not whole pages: a device cannot reach it")]
    Unaligned {
        /// Where it is.
        gpa: u64,
        /// How much of it.
        size: u64,
    },
    /// The host did not map it.
    #[error("cannot map guest memory at {gpa:#x}, {len:#x} bytes, for the device: {source}")]
    Host {
        /// Where it is.
        gpa: u64,
        /// How much of it.
        len: u64,
        /// What the system said.
        source: io::Error,
    },
    /// The device cannot be had.
    #[error("{0}")]
    NoDevice(String),
    /// The host failed while one map was replaced by the other: what the device reaches is neither of the two. It needs a
    /// reset, and no map.
    #[error("the host failed while the device's memory was changed: {0}")]
    Lost(#[source] io::Error),
}

/// A device's part of a space, and what of a guest's memory is mapped there. Unmapped when dropped.
pub struct Window {
    space: Arc<dyn DmaSpace>,
    base: u64,
    size: u64,
    mapped: Vec<Mapped>,
}

/// A region, and what of it is mapped: all of it but while that changes, and after the host failed.
struct Mapped {
    region: Arc<Region>,
    /// Where each step begins, and how long it is.
    steps: Vec<(u64, u64)>,
    is_whole: bool,
}

impl fmt::Debug for Window {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Window").field("base", &self.base).field("size", &self.size).finish_non_exhaustive()
    }
}

impl Window {
    /// The `size` bytes of a space from `base` on, of which nobody else has any.
    pub fn new(space: Arc<dyn DmaSpace>, base: u64, size: u64) -> Window {
        Window { space, base, size, mapped: Vec::new() }
    }

    /// It has so many bytes from now on, not fewer than before; nobody else has any of them.
    pub fn grow(&mut self, size: u64) {
        self.size = self.size.max(size);
    }

    /// The address by which the device reaches `len` bytes at `gpa`, if they are mapped as a whole, in one region.
    pub fn iova(&self, gpa: u64, len: u64) -> Option<u64> {
        self.whole().find(|region| is_within(gpa, len, region.gpa(), region.size())).map(|_| self.base + gpa)
    }

    /// The same for an address as a front-end writes it, as those of [`QueueConfig`](ringway_ring::queue::QueueConfig) are.
    pub fn iova_of_user(&self, user: u64, len: u64) -> Option<u64> {
        let region = self.whole().find(|region| is_within(user, len, region.user_addr(), region.size()))?;
        Some(self.base + region.gpa() + (user - region.user_addr()))
    }

    /// The regions that are mapped.
    fn whole(&self) -> impl Iterator<Item = &Arc<Region>> {
        self.mapped.iter().filter(|mapped| mapped.is_whole).map(|mapped| &mapped.region)
    }

    /// Puts a guest's memory in force instead of what is mapped now; None: nothing is mapped then.
    ///
    /// # Errors
    /// What was mapped before is mapped still, but for [`MapError::Lost`].
    pub fn set_map(&mut self, map: Option<&GuestMap>, cancel: Cancel<'_>) -> Result<(), MapError> {
        let wanted = map.map_or(&[][..], GuestMap::regions);
        let ranges = self.space.ranges();
        let page = rustix::param::page_size() as u64;
        for region in wanted {
            let (gpa, size) = (region.gpa(), region.size());
            if [gpa, size, region.file_offset()].iter().any(|number| !number.is_multiple_of(page)) {
                return Err(MapError::Unaligned { gpa, size });
            }
            let last = gpa.checked_add(size - 1).filter(|last| *last < self.size);
            let last = last.and_then(|last| self.base.checked_add(last));
            let holds = |range: &RangeInclusive<u64>, last| {
                range.contains(&(self.base + gpa)) && range.contains(&last)
            };
            if !last.is_some_and(|last| ranges.iter().any(|range| holds(range, last))) {
                return Err(MapError::Beyond { gpa, size });
            }
        }
        let is_in = |region: &Arc<Region>| wanted.iter().any(|one| Arc::ptr_eq(one, region));
        let is_there = |region: &Arc<Region>| self.whole().any(|one| Arc::ptr_eq(one, region));
        let news: Vec<Arc<Region>> =
            wanted.iter().filter(|region| !is_there(region)).map(Arc::clone).collect();
        let goes = self.mapped.iter().map(|mapped| &mapped.region).filter(|region| !is_in(region));
        // What is in the way goes first; all else stays until the new map is in force.
        let (in_the_way, rest): (Vec<_>, Vec<_>) =
            goes.map(Arc::clone).partition(|old| news.iter().any(|new| overlap(old, new)));
        for old in &in_the_way {
            self.take_away(old).map_err(MapError::Lost)?;
        }
        for (put, new) in news.iter().enumerate() {
            let Err(error) = self.put(new, cancel) else { continue };
            for new in news.iter().take(put + 1) {
                self.take_away(new).map_err(MapError::Lost)?;
            }
            // Who is being removed is not made to wait for what it had before.
            if matches!(error, MapError::Cancelled) && !in_the_way.is_empty() {
                return Err(MapError::Lost(io::Error::other("the device is being removed")));
            }
            for old in &in_the_way {
                self.put(old, Cancel::never()).map_err(|again| match again {
                    MapError::Host { source, .. } => MapError::Lost(source),
                    other => other,
                })?;
            }
            return Err(error);
        }
        for old in &rest {
            self.take_away(old).map_err(MapError::Lost)?;
        }
        Ok(())
    }

    /// Maps a region. What of it was mapped when it fails, is to be taken away.
    fn put(&mut self, region: &Arc<Region>, cancel: Cancel<'_>) -> Result<(), MapError> {
        let (space, base) = (Arc::clone(&self.space), self.base);
        // Held from before its first byte can be reached.
        self.mapped.push(Mapped { region: Arc::clone(region), steps: Vec::new(), is_whole: false });
        let Some(mapped) = self.mapped.last_mut() else { return Ok(()) };
        for (at, len) in steps(region) {
            if cancel.is_cancelled() {
                return Err(MapError::Cancelled);
            }
            let gpa = region.gpa() + at;
            space.map(base + gpa, region, at, len).map_err(|source| MapError::Host { gpa, len, source })?;
            mapped.steps.push((at, len));
        }
        mapped.is_whole = true;
        Ok(())
    }

    /// Unmaps a region. It is held until nothing of it is mapped any more.
    fn take_away(&mut self, region: &Arc<Region>) -> io::Result<()> {
        let (space, base) = (Arc::clone(&self.space), self.base);
        for mapped in self.mapped.iter_mut().filter(|mapped| Arc::ptr_eq(&mapped.region, region)) {
            mapped.is_whole = false;
            while let Some((at, len)) = mapped.steps.last().copied() {
                space.unmap(base + region.gpa() + at, len)?;
                mapped.steps.pop();
            }
        }
        self.mapped.retain(|mapped| !Arc::ptr_eq(&mapped.region, region));
        Ok(())
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        for Mapped { region, steps, .. } in std::mem::take(&mut self.mapped) {
            let unmap =
                |(at, len): &(u64, u64)| self.space.unmap(self.base + region.gpa() + at, *len).is_err();
            if steps.iter().filter(|step| unmap(step)).count() > 0 {
                // The device may write there still: the memory is not given to anybody else while this process lives.
                std::mem::forget(region);
            }
        }
    }
}

/// How the addresses of a function with one device are divided: the guest's memory from 0 on, and what is our own beyond all of
/// it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Division {
    /// Bytes from 0 on that a guest's memory may lie in.
    pub guest: u64,
    /// Where our own begins: [`OWN_BYTES`] from there on can be mapped.
    pub own: u64,
}

impl Division {
    /// By what the space can map: our own is at the end of its last large range. None: no range is large enough.
    pub fn of(space: &dyn DmaSpace) -> Option<Division> {
        let own = |range: &RangeInclusive<u64>| {
            let start = range.end().checked_sub(OWN_BYTES - 1)? / OWN_BYTES * OWN_BYTES;
            Some(start).filter(|start| start >= range.start())
        };
        let own = space.ranges().iter().filter_map(own).max()?;
        Some(Division { guest: own, own })
    }
}

/// What is kept for our own of a function's addresses.
pub const OWN_BYTES: u64 = 1 << 30;

/// Memory of our own that a device reaches: its rings. Not mapped any more once it is dropped.
pub struct OwnMemory {
    map: Arc<GuestMap>,
    iova: u64,
    size: u64,
    space: Arc<dyn DmaSpace>,
}

impl fmt::Debug for OwnMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OwnMemory")
            .field("iova", &self.iova)
            .field("size", &self.size)
            .finish_non_exhaustive()
    }
}

impl OwnMemory {
    /// At least `size` bytes of zeros that the device sees at `iova`.
    ///
    /// # Errors
    /// The host has no memory, or does not map it.
    pub fn new(space: Arc<dyn DmaSpace>, iova: u64, size: u64) -> io::Result<OwnMemory> {
        let map = space.allocate(iova, size)?;
        let region = map.regions().first().ok_or(io::ErrorKind::OutOfMemory)?;
        let size = region.size();
        space.map(iova, region, 0, size)?;
        Ok(OwnMemory { map: Arc::new(map), iova, size, space })
    }

    /// The memory, by the addresses that the device has for it.
    pub fn map(&self) -> &Arc<GuestMap> {
        &self.map
    }

    /// Where the device sees it.
    pub fn iova(&self) -> u64 {
        self.iova
    }
}

impl Drop for OwnMemory {
    fn drop(&mut self) {
        if self.space.unmap(self.iova, self.size).is_err() {
            // The device may write there still: the memory is not given to anybody else while this process lives.
            std::mem::forget(Arc::clone(&self.map));
        }
    }
}

/// All `len` bytes at `at` lie in the `size` bytes at `start`.
fn is_within(at: u64, len: u64, start: u64, size: u64) -> bool {
    at.checked_sub(start).and_then(|from| from.checked_add(len)).is_some_and(|end| end <= size)
}

/// Where the steps of a region begin, and how long each is.
fn steps(region: &Region) -> impl Iterator<Item = (u64, u64)> + use<> {
    let size = region.size();
    (0..size.div_ceil(STEP)).map(move |step| (step * STEP, STEP.min(size - step * STEP)))
}

/// Both have memory at some guest physical address.
fn overlap(one: &Region, other: &Region) -> bool {
    one.gpa() < other.gpa() + other.size() && other.gpa() < one.gpa() + one.size()
}

#[cfg(test)]
mod tests;
