//! The two sides of a path, whatever stands there: sources, which frames come from, and sinks, which they go to.
//!
//! ```text
//!   guest's TX ring --+                                  +--> guest's RX ring
//!   kernel's netdev --+--> [ Source ] --> pump --> [ Sink ] --+--> kernel's netdev
//!   a driver's own ---+                                  +--> a driver's own
//! ```
//!
//! A driver brings its own by implementing the trait. Its methods are called once a burst, whatever it is; the loop over
//! frames is [`Sink::carry`], which is compiled for each implementation. Owned by one pump, on one worker, whose rules hold:
//! no allocation, no lock, no blocking, no panic.
//!
//! A sink may still read frames after it took them (io_uring, DMA): it [finishes later](Sink::defers), in the order in which
//! it took them. Meanwhile their source keeps their memory ([`Source::take`]), and the pump goes on with everything else.

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ringway_ring::chain::{Burst, Chain};
use ringway_ring::queue::{Format, RingFault, SetupError};
use ringway_ring::tsc;

use super::Mac;
use super::capture;
use super::frame::{Frame, Head, Ingress, copy_out};
use super::guest_queue::{GuestQueue, PortRules};
use super::offload::{Offload, Offloads};
use super::scratch::Scratch;
use crate::counters::{DropReason, Example, QueueCounters, Tally};
use crate::vdpa::QueueBinding;

/// Where frames come from.
pub trait Source: Send + fmt::Debug {
    /// What its frames must obey; stays as it is for as long as a pump has it.
    fn ingress(&self) -> Ingress;

    /// Its frames may come from this address only from now on; None: from any. While no pump has it. What is trusted to send from
    /// any address, as the host and the network are, is held to none.
    fn hold_to(&mut self, _only: Option<Mac>) {}

    /// True while what is sent goes somewhere: else it is dropped. Stays as it is.
    fn is_enabled(&self) -> bool {
        true
    }

    /// True once it is left alone.
    fn is_faulted(&self) -> bool;

    /// Peeks up to `frames`; how many there are. Those that were not taken are peeked again next time.
    fn peek(&mut self, frames: usize) -> usize;

    /// What was peeked, a chain a frame.
    fn burst(&self) -> &Burst;

    /// There will be up to `frames` taken and not given back at a time. Where it may allocate.
    ///
    /// # Errors
    /// No memory.
    fn reserve(&mut self, frames: usize) -> io::Result<()>;

    /// Takes the first `frames` of what was peeked; their memory stays as it is.
    fn take(&mut self, frames: usize);

    /// Gives the oldest `frames` of those that were taken back.
    fn give_back(&mut self, frames: usize);

    /// Takes the first `frames` of what was peeked and gives them back at once. While none is taken.
    fn finish(&mut self, frames: usize) {
        self.take(frames);
        self.give_back(frames);
    }

    /// Makes what was given back visible, and the counters up to date.
    fn publish(&mut self);

    /// What was published last took so many cycles from when its pump first saw it: for who counts that.
    fn took(&mut self, _cycles: u64) {}

    /// What is counted at the next publication.
    fn tally(&mut self) -> &mut Tally;

    /// The queue's counters; always the same. By them it is known whether somebody looks on at its frames.
    fn counters(&self) -> &Arc<QueueCounters>;

    /// Counts frames that go no further.
    fn count_drops(&mut self, reason: DropReason, frames: u64);

    /// Counts that frames were there and had to stay, since no more may be sent now.
    fn count_held(&mut self) {}

    /// Notes what the last of them was like.
    fn set_example(&self, reason: DropReason, example: Example);

    /// What was peeked breaks the rules.
    fn fail(&mut self, fault: RingFault);

    /// Asks to be told of frames. None: there is no way. Some(true): frames are there already.
    fn arm(&mut self) -> Option<bool>;

    /// Takes that back.
    fn disarm(&mut self);

    /// What becomes readable when frames come.
    fn wake_source(&self) -> Option<BorrowedFd<'_>>;

    /// Has nothing fetched ahead from now on until it is peeked again: its pump is about to leave its thread. False: something
    /// still is; asked again soon.
    fn rest(&mut self) -> bool {
        true
    }

