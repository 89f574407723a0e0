//! The programs that a hardware machine has beside the agent: Ringway, the lab's front-end, DPDK's testpmd, iproute2, with the libraries they need.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Context, Result};
use crate::image::Archive;
use crate::lab::Lab;
use crate::pace::WATCHDOG;
use crate::{daemon, ensure, process};

/// The archive of all of them, in the places where Debian has them.
pub(crate) fn archive(lab: &Lab) -> Result<Archive> {
    let mut tree = Tree::default();
    for merged in ["lib", "lib64", "sbin"] {
        if let Ok(to) = fs::read_link(Path::new("/").join(merged)) {
            tree.link(&Path::new("/").join(merged), &to);
        }
    }
    for folder in ["/run/lock", "/var/lib"] {
        tree.folder(Path::new(folder));
    }
    tree.link(Path::new("/var/run"), Path::new("/run"));
    let binaries = daemon::binaries()?;
    for (name, to) in [("ringwayd", RINGWAYD), ("ringway", RINGWAY), ("ringway-front", FRONT)] {
        let (built, stripped) = (binaries.join(name), lab.path(name));
        strip(&built, &stripped)?;
        tree.file(&stripped, Path::new(to))?;
        fs::remove_file(&stripped)?;
        tree.libraries(&built)?;
    }
    let plug_ins = PLUG_INS.map(|name| Path::new(PLUG_IN_FOLDER).join(name));
    for program in [TESTPMD, IP, NICE, SETPRIV, STDBUF].map(PathBuf::from).iter().chain(&plug_ins) {
        ensure!(program.exists(), "{} is not there: run deploy/test, which installs it", program.display());
        tree.resolved(program)?;
        tree.libraries(program)?;
    }
    Ok(tree.archive)
}

/// An archive that knows which of its folders and files are there.
#[derive(Debug, Default)]
struct Tree {
    archive: Archive,
    there: BTreeSet<PathBuf>,
}

impl Tree {
    fn folder(&mut self, path: &Path) {
        for folder in path.ancestors().collect::<Vec<_>>().into_iter().rev().skip(1) {
            if self.there.insert(folder.to_path_buf()) {
                self.archive.folder(&relative(folder));
            }
        }
    }

    fn link(&mut self, path: &Path, to: &Path) {
        self.folder(path.parent().unwrap_or(path));
        if self.there.insert(path.to_path_buf()) {
            self.archive.link(&relative(path), &to.to_string_lossy());
        }
    }

    fn file(&mut self, from: &Path, to: &Path) -> Result<()> {
        self.folder(to.parent().unwrap_or(to));
        if self.there.insert(to.to_path_buf()) {
            let content = fs::read(from).context(|| from.display().to_string())?;
            self.archive.file(&relative(to), 0o755, &content);
        }
        Ok(())
    }

    /// A file of this system where it really lies, and under its name if that is another.
    fn resolved(&mut self, path: &Path) -> Result<()> {
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
    fn libraries(&mut self, program: &Path) -> Result<()> {
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

fn strip(program: &Path, to: &Path) -> Result<()> {
    let words = ["-o".to_string(), to.display().to_string(), program.display().to_string()];
    let finished = process::run("strip", &words, WATCHDOG)?;
    ensure!(finished.code == 0, "strip {}: {}", program.display(), finished.stderr);
    Ok(())
}

fn relative(path: &Path) -> String {
    path.strip_prefix("/").unwrap_or(path).to_string_lossy().into_owned()
}

pub(crate) const RINGWAYD: &str = "/usr/sbin/ringwayd";
pub(crate) const RINGWAY: &str = "/usr/bin/ringway";
pub(crate) const FRONT: &str = "/usr/bin/ringway-front";
pub(crate) const TESTPMD: &str = "/usr/bin/dpdk-testpmd";
pub(crate) const IP: &str = "/sbin/ip";
pub(crate) const NICE: &str = "/usr/bin/nice";
pub(crate) const SETPRIV: &str = "/usr/bin/setpriv";
/// Has a program write its output a line at a time, though it goes to a file.
pub(crate) const STDBUF: &str = "/usr/libexec/coreutils/libstdbuf.so";
const PLUG_IN_FOLDER: &str = "/usr/lib/x86_64-linux-gnu/dpdk/pmds-23.0";
/// The files, not the links to them: DPDK loads no other names.
const PLUG_INS: [&str; 3] =
    ["librte_bus_vdev.so.23.0", "librte_mempool_ring.so.23.0", "librte_net_virtio.so.23.0"];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_and_the_loader_are_read_from_ldds_list() {
        let listed = "\tlinux-vdso.so.1 (0x1)\n\tlibc.so.6 => /lib/libc.so.6 (0x2)\n\t/lib64/ld.so.2 (0x3)\n";
        assert_eq!(library_paths(listed), [Path::new("/lib/libc.so.6"), Path::new("/lib64/ld.so.2")]);
    }
}
