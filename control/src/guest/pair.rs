//! One queue pair of the built-in guest and its traffic.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::Duration;

use hdrhistogram::Histogram;
use ringway_pmd::net::header_len;
use ringway_pmd::notify::EventFd;
use ringway_ring::features::Features;
use ringway_ring::guest::{GuestMap, LastHit};
use ringway_ring::layout::{Areas, DriverConfig, Layout};
use ringway_ring::packed::driver::PackedDriver;
use ringway_ring::position::Position;
use ringway_ring::queue::{Completion, DriverBuffer, DriverRing, Format, RingSize, SetupError};
use ringway_ring::split::driver::SplitDriver;
use ringway_ring::tsc;

use super::GuestError;
use super::frame::{ETHER_TYPE, STAMP_AT, STAMP_BYTES, Stamp};

/// What a pair is made of.
#[derive(Debug)]
pub(super) struct PairSetup {
    /// Its number, from 0.
    pub(super) index: u16,
    pub(super) format: Format,
    pub(super) size: RingSize,
    pub(super) features: Features,
    /// The guest's memory, one region.
    pub(super) map: Arc<GuestMap>,
    /// Where the memory starts in this process.
    pub(super) user_addr: u64,
    /// Where it starts in the guest's physical addresses.
    pub(super) gpa: u64,
    /// Where both rings start in the memory.
    pub(super) rings_at: u64,
    /// Where the buffers start in the memory: a ring's worth for receiving, then one for sending.
    pub(super) buffers_at: u64,
    /// Bytes of one buffer.
    pub(super) buffer_bytes: u32,
    /// Room that each buffer has; more than its bytes: scattered.
    pub(super) slot_bytes: u64,
    pub(super) frame_len: u16,
    /// Frames under way at most: no more than the ring's size.
    pub(super) window: u16,
    /// After so long without a frame, those under way are given up.
    pub(super) give_up: Duration,
    /// Destination and source of its frames.
    pub(super) addresses: [[u8; 6]; 2],
    /// Kicks of the receive and of the transmit queue.
    pub(super) kick: [Arc<EventFd>; 2],
}

/// What a pair counted.
#[derive(Debug, Clone, Default)]
pub struct PairStats {
    /// Frames given to the transmit queue.
    pub sent: u64,
    /// Frames that the device took from it.
    pub transmitted: u64,
    /// Frames that came back intact.
    pub received: u64,
    /// Sequence numbers skipped: lost, or late.
    pub skipped: u64,
    /// Frames older than one that came before: duplicated or reordered.
    pub stale: u64,
    /// Frames that failed their check.
    pub corrupt: u64,
    /// Receive buffers that were given back empty: by the successor of a device that died over them.
    pub empty: u64,
    /// Kicks that the device asked for.
    pub kicks: u64,
    /// From sending to receiving, in cycles, of one frame in [`SAMPLE`].
    pub latency_cycles: Option<Histogram<u64>>,
}

/// One frame in so many has its latency recorded and every byte checked.
pub const SAMPLE: u64 = 16;

impl PairStats {
    /// Both, added up.
    #[must_use]
    pub fn plus(mut self, other: &PairStats) -> PairStats {
        self.sent += other.sent;
        self.transmitted += other.transmitted;
        self.received += other.received;
        self.skipped += other.skipped;
        self.stale += other.stale;
        self.corrupt += other.corrupt;
        self.empty += other.empty;
        self.kicks += other.kicks;
        match (&mut self.latency_cycles, &other.latency_cycles) {
            // Same bounds and precision: adding cannot fail.
            (Some(sum), Some(more)) => drop(sum.add(more)),
            (sum @ None, Some(more)) => *sum = Some(more.clone()),
            (_, None) => {}
        }
        self
    }
}

/// A queue pair of either format.
#[derive(Debug)]
pub struct Pair {
    inner: Either,
}

#[derive(Debug)]
enum Either {
    Split(Traffic<SplitDriver>),
    Packed(Traffic<PackedDriver>),
}

/// Room that one ring takes, in bytes.
pub(super) fn ring_bytes(format: Format, size: RingSize) -> u64 {
    Layout::new(format, size).total.next_multiple_of(PAGE)
}

