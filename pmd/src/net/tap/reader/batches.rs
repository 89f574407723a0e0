//! Reads in batches: one entry into the kernel a burst, which never waits.
//!
//! A batch is a chain of linked reads, each of which runs after the one before, so that frames stay in order. Where the kernel
//! cuts such a chain short, reads go in side by side from then on: none of them waits, so that they run one after the other
//! too, within the same entry. How many are tried doubles while all find something and follows what was found when they do
//! not; after one that found nothing, the next try waits for some microseconds.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use ringway_ring::guest::GuestMap;
use ringway_ring::tsc;

use super::{BUFFERS, Ready, says_gone};
use crate::net::tap::{BUFFER_BYTES, Gone, HEADER_BYTES};
use crate::uring::ReadRing;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Batches {
    ring: ReadRing,
    /// Buffers without a frame.
    pub(super) free: Vec<u16>,
    /// Reads of the last batch, to be put in order: by their place, buffer and result.
    pub(super) batch: Vec<(u16, i32)>,
    /// Reads of a batch are one chain.
    pub(super) is_chained: bool,
    /// Entries into the kernel that found something, since it was last asked.
    pub(super) calls: u64,
    /// Reads that are tried at once.
    depth: usize,
    /// No try before this time, in cycles.
    not_before: u64,
    pause: u64,
}

impl Batches {
    /// Allocates.
    pub(super) fn new(netdev: OwnedFd) -> io::Result<Batches> {
        Ok(Batches {
            ring: ReadRing::new(netdev, "ringway-tap", BUFFERS as u16, BUFFER_BYTES as u32)?,
            free: (0..BUFFERS as u16).collect(),
            batch: Vec::with_capacity(BUFFERS),
            is_chained: true,
            calls: 0,
            depth: 1,
            not_before: 0,
            pause: tsc::hertz() / 1_000_000 * PAUSE_US,
        })
    }

    /// The map that buffers lie in, one after the other.
    pub(super) fn map(&self) -> &Arc<GuestMap> {
        self.ring.map()
    }

    /// The next read does not wait for the pause to end.
    pub(super) fn hurry(&mut self) {
        self.not_before = 0;
    }

    /// A buffer is free again.
    pub(super) fn give_back(&mut self, buffer: u16) {
        self.free.push(buffer);
    }

    /// What becomes readable when a frame comes.
    pub(super) fn wake_source(&self) -> BorrowedFd<'_> {
        self.ring.file()
    }

    /// One batch, unless it is too early.
    pub(super) fn read(&mut self, wanted: usize, ready: &mut VecDeque<Ready>) -> Result<(), Gone> {
        if tsc::cycles() < self.not_before {
            return Ok(());
        }
        if self.ring.pending() == 0 {
            self.begin(wanted);
        }
        // Each is finished by now, since none waits for anything; should one not be, the batch is looked at again later.
        while let Some(done) = self.ring.reap() {
            if let Some(slot) = self.batch.get_mut(done.tag as usize) {
                slot.1 = done.result;
            }
        }
        if self.ring.pending() == 0 { self.sort(ready) } else { Ok(()) }
    }

    /// Puts a batch of reads in.
    fn begin(&mut self, wanted: usize) {
        let count = self.depth.min(wanted).min(self.free.len());
        self.batch.clear();
        for place in 0..count {
            let Some(buffer) = self.free.pop() else { break };
            if !self.ring.read(place as u64, buffer, self.is_chained && place + 1 < count) {
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
    pub(super) fn sort(&mut self, ready: &mut VecDeque<Ready>) -> Result<(), Gone> {
        let (count, mut got, mut is_gone) = (self.batch.len(), 0, false);
        for index in 0..self.batch.len() {
            let Some(&(buffer, result)) = self.batch.get(index) else { break };
            match u32::try_from(result) {
                Ok(len) if len as usize > HEADER_BYTES => {
                    ready.push_back(Ready { buffer, len });
                    got += 1;
                }
                _ => {
                    self.free.push(buffer);
                    // What ran before it found a frame, and still it did not run.
                    self.is_chained &= !(result == CANCELLED && got > 0);
                    is_gone |= says_gone(-result);
                }
            }
        }
        self.batch.clear();
        if count > 0 {
            self.depth = if got == count { (self.depth * 2).min(BUFFERS) } else { (got + 1).min(BUFFERS) };
            self.calls += u64::from(got > 0);
            if got == 0 {
                self.not_before = tsc::cycles() + self.pause;
            }
        }
        if is_gone { Err(Gone) } else { Ok(()) }
    }
}

/// How long nothing is tried after a read that found nothing: a frame waits for half of it on the average.
const PAUSE_US: u64 = 4;
/// The result of what did not run.
pub(super) const CANCELLED: i32 = -libc::ECANCELED;
