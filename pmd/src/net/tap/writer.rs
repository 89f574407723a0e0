//! Frames to the kernel: written in batches straight from guest memory, each behind a header of ours and those of its
//! bytes that were looked at, which the kernel gets from us and not from the guest.
//!
//! One entry into the kernel a batch, which never waits. The netdev copies a frame within the call, so that a write is
//! finished when the call returns; should one not be, its memory stays: the writer holds the map, its pump gives the
//! chains back only when nothing is outstanding, and neither lets itself be stopped before.
//!
//! Owned by one pump. Budget of `push` and `submit`: no allocation, no lock, one system call a batch, no panic.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use memmap2::MmapMut;
use ringway_ring::chain::Burst;
use ringway_ring::guest::{GuestMap, HostSlice};

use super::ring::Ring;
use super::{BUFFER_BYTES, HEADER_BYTES};
use crate::net::offload::HEAD_BYTES;

/// See the module's head.
pub struct TapWriter {
    ring: Ring,
    /// What the kernel reads while a write is out. None of it moves.
    slots: Box<[Slot]>,
    /// Slots without a write.
    free: Vec<u16>,
    /// Room for frames that are not in guest memory, or in more pieces than a slot has vectors for: one a slot, whose
    /// pages are there once they were used.
    bounce: MmapMut,
    /// Holds the memory of what is outstanding.
    map: Option<Arc<GuestMap>>,
    /// Writes that were put in and not handed over.
    is_new: bool,
    written: Written,
}

/// One write.
struct Slot {
    header: [u8; HEADER_BYTES],
    /// The frame's beginning, as far as it was looked at.
    head: [u8; HEAD_BYTES],
    vectors: [libc::iovec; VECTORS],
    /// Bytes of the frame.
    len: u32,
}

// SAFETY: the pointers lead into memory that the writer holds, and are read by the kernel alone; nothing in it is tied to
// a thread.
unsafe impl Send for TapWriter {}

/// What became of writes, since it was last asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Written {
    /// Frames that the kernel took.
    pub frames: u64,
    /// Their bytes, without headers.
    pub bytes: u64,
    /// The interface is down.
    pub down: u64,
    /// The kernel had no memory for them.
    pub no_memory: u64,
    /// It refused them for another reason: their header, or memory that a guest took away.
    pub refused: u64,
    /// The interface is gone.
    pub gone: u64,
    /// System calls that handed frames over.
    pub calls: u64,
}

impl TapWriter {
    /// Allocates.
    pub(super) fn new(netdev: OwnedFd) -> io::Result<TapWriter> {
        let nothing = libc::iovec { iov_base: std::ptr::null_mut(), iov_len: 0 };
        let slot = |_| Slot {
            header: [0; HEADER_BYTES],
            head: [0; HEAD_BYTES],
            vectors: [nothing; VECTORS],
            len: 0,
        };
        Ok(TapWriter {
            ring: Ring::new(netdev, SLOTS as u32)?,
            slots: (0..SLOTS).map(slot).collect(),
            free: (0..SLOTS as u16).collect(),
            bounce: MmapMut::map_anon(SLOTS * BUFFER_BYTES)?,
            map: None,
            is_new: false,
            written: Written::default(),
        })
    }

