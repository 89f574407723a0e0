//! The device's side of a packed virtqueue.
//!
//! ```text
//!   published        completed         avail
//!       |--- shadow ----|--- in flight ---|--- available ...        (slots of the ring, each with its wrap counter)
//!       |----- `in_flight`, at most N ----|
//! ```
//!
//! Owned by one pump and used from one thread at a time; the driver on the other side is hostile.

use std::sync::Arc;

use crate::chain::{Burst, Chain, MAX_CHAIN, Put, Single};
use crate::features::Features;
use crate::guest::GuestMap;
use crate::layout::Areas;
use crate::packed::{ADDR, Cursor, F_BOTH, FLAGS, ID, LEN, Suppression, available, field, passed, used};
use crate::position::Position;
use crate::queue::{DeviceRing, Format, QueueConfig, RingFault, SetupError};
use crate::sync::{Ordering, fence};
use crate::track::{Descriptor, InOrder, Track};
use crate::walk::{F_INDIRECT, F_NEXT, F_WRITE, Gather, Stop};
use crate::words::{RawWords, Words};

/// The device's side of a running packed virtqueue.
///
/// The first publication after a start asks for a notification whatever descriptor the driver waits for: a predecessor
/// may have died between publishing and notifying.
#[derive(Debug)]
pub struct PackedDevice<W: Words = RawWords, T: Track = InOrder> {
    areas: Areas<W>,
    /// Keeps the memory of areas and buffers.
    map: Arc<GuestMap>,
    size: u16,
    indirect: bool,
    event_idx: bool,
    skip_used: bool,
    /// Returned by every peek once it was returned by one.
    fault: Option<RingFault>,

    /// Next descriptor to consume.
    avail: Cursor,
    /// Slots last peeked and not consumed.
    peeked: u32,
    /// Slots that the last burst had.
    expected: u32,
    /// Slots consumed and not published.
    in_flight: u32,

    /// Where the first entry of `shadow` belongs.
    completed: Cursor,
    /// Slots before it that were written and not published.
    pending: u32,
    /// Completed chains not yet in the ring: written there in one run, so that their lines are taken from the driver
    /// once.
    shadow: [Used; SHADOW],
    shadow_len: usize,
    /// The first descriptor of the batch, which is written last: its slot and its length, id and flags.
    held: Option<(u16, u64)>,

    /// What the driver sees: all before it was used.
    published: Cursor,
    /// A publication since the start asked for its notification by descriptor, so that the next one can rely on it.
    event_known: bool,
    /// Slots of the first lap since the start that are not yet published: among them may be such that others completed.
    first_lap: u16,
    /// More chains that others completed may be ahead than were passed over in one turn.
    is_passing: bool,
    /// Chains that a predecessor took, which come before all others.
    again: Again,
    track: T,
}

/// Chains that a predecessor took and did not complete, in order: their places in the ring may have others' words by now.
#[derive(Debug, Default)]
pub(crate) struct Again {
    pub(crate) chains: Vec<Retaken>,
    /// Of all of them, one chain behind the other.
    pub(crate) descriptors: Vec<Descriptor>,
    /// Chains that were consumed.
    done: usize,
}

/// One of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Retaken {
    pub(crate) id: u16,
    /// Its first descriptor among those of all.
    pub(crate) first: usize,
    /// Its descriptors.
    pub(crate) slots: u16,
}

impl Again {
    fn left(&self) -> &[Retaken] {
        self.chains.get(self.done..).unwrap_or_default()
    }
}

/// The head of a chain, read once: its address, and length, id and flags in one word.
struct Head {
    addr: u64,
    word: u64,
}

impl Head {
    /// The chain, if it is this one descriptor in a ring of `size`.
    #[inline(always)]
    fn single(&self, size: u16) -> Option<Single> {
        let (len, id, flags) = (self.word as u32, (self.word >> 32) as u16, (self.word >> 48) as u16);
        let is_single = flags & (F_NEXT | F_INDIRECT) == 0 && id < size;
        is_single.then_some(Single { id, gpa: self.addr, len, write: flags & F_WRITE != 0 })
    }
}

