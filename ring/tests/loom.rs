//! Memory ordering of both ring formats, model-checked: every interleaving, and every value that a relaxed load may
//! see.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p ringway-ring --release --test loom`
//!
//! What is checked: a side that sees an index (or first flags) sees all that was written before it; and no wake-up is
//! lost between a side that asks for notifications and then looks once more, and one that publishes and then looks
//! whether it was asked.
#![cfg(loom)]
#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]

mod lane;
mod support;

use std::sync::Arc;

use loom::sync::atomic::{AtomicU32, Ordering};
use loom::thread;
use ringway_ring::chain::Burst;
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::layout::Areas;
use ringway_ring::packed::device::PackedDevice;
use ringway_ring::packed::driver::PackedDriver;
use ringway_ring::position::{Position, PositionSlot};
use ringway_ring::queue::{Completion, DeviceRing, DriverBuffer, DriverRing, Format};
use ringway_ring::split::device::SplitDevice;
use ringway_ring::split::driver::SplitDriver;
use ringway_ring::words::LoomWords;
use support::{DATA_GPA, Shape};

/// What does not belong to the model: made once, outside.
#[derive(Clone)]
struct World {
    shape: Shape,
    map: Arc<GuestMap>,
    keeper: PositionSlot,
}

impl World {
    fn new(format: Format, size: u16, features: Features) -> World {
        World { shape: Shape::new(format, size, features), map: support::memory(), keeper: support::slot() }
    }

    /// Both sides of a fresh ring in loom's memory.
    fn start(&self) -> (Box<dyn DriverRing>, Box<dyn DeviceRing>) {
        let n = usize::from(self.shape.size);
        let mut config = self.shape.device_config(&self.map, self.keeper.clone());
        config.position = Position::START;
        let driver = self.shape.driver_config(&self.map);
        match self.shape.format {
            Format::Split => {
                let areas = Areas {
                    desc: LoomWords::new(16 * n),
                    driver: LoomWords::new(6 + 2 * n),
                    device: LoomWords::new(6 + 8 * n),
                };
                let driver = SplitDriver::over(driver, areas.clone()).unwrap();
                (Box::new(driver), Box::new(SplitDevice::over(config, areas).unwrap()))
            }
            Format::Packed => {
                let areas = Areas {
                    desc: LoomWords::new(16 * n),
                    driver: LoomWords::new(4),
                    device: LoomWords::new(4),
                };
                let driver = PackedDriver::over(driver, areas.clone()).unwrap();
                (Box::new(driver), Box::new(PackedDevice::over(config, areas).unwrap()))
            }
        }
    }

    fn burst(&self) -> Burst {
        Burst::new(Arc::clone(&self.map))
    }
}

/// A buffer whose length tells which one it is.
fn buffer(nth: u32) -> DriverBuffer {
    DriverBuffer { gpa: DATA_GPA + u64::from(nth) * 256, len: 100 + nth, writable: false }
}

fn check(world: &World, model: impl Fn(&World) + Send + Sync + 'static) {
    let world = world.clone();
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.max_branches = 10_000;
    builder.check(move || model(&world));
}

/// The driver publishes a chain of two and one of one while the device peeks once: what it sees is complete.
fn device_sees_whole_chains(world: &World) {
    check(world, |world| {
        let (mut driver, mut device) = world.start();
        let payload = Arc::new(AtomicU32::new(0));
        let written = Arc::clone(&payload);
        let publisher = thread::spawn(move || {
            // The bytes of the buffers.
            written.store(7, Ordering::Relaxed);
            driver.add(&[buffer(0), buffer(1)], 1).unwrap();
            driver.add(&[buffer(2)], 2).unwrap();
            driver.publish();
        });
        let mut burst = world.burst();
        let count = device.peek(&mut burst, 4).unwrap();
        // One index, or one first descriptor, makes both visible.
        assert!(count == 0 || count == 2, "{count} chains of a batch of 2");
        if count == 2 {
            let bytes: Vec<u32> = burst.chains().iter().map(|chain| chain.readable_bytes).collect();
            assert_eq!(bytes, [201, 102]);
            assert_eq!(payload.load(Ordering::Relaxed), 7);
        }
        publisher.join().unwrap();
    });
}

