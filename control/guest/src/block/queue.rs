//! One virtqueue of a block device, from the driver's side: requests of any kind and shape, whose data lies in slots.
//!
//! ```text
//!   reserve() -> Slot -> data() -> submit(slot, request) .. collect() -> Done { slot, status } -> data() -> release(slot)
//! ```
//! A [`Slot`] is held by whoever reserved it or collected it, or by the device. Owned by one thread.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_pmd::notify::EventFd;
use ringway_ring::features::Features;
use ringway_ring::guest::{GuestMap, HostSlice, LastHit};
use ringway_ring::layout::{Areas, DriverConfig};
use ringway_ring::packed::driver::PackedDriver;
use ringway_ring::position::Position;
use ringway_ring::queue::{
    Completion, DriverBuffer, DriverRing, Format, IndirectTable, RingFault, RingFull, RingSize,
};
use ringway_ring::split::driver::SplitDriver;
use ringway_ring::tsc;

use super::options::{BlockOptions, Shape};
use super::plan::{Place, Plan};
use super::request::{HEADER_BYTES, Request, Status};
use crate::error::GuestError;

/// Room for one request: its header, its data, its status.
#[derive(Debug, PartialEq, Eq)]
pub struct Slot(u16);

impl Slot {
    /// Its number, below the queue's depth.
    pub fn number(&self) -> usize {
        self.0.into()
    }
}

/// A request that was completed.
#[derive(Debug)]
pub struct Done {
    /// Its slot, whose data can be looked at; to be released.
    pub slot: Slot,
    /// What it was.
    pub request: Request,
    /// What the device says.
    pub status: Status,
    /// Bytes that the device says it wrote, the status included.
    pub written: u32,
    /// When it was submitted, in cycles.
    pub submitted_at: u64,
}

impl Done {
    /// Bytes that a device must say it wrote if all went well.
    pub fn expected_written(&self) -> u32 {
        let to_guest = self.request.operation.is_to_guest();
        1 + if to_guest { self.request.data_bytes() } else { 0 }
    }
}

/// A ring of either format.
#[derive(Debug)]
enum Ring {
    Split(Box<SplitDriver>),
    Packed(Box<PackedDriver>),
}

/// Calls a method of whichever it is.
macro_rules! either {
    ($ring:expr, $driver:ident => $call:expr) => {
        match $ring {
            Ring::Split($driver) => $call,
            Ring::Packed($driver) => $call,
        }
    };
}

/// A request that the device has.
#[derive(Debug, Clone, Copy)]
struct UnderWay {
    request: Request,
    submitted_at: u64,
}

/// See the head of this file.
#[derive(Debug)]
pub struct Queue {
    index: u16,
    ring: Ring,
    format: Format,
    map: Arc<GuestMap>,
    hint: LastHit,
    kick: EventFd,
    call: EventFd,
    areas: Areas<u64>,
    places: Box<[Place]>,
    /// Slots that nobody holds; the last is used next.
    free: Vec<u16>,
    /// By slot: what the device has.
    under_way: Box<[Option<UnderWay>]>,
    count: usize,
    max_bytes: u32,
    segment_bytes: u32,
    shape: Shape,
    indirect: bool,
    /// The descriptors of the request that is being made.
    chain: Vec<DriverBuffer>,
    done: Box<[Completion]>,
    kicks: u64,
}

impl Queue {
    pub(crate) fn new(
        options: &BlockOptions,
        index: u16,
        size: RingSize,
        features: Features,
        map: &Arc<GuestMap>,
        plan: &Plan,
        base: u64,
    ) -> Result<Queue, GuestError> {
        let areas = plan.ring(index, base);
        let config = DriverConfig { size, features, map: Arc::clone(map), areas, position: Position::START };
        let mut ring = match options.format {
            Format::Split => Ring::Split(Box::new(config.start_split()?)),
            Format::Packed => Ring::Packed(Box::new(config.start_packed()?)),
        };
        either!(&mut ring, driver => driver.disable_calls());
        let event = || EventFd::new().map_err(GuestError::EventFd);
        let depth = options.depth;
        Ok(Queue {
            index,
            ring,
            format: options.format,
            map: Arc::clone(map),
            hint: LastHit::default(),
            kick: event()?,
            call: event()?,
            areas,
            places: (0..depth).map(|slot| plan.place(index, slot, base)).collect(),
            free: (0..depth).rev().collect(),
            under_way: vec![None; depth.into()].into(),
            count: 0,
            max_bytes: options.max_bytes,
            segment_bytes: options.segment_bytes.unwrap_or(options.max_bytes).clamp(1, options.max_bytes),
            shape: options.shape,
            indirect: options.indirect,
            chain: Vec::with_capacity(plan.descriptors.into()),
            done: vec![Completion::default(); usize::from(depth).min(BURST)].into(),
            kicks: 0,
        })
    }

    /// Its number.
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Requests under way at most.
    pub fn depth(&self) -> usize {
        self.places.len()
    }