    /// Puts a frame in of `len` bytes: `head`, at most [`HEAD_BYTES`], and then what `parts`, which lie in the map of
    /// `burst`, have behind the first `skip` bytes and as many as `head` has. False: no room now, or frames of another map
    /// are out.
    pub fn push<'map>(
        &mut self,
        header: [u8; HEADER_BYTES],
        head: &[u8],
        burst: &'map Burst,
        parts: impl Iterator<Item = HostSlice<'map>> + Clone,
        skip: usize,
        len: usize,
    ) -> bool {
        let is_held = self.map.as_ref().is_some_and(|map| Arc::ptr_eq(map, burst.map()));
        if !is_held {
            if self.outstanding() > 0 {
                return false;
            }
            self.map = Some(Arc::clone(burst.map()));
        }
        let Some(&index) = self.free.last() else { return false };
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return false };
        slot.header = header;
        let (skip, len_behind) = (skip + head.len(), len.saturating_sub(head.len()));
        let whole_skip = skip;
        let (mut count, mut skip, mut left) = (1, skip, len_behind);
        if !head.is_empty() {
            let Some(room) = slot.head.get_mut(..head.len()) else { return false };
            room.copy_from_slice(head);
            slot.vectors[1] = libc::iovec { iov_base: room.as_mut_ptr().cast(), iov_len: head.len() };
            count = 2;
        }
        for part in parts.clone() {
            if left == 0 {
                break;
            }
            let step = skip.min(part.len());
            let piece = part.part(step, left);
            skip -= step;
            if piece.len() == 0 {
                continue;
            }
            // More pieces than vectors: copied together.
            let Some(vector) = slot.vectors.get_mut(count) else {
                return self.push_copied(index, head, parts, whole_skip, len);
            };
            *vector = libc::iovec { iov_base: piece.as_ptr().cast(), iov_len: piece.len() };
            left -= piece.len();
            count += 1;
        }
        self.put(index, count, len - left)
    }

    /// Puts a frame of many pieces in, by way of the bounce memory.
    #[cold]
    fn push_copied<'map>(
        &mut self,
        index: u16,
        head: &[u8],
        parts: impl Iterator<Item = HostSlice<'map>>,
        mut skip: usize,
        len: usize,
    ) -> bool {
        let room = self.room(index).get_mut(..len).unwrap_or_default();
        let Some(begin) = room.get_mut(..head.len()) else { return false };
        begin.copy_from_slice(head);
        let mut at = head.len();
        for part in parts {
            let step = skip.min(part.len());
            skip -= step;
            at += part.part(step, usize::MAX).read(room.get_mut(at..).unwrap_or_default());
        }
        self.put_bounced(index, at)
    }

    /// Puts a frame in that is not in guest memory: two parts of our own, which are copied.
    pub fn push_bytes(&mut self, header: [u8; HEADER_BYTES], head: &[u8], payload: &[u8]) -> bool {
        let Some(&index) = self.free.last() else { return false };
        let len = head.len() + payload.len();
        let room = self.room(index);
        let (Some(first), true) = (room.get_mut(..head.len()), len <= BUFFER_BYTES) else { return false };
        first.copy_from_slice(head);
        if let Some(rest) = room.get_mut(head.len()..len) {
            rest.copy_from_slice(payload);
        }
        if let Some(slot) = self.slots.get_mut(usize::from(index)) {
            slot.header = header;
        }
        self.put_bounced(index, len)
    }

    fn room(&mut self, index: u16) -> &mut [u8] {
        let start = usize::from(index) * BUFFER_BYTES;
        self.bounce.get_mut(start..start + BUFFER_BYTES).unwrap_or_default()
    }

    fn put_bounced(&mut self, index: u16, len: usize) -> bool {
        let start = self.room(index).as_mut_ptr();
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return false };
        slot.vectors[1] = libc::iovec { iov_base: start.cast(), iov_len: len };
        self.put(index, 2, len)
    }

    fn put(&mut self, index: u16, count: usize, len: usize) -> bool {
        let Some(slot) = self.slots.get_mut(usize::from(index)) else { return false };
        slot.vectors[0] = libc::iovec { iov_base: slot.header.as_mut_ptr().cast(), iov_len: HEADER_BYTES };
        slot.len = len as u32;
        let vectors = slot.vectors.as_ptr();
        if !self.ring.write(index.into(), vectors, count as u32) {
            return false;
        }
        self.free.pop();
        self.is_new = true;
        true
    }

    /// Hands over what was put in, and takes note of what is finished.
    pub fn submit(&mut self) {
        if std::mem::take(&mut self.is_new) {
            self.ring.enter();
            self.written.calls += 1;
        }
        self.reap();
    }

    /// Takes note of what is finished.
    pub fn reap(&mut self) {
        while let Some(done) = self.ring.reap() {
            let index = done.tag as u16;
            self.free.push(index);
            let len = self.slots.get(usize::from(index)).map_or(0, |slot| u64::from(slot.len));
            match -done.result {
                ..=0 => {
                    self.written.frames += 1;
                    self.written.bytes += len;
                }
                libc::EIO => self.written.down += 1,
                libc::EBADFD | libc::ENODEV | libc::EBADF => self.written.gone += 1,
                libc::EAGAIN | libc::ENOBUFS | libc::ENOMEM => self.written.no_memory += 1,
                _ => self.written.refused += 1,
            }
        }
    }

    /// Frames whose memory must stay.
    #[inline]
    pub fn outstanding(&self) -> usize {
        self.ring.pending()
    }

    /// What became of frames since this was last asked.
    pub fn take_written(&mut self) -> Written {
        std::mem::take(&mut self.written)
    }
}

