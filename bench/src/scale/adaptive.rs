//! What the idle policy `adaptive` saves and costs: processor time of idle devices, the time to wake for a packet, and
//! throughput when busy beside that of `poll`.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use hdrhistogram::Histogram;
use ringway_guest::lane::histogram;
use ringway_pmd::notify::EventFd;
use ringway_ring::tsc;
use rustix::event::{PollFd, PollFlags, poll};
use serde::{Deserialize, Serialize};

use super::curve::{Curve, Point};
use super::load::{balance, round};
use super::{Options, ScaleError, Subject, driven, on_core};
use crate::stats::Latency;
use crate::{host, idle, progress};

/// What was found.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Adaptive {
    /// Devices that idled.
    pub idle_devices: usize,
    /// Processor time of the daemon with them, in per cent of a core.
    pub idle_cpu_percent: f64,
    /// Waking.
    pub wake: Wake,
    /// Throughput under `poll`, then under `adaptive`.
    pub busy: [Point; 2],
}

/// One frame there and back through a worker that slept, from before it is written to after it is seen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Wake {
    /// Frames sent.
    pub samples: usize,
    /// Times that the worker had really slept and woke.
    pub wakeups: u64,
    /// Between two frames, in microseconds.
    pub pause_us: u64,
    /// Samples are discarded if the guest's own core was away for longer, in microseconds.
    pub bound_us: u64,
    /// How many were.
    pub discarded: usize,
    /// Those that were kept, in nanoseconds.
    pub latency: Latency,
    /// All of them.
    pub unfiltered: Latency,
    /// The same, of a thread that does nothing but wait for an eventfd in place of the worker: what the machine takes.
    pub bare: Latency,
}

/// Devices that idle.
pub const IDLE_DEVICES: usize = 100;

/// Measures all of it.
pub fn measure(options: &Options) -> Result<Adaptive, ScaleError> {
    let idle = idle::measure(IDLE_DEVICES, IDLE_FOR, |connected| {
        progress::show(&format!("{connected} of {IDLE_DEVICES} connected"));
    })?;
    progress::show("waking");
    let wake = wake(options)?;
    let busy = busy(options)?;
    progress::show("");
    Ok(Adaptive { idle_devices: idle.devices, idle_cpu_percent: idle.cpu_percent, wake, busy })
}

fn wake(options: &Options) -> Result<Wake, ScaleError> {
    let bare = bare(options)?.latency();
    let mut subject = Subject::start(options, &["--idle", "adaptive"])?;
    let mut guest = subject.guest("sleepy", "sim/net", driven(options))?;
    on_core(options.guest_core, || {
        let before = subject.worker()?.wakeups;
        let failed = |source| ScaleError::Guest { device: "sleepy".to_owned(), source };
        // Sending includes the kick, whose cost is the guest's.
        let woken = Woken::measure(|send| Ok(guest.turn(u32::from(send)).map_err(failed)? > 0))?;
        let wakeups = subject.worker()?.wakeups - before;
        Ok(Wake {
            samples: SAMPLES,
            wakeups,
            pause_us: PAUSE.as_micros() as u64,
            bound_us: GAP.as_micros() as u64,
            discarded: woken.discarded,
            latency: woken.latency(),
            unfiltered: Latency::of(&woken.all, tsc::hertz()),
            bare,
        })
    })
}

/// A thread on the worker's core that waits for an eventfd.
fn bare(options: &Options) -> Result<Woken, ScaleError> {
    let call = EventFd::new().map_err(ScaleError::system("cannot make an eventfd"))?;
    // Relaxed throughout: numbers that stand for nothing else.
    let (woken, is_over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let sleep = || {
        host::pin(options.worker_core);
        while !is_over.load(Ordering::Relaxed) {
            let _ = poll(&mut [PollFd::from_borrowed_fd(call.as_fd(), PollFlags::IN)], None);
            call.clear();
            woken.fetch_add(1, Ordering::Relaxed);
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(sleep);
        let found = on_core(options.guest_core, || {
            let mut before = 0;
            Woken::measure(|send| {
                if send {
                    before = woken.load(Ordering::Relaxed);
                    call.signal();
                }
                Ok(woken.load(Ordering::Relaxed) > before)
            })
        });
        is_over.store(true, Ordering::Relaxed);
        call.signal();
        found
    })
}

/// How long it took to wake somebody, again and again.
struct Woken {
    kept: Histogram<u64>,
    all: Histogram<u64>,
    discarded: usize,
}

impl Woken {
    /// Waits for each answer of `ask`, which is told whether to wake first, then after a pause begins again.
    fn measure(mut ask: impl FnMut(bool) -> Result<bool, ScaleError>) -> Result<Woken, ScaleError> {
        let cycles = |time: Duration| (time.as_secs_f64() * tsc::hertz() as f64) as u64;
        let (pause, bound) = (cycles(PAUSE), cycles(GAP));
        let mut found = Woken { kept: histogram(), all: histogram(), discarded: 0 };
        for _ in 0..SAMPLES {
            // Awake itself: only the other's sleep is measured.
            let rest = tsc::cycles() + pause;
            while tsc::cycles() < rest {
                std::hint::spin_loop();
            }
            let (took, gap) = once(&mut ask)?;
            found.all.saturating_record(took);
            if gap > bound {
                found.discarded += 1;
            } else {
                found.kept.saturating_record(took);
            }
        }
        Ok(found)
    }

    fn latency(&self) -> Latency {
        Latency::of(&self.kept, tsc::hertz())
    }
}

/// Wakes and waits for the answer: how long it took, and the longest time between two looks after that.
fn once(ask: &mut impl FnMut(bool) -> Result<bool, ScaleError>) -> Result<(u64, u64), ScaleError> {
    let begun = tsc::cycles();
    let mut is_back = ask(true)?;
    let (mut now, mut gap) = (tsc::cycles(), 0);
    while !is_back {
        is_back = ask(false)?;
        let then = now;
        now = tsc::cycles();
        gap = gap.max(now - then);
        if now - begun > tsc::hertz() {
            return Err(ScaleError::NoFrame { device: "sleepy".to_owned(), within: Duration::from_secs(1) });
        }
    }
    Ok((now - begun, gap))
}

/// Throughput under both policies, in turns. The daemons are started anew for each round: a worker that polls would take
/// the core from the other one.
fn busy(options: &Options) -> Result<[Point; 2], ScaleError> {
    let mut lost_frames = [0; 2];
    let curve = Curve::measure("policy", &[0, 1], options.rounds, |place| {
        let policy = POLICIES[place];
        progress::show(&format!("busy under {policy}"));
        let mut subject = Subject::start(options, &["--idle", policy])?;
        let mut guests = [subject.guest("busy", "sim/net", driven(options))?];
        on_core(options.guest_core, || {
            let done = round(&mut subject, &mut guests, options.round)?;
            lost_frames[place] += balance(&guests);
            Ok(done)
        })
    })?;
    let mut points = curve.points.into_iter().zip(lost_frames).map(|(point, lost)| Point { lost, ..point });
    match (points.next(), points.next()) {
        (Some(poll), Some(adaptive)) => Ok([poll, adaptive]),
        _ => Err(ScaleError::NoWorker(options.worker_core)),
    }
}

/// What is compared, and with what.
pub const POLICIES: [&str; 2] = ["poll", "adaptive"];

const IDLE_FOR: Duration = Duration::from_secs(10);

const SAMPLES: usize = 5000;

/// A worker sleeps after some 100 us without work.
const PAUSE: Duration = Duration::from_millis(1);

/// A guest that spins looks every fraction of a microsecond.
const GAP: Duration = Duration::from_micros(10);
