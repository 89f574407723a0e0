//! A lock file that one process holds for as long as it lives, and that names its holder.

use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::fault::Fault;
use crate::host::peer;
use crate::host::standing::{Identity, Standing};

/// Held until dropped, by the kernel's doing also after a crash. The file itself stays.
#[derive(Debug)]
pub(crate) struct Guard {
    file: File,
    path: PathBuf,
    /// What it guards: a noun, and its name.
    what: &'static str,
    name: String,
}

impl Guard {
    /// Takes the lock for `what` (a noun) named `name`, or names who has it.
    pub(crate) fn take(path: &Path, what: &'static str, name: &str) -> Result<Guard, Fault> {
        let file = open(path, false).map_err(|error| refused(path, error))?;
        hold(&file, path, what, name)?;
        Ok(Guard { file, path: path.to_owned(), what, name: name.to_owned() })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What stands where the lock file was.
    pub(crate) fn standing(&self) -> Standing {
        match self.file.metadata() {
            Ok(facts) => Identity::of(&facts).standing(&self.path),
            Err(error) => Standing::Hidden(error),
        }
    }

    /// Takes the lock in a new file, where there must be none.
    pub(crate) fn renew(&mut self) -> Result<(), Fault> {
        let file = open(&self.path, true).map_err(|error| refused(&self.path, error))?;
        hold(&file, &self.path, self.what, &self.name)?;
        self.file = file;
        Ok(())
    }
}

fn open(path: &Path, is_new: bool) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).create_new(is_new).truncate(false).mode(0o640).open(path)
}

fn refused(path: &Path, error: io::Error) -> Fault {
    Fault::system(format!("cannot open the lock file {}", path.display()), error)
        .hint("give ringwayd a --ctl and a --state-dir in directories of its own user")
}

/// Locks the file and writes into it who has it.
fn hold(mut file: &File, path: &Path, what: &str, name: &str) -> Result<(), Fault> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
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
        Err(error) => return Err(refused(path, error.into())),
    }
    let text = format!("{}\n", std::process::id());
    file.set_len(0).and_then(|()| file.write_all(text.as_bytes())).map_err(|error| refused(path, error))
}
