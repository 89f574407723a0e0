//! Throughput and latency of a network back-end: rounds of the [`Generator`], the ones that the machine disturbed left
//! out, and the search for the highest rate without loss.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::generator::{Generator, Load, Round};
use crate::rounds::{self, Chosen, Rounds};
use crate::stats::Spread;

/// Rounds of one kind, and what they come to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// The rounds that count, in the order in which they were made.
    pub rounds: Vec<Round>,
    /// Rounds left out for a gap.
    pub discarded: u32,
    /// The machine was too busy: too many were left out, so that the quietest of those count.
    pub noisy: bool,
    /// Millions of frames a second.
    pub mpps: Spread,
    /// Median latency of each round, in nanoseconds.
    pub p50_ns: Spread,
    /// 99 % of each round were faster, in nanoseconds.
    pub p99_ns: Spread,
}

impl Series {
    /// Of rounds that count; None of none.
    pub fn of(rounds: Vec<Round>, discarded: u32, noisy: bool) -> Option<Series> {
        let spread = |of: fn(&Round) -> f64| Spread::of(&rounds.iter().map(of).collect::<Vec<_>>());
        let mpps = spread(|round| round.mpps)?;
        let p50_ns = spread(|round| round.latency.p50 as f64)?;
        let p99_ns = spread(|round| round.latency.p99 as f64)?;
        Some(Series { rounds, discarded, noisy, mpps, p50_ns, p99_ns })
    }

    /// The share of frames whose latency was set aside since the generator was off its core, in percent.
    pub fn set_aside_percent(&self) -> f64 {
        let sum = |of: fn(&Round) -> u64| self.rounds.iter().map(of).sum::<u64>();
        let (aside, taken) = (sum(|round| round.set_aside), sum(|round| round.latency.count));
        aside as f64 / (aside + taken).max(1) as f64 * 100.0
    }

    /// Frames with which something went wrong, over all rounds.
    pub fn faults(&self) -> u64 {
        self.rounds.iter().map(|round| round.counts.faults()).sum()
    }
}

/// Rounds of one load, until enough of them count. Tells `progress` how many do.
pub fn series(
    generator: &mut Generator,
    load: Load,
    how: Rounds,
    mut progress: impl FnMut(u32),
) -> Result<Series, BenchError> {
    let span = Duration::from_secs_f64(how.seconds);
    let Chosen { rounds, discarded, noisy } = rounds::choose(how, |kept| {
        progress(kept);
        generator.round(load, span)
    })?;
    Series::of(rounds, discarded, noisy).ok_or_else(|| BenchError::Usage("at least one round".to_owned()))
}

/// One step of the search.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Frames a second that were offered.
    pub pps: f64,
    /// All came back. None: disturbed, and made again.
    pub lossless: Option<bool>,
    /// What was seen.
    pub round: Round,
}

/// The highest rate without loss.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Found {
    /// Millions of frames a second, of which none was lost; 0 if some were at every rate.
    pub mpps: f64,
    /// Closed-loop throughput, from which the search went down.
    pub closed_mpps: f64,
    /// Every step, disturbed ones too.
    pub trials: Vec<Trial>,
    /// Trials left out for a gap.
    pub discarded: u32,
}

/// Halves the distance between a rate that loses and one that does not until it is `resolution` of the peak.
pub fn search(
    generator: &mut Generator,
    how: Rounds,
    resolution: f64,
    mut progress: impl FnMut(f64),
) -> Result<Found, BenchError> {
    let span = Duration::from_secs_f64(how.seconds);
    let closed_mpps = generator.round(Load::Closed, span)?.mpps;
    let mut trials = Vec::new();
    let mpps = bisect(closed_mpps, resolution, |mpps| {
        let pps = mpps * 1e6;
        let mut tries = 0;
        loop {
            progress(mpps);
            let round = generator.round(Load::Open { pps }, span)?;
            let is_lossless = round.is_lossless();
            tries += 1;
            // A gap excuses a loss, a few times; what was not lost in spite of it was not lost.
            let is_disturbed = round.gap_us > how.max_gap_us && !is_lossless && tries < TRIES;
            trials.push(Trial { pps, lossless: (!is_disturbed).then_some(is_lossless), round });
            if !is_disturbed {
                return Ok::<bool, BenchError>(is_lossless);
            }
        }
    })?;
    let discarded = trials.iter().filter(|trial| trial.lossless.is_none()).count() as u32;
    Ok(Found { mpps, closed_mpps, trials, discarded })
}

/// The highest value up to `peak` that holds, to `resolution` of the peak; 0 if none does.
fn bisect<E>(peak: f64, resolution: f64, mut holds: impl FnMut(f64) -> Result<bool, E>) -> Result<f64, E> {
    let (mut good, mut bad) = (0.0, peak * 1.05);
    let mut next = peak;
    while bad - good > peak * resolution.max(1e-4) {
        if holds(next)? {
            good = next
        } else {
            bad = next
        }
        next = (good + bad) / 2.0;
    }
    Ok(good)
}

/// A disturbed trial is made again so often at most.
const TRIES: u32 = 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Latency;
    use ringway_guest::ledger::Counts;

    fn round(mpps: f64, gap_us: f64) -> Round {
        let counts = Counts { sent: 100, received: 100, ..Counts::default() };
        let latency = Latency { p50: (mpps * 1000.0) as u64, ..Latency::default() };
        Round {
            seconds: 1.0,
            mpps,
            gbps: 0.0,
            counts,
            latency,
            set_aside: 0,
            absences: 0,
            unsent: 0,
            kicks: 0,
            gap_us,
        }
    }

    #[test]
    fn search_finds_the_edge() {
        for edge in [0.3, 5.0, 7.77, 9.99] {
            let found = bisect(10.0, 0.001, |mpps| Ok::<_, ()>(mpps <= edge)).unwrap();
            assert!(found <= edge && edge - found <= 0.011, "{found} for {edge}");
        }
        assert!(bisect(10.0, 0.01, |_| Ok::<_, ()>(false)).unwrap().abs() < 1e-9);
        assert!(bisect(10.0, 0.01, |_| Ok::<_, ()>(true)).unwrap() >= 10.0);
        assert_eq!(bisect(10.0, 0.01, |_| Err::<bool, _>("gone")), Err("gone"));
    }

    #[test]
    fn frame_that_could_not_be_sent_is_a_loss() {
        assert!(round(1.0, 0.0).is_lossless());
        assert!(!Round { unsent: 1, ..round(1.0, 0.0) }.is_lossless());
        let counts = Counts { duplicated: 1, ..Counts::default() };
        assert!(!Round { counts, ..round(1.0, 0.0) }.is_lossless());
    }
}
