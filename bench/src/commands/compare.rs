//! `ringway-bench compare`.

use std::path::PathBuf;

use clap::ValueEnum;
use ringway_bench::backend::Peer;
use ringway_bench::compare::{self, Comparison, Setup};
use ringway_bench::disk::compare::{self as disks, Backing};
use ringway_bench::disk::options::{DiskOptions, Touch as Touched};
use ringway_bench::host::{Host, Watch};
use ringway_bench::net::Series;
use ringway_bench::options::{Job, PortOptions, Ring, Touch};
use ringway_bench::progress;
use ringway_bench::record::Record;
use serde::Serialize;

use super::blk::{DiskArguments, speed, told_ceiling};
use super::net::{PortArguments, RoundArguments};
use super::{Failure, print_json};

/// The job.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Arguments {
    /// One port that swaps addresses
    Net(NetArguments),
    /// Two ports that are joined
    Link(NetArguments),
    /// Ports of a learning switch that talk in pairs
    Bridge(BridgeArguments),
    /// A disk
    Blk(BlkArguments),
}

#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct BlkArguments {
    /// Beside whom: `qsd`, QEMU's storage daemon, or the socket of any vhost-user-blk back-end, what is on which is overwritten
    #[arg(long, default_value = QSD)]
    peer: String,
    /// The process behind that socket, which is stopped while it is not its turn
    #[arg(long, value_name = "PID")]
    peer_pid: Option<u32>,
    /// What the disks are made of
    #[arg(long, value_enum, default_value_t = Backing::Memory)]
    backing: Backing,
    /// Where the files of --backing cached and direct are made
    #[arg(long, value_name = "FOLDER", default_value_os_t = std::env::temp_dir())]
    folder: PathBuf,
    #[command(flatten)]
    disk: DiskArguments,
    #[command(flatten)]
    rounds: RoundArguments,
}

#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct NetArguments {
    /// Beside whom
    #[arg(long, default_value = "dpdk", value_parser = ["dpdk"])]
    peer: String,
    #[command(flatten)]
    port: PortArguments,
    /// Latencies too, at half of the peer's peak rate
    #[arg(long)]
    latency: bool,
    #[command(flatten)]
    rounds: RoundArguments,
}