/// A used descriptor to be written.
#[derive(Debug, Clone, Copy)]
struct Used {
    written: u32,
    id: u16,
    /// Slots that it stands for.
    slots: u16,
}

/// A row of chains that others completed, as far as it was not gone over.
#[derive(Debug, Clone, Copy)]
struct Others {
    /// The next one.
    at: Cursor,
    /// Slots that the row may still have.
    left: u16,
    /// Whether the descriptor there is used, if it was looked at already.
    is_used: Option<bool>,
}

impl QueueConfig {
    /// Starts a packed ring from `self.position`'s used position: buffers that a predecessor took but did not complete
    /// are taken anew (completion is in ring order).
    pub fn activate_packed(self) -> Result<PackedDevice, SetupError> {
        let areas = self.resolve(Format::Packed)?;
        PackedDevice::over(self, areas)
    }

    /// Gives back empty what a predecessor died in the midst of giving back: a chain that is still available, and the used
    /// ones behind it, which the driver sees with it. For receive rings whose frames may take several chains, before a
    /// successor is activated: it would put another frame where one began whose rest is in the ring already.
    ///
    /// A driver counts an empty buffer as a frame too short and uses it again. A ring that cannot be activated is left as
    /// it is.
    pub fn give_back_torn(&mut self) {
        let Ok(mut device) = self.clone().activate_packed() else { return };
        device.give_back_torn();
        self.position = device.position();
    }
}

impl<W: Words> PackedDevice<W> {
    /// Starts a ring over `areas`, whatever addresses `config` claims: [`QueueConfig::activate_packed`] for other
    /// kinds of memory.
    pub fn over(config: QueueConfig, areas: Areas<W>) -> Result<PackedDevice<W>, SetupError> {
        let track = InOrder::new(config.keeper.clone());
        PackedDevice::tracked(config, areas, track)
    }
}

impl<W: Words, T: Track> PackedDevice<W, T> {
    /// The same, with its chains followed by `track`.
    pub fn tracked(config: QueueConfig, areas: Areas<W>, track: T) -> Result<PackedDevice<W, T>, SetupError> {
        areas.check(Format::Packed, config.size)?;
        let size = config.size.get();
        let Position { avail_idx, used_idx, used_wrap, .. } = config.position;
        if avail_idx >= size || used_idx >= size {
            return Err(SetupError::Position);
        }
        let start = Cursor::new(used_idx, used_wrap);
        Ok(PackedDevice {
            areas,
            map: config.map,
            size,
            indirect: config.features.contains(Features::INDIRECT_DESC),
            event_idx: config.features.contains(Features::EVENT_IDX),
            skip_used: config.skip_used && T::IN_ORDER && config.features.contains(Features::IN_ORDER),
            fault: None,
            avail: start,
            peeked: 0,
            expected: 0,
            in_flight: 0,
            completed: start,
            pending: 0,
            shadow: [Used { written: 0, id: 0, slots: 0 }; SHADOW],
            shadow_len: 0,
            held: None,
            published: start,
            event_known: false,
            first_lap: size,
            is_passing: false,
            again: Again::default(),
            track,
        })
    }

    /// The first chains are these, which a predecessor took and its tracker has already. Nothing was peeked yet.
    pub(crate) fn with_taken(mut self, again: Again) -> Self {
        self.again = again;
        self
    }

    /// Chains that a predecessor had and that were not consumed yet: they come first.
    pub fn taken_before(&self) -> usize {
        self.again.left().len()
    }

