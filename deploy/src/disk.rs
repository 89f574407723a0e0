//! A disk to give to a guest, and the programs with which the guest works on it.

use std::path::{Path, PathBuf};

use crate::error::Result;
use crate::image::Archive;
use crate::tree::Tree;

/// A vhost-user-blk device of a guest.
#[derive(Debug, Clone)]
pub struct Disk {
    /// The device's socket.
    pub socket: PathBuf,
    /// Queues that QEMU offers.
    pub queues: u16,
    /// Entries of each.
    pub queue_size: u16,
    /// Packed rings, else split ones.
    pub packed: bool,
    /// The firmware boots from it.
    pub boots: bool,
}

impl Disk {
    /// A disk with one split queue of 128 entries, QEMU's default.
    pub fn new(socket: impl Into<PathBuf>) -> Disk {
        Disk { socket: socket.into(), queues: 1, queue_size: 128, packed: false, boots: false }
    }

    /// With that many queues.
    #[must_use]
    pub fn queues(self, queues: u16) -> Disk {
        Disk { queues, ..self }
    }

    /// With packed rings.
    #[must_use]
    pub fn packed(self, packed: bool) -> Disk {
        Disk { packed, ..self }
    }

    pub(crate) fn arguments(&self, idx: usize) -> Vec<String> {
        let Disk { socket, queues, queue_size, packed, boots } = self;
        let mut device =
            format!("vhost-user-blk-pci,chardev=d{idx},num-queues={queues},queue-size={queue_size}");
        if *packed {
            device += ",packed=on";
        }
        if *boots {
            device += ",bootindex=1";
        }
        vec![
            "-chardev".into(),
            format!("socket,id=d{idx},path={},reconnect-ms=50", socket.display()),
            "-device".into(),
            device,
        ]
    }
}

/// Modules of a guest that has disks.
pub(crate) const MODULES: [&str; 3] = ["virtio_blk", "crc32c_generic", "ext4"];

/// Programs of a guest that has disks.
pub(crate) fn programs() -> Result<Archive> {
    let mut tree = Tree::of_system();
    for program in [MKE2FS, E2FSCK, FSTRIM, BLKDISCARD, FIO] {
        tree.program(Path::new(program))?;
    }
    tree.folder(Path::new("/mnt"));
    Ok(tree.into_archive())
}

/// Makes ext4.
pub const MKE2FS: &str = "/usr/sbin/mke2fs";
/// Checks ext4.
pub const E2FSCK: &str = "/usr/sbin/e2fsck";
/// Gives back what a file system does not need.
pub const FSTRIM: &str = "/usr/sbin/fstrim";
/// Gives back a disk's space.
pub const BLKDISCARD: &str = "/usr/sbin/blkdiscard";
/// Writes and verifies.
pub const FIO: &str = "/usr/bin/fio";
