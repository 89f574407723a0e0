//! The pump that carries frames from a source queue (a driver's transmit queue) to a destination queue (a driver's
//! receive queue): one copy, straight from the sender's buffer into the receiver's.
//!
//! ```text
//!   guest's TX ring --peek--> frames --copy--> buffers <--peek-- guest's RX ring
//!        ^                                                           ^
//!        +-- complete, publish once          complete, publish once --+
//! ```
//!
//! The pump owns both rings and lives on one worker. Without a buffer on the receiving side the sender's descriptors
//! stay for at most [`BLOCKED_NS`]; then its frames are dropped and counted, burst by burst, until buffers come.
//!
//! Budget: no allocation, no lock, no panic; no system call but the call that a driver asked for.

use std::os::fd::BorrowedFd;

use ringway_engine::{Armed, Budget, Polled, Pump};
use ringway_ring::chain::{Burst, Chain};
use ringway_ring::guest::HostSlice;
use ringway_ring::queue::{DeviceRing, RingFault};

use super::end::End;
use super::{ETHERNET_HEADER, VLAN_TAG};
use crate::counters::DropReason;

/// How long a sender waits for a receiver without buffers before its frames are dropped: 10 ms, well above what a
/// running guest needs to refill, well below what a sender's transport protocol takes for a lost link.
pub const BLOCKED_NS: u64 = 10_000_000;

/// What a transfer does to the frames it carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TransferOptions {
    /// Largest packet without Ethernet header and VLAN tag.
    pub mtu: u16,
    /// Exchange source and destination address on the way.
    pub swap_mac: bool,
    /// Cycles per second of the worker's clock.
    pub hertz: u64,
}

/// A destination queue and the source queue that feeds it. Either may be absent while its guest has not started it.
#[derive(Debug)]
pub struct Transfer<R, T> {
    rx: Option<Box<End<R>>>,
    tx: Option<Box<End<T>>>,
    /// Longest frame that passes, Ethernet header included.
    max_frame: u32,
    swap_mac: bool,
    blocked_cycles: u64,
    hertz: u64,
    /// When the receiver was first found without a buffer for the frame in line; None while it takes frames.
    blocked_since: Option<u64>,
    /// Time of the last poll, for the sleep that `arm` allows.
    now: u64,
    /// Writable bytes of the receive chain seen last: how many chains a frame will take is judged by it.
    rx_capacity: u32,
}

/// What one burst came to.
#[derive(Debug)]
struct Outcome {
    /// Source chains done with.
    frames: usize,
    /// Destination chains filled.
    filled: usize,
    delivered: u64,
    bytes: u64,
    /// The frame in line finds no buffers.
    starved: bool,
    drops: [(u64, DropReason); 3],
    /// What the sender did wrong.
    tx_fault: Option<RingFault>,
    /// What the receiver did wrong.
    rx_fault: Option<RingFault>,
}

impl<R: DeviceRing, T: DeviceRing> Transfer<R, T> {
    /// Binds the two ends.
    pub fn new(rx: Option<Box<End<R>>>, tx: Option<Box<End<T>>>, options: TransferOptions) -> Self {
        Transfer {
            rx,
            tx,
            max_frame: u32::from(options.mtu) + ETHERNET_HEADER + VLAN_TAG,
            swap_mac: options.swap_mac,
            blocked_cycles: (u128::from(BLOCKED_NS) * u128::from(options.hertz) / 1_000_000_000) as u64,
            hertz: options.hertz.max(1),
            blocked_since: None,
            now: 0,
            rx_capacity: 1526,
        }
    }

    /// Drops `count` frames that wait at the source.
    fn drop_waiting(tx: &mut End<T>, count: usize, reason: DropReason) -> Polled {
        let chains = tx.burst.chains().get(..count).unwrap_or_default();
        if chains.is_empty() {
            return Polled::Idle;
        }
        tx.ring.consume(chains);
        for chain in chains {
            tx.ring.complete(chain, 0);
        }
        let dropped = chains.len();
        tx.counters.add_received(dropped as u64);
        tx.counters.add_completed(dropped as u64);
        tx.counters.add_drops(reason, dropped as u64);
        tx.publish();
        Polled::Moved(dropped as u32)
    }

