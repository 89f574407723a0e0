//! The host's files, below a root: texts, lists of cores and masks, as the kernel writes them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::fault::reason;

/// A host, by its files. Each error is a sentence of what is not told, and why.
#[derive(Debug)]
pub(super) struct Host {
    root: PathBuf,
}

impl Host {
    /// The one whose `/proc` and `/sys` are below `root`.
    pub(super) fn below(root: &Path) -> Host {
        Host { root: root.to_owned() }
    }

    /// Whether it is the host that this process runs on.
    pub(super) fn is_own(&self) -> bool {
        self.root == Path::new("/")
    }

    pub(super) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// A file's text, without what is blank at its ends.
    pub(super) fn text(&self, path: &str) -> Result<String, String> {
        let bytes = fs::read(self.path(path)).map_err(|error| untold(path, &error))?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// As [`Host::text`]; None where the file is not there.
    pub(super) fn text_if_there(&self, path: &str) -> Result<Option<String>, String> {
        match fs::read(self.path(path)) {
            Ok(bytes) => Ok(Some(String::from_utf8_lossy(&bytes).trim().to_owned())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(untold(path, &error)),
        }
    }

    pub(super) fn number(&self, path: &str) -> Result<u64, String> {
        let text = self.text(path)?;
        text.parse().map_err(|_| format!("{path} has no number: {text}"))
    }

    /// A list of cores, `0-3,8`.
    pub(super) fn cores(&self, path: &str) -> Result<Vec<usize>, String> {
        let text = self.text(path)?;
        cores_of(&text).ok_or_else(|| format!("{path} is no list of cores: {text}"))
    }

    /// A mask of cores, `ff,ffffffff`.
    pub(super) fn mask(&self, path: &str) -> Result<Vec<usize>, String> {
        let text = self.text(path)?;
        mask_of(&text).ok_or_else(|| format!("{path} is no mask of cores: {text}"))
    }

    /// What is in a directory, by name; numbers in their order.
    pub(super) fn names(&self, path: &str) -> Result<Vec<String>, String> {
        let entries = fs::read_dir(self.path(path)).map_err(|error| untold(path, &error))?;
        let mut names: Vec<String> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort_by_key(|name| {
            let digits: String = name.chars().filter(char::is_ascii_digit).collect();
            (digits.parse::<u64>().ok(), name.clone())
        });
        Ok(names)
    }

    pub(super) fn is_dir(&self, path: &str) -> bool {
        self.path(path).is_dir()
    }

    /// The last part of what a link leads to.
    pub(super) fn link(&self, path: &str) -> Option<String> {
        let to = fs::read_link(self.path(path)).ok()?;
        Some(to.file_name()?.to_string_lossy().into_owned())
    }

    /// All of what a link leads to.
    pub(super) fn whole_link(&self, path: &str) -> Option<PathBuf> {
        fs::read_link(self.path(path)).ok()
    }
}

fn untold(path: &str, error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::NotFound => format!("{path} is not there"),
        _ => format!("{path}: {}", reason(error)),
    }
}

/// The kernel's list of cores. Where there is none it is empty, or `(null)`.
pub(super) fn cores_of(text: &str) -> Option<Vec<usize>> {
    if text.is_empty() || text == "(null)" {
        return Some(Vec::new());
    }
    crate::devices::placement::parse_cores(text).ok()
}

/// The kernel's mask: words of 32 bits, the highest first.
pub(super) fn mask_of(text: &str) -> Option<Vec<usize>> {
    let mut cores = Vec::new();
    for (word, digits) in text.split(',').rev().enumerate() {
        let bits = u32::from_str_radix(digits.trim(), 16).ok()?;
        cores.extend((0..32).filter(|bit| bits >> bit & 1 == 1).map(|bit| word * 32 + bit));
    }
    Some(cores)
}

/// Cores as a mask, as the kernel reads it.
pub(super) fn mask_text(cores: &[usize]) -> String {
    let words = cores.iter().max().map_or(1, |highest| highest / 32 + 1);
    let word = |at: usize| {
        cores.iter().filter(|core| **core / 32 == at).fold(0_u32, |bits, core| bits | 1 << (core % 32))
    };
    let first = format!("{:x}", word(words - 1));
    (0..words - 1).rev().fold(first, |text, at| format!("{text},{:08x}", word(at)))
}

/// The cores that run.
pub(super) const ONLINE: &str = "/sys/devices/system/cpu/online";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn masks_and_lists_are_read_as_the_kernel_writes_them() {
        assert_eq!(mask_of("f"), Some(vec![0, 1, 2, 3]));
        assert_eq!(mask_of("1,80000001"), Some(vec![0, 31, 32]));
        assert_eq!((mask_of(""), mask_of("x")), (None, None));
        assert_eq!(cores_of("0-2,8"), Some(vec![0, 1, 2, 8]));
        assert_eq!((cores_of(""), cores_of("(null)"), cores_of("a")), (Some(vec![]), Some(vec![]), None));
        for cores in [vec![0], vec![0, 31, 32], vec![64], vec![1, 2]] {
            assert_eq!(mask_of(&mask_text(&cores)), Some(cores));
        }
        assert_eq!(mask_text(&[]), "0");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let host = Host::below(dir.path());
        assert_eq!(host.text("/sys/x").unwrap_err(), "/sys/x is not there");
        assert_eq!(host.text_if_there("/sys/x"), Ok(None));
        fs::create_dir_all(host.path("/sys/x")).unwrap();
        for name in ["10", "9", "a2"] {
            fs::write(host.path("/sys/x").join(name), "").unwrap();
        }
        assert_eq!(host.names("/sys/x").unwrap(), ["a2", "9", "10"]);
        assert!(host.number("/sys/x/9").is_err() && host.cores("/sys/x/9").unwrap().is_empty());
    }
}
