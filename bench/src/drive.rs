//! A round of load on lanes, of networks or of disks: on threads pinned to cores, a warm-up that does not count, the time that
//! does, a drain.

use std::thread;
use std::time::Duration;

use ringway_guest::pace::Pace;
use ringway_guest::presence::Presence;
use ringway_ring::tsc;

use crate::host;

/// Lanes that one thread drives.
pub(crate) trait Lanes: Send {
    /// What goes wrong.
    type Error: Send;

    /// So many of them, the first, send.
    fn senders(&self) -> usize;
    /// One turn of each: what is due by its pace is sent, or without paces as much as goes.
    fn turn(&mut self, paces: &mut [Pace], presence: &mut Presence) -> Result<(), Self::Error>;
    /// Frames or requests that ever came back, and the bytes in them.
    fn came(&self) -> (u64, u64);
    /// Begins to record latencies anew.
    fn forget_latencies(&mut self);
    /// Takes what is under way.
    fn drain(&mut self, presence: &mut Presence) -> Result<(), Self::Error>;
}

/// What the threads found together.
#[derive(Debug, Default)]
pub(crate) struct Share {
    /// Frames or requests that came back in the time that counts.
    pub(crate) came: u64,
    /// Bytes in them.
    pub(crate) bytes: u64,
    /// What was due and could not be sent.
    pub(crate) unsent: u64,
    /// The time that counts.
    pub(crate) cycles: u64,
    /// The longest time between two turns, in cycles.
    pub(crate) gap: u64,
    /// How often a thread was off its core.
    pub(crate) absences: u64,
}

impl Share {
    fn add(&mut self, other: &Share) {
        self.came += other.came;
        self.bytes += other.bytes;
        self.unsent += other.unsent;
        self.cycles = self.cycles.max(other.cycles);
        self.gap = self.gap.max(other.gap);
        self.absences += other.absences;
    }
}

/// Drives each share on a core of its own; with a rate, each lane that sends has that of its own. `gone` is the error of a
/// thread that panicked.
pub(crate) fn on_cores<L: Lanes>(
    shares: Vec<L>,
    cores: &[usize],
    rate: Option<f64>,
    duration: Duration,
    gone: impl Fn(String) -> L::Error,
) -> Result<Share, L::Error> {
    let results: Vec<Result<Share, L::Error>> = thread::scope(|scope| {
        let threads: Vec<_> = shares
            .into_iter()
            .zip(cores)
            .map(|(mut lanes, core)| {
                scope.spawn(move || {
                    host::pin(*core);
                    drive(&mut lanes, rate, duration)
                })
            })
            .collect();
        let gone = || Err(gone("bug: a thread of the generator panicked".to_owned()));
        threads.into_iter().map(|thread| thread.join().unwrap_or_else(|_| gone())).collect()
    });
    let mut sum = Share::default();
    for share in results {
        sum.add(&share?);
    }
    Ok(sum)
}

/// On this thread.
fn drive<L: Lanes>(lanes: &mut L, rate: Option<f64>, duration: Duration) -> Result<Share, L::Error> {
    let hertz = tsc::hertz();
    let cycles = |span: Duration| (span.as_secs_f64() * hertz as f64) as u64;
    let begun = tsc::cycles();
    // Lanes are due at different times, not all at once.
    let senders = lanes.senders();
    let mut paces: Vec<Pace> = match rate {
        None => Vec::new(),
        Some(rate) => (0..senders)
            .map(|nth| {
                let shift = hertz as f64 / rate * nth as f64 / senders as f64;
                Pace::new(begun + shift as u64, rate, hertz)
            })
            .collect(),
    };
    let mut presence = Presence::begin();
    turns(lanes, &mut paces, begun + cycles(WARM_UP), &mut presence)?;
    let before = lanes.came();
    lanes.forget_latencies();
    let absences = presence.absences();
    let start = tsc::cycles();
    let gap = turns(lanes, &mut paces, start + cycles(duration), &mut presence)?;
    let absences = presence.absences() - absences;
    let end = tsc::cycles();
    let after = lanes.came();
    let unsent = paces.iter().map(|pace| pace.missed(end.saturating_sub(cycles(GRACE)))).sum();
    lanes.drain(&mut presence)?;
    Ok(Share {
        came: after.0.saturating_sub(before.0),
        bytes: after.1.saturating_sub(before.1),
        unsent,
        cycles: end - start,
        gap,
        absences,
    })
}

/// Turns until `end`; returns the longest time between two of them, in cycles.
fn turns<L: Lanes>(
    lanes: &mut L,
    paces: &mut [Pace],
    end: u64,
    presence: &mut Presence,
) -> Result<u64, L::Error> {
    let (mut last, mut gap) = (tsc::cycles(), 0);
    loop {
        lanes.turn(paces, presence)?;
        let now = tsc::cycles();
        gap = gap.max(now - last);
        last = now;
        if now >= end {
            return Ok(gap);
        }
    }
}

/// The first frames or requests find cold caches and a sleeping worker.
const WARM_UP: Duration = Duration::from_millis(50);

/// What was due in the last moment before the end need not have been sent.
const GRACE: Duration = Duration::from_millis(1);