    /// Adds chains that a predecessor took, up to `most` in all. Where the ring is behind them: the place, and the slots
    /// that are left.
    #[cold]
    fn add_again(
        &self,
        burst: &mut Burst,
        most: usize,
        mut at: Cursor,
        mut room: u16,
    ) -> Result<(Cursor, u16), RingFault> {
        for chain in self.again.left().iter().take(most) {
            if chain.slots > room {
                return Err(RingFault::ChainLength);
            }
            match self.gather(burst, chain) {
                Ok(()) => {
                    at.advance(chain.slots, self.size);
                    room -= chain.slots;
                }
                Err(Stop::Fault(fault)) if burst.len() == 0 => return Err(fault),
                Err(_) => break,
            }
        }
        Ok((at, room))
    }

    fn gather(&self, burst: &mut Burst, chain: &Retaken) -> Result<(), Stop> {
        let mut gather = Gather::new(burst);
        let end = chain.first + usize::from(chain.slots);
        for Descriptor { addr, len, flags } in
            self.again.descriptors.get(chain.first..end).unwrap_or_default()
        {
            if flags & F_INDIRECT == 0 {
                gather.add(*addr, *len, flags & F_WRITE != 0)?;
            } else if self.indirect && flags & F_NEXT == 0 {
                gather.add_plain_table(*addr, *len)?;
            } else {
                return Err(RingFault::Indirect.into());
            }
        }
        gather.finish(chain.id, chain.slots)
    }

    /// Adds available chains of one descriptor in a known region, up to `count` from `at` on: what a ring mostly
    /// consists of. Moves `at` behind them; returns how many, and the first available descriptor that is not such a
    /// chain.
    #[inline(always)]
    fn add_singles(&self, burst: &mut Burst, at: &mut Cursor, count: u16) -> (u16, Option<Head>) {
        // To the end of the ring, so that all have one wrap counter.
        let end = at.slot() + count.min(self.size - at.slot());
        let (done, other) = burst.put_singles(at.slot()..end, |slot| {
            let flags = self.areas.desc.read_u16(field(slot, FLAGS));
            if flags & F_BOTH != available(at.wrap()) {
                return None;
            }
            // Acquire: pairs with the Release before the store of a batch's first flags in `PackedDriver::publish`
            // (virtio 1.3 §2.8.21.1); the rest of the descriptor, and of its chain, is read after it.
            fence(Ordering::Acquire);
            let addr = self.areas.desc.read_u64(field(slot, ADDR));
            // The upper 16 bits are the flags once more: not used, those that were read before are.
            let word = self.areas.desc.read_u64(field(slot, LEN));
            let head = Head { addr, word: u64::from(flags) << 48 | word & LEN_AND_ID };
            Some((head.single(self.size), head))
        });
        at.advance(done, self.size);
        (done, other)
    }

    /// Adds any chain; `at` is its head's place, `room` the slots it may take. Returns those that it takes.
    #[inline(never)]
    fn add(&self, burst: &mut Burst, at: Cursor, head: Head, room: u16) -> Result<u16, Stop> {
        match head.single(self.size).map_or(Put::Elsewhere, |single| burst.put_single(&single)) {
            Put::Done => Ok(1),
            Put::Full => Err(Stop::Full),
            Put::Elsewhere => self.add_chain(burst, at, head, room),
        }
    }

