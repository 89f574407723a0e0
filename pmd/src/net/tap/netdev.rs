//! Opening a TAP interface: found or made, in this network namespace or another.
//!
//! What Ringway makes is persistent, so that addresses, bridges and routes of the host survive a restart of the daemon,
//! carries an Ethernet address made from its name, by which it is known again as Ringway's own, and is removed with its
//! device. What is found otherwise is left as it is. The descriptors stay good when an operator moves the interface to
//! another namespace.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::HEADER_BYTES;
use super::reader::TapReader;
use super::sys;
use super::writer::TapWriter;
use crate::net::Mac;
use crate::net::offload::Offloads;

/// Which interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TapSpec {
    /// Its name.
    pub name: String,
    /// The network namespace: a name below `/run/netns`, or a path. None: the process's own.
    pub netns: Option<String>,
    /// Queues, each a descriptor.
    pub queues: u16,
    /// MTU of an interface that is made, without the Ethernet header.
    pub mtu: u16,
}

/// Why an interface cannot be had, named by whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// The operator asked for something that cannot be.
    #[error("{0}")]
    Misconfigured(String),
    /// The host lacks or refuses something.
    #[error("{what}: {source}")]
    Resource {
        /// What was attempted, and what would help.
        what: String,
        /// What the system said.
        source: io::Error,
    },
}

/// An open interface.
#[derive(Debug)]
pub struct TapNetdev {
    /// One a queue.
    queues: Vec<OwnedFd>,
    mac: Mac,
    is_own: bool,
    /// What the kernel may be left to do, and may leave to us.
    offloads: Offloads,
}

/// Checks a name as the kernel does.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn check_ifname(name: &str) -> Result<(), String> {
    let legal = |byte: u8| byte.is_ascii_graphic() && !b"/:%".contains(&byte);
    match name.len() {
        0 => Err("an interface needs a name".to_owned()),
        16.. => Err(format!("interface {name}: a name has at most 15 bytes")),
        _ if name == "." || name == ".." || !name.bytes().all(legal) => {
            Err(format!("interface {}: not a name that the kernel takes", name.escape_default()))
        }
        _ => Ok(()),
    }
}

impl TapNetdev {
    /// Finds the interface or makes it.
    ///
    /// # Errors
    /// See [`TapError`].
    pub fn open(spec: &TapSpec) -> Result<TapNetdev, TapError> {
        check_ifname(&spec.name).map_err(TapError::Misconfigured)?;
        let Some(netns) = &spec.netns else { return open_here(spec) };
        let path = if netns.starts_with('/') { PathBuf::from(netns) } else { Path::new(NAMED).join(netns) };
        if !netns.starts_with('/') && (netns.is_empty() || netns.contains('/')) {
            return Err(TapError::Misconfigured(format!("netns {netns}: a name, or an absolute path")));
        }
        let namespace = File::open(&path).map_err(|source| TapError::Resource {
            what: format!("cannot open the network namespace {} (ip netns list)", path.display()),
            source,
        })?;
        // A thread of its own, whose namespace goes with it: the caller's never changes.
        let open = || {
            use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).map_err(
                |source| TapError::Resource {
                    what: format!(
                        "cannot enter the network namespace {} (needs CAP_SYS_ADMIN)",
                        path.display()
                    ),
                    source: source.into(),
                },
            )?;
            open_here(spec)
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("rw-netns".to_owned()).spawn_scoped(scope, open);
            let thread =
                thread.map_err(|source| TapError::Resource { what: "no thread".to_owned(), source })?;
            thread.join().unwrap_or_else(|_| {
                Err(TapError::Misconfigured("bug: opening the interface panicked".to_owned()))
            })
        })
    }

    /// Its Ethernet address, on the kernel's side.
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// Ringway made it, now or before.
    pub fn is_own(&self) -> bool {
        self.is_own
    }

    /// Makes both directions of every queue. They have descriptors of their own.
    ///
    /// # Errors
    /// There is no io_uring, or no memory or descriptor for it.
    pub fn queues(&self) -> Result<Vec<(TapReader, TapWriter)>, TapError> {
        let make = |fd: &OwnedFd| -> io::Result<(TapReader, TapWriter)> {
            let reader = TapReader::new(fd.try_clone()?)?;
            Ok((reader, TapWriter::new(fd.try_clone()?)?))
        };
        self.queues.iter().map(make).collect::<Result<_, _>>().map_err(|source| TapError::Resource {
            what: "cannot make an io_uring (look at kernel.io_uring_disabled and at the limits of memory and files)"
                .to_owned(),
            source,
        })
    }

    /// What the kernel may be left to do for frames that it is given, and leaves to be done for those that it gives.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Has the interface go with its descriptors, if Ringway made it.
    pub fn remove(self) {
        if let Some(queue) = self.queues.first().filter(|_| self.is_own) {
            // It fails only where the interface is gone already.
            let _ = sys::set_persistent(queue.as_fd(), false);
        }
    }
}

