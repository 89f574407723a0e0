//! The forwarding database of a learning bridge: which address was last seen on which port (IEEE 802.1Q §8.8, its
//! dynamic entries).
//!
//! It is not a bridge: it moves no frame and has no static entries. An address is known in each VLAN by itself, so that
//! nobody moves an address of a VLAN that he is not in; where nobody looks at VLANs, all is in VLAN 0. Owned by one
//! thread; time is the caller's clock, in ticks that fit into 48 bits ([`ticks`]).
//!
//! # Who may take whose place
//!
//! Ports are guests, and a guest sends any source address it likes, as many as it likes. So:
//!
//! 1. A live entry is never evicted. It goes when its address is seen on another port (it moves), when its port is
//!    forgotten, or when it has not been seen for the ageing time.
//! 2. A port holds at most `per_port` entries, those that have aged but were not yet swept included. An address beyond
//!    that is not learned ([`Learned::PortFull`]); one that would move to the port stays where it is.
//! 3. The table holds at most `capacity` entries. An address beyond that is not learned ([`Learned::Full`]).
//!
//! A flood of random addresses from one port thus costs the others no entry, and with `per_port` times the number of
//! ports at most `capacity` it keeps no other port from learning either. What is not learned is flooded by the bridge.
//! That an address moves to whoever sent it last is what a learning bridge does; it is not prevented here.
//!
//! # Shape
//!
//! An address hashes to two buckets of eight slots; a bucket is two cache lines, one of keys and one of times with
//! ports. There
//! are two slots for each entry of the capacity, so that two full buckets are not met by chance; and the hash is
//! SipHash-1-3 under a seed that no guest knows, so they are not met by choice. If they are met, that address alone is
//! not learned ([`Learned::Full`]).
//!
//! ```text
//!   address --hash--> first bucket  [key key key key key key key key] [seen seen ... seen]
//!                 \-> second bucket [key ...                        ] [seen ...          ]
//! ```
//!
//! Budget: [`Fdb::find`] and [`Fdb::learn`] of a known address look at one bucket, at most two; a `learn` that changes
//! something sweeps [`SWEEP`] more. No allocation after creation, no lock, no panic.

// What the databases of one bridge on several cores tell each other.
mod copies;

use std::collections::TryReserveError;

use super::Mac;

pub use copies::Heard;

/// What a counter of cycles is in ticks: some twenty microseconds each.
#[inline]
pub fn ticks(cycles: u64) -> u64 {
    cycles >> TICK_BITS
}

/// Cycles that so many ticks are.
pub fn cycles(ticks: u64) -> u64 {
    ticks << TICK_BITS
}

/// Buckets that a [`Fdb::learn`] of anything but a known address looks through for entries that have aged.
pub const SWEEP: usize = 2;

/// How large a forwarding database is, and how long it remembers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FdbOptions {
    /// Entries at most. Each costs 32 to 64 bytes.
    pub capacity: u32,
    /// Ports are numbered 0 to `ports` - 1; one beyond learns nothing.
    pub ports: u16,
    /// Entries of one port at most.
    pub per_port: u32,
    /// Ticks that an entry lives without being seen. 0: nothing is remembered.
    pub ageing: u64,
    /// Random bits that no guest can know.
    pub seed: [u64; 2],
}

/// An address in a VLAN: the address in the upper 48 bits, the VLAN in the lower 16.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address(u64);

impl Address {
    /// An address in a VLAN; VLAN 0 where nobody looks at VLANs.
    #[inline]
    pub fn of(mac: Mac, vid: u16) -> Address {
        Address(number(mac) << VLAN_BITS | u64::from(vid))
    }

    /// As a number, for [`Address::from_bits`].
    #[inline]
    pub fn to_bits(self) -> u64 {
        self.0
    }

    /// The address that such a number is of.
    #[inline]
    pub fn from_bits(bits: u64) -> Address {
        Address(bits)
    }

    /// A station can have it as its own.
    #[inline]
    fn is_valid(self) -> bool {
        // Its first byte is lowest.
        self.0 >> VLAN_BITS != 0 && self.0 >> VLAN_BITS & 1 == 0
    }
}

impl From<Mac> for Address {
    fn from(mac: Mac) -> Address {
        Address::of(mac, 0)
    }
}

/// What is known of an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The address.
    pub mac: Mac,
    /// The VLAN in which it was seen; 0 where nobody looks at them.
    pub vid: u16,
    /// The port behind which it was last seen.
    pub port: u16,
    /// Ticks since then.
    pub age: u64,
}

