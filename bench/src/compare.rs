//! Ringway beside a peer: the same job, generator, memory, cores, rounds taken in turns A B B A.
//!
//! Both back-ends run at once, each connected, but only one of them at a time: the other is stopped with nothing under way.
//! So a round of one follows a round of the other within milliseconds, under the same weather.
//!
//! What a cache line costs to the other core is measured before each round and after the last. On virtual machines it changes
//! within seconds, several times over, as the hypervisor moves the cores about; a pair during which it changed is left
//! out, as one with a scheduling gap is, and pairs of different states of the machine are not mixed: those of the state in which
//! most were taken count, the others are told. Ratios are those of pairs: their median, and their quartiles.
//!
//! What the generator can do is measured in the same run. Where that is not enough, it is the generator that is compared, and the
//! result says so. What each back-end spent on a packet is told beside, at rates that both reach: it says what packets a second
//! do not while the guest is the slower side.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::backend::{Backend, Identity, On, Ovs, Peer, Spent, Testpmd, Wanted};
use crate::ceiling;
use crate::driver::{DriverOptions, VirtioUser};
use crate::error::BenchError;
use crate::generator::{Generator, Load, Round};
use crate::limits::{self, Gauge, Limits};
use crate::net::Series;
use crate::options::{Job, PortOptions};
use crate::rounds::{Rounds, Timed};
use crate::stats::{self, Spread};
use crate::turns::{State, Turn, Turns, in_turns};
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
    /// Millions of packets a second of the generator against a back-end that does nothing, in the same state of the machine;
    /// None where another program drives, or the machine was never in that state then.
    pub ceiling_mpps: Option<f64>,
    /// That is less than 1.5 times what the faster one did, so that it is the generator that was measured.
    pub generator_bound: bool,
    /// What was measured in each state of the machine, by the cost of a cache line; the first is the one that counts. In
    /// millions of packets a second.
    pub states: Vec<State>,
    /// What each spent on a packet: at saturation, and at rates that both reach.
    pub busy: Vec<BusyAt>,
    /// The driver, if it is not the suite's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub driver: Option<DriverSeen>,
    /// Latencies at half of the peer's peak, ours to the peer's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub latency_ratio: Option<LatencyRatio>,
}

/// What both spent at a rate.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct BusyAt {
    /// The share of the slower one's peak that both were offered; none at saturation, where each moves what it can.
    pub share: Option<f64>,
    /// Ours.
    pub ours: SpentAt,
    /// The peer's.
    pub peer: SpentAt,
    /// Busy cycles a packet, ours to the peer's.
    pub ratio: Spread,
    /// Both moved what they were offered, to 2 %: only then does the ratio compare like with like. At saturation nothing is
    /// offered.
    #[serde(default = "kept_up")]
    pub kept_up: bool,
}

/// Of results that do not tell.
fn kept_up() -> bool {
    true
}

/// What one of them spent.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SpentAt {
    /// Millions of packets a second that it moved.
    pub mpps: Spread,
    /// Busy cycles a packet.
    pub cycles_per_packet: Spread,
    /// Packets in a burst.
    pub packets_per_burst: Spread,
}

/// A driver that is not the suite's own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DriverSeen {
    /// What it is.
    #[serde(flatten)]
    pub identity: Identity,
    /// The paths that it says it took.
    pub paths: Vec<String>,
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
    /// What each spends at rates below saturation too.
    pub rates: bool,
    /// DPDK's driver in place of the suite's guest.
    pub driver: Option<DriverOptions>,
}

impl Setup {
    /// Ringway's policy: of two that poll, one would be refused the core that the other has claimed.
    fn idle(&self) -> &'static str {
        if self.peer == Peer::Link { "adaptive" } else { self.idle }
    }
}

/// What makes the load.
#[derive(Debug)]
enum Traffic {
    Guest(Box<Generator>),
    VirtioUser(Box<VirtioUser>),
}

/// A round of a side, and what its back-end spent.
#[derive(Debug, Clone)]
struct Made {
    round: Round,
    spent: Option<Spent>,
}

impl Timed for Made {
    fn gap_us(&self) -> f64 {
        self.round.gap_us
    }
}

/// A back-end and the generator that is connected to it.
#[derive(Debug)]
struct Contender {
    backend: Backend,
    traffic: Traffic,
    /// Some frames go to every port: cycles are told by the frames that were sent.
    floods: bool,
}

impl Contender {
    fn new(backend: Backend, setup: &Setup) -> Result<Contender, BenchError> {
        if let Some(driver) = &setup.driver {
            let traffic = Traffic::VirtioUser(Box::new(VirtioUser::open(&backend.sockets(), driver)?));
            return Ok(Contender { backend, traffic, floods: false });
        }
        let port = PortOptions { listen: backend.connects(), ..setup.port.clone() };
        let mut generator = Generator::open(&backend.sockets(), &port, &setup.cores)?;
        if setup.job == Job::Bridge {
            generator.introduce(setup.talkers * usize::from(setup.port.pairs))?;
        }
        let floods = setup.port.flood.is_some();
        Ok(Contender { backend, traffic: Traffic::Guest(Box::new(generator)), floods })
    }

