//! Frames from the kernel: read into buffers of ours, and seen like chains that were peeked from a transmit queue.
//!
//! How they are read depends on the kernel: by one read that goes on by itself where it has such ([`stream`]), else in batches
//! of reads ([`batches`]). Either way they come in order, looking never waits, and what is looked for costs one system call a
//! batch at most.
//!
//! Owned by one pump. Budget of all but making and dropping: no allocation, no lock, one system call at most, no panic.

// Reads in batches.
mod batches;
// One read that goes on.
mod stream;

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use ringway_ring::chain::Burst;

use super::{BUFFER_BYTES, Gone};
use batches::Batches;
use stream::Stream;

/// See the module's head.
#[derive(Debug)]
pub struct TapReader {
    reads: Reads,
    burst: Burst,
    /// Frames that were read and not taken, in order.
    ready: VecDeque<Ready>,
    /// Buffers of frames that were taken and not given back, in order.
    taken: VecDeque<u16>,
    is_gone: bool,
}

/// A frame that was read: its buffer, and its bytes with the header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ready {
    buffer: u16,
    len: u32,
}

#[derive(Debug)]
enum Reads {
    Stream(Stream),
    Batches(Batches),
}

impl TapReader {
    /// Allocates.
    pub(super) fn new(netdev: OwnedFd) -> io::Result<TapReader> {
        let stream = Stream::new(netdev.as_fd())?;
        let reads = match stream {
            Some(stream) => Reads::Stream(stream),
            None => Reads::Batches(Batches::new(netdev)?),
        };
        TapReader::by(reads)
    }

    /// The same, in batches, as where the kernel has nothing better.
    #[cfg(test)]
    pub(super) fn in_batches(self, is_chained: bool) -> TapReader {
        let mut batches = match self.reads {
            Reads::Stream(stream) => Batches::new(stream.file().try_clone_to_owned().unwrap()).unwrap(),
            Reads::Batches(batches) => batches,
        };
        batches.is_chained = is_chained;
        TapReader::by(Reads::Batches(batches)).unwrap()
    }

