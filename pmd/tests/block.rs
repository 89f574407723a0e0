//! Block devices between driver-side rings: what is written is read, however requests are cut into descriptors and whenever a
//! disk ends them; what cannot be done is answered with an error under its name; what breaks the rules faults its ring alone.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    reason = "helpers of a test stop it where something is not as it must be"
)]

#[path = "shared/bed.rs"]
mod bed;

use proptest::prelude::*;
use ringway_engine::{Armed, Budget, Polled};
use ringway_pmd::block::backing::{BackingQueue, Ended, Operation, Outcome, Submitted, Taken};
use ringway_pmd::block::disk::{BlockDevice, Disk, Geometry, QueueSeat};
use ringway_pmd::block::plan::Plan;
use ringway_pmd::block::{F_CONFIG_WCE, F_FLUSH, RangeLimits};
use ringway_pmd::counters::DropReason;
use ringway_pmd::drivers::sim_blk;
use ringway_pmd::vdpa::{ConfigError, DeviceHost, DriverError, MakePump, VdpaDevice};
use ringway_ring::chain::Span;
use ringway_ring::features::Features;
use ringway_ring::queue::{Format, RingFault};
use ringway_ring::tsc;

use bed::{Bed, DISCARD, FLUSH, IN, OUT, WRITE_ZEROES, formats, range, spec};

fn in_memory(words: &[(&str, &str)]) -> BlockDevice<sim_blk::MemoryDisk> {
    sim_blk::device(&spec(words), DeviceHost::unheard()).unwrap()
}

const DISK: usize = 1 << 20;
const GET_ID: u32 = 8;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn disk_is_what_was_written_to_it_however_requests_are_cut(
        format in formats(),
        slow in any::<bool>(),
        asks in prop::collection::vec((0..6u32, 0u64..2048, 1u64..600, prop::collection::vec(0usize..300_000, 0..5), any::<u8>()), 1..24),
    ) {
        let mut memory = in_memory(&[("size", "1M")]);
        let mut late = late_disk();
        let device: &mut dyn MakePump = if slow { &mut late } else { &mut memory };
        let mut bed = Bed::new(format, F_FLUSH, device);
        let mut model = vec![0u8; DISK];
        for (kind, sector, sectors, cuts, seed) in asks {
            let (at, len) = (sector as usize * 512, sectors as usize * 512);
            let is_on = at + len <= DISK;
            let expected = if is_on { 0 } else { 1 };
            match kind {
                0 | 1 => {
                    let (status, written, data) = bed.done(IN, sector, &[], len, &cuts);
                    prop_assert_eq!((status, written), (expected, if is_on { len as u32 + 1 } else { 1 }));
                    if is_on { prop_assert_eq!(&data[..], &model[at..at + len]); }
                }
                2 | 3 => {
                    let bytes: Vec<u8> = (0..len).map(|n| (n as u8).wrapping_mul(31).wrapping_add(seed)).collect();
                    let (status, written, _) = bed.done(OUT, sector, &bytes, 0, &cuts);
                    prop_assert_eq!((status, written), (expected, 1));
                    if is_on { model[at..at + len].copy_from_slice(&bytes); }
                }
                4 => prop_assert_eq!(bed.done(FLUSH, 0, &[], 0, &cuts).0, 0),
                _ => {
                    // Two ranges, of which the second may be beyond the end.
                    let ranges = [range(0, 3, 1), range(sector, sectors as u32, 0)].concat();
                    prop_assert_eq!(bed.done(WRITE_ZEROES, 0, &ranges, 0, &cuts).0, expected);
                    model[..3 * 512].fill(0);
                    if is_on { model[at..at + len].fill(0); }
                }
            }
        }
        prop_assert_eq!(bed.fault.reported(), None);
    }

    #[test]
    fn requests_that_end_in_any_order_end_once_each(
        format in formats(),
        count in 1usize..80,
        order in any::<u64>(),
    ) {
        let mut late = late_disk();
        let mut bed = Bed::new(format, Features::NONE, &mut late);
        let mut asked = Vec::new();
        for token in 0..count as u32 {
            let block = [token as u8; 512];
            let kind = if token % 3 == 0 { FLUSH } else { OUT };
            let output: &[u8] = if kind == OUT { &block } else { &[] };
            asked.push(bed.ask(token, kind, token.into(), output, 0, &[order as usize % 17]));
        }
        let mut seen = vec![0; count];
        for _ in 0..200 {
            bed.poll();
            for done in bed.collect() { seen[done.token as usize] += 1; }
        }
        prop_assert!(seen.iter().all(|times| *times == 1), "{seen:?}");
        prop_assert!(asked.iter().all(|asked| bed.status(asked) == 0));
        for token in (0..count as u32).filter(|token| token % 3 != 0) {
            prop_assert_eq!(bed.done(IN, token.into(), &[], 512, &[]).2, vec![token as u8; 512]);
        }
    }
}

