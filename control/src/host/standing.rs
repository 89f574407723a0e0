//! What stands at a path where this process made something: the thing itself, nothing, or something that somebody else
//! put there, which is never touched.

use std::fs::{self, FileType, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::Path;

/// A file of ours, known again by its numbers. Whoever keeps this holds the file in some way, so that no other one gets
/// its numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) device: u64,
    pub(crate) inode: u64,
}

/// See the module's head.
#[derive(Debug)]
pub(crate) enum Standing {
    Ours,
    Gone,
    /// What it is, with its article.
    Foreign(&'static str),
    /// It cannot be looked at.
    Hidden(io::Error),
}

impl Identity {
    pub(crate) fn of(facts: &Metadata) -> Identity {
        Identity { device: facts.dev(), inode: facts.ino() }
    }

    /// What stands at `path`.
    pub(crate) fn standing(self, path: &Path) -> Standing {
        match fs::symlink_metadata(path) {
            Ok(facts) if Identity::of(&facts) == self => Standing::Ours,
            Ok(facts) => Standing::Foreign(noun(facts.file_type())),
            // A file in the place of a directory on the way: making it again says so.
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Standing::Gone
            }
            Err(error) => Standing::Hidden(error),
        }
    }
}

/// What a file is called that is not ours.
pub(crate) fn noun(kind: FileType) -> &'static str {
    if kind.is_dir() {
        "a directory"
    } else if kind.is_symlink() {
        "a symbolic link"
    } else if kind.is_socket() {
        "another socket"
    } else if kind.is_file() {
        "another file"
    } else {
        "something else"
    }
}
