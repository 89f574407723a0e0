//! How much a guest can make a walk over chains that others completed read, whatever it writes meanwhile.

#![allow(clippy::unwrap_used, reason = "what fails here fails the test")]

use std::fs::File;
use std::sync::Mutex;

use rustix::fs::MemfdFlags;

use super::*;
use crate::guest::{Region, RegionSpec};
use crate::position::PositionPage;
use crate::queue::RingSize;

const GPA: u64 = 0x10_0000;
const SIZE: u16 = 8192;

/// How a guest changes a descriptor while it is looked at.
#[derive(Debug, Clone, Copy)]
enum Guest {
    /// Not at all: all are marked used, each as a chain of its own.
    Honest,
    /// So that the end of each chain is looked for as far as it may be: available for as long as that is looked for, and
    /// used when it is in line.
    Racing,
    /// Now the one, now the other.
    Wavering,
}

/// An area of a ring whose other side answers as it likes.
struct Area {
    guest: Guest,
    /// What was written, or put there first: length, id and flags by slot.
    words: Mutex<Vec<u64>>,
    /// How often the flags of each slot were looked at.
    looks: Mutex<Vec<u32>>,
}

impl Area {
    fn flags(&self, slot: usize) -> u16 {
        let mut looks = self.looks.lock().unwrap();
        looks[slot] += 1;
        let word = self.words.lock().unwrap()[slot];
        match self.guest {
            _ if word != 0 => (word >> 48) as u16,
            Guest::Honest => used(true),
            Guest::Racing if looks[slot] as usize > slot.min(MAX_CHAIN - 1) => used(true),
            Guest::Wavering if looks[slot] % 2 == 1 => used(true),
            Guest::Racing | Guest::Wavering => available(true),
        }
    }
}

impl Words for Area {
    fn size(&self) -> usize {
        16 * usize::from(SIZE)
    }
    fn read_u16(&self, at: usize) -> u16 {
        match at % 16 {
            FLAGS => self.flags(at / 16),
            // An id of its own.
            ID => (at / 16) as u16,
            _ => 0,
        }
    }
    fn read_u32(&self, _: usize) -> u32 {
        0
    }
    fn read_u64(&self, at: usize) -> u64 {
        if at % 16 == ADDR { GPA } else { self.words.lock().unwrap()[at / 16] }
    }
    fn write_u16(&self, _: usize, _: u16) {}
    fn write_u32(&self, _: usize, _: u32) {}
    fn write_u64(&self, at: usize, value: u64) {
        self.words.lock().unwrap()[at / 16] = value;
    }
}

/// A ring whose first `count` descriptors are available, each a chain of its own.
fn device(guest: Guest, count: usize) -> PackedDevice<Area> {
    let file = File::from(rustix::fs::memfd_create("walk-test", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(4096).unwrap();
    let spec = RegionSpec { gpa: GPA, size: 4096, user_addr: GPA, file_offset: 0, file: file.into() };
    let config = QueueConfig {
        size: RingSize::new(Format::Packed, SIZE.into()).unwrap(),
        features: Features::VERSION_1 | Features::RING_PACKED,
        map: Arc::new(GuestMap::new(vec![Region::map(spec).unwrap()]).unwrap()),
        desc_user_addr: 0,
        driver_user_addr: 0,
        device_user_addr: 0,
        position: Position::START,
        keeper: PositionPage::anonymous().unwrap().slot(0).unwrap(),
        skip_used: false,
    };
    let area = || {
        let mut words = vec![0; SIZE.into()];
        words[..count].fill(u64::from(available(true)) << 48 | 1);
        Area { guest, words: Mutex::new(words), looks: Mutex::new(vec![0; SIZE.into()]) }
    };
    PackedDevice::over(config, Areas { desc: area(), driver: area(), device: area() }).unwrap()
}

impl PackedDevice<Area> {
    /// Looks at flags, since the last call.
    fn looks(&self) -> u32 {
        let mut looks = self.areas.desc.looks.lock().unwrap();
        std::mem::replace(&mut *looks, vec![0; SIZE.into()]).iter().sum()
    }
}

const GUESTS: [Guest; 3] = [Guest::Honest, Guest::Racing, Guest::Wavering];
/// Looks besides: of the burst itself.
const OTHER_LOOKS: u32 = 4;

#[test]
fn passing_over_what_others_completed_reads_so_much_in_a_turn() {
    for guest in GUESTS {
        let mut device = device(guest, 0);
        let mut burst = Burst::new(Arc::clone(&device.map));
        for _ in 0..4 {
            // Some were made available meanwhile.
            device.peek(&mut burst, 1).unwrap();
            let looks = device.looks();
            assert!(looks <= u32::from(MOST_PASSED) + MAX_CHAIN as u32 + OTHER_LOOKS, "{guest:?}: {looks}");
        }
    }
}

#[test]
fn all_that_others_completed_is_passed_over_in_several_turns() {
    let mut device = device(Guest::Honest, 0);
    let mut burst = Burst::new(Arc::clone(&device.map));
    for turn in 1..=SIZE / MOST_PASSED {
        assert_eq!(device.peek(&mut burst, 8), Ok(0));
        let passed = Cursor::new(turn * MOST_PASSED % SIZE, turn * MOST_PASSED < SIZE);
        assert_eq!((device.avail, device.published), (passed, passed));
        assert_eq!(device.has_available(), turn * MOST_PASSED < SIZE, "a ring does not sleep on its way");
    }
    assert_eq!(device.peek(&mut burst, 8), Ok(0));
    assert!(!device.has_available());
}

#[test]
fn publishing_with_what_others_completed_reads_the_ring_once() {
    for guest in GUESTS {
        let mut device = device(guest, 1);
        let mut burst = Burst::new(Arc::clone(&device.map));
        assert_eq!(device.peek(&mut burst, 1), Ok(1));
        device.consume(burst.chains());
        device.complete(&burst.chains()[0], 0);
        device.publish();
        let looks = device.looks();
        assert!(looks <= u32::from(SIZE) + OTHER_LOOKS, "{guest:?}: {looks}");
        if matches!(guest, Guest::Honest) {
            assert_eq!(device.published, Cursor::new(0, false), "all of them were");
        }
    }
}

#[test]
fn giving_back_what_was_torn_reads_the_ring_once() {
    for guest in GUESTS {
        let mut device = device(guest, 1);
        device.give_back_torn();
        // It is published, with what others may have completed behind.
        let looks = device.looks();
        assert!(looks <= 2 * u32::from(SIZE) + OTHER_LOOKS, "{guest:?}: {looks}");
    }
}
