//! What is recorded of chains that complete in any order, so that a successor of this process knows which the device has:
//! the in-flight region of vhost-user, in memory that outlives the process.
//!
//! ```text
//!   Region   | part of queue 0 | part of queue 1 | ...      each a multiple of 64 bytes
//!              head | entry | entry | ...
//!
//!   split, 16 bytes each                              packed, 32 bytes each
//!   head    0 features  u64                           head    0 features   u64
//!           8 version   u16   0: nothing yet                  8 version    u16
//!          10 desc_num  u16   entries                        10 desc_num   u16
//!          12 last_batch_head u16                            12 free_head  u16   14 old_free_head u16
//!          14 used_idx  u16                                  16 used_idx   u16   18 old_used_idx  u16
//!   entry   0 inflight  u8                                   20 used_wrap  u8    21 old_used_wrap u8
//!           6 next      u16                           entry   0 inflight   u8
//!           8 counter   u64                                   2 next u16   4 last u16   6 num u16   8 counter u64
//!                                                            16 id   u16  18 flags u16 20 len u32  24 addr    u64
//! ```
//!
//! A process may die between any two of its stores. It records a chain before anything is done about it, and that it is
//! done in this order: which chains a burst completes; the burst becomes visible to the driver; they are not in flight;
//! the burst is over. So whatever was taken is executed at least once, and completed exactly once:
//!
//! | died | a successor finds | and |
//! | --- | --- | --- |
//! | before a chain was recorded | nothing of it | takes it anew: the ring goes on at what is used and what is in flight |
//! | before the burst was visible | its chains in flight, the ring where it was | does them again |
//! | after that | the ring ahead of the record by the burst | takes them for done |
//!
//! Chains that are done again come first, in the order in which they were first taken, before any new one.
//!
//! The region is the front-end's, who gives it to each back-end of a device, or this process's own. Neither it nor the
//! ring is believed: [`split`] and [`packed`] check all of a record before anything is made of it, and what runs never reads
//! what it wrote.
//!
//! Threads: recovery on whichever thread starts a queue, before its worker has it; the records by the worker, under the
//! rules of [`Track`](crate::track::Track).

pub mod packed;
pub mod split;

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use rustix::fs::{FallocateFlags, MemfdFlags, OFlags, SealFlags};

use crate::format::Format;
use crate::guest::{FileFacts, MapError};
use crate::mapping::Mapping;
use crate::queue::QueueConfig;
use crate::words::{RawWords, Words};

/// Why a record is not one of the ring that it is given for. The front-end's fault, or that of whoever wrote the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum RecordFault {
    /// Of a version that is not known.
    #[error("it is of version {version}, where 1 is known")]
    Version {
        /// The version that it says.
        version: u16,
    },
    /// Too few entries for the ring, or another number than were asked for.
    #[error("it has {entries} entries, which do not fit a ring of {size}")]
    Entries {
        /// Entries.
        entries: u16,
        /// The ring's size.
        size: u16,
    },
    /// An index that is none of its entries.
    #[error("it names an entry that it does not have")]
    Index,
    /// A list that comes back to where it was, or to another one.
    #[error("one of its lists has an entry twice")]
    Circle,
    /// More chains than the ring can have, or a position that is not one of the ring.
    #[error("the ring cannot have what it says")]
    Contradiction,
}

/// Bytes that the records of a queue with so many entries take.
pub fn part_bytes(format: Format, entries: u16) -> u64 {
    let (head, entry) = match format {
        Format::Split => (split::HEAD, split::ENTRY),
        Format::Packed => (packed::HEAD, packed::ENTRY),
    };
    ((head + entry * usize::from(entries)) as u64).next_multiple_of(PART_ALIGN)
}

/// A file for the records of `queues` queues with `entries` each: zeroed, and sealed against being cut or grown.
pub fn make_file(format: Format, queues: u16, entries: u16) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(rustix::fs::memfd_create("ringway-inflight", flags)?);
    file.set_len(part_bytes(format, entries) * u64::from(queues))?;
    rustix::fs::fcntl_add_seals(&file, SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?;
    Ok(file)
}

/// The records of all queues of a device, mapped. Contents are claims until checked; a file that is cut becomes zeros, and
/// records are lost then, nothing else (see [`crate::sigbus`]).
#[derive(Debug)]
pub struct Region {
    map: Mapping,
}

impl Region {
    /// Maps what a front-end gives: `len` bytes at `offset` of a file.
    ///
    /// # Errors
    /// Those of mapping a guest's memory; `Wrap` also for an offset that is not aligned to 8 bytes.
    pub fn map(file: BorrowedFd<'_>, offset: u64, len: u64) -> Result<Arc<Region>, MapError> {
        let facts = FileFacts::read(file)?;
        let wraps = MapError::Wrap { address: offset, size: len };
        let Some(end) = offset.checked_add(len).filter(|_| offset.is_multiple_of(WORD)) else {
            return Err(wraps);
        };
        if len == 0 {
            return Err(MapError::Empty { gpa: offset });
        }
        if end > facts.size {
            return Err(MapError::BeyondFile { end, file_size: facts.size });
        }
        let bytes = usize::try_from(len).map_err(|_| wraps)?;
        let map = Mapping::new(file, offset, bytes, facts.page_bytes).map_err(MapError::Map)?;
        Ok(Arc::new(Region { map }))
    }

