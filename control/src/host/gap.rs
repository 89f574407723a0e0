//! How long nobody served: a daemon that is told to stop leaves the time in its runtime directory, its successor reads it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// In the runtime directory, between two daemons.
const FILE: &str = "stopped";

/// Now, on the clock that all processes of this boot share.
pub(crate) fn now() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Leaves it to the successor that this daemon has served nobody since then.
pub(crate) fn leave(dir: &Path, since: Duration) {
    let boot = boot_id();
    let stamp = format!("{} {boot}\n", since.as_nanos());
    if let Err(error) = fs::write(dir.join(FILE), stamp) {
        tracing::debug!(%error, "the successor will not know how long nobody served");
    }
}

/// Since when nobody has served, of a predecessor that was told to stop since this host was booted. Read once.
pub(crate) fn take(dir: &Path) -> Option<Duration> {
    let path = dir.join(FILE);
    let stamp = fs::read_to_string(&path).ok()?;
    let _ = fs::remove_file(&path);
    let (since, boot) = stamp.split_once(' ')?;
    let since = Duration::from_nanos(since.parse().ok()?);
    (boot.trim_end() == boot_id() && since <= now()).then_some(since)
}

/// The host's boot. Nothing where a sandbox hides it; then the runtime directory, which goes with the boot, says as much.
pub(crate) fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_one_leaves_the_next_takes_once_and_only_of_this_boot() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(take(dir.path()), None);
        let since = now();
        leave(dir.path(), since);
        assert_eq!(take(dir.path()), Some(since));
        assert_eq!(take(dir.path()), None, "once");
        leave(dir.path(), now() + Duration::from_secs(60));
        assert_eq!(take(dir.path()), None, "of the future");
        for stamp in ["", "x", "5 other-boot", "5", &format!("y {}", boot_id())] {
            fs::write(dir.path().join(FILE), stamp).unwrap();
            assert_eq!(take(dir.path()), None, "{stamp}");
        }
    }
}
