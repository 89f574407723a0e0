//! What the rings cost: each format, side and batch size, and the pumps over them, beside rust-vmm's `virtio-queue`.
//!
//! ```text
//!   prepare()   the other side's part of a turn: not counted, not timed
//!   work()      the side that is measured: one batch
//! ```
//!
//! One thread plays both sides in turns, over memory of its own. So nothing here waits for another core's cache lines:
//! it is what the code itself costs. What two cores cost each other is `net`'s and `limits`'.

use std::fmt;
use std::hint::black_box;

use ringway_ring::tsc;
use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::options::{Job, Ring};
use crate::stats::Spread;

mod bed;
mod disk;
mod ours;
mod pump;
mod theirs;

/// A way through the code that is measured by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Path {
    /// One side of a ring.
    Ring {
        /// Whose.
        crate_name: Crate,
        /// The layout.
        ring: Ring,
        /// The side.
        side: Side,
        /// Chains in a batch.
        batch: u16,
        /// Descriptors in a chain.
        chain: u16,
    },
    /// The pump of a device: frames of [`FRAME`] bytes in batches of [`PUMP_BATCH`].
    Pump {
        /// Which.
        job: Job,
        /// The layout of both its rings.
        ring: Ring,
    },
    /// The pump of a disk in memory: requests of [`REQUEST`] bytes in batches of [`PUMP_BATCH`].
    Disk {
        /// What they ask.
        access: Access,
        /// The layout of its ring.
        ring: Ring,
    },
}

/// What a request asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// To read.
    Read,
    /// To write.
    Write,
}

/// Whose ring it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Crate {
    /// `ringway-ring`.
    Ringway,
    /// rust-vmm's `virtio-queue`: split rings, device side.
    VirtioQueue,
}

/// A side of a ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Makes buffers available and collects them.
    Driver,
    /// Takes buffers, translates their addresses, and gives them back.
    Device,
}

/// Something to be measured, ready for its next batch after each `prepare`.
trait Subject {
    /// The other side's part, and whatever else is not measured.
    fn prepare(&mut self) -> Result<(), BenchError>;
    /// One batch of the side that is measured.
    fn work(&mut self) -> Result<Done, BenchError>;
    /// What every batch has to come to.
    fn batch(&self) -> Done;
}

/// What was done, so that two implementations are known to have done the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Done {
    /// Descriptors, or frames or requests of a pump.
    units: u64,
    /// Bytes in them.
    bytes: u64,
}

/// A path that is set up and warm.
pub struct Bench {
    path: Path,
    subject: Box<dyn Subject>,
}

impl Path {
    /// Every path, in the order in which they are shown.
    pub fn all() -> Vec<Path> {
        let mut all = Vec::new();
        let (ours, theirs) = (Crate::Ringway, Crate::VirtioQueue);
        let kinds = [
            (ours, Ring::Split, Side::Device),
            (theirs, Ring::Split, Side::Device),
            (ours, Ring::Packed, Side::Device),
            (ours, Ring::Split, Side::Driver),
            (ours, Ring::Packed, Side::Driver),
        ];
        for (crate_name, ring, side) in kinds {
            for chain in CHAINS {
                all.extend(BATCHES.map(|batch| Path::Ring { crate_name, ring, side, batch, chain }));
            }
        }
        for job in [Job::Loopback, Job::Link, Job::Bridge] {
            all.extend(Ring::ALL.map(|ring| Path::Pump { job, ring }));
        }
        for access in [Access::Read, Access::Write] {
            all.extend(Ring::ALL.map(|ring| Path::Disk { access, ring }));
        }
        all
    }

