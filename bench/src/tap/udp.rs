//! UDP without offloads between a socket of the host and a guest that is a generator: its frames are made and checked here as a
//! whole, and go over the wire without a stack before it.
//!
//! As many datagrams are under way as find room everywhere, so that what is lost is lost by who moves them. Those that do not
//! come are given up after a while, and told.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use ringway_guest::ledger::Ledger;

use super::bed::{Bed, GUEST_ADDRESS, HOST_ADDRESS, HOST_TAP, Who};
use super::datagram::{Flow, Found, Frames};
use super::pattern::Pattern;
use super::port;
use super::round::{Books, Measured, Round, ended};
use super::wire::Wire;
use super::{Direction, Setup};
use crate::error::BenchError;
use crate::host;

/// Both ends, and what is between them.
pub(crate) struct Udp {
    // Before the bed: what it is connected to ends last.
    wire: Wire,
    pub(crate) bed: Bed,
    socket: UdpSocket,
    pattern: Pattern,
    flow: Flow,
    /// The next number each way.
    next: [u64; 2],
    /// The wire's end sleeps when nothing comes, in place of polling.
    sleeps: bool,
    host_core: usize,
}

/// What both ends of a flow know of each other.
#[derive(Debug, Default)]
struct Way {
    stop: AtomicBool,
    /// All was sent that will be: this many.
    sent: AtomicU64,
    /// The source has ended.
    ended: AtomicBool,
    /// Came, whichever way.
    came: AtomicU64,
    /// Came intact, each once.
    intact: AtomicU64,
}

impl Udp {
    /// Makes both ends.
    ///
    /// # Errors
    /// What is needed is not here, or not allowed.
    pub(crate) fn new(who: Who, setup: &Setup) -> Result<Udp, BenchError> {
        let (bed, wire) = Bed::new(who, setup, false)?;
        let system = |what: &str| BenchError::system(format!("UDP at {HOST_ADDRESS}: {what}"));
        bed.host.ip(&format!(
            "neigh replace {GUEST_ADDRESS} lladdr {GUEST_MAC_TEXT} dev {HOST_TAP} nud permanent"
        ))?;
        let socket = bed.host.within(|| {
            let socket = UdpSocket::bind((HOST_ADDRESS, HOST_PORT)).map_err(system("cannot bind"))?;
            socket.connect((GUEST_ADDRESS, GUEST_PORT)).map_err(system("cannot connect"))?;
            Ok(socket)
        })?;
        socket.set_read_timeout(Some(TICK)).map_err(system("cannot receive"))?;
        // Room for all that is under way, if the kernel lets it be.
        let _ = rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, SOCKET_BYTES)
            .or_else(|_| rustix::net::sockopt::set_socket_recv_buffer_size(&socket, SOCKET_BYTES));
        let flow = Flow {
            macs: [GUEST_MAC, bed.host.mac(HOST_TAP)?],
            addresses: [[10, 77, 0, 2], [10, 77, 0, 1]],
            ports: [GUEST_PORT, HOST_PORT],
        };
        let sleeps = setup.idle != "poll";
        let host_core = setup.host_core();
        Ok(Udp { wire, bed, socket, pattern: Pattern::new(), flow, next: [0; 2], sleeps, host_core })
    }

    /// Datagrams in frames of `size` bytes for `span`.
    ///
    /// # Errors
    /// An end broke.
    pub(crate) fn round(
        &mut self,
        direction: Direction,
        size: u16,
        span: Duration,
    ) -> Result<Round, BenchError> {
        let Udp { wire, bed, socket, pattern, flow, next, sleeps, host_core } = self;
        let Bed { counter, wire_core, .. } = bed;
        let mut frames = Frames::new(*flow, size, pattern);
        let bytes = frames.size();
        let way = Way::default();
        let [to_host, to_guest] = next;
        thread::scope(|scope| {
            let way = &way;
            let pattern = &*pattern;
            let ends = match direction {
                Direction::ToHost => {
                    let theirs = Frames::new(*flow, size, pattern);
                    let first = *to_host;
                    let receiver = scope.spawn(move || {
                        host::pin(*host_core);
                        take_of_socket(socket, first, &theirs, pattern, way)
                    });
                    let sender = scope.spawn(move || {
                        host::pin(*wire_core);
                        give_to_wire(wire, to_host, &mut frames, way)
                    });
                    (receiver, sender)
                }
                Direction::ToGuest => {
                    let first = *to_guest;
                    let theirs = Frames::new(*flow, size, pattern);
                    let receiver = scope.spawn(move || {
                        host::pin(*wire_core);
                        take_of_wire(wire, first, &theirs, pattern, *sleeps, way)
                    });
                    let sender = scope.spawn(move || {
                        host::pin(*host_core);
                        give_to_socket(socket, to_guest, &mut frames, way)
                    });
                    (receiver, sender)
                }
            };
            let (receiver, sender) = ends;
            let measured = Measured::over(span, counter, || {
                if receiver.is_finished() || sender.is_finished() {
                    let what = "an end of the flow ended".to_owned();
                    return Err(BenchError::Peer { peer: "UDP".to_owned(), what });
                }
                Ok(way.intact.load(Ordering::Relaxed))
            });
            way.stop.store(true, Ordering::Relaxed);
            let sent = ended(sender.join());
            // Whatever ended it: the receiver waits for no more than there is.
            way.ended.store(true, Ordering::Release);
            let books = ended(receiver.join());
            let (sent, books) = (sent?, books?);
            let lost = sent.saturating_sub(books.received);
            Ok(Round::of(measured?, bytes, Books { sent, lost, ..books }))
        })
    }

    /// Ends it.
    ///
    /// # Errors
    /// What went wrong at the wire's far side.
    pub(crate) fn leave(self) -> Result<(), BenchError> {
        self.bed.proceed()?;
        self.wire.stop()
    }
}

