//! What a bridge has learned, for those who ask: a copy of its forwarding database, made by its pump now and then, and
//! the addresses that it refused to learn.
//!
//! The pump writes, from its worker, and never waits: while somebody reads, it leaves the old copy. Any thread reads.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use super::Mac;
use super::fdb::{Fdb, FdbOptions};

/// One station, as operators see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Station {
    /// Its address.
    pub mac: Mac,
    /// The slot of the port behind which it is.
    pub slot: u16,
    /// Since when it has not been heard of, in cycles, when the copy was made.
    pub age: u64,
}

/// See the module's head.
#[derive(Debug)]
pub struct Stations {
    /// Has room for all that the database can hold.
    seen: Mutex<Vec<Station>>,
    refused: AtomicU64,
    /// How long a station is kept, in cycles; decided by control, looked at by the pump.
    ageing: AtomicU64,
    options: FdbOptions,
}

impl Stations {
    /// Room for the entries of a database with these options.
    pub fn new(options: FdbOptions) -> Stations {
        Stations {
            seen: Mutex::new(Vec::with_capacity(options.capacity as usize)),
            refused: AtomicU64::new(0),
            ageing: AtomicU64::new(options.ageing),
            options,
        }
    }

    /// A database that has learned nothing.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(super) fn empty_fdb(&self) -> std::io::Result<Box<Fdb>> {
        let options = FdbOptions { ageing: self.ageing(), ..self.options };
        Ok(Box::new(Fdb::try_new(options).map_err(|_| std::io::ErrorKind::OutOfMemory)?))
    }

    /// Changes how long a station is kept after it was last heard of, in cycles.
    pub(super) fn set_ageing(&self, cycles: u64) {
        self.ageing.store(cycles, Ordering::Relaxed);
    }

    /// How long a station is kept, in cycles.
    pub fn ageing(&self) -> u64 {
        self.ageing.load(Ordering::Relaxed)
    }

    /// Worker: copies the database, unless somebody reads the last copy.
    pub(super) fn show(&self, fdb: &Fdb, now: u64) {
        let Ok(mut seen) = self.seen.try_lock() else { return };
        seen.clear();
        let room = seen.capacity();
        let entries = fdb.entries(now).take(room);
        seen.extend(entries.map(|(mac, slot, age)| Station { mac, slot, age }));
    }

    /// Worker: an address was not learned, for want of room.
    pub(super) fn count_refused(&self) {
        // Written by one thread.
        let refused = self.refused.load(Ordering::Relaxed);
        self.refused.store(refused + 1, Ordering::Relaxed);
    }

    /// The last copy.
    pub fn seen(&self) -> Vec<Station> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Addresses that were not learned, for want of room.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}
