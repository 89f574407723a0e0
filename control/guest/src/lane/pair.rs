//! A queue pair whose frames are written, looked at and counted one by one.
//!
//! Transmit buffers are used again latest first, as drivers with a cache of buffers do. One line of each frame is always
//! read and written; whether the rest is too, [`Touch`] says. The lines of the next frames are asked for while one is
//! worked on: else it is the generator that is measured. Owned by one thread.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use hdrhistogram::Histogram;
use ringway_pmd::notify::EventFd;
use ringway_ring::guest::{GuestMap, LastHit};
use ringway_ring::layout::{Areas, DriverConfig};
use ringway_ring::position::Position;
use ringway_ring::queue::{Completion, DriverBuffer, DriverRing, RingFault, SetupError};
use ringway_ring::tsc;

use super::{
    BURST, DEFAULT_SAMPLE, LaneSetup, Offer, POISON, Stats, give_up_cycles, histogram, place_of, window_of,
};
use crate::error::GuestError;
use crate::frame::{Addresses, Filler, HEAD_BYTES, MAX_FRAME, Sizes, Stamp, WORDS_AT};
use crate::ledger::{Counts, Ledger};
use crate::options::Touch;
use crate::presence::Presence;

/// A queue pair of a guest, as the module says; see [`Lane`](super::Lane).
#[derive(Debug)]
pub struct Pair<D> {
    pair: u16,
    flow: u16,
    rx: D,
    tx: D,
    map: Arc<GuestMap>,
    /// Buffers of either direction mostly lie in one region each.
    rx_hint: LastHit,
    tx_hint: LastHit,
    pub(super) kick: [Arc<EventFd>; 2],
    header_len: usize,
    mergeable: bool,
    rx_buffers: Box<[u64]>,
    rx_buffer_bytes: u32,
    tx_buffers: Box<[u64]>,
    /// Transmit buffers that the device does not hold; the last is used next.
    free: Vec<u32>,
    sizes: Sizes,
    touch: Touch,
    /// Frames whose number has none of these bits are read as a whole; none without it.
    whole_mask: Option<u64>,
    filler: Filler,
    addresses: Addresses,
    /// The first two words of a frame whose addresses were exchanged.
    exchanged_words: [u64; 2],
    /// One frame in so many goes to nobody, with these addresses.
    flood: Option<(u64, Addresses)>,
    /// Frames of others that came.
    flooded: u64,
    /// Areas of the rings.
    areas: [Areas<u64>; 2],

    /// Number of the next frame to be sent.
    next_sequence: u64,
    /// Frames below this have arrived, or were given up.
    arrived: u64,
    /// When that last changed.
    progress_at: u64,
    window: u64,
    /// After so long without a frame, those under way are given up, in cycles.
    give_up: u64,

    /// A frame of which buffers are still to come.
    assembly: Option<Assembly>,
    /// What was read of the current frame beyond its head, if it is read as a whole.
    body: Box<[u8]>,
    /// By flow.
    ledgers: Vec<Ledger>,
    progress: Arc<[AtomicU64]>,
    /// The flow of the last good frame.
    last_flow: usize,
    /// Damaged frames since the last good one: they stand for those that are missing.
    damaged: u64,
    corrupt: u64,
    exchanged: u64,
    bytes: u64,
    pub(super) kicks: u64,
    transmitted: u64,
    empty: u64,
    /// What was collected last.
    done: Box<[Completion]>,
    pub(super) sample_mask: u64,
    pub(super) latency: Histogram<u64>,
    pub(super) set_aside: u64,
    /// What was due before then has its latency set aside.
    absent_until: u64,
}

/// The head of a frame that came: its stamp, whether its addresses were exchanged, and whether it is somebody else's.
type Frame = (Stamp, bool, bool);

/// A frame that came in several buffers, as far as it came.
#[derive(Debug, Clone, Copy)]
struct Assembly {
    stamp: Option<Frame>,
    /// Read as a whole.
    whole: bool,
    /// Buffers still to come.
    left: u16,
    /// Bytes that came, header included.
    written: u32,
    /// Bytes of the payload that were read.
    read: usize,
}

