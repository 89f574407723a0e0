//! Rounds of one load on a disk, and what they come to.

use std::time::Duration;

use ringway_guest::block::lane::Counts;
use serde::{Deserialize, Serialize};

use super::generator::{Generates, Load, Round};
use crate::error::BenchError;
use crate::rounds::{self, Chosen, Rounds};
use crate::stats::Spread;

/// Rounds of one kind.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Series {
    /// The rounds that count, in the order in which they were made.
    pub rounds: Vec<Round>,
    /// Rounds left out for a gap.
    pub discarded: u32,
    /// The machine was too busy: too many were left out, so that the quietest of those count.
    pub noisy: bool,
    /// Thousands of requests a second.
    pub kiops: Spread,
    /// Megabytes (10^6) a second.
    pub mbps: Spread,
    /// Median latency of each round, in nanoseconds.
    pub p50_ns: Spread,
    /// 99 % of each round were faster, in nanoseconds.
    pub p99_ns: Spread,
}

impl Series {
    /// Of rounds that count; None of none.
    pub fn of(rounds: Vec<Round>, discarded: u32, noisy: bool) -> Option<Series> {
        let spread = |of: fn(&Round) -> f64| Spread::of(&rounds.iter().map(of).collect::<Vec<_>>());
        let (kiops, mbps) = (spread(|round| round.kiops)?, spread(|round| round.mbps)?);
        let p50_ns = spread(|round| round.latency.p50 as f64)?;
        let p99_ns = spread(|round| round.latency.p99 as f64)?;
        Some(Series { rounds, discarded, noisy, kiops, mbps, p50_ns, p99_ns })
    }

    /// What all rounds counted, added up.
    pub fn counts(&self) -> Counts {
        self.rounds.iter().fold(Counts::default(), |sum, round| sum.plus(&round.counts))
    }

    /// The share of requests whose latency was set aside since the generator was off its core, in percent.
    pub fn set_aside_percent(&self) -> f64 {
        let sum = |of: fn(&Round) -> u64| self.rounds.iter().map(of).sum::<u64>();
        let (aside, taken) = (sum(|round| round.set_aside), sum(|round| round.latency.count));
        aside as f64 / (aside + taken).max(1) as f64 * 100.0
    }
}

/// Rounds of one load, until enough of them count. Tells `progress` how many do.
pub fn series(
    generator: &mut dyn Generates,
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
