//! The pump that carries frames from source queues (drivers' transmit queues, a kernel netdev) to one destination (a
//! driver's receive queue, a kernel netdev): one copy, straight from the sender's buffer into the receiver's.
//!
//! ```text
//!   guest's TX rings --peek--> frames --copy--> buffers <--peek-- guest's RX ring
//!        ^                                                           ^
//!        +-- complete, publish once          complete, publish once --+
//! ```
//!
//! The pump owns every ring and lives on one worker. Without a buffer on the receiving side the senders' descriptors
//! stay for at most [`BLOCKED_NS`]; then their frames are dropped and counted, burst by burst, until buffers come.
//!
//! Budget: no allocation, no lock, no panic; no system call but the call that a driver asked for, and one a burst for
//! a kernel netdev.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ringway_engine::{Armed, Budget, Polled, Pump};

use super::announce::{self, Announcement};
use super::frame::{Frames, prefetch};
use super::offload::Offloads;
use super::receive::Desk;
use super::side::{Load, Sink, Source, Way};
use crate::counters::DropReason;

/// How long a sender waits for a receiver without buffers before its frames are dropped: 10 ms, well above what a
/// running guest needs to refill, well below what a sender's transport protocol takes for a lost link.
pub const BLOCKED_NS: u64 = 10_000_000;

/// What a transfer does to the frames it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferOptions {
    /// Exchange source and destination address on the way.
    pub swap_mac: bool,
    /// What becomes of frames while there is no destination.
    pub absent: DropReason,
    /// Cycles per second of the worker's clock.
    pub hertz: u64,
}

/// A destination and the sources that feed it. It may be absent while its guest has not started it.
#[derive(Debug)]
pub struct Transfer {
    sink: Option<Sink>,
    sources: Vec<Feeder>,
    /// Which source is asked first in the next poll.
    first: usize,
    frames: Box<Frames>,
    desk: Desk,
    options: TransferOptions,
    /// Of the port that the sources are of.
    announcement: Option<Arc<Announcement>>,
    blocked_cycles: u64,
    /// When the receiver was first found without a buffer for the frame in line; None while it takes frames.
    blocked_since: Option<u64>,
    /// Time of the last poll, for the sleep that `arm` allows.
    now: u64,
    /// It takes no new work.
    is_stopping: bool,
}

/// A source, and how far the frame in line has come.
#[derive(Debug)]
struct Feeder {
    source: Source,
    /// Segments of it that were delivered.
    resume: u32,
    /// Frames done with whose receiver still reads their memory.
    held: usize,
}

/// What one source's burst came to.
enum Step {
    Idle,
    Moved(u32),
    Blocked,
}

impl Transfer {
    /// Binds the two sides.
    ///
    /// # Errors
    /// The kernel gave no memory to finish frames in.
    pub fn new(
        sink: Option<Sink>,
        sources: Vec<Source>,
        options: TransferOptions,
    ) -> std::io::Result<Transfer> {
        let takes = sink.as_ref().map_or(Offloads::ALL, Sink::takes);
        let is_needed = sources.iter().any(|source| !takes.contains(source.ingress().may));
        let desk = Desk::new(is_needed)?;
        let sources = sources.into_iter().map(|source| (source, 0)).collect();
        Ok(Transfer::resumed(sink, sources, options, desk, None))
    }

    /// Binds the two sides, each source with the segments of its frame in line that this sink has got already. The desk
    /// is one with room if any source may leave more to be done than the sink takes. What is announced comes before what
    /// the sources send.
    pub(super) fn resumed(
        sink: Option<Sink>,
        sources: Vec<(Source, u32)>,
        options: TransferOptions,
        desk: Desk,
        announcement: Option<Arc<Announcement>>,
    ) -> Transfer {
        let feeder = |(source, resume)| Feeder { source, resume, held: 0 };
        Transfer {
            sink,
            sources: sources.into_iter().map(feeder).collect(),
            first: 0,
            frames: Frames::new(false),
            desk,
            options,
            announcement,
            blocked_cycles: (u128::from(BLOCKED_NS) * u128::from(options.hertz) / 1_000_000_000) as u64,
            blocked_since: None,
            now: 0,
            is_stopping: false,
        }
    }

