//! Whether each worker leaves its core's other tasks their share: the kernel has work of its own bound to every core, which
//! somebody somewhere waits for.
//!
//! A worker of the default policy does, however long it polls: the kernel takes the core away from it in time. One of a
//! real-time policy (a unit's `CPUSchedulingPolicy=`, `chrt`) does not: nothing else runs there as long as it polls. It is told
//! to give way, and rests in bounded, counted steps. The control thread looks, once a second: how a thread is scheduled can be
//! changed from outside at any time.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use ringway_engine::{Engine, Policy};

/// Which workers were told to give way, and for which policy. Owned by the control thread.
#[derive(Debug, Default)]
pub(crate) struct Shares {
    told: BTreeMap<usize, Policy>,
    next: Option<Instant>,
}

/// A worker whose share has changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Changed {
    /// Its core.
    pub(crate) core: usize,
    /// The policy for which it gives way; None: it does not any more.
    pub(crate) gives_way: Option<Policy>,
}

impl Shares {
    /// Looks at every worker, if it is time to.
    pub(crate) fn look(&mut self, engine: &Engine) -> Vec<Changed> {
        let now = Instant::now();
        if self.next.is_some_and(|next| now < next) {
            return Vec::new();
        }
        self.next = Some(now + EVERY);
        let found = engine.scheduled();
        self.told.retain(|core, _| found.iter().any(|(known, _)| known == core));
        let mut changed = Vec::new();
        for (core, scheduled) in found {
            // Where the kernel does not tell, nothing is changed.
            let Some(scheduled) = scheduled else { continue };
            let gives_way = Some(scheduled.policy).filter(|policy| policy.is_real_time());
            if self.told.get(&core).copied() == gives_way {
                continue;
            }
            // One that was ended meanwhile needs nothing.
            if engine.set_gives_way(core, gives_way.is_some()).is_err() {
                continue;
            }
            match gives_way {
                Some(policy) => self.told.insert(core, policy),
                None => self.told.remove(&core),
            };
            changed.push(Changed { core, gives_way });
        }
        changed
    }
}

/// What to do about a worker that gives way.
pub(crate) const CURE: &str = "leave ringwayd its default policy: no CPUSchedulingPolicy= in its unit, no chrt; a core that is \
isolated (ringway doctor) is its own without";

/// Between two looks.
const EVERY: Duration = Duration::from_secs(1);
