//! The machine itself: which functions it has, its boot, and how its steps are told.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::termios::{OptionalActions, Termios};
use serde_json::json;

use super::pci::folder;
use super::{KernelLog, VIRTIO, programs};
use crate::agent::ShellReport;
use crate::ensure;
use crate::error::{Context, Result};
use crate::image::{self, Kernel};
use crate::lab::{Lab, wait_for};
use crate::netns::Netns;
use crate::pace::WATCHDOG;
use crate::qemu::{Guest, Image, Qemu, push};

/// Which virtio network function a machine has beside its igb.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Model {
    /// One function, as the installed QEMU has it, and an NVMe controller with virtual functions.
    Function,
    /// One with two virtual functions: a newer QEMU, unpacked beside the kernel.
    VirtualFunctions,
    /// As the first, without an IOMMU.
    NoIommu,
    /// One function with four queue pairs: its wire is a bridge of the host, in a namespace of its own.
    QueuePairs,
}

impl Model {
    fn qemu(self) -> Result<Qemu> {
        match self {
            Model::Function | Model::NoIommu | Model::QueuePairs => Qemu::installed(),
            Model::VirtualFunctions => Qemu::unpacked(),
        }
    }

    fn arguments(self, lab: &Lab) -> Result<Vec<String>> {
        let mut line = Vec::new();
        push(&mut line, "-machine", "q35,kernel-irqchip=split".into());
        // One vCPU. With a thread for each of several, QEMU 10.0 takes one device's registers for another's while functions'
        // registers are placed (an access to the interrupt controller went to the IOMMU in one boot of ten: a guest that hangs,
        // or QEMU's "section_index < d->map.sections_nb"). With one thread for several, one that polls keeps it for 100 ms.
        push(&mut line, "-accel", "tcg,thread=single".into());
        push(&mut line, "-cpu", "max".into());
        push(&mut line, "-m", MEMORY_MIB.to_string());
        if self != Model::NoIommu {
            push(&mut line, "-device", "intel-iommu,intremap=on,caching-mode=on".into());
        }
        let virtio: &[&str] = match self {
            Model::Function | Model::NoIommu => &["bus=rp1,id=fn"],
            Model::QueuePairs => &["bus=rp1,mq=on,vectors=10"],
            // Virtual functions before the function that has them; the address is the virtual function's place.
            Model::VirtualFunctions => &[
                "bus=rp1,addr=0x0.0x1,sriov-pf=pf",
                "bus=rp1,addr=0x0.0x2,sriov-pf=pf",
                "bus=rp1,addr=0x0.0x0,id=pf",
            ],
        };
        for port in 0..=virtio.len() {
            let queues = QUEUES.get(port).unwrap_or(&1);
            let netdev = match self {
                Model::QueuePairs => {
                    format!("tap,id=n{port},ifname=wire{port},script=no,downscript=no,queues={queues}")
                }
                Model::Function | Model::NoIommu | Model::VirtualFunctions => {
                    format!("hubport,id=n{port},hubid=0")
                }
            };
            push(&mut line, "-netdev", netdev);
        }
        push(&mut line, "-device", "pcie-root-port,id=rp0,slot=1".into());
        push(&mut line, "-device", "igb,bus=rp0,netdev=n0,mac=52:54:00:00:00:01".into());
        push(&mut line, "-device", "pcie-root-port,id=rp1,slot=2".into());
        for (number, place) in (1..).zip(virtio) {
            let mac = format!("mac=52:54:00:00:02:{number:02x}");
            let how = "iommu_platform=on,disable-legacy=on,packed=on,romfile=";
            push(&mut line, "-device", format!("virtio-net-pci,{place},netdev=n{number},{mac},{how}"));
        }
        if self == Model::Function {
            nvme(&mut line, lab)?;
        }
        Ok(line)
    }
}

/// A controller that has virtual ones, and namespaces that all of them have.
fn nvme(line: &mut Vec<String>, lab: &Lab) -> Result<()> {
    push(line, "-device", "pcie-root-port,id=rp2,slot=3".into());
    push(line, "-device", "nvme-subsys,id=s0".into());
    // Three queues (with that of admin commands) and two vectors for each of two virtual functions, seven queues for itself.
    let shares = "sriov_max_vfs=2,sriov_vq_flexible=6,sriov_vi_flexible=4,max_ioqpairs=12,msix_qsize=12";
    push(line, "-device", format!("nvme,id=c0,bus=rp2,subsys=s0,serial=RW0001,{shares}"));
    for number in 1..=NAMESPACES {
        let path = lab.path(&format!("namespace{number}"));
        File::create(&path)?.set_len(NAMESPACE_BYTES)?;
        push(line, "-drive", format!("file={},if=none,id=d{number},format=raw", path.display()));
        push(line, "-device", format!("nvme-ns,bus=c0,drive=d{number},nsid={number}"));
    }
    Ok(())
}