    /// How many receive chains the peeked frames will take at most, as far as can be told.
    #[inline]
    fn chains_wanted(&self, tx: &End<T>, rx: &End<R>) -> usize {
        let peeked = tx.burst.chains();
        if !rx.mergeable {
            return peeked.len();
        }
        let extra: u32 = peeked.iter().map(|chain| chain.readable_bytes / self.rx_capacity.max(64)).sum();
        (peeked.len() + extra as usize).min(Burst::CHAINS)
    }
}

impl<R: DeviceRing, T: DeviceRing> Pump for Transfer<R, T> {
    fn poll(&mut self, budget: &Budget, now: u64) -> Polled {
        self.now = now;
        let Some(tx) = self.tx.as_deref_mut().filter(|tx| !tx.is_faulted()) else { return Polled::Idle };
        let peeked = tx.peek((budget.chains as usize).min(BURST));
        if peeked == 0 {
            self.blocked_since = None;
            return Polled::Idle;
        }
        if !tx.enabled {
            return Self::drop_waiting(tx, peeked, DropReason::TxDisabled);
        }
        if self.rx.as_deref().is_none_or(|rx| !rx.is_usable()) {
            return Self::drop_waiting(tx, peeked, DropReason::RxDisabled);
        }
        let (Some(rx), Some(tx)) = (self.rx.as_deref(), self.tx.as_deref()) else { return Polled::Idle };
        let wanted = self.chains_wanted(tx, rx);
        let (Some(rx), Some(tx)) = (self.rx.as_deref_mut(), self.tx.as_deref_mut()) else {
            return Polled::Idle;
        };

        rx.peek(wanted);
        prefetch(&tx.burst, &rx.burst);
        let mut outcome = carry(rx, tx, self.max_frame, self.swap_mac, budget);
        if outcome.frames == 0 && outcome.starved && wanted < Burst::CHAINS && rx.mergeable {
            // The guess was too low: the frame in line takes more buffers than were peeked.
            rx.peek(Burst::CHAINS);
            outcome = carry(rx, tx, self.max_frame, self.swap_mac, budget);
        }
        if let Some(chain) = rx.burst.chains().first() {
            self.rx_capacity = chain.writable_bytes;
        }
        let full = outcome.starved && rx.burst.chains().len() >= Burst::CHAINS;

        rx.publish();
        tx.publish();
        rx.counters.add_received(outcome.filled as u64);
        rx.counters.add_completed(outcome.filled as u64);
        rx.counters.add_packets(outcome.delivered, outcome.bytes);
        tx.counters.add_received(outcome.frames as u64);
        tx.counters.add_completed(outcome.frames as u64);
        tx.counters.add_packets(outcome.delivered, outcome.bytes);
        for (frames, reason) in outcome.drops {
            if frames > 0 {
                tx.counters.add_drops(reason, frames);
            }
        }
        if let Some(fault) = outcome.tx_fault {
            tx.fail(fault);
        }
        if let Some(fault) = outcome.rx_fault {
            rx.fail(fault);
        }
        if outcome.frames > 0 {
            self.blocked_since = None;
            rx.counters.add_burst();
            tx.counters.add_burst();
            return Polled::Moved(outcome.frames as u32);
        }
        if tx.is_faulted() || rx.is_faulted() {
            return Polled::Idle;
        }
        if full {
            // More buffers than a burst holds and still too small in sum: waiting would not help.
            return Self::drop_waiting(tx, 1, DropReason::RxBufferTooSmall);
        }
        let since = *self.blocked_since.get_or_insert(now);
        if now.wrapping_sub(since) >= self.blocked_cycles {
            // `blocked_since` stays: until buffers come, later frames do not wait anew.
            return Self::drop_waiting(tx, peeked, DropReason::NoRxBuffer);
        }
        Polled::Blocked
    }

    fn arm(&mut self) -> Armed {
        // Not in `poll`: a ring that moves calls by itself.
        if let Some(rx) = self.rx.as_deref_mut() {
            rx.pay_call();
        }
        if let Some(tx) = self.tx.as_deref_mut() {
            tx.pay_call();
        }
        let (source, within_ns) = match self.blocked_since {
            Some(since) => {
                let left = self.blocked_cycles.saturating_sub(self.now.wrapping_sub(since));
                let left_ns = (u128::from(left) * 1_000_000_000 / u128::from(self.hertz)) as u64;
                (self.rx.as_deref_mut().map(End::arm), Some(left_ns.max(1)))
            }
            None => (self.tx.as_deref_mut().map(End::arm), None),
        };
        match source {
            Some(Some(true)) => {
                self.disarm();
                Armed::HasWork
            }
            Some(None) => Armed::CannotSleep,
            Some(Some(false)) | None => Armed::Sleep { within_ns },
        }
    }

