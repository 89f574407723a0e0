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
    Completion, DriverBuffer, DriverRing, Format, RingFault, RingFull, SetupError, need_event,
};
use crate::split::{F_NO_NOTIFICATION, FLAGS, IDX, Index, avail_at, desc_at, used_at};
use crate::sync::{Ordering, fence};
use crate::walk::{F_NEXT, F_WRITE};
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

    /// Free descriptors: a queue of `free_count` from `free_first` on, modulo the size.
    free: Box<[u16]>,
    free_first: Index,
    free_count: u32,
    /// What is known of each outstanding chain, by its head.
    chains: Box<[Outstanding]>,
    /// With IN_ORDER: heads in the order of their available entries.
    heads: Box<[u16]>,

    /// The event index that asks for calls, as last written.
    call_event: Index,
    calls: bool,
}

/// A chain that the device has. Of its descriptors the first is the index of this entry.
#[derive(Debug, Clone, Copy, Default)]
struct Outstanding {
    token: u32,
    /// Bytes that the device may write.
    writable: u32,
    /// Descriptors; 0: not outstanding.
    descriptors: u16,
    /// The next descriptor of the same chain.
    next: u16,
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
            // With IN_ORDER descriptors are used in ring order from 0 on (virtio 1.3 §2.7.9), whatever the index.
            free: (0..size).collect(),
            free_first: Index::new(0),
            free_count: size.into(),
            chains: vec![Outstanding::default(); size.into()].into(),
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

    /// Takes the chain that the next used entry tells of.
    #[inline(always)]
    fn take(&mut self) -> Result<Completion, RingFault> {
        let (head, written) = if self.in_order { self.next_in_order()? } else { self.read_used() };
        let completion = self.release(head, written)?;
        self.used_next.advance(1);
        Ok(completion)
    }

    /// With IN_ORDER: the next chain, and the bytes written if it is the last of its batch.
    fn next_in_order(&mut self) -> Result<(u32, u32), RingFault> {
        if self.batch.0 == self.used_next {
            self.batch = self.read_batch()?;
        }
        let (end, written) = self.batch;
        let last = end == self.used_next.plus(1);
        let head = self.heads.get(usize::from(self.used_next.get() & self.mask)).copied().unwrap_or_default();
        Ok((head.into(), if last { written } else { 0 }))
    }

    /// The next used entry: id and bytes written.
    #[inline(always)]
    fn read_used(&self) -> (u32, u32) {
        let entry = self.areas.device.read_pair(used_at(self.used_next.get() & self.mask));
        (entry as u32, (entry >> 32) as u32)
    }

    /// virtio 1.3 §2.7.9: one used entry may stand for all chains up to the one whose id it has. Returns the index
    /// behind that chain, and its bytes.
    fn read_batch(&self) -> Result<(Index, u32), RingFault> {
        let (id, written) = self.read_used();
        let mut index = self.used_next;
        while index != self.used_seen {
            let head = self.heads.get(usize::from(index.get() & self.mask));
            index.advance(1);
            if head.is_some_and(|head| u32::from(*head) == id) {
                return Ok((index, written));
            }
        }
        Err(RingFault::UsedId)
    }

    /// Gives back the descriptors of the chain at `head`, which is a claim.
    #[inline(always)]
    fn release(&mut self, head: u32, written: u32) -> Result<Completion, RingFault> {
        let chain = self.chains.get_mut(head as usize).ok_or(RingFault::UsedId)?;
        let Outstanding { token, writable, descriptors, next } = *chain;
        chain.descriptors = 0;
        match descriptors {
            0 => return Err(RingFault::UsedId),
            1 => {
                self.free_one(head as u16);
                // It will be filled next, and is still in the device's cache.
                if head.is_multiple_of(DESCRIPTORS) {
                    self.areas.desc.prefetch_write(desc_at(head as u16));
                }
            }
            _ => self.free_chain(head as u16, next, descriptors),
        }
        Ok(Completion { token, written: written.min(writable) })
    }

