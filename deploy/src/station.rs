//! One end of a test's traffic: an agent that does what it is asked, in a guest or in a network namespace of the host.
//!
//! The harness speaks with it over a Unix socket, which leads to a guest's second serial port or is the agent's own standard
//! input and output. Both kinds take the same commands, but for those that concern a whole machine.

use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde::de::DeserializeOwned;

use crate::agent::{
    CastOrder, Command, Device, EchoOrder, EchoReport, FramesOrder, FramesReport, Nic, Offload,
    ProgramReport, PulseOrder, Ready, Reply, ShellReport, TcpEnd, TcpOrder, TcpReport, TrafficOrder,
    TrafficReport, UdpOrder, UdpReceived, UdpSent,
};
use crate::error::{Context, Error, Result};
use crate::fail;
use crate::lab::{tail, wait_for};
use crate::pace::WATCHDOG;
use crate::process::Process;

/// A running agent.
#[derive(Debug)]
pub struct Station {
    name: String,
    /// QEMU, or the agent itself.
    pub(crate) process: Process,
    port: UnixStream,
    /// What has come from the agent after the last whole line.
    unread: Vec<u8>,
    /// What the agent says beside its answers, and a guest's kernel.
    log: PathBuf,
}

impl Station {
    pub(crate) fn new(name: &str, process: Process, port: UnixStream, log: PathBuf) -> Station {
        Station { name: name.into(), process, port, unread: Vec::new(), log }
    }

