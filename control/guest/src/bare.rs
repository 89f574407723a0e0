//! One queue pair of a guest that touches no frame: each was written once, and only descriptors travel.
//!
//! What comes back is counted by descriptor, with the length that was written to it; of one frame in
//! [`GuestOptions::whole_every`](crate::GuestOptions::whole_every) every byte is looked at and then written over, so that what is
//! looked at next was written anew. A frame's number is not looked at, so that one that came twice, or late, counts as one that
//! came; nor is there a latency. Which flow came is known from the last frame that was looked at. Owned by one thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;
use ringway_pmd::notify::EventFd;
use ringway_ring::guest::{GuestMap, HostSlice, LastHit};
use ringway_ring::layout::{Areas, DriverConfig, Layout};
use ringway_ring::position::Position;
use ringway_ring::queue::{DriverRing, Format, RingFault, SetupError};
use ringway_ring::tsc;

use crate::error::GuestError;
use crate::frame::{Addresses, Filler, HEAD_BYTES, MAX_FRAME, Sizes, Stamp, WORDS_AT};
use crate::lane::{BURST, LaneSetup, Offer, POISON, Stats, give_up_cycles, histogram, place_of, window_of};
use crate::ledger::Counts;
use crate::presence::Presence;
use crate::standing::{Buffer, Done, Place, StandingRing};

/// A queue pair whose frames nobody touches.
#[derive(Debug)]
pub struct BarePair<R> {
    pair: u16,
    flow: u16,
    map: Arc<GuestMap>,
    /// Receive and transmit ring.
    rx: Ring<R>,
    tx: Ring<R>,
    pub(crate) kick: [Arc<EventFd>; 2],
    areas: [Areas<u64>; 2],
    header_len: usize,
    mergeable: bool,
    rx_buffers: Box<[Buffer]>,
    tx_buffers: Box<[Buffer]>,
    /// Numbers of transmit buffers that the device does not hold, a ring of as many as there are: in the order in which
    /// they came back, so that with a device that completes in order nothing but indexes changes.
    free: Box<[u16]>,
    free_first: usize,
    free_count: usize,
    /// What is written to a receive buffer, header included, if all frames are of one length.
    written: Option<u32>,
    whole_mask: Option<u64>,
    filler: Filler,
    addresses: Addresses,
    body: Box<[u8]>,

    sent: u64,
    /// Frames of this lane's flow that have arrived or were given up, and of them the latter.
    arrived: u64,
    given_up: u64,
    /// When that last changed.
    progress_at: u64,
    window: u64,
    give_up: u64,

    /// Which frames are looked at beside one in many.
    looks: Looks,
    progress: Arc<[AtomicU64]>,
    /// Frames that came, by flow, and the flow of the last one that was looked at.
    came: Vec<u64>,
    last_flow: usize,
    /// Frames that came and are not damaged.
    received: u64,
    bytes: u64,
    corrupt: u64,
    exchanged: u64,
    empty: u64,
    transmitted: u64,
    pub(crate) kicks: u64,
    done: Box<[Done]>,
    /// Stays empty.
    pub(crate) latency: Histogram<u64>,
    pub(crate) set_aside: u64,
    pub(crate) sample_mask: u64,
}

/// Which frames are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Looks {
    All,
    /// The next one that is intact, and then one in many.
    Next,
    Few,
}

/// A ring and the block of memory that holds its areas.
#[derive(Debug)]
struct Ring<R> {
    ring: R,
    gpa: u64,
    bytes: u32,
    hint: LastHit,
}

/// The ring's methods with its block.
macro_rules! on {
    ($self:ident.$ring:ident, $block:ident => $call:expr) => {
        match $self.map.lookup(&mut $self.$ring.hint, $self.$ring.gpa, $self.$ring.bytes) {
            Ok($block) => $call,
            // The map is this guest's own, and the ring was started in it.
            Err(_) => Default::default(),
        }
    };
}

