//! `ringway-bench compare`.

use std::path::PathBuf;

use clap::ValueEnum;
use ringway_bench::backend::Peer;
use ringway_bench::compare::{self, Comparison, Setup};
use ringway_bench::disk::compare::{self as disks, Backing};
use ringway_bench::disk::options::{DiskOptions, Touch as Touched};
use ringway_bench::driver::{Driver, DriverOptions, DriverPath};
use ringway_bench::host::{Host, Watch};
use ringway_bench::linux::{self, Account, Served};
use ringway_bench::net::Series;
use ringway_bench::options::{Job, PortOptions, Ring, Touch};
use ringway_bench::progress;
use ringway_bench::record::Record;
use ringway_guest::frame::{MIN_FRAME, Sizes};
use serde::Serialize;
use serde_json::{Value, json};

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
    /// Beside whom: `dpdk`, the testpmd that is found, or the path of any other
    #[arg(long, default_value = "dpdk", value_parser = testpmd)]
    peer: String,
    /// What drives: the suite's own guest; DPDK's net_virtio_user; or a Linux guest of the lab's (deploy/test brings what it takes),
    /// whose processor is emulated, so that frames are counted and no speed is told
    #[arg(long, value_enum, default_value_t = Driver::Ours)]
    driver: Driver,
    /// Paths of DPDK's driver, separated by commas, in place of all
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PATHS")]
    driver_path: Vec<DriverPath>,
    /// Frames that a Linux guest sends, each way
    #[arg(long, default_value_t = 2000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    driver_frames: u32,
    /// Sizes of the rings of DPDK's driver, separated by commas
    #[arg(long, value_delimiter = ',', value_name = "SIZES", default_value = "256,1024",
          value_parser = clap::value_parser!(u16).range(64..=1024))]
    driver_queue_size: Vec<u16>,
    #[command(flatten)]
    port: PortArguments,
    /// Leave out what each spends on a packet at rates below saturation
    #[arg(long)]
    no_rates: bool,
    /// Latencies too, at half of the peer's peak rate
    #[arg(long)]
    latency: bool,
    #[command(flatten)]
    rounds: RoundArguments,
}

#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct BridgeArguments {
    /// Beside whom: Open vSwitch on DPDK, under the rule NORMAL, or Ringway's own link of two ports
    #[arg(long, default_value = "ovs", value_parser = ["ovs", "link"])]
    peer: String,
    /// Ports, an even number; several numbers separated by commas are measured one after the other
    #[arg(long, value_delimiter = ',', default_value = "2", value_parser = clap::value_parser!(u16).range(2..=256))]
    ports: Vec<u16>,
    /// Who sends: every port to its neighbour, or the first port alone
    #[arg(long, value_enum, default_value_t = Talk::All)]
    talk: Talk,
    /// So many frames in a hundred go to an address that nobody has, and so to every port
    #[arg(long, value_name = "PERCENT", default_value_t = 0.0)]
    flood: f64,
    /// Leave out what each spends on a packet at rates below saturation
    #[arg(long)]
    no_rates: bool,
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
    let NetArguments { peer, driver, port, latency, no_rates, rounds, .. } = arguments;
    rounds.check()?;
    check_touch(port, *latency)?;
    let program = peer.contains('/').then(|| PathBuf::from(peer));
    for ring in port.ring.each() {
        let setup = Setup {
            peer: Peer::Dpdk(program.clone()),
            latency: *latency,
            rates: !no_rates,
            ..setup(job, port.options(*ring), rounds)
        };
        match driver {
            Driver::Ours => compared(&setup, arguments, port, json)?,
            Driver::Testpmd => driven(&setup, arguments, json)?,
            Driver::Linux => shaped(&setup, arguments, json)?,
        }
    }
    Ok(())
}

/// The same by DPDK's driver, by each of its paths with rings of each size.
fn driven(setup: &Setup, arguments: &NetArguments, json: bool) -> Result<(), Failure> {
    let NetArguments { driver_path, driver_queue_size, port, latency, rounds, .. } = arguments;
    let Sizes::Fixed(frame) = port.size else {
        return Err("--driver testpmd sends frames of one size: --size BYTES".into());
    };
    if *latency {
        return Err("--latency: DPDK's driver measures none".into());
    }
    if !(MIN_FRAME..=DRIVER_MOST).contains(&frame) {
        return Err(format!("--driver testpmd sends frames of {MIN_FRAME} to {DRIVER_MOST} bytes").into());
    }
    let paths: &[DriverPath] =
        if driver_path.is_empty() { DriverPath::value_variants() } else { driver_path };
    for path in paths {
        for &queue_size in driver_queue_size {
            let options = DriverOptions {
                // Of the same version as the peer.
                program: match &setup.peer {
                    Peer::Dpdk(program) => program.clone(),
                    Peer::Ovs | Peer::Link => None,
                },
                ring: setup.port.ring,
                path: *path,
                queue_size,
                frame,
                core: rounds.cores.first().copied().unwrap_or_default(),
            };
            let port_options = PortOptions { queue_size, ..setup.port.clone() };
            let setup = Setup { driver: Some(options), port: port_options, ..setup.clone() };
            compared(&setup, arguments, port, json)?;
        }
    }
    Ok(())
}

