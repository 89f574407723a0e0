//! A guest's end of a path: a started queue of a network device, ready to be polled.
//!
//! Owned by the pump that owns the queue; lives on its worker.

use std::collections::VecDeque;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use ringway_ring::chain::{Burst, Chain};
use ringway_ring::guest::GuestMap;
use ringway_ring::packed::device::PackedDevice;
use ringway_ring::queue::{DeviceRing, RingFault, SetupError};
use ringway_ring::split::device::SplitDevice;

use super::frame::{Ingress, longest_frame};
use super::offload::Offloads;
use super::{F_MRG_RXBUF, Mac, header_len};
use crate::counters::{QueueCounters, Tally};
use crate::notify::{CallFd, EventFd};
use crate::vdpa::{FaultReporter, QueueBinding};

/// What holds for every queue of a device, beside what guest and device agreed on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortRules {
    /// Largest packet without Ethernet header and VLAN tag, either way.
    pub mtu: u16,
    /// The only address that may be sent from; None for any.
    pub only: Option<Mac>,
}

/// One queue: the ring, the scratch memory of its bursts, and whom to tell what.
#[derive(Debug)]
pub struct GuestQueue<Q> {
    /// The device's side of the ring.
    pub(super) ring: Q,
    /// What was peeked last.
    pub(super) burst: Burst,
    /// Counted by this queue's pump alone.
    pub(super) counters: Arc<QueueCounters>,
    /// What was done since the counters were last brought up to date.
    pub(super) tally: Tally,
    /// What frames that come from it must obey.
    pub(super) ingress: Ingress,
    /// What may be left to be done for frames that go to it.
    pub(super) takes: Offloads,
    /// Chains were given back whose time was not counted yet.
    pub(super) is_untimed: bool,
    /// Chains of the burst that were filled.
    pub(super) used: usize,
    /// Of them, those that the ring has been told of. The others were filled by a frame each.
    pub(super) told: usize,
    /// The bytes that were written to each chain of the burst that one frame filled, from `told` to `used`.
    pub(super) written: [u32; Burst::CHAINS],
    /// Writable bytes of the last chain that the ring was told of: how many chains a frame will take is judged by it.
    pub(super) capacity: u32,
    /// A frame may span several chains (MRG_RXBUF).
    pub(super) mergeable: bool,
    /// False: what the driver sends is dropped, nothing is delivered to it.
    pub(super) enabled: bool,
    /// Chains of frames that were taken and not given back, in order.
    pub(super) taken: VecDeque<Chain>,
    /// The guest's memory.
    pub(super) map: Arc<GuestMap>,
    kick: Option<Arc<EventFd>>,
    call: Option<Arc<CallFd>>,
    fault: FaultReporter,
    faulted: bool,
}

impl GuestQueue<SplitDevice> {
    /// A queue on a split ring.
    pub fn split(binding: QueueBinding, rules: PortRules) -> Result<Box<Self>, SetupError> {
        GuestQueue::split_with(binding, rules, &[])
    }

    /// The same with other heads first than the ring has.
    pub fn split_with(
        binding: QueueBinding,
        rules: PortRules,
        first: &[u16],
    ) -> Result<Box<Self>, SetupError> {
        let ring = binding.config.clone().activate_split()?.with_first(first)?;
        GuestQueue::new(binding, ring, rules)
    }
}

impl GuestQueue<PackedDevice> {
    /// A queue on a packed ring.
    pub fn packed(binding: QueueBinding, rules: PortRules) -> Result<Box<Self>, SetupError> {
        let ring = binding.config.clone().activate_packed()?;
        GuestQueue::new(binding, ring, rules)
    }
}

impl<Q: DeviceRing> GuestQueue<Q> {
    fn new(binding: QueueBinding, mut ring: Q, rules: PortRules) -> Result<Box<GuestQueue<Q>>, SetupError> {
        let burst = Burst::try_new(Arc::clone(&binding.config.map)).map_err(|_| SetupError::NoMemory)?;
        // It is about to be polled: the driver need not kick until the pump arms.
        ring.disable_kicks();
        let features = binding.config.features;
        // Made here, where it may be allocated.
        binding.counters.latency();
        Ok(Box::new(GuestQueue {
            ring,
            burst,
            map: binding.config.map,
            counters: binding.counters,
            tally: Tally::default(),
            ingress: Ingress {
                header_len: header_len(features),
                max_frame: longest_frame(rules.mtu),
                may: Offloads::sent(features),
                only: rules.only,
                by_vlan: false,
            },
            takes: Offloads::received(features),
            is_untimed: false,
            used: 0,
            told: 0,
            written: [0; Burst::CHAINS],
            taken: VecDeque::new(),
            capacity: 1526,
            mergeable: features.contains(F_MRG_RXBUF),
            enabled: binding.enabled,
            kick: binding.kick,
            call: binding.call,
            fault: binding.fault,
            faulted: false,
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
        self.tell();
        (self.used, self.told) = (0, 0);
        match self.ring.peek(&mut self.burst, chains) {
            Ok(peeked) => peeked,
            Err(fault) => {
                self.fail(fault);
                0
            }
        }
    }

    /// Publishes what was completed and calls the driver if it asked for it; then looks whether the guest's memory
    /// held. Brings the counters up to date.
    #[inline]
    pub(super) fn publish(&mut self) {
        self.tell();
        // What is taken is in its sinks' hands still.
        self.is_untimed |= self.tally.chains > 0 && self.taken.is_empty();
        self.counters.add(&mut self.tally);
        if self.faulted {
            return;
        }
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

    /// Tells the ring of the chains that were filled, and counts them: once for many, since what is noted of each frame
    /// would be stores that wait in line behind those to the driver's lines.
    #[inline]
    pub(super) fn tell(&mut self) {
        let filled = self.burst.chains().get(self.told..self.used).unwrap_or_default();
        let Some(last) = filled.last() else { return };
        self.ring.consume(filled);
        let mut bytes = 0;
        for (chain, written) in filled.iter().zip(self.written.get(self.told..).unwrap_or_default()) {
            self.ring.complete(chain, *written);
            bytes += u64::from(*written);
        }
        self.capacity = last.writable_bytes;
        let count = filled.len() as u64;
        self.tally.chains += count;
        self.tally.packets += count;
        self.tally.bytes += bytes - count * self.ingress.header_len as u64;
        self.told = self.used;
    }

    /// What was published since the last time took so many cycles.
    #[inline]
    pub(super) fn took(&mut self, cycles: u64) {
        if std::mem::take(&mut self.is_untimed) {
            self.counters.add_latency(cycles);
        }
    }

    /// Counts and reports a fault, once; the ring is not touched any more.
    #[cold]
    pub(super) fn fail(&mut self, fault: RingFault) {
        self.tell();
        self.burst.clear();
        (self.used, self.told) = (0, 0);
        if !self.faulted {
            self.faulted = true;
            self.counters.add_fault(fault);
            self.fault.report(fault);
        }
    }

    /// Takes the first `chains` of what was peeked and gives them back with nothing written: frames that were sent.
    #[inline]
    pub(super) fn finish(&mut self, chains: usize) {
        let done = self.burst.chains().get(..chains).unwrap_or_default();
        self.ring.consume(done);
        for chain in done {
            self.ring.complete(chain, 0);
        }
        self.tally.chains += done.len() as u64;
    }

    /// Asks for kicks. None: the front-end has no way to kick. Some(true): chains are already there.
    pub(super) fn arm(&mut self) -> Option<bool> {
        if self.faulted {
            return Some(false);
        }
        debug_assert_eq!(self.told, self.used, "sleeps on what was not told");
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
