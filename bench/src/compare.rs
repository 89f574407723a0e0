//! Ringway beside a peer: the same job, generator, memory, cores, rounds taken in turns A B B A.
//!
//! Both back-ends run at once, each connected, but only one of them at a time: the other is stopped with nothing under way.
//! So a round of one follows a round of the other within milliseconds, under the same weather.
//!
//! What a cache line costs to the other core is measured before and after each such pair. On virtual machines it changes
//! within seconds, several times over, as the hypervisor moves the cores about; a pair during which it changed is left
//! out, as one with a scheduling gap is. Ratios are those of pairs: their median, and their quartiles.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::{Backend, Identity, On, Testpmd};
use crate::error::BenchError;
use crate::generator::{Generator, Load, Round};
use crate::limits::{self, Gauge, Limits};
use crate::net::{Rounds, Series, most_tries};
use crate::options::{Job, PortOptions};
use crate::stats::{self, Spread};
use ringway_guest::frame::Sizes;

/// One side of a comparison.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// Who it is.
    #[serde(flatten)]
    pub identity: Identity,
    /// Its rounds in closed loop.
    pub throughput: Series,
    /// Its rounds at half of the peer's peak, if latency was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency: Option<Series>,
}

/// What a comparison came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Ringway.
    pub ours: Side,
    /// The peer.
    pub peer: Side,
    /// Packets a second, ours to the peer's.
    pub ratio: Spread,
    /// Ours as a share of the floor of the job, which was measured between the rounds; not for frames of mixed sizes.
    pub of_limit: Option<f64>,
    /// What the machine could do at best meanwhile.
    pub limits: Limits,
    /// Latencies at half of the peer's peak, ours to the peer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ratio: Option<LatencyRatio>,
}

/// Ours to the peer's.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct LatencyRatio {
    /// Frames a second that both were offered.
    pub pps: f64,
    /// Of the medians.
    pub p50: Spread,
    /// Of the 99th percentiles.
    pub p99: Spread,
}

/// What to compare.
#[derive(Debug, Clone)]
pub struct Setup {
    /// The job.
    pub job: Job,
    /// What the ports are like.
    pub port: PortOptions,
    /// How rounds are made.
    pub how: Rounds,
    /// Cores of the generator.
    pub cores: Vec<usize>,
    /// Core of the back-end whose turn it is.
    pub backend_core: usize,
    /// Ringway's policy.
    pub idle: &'static str,
    /// Latencies too.
    pub latency: bool,
}

/// A back-end and the generator that is connected to it.
#[derive(Debug)]
struct Contender {
    backend: Backend,
    generator: Generator,
}

impl Contender {
    fn new(backend: Backend, setup: &Setup) -> Result<Contender, BenchError> {
        let generator = Generator::open(&backend.sockets(), &setup.port, &setup.cores)?;
        Ok(Contender { backend, generator })
    }

    /// A round in its turn.
    fn turn(&mut self, load: Load, how: Rounds) -> Result<Round, BenchError> {
        self.backend.proceed()?;
        let round = self.generator.round(load, Duration::from_secs_f64(how.seconds));
        self.backend.pause()?;
        round
    }
}

