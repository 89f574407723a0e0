//! The pump that carries frames from source queues (drivers' transmit queues, a kernel netdev) to one destination (a
//! driver's receive queue, a kernel netdev): one copy, straight from the sender's buffer into the receiver's.
//!
//! ```text
//!   guest's TX rings --peek--> frames --copy--> buffers <--peek-- guest's RX ring
//!        ^                                                           ^
//!        +-- complete, publish once          complete, publish once --+
//! ```
//!
//! A sink may read frames for longer than one poll (io_uring, DMA): they go back to their sources in order as it finishes,
//! and the pump goes on meanwhile.
//!
//! The pump owns every ring and lives on one worker. Without a buffer on the receiving side the senders' descriptors
//! stay for at most [`BLOCKED_NS`]; then their frames are dropped and counted, burst by burst, until buffers come.
//!
//! Budget: no allocation, no lock, no panic; no system call but the call that a driver asked for, and one a burst for
//! a kernel netdev.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ringway_engine::{Armed, Budget, Polled, Pump};
use ringway_ring::tsc;

use super::announce::{self, Announcement};
use super::capture;
use super::frame::{Frame, Frames, Head, Ingress, prefetch};
use super::in_flight::{InFlight, MOST};
use super::offload::Offloads;
use super::scratch::Scratch;
use super::side::{CarryOptions, Load, Sink, Source};
use crate::counters::{DropReason, QueueCounters};

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
    sink: Option<Box<dyn Sink>>,
    sources: Vec<Feeder>,
    /// What the sink still reads, if it is one that finishes later.
    in_flight: InFlight,
    is_later: bool,
    /// Which source is asked first in the next poll.
    first: usize,
    frames: Box<Frames>,
    scratch: Scratch,
    options: TransferOptions,
    /// Of the port that the sources are of.
    announcement: Option<Arc<Announcement>>,
    blocked_cycles: u64,
    /// When the receiver was first found without a buffer for the frame in line; None while it takes frames.
    blocked_since: Option<u64>,
    /// How long the frames that were carried last had waited for buffers.
    waited: u64,
    /// Time of the last poll, for the sleep that `arm` allows.
    now: u64,
    /// It takes no new work.
    is_stopping: bool,
}

/// A source, and how far the frame in line has come.
#[derive(Debug)]
struct Feeder {
    source: Box<dyn Source>,
    /// As the source has them, asked for once.
    ingress: Ingress,
    is_enabled: bool,
    counters: Arc<QueueCounters>,
    /// Segments of it that were delivered.
    resume: u32,
}

/// What a transfer joins.
#[derive(Debug)]
pub(super) struct Sides {
    /// It may be absent.
    pub(super) sink: Option<Box<dyn Sink>>,
    /// Each with the segments of its frame in line that this sink has got already.
    pub(super) sources: Vec<(Box<dyn Source>, u32)>,
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
    /// The kernel gave no memory to finish frames in, or to keep them while the sink reads them.
    pub fn new(
        sink: Option<Box<dyn Sink>>,
        mut sources: Vec<Box<dyn Source>>,
        options: TransferOptions,
    ) -> std::io::Result<Transfer> {
        let takes = sink.as_ref().map_or(Offloads::ALL, |sink| sink.takes());
        let scratch = Scratch::new(sources.iter().any(|source| !takes.contains(source.ingress().may)))?;
        if sink.as_ref().is_some_and(|sink| sink.defers()) {
            sources.iter_mut().try_for_each(|source| source.reserve(MOST))?;
        }
        let sources = sources.into_iter().map(|source| (source, 0)).collect();
        Ok(Transfer::resumed(Sides { sink, sources }, options, scratch, None))
    }

