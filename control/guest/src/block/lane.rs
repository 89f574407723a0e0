//! The load on one queue: which requests, on which blocks, and whether each block that is read holds what it must.
//!
//! A lane has a range of blocks of its own, each of which its [`Ledger`] knows. Unless told otherwise it has at most one
//! request under way on a block, so that what a read must find is known exactly. Owned by one thread.

use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use ringway_ring::tsc;

use super::config::SECTOR;
use super::ledger::{Content, Ledger};
use super::queue::{Done, Queue};
use super::request::{Operation, Request, Status};
use super::stamp::{self, Found, Touch, mix};
use crate::error::GuestError;
use crate::lane::histogram;
use crate::pace::Pace;
use crate::presence::Presence;

/// Of so many requests in all, how many are of each kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Mix {
    /// Reads.
    pub read: u32,
    /// Writes.
    pub write: u32,
    /// Flushes.
    pub flush: u32,
    /// Discards.
    pub discard: u32,
    /// Writes of zeroes.
    pub zeroes: u32,
}

impl Mix {
    fn total(&self) -> u32 {
        self.read + self.write + self.flush + self.discard + self.zeroes
    }

    /// The kind of the request that a number below the total stands for.
    fn pick(&self, number: u32) -> Operation {
        let mut left = number;
        for (share, operation) in [
            (self.read, Operation::Read),
            (self.write, Operation::Write),
            (self.flush, Operation::Flush),
            (self.discard, Operation::Discard),
        ] {
            if left < share {
                return operation;
            }
            left -= share;
        }
        Operation::WriteZeroes { unmap: true }
    }
}

/// What a lane does.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Which requests.
    pub mix: Mix,
    /// Bytes of each, whole blocks.
    pub request_bytes: u32,
    /// Bytes of a block, which is stamped as one: whole sectors.
    pub block_bytes: u32,
    /// What is read and written of each block.
    pub touch: Touch,
    /// One request after the other in place of any.
    pub sequential: bool,
    /// Requests on one block may be under way together.
    pub overlap: bool,
    /// The first sector of the lane's range: a whole block.
    pub first_sector: u64,
    /// Bytes of its range, whole requests.
    pub bytes: u64,
    /// Which requests of all that there might be.
    pub seed: u64,
}

/// What a turn submits.
#[derive(Debug)]
pub enum Offer<'a> {
    /// Nothing.
    Nothing,
    /// As much as the queue's depth lets.
    All,
    /// So many requests at most.
    AtMost(u32),
    /// What is due.
    Due(&'a mut Pace),
}

/// What a lane counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Requests submitted.
    pub submitted: u64,
    /// Requests completed, well or not.
    pub completed: u64,
    /// Bytes of those that were done.
    pub bytes: u64,
    /// Reads done.
    pub reads: u64,
    /// Writes done, of zeroes too.
    pub writes: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Discards done.
    pub discards: u64,
    /// Requests that the device said failed.
    pub errors: u64,
    /// Requests that it does not do.
    pub unsupported: u64,
    /// Requests completed without a status, or with a wrong length.
    pub malformed: u64,
    /// Blocks read that were checked.
    pub checked: u64,
    /// Of them, those that held an older generation than they must: a write was lost.
    pub stale: u64,
    /// Those of which some sectors were of another generation.
    pub torn: u64,
    /// Those that held another block.
    pub misplaced: u64,
    /// Those that held anything else.
    pub damaged: u64,
}

impl Counts {
    /// Requests and blocks with which something went wrong.
    pub fn faults(&self) -> u64 {
        self.errors
            + self.unsupported
            + self.malformed
            + self.stale
            + self.torn
            + self.misplaced
            + self.damaged
    }

    /// Both, added up.
    #[must_use]
    pub fn plus(self, other: &Counts) -> Counts {
        self.combined(other, |a, b| a + b)
    }

    /// What came since `before`.
    #[must_use]
    pub fn since(self, before: &Counts) -> Counts {
        self.combined(before, u64::saturating_sub)
    }

    fn combined(self, other: &Counts, f: impl Fn(u64, u64) -> u64) -> Counts {
        Counts {
            submitted: f(self.submitted, other.submitted),
            completed: f(self.completed, other.completed),
            bytes: f(self.bytes, other.bytes),
            reads: f(self.reads, other.reads),
            writes: f(self.writes, other.writes),
            flushes: f(self.flushes, other.flushes),
            discards: f(self.discards, other.discards),
            errors: f(self.errors, other.errors),
            unsupported: f(self.unsupported, other.unsupported),
            malformed: f(self.malformed, other.malformed),
            checked: f(self.checked, other.checked),
            stale: f(self.stale, other.stale),
            torn: f(self.torn, other.torn),
            misplaced: f(self.misplaced, other.misplaced),
            damaged: f(self.damaged, other.damaged),
        }
    }
}