impl Pair {
    pub(super) fn new(setup: PairSetup) -> Result<Pair, GuestError> {
        let inner = match setup.format {
            Format::Split => Either::Split(Traffic::new(setup, DriverConfig::start_split)?),
            Format::Packed => Either::Packed(Traffic::new(setup, DriverConfig::start_packed)?),
        };
        Ok(Pair { inner })
    }

    /// One round: collects what came and checks it, posts the buffers again, sends up to `send` frames. Returns how
    /// many frames were received.
    #[inline]
    pub fn turn(&mut self, send: u32) -> Result<u32, GuestError> {
        match &mut self.inner {
            Either::Split(traffic) => traffic.turn(send),
            Either::Packed(traffic) => traffic.turn(send),
        }
    }

    /// What it counted.
    pub fn stats(&self) -> &PairStats {
        match &self.inner {
            Either::Split(traffic) => &traffic.stats,
            Either::Packed(traffic) => &traffic.stats,
        }
    }

    pub(super) fn index(&self) -> u16 {
        match &self.inner {
            Either::Split(traffic) => traffic.index,
            Either::Packed(traffic) => traffic.index,
        }
    }

    /// User addresses of the areas of the receive ring, then of the transmit ring.
    pub(super) fn ring_addresses(&self) -> [Areas<u64>; 2] {
        match &self.inner {
            Either::Split(traffic) => traffic.addresses,
            Either::Packed(traffic) => traffic.addresses,
        }
    }

    /// The used index that is in a split ring.
    pub(super) fn used_idx(&self, direction: usize) -> u16 {
        let (map, addresses) = match &self.inner {
            Either::Split(traffic) => (&traffic.map, &traffic.addresses),
            Either::Packed(traffic) => (&traffic.map, &traffic.addresses),
        };
        let mut idx = [0; 2];
        let place = addresses.get(direction).and_then(|areas| map.resolve_user(areas.device + 2, 2).ok());
        place.map(|place| place.read(&mut idx));
        u16::from_le_bytes(idx)
    }

    /// What the device is kicked by: 0 receive, 1 transmit.
    pub(super) fn kick(&self, direction: usize) -> BorrowedFd<'_> {
        let [rx, tx] = match &self.inner {
            Either::Split(traffic) => &traffic.kick,
            Either::Packed(traffic) => &traffic.kick,
        };
        if direction == 0 { rx.as_fd() } else { tx.as_fd() }
    }
}

/// The traffic of one pair over rings of one format.
#[derive(Debug)]
struct Traffic<D> {
    index: u16,
    rx: D,
    tx: D,
    map: Arc<GuestMap>,
    hint: LastHit,
    addresses: [Areas<u64>; 2],
    kick: [Arc<EventFd>; 2],
    /// Guest physical address of the first buffer; receive buffers come first.
    buffers_gpa: u64,
    buffer_bytes: u32,
    slot_bytes: u64,
    /// Odd: consecutive buffers are so many slots apart.
    slot_step: u64,
    ring_size: u32,
    header_len: u32,
    frame_len: u16,
    window: u16,
    give_up_cycles: u64,
    /// Transmit buffers that the device does not hold.
    free: Vec<u32>,
    next_sequence: u64,
    /// Frames from here on are under way, or lost.
    expected_sequence: u64,
    /// When the last frame came or went, or the missing ones were given up.
    last_progress: u64,
    /// What a frame looks like but for its stamp, and room for one that came: for the sampled comparison of all bytes.
    template: Vec<u8>,
    scratch: Vec<u8>,
    stats: PairStats,
}