    /// Binds what was bound before, or may have been. The scratch is one with room if any source may leave more to be done than the sink takes. What is announced comes before what
    /// the sources send.
    pub(super) fn resumed(
        sides: Sides,
        options: TransferOptions,
        scratch: Scratch,
        announcement: Option<Arc<Announcement>>,
    ) -> Transfer {
        let Sides { sink, sources } = sides;
        let feeder = |(source, resume): (Box<dyn Source>, u32)| {
            let (ingress, is_enabled) = (source.ingress(), source.is_enabled());
            let counters = Arc::clone(source.counters());
            Feeder { source, ingress, is_enabled, counters, resume }
        };
        let is_later = sink.as_ref().is_some_and(|sink| sink.defers());
        Transfer {
            sink,
            in_flight: InFlight::new(sources.len(), is_later.into()),
            is_later,
            sources: sources.into_iter().map(feeder).collect(),
            first: 0,
            frames: Frames::new(false),
            scratch,
            options,
            announcement,
            blocked_cycles: (u128::from(BLOCKED_NS) * u128::from(options.hertz) / 1_000_000_000) as u64,
            blocked_since: None,
            waited: 0,
            now: 0,
            is_stopping: false,
        }
    }

    /// Takes the two sides apart again.
    pub(super) fn into_sides(self) -> Sides {
        let sources = self.sources.into_iter().map(|feeder| (feeder.source, feeder.resume));
        Sides { sink: self.sink, sources: sources.collect() }
    }

