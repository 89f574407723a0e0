//! A device's Unix socket: where it is, whose it is, and how it is opened without waiting for anybody.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::OFlags;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use crate::fault::Fault;
use crate::host::accounts::Account;
use crate::host::peer::Caller;
use crate::host::standing::{Identity, Standing};
use crate::operator::api::SocketAccess;

/// The longest path that fits a Unix socket's address, in bytes.
pub(crate) const LONGEST_PATH: usize = 107;

/// A listening socket and the file that stands for it. The file goes when this is dropped, if it is still ours.
#[derive(Debug)]
pub(crate) struct Listening {
    pub(crate) socket: UnixListener,
    /// The file that is ours; none for a socket that came with the process. The kernel keeps it for as long as the
    /// socket.
    file: Option<(PathBuf, Identity)>,
}

impl Listening {
    /// Listens on `path` with mode 0660, for this owner and group if given. A socket file that nobody listens on is
    /// replaced; one that somebody listens on is a fault that names the holder.
    pub(crate) fn open(path: &Path, owner: Option<u32>, group: Option<u32>) -> Result<Listening, Fault> {
        check_path(path)?;
        remove_stale(path)?;
        Listening::make(path, owner, group)
    }

    /// The same, where nothing must stand in the way.
    pub(crate) fn make(path: &Path, owner: Option<u32>, group: Option<u32>) -> Result<Listening, Fault> {
        let shown = path.display().to_string();
        let failed = |error: io::Error| {
            let fault = Fault::system(format!("cannot listen on {shown}"), error).at(shown.clone());
            match path.parent().map(Path::exists) {
                Some(false) => fault.hint(format!("mkdir -p {}", path.parent().unwrap_or(path).display())),
                _ => fault,
            }
        };
        let socket = UnixListener::bind(path).map_err(failed)?;
        let made = Made::find(path).map_err(failed)?;
        let listening = Listening { socket, file: Some((path.to_owned(), made.identity)) };
        listening.socket.set_nonblocking(true).map_err(failed)?;
        fs::set_permissions(made.path(), fs::Permissions::from_mode(0o660)).map_err(failed)?;
        // What is so already needs no call, which a service's sandbox may not let through.
        let owner = owner.filter(|owner| *owner != made.owner);
        let group = group.filter(|group| *group != made.group);
        if owner.is_some() || group.is_some() {
            let given = std::os::unix::fs::chown(made.path(), owner, group);
            given.map_err(|error| not_given(&shown, owner, group, error))?;
        }
        Ok(listening)
    }

    /// A listening socket that came with the process.
    pub(crate) fn inherited(socket: UnixListener) -> Result<Listening, Fault> {
        socket
            .set_nonblocking(true)
            .map_err(|error| Fault::system("cannot use the inherited socket", error))?;
        Ok(Listening { socket, file: None })
    }

    /// What stands where its file was made.
    pub(crate) fn standing(&self) -> Standing {
        self.file.as_ref().map_or(Standing::Ours, |(path, identity)| identity.standing(path))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let Some((path, identity)) = &self.file else { return };
        if matches!(identity.standing(path), Standing::Ours) {
            let _ = fs::remove_file(path);
        }
    }
}

/// A socket that came with the process.
#[derive(Debug)]
pub(crate) enum Inherited {
    /// Front-ends connect to it.
    Listening(UnixListener),
    /// The front-end is at its other end.
    Connected(UnixStream),
}

/// A socket that cannot be given to whom it is to be given to.
fn not_given(shown: &str, owner: Option<u32>, group: Option<u32>, error: io::Error) -> Fault {
    let (to, hint) = match (owner, group) {
        (Some(owner), _) => (
            format!("user {owner}"),
            "only root gives files to other users: give it to a group of ringwayd's user (group NAME), which the VMM's user is in",
        ),
        (None, group) => (
            group.map_or_else(String::new, |group| format!("group {group}")),
            "ringwayd's user has to be in that group; its unit needs the drop-in sockets.conf with it \
             (/usr/share/ringway/ringwayd.service.d)",
        ),
    };
    Fault::system(format!("cannot give {shown} to {to}"), error).at(shown).hint(hint)
}

/// A socket's file that was just made, held by a descriptor: whoever may write to its directory can put a link in its
/// place, and what is done by name would then be done to the file that the link names.
struct Made {
    file: OwnedFd,
    identity: Identity,
    owner: u32,
    group: u32,
}

impl Made {
    fn find(path: &Path) -> io::Result<Made> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(path, flags, rustix::fs::Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::Socket {
            return Err(io::Error::other("something else was put in its place"));
        }
        let identity = Identity { device: stat.st_dev, inode: stat.st_ino };
        Ok(Made { file, identity, owner: stat.st_uid, group: stat.st_gid })
    }

