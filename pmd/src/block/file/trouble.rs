//! How a disk does, for its operator: what went wrong, and what is under way. Written by workers, read by any thread.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ringway_ring::chain::Span;
use ringway_ring::guest::GuestMap;
use ringway_ring::tsc;

use super::super::SECTOR;
use super::super::backing::Operation;
use super::open::words_of;
use crate::vdpa::{Condition, Health};

/// See the module's head. Numbers that belong together may be read a moment apart.
#[derive(Debug)]
pub(super) struct Trouble {
    /// By the number of the error; 0: there were fewer bytes than there must be.
    counts: [AtomicU32; ERRORS],
    last: AtomicI32,
    /// What it was about, in bytes; [`NOWHERE`]: the whole disk.
    offset: AtomicU64,
    /// In seconds since 1970.
    at: AtomicU64,
    /// What the first flush failed with, after which none is true. 0: none did.
    flush: AtomicI32,
    /// Requests whose bytes were copied, since their memory did not lie as the file demands.
    copied: AtomicU64,
    /// The most bytes that there were before it became smaller; 0: it did not, or has as many again.
    larger: AtomicU64,
    /// The file is closed, but for what is under way.
    is_closed: AtomicBool,
    /// What the queues have under way. Locked by sessions and whoever asks.
    queues: Mutex<Vec<Known>>,
}

/// A queue, as it is known here: nobody who asks is the last to let go of a guest's memory, which may take its time.
#[derive(Debug)]
struct Known {
    queue: Weak<UnderWay>,
    map: Weak<GuestMap>,
    stamps: Arc<[Stamp]>,
}

/// What a queue has under way.
#[derive(Debug)]
pub(super) struct UnderWay {
    /// Whose they are: the guest's memory.
    map: Arc<GuestMap>,
    /// By slot.
    stamps: Arc<[Stamp]>,
}

#[derive(Debug, Default)]
struct Stamp {
    /// In cycles; 0: nothing is.
    since: AtomicU64,
    /// The sector, above two bits for what is done there.
    what: AtomicU64,
}

impl UnderWay {
    /// A request begins.
    #[inline]
    pub(super) fn begin(&self, slot: u16, operation: Operation) {
        let (offset, kind) = match operation {
            Operation::Read { offset } => (offset, 0),
            Operation::Write { offset, .. } => (offset, 1),
            Operation::Flush => (0, 2),
            Operation::Discard { offset, .. } | Operation::WriteZeroes { offset, .. } => (offset, 3),
        };
        if let Some(stamp) = self.stamps.get(usize::from(slot)) {
            stamp.what.store(((offset / SECTOR) << 2) | kind, Ordering::Relaxed);
            stamp.since.store(tsc::cycles().max(1), Ordering::Relaxed);
        }
    }

    /// Some of the guest's memory is not there. To look makes the map know, once: each place that lacks is a fault.
    #[cold]
    pub(super) fn lacks(&self, data: Span<'_>) -> bool {
        for piece in data.pieces() {
            // In every page, wherever in one it begins.
            let last = piece.slice.len().checked_sub(1);
            for at in (0..piece.slice.len()).step_by(PAGE).chain(last) {
                if self.map.is_poisoned() {
                    return true;
                }
                piece.slice.part(at, 1).read(&mut [0]);
            }
        }
        self.map.is_poisoned()
    }

    /// It ended.
    #[inline]
    pub(super) fn end(&self, slot: u16) {
        if let Some(stamp) = self.stamps.get(usize::from(slot)) {
            stamp.since.store(0, Ordering::Relaxed);
        }
    }
}

impl Known {
    fn is_there(&self) -> bool {
        self.queue.strong_count() > 0
    }
}

impl Trouble {
    pub(super) fn new() -> Trouble {
        Trouble {
            counts: [const { AtomicU32::new(0) }; ERRORS],
            last: AtomicI32::new(0),
            offset: AtomicU64::new(NOWHERE),
            at: AtomicU64::new(0),
            flush: AtomicI32::new(0),
            copied: AtomicU64::new(0),
            larger: AtomicU64::new(0),
            is_closed: AtomicBool::new(false),
            queues: Mutex::default(),
        }
    }

    /// A queue of so many slots, of the guest whose memory this is. None: another one's requests are under way still, which may
    /// be done after those of this one.
    pub(super) fn queue(&self, slots: u16, map: &Arc<GuestMap>) -> Option<Arc<UnderWay>> {
        let mut queues = self.queues();
        queues.retain(Known::is_there);
        let map_of_it = Arc::downgrade(map);
        let is_in_the_way = |queue: &Known| {
            let is_busy = queue.stamps.iter().any(|stamp| stamp.since.load(Ordering::Relaxed) != 0);
            is_busy && !Weak::ptr_eq(&queue.map, &map_of_it)
        };
        if queues.iter().any(is_in_the_way) {
            return None;
        }
        let stamps: Arc<[Stamp]> = (0..slots).map(|_| Stamp::default()).collect();
        let own = Arc::new(UnderWay { map: Arc::clone(map), stamps: Arc::clone(&stamps) });
        queues.push(Known { queue: Arc::downgrade(&own), map: map_of_it, stamps });
        Some(own)
    }