impl<D: DriverRing> Traffic<D> {
    fn new(setup: PairSetup, start: fn(DriverConfig) -> Result<D, SetupError>) -> Result<Self, GuestError> {
        let layout = Layout::new(setup.format, setup.size);
        let place = |direction: u64| setup.rings_at + direction * ring_bytes(setup.format, setup.size);
        let ring = |direction| {
            start(DriverConfig {
                size: setup.size,
                features: setup.features,
                map: Arc::clone(&setup.map),
                areas: layout.at(setup.gpa + place(direction)),
                position: Position::START,
            })
        };
        let ring_size = u32::from(setup.size.get());
        let histogram = Histogram::new_with_bounds(1, LATENCY_MAX_CYCLES, 3).ok();
        let mut traffic = Traffic {
            index: setup.index,
            rx: ring(0)?,
            tx: ring(1)?,
            addresses: [0, 1].map(|direction| layout.at(setup.user_addr + place(direction))),
            kick: setup.kick,
            buffers_gpa: setup.gpa + setup.buffers_at,
            buffer_bytes: setup.buffer_bytes,
            slot_bytes: setup.slot_bytes,
            slot_step: if setup.slot_bytes == u64::from(setup.buffer_bytes) { 1 } else { SCATTER },
            ring_size,
            header_len: header_len(setup.features) as u32,
            frame_len: setup.frame_len,
            window: setup.window,
            give_up_cycles: (setup.give_up.as_nanos() * u128::from(tsc::hertz()) / 1_000_000_000) as u64,
            free: (0..ring_size).rev().collect(),
            next_sequence: 0,
            expected_sequence: 0,
            last_progress: tsc::cycles(),
            template: template(setup.addresses, setup.frame_len),
            scratch: vec![0; setup.frame_len.into()],
            stats: PairStats { latency_cycles: histogram, ..PairStats::default() },
            hint: LastHit::default(),
            map: setup.map,
        };
        traffic.rx.disable_calls();
        traffic.tx.disable_calls();
        traffic.fill_transmit_buffers();
        for slot in 0..ring_size {
            traffic.post(slot);
        }
        traffic.rx.publish();
        Ok(traffic)
    }

    /// Writes what no frame changes: addresses, type, filler.
    fn fill_transmit_buffers(&self) {
        for slot in 0..self.ring_size {
            let gpa = self.transmit_gpa(slot) + u64::from(self.header_len);
            if let Ok(buffer) = self.map.resolve(gpa, self.frame_len.into()) {
                buffer.write(&self.template);
            }
        }
    }

    fn receive_gpa(&self, slot: u32) -> u64 {
        self.buffer_gpa(slot.into())
    }

    fn transmit_gpa(&self, slot: u32) -> u64 {
        self.buffer_gpa(u64::from(self.ring_size) + u64::from(slot))
    }

    #[inline]
    fn buffer_gpa(&self, number: u64) -> u64 {
        if self.slot_step == 1 {
            return self.buffers_gpa + number * self.slot_bytes;
        }
        // Not at the beginning of each page: those would all meet in one set of the caches.
        let places = self.slot_bytes / u64::from(self.buffer_bytes);
        let slot = number * self.slot_step % scattered_slots(self.ring_size.into());
        self.buffers_gpa + slot * self.slot_bytes + slot % places * u64::from(self.buffer_bytes)
    }

    /// Makes a receive buffer available.
    #[inline]
    fn post(&mut self, slot: u32) {
        let buffer = DriverBuffer { gpa: self.receive_gpa(slot), len: self.buffer_bytes, writable: true };
        // As many buffers as the ring has entries: there is always room.
        let _ = self.rx.add(&[buffer], slot);
    }

    fn turn(&mut self, send: u32) -> Result<u32, GuestError> {
        let received = self.receive()?;
        self.send(send)?;
        Ok(received)
    }

    #[inline]
    fn receive(&mut self) -> Result<u32, GuestError> {
        let mut done = [Completion::default(); BATCH];
        let count = self.rx.collect(&mut done).map_err(|fault| self.device_fault(0, fault))?;
        if count == 0 {
            return Ok(0);
        }
        let now = tsc::cycles();
        self.last_progress = now;
        for completion in done.iter().take(count) {
            self.check(*completion, now);
            self.post(completion.token);
        }
        if self.rx.publish() {
            self.stats.kicks += 1;
            self.kick[0].signal();
        }
        Ok(count as u32)
    }