    fn by(reads: Reads) -> io::Result<TapReader> {
        let map = match &reads {
            Reads::Stream(stream) => stream.map(),
            Reads::Batches(batches) => batches.map(),
        };
        Ok(TapReader {
            burst: Burst::try_new(Arc::clone(map))?,
            reads,
            ready: VecDeque::with_capacity(BUFFERS),
            taken: VecDeque::with_capacity(BUFFERS),
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
        if self.ready.len() < most && !self.is_gone {
            let wanted = most - self.ready.len();
            self.is_gone = match &mut self.reads {
                Reads::Stream(stream) => stream.read(&mut self.ready),
                Reads::Batches(batches) => batches.read(wanted, &mut self.ready),
            }
            .is_err();
        }
        if self.ready.is_empty() && self.is_gone {
            return Err(Gone);
        }
        self.burst.clear();
        for ready in self.ready.iter().take(most) {
            if !self.burst.push_own(ready.buffer, u64::from(ready.buffer) * BUFFER_BYTES as u64, ready.len) {
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
        self.taken.extend(self.ready.drain(..frames).map(|ready| ready.buffer));
    }

    /// The oldest `frames` of those that were taken are done with.
    pub fn give_back(&mut self, frames: usize) {
        for buffer in self.taken.drain(..frames.min(self.taken.len())) {
            match &mut self.reads {
                Reads::Stream(stream) => stream.give_back(buffer),
                Reads::Batches(batches) => batches.give_back(buffer),
            }
        }
    }

    /// The first `frames` of what was peeked are done with, and none was taken before.
    pub fn consume(&mut self, frames: usize) {
        self.take(frames);
        self.give_back(frames);
    }

    /// Entries into the kernel that found something, since this was last asked.
    pub fn take_calls(&mut self) -> u64 {
        let calls = match &mut self.reads {
            Reads::Stream(stream) => &mut stream.calls,
            Reads::Batches(batches) => &mut batches.calls,
        };
        std::mem::take(calls)
    }

    /// Looks once more, whatever the pause: true if a frame is there, the interface is gone, or nothing would tell of a frame.
    pub fn arm(&mut self) -> bool {
        match &mut self.reads {
            Reads::Batches(batches) => batches.hurry(),
            Reads::Stream(stream) => stream.hurry(),
        }
        // A read that does not go on, for want of anything but buffers, wakes nobody: it is tried again.
        let wakes = |reads: &Reads| match reads {
            Reads::Batches(_) => true,
            Reads::Stream(stream) => stream.wakes(),
        };
        self.peek(1).map_or(true, |frames| frames > 0) || !wakes(&self.reads)
    }

    /// What becomes readable when a frame comes.
    pub fn wake_source(&self) -> BorrowedFd<'_> {
        match &self.reads {
            Reads::Stream(stream) => stream.wake_source(),
            Reads::Batches(batches) => batches.wake_source(),
        }
    }

    /// Reads nothing more by itself, until frames are looked for again: before another thread takes it. False: not yet.
    pub fn rest(&mut self) -> bool {
        match &mut self.reads {
            Reads::Stream(stream) => {
                self.is_gone |= stream.end(&mut self.ready).is_err();
                stream.is_ended()
            }
            Reads::Batches(_) => true,
        }
    }
}

/// True if this error number of a read says that there is no interface any more.
fn says_gone(error: i32) -> bool {
    [libc::EBADFD, libc::ENODEV, libc::EBADF].contains(&error)
}

/// Buffers, and so frames in one burst.
const BUFFERS: usize = 32;

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::super::scene::{in_own_namespace, run};
    use super::super::{HEADER_BYTES, TapNetdev, TapSpec};
    use super::batches::CANCELLED;
    use super::*;

    const BACKLOG: u16 = 400;

    /// How an interface is read.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    enum By {
        Stream,
        Chains,
        SideBySide,
    }

    const EVERY_WAY: [By; 3] = [By::Stream, By::Chains, By::SideBySide];

    /// An interface of this thread's namespace, and its reader.
    fn scene(by: By) -> (TapNetdev, TapReader, super::super::TapWriter) {
        let spec = TapSpec { name: "rwx0".into(), netns: None, queues: 1, mtu: 1500, seed: None };
        let netdev = TapNetdev::open(&spec, true).unwrap();
        let (reader, writer) = netdev.queues().unwrap().remove(0);
        let reader = match by {
            By::Stream => reader,
            By::Chains => reader.in_batches(true),
            By::SideBySide => reader.in_batches(false),
        };
        (netdev, reader, writer)
    }

    /// Something on the host that sends numbered datagrams through it.
    fn host() -> std::net::UdpSocket {
        run("sysctl -qw net.ipv6.conf.rwx0.disable_ipv6=1; ip addr add 10.9.9.1/24 dev rwx0");
        run("ip neigh add 10.9.9.2 lladdr 02:00:00:00:00:02 dev rwx0");
        std::net::UdpSocket::bind("10.9.9.1:0").unwrap()
    }

    fn send(host: &std::net::UdpSocket, number: u16) {
        host.send_to(&number.to_be_bytes().repeat(30), "10.9.9.2:9").unwrap();
    }

    /// The numbers of the datagrams among what was peeked.
    fn numbers(reader: &TapReader) -> Vec<u16> {
        let number = |chain| {
            let mut bytes = [0; 200];
            let mut at = 0;
            for part in reader.burst().readable(chain) {
                at += part.read(&mut bytes[at..]);
            }
            // Behind the headers of virtio, Ethernet, IP and UDP.
            let is_one = at == HEADER_BYTES + 14 + 20 + 8 + 60;
            is_one.then(|| u16::from_be_bytes([bytes[HEADER_BYTES + 42], bytes[HEADER_BYTES + 43]]))
        };
        reader.burst().chains().iter().filter_map(number).collect()
    }

    /// Reads a backlog: frames a call, call by call.
    fn read_backlog(by: By) -> Vec<usize> {
        let (_netdev, mut reader, _writer) = scene(by);
        let host = host();
        (0..BACKLOG).for_each(|number| send(&host, number));
        let (mut sizes, mut got, mut empty) = (Vec::new(), Vec::new(), 0);
        let begun = std::time::Instant::now();
        // All of them, and for a while nothing more.
        while empty < 1000 || got.len() < usize::from(BACKLOG) {
            assert!(begun.elapsed().as_secs() < 20, "{} of {BACKLOG}", got.len());
            let frames = reader.peek(32).unwrap();
            if frames == 0 {
                empty += 1;
                std::thread::sleep(std::time::Duration::from_micros(5));
                continue;
            }
            got.extend(numbers(&reader));
            sizes.push(frames);
            reader.consume(frames);
        }
        assert_eq!(got, (0..BACKLOG).collect::<Vec<_>>(), "every frame once and in order");
        if let Reads::Batches(batches) = &reader.reads {
            assert_eq!(batches.is_chained, by == By::Chains, "this kernel leaves chains whole");
        }
        assert_eq!(reader.take_calls(), sizes.len() as u64);
        sizes
    }

    #[test]
    fn backlog_is_read_in_batches_however_it_is_read() {
        for by in EVERY_WAY {
            in_own_namespace(|| {
                let sizes = read_backlog(by);
                let whole = sizes.iter().filter(|frames| **frames == 32).count();
                let (frames, calls) = (sizes.iter().sum::<usize>(), sizes.len());
                // In batches 1, 2, 4, 8, 16, then 32 each.
                assert!(
                    whole >= 11 && frames >= calls * 16,
                    "{by:?}: {frames} frames, {calls} calls: {sizes:?}"
                );
            });
        }
    }

    #[test]
    fn frames_that_come_one_by_one_are_read_in_one_thread_and_then_in_another() {
        for by in EVERY_WAY {
            in_own_namespace(|| {
                let (_netdev, mut reader, _writer) = scene(by);
                let host = host();
                for number in 0..200 {
                    let got = std::thread::scope(|scope| {
                        let (reader, host) = (&mut reader, &host);
                        let read = move || {
                            // Some are there before it looks, some come after.
                            if number % 2 == 0 {
                                send(host, number);
                            }
                            let _ = reader.arm();
                            if number % 2 == 1 {
                                send(host, number);
                            }
                            let begun = std::time::Instant::now();
                            let mut got = Vec::new();
                            while got.is_empty() {
                                assert!(begun.elapsed().as_secs() < 20);
                                let frames = reader.peek(32).unwrap();
                                got = numbers(reader);
                                reader.take(frames);
                                reader.give_back(frames);
                            }
                            while !reader.rest() {
                                assert!(begun.elapsed().as_secs() < 20);
                            }
                            got
                        };
                        scope.spawn(read).join().unwrap()
                    });
                    assert_eq!(got, [number], "{by:?}");
                }
            });
        }
    }

    #[test]
    fn interface_that_is_gone_is_told_by_who_arms() {
        for by in EVERY_WAY {
            in_own_namespace(|| {
                // Else the host sends frames of its own accord.
                run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
                let (_netdev, mut reader, _writer) = scene(by);
                if by == By::Stream {
                    // It sleeps already.
                    assert!(!reader.arm());
                }
                run("ip link del rwx0");
                assert!(reader.arm(), "{by:?}: who sleeps now is never woken");
                assert_eq!(reader.peek(1), Err(Gone));
            });
        }
    }

    #[test]
    fn chain_that_is_cut_short_is_the_last() {
        let (netdev, _host) = UnixDatagram::pair().unwrap();
        let mut batches = Batches::new(netdev.into()).unwrap();
        let mut batch = |results: [i32; 2]| {
            let mut ready = VecDeque::new();
            for result in results {
                let buffer = batches.free.pop().unwrap();
                batches.batch.push((buffer, result));
            }
            assert_eq!(batches.sort(&mut ready), Ok(()));
            let frames = ready.len();
            ready.into_iter().for_each(|ready| batches.give_back(ready.buffer));
            (frames, batches.is_chained, batches.free.len())
        };
        assert_eq!(batch([-libc::EAGAIN, CANCELLED]), (0, true, BUFFERS));
        assert_eq!(batch([72, -libc::EAGAIN]), (1, true, BUFFERS));
        assert_eq!(batch([72, CANCELLED]), (1, false, BUFFERS));
    }
}
