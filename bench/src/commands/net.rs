//! `ringway-bench net`.

use std::path::PathBuf;

use clap::ValueEnum;
use ringway_bench::backend::{Backend, Identity, On};
use ringway_bench::generator::{Generator, Load};
use ringway_bench::host::Watch;
use ringway_bench::net::{self, Found, Series};
use ringway_bench::null::{NullBackend, NullOptions, Wrong};
use ringway_bench::options::{Job, PortOptions, Ring, Touch};
use ringway_bench::progress;
use ringway_bench::record::Record;
use ringway_bench::rounds::Rounds;
use ringway_guest::frame::Sizes;
use serde::Serialize;

use super::{Failure, print_json};

#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct Arguments {
    /// Socket of any vhost-user-net back-end that does the job (twice for a link); a ringwayd is started without it
    #[arg(long)]
    socket: Vec<PathBuf>,
    /// Own the sockets and wait for the back-end to connect
    #[arg(long, requires = "socket")]
    listen: bool,
    /// Management device of each port (twice for a link) of the ringwayd that is started, in place of one of its own: a function
    /// with something at its other end that does the job
    #[arg(long, conflicts_with = "socket")]
    mgmtdev: Vec<String>,
    /// Configuration file of the ringwayd that is started: what the management devices need, no devices
    #[arg(long, value_name = "FILE", requires = "mgmtdev")]
    config: Option<PathBuf>,
    /// One port that gives back what it gets, or two that are joined
    #[arg(long, value_enum, default_value_t = Job::Loopback)]
    job: Job,
    #[command(flatten)]
    port: PortArguments,
    /// Frames a second at intended times, in place of as many as go: measures latency
    #[arg(long, value_name = "PPS", conflicts_with = "search")]
    rate: Option<f64>,
    /// Search the highest rate without loss, to 1 % of the peak
    #[arg(long)]
    search: bool,
    /// Measure the generator itself, against a back-end that does as little as can be
    #[arg(long, conflicts_with = "socket")]
    null: bool,
    /// What the null back-end does wrong, to one frame in a million: shows that it is noticed
    #[arg(long, requires = "null", value_enum)]
    wrong: Option<Wrong>,
    #[command(flatten)]
    rounds: RoundArguments,
}

/// What ports are like.
#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct PortArguments {
    /// Ring formats
    #[arg(long, value_enum, default_value_t = Rings::Both)]
    pub(crate) ring: Rings,
    /// Frame size in bytes, without frame check sequence, or `imix`
    #[arg(long, default_value_t = Sizes::Fixed(64))]
    #[serde(serialize_with = "as_text")]
    pub(crate) size: Sizes,
    /// What is read and written of each frame
    #[arg(long, value_enum, default_value_t = Touch::Header)]
    pub(crate) touch: Touch,
    /// Entries in each ring
    #[arg(long, default_value_t = 256)]
    pub(crate) queue_size: u16,
    /// Queue pairs of each port
    #[arg(long, default_value_t = 1)]
    pub(crate) pairs: u16,
    /// Memory regions
    #[arg(long, default_value_t = 1)]
    pub(crate) regions: u16,
    /// Negotiate IN_ORDER
    #[arg(long)]
    pub(crate) in_order: bool,
    /// Do not negotiate RING_EVENT_IDX
    #[arg(long)]
    pub(crate) no_event_idx: bool,
    /// Do not negotiate MRG_RXBUF
    #[arg(long)]
    pub(crate) no_mergeable: bool,
}

impl PortArguments {
    pub(crate) fn options(&self, ring: Ring) -> PortOptions {
        PortOptions {
            ring,
            size: self.size,
            touch: self.touch,
            queue_size: self.queue_size,
            mergeable: !self.no_mergeable,
            event_idx: !self.no_event_idx,
            in_order: self.in_order,
            pairs: self.pairs,
            regions: self.regions,
            ..PortOptions::default()
        }
    }
}

