//! A small system on a disk that a firmware boots from: what stands in for a distribution's image.
//!
//! ```text
//! sector 0      our boot sector, and the table of two partitions
//! partition 2   FAT: syslinux, the kernel and an initramfs that mounts partition 1
//! partition 1   ext4, the last on the disk: busybox and the programs asked for; a shell on the serial console
//! ```

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;

use crate::ensure;
use crate::error::{Context, Result};
use crate::image::{Archive, BUSYBOX, Kernel};
use crate::lab::Lab;
use crate::pace::WATCHDOG;
use crate::process;
use crate::tree::Tree;

/// The line on the console after which the shell takes commands.
pub const UP: &str = "the system is up";

/// Writes the image, as qcow2, with these programs of this machine in it.
pub fn write_image(lab: &Lab, programs: &[&str], to: &Path) -> Result<()> {
    let [disk, initramfs, config] =
        ["system.img", "system.initrd", "syslinux.cfg"].map(|name| lab.path(name));
    let kernel = Kernel::find()?;
    fs::write(&initramfs, first_stage(&kernel)?.finish())?;
    fs::write(&config, SYSLINUX)?;
    let file = File::create(&disk)?;
    file.set_len((FIRST_SECTOR + BOOT_SECTORS + ROOT_SECTORS) * SECTOR)?;
    file.write_all_at(&boot_sector(), 0)?;
    let partition = format!("{}@@{}", disk.display(), FIRST_SECTOR * SECTOR);
    run(
        "mformat",
        &["-i", &partition, "-T", &BOOT_SECTORS.to_string(), "-H", &FIRST_SECTOR.to_string(), "::"],
    )?;
    for (from, name) in [(&kernel.image, "vmlinuz"), (&initramfs, "initrd"), (&config, "syslinux.cfg")] {
        run("mcopy", &["-i", &partition, &from.display().to_string(), &format!("::{name}")])?;
    }
    let at = (FIRST_SECTOR * SECTOR).to_string();
    run("syslinux", &["-t", &at, "-i", &disk.display().to_string()])?;

    let root = lab.path("system");
    fs::create_dir_all(&root)?;
    let archive = lab.path("system.cpio");
    fs::write(&archive, second_stage(programs)?.finish())?;
    let unpack = format!("cd '{}' && cpio --quiet -id < '{}'", root.display(), archive.display());
    run("sh", &["-c", &unpack])?;
    let offset = format!("offset={}", root_offset());
    let [root, disk] = [&root, &disk].map(|path| path.display().to_string());
    let size = format!("{}k", ROOT_SECTORS * SECTOR / 1024);
    run(MKE2FS, &["-q", "-t", "ext4", "-b", "4096", "-d", &root, "-E", &offset, &disk, &size])?;
    run("qemu-img", &["convert", "-O", "qcow2", &disk, &to.display().to_string()])
}

/// Where the root's file system begins on the disk.
pub fn root_offset() -> u64 {
    (FIRST_SECTOR + BOOT_SECTORS) * SECTOR
}

/// Loads the modules, and goes on with what is on the disk.
fn first_stage(kernel: &Kernel) -> Result<Archive> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules", "proc", "root"] {
        archive.folder(folder);
    }
    archive.file("bin/busybox", 0o755, &busybox()?);
    for (position, module) in
        kernel.modules(&["virtio_blk", "virtio_net", "crc32c_generic", "ext4"])?.iter().enumerate()
    {
        archive.file(&format!("modules/{position:02}-{}.ko", module.name), 0o644, &module.bytes);
    }
    archive.file("init", 0o755, FIRST_INIT.as_bytes());
    Ok(archive)
}

/// What is on the disk.
fn second_stage(programs: &[&str]) -> Result<Archive> {
    let mut tree = Tree::of_system();
    for program in programs {
        tree.program(Path::new(program))?;
    }
    for folder in ["/bin", "/dev", "/proc", "/root", "/run", "/sys", "/tmp"] {
        tree.folder(Path::new(folder));
    }
    tree.file(Path::new(BUSYBOX), Path::new("/bin/busybox"))?;
    let listed = process::run(BUSYBOX, &["--list".into()], WATCHDOG)?;
    for applet in listed.stdout.lines().filter(|applet| *applet != "busybox") {
        tree.link(&Path::new("/bin").join(applet), Path::new(BUSYBOX));
    }
    let mut archive = tree.into_archive();
    archive.file("init", 0o755, SECOND_INIT.as_bytes());
    // Nobody but this shell is there to be asked.
    archive.file("shell", 0o644, b"alias poweroff='sync; poweroff -f'\n");
    Ok(archive)
}

