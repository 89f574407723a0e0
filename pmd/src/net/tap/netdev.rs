//! Opening a TAP interface: found or made, in this network namespace or another.
//!
//! What Ringway makes is persistent, so that addresses, bridges and routes of the host survive a restart of the daemon,
//! carries an Ethernet address made from its name, by which it is known again as Ringway's own, and is removed with its
//! device. What is found otherwise is left as it is. The descriptors stay good when an operator moves the interface to
//! another namespace.

use std::ffi::OsStr;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::HEADER_BYTES;
use super::link::Interface;
use super::reader::TapReader;
use super::sys;
use super::writer::TapWriter;
use crate::net::offload::Offloads;
use crate::net::{AddressSeed, Mac};
use crate::vdpa::{DriverError, NetdevChange};

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
    /// What the address of an interface that is made consists of, beside its name. None: the name alone.
    pub seed: Option<AddressSeed>,
}

impl TapSpec {
    /// Its Ethernet address if Ringway makes it.
    pub fn own_mac(&self) -> Mac {
        Mac::default_of(self.seed, &format!("tap/{}", self.name))
    }

    /// Where its network namespace is to be found.
    fn namespace(&self) -> Result<Option<PathBuf>, DriverError> {
        let Some(netns) = &self.netns else { return Ok(None) };
        if !netns.starts_with('/') && (netns.is_empty() || netns.contains('/')) {
            return Err(DriverError::Misconfigured(format!("netns {netns}: a name, or an absolute path")));
        }
        Ok(Some(namespace_path(Some(netns))))
    }
}

/// The file of a network namespace: of a name below `/run/netns`, of a path, or this process's own.
pub fn namespace_path(netns: Option<&str>) -> PathBuf {
    // A path that is absolute takes the place of the whole.
    netns.map_or_else(|| PathBuf::from("/proc/self/ns/net"), |netns| Path::new(NAMED).join(netns))
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
    /// In its network namespace.
    socket: OwnedFd,
    /// As it was asked for.
    name: String,
    netns: Option<String>,
    /// How it was set when it was opened.
    setting: Setting,
}

/// What of an interface others may change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Setting {
    is_up: bool,
    mtu: u32,
    mac: Mac,
}

