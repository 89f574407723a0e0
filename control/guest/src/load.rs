//! Load: a guest's traffic over a span of time, and what it says of the path.

use std::ops::ControlFlow;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use ringway_ring::tsc;

use crate::error::GuestError;
use crate::guest::Guest;
use crate::lane::Stats;

/// Sends and receives as fast as it goes for `duration`; calls `tick` some times a second with the time gone and the
/// frames received since the start, which may end it early. Returns how long it took.
pub fn run(
    guest: &mut Guest,
    duration: Duration,
    mut tick: impl FnMut(Duration, u64) -> ControlFlow<()>,
) -> Result<Duration, GuestError> {
    let (begun, before) = (Instant::now(), guest.stats().received);
    let mut next_tick = TICK;
    loop {
        // The clock is looked at once in many turns.
        for _ in 0..TURNS {
            guest.turn(BATCH)?;
        }
        let gone = begun.elapsed();
        if gone >= duration {
            return Ok(gone);
        }
        if gone >= next_tick {
            if tick(gone, guest.stats().received - before).is_break() {
                return Ok(gone);
            }
            next_tick = gone + TICK;
        }
    }
}

/// Receives until everything sent has come back, or nothing came for a while.
pub fn drain(guest: &mut Guest) -> Result<(), GuestError> {
    let mut last = Instant::now();
    while last.elapsed() < QUIET {
        if guest.turn(0)? > 0 {
            last = Instant::now();
        }
        let stats = guest.stats();
        if stats.received + stats.corrupt >= stats.sent {
            break;
        }
    }
    Ok(())
}

/// Frames that never came back, or came back damaged or more than once.
pub fn lost(stats: &Stats) -> u64 {
    stats.sent.saturating_sub(stats.received) + stats.stale
}

/// The latency at a quantile from 0 to 1, in nanoseconds, of a histogram in cycles.
pub fn latency_ns(latency: &Histogram<u64>, quantile: f64) -> u64 {
    let cycles = latency.value_at_quantile(quantile);
    (u128::from(cycles) * 1_000_000_000 / u128::from(tsc::hertz().max(1))) as u64
}

/// Frames that a guest under load sends at once at most.
pub const BATCH: u32 = 32;

/// Between two calls of `tick`.
const TICK: Duration = Duration::from_millis(250);

/// Turns between two looks at the clock: some microseconds each when loaded.
const TURNS: u32 = 256;

/// Nothing for so long: what is missing will not come. Long, since on a busy host the worker may not run for many
/// hundred milliseconds; only a real loss waits for it.
const QUIET: Duration = Duration::from_secs(2);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_counts_what_is_missing_damaged_or_doubled() {
        let stats = Stats { sent: 100, received: 97, stale: 2, corrupt: 1, ..Stats::default() };
        assert_eq!(lost(&stats), 5);
        assert_eq!(lost(&Stats { sent: 5, received: 5, ..Stats::default() }), 0);
    }
}
