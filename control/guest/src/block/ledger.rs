//! What every block must hold: which generations of it were submitted, and which were completed.
//!
//! A write that is completed excludes all that were completed before it was submitted; those under way together have no order
//! among them, and one that is under way may have been done or not. So a block has a set of generations that it may
//! hold: mostly one, two while it is being written. Nothing older than all of them is admitted (a lost write), nothing
//! that was not submitted (an invented one). A write that failed may have been done, and excludes nothing.
//!
//! ```text
//!   1 completed |  2 under way        ->  holds 1 or 2
//!   1 completed |  2 completed        ->  holds 2
//!   1 completed |  2 under way, 3 completed meanwhile  ->  holds 2 or 3
//!   1 completed |  2 failed           ->  holds 1 or 2
//! ```
//! Generations of a block count up from 1. Owned by one thread.

use std::collections::HashMap;

use super::stamp::Found;

/// What a write leaves in a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Content {
    /// The block's stamp.
    Stamp,
    /// Zeroes.
    Zeroes,
    /// What it held before, or zeroes: the block was discarded.
    Forgotten,
}

/// A generation and what it leaves, in 32 bits: 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
struct Version(u32);

impl Version {
    fn new(generation: u32, content: Content) -> Version {
        Version(generation << CONTENT_BITS | content as u32)
    }

    fn generation(self) -> u32 {
        self.0 >> CONTENT_BITS
    }

    fn content(self) -> u32 {
        self.0 & ((1 << CONTENT_BITS) - 1)
    }

    /// The generation that a sector of it has: 0 if it may be zeroes.
    fn stamped(self) -> u32 {
        if self.content() == STAMP { self.generation() } else { 0 }
    }

    fn admits(self, block: u64, found: &Found) -> bool {
        match (self.content(), found) {
            // Nothing was written yet: the device is fresh.
            _ if self.0 == 0 => *found == Found::Zeroes,
            (STAMP, Found::Stamped { block: of, generation }) => {
                *of == block && *generation == self.generation()
            }
            (ZEROES, Found::Zeroes) => true,
            (FORGOTTEN, Found::Zeroes | Found::Torn { .. }) => true,
            (FORGOTTEN, Found::Stamped { block: of, generation }) => {
                *of == block && *generation < self.generation()
            }
            _ => false,
        }
    }
}

/// A block of which at most one write is under way.
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// What was completed last.
    settled: Version,
    /// What is under way; [`CROWDED`] if the block is in [`Ledger::crowded`].
    pending: Version,
}

/// A block with more than that.
#[derive(Debug, Clone, Default)]
struct Crowd {
    candidates: Vec<Candidate>,
    /// The newest generation.
    newest: u32,
}

/// What a block may hold.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    version: Version,
    /// When it was submitted, and when it was completed or failed.
    begun: u64,
    ended: Option<u64>,
}

/// See the head of this file.
#[derive(Debug, Clone)]
pub struct Ledger {
    first: u64,
    entries: Box<[Entry]>,
    crowded: HashMap<u64, Crowd>,
    /// Counts what begins and ends.
    clock: u64,
}

impl Ledger {
    /// Of `blocks` blocks from number `first` on, of a device that reads as zeroes.
    pub fn new(first: u64, blocks: u64) -> Ledger {
        let entries = vec![Entry::default(); blocks as usize].into();
        Ledger { first, entries, crowded: HashMap::new(), clock: 1 }
    }

    /// The first block.
    pub fn first(&self) -> u64 {
        self.first
    }

    /// How many they are.
    pub fn blocks(&self) -> u64 {
        self.entries.len() as u64
    }

    /// A write is submitted: its generation.
    #[inline]
    pub fn begin(&mut self, block: u64, content: Content) -> u32 {
        self.clock += 1;
        let at = self.at(block);
        let Some(entry) = self.entries.get_mut(at) else { return 0 };
        if entry.pending.0 == 0 {
            let generation = entry.settled.generation() + 1;
            entry.pending = Version::new(generation, content);
            return generation;
        }
        self.begin_crowded(block, content)
    }

    #[cold]
    fn begin_crowded(&mut self, block: u64, content: Content) -> u32 {
        let (at, clock) = (self.at(block), self.clock);
        let crowd = self.crowd(block, at);
        crowd.newest += 1;
        let version = Version::new(crowd.newest, content);
        crowd.candidates.push(Candidate { version, begun: clock, ended: None });
        crowd.newest
    }

