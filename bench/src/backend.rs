//! What is measured: a `ringwayd` of our own, a peer of our own, or whatever stands behind a socket.
//!
//! A back-end polls its core also when it has nothing to do. Where two are measured in turns on one core, the one whose turn
//! it is not is stopped (SIGSTOP) with nothing under way, and goes on (SIGCONT) before its next round.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::{Deserialize, Serialize};

use crate::daemon::Daemon;
use crate::error::BenchError;
use crate::options::Job;
use ringway_control::operator::api::CoreShow;
use ringway_control::operator::client::Client;

// What a back-end spent.
mod busy;
// A testpmd at its console.
pub(crate) mod console;
mod ovs;
mod testpmd;

pub use busy::{Busy, Spent};
pub use console::version_of as testpmd_version;
pub use ovs::Ovs;
pub use testpmd::{Testpmd, Wanted};

/// What a back-end is, for the record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Its name.
    pub name: String,
    /// Its version, as it tells it.
    pub version: String,
    /// How it was started.
    pub flags: Vec<String>,
}

/// A running back-end that does a job on one core.
#[derive(Debug)]
pub enum Backend {
    /// Ringway.
    Ringway {
        /// The daemon.
        daemon: Daemon,
        /// A line to it.
        client: Client,
        /// The core of its worker.
        core: usize,
        /// Its devices.
        devices: Vec<String>,
        /// What it is.
        identity: Identity,
    },
    /// DPDK's testpmd.
    Dpdk(Testpmd),
    /// Open vSwitch.
    Ovs(Ovs),
}

/// Beside whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Peer {
    /// DPDK's testpmd with net_vhost ports: this program, or the one that is found.
    Dpdk(Option<PathBuf>),
    /// Open vSwitch on DPDK.
    Ovs,
    /// Ringway itself, whose two ports are joined by a link: for a bridge.
    Link,
}

/// What the devices of a job stand on.
#[derive(Debug, Clone, Copy, Default)]
pub struct On<'a> {
    /// The management device of each port; the job's own without it.
    pub mgmtdevs: &'a [String],
    /// What `ringwayd` starts with beside them.
    pub config: Option<&'a Path>,
    /// A bridge lets everything through that it floods.
    pub flood: bool,
}

impl Backend {
    /// Starts `ringwayd` with the devices of a job: its worker on `core`, `idle` its policy.
    pub fn ringway(
        job: Job,
        ports: usize,
        core: usize,
        idle: &str,
        max_frame: u16,
        pairs: u16,
        on: On<'_>,
    ) -> Result<Backend, BenchError> {
        let cores = core.to_string();
        let config = on.config.map(|path| path.display().to_string());
        let mut flags = vec!["--cores", &cores, "--idle", idle];
        flags.extend(config.iter().flat_map(|path| ["--config", path]));
        let daemon = Daemon::start(&flags)?;
        let mtu = max_frame.saturating_sub(ETHERNET_HEADER).max(1500).to_string();
        let pairs = pairs.to_string();
        let devices = match job {
            Job::Loopback => vec!["bench".to_owned()],
            Job::Link | Job::Bridge => (0..ports).map(|port| format!("bench{port}")).collect(),
        };
        for (port, device) in devices.iter().enumerate() {
            let mut words = vec!["dev", "add", "name", device.as_str(), "mgmtdev"];
            match (on.mgmtdevs.get(port), job) {
                (Some(mgmtdev), _) => words.push(mgmtdev),
                (None, Job::Loopback) => words.extend(["sim/net", "swap", "on"]),
                (None, Job::Link) => words.push("link/bench"),
                (None, Job::Bridge) => words.push("bridge/bench"),
            }
            words.extend(["mtu", &mtu, "max_vqp", &pairs]);
            if on.flood {
                words.extend(["flood_pps", "off"]);
            }
            // A function is there once the daemon has looked at it.
            let begun = Instant::now();
            while let Err(error) = daemon.ringway(&words) {
                if on.mgmtdevs.is_empty() || begun.elapsed() > FUNCTION_WITHIN {
                    return Err(error.into());
                }
                std::thread::sleep(Duration::from_millis(100));
            }
        }
        let identity = Identity {
            name: "ringway".to_owned(),
            version: format!("{} ({})", env!("CARGO_PKG_VERSION"), env!("RINGWAY_REVISION")),
            flags: flags
                .into_iter()
                .chain(on.mgmtdevs.iter().map(String::as_str))
                .map(str::to_owned)
                .collect(),
        };
        let client = Client::connect(&daemon.ctl(), PATIENCE).map_err(unanswered)?;
        Ok(Backend::Ringway { daemon, client, core, devices, identity })
    }

