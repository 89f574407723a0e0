//! `ringway-bench ring`.

use ringway_bench::host::{self, Watch};
use ringway_bench::progress;
use ringway_bench::record::Record;
use ringway_bench::ring::{Path, Stopwatch};
use ringway_bench::stats::{self, Spread};
use serde::Serialize;

use super::{Failure, print_json};

#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct Arguments {
    /// Only paths whose name contains this
    #[arg(long, default_value = "")]
    only: String,
    /// Rounds; in each, every path has its turn
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u16).range(1..))]
    rounds: u16,
    /// Descriptors, or frames, of a path in a round
    #[arg(long, default_value_t = 20_000, value_parser = clap::value_parser!(u64).range(1..))]
    units: u64,
    /// The core to measure on
    #[arg(long, default_value_t = 0)]
    core: usize,
}

/// What was found of one path.
#[derive(Debug, Serialize)]
struct Timed {
    name: String,
    path: Path,
    unit: &'static str,
    /// Nanoseconds for each unit, by round.
    ns: Vec<f64>,
    /// `virtio-queue`'s nanoseconds to ours, at the same work.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<Spread>,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> Result<(), Failure> {
    let paths = wanted(&arguments.only)?;
    if !host::pin(arguments.core) {
        return Err(format!("cannot run on core {}: name another one by --core", arguments.core).into());
    }
    let watch = Watch::begin();
    let timed = time(&paths, arguments)?;
    let host = watch.end();
    if json {
        return print_json(&Record::new("ring", host, arguments, &timed)?);
    }
    println!("{host}");
    println!("both sides on core {}, only the one that is named timed", arguments.core);
    println!("\n{:<52}  {:>22}  {:>20}", "", "ns each (low - high)", "virtio-queue / ours");
    for found in &timed {
        let spread = Spread::of(&found.ns).ok_or("no round was made")?;
        let ratio = found.ratio.map_or_else(String::new, |ratio| {
            format!("{:.2} ({:.2} - {:.2})", ratio.median, ratio.low, ratio.high)
        });
        let ns = format!("{:.2} ({:.2} - {:.2})", spread.median, spread.low, spread.high);
        println!("{:<52}  {ns:>22}  {ratio:>20}", found.name);
    }
    println!("\nsteal {:.2} %", host.steal_percent);
    Ok(())
}

fn wanted(only: &str) -> Result<Vec<Path>, Failure> {
    let paths: Vec<Path> = Path::all().into_iter().filter(|path| path.to_string().contains(only)).collect();
    if paths.is_empty() {
        return Err(format!("--only {only}: no path is called so; without --only all are shown").into());
    }
    Ok(paths)
}

/// Every path has its turn in each round, so that what the machine does meanwhile meets all of them.
fn time(paths: &[Path], arguments: &Arguments) -> Result<Vec<Timed>, Failure> {
    let mut benches = paths.iter().map(Path::bench).collect::<Result<Vec<_>, _>>()?;
    let clock = Stopwatch::calibrate();
    let mut series: Vec<Vec<f64>> = vec![Vec::new(); benches.len()];
    for round in 1..=arguments.rounds {
        progress::show(&format!("round {round} of {}", arguments.rounds));
        for (bench, series) in benches.iter_mut().zip(&mut series) {
            series.push(bench.time(arguments.units, &clock)?);
        }
    }
    progress::show("");
    let of = |wanted: Path| paths.iter().position(|path| *path == wanted).and_then(|at| series.get(at));
    let timed = paths.iter().zip(&series).map(|(path, ns)| Timed {
        name: path.to_string(),
        path: *path,
        unit: path.unit(),
        ns: ns.clone(),
        ratio: path.peer().and_then(of).and_then(|theirs| stats::ratio(theirs, ns)),
    });
    Ok(timed.collect())
}
