//! The pump of a block device's queue: takes requests from the guest's ring, hands them to a backing, and gives them back with
//! their status as they end, in any order.
//!
//! Lives on one worker. Budget: no allocation, no lock, no panic; system calls are the calls that the driver asked for, and what
//! the backing does in a turn, once a poll.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use ringway_engine::{Armed, Budget, Polled, Pump};
use ringway_ring::chain::{Burst, Chain, Held, Span};
use ringway_ring::guest::GuestMap;
use ringway_ring::queue::{DeviceRing, RingFault, SetupError};
use ringway_ring::tsc;

use super::backing::{BackingQueue, Ended, Operation, Outcome, Submitted, Taken, Wake};
use super::request::{Ask, HEADER, OnRanges, RANGE, Request, Shape};
use crate::counters::{DropReason, QueueCounters, RequestKind, Tally};
use crate::notify::{CallFd, EventFd};
use crate::vdpa::{FaultReporter, QueueBinding};

/// See the module's head.
pub(super) struct RequestQueue<R, B> {
    ring: R,
    backing: B,
    burst: Burst,
    requests: Requests,
    /// What the last turn came to.
    ended: Ended,
    /// Requests whose next range is to be handed over.
    ranges_left: VecDeque<u16>,
    shape: Arc<Shape>,
    map: Arc<GuestMap>,
    counters: Arc<QueueCounters>,
    tally: Tally,
    kick: Option<Arc<EventFd>>,
    call: Option<Arc<CallFd>>,
    fault: FaultReporter,
    is_faulted: bool,
    is_stopping: bool,
    /// The backing, or the room for requests, was full when the ring was last looked at.
    is_full: bool,
    /// The same of ranges: they wait until something ends.
    are_ranges_full: bool,
    /// So many cycles from the last poll on, nothing more is done for the guest than was.
    waits: Option<u64>,
    /// Requests of each kind, and their bytes, that were done in this poll as soon as they were seen.
    at_once: [(u64, u64); RequestKind::ALL.len()],
}

/// The requests that the backing has, by slot.
#[derive(Debug)]
struct Requests {
    held: Held,
    slots: Vec<Slot>,
    free: Vec<u16>,
}

/// What is known of a request that is under way, beside its chain.
#[derive(Debug, Clone, Copy)]
struct Slot {
    /// Whose data goes where.
    way: Way,
    /// Bytes written if it succeeds, status included.
    writes: u32,
    /// Bytes of its data, for the counters.
    bytes: u64,
    /// Its ranges, and the next one's number.
    ranges: Option<(OnRanges, u64)>,
    /// What it is for, if it is counted by kind.
    kind: Option<RequestKind>,
    /// When it was first seen, in cycles.
    seen: u64,
}

/// Where the data of a request is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// In what the guest has written.
    FromGuest,
    /// In what the guest is to be given.
    ToGuest,
    /// Nowhere any more: the guest's memory is left alone.
    Nowhere,
}

/// What became of a chain.
enum Begun {
    /// It is out of the ring.
    Away { bytes: u64 },
    /// It stays in the ring.
    Full,
    /// It broke the ring's rules.
    Fault(RingFault),
}

impl Requests {
    fn try_new(map: Arc<GuestMap>, slots: u16, segments: u16) -> Result<Requests, SetupError> {
        let held = Held::try_new(map, slots, segments).map_err(|_| SetupError::NoMemory)?;
        let none = Slot { way: Way::FromGuest, writes: 0, bytes: 0, ranges: None, kind: None, seen: 0 };
        Ok(Requests { held, slots: vec![none; slots.into()], free: (0..slots).rev().collect() })
    }

    /// Nothing is under way.
    fn is_empty(&self) -> bool {
        self.free.len() == self.slots.len()
    }

    /// The request is under way, in this slot, which is the next free one.
    fn keep(&mut self, slot: u16, burst: &Burst, chain: &Chain, request: Slot) -> bool {
        let Some(place) = self.slots.get_mut(usize::from(slot)) else { return false };
        if !self.held.keep(slot, burst, chain) {
            return false;
        }
        *place = request;
        self.free.pop();
        true
    }