    /// True while what is sent is taken and goes somewhere.
    fn is_usable(&self) -> bool {
        self.is_enabled() && !self.is_faulted()
    }

    /// Notes what the last frame was like that was dropped for a reason.
    fn note_drop(&self, reason: DropReason, frame: &Frame, head: Option<&Head>) {
        if let Some(example) = head.and_then(|head| frame.example(reason, head)) {
            self.set_example(reason, example);
        }
    }

    /// Gives up the frame in line, of which a receiver has got the first segments: from its start, the next who takes the
    /// queue up would deliver these once more. What is left of it is counted as dropped.
    fn abandon(&mut self) {
        if self.peek(1) == 1 {
            self.finish(1);
            self.count_drops(DropReason::TxDisabled, 1);
            self.publish();
        }
    }
}

/// Where frames go.
pub trait Sink: Send + fmt::Debug {
    /// What its frames may leave to be done; stays as it is.
    fn takes(&self) -> Offloads;

    /// True while frames can be delivered to it.
    fn is_usable(&self) -> bool;

    /// Gets ready for these frames, which come next.
    fn prepare(&mut self, _frames: &[Frame]) {}

    /// Delivers one frame. What it does not take as it is, it leaves to [`finish`](super::finish::finish).
    ///
    /// # Errors
    /// It is not delivered; the reason says whether it may be later.
    fn deliver(&mut self, from: Passage<'_>, scratch: &mut Scratch) -> Result<(), Refused>;

    /// Delivers a frame of our own, in two parts, which are copied.
    ///
    /// # Errors
    /// As for [`Sink::deliver`].
    fn put_bytes(&mut self, head: &[u8], payload: &[u8], offload: Offload) -> Result<(), Refused>;

    /// Makes what was delivered visible, and the counters up to date.
    fn publish(&mut self);

    /// As [`Source::took`].
    fn took(&mut self, _cycles: u64) {}

    /// What is counted at the next publication.
    fn tally(&mut self) -> &mut Tally;

    /// The queue's counters; always the same. By them it is known whether somebody looks on at its frames.
    fn counters(&self) -> &Arc<QueueCounters>;

    /// Counts frames that were for it and did not reach it.
    fn count_drops(&mut self, reason: DropReason, frames: u64);

    /// Notes what the last of them was like.
    fn set_example(&mut self, reason: DropReason, example: Example);

    /// Asks to be told of room, and of frames that are finished. None: there is no way. Some(true): there are already.
    fn arm(&mut self) -> Option<bool>;

    /// Takes that back.
    fn disarm(&mut self);

    /// What becomes readable then.
    fn wake_source(&self) -> Option<BorrowedFd<'_>>;

    /// True if it may read frames after [`Sink::deliver`] has returned. It holds the map that they lie in
    /// ([`Burst::map`]) until it is finished with them, says how far it is by the two below, and waits for nobody's leave to
    /// finish. Stays as it is.
    #[inline(always)]
    fn defers(&self) -> bool {
        false
    }

    /// How much it was given since it was made, in units of its own, if it defers.
    #[inline(always)]
    fn given(&self) -> u64 {
        0
    }

    /// Looks how much of that it is finished with, from the first on: what lies behind something unfinished is not counted.
    fn finished(&mut self) -> u64 {
        0
    }

    /// Holds no memory of frames that it is finished with any more. Not on a worker.
    fn let_go(&mut self) {}

    /// Takes frames, until it has no room or enough bytes have gone. A frame that is dropped already is passed over.
    #[inline]
    fn carry(&mut self, load: Load<'_>, options: CarryOptions, scratch: &mut Scratch) -> Carried {
        if self.counters().is_captured() {
            carry_captured(self, load, options, scratch)
        } else {
            carry_each::<Self, false>(self, load, options, scratch)
        }
    }

    /// Counts a frame that it does not take.
    #[cold]
    fn refuse(&mut self, reason: DropReason, frame: &Frame, head: &Head) {
        if let Some(example) = frame.example(reason, head) {
            self.set_example(reason, example);
        }
        self.count_drops(reason, 1);
    }

    /// Takes frames without waiting for room: what cannot be delivered now is dropped and counted. How many were passed on.
    fn carry_or_drop(&mut self, load: Load<'_>, scratch: &mut Scratch) -> usize {
        self.prepare(load.frames);
        let options = CarryOptions { swap: false, most_bytes: u64::MAX };
        scratch.resume = 0;
        let carried = self.carry(load, options, scratch);
        scratch.resume = 0;
        let left = load.frames.get(carried.frames..).unwrap_or_default();
        let left = left.iter().filter(|frame| frame.dropped.is_none()).count();
        if left > 0 {
            // A ring that broke the rules in the middle of a burst lacks no buffers: it is stopped.
            let reason = if self.is_usable() { DropReason::NoRxBuffer } else { DropReason::RxDisabled };
            self.count_drops(reason, left as u64);
            if self.counters().is_captured() {
                capture::show(self.counters(), load.behind(carried.frames), Some(reason), tsc::cycles());
            }
        }
        carried.frames
    }

    /// Takes one frame of our own, which asks for nothing to be done; counted if there is no room.
    #[cold]
    fn give(&mut self, frame: &[u8]) {
        let dropped = match self.put_bytes(frame, &[], Offload::None) {
            Ok(()) => None,
            Err(Refused::Faulted) => return,
            Err(Refused::Starved) => Some(DropReason::NoRxBuffer),
            Err(Refused::Drop(reason)) => Some(reason),
        };
        if let Some(reason) = dropped {
            self.count_drops(reason, 1);
        }
        if self.counters().is_captured() {
            self.counters().capture_bytes(frame, dropped, tsc::cycles());
        }
    }
}

/// The loop of [`Sink::carry`], compiled for each sink with and without somebody who looks on.
#[inline(always)]
fn carry_each<S: Sink + ?Sized, const CAPTURED: bool>(
    sink: &mut S,
    load: Load<'_>,
    options: CarryOptions,
    scratch: &mut Scratch,
) -> Carried {
    let mut done = Carried::default();
    let Load { burst, skip, .. } = load;
    for ((chain, frame), beginning) in load.chains.iter().zip(load.frames).zip(load.heads) {
        if frame.dropped.is_none() {
            let passage = Passage { burst, chain, skip, frame, beginning, swap: options.swap };
            let delivered = sink.deliver(passage, scratch);
            if CAPTURED {
                match delivered {
                    Ok(()) => sink.counters().capture(passage, None, tsc::cycles()),
                    Err(Refused::Drop(reason)) => {
                        sink.counters().capture(passage, Some(reason), tsc::cycles());
                    }
                    Err(Refused::Starved | Refused::Faulted) => {}
                }
            }
            match delivered {
                Ok(()) => {}
                Err(Refused::Drop(reason)) => sink.refuse(reason, frame, beginning),
                Err(Refused::Starved) => {
                    done.is_starved = true;
                    return done;
                }
                Err(Refused::Faulted) => return done,
            }
            done.sent += 1;
            done.bytes += u64::from(frame.len);
        }
        if sink.defers()
            && let Some(mark) = scratch.marks.get_mut(done.frames)
        {
            *mark = sink.given();
        }
        done.frames += 1;
        if done.bytes >= options.most_bytes {
            return done;
        }
    }
    done
}

#[cold]
#[inline(never)]
fn carry_captured<S: Sink + ?Sized>(
    sink: &mut S,
    load: Load<'_>,
    options: CarryOptions,
    scratch: &mut Scratch,
) -> Carried {
    carry_each::<S, true>(sink, load, options, scratch)
}

/// A started transmit queue.
///
/// # Errors
/// The ring cannot be served as it is, or there is no memory.
pub fn transmit_queue(mut binding: QueueBinding, rules: PortRules) -> Result<Box<dyn Source>, SetupError> {
    // Transmit queues complete everything with length 0.
    binding.config.skip_used = true;
    Ok(match binding.format {
        Format::Split => GuestQueue::split(binding, rules)?,
        Format::Packed => GuestQueue::packed(binding, rules)?,
    })
}

/// A started receive queue.
///
/// # Errors
/// As for [`transmit_queue`].
pub fn receive_queue(binding: QueueBinding, rules: PortRules) -> Result<Box<dyn Sink>, SetupError> {
    Ok(match binding.format {
        Format::Split => GuestQueue::split(binding, rules)?,
        Format::Packed => GuestQueue::packed(binding, rules)?,
    })
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

/// Why a frame was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refused {
    /// No buffers now.
    Starved,
    /// It never can be.
    Drop(DropReason),
    /// The receiver is left alone from now on.
    Faulted,
}

/// Frames that are to go somewhere.
#[derive(Debug, Clone, Copy)]
pub struct Load<'a> {
    /// Where they were peeked.
    pub burst: &'a Burst,
    /// Their chains.
    pub chains: &'a [Chain],
    /// Bytes of their sender's header.
    pub skip: usize,
    /// The frames, one for each chain.
    pub frames: &'a [Frame],
    /// Their beginnings, one for each frame.
    pub heads: &'a [Head],
}