#[test]
fn what_cannot_be_done_is_answered_under_its_name() {
    for format in [Format::Split, Format::Packed] {
        let mut device = in_memory(&[("size", "1M"), ("blk_size", "4096"), ("serial", "disk-1")]);
        let mut bed = Bed::new(format, F_FLUSH, &mut device);
        let block = [1; 4096];
        assert_eq!(bed.done(OUT, 1, &block, 0, &[]).0, 1, "not on a block");
        assert_eq!(bed.done(OUT, 0, &block[..512], 0, &[]).0, 1, "not a block");
        assert_eq!(bed.drops(DropReason::Misaligned), 2);
        assert_eq!(bed.done(OUT, 2048, &block, 0, &[]).0, 1);
        assert_eq!(bed.done(IN, u64::MAX - 7, &[], 4096, &[]).0, 1, "no sum wraps");
        assert_eq!(bed.done(IN, 1 << 55, &[], 4096, &[]).0, 1, "no product wraps");
        assert_eq!(bed.drops(DropReason::BeyondEnd), 3);
        assert_eq!(bed.done(3, 0, &[], 0, &[]).0, 2, "no such type");
        assert_eq!(bed.done(DISCARD, 0, &range(0, 8, 1), 0, &[]).0, 2, "no such flag");
        assert_eq!(bed.drops(DropReason::Unsupported), 2);
        assert_eq!(bed.done(DISCARD, 0, &range(0, 8, 0)[..15], 0, &[]).0, 1);
        assert_eq!(bed.done(DISCARD, 0, &[], 0, &[]).0, 1);
        assert_eq!(bed.done(DISCARD, 0, &range(0, u32::MAX, 0), 0, &[]).0, 1);
        assert_eq!(bed.drops(DropReason::BadRange), 3);
        // No sector is asked for.
        assert_eq!((bed.done(IN, 0, &[], 0, &[]).0, bed.done(OUT, 8, &[], 0, &[]).0), (0, 0));
        // What was a barrier once.
        assert_eq!(bed.done(OUT | 1 << 31, 0, &block, 0, &[]).0, 0);
        let (status, written, id) = bed.done(GET_ID, 0, &[], 20, &[]);
        assert_eq!((status, written, &id[..7]), (0, 21, &b"disk-1\0"[..]));
        assert_eq!(bed.done(GET_ID, 0, &[], 3, &[]).2, b"dis");
        assert_eq!(bed.fault.reported(), None);
    }
}

#[test]
fn nothing_is_written_to_what_is_read_only() {
    let mut device = in_memory(&[("size", "1M"), ("ro", "on")]);
    assert!(!device.facts().features.contains(ringway_pmd::block::F_DISCARD));
    assert!(device.facts().features.contains(ringway_pmd::block::F_RO));
    let shown = device.attributes();
    assert_eq!((shown["ro"].as_str(), shown["discard"].as_str()), ("on", "off"), "as it is in force");
    let mut bed = Bed::new(Format::Split, Features::NONE, &mut device);
    assert_eq!(bed.done(OUT, 0, &[1; 512], 0, &[]).0, 1);
    assert_eq!(bed.done(WRITE_ZEROES, 0, &range(0, 8, 0), 0, &[]).0, 2);
    assert_eq!(bed.done(IN, 0, &[], 512, &[]).2, [0; 512]);
    assert_eq!(bed.drops(DropReason::ReadOnly), 1);
}

