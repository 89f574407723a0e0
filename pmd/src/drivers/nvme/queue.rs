//! What a pump's requests go to: a queue pair of a controller.
//!
//! ```text
//!   submit --> job, by slot --cut--> commands, by place of the pair --> controller
//!   turn:      completions --> jobs that are done; commands that are late --> abort, a new pair, a reset: all jobs anew
//! ```
//!
//! A request is as many commands as its data's pieces and the controller's limits make it; it ends with the last of them, and a
//! write that has to last with a flush behind them. It is begun anew when its pair was lost, or the controller says that this may
//! be of use, a few times; what was done of it by then is done twice, with the same data.
//!
//! Owned by one pump. Budget of `submit` and `turn`: no allocation, no lock but one that is only tried, no panic; a system call
//! when something goes wrong.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use ringway_ring::chain::Span;
use ringway_ring::guest::HostSlice;

use super::books::Claim;
use super::live::{Counts, Live, Place, Seat};
use crate::block::backing::{BackingQueue, Ended, Operation, Outcome, Submitted, Taken, Wake};
use crate::block::disk::QueueSeat;
use crate::counters::DropReason;
use crate::dma::OwnMemory;
use crate::nvme::NvmeFault;
use crate::nvme::command::{Command, MOST_BLOCKS, Range};
use crate::nvme::controller::BESIDE_BYTES;
use crate::nvme::data::{Cut, Kind, Piece, Rules, Scatter, add};
use crate::nvme::identify::{ControllerInfo, Limits, NamespaceInfo};
use crate::nvme::queue::{Done, Found, QueuePair};

/// What a namespace and its controller take.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    namespace: u32,
    block_log: u8,
    rules: Rules,
    has_cache: bool,
    pub(super) can_deallocate: bool,
    pub(super) can_zero: bool,
    /// Blocks of one command that writes zeroes.
    most_zeroed: u32,
    /// Blocks of one range that is deallocated.
    pub(super) most_in_range: u32,
}

impl Terms {
    pub(super) fn new(controller: &ControllerInfo, limits: &Limits, namespace: &NamespaceInfo) -> Terms {
        let block = namespace.block();
        let whole = |bytes: u64| (bytes - bytes % block).max(block);
        let blocks = |bytes: u64| u32::try_from(bytes >> namespace.block_log).unwrap_or(u32::MAX).max(1);
        Terms {
            namespace: namespace.id,
            block_log: namespace.block_log,
            rules: Rules {
                most: whole(controller.most_bytes).min(u64::from(MOST_BLOCKS) << namespace.block_log),
                block,
                scatter: controller.scatter,
                most_copied: whole(COPY_BYTES),
            },
            has_cache: controller.has_cache,
            can_deallocate: controller.can_deallocate,
            can_zero: controller.can_zero,
            most_zeroed: limits.most_zeroed.map_or(MOST_BLOCKS, blocks).min(MOST_BLOCKS),
            most_in_range: limits.most_in_range.unwrap_or(u32::MAX),
        }
    }
}

/// See the module's head.
pub(super) struct NvmeQueue {
    seat: Arc<Seat>,
    /// None: it was handed over.
    pair: Option<QueuePair>,
    /// The pair is of this generation.
    generation: u32,
    terms: Terms,
    jobs: Vec<Job>,
    /// By place of the pair: what the command there is of.
    commands: Vec<Sent>,
    /// Jobs that have commands to be submitted, the first to come first.
    waiting: VecDeque<u16>,
    /// Jobs that are begun anew at the next tick.
    later: Vec<u16>,
    /// The pieces of one request.
    pieces: Vec<Piece>,
    copies: Copies,
    /// When late commands were looked for last.
    looked: u32,
    // Let go of last, when the pair was left: what the controller may reach for it until then, the namespace and
    // the pair, the controller.
    place: Arc<Place>,
    _claim: Claim,
    live: Arc<Live>,
}