    #[inline(always)]
    fn free_one(&mut self, index: u16) {
        let place = self.free_first.plus(self.free_count as u16).get() & self.mask;
        if let Some(place) = self.free.get_mut(usize::from(place)) {
            *place = index;
        }
        self.free_count += 1;
    }

    /// Gives back the descriptors of a chain of several: the one at `index`, behind which is `after`, and those that
    /// follow.
    fn free_chain(&mut self, mut index: u16, mut after: u16, descriptors: u16) {
        for left in (0..descriptors).rev() {
            self.free_one(index);
            if left > 0 {
                index = after;
                after = self.chains.get(usize::from(index)).map_or(0, |chain| chain.next);
            }
        }
    }

    /// A chain of one buffer, which is what most are.
    #[inline(always)]
    fn add_one(&mut self, buffer: &DriverBuffer, token: u32) -> Result<(), RingFull> {
        if self.free_count == 0 {
            return Err(RingFull);
        }
        let head = self.free.get(usize::from(self.free_first.get() & self.mask)).copied().unwrap_or_default();
        self.free_first.advance(1);
        self.free_count -= 1;
        let (flags, writable) = if buffer.writable { (F_WRITE, buffer.len) } else { (0, 0) };
        self.areas.desc.write_u64(desc_at(head), buffer.gpa);
        self.areas.desc.write_u64(desc_at(head) + 8, u64::from(buffer.len) | u64::from(flags) << 32);
        if let Some(chain) = self.chains.get_mut(usize::from(head)) {
            *chain = Outstanding { token, writable, descriptors: 1, next: 0 };
        }
        self.offer(head);
        Ok(())
    }

    /// A chain of several.
    fn add_chain(&mut self, buffers: &[DriverBuffer], token: u32) -> Result<(), RingFull> {
        if buffers.is_empty() || buffers.len() > self.free_count as usize {
            return Err(RingFull);
        }
        let free = |ring: &Self, nth: u16| {
            let place = ring.free_first.plus(nth).get() & ring.mask;
            ring.free.get(usize::from(place)).copied().unwrap_or_default()
        };
        let head = free(self, 0);
        let mut index = head;
        let mut writable = 0u32;
        for (nth, buffer) in (1..).zip(buffers) {
            // The entry behind the last free one is never looked at: NEXT is not set then.
            let (next, more) =
                if usize::from(nth) < buffers.len() { (free(self, nth), F_NEXT) } else { (0, 0) };
            let flags = more | if buffer.writable { F_WRITE } else { 0 };
            self.areas.desc.write_u64(desc_at(index), buffer.gpa);
            let word = u64::from(buffer.len) | u64::from(flags) << 32 | u64::from(next) << 48;
            self.areas.desc.write_u64(desc_at(index) + 8, word);
            if let Some(chain) = self.chains.get_mut(usize::from(index)) {
                chain.next = next;
            }
            if buffer.writable {
                writable = writable.saturating_add(buffer.len);
            }
            index = next;
        }
        let count = buffers.len() as u16;
        self.free_first.advance(count);
        self.free_count -= u32::from(count);
        if let Some(chain) = self.chains.get_mut(usize::from(head)) {
            (chain.token, chain.writable, chain.descriptors) = (token, writable, count);
        }
        self.offer(head);
        Ok(())
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
        self.free_count as usize
    }

    #[inline]
    fn add(&mut self, buffers: &[DriverBuffer], token: u32) -> Result<(), RingFull> {
        match buffers {
            [buffer] => self.add_one(buffer, token),
            _ => self.add_chain(buffers, token),
        }
    }

    fn publish(&mut self) -> bool {
        let (old, new) = (self.avail_published, self.avail_next);
        if old == new {
            return false;
        }
        // Release: pairs with the Acquire after the load of avail.idx in `SplitDevice::look`: descriptors and entries
        // are visible before the index (virtio 1.3 §2.7.13.2).
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
        let mut count = 0;
        for completion in into.iter_mut().take(ready.into()) {
            match self.take() {
                Ok(taken) => *completion = taken,
                Err(fault) => {
                    self.fault = Some(fault);
                    return if count > 0 { Ok(count) } else { Err(fault) };
                }
            }
            count += 1;
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
