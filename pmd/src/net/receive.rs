//! How a receive queue takes frames: finds buffers for each, writes the header, and copies it once, straight from its
//! sender's buffer. What its driver did not agree to finish itself is finished here, on a private copy.
//!
//! Part of the pump that owns the queue. Budget: no allocation, no lock, no system call, no panic.

use memmap2::MmapMut;
use ringway_ring::chain::{Burst, Chain};
use ringway_ring::guest::HostSlice;
use ringway_ring::queue::{DeviceRing, RingFault};

use super::cursor::Cursor;
use super::end::End;
use super::frame::{ADDRESSES, Frame, Head, copy_out};
use super::offload::{Finish, HEAD_BYTES, Offload, Offloads, Segments, complete_checksum};
use crate::counters::{DropReason, Example, Tally};

/// Where frames are to go, whatever it is: a receive queue, a kernel netdev.
pub(super) trait Receiver {
    /// Gets ready for these frames, which come next: looks for buffers and asks for their lines.
    fn prepare(&mut self, frames: &[Frame]);

    /// Delivers one frame: `len` bytes of `chain` behind its sender's header.
    fn deliver(&mut self, from: Passage<'_>, desk: &mut Desk) -> Result<(), Refused>;

    /// Counts frames that were for it and did not reach it.
    fn count_drops(&mut self, reason: DropReason, frames: u64);

    /// Notes what the last of them was like.
    fn set_example(&mut self, reason: DropReason, example: Example);

    /// What it finishes itself.
    fn takes(&self) -> Offloads;

    /// Delivers a frame of our own, in two parts.
    fn put_bytes(&mut self, head: &[u8], payload: &[u8], offload: Offload) -> Result<(), Refused>;

    /// What is counted at the next publication.
    fn tally(&mut self) -> &mut Tally;
}

/// A frame on its way.
#[derive(Clone, Copy)]
pub(super) struct Passage<'a> {
    /// Where its chain was peeked.
    pub(super) burst: &'a Burst,
    pub(super) chain: &'a Chain,
    /// Bytes of its sender's header.
    pub(super) skip: usize,
    pub(super) frame: &'a Frame,
    /// The beginnings of its burst's frames, and which is its own.
    pub(super) heads: &'a [Head],
    pub(super) nth: usize,
    /// Exchange its addresses.
    pub(super) swap: bool,
}

impl<'a> Passage<'a> {
    /// The frame's beginning, as far as it was looked at: these bytes go on, whatever stands in their place by now.
    #[inline(always)]
    pub(super) fn head(&self) -> &'a [u8] {
        match self.frame.looked_at {
            0 => &[],
            bytes => self.heads.get(self.nth).and_then(|head| head.get(..bytes.into())).unwrap_or_default(),
        }
    }
}

/// Why a frame was not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refused {
    /// No buffers now.
    Starved,
    /// It never can be.
    Drop(DropReason),
    /// The receiver is left alone from now on.
    Faulted,
}

/// Where frames are worked on whose receiver does not take them as they are. One a pump.
#[derive(Debug)]
pub(super) struct Desk {
    /// Pages of its own, which are not there before they are touched; None where it is never needed.
    pub(super) frame: Option<MmapMut>,
    /// Segments of the frame in line that were delivered before its receiver ran out of buffers.
    pub(super) resume: u32,
}

impl Desk {
    /// With room for a frame if `is_needed`.
    pub(super) fn new(is_needed: bool) -> std::io::Result<Desk> {
        let frame = is_needed.then(|| MmapMut::map_anon(DESK_BYTES)).transpose()?;
        Ok(Desk { frame, resume: 0 })
    }
}

/// A private copy of a frame.
pub(super) fn private_copy<'desk>(room: &'desk mut [u8], from: &Passage<'_>) -> &'desk mut [u8] {
    let copy = room.get_mut(..from.frame.len as usize).unwrap_or_default();
    copy_out(from.burst, from.chain, from.skip, copy);
    let head = from.head();
    if let Some(begin) = copy.get_mut(..head.len()) {
        begin.copy_from_slice(head);
    }
    if from.swap
        && let Some((to, source)) = copy.get_mut(..12).and_then(|both| both.split_at_mut_checked(6))
    {
        to.swap_with_slice(source);
    }
    copy
}