#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct BridgeArguments {
    /// Beside whom: Open vSwitch on DPDK, under the rule NORMAL
    #[arg(long, default_value = "ovs", value_parser = ["ovs"])]
    peer: String,
    /// Ports, an even number; several numbers separated by commas are measured one after the other
    #[arg(long, value_delimiter = ',', default_value = "2", value_parser = clap::value_parser!(u16).range(2..=256))]
    ports: Vec<u16>,
    /// Who sends: every port to its neighbour, or the first port alone
    #[arg(long, value_enum, default_value_t = Talk::All)]
    talk: Talk,
    #[command(flatten)]
    port: PortArguments,
    /// Latencies too, at half of the peer's peak rate
    #[arg(long)]
    latency: bool,
    #[command(flatten)]
    rounds: RoundArguments,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Talk {
    /// Every port
    All,
    /// One port
    One,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> Result<(), Failure> {
    match arguments {
        Arguments::Net(ports) => networks(Job::Loopback, ports, json),
        Arguments::Link(ports) => networks(Job::Link, ports, json),
        Arguments::Bridge(ports) => bridges(ports, json),
        Arguments::Blk(disks) => disks_of(disks, json),
    }
}

fn networks(job: Job, arguments: &NetArguments, json: bool) -> Result<(), Failure> {
    let NetArguments { port, latency, rounds, .. } = arguments;
    rounds.check()?;
    for ring in port.ring.each() {
        let setup = Setup {
            peer: Peer::Dpdk,
            ports: job.ports(),
            talkers: job.ports(),
            latency: *latency,
            ..setup(job, port.options(*ring), rounds)
        };
        compared(&setup, arguments, port, json)?;
    }
    Ok(())
}

fn bridges(arguments: &BridgeArguments, json: bool) -> Result<(), Failure> {
    let BridgeArguments { ports, talk, port, latency, rounds, .. } = arguments;
    rounds.check()?;
    if let Some(odd) = ports.iter().find(|ports| *ports % 2 == 1) {
        return Err(format!("--ports {odd}: ports talk in pairs, so their number is even").into());
    }
    for &ports in ports {
        for ring in port.ring.each() {
            // What comes is in turn what may be sent: so that all of it finds room in one ring.
            let options = PortOptions { window: Some((port.queue_size / 2).max(1)), ..port.options(*ring) };
            let setup = Setup {
                peer: Peer::Ovs,
                ports: ports.into(),
                talkers: if *talk == Talk::One { 1 } else { ports.into() },
                latency: *latency,
                ..setup(Job::Bridge, options, rounds)
            };
            compared(&setup, arguments, port, json)?;
        }
    }
    Ok(())
}

/// What all comparisons of networks have in common; who, how many and whether latencies too is told beside it.
fn setup(job: Job, port: PortOptions, rounds: &RoundArguments) -> Setup {
    Setup {
        job,
        peer: Peer::Dpdk,
        ports: job.ports(),
        talkers: job.ports(),
        port,
        how: rounds.rounds(),
        cores: rounds.cores.clone(),
        backend_core: rounds.backend_core,
        idle: rounds.idle.word(),
        latency: false,
    }
}

/// Makes a comparison and prints it.
fn compared(
    setup: &Setup,
    arguments: &impl Serialize,
    port: &PortArguments,
    json: bool,
) -> Result<(), Failure> {
    let watch = Watch::begin();
    let Setup { job, ports, port: PortOptions { ring, .. }, .. } = setup;
    let what = if *job == Job::Bridge { format!("{ports} ports, {ring}") } else { ring.to_string() };
    let comparison = compare::with_peer(setup, |step| progress::show(&format!("{what}: {step}")))?;
    progress::show("");
    let host = watch.end();
    if json {
        let more = (*job == Job::Bridge).then_some(("ports", ports));
        print_record(host, job, *ring, more, arguments, &comparison)
    } else {
        println!("{host}");
        print(setup, port, &comparison);
        Ok(())
    }
}

fn disks_of(arguments: &BlkArguments, json: bool) -> Result<(), Failure> {
    let BlkArguments { peer, peer_pid, backing, folder, disk, rounds } = arguments;
    rounds.check()?;
    if *backing == Backing::None && disk.touch != Touched::None {
        return Err("where no byte is moved there is none to be checked: --touch none".into());
    }
    let mut told = Vec::new();
    for ring in disk.ring.each() {
        if peer == QSD && *ring == Ring::Packed {
            told.push("packed rings are left out: qemu-storage-daemon has none");
            continue;
        }
        let watch = Watch::begin();
        let setup = disks::Setup {
            options: DiskOptions { durable: backing.file().is_some(), ..disk.options(*ring) },
            backing: *backing,
            peer: match peer.as_str() {
                QSD => disks::Peer::Qsd,
                path => disks::Peer::Socket(path.into(), *peer_pid),
            },
            folder: folder.clone(),
            how: rounds.rounds(),
            cores: rounds.cores.clone(),
            backend_core: rounds.backend_core,
            idle: rounds.idle.word(),
        };
        let comparison = disks::compare(&setup, |what| progress::show(&format!("{ring}: {what}")))?;
        progress::show("");
        let host = watch.end();
        if json {
            print_record(host, "blk", *ring, None, arguments, &comparison)?;
        } else {
            println!("{host}");
            print_disks(arguments, *ring, &comparison);
        }
    }
    told.iter().for_each(|what| eprintln!("{what}"));
    if told.len() == disk.ring.each().len() { Err("there is nothing to be compared".into()) } else { Ok(()) }
}

/// A record for each format, with the job and the format that it is of.
fn print_record(
    host: Host,
    job: impl Serialize,
    ring: Ring,
    more: Option<(&str, &usize)>,
    arguments: &impl Serialize,
    comparison: &impl Serialize,
) -> Result<(), Failure> {
    let mut record = Record::new("compare", host, arguments, comparison)?;
    if let Some(parameters) = record.parameters.as_object_mut() {
        parameters.insert("job".to_owned(), serde_json::to_value(job)?);
        parameters.insert("ring".to_owned(), serde_json::to_value(ring)?);
        if let Some((name, value)) = more {
            parameters.insert(name.to_owned(), serde_json::to_value(value)?);
        }
    }
    print_json(&record)
}

fn print_disks(arguments: &BlkArguments, ring: Ring, comparison: &disks::Comparison) {
    let disks::Comparison { ours, peer, ratio, p50_ratio, p99_ratio, .. } = comparison;
    println!("{}", arguments.disk.told(ring));
    println!("  ringway {}: {}", ours.identity.version, speed(&ours.throughput));
    println!("  {} {}: {}", peer.identity.name, peer.identity.version, speed(&peer.throughput));
    if comparison.tried.len() > 1 {
        let each: Vec<String> =
            comparison.tried.iter().map(|(name, kiops)| format!("{name} {kiops:.1} k")).collect();
        println!("  the peer's ways, of which the fastest counts: {}", each.join(", "));
    }
    println!(
        "  ratio {:.2} ({:.2} to {:.2}), of p50 {:.2}, of p99 {:.2}",
        ratio.median, ratio.low, ratio.high, p50_ratio.median, p99_ratio.median
    );
    if let Some(fio) = &comparison.fio {
        println!(
            "  {}, io_uring on a file: {:.1} k requests/s (lowest {:.1}, highest {:.1}), ringway's ratio to it {:.2} ({:.2} to {:.2})",
            fio.version,
            fio.kiops.median,
            fio.kiops.low,
            fio.kiops.high,
            fio.ratio.median,
            fio.ratio.low,
            fio.ratio.high
        );
    }
    if let Some(ceiling) = comparison.ceiling_kiops {
        println!("  {}", told_ceiling(ceiling, comparison.generator_bound));
    }
}

fn print(setup: &Setup, port: &PortArguments, comparison: &Comparison) {
    let Setup { job, ports, talkers, port: PortOptions { ring, .. }, .. } = setup;
    let Comparison { ours, peer, ratio, of_limit, latency_ratio, limits } = comparison;
    let job = match job {
        Job::Bridge if talkers < ports => format!("{job}, {ports} ports of which {talkers} sends"),
        Job::Bridge => format!("{job}, {ports} ports"),
        _ => job.to_string(),
    };
    println!("{job}, {ring} rings of {}, {} bytes, touch {}", port.queue_size, port.size, port.touch);
    let row = |who: &str, series: &Series| {
        println!(
            "  {who:<34} {:6.2} Mpps (lowest {:.2}, highest {:.2}), {} rounds, {} left out, {} frames wrong{}",
            series.mpps.median,
            series.mpps.low,
            series.mpps.high,
            series.rounds.len(),
            series.discarded,
            series.faults(),
            if series.noisy { " (the machine is busy)" } else { "" }
        );
    };
    row(&format!("ringway {}", ours.identity.version), &ours.throughput);
    row(&peer.identity.version, &peer.throughput);
    let share = of_limit.map_or(String::new(), |share| {
        format!(
            ", ringway at {:.0} % of the floor (a line each way {:.1} ns)",
            share * 100.0,
            match port.touch {
                Touch::Header => limits.exchange_ns,
                Touch::All => limits.stretch_ns,
            }
        )
    });
    println!("  ratio {:.2} ({:.2} to {:.2}){share}", ratio.median, ratio.low, ratio.high);
    if let (Some(latency), Some(ours), Some(peer)) = (latency_ratio, &ours.latency, &peer.latency) {
        println!(
            "  latency at {:.2} Mpps: p50 {:.1} us and {:.1} us, ratio {:.2}; p99 {:.1} us and {:.1} us, ratio {:.2}; \
             {:.1} % and {:.1} % of frames set aside, met by the generator's absence",
            latency.pps / 1e6,
            ours.p50_ns.median / 1e3,
            peer.p50_ns.median / 1e3,
            latency.p50.median,
            ours.p99_ns.median / 1e3,
            peer.p99_ns.median / 1e3,
            latency.p99.median,
            ours.set_aside_percent(),
            peer.set_aside_percent()
        );
    }
}

/// The word for QEMU's storage daemon.
const QSD: &str = "qsd";
