//! A Linux guest under QEMU, whose NICs are vhost-user front-ends.
//!
//! ```text
//! test --commands--> unix socket --> QEMU's second serial port --> agent in the guest
//!      --signals---> QEMU                                            |
//!      --QMP-------> QEMU                                     virtio_net --vrings--> ringwayd
//! ```
//! The guest runs under software emulation: a stock guest kernel boots anywhere that way, in some 5 to 10 s.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::agent::{
    Command, Device, FramesOrder, FramesReport, Nic as GuestNic, Ready, Reply, ShellReport, TrafficOrder,
    TrafficReport,
};
use crate::error::{Context, Error, Result};
use crate::image::{Kernel, write_initramfs};
use crate::lab::{Lab, tail, wait_for};
use crate::process::{self, Process};
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

    fn arguments(&self, idx: usize, into: &mut Vec<String>) {
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
            device += ",";
            device += property;
        }
        push(into, "-device", device);
    }
}

/// A running guest.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    port: UnixStream,
    /// What has come from the agent after the last whole line.
    unread: Vec<u8>,
    qmp: PathBuf,
    serial_log: PathBuf,
}

impl Guest {
    /// Boots a guest with these NICs and that many vCPUs; returns when its agent is ready.
    pub fn boot(lab: &Lab, name: &str, vcpus: u32, nics: &[Nic]) -> Result<Guest> {
        let kernel = Kernel::find()?;
        require_qemu()?;
        let initramfs = lab.path(&format!("{name}.cpio"));
        write_initramfs(&kernel, &["virtio_net"], &initramfs)?;
        let serial_log = lab.path(&format!("{name}-serial.log"));
        let (agent, qmp) =
            (lab.socket(&format!("{name}-agent.sock")), lab.socket(&format!("{name}-qmp.sock")));
        let mut arguments = Vec::new();
        push(&mut arguments, "-machine", "q35,memory-backend=m0".into());
        push(&mut arguments, "-accel", "tcg,thread=multi".into());
        push(&mut arguments, "-cpu", "max".into());
        push(&mut arguments, "-smp", vcpus.to_string());
        push(&mut arguments, "-m", MEMORY_MIB.to_string());
        push(&mut arguments, "-object", format!("memory-backend-memfd,id=m0,size={MEMORY_MIB}M,share=on"));
        arguments.extend(["-nodefaults", "-display", "none"].map(String::from));
        push(&mut arguments, "-chardev", format!("file,id=serial,path={}", serial_log.display()));
        push(&mut arguments, "-serial", "chardev:serial".into());
        push(
            &mut arguments,
            "-chardev",
            format!("socket,id=agent,path={},server=on,wait=off", agent.display()),
        );
        push(&mut arguments, "-serial", "chardev:agent".into());
        push(&mut arguments, "-qmp", format!("unix:{},server=on,wait=off", qmp.display()));
        push(&mut arguments, "-kernel", kernel.image.display().to_string());
        push(&mut arguments, "-initrd", initramfs.display().to_string());
        push(&mut arguments, "-append", "console=ttyS0 quiet panic=-1 ipv6.disable=1".into());
        for (idx, nic) in nics.iter().enumerate() {
            nic.arguments(idx, &mut arguments);
        }
        let start = Instant::now();
        let mut process = Process::start(QEMU, &arguments, &lab.path(&format!("{name}-qemu.log")))?;
        // QEMU makes the socket before it runs the guest, so no word of the agent is lost.
        let port = wait_for("QEMU's socket to the agent", Duration::from_secs(10), || {
            process.check()?;
            Ok(UnixStream::connect(&agent).ok())
        })?;
        let mut guest = Guest { process, port, unread: Vec::new(), qmp, serial_log };
        let release = guest.wait_until_ready(BOOT_LIMIT)?;
        lab.say(format_args!("{name}: Linux {release} is up after {:.1} s", start.elapsed().as_secs_f64()));
        Ok(guest)
    }

