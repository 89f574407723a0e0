//! Driving guests, of networks or of disks, in a closed loop, and which parts of the time were quiet.
//!
//! The time is cut into slices. A slice in which nothing came back for longer than a bound is discarded and counted:
//! one of the two cores was taken away. The rate is the median of the others.

use std::time::{Duration, Instant};

use ringway_guest::{Guest, GuestError};
use ringway_ring::tsc;
use serde::{Deserialize, Serialize};

use super::{ScaleError, Subject};
use crate::stats::Spread;

/// A slice of time.
pub const SLICE: Duration = Duration::from_millis(10);

/// The longest time without a frame that does not spoil a slice.
pub const BOUND: Duration = Duration::from_millis(1);

/// What a round came to.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Round {
    /// Millions of frames, or requests, that came back a second, all guests together.
    pub mpps: f64,
    /// Cycles of the worker for each packet or request, in turns that moved something.
    pub cycles_per_packet: f64,
    /// Packets or requests that the worker moved at once.
    pub packets_per_burst: f64,
    /// Slices that counted.
    pub slices: usize,
    /// Slices that did not.
    pub discarded: usize,
}

/// A guest that is driven.
pub(crate) trait Driven {
    /// Receives, and sends so many at most; how many came.
    fn turn(&mut self, send: u32) -> Result<u32, GuestError>;
    /// What it sent and never received, or received wrong, of all that it ever sent.
    fn lost(&self) -> i64;
}

impl Driven for Guest {
    fn turn(&mut self, send: u32) -> Result<u32, GuestError> {
        Guest::turn(self, send)
    }

    fn lost(&self) -> i64 {
        let stats = self.stats();
        stats.sent as i64 - stats.received as i64 + stats.stale as i64
    }
}

/// Drives the guests for a while and awaits what is under way. Call it on the guests' core.
pub(crate) fn round(
    subject: &mut Subject,
    guests: &mut [impl Driven],
    duration: Duration,
) -> Result<Round, ScaleError> {
    let (begun, mut discarded) = (Instant::now(), 0);
    while begun.elapsed() < PATIENCE {
        let before = subject.worker()?;
        let slices = drive(guests, duration).map_err(ScaleError::guest("the round"))?;
        let after = subject.worker()?;
        discarded += slices.discarded;
        // A round without a single quiet slice is discarded as a whole, and taken again.
        let Some(rate) = Spread::of(&slices.rates) else { continue };
        let packets = (after.packets - before.packets).max(1) as f64;
        return Ok(Round {
            mpps: rate.median / 1e6,
            cycles_per_packet: (after.busy_cycles - before.busy_cycles) as f64 / packets,
            packets_per_burst: packets / (after.bursts - before.bursts).max(1) as f64,
            slices: slices.rates.len(),
            discarded,
        });
    }
    Err(ScaleError::Noise { within: PATIENCE, discarded })
}

/// Frames that the guests sent and never received, or received damaged or twice, of all that they ever sent. Added up
/// over all: in a bridge, one receives what another sends. Floods make it negative.
pub(crate) fn balance(guests: &[impl Driven]) -> i64 {
    guests.iter().map(Driven::lost).sum()
}

/// Has every guest send a frame and takes in what comes: then a bridge knows where each of them is.
pub(crate) fn introduce(guests: &mut [Guest]) -> Result<(), GuestError> {
    sweep(guests, 1)?;
    drain(guests)
}

/// Drives the guests for a while and awaits what is under way: the rates of the slices of that time.
pub(crate) fn drive(guests: &mut [impl Driven], duration: Duration) -> Result<Slices, GuestError> {
    // The first frames find cold caches and a sleeping worker.
    let warm = Instant::now();
    while warm.elapsed() < WARM_UP {
        sweep(guests, BATCH)?;
    }
    let cycles = |time: Duration| (time.as_secs_f64() * tsc::hertz() as f64) as u64;
    let begun = tsc::cycles();
    let end = begun + cycles(duration);
    let mut slices = Slices::new(begun, cycles(SLICE), cycles(BOUND), tsc::hertz());
    while slices.now < end {
        let received = sweep(guests, BATCH)?;
        slices.observe(tsc::cycles(), received);
    }
    drain(guests)?;
    Ok(slices)
}