impl Setting {
    fn of(socket: &OwnedFd, name: &str) -> io::Result<Setting> {
        let socket = socket.as_fd();
        Ok(Setting {
            is_up: sys::is_up(socket, name)?,
            mtu: sys::mtu(socket, name)?,
            mac: sys::mac(socket, name)?,
        })
    }
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
    /// Finds the interface or, with `may_make`, makes it. Nobody else may have a queue of it.
    ///
    /// # Errors
    /// See [`DriverError`].
    pub fn open(spec: &TapSpec, may_make: bool) -> Result<TapNetdev, DriverError> {
        check_ifname(&spec.name).map_err(DriverError::Misconfigured)?;
        let Some(path) = spec.namespace()? else { return open_here(spec, may_make) };
        let namespace = open_namespace(&path)?;
        // A thread of its own, whose namespace goes with it: the caller's never changes.
        let open = || {
            use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).map_err(
                |source| DriverError::Resource {
                    what: format!(
                        "cannot enter the network namespace {} (needs CAP_SYS_ADMIN)",
                        path.display()
                    ),
                    source: source.into(),
                },
            )?;
            open_here(spec, may_make)
        };
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("rw-netns".to_owned()).spawn_scoped(scope, open);
            let thread =
                thread.map_err(|source| DriverError::Resource { what: "no thread".to_owned(), source })?;
            thread.join().unwrap_or_else(|_| {
                Err(DriverError::Misconfigured("bug: opening the interface panicked".to_owned()))
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
    pub fn queues(&self) -> Result<Vec<(TapReader, TapWriter)>, DriverError> {
        let make = |fd: &OwnedFd| -> io::Result<(TapReader, TapWriter)> {
            let reader = TapReader::new(fd.try_clone()?)?;
            Ok((reader, TapWriter::new(fd.try_clone()?)?))
        };
        self.queues.iter().map(make).collect::<Result<_, _>>().map_err(|source| DriverError::Resource {
            what: "cannot make an io_uring (look at kernel.io_uring_disabled and at the limits of memory and files)"
                .to_owned(),
            source,
        })
    }

    /// Its queues, for whoever moves frames by system calls of its own: each read and each write is one frame behind a header of
    /// [`super::HEADER_BYTES`] bytes, and none waits. Without `offloads` the kernel leaves nothing to be done for what is read.
    ///
    /// # Errors
    /// The kernel does not let the offloads be turned off.
    pub fn into_descriptors(self, offloads: bool) -> io::Result<Vec<OwnedFd>> {
        if !offloads {
            self.queues.iter().try_for_each(|queue| sys::set_offload(queue.as_fd(), 0))?;
        }
        Ok(self.queues)
    }

    /// What the kernel may be left to do for frames that it is given, and leaves to be done for those that it gives.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// What is set otherwise than when the interface was opened, each with the command that sets it back. It may have been
    /// down then: nothing is said of one that was never up. Of one that is gone, nothing either.
    pub fn changes(&mut self) -> Vec<NetdevChange> {
        let Some(name) = self.queues.first().and_then(|queue| sys::name(queue.as_fd()).ok()) else {
            return Vec::new();
        };
        let ip = match &self.netns {
            Some(netns) => format!("ip -n {netns} link set {name}"),
            None => format!("ip link set {name}"),
        };
        let mut changes = Vec::new();
        let mut tell = |what, cure| changes.push(NetdevChange { what, cure, stops: false });
        if name != self.name {
            tell(
                format!("interface {} was renamed to {name}", self.name),
                format!("{ip} name {}: after a restart ringwayd looks for that name", self.name),
            );
        }
        let was = self.setting;
        let is = match Setting::of(&self.socket, &name) {
            Ok(setting) => setting,
            Err(error) => {
                if error.raw_os_error() == Some(libc::ENODEV) {
                    tell(
                        format!("interface {name} was moved to another network namespace"),
                        format!(
                            "where it is now, ip link set {name} netns {}: after a restart ringwayd looks for it there",
                            match &self.netns {
                                Some(netns) => netns.clone(),
                                // Of a process: the namespace that it is in.
                                None => std::process::id().to_string(),
                            }
                        ),
                    );
                }
                return changes;
            }
        };
        self.setting.is_up |= is.is_up;
        if was.is_up && !is.is_up {
            changes.push(NetdevChange {
                what: format!("interface {name} was set down: no frame passes"),
                cure: format!("{ip} up"),
                stops: true,
            });
        }
        let mut tell = |what, cure| changes.push(NetdevChange { what, cure, stops: false });
        if is.mtu != was.mtu {
            tell(
                format!("the MTU of interface {name} was changed from {} to {}", was.mtu, is.mtu),
                format!("{ip} mtu {}", was.mtu),
            );
        }
        if is.mac != was.mac {
            let own = if self.is_own { ": by that ringwayd knows its own interfaces again" } else { "" };
            tell(
                format!("the address of interface {name} was changed from {} to {}", was.mac, is.mac),
                format!("{ip} address {}{own}", was.mac),
            );
        }
        changes
    }

    /// Has the interface go with its descriptors, if Ringway made it.
    pub fn remove(self) {
        if let Some(queue) = self.queues.first().filter(|_| self.is_own) {
            // It fails only where the interface is gone already.
            let _ = sys::set_persistent(queue.as_fd(), false);
        }
    }
}

/// The file of a network namespace. Never waits, whatever the path leads to: a pipe has no writer yet.
fn open_namespace(path: &Path) -> Result<File, DriverError> {
    let cannot = |source| DriverError::Resource {
        what: format!("cannot open the network namespace {}", path.display()),
        source,
    };
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC | libc::O_NOCTTY);
    let file = options.open(path).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => {
            DriverError::NotFound(format!("there is no network namespace {} (ip netns list)", path.display()))
        }
        _ => cannot(source),
    })?;
    let system = rustix::fs::fstatfs(&file).map_err(|errno| cannot(errno.into()))?;
    // statfs(2) has the types as 32-bit numbers, whatever the width of the field.
    if u64::from(system.f_type as u32) != NSFS_MAGIC {
        return Err(DriverError::NotFound(format!(
            "{} is no network namespace (ip netns list)",
            path.display()
        )));
    }
    Ok(file)
}

