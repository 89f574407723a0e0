//! The worker's times, in nanoseconds as constants and in cycles of its clock as [`Pace`].

use crate::config::Clock;

/// A pump that has moved nothing for this long is armed.
pub(crate) const ARM_AFTER_NS: u64 = 50_000;
/// How often a worker that polls looks at its epoll for the pumps that sleep.
pub(crate) const LOOK_EVERY_NS: u64 = 20_000;
/// The same when no pump is active, so that there is nothing else to do.
pub(crate) const LOOK_IDLE_NS: u64 = 5_000;
/// An adaptive worker sleeps when nothing has moved and nobody was woken for this long.
pub(crate) const SPIN_NS: u64 = 50_000;
/// A worker does not sleep for less than this: going to sleep and waking costs as much.
pub(crate) const LEAST_SLEEP_NS: u64 = 4_000;
/// The first nap of a pump that nobody can wake; each fruitless one doubles the next.
pub(crate) const LEAST_NAP_NS: u64 = 8_000;
/// Its longest nap, while it is the only one of its kind on the core.
pub(crate) const LONGEST_NAP_NS: u64 = 64_000;
/// What each further one of its kind adds to the longest nap of all, so that a thousand of them cost a busy pump
/// only a few per cent.
pub(crate) const NAP_PER_NAPPER_NS: u64 = 2_000;
/// How long a pump that has work in flight while it stops sleeps at most.
pub(crate) const STOP_LOOK_NS: u64 = 10_000_000;
/// How long a worker that shuts down goes on polling pumps which have work in flight.
pub(crate) const SHUTDOWN_GRACE_NS: u64 = 500_000_000;
/// Over how long the longest turn is looked back, at least; at most twice as long.
pub(crate) const LONGEST_TURN_WINDOW_NS: u64 = 10_000_000_000;
/// How often a worker that gives way rests.
pub(crate) const REST_EVERY_NS: u64 = 2_000_000;
/// How long it rests: of its time as much as the kernel itself keeps from real-time tasks for all others, in steps that a
/// ring's buffers outlast.
pub(crate) const REST_NS: u64 = 100_000;

/// The times in cycles.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    hertz: u64,
    pub(crate) arm_after: u64,
    pub(crate) look_every: u64,
    pub(crate) look_idle: u64,
    pub(crate) spin: u64,
    pub(crate) least_sleep: u64,
    pub(crate) least_nap: u64,
    pub(crate) longest_nap: u64,
    pub(crate) nap_per_napper: u64,
    pub(crate) stop_look: u64,
    pub(crate) shutdown_grace: u64,
    pub(crate) longest_turn_window: u64,
    pub(crate) rest_every: u64,
}

impl Pace {
    pub(crate) fn of(clock: Clock) -> Pace {
        let cycles = |ns| to_cycles(ns, clock.hertz);
        Pace {
            hertz: clock.hertz,
            arm_after: cycles(ARM_AFTER_NS),
            look_every: cycles(LOOK_EVERY_NS),
            look_idle: cycles(LOOK_IDLE_NS),
            spin: cycles(SPIN_NS),
            least_sleep: cycles(LEAST_SLEEP_NS),
            least_nap: cycles(LEAST_NAP_NS),
            longest_nap: cycles(LONGEST_NAP_NS),
            nap_per_napper: cycles(NAP_PER_NAPPER_NS),
            stop_look: cycles(STOP_LOOK_NS),
            shutdown_grace: cycles(SHUTDOWN_GRACE_NS),
            longest_turn_window: cycles(LONGEST_TURN_WINDOW_NS),
            rest_every: cycles(REST_EVERY_NS),
        }
    }

    /// Nanoseconds in cycles, as a pump gives them.
    pub(crate) fn cycles(&self, ns: u64) -> u64 {
        to_cycles(ns, self.hertz)
    }

    /// Cycles in nanoseconds, as the system takes them.
    pub(crate) fn nanoseconds(&self, cycles: u64) -> u64 {
        to_nanoseconds(cycles, self.hertz)
    }
}

/// Nanoseconds in cycles of a clock; saturates.
pub(crate) fn to_cycles(ns: u64, hertz: u64) -> u64 {
    u64::try_from(u128::from(ns) * u128::from(hertz) / 1_000_000_000).unwrap_or(u64::MAX)
}

/// Cycles of a clock in nanoseconds; saturates, also for a clock of 0 hertz.
pub(crate) fn to_nanoseconds(cycles: u64, hertz: u64) -> u64 {
    u64::try_from(u128::from(cycles) * 1_000_000_000 / u128::from(hertz.max(1))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conversions_saturate_and_invert() {
        assert_eq!(to_cycles(1_000, 2_500_000_000), 2_500);
        assert_eq!(to_nanoseconds(2_500, 2_500_000_000), 1_000);
        assert_eq!(to_cycles(u64::MAX, 3_000_000_000), u64::MAX);
        assert_eq!(to_nanoseconds(u64::MAX, 0), u64::MAX);
    }
}
