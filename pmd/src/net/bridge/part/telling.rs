//! What a part tells the others of stations behind its ports: at once where one is new or moved, and now and then of all that are
//! still heard of, so that they are not forgotten.
//!
//! No frame pays for it, so it takes entries that frames leave, and some in a turn. A lane that had no room for one remembers the
//! time from which it was not told of all, and the next round begins for it at once: nothing is lost but for a moment.
//!
//! Part of a pump. Budget: no allocation, no lock, no system call, no panic.

use super::super::entry::Entry;
use super::room::{RESERVED, is_long};
use super::{Lane, Part};
use crate::net::fdb::{Address, Fdb, ticks};

/// Telling the others once more of stations that are still heard of.
#[derive(Debug, Default)]
pub(super) struct Retelling {
    /// The next bucket of the database.
    bucket: usize,
    /// When the last round for all lanes began, in ticks.
    began: u64,
    /// Since when it has waited for room, in cycles.
    waits_since: Option<u64>,
}

impl Part {
    /// Tells the others that a station was heard of behind a port of its own, then, in ticks. Who has no room for it hears of it later.
    #[cold]
    pub(in super::super) fn tell_station(&mut self, address: Address, slot: u16, at: u64) {
        let words = Entry::Station { address, slot, at }.words();
        for lane in &mut self.lanes {
            if lane.told < TOLD {
                lane.told += 1;
                lane.tell(&words, at);
            } else {
                lane.miss(at);
            }
        }
    }

    /// A turn begins. Tells the others once more of stations that are behind its own ports and still heard of: all of them in half the
    /// ageing time, some at a time; and of those that a lane had no room for.
    pub(in super::super) fn tell_again(&mut self, fdb: &Fdb, ageing: u64, cycles: u64) {
        let now = ticks(cycles);
        let Part { lanes, retelling, is_own, .. } = self;
        lanes.iter_mut().for_each(|lane| lane.told = 0);
        let Retelling { bucket, began, waits_since } = retelling;
        if *bucket >= fdb.buckets() {
            let is_due = now.saturating_sub(*began) >= ageing / 2;
            let mut is_any = is_due;
            for lane in lanes.iter_mut() {
                let missed = if is_due || lane.writer.room() >= RESERVED { lane.missed.take() } else { None };
                is_any |= missed.is_some();
                let since = if is_due { *began } else { u64::MAX };
                lane.tells_since = missed.map_or(since, |missed| missed.min(since));
            }
            if !is_any {
                return;
            }
            if is_due {
                *began = now;
            }
            *bucket = 0;
        }
        let since = lanes.iter().map(|lane| lane.tells_since).min().unwrap_or(u64::MAX);
        let end = (*bucket + RETOLD_BUCKETS).min(fdb.buckets());
        let mut told = 0;
        while *bucket < end && told < TOLD {
            let own = || {
                let entries = fdb.in_bucket(*bucket, now);
                let own = entries
                    .filter(|entry| is_own.get(usize::from(entry.port)).copied().unwrap_or(false))
                    .map(|entry| (now.saturating_sub(entry.age), entry));
                own.filter(|(at, _)| *at >= since)
            };
            let count = own().count();
            // A bucket is told whole. One lane without room is waited for, and then goes without.
            let is_tight = |lane: &mut Lane| {
                lane.tells_since < u64::MAX && lane.missed.is_none() && lane.writer.room() < count
            };
            if lanes.iter_mut().any(is_tight) {
                waits_since.get_or_insert(cycles);
                if !is_long(*waits_since, cycles) {
                    return;
                }
            }
            *waits_since = None;
            for (at, entry) in own() {
                let address = Address::of(entry.mac, entry.vid);
                let words = Entry::Station { address, slot: entry.port, at }.words();
                lanes.iter_mut().filter(|lane| at >= lane.tells_since).for_each(|lane| lane.tell(&words, at));
            }
            told += count;
            *bucket += 1;
        }
    }
}

impl Lane {
    /// Tells of one station, heard of then, in ticks.
    fn tell(&mut self, words: &[u64], at: u64) {
        if self.writer.put(words).is_err() {
            self.miss(at);
        }
    }

    /// It is not told of a station that was heard of then.
    fn miss(&mut self, at: u64) {
        self.missed = Some(self.missed.map_or(at, |missed| missed.min(at)));
    }
}

/// Buckets of the database that are looked through at a time for stations to be told of again.
const RETOLD_BUCKETS: usize = 32;

/// Stations of which a lane is told in a turn: those that are new or moved; and as many again in a round, but for the last bucket's.
const TOLD: usize = 8;
