//! A peer that writes anything anywhere, at any time: never a panic, never an access outside guest memory, always a
//! named fault or progress.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use proptest::prelude::*;
use ringway_ring::chain::{Burst, Chain, MAX_CHAIN};
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::position::Position;
use ringway_ring::queue::{Completion, DeviceRing, DriverBuffer, Format, RingFault};
use support::{DATA_BYTES, DATA_GPA, Desc, INDIRECT, NEXT, RawRing, Shape, WRITE};

/// What the data regions are filled with: bytes read through a burst are these, or come from the ring's region.
const FILL: u8 = 0xd5;
const END: u64 = DATA_GPA + 2 * DATA_BYTES;

/// One corruption: 16 bits at some place of an area or of a table.
#[derive(Debug, Clone)]
struct Scribble {
    area: usize,
    at: proptest::sample::Index,
    value: u16,
}

fn scribble() -> impl Strategy<Value = Scribble> {
    let value = prop_oneof![
        3 => any::<u16>(),
        3 => 0u16..10,
        2 => Just(0x80u16),
        2 => Just(0x8000u16),
        1 => Just(0x8080u16),
        2 => (0u16..16).prop_map(|flags| 0x80 | flags),
        1 => Just(0xffff),
    ];
    (0usize..4, any::<proptest::sample::Index>(), value).prop_map(|(area, at, value)| Scribble {
        area,
        at,
        value,
    })
}

fn desc() -> impl Strategy<Value = Desc> {
    let addr = prop_oneof![
        5 => DATA_GPA..END,
        2 => (0u64..0x100).prop_map(|back| DATA_GPA + DATA_BYTES - back),
        1 => (0u64..0x100).prop_map(|back| END - back),
        2 => Just(table()),
        1 => any::<u64>(),
        1 => (0u64..0x100).prop_map(|back| u64::MAX - back),
        1 => Just(support::RINGS_GPA),
    ];
    let len = prop_oneof![6 => 0u32..3000, 2 => (0u32..8).prop_map(|n| 16 * n), 1 => any::<u32>()];
    let flags = prop_oneof![4 => Just(0u16), 4 => 0u16..8, 1 => any::<u16>()];
    (addr, len, flags, prop_oneof![8 => 0u16..16, 1 => any::<u16>()])
        .prop_map(|(addr, len, flags, link)| Desc { addr, len, flags, link })
}

/// An indirect table over the border of the data regions.
fn table() -> u64 {
    DATA_GPA + DATA_BYTES - 40
}

/// All there is to check of a burst: every chain's segments are in memory and as long as the chain says.
fn check(burst: &Burst, most: usize) {
    assert!(burst.chains().len() <= most.min(Burst::CHAINS));
    let mut segments = 0;
    for chain in burst.chains() {
        segments += chain.segments();
        let mut sums = [0u64; 2];
        for slice in burst.readable(chain) {
            sums[0] += slice.len() as u64;
            // A read outside memory would be a segmentation fault; one of something else would show.
            let mut bytes = vec![0; slice.len().min(64)];
            assert_eq!(slice.read(&mut bytes), bytes.len());
            assert_eq!(slice.part(slice.len().saturating_sub(1), 1).read(&mut [0]), slice.len().min(1));
        }
        for slice in burst.writable(chain) {
            sums[1] += slice.len() as u64;
            assert_eq!(slice.part(0, 64).write(&[FILL; 64]), slice.len().min(64));
        }
        assert_eq!(sums, [chain.readable_bytes.into(), chain.writable_bytes.into()]);
        assert!(sums[0] + sums[1] <= u32::MAX.into());
    }
    assert!(segments <= Burst::SEGMENTS);
}

/// Runs the device's side until it stops by a fault or has nothing left, at most so many bursts.
fn run(device: &mut dyn DeviceRing, map: &Arc<GuestMap>, size: u16) -> Option<RingFault> {
    let mut burst = Burst::new(Arc::clone(map));
    for turn in 0..20 {
        let most = [64, 1, 7][turn % 3];
        match device.peek(&mut burst, most) {
            Ok(count) => {
                assert_eq!(count, burst.chains().len());
                check(&burst, most);
                for chain in burst.chains() {
                    assert!(chain.id < size && chain.slots <= size);
                }
                device.consume(burst.chains());
                for chain in burst.chains() {
                    device.complete(chain, chain.writable_bytes);
                }
                assert!(count > 0 || !device.publish());
                device.publish();
                device.enable_kicks();
                device.disable_kicks();
            }
            Err(fault) => {
                assert!(RingFault::ALL.contains(&fault));
                assert_eq!(device.peek(&mut burst, most), Err(fault), "not for ever");
                return Some(fault);
            }
        }
    }
    None
}

