//! A kernel netdev as a side of a path: what comes from the kernel is a source, what goes to it a sink. The netdev is one
//! receiver among others: "rx" of its device is what the kernel is given, "tx" what it sends.
//!
//! Each belongs to the pump that has it. Whoever opened the netdev is told when it is gone.

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringway_ring::chain::Burst;
use ringway_ring::queue::RingFault;

use super::finish::finish;
use super::frame::{Ingress, longest_frame};
use super::offload::{Offload, Offloads};
use super::scratch::Scratch;
use super::side::{Passage, Refused, Sink, Source};
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
    counters: Arc<QueueCounters>,
    tally: Tally,
    ingress: Ingress,
    watch: Arc<NetdevWatch>,
    is_gone: bool,
}

/// Frames to the kernel.
#[derive(Debug)]
pub struct NetdevSink {
    writer: TapWriter,
    counters: Arc<QueueCounters>,
    tally: Tally,
    takes: Offloads,
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
        let ingress = Ingress {
            header_len: HEADER_BYTES,
            max_frame: longest_frame(mtu),
            may: offloads,
            only: None,
            by_vlan: false,
        };
        NetdevSource { reader, counters, tally: Tally::default(), ingress, watch, is_gone: false }
    }
}

impl Source for NetdevSource {
    fn ingress(&self) -> Ingress {
        self.ingress
    }

    fn is_faulted(&self) -> bool {
        self.is_gone
    }

    fn peek(&mut self, frames: usize) -> usize {
        match self.reader.peek(frames) {
            Ok(frames) => frames,
            Err(Gone) => {
                self.is_gone = true;
                self.watch.tell();
                0
            }
        }
    }

    fn burst(&self) -> &Burst {
        self.reader.burst()
    }

    /// It has room for as many as it has buffers.
    fn reserve(&mut self, _frames: usize) -> io::Result<()> {
        Ok(())
    }

    fn take(&mut self, frames: usize) {
        self.reader.take(frames);
        self.tally.chains += frames as u64;
    }

    fn give_back(&mut self, frames: usize) {
        self.reader.give_back(frames);
    }

    fn publish(&mut self) {
        self.tally.netdev_calls += self.reader.take_calls();
        self.counters.add(&mut self.tally);
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

    /// Not reached: chains of ours break no rules.
    fn fail(&mut self, _fault: RingFault) {}

    fn arm(&mut self) -> Option<bool> {
        Some(!self.is_gone && self.reader.arm())
    }

    /// Nothing to take back: its descriptor tells of frames whether or not it is asked to.
    fn disarm(&mut self) {}

    fn wake_source(&self) -> Option<BorrowedFd<'_>> {
        Some(self.reader.wake_source())
    }

    fn rest(&mut self) -> bool {
        self.reader.rest()
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
}

impl Sink for NetdevSink {
    fn takes(&self) -> Offloads {
        self.takes
    }

    fn is_usable(&self) -> bool {
        !self.is_gone
    }

    fn deliver(&mut self, from: Passage<'_>, scratch: &mut Scratch) -> Result<(), Refused> {
        let offload = from.frame.offload;
        if offload.longest_frame(from.frame.len) > self.max_frame {
            return Err(Refused::Drop(DropReason::RxOversize));
        }
        if !self.takes.contains(offload.needs()) {
            return finish(self, from, offload, scratch);
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

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }
    fn publish(&mut self) {
        self.writer.submit();
        self.note();
    }

    /// It has room again when its kernel has memory, of which nothing tells: looked at in time. So are frames that it has
    /// not finished with.
    fn arm(&mut self) -> Option<bool> {
        (self.writer.outstanding() == 0).then_some(false)
    }

    fn disarm(&mut self) {}

    fn wake_source(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    #[inline(always)]
    fn defers(&self) -> bool {
        true
    }

    #[inline(always)]
    fn given(&self) -> u64 {
        self.writer.given()
    }

    fn finished(&mut self) -> u64 {
        self.writer.reap();
        self.note();
        self.writer.finished()
    }

    fn let_go(&mut self) {
        self.writer.let_go();
    }
}
