//! Memory as a disk: of this process, or a file on tmpfs or hugetlbfs that outlives it.
//!
//! Small requests are copied as they are handed over; larger ones in turns, so that none holds its core.

use std::collections::VecDeque;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};

use ringway_ring::chain::Span;
use ringway_ring::guest::{GuestMap, HostSlice, LastHit, Region, RegionSpec};
use ringway_ring::memory::HostMemory;

use super::backing::{BackingQueue, Ended, Operation, Outcome, Submitted, Taken, Wake};
use super::disk::QueueSeat;
use super::file::lock;
use crate::counters::DropReason;
use crate::vdpa::DriverError;

/// Where the bytes of a disk in memory are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Place {
    /// In memory of this process, which ends with it.
    Own,
    /// In this file, on tmpfs or hugetlbfs.
    File(PathBuf),
}

/// Memory that the queues of a disk work on. It only grows.
#[derive(Debug)]
pub struct DiskMemory {
    place: Place,
    /// At their offset in the disk. Locked for a moment by who has made it larger; a worker tries, and goes on with what it has.
    newest: Mutex<Arc<GuestMap>>,
    /// The file, once it was opened. Locked by who makes the disk larger, which takes long.
    growing: Mutex<Option<OwnedFd>>,
    /// Its bytes.
    bytes: AtomicU64,
}

impl DiskMemory {
    /// None yet: it is taken when the first queue is made.
    ///
    /// # Errors
    /// As [`GuestMap::new`].
    pub fn new(place: Place) -> Result<DiskMemory, DriverError> {
        let none = GuestMap::new(Vec::new())
            .map_err(|error| resource("the disk's memory", io::Error::other(error)))?;
        Ok(DiskMemory {
            place,
            newest: Mutex::new(Arc::new(none)),
            growing: Mutex::new(None),
            bytes: AtomicU64::new(0),
        })
    }

    /// Where it is.
    pub fn place(&self) -> &Place {
        &self.place
    }

    /// Has at least so many bytes; takes time in proportion to what is new.
    ///
    /// # Errors
    /// There is not so much memory, or the file cannot be used.
    pub fn reach(&self, bytes: u64) -> Result<Arc<GuestMap>, DriverError> {
        let mut file = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
        let newest = Arc::clone(&self.newest.lock().unwrap_or_else(PoisonError::into_inner));
        let have = self.bytes.load(Ordering::Relaxed);
        if have >= bytes {
            return Ok(newest);
        }
        let more = match &self.place {
            Place::Own => own(have, bytes - have)?,
            Place::File(path) => {
                let file = match &mut *file {
                    Some(file) => file,
                    none => none.insert(open_file(path)?),
                };
                of_file(file, path, have, bytes - have)?
            }
        };
        let map =
            newest.with(more).map_err(|error| resource("the disk's memory", io::Error::other(error)))?;
        let map = Arc::new(map);
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(&map);
        // Release: pairs with the Acquire in `look`; who sees the bytes finds the map.
        self.bytes.store(bytes, Ordering::Release);
        Ok(map)
    }

