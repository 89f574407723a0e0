//! The subsystem as a value: started in a process, called, stopped. `ringwayd` is this with an operator socket; the
//! demo and the tests are this without one.

use std::thread::JoinHandle;

use crossbeam::channel::{Sender, bounded};
use ringway_engine::Engine;
use ringway_pmd::vdpa::ManagementDevice;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::daemon::{Daemon, Message, Remote};
use crate::fault::{Fault, Kind};
use crate::host::endpoint::Inherited;
use crate::operator::api::{DevAdded, DevDeleted, DevShow, DeviceEntry, Select, Target};

pub use crate::settings::Options;

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
        let params = serde_json::to_value(params).map_err(|error| Fault::usage(error.to_string()))?;
        let result: String = self.ask(|reply| Message::Call { method: method.to_owned(), params, reply })?;
        serde_json::from_str(&result).map_err(|error| Fault::new(Kind::Runtime, error.to_string()))
    }

    /// A driver brings a management device: operators can make devices with it from now on, and those that waited for it
    /// are made.
    ///
    /// # Errors
    /// There is one of its name, or the subsystem has stopped.
    pub fn register(&self, mgmtdev: Box<dyn ManagementDevice>) -> Result<(), Fault> {
        self.ask(|reply| Message::Register { mgmtdev, reply })
    }

    /// A driver takes its management device back: what it made is revoked at once, nobody is waited for.
    ///
    /// # Errors
    /// There is none of this name, or the subsystem has stopped.
    pub fn unregister(&self, name: &str, why: &str) -> Result<(), Fault> {
        let (name, why) = (name.to_owned(), why.to_owned());
        self.ask(|reply| Message::Unregister { name, why, reply })
    }

    /// Sends a message and waits for the answer.
    fn ask<R>(&self, message: impl FnOnce(Sender<Result<R, Fault>>) -> Message) -> Result<R, Fault> {
        let gone = || Fault::new(Kind::Unreachable, "the subsystem has stopped");
        let (reply, answered) = bounded(1);
        if !self.remote.send(message(reply)) {
            return Err(gone());
        }
        answered.recv().map_err(|_| gone())?
    }

    /// Makes a device on a socket that came with the process.
    pub(crate) fn adopt(&self, entry: DeviceEntry, socket: Inherited) -> Result<(), Fault> {
        self.ask(|reply| Message::Adopt { entry, socket, reply })
    }

    /// The service manager was told READY=1 with this line, which is kept up to date from now on.
    pub(crate) fn ready(&self, status: String) {
        self.remote.send(Message::Ready { status });
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
