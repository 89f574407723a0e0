//! Tells when a socket's file appears, for devices that connect to their VMM: inotify on the nearest directory that
//! exists.

use std::collections::HashMap;
use std::ffi::OsString;
use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

/// What a device waits for: a name in a directory. Either the socket's own file or, while its directory is missing,
/// the next step on the way to it.
pub(crate) type Awaited = (PathBuf, OsString);

/// What happened in the watched directories.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Names that appeared or changed.
    pub(crate) names: Vec<Awaited>,
    /// Directories that went away, or events that were lost: everybody looks anew.
    pub(crate) all: bool,
}

/// The watched directories. Owned by the control thread.
#[derive(Debug)]
pub(crate) struct Watch {
    inotify: OwnedFd,
    by_dir: HashMap<PathBuf, (i32, usize)>,
}

impl Watch {
    pub(crate) fn new() -> io::Result<Watch> {
        let inotify = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Watch { inotify, by_dir: HashMap::new() })
    }

    /// Watches for the next step towards `path`.
    pub(crate) fn await_path(&mut self, path: &Path) -> io::Result<Awaited> {
        let mut name = path.file_name().unwrap_or_default().to_owned();
        let mut dir = path.parent().unwrap_or(Path::new("/"));
        loop {
            match self.hold(dir) {
                Ok(()) => return Ok((dir.to_owned(), name)),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    let Some(above) = dir.parent() else { return Err(error) };
                    name = dir.file_name().unwrap_or_default().to_owned();
                    dir = above;
                }
                Err(error) => return Err(error),
            }
        }
    }

    fn hold(&mut self, dir: &Path) -> io::Result<()> {
        if let Some((_, holders)) = self.by_dir.get_mut(dir) {
            *holders += 1;
            return Ok(());
        }
        let flags = WatchFlags::CREATE
            | WatchFlags::MOVED_TO
            | WatchFlags::ATTRIB
            | WatchFlags::DELETE_SELF
            | WatchFlags::MOVE_SELF
            | WatchFlags::ONLYDIR;
        let number = inotify::add_watch(&self.inotify, dir, flags)?;
        self.by_dir.insert(dir.to_owned(), (number, 1));
        Ok(())
    }

    /// Waits for it no longer.
    pub(crate) fn forget(&mut self, awaited: &Awaited) {
        let Some((number, holders)) = self.by_dir.get_mut(&awaited.0) else { return };
        *holders -= 1;
        if *holders == 0 {
            let _ = inotify::remove_watch(&self.inotify, *number);
            self.by_dir.remove(&awaited.0);
        }
    }

    /// Takes what happened since the last call.
    pub(crate) fn take(&mut self) -> Seen {
        let mut seen = Seen::default();
        let mut gone = Vec::new();
        let mut buffer = [const { MaybeUninit::uninit() }; 4096];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        while let Ok(event) = reader.next() {
            let dirs = self.by_dir.iter().filter(|(_, (number, _))| *number == event.wd());
            let lost = ReadFlags::QUEUE_OVERFLOW | ReadFlags::IGNORED | ReadFlags::DELETE_SELF;
            let is_lost = event.events().intersects(lost | ReadFlags::MOVE_SELF);
            for (dir, _) in dirs {
                if is_lost {
                    gone.push(dir.clone());
                } else if let Some(name) = event.file_name() {
                    let name = std::ffi::OsStr::from_bytes(name.to_bytes()).to_owned();
                    seen.names.push((dir.clone(), name));
                }
            }
            seen.all |= is_lost && (!gone.is_empty() || event.events().contains(ReadFlags::QUEUE_OVERFLOW));
        }
        for dir in gone {
            if let Some((number, _)) = self.by_dir.remove(&dir) {
                let _ = inotify::remove_watch(&self.inotify, number);
            }
        }
        seen
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.inotify.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    #[test]
    fn socket_that_appears_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let mut watch = Watch::new().unwrap();
        let awaited = watch.await_path(&path).unwrap();
        assert!(watch.take().names.is_empty());
        let _listener = UnixListener::bind(&path).unwrap();
        assert!(watch.take().names.contains(&awaited));
    }

    #[test]
    fn missing_directory_is_awaited_step_by_step() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/er/a.sock");
        let mut watch = Watch::new().unwrap();
        let awaited = watch.await_path(&path).unwrap();
        assert_eq!(awaited, (dir.path().to_owned(), "deep".into()));
        std::fs::create_dir(dir.path().join("deep")).unwrap();
        assert!(watch.take().names.contains(&awaited));
        watch.forget(&awaited);
        assert_eq!(watch.await_path(&path).unwrap(), (dir.path().join("deep"), "er".into()));
    }

    #[test]
    fn watch_ends_with_its_last_holder() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.sock");
        let mut watch = Watch::new().unwrap();
        let first = watch.await_path(&path).unwrap();
        let second = watch.await_path(&path).unwrap();
        watch.forget(&first);
        std::fs::write(&path, "").unwrap();
        assert!(watch.take().names.contains(&second));
        watch.forget(&second);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(watch.take().names.is_empty());
    }

    #[test]
    fn directory_that_goes_away_makes_everybody_look_anew() {
        let dir = tempfile::tempdir().unwrap();
        let below = dir.path().join("x");
        std::fs::create_dir(&below).unwrap();
        let mut watch = Watch::new().unwrap();
        watch.await_path(&below.join("a.sock")).unwrap();
        std::fs::remove_dir(&below).unwrap();
        assert!(watch.take().all);
        assert_eq!(watch.await_path(&below.join("a.sock")).unwrap(), (dir.path().to_owned(), "x".into()));
    }
}
