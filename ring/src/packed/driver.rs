//! The driver's side of a packed virtqueue, in memory of our own.
//!
//! What is known of each chain is kept in private memory: the device, which may be hostile, can write to everything
//! that is shared. Buffer ids are given out in the order in which they come back. Owned by one thread at a time.

use std::sync::Arc;

use crate::features::Features;
use crate::guest::GuestMap;
use crate::layout::{Areas, DriverConfig};
use crate::packed::{ADDR, Cursor, F_BOTH, FLAGS, ID, LEN, Suppression, available, field, passed, used};
use crate::position::Position;
use crate::queue::{
    Completion, DriverBuffer, DriverRing, Format, IndirectTable, RingFault, RingFull, SetupError,
};
use crate::sync::{Ordering, fence};
use crate::walk::{F_INDIRECT, F_NEXT, F_WRITE};
use crate::words::{RawWords, Words};

/// The driver's side of a running packed virtqueue.
#[derive(Debug)]
pub struct PackedDriver<W: Words = RawWords> {
    areas: Areas<W>,
    /// Keeps the memory of the areas.
    #[expect(dead_code, reason = "held for its memory")]
    map: Arc<GuestMap>,
    size: u16,
    event_idx: bool,
    in_order: bool,
    fault: Option<RingFault>,

    /// Next descriptor to fill.
    avail: Cursor,
    /// Descriptors added and not published.
    pending: u32,
    /// Slot and flags of the first descriptor of the batch, whose flags are written last.
    held: Option<(u16, u16)>,
    /// Next descriptor to be used by the device.
    used: Cursor,
    /// Chains that were collected last.
    expected: u32,
    /// Descriptors that neither were added nor wait for the device.
    free: u32,

    /// Buffer ids in a ring of `size` entries: `id_count` outstanding ones from `id_first` on, the free ones behind.
    /// A device that completes in order finds the outstanding ones in the order in which they were added; of others
    /// only their number is right.
    ids: Box<[u16]>,
    id_first: u32,
    id_count: u32,
    /// Of the outstanding ones, those that the device may know of.
    id_published: u32,
    /// What is known of each outstanding chain, by its id.
    chains: Box<[Outstanding]>,
    /// With IN_ORDER: chains left of the batch that one used descriptor completed, and the bytes it told for the last.
    batch: (u32, u32),
}

/// A chain that the device has.
#[derive(Debug, Clone, Copy, Default)]
struct Outstanding {
    token: u32,
    /// Bytes that the device may write.
    writable: u32,
    /// Descriptors; 0: not outstanding.
    slots: u16,
}

impl DriverConfig {
    /// Starts a packed ring: clears its areas. The device must not use them yet.
    pub fn start_packed(self) -> Result<PackedDriver, SetupError> {
        let areas = self.resolve(Format::Packed)?;
        PackedDriver::over(self, areas)
    }
}

impl<W: Words> PackedDriver<W> {
    /// Starts a ring over `areas`, whatever addresses `config` claims: [`DriverConfig::start_packed`] for other kinds
    /// of memory.
    pub fn over(config: DriverConfig, areas: Areas<W>) -> Result<PackedDriver<W>, SetupError> {
        areas.check(Format::Packed, config.size)?;
        let size = config.size.get();
        let Position { avail_idx, avail_wrap, used_idx, used_wrap } = config.position;
        if used_idx >= size || (avail_idx, avail_wrap) != (used_idx, used_wrap) {
            return Err(SetupError::Position);
        }
        for slot in 0..size {
            // As the device would have left them: used in this lap before the start, in the last one behind it.
            let flags = used(used_wrap == (slot < used_idx));
            areas.desc.write_u64(field(slot, ADDR), 0);
            areas.desc.write_u64(field(slot, LEN), u64::from(flags) << 48);
        }
        areas.driver.write_u32(0, Suppression::ENABLE.0);
        areas.device.write_u32(0, Suppression::ENABLE.0);
        let start = Cursor::new(used_idx, used_wrap);
        Ok(PackedDriver {
            areas,
            map: config.map,
            size,
            event_idx: config.features.contains(Features::EVENT_IDX),
            in_order: config.features.contains(Features::IN_ORDER),
            fault: None,
            avail: start,
            pending: 0,
            held: None,
            used: start,
            expected: 0,
            free: size.into(),
            ids: (0..size).collect(),
            id_first: 0,
            id_count: 0,
            id_published: 0,
            chains: vec![Outstanding::default(); size.into()].into(),
            batch: (0, 0),
        })
    }