    /// One burst of one source.
    #[inline]
    fn step(&mut self, at: usize, budget: &Budget) -> Step {
        let Some(feeder) = self.sources.get_mut(at) else { return Step::Idle };
        let source = &mut feeder.source;
        if source.is_faulted() {
            return Step::Idle;
        }
        let mut most = (budget.chains as usize).min(BURST);
        if self.is_later {
            // As many as may be out; none, while all of those are.
            most = most.min(self.in_flight.room(at)).min(self.in_flight.room_at(0));
            if most == 0 {
                return Step::Idle;
            }
        }
        let peeked = source.peek(most);
        if peeked == 0 {
            return Step::Idle;
        }
        if !feeder.is_enabled {
            return self.drop_waiting(at, peeked, DropReason::TxDisabled);
        }
        let Some(sink) = self.sink.as_mut().filter(|sink| sink.is_usable()) else {
            return self.drop_waiting(at, peeked, self.options.absent);
        };
        let burst = source.burst();
        prefetch(burst);
        self.frames.inspect(burst, &feeder.ingress);
        let frames = self.frames.as_slice();
        if frames.is_empty() {
            // The first chain is at fault. One that follows frames is found again once they are published; so is one while
            // some are out.
            if let Some(fault) = self.frames.fault.filter(|_| !self.in_flight.holds(at)) {
                source.fail(fault);
            }
            return Step::Idle;
        }
        sink.prepare(frames);
        let options = CarryOptions { swap: self.options.swap_mac, most_bytes: budget.bytes };
        self.scratch.resume = feeder.resume;
        let (skip, heads) = (feeder.ingress.header_len, self.frames.heads());
        // A frame of which segments went before goes alone: should its sender have made another of it meanwhile, what was
        // delivered of it is not missing from the next.
        let in_line = if feeder.resume > 0 { 1 } else { frames.len() };
        let in_line = frames.get(..in_line).unwrap_or_default();
        let load = Load { burst, chains: burst.chains(), skip, frames: in_line, heads };
        let seen_at = feeder.counters.is_captured().then(tsc::cycles);
        let carried = sink.carry(load, options, &mut self.scratch);
        feeder.resume = if feeder.resume > 0 && carried.frames > 0 { 0 } else { self.scratch.resume };

        if let Some(at) = seen_at {
            capture::show_taken(&feeder.counters, load, carried.frames, at);
        }
        if self.frames.has_dropped() {
            count_dropped(&mut **source, frames, heads, carried.frames);
        }
        let tally = source.tally();
        tally.packets += carried.sent;
        tally.bytes += carried.bytes;
        let number = self.in_flight.next(at);
        if self.is_later {
            for (mark, frame) in self.scratch.marks.iter().take(carried.frames).zip(number..) {
                self.in_flight.read_by(0, *mark, at, frame);
            }
        }
        self.in_flight.settle(at, number, &mut **source, carried.frames);
        if carried.frames > 0 {
            if let Some(since) = self.blocked_since.take() {
                self.waited = self.now.saturating_sub(since);
            }
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
        let burst = source.burst();
        let load = Load { burst, chains: burst.chains(), skip, frames, heads };
        if let Some(at) = seen_at {
            capture::show_taken(&feeder.counters, load, frames.len(), at);
        }
        if sink.counters().is_captured() {
            let sent = load.passages(options.swap).filter(|from| from.frame.dropped.is_none());
            sent.for_each(|from| sink.counters().capture(from, Some(DropReason::NoRxBuffer), tsc::cycles()));
        }
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
        self.in_flight.settle(at, number, &mut *feeder.source, frames.len());
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

    /// Drops `count` frames that wait at a source.
    #[cold]
    fn drop_waiting(&mut self, at: usize, count: usize, reason: DropReason) -> Step {
        let Some(feeder) = self.sources.get_mut(at) else { return Step::Idle };
        feeder.resume = 0;
        if feeder.counters.is_captured() {
            let (burst, skip) = (feeder.source.burst(), feeder.ingress.header_len);
            capture::show_waiting(&feeder.counters, burst, skip, count, reason);
        }
        self.in_flight.settle(at, self.in_flight.next(at), &mut *feeder.source, count);
        feeder.source.count_drops(reason, count as u64);
        Step::Moved(count as u32)
    }

    /// Gives back what the sink has finished with. How many frames that are.
    fn give_back(&mut self) -> u32 {
        if self.in_flight.is_empty() {
            return 0;
        }
        if let Some(sink) = &mut self.sink {
            self.in_flight.finished(0, sink.finished());
        }
        let mut count = 0;
        for (at, feeder) in self.sources.iter_mut().enumerate() {
            let done = self.in_flight.give_back(at);
            if done > 0 {
                feeder.source.give_back(done);
                feeder.source.publish();
                count += done as u32;
            }
        }
        count
    }

    /// True while the sink has not finished with what it was given.
    fn is_out(&mut self) -> bool {
        let sink = self.sink.as_mut().filter(|_| self.is_later);
        !self.in_flight.is_empty() || sink.is_some_and(|sink| sink.finished() < sink.given())
    }
}

/// Counts those of the first `count` frames that were dropped when they were looked at.
#[cold]
fn count_dropped(source: &mut dyn Source, frames: &[Frame], heads: &[Head], count: usize) {
    for (frame, head) in frames.iter().zip(heads).take(count) {
        if let Some(reason) = frame.dropped {
            source.note_drop(reason, frame, Some(head));
            source.count_drops(reason, 1);
        }
    }
}

impl Pump for Transfer {
    fn poll(&mut self, budget: &Budget, now: u64) -> Polled {
        self.now = now;
        self.in_flight.begin(now);
        let back = self.give_back();
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
            if is_blocked || moved >= budget.chains {
                self.first = at + 1;
                break;
            }
        }
        if moved > 0 {
            if let Some(sink) = &mut self.sink {
                sink.publish();
            }
            self.give_back();
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
        if back > 0 { Polled::Moved(back) } else { Polled::Idle }
    }

    fn took(&mut self, cycles: u64) {
        let took = cycles + std::mem::take(&mut self.waited);
        if let Some(sink) = &mut self.sink {
            sink.took(took);
        }
        for (at, feeder) in self.sources.iter_mut().enumerate() {
            let waited = if self.is_later { self.in_flight.waited(at) } else { 0 };
            feeder.source.took(took + waited);
        }
    }

    fn arm(&mut self) -> Armed {
        let is_out = self.is_out();
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
            None => {
                for (at, feeder) in self.sources.iter_mut().enumerate() {
                    // Of one that has as many out as may be, it is the sink that brings news.
                    if self.in_flight.room(at) > 0 {
                        note(feeder.source.arm());
                    }
                }
                if is_out && let Some(sink) = &mut self.sink {
                    note(sink.arm());
                }
            }
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
        self.give_back();
        let mut is_stopped = !self.is_out();
        self.sources.iter_mut().for_each(|feeder| is_stopped &= feeder.source.rest());
        // It may be placed again.
        self.is_stopping = !is_stopped;
        is_stopped
    }

    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        let sink = self.sink.as_ref().and_then(|sink| sink.wake_source());
        let sources = self.sources.iter().filter_map(|feeder| feeder.source.wake_source());
        sink.into_iter().chain(sources).collect()
    }
}

/// Frames in one burst: enough to spread the cost of publishing, few enough that their lines stay in the first-level
/// cache between prefetch and copy.
const BURST: usize = 32;
