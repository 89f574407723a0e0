//! A lock file that one process holds for as long as it lives, and that names its holder.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};

use crate::fault::Fault;
use crate::peer;

/// Held until dropped, by the kernel's doing also after a crash. The file itself stays.
#[derive(Debug)]
pub(crate) struct Guard {
    _file: File,
}

impl Guard {
    /// Takes the lock for `what` (a noun) named `name`, or names who has it.
    pub(crate) fn take(path: &Path, what: &str, name: &str) -> Result<Guard, Fault> {
        let refused = |error: std::io::Error| {
            Fault::system(format!("cannot open the lock file {}", path.display()), error)
                .hint("give ringwayd a --ctl and a --state-dir in directories of its own user")
        };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o640)
            .open(path)
            .map_err(refused)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let mut text = String::new();
                let _ = file.read_to_string(&mut text);
                let holder = match text.trim().parse::<i32>() {
                    Ok(pid) => format!("{} (pid {pid})", peer::comm(pid)),
                    Err(_) => "a process that has not said its number yet".to_owned(),
                };
                return Err(Fault::conflict(format!("another ringwayd holds the {what} {name}"))
                    .held_by(holder)
                    .hint("stop that one, or give this one --ctl and --state-dir of its own"));
            }
            Err(error) => return Err(refused(error.into())),
        }
        file.set_len(0).map_err(refused)?;
        file.write_all(format!("{}\n", std::process::id()).as_bytes()).map_err(refused)?;
        Ok(Guard { _file: file })
    }
}