    /// Adds a chain of several descriptors, an indirect one, or one whose buffer crosses regions.
    fn add_chain(&self, burst: &mut Burst, mut at: Cursor, head: Head, room: u16) -> Result<u16, Stop> {
        let Head { mut addr, mut word } = head;
        let mut gather = Gather::new(burst);
        let mut slots = 1;
        loop {
            let (len, id, flags) = (word as u32, (word >> 32) as u16, (word >> 48) as u16);
            if flags & F_INDIRECT != 0 {
                // virtio 1.3 §2.8.19: not without the feature, and not together with NEXT.
                if !self.indirect || flags & F_NEXT != 0 {
                    return Err(RingFault::Indirect.into());
                }
                gather.add_plain_table(addr, len)?;
            } else {
                gather.add(addr, len, flags & F_WRITE != 0)?;
            }
            if flags & F_NEXT == 0 {
                // virtio 1.3 §2.8.6: the id is that of the last descriptor in the chain.
                if id >= self.size {
                    return Err(RingFault::BufferId.into());
                }
                return gather.finish(id, slots).map(|()| slots);
            }
            // The driver made the head's flags visible last (virtio 1.3 §2.8.21), so the rest needs no look at its
            // AVAIL bits; a chain that runs into slots that the device still has is not one.
            if slots == room {
                return Err(RingFault::ChainLength.into());
            }
            slots += 1;
            at.advance(1, self.size);
            addr = self.areas.desc.read_u64(field(at.slot(), ADDR));
            word = self.areas.desc.read_u64(field(at.slot(), LEN));
        }
    }

    /// Has `track` follow what is consumed, but for what it followed before.
    fn take(&mut self, chains: &[Chain]) {
        let again = self.again.left().len().min(chains.len());
        self.again.done += again;
        let mut at = self.avail;
        for (nth, chain) in chains.iter().enumerate() {
            if nth >= again {
                let slots = (0..chain.slots).map(|nth| descriptor(&self.areas.desc, at, nth, self.size));
                if !self.track.taken(chain.id, slots) {
                    self.fault = Some(RingFault::Twice);
                }
            }
            at.advance(chain.slots.min(self.size), self.size);
        }
    }

    /// Writes what is in the shadow into the ring, but for the batch's first descriptor.
    fn flush(&mut self) {
        for entry in self.shadow.get(..self.shadow_len).unwrap_or_default() {
            // No more than were consumed, whatever was completed.
            if u32::from(entry.slots) > self.in_flight - self.pending {
                debug_assert!(false, "completed what was not consumed");
                break;
            }
            self.pending += u32::from(entry.slots);
            // virtio 1.3 §2.8.4: WRITE in a used descriptor says that its length is valid.
            let flags = used(self.completed.wrap()) | if entry.written > 0 { F_WRITE } else { 0 };
            let word = u64::from(entry.written) | u64::from(entry.id) << 32 | u64::from(flags) << 48;
            if self.held.is_none() {
                self.held = Some((self.completed.slot(), word));
            } else {
                self.areas.desc.write_u64(field(self.completed.slot(), LEN), word);
            }
            self.completed.advance(entry.slots, self.size);
        }
        self.shadow_len = 0;
    }

    /// virtio 1.3 §2.8.8: in order, one used descriptor, with the id of the last buffer, stands for a batch.
    #[inline]
    fn extend_run(&mut self, chain: &Chain, written: u32) -> bool {
        match self.shadow.get_mut(self.shadow_len.wrapping_sub(1)) {
            Some(last) if last.written == 0 && written == 0 => {
                (last.id, last.slots) = (chain.id, last.slots.saturating_add(chain.slots));
                true
            }
            _ => false,
        }
    }

    /// True if the driver asked to be told of the `slots` slots just published.
    #[inline]
    fn wants_call(&mut self, slots: u16) -> bool {
        // Full: pairs with the full fence in `PackedDriver::enable_calls`. Either this side sees the driver's wish
        // to be told, or the driver, looking once more after it wished, sees the flags stored before.
        fence(Ordering::SeqCst);
        let asked = Suppression(self.areas.driver.read_u32(0));
        match asked.event() {
            Some(event) if self.event_idx => {
                !std::mem::replace(&mut self.event_known, true)
                    || passed(event, self.published, slots, self.size)
            }
            _ => !asked.is_disable(),
        }
    }

    /// Asks for as many descriptors as the last burst had: under load there are as many again; without it, lines that
    /// the driver is about to write are left alone.
    #[inline(always)]
    fn prefetch(&self) {
        let end = self.avail.slot() + (self.expected as u16).min(self.size - self.avail.slot());
        for slot in (self.avail.slot()..end).step_by(LINE) {
            self.areas.desc.prefetch_read(field(slot, 0));
        }
    }

