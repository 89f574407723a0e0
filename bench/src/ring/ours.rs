//! Ringway's own rings, each side by itself.

use std::hint::black_box;
use std::sync::Arc;

use ringway_ring::chain::Burst;
use ringway_ring::features::Features;
use ringway_ring::guest::HostSlice;
use ringway_ring::queue::{Completion, DeviceRing, DriverRing};

use super::bed::{Bed, Chains};
use super::{Done, Subject};
use crate::error::BenchError;
use crate::options::Ring;

/// The device's side: takes a batch, looks at each buffer where it lies in our memory, gives all of it back.
struct Device<D> {
    device: D,
    burst: Burst,
    driver: Box<dyn DriverRing>,
    chains: Chains,
    batch: Done,
    completions: Vec<Completion>,
    _bed: Bed,
}

/// The driver's side: collects the batch before, offers the next.
struct Driver<R> {
    driver: R,
    device: Box<dyn DeviceRing>,
    burst: Burst,
    chains: Chains,
    batch: Done,
    completions: Vec<Completion>,
    _bed: Bed,
}

/// The device's side of a ring.
pub(super) fn device(ring: Ring, batch: u16, chain: u16) -> Result<Box<dyn Subject>, BenchError> {
    let bed = Bed::new(ring, FEATURES, Chains::bytes(batch))?;
    let config = bed.device(0)?;
    Ok(match ring {
        Ring::Split => {
            let driver = bed.boxed_driver(0)?;
            Box::new(Device::new(config.activate_split()?, driver, Chains::new(batch, chain), bed))
        }
        Ring::Packed => {
            let driver = bed.boxed_driver(0)?;
            Box::new(Device::new(config.activate_packed()?, driver, Chains::new(batch, chain), bed))
        }
    })
}

/// The driver's side of a ring.
pub(super) fn driver(ring: Ring, batch: u16, chain: u16) -> Result<Box<dyn Subject>, BenchError> {
    let bed = Bed::new(ring, FEATURES, Chains::bytes(batch))?;
    let (driver, device) = (bed.driver(0), bed.device(0)?);
    let chains = Chains::new(batch, chain);
    Ok(match ring {
        Ring::Split => {
            let driver = driver.start_split()?;
            Box::new(Driver::new(driver, Box::new(device.activate_split()?), chains, bed)?)
        }
        Ring::Packed => {
            let driver = driver.start_packed()?;
            Box::new(Driver::new(driver, Box::new(device.activate_packed()?), chains, bed)?)
        }
    })
}

impl<D: DeviceRing> Device<D> {
    fn new(mut device: D, driver: Box<dyn DriverRing>, chains: Chains, bed: Bed) -> Device<D> {
        device.disable_kicks();
        Device {
            device,
            burst: Burst::new(Arc::clone(&bed.map)),
            driver,
            batch: chains.sum(),
            completions: vec![Completion::default(); chains.count()],
            chains,
            _bed: bed,
        }
    }
}

impl<D: DeviceRing> Subject for Device<D> {
    fn prepare(&mut self) -> Result<(), BenchError> {
        self.driver.collect(&mut self.completions)?;
        self.chains.offer(self.driver.as_mut())
    }

    #[inline]
    fn work(&mut self) -> Result<Done, BenchError> {
        take(&mut self.device, &mut self.burst, self.chains.count())
    }

    fn batch(&self) -> Done {
        self.batch
    }
}

impl<R: DriverRing> Driver<R> {
    /// Has the first batch on its way.
    fn new(
        mut driver: R,
        mut device: Box<dyn DeviceRing>,
        chains: Chains,
        bed: Bed,
    ) -> Result<Driver<R>, BenchError> {
        driver.disable_calls();
        device.disable_kicks();
        chains.offer(&mut driver)?;
        Ok(Driver {
            driver,
            device,
            burst: Burst::new(Arc::clone(&bed.map)),
            batch: chains.sum(),
            completions: vec![Completion::default(); chains.count()],
            chains,
            _bed: bed,
        })
    }
}

impl<R: DriverRing> Subject for Driver<R> {
    fn prepare(&mut self) -> Result<(), BenchError> {
        take(self.device.as_mut(), &mut self.burst, self.chains.count())?;
        Ok(())
    }

    #[inline]
    fn work(&mut self) -> Result<Done, BenchError> {
        let collected = self.driver.collect(&mut self.completions)?;
        self.chains.offer(&mut self.driver)?;
        // Each completion stands for a whole chain; one that is missing shows.
        let whole = collected == self.chains.count();
        Ok(if whole { self.batch } else { Done::default() })
    }

    fn batch(&self) -> Done {
        self.batch
    }
}

/// Takes up to `count` chains in bursts, gives them back as filled, and publishes once.
#[inline(always)]
fn take<D: DeviceRing + ?Sized>(
    device: &mut D,
    burst: &mut Burst,
    mut count: usize,
) -> Result<Done, BenchError> {
    let mut done = Done::default();
    while count > 0 {
        let peeked = device.peek(burst, count)?;
        if peeked == 0 {
            break;
        }
        let chains = burst.chains();
        for chain in chains {
            for buffer in burst.readable(chain) {
                look(buffer, &mut done);
            }
            for buffer in burst.writable(chain) {
                look(buffer, &mut done);
            }
        }
        device.consume(chains);
        for chain in chains {
            device.complete(chain, chain.writable_bytes);
        }
        count = count.saturating_sub(peeked);
    }
    black_box(device.publish());
    Ok(done)
}

/// What a device would do with a buffer: here no more than to have its address and length at hand.
#[inline(always)]
fn look(buffer: HostSlice<'_>, done: &mut Done) {
    black_box(buffer.as_ptr());
    done.bytes += buffer.len() as u64;
    done.units += 1;
}

/// Both sides decide whether to notify the other, as `virtio-queue` can only by event index.
pub(super) const FEATURES: Features = Features::EVENT_IDX;
