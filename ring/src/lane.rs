//! A lane: one ring of entries from one worker to another, with one writer and one reader, neither of which ever waits for the
//! other.
//!
//! ```text
//!   writer: put, put, put, publish --+--> [ entry ][ entry ][ entry ][      ] --+--> reader: look, read, read ..
//!                                    |      each begins on a cache line         |
//!             [ published | closed ] +--------------------------------------->  |
//!                           finished <-----------------------------------------+    finish, tell
//! ```
//!
//! It knows nothing of what its entries mean: they are words. What an entry names (a buffer in somebody's memory) stays with the
//! writer until the reader has finished with the entry. Entries are finished in order.
//!
//! # Lines
//!
//! What the two write lies on lines of its own, and each line has one writer, but for the closing. So the line of an entry goes
//! from one core to the other once; the lines of the two indices go once for each time that they are published and looked at, which
//! is once a burst. An entry of more than [`LINE_WORDS`] words takes further lines, which nobody touches for a shorter one.
//!
//! # Closing
//!
//! The writer publishes by exchanging its index, and the reader closes by setting a bit in the same word. So every entry was either
//! published before, and whoever closes is told of it, or it is refused to its writer: none is left that nobody finishes, and none
//! is counted twice. Once it is closed, nothing of it is read any more, and all counts as finished.
//!
//! A reader that is dropped closes, and rings the bell of a writer that sleeps: nobody waits for what will not be finished. A writer
//! that is dropped takes nothing back: what it published is read and finished as before. So whoever drops one keeps what its
//! entries name for as long as there is a reader, by other means; or has them finished first.
//!
//! # Taking back
//!
//! A reader that does not run for long keeps what entries name from their writer. So the writer may take back all entries that the
//! reader has not [claimed](Reader::claim), as it does before it reads what they name: both exchange one word, which is the reader's
//! own line as long as the writer does not do so. Entries that were taken back are passed over by the reader once it runs, and the
//! writer puts nothing in until then.
//!
//! # Sleep
//!
//! Each end belongs to somebody who may sleep, whose [`Sleeper`] says so. Who is about to sleep says so first and looks once more;
//! who published looks there afterwards. A full fence between the two on both sides: at least one of them sees the other.
//!
//! Budget of all but making: no allocation, no lock, no system call, no panic. No `unsafe`: a reader that is told a wrong index
//! reads words, not memory.

use std::fmt;
use std::sync::Arc;

use crate::sync::{AtomicBool, AtomicU64, Ordering, fence};

use line::Line;

/// Whoever has ends of lanes, and whether he sleeps.
pub struct Sleeper {
    sleeps: Line<AtomicBool>,
    /// What wakes him, if he said so.
    bell: Option<Bell>,
}

/// Wakes somebody: from any thread, without waiting.
type Bell = Box<dyn Fn() + Send + Sync>;

/// The end that puts entries in.
#[derive(Debug)]
pub struct Writer {
    shared: Arc<Shared>,
    /// Entries that were put in since it was made.
    given: u64,
    /// How many of them are published, or were refused.
    published: u64,
    /// How many the reader had finished with when that was last looked at.
    finished: u64,
    /// How many may have been put in by then: as many as there is room for, or no more than were.
    end: u64,
    /// The reader was gone then.
    is_closed: bool,
    /// What the reader has not claimed was taken back, and it has not passed over that.
    is_barred: bool,
}

/// The end that reads them. It is closed when it is dropped.
#[derive(Debug)]
pub struct Reader {
    shared: Arc<Shared>,
    /// Entries that there were when that was last looked at.
    seen: u64,
    read: u64,
    /// As its shared word has it, unless the writer has taken back what is behind.
    claimed: u64,
    finished: u64,
    /// As the writer can see it.
    told: u64,
}

/// An entry was not published: its reader is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lane's reader is gone: {entries} entries are refused")]
pub struct Closed {
    /// How many there were.
    pub entries: u64,
}

/// What was read and not claimed was taken back by the writer, with all that is behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the lane's writer took its entries back")]
pub struct TakenBack;

/// The entry does not get into the lane: it has no room, or the entry has no words or too many.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no room in the lane")]
pub struct Full;