    /// Index into `ids` of the `nth` from the first.
    #[inline(always)]
    fn place(&self, nth: u32) -> usize {
        let (place, size) = (self.id_first + nth, u32::from(self.size));
        (if place >= size { place - size } else { place }) as usize
    }

    /// True if the device used the next descriptor that it has to.
    #[inline(always)]
    fn is_used(&self) -> bool {
        // The device stores 64 bits here.
        let flags = (self.areas.desc.read_u64(field(self.used.slot(), LEN)) >> 48) as u16;
        self.id_published > 0 && flags & F_BOTH == used(self.used.wrap())
    }

    /// Asks for the lines of as many descriptors as were collected last, if there are any: under load there are as many
    /// again. They will be written next.
    #[inline(always)]
    fn prefetch(&self) {
        if self.expected == 0 || !self.is_used() {
            return;
        }
        let (slot, most) = (self.used.slot(), self.size - self.used.slot());
        for slot in (slot..slot + most.min(self.expected as u16)).step_by(LINE).skip(1) {
            self.areas.desc.prefetch_write(field(slot, 0));
        }
    }

    /// Takes the next chain that the device used, if any.
    #[inline(always)]
    fn take(&mut self) -> Result<Option<Completion>, RingFault> {
        if self.batch.0 == 0 {
            if !self.is_used() {
                return Ok(None);
            }
            // Acquire: pairs with the Release before the store of a batch's first flags in `PackedDevice::publish`.
            fence(Ordering::Acquire);
            let word = self.areas.desc.read_u64(field(self.used.slot(), LEN));
            let (id, written) = ((word >> 32) as u16, word as u32);
            if !self.in_order {
                return self.release(id, written).map(Some);
            }
            self.batch = (self.batch_to(id)?, written);
        }
        self.batch.0 -= 1;
        let written = if self.batch.0 == 0 { self.batch.1 } else { 0 };
        let id = self.ids.get(self.place(0)).copied().unwrap_or_default();
        self.release(id, written).map(Some)
    }

    /// virtio 1.3 §2.8.8: one used descriptor may stand for all chains up to the one whose id it has. Returns how many
    /// these are.
    #[inline]
    fn batch_to(&self, id: u16) -> Result<u32, RingFault> {
        let nth = (0..self.id_published).find(|&nth| self.ids.get(self.place(nth)) == Some(&id));
        nth.map(|nth| nth + 1).ok_or(RingFault::UsedId)
    }

    /// The id of the next chain.
    #[inline(always)]
    fn next_id(&self) -> u16 {
        // As many ids as slots, and no chain without a slot: one is free.
        self.ids.get(self.place(self.id_count)).copied().unwrap_or_default()
    }

    /// Notes the chain of an id, whose slots are filled.
    #[inline(always)]
    fn note(&mut self, id: u16, added: Outstanding) {
        if let Some(chain) = self.chains.get_mut(usize::from(id)) {
            *chain = added;
        }
        self.id_count += 1;
        self.free -= u32::from(added.slots);
        self.pending += u32::from(added.slots);
    }

    /// Fills the next slot, with NEXT in `more` if the chain goes on, INDIRECT if the buffer is a table. Returns the bytes that the device may write.
    #[inline(always)]
    fn fill(&mut self, buffer: &DriverBuffer, id: u16, more: u16) -> u32 {
        let (write, writable) = if buffer.writable { (F_WRITE, buffer.len) } else { (0, 0) };
        let flags = available(self.avail.wrap()) | more | write;
        let slot = self.avail.slot();
        self.areas.desc.write_u64(field(slot, ADDR), buffer.gpa);
        if self.held.is_some() {
            let word = u64::from(buffer.len) | u64::from(id) << 32 | u64::from(flags) << 48;
            self.areas.desc.write_u64(field(slot, LEN), word);
        } else {
            self.areas.desc.write_u32(field(slot, LEN), buffer.len);
            self.areas.desc.write_u16(field(slot, ID), id);
            self.held = Some((slot, flags));
        }
        self.avail.advance(1, self.size);
        writable
    }

