//! `ringway-guest`: the agent that is a test guest's first and only process.
//!
//! It mounts what it needs, loads the kernel modules that lie in `/modules`, says that it is ready and then carries out what
//! the harness asks (see `ringway_lab::agent`). It is linked statically; the initramfs holds little else.

#![deny(unsafe_code)]

mod frames;
mod nic;
mod setup;
mod sys;
mod traffic;
mod wire;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command as Program, ExitCode, Stdio};
use std::time::{Duration, Instant};

use ringway_lab::agent::{Command, Ready, Reply, ShellReport};
use ringway_lab::error::{Context, Error, Result};
use rustix::system::RebootCommand;
use serde_json::{Value, json};

use crate::traffic::Traffic;

fn main() -> ExitCode {
    if std::process::id() != 1 {
        eprintln!("ringway-guest is the first process of a test guest; the tests of `ringway-lab` boot it");
        return ExitCode::from(2);
    }
    match serve() {
        Ok(()) => eprintln!("ringway-guest: the harness closed its side"),
        Err(error) => eprintln!("ringway-guest: {error}"),
    }
    // The kernel panics when its first process ends, which ends a guest that can no longer be reached.
    ExitCode::FAILURE
}

/// Sets the guest up, then answers one command after the other.
fn serve() -> Result<()> {
    setup::mount_all()?;
    setup::queue_plainly()?;
    setup::load_modules()?;
    let port = setup::open_port()?;
    let mut lines = BufReader::new(port.try_clone()?);
    let mut port = port;
    say(&mut port, &Ready { ready: rustix::system::uname().release().to_string_lossy().into_owned() })?;
    let mut traffic = BTreeMap::new();
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
            Ok(command) => match carry_out(command, &mut traffic) {
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

fn carry_out(command: Command, traffic: &mut BTreeMap<String, Traffic>) -> Result<Value> {
    match command {
        Command::Ping => {}
        Command::Nics => return Ok(json!(nic::all()?)),
        Command::Devices => return Ok(json!(nic::devices()?)),
        Command::Link { nic, up } => nic::set_link(&nic, up)?,
        Command::Mtu { nic, mtu } => nic::set_mtu(&nic, mtu)?,
        Command::Channels { nic, pairs } => sys::set_channels(&nic::by_mac(&nic)?.name, pairs)?,
        Command::Frames(order) => return Ok(json!(frames::run(&order)?)),
        Command::TrafficStart(order) => {
            if traffic.contains_key(&order.nic) {
                return Err(Error::new(format!("traffic already runs on {}", order.nic)));
            }
            traffic.insert(order.nic.clone(), Traffic::start(order)?);
        }
        Command::TrafficReport { nic } => {
            let running = traffic.get(&nic).ok_or_else(|| Error::new(format!("no traffic runs on {nic}")))?;
            return Ok(json!(running.report()));
        }
        Command::TrafficStop { nic } => {
            let running =
                traffic.remove(&nic).ok_or_else(|| Error::new(format!("no traffic runs on {nic}")))?;
            return Ok(json!(running.stop()?));
        }
        Command::Unbind { device } => nic::unbind(&device)?,
        Command::Bind { device } => nic::bind(&device)?,
        Command::Shell { line } => return Ok(json!(shell(&line)?)),
        Command::Reboot => return end(RebootCommand::Restart),
        Command::PowerOff => return end(RebootCommand::PowerOff),
    }
    Ok(Value::Null)
}

/// Restarts or ends the machine.
fn end(how: RebootCommand) -> Result<Value> {
    rustix::fs::sync();
    rustix::system::reboot(how).context(|| "reboot".into())?;
    Ok(Value::Null)
}

fn shell(line: &str) -> Result<ShellReport> {
    let output = "/tmp/shell-output";
    let log = File::create(output).context(|| output.into())?;
    let mut child = Program::new("/bin/busybox")
        .args(["sh", "-c", line])
        .env("PATH", "/bin")
        .stdin(Stdio::null())
        .stdout(log.try_clone()?)
        .stderr(log)
        .spawn()
        .context(|| "busybox".into())?;
    let deadline = Instant::now() + SHELL_LIMIT;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if Instant::now() > deadline {
            child.kill()?;
            break child.wait()?;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    let code = status.code().unwrap_or_else(|| {
        use std::os::unix::process::ExitStatusExt;
        128 + status.signal().unwrap_or(0)
    });
    let mut text = String::from_utf8_lossy(&std::fs::read(output)?).into_owned();
    if let Some((cut, _)) = text.char_indices().nth(SHELL_OUTPUT_CHARS) {
        text.truncate(cut);
    }
    Ok(ShellReport { code, output: text })
}

const SHELL_LIMIT: Duration = Duration::from_secs(20);
const SHELL_OUTPUT_CHARS: usize = 4096;