    fn disarm(&mut self) {
        if let Some(tx) = &mut self.tx {
            tx.disarm();
        }
        if let Some(rx) = &mut self.rx {
            rx.disarm();
        }
    }

    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        let rx = self.rx.as_deref().and_then(End::wake_source);
        let tx = self.tx.as_deref().and_then(End::wake_source);
        rx.into_iter().chain(tx).collect()
    }
}

/// Asks for the first lines of every peeked frame and buffer before the first is touched.
#[inline]
fn prefetch(tx: &Burst, rx: &Burst) {
    for chain in tx.chains() {
        if let Some(first) = tx.readable(chain).next() {
            first.prefetch_read(0);
            first.prefetch_read(64);
        }
    }
    for chain in rx.chains() {
        if let Some(first) = rx.writable(chain).next() {
            first.prefetch_write(0);
            first.prefetch_write(64);
        }
    }
}

/// Copies the peeked frames into the peeked buffers, and consumes and completes both, without publishing.
#[inline]
fn carry<R: DeviceRing, T: DeviceRing>(
    rx: &mut End<R>,
    tx: &mut End<T>,
    max_frame: u32,
    swap_mac: bool,
    budget: &Budget,
) -> Outcome {
    let mut outcome = Outcome {
        frames: 0,
        filled: 0,
        delivered: 0,
        bytes: 0,
        starved: false,
        drops: [(0, DropReason::Runt), (0, DropReason::Oversize), (0, DropReason::RxBufferTooSmall)],
        tx_fault: None,
        rx_fault: None,
    };
    let buffers = rx.burst.chains();
    let frames = tx.burst.chains();
    for frame in frames {
        if frame.writable_bytes != 0 {
            outcome.tx_fault = Some(RingFault::Direction);
            break;
        }
        let Some(len) = frame.readable_bytes.checked_sub(tx.header_len as u32) else {
            outcome.tx_fault = Some(RingFault::TooShort);
            break;
        };
        if len < ETHERNET_HEADER {
            outcome.drops[0].0 += 1;
        } else if len > max_frame {
            outcome.drops[1].0 += 1;
        } else {
            let needed = len as usize + rx.header_len;
            let free = buffers.get(outcome.filled..).unwrap_or_default();
            match fit(free, needed, rx.mergeable) {
                Fit::Into(count) => {
                    let into = free.get(..count).unwrap_or_default();
                    deliver(rx, into, tx, frame, len as usize, swap_mac);
                    rx.ring.consume(into);
                    let mut left = needed as u32;
                    for chain in into {
                        let written = left.min(chain.writable_bytes);
                        left -= written;
                        rx.ring.complete(chain, written);
                    }
                    outcome.filled += count;
                    outcome.delivered += 1;
                    outcome.bytes += u64::from(len);
                }
                Fit::Never => outcome.drops[2].0 += 1,
                Fit::NotYet => {
                    outcome.starved = true;
                    break;
                }
                Fit::WrongDirection => {
                    outcome.rx_fault = Some(RingFault::Direction);
                    break;
                }
            }
        }
        outcome.frames += 1;
        if outcome.bytes >= budget.bytes {
            break;
        }
    }
    let done = tx.burst.chains().get(..outcome.frames).unwrap_or_default();
    tx.ring.consume(done);
    for chain in done {
        tx.ring.complete(chain, 0);
    }
    outcome
}

/// Whether a frame fits.
#[derive(Debug, PartialEq, Eq)]
enum Fit {
    /// Into this many chains.
    Into(usize),
    /// Not into those that are there; more may come.
    NotYet,
    /// Not into the one chain that it may take.
    Never,
    /// A chain in line has nothing to write to, or something to read.
    WrongDirection,
}

/// Finds how many of the `free` chains take `needed` bytes.
#[inline]
fn fit(free: &[Chain], needed: usize, mergeable: bool) -> Fit {
    let mut room = 0usize;
    for (index, chain) in free.iter().enumerate() {
        if chain.readable_bytes != 0 || chain.writable_bytes == 0 {
            return Fit::WrongDirection;
        }
        room += chain.writable_bytes as usize;
        if room >= needed {
            return Fit::Into(index + 1);
        }
        if !mergeable {
            return Fit::Never;
        }
    }
    Fit::NotYet
}

