//! A queue pair: a submission queue and its completion queue, in memory of our own that the controller reaches.
//!
//! ```text
//!   submit(command) ... ring() --> controller works --> reap(): which command, how it ended ... ring()
//! ```
//!
//! Owned by one thread. A command is known by its *place*, below the queue's size, from when it is submitted until its
//! completion is taken; its identifier is the place with a number that counts how often the place was used, so that a completion
//! which comes twice, or late, is known as such. What a completion says is a claim: one that cannot be is counted, and changes
//! nothing. Budget of all but the constructor: no allocation, no lock, no system call, no panic.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use ringway_ring::guest::HostSlice;

use super::PAGE;
use super::command::{Command, MOST_RANGES, Range, Status};
use super::data::{Kind, ListPage, Part};
use super::registers::{Doorbells, Registers};
use crate::dma::OwnMemory;

/// A pair in our memory, which the controller was told of or is about to be.
pub struct QueuePair {
    id: u16,
    memory: Arc<OwnMemory>,
    size: u16,
    bells: Doorbells,
    /// Where the next command goes, and what of them the controller was told.
    tail: u16,
    told: u16,
    /// Up to where the controller says that it has read.
    head: u16,
    /// Where the next completion comes, with which phase, and what of them the controller was told.
    next: u16,
    phase: bool,
    read: u16,
    places: Vec<Place>,
    free: Vec<u16>,
    strays: Strays,
}

#[derive(Debug, Clone, Copy, Default)]
struct Place {
    /// How often it was used.
    turn: u16,
    is_out: bool,
}

/// Completions that could not be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Strays {
    /// Of no command that is outstanding: it ended before, or never was.
    pub unknown: u64,
    /// Of another queue's.
    pub elsewhere: u64,
    /// With a place of the submission queue that was not reached.
    pub beyond: u64,
}

impl Strays {
    /// All of them.
    pub fn total(self) -> u64 {
        self.unknown + self.elsewhere + self.beyond
    }
}

/// What is found where the next completion comes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// A command ended.
    Done(Done),
    /// One that could not be, and was counted.
    Stray,
}

/// How a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Done {
    /// Its place, which is free again.
    pub place: u16,
    /// How.
    pub status: Status,
    /// What it says beside that.
    pub result: u32,
}

impl std::fmt::Debug for QueuePair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("QueuePair")
            .field("id", &self.id)
            .field("size", &self.size)
            .field("outstanding", &self.outstanding())
            .finish_non_exhaustive()
    }
}

impl QueuePair {
    /// Bytes of memory that a pair of this size needs.
    pub(super) fn bytes(size: u16) -> u64 {
        QueuePair::lists(size) + u64::from(size) * PAGE
    }

    /// Where, in its memory, its completions begin.
    fn completions(size: u16) -> u64 {
        (u64::from(size) * SUBMISSION).next_multiple_of(PAGE)
    }

    /// Where, in its memory, the pages begin that its places have.
    fn lists(size: u16) -> u64 {
        QueuePair::completions(size) + (u64::from(size) * COMPLETION).next_multiple_of(PAGE)
    }

    /// An empty one in memory of zeros. None: there are no such doorbells, or the size is not possible.
    pub(super) fn new(
        registers: &Registers,
        id: u16,
        memory: Arc<OwnMemory>,
        size: u16,
    ) -> Option<QueuePair> {
        let size = Some(size).filter(|size| (2..=MOST_ENTRIES).contains(size))?;
        memory.map().resolve(memory.iova(), QueuePair::bytes(size)).ok()?;
        // A queue with as many entries as are outstanding would look empty.
        let places = size - 1;
        Some(QueuePair {
            id,
            bells: registers.doorbells(id)?,
            memory,
            size,
            tail: 0,
            told: 0,
            head: 0,
            next: 0,
            phase: true,
            read: 0,
            places: vec![Place::default(); places.into()],
            free: (0..places).rev().collect(),
            strays: Strays::default(),
        })
    }