/// Refuses what a network namespace's path leads to if it can never be one: they are regular files. One that is not there
/// may still come.
///
/// # Errors
/// A sentence that says what is wrong.
pub fn check_namespace(path: &Path) -> Result<(), String> {
    match std::fs::metadata(path) {
        Ok(facts) if !facts.is_file() => {
            Err(format!("netns: {} is no network namespace (ip netns list)", path.display()))
        }
        _ => Ok(()),
    }
}

/// Opens it in the namespace of this thread.
fn open_here(spec: &TapSpec, may_make: bool) -> Result<TapNetdev, DriverError> {
    let name = spec.name.as_str();
    let resource = |what: String| move |source: io::Error| DriverError::Resource { what, source };
    // Of no family that is of use for more: requests about interfaces are taken on a socket of any.
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)
        .map_err(|errno| resource("cannot make a socket".to_owned())(errno.into()))?;
    let own_mac = spec.own_mac();
    let look = || Interface::find(name).map_err(resource(format!("cannot ask the kernel about {name}")));
    let before = look()?;
    let was_there = before.is_some();
    match &before {
        None if !may_make => {
            return Err(DriverError::NotFound(format!(
                "{name}, which was there before Ringway used it, was taken away: it is taken again once it is back"
            )));
        }
        None => {}
        Some(link) => {
            if let Some(what) = link.misfit(spec.queues) {
                return Err(DriverError::Conflict {
                    what: format!("{name} is {what}"),
                    held_by: None,
                    hint: "another name: Ringway makes the interface if there is none".to_owned(),
                });
            }
            if link.queues > 0 {
                return Err(in_use(name));
            }
        }
    }
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
    // Who attached in between is seen by both, and neither goes on.
    if look()?.is_some_and(|link| link.queues > u32::from(spec.queues)) {
        return Err(in_use(name));
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
    // Or an earlier version's.
    let is_own = mac == own_mac || mac == Mac::from_name(&format!("tap/{name}"));
    if is_own && let Some(queue) = queues.first() {
        sys::set_persistent(queue.as_fd(), true).map_err(resource(format!("cannot keep {name}")))?;
        let mtu = sys::mtu(socket.as_fd(), name).unwrap_or(0);
        if mtu != u32::from(spec.mtu) {
            sys::set_mtu(socket.as_fd(), name, spec.mtu)
                .map_err(resource(format!("cannot set the MTU of {name} to {}", spec.mtu)))?;
        }
    }
    let setting = Setting::of(&socket, name).map_err(resource(format!("cannot read how {name} is set")))?;
    let (name, netns) = (spec.name.clone(), spec.netns.clone());
    Ok(TapNetdev { queues, mac, is_own, offloads, socket, name, netns, setting })
}

/// Why the kernel did not attach.
fn refused(spec: &TapSpec, was_there: bool, source: io::Error) -> DriverError {
    let TapSpec { name, queues, .. } = spec;
    if source.raw_os_error() == Some(libc::EBUSY) {
        return in_use(name);
    }
    let what = match source.raw_os_error() {
        Some(libc::EPERM | libc::EACCES) => {
            format!(
                "cannot make or attach to {name}: needs CAP_NET_ADMIN (run ringwayd as root, or give the unit that capability)"
            )
        }
        Some(libc::EINVAL) if was_there => {
            return DriverError::Conflict {
                what: format!("{name} is a TAP that does not take {queues} queues with virtio headers"),
                held_by: None,
                hint: "another name: Ringway makes the interface if there is none".to_owned(),
            };
        }
        Some(libc::E2BIG) => format!("{name} has as many queues as it can"),
        _ => format!("cannot attach to {name}"),
    };
    DriverError::Resource { what, source }
}

/// The fault of an interface of which somebody has a queue.
fn in_use(name: &str) -> DriverError {
    DriverError::Conflict {
        what: format!("{name} is in use: a process has a queue of it"),
        held_by: holder(name),
        hint: "another name, or end its use there".to_owned(),
    }
}

