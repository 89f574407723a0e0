//! The pump of a relay to an 82576 VF, whose rings have a format of their own: a guest's chains become the function's descriptors,
//! and come back when these do. The function reads and writes the guest's memory itself, where that is possible.
//!
//! ```text
//!   guest's TX ring --check--> descriptors: [ headers of ours ] [ guest's memory ] ... --> function
//!   guest's RX ring <--------- function writes into the guest's buffers
//!                 <---copy---- or into buffers of ours, where the guest's are smaller than its fixed size
//! ```
//!
//! Each chain is read once and checked to lie in the guest's memory, and the function is given what was checked. The header
//! before each frame is taken off. Headers that have to be changed (a frame that is to be cut up) are copied first; so are frames
//! whose checksum the function cannot make, that are in more pieces than it takes, or too short for it.
//!
//! Receive buffers stand with the function in the guest's order. So a guest whose buffers fit has them filled directly until the
//! first that does not: from then on, until the queue starts again, its frames come by buffers of ours, one copy each. A frame
//! that is not to be seen and lies in a buffer of the guest's already comes back as one of no bytes, which drivers pass over.
//!
//! Lives on one worker. Budget: no allocation, no lock, no system call but the calls that the driver asked for, no panic; a
//! doorbell a burst and direction at most, and two registers to go to sleep.

use std::collections::VecDeque;
use std::fmt;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use ringway_ring::chain::Chain;
use ringway_ring::guest::GuestMap;
use ringway_ring::queue::{DeviceRing, Format, RingFault, SetupError};

use super::frame::{Frame, Frames, Head, copy_out};
use super::guest_queue::{GuestQueue, PortRules};
use super::offload::{HEAD_BYTES, Headers, NetHeader, Offload, complete_checksum, headers_of, prepare_cut};
use super::receive::put_header;
use super::relay::{Leg, Relay};
use super::side::Refused;
use super::{ETHERNET_HEADER, Mac, VLAN_TAG};
use crate::counters::DropReason;
use crate::igb::registers::Interrupt;
use crate::igb::rings::{Context, MOST_OF_A_PIECE, Received, RxRing, TxRing, Work, data};
use crate::notify::EventFd;
use crate::vdpa::QueueBinding;

/// What wakes a queue's pump.
#[derive(Debug)]
pub struct Alarm {
    /// Its interrupt.
    pub interrupt: Interrupt,
    /// What that signals.
    pub wake: Arc<EventFd>,
}

/// The function's receive queue.
#[derive(Debug)]
pub struct Receiving {
    /// Its ring, which nobody has used since it began.
    pub ring: RxRing,
    /// What wakes its pump.
    pub alarm: Alarm,
    /// Our own memory.
    pub map: Arc<GuestMap>,
    /// Where in it a buffer for each descriptor is, as the function reaches them.
    pub buffers: u64,
    /// Bytes that the function may write into a buffer.
    pub buffer_bytes: u32,
    /// What comes back from this address was sent from here.
    pub own: Mac,
    /// VLANs whose tags belong into frames.
    pub vlans: Vec<u16>,
}

/// The function's transmit queue.
#[derive(Debug)]
pub struct Transmitting {
    /// Its ring, which nobody has used since it began.
    pub ring: TxRing,
    /// What wakes its pump.
    pub alarm: Alarm,
    /// Our own memory.
    pub map: Arc<GuestMap>,
    /// Where in it [`HEADER_ROOM`] bytes for each descriptor are, as the function reaches them.
    pub headers: u64,
    /// Where [`STAGES`] times [`STAGE_BYTES`] are.
    pub stages: u64,
}