    /// Takes the two sides apart again; each source with the segments of its frame in line that the sink has got.
    pub(super) fn into_sides(self) -> (Option<Sink>, Vec<(Source, u32)>) {
        (self.sink, self.sources.into_iter().map(|feeder| (feeder.source, feeder.resume)).collect())
    }

    /// One burst of one source.
    #[inline]
    fn step(&mut self, at: usize, budget: &Budget) -> Step {
        let Some(feeder) = self.sources.get_mut(at) else { return Step::Idle };
        let source = &mut feeder.source;
        if source.is_faulted() {
            return Step::Idle;
        }
        let peeked = source.peek((budget.chains as usize).min(BURST));
        if peeked == 0 {
            return Step::Idle;
        }
        if !source.is_enabled() {
            return drop_waiting(feeder, peeked, DropReason::TxDisabled);
        }
        let Some(sink) = self.sink.as_mut().filter(|sink| sink.is_usable()) else {
            return drop_waiting(feeder, peeked, self.options.absent);
        };
        prefetch(source.burst());
        self.frames.inspect(source.burst(), &source.ingress());
        let frames = self.frames.as_slice();
        sink.prepare(frames);
        let way = Way { swap: self.options.swap_mac, most_bytes: budget.bytes };
        self.desk.resume = feeder.resume;
        let burst = source.burst();
        let (skip, heads) = (source.ingress().header_len, self.frames.heads());
        // A frame of which segments went before goes alone: should its sender have made another of it meanwhile, what was
        // delivered of it is not missing from the next.
        let in_line = if feeder.resume > 0 { 1 } else { frames.len() };
        let in_line = frames.get(..in_line).unwrap_or_default();
        let load = Load { burst, chains: burst.chains(), skip, frames: in_line, heads };
        let carried = sink.carry(load, way, &mut self.desk);
        feeder.resume = if feeder.resume > 0 && carried.frames > 0 { 0 } else { self.desk.resume };

        for (nth, frame) in frames.iter().take(carried.frames).enumerate() {
            if let Some(reason) = frame.dropped {
                source.note_drop(reason, frame, heads.get(nth));
                source.count_drops(reason, 1);
            }
        }
        let tally = source.tally();
        tally.packets += carried.sent;
        tally.bytes += carried.bytes;
        if sink.outstanding() == 0 {
            source.finish(carried.frames);
        } else {
            feeder.held = carried.frames;
        }
        if let Some(fault) = self.frames.fault
            && carried.frames == frames.len()
        {
            // What precedes it was carried and is given back.
            source.publish();
            source.fail(fault);
        }
        if carried.frames > 0 {
            self.blocked_since = None;
            return Step::Moved(carried.frames as u32);
        }
        if !carried.is_starved {
            return Step::Idle;
        }
        let since = *self.blocked_since.get_or_insert(self.now);
        if self.now.wrapping_sub(since) < self.blocked_cycles {
            return Step::Blocked;
        }
        // `blocked_since` stays: until buffers come, later frames do not wait anew.
        feeder.resume = 0;
        let (mut lost, mut bytes) = (0, 0);
        for frame in frames {
            match frame.dropped {
                Some(reason) => feeder.source.count_drops(reason, 1),
                None => (lost, bytes) = (lost + 1, bytes + u64::from(frame.len)),
            }
        }
        sink.count_drops(DropReason::NoRxBuffer, lost);
        let tally = feeder.source.tally();
        tally.packets += lost;
        tally.bytes += bytes;
        feeder.source.finish(frames.len());
        Step::Moved(frames.len() as u32)
    }

    /// Sends what waits to be announced, as if a source that runs had sent it. How many frames were done with.
    #[cold]
    fn announce(&mut self) -> u32 {
        let Some(feeder) = self.sources.iter_mut().find(|feeder| feeder.source.is_usable()) else { return 0 };
        let Some(mac) = self.announcement.as_ref().and_then(|waiting| waiting.take()) else { return 0 };
        match self.sink.as_mut().filter(|sink| sink.is_usable()) {
            Some(sink) => sink.give(&announce::frame(mac)),
            None => feeder.source.count_drops(self.options.absent, 1),
        }
        1
    }