/// Receives until nothing came for a while.
fn drain(guests: &mut [impl Driven]) -> Result<(), GuestError> {
    let mut last = Instant::now();
    while last.elapsed() < QUIET {
        if sweep(guests, 0)? > 0 {
            last = Instant::now();
        }
    }
    Ok(())
}

/// One turn of each.
fn sweep(guests: &mut [impl Driven], send: u32) -> Result<u64, GuestError> {
    let mut received = 0;
    for guest in guests {
        received += u64::from(guest.turn(send)?);
    }
    Ok(received)
}

/// Rates of the slices of a round. Times in cycles.
#[derive(Debug)]
pub(crate) struct Slices {
    slice: u64,
    bound: u64,
    hertz: u64,
    now: u64,
    begun: u64,
    packets: u64,
    last_packet: u64,
    spoilt: bool,
    /// Frames a second of each that counts.
    pub(crate) rates: Vec<f64>,
    pub(crate) discarded: usize,
}

impl Slices {
    fn new(begun: u64, slice: u64, bound: u64, hertz: u64) -> Slices {
        Slices {
            slice,
            bound,
            hertz,
            now: begun,
            begun,
            packets: 0,
            last_packet: begun,
            spoilt: false,
            rates: Vec::new(),
            discarded: 0,
        }
    }

    /// So many frames have come since the last time.
    fn observe(&mut self, now: u64, packets: u64) {
        self.now = now;
        self.spoilt |= now.saturating_sub(self.last_packet) > self.bound;
        if packets > 0 {
            self.packets += packets;
            self.last_packet = now;
        }
        let gone = now.saturating_sub(self.begun);
        if gone < self.slice {
            return;
        }
        if self.spoilt {
            self.discarded += 1;
        } else {
            self.rates.push(self.packets as f64 / gone as f64 * self.hertz as f64);
        }
        (self.begun, self.packets, self.spoilt) = (now, 0, false);
    }
}

/// How long a quiet slice is waited for, round by round.
const PATIENCE: Duration = Duration::from_secs(60);

/// Frames that each guest sends in a turn at most.
const BATCH: u32 = 32;

const WARM_UP: Duration = Duration::from_millis(100);

/// Nothing for so long after the end: everything has come.
const QUIET: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slice_with_a_gap_is_discarded_and_the_next_one_counts() {
        // Slices of 100 cycles, bound 30, 1,000 cycles a second.
        let mut slices = Slices::new(0, 100, 30, 1000);
        for now in [25, 50, 75, 100] {
            slices.observe(now, 5);
        }
        assert_eq!((slices.rates.as_slice(), slices.discarded), ([200.0].as_slice(), 0));
        // Nothing from 100 to 140.
        for (now, packets) in [(120, 0), (140, 5), (160, 5), (180, 5), (200, 5)] {
            slices.observe(now, packets);
        }
        assert_eq!((slices.rates.len(), slices.discarded), (1, 1));
        for now in [220, 240, 260, 280, 300] {
            slices.observe(now, 2);
        }
        assert_eq!((slices.rates.as_slice(), slices.discarded), ([200.0, 100.0].as_slice(), 1));
    }

    #[test]
    fn a_slice_without_any_frame_is_discarded() {
        let mut slices = Slices::new(0, 100, 30, 1000);
        slices.observe(100, 0);
        assert_eq!((slices.rates.len(), slices.discarded), (0, 1));
        // Its gap lasts into the next one.
        slices.observe(120, 9);
        slices.observe(200, 9);
        assert_eq!(slices.discarded, 2);
    }
}
