//! Kick, call and error descriptors of a queue: eventfds that a front-end passed.
//!
//! A kick is never read: the workers' epoll is edge-triggered. A call is one 8-byte write, made only when the driver
//! asked for it. A peer can fill its eventfd and make it block the writer at any time: such a write is ended by
//! [`crate::interrupt`], and from then on a [`CallGate`] keeps workers from the calls of that connection, and for a while
//! from all others: its sessions make them.

use std::cell::Cell;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;

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
            let fd = EventFd(fd);
            // No honest peer blocks on the other end of a kick or a call; a hostile one can take this back.
            fd.unblock()?;
            Ok(fd)
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

    /// Signals a peer. False: the write blocked, and was ended by [`crate::interrupt`]. A full counter that does not block
    /// already means "signalled".
    #[inline]
    #[must_use]
    pub fn call(&self) -> bool {
        rustix::io::write(&self.0, &1u64.to_ne_bytes()) != Err(rustix::io::Errno::INTR)
    }

    /// Makes it non-blocking. True: it was not.
    fn unblock(&self) -> io::Result<bool> {
        let flags = rustix::fs::fcntl_getfl(&self.0)?;
        let blocks = !flags.contains(OFlags::NONBLOCK);
        if blocks {
            rustix::fs::fcntl_setfl(&self.0, flags | OFlags::NONBLOCK)?;
        }
        Ok(blocks)
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

/// The call descriptor of a queue. Workers make the calls, or leave them to the session.
#[derive(Debug)]
pub struct CallFd {
    fd: EventFd,
    /// None: the descriptor is our own, and cannot block.
    gate: Option<Arc<CallGate>>,
    /// A worker left a call to the session, which has not made it yet.
    owed: AtomicBool,
}

impl CallFd {
    /// A descriptor of our own, which the session reads.
    pub fn own(fd: EventFd) -> CallFd {
        CallFd { fd, gate: None, owed: AtomicBool::new(false) }
    }

    /// A descriptor of the peer whose connection has this gate.
    pub fn of_peer(fd: EventFd, gate: &Arc<CallGate>) -> CallFd {
        CallFd { fd, gate: Some(Arc::clone(gate)), owed: AtomicBool::new(false) }
    }

    /// The descriptor.
    pub fn event(&self) -> &EventFd {
        &self.fd
    }

    /// Calls the driver from a worker, or has its session do so. False: the write blocked, and was ended.
    #[inline]
    #[must_use]
    pub fn call(&self) -> bool {
        match &self.gate {
            None => self.fd.call(),
            Some(gate) if gate.is_shut() => {
                self.owe();
                true
            }
            Some(gate) => {
                let is_made = self.fd.call();
                if !is_made {
                    gate.has_blocked();
                }
                is_made
            }
        }
    }

    /// Leaves a call to the session, and wakes it.
    #[cold]
    pub fn owe(&self) {
        // Release: pairs with the Acquire in `take_owed`, so that what was published is before the call is made. Where one is
        // owed already, the session was woken or is about to be, and takes this one with it.
        if !self.owed.swap(true, Ordering::AcqRel)
            && let Some(gate) = &self.gate
        {
            gate.attention.signal();
        }
    }

    /// The session's own: leaves a call to a later look of its.
    pub fn put_off(&self) {
        self.owed.store(true, Ordering::Release);
    }

    /// True, once, if a worker left a call to the session, or it put one off.
    pub fn take_owed(&self) -> bool {
        self.owed.load(Ordering::Relaxed) && self.owed.swap(false, Ordering::AcqRel)
    }

    /// Calls the driver from the session, as [`crate::interrupt::as_writer`]. False: the write blocked, and was ended.
    #[must_use]
    pub fn call_as_session(&self) -> bool {
        // Workers never call again whoever has taken NONBLOCK back: it would block the next one.
        if let Some(gate) = &self.gate
            && self.fd.unblock().unwrap_or(true)
        {
            gate.shut();
        }
        self.fd.call()
    }
}

/// What the calls of one connection have in common. Once one of them has blocked a worker, workers make none of them any
/// more: the session does, which nobody else waits for. So a connection holds a core once, however many descriptors it has;
/// and since a worker that was blocked makes no calls at all for a while, several connections hold it no longer together.
#[derive(Debug)]
pub struct CallGate {
    shut: AtomicBool,
    /// Wakes the session.
    attention: Arc<EventFd>,
}

thread_local! {
    /// Of a worker that a call has blocked: until when it leaves all calls to the sessions.
    static PAUSES_UNTIL: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// How long a worker that a call has blocked leaves all calls to the sessions: ten times as long as it was blocked, within
/// which the sessions find the other descriptors that would block.
const CALL_PAUSE: Duration = Duration::from_millis(100);

impl CallGate {
    /// Open. `attention` is signalled when the session has calls to make.
    pub fn new(attention: Arc<EventFd>) -> Arc<CallGate> {
        Arc::new(CallGate { shut: AtomicBool::new(false), attention })
    }

    /// True if this thread must leave the connection's calls to the session.
    #[inline]
    fn is_shut(&self) -> bool {
        // Relaxed: it publishes nothing else; a worker that sees it late blocks once more.
        self.shut.load(Ordering::Relaxed) || (PAUSES_UNTIL.get().is_some() && pauses())
    }

    fn shut(&self) {
        self.shut.store(true, Ordering::Relaxed);
    }

    /// A call of this connection has blocked this thread.
    #[cold]
    fn has_blocked(&self) {
        self.shut();
        PAUSES_UNTIL.set(Some(Instant::now() + CALL_PAUSE));
    }
}

/// True until the pause of this thread is over.
#[cold]
fn pauses() -> bool {
    let left = PAUSES_UNTIL.get().filter(|until| Instant::now() < *until);
    PAUSES_UNTIL.set(left);
    left.is_some()
}

#[cfg(test)]
mod tests {
    use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

    use super::*;
    use crate::interrupt::Interrupter;

    /// A call descriptor that is full and blocks, and the peer's copy of it.
    fn full(gate: &Arc<CallGate>) -> (CallFd, OwnedFd) {
        let fd: OwnedFd = eventfd(0, EventfdFlags::empty()).unwrap();
        let peer = fd.try_clone().unwrap();
        rustix::io::write(&peer, &(u64::MAX - 1).to_ne_bytes()).unwrap();
        let call = CallFd::of_peer(EventFd::from_peer(fd).unwrap(), gate);
        rustix::fs::fcntl_setfl(&peer, OFlags::RDWR).unwrap();
        (call, peer)
    }

    /// Runs `work` on a thread of its own and interrupts what blocks it there; returns how often it was blocked at all.
    fn interrupted(work: impl FnOnce() -> u32 + Send) -> u32 {
        let interrupter = Interrupter::install().unwrap();
        std::thread::scope(|scope| {
            let (sender, receiver) = std::sync::mpsc::channel();
            let worker = scope.spawn(move || {
                sender.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
                work()
            });
            let tid = receiver.recv().unwrap();
            while !worker.is_finished() {
                interrupter.interrupt(tid);
                std::thread::sleep(Duration::from_millis(1));
            }
            worker.join().unwrap()
        })
    }

    fn gate() -> Arc<CallGate> {
        CallGate::new(Arc::new(EventFd::new().unwrap()))
    }

    #[test]
    fn connection_blocks_a_worker_once_and_the_rest_is_owed() {
        let gate = gate();
        let calls: Vec<_> = (0..32).map(|_| full(&gate)).collect();
        let blocked = interrupted(|| calls.iter().map(|(call, _)| u32::from(!call.call())).sum());
        assert_eq!(blocked, 1);
        assert!(!calls[0].0.take_owed(), "it was made and blocked");
        assert!(calls[1..].iter().all(|(call, _)| call.take_owed()));
        assert!(calls[1..].iter().all(|(call, _)| !call.take_owed()), "once each");
        assert!(gate.attention.clear(), "the session is woken");
        // On every other worker too, and for good.
        let call = CallFd::of_peer(EventFd::new().unwrap(), &gate);
        assert!(call.call() && call.take_owed());
    }

    #[test]
    fn several_connections_block_a_worker_no_longer_than_one() {
        let gates: Vec<_> = (0..8).map(|_| gate()).collect();
        let calls: Vec<_> = gates.iter().flat_map(|gate| (0..32).map(|_| full(gate))).collect();
        let innocent = CallFd::of_peer(EventFd::new().unwrap(), &self::gate());
        let (mut blocked, mut pauses) = (0, 0);
        interrupted(|| {
            let begun = Instant::now();
            for (call, _) in &calls {
                blocked += u32::from(!call.call());
                assert!(innocent.call());
            }
            // One more a pause, if this thread had no processor for as long.
            pauses = 1 + (begun.elapsed().as_millis() / CALL_PAUSE.as_millis()) as u32;
            blocked
        });
        assert!((1..=pauses).contains(&blocked), "{blocked} in {pauses} pauses");
        assert!(innocent.take_owed(), "its call is not lost");
        assert!(innocent.gate.as_ref().unwrap().attention.clear());
    }

    #[test]
    fn pause_ends_and_calls_are_made_by_the_worker_again() {
        let gate = gate();
        let hostile = full(&self::gate());
        let call = CallFd::of_peer(EventFd::new().unwrap(), &gate);
        let blocked = interrupted(|| {
            let blocked = u32::from(!hostile.0.call());
            std::thread::sleep(CALL_PAUSE);
            assert!(call.call() && !call.take_owed() && call.event().clear());
            assert!(PAUSES_UNTIL.get().is_none(), "and no clock is asked any more");
            blocked
        });
        assert_eq!(blocked, 1);
    }

    #[test]
    fn session_finds_a_descriptor_that_would_block_and_no_worker_calls_it_again() {
        let gate = gate();
        let (call, peer) = full(&gate);
        // Nobody interrupts: it does not block.
        assert!(call.call_as_session());
        assert!(rustix::fs::fcntl_getfl(&peer).unwrap().contains(OFlags::NONBLOCK));
        assert!(gate.is_shut());
        // An honest one stays with its worker.
        let gate = self::gate();
        let call = CallFd::of_peer(EventFd::new().unwrap(), &gate);
        assert!(call.call_as_session() && call.event().clear() && !gate.is_shut());
    }

    #[test]
    fn no_call_is_lost_between_a_worker_and_its_session() {
        const CALLS: u64 = 20_000;
        let gate = gate();
        gate.shut();
        let call = CallFd::of_peer(EventFd::new().unwrap(), &gate);
        let published = std::sync::atomic::AtomicU64::new(0);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for n in 1..=CALLS {
                    published.store(n, Ordering::Relaxed);
                    assert!(call.call());
                    // So that the session is at every place of its loop.
                    (0..n % 64).for_each(|_| std::hint::spin_loop());
                }
            });
            // As a session does: sleep until it is woken, reset, look. What was published before a call is seen with it.
            let mut seen = 0;
            while seen < CALLS {
                let mut fds = [PollFd::new(&*gate.attention, PollFlags::IN)];
                let within = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
                assert_eq!(poll(&mut fds, Some(&within)), Ok(1), "lost after {seen}");
                gate.attention.clear();
                if call.take_owed() {
                    seen = published.load(Ordering::Relaxed);
                }
            }
        });
    }
}
