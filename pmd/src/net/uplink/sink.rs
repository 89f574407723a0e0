//! Frames to the wire: copied once, straight from their sender's buffers into pages of ours, from which the function sends
//! them. What the function does not do to a frame is done here, on a private copy.
//!
//! It waits for nobody: a frame for which there is no page, or no room in the ring, is dropped and counted.
//!
//! Owned by one pump. Budget of all but making: no allocation, no lock, no system call, no panic.

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ringway_ring::guest::GuestMap;
use ringway_ring::queue::{Completion, DriverBuffer, RingFault};

use super::{TransmitRing, UplinkWatch};
use crate::counters::{DropReason, Example, QueueCounters, Tally};
use crate::net::cursor::Cursor;
use crate::net::finish::finish;
use crate::net::frame::longest_frame;
use crate::net::offload::{Offload, Offloads};
use crate::net::scratch::Scratch;
use crate::net::side::{Passage, Refused, Sink};

/// Where frames are sent from: memory that the function reaches, in pages of [`PAGE_BYTES`].
#[derive(Debug, Clone)]
pub struct Pages {
    /// The memory, by the addresses that the function has for it.
    pub map: Arc<GuestMap>,
    /// Where the first of them begins.
    pub at: u64,
    /// How many.
    pub count: u16,
}

/// See the module's head.
#[derive(Debug)]
pub struct UplinkSink<T> {
    ring: T,
    pages: Pages,
    /// Pages that the function does not have.
    free: Vec<u16>,
    /// By page that it has: the next one of the same frame, or `NONE`.
    next: Vec<u16>,
    counters: Arc<QueueCounters>,
    tally: Tally,
    takes: Offloads,
    max_frame: u32,
    watch: Arc<UplinkWatch>,
    is_faulted: bool,
}

impl<T: TransmitRing> UplinkSink<T> {
    /// On a ring that has begun and is empty.
    pub fn new(
        ring: T,
        pages: Pages,
        mtu: u16,
        counters: Arc<QueueCounters>,
        watch: Arc<UplinkWatch>,
    ) -> UplinkSink<T> {
        // What it cuts up has to get into it whole.
        let takes = if ring.most_buffers().min(pages.count.into()) >= MOST_PAGES {
            ring.takes()
        } else {
            ring.takes().only(Offloads::CHECKSUM)
        };
        UplinkSink {
            ring,
            free: (0..pages.count).rev().collect(),
            next: vec![NONE; pages.count.into()],
            pages,
            counters,
            tally: Tally::default(),
            takes,
            max_frame: longest_frame(mtu),
            watch,
            is_faulted: false,
        }
    }

    /// Takes back the pages of what was sent.
    fn reap(&mut self) {
        if self.is_faulted {
            return;
        }
        let mut done = [Completion::default(); REAPED_AT_ONCE];
        // As many as it may have at a time, and no function goes on for ever.
        for _ in 0..=self.next.len() / REAPED_AT_ONCE {
            let count = match self.ring.collect(&mut done) {
                Ok(count) => count,
                Err(fault) => return self.fail(fault),
            };
            for completion in done.iter().take(count) {
                let mut page = completion.token as u16;
                while let Some(next) = self.next.get_mut(usize::from(page))
                    && self.free.len() < self.free.capacity()
                {
                    self.free.push(page);
                    page = std::mem::replace(next, NONE);
                }
            }
            if count < REAPED_AT_ONCE {
                return;
            }
        }
    }

    #[cold]
    fn fail(&mut self, fault: RingFault) {
        if !self.is_faulted {
            self.is_faulted = true;
            self.counters.add_fault(fault);
            self.watch.tell(fault);
        }
    }

