//! The driver's side of a ring whose buffers stand where they are for good: each entry's number is that of its buffer, and
//! what comes back is made available again as it is.
//!
//! Nothing that does not change is written again. On split rings these are the descriptors, and as long as the device
//! completes in order the available entries too, so that only indexes and used entries change cores; on packed rings a
//! descriptor's length, id and flags are written, its address is not. Entries are taken and given by whole cache lines where
//! there are so many, so that a line is not wanted by both sides at a time.
//!
//! It is the cheapest driver that there can be, which makes the load and not the generator what is measured. Owned by one
//! thread; the device is not trusted: what it tells is checked as the rings of `ringway-ring` check it.

use std::collections::VecDeque;
use std::sync::atomic::{Ordering, fence};

use ringway_ring::guest::HostSlice;
use ringway_ring::layout::Areas;
use ringway_ring::queue::RingFault;

/// A buffer of a ring.
#[derive(Debug, Clone, Copy)]
pub struct Buffer {
    pub gpa: u64,
    pub len: u32,
    /// The device writes it.
    pub writable: bool,
}

/// A buffer that came back.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Done {
    pub id: u16,
    /// Bytes that the device wrote.
    pub written: u32,
}

/// What a ring is made of.
#[derive(Debug, Clone, Copy)]
pub struct Place<'a> {
    /// Offsets of the areas in the block that holds them all.
    pub areas: Areas<usize>,
    /// As many as the ring has entries.
    pub buffers: &'a [Buffer],
    pub event_idx: bool,
    pub in_order: bool,
}

