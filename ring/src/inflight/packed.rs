//! The records of a packed ring: see [`crate::inflight`] for the layout and for what it is about.
//!
//! The driver's descriptors are overwritten by used ones, so that an entry holds a copy of one descriptor. Entries of a
//! chain are a list from its first to `last`, with `num` of them; those of no chain are a list from `free_head` on, to an index
//! that is `desc_num`. Where the ring is used to, and where the free list begins, are each there twice: as they are, and as
//! they were before the burst that is being completed. Those that belong together are written by one store.
//!
//! Whether that burst is visible, the ring says: the descriptor at the old place is still available in its lap, or it is not.
//! Used descriptors that a predecessor wrote behind a first one that it did not write are made available again, since the driver
//! would see them with the next burst, which may be another.

use crate::inflight::{
    DESC_NUM, Part, RecordFault, RecordWords, State, VERSION, VERSION_1, check_entries, sort_by_counter,
};
use crate::layout::Areas;
use crate::packed::device::{Again, PackedDevice, Retaken};
use crate::packed::{Cursor, F_BOTH, FLAGS, available, field, used};
use crate::position::{Position, PositionSlot};
use crate::queue::{Format, QueueConfig, SetupError};
use crate::sync::{Ordering, fence};
use crate::track::{Descriptor, Track};
use crate::words::{RawWords, Words};

/// Records the chains of a packed ring, which complete in any order.
#[derive(Debug)]
pub struct InFlight<W: Words = RecordWords> {
    region: W,
    keeper: PositionSlot,
    /// The next entry of the chain or of the free list, by entry: as written to the region, never read back.
    next: Box<[u16]>,
    free_head: u16,
    /// By id.
    chains: Box<[Record]>,
    /// Ids completed and not visible; no more than the ring has.
    completed: Vec<u16>,
    /// Of the next chain.
    counter: u64,
}

/// A chain that the device has.
#[derive(Debug, Clone, Copy, Default)]
struct Record {
    state: State,
    /// Its first entry.
    first: u16,
    /// Its last.
    last: u16,
}

/// A chain that was found recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Chain {
    counter: u64,
    id: u16,
    entries: Vec<u16>,
    descriptors: Vec<Descriptor>,
}

/// What a record and a ring together say.
#[derive(Debug)]
struct Found {
    /// Where the ring is used to.
    used: Cursor,
    /// In flight, in the order in which they were taken.
    chains: Vec<Chain>,
    /// Slots of those.
    slots: u16,
    /// Entries of no chain, in the order of the free list.
    free: Vec<u16>,
    /// The next one, by entry.
    next: Vec<u16>,
    /// Of the next chain.
    counter: u64,
}

impl QueueConfig {
    /// Starts a packed ring whose chains complete in any order, recorded in `part`, with those that a predecessor had and that
    /// are recorded there. It goes on where the record says; at `self.position`'s used position if there is none yet.
    ///
    /// # Errors
    /// As those of [`QueueConfig::activate_packed`]; a record that does not fit the ring.
    pub fn recover_packed(self, part: &Part) -> Result<PackedDevice<RawWords, InFlight>, SetupError> {
        let areas = self.resolve(Format::Packed)?;
        PackedDevice::recorded(self, areas, part.words(), part.entries())
    }
}