    #[inline(always)]
    fn is_available(&self, at: Cursor) -> bool {
        self.areas.desc.read_u16(field(at.slot(), FLAGS)) & F_BOTH == available(at.wrap())
    }

    #[inline(always)]
    fn is_used(&self, at: Cursor) -> bool {
        self.areas.desc.read_u16(field(at.slot(), FLAGS)) & F_BOTH == used(at.wrap())
    }

    /// Goes over the chains ahead that another device completed; nothing is in flight. While its back-end is away, a VMM
    /// may take what the guest sends itself: QEMU drops it. It does so where it believes the ring to stand, which for a
    /// packed ring whose back-end did not say so is where it was set up: anywhere ahead of the true position. The driver
    /// comes upon those chains as used ones, in their turn.
    #[cold]
    fn pass_over(&mut self) {
        let mut others = Others { at: self.avail, left: self.size, is_used: None };
        // Once round at most in all, and in pieces: a guest may go on marking them.
        self.is_passing = false;
        while let Some(chain) = self.next_other(&mut others) {
            self.avail.advance(chain.slots, self.size);
            if self.size - others.left >= MOST_PASSED {
                self.is_passing = true;
                break;
            }
        }
        if self.avail != self.published {
            (self.completed, self.published) = (self.avail, self.avail);
            self.track.moved(self.position());
        }
    }

    /// Takes the chains right behind the burst that others completed into it: once the driver sees the burst, it sees them
    /// too, and may make their slots available again before the next look at them.
    #[cold]
    fn publish_more(&mut self) {
        if self.avail == self.completed {
            let left = self.size - (self.in_flight as u16).min(self.size);
            let mut others = Others { at: self.avail, left, is_used: None };
            while let Some(chain) = self.next_other(&mut others) {
                self.in_flight += u32::from(chain.slots);
                self.pending += u32::from(chain.slots);
                self.avail.advance(chain.slots, self.size);
                self.completed.advance(chain.slots, self.size);
            }
        }
        self.first_lap = self.first_lap.saturating_sub(self.pending as u16);
    }

    /// The next of a row of chains that others completed, which `others` goes behind. Of a chain of several descriptors only
    /// the first is marked, with the id that the last one has.
    ///
    /// What a row reads is bounded by what it goes over and one chain: a descriptor that was found available on the way to
    /// the end of a chain and does not belong to it ends the row, whatever it is by then.
    fn next_other(&self, others: &mut Others) -> Option<Used> {
        let Others { at: head, left, is_used } = *others;
        *others = Others { left: 0, ..*others };
        if left == 0 || !is_used.unwrap_or_else(|| self.is_used(head)) {
            return None;
        }
        // As for what is available.
        fence(Ordering::Acquire);
        // A zeroed descriptor looks used in laps whose wrap counter is 0, and is nobody's.
        if self.areas.desc.read_u64(field(head.slot(), ADDR)) == 0 {
            return None;
        }
        let id = self.areas.desc.read_u16(field(head.slot(), ID));
        if id >= self.size {
            return None;
        }
        let most = left.min(MAX_CHAIN as u16);
        let (mut slots, mut seen, mut at, mut is_next_used) = (1, 1, head, None);
        while seen < most {
            at.advance(1, self.size);
            let flags = self.areas.desc.read_u16(field(at.slot(), FLAGS)) & F_BOTH;
            if flags != available(at.wrap()) {
                is_next_used = Some(flags == used(at.wrap()));
                break;
            }
            fence(Ordering::Acquire);
            seen += 1;
            if self.areas.desc.read_u16(field(at.slot(), ID)) == id {
                slots = seen;
            }
        }
        if slots == seen {
            others.at.advance(slots, self.size);
            (others.left, others.is_used) = (left - slots, is_next_used);
        }
        Some(Used { written: 0, id, slots })
    }

