//! Pumps of disks that die with requests under way, and their successors: whatever the disk had done of them, and in whichever
//! order, each ends once for the guest, and what it wrote is there.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of a test stop it where something is not as it must be"
)]

#[path = "shared/bed.rs"]
#[allow(dead_code, reason = "has more than is needed here")]
mod bed;

use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use ringway_pmd::block::backing::{BackingQueue, Ended, Operation, Outcome, Submitted, Taken};
use ringway_pmd::block::disk::{BlockDevice, Disk, Geometry, QueueSeat};
use ringway_pmd::block::plan::Plan;
use ringway_pmd::vdpa::VdpaDevice as _;
use ringway_pmd::vdpa::{DeviceHost, DriverError};
use ringway_ring::chain::Span;
use ringway_ring::features::Features;
use ringway_ring::inflight::OwnRecords;
use ringway_ring::queue::{Completion, Format};

use bed::{Bed, OUT, formats, spec};

/// A disk that ends any of its requests at any time.
#[derive(Debug)]
struct AnyOrder {
    bytes: Arc<Mutex<Vec<u8>>>,
    queues: u64,
}

struct AnyOrderQueue {
    bytes: Arc<Mutex<Vec<u8>>>,
    waiting: Vec<(u16, Operation)>,
    dice: Dice,
}

/// Numbers that look random.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % end
    }
}

const DISK: usize = 1 << 20;

impl Disk for AnyOrder {
    type Queue = AnyOrderQueue;
    fn geometry(&self) -> Geometry {
        Geometry {
            bytes: DISK as u64,
            blk_size: 512,
            physical: 512,
            optimal: 0,
            is_read_only: false,
            discard: None,
            write_zeroes: None,
            depth: 64,
        }
    }
    fn queue(&mut self, _: QueueSeat<'_>) -> Result<AnyOrderQueue, DriverError> {
        self.queues += 1;
        let (bytes, dice) = (Arc::clone(&self.bytes), Dice(self.queues));
        Ok(AnyOrderQueue { bytes, waiting: Vec::new(), dice })
    }
}

impl BackingQueue for AnyOrderQueue {
    fn submit(&mut self, slot: u16, operation: Operation, _: Span<'_>) -> Submitted {
        if self.waiting.len() == 24 {
            return Submitted::Full;
        }
        self.waiting.push((slot, operation));
        Submitted::Taken
    }

    fn turn(&mut self, taken: &dyn Taken, _: u64, ended: &mut Ended) -> bool {
        let mut bytes = self.bytes.lock().unwrap();
        for _ in 0..self.dice.below(4).min(self.waiting.len()) {
            let nth = self.dice.below(self.waiting.len());
            let (slot, operation) = self.waiting.swap_remove(nth);
            if let Operation::Write { offset, .. } = operation {
                let data = taken.data(slot);
                data.read(&mut bytes[offset as usize..][..data.len() as usize]);
            }
            ended.push(slot, Outcome::Done);
        }
        true
    }
}

/// A guest whose pump dies after each of `lives` steps. Whether each of its requests ended once, and is on the disk.
fn survives(format: Format, lives: &[u8], seed: u64, is_recorded: bool) -> bool {
    let bytes = Arc::new(Mutex::new(vec![0; DISK]));
    let disk = AnyOrder { bytes: Arc::clone(&bytes), queues: seed };
    let mut device = BlockDevice::new(Plan::new(&spec(&[])).unwrap(), disk, DeviceHost::unheard()).unwrap();
    let mut bed = Bed::new(format, Features::NONE, &mut device);
    let records = OwnRecords::anonymous(1, 256).unwrap();
    let record = || is_recorded.then(|| records.part(format, 0).unwrap().unwrap());
    bed.die(&mut device, record());
    let (mut dice, mut times, mut asked) = (Dice(seed), Vec::<u32>::new(), Vec::new());
    let take = |bed: &mut Bed, times: &mut Vec<u32>| {
        let mut done = [Completion::default(); 256];
        let Ok(count) = bed.driver.collect(&mut done) else { return false };
        done[..count].iter().for_each(|done| times[done.token as usize] += 1);
        true
    };
    for steps in lives {
        for _ in 0..*steps {
            match dice.below(4) {
                0 | 1 if bed.driver.free_slots() > 8 => {
                    let token = times.len() as u32;
                    let cuts = [dice.below(17)];
                    asked.push(bed.ask(token, OUT, token.into(), &[token as u8; 512], 0, &cuts));
                    times.push(0);
                }
                2 if !take(&mut bed, &mut times) => return false,
                _ => drop(bed.poll()),
            }
        }
        bed.die(&mut device, record());
    }
    for _ in 0..1000 {
        bed.poll();
        if !take(&mut bed, &mut times) {
            return false;
        }
    }
    let bytes = bytes.lock().unwrap();
    bed.fault.reported().is_none()
        && times.iter().all(|times| *times == 1)
        && asked.iter().all(|asked| bed.status(asked) == 0)
        && (0..times.len()).all(|token| bytes[token * 512..][..512] == [token as u8; 512])
}

proptest! {
    #[test]
    fn requests_of_a_pump_that_died_are_done_once_by_its_successors(
        format in formats(),
        lives in prop::collection::vec(any::<u8>(), 1..8),
        seed in any::<u64>(),
    ) {
        prop_assert!(survives(format, &lives, seed, true));
    }
}

/// What is recorded is of another guest's queue, of which this one cannot be: it begins anew, and says so.
/// A packed ring has no index that would tell: there the ring's place does.
#[test]
fn own_record_that_its_ring_contradicts_is_forgotten_and_told() {
    let format = Format::Split;
    let disk = || AnyOrder { bytes: Arc::new(Mutex::new(vec![0; DISK])), queues: 1 };
    let device = || BlockDevice::new(Plan::new(&spec(&[])).unwrap(), disk(), DeviceHost::unheard()).unwrap();
    let records = OwnRecords::anonymous(1, 256).unwrap();
    let record = || records.part(format, 0).unwrap();
    let mut before = device();
    let mut bed = Bed::new(format, Features::NONE, &mut before);
    bed.die(&mut before, record());
    // More than end in a few turns.
    for token in 0..40 {
        bed.ask(token, OUT, 0, &[1; 512], 0, &[]);
    }
    for _ in 0..3 {
        bed.poll();
    }
    drop(bed);
    let mut after = device();
    let mut bed = Bed::new(format, Features::NONE, &mut after);
    bed.die(&mut after, record());
    let note = after.note().unwrap_or_default();
    assert!(note.contains("of another guest's queue"), "{format:?}: {note}");
    let asked = bed.ask(0, OUT, 0, &[2; 512], 0, &[]);
    let mut done = [Completion::default(); 4];
    let ended = (0..100).any(|_| {
        bed.poll();
        bed.driver.collect(&mut done).unwrap() == 1
    });
    assert!(ended && bed.status(&asked) == 0, "{format:?}");
}

/// The control: successors that know nothing lose requests, or end them twice.
#[test]
fn requests_of_a_pump_that_died_are_not_done_once_without_a_record() {
    for format in [Format::Split, Format::Packed] {
        assert!((1..50).any(|seed| !survives(format, &[60, 60, 60], seed, false)), "{format:?}");
    }
}
