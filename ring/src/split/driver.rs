//! The driver's side of a split virtqueue, in memory of our own.
//!
//! Free descriptors are taken and given back in ring order, so with a device that completes in order the table is
//! walked from end to end. What is known of each chain is kept in private memory: the device, which may be hostile,
//! can write to everything that is shared. Owned by one thread at a time.

use std::sync::Arc;

use crate::features::Features;
use crate::guest::GuestMap;
use crate::layout::{Areas, DriverConfig};
use crate::queue::{
    Completion, DriverBuffer, DriverRing, Format, IndirectTable, RingFault, RingFull, SetupError, need_event,
};
use crate::split::{F_NO_NOTIFICATION, FLAGS, IDX, Index, avail_at, desc_at, used_at};
use crate::sync::{Ordering, fence};
use crate::walk::{F_INDIRECT, F_NEXT, F_WRITE};
use crate::words::{RawWords, Words};

/// The driver's side of a running split virtqueue.
#[derive(Debug)]
pub struct SplitDriver<W: Words = RawWords> {
    areas: Areas<W>,
    /// Keeps the memory of the areas.
    #[expect(dead_code, reason = "held for its memory")]
    map: Arc<GuestMap>,
    size: u16,
    /// Size minus 1.
    mask: u16,
    event_idx: bool,
    in_order: bool,
    fault: Option<RingFault>,

    /// Next available entry to fill.
    avail_next: Index,
    /// The available index that the device sees.
    avail_published: Index,
    /// Next used entry to look at.
    used_next: Index,
    /// The device's index when it was last read and checked.
    used_seen: Index,
    /// With IN_ORDER: the end of the batch that one used entry completed, and the bytes it told for the last of it.
    batch: (Index, u32),

    free: Free,
    /// What is known of each descriptor.
    slots: Box<[Slot]>,
    /// With IN_ORDER: heads in the order of their available entries.
    heads: Box<[u16]>,

    /// The event index that asks for calls, as last written.
    call_event: Index,
    calls: bool,
}

/// What is known of a descriptor, and of the outstanding chain that it is the head of.
#[derive(Debug, Clone, Copy, Default)]
struct Slot {
    token: u32,
    /// Bytes that the device may write.
    writable: u32,
    /// Descriptors of the chain; 0: the head of none.
    descriptors: u32,
    /// The next descriptor of the same chain, or the next free one; means nothing at the end of either.
    next: u32,
}

/// The free descriptors, as a queue through [`Slot::next`].
#[derive(Debug, Clone, Copy)]
struct Free {
    first: u32,
    last: u32,
    count: u32,
}

impl Free {
    /// All of them, in the order of the table.
    fn all(size: u16) -> (Free, Box<[Slot]>) {
        let slots = (1..=size.into()).map(|next| Slot { next, ..Slot::default() });
        (Free { first: 0, last: u32::from(size) - 1, count: size.into() }, slots.collect())
    }

    /// Takes the first; there is one.
    #[inline(always)]
    fn take(&mut self, slots: &[Slot]) -> u32 {
        let index = self.first;
        self.first = slots.get(index as usize).map_or(0, |slot| slot.next);
        self.count -= 1;
        index
    }

    /// Puts one at the end.
    #[inline(always)]
    fn give(&mut self, slots: &mut [Slot], index: u32) {
        if self.count == 0 {
            self.first = index;
        } else if let Some(last) = slots.get_mut(self.last as usize) {
            last.next = index;
        }
        self.last = index;
        self.count += 1;
    }

    /// Puts `count` descriptors of a chain at the end, from the one at `index` on.
    fn give_chain(&mut self, slots: &mut [Slot], mut index: u32, count: u32) {
        for _ in 0..count {
            self.give(slots, index);
            index = slots.get(index as usize).map_or(0, |slot| slot.next);
        }
    }
}

impl DriverConfig {
    /// Starts a split ring: clears its areas. The device must not use them yet.
    pub fn start_split(self) -> Result<SplitDriver, SetupError> {
        let areas = self.resolve(Format::Split)?;
        SplitDriver::over(self, areas)
    }
}