/// The device completes two chains while the driver collects once: what it sees is complete.
fn driver_sees_whole_completions(world: &World) {
    check(world, |world| {
        let (mut driver, mut device) = world.start();
        for nth in 0..2 {
            driver.add(&[DriverBuffer { writable: true, ..buffer(nth) }], 10 + nth).unwrap();
        }
        driver.publish();
        let mut burst = world.burst();
        assert_eq!(device.peek(&mut burst, 4), Ok(2));
        let payload = Arc::new(AtomicU32::new(0));
        let written = Arc::clone(&payload);
        let completer = thread::spawn(move || {
            written.store(7, Ordering::Relaxed);
            device.consume(burst.chains());
            for (nth, chain) in (1..).zip(burst.chains()) {
                device.complete(chain, nth);
            }
            device.publish();
        });
        let mut into = [Completion::default(); 4];
        let count = driver.collect(&mut into).unwrap();
        assert!(count == 0 || count == 2, "{count} completions of a batch of 2");
        if count == 2 {
            let expected = [(10, 1), (11, 2)].map(|(token, written)| Completion { token, written });
            assert_eq!(into[..2], expected);
            assert_eq!(payload.load(Ordering::Relaxed), 7);
        }
        completer.join().unwrap();
    });
}

/// The device disabled kicks, finds nothing, arms and looks once more, while the driver publishes: it is kicked, or
/// sees the chain. Both at once is harmless, neither is a guest that hangs.
fn no_kick_is_lost(world: &World) {
    check(world, |world| {
        let (mut driver, mut device) = world.start();
        device.disable_kicks();
        let publisher = thread::spawn(move || {
            driver.add(&[buffer(0)], 1).unwrap();
            driver.publish()
        });
        let mut burst = world.burst();
        let work = device.peek(&mut burst, 1).unwrap() == 1 || device.enable_kicks();
        let kicked = publisher.join().unwrap();
        assert!(work || kicked, "armed, nothing seen, and no kick");
    });
}

/// The driver disabled calls, finds nothing, arms and looks once more, while the device publishes.
fn no_call_is_lost(world: &World) {
    check(world, |world| {
        let (mut driver, mut device) = world.start();
        driver.disable_calls();
        driver.add(&[buffer(0)], 1).unwrap();
        driver.publish();
        let mut burst = world.burst();
        assert_eq!(device.peek(&mut burst, 1), Ok(1));
        let completer = thread::spawn(move || {
            device.consume(burst.chains());
            device.complete(&burst.chains()[0], 0);
            device.publish()
        });
        let mut into = [Completion::default(); 1];
        let done = driver.collect(&mut into).unwrap() == 1 || driver.enable_calls();
        let called = completer.join().unwrap();
        assert!(done || called, "armed, nothing seen, and no call");
    });
}

/// A ring of two goes round while both sides run: places are written again only when the other side is done with them.
fn places_are_reused_safely(world: &World) {
    check(world, |world| {
        let (mut driver, mut device) = world.start();
        let taker = thread::spawn({
            let mut burst = world.burst();
            move || {
                let mut taken = Vec::new();
                for _ in 0..2 {
                    device.peek(&mut burst, 1).unwrap();
                    device.consume(burst.chains());
                    for chain in burst.chains() {
                        taken.push(chain.readable_bytes);
                        device.complete(chain, 0);
                    }
                    device.publish();
                }
                taken
            }
        });
        let mut into = [Completion::default(); 1];
        let (mut added, mut collected) = (0, Vec::new());
        for _ in 0..3 {
            if driver.add(&[buffer(added)], added).is_ok() {
                added += 1;
                driver.publish();
            }
            if driver.collect(&mut into).unwrap() == 1 {
                collected.push(into[0].token);
            }
        }
        let taken = taker.join().unwrap();
        assert!(taken.iter().copied().eq(100..100 + taken.len() as u32), "{taken:?}");
        assert!(collected.iter().copied().eq(0..collected.len() as u32), "{collected:?}");
        assert!(collected.len() <= taken.len());
    });
}

fn each(format: Format, size: u16, model: fn(&World)) {
    for features in [Features::VERSION_1, Features::EVENT_IDX] {
        model(&World::new(format, size, features));
    }
}

#[test]
fn split_device_sees_whole_chains() {
    each(Format::Split, 4, device_sees_whole_chains);
}

#[test]
fn packed_device_sees_whole_chains() {
    each(Format::Packed, 4, device_sees_whole_chains);
}

#[test]
fn split_driver_sees_whole_completions() {
    each(Format::Split, 2, driver_sees_whole_completions);
}

#[test]
fn packed_driver_sees_whole_completions() {
    each(Format::Packed, 2, driver_sees_whole_completions);
}

#[test]
fn split_kick_is_never_lost() {
    each(Format::Split, 2, no_kick_is_lost);
}

#[test]
fn packed_kick_is_never_lost() {
    each(Format::Packed, 2, no_kick_is_lost);
}

#[test]
fn split_call_is_never_lost() {
    each(Format::Split, 2, no_call_is_lost);
}

#[test]
fn packed_call_is_never_lost() {
    each(Format::Packed, 2, no_call_is_lost);
}

#[test]
fn split_places_are_reused_safely() {
    each(Format::Split, 1, places_are_reused_safely);
}

#[test]
fn packed_places_are_reused_safely() {
    each(Format::Packed, 1, places_are_reused_safely);
}