fn format() -> impl Strategy<Value = Format> {
    prop_oneof![Just(Format::Split), Just(Format::Packed)]
}

fn features() -> impl Strategy<Value = Features> {
    (any::<bool>(), any::<bool>(), any::<bool>()).prop_map(|(event, order, indirect)| {
        let on = |on: bool, feature: Features| if on { feature } else { Features::NONE };
        on(event, Features::EVENT_IDX) | on(order, Features::IN_ORDER) | on(indirect, Features::INDIRECT_DESC)
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn device_over_descriptors_of_any_kind_faults_or_goes_on(
        format in format(),
        features in features(),
        skip_used in any::<bool>(),
        descs in proptest::collection::vec(desc(), 16),
        entries in proptest::collection::vec(desc(), 8),
        heads in proptest::collection::vec(prop_oneof![9 => 0u16..16, 1 => any::<u16>()], 0..20),
        scribbles in proptest::collection::vec(scribble(), 0..6),
        start in prop_oneof![Just(0u16), 65530u16..=65535],
    ) {
        let map = memory();
        let mut shape = Shape::new(format, 16, features);
        shape.skip_used = skip_used;
        if format == Format::Split {
            shape.position = Position { avail_idx: start, used_idx: start, ..Position::START };
        }
        let ring = RawRing::new(&map, shape);
        for (slot, desc) in (0..).zip(&descs) {
            ring.desc(slot, *desc);
        }
        for (nth, entry) in (0u64..).zip(&entries) {
            support::write(&map, table() + 16 * nth, &entry.bytes(format));
        }
        if format == Format::Split {
            let areas = shape.areas();
            for (nth, head) in (0u16..).zip(&heads) {
                let slot = u64::from(start.wrapping_add(nth) % 16);
                support::write(&map, areas.driver + 4 + 2 * slot, &head.to_le_bytes());
            }
            ring.set_avail_idx(start.wrapping_add(heads.len() as u16));
        }
        let mut device = ring.device();
        run(&mut *device, &map, 16);
        let mut device = ring.device();
        for scribble in &scribbles {
            scrawl(&map, shape, scribble);
            if run(&mut *device, &map, 16).is_some() {
                break;
            }
        }
    }

    #[test]
    fn driver_over_a_device_of_any_kind_faults_or_collects_what_it_added(
        format in format(),
        features in features(),
        scribbles in proptest::collection::vec((scribble(), 0usize..4), 1..30),
    ) {
        let map = memory();
        let shape = Shape::new(format, 16, features);
        let (mut driver, _) = shape.start(&map);
        let mut outstanding = std::collections::HashSet::new();
        let mut token = 0;
        for (scribble, adds) in &scribbles {
            for _ in 0..*adds {
                let buffers = [DriverBuffer { gpa: DATA_GPA, len: 9, writable: true }; 2];
                if driver.add(&buffers[..1 + token as usize % 2], token).is_ok() {
                    outstanding.insert(token);
                    token += 1;
                }
            }
            driver.publish();
            scrawl(&map, shape, scribble);
            let mut into = [Completion::default(); 5];
            match driver.collect(&mut into) {
                Ok(count) => {
                    for completion in &into[..count] {
                        prop_assert!(outstanding.remove(&completion.token), "twice, or never added");
                        prop_assert!(completion.written <= 18);
                    }
                }
                Err(fault) => {
                    prop_assert!(matches!(fault, RingFault::UsedIndex | RingFault::UsedId));
                    prop_assert_eq!(driver.collect(&mut into), Err(fault));
                    break;
                }
            }
            prop_assert!(driver.free_slots() <= 16);
            driver.enable_calls();
            driver.disable_calls();
        }
    }
}

thread_local! {
    static MEMORY: Arc<GuestMap> = {
        let map = support::memory();
        support::write(&map, DATA_GPA, &vec![FILL; 2 * DATA_BYTES as usize]);
        map
    };
}

/// Filled memory, one for all cases of a test: what a case leaves in it the next one has to bear.
fn memory() -> Arc<GuestMap> {
    MEMORY.with(Arc::clone)
}

fn scrawl(map: &GuestMap, shape: Shape, scribble: &Scribble) {
    let areas = shape.areas();
    let (start, len) = match (scribble.area, shape.format) {
        (0, _) => (areas.desc, 16 * usize::from(shape.size)),
        (1, Format::Split) => (areas.driver, 6 + 2 * usize::from(shape.size)),
        (2, Format::Split) => (areas.device, 6 + 8 * usize::from(shape.size)),
        (1, Format::Packed) => (areas.driver, 4),
        (2, Format::Packed) => (areas.device, 4),
        _ => (table(), 128),
    };
    let at = 2 * scribble.at.index(len / 2) as u64;
    support::write(map, start + at, &scribble.value.to_le_bytes());
}

/// A thread that swaps descriptors between good and bad as fast as it can while the device works on them: what was
/// checked must be what is used.
fn race(format: Format, good: Desc, bad: Desc, in_table: bool, expected: fn(&Burst, &Chain)) {
    let map = memory();
    let ring = RawRing::new(&map, Shape::new(format, 8, Features::INDIRECT_DESC));
    let target = if in_table {
        let first = Desc { addr: DATA_GPA, len: 5, flags: NEXT, link: 1 };
        support::write(&map, DATA_GPA + 0x8000, &first.bytes(format));
        ring.desc(0, Desc { addr: DATA_GPA + 0x8000, len: 32, flags: INDIRECT, link: 0 });
        DATA_GPA + 0x8010
    } else {
        ring.desc(0, Desc { addr: DATA_GPA, len: 5, flags: NEXT, link: 1 });
        ring.desc(2, Desc { addr: DATA_GPA, len: 7, flags: 0, link: 2 });
        ring.shape.areas().desc + 16
    };
    ring.offer(&[0]);
    let stop = AtomicBool::new(false);
    let (mut accepted, mut refused) = (0u32, 0u32);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let (good, bad) = (good.bytes(format), bad.bytes(format));
            while !stop.load(Ordering::Relaxed) {
                for bytes in [good, bad] {
                    support::write(&map, target, &bytes);
                    for _ in 0..20 {
                        std::hint::spin_loop();
                    }
                }
            }
        });
        let deadline = Instant::now() + Duration::from_secs(10);
        // Until both were seen often: a race that does not happen proves nothing.
        while (accepted < 300 || refused < 300) && Instant::now() < deadline {
            let mut device = ring.device();
            let mut burst = Burst::new(Arc::clone(&map));
            for _ in 0..64 {
                match device.peek(&mut burst, 1) {
                    Ok(count) => {
                        assert_eq!(count, 1);
                        let chain = burst.chains()[0];
                        check(&burst, 1);
                        expected(&burst, &chain);
                        accepted += 1;
                    }
                    Err(fault) => {
                        assert!(RingFault::ALL.contains(&fault));
                        refused += 1;
                        break;
                    }
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert!(accepted > 0 && refused > 0, "{accepted} accepted, {refused} refused: no race");
}

#[test]
fn descriptor_swapped_while_it_is_read_is_taken_as_read() {
    for format in [Format::Split, Format::Packed] {
        for in_table in [false, true] {
            // The two halves of a descriptor may come from two writes, so that any of the four pairs is seen: a good
            // address with the bad length is outside memory, the bad address is with any length.
            let good = Desc { addr: END - 100, len: 100, flags: 0, link: 1 };
            let bad = Desc { addr: END, len: 101, flags: 0, link: 1 };
            race(format, good, bad, in_table, |burst, chain| {
                assert_eq!(chain.readable_bytes, 105);
                let lens: Vec<usize> = burst.readable(chain).map(|slice| slice.len()).collect();
                assert_eq!(lens, [5, 100]);
                let last = burst.readable(chain).last().unwrap();
                let mut bytes = [0; 100];
                assert_eq!(last.read(&mut bytes), 100);
                assert_eq!(bytes, [FILL; 100]);
            });
        }
    }
}

#[test]
fn direction_swapped_while_it_is_read_is_one_or_the_other() {
    for format in [Format::Split, Format::Packed] {
        for in_table in [false, true] {
            let good = Desc { addr: DATA_GPA, len: 100, flags: WRITE, link: 1 };
            let bad = Desc { addr: END, len: 100, flags: 0, link: 1 };
            race(format, good, bad, in_table, |burst, chain| {
                let lens = (chain.readable_bytes, chain.writable_bytes);
                assert!(lens == (5, 100) || lens == (105, 0), "{lens:?}");
                assert_eq!(burst.readable(chain).len() + burst.writable(chain).len(), 2);
            });
        }
    }
}

#[test]
fn longest_chain_is_bounded_work_whatever_it_points_to() {
    // 32,768 entries that chain into each other: a walk ends after MAX_CHAIN.
    let map = memory();
    let ring = RawRing::new(&map, Shape::new(Format::Split, 32768, Features::NONE));
    let mut table = Vec::new();
    for slot in 0..32768u32 {
        let next = ((slot + 1) % 32768) as u16;
        table.extend(Desc { addr: DATA_GPA, len: 1, flags: NEXT, link: next }.bytes(Format::Split));
    }
    support::write(&map, ring.shape.areas().desc, &table);
    ring.offer(&[0]);
    let mut device = ring.device();
    let mut burst = Burst::new(Arc::clone(&map));
    assert_eq!(device.peek(&mut burst, 1), Err(RingFault::ChainLength));
    const { assert!(MAX_CHAIN < 32768) };
}
