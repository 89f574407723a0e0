//! What an idle device costs: memory of the daemon for each connected device, and its processor time while all idle.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use ringway_guest::{Guest, GuestError, GuestOptions};
use ringway_ring::memory::PageKind;
use serde::Serialize;

use crate::daemon::{Daemon, DaemonError};

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Idle {
    /// Devices connected.
    pub devices: usize,
    /// Proportional set size for each device, in bytes.
    pub pss_bytes: u64,
    /// Kernel stacks for each device, in bytes.
    pub kernel_stack_bytes: u64,
    /// Time from `dev add` to a connected front-end with running rings, median, in microseconds.
    pub connect_us: u64,
    /// Processor time of the daemon while all devices idle, in per cent of a core.
    pub cpu_percent: f64,
}

/// Why it could not be found out.
#[derive(Debug, thiserror::Error)]
pub enum IdleError {
    /// The daemon.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// A guest.
    #[error("guest {index}: {source}")]
    Guest {
        /// Which.
        index: usize,
        /// What it says.
        source: GuestError,
    },
    /// What the kernel tells of a process.
    #[error("cannot read {what}: {source}")]
    Proc {
        /// Which file.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Adds `devices` devices, connects a front-end to each, and watches them idle for `watch`. Tells `progress` how many
/// are connected.
pub fn measure(devices: usize, watch: Duration, mut progress: impl FnMut(usize)) -> Result<Idle, IdleError> {
    let daemon = Daemon::start(&[])?;
    let before = Account::read(daemon.pid())?;
    let mut guests = Vec::with_capacity(devices);
    let mut times = Vec::with_capacity(devices);
    for index in 0..devices {
        let name = format!("idle{index}");
        daemon.ringway(&["dev", "add", "name", &name, "mgmtdev", "sim/net"])?;
        let begun = Instant::now();
        let options = GuestOptions { pages: Some(PageKind::Base), ..GuestOptions::default() };
        let guest = Guest::connect(&daemon.socket(&name), options)
            .map_err(|source| IdleError::Guest { index, source })?;
        times.push(begun.elapsed());
        guests.push(guest);
        progress(index + 1);
    }
    // Pumps that found nothing fall asleep after some 50 us.
    std::thread::sleep(Duration::from_millis(500));
    let after = Account::read(daemon.pid())?;
    let (cpu, begun) = (processor_time(daemon.pid())?, Instant::now());
    std::thread::sleep(watch);
    let used = processor_time(daemon.pid())?.saturating_sub(cpu);
    let elapsed = begun.elapsed();
    times.sort();
    let each = |after: u64, before: u64| after.saturating_sub(before) / devices.max(1) as u64;
    Ok(Idle {
        devices,
        pss_bytes: each(after.pss, before.pss),
        kernel_stack_bytes: each(after.stacks, before.stacks),
        connect_us: times.get(devices / 2).map_or(0, |time| time.as_micros() as u64),
        cpu_percent: used.as_secs_f64() / elapsed.as_secs_f64() * 100.0,
    })
}

/// Memory of a process.
struct Account {
    pss: u64,
    stacks: u64,
}

impl Account {
    fn read(pid: u32) -> Result<Account, IdleError> {
        let rollup = read(&format!("/proc/{pid}/smaps_rollup"))?;
        let pss = rollup
            .lines()
            .find_map(|line| line.strip_prefix("Pss:")?.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
            .unwrap_or(0);
        let path = format!("/proc/{pid}/task");
        let threads = fs::read_dir(&path).map_err(|source| IdleError::Proc { what: path, source })?.count();
        Ok(Account { pss: pss * 1024, stacks: threads as u64 * KERNEL_STACK })
    }
}

/// Processor time of a process's threads so far.
pub(crate) fn processor_time(pid: u32) -> Result<Duration, IdleError> {
    let path = format!("/proc/{pid}/task");
    let threads = fs::read_dir(&path).map_err(|source| IdleError::Proc { what: path, source })?;
    // In nanoseconds, where `stat` has clock ticks. A thread that has gone meanwhile has no file.
    let each = threads.flatten().filter_map(|thread| {
        let schedstat = fs::read_to_string(thread.path().join("schedstat")).ok()?;
        schedstat.split(' ').next()?.parse::<u64>().ok()
    });
    Ok(Duration::from_nanos(each.sum()))
}

fn read(path: &str) -> Result<String, IdleError> {
    fs::read_to_string(Path::new(path)).map_err(|source| IdleError::Proc { what: path.to_owned(), source })
}

/// What the kernel gives each thread on x86-64 and AArch64, in bytes.
const KERNEL_STACK: u64 = 16 * 1024;
