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

use crate::backend::{Backend, Identity, On, Ovs, Peer, Testpmd};
use crate::error::BenchError;
use crate::generator::{Generator, Load, Round};
use crate::limits::{self, Gauge, Limits};
use crate::net::Series;
use crate::options::{Job, PortOptions};
use crate::rounds::Rounds;
use crate::stats::Spread;
use crate::turns::{Turn, Turns, in_turns};
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
    /// Beside whom.
    pub peer: Peer,
    /// Ports.
    pub ports: usize,
    /// So many of the first ports send; the others take what comes.
    pub talkers: usize,
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
        let port = PortOptions { listen: backend.connects(), ..setup.port.clone() };
        let mut generator = Generator::open(&backend.sockets(), &port, &setup.cores)?;
        if setup.job == Job::Bridge {
            generator.introduce(setup.talkers * usize::from(setup.port.pairs))?;
        }
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

/// Compares with a peer of our own. Tells `progress` what it does.
pub fn with_peer(setup: &Setup, mut progress: impl FnMut(&str)) -> Result<Comparison, BenchError> {
    let Setup { job, port, backend_core, ports, .. } = setup;
    let main_core = setup.cores.first().copied().unwrap_or_default();
    let gauge_cores = [main_core, *backend_core];
    progress("starting the peer");
    let longest = port.size.max();
    let peer = match setup.peer {
        Peer::Dpdk => Backend::Dpdk(Testpmd::start(
            *job,
            *backend_core,
            main_core,
            port.queue_size,
            longest,
            port.pairs,
        )?),
        Peer::Ovs => Backend::Ovs(Ovs::start(*ports, *backend_core, main_core)?),
    };
    // Whatever is missing is told before anything is measured, which a peer that polls would disturb.
    peer.pause()?;
    let mut limits = limits::measure(gauge_cores, |what| progress(&format!("limits: {what}")))?;
    let gauge = Gauge::new(gauge_cores, port.touch)?;
    peer.proceed()?;
    let mut peer = Contender::new(peer, setup)?;
    // Once it is known to work, so that its first round is like the others.
    peer.turn(Load::Closed, setup.how)?;
    progress("starting ringwayd");
    let ours = Backend::ringway(*job, *ports, *backend_core, setup.idle, longest, port.pairs, On::default())?;
    let mut ours = Contender::new(ours, setup)?;
    ours.turn(Load::Closed, setup.how)?;

    let mut both = |load| {
        let (how, ours, peer) = (setup.how, &mut ours, &mut peer);
        let round = |who| if who == 0 { ours.turn(load, how) } else { peer.turn(load, how) };
        in_turns(how, &gauge, round, |kept| {
            progress(&format!("{}: {kept} of {} rounds", of(load), how.rounds))
        })
    };
    let throughput = both(Load::Closed)?;
    let nothing = || BenchError::Noise("the peer moved nothing".to_owned());
    let mut latency = None;
    let mut latency_ratio = None;
    if setup.latency {
        let peak = series(&throughput, 1).ok_or_else(nothing)?.mpps.median;
        let pps = peak * 1e6 / 2.0;
        let turns = both(Load::Open { pps })?;
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
    // What a switch does with a frame is no part of the floor.
    let of_limit = match port.size {
        Sizes::Fixed(size) if *job != Job::Bridge => {
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
        _ => None,
    };
    let side = |contender: &Contender, who: usize| -> Result<Side, BenchError> {
        Ok(Side {
            identity: contender.backend.identity().clone(),
            throughput: series(&throughput, who).ok_or_else(nothing)?,
            latency: latency.as_ref().and_then(|turns| series(turns, who)),
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

/// The rounds of one side.
fn series(turns: &Turns<Round>, who: usize) -> Option<Series> {
    Series::of(turns.side(who), turns.discarded, turns.noisy)
}

/// What a load says.
fn of(load: Load) -> &'static str {
    match load {
        Load::Closed => "throughput",
        Load::Open { .. } => "latency",
    }
}
