//! The programs that a hardware machine has beside the agent: Ringway, the lab's front-end, DPDK's testpmd, iproute2, with the libraries they need.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::image::Archive;
use crate::lab::Lab;
use crate::pace::WATCHDOG;
use crate::tree::Tree;
use crate::{daemon, ensure, process};

/// The archive of all of them, in the places where Debian has them.
pub(crate) fn archive(lab: &Lab) -> Result<Archive> {
    let mut tree = Tree::of_system();
    for folder in ["/run/lock", "/var/lib"] {
        tree.folder(Path::new(folder));
    }
    tree.link(Path::new("/var/run"), Path::new("/run"));
    ringway(lab, &mut tree)?;
    let plug_ins = PLUG_INS.map(|name| Path::new(PLUG_IN_FOLDER).join(name));
    for program in [TESTPMD, IP, NICE, SETPRIV, STDBUF].map(PathBuf::from).iter().chain(&plug_ins) {
        tree.program(program)?;
    }
    Ok(tree.into_archive())
}

/// Ringway and the lab's front-end.
pub(crate) fn ringway(lab: &Lab, tree: &mut Tree) -> Result<()> {
    let binaries = daemon::binaries()?;
    for (name, to) in [("ringwayd", RINGWAYD), ("ringway", RINGWAY), ("ringway-front", FRONT)] {
        let (built, stripped) = (binaries.join(name), lab.path(name));
        strip(&built, &stripped)?;
        tree.file(&stripped, Path::new(to))?;
        fs::remove_file(&stripped)?;
        tree.libraries(&built)?;
    }
    Ok(())
}

fn strip(program: &Path, to: &Path) -> Result<()> {
    let words = ["-o".to_string(), to.display().to_string(), program.display().to_string()];
    let finished = process::run("strip", &words, WATCHDOG)?;
    ensure!(finished.code == 0, "strip {}: {}", program.display(), finished.stderr);
    Ok(())
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
