//! Counters of a queue: written by the one thread that owns the queue's pump, read by any.

use std::sync::atomic::{AtomicU64, Ordering};

use crossbeam::utils::CachePadded;
use ringway_ring::queue::RingFault;

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
}

impl DropReason {
    /// Every reason, in the order of its number.
    pub const ALL: [DropReason; 6] = [
        DropReason::NoRxBuffer,
        DropReason::RxDisabled,
        DropReason::RxBufferTooSmall,
        DropReason::Oversize,
        DropReason::Runt,
        DropReason::TxDisabled,
    ];

    /// The name that operators see.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::NoRxBuffer => "no_rx_buffer",
            DropReason::RxDisabled => "rx_disabled",
            DropReason::RxBufferTooSmall => "rx_buffer_too_small",
            DropReason::Oversize => "oversize",
            DropReason::Runt => "runt",
            DropReason::TxDisabled => "tx_disabled",
        }
    }

    /// What it means and what clears it, for an operator.
    pub fn cure(self) -> &'static str {
        match self {
            DropReason::NoRxBuffer => {
                "the guest did not refill its receive queue in time: give it more CPU or a larger rx_queue_size"
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
        }
    }
}

/// Counters of one queue. Each is written with relaxed stores by the queue's pump alone.
#[derive(Debug, Default)]
pub struct QueueCounters {
    inner: CachePadded<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    received: AtomicU64,
    completed: AtomicU64,
    packets: AtomicU64,
    bytes: AtomicU64,
    calls: AtomicU64,
    bursts: AtomicU64,
    drops: [AtomicU64; DropReason::ALL.len()],
    faults: [AtomicU64; RingFault::ALL.len() + 1],
}

/// Adds to a counter that only this thread writes: a load and a store, no locked instruction.
#[inline]
fn add(counter: &AtomicU64, n: u64) {
    counter.store(counter.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
}

impl QueueCounters {
    /// Counts chains taken from the ring.
    #[inline]
    pub fn add_received(&self, chains: u64) {
        add(&self.inner.received, chains);
    }
    /// Counts chains given back to the driver.
    #[inline]
    pub fn add_completed(&self, chains: u64) {
        add(&self.inner.completed, chains);
    }
    /// Counts frames or requests, and their bytes, that passed this queue.
    #[inline]
    pub fn add_packets(&self, packets: u64, bytes: u64) {
        add(&self.inner.packets, packets);
        add(&self.inner.bytes, bytes);
    }
    /// Counts a call (a notification sent to the driver).
    #[inline]
    pub fn add_call(&self) {
        add(&self.inner.calls, 1);
    }
    /// Counts a burst that moved something.
    #[inline]
    pub fn add_burst(&self) {
        add(&self.inner.bursts, 1);
    }
    /// Counts dropped frames.
    #[inline]
    pub fn add_drops(&self, reason: DropReason, frames: u64) {
        add(&self.inner.drops[reason as usize], frames);
    }
    /// Counts a fault of the ring.
    pub fn add_fault(&self, fault: RingFault) {
        add(&self.inner.faults[fault as usize], 1);
    }

    /// A copy of every counter.
    pub fn snapshot(&self) -> QueueStats {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        QueueStats {
            received_desc: read(&self.inner.received),
            completed_desc: read(&self.inner.completed),
            packets: read(&self.inner.packets),
            bytes: read(&self.inner.bytes),
            calls: read(&self.inner.calls),
            bursts: read(&self.inner.bursts),
            drops: DropReason::ALL.map(|reason| (reason, read(&self.inner.drops[reason as usize]))).into(),
            faults: RingFault::ALL.map(|fault| (fault, read(&self.inner.faults[fault as usize]))).into(),
        }
    }
}

/// What the counters of a queue stood at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueStats {
    /// Chains taken from the ring (`received_desc` of `vdpa dev vstats`).
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
    /// Dropped frames by reason, every reason.
    pub drops: Vec<(DropReason, u64)>,
    /// Faults by reason, every reason.
    pub faults: Vec<(RingFault, u64)>,
}