    /// Gives back what the receiver has finished with. False: it still reads.
    fn release(&mut self) -> bool {
        if let Some(sink) = &mut self.sink {
            sink.reap();
            if sink.outstanding() > 0 {
                return false;
            }
        }
        for feeder in &mut self.sources {
            let held = std::mem::take(&mut feeder.held);
            if held > 0 {
                feeder.source.finish(held);
                feeder.source.publish();
            }
        }
        true
    }
}

/// Drops `count` frames that wait at a source.
#[cold]
fn drop_waiting(feeder: &mut Feeder, count: usize, reason: DropReason) -> Step {
    feeder.resume = 0;
    feeder.source.finish(count);
    feeder.source.count_drops(reason, count as u64);
    Step::Moved(count as u32)
}

impl Pump for Transfer {
    fn poll(&mut self, budget: &Budget, now: u64) -> Polled {
        self.now = now;
        if !self.release() {
            return Polled::Blocked;
        }
        if self.is_stopping {
            return Polled::Idle;
        }
        let (mut moved, mut is_blocked) = (0, false);
        if self.announcement.as_ref().is_some_and(|waiting| waiting.is_waiting()) {
            moved = self.announce();
        }
        let count = self.sources.len();
        for turn in 0..count {
            let at = (self.first + turn) % count;
            match self.step(at, budget) {
                Step::Idle => {}
                Step::Moved(frames) => moved += frames,
                Step::Blocked => is_blocked = true,
            }
            let is_out = self.sink.as_ref().is_some_and(|sink| sink.outstanding() > 0);
            if is_blocked || is_out || moved >= budget.chains {
                self.first = at + 1;
                break;
            }
        }
        if moved > 0 {
            if let Some(sink) = &mut self.sink {
                sink.publish();
            }
            self.release();
            for feeder in &mut self.sources {
                feeder.source.publish();
            }
            return Polled::Moved(moved);
        }
        if is_blocked {
            // Segments of the frame in line may have been delivered.
            if let Some(sink) = &mut self.sink {
                sink.publish();
            }
            return Polled::Blocked;
        }
        self.blocked_since = None;
        Polled::Idle
    }

    fn arm(&mut self) -> Armed {
        if self.sink.as_ref().is_some_and(|sink| sink.outstanding() > 0) {
            return Armed::CannotSleep;
        }
        let (mut has_work, mut cannot, mut within_ns) = (false, false, None);
        let mut note = |armed: Option<bool>| match armed {
            Some(true) => has_work = true,
            Some(false) => {}
            None => cannot = true,
        };
        match self.blocked_since {
            Some(since) => {
                let left = self.blocked_cycles.saturating_sub(self.now.wrapping_sub(since));
                let left_ns = u128::from(left) * 1_000_000_000 / u128::from(self.options.hertz.max(1));
                within_ns = Some((left_ns as u64).max(1));
                if let Some(sink) = &mut self.sink {
                    note(sink.arm());
                }
            }
            None => self.sources.iter_mut().for_each(|feeder| note(feeder.source.arm())),
        }
        if has_work {
            self.disarm();
            return Armed::HasWork;
        }
        if cannot { Armed::CannotSleep } else { Armed::Sleep { within_ns } }
    }

    fn disarm(&mut self) {
        for feeder in &mut self.sources {
            feeder.source.disarm();
        }
        if let Some(sink) = &mut self.sink {
            sink.disarm();
        }
    }

    fn begin_stop(&mut self) -> bool {
        self.is_stopping = true;
        self.stopped()
    }

    fn stopped(&mut self) -> bool {
        let is_stopped = self.release();
        // It may be placed again.
        self.is_stopping = !is_stopped;
        is_stopped
    }

    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        let sink = self.sink.as_ref().and_then(Sink::wake_source);
        let sources = self.sources.iter().filter_map(|feeder| feeder.source.wake_source());
        sink.into_iter().chain(sources).collect()
    }
}

/// Frames in one burst: enough to spread the cost of publishing, few enough that their lines stay in the first-level
/// cache between prefetch and copy.
const BURST: usize = 32;
