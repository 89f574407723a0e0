//! A Linux guest under QEMU, whose NICs are vhost-user front-ends.
//!
//! ```text
//! test --commands--> unix socket --> QEMU's second serial port --> agent in the guest
//!      --signals---> QEMU                                            |
//!      --QMP-------> QEMU                                     virtio_net --vrings--> ringwayd
//! ```
//! The guest runs under software emulation: a stock guest kernel boots anywhere that way, in some 5 to 10 s.

use std::io::{Read, Write};
use std::ops::{Deref, DerefMut};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};

use crate::agent::{Command, FramesOrder, FramesReport, TrafficOrder};
use crate::disk::{self, Disk};
use crate::error::{Context, Error, Result};
use crate::image::{Kernel, append_archive, write_initramfs};
use crate::lab::{self, Lab, wait_for};
use crate::pace::WATCHDOG;
use crate::process::{self, Process};
use crate::station::Station;
use crate::{ensure, fail};

/// Who makes the connection between QEMU and the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chardev {
    /// QEMU connects to the device's socket, and again that many milliseconds after it was lost.
    Connects {
        /// How long QEMU waits before each try.
        reconnect_ms: u32,
    },
    /// QEMU owns the socket and waits for the device to connect.
    Listens,
}

/// A NIC to give to a guest.
#[derive(Debug, Clone)]
pub struct Nic {
    /// The device's socket.
    pub socket: PathBuf,
    /// Who connects.
    pub chardev: Chardev,
    /// The Ethernet address, which also names the NIC in all that a test asks of the guest.
    pub mac: String,
    /// Packed rings, else split ones.
    pub packed: bool,
    /// Queue pairs that QEMU offers.
    pub pairs: u32,
    /// Descriptors in each ring.
    pub ring_size: u32,
    /// The MTU that QEMU tells the guest; `None`: not told.
    pub mtu: Option<u32>,
    /// More properties of `virtio-net-pci`, such as `mrg_rxbuf=off`.
    pub properties: Vec<String>,
}

impl Nic {
    /// A NIC with one pair of split rings of 256 descriptors; the last byte of its address is `number`.
    pub fn new(number: u8, socket: impl Into<PathBuf>) -> Nic {
        Nic {
            socket: socket.into(),
            chardev: Chardev::Connects { reconnect_ms: 50 },
            mac: format!("52:54:00:12:34:{number:02x}"),
            packed: false,
            pairs: 1,
            ring_size: 256,
            mtu: None,
            properties: Vec::new(),
        }
    }

    /// With packed rings.
    #[must_use]
    pub fn packed(self, packed: bool) -> Nic {
        Nic { packed, ..self }
    }

    /// With that many queue pairs.
    #[must_use]
    pub fn pairs(self, pairs: u32) -> Nic {
        Nic { pairs, ..self }
    }

    /// With another side making the connection.
    #[must_use]
    pub fn chardev(self, chardev: Chardev) -> Nic {
        Nic { chardev, ..self }
    }

    /// With an MTU told to the guest.
    #[must_use]
    pub fn mtu(self, mtu: u32) -> Nic {
        Nic { mtu: Some(mtu), ..self }
    }

    /// With rings of that many descriptors.
    #[must_use]
    pub fn ring_size(self, ring_size: u32) -> Nic {
        Nic { ring_size, ..self }
    }

    /// With another property of `virtio-net-pci`.
    #[must_use]
    pub fn property(mut self, property: &str) -> Nic {
        self.properties.push(property.into());
        self
    }

    /// With no offload on the device's side of the line: whole and summed frames only, of the MTU's size at most, either way.
    #[must_use]
    pub fn without_offloads(self) -> Nic {
        OFFLOADS.iter().fold(self, |nic, offload| nic.property(&format!("{offload}=off")))
    }

    fn arguments(&self, idx: usize, knows_uso: bool, into: &mut Vec<String>) {
        let path = self.socket.display();
        let chardev = match self.chardev {
            Chardev::Connects { reconnect_ms } => format!("reconnect-ms={reconnect_ms}"),
            Chardev::Listens => "server=on,wait=off".into(),
        };
        push(into, "-chardev", format!("socket,id=c{idx},path={path},{chardev}"));
        push(into, "-netdev", format!("vhost-user,id=n{idx},chardev=c{idx},queues={}", self.pairs));
        let mut device = format!(
            "virtio-net-pci,netdev=n{idx},mac={},romfile=,rx_queue_size={size},tx_queue_size={size}",
            self.mac,
            size = self.ring_size
        );
        if self.packed {
            device += ",packed=on";
        }
        if self.pairs > 1 {
            device += &format!(",mq=on,vectors={}", 2 * self.pairs + 2);
        }
        if let Some(mtu) = self.mtu {
            device += &format!(",host_mtu={mtu}");
        }
        for property in &self.properties {
            // Absent from older releases, whose devices never have it.
            if property.contains("uso") && !knows_uso {
                continue;
            }
            device += ",";
            device += property;
        }
        push(into, "-device", device);
    }
}

