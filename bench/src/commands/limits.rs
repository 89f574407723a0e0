//! `ringway-bench limits`.

use ringway_bench::host::Watch;
use ringway_bench::limits::{self, Limits};
use ringway_bench::options::{Job, Ring, Touch};
use ringway_bench::progress;
use ringway_bench::record::Record;
use serde::Serialize;

use super::{Failure, print_json};

#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct Arguments {
    /// The generator's core and the back-end's
    #[arg(long, value_delimiter = ',', num_args = 2, default_values_t = [0, 1])]
    cores: Vec<usize>,
}

/// What follows for one job.
#[derive(Debug, Serialize)]
struct Floor {
    job: Job,
    ring: Ring,
    size: u16,
    touch: Touch,
    mpps: f64,
}

#[derive(Debug, Serialize)]
struct Outcome {
    #[serde(flatten)]
    limits: Limits,
    floors: Vec<Floor>,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> Result<(), Failure> {
    let &[generator, backend] = arguments.cores.as_slice() else { return Err("--cores takes two".into()) };
    let watch = Watch::begin();
    let limits = limits::measure([generator, backend], progress::show)?;
    progress::show("");
    let host = watch.end();
    let mut floors = Vec::new();
    for ring in Ring::ALL {
        for (size, touch) in [(64, Touch::Header), (1518, Touch::Header), (1518, Touch::All)] {
            let job = Job::Loopback;
            let mpps = limits.floor(job, ring, size, touch) / 1e6;
            floors.push(Floor { job, ring, size, touch, mpps });
        }
    }
    let outcome = Outcome { limits, floors };
    if json {
        return print_json(&Record::new("limits", host, arguments, &outcome)?);
    }
    let Limits { round_trip_ns, exchange_ns, stretch_ns, copies, eventfd_round_trip_ns, .. } =
        &outcome.limits;
    println!("{host}");
    println!("cache line to core {backend} and back, one at a time  {round_trip_ns:8.1} ns");
    println!("cache line each way, many at a time           {exchange_ns:8.1} ns");
    println!("cache line each way, many in a row            {stretch_ns:8.1} ns");
    println!("eventfd there and back, waiting               {eventfd_round_trip_ns:8.1} ns");
    for copy in copies {
        let place = if copy.cached { "in the cache" } else { "from memory" };
        let rate = f64::from(copy.bytes) / copy.ns;
        println!(
            "copy of {:>7} bytes {place:<13}            {:8.1} ns, {rate:5.1} GB/s",
            copy.bytes, copy.ns
        );
    }
    for floor in &outcome.floors {
        let Floor { ring, size, touch, mpps, .. } = floor;
        println!(
            "floor of net and link, {ring:<6} {size:>5} bytes, touch {:<6} {mpps:8.2} Mpps",
            touch.to_string()
        );
    }
    Ok(())
}
