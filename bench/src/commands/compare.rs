//! `ringway-bench compare`.

use std::path::PathBuf;

use clap::ValueEnum;
use ringway_bench::compare::{self, Comparison, Setup};
use ringway_bench::disk::compare::{self as disks, Backing};
use ringway_bench::disk::options::{DiskOptions, Touch as Touched};
use ringway_bench::host::{Host, Watch};
use ringway_bench::net::Series;
use ringway_bench::options::{Job, Ring, Touch};
use ringway_bench::progress;
use ringway_bench::record::Record;
use serde::Serialize;

use super::blk::{DiskArguments, speed};
use super::net::{PortArguments, RoundArguments};
use super::{Failure, print_json};

/// The job.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Arguments {
    /// One port that swaps addresses
    Net(NetArguments),
    /// Two ports that are joined
    Link(NetArguments),
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
    #[arg(long, value_enum, default_value_t = Peer::Dpdk)]
    peer: Peer,
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
enum Peer {
    /// DPDK's testpmd with net_vhost ports
    Dpdk,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> Result<(), Failure> {
    match arguments {
        Arguments::Net(ports) => networks(Job::Loopback, ports, json),
        Arguments::Link(ports) => networks(Job::Link, ports, json),
        Arguments::Blk(disks) => disks_of(disks, json),
    }
}

fn networks(job: Job, arguments: &NetArguments, json: bool) -> Result<(), Failure> {
    arguments.rounds.check()?;
    for ring in arguments.port.ring.each() {
        let watch = Watch::begin();
        let setup = Setup {
            job,
            port: arguments.port.options(*ring),
            how: arguments.rounds.rounds(),
            cores: arguments.rounds.cores.clone(),
            backend_core: arguments.rounds.backend_core,
            idle: arguments.rounds.idle.word(),
            latency: arguments.latency,
        };
        let comparison = compare::with_dpdk(&setup, |what| progress::show(&format!("{ring}: {what}")))?;
        progress::show("");
        let host = watch.end();
        if json {
            print_record(host, job, *ring, arguments, &comparison)?;
        } else {
            println!("{host}");
            print(job, arguments, *ring, &comparison);
        }
    }
    Ok(())
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
            print_record(host, "blk", *ring, arguments, &comparison)?;
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
    arguments: &impl Serialize,
    comparison: &impl Serialize,
) -> Result<(), Failure> {
    let mut record = Record::new("compare", host, arguments, comparison)?;
    if let Some(parameters) = record.parameters.as_object_mut() {
        parameters.insert("job".to_owned(), serde_json::to_value(job)?);
        parameters.insert("ring".to_owned(), serde_json::to_value(ring)?);
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
        let bound = if comparison.generator_bound { ": generator-bound" } else { "" };
        println!("  the generator reaches {ceiling:.1} k requests/s of a disk that does nothing{bound}");
    }
}

fn print(job: Job, arguments: &NetArguments, ring: Ring, comparison: &Comparison) {
    let port = &arguments.port;
    let Comparison { ours, peer, ratio, of_limit, latency_ratio, limits } = comparison;
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
