//! Ends a worker's write to a peer's eventfd that blocks.
//!
//! The call descriptor of a queue is the peer's: it can fill the counter and clear `O_NONBLOCK`, and the worker that
//! calls it then hangs, with every other guest on its core. Whoever watches the workers sends such a thread a signal,
//! whose handler does nothing and restarts nothing, so that the write ends with `EINTR` and the ring is faulted. It does not
//! happen again: see [`crate::notify::CallGate`].
//!
//! Threads that are no workers write to a peer's eventfd too (its error descriptor, calls that are owed): they enter themselves as writers for
//! as long, with [`as_writer`].

use std::io;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI32, Ordering};

/// How many threads may write as [`as_writer`] at once.
pub const WRITERS: usize = 64;

/// The threads that are in [`as_writer`]; 0 where there is none.
static IN_WRITE: [AtomicI32; WRITERS] = [const { AtomicI32::new(0) }; WRITERS];

/// Runs `write`, which writes to a peer's eventfd, while whoever watches may interrupt it. None, and it was not run: too
/// many threads do so at this moment.
pub fn as_writer<T>(write: impl FnOnce() -> T) -> Option<T> {
    let tid = rustix::thread::gettid().as_raw_nonzero().get();
    let free =
        |slot: &&AtomicI32| slot.compare_exchange(0, tid, Ordering::Relaxed, Ordering::Relaxed).is_ok();
    let slot = IN_WRITE.iter().find(free)?;
    let written = write();
    slot.store(0, Ordering::Relaxed);
    Some(written)
}

/// The threads that are in [`as_writer`] now, each at a place of its own; 0 where there is none.
pub fn writers() -> [i32; WRITERS] {
    std::array::from_fn(|at| IN_WRITE[at].load(Ordering::Relaxed))
}

/// The signal is handled: threads can be interrupted.
#[derive(Debug, Clone, Copy)]
pub struct Interrupter(());

impl Interrupter {
    /// Installs the handler, once in a process. The signal is SIGURG: what it does by default is nothing.
    pub fn install() -> io::Result<Interrupter> {
        static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
        let installed = INSTALLED.get_or_init(|| {
            // SAFETY: an all-zero `sigaction` is valid: no flags, so no restart of system calls, and an empty mask.
            let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
            action.sa_sigaction = ignore as extern "C" fn(libc::c_int) as *const () as usize;
            // SAFETY: the handler has the type that a `sigaction` without SA_SIGINFO demands, lives for ever, and does
            // nothing; no previous action is asked for.
            match unsafe { libc::sigaction(libc::SIGURG, &action, std::ptr::null_mut()) } {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL)),
            }
        });
        installed.map(|()| Interrupter(())).map_err(io::Error::from_raw_os_error)
    }

    /// Interrupts the system call in which a thread of this process waits, if it waits in one. False: there is no such
    /// thread.
    pub fn interrupt(self, tid: i32) -> bool {
        let process = i64::from(rustix::process::getpid().as_raw_nonzero().get());
        // SAFETY: three numbers, no memory. The process is this one, so no other can be hit; a thread id that is not in
        // use any more is an error.
        unsafe { libc::syscall(libc::SYS_tgkill, process, i64::from(tid), i64::from(libc::SIGURG)) == 0 }
    }
}

extern "C" fn ignore(_: libc::c_int) {}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
    use std::time::{Duration, Instant};

    use rustix::event::{EventfdFlags, eventfd};

    use super::*;
    use crate::notify::{CallFd, CallGate, EventFd};

    #[test]
    fn call_that_a_peer_made_block_is_ended_and_told() {
        let interrupter = Interrupter::install().unwrap();
        let fd: OwnedFd = eventfd(0, EventfdFlags::empty()).unwrap();
        let peer = fd.try_clone().unwrap();
        let gate = CallGate::new(Arc::new(EventFd::new().unwrap()));
        let call = Arc::new(CallFd::of_peer(EventFd::from_peer(fd).unwrap(), &gate));
        assert!(call.call(), "an honest one takes it");
        // The counter is full, and the description blocks again.
        rustix::io::write(&peer, &(u64::MAX - 2).to_ne_bytes()).unwrap();
        assert!(call.call(), "full and not blocking means signalled");
        rustix::fs::fcntl_setfl(&peer, rustix::fs::OFlags::RDWR).unwrap();

        let (tid, over) = (Arc::new(AtomicI32::new(0)), Arc::new(AtomicBool::new(false)));
        let writer = {
            let (tid, over) = (Arc::clone(&tid), Arc::clone(&over));
            std::thread::spawn(move || {
                tid.store(rustix::thread::gettid().as_raw_nonzero().get(), Ordering::Release);
                let called = call.call();
                over.store(true, Ordering::Release);
                called
            })
        };
        std::thread::sleep(Duration::from_millis(50));
        assert!(!over.load(Ordering::Acquire), "the write blocks");
        let begun = Instant::now();
        while !over.load(Ordering::Acquire) {
            assert!(begun.elapsed() < Duration::from_secs(10), "the write was not ended");
            interrupter.interrupt(tid.load(Ordering::Acquire));
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(!writer.join().unwrap());
    }

    /// How many writes can be begun one within the other.
    fn writes_at_once() -> usize {
        as_writer(writes_at_once).map_or(0, |more| more + 1)
    }

    // In one test, since both use the same places.
    #[test]
    fn as_many_write_as_can_be_watched() {
        let own = rustix::thread::gettid().as_raw_nonzero().get();
        assert_eq!(as_writer(|| writers().contains(&own)), Some(true));
        assert!(!writers().contains(&own));
        assert_eq!(writes_at_once(), WRITERS);
        assert_eq!(writers(), [0; WRITERS]);
    }

    #[test]
    fn thread_that_is_gone_cannot_be_interrupted() {
        let interrupter = Interrupter::install().unwrap();
        let tid = std::thread::spawn(|| rustix::thread::gettid().as_raw_nonzero().get()).join().unwrap();
        let begun = Instant::now();
        // The kernel reaps it a moment after it was joined.
        while interrupter.interrupt(tid) {
            assert!(begun.elapsed() < Duration::from_secs(10));
        }
    }
}
