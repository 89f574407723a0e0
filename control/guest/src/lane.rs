//! One queue pair of a guest, from the driver's side: its rings, its buffers, the frames it sends and those it checks. Of a
//! [`Pair`] frames are touched, of a `BarePair` none. Owned by one thread.

mod pair;

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hdrhistogram::Histogram;
pub use pair::Pair;
use ringway_pmd::notify::EventFd;
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::layout::{Areas, DriverConfig};
use ringway_ring::packed::driver::PackedDriver;
use ringway_ring::queue::{Format, RingSize};
use ringway_ring::split::driver::SplitDriver;
use ringway_ring::tsc;

use crate::bare::BarePair;
use crate::error::GuestError;
use crate::frame::Filler;
use crate::ledger::Counts;
use crate::options::{GuestOptions, Touch};
use crate::pace::Pace;
use crate::presence::Presence;
use crate::standing;

/// What a lane is made of.
#[derive(Debug)]
pub(crate) struct LaneSetup<'a> {
    pub(crate) options: &'a GuestOptions,
    /// The pair's number in its guest.
    pub(crate) pair: u16,
    /// The number that its frames carry.
    pub(crate) flow: u16,
    /// How far the flow of each number has come, whichever lane it arrives at.
    pub(crate) progress: Arc<[AtomicU64]>,
    pub(crate) size: RingSize,
    pub(crate) features: Features,
    pub(crate) header_len: usize,
    pub(crate) map: Arc<GuestMap>,
    /// Receive and transmit ring, by guest physical address.
    pub(crate) rings: [Areas<u64>; 2],
    pub(crate) rx_buffers: Box<[u64]>,
    pub(crate) rx_buffer_bytes: u32,
    pub(crate) tx_buffers: Box<[u64]>,
    /// Kicks of the receive and the transmit queue.
    pub(crate) kick: [Arc<EventFd>; 2],
}

/// A queue pair of either format.
#[derive(Debug)]
pub enum Lane {
    /// Over split rings.
    Split(Box<Pair<SplitDriver>>),
    /// Over packed rings.
    Packed(Box<Pair<PackedDriver>>),
    /// Over split rings, frames untouched.
    BareSplit(Box<BarePair<standing::Split>>),
    /// Over packed rings, frames untouched.
    BarePacked(Box<BarePair<standing::Packed>>),
}

/// What a turn sends.
#[derive(Debug)]
pub enum Offer<'a> {
    /// Nothing.
    Nothing,
    /// As much as the window lets.
    All,
    /// So many frames at most.
    AtMost(u32),
    /// What is due.
    Due(&'a mut Pace),
}

/// Calls a method of whichever it is.
macro_rules! either {
    ($lane:expr, $pair:ident => $call:expr) => {
        match $lane {
            Lane::Split($pair) => $call,
            Lane::Packed($pair) => $call,
            Lane::BareSplit($pair) => $call,
            Lane::BarePacked($pair) => $call,
        }
    };
}

impl Lane {
    /// Makes the rings and posts every receive buffer.
    pub(crate) fn new(setup: LaneSetup<'_>) -> Result<Lane, GuestError> {
        Ok(match (setup.options.format, setup.options.touch) {
            (Format::Split, Touch::None) => Lane::BareSplit(Box::new(BarePair::new(setup)?)),
            (Format::Packed, Touch::None) => Lane::BarePacked(Box::new(BarePair::new(setup)?)),
            (Format::Split, _) => Lane::Split(Box::new(Pair::new(setup, DriverConfig::start_split)?)),
            (Format::Packed, _) => Lane::Packed(Box::new(Pair::new(setup, DriverConfig::start_packed)?)),
        })
    }

    /// One turn: takes what came, sends what it may, looks at the frames that came and posts their buffers again; returns
    /// how many frames came, good or bad. What it finds on the way of its thread's presence, it enters there.
    #[inline]
    pub fn turn(&mut self, offer: Offer<'_>, presence: &mut Presence) -> Result<u32, GuestError> {
        either!(self, pair => pair.turn(offer, presence))
    }

    /// Frames of its flow that are under way.
    #[inline]
    pub fn under_way(&mut self, now: u64) -> u64 {
        either!(self, pair => pair.under_way(now))
    }

    /// Records the latency of one frame in `every` (a power of two).
    pub fn sample_every(&mut self, every: u64) {
        either!(self, pair => pair.sample_mask = every.next_power_of_two() - 1);
    }

    /// The latencies recorded since it was last asked, in cycles.
    pub fn take_latency(&mut self) -> Histogram<u64> {
        let fresh = histogram();
        either!(self, pair => std::mem::replace(&mut pair.latency, fresh))
    }

