//! `ringway demo`: the main job on an embedded default. No root, no hugepages, no hardware, no peer.
//!
//! Starts the data plane in this process, adds a `sim/net` device with a real vhost-user socket, connects the built-in
//! guest to it and moves traffic, with a line of progress while it runs.
//!
//! ```text
//!   this thread: built-in guest  <--- vhost-user socket --->  session thread
//!        |  rings in shared memory                                |
//!        +----------------------- worker, pinned -----------------+
//! ```

use std::io::{IsTerminal, Write};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ringway_guest::{Guest, GuestError, GuestOptions, load};
use ringway_ring::queue::Format;
use serde::Serialize;

use crate::fault::{Fault, Kind};
use crate::operator::api::DeviceEntry;
use crate::subsystem::{self, Subsystem};

/// What was asked for.
#[derive(Debug, Clone, Copy)]
pub struct DemoOptions {
    /// How long traffic runs.
    pub duration: Duration,
    /// Ring layout.
    pub format: Format,
    /// Print the result as one line of JSON, and nothing else on standard output.
    pub json: bool,
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DemoReport {
    /// Frames that made the whole way and came back intact.
    pub packets: u64,
    /// How long traffic ran.
    pub seconds: f64,
    /// Millions of frames a second, each way.
    pub mpps: f64,
    /// Frames that did not come back, or not intact.
    pub lost: u64,
    /// From the guest's sending to its receiving, at full load.
    pub latency_ns: Latency,
    /// The pages under the guest's memory.
    pub memory: String,
    /// Ring layout.
    pub ring: &'static str,
}

/// Percentiles, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Latency {
    /// Median.
    pub p50: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p999: u64,
}

/// Runs the demo, with progress on the terminal, and returns what came of it. Ends early once `interrupted` is true.
///
/// # Errors
/// The data plane or the guest could not start, or the device broke a rule.
pub fn run(options: &DemoOptions, interrupted: &AtomicBool) -> Result<DemoReport, Fault> {
    let folder =
        tempfile::tempdir().map_err(|error| Fault::system("cannot make a directory for sockets", error))?;
    let plane = Subsystem::start(subsystem::Options::embedded(folder.path()))?;
    let entry =
        DeviceEntry { name: DEVICE.to_owned(), mgmtdev: "sim/net".to_owned(), ..DeviceEntry::default() };
    let added = plane.add(&entry)?;
    let worker = plane.engine().cores().first().copied().unwrap_or(0);
    let guest_core = leave_core(worker);
    let mut guest =
        Guest::connect(&added.socket, GuestOptions { format: options.format, ..GuestOptions::default() })
            .map_err(|error| failed(&error))?;

    let mut progress = Progress::new(options);
    if !options.json {
        let core = guest_core.map_or_else(|| "any core".to_owned(), |core| format!("core {core}"));
        say(&format!(
            "worker on core {worker}, guest on {core}, {} rings, {} memory",
            ring_name(options.format),
            guest.page_kind()
        ))?;
    }
    let took = load::run(&mut guest, options.duration, |gone, received| {
        progress.show(gone, received);
        if interrupted.load(Ordering::Relaxed) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    })
    .map_err(|error| failed(&error))?;
    let packets = guest.stats().received;
    load::drain(&mut guest).map_err(|error| failed(&error))?;
    progress.clear();
    let (memory, latency) = (guest.page_kind().to_string(), guest.latency());
    let stats = guest.stop().map_err(|error| failed(&error))?;
    plane.stop();

    let seconds = took.as_secs_f64();
    Ok(DemoReport {
        packets,
        seconds,
        mpps: packets as f64 / seconds / 1e6,
        lost: load::lost(&stats),
        latency_ns: Latency {
            p50: load::latency_ns(&latency, 0.5),
            p99: load::latency_ns(&latency, 0.99),
            p999: load::latency_ns(&latency, 0.999),
        },
        memory,
        ring: ring_name(options.format),
    })
}

/// Runs the demo and prints its result, as `ringway demo` does. The first SIGINT or SIGTERM ends it early, with the
/// result so far and everything it made taken away; the second ends the process.
///
/// # Errors
/// As [`run`]; lost frames are an error too, after the result was printed.
pub fn run_and_print(options: &DemoOptions) -> Result<(), Fault> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 128 + signal, interrupted.clone())
            .and_then(|_| signal_hook::flag::register(signal, interrupted.clone()))
            .map_err(|error| Fault::system("cannot catch signals", error))?;
    }
    let report = run(options, &interrupted)?;
    if options.json {
        let line =
            serde_json::to_string(&report).map_err(|error| Fault::new(Kind::Runtime, error.to_string()))?;
        say(&line)?;
    } else {
        say(&format!(
            "{} packets in {:.1} s: {:.2} million a second each way, {} lost",
            report.packets, report.seconds, report.mpps, report.lost
        ))?;
        say(&format!(
            "latency at full load: {} median, {} 99 %, {} 99.9 %",
            time(report.latency_ns.p50),
            time(report.latency_ns.p99),
            time(report.latency_ns.p999)
        ))?;
    }
    if report.lost > 0 {
        return Err(Fault::new(Kind::Runtime, format!("{} frames were lost or damaged", report.lost)));
    }
    Ok(())
}

/// Writes a line to standard output. A reader that went away (`ringway demo | head -1`) is no failure.
fn say(line: &str) -> Result<(), Fault> {
    match writeln!(std::io::stdout(), "{line}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(Fault::system("cannot write", error))
        }
        _ => Ok(()),
    }
}

/// The line of progress: on a terminal, in place; silent elsewhere.
struct Progress {
    on: bool,
    total: Duration,
    last: (Duration, u64),
}

impl Progress {
    fn new(options: &DemoOptions) -> Progress {
        Progress { on: std::io::stderr().is_terminal(), total: options.duration, last: (Duration::ZERO, 0) }
    }

    fn show(&mut self, gone: Duration, received: u64) {
        let (time, packets) = (gone - self.last.0, received - self.last.1);
        self.last = (gone, received);
        if self.on {
            let rate = packets as f64 / time.as_secs_f64() / 1e6;
            let mut out = std::io::stderr();
            let _ = write!(
                out,
                "\r\x1b[K{:.1} of {:.1} s  {received} packets  {rate:.2} million a second",
                gone.as_secs_f64(),
                self.total.as_secs_f64()
            );
            let _ = out.flush();
        }
    }

    fn clear(&self) {
        if self.on {
            let _ = write!(std::io::stderr(), "\r\x1b[K");
        }
    }
}

/// Keeps this thread off the worker's core, if there is another one; returns where it is pinned.
fn leave_core(worker: usize) -> Option<usize> {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let allowed = sched_getaffinity(None).ok()?;
    let core = (0..CpuSet::MAX_CPU).find(|&core| core != worker && allowed.is_set(core))?;
    let mut only = CpuSet::new();
    only.set(core);
    sched_setaffinity(None, &only).ok()?;
    Some(core)
}

fn failed(error: &GuestError) -> Fault {
    Fault::new(Kind::Runtime, format!("the built-in guest: {error}"))
}

/// The word for a layout.
fn ring_name(format: Format) -> &'static str {
    match format {
        Format::Split => "split",
        Format::Packed => "packed",
    }
}

/// Nanoseconds for people.
fn time(ns: u64) -> String {
    match ns {
        0..10_000 => format!("{:.1} us", ns as f64 / 1e3),
        10_000..1_000_000 => format!("{} us", ns / 1000),
        _ => format!("{:.1} ms", ns as f64 / 1e6),
    }
}

/// The device's name.
const DEVICE: &str = "demo";
