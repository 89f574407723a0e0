//! The pump of a relay: forwards the descriptors of a guest's rings to rings of our own on a virtio function, and back. What the
//! descriptors point to is not touched: the function reads and writes the guest's memory itself.
//!
//! ```text
//!   guest's TX ring --peek, check--> our ring --doorbell--> function --DMA--> guest's memory
//!   guest's RX ring <--complete----- our ring <--used------ function
//! ```
//!
//! Each chain is read once and checked to lie in the guest's memory; the function is given what was checked. Chains complete in
//! the order in which they were taken, whatever order the function has. A chain that it never completes holds up its own ring
//! alone, until the device is reset.
//!
//! Lives on one worker. Budget: no allocation, no lock, no system call but the calls that the driver asked for, no panic; a
//! doorbell (one register write) a burst at most.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use ringway_engine::{Armed, Budget, Polled, Pump};
use ringway_ring::chain::{Chain, MAX_CHAIN};
use ringway_ring::queue::{Completion, DeviceRing, DriverBuffer, DriverRing, Format, RingFault, SetupError};

use super::guest_queue::{GuestQueue, PortRules};
use crate::counters::DropReason;
use crate::notify::EventFd;
use crate::vdpa::QueueBinding;
use crate::virtio::rings::OwnRing;
use crate::virtio::transport::Doorbell;

/// See the module's head.
#[derive(Debug)]
pub struct Relay {
    legs: Vec<Box<dyn Leg>>,
    is_stopping: bool,
    /// Time of the last poll.
    now: u64,
}

/// Our end of a queue of the function.
#[derive(Debug)]
pub struct FunctionQueue {
    /// Its ring, which nobody has used since it began.
    pub ring: OwnRing,
    /// Entries of it.
    pub size: u16,
    /// What tells the function of what is in it.
    pub doorbell: Doorbell,
    /// What the function's interrupt signals.
    pub interrupt: Arc<EventFd>,
}

/// A guest's queue with the function's.
#[derive(Debug)]
pub struct Pair {
    /// The guest's.
    pub guest: QueueBinding,
    /// The function's.
    pub function: FunctionQueue,
    /// The first heads that it has, on a split ring, where they are not what the ring has: see
    /// [`ringway_ring::resume::outstanding`].
    pub first: Vec<u16>,
}

impl Relay {
    /// Queues of one device: even ones receive, odd ones transmit (virtio 1.3 §5.1.2).
    ///
    /// # Errors
    /// A guest's ring cannot be served.
    pub fn new(pairs: Vec<Pair>, rules: PortRules) -> Result<Relay, SetupError> {
        let legs: Result<Vec<Box<dyn Leg>>, SetupError> =
            pairs.into_iter().map(|pair| leg(pair, rules)).collect();
        Ok(Relay::of(legs?))
    }

    /// Queues with their far ends, whatever these are.
    pub(super) fn of(legs: Vec<Box<dyn Leg>>) -> Relay {
        Relay { legs, is_stopping: false, now: 0 }
    }
}

/// A queue's way to the function and back, with its formats known.
fn leg(pair: Pair, rules: PortRules) -> Result<Box<dyn Leg>, SetupError> {
    let Pair { guest, function, first } = pair;
    let FunctionQueue { ring, size, doorbell, interrupt } = function;
    let is_receive = guest.index.is_multiple_of(2);
    let far = Far { size, doorbell, interrupt, is_receive };
    Ok(match (guest.format, ring) {
        (Format::Split, OwnRing::Split(ring)) => {
            Box::new(Line::new(GuestQueue::split_with(guest, rules, &first)?, ring, far))
        }
        (Format::Split, OwnRing::Packed(ring)) => {
            Box::new(Line::new(GuestQueue::split_with(guest, rules, &first)?, ring, far))
        }
        (Format::Packed, OwnRing::Split(ring)) => {
            Box::new(Line::new(GuestQueue::packed(guest, rules)?, ring, far))
        }
        (Format::Packed, OwnRing::Packed(ring)) => {
            Box::new(Line::new(GuestQueue::packed(guest, rules)?, ring, far))
        }
    })
}

