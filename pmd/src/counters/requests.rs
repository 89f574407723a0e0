//! What a disk's queue did, by kind of request.

use std::sync::atomic::{AtomicU64, Ordering};

use ringway_engine::{Histogram, Times};

use super::add;

/// What a request was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum RequestKind {
    /// To be given data.
    Read,
    /// To write data.
    Write,
    /// To have what was written last.
    Flush,
    /// To give space back.
    Discard,
    /// To write zeroes.
    WriteZeroes,
}

impl RequestKind {
    /// Every kind, in the order of its number.
    pub const ALL: [RequestKind; 5] = [
        RequestKind::Read,
        RequestKind::Write,
        RequestKind::Flush,
        RequestKind::Discard,
        RequestKind::WriteZeroes,
    ];

    /// The name that operators see.
    pub fn name(self) -> &'static str {
        match self {
            RequestKind::Read => "read",
            RequestKind::Write => "write",
            RequestKind::Flush => "flush",
            RequestKind::Discard => "discard",
            RequestKind::WriteZeroes => "write_zeroes",
        }
    }
}

/// Requests of a queue, those taken and those that succeeded: written by the thread that owns its pump, read by any.
#[derive(Debug, Default)]
pub struct RequestCounters {
    /// Chains taken from the ring, whether they were given back yet or not.
    taken: AtomicU64,
    by_kind: [OfKind; RequestKind::ALL.len()],
}

#[derive(Debug, Default)]
struct OfKind {
    bytes: AtomicU64,
    /// From when the worker first saw the request to its used entry.
    took: Histogram,
}

impl RequestCounters {
    /// Counts chains that were taken from the ring: once a poll, before any of them is counted as given back.
    #[inline]
    pub fn add_taken(&self, chains: u64) {
        add(&self.taken, chains);
    }

    /// Chains taken from the ring so far.
    pub fn taken(&self) -> u64 {
        self.taken.load(Ordering::Relaxed)
    }

    /// Counts requests of one kind, with their bytes, that each took so many cycles.
    #[inline]
    pub fn add(&self, kind: RequestKind, requests: u64, bytes: u64, cycles: u64) {
        let of_kind = &self.by_kind[kind as usize];
        add(&of_kind.bytes, bytes);
        of_kind.took.add(cycles, requests);
    }

    /// A copy of all of them.
    pub fn snapshot(&self) -> Vec<RequestStats> {
        let of = |kind: RequestKind| {
            let of_kind = &self.by_kind[kind as usize];
            RequestStats { kind, bytes: of_kind.bytes.load(Ordering::Relaxed), took: of_kind.took.snapshot() }
        };
        RequestKind::ALL.map(of).into()
    }
}

/// What the counters of a kind of request stood at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequestStats {
    /// The kind.
    pub kind: RequestKind,
    /// Bytes of data.
    pub bytes: u64,
    /// How long each took, and how many there were.
    pub took: Times,
}
