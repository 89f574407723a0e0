//! Throughput and latency of a network device whose wire is a loop, with the built-in guest on one core and the
//! worker on another.

use std::ops::ControlFlow;
use std::path::Path;
use std::time::Duration;

use ringway_control::guest::load;
use ringway_control::guest::{Guest, GuestError, GuestOptions};
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
    load::run(&mut guest, Duration::from_millis(100), |_, _| ControlFlow::Continue(()))?;
    let before = guest.stats();
    let seconds = load::run(&mut guest, duration, |_, _| ControlFlow::Continue(()))?.as_secs_f64();
    let packets = guest.stats().received - before.received;
    load::drain(&mut guest)?;
    let all = guest.stop()?;
    Ok(Round {
        packets,
        seconds,
        mpps: packets as f64 / seconds / 1e6,
        lost: load::lost(&all),
        p50_ns: load::latency_ns(&all, 0.5),
        p99_ns: load::latency_ns(&all, 0.99),
    })
}
