//! Frames from the wire: received into buffers of ours, and seen like chains that were peeked from a transmit queue.
//!
//! Owned by one pump. Budget of all but making: no allocation, no lock, no system call, no panic.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ringway_ring::chain::Burst;
use ringway_ring::guest::GuestMap;
use ringway_ring::queue::{Completion, DriverBuffer, RingFault};

use super::{ReceiveRing, UplinkWatch};
use crate::counters::{DropReason, Example, QueueCounters, Tally};
use crate::net::frame::{Ingress, longest_frame};
use crate::net::offload::Offloads;
use crate::net::side::Source;

/// Where frames are received into: memory that the function reaches, in buffers of one size.
#[derive(Debug, Clone)]
pub struct Buffers {
    /// The memory, by the addresses that the function has for it.
    pub map: Arc<GuestMap>,
    /// Where the first of them begins.
    pub at: u64,
    /// How many: the ring has room for all of them.
    pub count: u16,
    /// Bytes of each: [`Buffers::bytes_for`].
    pub bytes: u32,
}

impl Buffers {
    /// Bytes of a buffer that takes any frame at this MTU behind a header.
    pub fn bytes_for(header: usize, mtu: u16) -> u32 {
        (header as u32 + longest_frame(mtu)).next_multiple_of(ALIGN)
    }

    fn place(&self, buffer: u16) -> u64 {
        self.at + u64::from(buffer) * u64::from(self.bytes)
    }
}

/// See the module's head.
#[derive(Debug)]
pub struct UplinkSource<R> {
    ring: R,
    buffers: Buffers,
    burst: Burst,
    /// Frames that were received and not taken, in order: the buffer, and its bytes with the header.
    ready: VecDeque<(u16, u32)>,
    /// Buffers of frames that were taken and not given back, in order.
    taken: VecDeque<u16>,
    counters: Arc<QueueCounters>,
    tally: Tally,
    ingress: Ingress,
    watch: Arc<UplinkWatch>,
    is_faulted: bool,
}

impl<R: ReceiveRing> UplinkSource<R> {
    /// On a ring that has begun and is empty: the function is given all the buffers. `may`: what it may leave to be done to a
    /// frame.
    ///
    /// # Errors
    /// There is no memory.
    pub fn new(
        mut ring: R,
        buffers: Buffers,
        may: Offloads,
        mtu: u16,
        counters: Arc<QueueCounters>,
        watch: Arc<UplinkWatch>,
    ) -> io::Result<UplinkSource<R>> {
        ring.disarm();
        let ingress = Ingress {
            header_len: R::HEADER_BYTES,
            max_frame: longest_frame(mtu),
            may,
            only: None,
            by_vlan: false,
        };
        let mut source = UplinkSource {
            ring,
            burst: Burst::try_new(Arc::clone(&buffers.map))?,
            ready: VecDeque::with_capacity(buffers.count.into()),
            taken: VecDeque::with_capacity(buffers.count.into()),
            buffers,
            counters,
            tally: Tally::default(),
            ingress,
            watch,
            is_faulted: false,
        };
        (0..source.buffers.count).for_each(|buffer| source.give(buffer));
        source.ring.publish();
        Ok(source)
    }

    /// Gives the function a buffer.
    fn give(&mut self, buffer: u16) {
        let Buffers { bytes, .. } = self.buffers;
        let whole = DriverBuffer { gpa: self.buffers.place(buffer), len: bytes, writable: true };
        // It has room: there are no more buffers than it has entries, and each is with it once at most.
        let _ = self.ring.add(whole, buffer);
    }

    /// Takes what has come, as far as `most` frames are ready then.
    fn look(&mut self, most: usize) {
        let mut done = [Completion::default(); Burst::CHAINS];
        let wanted = most.min(Burst::CHAINS).saturating_sub(self.ready.len());
        let room = done.get_mut(..wanted).unwrap_or_default();
        if room.is_empty() || self.is_faulted {
            return;
        }
        match self.ring.collect(room) {
            Ok(count) => {
                let frames = done.iter().take(count).map(|done| (done.token as u16, done.written));
                // As many as there are buffers, for which there is room.
                self.ready.extend(frames.filter(|(buffer, _)| *buffer < self.buffers.count));
            }
            Err(fault) => self.fail(fault),
        }
    }
}

impl<R: ReceiveRing> Source for UplinkSource<R> {
    fn ingress(&self) -> Ingress {
        self.ingress
    }

    fn is_faulted(&self) -> bool {
        self.is_faulted
    }

    fn peek(&mut self, frames: usize) -> usize {
        self.look(frames);
        self.burst.clear();
        for (buffer, len) in self.ready.iter().take(frames) {
            if !self.burst.push_own(*buffer, self.buffers.place(*buffer), (*len).min(self.buffers.bytes)) {
                break;
            }
        }
        self.burst.chains().len()
    }

    fn burst(&self) -> &Burst {
        &self.burst
    }

    /// It has room for as many as it has buffers.
    fn reserve(&mut self, _frames: usize) -> io::Result<()> {
        Ok(())
    }

    fn take(&mut self, frames: usize) {
        let frames = frames.min(self.ready.len());
        self.taken.extend(self.ready.drain(..frames).map(|(buffer, _)| buffer));
        self.tally.chains += frames as u64;
    }

    fn give_back(&mut self, frames: usize) {
        for _ in 0..frames.min(self.taken.len()) {
            if let Some(buffer) = self.taken.pop_front() {
                self.give(buffer);
            }
        }
    }

    fn publish(&mut self) {
        self.counters.add(&mut self.tally);
        if !self.is_faulted {
            self.ring.publish();
        }
    }

    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }

    fn count_drops(&mut self, reason: DropReason, frames: u64) {
        self.counters.add_drops(reason, frames);
    }

    fn count_held(&mut self) {
        self.counters.add_held();
    }

    fn set_example(&self, reason: DropReason, example: Example) {
        self.counters.set_example(reason, example);
    }

    #[cold]
    fn fail(&mut self, fault: RingFault) {
        self.burst.clear();
        self.ready.clear();
        if !self.is_faulted {
            self.is_faulted = true;
            self.counters.add_fault(fault);
            self.watch.tell(fault);
        }
    }

    fn arm(&mut self) -> Option<bool> {
        Some(!self.is_faulted && (!self.ready.is_empty() || self.ring.arm()))
    }

    fn disarm(&mut self) {
        self.ring.disarm();
    }

    fn wake_source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ring.wake_source())
    }
}

/// Buffers begin at a cache line's.
const ALIGN: u32 = 64;
