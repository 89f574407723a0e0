//! The host's network behind a guest: what goes through `ringwayd`'s `tap/IFNAME` beside other ways to a TAP.
//!
//! ```text
//!   guest (core of --cores)                           back-end (--backend-core)      host (last of --cores)
//!   TCP stack -- TAP -- forwarder -- [ virtqueue ] -- ringwayd ------------- TAP -- TCP stack
//!                                    [ virtqueue ] -- vhost-net's thread --- TAP --
//!   TCP stack -- TAP ------------------------------- plain forwarder ------- TAP --
//!   UDP generator ------ as these, without the guest's stack and its TAP ----------- UDP socket
//! ```
//! Host and guest are network namespaces of the suite's own. TCP leaves checksums and segmentation to the other side, as guests
//! do, so that frames have up to 64 KiB; UDP negotiates none, and each datagram is a frame. The *plain* peer is what a program of
//! the host without virtqueues does: one read and one write a frame. It saves the guest's side what virtqueues cost there, and
//! has fewer threads for the same work: a bound, not a rival that a guest could have.
//!
//! Rounds of both are taken in turns, as in every comparison (see [`crate::turns`]); what came is compared with what was sent.

// One side of a comparison.
mod bed;
// Datagrams, made and checked.
mod datagram;
// A guest's NIC whose stack is a namespace's.
mod forward;
// Namespaces.
mod namespace;
// What is sent.
mod pattern;
// A queue pair from the driver's side.
mod port;
// What a round came to.
pub mod round;
// Rounds of TCP.
mod tcp;
// Rounds of UDP.
mod udp;
// The kernel's vhost-net.
mod vhost_net;
// What carries frames.
mod wire;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use crate::backend::Identity;
use crate::error::BenchError;
use crate::limits::Gauge;
use crate::options::{Ring, Touch};
use crate::rounds::Rounds;
use crate::stats::{self, Spread};
use crate::turns::{State, Turns, in_turns};
use bed::{Bed, Who};
use round::{Books, Round};
use tcp::Tcp;
use udp::Udp;

/// Beside whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Peer {
    /// A plain reader and writer of the TAP.
    Plain,
    /// The kernel's vhost-net.
    VhostNet,
}

impl Peer {
    /// Those that this machine has.
    pub fn present() -> Vec<Peer> {
        let has_vhost = Path::new("/dev/vhost-net").exists();
        [Some(Peer::Plain), has_vhost.then_some(Peer::VhostNet)].into_iter().flatten().collect()
    }
}

/// What is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// TCP, with offloads.
    Tcp,
    /// UDP, without.
    Udp,
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Direction {
    /// From the guest to the host.
    ToHost,
    /// From the host to the guest.
    ToGuest,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "TCP",
            Protocol::Udp => "UDP",
        })
    }
}

impl fmt::Display for Direction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Direction::ToHost => "guest to host",
            Direction::ToGuest => "host to guest",
        })
    }
}

/// What to measure, and where.
#[derive(Debug, Clone)]
pub struct Setup {
    /// Protocols.
    pub protocols: Vec<Protocol>,
    /// Directions.
    pub directions: Vec<Direction>,
    /// Bytes of UDP's frames, from the Ethernet header on.
    pub sizes: Vec<u16>,
    /// Ring layout.
    pub ring: Ring,
    /// MTU of both TAPs.
    pub mtu: u16,
    /// How rounds are made.
    pub how: Rounds,
    /// Cores of guest and host: the first one's is the guest, the last one's the host.
    pub cores: Vec<usize>,
    /// Core of who moves frames between the guest and the TAP.
    pub backend_core: usize,
    /// Policy of `ringwayd`'s worker, and of a plain forwarder: `poll` or `adaptive`.
    pub idle: &'static str,
    /// Ask what a cache line costs between the rounds, so that states of the machine are told apart.
    pub states: bool,
    /// Damage one long frame in so many on its way from the guest.
    pub wrong: Option<u64>,
}

impl Setup {
    fn guest_core(&self) -> usize {
        self.cores.first().copied().unwrap_or_default()
    }

