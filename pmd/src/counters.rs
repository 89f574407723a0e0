//! Counters of a queue: written by the one thread that owns the queue's pump, read by any.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

// What a disk's queue did, by kind of request.
mod requests;

use crossbeam::utils::CachePadded;
use ringway_engine::{BurstSizes, Histogram, Sizes, Times};
use ringway_ring::queue::RingFault;

use crate::net::Mac;
use crate::net::capture::{Onlookers, QueueCapture};
use crate::net::side::Passage;
use crate::vdpa::Class;

pub use self::requests::{RequestCounters, RequestKind, RequestStats};

/// Why a frame or request was dropped by the data path, without fault of the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(usize)]
pub enum DropReason {
    /// The receiving queue had no buffer for longer than the bounded wait.
    NoRxBuffer,
    /// The receiving queue is stopped or disabled.
    RxDisabled,
    /// The frame does not fit the buffers that the receiving driver provided.
    RxBufferTooSmall,
    /// The frame is longer than the device's MTU allows.
    Oversize,
    /// The frame is shorter than an Ethernet header.
    Runt,
    /// The queue is started but disabled: what is sent is dropped, as the protocol demands.
    TxDisabled,
    /// What the frame's sender asks to be done to it does not fit the frame.
    BadOffload,
    /// The source address is not the device's, and the operator asked that it be.
    SpoofedMac,
    /// Nobody is at the other end.
    PeerDown,
    /// The frame is longer than the receiving device's MTU allows.
    RxOversize,
    /// More frames to everybody or to unknown addresses than the operator lets the device send.
    FloodLimit,
    /// The kernel's interface is down.
    NetdevDown,
    /// The kernel did not take the frame.
    NetdevRefused,
    /// The frame is to one of the addresses that a bridge keeps to itself.
    ReservedAddress,
    /// The frame is to a station behind the port that it came from.
    SamePort,
    /// The bridge's uplink had no room for the frame: its function did not send in time.
    UplinkFull,
    /// The function gave a frame back that was sent from here: by the device, or by a guest of the bridge.
    Reflected,
    /// The port does not carry the frame's VLAN, or nobody does who could be sent it.
    Vlan,
    /// More than the port is given in a second.
    RateLimit,
    /// The core that serves the frame's receiver did not take it in time, or serves nobody any more.
    LaneFull,
    /// The function received the frame damaged.
    Damaged,
    /// The request is for sectors beyond the disk's end.
    BeyondEnd,
    /// The request is for less than whole blocks.
    Misaligned,
    /// The disk is read-only.
    ReadOnly,
    /// The disk does no such thing.
    Unsupported,
    /// The request is in more pieces than the disk takes.
    TooManySegments,
    /// Ranges of a discard or a write of zeroes are more or longer than the disk takes.
    BadRange,
    /// The guest's memory for the request is not there: its VMM cut it.
    GuestMemory,
    /// What is behind the disk failed.
    BackingFailed,
}

impl DropReason {
    /// Every reason, in the order of its number; those of disks' requests come last.
    pub const ALL: [DropReason; 29] = [
        DropReason::NoRxBuffer,
        DropReason::RxDisabled,
        DropReason::RxBufferTooSmall,
        DropReason::Oversize,
        DropReason::Runt,
        DropReason::TxDisabled,
        DropReason::BadOffload,
        DropReason::SpoofedMac,
        DropReason::PeerDown,
        DropReason::RxOversize,
        DropReason::FloodLimit,
        DropReason::NetdevDown,
        DropReason::NetdevRefused,
        DropReason::ReservedAddress,
        DropReason::SamePort,
        DropReason::UplinkFull,
        DropReason::Reflected,
        DropReason::Vlan,
        DropReason::RateLimit,
        DropReason::LaneFull,
        DropReason::Damaged,
        DropReason::BeyondEnd,
        DropReason::Misaligned,
        DropReason::ReadOnly,
        DropReason::Unsupported,
        DropReason::TooManySegments,
        DropReason::BadRange,
        DropReason::GuestMemory,
        DropReason::BackingFailed,
    ];

