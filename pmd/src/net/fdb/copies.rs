//! Forwarding databases of one bridge on several cores: each is a copy of what the others know, kept by what they tell.
//!
//! An address belongs to the port where it was heard last. Two databases that heard of it at the same time, each on a port of its
//! own, come to the same: the later time wins, and of two that are alike the port with the higher number. Whoever is told of an
//! earlier time than his own keeps what he knows and says so.

use super::{Address, Entry, Fdb, MOST_AHEAD};

/// What became of an address that another database heard of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Heard {
    /// It is where it was said to be, or cannot be known here.
    Taken,
    /// It was heard of later on another port, where it is.
    Later {
        /// That port.
        port: u16,
        /// When, in ticks.
        at: u64,
    },
}

impl Fdb {
    /// Notes that an address was seen as the source of a frame from `port`, at another time than now.
    pub fn hear(&mut self, address: Address, port: u16, at: u64, now: u64) -> Heard {
        if !address.is_valid() || now.saturating_sub(at) >= self.ageing {
            return Heard::Taken;
        }
        let known = self.lookup(address, self.places(address)).and_then(|place| self.seen(place));
        if let Some(known) = known.filter(|known| known.age(now) < self.ageing)
            && known.port() != port
            && (known.at(), known.port()) > (at, port)
        {
            return Heard::Later { port: known.port(), at: known.at() };
        }
        // What it is refused for, it is refused for here alone.
        let _ = self.note(address, port, at.min(now.saturating_add(MOST_AHEAD)), now);
        Heard::Taken
    }

    /// Buckets that there are: what [`Fdb::in_bucket`] takes is below.
    pub fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// Each entry of a bucket that lives.
    pub fn in_bucket(&self, bucket: usize, now: u64) -> impl Iterator<Item = Entry> {
        let bucket = self.buckets.get(bucket);
        let slots = bucket.into_iter().flat_map(|bucket| bucket.keys.iter().zip(&bucket.seen));
        slots.filter_map(move |(&key, &seen)| self.entry_of(key, seen, now))
    }

    /// Becomes what another of the same options is.
    pub fn copy_from(&mut self, other: &Fdb) {
        self.buckets.iter_mut().zip(&other.buckets).for_each(|(to, from)| *to = *from);
        self.held.iter_mut().zip(&other.held).for_each(|(to, from)| *to = *from);
        (self.total, self.seed, self.cursor) = (other.total, other.seed, other.cursor);
    }

    /// Takes what another knows of later.
    pub fn merge(&mut self, other: &Fdb, now: u64) {
        for entry in other.entries(now) {
            self.hear(Address::of(entry.mac, entry.vid), entry.port, now.saturating_sub(entry.age), now);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::FdbOptions;
    use super::*;
    use crate::net::Mac;

    fn empty() -> Fdb {
        let options = FdbOptions { capacity: 64, ports: 4, per_port: 16, ageing: 100, seed: [1, 2] };
        Fdb::try_new(options).unwrap()
    }

    fn mac(last: u8) -> Mac {
        Mac([2, 0, 0, 0, 0, last])
    }

    #[test]
    fn later_claim_wins_and_of_two_at_once_the_higher_port_whoever_is_asked() {
        for (ours, theirs, winner) in [((10, 1), (11, 2), 2), ((11, 1), (10, 2), 1), ((10, 1), (10, 2), 2)] {
            let (mut here, mut there) = (empty(), empty());
            here.learn(mac(1), ours.1, ours.0);
            there.learn(mac(1), theirs.1, theirs.0);
            let address = Address::from(mac(1));
            let refused =
                [here.hear(address, theirs.1, theirs.0, 20), there.hear(address, ours.1, ours.0, 20)];
            assert_eq!((here.find(mac(1), 20), there.find(mac(1), 20)), (Some(winner), Some(winner)));
            assert_eq!(refused.iter().filter(|heard| **heard != Heard::Taken).count(), 1);
        }
    }

    #[test]
    fn what_was_heard_of_ages_from_when_it_was_heard_and_counts_for_its_port() {
        let mut fdb = empty();
        assert_eq!(fdb.hear(mac(1).into(), 3, 10, 50), Heard::Taken);
        assert_eq!((fdb.find(mac(1), 109), fdb.find(mac(1), 110)), (Some(3), None));
        // Aged already, or no station's: not taken.
        assert_eq!(fdb.hear(mac(2).into(), 3, 10, 110), Heard::Taken);
        assert_eq!(fdb.hear(Mac([1, 0, 0, 0, 0, 1]).into(), 3, 110, 110), Heard::Taken);
        assert_eq!(fdb.len(110), 0);
        for last in 0..20 {
            fdb.hear(mac(last).into(), 2, 200, 200);
        }
        assert_eq!(fdb.len(200), 16);
        // What aged here is taken from whoever heard of it earlier than ours was.
        fdb.set_ageing(1000);
        fdb.hear(mac(1).into(), 1, 199, 200);
        assert_eq!(fdb.find(mac(1), 200), Some(2));
        assert_eq!(fdb.hear(mac(1).into(), 1, 199, 200), Heard::Later { port: 2, at: 200 });
    }

    #[test]
    fn two_who_send_from_one_address_do_not_drive_time_on_and_evict_nobody() {
        let (mut here, mut there) = (empty(), empty());
        let now = 1000;
        here.learn(mac(9), 0, now);
        there.learn(mac(9), 0, now);
        let address = Address::from(mac(1));
        for _ in 0..10_000 {
            here.learn(mac(1), 1, now);
            there.hear(address, 1, here.seen_at(mac(1)).unwrap(), now);
            there.learn(mac(1), 2, now);
            here.hear(address, 2, there.seen_at(mac(1)).unwrap(), now);
        }
        for fdb in [&here, &there] {
            assert!(fdb.seen_at(mac(1)).unwrap() <= now + MOST_AHEAD);
            assert_eq!(fdb.find(mac(9), now), Some(0));
        }
        // What somebody says of a time to come is held to that, too.
        here.hear(mac(2).into(), 1, u64::MAX / 4, now);
        assert_eq!(here.seen_at(mac(2)), Some(now + MOST_AHEAD));
        assert_eq!(here.find(mac(9), now), Some(0));
    }

    #[test]
    fn copies_and_merged_ones_know_what_each_knew_last() {
        let (mut one, mut other) = (empty(), empty());
        one.learn(mac(1), 0, 10);
        one.learn(mac(2), 0, 30);
        other.learn(mac(2), 1, 20);
        other.learn(mac(3), 1, 20);
        let mut copy = empty();
        copy.copy_from(&one);
        copy.merge(&other, 40);
        for (last, port) in [(1, 0), (2, 0), (3, 1)] {
            assert_eq!(copy.find(mac(last), 40), Some(port), "{last}");
        }
        let mut walked: Vec<(Mac, u16, u64)> = (0..copy.buckets())
            .flat_map(|bucket| copy.in_bucket(bucket, 40))
            .map(|entry| (entry.mac, entry.port, entry.age))
            .collect();
        walked.sort();
        assert_eq!(walked, [(mac(1), 0, 30), (mac(2), 0, 10), (mac(3), 1, 20)]);
        copy.forget_port(0);
        assert_eq!(copy.len(40), 1);
    }
}