    fn fill_chain(&mut self, buffers: &[DriverBuffer], id: u16) -> u32 {
        (1..).zip(buffers).fold(0u32, |writable, (nth, buffer)| {
            let more = if nth < buffers.len() { F_NEXT } else { 0 };
            writable.saturating_add(self.fill(buffer, id, more))
        })
    }

    /// Gives back the slots and the id of a chain; `id` is a claim.
    #[inline(always)]
    fn release(&mut self, id: u16, written: u32) -> Result<Completion, RingFault> {
        let chain = self.chains.get_mut(usize::from(id)).ok_or(RingFault::UsedId)?;
        let Outstanding { token, writable, slots } = std::mem::take(chain);
        if slots == 0 {
            return Err(RingFault::UsedId);
        }
        let place = self.place(0);
        if let Some(place) = self.ids.get_mut(place) {
            *place = id;
        }
        self.id_first = self.place(1) as u32;
        self.id_count -= 1;
        self.id_published -= 1;
        self.free += u32::from(slots);
        self.used.advance(slots, self.size);
        Ok(Completion { token, written: written.min(writable) })
    }
}

impl<W: Words> DriverRing for PackedDriver<W> {
    fn free_slots(&self) -> usize {
        self.free as usize
    }

    #[inline]
    fn add(&mut self, buffers: &[DriverBuffer], token: u32) -> Result<(), RingFull> {
        if buffers.is_empty() || buffers.len() > self.free as usize {
            return Err(RingFull);
        }
        let id = self.next_id();
        let writable = match buffers {
            [buffer] => self.fill(buffer, id, 0),
            _ => self.fill_chain(buffers, id),
        };
        self.note(id, Outstanding { token, writable, slots: buffers.len() as u16 });
        Ok(())
    }

    fn add_indirect(&mut self, table: &IndirectTable, token: u32) -> Result<(), RingFull> {
        if self.free == 0 {
            return Err(RingFull);
        }
        let IndirectTable { gpa, len, writable } = *table;
        let id = self.next_id();
        self.fill(&DriverBuffer { gpa, len, writable: false }, id, F_INDIRECT);
        self.note(id, Outstanding { token, writable, slots: 1 });
        Ok(())
    }

    fn publish(&mut self) -> bool {
        let Some((slot, flags)) = self.held.take() else { return false };
        // Release: pairs with the Acquire after the load of the flags in `PackedDevice::peek`: descriptors, and the
        // flags of all others in the batch, are visible before the first one's flags (virtio 1.3 §2.8.21).
        fence(Ordering::Release);
        self.areas.desc.write_u16(field(slot, FLAGS), flags);
        let slots = std::mem::take(&mut self.pending) as u16;
        self.id_published = self.id_count;
        // Full: pairs with the full fence in `PackedDevice::enable_kicks`. Either this side sees the device's wish to
        // be kicked, or the device, looking once more after it wished, sees the flags just stored.
        fence(Ordering::SeqCst);
        let asked = Suppression(self.areas.device.read_u32(0));
        match asked.event() {
            Some(event) if self.event_idx => passed(event, self.avail, slots, self.size),
            _ => !asked.is_disable(),
        }
    }

    fn collect(&mut self, into: &mut [Completion]) -> Result<usize, RingFault> {
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        let mut count = 0;
        self.prefetch();
        for completion in into {
            match self.take() {
                Ok(Some(taken)) => *completion = taken,
                Ok(None) => break,
                Err(fault) => {
                    self.fault = Some(fault);
                    return if count > 0 { Ok(count) } else { Err(fault) };
                }
            }
            count += 1;
        }
        self.expected = count as u32;
        Ok(count)
    }

    fn enable_calls(&mut self) -> bool {
        let wish = if self.event_idx { Suppression::at(self.used) } else { Suppression::ENABLE };
        self.areas.driver.write_u32(0, wish.0);
        // Full: pairs with the full fence in `PackedDevice::publish` (`wants_call`).
        fence(Ordering::SeqCst);
        self.fault.is_none() && (self.batch.0 > 0 || self.is_used())
    }

    fn disable_calls(&mut self) {
        self.areas.driver.write_u32(0, Suppression::DISABLE.0);
    }
}

/// Descriptors in a cache line.
const LINE: usize = 4;