    /// The records of queue `index`, where each queue has so many entries. None: they are not inside the region.
    pub fn part(self: &Arc<Region>, format: Format, entries: u16, index: u16) -> Option<Part> {
        let len = part_bytes(format, entries);
        let at = len * u64::from(index);
        (at + len <= self.map.len() as u64).then(|| Part {
            region: Arc::clone(self),
            format,
            entries,
            at: at as usize,
            len: len as usize,
            is_own: false,
        })
    }

    /// True once its file was cut and somebody found it so.
    pub fn is_poisoned(&self) -> bool {
        self.map.is_poisoned()
    }
}

/// The records of one queue.
#[derive(Debug, Clone)]
pub struct Part {
    region: Arc<Region>,
    format: Format,
    entries: u16,
    /// Inside the region, a multiple of [`PART_ALIGN`].
    at: usize,
    len: usize,
    /// Of our own records: which ring it is of follows the entries.
    is_own: bool,
}

/// What tells one ring from another that is at the same position: a queue of a new VM is at the start as its predecessor's was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity([u64; IDENTITY_WORDS]);

impl Identity {
    fn of(config: &QueueConfig) -> Identity {
        let QueueConfig { desc_user_addr, driver_user_addr, device_user_addr, size, .. } = config;
        Identity([*desc_user_addr, *driver_user_addr, *device_user_addr, u64::from(size.get())])
    }
}

impl Part {
    /// It is of our own records, which nobody but us has written.
    pub fn is_own(&self) -> bool {
        self.is_own
    }

    /// Makes a part of our own records the record of this ring: what it has of another is forgotten, and all of it if the ring
    /// does not go on where it was. A front-end's is its own matter. Nobody uses it.
    pub fn take_for(&self, config: &QueueConfig, goes_on: bool) {
        if !self.is_own {
            return;
        }
        let (words, Identity(ring)) = (self.words(), Identity::of(config));
        let at = part_bytes(self.format, self.entries) as usize;
        let places = || ring.iter().zip((at..).step_by(WORD as usize));
        let is_same = places().all(|(word, at)| words.read_u64(at) == *word);
        if goes_on && is_same {
            return;
        }
        self.forget();
        // Release: who finds the ring's identity finds nothing of another ring beside it.
        fence(Ordering::Release);
        places().for_each(|(word, at)| words.write_u64(at, *word));
    }

    /// The format of ring that it is for.
    pub fn format(&self) -> Format {
        self.format
    }

    /// Its entries.
    pub(crate) fn entries(&self) -> u16 {
        self.entries
    }

    /// Refuses what a queue would not start with, whatever its ring: another version, another number of entries.
    pub fn check(&self) -> Result<(), RecordFault> {
        let words = self.words();
        match words.read_u16(VERSION) {
            0 => Ok(()),
            VERSION_1 => check_entries(&words, self.format, 0, self.entries),
            version => Err(RecordFault::Version { version }),
        }
    }

    /// Nothing is recorded any more: the queue begins anew. Nobody uses it.
    pub fn forget(&self) {
        self.words().write_u16(VERSION, 0);
    }

    /// Its words: of one holder at a time.
    pub(crate) fn words(&self) -> RecordWords {
        let start = self.region.map.start().wrapping_add(self.at);
        // SAFETY: validity: `at + len` is inside the mapping (checked in `Region::part`), which the value holds beside the
        // words. Alignment: the region's start is aligned to 8 (checked in `Region::map`; parts of our own are multiples of 64), the part to 64 from there, and no
        // word is wider. Bounds: offsets are those of entries below the number that the part was made
        // for (see `check_entries`). Aliasing and concurrency: no reference to the bytes is ever made, and others may write them at any time.
        let words = unsafe { RawWords::new(start, self.len) };
        RecordWords { words, _region: Arc::clone(&self.region) }
    }
}

/// The words of a [`Part`].
#[derive(Debug)]
pub struct RecordWords {
    words: RawWords,
    /// Keeps the memory.
    _region: Arc<Region>,
}

impl Words for RecordWords {
    #[inline(always)]
    fn size(&self) -> usize {
        self.words.size()
    }
    #[inline(always)]
    fn read_u16(&self, at: usize) -> u16 {
        self.words.read_u16(at)
    }
    #[inline(always)]
    fn read_u32(&self, at: usize) -> u32 {
        self.words.read_u32(at)
    }
    #[inline(always)]
    fn read_u64(&self, at: usize) -> u64 {
        self.words.read_u64(at)
    }
    #[inline(always)]
    fn write_u16(&self, at: usize, value: u16) {
        self.words.write_u16(at, value);
    }
    #[inline(always)]
    fn write_u32(&self, at: usize, value: u32) {
        self.words.write_u32(at, value);
    }
    #[inline(always)]
    fn write_u64(&self, at: usize, value: u64) {
        self.words.write_u64(at, value);
    }
}

