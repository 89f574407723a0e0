//! What a burst costs in accesses to shared words and in fences: counted, so that it stays bounded.
//!
//! Peers publish each element by an index store of its own, or fence for each element; here a burst has one of each,
//! whatever its length.
#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs::File;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};

use crate::chain::{Burst, Chain};
use crate::features::Features;
use crate::guest::{GuestMap, Region, RegionSpec};
use crate::layout::{Areas, DriverConfig, Layout};
use crate::packed::device::PackedDevice;
use crate::packed::driver::PackedDriver;
use crate::position::{Position, PositionPage};
use crate::queue::{Completion, DeviceRing, DriverBuffer, DriverRing, Format, QueueConfig, RingSize};
use crate::split::device::SplitDevice;
use crate::split::driver::SplitDriver;
use crate::sync::counted;
use crate::words::Words;

const SIZE: u32 = 64;
const BURST: usize = 32;
const GPA: u64 = 0x1000;

/// Words that remember who accessed what.
#[derive(Debug, Clone)]
struct Counting {
    words: Arc<Vec<AtomicU16>>,
    /// Accesses so far: (write, offset, bytes).
    log: Arc<Mutex<Vec<(bool, usize, usize)>>>,
}

impl Counting {
    fn new(len: u64) -> Counting {
        let words = (0..len.div_ceil(2)).map(|_| AtomicU16::new(0)).collect();
        Counting { words: Arc::new(words), log: Arc::default() }
    }

    /// The accesses since it was last asked.
    fn take(&self) -> Vec<(bool, usize, usize)> {
        std::mem::take(&mut self.log.lock().unwrap())
    }

    fn read(&self, at: usize, bytes: usize) -> u64 {
        assert_eq!(at % bytes, 0, "misaligned");
        self.log.lock().unwrap().push((false, at, bytes));
        let words = self.words[at / 2..(at + bytes) / 2].iter();
        words.rev().fold(0, |value, word| value << 16 | u64::from(word.load(Ordering::Relaxed)))
    }

    fn write(&self, at: usize, bytes: usize, value: u64) {
        assert_eq!(at % bytes, 0, "misaligned");
        self.log.lock().unwrap().push((true, at, bytes));
        for (nth, word) in self.words[at / 2..(at + bytes) / 2].iter().enumerate() {
            word.store((value >> (16 * nth)) as u16, Ordering::Relaxed);
        }
    }
}

impl Words for Counting {
    fn size(&self) -> usize {
        2 * self.words.len()
    }
    fn read_u16(&self, at: usize) -> u16 {
        self.read(at, 2) as u16
    }
    fn read_u32(&self, at: usize) -> u32 {
        self.read(at, 4) as u32
    }
    fn read_u64(&self, at: usize) -> u64 {
        self.read(at, 8)
    }
    fn write_u16(&self, at: usize, value: u16) {
        self.write(at, 2, value.into());
    }
    fn write_u32(&self, at: usize, value: u32) {
        self.write(at, 4, value.into());
    }
    fn write_u64(&self, at: usize, value: u64) {
        self.write(at, 8, value);
    }
}

/// Both sides of a ring over counted words, with a full burst available and the counters at 0.
struct Rig {
    areas: Areas<Counting>,
    driver: Box<dyn DriverRing>,
    device: Box<dyn DeviceRing>,
    burst: Burst,
}

