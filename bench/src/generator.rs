//! The load generator: ports on one or more threads, each pinned to a core, that send frames and account for every one.
//!
//! Two kinds of load. *Closed loop*: as many frames under way as the window lets, each one's return brings the next; says
//! how many a back-end moves. *Open loop*: frames at intended times, whatever became of those before; says how long
//! they take. Either ends with a drain, so that what has not come by then is lost, not late.
//!
//! It knows nothing of what is behind the sockets.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use ringway_guest::guest::Flows;
use ringway_guest::lane::{Lane, Offer, histogram};
use ringway_guest::ledger::Counts;
use ringway_guest::pace::Pace;
use ringway_guest::presence::Presence;
use ringway_guest::{Guest, GuestError};
use ringway_ring::memory::PageKind;
use ringway_ring::tsc;
use ringway_vhost_user::frontend::{Frontend, FrontendError};
use serde::{Deserialize, Serialize};

use crate::drive::{self, Lanes};
use crate::error::BenchError;
use crate::options::PortOptions;
use crate::rounds::Timed;
use crate::stats::Latency;

/// How frames are offered.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Load {
    /// As many as the window lets.
    Closed,
    /// So many a second, over all ports.
    Open {
        /// Frames a second.
        pps: f64,
    },
}

/// What one round came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Round {
    /// How long frames were sent, in seconds.
    pub seconds: f64,
    /// Millions of frames a second that came back intact in that time; of a link, both ways together.
    pub mpps: f64,
    /// Gigabits a second of them, from the Ethernet header on, without frame check sequence.
    pub gbps: f64,
    /// What became of each frame, after the drain.
    pub counts: Counts,
    /// From intended sending to receiving, in nanoseconds.
    pub latency: Latency,
    /// Frames whose latency was not recorded since the generator was off its core meanwhile.
    pub set_aside: u64,
    /// How often that was.
    pub absences: u64,
    /// Frames of an open loop that were due and could not be sent, since all buffers were under way.
    pub unsent: u64,
    /// Kicks that the back-end asked for.
    pub kicks: u64,
    /// The longest time in which the generator was not running, in microseconds.
    pub gap_us: f64,
}

impl Timed for Round {
    fn gap_us(&self) -> f64 {
        self.gap_us
    }
}

impl Round {
    /// Every frame that was due came back once, in order and intact.
    pub fn is_lossless(&self) -> bool {
        self.counts.faults() == 0 && self.unsent == 0
    }
}

/// Connected ports, ready to send.
#[derive(Debug)]
pub struct Generator {
    ports: Vec<(String, Guest)>,
    cores: Vec<usize>,
    /// So many of the first queue pairs send; the others take what comes.
    talkers: usize,
    /// Faults of the rounds before: what was lost then does not come now.
    before: Counts,
    late: Late,
}

/// What rounds gave up, and may still come: a host that has no time for the back-end makes a round end without it.
#[derive(Debug, Default, PartialEq, Eq)]
struct Late(u64);

impl Late {
    /// Frames that came twice in a round, of those whose numbers are not looked at: what came beyond what was sent in it, and
    /// what is late of the one before. A round that sends takes no more as late than its own.
    fn came_beyond(&mut self, sent: u64, received: u64) -> u64 {
        let twice = received.saturating_sub(sent + self.0);
        self.0 = if sent > 0 { sent.saturating_sub(received) } else { self.0.saturating_sub(received) };
        twice
    }
}

impl Generator {
    /// Connects a port to each socket. Its lanes are shared out over `cores`, each of which has a thread during a
    /// round; the caller's own is not pinned.
    pub fn open(
        sockets: &[PathBuf],
        options: &PortOptions,
        cores: &[usize],
    ) -> Result<Generator, BenchError> {
        let flows = sockets.len() * usize::from(options.pairs);
        let mut flows = Flows::new(flows);
        let mut ports = Vec::with_capacity(sockets.len());
        for ((port, socket), frontend) in sockets.iter().enumerate().zip(frontends(sockets, options)) {
            let name = socket.display().to_string();
            let guest = frontend
                .map_err(GuestError::from)
                .and_then(|frontend| Guest::start_among(frontend, options.guest(port), &flows));
            match guest {
                Ok(guest) => ports.push((name, guest)),
                Err(source) => return Err(BenchError::Guest { socket: name, source }),
            }
            flows.first += options.pairs;
        }
        Ok(Generator {
            ports,
            cores: cores.to_vec(),
            talkers: usize::MAX,
            before: Counts::default(),
            late: Late::default(),
        })
    }

