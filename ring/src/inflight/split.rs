//! The records of a split ring: see [`crate::inflight`] for the layout and for what it is about.
//!
//! A burst is a list: `last_batch_head` is the chain that was completed last, `next` of each the one before it. `used.idx` of
//! the ring less `used_idx` of the record says how many of the list the driver sees.

use crate::inflight::{
    DESC_NUM, RecordFault, RecordWords, State, VERSION, VERSION_1, check_entries, sort_by_counter,
};
use crate::layout::Areas;
use crate::position::{Position, PositionSlot};
use crate::queue::{Format, QueueConfig, SetupError};
use crate::split::IDX;
use crate::split::device::SplitDevice;
use crate::sync::{Ordering, fence};
use crate::track::{Descriptor, Track};
use crate::words::{RawWords, Words};

use super::Part;

/// Records the chains of a split ring, which complete in any order.
#[derive(Debug)]
pub struct InFlight<W: Words = RecordWords> {
    region: W,
    keeper: PositionSlot,
    /// By head.
    states: Box<[State]>,
    /// Heads completed and not visible; no more than the ring has.
    completed: Vec<u16>,
    last_batch_head: u16,
    /// Of the next chain.
    counter: u64,
}

/// What a record and a ring together say.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Found {
    /// Completed and visible, but not recorded so.
    done: Vec<u16>,
    /// In flight, in the order in which they were taken.
    heads: Vec<u16>,
    /// Of the next chain.
    counter: u64,
    last_batch_head: u16,
}

impl QueueConfig {
    /// Starts a split ring whose chains complete in any order, recorded in `part`, with those that a predecessor had and
    /// that are recorded there. It goes on at the ring's own used index, whatever `self.position` says.
    ///
    /// # Errors
    /// As those of [`QueueConfig::activate_split`]; a record that does not fit the ring.
    pub fn recover_split(self, part: &Part) -> Result<SplitDevice<RawWords, InFlight>, SetupError> {
        let areas = self.resolve(Format::Split)?;
        SplitDevice::recorded(self, areas, part.words(), part.entries())
    }
}

impl<W: Words, R: Words> SplitDevice<W, InFlight<R>> {
    /// [`QueueConfig::recover_split`] over any kind of memory, `region` with so many entries.
    pub fn recorded(
        mut config: QueueConfig,
        areas: Areas<W>,
        region: R,
        entries: u16,
    ) -> Result<Self, SetupError> {
        areas.check(Format::Split, config.size)?;
        let size = config.size.get();
        let (used, avail) = (areas.device.read_u16(IDX), areas.driver.read_u16(IDX));
        check_entries(&region, Format::Split, size, entries)?;
        if avail.wrapping_sub(used) > size {
            return Err(RecordFault::Contradiction.into());
        }
        // Acquire: pairs with the Release of whoever wrote the record, and made the ring's index visible; both may still
        // have been on their way to memory when that process ended.
        fence(Ordering::Acquire);
        let found = find(&region, size, entries, used, avail)?;
        let track = InFlight::begin(region, entries, config.keeper.clone(), size, used, &found);
        config.position = Position { avail_idx: used, used_idx: used, ..Position::START };
        config.keeper.store(config.position);
        SplitDevice::tracked(config, areas, track)?.with_taken(&found.heads)
    }
}

/// Reads a record, and believes nothing of it. None of its entries is beyond the ring's size.
fn find(region: &impl Words, size: u16, entries: u16, used: u16, avail: u16) -> Result<Found, RecordFault> {
    let none = Found { done: Vec::new(), heads: Vec::new(), counter: 0, last_batch_head: 0 };
    match region.read_u16(VERSION) {
        0 => return Ok(none),
        VERSION_1 => {}
        version => return Err(RecordFault::Version { version }),
    }
    let mut taken: Vec<(u16, u64)> = (0..entries)
        .filter(|&head| region.read_u16(entry(head) + INFLIGHT) & 0xff != 0)
        .map(|head| (head, region.read_u64(entry(head) + COUNTER)))
        .collect();
    if taken.is_empty() {
        // Nothing is lost, wherever the ring is.
        return Ok(none);
    }
    let visible = used.wrapping_sub(region.read_u16(USED_IDX));
    if visible > size {
        return Err(RecordFault::Contradiction);
    }
    let mut is_done = vec![false; size.into()];
    let last_batch_head = region.read_u16(LAST_BATCH_HEAD);
    let (mut head, mut done) = (last_batch_head, Vec::new());
    for _ in 0..visible {
        let is_done = is_done.get_mut(usize::from(head)).ok_or(RecordFault::Index)?;
        if std::mem::replace(is_done, true) {
            return Err(RecordFault::Circle);
        }
        done.push(head);
        head = region.read_u16(entry(head) + NEXT);
    }
    if taken.iter().any(|(head, _)| *head >= size) {
        return Err(RecordFault::Index);
    }
    let counter = sort_by_counter(&mut taken, |(_, counter)| *counter);
    let heads = taken.into_iter().map(|(head, _)| head).filter(|head| !is_done[usize::from(*head)]);
    let heads: Vec<u16> = heads.collect();
    // What is in flight was available.
    if heads.len() > avail.wrapping_sub(used).into() {
        return Err(RecordFault::Contradiction);
    }
    Ok(Found { done, heads, counter, last_batch_head })
}

