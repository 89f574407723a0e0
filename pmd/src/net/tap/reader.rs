//! Frames from the kernel: read in batches into buffers of ours, and seen like chains that were peeked from a transmit
//! queue.
//!
//! One entry into the kernel a burst, which never waits: a chain of linked reads, each of which runs after the one before,
//! so that frames stay in order. Where the kernel cuts such a chain short, reads go in side by side from then on: none of
//! them waits, so that they run one after the other too, within the same entry. How many are tried doubles while all
//! find something and follows what was found when they do not; after one that found nothing, the next try waits for some
//! microseconds.
//!
//! Owned by one pump. Budget of all but making and dropping: no allocation, no lock, one system call at most, no panic.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use ringway_ring::chain::Burst;
use ringway_ring::tsc;

use super::{BUFFER_BYTES, Gone, HEADER_BYTES};
use crate::uring::ReadRing;

/// See the module's head.
#[derive(Debug)]
pub struct TapReader {
    ring: ReadRing,
    burst: Burst,
    /// Buffers without a frame.
    free: Vec<u16>,
    /// Frames that were read and not taken, in order: buffer, bytes.
    ready: Vec<(u16, u32)>,
    /// Buffers of frames that were taken and not given back, in order.
    taken: VecDeque<u16>,
    /// Reads of the last batch, to be put in order: by their place, buffer and result.
    batch: Vec<(u16, i32)>,
    /// Reads of a batch are one chain.
    is_chained: bool,
    /// Entries into the kernel that found something, since it was last asked.
    calls: u64,
    /// Reads that are tried at once.
    depth: usize,
    /// No try before this time, in cycles.
    not_before: u64,
    pause: u64,
    is_gone: bool,
}

impl TapReader {
    /// Allocates.
    pub(super) fn new(netdev: OwnedFd) -> io::Result<TapReader> {
        let ring = ReadRing::new(netdev, "ringway-tap", BUFFERS as u16, BUFFER_BYTES as u32)?;
        Ok(TapReader {
            burst: Burst::try_new(Arc::clone(ring.map()))?,
            ring,
            free: (0..BUFFERS as u16).collect(),
            ready: Vec::with_capacity(BUFFERS),
            taken: VecDeque::with_capacity(BUFFERS),
            batch: Vec::with_capacity(BUFFERS),
            is_chained: true,
            calls: 0,
            depth: 1,
            not_before: 0,
            pause: tsc::hertz() / 1_000_000 * PAUSE_US,
            is_gone: false,
        })
    }

    /// How many frames wait, up to `most`; reads more if fewer do. They are the chains of [`TapReader::burst`], each the
    /// header and the frame, and are peeked again until they are taken.
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
            if !self.burst.push_own(*buffer, self.ring.address(*buffer), *len) {
                break;
            }
        }
        Ok(self.burst.chains().len())
    }

    /// What was peeked last.
    pub fn burst(&self) -> &Burst {
        &self.burst
    }

    /// Takes the first `frames` of what was peeked; their bytes stay.
    pub fn take(&mut self, frames: usize) {
        let frames = frames.min(self.ready.len());
        self.taken.extend(self.ready.drain(..frames).map(|(buffer, _)| buffer));
    }

    /// The oldest `frames` of those that were taken are done with.
    pub fn give_back(&mut self, frames: usize) {
        let frames = frames.min(self.taken.len());
        self.free.extend(self.taken.drain(..frames));
    }

    /// The first `frames` of what was peeked are done with, and none was taken before.
    pub fn consume(&mut self, frames: usize) {
        self.take(frames);
        self.give_back(frames);
    }

    /// Entries into the kernel that found something, since this was last asked.
    pub fn take_calls(&mut self) -> u64 {
        std::mem::take(&mut self.calls)
    }

    /// Has reads go in side by side, as where the kernel cuts chains short.
    #[cfg(test)]
    pub(super) fn unchain(&mut self) {
        self.is_chained = false;
    }

    /// Looks once more, whatever the pause: true if a frame is there, or the interface is gone.
    pub fn arm(&mut self) -> bool {
        self.not_before = 0;
        self.peek(1).map_or(true, |frames| frames > 0)
    }

    /// What becomes readable when a frame comes.
    pub fn wake_source(&self) -> BorrowedFd<'_> {
        self.ring.file()
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
                    // What ran before it found a frame, and still it did not run.
                    self.is_chained &= !(result == CANCELLED && got > 0);
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
        self.calls += u64::from(got > 0);
        if got == 0 {
            self.not_before = tsc::cycles() + self.pause;
        }
    }
}

