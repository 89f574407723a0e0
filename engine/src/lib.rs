//! Per-core workers that poll [`Pump`]s.
//!
//! A worker is one thread, pinned to one core. It polls the pumps placed on it in bursts, lets those that have
//! nothing to do sleep on their own wake sources, and takes pumps in and gives them back through a mailbox. This
//! crate knows neither virtio nor devices, and no `unsafe`.
#![forbid(unsafe_code)]

/// The engine: starts workers, places, moves and retires pumps.
pub mod engine;
/// What a worker polls, and what it tells the worker.
pub mod pump;

pub use engine::{
    Clock, End, Engine, EngineConfig, IdlePolicy, PlaceError, Placed, PumpStats, Retired, StartError, Watcher,
    WorkerStats,
};
pub use pump::{Armed, Budget, Polled, Pump};
