//! The device's side of a split virtqueue.
//!
//! ```text
//!   used_published    used_next             avail_next        avail_seen    (free-running 16-bit indexes)
//!         |--- written ---|--- shadow, consumed ---|--- available ---|
//!         |---------------- at most N, by invariant -----------------|
//! ```
//!
//! Owned by one pump and used from one thread at a time; the driver on the other side is hostile. What the device
//! wrote itself (used index, flags, events) is never read back.

use std::sync::Arc;

use crate::chain::{Burst, Chain, MAX_CHAIN, Put, Single};
use crate::features::Features;
use crate::guest::GuestMap;
use crate::layout::Areas;
use crate::position::Position;
use crate::queue::{DeviceRing, Format, QueueConfig, RingFault, SetupError, need_event};
use crate::split::{F_NO_NOTIFICATION, FLAGS, IDX, Index, avail_at, desc_at, used_at};
use crate::sync::{Ordering, fence};
use crate::track::{InOrder, Track};
use crate::walk::{F_INDIRECT, F_NEXT, F_WRITE, Gather, Stop};
use crate::words::{RawWords, Words};

/// The device's side of a running split virtqueue.
///
/// The first publication after a start always asks for a notification (if EVENT_IDX was negotiated): a predecessor may
/// have died between publishing and notifying.
#[derive(Debug)]
pub struct SplitDevice<W: Words = RawWords, T: Track = InOrder> {
    areas: Areas<W>,
    /// Keeps the memory of areas and buffers.
    map: Arc<GuestMap>,
    size: u16,
    /// Size minus 1.
    mask: u16,
    indirect: bool,
    event_idx: bool,
    skip_used: bool,
    /// Returned by every peek once it was returned by one.
    fault: Option<RingFault>,

    /// Next available entry to consume.
    avail_next: Index,
    /// The driver's index when it was last read: cached, so that a backlog is worked off without touching its line.
    avail_seen: Index,
    /// Up to here, from `avail_next` on, the entries are in `heads`.
    heads_read: Index,
    /// Available entries read ahead, by their index modulo the array's length. Each entry is read once.
    heads: [u16; HEADS],
    /// The first entries from where the ring starts, whatever the available ring has there.
    first: Box<[u16]>,
    /// Of those, the last so many are not in `heads` yet.
    first_left: u16,
    /// Entries that a predecessor took and that `track` has already: they come first, and were not consumed yet.
    again: u16,

    /// Next used entry to write: those in `shadow` come after it.
    used_next: Index,
    /// The used index that the driver sees.
    used_published: Index,
    /// Completed entries not yet in the ring: written there in one run, so that their lines are taken from the driver
    /// once.
    shadow: [u64; SHADOW],
    shadow_len: usize,
    /// With `skip_used`: the last chain of a run that one used entry will complete, and the chains in it.
    run: (u32, u32),

    /// The event index that asks for kicks, as last written.
    kick_event: Index,
    kicks: bool,
    /// A publication since the start asked for its notification by event index, so that the next one can rely on it.
    event_known: bool,
    track: T,
}

/// The head of a chain, read once: its index, its address, and the other three fields in one word.
struct Head {
    id: u16,
    addr: u64,
    word: u64,
}

impl Head {
    /// The chain is this one descriptor.
    #[inline(always)]
    fn is_single(&self) -> bool {
        (self.word >> 32) as u16 & (F_NEXT | F_INDIRECT) == 0
    }

    /// That chain.
    #[inline(always)]
    fn single(&self) -> Option<Single> {
        let (len, flags) = (self.word as u32, (self.word >> 32) as u16);
        self.is_single().then_some(Single { id: self.id, gpa: self.addr, len, write: flags & F_WRITE != 0 })
    }
}

impl QueueConfig {
    /// Starts a split ring from `self.position`'s used index: buffers that a predecessor took but did not complete are
    /// taken anew (completion is in ring order).
    pub fn activate_split(self) -> Result<SplitDevice, SetupError> {
        let areas = self.resolve(Format::Split)?;
        SplitDevice::over(self, areas)
    }
}