    /// The reasons that a device of this class can have.
    pub fn of(class: Class) -> &'static [DropReason] {
        let (net, block) = DropReason::ALL.split_at(DropReason::BeyondEnd as usize);
        match class {
            Class::Net => net,
            Class::Block => block,
        }
    }

    /// The name that operators see.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::NoRxBuffer => "no_rx_buffer",
            DropReason::RxDisabled => "rx_disabled",
            DropReason::RxBufferTooSmall => "rx_buffer_too_small",
            DropReason::Oversize => "oversize",
            DropReason::Runt => "runt",
            DropReason::TxDisabled => "tx_disabled",
            DropReason::BadOffload => "bad_offload",
            DropReason::SpoofedMac => "spoofed_mac",
            DropReason::PeerDown => "peer_down",
            DropReason::RxOversize => "rx_oversize",
            DropReason::FloodLimit => "flood_limit",
            DropReason::NetdevDown => "netdev_down",
            DropReason::NetdevRefused => "netdev_refused",
            DropReason::ReservedAddress => "reserved_address",
            DropReason::SamePort => "same_port",
            DropReason::UplinkFull => "uplink_full",
            DropReason::Reflected => "reflected",
            DropReason::Vlan => "vlan",
            DropReason::RateLimit => "rate_limit",
            DropReason::LaneFull => "lane_full",
            DropReason::Damaged => "damaged",
            DropReason::BeyondEnd => "beyond_end",
            DropReason::Misaligned => "misaligned",
            DropReason::ReadOnly => "read_only",
            DropReason::Unsupported => "unsupported",
            DropReason::TooManySegments => "too_many_segments",
            DropReason::BadRange => "bad_range",
            DropReason::GuestMemory => "guest_memory",
            DropReason::BackingFailed => "backing_failed",
        }
    }

    /// What it means and what clears it, for an operator.
    pub fn cure(self) -> &'static str {
        match self {
            DropReason::NoRxBuffer => {
                "the guest did not refill its receive queue in time: see that its interface is up, or give it more CPU or a larger rx_queue_size"
            }
            DropReason::RxDisabled => {
                "the guest's receive queue is not running: bring the interface up, or enable the queue pair in the guest"
            }
            DropReason::RxBufferTooSmall => {
                "the guest's receive buffers are smaller than the frame: enable mrg_rxbuf or lower the MTU"
            }
            DropReason::Oversize => {
                "the guest sends more than the device's MTU: lower the guest's MTU or raise the device's"
            }
            DropReason::Runt => {
                "the guest sent less than an Ethernet header: look for a broken or hostile driver"
            }
            DropReason::TxDisabled => {
                "the guest disabled this queue pair: enable it in the guest (ethtool -L)"
            }
            DropReason::BadOffload => {
                "the guest asks for a checksum or segmentation that does not fit its frame: look for a broken or hostile driver"
            }
            DropReason::SpoofedMac => {
                "the guest sends from an address that is not its device's: give it the device's address, or set spoofchk off"
            }
            DropReason::PeerDown => {
                "each device at the other end must be connected and its guest's interface up: ringway dev show tells which is not"
            }
            DropReason::RxOversize => {
                "the sender's frames are longer than this device's MTU: lower the sender's MTU or raise this device's"
            }
            DropReason::FloodLimit => {
                "the guest sends more broadcasts, multicasts or frames to unknown addresses than flood_pps allows: raise it, or look for a loop or a hostile guest"
            }
            DropReason::ReservedAddress => {
                "no fault: spanning tree, LACP, pause and the like are between a bridge and its neighbours, and not passed on"
            }
            DropReason::SamePort => {
                "no fault: both stations are behind the same port (a bridge inside the guest); they reach each other there"
            }
            DropReason::Reflected => {
                "no fault: the hardware gives a function's own broadcasts back to it; a guest that moved away is heard from there once its device here is removed, or its address has aged"
            }
            DropReason::UplinkFull => {
                "the function behind the bridge did not send in time: its link is down (ringway dev show), or slower than what is sent"
            }
            DropReason::Vlan => {
                "the port, or the one that the frame is for, does not carry its VLAN: ringway bridge vlan show tells which do; a second tag behind the first, or a tag of a VLAN that the guest is not in, is its guest's fault"
            }
            DropReason::RateLimit => {
                "the port is sent more than max_rx_pps or max_rx_rate lets it have: raise them (ringway dev set), or limit who sends"
            }
            DropReason::LaneFull => {
                "the core that serves the receiving port did not take frames in time: ringway core show tells what it does; give it to nothing else, or serve the port by another core (ringway dev set name DEV core N)"
            }
            DropReason::Damaged => {
                "frames arrive with errors: look at the cable, the transceiver and the switch's port"
            }
            DropReason::BeyondEnd => {
                "the guest asks for sectors that the disk does not have: if it was made smaller, have the guest read its size again; else look for a broken or hostile driver"
            }
            DropReason::Misaligned => {
                "the guest asks for less than a block: its driver did not read the disk's blk_size"
            }
            DropReason::ReadOnly => {
                "the guest writes to a disk that is read-only: mount it so, or set ro off"
            }
            DropReason::Unsupported => {
                "no fault: drivers try what they may; what the disk offers is in ringway dev show"
            }
            DropReason::TooManySegments => {
                "the guest's requests are in more pieces than seg_max allows: its driver did not read it"
            }
            DropReason::BadRange => {
                "the guest's discards or writes of zeroes are beyond the disk's limits: its driver did not read them"
            }
            DropReason::GuestMemory => {
                "the VMM cut the guest's memory, or the host has none left for it: see the VMM, and free -m"
            }
            DropReason::BackingFailed => {
                "look at what is behind the disk, a file or a function: ringway dev show has the error"
            }
            DropReason::NetdevDown => "the kernel's interface is down: ip link set IFNAME up",
            DropReason::NetdevRefused => {
                "the kernel did not take the frame: look at `ip -s link` and at the host's free memory"
            }
        }
    }
}

