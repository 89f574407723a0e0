//! Per-core workers that poll [`Pump`]s.
//!
//! A worker is one thread, pinned to one core. It polls the pumps placed on it in bursts, lets those that have
//! nothing to do sleep on their own wake sources, and takes pumps in and gives them back through a mailbox. This
//! crate knows neither virtio nor devices, and no `unsafe`.
#![forbid(unsafe_code)]

// The tests inside the crate share their pumps with those outside it.
#[cfg(test)]
extern crate self as ringway_engine;

mod account;
mod alarm;
/// How a pump passes between its holder and a worker.
#[doc(hidden)]
pub mod berth;
/// How an engine is started.
pub mod config;
mod contain;
mod deadlines;
mod desk;
/// The engine: starts workers, places, moves and retires pumps.
pub mod engine;
/// Why something was not done.
pub mod error;
/// How long things took.
pub mod histogram;
/// How a worker is told that there is something to see, and falls asleep without missing it.
#[doc(hidden)]
pub mod mailbox;
mod pace;
mod pin;
/// A pump on a worker.
pub mod placed;
/// What a worker polls, and what it tells the worker.
pub mod pump;
mod reaper;
mod scheduled;
/// How much was moved at a time.
pub mod sizes;
mod stats;
mod sync;
mod tenant;
mod worker;
mod workers;

pub use config::{Clock, EngineConfig, IdlePolicy};
pub use engine::Engine;
pub use error::{NotPlaced, PlaceError, StartError};
pub use histogram::{Histogram, Times};
pub use placed::{HowEnded, Placed, Retired};
pub use pump::{Armed, Budget, Polled, Pump, Watcher};
pub use scheduled::{Policy, Scheduled};
pub use sizes::{BurstSizes, Sizes};
pub use stats::{PumpStats, StuckWorker, WorkerStats};
