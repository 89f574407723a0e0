//! `ringway-bench scale`.

use std::time::Duration;

use clap::ValueEnum;
use ringway_bench::host::{self, Watch};
use ringway_bench::record::Record;
use ringway_bench::scale::adaptive::{self, Adaptive, IDLE_DEVICES};
use ringway_bench::scale::bridge_cores::{self, BridgeCores, WAYS};
use ringway_bench::scale::curve::{Curve, Point};
use ringway_bench::scale::disks::{self, Idle};
use ringway_bench::scale::load::{BOUND, SLICE};
use ringway_bench::scale::start::{self, Start, packet_ms};
use ringway_bench::scale::times::{self, MANY, SOME, Times};
use ringway_bench::scale::watched::{self, Scrape, Watched};
use ringway_bench::scale::{Options, curves};
use ringway_bench::stats::Spread;
use ringway_control::devices::placement::allowed_cores;
use ringway_ring::queue::Format;
use serde::Serialize;

use super::{Failure, print_json};

#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct Arguments {
    /// Only this; can be given more than once [default: all of them]
    #[arg(long, value_enum, value_name = "NAME")]
    only: Vec<Part>,
    /// Ring format of the guests
    #[arg(long, value_enum, default_value_t = Ring::Split)]
    ring: Ring,
    /// Frame size in bytes, without frame check sequence
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(60..=1514))]
    size: u16,
    /// Rounds of each point
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// Seconds of each round
    #[arg(long, default_value_t = 0.2)]
    seconds: f64,
    /// Core of the guests
    #[arg(long, default_value_t = 0)]
    core: usize,
    /// Core of the daemon's worker
    #[arg(long, default_value_t = 1)]
    worker_core: usize,
    /// Core of a second worker [default: the first that is neither, if there is one]
    #[arg(long)]
    second_core: Option<usize>,
}