/// Room for the largest frame that passes the checks, in bytes: an IP packet of 64 KiB with an Ethernet header and tags.
const DESK_BYTES: usize = (64 << 10) + 4096;

impl<R: DeviceRing> Receiver for End<R> {
    #[inline]
    fn prepare(&mut self, frames: &[Frame]) {
        let mut wanted = frames.len();
        let longest = frames.iter().fold(0, |longest, frame| frame.len.max(longest));
        if self.mergeable && longest >= self.capacity {
            let capacity = self.capacity.max(64);
            wanted += frames.iter().map(|frame| (frame.len / capacity) as usize).sum::<usize>();
        }
        let have = self.burst.chains().len() - self.used.min(self.burst.chains().len());
        if have < wanted {
            self.peek(wanted.min(Burst::CHAINS));
            for piece in self.burst.all_segments() {
                piece.prefetch_write(0);
                piece.prefetch_write(64);
            }
        }
    }

    #[inline]
    fn deliver(&mut self, from: Passage<'_>, desk: &mut Desk) -> Result<(), Refused> {
        let frame = from.frame;
        match frame.offload {
            Offload::None if frame.len <= self.ingress.max_frame => self.put_frame(from, (0, 0)),
            offload if offload.longest_frame(frame.len) > self.ingress.max_frame => {
                Err(Refused::Drop(DropReason::RxOversize))
            }
            offload if self.takes.contains(offload.needs()) => {
                self.put_frame(from, offload.to_header().to_words())
            }
            offload => finish(self, from, offload, desk),
        }
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
        let ours = self.ingress.header_len;
        let len = head.len() + payload.len();
        let count = self.room(len + ours)?;
        let into = self.burst.chains().get(self.used..self.used + count).unwrap_or_default();
        let mut header = offload.to_header().to_bytes();
        header[10..12].copy_from_slice(&(count as u16).to_le_bytes());
        {
            let mut to = Cursor::new(into.iter().flat_map(|chain| self.burst.writable(chain)));
            to.write(header.get(..ours).unwrap_or_default());
            to.write(head);
            to.write(payload);
        }
        self.take(count, len);
        Ok(())
    }

    fn tally(&mut self) -> &mut Tally {
        &mut self.tally
    }
}

impl<R: DeviceRing> End<R> {
    /// How many chains, from the first unused one on, take `needed` bytes.
    #[inline]
    fn room(&mut self, needed: usize) -> Result<usize, Refused> {
        let free = self.burst.chains().get(self.used..).unwrap_or_default();
        match fit(free, needed, self.mergeable) {
            Fit::Into(count) => Ok(count),
            Fit::NotYet => self.room_elsewhere(needed),
            Fit::Never => Err(Refused::Drop(DropReason::RxBufferTooSmall)),
            Fit::WrongDirection => {
                self.fail(RingFault::Direction);
                Err(Refused::Faulted)
            }
        }
    }

    /// Looks for buffers beyond those that were peeked.
    #[cold]
    fn room_elsewhere(&mut self, needed: usize) -> Result<usize, Refused> {
        let peeked = self.peek(Burst::CHAINS);
        if self.is_faulted() {
            return Err(Refused::Faulted);
        }
        match fit(self.burst.chains(), needed, self.mergeable) {
            Fit::Into(count) => Ok(count),
            Fit::Never => Err(Refused::Drop(DropReason::RxBufferTooSmall)),
            // More buffers than a burst holds and still too small in sum: waiting would not help.
            Fit::NotYet if peeked >= Burst::CHAINS => Err(Refused::Drop(DropReason::RxBufferTooSmall)),
            Fit::NotYet => Err(Refused::Starved),
            Fit::WrongDirection => {
                self.fail(RingFault::Direction);
                Err(Refused::Faulted)
            }
        }
    }