impl<'a> Load<'a> {
    /// The frames from one number to before another.
    #[inline(always)]
    pub fn part(self, begin: usize, end: usize) -> Load<'a> {
        Load {
            chains: self.chains.get(begin..end).unwrap_or_default(),
            frames: self.frames.get(begin..end).unwrap_or_default(),
            heads: self.heads.get(begin..end).unwrap_or_default(),
            ..self
        }
    }

    /// The frames behind the first so many.
    pub fn behind(self, frames: usize) -> Load<'a> {
        self.part(frames, self.frames.len())
    }

    /// Each of them on its way.
    pub fn passages(self, swap: bool) -> impl Iterator<Item = Passage<'a>> {
        let Load { burst, skip, .. } = self;
        let all = self.chains.iter().zip(self.frames).zip(self.heads);
        all.map(move |((chain, frame), beginning)| Passage { burst, chain, skip, frame, beginning, swap })
    }
}

/// How frames go.
#[derive(Debug, Clone, Copy)]
pub struct CarryOptions {
    /// Exchange the addresses of each.
    pub swap: bool,
    /// Begin no further frame once so many bytes have gone.
    pub most_bytes: u64,
}

/// A frame on its way: `frame.len` bytes of `chain` behind its sender's header, the first of them as [`Passage::head`] has
/// them.
#[derive(Debug, Clone, Copy)]
pub struct Passage<'a> {
    /// Where its chain was peeked.
    pub burst: &'a Burst,
    /// Its chain.
    pub chain: &'a Chain,
    /// Bytes of its sender's header, and where the frame begins unless its head is another one than stands there: see
    /// [`Passage::rest_at`].
    pub skip: usize,
    /// What was found out of it.
    pub frame: &'a Frame,
    /// What of its beginning was looked at is there.
    pub beginning: &'a Head,
    /// Exchange its addresses.
    pub swap: bool,
}

