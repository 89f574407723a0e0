//! What carries frames between the guest and the host's TAP: rings with a back-end behind them, or the TAP's own descriptor.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ringway_pmd::net::tap::HEADER_BYTES;
use ringway_ring::tsc;
use rustix::io::Errno;

use super::port::{Port, TX_BYTES};
use crate::error::BenchError;

/// A wire, and what went over it.
pub(crate) struct Wire {
    kind: Kind,
    /// One long frame in so many that are sent is damaged, to show that it is noticed.
    wrong: Option<u64>,
    long_frames: u64,
    spare: Vec<u8>,
    moved: Arc<Moved>,
}

/// What went over a wire since it was made.
#[derive(Debug, Default)]
pub(crate) struct Moved {
    /// Frames, both ways.
    frames: AtomicU64,
    /// Cycles in system calls on the host's TAP that moved a frame, where the wire is that.
    cycles: AtomicU64,
    /// Where the kernel tells what its thread behind the wire has spent.
    kernel: Option<PathBuf>,
}

impl Moved {
    /// Frames, both ways.
    pub(crate) fn frames(&self) -> u64 {
        self.frames.load(Ordering::Relaxed)
    }

    /// Cycles that were spent between the wire and the host's TAP, where the wire itself or a thread of the kernel does that.
    pub(crate) fn cycles(&self) -> Option<u64> {
        let Some(kernel) = &self.kernel else { return Some(self.cycles.load(Ordering::Relaxed)) };
        let ns: u64 = std::fs::read_to_string(kernel).ok()?.split_whitespace().next()?.parse().ok()?;
        Some((u128::from(ns) * u128::from(tsc::hertz()) / 1_000_000_000) as u64)
    }
}

enum Kind {
    Ring(Box<Port>),
    Plain { tap: OwnedFd, frame: Box<[u8]> },
}

impl Wire {
    /// Over rings.
    pub(crate) fn ring(port: Port, wrong: Option<u64>) -> Wire {
        Wire::new(Kind::Ring(Box::new(port)), wrong)
    }

    /// Straight to and from a TAP's queue.
    pub(crate) fn plain(tap: OwnedFd, wrong: Option<u64>) -> Wire {
        Wire::new(Kind::Plain { tap, frame: vec![0; TX_BYTES as usize].into() }, wrong)
    }

    fn new(kind: Kind, wrong: Option<u64>) -> Wire {
        let kernel = match &kind {
            Kind::Ring(port) => port.kernel_thread(),
            Kind::Plain { .. } => None,
        };
        let moved = Arc::new(Moved { kernel, ..Moved::default() });
        Wire { kind, wrong, long_frames: 0, spare: Vec::new(), moved }
    }

    /// What went over it, for others to read.
    pub(crate) fn moved(&self) -> Arc<Moved> {
        Arc::clone(&self.moved)
    }

    /// Sends a frame, its header before it. False: there is no room now. It may stay here until [`Wire::flush`].
    ///
    /// # Errors
    /// The far side broke the rules, or the interface is gone.
    pub(crate) fn send(&mut self, frame: &[u8]) -> Result<bool, BenchError> {
        let frame = match self.wrong {
            Some(every) if frame.len() >= DAMAGED_FROM => {
                self.long_frames += 1;
                if self.long_frames.is_multiple_of(every.max(1)) {
                    self.spare.clear();
                    self.spare.extend_from_slice(frame);
                    damage(&mut self.spare);
                    self.spare.as_slice()
                } else {
                    frame
                }
            }
            _ => frame,
        };
        let sent = match &mut self.kind {
            Kind::Ring(port) => port.send(frame)?,
            Kind::Plain { tap, .. } => {
                let begun = tsc::cycles();
                match rustix::io::write(&*tap, frame) {
                    Ok(_) => {
                        self.moved.cycles.fetch_add(tsc::cycles() - begun, Ordering::Relaxed);
                        true
                    }
                    Err(Errno::AGAIN | Errno::INTR | Errno::NOBUFS) => false,
                    Err(errno) => return Err(BenchError::system("cannot write to a TAP")(errno.into())),
                }
            }
        };
        self.moved.frames.fetch_add(u64::from(sent), Ordering::Relaxed);
        Ok(sent)
    }

    /// The next frame that came, its header before it.
    ///
    /// # Errors
    /// As [`Wire::send`].
    pub(crate) fn receive(&mut self) -> Result<Option<&[u8]>, BenchError> {
        let came = match &mut self.kind {
            Kind::Ring(port) => port.receive()?,
            Kind::Plain { tap, frame } => {
                let begun = tsc::cycles();
                match rustix::io::read(&*tap, &mut **frame) {
                    Ok(len) => {
                        self.moved.cycles.fetch_add(tsc::cycles() - begun, Ordering::Relaxed);
                        frame.get(..len)
                    }
                    Err(Errno::AGAIN | Errno::INTR) => None,
                    Err(errno) => return Err(BenchError::system("cannot read a TAP")(errno.into())),
                }
            }
        };
        self.moved.frames.fetch_add(u64::from(came.is_some()), Ordering::Relaxed);
        Ok(came)
    }

    /// What was sent is on its way, and what was received may be written over.
    pub(crate) fn flush(&mut self) {
        if let Kind::Ring(port) = &mut self.kind {
            port.flush();
        }
    }

    /// Wants to be woken. True: there is something already.
    pub(crate) fn arm(&mut self) -> bool {
        match &mut self.kind {
            Kind::Ring(port) => port.arm(),
            Kind::Plain { .. } => false,
        }
    }

    /// Does not want to be woken any more.
    pub(crate) fn disarm(&mut self) {
        if let Kind::Ring(port) = &mut self.kind {
            port.disarm();
        }
    }

    /// What becomes readable when there is something.
    pub(crate) fn wakers(&self) -> Vec<BorrowedFd<'_>> {
        match &self.kind {
            Kind::Ring(port) => port.calls().to_vec(),
            Kind::Plain { tap, .. } => vec![tap.as_fd()],
        }
    }

    /// Ends it.
    ///
    /// # Errors
    /// The far side did not answer.
    pub(crate) fn stop(self) -> Result<(), BenchError> {
        match self.kind {
            Kind::Ring(port) => port.stop(),
            Kind::Plain { .. } => Ok(()),
        }
    }
}

/// Exchanges two words near the end of a frame, which no Internet checksum notices: the sum stays the same.
fn damage(frame: &mut [u8]) {
    let end = (frame.len() - HEADER_BYTES) & !1;
    if let Some(&mut [ref mut a, ref mut b, ref mut c, ref mut d]) =
        frame.get_mut(HEADER_BYTES + end - 4..HEADER_BYTES + end)
    {
        (*a, *b, *c, *d) = (*c, *d, *a, *b);
    }
}

/// Bytes of a frame, with its header, from which on it is long enough to be damaged behind every protocol's header.
const DAMAGED_FROM: usize = 200;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_keeps_the_sum_and_changes_the_frame() {
        for len in [200usize, 201] {
            let frame: Vec<u8> = (0..len).map(|at| (at * 7 % 251) as u8).collect();
            let mut damaged = frame.clone();
            damage(&mut damaged);
            let sum = |frame: &[u8]| {
                frame[HEADER_BYTES..]
                    .chunks(2)
                    .map(|pair| u64::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u64::from(*low)))
                    .sum::<u64>()
            };
            assert_ne!(frame, damaged);
            assert_eq!(sum(&frame), sum(&damaged));
        }
    }
}