    /// The newest map, if it is another than one of so many bytes and nobody is changing it.
    fn look(&self, known: u64) -> Option<(Arc<GuestMap>, u64)> {
        // Acquire: pairs with the Release in `reach`.
        let bytes = self.bytes.load(Ordering::Acquire);
        if bytes == known {
            return None;
        }
        match self.newest.try_lock() {
            Ok(newest) => Some((Arc::clone(&newest), bytes)),
            Err(TryLockError::Poisoned(newest)) => Some((Arc::clone(&newest.into_inner()), bytes)),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

fn resource(what: impl Into<String>, source: io::Error) -> DriverError {
    DriverError::Resource { what: what.into(), source }
}

fn own(at: u64, bytes: u64) -> Result<Arc<Region>, DriverError> {
    let what = || format!("{} MiB of memory for the disk", bytes >> 20);
    if let Some(there_is) = available().filter(|there_is| *there_is < bytes) {
        let why = format!("the host has {} MiB that nobody uses", there_is >> 20);
        return Err(resource(what(), io::Error::new(io::ErrorKind::OutOfMemory, why)));
    }
    let memory = HostMemory::allocate("ringway-disk", bytes).map_err(|error| resource(what(), error))?;
    let map = memory.guest_map(at).map_err(|error| resource(what(), io::Error::other(error)))?;
    map.regions().first().cloned().ok_or_else(|| resource(what(), io::ErrorKind::OutOfMemory.into()))
}

/// The file, which is of memory, and which nobody else has as a disk.
fn open_file(path: &Path) -> Result<OwnedFd, DriverError> {
    let what = |why: io::Error| resource(path.display().to_string(), why);
    let folder = path.parent().unwrap_or(path);
    let kind = rustix::fs::statfs(folder).map_err(|error| what(error.into()))?.f_type as u64;
    if ![TMPFS, HUGETLBFS].contains(&kind) {
        let why = format!("path {}: is not on tmpfs or hugetlbfs; /dev/shm mostly is", path.display());
        return Err(DriverError::Misconfigured(why));
    }
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(what)?;
    if !file.metadata().map_err(what)?.is_file() {
        return Err(DriverError::Misconfigured(format!("path {}: is no file", path.display())));
    }
    lock::take(file.as_fd(), true).map_err(what)?;
    if lock::is_in_use(file.as_fd(), true).map_err(what)? {
        return Err(DriverError::Conflict {
            what: format!("{} is in use as a disk", path.display()),
            held_by: None,
            hint: "give this device a file of its own: two that write to one file destroy what is on it"
                .into(),
        });
    }
    Ok(file.into())
}

fn of_file(file: &OwnedFd, path: &Path, at: u64, bytes: u64) -> Result<Arc<Region>, DriverError> {
    let what = |why: io::Error| resource(path.display().to_string(), why);
    let own = || -> io::Result<OwnedFd> {
        let file = file.try_clone()?;
        if rustix::fs::fstat(&file)?.st_size.unsigned_abs() < at + bytes {
            rustix::fs::ftruncate(&file, at + bytes)?;
        }
        // All of it is there now: a file system that is full is an error here, and no fault later.
        rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, at + bytes)?;
        Ok(file)
    };
    let spec =
        RegionSpec { gpa: at, size: bytes, user_addr: at, file_offset: at, file: own().map_err(what)? };
    Region::map(spec).map_err(|error| what(io::Error::other(error)))
}

/// Bytes of memory that the host can give without taking any from others.
fn available() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? << 10)
}

/// A queue's part.
#[derive(Debug)]
pub struct MemoryQueue {
    memory: Arc<DiskMemory>,
    map: Arc<GuestMap>,
    /// Bytes of `map`.
    known: u64,
    hint: LastHit,
    /// False: no byte is moved.
    moves_data: bool,
    /// What is under way, the oldest first; there is room for every slot.
    jobs: VecDeque<Job>,
}

/// A request that is done in turns.
#[derive(Debug)]
struct Job {
    slot: u16,
    operation: Operation,
    /// Bytes of it that are done.
    done: u64,
}

impl MemoryQueue {
    /// A queue's part of a disk of so many bytes.
    ///
    /// # Errors
    /// There is not so much memory.
    pub fn new(
        memory: &Arc<DiskMemory>,
        bytes: u64,
        moves_data: bool,
        seat: &QueueSeat<'_>,
    ) -> Result<MemoryQueue, DriverError> {
        let map = memory.reach(bytes)?;
        Ok(MemoryQueue {
            memory: Arc::clone(memory),
            map,
            known: memory.bytes.load(Ordering::Acquire),
            hint: LastHit::default(),
            moves_data,
            jobs: VecDeque::with_capacity(seat.slots.into()),
        })
    }

    /// Does `len` bytes of an operation, those from `at` on, whose data is `data`. False: they are not there.
    #[inline]
    fn work(&mut self, operation: Operation, at: u64, len: u64, data: Span<'_>) -> bool {
        match operation {
            Operation::Read { offset } => {
                self.copy(offset + at, data.part(at, len), |guest, disk| guest.copy_from(disk))
            }
            Operation::Write { offset, .. } => {
                self.copy(offset + at, data.part(at, len), |guest, disk| disk.copy_from(guest))
            }
            Operation::WriteZeroes { offset, .. } | Operation::Discard { offset, .. } => {
                self.zero(offset + at, len)
            }
            Operation::Flush => true,
        }
    }

