//! `ringway-bench blk`.

use std::path::PathBuf;

use ringway_bench::backend::Identity;
use ringway_bench::disk::generator::Load;
use ringway_bench::disk::options::{Bytes, DiskOptions, Driver, Op, Touch};
use ringway_bench::disk::ours::{Ours, Wanted};
use ringway_bench::disk::{self, Series, null, series};
use ringway_bench::host::Watch;
use ringway_bench::null::NullBackend;
use ringway_bench::options::Ring;
use ringway_bench::progress;
use ringway_bench::record::Record;
use serde::Serialize;

use super::net::{Rings, RoundArguments};
use super::{Failure, print_json};

#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct Arguments {
    /// Socket of any vhost-user-blk back-end; a ringwayd is started without it
    #[arg(long)]
    socket: Option<PathBuf>,
    /// What is on the disk behind --socket or --mgmtdev may be overwritten
    #[arg(long)]
    overwrite: bool,
    /// Management device of the disk of the ringwayd that is started
    #[arg(long, conflicts_with = "socket", default_value = MEMORY)]
    mgmtdev: String,
    /// Words of `dev add` behind it, as in "path /srv/disk cache direct"
    #[arg(long, conflicts_with = "socket", default_value = "")]
    words: String,
    /// Configuration file of the ringwayd that is started: what the management device needs, no devices
    #[arg(long, value_name = "FILE", conflicts_with = "socket")]
    config: Option<PathBuf>,
    /// The disk of the ringwayd that is started moves no byte
    #[arg(long, conflicts_with_all = ["socket", "null"])]
    no_data: bool,
    #[command(flatten)]
    disk: DiskArguments,
    /// Requests a second at intended times, in place of as many as go: measures latency
    #[arg(long, value_name = "IOPS")]
    rate: Option<f64>,
    /// Measure the generator itself, against a back-end that does as little as can be
    #[arg(long, conflicts_with = "socket")]
    null: bool,
    #[command(flatten)]
    rounds: RoundArguments,
}

/// What the load is like.
#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct DiskArguments {
    /// Whose rings the load goes through
    #[arg(long, value_enum, default_value_t = Driver::Ringway)]
    driver: Driver,
    /// Ring formats
    #[arg(long, value_enum, default_value_t = Rings::Both)]
    pub(crate) ring: Rings,
    /// What is asked
    #[arg(long, value_enum, default_value_t = Op::Read)]
    pub(crate) op: Op,
    /// Percent of reads in a mix
    #[arg(long, default_value_t = 70, value_parser = clap::value_parser!(u32).range(0..=100))]
    reads: u32,
    /// One request in so many is a flush
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    flush_every: Option<u32>,
    /// Bytes of each request, as in 512, 4K, 1M
    #[arg(long, default_value_t = Bytes(4096))]
    pub(crate) size: Bytes,
    /// Requests under way, a queue
    #[arg(long, default_value_t = 32)]
    pub(crate) depth: u16,
    /// Queues
    #[arg(long, default_value_t = 1)]
    pub(crate) queues: u16,
    /// Entries in each ring (default: what the depth needs)
    #[arg(long)]
    queue_size: Option<u16>,
    /// What is written to blocks, and checked of those that are read
    #[arg(long, value_enum, default_value_t = Touch::Head)]
    pub(crate) touch: Touch,
    /// One request behind the other in place of any
    #[arg(long)]
    sequential: bool,
    /// Requests in tables of descriptors
    #[arg(long)]
    indirect: bool,
    /// Cut data into descriptors of so many bytes
    #[arg(long, value_name = "BYTES")]
    segment: Option<Bytes>,
    /// Do not negotiate RING_EVENT_IDX
    #[arg(long)]
    no_event_idx: bool,
    /// How much of the disk is used
    #[arg(long, default_value_t = Bytes(256 << 20))]
    pub(crate) span: Bytes,
}

impl DiskArguments {
    pub(crate) fn options(&self, ring: Ring) -> DiskOptions {
        DiskOptions {
            driver: self.driver,
            ring,
            op: self.op,
            reads: self.reads,
            flush_every: self.flush_every,
            size: self.size,
            depth: self.depth,
            queues: self.queues,
            queue_size: self.queue_size,
            touch: self.touch,
            sequential: self.sequential,
            indirect: self.indirect,
            segment: self.segment,
            event_idx: !self.no_event_idx,
            span: self.span,
            ..DiskOptions::default()
        }
    }