/// One queue, whatever the formats of its two rings: one dynamic call a burst.
pub(super) trait Leg: Send + fmt::Debug {
    /// Takes what the function has finished, and gives it more unless it is to `rest`. How many chains that were. `now` is the time
    /// at the start of the poll.
    fn step(&mut self, most: usize, rest: bool, now: u64) -> u32;
    /// The poll that it was part of ended at this time: what it gave the guest back was published by then.
    fn ended(&mut self, now: u64);
    /// True if the function has no frame of the guest's to send any more. What it has to receive into is not waited for.
    fn is_drained(&self) -> bool;
    /// Asks to be told of news. None: there is no way. Some(true): there are news already.
    fn arm(&mut self) -> Option<bool>;
    /// Takes that back.
    fn disarm(&mut self);
    /// What becomes readable when there are news.
    fn wake_sources(&self) -> Vec<BorrowedFd<'_>>;
}

struct Far {
    size: u16,
    doorbell: Doorbell,
    interrupt: Arc<EventFd>,
    is_receive: bool,
}

struct Line<R, D> {
    end: Box<GuestQueue<R>>,
    ring: Box<D>,
    far: Far,
    /// Chains that the function has, in the order in which it was given them; those that it finished before others.
    given: VecDeque<Given>,
    /// The token of the first of them.
    first: u32,
    /// The function's ring had no room for the next chain, and has not finished any since.
    is_full: bool,
    /// When the first of what the guest was given back in this poll was first seen.
    seen: Option<u64>,
    buffers: Vec<DriverBuffer>,
}

#[derive(Clone, Copy)]
struct Given {
    chain: Chain,
    /// Bytes that the function wrote, once it is finished.
    written: Option<u32>,
    /// When it was first seen.
    since: u64,
}

impl<R, D> fmt::Debug for Line<R, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Line").field("given", &self.given.len()).finish_non_exhaustive()
    }
}

/// Where a chain cannot go on.
enum Stop {
    /// The function's ring has no room for it now.
    Full,
    /// It is the guest's fault.
    Fault(RingFault),
}

impl<R: DeviceRing, D: DriverRing> Line<R, D> {
    fn new(end: Box<GuestQueue<R>>, mut ring: Box<D>, far: Far) -> Line<R, D> {
        ring.disable_calls();
        let given = VecDeque::with_capacity(far.size.into());
        Line {
            end,
            ring,
            far,
            given,
            first: 0,
            is_full: false,
            seen: None,
            buffers: Vec::with_capacity(MAX_CHAIN),
        }
    }

    /// Takes all that the function has finished: it shows a frame over several buffers at once, and the guest is to see it so.
    fn take_back(&mut self, now: u64) -> u32 {
        let (mut done, mut collected) = ([Completion::default(); BURST], 0);
        // As many as it may have at a time, and no function goes on for ever.
        for _ in 0..=usize::from(self.far.size) / BURST {
            let count = match self.ring.collect(&mut done) {
                Ok(count) => count,
                Err(fault) => {
                    // The function broke the rules: what it has may never come back.
                    self.end.fail(fault);
                    0
                }
            };
            for completion in done.iter().take(count) {
                let at = completion.token.wrapping_sub(self.first) as usize;
                // The ring gives back each token that it was given, once.
                if let Some(given) = self.given.get_mut(at) {
                    given.written = Some(completion.written.min(given.chain.writable_bytes));
                }
            }
            collected += count;
            if count < BURST {
                break;
            }
        }
        self.is_full &= collected == 0;
        if self.end.is_faulted() {
            return 0;
        }
        let mut count = 0;
        let header = self.end.ingress.header_len as u32;
        while let Some(Given { chain, written: Some(written), since }) = self.given.front().copied() {
            self.given.pop_front();
            // A buffer waits for a frame, which is seen once it is there.
            self.seen.get_or_insert(if self.far.is_receive { now } else { since });
            self.first = self.first.wrapping_add(1);
            self.end.ring.complete(&chain, written);
            let bytes = if self.far.is_receive { written } else { chain.readable_bytes };
            self.end.tally.packets += 1;
            self.end.tally.bytes += u64::from(bytes.saturating_sub(header));
            count += 1;
        }
        count
    }

