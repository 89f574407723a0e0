//! `ringway-bench`: prints what Ringway does on this machine.
#![forbid(unsafe_code)]

mod commands;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

use commands::{blk, compare, idle, limits, net, report, ring, scale, tap, targets};

#[derive(Parser)]
#[command(name = "ringway-bench", version, about = "Measures Ringway from outside, as a guest would")]
struct Cli {
    /// One line of JSON on standard output
    #[arg(short, long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Bench,
}

#[derive(Subcommand)]
enum Bench {
    /// Throughput and latency of any vhost-user-net back-end, every frame accounted for
    Net(net::Arguments),
    /// Throughput and latency of any vhost-user-blk back-end, every block stamped and checked
    Blk(blk::Arguments),
    /// Ringway beside a peer: the same job in turns
    #[command(subcommand)]
    Compare(compare::Arguments),
    /// What the rings and the pumps over them cost, beside rust-vmm's virtio-queue
    Ring(ring::Arguments),
    /// What this machine could do at best, and what follows for each job
    Limits(limits::Arguments),
    /// What connected devices cost while they idle: memory and processor time
    Idle(idle::Arguments),
    /// How cost grows: idle and busy devices, memory regions, bridge ports; adding, connecting, starting, waking
    Scale(scale::Arguments),
    /// The host's network behind a guest: TCP, and UDP without offloads, through `tap/IFNAME` beside other ways to a TAP
    Tap(tap::Arguments),
    /// Every row of the table of targets in one go: a folder of results, their page, and what they have of the targets
    Targets(targets::Arguments),
    /// One HTML page from all results in a folder
    Report(report::Arguments),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match &cli.command {
        Bench::Blk(arguments) => blk::run(arguments, cli.json),
        Bench::Compare(arguments) => compare::run(arguments, cli.json),
        Bench::Net(arguments) => net::run(arguments, cli.json),
        Bench::Ring(arguments) => ring::run(arguments, cli.json),
        Bench::Limits(arguments) => limits::run(arguments, cli.json),
        Bench::Idle(arguments) => idle::run(arguments, cli.json),
        Bench::Scale(arguments) => scale::run(arguments, cli.json),
        Bench::Tap(arguments) => tap::run(arguments, cli.json),
        Bench::Targets(arguments) => targets::run(arguments, cli.json),
        Bench::Report(arguments) => report::run(arguments, cli.json),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
