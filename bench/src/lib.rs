//! Measurements of Ringway from outside, as a guest or an operator would: over a device's socket with rings of our own,
//! and over the operator's socket.
//!
//! Speed counts as a ratio inside one run; a number alone says more about the machine than about the program, so
//! every result names the host.
#![deny(unsafe_code)]

// What is measured.
pub mod backend;
// Instruction counts that are committed.
pub mod baseline;
// Counting instructions.
pub mod callgrind;
// What the generator can do.
pub mod ceiling;
// Ringway beside a peer.
pub mod compare;
// A `ringwayd` of our own, on a directory that goes with it.
pub mod daemon;
// Disks.
pub mod disk;
// DPDK's driver as the load.
pub mod driver;
// A round of load on lanes.
mod drive;
// Why a measurement could not be made.
pub mod error;
// The load generator.
pub mod generator;
// The machine that a result was made on.
pub mod host;
// What an idle device costs.
pub mod idle;
// Programs that end when this one does.
mod mortal;
// A back-end that does as little as can be.
pub mod null;
// A Linux guest as the load.
pub mod linux;
// What this machine could do at best.
pub mod limits;
// Throughput and latency of a network back-end.
pub mod net;
// What ports shall be like.
pub mod options;
// A line of progress.
pub mod progress;
// One result, as it is printed and read.
pub mod record;
// Which rounds count.
pub mod rounds;
// What the rings cost, and the pumps over them.
pub mod ring;
// One page from many results.
pub mod report;
// How cost grows.
pub mod scale;
// Medians, percentiles, ratios.
pub mod stats;
// The host's network behind a guest.
pub mod tap;
// Two back-ends in turns.
pub mod turns;
