//! A queue's part of a file. Lives on one worker.

use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ringway_ring::chain::Span;
use rustix::fs::FallocateFlags;
use rustix::thread::CpuSet;

use super::super::backing::{BackingQueue, Ended, Operation, Outcome, Submitted, Taken, Wake};
use super::super::disk::QueueSeat;
use super::open::{Cache, OpenFile};
use super::trouble::{NOWHERE, SHRANK, UnderWay};
use crate::counters::DropReason;
use crate::uring::{Alignment, DiskPut as Put, DiskRing, ROOM_BYTES, Registered, Room, Way};
use crate::vdpa::{DriverError, Health as _};

/// See the module's head.
#[derive(Debug)]
pub struct FileQueue {
    file: Arc<OpenFile>,
    ring: DiskRing,
    /// By slot.
    jobs: Vec<Job>,
    /// The same, for whoever asks.
    under_way: Arc<UnderWay>,
    /// Slots whose rest is to be put in; there is room for each.
    again: VecDeque<u16>,
    /// The first of them waits until something ends that is out.
    is_stuck: bool,
    flush: Flush,
    durable: Durable,
    /// How zeroes are written where the space is to be kept, and where it may be given back: the best way that was not refused yet.
    zeroes: [Zeroes; 2],
}

/// A request.
#[derive(Debug, Clone, Copy)]
struct Job {
    operation: Operation,
    /// Bytes that are done.
    done: u64,
    /// It is a write that has to last, and joins a flush once it is written.
    joins: bool,
    /// It waits for that flush.
    is_written: bool,
    /// How its zeroes are being written.
    zeroes: Zeroes,
}

/// Flushes of the guest's, which one of the file's serves: those that wait join the next one, since the one that runs may have
/// begun before what they are to cover was written.
#[derive(Debug)]
struct Flush {
    is_running: bool,
    running: Vec<u16>,
    waiting: Vec<u16>,
}

/// Writes that have to last before they are answered. One that is alone is written so that it lasts, in one go; of many, each is
/// written like any other and joins a flush, which is then one for all of them. By way of the host's memory all do: it tells an
/// error once, to whoever asks first, and a write in one go would take it away from the flush of the others.
#[derive(Debug)]
struct Durable {
    /// By way of the host's memory.
    is_cached: bool,
    /// The disk has no cache of its own, so that a write lasts at no cost.
    is_free: bool,
    /// How many are out.
    out: u16,
    /// There were several at a time, lately.
    are_many: bool,
}

/// How zeroes are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Zeroes {
    /// The file system zeroes a range, and keeps the space or not as asked.
    Range,
    /// It makes a hole.
    Hole,
    /// As data.
    Data,
}

/// What became of a step.
enum Step {
    /// It is under way.
    Out,
    /// There is no room now.
    Busy,
    /// The request ended.
    Ended(Outcome),
}

impl FileQueue {
    /// A queue of a file. Kernel threads that work for it do so on `helpers`; its guest's memory may be `registered`.
    ///
    /// # Errors
    /// The file cannot be opened any more, or the kernel has no ring.
    pub(crate) fn new(
        file: &Arc<OpenFile>,
        seat: &QueueSeat<'_>,
        helpers: Option<CpuSet>,
        registered: Option<Arc<Registered>>,
    ) -> Result<FileQueue, DriverError> {
        let failed = |what: &str| {
            let what = format!("{}: {what}", file.wish.path.display());
            move |source| DriverError::Resource { what, source }
        };
        let under_way = file.trouble.queue(seat.slots, seat.map).ok_or_else(|| DriverError::Conflict {
            what: format!("{}: requests of the guest before are under way still", file.wish.path.display()),
            held_by: file.trouble.under_way(),
            hint: "it goes on by itself once the disk has answered; see what is wrong with it".to_owned(),
        })?;
        let own = file.again().map_err(failed("it cannot be opened again"))?;
        let rooms = if file.alignment == Alignment::NONE { 0 } else { ROOMS };
        let transfers = if file.needs_helpers { TRANSFERS } else { seat.slots };
        let room = Room { slots: seat.slots, segments: seat.segments, transfers, rooms };
        let ring = DiskRing::new(own, Arc::clone(seat.map), &room, helpers, registered)
            .map_err(failed("no io_uring (kernel.io_uring_disabled must be 0)"))?;
        let slots = usize::from(seat.slots);
        Ok(FileQueue {
            file: Arc::clone(file),
            ring,
            jobs: vec![Job::new(Operation::Flush, false); slots],
            under_way,
            again: VecDeque::with_capacity(slots),
            is_stuck: false,
            flush: Flush {
                is_running: false,
                running: Vec::with_capacity(slots),
                waiting: Vec::with_capacity(slots),
            },
            durable: Durable {
                is_cached: file.cache == Cache::Buffered,
                is_free: file.is_write_through,
                out: 0,
                are_many: false,
            },
            zeroes: [
                if file.zeroes { Zeroes::Range } else { Zeroes::Data },
                if file.discards { Zeroes::Hole } else { Zeroes::Data },
            ],
        })
    }

