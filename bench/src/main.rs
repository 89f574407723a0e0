//! `ringway-bench`: prints what Ringway does on this machine.
#![forbid(unsafe_code)]

mod commands;

use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use ringway_control::operator::cli::docs;

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
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual page ringway-bench.8 into a directory
    Man {
        /// The directory
        #[arg(value_hint = clap::ValueHint::DirPath)]
        dir: std::path::PathBuf,
    },
}

/// What the manual says before the options.
const DESCRIPTION: &str = "Drives any vhost-user back-end as a guest would, with every frame and block accounted for, and prints what it does on \
                           this machine: rates, latency, cost, limits, and the same of its peers. Each measurement is a file of JSON, of which \
                           report makes one page.";

fn manual(dir: &std::path::Path) -> Result<(), commands::Failure> {
    let page = docs::page_of(Cli::command(), "ringway-bench", "measures Ringway from outside", DESCRIPTION);
    std::fs::write(dir.join("ringway-bench.8"), page)?;
    Ok(())
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
        Bench::Completion { shell } => {
            print!("{}", docs::completion_of(*shell, Cli::command(), "ringway-bench"));
            Ok(())
        }
        Bench::Man { dir } => manual(dir),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            eprintln!("error: {why}");
            ExitCode::FAILURE
        }
    }
}