    /// It was completed.
    #[inline]
    pub fn complete(&mut self, block: u64, generation: u32) {
        self.clock += 1;
        let at = self.at(block);
        let Some(entry) = self.entries.get_mut(at) else { return };
        if entry.pending != CROWDED {
            if entry.pending.generation() == generation {
                *entry = Entry { settled: entry.pending, pending: Version::default() };
            }
            return;
        }
        self.complete_crowded(block, generation);
    }

    #[cold]
    fn complete_crowded(&mut self, block: u64, generation: u32) {
        let clock = self.clock;
        let Some(crowd) = self.crowded.get_mut(&block) else { return };
        let Some(nth) = crowd.candidates.iter().position(|one| one.version.generation() == generation) else {
            return;
        };
        let begun = crowd.candidates[nth].begun;
        crowd.candidates[nth].ended = Some(clock);
        crowd.candidates.retain(|one| one.ended.is_none_or(|ended| ended > begun));
        self.settle(block);
    }

    /// It failed: it may have been done, in part or as a whole.
    #[cold]
    pub fn fail(&mut self, block: u64, generation: u32) {
        self.clock += 1;
        let (at, clock) = (self.at(block), self.clock);
        if self.entries.get(at).is_none_or(|entry| entry.pending.0 == 0) {
            return;
        }
        let crowd = self.crowd(block, at);
        let failed = crowd.candidates.iter_mut().find(|one| one.version.generation() == generation);
        if let Some(candidate) = failed {
            candidate.ended = Some(clock);
        }
    }

    /// The block as a crowd.
    fn crowd(&mut self, block: u64, at: usize) -> &mut Crowd {
        let crowd = self.crowded.entry(block).or_default();
        if let Some(entry) = self.entries.get_mut(at)
            && entry.pending != CROWDED
        {
            // What is under way began after all that was completed, and before all that is to come.
            let settled = Candidate { version: entry.settled, begun: 0, ended: Some(0) };
            let pending = Candidate { version: entry.pending, begun: 1, ended: None };
            crowd.newest = entry.pending.generation().max(entry.settled.generation());
            crowd.candidates = vec![settled, pending];
            entry.pending = CROWDED;
        }
        crowd
    }

    /// Makes a crowd of one an entry again.
    fn settle(&mut self, block: u64) {
        let at = self.at(block);
        let Some(crowd) = self.crowded.get(&block) else { return };
        if let [Candidate { version, ended: Some(_), .. }] = crowd.candidates[..]
            && version.generation() == crowd.newest
            && let Some(entry) = self.entries.get_mut(at)
        {
            *entry = Entry { settled: version, pending: Version::default() };
            self.crowded.remove(&block);
        }
    }

    /// Some write of it is under way.
    #[inline]
    pub fn is_being_written(&self, block: u64) -> bool {
        let pending = self.entries.get(self.at(block)).map_or(Version::default(), |entry| entry.pending);
        match pending {
            CROWDED => {
                let crowd = self.crowded.get(&block);
                crowd.is_some_and(|crowd| crowd.candidates.iter().any(|one| one.ended.is_none()))
            }
            other => other.0 != 0,
        }
    }

    /// The oldest generation that it may hold now: nothing older may be read by what is submitted from now on.
    #[inline]
    pub fn floor(&self, block: u64) -> u32 {
        let Some(entry) = self.entries.get(self.at(block)) else { return 0 };
        if entry.pending != CROWDED {
            return entry.settled.generation();
        }
        let crowd = self.crowded.get(&block);
        let oldest = |crowd: &Crowd| crowd.candidates.iter().map(|one| one.version.generation()).min();
        crowd.and_then(oldest).unwrap_or_default()
    }

    /// The newest generation that was submitted.
    pub fn newest(&self, block: u64) -> u32 {
        let Some(entry) = self.entries.get(self.at(block)) else { return 0 };
        match entry.pending {
            CROWDED => self.crowded.get(&block).map_or(0, |crowd| crowd.newest),
            pending => pending.generation().max(entry.settled.generation()),
        }
    }

