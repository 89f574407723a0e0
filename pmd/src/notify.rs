//! Kick, call and error descriptors of a queue: eventfds that a front-end passed.
//!
//! A kick is never read: the workers' epoll is edge-triggered. A call is one 8-byte write, made only when the driver
//! asked for it. A peer can fill its eventfd and make it block the writer at any time: such a write is ended by
//! [`crate::interrupt`].

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// An eventfd that was checked to be one.
#[derive(Debug)]
pub struct EventFd(OwnedFd);

impl EventFd {
    /// A new eventfd of our own, non-blocking.
    pub fn new() -> io::Result<EventFd> {
        use rustix::event::{EventfdFlags, eventfd};
        Ok(EventFd(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?))
    }

    /// Takes a descriptor from a peer; refuses it unless it is an eventfd.
    pub fn from_peer(fd: OwnedFd) -> io::Result<EventFd> {
        use std::os::fd::AsRawFd;
        let link = rustix::fs::readlink(format!("/proc/self/fd/{}", fd.as_raw_fd()), Vec::new())?;
        if link.as_bytes() == b"anon_inode:[eventfd]" {
            // No honest peer blocks on the other end of a kick or a call; a hostile one can take this back.
            let flags = rustix::fs::fcntl_getfl(&fd)?;
            rustix::fs::fcntl_setfl(&fd, flags | rustix::fs::OFlags::NONBLOCK)?;
            Ok(EventFd(fd))
        } else {
            Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!("descriptor is {}, not an eventfd", link.to_string_lossy()),
            ))
        }
    }

    /// Signals it. Errors are the peer's doing (a full counter on a non-blocking descriptor already means
    /// "signalled") and are told, not handled.
    #[inline]
    pub fn signal(&self) -> bool {
        rustix::io::write(&self.0, &1u64.to_ne_bytes()).is_ok()
    }

    /// Signals a peer from a worker. False: the write blocked, and was ended by [`crate::interrupt`]. A full counter that
    /// does not block already means "signalled".
    #[inline]
    #[must_use]
    pub fn call(&self) -> bool {
        rustix::io::write(&self.0, &1u64.to_ne_bytes()) != Err(rustix::io::Errno::INTR)
    }

    /// Resets it, for descriptors of our own. Returns whether it had been signalled.
    pub fn clear(&self) -> bool {
        rustix::io::read(&self.0, &mut [0u8; 8]).is_ok()
    }
}

impl AsFd for EventFd {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