impl<R: StandingRing> BarePair<R> {
    pub(crate) fn new(setup: LaneSetup<'_>) -> Result<BarePair<R>, GuestError> {
        let options = setup.options;
        let len_of = |slot: usize| setup.header_len as u32 + u32::from(options.sizes.of(slot as u64));
        let rx_buffers: Box<[Buffer]> = setup
            .rx_buffers
            .iter()
            .map(|gpa| Buffer { gpa: *gpa, len: setup.rx_buffer_bytes, writable: true })
            .collect();
        let tx_buffers: Box<[Buffer]> = setup
            .tx_buffers
            .iter()
            .enumerate()
            .map(|(slot, gpa)| Buffer { gpa: *gpa, len: len_of(slot), writable: false })
            .collect();
        let [rx, tx] = setup.rings;
        let rx: Ring<R> = start(&setup, rx, &rx_buffers)?;
        let tx: Ring<R> = start(&setup, tx, &tx_buffers)?;
        let mut pair = BarePair {
            pair: setup.pair,
            flow: setup.flow,
            rx,
            tx,
            kick: setup.kick,
            areas: setup.rings,
            header_len: setup.header_len,
            mergeable: options.mergeable,
            free: (0..tx_buffers.len() as u16).collect(),
            free_first: 0,
            free_count: tx_buffers.len(),
            written: match options.sizes {
                Sizes::Fixed(_) => Some(len_of(0)),
                Sizes::Imix => None,
            },
            rx_buffers,
            tx_buffers,
            whole_mask: options.whole_every.map(|every| every.next_power_of_two() - 1),
            filler: Filler::new(),
            addresses: options.addresses,
            body: vec![0; usize::from(MAX_FRAME)].into(),
            sent: 0,
            arrived: 0,
            given_up: 0,
            progress_at: tsc::cycles(),
            window: window_of(options, setup.size),
            give_up: give_up_cycles(options),
            looks: Looks::Few,
            came: vec![0; setup.progress.len()],
            progress: setup.progress,
            last_flow: setup.flow.into(),
            received: 0,
            bytes: 0,
            corrupt: 0,
            exchanged: 0,
            empty: 0,
            transmitted: 0,
            kicks: 0,
            done: vec![Done::default(); BURST].into(),
            latency: histogram(),
            set_aside: 0,
            sample_mask: 0,
            map: setup.map,
        };
        pair.write_frames(&options.sizes);
        on!(pair.rx, block => {
            (0..pair.rx_buffers.len() as u16).for_each(|id| pair.rx.ring.offer(block, id));
            pair.rx.ring.publish(block)
        });
        Ok(pair)
    }

    /// Writes every frame, once.
    fn write_frames(&self, sizes: &Sizes) {
        for (slot, buffer) in self.tx_buffers.iter().enumerate() {
            let Ok(bytes) = self.map.resolve(buffer.gpa, buffer.len.into()) else { continue };
            let (filler, len) = (place_of(slot), sizes.of(slot as u64));
            bytes.write(&[0; 12][..self.header_len.min(12)]);
            let stamp = Stamp { flow: self.flow, filler, len, sequence: 0, sent_at: 0 };
            let head = bytes.part(self.header_len, HEAD_BYTES);
            for (at, word) in WORDS_AT.into_iter().zip(stamp.to_words(&self.addresses)) {
                head.put_word(at, word);
            }
            let payload = self.filler.payload(filler, len);
            bytes.part(self.header_len + HEAD_BYTES, payload.len()).write(payload);
        }
    }

    #[inline]
    pub(crate) fn turn(&mut self, mut offer: Offer<'_>, presence: &mut Presence) -> Result<u32, GuestError> {
        let now = tsc::cycles();
        let mut done = std::mem::take(&mut self.done);
        let sent = on!(self.tx, block => Some(self.tx.ring.collect(block, &mut done)));
        let sent = sent.unwrap_or(Ok(0)).map_err(|fault| self.fault(1, fault))?;
        self.transmitted += sent as u64;
        for one in done.iter().take(sent) {
            self.give(one.id);
        }
        let room = (self.window.saturating_sub(self.under_way(now)) as usize).min(self.free_count);
        let due = match &mut offer {
            Offer::Nothing => 0,
            Offer::All => self.tx.ring.whole(room.min(BURST)),
            Offer::AtMost(most) => room.min(*most as usize),
            Offer::Due(pace) => (0..room.min(BURST)).take_while(|_| pace.take(now).is_some()).count(),
        };
        if due > 0 {
            self.send(due);
            presence.handle(due as u32);
        }
        let came = on!(self.rx, block => Some(self.rx.ring.collect(block, &mut done)));
        presence.look(tsc::cycles());
        let came = came.unwrap_or(Ok(0)).map_err(|fault| self.fault(0, fault))?;
        if came > 0 {
            self.receive(done.get(..came).unwrap_or_default());
            presence.handle(came as u32);
        }
        self.done = done;
        Ok(came as u32)
    }