/// Frames of a Linux guest, accounted for.
fn shaped(setup: &Setup, arguments: &NetArguments, json: bool) -> Result<(), Failure> {
    if arguments.latency {
        return Err("--latency: a Linux guest whose processor is emulated tells none".into());
    }
    let watch = Watch::begin();
    let Setup { job, port: PortOptions { ring, .. }, .. } = setup;
    let shape =
        linux::shape(setup, arguments.driver_frames, |step| progress::show(&format!("{ring}: {step}")))?;
    progress::show("");
    let host = watch.end();
    if json {
        return print_record(host, job, *ring, json!({}), arguments, &json!({ "shape": shape }));
    }
    println!("{host}");
    println!(
        "{job}, {ring} rings of {}, {} bytes, a Linux guest ({}): {}",
        setup.port.queue_size, arguments.port.size, shape.ours.kernel, shape.reading
    );
    for Served { identity, ways, .. } in [&shape.ours, &shape.peer] {
        for Account { sent, received, lost, duplicated, corrupt } in ways {
            let corrupt = corrupt.map_or("not looked at".to_owned(), |corrupt| format!("{corrupt} damaged"));
            println!(
                "  {} {}: {sent} sent, {received} came, {lost} lost, {duplicated} twice, {corrupt}",
                identity.name, identity.version
            );
        }
    }
    Ok(())
}

