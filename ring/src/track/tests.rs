//! Chains that complete in any order are followed by who records them.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs::File;
use std::sync::{Arc, Mutex};

use rustix::fs::MemfdFlags;

use super::*;
use crate::chain::{Burst, Chain};
use crate::features::Features;
use crate::guest::{GuestMap, Region, RegionSpec};
use crate::layout::{DriverConfig, Layout};
use crate::packed::device::PackedDevice;
use crate::position::PositionPage;
use crate::queue::{Completion, DeviceRing, DriverBuffer, DriverRing, Format, QueueConfig, RingSize};
use crate::split::device::SplitDevice;

const GPA: u64 = 0x10_0000;
const SIZE: u16 = 8;

/// What a record would hold: the chains that the device has, in the order in which it took them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Record {
    taken: Vec<u16>,
    /// Completed and not known to be visible.
    completed: Vec<u16>,
    /// As it was when the driver saw each burst.
    at_publication: Vec<Vec<u16>>,
}

#[derive(Debug, Clone, Default)]
struct Records(Arc<Mutex<Record>>);

impl Track for Records {
    const IN_ORDER: bool = false;

    fn taken(&mut self, id: u16, _: impl Iterator<Item = Descriptor>) -> bool {
        self.0.lock().unwrap().taken.push(id);
        true
    }
    fn completed(&mut self, id: u16) {
        let mut record = self.0.lock().unwrap();
        record.taken.retain(|taken| *taken != id);
        record.completed.push(id);
    }
    fn publish(&mut self, _: Position, _: Position, make_visible: impl FnOnce()) {
        make_visible();
        let mut record = self.0.lock().unwrap();
        let completed = std::mem::take(&mut record.completed);
        record.at_publication.push(completed);
    }
    fn moved(&mut self, _: Position) {}
}

fn ring(format: Format, records: Records) -> (Box<dyn DriverRing>, Box<dyn DeviceRing>, Burst) {
    let file = File::from(rustix::fs::memfd_create("track-test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(0x1_0000).unwrap();
    let spec = RegionSpec { gpa: GPA, size: 0x1_0000, user_addr: GPA, file_offset: 0, file: file.into() };
    let map = Arc::new(GuestMap::new(vec![Region::map(spec).unwrap()]).unwrap());
    let size = RingSize::new(format, SIZE.into()).unwrap();
    let areas = Layout::new(format, size).at(GPA);
    let features = Features::VERSION_1;
    let driver = DriverConfig { size, features, map: Arc::clone(&map), areas, position: Position::START };
    let driver: Box<dyn DriverRing> = match format {
        Format::Split => Box::new(driver.start_split().unwrap()),
        Format::Packed => Box::new(driver.start_packed().unwrap()),
    };
    let config = QueueConfig {
        size,
        features,
        map: Arc::clone(&map),
        desc_user_addr: areas.desc,
        driver_user_addr: areas.driver,
        device_user_addr: areas.device,
        position: Position::START,
        keeper: PositionPage::anonymous().unwrap().slot(0).unwrap(),
        skip_used: false,
    };
    let areas = config.resolve(format).unwrap();
    let device: Box<dyn DeviceRing> = match format {
        Format::Split => Box::new(SplitDevice::tracked(config, areas, records).unwrap()),
        Format::Packed => Box::new(PackedDevice::tracked(config, areas, records).unwrap()),
    };
    (driver, device, Burst::new(map))
}

#[test]
fn chains_that_complete_in_any_order_are_recorded() {
    for format in [Format::Split, Format::Packed] {
        let records = Records::default();
        let (mut driver, mut device, mut burst) = ring(format, records.clone());
        for lap in 0..3 {
            for token in 0..4 {
                let buffer = DriverBuffer { gpa: GPA + 0x8000, len: 64, writable: true };
                driver.add(&[buffer], token).unwrap();
            }
            driver.publish();
            assert_eq!(device.peek(&mut burst, 8), Ok(4));
            let chains: Vec<Chain> = burst.chains().to_vec();
            let ids: Vec<u16> = chains.iter().map(|chain| chain.id).collect();
            *records.0.lock().unwrap() = Record::default();
            device.consume(&chains);
            assert_eq!(records.0.lock().unwrap().taken, ids, "{format:?}, lap {lap}");
            let mut completions = [Completion::default(); 8];
            for (done, left) in [([3, 1], vec![0, 2]), ([2, 0], vec![])] {
                for nth in done {
                    device.complete(&chains[nth], nth as u32);
                }
                device.publish();
                let record = records.0.lock().unwrap().clone();
                let left: Vec<u16> = left.iter().map(|&nth: &usize| ids[nth]).collect();
                assert_eq!(record.taken, left, "{format:?}, lap {lap}: the device has these");
                assert_eq!(record.at_publication.last(), Some(&done.map(|nth| ids[nth]).to_vec()));
                assert_eq!(driver.collect(&mut completions), Ok(2));
                for (completion, nth) in completions.iter().zip(done) {
                    assert_eq!((completion.token, completion.written), (nth as u32, nth as u32));
                }
            }
        }
    }
}