impl<W: Words> SplitDevice<W> {
    /// Starts a ring over `areas`, whatever addresses `config` claims: [`QueueConfig::activate_split`] for other kinds
    /// of memory.
    pub fn over(config: QueueConfig, areas: Areas<W>) -> Result<SplitDevice<W>, SetupError> {
        let track = InOrder::new(config.keeper.clone());
        SplitDevice::tracked(config, areas, track)
    }
}

impl<W: Words, T: Track> SplitDevice<W, T> {
    /// The same, with its chains followed by `track`.
    pub fn tracked(config: QueueConfig, areas: Areas<W>, track: T) -> Result<SplitDevice<W, T>, SetupError> {
        areas.check(Format::Split, config.size)?;
        let size = config.size.get();
        let start = Index::new(config.position.used_idx);
        Ok(SplitDevice {
            areas,
            map: config.map,
            size,
            mask: size - 1,
            indirect: config.features.contains(Features::INDIRECT_DESC),
            event_idx: config.features.contains(Features::EVENT_IDX),
            skip_used: config.skip_used && T::IN_ORDER && config.features.contains(Features::IN_ORDER),
            fault: None,
            avail_next: start,
            avail_seen: start,
            heads_read: start,
            heads: [0; HEADS],
            first: Box::default(),
            first_left: 0,
            again: 0,
            used_next: start,
            used_published: start,
            shadow: [0; SHADOW],
            shadow_len: 0,
            run: (0, 0),
            kick_event: Index::new(0),
            kicks: true,
            event_known: false,
            track,
        })
    }

    /// The first entries from where it starts are these, whatever stands there in the available ring: see
    /// [`crate::resume::outstanding`] and [`crate::inflight`]. Nothing was peeked yet.
    ///
    /// # Errors
    /// More than the ring has.
    pub fn with_first(mut self, heads: &[u16]) -> Result<Self, SetupError> {
        if heads.len() > self.size.into() {
            return Err(SetupError::Position);
        }
        self.first = heads.into();
        self.first_left = heads.len() as u16;
        Ok(self)
    }

    /// The same of entries that a predecessor took, and that its tracker has already.
    pub(crate) fn with_taken(self, heads: &[u16]) -> Result<Self, SetupError> {
        let mut this = self.with_first(heads)?;
        this.again = this.first_left;
        Ok(this)
    }

    /// Chains that a predecessor had and that were not consumed yet: they come first.
    pub fn taken_before(&self) -> usize {
        self.again.into()
    }

    /// Looks at the driver's index: how many entries are available.
    #[inline]
    fn look(&mut self) -> Result<u16, RingFault> {
        let seen = Index::new(self.areas.driver.read_u16(IDX));
        let ready = seen.since(self.avail_next);
        // virtio 1.3 §2.7.13.1: no more chains than descriptors; those consumed and not yet returned count.
        if ready > self.size - self.avail_next.since(self.used_published) {
            return Err(self.fail(RingFault::AvailIndex));
        }
        // Acquire: pairs with the Release before the store of avail.idx in `SplitDriver::publish` (virtio 1.3
        // §2.7.13.3); entries and descriptors up to `seen` are read after it.
        fence(Ordering::Acquire);
        self.avail_seen = seen;
        Ok(ready)
    }

    /// Reads heads ahead, up to `ahead` beyond `avail_next`, and asks for their descriptors.
    #[inline(always)]
    fn read_heads(&mut self, ahead: u16) {
        // What was read ahead before may reach further.
        let have = self.heads_read.since(self.avail_next);
        let mut left = ahead.saturating_sub(have);
        let mut index = self.heads_read.get();
        let (from, count) = (index, left);
        self.heads_read.advance(left);
        while left > 0 {
            // A run that wraps neither in the ring nor in `heads`.
            let (slot, place) = (index & self.mask, index % HEADS as u16);
            let run = left.min(self.size - slot).min(HEADS as u16 - place);
            let heads = self.heads.get_mut(usize::from(place)..usize::from(place + run)).unwrap_or_default();
            for (nth, place) in heads.iter_mut().enumerate() {
                let head = self.areas.driver.read_u16(avail_at(slot) + 2 * nth);
                self.areas.desc.prefetch_read(desc_at(head & self.mask));
                *place = head;
            }
            index = index.wrapping_add(run);
            left -= run;
        }
        if self.first_left > 0 {
            self.put_first(from, count);
        }
    }