    fn host_core(&self) -> usize {
        self.cores.last().copied().unwrap_or_default()
    }

    /// What runs on which core, in words.
    pub fn placed(&self) -> String {
        format!(
            "the guest's socket, its stack and its side of the rings on core {}, the host's socket on core {}; on core {}, in turns, \
             ringwayd's worker and the peer's thread",
            self.guest_core(),
            self.host_core(),
            self.backend_core
        )
    }

    /// What is measured, one after the other.
    fn jobs(&self) -> Vec<Job> {
        let mut jobs = Vec::new();
        for &protocol in &self.protocols {
            let sizes: Vec<Option<u16>> = match protocol {
                Protocol::Tcp => vec![None],
                Protocol::Udp => self.sizes.iter().copied().map(Some).collect(),
            };
            for size in sizes {
                jobs.extend(self.directions.iter().map(|&direction| Job { protocol, direction, size }));
            }
        }
        jobs
    }

    fn check(&self, peer: Peer) -> Result<(), BenchError> {
        let usage = |what: String| Err(BenchError::Usage(what));
        if self.cores.contains(&self.backend_core) {
            return usage(format!(
                "--backend-core {}: a core of its own, not one of --cores",
                self.backend_core
            ));
        }
        if peer == Peer::VhostNet && self.ring == Ring::Packed {
            return usage("--peer vhost-net: it has split rings only".to_owned());
        }
        let longest = self.mtu + ETHERNET_BYTES;
        match self.sizes.iter().find(|size| !(datagram::SMALLEST..=longest).contains(*size)) {
            Some(size) => usage(format!("--size {size}: {} to {longest}, the MTU's", datagram::SMALLEST)),
            None => Ok(()),
        }
    }
}

/// One thing that is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// What is sent.
    pub protocol: Protocol,
    /// Which way.
    pub direction: Direction,
    /// Of UDP: bytes of each frame, from the Ethernet header on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u16>,
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, {}", self.protocol, self.direction)?;
        self.size.map_or(Ok(()), |size| write!(f, ", {size} B"))
    }
}

/// What a comparison with a peer came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// Ringway.
    pub ours: Identity,
    /// The peer.
    pub peer: Identity,
    /// What ran where.
    pub placed: String,
    /// One for each job.
    pub rows: Vec<Row>,
}

/// What one job came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The job.
    #[serde(flatten)]
    pub job: Job,
    /// Ours.
    pub ours: Side,
    /// The peer's.
    pub peer: Side,
    /// Bytes a second, ours to the peer's: the median of pairs.
    pub ratio: Spread,
    /// Busy cycles a frame, ours to the peer's, where both tell.
    pub cycles_ratio: Option<Spread>,
    /// Pairs of rounds left out, since the machine changed meanwhile.
    pub discarded: u32,
    /// Too many were: the least disturbed count.
    pub noisy: bool,
    /// In each state of the machine, gigabits a second; the first counts.
    pub states: Vec<State>,
}

/// What one side did.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Side {
    /// Gigabits a second.
    pub gbps: Spread,
    /// Millions of frames a second over the wire, both ways.
    pub mpps: Spread,
    /// Busy cycles a frame.
    pub cycles_per_frame: Option<Spread>,
    /// What became of what was sent, over all rounds that count.
    pub books: Books,
    /// The rounds.
    pub rounds: Vec<Round>,
}

impl Side {
    fn of(rounds: Vec<Round>) -> Option<Side> {
        let spread = |of: fn(&Round) -> f64| Spread::of(&rounds.iter().map(of).collect::<Vec<_>>());
        let cycles = rounds.iter().map(|round| round.cycles_per_frame).collect::<Option<Vec<f64>>>();
        let books = rounds.iter().fold(Books::default(), |sum, round| sum.plus(&round.books));
        Some(Side {
            gbps: spread(|round| round.gbps)?,
            mpps: spread(|round| round.mpps)?,
            cycles_per_frame: cycles.and_then(|cycles| Spread::of(&cycles)),
            books,
            rounds,
        })
    }
}