/// Buffers, and so frames in one burst.
const BUFFERS: usize = 32;
/// How long nothing is tried after a read that found nothing: a frame waits for half of it on the average.
const PAUSE_US: u64 = 4;
/// The result of what did not run.
const CANCELLED: i32 = -libc::ECANCELED;

#[cfg(test)]
mod tests {
    use super::super::scene::{in_own_namespace, run};
    use super::super::{TapNetdev, TapSpec};
    use super::*;

    const BACKLOG: u16 = 400;

    /// Reads a backlog of numbered datagrams: frames a call, call by call, once the depth has grown.
    fn read_backlog(is_chained: bool) -> Vec<usize> {
        let spec = TapSpec { name: "rwx0".into(), netns: None, queues: 1, mtu: 1500, seed: None };
        let netdev = TapNetdev::open(&spec, true).unwrap();
        run("sysctl -qw net.ipv6.conf.rwx0.disable_ipv6=1; ip addr add 10.9.9.1/24 dev rwx0");
        run("ip neigh add 10.9.9.2 lladdr 02:00:00:00:00:02 dev rwx0");
        let (mut reader, _writer) = netdev.queues().unwrap().remove(0);
        if !is_chained {
            reader.unchain();
        }
        let socket = std::net::UdpSocket::bind("10.9.9.1:0").unwrap();
        for number in 0..BACKLOG {
            socket.send_to(&number.to_be_bytes().repeat(30), "10.9.9.2:9").unwrap();
        }
        let (mut sizes, mut numbers, mut empty) = (Vec::new(), Vec::new(), 0);
        while empty < 1000 {
            let frames = reader.peek(32).unwrap();
            if frames == 0 {
                empty += 1;
                std::thread::sleep(std::time::Duration::from_micros(5));
                continue;
            }
            for chain in reader.burst().chains() {
                let mut bytes = [0; 200];
                let mut at = 0;
                for part in reader.burst().readable(chain) {
                    at += part.read(&mut bytes[at..]);
                }
                // Behind the headers of virtio, Ethernet, IP and UDP.
                if at == HEADER_BYTES + 14 + 20 + 8 + 60 {
                    numbers.push(u16::from_be_bytes([bytes[HEADER_BYTES + 42], bytes[HEADER_BYTES + 43]]));
                }
            }
            sizes.push(frames);
            reader.consume(frames);
        }
        assert_eq!(numbers, (0..BACKLOG).collect::<Vec<_>>(), "every frame once and in order");
        assert_eq!(reader.is_chained, is_chained, "this kernel leaves chains whole");
        assert_eq!(reader.take_calls(), sizes.len() as u64);
        sizes
    }

    #[test]
    fn backlog_is_read_in_batches_chained_or_not() {
        for is_chained in [true, false] {
            in_own_namespace(|| {
                let sizes = read_backlog(is_chained);
                let whole = sizes.iter().filter(|frames| **frames == 32).count();
                let (frames, calls) = (sizes.iter().sum::<usize>(), sizes.len());
                // 1, 2, 4, 8, 16, then 32 each.
                assert!(whole >= 11 && frames >= calls * 16, "{frames} frames, {calls} calls: {sizes:?}");
            });
        }
    }

    #[test]
    fn interface_that_is_gone_is_told_by_who_arms() {
        in_own_namespace(|| {
            let spec = TapSpec { name: "rwx0".into(), netns: None, queues: 1, mtu: 1500, seed: None };
            let netdev = TapNetdev::open(&spec, true).unwrap();
            let (mut reader, _writer) = netdev.queues().unwrap().remove(0);
            run("ip link del rwx0");
            assert!(reader.arm(), "who sleeps now is never woken");
            assert_eq!(reader.peek(1), Err(Gone));
        });
    }

    #[test]
    fn chain_that_is_cut_short_is_the_last() {
        in_own_namespace(|| {
            let spec = TapSpec { name: "rwx0".into(), netns: None, queues: 1, mtu: 1500, seed: None };
            let netdev = TapNetdev::open(&spec, true).unwrap();
            let (mut reader, _writer) = netdev.queues().unwrap().remove(0);
            let batch = |reader: &mut TapReader, results: [i32; 2]| {
                for result in results {
                    let buffer = reader.free.pop().unwrap();
                    reader.batch.push((buffer, result));
                }
                reader.sort();
                let ready = reader.ready.len();
                reader.consume(ready);
                (ready, reader.is_chained)
            };
            assert_eq!(batch(&mut reader, [-libc::EAGAIN, CANCELLED]), (0, true));
            assert_eq!(batch(&mut reader, [72, -libc::EAGAIN]), (1, true));
            assert_eq!(batch(&mut reader, [72, CANCELLED]), (1, false));
            assert_eq!(reader.free.len(), BUFFERS);
        });
    }
}