impl<D: DriverRing> Pair<D> {
    pub(super) fn new(
        setup: LaneSetup<'_>,
        start: fn(DriverConfig) -> Result<D, SetupError>,
    ) -> Result<Self, GuestError> {
        let ring = |areas| {
            start(DriverConfig {
                size: setup.size,
                features: setup.features,
                map: Arc::clone(&setup.map),
                areas,
                position: Position::START,
            })
        };
        let [rx, tx] = setup.rings;
        let options = setup.options;
        let mut pair = Pair {
            pair: setup.pair,
            flow: setup.flow,
            rx: ring(rx)?,
            tx: ring(tx)?,
            rx_hint: LastHit::default(),
            tx_hint: LastHit::default(),
            kick: setup.kick,
            header_len: setup.header_len,
            mergeable: options.mergeable,
            free: (0..setup.tx_buffers.len() as u32).rev().collect(),
            rx_buffers: setup.rx_buffers,
            rx_buffer_bytes: setup.rx_buffer_bytes,
            tx_buffers: setup.tx_buffers,
            sizes: options.sizes,
            touch: options.touch,
            whole_mask: options.whole_every.map(|every| every.next_power_of_two() - 1),
            filler: Filler::new(),
            addresses: options.addresses,
            exchanged_words: options.addresses.exchanged().words(),
            flood: options.flood.map(|every| {
                (u64::from(every.max(1)), Addresses { to: NOBODY, from: options.addresses.from })
            }),
            flooded: 0,
            areas: setup.rings,
            next_sequence: 0,
            arrived: 0,
            progress_at: tsc::cycles(),
            window: window_of(options, setup.size),
            give_up: give_up_cycles(options),
            assembly: None,
            body: vec![0; usize::from(MAX_FRAME)].into(),
            ledgers: vec![Ledger::default(); setup.progress.len()],
            progress: setup.progress,
            last_flow: setup.flow.into(),
            damaged: 0,
            corrupt: 0,
            exchanged: 0,
            bytes: 0,
            kicks: 0,
            transmitted: 0,
            empty: 0,
            done: vec![Completion::default(); BURST].into(),
            sample_mask: DEFAULT_SAMPLE - 1,
            latency: histogram(),
            set_aside: 0,
            absent_until: 0,
            map: setup.map,
        };
        pair.rx.disable_calls();
        pair.tx.disable_calls();
        pair.fill_transmit_buffers();
        for slot in 0..pair.rx_buffers.len() as u32 {
            pair.post(slot);
        }
        pair.rx.publish();
        Ok(pair)
    }

    /// Writes every transmit buffer as a whole: an empty header, the addresses, and the payload that stays if only heads
    /// are written.
    fn fill_transmit_buffers(&self) {
        for (slot, gpa) in self.tx_buffers.iter().enumerate() {
            let len = self.sizes.max();
            if let Ok(buffer) = self.map.resolve(*gpa, self.header_len as u64 + u64::from(len)) {
                buffer.write(&[0; 12][..self.header_len.min(12)]);
                let words =
                    Stamp { flow: 0, filler: 0, len, sequence: 0, sent_at: 0 }.to_words(&self.addresses);
                let head = buffer.part(self.header_len, HEAD_BYTES);
                for (at, word) in WORDS_AT.into_iter().zip(words) {
                    head.put_word(at, word);
                }
                let payload = self.filler.payload(place_of(slot), len);
                buffer.part(self.header_len + HEAD_BYTES, payload.len()).write(payload);
            }
        }
    }

    /// Makes a receive buffer available.
    #[inline]
    fn post(&mut self, slot: u32) {
        let Some(gpa) = self.rx_buffers.get(slot as usize) else { return };
        let buffer = DriverBuffer { gpa: *gpa, len: self.rx_buffer_bytes, writable: true };
        // As many buffers as the ring has entries: there is always room.
        let _ = self.rx.add(&[buffer], slot);
    }

    /// The lines that either direction needs are asked for before anything is done with the first of them: while one
    /// direction is worked on, those of the other come.
    #[inline]
    pub(super) fn turn(&mut self, offer: Offer<'_>, presence: &mut Presence) -> Result<u32, GuestError> {
        let now = tsc::cycles();
        let most = match &offer {
            Offer::Nothing => 0,
            Offer::All => BURST as u64,
            Offer::AtMost(most) => u64::from(*most).min(BURST as u64),
            Offer::Due(pace) if pace.next_at() <= now => BURST as u64,
            Offer::Due(_) => 0,
        };
        let room = self.collect_sent(most, now)?;
        if self.touch == Touch::All {
            (0..AHEAD.min(room)).for_each(|nth| self.prefetch_rest_to_send(nth));
        }
        let mut done = std::mem::take(&mut self.done);
        let came = self.rx.collect(&mut done);
        let at = tsc::cycles();
        self.absent_until = presence.look(at);
        let count = came.map_err(|fault| self.fault(0, fault))?;
        let came = done.get(..count).unwrap_or_default();
        for completion in came {
            self.prefetch(completion.token);
        }
        if self.touch == Touch::All {
            came.iter().take(AHEAD).for_each(|completion| self.prefetch_rest(*completion));
        }
        if room > 0 {
            presence.handle(self.send(room, now, offer));
        }
        let frames = if came.is_empty() { 0 } else { self.receive(came, at) };
        presence.handle(frames);
        self.done = done;
        Ok(frames)
    }

