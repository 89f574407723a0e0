//! The subsystem as a value: started in a process, called, stopped. `ringwayd` is this with an operator socket; the
//! demo and the tests are this without one.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use crossbeam::channel::bounded;
use ringway_engine::Engine;
use ringway_pmd::vdpa::{ManagementBus, ManagementDevice};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::daemon::{Daemon, Message, Remote};
use crate::fault::{Fault, Kind};
use crate::operator::api::{DevAdded, DevDeleted, DevShow, DeviceEntry, MgmtEntry, Select, Target};
use crate::operator::config::Settings;
use crate::operator::single::Inherited;

/// How to start the subsystem.
pub struct Options {
    /// The operator socket; none without it.
    pub ctl: Option<PathBuf>,
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
    /// What drivers register.
    pub mgmtdevs: Vec<Box<dyn ManagementDevice>>,
    /// Buses that drivers register.
    pub buses: Vec<Box<dyn ManagementBus>>,
    /// Management devices of the configuration file, made at the start.
    pub named: Vec<MgmtEntry>,
    /// A byte on it stops the subsystem: the other end belongs to a signal handler.
    pub signals: Option<UnixStream>,
}

impl Options {
    /// Everything below one directory, no operator socket, nothing kept, default workers and every driver.
    pub fn embedded(runtime_dir: &Path) -> Options {
        Options {
            ctl: None,
            runtime_dir: runtime_dir.to_owned(),
            state_dir: None,
            settings: Settings::default(),
            claims_cores: false,
            devices: Vec::new(),
            config_file: None,
            mgmtdevs: crate::devices::drivers::all(),
            buses: crate::devices::drivers::buses(),
            named: Vec::new(),
            signals: None,
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

/// A running subsystem. Stopped when dropped.
pub struct Subsystem {
    remote: Remote,
    engine: Engine,
    thread: Option<JoinHandle<()>>,
}

impl std::fmt::Debug for Subsystem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Subsystem").field("running", &self.thread.is_some()).finish_non_exhaustive()
    }
}

impl Subsystem {
    /// Starts the workers and the control thread.
    ///
    /// # Errors
    /// Another instance holds the directories, a core cannot be had, or the system refuses something.
    pub fn start(options: Options) -> Result<Subsystem, Fault> {
        let (told, started) = bounded(1);
        let thread = std::thread::Builder::new()
            .name("control".to_owned())
            .spawn(move || match Daemon::new(options) {
                Ok(daemon) => {
                    let _ = told.send(Ok((daemon.remote(), daemon.engine.clone())));
                    daemon.run();
                }
                Err(fault) => {
                    let _ = told.send(Err(fault));
                }
            })
            .map_err(|error| Fault::system("cannot start the control thread", error))?;
        let (remote, engine) = started
            .recv()
            .unwrap_or_else(|_| Err(Fault::new(Kind::Runtime, "the control thread died at its start")))?;
        Ok(Subsystem { remote, engine, thread: Some(thread) })
    }

    /// The workers.
    pub fn engine(&self) -> &Engine {
        &self.engine
    }

    /// Calls a method of the operator protocol (see [`crate::operator::api`]).
    ///
    /// # Errors
    /// The method's own, or the subsystem has stopped.
    pub fn call<P: Serialize, R: DeserializeOwned>(&self, method: &str, params: &P) -> Result<R, Fault> {
        let gone = || Fault::new(Kind::Unreachable, "the subsystem has stopped");
        let params = serde_json::to_value(params).map_err(|error| Fault::usage(error.to_string()))?;
        let (reply, answered) = bounded(1);
        if !self.remote.send(Message::Call { method: method.to_owned(), params, reply }) {
            return Err(gone());
        }
        let result: Value = answered.recv().map_err(|_| gone())??;
        serde_json::from_value(result).map_err(|error| Fault::new(Kind::Runtime, error.to_string()))
    }

    /// Makes a device on a socket that came with the process.
    pub(crate) fn adopt(&self, entry: DeviceEntry, socket: Inherited) -> Result<(), Fault> {
        let gone = || Fault::new(Kind::Unreachable, "the subsystem has stopped");
        let (reply, answered) = bounded(1);
        if !self.remote.send(Message::Adopt { entry, socket, reply }) {
            return Err(gone());
        }
        answered.recv().map_err(|_| gone())?
    }

    /// Adds a device.
    ///
    /// # Errors
    /// As `dev.add`.
    pub fn add(&self, entry: &DeviceEntry) -> Result<DevAdded, Fault> {
        self.call("dev.add", entry)
    }

    /// Removes a device.
    ///
    /// # Errors
    /// As `dev.del`.
    pub fn remove(&self, name: &str) -> Result<DevDeleted, Fault> {
        self.call("dev.del", &Target { name: name.to_owned() })
    }

    /// What one device is, or all.
    ///
    /// # Errors
    /// As `dev.show`.
    pub fn show(&self, name: Option<&str>) -> Result<DevShow, Fault> {
        self.call("dev.show", &Select { name: name.map(str::to_owned) })
    }

    /// Closes every session, stops the workers and waits for the control thread.
    pub fn stop(mut self) {
        self.end();
    }

    /// Waits until the subsystem stops by itself (a signal).
    pub fn wait(mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }

    fn end(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.remote.send(Message::Stop);
            let _ = thread.join();
        }
    }
}

impl Drop for Subsystem {
    fn drop(&mut self) {
        self.end();
    }
}
