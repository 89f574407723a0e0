//! `ringway-bench compare`.

use clap::ValueEnum;
use ringway_bench::compare::{self, Comparison, Setup};
use ringway_bench::host::Watch;
use ringway_bench::net::Series;
use ringway_bench::options::{Job, Ring, Touch};
use ringway_bench::progress;
use ringway_bench::record::Record;
use serde::Serialize;

use super::net::{PortArguments, RoundArguments};
use super::{Failure, print_json};

#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct Arguments {
    /// The job: `net`, one port that swaps addresses, or `link`, two that are joined
    #[arg(value_enum)]
    job: Job,
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
    arguments.rounds.check()?;
    for ring in arguments.port.ring.each() {
        let watch = Watch::begin();
        let setup = Setup {
            job: arguments.job,
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
            // A record for each format, with the format that it is of.
            let mut record = Record::new("compare", host, arguments, &comparison)?;
            if let Some(parameters) = record.parameters.as_object_mut() {
                parameters.insert("ring".to_owned(), serde_json::to_value(ring)?);
            }
            print_json(&record)?;
        } else {
            println!("{host}");
            print(arguments, *ring, &comparison);
        }
    }
    Ok(())
}

fn print(arguments: &Arguments, ring: Ring, comparison: &Comparison) {
    let Arguments { job, port, .. } = arguments;
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