#[derive(Debug)]
struct Shared {
    entries: Box<[Entry]>,
    /// How many entries were published, and [`CLOSED`].
    published: Line<AtomicU64>,
    finished: Line<AtomicU64>,
    /// How many entries the reader has claimed, and [`BARRED`].
    claimed: Line<AtomicU64>,
    writer: Arc<Sleeper>,
    reader: Arc<Sleeper>,
}

/// The lines of one entry.
#[derive(Debug)]
struct Entry([Line<[AtomicU64; LINE_WORDS]>; LINES]);

/// A lane with room for so many entries, rounded up to a power of two, from whoever sleeps by `writer` to whoever sleeps by `reader`.
pub fn lane(entries: usize, writer: &Arc<Sleeper>, reader: &Arc<Sleeper>) -> (Writer, Reader) {
    let line = || Line::new(std::array::from_fn(|_| AtomicU64::new(0)));
    let entry = |_| Entry(std::array::from_fn(|_| line()));
    let shared = Arc::new(Shared {
        entries: (0..entries.next_power_of_two()).map(entry).collect(),
        published: Line::new(AtomicU64::new(0)),
        finished: Line::new(AtomicU64::new(0)),
        claimed: Line::new(AtomicU64::new(0)),
        writer: Arc::clone(writer),
        reader: Arc::clone(reader),
    });
    let writer = Writer {
        given: 0,
        published: 0,
        finished: 0,
        end: shared.entries.len() as u64,
        is_closed: false,
        is_barred: false,
        shared: Arc::clone(&shared),
    };
    (writer, Reader { shared, seen: 0, read: 0, claimed: 0, finished: 0, told: 0 })
}

impl Sleeper {
    /// One who is awake, and is woken by whoever is told that he is to be.
    pub fn new() -> Arc<Sleeper> {
        Arc::new(Sleeper { sleeps: Line::new(AtomicBool::new(false)), bell: None })
    }

    /// One who is awake, and is woken by this, which does not wait.
    pub fn with_bell(bell: impl Fn() + Send + Sync + 'static) -> Arc<Sleeper> {
        Arc::new(Sleeper { sleeps: Line::new(AtomicBool::new(false)), bell: Some(Box::new(bell)) })
    }

    /// Rings his bell, if he has one.
    pub fn ring(&self) {
        if let Some(bell) = &self.bell {
            bell();
        }
    }

    /// He is about to sleep: he looks at all his lanes once more after this, and is [awake](Sleeper::wake) if there is something.
    pub fn doze(&self) {
        self.sleeps.write().store(true, Ordering::Relaxed);
        // Against the fence in `is_to_be_woken`.
        fence(Ordering::SeqCst);
    }

    /// He is awake. Called by himself.
    pub fn wake(&self) {
        self.sleeps.write().store(false, Ordering::Relaxed);
    }

    /// Whether he sleeps, for whoever has published something.
    fn is_to_be_woken(&self) -> bool {
        // Against the fence in `doze`: he sees what was published, or it is seen here that he sleeps.
        fence(Ordering::SeqCst);
        self.sleeps.read().load(Ordering::Relaxed)
    }
}

impl fmt::Debug for Sleeper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sleeper").field("has_bell", &self.bell.is_some()).finish_non_exhaustive()
    }
}

impl Writer {
    /// Entries put in since it was made.
    pub fn given(&self) -> u64 {
        self.given
    }

    /// How many entries more it takes. It looks at the reader's line only if there would be none.
    pub fn room(&mut self) -> usize {
        if self.given >= self.end {
            self.finished();
        }
        self.end.saturating_sub(self.given) as usize
    }

    /// Puts an entry in; it is there once it is [published](Writer::publish).
    ///
    /// # Errors
    /// There is no room, or it has more than [`WORDS`] words or none.
    pub fn put(&mut self, words: &[u64]) -> Result<(), Full> {
        if words.is_empty() || words.len() > WORDS || self.room() == 0 {
            return Err(Full);
        }
        let Some(entry) = self.shared.entry(self.given) else { return Err(Full) };
        for (line, words) in entry.0.iter().zip(words.chunks(LINE_WORDS)) {
            // Relaxed: the index publishes them.
            line.write().iter().zip(words).for_each(|(to, word)| to.store(*word, Ordering::Relaxed));
        }
        self.given += 1;
        Ok(())
    }