/// A request under way.
#[derive(Debug, Clone, Copy)]
struct Job {
    operation: Operation,
    /// None: the slot is free.
    stage: Option<Stage>,
    /// Bytes that it is about, and of how many commands were submitted.
    bytes: u64,
    begun: u64,
    /// Commands that are out.
    out: u16,
    /// How its first command that failed did.
    failure: Option<Failure>,
    tries: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    /// What it asks for.
    Work,
    /// The flush behind a write that has to last.
    Flush,
}

#[derive(Debug, Clone, Copy)]
struct Failure {
    outcome: Outcome,
    may_try_again: bool,
}

/// A command that is out.
#[derive(Debug, Clone, Copy, Default)]
struct Sent {
    /// The slot of its job; none is out: [`NOBODY`].
    slot: u16,
    /// Where, in the request's data, its part is that was copied or is to be.
    at: u64,
    bytes: u64,
    copy: Option<u16>,
    /// When it was submitted.
    since: u32,
    is_aborted: bool,
}

/// Memory of our own for parts that the controller cannot be pointed to.
struct Copies {
    memory: OwnMemory,
    free: Vec<u16>,
}

impl Copies {
    fn at(&self, nth: u16) -> u64 {
        self.memory.iova() + u64::from(nth) * COPY_BYTES
    }

    fn slice(&self, nth: u16, bytes: u64) -> Option<HostSlice<'_>> {
        self.memory.map().resolve(self.at(nth), bytes).ok()
    }
}

impl fmt::Debug for NvmeQueue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NvmeQueue")
            .field("pair", &self.pair)
            .field("waiting", &self.waiting.len())
            .finish_non_exhaustive()
    }
}

impl NvmeQueue {
    /// With a pair of its own.
    pub(super) fn new(
        live: &Arc<Live>,
        terms: Terms,
        (place, claim): (Arc<Place>, Claim),
        wanted: &QueueSeat<'_>,
    ) -> Result<NvmeQueue, NvmeFault> {
        let entries = (wanted.slots.saturating_add(1)).next_power_of_two().max(LEAST_ENTRIES);
        let entries = entries.min(live.controller.most_entries());
        let (seat, pair) = live.seat(entries)?;
        // Where any pieces can be listed, hardly ever is anything copied.
        let copies = if terms.rules.scatter == Scatter::Bytes { 1 } else { BESIDE_BYTES / COPY_BYTES };
        let memory = live.controller.memory_beside(&pair, copies * COPY_BYTES);
        let memory = match memory {
            Ok(memory) => memory,
            Err(fault) => {
                live.leave(&seat, Some(pair));
                return Err(fault);
            }
        };
        let none = Job {
            operation: Operation::Flush,
            stage: None,
            bytes: 0,
            begun: 0,
            out: 0,
            failure: None,
            tries: 0,
        };
        Ok(NvmeQueue {
            generation: seat.generation(),
            seat,
            commands: vec![Sent { slot: NOBODY, ..Sent::default() }; pair.size().into()],
            pair: Some(pair),
            terms,
            jobs: vec![none; wanted.slots.into()],
            waiting: VecDeque::with_capacity(wanted.slots.into()),
            later: Vec::with_capacity(wanted.slots.into()),
            pieces: Vec::with_capacity(wanted.segments.into()),
            copies: Copies { memory, free: (0..copies as u16).collect() },
            looked: 0,
            place,
            _claim: claim,
            live: Arc::clone(live),
        })
    }