    /// Puts the first entries where others were read: `count` at most, from `from` on.
    #[cold]
    fn put_first(&mut self, from: u16, count: u16) {
        let left = self.first.get(self.first.len() - usize::from(self.first_left)..).unwrap_or_default();
        let count = count.min(self.first_left);
        for (nth, head) in (0..count).zip(left) {
            self.heads[usize::from(from.wrapping_add(nth)) % HEADS] = *head;
        }
        self.first_left -= count;
    }

    /// Adds chains of one descriptor in a known region, up to `count` from the one at `from` on: what a ring mostly
    /// consists of. Returns how many, and the head and descriptor of the first that is not such a chain.
    #[inline(always)]
    fn add_singles(&self, burst: &mut Burst, from: u16, count: u16) -> (u16, Option<Head>) {
        let place = usize::from(from) % HEADS;
        let end = (place + usize::from(count)).min(HEADS);
        let heads = self.heads.get(place..end).unwrap_or_default();
        burst.put_singles(heads.iter(), |&id| {
            if id >= self.size {
                return Some((None, Head { id, addr: 0, word: 0 }));
            }
            let addr = self.areas.desc.read_u64(desc_at(id));
            let word = self.areas.desc.read_u64(desc_at(id) + 8);
            let head = Head { id, addr, word };
            Some((head.single(), head))
        })
    }

    /// Adds any chain, and those behind it for as long as they are no singles either: up to `count`, from the one at
    /// `from` on, whose head was read already. Returns how many, and why the next one could not be added.
    #[inline(always)]
    fn add_run(&self, burst: &mut Burst, mut head: Head, from: u16, count: u16) -> (u16, Result<(), Stop>) {
        let mut done = 0;
        loop {
            let is_single = head.is_single();
            if let Err(stop) = self.add(burst, head) {
                return (done, Err(stop));
            }
            done += 1;
            if is_single || done >= count {
                return (done, Ok(()));
            }
            let id = self.heads[usize::from(from.wrapping_add(done)) % HEADS];
            head = Head { id, addr: 0, word: 0 };
            if id < self.size {
                head.addr = self.areas.desc.read_u64(desc_at(id));
                head.word = self.areas.desc.read_u64(desc_at(id) + 8);
            }
        }
    }

    /// Adds any chain.
    #[inline(never)]
    fn add(&self, burst: &mut Burst, head: Head) -> Result<(), Stop> {
        let Head { id, addr, word } = head;
        if id >= self.size {
            return Err(RingFault::DescIndex.into());
        }
        match head.single().map_or(Put::Elsewhere, |single| burst.put_single(&single)) {
            Put::Done => Ok(()),
            Put::Full => Err(Stop::Full),
            Put::Elsewhere => self.add_chain(burst, id, addr, word),
        }
    }

    /// Adds a chain of several descriptors, an indirect one, or one whose buffer crosses regions. `addr` and `word` are
    /// its first descriptor.
    #[inline(always)]
    fn add_chain(&self, burst: &mut Burst, head: u16, mut addr: u64, mut word: u64) -> Result<(), Stop> {
        let mut gather = Gather::new(burst);
        // A ring of N descriptors has no longer chain without a loop.
        let limit = usize::from(self.size).min(MAX_CHAIN);
        let mut visited = 1;
        loop {
            let (len, flags, next) = (word as u32, (word >> 32) as u16, (word >> 48) as u16);
            if flags & F_INDIRECT != 0 {
                // virtio 1.3 §2.7.5.3.1: not without the feature, and not together with NEXT.
                if !self.indirect || flags & F_NEXT != 0 {
                    return Err(RingFault::Indirect.into());
                }
                gather.add_chained_table(addr, len)?;
                break;
            }
            gather.add(addr, len, flags & F_WRITE != 0)?;
            if flags & F_NEXT == 0 {
                break;
            }
            if next >= self.size {
                return Err(RingFault::DescIndex.into());
            }
            visited += 1;
            if visited > limit {
                return Err(RingFault::ChainLength.into());
            }
            addr = self.areas.desc.read_u64(desc_at(next));
            word = self.areas.desc.read_u64(desc_at(next) + 8);
        }
        gather.finish(head, 1)
    }

