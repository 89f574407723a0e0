//! What the idle policy `adaptive` saves and costs: processor time of idle devices, the time to wake for a packet, and
//! throughput when busy beside that of `poll`.

use std::time::Duration;

use ringway_control::guest::Guest;
use ringway_ring::tsc;
use serde::{Deserialize, Serialize};

use super::curve::{Curve, Point};
use super::load::{balance, round};
use super::{Options, ScaleError, Subject, driven, on_core};
use crate::stats::{Latency, histogram};
use crate::{idle, progress};

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
    let mut subject = Subject::start(options, &["--idle", "adaptive"])?;
    let mut guest = subject.guest("sleepy", "sim/net", driven(options))?;
    on_core(options.guest_core, || {
        let cycles = |time: Duration| (time.as_secs_f64() * tsc::hertz() as f64) as u64;
        let (pause, bound) = (cycles(PAUSE), cycles(GAP));
        let (mut kept, mut all) = (histogram(), histogram());
        let before = subject.worker()?.wakeups;
        let mut discarded = 0;
        for _ in 0..SAMPLES {
            // Awake itself: only the worker's sleep is measured.
            let rest = tsc::cycles() + pause;
            while tsc::cycles() < rest {
                std::hint::spin_loop();
            }
            let (took, gap) = one_frame(&mut guest)?;
            all.saturating_record(took);
            if gap > bound {
                discarded += 1;
            } else {
                kept.saturating_record(took);
            }
        }
        let wakeups = subject.worker()?.wakeups - before;
        Ok(Wake {
            samples: SAMPLES,
            wakeups,
            pause_us: PAUSE.as_micros() as u64,
            bound_us: GAP.as_micros() as u64,
            discarded,
            latency: Latency::of(&kept, tsc::hertz()),
            unfiltered: Latency::of(&all, tsc::hertz()),
        })
    })
}

/// Sends a frame and waits for it: how long it took, and the longest time between two looks after it was sent.
fn one_frame(guest: &mut Guest) -> Result<(u64, u64), ScaleError> {
    let failed = |source| ScaleError::Guest { device: "sleepy".to_owned(), source };
    let begun = tsc::cycles();
    // Sending includes the kick, whose cost is the guest's.
    let mut received = guest.turn(1).map_err(failed)?;
    let (mut now, mut gap) = (tsc::cycles(), 0);
    while received == 0 {
        received = guest.turn(0).map_err(failed)?;
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
