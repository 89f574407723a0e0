//! The file that this process runs, and what has become of it: an upgrade puts another in its place.

use std::fs;
use std::path::PathBuf;

use crate::host::standing::Identity;
use crate::operator::api::Binary;

/// The file that this process runs.
#[derive(Debug)]
pub(crate) struct Program {
    started_from: Option<(PathBuf, Identity)>,
}

impl Program {
    /// As it is at the start of the process.
    pub(crate) fn of_process() -> Program {
        let path = std::env::current_exe().ok();
        // The link leads to the file itself, whatever stands at its path by now.
        let runs = fs::metadata("/proc/self/exe").ok();
        Program { started_from: path.zip(runs).map(|(path, runs)| (path, Identity::of(&runs))) }
    }

    /// As it is now. What cannot be told counts as installed.
    pub(crate) fn standing(&self) -> Binary {
        let Some((path, runs)) = &self.started_from else { return Binary::Installed };
        match fs::metadata(path) {
            Ok(now) if Identity::of(&now) == *runs => Binary::Installed,
            Ok(_) => Binary::Replaced,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Binary::Removed,
            Err(_) => Binary::Installed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_that_was_replaced_or_removed_is_told() {
        assert_eq!(Program::of_process().standing(), Binary::Installed);
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("daemon"), dir.path().join("daemon.new"));
        fs::write(&path, "1").unwrap();
        let runs = Identity::of(&fs::metadata(&path).unwrap());
        let program = Program { started_from: Some((path.clone(), runs)) };
        assert_eq!(program.standing(), Binary::Installed);
        // As a package manager does it.
        fs::write(&other, "1").unwrap();
        fs::rename(&other, &path).unwrap();
        assert_eq!(program.standing(), Binary::Replaced);
        fs::remove_file(&path).unwrap();
        assert_eq!(program.standing(), Binary::Removed);
    }
}