    /// It begins anew, with nothing outstanding. The controller has to have forgotten it.
    pub(super) fn empty(&mut self) {
        let (from, to) = (QueuePair::completions(self.size), QueuePair::lists(self.size));
        if let Some(completions) = self.entry(from, to - from) {
            (0..completions.len()).step_by(8).for_each(|at| completions.put_word(at, 0));
        }
        (self.tail, self.told, self.head, self.next, self.read, self.phase) = (0, 0, 0, 0, 0, true);
        self.places.iter_mut().for_each(|place| place.is_out = false);
        self.free.clear();
        self.free.extend((0..self.size - 1).rev());
    }

    /// Its number.
    pub fn id(&self) -> u16 {
        self.id
    }

    /// Entries of either queue.
    pub fn size(&self) -> u16 {
        self.size
    }

    pub(super) fn submissions_at(&self) -> u64 {
        self.memory.iova()
    }

    pub(super) fn completions_at(&self) -> u64 {
        self.memory.iova() + QueuePair::completions(self.size)
    }

    /// Commands that can be submitted.
    #[inline]
    pub fn room(&self) -> usize {
        self.free.len()
    }

    /// Commands that were submitted and did not end.
    #[inline]
    pub fn outstanding(&self) -> usize {
        self.places.len() - self.free.len()
    }

    /// Completions that could not be.
    pub fn strays(&self) -> Strays {
        self.strays
    }

    /// The identifier of a command that is outstanding.
    pub fn command_id(&self, place: u16) -> Option<u16> {
        let slot = self.places.get(usize::from(place)).filter(|slot| slot.is_out)?;
        Some(identifier(place, slot.turn))
    }

    /// Submits a command without data, or whose data the caller has pointed out. Its place; None: there is no room.
    #[inline]
    pub fn submit(&mut self, command: Command) -> Option<u16> {
        let place = self.take()?;
        self.put(place, command, false);
        Some(place)
    }

    /// Submits a command with these data, which are not to be copied.
    #[inline]
    pub fn submit_part(&mut self, command: Command, part: &Part<'_>) -> Option<u16> {
        if part.kind == Kind::Copy {
            return None;
        }
        let place = self.take()?;
        let Some(list) = self.page(place) else { return Some(place) };
        let pointer = part.describe(list);
        self.put(place, command.at(pointer.words.0, pointer.words.1), pointer.is_sgl);
        Some(place)
    }

    /// Submits a command whose data is one piece of memory of our own, in one page.
    #[inline]
    pub fn submit_at(&mut self, command: Command, at: u64) -> Option<u16> {
        self.submit(command.at(at, 0))
    }

    /// Submits a deallocation of so many ranges, 1 to [`MOST_RANGES`].
    #[inline]
    pub fn submit_ranges(&mut self, namespace: u32, ranges: &[Range]) -> Option<u16> {
        if ranges.is_empty() || ranges.len() > MOST_RANGES {
            return None;
        }
        let place = self.take()?;
        let Some(list) = self.page(place) else { return Some(place) };
        for (n, range) in ranges.iter().enumerate() {
            let [first, second] = range.words();
            list.memory.put_word(n * 16, first);
            list.memory.put_word(n * 16 + 8, second);
        }
        self.put(place, Command::deallocate(namespace, ranges.len() as u16).at(list.at, 0), false);
        Some(place)
    }

    #[inline]
    fn take(&mut self) -> Option<u16> {
        let place = self.free.pop()?;
        let slot = self.places.get_mut(usize::from(place))?;
        slot.turn = (slot.turn + 1) % TURNS;
        slot.is_out = true;
        Some(place)
    }

    #[inline]
    fn put(&mut self, place: u16, command: Command, is_sgl: bool) {
        let turn = self.places.get(usize::from(place)).map_or(0, |slot| slot.turn);
        let words = command.words(identifier(place, turn), is_sgl);
        if let Some(entry) = self.entry(u64::from(self.tail) * SUBMISSION, SUBMISSION) {
            for (n, word) in words.into_iter().enumerate() {
                entry.put_word(n * 8, word);
            }
        }
        self.tail = self.after(self.tail);
    }