/// Compares with DPDK's testpmd. Tells `progress` what it does.
pub fn with_dpdk(setup: &Setup, mut progress: impl FnMut(&str)) -> Result<Comparison, BenchError> {
    let Setup { job, port, backend_core, .. } = setup;
    let main_core = setup.cores.first().copied().unwrap_or_default();
    let gauge_cores = [main_core, *backend_core];
    let mut limits = limits::measure(gauge_cores, |what| progress(&format!("limits: {what}")))?;
    let gauge = Gauge::new(gauge_cores, port.touch)?;
    progress("starting testpmd");
    let longest = port.size.max();
    let peer =
        Backend::Dpdk(Testpmd::start(*job, *backend_core, main_core, port.queue_size, longest, port.pairs)?);
    let mut peer = Contender::new(peer, setup)?;
    // Once it is known to work, so that its first round is like the others.
    peer.turn(Load::Closed, setup.how)?;
    progress("starting ringwayd");
    let ours = Backend::ringway(*job, *backend_core, setup.idle, longest, port.pairs, On::default())?;
    let mut ours = Contender::new(ours, setup)?;
    ours.turn(Load::Closed, setup.how)?;

    let throughput = in_turns(&mut ours, &mut peer, Load::Closed, setup.how, &gauge, |kept| {
        progress(&format!("throughput: {kept} of {} rounds", setup.how.rounds));
    })?;
    let nothing = || BenchError::Noise("the peer moved nothing".to_owned());
    let mut latency = None;
    let mut latency_ratio = None;
    if setup.latency {
        let peak = throughput.side(1).ok_or_else(nothing)?.mpps.median;
        let pps = peak * 1e6 / 2.0;
        let turns = in_turns(&mut ours, &mut peer, Load::Open { pps }, setup.how, &gauge, |kept| {
            progress(&format!("latency: {kept} of {} rounds", setup.how.rounds));
        })?;
        latency_ratio = Some(LatencyRatio {
            pps,
            p50: turns.ratio(|round| round.latency.p50 as f64).ok_or_else(nothing)?,
            p99: turns.ratio(|round| round.latency.p99 as f64).ok_or_else(nothing)?,
        });
        latency = Some(turns);
    }
    let ratio = throughput.ratio(|round| round.mpps).ok_or_else(nothing)?;
    let lines: Vec<f64> = throughput.turns.iter().map(Turn::line_ns).collect();
    let line_ns = Spread::of(&lines).map_or(f64::NAN, |spread| spread.median);
    limits = gauge.limits(line_ns, &limits);
    let of_limit = match port.size {
        Sizes::Fixed(size) => {
            let shares: Vec<f64> = throughput
                .turns
                .iter()
                .map(|turn| {
                    let limits = gauge.limits(turn.line_ns(), &limits);
                    turn.rounds[0].mpps * 1e6 / limits.floor(*job, port.ring, size, port.touch)
                })
                .collect();
            Spread::of(&shares).map(|spread| spread.median)
        }
        Sizes::Imix => None,
    };
    let side = |contender: &Contender, who: usize| -> Result<Side, BenchError> {
        Ok(Side {
            identity: contender.backend.identity().clone(),
            throughput: throughput.side(who).ok_or_else(nothing)?,
            latency: latency.as_ref().and_then(|turns| turns.side(who)),
        })
    };
    let comparison =
        Comparison { ours: side(&ours, 0)?, peer: side(&peer, 1)?, ratio, of_limit, limits, latency_ratio };
    for contender in [ours, peer] {
        contender.backend.proceed()?;
        contender.generator.close()?;
    }
    Ok(comparison)
}

/// A round of each, one right after the other.
#[derive(Debug, Clone)]
struct Turn {
    /// Ours and the peer's.
    rounds: [Round; 2],
    /// What a line each way cost before and after, in nanoseconds.
    line: [f64; 2],
}

impl Turn {
    fn line_ns(&self) -> f64 {
        self.line.iter().sum::<f64>() / 2.0
    }

    /// By how much the cost of a line changed, from 1 on.
    fn change(&self) -> f64 {
        let [before, after] = self.line;
        (before / after).max(after / before)
    }

    fn gap_us(&self) -> f64 {
        self.rounds.iter().fold(0.0, |gap, round| gap.max(round.gap_us))
    }

    /// How disturbed it was: it counts up to 1.
    fn disturbance(&self, max_gap_us: f64) -> f64 {
        (self.gap_us() / max_gap_us).max((self.change() - 1.0) / (MOST_CHANGE - 1.0))
    }
}

/// Turns that count.
#[derive(Debug)]
struct Turns {
    turns: Vec<Turn>,
    discarded: u32,
    noisy: bool,
}

impl Turns {
    /// Those that were not disturbed, filled up to `wanted` with the least disturbed of the others.
    fn choose(made: Vec<Turn>, wanted: u32, max_gap_us: f64) -> Turns {
        let is_quiet = |turn: &Turn| turn.disturbance(max_gap_us) <= 1.0;
        let (mut turns, mut disturbed): (Vec<Turn>, Vec<Turn>) = made.into_iter().partition(is_quiet);
        let lacking = (wanted as usize).saturating_sub(turns.len()).min(disturbed.len());
        disturbed.sort_by(|a, b| a.disturbance(max_gap_us).total_cmp(&b.disturbance(max_gap_us)));
        let discarded = (disturbed.len() - lacking) as u32;
        turns.extend(disturbed.drain(..lacking));
        Turns { turns, discarded, noisy: lacking > 0 }
    }