fn bridges(arguments: &BridgeArguments, json: bool) -> Result<(), Failure> {
    let BridgeArguments { peer, ports, talk, flood, port, latency, no_rates, rounds, .. } = arguments;
    rounds.check()?;
    check_touch(port, *latency)?;
    if let Some(odd) = ports.iter().find(|ports| *ports % 2 == 1) {
        return Err(format!("--ports {odd}: ports talk in pairs, so their number is even").into());
    }
    if peer == "link" && (ports.iter().any(|ports| *ports != 2) || *flood > 0.0) {
        return Err(
            "--peer link: two ports, and what goes to nobody comes to the other one all the same".into()
        );
    }
    if !(0.0..=100.0).contains(flood) {
        return Err("--flood: 0 to 100 in a hundred".into());
    }
    if *flood > 0.0 && port.touch == Touch::None {
        return Err("--flood: whose frame it is that comes is told by its head: --touch header".into());
    }
    for &ports in ports {
        for ring in port.ring.each() {
            // What comes is in turn what may be sent: so that all of it finds room in one ring.
            let options = PortOptions {
                window: Some((port.queue_size / 2).max(1)),
                flood: (*flood > 0.0).then(|| (100.0 / flood).round() as u32),
                ..port.options(*ring)
            };
            let setup = Setup {
                peer: if peer == "link" { Peer::Link } else { Peer::Ovs },
                ports: ports.into(),
                talkers: if *talk == Talk::One { 1 } else { ports.into() },
                latency: *latency,
                rates: !no_rates,
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
        peer: Peer::Dpdk(None),
        ports: job.ports(),
        talkers: job.ports(),
        port,
        how: rounds.rounds(),
        cores: rounds.cores.clone(),
        backend_core: rounds.backend_core,
        idle: rounds.idle.word(),
        latency: false,
        rates: false,
        driver: None,
    }
}

/// When a frame was sent is told by its head.
fn check_touch(port: &PortArguments, latency: bool) -> Result<(), Failure> {
    if latency && port.touch == Touch::None {
        return Err("--latency: where no frame is touched none is timed: --touch header".into());
    }
    Ok(())
}

/// `dpdk`, or the path of a testpmd.
fn testpmd(peer: &str) -> Result<String, String> {
    if peer == "dpdk" || peer.contains('/') {
        return Ok(peer.to_owned());
    }
    Err("`dpdk`, or the path of a testpmd, with a slash in it".to_owned())
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
    let what = match (job, &setup.driver) {
        (Job::Bridge, _) => format!("{ports} ports, {ring}"),
        (_, Some(driver)) => format!("{ring} {}, rings of {}", driver.path, driver.queue_size),
        _ => ring.to_string(),
    };
    let comparison = compare::with_peer(setup, |step| progress::show(&format!("{what}: {step}")))?;
    progress::show("");
    let host = watch.end();
    if json {
        let more = match &setup.driver {
            Some(driver) => json!({ "driver_path": driver.path, "queue_size": driver.queue_size }),
            None if *job == Job::Bridge => json!({ "ports": ports }),
            None => json!({}),
        };
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
            print_record(host, "blk", *ring, json!({}), arguments, &comparison)?;
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
    more: Value,
    arguments: &impl Serialize,
    comparison: &impl Serialize,
) -> Result<(), Failure> {
    let mut record = Record::new("compare", host, arguments, comparison)?;
    if let Some(parameters) = record.parameters.as_object_mut() {
        parameters.insert("job".to_owned(), serde_json::to_value(job)?);
        parameters.insert("ring".to_owned(), serde_json::to_value(ring)?);
        if let Value::Object(more) = more {
            parameters.extend(more);
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
    let Comparison { ours, peer, ratio, of_limit, latency_ratio, limits, .. } = comparison;
    let job = match job {
        Job::Bridge if talkers < ports => format!("{job}, {ports} ports of which {talkers} sends"),
        Job::Bridge => format!("{job}, {ports} ports"),
        _ => job.to_string(),
    };
    match &setup.driver {
        None => {
            println!("{job}, {ring} rings of {}, {} bytes, touch {}", port.queue_size, port.size, port.touch)
        }
        Some(driver) => println!(
            "{job}, {ring} rings of {}, {} bytes, DPDK's driver, {}",
            driver.queue_size, port.size, driver.path
        ),
    }
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
                Touch::None | Touch::Header => limits.exchange_ns,
                Touch::All => limits.stretch_ns,
            }
        )
    });
    println!("  ratio {:.2} ({:.2} to {:.2}){share}", ratio.median, ratio.low, ratio.high);
    if let Some(driver) = &comparison.driver {
        println!("  {}: {}", driver.identity.version, driver.paths.join("; "));
    } else {
        println!("  {}", told_room(comparison));
    }
    if let [first, others @ ..] = comparison.states.as_slice()
        && !others.is_empty()
    {
        println!(
            "  taken while a line each way cost {:.1} ns, in {} pairs of rounds",
            first.line_ns.median, first.pairs
        );
        for state in others {
            println!(
                "  not counted, at {:.1} ns: {} pairs, {:.2} and {:.2} Mpps, ratio {:.2} ({:.2} to {:.2})",
                state.line_ns.median,
                state.pairs,
                state.ours.median,
                state.peer.median,
                state.ratio.median,
                state.ratio.low,
                state.ratio.high
            );
        }
    }
    for busy in &comparison.busy {
        let at = match busy.share {
            None => "at saturation".to_owned(),
            Some(share) => format!("at {:.0} % of the slower one's peak", share * 100.0),
        };
        println!(
            "  busy cycles a packet {at} ({:.2} and {:.2} Mpps): {:.0} and {:.0}, ratio {:.2} ({:.2} to {:.2}); \
             bursts of {:.1} and {:.1}{}",
            busy.ours.mpps.median,
            busy.peer.mpps.median,
            busy.ours.cycles_per_packet.median,
            busy.peer.cycles_per_packet.median,
            busy.ratio.median,
            busy.ratio.low,
            busy.ratio.high,
            busy.ours.packets_per_burst.median,
            busy.peer.packets_per_burst.median,
            if busy.kept_up {
                ""
            } else {
                "; one moved less than 98 % of it, so that no target counts by this"
            }
        );
    }
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

/// What the generator can do, and whether that is enough.
fn told_room(comparison: &Comparison) -> String {
    let bound = if comparison.generator_bound {
        ": generator-bound, so that the ratio says less than there is, and no target counts as met or missed by it"
    } else {
        ""
    };
    match comparison.ceiling_mpps {
        Some(ceiling) => format!("the generator alone {ceiling:.2} Mpps{bound}"),
        None => format!("the generator alone was not measured in this state of the machine{bound}"),
    }
}

/// Longest frame in one buffer of DPDK's driver.
const DRIVER_MOST: u16 = 1518;

/// The word for QEMU's storage daemon.
const QSD: &str = "qsd";
