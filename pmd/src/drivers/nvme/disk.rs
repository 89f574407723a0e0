//! A namespace as a disk.
//!
//! The controller is opened when a front-end's memory comes first, and is there until the last device on it goes.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringway_ring::guest::{GuestMap, Region};

use super::NAMESPACE;
use super::books::{Books, Tenure};
use super::live::{Live, Member, Place, Shelf};
use super::queue::{NvmeQueue, Terms};
use crate::block::disk::{Disk, Geometry, QueueSeat};
use crate::block::{RangeLimits, SECTOR};
use crate::dma::{Cancel, MapError};
use crate::nvme::command::MOST_BLOCKS;
use crate::nvme::identify::{ControllerInfo, Limits, NamespaceInfo};
use crate::vdpa::{DeviceHost, DriverError};

/// See the module's head.
pub(super) struct NvmeDisk {
    shelf: Arc<Shelf>,
    info: NamespaceInfo,
    terms: Terms,
    member: Arc<Member>,
    books: Arc<Books>,
    tenure: Arc<Tenure>,
    /// Shared with its queues.
    place: Option<Arc<Place>>,
    /// What is in force there.
    map: Option<Arc<GuestMap>>,
    live: Option<Arc<Live>>,
}

impl fmt::Debug for NvmeDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NvmeDisk")
            .field("shelf", &self.shelf)
            .field("info", &self.info)
            .finish_non_exhaustive()
    }
}

impl NvmeDisk {
    pub(super) fn new(
        shelf: Arc<Shelf>,
        controller: &ControllerInfo,
        limits: &Limits,
        info: NamespaceInfo,
        (books, tenure): (Arc<Books>, Arc<Tenure>),
        host: DeviceHost,
    ) -> NvmeDisk {
        NvmeDisk {
            terms: Terms::new(controller, limits, &info),
            member: Arc::new(Member::new(host, &info)),
            shelf,
            info,
            books,
            tenure,
            place: None,
            map: None,
            live: None,
        }
    }

    /// The controller, opened now if it was not.
    fn opened(&mut self) -> Result<Arc<Live>, DriverError> {
        if let Some(live) = &self.live {
            return Ok(Arc::clone(live));
        }
        let live = self.shelf.live()?;
        let resource = |why: String| DriverError::Resource {
            what: format!("namespace {} of {}", self.info.id, self.shelf.name()),
            source: io::Error::other(why),
        };
        // It may be another than it was when it was looked at.
        let info = live.controller.namespace(self.info.id).map_err(|fault| resource(fault.to_string()))?;
        if info.block() != self.info.block() {
            return Err(resource(format!(
                "its blocks have {} bytes, and had {} when it was looked at: unbind and bind the function",
                info.block(),
                self.info.block()
            )));
        }
        if self.member.bytes.swap(info.bytes(), Ordering::Relaxed) != info.bytes() {
            self.member.host.config_changed();
        }
        live.join(&self.member);
        self.live = Some(Arc::clone(&live));
        Ok(live)
    }
}

impl NvmeDisk {
    /// Puts a map in force elsewhere. No queue has commands: nobody looks at the memory meanwhile.
    fn move_to(&mut self, mut place: Place, map: &Arc<GuestMap>, cancel: Cancel<'_>) -> Result<(), MapError> {
        // Not in both places at a time: it is pinned, and counted, once.
        let mut before = self.place.as_mut().and_then(Arc::get_mut);
        if let Some(before) = &mut before {
            before.window.set_map(None, Cancel::never())?;
        }
        let moved = place.window.set_map(Some(&**map), cancel);
        match (moved, before) {
            (Ok(()), _) => {
                self.place = Some(Arc::new(place));
                Ok(())
            }
            (Err(error), Some(before)) => {
                let again = before.window.set_map(self.map.as_deref(), Cancel::never());
                again.map_err(|again| match again {
                    MapError::Host { source, .. } => MapError::Lost(source),
                    other => other,
                })?;
                Err(error)
            }
            (Err(error), None) => Err(error),
        }
    }
}

impl Disk for NvmeDisk {
    type Queue = NvmeQueue;