/// Opens it in the namespace of this thread.
fn open_here(spec: &TapSpec) -> Result<TapNetdev, TapError> {
    let name = spec.name.as_str();
    let resource = |what: String| move |source: io::Error| TapError::Resource { what, source };
    let socket = rustix::net::socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| resource("cannot make a socket".to_owned())(errno.into()))?;
    let own_mac = Mac::from_name(&format!("tap/{name}"));
    let was_there = sys::exists(socket.as_fd(), name);
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
    let mut queues = Vec::with_capacity(spec.queues.into());
    for _ in 0..spec.queues {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
            .open(CLONE_DEVICE)
            .map_err(resource(format!("cannot open {CLONE_DEVICE} (modprobe tun; needs rights on it)")))?;
        let queue = OwnedFd::from(file);
        let attached = match sys::attach(queue.as_fd(), name, flags | libc::IFF_MULTI_QUEUE) {
            // One that was found may have a single queue.
            Err(error) if was_there && spec.queues == 1 && error.raw_os_error() == Some(libc::EINVAL) => {
                sys::attach(queue.as_fd(), name, flags)
            }
            other => other,
        };
        attached.map_err(|error| refused(spec, was_there, error))?;
        sys::set_header_bytes(queue.as_fd(), HEADER_BYTES as libc::c_int)
            .map_err(resource(format!("{name}: cannot have headers of {HEADER_BYTES} bytes")))?;
        queues.push(queue);
    }
    let all = |with_uso: u32| {
        let offload = libc::TUN_F_CSUM | libc::TUN_F_TSO4 | libc::TUN_F_TSO6 | libc::TUN_F_TSO_ECN | with_uso;
        queues.iter().try_for_each(|queue| sys::set_offload(queue.as_fd(), offload))
    };
    let tso = Offloads::CHECKSUM.with(Offloads::TSO4).with(Offloads::TSO6).with(Offloads::ECN);
    // UDP since Linux 6.2.
    let offloads = if all(libc::TUN_F_USO4 | libc::TUN_F_USO6).is_ok() {
        Offloads::ALL
    } else if all(0).is_ok() {
        tso
    } else {
        Offloads::NONE
    };
    if !was_there {
        let made = || -> io::Result<()> {
            sys::set_mac(socket.as_fd(), name, own_mac)?;
            sys::set_mtu(socket.as_fd(), name, spec.mtu)?;
            sys::set_up(socket.as_fd(), name)
        };
        made().map_err(resource(format!("cannot set {name} up")))?;
    }
    let mac =
        sys::mac(socket.as_fd(), name).map_err(resource(format!("cannot read the address of {name}")))?;
    let is_own = mac == own_mac;
    if is_own && let Some(queue) = queues.first() {
        sys::set_persistent(queue.as_fd(), true).map_err(resource(format!("cannot keep {name}")))?;
        let mtu = sys::mtu(socket.as_fd(), name).unwrap_or(0);
        if mtu != u32::from(spec.mtu) {
            sys::set_mtu(socket.as_fd(), name, spec.mtu)
                .map_err(resource(format!("cannot set the MTU of {name} to {}", spec.mtu)))?;
        }
    }
    Ok(TapNetdev { queues, mac, is_own, offloads })
}

/// Why the kernel did not attach.
fn refused(spec: &TapSpec, was_there: bool, source: io::Error) -> TapError {
    let TapSpec { name, queues, .. } = spec;
    let what = match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            format!(
                "cannot make or attach to {name}: needs CAP_NET_ADMIN (run ringwayd as root, or give the unit that capability)"
            )
        }
        Some(libc::EBUSY) => {
            format!(
                "{name} is in use by another process (look for it in /proc/*/fdinfo: grep -l \"iff:.*{name}\")"
            )
        }
        Some(libc::EINVAL) if was_there => {
            format!(
                "{name} is there and is no TAP with {queues} queues and headers: remove it (ip link del {name}), or use another name"
            )
        }
        Some(libc::E2BIG) => format!("{name} has as many queues as it can"),
        _ => format!("cannot attach to {name}"),
    };
    TapError::Resource { what, source }
}

const CLONE_DEVICE: &str = "/dev/net/tun";
const NAMED: &str = "/run/netns";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_the_kernel_would_refuse_or_expand_are_refused() {
        for name in ["", "a/b", "tap%d", "a b", ".", "..", "sixteen-bytes-xx", "a:1", "\n"] {
            check_ifname(name).unwrap_err();
        }
        for name in ["tap0", "fifteen-bytes-x", "a.b"] {
            check_ifname(name).unwrap();
        }
    }

    #[test]
    fn namespace_that_is_not_there_is_named() {
        let spec = TapSpec { name: "rwt0".into(), netns: Some("no-such-ns".into()), queues: 1, mtu: 1500 };
        let error = TapNetdev::open(&spec).unwrap_err().to_string();
        assert!(error.contains("/run/netns/no-such-ns"), "{error}");
        let spec = TapSpec { netns: Some("a/b".into()), ..spec };
        assert!(TapNetdev::open(&spec).unwrap_err().to_string().contains("a name, or an absolute path"));
    }
}
