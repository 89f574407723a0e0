//! A tree of this system's files for a guest: programs in the places where Debian has them, with the libraries they need.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};
use crate::image::Archive;
use crate::pace::WATCHDOG;
use crate::{ensure, process};

/// An archive that knows which of its folders and files are there.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    archive: Archive,
    there: BTreeSet<PathBuf>,
}

impl Tree {
    /// With the links that a system has whose `/lib` is in `/usr`.
    pub(crate) fn of_system() -> Tree {
        let mut tree = Tree::default();
        for merged in ["lib", "lib64", "sbin"] {
            if let Ok(to) = fs::read_link(Path::new("/").join(merged)) {
                tree.link(&Path::new("/").join(merged), &to);
            }
        }
        tree
    }

    /// A program of this system with all that it needs.
    pub(crate) fn program(&mut self, path: &Path) -> Result<()> {
        ensure!(path.exists(), "{} is not there: run deploy/test, which installs it", path.display());
        self.resolved(path)?;
        let is_script = fs::read(path).is_ok_and(|content| content.starts_with(b"#!"));
        if is_script { Ok(()) } else { self.libraries(path) }
    }

    /// All of it.
    pub(crate) fn into_archive(self) -> Archive {
        self.archive
    }

    pub(crate) fn folder(&mut self, path: &Path) {
        for folder in path.ancestors().collect::<Vec<_>>().into_iter().rev().skip(1) {
            if self.there.insert(folder.to_path_buf()) {
                self.archive.folder(&relative(folder));
            }
        }
    }

    pub(crate) fn link(&mut self, path: &Path, to: &Path) {
        self.folder(path.parent().unwrap_or(path));
        if self.there.insert(path.to_path_buf()) {
            self.archive.link(&relative(path), &to.to_string_lossy());
        }
    }

    pub(crate) fn file(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.folder(to.parent().unwrap_or(to));
        if self.there.insert(to.to_path_buf()) {
            let content = fs::read(from).context(|| from.display().to_string())?;
            self.archive.file(&relative(to), 0o755, &content);
        }
        Ok(())
    }

    /// A file of this system where it really lies, and under its name if that is another.
    pub(crate) fn resolved(&mut self, path: &Path) -> Result<()> {
        let real = fs::canonicalize(path).context(|| path.display().to_string())?;
        self.file(&real, &real)?;
        let folder = fs::canonicalize(path.parent().unwrap_or(path))?;
        let name = folder.join(path.file_name().unwrap_or_default());
        if name != real {
            self.link(&name, &real);
        }
        Ok(())
    }

    /// The libraries that a program of this system needs, and its loader.
    pub(crate) fn libraries(&mut self, program: &Path) -> Result<()> {
        let finished = process::run("ldd", &[program.display().to_string()], WATCHDOG)?;
        ensure!(finished.code == 0, "ldd {}: {}", program.display(), finished.stderr);
        for library in library_paths(&finished.stdout) {
            self.resolved(&library)?;
        }
        Ok(())
    }
}

/// `libc.so.6 => /lib/libc.so.6 (0x…)` and `/lib64/ld-linux-x86-64.so.2 (0x…)`, but not the kernel's own `linux-vdso.so.1`.
fn library_paths(listed: &str) -> Vec<PathBuf> {
    let words = listed.lines().flat_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    words.map(PathBuf::from).collect()
}

fn relative(path: &Path) -> String {
    path.strip_prefix("/").unwrap_or(path).to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_read_from_ldds_list() {
        let listed = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n";
        assert_eq!(library_paths(listed), [Path::new("/lib/libc.so.6"), Path::new("/lib64/ld.so.2")]);
    }
}