    /// The rounds of one side.
    fn side(&self, who: usize) -> Option<Series> {
        let rounds = self.turns.iter().filter_map(|turn| turn.rounds.get(who).cloned()).collect();
        Series::of(rounds, self.discarded, self.noisy)
    }

    /// Ours to the peer's.
    fn ratio(&self, of: fn(&Round) -> f64) -> Option<Spread> {
        stats::paired_ratio(self.turns.iter().map(|turn| (of(&turn.rounds[0]), of(&turn.rounds[1]))))
    }
}

/// Rounds of both in turns A B B A, until enough of them count.
fn in_turns(
    ours: &mut Contender,
    peer: &mut Contender,
    load: Load,
    how: Rounds,
    gauge: &Gauge,
    mut progress: impl FnMut(u32),
) -> Result<Turns, BenchError> {
    let mut turns: Vec<Turn> = Vec::new();
    // Neither back-end runs while it is measured.
    let mut before = gauge.line_ns();
    for number in 0..most_tries(how.rounds) {
        let kept = turns.iter().filter(|turn| turn.disturbance(how.max_gap_us) <= 1.0).count() as u32;
        progress(kept);
        // In whole pairs of turns, so that neither comes first more often.
        if number % 2 == 0 && kept >= how.rounds {
            break;
        }
        let rounds = if comes_first(number) == 0 {
            let ours = ours.turn(load, how)?;
            [ours, peer.turn(load, how)?]
        } else {
            let peer = peer.turn(load, how)?;
            [ours.turn(load, how)?, peer]
        };
        let after = gauge.line_ns();
        turns.push(Turn { rounds, line: [before, after] });
        before = after;
    }
    Ok(Turns::choose(turns, how.rounds, how.max_gap_us))
}

/// Who comes first in a turn: A B, B A, A B, ..
fn comes_first(turn: u32) -> usize {
    (turn % 2) as usize
}

/// A pair of rounds counts if a line cost no more than so many times as much after it as before, or the other way round.
const MOST_CHANGE: f64 = 1.3;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::Latency;
    use ringway_guest::ledger::Counts;

    fn turn(ours: f64, peer: f64, gap_us: f64, line: [f64; 2]) -> Turn {
        let round = |mpps, gap_us| Round {
            seconds: 1.0,
            mpps,
            gbps: 0.0,
            counts: Counts::default(),
            latency: Latency::default(),
            set_aside: 0,
            absences: 0,
            unsent: 0,
            kicks: 0,
            gap_us,
        };
        Turn { rounds: [round(ours, 0.0), round(peer, gap_us)], line }
    }

    #[test]
    fn turns_are_a_b_b_a() {
        assert_eq!([0, 1, 2, 3].map(comes_first), [0, 1, 0, 1]);
    }

    #[test]
    fn pair_counts_unless_the_machine_changed_or_was_away() {
        let made = vec![
            turn(3.0, 1.0, 0.0, [10.0, 12.0]),
            turn(9.0, 1.0, 0.0, [10.0, 40.0]),
            turn(1.0, 9.0, 0.0, [40.0, 10.0]),
            turn(9.0, 1.0, 2000.0, [10.0, 10.0]),
            turn(5.0, 1.0, 100.0, [40.0, 41.0]),
            turn(4.0, 1.0, 0.0, [40.0, 36.0]),
        ];
        let turns = Turns::choose(made, 3, 1000.0);
        assert_eq!((turns.turns.len(), turns.discarded, turns.noisy), (3, 3, false));
        let ratio = turns.ratio(|round| round.mpps).unwrap();
        assert!((ratio.median - 4.0).abs() < 1e-9, "{ratio:?}");
    }

    #[test]
    fn too_few_are_filled_up_with_the_least_disturbed_and_said() {
        let made = vec![turn(9.0, 1.0, 0.0, [10.0, 40.0]), turn(2.0, 1.0, 0.0, [10.0, 14.0])];
        let turns = Turns::choose(made, 1, 1000.0);
        assert_eq!((turns.turns.len(), turns.discarded, turns.noisy), (1, 1, true));
        assert!((turns.side(0).unwrap().mpps.median - 2.0).abs() < 1e-9);
    }
}
