//! What every block device of Ringway's has in common, beside its disk: configuration space, the write cache, its queues with a
//! pump each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use ringway_engine::Pump;
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::inflight::{OwnRecords, Part};
use ringway_ring::queue::{Format, SetupError};

use super::backing::BackingQueue;
use super::plan::{DISCARD, Plan, RO, Rates, rate_words};
use super::queue::{RequestQueue, Room};
use super::request::{SERIAL, Shape};
use super::{BlockConfig, F_CONFIG_WCE, F_DISCARD, F_FLUSH, F_RO, F_WRITE_ZEROES, RangeLimits, SECTOR};
use crate::dma::{Cancel, MapError};
use crate::limit::Limits;
use crate::net::plan::word;
use crate::vdpa::{
    BlockOps, Class, ClassOps, ConfigError, ConfigSpace, DataPath, DeviceHost, DriverError, Facts, Health,
    MakePump, OwnPumps, QueueBinding, QueueLimits, Queues, Stuck, VENDOR_ID, VdpaDevice,
};

/// What a disk is like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// Bytes; what is less than a block at its end is not used.
    pub bytes: u64,
    /// Bytes of the smallest transfer: a power of two, 512 to 4096.
    pub blk_size: u32,
    /// Bytes of a physical block, a multiple of `blk_size`.
    pub physical: u32,
    /// Bytes of the best transfer; 0: not known.
    pub optimal: u32,
    /// Nothing can be written.
    pub is_read_only: bool,
    /// It takes discards, of ranges at such an alignment in bytes.
    pub discard: Option<(RangeLimits, u32)>,
    /// It takes writes of zeroes, and may give the space back.
    pub write_zeroes: Option<(RangeLimits, bool)>,
    /// Requests that a queue has under way at most.
    pub depth: u16,
}

/// A queue that is to be made.
#[derive(Debug)]
pub struct QueueSeat<'seat> {
    /// Which.
    pub index: u16,
    /// Slots for requests.
    pub slots: u16,
    /// Pieces of a request at most.
    pub segments: u16,
    /// The guest's memory. It is held for as long as the queue lives.
    pub map: &'seat Arc<GuestMap>,
    /// Cores that workers poll on: nobody else's work belongs there.
    pub polled: &'seat [usize],
}

