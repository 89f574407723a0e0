//! A kernel netdev as a side of a path: what comes from the kernel is a source, what goes to it a sink. The netdev is one
//! receiver among others: "rx" of its device is what the kernel is given, "tx" what it sends.
//!
//! Each belongs to the pump that has it. Whoever opened the netdev is told when it is gone.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringway_ring::chain::Burst;

use super::frame::{Frame, Ingress, longest_frame};
use super::offload::{Offload, Offloads};
use super::receive::{Desk, Passage, Receiver, Refused, finish};
use super::tap::{Gone, HEADER_BYTES, TapReader, TapWriter};
use crate::counters::{DropReason, Example, QueueCounters, Tally};
use crate::notify::EventFd;

/// Tells who opened a netdev that it is gone.
#[derive(Debug)]
pub struct NetdevWatch {
    is_gone: AtomicBool,
    attention: Arc<EventFd>,
}

impl NetdevWatch {
    /// Signals `attention` once the netdev is gone.
    pub fn new(attention: Arc<EventFd>) -> Arc<NetdevWatch> {
        Arc::new(NetdevWatch { is_gone: AtomicBool::new(false), attention })
    }

    /// The netdev is gone.
    pub fn is_gone(&self) -> bool {
        self.is_gone.load(Ordering::Relaxed)
    }

    #[cold]
    fn tell(&self) {
        // Relaxed: it publishes nothing else.
        if !self.is_gone.swap(true, Ordering::Relaxed) {
            self.attention.signal();
        }
    }
}

/// Frames from the kernel.
#[derive(Debug)]
pub struct NetdevSource {
    reader: TapReader,
    pub(super) counters: Arc<QueueCounters>,
    pub(super) tally: Tally,
    pub(super) ingress: Ingress,
    watch: Arc<NetdevWatch>,
    is_gone: bool,
}

/// Frames to the kernel.
#[derive(Debug)]
pub struct NetdevSink {
    writer: TapWriter,
    pub(super) counters: Arc<QueueCounters>,
    pub(super) tally: Tally,
    pub(super) takes: Offloads,
    max_frame: u32,
    watch: Arc<NetdevWatch>,
    is_gone: bool,
}

impl NetdevSource {
    /// A reader whose frames are no longer than the MTU allows.
    pub fn new(
        reader: TapReader,
        offloads: Offloads,
        mtu: u16,
        counters: Arc<QueueCounters>,
        watch: Arc<NetdevWatch>,
    ) -> NetdevSource {
        let ingress =
            Ingress { header_len: HEADER_BYTES, max_frame: longest_frame(mtu), may: offloads, only: None };
        NetdevSource { reader, counters, tally: Tally::default(), ingress, watch, is_gone: false }
    }

    pub(super) fn peek(&mut self, frames: usize) -> usize {
        match self.reader.peek(frames) {
            Ok(frames) => frames,
            Err(Gone) => {
                self.is_gone = true;
                self.watch.tell();
                0
            }
        }
    }

    pub(super) fn burst(&self) -> &Burst {
        self.reader.burst()
    }

    pub(super) fn finish(&mut self, frames: usize) {
        self.reader.consume(frames);
        self.tally.chains += frames as u64;
    }

    pub(super) fn publish(&mut self) {
        self.tally.netdev_calls += self.reader.take_calls();
        self.counters.add(&mut self.tally);
    }

    pub(super) fn is_faulted(&self) -> bool {
        self.is_gone
    }

    pub(super) fn arm(&mut self) -> Option<bool> {
        Some(!self.is_gone && self.reader.arm())
    }

    /// Nothing to take back: its descriptor tells of frames whether or not it is asked to.
    pub(super) fn disarm(&self) {}

    pub(super) fn wake_source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.reader.wake_source())
    }
}

impl NetdevSink {
    /// A writer that takes frames no longer than the MTU allows.
    pub fn new(
        writer: TapWriter,
        offloads: Offloads,
        mtu: u16,
        counters: Arc<QueueCounters>,
        watch: Arc<NetdevWatch>,
    ) -> NetdevSink {
        let max_frame = longest_frame(mtu);
        NetdevSink {
            writer,
            counters,
            tally: Tally::default(),
            takes: offloads,
            max_frame,
            watch,
            is_gone: false,
        }
    }

    pub(super) fn publish(&mut self) {
        self.writer.submit();
        self.note();
    }

    pub(super) fn reap(&mut self) {
        self.writer.reap();
        self.note();
    }

    /// Counts what became of frames.
    fn note(&mut self) {
        let written = self.writer.take_written();
        self.tally.chains += written.frames;
        self.tally.packets += written.frames;
        self.tally.bytes += written.bytes;
        self.tally.netdev_calls += written.calls;
        self.counters.add(&mut self.tally);
        let lost = [
            (DropReason::NetdevDown, written.down + written.gone),
            (DropReason::NoRxBuffer, written.no_memory),
            (DropReason::NetdevRefused, written.refused),
        ];
        for (reason, frames) in lost {
            if frames > 0 {
                self.counters.add_drops(reason, frames);
            }
        }
        if written.gone > 0 {
            self.is_gone = true;
            self.watch.tell();
        }
    }

    pub(super) fn let_go(&mut self) {
        self.writer.let_go();
    }

    pub(super) fn outstanding(&self) -> usize {
        self.writer.outstanding()
    }

    pub(super) fn is_faulted(&self) -> bool {
        self.is_gone
    }
}

impl Receiver for NetdevSink {
    fn prepare(&mut self, _frames: &[Frame]) {}

    fn deliver(&mut self, from: Passage<'_>, desk: &mut Desk) -> Result<(), Refused> {
        let offload = from.frame.offload;
        if offload.longest_frame(from.frame.len) > self.max_frame {
            return Err(Refused::Drop(DropReason::RxOversize));
        }
        if !self.takes.contains(offload.needs()) {
            return finish(self, from, offload, desk);
        }
        let header = offload.to_header().to_bytes();
        let (len, skip) = (from.frame.len as usize, from.skip);
        if self.writer.push(header, from.head(), from.burst, from.chain, skip, len) {
            return Ok(());
        }
        // A batch is full: handed over, and there is room.
        self.publish();
        let is_in = self.writer.push(header, from.head(), from.burst, from.chain, skip, len);
        if is_in { Ok(()) } else { Err(Refused::Starved) }
    }

    fn count_drops(&mut self, reason: DropReason, frames: u64) {
        self.counters.add_drops(reason, frames);
    }

    fn set_example(&mut self, reason: DropReason, example: Example) {
        self.counters.set_example(reason, example);
    }

    fn takes(&self) -> Offloads {
        self.takes
    }

    fn put_bytes(&mut self, head: &[u8], payload: &[u8], offload: Offload) -> Result<(), Refused> {
        let header = offload.to_header().to_bytes();
        if self.writer.push_bytes(header, head, payload) {
            return Ok(());
        }
        self.publish();
        if self.writer.push_bytes(header, head, payload) { Ok(()) } else { Err(Refused::Starved) }
    }

    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
}
