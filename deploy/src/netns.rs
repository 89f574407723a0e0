//! A network namespace of the host, where the host's end of a test's traffic lives: nothing that a test does there reaches the
//! host's own interfaces, or another test's.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::ensure;
use crate::error::{Context, Result};
use crate::image::agent;
use crate::lab::Lab;
use crate::pace::WATCHDOG;
use crate::process::{self, Process};
use crate::station::Station;

/// A namespace that goes with its owner, and with all that is in it.
#[derive(Debug)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace; `label` is part of its name, with this process's number.
    pub fn new(label: &str) -> Result<Netns> {
        sweep()?;
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}-{label}", std::process::id());
        host_ip(&["netns", "add", &name])?;
        let netns = Netns { name };
        // Interfaces in it are to be silent until they are spoken to.
        netns.sysctl("net/ipv6/conf/default/accept_dad", "0")?;
        netns.sysctl("net/ipv6/conf/default/router_solicitations", "0")?;
        Ok(netns)
    }

    /// Its name, as `ip netns` has it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs `ip` with these words in it, which must succeed.
    pub fn ip(&self, words: &[&str]) -> Result<String> {
        host_ip(&[&["-netns", &self.name], words].concat())
    }

    /// Sets one of its settings, named by its path below `/proc/sys`.
    pub fn sysctl(&self, setting: &str, value: &str) -> Result<()> {
        let line = format!("echo {value} > /proc/sys/{setting}");
        host_ip(&["netns", "exec", &self.name, "sh", "-c", &line]).map(|_| ())
    }

    /// Joins it with another one by a pair of the kernel's virtual Ethernet interfaces.
    pub fn join(&self, interface: &str, other: &Netns, others_interface: &str) -> Result<()> {
        let words = ["link", "add", interface, "type", "veth", "peer", "name", others_interface, "netns"];
        self.ip(&[&words[..], &[&other.name]].concat()).map(|_| ())
    }

    /// Moves an interface from here to another namespace, as an operator would; the kernel takes its addresses off.
    pub fn give(&self, interface: &str, to: &Netns) -> Result<()> {
        self.ip(&["link", "set", interface, "netns", &to.name]).map(|_| ())
    }

    /// Starts an agent in it: a station like a guest.
    pub fn station(&self, lab: &Lab, name: &str) -> Result<Station> {
        let (ours, theirs) = UnixStream::pair().context(|| "socket pair".into())?;
        let log = lab.path(&format!("{name}-agent.log"));
        let mut arguments = ["netns", "exec", &self.name].map(String::from).to_vec();
        arguments.extend([agent()?.display().to_string(), "--serve-on-stdio".into()]);
        let process = Process::start_on(IP, &arguments, theirs, &log)?;
        let mut station = Station::new(name, process, ours, log);
        station.wait_until_ready(WATCHDOG)?;
        Ok(station)
    }
}

impl Drop for Netns {
    fn drop(&mut self) {
        // Agents and daemons in it have ended with their own owners, or end with the test's process.
        let _ = host_ip(&["netns", "delete", &self.name]);
    }
}

/// Removes what processes that were killed have left.
fn sweep() -> Result<()> {
    for entry in std::fs::read_dir(NAMESPACES).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next());
        if process.is_some_and(|process| !Path::new("/proc").join(process).exists()) {
            host_ip(&["netns", "delete", &name])?;
        }
    }
    Ok(())
}

/// Runs `ip`, which must succeed.
fn host_ip(words: &[&str]) -> Result<String> {
    let arguments: Vec<String> = words.iter().map(|word| (*word).to_string()).collect();
    let finished = process::run(IP, &arguments, WATCHDOG)?;
    ensure!(
        finished.code == 0,
        "ip {}: exit code {}\n{}{}",
        words.join(" "),
        finished.code,
        finished.stdout,
        finished.stderr
    );
    Ok(finished.stdout)
}

const IP: &str = "/sbin/ip";
const NAMESPACES: &str = "/run/netns";
const PREFIX: &str = "rwlab-";