/// What became of an address that was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Learned {
    /// It was known on this port; its age is 0 again.
    Known,
    /// It is known from now on.
    New,
    /// It was known on another port, and is on this one from now on.
    Moved,
    /// Not learned: the port holds as many as it may.
    PortFull,
    /// Not learned: the table, or the address's place in it, is full.
    Full,
    /// Not learned: a group address or the zero address, which no station has as its own.
    Invalid,
}

/// The forwarding database.
#[derive(Debug)]
pub struct Fdb {
    /// A power of two of them.
    buckets: Box<[Bucket]>,
    /// Entries of each port, aged ones included.
    held: Box<[u32]>,
    /// Entries of all, aged ones included.
    total: u32,
    capacity: u32,
    per_port: u32,
    ageing: u64,
    seed: [u64; 2],
    /// The bucket that is swept next.
    cursor: usize,
}

/// Slots that one look finds.
#[derive(Debug, Clone, Copy)]
#[repr(align(64))]
struct Bucket {
    /// As [`Address`] has them; an empty slot has the zero address.
    keys: [u64; SLOTS],
    /// When each was last seen in the upper 48 bits, on which port in the lower 16.
    seen: [Seen; SLOTS],
}

/// When and where an address was last seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(transparent)]
struct Seen(u64);

impl Seen {
    #[inline]
    fn new(at: u64, port: u16) -> Seen {
        Seen(at << PORT_BITS | u64::from(port))
    }

    #[inline]
    fn at(self) -> u64 {
        self.0 >> PORT_BITS
    }

    #[inline]
    fn port(self) -> u16 {
        self.0 as u16
    }

    /// Ticks since then; none for a clock that went back.
    #[inline]
    fn age(self, now: u64) -> u64 {
        now.saturating_sub(self.at())
    }
}

/// A slot of a bucket.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    bucket: usize,
    slot: usize,
}

impl Fdb {
    /// An empty database.
    ///
    /// # Errors
    ///
    /// There is no memory for that capacity.
    pub fn try_new(options: FdbOptions) -> Result<Fdb, TryReserveError> {
        let count = (options.capacity as usize).saturating_mul(2).div_ceil(SLOTS).next_power_of_two().max(2);
        Ok(Fdb {
            buckets: filled(Bucket::EMPTY, count)?,
            held: filled(0, usize::from(options.ports))?,
            total: 0,
            capacity: options.capacity,
            per_port: options.per_port,
            ageing: options.ageing,
            seed: options.seed,
            cursor: 0,
        })
    }

    /// Notes that an address was seen as the source of a frame from `port`.
    #[inline]
    pub fn learn(&mut self, address: impl Into<Address>, port: u16, now: u64) -> Learned {
        self.note(address.into(), port, now, now)
    }

    /// The same of what was seen at another time than now, which another core's clock told.
    #[inline]
    fn note(&mut self, address: Address, port: u16, at: u64, now: u64) -> Learned {
        if !address.is_valid() {
            return Learned::Invalid;
        }
        let [first, second] = self.places(address);
        let ageing = self.ageing;
        for index in [first, second] {
            if let Some(bucket) = self.buckets.get_mut(index)
                && let Some(slot) = bucket.keys.iter().position(|&held| held == address.0)
                && let Some(seen) = bucket.seen.get_mut(slot)
                && seen.port() == port
                && seen.age(now) < ageing
            {
                *seen = Seen::new(at.max(seen.at()), port);
                return Learned::Known;
            }
        }
        self.learn_change(address, port, [first, second], at, now)
    }

    /// The port behind which an address was last seen, if it was seen within the ageing time.
    #[inline]
    pub fn find(&self, address: impl Into<Address>, now: u64) -> Option<u16> {
        let address = address.into();
        if !address.is_valid() {
            return None;
        }
        let seen = self.seen(self.lookup(address, self.places(address))?)?;
        (seen.age(now) < self.ageing).then_some(seen.port())
    }

    /// When an address was last seen, in ticks.
    pub fn seen_at(&self, address: impl Into<Address>) -> Option<u64> {
        let address = address.into();
        Some(self.seen(self.lookup(address, self.places(address))?)?.at())
    }

    /// Removes every entry of a port. Looks at the whole table: for when a port goes away.
    pub fn forget_port(&mut self, port: u16) {
        self.forget_where(|other, _| other == port);
    }

    /// Removes the entries of a port that are of other addresses than this, in whatever VLAN: for when it may have no other from
    /// now on. Looks at the whole table.
    pub fn forget_others(&mut self, port: u16, own: Mac) {
        self.forget_where(|other, mac| other == port && mac != own);
    }