    /// What was found may be there, while nothing reads and writes at once.
    #[inline]
    pub fn admits(&self, block: u64, found: &Found) -> bool {
        let Some(entry) = self.entries.get(self.at(block)) else { return false };
        if entry.pending != CROWDED {
            return entry.settled.admits(block, found)
                || (entry.pending.0 != 0 && is_partly(entry.settled, entry.pending, block, found));
        }
        let Some(crowd) = self.crowded.get(&block) else { return false };
        let admits = |one: &Candidate| one.version.admits(block, found);
        crowd.candidates.iter().any(admits)
            || matches!(found, Found::Torn { oldest, newest }
                if *oldest >= floor_stamped(crowd) && *newest <= crowd.newest)
    }

    /// What was found may have been read by a request that was submitted when the block's floor was `floor`, whatever was
    /// written meanwhile.
    #[inline]
    pub fn admits_since(&self, block: u64, floor: u32, found: &Found) -> bool {
        if self.admits(block, found) {
            return true;
        }
        let newest = self.newest(block);
        match found {
            Found::Stamped { block: of, generation } => *of == block && (floor..=newest).contains(generation),
            Found::Torn { newest: high, .. } => floor < newest && *high <= newest,
            Found::Zeroes => floor < newest,
            Found::Damaged { .. } => false,
        }
    }

    #[inline]
    fn at(&self, block: u64) -> usize {
        block.wrapping_sub(self.first) as usize
    }
}

/// A write that is under way was done, or some of its sectors were.
fn is_partly(settled: Version, pending: Version, block: u64, found: &Found) -> bool {
    let (one, other) = (settled.stamped(), pending.stamped());
    pending.admits(block, found)
        || matches!(found, Found::Torn { oldest, newest }
            if *oldest >= one.min(other) && *newest <= one.max(other))
}

/// The oldest generation that a sector may be of: 0 if it may be zeroes.
fn floor_stamped(crowd: &Crowd) -> u32 {
    crowd.candidates.iter().map(|one| one.version.stamped()).min().unwrap_or_default()
}

const CONTENT_BITS: u32 = 2;
const STAMP: u32 = Content::Stamp as u32;
const ZEROES: u32 = Content::Zeroes as u32;
const FORGOTTEN: u32 = Content::Forgotten as u32;

