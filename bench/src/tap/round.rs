//! A round, and what it came to.

use std::thread;
use std::time::{Duration, Instant};

use ringway_ring::tsc;
use serde::{Deserialize, Serialize};

use super::bed::Counter;
use crate::error::BenchError;
use crate::rounds::Timed;

/// What a round came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// The time that counts.
    pub seconds: f64,
    /// Gigabits a second: of TCP its payload, of UDP its frames, as they came in that time.
    pub gbps: f64,
    /// Millions of frames a second over the wire, both ways together: with segmentation offload a frame has up to 64 KiB.
    pub mpps: f64,
    /// Busy cycles a frame of who moves them; None where that tells none, or nothing was moved.
    pub cycles_per_frame: Option<f64>,
    /// What became of what was sent, the warm-up's too.
    pub books: Books,
}

/// What became of what was sent: of TCP in bytes, of UDP in datagrams.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Books {
    /// Sent.
    pub sent: u64,
    /// Came, as it was sent.
    pub received: u64,
    /// Did not come.
    pub lost: u64,
    /// Came, and was not what belongs there.
    pub corrupt: u64,
    /// Datagrams that came again, or after one that was sent later.
    pub out_of_order: u64,
}

impl Books {
    /// Both, added up.
    #[must_use]
    pub fn plus(self, other: &Books) -> Books {
        Books {
            sent: self.sent + other.sent,
            received: self.received + other.received,
            lost: self.lost + other.lost,
            corrupt: self.corrupt + other.corrupt,
            out_of_order: self.out_of_order + other.out_of_order,
        }
    }
}

impl Round {
    /// Of what was measured; `bytes` in each unit that came.
    pub(crate) fn of(measured: Measured, bytes: u64, books: Books) -> Round {
        let Measured { seconds, came, frames, cycles } = measured;
        Round {
            seconds,
            gbps: (came * bytes) as f64 * 8.0 / seconds / 1e9,
            mpps: frames as f64 / seconds / 1e6,
            cycles_per_frame: cycles.filter(|_| frames > 0).map(|cycles| cycles as f64 / frames as f64),
            books,
        }
    }
}

impl Timed for Round {
    /// Its ends sleep as they like: what they miss is a part of it.
    fn gap_us(&self) -> f64 {
        0.0
    }
}

/// What was counted in the time that counts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Measured {
    seconds: f64,
    /// What came at the receiver.
    came: u64,
    frames: u64,
    cycles: Option<u64>,
}

impl Measured {
    /// Waits until something came, warms up, and counts for `span`. `came` tells how much has come so far, or that it ended.
    ///
    /// # Errors
    /// It ended, or nothing came.
    pub(crate) fn over(
        span: Duration,
        counter: &mut Counter,
        came: impl Fn() -> Result<u64, BenchError>,
    ) -> Result<Measured, BenchError> {
        let begun = Instant::now();
        let first = came()?;
        while came()? == first {
            if begun.elapsed() > PATIENCE {
                return Err(BenchError::Noise(format!("nothing came within {PATIENCE:?}")));
            }
            thread::sleep(Duration::from_millis(1));
        }
        thread::sleep(WARM_UP.max(span / 5));
        let mut look = || Ok::<_, BenchError>((came()?, counter.seen()?, tsc::cycles()));
        let (came_before, before, from) = look()?;
        thread::sleep(span);
        // Longer on a machine that had no time for any of it: a rate is of something.
        let begun = Instant::now();
        while came()? == came_before && begun.elapsed() < PATIENCE {
            thread::sleep(Duration::from_millis(1));
        }
        let (came_after, after, to) = look()?;
        let cycles = after.cycles.zip(before.cycles).and_then(|(after, before)| after.checked_sub(before));
        Ok(Measured {
            seconds: (to - from) as f64 / tsc::hertz() as f64,
            came: came_after - came_before,
            frames: after.frames - before.frames,
            cycles,
        })
    }
}

/// What a thread of a round came to.
pub(crate) fn ended<T>(joined: thread::Result<Result<T, BenchError>>) -> Result<T, BenchError> {
    joined.unwrap_or_else(|_| Err(BenchError::Usage("bug: a thread panicked".to_owned())))
}

/// Before a round counts.
const WARM_UP: Duration = Duration::from_millis(50);

/// Within so long the first must have come.
const PATIENCE: Duration = Duration::from_secs(10);