    /// Checks a frame that came back.
    #[inline]
    fn check(&mut self, completion: Completion, now: u64) {
        if completion.written == 0 {
            self.stats.empty += 1;
            return;
        }
        let gpa = self.receive_gpa(completion.token) + u64::from(self.header_len);
        let Ok(frame) = self.map.lookup(&mut self.hint, gpa, self.frame_len.into()) else { return };
        let mut stamp = [0u8; STAMP_BYTES];
        frame.part(STAMP_AT, STAMP_BYTES).read(&mut stamp);
        let stamp = Stamp::from_bytes(&stamp, self.frame_len);
        let whole = completion.written == self.header_len + u32::from(self.frame_len);
        let Some(stamp) = stamp.filter(|_| whole) else {
            self.stats.corrupt += 1;
            return;
        };
        if stamp.sequence.is_multiple_of(SAMPLE) {
            frame.read(&mut self.scratch);
            // The addresses may come back exchanged; the stamp was checked above.
            let filler = STAMP_AT + STAMP_BYTES..;
            let same = self.template.get(12..STAMP_AT) == self.scratch.get(12..STAMP_AT)
                && self.template.get(filler.clone()) == self.scratch.get(filler);
            if !same {
                self.stats.corrupt += 1;
                return;
            }
            if let Some(latency) = &mut self.stats.latency_cycles {
                latency.saturating_record(now.saturating_sub(stamp.sent_at));
            }
        }
        if stamp.sequence < self.expected_sequence {
            self.stats.stale += 1;
        } else {
            self.stats.skipped += stamp.sequence - self.expected_sequence;
            self.expected_sequence = stamp.sequence + 1;
        }
        self.stats.received += 1;
    }

    #[inline]
    fn send(&mut self, most: u32) -> Result<(), GuestError> {
        let mut done = [Completion::default(); BATCH];
        let count = self.tx.collect(&mut done).map_err(|fault| self.device_fault(1, fault))?;
        self.stats.transmitted += count as u64;
        self.free.extend(done.iter().take(count).map(|completion| completion.token));

        let now = tsc::cycles();
        let len = self.header_len + u32::from(self.frame_len);
        let most = most.min(self.window(now));
        let mut added = 0;
        while added < most
            && let Some(slot) = self.free.pop()
        {
            let gpa = self.transmit_gpa(slot);
            let stamp = Stamp { sequence: self.next_sequence, sent_at: now };
            let at = gpa + u64::from(self.header_len) + STAMP_AT as u64;
            if let Ok(place) = self.map.lookup(&mut self.hint, at, STAMP_BYTES as u32) {
                place.write(&stamp.to_bytes(self.frame_len));
            }
            if self.tx.add(&[DriverBuffer { gpa, len, writable: false }], slot).is_err() {
                self.free.push(slot);
                break;
            }
            self.next_sequence += 1;
            added += 1;
        }
        self.stats.sent += u64::from(added);
        if added > 0 {
            // Also after a rest: what is sent now has only begun to be awaited.
            self.last_progress = now;
        }
        if added > 0 && self.tx.publish() {
            self.stats.kicks += 1;
            self.kick[1].signal();
        }
        Ok(())
    }

    /// How many frames may be sent now: no more are under way than there are receive buffers, so that a device has no
    /// reason to drop any, however long this thread is held up.
    #[inline]
    fn window(&mut self, now: u64) -> u32 {
        // What comes may be another's, whose numbers run ahead of ours.
        let under_way = self.next_sequence.saturating_sub(self.expected_sequence);
        let window = u64::from(self.window).saturating_sub(under_way) as u32;
        if window == 0 && now.saturating_sub(self.last_progress) > self.give_up_cycles {
            // The whole tail is missing: it is lost, and must not stop what follows.
            self.expected_sequence = self.next_sequence;
            self.last_progress = now;
        }
        window
    }

    fn device_fault(&self, direction: u16, fault: ringway_ring::queue::RingFault) -> GuestError {
        GuestError::Device { queue: self.index * 2 + direction, fault }
    }
}

/// A frame without its stamp.
fn template([destination, source]: [[u8; 6]; 2], frame_len: u16) -> Vec<u8> {
    let filler = (0..frame_len).map(|at| (at as u8).wrapping_mul(31) ^ 0x5a);
    let head = destination.into_iter().chain(source).chain(ETHER_TYPE);
    head.chain(filler.skip(STAMP_AT)).collect()
}

/// Slots for the scattered buffers of both rings of a pair: a power of two, which an odd step meets all of.
pub(super) fn scattered_slots(ring_size: u64) -> u64 {
    (ring_size * 2).next_power_of_two()
}

/// Between consecutive scattered buffers, in slots; odd.
const SCATTER: u64 = 331;

/// Completions taken at once, and frames sent at once at most.
pub const BATCH: usize = 32;

/// 10 s at 6 GHz: beyond it a latency counts as that.
const LATENCY_MAX_CYCLES: u64 = 60_000_000_000;

const PAGE: u64 = 4096;
