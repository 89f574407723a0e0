//! What there is to know of a file before it is a disk: whether it can be one, how large it is, what it can do. All of it may wait.

use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, SeekFrom, StatxFlags};
use rustix::io::{Errno, ReadWriteFlags};

use super::lock;
use super::trouble::Trouble;
use crate::uring::Alignment;
use crate::vdpa::{DriverError, Health};

/// Whose memory holds what is on the disk meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Nobody's: the file's own medium.
    Direct,
    /// The host's, too.
    Buffered,
}

impl Cache {
    /// As operators write it.
    pub fn name(self) -> &'static str {
        match self {
            Cache::Direct => "direct",
            Cache::Buffered => "buffered",
        }
    }
}

/// A file that is a disk of this process.
#[derive(Debug, Clone)]
pub struct Ours {
    /// Which file.
    pub identity: Identity,
    /// Of which device.
    pub device: String,
    /// That device was removed, or begins anew: only what is under way there has the file.
    pub is_gone: bool,
}

impl Ours {
    fn told(&self) -> String {
        let gone = if self.is_gone { ", which is gone but for requests under way" } else { "" };
        format!("device {}{gone}", self.device)
    }

    fn cure(&self) -> String {
        match self.is_gone {
            true => "try again once the host has answered them: ringway dev show has how long they wait"
                .to_owned(),
            false => format!("ringway dev del {}, {ONE_EACH}", self.device),
        }
    }
}

/// What an operator wants of a file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wish {
    /// Which.
    pub path: PathBuf,
    /// None: direct where it can be.
    pub cache: Option<Cache>,
    /// Nothing is written.
    pub is_read_only: bool,
}

/// Which file it is, whatever paths lead to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity(u64, u64);

impl Identity {
    fn of(facts: &rustix::fs::Stat) -> Identity {
        match FileType::from_raw_mode(facts.st_mode) {
            FileType::BlockDevice => Identity(u64::MAX, facts.st_rdev),
            _ => Identity(facts.st_dev, facts.st_ino),
        }
    }
}

/// A file that is open as a disk. Nobody else has it as one.
#[derive(Debug)]
pub struct OpenFile {
    file: OwnedFd,
    /// Which it is.
    pub identity: Identity,
    /// What was wanted.
    pub wish: Wish,
    /// How it is.
    pub cache: Cache,
    /// It is a block device.
    pub is_block: bool,
    /// Bytes of the smallest transfer.
    pub blk_size: u32,
    /// Bytes of a physical block.
    pub physical: u32,
    /// It gives space back.
    pub discards: bool,
    /// It zeroes a range without being given the zeroes.
    pub(super) zeroes: bool,
    /// What was written past the host's memory lasts: its disk has no cache of its own.
    pub(super) is_write_through: bool,
    pub(super) alignment: Alignment,
    /// Its reads and writes wait in the kernel, as of a network file system: each is the work of a thread there.
    pub(super) needs_helpers: bool,
    /// Bytes, as they were last looked at.
    bytes: AtomicU64,
    pub(super) trouble: Arc<Trouble>,
}

