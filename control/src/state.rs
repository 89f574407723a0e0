//! The state directory: the devices that operators added, kept over restarts.
//!
//! One file, `devices.json`, replaced as a whole: written beside, flushed to disk, renamed. A file that cannot be read
//! stops the start with an error that names it; it is never overwritten unread.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::api::{DeviceEntry, MgmtEntry};
use crate::fault::{Fault, Kind};
use crate::guard::Guard;

/// The format of the file.
const FORMAT: u32 = 1;

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Kept {
    format: u32,
    /// Changes to the devices, over restarts.
    pub(crate) generation: u64,
    /// Management devices that operators added.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) mgmtdevs: Vec<MgmtEntry>,
    /// In the order in which they were added.
    pub(crate) devices: Vec<DeviceEntry>,
}

impl Default for Kept {
    fn default() -> Self {
        Kept::new(0, Vec::new(), Vec::new())
    }
}

impl Kept {
    pub(crate) fn new(generation: u64, mgmtdevs: Vec<MgmtEntry>, devices: Vec<DeviceEntry>) -> Kept {
        Kept { format: FORMAT, generation, mgmtdevs, devices }
    }
}

/// The state directory, held for as long as the process.
#[derive(Debug)]
pub(crate) struct StateDir {
    path: PathBuf,
    _guard: Guard,
}

impl StateDir {
    /// Takes the directory, makes it if it is not there, and reads what is kept.
    pub(crate) fn open(path: &Path) -> Result<(StateDir, Kept), Fault> {
        let shown = path.display();
        DirBuilder::new()
            .recursive(true)
            .mode(0o750)
            .create(path)
            .map_err(|error| Fault::system(format!("cannot make the state directory {shown}"), error))
            .map_err(|fault| fault.hint("ringwayd --state-dir DIRECTORY"))?;
        let guard = Guard::take(&path.join("lock"), "state directory", &shown.to_string())?;
        let dir = StateDir { path: path.to_owned(), _guard: guard };
        let kept = dir.read()?;
        Ok((dir, kept))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn file(&self) -> PathBuf {
        self.path.join("devices.json")
    }

    fn read(&self) -> Result<Kept, Fault> {
        let file = self.file();
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Kept::default()),
            Err(error) => return Err(Fault::system(format!("cannot read {}", file.display()), error)),
        };
        let refuse = |why: String| {
            Fault::new(Kind::Runtime, format!("the state file {} cannot be used: {why}", file.display()))
                .at(file.display().to_string())
                .hint("mend it, or move it away to start without the devices it holds; nothing was changed")
        };
        let kept: Kept = serde_json::from_slice(&text).map_err(|error| refuse(error.to_string()))?;
        match kept.format {
            FORMAT => Ok(kept),
            other => {
                Err(refuse(format!("format {other} is not known to this version, which knows {FORMAT}")))
            }
        }
    }

    /// Replaces what is kept. When this returns Ok, it is on disk.
    pub(crate) fn write(&self, kept: &Kept) -> Result<(), Fault> {
        let file = self.file();
        self.replace(&file, kept).map_err(|error| {
            Fault::system(format!("cannot keep the change in {}", file.display()), error)
                .hint("free space or mend the state directory; the change was not made")
        })
    }

    fn replace(&self, file: &Path, kept: &Kept) -> io::Result<()> {
        let beside = self.path.join("devices.json.new");
        let mut text = serde_json::to_vec_pretty(kept)?;
        text.push(b'\n');
        let mut new = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&beside)?;
        new.write_all(&text)?;
        new.sync_all()?;
        fs::rename(&beside, file)?;
        File::open(&self.path)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(name: &str) -> DeviceEntry {
        DeviceEntry {
            name: name.into(),
            mgmtdev: "sim/net".into(),
            mtu: Some(9000),
            ..DeviceEntry::default()
        }
    }

    #[test]
    fn what_was_written_is_read_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let kept = Kept::new(7, Vec::new(), vec![entry("b"), entry("a")]);
        {
            let (state, empty) = StateDir::open(&dir.path().join("deep/er")).unwrap();
            assert_eq!(empty, Kept::default());
            state.write(&kept).unwrap();
        }
        assert_eq!(StateDir::open(&dir.path().join("deep/er")).unwrap().1, kept);
    }

    #[test]
    fn corrupt_file_is_an_error_that_names_it_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("devices.json");
        for bad in ["{\"format\":1,", "", "{\"format\":99,\"generation\":0,\"devices\":[]}"] {
            fs::write(&file, bad).unwrap();
            let fault = StateDir::open(dir.path()).unwrap_err();
            assert!(fault.to_string().contains("devices.json"), "{fault}");
            assert_eq!(fs::read_to_string(&file).unwrap(), bad);
        }
    }

    #[test]
    fn half_written_file_of_a_crash_is_not_read() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("devices.json.new"), "{\"form").unwrap();
        assert_eq!(StateDir::open(dir.path()).unwrap().1, Kept::default());
    }

    #[test]
    fn second_holder_is_refused_and_the_first_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let _first = StateDir::open(dir.path()).unwrap();
        let fault = StateDir::open(dir.path()).unwrap_err();
        assert_eq!(fault.kind, Kind::Conflict);
        assert!(fault.held_by.unwrap().contains(&format!("pid {}", std::process::id())));
    }
}
