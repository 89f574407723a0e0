//! TCP between two real stacks of the kernel's: one of the host, and one that stands for the guest's, whose NIC is the
//! [`Forwarder`]. Both are namespaces, so that nothing of it reaches the machine's own network.
//!
//! A round is one connection: it is opened, warms up, is measured at its receiver, ends, and what came is compared byte by byte
//! with what belongs there.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use super::bed::{Bed, GUEST_ADDRESS, HOST_ADDRESS, Who, open_tap};
use super::forward::Forwarder;
use super::namespace::Namespace;
use super::pattern::{LONGEST, Pattern};
use super::round::{Books, Measured, Round, ended};
use super::{Direction, Setup, port};
use crate::error::BenchError;
use crate::host;

/// Both stacks, and what is between them.
pub(crate) struct Tcp {
    // Before the bed: what it is connected to ends last.
    forwarder: Forwarder,
    guest: Namespace,
    pub(crate) bed: Bed,
    pattern: Pattern,
    /// Of the guest's socket and of the host's.
    cores: [usize; 2],
    /// The forwarder polls during a round.
    polls: bool,
}

impl Tcp {
    /// Makes both stacks and joins them.
    ///
    /// # Errors
    /// What is needed is not here, or not allowed.
    pub(crate) fn new(who: Who, setup: &Setup) -> Result<Tcp, BenchError> {
        let (bed, wire) = Bed::new(who, setup, true)?;
        let guest = Namespace::new()?;
        let stack = guest.within(|| open_tap(GUEST_TAP, setup.mtu, true))?;
        guest.ip(&format!("addr add {GUEST_ADDRESS}/24 dev {GUEST_TAP}"))?;
        let forwarder = Forwarder::start(stack, wire, bed.wire_core)?;
        let polls = bed.is_plain() && setup.idle == "poll";
        let cores = [setup.guest_core(), setup.host_core()];
        Ok(Tcp { forwarder, guest, bed, pattern: Pattern::new(), cores, polls })
    }

    /// A connection that is measured for `span`.
    ///
    /// # Errors
    /// It could not be made, or broke.
    pub(crate) fn round(&mut self, direction: Direction, span: Duration) -> Result<Round, BenchError> {
        self.forwarder.poll(self.polls);
        let round = self.transfer(direction, span);
        self.forwarder.poll(false);
        // What ended it says more than what its end did to the connection.
        match self.forwarder.ended() {
            Some(why) => Err(why),
            None => round,
        }
    }

    fn transfer(&mut self, direction: Direction, span: Duration) -> Result<Round, BenchError> {
        let Tcp { guest, bed, pattern, cores, .. } = self;
        let [guest_core, host_core] = *cores;
        let Bed { host, counter, .. } = bed;
        let stop = AtomicBool::new(false);
        let came = AtomicU64::new(0);
        let (tell, told) = mpsc::channel();
        // In the order of the data: its source's namespace, then its destination's.
        let ends = match direction {
            Direction::ToHost => ((&*guest, guest_core), (&*host, host_core), HOST_ADDRESS),
            Direction::ToGuest => ((&*host, host_core), (&*guest, guest_core), GUEST_ADDRESS),
        };
        let ((from, from_core), (to, to_core), address) = ends;
        thread::scope(|scope| {
            let (stop, came, pattern) = (&stop, &came, &*pattern);
            let receiver = scope.spawn(move || {
                host::pin(to_core);
                to.enter()?;
                receive(address, &tell, pattern, came)
            });
            let sender = scope.spawn(move || {
                host::pin(from_core);
                from.enter()?;
                let to = told.recv_timeout(PATIENCE).map_err(|_| stood_still("there is no listener"))?;
                send(to, pattern, stop)
            });
            let measured = Measured::over(span, counter, || {
                let has_ended = receiver.is_finished() || sender.is_finished();
                if has_ended { Err(stood_still("it ended")) } else { Ok(came.load(Ordering::Relaxed)) }
            });
            stop.store(true, Ordering::Relaxed);
            let (received, sent) = (ended(receiver.join()), ended(sender.join()));
            let (Received { bytes, corrupt }, sent) = (received?, sent?);
            let books =
                Books { sent, received: bytes, lost: sent.saturating_sub(bytes), corrupt, out_of_order: 0 };
            Ok(Round::of(measured?, 1, books))
        })
    }

    /// Ends it.
    ///
    /// # Errors
    /// What went wrong at the wire's far side.
    pub(crate) fn leave(self) -> Result<(), BenchError> {
        self.bed.proceed()?;
        self.forwarder.stop()?.stop()
    }
}

struct Received {
    bytes: u64,
    corrupt: u64,
}

/// Takes one connection to its end.
fn receive(
    address: &str,
    tell: &mpsc::Sender<SocketAddr>,
    pattern: &Pattern,
    came: &AtomicU64,
) -> Result<Received, BenchError> {
    let system = |what: &str| BenchError::system(format!("TCP at {address}: {what}"));
    let listener = TcpListener::bind((address, 0)).map_err(system("cannot listen"))?;
    let _ = tell.send(listener.local_addr().map_err(system("cannot listen"))?);
    listener.set_nonblocking(true).map_err(system("cannot listen"))?;
    port::wait(&[listener.as_fd()], PATIENCE)?;
    let (mut stream, _) = listener.accept().map_err(system("nobody connected"))?;
    stream.set_nonblocking(false).map_err(system("cannot receive"))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(system("cannot receive"))?;
    let mut buffer = vec![0; LONGEST];
    let (mut bytes, mut corrupt) = (0, 0);
    loop {
        let len = match stream.read(&mut buffer) {
            Ok(0) => return Ok(Received { bytes, corrupt }),
            Ok(len) => len,
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Err(error) => return Err(system("cannot receive")(error)),
        };
        corrupt += pattern.differing(bytes, buffer.get(..len).unwrap_or_default());
        bytes += len as u64;
        came.store(bytes, Ordering::Relaxed);
    }
}

/// Sends until it is told to stop, and waits for the other end to have it all; returns how much it was.
fn send(to: SocketAddr, pattern: &Pattern, stop: &AtomicBool) -> Result<u64, BenchError> {
    let system = |what: &str| BenchError::system(format!("TCP to {to}: {what}"));
    let mut stream = TcpStream::connect_timeout(&to, PATIENCE).map_err(system("cannot connect"))?;
    stream.set_write_timeout(Some(PATIENCE)).map_err(system("cannot send"))?;
    stream.set_read_timeout(Some(PATIENCE)).map_err(system("cannot send"))?;
    let mut sent = 0;
    while !stop.load(Ordering::Relaxed) {
        match stream.write(pattern.at(sent, LONGEST)) {
            Ok(len) => sent += len as u64,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(system("cannot send")(error)),
        }
    }
    stream.shutdown(std::net::Shutdown::Write).map_err(system("cannot end"))?;
    // The other end closes once it has read all.
    match stream.read(&mut [0; 1]) {
        Ok(0) => Ok(sent),
        Ok(_) => Err(stood_still("its receiver sends")),
        Err(error) => Err(system("the end was not acknowledged")(error)),
    }
}

fn stood_still(what: &str) -> BenchError {
    BenchError::Peer { peer: "the TCP connection".to_owned(), what: what.to_owned() }
}

/// The guest's NIC.
const GUEST_TAP: &str = "eth0";

/// A connection that stands still for longer is broken.
const PATIENCE: Duration = Duration::from_secs(10);
