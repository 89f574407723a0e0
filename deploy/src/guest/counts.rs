//! What a background sender has seen, counted for whoever asks while it goes on.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use ringway_lab::agent::TrafficReport;

/// Written by the thread that sends and receives, read by whoever reports.
pub(crate) struct Counts {
    pub(crate) start: Instant,
    pub(crate) stop: AtomicBool,
    pub(crate) sent: AtomicU64,
    pub(crate) refused: AtomicU64,
    pub(crate) received: AtomicU64,
    pub(crate) duplicated: AtomicU64,
    pub(crate) corrupt: AtomicU64,
    pub(crate) longest_gap_ms: AtomicU64,
    /// When the last reply came, in milliseconds from `start`.
    pub(crate) last_ms: AtomicU64,
}

impl Counts {
    /// Nothing yet.
    pub(crate) fn new() -> Counts {
        Counts {
            start: Instant::now(),
            stop: AtomicBool::new(false),
            sent: AtomicU64::new(0),
            refused: AtomicU64::new(0),
            received: AtomicU64::new(0),
            duplicated: AtomicU64::new(0),
            corrupt: AtomicU64::new(0),
            longest_gap_ms: AtomicU64::new(0),
            last_ms: AtomicU64::new(0),
        }
    }

    /// What has been seen so far.
    pub(crate) fn report(&self) -> TrafficReport {
        let elapsed_ms = self.now_ms();
        let since_last_ms = elapsed_ms.saturating_sub(self.last_ms.load(Ordering::Acquire));
        TrafficReport {
            sent: self.sent.load(Ordering::Acquire),
            refused: self.refused.load(Ordering::Acquire),
            received: self.received.load(Ordering::Acquire),
            duplicated: self.duplicated.load(Ordering::Acquire),
            corrupt: self.corrupt.load(Ordering::Acquire),
            longest_gap_ms: self.longest_gap_ms.load(Ordering::Acquire).max(since_last_ms),
            since_last_ms,
            elapsed_ms,
        }
    }

    /// Milliseconds from the start.
    pub(crate) fn now_ms(&self) -> u64 {
        self.start.elapsed().as_millis() as u64
    }
}
