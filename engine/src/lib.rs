//! Per-core workers that poll [`Pump`]s.
//!
//! A worker is one thread, pinned to one core. It polls the pumps placed on it in bursts, lets those that have
//! nothing to do sleep on their own wake sources, and takes pumps in and gives them back through a mailbox. This
//! crate knows neither virtio nor devices, and no `unsafe`.
#![forbid(unsafe_code)]

mod account;
mod contain;
mod deadlines;
mod desk;
/// The engine: starts workers, places, moves and retires pumps.
pub mod engine;
/// How a worker is told that there is something to see, and falls asleep without missing it.
#[doc(hidden)]
pub mod mailbox;
mod pace;
mod pin;
/// What a worker polls, and what it tells the worker.
pub mod pump;
mod reaper;
mod stats;
mod sync;
mod tenant;
mod worker;

pub use engine::{
    Clock, End, Engine, EngineConfig, IdlePolicy, PlaceError, Placed, Retired, StartError, Watcher,
};
pub use pump::{Armed, Budget, Polled, Pump};
pub use stats::{PumpStats, Stuck, WorkerStats};