    /// Gives the function a frame of `len` bytes that `write` writes.
    #[inline]
    fn send(
        &mut self,
        len: usize,
        offload: Offload,
        write: impl FnOnce(&mut dyn Room),
    ) -> Result<(), Refused> {
        let filling = T::LEAST_FRAME.saturating_sub(len);
        let bytes = T::HEADER_BYTES + len + filling;
        let count = bytes.div_ceil(PAGE_BYTES);
        if count > MOST_PAGES.min(self.ring.most_buffers()) {
            return Err(Refused::Drop(DropReason::RxOversize));
        }
        if self.free.len() < count {
            self.reap();
        }
        let Some(first) = self.free.len().checked_sub(count) else {
            return Err(Refused::Drop(DropReason::UplinkFull));
        };
        let pages = self.free.get(first..).unwrap_or_default();
        let place = |page: u16| self.pages.at + u64::from(page) * PAGE_BYTES as u64;
        let slices =
            pages.iter().filter_map(|page| self.pages.map.resolve(place(*page), PAGE_BYTES as u64).ok());
        let mut to = Cursor::new(slices);
        let header = offload.to_header().to_bytes();
        to.write(header.get(..T::HEADER_BYTES).unwrap_or_default());
        write(&mut to);
        if filling > 0 {
            // What lay there was somebody's frame.
            to.write([0; LEAST_MOST].get(..filling).unwrap_or_default());
        }
        let mut buffers = [NO_BUFFER; MOST_PAGES];
        for ((nth, page), buffer) in pages.iter().enumerate().zip(&mut buffers) {
            let len = (bytes - nth * PAGE_BYTES).min(PAGE_BYTES) as u32;
            *buffer = DriverBuffer { gpa: place(*page), len, writable: false };
        }
        let Some(&token) = pages.first() else { return Err(Refused::Drop(DropReason::Runt)) };
        let buffers = buffers.get(..count).unwrap_or_default();
        if self.ring.add(buffers, offload, token).is_err() {
            self.reap();
            // Pages that came back lie behind these, which are taken from where they are.
            if self.is_faulted {
                return Err(Refused::Faulted);
            }
            if self.ring.add(buffers, offload, token).is_err() {
                return Err(Refused::Drop(DropReason::UplinkFull));
            }
        }
        let mut pages = self.free.drain(first..first + count);
        let mut before = pages.next();
        for page in pages {
            if let Some(slot) = before.and_then(|before| self.next.get_mut(usize::from(before))) {
                *slot = page;
            }
            before = Some(page);
        }
        self.tally.chains += 1;
        self.tally.packets += 1;
        self.tally.bytes += len as u64;
        Ok(())
    }
}

/// Where a frame is written to.
trait Room {
    fn bytes(&mut self, bytes: &[u8]);
    fn passage(&mut self, from: Passage<'_>);
}

impl<'map, I: Iterator<Item = ringway_ring::guest::HostSlice<'map>>> Room for Cursor<'map, I> {
    fn bytes(&mut self, bytes: &[u8]) {
        self.write(bytes);
    }

    fn passage(&mut self, from: Passage<'_>) {
        let head = from.head();
        self.write(head);
        let mut rest = Cursor::new(from.burst.readable(from.chain));
        rest.skip(from.rest_at());
        rest.copy_to(self, (from.frame.len as usize).saturating_sub(head.len()));
    }
}

impl<T: TransmitRing> Sink for UplinkSink<T> {
    fn takes(&self) -> Offloads {
        self.takes
    }

    fn is_usable(&self) -> bool {
        !self.is_faulted
    }

    fn deliver(&mut self, from: Passage<'_>, scratch: &mut Scratch) -> Result<(), Refused> {
        let offload = from.frame.offload;
        if offload.longest_frame(from.frame.len) > self.max_frame {
            return Err(Refused::Drop(DropReason::RxOversize));
        }
        if !self.takes.contains(offload.needs()) {
            return finish(self, from, offload, scratch);
        }
        self.send(from.frame.len as usize, offload, |room| room.passage(from))
    }

