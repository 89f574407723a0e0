//! Which cores of the host the daemons work on: who polls a core has claimed it, and who sleeps when idle shares it.
//!
//! Two files for each core, in a directory of the whole host, made by who comes first and left there for the next:
//!
//! | file | lock | of |
//! | --- | --- | --- |
//! | `ringway-core-N` | shared | every daemon with a worker on core N: each sees the others |
//! | `ringway-core-N.poll` | exclusive | the one that polls it |
//!
//! The kernel takes a lock away with the process that holds it, and says in `/proc/locks` which that is, whatever stands
//! in a file. What is seen: daemons with the same `/run/lock`, in whatever network namespace, by their numbers where they
//! are of this process's namespace of processes. A container has a `/run/lock` of its own unless it is given the host's.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ringway_engine::IdlePolicy;
use rustix::fs::{FlockOperation, Mode, OFlags, flock};

use crate::fault::{Fault, reason};
use crate::host::peer::comm;

/// What is taken of the host's cores, until dropped.
#[derive(Debug, Default)]
pub(crate) struct Claims {
    /// Where the files are; None: nothing is ever claimed.
    dir: Option<PathBuf>,
    cores: Vec<Claimed>,
}

#[derive(Debug)]
struct Claimed {
    core: usize,
    /// Locked for all who work there.
    shared: File,
    /// Locked by the one who polls, whoever that is.
    polled: File,
}

impl Claims {
    /// Takes part in these cores, and has them alone among those who poll if `idle` says so. Without a directory to
    /// write to nothing is taken and nobody is seen, which is logged.
    ///
    /// # Errors
    /// Another process polls one of them.
    pub(crate) fn take(cores: &[usize], idle: IdlePolicy) -> Result<Claims, Fault> {
        Claims::take_in(Path::new(DIRECTORY), cores, idle)
    }

    fn take_in(dir: &Path, cores: &[usize], idle: IdlePolicy) -> Result<Claims, Fault> {
        let mut claims = Claims { dir: Some(dir.to_owned()), cores: Vec::new() };
        for &core in cores {
            claims.add(core, idle)?;
        }
        Ok(claims)
    }

    /// Takes part in one more core, as [`Claims::take`] does; nothing where no core was ever to be claimed.
    ///
    /// # Errors
    /// Another process polls it.
    pub(crate) fn add(&mut self, core: usize, idle: IdlePolicy) -> Result<(), Fault> {
        let Some(dir) = &self.dir else { return Ok(()) };
        let paths = paths(dir, core);
        let (shared, polled) = match (open(&paths.0), open(&paths.1)) {
            (Ok(shared), Ok(polled)) => (shared, polled),
            (Err(error), _) | (_, Err(error)) => {
                tracing::warn!(
                    "core {core} is not claimed, and another daemon on it is not seen: {}: {}",
                    paths.0.display(),
                    reason(&error)
                );
                return Ok(());
            }
        };
        if idle == IdlePolicy::Poll && flock(&polled, FlockOperation::NonBlockingLockExclusive).is_err() {
            let holder = holders(&polled).first().map_or_else(
                || "a process of another namespace, which cannot be seen from here".to_owned(),
                |pid| format!("{} (pid {pid})", comm(*pid)),
            );
            return Err(Fault::conflict(format!("core {core} is claimed: another process polls it"))
                .at("cores")
                .held_by(holder)
                .hint("--cores with others, or --idle adaptive, which shares a core"));
        }
        // Nobody takes this one alone.
        let _ = flock(&shared, FlockOperation::NonBlockingLockShared);
        self.cores.push(Claimed { core, shared, polled });
        Ok(())
    }

    /// Lets a core go.
    pub(crate) fn remove(&mut self, core: usize) {
        self.cores.retain(|claimed| claimed.core != core);
    }

    /// The other processes that work on a core, and how.
    pub(crate) fn others(&self, core: usize) -> Vec<String> {
        let Some(claimed) = self.cores.iter().find(|claimed| claimed.core == core) else { return Vec::new() };
        let own = i32::try_from(std::process::id()).unwrap_or(0);
        let polling = holders(&claimed.polled);
        let mut others = holders(&claimed.shared);
        others.retain(|pid| *pid != own);
        others.sort_unstable();
        others.dedup();
        let shown = |pid: i32| {
            let how = if polling.contains(&pid) { "which polls" } else { "adaptive" };
            format!("{} (pid {pid}), {how}", comm(pid))
        };
        others.into_iter().map(shown).collect()
    }
}

/// The processes that are seen to work on a core, by their locks, without taking part: daemons of ours, and SPDK's programs, which
/// poll. Not `own`.
pub(crate) fn seen_on(core: usize, own: Option<i32>) -> Vec<(i32, String)> {
    let (shared, polled) = paths(Path::new(DIRECTORY), core);
    let spdk = PathBuf::from(format!("/var/tmp/spdk_cpu_lock_{core:03}"));
    let holders =
        |path: &Path| std::fs::metadata(path).map_or_else(|_| Vec::new(), |facts| holders_of_file(&facts));
    let polling = [holders(&polled), holders(&spdk)].concat();
    let mut seen = [polling.clone(), holders(&shared)].concat();
    seen.retain(|pid| Some(*pid) != own);
    seen.sort_unstable();
    seen.dedup();
    let how = |pid: &i32| if polling.contains(pid) { "which polls" } else { "adaptive" };
    seen.iter().map(|pid| (*pid, format!("{} (pid {pid}), {}", comm(*pid), how(pid)))).collect()
}

