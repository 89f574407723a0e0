//! Faults that other implementations of virtqueues have had, each as a test that would find it here.
#![cfg(not(loom))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

mod support;

use std::sync::Arc;

use ringway_ring::chain::Burst;
use ringway_ring::features::Features;
use ringway_ring::position::Position;
use ringway_ring::queue::{Completion, DeviceRing, DriverBuffer, Format, IndirectTable, RingFull};
use support::{DATA_GPA, RawRing, Shape};

const BOTH: [Format; 2] = [Format::Split, Format::Packed];

fn buffer(len: u32) -> DriverBuffer {
    DriverBuffer { gpa: DATA_GPA, len, writable: false }
}

/// `VIRTQ_AVAIL_F_NO_INTERRUPT` is ignored by several: a polled driver is interrupted for every burst.
#[test]
fn no_interrupt_flag_set_by_hand_is_honoured() {
    let ring = RawRing::new(&support::memory(), Shape::new(Format::Split, 8, Features::VERSION_1));
    for slot in 0..8 {
        ring.desc(slot, support::Desc { addr: DATA_GPA, len: 1, flags: 0, link: 0 });
    }
    ring.offer(&[0, 1, 2, 3, 4, 5]);
    let mut device = ring.device();
    let mut burst = Burst::new(Arc::clone(&ring.map));
    let mut called = |flags: u16| {
        support::write(&ring.map, ring.shape.areas().driver, &flags.to_le_bytes());
        assert_eq!(device.peek(&mut burst, 2), Ok(2));
        device.consume(burst.chains());
        for chain in burst.chains() {
            device.complete(chain, 0);
        }
        device.publish()
    };
    assert!(!called(1));
    assert!(called(0));
    assert!(!called(1));
}

/// `RING_EVENT_FLAGS_DISABLE`, the same of a packed ring; reserved values ask for notifications.
#[test]
fn packed_driver_event_flags_set_by_hand_are_honoured() {
    for (flags, asked) in [(0u16, true), (1, false), (3, true)] {
        let ring = RawRing::new(&support::memory(), Shape::new(Format::Packed, 8, Features::VERSION_1));
        ring.desc(0, support::Desc { addr: DATA_GPA, len: 1, flags: 0, link: 0 });
        support::write(&ring.map, ring.shape.areas().driver + 2, &flags.to_le_bytes());
        let mut device = ring.device();
        let mut burst = Burst::new(Arc::clone(&ring.map));
        assert_eq!(device.peek(&mut burst, 8), Ok(1));
        device.consume(burst.chains());
        device.complete(&burst.chains()[0], 0);
        assert_eq!(device.publish(), asked, "flags {flags}");
    }
}

/// A check for "full" that forgets the wrap lets the driver overtake the device, or stop one short of it.
#[test]
fn queue_fills_to_its_last_descriptor_at_every_place_of_the_wrap() {
    for format in BOTH {
        for start in 0..8u16 {
            let map = support::memory();
            let mut shape = Shape::new(format, 8, Features::VERSION_1);
            let idx = if format == Format::Split { 65528 + start } else { start };
            shape.position = Position { avail_idx: idx, used_idx: idx, ..Position::START };
            let (mut driver, mut device) = shape.start(&map);
            let mut burst = Burst::new(Arc::clone(&map));
            for round in 0..3 {
                for nth in 0..8 {
                    driver.add(&[buffer(nth + 1)], nth).unwrap();
                }
                assert_eq!(driver.free_slots(), 0);
                assert_eq!(driver.add(&[buffer(9)], 9), Err(RingFull));
                driver.publish();
                assert_eq!(device.peek(&mut burst, 64), Ok(8), "{format:?} from {idx}, round {round}");
                let lens: Vec<u32> = burst.chains().iter().map(|chain| chain.readable_bytes).collect();
                assert_eq!(lens, [1, 2, 3, 4, 5, 6, 7, 8]);
                device.consume(burst.chains());
                assert_eq!(device.peek(&mut Burst::new(Arc::clone(&map)), 64), Ok(0));
                for chain in burst.chains() {
                    device.complete(chain, 0);
                }
                device.publish();
                assert_eq!(driver.collect(&mut [Completion::default(); 64]), Ok(8));
            }
        }
    }
}

/// Bases cut to 16 bits lose the used half of a packed ring's position.
#[test]
fn packed_base_with_high_half_set_goes_on_where_the_ring_stood() {
    let map = support::memory();
    let shape = Shape::new(Format::Packed, 5, Features::VERSION_1);
    let (mut driver, mut device) = shape.start(&map);
    let mut burst = Burst::new(Arc::clone(&map));
    for round in 0..23u32 {
        driver.add(&[buffer(round + 1)], round).unwrap();
        driver.publish();
        // Stopped between any two buffers, with one that is available, and continued from the base on the wire.
        let base = device.position().to_vhost_base(Format::Packed);
        assert_eq!(base >> 16, base & 0xffff, "drained: both halves are the same place");
        let mut config = shape.device_config(&map, support::slot());
        config.position = Position::from_vhost_base(Format::Packed, base).unwrap();
        device = shape.start_device(config);
        assert_eq!(device.peek(&mut burst, 8), Ok(1), "round {round}, base {base:#x}");
        assert_eq!(burst.chains()[0].readable_bytes, round + 1);
        device.consume(burst.chains());
        device.complete(&burst.chains()[0], 0);
        device.publish();
        assert_eq!(driver.collect(&mut [Completion::default(); 2]), Ok(1));
    }
}