    /// Shows the reader what was put in. True: he sleeps, and is to be woken.
    ///
    /// # Errors
    /// The reader is gone, and what was put in since the last time is not there for anybody.
    pub fn publish(&mut self) -> Result<bool, Closed> {
        let entries = self.given - self.published;
        if entries == 0 {
            return Ok(false);
        }
        let before = std::mem::replace(&mut self.published, self.given);
        // Release: the words of the entries. A reader that closed is acquired from in `finished`.
        let shown = self.shared.published.write().compare_exchange(
            before,
            self.given,
            Ordering::Release,
            Ordering::Relaxed,
        );
        match shown {
            Ok(_) => Ok(self.shared.reader.is_to_be_woken()),
            Err(_) => Err(Closed { entries }),
        }
    }

    /// Looks with how many entries the reader has finished, from the first on. All, once it is gone.
    pub fn finished(&mut self) -> u64 {
        // Acquire: pairs with the Release of whoever closes; a line that nobody else writes before.
        self.is_closed = self.shared.published.read().load(Ordering::Acquire) & CLOSED != 0;
        self.finished = if self.is_closed {
            self.given
        } else {
            // Acquire: pairs with the Release in `tell`. The count is held to what there can be.
            self.shared.finished.read().load(Ordering::Acquire).clamp(self.finished, self.published)
        };
        self.end = self.finished + self.shared.entries.len() as u64;
        if self.is_barred {
            self.unbar();
        }
        self.finished
    }

    /// Takes entries again once the reader is done with all that there are, which it read or passed over: it claims nothing then, until
    /// there are more.
    #[cold]
    fn unbar(&mut self) {
        if self.finished < self.given {
            self.end = self.given;
            return;
        }
        // Relaxed: what is put in from now on is published after it.
        self.shared.claimed.write().fetch_and(!BARRED, Ordering::Relaxed);
        self.is_barred = false;
    }

    /// Takes back all entries that the reader has not claimed, published or not: it reads nothing of what they name. How many are
    /// claimed or done with, from the first on; all, if it is gone. Nothing is put in until the reader is done with the others and has passed
    /// over these.
    pub fn take_back(&mut self) -> u64 {
        self.finished();
        if self.is_closed {
            return self.given;
        }
        // Relaxed: of the two exchanges of this word one comes first, and nothing else is told by it.
        let claimed = self.shared.claimed.write().fetch_or(BARRED, Ordering::Relaxed) & !BARRED;
        (self.is_barred, self.end) = (true, self.given);
        // What it passed over before is behind what it claimed.
        claimed.max(self.finished)
    }

    /// Something may be put in that is read: as of the last look at what is [finished](Writer::finished).
    #[inline]
    pub fn is_open(&self) -> bool {
        !self.is_closed && !self.is_barred
    }

    /// Entries that are not finished, as of the last look at that.
    pub fn left(&self) -> u64 {
        self.given - self.finished
    }

    /// The reader is gone: as of the last look at what is [finished](Writer::finished).
    #[inline]
    pub fn is_closed(&self) -> bool {
        self.is_closed
    }

    /// With how many entries the reader said that it is done, whether or not it is gone: of one that is gone, those behind were
    /// not read to their end, or not at all.
    pub fn done(&self) -> u64 {
        // Acquire: pairs with the Release in `tell`.
        self.shared.finished.read().load(Ordering::Acquire).min(self.given)
    }

    /// Whoever reads.
    pub fn reader(&self) -> &Sleeper {
        &self.shared.reader
    }
}

impl Reader {
    /// Looks how many entries there are that were not read.
    pub fn look(&mut self) -> usize {
        // Acquire: pairs with the Release in `publish`.
        let published = self.shared.published.read().load(Ordering::Acquire) & !CLOSED;
        self.seen = published.clamp(self.seen, self.finished + self.shared.entries.len() as u64);
        self.left()
    }

    /// Entries that were not read, of those that there were at the last look.
    pub fn left(&self) -> usize {
        (self.seen - self.read) as usize
    }

    /// Reads the first words of the next entry, which is then the one before. False: there is none, as of the last look. It touches
    /// the lines only that these words are on.
    pub fn read(&mut self, words: &mut [u64]) -> bool {
        let is_there = self.peek(words);
        self.read += u64::from(is_there);
        is_there
    }