/// What tells one dropped frame from others of its reason: the last one's stands for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Example {
    /// The address for which it was dropped.
    Address(Mac),
    /// Its length, of each frame that is made of it.
    Bytes(u32),
}

impl Example {
    /// In one word, never 0.
    fn to_word(self) -> u64 {
        match self {
            Example::Address(mac) => ADDRESS | mac.to_bits(),
            Example::Bytes(bytes) => BYTES | u64::from(bytes),
        }
    }

    fn from_word(word: u64) -> Option<Example> {
        match word & (ADDRESS | BYTES) {
            ADDRESS => Some(Example::Address(Mac::from_bits(word))),
            BYTES => Some(Example::Bytes(word as u32)),
            _ => None,
        }
    }
}

const ADDRESS: u64 = 1 << 62;
const BYTES: u64 = 1 << 63;

/// What a pump did on one queue and has not counted yet: one pass over the counters a burst.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Tally {
    /// Chains taken and given back.
    pub chains: u64,
    /// Frames that passed.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Frames whose checksum was completed here.
    pub checksums: u64,
    /// Frames that were cut up here.
    pub segmented: u64,
    /// The frames made of them.
    pub segments: u64,
    /// System calls that moved frames to or from the kernel's interface.
    pub netdev_calls: u64,
}

/// Counters of one queue. Each is written with relaxed stores by the queue's pump alone.
#[derive(Debug, Default)]
pub struct QueueCounters {
    inner: CachePadded<Inner>,
    /// Of a disk's queue, once it was started.
    requests: OnceLock<Box<RequestCounters>>,
    /// Of a network device's queue, once it was started.
    latency: OnceLock<Box<Histogram>>,
    /// Who looks on at its frames.
    onlookers: Onlookers,
}

/// In this order: what is touched at each burst comes first.
#[derive(Debug, Default)]
#[repr(C)]
struct Inner {
    /// Somebody looks on.
    is_captured: AtomicBool,
    completed: AtomicU64,
    packets: AtomicU64,
    bytes: AtomicU64,
    calls: AtomicU64,
    checksums: AtomicU64,
    segmented: AtomicU64,
    segments: AtomicU64,
    netdev_calls: AtomicU64,
    resubmitted: AtomicU64,
    held: AtomicU64,
    drops: [AtomicU64; DropReason::ALL.len()],
    /// The last [`Example`] of each reason; 0 where there is none.
    examples: [AtomicU64; DropReason::ALL.len()],
    faults: [AtomicU64; RingFault::ALL.len() + 1],
    /// Bursts by how many chains each gave back.
    bursts: Sizes,
}

/// Adds to a counter that only this thread writes: a load and a store, no locked instruction.
#[inline]
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

