//! `ringway-guest`: the agent that is a test guest's first and only process, and the same agent in a network namespace of the
//! host.
//!
//! As a guest's first process it mounts what it needs and loads the kernel modules that lie in `/modules`. With
//! `--serve-on-stdio` it serves the namespace in which it was started, with `--serve-beside-init` a machine whose first process
//! is another. With `--probe` and `--collect-statistics` it does one thing and ends. Else it then says that it is ready and carries
//! out what the harness asks (see `ringway_lab::agent`). It is linked statically; the initramfs holds little else.

#![deny(unsafe_code)]

mod counts;
mod echo;
mod frames;
mod job;
mod nic;
mod probe;
mod program;
mod setup;
mod statistics;
mod sys;
mod tcp;
mod traffic;
mod udp;
mod wire;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::process::parent_id;
use std::process::ExitCode;
use std::time::Duration;

use ringway_lab::agent::{Command, Ready, Reply};
use ringway_lab::error::{Context, Error, Result};
use rustix::system::RebootCommand;
use serde_json::{Value, json};

use crate::echo::Pulse;
use crate::job::Job;
use crate::program::Program;
use crate::traffic::Traffic;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let on_stdio = words == ["--serve-on-stdio"];
    let served = match (std::process::id(), words.as_slice()) {
        (1, []) => serve_a_machine(),
        (2.., ["--serve-on-stdio"]) => serve_a_namespace(),
        (2.., ["--serve-beside-init"]) => setup::open_port().and_then(|port| serve(port, true)),
        (2.., ["--probe", report]) => probe::run(report.as_ref()),
        (2.., ["--collect-statistics", seconds]) => statistics::collect(seconds),
        _ => {
            eprintln!(
                "ringway-guest is the first process of a test guest; the tests of `ringway-lab` boot it"
            );
            return ExitCode::from(2);
        }
    };
    match served {
        // In a guest the kernel panics when its first process ends, which ends one that can no longer be reached.
        Ok(()) if on_stdio || ["--probe", "--collect-statistics"].contains(words.first().unwrap_or(&"")) => {
            return ExitCode::SUCCESS;
        }
        Ok(()) => eprintln!("ringway-guest: the harness closed its side"),
        Err(error) => eprintln!("ringway-guest: {error}"),
    }
    ExitCode::FAILURE
}

/// Sets the guest up, then serves it over its second serial port.
fn serve_a_machine() -> Result<()> {
    setup::mount_all()?;
    setup::queue_plainly()?;
    setup::answer_plainly()?;
    setup::load_modules()?;
    setup::keep_neighbours()?;
    setup::loopback_up()?;
    serve(setup::open_port()?, true)
}

/// Serves a namespace over the standard input and output, which are one socket.
fn serve_a_namespace() -> Result<()> {
    let namespace = |process: &str| {
        let path = format!("/proc/{process}/ns/net");
        std::fs::read_link(&path).context(|| path)
    };
    if namespace("self")? == namespace(&parent_id().to_string())? {
        return Err(Error::new("this is the harness's own network namespace: start it by ip netns exec"));
    }
    setup::answer_plainly()?;
    setup::loopback_up()?;
    let port = std::io::stdin().as_fd().try_clone_to_owned().context(|| "standard input".into())?;
    serve(File::from(port), false)
}

/// Answers one command after the other.
fn serve(port: File, is_machine: bool) -> Result<()> {
    let mut lines = BufReader::new(port.try_clone()?);
    let mut port = port;
    say(&mut port, &Ready { ready: rustix::system::uname().release().to_string_lossy().into_owned() })?;
    let mut agent = Agent { is_machine, ..Agent::default() };
    let mut line = String::new();
    loop {
        line.clear();
        if lines.read_line(&mut line).context(|| "read a command".into())? == 0 {
            return Ok(());
        }
        if line.trim().is_empty() {
            continue;
        }
        let reply = match serde_json::from_str(&line) {
            Ok(command) => match agent.carry_out(command) {
                Ok(value) => Reply::Ok(value),
                Err(error) => Reply::Error(error.to_string()),
            },
            Err(error) => Reply::Error(format!("unknown command: {error}")),
        };
        say(&mut port, &reply)?;
    }
}

fn say<T: serde::Serialize>(port: &mut File, what: &T) -> Result<()> {
    let mut line = serde_json::to_string(what)?;
    line.push('\n');
    port.write_all(line.as_bytes()).context(|| "answer".into())
}

/// What runs in the background.
#[derive(Default)]
struct Agent {
    /// Whether the machine is ours to restart.
    is_machine: bool,
    /// By NIC.
    traffic: BTreeMap<String, Traffic>,
    pulses: BTreeMap<IpAddr, Pulse>,
    jobs: BTreeMap<String, Job>,
    programs: BTreeMap<String, Program>,
    /// By port.
    tcp: BTreeMap<u16, tcp::Server>,
    udp: BTreeMap<u16, udp::Receiver>,
}

