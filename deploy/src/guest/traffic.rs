//! Traffic in the background, for tests of what happens to it when Ringway, its device or a driver goes and comes.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ringway_lab::agent::{TrafficOrder, TrafficReport};
use ringway_lab::ensure;
use ringway_lab::error::{Context, Error, Result};
use ringway_lab::exchange::new_run;
use ringway_lab::frame::{Frame, LONGEST, SHORTEST};

use crate::counts::Counts;
use crate::wire::{Received, Rounds, Sent, Wire};

/// Running traffic on one NIC.
pub(crate) struct Traffic {
    counts: Arc<Counts>,
    thread: JoinHandle<()>,
}

impl Traffic {
    /// Starts; the NIC must be there and its link up.
    pub(crate) fn start(order: TrafficOrder) -> Result<Traffic> {
        ensure!(
            (SHORTEST..=LONGEST).contains(&order.length),
            "the length must lie within {SHORTEST}..={LONGEST}"
        );
        ensure!(order.window > 0 && order.flows > 0, "window and flows are at least 1");
        let wire = Wire::open(&order.nic, order.swapped)?;
        let counts = Arc::new(Counts::new());
        let thread = std::thread::Builder::new()
            .name("traffic".into())
            .spawn({
                let counts = Arc::clone(&counts);
                move || keep_going(&order, &counts, wire)
            })
            .context(|| "traffic thread".into())?;
        Ok(Traffic { counts, thread })
    }

    /// What has been seen so far.
    pub(crate) fn report(&self) -> TrafficReport {
        self.counts.report()
    }

    /// Stops sending, gives frames under way a moment, and reports.
    pub(crate) fn stop(self) -> Result<TrafficReport> {
        self.counts.stop.store(true, Ordering::Release);
        self.thread.join().map_err(|_| Error::new("the traffic's thread panicked"))?;
        Ok(self.counts.report())
    }
}

/// Sends and receives until told to stop; a NIC that goes away is looked for until it is back.
fn keep_going(order: &TrafficOrder, counts: &Counts, wire: Wire) {
    let mut wire = Some(wire);
    let mut state =
        State { run: new_run(), next: 0, seen: vec![0; REMEMBERED as usize], rounds: Rounds::new() };
    let mut next_line = Instant::now() + Duration::from_secs(1);
    while !counts.stop.load(Ordering::Acquire) {
        if Instant::now() >= next_line {
            next_line += Duration::from_secs(1);
            eprintln!(
                "traffic {}: sent {} received {} refused {}",
                order.nic,
                counts.sent.load(Ordering::Relaxed),
                counts.received.load(Ordering::Relaxed),
                counts.refused.load(Ordering::Relaxed)
            );
        }
        match wire.as_mut() {
            Some(open) => {
                if !state.burst(order, counts, open) {
                    wire = None;
                }
            }
            None => {
                std::thread::sleep(Duration::from_millis(20));
                wire = Wire::open(&order.nic, order.swapped).ok();
            }
        }
    }
    if let Some(wire) = wire.as_mut() {
        let end = Instant::now() + GIVEN_UP;
        while Instant::now() < end {
            state.take(order, counts, wire);
            wire.wait(Duration::from_millis(5));
        }
    }
}

struct State {
    run: u32,
    /// The next frame's sequence number.
    next: u64,
    /// By sequence number modulo its length: the number + 1 of the last frame that came back there.
    seen: Vec<u64>,
    rounds: Rounds,
}

impl State {
    /// Fills the window, then waits for its frames; `false` when the NIC is gone.
    fn burst(&mut self, order: &TrafficOrder, counts: &Counts, wire: &mut Wire) -> bool {
        let mut out = 0_u64;
        for _ in 0..order.window {
            let frame = Frame {
                run: self.run,
                sequence: self.next,
                flow: (self.next % u64::from(order.flows)) as u16,
                length: order.length,
            };
            match wire.send(frame) {
                Sent::Yes => {
                    self.next += 1;
                    out += 1;
                    counts.sent.fetch_add(1, Ordering::AcqRel);
                    self.rounds.step();
                }
                Sent::Later => break,
                Sent::Refused(errno) => {
                    counts.refused.fetch_add(1, Ordering::AcqRel);
                    if errno != rustix::io::Errno::NOBUFS {
                        return false;
                    }
                    break;
                }
            }
        }
        let mut back = 0;
        let mut last = Instant::now();
        loop {
            match self.take(order, counts, wire) {
                Some(0) => {
                    if last.elapsed() >= GIVEN_UP || counts.stop.load(Ordering::Acquire) {
                        return true;
                    }
                    wire.wait(Duration::from_millis(2));
                }
                Some(some) => {
                    back += some;
                    last = Instant::now();
                    if back >= out {
                        return true;
                    }
                }
                None => return false,
            }
        }
    }

    /// Takes what has come back and counts it; `None` when the NIC is gone.
    fn take(&mut self, order: &TrafficOrder, counts: &Counts, wire: &mut Wire) -> Option<u64> {
        let mut taken = 0;
        loop {
            match wire.receive(self.run, |_| order.length) {
                Ok(Received::Nothing) => return Some(taken),
                Ok(Received::Foreign) => {}
                Ok(Received::Corrupt(_, how)) => {
                    eprintln!("traffic {}: {how}", order.nic);
                    counts.corrupt.fetch_add(1, Ordering::AcqRel);
                    taken += 1;
                }
                Ok(Received::Intact(frame)) => {
                    let slot = &mut self.seen[(frame.sequence % REMEMBERED) as usize];
                    if *slot > frame.sequence {
                        counts.duplicated.fetch_add(1, Ordering::AcqRel);
                        continue;
                    }
                    *slot = frame.sequence + 1;
                    taken += 1;
                    let now_ms = counts.now_ms();
                    let gap_ms = now_ms.saturating_sub(counts.last_ms.load(Ordering::Acquire));
                    counts.longest_gap_ms.fetch_max(gap_ms, Ordering::AcqRel);
                    counts.last_ms.store(now_ms, Ordering::Release);
                    counts.received.fetch_add(1, Ordering::AcqRel);
                }
                Err(_) => return None,
            }
        }
    }
}

const GIVEN_UP: Duration = Duration::from_millis(20);
const REMEMBERED: u64 = 1 << 16;