    /// How many chains the function may be given now.
    fn room(&self) -> usize {
        let room = usize::from(self.far.size) - self.given.len().min(self.far.size.into());
        if self.is_full { 0 } else { room }
    }

    /// What the guest has made available can be taken now: by the function, or to be dropped.
    fn can_take(&self) -> bool {
        match (self.end.enabled, self.far.is_receive) {
            (true, _) => self.room() > 0,
            (false, true) => false,
            (false, false) => self.given.is_empty(),
        }
    }

    /// Gives the function up to `most` chains.
    fn give(&mut self, most: usize, now: u64) -> u32 {
        let most = most.min(self.room()).min(BURST);
        if most == 0 || self.end.peek(most) == 0 {
            return 0;
        }
        let (mut count, mut fault) = (0, None);
        for at in 0..self.end.burst.chains().len() {
            match self.give_one(at, now) {
                Ok(()) => count += 1,
                Err(Stop::Full) => {
                    self.is_full = true;
                    break;
                }
                Err(Stop::Fault(found)) => {
                    // What precedes it goes on.
                    fault = Some(found).filter(|_| count == 0);
                    break;
                }
            }
        }
        let taken = self.end.burst.chains().get(..count).unwrap_or_default();
        self.end.ring.consume(taken);
        self.end.tally.chains += taken.len() as u64;
        if self.ring.publish() {
            self.far.doorbell.ring();
        }
        if let Some(fault) = fault {
            self.end.fail(fault);
        }
        count as u32
    }

    fn give_one(&mut self, at: usize, now: u64) -> Result<(), Stop> {
        let Some(chain) = self.end.burst.chains().get(at).copied() else { return Err(Stop::Full) };
        let is_receive = self.far.is_receive;
        let (other_way, bytes) = match is_receive {
            true => (chain.readable_bytes, chain.writable_bytes),
            false => (chain.writable_bytes, chain.readable_bytes),
        };
        if other_way != 0 {
            return Err(Stop::Fault(RingFault::Direction));
        }
        if (bytes as usize) < self.end.ingress.header_len {
            return Err(Stop::Fault(RingFault::TooShort));
        }
        if chain.segments() > self.far.size.into() {
            return Err(Stop::Fault(RingFault::ChainLength));
        }
        self.buffers.clear();
        let slices = self.end.burst.readable(&chain).chain(self.end.burst.writable(&chain));
        // Empty ones say nothing, and some functions break on them.
        let filled = self.end.burst.addresses(&chain).zip(slices).filter(|(_, slice)| slice.len() > 0);
        for (gpa, slice) in filled.take(MAX_CHAIN) {
            self.buffers.push(DriverBuffer { gpa, len: slice.len() as u32, writable: is_receive });
        }
        let token = self.first.wrapping_add(self.given.len() as u32);
        self.ring.add(&self.buffers, token).map_err(|_| Stop::Full)?;
        self.given.push_back(Given { chain, written: None, since: now });
        Ok(())
    }

    /// Consumes what is sent by a queue that is disabled, in order behind what the function has.
    fn drop_sent(&mut self, most: usize) -> u32 {
        if !self.can_take() {
            return 0;
        }
        let peeked = self.end.peek(most.min(BURST));
        if peeked > 0 {
            self.end.finish(peeked);
            self.end.counters.add_drops(DropReason::TxDisabled, peeked as u64);
        }
        peeked as u32
    }
}

