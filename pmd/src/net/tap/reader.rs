//! Frames from the kernel: read in batches into buffers of ours, and seen like chains that were peeked from a transmit
//! queue.
//!
//! One entry into the kernel a burst, which never waits: a chain of linked reads, of which the first that finds nothing
//! cancels the rest. How many are tried doubles while all find something and follows what was found when they do not;
//! after one that found nothing, the next try waits for some microseconds.
//!
//! Owned by one pump. Budget of `peek` and `consume`: no allocation, no lock, one system call at most, no panic.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ringway_ring::chain::Burst;
use ringway_ring::guest::GuestMap;
use ringway_ring::memory::{HostMemory, PageKind};
use ringway_ring::tsc;

use super::ring::Ring;
use super::{BUFFER_BYTES, Gone, HEADER_BYTES};

/// See the module's head.
#[derive(Debug)]
pub struct TapReader {
    /// Dropped before the memory that its reads go to.
    ring: Ring,
    burst: Burst,
    /// Buffers without a frame.
    free: Vec<u16>,
    /// Frames that were read and not consumed, in order: buffer, bytes.
    ready: Vec<(u16, u32)>,
    /// Reads of the last batch, to be put in order: by their place, buffer and result.
    batch: Vec<(u16, i32)>,
    is_registered: bool,
    /// Reads that are tried at once.
    depth: usize,
    /// No try before this time, in cycles.
    not_before: u64,
    pause: u64,
    is_gone: bool,
    map: Arc<GuestMap>,
    _memory: HostMemory,
}

impl TapReader {
    /// Allocates.
    pub(super) fn new(netdev: OwnedFd) -> io::Result<TapReader> {
        let bytes = (BUFFERS * BUFFER_BYTES) as u64;
        // On base pages: huge ones would be there whether or not a frame comes.
        let memory = HostMemory::allocate_on(PageKind::Base, "ringway-tap", bytes)?;
        let map = Arc::new(memory.guest_map(0).map_err(io::Error::other)?);
        let mut ring = Ring::new(netdev, BUFFERS as u32)?;
        let buffers: Vec<libc::iovec> = (0..BUFFERS)
            .filter_map(|index| map.resolve((index * BUFFER_BYTES) as u64, BUFFER_BYTES as u64).ok())
            .map(|slice| libc::iovec { iov_base: slice.as_ptr().cast(), iov_len: slice.len() })
            .collect();
        let is_registered = ring.register(&buffers);
        Ok(TapReader {
            ring,
            burst: Burst::try_new(Arc::clone(&map))?,
            free: (0..BUFFERS as u16).collect(),
            ready: Vec::with_capacity(BUFFERS),
            batch: Vec::with_capacity(BUFFERS),
            is_registered,
            depth: 1,
            not_before: 0,
            pause: tsc::hertz() / 1_000_000 * PAUSE_US,
            is_gone: false,
            map,
            _memory: memory,
        })
    }

    /// How many frames wait, up to `most`; reads more if fewer do. They are the chains of [`TapReader::burst`], each the
    /// header and the frame, and are peeked again until they are consumed.
    ///
    /// # Errors
    /// The interface is gone, and no frame of it is left.
    pub fn peek(&mut self, most: usize) -> Result<usize, Gone> {
        let most = most.min(BUFFERS);
        if self.ready.len() < most && !self.is_gone && tsc::cycles() >= self.not_before {
            self.read(most - self.ready.len());
        }
        if self.ready.is_empty() && self.is_gone {
            return Err(Gone);
        }
        self.burst.clear();
        for (buffer, len) in self.ready.iter().take(most) {
            if !self.burst.push_own(*buffer, u64::from(*buffer) * BUFFER_BYTES as u64, *len) {
                break;
            }
        }
        Ok(self.burst.chains().len())
    }

    /// What was peeked last.
    pub fn burst(&self) -> &Burst {
        &self.burst
    }

    /// The first `frames` of what was peeked are done with.
    pub fn consume(&mut self, frames: usize) {
        let frames = frames.min(self.ready.len());
        self.free.extend(self.ready.drain(..frames).map(|(buffer, _)| buffer));
    }

    /// Looks once more, whatever the pause: true if a frame is there, or the interface is gone.
    pub fn arm(&mut self) -> bool {
        self.not_before = 0;
        !self.is_gone && self.peek(1).is_ok_and(|frames| frames > 0)
    }

    /// What becomes readable when a frame comes.
    pub fn wake_source(&self) -> BorrowedFd<'_> {
        self.ring.netdev().as_fd()
    }

    /// One batch.
    fn read(&mut self, wanted: usize) {
        if self.ring.pending() == 0 {
            self.begin(wanted);
        }
        // Each is finished by now, since none waits for anything; should one not be, the batch is looked at again later.
        while let Some(done) = self.ring.reap() {
            if let Some(slot) = self.batch.get_mut(done.tag as usize) {
                slot.1 = done.result;
            }
        }
        if self.ring.pending() == 0 {
            self.sort();
        }
    }

    /// Puts a batch of reads in.
    fn begin(&mut self, wanted: usize) {
        let count = self.depth.min(wanted).min(self.free.len());
        self.batch.clear();
        for place in 0..count {
            let Some(buffer) = self.free.pop() else { break };
            let slice = self.map.resolve(u64::from(buffer) * BUFFER_BYTES as u64, BUFFER_BYTES as u64);
            let Ok(slice) = slice else { break };
            let (to, len) = (slice.as_ptr(), slice.len() as u32);
            let registered = self.is_registered.then_some(buffer);
            if !self.ring.read(place as u64, to, len, registered, place + 1 < count) {
                self.free.push(buffer);
                break;
            }
            self.batch.push((buffer, CANCELLED));
        }
        if !self.batch.is_empty() {
            self.ring.enter();
        }
    }

    /// Puts what was read in order, and judges how much to try next.
    fn sort(&mut self) {
        let (count, mut got) = (self.batch.len(), 0);
        for index in 0..self.batch.len() {
            let Some(&(buffer, result)) = self.batch.get(index) else { break };
            match u32::try_from(result) {
                Ok(len) if len as usize > HEADER_BYTES => {
                    self.ready.push((buffer, len));
                    got += 1;
                }
                _ => {
                    self.free.push(buffer);
                    self.is_gone |=
                        result == -libc::EBADFD || result == -libc::ENODEV || result == -libc::EBADF;
                }
            }
        }
        self.batch.clear();
        if count == 0 {
            return;
        }
        if got == count {
            self.depth = (self.depth * 2).min(BUFFERS);
        } else {
            self.depth = (got + 1).min(BUFFERS);
        }
        if got == 0 {
            self.not_before = tsc::cycles() + self.pause;
        }
    }
}

impl Drop for TapReader {
    fn drop(&mut self) {
        self.ring.settle();
    }
}

/// Buffers, and so frames in one burst.
const BUFFERS: usize = 32;
/// How long nothing is tried after a read that found nothing: a frame waits for half of it on the average.
const PAUSE_US: u64 = 4;
/// The result of what did not run.
const CANCELLED: i32 = -libc::ECANCELED;