impl Row {
    fn of(job: Job, turns: &Turns<Round>) -> Result<Row, BenchError> {
        let nothing = || BenchError::Noise(format!("{job}: nothing was moved"));
        let side = |who: usize| Side::of(turns.side(who)).ok_or_else(nothing);
        let cycles = |who: usize| {
            turns.side(who).iter().map(|round| round.cycles_per_frame).collect::<Option<Vec<f64>>>()
        };
        let cycles_ratio =
            cycles(0).zip(cycles(1)).and_then(|(ours, peer)| stats::paired_ratio(ours.into_iter().zip(peer)));
        Ok(Row {
            job,
            ours: side(0)?,
            peer: side(1)?,
            ratio: turns.ratio(|round| round.gbps).ok_or_else(nothing)?,
            cycles_ratio,
            discarded: turns.discarded,
            noisy: turns.noisy,
            states: turns.states(|round| round.gbps),
        })
    }
}

/// One side, with what a protocol needs of it.
enum Contender {
    Tcp(Box<Tcp>),
    Udp(Box<Udp>),
}

impl Contender {
    fn new(who: Who, protocol: Protocol, setup: &Setup) -> Result<Contender, BenchError> {
        Ok(match protocol {
            Protocol::Tcp => Contender::Tcp(Box::new(Tcp::new(who, setup)?)),
            Protocol::Udp => Contender::Udp(Box::new(Udp::new(who, setup)?)),
        })
    }

    fn bed(&self) -> &Bed {
        match self {
            Contender::Tcp(tcp) => &tcp.bed,
            Contender::Udp(udp) => &udp.bed,
        }
    }

    /// A round in its turn.
    fn turn(&mut self, job: Job, how: Rounds) -> Result<Round, BenchError> {
        self.bed().proceed()?;
        let span = Duration::from_secs_f64(how.seconds);
        let round = match self {
            Contender::Tcp(tcp) => tcp.round(job.direction, span),
            Contender::Udp(udp) => udp.round(job.direction, job.size.unwrap_or(datagram::SMALLEST), span),
        };
        self.bed().pause()?;
        round
    }

    fn leave(self) -> Result<(), BenchError> {
        match self {
            Contender::Tcp(tcp) => tcp.leave(),
            Contender::Udp(udp) => udp.leave(),
        }
    }
}

/// Compares with a peer. Tells `progress` what it does.
///
/// # Errors
/// What is needed is not here, not allowed, or broke.
pub fn compare(setup: &Setup, peer: Peer, mut progress: impl FnMut(&str)) -> Result<Comparison, BenchError> {
    setup.check(peer)?;
    let gauge = match setup.states {
        true => Some(Gauge::new([setup.guest_core(), setup.backend_core], Touch::Header)?),
        false => None,
    };
    let line_ns = || gauge.as_ref().map_or(1.0, Gauge::line_ns);
    let (mut rows, mut identities) = (Vec::new(), None);
    for &protocol in &setup.protocols {
        progress(&format!("{protocol}: starting"));
        let mut theirs = Contender::new(Who::Peer(peer), protocol, setup)?;
        let mut ours = Contender::new(Who::Ours, protocol, setup)?;
        ours.bed().pause()?;
        identities = Some((ours.bed().identity.clone(), theirs.bed().identity.clone()));
        for job in setup.jobs().into_iter().filter(|job| job.protocol == protocol) {
            // One of each that does not count: the first has its pages to touch and its neighbours to find.
            ours.turn(job, setup.how)?;
            theirs.turn(job, setup.how)?;
            let round = |who| if who == 0 { ours.turn(job, setup.how) } else { theirs.turn(job, setup.how) };
            let turns = in_turns(setup.how, line_ns, round, |kept| {
                progress(&format!("{job}: {kept} of {} rounds", setup.how.rounds))
            })?;
            rows.push(Row::of(job, &turns)?);
        }
        ours.leave()?;
        theirs.leave()?;
    }
    let (ours, peer) = identities.ok_or_else(|| BenchError::Usage("no protocol to measure".to_owned()))?;
    Ok(Comparison { ours, peer, placed: setup.placed(), rows })
}

const ETHERNET_BYTES: u16 = 14;