impl QueueCounters {
    /// Counts what a burst came to, and begins the tally anew.
    #[inline]
    pub fn add(&self, tally: &mut Tally) {
        let done = std::mem::take(tally);
        // Before anything has moved there may be a call to the kernel, or segments of a frame that is not done with.
        if done.checksums | done.segmented | done.segments | done.netdev_calls != 0 {
            add(&self.inner.checksums, done.checksums);
            add(&self.inner.segmented, done.segmented);
            add(&self.inner.segments, done.segments);
            add(&self.inner.netdev_calls, done.netdev_calls);
        }
        if done.chains | done.packets == 0 {
            return;
        }
        self.inner.bursts.add(done.chains);
        add(&self.inner.completed, done.chains);
        add(&self.inner.packets, done.packets);
        add(&self.inner.bytes, done.bytes);
    }
    /// Counts a call (a notification sent to the driver).
    #[inline]
    pub fn add_call(&self) {
        add(&self.inner.calls, 1);
    }
    /// Counts dropped frames; among them announcements that reach nobody, which are no frames of the queue and are counted
    /// nowhere else.
    #[inline]
    pub fn add_drops(&self, reason: DropReason, frames: u64) {
        add(&self.inner.drops[reason as usize], frames);
    }
    /// Notes what the last dropped frame of a reason was like: one store.
    pub fn set_example(&self, reason: DropReason, example: Example) {
        self.inner.examples[reason as usize].store(example.to_word(), Ordering::Relaxed);
    }
    /// Counts that frames had to stay in the queue for the rate of its port, or requests for that of their disk.
    pub fn add_held(&self) {
        add(&self.inner.held, 1);
    }
    /// Counts requests that a predecessor had and that are done again. No pump has the queue yet.
    pub fn add_resubmitted(&self, requests: u64) {
        add(&self.inner.resubmitted, requests);
    }
    /// Counts a fault of the ring.
    pub fn add_fault(&self, fault: RingFault) {
        add(&self.inner.faults[fault as usize], 1);
    }

    /// Whether somebody looks on at the queue's frames: asked once a burst.
    #[inline(always)]
    pub fn is_captured(&self) -> bool {
        // Relaxed: what it leads to is behind a lock.
        self.inner.is_captured.load(Ordering::Relaxed)
    }
    /// Shows a frame that passed the queue, or was dropped there, to those who look on. `at` in cycles.
    #[cold]
    pub fn capture(&self, from: Passage<'_>, dropped: Option<DropReason>, at: u64) {
        self.onlookers.show(from, dropped, at);
    }
    /// The same with a frame of our own.
    #[cold]
    pub fn capture_bytes(&self, frame: &[u8], dropped: Option<DropReason>, at: u64) {
        self.onlookers.show_bytes(frame, dropped, at);
    }
    /// Somebody looks on from now on. Not on a worker. False: a worker that does not run holds the list; try again.
    pub fn begin_capture(&self, capture: &Arc<QueueCapture>) -> bool {
        self.onlookers.change(&self.inner.is_captured, |all| all.push(Arc::clone(capture)))
    }
    /// They look on no more: nothing is copied for them from now on. Not on a worker. False: as for
    /// [`QueueCounters::begin_capture`], and they stand in the list until this is tried again.
    pub fn end_capture(&self, capture: &Arc<QueueCapture>) -> bool {
        capture.close();
        let leave = |all: &mut Vec<Arc<QueueCapture>>| all.retain(|other| !Arc::ptr_eq(other, capture));
        self.onlookers.change(&self.inner.is_captured, leave)
    }
    /// Holds the list of those who look on meanwhile.
    #[cfg(test)]
    pub(crate) fn change_held(&self, meanwhile: impl FnOnce()) {
        self.onlookers.change(&self.inner.is_captured, |_| meanwhile());
    }
    /// Frames of the queue that passed unseen by those who look on, since one of them was just coming or going.
    pub fn unseen(&self) -> u64 {
        self.onlookers.unseen()
    }

    /// The counters by kind of request; made when they are first asked for, which is not on a worker.
    pub fn requests(&self) -> &RequestCounters {
        self.requests.get_or_init(Box::default)
    }

    /// How long bursts took; made when it is first asked for, which is not on a worker.
    pub fn latency(&self) -> &Histogram {
        self.latency.get_or_init(Box::default)
    }

    /// Counts a burst that took so many cycles from when a worker first saw it until its used entries were published.
    #[inline]
    pub fn add_latency(&self, cycles: u64) {
        if let Some(latency) = self.latency.get() {
            latency.add(cycles, 1);
        }
    }

