//! The two sides of a path, whatever stands there: sources, which frames come from, and sinks, which they go to.
//!
//! ```text
//!   guest's TX ring --+                                  +--> guest's RX ring
//!                     +--> [ Source ] --> pump --> [ Sink ] --+
//!   kernel's netdev --+                                  +--> kernel's netdev
//! ```
//!
//! Which kind it is, is asked once a burst; the loops over frames are compiled for each kind. Owned by one pump, on one
//! worker.

use std::os::fd::BorrowedFd;

use ringway_ring::chain::{Burst, Chain};
use ringway_ring::packed::device::PackedDevice;
use ringway_ring::queue::{Format, RingFault, SetupError};
use ringway_ring::split::device::SplitDevice;

use super::end::{End, PortRules};
use super::frame::{Frame, Head, Ingress};
use super::netdev::{NetdevSink, NetdevSource};
use super::offload::{Offload, Offloads};
use super::receive::{Desk, Passage, Receiver, Refused};
use crate::counters::{DropReason, Tally};
use crate::vdpa::QueueBinding;

/// Where frames come from.
#[derive(Debug)]
pub enum Source {
    /// A split transmit queue.
    Split(Box<End<SplitDevice>>),
    /// A packed transmit queue.
    Packed(Box<End<PackedDevice>>),
    /// A kernel netdev.
    Netdev(Box<NetdevSource>),
}

/// Where frames go.
#[derive(Debug)]
pub enum Sink {
    /// A split receive queue.
    Split(Box<End<SplitDevice>>),
    /// A packed receive queue.
    Packed(Box<End<PackedDevice>>),
    /// A kernel netdev.
    Netdev(Box<NetdevSink>),
}

/// Does the same with whatever stands there.
macro_rules! each {
    ($side:ident in $of:expr => $what:expr) => {
        match $of {
            Self::Split($side) => $what,
            Self::Packed($side) => $what,
            Self::Netdev($side) => $what,
        }
    };
}

/// What became of frames that were to go to one sink.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Carried {
    /// Frames done with, from the first on: delivered, or dropped and counted.
    pub frames: usize,
    /// Of those, the ones that were sent on, whatever became of them.
    pub sent: u64,
    /// Their bytes.
    pub bytes: u64,
    /// The frame in line finds no room.
    pub is_starved: bool,
}

impl Source {
    /// A started transmit queue.
    pub fn queue(mut binding: QueueBinding, rules: PortRules) -> Result<Source, SetupError> {
        // Transmit queues complete everything with length 0.
        binding.config.skip_used = true;
        Ok(match binding.format {
            Format::Split => Source::Split(End::split(binding, rules)?),
            Format::Packed => Source::Packed(End::packed(binding, rules)?),
        })
    }

    /// Peeks up to `frames`; how many there are.
    #[inline]
    pub(super) fn peek(&mut self, frames: usize) -> usize {
        each!(end in self => end.peek(frames))
    }

    /// What was peeked.
    #[inline]
    pub(super) fn burst(&self) -> &Burst {
        match self {
            Source::Split(end) => &end.burst,
            Source::Packed(end) => &end.burst,
            Source::Netdev(end) => end.burst(),
        }
    }

    /// What its frames must obey.
    #[inline]
    pub(super) fn ingress(&self) -> Ingress {
        each!(end in self => end.ingress)
    }

    /// Gives the first `frames` of what was peeked back.
    #[inline]
    pub(super) fn finish(&mut self, frames: usize) {
        each!(end in self => end.finish(frames));
    }

    /// What is counted at the next publication.
    #[inline]
    pub(super) fn tally(&mut self) -> &mut Tally {
        each!(end in self => &mut end.tally)
    }

    /// Makes what was given back visible.
    #[inline]
    pub(super) fn publish(&mut self) {
        each!(end in self => end.publish());
    }

    /// Counts frames that go no further.
    pub(super) fn count_drops(&mut self, reason: DropReason, frames: u64) {
        each!(end in self => end.counters.add_drops(reason, frames));
    }