/// Our boot sector: moves itself away, loads the first sector of partition 2 to where it was, and goes there.
///
/// It goes to where that sector's code begins, not to the jump before it. QEMU's translator keeps what it has made of an
/// address until the guest's processor writes there, and does not see that another process does: at 0x7c00 it would run this
/// sector's code a second time.
fn boot_sector() -> [u8; SECTOR as usize] {
    const CODE: [u8; 0x30] = [
        0xfa, // cli
        0x31, 0xc0, // xor ax, ax
        0x8e, 0xd8, // mov ds, ax
        0x8e, 0xc0, // mov es, ax
        0x8e, 0xd0, // mov ss, ax
        0xbc, 0x00, 0x7c, // mov sp, 0x7c00
        0xfb, // sti
        0xfc, // cld
        0xbe, 0x00, 0x7c, // mov si, 0x7c00
        0xbf, 0x00, 0x06, // mov di, 0x600
        0xb9, 0x00, 0x01, // mov cx, 256
        0xf3, 0xa5, // rep movsw
        0xea, 0x1e, 0x06, 0x00, 0x00, // jmp 0:0x61e, the next line
        0xbe, 0x30, 0x06, // mov si, 0x630: what to read, after this code
        0xb4, 0x42, // mov ah, 0x42: extended read; dl is the disk, as the firmware said
        0xcd, 0x13, // int 0x13
        0x72, 0xfe, // jc itself
        0xbe, 0xce, 0x07, // mov si, 0x7ce: partition 2 in the table
        0xea, 0x5a, 0x7c, 0x00, 0x00, // jmp 0:0x7c5a, where a FAT's first sector has its code
        0x00,
    ];
    let mut sector = [0; SECTOR as usize];
    sector[..CODE.len()].copy_from_slice(&CODE);
    // One sector to 0:0x7c00, from the partition's first.
    sector[0x30..0x38].copy_from_slice(&[0x10, 0, 1, 0, 0x00, 0x7c, 0, 0]);
    sector[0x38..0x40].copy_from_slice(&FIRST_SECTOR.to_le_bytes());
    let mut entry = |at: usize, active: u8, kind: u8, first: u64, sectors: u64| {
        sector[at..at + 8].copy_from_slice(&[active, 0xfe, 0xff, 0xff, kind, 0xfe, 0xff, 0xff]);
        sector[at + 8..at + 12].copy_from_slice(&(first as u32).to_le_bytes());
        sector[at + 12..at + 16].copy_from_slice(&(sectors as u32).to_le_bytes());
    };
    entry(0x1be, 0, LINUX, FIRST_SECTOR + BOOT_SECTORS, ROOT_SECTORS);
    entry(0x1ce, 0x80, FAT16, FIRST_SECTOR, BOOT_SECTORS);
    sector[0x1fe..].copy_from_slice(&[0x55, 0xaa]);
    sector
}

fn busybox() -> Result<Vec<u8>> {
    fs::read(BUSYBOX).context(|| format!("{BUSYBOX} (run deploy/test, which installs busybox-static)"))
}

fn run(program: &str, words: &[&str]) -> Result<()> {
    let words: Vec<String> = words.iter().map(|word| (*word).to_string()).collect();
    let finished = process::run(program, &words, WATCHDOG)
        .context(|| format!("{program} (run deploy/test, which installs it)"))?;
    ensure!(finished.code == 0, "{program} {}: {}{}", words.join(" "), finished.stdout, finished.stderr);
    Ok(())
}

const SECTOR: u64 = 512;
const FIRST_SECTOR: u64 = 2048;
/// 32 MiB.
const BOOT_SECTORS: u64 = 65_536;
/// 224 MiB.
const ROOT_SECTORS: u64 = 458_752;
const LINUX: u8 = 0x83;
const FAT16: u8 = 0x0e;
const MKE2FS: &str = "/usr/sbin/mke2fs";

const SYSLINUX: &str = "SERIAL 0 115200
DEFAULT linux
LABEL linux
 KERNEL vmlinuz
 INITRD initrd
 APPEND console=ttyS0 quiet panic=-1
";

const FIRST_INIT: &str = "#!/bin/busybox sh
alias b=/bin/busybox
b mount -t proc proc /proc
b mount -t devtmpfs dev /dev
for module in /modules/*; do b insmod $module; done
until [ -b /dev/vda1 ]; do b sleep 0.1; done
b mount -t ext4 -o discard /dev/vda1 /root
b umount /proc
b mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /init
";

const SECOND_INIT: &str = "#!/bin/busybox sh
export PATH=/usr/sbin:/usr/bin:/bin HOME=/root ENV=/shell
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t tmpfs run /run
mount -t tmpfs tmp /tmp
cd /root
echo the system is up
while :; do setsid cttyhack sh; done
";