/// The first thing that went wrong, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wrong {
    /// A request was not done.
    Status(Request, Status),
    /// A request was done, and the device says that it wrote so many bytes.
    Length(Request, u32),
    /// A block that was read held something that it must not, between these generations.
    Block {
        /// The block.
        block: u64,
        /// What it held.
        found: Found,
        /// The oldest generation that it might have held.
        floor: u32,
        /// The newest.
        newest: u32,
    },
}

impl fmt::Display for Wrong {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Wrong::Status(request, status) => write!(
                f,
                "{:?} of {} bytes at sector {}: {status:?}",
                request.operation, request.bytes, request.sector
            ),
            Wrong::Length(request, written) => write!(
                f,
                "{:?} of {} bytes at sector {}: done, with {written} bytes written",
                request.operation, request.bytes, request.sector
            ),
            Wrong::Block { block, found, floor, newest } => {
                write!(f, "block {block} holds {found:?}, generations {floor} to {newest} are right")
            }
        }
    }
}

/// What a lane knows of a request that is under way, by slot.
#[derive(Debug, Clone, Default)]
struct UnderWay {
    /// When it was to be submitted.
    intended_at: u64,
    /// Of each of its blocks, the generation that it writes, or the oldest that it may read.
    generations: Vec<u32>,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Lane {
    work: Work,
    ledger: Ledger,
    /// By place: a request is under way there.
    busy: Box<[u64]>,
    places: u64,
    next: u64,
    /// What chance has come to.
    chance: u64,
    under_way: Vec<UnderWay>,
    done: Vec<Done>,
    counts: Counts,
    wrong: Option<Wrong>,
    latency: Histogram<u64>,
    set_aside: u64,
    absent_until: u64,
    sample_mask: u64,
}

impl Lane {
    /// On a queue of `depth`, over blocks that read as zeroes, or that are written before they are read.
    ///
    /// # Errors
    /// Sizes that do not fit into each other.
    pub fn new(work: Work, depth: usize) -> Result<Lane, GuestError> {
        let Work { request_bytes, block_bytes, bytes, first_sector, .. } = work;
        let refuse = |what: String| Err(GuestError::Load { what });
        if block_bytes == 0 || !u64::from(block_bytes).is_multiple_of(SECTOR) {
            return refuse(format!("blocks of {block_bytes} bytes: must be whole sectors of {SECTOR}"));
        }
        if request_bytes == 0 || !request_bytes.is_multiple_of(block_bytes) {
            return refuse(format!(
                "requests of {request_bytes} bytes: must be whole blocks of {block_bytes}"
            ));
        }
        if !(first_sector * SECTOR).is_multiple_of(block_bytes.into()) {
            return refuse(format!(
                "sector {first_sector} is in the middle of a block of {block_bytes} bytes"
            ));
        }
        let places = bytes / u64::from(request_bytes);
        if places == 0 || (!work.overlap && places < depth as u64) {
            return refuse(format!(
                "{bytes} bytes have room for {places} requests of {request_bytes} bytes, and {depth} are to be under way: \
                 a larger device, smaller requests, or fewer"
            ));
        }
        if work.mix.total() == 0 {
            return refuse("no requests of any kind".to_owned());
        }
        let first = first_sector * SECTOR / u64::from(block_bytes);
        let blocks = places * u64::from(request_bytes / block_bytes);
        let each = (request_bytes / block_bytes) as usize;
        let fresh = || UnderWay { intended_at: 0, generations: Vec::with_capacity(each) };
        Ok(Lane {
            work,
            ledger: Ledger::new(first, blocks),
            busy: vec![0; places.div_ceil(64) as usize].into(),
            places,
            next: 0,
            chance: mix(work.seed),
            under_way: (0..depth).map(|_| fresh()).collect(),
            done: Vec::with_capacity(depth),
            counts: Counts::default(),
            wrong: None,
            latency: histogram(),
            set_aside: 0,
            absent_until: 0,
            sample_mask: 0,
        })
    }

    /// What it does.
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// Does other requests from now on.
    pub fn set_mix(&mut self, mix: Mix) {
        self.work.mix = mix;
    }

    /// What its blocks must hold.
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// What it counted.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The first thing that went wrong.
    pub fn wrong(&self) -> Option<&Wrong> {
        self.wrong.as_ref()
    }