    /// The load in words.
    pub(crate) fn told(&self, ring: Ring) -> String {
        let options = self.options(ring);
        let kind = match self.op {
            Op::Mix => format!("mix of {} % reads", self.reads),
            op => op.to_string(),
        };
        let flushes = self.flush_every.map(|every| format!(", a flush in {every}")).unwrap_or_default();
        format!(
            "{kind}{flushes}, {} bytes, depth {}, {} queue(s), {ring} rings of {}, touch {}",
            self.size,
            self.depth,
            self.queues,
            options.ring_size(),
            self.touch
        )
    }
}

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
    /// Bytes of the disk.
    disk: u64,
    series: Series,
    /// Of a disk that moves no byte: thousands of requests a second of the generator against one that does nothing at all.
    #[serde(skip_serializing_if = "Option::is_none")]
    ceiling_kiops: Option<f64>,
    /// It came so close to that that it is the generator that was measured.
    #[serde(skip_serializing_if = "Option::is_none")]
    generator_bound: Option<bool>,
    /// The first thing that went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    wrong: Option<String>,
}

/// What stands behind the socket.
enum Behind {
    Started(Ours),
    Null(NullBackend),
    Given(PathBuf),
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> Result<(), Failure> {
    arguments.rounds.check()?;
    check(arguments)?;
    let watch = Watch::begin();
    let mut outcomes = Vec::new();
    for ring in arguments.disk.ring.each() {
        outcomes.push(measure(arguments, *ring)?);
        progress::show("");
    }
    let host = watch.end();
    let wrong = outcomes.iter().find_map(|outcome| outcome.wrong.clone());
    if json {
        print_json(&Record::new("blk", host, arguments, &Runs { runs: outcomes })?)?;
    } else {
        println!("{host}");
        outcomes.iter().for_each(|outcome| print(arguments, outcome));
    }
    // What was measured is no speed of a disk.
    wrong.map_or(Ok(()), |wrong| Err(format!("the disk did wrong: {wrong}").into()))
}

fn check(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { socket, overwrite, mgmtdev, no_data, disk, null, .. } = arguments;
    let is_own = *null || (socket.is_none() && mgmtdev == MEMORY && !arguments.words.contains("path"));
    if !is_own && !overwrite && disk.options(Ring::Split).writes() {
        return Err(format!(
            "this overwrites the first {} bytes of the disk: say --overwrite, or --op read --touch none, which only reads",
            disk.span
        )
        .into());
    }
    if (*no_data || *null) && disk.touch != Touch::None {
        return Err("where no byte is moved there is none to be checked: --touch none".into());
    }
    Ok(())
}

fn measure(arguments: &Arguments, ring: Ring) -> Result<Outcome, Failure> {
    let options = arguments.disk.options(ring);
    let RoundArguments { backend_core, cores, .. } = &arguments.rounds;
    let how = arguments.rounds.rounds();
    let ceiling_kiops = (arguments.no_data && arguments.rate.is_none())
        .then(|| {
            progress::show(&format!("{ring}: measuring the generator"));
            null::ceiling(&options, how, *backend_core, cores)
        })
        .transpose()?;
    let behind = start(arguments)?;
    let (socket, backend) = match &behind {
        Behind::Started(ours) => (ours.socket(), ours.identity().clone()),
        Behind::Null(null) => (null.socket(), given("null")),
        Behind::Given(socket) => (socket.clone(), given("given")),
    };
    progress::show(&format!("{ring}: connecting, and writing every block"));
    let mut generator = disk::open(&socket, &options, cores)?;
    let pages = generator.pages();
    let load = arguments.rate.map_or(Load::Closed, |iops| Load::Open { iops });
    let show = |kept: u32| progress::show(&format!("{ring}: round {} of {}", kept + 1, how.rounds));
    let series = series::series(generator.as_mut(), load, how, show)?;
    let (disk, wrong) = (generator.bytes(), generator.wrong());
    generator.close()?;
    let generator_bound = ceiling_kiops.map(|ceiling| null::is_bound(series.kiops.median, ceiling));
    Ok(Outcome { ring, backend, pages, disk, series, ceiling_kiops, generator_bound, wrong })
}

fn start(arguments: &Arguments) -> Result<Behind, Failure> {
    let Arguments { disk, rounds, mgmtdev, .. } = arguments;
    if arguments.null {
        return Ok(Behind::Null(null::start(rounds.backend_core, disk.span.0)?));
    }
    if let Some(socket) = &arguments.socket {
        return Ok(Behind::Given(socket.clone()));
    }
    let mut words: Vec<String> = arguments.words.split_whitespace().map(str::to_owned).collect();
    if mgmtdev == MEMORY && !words.iter().any(|word| word == "size") {
        words.extend(["size".to_owned(), disk.span.0.to_string()]);
    }
    if arguments.no_data {
        words.extend(["data", "off"].map(str::to_owned));
    }
    let config = arguments.config.as_deref();
    let (core, idle) = (rounds.backend_core, rounds.idle.word());
    Ok(Behind::Started(Ours::start(Wanted { core, idle, mgmtdev, words: &words, config })?))
}

fn given(name: &str) -> Identity {
    Identity { name: name.to_owned(), version: String::new(), flags: Vec::new() }
}

fn print(arguments: &Arguments, outcome: &Outcome) {
    let Outcome { ring, backend, pages, series, .. } = outcome;
    println!("{}, back-end {}, generator on {pages}", arguments.disk.told(*ring), backend.name);
    println!("  {}", speed(series));
    let counts = series.counts();
    let unsent: u64 = series.rounds.iter().map(|round| round.unsent).sum();
    println!(
        "  submitted {} completed {} failed {} unsupported {} malformed {}; blocks checked {} stale {} torn {} misplaced {} damaged {}; \
         unsent {unsent}",
        counts.submitted,
        counts.completed,
        counts.errors,
        counts.unsupported,
        counts.malformed,
        counts.checked,
        counts.stale,
        counts.torn,
        counts.misplaced,
        counts.damaged
    );
    if let Some(ceiling) = outcome.ceiling_kiops {
        println!("  {}", told_ceiling(ceiling, outcome.generator_bound == Some(true)));
    }
}

/// The generator's ceiling in words.
pub(crate) fn told_ceiling(ceiling: f64, is_bound: bool) -> String {
    let bound = if is_bound { ": generator-bound" } else { "" };
    format!("the generator reaches {ceiling:.1} k requests/s of a disk that does nothing{bound}")
}

/// Requests and bytes a second, and latencies.
pub(crate) fn speed(series: &Series) -> String {
    let us = |ns: f64| ns / 1e3;
    format!(
        "{:.1} k requests/s (lowest {:.1}, highest {:.1}), {:.0} MB/s, latency p50 {:.1} us, p99 {:.1} us ({:.1} % set aside), \
         {} rounds, {} left out{}",
        series.kiops.median,
        series.kiops.low,
        series.kiops.high,
        series.mbps.median,
        us(series.p50_ns.median),
        us(series.p99_ns.median),
        series.set_aside_percent(),
        series.rounds.len(),
        series.discarded,
        if series.noisy { " (the machine is busy: the quietest count)" } else { "" }
    )
}

/// The disk that `ringwayd` has without any other.
const MEMORY: &str = "sim/blk";

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        arguments: Arguments,
    }

    fn refused(words: &str) -> Option<String> {
        let line = Line::try_parse_from(std::iter::once("blk").chain(words.split_whitespace()));
        check(&line.ok()?.arguments).err().map(|error| error.to_string())
    }

    #[test]
    fn what_is_on_anybodys_disk_is_overwritten_only_if_that_is_said() {
        for words in
            ["--socket /s", "--mgmtdev file --op write", "--words path=/dev/shm/x", "--socket /s --op read"]
        {
            assert!(refused(words).is_some_and(|error| error.contains("--overwrite")), "{words}");
            assert_eq!(refused(&format!("{words} --overwrite")), None);
        }
        for words in ["", "--op discard", "--null --touch none", "--socket /s --op read --touch none"] {
            assert_eq!(refused(words), None, "{words}");
        }
        assert!(refused("--socket /s --op discard --touch none").is_some());
        assert!(refused("--no-data").is_some_and(|error| error.contains("--touch none")));
    }
}