    /// Puts the rest of a request in.
    #[inline]
    fn go_on(&mut self, slot: u16, data: Span<'_>) -> Step {
        let Some(job) = self.jobs.get_mut(usize::from(slot)) else { return Step::Busy };
        if let Operation::WriteZeroes { may_unmap, .. } = job.operation {
            job.zeroes = self.zeroes[usize::from(may_unmap)];
        }
        let Job { operation, done, joins, zeroes, .. } = *job;
        let put = match operation {
            Operation::Read { offset } => {
                self.transfer(slot, Way::Read, offset + done, data.part(done, u64::MAX))
            }
            Operation::Write { offset, is_durable } => {
                let way = Way::Write(is_durable && !joins);
                self.transfer(slot, way, offset + done, data.part(done, u64::MAX))
            }
            Operation::Flush => return self.join_flush(slot),
            // The guest may ask for none.
            Operation::WriteZeroes { len: 0, .. } | Operation::Discard { len: 0, .. } => {
                return Step::Ended(Outcome::Done);
            }
            Operation::Discard { offset, len } if self.file.is_block => self.ring.discard(slot, offset, len),
            Operation::Discard { offset, len } => self.ring.allocate(slot, hole(), offset, len),
            Operation::WriteZeroes { offset, len, .. } => match zeroes {
                Zeroes::Data => self.ring.zero(slot, offset + done, len - done),
                Zeroes::Range => self.ring.allocate(slot, zero_range(), offset, len),
                Zeroes::Hole => self.ring.allocate(slot, hole(), offset, len),
            },
        };
        match put {
            Put::In(_) => Step::Out,
            Put::Busy | Put::Misaligned => Step::Busy,
            // Its guest was given up.
            Put::Nothing => Step::Ended(Outcome::Done),
            Put::Failed(error) => Step::Ended(self.failed(slot, error)),
        }
    }

    #[inline]
    fn transfer(&mut self, slot: u16, way: Way, offset: u64, data: Span<'_>) -> Put {
        let put = self.ring.transfer(slot, way, offset, data, self.file.alignment);
        if put == Put::Misaligned { self.transfer_by_room(slot, way, offset, data) } else { put }
    }

    #[cold]
    fn transfer_by_room(&mut self, slot: u16, way: Way, offset: u64, data: Span<'_>) -> Put {
        let put = self.ring.transfer_by_room(slot, way, offset, data);
        if matches!(put, Put::In(_)) {
            self.file.trouble.copied();
        }
        put
    }

    /// The request waits for the next flush of the file.
    fn join_flush(&mut self, slot: u16) -> Step {
        if let Some(error) = self.file.trouble.is_lost() {
            return Step::Ended(self.failed(slot, error));
        }
        // There is room: a slot waits once.
        if self.flush.waiting.len() < self.flush.waiting.capacity() {
            self.flush.waiting.push(slot);
        }
        Step::Out
    }

    /// Has a flush begin if some wait and none runs.
    fn begin_flush(&mut self, ended: &mut Ended) {
        if self.flush.is_running || self.flush.waiting.is_empty() {
            return;
        }
        match self.ring.flush() {
            Put::In(_) => {
                self.flush.is_running = true;
                std::mem::swap(&mut self.flush.running, &mut self.flush.waiting);
            }
            // It is the next turn's.
            Put::Busy | Put::Misaligned | Put::Nothing => {}
            Put::Failed(error) => {
                while let Some(slot) = self.flush.waiting.pop() {
                    let outcome = self.failed(slot, error);
                    self.tell(slot, outcome, ended);
                }
            }
        }
    }

