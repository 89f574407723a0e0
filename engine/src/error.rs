//! Why an engine did not start, and why a pump was not placed, moved or given back.

use std::fmt;
use std::time::Duration;

use crate::pump::{MAX_WAKE_SOURCES, Pump};

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

/// A pump that was not placed: it comes back as it was, for whoever made it to take apart or to place elsewhere.
#[derive(thiserror::Error)]
#[error("{why}")]
pub struct NotPlaced {
    /// Why.
    pub why: PlaceError,
    /// The pump.
    pub pump: Box<dyn Pump>,
}

/// Why a pump was not placed, moved or retired.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// No worker runs on that core.
    #[error("no worker runs on core {0}")]
    NoSuchCore(usize),
    /// The worker's tables are full, or the engine is shutting down.
    #[error(
        "the worker of core {0} takes no more pumps: it has as many as it can, or ringwayd is stopping; serve the device by \
         another core"
    )]
    Full(usize),
    /// A wake source could not be watched.
    #[error(
        "no worker can watch its kicks: {0}; each running queue takes descriptors of ringwayd: raise its limit (LimitNOFILE, \
         ulimit -n) or run fewer queues"
    )]
    WakeSource(std::io::Error),
    /// More wake sources than one pump may have.
    #[error(
        "its {0} queues with kicks are more than one worker's pump can have, {MAX_WAKE_SOURCES}: run fewer queues"
    )]
    TooManySources(usize),
    /// The worker did not acknowledge in time. The pump stays where it is and takes no new work; ask again.
    #[error("the worker of core {core} did not acknowledge within {waited:?}")]
    Timeout {
        /// The core.
        core: usize,
        /// How long it was given.
        waited: Duration,
    },
    /// The worker has pumps, or one is on its way there or back: it cannot be ended.
    #[error("the worker of core {core} has {pumps} pumps")]
    InUse {
        /// The core.
        core: usize,
        /// How many.
        pumps: usize,
    },
    /// No pump is placed by this handle any more: it was given back.
    #[error("the pump was given back before")]
    Gone,
    /// The pump panicked and was taken out, so it cannot be moved; [`crate::Placed::retire`] gives it back with the reason.
    #[error("the pump was taken out because it panicked")]
    Ended,
}

impl fmt::Debug for NotPlaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotPlaced").field("why", &self.why).finish_non_exhaustive()
    }
}
