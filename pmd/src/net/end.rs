//! One end of a transfer: a started queue of a network device, ready to be polled.
//!
//! Owned by the pump that owns the queue; lives on its worker.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use ringway_ring::chain::Burst;
use ringway_ring::guest::GuestMap;
use ringway_ring::packed::device::PackedDevice;
use ringway_ring::queue::{DeviceRing, RingFault, SetupError};
use ringway_ring::split::device::SplitDevice;

use super::{F_MRG_RXBUF, header_len};
use crate::counters::QueueCounters;
use crate::notify::EventFd;
use crate::vdpa::{FaultReporter, QueueBinding};

/// One end: the ring, the scratch memory of its bursts, and whom to tell what.
#[derive(Debug)]
pub struct End<Q> {
    /// The device's side of the ring.
    pub(super) ring: Q,
    /// What was peeked last.
    pub(super) burst: Burst,
    /// Counted by this end's pump alone.
    pub(super) counters: Arc<QueueCounters>,
    /// Bytes of the virtio header before each frame.
    pub(super) header_len: usize,
    /// A frame may span several chains (MRG_RXBUF).
    pub(super) mergeable: bool,
    /// False: what the driver sends is dropped, nothing is delivered to it.
    pub(super) enabled: bool,
    map: Arc<GuestMap>,
    kick: Option<Arc<EventFd>>,
    call: Option<Arc<EventFd>>,
    fault: FaultReporter,
    faulted: bool,
    /// A predecessor may have died between publishing and calling. The driver may be waiting for that call, and make
    /// nothing available until then that would bring the next.
    owes_call: bool,
}

impl End<SplitDevice> {
    /// An end on a split ring.
    pub fn split(binding: QueueBinding) -> Result<Box<Self>, SetupError> {
        let ring = binding.config.clone().activate_split()?;
        End::new(binding, ring)
    }
}

impl End<PackedDevice> {
    /// An end on a packed ring.
    pub fn packed(binding: QueueBinding) -> Result<Box<Self>, SetupError> {
        let ring = binding.config.clone().activate_packed()?;
        End::new(binding, ring)
    }
}

impl<Q: DeviceRing> End<Q> {
    fn new(binding: QueueBinding, mut ring: Q) -> Result<Box<End<Q>>, SetupError> {
        let burst = Burst::try_new(Arc::clone(&binding.config.map)).map_err(|_| SetupError::NoMemory)?;
        // It is about to be polled: the driver need not kick until the pump arms.
        ring.disable_kicks();
        let features = binding.config.features;
        let start = binding.config.position;
        let owes_call = (start.used_idx, start.used_wrap) != (0, true);
        Ok(Box::new(End {
            ring,
            burst,
            map: binding.config.map,
            counters: binding.counters,
            header_len: header_len(features),
            mergeable: features.contains(F_MRG_RXBUF),
            enabled: binding.enabled,
            kick: binding.kick,
            call: binding.call,
            fault: binding.fault,
            faulted: false,
            owes_call,
        }))
    }

    /// True while frames can be delivered to it or taken from it.
    #[inline]
    pub(super) fn is_usable(&self) -> bool {
        self.enabled && !self.faulted
    }

    /// True once the ring broke the rules: it is left alone from then on.
    #[inline]
    pub(super) fn is_faulted(&self) -> bool {
        self.faulted
    }

    /// Peeks up to `chains`; a fault is reported and leaves nothing peeked.
    #[inline]
    pub(super) fn peek(&mut self, chains: usize) -> usize {
        match self.ring.peek(&mut self.burst, chains) {
            Ok(peeked) => peeked,
            Err(fault) => {
                self.fail(fault);
                0
            }
        }
    }

    /// Publishes what was completed and calls the driver if it asked for it; then looks whether the guest's memory
    /// held.
    #[inline]
    pub(super) fn publish(&mut self) {
        if self.ring.publish()
            && let Some(call) = &self.call
        {
            self.counters.add_call();
            if !call.call() {
                self.fail(RingFault::CallBlocked);
            }
        }
        if self.map.is_poisoned() {
            self.fail(RingFault::Poisoned);
        }
    }

    /// Counts and reports a fault, once; the ring is not touched any more.
    #[cold]
    pub(super) fn fail(&mut self, fault: RingFault) {
        self.burst.clear();
        if !self.faulted {
            self.faulted = true;
            self.counters.add_fault(fault);
            self.fault.report(fault);
        }
    }

    /// Makes the call that a predecessor may have owed, once. One too many does no harm.
    pub(super) fn pay_call(&mut self) {
        if std::mem::take(&mut self.owes_call)
            && !self.faulted
            && let Some(call) = &self.call
        {
            self.counters.add_call();
            if !call.call() {
                self.fail(RingFault::CallBlocked);
            }
        }
    }

    /// Asks for kicks. None: the front-end has no way to kick. Some(true): chains are already there.
    pub(super) fn arm(&mut self) -> Option<bool> {
        if self.faulted {
            return Some(false);
        }
        self.kick.as_ref()?;
        Some(self.ring.enable_kicks())
    }

    /// Takes the request for kicks back.
    pub(super) fn disarm(&mut self) {
        if !self.faulted {
            self.ring.disable_kicks();
        }
    }

    /// What becomes readable when the driver kicks.
    pub(super) fn wake_source(&self) -> Option<BorrowedFd<'_>> {
        self.kick.as_ref().map(|kick| kick.as_fd())
    }
}