impl<W: Words> SplitDriver<W> {
    /// Starts a ring over `areas`, whatever addresses `config` claims: [`DriverConfig::start_split`] for other kinds
    /// of memory.
    pub fn over(config: DriverConfig, areas: Areas<W>) -> Result<SplitDriver<W>, SetupError> {
        areas.check(Format::Split, config.size)?;
        let (size, start) = (config.size.get(), config.position.used_idx);
        if config.position.avail_idx != start {
            return Err(SetupError::Position);
        }
        for index in 0..size {
            areas.desc.write_u64(desc_at(index), 0);
            areas.desc.write_u64(desc_at(index) + 8, 0);
            areas.driver.write_u16(avail_at(index), 0);
            areas.device.write_pairs(used_at(index), &[0]);
        }
        for (area, event) in [(&areas.driver, avail_at(size)), (&areas.device, used_at(size))] {
            area.write_u16(FLAGS, 0);
            area.write_u16(IDX, start);
            area.write_u16(event, start);
        }
        let at = Index::new(start);
        // With IN_ORDER descriptors are used in ring order from 0 on (virtio 1.3 §2.7.9), whatever the index.
        let (free, slots) = Free::all(size);
        Ok(SplitDriver {
            areas,
            map: config.map,
            size,
            mask: size - 1,
            event_idx: config.features.contains(Features::EVENT_IDX),
            in_order: config.features.contains(Features::IN_ORDER),
            fault: None,
            avail_next: at,
            avail_published: at,
            used_next: at,
            used_seen: at,
            batch: (at, 0),
            free,
            slots,
            heads: vec![0; size.into()].into(),
            call_event: at,
            calls: true,
        })
    }

    /// Looks at the device's index: how many used entries are there.
    fn look(&mut self) -> Result<u16, RingFault> {
        let seen = Index::new(self.areas.device.read_u16(IDX));
        let ready = seen.since(self.used_next);
        if ready > self.avail_published.since(self.used_next) {
            return Err(RingFault::UsedIndex);
        }
        // Acquire: pairs with the Release before the store of used.idx in `SplitDevice::publish`.
        fence(Ordering::Acquire);
        // The entries follow each other: their lines are asked for at once.
        for nth in (LINE..ready.min(LINE * LINES_AHEAD)).step_by(LINE.into()) {
            self.areas.device.prefetch_read(used_at(self.used_next.plus(nth).get() & self.mask));
        }
        self.used_seen = seen;
        Ok(ready)
    }

    /// Takes the chains that as many used entries tell of as there is room for; returns their number, and what ended it.
    #[inline(always)]
    fn take<const IN_ORDER: bool>(&mut self, into: &mut [Completion]) -> (usize, Result<(), RingFault>) {
        // What changes with each chain is kept at hand: stores to the ring might as well change `self`.
        let (mut free, mut next) = (self.free, self.used_next);
        let (mut count, mut ended) = (0, Ok(()));
        for completion in into {
            match self.release::<IN_ORDER>(next, &mut free) {
                Ok(taken) => *completion = taken,
                Err(fault) => {
                    ended = Err(fault);
                    break;
                }
            }
            next.advance(1);
            count += 1;
        }
        (self.free, self.used_next) = (free, next);
        (count, ended)
    }

    /// Gives back the descriptors of the chain that the used entry at `at` tells of.
    #[inline(always)]
    fn release<const IN_ORDER: bool>(&mut self, at: Index, free: &mut Free) -> Result<Completion, RingFault> {
        let (head, written) = if IN_ORDER { self.next_in_order(at)? } else { self.read_used(at) };
        let slot = self.slots.get_mut(head as usize).ok_or(RingFault::UsedId)?;
        let Slot { token, writable, descriptors, next } = *slot;
        slot.descriptors = 0;
        if descriptors == 0 {
            return Err(RingFault::UsedId);
        }
        free.give(&mut self.slots, head);
        if descriptors > 1 {
            free.give_chain(&mut self.slots, next, descriptors - 1);
        } else if head.is_multiple_of(DESCRIPTORS) {
            // It will be filled next, and is still in the device's cache.
            self.areas.desc.prefetch_write(desc_at(head as u16));
        }
        Ok(Completion { token, written: written.min(writable) })
    }