    /// Records the latency of one request in `every` (a power of two).
    pub fn sample_every(&mut self, every: u64) {
        self.sample_mask = every.next_power_of_two() - 1;
    }

    /// The latencies recorded since it was last asked, in cycles.
    pub fn take_latency(&mut self) -> Histogram<u64> {
        std::mem::replace(&mut self.latency, histogram())
    }

    /// Requests whose latency was set aside since it was last asked, since the thread was absent meanwhile.
    pub fn take_set_aside(&mut self) -> u64 {
        std::mem::take(&mut self.set_aside)
    }

    /// One turn: takes what was completed and checks it, submits what it may; returns how many were completed.
    ///
    /// # Errors
    /// The device broke the rules of the ring.
    #[inline]
    pub fn turn(
        &mut self,
        queue: &mut Queue,
        offer: Offer<'_>,
        presence: &mut Presence,
    ) -> Result<u32, GuestError> {
        let mut done = std::mem::take(&mut self.done);
        let came = queue.collect(&mut done);
        let now = tsc::cycles();
        self.absent_until = presence.look(now);
        let count = done.len() as u32;
        for done in done.drain(..) {
            self.take(queue, done, now);
        }
        self.done = done;
        came?;
        let submitted = self.submit(queue, offer, now);
        presence.handle(count + submitted);
        Ok(count)
    }

    /// Submits what the offer lets.
    #[inline]
    fn submit(&mut self, queue: &mut Queue, mut offer: Offer<'_>, now: u64) -> u32 {
        let most = match &offer {
            Offer::Nothing => return 0,
            Offer::AtMost(most) => *most,
            Offer::All | Offer::Due(_) => u32::MAX,
        };
        let mut submitted = 0;
        while submitted < most {
            if queue.under_way() == queue.depth() {
                break;
            }
            let intended_at = match &mut offer {
                Offer::Due(pace) => match pace.take(now) {
                    Some(due) => due,
                    None => break,
                },
                _ => now,
            };
            let request = self.choose();
            if !self.send(queue, request, intended_at, now) {
                break;
            }
            submitted += 1;
        }
        if submitted > 0 {
            queue.publish();
        }
        submitted
    }

    /// Submits one request.
    #[inline]
    fn send(&mut self, queue: &mut Queue, request: Request, intended_at: u64, now: u64) -> bool {
        let Some(slot) = queue.reserve() else { return false };
        let mut under_way = self.under_way.get_mut(slot.number()).map(std::mem::take).unwrap_or_default();
        under_way.intended_at = intended_at;
        under_way.generations.clear();
        let (first, blocks) = self.blocks_of(&request);
        match request.operation {
            Operation::Read => {
                under_way.generations.extend((first..first + blocks).map(|block| self.ledger.floor(block)));
            }
            Operation::Write => {
                let bytes = self.work.block_bytes as usize;
                for block in first..first + blocks {
                    let generation = self.ledger.begin(block, Content::Stamp);
                    let at = (block - first) as usize * bytes;
                    stamp::write(queue.data(&slot).part(at, bytes), block, generation, self.work.touch);
                    under_way.generations.push(generation);
                }
            }
            Operation::Discard | Operation::WriteZeroes { .. } => {
                let zeroes = request.operation != Operation::Discard;
                let content = if zeroes { Content::Zeroes } else { Content::Forgotten };
                let begin = |block| self.ledger.begin(block, content);
                under_way.generations.extend((first..first + blocks).map(begin));
            }
            Operation::Flush | Operation::GetId | Operation::Other(_) => {}
        }
        if let Some(place) = self.under_way.get_mut(slot.number()) {
            *place = under_way;
        }
        if blocks > 0 {
            self.mark(self.place_of(&request), true);
        }
        // As many slots as the ring has room for: it has.
        if let Err(slot) = queue.submit(slot, request, now) {
            queue.release(slot);
            return false;
        }
        self.counts.submitted += 1;
        true
    }

