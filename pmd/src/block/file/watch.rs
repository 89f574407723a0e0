//! Looks whether files that are disks are of another size, for as long as they are open: one thread for the process, which is
//! started when it is needed first. What somebody does to a file, the kernel tells; a block device is looked at.

use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;

use super::open::OpenFile;
use crate::later;
use crate::vdpa::DeviceHost;

static WATCH: Mutex<Watch> = Mutex::new(Watch { inotify: None, files: Vec::new() });

struct Watch {
    /// None: there is no thread.
    inotify: Option<Arc<OwnedFd>>,
    files: Vec<Watched>,
}

struct Watched {
    file: Weak<OpenFile>,
    /// None: it is looked at.
    number: Option<i32>,
    host: DeviceHost,
}

/// Tells `host` whenever the file is of another size. What the host has no thread or descriptor for is not told.
pub(crate) fn watch(file: &Arc<OpenFile>, host: &DeviceHost) {
    let mut watch = lock();
    if watch.inotify.is_none() {
        let flags = inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK;
        let Ok(made) = inotify::init(flags) else { return };
        let made = Arc::new(made);
        let theirs = Arc::clone(&made);
        let thread = std::thread::Builder::new().name("rw-disks".to_owned());
        if thread.spawn(move || run(&theirs)).is_err() {
            return;
        }
        watch.inotify = Some(made);
    }
    let number = watch.inotify.as_ref().filter(|_| !file.is_block).and_then(|inotify| {
        let path = format!("/proc/self/fd/{}", file.as_file().as_raw_fd());
        inotify::add_watch(&**inotify, path, inotify::WatchFlags::MODIFY | inotify::WatchFlags::ATTRIB).ok()
    });
    watch.files.push(Watched { file: Arc::downgrade(file), number, host: host.clone() });
}

fn run(inotify: &OwnedFd) {
    let mut room = [MaybeUninit::uninit(); 4096];
    loop {
        let mut fds = [PollFd::new(inotify, PollFlags::IN)];
        let every = rustix::time::Timespec { tv_sec: EVERY.as_secs() as i64, tv_nsec: 0 };
        let _ = poll(&mut fds, Some(&every));
        let mut changed = Vec::new();
        let mut events = inotify::Reader::new(inotify, &mut room);
        while let Ok(event) = events.next() {
            if !changed.contains(&event.wd()) {
                changed.push(event.wd());
            }
        }
        look(inotify, &changed);
        // A guest's own writes are changes, too: they are looked at together.
        std::thread::sleep(PAUSE);
    }
}

/// Looks at the files that changed, and at those of which the kernel does not tell.
fn look(inotify: &OwnedFd, changed: &[i32]) {
    let mut due = Vec::new();
    {
        let mut watch = lock();
        let mut gone = Vec::new();
        watch.files.retain(|watched| {
            let is_there = watched.file.strong_count() > 0;
            gone.extend(watched.number.filter(|_| !is_there));
            is_there
        });
        for number in gone {
            if !watch.files.iter().any(|watched| watched.number == Some(number)) {
                let _ = inotify::remove_watch(inotify, number);
            }
        }
        let is_due = |watched: &&Watched| watched.number.is_none_or(|number| changed.contains(&number));
        due.extend(
            watch.files.iter().filter(is_due).filter_map(|w| Some((w.file.upgrade()?, w.host.clone()))),
        );
    }
    for (file, host) in due {
        let before = file.bytes();
        if file.look().is_ok_and(|bytes| bytes != before) {
            host.config_changed();
        }
        // It may be the last to have it, and to close a file may take its time.
        later::dispose(move || drop(file));
    }
}

fn lock() -> MutexGuard<'static, Watch> {
    WATCH.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Between two looks at block devices.
const EVERY: Duration = Duration::from_secs(1);
/// Between two looks at what the kernel told.
const PAUSE: Duration = Duration::from_millis(100);