    /// With IN_ORDER: the chain in line at `at`, and the bytes written if it is the last of its batch.
    fn next_in_order(&mut self, at: Index) -> Result<(u32, u32), RingFault> {
        if self.batch.0 == at {
            self.batch = self.read_batch(at)?;
        }
        let (end, written) = self.batch;
        let last = end == at.plus(1);
        let head = self.heads.get(usize::from(at.get() & self.mask)).copied().unwrap_or_default();
        Ok((head.into(), if last { written } else { 0 }))
    }

    /// The used entry at `at`: id and bytes written.
    #[inline(always)]
    fn read_used(&self, at: Index) -> (u32, u32) {
        let entry = self.areas.device.read_pair(used_at(at.get() & self.mask));
        (entry as u32, (entry >> 32) as u32)
    }

    /// virtio 1.3 §2.7.9: one used entry may stand for all chains up to the one whose id it has. Returns the index
    /// behind that chain, and its bytes.
    fn read_batch(&self, at: Index) -> Result<(Index, u32), RingFault> {
        let (id, written) = self.read_used(at);
        let mut index = at;
        while index != self.used_seen {
            let head = self.heads.get(usize::from(index.get() & self.mask));
            index.advance(1);
            if head.is_some_and(|head| u32::from(*head) == id) {
                return Ok((index, written));
            }
        }
        Err(RingFault::UsedId)
    }

    /// A chain of one buffer, which is what most are.
    #[inline(always)]
    fn add_one(&mut self, buffer: &DriverBuffer, token: u32) -> Result<(), RingFull> {
        if self.free.count == 0 {
            return Err(RingFull);
        }
        let head = self.free.take(&self.slots);
        let (flags, writable) = if buffer.writable { (F_WRITE, buffer.len) } else { (0, 0) };
        self.fill(head, buffer, flags, 0);
        self.head(head, Slot { token, writable, descriptors: 1, next: 0 });
        Ok(())
    }

    /// A chain of several.
    fn add_chain(&mut self, buffers: &[DriverBuffer], token: u32) -> Result<(), RingFull> {
        if buffers.is_empty() || buffers.len() > self.free.count as usize {
            return Err(RingFull);
        }
        let head = self.free.first;
        let mut writable = 0u32;
        for (nth, buffer) in (1..).zip(buffers) {
            let index = self.free.take(&self.slots);
            // What is behind the last free one is never looked at: NEXT is not set then.
            let (next, more) = if nth < buffers.len() { (self.free.first, F_NEXT) } else { (0, 0) };
            self.fill(index, buffer, more | if buffer.writable { F_WRITE } else { 0 }, next);
            if buffer.writable {
                writable = writable.saturating_add(buffer.len);
            }
        }
        self.head(head, Slot { token, writable, descriptors: buffers.len() as u32, next: 0 });
        Ok(())
    }

    /// Writes a descriptor.
    #[inline(always)]
    fn fill(&self, index: u32, buffer: &DriverBuffer, flags: u16, next: u32) {
        let at = desc_at(index as u16);
        self.areas.desc.write_u64(at, buffer.gpa);
        let word = u64::from(buffer.len) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.areas.desc.write_u64(at + 8, word);
    }

    /// Notes the chain at `head`, and writes its available entry.
    #[inline(always)]
    fn head(&mut self, head: u32, chain: Slot) {
        if let Some(slot) = self.slots.get_mut(head as usize) {
            *slot = Slot { next: slot.next, ..chain };
        }
        self.offer(head as u16);
    }

    /// Writes the next available entry.
    #[inline(always)]
    fn offer(&mut self, head: u16) {
        let slot = self.avail_next.get() & self.mask;
        if self.in_order
            && let Some(place) = self.heads.get_mut(usize::from(slot))
        {
            *place = head;
        }
        self.areas.driver.write_u16(avail_at(slot), head);
        self.avail_next.advance(1);
    }