/// What a source may send.
struct Window {
    sent: u64,
    given_up: u64,
    came: u64,
    since: Instant,
}

impl Window {
    fn new() -> Window {
        Window { sent: 0, given_up: 0, came: 0, since: Instant::now() }
    }

    /// Datagrams that may be sent now.
    fn room(&mut self, way: &Way) -> u64 {
        let came = way.came.load(Ordering::Relaxed);
        if came != self.came {
            (self.came, self.since) = (came, Instant::now());
        }
        let under_way = self.sent.saturating_sub(came + self.given_up);
        if under_way >= UNDER_WAY && self.since.elapsed() > GIVE_UP {
            self.given_up += under_way;
            self.since = Instant::now();
        }
        UNDER_WAY.saturating_sub(under_way)
    }
}

/// Sends frames over the wire; returns how many.
fn give_to_wire(wire: &mut Wire, next: &mut u64, frames: &mut Frames, way: &Way) -> Result<u64, BenchError> {
    let mut window = Window::new();
    while !way.stop.load(Ordering::Relaxed) {
        let mut sent = 0;
        for _ in 0..window.room(way).min(BURST) {
            if !wire.send(frames.make(*next))? {
                break;
            }
            *next += 1;
            sent += 1;
        }
        window.sent += sent;
        // What the host's kernel says unasked makes room for itself.
        while wire.receive()?.is_some() {}
        wire.flush();
        if sent == 0 {
            thread::yield_now();
        }
    }
    way.sent.store(window.sent, Ordering::Relaxed);
    Ok(window.sent)
}

/// Sends datagrams from the host's socket; returns how many.
fn give_to_socket(
    socket: &UdpSocket,
    next: &mut u64,
    frames: &mut Frames,
    way: &Way,
) -> Result<u64, BenchError> {
    let mut window = Window::new();
    while !way.stop.load(Ordering::Relaxed) {
        let room = window.room(way).min(BURST);
        for _ in 0..room {
            match socket.send(frames.payload(*next)) {
                Ok(_) => {
                    *next += 1;
                    window.sent += 1;
                }
                // The kernel has no room now.
                Err(error) if is_passing(&error) => break,
                Err(error) => return Err(BenchError::system("cannot send a datagram")(error)),
            }
        }
        if room == 0 {
            thread::yield_now();
        }
    }
    way.sent.store(window.sent, Ordering::Relaxed);
    Ok(window.sent)
}

fn is_passing(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{Interrupted, TimedOut, WouldBlock};
    matches!(error.kind(), WouldBlock | TimedOut | Interrupted)
        || error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error())
}