/// What is measured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "kebab-case")]
enum Part {
    /// One busy device beside idle ones
    Idle,
    /// Busy devices on one core
    Busy,
    /// One busy device beside a thousand idle ones, with and without scrapers and `ringway top`s
    Watched,
    /// Regions of memory
    Regions,
    /// Ports of a bridge
    Ports,
    /// Adding a device and connecting to it
    Times,
    /// From the start of ringwayd to the first packet, beside the peer
    Start,
    /// The idle policy `adaptive`: processor time, waking, throughput beside `poll`
    Adaptive,
    /// Busy disks on one core
    Disks,
    /// Idle disks on files under `adaptive`: processor time
    IdleDisks,
    /// A bridge on one worker and on two: frames for each busy cycle
    BridgeCores,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Ring {
    Split,
    Packed,
}

/// Each part that was measured, under its name.
#[derive(Debug, Default, Serialize)]
struct Found {
    #[serde(skip_serializing_if = "Option::is_none")]
    idle: Option<Curve>,
    #[serde(skip_serializing_if = "Option::is_none")]
    busy: Option<Curve>,
    #[serde(skip_serializing_if = "Option::is_none")]
    watched: Option<Curve>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scrape: Option<Scrape>,
    #[serde(skip_serializing_if = "Option::is_none")]
    regions: Option<Curve>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ports: Option<Curve>,
    #[serde(skip_serializing_if = "Option::is_none")]
    times: Option<Times>,
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<Start>,
    #[serde(skip_serializing_if = "Option::is_none")]
    adaptive: Option<Adaptive>,
    #[serde(skip_serializing_if = "Option::is_none")]
    disks: Option<Curve>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idle_disks: Option<Vec<Idle>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    bridge_cores: Option<BridgeCores>,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> Result<(), Failure> {
    let Arguments { core, worker_core, .. } = *arguments;
    if core == worker_core {
        return Err(format!(
            "guests and worker are both on core {core}: name two by --core and --worker-core"
        )
        .into());
    }
    host::raise_descriptor_limit();
    let options = Options {
        guest_core: core,
        worker_core,
        second_core: second_core(arguments)?,
        format: match arguments.ring {
            Ring::Split => Format::Split,
            Ring::Packed => Format::Packed,
        },
        frame_len: arguments.size,
        rounds: arguments.rounds,
        round: Duration::from_secs_f64(arguments.seconds),
    };
    let watch = Watch::begin();
    if !json {
        println!("{}", watch.end());
        println!(
            "{} bytes, guests on core {core}, worker on core {worker_core}; slices of {SLICE:?} with a gap above {BOUND:?} are discarded",
            arguments.size
        );
    }
    let mut found = Found::default();
    let wanted = |part| arguments.only.is_empty() || arguments.only.contains(&part);
    for part in Part::value_variants().iter().filter(|part| wanted(**part)) {
        match part {
            Part::Idle => found.idle = Some(shown(curves::idle(&options)?, json, curve)),
            Part::Busy => found.busy = Some(shown(curves::busy(&options)?, json, curve)),
            Part::Watched => {
                let Watched { scrape, curve } = shown(watched::measure(&options)?, json, watched);
                (found.watched, found.scrape) = (Some(curve), Some(scrape));
            }
            Part::Regions => found.regions = Some(shown(curves::regions(&options)?, json, curve)),
            Part::Ports => found.ports = Some(shown(curves::ports(&options)?, json, curve)),
            Part::Times => found.times = Some(shown(times::measure(&options)?, json, times)),
            Part::Start => found.start = Some(shown(start::measure(&options)?, json, start)),
            Part::Adaptive => found.adaptive = Some(shown(adaptive::measure(&options)?, json, adaptive)),
            Part::Disks => found.disks = Some(shown(disks::busy(&options)?, json, disks)),
            Part::BridgeCores => {
                found.bridge_cores = Some(shown(bridge_cores::measure(&options)?, json, bridge_cores));
            }
            Part::IdleDisks => found.idle_disks = Some(shown(disks::idle(&options)?, json, idle_disks)),
        }
    }
    let host = watch.end();
    if json {
        return print_json(&Record::new("scale", host, arguments, &found)?);
    }
    println!("steal {:.2} %", host.steal_percent);
    Ok(())
}

/// The core of a second worker: the one that is named, or the first that is left.
fn second_core(arguments: &Arguments) -> Result<Option<usize>, Failure> {
    let Arguments { core, worker_core, second_core, .. } = *arguments;
    let is_free = |other: &usize| ![core, worker_core].contains(other);
    match second_core {
        Some(second) if !is_free(&second) => {
            Err(format!("--second-core {second} is that of the guests or of the first worker").into())
        }
        Some(second) => Ok(Some(second)),
        None => Ok(allowed_cores()?.into_iter().find(is_free)),
    }
}

/// Prints a part as soon as it is there, unless all of it is to be one line in the end.
fn shown<T>(part: T, json: bool, print: fn(&T)) -> T {
    if !json {
        print(&part);
    }
    part
}

fn curve(curve: &Curve) {
    headed(curve, "Mpps", "cycles/packet");
}

fn watched(found: &Watched) {
    curve(&found.curve);
    let scrape = &found.scrape;
    let verdict = if scrape.is_met() { "" } else { ": missed" };
    println!(
        "a scrape of {} idle devices: {} ms; below {:.0} in the median{verdict}",
        scrape.devices,
        spread(Some(scrape.ms), 1),
        scrape.at_most_ms
    );
}

fn disks(curve: &Curve) {
    headed(curve, "M requests/s", "cycles/request");
}

fn idle_disks(found: &Vec<Idle>) {
    println!("\n{:>14}  {:>13}  {:>22}", "idle disks", "% of a core", "% of a core a device");
    for point in found {
        println!("{:>14}  {:>13.2}  {:>22.4}", point.devices, point.cpu_percent, point.each_percent);
    }
}

fn headed(curve: &Curve, rate: &str, cycles: &str) {
    println!(
        "\n{:>14}  {:>22}  {:>22}  {:>13}  {:>22}  {:>5}  {:>11}  {:>5}",
        curve.over, rate, "beside the first", cycles, "beside the first", "burst", "discarded", "lost"
    );
    for point in &curve.points {
        println!("{:>14}  {}", point.count, line(point));
    }
}

fn bridge_cores(found: &BridgeCores) {
    headed(&found.curve, "Mpps", "cycles/frame");
    if found.in_turns {
        println!(
            "guests and workers took turns on two cores: the rate is mostly the guests' time; each slice is a turn"
        );
    }
    for (place, way) in WAYS.iter().enumerate() {
        println!("{way:>20}: {} frames a busy cycle, beside one worker", spread(found.kept(place), 3));
    }
}

fn line(point: &Point) -> String {
    let (kept, discarded) = point.slices();
    format!(
        "{:>22}  {:>22}  {:>13.1}  {:>22}  {:>5.1}  {discarded:>3} of {:<4}  {:>5}",
        spread(point.mpps(), 2),
        spread(point.ratio, 3),
        point.spread(|round| round.cycles_per_packet).map_or(f64::NAN, |spread| spread.median),
        spread(point.cost_ratio, 3),
        point.spread(|round| round.packets_per_burst).map_or(f64::NAN, |spread| spread.median),
        kept + discarded,
        point.lost,
    )
}

fn times(times: &Times) {
    let us = |found: Spread| spread(Some(found), 0);
    println!("\nin microseconds: median (lowest to highest)");
    println!("  dev.add, the first {SOME} devices:   {}", us(times.add_us[0]));
    println!("  dev.add, the last of {MANY}:       {}", us(times.add_us[1]));
    println!("  the command `ringway dev add`:    {}", us(times.command_us));
    println!("  connecting, the first {SOME}:        {}", us(times.connect_us[0]));
    println!("  connecting, the last of {MANY}:    {}", us(times.connect_us[1]));
    println!("  the first frame, the first {SOME}:   {}", us(times.first_frame_us[0]));
    println!("  the first frame, last of {MANY}:   {}", us(times.first_frame_us[1]));
}

fn start(start: &Start) {
    println!("\nfrom start to the first packet, in milliseconds: median (lowest to highest)");
    println!("  ringwayd: {}", spread(packet_ms(&start.ours), 1));
    match &start.peer {
        Some(peer) => println!("  {}: {}", peer.version, spread(packet_ms(&peer.launches), 1)),
        None => println!("  no peer: dpdk-testpmd is not on PATH (RINGWAY_DPDK_TESTPMD names another one)"),
    }
}

fn adaptive(found: &Adaptive) {
    let wake = &found.wake;
    println!("\nadaptive");
    println!("  {IDLE_DEVICES} idle devices: {:.2} % of a core", found.idle_cpu_percent);
    println!(
        "  a frame through a worker that slept: p50 {:.1} us, p99 {:.1} us (with all samples {:.1} us); {} of {} discarded for a gap above {} us, {} wakeups\n  a thread that waits for an eventfd in its place: p50 {:.1} us, p99 {:.1} us",
        wake.latency.p50 as f64 / 1e3,
        wake.latency.p99 as f64 / 1e3,
        wake.unfiltered.p99 as f64 / 1e3,
        wake.discarded,
        wake.samples,
        wake.bound_us,
        wake.wakeups,
        wake.bare.p50 as f64 / 1e3,
        wake.bare.p99 as f64 / 1e3,
    );
    for (policy, point) in adaptive::POLICIES.iter().zip(&found.busy) {
        println!("  busy, {policy:<8}  {}", line(point));
    }
}

fn spread(spread: Option<Spread>, digits: usize) -> String {
    match spread {
        Some(Spread { median, low, high }) => {
            format!("{median:.digits$} ({low:.digits$} to {high:.digits$})")
        }
        None => "-".to_owned(),
    }
}