/// How a guest is to boot.
#[derive(Debug, Clone, Copy)]
pub struct Boot {
    /// Virtual processors.
    pub vcpus: u32,
    /// Memory.
    pub memory_mib: u32,
    /// Whether its kernel has IPv6; without it a NIC is silent until it is used.
    pub ipv6: bool,
}

impl Boot {
    /// That many vCPUs, 256 MiB of memory, without IPv6.
    pub fn new(vcpus: u32) -> Boot {
        Boot { vcpus, memory_mib: MEMORY_MIB, ipv6: false }
    }

    /// With IPv6.
    #[must_use]
    pub fn ipv6(self) -> Boot {
        Boot { ipv6: true, ..self }
    }

    /// With that much memory.
    #[must_use]
    pub fn memory_mib(self, memory_mib: u32) -> Boot {
        Boot { memory_mib, ..self }
    }
}

/// What a guest boots.
#[derive(Debug)]
pub(crate) struct Image {
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// What the kernel is told beside its console.
    pub(crate) append: String,
}

/// A running guest: a [`Station`] with a machine around it.
#[derive(Debug)]
pub struct Guest {
    station: Station,
    console: PathBuf,
    qmp: PathBuf,
}

impl Deref for Guest {
    type Target = Station;

    fn deref(&self) -> &Station {
        &self.station
    }
}

impl DerefMut for Guest {
    fn deref_mut(&mut self) -> &mut Station {
        &mut self.station
    }
}

impl Guest {
    /// Boots a guest with these NICs and that many vCPUs; returns when its agent is ready.
    pub fn boot(lab: &Lab, name: &str, vcpus: u32, nics: &[Nic]) -> Result<Guest> {
        Guest::boot_as(lab, name, Boot::new(vcpus), nics)
    }

    /// As [`Guest::boot`], with more to choose.
    pub fn boot_as(lab: &Lab, name: &str, boot: Boot, nics: &[Nic]) -> Result<Guest> {
        Guest::begin(lab, name, boot, nics)?.wait_until_up(lab)
    }

    /// Begins to boot a guest; several boot in the time of one.
    pub fn begin(lab: &Lab, name: &str, boot: Boot, nics: &[Nic]) -> Result<Booting> {
        Guest::begin_with(lab, name, boot, nics, &[])
    }

    /// As [`Guest::begin`], with disks and the programs to work on them.
    pub fn begin_with(lab: &Lab, name: &str, boot: Boot, nics: &[Nic], disks: &[Disk]) -> Result<Booting> {
        let kernel = Kernel::find()?;
        let mut version =
            require_qemu()?.split('.').map(|part| part.parse().unwrap_or(0)).collect::<Vec<u32>>();
        version.truncate(2);
        let knows_uso = version >= vec![8, 2];
        let initramfs = lab.path(&format!("{name}.cpio"));
        let modules: &[&str] = if disks.is_empty() { &[] } else { &disk::MODULES };
        write_initramfs(&kernel, &[&["virtio_net"], modules].concat(), &initramfs)?;
        if !disks.is_empty() {
            append_archive(disk::programs()?, &initramfs)?;
        }
        let mut arguments = Vec::new();
        push(&mut arguments, "-machine", "q35,memory-backend=m0".into());
        // One thread for all vCPUs. With one each, a vCPU can go on with code that another has patched: the kernel patches
        // its own (static keys), and dies of a breakpoint that it has taken away before ("int3: 0000", seen once in some
        // hundred boots).
        push(&mut arguments, "-accel", "tcg,thread=single".into());
        push(&mut arguments, "-cpu", "max".into());
        push(&mut arguments, "-smp", boot.vcpus.to_string());
        push(&mut arguments, "-m", boot.memory_mib.to_string());
        let memory = format!("memory-backend-memfd,id=m0,size={}M,share=on", boot.memory_mib);
        push(&mut arguments, "-object", memory);
        for (idx, nic) in nics.iter().enumerate() {
            nic.arguments(idx, knows_uso, &mut arguments);
        }
        for (idx, disk) in disks.iter().enumerate() {
            arguments.extend(disk.arguments(idx));
        }
        let ipv6 = if boot.ipv6 { "" } else { " ipv6.disable=1" };
        let image = Image { kernel: kernel.image, initramfs, append: format!("quiet{ipv6}") };
        Guest::start(lab, name, &[QEMU.into()], arguments, &image)
    }