/// See [`Entry::pending`].
const CROWDED: Version = Version(u32::MAX);

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCK: u64 = 100;

    fn stamped(generation: u32) -> Found {
        Found::Stamped { block: BLOCK, generation }
    }

    /// Which of the generations 0 (zeroes) to 5 are admitted.
    fn admitted(ledger: &Ledger) -> Vec<u32> {
        let found = |generation| if generation == 0 { Found::Zeroes } else { stamped(generation) };
        (0..=5).filter(|generation| ledger.admits(BLOCK, &found(*generation))).collect()
    }

    #[test]
    fn write_may_be_done_from_its_submission_and_must_be_from_its_completion() {
        let mut ledger = Ledger::new(BLOCK, 1);
        assert_eq!(admitted(&ledger), [0]);
        assert_eq!(ledger.begin(BLOCK, Content::Stamp), 1);
        assert_eq!((admitted(&ledger), ledger.floor(BLOCK)), (vec![0, 1], 0));
        ledger.complete(BLOCK, 1);
        assert_eq!((admitted(&ledger), ledger.floor(BLOCK)), (vec![1], 1));
        assert_eq!(ledger.begin(BLOCK, Content::Stamp), 2);
        assert_eq!(admitted(&ledger), [1, 2]);
        assert!(ledger.is_being_written(BLOCK));
        ledger.complete(BLOCK, 2);
        assert_eq!(admitted(&ledger), [2]);
        assert!(!ledger.is_being_written(BLOCK));
        assert!(!ledger.admits(BLOCK, &Found::Stamped { block: BLOCK + 1, generation: 2 }));
    }

    #[test]
    fn writes_under_way_together_have_no_order() {
        let mut ledger = Ledger::new(BLOCK, 1);
        let first = ledger.begin(BLOCK, Content::Stamp);
        let second = ledger.begin(BLOCK, Content::Stamp);
        let third = ledger.begin(BLOCK, Content::Stamp);
        assert_eq!(admitted(&ledger), [0, 1, 2, 3]);
        ledger.complete(BLOCK, second);
        assert_eq!(admitted(&ledger), [1, 2, 3]);
        ledger.complete(BLOCK, first);
        assert_eq!(admitted(&ledger), [1, 2, 3]);
        // Began after both were completed.
        let fourth = ledger.begin(BLOCK, Content::Stamp);
        ledger.complete(BLOCK, fourth);
        assert_eq!(admitted(&ledger), [3, 4]);
        ledger.complete(BLOCK, third);
        assert_eq!(admitted(&ledger), [3, 4], "the third may have been done last");
        let fifth = ledger.begin(BLOCK, Content::Stamp);
        ledger.complete(BLOCK, fifth);
        assert_eq!(admitted(&ledger), [5]);
        assert!(ledger.crowded.is_empty());
        assert_eq!(ledger.begin(BLOCK, Content::Stamp), 6);
    }

    #[test]
    fn failed_write_may_have_been_done_until_a_later_one_is() {
        let mut ledger = Ledger::new(BLOCK, 1);
        let first = ledger.begin(BLOCK, Content::Stamp);
        ledger.complete(BLOCK, first);
        let second = ledger.begin(BLOCK, Content::Stamp);
        ledger.fail(BLOCK, second);
        assert_eq!(admitted(&ledger), [1, 2]);
        assert!(!ledger.is_being_written(BLOCK));
        let third = ledger.begin(BLOCK, Content::Stamp);
        assert_eq!(admitted(&ledger), [1, 2, 3]);
        ledger.complete(BLOCK, third);
        assert_eq!((admitted(&ledger), ledger.floor(BLOCK)), (vec![3], 3));
        // What failed before anything was completed.
        let mut ledger = Ledger::new(BLOCK, 1);
        let first = ledger.begin(BLOCK, Content::Stamp);
        ledger.fail(BLOCK, first);
        assert_eq!(admitted(&ledger), [0, 1]);
        assert_eq!(ledger.begin(BLOCK, Content::Stamp), 2);
    }

    #[test]
    fn zeroes_and_discards_are_generations_of_their_own() {
        let mut ledger = Ledger::new(BLOCK, 1);
        for content in [Content::Stamp, Content::Zeroes] {
            let generation = ledger.begin(BLOCK, content);
            ledger.complete(BLOCK, generation);
        }
        assert_eq!((admitted(&ledger), ledger.floor(BLOCK)), (vec![0], 2));
        let third = ledger.begin(BLOCK, Content::Stamp);
        ledger.complete(BLOCK, third);
        let fourth = ledger.begin(BLOCK, Content::Forgotten);
        ledger.complete(BLOCK, fourth);
        assert_eq!(admitted(&ledger), [0, 1, 2, 3], "the third is there, or what was under it, or nothing");
        let fifth = ledger.begin(BLOCK, Content::Stamp);
        ledger.complete(BLOCK, fifth);
        assert_eq!(admitted(&ledger), [5]);
    }

    #[test]
    fn torn_block_is_one_whose_write_was_not_completed() {
        let torn = |oldest, newest| Found::Torn { oldest, newest };
        let mut ledger = Ledger::new(BLOCK, 1);
        let first = ledger.begin(BLOCK, Content::Stamp);
        assert!(ledger.admits(BLOCK, &torn(0, 1)));
        ledger.complete(BLOCK, first);
        assert!(!ledger.admits(BLOCK, &torn(0, 1)));
        let second = ledger.begin(BLOCK, Content::Stamp);
        assert!(ledger.admits(BLOCK, &torn(1, 2)) && !ledger.admits(BLOCK, &torn(0, 2)));
        let third = ledger.begin(BLOCK, Content::Zeroes);
        assert!(ledger.admits(BLOCK, &torn(0, 2)) && !ledger.admits(BLOCK, &torn(1, 4)));
        ledger.complete(BLOCK, second);
        ledger.complete(BLOCK, third);
    }

    #[test]
    fn read_that_met_writes_may_have_seen_any_of_them_and_nothing_older() {
        let mut ledger = Ledger::new(BLOCK, 1);
        for _ in 0..2 {
            let generation = ledger.begin(BLOCK, Content::Stamp);
            ledger.complete(BLOCK, generation);
        }
        let floor = ledger.floor(BLOCK);
        let third = ledger.begin(BLOCK, Content::Stamp);
        ledger.complete(BLOCK, third);
        let seen: Vec<u32> =
            (1..=5).filter(|one| ledger.admits_since(BLOCK, floor, &stamped(*one))).collect();
        assert_eq!(seen, [2, 3]);
        assert!(!ledger.admits(BLOCK, &stamped(2)));
    }
}