    /// The sockets to connect to.
    pub fn sockets(&self) -> Vec<PathBuf> {
        match self {
            Backend::Ringway { daemon, devices, .. } => {
                devices.iter().map(|device| daemon.socket(device)).collect()
            }
            Backend::Dpdk(testpmd) => testpmd.sockets.clone(),
            Backend::Ovs(ovs) => ovs.sockets().to_vec(),
        }
    }

    /// Whether it connects to sockets that are the generator's.
    pub fn connects(&self) -> bool {
        matches!(self, Backend::Ovs(_))
    }

    /// What it is.
    pub fn identity(&self) -> &Identity {
        match self {
            Backend::Ringway { identity, .. } => identity,
            Backend::Dpdk(testpmd) => &testpmd.console.identity,
            Backend::Ovs(ovs) => &ovs.identity,
        }
    }

    /// Stops it where it is.
    pub fn pause(&self) -> Result<(), BenchError> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub fn proceed(&self) -> Result<(), BenchError> {
        self.signal(Signal::CONT)
    }

    /// What it has spent so far; None where it does not tell. It must be running.
    pub fn busy(&mut self) -> Result<Option<Busy>, BenchError> {
        match self {
            Backend::Ringway { client, core, .. } => {
                let show: CoreShow = client.call("core.show", &serde_json::json!({})).map_err(unanswered)?;
                Ok(show.core.find(&core.to_string()).map(|worker| Busy {
                    cycles: worker.busy_cycles,
                    packets: worker.packets,
                    bursts: worker.bursts as f64,
                }))
            }
            Backend::Dpdk(testpmd) => testpmd.console.forwarded().map(|told| {
                let (cycles, packets, bursts) = (told.cycles, told.rx, told.bursts as f64);
                (cycles > 0).then_some(Busy { cycles, packets, bursts })
            }),
            Backend::Ovs(ovs) => ovs.busy(),
        }
    }

    fn signal(&self, signal: Signal) -> Result<(), BenchError> {
        let pid = match self {
            Backend::Ringway { daemon, .. } => daemon.pid(),
            Backend::Dpdk(testpmd) => testpmd.console.pid(),
            Backend::Ovs(ovs) => ovs.pid(),
        };
        send(pid, &self.identity().name, signal)
    }
}

fn unanswered(why: impl std::fmt::Display) -> BenchError {
    BenchError::Peer { peer: "ringwayd".to_owned(), what: why.to_string() }
}

/// Stops a process where it is, or lets it go on.
pub(crate) fn send(pid: u32, name: &str, signal: Signal) -> Result<(), BenchError> {
    let failed = BenchError::system(format!("cannot signal {name}"));
    let pid = Pid::from_raw(pid as i32).ok_or_else(|| BenchError::Usage("no process".to_owned()))?;
    kill_process(pid, signal).map_err(|errno| failed(errno.into()))
}

/// What a peer's memory is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Memory {
    /// 2 MiB pages from memfds, which need no mounted hugetlbfs.
    Huge,
    /// Ordinary pages.
    Base,
}

impl Memory {
    /// The better of what is free for so many MiB.
    pub(crate) fn find(mib: u64) -> Memory {
        let path = "/sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages";
        let free =
            std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0u64);
        if free * 2 >= mib { Memory::Huge } else { Memory::Base }
    }
}

/// How long the daemon may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

const ETHERNET_HEADER: u16 = 14;

/// How long a function may take to be there.
const FUNCTION_WITHIN: Duration = Duration::from_secs(3);
