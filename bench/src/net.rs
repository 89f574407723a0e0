//! Throughput and latency of a network device whose wire is a loop, with the built-in guest on one core and the
//! worker on another.

use std::path::Path;
use std::time::{Duration, Instant};

use ringway_control::guest::pair::{BATCH, PairStats};
use ringway_control::guest::{Guest, GuestError, GuestOptions};
use ringway_ring::tsc;
use serde::Serialize;

/// What one round came to.
#[derive(Debug, Clone, Serialize)]
pub struct Round {
    /// Frames that came back intact while the clock ran.
    pub packets: u64,
    /// How long it ran.
    pub seconds: f64,
    /// Millions of frames a second, each way.
    pub mpps: f64,
    /// Frames that did not come back, or not intact, after the ring was drained.
    pub lost: u64,
    /// Round trip of sampled frames at full load, in nanoseconds.
    pub p50_ns: u64,
    /// 99 % of them were faster.
    pub p99_ns: u64,
}

/// One round: full load for `duration`, then what is under way is awaited.
pub fn round(socket: &Path, options: GuestOptions, duration: Duration) -> Result<Round, GuestError> {
    let mut guest = Guest::connect(socket, options)?;
    // The first frames find cold caches and a sleeping worker.
    run(&mut guest, Duration::from_millis(100))?;
    let before = guest.stats();
    let seconds = run(&mut guest, duration)?;
    let after = guest.stats();
    drain(&mut guest)?;
    let all = guest.stop()?;
    let packets = after.received - before.received;
    let (p50_ns, p99_ns) = latency(&all);
    Ok(Round { packets, seconds, mpps: packets as f64 / seconds / 1e6, lost: lost(&all), p50_ns, p99_ns })
}

/// Frames that never came back, or not intact, or twice.
pub fn lost(stats: &PairStats) -> u64 {
    (stats.sent - stats.received.min(stats.sent)) + stats.stale
}

fn run(guest: &mut Guest, duration: Duration) -> Result<f64, GuestError> {
    let begun = Instant::now();
    loop {
        // Look at the clock once in many turns.
        for _ in 0..1024 {
            guest.turn(BATCH as u32)?;
        }
        if begun.elapsed() >= duration {
            return Ok(begun.elapsed().as_secs_f64());
        }
    }
}

/// Receives until everything sent has come back, or nothing came for a while.
fn drain(guest: &mut Guest) -> Result<(), GuestError> {
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

/// Median and 99th percentile, in nanoseconds.
fn latency(stats: &PairStats) -> (u64, u64) {
    let ns = |cycles: u64| (u128::from(cycles) * 1_000_000_000 / u128::from(tsc::hertz().max(1))) as u64;
    let at =
        |quantile| stats.latency_cycles.as_ref().map_or(0, |latency| ns(latency.value_at_quantile(quantile)));
    (at(0.5), at(0.99))
}

/// Nothing for so long: what is missing will not come.
const QUIET: Duration = Duration::from_millis(200);