    /// The data of all of them is out of reach from now on.
    fn forget_data(&mut self) {
        self.slots.iter_mut().for_each(|slot| slot.way = Way::Nowhere);
    }

    fn release(&mut self, slot: u16) -> Option<(Chain, Slot)> {
        let request = *self.slots.get(usize::from(slot))?;
        let chain = self.held.release(slot)?;
        // There is room: the slot was taken out of it.
        self.free.push(slot);
        Some((chain, request))
    }
}

impl Taken for Requests {
    #[inline]
    fn data(&self, slot: u16) -> Span<'_> {
        match self.slots.get(usize::from(slot)).map(|request| request.way) {
            Some(Way::ToGuest) => {
                let writable = self.held.writable(slot);
                writable.part(0, writable.len().saturating_sub(1))
            }
            Some(Way::FromGuest) => self.held.readable(slot).part(HEADER as u64, u64::MAX),
            Some(Way::Nowhere) | None => Span::EMPTY,
        }
    }
}

/// How many requests a queue has under way, and of how many pieces each may be.
#[derive(Debug, Clone, Copy)]
pub(super) struct Room {
    pub(super) requests: u16,
    pub(super) segments: u16,
}

impl<R: DeviceRing + 'static, B: BackingQueue> RequestQueue<R, B> {
    /// A queue whose ring is `ring`.
    pub(super) fn new(
        binding: QueueBinding,
        mut ring: R,
        backing: B,
        shape: Arc<Shape>,
        room: Room,
    ) -> Result<Box<Self>, SetupError> {
        let map = binding.config.map;
        // Made here: there is no making of anything on a worker.
        binding.counters.requests();
        let burst = Burst::try_new(Arc::clone(&map)).map_err(|_| SetupError::NoMemory)?;
        // It is about to be polled: the driver need not kick until the pump arms.
        ring.disable_kicks();
        Ok(Box::new(RequestQueue {
            ring,
            backing,
            burst,
            requests: Requests::try_new(Arc::clone(&map), room.requests, room.segments)?,
            ended: Ended::new(room.requests),
            ranges_left: VecDeque::with_capacity(room.requests.into()),
            shape,
            map,
            counters: binding.counters,
            tally: Tally::default(),
            kick: binding.kick,
            call: binding.call,
            fault: binding.fault,
            is_faulted: false,
            is_stopping: false,
            is_full: false,
            are_ranges_full: false,
            waits: None,
            at_once: Default::default(),
        }))
    }

    /// Takes requests from the ring; how many.
    fn take(&mut self, budget: &Budget, now: u64) -> u32 {
        self.is_full = false;
        let most = (budget.chains as usize).min(Burst::CHAINS);
        let peeked = match self.ring.peek(&mut self.burst, most) {
            Ok(peeked) => peeked,
            Err(fault) => {
                self.fail(fault);
                return 0;
            }
        };
        let (mut taken, mut bytes, mut segments) = (0, 0, 0);
        for nth in 0..peeked {
            let Some(&chain) = self.burst.chains().get(nth) else { break };
            match self.begin(&chain, now) {
                Begun::Away { bytes: of_it } => {
                    taken += 1;
                    bytes += of_it;
                    segments += chain.segments() as u64;
                }
                Begun::Full => {
                    self.is_full = true;
                    break;
                }
                Begun::Fault(fault) => {
                    self.fail(fault);
                    break;
                }
            }
            if bytes >= budget.bytes || segments >= budget.descriptors.into() {
                break;
            }
        }
        taken
    }

    /// Takes a chain out of the ring, if there is room for what it asks.
    #[inline]
    fn begin(&mut self, chain: &Chain, now: u64) -> Begun {
        let Some(&slot) = self.requests.free.last() else { return Begun::Full };
        let (readable, writable) = (self.burst.readable_span(chain), self.burst.writable_span(chain));
        let Some(request) = Request::read(readable, writable, &self.shape) else {
            return Begun::Fault(RingFault::TooShort);
        };
        let bytes = request.data.len();
        let kind = request.ask.kind();
        if kind.is_some()
            && let Err(wait) = self.shape.limits.room(now)
        {
            self.waits = Some(wait);
            self.counters.add_held();
            return Begun::Full;
        }
        let (outcome, operation, data) = match request.ask {
            // Nothing of the disk is asked.
            Ask::Do(Operation::Read { .. } | Operation::Write { .. }) if bytes == 0 => {
                (Some(Outcome::Done), None, Span::EMPTY)
            }
            Ask::Do(operation) => (None, Some(operation), request.data),
            Ask::GetId => {
                request.data.write(&self.shape.serial);
                (Some(Outcome::Done), None, Span::EMPTY)
            }
            Ask::Ranges(_) => (None, None, Span::EMPTY),
            Ask::Unsupported => (Some(Outcome::Unsupported), None, Span::EMPTY),
            Ask::Refused(why) => (Some(Outcome::Failed(why)), None, Span::EMPTY),
        };
        // Made for a request that stays, and for no other.
        let under_way = || Slot {
            way: if kind == Some(RequestKind::Read) { Way::ToGuest } else { Way::FromGuest },
            writes: request.writes,
            bytes,
            ranges: match request.ask {
                Ask::Ranges(what) => Some((what, 0)),
                _ => None,
            },
            kind,
            seen: now,
        };
        let outcome = match (outcome, operation) {
            (Some(outcome), _) => outcome,
            // A chain that nobody can keep is not begun.
            (None, _) if chain.segments() > self.requests.held.per_slot() => {
                Outcome::Failed(DropReason::TooManySegments)
            }
            (None, Some(operation)) => match self.backing.submit(slot, operation, data) {
                Submitted::Ended(outcome) => outcome,
                Submitted::Full => return Begun::Full,
                Submitted::Taken => {
                    self.shape.limits.charge(bytes, now);
                    self.requests.keep(slot, &self.burst, chain, under_way());
                    self.ring.consume(std::slice::from_ref(chain));
                    return Begun::Away { bytes: 0 };
                }
            },
            (None, None) => {
                self.shape.limits.charge(bytes, now);
                self.requests.keep(slot, &self.burst, chain, under_way());
                self.ring.consume(std::slice::from_ref(chain));
                self.ranges_left.push_back(slot);
                return Begun::Away { bytes: 0 };
            }
        };
        request.status.write(&[status(outcome)]);
        self.ring.consume(std::slice::from_ref(chain));
        if kind.is_some() {
            self.shape.limits.charge(bytes, now);
        }
        if let (Outcome::Done, Some(kind)) = (outcome, kind) {
            let (requests, all) = &mut self.at_once[kind as usize];
            (*requests, *all) = (*requests + 1, *all + bytes);
        }
        self.answer(chain, request.writes, bytes, outcome);
        Begun::Away { bytes }
    }

    /// Gives a chain back whose status was written: `writes` bytes if it succeeded, `bytes` of them, or of what was read, data.
    #[inline]
    fn answer(&mut self, chain: &Chain, writes: u32, bytes: u64, outcome: Outcome) {
        let written = if outcome == Outcome::Done { writes } else { 1 };
        self.ring.complete(chain, written);
        self.tally.chains += 1;
        match outcome {
            Outcome::Done => {
                self.tally.packets += 1;
                self.tally.bytes += bytes;
            }
            Outcome::Failed(why) => self.counters.add_drops(why, 1),
            Outcome::Unsupported => self.counters.add_drops(DropReason::Unsupported, 1),
        }
    }

    /// A request that was under way ended, or one range of it.
    fn end(&mut self, slot: u16, outcome: Outcome) {
        let ranges = self.requests.slots.get_mut(usize::from(slot)).and_then(|slot| slot.ranges.as_mut());
        let next = ranges.map(|(_, next)| {
            *next += 1;
            *next
        });
        let has_more = next.is_some_and(|next| next < self.requests.data(slot).len() / RANGE as u64);
        if has_more && outcome == Outcome::Done && !self.is_faulted {
            self.ranges_left.push_back(slot);
        } else {
            self.finish(slot, outcome);
        }
    }

    /// Gives a request back that was under way.
    fn finish(&mut self, slot: u16, outcome: Outcome) {
        if !self.is_faulted {
            let writable = self.requests.held.writable(slot);
            writable.part(writable.len().saturating_sub(1), 1).write(&[status(outcome)]);
        }
        let Some((chain, request)) = self.requests.release(slot) else { return };
        if !self.is_faulted {
            if let (Outcome::Done, Some(kind)) = (outcome, request.kind) {
                let took = tsc::cycles().saturating_sub(request.seen);
                self.counters.requests().add(kind, 1, request.bytes, took);
            }
            self.answer(&chain, request.writes, request.bytes, outcome);
        }
    }

    /// Hands over a range of each request that waits for it, one after the other and within the budget: each is read once, checked,
    /// and done so.
    fn go_on_with_ranges(&mut self, budget: &Budget, now: u64) -> u32 {
        let (mut done, mut bytes) = (0, 0);
        for _ in 0..self.ranges_left.len() {
            let Some(&slot) = self.ranges_left.front() else { break };
            if self.is_faulted {
                self.ranges_left.pop_front();
                self.finish(slot, Outcome::Unsupported);
                continue;
            }
            if bytes >= budget.bytes {
                break;
            }
            // What was taken is done before a stop, and a stop is not to wait for it.
            if !self.is_stopping
                && let Err(wait) = self.shape.limits.room(now)
            {
                self.waits = Some(wait);
                self.counters.add_held();
                break;
            }
            let ranges = self.requests.slots.get(usize::from(slot)).and_then(|slot| slot.ranges);
            let Some((what, next)) = ranges else {
                self.ranges_left.pop_front();
                continue;
            };
            let mut range = [0; RANGE];
            self.requests.data(slot).part(next * RANGE as u64, RANGE as u64).read(&mut range);
            let (submitted, len) = match self.shape.range(what, range) {
                Ok(operation) => (self.backing.submit(slot, operation, Span::EMPTY), length(operation)),
                Err(Ask::Refused(why)) => (Submitted::Ended(Outcome::Failed(why)), 0),
                Err(_) => (Submitted::Ended(Outcome::Unsupported), 0),
            };
            if submitted == Submitted::Full {
                self.are_ranges_full = true;
                break;
            }
            self.ranges_left.pop_front();
            // To give space back moves no bytes.
            self.shape.limits.charge(if what == OnRanges::WriteZeroes { len } else { 0 }, now);
            if let Submitted::Ended(outcome) = submitted {
                bytes += len;
                self.end(slot, outcome);
            }
            done += 1;
        }
        done
    }

    /// Makes what was given back visible, and calls the driver if it asked for it; then looks whether the guest's memory held.
    fn publish(&mut self, now: u64) {
        self.counters.add(&mut self.tally);
        if self.is_faulted {
            return;
        }
        if self.at_once.iter().any(|(requests, _)| *requests > 0) {
            let took = tsc::cycles().saturating_sub(now);
            for (kind, (requests, bytes)) in
                RequestKind::ALL.into_iter().zip(std::mem::take(&mut self.at_once))
            {
                if requests > 0 {
                    self.counters.requests().add(kind, requests, bytes, took);
                }
            }
        }
        if self.ring.publish()
            && let Some(call) = &self.call
        {
            self.counters.add_call();
            if !call.call() {
                self.fail(RingFault::CallBlocked);
            }
        }
        if self.map.is_poisoned() {
            self.fail(RingFault::Poisoned);
        }
    }

    /// Counts and reports a fault, once; the ring is not touched any more.
    #[cold]
    fn fail(&mut self, fault: RingFault) {
        self.burst.clear();
        if !self.is_faulted {
            (self.is_faulted, self.waits) = (true, None);
            self.counters.add_fault(fault);
            self.fault.report(fault);
        }
    }
}