impl<W: Words, R: Words> PackedDevice<W, InFlight<R>> {
    /// [`QueueConfig::recover_packed`] over any kind of memory, `region` with so many entries.
    pub fn recorded(
        mut config: QueueConfig,
        areas: Areas<W>,
        region: R,
        entries: u16,
    ) -> Result<Self, SetupError> {
        areas.check(Format::Packed, config.size)?;
        let size = config.size.get();
        check_entries(&region, Format::Packed, size, entries)?;
        // Acquire: pairs with the Release of whoever wrote the record, and made the ring's descriptors visible; both may still
        // have been on their way to memory when that process ended.
        fence(Ordering::Acquire);
        let found = match region.read_u16(VERSION) {
            0 => fresh(entries, size, config.position)?,
            VERSION_1 => {
                let flags = |at: Cursor| areas.desc.read_u16(field(at.slot(), FLAGS)) & F_BOTH;
                find(&region, size, entries, |at| flags(at) == available(at.wrap()))?
            }
            version => return Err(RecordFault::Version { version }.into()),
        };
        make_available_again(&areas.desc, &found, size);
        let mut again = Again::default();
        for chain in &found.chains {
            let (first, slots) = (again.descriptors.len(), chain.descriptors.len() as u16);
            again.chains.push(Retaken { id: chain.id, first, slots });
            again.descriptors.extend(&chain.descriptors);
        }
        let (used_idx, used_wrap) = (found.used.slot(), found.used.wrap());
        config.position = Position { avail_idx: used_idx, avail_wrap: used_wrap, used_idx, used_wrap };
        config.keeper.store(config.position);
        let track = InFlight::begin(region, config.keeper.clone(), size, found);
        Ok(PackedDevice::tracked(config, areas, track)?.with_taken(again))
    }
}

/// Undoes the used descriptors that are not visible. All of these slots are the device's, from its used position on.
fn make_available_again(ring: &impl Words, found: &Found, size: u16) {
    let mut at = found.used;
    for _ in 0..found.slots {
        if ring.read_u16(field(at.slot(), FLAGS)) & F_BOTH == used(at.wrap()) {
            ring.write_u16(field(at.slot(), FLAGS), available(at.wrap()));
        }
        at.advance(1, size);
    }
    // Release: pairs with the Acquire after the load of the flags in `PackedDriver::collect`: the driver comes here only behind a
    // first descriptor that is written later.
    fence(Ordering::Release);
}

/// Where nothing is recorded yet.
fn fresh(entries: u16, size: u16, position: Position) -> Result<Found, SetupError> {
    if position.used_idx >= size {
        return Err(SetupError::Position);
    }
    let used = Cursor::new(position.used_idx, position.used_wrap);
    let next = (0..entries).map(|entry| entry + 1).collect();
    Ok(Found { used, chains: Vec::new(), slots: 0, free: (0..entries).collect(), next, counter: 0 })
}

/// Reads a record, and believes nothing of it. `is_available` tells whether the descriptor there is available in its lap.
fn find(
    region: &impl Words,
    size: u16,
    entries: u16,
    is_available: impl Fn(Cursor) -> bool,
) -> Result<Found, RecordFault> {
    let (free_heads, places) = (region.read_u32(FREE_HEADS), region.read_u64(USED));
    let (free_head, old_free_head) = (free_heads as u16, (free_heads >> 16) as u16);
    let place = |index: u64, wrap: u64| {
        let index = index as u16;
        (index < size).then(|| Cursor::new(index, wrap & 0xff != 0)).ok_or(RecordFault::Contradiction)
    };
    let (now, old) = (place(places, places >> 32)?, place(places >> 16, places >> 40)?);
    let is_visible = now != old && !is_available(old);
    let (used, free_head) = if is_visible { (now, free_head) } else { (old, old_free_head) };

    let mut next: Vec<u16> = (0..entries).map(|nth| region.read_u16(entry(nth) + NEXT)).collect();
    let mut is_known = vec![false; entries.into()];
    let mut know = |entry: u16| {
        let is_known = is_known.get_mut(usize::from(entry)).ok_or(RecordFault::Index)?;
        if std::mem::replace(is_known, true) { Err(RecordFault::Circle) } else { Ok(()) }
    };
    let (mut free, mut at) = (Vec::new(), free_head);
    while at != entries {
        know(at)?;
        free.push(at);
        at = next[usize::from(at)];
    }
    let is_free: Vec<bool> = {
        let mut is_free = vec![false; entries.into()];
        free.iter().for_each(|entry| is_free[usize::from(*entry)] = true);
        is_free
    };
    let (mut chains, mut slots, mut ids) = (Vec::new(), 0, vec![false; size.into()]);
    for first in 0..entries {
        let word = region.read_u64(entry(first));
        if word & 0xff == 0 || is_free[usize::from(first)] {
            continue;
        }
        let (last, num) = ((word >> 32) as u16, (word >> 48) as u16);
        slots += u32::from(num);
        if num == 0 || slots > size.into() {
            return Err(RecordFault::Contradiction);
        }
        let mut chain = Chain {
            counter: region.read_u64(entry(first) + COUNTER),
            id: 0,
            entries: Vec::new(),
            descriptors: Vec::new(),
        };
        let mut at = first;
        for nth in 1..=num {
            know(at)?;
            let word = region.read_u64(entry(at) + ID);
            let addr = region.read_u64(entry(at) + ADDR);
            chain.id = word as u16;
            chain.entries.push(at);
            chain.descriptors.push(Descriptor { addr, len: (word >> 32) as u32, flags: (word >> 16) as u16 });
            if nth == num && at != last {
                return Err(RecordFault::Contradiction);
            }
            at = next[usize::from(at)];
        }
        let id = ids.get_mut(usize::from(chain.id)).ok_or(RecordFault::Index)?;
        if std::mem::replace(id, true) {
            return Err(RecordFault::Circle);
        }
        chains.push(chain);
    }
    // Entries of no list are free, though a predecessor lost them.
    let lost: Vec<u16> = (0..entries).filter(|entry| know(*entry).is_ok()).collect();
    for lost in lost {
        next[usize::from(lost)] = free.first().copied().unwrap_or(entries);
        free.insert(0, lost);
    }
    let counter = sort_by_counter(&mut chains, |chain| chain.counter);
    Ok(Found { used, chains, slots: slots as u16, free, next, counter })
}