impl<'a> Passage<'a> {
    /// The frame's beginning, as far as it was looked at: these bytes go on, whatever stands in their place by now.
    #[inline(always)]
    pub fn head(&self) -> &'a [u8] {
        match self.frame.looked_at {
            0 => &[],
            bytes => self.beginning.get(..bytes.into()).unwrap_or_default(),
        }
    }

    /// Where in its chain the bytes behind its [head](Passage::head) are.
    #[inline(always)]
    pub fn rest_at(&self) -> usize {
        // A tag that was put in may begin before the chain does.
        self.skip.wrapping_add(self.frame.looked_at.into())
    }

    /// Copies the frame as it is to go on; as much of it as there is room for.
    pub fn copy<'room>(&self, room: &'room mut [u8]) -> &'room mut [u8] {
        let len = room.len().min(self.frame.len as usize);
        let copy = room.get_mut(..len).unwrap_or_default();
        let head = self.head();
        // There may be room for less than was looked at.
        let head = head.get(..copy.len()).unwrap_or(head);
        if let Some((begin, rest)) = copy.split_at_mut_checked(head.len()) {
            begin.copy_from_slice(head);
            copy_out(self.burst, self.chain, self.rest_at(), rest);
        }
        if self.swap
            && let Some((to, source)) = copy.get_mut(..12).and_then(|both| both.split_at_mut_checked(6))
        {
            to.swap_with_slice(source);
        }
        copy
    }
}
