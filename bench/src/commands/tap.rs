//! `ringway-bench tap`.

use ringway_bench::host::Watch;
use ringway_bench::options::Ring;
use ringway_bench::progress;
use ringway_bench::record::Record;
use ringway_bench::stats::Spread;
use ringway_bench::tap::round::Books;
use ringway_bench::tap::{self, Comparison, Direction, Peer, Protocol, Row, Setup, Side};
use serde::Serialize;
use serde_json::json;

use super::net::RoundArguments;
use super::{Failure, print_json};

#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct Arguments {
    /// Beside whom, separated by commas: `plain`, one read and one write a frame by a program of the host without virtqueues;
    /// `vhost-net`, the kernel's (default: plain, and vhost-net where /dev/vhost-net is)
    #[arg(long, value_enum, value_delimiter = ',', value_name = "PEERS")]
    peer: Vec<Peer>,
    /// What is sent, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', default_value = "tcp,udp")]
    protocol: Vec<Protocol>,
    /// Which ways, separated by commas
    #[arg(long, value_enum, value_delimiter = ',', default_value = "to-host,to-guest")]
    direction: Vec<Direction>,
    /// Bytes of UDP's frames from the Ethernet header on, separated by commas
    #[arg(long, value_delimiter = ',', default_value = "64,1514")]
    size: Vec<u16>,
    /// Ring format
    #[arg(long, value_enum, default_value_t = Ring::Split)]
    ring: Ring,
    /// MTU of host and guest
    #[arg(long, default_value_t = 1500, value_parser = clap::value_parser!(u16).range(576..=9000))]
    mtu: u16,
    /// Do not ask between the rounds what a cache line costs: for machines whose processors are emulated in turns
    #[arg(long)]
    no_states: bool,
    /// Damage one long frame in so many on its way from the guest: shows that it is noticed
    #[arg(long, value_name = "FRAMES", value_parser = clap::value_parser!(u64).range(1..))]
    wrong: Option<u64>,
    #[command(flatten)]
    rounds: RoundArguments,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> Result<(), Failure> {
    let Arguments { protocol, direction, size, ring, mtu, no_states, wrong, rounds, .. } = arguments;
    rounds.check()?;
    let setup = Setup {
        protocols: protocol.clone(),
        directions: direction.clone(),
        sizes: size.clone(),
        ring: *ring,
        mtu: *mtu,
        how: rounds.rounds(),
        cores: rounds.cores.clone(),
        backend_core: rounds.backend_core,
        idle: rounds.idle.word(),
        states: !no_states,
        wrong: *wrong,
    };
    let peers = if arguments.peer.is_empty() { Peer::present() } else { arguments.peer.clone() };
    for peer in peers {
        let watch = Watch::begin();
        let comparison = tap::compare(&setup, peer, progress::show)?;
        progress::show("");
        let host = watch.end();
        if json {
            let mut record = Record::new("tap", host, arguments, &comparison)?;
            if let Some(parameters) = record.parameters.as_object_mut() {
                parameters.insert("peer".to_owned(), json!(peer));
            }
            print_json(&record)?;
        } else {
            println!("{host}");
            print(arguments, &comparison);
        }
    }
    Ok(())
}

fn print(arguments: &Arguments, comparison: &Comparison) {
    let Comparison { ours, peer, placed, rows } = comparison;
    println!(
        "tap, {} rings, MTU {}: ringway {} beside {} ({}); {placed}",
        arguments.ring, arguments.mtu, ours.version, peer.name, peer.version
    );
    for Row { job, ours, peer: theirs, ratio, cycles_ratio, discarded, noisy, states } in rows {
        println!(
            "{job}: ratio {:.2} ({:.2} to {:.2}), {} rounds, {discarded} pairs left out{}",
            ratio.median,
            ratio.low,
            ratio.high,
            ours.rounds.len(),
            if *noisy { " (the machine is busy)" } else { "" }
        );
        for (name, side) in [("ringway", ours), (peer.name.as_str(), theirs)] {
            print_side(job.protocol, name, side);
        }
        if let Some(Spread { median, low, high }) = cycles_ratio {
            println!("  busy cycles a frame, ratio {median:.2} ({low:.2} to {high:.2})");
        }
        for state in states.iter().skip(1) {
            println!(
                "  not counted, while a line each way cost {:.1} ns: {} pairs, ratio {:.2}",
                state.line_ns.median, state.pairs, state.ratio.median
            );
        }
    }
}

fn print_side(protocol: Protocol, name: &str, side: &Side) {
    let Side { gbps, mpps, cycles_per_frame, books, .. } = side;
    let Books { sent, lost, corrupt, out_of_order, .. } = books;
    let unit = match protocol {
        Protocol::Tcp => "bytes",
        Protocol::Udp => "datagrams",
    };
    let cycles = cycles_per_frame.map_or("not told".to_owned(), |cycles| format!("{:.0}", cycles.median));
    println!(
        "  {name:<10} {:7.3} Gbit/s (lowest {:.3}, highest {:.3}), {:.3} million frames/s, {cycles} busy cycles each; of {sent} {unit} \
         {lost} lost, {corrupt} damaged, {out_of_order} out of order",
        gbps.median, gbps.low, gbps.high, mpps.median
    );
}