    /// Looks at the frames that came at `now`, and posts their buffers again.
    #[inline]
    fn receive(&mut self, came: &[Completion], now: u64) -> u32 {
        let mut frames = 0;
        for (nth, completion) in came.iter().enumerate() {
            if self.touch == Touch::All
                && let Some(later) = came.get(nth + AHEAD)
            {
                self.prefetch_rest(*later);
            }
            frames += self.take(*completion, now);
            self.post(completion.token);
        }
        if self.rx.publish() {
            self.kicks += 1;
            self.kick[0].signal();
        }
        let flow = self.last_flow;
        if let (Some(ledger), Some(progress)) = (self.ledgers.get(flow), self.progress.get(flow)) {
            // Relaxed: only a number, that of one flow, which comes here alone.
            progress.store(ledger.next() + self.damaged, Ordering::Relaxed);
        }
        frames
    }

    #[inline]
    fn prefetch(&mut self, slot: u32) {
        if let Some(gpa) = self.rx_buffers.get(slot as usize)
            && let Ok(buffer) = self.map.lookup(&mut self.rx_hint, *gpa, self.rx_buffer_bytes)
        {
            buffer.prefetch_read(0);
        }
    }

    /// Asks for the lines behind the first of a frame that came.
    #[inline]
    fn prefetch_rest(&mut self, completion: Completion) {
        if let Some(gpa) = self.rx_buffers.get(completion.token as usize)
            && let Ok(buffer) = self.map.lookup(&mut self.rx_hint, *gpa, completion.written)
        {
            (LINE..buffer.len()).step_by(LINE).for_each(|at| buffer.prefetch_read(at));
        }
    }

    /// Asks for the lines behind the first of the buffer that the frame after `ahead` others is written to.
    #[inline]
    fn prefetch_rest_to_send(&mut self, ahead: usize) {
        let bytes = self.header_len + usize::from(self.sizes.of(self.next_sequence + ahead as u64));
        let slot = self.free.len().checked_sub(ahead + 1).and_then(|nth| self.free.get(nth));
        if let Some(gpa) = slot.and_then(|slot| self.tx_buffers.get(*slot as usize))
            && let Ok(buffer) = self.map.lookup(&mut self.tx_hint, *gpa, bytes as u32)
        {
            (LINE..buffer.len()).step_by(LINE).for_each(|at| buffer.prefetch_write(at));
        }
    }

    /// Takes one buffer that came; returns 1 if a frame is complete with it.
    #[inline(always)]
    fn take(&mut self, completion: Completion, now: u64) -> u32 {
        if completion.written == 0 {
            self.empty += 1;
            return 0;
        }
        let Some(gpa) = self.rx_buffers.get(completion.token as usize) else { return 0 };
        let Ok(buffer) = self.map.lookup(&mut self.rx_hint, *gpa, self.rx_buffer_bytes) else { return 0 };
        let head = buffer.part(self.header_len, HEAD_BYTES);
        // The header is 12 bytes with VERSION_1 or MRG_RXBUF, 10 without either; num_buffers is its last word.
        let more = if self.mergeable { (buffer.word(4) >> 48).saturating_sub(1) } else { 0 };
        if self.assembly.is_none() && more == 0 && self.touch == Touch::Header {
            // What most are: all of a frame, of which the head is looked at.
            let stamp = self.head(WORDS_AT.map(|at| head.word(at)));
            if let Some(frame) = stamp
                && !self.is_sampled(&frame.0)
            {
                let is_whole = completion.written == self.header_len as u32 + u32::from(frame.0.len);
                self.enter(is_whole.then_some(frame), now);
                return 1;
            }
        }
        self.take_piece(completion, more as u16, now)
    }

    /// Of frames whose head is looked at, some are looked at as a whole.
    #[inline(always)]
    fn is_sampled(&self, stamp: &Stamp) -> bool {
        self.whole_mask.is_some_and(|mask| stamp.sequence & mask == 0)
    }

    /// Reads the head of a frame.
    #[inline(always)]
    fn head(&self, words: [u64; 6]) -> Option<Frame> {
        let stamp = Stamp::from_words(words)?;
        let foreign = self.flood.is_some() && words[1] != self.exchanged_words[1];
        Some((stamp, words[..2] == self.exchanged_words, foreign))
    }