    fn put_bytes(&mut self, head: &[u8], payload: &[u8], offload: Offload) -> Result<(), Refused> {
        self.send(head.len() + payload.len(), offload, |room| {
            room.bytes(head);
            room.bytes(payload);
        })
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

    fn set_example(&mut self, reason: DropReason, example: Example) {
        self.counters.set_example(reason, example);
    }

    /// Nobody waits for it.
    fn arm(&mut self) -> Option<bool> {
        Some(false)
    }

    fn disarm(&mut self) {}

    fn wake_source(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

/// A frame at the usual MTU is in one page, with its header.
pub const PAGE_BYTES: usize = 2048;

/// Pages of the longest frame that is to be cut up: 64 KiB, with all its headers.
const MOST_PAGES: usize = 34;

/// The least frame of any hardware has at most so many bytes.
const LEAST_MOST: usize = 64;

/// Behind the last page of a frame.
const NONE: u16 = u16::MAX;

const NO_BUFFER: DriverBuffer = DriverBuffer { gpa: 0, len: 0, writable: false };

/// Frames that are taken back in one go.
const REAPED_AT_ONCE: usize = 32;

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Mutex;

    use ringway_ring::chain::Burst;
    use ringway_ring::memory::{HostMemory, PageKind};
    use ringway_ring::queue::RingFull;

    use super::*;
    use crate::net::frame::{Frame, Head};
    use crate::net::offload::Kind;
    use crate::notify::EventFd;

    /// Frames that a function was given and has not sent: their buffers, what is to be done, their tokens.
    #[derive(Debug, Clone, Default)]
    struct Model(Arc<Mutex<State>>);

    #[derive(Debug, Default)]
    struct State {
        given: VecDeque<(Vec<DriverBuffer>, Offload, u16)>,
        sent: Vec<u16>,
        shown: usize,
        fault: Option<RingFault>,
        slots: usize,
    }

    impl TransmitRing for Model {
        const HEADER_BYTES: usize = 12;
        const LEAST_FRAME: usize = 17;
        fn takes(&self) -> Offloads {
            Offloads::ALL
        }
        fn most_buffers(&self) -> usize {
            self.0.lock().unwrap().slots
        }
        fn add(&mut self, frame: &[DriverBuffer], offload: Offload, token: u16) -> Result<(), RingFull> {
            let mut state = self.0.lock().unwrap();
            let used: usize = state.given.iter().map(|(buffers, ..)| buffers.len()).sum();
            if used + frame.len() > state.slots {
                return Err(RingFull);
            }
            state.given.push_back((frame.to_vec(), offload, token));
            Ok(())
        }
        fn publish(&mut self) {
            let mut state = self.0.lock().unwrap();
            state.shown = state.given.len();
        }
        fn collect(&mut self, into: &mut [Completion]) -> Result<usize, RingFault> {
            let mut state = self.0.lock().unwrap();
            if let Some(fault) = state.fault {
                return Err(fault);
            }
            let count = into.len().min(state.sent.len());
            for (to, token) in into.iter_mut().zip(state.sent.drain(..count)) {
                *to = Completion { token: token.into(), written: 0 };
            }
            Ok(count)
        }
    }

    impl Model {
        /// It sends the oldest frame: its bytes, header included.
        fn sends(&self, map: &GuestMap) -> (Vec<u8>, Offload) {
            let mut state = self.0.lock().unwrap();
            let (buffers, offload, token) = state.given.pop_front().unwrap();
            state.sent.push(token);
            let bytes = buffers.iter().flat_map(|buffer| {
                let mut bytes = vec![0; buffer.len as usize];
                map.resolve(buffer.gpa, buffer.len.into()).unwrap().read(&mut bytes);
                bytes
            });
            (bytes.collect(), offload)
        }
    }

    struct Bed {
        sink: UplinkSink<Model>,
        model: Model,
        map: Arc<GuestMap>,
        watch: Arc<UplinkWatch>,
        counters: Arc<QueueCounters>,
        /// What a frame is sent from.
        burst: Burst,
        _memory: HostMemory,
    }

    const AT: u64 = 1 << 40;
    const FROM: u64 = AT + (1 << 20);

    impl Bed {
        fn new(pages: u16, slots: usize) -> Bed {
            let memory = HostMemory::allocate_on(PageKind::Base, "test", 2 << 20).unwrap();
            let map: Arc<GuestMap> = Arc::new(memory.guest_map(AT).unwrap());
            let model = Model::default();
            model.0.lock().unwrap().slots = slots;
            let watch = UplinkWatch::new(Arc::new(EventFd::new().unwrap()));
            let counters = Arc::<QueueCounters>::default();
            let of = Pages { map: Arc::clone(&map), at: AT, count: pages };
            let sink = UplinkSink::new(model.clone(), of, 9000, Arc::clone(&counters), Arc::clone(&watch));
            let burst = Burst::new(Arc::clone(&map));
            Bed { sink, model, map, watch, counters, burst, _memory: memory }
        }

        /// Has a frame delivered that is in memory of its own; its first bytes are what was looked at.
        fn deliver(&mut self, len: usize, offload: Offload) -> (Vec<u8>, Result<(), Refused>) {
            let bytes: Vec<u8> = (0..len).map(|at| (at * 7 + at / 256) as u8).collect();
            self.map.resolve(FROM, len as u64 + 12).unwrap().write(&[&[0xee; 12][..], &bytes].concat());
            self.burst.clear();
            assert!(self.burst.push_own(0, FROM, len as u32 + 12));
            let mut beginning: Head = [0; 192];
            beginning[..14].copy_from_slice(&bytes[..14]);
            // Changed since: what was looked at goes on.
            self.map.resolve(FROM + 12, 14).unwrap().write(&[0xdd; 14]);
            let frame = Frame { len: len as u32, offload, dropped: None, looked_at: 14 };
            let chain = &self.burst.chains()[0];
            let passage = Passage {
                burst: &self.burst,
                chain,
                skip: 12,
                frame: &frame,
                beginning: &beginning,
                swap: false,
            };
            let delivered = self.sink.deliver(passage, &mut Scratch::new(false).unwrap());
            (bytes, delivered)
        }
    }

    #[test]
    fn frame_lies_in_as_many_pages_as_it_takes_behind_its_header() {
        let mut bed = Bed::new(64, 64);
        let large = Offload::Segment { kind: Kind::Tcp4, ecn: false, mss: 8000, header: 54, start: 34 };
        let checksum = Offload::Checksum { start: 34, offset: 16 };
        for (len, offload, pages) in [
            (14, Offload::None, 1),
            (PAGE_BYTES - 12, checksum, 1),
            (PAGE_BYTES - 11, Offload::None, 2),
            (9018, Offload::None, 5),
            (14, Offload::None, 1),
            (65_535 + 18, large, 33),
        ] {
            let (bytes, delivered) = bed.deliver(len, offload);
            assert_eq!(delivered, Ok(()), "{len}");
            bed.sink.publish();
            assert_eq!(bed.model.0.lock().unwrap().given[0].0.len(), pages, "{len}");
            let (sent, asked) = bed.model.sends(&bed.map);
            assert!(sent[..12] == offload.to_header().to_bytes() && sent[12..][..len] == bytes, "{len}");
            assert_eq!(sent.len() - 12, len.max(17));
            assert!(sent[12 + len..].iter().all(|byte| *byte == 0), "what lay there before");
            assert_eq!(asked, offload);
        }
        assert_eq!(bed.counters.snapshot().packets, 6);
        let (_, too_long) = bed.deliver(9019, Offload::None);
        assert_eq!(too_long, Err(Refused::Drop(DropReason::RxOversize)));
        let (_, too_long) = bed.deliver(MOST_PAGES * PAGE_BYTES - 11, large);
        assert_eq!(too_long, Err(Refused::Drop(DropReason::RxOversize)));
    }

    #[test]
    fn frames_beyond_what_the_function_has_sent_are_dropped_and_its_pages_come_back_in_any_order() {
        for (pages, slots) in [(8, 64), (64, 8)] {
            let mut bed = Bed::new(pages, slots);
            for round in 0..100 {
                // 5 pages and 2; there is room for one more.
                assert_eq!(bed.deliver(9018, Offload::None).1, Ok(()), "{round}");
                assert_eq!(bed.deliver(4000, Offload::None).1, Ok(()));
                assert_eq!(bed.deliver(4000, Offload::None).1, Err(Refused::Drop(DropReason::UplinkFull)));
                let (bytes, delivered) = bed.deliver(100, Offload::None);
                assert_eq!(delivered, Ok(()));
                bed.sink.publish();
                let third = {
                    bed.model.sends(&bed.map);
                    bed.model.sends(&bed.map);
                    bed.model.sends(&bed.map).0
                };
                assert!(third[12..] == bytes, "{round}");
                bed.model.0.lock().unwrap().sent.rotate_left(1);
            }
        }
    }

    #[test]
    fn ring_that_is_too_short_for_large_frames_gets_them_cut_up() {
        for (pages, slots, takes) in
            [(64, 33, Offloads::CHECKSUM), (33, 64, Offloads::CHECKSUM), (34, 34, Offloads::ALL)]
        {
            assert_eq!(Bed::new(pages, slots).sink.takes(), takes);
        }
    }

    #[test]
    fn function_that_breaks_the_rules_is_left_alone_and_named() {
        let mut bed = Bed::new(1, 1);
        assert_eq!(bed.deliver(100, Offload::None).1, Ok(()));
        bed.model.0.lock().unwrap().fault = Some(RingFault::UsedId);
        assert!(bed.watch.fault().is_none() && bed.sink.is_usable());
        assert!(bed.deliver(100, Offload::None).1.is_err());
        assert_eq!((bed.watch.fault(), bed.sink.is_usable()), (Some(RingFault::UsedId), false));
        let before = bed.model.0.lock().unwrap().shown;
        bed.sink.publish();
        assert_eq!(bed.model.0.lock().unwrap().shown, before);
    }
}