/// Receive buffers that were taken and not filled belong to the driver again after a stop.
#[test]
fn buffers_taken_and_not_completed_are_taken_again_after_a_stop() {
    for format in BOTH {
        let map = support::memory();
        let shape = Shape::new(format, 8, Features::VERSION_1);
        let mut driver = shape.start_driver(&map);
        let keeper = support::slot();
        let mut device = shape.start_device(shape.device_config(&map, keeper.clone()));
        for nth in 0..6 {
            driver.add(&[buffer(nth + 1)], nth).unwrap();
        }
        driver.publish();
        let mut burst = Burst::new(Arc::clone(&map));
        assert_eq!(device.peek(&mut burst, 5), Ok(5));
        device.consume(burst.chains());
        device.complete(&burst.chains()[0], 0);
        device.complete(&burst.chains()[1], 0);
        device.publish();
        device.complete(&burst.chains()[2], 0);
        drop(device);
        // Two are done; the third was completed but not published.
        let mut config = shape.device_config(&map, support::slot());
        config.position = keeper.load().unwrap();
        assert_eq!((config.position.avail_idx, config.position.used_idx), (2, 2));
        let mut device = shape.start_device(config);
        assert_eq!(device.peek(&mut burst, 8), Ok(4));
        let lens: Vec<u32> = burst.chains().iter().map(|chain| chain.readable_bytes).collect();
        assert_eq!(lens, [3, 4, 5, 6]);
    }
}

/// More completions than a device holds back between two publications.
#[test]
fn any_number_of_completions_may_wait_for_one_publication() {
    for format in BOTH {
        let map = support::memory();
        let (mut driver, mut device) = Shape::new(format, 512, Features::VERSION_1).start(&map);
        for nth in 0..512 {
            driver.add(&[DriverBuffer { writable: true, ..buffer(1000) }], nth).unwrap();
        }
        driver.publish();
        let mut burst = Burst::new(Arc::clone(&map));
        let mut into = vec![Completion::default(); 600];
        for _ in 0..8 {
            assert_eq!(device.peek(&mut burst, 64), Ok(64));
            device.consume(burst.chains());
            for chain in burst.chains() {
                device.complete(chain, u32::from(chain.id) + 1);
            }
            assert_eq!(driver.collect(&mut into), Ok(0), "visible before it was published");
        }
        device.publish();
        assert_eq!(driver.collect(&mut into), Ok(512));
        for (nth, completion) in (0..).zip(&into[..512]) {
            assert_eq!(*completion, Completion { token: nth, written: nth + 1 });
        }
    }
}

/// A device that lost count must not write what it does not own. (Debug builds say so instead.)
#[test]
#[cfg_attr(debug_assertions, should_panic(expected = "not consumed"))]
fn completing_what_was_not_consumed_changes_nothing() {
    let map = support::memory();
    let (mut driver, mut device) = Shape::new(Format::Split, 8, Features::VERSION_1).start(&map);
    driver.add(&[buffer(1)], 7).unwrap();
    driver.publish();
    let mut burst = Burst::new(Arc::clone(&map));
    assert_eq!(device.peek(&mut burst, 1), Ok(1));
    device.complete(&burst.chains()[0], 0);
    assert!(!device.publish());
    assert_eq!(driver.collect(&mut [Completion::default(); 2]), Ok(0));
}

/// virtio 1.3 §2.7.9, §2.8.8: one used entry may stand for a batch, and tells the length of its last buffer only.
#[test]
fn one_used_entry_of_a_foreign_device_completes_a_batch_in_any_pieces() {
    for format in BOTH {
        let map = support::memory();
        let shape = Shape::new(format, 8, Features::IN_ORDER);
        let mut driver = shape.start_driver(&map);
        for token in 10..14 {
            driver.add(&[DriverBuffer { writable: true, ..buffer(100) }], token).unwrap();
        }
        driver.publish();
        // The third buffer's id, at the first one's place.
        match format {
            Format::Split => {
                support::write(&map, shape.areas().device + 4, &(2u64 | 50 << 32).to_le_bytes());
                support::write(&map, shape.areas().device + 2, &3u16.to_le_bytes());
            }
            Format::Packed => {
                let word = 50u64 | 2 << 32 | 0x8080 << 48;
                support::write(&map, shape.areas().desc + 8, &word.to_le_bytes());
            }
        }
        let mut into = [Completion::default(); 2];
        assert_eq!(driver.collect(&mut into), Ok(2));
        assert_eq!(into, [10, 11].map(|token| Completion { token, written: 0 }));
        assert!(driver.enable_calls(), "{format:?}: the rest of the batch is there");
        assert_eq!(driver.collect(&mut into), Ok(1));
        assert_eq!(into[0], Completion { token: 12, written: 50 });
        assert_eq!(driver.collect(&mut into), Ok(0));
        assert_eq!(driver.free_slots(), 7);
    }
}