/// A pump for the queues of one pair, those that are started.
///
/// # Errors
/// A guest's ring cannot be served.
pub fn relay(
    receive: Option<(QueueBinding, Receiving)>,
    transmit: Option<(QueueBinding, Transmitting)>,
    rules: PortRules,
) -> Result<Relay, SetupError> {
    let mut legs: Vec<Box<dyn Leg>> = Vec::new();
    if let Some((guest, far)) = receive {
        legs.push(match guest.format {
            Format::Split => Box::new(Receive::new(GuestQueue::split(guest, rules)?, far)),
            Format::Packed => Box::new(Receive::new(GuestQueue::packed(guest, rules)?, far)),
        });
    }
    if let Some((mut guest, far)) = transmit {
        // Transmit queues complete everything with length 0.
        guest.config.skip_used = true;
        legs.push(match guest.format {
            Format::Split => Box::new(Transmit::new(GuestQueue::split(guest, rules)?, far)),
            Format::Packed => Box::new(Transmit::new(GuestQueue::packed(guest, rules)?, far)),
        });
    }
    Ok(Relay::of(legs))
}

struct Transmit<R> {
    end: Box<GuestQueue<R>>,
    far: Transmitting,
    frames: Box<Frames>,
    /// Frames that were taken, in order.
    given: VecDeque<Sent>,
    /// What the function was told last of where headers are.
    context: Option<Context>,
    /// Stages: the next that is used, and how many are.
    stage: u16,
    staged: u16,
    /// The function's ring had no room for the next frame, and has finished none since.
    is_full: bool,
    is_armed: bool,
    /// When the first of what the guest was given back in this poll was first seen.
    seen: Option<u64>,
    pieces: Vec<(u64, u16)>,
    /// The beginning of a frame of which something is to be done.
    head: Head,
    /// Where frames are worked on that do not go on as they are.
    scratch: Box<[u8]>,
}

#[derive(Clone, Copy)]
struct Sent {
    chain: Chain,
    /// The descriptor that tells that it has gone. None: it went nowhere.
    last: Option<u16>,
    descriptors: u16,
    is_staged: bool,
    /// When it was first seen.
    since: u64,
}

impl<R> fmt::Debug for Transmit<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transmit").field("given", &self.given.len()).finish_non_exhaustive()
    }
}

/// Why a frame does not go on.
enum Stop {
    /// There is no room for it now.
    Full,
    /// It goes nowhere.
    Drop(DropReason),
}

impl<R: DeviceRing> Transmit<R> {
    fn new(end: Box<GuestQueue<R>>, far: Transmitting) -> Transmit<R> {
        Transmit {
            end,
            given: VecDeque::with_capacity(far.ring.room() + BURST),
            far,
            frames: Frames::new(false),
            context: None,
            stage: 0,
            staged: 0,
            is_full: false,
            is_armed: false,
            seen: None,
            pieces: Vec::with_capacity(MOST_PIECES + 1),
            head: [0; HEAD_BYTES],
            scratch: vec![0; STAGE_BYTES as usize].into(),
        }
    }

    /// Gives the guest back what has gone.
    fn take_back(&mut self) -> u32 {
        let mut count = 0;
        let header = self.end.ingress.header_len as u32;
        while let Some(sent) = self.given.front().copied() {
            if sent.last.is_some_and(|last| !self.far.ring.is_done(last)) {
                break;
            }
            self.given.pop_front();
            self.seen.get_or_insert(sent.since);
            self.far.ring.free(sent.descriptors);
            self.staged -= u16::from(sent.is_staged);
            self.end.ring.complete(&sent.chain, 0);
            if sent.last.is_some() {
                self.end.tally.packets += 1;
                self.end.tally.bytes += u64::from(sent.chain.readable_bytes.saturating_sub(header));
            }
            count += 1;
        }
        self.is_full &= count == 0;
        count
    }

    /// Frames that may be taken now.
    fn room(&self) -> usize {
        if self.is_full { 0 } else { (self.given.capacity() - self.given.len()).min(BURST) }
    }

