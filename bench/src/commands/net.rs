//! `ringway-bench net`.

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use ringway_bench::daemon::Daemon;
use ringway_bench::host::{self, Watch};
use ringway_bench::net;
use ringway_bench::progress;
use ringway_bench::record::Record;
use ringway_control::guest::GuestOptions;
use ringway_ring::queue::Format;
use serde::Serialize;

use super::{Failure, print_json};

#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct Arguments {
    /// Socket of any vhost-user-net back-end that sends frames back; a ringwayd with sim/net is started without it
    #[arg(long)]
    socket: Option<PathBuf>,
    /// Ring formats, measured in turns
    #[arg(long, value_enum, default_value_t = Rings::Both)]
    ring: Rings,
    /// Frame size in bytes, without frame check sequence
    #[arg(long, default_value_t = 64)]
    size: u16,
    /// Entries in each ring
    #[arg(long, default_value_t = 256)]
    queue_size: u16,
    /// Negotiate IN_ORDER
    #[arg(long)]
    in_order: bool,
    /// Do not negotiate MRG_RXBUF
    #[arg(long)]
    no_mergeable: bool,
    /// Seconds of each round
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Rounds of each format
    #[arg(long, default_value_t = 5)]
    rounds: u32,
    /// Core of the guest; the daemon's worker is on another
    #[arg(long, default_value_t = 0)]
    core: usize,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize)]
#[serde(rename_all = "lowercase")]
enum Rings {
    Split,
    Packed,
    Both,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> Result<(), Failure> {
    let pinned = host::pin(arguments.core);
    if !pinned {
        eprintln!("warning: cannot pin the guest to core {}: results will scatter", arguments.core);
    }
    let daemon = match arguments.socket {
        Some(_) => None,
        None => {
            let daemon = Daemon::start(&[])?;
            let mtu = arguments.size.saturating_sub(14).max(1500).to_string();
            daemon.ringway(&["dev", "add", "name", "bench", "mgmtdev", "sim/net", "mtu", &mtu])?;
            Some(daemon)
        }
    };
    let socket = match (&arguments.socket, &daemon) {
        (Some(socket), _) => socket.clone(),
        (None, Some(daemon)) => daemon.socket("bench"),
        (None, None) => return Err("no socket".into()),
    };
    let formats: &[Format] = match arguments.ring {
        Rings::Split => &[Format::Split],
        Rings::Packed => &[Format::Packed],
        Rings::Both => &[Format::Split, Format::Packed],
    };
    let watch = Watch::begin();
    let host = watch.end();
    if !json {
        println!("{host}");
        println!(
            "loopback, {} bytes, queue {}, bursts of {}, one core a side, {} s a round",
            arguments.size,
            arguments.queue_size,
            ringway_control::guest::pair::BATCH,
            arguments.seconds
        );
    }
    let mut series: Vec<Vec<net::Round>> = vec![Vec::new(); formats.len()];
    for number in 0..arguments.rounds {
        for (index, format) in formats.iter().enumerate() {
            let options = GuestOptions {
                format: *format,
                queue_size: arguments.queue_size,
                frame_len: arguments.size,
                mergeable: !arguments.no_mergeable,
                in_order: arguments.in_order,
                ..GuestOptions::default()
            };
            progress::show(&format!("round {} of {}, {}", number + 1, arguments.rounds, name(*format)));
            let round = net::round(&socket, options, Duration::from_secs_f64(arguments.seconds))?;
            series[index].push(round);
        }
    }
    progress::show("");
    for (format, rounds) in formats.iter().zip(&series) {
        if json {
            continue;
        }
        let mut mpps: Vec<f64> = rounds.iter().map(|round| round.mpps).collect();
        mpps.sort_by(f64::total_cmp);
        let lost: u64 = rounds.iter().map(|round| round.lost).sum();
        let mut p50: Vec<u64> = rounds.iter().map(|round| round.p50_ns).collect();
        let mut p99: Vec<u64> = rounds.iter().map(|round| round.p99_ns).collect();
        p50.sort_unstable();
        p99.sort_unstable();
        let middle = rounds.len() / 2;
        if let (Some(low), Some(median), Some(high), Some(p50), Some(p99)) =
            (mpps.first(), mpps.get(middle), mpps.last(), p50.get(middle), p99.get(middle))
        {
            println!(
                "{:<6} {median:6.2} Mpps each way (lowest {low:.2}, highest {high:.2}), lost {lost}, round trip p50 {:.1} us, p99 {:.1} us",
                name(*format),
                *p50 as f64 / 1e3,
                *p99 as f64 / 1e3,
            );
        }
    }
    if json {
        let results: serde_json::Map<String, serde_json::Value> = formats
            .iter()
            .zip(&series)
            .map(|(format, rounds)| Ok((name(*format).to_owned(), serde_json::to_value(rounds)?)))
            .collect::<Result<_, serde_json::Error>>()?;
        print_json(&Record::new("net", watch.end(), arguments, &results)?)?;
    }
    Ok(())
}

fn name(format: Format) -> &'static str {
    match format {
        Format::Split => "split",
        Format::Packed => "packed",
    }
}
