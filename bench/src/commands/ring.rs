//! `ringway-bench ring`.

use std::path::PathBuf;

use ringway_bench::baseline::{self, Baseline, Change, Comparison};
use ringway_bench::callgrind::{self, Count};
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
    /// Count instructions under valgrind's callgrind instead of measuring time: repeatable on a busy machine
    #[arg(long)]
    instructions: bool,
    /// Fail if a path takes more than 2 % more instructions than the baseline says
    #[arg(long, requires = "instructions", conflicts_with = "only")]
    check_baseline: bool,
    /// Make what is counted the baseline for this compiler and instruction set
    #[arg(long, requires = "instructions", conflicts_with_all = ["only", "check_baseline"])]
    write_baseline: bool,
    /// The file of committed counts
    #[arg(long, value_name = "FILE", default_value = "bench/baseline/ring.json")]
    baseline: PathBuf,
    /// What callgrind runs
    #[arg(long, hide = true)]
    #[serde(skip)]
    counted: bool,
}

/// What was found.
#[derive(Debug, Serialize)]
struct Times {
    /// One for each path.
    times: Vec<Timed>,
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

/// What was counted.
#[derive(Debug, Serialize)]
struct Counts {
    key: String,
    counts: Vec<PathCount>,
    /// Beside the baseline, if that was asked for and has counts for this key.
    #[serde(skip_serializing_if = "Option::is_none")]
    comparison: Option<Comparison>,
}

#[derive(Debug, Serialize)]
struct PathCount {
    name: String,
    unit: &'static str,
    #[serde(flatten)]
    count: Count,
    /// Instructions for each unit.
    each: f64,
    /// `virtio-queue`'s instructions to ours, at the same work.
    #[serde(skip_serializing_if = "Option::is_none")]
    ratio: Option<f64>,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> Result<(), Failure> {
    let paths = wanted(&arguments.only)?;
    if arguments.counted {
        println!("{}", serde_json::to_string(&callgrind::count_here(&paths)?)?);
        return Ok(());
    }
    if arguments.instructions { count(arguments, json) } else { time(&paths, arguments, json) }
}

fn wanted(only: &str) -> Result<Vec<Path>, Failure> {
    let paths: Vec<Path> = Path::all().into_iter().filter(|path| path.to_string().contains(only)).collect();
    if paths.is_empty() {
        return Err(format!("--only {only}: no path is called so; without --only all are shown").into());
    }
    Ok(paths)
}

fn time(paths: &[Path], arguments: &Arguments, json: bool) -> Result<(), Failure> {
    let watch = Watch::begin();
    // On a thread of its own: what is pinned is that.
    let timed = std::thread::scope(|scope| {
        let thread = scope.spawn(|| rounds(paths, arguments).map_err(|why| why.to_string()));
        thread.join().unwrap_or_else(|_| Err("the measurement panicked: this is a defect".to_owned()))
    })?;
    let host = watch.end();
    if json {
        return print_json(&Record::new("ring", host, arguments, &Times { times: timed })?);
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

/// Every path has its turn in each round, so that what the machine does meanwhile meets all of them.
fn rounds(paths: &[Path], arguments: &Arguments) -> Result<Vec<Timed>, Failure> {
    if !host::pin(arguments.core) {
        return Err(format!("cannot run on core {}: name another one by --core", arguments.core).into());
    }
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

fn count(arguments: &Arguments, json: bool) -> Result<(), Failure> {
    // Before a minute is spent on it.
    let mut baseline = Baseline::read(&arguments.baseline)?;
    let watch = Watch::begin();
    progress::show("counting under callgrind");
    let (key, counts) = callgrind::count(&["ring", "--counted", "--only", &arguments.only])?;
    progress::show("");
    let host = watch.end();
    let set = baseline::set_of(&counts);
    let old = baseline.set(&key).filter(|_| arguments.check_baseline);
    let comparison = old.map(|old| baseline::compare(old, &set));
    let found = Counts { key, counts: with_ratios(&counts), comparison };
    if json {
        print_json(&Record::new("ring", host, arguments, &found)?)?;
    } else {
        println!("{host}\n{}", found.key);
        println!("\n{:<52}  {:>17}  {:>20}", "", "instructions each", "virtio-queue / ours");
        for count in &found.counts {
            let ratio = count.ratio.map_or_else(String::new, |ratio| format!("{ratio:.2}"));
            println!("{:<52}  {:>17.2}  {ratio:>20}", count.name, count.each);
        }
    }
    if arguments.write_baseline {
        baseline.put(&found.key, set);
        baseline.write(&arguments.baseline)?;
        eprintln!("wrote {}", arguments.baseline.display());
    }
    if arguments.check_baseline {
        return judge(arguments, &baseline, &found);
    }
    Ok(())
}

fn with_ratios(counts: &[Count]) -> Vec<PathCount> {
    let of = |wanted: Path| counts.iter().find(|count| count.path == wanted);
    let row = |count: &Count| PathCount {
        name: count.path.to_string(),
        unit: count.path.unit(),
        each: count.each(),
        ratio: count.path.peer().and_then(of).map(|theirs| theirs.each() / count.each()),
        count: count.clone(),
    };
    counts.iter().map(row).collect()
}

/// Says what the comparison came to. Counts of a compiler or processor that the baseline does not know cannot be judged:
/// that is no failure of who has them, and is said.
fn judge(arguments: &Arguments, baseline: &Baseline, found: &Counts) -> Result<(), Failure> {
    let file = arguments.baseline.display();
    let Some(comparison) = &found.comparison else {
        let known: Vec<&str> = baseline.keys().collect();
        let known = if known.is_empty() { "nothing".to_owned() } else { known.join("; ") };
        eprintln!("note: NOT CHECKED: {file} has no counts for {}, only for {known}", found.key);
        eprintln!("note: ringway-bench ring --instructions --write-baseline adds them");
        return Ok(());
    };
    let line = |change: &Change| {
        let Change { name, old, new } = change;
        format!("  {name}: {old:.2} -> {new:.2} instructions, {:+.1} %", change.growth() * 100.0)
    };
    for change in &comparison.shrunk {
        eprintln!("note: less than the baseline says; --write-baseline keeps it so:\n{}", line(change));
    }
    if comparison.holds() {
        eprintln!("no path takes more than {:.0} % more than {file} says", baseline::TOLERANCE * 100.0);
        return Ok(());
    }
    let grown = comparison.grown.iter().map(line);
    let unknown = comparison.unknown.iter().map(|name| format!("  {name}: not in the baseline"));
    let gone =
        comparison.gone.iter().map(|name| format!("  {name}: in the baseline, and not counted any more"));
    let lines: Vec<String> = grown.chain(unknown).chain(gone).collect();
    Err(format!(
        "paths are not what {file} says (more than {:.0} % is too much):\n{}\nif it must be so, --write-baseline \
         and say why in the commit",
        baseline::TOLERANCE * 100.0,
        lines.join("\n")
    )
    .into())
}
