//! Files that are read whole: regular ones alone, up to a bound. A FIFO would be waited for, and a device has no end.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// The largest file: a thousand times what the most devices take.
const LARGEST: u64 = 64 << 20;

/// The whole of a file.
///
/// # Errors
/// It cannot be read, is no regular file, or is larger than the bound.
pub(crate) fn read(path: &Path) -> io::Result<Vec<u8>> {
    // Opening must not wait for a writer either.
    let flags = rustix::fs::OFlags::NONBLOCK | rustix::fs::OFlags::NOCTTY;
    let file = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    let facts = file.metadata()?;
    if facts.is_dir() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "it is a directory"));
    }
    if !facts.is_file() {
        // Something else is there, as for whoever would make it.
        return Err(io::Error::new(io::ErrorKind::AlreadyExists, "it is not a regular file"));
    }
    let too_large = || io::Error::other(format!("it is larger than {} MiB", LARGEST >> 20));
    if facts.len() > LARGEST {
        return Err(too_large());
    }
    let mut text = Vec::new();
    // Files of /proc have no length, and others may grow meanwhile.
    if file.take(LARGEST + 1).read_to_end(&mut text)? as u64 > LARGEST {
        return Err(too_large());
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_regular_file_or_too_large_is_refused_at_once() {
        let dir = tempfile::tempdir().unwrap();
        let fifo = dir.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RWXU).unwrap();
        for path in [fifo.as_path(), Path::new("/dev/zero")] {
            assert_eq!(read(path).unwrap_err().to_string(), "it is not a regular file");
        }
        assert_eq!(read(dir.path()).unwrap_err().to_string(), "it is a directory");
        let large = dir.path().join("large");
        let file = std::fs::File::create(&large).unwrap();
        file.set_len(LARGEST + 1).unwrap();
        assert_eq!(read(&large).unwrap_err().to_string(), "it is larger than 64 MiB");
        for len in [LARGEST - 1, LARGEST] {
            file.set_len(len).unwrap();
            assert_eq!(read(&large).unwrap().len() as u64, len);
        }
        file.set_len(3).unwrap();
        assert_eq!(read(&large).unwrap(), [0; 3]);
        assert_eq!(read(&dir.path().join("none")).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