    /// Starts QEMU, a program and its first words, with this machine: the guest's console goes to a file, its agent and QEMU's
    /// own monitor are reached by sockets.
    pub(crate) fn start(
        lab: &Lab,
        name: &str,
        qemu: &[String],
        machine: Vec<String>,
        image: &Image,
    ) -> Result<Booting> {
        let serial_log = lab.path(&format!("{name}-serial.log"));
        let [console, agent, qmp] =
            ["console", "agent", "qmp"].map(|port| lab.socket(&format!("{name}-{port}.sock")));
        let (program, words) = qemu.split_first().ok_or_else(|| Error::new("no QEMU named"))?;
        let mut arguments = [words, &machine].concat();
        arguments.extend(["-nodefaults", "-display", "none"].map(String::from));
        let socket = |path: &Path| format!("path={},server=on,wait=off", path.display());
        let log = format!("logfile={}", serial_log.display());
        push(&mut arguments, "-chardev", format!("socket,id=serial,{},{log}", socket(&console)));
        push(&mut arguments, "-serial", "chardev:serial".into());
        push(&mut arguments, "-chardev", format!("socket,id=agent,{}", socket(&agent)));
        push(&mut arguments, "-serial", "chardev:agent".into());
        push(&mut arguments, "-qmp", format!("unix:{},server=on,wait=off", qmp.display()));
        push(&mut arguments, "-kernel", image.kernel.display().to_string());
        push(&mut arguments, "-initrd", image.initramfs.display().to_string());
        push(&mut arguments, "-append", format!("console=ttyS0 panic=-1 {}", image.append));
        let start = Instant::now();
        let mut process = Process::start(program, &arguments, &lab.path(&format!("{name}-qemu.log")))?;
        // QEMU makes the socket before it runs the guest, so no word of the agent is lost.
        let port = wait_for("QEMU's socket to the agent", WATCHDOG, || {
            process.check()?;
            Ok(UnixStream::connect(&agent).ok())
        })?;
        let station = Station::new(name, process, port, serial_log);
        Ok(Booting { guest: Guest { station, console, qmp }, start })
    }

    /// The guest's console, for one at a time.
    pub fn console(&self) -> Result<UnixStream> {
        UnixStream::connect(&self.console).context(|| "the guest's console".into())
    }

    /// Has the guest restart itself; returns when its agent is ready again.
    pub fn reboot(&mut self) -> Result<()> {
        self.station.say(&Command::Reboot)?;
        self.wait_until_ready(BOOT_LIMIT).map(|_| ())
    }

    /// Presses the machine's reset button; returns when its agent is ready again.
    pub fn reset(&mut self) -> Result<()> {
        self.qmp("system_reset")?;
        self.wait_until_ready(BOOT_LIMIT).map(|_| ())
    }

    /// Has the guest end itself; returns when QEMU has ended.
    pub fn power_off(mut self) -> Result<()> {
        self.station.say(&Command::PowerOff)?;
        let status = self.station.process.wait(WATCHDOG)?;
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }

    /// Ends QEMU with SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.station.process.kill()
    }

    /// Stops QEMU where it stands.
    pub fn freeze(&self) -> Result<()> {
        self.station.process.signal(Signal::STOP)
    }

    /// Lets a frozen QEMU go on.
    pub fn thaw(&self) -> Result<()> {
        self.station.process.signal(Signal::CONT)
    }

    /// Carries out one QMP command without arguments.
    pub fn qmp(&self, command: &str) -> Result<Value> {
        self.qmp_with(command, json!({}))
    }

    /// Carries out one QMP command.
    pub fn qmp_with(&self, command: &str, arguments: Value) -> Result<Value> {
        let mut stream = UnixStream::connect(&self.qmp).context(|| "QMP socket".into())?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        let mut unread = Vec::new();
        qmp_line(&mut stream, &mut unread)?;
        for (execute, arguments) in [("qmp_capabilities", json!({})), (command, arguments)] {
            writeln!(stream, "{}", json!({ "execute": execute, "arguments": arguments }))?;
            loop {
                let mut answer: Value = serde_json::from_str(&qmp_line(&mut stream, &mut unread)?)?;
                if let Some(error) = answer.get("error") {
                    fail!("QMP {execute}: {error}");
                }
                // Events come between answers.
                if let Some(value) = answer.get_mut("return") {
                    if execute == command {
                        return Ok(value.take());
                    }
                    break;
                }
            }
        }
        fail!("QMP {command}: no answer")
    }
}

/// A guest on its way up.
#[derive(Debug)]
pub struct Booting {
    guest: Guest,
    start: Instant,
}

impl Booting {
    /// Returns when its agent is ready.
    pub fn wait_until_up(mut self, lab: &Lab) -> Result<Guest> {
        let release = self.guest.wait_until_ready(BOOT_LIMIT)?;
        let (name, took) = (self.guest.name(), self.start.elapsed().as_secs_f64());
        lab.say(format_args!("{name}: Linux {release} is up after {took:.1} s"));
        Ok(self.guest)
    }
}