    /// A path that leads to this file and no other.
    fn path(&self) -> PathBuf {
        format!("/proc/self/fd/{}", self.file.as_raw_fd()).into()
    }
}

/// Where a device's socket is that was given no path.
pub(crate) fn default_path(runtime_dir: &Path, name: &str) -> PathBuf {
    runtime_dir.join("dev").join(format!("{name}.sock"))
}

/// Checks that a path can be a socket's address.
pub(crate) fn check_path(path: &Path) -> Result<(), Fault> {
    use std::os::unix::ffi::OsStrExt as _;
    let bytes = path.as_os_str().as_bytes();
    let shown = path.display().to_string();
    if !path.is_absolute() {
        return Err(Fault::usage(format!("socket path `{shown}` is not absolute")).at("socket"));
    }
    if bytes.contains(&0) || bytes.iter().any(u8::is_ascii_control) {
        return Err(Fault::usage("the socket path has control characters").at("socket"));
    }
    if bytes.len() > LONGEST_PATH {
        return Err(Fault::usage(format!(
            "socket path {shown} has {} bytes; a Unix socket's address holds {LONGEST_PATH}",
            bytes.len()
        ))
        .at("socket")
        .hint("a shorter name, a shorter --ctl directory, or socket PATH"));
    }
    Ok(())
}

fn remove_stale(path: &Path) -> Result<(), Fault> {
    let shown = path.display().to_string();
    let kind = match fs::symlink_metadata(path) {
        Ok(meta) => meta.file_type(),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Fault::system(format!("cannot look at {shown}"), error).at(shown)),
    };
    if kind.is_dir() {
        return Err(Fault::conflict(format!("{shown} is a directory")).at(shown).hint("another path"));
    }
    if !kind.is_socket() {
        return Err(Fault::conflict(format!("{shown} is there and is not a socket"))
            .at(shown)
            .hint("another path"));
    }
    let in_use = || Fault::conflict(format!("cannot listen on {shown}: it is in use")).at(shown.clone());
    match connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| Fault::system(format!("cannot remove the stale socket {shown}"), error)),
        Ok(stream) => {
            Err(in_use().held_by(Caller::of(&stream).to_string()).hint("another path, or stop that one"))
        }
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(Fault::system(format!("{shown} is there and may be in use"), error).at(shown))
        }
        Err(_) => Err(in_use().hint("another path, or stop the process that holds it")),
    }
}

/// Connects without waiting for the other side: a full queue there is an error, not a delay.
pub(crate) fn connect(path: &Path) -> io::Result<UnixStream> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(path)?)?;
    let stream = UnixStream::from(socket);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

/// Whether the peer of a connection has hung up: it will read no answer, whatever it sent before. One that only ended its
/// own side still listens.
pub(crate) fn has_left(stream: &UnixStream) -> bool {
    let mut look = [PollFd::new(stream, PollFlags::empty())];
    poll(&mut look, Some(&Timespec::default())).is_ok()
        && look[0].revents().intersects(PollFlags::HUP | PollFlags::ERR)
}

/// Who may open a socket, as the file system has it; None without a socket.
pub(crate) fn access(path: &Path) -> Option<SocketAccess> {
    let meta = fs::metadata(path).ok().filter(|meta| meta.file_type().is_socket())?;
    Some(SocketAccess {
        owner: Account::User.name(meta.uid()),
        group: Account::Group.name(meta.gid()),
        mode: format!("{:04o}", meta.mode() & 0o7777),
    })
}

