//! Reads that go on by themselves: one operation, which takes a room of ours for each thing that it finds.
//!
//! ```text
//!   rooms that are given --> [ ring of rooms ] --> kernel: one read after the other --> finished, in order
//!            ^                                                                             |
//!            +------------------------------- looked at, given again ----------------------+
//! ```
//!
//! The kernel reads when something comes, in the name of the thread that began, whenever that enters the kernel: it asks for
//! that by a word that is shared ([`StreamRing::look`]), so that looking for what does not come costs no call.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use io_uring::types::{BufRingEntry, CancelBuilder};
use io_uring::{IoUring, Probe, cqueue, opcode};
use memmap2::MmapMut;
use ringway_ring::guest::GuestMap;
use ringway_ring::memory::{HostMemory, PageKind};

use super::Operations;

/// See the module's head. The rooms lie side by side in one region of a map; their bytes may be looked at at any time, as a
/// guest's may: the kernel is one more who writes there.
#[derive(Debug)]
pub(crate) struct StreamRing {
    operations: Operations<Provided>,
    room_bytes: u32,
    /// A power of two.
    count: u16,
    /// Rooms that were given so far, freely running.
    tail: u16,
    /// The read goes on.
    is_on: bool,
}

struct Provided {
    map: Arc<GuestMap>,
    /// The ring of rooms: a page, which the kernel reads.
    ring: MmapMut,
}

/// What became of the read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// So many bytes, in a room.
    In(u16, u32),
    /// It does not go on: the error's number, 0 if the file is at its end.
    End(i32),
}

impl StreamRing {
    /// `count` rooms of `room_bytes` each, a power of two of them. None: the kernel has no such reads, or none that are
    /// whole.
    ///
    /// # Errors
    /// No memory, or no descriptor.
    pub(crate) fn new(
        file: BorrowedFd<'_>,
        name: &str,
        count: u16,
        room_bytes: u32,
    ) -> io::Result<Option<StreamRing>> {
        // A pump moves between threads, so neither SINGLE_ISSUER nor what needs it. The kernel interrupts nobody to read.
        let made =
            IoUring::builder().dontfork().setup_coop_taskrun().setup_taskrun_flag().build(count.into());
        let Ok(ring) = made else { return Ok(None) };
        let mut probe = Probe::new();
        if ring.submitter().register_probe(&mut probe).is_err() {
            return Ok(None);
        }
        // The first kernels with the operation could leave things unread until the next came: it is whole since before they
        // had this feature (Linux 6.10).
        if !probe.is_supported(opcode::ReadMulti::CODE) || !ring.params().is_feature_recvsend_bundle() {
            return Ok(None);
        }
        // On base pages: huge ones would be there whether or not something comes.
        let bytes = u64::from(count) * u64::from(room_bytes);
        let memory = HostMemory::allocate_on(PageKind::Base, name, bytes)?;
        let map = Arc::new(memory.guest_map(0).map_err(io::Error::other)?);
        let provided = Provided { map, ring: MmapMut::map_anon(usize::from(count) * ENTRY_BYTES)? };
        let operations = Operations::on(ring, file.try_clone_to_owned()?, provided);
        let address = operations.parts.memory.ring.as_ptr() as u64;
        // SAFETY: the page is part of the memory, which stays for as long as the ring.
        let registered = unsafe {
            operations.parts.ring.submitter().register_buf_ring_with_flags(address, count, GROUP, 0)
        };
        if registered.is_err() {
            return Ok(None);
        }
        Ok(Some(StreamRing { operations, room_bytes, count, tail: 0, is_on: false }))
    }

    /// The map that the rooms lie in, from address 0 on.
    pub(crate) fn map(&self) -> &Arc<GuestMap> {
        &self.operations.parts.memory.map
    }

    /// Where a room begins in the map.
    pub(crate) fn address(&self, room: u16) -> u64 {
        u64::from(room) * u64::from(self.room_bytes)
    }

    /// Gives the kernel a room to read into. At most once for each room that there is, and again for each that was found.
    pub(crate) fn give(&mut self, room: u16) {
        let (gpa, len) = (self.address(room), self.room_bytes);
        let Ok(slice) = self.map().resolve(gpa, len.into()) else { return };
        let address = slice.as_ptr() as u64;
        let at = usize::from(self.tail % self.count) * ENTRY_BYTES;
        let Some(entry) = self.operations.parts.memory.ring.get_mut(at..at + ENTRY_BYTES) else { return };
        // `struct io_uring_buf`: address, length, number; the last two bytes of the first entry are the tail.
        let mut bytes = [0; ENTRY_BYTES - 2];
        bytes[..8].copy_from_slice(&address.to_ne_bytes());
        bytes[8..12].copy_from_slice(&len.to_ne_bytes());
        bytes[12..].copy_from_slice(&room.to_ne_bytes());
        if let Some(entry) = entry.get_mut(..ENTRY_BYTES - 2) {
            entry.copy_from_slice(&bytes);
        }
        self.tail = self.tail.wrapping_add(1);
        self.publish();
    }