/// A QEMU that can be started.
#[derive(Debug, Clone)]
pub(crate) struct Qemu {
    /// Its name and version.
    pub(crate) name: String,
    /// The program to start, and its first words.
    pub(crate) command: Vec<String>,
}

impl Qemu {
    /// The installed one.
    pub(crate) fn installed() -> Result<Qemu> {
        Ok(Qemu { name: format!("QEMU {}", require_qemu()?), command: vec![QEMU.into()] })
    }

    /// The one of a later Debian that `deploy/test` unpacked under the lab's folder: it runs with the loader, the libraries and
    /// the files that it came with.
    pub(crate) fn unpacked() -> Result<Qemu> {
        let folder = lab::root()?.join("qemu");
        let mut found: Vec<PathBuf> =
            std::fs::read_dir(&folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
        found.retain(|path| path.join(UNPACKED_QEMU).exists());
        found.sort();
        let root = found.pop().ok_or_else(|| {
            Error::new(format!("no QEMU under {}: run deploy/test, which unpacks one", folder.display()))
        })?;
        let within = |path: &str| root.join(path).display().to_string();
        let libraries = within("usr/lib/x86_64-linux-gnu");
        let command = vec![
            "/usr/bin/env".into(),
            format!("QEMU_MODULE_DIR={libraries}/qemu"),
            format!("{libraries}/ld-linux-x86-64.so.2"),
            "--library-path".into(),
            libraries,
            within(UNPACKED_QEMU),
            "-L".into(),
            within("usr/share/qemu"),
            "-L".into(),
            within("usr/share/seabios"),
        ];
        let name = root.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Qemu { name, command })
    }
}

/// QEMU's version, `10.0.2`; an error names what is missing.
pub fn require_qemu() -> Result<String> {
    let line = process::first_line(QEMU, "--version")
        .ok_or_else(|| Error::new(format!("{QEMU} is not installed: run deploy/test, which installs it")))?;
    let version = line.split_whitespace().nth(3).unwrap_or_default().to_string();
    let major: u32 = version.split('.').next().and_then(|number| number.parse().ok()).unwrap_or(0);
    ensure!(
        major >= OLDEST_QEMU,
        "{line} is too old: run deploy/test, which installs version {OLDEST_QEMU} or newer"
    );
    Ok(version)
}

/// Every length from the shortest frame to what an MTU allows, in order, over the wire of one NIC.
pub fn every_length(nic: &Nic, mtu: u32) -> FramesOrder {
    FramesOrder {
        nic: nic.mac.clone(),
        shortest: crate::frame::SHORTEST,
        longest: mtu as usize + 14,
        rounds: 1,
        window: 64,
        flows: 16,
        swapped: false,
        quiet_ms: 3000,
    }
}

/// Steady background traffic on one NIC.
pub fn steady_traffic(nic: &Nic) -> TrafficOrder {
    TrafficOrder { nic: nic.mac.clone(), length: 200, window: 16, flows: 16, swapped: false }
}

/// An error unless every frame came back intact and once.
pub fn all_came_back(report: &FramesReport) -> Result<()> {
    ensure!(
        report.received == report.sent
            && report.sent > 0
            && report.missing == 0
            && report.corrupt == 0
            && report.duplicated == 0,
        "not every frame came back intact and once: {report:?}"
    );
    Ok(())
}

fn qmp_line(stream: &mut UnixStream, unread: &mut Vec<u8>) -> Result<String> {
    loop {
        if let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = unread.drain(..=end).collect();
            return Ok(String::from_utf8_lossy(&line).into_owned());
        }
        let mut bytes = [0; 4096];
        let count = stream.read(&mut bytes).context(|| "QMP".into())?;
        ensure!(count > 0, "QMP: QEMU closed the connection");
        unread.extend_from_slice(&bytes[..count]);
    }
}

pub(crate) fn push(into: &mut Vec<String>, option: &str, value: String) {
    into.push(option.into());
    into.push(value);
}

/// The program; an absolute path, since releases share its name.
pub const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const UNPACKED_QEMU: &str = "usr/bin/qemu-system-x86_64";
const OLDEST_QEMU: u32 = 8;
const OFFLOADS: [&str; 12] = [
    "csum",
    "guest_csum",
    "gso",
    "host_tso4",
    "host_tso6",
    "host_ecn",
    "host_uso",
    "guest_tso4",
    "guest_tso6",
    "guest_ecn",
    "guest_uso4",
    "guest_uso6",
];
const MEMORY_MIB: u32 = 256;
/// Boots take 5 to 10 s on two free cores; a busy machine may need several times that.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
