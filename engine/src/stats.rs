//! What workers and pumps cost and did, as it is read.

use std::time::Duration;

use crate::config::IdlePolicy;
use crate::histogram::Times;
use crate::scheduled::Scheduled;
use crate::sizes::BurstSizes;

/// What one pump cost and did, since it was first placed; moves between cores do not reset it.
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
    /// Asleep on its wake sources, or between two naps.
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
    /// Polls that moved something by how much, over all pumps, past ones included.
    pub burst_sizes: BurstSizes,
    /// How long the turns took that moved something.
    pub busy_turns: Times,
    /// Times it woke from sleep.
    pub wakeups: u64,
    /// The longest turn, in cycles, of the last 10 to 20 seconds.
    pub longest_turn_cycles: u64,
    /// Pumps that panicked on it.
    pub panics: u64,
    /// It was told to give way ([`Engine::set_gives_way`](crate::Engine::set_gives_way)).
    pub gives_way: bool,
    /// Times that it rested so that others could run.
    pub rests: u64,
    /// Cycles that it rested.
    pub rest_cycles: u64,
    /// How the kernel schedules it, where it tells.
    pub scheduled: Option<Scheduled>,
    /// The pump that it is inside of at this moment, if any.
    pub current_pump: Option<String>,
    /// When it entered that pump, in cycles. One that stays the same for more than a millisecond is stuck; see
    /// [`Engine::stuck`](crate::Engine::stuck).
    pub stuck_since: Option<u64>,
    /// Its pumps.
    pub pumps: Vec<PumpStats>,
}

/// A worker that has been inside one call of one pump for longer than was asked about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StuckWorker {
    /// The worker's core.
    pub core: usize,
    /// Its thread id, for a signal that interrupts the system call it hangs in.
    pub tid: i32,
    /// The pump, by the name it was placed under.
    pub pump: String,
    /// For how long.
    pub since: Duration,
}
