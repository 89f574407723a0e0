//! Management devices that drivers register and let go while the daemon runs, and what devices tell unasked.
//!
//! ```text
//!   bus --announces--> driver --probe--> register ----> mgmtdev.registered, devices that waited for it are made
//!       --withdraws--------------------> unregister --> dev.gone for each of its devices, mgmtdev.unregistered
//!   device --gone, needs reset, config changed--> told to its session, shown
//! ```
//!
//! A device that is gone is revoked like one that an operator removes, but stays asked for: it is made again as soon as it
//! can be. Thread: control.

use std::time::Instant;

use ringway_pmd::driver::Change;
use ringway_pmd::later;
use ringway_pmd::vdpa::{ManagementDevice, Upcall};
use serde_json::json;

use crate::daemon::Daemon;
use crate::devices::absent::{Absent, RETRY_ABSENT};
use crate::devices::checks::uplink_of;
use crate::devices::device::Origin;
use crate::devices::registry::MgmtOrigin;
use crate::fault::Fault;
use crate::frontends::session::Command;
use crate::operator::api::{DeviceEntry, Mode};

impl Daemon {
    /// Takes in what came and went on a bus.
    pub(crate) fn take_bus_changes(&mut self, at: usize) {
        let Some(bus) = self.attachments.get_mut(at) else { return };
        for change in bus.take() {
            match change {
                Change::Attached(mgmtdev) => {
                    let name = mgmtdev.info().name;
                    if let Err(fault) = self.register(mgmtdev) {
                        self.tell_failed(&name, None, fault);
                    }
                }
                Change::Failed { name, driver, error } => {
                    self.tell_failed(&name, Some(driver), error.into());
                }
                Change::Detached { name, why } => {
                    let _ = self.unregister(&name, &why);
                }
            }
        }
    }

    fn tell_failed(&mut self, name: &str, driver: Option<&str>, fault: Fault) {
        let cure = fault.hint.clone().unwrap_or_else(|| "the log of the kernel may say more".to_owned());
        let mut details = json!({ "mgmtdev": name, "why": fault.message, "try": cure });
        if !self.registry.has_mgmtdev(name) {
            self.registry.note_unusable(name, Some(fault.clone()));
            self.tell_waiting(name, &format!("{name} cannot be used: {}; try: {cure}", fault.message));
        }
        for (key, value) in [("driver", driver.map(str::to_owned)), ("held_by", fault.held_by)] {
            if let Some(value) = value {
                details[key] = value.into();
            }
        }
        self.events.push("mgmtdev.failed", None, details);
    }

    /// A driver brings a management device.
    pub(crate) fn register(&mut self, mgmtdev: Box<dyn ManagementDevice>) -> Result<(), Fault> {
        let name = mgmtdev.info().name;
        if let Err((mgmtdev, fault)) = self.registry.register(mgmtdev) {
            later::dispose(move || drop(mgmtdev));
            return Err(fault);
        }
        self.events.push("mgmtdev.registered", None, json!({ "mgmtdev": name }));
        self.make_waiting_ports(&name);
        // Devices may have waited for it.
        let waits = |entry: &DeviceEntry| entry.mgmtdev == name || uplink_of(entry) == Some(&name);
        for absent in self.absent.iter_mut().filter(|absent| waits(&absent.entry)) {
            absent.is_final = false;
            self.retry_absent_at = Some(Instant::now());
        }
        Ok(())
    }

    /// Devices that could not be made of a management device say this of it from now on.
    fn tell_waiting(&mut self, name: &str, why: &str) {
        let waits = |entry: &DeviceEntry| entry.mgmtdev == name || uplink_of(entry) == Some(name);
        for absent in self.absent.iter_mut().filter(|absent| waits(&absent.entry)) {
            if !self.registry.is_taken(&absent.entry.name) {
                why.clone_into(&mut absent.why);
            }
        }
    }

    /// A driver takes its management device back: what it made is revoked, and made again should it come back.
    pub(crate) fn unregister(&mut self, name: &str, why: &str) -> Result<(), Fault> {
        self.registry.note_unusable(name, None);
        if self.registry.mgmtdev(name)?.origin != MgmtOrigin::Driver {
            return Err(Fault::conflict(format!("{name} was not registered by a driver")).at("name"));
        }
        self.revoke_ports(name, &format!("{name} is gone: {why}"));
        let uplinks = self.registry.uplinks_by(name);
        for device in self.registry.made_by(name).into_iter().chain(uplinks) {
            self.lose_device(&device, &format!("{name} is gone: {why}"));
        }
        self.tell_waiting(name, &format!("{name} is gone: {why}"));
        // With it goes the function, which may take its time.
        let mgmtdev = self.registry.take_mgmtdev(name);
        later::dispose(move || drop(mgmtdev));
        self.events.push("mgmtdev.unregistered", None, json!({ "mgmtdev": name, "why": why }));
        Ok(())
    }

    /// Hears what a device told. One that was removed, or made anew meanwhile, is not heard any more.
    pub(crate) fn take_upcalls(&mut self, id: u64) {
        let Some(device) = self.registry.by_id(id) else { return };
        for upcall in device.host.take() {
            self.hear(id, upcall);
        }
    }

    fn hear(&mut self, id: u64, upcall: Upcall) {
        let Some(device) = self.registry.by_id(id) else { return };
        let name = device.name().to_owned();
        match upcall {
            Upcall::ConfigChanged => match (&mut device.held, &device.connection) {
                (Some(held), _) => device.facts = held.facts().unwrap_or_else(|| device.facts.clone()),
                (None, Some(connection)) => {
                    connection.handle.send(Command::ConfigChanged);
                }
                (None, None) => {}
            },
            Upcall::NeedsReset(why) => {
                if let Some(connection) = &device.connection {
                    connection.handle.send(Command::NeedsReset);
                }
                // Unless this guest resets it, whoever connects next gets another one.
                device.needs_reset = true;
                device.history.last_failure = Some(format!("the device needs a reset: {why}"));
                if device.quota.take("dev.needs_reset") {
                    let cure = match device.mode {
                        Mode::Netdev | Mode::Uplink => "it is reset and begins anew by itself",
                        _ => "the guest's driver resets it; else reload the driver, or restart the guest",
                    };
                    self.events.push("dev.needs_reset", Some(&name), json!({ "why": why, "try": cure }));
                }
            }
            Upcall::Gone(why) => self.lose_device(&name, &why),
        }
    }

    /// A device is there no more, and nobody asked for that.
    fn lose_device(&mut self, name: &str, why: &str) {
        let Ok(device) = self.registry.find(name) else { return };
        let (entry, origin) = (device.entry.clone(), device.origin);
        // What came with another one comes with it again: that one is lost with it.
        let bringer = self.registry.made_by(&entry.mgmtdev).into_iter().find(|other| other != name);
        if let (Origin::Implied, Some(bringer)) = (origin, bringer) {
            return self.lose_device(&bringer, why);
        }
        self.drop_device(name);
        self.events.push("dev.gone", Some(name), json!({ "why": why }));
        if origin != Origin::Implied {
            self.absent.push(Absent { entry, origin, why: why.to_owned(), is_final: false });
            self.retry_absent_at.get_or_insert_with(|| Instant::now() + RETRY_ABSENT);
        }
    }
}
