//! How a transmit queue gives frames: peeked, and completed with nothing written once they have gone, at once or later.
//!
//! Part of the pump that owns the queue. Budget: no allocation but in `reserve`, no lock, no system call, no panic.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ringway_ring::chain::Burst;
use ringway_ring::queue::{DeviceRing, RingFault};

use super::Mac;
use super::frame::Ingress;
use super::guest_queue::GuestQueue;
use super::side::Source;
use crate::counters::{DropReason, Example, QueueCounters, Tally};

impl<R: DeviceRing + fmt::Debug> Source for GuestQueue<R> {
    fn ingress(&self) -> Ingress {
        self.ingress
    }

    fn hold_to(&mut self, only: Option<Mac>) {
        self.ingress.only = only;
    }

    fn is_enabled(&self) -> bool {
        self.enabled
    }

    fn is_faulted(&self) -> bool {
        GuestQueue::is_faulted(self)
    }

    fn peek(&mut self, frames: usize) -> usize {
        GuestQueue::peek(self, frames)
    }

    fn burst(&self) -> &Burst {
        &self.burst
    }

    fn reserve(&mut self, frames: usize) -> io::Result<()> {
        let more = frames.saturating_sub(self.taken.len());
        VecDeque::try_reserve(&mut self.taken, more).map_err(|_| io::ErrorKind::OutOfMemory.into())
    }

    fn take(&mut self, frames: usize) {
        let taken = self.burst.chains().get(..frames).unwrap_or_default();
        self.ring.consume(taken);
        self.taken.extend(taken);
        self.tally.chains += taken.len() as u64;
    }

    fn give_back(&mut self, frames: usize) {
        // A ring that broke the rules is not touched any more.
        let is_whole = !GuestQueue::is_faulted(self);
        self.is_untimed |= frames > 0;
        for chain in self.taken.drain(..frames.min(self.taken.len())) {
            if is_whole {
                self.ring.complete(&chain, 0);
            }
        }
    }

    fn finish(&mut self, frames: usize) {
        GuestQueue::finish(self, frames);
    }

    fn publish(&mut self) {
        GuestQueue::publish(self);
    }

    fn took(&mut self, cycles: u64) {
        GuestQueue::took(self, cycles);
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

    fn fail(&mut self, fault: RingFault) {
        GuestQueue::fail(self, fault);
    }

    fn arm(&mut self) -> Option<bool> {
        GuestQueue::arm(self)
    }

    fn disarm(&mut self) {
        GuestQueue::disarm(self);
    }

    fn wake_source(&self) -> Option<BorrowedFd<'_>> {
        GuestQueue::wake_source(self)
    }
}