    /// Gives the function up to `most` frames.
    fn give(&mut self, most: usize, now: u64) -> u32 {
        let most = most.min(self.room());
        if most == 0 || self.end.peek(most) == 0 {
            return 0;
        }
        self.frames.inspect(&self.end.burst, &self.end.ingress);
        let (tail, mut count) = (self.far.ring.tail(), 0);
        for at in 0..self.frames.as_slice().len() {
            let Some(chain) = self.end.burst.chains().get(at).copied() else { break };
            let nowhere = Sent { chain, last: None, descriptors: 0, is_staged: false, since: now };
            let sent = match self.send(at, chain) {
                Ok(sent) => Sent { since: now, ..sent },
                Err(Stop::Drop(reason)) => {
                    self.end.counters.add_drops(reason, 1);
                    nowhere
                }
                Err(Stop::Full) => {
                    self.is_full = true;
                    break;
                }
            };
            self.given.push_back(sent);
            count += 1;
        }
        let taken = self.end.burst.chains().get(..count).unwrap_or_default();
        self.end.ring.consume(taken);
        self.end.tally.chains += taken.len() as u64;
        if self.far.ring.tail() != tail {
            self.far.ring.ring();
        }
        // What precedes it goes on.
        if let Some(fault) = self.frames.fault.filter(|_| count == 0 && !self.is_full) {
            self.end.fail(fault);
        }
        count as u32
    }

    /// Gives the function a frame of the burst.
    fn send(&mut self, at: usize, chain: Chain) -> Result<Sent, Stop> {
        let Some(frame) = self.frames.as_slice().get(at).copied() else { return Err(Stop::Full) };
        if let Some(reason) = frame.dropped {
            return Err(Stop::Drop(reason));
        }
        let skip = self.end.ingress.header_len;
        let mut work = Work { bytes: frame.len, ..Work::default() };
        let (mut context, mut headers, mut is_own_sum) = (None, 0, false);
        match frame.offload {
            Offload::None => {}
            Offload::Checksum { start, offset } => {
                let beginning = self.head.get_mut(..HEAD_BYTES.min(frame.len as usize)).unwrap_or_default();
                copy_out(&self.end.burst, &chain, skip, beginning);
                context = headers_of(beginning, start, offset).map(|headers| context_of(headers, 0));
                work.checksum = context.is_some();
                is_own_sum = context.is_none();
            }
            Offload::Segment { mss, header, .. } => {
                // As it was checked.
                self.head = self.frames.heads().get(at).copied().unwrap_or([0; HEAD_BYTES]);
                let all = self.head.get_mut(..header.into()).unwrap_or_default();
                let found = prepare_cut(all, frame.len, frame.offload);
                let found = found.ok_or(Stop::Drop(DropReason::BadOffload))?;
                context = Some(context_of(found, mss));
                headers = usize::from(header);
                work = Work {
                    checksum: true,
                    cut: true,
                    ip_checksum: found.is_v4,
                    bytes: frame.len - u32::from(header),
                };
            }
        }
        let is_staged = is_own_sum || frame.len < LEAST_FRAME || !self.find_pieces(&chain, skip + headers);
        if is_staged {
            work.bytes = work.bytes.max(LEAST_FRAME);
            self.stage(&chain, skip, headers, frame)?;
        }
        let new_context = context.filter(|context| self.context != Some(*context));
        let descriptors = self.pieces.len() + usize::from(headers > 0) + usize::from(new_context.is_some());
        if descriptors > self.far.ring.room() {
            return Err(Stop::Full);
        }
        if let Some(context) = new_context {
            self.context = Some(context);
            self.far.ring.put(context.descriptor());
        }
        if headers > 0 {
            let at = self.far.headers + u64::from(self.far.ring.tail()) * HEADER_ROOM;
            if let Ok(room) = self.far.map.resolve(at, HEADER_ROOM) {
                room.write(self.head.get(..headers).unwrap_or_default());
            }
            self.far.ring.put(data(at, headers as u16, false, work));
        }
        let (mut last, count) = (0, self.pieces.len());
        for (index, (at, len)) in self.pieces.iter().enumerate() {
            last = self.far.ring.put(data(*at, *len, index + 1 == count, work));
        }
        if is_staged {
            self.stage = (self.stage + 1) % STAGES;
            self.staged += 1;
            self.end.tally.checksums += u64::from(is_own_sum);
        }
        Ok(Sent { chain, last: Some(last), descriptors: descriptors as u16, is_staged, since: 0 })
    }

