//! Guest memory and rings for the tests: both sides of a ring over the same memory.

#![allow(dead_code, unreachable_pub, reason = "every test binary uses a part of it")]
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs::File;
use std::sync::Arc;

use ringway_ring::features::Features;
use ringway_ring::guest::{GuestMap, LastHit, Region, RegionSpec};
use ringway_ring::layout::{Areas, DriverConfig, Layout};
use ringway_ring::position::{Position, PositionPage, PositionSlot};
use ringway_ring::queue::{DeviceRing, DriverRing, Format, QueueConfig, RingSize};
use rustix::fs::MemfdFlags;

/// Guest physical address of the memory that holds rings.
pub const RINGS_GPA: u64 = 0x10_0000;
/// Guest physical address of the first data region; the second one adjoins it.
pub const DATA_GPA: u64 = 0x100_0000;
/// Bytes of each data region.
pub const DATA_BYTES: u64 = 0x10_0000;
/// What the front-end's address is above the guest physical one.
pub const USER_OFFSET: u64 = 0x7000_0000_0000;

/// A region of fresh memory.
pub fn region(gpa: u64, size: u64) -> Arc<Region> {
    let file = File::from(rustix::fs::memfd_create("ring-test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(size).unwrap();
    Region::map(RegionSpec { gpa, size, user_addr: gpa + USER_OFFSET, file_offset: 0, file: file.into() })
        .unwrap()
}

/// A region for rings of up to 32,768 entries and two adjoining ones for data.
pub fn memory() -> Arc<GuestMap> {
    let regions = vec![
        region(RINGS_GPA, 0x20_0000),
        region(DATA_GPA, DATA_BYTES),
        region(DATA_GPA + DATA_BYTES, DATA_BYTES),
    ];
    Arc::new(GuestMap::new(regions).unwrap())
}

/// What a ring under test is like.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub format: Format,
    pub size: u16,
    pub features: Features,
    pub position: Position,
    pub skip_used: bool,
}

impl Shape {
    pub fn new(format: Format, size: u16, features: Features) -> Shape {
        Shape { format, size, features, position: Position::START, skip_used: false }
    }

    pub fn size(&self) -> RingSize {
        RingSize::new(self.format, self.size.into()).unwrap()
    }

    pub fn areas(&self) -> Areas<u64> {
        Layout::new(self.format, self.size()).at(RINGS_GPA)
    }

    pub fn device_config(&self, map: &Arc<GuestMap>, keeper: PositionSlot) -> QueueConfig {
        let areas = self.areas();
        QueueConfig {
            size: self.size(),
            features: self.features,
            map: Arc::clone(map),
            desc_user_addr: areas.desc + USER_OFFSET,
            driver_user_addr: areas.driver + USER_OFFSET,
            device_user_addr: areas.device + USER_OFFSET,
            position: self.position,
            keeper,
            skip_used: self.skip_used,
        }
    }

    pub fn driver_config(&self, map: &Arc<GuestMap>) -> DriverConfig {
        DriverConfig {
            size: self.size(),
            features: self.features,
            map: Arc::clone(map),
            areas: self.areas(),
            position: self.position,
        }
    }

    /// The driver's side first: it clears the ring.
    pub fn start(&self, map: &Arc<GuestMap>) -> (Box<dyn DriverRing>, Box<dyn DeviceRing>) {
        (self.start_driver(map), self.start_device(self.device_config(map, slot())))
    }

    pub fn start_driver(&self, map: &Arc<GuestMap>) -> Box<dyn DriverRing> {
        match self.format {
            Format::Split => Box::new(self.driver_config(map).start_split().unwrap()),
            Format::Packed => Box::new(self.driver_config(map).start_packed().unwrap()),
        }
    }

    pub fn start_device(&self, config: QueueConfig) -> Box<dyn DeviceRing> {
        match self.format {
            Format::Split => Box::new(config.activate_split().unwrap()),
            Format::Packed => Box::new(config.activate_packed().unwrap()),
        }
    }
}

/// A place to keep a position.
pub fn slot() -> PositionSlot {
    PositionPage::anonymous().unwrap().slot(0).unwrap()
}

/// Reads guest memory, over the borders of regions too.
pub fn read(map: &GuestMap, gpa: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0; len];
    let mut done = 0;
    while done < len {
        let left = (len - done) as u32;
        done +=
            map.lookup(&mut LastHit::default(), gpa + done as u64, left).unwrap().read(&mut bytes[done..]);
    }
    bytes
}

/// Writes guest memory, over the borders of regions too.
pub fn write(map: &GuestMap, gpa: u64, bytes: &[u8]) {
    let mut done = 0;
    while done < bytes.len() {
        let left = (bytes.len() - done) as u32;
        done += map.lookup(&mut LastHit::default(), gpa + done as u64, left).unwrap().write(&bytes[done..]);
    }
}

/// `VIRTQ_DESC_F_NEXT`.
pub const NEXT: u16 = 1;
/// `VIRTQ_DESC_F_WRITE`.
pub const WRITE: u16 = 2;
/// `VIRTQ_DESC_F_INDIRECT`.
pub const INDIRECT: u16 = 4;

/// A descriptor as a driver of its own making writes it. `link` is the next index (split) or the buffer id (packed).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Desc {
    pub addr: u64,
    pub len: u32,
    pub flags: u16,
    pub link: u16,
}

impl Desc {
    /// The 16 bytes, in the layout of `format`.
    pub fn bytes(self, format: Format) -> [u8; 16] {
        let (third, fourth) = match format {
            Format::Split => (self.flags, self.link),
            Format::Packed => (self.link, self.flags),
        };
        let word = u64::from(self.len) | u64::from(third) << 32 | u64::from(fourth) << 48;
        (u128::from(self.addr) | u128::from(word) << 64).to_le_bytes()
    }
}

/// The words of a ring, written by hand: a driver that may break every rule.
pub struct RawRing {
    pub map: Arc<GuestMap>,
    pub shape: Shape,
    keeper: PositionSlot,
}

impl RawRing {
    /// A cleared ring.
    pub fn new(map: &Arc<GuestMap>, shape: Shape) -> RawRing {
        drop(shape.start_driver(map));
        RawRing { map: Arc::clone(map), shape, keeper: slot() }
    }

    /// Writes descriptor `slot`; in a packed ring it is available in the first lap.
    pub fn desc(&self, slot: u16, desc: Desc) {
        let at = self.shape.areas().desc + 16 * u64::from(slot);
        match self.shape.format {
            Format::Split => write(&self.map, at, &desc.bytes(Format::Split)),
            Format::Packed => {
                write(&self.map, at, &Desc { flags: desc.flags | 0x80, ..desc }.bytes(Format::Packed));
            }
        }
    }

    /// Makes the chains at `heads` available in a split ring, from entry 0 on. A packed ring has none of this: its
    /// descriptors are available in their order.
    pub fn offer(&self, heads: &[u16]) {
        if self.shape.format == Format::Split {
            for (nth, head) in (0u64..).zip(heads) {
                write(&self.map, self.shape.areas().driver + 4 + 2 * nth, &head.to_le_bytes());
            }
            self.set_avail_idx(heads.len() as u16);
        }
    }

    /// Sets the available index of a split ring.
    pub fn set_avail_idx(&self, idx: u16) {
        write(&self.map, self.shape.areas().driver + 2, &idx.to_le_bytes());
    }

    /// The device's side of it.
    pub fn device(&self) -> Box<dyn DeviceRing> {
        self.shape.start_device(self.shape.device_config(&self.map, self.keeper.clone()))
    }
}