    #[inline]
    fn entry(&self, at: u64, bytes: u64) -> Option<HostSlice<'_>> {
        self.memory.map().resolve(self.memory.iova() + at, bytes).ok()
    }

    /// The page of a place.
    #[inline]
    fn page(&self, place: u16) -> Option<ListPage<'_>> {
        let at = QueuePair::lists(self.size) + u64::from(place) * PAGE;
        Some(ListPage { memory: self.entry(at, PAGE)?, at: self.memory.iova() + at })
    }

    #[inline]
    fn after(&self, index: u16) -> u16 {
        if index + 1 < self.size { index + 1 } else { 0 }
    }

    /// Tells the controller of what was submitted, and which completions were read, where that is news.
    #[inline]
    pub fn ring(&mut self) {
        if self.read != self.next {
            self.read = self.next;
            self.bells.read(self.next);
        }
        if self.told != self.tail {
            self.told = self.tail;
            self.bells.submitted(self.tail);
        }
    }

    /// What is found where the next completion comes; None: nothing came. A controller that makes them up finds an end at the
    /// caller's own bound, and at the queue's size while it is not told.
    #[inline]
    pub fn reap(&mut self) -> Option<Found> {
        let at = QueuePair::completions(self.size) + u64::from(self.next) * COMPLETION;
        let entry = self.entry(at, COMPLETION)?;
        // Dwords 2 and 3: head, queue; identifier, phase, status.
        let second = entry.word(8);
        if (second >> 48 & 1 != 0) != self.phase {
            return None;
        }
        // What the controller wrote before is read behind this: the rest of the entry, and the command's data.
        fence(Ordering::Acquire);
        let result = entry.word(0) as u32;
        let (head, queue, id) = (second as u16, (second >> 16) as u16, (second >> 32) as u16);
        let status = Status::new((second >> 49) as u16);
        self.next = self.after(self.next);
        self.phase ^= self.next == 0;
        Some(
            self.judge(head, queue, id)
                .map_or(Found::Stray, |place| Found::Done(Done { place, status, result })),
        )
    }

    /// Something may be found.
    #[inline]
    pub fn can_reap(&self) -> bool {
        let at = QueuePair::completions(self.size) + u64::from(self.next) * COMPLETION;
        self.entry(at, COMPLETION).is_some_and(|entry| (entry.word(8) >> 48 & 1 != 0) == self.phase)
    }

    /// The place of the command that a completion is of, if it can be.
    #[inline]
    fn judge(&mut self, head: u16, queue: u16, id: u16) -> Option<u16> {
        if queue != self.id {
            self.strays.elsewhere += 1;
            return None;
        }
        // Between what it said last and what it was told.
        let distance =
            |to: u16| (u32::from(to) + u32::from(self.size) - u32::from(self.head)) % u32::from(self.size);
        if head >= self.size || distance(head) > distance(self.told) {
            self.strays.beyond += 1;
            return None;
        }
        let place = id % PLACES;
        let slot =
            self.places.get_mut(usize::from(place)).filter(|slot| slot.is_out && slot.turn == id / PLACES);
        let Some(slot) = slot else {
            self.strays.unknown += 1;
            return None;
        };
        slot.is_out = false;
        self.head = head;
        self.free.push(place);
        Some(place)
    }
}

/// A command's identifier: its place below, how often that was used above.
#[inline]
fn identifier(place: u16, turn: u16) -> u16 {
    turn * PLACES + place
}

const SUBMISSION: u64 = 64;
const COMPLETION: u64 = 16;
/// An identifier's places and turns.
const PLACES: u16 = 1 << 10;
const TURNS: u16 = 1 << 6;
/// Entries of a queue of ours.
pub const MOST_ENTRIES: u16 = 1 << 10;