    /// Shows the kernel the rooms that were given.
    fn publish(&mut self) {
        let first = self.operations.parts.memory.ring.as_mut_ptr().cast::<BufRingEntry>();
        // SAFETY: the page begins with an entry, whose tail is two bytes inside of it, aligned as they are in the structure;
        // nothing else is written there, and the kernel reads it as the atomic that it is.
        let tail = unsafe { AtomicU16::from_ptr(BufRingEntry::tail(first).cast_mut()) };
        // Release: pairs with the kernel's acquire; the entries are visible before the tail is.
        tail.store(self.tail, Ordering::Release);
    }

    /// True while the read goes on by itself.
    pub(crate) fn is_on(&self) -> bool {
        self.is_on
    }

    /// The kernel did not take what was put in: it is handed over again at the next look.
    pub(crate) fn is_refused(&self) -> bool {
        self.operations.is_refused
    }

    /// Has the read begin. What is there at once is found when this returns.
    pub(crate) fn begin(&mut self) {
        if self.is_on {
            return;
        }
        let entry = opcode::ReadMulti::new(self.operations.file(), 0, GROUP).offset(u64::MAX).build();
        // SAFETY: it writes into rooms that were given, in the map, which is part of the memory and whose bytes are never
        // borrowed.
        if unsafe { self.operations.push(&entry.user_data(READ)) } {
            self.is_on = true;
            self.operations.enter();
        }
    }

    /// Enters the kernel if it has something to read or was refused something. True: it did.
    pub(crate) fn look(&mut self) -> bool {
        let is_asked = self.operations.is_refused || self.operations.parts.ring.submission().taskrun();
        if is_asked {
            self.operations.enter();
        }
        is_asked
    }

    /// What was found next.
    pub(crate) fn reap(&mut self) -> Option<Found> {
        loop {
            let (done, flags) = self.operations.reap_flagged()?;
            if done.tag != READ {
                continue;
            }
            self.is_on = cqueue::more(flags);
            if let (Some(room), Ok(len @ 1..)) = (cqueue::buffer_select(flags), u32::try_from(done.result)) {
                // Should it have been the last, the next that begins says why.
                return Some(Found::In(room, len));
            }
            if !self.is_on {
                return Some(Found::End(-done.result));
            }
        }
    }

    /// Ends the read. What it found stays to be reaped, and its end.
    pub(crate) fn end(&mut self) {
        if !self.is_on {
            return;
        }
        let entry = opcode::AsyncCancel::new(READ).build();
        // SAFETY: it points to nothing.
        if unsafe { self.operations.push(&entry.user_data(CANCEL)) } {
            self.operations.enter();
        }
    }

    /// The file.
    #[cfg(test)]
    pub(crate) fn file(&self) -> BorrowedFd<'_> {
        self.operations.parts.file.as_fd()
    }

    /// What becomes readable when something is found.
    pub(crate) fn wake_source(&self) -> BorrowedFd<'_> {
        self.operations.parts.ring.as_fd()
    }
}

impl Drop for StreamRing {
    /// Ends the read, for whose end the operations wait then. Not on a worker.
    fn drop(&mut self) {
        // One that was put in and not taken would begin while its end is waited for.
        if self.operations.is_refused {
            self.operations.enter();
        }
        if self.operations.is_refused {
            self.operations.leak();
        } else if self.operations.pending > 0 {
            let _ = self.operations.parts.ring.submitter().register_sync_cancel(None, CancelBuilder::any());
        }
    }
}

