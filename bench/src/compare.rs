//! Ringway beside a peer: the same job, generator, memory, cores, rounds taken in turns A B B A.
//!
//! Both back-ends run at once, each connected, but only one of them at a time: the other is stopped with nothing under way.
//! So a round of one follows a round of the other within milliseconds, under the same weather.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::{Backend, Identity, Testpmd};
use crate::error::BenchError;
use crate::frame::Sizes;
use crate::generator::{Generator, Load, Round};
use crate::limits::{self, Gauge, Limits};
use crate::net::{Collector, Rounds, Series, most_tries};
use crate::options::{Job, PortOptions};
use crate::stats::{Spread, ratio};

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
    let gauge = Gauge::new(gauge_cores)?;
    progress("starting testpmd");
    let longest = port.size.max();
    let peer =
        Backend::Dpdk(Testpmd::start(*job, *backend_core, main_core, port.queue_size, longest, port.pairs)?);
    let mut peer = Contender::new(peer, setup)?;
    // Once it is known to work, so that its first round is like the others.
    peer.turn(Load::Closed, setup.how)?;
    progress("starting ringwayd");
    let ours = Backend::ringway(*job, *backend_core, setup.idle, longest, port.pairs)?;
    let mut ours = Contender::new(ours, setup)?;
    ours.turn(Load::Closed, setup.how)?;

    let mut exchanges = Vec::new();
    let throughput = in_turns(&mut ours, &mut peer, Load::Closed, setup.how, |kept| {
        progress(&format!("throughput: {kept} of {} rounds", setup.how.rounds));
        // Neither back-end runs now.
        exchanges.push(gauge.exchange_ns());
    })?;
    limits.exchange_ns = Spread::of(&exchanges).map_or(limits.exchange_ns, |spread| spread.median);
    let of = |series: &Series, what: fn(&Round) -> f64| series.rounds.iter().map(what).collect::<Vec<f64>>();
    let ratio_of = |pair: &[Series; 2], what: fn(&Round) -> f64| {
        ratio(&of(&pair[0], what), &of(&pair[1], what))
            .ok_or_else(|| BenchError::Noise("the peer moved nothing".to_owned()))
    };
    let mut latency = None;
    let mut latency_ratio = None;
    if setup.latency {
        let pps = throughput[1].mpps.median * 1e6 / 2.0;
        let pair = in_turns(&mut ours, &mut peer, Load::Open { pps }, setup.how, |kept| {
            progress(&format!("latency: {kept} of {} rounds", setup.how.rounds));
        })?;
        latency_ratio = Some(LatencyRatio {
            pps,
            p50: ratio_of(&pair, |round| round.latency.p50 as f64)?,
            p99: ratio_of(&pair, |round| round.latency.p99 as f64)?,
        });
        latency = Some(pair);
    }
    let ratio = ratio_of(&throughput, |round| round.mpps)?;
    let of_limit = match port.size {
        Sizes::Fixed(size) => {
            Some(throughput[0].mpps.median * 1e6 / limits.floor(*job, port.ring, size, port.touch))
        }
        Sizes::Imix => None,
    };
    let [ours_latency, peer_latency] = latency.map_or([None, None], |pair| pair.map(Some));
    let [ours_throughput, peer_throughput] = throughput;
    let side = |contender: &Contender, throughput, latency| Side {
        identity: contender.backend.identity().clone(),
        throughput,
        latency,
    };
    let comparison = Comparison {
        ours: side(&ours, ours_throughput, ours_latency),
        peer: side(&peer, peer_throughput, peer_latency),
        ratio,
        of_limit,
        limits,
        latency_ratio,
    };
    for contender in [ours, peer] {
        contender.backend.proceed()?;
        contender.generator.close()?;
    }
    Ok(comparison)
}

/// Rounds of both in turns A B B A, until enough of each count: ours, then the peer's.
fn in_turns(
    ours: &mut Contender,
    peer: &mut Contender,
    load: Load,
    how: Rounds,
    mut progress: impl FnMut(u32),
) -> Result<[Series; 2], BenchError> {
    let mut collectors = [Collector::default(), Collector::default()];
    let is_enough = |collector: &Collector| collector.kept() >= how.rounds;
    for turn in 0..most_tries(how.rounds) {
        progress(collectors.iter().map(Collector::kept).min().unwrap_or_default());
        for who in order(turn) {
            let contender = if who == 0 { &mut *ours } else { &mut *peer };
            let round = contender.turn(load, how)?;
            if let Some(collector) = collectors.get_mut(who) {
                collector.take(round, how.max_gap_us);
            }
        }
        // In whole pairs of turns, so that neither comes first more often.
        if turn % 2 == 1 && collectors.iter().all(is_enough) {
            break;
        }
    }
    let [ours, peer] = collectors.map(|collector| collector.finish(how.rounds));
    match (ours, peer) {
        (Some(ours), Some(peer)) => Ok([ours, peer]),
        _ => Err(BenchError::Usage("at least one round".to_owned())),
    }
}

/// Who comes first in a turn, and who second: A B, B A, A B, ..
fn order(turn: u32) -> [usize; 2] {
    if turn.is_multiple_of(2) { [0, 1] } else { [1, 0] }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turns_are_a_b_b_a() {
        let turns: Vec<usize> = (0..4).flat_map(order).collect();
        assert_eq!(turns, [0, 1, 1, 0, 0, 1, 1, 0]);
    }
}
