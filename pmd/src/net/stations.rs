//! What a bridge has learned, for those who ask: a copy of its forwarding database, made by its pump now and then, and
//! the addresses that it refused to learn. Each of several pumps shows what it knows first.
//!
//! The pump writes, from its worker, and never waits: while somebody reads, it leaves the old copy. Any thread reads, and
//! waits for the worker neither in the lock, so that the worker has nobody to wake, nor for long.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use super::Mac;
use super::fdb::{Fdb, FdbOptions, ticks};

/// One station, as operators see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Station {
    /// Its address.
    pub mac: Mac,
    /// The VLAN in which it was heard of; 0 where the bridge does not look at them.
    pub vid: u16,
    /// The slot of the port behind which it is.
    pub slot: u16,
    /// Since when it has not been heard of, in ticks, when the copy was made.
    pub age: u64,
}

/// See the module's head.
#[derive(Debug)]
pub struct Stations {
    /// One for each pump. No worker's.
    views: Mutex<Vec<Arc<View>>>,
    refused: AtomicU64,
    /// How long a station is kept, in ticks; decided by control, looked at by the pump.
    ageing: AtomicU64,
    options: FdbOptions,
}

/// What one pump shows.
#[derive(Debug)]
pub(crate) struct View {
    /// Has room for all that the database can hold.
    seen: Mutex<Vec<Station>>,
    /// What was read last, for whoever reads while a worker makes a copy and gets no CPU to finish it. No worker's.
    read: Mutex<Vec<Station>>,
}

impl Stations {
    /// Room for the entries of a database with these options.
    pub fn new(options: FdbOptions) -> Stations {
        Stations {
            views: Mutex::new(vec![View::new(options.capacity)]),
            refused: AtomicU64::new(0),
            ageing: AtomicU64::new(options.ageing),
            options,
        }
    }

    /// A database that has learned nothing.
    ///
    /// # Errors
    /// There is no memory for it.
    pub(crate) fn empty_fdb(&self) -> std::io::Result<Box<Fdb>> {
        let options = FdbOptions { ageing: self.ageing(), ..self.options };
        Ok(Box::new(Fdb::try_new(options).map_err(|_| std::io::ErrorKind::OutOfMemory)?))
    }

    /// Changes how long a station is kept after it was last heard of, in ticks.
    pub(super) fn set_ageing(&self, ticks: u64) {
        self.ageing.store(ticks, Ordering::Relaxed);
    }

    /// How long a station is kept, in ticks.
    pub fn ageing(&self) -> u64 {
        self.ageing.load(Ordering::Relaxed)
    }

    /// What so many pumps show from now on, one each. Where there are as many as before, it is what was shown until another is.
    pub(crate) fn views(&self, pumps: usize) -> Vec<Arc<View>> {
        let mut views = self.views.lock().unwrap_or_else(PoisonError::into_inner);
        views.resize_with(pumps, || View::new(self.options.capacity));
        views.clone()
    }

    /// Worker: an address was not learned, for want of room.
    pub(super) fn count_refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// The last copies; while a worker does not finish one, what was read before.
    pub fn seen(&self) -> Vec<Station> {
        let views = self.views.lock().unwrap_or_else(PoisonError::into_inner).clone();
        views.iter().flat_map(|view| view.seen()).collect()
    }

    /// Addresses that were not learned, for want of room.
    pub fn refused(&self) -> u64 {
        self.refused.load(Ordering::Relaxed)
    }
}

impl View {
    fn new(stations: u32) -> Arc<View> {
        let seen = Mutex::new(Vec::with_capacity(stations as usize));
        Arc::new(View { seen, read: Mutex::default() })
    }

    /// Worker: copies what the database has of its ports, unless somebody reads the last copy. `now` in cycles.
    pub(crate) fn show(&self, fdb: &Fdb, now: u64, is_own: impl Fn(u16) -> bool) {
        let Ok(mut seen) = self.seen.try_lock() else { return };
        seen.clear();
        let room = seen.capacity();
        let entries = fdb.entries(ticks(now)).filter(|entry| is_own(entry.port)).take(room);
        seen.extend(entries.map(|entry| Station {
            mac: entry.mac,
            vid: entry.vid,
            slot: entry.port,
            age: entry.age,
        }));
    }

    /// The last copy; while the worker does not finish one, what was read before.
    fn seen(&self) -> Vec<Station> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let begun = Instant::now();
        while begun.elapsed() < COPY_WITHIN {
            match self.seen.try_lock() {
                Ok(seen) => read.clone_from(&seen),
                Err(TryLockError::Poisoned(poisoned)) => read.clone_from(&poisoned.into_inner()),
                Err(TryLockError::WouldBlock) => {
                    std::thread::sleep(COPY_STEP);
                    continue;
                }
            }
            break;
        }
        read.clone()
    }
}

/// How long whoever reads waits for a worker that makes a copy: several times what that takes.
const COPY_WITHIN: Duration = Duration::from_millis(5);
const COPY_STEP: Duration = Duration::from_micros(50);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reader_waits_for_no_copy_that_is_not_finished() {
        let options = FdbOptions { capacity: 4, ports: 1, per_port: 4, ageing: 1000, seed: [1, 2] };
        let stations = Stations::new(options);
        let view = stations.views(1).remove(0);
        let mut fdb = stations.empty_fdb().unwrap();
        fdb.learn(Mac([2, 0, 0, 0, 0, 1]), 0, 1);
        view.show(&fdb, 1, |_| true);
        assert_eq!(stations.seen().len(), 1);
        fdb.learn(Mac([2, 0, 0, 0, 0, 2]), 0, 1);
        view.show(&fdb, 1, |_| true);
        {
            let _copying = view.seen.lock().unwrap();
            assert_eq!(stations.seen().len(), 1, "what was read before");
        }
        assert_eq!(stations.seen().len(), 2);
    }

    #[test]
    fn each_of_several_pumps_shows_the_stations_of_its_ports() {
        let options = FdbOptions { capacity: 4, ports: 2, per_port: 4, ageing: 1000, seed: [1, 2] };
        let stations = Stations::new(options);
        let mut fdb = stations.empty_fdb().unwrap();
        fdb.learn(Mac([2, 0, 0, 0, 0, 1]), 0, 1);
        fdb.learn(Mac([2, 0, 0, 0, 0, 2]), 1, 1);
        let views = stations.views(2);
        for (own, view) in (0u16..).zip(&views) {
            view.show(&fdb, 1, |port| port == own);
        }
        let mut slots: Vec<u16> = stations.seen().iter().map(|station| station.slot).collect();
        slots.sort_unstable();
        assert_eq!(slots, [0, 1]);
        // Of as many as before, what was shown stays.
        assert_eq!((stations.views(2).len(), stations.seen().len()), (2, 2));
        assert_eq!((stations.views(1).len(), stations.seen().len()), (1, 1));
    }
}