    /// Takes a request that was completed.
    #[inline]
    fn take(&mut self, queue: &mut Queue, done: Done, now: u64) {
        let mut under_way =
            self.under_way.get_mut(done.slot.number()).map(std::mem::take).unwrap_or_default();
        let Done { ref slot, request, status, written, .. } = done;
        let (first, blocks) = self.blocks_of(&request);
        self.counts.completed += 1;
        let is_ok = status == Status::Ok && written == done.expected_written();
        if !is_ok {
            self.refused(request, status, written);
        }
        match request.operation {
            Operation::Read if status == Status::Ok => {
                let bytes = self.work.block_bytes as usize;
                for (block, floor) in (first..).zip(&under_way.generations) {
                    let at = (block - first) as usize * bytes;
                    let place = queue.data(slot).part(at, bytes);
                    if let Some(found) = stamp::read(place, block, self.work.touch) {
                        self.check(block, *floor, found);
                    }
                }
                self.counts.reads += 1;
            }
            Operation::Write | Operation::Discard | Operation::WriteZeroes { .. } => {
                for (block, generation) in (first..).zip(&under_way.generations) {
                    match status {
                        Status::Ok => self.ledger.complete(block, *generation),
                        _ => self.ledger.fail(block, *generation),
                    }
                }
                match request.operation {
                    Operation::Discard => self.counts.discards += u64::from(is_ok),
                    _ => self.counts.writes += u64::from(is_ok),
                }
            }
            Operation::Flush => self.counts.flushes += u64::from(is_ok),
            _ => {}
        }
        if is_ok && blocks > 0 {
            self.counts.bytes += u64::from(request.bytes);
        }
        if blocks > 0 {
            self.mark(self.place_of(&request), false);
        }
        if self.counts.completed & self.sample_mask == 0 {
            if under_way.intended_at > self.absent_until {
                self.latency.saturating_record(now.saturating_sub(under_way.intended_at).max(1));
            } else {
                self.set_aside += 1;
            }
        }
        under_way.generations.clear();
        if let Some(place) = self.under_way.get_mut(slot.number()) {
            *place = under_way;
        }
        queue.release(done.slot);
    }

    #[cold]
    fn refused(&mut self, request: Request, status: Status, written: u32) {
        match status {
            Status::IoError => self.counts.errors += 1,
            Status::Unsupported => self.counts.unsupported += 1,
            Status::Ok | Status::Wrong(_) => self.counts.malformed += 1,
        }
        self.wrong.get_or_insert(match status {
            Status::Ok => Wrong::Length(request, written),
            other => Wrong::Status(request, other),
        });
    }

    /// Checks a block that was read.
    #[inline]
    fn check(&mut self, block: u64, floor: u32, found: Found) {
        self.counts.checked += 1;
        let is_right = match self.work.overlap {
            true => self.ledger.admits_since(block, floor, &found),
            false => self.ledger.admits(block, &found),
        };
        if !is_right {
            self.misfound(block, floor, found);
        }
    }

    #[cold]
    fn misfound(&mut self, block: u64, floor: u32, found: Found) {
        match found {
            Found::Stamped { block: of, .. } if of != block => self.counts.misplaced += 1,
            Found::Stamped { .. } | Found::Zeroes => self.counts.stale += 1,
            Found::Torn { .. } => self.counts.torn += 1,
            Found::Damaged { .. } => self.counts.damaged += 1,
        }
        let newest = self.ledger.newest(block);
        self.wrong.get_or_insert(Wrong::Block { block, found, floor, newest });
    }

    /// The next request.
    #[inline]
    fn choose(&mut self) -> Request {
        let Work { mix: kinds, request_bytes, first_sector, sequential, overlap, .. } = self.work;
        self.chance = self.chance.wrapping_add(1);
        let chance = mix(self.chance);
        let operation = kinds.pick((chance as u32) % kinds.total().max(1));
        if operation == Operation::Flush {
            return Request::FLUSH;
        }
        let mut place =
            if sequential { self.next } else { (((chance >> 32) * self.places) >> 32).min(self.places - 1) };
        if !overlap {
            // There are no fewer places than requests under way, so that one is free.
            let mut left = self.places;
            while self.is_busy(place) && left > 0 {
                place = if place + 1 == self.places { 0 } else { place + 1 };
                left -= 1;
            }
        }
        self.next = if place + 1 == self.places { 0 } else { place + 1 };
        let sector = first_sector + place * (u64::from(request_bytes) / SECTOR);
        Request { operation, sector, bytes: request_bytes }
    }

    /// Writes every block once, from the first to the last, so that each holds what the ledger says.
    ///
    /// # Errors
    /// Nothing was completed for so long, or the device broke the rules of the ring.
    pub fn fill(&mut self, queue: &mut Queue, within: Duration) -> Result<(), GuestError> {
        self.go_through(queue, Operation::Write, within)
    }

    /// Reads every block and checks it. What is found wrong is counted.
    ///
    /// # Errors
    /// As [`Lane::fill`].
    pub fn check_all(&mut self, queue: &mut Queue, within: Duration) -> Result<(), GuestError> {
        self.go_through(queue, Operation::Read, within)
    }