    /// A round in its turn.
    fn turn(&mut self, load: Load, how: Rounds) -> Result<Made, BenchError> {
        self.backend.proceed()?;
        // None of a back-end that has moved nothing yet.
        let before = self.backend.busy()?.unwrap_or_default();
        let span = Duration::from_secs_f64(how.seconds);
        let round = match &mut self.traffic {
            Traffic::Guest(generator) => generator.round(load, span),
            Traffic::VirtioUser(driver) => driver.round(span),
        };
        let after = self.backend.busy();
        self.backend.pause()?;
        let round = round?;
        let spent = after?.and_then(|after| match self.floods {
            true => after.since_over(&before, round.counts.sent),
            false => after.since(&before),
        });
        Ok(Made { round, spent })
    }

    fn leave(self) -> Result<(), BenchError> {
        self.backend.proceed()?;
        match self.traffic {
            Traffic::Guest(generator) => generator.close(),
            Traffic::VirtioUser(_) => Ok(()),
        }
    }

    fn driver(&self) -> Option<DriverSeen> {
        match &self.traffic {
            Traffic::Guest(_) => None,
            Traffic::VirtioUser(driver) => {
                Some(DriverSeen { identity: driver.identity().clone(), paths: driver.paths().to_vec() })
            }
        }
    }
}

/// Starts `ringwayd` with the devices of the job.
pub(crate) fn start_ours(setup: &Setup) -> Result<Backend, BenchError> {
    let Setup { job, ports, port, backend_core, .. } = setup;
    let on = On { flood: port.flood.is_some(), ..On::default() };
    Backend::ringway(*job, *ports, *backend_core, setup.idle(), port.size.max(), port.pairs, on)
}

/// Starts the peer; what waits in it does so on `main_core`.
pub(crate) fn start_peer(setup: &Setup, main_core: usize) -> Result<Backend, BenchError> {
    let Setup { job, port, backend_core, ports, .. } = setup;
    Ok(match &setup.peer {
        Peer::Dpdk(program) => Backend::Dpdk(Testpmd::start(Wanted {
            program: program.as_deref(),
            job: *job,
            core: *backend_core,
            main_core,
            queue_size: port.queue_size,
            max_frame: port.size.max(),
            pairs: port.pairs,
        })?),
        Peer::Ovs => Backend::Ovs(Ovs::start(*ports, *backend_core, main_core)?),
        Peer::Link => {
            let longest = port.size.max();
            Backend::ringway(
                Job::Link,
                *ports,
                *backend_core,
                setup.idle(),
                longest,
                port.pairs,
                On::default(),
            )?
        }
    })
}