    /// Lets only the first queue pairs send.
    pub fn let_talk(&mut self, talkers: usize) {
        self.talkers = talkers;
    }

    /// Lets only the first queue pairs send, all after one frame each: then a switch knows where each of them is.
    ///
    /// # Errors
    /// The back-end broke the rules of a ring.
    pub fn introduce(&mut self, talkers: usize) -> Result<(), BenchError> {
        self.let_talk(talkers);
        let mut lanes: Vec<&mut Lane> =
            self.ports.iter_mut().flat_map(|(_, guest)| guest.lanes_mut()).collect();
        let mut presence = Presence::begin();
        lanes.iter_mut().for_each(|lane| lane.look_at_all(true));
        for lane in &mut lanes {
            lane.turn(Offer::AtMost(1), &mut presence).map_err(of(lane))?;
        }
        drain(&mut lanes, &mut presence)?;
        lanes.iter_mut().for_each(|lane| lane.look_at_all(false));
        self.before = self.counts();
        Ok(())
    }

    /// The pages that its memory stands on.
    pub fn page_kind(&self) -> Option<PageKind> {
        self.ports.first().map(|(_, guest)| guest.page_kind())
    }

    /// One round: a warm-up that does not count, `duration` that does, a drain.
    pub fn round(&mut self, load: Load, duration: Duration) -> Result<Round, BenchError> {
        let every = match load {
            Load::Closed => CLOSED_SAMPLE,
            Load::Open { pps } => (pps / OPEN_SAMPLES_PER_SECOND).max(1.0) as u64,
        };
        let mut lanes: Vec<&mut Lane> =
            self.ports.iter_mut().flat_map(|(_, guest)| guest.lanes_mut()).collect();
        let count = lanes.len();
        let talkers = self.talkers.min(count);
        let cores = self.cores.len().clamp(1, count.max(1));
        // Lane i belongs to core i mod n.
        let mut shares: Vec<Ports<'_>> =
            (0..cores).map(|_| Ports { lanes: Vec::new(), talkers: 0 }).collect();
        for (index, lane) in lanes.drain(..).enumerate() {
            lane.sample_every(every);
            if let Some(share) = shares.get_mut(index % cores) {
                share.lanes.push(lane);
                share.talkers += usize::from(index < talkers);
            }
        }
        let per_lane = match load {
            Load::Closed => None,
            Load::Open { pps } => Some(pps / talkers.max(1) as f64),
        };
        let sum = drive::on_cores(shares, &self.cores, per_lane, duration, BenchError::Usage)?;
        let hertz = tsc::hertz();
        let seconds = sum.cycles as f64 / hertz as f64;
        // What arrives on another core's lane may come while this one's were drained already: the books are closed when
        // all threads are done.
        let all = self.counts();
        let mut counts = all.since(&self.before).closed();
        counts.duplicated += self.late.came_beyond(counts.sent, counts.received);
        self.before = all;
        let mut latency = histogram();
        let (mut kicks, mut set_aside) = (0, 0);
        for lane in self.ports.iter_mut().flat_map(|(_, guest)| guest.lanes_mut()) {
            // Same bounds and precision: adding cannot fail.
            let _ = latency.add(lane.take_latency());
            kicks += lane.take_kicks();
            set_aside += lane.take_set_aside();
        }
        Ok(Round {
            seconds,
            mpps: sum.came as f64 / seconds / 1e6,
            gbps: sum.bytes as f64 * 8.0 / seconds / 1e9,
            counts,
            latency: Latency::of(&latency, hertz),
            set_aside,
            absences: sum.absences,
            unsent: sum.unsent,
            kicks,
            gap_us: sum.gap as f64 / hertz as f64 * 1e6,
        })
    }

    fn counts(&self) -> Counts {
        let lanes = self.ports.iter().flat_map(|(_, guest)| guest.lanes());
        lanes.fold(Counts::default(), |sum, lane| sum.plus(&lane.counts()))
    }