    /// Frames whose latency was set aside since it was last asked, since the thread was absent meanwhile.
    pub fn take_set_aside(&mut self) -> u64 {
        either!(self, pair => std::mem::take(&mut pair.set_aside))
    }

    /// Everything counted so far, the books open. The frames received are those of any flow that came here.
    pub fn counts(&self) -> Counts {
        either!(self, pair => pair.counts())
    }

    /// Everything counted so far, as it comes.
    pub fn stats(&self) -> Stats {
        either!(self, pair => pair.stats())
    }

    /// The latencies recorded so far, in cycles, of one frame in 16 unless told otherwise.
    pub fn latency(&self) -> &Histogram<u64> {
        either!(self, pair => &pair.latency)
    }

    /// The number that its frames carry.
    pub fn flow(&self) -> u16 {
        either!(self, pair => pair.flow())
    }

    /// The used index that is in a split ring: 0 receive, 1 transmit.
    pub(crate) fn used_idx(&self, direction: usize) -> u16 {
        either!(self, pair => pair.used_idx(direction))
    }

    /// What the device is kicked by: 0 receive, 1 transmit.
    pub(crate) fn kick_of(&self, direction: usize) -> BorrowedFd<'_> {
        let [rx, tx] = either!(self, pair => &pair.kick);
        if direction == 0 { rx.as_fd() } else { tx.as_fd() }
    }

    /// Looks at every frame from now on, or again at as many as its options say: which flow comes here is learned so where
    /// no frame is touched.
    pub fn look_at_all(&mut self, all: bool) {
        either!(self, pair => pair.look_at_all(all));
    }

    /// Kicks of either queue that the back-end asked for, since it was last asked.
    pub fn take_kicks(&mut self) -> u64 {
        either!(self, pair => std::mem::take(&mut pair.kicks))
    }

    /// Signals both kicks, as a driver does that has just filled its rings: some back-ends wait for the first.
    pub fn kick(&self) {
        either!(self, pair => pair.kick.iter().for_each(|kick| {
            kick.signal();
        }));
    }
}

/// What a queue pair counted. A frame that came twice or late is among those received.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stats {
    /// Frames given to the transmit queue.
    pub sent: u64,
    /// Frames that the device took from it.
    pub transmitted: u64,
    /// Frames that came back intact.
    pub received: u64,
    /// Numbers before the newest frame that are missing: lost, or late.
    pub skipped: u64,
    /// Frames older than one that came before: doubled or reordered.
    pub stale: u64,
    /// Frames that failed their check.
    pub corrupt: u64,
    /// Receive buffers that were given back empty: by the successor of a device that died over them.
    pub empty: u64,
    /// Kicks that the device asked for.
    pub kicks: u64,
}

impl Stats {
    /// Both, added up.
    #[must_use]
    pub fn plus(self, other: &Stats) -> Stats {
        Stats {
            sent: self.sent + other.sent,
            transmitted: self.transmitted + other.transmitted,
            received: self.received + other.received,
            skipped: self.skipped + other.skipped,
            stale: self.stale + other.stale,
            corrupt: self.corrupt + other.corrupt,
            empty: self.empty + other.empty,
            kicks: self.kicks + other.kicks,
        }
    }
}

/// Frames under way at most.
pub(crate) fn window_of(options: &GuestOptions, size: RingSize) -> u64 {
    options.window.unwrap_or(size.get()).min(size.get()).into()
}

/// After so long without a frame, those under way are given up, in cycles.
pub(crate) fn give_up_cycles(options: &GuestOptions) -> u64 {
    (options.give_up.as_nanos() * u128::from(tsc::hertz()) / 1_000_000_000) as u64
}

/// Where the payload of a transmit buffer begins in the filler, if it is written once.
pub(crate) fn place_of(slot: usize) -> u16 {
    (slot % usize::from(Filler::PLACES)) as u16
}

/// Buffers taken at once, and frames sent at once at most.
pub const BURST: usize = 64;

/// Of a closed loop, one frame in so many has its latency recorded.
const DEFAULT_SAMPLE: u64 = 16;

/// What no filler has in it.
pub(crate) static POISON: [u8; 16384] = [0xa5; 16384];

/// A histogram for latencies in cycles, to three digits, up to 16 s at 4 GHz.
pub fn histogram() -> Histogram<u64> {
    // Bounds and precision are ones that the library takes; an empty histogram of its own choice otherwise.
    let fixed = Histogram::new_with_bounds(1, LATENCY_MAX_CYCLES, 3).ok();
    fixed.or_else(|| Histogram::new(3).ok()).unwrap_or_else(|| unreachable!("3 digits are allowed"))
}

const LATENCY_MAX_CYCLES: u64 = 1 << 36;
