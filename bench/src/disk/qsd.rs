//! QEMU's storage daemon as a back-end: in a folder of its own, on one core.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::backend::Identity;
use crate::error::BenchError;
use crate::mortal;

/// What its disk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disk {
    /// Nothing: reads say nothing, writes are forgotten.
    Null,
    /// A file.
    File {
        /// By io_uring; else by threads.
        uring: bool,
        /// Past the page cache.
        direct: bool,
        /// Writes are durable before they are completed.
        through: bool,
    },
}

/// A running daemon. Killed when dropped, and its folder removed.
#[derive(Debug)]
pub struct Qsd {
    child: Child,
    socket: PathBuf,
    identity: Identity,
    _folder: tempfile::TempDir,
}

impl Qsd {
    /// Starts it on `core` with a disk of `bytes`, a file of which is made in a folder below `place`.
    pub fn start(disk: Disk, core: usize, queues: u16, bytes: u64, place: &Path) -> Result<Qsd, BenchError> {
        let system = BenchError::system;
        let folder = tempfile::Builder::new()
            .prefix("ringway-bench-")
            .tempdir_in(place)
            .map_err(system(format!("cannot make a directory in {}", place.display())))?;
        let (file, socket) = (folder.path().join("disk"), folder.path().join("qsd.sock"));
        if disk != Disk::Null {
            make_file(&file, bytes)?;
        }
        let flags = flags(disk, queues, bytes, &file, &socket);
        let program = std::env::var_os(VARIABLE).map_or_else(|| PathBuf::from(PROGRAM), PathBuf::from);
        // Its threads may run where it may.
        let spawned = match find(&program) {
            Some(program) => mortal::command("taskset")
                .args(["--cpu-list", &core.to_string()])
                .arg(program)
                .args(&flags)
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .spawn(),
            None => Err(std::io::ErrorKind::NotFound.into()),
        };
        let mut child = spawned.map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => BenchError::MissingPeer {
                program: program.display().to_string(),
                package: "qemu-utils",
                variable: VARIABLE,
            },
            _ => system(format!("cannot start {}", program.display()))(error),
        })?;
        let begun = Instant::now();
        while !socket.exists() {
            let is_over = matches!(child.try_wait(), Ok(Some(_)) | Err(_));
            if is_over || begun.elapsed() > PATIENCE {
                let _ = child.kill();
                let _ = child.wait();
                let what = if is_over { "ended at once" } else { "made no socket" };
                return Err(BenchError::Peer {
                    peer: PROGRAM.to_owned(),
                    what: format!("{what}: {}", flags.join(" ")),
                });
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        // It has opened the file: what is left behind when the suite is killed goes with the daemon.
        let _ = std::fs::remove_file(&file);
        let identity = Identity { name: "qsd".to_owned(), version: version(&program), flags };
        Ok(Qsd { child, socket, identity, _folder: folder })
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it is.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }
}

impl Drop for Qsd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A program by its path, or on the `PATH`.
fn find(program: &Path) -> Option<PathBuf> {
    if program.components().count() > 1 {
        return program.is_file().then(|| program.to_owned());
    }
    let paths = std::env::var_os("PATH")?;
    std::env::split_paths(&paths).map(|folder| folder.join(program)).find(|path| path.is_file())
}

/// Makes a file of which every byte was written, so that neither reads nor writes meet holes.
pub(crate) fn make_file(path: &Path, bytes: u64) -> Result<(), BenchError> {
    let failed = BenchError::system(format!("cannot make {} of {bytes} bytes", path.display()));
    let write = || {
        let mut file = File::create(path)?;
        std::io::copy(&mut std::io::repeat(0).take(bytes), &mut file)?;
        file.sync_all()
    };
    write().map_err(failed)
}

fn flags(disk: Disk, queues: u16, bytes: u64, file: &Path, socket: &Path) -> Vec<String> {
    let on = |yes: bool| if yes { "on" } else { "off" };
    let (node, through) = match disk {
        Disk::Null => (format!("driver=null-co,node-name=disk,size={bytes},read-zeroes=off"), false),
        Disk::File { uring, direct, through } => {
            let aio = if uring { "io_uring" } else { "threads" };
            let path = file.display();
            let node = format!(
                "driver=file,node-name=disk,filename={path},discard=unmap,aio={aio},cache.direct={}",
                on(direct)
            );
            (node, through)
        }
    };
    let export = format!(
        "type=vhost-user-blk,id=disk,addr.type=unix,addr.path={},node-name=disk,writable=on,num-queues={queues},\
         writethrough={}",
        socket.display(),
        on(through)
    );
    ["--blockdev", &node, "--export", &export].map(str::to_owned).to_vec()
}

/// What it tells of its version: `qemu-storage-daemon version 10.0.2 (Debian ..)`.
fn version(program: &Path) -> String {
    let told = Command::new(program).arg("--version").output();
    let told = told.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    let line = told.lines().next().unwrap_or_default();
    line.strip_prefix("qemu-storage-daemon version ").unwrap_or("unknown").to_owned()
}

/// Names the program, if it is not on the path.
const VARIABLE: &str = "RINGWAY_QSD";
const PROGRAM: &str = "qemu-storage-daemon";
const PATIENCE: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_disk_has_its_words() {
        let words = |disk| flags(disk, 4, 1 << 20, Path::new("/f/disk"), Path::new("/f/s")).join(" ");
        let null = words(Disk::Null);
        assert!(
            null.contains("driver=null-co") && null.contains("size=1048576") && !null.contains("filename"),
            "{null}"
        );
        let file = words(Disk::File { uring: true, direct: true, through: true });
        for part in [
            "filename=/f/disk",
            "aio=io_uring",
            "cache.direct=on",
            "writethrough=on",
            "num-queues=4",
            "path=/f/s",
        ] {
            assert!(file.contains(part), "{part}: {file}");
        }
        let threads = words(Disk::File { uring: false, direct: false, through: false });
        assert!(threads.contains("aio=threads") && threads.contains("writethrough=off"), "{threads}");
    }
}
