//! What looking costs: a busy device beside a thousand idle ones, some of them with guests, with nobody who looks, and with scrapers,
//! `ringway top`s and a capture of an idle device. A capture of the busy one is another matter: what is copied for it costs what a copy does.
//!
//! And how long one scrape of them all takes.
//!
//! One daemon for both, in turns. All of it but the worker is on the guests' core, those who look included, as an operator keeps a
//! worker's core to the worker; so it is the worker's cycles that tell, not the throughput of guests that share their core.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, ChildStdout, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringway_guest::GuestOptions;
use ringway_ring::memory::PageKind;
use rustix::thread::{CpuSet, Pid, sched_setaffinity};
use serde::{Deserialize, Serialize};

use super::curve::Curve;
use super::curves::{IDLE, Setup};
use super::{Options, ScaleError, Subject, driven, on_core};
use crate::stats::Spread;
use crate::{daemon, mortal, progress};

/// Those who look.
pub const WATCHERS: [usize; 2] = [0, ALL];

/// What was measured.
#[derive(Debug, Clone)]
pub struct Watched {
    /// Scrapes, before anything is driven.
    pub scrape: Scrape,
    /// The busy device, over those who look.
    pub curve: Curve,
}

/// Scrapes of a daemon with many devices, one after the other, with nothing else on.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Scrape {
    /// The devices.
    pub devices: usize,
    /// From connecting to the last byte, in milliseconds.
    pub ms: Spread,
    /// What their median may be.
    pub at_most_ms: f64,
}

impl Scrape {
    /// Measures it: [`SCRAPES`] of them.
    fn measure(metrics: &Path, devices: usize) -> Result<Scrape, ScaleError> {
        let mut series = Vec::with_capacity(SCRAPES);
        for _ in 0..SCRAPES {
            let begun = Instant::now();
            read(metrics).map_err(ScaleError::system("cannot scrape ringwayd"))?;
            series.push(begun.elapsed().as_secs_f64() * 1e3);
            // One that comes sooner waits for its part of the time.
            std::thread::sleep(EVERY);
        }
        let ms = Spread::of(&series).unwrap_or(Spread { median: f64::NAN, low: f64::NAN, high: f64::NAN });
        Ok(Scrape { devices, ms, at_most_ms: SCRAPE_AT_MOST_MS })
    }

    /// As fast as it has to be.
    pub fn is_met(&self) -> bool {
        self.ms.median < self.at_most_ms
    }
}

/// Measures a scrape, and the busy device's worker with as many who look.
pub fn measure(options: &Options) -> Result<Watched, ScaleError> {
    let folder = tempfile::tempdir().map_err(ScaleError::system("cannot make a directory"))?;
    let metrics = folder.path().join("metrics.sock");
    let place = metrics.display().to_string();
    let mut subject = Subject::start(options, &["--idle", "adaptive", "--metrics", &place])?;
    keep_off(subject.daemon.pid(), options.guest_core)?;
    let idle = IDLE.last().copied().unwrap_or_default();
    let sleeper = GuestOptions { queue_size: 8, pages: Some(PageKind::Base), ..driven(options) };
    let mut sleepers = Vec::new();
    for number in 0..idle {
        if number % 16 == 0 {
            progress::show(&format!("idle devices: {number} of {idle}"));
        }
        let name = format!("idle{number}");
        if number < CONNECTED {
            sleepers.push(subject.guest(&name, "sim/net", sleeper)?);
        } else {
            subject.add(&name, "sim/net")?;
        }
    }
    let scrape = Scrape::measure(&metrics, idle)?;
    let ctl = subject.daemon.ctl();
    let mut setup = Setup::new(subject, "sim/net", vec![driven(options)])?;
    let measured = on_core(options.guest_core, || {
        let mut done = 0;
        Curve::measure("watchers", &WATCHERS, options.rounds, |place| {
            done += 1;
            let all = WATCHERS.len() * options.rounds as usize;
            progress::show(&format!("watchers: {}, round {done} of {all}", WATCHERS[place]));
            let watchers = (WATCHERS[place] > 0).then(|| Watchers::start(&ctl, &metrics)).transpose()?;
            let round = setup.round(options.round)?;
            match watchers {
                Some(watchers) if !watchers.have_all_looked() => Err(ScaleError::NobodyLooked(options.round)),
                _ => Ok(round),
            }
        })
    });
    progress::show("");
    let mut curve = measured?;
    for point in &mut curve.points {
        point.lost = setup.lost();
    }
    Ok(Watched { scrape, curve })
}