    fn go_through(
        &mut self,
        queue: &mut Queue,
        operation: Operation,
        within: Duration,
    ) -> Result<(), GuestError> {
        let each = u64::from(self.work.request_bytes) / SECTOR;
        self.drain(queue, within)?;
        for place in 0..self.places {
            while queue.under_way() == queue.depth() {
                self.progress(queue, within)?;
            }
            let request = Request {
                operation,
                sector: self.work.first_sector + place * each,
                bytes: self.work.request_bytes,
            };
            let now = tsc::cycles();
            self.send(queue, request, now, now);
            if place % 16 == 0 {
                queue.publish();
            }
        }
        queue.publish();
        self.drain(queue, within)
    }

    /// Takes all that is under way.
    ///
    /// # Errors
    /// As [`Lane::fill`].
    pub fn drain(&mut self, queue: &mut Queue, within: Duration) -> Result<(), GuestError> {
        while queue.under_way() > 0 {
            self.progress(queue, within)?;
        }
        Ok(())
    }

    /// Waits for something to be completed.
    fn progress(&mut self, queue: &mut Queue, within: Duration) -> Result<(), GuestError> {
        queue.publish();
        let begun = std::time::Instant::now();
        while self.turn(queue, Offer::Nothing, &mut { Presence::ASSUMED })? == 0 {
            if begun.elapsed() > within {
                return Err(GuestError::Stalled {
                    queue: queue.index(),
                    under_way: queue.under_way(),
                    within,
                });
            }
            std::thread::yield_now();
        }
        Ok(())
    }

    /// The blocks of a request: the first, and how many.
    #[inline]
    fn blocks_of(&self, request: &Request) -> (u64, u64) {
        match request.operation {
            Operation::Flush | Operation::GetId | Operation::Other(_) => (0, 0),
            _ => {
                let bytes = u64::from(self.work.block_bytes);
                (request.sector * SECTOR / bytes, u64::from(request.bytes) / bytes)
            }
        }
    }

    #[inline]
    fn place_of(&self, request: &Request) -> u64 {
        (request.sector - self.work.first_sector) * SECTOR / u64::from(self.work.request_bytes)
    }

    #[inline]
    fn is_busy(&self, place: u64) -> bool {
        self.busy.get((place / 64) as usize).is_some_and(|word| word >> (place % 64) & 1 != 0)
    }

    #[inline]
    fn mark(&mut self, place: u64, busy: bool) {
        if let Some(word) = self.busy.get_mut((place / 64) as usize) {
            let bit = 1 << (place % 64);
            if busy { *word |= bit } else { *word &= !bit }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn work() -> Work {
        Work {
            mix: Mix { read: 1, ..Mix::default() },
            request_bytes: 4096,
            block_bytes: 4096,
            touch: Touch::All,
            sequential: false,
            overlap: false,
            first_sector: 8,
            bytes: 40960,
            seed: 1,
        }
    }

    #[test]
    fn mix_picks_each_kind_as_often_as_it_says() {
        let mix = Mix { read: 3, write: 2, flush: 1, discard: 1, zeroes: 1 };
        let kinds: Vec<Operation> = (0..8).map(|number| mix.pick(number)).collect();
        let count = |operation| kinds.iter().filter(|kind| **kind == operation).count();
        assert_eq!((count(Operation::Read), count(Operation::Write), count(Operation::Flush)), (3, 2, 1));
        assert_eq!((count(Operation::Discard), count(Operation::WriteZeroes { unmap: true })), (1, 1));
    }

    #[test]
    fn requests_are_whole_inside_the_range_and_not_where_one_is_under_way() {
        for sequential in [false, true] {
            let mut lane = Lane::new(Work { sequential, ..work() }, 10).unwrap();
            let mut sectors = Vec::new();
            for _ in 0..10 {
                let request = lane.choose();
                sectors.push(request.sector);
                lane.mark(lane.place_of(&request), true);
            }
            sectors.sort_unstable();
            assert_eq!(sectors, (0..10).map(|nth| 8 + nth * 8).collect::<Vec<u64>>());
        }
    }

    #[test]
    fn sizes_that_do_not_fit_into_each_other_are_refused() {
        let refused = |work: Work| Lane::new(work, 10).is_err();
        assert!(!refused(work()));
        assert!(refused(Work { block_bytes: 1000, ..work() }));
        assert!(refused(Work { request_bytes: 6144, ..work() }));
        assert!(refused(Work { first_sector: 4, ..work() }));
        assert!(refused(Work { bytes: 36864, ..work() }), "nine places for ten requests");
        assert!(!refused(Work { bytes: 36864, overlap: true, ..work() }));
        assert!(refused(Work { mix: Mix::default(), ..work() }));
    }
}