    /// Removes the entries of ports and addresses that are to go. Looks at the whole table.
    pub(crate) fn forget_where(&mut self, is_to_go: impl Fn(u16, Mac) -> bool) {
        for bucket in &mut self.buckets {
            for (key, seen) in bucket.keys.iter_mut().zip(&bucket.seen) {
                if *key != 0 && is_to_go(seen.port(), mac_of(*key)) {
                    *key = 0;
                    release(&mut self.total, &mut self.held, seen.port());
                }
            }
        }
    }

    /// Changes the ageing time, in ticks, for the entries that are there too.
    pub fn set_ageing(&mut self, ageing: u64) {
        self.ageing = ageing;
    }

    /// Removes what has aged from the next `buckets` buckets, in turn. `learn` does this by itself; a caller that has
    /// time may do more of it, so that a port that has been full learns again sooner.
    pub fn sweep(&mut self, now: u64, buckets: usize) {
        for _ in 0..buckets.min(self.buckets.len()) {
            self.clear_aged(self.cursor, now);
            self.cursor = (self.cursor + 1) & (self.buckets.len() - 1);
        }
    }

    /// Entries that live. Looks at the whole table: for operators.
    pub fn len(&self, now: u64) -> usize {
        self.entries(now).count()
    }

    /// True if no entry lives. Looks at the whole table if so.
    pub fn is_empty(&self, now: u64) -> bool {
        self.entries(now).next().is_none()
    }

    /// Each entry that lives, in no order.
    pub fn entries(&self, now: u64) -> impl Iterator<Item = Entry> {
        let slots = self.buckets.iter().flat_map(|bucket| bucket.keys.iter().zip(&bucket.seen));
        slots.filter_map(move |(&key, &seen)| self.entry_of(key, seen, now))
    }

    /// What stands in a slot, if it lives.
    fn entry_of(&self, key: u64, seen: Seen, now: u64) -> Option<Entry> {
        let age = seen.age(now);
        let entry = Entry { mac: mac_of(key), vid: key as u16, port: seen.port(), age };
        (key != 0 && age < self.ageing).then_some(entry)
    }

    /// The part of `learn` that changes more than an age.
    #[inline(never)]
    fn learn_change(
        &mut self,
        address: Address,
        port: u16,
        places: [usize; 2],
        at: u64,
        now: u64,
    ) -> Learned {
        self.sweep(now, SWEEP);
        for bucket in places {
            self.clear_aged(bucket, now);
        }
        if self.held.get(usize::from(port)).is_none_or(|&held| held >= self.per_port) {
            return Learned::PortFull;
        }
        if let Some(place) = self.lookup(address, places) {
            // It lives, and on another port: on this one it would have been known.
            let mut at = at;
            if let Some(old) = self.seen(place) {
                release(&mut self.total, &mut self.held, old.port());
                // Another core may have heard of it after this one's turn began: it was seen here after that. Two who send from one
                // address would drive it on and on.
                if old.at() > at {
                    at = (old.at() + 1).min(now.saturating_add(MOST_AHEAD));
                }
            }
            self.put(place, address, port, at);
            return Learned::Moved;
        }
        if self.total >= self.capacity {
            return Learned::Full;
        }
        // The first bucket while it is not fuller than half, so that most addresses are found by one look; then the
        // emptier one, so that no bucket fills while its neighbours have room.
        let used = |bucket: &usize| match self.buckets.get(*bucket) {
            Some(bucket) => bucket.keys.iter().filter(|&&key| key != 0).count().max(SLOTS / 2),
            None => SLOTS,
        };
        let free = places.into_iter().min_by_key(used).and_then(|bucket| {
            let slot = self.buckets.get(bucket)?.keys.iter().position(|&key| key == 0)?;
            Some(Place { bucket, slot })
        });
        match free {
            Some(place) => {
                self.put(place, address, port, at);
                Learned::New
            }
            None => Learned::Full,
        }
    }

    /// Fills a slot that is empty or was released, and counts it.
    fn put(&mut self, place: Place, address: Address, port: u16, now: u64) {
        if let Some(bucket) = self.buckets.get_mut(place.bucket)
            && let (Some(to), Some(seen)) = (bucket.keys.get_mut(place.slot), bucket.seen.get_mut(place.slot))
        {
            *to = address.0;
            *seen = Seen::new(now, port);
            self.total = self.total.saturating_add(1);
            if let Some(held) = self.held.get_mut(usize::from(port)) {
                *held = held.saturating_add(1);
            }
        }
    }