/// How rounds are made, and where.
#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct RoundArguments {
    /// Seconds of each round
    #[arg(long, default_value_t = 0.25)]
    pub(crate) seconds: f64,
    /// Rounds that count
    #[arg(long, default_value_t = 7)]
    pub(crate) rounds: u32,
    /// Leave a round out in which the generator was off its core for longer, in microseconds
    #[arg(long, value_name = "US", default_value_t = 1000.0)]
    pub(crate) max_gap_us: f64,
    /// Cores of the generator, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "0")]
    pub(crate) cores: Vec<usize>,
    /// Core of the back-end that is started
    #[arg(long, default_value_t = 1)]
    pub(crate) backend_core: usize,
    /// What the worker of the ringwayd that is started does when idle
    #[arg(long, value_enum, default_value_t = Idle::Poll)]
    pub(crate) idle: Idle,
}

impl RoundArguments {
    pub(crate) fn rounds(&self) -> Rounds {
        Rounds { rounds: self.rounds, seconds: self.seconds, max_gap_us: self.max_gap_us }
    }

    pub(crate) fn check(&self) -> Result<(), Failure> {
        if self.rounds == 0 || !(0.001..=3600.0).contains(&self.seconds) {
            return Err("at least one round, of 0.001 to 3600 seconds".into());
        }
        Ok(())
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Idle {
    Poll,
    Adaptive,
}

impl Idle {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Idle::Poll => "poll",
            Idle::Adaptive => "adaptive",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Rings {
    Split,
    Packed,
    Both,
}

impl Rings {
    pub(crate) fn each(self) -> &'static [Ring] {
        match self {
            Rings::Split => &[Ring::Split],
            Rings::Packed => &[Ring::Packed],
            Rings::Both => &Ring::ALL,
        }
    }
}

fn as_text<S: serde::Serializer>(value: &impl std::fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// What was found.
#[derive(Debug, Serialize)]
struct Runs {
    /// One for each ring format.
    runs: Vec<Outcome>,
}

/// What one ring format came to.
#[derive(Debug, Serialize)]
struct Outcome {
    ring: Ring,
    backend: Identity,
    /// The pages that the generator's memory stood on.
    pages: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    series: Option<Series>,
    #[serde(skip_serializing_if = "Option::is_none")]
    search: Option<Found>,
    /// Frames that the null back-end did wrong on purpose.
    #[serde(skip_serializing_if = "Option::is_none")]
    done_wrong: Option<u64>,
}

/// What stands behind the sockets.
enum Behind {
    Started(Box<Backend>),
    Null(NullBackend),
    Given(Vec<PathBuf>),
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> Result<(), Failure> {
    arguments.rounds.check()?;
    let watch = Watch::begin();
    let mut outcomes = Vec::new();
    for ring in arguments.port.ring.each() {
        outcomes.push(measure(arguments, *ring)?);
        progress::show("");
    }
    let host = watch.end();
    if json {
        return print_json(&Record::new("net", host, arguments, &Runs { runs: outcomes })?);
    }
    println!("{host}");
    for outcome in &outcomes {
        print(arguments, outcome);
    }
    Ok(())
}

fn measure(arguments: &Arguments, ring: Ring) -> Result<Outcome, Failure> {
    let behind = start(arguments)?;
    let mut options = PortOptions { listen: arguments.listen, ..arguments.port.options(ring) };
    let (sockets, backend) = match &behind {
        Behind::Started(backend) => (backend.sockets(), backend.identity().clone()),
        Behind::Null(null) => {
            options.sampled = false;
            (vec![null.socket()], given("null"))
        }
        Behind::Given(sockets) => (sockets.clone(), given("given")),
    };
    let mut generator = Generator::open(&sockets, &options, &arguments.rounds.cores)?;
    let pages = generator.page_kind().map(|kind| kind.to_string()).unwrap_or_default();
    let how = arguments.rounds.rounds();
    let mut outcome = Outcome { ring, backend, pages, series: None, search: None, done_wrong: None };
    if arguments.search {
        let show = |mpps: f64| progress::show(&format!("{ring}: {mpps:.2} Mpps"));
        outcome.search = Some(net::search(&mut generator, how, RESOLUTION, show)?);
    } else {
        let load = arguments.rate.map_or(Load::Closed, |pps| Load::Open { pps });
        let show = |kept: u32| progress::show(&format!("{ring}: round {} of {}", kept + 1, how.rounds));
        outcome.series = Some(net::series(&mut generator, load, how, show)?);
    }
    if let Behind::Null(null) = &behind {
        outcome.done_wrong = arguments.wrong.map(|_| null.done_wrong());
    }
    generator.close()?;
    Ok(outcome)
}

fn start(arguments: &Arguments) -> Result<Behind, Failure> {
    let Arguments { job, port, rounds, .. } = arguments;
    if arguments.null {
        if *job == Job::Link {
            return Err("the null back-end gives back what it gets: --job net".into());
        }
        if port.size.max() > NULL_MOST && !port.no_mergeable {
            return Err(format!(
                "the null back-end fills one buffer a frame: up to {NULL_MOST} bytes, or --no-mergeable"
            )
            .into());
        }
        let options = NullOptions {
            copies_payload: port.touch == Touch::All,
            bare: port.touch == Touch::None,
            wrong: arguments.wrong.map(|wrong| (wrong, ONE_IN)),
        };
        return Ok(Behind::Null(NullBackend::start(rounds.backend_core, options)?));
    }
    if arguments.socket.is_empty() {
        let idle = rounds.idle.word();
        let Arguments { mgmtdev, config, .. } = arguments;
        if !mgmtdev.is_empty() && mgmtdev.len() != job.ports() {
            return Err(format!("--job {job} takes {} --mgmtdev, not {}", job.ports(), mgmtdev.len()).into());
        }
        let on = On { mgmtdevs: mgmtdev, config: config.as_deref(), flood: false };
        let backend =
            Backend::ringway(*job, job.ports(), rounds.backend_core, idle, port.size.max(), port.pairs, on)?;
        return Ok(Behind::Started(Box::new(backend)));
    }
    if arguments.socket.len() != job.ports() {
        return Err(
            format!("--job {job} takes {} --socket, not {}", job.ports(), arguments.socket.len()).into()
        );
    }
    Ok(Behind::Given(arguments.socket.clone()))
}

fn given(name: &str) -> Identity {
    Identity { name: name.to_owned(), version: String::new(), flags: Vec::new() }
}

fn print(arguments: &Arguments, outcome: &Outcome) {
    let Arguments { job, port, .. } = arguments;
    println!(
        "{job}, {} rings of {}, {} bytes, touch {}, {} pair(s), back-end {}, generator on {}",
        outcome.ring, port.queue_size, port.size, port.touch, port.pairs, outcome.backend.name, outcome.pages
    );
    if let Some(series) = &outcome.series {
        let us = |ns: f64| ns / 1e3;
        println!(
            "  {:.2} Mpps (lowest {:.2}, highest {:.2}), latency p50 {:.1} us, p99 {:.1} us ({:.1} % set aside), {} rounds, {} left out{}",
            series.mpps.median,
            series.mpps.low,
            series.mpps.high,
            us(series.p50_ns.median),
            us(series.p99_ns.median),
            series.set_aside_percent(),
            series.rounds.len(),
            series.discarded,
            if series.noisy { " (the machine is busy: the quietest count)" } else { "" }
        );
        let counts = series
            .rounds
            .iter()
            .fold(Default::default(), |sum: ringway_guest::ledger::Counts, round| sum.plus(&round.counts));
        let unsent: u64 = series.rounds.iter().map(|round| round.unsent).sum();
        println!(
            "  sent {} received {} lost {} duplicated {} reordered {} corrupt {} stale {} unsent {unsent}",
            counts.sent,
            counts.received,
            counts.lost,
            counts.duplicated,
            counts.reordered,
            counts.corrupt,
            counts.stale
        );
    }
    if let Some(found) = &outcome.search {
        println!(
            "  {:.2} Mpps without loss (closed loop {:.2}), {} trials, {} of them left out",
            found.mpps,
            found.closed_mpps,
            found.trials.len(),
            found.discarded
        );
    }
    if let Some(done_wrong) = outcome.done_wrong {
        println!("  the back-end did {done_wrong} frames wrong on purpose");
    }
}

/// Of the peak.
const RESOLUTION: f64 = 0.01;

/// Longest frame for one mergeable buffer, its header left out.
const NULL_MOST: u16 = 2036;

/// One frame in so many is done wrong.
const ONE_IN: u64 = 1_000_000;