#[test]
fn request_without_header_or_status_faults_its_ring() {
    for (readable, writable) in [(15, 1), (16, 0)] {
        let mut device = in_memory(&[("size", "1M")]);
        let mut bed = Bed::new(Format::Split, Features::NONE, &mut device);
        let mut buffers = bed.buffers(readable, &[], false);
        if writable > 0 {
            buffers.extend(bed.buffers(writable, &[], true));
        }
        bed.driver.add(&buffers, 0).unwrap();
        bed.driver.publish();
        bed.poll();
        assert_eq!(bed.fault.reported(), Some(RingFault::TooShort));
    }
}

#[test]
fn write_cache_is_as_the_guest_acknowledged_it() {
    let mut device = late_disk();
    let write = |device: &mut BlockDevice<LateDisk>, features| {
        device.negotiated(features).unwrap();
        let mut bed = Bed::new(Format::Split, features, device);
        bed.done(OUT, 0, &[1; 512], 0, &[]);
        LAST_DURABLE.with(std::cell::Cell::get)
    };
    assert!(write(&mut device, Features::NONE), "who never flushes is safe");
    assert!(!write(&mut device, F_FLUSH));
    assert!(write(&mut device, F_CONFIG_WCE), "who cannot flush has no cache to switch");
    device.reset(std::time::Duration::from_secs(1)).unwrap();
    assert!(!write(&mut device, F_FLUSH | F_CONFIG_WCE));
    assert_eq!(device.config().write(32, &[0]), Ok(()));
    assert!(write(&mut device, F_FLUSH | F_CONFIG_WCE));
    assert_eq!(device.config().write(32, &[2]), Err(ConfigError::Value));
    assert_eq!(device.config().write(0, &[9]), Err(ConfigError::ReadOnly));
    device.reset(std::time::Duration::from_secs(1)).unwrap();
    assert_eq!(device.config().write(32, &[0]), Err(ConfigError::ReadOnly), "not acknowledged");
}

#[test]
fn pump_that_is_taken_back_ends_what_it_has_and_takes_no_more() {
    let mut late = late_disk();
    let mut bed = Bed::new(Format::Split, Features::NONE, &mut late);
    for token in 0..5 {
        bed.ask(token, FLUSH, 0, &[], 0, &[]);
    }
    bed.poll();
    bed.ask(5, FLUSH, 0, &[], 0, &[]);
    let mut stopped = bed.pump.begin_stop();
    for _ in 0..100 {
        if stopped {
            break;
        }
        bed.poll();
        stopped = bed.pump.stopped();
    }
    assert!(stopped);
    assert_eq!(bed.collect().len(), 5);
    bed.poll();
    for _ in 0..20 {
        bed.poll();
    }
    assert_eq!(bed.collect().len(), 1, "placed again it goes on");
}

#[test]
fn idle_queue_sleeps_until_it_is_kicked() {
    let mut device = in_memory(&[("size", "1M")]);
    let mut bed = Bed::new(Format::Packed, Features::NONE, &mut device);
    assert_eq!(bed.poll(), Polled::Idle);
    assert!(matches!(bed.pump.arm(), Armed::Sleep { within_ns: None }));
    bed.pump.disarm();
    bed.ask(0, FLUSH, 0, &[], 0, &[]);
    assert_eq!(bed.pump.arm(), Armed::HasWork);
    assert_eq!(bed.poll(), Polled::Moved(1));
}

thread_local! {
    static LAST_DURABLE: std::cell::Cell<bool> = const { std::cell::Cell::new(false) };
}

/// A disk that ends requests late, the newest first, a few a turn, and takes eight at a time.
#[derive(Debug)]
struct LateDisk;

struct LateQueue {
    bytes: Vec<u8>,
    waiting: Vec<(u16, Operation)>,
    turn: u32,
}

fn late_disk() -> BlockDevice<LateDisk> {
    BlockDevice::new(Plan::new(&spec(&[])).unwrap(), LateDisk, DeviceHost::unheard()).unwrap()
}

impl Disk for LateDisk {
    type Queue = LateQueue;
    fn geometry(&self) -> Geometry {
        let limits = RangeLimits { max_sectors: 4096, max_ranges: 16 };
        Geometry {
            bytes: DISK as u64,
            blk_size: 512,
            physical: 512,
            optimal: 0,
            is_read_only: false,
            discard: Some((limits, 512)),
            write_zeroes: Some((limits, true)),
            depth: 64,
        }
    }
    fn queue(&mut self, _: QueueSeat<'_>) -> Result<LateQueue, DriverError> {
        Ok(LateQueue { bytes: vec![0; DISK], waiting: Vec::new(), turn: 0 })
    }
}

