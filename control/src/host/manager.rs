//! The service manager that started this process, if one did: what it is told, and the socket that it may have handed over.
//!
//! The protocol is systemd's `sd_notify(3)`: datagrams to the socket that `NOTIFY_SOCKET` names. The watchdog is fed by the
//! control thread alone, from its loop: it says that operators and front-ends are answered. Workers have a watchdog of their
//! own ([`super::watchdog`]).

use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::time::{Duration, Instant};

use crate::fault::Fault;

/// Where to tell the service manager something.
#[derive(Debug, Clone)]
pub(crate) struct Manager {
    address: SocketAddr,
}

impl Manager {
    /// The one that the environment names.
    pub(crate) fn of_environment() -> Option<Manager> {
        let path = std::env::var_os("NOTIFY_SOCKET").filter(|path| !path.is_empty())?;
        let address = match path.to_string_lossy().strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name.as_bytes()),
            None => SocketAddr::from_pathname(&path),
        };
        match address {
            Ok(address) => Some(Manager { address }),
            Err(error) => {
                tracing::warn!(%error, "NOTIFY_SOCKET names no socket");
                None
            }
        }
    }

    /// Tells it. A manager that takes nothing is waited for so long, by a thread that serves nobody.
    pub(crate) fn tell(&self, state: &str, within: Duration) {
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.set_write_timeout(Some(within))?;
            socket.send_to_addr(state.as_bytes(), &self.address)
        });
        if let Err(error) = sent {
            let first = state.lines().next().unwrap_or_default();
            tracing::warn!(%error, "cannot tell the service manager {first}");
        }
    }

    /// What feeds its watchdog, if it has one on this process.
    pub(crate) fn heartbeat(&self) -> Option<Heartbeat> {
        let number = |name: &str| -> Option<u64> { std::env::var(name).ok()?.parse().ok() };
        let of = number("WATCHDOG_PID");
        let limit = Duration::from_micros(number("WATCHDOG_USEC").filter(|limit| *limit > 0)?);
        if of.is_some_and(|pid| pid != u64::from(std::process::id())) {
            return None;
        }
        let socket = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.connect_addr(&self.address)?;
            Ok(socket)
        });
        match socket {
            Ok(socket) => Some(Heartbeat::new(socket, limit)),
            Err(error) => {
                tracing::warn!(%error, "cannot feed the service manager's watchdog");
                None
            }
        }
    }
}

/// Feeds the service manager's watchdog. Whoever holds it has to call [`Heartbeat::beat`] as its loop turns.
#[derive(Debug)]
pub struct Heartbeat {
    socket: UnixDatagram,
    every: Duration,
    next: Instant,
}

impl Heartbeat {
    /// One that is due at once. Three to a limit: two may be late.
    fn new(socket: UnixDatagram, limit: Duration) -> Heartbeat {
        Heartbeat { socket, every: limit / 3, next: Instant::now() }
    }

    /// When the next one is due.
    pub(crate) fn next(&self) -> Instant {
        self.next
    }

    /// Sends one that is due. Never waits: with a manager that takes nothing it is due again a little later.
    pub(crate) fn beat(&mut self, now: Instant) {
        if self.next > now {
            return;
        }
        let sent = self.socket.send(b"WATCHDOG=1");
        let is_full = sent.is_err_and(|error| error.kind() == io::ErrorKind::WouldBlock);
        self.next = now + if is_full { self.every / 8 } else { self.every };
    }
}

/// The listening socket that the service manager handed over (`LISTEN_FDS`): the operator socket. To be asked for once,
/// before there is a second thread.
pub(crate) fn handed_over() -> Result<Option<UnixListener>, Fault> {
    let mut handed = listenfd::ListenFd::from_env();
    if handed.len() == 0 {
        return Ok(None);
    }
    let wrong = |error| {
        Fault::system("the service manager's socket is none to listen on", error)
            .at("LISTEN_FDS")
            .hint("a unit with ListenStream= and a path")
    };
    if handed.len() > 1 {
        return Err(Fault::usage(format!("{} sockets were handed over", handed.len()))
            .at("LISTEN_FDS")
            .hint("one ListenStream= for the operator socket"));
    }
    handed.take_unix_listener(0).map_err(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn watchdog_is_fed_as_time_goes_and_never_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let manager = UnixDatagram::bind(&path).unwrap();
        manager.set_nonblocking(true).unwrap();
        let socket = UnixDatagram::unbound().unwrap();
        socket.set_nonblocking(true).unwrap();
        socket.connect(&path).unwrap();
        let mut heartbeat = Heartbeat::new(socket, Duration::from_secs(3));
        let start = heartbeat.next();
        let mut told = [0u8; 32];
        let mut is_told = || manager.recv(&mut told).is_ok_and(|count| &told[..count] == b"WATCHDOG=1");
        heartbeat.beat(start);
        assert!(is_told());
        heartbeat.beat(start + Duration::from_millis(900));
        assert!(!is_told(), "it is not due");
        heartbeat.beat(start + Duration::from_millis(1000));
        assert!(is_told());
        // A manager that takes nothing: as many as its queue holds, and then none, at once.
        let mut at = heartbeat.next();
        for _ in 0..10_000 {
            heartbeat.beat(at);
            if heartbeat.next() < at + Duration::from_secs(1) {
                break;
            }
            at = heartbeat.next();
        }
        assert_eq!(heartbeat.next(), at + Duration::from_millis(125), "soon again");
    }
}