impl<R: DeviceRing, D: DriverRing> Leg for Line<R, D> {
    fn step(&mut self, most: usize, rest: bool, now: u64) -> u32 {
        if self.end.is_faulted() {
            return 0;
        }
        let mut moved = self.take_back(now);
        if !rest && !self.end.is_faulted() {
            moved += if self.end.enabled { self.give(most, now) } else { self.drop_sent(most) };
        }
        if moved > 0 {
            self.end.publish();
        }
        moved
    }

    fn ended(&mut self, now: u64) {
        if let Some(seen) = self.seen.take() {
            self.end.counters.add_latency(now.saturating_sub(seen));
        }
    }

    fn is_drained(&self) -> bool {
        self.far.is_receive || self.given.is_empty() || self.end.is_faulted()
    }

    fn arm(&mut self) -> Option<bool> {
        // While nothing can be taken, it is the function that brings news.
        let is_here = self.can_take() && self.end.arm()?;
        Some(is_here || (!self.end.is_faulted() && self.ring.enable_calls()))
    }

    fn disarm(&mut self) {
        self.end.disarm();
        self.ring.disable_calls();
    }

    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        self.end.wake_source().into_iter().chain([self.far.interrupt.as_fd()]).collect()
    }
}

impl Pump for Relay {
    fn poll(&mut self, budget: &Budget, now: u64) -> Polled {
        self.now = now;
        let (most, rest) = (budget.chains as usize, self.is_stopping);
        let moved: u32 = self.legs.iter_mut().map(|leg| leg.step(most, rest, now)).sum();
        if moved > 0 { Polled::Moved(moved) } else { Polled::Idle }
    }

    fn took(&mut self, cycles: u64) {
        let ended = self.now.saturating_add(cycles);
        self.legs.iter_mut().for_each(|leg| leg.ended(ended));
    }

    fn arm(&mut self) -> Armed {
        let (mut has_work, mut cannot) = (false, false);
        for leg in &mut self.legs {
            match leg.arm() {
                Some(is_here) => has_work |= is_here,
                None => cannot = true,
            }
        }
        if has_work {
            self.disarm();
            return Armed::HasWork;
        }
        if cannot { Armed::CannotSleep } else { Armed::Sleep { within_ns: None } }
    }

    fn disarm(&mut self) {
        self.legs.iter_mut().for_each(|leg| leg.disarm());
    }

    fn begin_stop(&mut self) -> bool {
        self.is_stopping = true;
        self.stopped()
    }

    fn stopped(&mut self) -> bool {
        // What has gone is the guest's again, also if the pump is let go of now.
        for leg in &mut self.legs {
            leg.step(BURST, true, self.now);
        }
        let is_stopped = self.legs.iter().all(|leg| leg.is_drained());
        // It may be placed again.
        self.is_stopping = !is_stopped;
        is_stopped
    }

    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        self.legs.iter().flat_map(|leg| leg.wake_sources()).collect()
    }
}