impl BackingQueue for LateQueue {
    fn submit(&mut self, slot: u16, operation: Operation, _: Span<'_>) -> Submitted {
        if self.waiting.len() == 8 {
            return Submitted::Full;
        }
        assert!(self.waiting.iter().all(|(other, _)| *other != slot), "one operation a slot");
        if let Operation::Write { is_durable, .. } = operation {
            LAST_DURABLE.with(|cell| cell.set(is_durable));
        }
        self.waiting.push((slot, operation));
        Submitted::Taken
    }

    fn turn(&mut self, taken: &dyn Taken, _: u64, ended: &mut Ended) -> bool {
        self.turn += 1;
        if self.turn.is_multiple_of(2) {
            return false;
        }
        for _ in 0..3 {
            let Some((slot, operation)) = self.waiting.pop() else { break };
            let data = taken.data(slot);
            let len = data.len() as usize;
            match operation {
                Operation::Read { offset } => {
                    data.write(&self.bytes[offset as usize..offset as usize + len]);
                }
                Operation::Write { offset, .. } => {
                    data.read(&mut self.bytes[offset as usize..offset as usize + len]);
                }
                Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, .. } => {
                    self.bytes[offset as usize..(offset + len) as usize].fill(0)
                }
                Operation::Flush => {}
            }
            ended.push(slot, Outcome::Done);
        }
        true
    }
}

#[test]
fn guest_gets_what_it_is_allowed_and_its_requests_wait() {
    let mut device = in_memory(&[("size", "1M"), ("iops", "100"), ("iops_burst", "3")]);
    assert_eq!(device.attributes().get("iops").map(String::as_str), Some("100"));
    let mut bed = Bed::new(Format::Split, Features::NONE, &mut device);
    for token in 0..8 {
        bed.ask(token, FLUSH, 0, &[], 0, &[]);
    }
    let start = tsc::cycles();
    let poll = |bed: &mut Bed, ms: u64| {
        bed.pump.poll(&Budget::default(), start + ms * tsc::hertz() / 1000);
        bed.collect().len()
    };
    assert_eq!(poll(&mut bed, 0), 4, "a burst, and one");
    assert_eq!(poll(&mut bed, 1), 0);
    let Armed::Sleep { within_ns: Some(ns) } = bed.pump.arm() else { panic!("it waits") };
    assert!((8_000_000..=10_000_000).contains(&ns), "{ns}");
    bed.pump.disarm();
    // However long it has to wait by then: the limit may be lifted meanwhile.
    let slow = [("iops".to_owned(), "1".to_owned()), ("iops_burst".to_owned(), "0".to_owned())].into();
    device.set(&slow, std::time::Duration::from_secs(1)).unwrap();
    assert_eq!((poll(&mut bed, 1), poll(&mut bed, 1)), (1, 0));
    assert!(matches!(bed.pump.arm(), Armed::Sleep { within_ns: Some(100_000_000) }));
    bed.pump.disarm();
    let before = [("iops".to_owned(), "100".to_owned()), ("iops_burst".to_owned(), "0".to_owned())].into();
    device.set(&before, std::time::Duration::from_secs(1)).unwrap();
    assert_eq!(poll(&mut bed, 2), 1);
    assert_eq!((poll(&mut bed, 3), poll(&mut bed, 13)), (0, 1));
    // No limit any more: at once.
    let none = [("iops".to_owned(), "0".to_owned())].into();
    device.set(&none, std::time::Duration::from_secs(1)).unwrap();
    assert_eq!(poll(&mut bed, 14), 1);
    let requests = bed.counters.snapshot().requests;
    assert_eq!(requests.iter().map(|of_kind| of_kind.took.count()).collect::<Vec<_>>(), [0, 0, 8, 0, 0]);
    assert!(requests.iter().all(|of_kind| of_kind.took.longest() < tsc::hertz() * 60));
}