    /// The name that the test gave it.
    pub fn name(&self) -> &str {
        &self.name
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

    /// Its NICs.
    pub fn nics(&mut self) -> Result<Vec<Nic>> {
        self.ask(&Command::Nics, ANSWER_LIMIT)
    }

    /// One NIC.
    pub fn nic(&mut self, mac: &str) -> Result<Nic> {
        let nics = self.nics()?;
        nics.into_iter()
            .find(|nic| nic.mac == mac || nic.name == mac)
            .ok_or_else(|| Error::new(format!("{} has no NIC {mac}", self.name)))
    }

    /// The guest's virtio network devices.
    pub fn devices(&mut self) -> Result<Vec<Device>> {
        self.ask(&Command::Devices, ANSWER_LIMIT)
    }

    /// Sets a link up; its other end need not be there.
    pub fn set_up(&mut self, mac: &str) -> Result<()> {
        self.ask(&Command::Link { nic: mac.into(), up: true }, ANSWER_LIMIT)
    }

    /// Sets a link up and waits until the device says that it is there.
    pub fn link_up(&mut self, mac: &str) -> Result<Nic> {
        self.set_up(mac)?;
        wait_for(
            &format!("carrier of {mac}"),
            WATCHDOG,
            || Ok(Some(self.nic(mac)?).filter(|nic| nic.carrier)),
        )
    }

    /// Waits until the device says that a link is not there.
    pub fn link_lost(&mut self, mac: &str) -> Result<()> {
        wait_for(&format!("no carrier of {mac}"), WATCHDOG, || Ok((!self.nic(mac)?.carrier).then_some(())))
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

    /// Gives a NIC an IP address, `10.0.0.1/24` or `fd00::1/64`.
    pub fn add_address(&mut self, mac: &str, address: &str) -> Result<()> {
        self.ask(&Command::Address { nic: mac.into(), address: address.into() }, ANSWER_LIMIT)
    }

    /// Turns one of the kernel's offloads on or off.
    pub fn set_offload(&mut self, mac: &str, offload: Offload, on: bool) -> Result<()> {
        self.ask(&Command::SetOffload { nic: mac.into(), offload, on }, ANSWER_LIMIT)
    }

    /// Sends frames with whatever addresses; gives how many.
    pub fn cast(&mut self, order: CastOrder) -> Result<u64> {
        self.ask(&Command::Cast(order), ORDER_LIMIT)
    }

    /// Sends echo requests of many sizes and checks each reply.
    pub fn echo(&mut self, order: EchoOrder) -> Result<EchoReport> {
        self.ask(&Command::Echo(order), ORDER_LIMIT)
    }

    /// Starts a pulse: an echo request of 56 bytes every few milliseconds.
    pub fn start_pulse(&mut self, to: IpAddr, every_ms: u64) -> Result<()> {
        self.ask(&Command::PulseStart(PulseOrder { to, every_ms, size: PULSE_BYTES }), ANSWER_LIMIT)
    }

    /// What a pulse has seen so far.
    pub fn pulse(&mut self, to: IpAddr) -> Result<TrafficReport> {
        self.ask(&Command::PulseReport { to }, ANSWER_LIMIT)
    }

    /// Stops a pulse.
    pub fn stop_pulse(&mut self, to: IpAddr) -> Result<TrafficReport> {
        self.ask(&Command::PulseStop { to }, ANSWER_LIMIT)
    }

    /// Waits until a pulse has had more replies than `received`; gives how long after `since` that was.
    pub fn pulse_resumed(&mut self, to: IpAddr, received: u64, since: Instant) -> Result<Duration> {
        wait_for(&format!("replies of {to} to {} again", self.name), WATCHDOG, || {
            Ok((self.pulse(to)?.received > received).then(|| since.elapsed()))
        })
    }

    /// Waits until a pulse has had no reply for a while; gives what it has seen.
    pub fn pulse_stalled(&mut self, to: IpAddr) -> Result<TrafficReport> {
        wait_for(&format!("no more replies of {to} to {}", self.name), WATCHDOG, || {
            Ok(Some(self.pulse(to)?).filter(|report| report.since_last_ms >= STALLED_MS))
        })
    }

    /// The same of background traffic.
    pub fn traffic_stalled(&mut self, mac: &str) -> Result<TrafficReport> {
        wait_for(&format!("no more frames of {mac} to {}", self.name), WATCHDOG, || {
            Ok(Some(self.traffic(mac)?).filter(|report| report.since_last_ms >= STALLED_MS))
        })
    }

    /// Gives a controller of the kernel's an admin command without data; gives its result.
    pub fn nvme_admin(&mut self, controller: &str, opcode: u8, dwords: [u32; 2]) -> Result<u32> {
        self.ask(&Command::NvmeAdmin { controller: controller.into(), opcode, dwords }, ANSWER_LIMIT)
    }

    /// Serves TCP transfers on a port.
    pub fn tcp_serve(&mut self, port: u16) -> Result<()> {
        self.ask(&Command::TcpServe { port }, ANSWER_LIMIT)
    }

    /// Sends and fetches by TCP.
    pub fn tcp(&mut self, order: TcpOrder) -> Result<TcpReport> {
        self.ask(&Command::Tcp(order), ORDER_LIMIT)
    }

    /// The transfers that its server has ended since this was last asked.
    pub fn tcp_served(&mut self, port: u16) -> Result<Vec<TcpEnd>> {
        self.ask(&Command::TcpServed { port }, ANSWER_LIMIT)
    }

    /// Receives the datagrams that come to a port.
    pub fn udp_receive(&mut self, port: u16) -> Result<()> {
        self.ask(&Command::UdpReceive { port }, ANSWER_LIMIT)
    }

    /// Sends numbered datagrams.
    pub fn udp_send(&mut self, order: UdpOrder) -> Result<UdpSent> {
        self.ask(&Command::UdpSend(order), ORDER_LIMIT)
    }

    /// What has come of a run of datagrams.
    pub fn udp_received(&mut self, port: u16, run: u32) -> Result<UdpReceived> {
        self.ask(&Command::UdpReceived { port, run }, ANSWER_LIMIT)
    }

    /// Starts an echo, TCP or UDP order in the background.
    pub fn start(&mut self, job: &str, command: Command) -> Result<()> {
        self.ask(&Command::Start { job: job.into(), command: Box::new(command) }, ANSWER_LIMIT)
    }

    /// Waits for the end of a background order; gives its report.
    pub fn finish<T: DeserializeOwned>(&mut self, job: &str) -> Result<T> {
        self.ask(&Command::Finish { job: job.into() }, ORDER_LIMIT)
    }

    /// Sends frames and checks each that returns.
    pub fn frames(&mut self, order: FramesOrder) -> Result<FramesReport> {
        self.ask(&Command::Frames(order), ORDER_LIMIT)
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

    /// Runs a program to its end, which must come within `limit`.
    pub fn run(&mut self, words: &[&str], limit: Duration) -> Result<ShellReport> {
        let limit_ms = limit.as_millis() as u64;
        self.ask(&Command::Run { words: owned(words), limit_ms }, limit + ANSWER_LIMIT)
    }

    /// Starts a program in the background.
    pub fn launch(&mut self, name: &str, words: &[&str]) -> Result<()> {
        self.ask(&Command::Launch { name: name.into(), words: owned(words) }, ANSWER_LIMIT)
    }

    /// Writes a line to the input of a program in the background.
    pub fn tell(&mut self, name: &str, line: &str) -> Result<()> {
        self.ask(&Command::Tell { name: name.into(), line: line.into() }, ANSWER_LIMIT)
    }

    /// How a program in the background stands.
    pub fn program(&mut self, name: &str) -> Result<ProgramReport> {
        self.ask(&Command::Program { name: name.into() }, ANSWER_LIMIT)
    }

    /// Sends a signal to a program in the background.
    pub fn signal(&mut self, name: &str, signal: Signal) -> Result<()> {
        self.ask(&Command::Signal { name: name.into(), signal: signal.as_raw() }, ANSWER_LIMIT)
    }

    /// Kills a program in the background, unless it has ended, and gives what it has left.
    pub fn end(&mut self, name: &str) -> Result<ProgramReport> {
        self.ask(&Command::End { name: name.into() }, ANSWER_LIMIT)
    }

    /// Asks one command and takes its answer.
    fn ask<T: DeserializeOwned>(&mut self, command: &Command, limit: Duration) -> Result<T> {
        self.say(command)?;
        let line = self.line(limit).context(|| format!("{command:?}"))?;
        match serde_json::from_str(&line) {
            Ok(Reply::Ok(value)) => {
                serde_json::from_value(value).context(|| format!("answer to {command:?}"))
            }
            Ok(Reply::Error(error)) => Err(Error::new(format!("{command:?}: {} says: {error}", self.name))),
            // A guest that panicked restarts and says that it is ready.
            Err(_) => {
                let name = &self.name;
                Err(Error::new(format!("{command:?}: {name} said {line} instead; {}", self.log_tail())))
            }
        }
    }

    pub(crate) fn say(&mut self, command: &Command) -> Result<()> {
        let mut line = serde_json::to_string(command)?;
        line.push('\n');
        self.port.set_write_timeout(Some(ANSWER_LIMIT))?;
        self.port.write_all(line.as_bytes()).context(|| format!("send {command:?} to {}", self.name))
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
                let (name, seconds) = (&self.name, limit.as_secs_f64());
                fail!("{name} said nothing for {seconds:.0} s; {}", self.log_tail());
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
                // A process that is stopped and goes on (SIGSTOP, SIGCONT) is interrupted, too.
                Err(error)
                    if matches!(
                        error.kind(),
                        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
                    ) => {}
                Err(error) => fail!("reading from {}: {error}", self.name),
            }
        }
    }

    fn log_tail(&self) -> String {
        format!("the end of its log:\n{}", tail(&self.log, 20))
    }
}

fn owned(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_string()).collect()
}

const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// For what moves data: an emulated guest on a busy machine is slow.
const ORDER_LIMIT: Duration = Duration::from_secs(180);
/// Many times longer than a pulse or background traffic pauses by itself.
const STALLED_MS: u64 = 250;
/// As `ping` sends.
const PULSE_BYTES: usize = 56;
