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
    mapped: Vec<Arc<Region>>,
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

    /// The address by which the device reaches `len` bytes at `gpa`, if they are mapped as a whole, in one region.
    pub fn iova(&self, gpa: u64, len: u64) -> Option<u64> {
        let inside = |region: &&Arc<Region>| {
            let at = gpa.checked_sub(region.gpa());
            at.and_then(|at| at.checked_add(len)).is_some_and(|end| end <= region.size())
        };
        self.mapped.iter().find(inside).map(|_| self.base + gpa)
    }

    /// Puts a guest's memory in force instead of what is mapped now; None: nothing is mapped then.
    ///
    /// # Errors
    /// What was mapped before is mapped still, but for [`MapError::Lost`].
    pub fn set_map(&mut self, map: Option<&GuestMap>, cancel: Cancel<'_>) -> Result<(), MapError> {
        let wanted = map.map_or(&[][..], GuestMap::regions);
        let ranges = self.space.ranges();
        for region in wanted {
            let (gpa, size) = (region.gpa(), region.size());
            let last = gpa.checked_add(size - 1).filter(|last| *last < self.size);
            let last = last.and_then(|last| self.base.checked_add(last));
            let holds = |range: &RangeInclusive<u64>, last| {
                range.contains(&(self.base + gpa)) && range.contains(&last)
            };
            if !last.is_some_and(|last| ranges.iter().any(|range| holds(range, last))) {
                return Err(MapError::Beyond { gpa, size });
            }
        }
        let is_in =
            |list: &[Arc<Region>], region: &Arc<Region>| list.iter().any(|one| Arc::ptr_eq(one, region));
        let news: Vec<&Arc<Region>> = wanted.iter().filter(|region| !is_in(&self.mapped, region)).collect();
        let goes: Vec<Arc<Region>> =
            self.mapped.iter().filter(|region| !is_in(wanted, region)).map(Arc::clone).collect();
        // What is in the way goes first; all else stays until the new map is in force.
        let (in_the_way, rest): (Vec<_>, Vec<_>) =
            goes.into_iter().partition(|old| news.iter().any(|new| overlap(old, new)));
        for old in &in_the_way {
            self.take_away(old).map_err(MapError::Lost)?;
        }
        for (put, new) in news.iter().enumerate() {
            if let Err(error) = self.put(new, cancel) {
                for new in news.iter().take(put) {
                    self.take_away(new).map_err(MapError::Lost)?;
                }
                for old in &in_the_way {
                    self.put(old, Cancel::never()).map_err(|again| match again {
                        MapError::Host { source, .. } => MapError::Lost(source),
                        other => other,
                    })?;
                }
                return Err(error);
            }
        }
        for old in &rest {
            self.take_away(old).map_err(MapError::Lost)?;
        }
        Ok(())
    }

    /// Maps a region, all of it or nothing.
    fn put(&mut self, region: &Arc<Region>, cancel: Cancel<'_>) -> Result<(), MapError> {
        for (at, len) in steps(region) {
            let gpa = region.gpa() + at;
            let mapped = if cancel.is_cancelled() {
                Err(MapError::Cancelled)
            } else {
                let host = |source| MapError::Host { gpa, len, source };
                self.space.map(self.base + gpa, region, at, len).map_err(host)
            };
            if let Err(error) = mapped {
                for (at, len) in steps(region).take_while(|(before, _)| *before < at) {
                    self.space.unmap(self.base + region.gpa() + at, len).map_err(MapError::Lost)?;
                }
                return Err(error);
            }
        }
        self.mapped.push(Arc::clone(region));
        Ok(())
    }

    /// Unmaps a region. It is held until nothing of it is mapped any more.
    fn take_away(&mut self, region: &Arc<Region>) -> io::Result<()> {
        for (at, len) in steps(region) {
            self.space.unmap(self.base + region.gpa() + at, len)?;
        }
        self.mapped.retain(|one| !Arc::ptr_eq(one, region));
        Ok(())
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        for region in std::mem::take(&mut self.mapped) {
            let is_unmapped =
                steps(&region).all(|(at, len)| self.space.unmap(self.base + region.gpa() + at, len).is_ok());
            if !is_unmapped {
                // The device may write there still: the memory is not given to anybody else while this process lives.
                std::mem::forget(region);
            }
        }
    }
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