    /// Puts a transmit buffer behind the free ones.
    #[inline(always)]
    fn give(&mut self, id: u16) {
        let size = self.free.len();
        let at = self.free_first + self.free_count;
        if let Some(place) = self.free.get_mut(if at >= size { at - size } else { at }) {
            *place = id;
            self.free_count += 1;
        }
    }

    fn send(&mut self, count: usize) {
        let (size, first) = (self.free.len(), self.free_first);
        let asked = on!(self.tx, block => {
            for nth in first..first + count {
                let id = self.free.get(if nth >= size { nth - size } else { nth });
                self.tx.ring.offer(block, id.copied().unwrap_or_default());
            }
            self.tx.ring.publish(block)
        });
        self.free_first = (first + count) % size.max(1);
        self.free_count -= count;
        self.sent += count as u64;
        if asked {
            self.kicks += 1;
            self.kick[1].signal();
        }
    }

    /// Counts what came, and makes its buffers available again.
    #[inline]
    fn receive(&mut self, came: &[Done]) {
        for one in came {
            self.take(*one);
        }
        let asked = on!(self.rx, block => {
            came.iter().for_each(|one| self.rx.ring.offer(block, one.id));
            self.rx.ring.publish(block)
        });
        if asked {
            self.kicks += 1;
            self.kick[0].signal();
        }
        if let (Some(came), Some(progress)) =
            (self.came.get(self.last_flow), self.progress.get(self.last_flow))
        {
            // Relaxed: only a number, that of one flow, which comes here alone.
            progress.store(*came, Ordering::Relaxed);
        }
    }

    #[inline(always)]
    fn take(&mut self, one: Done) {
        if one.written == 0 {
            self.empty += 1;
            return;
        }
        // One in so many, and each time another place: rings are powers of two as well.
        let came = self.received + self.corrupt;
        let is_due = |mask: u64| (came ^ (came >> mask.count_ones())) & mask == 0;
        let looked = self.looks != Looks::Few || self.whole_mask.is_some_and(is_due);
        let intact =
            if looked { self.look(one) } else { self.written.is_none_or(|written| written == one.written) };
        // A damaged frame stands for one of its flow.
        if let Some(came) = self.came.get_mut(self.last_flow) {
            *came += 1;
        }
        if intact {
            self.received += 1;
            self.bytes += u64::from(one.written).saturating_sub(self.header_len as u64);
        } else {
            self.corrupt += 1;
        }
    }

    /// Looks at a whole frame; true if it is intact. What was looked at is written over.
    #[inline(never)]
    fn look(&mut self, one: Done) -> bool {
        let buffer = self.rx_buffers.get(usize::from(one.id)).copied();
        let Some(bytes) = buffer.and_then(|buffer| self.map.resolve(buffer.gpa, one.written.into()).ok())
        else {
            return false;
        };
        let buffers = if self.mergeable { bytes.word(4) >> 48 } else { 1 };
        let head = bytes.part(self.header_len, HEAD_BYTES);
        let words = WORDS_AT.map(|at| head.word(at));
        let stamp = Stamp::from_words(words).filter(|_| buffers == 1);
        let payload = bytes.part(self.header_len + HEAD_BYTES, usize::from(MAX_FRAME));
        let read = payload.read(&mut self.body);
        let whole = bytes.part(self.header_len, usize::from(MAX_FRAME));
        whole.write(&POISON[..whole.len().min(POISON.len())]);
        let Some(stamp) = stamp else { return false };
        let flow = usize::from(stamp.flow);
        if flow >= self.came.len()
            || one.written != self.header_len as u32 + u32::from(stamp.len)
            || self.body.get(..read) != Some(self.filler.payload(stamp.filler, stamp.len))
        {
            return false;
        }
        self.last_flow = flow;
        if self.looks == Looks::Next {
            self.looks = Looks::Few;
        }
        self.exchanged += u64::from(words[..2] == self.addresses.exchanged().words());
        true
    }