    /// The pieces of a chain from a byte on, as the function is to be given them. False: they are too many.
    fn find_pieces(&mut self, chain: &Chain, mut skip: usize) -> bool {
        self.pieces.clear();
        for (gpa, slice) in self.end.burst.addresses(chain).zip(self.end.burst.readable(chain)) {
            let before = skip.min(slice.len());
            skip -= before;
            if !push_pieces(&mut self.pieces, gpa + before as u64, (slice.len() - before) as u32) {
                return false;
            }
        }
        true
    }

    /// Copies a frame to memory of our own, where it is as the function is to send it; its first bytes, `headers`, are elsewhere.
    #[cold]
    fn stage(&mut self, chain: &Chain, skip: usize, headers: usize, frame: Frame) -> Result<(), Stop> {
        if self.staged >= STAGES {
            return Err(Stop::Full);
        }
        let len = (frame.len as usize).max(LEAST_FRAME as usize);
        let place = self.far.stages + u64::from(self.stage) * STAGE_BYTES;
        let (Some(copy), Ok(room)) = (self.scratch.get_mut(..len), self.far.map.resolve(place, STAGE_BYTES))
        else {
            return Err(Stop::Drop(DropReason::Oversize));
        };
        copy.fill(0);
        copy_out(&self.end.burst, chain, skip, copy.get_mut(..frame.len as usize).unwrap_or_default());
        if let Offload::Checksum { start, offset } = frame.offload
            && headers_of(copy, start, offset).is_none()
        {
            complete_checksum(copy, start, offset);
        }
        room.write(copy);
        self.pieces.clear();
        push_pieces(&mut self.pieces, place + headers as u64, (len - headers) as u32);
        Ok(())
    }

    /// Consumes what is sent by a queue that is disabled, in order behind what the function has.
    fn drop_sent(&mut self, most: usize) -> u32 {
        if !self.given.is_empty() {
            return 0;
        }
        let peeked = self.end.peek(most.min(BURST));
        if peeked > 0 {
            self.end.finish(peeked);
            self.end.counters.add_drops(DropReason::TxDisabled, peeked as u64);
        }
        peeked as u32
    }
}

/// Adds what lies at an address in pieces that the function takes. False: they become too many.
fn push_pieces(pieces: &mut Vec<(u64, u16)>, mut at: u64, mut left: u32) -> bool {
    while left > 0 {
        if pieces.len() >= MOST_PIECES {
            return false;
        }
        let len = left.min(MOST_OF_A_PIECE);
        pieces.push((at, len as u16));
        at += u64::from(len);
        left -= len;
    }
    true
}

fn context_of(headers: Headers, mss: u16) -> Context {
    let Headers { mac_len, ip_len, transport_len, is_v4, is_tcp } = headers;
    Context { mac_len, ip_len, transport_len, is_v4, is_tcp, mss }
}

impl<R: DeviceRing> Leg for Transmit<R> {
    fn step(&mut self, most: usize, rest: bool, now: u64) -> u32 {
        if self.end.is_faulted() {
            return 0;
        }
        let mut moved = self.take_back();
        if !rest {
            moved += if self.end.enabled { self.give(most, now) } else { self.drop_sent(most) };
        }
        if moved > 0 {
            self.end.publish();
        }
        moved
    }

    fn ended(&mut self, now: u64) {
        if let Some(seen) = self.seen.take() {
            self.end.counters.add_latency(now.saturating_sub(seen));
        }
    }

    fn is_drained(&self) -> bool {
        self.given.is_empty() || self.end.is_faulted()
    }