/// Compares with a peer of our own. Tells `progress` what it does.
pub fn with_peer(setup: &Setup, mut progress: impl FnMut(&str)) -> Result<Comparison, BenchError> {
    let Setup { job, port, backend_core, ports, talkers, .. } = setup;
    let main_core = setup.cores.first().copied().unwrap_or_default();
    let gauge_cores = [main_core, *backend_core];
    progress("starting the peer");
    let peer = start_peer(setup, main_core)?;
    // Whatever is missing is told before anything is measured, which a peer that polls would disturb.
    peer.pause()?;
    let mut limits = limits::measure(gauge_cores, |what| progress(&format!("limits: {what}")))?;
    let gauge = Gauge::new(gauge_cores, port.touch)?;
    let ceiling = || -> Result<Vec<ceiling::Taken>, BenchError> {
        if setup.driver.is_some() {
            return Ok(Vec::new());
        }
        ceiling::measure(port, *ports, *talkers, &setup.cores, *backend_core, &gauge, setup.how.seconds)
    };
    progress("measuring the generator");
    let mut taken = ceiling()?;
    peer.proceed()?;
    let mut peer = Contender::new(peer, setup)?;
    // Once it is known to work, so that its first round is like the others.
    peer.turn(Load::Closed, setup.how)?;
    progress("starting ringwayd");
    let mut ours = Contender::new(start_ours(setup)?, setup)?;
    ours.turn(Load::Closed, setup.how)?;

    let mut both = |load, how: Rounds| {
        let (ours, peer) = (&mut ours, &mut peer);
        let round = |who| if who == 0 { ours.turn(load, how) } else { peer.turn(load, how) };
        in_turns(
            how,
            || gauge.line_ns(),
            round,
            |kept| progress(&format!("{}: {kept} of {} rounds", of(load), how.rounds)),
        )
    };
    let throughput = both(Load::Closed, setup.how)?;
    let nothing = || BenchError::Noise("the peer moved nothing".to_owned());
    let peak = |who| Ok::<f64, BenchError>(series(&throughput, who).ok_or_else(nothing)?.mpps.median * 1e6);
    let (our_peak, peer_peak) = (peak(0)?, peak(1)?);
    let mut latency = None;
    let mut latency_ratio = None;
    if setup.latency {
        let pps = peer_peak / 2.0;
        let turns = both(Load::Open { pps }, setup.how)?;
        latency_ratio = Some(LatencyRatio {
            pps,
            p50: turns.ratio(|made| made.round.latency.p50 as f64).ok_or_else(nothing)?,
            p99: turns.ratio(|made| made.round.latency.p99 as f64).ok_or_else(nothing)?,
        });
        latency = Some(turns);
    }
    let mut busy: Vec<BusyAt> = BusyAt::of(&throughput, None, None).into_iter().collect();
    // A driver of somebody else's takes no rates; a back-end that does not tell at saturation does not tell below.
    if setup.rates && setup.driver.is_none() && !busy.is_empty() {
        let how = Rounds { rounds: setup.how.rounds.div_ceil(2), ..setup.how };
        for share in SHARES {
            let pps = our_peak.min(peer_peak) * share;
            let turns = both(Load::Open { pps }, how)?;
            busy.extend(BusyAt::of(&turns, Some(share), Some(pps / 1e6)));
        }
    }
    taken.extend(ceiling()?);
    let ratio = throughput.ratio(|made| made.round.mpps).ok_or_else(nothing)?;
    let lines: Vec<f64> = throughput.turns.iter().map(Turn::line_ns).collect();
    let line_ns = Spread::of(&lines).map_or(f64::NAN, |spread| spread.median);
    limits = gauge.limits(line_ns, &limits);
    let ceiling_mpps = ceiling::of_state(&taken, line_ns);
    // What a switch does with a frame is no part of the floor.
    let of_limit = match port.size {
        Sizes::Fixed(size) if *job != Job::Bridge && setup.driver.is_none() => {
            let shares: Vec<f64> = throughput
                .turns
                .iter()
                .map(|turn| {
                    let limits = gauge.limits(turn.line_ns(), &limits);
                    turn.rounds[0].round.mpps * 1e6 / limits.floor(*job, port.ring, size, port.touch)
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
    let comparison = Comparison {
        ours: side(&ours, 0)?,
        peer: side(&peer, 1)?,
        ratio,
        of_limit,
        limits,
        ceiling_mpps,
        generator_bound: setup.driver.is_none()
            && ceiling::is_bound(ceiling_mpps, our_peak.max(peer_peak) / 1e6),
        states: throughput.states(|made| made.round.mpps),
        busy,
        driver: ours.driver(),
        latency_ratio,
    };
    ours.leave()?;
    peer.leave()?;
    Ok(comparison)
}

impl BusyAt {
    /// Of turns at a rate, in millions of packets a second; None if either does not tell.
    fn of(turns: &Turns<Made>, share: Option<f64>, offered: Option<f64>) -> Option<BusyAt> {
        let spent =
            |who: usize| turns.side(who).iter().map(|made| made.spent).collect::<Option<Vec<Spent>>>();
        let at = |who: usize| {
            let spread = |of: fn(&Spent) -> f64| Spread::of(&spent(who)?.iter().map(of).collect::<Vec<_>>());
            Some(SpentAt {
                mpps: Spread::of(&turns.side(who).iter().map(|made| made.round.mpps).collect::<Vec<_>>())?,
                cycles_per_packet: spread(|spent| spent.cycles_per_packet)?,
                packets_per_burst: spread(|spent| spent.packets_per_burst)?,
            })
        };
        let cycles = |spent: Vec<Spent>| spent.into_iter().map(|spent| spent.cycles_per_packet);
        let ratio = stats::paired_ratio(cycles(spent(0)?).zip(cycles(spent(1)?)))?;
        let (ours, peer) = (at(0)?, at(1)?);
        let slower = ours.mpps.median.min(peer.mpps.median);
        let kept_up = offered.is_none_or(|offered| slower >= offered * KEPT_UP);
        Some(BusyAt { share, ours, peer, ratio, kept_up })
    }
}

/// The rounds of one side.
fn series(turns: &Turns<Made>, who: usize) -> Option<Series> {
    let rounds = turns.side(who).into_iter().map(|made| made.round).collect();
    Series::of(rounds, turns.discarded, turns.noisy)
}

/// What a load says.
fn of(load: Load) -> String {
    match load {
        Load::Closed => "throughput".to_owned(),
        Load::Open { pps } => format!("{:.2} Mpps", pps / 1e6),
    }
}

/// Of what was offered: who moves less was slower than the rate, and spent its cycles on other bursts than the other one.
const KEPT_UP: f64 = 0.98;

/// Rates at which it is measured what each spends, of the slower one's peak.
const SHARES: [f64; 3] = [0.25, 0.5, 0.9];