impl Agent {
    fn carry_out(&mut self, command: Command) -> Result<Value> {
        match command {
            Command::Ping => {}
            Command::Nics => return Ok(json!(nic::all()?)),
            Command::Devices => return Ok(json!(nic::devices()?)),
            Command::Link { nic, up } => nic::set_link(&nic, up)?,
            Command::Mtu { nic, mtu } => nic::set_mtu(&nic, mtu)?,
            Command::Channels { nic, pairs } => sys::set_channels(&nic::find(&nic)?.name, pairs)?,
            Command::Address { nic, address } => nic::add_address(&nic, &address)?,
            Command::SetOffload { nic, offload, on } => {
                sys::set_offload(&nic::find(&nic)?.name, offload, on)?;
            }
            Command::Frames(order) => return Ok(json!(frames::run(&order)?)),
            Command::Cast(order) => return Ok(json!(frames::cast(&order)?)),
            Command::TrafficStart(order) => {
                absent(&self.traffic, &order.nic)?;
                self.traffic.insert(order.nic.clone(), Traffic::start(order)?);
            }
            Command::TrafficReport { nic } => return Ok(json!(running(&self.traffic, &nic)?.report())),
            Command::TrafficStop { nic } => {
                running(&self.traffic, &nic)?;
                return Ok(json!(self.traffic.remove(&nic).map(Traffic::stop).transpose()?));
            }
            Command::Echo(order) => return Ok(json!(echo::run(&order)?)),
            Command::PulseStart(order) => {
                absent(&self.pulses, &order.to)?;
                self.pulses.insert(order.to, Pulse::start(order)?);
            }
            Command::PulseReport { to } => return Ok(json!(running(&self.pulses, &to)?.report())),
            Command::PulseStop { to } => {
                running(&self.pulses, &to)?;
                return Ok(json!(self.pulses.remove(&to).map(Pulse::stop).transpose()?));
            }
            Command::TcpServe { port } => {
                absent(&self.tcp, &port)?;
                self.tcp.insert(port, tcp::Server::start(port)?);
            }
            Command::Tcp(order) => return Ok(json!(tcp::run(&order)?)),
            Command::TcpServed { port } => return Ok(json!(running(&self.tcp, &port)?.ended())),
            Command::UdpReceive { port } => {
                absent(&self.udp, &port)?;
                self.udp.insert(port, udp::Receiver::start(port)?);
            }
            Command::UdpSend(order) => return Ok(json!(udp::send(&order)?)),
            Command::UdpReceived { port, run } => return Ok(json!(running(&self.udp, &port)?.report(run)?)),
            Command::Start { job, command } => {
                absent(&self.jobs, &job)?;
                self.jobs.insert(job, Job::start(*command)?);
            }
            Command::Finish { job } => {
                running(&self.jobs, &job)?;
                return self.jobs.remove(&job).map_or(Ok(Value::Null), Job::finish);
            }
            Command::Unbind { device } => self.machine().and_then(|()| nic::unbind(&device))?,
            Command::Bind { device } => self.machine().and_then(|()| nic::bind(&device))?,
            Command::NvmeAdmin { controller, opcode, dwords } => {
                self.machine()?;
                return Ok(json!(sys::nvme_admin(&controller, opcode, dwords)?));
            }
            Command::Shell { line } => {
                let words = ["/bin/busybox", "sh", "-c", &line].map(String::from);
                return Ok(json!(program::run(&words, SHELL_LIMIT)?));
            }
            Command::Run { words, limit_ms } => {
                return Ok(json!(program::run(&words, Duration::from_millis(limit_ms))?));
            }
            Command::Launch { name, words } => {
                absent(&self.programs, &name)?;
                let program = Program::start(&name, &words)?;
                self.programs.insert(name, program);
            }
            Command::Tell { name, line } => self.program(&name)?.tell(&line)?,
            Command::Program { name } => return Ok(json!(self.program(&name)?.report()?)),
            Command::Signal { name, signal } => self.program(&name)?.signal(signal)?,
            Command::End { name } => {
                let report = self.program(&name)?.end()?;
                self.programs.remove(&name);
                return Ok(json!(report));
            }
            Command::Reboot => return self.machine().and_then(|()| end(RebootCommand::Restart)),
            Command::PowerOff => return self.machine().and_then(|()| end(RebootCommand::PowerOff)),
        }
        Ok(Value::Null)
    }

    /// A program that was launched.
    fn program(&mut self, name: &str) -> Result<&mut Program> {
        self.programs.get_mut(name).ok_or_else(|| Error::new(format!("no program {name} was launched")))
    }

    /// An error in a namespace, for what concerns the whole machine.
    fn machine(&self) -> Result<()> {
        if self.is_machine {
            Ok(())
        } else {
            Err(Error::new("this is a namespace of the host, not a machine"))
        }
    }
}

fn running<'a, K: Ord + std::fmt::Debug, V>(all: &'a BTreeMap<K, V>, key: &K) -> Result<&'a V> {
    all.get(key).ok_or_else(|| Error::new(format!("nothing runs for {key:?}")))
}

fn absent<K: Ord + std::fmt::Debug, V>(all: &BTreeMap<K, V>, key: &K) -> Result<()> {
    match all.get(key) {
        None => Ok(()),
        Some(_) => Err(Error::new(format!("one already runs for {key:?}"))),
    }
}

/// Restarts or ends the machine.
fn end(how: RebootCommand) -> Result<Value> {
    rustix::fs::sync();
    rustix::system::reboot(how).context(|| "reboot".into())?;
    Ok(Value::Null)
}

const SHELL_LIMIT: Duration = Duration::from_secs(20);