    /// Waits for the agent to say that it is ready after a boot; gives the kernel's release.
    pub fn wait_until_ready(&mut self, limit: Duration) -> Result<String> {
        let line = self.line(limit)?;
        let ready: Ready = serde_json::from_str(&line).context(|| format!("the agent said {line}"))?;
        Ok(ready.ready)
    }

    /// Whether the agent answers.
    pub fn ping(&mut self) -> Result<()> {
        self.ask(&Command::Ping, ANSWER_LIMIT)
    }

    /// The guest's NICs.
    pub fn nics(&mut self) -> Result<Vec<GuestNic>> {
        self.ask(&Command::Nics, ANSWER_LIMIT)
    }

    /// One NIC.
    pub fn nic(&mut self, mac: &str) -> Result<GuestNic> {
        let nics = self.nics()?;
        nics.into_iter()
            .find(|nic| nic.mac == mac)
            .ok_or_else(|| Error::new(format!("the guest has no NIC {mac}")))
    }

    /// The guest's virtio network devices.
    pub fn devices(&mut self) -> Result<Vec<Device>> {
        self.ask(&Command::Devices, ANSWER_LIMIT)
    }

    /// Sets a link up and waits until the device says that it is there.
    pub fn link_up(&mut self, mac: &str) -> Result<GuestNic> {
        self.ask::<()>(&Command::Link { nic: mac.into(), up: true }, ANSWER_LIMIT)?;
        wait_for(&format!("carrier of {mac}"), Duration::from_secs(10), || {
            Ok(Some(self.nic(mac)?).filter(|nic| nic.carrier))
        })
    }

    /// Sets a link down.
    pub fn link_down(&mut self, mac: &str) -> Result<()> {
        self.ask(&Command::Link { nic: mac.into(), up: false }, ANSWER_LIMIT)
    }

    /// Sets the MTU.
    pub fn set_mtu(&mut self, mac: &str, mtu: u32) -> Result<()> {
        self.ask(&Command::Mtu { nic: mac.into(), mtu }, ANSWER_LIMIT)
    }

    /// Sets the number of queue pairs in use.
    pub fn set_channels(&mut self, mac: &str, pairs: u32) -> Result<()> {
        self.ask(&Command::Channels { nic: mac.into(), pairs }, ANSWER_LIMIT)
    }

    /// Sends frames and checks each that returns.
    pub fn frames(&mut self, order: FramesOrder) -> Result<FramesReport> {
        self.ask(&Command::Frames(order), FRAMES_LIMIT)
    }

    /// Starts background traffic.
    pub fn start_traffic(&mut self, order: TrafficOrder) -> Result<()> {
        self.ask(&Command::TrafficStart(order), ANSWER_LIMIT)
    }

    /// What background traffic has seen so far.
    pub fn traffic(&mut self, mac: &str) -> Result<TrafficReport> {
        self.ask(&Command::TrafficReport { nic: mac.into() }, ANSWER_LIMIT)
    }

    /// Stops background traffic.
    pub fn stop_traffic(&mut self, mac: &str) -> Result<TrafficReport> {
        self.ask(&Command::TrafficStop { nic: mac.into() }, ANSWER_LIMIT)
    }

    /// Takes the driver off a virtio device.
    pub fn unbind(&mut self, device: &str) -> Result<()> {
        self.ask(&Command::Unbind { device: device.into() }, ANSWER_LIMIT)
    }

    /// Puts the driver onto a virtio device.
    pub fn bind(&mut self, device: &str) -> Result<()> {
        self.ask(&Command::Bind { device: device.into() }, ANSWER_LIMIT)
    }

    /// Runs a line in the guest's shell.
    pub fn shell(&mut self, line: &str) -> Result<ShellReport> {
        self.ask(&Command::Shell { line: line.into() }, Duration::from_secs(25))
    }

    /// Has the guest restart itself; returns when its agent is ready again.
    pub fn reboot(&mut self) -> Result<()> {
        self.say(&Command::Reboot)?;
        self.wait_until_ready(BOOT_LIMIT).map(|_| ())
    }