/// Keeps all threads of a process but its workers on a core, and so those that they start.
fn keep_off(pid: u32, core: usize) -> Result<(), ScaleError> {
    let failed = || ScaleError::system("cannot keep ringwayd's other threads off its worker's core");
    let mut only = CpuSet::new();
    only.set(core);
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).map_err(failed())? {
        let task = task.map_err(failed())?.path();
        let name = std::fs::read_to_string(task.join("comm")).unwrap_or_default();
        let tid = task.file_name().and_then(|name| name.to_str()?.parse().ok()).and_then(Pid::from_raw);
        if !name.starts_with("rw-core-")
            && let Some(tid) = tid
        {
            sched_setaffinity(Some(tid), &only).map_err(|error| failed()(error.into()))?;
        }
    }
    Ok(())
}

/// Scrapers, `ringway top`s and a capture. They end when dropped.
struct Watchers {
    stop: Arc<AtomicBool>,
    /// Whether each of them has seen what it looks for.
    has_looked: Arc<[AtomicBool; ALL]>,
    scrapers: Vec<JoinHandle<()>>,
    programs: Vec<Child>,
}

impl Watchers {
    fn start(ctl: &Path, metrics: &Path) -> Result<Watchers, ScaleError> {
        let stop = Arc::new(AtomicBool::new(false));
        let mut watchers =
            Watchers { stop, has_looked: Arc::default(), scrapers: Vec::new(), programs: Vec::new() };
        for place in 0..SCRAPERS {
            let (stop, metrics) = (Arc::clone(&watchers.stop), metrics.to_owned());
            let has_looked = Arc::clone(&watchers.has_looked);
            watchers.scrapers.push(std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    if scrape(&metrics).unwrap_or(false) {
                        has_looked[place].store(true, Ordering::Relaxed);
                    }
                    std::thread::sleep(EVERY);
                }
            }));
        }
        for place in SCRAPERS..SCRAPERS + TOPS {
            let lines = BufReader::new(watchers.program(ctl, &["-j", "top", "interval", "0.5"])?);
            let has_looked = Arc::clone(&watchers.has_looked);
            // It ends with the program that it reads.
            std::thread::spawn(move || {
                for line in lines.lines().map_while(Result::ok) {
                    has_looked[place].fetch_or(line.contains("\"busy0\""), Ordering::Relaxed);
                }
            });
        }
        // What comes first says that it has begun.
        let mut frames = watchers.program(ctl, &["capture", "idle0", "-w", "-"])?;
        let has_looked = Arc::clone(&watchers.has_looked);
        std::thread::spawn(move || {
            let mut some = [0; 4096];
            while frames.read(&mut some).is_ok_and(|count| count > 0) {
                has_looked[ALL - 1].store(true, Ordering::Relaxed);
            }
        });
        Ok(watchers)
    }

    /// Starts a `ringway` that ends with the others; returns what it says.
    fn program(&mut self, ctl: &Path, words: &[&str]) -> Result<ChildStdout, ScaleError> {
        let failed = || ScaleError::system("cannot start ringway");
        let mut program = mortal::command(daemon::beside("ringway")?);
        program.arg("--ctl").arg(ctl).args(words).stdin(Stdio::null()).stdout(Stdio::piped());
        let mut program = program.spawn().map_err(failed())?;
        let said = program.stdout.take();
        self.programs.push(program);
        said.ok_or_else(|| failed()(std::io::ErrorKind::BrokenPipe.into()))
    }

    fn have_all_looked(&self) -> bool {
        self.has_looked.iter().all(|has_looked| has_looked.load(Ordering::Relaxed))
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for program in &mut self.programs {
            let _ = program.kill();
            let _ = program.wait();
        }
        for scraper in self.scrapers.drain(..) {
            let _ = scraper.join();
        }
    }
}

/// Whether the busy device is in what a scraper is told.
fn scrape(metrics: &Path) -> std::io::Result<bool> {
    read(metrics).map(|told| told.contains("dev=\"busy0\""))
}

/// One scrape, to its last byte.
fn read(metrics: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(metrics)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n")?;
    let mut told = String::new();
    stream.read_to_string(&mut told)?;
    Ok(told)
}

/// Idle devices that have guests: more need more descriptors than a process may have on many hosts.
const CONNECTED: usize = 256;

const SCRAPERS: usize = 2;
const TOPS: usize = 3;
/// They, and a capture.
const ALL: usize = SCRAPERS + TOPS + 1;

/// Scrapes that are timed.
const SCRAPES: usize = 20;

/// What the median scrape of a thousand devices may take.
const SCRAPE_AT_MOST_MS: f64 = 50.0;

/// Between two looks of one.
const EVERY: Duration = Duration::from_millis(500);