/// What operations are put in as.
const READ: u64 = 0;
const CANCEL: u64 = 1;
/// The one group of rooms.
const GROUP: u16 = 0;
/// Bytes of a room's entry, `struct io_uring_buf`.
const ENTRY_BYTES: usize = 16;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::time::{Duration, Instant};

    use super::*;

    /// A read of four rooms of 64 bytes, all given, and the other end. None: not on this kernel.
    fn scene() -> Option<(StreamRing, UnixDatagram)> {
        let (file, peer) = UnixDatagram::pair().unwrap();
        let Some(mut ring) = StreamRing::new(file.as_fd(), "test", 4, 64).unwrap() else {
            println!("skipped: the kernel has no such reads");
            return None;
        };
        (0..4).for_each(|room| ring.give(room));
        Some((ring, peer))
    }

    /// Waits for what is found next: its room and its bytes.
    fn next(ring: &mut StreamRing) -> (u16, Vec<u8>) {
        let begun = Instant::now();
        loop {
            ring.look();
            match ring.reap() {
                Some(Found::In(room, len)) => {
                    let mut bytes = vec![0; len as usize];
                    ring.map().resolve(ring.address(room), len.into()).unwrap().read(&mut bytes);
                    return (room, bytes);
                }
                Some(end) => panic!("{end:?}"),
                None => assert!(begun.elapsed() < Duration::from_secs(20)),
            }
        }
    }

    #[test]
    fn everything_is_found_once_and_in_order_and_nothing_costs_no_call() {
        let Some((mut ring, peer)) = scene() else { return };
        peer.send(b"before").unwrap();
        ring.begin();
        assert_eq!(next(&mut ring).1, b"before");
        for _ in 0..1000 {
            assert!(!ring.look() && ring.reap().is_none());
        }
        for round in 0..100u8 {
            // Rooms come back in another order than they were given.
            let mut rooms = Vec::new();
            for nth in 0..3 {
                peer.send(&[round, nth]).unwrap();
            }
            for nth in 0..3 {
                let (room, bytes) = next(&mut ring);
                assert_eq!(bytes, [round, nth]);
                rooms.push(room);
            }
            rooms.into_iter().rev().for_each(|room| ring.give(room));
        }
        assert!(ring.is_on());
    }

    #[test]
    fn read_that_has_no_room_left_ends_and_goes_on_when_it_is_given_one() {
        let Some((mut ring, peer)) = scene() else { return };
        ring.begin();
        for nth in 0..6u8 {
            peer.send(&[nth; 64]).unwrap();
        }
        let rooms: Vec<u16> = (0..4u8)
            .map(|nth| {
                let (room, bytes) = next(&mut ring);
                assert_eq!(bytes, [nth; 64]);
                room
            })
            .collect();
        let begun = Instant::now();
        let end = loop {
            ring.look();
            if let Some(end) = ring.reap() {
                break end;
            }
            assert!(begun.elapsed() < Duration::from_secs(20));
        };
        assert_eq!((end, ring.is_on()), (Found::End(libc::ENOBUFS), false));
        rooms.into_iter().for_each(|room| ring.give(room));
        ring.begin();
        assert_eq!((next(&mut ring).1, next(&mut ring).1), (vec![4; 64], vec![5; 64]));
    }

    #[test]
    fn read_that_was_ended_goes_on_in_another_thread() {
        let Some((mut ring, mut peer)) = scene() else { return };
        for round in 0..20u8 {
            let thread = std::thread::spawn(move || {
                ring.begin();
                peer.send(&[round]).unwrap();
                let (room, bytes) = next(&mut ring);
                assert_eq!(bytes, [round]);
                ring.give(room);
                let begun = Instant::now();
                while ring.is_on() {
                    assert!(begun.elapsed() < Duration::from_secs(20));
                    ring.end();
                    while let Some(end) = ring.reap() {
                        assert_eq!(end, Found::End(libc::ECANCELED));
                    }
                }
                (ring, peer)
            });
            (ring, peer) = thread.join().unwrap();
        }
        // What came while no thread read is there for the next.
        peer.send(b"between").unwrap();
        ring.begin();
        assert_eq!(next(&mut ring).1, b"between");
    }

    #[test]
    fn read_that_goes_on_ends_with_its_owner_wherever_that_is_dropped() {
        let Some((mut ring, _peer)) = scene() else { return };
        ring.begin();
        let map = Arc::downgrade(ring.map());
        std::thread::spawn(move || drop(ring)).join().unwrap();
        assert!(map.upgrade().is_none());
    }

    #[test]
    fn one_who_waits_for_its_descriptor_is_woken_by_what_comes() {
        let Some((mut ring, peer)) = scene() else { return };
        ring.begin();
        let sender = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(20));
            peer.send(b"now").unwrap();
            peer
        });
        let begun = Instant::now();
        loop {
            use rustix::event::{PollFd, PollFlags, poll};
            assert!(begun.elapsed() < Duration::from_secs(20));
            let fd = ring.wake_source();
            // Reading in its name interrupts who waits.
            match poll(&mut [PollFd::new(&fd, PollFlags::IN)], None) {
                Ok(_) => break,
                Err(error) => assert_eq!(error, rustix::io::Errno::INTR),
            }
        }
        assert_eq!(next(&mut ring).1, b"now");
        sender.join().unwrap();
    }
}