impl Rig {
    fn new(format: Format) -> Rig {
        let size = RingSize::new(format, SIZE).unwrap();
        let file =
            File::from(rustix::fs::memfd_create("ring-counts", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
        file.set_len(0x1000).unwrap();
        let spec = RegionSpec { gpa: GPA, size: 0x1000, user_addr: GPA, file_offset: 0, file: file.into() };
        let map = Arc::new(GuestMap::new(vec![Region::map(spec).unwrap()]).unwrap());
        let layout = Layout::new(format, size);
        let areas = Areas {
            desc: Counting::new(layout.offsets.driver),
            driver: Counting::new(layout.offsets.device - layout.offsets.driver),
            device: Counting::new(layout.total - layout.offsets.device),
        };
        let features = Features::EVENT_IDX;
        let driver = DriverConfig {
            size,
            features,
            map: Arc::clone(&map),
            areas: layout.at(0),
            position: Position::START,
        };
        let device = QueueConfig {
            size,
            features,
            map: Arc::clone(&map),
            desc_user_addr: 0,
            driver_user_addr: 0,
            device_user_addr: 0,
            position: Position::START,
            keeper: PositionPage::anonymous().unwrap().slot(0).unwrap(),
            skip_used: false,
        };
        let (driver, device): (Box<dyn DriverRing>, Box<dyn DeviceRing>) = match format {
            Format::Split => (
                Box::new(SplitDriver::over(driver, areas.clone()).unwrap()),
                Box::new(SplitDevice::over(device, areas.clone()).unwrap()),
            ),
            Format::Packed => (
                Box::new(PackedDriver::over(driver, areas.clone()).unwrap()),
                Box::new(PackedDevice::over(device, areas.clone()).unwrap()),
            ),
        };
        Rig { areas, driver, device, burst: Burst::new(map) }
    }

    fn fill(&mut self) {
        for token in 0..BURST as u32 {
            self.driver.add(&[DriverBuffer { gpa: GPA, len: 64, writable: true }], token).unwrap();
        }
    }

    fn forget(&self) {
        for area in [&self.areas.desc, &self.areas.driver, &self.areas.device] {
            area.take();
        }
    }

    fn complete(&mut self) -> bool {
        self.device.consume(self.burst.chains());
        for chain in self.burst.chains() {
            self.device.complete(chain, 64);
        }
        self.device.publish()
    }
}

fn count(log: &[(bool, usize, usize)], wanted: impl Fn(bool, usize, usize) -> bool) -> usize {
    log.iter().filter(|(write, at, bytes)| wanted(*write, *at, *bytes)).count()
}

#[test]
fn split_burst_reads_each_shared_word_once() {
    let mut rig = Rig::new(Format::Split);
    rig.fill();
    rig.driver.publish();
    rig.forget();
    assert_eq!(rig.device.peek(&mut rig.burst, BURST), Ok(BURST));
    let driver = rig.areas.driver.take();
    assert_eq!(count(&driver, |_, at, _| at == 2), 1, "the index: {driver:?}");
    assert_eq!(driver.len(), 1 + BURST);
    let mut desc = rig.areas.desc.take();
    assert!(desc.iter().all(|(write, _, bytes)| !write && *bytes == 8));
    assert_eq!(desc.len(), 2 * BURST);
    desc.sort_unstable();
    desc.dedup();
    assert_eq!(desc.len(), 2 * BURST, "a half of a descriptor was read twice");
}

#[test]
fn split_burst_of_chains_among_singles_reads_each_descriptor_once() {
    let mut rig = Rig::new(Format::Split);
    let buffer = DriverBuffer { gpa: GPA, len: 64, writable: true };
    let lens = [2, 2, 1, 1, 3, 1, 2, 1, 1, 4];
    for (token, len) in (0..).zip(lens) {
        rig.driver.add(&vec![buffer; len], token).unwrap();
    }
    rig.driver.publish();
    rig.forget();
    assert_eq!(rig.device.peek(&mut rig.burst, BURST), Ok(lens.len()));
    assert!(rig.burst.chains().iter().map(Chain::segments).eq(lens));
    let mut desc = rig.areas.desc.take();
    let halves = 2 * lens.iter().sum::<usize>();
    assert_eq!(desc.len(), halves, "more or fewer than two halves for each");
    desc.sort_unstable();
    desc.dedup();
    assert_eq!(desc.len(), halves, "a half of a descriptor was read twice");
}

#[test]
fn split_burst_is_published_by_one_index_store_and_one_full_fence() {
    let mut rig = Rig::new(Format::Split);
    rig.fill();
    rig.driver.publish();
    assert_eq!(rig.device.peek(&mut rig.burst, BURST), Ok(BURST));
    rig.forget();
    let before = counted::so_far();
    rig.complete();
    let after = counted::so_far();
    assert_eq!((after.0 - before.0, after.1 - before.1), (1, 2), "full fences, all fences");
    let device = rig.areas.device.take();
    assert_eq!(count(&device, |write, at, _| write && at == 2), 1, "the index: {device:?}");
    assert_eq!(device.last(), Some(&(true, 2, 2)));
    assert_eq!(device.len(), 1 + 2 * BURST, "and the entries, two halves each");
    // Of the driver's area nothing but the event index.
    assert_eq!(rig.areas.driver.take(), [(false, 4 + 2 * SIZE as usize, 2)]);
}

#[test]
fn split_driver_publishes_and_collects_a_burst_by_one_index_each() {
    let mut rig = Rig::new(Format::Split);
    rig.forget();
    let before = counted::so_far();
    rig.fill();
    rig.driver.publish();
    let after = counted::so_far();
    assert_eq!((after.0 - before.0, after.1 - before.1), (1, 2), "full fences, all fences");
    let driver = rig.areas.driver.take();
    assert_eq!(count(&driver, |_, at, _| at == 2), 1, "the index: {driver:?}");
    assert_eq!(rig.device.peek(&mut rig.burst, BURST), Ok(BURST));
    rig.complete();
    rig.forget();
    assert_eq!(rig.driver.collect(&mut [Completion::default(); BURST]), Ok(BURST));
    let device = rig.areas.device.take();
    assert_eq!(count(&device, |_, at, _| at == 2), 1, "the index: {device:?}");
    assert!(device.iter().all(|(write, ..)| !write));
}

#[test]
fn packed_burst_is_published_by_its_first_flags_last_and_one_full_fence() {
    let mut rig = Rig::new(Format::Packed);
    // In the first lap there is one look more, behind the burst.
    for _ in 0..SIZE as usize / BURST {
        rig.fill();
        rig.driver.publish();
        assert_eq!(rig.device.peek(&mut rig.burst, BURST), Ok(BURST));
        rig.complete();
        assert_eq!(rig.driver.collect(&mut [Completion::default(); BURST]), Ok(BURST));
    }
    rig.fill();
    rig.driver.publish();
    rig.forget();
    assert_eq!(rig.device.peek(&mut rig.burst, BURST), Ok(BURST));
    let desc = rig.areas.desc.take();
    assert_eq!(desc.len(), 3 * BURST, "flags and two halves for each descriptor");
    let before = counted::so_far();
    rig.complete();
    let after = counted::so_far();
    assert_eq!((after.0 - before.0, after.1 - before.1), (1, 2), "full fences, all fences");
    let desc = rig.areas.desc.take();
    // Length, id and flags at once, the first descriptor's last.
    assert_eq!(desc.last(), Some(&(true, 8, 8)));
    assert_eq!(count(&desc, |_, at, _| at == 8), 1);
    assert_eq!(desc.len(), BURST);
    assert_eq!(rig.areas.driver.take(), [(false, 0, 4)]);
}

#[test]
fn packed_driver_publishes_a_burst_by_its_first_flags_last_and_one_full_fence() {
    let mut rig = Rig::new(Format::Packed);
    rig.forget();
    let before = counted::so_far();
    rig.fill();
    assert!(!rig.areas.desc.take().contains(&(true, 14, 2)));
    rig.driver.publish();
    let after = counted::so_far();
    assert_eq!((after.0 - before.0, after.1 - before.1), (1, 2), "full fences, all fences");
    assert_eq!(rig.areas.desc.take(), [(true, 14, 2)]);
}

#[test]
fn backlog_is_worked_off_without_a_look_at_the_index() {
    let mut rig = Rig::new(Format::Split);
    rig.fill();
    rig.driver.publish();
    assert_eq!(rig.device.peek(&mut rig.burst, BURST / 2), Ok(BURST / 2));
    rig.complete();
    rig.forget();
    assert_eq!(rig.device.peek(&mut rig.burst, BURST / 2), Ok(BURST / 2));
    assert_eq!(count(&rig.areas.driver.take(), |_, at, _| at == 2), 0);
}