    /// The file is closed, but for its queues.
    pub(super) fn closed(&self) {
        self.is_closed.store(true, Ordering::Relaxed);
    }

    /// It had so many bytes, and has so many now.
    pub(super) fn sized(&self, before: u64, now: u64) {
        let most = self.larger.load(Ordering::Relaxed).max(before);
        self.larger.store(if now < most { most } else { 0 }, Ordering::Relaxed);
    }

    fn queues(&self) -> MutexGuard<'_, Vec<Known>> {
        self.queues.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The age of the oldest request, and what it is; how many there are.
    fn oldest(&self) -> Option<(Duration, u64, usize)> {
        let now = tsc::cycles();
        let (mut oldest, mut count) = (None, 0);
        for queue in self.queues().iter().filter(|queue| queue.is_there()) {
            for stamp in &*queue.stamps {
                let since = stamp.since.load(Ordering::Relaxed);
                if since != 0 {
                    count += 1;
                    let found = (now.saturating_sub(since), stamp.what.load(Ordering::Relaxed));
                    oldest = oldest.max(Some(found));
                }
            }
        }
        let (cycles, what) = oldest?;
        Some((Duration::from_secs_f64(cycles as f64 / tsc::hertz().max(1) as f64), what, count))
    }

    /// A request failed.
    #[cold]
    pub(super) fn failed(&self, error: i32, offset: u64) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
        if let Some(count) = usize::try_from(error).ok().and_then(|error| self.counts.get(error)) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.last.store(error, Ordering::Relaxed);
        self.offset.store(offset, Ordering::Relaxed);
        self.at.store(now.max(1), Ordering::Relaxed);
    }

    /// A flush failed, and what was written before may be lost though a later one would succeed.
    #[cold]
    pub(super) fn lost(&self, error: i32) {
        let _ = self.flush.compare_exchange(0, error, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// What a flush failed with before. None: none did.
    #[inline]
    pub(super) fn is_lost(&self) -> Option<i32> {
        Some(self.flush.load(Ordering::Relaxed)).filter(|error| *error != 0)
    }

    /// A flush failed before, in words.
    fn flush_failed(&self) -> Option<String> {
        let error = text(self.is_lost()?);
        Some(format!(
            "a flush failed ({error}): what was written before it may be lost, and every flush, and every write that has to last, fails \
             until the device is removed and added again"
        ))
    }

    /// A request is under way for long, in words.
    fn hangs(&self) -> Option<String> {
        self.oldest().filter(|(age, ..)| *age >= LONG)?;
        Some(format!("it does not answer: {}", self.under_way()?))
    }

    /// It has fewer bytes than it had, in words.
    fn shrank(&self) -> Option<String> {
        let bytes = Some(self.larger.load(Ordering::Relaxed)).filter(|bytes| *bytes > 0)?;
        Some(format!(
            "it became smaller than the {bytes} bytes it had: what a guest has beyond its end fails"
        ))
    }

    pub(super) fn copied(&self) {
        self.copied.fetch_add(1, Ordering::Relaxed);
    }
}

impl Health for Trouble {
    fn failures(&self) -> u64 {
        self.counts.iter().map(|count| u64::from(count.load(Ordering::Relaxed))).sum()
    }

    fn under_way(&self) -> Option<String> {
        let (age, what, count) = self.oldest()?;
        let place = what >> 2;
        let what = match what & 3 {
            0 => format!("a read at sector {place}"),
            1 => format!("a write at sector {place}"),
            2 => "a flush".to_owned(),
            _ => format!("a discard or write of zeroes at sector {place}"),
        };
        Some(format!("{count} requests under way, the oldest {what}, for {} s", age.as_secs()))
    }

    fn conditions(&self) -> Vec<Condition> {
        let of = |name, says: Option<String>, cure: &str| {
            says.map(|says| Condition { name, says, cure: cure.to_owned() })
        };
        [
            of(
                "not_answering",
                self.hangs(),
                "see what is wrong with what the disk is on; its requests end when that answers",
            ),
            of(
                "failing",
                self.flush_failed(),
                "see the log of the kernel about what the disk is on; then ringway dev del it, and add it again",
            ),
            of("failing", self.shrank(), "make the file as large again as it was"),
        ]
        .into_iter()
        .flatten()
        .collect()
    }

    fn requests(&self) -> (usize, Duration) {
        self.oldest().map_or((0, Duration::ZERO), |(age, _, count)| (count, age))
    }

    fn is_over(&self) -> bool {
        self.is_closed.load(Ordering::Relaxed) && !self.queues().iter().any(Known::is_there)
    }

    fn words(&self) -> Option<String> {
        let mut words = Vec::new();
        let at = self.at.load(Ordering::Relaxed);
        if at != 0 {
            let counts =
                self.counts.iter().zip(0..).map(|(count, error)| (count.load(Ordering::Relaxed), error));
            let counts: Vec<(u32, i32)> = counts.filter(|(count, _)| *count > 0).collect();
            let all: Vec<String> =
                counts.iter().map(|(count, error)| format!("{count} x {}", text(*error))).collect();
            let last = self.last.load(Ordering::Relaxed);
            // Where it is but one, it was said.
            let last_words = if counts.len() > 1 { format!(" ({})", text(last)) } else { String::new() };
            let place = match self.offset.load(Ordering::Relaxed) {
                NOWHERE => "a flush".to_owned(),
                offset => format!("sector {}", offset / SECTOR),
            };
            let age = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
            words.push(format!(
                "requests failed: {}; the last{last_words} at {place}, {} s ago",
                all.join(", "),
                age.saturating_sub(at)
            ));
            let mut cures: Vec<&str> = counts.iter().filter_map(|(_, error)| cure(*error)).collect();
            cures.dedup();
            words.extend(cures.into_iter().map(str::to_owned));
        }
        words.extend(self.flush_failed());
        words.extend(self.hangs());
        words.extend(self.shrank());
        match self.copied.load(Ordering::Relaxed) {
            0 => {}
            copied => words.push(format!("{copied} requests were copied for the file's alignment")),
        }
        Some(words.join("; ")).filter(|words| !words.is_empty())
    }
}

fn text(error: i32) -> String {
    match error {
        SHRANK => "the file ends before".to_owned(),
        error => words_of(&io::Error::from_raw_os_error(error)),
    }
}

/// What to do about it, where that is known.
fn cure(error: i32) -> Option<&'static str> {
    match error {
        libc::ENOSPC | libc::EDQUOT => Some(
            "its file system, or what the file may have of it, is full: free some, then have the guest write again; fallocate \
             reserves what a disk needs",
        ),
        libc::EIO | libc::EREMOTEIO | libc::ETIMEDOUT | libc::ENODATA => {
            Some("the log of the kernel has more about what it is on")
        }
        _ => None,
    }
}