    /// Writes the completed entries into the ring, not visible to the driver yet.
    fn flush(&mut self) {
        // No more than were consumed, whatever was completed.
        let most = self.avail_next.since(self.used_next);
        if self.skip_used {
            // virtio 1.3 §2.7.9: a single entry, with the id of the last chain, stands for a batch; it is written at
            // the place of the first one and the index skips the others.
            let (id, chains) = std::mem::take(&mut self.run);
            debug_assert!(chains <= most.into(), "completed what was not consumed");
            if chains > 0 {
                self.areas.device.write_pairs(used_at(self.used_next.get() & self.mask), &[id.into()]);
                self.used_next.advance(chains.min(most.into()) as u16);
            }
        } else {
            debug_assert!(self.shadow_len <= most.into(), "completed what was not consumed");
            let entries = self.shadow.get(..self.shadow_len.min(most.into())).unwrap_or_default();
            let start = self.used_next.get() & self.mask;
            let before_wrap = entries.len().min(usize::from(self.size - start));
            let (here, wrapped) = entries.split_at(before_wrap);
            self.areas.device.write_pairs(used_at(start), here);
            self.areas.device.write_pairs(used_at(0), wrapped);
            self.used_next.advance(entries.len() as u16);
            self.shadow_len = 0;
        }
    }

    /// What [`DeviceRing::complete`] does where it cannot just note the entry.
    #[inline(never)]
    fn complete_slowly(&mut self, id: u16, written: u32) {
        self.flush();
        let entry = used_entry(id, written);
        if !self.skip_used {
            self.shadow[0] = entry;
            self.shadow_len = 1;
        } else if self.used_next != self.avail_next {
            // A length has to be told: this chain gets an entry of its own.
            self.areas.device.write_pairs(used_at(self.used_next.get() & self.mask), &[entry]);
            self.used_next.advance(1);
        }
    }

    /// True if the driver asked to be told of the entries from `old` to `new`.
    #[inline]
    fn wants_call(&mut self, old: u16, new: u16) -> bool {
        // Full: pairs with the full fence in `SplitDriver::enable_calls`. Either this side sees the driver's wish
        // to be told, or the driver, looking once more after it wished, sees the used index stored before.
        fence(Ordering::SeqCst);
        if self.event_idx {
            // virtio 1.3 §2.7.7.2: flags are ignored; one notification when the event index is passed.
            let event = self.areas.driver.read_u16(avail_at(self.size));
            !std::mem::replace(&mut self.event_known, true) || need_event(event, new, old)
        } else {
            self.areas.driver.read_u16(FLAGS) & F_NO_NOTIFICATION == 0
        }
    }

    /// Writes an event index that asks for a kick once entry `event` becomes available.
    #[inline]
    fn write_kick_event(&mut self, event: Index) {
        self.areas.device.write_u16(used_at(self.size), event.get());
        self.kick_event = event;
    }

    #[cold]
    fn fail(&mut self, fault: RingFault) -> RingFault {
        // What was read where memory is gone is nobody's word.
        let fault = if self.map.is_poisoned() { RingFault::Poisoned } else { fault };
        self.fault = Some(fault);
        fault
    }
}

impl<W: Words, T: Track> DeviceRing for SplitDevice<W, T> {
    fn peek(&mut self, burst: &mut Burst, max_chains: usize) -> Result<usize, RingFault> {
        burst.begin(&self.map);
        if let Some(fault) = self.fault {
            return Err(fault);
        }
        if self.map.is_poisoned() {
            return Err(self.fail(RingFault::Poisoned));
        }
        let max = max_chains.min(Burst::CHAINS) as u16;
        let mut ready = self.avail_seen.since(self.avail_next);
        if ready < max {
            ready = self.look()?;
        }
        if self.event_idx && !self.kicks && self.avail_next.since(self.kick_event) > EVENT_DRIFT {
            self.write_kick_event(self.avail_next.farthest());
        }
        let count = ready.min(max);
        self.read_heads(ready.min(2 * max));
        let mut done = 0;
        while done < count {
            let (singles, other) = self.add_singles(burst, self.avail_next.plus(done).get(), count - done);
            done += singles;
            let head = match other {
                Some(head) => head,
                // `heads` came to its end and goes on at its start.
                None if singles > 0 => continue,
                // No room.
                None => break,
            };
            let from = self.avail_next.plus(done).get();
            let (added, outcome) = self.add_run(burst, head, from, count - done);
            done += added;
            match outcome {
                Ok(()) => {}
                Err(Stop::Fault(fault)) if burst.len() == 0 => return Err(self.fail(fault)),
                Err(_) => break,
            }
        }
        Ok(burst.len())
    }