    /// The same for any frame: `more` buffers follow if it begins one.
    #[inline(never)]
    fn take_piece(&mut self, completion: Completion, more: u16, now: u64) -> u32 {
        let Completion { token, written } = completion;
        let Some(gpa) = self.rx_buffers.get(token as usize) else { return 0 };
        let Ok(buffer) = self.map.lookup(&mut self.rx_hint, *gpa, self.rx_buffer_bytes) else { return 0 };
        let (mut frame, at) = match self.assembly.take() {
            None => {
                let head = buffer.part(self.header_len, HEAD_BYTES);
                let stamp = self.head(WORDS_AT.map(|at| head.word(at)));
                let whole = stamp
                    .as_ref()
                    .is_some_and(|(stamp, ..)| self.touch == Touch::All || self.is_sampled(stamp));
                (Assembly { stamp, whole, left: more, written: 0, read: 0 }, self.header_len + HEAD_BYTES)
            }
            Some(begun) => (Assembly { left: begun.left - 1, ..begun }, 0),
        };
        frame.written = frame.written.saturating_add(written);
        if frame.whole {
            let bytes = (written as usize).saturating_sub(at);
            let part = buffer.part(at, bytes);
            frame.read += part.read(self.body.get_mut(frame.read..).unwrap_or_default());
            if self.touch == Touch::Header {
                // What was looked at must be written anew before it is looked at again.
                part.write(&POISON[..part.len().min(POISON.len())]);
            }
        }
        if frame.left > 0 {
            self.assembly = Some(frame);
            return 0;
        }
        let intact = |(stamp, ..): &Frame| {
            frame.written == self.header_len as u32 + u32::from(stamp.len)
                && (!frame.whole
                    || self.body.get(..frame.read) == Some(self.filler.payload(stamp.filler, stamp.len)))
        };
        self.enter(frame.stamp.filter(intact), now);
        1
    }

    /// Enters a frame that came, or None if it is damaged.
    #[inline(always)]
    fn enter(&mut self, frame: Option<Frame>, now: u64) {
        let Some((stamp, exchanged, foreign)) = frame else {
            self.corrupt += 1;
            self.damaged += 1;
            return;
        };
        if foreign {
            self.flooded += 1;
            return;
        }
        let Some(ledger) = self.ledgers.get_mut(usize::from(stamp.flow)) else {
            self.corrupt += 1;
            return;
        };
        ledger.enter(stamp.sequence);
        (self.damaged, self.last_flow) = (0, stamp.flow.into());
        self.exchanged += u64::from(exchanged);
        self.bytes += u64::from(stamp.len);
        if stamp.sequence & self.sample_mask == 0 {
            if stamp.sent_at > self.absent_until {
                self.latency.saturating_record(now.saturating_sub(stamp.sent_at).max(1));
            } else {
                self.set_aside += 1;
            }
        }
    }

    /// Takes back the buffers that were sent; returns how many frames, up to `most`, may be sent now, and asks for the
    /// lines of their buffers, which are still in the device's cache.
    #[inline]
    fn collect_sent(&mut self, most: u64, now: u64) -> Result<usize, GuestError> {
        let count = self.tx.collect(&mut self.done);
        let count = count.map_err(|fault| self.fault(1, fault))?;
        self.transmitted += count as u64;
        self.free.extend(self.done.iter().take(count).map(|completion| completion.token));
        let room = self.window.saturating_sub(self.under_way(now));
        let room = most.min(room) as usize;
        for slot in self.free.iter().rev().take(room) {
            if let Some(gpa) = self.tx_buffers.get(*slot as usize)
                && let Ok(buffer) = self.map.lookup(&mut self.tx_hint, *gpa, LINE as u32)
            {
                buffer.prefetch_write(0);
            }
        }
        Ok(room.min(self.free.len()))
    }

    /// Sends up to `most` frames; returns how many.
    #[inline]
    fn send(&mut self, most: usize, now: u64, mut offer: Offer<'_>) -> u32 {
        let mut added = 0;
        while added < most {
            let sent_at = match &mut offer {
                Offer::Due(pace) => match pace.take(now) {
                    Some(due) => due,
                    None => break,
                },
                _ => now,
            };
            if self.touch == Touch::All {
                self.prefetch_rest_to_send(AHEAD);
            }
            let Some(slot) = self.free.pop() else { break };
            let buffer = self.write(slot, sent_at);
            if self.tx.add(&[buffer], slot).is_err() {
                self.free.push(slot);
                break;
            }
            self.next_sequence += 1;
            added += 1;
        }
        if added > 0 && self.tx.publish() {
            self.kicks += 1;
            self.kick[1].signal();
        }
        added as u32
    }