#[test]
fn what_is_asked_of_a_disk_is_taken_up_to_its_limits() {
    let asked = |name: &str, value: &str| sim_blk::device(&spec(&[(name, value)]), DeviceHost::unheard());
    for (name, most, beyond) in [
        ("num_queues", "64", "65"),
        ("seg_max", "254", "255"),
        ("size", "1M", "64T"),
        ("serial", "12345678901234567890", "123456789012345678901"),
        ("blk_size", "4096", "8192"),
        ("iops", "1000", "1k"),
        ("bps", "1000k", "1x"),
    ] {
        assert!(asked(name, most).is_ok(), "{name} {most}");
        let error = asked(name, beyond).unwrap_err().to_string();
        assert!(error.starts_with(&format!("{name} {beyond}: ")), "{error}");
    }
    for (name, value) in
        [("num_queues", "0"), ("num_queues", "04"), ("size", "0"), ("size", "1000"), ("serial", "")]
    {
        assert!(asked(name, value).is_err(), "{name} {value}");
    }
    let device = in_memory(&[]);
    assert_eq!(device.facts().limits.max_vqs, 16);
    assert_eq!(device.attributes().get("seg_max").map(String::as_str), Some("126"));
}

#[test]
fn request_in_more_pieces_than_are_kept_is_refused() {
    let plan = Plan::new(&spec(&[("seg_max", "1")])).unwrap();
    let mut device = BlockDevice::new(plan, LateDisk, DeviceHost::unheard()).unwrap();
    let mut bed = Bed::new(Format::Split, Features::NONE, &mut device);
    let cuts = |pieces: usize| (1..pieces).map(|nth| nth * 8).collect::<Vec<_>>();
    // Data and header in pieces, and the status.
    assert_eq!(bed.done(OUT, 0, &[1; 496 + 16], 0, &cuts(34)).0, 0);
    assert_eq!(bed.done(OUT, 0, &[1; 496 + 16], 0, &cuts(35)).0, 1);
    assert_eq!(bed.drops(DropReason::TooManySegments), 1);
}

#[test]
fn file_of_memory_is_one_and_is_one_disks() {
    let folder = tempfile::tempdir_in("/dev/shm").unwrap();
    let path = folder.path().join("disk").display().to_string();
    let mut first = in_memory(&[("size", "1M"), ("path", &path)]);
    let mut bed = Bed::new(Format::Split, Features::NONE, &mut first);
    assert_eq!(bed.done(OUT, 0, &[7; 512], 0, &[]).0, 0);
    let why = |words: &[(&str, &str)]| {
        let mut device = in_memory(words);
        let refused = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            Bed::new(Format::Split, Features::NONE, &mut device);
        }));
        *refused.unwrap_err().downcast::<String>().unwrap()
    };
    assert!(why(&[("size", "1M"), ("path", &path)]).contains("is in use as a disk"));
    assert!(why(&[("size", "1M"), ("path", "/proc/version")]).contains("is not on tmpfs or hugetlbfs"));
    let inner = folder.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    assert!(why(&[("size", "1M"), ("path", &inner.display().to_string())]).contains("s a directory"));
    drop((bed, first));
    let mut again = in_memory(&[("size", "1M"), ("path", &path)]);
    let mut bed = Bed::new(Format::Split, Features::NONE, &mut again);
    assert_eq!(bed.done(IN, 0, &[], 512, &[]).2, [7; 512]);
}

#[test]
fn guest_that_was_given_up_has_nothing_written_to_its_memory_whatever_ends() {
    for format in [Format::Split, Format::Packed] {
        let mut memory = in_memory(&[("size", "1M")]);
        let mut late = late_disk();
        for device in [&mut memory as &mut dyn MakePump, &mut late] {
            let mut bed = Bed::new(format, F_FLUSH, device);
            assert_eq!(bed.done(OUT, 0, &[7; 300_000 / 512 * 512], 0, &[]).0, 0);
            for token in 1..5 {
                bed.ask(token, IN, 0, &[], 200_192, &[]);
            }
            bed.ask(5, OUT, 0, &[8; 200_192], 0, &[]);
            bed.pump.poll(&Budget { bytes: 4096, ..Budget::default() }, tsc::cycles());
            assert!(!bed.pump.begin_stop());
            let before = bed.all();
            bed.pump.give_up();
            for _ in 0..1000 {
                bed.poll();
            }
            assert!(bed.pump.stopped());
            assert!(bed.all() == before, "{format:?}: something was written");
        }
    }
}
