//! Where it is recorded which requests a device's rings have in flight: in a region of the front-end, else in our own file.
//!
//! A front-end keeps its region over back-ends, and drops it with the device's reset; it is believed as far as it fits. Our own
//! records are those of one ring, known by where its areas are, for as long as its kept position is.

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ringway_pmd::vdpa::Class;
use ringway_ring::guest::MapError;
use ringway_ring::inflight::{self, Part, Region};
use ringway_ring::position::Position;
use ringway_ring::queue::{Format, QueueConfig};
use ringway_ring::resume;

use super::VirtDev;
use super::plane::Plane;
use super::refusal::Refusal;
use super::ring::format_of;

/// A region as a front-end gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecordsClaim {
    /// Where in its file it starts.
    pub offset: u64,
    /// Bytes.
    pub bytes: u64,
    /// Queues that have a part in it.
    pub queues: u16,
    /// Entries of each part.
    pub entries: u16,
}

/// A region that the front-end gave.
#[derive(Debug)]
pub(super) struct Records {
    region: Arc<Region>,
    queues: u16,
    entries: u16,
}

impl VirtDev {
    /// A region for so many queues, for the front-end to keep: its file, and its bytes.
    ///
    /// # Errors
    /// More queues, or larger ones, than the device has; no memory.
    pub fn make_records(&self, queues: u16, entries: u16) -> Result<(File, u64), Refusal> {
        self.check_records(queues, entries)?;
        let format = format_of(self.agreed());
        let bytes = inflight::part_bytes(format, entries) * u64::from(queues);
        let file = inflight::make_file(format, queues, entries);
        let file =
            file.map_err(|e| Refusal::system("inflight_region", format!("cannot be made: {e}"), &e))?;
        Ok((file, bytes))
    }

    /// Takes the region in which the front-end has what is in flight recorded.
    ///
    /// # Errors
    /// It is none of this device, or rings run with another.
    pub fn set_records(
        &mut self,
        plane: &mut dyn Plane,
        claim: RecordsClaim,
        file: BorrowedFd<'_>,
    ) -> Result<(), Refusal> {
        let RecordsClaim { offset, bytes, queues, entries } = claim;
        self.check_records(queues, entries)?;
        let format = format_of(self.agreed());
        let needed = inflight::part_bytes(format, entries) * u64::from(queues);
        if bytes < needed {
            let detail = format!("{bytes} bytes are fewer than {needed}, for {queues} queues of {entries}");
            return Err(Refusal::breach("inflight_region", detail));
        }
        let region = Region::map(file, offset, needed).map_err(|error| match &error {
            MapError::Map(io) | MapError::Stat(io) => {
                Refusal::system("inflight_region", error.to_string(), io)
            }
            _ => Refusal::breach("inflight_region", error.to_string()),
        })?;
        for index in 0..queues {
            let part = region.part(format, entries, index);
            let fits = part.ok_or_else(|| "it is too small".to_owned());
            let fits = fits.and_then(|part| part.check().map_err(|fault| fault.to_string()));
            fits.map_err(|why| Refusal::breach("inflight_region", format!("queue {index}: {why}")))?;
        }
        self.replace_records(plane, Some(Records { region, queues, entries }))
    }

    /// There is no region of the front-end any more.
    ///
    /// # Errors
    /// Rings run with it.
    pub fn forget_records(&mut self, plane: &mut dyn Plane) -> Result<(), Refusal> {
        self.replace_records(plane, None)
    }

    fn replace_records(&mut self, _plane: &mut dyn Plane, records: Option<Records>) -> Result<(), Refusal> {
        // What they have in flight is in the other.
        if self.rings.iter().any(|ring| ring.placed) {
            return Err(Refusal::breach("inflight_region", "given while rings run"));
        }
        self.records = records;
        Ok(())
    }

    fn check_records(&self, queues: u16, entries: u16) -> Result<(), Refusal> {
        let most = self.rings.len();
        if queues == 0 || usize::from(queues) > most {
            return Err(Refusal::breach("inflight_queues", format!("{queues} are not 1 to {most}")));
        }
        if entries == 0 || entries > self.max_vq_size {
            let detail = format!("{entries} entries are not 1 to {}", self.max_vq_size);
            return Err(Refusal::breach("inflight_queues", detail));
        }
        Ok(())
    }

    /// The record of a ring. None: rings of its class have none.
    ///
    /// # Errors
    /// The front-end's region has none of this ring, or there is no room for one of our own.
    pub(super) fn record_of(
        &self,
        plane: &dyn Plane,
        index: usize,
        format: Format,
        config: &QueueConfig,
        goes_on: bool,
    ) -> Result<Option<Part>, &'static str> {
        match (self.class, &self.records) {
            (Class::Net, _) => Ok(None),
            (Class::Block, Some(Records { region, queues, entries })) => {
                let part = u16::try_from(index).ok().filter(|index| index < queues);
                let part = part.and_then(|index| region.part(format, *entries, index));
                part.map(Some).ok_or("inflight_region")
            }
            (Class::Block, None) => {
                let part = plane.record(index as u16, format).map_err(|_| "inflight_no_room")?;
                if let Some(part) = &part {
                    part.take_for(config, goes_on);
                }
                Ok(part)
            }
        }
    }
}

/// A ring that is started here is the one whose position was kept, where its process left it.
pub(super) fn goes_on(kept: Option<Position>, at: Position) -> bool {
    kept.is_some_and(|kept| {
        let with_burst = Position { used_idx: kept.avail_idx, used_wrap: kept.avail_wrap, ..kept };
        [resume::rewound(kept), with_burst].contains(&resume::rewound(at))
    })
}