    /// Writes the next frame into a transmit buffer.
    #[inline]
    fn write(&mut self, slot: u32, sent_at: u64) -> DriverBuffer {
        let (flow, sequence) = (self.flow, self.next_sequence);
        let len = self.sizes.of(sequence);
        let filler = match self.touch {
            Touch::None | Touch::Header => place_of(slot as usize),
            Touch::All => (sequence % u64::from(Filler::PLACES)) as u16,
        };
        let gpa = self.tx_buffers.get(slot as usize).copied().unwrap_or_default();
        let bytes = self.header_len as u32 + u32::from(len);
        if let Ok(buffer) = self.map.lookup(&mut self.tx_hint, gpa, bytes) {
            let head = buffer.part(self.header_len, HEAD_BYTES);
            if head.len() == HEAD_BYTES {
                let stamp = Stamp { flow, filler, len, sequence, sent_at };
                let [_, _, places @ ..] = WORDS_AT;
                let [to, from, words @ ..] = match &self.flood {
                    Some((every, nobody)) if sequence.is_multiple_of(*every) => stamp.to_words(nobody),
                    _ => stamp.to_words(&self.addresses),
                };
                // The addresses before it stay, if they are those of every frame.
                if self.flood.is_some() {
                    head.put_word(WORDS_AT[0], to);
                    head.put_word(WORDS_AT[1], from);
                }
                head.put_word(places[0], words[0]);
                head.put_word(places[1], words[1]);
                head.put_word(places[2], words[2]);
                head.put_word(places[3], words[3]);
            }
            if self.touch == Touch::All {
                let payload = self.filler.payload(filler, len);
                buffer.part(self.header_len + HEAD_BYTES, payload.len()).write(payload);
            }
        }
        DriverBuffer { gpa, len: bytes, writable: false }
    }

    #[inline]
    pub(super) fn under_way(&mut self, now: u64) -> u64 {
        let progress = self.progress.get(usize::from(self.flow));
        let arrived = progress.map_or(0, |progress| progress.load(Ordering::Relaxed));
        if arrived > self.arrived {
            (self.arrived, self.progress_at) = (arrived.min(self.next_sequence), now);
        }
        let under_way = self.next_sequence - self.arrived;
        if under_way == 0 {
            self.progress_at = now;
        } else if under_way >= self.window && now.saturating_sub(self.progress_at) > self.give_up {
            // The whole tail is missing: it is lost, and must not stop what follows.
            (self.arrived, self.progress_at) = (self.next_sequence, now);
        }
        under_way
    }

    pub(super) fn counts(&self) -> Counts {
        let mut counts = Counts {
            sent: self.next_sequence,
            bytes: self.bytes,
            corrupt: self.corrupt,
            exchanged: self.exchanged,
            flooded: self.flooded,
            ..Counts::default()
        };
        for ledger in &self.ledgers {
            counts.received += ledger.unique;
            counts.duplicated += ledger.duplicated;
            counts.reordered += ledger.reordered;
            counts.stale += ledger.stale;
        }
        counts
    }

    pub(super) fn stats(&self) -> Stats {
        let mut stats = Stats {
            sent: self.next_sequence,
            transmitted: self.transmitted,
            corrupt: self.corrupt,
            empty: self.empty,
            kicks: self.kicks,
            ..Stats::default()
        };
        for ledger in &self.ledgers {
            stats.received += ledger.unique + ledger.duplicated + ledger.stale;
            stats.stale += ledger.reordered + ledger.duplicated + ledger.stale;
            stats.skipped += ledger.next() - ledger.unique;
        }
        stats
    }

    pub(super) fn flow(&self) -> u16 {
        self.flow
    }

    /// Each is looked at as it is.
    pub(super) fn look_at_all(&self, _: bool) {}

    pub(super) fn used_idx(&self, direction: usize) -> u16 {
        let mut idx = [0; 2];
        let place = self.areas.get(direction).and_then(|areas| self.map.resolve(areas.device + 2, 2).ok());
        place.map(|place| place.read(&mut idx));
        u16::from_le_bytes(idx)
    }

    fn fault(&self, direction: u16, fault: RingFault) -> GuestError {
        GuestError::Device { queue: self.pair * 2 + direction, fault }
    }
}

/// So many frames ahead of the one that is worked on, all lines of a frame are asked for; those of the first frames of a
/// turn, before anything is done with its frames.
const AHEAD: usize = 2;

/// A local address that nobody has.
const NOBODY: [u8; 6] = [0x52, 0x57, 0xff, 0xff, 0xff, 0xff];

/// A cache line, in bytes: holds the header and the head of a frame.
const LINE: usize = 64;
