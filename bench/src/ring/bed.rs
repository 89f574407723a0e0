//! Memory with rings in it, a guest's and at the same time ours: what both sides of a path stand on.

use std::sync::Arc;

use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::layout::{Areas, DriverConfig, Layout};
use ringway_ring::memory::{HostMemory, PageKind};
use ringway_ring::position::{Position, PositionPage};
use ringway_ring::queue::{DriverBuffer, DriverRing, Format, QueueConfig, RingSize};

use super::{Done, RING_SIZE};
use crate::error::BenchError;
use crate::options::Ring;

/// Rings of one format and buffers, in one region of base pages.
pub(super) struct Bed {
    pub(super) format: Format,
    size: RingSize,
    features: Features,
    pub(super) memory: HostMemory,
    pub(super) map: Arc<GuestMap>,
    positions: Arc<PositionPage>,
}

impl Bed {
    /// Memory with room for some rings and for `buffers` bytes of buffers.
    pub(super) fn new(ring: Ring, features: Features, buffers: u64) -> Result<Bed, BenchError> {
        let format = ring.format();
        let size = RingSize::new(format, RING_SIZE.into())?;
        let bytes = BUFFERS + buffers;
        let memory = HostMemory::allocate_on(PageKind::Base, "ringway-bench", bytes)
            .map_err(|source| BenchError::Memory { bytes, source })?;
        let map = Arc::new(memory.guest_map(GPA)?);
        let positions =
            PositionPage::anonymous().map_err(BenchError::system("cannot make a position page"))?;
        let features = features
            | match ring {
                Ring::Split => Features::VERSION_1,
                Ring::Packed => Features::VERSION_1 | Features::RING_PACKED,
            };
        Ok(Bed { format, size, features, memory, map, positions })
    }

    /// What was agreed on.
    pub(super) fn features(&self) -> Features {
        self.features
    }

    /// The areas of a ring in a memory that starts at `base`.
    pub(super) fn areas(&self, queue: u16, base: u64) -> Areas<u64> {
        Layout::new(self.format, self.size).at(base + u64::from(queue) * RING_BYTES)
    }

    /// What the driver's side of a ring is started with.
    pub(super) fn driver(&self, queue: u16) -> DriverConfig {
        DriverConfig {
            size: self.size,
            features: self.features,
            map: Arc::clone(&self.map),
            areas: self.areas(queue, GPA),
            position: Position::START,
        }
    }

    /// What the device's side of a ring is started with.
    pub(super) fn device(&self, queue: u16) -> Result<QueueConfig, BenchError> {
        let areas = self.areas(queue, self.memory.address());
        Ok(QueueConfig {
            size: self.size,
            features: self.features,
            map: Arc::clone(&self.map),
            desc_user_addr: areas.desc,
            driver_user_addr: areas.driver,
            device_user_addr: areas.device,
            position: Position::START,
            keeper: self
                .positions
                .slot(queue.into())
                .ok_or_else(|| BenchError::Usage(format!("a position page has no slot {queue}")))?,
            skip_used: false,
        })
    }

    /// The driver's side, started, whichever the format. It asks for no calls.
    pub(super) fn boxed_driver(&self, queue: u16) -> Result<Box<dyn DriverRing>, BenchError> {
        let mut driver: Box<dyn DriverRing> = match self.format {
            Format::Split => Box::new(self.driver(queue).start_split()?),
            Format::Packed => Box::new(self.driver(queue).start_packed()?),
        };
        driver.disable_calls();
        Ok(driver)
    }
}

/// The chains of a batch: `count` of them, of one writable descriptor or of a readable one and a writable one.
pub(super) struct Chains {
    buffers: Vec<Vec<DriverBuffer>>,
}

impl Chains {
    pub(super) fn new(count: u16, descriptors: u16) -> Chains {
        let chain = |number: u16| {
            let at = GPA + BUFFERS + u64::from(number) * u64::from(BUFFER);
            let head = DriverBuffer { gpa: at, len: HEAD, writable: false };
            let room = DriverBuffer { gpa: at + u64::from(HEAD), len: BUFFER - HEAD, writable: true };
            if descriptors > 1 { vec![head, room] } else { vec![room] }
        };
        Chains { buffers: (0..count).map(chain).collect() }
    }

    /// Bytes of buffers that they need.
    pub(super) fn bytes(count: u16) -> u64 {
        u64::from(count) * u64::from(BUFFER)
    }

    /// Makes all of them available.
    #[inline(always)]
    pub(super) fn offer<R: DriverRing + ?Sized>(&self, driver: &mut R) -> Result<(), BenchError> {
        for (token, chain) in self.buffers.iter().enumerate() {
            driver.add(chain, token as u32)?;
        }
        driver.publish();
        Ok(())
    }

    /// Chains in the batch.
    pub(super) fn count(&self) -> usize {
        self.buffers.len()
    }

    /// What they come to.
    pub(super) fn sum(&self) -> Done {
        let all = self.buffers.iter().flatten();
        Done { units: all.clone().count() as u64, bytes: all.map(|buffer| u64::from(buffer.len)).sum() }
    }
}

/// Where the memory starts in the guest's physical addresses.
pub(super) const GPA: u64 = 0x1_0000_0000;
/// Where buffers begin, in bytes from the start of the memory.
pub(super) const BUFFERS: u64 = 8 * RING_BYTES;
/// Room of a ring: one of 256 entries takes 4,096, 518 and 2,054 bytes.
const RING_BYTES: u64 = 8192;
/// Bytes of a chain's buffers together.
const BUFFER: u32 = 128;
/// Of those the readable ones.
const HEAD: u32 = 16;