    #[inline]
    fn consume(&mut self, chains: &[Chain]) {
        let peeked = self.heads_read.since(self.avail_next);
        debug_assert!(chains.len() <= usize::from(peeked), "consumes what was not peeked");
        let mut new = chains;
        if !T::IN_ORDER {
            let again = usize::from(self.again).min(chains.len());
            self.again -= again as u16;
            new = chains.get(again..).unwrap_or_default();
        }
        for chain in new {
            if !self.track.taken(chain.id, std::iter::empty()) {
                self.fault = Some(RingFault::Twice);
            }
        }
        self.avail_next.advance(peeked.min(chains.len() as u16));
    }

    #[inline]
    fn complete(&mut self, chain: &Chain, written: u32) {
        self.track.completed(chain.id);
        if !self.skip_used && self.shadow_len < SHADOW {
            self.shadow[self.shadow_len % SHADOW] = used_entry(chain.id, written);
            self.shadow_len += 1;
        } else if self.skip_used && written == 0 {
            self.run = (chain.id.into(), self.run.1.saturating_add(1));
        } else {
            self.complete_slowly(chain.id, written);
        }
    }

    fn publish(&mut self) -> bool {
        self.flush();
        let (old, new) = (self.used_published, self.used_next);
        if old == new {
            return false;
        }
        let (with_burst, after) = (position(new, old), position(new, new));
        self.track.publish(with_burst, after, || {
            // Release: pairs with the Acquire after the load of used.idx in `SplitDriver::collect` (virtio 1.3 §2.7.8.2):
            // entries and the bytes of buffers are visible before the index. So is the word that was kept, to a successor.
            fence(Ordering::Release);
            self.areas.device.write_u16(IDX, new.get());
        });
        self.used_published = new;
        self.wants_call(old.get(), new.get())
    }

    fn enable_kicks(&mut self) -> bool {
        self.kicks = true;
        if self.event_idx {
            self.write_kick_event(self.avail_next);
        } else {
            self.areas.device.write_u16(FLAGS, 0);
        }
        // Full: pairs with the full fence in `SplitDriver::publish`. Either the driver sees the wish just written and
        // kicks, or its index is seen here.
        fence(Ordering::SeqCst);
        self.fault.is_none() && self.areas.driver.read_u16(IDX) != self.avail_next.get()
    }

    fn disable_kicks(&mut self) {
        self.kicks = false;
        if self.event_idx {
            // virtio 1.3 §2.7.10: flags mean nothing now.
            self.write_kick_event(self.avail_next.farthest());
        } else {
            self.areas.device.write_u16(FLAGS, F_NO_NOTIFICATION);
        }
    }

    fn has_available(&mut self) -> bool {
        self.fault.is_none()
            && (self.avail_seen != self.avail_next
                || self.areas.driver.read_u16(IDX) != self.avail_next.get())
    }

    /// The position from which a successor has to go on: what was consumed but not published counts as not taken.
    fn position(&self) -> Position {
        position(self.used_published, self.used_published)
    }
}

#[inline(always)]
fn position(avail: Index, used: Index) -> Position {
    Position { avail_idx: avail.get(), avail_wrap: true, used_idx: used.get(), used_wrap: true }
}

/// `struct virtq_used_elem` (virtio 1.3 §2.7.8).
#[inline(always)]
fn used_entry(id: u16, written: u32) -> u64 {
    u64::from(id) | u64::from(written) << 32
}

/// Heads read ahead at most: the burst at hand and the next one.
const HEADS: usize = 2 * Burst::CHAINS;
/// Used entries held back at most; more are written to the ring early.
const SHADOW: usize = Burst::CHAINS;
/// An event index written to mean "never" is renewed after so many entries, long before it comes round.
const EVENT_DRIFT: u16 = 0x4000;
