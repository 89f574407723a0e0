//! What looking costs: a busy device beside a thousand idle ones, some of them with guests, with nobody who looks, and with scrapers and `ringway top`s.
//!
//! One daemon for both, in turns. All of it but the worker is on the guests' core, those who look included, as an operator keeps a
//! worker's core to the worker; so it is the worker's cycles that tell, not the throughput of guests that share their core.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ringway_guest::GuestOptions;
use ringway_ring::memory::PageKind;
use rustix::thread::{CpuSet, Pid, sched_setaffinity};

use super::curve::Curve;
use super::curves::{IDLE, Setup};
use super::{Options, ScaleError, Subject, driven, on_core};
use crate::{daemon, mortal, progress};

/// Those who look.
pub const WATCHERS: [usize; 2] = [0, SCRAPERS + TOPS];

/// Measures the busy device's worker with as many who look.
pub fn measure(options: &Options) -> Result<Curve, ScaleError> {
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
                Some(watchers) if watchers.looks.load(Ordering::Relaxed) < WATCHERS[place] => {
                    Err(ScaleError::NobodyLooked(options.round))
                }
                _ => Ok(round),
            }
        })
    });
    progress::show("");
    let mut curve = measured?;
    for point in &mut curve.points {
        point.lost = setup.lost();
    }
    Ok(curve)
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

/// Scrapers, and `ringway top`s. They end when dropped.
struct Watchers {
    stop: Arc<AtomicBool>,
    /// Of all together.
    looks: Arc<AtomicUsize>,
    scrapers: Vec<JoinHandle<()>>,
    tops: Vec<Child>,
}

impl Watchers {
    fn start(ctl: &Path, metrics: &Path) -> Result<Watchers, ScaleError> {
        let (stop, looks) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let scrapers = (0..SCRAPERS).map(|_| {
            let (stop, looks, metrics) = (Arc::clone(&stop), Arc::clone(&looks), metrics.to_owned());
            std::thread::spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    looks.fetch_add(scrape(&metrics).map_or(0, usize::from), Ordering::Relaxed);
                    std::thread::sleep(EVERY);
                }
            })
        });
        let mut watchers = Watchers { scrapers: scrapers.collect(), tops: Vec::new(), looks, stop };
        for _ in 0..TOPS {
            let failed = ScaleError::system("cannot start ringway top");
            let mut top = mortal::command(daemon::beside("ringway")?);
            top.arg("--ctl").arg(ctl).args(["-j", "top", "interval", "0.5"]);
            let mut top = top.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().map_err(failed)?;
            if let Some(lines) = top.stdout.take() {
                let looks = Arc::clone(&watchers.looks);
                // It ends with the program that it reads.
                std::thread::spawn(move || {
                    for line in BufReader::new(lines).lines().map_while(Result::ok) {
                        looks.fetch_add(usize::from(line.contains("\"busy0\"")), Ordering::Relaxed);
                    }
                });
            }
            watchers.tops.push(top);
        }
        Ok(watchers)
    }
}

impl Drop for Watchers {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for top in &mut self.tops {
            let _ = top.kill();
            let _ = top.wait();
        }
        for scraper in self.scrapers.drain(..) {
            let _ = scraper.join();
        }
    }
}

/// Whether the busy device is in what a scraper is told.
fn scrape(metrics: &Path) -> std::io::Result<bool> {
    let mut stream = UnixStream::connect(metrics)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n")?;
    let mut told = String::new();
    stream.read_to_string(&mut told)?;
    Ok(told.contains("dev=\"busy0\""))
}

/// Idle devices that have guests: more need more descriptors than a process may have on many hosts.
const CONNECTED: usize = 256;

const SCRAPERS: usize = 2;
const TOPS: usize = 3;

/// Between two looks of one.
const EVERY: Duration = Duration::from_millis(500);
