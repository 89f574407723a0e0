//! Disks: throughput and latency of a vhost-user-blk back-end, every block stamped and checked.

// Ringway beside a peer.
pub mod compare;
// What the kernel gives a program that serves no guest.
pub mod fio;
// The load generator.
pub mod generator;
// A back-end that does as little as can be.
pub mod null;
// What the generator shall be like.
pub mod options;
// QEMU's storage daemon.
pub mod qsd;
// Requests a second and latencies over several rounds.
pub mod series;
// A `ringwayd` with a disk.
pub mod ours;
// A generator that is not ours.
pub mod virtio_driver;

pub use generator::{Generates, Generator, Round};
pub use options::{DiskOptions, Op};
pub use series::Series;

use std::path::Path;

use crate::error::BenchError;
use options::Driver;

/// Connects a generator of either kind.
///
/// # Errors
/// The back-end is not there, or cannot do what is asked for.
pub fn open(socket: &Path, options: &DiskOptions, cores: &[usize]) -> Result<Box<dyn Generates>, BenchError> {
    Ok(match options.driver {
        Driver::Ringway => Box::new(Generator::open(socket, options, cores)?),
        Driver::VirtioDriver => Box::new(virtio_driver::VirtioDriver::open(socket, options, cores)?),
    })
}