    fn arm(&mut self) -> Option<bool> {
        let can_take = if self.end.enabled { self.room() > 0 } else { self.given.is_empty() };
        let is_here = can_take && self.end.arm()?;
        let Some(first) = self.given.front() else { return Some(is_here) };
        if self.end.is_faulted() {
            return Some(false);
        }
        let last = first.last;
        self.far.alarm.interrupt.enable();
        self.is_armed = true;
        Some(is_here || last.is_none_or(|last| self.far.ring.is_done(last)))
    }

    fn disarm(&mut self) {
        self.end.disarm();
        if std::mem::take(&mut self.is_armed) {
            self.far.alarm.interrupt.disable();
        }
    }

    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        self.end.wake_source().into_iter().chain([self.far.alarm.wake.as_fd()]).collect()
    }
}

struct Receive<R> {
    end: Box<GuestQueue<R>>,
    far: Receiving,
    /// Buffers that the function has, in order.
    given: VecDeque<Buffer>,
    /// Frames come by buffers of ours: one of the guest's did not fit.
    copies: bool,
    /// The frame in line waits for a buffer of the guest's.
    is_starved: bool,
    /// The frame in line is longer than a buffer: what of it came is passed over.
    is_long: bool,
    is_armed: bool,
    /// When the frames that the guest was given in this poll were first seen.
    seen: Option<u64>,
    /// What is moved within a buffer.
    scratch: Box<[u8]>,
}

#[derive(Clone, Copy)]
enum Buffer {
    /// A chain of the guest's: where its header, and where its frame begins.
    Guest { chain: Chain, header: u64, frame: u64 },
    /// One of ours.
    Own,
}

impl<R> fmt::Debug for Receive<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receive").field("given", &self.given.len()).finish_non_exhaustive()
    }
}

impl<R: DeviceRing> Receive<R> {
    fn new(end: Box<GuestQueue<R>>, far: Receiving) -> Receive<R> {
        Receive {
            end,
            given: VecDeque::with_capacity(far.ring.room()),
            copies: false,
            is_starved: false,
            is_long: false,
            is_armed: false,
            seen: None,
            scratch: vec![0; far.buffer_bytes as usize].into(),
            far,
        }
    }

    /// Takes up to `most` buffers that came back. How many.
    fn take(&mut self, most: usize) -> u32 {
        let mut count = 0;
        self.is_starved = false;
        while count < most as u32
            && !self.end.is_faulted()
            && let Some(received) = self.far.ring.next()
        {
            if u32::from(received.len) > self.far.buffer_bytes {
                // What else it says is not believed either.
                self.end.fail(RingFault::UsedLength);
                break;
            }
            let is_done = match self.given.front().copied() {
                Some(Buffer::Guest { chain, header, frame }) => {
                    self.filled(&chain, header, frame, received);
                    true
                }
                Some(Buffer::Own) => self.copy(received),
                None => false,
            };
            if !is_done {
                break;
            }
            self.given.pop_front();
            self.far.ring.advance();
            count += 1;
        }
        count
    }

    /// What is wrong with a frame whose second eight bytes of twelve are these; None: it goes to the guest.
    fn judge(&mut self, received: Received, bytes_4_to_11: u64) -> Option<DropReason> {
        let was_long = std::mem::replace(&mut self.is_long, !received.is_last);
        let tag = if self.tag(received).is_some() { VLAN_TAG } else { 0 };
        let len = u32::from(received.len);
        let [a, b, c, d, e, f] = self.far.own.0;
        let own = u64::from_le_bytes([a, b, c, d, e, f, 0, 0]);
        if was_long || !received.is_last || len + tag > self.end.ingress.max_frame {
            Some(DropReason::RxOversize)
        } else if received.is_damaged {
            Some(DropReason::Damaged)
        } else if len < ETHERNET_HEADER {
            Some(DropReason::Runt)
        } else if bytes_4_to_11 >> 16 == own {
            Some(DropReason::Reflected)
        } else {
            None
        }
    }