/// No page of memory is smaller.
const PAGE: usize = 4096;
/// A request that is under way for so long is told.
const LONG: Duration = Duration::from_secs(5);
/// Numbers of errors are below.
const ERRORS: usize = 134;
/// Instead of a place, for what is about no place.
pub(super) const NOWHERE: u64 = u64::MAX;
/// Instead of an error's number: there were fewer bytes.
pub(super) const SHRANK: i32 = 0;

#[cfg(test)]
mod tests {
    use ringway_ring::memory::{HostMemory, PageKind};

    use super::*;

    #[test]
    fn file_that_shrank_is_named_with_the_most_it_had_until_it_has_it_again() {
        let trouble = Trouble::new();
        let steps =
            [(0, 900, false), (900, 500, true), (500, 300, true), (300, 800, true), (800, 900, false)];
        for (before, now, is_named) in steps {
            trouble.sized(before, now);
            let words = trouble.words().unwrap_or_default();
            assert_eq!(words.contains("smaller than the 900 bytes"), is_named, "{now}: {words}");
        }
    }

    #[test]
    fn errors_are_told_once_each_without_numbers_and_with_what_to_do() {
        let trouble = Trouble::new();
        trouble.failed(libc::ENOSPC, 4096);
        trouble.failed(libc::ENOSPC, 8192);
        let words = trouble.words().unwrap();
        assert!(
            words.starts_with("requests failed: 2 x No space left on device; the last at sector 16, "),
            "{words}"
        );
        assert!(words.contains("free some") && !words.contains("os error"), "{words}");
        trouble.failed(libc::EIO, NOWHERE);
        let words = trouble.words().unwrap();
        assert!(words.contains("1 x Input/output error, 2 x No space left on device; the last (Input/output error) at a flush"), "{words}");
    }

    #[test]
    fn who_asks_how_a_disk_does_never_has_a_guests_memory() {
        let memory = HostMemory::allocate_on(PageKind::Base, "test", 1 << 20).unwrap();
        let map = Arc::new(memory.guest_map(0).unwrap());
        let trouble = Trouble::new();
        let queue = trouble.queue(4, &map).unwrap();
        queue.begin(0, Operation::Flush);
        let other = Arc::new(memory.guest_map(0).unwrap());
        assert!(trouble.queue(4, &other).is_none(), "another guest's is under way");
        assert!(trouble.queue(4, &map).is_some());
        assert!(
            trouble
                .under_way()
                .is_some_and(|what| what.starts_with("1 requests under way, the oldest a flush"))
        );
        std::thread::sleep(Duration::from_millis(2));
        let (count, age) = trouble.requests();
        assert!(count == 1 && age >= Duration::from_millis(2), "{count} {age:?}");
        queue.end(0);
        assert_eq!(trouble.requests(), (0, Duration::ZERO));
        let all = trouble.queues();
        drop(queue);
        assert_eq!(Arc::strong_count(&map), 1);
        assert!(!all[0].is_there());
    }
}