    /// Looks at every frame from now on; or at the next one and then at one in many again.
    pub(crate) fn look_at_all(&mut self, all: bool) {
        self.looks = if all { Looks::All } else { Looks::Next };
    }

    #[inline]
    pub(crate) fn under_way(&mut self, now: u64) -> u64 {
        let progress = self.progress.get(usize::from(self.flow));
        let arrived = progress.map_or(0, |progress| progress.load(Ordering::Relaxed)) + self.given_up;
        if arrived > self.arrived {
            (self.arrived, self.progress_at) = (arrived.min(self.sent), now);
        }
        let under_way = self.sent - self.arrived;
        if under_way == 0 {
            self.progress_at = now;
        } else if under_way >= self.window && now.saturating_sub(self.progress_at) > self.give_up {
            // What was lost must not stop what follows. Which they were is not known: what comes next is one more.
            self.given_up += under_way;
            (self.arrived, self.progress_at) = (self.sent, now);
        }
        under_way
    }

    pub(crate) fn counts(&self) -> Counts {
        Counts {
            sent: self.sent,
            received: self.received,
            bytes: self.bytes,
            corrupt: self.corrupt,
            exchanged: self.exchanged,
            ..Counts::default()
        }
    }

    pub(crate) fn stats(&self) -> Stats {
        Stats {
            sent: self.sent,
            transmitted: self.transmitted,
            received: self.received,
            corrupt: self.corrupt,
            empty: self.empty,
            kicks: self.kicks,
            ..Stats::default()
        }
    }

    pub(crate) fn used_idx(&self, direction: usize) -> u16 {
        let mut idx = [0; 2];
        let place = self.areas.get(direction).and_then(|areas| self.map.resolve(areas.device + 2, 2).ok());
        place.map(|place| place.read(&mut idx));
        u16::from_le_bytes(idx)
    }

    pub(crate) fn flow(&self) -> u16 {
        self.flow
    }

    fn fault(&self, direction: u16, fault: RingFault) -> GuestError {
        GuestError::Device { queue: self.pair * 2 + direction, fault }
    }
}

/// Clears a ring's areas, wishes no calls, and writes its descriptors.
fn start<R: StandingRing>(
    setup: &LaneSetup<'_>,
    areas: Areas<u64>,
    buffers: &[Buffer],
) -> Result<Ring<R>, GuestError> {
    let config = DriverConfig {
        size: setup.size,
        features: setup.features,
        map: Arc::clone(&setup.map),
        areas,
        position: Position::START,
    };
    match setup.options.format {
        Format::Split => config.start_split()?.disable_calls(),
        Format::Packed => config.start_packed()?.disable_calls(),
    }
    let of = areas.of(setup.options.format, setup.size);
    let end = of.iter().map(|area| area.address + area.len).max().unwrap_or_default();
    // A word is read at a time, also where less is left of an area: the block is longer than the areas.
    let bytes = (end - areas.desc).next_multiple_of(Layout::ALIGN);
    let at = |address: u64| (address - areas.desc) as usize;
    let areas_at = Areas { desc: 0, driver: at(areas.driver), device: at(areas.device) };
    let block: Result<HostSlice<'_>, _> = setup.map.resolve(areas.desc, bytes);
    let block =
        block.map_err(|_| GuestError::from(SetupError::Unmapped { address: areas.desc, len: bytes }))?;
    let place = Place {
        areas: areas_at,
        buffers,
        event_idx: setup.options.event_idx,
        in_order: setup.options.in_order,
    };
    Ok(Ring { ring: R::start(place, block), gpa: areas.desc, bytes: bytes as u32, hint: LastHit::default() })
}