    fn write_call_event(&mut self, event: Index) {
        self.areas.driver.write_u16(avail_at(self.size), event.get());
        self.call_event = event;
    }
}

impl<W: Words> DriverRing for SplitDriver<W> {
    fn free_slots(&self) -> usize {
        self.free.count as usize
    }

    #[inline(always)]
    fn add(&mut self, buffers: &[DriverBuffer], token: u32) -> Result<(), RingFull> {
        match buffers {
            [buffer] => self.add_one(buffer, token),
            _ => self.add_chain(buffers, token),
        }
    }

    fn add_indirect(&mut self, table: &IndirectTable, token: u32) -> Result<(), RingFull> {
        if self.free.count == 0 {
            return Err(RingFull);
        }
        let IndirectTable { gpa, len, writable } = *table;
        let head = self.free.take(&self.slots);
        self.fill(head, &DriverBuffer { gpa, len, writable: false }, F_INDIRECT, 0);
        self.head(head, Slot { token, writable, descriptors: 1, next: 0 });
        Ok(())
    }

    fn publish(&mut self) -> bool {
        let (old, new) = (self.avail_published, self.avail_next);
        if old == new {
            return false;
        }
        // Release: pairs with the Acquire after the load of avail.idx in `SplitDevice::look`: descriptors and entries
        // are visible before the index (virtio 1.3 §2.7.13.3.1).
        fence(Ordering::Release);
        self.areas.driver.write_u16(IDX, new.get());
        self.avail_published = new;
        // Full: pairs with the full fence in `SplitDevice::enable_kicks`. Either this side sees the device's wish to
        // be kicked, or the device, looking once more after it wished, sees the index just stored.
        fence(Ordering::SeqCst);
        if self.event_idx {
            need_event(self.areas.device.read_u16(used_at(self.size)), new.get(), old.get())
        } else {
            self.areas.device.read_u16(FLAGS) & F_NO_NOTIFICATION == 0
        }
    }

    fn collect(&mut self, into: &mut [Completion]) -> Result<usize, RingFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let mut ready = self.used_seen.since(self.used_next);
        if usize::from(ready) < into.len() {
            ready = self.look().inspect_err(|fault| self.fault = Some(*fault))?;
        }
        let most = into.len().min(ready.into());
        let into = into.get_mut(..most).unwrap_or_default();
        let (count, ended) = if self.in_order { self.take::<true>(into) } else { self.take::<false>(into) };
        if let Err(fault) = ended {
            self.fault = Some(fault);
            return if count > 0 { Ok(count) } else { Err(fault) };
        }
        if self.event_idx && !self.calls && self.used_next.since(self.call_event) > EVENT_DRIFT {
            self.write_call_event(self.used_next.farthest());
        }
        Ok(count)
    }

    fn enable_calls(&mut self) -> bool {
        self.calls = true;
        if self.event_idx {
            self.write_call_event(self.used_next);
        } else {
            self.areas.driver.write_u16(FLAGS, 0);
        }
        // Full: pairs with the full fence in `SplitDevice::publish` (`wants_call`).
        fence(Ordering::SeqCst);
        self.fault.is_none() && self.areas.device.read_u16(IDX) != self.used_next.get()
    }

    fn disable_calls(&mut self) {
        self.calls = false;
        if self.event_idx {
            // virtio 1.3 §2.7.7.1: flags mean nothing now.
            self.write_call_event(self.used_next.farthest());
        } else {
            self.areas.driver.write_u16(FLAGS, F_NO_NOTIFICATION);
        }
    }
}

/// An event index written to mean "never" is renewed after so many entries, long before it comes round.
const EVENT_DRIFT: u16 = 0x4000;

/// Descriptors in a cache line.
const DESCRIPTORS: u32 = 4;
/// Used entries in a cache line.
const LINE: u16 = 8;
/// So many lines of used entries are asked for at most.
const LINES_AHEAD: u16 = 16;
