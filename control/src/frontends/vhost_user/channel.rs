//! The back-end channel: what we tell the front-end unasked. Never waits for it: what it has not taken is remembered
//! as one bit a kind and ring, so that a front-end that never reads costs nothing and misses nothing but repetition.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

use rustix::net::{AddressFamily, RecvFlags, SocketType, recv, sockopt};

use ringway_vhost_user::connection::Outbox;
use ringway_vhost_user::message::{BackendRequest, FLAG_VERSION, Header, VringState};

/// The channel.
#[derive(Debug)]
pub(super) struct Channel {
    socket: OwnedFd,
    outbox: Outbox,
    config_changed: bool,
    /// Rings to be called, by bit.
    calls: u64,
    /// Rings that broke, by bit.
    errors: u64,
}

impl Channel {
    /// Takes the front-end's socket; refuses what is no stream socket of this host.
    pub(super) fn new(socket: OwnedFd) -> io::Result<Channel> {
        let kind = (sockopt::socket_domain(&socket)?, sockopt::socket_type(&socket)?);
        if kind != (AddressFamily::UNIX, SocketType::STREAM) {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "not a Unix stream socket"));
        }
        Ok(Channel { socket, outbox: Outbox::default(), config_changed: false, calls: 0, errors: 0 })
    }

    /// CONFIG_CHANGE_MSG is to be sent.
    pub(super) fn config_changed(&mut self) {
        self.config_changed = true;
    }
    /// VRING_CALL is to be sent. Indexes are below 64: see `VirtDev::new`.
    pub(super) fn call(&mut self, index: u16) {
        self.calls |= 1 << (index % 64);
    }
    /// VRING_ERR is to be sent, for each ring of these bits.
    pub(super) fn ring_errors(&mut self, rings: u64) {
        self.errors |= rings;
    }

    /// Something is left to be sent once the front-end takes it.
    pub(super) fn wants_out(&self) -> bool {
        !self.outbox.is_empty() || self.config_changed || self.calls | self.errors != 0
    }

    /// Sends what the front-end takes now.
    pub(super) fn flush(&mut self, now: Instant) -> io::Result<()> {
        while self.outbox.flush(&self.socket)? {
            let (request, payload) = if self.config_changed {
                self.config_changed = false;
                (BackendRequest::ConfigChange, None)
            } else if let Some(index) = take_lowest(&mut self.errors) {
                (BackendRequest::VringErr, Some(index))
            } else if let Some(index) = take_lowest(&mut self.calls) {
                (BackendRequest::VringCall, Some(index))
            } else {
                return Ok(());
            };
            let payload = payload.map(|index| VringState { index, num: 0 }.encode());
            let header = Header { request: request as u32, flags: FLAG_VERSION, size: 0 };
            self.outbox.put(header, payload.as_ref().map_or(&[], |bytes| bytes.as_slice()), now);
        }
        Ok(())
    }

    /// Reads and forgets what the front-end says on it: we ask for no answers. False once it has closed it.
    pub(super) fn discard(&self) -> bool {
        let mut scrap = [0u8; 512];
        match recv(&self.socket, &mut scrap, RecvFlags::DONTWAIT) {
            Ok((_, 0)) => false,
            Ok(_) => true,
            Err(e) => matches!(e, rustix::io::Errno::AGAIN | rustix::io::Errno::INTR),
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

/// Takes the lowest bit of a set.
fn take_lowest(bits: &mut u64) -> Option<u32> {
    let lowest = (*bits != 0).then(|| bits.trailing_zeros());
    *bits &= bits.wrapping_sub(1);
    lowest
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;
    use ringway_vhost_user::connection::FrameReader;

    #[test]
    fn front_end_that_never_reads_gets_each_thing_once_when_it_does() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut channel = Channel::new(ours.into()).unwrap();
        let now = Instant::now();
        let mut rounds = 0;
        while {
            channel.config_changed();
            channel.flush(now).unwrap();
            !channel.wants_out()
        } {
            rounds += 1;
            assert!(rounds < 1_000_000, "the socket never filled");
        }
        for _ in 0..1000 {
            channel.config_changed();
            channel.call(63);
            channel.ring_errors(1 << 0);
            channel.flush(now).unwrap();
        }
        let mut reader = FrameReader::default();
        let mut seen = [0; 6];
        while channel.wants_out() || seen.iter().sum::<u32>() < rounds + 3 {
            while let Some(frame) = reader.read(&theirs, now).unwrap() {
                seen[frame.header.request as usize] += 1;
            }
            channel.flush(now).unwrap();
        }
        let calls = seen[BackendRequest::VringCall as usize];
        assert_eq!((calls, seen[BackendRequest::VringErr as usize]), (1, 1));
        assert!(seen[BackendRequest::ConfigChange as usize] <= rounds + 2);
    }

    #[test]
    fn descriptor_that_is_no_stream_socket_is_refused() {
        let file = rustix::fs::memfd_create("channel", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        assert!(Channel::new(file).is_err());
        let (one, _other) = std::os::unix::net::UnixDatagram::pair().unwrap();
        assert!(Channel::new(one.into()).is_err());
    }

    #[test]
    fn closed_channel_is_noticed() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let channel = Channel::new(ours.into()).unwrap();
        assert!(channel.discard());
        drop(theirs);
        assert!(!channel.discard());
    }
}
