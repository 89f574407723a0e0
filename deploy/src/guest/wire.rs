//! One NIC as a place to put frames and take them back.

use std::os::fd::OwnedFd;
use std::time::Duration;

use ringway_lab::error::{Context, Error, Result};
use ringway_lab::frame::{Frame, Mac, NOBODY, SHORTEST, mac_from_text};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};
use rustix::thread::CpuSet;

use crate::{nic, sys};

/// A socket on a NIC's wire, with room for the frame under way each way.
pub(crate) struct Wire {
    socket: OwnedFd,
    own: Mac,
    swapped: bool,
    /// The frame to send, made anew for each.
    out: Vec<u8>,
    /// What a returned frame should have been.
    expected: Vec<u8>,
    received: Vec<u8>,
}

/// What came of trying to send.
pub(crate) enum Sent {
    Yes,
    /// The socket's buffer is full: receive first.
    Later,
    /// The kernel dropped the frame or the link is not there.
    Refused(Errno),
}

/// What a received frame is.
pub(crate) enum Received {
    Nothing,
    /// A frame of another run, or nobody's.
    Foreign,
    Intact(Frame),
    Corrupt(Frame, String),
}

impl Wire {
    /// Opens the NIC with this Ethernet address; its link must be up.
    pub(crate) fn open(mac: &str, swapped: bool) -> Result<Wire> {
        let own = mac_from_text(mac).ok_or_else(|| Error::new(format!("not an Ethernet address: {mac}")))?;
        let socket = sys::packet_socket(nic::interface_idx(&nic::find(mac)?.name)?)?;
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BYTES)
            .context(|| "receive buffer".into())?;
        rustix::net::sockopt::set_socket_send_buffer_size(&socket, SOCKET_BYTES)
            .context(|| "send buffer".into())?;
        Ok(Wire { socket, own, swapped, out: Vec::new(), expected: Vec::new(), received: vec![0; 1 << 16] })
    }

    /// Sends one frame; never waits.
    pub(crate) fn send(&mut self, frame: Frame) -> Sent {
        self.send_as(frame, NOBODY, self.own)
    }

    /// Sends one frame with these addresses; never waits.
    pub(crate) fn send_as(&mut self, frame: Frame, destination: Mac, source: Mac) -> Sent {
        frame.write(destination, source, &mut self.out);
        self.put()
    }

    fn put(&self) -> Sent {
        match rustix::net::send(&self.socket, &self.out, SendFlags::DONTWAIT) {
            Ok(_) => Sent::Yes,
            Err(Errno::AGAIN) => Sent::Later,
            Err(errno) => Sent::Refused(errno),
        }
    }

    /// Takes one frame, if there is one, and compares it with what the run sent. `length_of` gives the length that
    /// belongs to a sequence number.
    pub(crate) fn receive(
        &mut self,
        run: u32,
        length_of: impl Fn(u64) -> usize,
    ) -> std::result::Result<Received, Errno> {
        let bytes = match rustix::net::recv(&self.socket, self.received.as_mut_slice(), RecvFlags::DONTWAIT) {
            Ok((_, bytes)) => &self.received[..bytes.min(self.received.len())],
            Err(Errno::AGAIN | Errno::INTR) => return Ok(Received::Nothing),
            Err(errno) => return Err(errno),
        };
        let Some(claimed) = Frame::claimed(bytes).filter(|claimed| claimed.run == run) else {
            return Ok(Received::Foreign);
        };
        let frame = Frame { length: length_of(claimed.sequence).max(SHORTEST), ..claimed };
        let (destination, source) = if self.swapped { (self.own, NOBODY) } else { (NOBODY, self.own) };
        frame.write(destination, source, &mut self.expected);
        if *bytes == *self.expected {
            return Ok(Received::Intact(frame));
        }
        Ok(Received::Corrupt(frame, difference(bytes, &self.expected)))
    }

    /// Waits until there is something to receive, or for so long.
    pub(crate) fn wait(&self, limit: Duration) {
        let mut poll = [PollFd::new(&self.socket, PollFlags::IN)];
        let limit = Timespec { tv_sec: limit.as_secs() as i64, tv_nsec: i64::from(limit.subsec_nanos()) };
        // An interrupted or failed wait is a short one: the caller looks again and has its own deadline.
        let _ = rustix::event::poll(&mut poll, Some(&limit));
    }
}

/// Moves the calling thread from vCPU to vCPU, so that every transmit queue gets its share: virtio_net ties queues to
/// vCPUs.
pub(crate) struct Rounds {
    cpus: usize,
    next: usize,
    frames: u32,
}

impl Rounds {
    pub(crate) fn new() -> Rounds {
        Rounds { cpus: std::thread::available_parallelism().map_or(1, usize::from), next: 0, frames: 0 }
    }

    /// Called once a frame; moves on every few frames.
    pub(crate) fn step(&mut self) {
        self.frames += 1;
        if self.cpus == 1 || !self.frames.is_multiple_of(FRAMES_BY_CPU) {
            return;
        }
        let mut set = CpuSet::new();
        set.set(self.next % self.cpus);
        self.next += 1;
        // A vCPU that is not there costs spread, which the per-queue counters show.
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
}

impl Drop for Rounds {
    fn drop(&mut self) {
        let mut set = CpuSet::new();
        (0..self.cpus).for_each(|cpu| set.set(cpu));
        let _ = rustix::thread::sched_setaffinity(None, &set);
    }
}

fn difference(bytes: &[u8], expected: &[u8]) -> String {
    if bytes.len() != expected.len() {
        return format!("{} bytes came back of {}", bytes.len(), expected.len());
    }
    let differing = bytes.iter().zip(expected).filter(|(one, other)| one != other).count();
    let first = bytes.iter().zip(expected).position(|(one, other)| one != other).unwrap_or(0);
    format!(
        "{differing} of {} bytes differ, the first at {first}: {:02x} came back of {:02x}",
        bytes.len(),
        bytes[first],
        expected[first]
    )
}

const SOCKET_BYTES: usize = 32 << 20;
const FRAMES_BY_CPU: u32 = 16;