    /// Submits what there is room for of a job. False: there is more.
    #[inline]
    fn go_on(&mut self, slot: u16, data: Span<'_>) -> bool {
        let Some(job) = self.jobs.get(usize::from(slot)).copied() else { return true };
        match (job.stage, job.operation) {
            (None, _) => true,
            (Some(Stage::Flush), _) | (_, Operation::Flush) => {
                self.send(slot, job.bytes, |pair, terms| pair.submit(Command::flush(terms.namespace)))
            }
            (_, Operation::Read { offset }) => self.transfer(slot, offset, false, data),
            (_, Operation::Write { offset, .. }) => self.transfer(slot, offset, true, data),
            (_, Operation::Discard { offset, .. }) => {
                self.each(slot, offset, self.terms.most_in_range, |pair, terms, range| {
                    pair.submit_ranges(terms.namespace, &[range])
                })
            }
            (_, Operation::WriteZeroes { offset, may_unmap, .. }) => {
                self.each(slot, offset, self.terms.most_zeroed, |pair, terms, Range { first, blocks }| {
                    pair.submit(Command::write_zeroes(terms.namespace, first, blocks, may_unmap))
                })
            }
        }
    }

    /// Commands without data, for so many blocks each at most.
    fn each(
        &mut self,
        slot: u16,
        offset: u64,
        most: u32,
        submit: impl Fn(&mut QueuePair, &Terms, Range) -> Option<u16>,
    ) -> bool {
        loop {
            let Some(job) = self.jobs.get(usize::from(slot)) else { return true };
            if job.begun >= job.bytes || job.failure.is_some() {
                return true;
            }
            let (log, left) = (self.terms.block_log, job.bytes - job.begun);
            let bytes = left.min(u64::from(most) << log);
            let range = Range { first: (offset + job.begun) >> log, blocks: (bytes >> log) as u32 };
            if !self.send(slot, bytes, |pair, terms| submit(pair, terms, range)) {
                return false;
            }
        }
    }

    /// Submits one command of a job, about so many of its bytes. False: there is no room.
    #[inline]
    fn send(
        &mut self,
        slot: u16,
        bytes: u64,
        submit: impl FnOnce(&mut QueuePair, &Terms) -> Option<u16>,
    ) -> bool {
        let Some(pair) = self.pair.as_mut().filter(|pair| pair.room() > 0) else { return false };
        let Some(place) = submit(pair, &self.terms) else { return false };
        self.note(slot, place, Sent { slot, bytes, ..Sent::default() });
        true
    }

    /// A command of a job is out.
    #[inline]
    fn note(&mut self, slot: u16, place: u16, sent: Sent) {
        if let Some(command) = self.commands.get_mut(usize::from(place)) {
            *command = Sent { since: self.live.clock(), ..sent };
        }
        if let Some(job) = self.jobs.get_mut(usize::from(slot)) {
            job.begun += sent.bytes;
            job.out += 1;
        }
    }

    /// Reads or writes, as far as there is room.
    #[inline]
    fn transfer(&mut self, slot: u16, offset: u64, is_write: bool, data: Span<'_>) -> bool {
        let Some(job) = self.jobs.get(usize::from(slot)).copied() else { return true };
        if job.failure.is_some() {
            return true;
        }
        self.pieces.clear();
        let base = self.place.base();
        for piece in data.pieces() {
            // The guest's map found the address; all of the map is in the window.
            add(&mut self.pieces, Piece { at: base + piece.gpa, len: piece.slice.len() as u64 });
        }
        let pieces = std::mem::take(&mut self.pieces);
        let is_all = self.transfer_pieces(slot, (offset, job.begun), is_write, data, &pieces);
        self.pieces = pieces;
        is_all
    }

    #[inline]
    fn transfer_pieces(
        &mut self,
        slot: u16,
        (offset, mut done): (u64, u64),
        is_write: bool,
        data: Span<'_>,
        pieces: &[Piece],
    ) -> bool {
        let Terms { namespace, block_log, rules, .. } = self.terms;
        let make = if is_write { Command::write } else { Command::read };
        let mut cut = Cut::new(pieces).behind(done);
        loop {
            let Some(pair) = self.pair.as_mut().filter(|pair| pair.room() > 0) else {
                return cut.left() == 0;
            };
            let Some(part) = cut.next(&rules) else { return true };
            let command = make(namespace, (offset + done) >> block_log, (part.bytes >> block_log) as u32);
            let mut sent = Sent { slot, at: done, bytes: part.bytes, ..Sent::default() };
            let place = if part.kind == Kind::Copy {
                let Some(nth) = self.copies.free.pop() else { return false };
                sent.copy = Some(nth);
                Counts::add(&self.live.counts.copied);
                if is_write && let Some(copy) = self.copies.slice(nth, part.bytes) {
                    copy_into(copy, data.part(done, part.bytes));
                }
                let own = [Piece { at: self.copies.at(nth), len: part.bytes }];
                Cut::new(&own).next(&rules).and_then(|part| pair.submit_part(command, &part))
            } else {
                pair.submit_part(command, &part)
            };
            let Some(place) = place else { return false };
            self.note(slot, place, sent);
            done += part.bytes;
        }
    }