    /// Removes what has aged from one bucket.
    fn clear_aged(&mut self, index: usize, now: u64) {
        let Some(bucket) = self.buckets.get_mut(index) else { return };
        for (key, seen) in bucket.keys.iter_mut().zip(&bucket.seen) {
            if *key != 0 && seen.age(now) >= self.ageing {
                release(&mut self.total, &mut self.held, seen.port());
                *key = 0;
            }
        }
    }

    /// Where an address is, on whichever port, aged or not.
    #[inline]
    fn lookup(&self, address: Address, places: [usize; 2]) -> Option<Place> {
        places.into_iter().find_map(|index| {
            let keys = &self.buckets.get(index)?.keys;
            let slot = keys.iter().position(|&key| key == address.0)?;
            Some(Place { bucket: index, slot })
        })
    }

    /// What stands in a slot.
    #[inline]
    fn seen(&self, place: Place) -> Option<Seen> {
        self.buckets.get(place.bucket)?.seen.get(place.slot).copied()
    }

    /// The two buckets of an address, which differ.
    #[inline]
    fn places(&self, address: Address) -> [usize; 2] {
        let hash = hash(self.seed, address);
        let mask = self.buckets.len() - 1;
        let (first, second) = (hash as usize & mask, (hash >> 32) as usize & mask);
        [first, if first == second { first ^ 1 } else { second }]
    }
}

impl Bucket {
    const EMPTY: Bucket = Bucket { keys: [0; SLOTS], seen: [Seen(0); SLOTS] };
}

/// One entry less.
fn release(total: &mut u32, held: &mut [u32], port: u16) {
    *total = total.saturating_sub(1);
    if let Some(held) = held.get_mut(usize::from(port)) {
        *held = held.saturating_sub(1);
    }
}

/// A slice of one value, or an error where there is no memory for it.
fn filled<T: Copy>(value: T, count: usize) -> Result<Box<[T]>, TryReserveError> {
    let mut values = Vec::new();
    values.try_reserve_exact(count)?;
    values.resize(count, value);
    Ok(values.into_boxed_slice())
}

/// The address as a number of 48 bits, its first byte lowest.
#[inline]
fn number(mac: Mac) -> u64 {
    let [a, b, c, d, e, f] = mac.0;
    u64::from_le_bytes([a, b, c, d, e, f, 0, 0])
}

/// The address of a key.
fn mac_of(key: u64) -> Mac {
    let [a, b, c, d, e, f, ..] = (key >> VLAN_BITS).to_le_bytes();
    Mac([a, b, c, d, e, f])
}

/// SipHash-1-3 of the six bytes of an address: one block, since its length fits beside it. The VLAN goes into the same
/// block, which is another one for each.
#[inline]
fn hash([k0, k1]: [u64; 2], address: Address) -> u64 {
    let block = address.0.rotate_right(VLAN_BITS) ^ 6 << 56;
    let mut v = [
        k0 ^ 0x736f_6d65_7073_6575,
        k1 ^ 0x646f_7261_6e64_6f6d,
        k0 ^ 0x6c79_6765_6e65_7261,
        k1 ^ 0x7465_6462_7974_6573 ^ block,
    ];
    v = sip_round(v);
    v[0] ^= block;
    v[2] ^= 0xff;
    let [a, b, c, d] = sip_round(sip_round(sip_round(v)));
    a ^ b ^ c ^ d
}

/// One round of SipHash.
#[inline]
fn sip_round([mut a, mut b, mut c, mut d]: [u64; 4]) -> [u64; 4] {
    a = a.wrapping_add(b);
    b = b.rotate_left(13) ^ a;
    a = a.rotate_left(32);
    c = c.wrapping_add(d);
    d = d.rotate_left(16) ^ c;
    a = a.wrapping_add(d);
    d = d.rotate_left(21) ^ a;
    c = c.wrapping_add(b);
    b = b.rotate_left(17) ^ c;
    c = c.rotate_left(32);
    [a, b, c, d]
}

/// How far a time that is told may be ahead of now, in ticks: some 3 ms, well above what a turn and a lane take.
const MOST_AHEAD: u64 = 128;

/// Slots of a bucket: eight keys are one cache line.
const SLOTS: usize = 8;

/// Bits of a key that are the VLAN.
const VLAN_BITS: u32 = 16;

/// Bits beside a time that are the port.
const PORT_BITS: u32 = 16;

/// Bits of a counter of cycles that are less than a tick.
const TICK_BITS: u32 = 16;

#[cfg(test)]
mod tests;