impl OpenFile {
    /// Opens it, and waits so long for one who lets go of it. `ours` are the disks of this process, with their names.
    ///
    /// # Errors
    /// It cannot be a disk, or somebody has it.
    pub fn open(wish: Wish, patience: Duration, ours: &[Ours]) -> Result<Arc<OpenFile>, DriverError> {
        let path = wish.path.clone();
        let failed = |error: Errno| explained(&path, &wish, error, None);
        let writes = !wish.is_read_only;
        // Without waiting for a pipe's other end. What it is decides.
        let file = open(&path, flags(writes, false)).map_err(failed)?;
        let facts = rustix::fs::fstat(&file).map_err(failed)?;
        let is_block = match FileType::from_raw_mode(facts.st_mode) {
            FileType::RegularFile => false,
            FileType::BlockDevice => true,
            other => {
                return Err(something_else(&path, noun(other)));
            }
        };
        let identity = Identity::of(&facts);
        let of_ours = || ours.iter().find(|other| other.identity == identity);
        let failed = |error: Errno| explained(&path, &wish, error, of_ours());
        // Nobody writes to a disk that is mounted.
        let alone = if is_block && writes { OFlags::EXCL } else { OFlags::empty() };
        let direct = match wish.cache {
            Some(Cache::Buffered) => None,
            _ => match reopen(&file, flags(writes, true) | alone) {
                Err(error @ Errno::BUSY) => return Err(failed(error)),
                opened => opened.ok(),
            },
        };
        let (cache, file) = match (direct, wish.cache) {
            (Some(direct), _) => (Cache::Direct, direct),
            (None, Some(Cache::Direct)) => {
                let why = format!(
                    "cache direct: {} is on a file system that has no such reads and writes; cache buffered does without",
                    path.display()
                );
                return Err(DriverError::misconfigured(why));
            }
            (None, _) => (Cache::Buffered, reopen(&file, flags(writes, false) | alone).map_err(failed)?),
        };
        locked(&file, &wish, patience, of_ours)?;
        let (alignment, blk_size) = aligned(&file, cache, is_block);
        let physical = if is_block {
            rustix::fs::ioctl_blkpbszget(&file).unwrap_or(blk_size)
        } else {
            u32::try_from(facts.st_blksize).unwrap_or(PAGE).clamp(512, PAGE)
        };
        let opened = OpenFile {
            cache,
            is_block,
            blk_size,
            physical: physical.max(blk_size),
            discards: writes && gives_back(&file, is_block, facts.st_rdev),
            // For a block device the kernel does whatever its driver does not.
            zeroes: writes && (is_block || allocates(&file, FallocateFlags::ZERO_RANGE)),
            is_write_through: is_block && cache == Cache::Direct && is_write_through(facts.st_rdev),
            identity,
            alignment,
            needs_helpers: waits(&file),
            bytes: AtomicU64::new(0),
            trouble: Arc::new(Trouble::new()),
            wish,
            file,
        };
        let bytes = opened.look().map_err(|error| DriverError::Resource {
            what: format!("{}", opened.wish.path.display()),
            source: error,
        })?;
        if bytes < u64::from(opened.blk_size) && is_block {
            return Err(DriverError::Unready {
                what: format!("path {}: the block device has no size: nothing is behind it", path.display()),
                hint: "put a medium in, or set it up (losetup, lvchange -ay)".to_owned(),
                kind: io::ErrorKind::NotFound,
            });
        }
        if bytes < u64::from(opened.blk_size) {
            let why = format!(
                "path {}: it has {bytes} bytes, less than a block of {}; truncate -s SIZE makes it larger",
                path.display(),
                opened.blk_size
            );
            return Err(DriverError::misconfigured(why));
        }
        Ok(Arc::new(opened))
    }

    /// Its bytes, as they were last looked at.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Looks how large it is now.
    ///
    /// # Errors
    /// It does not say.
    pub fn look(&self) -> io::Result<u64> {
        // A block device has its size at its end.
        let bytes = rustix::fs::seek(&self.file, SeekFrom::End(0))?;
        let before = self.bytes.swap(bytes, Ordering::Relaxed);
        self.trouble.sized(before, bytes);
        Ok(bytes)
    }

    /// The same file, open once more, with its own errors and the same locks.
    ///
    /// # Errors
    /// It cannot be opened any more.
    pub(super) fn again(&self) -> io::Result<OwnedFd> {
        let writes = !self.wish.is_read_only;
        let file = reopen(&self.file, flags(writes, self.cache == Cache::Direct))?;
        lock::take(file.as_fd(), writes)?;
        Ok(file)
    }

    /// What it cannot do, for its operator.
    pub fn lacks(&self) -> Option<String> {
        let waits = self.needs_helpers.then_some(
            "it has no reads and writes that do not wait: threads of the kernel do them, a few at a time",
        );
        let zeroes = (!self.zeroes && !self.wish.is_read_only)
            .then_some("it zeroes no ranges by itself: zeroes are written as data");
        let discards = (!self.discards && !self.wish.is_read_only).then_some("it gives no space back");
        let all: Vec<&str> = waits.into_iter().chain(zeroes).chain(discards).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }

    /// How it does.
    pub fn health(&self) -> Arc<dyn Health> {
        Arc::clone(&self.trouble) as Arc<dyn Health>
    }
}

impl Drop for OpenFile {
    fn drop(&mut self) {
        self.trouble.closed();
    }
}

fn flags(writes: bool, is_direct: bool) -> OFlags {
    let access = if writes { OFlags::RDWR } else { OFlags::RDONLY };
    let direct = if is_direct { OFlags::DIRECT } else { OFlags::empty() };
    access | direct | OFlags::CLOEXEC | OFlags::LARGEFILE
}