    /// A command ended.
    #[inline]
    fn done(&mut self, done: &Done, taken: &dyn Taken, ended: &mut Ended) {
        let Some(command) = self.commands.get_mut(usize::from(done.place)) else { return };
        let sent = std::mem::replace(command, Sent { slot: NOBODY, ..Sent::default() });
        let Some(job) = self.jobs.get_mut(usize::from(sent.slot)).filter(|job| job.stage.is_some()) else {
            return;
        };
        job.out -= 1;
        if !done.status.is_ok() {
            self.live.counts.note(done.status);
            let outcome = if done.status.is_unknown() {
                Outcome::Unsupported
            } else {
                Outcome::Failed(DropReason::BackingFailed)
            };
            job.failure.get_or_insert(Failure { outcome, may_try_again: !done.status.is_final() });
        }
        if let Some(nth) = sent.copy {
            if done.status.is_ok()
                && matches!(job.operation, Operation::Read { .. })
                && let Some(copy) = self.copies.slice(nth, sent.bytes)
            {
                copy_from(copy, taken.data(sent.slot).part(sent.at, sent.bytes));
            }
            self.copies.free.push(nth);
        }
        self.settle(sent.slot, ended);
    }

    /// Ends a job whose last command ended, or goes on with what is behind that.
    #[inline]
    fn settle(&mut self, slot: u16, ended: &mut Ended) {
        let Some(job) = self.jobs.get_mut(usize::from(slot)) else { return };
        let is_over = job.stage == Some(Stage::Flush) || job.begun >= job.bytes;
        if job.out > 0 || !(is_over || job.failure.is_some()) {
            return;
        }
        let outcome = match job.failure {
            Some(Failure { may_try_again: true, .. }) if job.tries < MOST_TRIES => {
                job.anew();
                self.later.push(slot);
                return;
            }
            Some(failure) => failure.outcome,
            None if job.stage == Some(Stage::Work) && self.terms.has_cache && lasts(job.operation) => {
                job.stage = Some(Stage::Flush);
                self.wait(slot);
                return;
            }
            None => Outcome::Done,
        };
        job.stage = None;
        ended.push(slot, outcome);
    }

    /// Looks for what is late, once a tick; and for the pair, if it was handed over or has to be.
    fn look(&mut self, ended: &mut Ended) {
        if self.live.is_dead() {
            // It reaches no memory any more.
            for slot in 0..self.jobs.len() as u16 {
                self.end(slot, ended);
            }
            self.waiting.clear();
            self.later.clear();
            return;
        }
        if self.pair.is_none() {
            if let Some((pair, generation)) = self.seat.take_back() {
                (self.pair, self.generation) = (Some(pair), generation);
                self.begin_anew(ended);
            }
            return;
        }
        let now = self.live.clock();
        let is_lost = self.generation != self.live.generation();
        if now == self.looked && !is_lost {
            return;
        }
        self.looked = now;
        while let Some(slot) = self.later.pop() {
            self.wait(slot);
        }
        let age = |sent: &Sent| if sent.slot == NOBODY { 0 } else { now.wrapping_sub(sent.since) };
        if is_lost || self.commands.iter().any(|sent| age(sent) >= LOST_AFTER) {
            self.pair = self.pair.take().and_then(|pair| self.seat.hand_over(&self.live, pair));
            return;
        }
        let late = self
            .commands
            .iter_mut()
            .enumerate()
            .find(|(_, sent)| !sent.is_aborted && age(sent) >= ABORT_AFTER);
        if let Some((place, sent)) = late {
            sent.is_aborted = true;
            if let Some(pair) = &self.pair
                && let Some(command) = pair.command_id(place as u16)
            {
                self.seat.ask_to_abort(&self.live, pair.id(), command);
            }
        }
    }