    /// Gives up the frame in line, of which a receiver has got the first segments: from its start, the next who takes the
    /// queue up would deliver these once more. What is left of it is counted as dropped.
    pub(super) fn abandon(&mut self) {
        if self.peek(1) == 1 {
            self.finish(1);
            self.count_drops(DropReason::TxDisabled, 1);
            self.publish();
        }
    }

    /// Notes what the last frame was like that was dropped for a reason.
    pub(super) fn note_drop(&self, reason: DropReason, frame: &Frame, head: Option<&Head>) {
        if let Some(example) = head.and_then(|head| frame.example(reason, head)) {
            each!(end in self => end.counters.set_example(reason, example));
        }
    }

    /// True while what is sent goes somewhere: else it is dropped.
    pub(super) fn is_enabled(&self) -> bool {
        match self {
            Source::Split(end) => end.enabled,
            Source::Packed(end) => end.enabled,
            Source::Netdev(_) => true,
        }
    }

    /// True while what is sent is taken and goes somewhere.
    pub(super) fn is_usable(&self) -> bool {
        self.is_enabled() && !self.is_faulted()
    }

    /// True once it is left alone.
    #[inline]
    pub(super) fn is_faulted(&self) -> bool {
        each!(end in self => end.is_faulted())
    }

    /// It broke the rules.
    pub(super) fn fail(&mut self, fault: RingFault) {
        match self {
            Source::Split(end) => end.fail(fault),
            Source::Packed(end) => end.fail(fault),
            Source::Netdev(_) => {}
        }
    }

    /// Asks to be told of frames. None: there is no way. Some(true): frames are there already.
    pub(super) fn arm(&mut self) -> Option<bool> {
        each!(end in self => end.arm())
    }

    /// Takes that back.
    pub(super) fn disarm(&mut self) {
        each!(end in self => end.disarm());
    }

    /// What becomes readable when frames come.
    pub(super) fn wake_source(&self) -> Option<BorrowedFd<'_>> {
        each!(end in self => end.wake_source())
    }
}

impl Sink {
    /// A started receive queue.
    pub fn queue(binding: QueueBinding, rules: PortRules) -> Result<Sink, SetupError> {
        Ok(match binding.format {
            Format::Split => Sink::Split(End::split(binding, rules)?),
            Format::Packed => Sink::Packed(End::packed(binding, rules)?),
        })
    }

    /// Takes frames, until it has no room or enough bytes have gone. A frame that is dropped already is passed over.
    #[inline]
    pub(super) fn carry(&mut self, load: Load<'_>, way: Way, desk: &mut Desk) -> Carried {
        each!(end in self => carry(&mut **end, load, way, desk))
    }

    /// Takes frames without waiting for room: what cannot be delivered now is dropped and counted.
    #[inline]
    pub(super) fn carry_or_drop(&mut self, load: Load<'_>, desk: &mut Desk) {
        self.prepare(load.frames);
        let way = Way { swap: false, most_bytes: u64::MAX };
        desk.resume = 0;
        let carried = self.carry(load, way, desk);
        desk.resume = 0;
        let left = load.frames.get(carried.frames..).unwrap_or_default();
        let left = left.iter().filter(|frame| frame.dropped.is_none()).count();
        if left > 0 {
            // A ring that broke the rules in the middle of a burst lacks no buffers: it is stopped.
            let reason = if self.is_usable() { DropReason::NoRxBuffer } else { DropReason::RxDisabled };
            self.count_drops(reason, left as u64);
        }
    }

    /// Takes one frame of our own, which asks for nothing to be done; counted if there is no room.
    #[cold]
    pub(super) fn give(&mut self, frame: &[u8]) {
        match each!(end in self => Receiver::put_bytes(&mut **end, frame, &[], Offload::None)) {
            Ok(()) | Err(Refused::Faulted) => {}
            Err(Refused::Starved) => self.count_drops(DropReason::NoRxBuffer, 1),
            Err(Refused::Drop(reason)) => self.count_drops(reason, 1),
        }
    }

    /// What its frames may leave to be done.
    pub(super) fn takes(&self) -> Offloads {
        each!(end in self => end.takes)
    }

    /// Gets ready for these frames.
    #[inline]
    pub(super) fn prepare(&mut self, frames: &[Frame]) {
        each!(end in self => end.prepare(frames));
    }