    /// A flush of the file ended: those that it served end, or wait for another one.
    fn end_flush(&mut self, result: i32, ended: &mut Ended) {
        self.flush.is_running = false;
        let error = if result < 0 { Some(-result) } else { self.file.trouble.is_lost() };
        // Of the host's memory, each error is told once: the next flush would succeed.
        let passes = |error| error == libc::EINTR || (self.file.cache == Cache::Direct && is_passing(error));
        if error.is_some_and(passes) {
            // There is room: no slot is in both.
            self.flush.waiting.append(&mut self.flush.running);
            return;
        }
        if let Some(error) = error
            && self.file.cache == Cache::Buffered
        {
            // The host's memory forgets what it could not write, and the next flush would not tell.
            self.file.trouble.lost(error);
        }
        self.durable.are_many = self.flush.running.len() > 1;
        while let Some(slot) = self.flush.running.pop() {
            let outcome = error.map_or(Outcome::Done, |error| self.failed(slot, error));
            self.tell(slot, outcome, ended);
        }
    }

    /// The request fails.
    #[cold]
    fn failed(&self, slot: u16, error: i32) -> Outcome {
        let offset = match self.jobs.get(usize::from(slot)) {
            Some(Job { operation: Operation::Flush, .. }) | None => NOWHERE,
            // All of it was written, and did not come to last.
            Some(Job { operation, is_written: true, .. }) => place(*operation).0,
            Some(Job { operation, done, .. }) => place(*operation).0 + done,
        };
        self.file.trouble.failed(error, offset);
        Outcome::Failed(DropReason::BackingFailed)
    }

    /// The request ended.
    #[inline]
    fn tell(&mut self, slot: u16, outcome: Outcome, ended: &mut Ended) {
        if let Some(Job { operation: Operation::Write { is_durable: true, .. }, .. }) =
            self.jobs.get(usize::from(slot))
        {
            self.durable.out = self.durable.out.saturating_sub(1);
        }
        self.under_way.end(slot);
        ended.push(slot, outcome);
    }

    /// A slot's operation ended. None: the request goes on.
    #[inline]
    fn end(&mut self, slot: u16, result: i32, data: Span<'_>) -> Option<Outcome> {
        let &Job { operation, done, joins, zeroes, .. } = self.jobs.get(usize::from(slot))?;
        if result < 0 {
            return self.end_with_error(slot, -result, data);
        }
        let (len, is_whole) = match operation {
            Operation::Read { .. } | Operation::Write { .. } => (data.len(), false),
            Operation::Discard { len, .. } => (len, true),
            Operation::WriteZeroes { len, .. } => (len, zeroes != Zeroes::Data),
            Operation::Flush => (0, true),
        };
        let into =
            if matches!(operation, Operation::Read { .. }) { data.part(done, u64::MAX) } else { Span::EMPTY };
        self.ring.take_room(slot, result as usize, into);
        let got = if is_whole { len } else { u64::from(result.unsigned_abs()) };
        let mut now = (done + got).min(len);
        if now < len {
            // What goes on must begin at a block.
            now -= now % u64::from(self.file.alignment.len);
            if now <= done {
                return Some(self.failed(slot, SHRANK));
            }
        }
        if let Some(job) = self.jobs.get_mut(usize::from(slot)) {
            job.done = now;
        }
        if now < len {
            self.again.push_back(slot);
            return None;
        }
        let is_flushed = joins || matches!(operation, Operation::WriteZeroes { is_durable: true, .. });
        if !is_flushed {
            return Some(Outcome::Done);
        }
        if let Some(job) = self.jobs.get_mut(usize::from(slot)) {
            job.is_written = true;
        }
        match self.join_flush(slot) {
            Step::Ended(outcome) => Some(outcome),
            Step::Out | Step::Busy => None,
        }
    }