    fn geometry(&self) -> Geometry {
        let (info, terms) = (&self.info, &self.terms);
        let block = info.block();
        let sectors = |blocks: u64| u32::try_from(blocks * block / SECTOR).unwrap_or(u32::MAX - 127);
        let discard = RangeLimits { max_sectors: sectors(terms.most_in_range.into()), max_ranges: RANGES };
        // As many commands as it takes, but no guest waits for one request for ever.
        let zeroes =
            RangeLimits { max_sectors: sectors(u64::from(MOST_BLOCKS) * ZERO_COMMANDS), max_ranges: RANGES };
        let aligned = |blocks: u32| blocks.saturating_mul(block as u32).max(block as u32);
        let together = |blocks: u32| Some(aligned(blocks)).filter(|bytes| bytes.is_power_of_two());
        Geometry {
            bytes: self.member.bytes.load(Ordering::Relaxed),
            blk_size: block as u32,
            physical: together(info.written_together).unwrap_or(block as u32),
            optimal: 0,
            is_read_only: info.is_read_only,
            discard: terms.can_deallocate.then(|| (discard, aligned(info.deallocated_together))),
            write_zeroes: terms.can_zero.then_some((zeroes, true)),
            depth: DEPTH,
        }
    }

    fn queue(&mut self, seat: QueueSeat<'_>) -> Result<NvmeQueue, DriverError> {
        let live = self.opened()?;
        let holds = |place: &&Arc<Place>| {
            let is_mapped = |region: &Arc<Region>| place.window.iova(region.gpa(), region.size()).is_some();
            seat.map.regions().iter().all(is_mapped)
        };
        let Some(place) = self.place.as_ref().filter(holds) else {
            return Err(DriverError::PeerMisbehaved("a queue's memory is not the device's".to_owned()));
        };
        let resource = |why: String| DriverError::Resource {
            what: format!("queue {} on {}", seat.index, self.shelf.name()),
            source: io::Error::other(why),
        };
        let claim = self.books.claim(&self.tenure).map_err(resource)?;
        NvmeQueue::new(&live, self.terms, (Arc::clone(place), claim), &seat)
            .map_err(|fault| resource(fault.to_string()))
    }

    fn dma(&self) -> bool {
        true
    }

    fn set_map(&mut self, map: Option<&Arc<GuestMap>>, cancel: Cancel<'_>) -> Result<(), MapError> {
        if map.is_none() && self.live.is_none() {
            return Ok(());
        }
        let live = self.opened().map_err(|error| MapError::NoDevice(error.to_string()))?;
        // All its queues were taken back. One that was not, and its commands, keep what they have; it is nobody else's before
        // they are over.
        if self.place.as_mut().is_some_and(|place| Arc::get_mut(place).is_none()) {
            self.place = None;
        }
        let Some(map) = map else {
            if let Some(place) = self.place.as_mut().and_then(Arc::get_mut) {
                place.window.set_map(None, cancel)?;
            }
            // The next guest may have more memory, and others may need the addresses.
            (self.place, self.map) = (None, None);
            return Ok(());
        };
        let ends = map.regions().iter().map(|region| (region.gpa() + region.size(), region));
        let Some((bytes, last)) = ends.max_by_key(|(end, _)| *end) else { return Ok(()) };
        let grown = self.place.as_mut().and_then(Arc::get_mut);
        let grown = grown.and_then(|place| place.grow(bytes).then_some(place));
        let placed = match grown {
            Some(place) => place.window.set_map(Some(&**map), cancel),
            None => {
                let beyond = || MapError::Beyond { gpa: last.gpa(), size: last.size() };
                self.move_to(Place::new(live.reserve(bytes).ok_or_else(beyond)?), map, cancel)
            }
        };
        placed.inspect(|()| self.map = Some(Arc::clone(map)))
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(NAMESPACE.to_owned(), self.info.id.to_string())])
    }
}

/// Requests of a queue under way.
const DEPTH: u16 = 256;
/// Ranges of one discard or write of zeroes.
const RANGES: u32 = 256;
/// Commands that one range of a write of zeroes may take.
const ZERO_COMMANDS: u64 = 64;