/// A disk: what a driver brings. Called by the device's session; while there is none, by control, for what waits for nobody:
/// `geometry` and `attributes`.
pub trait Disk: Send + 'static {
    /// Its part for one queue.
    type Queue: BackingQueue;

    /// What it is like now; another size is told by [`DeviceHost::config_changed`]. `blk_size`, `is_read_only`, and whether it discards and zeroes, never change.
    fn geometry(&self) -> Geometry;
    /// Its part for a queue; may take a while.
    ///
    /// # Errors
    /// The disk cannot be used.
    fn queue(&mut self, seat: QueueSeat<'_>) -> Result<Self::Queue, DriverError>;
    /// The device reaches the guest's memory by itself.
    fn dma(&self) -> bool {
        false
    }
    /// As [`VdpaDevice::set_map`].
    ///
    /// # Errors
    /// As there.
    fn set_map(&mut self, map: Option<&Arc<GuestMap>>, cancel: Cancel<'_>) -> Result<(), MapError> {
        let _ = (map, cancel);
        Ok(())
    }
    /// Its own attributes as they are in force.
    fn attributes(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
    /// As [`VdpaDevice::set`], of its own attributes.
    ///
    /// # Errors
    /// As there.
    fn set(&mut self, attributes: &BTreeMap<String, String>, within: Duration) -> Result<(), Stuck> {
        let _ = (attributes, within);
        Ok(())
    }
    /// As [`VdpaDevice::note`].
    fn note(&self) -> Option<String> {
        None
    }
    /// As [`VdpaDevice::health`].
    fn health(&self) -> Option<Arc<dyn Health>> {
        None
    }
    /// As [`VdpaDevice::reset`].
    ///
    /// # Errors
    /// As there.
    fn reset(&mut self, within: Duration) -> Result<(), Stuck> {
        let _ = within;
        Ok(())
    }
    /// As [`VdpaDevice::removed`].
    fn removed(&mut self) {}
}

/// A whole device of a disk.
#[derive(Debug)]
pub struct BlockDevice<D> {
    pumps: OwnPumps<Maker<D>>,
}

/// What pumps are made from, and the device's state.
#[derive(Debug)]
struct Maker<D> {
    disk: D,
    plan: Plan,
    features: Features,
    config: BlockConfig,
    shape: Arc<Shape>,
    negotiated: Features,
    generation: u32,
    host: DeviceHost,
    /// Cores that workers poll on.
    polled: Vec<usize>,
    /// Requests that a process before this one had, and that were begun again since the device was last reset.
    resubmitted: u64,
    /// Records of our own that were none of their queues, since the device was last reset.
    forgotten: u64,
}

impl<D: Disk> BlockDevice<D> {
    /// As it was planned.
    ///
    /// # Errors
    /// The plan does not fit the disk.
    pub fn new(plan: Plan, disk: D, host: DeviceHost) -> Result<BlockDevice<D>, DriverError> {
        let geometry = disk.geometry();
        let blk_size = plan.blk_size.unwrap_or(geometry.blk_size);
        if blk_size < geometry.blk_size {
            let why = format!("blk_size {blk_size}: the disk has blocks of {} bytes", geometry.blk_size);
            return Err(DriverError::misconfigured(why));
        }
        let features = plan.offered(&geometry);
        let offers = |feature| features.contains(feature);
        let shape = Shape {
            capacity: AtomicU64::new(0),
            write_through: AtomicBool::new(!plan.write_back),
            is_read_only: offers(F_RO),
            blk_size,
            discard: geometry.discard.map(|(limits, _)| limits).filter(|_| offers(F_DISCARD)),
            write_zeroes: geometry.write_zeroes.map(|(limits, _)| limits).filter(|_| offers(F_WRITE_ZEROES)),
            serial: padded(&plan.serial),
            limits: Limits::default(),
        };
        plan.rates.hold(&shape.limits);
        let sectors_per_block = blk_size / SECTOR as u32;
        let config = BlockConfig {
            capacity: 0,
            seg_max: plan.seg_max.into(),
            blk_size,
            physical_block_exp: (geometry.physical / blk_size).max(1).ilog2() as u8,
            min_io_size: 0,
            opt_io_size: geometry.optimal / blk_size,
            writeback: plan.write_back,
            num_queues: plan.num_queues,
            discard: geometry
                .discard
                .filter(|_| offers(F_DISCARD))
                .map(|(limits, alignment)| (limits, (alignment / SECTOR as u32).max(sectors_per_block))),
            write_zeroes: geometry.write_zeroes.filter(|_| offers(F_WRITE_ZEROES)),
        };
        let mut maker = Maker {
            disk,
            plan,
            features,
            config,
            shape: Arc::new(shape),
            negotiated: Features::NONE,
            generation: 0,
            host,
            polled: Vec::new(),
            resubmitted: 0,
            forgotten: 0,
        };
        maker.look_at_size();
        Ok(BlockDevice { pumps: OwnPumps::new(maker) })
    }
}

impl<D: Disk> Maker<D> {
    /// Takes the disk's size over; true if it is another.
    fn look_at_size(&mut self) -> bool {
        let sectors_per_block = u64::from(self.config.blk_size) / SECTOR;
        let sectors = self.disk.geometry().bytes / SECTOR;
        let capacity = sectors - sectors % sectors_per_block;
        let is_other = capacity != self.config.capacity;
        self.config.capacity = capacity;
        self.shape.capacity.store(capacity, Ordering::Relaxed);
        self.generation = self.generation.wrapping_add(is_other.into());
        is_other
    }

    /// Whether writes last before they are answered, by what the guest has acknowledged (virtio 1.3 §5.2.6.2).
    fn settle_cache(&self) {
        let has = |feature| self.negotiated.contains(feature);
        let write_through = match (has(F_FLUSH), has(F_CONFIG_WCE)) {
            (false, _) => true,
            (true, true) => !self.config.writeback,
            (true, false) => !self.plan.write_back,
        };
        self.shape.write_through.store(write_through, Ordering::Relaxed);
    }
}

impl<D: Disk> MakePump for Maker<D> {
    fn polled(&mut self, cores: &[usize]) {
        self.polled = cores.to_vec();
    }

    fn pump(&mut self, _group: u16, queues: Vec<QueueBinding>) -> Result<Box<dyn Pump>, DriverError> {
        let Some(queue) = queues.into_iter().next() else {
            return Err(DriverError::PeerMisbehaved("no queue of the group is started".to_owned()));
        };
        let index = queue.index;
        let refused = |why: SetupError| DriverError::PeerMisbehaved(format!("queue {index}: {why}"));
        let requests = self.disk.geometry().depth.min(queue.config.size.get());
        // A descriptor that crosses regions, and headers in pieces of their own, come on top.
        let segments = self.plan.seg_max + BESIDE_DATA;
        let map = &queue.config.map;
        let seat = QueueSeat { index, slots: requests, segments, map, polled: &self.polled };
        let backing = self.disk.queue(seat)?;
        let (shape, room) = (Arc::clone(&self.shape), Room { requests, segments });
        let config = queue.config.clone();
        let record = match &queue.record {
            Some(record) => record.clone(),
            None => own_record(queue.format, config.size.get())?,
        };
        let counters = Arc::clone(&queue.counters);
        let (pump, again): (Box<dyn Pump>, usize) = match queue.format {
            Format::Split => {
                let ring =
                    self.recovered(&record, || config.clone().recover_split(&record)).map_err(refused)?;
                let again = ring.taken_before();
                (RequestQueue::new(queue, ring, backing, shape, room).map_err(refused)?, again)
            }
            Format::Packed => {
                let ring =
                    self.recovered(&record, || config.clone().recover_packed(&record)).map_err(refused)?;
                let again = ring.taken_before();
                (RequestQueue::new(queue, ring, backing, shape, room).map_err(refused)?, again)
            }
        };
        counters.add_resubmitted(again as u64);
        self.resubmitted += again as u64;
        Ok(pump)
    }
}

impl<D: Disk> Maker<D> {
    /// A ring with what is recorded of it. A record of our own that is none of it would stand in its way for good: it is
    /// forgotten. A front-end's is left to who wrote it.
    fn recovered<R>(
        &mut self,
        record: &Part,
        recover: impl Fn() -> Result<R, SetupError>,
    ) -> Result<R, SetupError> {
        match recover() {
            Err(SetupError::Record(_)) if record.is_own() => {
                record.forget();
                self.forgotten += 1;
                recover()
            }
            other => other,
        }
    }
}

/// For who serves its queues without a worker.
impl<D: Disk> MakePump for BlockDevice<D> {
    fn polled(&mut self, cores: &[usize]) {
        self.pumps.maker.polled(cores);
    }

    fn pump(&mut self, group: u16, queues: Vec<QueueBinding>) -> Result<Box<dyn Pump>, DriverError> {
        self.pumps.maker.pump(group, queues)
    }
}

impl<D: Disk> ConfigSpace for Maker<D> {
    fn read(&self, at: usize, bytes: &mut [u8]) {
        let space = self.config.to_bytes();
        let rest = space.iter().skip(at).chain(std::iter::repeat(&0));
        bytes.iter_mut().zip(rest).for_each(|(to, from)| *to = *from);
    }

    fn write(&mut self, at: usize, bytes: &[u8]) -> Result<(), ConfigError> {
        let mut there = vec![0; bytes.len()];
        self.read(at, &mut there);
        let ours = BlockConfig::WRITEBACK_AT.checked_sub(at).filter(|nth| *nth < bytes.len());
        let same = |nth: usize| Some(nth) == ours || there.get(nth) == bytes.get(nth);
        if !(0..bytes.len()).all(same) {
            return Err(ConfigError::ReadOnly);
        }
        let Some(asked) = ours.and_then(|nth| bytes.get(nth)) else { return Ok(()) };
        if Some(asked) == ours.and_then(|nth| there.get(nth)) {
            return Ok(());
        }
        if !self.negotiated.contains(F_CONFIG_WCE) {
            return Err(ConfigError::ReadOnly);
        }
        self.config.writeback = match asked {
            0 => false,
            1 => true,
            _ => return Err(ConfigError::Value),
        };
        self.settle_cache();
        Ok(())
    }

    fn generation(&self) -> u32 {
        self.generation
    }
}

impl<D: Disk> BlockOps for Maker<D> {
    fn block_config(&self) -> BlockConfig {
        self.config
    }
}

impl<D: Disk> VdpaDevice for BlockDevice<D> {
    fn facts(&self) -> Facts {
        let maker = &self.pumps.maker;
        Facts {
            class: Class::Block,
            vendor_id: VENDOR_ID,
            data_path: DataPath::Pumped,
            dma: maker.disk.dma(),
            features: maker.features,
            limits: QueueLimits { max_vqs: maker.plan.num_queues, max_vq_size: MAX_VQ_SIZE },
            queues_per_group: 1,
        }
    }

    fn config(&mut self) -> &mut dyn ConfigSpace {
        self.pumps.maker.look_at_size();
        &mut self.pumps.maker
    }

    fn queues(&mut self) -> &mut dyn Queues {
        &mut self.pumps
    }

    fn class(&mut self) -> ClassOps<'_> {
        self.pumps.maker.look_at_size();
        ClassOps::Block(&mut self.pumps.maker)
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let maker = &self.pumps.maker;
        let mut attributes = maker.plan.attributes();
        // As it is in force, whatever was asked for.
        attributes.insert(DISCARD.to_owned(), word(maker.features.contains(F_DISCARD)));
        attributes.insert(RO.to_owned(), word(maker.features.contains(F_RO)));
        attributes.extend(maker.disk.attributes());
        attributes
    }

    fn negotiated(&mut self, features: Features) -> Result<(), DriverError> {
        let maker = &mut self.pumps.maker;
        maker.negotiated = features;
        if !features.contains(F_FLUSH) {
            // Who cannot flush is told that nothing needs to be.
            maker.config.writeback = false;
        }
        maker.settle_cache();
        Ok(())
    }

    fn set(&mut self, attributes: &BTreeMap<String, String>, within: Duration) -> Result<(), Stuck> {
        let maker = &mut self.pumps.maker;
        let mut words = maker.plan.rate_words.clone();
        words.extend(rate_words(attributes));
        // They were checked before they came here.
        if let Ok(rates) = Plan::rates_among(&words, Rates::default()) {
            rates.hold(&maker.shape.limits);
            (maker.plan.rates, maker.plan.rate_words) = (rates, words);
        }
        maker.disk.set(attributes, within)?;
        if maker.look_at_size() {
            maker.host.config_changed();
        }
        Ok(())
    }

    fn note(&self) -> Option<String> {
        let maker = &self.pumps.maker;
        let again = (maker.resubmitted > 0).then(|| {
            let count = maker.resubmitted;
            format!("{count} requests were done again that a process before this one had not completed")
        });
        let forgotten = (maker.forgotten > 0).then(|| {
            "what was recorded of requests under way was of another guest's queue, and is forgotten"
                .to_owned()
        });
        let notes: Vec<String> = maker.disk.note().into_iter().chain(again).chain(forgotten).collect();
        (!notes.is_empty()).then(|| notes.join("; "))
    }

    fn health(&self) -> Option<Arc<dyn Health>> {
        self.pumps.maker.disk.health()
    }

    fn set_map(&mut self, map: Option<&Arc<GuestMap>>, cancel: Cancel<'_>) -> Result<(), MapError> {
        self.pumps.maker.disk.set_map(map, cancel)
    }

    fn reset(&mut self, within: Duration) -> Result<(), Stuck> {
        let maker = &mut self.pumps.maker;
        maker.disk.reset(within)?;
        maker.config.writeback = maker.plan.write_back;
        maker.negotiated = Features::NONE;
        (maker.resubmitted, maker.forgotten) = (0, 0);
        maker.settle_cache();
        maker.look_at_size();
        Ok(())
    }

    fn removed(&mut self) {
        self.pumps.maker.disk.removed();
    }
}

/// A record for a ring that is given none: requests end in any order, which a ring's position does not tell. Who comes after
/// this process does not have it.
fn own_record(format: Format, entries: u16) -> Result<Part, DriverError> {
    let lack = |source| DriverError::Resource { what: "memory for what is in flight".to_owned(), source };
    let records = OwnRecords::anonymous(1, entries).map_err(lack)?;
    let part = records.part(format, 0).map_err(lack)?;
    part.ok_or_else(|| lack(std::io::ErrorKind::OutOfMemory.into()))
}

fn padded(serial: &str) -> [u8; SERIAL] {
    let mut bytes = [0; SERIAL];
    bytes.iter_mut().zip(serial.bytes()).for_each(|(to, from)| *to = from);
    bytes
}

/// Entries of a ring at most: as many as QEMU lets one have, and as many as are followed in flight.
const MAX_VQ_SIZE: u16 = 1024;
/// Pieces of a request beside its data: header and status, each possibly in pieces, and buffers that cross regions.
const BESIDE_DATA: u16 = 34;