    /// Takes the one chain that a frame was written to.
    #[inline(always)]
    fn take_one(&mut self, into: Chain, len: usize) {
        self.ring.consume(std::slice::from_ref(&into));
        self.capacity = into.writable_bytes;
        self.ring.complete(&into, (len + self.ingress.header_len) as u32);
        self.used += 1;
        self.tally.chains += 1;
        self.tally.packets += 1;
        self.tally.bytes += len as u64;
    }

    /// Takes the chains that were written to.
    #[inline]
    fn take(&mut self, count: usize, len: usize) {
        let into = self.burst.chains().get(self.used..self.used + count).unwrap_or_default();
        self.ring.consume(into);
        let mut left = (len + self.ingress.header_len) as u32;
        for chain in into {
            let written = left.min(chain.writable_bytes);
            left -= written;
            self.capacity = chain.writable_bytes;
            self.ring.complete(chain, written);
        }
        self.used += count;
        self.tally.chains += count as u64;
        self.tally.packets += 1;
        self.tally.bytes += len as u64;
    }

    /// Copies one frame, as it is, into the buffers that it fits. The header comes without its number of buffers.
    #[inline]
    fn put_frame(&mut self, from: Passage<'_>, header: (u64, u16)) -> Result<(), Refused> {
        let (len, skip) = (from.frame.len as usize, from.skip);
        let ours = self.ingress.header_len;
        // What most are: a frame in one piece, and a buffer that takes it.
        if let Some(only) = self.burst.chains().get(self.used)
            && let (Some(piece), Some(to)) =
                (from.burst.single_readable(from.chain), self.burst.single_writable(only))
            && let (Some(piece), Some(frame)) = (piece.get(skip, len), to.get(ours, len))
        {
            put_header(to, ours, header);
            frame.copy_from(piece);
            // Over what was just copied.
            if from.frame.looked_at != 0 {
                put_head(frame, from.head(), from.swap);
            } else if from.swap {
                swap_addresses(piece, frame);
            }
            self.take_one(*only, len);
            return Ok(());
        }
        self.put_pieces(from, header)
    }

    /// The same for frames and buffers in any number of pieces.
    #[inline(never)]
    fn put_pieces(&mut self, from: Passage<'_>, (low, high): (u64, u16)) -> Result<(), Refused> {
        let (len, ours) = (from.frame.len as usize, self.ingress.header_len);
        let count = self.room(len + ours)?;
        let into = self.burst.chains().get(self.used..self.used + count).unwrap_or_default();
        // virtio 1.3 §5.1.6.4.1: the number of chains that the frame takes. It ends the header, where there is one.
        let high = u32::from(high) | (count as u32) << 16;
        {
            let mut piece = Cursor::new(from.burst.readable(from.chain));
            let mut to = Cursor::new(into.iter().flat_map(|chain| self.burst.writable(chain)));
            to.write(&low.to_le_bytes());
            to.write(high.to_le_bytes().get(..ours.saturating_sub(8)).unwrap_or_default());
            piece.skip(from.skip);
            let mut left = len;
            let mut head = from.head();
            if from.swap {
                let mut both = [0u8; ADDRESSES];
                piece.read(&mut both);
                if let Some((looked_at, rest)) = head.split_first_chunk::<ADDRESSES>() {
                    (both, head) = (*looked_at, rest);
                }
                both.rotate_left(ADDRESSES / 2);
                to.write(&both);
                left -= ADDRESSES;
            }
            to.write(head);
            piece.skip(head.len());
            piece.copy_to(&mut to, left.saturating_sub(head.len()));
        }
        self.take(count, len);
        Ok(())
    }
}