    #[cold]
    fn end_with_error(&mut self, slot: u16, error: i32, data: Span<'_>) -> Option<Outcome> {
        let has_room = self.ring.take_room(slot, 0, Span::EMPTY);
        let &Job { operation, zeroes, done, .. } = self.jobs.get(usize::from(slot))?;
        match (operation, error) {
            (Operation::Read { .. } | Operation::Write { .. }, libc::EFAULT)
                if !has_room && self.under_way.lacks(data.part(done, TOUCHED)) =>
            {
                return Some(Outcome::Failed(DropReason::GuestMemory));
            }
            // A hint.
            (Operation::Discard { .. }, libc::EOPNOTSUPP | libc::ENOTTY | libc::EINVAL) => {
                return Some(Outcome::Done);
            }
            (Operation::WriteZeroes { may_unmap, .. }, libc::EOPNOTSUPP | libc::ENOTTY)
                if zeroes != Zeroes::Data =>
            {
                // A hole would not keep the space.
                self.zeroes[usize::from(may_unmap)] = Zeroes::Data;
            }
            _ if is_passing(error) => {}
            _ => return Some(self.failed(slot, error)),
        }
        self.again.push_back(slot);
        None
    }
}

impl Job {
    fn new(operation: Operation, joins: bool) -> Job {
        Job { operation, done: 0, joins, is_written: false, zeroes: Zeroes::Range }
    }
}

impl Durable {
    /// Whether one that comes now joins a flush.
    #[inline]
    fn joins(&mut self) -> bool {
        self.are_many |= self.out > 0;
        self.is_cached || (self.are_many && !self.is_free)
    }
}

impl Drop for FileQueue {
    /// What is out is seen for as long as it may be done, as after a pump that panicked.
    fn drop(&mut self) {
        if self.ring.is_out() {
            std::mem::forget(Arc::clone(&self.under_way));
        }
    }
}

impl BackingQueue for FileQueue {
    #[inline]
    fn submit(&mut self, slot: u16, operation: Operation, data: Span<'_>) -> Submitted {
        // What waits goes first.
        if self.is_stuck {
            return Submitted::Full;
        }
        let Some(job) = self.jobs.get_mut(usize::from(slot)) else { return Submitted::Full };
        let is_durable = matches!(operation, Operation::Write { is_durable: true, .. });
        let joins = is_durable && self.durable.joins();
        *job = Job::new(operation, joins);
        match self.go_on(slot, data) {
            Step::Out => {
                self.durable.out += u16::from(is_durable);
                self.under_way.begin(slot, operation);
                Submitted::Taken
            }
            Step::Busy => Submitted::Full,
            Step::Ended(outcome) => Submitted::Ended(outcome),
        }
    }

    fn turn(&mut self, taken: &dyn Taken, bytes: u64, ended: &mut Ended) -> bool {
        self.is_stuck = false;
        for _ in 0..self.again.len() {
            let Some(slot) = self.again.pop_front() else { break };
            match self.go_on(slot, taken.data(slot)) {
                Step::Out => {}
                Step::Busy => {
                    self.again.push_front(slot);
                    self.is_stuck = self.ring.is_out();
                    break;
                }
                Step::Ended(outcome) => self.tell(slot, outcome, ended),
            }
        }
        self.begin_flush(ended);
        self.ring.look();
        let (mut got_on, mut left) = (false, bytes);
        while left > 0
            && !ended.is_full()
            && let Some(finished) = self.ring.reap()
        {
            got_on = true;
            self.is_stuck = false;
            if finished.tag == DiskRing::FLUSH {
                self.end_flush(finished.result, ended);
                continue;
            }
            let Ok(slot) = u16::try_from(finished.tag) else { continue };
            let data = taken.data(slot);
            left =
                left.saturating_sub(u64::from(finished.result.max(0).unsigned_abs()).min(ROOM_BYTES as u64));
            if let Some(outcome) = self.end(slot, finished.result, data) {
                self.tell(slot, outcome, ended);
            }
        }
        got_on
    }

    fn arm(&mut self) -> Wake {
        let waits = (!self.again.is_empty() && !self.is_stuck)
            || (!self.flush.is_running && !self.flush.waiting.is_empty());
        if waits || !self.ring.is_quiet() { Wake::HasWork } else { Wake::Armed }
    }