fn open(path: &Path, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(path, flags | OFlags::NONBLOCK | OFlags::NOCTTY, Mode::empty())
}

/// The same file, whatever its path leads to by now.
fn reopen(file: &OwnedFd, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    rustix::fs::open(format!("/proc/self/fd/{}", file.as_raw_fd()), flags, Mode::empty())
}

/// Locks it, or says who has it.
fn locked<'a>(
    file: &OwnedFd,
    wish: &Wish,
    patience: Duration,
    of_ours: impl Fn() -> Option<&'a Ours>,
) -> Result<(), DriverError> {
    let (path, writes, until) = (wish.path.display(), !wish.is_read_only, Instant::now() + patience);
    let failed = |source| DriverError::Resource { what: format!("{path}: it cannot be locked"), source };
    lock::take(file.as_fd(), writes).map_err(failed)?;
    // What a process that is gone had under way keeps its locks until it is done.
    while lock::is_in_use(file.as_fd(), writes).map_err(failed)? {
        if Instant::now() >= until {
            return Err(DriverError::Conflict {
                what: format!("{path} is in use as a disk"),
                held_by: of_ours().map(Ours::told).or_else(|| holder(file)),
                hint: of_ours().map_or_else(|| format!("end its use there, {ONE_EACH}"), Ours::cure),
            });
        }
        std::thread::sleep(STEP);
    }
    Ok(())
}

/// A process that has locks on the file, as `/proc` tells, as far as it can be seen in a moment.
fn holder(file: &OwnedFd) -> Option<String> {
    let until = Instant::now() + LOOK_FOR;
    let own = rustix::fs::fstat(file).ok()?;
    let numbered = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    let mut processes: Vec<u32> =
        fs::read_dir("/proc").ok()?.flatten().filter_map(|entry| numbered(&entry.path())).collect();
    // The youngest first: disks are seldom held by what came with the system.
    processes.sort_unstable_by(|a, b| b.cmp(a));
    for pid in processes {
        let Ok(files) = fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for entry in files.flatten() {
            if Instant::now() >= until {
                return None;
            }
            let number = entry.file_name();
            let is_own = pid == std::process::id() && number.to_str() == Some(&file.as_raw_fd().to_string());
            let same = |facts: rustix::fs::Stat| (facts.st_dev, facts.st_ino) == (own.st_dev, own.st_ino);
            if is_own || !rustix::fs::stat(entry.path()).is_ok_and(same) {
                continue;
            }
            let facts = fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", number.display()));
            if facts.is_ok_and(|facts| facts.lines().any(|line| line.starts_with("lock:"))) {
                let comm = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                return Some(format!("{} (pid {pid})", comm.trim()));
            }
        }
    }
    None
}

/// How memory must lie for it, and the smallest transfer.
fn aligned(file: &OwnedFd, cache: Cache, is_block: bool) -> (Alignment, u32) {
    let logical = if is_block { rustix::fs::ioctl_blksszget(file).unwrap_or(SECTOR) } else { SECTOR };
    if cache == Cache::Buffered {
        return (Alignment::NONE, logical.clamp(SECTOR, PAGE));
    }
    let said = rustix::fs::statx(file, "", AtFlags::EMPTY_PATH, StatxFlags::DIOALIGN).ok();
    let said = said.filter(|facts| facts.stx_mask & StatxFlags::DIOALIGN.bits() != 0);
    let (address, offset) = match said {
        Some(facts) if facts.stx_dio_offset_align > 0 => {
            (facts.stx_dio_mem_align, facts.stx_dio_offset_align)
        }
        // It does not say: what every file system takes.
        _ => (logical, logical),
    };
    let power = |bytes: u32| bytes.max(1).checked_next_power_of_two().unwrap_or(PAGE);
    let blk_size = power(offset).max(logical).clamp(SECTOR, PAGE);
    (Alignment { address: power(address), len: power(offset).min(blk_size) }, blk_size)
}

/// It has no reads that do not wait.
fn waits(file: &OwnedFd) -> bool {
    let mut byte = [0];
    let mut into = [io::IoSliceMut::new(&mut byte)];
    rustix::io::preadv2(file, &mut into, 0, ReadWriteFlags::NOWAIT) == Err(Errno::OPNOTSUPP)
}