/// Chains in one burst.
const BURST: usize = 32;

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use ringway_ring::features::Features;
    use ringway_ring::guest::GuestMap;
    use ringway_ring::layout::{DriverConfig, Layout};
    use ringway_ring::memory::{HostMemory, PageKind};
    use ringway_ring::position::{Position, PositionPage};
    use ringway_ring::queue::{IndirectTable, QueueConfig, RingFull, RingSize};
    use ringway_ring::split::device::SplitDevice;
    use ringway_ring::split::driver::SplitDriver;

    use super::*;
    use crate::bus::pci::{Registers, View, Width};
    use crate::vdpa::FaultReporter;

    /// A function's ring whose function completes what a test says.
    #[derive(Clone, Default)]
    struct Model(Arc<Mutex<ModelRing>>);

    #[derive(Default)]
    struct ModelRing {
        /// What it was given: tokens, and their buffers.
        given: Vec<(u32, Vec<DriverBuffer>)>,
        /// What it completes next.
        done: Vec<Completion>,
        room: usize,
        fault: Option<RingFault>,
    }

    impl DriverRing for Model {
        fn free_slots(&self) -> usize {
            self.0.lock().unwrap().room
        }
        fn add(&mut self, buffers: &[DriverBuffer], token: u32) -> Result<(), RingFull> {
            let mut ring = self.0.lock().unwrap();
            ring.room = ring.room.checked_sub(buffers.len()).ok_or(RingFull)?;
            ring.given.push((token, buffers.to_vec()));
            Ok(())
        }
        fn add_indirect(&mut self, _: &IndirectTable, _: u32) -> Result<(), RingFull> {
            Err(RingFull)
        }
        fn publish(&mut self) -> bool {
            true
        }
        fn collect(&mut self, into: &mut [Completion]) -> Result<usize, RingFault> {
            let mut ring = self.0.lock().unwrap();
            if let Some(fault) = ring.fault {
                return Err(fault);
            }
            let count = into.len().min(ring.done.len());
            into.iter_mut().zip(ring.done.drain(..count)).for_each(|(to, from)| *to = from);
            Ok(count)
        }
        fn enable_calls(&mut self) -> bool {
            !self.0.lock().unwrap().done.is_empty()
        }
        fn disable_calls(&mut self) {}
    }

    struct Nowhere;

    impl Registers for Nowhere {
        fn size(&self) -> u64 {
            4
        }
        fn read(&self, _: u64, width: Width) -> u64 {
            width.ones()
        }
        fn write(&self, _: u64, _: Width, _: u64) {}
    }

    /// A guest's ring with a function's.
    struct Bed {
        guest: SplitDriver,
        line: Line<SplitDevice, Model>,
        model: Model,
        fault: FaultReporter,
        _memory: HostMemory,
    }

    const GPA: u64 = 0x4000_0000;
    const BUFFERS: u64 = GPA + 65536;

    impl Bed {
        fn new(is_receive: bool) -> Bed {
            let memory = HostMemory::allocate_on(PageKind::Base, "test", 1 << 20).unwrap();
            let map: Arc<GuestMap> = Arc::new(memory.guest_map(GPA).unwrap());
            let size = RingSize::new(Format::Split, 64).unwrap();
            let layout = Layout::new(Format::Split, size);
            let (features, position) = (Features::VERSION_1, Position::START);
            let driver =
                DriverConfig { size, features, map: Arc::clone(&map), areas: layout.at(GPA), position };
            let areas = layout.at(memory.address());
            let fault = FaultReporter::new(Arc::new(EventFd::new().unwrap()));
            let binding = QueueBinding {
                index: u16::from(!is_receive),
                enabled: true,
                format: Format::Split,
                config: QueueConfig {
                    size,
                    features,
                    map,
                    desc_user_addr: areas.desc,
                    driver_user_addr: areas.driver,
                    device_user_addr: areas.device,
                    position,
                    keeper: PositionPage::anonymous().unwrap().slot(0).unwrap(),
                    skip_used: false,
                },
                record: None,
                kick: Some(Arc::new(EventFd::new().unwrap())),
                call: None,
                counters: Arc::default(),
                fault: fault.clone(),
            };
            let model = Model::default();
            model.0.lock().unwrap().room = 64;
            let doorbell = Doorbell::of(View::new(Arc::new(Nowhere)));
            let interrupt = Arc::new(EventFd::new().unwrap());
            let far = Far { size: 64, doorbell, interrupt, is_receive };
            let end = GuestQueue::split(binding, PortRules { mtu: 1500, only: None }).unwrap();
            let line = Line::new(end, Box::new(model.clone()), far);
            Bed { guest: driver.start_split().unwrap(), line, model, fault, _memory: memory }
        }

        /// The guest makes a chain available: lengths of its buffers.
        fn offer(&mut self, token: u32, lens: &[u32]) {
            let writable = self.line.far.is_receive;
            let at = BUFFERS + u64::from(token) * 4096;
            let buffers: Vec<DriverBuffer> =
                lens.iter().map(|len| DriverBuffer { gpa: at, len: *len, writable }).collect();
            self.guest.add(&buffers, token).unwrap();
            self.guest.publish();
        }

        /// The function completes these tokens with so many bytes.
        fn complete(&self, done: &[(u32, u32)]) {
            let done = done.iter().map(|(token, written)| Completion { token: *token, written: *written });
            self.model.0.lock().unwrap().done.extend(done);
        }

        /// What the guest gets back.
        fn back(&mut self) -> Vec<(u32, u32)> {
            let mut done = [Completion::default(); 64];
            let count = self.guest.collect(&mut done).unwrap();
            done[..count].iter().map(|done| (done.token, done.written)).collect()
        }
    }

    #[test]
    fn chains_come_back_in_the_guests_order_whatever_order_the_function_has() {
        let mut bed = Bed::new(true);
        (0..6).for_each(|token| bed.offer(token, &[1024]));
        assert_eq!(bed.line.step(32, false, 0), 6);
        let given: Vec<u32> = bed.model.0.lock().unwrap().given.iter().map(|(token, _)| *token).collect();
        assert_eq!(given, [0, 1, 2, 3, 4, 5]);
        bed.complete(&[(3, 103), (1, 101)]);
        assert_eq!((bed.line.step(32, false, 0), bed.back()), (0, vec![]));
        bed.complete(&[(0, 100)]);
        assert_eq!((bed.line.step(32, false, 0), bed.back()), (2, vec![(0, 100), (1, 101)]));
        // No more than the buffers hold, whatever the function says.
        bed.complete(&[(2, u32::MAX), (5, 105), (4, 0)]);
        assert_eq!(bed.line.step(32, false, 0), 4);
        assert_eq!(bed.back(), [(2, 1024), (3, 103), (4, 0), (5, 105)]);
    }

    #[test]
    fn what_is_completed_twice_or_was_never_given_changes_nothing() {
        let mut bed = Bed::new(true);
        (0..2).for_each(|token| bed.offer(token, &[1024]));
        bed.line.step(32, false, 0);
        bed.complete(&[(7, 1), (u32::MAX, 1), (1, 20), (1, 30)]);
        assert_eq!((bed.line.step(32, false, 0), bed.back()), (0, vec![]));
        bed.complete(&[(0, 10)]);
        bed.line.step(32, false, 0);
        assert_eq!(bed.back(), [(0, 10), (1, 30)]);
        assert_eq!(bed.fault.reported(), None);
    }

    #[test]
    fn function_whose_ring_breaks_the_rules_costs_the_queue_by_name() {
        let mut bed = Bed::new(false);
        bed.offer(0, &[100]);
        bed.line.step(32, false, 0);
        assert!(!bed.line.is_drained());
        bed.model.0.lock().unwrap().fault = Some(RingFault::UsedId);
        bed.line.step(32, false, 0);
        assert_eq!(bed.fault.reported(), Some(RingFault::UsedId));
        bed.offer(1, &[100]);
        assert_eq!((bed.line.step(32, false, 0), bed.back()), (0, vec![]));
        // Nothing more is waited for.
        assert!(bed.line.is_drained());
    }

    #[test]
    fn chain_that_no_function_may_see_faults_its_ring_behind_those_that_it_may() {
        for (is_receive, bad, fault) in [
            (true, &[11][..], RingFault::TooShort),
            (false, &[5, 6], RingFault::TooShort),
            (false, &[1; 65], RingFault::ChainLength),
        ] {
            let mut bed = Bed::new(is_receive);
            bed.offer(0, &[1024]);
            if bad.len() < 64 {
                bed.offer(1, bad);
                assert_eq!(bed.line.step(32, false, 0), 1);
                assert_eq!(bed.fault.reported(), None, "what precedes it goes on");
                bed.line.step(32, false, 0);
            } else {
                // Longer than the function's ring, which is smaller than the guest's here.
                bed.line.far.size = 2;
                bed.line.step(32, false, 0);
                bed.complete(&[(0, 0)]);
                bed.line.step(32, false, 0);
                bed.offer(1, &[100, 100, 100]);
                bed.line.step(32, false, 0);
            }
            assert_eq!(bed.fault.reported(), Some(fault));
            let given = bed.model.0.lock().unwrap().given.len();
            assert_eq!(given, 1, "the function saw it");
        }
    }

    #[test]
    fn frame_over_more_buffers_than_a_burst_is_seen_by_the_guest_at_once() {
        let mut bed = Bed::new(true);
        (0..40).for_each(|token| bed.offer(token, &[1024]));
        assert_eq!(bed.line.step(64, false, 0) + bed.line.step(64, false, 0), 40);
        bed.complete(&(0..40).map(|token| (token, 1024)).collect::<Vec<_>>());
        assert_eq!((bed.line.step(64, false, 0), bed.back().len()), (40, 40));
    }

    #[test]
    fn queue_that_can_take_nothing_sleeps_until_the_function_has_finished_something() {
        let mut bed = Bed::new(true);
        bed.model.0.lock().unwrap().room = 1;
        (0..2).for_each(|token| bed.offer(token, &[1024]));
        assert_eq!(bed.line.step(32, false, 0), 1);
        assert_eq!((bed.line.step(32, false, 0), bed.line.arm()), (0, Some(false)));
        bed.complete(&[(0, 100)]);
        assert_eq!(bed.line.arm(), Some(true));
        bed.line.disarm();
        bed.model.0.lock().unwrap().room = 1;
        assert_eq!((bed.line.step(32, false, 0), bed.line.arm()), (2, Some(false)));
        // Disabled: what is posted waits, whatever comes.
        bed.line.end.enabled = false;
        bed.offer(2, &[1024]);
        assert_eq!((bed.line.step(32, false, 0), bed.line.arm()), (0, Some(false)));
        // What a disabled queue sends is dropped behind what the function has.
        let mut bed = Bed::new(false);
        bed.offer(0, &[100]);
        bed.line.step(32, false, 0);
        bed.line.end.enabled = false;
        bed.offer(1, &[100, 0]);
        assert_eq!((bed.line.step(32, false, 0), bed.line.arm()), (0, Some(false)));
        bed.complete(&[(0, 0)]);
        assert_eq!((bed.line.step(32, false, 0), bed.back()), (2, vec![(0, 0), (1, 0)]));
        assert_eq!(bed.line.arm(), Some(false));
    }

    #[test]
    fn empty_buffers_are_left_out() {
        let mut bed = Bed::new(false);
        bed.offer(0, &[0, 60, 0, 40]);
        bed.line.step(32, false, 0);
        let given = bed.model.0.lock().unwrap().given.clone();
        assert_eq!(given[0].1.iter().map(|buffer| buffer.len).collect::<Vec<_>>(), [60, 40]);
    }

    #[test]
    fn full_ring_of_the_function_holds_what_follows_until_there_is_room() {
        let mut bed = Bed::new(false);
        bed.model.0.lock().unwrap().room = 3;
        (0..3).for_each(|token| bed.offer(token, &[100, 200]));
        assert_eq!(bed.line.step(32, false, 0), 1);
        assert_eq!(bed.line.step(32, false, 0), 0);
        bed.model.0.lock().unwrap().room = 64;
        bed.complete(&[(0, 0)]);
        assert_eq!((bed.line.step(32, false, 0), bed.back()), (3, vec![(0, 0)]));
        // A queue that is to rest gives no more, and takes back what comes.
        bed.offer(3, &[100]);
        bed.complete(&[(1, 0)]);
        assert_eq!((bed.line.step(32, true, 0), bed.back()), (1, vec![(1, 0)]));
        assert!(!bed.line.is_drained());
        bed.complete(&[(2, 0)]);
        bed.line.step(32, true, 0);
        assert!(bed.line.is_drained());
    }
}