    /// Goes on with a job when there is room: once, however often it is said.
    fn wait(&mut self, slot: u16) {
        if !self.waiting.contains(&slot) {
            self.waiting.push_back(slot);
        }
    }

    /// Bytes of the guest's are moved for it.
    fn moves(&self, slot: u16) -> bool {
        self.jobs.get(usize::from(slot)).is_some_and(|job| {
            let is_transfer = matches!(job.operation, Operation::Read { .. } | Operation::Write { .. });
            is_transfer && job.stage == Some(Stage::Work)
        })
    }

    /// Ends a job, whose guest was given up, with what is out of it.
    #[cold]
    fn cut_short(&mut self, slot: u16, ended: &mut Ended) {
        if let Some(job) = self.jobs.get_mut(usize::from(slot)) {
            job.bytes = job.begun;
        }
        self.settle(slot, ended);
    }

    /// The request fails.
    fn end(&mut self, slot: u16, ended: &mut Ended) {
        if let Some(job) = self.jobs.get_mut(usize::from(slot)).filter(|job| job.stage.is_some())
            && !ended.is_full()
        {
            job.stage = None;
            ended.push(slot, Outcome::Failed(DropReason::BackingFailed));
        }
    }

    /// All that was out is lost with its pair: it is begun anew, but what was so too often.
    fn begin_anew(&mut self, ended: &mut Ended) {
        for sent in &mut self.commands {
            if let Some(nth) = std::mem::replace(sent, Sent { slot: NOBODY, ..Sent::default() }).copy {
                self.copies.free.push(nth);
            }
        }
        for slot in 0..self.jobs.len() as u16 {
            let Some(job) = self.jobs.get_mut(usize::from(slot)) else { break };
            if job.stage.is_none() || job.out == 0 {
                continue;
            }
            job.out = 0;
            if job.tries < MOST_TRIES {
                job.anew();
                self.wait(slot);
            } else {
                self.waiting.retain(|waiting| *waiting != slot);
                self.end(slot, ended);
            }
        }
    }
}

impl Job {
    /// From its beginning.
    fn anew(&mut self) {
        self.tries += 1;
        (self.stage, self.begun, self.failure) = (Some(Stage::Work), 0, None);
    }
}

/// It lasts before it is told to be done.
fn lasts(operation: Operation) -> bool {
    match operation {
        Operation::Write { is_durable, .. } | Operation::WriteZeroes { is_durable, .. } => is_durable,
        Operation::Read { .. } | Operation::Flush | Operation::Discard { .. } => false,
    }
}

fn copy_into(mut copy: HostSlice<'_>, data: Span<'_>) {
    for piece in data.pieces() {
        let copied = copy.copy_from(piece.slice);
        copy = copy.part(copied, usize::MAX);
    }
}

fn copy_from(mut copy: HostSlice<'_>, data: Span<'_>) {
    for piece in data.pieces() {
        let copied = piece.slice.copy_from(copy);
        copy = copy.part(copied, usize::MAX);
    }
}