/// It gives space back.
fn gives_back(file: &OwnedFd, is_block: bool, device: u64) -> bool {
    if is_block {
        has_limit(device, "discard_max_bytes")
    } else {
        allocates(file, FallocateFlags::PUNCH_HOLE)
    }
}

/// The block device has a limit for such requests, and so takes them.
fn has_limit(device: u64, name: &str) -> bool {
    queue_word(device, name).and_then(|word| word.parse::<u64>().ok()).is_some_and(|most| most > 0)
}

/// The kernel says so of the device.
fn is_write_through(device: u64) -> bool {
    queue_word(device, "write_cache").is_some_and(|word| word == "write through")
}

/// What the kernel says of a block device's queue.
fn queue_word(device: u64, name: &str) -> Option<String> {
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let read = |place: &str| fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/{place}{name}")).ok();
    // A partition has its disk's.
    Some(read("queue/").or_else(|| read("../queue/"))?.trim().to_owned())
}

/// The file system does such a thing. Asked behind the file's end, where nothing is lost.
fn allocates(file: &OwnedFd, what: FallocateFlags) -> bool {
    let Ok(facts) = rustix::fs::fstat(file) else { return false };
    let end = u64::try_from(facts.st_size).unwrap_or(0).next_multiple_of(PAGE.into());
    rustix::fs::fallocate(file, what | FallocateFlags::KEEP_SIZE, end, PAGE.into()).is_ok()
}

/// Why it cannot be opened, and what to do.
fn explained(path: &Path, wish: &Wish, error: Errno, holder: Option<&Ours>) -> DriverError {
    let at = path.display();
    match error {
        Errno::NOENT => {
            let cure = match path.starts_with("/dev") {
                true => "lvchange -ay or losetup may bring the device, or it has another name".to_owned(),
                false => format!("truncate -s SIZE {at} makes one"),
            };
            DriverError::NotFound(format!("path {at}: no such file; {cure}"))
        }
        Errno::ISDIR => something_else(path, "a directory"),
        Errno::NXIO => something_else(path, "a socket, or a device without a driver"),
        Errno::LOOP => something_else(path, "a symbolic link that leads to itself"),
        Errno::NAMETOOLONG => DriverError::misconfigured(format!(
            "path {at}: longer than the file system's paths and names are"
        )),
        Errno::NOMEDIUM => DriverError::Unready {
            what: format!("path {at}: there is no medium in it"),
            hint: "put one in".to_owned(),
            kind: io::ErrorKind::NotFound,
        },
        Errno::ACCESS | Errno::PERM | Errno::ROFS if !wish.is_read_only => DriverError::Resource {
            what: format!("path {at}: it cannot be written by ringwayd (ro on does without)"),
            source: error.into(),
        },
        Errno::TXTBSY | Errno::BUSY => DriverError::Conflict {
            what: format!("path {at}: {}", words_of(&error.into())),
            held_by: holder.map(Ours::told),
            hint: holder.map_or_else(
                || "end its use: a mounted disk, a swap, a program that runs".to_owned(),
                Ours::cure,
            ),
        },
        error => DriverError::Resource { what: format!("path {at}"), source: error.into() },
    }
}

/// Why two devices have two files.
const ONE_EACH: &str =
    "or give this device a file of its own: two that write to one file destroy what is on it";

fn something_else(path: &Path, what: &str) -> DriverError {
    DriverError::Conflict {
        what: format!("path {}: it is {what}, no file and no block device", path.display()),
        held_by: None,
        hint: "give the path of a file or a block device".to_owned(),
    }
}

/// What the system says, without its number.
pub(super) fn words_of(error: &io::Error) -> String {
    let text = error.to_string();
    text.split_once(" (os error").map_or(text.clone(), |(words, _)| words.to_owned())
}

fn noun(kind: FileType) -> &'static str {
    match kind {
        FileType::Directory => "a directory",
        FileType::CharacterDevice => "a character device",
        FileType::Fifo => "a pipe",
        FileType::Socket => "a socket",
        _ => "something else",
    }
}

const SECTOR: u32 = 512;
/// The largest block that a disk may have.
const PAGE: u32 = 4096;
/// Between two looks at a lock.
const STEP: Duration = Duration::from_millis(5);
/// How long a look for a lock's holder may take.
const LOOK_FOR: Duration = Duration::from_millis(100);