impl<W: Words> InFlight<W> {
    /// Brings the record to where the ring is, in an order in which it may be done again from any place on.
    fn begin(region: W, keeper: PositionSlot, size: u16, found: Found) -> InFlight<W> {
        let Found { used, chains: found_chains, free, next, counter, .. } = found;
        let entries = next.len() as u16;
        let free_head = free.first().copied().unwrap_or(entries);
        for &free in &free {
            region.write_u16(entry(free) + INFLIGHT, 0);
            region.write_u16(entry(free) + NEXT, next[usize::from(free)]);
        }
        let mut this = InFlight {
            region,
            keeper,
            next: next.into(),
            free_head,
            chains: vec![Record::default(); size.into()].into(),
            completed: Vec::with_capacity(size.into()),
            counter,
        };
        for chain in &found_chains {
            if let (Some(&first), Some(&last)) = (chain.entries.first(), chain.entries.last()) {
                this.chains[usize::from(chain.id)] = Record { state: State::Taken, first, last };
            }
        }
        // Release: pairs with the Acquire in `recorded`. What the free list has is not in flight.
        fence(Ordering::Release);
        this.write_free_heads(free_head, free_head);
        // Release: as above. The burst is over only once its entries are free.
        fence(Ordering::Release);
        this.write_used(used, used);
        if this.region.read_u16(VERSION) == 0 {
            this.region.write_u64(FEATURES, 0);
            this.region.write_u16(DESC_NUM, entries);
            // Release: as above. A record that says its version is whole.
            fence(Ordering::Release);
            this.region.write_u16(VERSION, VERSION_1);
        }
        this
    }

    #[inline]
    fn write_free_heads(&self, now: u16, old: u16) {
        self.region.write_u32(FREE_HEADS, u32::from(now) | u32::from(old) << 16);
    }

    #[inline]
    fn write_used(&self, now: Cursor, old: Cursor) {
        let word = u64::from(now.slot())
            | u64::from(old.slot()) << 16
            | u64::from(now.wrap()) << 32
            | u64::from(old.wrap()) << 40;
        self.region.write_u64(USED, word);
    }
}

impl<W: Words> Track for InFlight<W> {
    const IN_ORDER: bool = false;