/// Finishes what a receiver did not agree to finish, on a copy, and delivers what came of it.
#[inline(never)]
pub(super) fn finish<R: Receiver>(
    to: &mut R,
    from: Passage<'_>,
    offload: Offload,
    desk: &mut Desk,
) -> Result<(), Refused> {
    let Desk { frame: room, resume } = desk;
    let frame = private_copy(room.as_deref_mut().unwrap_or_default(), &from);
    if frame.len() < from.frame.len as usize {
        // Not reached: a pump whose sources may leave more to be done than its sinks take has a desk.
        return Err(Refused::Drop(DropReason::BadOffload));
    }
    match offload {
        Offload::None => to.put_bytes(frame, &[], Offload::None),
        Offload::Checksum { start, offset } => {
            complete_checksum(frame, start, offset);
            to.put_bytes(frame, &[], Offload::None)?;
            to.tally().checksums += 1;
            Ok(())
        }
        Offload::Segment { .. } => {
            let finish = if to.takes().contains(Offloads::CHECKSUM) { Finish::Partial } else { Finish::Full };
            let mut segments = Segments::new(frame, offload, finish);
            let mut head = [0; HEAD_BYTES];
            let mut done = 0;
            while let Some(piece) = segments.next(&mut head) {
                done += 1;
                // Those before were delivered when the frame was in line before.
                if done <= *resume {
                    continue;
                }
                let bytes = head.get(..piece.head_len).unwrap_or_default();
                let payload = frame.get(piece.payload.clone()).unwrap_or_default();
                match to.put_bytes(bytes, payload, piece.offload) {
                    Ok(()) => to.tally().segments += 1,
                    Err(Refused::Starved) => {
                        *resume = done - 1;
                        return Err(Refused::Starved);
                    }
                    Err(other) => {
                        *resume = 0;
                        return Err(other);
                    }
                }
            }
            *resume = 0;
            to.tally().segmented += 1;
            Ok(())
        }
    }
}

/// Whether a frame fits.
#[derive(Debug, PartialEq, Eq)]
enum Fit {
    /// Into this many chains.
    Into(usize),
    /// Not into those that are there; more may come.
    NotYet,
    /// Not into the one chain that it may take.
    Never,
    /// A chain in line has nothing to write to, or something to read.
    WrongDirection,
}

/// Finds how many of the `free` chains take `needed` bytes.
#[inline]
fn fit(free: &[Chain], needed: usize, mergeable: bool) -> Fit {
    let mut room = 0usize;
    for (index, chain) in free.iter().enumerate() {
        if chain.readable_bytes != 0 || chain.writable_bytes == 0 {
            return Fit::WrongDirection;
        }
        room += chain.writable_bytes as usize;
        if room >= needed {
            return Fit::Into(index + 1);
        }
        if !mergeable {
            return Fit::Never;
        }
    }
    Fit::NotYet
}

/// Writes the header of a frame that takes one buffer, of `len` bytes: 10, or 12 with the number of buffers.
#[inline(always)]
fn put_header(to: HostSlice<'_>, len: usize, (low, high): (u64, u16)) {
    to.put_word(0, low);
    // What is behind the first word, with some of it.
    let (high, behind) = (u64::from(high) | 1 << 16, len.saturating_sub(8) as u32 * 8);
    to.put_word(len.saturating_sub(8), if behind == 0 { low } else { low >> behind | high << (64 - behind) });
}

/// Writes what was looked at over what was copied in its place, with its addresses exchanged or not.
#[inline(always)]
fn put_head(frame: HostSlice<'_>, head: &[u8], swap: bool) {
    if head.len() > ADDRESSES {
        frame.write(head);
    }
    let Some([a, b, c, d, e, f, g, h, i, j, k, l]) = head.first_chunk::<ADDRESSES>().copied() else { return };
    // Two words that overlap: the first eight bytes of the twelve and the last.
    let low = u64::from_le_bytes([a, b, c, d, e, f, g, h]);
    let high = u64::from_le_bytes([e, f, g, h, i, j, k, l]);
    if swap {
        put_swapped(frame, low, high);
    } else {
        frame.put_word(0, low);
        frame.put_word(4, high);
    }
}

/// Copies destination and source address, exchanged; nothing of a frame that is shorter than that.
#[inline(always)]
fn swap_addresses(from: HostSlice<'_>, to: HostSlice<'_>) {
    put_swapped(to, from.word(0), from.word(4));
}

/// Writes the addresses that begin with `low` and end with `high`, exchanged.
#[inline(always)]
fn put_swapped(to: HostSlice<'_>, low: u64, high: u64) {
    // The destination is in the lower 48 bits of the one, the source in the upper 48 of the other.
    to.put_word(0, high >> 16 | low << 48);
    to.put_word(4, high >> 48 | low << 16);
}
