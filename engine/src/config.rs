//! How an engine is started.

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

impl IdlePolicy {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            IdlePolicy::Poll => "poll",
            IdlePolicy::Adaptive => "adaptive",
        }
    }
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