    /// See [`QueueConfig::give_back_torn`].
    fn give_back_torn(&mut self) {
        if !self.is_available(self.avail) {
            return;
        }
        let Some(first) = self.available_chain() else { return };
        let mut others = Others { at: self.avail, left: self.size - first.slots, is_used: None };
        others.at.advance(first.slots, self.size);
        let mut torn = self.next_other(&mut others);
        if torn.is_none() {
            return;
        }
        self.give_back(first);
        while let Some(chain) = torn {
            self.give_back(chain);
            torn = self.next_other(&mut others);
        }
        self.publish();
    }

    /// The available chain at the position, as it is to be given back empty; None if it is none.
    fn available_chain(&self) -> Option<Used> {
        let mut at = self.avail;
        for slots in 1..=self.size.min(MAX_CHAIN as u16) {
            let word = self.areas.desc.read_u64(field(at.slot(), LEN));
            if (word >> 48) as u16 & F_NEXT == 0 {
                // No driver has a chain of another number.
                let id = (word >> 32) as u16;
                return (id < self.size).then_some(Used { written: 0, id, slots });
            }
            at.advance(1, self.size);
        }
        None
    }

    fn give_back(&mut self, entry: Used) {
        self.track.taken(entry.id, std::iter::empty());
        self.track.completed(entry.id);
        self.in_flight += u32::from(entry.slots);
        self.avail.advance(entry.slots, self.size);
        if self.shadow_len == SHADOW {
            self.flush();
        }
        self.shadow[self.shadow_len % SHADOW] = entry;
        self.shadow_len += 1;
    }

    #[cold]
    fn fail(&mut self, fault: RingFault) -> RingFault {
        // What was read where memory is gone is nobody's word.
        let fault = if self.map.is_poisoned() { RingFault::Poisoned } else { fault };
        self.fault = Some(fault);
        fault
    }
}

impl<W: Words, T: Track> DeviceRing for PackedDevice<W, T> {
    fn peek(&mut self, burst: &mut Burst, max_chains: usize) -> Result<usize, RingFault> {
        burst.begin(&self.map);
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if self.map.is_poisoned() {
            return Err(self.fail(RingFault::Poisoned));
        }
        let max = max_chains.min(Burst::CHAINS);
        let mut at = self.avail;
        let mut room = self.size - self.in_flight as u16;
        let mut max_new = max;
        if !T::IN_ORDER && !self.again.left().is_empty() {
            (at, room) = match self.add_again(burst, max, at, room) {
                Ok(behind) => behind,
                Err(fault) => return Err(self.fail(fault)),
            };
            if burst.len() < self.again.left().len() {
                // The rest of them come before anything else.
                max_new = 0;
            }
        }
        self.prefetch();
        let max = max_new;
        while burst.len() < max && room > 0 {
            let most = room.min((max - burst.len()) as u16);
            let (singles, other) = self.add_singles(burst, &mut at, most);
            room -= singles;
            let head = match other {
                Some(head) => head,
                // All done, or the ring came to its end and goes on at its start.
                None if singles > 0 => continue,
                // None available, or no room.
                None => break,
            };
            match self.add(burst, at, head, room) {
                Ok(slots) => {
                    at.advance(slots, self.size);
                    room -= slots;
                }
                Err(Stop::Fault(fault)) if burst.len() == 0 => return Err(self.fail(fault)),
                Err(_) => break,
            }
        }
        self.peeked = u32::from(self.size) - self.in_flight - u32::from(room);
        self.expected = self.peeked;
        if T::IN_ORDER && burst.len() == 0 && self.in_flight == 0 && self.is_used(self.avail) {
            self.pass_over();
        }
        Ok(burst.len())
    }