/// The records of a device's queues, of either format, in a file of our own that is kept over restarts: for front-ends that give
/// none. What is in them counts only where the queue's kept position does (see [`crate::position`]).
///
/// The file is sparse: a part takes room once its queue is started without a front-end's region.
#[derive(Debug)]
pub struct OwnRecords {
    file: File,
    region: Arc<Region>,
    queues: u16,
    entries: u16,
}

impl OwnRecords {
    /// Those of `queues` queues with rings of up to `entries`, in the file at `path`; made if it is not there, readable and
    /// writable for its owner alone.
    ///
    /// # Errors
    /// Those of opening and mapping; `InvalidData` for what is no regular file.
    pub fn open(path: &Path, queues: u16, entries: u16) -> io::Result<OwnRecords> {
        // O_NONBLOCK: a pipe in its place must not make this wait.
        let flags = OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(flags.bits() as i32)
            .open(path)?;
        let facts = file.metadata()?;
        if !facts.is_file() {
            let why = format!("{} is not a regular file: refused", path.display());
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        OwnRecords::over(file, facts.len(), queues, entries)
    }

    /// In memory that this process alone has.
    ///
    /// # Errors
    /// Those of making and mapping it.
    pub fn anonymous(queues: u16, entries: u16) -> io::Result<OwnRecords> {
        let file = File::from(rustix::fs::memfd_create("ringway-records", MemfdFlags::CLOEXEC)?);
        OwnRecords::over(file, 0, queues, entries)
    }

    fn over(file: File, len: u64, queues: u16, entries: u16) -> io::Result<OwnRecords> {
        let of = |format| own_bytes(format, entries) * u64::from(queues);
        let bytes = of(Format::Split) + of(Format::Packed);
        if len != bytes {
            // Of another geometry: what it says is of no use.
            file.set_len(0)?;
        }
        file.set_len(bytes)?;
        let map = Mapping::new(file.as_fd(), 0, bytes as usize, rustix::param::page_size())?;
        Ok(OwnRecords { file, region: Arc::new(Region { map }), queues, entries })
    }

    /// The records of a queue. None: it has no such queue.
    ///
    /// # Errors
    /// There is no room for them.
    pub fn part(&self, format: Format, index: u16) -> io::Result<Option<Part>> {
        if index >= self.queues {
            return Ok(None);
        }
        let before = match format {
            Format::Split => 0,
            Format::Packed => own_bytes(Format::Split, self.entries) * u64::from(self.queues),
        };
        let len = own_bytes(format, self.entries);
        let at = before + len * u64::from(index);
        // All of it, so that a full disk is an error here and not a SIGBUS at the first store.
        rustix::fs::fallocate(&self.file, FallocateFlags::empty(), at, len)?;
        let region = Arc::clone(&self.region);
        let (at, len) = (at as usize, len as usize);
        Ok(Some(Part { region, format, entries: self.entries, at, len, is_own: true }))
    }
}

/// Bytes of a queue's part of our own records: beside the record, which ring it is of.
fn own_bytes(format: Format, entries: u16) -> u64 {
    part_bytes(format, entries) + IDENTITY
}

/// What the device knows of a chain by its id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum State {
    /// The driver has it.
    #[default]
    Free,
    /// The device has it.
    Taken,
    /// It is done, and the driver does not see it yet.
    Completed,
}

/// Refuses a part of so many entries if they are too few for the ring, if there is no room for them, or if its record has
/// another number.
fn check_entries(region: &impl Words, format: Format, size: u16, entries: u16) -> Result<(), RecordFault> {
    let has_room = part_bytes(format, entries) <= region.size() as u64;
    let recorded = if region.read_u16(VERSION) == 0 { entries } else { region.read_u16(DESC_NUM) };
    if entries < size || !has_room || recorded != entries {
        return Err(RecordFault::Entries { entries: recorded, size });
    }
    Ok(())
}

/// The order in which chains were taken, by their counters, which run freely: those of one record are close to each other.
/// Returns the counter that comes next, too.
fn sort_by_counter<T>(chains: &mut [T], counter: impl Fn(&T) -> u64) -> u64 {
    let Some(base) = chains.first().map(&counter) else { return 0 };
    let since = |chain: &T| counter(chain).wrapping_sub(base) as i64;
    chains.sort_by_key(since);
    chains.last().map_or(0, counter).wrapping_add(1)
}

/// Offset of the version in the head of either format, in bytes.
const VERSION: usize = 8;
/// Offset of the number of entries.
const DESC_NUM: usize = 10;
/// The version that is written and known.
const VERSION_1: u16 = 1;
/// What the parts of a region are aligned to, in bytes: as other back-ends do it.
const PART_ALIGN: u64 = 64;
/// Words that tell a ring from another.
const IDENTITY_WORDS: usize = 4;
/// Bytes that they take, as parts are aligned.
const IDENTITY: u64 = PART_ALIGN;
/// Bytes of the widest word.
const WORD: u64 = 8;

#[cfg(test)]
#[cfg(not(loom))]
mod deaths;
#[cfg(test)]
#[cfg(not(loom))]
mod tests;
