//! Records byte by byte, records that are not ours, and records that nobody in his right mind wrote.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::os::fd::AsFd as _;
use std::os::linux::fs::MetadataExt as _;
use std::os::unix::fs::FileExt as _;

use proptest::prelude::*;

use super::*;
use crate::chain::{Burst, Chain};
use crate::features::Features;
use crate::guest::{GuestMap, Region as GuestRegion, RegionSpec};
use crate::layout::{DriverConfig, Layout};
use crate::position::{Position, PositionPage};
use crate::queue::{
    Completion, DeviceRing, DriverBuffer, DriverRing, QueueConfig, RingFault, RingSize, SetupError,
};

const GPA: u64 = 0x10_0000;
const BYTES: u64 = 0x1_0000;

struct Rig {
    format: Format,
    size: u16,
    config: QueueConfig,
    driver: Box<dyn DriverRing>,
    record: File,
}

impl Rig {
    fn new(format: Format, size: u16) -> Rig {
        let file = File::from(rustix::fs::memfd_create("inflight-test", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(BYTES).unwrap();
        let spec = RegionSpec { gpa: GPA, size: BYTES, user_addr: GPA, file_offset: 0, file: file.into() };
        let map = Arc::new(GuestMap::new(vec![GuestRegion::map(spec).unwrap()]).unwrap());
        let ring_size = RingSize::new(format, size.into()).unwrap();
        let areas = Layout::new(format, ring_size).at(GPA);
        let features = Features::VERSION_1;
        let (position, map_of_driver) = (Position::START, Arc::clone(&map));
        let driver = DriverConfig { size: ring_size, features, map: map_of_driver, areas, position };
        let driver: Box<dyn DriverRing> = match format {
            Format::Split => Box::new(driver.start_split().unwrap()),
            Format::Packed => Box::new(driver.start_packed().unwrap()),
        };
        let config = QueueConfig {
            size: ring_size,
            features,
            map,
            desc_user_addr: areas.desc,
            driver_user_addr: areas.driver,
            device_user_addr: areas.device,
            position,
            keeper: PositionPage::anonymous().unwrap().slot(0).unwrap(),
            skip_used: false,
        };
        Rig { format, size, config, driver, record: make_file(format, 1, size).unwrap() }
    }

    fn post(&mut self, count: u32) {
        for token in 0..count {
            let buffer = DriverBuffer { gpa: GPA + 0xf000, len: 64, writable: true };
            self.driver.add(&[buffer], token).unwrap();
        }
        self.driver.publish();
    }

    fn device(&self) -> Result<Box<dyn DeviceRing>, SetupError> {
        let len = part_bytes(self.format, self.size);
        let region = Region::map(self.record.as_fd(), 0, len).unwrap();
        let part = region.part(self.format, self.size, 0).unwrap();
        Ok(match self.format {
            Format::Split => Box::new(self.config.clone().recover_split(&part)?),
            Format::Packed => Box::new(self.config.clone().recover_packed(&part)?),
        })
    }

    fn take(&self, device: &mut dyn DeviceRing, most: usize) -> Vec<Chain> {
        let mut burst = Burst::new(Arc::clone(&self.config.map));
        device.peek(&mut burst, most).unwrap();
        device.consume(burst.chains());
        burst.chains().to_vec()
    }

    fn record(&self) -> Vec<u8> {
        let mut bytes = vec![0; part_bytes(self.format, self.size) as usize];
        self.record.read_exact_at(&mut bytes, 0).unwrap();
        bytes
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.record.write_all_at(bytes, at).unwrap();
    }
}

fn words(bytes: &[u8]) -> Vec<u16> {
    bytes.chunks(2).map(|word| u16::from_le_bytes([word[0], word[1]])).collect()
}

#[test]
fn parts_have_the_sizes_that_other_back_ends_give_them() {
    for (entries, split, packed) in [(1, 64, 64), (128, 2112, 4160), (256, 4160, 8256), (1024, 16448, 32832)]
    {
        assert_eq!(part_bytes(Format::Split, entries), split);
        assert_eq!(part_bytes(Format::Packed, entries), packed);
    }
    let file = make_file(Format::Split, 2, 128).unwrap();
    assert!(file.set_len(1).is_err() && file.set_len(10_000).is_err(), "sealed");
    let region = Region::map(file.as_fd(), 0, 2 * 2112).unwrap();
    assert!(region.part(Format::Split, 128, 1).is_some());
    assert!(region.part(Format::Split, 128, 2).is_none());
    assert!(region.part(Format::Packed, 128, 1).is_none());
}

#[test]
fn range_that_is_not_in_the_file_is_not_mapped() {
    let file = make_file(Format::Split, 1, 128).unwrap();
    for (offset, len) in [(0, 0), (0, 2113), (2112, 1), (4, 64), (u64::MAX - 7, 64), (64, u64::MAX)] {
        assert!(Region::map(file.as_fd(), offset, len).is_err(), "{offset} {len}");
    }
    assert!(Region::map(file.as_fd(), 64, 2048).is_ok());
    let on_disk = tempfile::tempfile_in(env!("CARGO_MANIFEST_DIR")).unwrap();
    on_disk.set_len(4096).unwrap();
    let refused = Region::map(on_disk.as_fd(), 0, 2112);
    assert!(matches!(refused, Err(MapError::NotMemory { .. })), "a file whose pages its writer waits for");
}

#[test]
fn split_record_is_as_the_protocol_has_it() {
    let mut rig = Rig::new(Format::Split, 4);
    rig.post(4);
    let mut device = rig.device().unwrap();
    let chains = rig.take(&mut *device, 3);
    let record = rig.record();
    // features, version, desc_num, last_batch_head, used_idx
    assert_eq!(words(&record[..16]), [0, 0, 0, 0, 1, 4, 0, 0]);
    let in_flight = |record: &[u8]| -> Vec<u8> { (0..4).map(|nth| record[16 + 16 * nth]).collect() };
    assert_eq!(in_flight(&record), [1, 1, 1, 0]);
    let counters: Vec<u8> = (0..3).map(|nth| record[24 + 16 * nth]).collect();
    assert_eq!(counters, [0, 1, 2]);
    device.complete(&chains[2], 0);
    device.complete(&chains[0], 0);
    device.publish();
    let record = rig.record();
    assert_eq!(words(&record[8..16]), [1, 4, 0, 2], "the head that was completed last, and two used");
    assert_eq!(in_flight(&record), [0, 1, 0, 0]);
    assert_eq!(words(&record[22..24]), [2], "the one before it");
    device.complete(&chains[1], 0);
    let last = rig.take(&mut *device, 4);
    device.complete(&last[0], 0);
    device.publish();
    assert_eq!((in_flight(&rig.record()), words(&rig.record()[14..16])), (vec![0; 4], vec![4]), "drained");
}

#[test]
fn packed_record_is_as_the_protocol_has_it() {
    let mut rig = Rig::new(Format::Packed, 4);
    rig.post(3);
    let mut device = rig.device().unwrap();
    let chains = rig.take(&mut *device, 3);
    let record = rig.record();
    // features, version, desc_num, free_head, old_free_head, used_idx, old_used_idx, wrap counters
    assert_eq!(words(&record[..24]), [0, 0, 0, 0, 1, 4, 3, 3, 0, 0, 0x0101, 0]);
    // inflight, next, last, num, counter, id, flags, len, addr
    assert_eq!(words(&record[64..80]), [1, 2, 1, 1, 1, 0, 0, 0]);
    assert_eq!(words(&record[80..96]), [chains[1].id, 0x82, 64, 0, 0xf000, 0x10, 0, 0]);
    device.complete(&chains[1], 0);
    device.publish();
    let record = rig.record();
    assert_eq!(words(&record[12..24]), [1, 1, 1, 1, 0x0101, 0]);
    assert_eq!((record[64], words(&record[66..68])), (0, vec![3]), "first of the free list");
    for chain in [&chains[0], &chains[2]] {
        device.complete(chain, 0);
    }
    device.publish();
    rig.driver.collect(&mut [Completion::default(); 4]).unwrap();
    rig.post(1);
    let last = rig.take(&mut *device, 4);
    device.complete(&last[0], 0);
    device.publish();
    let record = rig.record();
    assert_eq!(words(&record[16..24]), [0, 0, 0, 0], "drained, at the start of the second lap");
    assert!((0..4).all(|nth| record[32 + 32 * nth] == 0));
}

/// With the 0 that a fresh region has, other back-ends take what was used before for a burst, and lose a chain.
#[test]
fn fresh_record_of_a_ring_that_ran_loses_nothing() {
    let mut rig = Rig::new(Format::Split, 4);
    let mut into = [Completion::default(); 4];
    let mut device = rig.device().unwrap();
    for _ in 0..3 {
        rig.post(1);
        let chains = rig.take(&mut *device, 1);
        device.complete(&chains[0], 0);
        device.publish();
        rig.driver.collect(&mut into).unwrap();
    }
    drop(device);
    // Another machine, where nothing is recorded: with a base that is of no use.
    rig.record = make_file(Format::Split, 1, 4).unwrap();
    rig.post(3);
    let mut device = rig.device().unwrap();
    assert_eq!(words(&rig.record()[14..16]), [3]);
    assert_eq!(rig.take(&mut *device, 4).len(), 3);
    drop(device);
    let mut device = rig.device().unwrap();
    let again = rig.take(&mut *device, 4);
    again.iter().for_each(|chain| device.complete(chain, 0));
    device.publish();
    assert_eq!(rig.driver.collect(&mut into), Ok(3));
}

#[test]
fn more_chains_than_are_read_ahead_are_done_again() {
    for format in [Format::Split, Format::Packed] {
        let mut rig = Rig::new(format, 256);
        rig.post(250);
        let mut device = rig.device().unwrap();
        let mut ids = Vec::new();
        while ids.len() < 250 {
            ids.extend(rig.take(&mut *device, 64).iter().map(|chain| chain.id));
        }
        drop(device);
        let mut device = rig.device().unwrap();
        assert!(device.has_available());
        let mut again = Vec::new();
        while again.len() < 250 {
            let chains = rig.take(&mut *device, 33);
            assert!(!chains.is_empty());
            again.extend(chains.iter().map(|chain| chain.id));
            chains.iter().for_each(|chain| device.complete(chain, 0));
            device.publish();
        }
        assert_eq!(again, ids);
        assert!(!device.has_available());
    }
}

#[test]
fn chain_that_the_device_has_is_refused() {
    let mut rig = Rig::new(Format::Split, 4);
    rig.post(2);
    // The second entry names the head of the first.
    let entry = rig.config.map.resolve_user(rig.config.driver_user_addr + 6, 2).unwrap();
    entry.write(&0u16.to_le_bytes());
    let mut device = rig.device().unwrap();
    let chains = rig.take(&mut *device, 1);
    let twice = rig.take(&mut *device, 1);
    let mut burst = Burst::new(Arc::clone(&rig.config.map));
    assert_eq!(device.peek(&mut burst, 1), Err(RingFault::Twice));
    // Completed twice, it is still recorded once.
    device.complete(&chains[0], 0);
    device.complete(&twice[0], 0);
    device.publish();
    assert_eq!(rig.record()[16], 0);
}

#[test]
fn record_that_does_not_fit_the_ring_is_refused() {
    let fault = |rig: &Rig| match rig.device().map(|_| ()) {
        Err(SetupError::Record(fault)) => fault,
        other => panic!("{other:?}"),
    };
    for format in [Format::Split, Format::Packed] {
        let mut rig = Rig::new(format, 4);
        rig.post(4);
        let mut device = rig.device().unwrap();
        rig.take(&mut *device, 4);
        drop(device);
        let good = rig.record();
        let with = |at: u64, word: u16| {
            rig.write(0, &good);
            rig.write(at, &word.to_le_bytes());
            fault(&rig)
        };
        assert_eq!(with(8, 2), RecordFault::Version { version: 2 });
        assert_eq!(with(10, 3), RecordFault::Entries { entries: 3, size: 4 });
        assert_eq!(with(10, 9), RecordFault::Entries { entries: 9, size: 4 });
        match format {
            Format::Split => {
                assert_eq!(with(14, 1), RecordFault::Contradiction, "ahead of the ring");
                rig.write(0, &good);
                rig.write(14, &65533u16.to_le_bytes());
                assert_eq!(fault(&rig), RecordFault::Circle);
                rig.write(12, &7u16.to_le_bytes());
                assert_eq!(fault(&rig), RecordFault::Index);
            }
            Format::Packed => {
                assert_eq!(with(16, 4), RecordFault::Contradiction);
                assert_eq!(with(14, 5), RecordFault::Index);
                assert_eq!(with(32 + 6, 0), RecordFault::Contradiction, "a chain of none");
                assert_eq!(with(32 + 6, 2), RecordFault::Contradiction, "more than the ring has");
                assert_eq!(with(32 + 16, 4), RecordFault::Index, "an id beyond the ring");
                assert_eq!(with(32 + 16, words(&good[64 + 16..])[0]), RecordFault::Circle, "an id twice");
            }
        }
        rig.write(0, &good);
        assert_eq!(rig.device().map(|mut device| rig.take(&mut *device, 8).len()), Ok(4));
    }
}

#[test]
fn record_too_small_for_the_ring_is_refused_before_anything_is_written() {
    for format in [Format::Split, Format::Packed] {
        let mut rig = Rig::new(format, 64);
        rig.record = make_file(format, 1, 16).unwrap();
        let region = Region::map(rig.record.as_fd(), 0, part_bytes(format, 16)).unwrap();
        let part = region.part(format, 16, 0).unwrap();
        let refused = match format {
            Format::Split => rig.config.clone().recover_split(&part).map(|_| ()),
            Format::Packed => rig.config.clone().recover_packed(&part).map(|_| ()),
        };
        assert!(matches!(refused, Err(SetupError::Record(RecordFault::Entries { size: 64, .. }))));
        let mut bytes = [0; 64];
        rig.record.read_exact_at(&mut bytes, 0).unwrap();
        assert_eq!(bytes, [0; 64]);
    }
}

#[test]
fn own_records_are_kept_over_restarts_for_either_format_and_forgotten_on_demand() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("records");
    for format in [Format::Split, Format::Packed] {
        let mut rig = Rig::new(format, 4);
        rig.post(3);
        let start = |rig: &Rig, queues| -> Box<dyn DeviceRing> {
            let part = OwnRecords::open(&path, queues, 64).unwrap().part(format, 1).unwrap().unwrap();
            match format {
                Format::Split => Box::new(rig.config.clone().recover_split(&part).unwrap()),
                Format::Packed => Box::new(rig.config.clone().recover_packed(&part).unwrap()),
            }
        };
        let mut device = start(&rig, 2);
        assert_eq!(rig.take(&mut *device, 2).len(), 2);
        drop(device);
        let mut device = start(&rig, 2);
        assert_eq!(rig.take(&mut *device, 8).len(), 3);
        drop(device);
        let part = OwnRecords::open(&path, 2, 64).unwrap().part(format, 1).unwrap().unwrap();
        assert_eq!(part.check(), Ok(()));
        assert_eq!(OwnRecords::open(&path, 2, 64).unwrap().part(format, 2).unwrap().map(|_| ()), None);
        part.forget();
        let mut burst = Burst::new(Arc::clone(&rig.config.map));
        let mut device = start(&rig, 2);
        assert_eq!(device.peek(&mut burst, 8), Ok(3), "nothing is known of them");
        // Another number of queues: others' records.
        drop(device);
        let mut device = start(&rig, 3);
        assert_eq!(device.peek(&mut burst, 8), Ok(3));
    }
    let facts = std::fs::metadata(&path).unwrap();
    let most = OwnRecords::open(&path, 512, 1024).map(|_| std::fs::metadata(&path).unwrap()).unwrap();
    assert!(facts.len() > 0 && most.len() > 20 << 20 && most.st_blocks() == 0, "{most:?}");
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(folder.path().join("elsewhere"), &path).unwrap();
    assert!(OwnRecords::open(&path, 2, 64).is_err());
}

/// A new VM's ring is at the start, where that of the one before it was when all its requests were still under way.
#[test]
fn own_record_of_another_ring_at_the_same_position_is_forgotten() {
    for format in [Format::Split, Format::Packed] {
        let records = OwnRecords::anonymous(1, 64).unwrap();
        let part = records.part(format, 0).unwrap().unwrap();
        let taken = |rig: &Rig, goes_on| {
            part.take_for(&rig.config, goes_on);
            let (again, mut device): (_, Box<dyn DeviceRing>) = match format {
                Format::Split => {
                    let device = rig.config.clone().recover_split(&part).unwrap();
                    (device.taken_before(), Box::new(device))
                }
                Format::Packed => {
                    let device = rig.config.clone().recover_packed(&part).unwrap();
                    (device.taken_before(), Box::new(device))
                }
            };
            rig.take(&mut *device, 8);
            again
        };
        let mut rig = Rig::new(format, 4);
        rig.post(3);
        assert_eq!(taken(&rig, false), 0);
        assert_eq!(taken(&rig, true), 3, "it is the same");
        let mut other = Rig::new(format, 8);
        other.post(2);
        assert_eq!(taken(&other, true), 0, "these are none of the other's");
        assert_eq!(taken(&other, true), 2);
        assert_eq!(taken(&other, false), 0, "it begins anew");
    }
}

proptest! {
    /// Whatever the record and the ring hold: a ring or an error, no panic, and no more chains than there are.
    #[test]
    fn hostile_record_neither_ends_nor_holds_up_anybody(
        packed: bool, noise in prop::collection::vec(any::<u8>(), 160),
        places in prop::collection::vec((0..160usize, 0..6u8), 0..12), is_noise: bool, posted in 0..5u32,
    ) {
        let format = if packed { Format::Packed } else { Format::Split };
        let mut rig = Rig::new(format, 4);
        rig.post(posted.min(4));
        let mut device = rig.device().unwrap();
        rig.take(&mut *device, 2);
        drop(device);
        let mut record = if is_noise { noise } else { rig.record() };
        record.truncate(part_bytes(format, 4) as usize);
        record[8..12].copy_from_slice(&[1, 0, 4, 0]);
        for (at, value) in places {
            if let Some(byte) = record.get_mut(at) { *byte = value }
        }
        rig.write(0, &record);
        for _ in 0..2 {
            let Ok(mut device) = rig.device() else { break };
            let mut burst = Burst::new(Arc::clone(&rig.config.map));
            let mut taken = 0;
            for _ in 0..8 {
                let Ok(count) = device.peek(&mut burst, 3) else { break };
                device.consume(burst.chains());
                taken += count;
                burst.chains().iter().for_each(|chain| device.complete(chain, 0));
                if taken.is_multiple_of(2) { device.publish(); }
            }
            device.publish();
            prop_assert!(taken <= 8);
        }
    }
}