/// The directories above `path` that a user or group cannot pass, if any: its socket is then out of reach, whatever the
/// socket's own mode.
pub(crate) fn unreachable_for(path: &Path, owner: Option<u32>, group: Option<u32>) -> Vec<PathBuf> {
    let passes = |dir: &Path| {
        let Ok(meta) = fs::metadata(dir) else { return true };
        let mode = meta.mode();
        mode & 0o001 != 0
            || (mode & 0o010 != 0 && group == Some(meta.gid()))
            || (mode & 0o100 != 0 && owner.is_some_and(|uid| uid == 0 || uid == meta.uid()))
    };
    path.ancestors().skip(1).filter(|dir| !passes(dir)).map(Path::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Kind;

    #[test]
    fn socket_has_mode_0660_and_goes_with_its_listener() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let listening = Listening::open(&path, None, None).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o660);
        drop(listening);
        assert!(!path.exists());
    }

    #[test]
    fn socket_that_cannot_be_given_away_says_what_lets_it() {
        let denied = || io::Error::from_raw_os_error(rustix::io::Errno::PERM.raw_os_error());
        let to_group = not_given("/run/r/dev/a.sock", None, Some(36), denied());
        assert_eq!(to_group.kind, Kind::Permission);
        let said = to_group.to_string();
        assert!(said.contains("cannot give /run/r/dev/a.sock to group 36: "), "{said}");
        assert!(said.contains("its unit needs the drop-in sockets.conf with it"), "{said}");
        let said = not_given("/run/r/dev/a.sock", Some(64055), Some(36), denied()).to_string();
        assert!(said.contains("to user 64055: ") && said.contains("give it to a group"), "{said}");
        // What is so already takes no call.
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let own = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
        Listening::open(&path, Some(own.0), Some(own.1)).unwrap();
    }

    #[test]
    fn file_that_was_put_in_the_sockets_place_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (path, victim) = (dir.path().join("a.sock"), dir.path().join("victim"));
        fs::write(&victim, "").unwrap();
        fs::set_permissions(&victim, fs::Permissions::from_mode(0o600)).unwrap();
        // As it is between bind and chmod for a moment.
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        assert!(Made::find(&path).is_err());
        // And right after it was found.
        fs::remove_file(&path).unwrap();
        let _socket = UnixListener::bind(&path).unwrap();
        let made = Made::find(&path).unwrap();
        fs::rename(&path, dir.path().join("moved.sock")).unwrap();
        std::os::unix::fs::symlink(&victim, &path).unwrap();
        fs::set_permissions(made.path(), fs::Permissions::from_mode(0o660)).unwrap();
        assert_eq!(fs::metadata(&victim).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(dir.path().join("moved.sock")).unwrap().mode() & 0o777, 0o660);
    }

    #[test]
    fn stale_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let _listening = Listening::open(&path, None, None).unwrap();
        connect(&path).unwrap();
    }

    #[test]
    fn live_socket_is_refused_and_its_holder_named() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let _first = UnixListener::bind(&path).unwrap();
        let fault = Listening::open(&path, None, None).unwrap_err();
        assert_eq!(fault.kind, Kind::Conflict);
        assert!(fault.held_by.unwrap().contains(&format!("pid {}", std::process::id())));
        connect(&path).unwrap();
    }

    #[test]
    fn file_that_is_no_socket_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        fs::write(&path, "precious").unwrap();
        assert_eq!(Listening::open(&path, None, None).unwrap_err().kind, Kind::Conflict);
        assert_eq!(fs::read_to_string(&path).unwrap(), "precious");
    }

    #[test]
    fn socket_of_another_at_the_same_path_is_not_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let first = Listening::open(&path, None, None).unwrap();
        fs::remove_file(&path).unwrap();
        let _second = UnixListener::bind(&path).unwrap();
        drop(first);
        assert!(path.exists());
    }

    #[test]
    fn bad_paths_are_refused_by_reason() {
        for (path, reason) in [("a/b", "not absolute"), ("/a\nb", "control characters")] {
            assert!(check_path(Path::new(path)).unwrap_err().message.contains(reason));
        }
        let long = format!("/{}", "x".repeat(107));
        assert!(check_path(Path::new(&long)).unwrap_err().message.contains("108 bytes"));
        check_path(Path::new(&long[..107])).unwrap();
    }

    #[test]
    fn missing_directory_is_named() {
        let fault = Listening::open(Path::new("/nonexistent/dir/a.sock"), None, None).unwrap_err();
        assert_eq!(fault.hint.as_deref(), Some("mkdir -p /nonexistent/dir"));
    }

    #[test]
    fn full_queue_does_not_block_a_connect() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let _listener = UnixListener::bind(&path).unwrap();
        let mut held = Vec::new();
        let error = loop {
            match connect(&path) {
                Ok(stream) => held.push(stream),
                Err(error) => break error,
            }
            assert!(held.len() < 100_000);
        };
        assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn peer_that_hung_up_is_told_from_one_that_is_there_or_still_listens() {
        use std::io::Write as _;
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        assert!(!has_left(&ours));
        theirs.write_all(b"x").unwrap();
        assert!(!has_left(&ours));
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        assert!(!has_left(&ours));
        drop(theirs);
        assert!(has_left(&ours), "what it sent is of no use any more");
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(has_left(&ours));
    }

    #[test]
    fn closed_directory_is_found_for_a_stranger() {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o750)).unwrap();
        let path = dir.path().join("a.sock");
        let meta = fs::metadata(dir.path()).unwrap();
        assert_eq!(unreachable_for(&path, Some(54321), Some(54321)), [dir.path()]);
        assert!(unreachable_for(&path, None, Some(meta.gid())).is_empty());
    }
}