impl<W: Words> InFlight<W> {
    /// Brings the record to where the ring is, in an order in which it may be done again from any place on.
    fn begin(
        region: W,
        entries: u16,
        keeper: PositionSlot,
        size: u16,
        used: u16,
        found: &Found,
    ) -> InFlight<W> {
        if region.read_u16(VERSION) == 0 {
            (0..entries).for_each(|head| region.write_u16(entry(head) + INFLIGHT, 0));
            region.write_u64(FEATURES, 0);
            region.write_u16(DESC_NUM, entries);
            region.write_u16(LAST_BATCH_HEAD, 0);
            // Before the version: with the 0 that is there, chains that were used long ago would count as a burst.
            region.write_u16(USED_IDX, used);
            // Release: pairs with the Acquire in `recorded`. A record that says its version is whole.
            fence(Ordering::Release);
            region.write_u16(VERSION, VERSION_1);
        } else {
            found.done.iter().for_each(|&head| region.write_u16(entry(head) + INFLIGHT, 0));
            // Release: pairs with the Acquire in `recorded`. The burst is over only once none of it is in flight.
            fence(Ordering::Release);
            region.write_u16(USED_IDX, used);
        }
        let mut states = vec![State::Free; size.into()];
        found.heads.iter().for_each(|&head| states[usize::from(head)] = State::Taken);
        InFlight {
            region,
            keeper,
            states: states.into(),
            completed: Vec::with_capacity(size.into()),
            last_batch_head: found.last_batch_head,
            counter: found.counter,
        }
    }
}

impl<W: Words> Track for InFlight<W> {
    const IN_ORDER: bool = false;

    #[inline]
    fn taken(&mut self, head: u16, _: impl Iterator<Item = Descriptor>) -> bool {
        match self.states.get_mut(usize::from(head)) {
            Some(state @ State::Free) => *state = State::Taken,
            _ => return false,
        }
        self.region.write_u64(entry(head) + COUNTER, self.counter);
        self.counter = self.counter.wrapping_add(1);
        // Release: pairs with the Acquire in `recorded`. What is in flight has its counter.
        fence(Ordering::Release);
        self.region.write_u16(entry(head) + INFLIGHT, 1);
        true
    }

    #[inline]
    fn completed(&mut self, head: u16) {
        if let Some(state @ State::Taken) = self.states.get_mut(usize::from(head)) {
            *state = State::Completed;
            // No more than there are states: no allocation.
            self.completed.push(head);
        }
    }

    #[inline]
    fn publish(&mut self, with_burst: Position, after: Position, make_visible: impl FnOnce()) {
        for &head in &self.completed {
            self.region.write_u16(entry(head) + NEXT, self.last_batch_head);
            self.last_batch_head = head;
        }
        self.region.write_u16(LAST_BATCH_HEAD, self.last_batch_head);
        self.keeper.store(with_burst);
        // Release: pairs with the Acquire in `recorded`. Whoever sees the index sees the list of what it makes visible.
        fence(Ordering::Release);
        make_visible();
        // Release: pairs with the Acquire in `recorded`. What is not in flight is visible.
        fence(Ordering::Release);
        for &head in &self.completed {
            self.region.write_u16(entry(head) + INFLIGHT, 0);
            if let Some(state) = self.states.get_mut(usize::from(head)) {
                *state = State::Free;
            }
        }
        self.completed.clear();
        // Release: pairs with the Acquire in `recorded`. A burst that is over has nothing in flight.
        fence(Ordering::Release);
        self.region.write_u16(USED_IDX, after.used_idx);
        self.keeper.store(after);
    }

    fn moved(&mut self, to: Position) {
        self.keeper.store(to);
    }
}

/// Offset of an entry, in bytes.
#[inline(always)]
fn entry(head: u16) -> usize {
    HEAD + ENTRY * usize::from(head)
}

/// Bytes of the head.
pub(super) const HEAD: usize = 16;
/// Bytes of an entry.
pub(super) const ENTRY: usize = 16;
/// Offset of the features in the head.
const FEATURES: usize = 0;
/// Offset of `last_batch_head`.
const LAST_BATCH_HEAD: usize = 12;
/// Offset of `used_idx`.
const USED_IDX: usize = 14;
/// Offset of `inflight` in an entry: a byte, written with the padding behind it.
const INFLIGHT: usize = 0;
/// Offset of `next`.
const NEXT: usize = 6;
/// Offset of the counter.
const COUNTER: usize = 8;
