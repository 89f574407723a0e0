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

use ringway_ring::chain::{Burst, Chain};
use ringway_ring::guest::HostSlice;

use super::{BUFFER_BYTES, HEADER_BYTES};
use crate::net::offload::HEAD_BYTES;
use crate::uring::{FromGuest, Put, WriteRing};

/// See the module's head.
#[derive(Debug)]
pub struct TapWriter {
    /// Before each frame go its header and what was looked at of it. The room of a slot is for frames that are not in guest
    /// memory, or in more pieces than one write can have.
    ring: WriteRing<{ HEADER_BYTES + HEAD_BYTES }>,
    /// Frames that were put in since it was made; each has the slot of its number.
    given: u64,
    /// How many of them are finished, from the first on.
    finished: u64,
    /// By slot: finished while one before it is not.
    is_done: [bool; SLOTS],
    /// Bytes of the frames in the slots.
    lengths: [u32; SLOTS],
    /// Writes that were put in and not handed over.
    is_new: bool,
    written: Written,
}

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
        Ok(TapWriter {
            ring: WriteRing::new(netdev, SLOTS as u16, BUFFER_BYTES)?,
            given: 0,
            finished: 0,
            is_done: [false; SLOTS],
            lengths: [0; SLOTS],
            is_new: false,
            written: Written::default(),
        })
    }

    /// Puts a frame in of `len` bytes: `head`, at most [`HEAD_BYTES`], and then what a chain has behind the first `skip`
    /// bytes and as many as `head` has. False: no room now.
    pub fn push(
        &mut self,
        header: [u8; HEADER_BYTES],
        head: &[u8],
        burst: &Burst,
        chain: &Chain,
        skip: usize,
        len: usize,
    ) -> bool {
        let Some(own) = self.begin(header, head) else { return false };
        let Some(slot) = self.next_slot() else { return false };
        // A tag that was put in may begin before the chain does.
        let (skip, rest) = (skip.wrapping_add(head.len()), len.saturating_sub(head.len()));
        let put = match self.ring.write(slot, own, FromGuest { burst, chain, skip, len: rest }) {
            Put::ManyPieces => self.copy_together(slot, own, burst.readable(chain), skip, rest),
            put => put,
        };
        self.note(slot, head.len(), put)
    }

    /// Puts a frame in of many pieces, by way of the slot's room.
    #[cold]
    fn copy_together<'map>(
        &mut self,
        slot: u16,
        own: usize,
        parts: impl Iterator<Item = HostSlice<'map>>,
        mut skip: usize,
        len: usize,
    ) -> Put {
        let Some((_, room)) = self.ring.own(slot) else { return Put::Busy };
        let room = room.get_mut(..len).unwrap_or_default();
        let mut at = 0;
        for part in parts {
            let step = skip.min(part.len());
            skip -= step;
            at += part.part(step, usize::MAX).read(room.get_mut(at..).unwrap_or_default());
        }
        self.ring.write_room(slot, own, at)
    }

    /// Puts a frame in that is not in guest memory: two parts of our own, which are copied.
    pub fn push_bytes(&mut self, header: [u8; HEADER_BYTES], head: &[u8], payload: &[u8]) -> bool {
        let Some(own) = self.begin(header, &[]) else { return false };
        let Some(slot) = self.next_slot() else { return false };
        let Some((_, room)) = self.ring.own(slot) else { return false };
        let len = head.len() + payload.len();
        let Some((first, rest)) = room.get_mut(..len).and_then(|room| room.split_at_mut_checked(head.len()))
        else {
            return false;
        };
        first.copy_from_slice(head);
        rest.copy_from_slice(payload);
        let put = self.ring.write_room(slot, own, len);
        self.note(slot, 0, put)
    }

    /// Writes what goes before a frame into the next free slot. Returns its bytes.
    fn begin(&mut self, header: [u8; HEADER_BYTES], head: &[u8]) -> Option<usize> {
        let (own, _) = self.ring.own(self.next_slot()?)?;
        let bytes = HEADER_BYTES + head.len();
        let (to_header, to_head) = own.get_mut(..bytes)?.split_at_mut_checked(HEADER_BYTES)?;
        to_header.copy_from_slice(&header);
        to_head.copy_from_slice(head);
        Some(bytes)
    }

    /// Takes note of what was put into a slot, the next free one. False: nothing was.
    fn note(&mut self, slot: u16, head: usize, put: Put) -> bool {
        let Put::In(bytes) = put else { return false };
        if let Some(length) = self.lengths.get_mut(usize::from(slot)) {
            *length = (head + bytes) as u32;
        }
        self.given += 1;
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
            if let Some(is_done) = self.is_done.get_mut(usize::from(index)) {
                *is_done = true;
            }
            let len = self.lengths.get(usize::from(index)).map_or(0, |len| u64::from(*len));
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
        while self.finished < self.given
            && let Some(is_done) = self.is_done.get_mut(self.finished as usize % SLOTS)
            && std::mem::take(is_done)
        {
            self.finished += 1;
        }
    }

    /// The slot of the next frame, if it is free.
    fn next_slot(&self) -> Option<u16> {
        (self.given - self.finished < SLOTS as u64).then_some((self.given % SLOTS as u64) as u16)
    }

    /// Frames that were put in since it was made.
    #[inline]
    pub fn given(&self) -> u64 {
        self.given
    }

    /// How many of them are finished, from the first on.
    #[inline]
    pub fn finished(&self) -> u64 {
        self.finished
    }

    /// Holds no guest's memory any more, if nothing of it is out: for whoever takes the writer from its worker, so that a
    /// guest's memory goes with it.
    pub fn let_go(&mut self) {
        self.ring.let_go();
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

/// Frames in one batch.
const SLOTS: usize = 64;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use ringway_ring::features::Features;
    use ringway_ring::guest::GuestMap;
    use ringway_ring::layout::{DriverConfig, Layout};
    use ringway_ring::memory::HostMemory;
    use ringway_ring::position::{Position, PositionPage};
    use ringway_ring::queue::{DeviceRing, DriverBuffer, DriverRing, Format, QueueConfig, RingSize};

    use super::*;
    use crate::uring::VECTORS;

    /// A writer to a socket of datagrams that stands for the interface, its other end, and memory for frames.
    fn scene() -> (TapWriter, UnixDatagram, Arc<GuestMap>, HostMemory) {
        let (netdev, host) = UnixDatagram::pair().unwrap();
        let writer = TapWriter::new(netdev.into()).unwrap();
        let memory = HostMemory::allocate("test", 1 << 20).unwrap();
        let map = Arc::new(memory.guest_map(0).unwrap());
        (writer, host, map, memory)
    }

    /// A burst of one chain: `len` bytes at the start of the memory, in as many pieces.
    fn burst_of(memory: &HostMemory, map: &Arc<GuestMap>, pieces: usize, len: usize) -> Burst {
        let size = RingSize::new(Format::Split, 256).unwrap();
        let layout = Layout::new(Format::Split, size);
        let areas = layout.at(memory.address() + (512 << 10));
        let features = Features::VERSION_1;
        let config = QueueConfig {
            size,
            features,
            map: Arc::clone(map),
            desc_user_addr: areas.desc,
            driver_user_addr: areas.driver,
            device_user_addr: areas.device,
            position: Position::START,
            keeper: PositionPage::anonymous().unwrap().slot(0).unwrap(),
            skip_used: false,
        };
        let (map_, position, areas) = (Arc::clone(map), Position::START, layout.at(512 << 10));
        let mut driver = DriverConfig { size, features, map: map_, areas, position }.start_split().unwrap();
        let cuts: Vec<usize> = (0..=pieces).map(|n| n * len / pieces).collect();
        let buffer = |cut: &[usize]| DriverBuffer {
            gpa: cut[0] as u64,
            len: (cut[1] - cut[0]) as u32,
            writable: false,
        };
        let chain: Vec<DriverBuffer> = cuts.windows(2).map(buffer).collect();
        driver.add(&chain, 0).unwrap();
        driver.publish();
        let mut burst = Burst::try_new(Arc::clone(map)).unwrap();
        assert_eq!(config.activate_split().unwrap().peek(&mut burst, 1), Ok(1));
        burst
    }

    #[test]
    fn frame_of_as_many_pieces_as_there_are_vectors_is_not_copied_and_one_of_more_is() {
        const LEN: usize = 600;
        let (mut writer, host, map, memory) = scene();
        let frame: Vec<u8> = (0..LEN).map(|at| at as u8 | 1).collect();
        map.resolve(0, LEN as u64).unwrap().write(&frame);
        // One vector is the header's and what was looked at; the first piece holds that, and more.
        for (pieces, is_copied) in [(VECTORS - 2, false), (VECTORS - 1, false), (VECTORS, true)] {
            let burst = burst_of(&memory, &map, pieces, LEN);
            assert!(writer.push([0; HEADER_BYTES], &frame[..14], &burst, &burst.chains()[0], 0, LEN));
            let slot = ((writer.given() - 1) % SLOTS as u64) as u16;
            writer.submit();
            let mut got = [0; 2048];
            let len = host.recv(&mut got).unwrap();
            assert!(got[HEADER_BYTES..len] == frame[..], "{pieces}");
            // Rooms are empty before they are used.
            let (_, room) = writer.ring.own(slot).unwrap();
            assert_eq!(room[..LEN - 14] == frame[14..], is_copied, "{pieces}");
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
        let (mut writer, host, map, memory) = scene();
        host.set_nonblocking(true).unwrap();
        let burst = burst_of(&memory, &map, 1, 64);
        let push =
            |writer: &mut TapWriter| writer.push([0; HEADER_BYTES], &[], &burst, &burst.chains()[0], 0, 64);
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

    #[test]
    fn memory_of_a_guest_that_left_is_let_go() {
        let (mut writer, host, map, memory) = scene();
        let held = Arc::downgrade(&map);
        let burst = burst_of(&memory, &map, 1, 64);
        assert!(writer.push([0; HEADER_BYTES], &[], &burst, &burst.chains()[0], 0, 64));
        writer.let_go();
        drop((burst, map));
        assert!(held.upgrade().is_some(), "the kernel may read it still");
        writer.submit();
        host.recv(&mut [0; 2048]).unwrap();
        writer.reap();
        writer.let_go();
        assert!(held.upgrade().is_none());
    }

    /// The kernel reads the frame long after it was checked. A socket of datagrams stands for the interface.
    #[test]
    fn kernel_is_given_the_bytes_that_were_looked_at_and_not_those_that_a_guest_puts_in_their_place() {
        const LEN: usize = 300;
        let (mut writer, host, map, memory) = scene();
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
            let burst = burst_of(&memory, &map, pieces, LEN + 10);
            let chain = &burst.chains()[0];
            for head in [12, 14, HEAD_BYTES] {
                for _ in 0..500 {
                    let is_in = writer.push([7; HEADER_BYTES], &frame[..head], &burst, chain, 10, LEN);
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