    /// The tag that was taken out of a frame and belongs into it.
    fn tag(&self, received: Received) -> Option<[u8; 4]> {
        let tag = received.vlan.filter(|tag| self.far.vlans.contains(&(tag & 0xfff)))?;
        let [a, b] = tag.to_be_bytes();
        Some([0x81, 0, a, b])
    }

    /// The function filled a buffer of the guest's.
    fn filled(&mut self, chain: &Chain, header: u64, frame: u64, received: Received) {
        let header_len = self.end.ingress.header_len;
        let source = self.end.map.resolve(frame, ADDRESSES as u64).map_or(0, |addresses| addresses.word(4));
        let (reason, tag) = (self.judge(received, source), self.tag(received));
        let words = self.header_of(received);
        let buffer_bytes = u64::from(self.far.buffer_bytes);
        let found =
            (self.end.map.resolve(header, header_len as u64), self.end.map.resolve(frame, buffer_bytes));
        let (Ok(header), Ok(frame)) = found else {
            // Not reached: it was found when it was given.
            return self.end.fail(RingFault::Unmapped);
        };
        let mut len = u32::from(received.len);
        if let Some(reason) = reason {
            if received.is_last {
                self.end.counters.add_drops(reason, 1);
            }
            put_header(header, header_len, (0, 0));
            self.end.ring.complete(chain, header_len as u32);
            return;
        }
        if let Some(tag) = tag {
            // The rest makes room for it.
            let rest = frame.part(ADDRESSES, len as usize - ADDRESSES);
            let moved = self.scratch.get_mut(..rest.len()).unwrap_or_default();
            rest.read(moved);
            frame.part(ADDRESSES, tag.len()).write(&tag);
            frame.part(ADDRESSES + tag.len(), moved.len()).write(moved);
            len += VLAN_TAG;
        }
        put_header(header, header_len, words);
        self.end.ring.complete(chain, header_len as u32 + len);
        self.end.tally.packets += 1;
        self.end.tally.bytes += u64::from(len);
    }

    /// The function filled a buffer of ours. False: the frame waits for one of the guest's.
    fn copy(&mut self, received: Received) -> bool {
        let (at, bytes) = (self.own_buffer(self.far.ring.head()), u64::from(received.len));
        let source = self.far.map.resolve(at, ADDRESSES as u64).map_or(0, |addresses| addresses.word(4));
        let was_long = self.is_long;
        if let Some(reason) = self.judge(received, source) {
            if received.is_last {
                self.end.counters.add_drops(reason, 1);
            }
            return true;
        }
        let (tag, header) = (self.tag(received), self.header_of(received));
        let Ok(frame) = self.far.map.resolve(at, bytes) else { return false };
        match self.end.put_slice(frame, tag, header) {
            Ok(()) => true,
            Err(Refused::Drop(reason)) => {
                self.end.counters.add_drops(reason, 1);
                true
            }
            Err(Refused::Starved) => {
                (self.is_starved, self.is_long) = (true, was_long);
                false
            }
            Err(Refused::Faulted) => false,
        }
    }

    fn header_of(&self, received: Received) -> (u64, u16) {
        NetHeader::of_received(received.is_verified && !self.end.takes.is_empty()).to_words()
    }

    fn own_buffer(&self, index: u16) -> u64 {
        self.far.buffers + u64::from(index) * u64::from(self.far.buffer_bytes)
    }

    /// Gives the function buffers: up to `most` of the guest's, or all of ours that it lacks.
    fn give(&mut self, most: usize) -> u32 {
        let (tail, mut count) = (self.far.ring.tail(), 0);
        if !self.copies {
            count = self.give_guests(most);
        }
        if self.copies {
            while self.far.ring.room() > 0 {
                self.far.ring.post(self.own_buffer(self.far.ring.tail()));
                self.given.push_back(Buffer::Own);
            }
        }
        if self.far.ring.tail() != tail {
            self.far.ring.ring();
        }
        count
    }

