//! The engine: starts the workers, places pumps on them, moves and retires pumps, and reads the workers' accounts.
//!
//! Any thread may call it; none of its methods waits for anything but a worker's quiescent point, which a worker
//! reaches once per turn.

use std::sync::Arc;
use std::time::Duration;

use crate::pump::Pump;

/// How workers tell time: a cycle counter and its rate. Given from outside, since reading it is not this crate's
/// business; tests give one of their own.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Reads the counter.
    pub cycles: fn() -> u64,
    /// Cycles per second.
    pub hertz: u64,
}

/// What a worker does when none of its pumps has work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Spins.
    Poll,
    /// Spins for a while, then sleeps until a wake source or the mailbox wakes it.
    Adaptive,
}

/// How to start an engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The cores that become workers, one worker each.
    pub cores: Vec<usize>,
    /// What idle workers do.
    pub idle: IdlePolicy,
    /// How they tell time.
    pub clock: Clock,
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No core was given.
    #[error("no core was given to work on")]
    NoCores,
    /// A core was named twice.
    #[error("core {0} is named twice")]
    Duplicate(usize),
    /// The pin did not take: read back after setting it.
    #[error("cannot pin a worker to core {core}: {why}")]
    Pin {
        /// The core.
        core: usize,
        /// What was found instead.
        why: String,
    },
    /// The system refused a thread or a descriptor.
    #[error("cannot start the worker of core {core}: {source}")]
    System {
        /// The core.
        core: usize,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Why a pump was not placed, moved or retired. The pump is dropped by the caller's thread.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// No worker runs on that core.
    #[error("no worker runs on core {0}")]
    NoSuchCore(usize),
    /// The worker's tables are full, or the engine is shutting down.
    #[error("the worker of core {0} takes no more pumps")]
    Full(usize),
    /// A wake source could not be watched.
    #[error("cannot watch a wake source: {0}")]
    WakeSource(std::io::Error),
    /// The worker did not acknowledge in time. The pump stays where it is.
    #[error("the worker of core {core} did not acknowledge within {waited:?}")]
    Timeout {
        /// The core.
        core: usize,
        /// How long it was given.
        waited: Duration,
    },
}

/// Told by a worker, on its thread, that a pump was taken out because it panicked. Must keep the worker's rules: no
/// lock, no allocation, no waiting (write an eventfd).
pub trait Watcher: Send + Sync {
    /// The pump has been taken out; [`Placed::retire`] gives the reason.
    fn pump_ended(&self);
}

/// How a pump ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// It was retired.
    Retired,
    /// It panicked with this message (shortened) and was taken out.
    Panicked(String),
}

/// A pump given back by its worker, which touches neither it nor its memory any more.
pub struct Retired {
    /// The pump.
    pub pump: Box<dyn Pump>,
    /// How it ended.
    pub end: End,
}

/// What one pump cost and did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PumpStats {
    /// The name it was placed under.
    pub name: String,
    /// Cycles in polls that moved something.
    pub busy_cycles: u64,
    /// Polls that moved something.
    pub bursts: u64,
    /// Units moved.
    pub items: u64,
    /// Asleep on its wake sources.
    pub asleep: bool,
    /// It has no way to be woken and makes its worker nap.
    pub cannot_sleep: bool,
}

/// What one worker did since its start. Cycles by its clock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkerStats {
    /// The core it is pinned to.
    pub core: usize,
    /// Its thread id.
    pub tid: i32,
    /// Its idle policy.
    pub idle: IdlePolicy,
    /// Cycles in turns that moved something.
    pub busy_cycles: u64,
    /// Cycles in turns that moved nothing.
    pub idle_cycles: u64,
    /// Cycles asleep.
    pub sleep_cycles: u64,
    /// Turns of its loop.
    pub turns: u64,
    /// Polls that moved something, over all pumps, past ones included.
    pub bursts: u64,
    /// Units moved, over all pumps, past ones included.
    pub items: u64,
    /// Times it woke from sleep.
    pub wakeups: u64,
    /// The longest turn, in cycles, since the last reading of statistics.
    pub longest_turn_cycles: u64,
    /// Pumps that panicked on it.
    pub panics: u64,
    /// Its pumps.
    pub pumps: Vec<PumpStats>,
}

/// The workers. Cheap to clone; the workers stop when [`Engine::shutdown`] is called or the last clone is dropped.
#[derive(Debug, Clone)]
pub struct Engine {
    _inner: Arc<()>,
}

impl Engine {
    /// Starts and pins one worker per core.
    pub fn start(config: EngineConfig) -> Result<Engine, StartError> {
        let _ = config;
        unimplemented!("skeleton")
    }

    /// The cores that have workers, in the order given.
    pub fn cores(&self) -> &[usize] {
        unimplemented!("skeleton")
    }

    /// Hands a pump to the worker of `core`. Returns once it is in the mailbox.
    pub fn place(
        &self,
        core: usize,
        name: &str,
        pump: Box<dyn Pump>,
        watcher: Arc<dyn Watcher>,
    ) -> Result<Placed, PlaceError> {
        let _ = (core, name, pump, watcher);
        unimplemented!("skeleton")
    }

    /// What every worker did.
    pub fn workers(&self) -> Vec<WorkerStats> {
        unimplemented!("skeleton")
    }

    /// Changes the idle policy of every worker.
    pub fn set_idle(&self, idle: IdlePolicy) {
        let _ = idle;
        unimplemented!("skeleton")
    }

    /// Stops every worker and waits for its thread. Pumps still placed are dropped by the caller's thread.
    pub fn shutdown(&self) {
        unimplemented!("skeleton")
    }
}

/// A pump on a worker. Dropping it begins the retirement without waiting; the pump itself is then dropped on a thread
/// that is not a worker.
pub struct Placed {
    _inner: Arc<()>,
}

impl Placed {
    /// The core it is on.
    pub fn core(&self) -> usize {
        unimplemented!("skeleton")
    }

    /// Takes the pump back: once this returns Ok, the worker touches neither it nor its memory any more. The handle
    /// stays usable after a timeout.
    pub fn retire(&mut self, within: Duration) -> Result<Retired, PlaceError> {
        let _ = within;
        unimplemented!("skeleton")
    }

    /// Moves the pump to another core: retired there, placed here, under traffic.
    pub fn move_to(&mut self, core: usize, within: Duration) -> Result<(), PlaceError> {
        let _ = (core, within);
        unimplemented!("skeleton")
    }

    /// True once the pump was taken out because it panicked.
    pub fn has_ended(&self) -> bool {
        unimplemented!("skeleton")
    }

    /// What it cost and did.
    pub fn stats(&self) -> PumpStats {
        unimplemented!("skeleton")
    }
}
