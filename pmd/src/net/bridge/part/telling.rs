//! What a part tells the others of guests that have arrived, and of stations behind its ports: at once where one is new or moved, and
//! now and then of all that are still heard of, so that they are not forgotten.
//!
//! No frame pays for it, so it takes entries that frames leave, and some in a turn. A lane that had no room for one remembers the
//! time from which it was not told of all, and the next round begins for it at once: nothing is lost but for a moment.
//!
//! Part of a pump. Budget: no allocation, no lock, no system call, no panic.

use ringway_ring::lane::LINE_WORDS;

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

/// Guests that have arrived, as a lane is told of them: what was taken back of it is told once more.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// One of them may wait.
    waits: bool,
    all: Box<[Arrival; ARRIVALS]>,
}

/// The words of an entry, and how far it is.
#[derive(Debug, Default, Clone, Copy)]
struct Arrival {
    words: [u64; LINE_WORDS],
    told: Told,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Told {
    /// There is none.
    #[default]
    Nothing,
    /// It is to be put in.
    Waits,
    /// It is in the lane, which is done with it once it is finished with so much.
    Until(u64),
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

    /// Guests have arrived of which a lane was not told, and is not any more.
    pub(in super::super) fn is_untold(&self) -> bool {
        let mut arrivals = self.lanes.iter().flat_map(|lane| lane.arrivals.all.iter());
        arrivals.any(|arrival| arrival.told == Told::Waits)
    }

    /// A turn begins. Tells the others once more of stations that are behind its own ports and still heard of: all of them in half the
    /// ageing time, some at a time; and of those that a lane had no room for.
    pub(in super::super) fn tell_again(&mut self, fdb: &Fdb, ageing: u64, cycles: u64) {
        let now = ticks(cycles);
        let Part { lanes, retelling, is_own, .. } = self;
        for lane in lanes.iter_mut() {
            lane.told = 0;
            lane.announce_again();
        }
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

impl Arrivals {
    /// The lane's reader does not read what it was given beyond a mark.
    pub(super) fn take_back(&mut self, mark: u64) {
        let is_beyond = |told: Told| matches!(told, Told::Until(until) if until > mark);
        for arrival in self.all.iter_mut().filter(|arrival| is_beyond(arrival.told)) {
            (arrival.told, self.waits) = (Told::Waits, true);
        }
    }
}

impl Lane {
    /// Tells of a guest that has arrived, now or when there is room. False: too many wait already.
    pub(super) fn announce(&mut self, words: [u64; LINE_WORDS]) -> bool {
        // A lane that was taken back looks here whether it goes on.
        let finished = self.writer.finished();
        let is_over = |told: Told| match told {
            Told::Nothing => true,
            Told::Waits => false,
            Told::Until(until) => until <= finished,
        };
        let Arrivals { waits, all } = &mut self.arrivals;
        // The same that waits is told once.
        let same = all.iter().position(|one| one.told == Told::Waits && one.words == words);
        let place = same.or_else(|| all.iter().position(|one| is_over(one.told)));
        let Some(arrival) = place.and_then(|place| all.get_mut(place)) else { return false };
        let told = match self.writer.put(&words) {
            Ok(()) => Told::Until(self.writer.given()),
            Err(_) => Told::Waits,
        };
        *waits |= told == Told::Waits;
        *arrival = Arrival { words, told };
        true
    }

    /// One of those that it could not be told of may be told now.
    pub(super) fn may_announce(&mut self) -> bool {
        self.arrivals.waits && self.writer.room() > 0
    }

    /// Tells of those that it could not be told of, or had to be told of in vain.
    #[inline]
    fn announce_again(&mut self) {
        let Arrivals { waits, all } = &mut self.arrivals;
        if !*waits {
            return;
        }
        for arrival in all.iter_mut().filter(|arrival| arrival.told == Told::Waits) {
            if self.writer.put(&arrival.words).is_err() {
                return;
            }
            arrival.told = Told::Until(self.writer.given());
        }
        *waits = false;
    }

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

/// Guests that have arrived of which one lane is told at a time.
const ARRIVALS: usize = 8;

/// Stations of which a lane is told in a turn: those that are new or moved; and as many again in a round, but for the last bucket's.
const TOLD: usize = 8;