    /// Stops every ring in order and leaves.
    pub fn close(self) -> Result<(), BenchError> {
        self.ports.into_iter().try_for_each(|(socket, guest)| {
            guest.stop().map_err(|source| BenchError::Guest { socket, source })?;
            Ok(())
        })
    }
}

/// Connects to back-ends, or waits for them, all at once: one that has many ports comes to them in its own order and time.
fn frontends(sockets: &[PathBuf], options: &PortOptions) -> Vec<Result<Frontend, FrontendError>> {
    if !options.listen {
        return sockets.iter().map(|socket| Frontend::connect(socket, options.patience)).collect();
    }
    thread::scope(|scope| {
        let waiting: Vec<_> =
            sockets.iter().map(|socket| scope.spawn(|| Frontend::listen(socket, options.patience))).collect();
        let lost = || Err(FrontendError::from(std::io::Error::other("bug: a thread that waited panicked")));
        waiting.into_iter().map(|thread| thread.join().unwrap_or_else(|_| lost())).collect()
    })
}

/// Names the queue pair in which something went wrong.
fn of(lane: &Lane) -> impl FnOnce(GuestError) -> BenchError + use<> {
    let flow = lane.flow();
    move |source| BenchError::Flow { flow, source }
}

/// Lanes of one thread, of which the first `talkers` send.
struct Ports<'a> {
    lanes: Vec<&'a mut Lane>,
    talkers: usize,
}

impl Lanes for Ports<'_> {
    type Error = BenchError;

    fn senders(&self) -> usize {
        self.talkers
    }

    #[inline]
    fn turn(&mut self, paces: &mut [Pace], presence: &mut Presence) -> Result<(), BenchError> {
        for (index, lane) in self.lanes.iter_mut().enumerate() {
            let offer = match paces.get_mut(index) {
                Some(pace) => Offer::Due(pace),
                None if index < self.talkers => Offer::All,
                None => Offer::Nothing,
            };
            lane.turn(offer, presence).map_err(of(lane))?;
        }
        Ok(())
    }

    fn came(&self) -> (u64, u64) {
        let counts = self.lanes.iter().fold(Counts::default(), |sum, lane| sum.plus(&lane.counts()));
        (counts.received, counts.bytes)
    }

    fn forget_latencies(&mut self) {
        for lane in &mut self.lanes {
            lane.take_latency();
            lane.take_set_aside();
        }
    }

    fn drain(&mut self, presence: &mut Presence) -> Result<(), BenchError> {
        drain(&mut self.lanes, presence)
    }
}

/// Receives until nothing is under way any more, or nothing has come for some time.
fn drain(lanes: &mut [&mut Lane], presence: &mut Presence) -> Result<(), BenchError> {
    let patience = tsc::hertz() / DRAINED_PER_SECOND;
    let mut last = tsc::cycles();
    loop {
        let (mut under_way, mut received) = (0, 0);
        for lane in lanes.iter_mut() {
            received += lane.turn(Offer::Nothing, presence).map_err(of(lane))?;
            under_way += lane.under_way(tsc::cycles());
        }
        let now = tsc::cycles();
        if received > 0 {
            last = now;
        }
        // Doubled and late frames come behind the last one that was awaited.
        let patience = if under_way == 0 { patience / 16 } else { patience };
        if now - last > patience {
            return Ok(());
        }
    }
}

/// In a closed loop, one frame in so many has its latency recorded.
const CLOSED_SAMPLE: u64 = 16;

/// In an open loop, so many are recorded a second at least, if there are so many.
const OPEN_SAMPLES_PER_SECOND: f64 = 1e6;

/// What has not come for half a second does not come.
const DRAINED_PER_SECOND: u64 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_that_comes_in_a_later_round_came_once() {
        let mut late = Late::default();
        // Sent, received, came twice.
        for (sent, received, twice) in [
            (1000, 1000, 0),
            (1000, 1001, 1),
            (1000, 744, 0),
            // It sends nothing, and has some of them, and then all.
            (0, 100, 0),
            (0, 0, 0),
            (500, 656, 0),
            (500, 501, 1),
            // What is lost for good is late for one round that sends.
            (1000, 999, 0),
            (1000, 1000, 0),
            (1000, 1001, 1),
        ] {
            assert_eq!(late.came_beyond(sent, received), twice, "{sent} {received} {late:?}");
        }
    }
}