impl Drop for TapWriter {
    fn drop(&mut self) {
        self.ring.settle();
        if self.ring.pending() > 0 {
            // The kernel may read it still.
            std::mem::forget(self.map.take());
        }
    }
}

impl std::fmt::Debug for TapWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TapWriter").field("ring", &self.ring).finish_non_exhaustive()
    }
}

/// Frames in one batch.
const SLOTS: usize = 64;
/// Pieces of one frame, the header's included: what a Linux driver makes of its largest, and some.
const VECTORS: usize = 24;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::atomic::{AtomicBool, Ordering};

    use ringway_ring::memory::HostMemory;

    use super::*;

    /// A writer to a socket of datagrams that stands for the interface, its other end, and memory for frames.
    fn scene() -> (TapWriter, UnixDatagram, Arc<GuestMap>, Burst, HostMemory) {
        let (netdev, host) = UnixDatagram::pair().unwrap();
        let writer = TapWriter::new(netdev.into()).unwrap();
        let memory = HostMemory::allocate("test", 1 << 20).unwrap();
        let map = Arc::new(memory.guest_map(0).unwrap());
        let burst = Burst::try_new(Arc::clone(&map)).unwrap();
        (writer, host, map, burst, memory)
    }

    #[test]
    fn frame_of_as_many_pieces_as_there_are_vectors_is_not_copied_and_one_of_more_is() {
        let (mut writer, host, map, burst, _memory) = scene();
        const LEN: usize = 600;
        let frame: Vec<u8> = (0..LEN).map(|at| at as u8 | 1).collect();
        map.resolve(0, LEN as u64).unwrap().write(&frame);
        // Two vectors are the header's and what was looked at.
        for (pieces, is_copied) in [(VECTORS - 3, false), (VECTORS - 2, false), (VECTORS - 1, true)] {
            // The first holds the head, and more.
            let cuts: Vec<u64> = (0..=pieces).map(|n| (n * LEN / pieces) as u64).collect();
            let parts = cuts.windows(2).map(|cut| map.resolve(cut[0], cut[1] - cut[0]).unwrap());
            assert!(writer.push([0; HEADER_BYTES], &frame[..14], &burst, parts, 0, LEN));
            let index = usize::from((0..SLOTS as u16).find(|slot| !writer.free.contains(slot)).unwrap());
            let bounce = writer.room(index as u16).as_mut_ptr();
            assert_eq!(writer.slots[index].vectors[1].iov_base == bounce.cast(), is_copied, "{pieces}");
            writer.submit();
            let mut got = [0; 2048];
            let len = host.recv(&mut got).unwrap();
            assert!(got[HEADER_BYTES..len] == frame[..], "{pieces}");
        }
    }

    #[test]
    fn frame_as_long_as_a_buffer_is_taken_and_a_longer_one_is_not() {
        let (mut writer, host, ..) = scene();
        for (len, is_taken) in [(BUFFER_BYTES - 1, true), (BUFFER_BYTES, true), (BUFFER_BYTES + 1, false)] {
            let payload = vec![7; len - 54];
            assert_eq!(writer.push_bytes([0; HEADER_BYTES], &[1; 54], &payload), is_taken, "{len}");
            writer.submit();
            if is_taken {
                let mut got = vec![0; 2 * BUFFER_BYTES];
                assert_eq!(host.recv(&mut got).unwrap(), HEADER_BYTES + len);
            }
        }
    }

    #[test]
    fn batch_takes_as_many_frames_as_there_are_slots_and_hands_them_over_in_one_call() {
        let (mut writer, host, map, burst, _memory) = scene();
        host.set_nonblocking(true).unwrap();
        let push = |writer: &mut TapWriter| {
            writer.push([0; HEADER_BYTES], &[], &burst, [map.resolve(0, 64).unwrap()].into_iter(), 0, 64)
        };
        for frames in [SLOTS - 1, SLOTS, SLOTS + 1] {
            let pushed = (0..frames).filter(|_| push(&mut writer)).count();
            assert_eq!(pushed, frames.min(SLOTS));
            assert_eq!(push(&mut writer), frames < SLOTS);
            // A socket takes fewer at once than an interface does.
            let mut received = 0;
            writer.submit();
            let calls = writer.written.calls;
            while received < pushed || writer.outstanding() > 0 {
                received += usize::from(host.recv(&mut [0; 2048]).is_ok());
                writer.reap();
                if writer.written.no_memory > 0 {
                    break;
                }
            }
            assert_eq!(calls, 1);
            let written = writer.take_written();
            assert_eq!((written.frames + written.no_memory) as usize, pushed + usize::from(frames < SLOTS));
            while host.recv(&mut [0; 2048]).is_ok() {}
        }
    }

    /// The kernel reads the frame long after it was checked. A socket of datagrams stands for the interface.
    #[test]
    fn kernel_is_given_the_bytes_that_were_looked_at_and_not_those_that_a_guest_puts_in_their_place() {
        const LEN: usize = 300;
        let (mut writer, host, map, burst, _memory) = scene();
        let frame: Vec<u8> = (0..LEN).map(|at| at as u8 | 1).collect();
        map.resolve(10, LEN as u64).unwrap().write(&frame);
        let stop = Arc::new(AtomicBool::new(false));
        let flipper = {
            let (map, stop, frame) = (Arc::clone(&map), Arc::clone(&stop), frame.clone());
            std::thread::spawn(move || {
                let place = map.resolve(10, HEAD_BYTES as u64).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    place.write(&[0; HEAD_BYTES]);
                    place.write(&frame[..HEAD_BYTES]);
                }
            })
        };
        // In one piece, cut inside of what was looked at, and in more pieces than a slot has vectors for.
        for pieces in [1, 2, 7, 100] {
            let cuts: Vec<usize> = (0..=pieces).map(|n| n * (LEN + 10) / pieces).collect();
            let parts =
                || cuts.windows(2).map(|cut| map.resolve(cut[0] as u64, (cut[1] - cut[0]) as u64).unwrap());
            for head in [12, 14, HEAD_BYTES] {
                for _ in 0..500 {
                    let is_in = writer.push([7; HEADER_BYTES], &frame[..head], &burst, parts(), 10, LEN);
                    assert!(is_in);
                    writer.submit();
                    let mut got = [0; 2048];
                    let len = host.recv(&mut got).unwrap();
                    assert_eq!(len, HEADER_BYTES + LEN, "{pieces} pieces, {head} bytes looked at");
                    assert_eq!(got[..HEADER_BYTES], [7; HEADER_BYTES]);
                    assert_eq!(got[HEADER_BYTES..][..head], frame[..head]);
                    assert_eq!(got[HEADER_BYTES + HEAD_BYTES..len], frame[HEAD_BYTES..]);
                }
            }
        }
        stop.store(true, Ordering::Relaxed);
        flipper.join().unwrap();
        assert_eq!(writer.take_written().frames, 4 * 3 * 500);
    }
}