/// A ring of either format. `ring` is always the block that holds its areas.
pub trait StandingRing: Sized + Send + std::fmt::Debug {
    /// Writes what stays, into areas that were cleared; nothing is available yet.
    fn start(place: Place<'_>, ring: HostSlice<'_>) -> Self;
    /// Takes up to `into.len()` buffers back; returns how many.
    fn collect(&mut self, ring: HostSlice<'_>, into: &mut [Done]) -> Result<usize, RingFault>;
    /// Makes a buffer available that the device does not have, not visible to it before `publish`.
    fn offer(&mut self, ring: HostSlice<'_>, id: u16);
    /// Makes what was offered visible; true if the device asked to be kicked for it.
    fn publish(&mut self, ring: HostSlice<'_>) -> bool;
    /// So many of `count` buffers are to be made available now, that a line is given as a whole.
    fn whole(&self, count: usize) -> usize;
}

/// So many of `count` entries from `at` on that they end where a line of `line` entries does; all, if that were none.
#[inline(always)]
fn up_to_line(at: u16, count: usize, line: usize) -> usize {
    let beyond = (usize::from(at) + count) % line;
    if beyond < count { count - beyond } else { count }
}

/// Over a split virtqueue.
#[derive(Debug)]
pub struct Split {
    areas: Areas<usize>,
    mask: u16,
    event_idx: bool,
    in_order: bool,
    /// Runs freely: the next available entry, those that the device knows of, the next used entry.
    avail: u16,
    published: u16,
    used: u16,
    /// With IN_ORDER: the end of the batch that one used entry completed, and the bytes it told for the last of it.
    batch: (u16, u32),
    /// What stands in each available entry.
    entries: Box<[u16]>,
    /// The device has the buffer.
    out: Box<[bool]>,
}

impl Split {
    /// virtio 1.3 §2.7.9: one used entry may stand for all up to the one whose id it has. Returns the index behind that
    /// one, and its bytes.
    fn batch(&self, ring: HostSlice<'_>, seen: u16) -> Result<(u16, u32), RingFault> {
        let (id, written) = self.used_entry(ring, self.used);
        let mut at = self.used;
        while at != seen {
            let entry = self.entries.get(usize::from(at & self.mask));
            at = at.wrapping_add(1);
            if entry.is_some_and(|entry| u32::from(*entry) == id) {
                return Ok((at, written));
            }
        }
        Err(RingFault::UsedId)
    }

    #[inline(always)]
    fn used_entry(&self, ring: HostSlice<'_>, at: u16) -> (u32, u32) {
        let entry = ring.word(self.areas.device + 4 + 8 * usize::from(at & self.mask));
        (entry as u32, (entry >> 32) as u32)
    }

    #[inline(always)]
    fn take(&mut self, id: u32) -> Result<u16, RingFault> {
        match self.out.get_mut(id as usize) {
            Some(out) if *out => *out = false,
            _ => return Err(RingFault::UsedId),
        }
        self.used = self.used.wrapping_add(1);
        Ok(id as u16)
    }
}

impl StandingRing for Split {
    fn start(place: Place<'_>, ring: HostSlice<'_>) -> Split {
        let Place { areas, buffers, event_idx, in_order } = place;
        let entries: Box<[u16]> = (0..buffers.len() as u16).collect();
        for (id, buffer) in entries.iter().zip(buffers) {
            let at = areas.desc + 16 * usize::from(*id);
            let flags = if buffer.writable { F_WRITE } else { 0 };
            ring.put_word(at, buffer.gpa);
            ring.put_word(at + 8, u64::from(buffer.len) | u64::from(flags) << 32);
            ring.part(areas.driver + 4 + 2 * usize::from(*id), 2).write(&id.to_le_bytes());
        }
        Split {
            areas,
            mask: (buffers.len() as u16).wrapping_sub(1),
            event_idx,
            in_order,
            avail: 0,
            published: 0,
            used: 0,
            batch: (0, 0),
            out: vec![false; entries.len()].into(),
            entries,
        }
    }

    #[inline]
    fn collect(&mut self, ring: HostSlice<'_>, into: &mut [Done]) -> Result<usize, RingFault> {
        let seen = (ring.word(self.areas.device) >> 16) as u16;
        let ready = seen.wrapping_sub(self.used);
        if ready > self.published.wrapping_sub(self.used) {
            return Err(RingFault::UsedIndex);
        }
        if ready == 0 {
            return Ok(0);
        }
        // Acquire: pairs with the Release before a device's store of used.idx: the entries below it are there.
        fence(Ordering::Acquire);
        let most = usize::from(ready).min(into.len());
        let into = into.get_mut(..most).unwrap_or_default();
        if self.in_order {
            for done in into {
                if self.batch.0 == self.used {
                    self.batch = self.batch(ring, seen)?;
                }
                let id = self.entries.get(usize::from(self.used & self.mask)).copied().unwrap_or_default();
                let id = self.take(id.into())?;
                *done = Done { id, written: if self.batch.0 == self.used { self.batch.1 } else { 0 } };
            }
            return Ok(most);
        }
        let count = up_to_line(self.used & self.mask, most, USED_LINE);
        for done in into.iter_mut().take(count) {
            let (id, written) = self.used_entry(ring, self.used);
            *done = Done { id: self.take(id)?, written };
        }
        Ok(count)
    }

    #[inline]
    fn offer(&mut self, ring: HostSlice<'_>, id: u16) {
        let slot = usize::from(self.avail & self.mask);
        if let (Some(entry), Some(out)) = (self.entries.get_mut(slot), self.out.get_mut(usize::from(id))) {
            if *entry != id {
                *entry = id;
                ring.part(self.areas.driver + 4 + 2 * slot, 2).write(&id.to_le_bytes());
            }
            *out = true;
            self.avail = self.avail.wrapping_add(1);
        }
    }

    #[inline]
    fn publish(&mut self, ring: HostSlice<'_>) -> bool {
        let (old, new) = (self.published, self.avail);
        if old == new {
            return false;
        }
        // Release: pairs with a device's Acquire after its load of avail.idx: entries and descriptors are visible before it
        // (virtio 1.3 §2.7.13.3.1).
        fence(Ordering::Release);
        // Flags and index, and as they are the first two entries, which stand in the same word.
        let entry = |at: usize| u64::from(self.entries.get(at).copied().unwrap_or_default());
        let flags = if self.event_idx { 0 } else { F_NO_INTERRUPT };
        ring.put_word(self.areas.driver, flags | u64::from(new) << 16 | entry(0) << 32 | entry(1) << 48);
        self.published = new;
        // Full: pairs with the full fence between a device's wish to be kicked and its last look at avail.idx.
        fence(Ordering::SeqCst);
        if self.event_idx {
            let event = ring.word(self.areas.device + 4 + 8 * self.out.len()) as u16;
            new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
        } else {
            ring.word(self.areas.device) & F_NO_NOTIFICATION == 0
        }
    }

    #[inline]
    fn whole(&self, count: usize) -> usize {
        up_to_line(self.avail & self.mask, count, USED_LINE)
    }
}

/// Over a packed virtqueue.
#[derive(Debug)]
pub struct Packed {
    areas: Areas<usize>,
    event_idx: bool,
    in_order: bool,
    /// Slot and lap of the next descriptor to be filled, and of the next to come back.
    avail: (u16, bool),
    used: (u16, bool),
    /// The batch's first descriptor, which is written last.
    held: Option<(usize, u64)>,
    /// Offered, and not yet published.
    pending: u16,
    /// What the device may know of.
    published: u16,
    /// With IN_ORDER: those it may know of, in order, and the batch that one used descriptor completed: how many are left,
    /// and the bytes it told for the last.
    order: VecDeque<u16>,
    batch: (u16, u32),
    /// The buffer whose address stands in each slot.
    slots: Box<[u16]>,
    buffers: Box<[Buffer]>,
    /// The device has the buffer.
    out: Box<[bool]>,
}

impl Packed {
    fn size(&self) -> u16 {
        self.buffers.len() as u16
    }

    #[inline(always)]
    fn advance(&self, (slot, lap): (u16, bool), by: u16) -> (u16, bool) {
        let (slot, size) = (slot + by, self.size());
        if slot >= size { (slot - size, !lap) } else { (slot, lap) }
    }

    /// Length, id and flags of the descriptor at `at`, if the device used it.
    #[inline(always)]
    fn used_word(&self, ring: HostSlice<'_>, (slot, lap): (u16, bool)) -> Option<u64> {
        let word = ring.word(self.areas.desc + 16 * usize::from(slot) + 8);
        let both = if lap { F_AVAIL | F_USED } else { 0 };
        ((word >> 48) & (F_AVAIL | F_USED) == both).then_some(word)
    }

    #[inline(always)]
    fn take(&mut self, id: u16) -> Result<(), RingFault> {
        match self.out.get_mut(usize::from(id)) {
            Some(out) if *out => *out = false,
            _ => return Err(RingFault::UsedId),
        }
        self.published -= 1;
        self.used = self.advance(self.used, 1);
        Ok(())
    }

    fn collect_in_order(&mut self, ring: HostSlice<'_>, into: &mut [Done]) -> Result<usize, RingFault> {
        let mut count = 0;
        for done in into {
            if self.batch.0 == 0 {
                if self.published == 0 {
                    break;
                }
                let Some(word) = self.used_word(ring, self.used) else { break };
                // Acquire: as in `collect`.
                fence(Ordering::Acquire);
                let word = self.used_word(ring, self.used).unwrap_or(word);
                // virtio 1.3 §2.8.8: one used descriptor may stand for all up to the one whose id it has.
                let id = (word >> 32) as u16;
                let known = self.order.iter().take(usize::from(self.published));
                let nth = known.into_iter().position(|one| *one == id).ok_or(RingFault::UsedId)?;
                self.batch = (nth as u16 + 1, word as u32);
            }
            let id = self.order.pop_front().ok_or(RingFault::UsedId)?;
            self.take(id)?;
            self.batch.0 -= 1;
            *done = Done { id, written: if self.batch.0 == 0 { self.batch.1 } else { 0 } };
            count += 1;
        }
        Ok(count)
    }
}

impl StandingRing for Packed {
    fn start(place: Place<'_>, ring: HostSlice<'_>) -> Packed {
        let Place { areas, buffers, event_idx, in_order } = place;
        let ids = 0..buffers.len() as u16;
        for (id, buffer) in ids.clone().zip(buffers) {
            ring.put_word(areas.desc + 16 * usize::from(id), buffer.gpa);
        }
        Packed {
            areas,
            event_idx,
            in_order,
            avail: (0, true),
            used: (0, true),
            held: None,
            pending: 0,
            published: 0,
            order: VecDeque::with_capacity(buffers.len()),
            batch: (0, 0),
            slots: ids.collect(),
            out: vec![false; buffers.len()].into(),
            buffers: buffers.into(),
        }
    }

    #[inline]
    fn collect(&mut self, ring: HostSlice<'_>, into: &mut [Done]) -> Result<usize, RingFault> {
        if self.in_order {
            return self.collect_in_order(ring, into);
        }
        let most = usize::from(self.published).min(into.len());
        let (mut at, mut ready) = (self.used, 0);
        // All of a line at once, and the next one asked for meanwhile.
        while ready < most && self.used_word(ring, at).is_some() {
            if at.0 % DESC_LINE as u16 == 0 {
                ring.prefetch_write(self.areas.desc + 16 * usize::from(at.0) + LINE);
            }
            at = self.advance(at, 1);
            ready += 1;
        }
        if ready == 0 {
            return Ok(0);
        }
        // Acquire: pairs with the Release before a device's store of a batch's first flags: what it wrote is there.
        fence(Ordering::Acquire);
        let count = up_to_line(self.used.0, ready, DESC_LINE);
        for done in into.iter_mut().take(count) {
            let word = ring.word(self.areas.desc + 16 * usize::from(self.used.0) + 8);
            let (id, written) = ((word >> 32) as u16, word as u32);
            self.take(id)?;
            *done = Done { id, written };
        }
        Ok(count)
    }

    #[inline]
    fn offer(&mut self, ring: HostSlice<'_>, id: u16) {
        let (slot, lap) = self.avail;
        let at = self.areas.desc + 16 * usize::from(slot);
        let (Some(buffer), Some(place)) =
            (self.buffers.get(usize::from(id)), self.slots.get_mut(usize::from(slot)))
        else {
            return;
        };
        if *place != id {
            *place = id;
            ring.put_word(at, buffer.gpa);
        }
        let flags = if lap { F_AVAIL } else { F_USED } | if buffer.writable { u64::from(F_WRITE) } else { 0 };
        let word = u64::from(buffer.len) | u64::from(id) << 32 | flags << 48;
        match self.held {
            None => self.held = Some((at + 8, word)),
            Some(_) => ring.put_word(at + 8, word),
        }
        if let Some(out) = self.out.get_mut(usize::from(id)) {
            *out = true;
        }
        if self.in_order {
            self.order.push_back(id);
        }
        self.avail = self.advance(self.avail, 1);
        self.pending += 1;
    }

    #[inline]
    fn publish(&mut self, ring: HostSlice<'_>) -> bool {
        let Some((at, word)) = self.held.take() else { return false };
        // Release: pairs with a device's Acquire after its load of the flags: all of the batch is visible before its first
        // descriptor (virtio 1.3 §2.8.21).
        fence(Ordering::Release);
        ring.put_word(at, word);
        let count = std::mem::take(&mut self.pending);
        self.published += count;
        // Full: pairs with the full fence between a device's wish to be kicked and its last look at the ring.
        fence(Ordering::SeqCst);
        let wish = ring.word(self.areas.device) as u32;
        match (wish >> 16) & 3 {
            0 => true,
            2 if self.event_idx => {
                // virtio 1.3 §2.8.10: slot and lap; both as places behind the start of the batch's lap.
                let (event, lap) = (wish as u16 & 0x7fff, wish as u16 >> 15 == 1);
                let event = if lap == self.avail.1 { event } else { event.wrapping_sub(self.size()) };
                let new = self.avail.0;
                new.wrapping_sub(event).wrapping_sub(1) < count
            }
            _ => false,
        }
    }

    #[inline]
    fn whole(&self, count: usize) -> usize {
        up_to_line(self.avail.0, count, DESC_LINE)
    }
}

/// Entries in a cache line: used ones of a split ring, descriptors of a packed one.
const USED_LINE: usize = 8;
const DESC_LINE: usize = 4;
const LINE: usize = 64;

/// A descriptor's buffer is the device's to write.
const F_WRITE: u16 = 2;
/// The laps that driver and device were in as they last wrote a packed descriptor.
const F_AVAIL: u64 = 1 << 7;
const F_USED: u64 = 1 << 15;
/// No calls are wanted, no kicks.
const F_NO_INTERRUPT: u64 = 1;
const F_NO_NOTIFICATION: u64 = 1;

#[cfg(test)]
mod tests;