    /// What one unit of it is.
    pub fn unit(&self) -> &'static str {
        match self {
            Path::Ring { .. } => "descriptor",
            Path::Pump { .. } => "frame",
            Path::Disk { .. } => "request",
        }
    }

    /// It runs Ringway's own code.
    pub fn is_ours(&self) -> bool {
        !matches!(self, Path::Ring { crate_name: Crate::VirtioQueue, .. })
    }

    /// The same work done by `virtio-queue`, if that can do it.
    pub fn peer(&self) -> Option<Path> {
        match *self {
            Path::Ring {
                crate_name: Crate::Ringway,
                ring: Ring::Split,
                side: Side::Device,
                batch,
                chain,
            } => {
                let crate_name = Crate::VirtioQueue;
                Some(Path::Ring { crate_name, ring: Ring::Split, side: Side::Device, batch, chain })
            }
            _ => None,
        }
    }

    /// Sets it up and does enough batches for every entry of its rings to have been used twice.
    ///
    /// # Errors
    /// Memory, or a batch that did not come to what it should.
    pub fn bench(&self) -> Result<Bench, BenchError> {
        let subject: Box<dyn Subject> = match *self {
            Path::Ring { crate_name: Crate::VirtioQueue, batch, chain, .. } => theirs::device(batch, chain)?,
            Path::Ring { ring, side: Side::Device, batch, chain, .. } => ours::device(ring, batch, chain)?,
            Path::Ring { ring, side: Side::Driver, batch, chain, .. } => ours::driver(ring, batch, chain)?,
            Path::Pump { job, ring } => pump::subject(job, ring)?,
            Path::Disk { access, ring } => disk::subject(access, ring)?,
        };
        let mut bench = Bench { path: *self, subject };
        bench.run(2 * u64::from(RING_SIZE))?;
        Ok(bench)
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Path::Ring { crate_name, ring, side, batch, chain } => {
                let (whose, side) = (crate_name.name(), side.name());
                write!(f, "{whose} {ring} {side} batch {batch} chain {chain}")
            }
            Path::Pump { job, ring } => write!(f, "ringway {job} {ring} batch {PUMP_BATCH} frame {FRAME}"),
            Path::Disk { access, ring } => {
                write!(f, "ringway disk {} {ring} batch {PUMP_BATCH} request {REQUEST}", access.name())
            }
        }
    }
}

impl Crate {
    /// As packages are named.
    pub fn name(self) -> &'static str {
        match self {
            Crate::Ringway => "ringway",
            Crate::VirtioQueue => "virtio-queue",
        }
    }
}

impl Access {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Access::Read => "read",
            Access::Write => "write",
        }
    }
}

impl Side {
    /// In a word.
    pub fn name(self) -> &'static str {
        match self {
            Side::Driver => "driver",
            Side::Device => "device",
        }
    }
}

impl Bench {
    /// Which path it is.
    pub fn path(&self) -> Path {
        self.path
    }

    /// Does whole batches until at least `units` are done; how many were.
    ///
    /// # Errors
    /// A batch did not come to what it should.
    pub fn run(&mut self, units: u64) -> Result<u64, BenchError> {
        let mut done = 0;
        while done < units {
            self.subject.prepare()?;
            done += self.checked(|subject| measured_work(subject))?;
        }
        Ok(done)
    }

    /// Nanoseconds for each of at least `units` units: only the side that is measured, without what looking at the
    /// clock costs.
    ///
    /// # Errors
    /// A batch did not come to what it should.
    pub fn time(&mut self, units: u64, clock: &Stopwatch) -> Result<f64, BenchError> {
        let (mut done, mut cycles) = (0, 0.0);
        while done < units {
            self.subject.prepare()?;
            let mut passed = 0;
            done += self.checked(|subject| {
                let start = tsc::cycles();
                let outcome = measured_work(subject);
                passed = tsc::cycles().wrapping_sub(start);
                outcome
            })?;
            cycles += passed as f64 - clock.overhead_cycles;
        }
        Ok(cycles.max(0.0) * 1e9 / clock.hertz / done as f64)
    }

    fn checked(
        &mut self,
        work: impl FnOnce(&mut dyn Subject) -> Result<Done, BenchError>,
    ) -> Result<u64, BenchError> {
        let wanted = self.subject.batch();
        let done = work(self.subject.as_mut())?;
        if done == wanted {
            return Ok(done.units);
        }
        Err(BenchError::Peer {
            peer: self.path.to_string(),
            what: format!("a batch came to {done:?} and not to {wanted:?}: this is a defect"),
        })
    }
}

impl fmt::Debug for Bench {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bench").field("path", &self.path).finish_non_exhaustive()
    }
}

