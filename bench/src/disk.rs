//! Disks: throughput and latency of a vhost-user-blk back-end, every block stamped and checked.

// Ringway beside a peer.
pub mod compare;
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

pub use generator::{Generator, Round};
pub use options::{DiskOptions, Op};
pub use series::Series;
