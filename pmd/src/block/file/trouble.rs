//! What went wrong with a disk, for its operator: written by workers, read by any thread.

use std::io;
use std::sync::atomic::{AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use super::super::SECTOR;

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
        }
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

    pub(super) fn copied(&self) {
        self.copied.fetch_add(1, Ordering::Relaxed);
    }

    /// All of it in a few words, if there is any.
    pub(super) fn words(&self) -> Option<String> {
        let mut words = Vec::new();
        let at = self.at.load(Ordering::Relaxed);
        if at != 0 {
            let counts =
                self.counts.iter().zip(0..).map(|(count, error)| (count.load(Ordering::Relaxed), error));
            let counts: Vec<String> = counts
                .filter(|(count, _)| *count > 0)
                .map(|(count, error)| format!("{count} x {}", text(error)))
                .collect();
            let place = match self.offset.load(Ordering::Relaxed) {
                NOWHERE => "a flush".to_owned(),
                offset => format!("sector {}", offset / SECTOR),
            };
            let age = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_secs());
            words.push(format!(
                "requests failed: {}; the last ({}) at {place}, {} s ago",
                counts.join(", "),
                text(self.last.load(Ordering::Relaxed)),
                age.saturating_sub(at)
            ));
        }
        if let Some(error) = self.is_lost() {
            words.push(format!(
                "a flush failed ({}): what was written before it may be lost, and every flush fails until the device is connected \
                 anew",
                text(error)
            ));
        }
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
        error => io::Error::from_raw_os_error(error).to_string(),
    }
}

/// Numbers of errors are below.
const ERRORS: usize = 134;
/// Instead of a place, for what is about no place.
pub(super) const NOWHERE: u64 = u64::MAX;
/// Instead of an error's number: there were fewer bytes.
pub(super) const SHRANK: i32 = 0;