/// QEMU completes what a guest sends while no back-end is there, from where it set a packed ring up: ahead of where the
/// ring stands. A back-end that waits for those descriptors to be made available stands still for ever.
#[test]
fn chains_that_the_vmm_completed_ahead_of_the_packed_position_are_passed_over() {
    for size in [8u16, 7] {
        for done in 0..3 * u32::from(size) {
            for waiting in 1..=u32::from(size) {
                let map = support::memory();
                let shape = Shape::new(Format::Packed, size, Features::VERSION_1);
                let (mut driver, mut device) = shape.start(&map);
                let mut burst = Burst::new(Arc::clone(&map));
                let mut taken = |device: &mut dyn DeviceRing| {
                    let mut taken = Vec::new();
                    loop {
                        // As a worker does: polls some times more before it lets the ring sleep.
                        if (0..2).all(|_| device.peek(&mut burst, 3) == Ok(0)) {
                            return taken;
                        }
                        device.consume(burst.chains());
                        for chain in burst.chains() {
                            taken.push(chain.readable_bytes);
                            device.complete(chain, 0);
                        }
                        device.publish();
                    }
                };
                let mut collected = [Completion::default(); 64];
                for token in 1..=done {
                    driver.add(&[buffer(token)], token).unwrap();
                    driver.publish();
                    assert_eq!(taken(&mut *device), [token]);
                    assert_eq!(driver.collect(&mut collected), Ok(1));
                }
                let kept = device.position();
                for token in done + 1..=done + waiting {
                    driver.add(&[buffer(token)], token).unwrap();
                }
                driver.publish();
                let dropped = taken(&mut *shape.start_device(shape.device_config(&map, support::slot())));
                let keeper = support::slot();
                let mut config = shape.device_config(&map, keeper.clone());
                config.position = kept;
                let mut device = shape.start_device(config);
                let mut sent = taken(&mut *device);
                assert_eq!(sent.len() + dropped.len(), waiting as usize, "{done} done, {waiting} waiting");
                sent.extend(&dropped);
                sent.sort_unstable();
                assert!(sent.iter().copied().eq(done + 1..=done + waiting), "each once: {sent:?}");
                assert_eq!(driver.collect(&mut collected), Ok(waiting as usize), "the driver has all back");
                assert_eq!(keeper.load(), Some(device.position()), "the place behind them is kept");
                driver.add(&[buffer(1000)], 0).unwrap();
                driver.publish();
                assert_eq!(taken(&mut *device), [1000], "and it goes on");
            }
        }
    }
}

/// A driver that sets NEXT in an indirect table of a packed ring, or INDIRECT beside a chain that goes on, is refused by
/// some devices: what the driver's side writes is what the device's side takes, as often as the ring is gone round.
#[test]
fn chains_in_tables_take_one_descriptor_each_and_come_back_whole() {
    for format in BOTH {
        let map = support::memory();
        let features = Features::VERSION_1 | Features::INDIRECT_DESC;
        let (mut driver, mut device) = Shape::new(format, 4, features).start(&map);
        let table = |nth: u32| {
            let gpa = DATA_GPA + 0x1000 + u64::from(nth) * 64;
            let part = |at: u64, len, writable| DriverBuffer { gpa: DATA_GPA + at, len, writable };
            let buffers = [part(0, 16, false), part(64, 100 + nth, true), part(512, 1, true)];
            let place = map.resolve(gpa, 64).unwrap();
            assert_eq!(IndirectTable::write(format, place, gpa, &[buffers[0]; 5]), None);
            IndirectTable::write(format, place, gpa, &buffers).unwrap()
        };
        let mut burst = Burst::new(Arc::clone(&map));
        for _ in 0..3 {
            (0..4).for_each(|nth| driver.add_indirect(&table(nth), nth).unwrap());
            assert_eq!(driver.add_indirect(&table(4), 4), Err(RingFull));
            driver.publish();
            assert_eq!(device.peek(&mut burst, 8), Ok(4), "{format:?}");
            device.consume(burst.chains());
            for (nth, chain) in (0..).zip(burst.chains()) {
                assert_eq!((chain.readable_bytes, chain.writable_bytes), (16, 101 + nth));
                assert_eq!(burst.writable(chain).count(), 2);
                device.complete(chain, 1000);
            }
            device.publish();
            let mut done = [Completion::default(); 8];
            assert_eq!(driver.collect(&mut done), Ok(4));
            let done: Vec<_> = done[..4].iter().map(|done| (done.token, done.written)).collect();
            assert_eq!(done, [(0, 101), (1, 102), (2, 103), (3, 104)], "no more than the buffers hold");
        }
    }
}