/// The two files of a core.
fn paths(dir: &Path, core: usize) -> (PathBuf, PathBuf) {
    (dir.join(format!("ringway-core-{core}")), dir.join(format!("ringway-core-{core}.poll")))
}

/// Opens a file to lock it, made if it is not there: readable by all, so that all may lock it.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::open(path, flags, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => {
            let mode = Mode::from_raw_mode(0o644);
            match rustix::fs::open(path, flags | OFlags::CREATE | OFlags::EXCL, mode) {
                // Whatever the process's mask says.
                Ok(made) => rustix::fs::fchmod(&made, mode).map(|()| made)?,
                // Somebody else was faster.
                Err(rustix::io::Errno::EXIST) => rustix::fs::open(path, flags, Mode::empty())?,
                Err(error) => return Err(error.into()),
            }
        }
        other => other?,
    };
    let file = File::from(file);
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    Ok(file)
}

/// The processes that hold a lock on a file, as the kernel says.
fn holders(file: &File) -> Vec<i32> {
    file.metadata().map_or_else(|_| Vec::new(), |facts| holders_of_file(&facts))
}

fn holders_of_file(facts: &std::fs::Metadata) -> Vec<i32> {
    let Ok(locks) = std::fs::read_to_string("/proc/locks") else { return Vec::new() };
    let device = facts.dev();
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let wanted = format!("{major:02x}:{minor:02x}:{}", facts.ino());
    holders_of(&wanted, &locks)
}

/// Those who hold the file `wanted`, as `MAJOR:MINOR:INODE`, in a text of `/proc/locks`.
fn holders_of(wanted: &str, locks: &str) -> Vec<i32> {
    let holder = |line: &str| {
        // `1: FLOCK  ADVISORY  WRITE 812 00:19:1234 0 EOF`; one that waits has `->` in the second place.
        let mut words = line.split_whitespace().skip(1);
        let kind = words.next()?;
        let pid: i32 = words.nth(2)?.parse().ok()?;
        (["FLOCK", "POSIX"].contains(&kind) && words.next()? == wanted && pid > 0).then_some(pid)
    };
    locks.lines().filter_map(holder).collect()
}

/// Of the whole host, and everybody's by custom.
const DIRECTORY: &str = "/run/lock";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Kind;

    #[test]
    fn core_is_polled_by_one_and_shared_by_those_who_sleep() {
        let dir = tempfile::tempdir().unwrap();
        let take = |cores: &[usize], idle| Claims::take_in(dir.path(), cores, idle);
        let poll = take(&[3, 4], IdlePolicy::Poll).unwrap();
        let fault = take(&[5, 4], IdlePolicy::Poll).unwrap_err();
        assert_eq!(
            (fault.kind, fault.message.as_str()),
            (Kind::Conflict, "core 4 is claimed: another process polls it")
        );
        assert!(fault.held_by.unwrap().ends_with(&format!("(pid {})", std::process::id())));
        // What was taken before the refusal is let go.
        take(&[5], IdlePolicy::Poll).unwrap();
        let adaptive = take(&[4], IdlePolicy::Adaptive).unwrap();
        take(&[4], IdlePolicy::Adaptive).unwrap();
        // Its own process is no other.
        assert!(adaptive.others(4).is_empty() && adaptive.others(9).is_empty());
        drop(poll);
        take(&[3, 4], IdlePolicy::Poll).unwrap();
    }

    #[test]
    fn without_a_directory_nothing_is_claimed_and_nothing_refused() {
        let nowhere = Path::new("/nonexistent/locks");
        assert!(Claims::take_in(nowhere, &[1], IdlePolicy::Poll).unwrap().cores.is_empty());
        // What others put in the file's place is not followed.
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink("/etc/passwd", dir.path().join("ringway-core-1")).unwrap();
        assert!(Claims::take_in(dir.path(), &[1], IdlePolicy::Poll).unwrap().cores.is_empty());
    }

    #[test]
    fn holders_are_read_from_the_kernels_list() {
        let locks = "1: FLOCK  ADVISORY  WRITE 2048 fe:00:7 0 EOF\n1: -> FLOCK  ADVISORY  WRITE 9 fe:00:7 0 EOF\n\
                     2: FLOCK  ADVISORY  READ 5 fe:00:7 0 EOF\n3: POSIX  ADVISORY  WRITE 6 fe:00:7 0 EOF\n3: LEASE  ACTIVE  READ 8 fe:00:7 0 EOF\n\
                     4: FLOCK  ADVISORY  READ 7 fe:00:8 0 EOF\n5: FLOCK  ADVISORY  READ -1 fe:00:7 0 EOF\nx\n";
        assert_eq!(holders_of("fe:00:7", locks), [2048, 5, 6]);
    }
}