/// What comes of a round, each entered where it belongs.
struct Entered {
    ledger: Ledger,
    first: u64,
    corrupt: u64,
}

impl Entered {
    fn new(first: u64) -> Entered {
        Entered { ledger: Ledger::default(), first, corrupt: 0 }
    }

    fn enter(&mut self, found: Found, way: &Way) {
        match found {
            Found::Other => return,
            Found::Corrupt => self.corrupt += 1,
            // Late ones of the round before were given up there.
            Found::Intact(sequence) if sequence < self.first => return,
            Found::Intact(sequence) => {
                self.ledger.enter(sequence - self.first);
                way.intact.store(self.ledger.unique, Ordering::Relaxed);
            }
        }
        way.came.fetch_add(1, Ordering::Relaxed);
    }

    /// All that was sent is accounted for.
    fn is_complete(&self, way: &Way) -> bool {
        self.ledger.unique + self.corrupt >= way.sent.load(Ordering::Relaxed)
    }

    fn books(&self) -> Books {
        let Ledger { unique, reordered, duplicated, stale, .. } = self.ledger;
        let (received, out_of_order) = (unique, reordered + duplicated + stale);
        Books { received, corrupt: self.corrupt, out_of_order, ..Books::default() }
    }
}

/// Whether a receiver goes on: until the source has ended and all is there, or nothing came for a while.
struct Patience {
    quiet_since: Instant,
}

impl Patience {
    fn new() -> Patience {
        Patience { quiet_since: Instant::now() }
    }

    fn came(&mut self) {
        self.quiet_since = Instant::now();
    }

    fn is_over(&self, entered: &Entered, way: &Way) -> bool {
        way.ended.load(Ordering::Acquire)
            && (entered.is_complete(way) || self.quiet_since.elapsed() > GIVE_UP)
    }
}

/// Takes what comes to the host's socket.
fn take_of_socket(
    socket: &UdpSocket,
    first: u64,
    frames: &Frames,
    pattern: &Pattern,
    way: &Way,
) -> Result<Books, BenchError> {
    let mut buffer = vec![0; 1 << 16];
    let (mut entered, mut patience) = (Entered::new(first), Patience::new());
    loop {
        match socket.recv(&mut buffer) {
            Ok(len) => {
                let payload = buffer.get(..len).unwrap_or_default();
                entered.enter(frames.check_payload(payload, pattern), way);
                patience.came();
            }
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(BenchError::system("cannot receive a datagram")(error)),
        }
        if patience.is_over(&entered, way) {
            return Ok(entered.books());
        }
    }
}

/// Takes what comes over the wire.
fn take_of_wire(
    wire: &mut Wire,
    first: u64,
    frames: &Frames,
    pattern: &Pattern,
    sleeps: bool,
    way: &Way,
) -> Result<Books, BenchError> {
    let (mut entered, mut patience) = (Entered::new(first), Patience::new());
    loop {
        let mut came = 0;
        while came < BURST
            && let Some(frame) = wire.receive()?
        {
            entered.enter(frames.check(frame, pattern), way);
            came += 1;
        }
        wire.flush();
        if came > 0 {
            patience.came();
            continue;
        }
        if patience.is_over(&entered, way) {
            return Ok(entered.books());
        }
        if sleeps {
            if !wire.arm() {
                port::wait(&wire.wakers(), TICK)?;
            }
            wire.disarm();
        } else {
            thread::yield_now();
        }
    }
}

/// Datagrams under way at most: as many as half of a ring.
const UNDER_WAY: u64 = port::ENTRIES as u64 / 2;

/// Sent or taken before anything else is looked at.
const BURST: u64 = 32;

/// What did not come for so long is lost.
const GIVE_UP: Duration = Duration::from_millis(500);

/// A receiver looks up after so long.
const TICK: Duration = Duration::from_millis(10);

/// Room in the host's socket, in bytes.
const SOCKET_BYTES: usize = 4 << 20;

const HOST_PORT: u16 = 7700;
const GUEST_PORT: u16 = 7701;

/// The generator's Ethernet address: a local one.
const GUEST_MAC: [u8; 6] = [0x52, 0x57, 0x00, 0x74, 0x61, 0x70];
const GUEST_MAC_TEXT: &str = "52:57:00:74:61:70";
