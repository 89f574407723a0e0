//! How a receive queue takes frames: finds buffers for each, writes the header, and copies it once, straight from its
//! sender's buffer. What its driver did not agree to finish itself is finished here, on a private copy.
//!
//! Part of the pump that owns the queue. Budget: no allocation, no lock, no system call, no panic.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ringway_ring::chain::{Burst, Chain};
use ringway_ring::guest::HostSlice;
use ringway_ring::queue::{DeviceRing, RingFault};

use super::cursor::Cursor;
use super::finish::finish;
use super::frame::{ADDRESSES, Ends, Frame, Head};
use super::guest_queue::GuestQueue;
use super::offload::{Offload, Offloads};
use super::scratch::Scratch;
use super::side::{Passage, Refused, Sink};
use crate::counters::{DropReason, Example, QueueCounters, Tally};

impl<R: DeviceRing + fmt::Debug> Sink for GuestQueue<R> {
    #[inline]
    fn prepare(&mut self, frames: &[Frame]) {
        self.tell();
        let mut wanted = frames.len();
        let longest = frames.iter().fold(0, |longest, frame| frame.len.max(longest));
        if self.mergeable && longest >= self.capacity {
            let capacity = self.capacity.max(64);
            wanted += frames.iter().map(|frame| (frame.len / capacity) as usize).sum::<usize>();
        }
        let have = self.burst.chains().len() - self.used.min(self.burst.chains().len());
        if have < wanted {
            self.peek(wanted.min(Burst::CHAINS));
            let header = self.ingress.header_len;
            for chain in self.burst.chains() {
                if let Some(piece) = self.burst.single_writable(chain) {
                    piece.own_behind(header, longest as usize);
                } else {
                    self.burst.writable(chain).take(2).for_each(|piece| piece.prefetch_write(0));
                }
            }
        }
    }

    // Into the loop over frames, whatever else there is of it.
    #[inline(always)]
    fn deliver(&mut self, from: Passage<'_>, scratch: &mut Scratch) -> Result<(), Refused> {
        let frame = from.frame;
        match frame.offload {
            Offload::None if frame.len <= self.ingress.max_frame => self.put_frame(from, (0, 0)),
            offload if offload.longest_frame(frame.len) > self.ingress.max_frame => {
                Err(Refused::Drop(DropReason::RxOversize))
            }
            offload if self.takes.contains(offload.needs()) => {
                self.put_frame(from, offload.to_header().to_words())
            }
            offload => finish(self, from, offload, scratch),
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

    fn counters(&self) -> &Arc<QueueCounters> {
        &self.counters
    }

    #[inline]
    fn publish(&mut self) {
        GuestQueue::publish(self);
    }

    #[inline]
    fn took(&mut self, cycles: u64) {
        GuestQueue::took(self, cycles);
    }

    #[inline]
    fn is_usable(&self) -> bool {
        GuestQueue::is_usable(self)
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

impl<R: DeviceRing> GuestQueue<R> {
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

    /// Copies a frame that lies in one piece of memory of ours, with this tag put in behind its addresses. The header comes without
    /// its number of buffers.
    pub(super) fn put_slice(
        &mut self,
        frame: HostSlice<'_>,
        tag: Option<[u8; 4]>,
        (low, high): (u64, u16),
    ) -> Result<(), Refused> {
        let (ours, tag) = (self.ingress.header_len, tag.as_ref().map_or(&[][..], |tag| tag));
        let len = frame.len() + tag.len();
        let count = self.room(len + ours)?;
        let into = self.burst.chains().get(self.used..self.used + count).unwrap_or_default();
        // virtio 1.3 §5.1.6.4.1: as in `put_pieces`.
        let high = u32::from(high) | (count as u32) << 16;
        {
            let mut to = Cursor::new(into.iter().flat_map(|chain| self.burst.writable(chain)));
            to.write(&low.to_le_bytes());
            to.write(high.to_le_bytes().get(..ours.saturating_sub(8)).unwrap_or_default());
            let mut from = Cursor::new([frame].into_iter());
            from.copy_to(&mut to, ADDRESSES.min(frame.len()));
            to.write(tag);
            from.copy_to(&mut to, frame.len().saturating_sub(ADDRESSES));
        }
        self.take(count, len);
        Ok(())
    }

    /// Takes the next chain, which a frame was written to.
    #[inline(always)]
    fn take_one(&mut self, len: usize) {
        if let Some(written) = self.written.get_mut(self.used) {
            *written = (len + self.ingress.header_len) as u32;
            self.used += 1;
        }
    }

    /// Takes the chains that were written to.
    #[inline]
    fn take(&mut self, count: usize, len: usize) {
        self.tell();
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
        self.told = self.used;
        self.tally.chains += count as u64;
        self.tally.packets += 1;
        self.tally.bytes += len as u64;
    }

    /// Copies one frame, as it is, into the buffers that it fits. The header comes without its number of buffers.
    #[inline(always)]
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
                put_head(frame, from.beginning, from.frame.looked_at.into(), from.swap);
            } else if from.swap {
                swap_addresses(piece, frame);
            }
            self.take_one(len);
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
            let mut left = len;
            let mut head = from.head();
            if from.swap {
                piece.skip(from.skip);
                let mut both = [0u8; ADDRESSES];
                piece.read(&mut both);
                if let Some((looked_at, rest)) = head.split_first_chunk::<ADDRESSES>() {
                    (both, head) = (*looked_at, rest);
                }
                both.rotate_left(ADDRESSES / 2);
                to.write(&both);
                left -= ADDRESSES;
                piece.skip(head.len());
            } else {
                piece.skip(from.rest_at());
            }
            to.write(head);
            piece.copy_to(&mut to, left.saturating_sub(head.len()));
        }
        self.take(count, len);
        Ok(())
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

/// Writes the header of a frame that takes one buffer, of `len` bytes: 10, or 12 with the number of buffers. From frame to frame it is mostly
/// the same, and a driver that passes frames on reads it on another core: what is there already is left alone.
#[inline(always)]
pub(super) fn put_header(to: HostSlice<'_>, len: usize, (low, high): (u64, u16)) {
    to.keep_word(0, low);
    // What is behind the first word, with some of it.
    let (high, behind) = (u64::from(high) | 1 << 16, len.saturating_sub(8) as u32 * 8);
    to.keep_word(
        len.saturating_sub(8),
        if behind == 0 { low } else { low >> behind | high << (64 - behind) },
    );
}

/// Writes what was looked at over what was copied in its place, with its addresses exchanged or not.
#[inline(always)]
fn put_head(frame: HostSlice<'_>, head: &Head, bytes: usize, swap: bool) {
    if bytes > ADDRESSES {
        frame.write(head.get(..bytes).unwrap_or_default());
    }
    // Two words that overlap: the first eight bytes of the twelve and the last.
    let (low, high) = Ends::of(head).words();
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