    /// Presses the machine's reset button; returns when its agent is ready again.
    pub fn reset(&mut self) -> Result<()> {
        self.qmp("system_reset")?;
        self.wait_until_ready(BOOT_LIMIT).map(|_| ())
    }

    /// Has the guest end itself; returns when QEMU has ended.
    pub fn power_off(mut self) -> Result<()> {
        self.say(&Command::PowerOff)?;
        let status = self.process.wait(Duration::from_secs(30))?;
        ensure!(status.success(), "QEMU ended with {status}");
        Ok(())
    }

    /// Ends QEMU with SIGKILL.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill()
    }

    /// Stops QEMU where it stands.
    pub fn freeze(&self) -> Result<()> {
        self.process.signal(Signal::STOP)
    }

    /// Lets a frozen QEMU go on.
    pub fn thaw(&self) -> Result<()> {
        self.process.signal(Signal::CONT)
    }

    /// Asks one command and takes its answer.
    fn ask<T: DeserializeOwned>(&mut self, command: &Command, limit: Duration) -> Result<T> {
        self.say(command)?;
        let line = self.line(limit).context(|| format!("{command:?}"))?;
        match serde_json::from_str(&line) {
            Ok(Reply::Ok(value)) => {
                serde_json::from_value(value).context(|| format!("answer to {command:?}"))
            }
            Ok(Reply::Error(error)) => Err(Error::new(format!("{command:?}: the guest says: {error}"))),
            // A guest that panicked restarts and says that it is ready.
            Err(_) => {
                Err(Error::new(format!("{command:?}: the guest said {line} instead; {}", self.serial_tail())))
            }
        }
    }

    fn say(&mut self, command: &Command) -> Result<()> {
        let mut line = serde_json::to_string(command)?;
        line.push('\n');
        self.port.set_write_timeout(Some(ANSWER_LIMIT))?;
        self.port.write_all(line.as_bytes()).context(|| format!("send {command:?} to the guest"))
    }

    fn line(&mut self, limit: Duration) -> Result<String> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.unread.drain(..=end).collect();
                return Ok(String::from_utf8_lossy(&line).trim().to_string());
            }
            self.process.check()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                fail!("the guest said nothing for {:.0} s; {}", limit.as_secs_f64(), self.serial_tail());
            }
            // Short steps, so that QEMU's end is seen at once.
            self.port.set_read_timeout(Some(left.min(Duration::from_millis(200))))?;
            let mut bytes = [0; 4096];
            match self.port.read(&mut bytes) {
                Ok(0) => {
                    self.process.wait(Duration::from_secs(5))?;
                    self.process.check()?;
                }
                Ok(count) => self.unread.extend_from_slice(&bytes[..count]),
                Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
                Err(error) => fail!("reading from the guest: {error}"),
            }
        }
    }

    /// Carries out one QMP command without arguments.
    pub fn qmp(&self, command: &str) -> Result<Value> {
        let mut stream = UnixStream::connect(&self.qmp).context(|| "QMP socket".into())?;
        stream.set_read_timeout(Some(ANSWER_LIMIT))?;
        stream.set_write_timeout(Some(ANSWER_LIMIT))?;
        let mut unread = Vec::new();
        qmp_line(&mut stream, &mut unread)?;
        for execute in ["qmp_capabilities", command] {
            writeln!(stream, "{}", json!({ "execute": execute }))?;
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

    fn serial_tail(&self) -> String {
        format!("the end of its console:\n{}", tail(&self.serial_log, 20))
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

fn push(into: &mut Vec<String>, option: &str, value: String) {
    into.push(option.into());
    into.push(value);
}

/// The program; an absolute path, since releases share its name.
pub const QEMU: &str = "/usr/bin/qemu-system-x86_64";
const OLDEST_QEMU: u32 = 8;
const MEMORY_MIB: u32 = 256;
/// Boots take 5 to 10 s on two free cores; a busy machine may need several times that.
const BOOT_LIMIT: Duration = Duration::from_secs(120);
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
const FRAMES_LIMIT: Duration = Duration::from_secs(180);
