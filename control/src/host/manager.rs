//! The service manager that started this process, if one did: what it is told, and the socket that it may have handed over.
//!
//! The protocol is systemd's `sd_notify(3)`: datagrams to the socket that `NOTIFY_SOCKET` names. The watchdog is fed by the
//! control thread alone, from its loop: it says that operators and front-ends are answered. Workers have a watchdog of their
//! own ([`super::watchdog`]). The same thread keeps the line up to date that `systemctl status` shows.

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

    /// Tells it; true: it has taken it. A manager that takes nothing is waited for so long, by a thread that serves nobody.
    pub(crate) fn tell(&self, state: &str, within: Duration) -> bool {
        let sent = UnixDatagram::unbound().and_then(|socket| {
            socket.set_write_timeout(Some(within))?;
            socket.send_to_addr(state.as_bytes(), &self.address)
        });
        if let Err(error) = &sent {
            let first = state.lines().next().unwrap_or_default();
            tracing::warn!(%error, "cannot tell the service manager {first}");
        }
        sent.is_ok()
    }

    /// What feeds its watchdog, if it has one on this process.
    pub(crate) fn heartbeat(&self) -> Option<Heartbeat> {
        let number = |name: &str| -> Option<u64> { std::env::var(name).ok()?.parse().ok() };
        let of = number("WATCHDOG_PID");
        let limit = Duration::from_micros(number("WATCHDOG_USEC").filter(|limit| *limit > 0)?);
        if of.is_some_and(|pid| pid != u64::from(std::process::id())) {
            return None;
        }
        self.connected("cannot feed the service manager's watchdog")
            .map(|socket| Heartbeat::new(socket, limit))
    }

    /// What keeps the line up to date that it shows.
    pub(crate) fn status_line(&self) -> Option<StatusLine> {
        let socket = self.connected("what the service manager shows will be what it was at the start")?;
        Some(StatusLine { socket, told: None })
    }

    /// A socket on which nothing waits.
    fn connected(&self, otherwise: &str) -> Option<UnixDatagram> {
        let socket = UnixDatagram::unbound().and_then(|socket| {
            socket.set_nonblocking(true)?;
            socket.connect_addr(&self.address)?;
            Ok(socket)
        });
        socket.inspect_err(|error| tracing::warn!(%error, "{otherwise}")).ok()
    }
}

/// What is named at most in the line that the service manager shows: it ignores a message of more than 4 KiB as a whole, and READY=1
/// with it.
const MOST_NAMED: usize = 8;

/// What the service manager shows of a daemon, in words: how many devices it has, and what was asked for and is not there.
pub(crate) fn status_of(made: usize, absent: &[String]) -> String {
    let plural = if made == 1 { "" } else { "s" };
    let mut status = format!("{made} device{plural} made");
    if !absent.is_empty() {
        let (named, more) = absent.split_at(absent.len().min(MOST_NAMED));
        status += &format!("; not made: {}", named.join(", "));
        if !more.is_empty() {
            status += &format!(" and {} more", more.len());
        }
    }
    status
}

/// The line that the service manager shows (`STATUS=`). The first one goes with READY=1, which another thread sends: until that is
/// done nothing is told, or READY=1 would put an older line in the place of a newer one.
#[derive(Debug)]
pub struct StatusLine {
    socket: UnixDatagram,
    /// What it shows. None: READY=1 is not sent yet.
    told: Option<String>,
}

impl StatusLine {
    /// READY=1 was sent, with this line; an empty one: it was not taken.
    pub(crate) fn begin(&mut self, status: String) {
        self.told = Some(status);
    }

    /// Tells it, unless it knows. Never waits: a manager that takes nothing is told when this is called again.
    pub(crate) fn tell(&mut self, status: String) {
        let is_news = self.told.as_ref().is_some_and(|told| *told != status);
        if is_news && self.socket.send(format!("STATUS={status}").as_bytes()).is_ok() {
            self.told = Some(status);
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
    fn line_is_told_when_it_is_another_and_again_when_it_was_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let manager = Manager { address: SocketAddr::from_pathname(&path).unwrap() };
        let mut line = manager.status_line().unwrap();
        let mut told = [0u8; 128];
        let mut next =
            || socket.recv(&mut told).ok().map(|n| String::from_utf8_lossy(&told[..n]).into_owned());
        line.begin(status_of(0, &[]));
        line.tell(status_of(0, &[]));
        assert_eq!(next(), None);
        line.tell(status_of(1, &["b".into(), "pci/0000:01:10.0/1".into()]));
        assert_eq!(next().as_deref(), Some("STATUS=1 device made; not made: b, pci/0000:01:10.0/1"));
        // As many as its queue holds, and then one that is not taken.
        let last = (2..10_000).find(|made| {
            line.tell(status_of(*made, &[]));
            line.told != Some(status_of(*made, &[]))
        });
        let last = status_of(last.unwrap(), &[]);
        while next().is_some() {}
        line.tell(last.clone());
        assert_eq!(next(), Some(format!("STATUS={last}")));
    }

    #[test]
    fn line_that_is_newer_than_that_of_ready_is_told_behind_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_nonblocking(true).unwrap();
        let manager = Manager { address: SocketAddr::from_pathname(&path).unwrap() };
        let mut line = manager.status_line().unwrap();
        let mut told = [0u8; 128];
        let mut next =
            || socket.recv(&mut told).ok().map(|n| String::from_utf8_lossy(&told[..n]).into_owned());
        // A device is made between what READY=1 is to say and its being sent.
        let (older, newer) = (status_of(0, &[]), status_of(1, &[]));
        line.tell(newer.clone());
        assert_eq!(next(), None, "READY=1 would take it back");
        assert!(manager.tell(&format!("READY=1\nSTATUS={older}"), Duration::from_secs(1)));
        line.begin(older.clone());
        line.tell(newer.clone());
        assert_eq!(next(), Some(format!("READY=1\nSTATUS={older}")));
        assert_eq!(next(), Some(format!("STATUS={newer}")));
        // One that was not taken is told as any other.
        line.begin(String::new());
        line.tell(newer.clone());
        assert_eq!(next(), Some(format!("STATUS={newer}")));
        drop(socket);
        assert!(!manager.tell("READY=1", Duration::from_secs(1)));
    }

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

    #[test]
    fn line_of_a_daemon_without_all_that_it_was_asked_for_fits_a_message() {
        let absent: Vec<String> = (0..10_000).map(|nth| format!("{nth:064}")).collect();
        let line = status_of(3, &absent);
        assert!(line.len() < 1024 && line.ends_with(" and 9992 more"), "{line}");
        assert_eq!(status_of(1, &absent[..0]), "1 device made");
    }
}
