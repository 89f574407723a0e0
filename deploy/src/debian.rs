//! A Debian with systemd as its first process, in which Ringway's package is installed.
//!
//! ```text
//! /dev/vda  the root that deploy/test made: one for all tests, each with changes of its own
//! /dev/vdb  what the test brings: the agent, the packages, the kernel's modules
//! /dev/vdc  nothing: the test's to use
//! ```
//! With [`Machine::boot_with_functions`] it has an IOMMU, and two virtio network functions that hang on one wire.
//!
//! The initramfs loads what is needed for the first disk and goes on with its systemd; the agent is one of its units.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::agent::EchoOrder;
use crate::error::{Context, Error, Result};
use crate::image::{self, Archive, BUSYBOX, Kernel};
use crate::lab::{self, Lab, wait_for};
use crate::pace::WATCHDOG;
use crate::qemu::{self, Guest, Image, push};
use crate::{daemon, ensure, process};

/// The machine.
#[derive(Debug)]
pub struct Machine<'lab> {
    lab: &'lab Lab,
    guest: Guest,
}

impl<'lab> Machine<'lab> {
    /// Boots it, with these files in its `/mnt`.
    pub fn boot(lab: &'lab Lab, files: &[PathBuf]) -> Result<Machine<'lab>> {
        Machine::start(lab, files, false)
    }

    /// As [`Machine::boot`], behind an IOMMU and with the functions [`FUNCTIONS`], which Linux drives.
    pub fn boot_with_functions(lab: &'lab Lab, files: &[PathBuf]) -> Result<Machine<'lab>> {
        Machine::start(lab, files, true)
    }

    fn start(lab: &'lab Lab, files: &[PathBuf], has_functions: bool) -> Result<Machine<'lab>> {
        qemu::require_qemu()?;
        let kernel = Kernel::find()?;
        let root = root_image()?;
        let initramfs = lab.path("debian.cpio");
        fs::write(&initramfs, first_stage(&kernel)?.finish())?;
        let modules: &[&str] = if has_functions { &FUNCTION_MODULES } else { &[] };
        let second = second_disk(lab, &kernel, modules, files)?;
        let third = lab.path("third.img");
        fs::File::create(&third).and_then(|disk| disk.set_len(THIRD_BYTES))?;
        let mut line = Vec::new();
        push(&mut line, "-machine", "q35".into());
        push(&mut line, "-accel", "tcg,thread=single".into());
        push(&mut line, "-cpu", "max".into());
        push(&mut line, "-smp", "2".into());
        push(&mut line, "-m", "1024".into());
        if has_functions {
            push(&mut line, "-device", "intel-iommu,intremap=on,caching-mode=on".into());
        }
        for (idx, disk) in [&root, &second, &third].into_iter().enumerate() {
            let disk = disk.display();
            let drive = format!("file={disk},if=none,id=d{idx},format=raw,snapshot=on,cache=unsafe");
            push(&mut line, "-drive", drive);
            push(&mut line, "-device", format!("virtio-blk-pci,drive=d{idx}"));
        }
        let mut append = String::from("quiet root=/dev/vda rw systemd.show_status=0");
        if has_functions {
            functions(&mut line);
            append += " intel_iommu=on";
        }
        let image = Image { kernel: kernel.image, initramfs, append };
        let guest = Guest::start(lab, "debian", &[qemu::QEMU.into()], line, &image)?.wait_until_up(lab)?;
        Ok(Machine { lab, guest })
    }

    /// Runs a line in its shell; gives the exit code and what was written.
    pub fn shell(&mut self, line: &str) -> Result<(i32, String)> {
        let ended = self.guest.run(&["/bin/bash", "-c", line], SHELL_LIMIT)?;
        self.lab.say(format_args!("# {line}: {}\n{}", ended.code, ended.output.trim()));
        Ok((ended.code, ended.output))
    }

    /// Runs a program that takes long, which must succeed within `limit`; gives what was written.
    pub fn well_within(&mut self, limit: Duration, words: &[&str]) -> Result<String> {
        let ended = self.guest.run(words, limit)?;
        self.lab.say(format_args!("# {}: {}\n{}", words.join(" "), ended.code, ended.output.trim()));
        ensure!(ended.code == 0, "{}: exit code {}: {}", words.join(" "), ended.code, ended.output);
        Ok(ended.output.trim().to_string())
    }

    /// Runs a line in its shell, which must succeed; gives what was written.
    pub fn well(&mut self, line: &str) -> Result<String> {
        let (code, said) = self.shell(line)?;
        ensure!(code == 0, "{line}: exit code {code}: {said}");
        Ok(said.trim().to_string())
    }

    /// Runs a line in its shell, which must end with this exit code; gives what was written.
    pub fn ends_with(&mut self, wanted: i32, line: &str) -> Result<String> {
        let (code, said) = self.shell(line)?;
        ensure!(code == wanted, "{line}: exit code {code}, and not {wanted}: {said}");
        Ok(said.trim().to_string())
    }

    /// Starts a program in the background, by a line of its shell.
    pub fn launch(&mut self, name: &str, line: &str) -> Result<()> {
        self.lab.say(format_args!("# {line} &"));
        self.guest.launch(name, &["/bin/bash", "-c", &format!("exec {line}")])
    }

    /// Writes a line to the input of a program in the background.
    pub fn tell(&mut self, name: &str, line: &str) -> Result<()> {
        self.guest.tell(name, line)
    }

    /// Waits until a program in the background has said a line so many times.
    pub fn says(&mut self, name: &str, line: &str, times: usize) -> Result<()> {
        wait_for(&format!("`{line}` of {name}"), WATCHDOG, || {
            let said = self.said(name, line)?;
            let report = self.guest.program(name)?;
            let has_ended = report.code.is_some();
            ensure!(said >= times || !has_ended, "{name} ended with {:?}: {}", report.code, report.output);
            Ok((said >= times).then_some(()))
        })
    }

    /// How often a program in the background has said a line.
    pub fn said(&mut self, name: &str, line: &str) -> Result<usize> {
        let report = self.guest.program(name)?;
        Ok(report.output.lines().filter(|said| *said == line).count())
    }

    /// Waits until something is so.
    pub fn within(
        &mut self,
        what: &str,
        mut is_so: impl FnMut(&mut Machine<'lab>) -> Result<bool>,
    ) -> Result<()> {
        wait_for(what, WATCHDOG, || Ok(is_so(self)?.then_some(())))
    }

    /// Waits for the end of a program in the background, which must be a good one; gives what it wrote.
    pub fn ends_well(&mut self, name: &str) -> Result<String> {
        let code = wait_for(&format!("the end of {name}"), WATCHDOG, || Ok(self.guest.program(name)?.code))?;
        let said = self.guest.end(name)?.output;
        self.lab.say(format_args!("{name} ended: {code}\n{}", said.trim()));
        ensure!(code == 0, "{name}: exit code {code}: {said}");
        Ok(said)
    }

    /// Kills a program in the background.
    pub fn kill(&mut self, name: &str) -> Result<()> {
        self.guest.end(name).map(drop)
    }

    /// Sends echo requests of many sizes from its kernel; each must be answered, once and whole.
    pub fn echo(&mut self, order: EchoOrder) -> Result<()> {
        let to = order.to;
        let report = self.guest.echo(order)?;
        self.lab.say(format_args!("echo requests to {to}: {report:?}"));
        let others = report.duplicated + report.mismatched + report.missing;
        ensure!(report.sent > 0 && report.received == report.sent && others == 0, "{report:?}");
        Ok(())
    }

    /// Restarts it as an operator does; returns when its agent is ready again.
    pub fn reboot(&mut self) -> Result<()> {
        self.lab.say("reboot");
        self.guest.run(&["systemctl", "--no-block", "reboot"], WATCHDOG)?;
        self.guest.wait_until_ready(BOOT_LIMIT).map(drop)
    }

    /// Ends it.
    pub fn power_off(self) -> Result<()> {
        self.guest.power_off()
    }
}

/// Makes the package with `deploy/package`, of the release binaries as they are.
pub fn package(lab: &Lab, revision: u32) -> Result<PathBuf> {
    let binaries = daemon::binaries()?;
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("package");
    let words: Vec<String> = [
        format!("RINGWAY_BIN={}", binaries.display()),
        format!("RINGWAY_LAB={}", lab::root()?.display()),
        script.display().to_string(),
        "--no-build".into(),
        "--fast".into(),
        "--revision".into(),
        revision.to_string(),
        lab.folder().display().to_string(),
    ]
    .into();
    let made = process::run("env", &words, PACKAGE_LIMIT)?;
    ensure!(made.code == 0, "deploy/package: {}{}", made.stdout, made.stderr);
    let path = made.stdout.lines().next_back().map(PathBuf::from);
    path.filter(|path| path.exists()).ok_or_else(|| Error::new(format!("no package: {}", made.stdout)))
}

fn root_image() -> Result<PathBuf> {
    let folder = lab::root()?.join("debian");
    let images = fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let image = images.into_iter().find(|path| path.extension().is_some_and(|extension| extension == "img"));
    image.ok_or_else(|| {
        Error::new(format!("no Debian under {}: run deploy/test, which makes one", folder.display()))
    })
}

/// Loads what the first disk needs, and goes on with what is on it.
fn first_stage(kernel: &Kernel) -> Result<Archive> {
    let mut archive = Archive::default();
    for folder in ["bin", "dev", "modules", "proc", "root"] {
        archive.folder(folder);
    }
    archive.file("bin/busybox", 0o755, &fs::read(BUSYBOX).context(|| BUSYBOX.into())?);
    for (position, module) in kernel.modules(&ROOT_MODULES)?.iter().enumerate() {
        archive.file(&format!("modules/{position:02}-{}.ko", module.name), 0o644, &module.bytes);
    }
    archive.file("init", 0o755, INIT.as_bytes());
    Ok(archive)
}

/// Two virtio network functions, each in a slot of its own and both on one wire.
fn functions(line: &mut Vec<String>) {
    for (number, _) in (1..).zip(FUNCTIONS) {
        push(line, "-netdev", format!("hubport,id=n{number},hubid=0"));
        push(line, "-device", format!("pcie-root-port,id=rp{number},slot={number}"));
        let how = "iommu_platform=on,disable-legacy=on,romfile=";
        let place = format!("bus=rp{number},netdev=n{number},mac=52:54:00:00:02:{number:02x}");
        push(line, "-device", format!("virtio-net-pci,{place},{how}"));
    }
}

/// The second disk, with the kernel's modules that the machine needs, and these.
fn second_disk(lab: &Lab, kernel: &Kernel, modules: &[&str], files: &[PathBuf]) -> Result<PathBuf> {
    let (folder, disk) = (lab.path("second"), lab.path("second.img"));
    fs::create_dir_all(folder.join("modules"))?;
    let there = kernel.modules(&ROOT_MODULES)?;
    let more = kernel.modules(&[&ROOT_MODULES[..], &["tun", "bridge", "vhost_net"], modules].concat())?;
    for (position, module) in more.iter().filter(|module| !there.contains(module)).enumerate() {
        fs::write(folder.join(format!("modules/{position:02}-{}.ko", module.name)), &module.bytes)?;
    }
    fs::copy(image::agent()?, folder.join("ringway-guest"))?;
    for file in files {
        fs::copy(file, folder.join(file.file_name().unwrap_or_default()))
            .context(|| file.display().to_string())?;
    }
    let words = ["-q", "-t", "ext4", "-O", "^has_journal", "-m", "0", "-d"].map(String::from);
    let rest = [folder.display().to_string(), disk.display().to_string(), "256M".into()];
    let made = process::run("/usr/sbin/mke2fs", &[&words[..], &rest].concat(), WATCHDOG)?;
    ensure!(made.code == 0, "mke2fs: {}", made.stderr);
    fs::remove_dir_all(&folder)?;
    Ok(disk)
}

/// Where the functions are that a machine may have.
pub const FUNCTIONS: [&str; 2] = ["0000:01:00.0", "0000:02:00.0"];
const FUNCTION_MODULES: [&str; 3] = ["virtio_net", "vfio-pci", "vfio_iommu_type1"];
const ROOT_MODULES: [&str; 3] = ["virtio_blk", "crc32c_generic", "ext4"];
const THIRD_BYTES: u64 = 16 << 20;
const BOOT_LIMIT: Duration = Duration::from_secs(180);
const PACKAGE_LIMIT: Duration = Duration::from_secs(180);
/// An upgrade by dpkg takes half a minute where nothing else runs: all of it is emulated.
const SHELL_LIMIT: Duration = Duration::from_secs(180);
const INIT: &str = "#!/bin/busybox sh
alias b=/bin/busybox
b mount -t proc proc /proc
b mount -t devtmpfs dev /dev
for module in /modules/*; do b insmod $module; done
until [ -b /dev/vda ] && [ -b /dev/vdb ]; do b sleep 0.1; done
b mount -t ext4 /dev/vda /root
b umount /proc
b mount -o move /dev /root/dev
exec /bin/busybox switch_root /root /lib/systemd/systemd
";