    #[inline]
    fn taken(&mut self, id: u16, descriptors: impl Iterator<Item = Descriptor>) -> bool {
        let Some(record) = self.chains.get_mut(usize::from(id)).filter(|chain| chain.state == State::Free)
        else {
            return false;
        };
        let first = self.free_head;
        let (mut last, mut at, mut num) = (first, first, 0u64);
        for Descriptor { addr, len, flags } in descriptors {
            let Some(next) = self.next.get(usize::from(at)) else { return false };
            self.region.write_u64(entry(at) + ADDR, addr);
            let word = u64::from(id) | u64::from(flags) << 16 | u64::from(len) << 32;
            self.region.write_u64(entry(at) + ID, word);
            (last, at) = (at, *next);
            num += 1;
        }
        let Some(next) = self.next.get(usize::from(first)).filter(|_| num > 0) else { return false };
        *record = Record { state: State::Taken, first, last };
        self.region.write_u64(entry(first) + COUNTER, self.counter);
        self.counter = self.counter.wrapping_add(1);
        self.region.write_u64(entry(first), 1 | u64::from(*next) << 16 | u64::from(last) << 32 | num << 48);
        self.free_head = at;
        // Release: pairs with the Acquire in `recorded`. A chain that has left the free list is whole.
        fence(Ordering::Release);
        self.write_free_heads(at, at);
        true
    }

    #[inline]
    fn completed(&mut self, id: u16) {
        if let Some(chain) = self.chains.get_mut(usize::from(id)).filter(|chain| chain.state == State::Taken)
        {
            chain.state = State::Completed;
            // No more than there are chains: no allocation.
            self.completed.push(id);
        }
    }

    #[inline]
    fn publish(&mut self, with_burst: Position, after: Position, make_visible: impl FnOnce()) {
        let old_free_head = self.free_head;
        for &id in &self.completed {
            let Some(Record { first, last, .. }) = self.chains.get(usize::from(id)).copied() else {
                continue;
            };
            if let Some(next) = self.next.get_mut(usize::from(last)) {
                *next = self.free_head;
                self.region.write_u16(entry(last) + NEXT, self.free_head);
                self.free_head = first;
            }
        }
        let old = Cursor::new(with_burst.used_idx, with_burst.used_wrap);
        let now = Cursor::new(after.used_idx, after.used_wrap);
        // Release: pairs with the Acquire in `recorded`. Whoever takes the burst for visible finds its entries free.
        fence(Ordering::Release);
        self.write_free_heads(self.free_head, old_free_head);
        // Release: as above.
        fence(Ordering::Release);
        self.write_used(now, old);
        self.keeper.store(with_burst);
        // Release: as above. Whoever sees the burst sees that it is under way.
        fence(Ordering::Release);
        make_visible();
        // Release: as above. What is not in flight is visible.
        fence(Ordering::Release);
        for &id in &self.completed {
            if let Some(chain) = self.chains.get_mut(usize::from(id)) {
                chain.state = State::Free;
                self.region.write_u16(entry(chain.first) + INFLIGHT, 0);
            }
        }
        self.completed.clear();
        // Release: as above. A burst that is over has nothing in flight; it is not over before its entries are free.
        fence(Ordering::Release);
        self.write_free_heads(self.free_head, self.free_head);
        fence(Ordering::Release);
        self.write_used(now, now);
        self.keeper.store(after);
    }

    fn moved(&mut self, to: Position) {
        self.keeper.store(to);
    }
}

/// Offset of an entry, in bytes.
#[inline(always)]
fn entry(index: u16) -> usize {
    HEAD + ENTRY * usize::from(index)
}

/// Bytes of the head.
pub(super) const HEAD: usize = 32;
/// Bytes of an entry.
pub(super) const ENTRY: usize = 32;
/// Offset of the features in the head.
const FEATURES: usize = 0;
/// Offset of `free_head`, and `old_free_head` behind it: one word.
const FREE_HEADS: usize = 12;
/// Offset of `used_idx`, and `old_used_idx`, `used_wrap_counter` and `old_used_wrap_counter` behind it: one word with padding.
const USED: usize = 16;
/// Offset of `inflight` in an entry: a byte, written with the padding behind it; 64 bits from here on hold `next`, `last` and
/// `num`, too.
const INFLIGHT: usize = 0;
/// Offset of `next`.
const NEXT: usize = 2;
/// Offset of the counter.
const COUNTER: usize = 8;
/// Offset of the id; 64 bits from here on hold flags and length, too.
const ID: usize = 16;
/// Offset of the address.
const ADDR: usize = 24;
