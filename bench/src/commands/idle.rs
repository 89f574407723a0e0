//! `ringway-bench idle`.

use std::time::Duration;

use ringway_bench::host::{self, Watch};
use ringway_bench::record::Record;
use ringway_bench::{idle, progress};
use serde::Serialize;

use super::{Failure, print_json};

#[derive(Debug, clap::Args, Serialize)]
pub(crate) struct Arguments {
    /// Devices to add and connect
    #[arg(long, default_value_t = 100)]
    devices: usize,
    /// Seconds to watch them idle
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

pub(crate) fn run(arguments: &Arguments, json: bool) -> Result<(), Failure> {
    host::raise_descriptor_limit();
    let (devices, watch) = (arguments.devices, Watch::begin());
    let idle = idle::measure(devices, Duration::from_secs(arguments.seconds), |connected| {
        progress::show(&format!("{connected} of {devices} connected"));
    })?;
    progress::show("");
    let host = watch.end();
    if json {
        return print_json(&Record::new("idle", host, arguments, &idle)?);
    }
    println!("{host}");
    println!(
        "{} connected idle devices: {:.1} KiB each ({:.1} KiB proportional set + {:.1} KiB kernel stacks), daemon {:.2} % of a core, connect {} us",
        idle.devices,
        (idle.pss_bytes + idle.kernel_stack_bytes) as f64 / 1024.0,
        idle.pss_bytes as f64 / 1024.0,
        idle.kernel_stack_bytes as f64 / 1024.0,
        idle.cpu_percent,
        idle.connect_us,
    );
    Ok(())
}