    #[inline]
    fn consume(&mut self, chains: &[Chain]) {
        let slots: u32 = chains.iter().map(|chain| u32::from(chain.slots)).sum();
        if !T::IN_ORDER {
            self.take(chains);
        }
        debug_assert!(slots <= self.peeked, "consumes what was not peeked");
        let slots = slots.min(self.peeked);
        self.peeked -= slots;
        self.in_flight += slots;
        self.avail.advance(slots as u16, self.size);
    }

    #[inline]
    fn complete(&mut self, chain: &Chain, written: u32) {
        if !self.skip_used || !self.extend_run(chain, written) {
            if self.shadow_len == SHADOW {
                self.flush();
            }
            self.shadow[self.shadow_len % SHADOW] = Used { written, id: chain.id, slots: chain.slots };
            self.shadow_len += 1;
        }
        self.track.completed(chain.id);
    }

    fn publish(&mut self) -> bool {
        self.flush();
        if self.pending == 0 {
            return false;
        }
        if T::IN_ORDER && self.first_lap > 0 {
            self.publish_more();
        }
        let (with_burst, after) =
            (position(self.completed, self.published), position(self.completed, self.completed));
        let held = self.held.take();
        self.track.publish(with_burst, after, || {
            let Some((slot, word)) = held else { return };
            // Whole or not at all: a successor takes a descriptor that is still available anew, by its length and id.
            // Release: pairs with the Acquire after the load of the flags in `PackedDriver::collect` (virtio 1.3
            // §2.8.22): buffers and the other descriptors of the batch are visible before the first one's flags. So is
            // the word that was kept, to a successor.
            self.areas.desc.write_release_u64(field(slot, LEN), word);
        });
        let slots = std::mem::take(&mut self.pending);
        self.in_flight -= slots;
        self.published = self.completed;
        self.wants_call(slots as u16)
    }

    fn enable_kicks(&mut self) -> bool {
        let wish = if self.event_idx { Suppression::at(self.avail) } else { Suppression::ENABLE };
        self.areas.device.write_u32(0, wish.0);
        // Full: pairs with the full fence in `PackedDriver::publish`. Either the driver sees the wish just written and
        // kicks, or its descriptor is seen here.
        fence(Ordering::SeqCst);
        self.has_available()
    }

    fn disable_kicks(&mut self) {
        self.areas.device.write_u32(0, Suppression::DISABLE.0);
    }

    fn has_available(&mut self) -> bool {
        self.fault.is_none()
            && self.in_flight < u32::from(self.size)
            && (!T::IN_ORDER && !self.again.left().is_empty()
                || self.is_available(self.avail)
                || self.is_passing && self.is_used(self.avail))
    }

    /// The position from which a successor has to go on: what was consumed but not published counts as not taken.
    fn position(&self) -> Position {
        position(self.published, self.published)
    }
}

/// Descriptor `nth` of a chain at `at`, below `size`, as the ring has it now.
#[inline]
fn descriptor(ring: &impl Words, mut at: Cursor, nth: u16, size: u16) -> Descriptor {
    at.advance(nth, size);
    let addr = ring.read_u64(field(at.slot(), ADDR));
    let word = ring.read_u64(field(at.slot(), LEN));
    Descriptor { addr, len: word as u32, flags: (word >> 48) as u16 }
}

#[inline(always)]
fn position(avail: Cursor, used: Cursor) -> Position {
    let (avail_idx, avail_wrap) = (avail.slot(), avail.wrap());
    Position { avail_idx, avail_wrap, used_idx: used.slot(), used_wrap: used.wrap() }
}

/// Used descriptors held back at most; more are written to the ring early.
const SHADOW: usize = Burst::CHAINS;
/// Slots of chains that others completed which are passed over in one turn, but for the rest of the last chain.
const MOST_PASSED: u16 = 4096;
/// Descriptors in a cache line.
const LINE: usize = 4;
/// Length and id in the upper half of a descriptor.
const LEN_AND_ID: u64 = (1 << 48) - 1;

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