/// Writes the header and copies one frame of `len` bytes into the chains that it fits.
#[inline]
fn deliver<R, T>(rx: &End<R>, into: &[Chain], tx: &End<T>, frame: &Chain, len: usize, swap_mac: bool) {
    // virtio 1.3 §5.1.6.4.1: with no offload negotiated flags and gso_type are 0; num_buffers is the number of chains.
    // What the sender's header claims is never passed on.
    let mut header = [0u8; 12];
    header[10..12].copy_from_slice(&(into.len() as u16).to_le_bytes());
    let header = header.get(..rx.header_len).unwrap_or_default();

    let mut source = tx.burst.readable(frame);
    if let [only] = into
        && let (Some(from), Some(to)) = (source.next(), rx.burst.writable(only).next())
        && from.len() >= tx.header_len + len
        && to.len() >= rx.header_len + len
    {
        let from = from.part(tx.header_len, len);
        to.write(header);
        let to = to.part(rx.header_len, len);
        if swap_mac {
            let mut addresses = [0u8; 12];
            from.read(&mut addresses);
            to.write(&swapped(addresses));
            to.part(12, len - 12).copy_from(from.part(12, len - 12));
        } else {
            to.copy_from(from);
        }
        return;
    }
    let mut from = Cursor::new(tx.burst.readable(frame));
    let mut to = Cursor::new(into.iter().flat_map(|chain| rx.burst.writable(chain)));
    to.write(header);
    from.skip(tx.header_len);
    let mut left = len;
    if swap_mac {
        let mut addresses = [0u8; 12];
        from.read(&mut addresses);
        to.write(&swapped(addresses));
        left -= addresses.len();
    }
    from.copy_to(&mut to, left);
}

/// Destination and source address exchanged.
#[inline]
fn swapped(addresses: [u8; 12]) -> [u8; 12] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = addresses;
    [g, h, i, j, k, l, a, b, c, d, e, f]
}

/// A place in a sequence of slices: for headers and frames that are spread over many descriptors.
struct Cursor<'map, I> {
    current: Option<HostSlice<'map>>,
    rest: I,
}

impl<'map, I: Iterator<Item = HostSlice<'map>>> Cursor<'map, I> {
    fn new(mut slices: I) -> Self {
        Cursor { current: slices.next(), rest: slices }
    }

    /// The bytes in line, never empty; None at the end.
    #[inline]
    fn head(&mut self) -> Option<HostSlice<'map>> {
        while let Some(slice) = self.current {
            if slice.len() > 0 {
                return Some(slice);
            }
            self.current = self.rest.next();
        }
        None
    }

    #[inline]
    fn advance(&mut self, bytes: usize) {
        self.current = self.current.map(|slice| slice.part(bytes, usize::MAX));
    }

    fn skip(&mut self, mut bytes: usize) {
        while bytes > 0
            && let Some(head) = self.head()
        {
            let step = head.len().min(bytes);
            self.advance(step);
            bytes -= step;
        }
    }

    fn read(&mut self, mut into: &mut [u8]) {
        while !into.is_empty()
            && let Some(head) = self.head()
        {
            let step = head.read(into);
            self.advance(step);
            into = into.get_mut(step..).unwrap_or_default();
        }
    }

    fn write(&mut self, mut from: &[u8]) {
        while !from.is_empty()
            && let Some(head) = self.head()
        {
            let step = head.write(from);
            self.advance(step);
            from = from.get(step..).unwrap_or_default();
        }
    }

    fn copy_to<'to, J: Iterator<Item = HostSlice<'to>>>(
        &mut self,
        to: &mut Cursor<'to, J>,
        mut bytes: usize,
    ) {
        while bytes > 0
            && let (Some(from), Some(into)) = (self.head(), to.head())
        {
            let step = into.copy_from(from.part(0, bytes));
            self.advance(step);
            to.advance(step);
            bytes -= step;
        }
    }
}

/// Frames in one burst: enough to spread the cost of publishing, few enough that their lines stay in the first-level
/// cache between prefetch and copy.
const BURST: usize = 32;
