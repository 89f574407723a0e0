//! Who is at the other end of a Unix socket, as the kernel says.

use std::fmt;
use std::os::fd::AsFd;

use rustix::net::sockopt::socket_peercred;

/// A process at the other end, as it was when it connected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    pub(crate) pid: i32,
    pub(crate) uid: u32,
    pub(crate) comm: String,
}

impl Caller {
    /// The peer of a connected socket.
    pub(crate) fn of(socket: impl AsFd) -> Caller {
        match socket_peercred(socket) {
            Ok(cred) => {
                let pid = cred.pid.as_raw_nonzero().get();
                Caller { pid, uid: cred.uid.as_raw(), comm: comm(pid) }
            }
            Err(_) => Caller { pid: 0, uid: u32::MAX, comm: "?".to_owned() },
        }
    }

    /// This process, calling itself.
    pub(crate) fn own() -> Caller {
        let pid = i32::try_from(std::process::id()).unwrap_or(0);
        Caller { pid, uid: rustix::process::getuid().as_raw(), comm: comm(pid) }
    }
}

impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} (pid {}, uid {})", self.comm, self.pid, self.uid)
    }
}

/// The name of a process's program, as the kernel shortens it; `?` if it is gone. What a process calls itself is
/// its own choice: control characters do not pass.
pub(crate) fn comm(pid: i32) -> String {
    match std::fs::read(format!("/proc/{pid}/comm")) {
        Ok(name) => String::from_utf8_lossy(&name).trim_end().replace(char::is_control, "?"),
        Err(_) => "?".to_owned(),
    }
}