    #[inline]
    fn copy(
        &mut self,
        mut offset: u64,
        data: Span<'_>,
        copy: impl Fn(HostSlice<'_>, HostSlice<'_>) -> usize,
    ) -> bool {
        for piece in data.pieces() {
            let mut guest = piece.slice;
            while guest.len() > 0 {
                let Ok(disk) = self.map.lookup(&mut self.hint, offset, guest.len() as u32) else {
                    return false;
                };
                let copied = copy(guest, disk);
                if copied == 0 {
                    return false;
                }
                guest = guest.part(copied, usize::MAX);
                offset += copied as u64;
            }
        }
        true
    }

    fn zero(&mut self, mut offset: u64, mut len: u64) -> bool {
        while len > 0 {
            let step = len.min(ZEROES.len() as u64);
            let Ok(disk) = self.map.lookup(&mut self.hint, offset, step as u32) else { return false };
            let written = disk.write(ZEROES.get(..step as usize).unwrap_or_default()) as u64;
            if written == 0 {
                return false;
            }
            offset += written;
            len -= written;
        }
        true
    }

    fn outcome(&self, is_there: bool) -> Outcome {
        if is_there && !self.map.is_poisoned() {
            Outcome::Done
        } else {
            Outcome::Failed(DropReason::BackingFailed)
        }
    }

    /// Takes the newest memory over: the disk may have grown.
    #[inline]
    fn look(&mut self) {
        if let Some((map, known)) = self.memory.look(self.known) {
            (self.map, self.known, self.hint) = (map, known, LastHit::default());
        }
    }
}

fn length(operation: Operation, data: Span<'_>) -> u64 {
    match operation {
        Operation::Read { .. } | Operation::Write { .. } => data.len(),
        Operation::Flush => 0,
        Operation::Discard { len, .. } | Operation::WriteZeroes { len, .. } => len,
    }
}

/// Where on the disk it ends.
fn end(operation: Operation, len: u64) -> u64 {
    match operation {
        Operation::Read { offset }
        | Operation::Write { offset, .. }
        | Operation::Discard { offset, .. }
        | Operation::WriteZeroes { offset, .. } => offset.saturating_add(len),
        Operation::Flush => 0,
    }
}

impl BackingQueue for MemoryQueue {
    #[inline]
    fn submit(&mut self, slot: u16, operation: Operation, data: Span<'_>) -> Submitted {
        if !self.moves_data {
            return Submitted::Ended(Outcome::Done);
        }
        self.look();
        let len = length(operation, data);
        if end(operation, len) > self.known {
            // It has grown, and somebody has the newest map in hand just now. Or it never was so large, which is told.
            let is_larger = self.memory.bytes.load(Ordering::Relaxed) > self.known;
            return if is_larger { Submitted::Full } else { Submitted::Ended(self.outcome(false)) };
        }
        if len <= AT_ONCE {
            let is_there = self.work(operation, 0, len, data);
            return Submitted::Ended(self.outcome(is_there));
        }
        if self.jobs.len() == self.jobs.capacity() {
            return Submitted::Full;
        }
        self.jobs.push_back(Job { slot, operation, done: 0 });
        Submitted::Taken
    }

    fn turn(&mut self, taken: &dyn Taken, bytes: u64, ended: &mut Ended) -> bool {
        let mut left = bytes.max(AT_ONCE);
        let got_on = !self.jobs.is_empty();
        while left > 0
            && !ended.is_full()
            && let Some(job) = self.jobs.front_mut()
        {
            let (slot, operation, done) = (job.slot, job.operation, job.done);
            let data = taken.data(slot);
            let len = length(operation, data);
            let step = left.min(len - done.min(len));
            left -= step;
            job.done += step;
            let is_done = job.done >= len;
            let is_there = self.work(operation, done, step, data);
            if is_done || !is_there {
                let outcome = self.outcome(is_there);
                ended.push(slot, outcome);
                self.jobs.pop_front();
            }
        }
        got_on
    }

    fn arm(&mut self) -> Wake {
        if self.jobs.is_empty() { Wake::Armed } else { Wake::HasWork }
    }
}

/// Bytes of a request that are moved as it is handed over.
const AT_ONCE: u64 = 64 << 10;
/// Kinds of file systems (`statfs(2)`).
const TMPFS: u64 = 0x0102_1994;
const HUGETLBFS: u64 = 0x9584_58f6;

static ZEROES: [u8; 4096] = [0; 4096];