    /// Counts frames that were for it and did not reach it.
    pub(super) fn count_drops(&mut self, reason: DropReason, frames: u64) {
        each!(end in self => Receiver::count_drops(&mut **end, reason, frames));
    }

    /// Makes what was delivered visible.
    #[inline]
    pub(super) fn publish(&mut self) {
        each!(end in self => end.publish());
    }

    /// Frames that it was given and has not finished: their memory must stay, and their chains too.
    #[inline]
    pub(super) fn outstanding(&self) -> usize {
        match self {
            Sink::Split(_) | Sink::Packed(_) => 0,
            Sink::Netdev(end) => end.outstanding(),
        }
    }

    /// Holds no guest's memory any more. Not on a worker.
    pub(super) fn let_go(&mut self) {
        if let Sink::Netdev(end) = self {
            end.let_go();
        }
    }

    /// Looks which of those it has finished.
    pub(super) fn reap(&mut self) {
        if let Sink::Netdev(end) = self {
            end.reap();
        }
    }

    /// True while frames can be delivered to it.
    #[inline]
    pub(super) fn is_usable(&self) -> bool {
        match self {
            Sink::Split(end) => end.is_usable(),
            Sink::Packed(end) => end.is_usable(),
            Sink::Netdev(end) => !end.is_faulted(),
        }
    }

    /// Asks to be told of room. None: there is no way. Some(true): there is room already.
    pub(super) fn arm(&mut self) -> Option<bool> {
        match self {
            Sink::Split(end) => end.arm(),
            Sink::Packed(end) => end.arm(),
            // It has room again when its kernel has memory, of which nothing tells: looked at in time.
            Sink::Netdev(_) => Some(false),
        }
    }

    /// Takes that back.
    pub(super) fn disarm(&mut self) {
        match self {
            Sink::Split(end) => end.disarm(),
            Sink::Packed(end) => end.disarm(),
            Sink::Netdev(_) => {}
        }
    }

    /// What becomes readable when there is room.
    pub(super) fn wake_source(&self) -> Option<BorrowedFd<'_>> {
        match self {
            Sink::Split(end) => end.wake_source(),
            Sink::Packed(end) => end.wake_source(),
            Sink::Netdev(_) => None,
        }
    }
}

/// Frames that are to go somewhere.
#[derive(Clone, Copy)]
pub(super) struct Load<'a> {
    /// Where they were peeked.
    pub(super) burst: &'a Burst,
    /// Their chains.
    pub(super) chains: &'a [Chain],
    /// Bytes of their sender's header.
    pub(super) skip: usize,
    /// The frames, one for each chain.
    pub(super) frames: &'a [Frame],
    /// Their beginnings, one for each frame.
    pub(super) heads: &'a [Head],
}

/// How frames go.
#[derive(Debug, Clone, Copy)]
pub(super) struct Way {
    /// Exchange the addresses of each.
    pub(super) swap: bool,
    /// Begin no further frame once so many bytes have gone.
    pub(super) most_bytes: u64,
}

/// The loop over frames, for one kind of receiver.
#[inline]
fn carry<R: Receiver>(to: &mut R, load: Load<'_>, way: Way, desk: &mut Desk) -> Carried {
    let mut done = Carried::default();
    let Load { burst, skip, heads, .. } = load;
    for (nth, (chain, frame)) in load.chains.iter().zip(load.frames).enumerate() {
        if frame.dropped.is_none() {
            let passage = Passage { burst, chain, skip, frame, heads, nth, swap: way.swap };
            match to.deliver(passage, desk) {
                Ok(()) => {}
                Err(Refused::Drop(reason)) => {
                    if let Some(example) = heads.get(nth).and_then(|head| frame.example(reason, head)) {
                        to.set_example(reason, example);
                    }
                    to.count_drops(reason, 1);
                }
                Err(Refused::Starved) => {
                    done.is_starved = true;
                    return done;
                }
                Err(Refused::Faulted) => return done,
            }
            done.sent += 1;
            done.bytes += u64::from(frame.len);
        }
        done.frames += 1;
        if done.bytes >= way.most_bytes {
            return done;
        }
    }
    done
}