/// A process that has an interface of that name, of this thread's network namespace, open, as `/proc` tells. On a host of
/// many processes it looks at as many as it can in a fifth of a second. Where the kernel does not say of which namespace a
/// process's interface is, it is taken for that one, unless another is known to be.
fn holder(name: &str) -> Option<String> {
    let until = Instant::now() + LOOK_FOR;
    let numbered = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
    // The youngest first: interfaces are seldom held by what came with the system.
    let mut processes: Vec<u32> =
        std::fs::read_dir("/proc").ok()?.flatten().filter_map(|e| numbered(&e.path())).collect();
    processes.sort_unstable_by(|a, b| b.cmp(a));
    let line = format!("iff:\t{name}");
    let own = namespace_of_thread();
    let mut perhaps = None;
    for pid in processes {
        let Ok(files) = std::fs::read_dir(format!("/proc/{pid}/fd")) else { continue };
        for file in files.flatten() {
            if Instant::now() >= until {
                return perhaps;
            }
            let is_tun = std::fs::read_link(file.path()).is_ok_and(|to| to == Path::new(CLONE_DEVICE));
            let number = file.file_name();
            let facts = || std::fs::read_to_string(format!("/proc/{pid}/fdinfo/{}", number.display()));
            if !is_tun || !facts().is_ok_and(|facts| facts.lines().any(|said| said == line)) {
                continue;
            }
            let said = || {
                let comm = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
                format!("{} (pid {pid})", comm.trim())
            };
            match namespace_of_queue(pid, &number) {
                Some(namespace) if Some(namespace) == own => return Some(said()),
                Some(_) if own.is_some() => {}
                _ => perhaps = perhaps.or_else(|| Some(said())),
            }
        }
    }
    perhaps
}

/// The network namespace of this thread, by device and inode.
fn namespace_of_thread() -> Option<(u64, u64)> {
    identity(&File::open("/proc/thread-self/ns/net").ok()?)
}

/// That of the interface that another process has open. None: the kernel does not say.
fn namespace_of_queue(pid: u32, number: &OsStr) -> Option<(u64, u64)> {
    use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
    let process = pidfd_open(Pid::from_raw(i32::try_from(pid).ok()?)?, PidfdFlags::empty()).ok()?;
    let number = number.to_str()?.parse().ok()?;
    let queue = pidfd_getfd(process, number, PidfdGetfdFlags::empty()).ok()?;
    identity(&sys::namespace(queue.as_fd()).ok()?)
}

fn identity(namespace: impl AsFd) -> Option<(u64, u64)> {
    let facts = rustix::fs::fstat(namespace).ok()?;
    Some((facts.st_dev, facts.st_ino))
}

/// How long a look for the holder of an interface may take.
const LOOK_FOR: Duration = Duration::from_millis(200);
const CLONE_DEVICE: &str = "/dev/net/tun";
const NAMED: &str = "/run/netns";
/// The type of the file system of namespaces, as `statfs(2)` has it.
const NSFS_MAGIC: u64 = 0x6e73_6673;

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
        let spec = TapSpec {
            name: "rwt0".into(),
            netns: Some("no-such-ns".into()),
            queues: 1,
            mtu: 1500,
            seed: None,
        };
        let error = TapNetdev::open(&spec, true).unwrap_err().to_string();
        assert!(error.contains("/run/netns/no-such-ns"), "{error}");
        let spec = TapSpec { netns: Some("a/b".into()), ..spec };
        assert!(
            TapNetdev::open(&spec, true).unwrap_err().to_string().contains("a name, or an absolute path")
        );
    }

    #[test]
    fn namespace_that_is_something_else_is_refused_at_once() {
        let dir = std::env::temp_dir().join(format!("ringway-netns-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let (pipe, file) = (dir.join("pipe"), dir.join("file"));
        let mode = rustix::fs::Mode::RWXU;
        rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        std::fs::write(&file, "").unwrap();
        let (told, answer) = std::sync::mpsc::channel();
        let paths = [pipe.clone(), dir.clone(), PathBuf::from("/dev/null"), file.clone()];
        // A thread of its own: an open that waits fails the test rather than holding it up.
        std::thread::spawn(move || paths.map(|path| told.send(open_namespace(&path))));
        for _ in 0..4 {
            let error = answer.recv_timeout(Duration::from_secs(20)).expect("it waits").unwrap_err();
            assert!(
                matches!(&error, DriverError::NotFound(why) if why.contains("no network namespace")),
                "{error}"
            );
        }
        open_namespace(Path::new("/proc/self/ns/net")).unwrap();
        for never in [pipe.as_path(), &dir, Path::new("/dev/null")] {
            assert!(check_namespace(never).unwrap_err().contains("no network namespace"));
        }
        for perhaps in [dir.join("to come").as_path(), &file, Path::new("/proc/self/ns/net")] {
            check_namespace(perhaps).unwrap();
        }
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
