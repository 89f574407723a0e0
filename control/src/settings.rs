//! With what the subsystem is started.

use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use ringway_engine::IdlePolicy;
use ringway_pmd::bus::virt::VirtualBus;
use ringway_pmd::driver::Attachments;
use ringway_pmd::vdpa::{ManagementDevice, MgmtKind};

use crate::host::manager::{Heartbeat, StatusLine};
use crate::operator::api::{DeviceEntry, MgmtEntry, PortEntry};

/// Workers and what they do when idle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Their cores; empty: the default of [`crate::devices::placement`].
    pub cores: Vec<usize>,
    /// What idle workers do.
    pub idle: IdlePolicy,
}

impl Default for Settings {
    fn default() -> Self {
        Settings { cores: Vec::new(), idle: IdlePolicy::Adaptive }
    }
}

/// An operator socket for those who see and change nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Where it is.
    pub path: PathBuf,
    /// Whose it is, by name or number, beside the user of the daemon.
    pub group: Option<String>,
}

/// A key of a configuration file's `[daemon]` that is given beside the file, which it goes before.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Override {
    /// The key.
    pub key: &'static str,
    /// What it gives the key, as that is shown: what each start takes, whatever operators have changed since.
    pub value: String,
    /// By what, in words, as in "the command line: `--cores 1`".
    pub by: String,
}

/// How to start the subsystem.
pub struct Options {
    /// The operator socket; none without it.
    pub ctl: Option<PathBuf>,
    /// The view-only operator socket; none without it.
    pub view: Option<View>,
    /// Where metrics are scraped: the path of a socket, or an address with a port; nowhere without it.
    pub metrics: Option<String>,
    /// The operator socket, where it came with the process; whoever made it keeps its file.
    pub ctl_socket: Option<UnixListener>,
    /// Where device sockets (`dev/`) and positions (`positions/`) are. Made if missing.
    pub runtime_dir: PathBuf,
    /// Where devices that operators add are kept; nothing is kept without it.
    pub state_dir: Option<PathBuf>,
    /// Workers and their idle policy.
    pub settings: Settings,
    /// Whether the workers' cores are claimed for the host to see, as a daemon does.
    pub claims_cores: bool,
    /// Devices of the configuration file, made at the start.
    pub devices: Vec<DeviceEntry>,
    /// The configuration file, for what is said of its devices.
    pub config_file: Option<PathBuf>,
    /// What goes before its `[daemon]`: a changed file and a restart bring none of these keys.
    pub overrides: Vec<Override>,
    /// What drivers register from the start.
    pub mgmtdevs: Vec<Box<dyn ManagementDevice>>,
    /// Kinds of management devices that come to be by being named.
    pub kinds: Vec<Box<dyn MgmtKind>>,
    /// Buses with their drivers.
    pub attachments: Vec<Box<dyn Attachments>>,
    /// Management devices of the configuration file, made at the start.
    pub named: Vec<MgmtEntry>,
    /// Ports of the configuration file, made at the start.
    pub ports: Vec<PortEntry>,
    /// A byte on it stops the subsystem: the other end belongs to a signal handler.
    pub signals: Option<UnixStream>,
    /// A byte on it has the configuration file applied as it is then.
    pub reload: Option<UnixStream>,
    /// What feeds the service manager's watchdog.
    pub heartbeat: Option<Heartbeat>,
    /// What the service manager shows of the daemon.
    pub status_line: Option<StatusLine>,
}

impl Options {
    /// Everything below one directory, no operator socket, nothing kept, default workers and every driver.
    pub fn embedded(runtime_dir: &Path) -> Options {
        let bus = VirtualBus::default();
        Options {
            ctl: None,
            view: None,
            metrics: None,
            ctl_socket: None,
            runtime_dir: runtime_dir.to_owned(),
            state_dir: None,
            settings: Settings::default(),
            claims_cores: false,
            devices: Vec::new(),
            config_file: None,
            overrides: Vec::new(),
            mgmtdevs: crate::devices::drivers::all(),
            kinds: crate::devices::drivers::kinds(&bus),
            attachments: crate::devices::drivers::attachments(&bus),
            named: Vec::new(),
            ports: Vec::new(),
            signals: None,
            reload: None,
            heartbeat: None,
            status_line: None,
        }
    }
}

impl std::fmt::Debug for Options {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Options")
            .field("ctl", &self.ctl)
            .field("runtime_dir", &self.runtime_dir)
            .field("state_dir", &self.state_dir)
            .field("settings", &self.settings)
            .field("devices", &self.devices)
            .finish_non_exhaustive()
    }
}