impl BackingQueue for NvmeQueue {
    #[inline]
    fn submit(&mut self, slot: u16, operation: Operation, data: Span<'_>) -> Submitted {
        if self.live.is_dead() {
            return Submitted::Ended(Outcome::Failed(DropReason::BackingFailed));
        }
        if operation == Operation::Flush && !self.terms.has_cache {
            return Submitted::Ended(Outcome::Done);
        }
        let has_room = self.waiting.is_empty() && self.pair.as_ref().is_some_and(|pair| pair.room() > 0);
        let Some(job) = self.jobs.get_mut(usize::from(slot)).filter(|_| has_room) else {
            return Submitted::Full;
        };
        let bytes = match operation {
            Operation::Read { .. } | Operation::Write { .. } => data.len(),
            Operation::Discard { len, .. } | Operation::WriteZeroes { len, .. } => len,
            Operation::Flush => 0,
        };
        if bytes == 0 && operation != Operation::Flush {
            return Submitted::Ended(Outcome::Done);
        }
        *job = Job { operation, stage: Some(Stage::Work), bytes, begun: 0, out: 0, failure: None, tries: 0 };
        if !self.go_on(slot, data) {
            self.wait(slot);
        }
        Submitted::Taken
    }

    fn turn(&mut self, taken: &dyn Taken, bytes: u64, ended: &mut Ended) -> bool {
        let (mut got_on, mut copied) = (false, 0);
        // As many as there can be: a controller that makes them up is not read for ever.
        for _ in 0..self.commands.len() {
            let found = match &mut self.pair {
                Some(pair) if copied < bytes.max(COPY_BYTES) && !ended.is_full() => pair.reap(),
                _ => None,
            };
            match found {
                Some(Found::Done(done)) => {
                    let sent = self.commands.get(usize::from(done.place));
                    copied += sent.filter(|sent| sent.copy.is_some()).map_or(0, |sent| sent.bytes);
                    self.done(&done, taken, ended);
                }
                Some(Found::Stray) => {}
                None => break,
            }
            got_on = true;
        }
        self.look(ended);
        while let Some(slot) = self.waiting.front().copied() {
            let data = taken.data(slot);
            if data.len() == 0 && self.moves(slot) {
                self.waiting.pop_front();
                self.cut_short(slot, ended);
                continue;
            }
            if !self.go_on(slot, data) {
                break;
            }
            self.waiting.pop_front();
            got_on = true;
        }
        if let Some(pair) = &mut self.pair {
            pair.ring();
        }
        got_on
    }

    fn arm(&mut self) -> Wake {
        let Some(pair) = &self.pair else {
            // It is woken with its pair.
            self.seat.is_busy.store(true, Ordering::Relaxed);
            let has_jobs = || self.jobs.iter().any(|job| job.stage.is_some());
            let has_work = self.seat.is_ready() || self.live.is_dead() && has_jobs();
            return if has_work { Wake::HasWork } else { Wake::Armed };
        };
        let is_busy = pair.outstanding() > 0;
        self.seat.is_busy.store(is_busy || !self.later.is_empty(), Ordering::Relaxed);
        if is_busy && !self.seat.interrupts(&self.live) {
            return Wake::HasWork;
        }
        let has_more = !self.waiting.is_empty() && !is_busy;
        if has_more || pair.can_reap() || self.generation != self.live.generation() {
            return Wake::HasWork;
        }
        Wake::Armed
    }

    fn disarm(&mut self) {
        self.seat.is_busy.store(false, Ordering::Relaxed);
        self.seat.wake.clear();
    }

    fn wake_source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.seat.wake.as_fd())
    }
}

impl Drop for NvmeQueue {
    fn drop(&mut self) {
        // On a thread that may wait, as every pump's end. What the controller reaches for it goes only after this.
        self.live.leave(&self.seat, self.pair.take());
    }
}

/// Bytes of one part that is copied at most, and of each place for one.
const COPY_BYTES: u64 = 64 << 10;
/// Entries of a queue pair at least: a request may be several commands.
const LEAST_ENTRIES: u16 = 64;
/// How often a request is begun anew.
const MOST_TRIES: u8 = 2;
/// A command is aborted, and then lost, when it is so many ticks old.
const ABORT_AFTER: u32 = 25;
const LOST_AFTER: u32 = 40;
const NOBODY: u16 = u16::MAX;