/// A running machine.
#[derive(Debug)]
pub struct Machine<'lab> {
    pub(super) lab: &'lab Lab,
    pub(super) guest: Guest,
    /// Where its wire is, if that is not QEMU's own.
    _wire: Option<Netns>,
}

impl<'lab> Machine<'lab> {
    /// Boots a machine; returns when its agent is ready.
    pub fn boot(lab: &'lab Lab, model: Model) -> Result<Machine<'lab>> {
        let mut qemu = model.qemu()?;
        let wire = (model == Model::QueuePairs).then(wire).transpose()?;
        if let Some(wire) = &wire {
            qemu.command.splice(0..0, ["/sbin/ip", "netns", "exec", wire.name()].map(String::from));
        }
        let kernel = Kernel::find()?;
        let initramfs = lab.path("machine.cpio");
        image::write_initramfs(&kernel, &MODULES, &initramfs)?;
        image::append_archive(programs::archive(lab)?, &initramfs)?;
        lab.say(format_args!("booting {}", qemu.name));
        let append = "quiet intel_iommu=on ipv6.disable=1".into();
        let image = Image { kernel: kernel.image, initramfs, append };
        let guest = Guest::start(lab, "machine", &qemu.command, model.arguments(lab)?, &image)?;
        let guest = guest.wait_until_up(lab)?;
        // Tens of megabytes that nobody reads again.
        fs::remove_file(&image.initramfs)?;
        let mut machine = Machine { lab, guest, _wire: wire };
        // DPDK loads no plug-in from below a folder that others may write to.
        machine.sh("/bin/busybox --install -s /bin && chmod 755 / && mkdir -p /dev/hugepages && mount -t hugetlbfs none /dev/hugepages")?;
        machine.sh(&format!("echo {HUGE_PAGES} > /proc/sys/vm/nr_hugepages"))?;
        Ok(machine)
    }

    /// Ends it.
    pub fn power_off(self) -> Result<()> {
        self.guest.power_off()
    }

    /// The guest as a station: its NICs, and the traffic that its kernel makes.
    pub fn linux(&mut self) -> &mut Guest {
        &mut self.guest
    }

    /// Plugs the cable of one of the virtio functions, by number from 1, in or out.
    pub fn set_cable(&mut self, number: usize, up: bool) -> Result<()> {
        let to = if up { "up" } else { "down" };
        self.step(&format!("the link of virtio function {number} goes {to}"), |machine| {
            let arguments = json!({ "name": format!("n{number}"), "up": up });
            machine.guest.qmp_with("set_link", arguments).map(|_| ())
        })
    }

    /// Pulls the virtio function out of its slot.
    pub fn unplug_function(&mut self) -> Result<()> {
        self.step("the virtio function is unplugged", |machine| {
            machine.guest.qmp_with("device_del", json!({ "id": FUNCTION }))?;
            machine.function_is_unplugged()
        })
    }

    pub(super) fn function_is_unplugged(&mut self) -> Result<()> {
        wait_for("its end", WATCHDOG, || {
            Ok((self.run(&["/bin/busybox", "test", "-d", &folder(VIRTIO)], WATCHDOG)?.code != 0)
                .then_some(()))
        })
    }

    /// Puts another virtio function into the same slot, with so many interrupt vectors, if not with as many as it needs.
    pub fn plug_function(&mut self, vectors: Option<u32>) -> Result<()> {
        let what = vectors.map_or_else(String::new, |vectors| format!(" with {vectors} vectors"));
        self.step(&format!("another virtio function{what} is plugged in"), |machine| {
            let mut function = json!({
                "driver": "virtio-net-pci", "id": FUNCTION, "bus": "rp1", "netdev": "n1", "mac": "52:54:00:00:02:01",
                "iommu_platform": true, "disable-legacy": "on", "packed": true, "romfile": "",
            });
            if let Some(vectors) = vectors {
                function["vectors"] = vectors.into();
            }
            wait_for("an empty slot", WATCHDOG, || {
                match machine.guest.qmp_with("device_add", function.clone()) {
                    // The kernel has let go of the last one, and QEMU not yet.
                    Err(error) if error.to_string().contains("Duplicate") => Ok(None),
                    added => added.map(Some),
                }
            })?;
            wait_for("the function", WATCHDOG, || {
                Ok((machine.run(&["/bin/busybox", "test", "-d", &folder(VIRTIO)], WATCHDOG)?.code == 0).then_some(()))
            })
        })
    }

    /// Takes a step: tells what it was and how long it took; its error begins with it.
    pub fn step<T>(&mut self, what: &str, act: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let begun = Instant::now();
        let done = act(self).context(|| what.into())?;
        self.lab.say(format_args!("{what} ({:.2} s)", begun.elapsed().as_secs_f64()));
        Ok(done)
    }

    /// Says something beside the steps.
    pub fn say(&self, line: impl std::fmt::Display) {
        self.lab.say(line);
    }

    /// Runs a line in the shell, which must succeed; gives what it wrote.
    pub fn sh(&mut self, line: &str) -> Result<String> {
        let report = self.run(&["/bin/busybox", "sh", "-c", line], SHELL_LIMIT)?;
        ensure!(report.code == 0, "{line}: exit code {}: {}", report.code, report.output.trim());
        Ok(report.output.trim().to_string())
    }

    /// Runs a program, however it ends.
    pub fn run(&mut self, words: &[&str], limit: Duration) -> Result<ShellReport> {
        self.guest.run(words, limit)
    }

    /// What the kernel has logged since this was last asked; kept with the test's other logs.
    pub fn kernel_log(&mut self) -> Result<KernelLog> {
        let text = self.sh("dmesg -c")?;
        let path = self.lab.path("kernel.log");
        let mut file = File::options().create(true).append(true).open(&path)?;
        writeln!(file, "{text}")?;
        Ok(KernelLog::new(text))
    }

    /// A shell on the machine's console, between it and this process's own input and output, until it ends.
    pub fn shell(&mut self) -> Result<()> {
        let mut console = self.guest.console()?;
        let _raw = Raw::new();
        self.guest.launch("shell", &["/bin/getty", "-n", "-l", "/bin/sh", "115200", "ttyS0", "linux"])?;
        let mut keys = Some(console.try_clone()?);
        console.set_read_timeout(Some(Duration::from_millis(200)))?;
        let (mut bytes, mut output) = ([0; 4096], std::io::stdout());
        loop {
            match console.read(&mut bytes) {
                Ok(0) => return Ok(()),
                Ok(count) => {
                    output.write_all(&bytes[..count])?;
                    output.flush()?;
                    // What it is told before its first word, it throws away.
                    if let Some(keys) = keys.take() {
                        std::thread::spawn(|| pass_keys_on(keys));
                    }
                }
                // It says nothing: has it ended?
                Err(_) if self.guest.program("shell")?.code.is_some() => return Ok(()),
                Err(_) => {}
            }
        }
    }
}

/// A bridge of two TAPs.
fn wire() -> Result<Netns> {
    let wire = Netns::new("wire")?;
    wire.ip(&["link", "add", "bridge", "type", "bridge"])?;
    wire.ip(&["link", "set", "bridge", "up"])?;
    for (port, queues) in QUEUES.iter().enumerate() {
        let name = format!("wire{port}");
        let several: &[&str] = if *queues > 1 { &["multi_queue"] } else { &[] };
        wire.ip(&[&["tuntap", "add", "dev", &name, "mode", "tap", "vnet_hdr"], several].concat())?;
        wire.ip(&["link", "set", &name, "master", "bridge", "up"])?;
    }
    Ok(wire)
}

/// From this process's input to the console; the shell ends where the input does.
fn pass_keys_on(mut console: UnixStream) -> std::io::Result<()> {
    let mut bytes = [0; 1024];
    let mut input = std::io::stdin().lock();
    while let count @ 1.. = input.read(&mut bytes)? {
        console.write_all(&bytes[..count])?;
    }
    console.write_all(b"exit\n")
}

/// The terminal passes every key on, control-C too, for as long as this lives.
struct Raw(Option<Termios>);

impl Raw {
    fn new() -> Raw {
        let input = std::io::stdin();
        // Input from a file or a pipe has no modes.
        let modes = rustix::termios::tcgetattr(&input).ok();
        if let Some(modes) = &modes {
            let mut raw = modes.clone();
            raw.make_raw();
            let _ = rustix::termios::tcsetattr(&input, OptionalActions::Now, &raw);
        }
        Raw(modes)
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        if let Some(modes) = &self.0 {
            // Nothing is to be done about a terminal that is gone.
            let _ = rustix::termios::tcsetattr(std::io::stdin(), OptionalActions::Now, modes);
        }
    }
}

/// What QEMU calls the virtio function.
const FUNCTION: &str = "fn";
const MODULES: [&str; 7] = ["igb", "virtio_net", "nvme", "vfio-pci", "vfio_iommu_type1", "tun", "8021q"];
/// Of the NVMe controller, and bytes of each.
const NAMESPACES: u32 = 3;
const NAMESPACE_BYTES: u64 = 16 << 20;
/// Of the igb, and of a virtio function with several.
const QUEUES: [u32; 2] = [1, 4];
const MEMORY_MIB: u32 = 2560;
/// Of 2 MiB each: testpmd's memory, or a guest's of 512 MiB.
const HUGE_PAGES: u32 = 272;
const SHELL_LIMIT: Duration = WATCHDOG;