    fn wake_source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.wake_source())
    }
}

/// Where an operation begins, and its length but for that of a transfer.
fn place(operation: Operation) -> (u64, u64) {
    match operation {
        Operation::Read { offset } | Operation::Write { offset, .. } => (offset, 0),
        Operation::Discard { offset, len } | Operation::WriteZeroes { offset, len, .. } => (offset, len),
        Operation::Flush => (0, 0),
    }
}

/// It passes: the same is done again.
fn is_passing(error: i32) -> bool {
    matches!(error, libc::EAGAIN | libc::EINTR | libc::ENOMEM)
}

fn hole() -> i32 {
    (FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE).bits() as i32
}

fn zero_range() -> i32 {
    (FallocateFlags::ZERO_RANGE | FallocateFlags::KEEP_SIZE).bits() as i32
}

/// Bytes of the guest's memory that are looked at to see whose an error is: the kernel says so only where it got on with nothing.
const TOUCHED: u64 = 1 << 20;
/// Reads and writes that are out, of a queue of a file of which each is the work of a thread of the kernel's.
const TRANSFERS: u16 = 16;
/// Rooms to copy to, of a queue of a file that demands alignment.
const ROOMS: u8 = 16;

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::time::{Duration, Instant};

    use ringway_ring::memory::{HostMemory, PageKind};

    use super::super::open::Wish;
    use super::*;

    struct Nothing;

    impl Taken for Nothing {
        fn data(&self, _: u16) -> Span<'_> {
            Span::EMPTY
        }
    }

    struct Scene {
        queue: FileQueue,
        file: Arc<OpenFile>,
        ended: Ended,
        _dir: tempfile::TempDir,
        _memory: HostMemory,
    }

    fn scene(cache: Cache) -> Scene {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        let wish = Wish { path, cache: Some(cache), is_read_only: false };
        let file = OpenFile::open(wish, Duration::ZERO, &[]).unwrap();
        let memory = HostMemory::allocate_on(PageKind::Base, "test", 1 << 20).unwrap();
        let map = Arc::new(memory.guest_map(0).unwrap());
        let seat = QueueSeat { index: 0, slots: 16, segments: 4, map: &map, polled: &[] };
        let queue = FileQueue::new(&file, &seat, None, None).unwrap();
        Scene { queue, file, ended: Ended::new(16), _dir: dir, _memory: memory }
    }

    impl Scene {
        /// Turns until something ended; what did, and how.
        fn next(&mut self) -> Vec<(u16, Outcome)> {
            let begun = Instant::now();
            loop {
                assert!(begun.elapsed() < Duration::from_secs(30));
                self.queue.turn(&Nothing, 1 << 20, &mut self.ended);
                let mut ended: Vec<_> = std::iter::from_fn(|| self.ended.pop()).collect();
                ended.sort_by_key(|(slot, _)| *slot);
                if !ended.is_empty() {
                    return ended;
                }
            }
        }

        fn flush(&mut self, slots: std::ops::Range<u16>) {
            for slot in slots {
                assert_eq!(self.queue.submit(slot, Operation::Flush, Span::EMPTY), Submitted::Taken);
            }
        }
    }

    #[test]
    fn flushes_that_wait_are_served_by_the_next_one_and_never_by_the_one_that_runs() {
        let mut scene = scene(Cache::Buffered);
        scene.flush(0..5);
        scene.queue.begin_flush(&mut scene.ended);
        // It runs: what comes now may be to cover what it does not.
        scene.flush(5..9);
        assert_eq!((scene.queue.flush.running.len(), scene.queue.flush.waiting.len()), (5, 4));
        let all = |slots: std::ops::Range<u16>| slots.map(|slot| (slot, Outcome::Done)).collect::<Vec<_>>();
        assert_eq!(scene.next(), all(0..5));
        assert_eq!(scene.next(), all(5..9));
        assert_eq!(scene.queue.arm(), Wake::Armed);
    }

    #[test]
    fn of_writes_that_have_to_last_one_alone_does_by_itself_and_several_do_by_one_flush() {
        let mut scene = scene(Cache::Direct);
        let Scene { queue, ended, .. } = &mut scene;
        let write = Operation::Write { offset: 0, is_durable: true };
        let begin = |queue: &mut FileQueue, slot: u16| {
            let joins = queue.durable.joins();
            queue.durable.out += 1;
            queue.jobs[usize::from(slot)] = Job::new(write, joins);
            queue.under_way.begin(slot, write);
            joins
        };
        assert_eq!([0, 1, 2].map(|slot| begin(queue, slot)), [false, true, true]);
        // Its bytes are there: the first is done, the others wait for the next flush, which is one.
        assert_eq!(queue.end(0, 0, Span::EMPTY), Some(Outcome::Done));
        queue.tell(0, Outcome::Done, ended);
        assert_eq!((queue.end(1, 0, Span::EMPTY), queue.end(2, 0, Span::EMPTY)), (None, None));
        assert_eq!(queue.arm(), Wake::HasWork);
        let done = |slots: &[u16]| slots.iter().map(|&slot| (slot, Outcome::Done)).collect::<Vec<_>>();
        assert_eq!(ended.pop(), Some((0, Outcome::Done)));
        assert_eq!(scene.next(), done(&[1, 2]));
        // As there were several, the next joins too; it was alone, and the one after it is written as one that is.
        let Scene { queue, .. } = &mut scene;
        assert!(begin(queue, 3));
        assert_eq!(queue.end(3, 0, Span::EMPTY), None);
        assert_eq!(scene.next(), done(&[3]));
        assert!(!begin(&mut scene.queue, 4));
        assert_eq!(scene.queue.durable.out, 1);
        // A disk without a cache of its own has nothing to flush.
        scene.queue.durable.is_free = true;
        assert!(!begin(&mut scene.queue, 5));
    }

    #[test]
    fn range_of_nothing_is_done_at_once_and_nobody_is_told_of_an_error() {
        for is_durable in [false, true] {
            let mut scene = scene(Cache::Buffered);
            let zeroes = Operation::WriteZeroes { offset: 0, len: 0, may_unmap: false, is_durable };
            for operation in [zeroes, Operation::Discard { offset: 0, len: 0 }] {
                assert_eq!(scene.queue.submit(0, operation, Span::EMPTY), Submitted::Ended(Outcome::Done));
            }
            assert_eq!(scene.file.health().failures(), 0);
        }
    }

    #[test]
    fn write_that_has_to_last_fails_with_the_flush_that_it_joined() {
        let mut scene = scene(Cache::Buffered);
        let Scene { queue, ended, file, .. } = &mut scene;
        let operation = Operation::Write { offset: 8192, is_durable: true };
        queue.jobs[3] = Job::new(operation, true);
        assert_eq!(queue.end(3, 0, Span::EMPTY), None);
        queue.begin_flush(ended);
        queue.end_flush(-libc::EIO, ended);
        let failed = Outcome::Failed(DropReason::BackingFailed);
        assert_eq!(ended.pop(), Some((3, failed)));
        // The host's memory forgets what it could not write: none lasts from now on.
        assert_eq!(queue.end(3, 0, Span::EMPTY), Some(failed));
        // It tells an error once, so that nobody else may take it: here one that is alone joins, too.
        assert!(queue.durable.out == 0 && queue.durable.joins());
        let words = file.health().words().unwrap();
        assert!(words.contains("sector 16"), "{words}");
    }

    #[test]
    fn after_a_flush_that_failed_none_is_true_where_the_host_caches() {
        for (cache, is_lost) in [(Cache::Buffered, true), (Cache::Direct, false)] {
            let mut scene = scene(cache);
            scene.flush(0..2);
            scene.queue.begin_flush(&mut scene.ended);
            let Scene { queue, ended, .. } = &mut scene;
            queue.end_flush(-libc::EIO, ended);
            let failed = Outcome::Failed(DropReason::BackingFailed);
            assert_eq!((ended.pop(), ended.pop()), (Some((0, failed)), Some((1, failed))));
            // As it would, the one that ran ends once more, and has nobody to serve.
            let begun = Instant::now();
            while queue.ring.reap().is_none() {
                assert!(begun.elapsed() < Duration::from_secs(30));
                queue.ring.look();
            }
            let submitted = queue.submit(3, Operation::Flush, Span::EMPTY);
            if is_lost {
                assert_eq!(submitted, Submitted::Ended(failed));
                assert!(
                    scene
                        .file
                        .health()
                        .words()
                        .unwrap()
                        .contains("every flush, and every write that has to last, fails")
                );
            } else {
                assert_eq!(submitted, Submitted::Taken);
                assert_eq!(scene.next(), [(3, Outcome::Done)]);
            }
        }
    }

    #[test]
    fn flush_that_failed_for_want_of_memory_is_not_done_again_where_the_host_caches() {
        for (cache, error, is_again) in [
            (Cache::Buffered, libc::ENOMEM, false),
            (Cache::Buffered, libc::EAGAIN, false),
            (Cache::Buffered, libc::EINTR, true),
            (Cache::Direct, libc::ENOMEM, true),
        ] {
            let mut scene = scene(cache);
            scene.flush(0..1);
            scene.queue.begin_flush(&mut scene.ended);
            scene.queue.end_flush(-error, &mut scene.ended);
            let expected = (!is_again).then_some((0, Outcome::Failed(DropReason::BackingFailed)));
            assert_eq!(
                (scene.ended.pop(), scene.queue.flush.waiting.len()),
                (expected, usize::from(is_again))
            );
            assert_eq!(scene.file.trouble.is_lost(), (!is_again).then_some(error));
        }
    }

    #[test]
    fn what_is_out_when_its_queue_is_dropped_is_seen_still() {
        let mut scene = scene(Cache::Buffered);
        assert_eq!(
            scene.queue.submit(0, Operation::Discard { offset: 0, len: 4096 }, Span::EMPTY),
            Submitted::Taken
        );
        let Scene { queue, file, .. } = scene;
        drop(queue);
        let words = file.health().under_way();
        assert!(words.as_ref().is_some_and(|words| words.starts_with("1 requests")), "{words:?}");
    }

    #[test]
    fn what_waits_for_something_that_is_out_sleeps_until_it_ends_and_goes_first() {
        let mut scene = scene(Cache::Buffered);
        let discard = Operation::Discard { offset: 0, len: 4096 };
        for slot in 0..4 {
            assert_eq!(scene.queue.submit(slot, discard, Span::EMPTY), Submitted::Taken);
        }
        assert_eq!(scene.queue.submit(4, discard, Span::EMPTY), Submitted::Full);
        // One of which a part was done has to wait, and is not tried in vain meanwhile.
        scene.queue.jobs[5].operation = discard;
        scene.queue.again.push_back(5);
        scene.queue.turn(&Nothing, 0, &mut scene.ended);
        assert!(scene.queue.is_stuck);
        assert_eq!(scene.queue.submit(6, Operation::Flush, Span::EMPTY), Submitted::Full);
        let mut seen = Vec::new();
        while seen.len() < 5 {
            seen.extend(scene.next());
        }
        assert!(seen.contains(&(5, Outcome::Done)), "{seen:?}");
        assert_eq!(scene.queue.arm(), Wake::Armed);
    }

    #[test]
    fn what_passes_is_done_again() {
        let mut scene = scene(Cache::Buffered);
        let zero = Operation::WriteZeroes { offset: 0, len: 4096, may_unmap: false, is_durable: true };
        assert_eq!(scene.queue.submit(0, zero, Span::EMPTY), Submitted::Taken);
        while scene.queue.ring.reap().is_none() {
            scene.queue.ring.look();
        }
        for (error, way) in [(libc::EAGAIN, Zeroes::Range), (libc::EOPNOTSUPP, Zeroes::Data)] {
            assert_eq!(scene.queue.end(0, -error, Span::EMPTY), None);
            assert_eq!((scene.queue.again.pop_front(), scene.queue.zeroes), (Some(0), [way, Zeroes::Hole]));
        }
        scene.queue.again.push_back(0);
        // As data in the end.
        assert_eq!(scene.next(), [(0, Outcome::Done)]);
        assert_eq!(scene.file.health().failures(), 0);
    }
}