/// Bytes of a range.
fn length(operation: Operation) -> u64 {
    match operation {
        Operation::Discard { len, .. } | Operation::WriteZeroes { len, .. } => len,
        Operation::Read { .. } | Operation::Write { .. } | Operation::Flush => 0,
    }
}

fn status(outcome: Outcome) -> u8 {
    match outcome {
        Outcome::Done => STATUS_OK,
        Outcome::Failed(_) => STATUS_IOERR,
        Outcome::Unsupported => STATUS_UNSUPP,
    }
}

impl<R: DeviceRing + 'static, B: BackingQueue> Pump for RequestQueue<R, B> {
    fn poll(&mut self, budget: &Budget, now: u64) -> Polled {
        self.waits = None;
        self.are_ranges_full = false;
        let mut moved = self.go_on_with_ranges(budget, now);
        if !self.is_faulted && !self.is_stopping {
            let taken = self.take(budget, now);
            if taken > 0 {
                self.counters.requests().add_taken(taken.into());
            }
            moved += taken;
        }
        let got_on = self.backing.turn(&self.requests, budget.bytes, &mut self.ended);
        self.are_ranges_full &= !got_on;
        while let Some((slot, outcome)) = self.ended.pop() {
            self.end(slot, outcome);
            moved += 1;
        }
        self.publish(now);
        match moved.max(got_on.into()) {
            0 => Polled::Idle,
            moved => Polled::Moved(moved),
        }
    }

    fn arm(&mut self) -> Armed {
        let ranges_wait = !self.ranges_left.is_empty() && self.waits.is_none() && !self.are_ranges_full;
        if ranges_wait || self.backing.arm() == Wake::HasWork {
            return Armed::HasWork;
        }
        if let Some(cycles) = self.waits {
            // It looks now and then: the limit may be another by then.
            let ns = u128::from(cycles) * 1_000_000_000 / u128::from(tsc::hertz());
            return Armed::Sleep {
                within_ns: Some(u64::try_from(ns).unwrap_or(u64::MAX).min(LOOK_AGAIN_NS)),
            };
        }
        if self.is_faulted || self.is_stopping || (self.is_full && !self.requests.is_empty()) {
            return Armed::Sleep { within_ns: None };
        }
        if self.kick.is_none() {
            return Armed::CannotSleep;
        }
        if self.ring.enable_kicks() {
            self.disarm();
            return Armed::HasWork;
        }
        Armed::Sleep { within_ns: None }
    }

    fn disarm(&mut self) {
        self.backing.disarm();
        if !self.is_faulted {
            self.ring.disable_kicks();
        }
    }

    fn begin_stop(&mut self) -> bool {
        (self.is_stopping, self.waits) = (true, None);
        self.stopped()
    }

    fn stopped(&mut self) -> bool {
        let is_quiet = self.requests.is_empty();
        // It may be placed again.
        self.is_stopping = !is_quiet;
        is_quiet
    }

    fn give_up(&mut self) {
        // As one that faulted, without telling anybody: what is recorded of its requests stays, for who serves the ring next.
        (self.is_faulted, self.waits) = (true, None);
        self.burst.clear();
        self.requests.forget_data();
    }

    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        let kick = self.kick.as_ref().map(|kick| kick.as_fd());
        kick.into_iter().chain(self.backing.wake_source()).collect()
    }
}

impl<R, B> fmt::Debug for RequestQueue<R, B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RequestQueue").field("requests", &self.requests).finish_non_exhaustive()
    }
}

/// How long a queue at its guest's limit sleeps at most.
const LOOK_AGAIN_NS: u64 = 100_000_000;
const STATUS_OK: u8 = 0;
const STATUS_IOERR: u8 = 1;
const STATUS_UNSUPP: u8 = 2;
