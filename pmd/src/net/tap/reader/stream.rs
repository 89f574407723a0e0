//! One read that goes on by itself: the kernel puts each frame into the next buffer that it was given, and is entered only when
//! it says that there is something.

use std::collections::VecDeque;
use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ringway_ring::guest::GuestMap;
use ringway_ring::tsc;

use super::{BUFFERS, Ready, says_gone};
use crate::net::tap::{BUFFER_BYTES, Gone, HEADER_BYTES};
use crate::uring::{Found, StreamRing};

/// See the module's head.
#[derive(Debug)]
pub(super) struct Stream {
    ring: StreamRing,
    /// Buffers that the kernel may fill.
    given: usize,
    /// The read does not begin again before this time, in cycles: it failed, for another reason than want of buffers.
    not_before: u64,
    /// Entries into the kernel that found something, since it was last asked.
    pub(super) calls: u64,
}

impl Stream {
    /// Allocates. None: the kernel has no such reads.
    pub(super) fn new(netdev: BorrowedFd<'_>) -> io::Result<Option<Stream>> {
        let Some(ring) = StreamRing::new(netdev, "ringway-tap", BUFFERS as u16, BUFFER_BYTES as u32)? else {
            return Ok(None);
        };
        let mut stream = Stream { ring, given: 0, not_before: 0, calls: 0 };
        (0..BUFFERS as u16).for_each(|buffer| stream.give_back(buffer));
        Ok(Some(stream))
    }

    /// The map that buffers lie in, one after the other.
    pub(super) fn map(&self) -> &Arc<GuestMap> {
        self.ring.map()
    }

    /// Looks for frames.
    pub(super) fn read(&mut self, ready: &mut VecDeque<Ready>) -> Result<(), Gone> {
        let mut has_entered = self.ring.look();
        let before = ready.len();
        self.reap(ready)?;
        // It ended for want of buffers, or has not begun.
        if !self.ring.is_on() && self.given > 0 && (self.not_before == 0 || tsc::cycles() >= self.not_before)
        {
            self.not_before = 0;
            self.ring.begin();
            has_entered = true;
            self.reap(ready)?;
        }
        self.calls += u64::from(has_entered && ready.len() > before);
        Ok(())
    }

    /// Takes in what was found.
    fn reap(&mut self, ready: &mut VecDeque<Ready>) -> Result<(), Gone> {
        while let Some(found) = self.ring.reap() {
            match found {
                Found::In(buffer, len) => {
                    self.given = self.given.saturating_sub(1);
                    if len as usize > HEADER_BYTES {
                        ready.push_back(Ready { buffer, len });
                    } else {
                        self.give_back(buffer);
                    }
                }
                Found::End(error) if says_gone(error) => return Err(Gone),
                Found::End(libc::ENOBUFS | libc::ECANCELED) => {}
                Found::End(_) => self.not_before = tsc::cycles() + tsc::hertz() / 1_000_000 * PAUSE_US,
            }
        }
        Ok(())
    }

    /// Forgets a pause.
    pub(super) fn hurry(&mut self) {
        self.not_before = 0;
    }

    /// A frame that comes makes the wake source readable, or there is no buffer for it.
    pub(super) fn wakes(&self) -> bool {
        (self.ring.is_on() && !self.ring.is_refused()) || self.given == 0
    }

    /// A buffer is free again.
    pub(super) fn give_back(&mut self, buffer: u16) {
        self.ring.give(buffer);
        self.given += 1;
    }

    /// Ends the read; what it found meanwhile is taken in.
    pub(super) fn end(&mut self, ready: &mut VecDeque<Ready>) -> Result<(), Gone> {
        self.ring.look();
        self.reap(ready)?;
        self.ring.end();
        self.reap(ready)
    }

    /// True while no read goes on.
    pub(super) fn is_ended(&self) -> bool {
        !self.ring.is_on()
    }

    /// The interface.
    #[cfg(test)]
    pub(super) fn file(&self) -> BorrowedFd<'_> {
        self.ring.file()
    }

    /// What becomes readable when a frame comes.
    pub(super) fn wake_source(&self) -> BorrowedFd<'_> {
        self.ring.wake_source()
    }
}

/// How long nothing is tried after a read that failed.
const PAUSE_US: u64 = 1000;