    /// A copy of every counter.
    pub fn snapshot(&self) -> QueueStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        // A network device's pump takes a burst and gives it back in the same poll. A disk's requests end when they end. Either may
        // be read a moment apart from the other, and what was given back was taken.
        let completed = read(&self.inner.completed);
        let taken = self.requests.get().map_or(0, |requests| requests.taken());
        QueueStats {
            received_desc: completed.max(taken),
            completed_desc: completed,
            packets: read(&self.inner.packets),
            bytes: read(&self.inner.bytes),
            calls: read(&self.inner.calls),
            bursts: self.inner.bursts.count(),
            burst_sizes: self.inner.bursts.snapshot(),
            latency: self.latency.get().map(|latency| latency.snapshot()).unwrap_or_default(),
            checksums: read(&self.inner.checksums),
            segmented: read(&self.inner.segmented),
            segments: read(&self.inner.segments),
            netdev_calls: read(&self.inner.netdev_calls),
            resubmitted: read(&self.inner.resubmitted),
            held: read(&self.inner.held),
            drops: DropReason::ALL.map(|reason| (reason, read(&self.inner.drops[reason as usize]))).into(),
            examples: DropReason::ALL
                .into_iter()
                .filter_map(|reason| {
                    Example::from_word(read(&self.inner.examples[reason as usize]))
                        .map(|example| (reason, example))
                })
                .collect(),
            faults: RingFault::ALL.map(|fault| (fault, read(&self.inner.faults[fault as usize]))).into(),
            requests: self.requests.get().map(|requests| requests.snapshot()).unwrap_or_default(),
        }
    }
}

/// What the counters of a queue stood at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueStats {
    /// Chains taken from the ring (`received_desc` of `vdpa dev vstats`); of a disk, with those that are under way.
    pub received_desc: u64,
    /// Chains given back (`completed_desc` of `vdpa dev vstats`).
    pub completed_desc: u64,
    /// Frames or requests that passed.
    pub packets: u64,
    /// Their bytes, without virtio headers.
    pub bytes: u64,
    /// Notifications sent to the driver.
    pub calls: u64,
    /// Bursts that moved something.
    pub bursts: u64,
    /// The same by how many chains each gave back. Of a receive queue of a bridge's part, what came through a lane is one by itself.
    pub burst_sizes: BurstSizes,
    /// How long bursts took from when a worker first saw them until their used entries were published, of a network device's
    /// queue that a core serves and that was started. One a turn of its pump, until its end.
    pub latency: Times,
    /// Frames whose checksum was completed here, since their receiver does not do it.
    pub checksums: u64,
    /// Frames that were cut up here, since their receiver takes none so large.
    pub segmented: u64,
    /// The frames made of them.
    pub segments: u64,
    /// System calls that moved frames to or from the kernel's interface; 0 for a guest's queue.
    pub netdev_calls: u64,
    /// Requests that a process before this one had, which were done again.
    pub resubmitted: u64,
    /// How often frames had to stay for the rate of the port, or requests for that of the disk.
    pub held: u64,
    /// Dropped frames by reason, every reason.
    pub drops: Vec<(DropReason, u64)>,
    /// The last dropped frame of those reasons that have an example.
    pub examples: Vec<(DropReason, Example)>,
    /// Faults by reason, every reason.
    pub faults: Vec<(RingFault, u64)>,
    /// Requests that succeeded, by kind, of a disk's queue that was started.
    pub requests: Vec<RequestStats>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_moved_no_frame_is_counted_all_the_same() {
        let counters = QueueCounters::default();
        let mut tally =
            Tally { netdev_calls: 1, checksums: 2, segments: 3, segmented: 4, ..Tally::default() };
        counters.add(&mut tally);
        assert_eq!(tally, Tally::default());
        tally.chains = 1;
        counters.add(&mut tally);
        let now = counters.snapshot();
        assert_eq!((now.netdev_calls, now.checksums, now.segments, now.segmented), (1, 2, 3, 4));
        assert_eq!((now.bursts, now.received_desc), (1, 1));
    }

    #[test]
    fn requests_of_a_disk_are_taken_before_they_are_given_back() {
        let counters = QueueCounters::default();
        counters.requests().add_taken(3);
        counters.add(&mut Tally { chains: 1, packets: 1, ..Tally::default() });
        let now = counters.snapshot();
        assert_eq!((now.received_desc, now.completed_desc), (3, 1));
    }
}