/// The clock, and what it costs to look at it.
#[derive(Debug, Clone, Copy)]
pub struct Stopwatch {
    hertz: f64,
    overhead_cycles: f64,
}

impl Stopwatch {
    /// Measures what looking costs: the time of a batch that does nothing.
    pub fn calibrate() -> Stopwatch {
        struct Nothing;
        impl Subject for Nothing {
            fn prepare(&mut self) -> Result<(), BenchError> {
                Ok(())
            }
            fn work(&mut self) -> Result<Done, BenchError> {
                Ok(self.batch())
            }
            fn batch(&self) -> Done {
                Done::default()
            }
        }
        let mut nothing = black_box(Box::new(Nothing) as Box<dyn Subject>);
        let looks: Vec<f64> = (0..CALIBRATIONS)
            .map(|_| {
                let start = tsc::cycles();
                let _ = black_box(measured_work(nothing.as_mut()));
                tsc::cycles().wrapping_sub(start) as f64
            })
            .collect();
        let overhead_cycles = Spread::of(&looks).map_or(0.0, |spread| spread.median);
        Stopwatch { hertz: tsc::hertz() as f64, overhead_cycles }
    }
}

/// What is measured and nothing else: callgrind collects between its entry and its return. See [`crate::callgrind`].
#[inline(never)]
fn measured_work(subject: &mut dyn Subject) -> Result<Done, BenchError> {
    // Not the last thing that it does, so that it is a call and this function stands on the stack meanwhile.
    black_box(subject.work())
}

/// Chains in a batch.
pub const BATCHES: [u16; 4] = [1, 8, 32, 128];
/// Descriptors in a chain.
pub const CHAINS: [u16; 2] = [1, 2];
/// Entries in each ring.
pub const RING_SIZE: u16 = 256;
/// Bytes of a pump's frames, checksum not included.
pub const FRAME: u16 = 64;
/// Bytes of a disk's requests.
pub const REQUEST: u32 = 4096;
/// Frames, or requests, in a pump's batch.
pub const PUMP_BATCH: u16 = 32;

const CALIBRATIONS: usize = 10_001;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_path_does_what_it_should() {
        for path in Path::all() {
            let mut bench = path.bench().unwrap();
            assert!(bench.run(1000).unwrap() >= 1000, "{path}");
            let ns = bench.time(1000, &Stopwatch { hertz: 1e9, overhead_cycles: 0.0 }).unwrap();
            assert!(ns > 0.0, "{path}");
        }
    }

    #[test]
    fn paths_have_names_of_their_own() {
        let mut names: Vec<String> = Path::all().iter().map(Path::to_string).collect();
        assert_eq!(names.len(), 5 * 4 * 2 + 10);
        names.sort();
        names.dedup();
        assert_eq!(names.len(), 5 * 4 * 2 + 10);
        assert!(names.contains(&"ringway split device batch 32 chain 1".to_owned()));
    }

    #[test]
    fn peers_do_the_same_work() {
        let pairs: Vec<_> = Path::all().into_iter().filter_map(|path| Some((path, path.peer()?))).collect();
        assert_eq!(pairs.len(), BATCHES.len() * CHAINS.len());
        for (ours, theirs) in pairs {
            assert!(Path::all().contains(&theirs));
            let batch = |path: Path| path.bench().unwrap().subject.batch();
            assert_eq!(batch(ours), batch(theirs));
        }
    }

    #[test]
    fn batch_that_comes_to_something_else_is_an_error() {
        struct Half;
        impl Subject for Half {
            fn prepare(&mut self) -> Result<(), BenchError> {
                Ok(())
            }
            fn work(&mut self) -> Result<Done, BenchError> {
                Ok(Done { units: 4, bytes: 0 })
            }
            fn batch(&self) -> Done {
                Done { units: 8, bytes: 0 }
            }
        }
        let path = Path::Pump { job: Job::Link, ring: Ring::Split };
        let error = Bench { path, subject: Box::new(Half) }.run(8).unwrap_err();
        assert!(error.to_string().contains("link split"), "{error}");
    }
}
