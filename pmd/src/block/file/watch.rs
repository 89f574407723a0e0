//! Looks whether files that are disks are of another size, for as long as they are open: each once in a while, by one thread for
//! the process, which is started when it is needed first. One that hangs is left to a thread of its own until it answers.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use super::open::OpenFile;
use crate::later;
use crate::vdpa::DeviceHost;

static WATCH: Mutex<Watch> = Mutex::new(Watch { has_thread: false, files: Vec::new() });

struct Watch {
    has_thread: bool,
    files: Vec<Watched>,
}

#[derive(Clone)]
struct Watched {
    file: Weak<OpenFile>,
    host: DeviceHost,
    /// Somebody does, and waits for its answer.
    is_looked_at: Arc<AtomicBool>,
}

/// Tells `host` whenever the file is of another size. What the host has no thread for is not told.
pub(crate) fn watch(file: &Arc<OpenFile>, host: &DeviceHost) {
    let mut watch = lock();
    if !watch.has_thread {
        let thread = std::thread::Builder::new().name("rw-disks".to_owned());
        watch.has_thread = thread.spawn(run).is_ok();
    }
    watch.files.push(Watched {
        file: Arc::downgrade(file),
        host: host.clone(),
        is_looked_at: Arc::default(),
    });
}

fn run() {
    loop {
        std::thread::sleep(EVERY);
        let files = {
            let mut watch = lock();
            watch.files.retain(|watched| watched.file.strong_count() > 0);
            watch.files.clone()
        };
        if !files.is_empty() {
            // The others come in the next round if one hangs, which is left out then.
            let _ = later::within(LOOK_WITHIN, move || files.iter().for_each(Watched::look));
        }
    }
}

impl Watched {
    /// Looks at it, unless somebody does. Holds no other file meanwhile.
    fn look(&self) {
        if self.is_looked_at.swap(true, Ordering::Relaxed) {
            return;
        }
        if let Some(file) = self.file.upgrade() {
            let before = file.bytes();
            if file.look().is_ok_and(|bytes| bytes != before) {
                self.host.config_changed();
            }
            // If it is the last to have it: to close a file may take its time.
            if let Some(last) = Arc::into_inner(file) {
                later::dispose(move || drop(last));
            }
        }
        self.is_looked_at.store(false, Ordering::Relaxed);
    }
}

fn lock() -> MutexGuard<'static, Watch> {
    WATCH.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Between two looks at all files.
const EVERY: Duration = Duration::from_secs(1);
/// How long a look at all of them is waited for.
const LOOK_WITHIN: Duration = Duration::from_millis(300);

#[cfg(test)]
mod tests {
    use super::super::open::{Cache, Wish};
    use super::*;

    #[test]
    fn file_that_is_being_looked_at_is_left_out_and_none_is_kept_open() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let path = dir.path().join("disk");
        let on_disk = std::fs::File::create(&path).unwrap();
        on_disk.set_len(1 << 20).unwrap();
        let wish = Wish { path, cache: Some(Cache::Buffered), is_read_only: false };
        let file = OpenFile::open(wish, Duration::ZERO, &[]).unwrap();
        let watched = Watched {
            file: Arc::downgrade(&file),
            host: DeviceHost::unheard(),
            is_looked_at: Arc::new(AtomicBool::new(true)),
        };
        on_disk.set_len(2 << 20).unwrap();
        // Another thread is at it, which hangs.
        watched.look();
        assert_eq!(file.bytes(), 1 << 20);
        watched.is_looked_at.store(false, Ordering::Relaxed);
        watched.look();
        assert_eq!((file.bytes(), Arc::strong_count(&file)), (2 << 20, 1));
    }
}