    fn give_guests(&mut self, most: usize) -> u32 {
        let most = most.min(self.far.ring.room()).min(BURST);
        if most == 0 || self.end.peek(most) == 0 {
            return 0;
        }
        let mut count = 0;
        for chain in self.end.burst.chains() {
            if chain.readable_bytes != 0 || chain.writable_bytes == 0 {
                break;
            }
            let Some((header, frame)) = self.fitting(chain) else {
                self.copies = true;
                break;
            };
            self.far.ring.post(frame);
            self.given.push_back(Buffer::Guest { chain: *chain, header, frame });
            count += 1;
        }
        let is_wrong = count == 0 && !self.copies;
        let taken = self.end.burst.chains().get(..count).unwrap_or_default();
        self.end.ring.consume(taken);
        self.end.tally.chains += count as u64;
        // The rest of them is for frames that are copied.
        (self.end.used, self.end.told) = (count, count);
        if is_wrong {
            self.end.fail(RingFault::Direction);
        }
        count as u32
    }

    /// Where a chain has the header, and where the frame, if that is in one piece that the function may fill.
    fn fitting(&self, chain: &Chain) -> Option<(u64, u64)> {
        let header = self.end.ingress.header_len;
        let mut pieces = self.end.burst.addresses(chain).zip(self.end.burst.writable(chain));
        let (at, first) = pieces.next()?;
        let (frame, len) = match first.len().checked_sub(header)? {
            0 => {
                let (at, second) = pieces.next()?;
                (at, second.len())
            }
            rest => (at + header as u64, rest),
        };
        (len >= self.far.buffer_bytes as usize && frame.is_multiple_of(2)).then_some((at, frame))
    }
}

impl<R: DeviceRing> Leg for Receive<R> {
    fn step(&mut self, most: usize, rest: bool, now: u64) -> u32 {
        if self.end.is_faulted() || !self.end.enabled {
            return 0;
        }
        let mut moved = self.take(most.min(BURST));
        self.seen = (moved > 0).then_some(now);
        if !rest && !self.end.is_faulted() {
            moved += self.give(most);
        }
        if moved > 0 {
            self.end.publish();
        }
        moved
    }

    fn ended(&mut self, now: u64) {
        if let Some(seen) = self.seen.take() {
            self.end.counters.add_latency(now.saturating_sub(seen));
        }
    }

    fn is_drained(&self) -> bool {
        true
    }

    fn arm(&mut self) -> Option<bool> {
        if self.end.is_faulted() || !self.end.enabled {
            return Some(false);
        }
        let can_take = if self.copies { self.is_starved } else { self.far.ring.room() > 0 };
        let is_here = can_take && self.end.arm()?;
        if self.is_starved {
            // It is the guest that brings news.
            return Some(is_here);
        }
        self.far.alarm.interrupt.enable();
        self.is_armed = true;
        Some(is_here || self.far.ring.next().is_some())
    }

    fn disarm(&mut self) {
        self.end.disarm();
        if std::mem::take(&mut self.is_armed) {
            self.far.alarm.interrupt.disable();
        }
    }

    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        self.end.wake_source().into_iter().chain([self.far.alarm.wake.as_fd()]).collect()
    }
}

/// Frames in one burst.
const BURST: usize = 32;
/// Pieces of a frame that the function is given: more are copied together. An emulated one drops frames of more than 64.
const MOST_PIECES: usize = 40;
/// Shorter frames are padded: the hardware hangs on less.
const LEAST_FRAME: u32 = 17;
/// Room for the headers of a frame that is to be cut up.
pub const HEADER_ROOM: u64 = 256;
/// Frames that are with the function in copies of ours at most.
pub const STAGES: u16 = 16;
/// Room for the largest frame that passes the checks: an IP packet of 64 KiB with an Ethernet header and tags.
pub const STAGE_BYTES: u64 = (64 << 10) + 4096;
/// Bytes of the two addresses.
const ADDRESSES: usize = 12;
const _: () = assert!(HEAD_BYTES as u64 <= HEADER_ROOM && MOST_OF_A_PIECE <= u16::MAX as u32);