    /// Reads the first words of the next entry, and leaves it in line.
    pub fn peek(&self, words: &mut [u64]) -> bool {
        let Some(entry) = self.shared.entry(self.read).filter(|_| self.read < self.seen) else {
            return false;
        };
        for (line, words) in entry.0.iter().zip(words.chunks_mut(LINE_WORDS)) {
            // Relaxed: acquired with the index.
            line.read().iter().zip(words).for_each(|(from, word)| *word = from.load(Ordering::Relaxed));
        }
        true
    }

    /// Claims all that was read: what those entries name may be read from now on.
    ///
    /// # Errors
    /// The writer has taken back what was not claimed before: it is to be [passed over](Reader::skip).
    #[inline]
    pub fn claim(&mut self) -> Result<(), TakenBack> {
        // Relaxed: what entries name was acquired with them, and nothing else is told by it.
        let word = self.shared.claimed.write();
        match word.compare_exchange(self.claimed, self.read, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => {
                self.claimed = self.read;
                Ok(())
            }
            Err(_) => Err(TakenBack),
        }
    }

    /// Passes over what was taken back, of what there was at the last look: as if it were read. How many entries that are beside those that
    /// were read. What has come since is to be claimed by itself: the writer may have put it in when all before was finished.
    #[cold]
    pub fn skip(&mut self) -> u64 {
        self.seen - std::mem::replace(&mut self.read, self.seen)
    }

    /// It has finished with so many more of those that it read, which the writer sees when it is [told](Reader::tell).
    pub fn finish(&mut self, entries: u64) {
        self.finished = self.finished.saturating_add(entries).min(self.read);
    }

    /// Shows the writer what was finished. True: he sleeps, and is to be woken.
    pub fn tell(&mut self) -> bool {
        if self.told == self.finished {
            return false;
        }
        self.told = self.finished;
        // Release: what was read of the entries, and of what they name, is done with.
        self.shared.finished.write().store(self.finished, Ordering::Release);
        self.shared.writer.is_to_be_woken()
    }

    /// Whoever writes.
    pub fn writer(&self) -> &Sleeper {
        &self.shared.writer
    }

    /// Takes nothing more. How many entries were published and not read: nobody but whoever closes counts them, and nobody reads what they
    /// name. And whether the writer sleeps, and is to be woken.
    pub fn close(self) -> (u64, bool) {
        self.shut()
    }

    fn shut(&self) -> (u64, bool) {
        // Release: as in `tell`, for a writer that tells what was read from what was not.
        self.shared.finished.write().store(self.finished, Ordering::Release);
        // Release: nothing is read any more. What was published is counted, and not read.
        let before = self.shared.published.write().fetch_or(CLOSED, Ordering::Release);
        if before & CLOSED != 0 {
            return (0, false);
        }
        (before.saturating_sub(self.read), self.shared.writer.is_to_be_woken())
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let (_, is_asleep) = self.shut();
        if is_asleep {
            self.shared.writer.ring();
        }
    }
}

impl Shared {
    fn entry(&self, number: u64) -> Option<&Entry> {
        // A power of two of them.
        self.entries.get(number as usize & (self.entries.len() - 1))
    }
}

/// Words on one cache line.
pub const LINE_WORDS: usize = 8;

/// Words of an entry at most.
pub const WORDS: usize = LINE_WORDS * LINES;

/// Lines of an entry.
const LINES: usize = 4;

/// The reader takes nothing more.
const CLOSED: u64 = 1 << 63;

/// What is not claimed was taken back.
const BARRED: u64 = 1 << 63;

/// What lies on a cache line of its own.
#[cfg(not(test))]
mod line {
    #[derive(Debug)]
    #[repr(align(64))]
    pub(super) struct Line<T>(T);

    impl<T> Line<T> {
        pub(super) fn new(value: T) -> Line<T> {
            Line(value)
        }

        /// To be read.
        #[inline(always)]
        pub(super) fn read(&self) -> &T {
            &self.0
        }

        /// To be written, or exchanged.
        #[inline(always)]
        pub(super) fn write(&self) -> &T {
            &self.0
        }
    }
}

#[cfg(test)]
mod line;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