    /// Requests that the device has.
    pub fn under_way(&self) -> usize {
        self.count
    }

    /// Takes a slot that nobody holds.
    #[inline]
    pub fn reserve(&mut self) -> Option<Slot> {
        self.free.pop().map(Slot)
    }

    /// Gives a slot back.
    #[inline]
    pub fn release(&mut self, slot: Slot) {
        self.free.push(slot.0);
    }

    /// The data of a slot.
    #[inline]
    pub fn data(&mut self, slot: &Slot) -> HostSlice<'_> {
        let place = self.place(slot.0);
        self.look_up(place.data, self.max_bytes)
    }

    /// Asks for the line of the data of the slot that will be reserved after `ahead` others, from `at` on.
    #[inline]
    pub fn prefetch_next(&mut self, ahead: usize, at: usize) {
        let slot = self.free.len().checked_sub(ahead + 1).and_then(|nth| self.free.get(nth)).copied();
        if let Some(slot) = slot {
            let place = self.place(slot);
            self.look_up(place.data, self.max_bytes).prefetch_write(at);
        }
    }

    /// Makes a request available; the device sees it with the next [`Queue::publish`].
    ///
    /// # Errors
    /// The slot, if the ring has no room.
    #[inline]
    pub fn submit(&mut self, slot: Slot, request: Request, now: u64) -> Result<(), Slot> {
        self.describe(slot.0, &request);
        let token = u32::from(slot.0);
        let added = if self.indirect { self.add_table(slot.0, token) } else { self.add_chain(token) };
        if added.is_err() {
            return Err(slot);
        }
        if let Some(entry) = self.under_way.get_mut(usize::from(slot.0)) {
            *entry = Some(UnderWay { request, submitted_at: now });
        }
        self.count += 1;
        Ok(())
    }

    /// Makes everything that was submitted visible, and kicks the device if it asked for that.
    #[inline]
    pub fn publish(&mut self) {
        if either!(&mut self.ring, driver => driver.publish()) {
            self.kicks += 1;
            self.kick.signal();
        }
    }

    /// Adds what was completed to `done`, which is not emptied first; returns how many.
    ///
    /// # Errors
    /// The device broke the rules of the ring; among them that a request was completed that it does not have.
    #[inline]
    pub fn collect(&mut self, done: &mut Vec<Done>) -> Result<usize, GuestError> {
        let mut completions = std::mem::take(&mut self.done);
        let count = either!(&mut self.ring, driver => driver.collect(&mut completions));
        if let Ok(count) = count {
            let came = completions.get(..count).unwrap_or_default();
            for completion in came {
                let place = self.place(completion.token as u16);
                self.look_up(place.status, 1).prefetch_read(0);
                self.look_up(place.data, self.max_bytes).prefetch_read(0);
            }
            done.extend(came.iter().filter_map(|completion| self.finish(*completion)));
        }
        self.done = completions;
        count.map_err(|fault| self.fault(fault))
    }

    /// Waits for all that the device has, and gives each to `take`.
    ///
    /// # Errors
    /// Nothing came for so long; or as [`Queue::collect`].
    pub fn drain(
        &mut self,
        within: Duration,
        mut take: impl FnMut(&mut Queue, Done),
    ) -> Result<(), GuestError> {
        let mut done = Vec::with_capacity(self.depth());
        let mut last = Instant::now();
        while self.count > 0 {
            if self.collect(&mut done)? > 0 {
                last = Instant::now();
            } else if last.elapsed() > within {
                return Err(GuestError::Stalled { queue: self.index, under_way: self.count, within });
            } else {
                std::thread::yield_now();
            }
            done.drain(..).for_each(|done| take(self, done));
        }
        Ok(())
    }

    /// Does one request and waits for it: data that the device reads is taken from `data`, data that it writes is put there.
    ///
    /// # Errors
    /// As [`Queue::drain`]; the queue must have no other request under way.
    pub fn perform(
        &mut self,
        request: Request,
        data: &mut [u8],
        within: Duration,
    ) -> Result<(Status, u32), GuestError> {
        let busy = |queue: &Queue| GuestError::Stalled { queue: queue.index, under_way: queue.count, within };
        let Some(slot) = self.reserve() else { return Err(busy(self)) };
        if !request.operation.is_to_guest() {
            self.data(&slot).write(data);
        }
        if let Err(slot) = self.submit(slot, request, tsc::cycles()) {
            self.release(slot);
            return Err(busy(self));
        }
        self.publish();
        let mut found = (Status::Wrong(UNWRITTEN), 0);
        self.drain(within, |queue, done| {
            if done.request.operation.is_to_guest() {
                queue.data(&done.slot).read(data);
            }
            found = (done.status, done.written);
            queue.release(done.slot);
        })?;
        Ok(found)
    }

    /// Kicks the device, whatever it asked for: as a driver does that has just begun.
    pub fn kick(&self) {
        self.kick.signal();
    }

    /// Kicks that the device asked for since it was last asked.
    pub fn take_kicks(&mut self) -> u64 {
        std::mem::take(&mut self.kicks)
    }

    pub(crate) fn kick_fd(&self) -> BorrowedFd<'_> {
        self.kick.as_fd()
    }

    pub(crate) fn call_fd(&self) -> BorrowedFd<'_> {
        self.call.as_fd()
    }

    /// The used index that is in a split ring.
    pub(crate) fn used_idx(&self) -> u16 {
        let mut idx = [0; 2];
        if let Ok(place) = self.map.resolve(self.areas.device + 2, 2) {
            place.read(&mut idx);
        }
        u16::from_le_bytes(idx)
    }

    #[inline]
    fn place(&self, slot: u16) -> Place {
        self.places.get(usize::from(slot)).copied().unwrap_or_default()
    }

    /// Bytes of our own memory: always there.
    #[inline]
    fn look_up(&mut self, gpa: u64, len: u32) -> HostSlice<'_> {
        let found = self.map.lookup(&mut self.hint, gpa, len);
        found.unwrap_or_else(|_| unreachable!("what the plan places is in memory of ours"))
    }

    /// Writes a request's header, and lays out its chain.
    #[inline]
    fn describe(&mut self, slot: u16, request: &Request) {
        let Place { header, status, data, .. } = self.place(slot);
        let to_guest = request.operation.is_to_guest();
        let bytes = request.data_bytes().min(self.max_bytes);
        let joined = self.shape == Shape::Joined && bytes > 0;
        let header_at = if joined && !to_guest { data - u64::from(HEADER_BYTES) } else { header };
        let status_at = if joined && to_guest { data + u64::from(bytes) } else { status };
        let [kind, sector] = request.header();
        let place = self.look_up(header_at, HEADER_BYTES);
        place.put_word(0, kind);
        place.put_word(8, sector);
        self.look_up(status_at, 1).write(&[UNWRITTEN]);
        if let Some([sector, word]) = request.range() {
            let range = self.look_up(data, self.max_bytes);
            range.put_word(0, sector);
            range.put_word(8, word);
        }
        let part = |gpa, len, writable| DriverBuffer { gpa, len, writable };
        self.chain.clear();
        // What the device reads comes first, whose first part is the header.
        match (self.shape, joined && !to_guest) {
            (Shape::SplitHeader, _) => {
                self.chain.push(part(header, 4, false));
                self.chain.push(part(header + 4, HEADER_BYTES - 4, false));
            }
            (_, true) => {}
            _ => self.chain.push(part(header, HEADER_BYTES, false)),
        }
        let mut at = 0;
        while at < bytes {
            let len = self.segment_bytes.min(bytes - at);
            let (mut gpa, mut whole) = (data + u64::from(at), len);
            if joined && !to_guest && at == 0 {
                (gpa, whole) = (header_at, whole + HEADER_BYTES);
            }
            if joined && to_guest && at + len == bytes {
                whole += 1;
            }
            self.chain.push(part(gpa, whole, to_guest));
            at += len;
        }
        if !(joined && to_guest) {
            self.chain.push(part(status_at, 1, true));
        }
    }

    #[inline]
    fn add_chain(&mut self, token: u32) -> Result<(), RingFull> {
        let chain = &self.chain;
        either!(&mut self.ring, driver => driver.add(chain, token))
    }

    #[inline]
    fn add_table(&mut self, slot: u16, token: u32) -> Result<(), RingFull> {
        let (gpa, format) = (self.place(slot).table, self.format);
        let chain = std::mem::take(&mut self.chain);
        let room = (chain.len() * IndirectTable::DESCRIPTOR) as u32;
        let table = IndirectTable::write(format, self.look_up(gpa, room), gpa, &chain);
        self.chain = chain;
        let table = table.ok_or(RingFull)?;
        either!(&mut self.ring, driver => driver.add_indirect(&table, token))
    }

    /// Reads the status of a completed request.
    #[inline]
    fn finish(&mut self, Completion { token, written }: Completion) -> Option<Done> {
        let slot = token as u16;
        let UnderWay { request, submitted_at } = self.under_way.get_mut(usize::from(slot))?.take()?;
        self.count -= 1;
        let Place { status, data, .. } = self.place(slot);
        let bytes = request.data_bytes().min(self.max_bytes);
        let is_joined = self.shape == Shape::Joined && bytes > 0 && request.operation.is_to_guest();
        let mut byte = [UNWRITTEN];
        self.look_up(if is_joined { data + u64::from(bytes) } else { status }, 1).read(&mut byte);
        Some(Done { slot: Slot(slot), request, status: byte[0].into(), written, submitted_at })
    }

    fn fault(&self, fault: RingFault) -> GuestError {
        GuestError::Device { queue: self.index, fault }
    }
}

/// Reads a device's name: up to the first byte that is 0.
pub(crate) fn name(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(bytes.get(..end).unwrap_or_default()).trim_end().to_owned()
}

/// Completions collected at once.
const BURST: usize = 64;

/// A status that no device writes.
const UNWRITTEN: u8 = 0xff;
