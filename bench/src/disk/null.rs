//! A disk that does as little as can be: it says of every request that it is done, and looks neither at what is asked nor at
//! any data. What the generator reaches against it is what the generator can do.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use ringway_engine::{Armed, Budget, Polled, Pump};
use ringway_pmd::drivers::sim_blk;
use ringway_pmd::vdpa::{
    ClassSpec, DeviceHost, DeviceSpec, DriverError, MakePump, OwnPumps, QueueBinding, VdpaDevice,
};
use ringway_ring::chain::Burst;
use ringway_ring::packed::device::PackedDevice;
use ringway_ring::queue::{DeviceRing, Format, SetupError};
use ringway_ring::split::device::SplitDevice;

use super::generator::{Load, Round};
use super::options::{DiskOptions, Touch};
use crate::error::BenchError;
use crate::null::{NullBackend, NullDevice};
use crate::rounds::Rounds;

/// Starts one of `bytes` with its worker on `core`.
pub fn start(core: usize, bytes: u64) -> Result<NullBackend, BenchError> {
    let make = move |name: String| -> Result<Box<dyn VdpaDevice>, DriverError> {
        let words =
            [("size", bytes.to_string()), ("data", "off".to_owned()), ("num_queues", QUEUES.to_string())];
        let attributes = words.map(|(name, value)| (name.to_owned(), value)).into();
        let spec = DeviceSpec { name, features: None, class: ClassSpec::Block, attributes };
        let model = Box::new(sim_blk::device(&spec, DeviceHost::unheard())?);
        Ok(Box::new(NullDevice { model, pumps: OwnPumps::new(Maker) }))
    };
    NullBackend::serve(core, Arc::new(AtomicU64::new(0)), make)
}

/// What the generator can do, in thousands of requests a second: the best of a few rounds against one.
pub fn ceiling(options: &DiskOptions, how: Rounds, core: usize, cores: &[usize]) -> Result<f64, BenchError> {
    let options = DiskOptions { touch: Touch::None, ..options.clone() };
    let null = start(core, options.span.0)?;
    let mut generator = super::open(&null.socket(), &options, cores)?;
    let rounds = (0..CEILING_ROUNDS)
        .map(|_| generator.round(Load::Closed, Duration::from_secs_f64(how.seconds)))
        .collect::<Result<Vec<Round>, BenchError>>()?;
    generator.close()?;
    Ok(rounds.iter().fold(0.0, |best, round| best.max(round.kiops)))
}

/// A disk came so close to the ceiling that it is the generator that was measured.
pub fn is_bound(kiops: f64, ceiling: f64) -> bool {
    kiops > ceiling * BOUND
}

/// Of the generator's ceiling.
const BOUND: f64 = 0.9;

/// Rounds against a back-end that does nothing.
const CEILING_ROUNDS: u32 = 3;

/// Makes the pumps.
#[derive(Debug)]
struct Maker;

impl MakePump for Maker {
    fn pump(&mut self, _group: u16, queues: Vec<QueueBinding>) -> Result<Box<dyn Pump>, DriverError> {
        let queue = queues.into_iter().next();
        let queue = queue.ok_or_else(|| DriverError::misconfigured("a pump without a queue"))?;
        Ok(match queue.format {
            Format::Split => {
                Box::new(NullPump::<SplitDevice>::new(queue, |queue| queue.config.activate_split())?)
            }
            Format::Packed => {
                Box::new(NullPump::<PackedDevice>::new(queue, |queue| queue.config.activate_packed())?)
            }
        })
    }
}

/// Says of every request that it is done.
struct NullPump<Q> {
    ring: Q,
    burst: Burst,
}

impl<Q: DeviceRing> NullPump<Q> {
    fn new(
        binding: QueueBinding,
        activate: fn(QueueBinding) -> Result<Q, SetupError>,
    ) -> Result<NullPump<Q>, DriverError> {
        let burst = Burst::new(Arc::clone(&binding.config.map));
        let mut ring = activate(binding)
            .map_err(|error| DriverError::PeerMisbehaved(format!("ring set-up: {error}")))?;
        ring.disable_kicks();
        Ok(NullPump { ring, burst })
    }
}

impl<Q: DeviceRing + 'static> Pump for NullPump<Q> {
    fn poll(&mut self, _: &Budget, _: u64) -> Polled {
        let Ok(count @ 1..) = self.ring.peek(&mut self.burst, Burst::CHAINS) else { return Polled::Idle };
        let chains = self.burst.chains();
        self.ring.consume(chains);
        for chain in chains {
            if let Some(last) = self.burst.writable(chain).last() {
                last.part(last.len().saturating_sub(1), 1).write(&[0]);
            }
            self.ring.complete(chain, chain.writable_bytes);
        }
        // The generator polls: it never asks to be called.
        self.ring.publish();
        Polled::Moved(count as u32)
    }
    fn arm(&mut self) -> Armed {
        Armed::CannotSleep
    }
    fn disarm(&mut self) {}
    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

const QUEUES: u16 = 16;
