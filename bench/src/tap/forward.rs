//! The NIC of a guest whose network stack is a namespace of the host's: a thread that moves frames between the stack's TAP and
//! the wire, both ways, and sleeps when there are none, as a driver does that waits for its interrupt.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ringway_pmd::notify::EventFd;
use rustix::io::Errno;

use super::port::{self, TX_BYTES};
use super::wire::Wire;
use crate::error::BenchError;
use crate::host;

/// A running one. Ends when it is stopped or dropped.
pub(crate) struct Forwarder {
    thread: Option<JoinHandle<Result<Wire, BenchError>>>,
    shared: Arc<Shared>,
}

struct Shared {
    stop: AtomicBool,
    /// It does not sleep.
    polls: AtomicBool,
    wake: EventFd,
}

impl Forwarder {
    /// Starts it on a core, between a guest's TAP and the wire.
    ///
    /// # Errors
    /// There is no thread or descriptor.
    pub(crate) fn start(stack: OwnedFd, wire: Wire, core: usize) -> Result<Forwarder, BenchError> {
        let wake = EventFd::new().map_err(BenchError::system("cannot make an eventfd"))?;
        let shared = Arc::new(Shared { stop: AtomicBool::new(false), polls: AtomicBool::new(false), wake });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("bench-nic".to_owned())
            .spawn(move || {
                host::pin(core);
                forward(&stack, wire, &theirs)
            })
            .map_err(BenchError::system("cannot start a thread"))?;
        Ok(Forwarder { thread: Some(thread), shared })
    }

    /// Whether it polls instead of sleeping.
    pub(crate) fn poll(&self, polls: bool) {
        self.shared.polls.store(polls, Ordering::Relaxed);
        self.shared.wake.signal();
    }

    /// Why it has ended by itself, once it has.
    pub(crate) fn ended(&mut self) -> Option<BenchError> {
        self.thread.take_if(|thread| thread.is_finished())?.join().ok()?.err()
    }

    /// Ends it; returns the wire.
    ///
    /// # Errors
    /// What ended it before.
    pub(crate) fn stop(mut self) -> Result<Wire, BenchError> {
        self.tell();
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(ended)) => ended,
            _ => Err(BenchError::Usage("bug: the forwarder panicked".to_owned())),
        }
    }

    fn tell(&self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.wake.signal();
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.tell();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn forward(stack: &OwnedFd, mut wire: Wire, shared: &Shared) -> Result<Wire, BenchError> {
    let mut frame = vec![0; TX_BYTES as usize];
    // Read and not yet sent, for want of room.
    let mut waiting = None;
    while !shared.stop.load(Ordering::Relaxed) {
        let mut moved = 0;
        while moved < BURST {
            let len = match waiting.take() {
                Some(len) => len,
                None => match rustix::io::read(stack, frame.as_mut_slice()) {
                    Ok(len) => len,
                    Err(Errno::AGAIN | Errno::INTR) => break,
                    Err(errno) => {
                        return Err(BenchError::system("cannot read the guest's TAP")(errno.into()));
                    }
                },
            };
            if !wire.send(frame.get(..len).unwrap_or_default())? {
                waiting = Some(len);
                break;
            }
            moved += 1;
        }
        wire.flush();
        let mut came = 0;
        while came < BURST
            && let Some(frame) = wire.receive()?
        {
            came += 1;
            match rustix::io::write(stack, frame) {
                // What the stack refuses is lost, as on a NIC; TCP sends it again, and the books tell of datagrams.
                Ok(_) | Err(Errno::AGAIN | Errno::NOBUFS | Errno::INVAL) => {}
                Err(errno) => {
                    return Err(BenchError::system("cannot write to the guest's TAP")(errno.into()));
                }
            }
        }
        wire.flush();
        if moved + came > 0 || shared.polls.load(Ordering::Relaxed) {
            continue;
        }
        if !wire.arm() {
            let mut fds = wire.wakers();
            fds.push(shared.wake.as_fd());
            // A frame that waits for room must not have the stack's others wake it again and again.
            if waiting.is_none() {
                fds.push(stack.as_fd());
            }
            port::wait(&fds, LONGEST_SLEEP)?;
            shared.wake.clear();
        }
        wire.disarm();
    }
    Ok(wire)
}

/// Frames in one direction before the other has its turn.
const BURST: u32 = 64;

/// It looks again after so long, come what may.
const LONGEST_SLEEP: Duration = Duration::from_millis(20);
