//! Management devices that come to be by being named, as operators and devices make, change and remove them.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use serde_json::json;

use crate::daemon::Daemon;
use crate::devices::absent::AbsentMgmtdev;
use crate::devices::checks::check_mgmt_entry;
use crate::devices::device::{Device, Origin};
use crate::devices::ports::gone_with_it;
use crate::devices::registry::MgmtOrigin;
use crate::fault::Fault;
use crate::frontends::session::Command;
use crate::operator::api::{MgmtEntry, MgmtdevChanged, MgmtdevDeleted, Target};

impl Daemon {
    /// Makes those of a list at the start. What cannot be made is told and kept; its devices make it with defaults.
    pub(crate) fn make_mgmtdevs(&mut self, entries: Vec<MgmtEntry>, origin: MgmtOrigin) {
        for entry in entries {
            let why = if self.registry.has_mgmtdev(&entry.name) {
                tracing::warn!(mgmtdev = entry.name, "also in the configuration file, which goes first");
                "a management device of this name is in the configuration file".to_owned()
            } else {
                let checked = check_mgmt_entry(&entry, &self.registry.known());
                let made = checked.and_then(|()| self.make_mgmtdev(&entry.name, &entry.attributes, origin));
                let Err(fault) = made else { continue };
                let why = fault.message;
                tracing::error!(
                    mgmtdev = entry.name,
                    "management device cannot be made, it is kept and tried again at the next start: {why}"
                );
                why
            };
            self.absent_mgmtdevs.push(AbsentMgmtdev { entry, origin, why });
        }
    }

    /// Forgets one that could not be made at the start: it was made, set, or removed since. What it was is returned.
    fn forget_absent(&mut self, name: &str) -> Vec<AbsentMgmtdev> {
        self.absent_mgmtdevs.extract_if(.., |absent| absent.entry.name == name).collect()
    }

    /// Makes `KIND/NAME`, on a core of its own if its devices share one.
    pub(crate) fn make_mgmtdev(
        &mut self,
        name: &str,
        attributes: &BTreeMap<String, String>,
        origin: MgmtOrigin,
    ) -> Result<(), Fault> {
        let shares_core = self.registry.known().kind(name)?.0.shares_core;
        let wanted = wanted_core(attributes)?;
        let cores = self.placement.place(usize::from(shares_core), wanted, None)?;
        let core = cores.first().copied().unwrap_or(0);
        let made = self.registry.make_mgmtdev(name, attributes, core, origin);
        if made.is_err() {
            self.placement.release(&cores);
        }
        made
    }

    /// A management device that came with its first device goes with its last, and its last port.
    pub(crate) fn drop_empty_mgmtdev(&mut self, name: &str) {
        let is_implied = |device: &&Device| device.entry.mgmtdev == name && device.origin == Origin::Implied;
        let implied: Vec<String> =
            self.registry.devices().filter(is_implied).map(|device| device.name().to_owned()).collect();
        if !implied.is_empty() && implied.len() == self.registry.made_by(name).len() {
            for device in implied {
                self.drop_device(&device);
                self.events.push("dev.removed", Some(&device), json!({}));
            }
            return;
        }
        let is_divided = self.ports.iter().any(|port| port.entry.mgmtdev == name && port.why.is_none());
        let is_empty = self.registry.made_by(name).is_empty() && !is_divided;
        if is_empty && self.registry.mgmtdev(name).is_ok_and(|mgmtdev| mgmtdev.origin == MgmtOrigin::Device) {
            self.drop_mgmtdev(name);
        }
    }

    fn drop_mgmtdev(&mut self, name: &str) {
        let core = self.registry.mgmtdev(name).ok().and_then(|mgmtdev| mgmtdev.device.shared_core());
        self.placement.release(core.as_slice());
        self.registry.remove_mgmtdev(name);
    }

    /// Checks that a management device can be made, as far as can be told.
    pub(crate) fn check_add_mgmtdev(&self, entry: &MgmtEntry) -> Result<(), Fault> {
        check_mgmt_entry(entry, &self.registry.known())?;
        if self.registry.has_mgmtdev(&entry.name) {
            return Err(Fault::conflict(format!("management device {} is there already", entry.name))
                .at("name")
                .hint(format!("another name, or ringway mgmtdev set name {}", entry.name)));
        }
        wanted_core(&entry.attributes)?.map_or(Ok(()), |core| self.placement.check(core))
    }

    pub(crate) fn add_mgmtdev(&mut self, entry: MgmtEntry) -> Result<MgmtdevChanged, Fault> {
        self.check_add_mgmtdev(&entry)?;
        self.make_mgmtdev(&entry.name, &entry.attributes, MgmtOrigin::Operator)?;
        let forgotten = self.forget_absent(&entry.name);
        if let Err(fault) = self.keep() {
            self.absent_mgmtdevs.extend(forgotten);
            self.drop_mgmtdev(&entry.name);
            return Err(fault);
        }
        self.events.push("mgmtdev.added", None, json!({ "mgmtdev": entry.name }));
        self.make_waiting_ports(&entry.name);
        self.mgmtdev_answer(entry.name)
    }

    /// Checks a change of a management device; the core that is asked for.
    pub(crate) fn check_set_mgmtdev(&mut self, entry: &MgmtEntry) -> Result<Option<usize>, Fault> {
        let name = &entry.name;
        self.registry.mgmtdev(name).map_err(|fault| fault.at("name"))?;
        check_mgmt_entry(entry, &self.registry.known())?;
        if entry.attributes.is_empty() {
            let known = self.registry.known();
            let settings = &known.kind(name)?.0.attributes;
            let settings: Vec<String> =
                settings.iter().map(|it| format!("{} {}", it.name, it.value)).collect();
            return Err(if settings.is_empty() {
                Fault::usage(format!("{name} has no settings"))
            } else {
                Fault::usage("nothing to set").hint(settings.join(", or "))
            });
        }
        let wanted = wanted_core(&entry.attributes)?;
        if let Some(core) = wanted {
            self.placement.check(core)?;
        }
        Ok(wanted)
    }

    pub(crate) fn set_mgmtdev(&mut self, entry: &MgmtEntry) -> Result<MgmtdevChanged, Fault> {
        let wanted = self.check_set_mgmtdev(entry)?;
        let name = &entry.name;
        let mgmtdev = self.registry.mgmtdev(name)?;
        let before = mgmtdev.device.shared_core();
        let moves = mgmtdev.device.set(&entry.attributes).map_err(Fault::from)?;
        mgmtdev.asked.extend(entry.attributes.clone());
        // What was set is worth keeping, also by a bridge that came with its first device.
        if mgmtdev.origin == MgmtOrigin::Device {
            mgmtdev.origin = MgmtOrigin::Operator;
            self.forget_absent(name);
        }
        if let Some(core) = wanted.filter(|_| moves) {
            self.follow_mgmtdev(name, before.as_slice(), core);
        }
        self.keep()?;
        self.events.push("mgmtdev.changed", None, json!({ "mgmtdev": name, "set": entry.attributes }));
        self.make_waiting_ports(name);
        self.mgmtdev_answer(name.clone())
    }

    /// Has the devices of a management device follow it to a core.
    pub(crate) fn follow_mgmtdev(&mut self, name: &str, before: &[usize], core: usize) {
        self.placement.release(before);
        let _ = self.placement.place(1, Some(core), None);
        let family = self.family(name);
        let shares = |device: &Device| device.shares_core && family.contains(&device.entry.mgmtdev);
        for device in self.registry.devices().filter(|device| shares(device)) {
            device.shared.cores.iter().for_each(|slot| slot.store(core, Ordering::Relaxed));
        }
        // Whoever comes first moves what they share, once all are to be there.
        for device in self.registry.devices().filter(|device| shares(device)) {
            if let Some(connection) = &device.connection {
                connection.handle.send(Command::Move);
            }
        }
    }

    fn mgmtdev_answer(&mut self, name: String) -> Result<MgmtdevChanged, Fault> {
        let settings = self.registry.mgmtdev(&name)?.device.attributes();
        Ok(MgmtdevChanged { changed: name, settings })
    }

    /// Checks that a management device can be removed; whose it is.
    pub(crate) fn check_delete_mgmtdev(&mut self, name: &str) -> Result<MgmtOrigin, Fault> {
        let absent = self.absent_mgmtdevs.iter().find(|absent| absent.entry.name == *name);
        let absent = absent.map(|absent| absent.origin);
        let origin = match (self.registry.mgmtdev(name), absent) {
            (Ok(mgmtdev), _) => mgmtdev.origin,
            (Err(_), Some(origin)) => origin,
            (Err(fault), None) => return Err(fault.at("name")),
        };
        if let Some(port) = self.ports.iter().find(|port| port.entry.child() == *name) {
            let port = port.entry.handle();
            return Err(Fault::usage(format!("{name} is the function of port {port} and goes with it"))
                .at("name")
                .hint(format!("ringway port del {port}")));
        }
        if origin == MgmtOrigin::Driver {
            return Err(Fault::usage(format!("{name} belongs to a driver and stays"))
                .at("name")
                .hint("ringway dev del removes devices"));
        }
        Ok(origin)
    }

    /// Removes a management device with all that it made.
    pub(crate) fn delete_mgmtdev(&mut self, target: &Target) -> Result<MgmtdevDeleted, Fault> {
        let name = &target.name;
        let origin = self.check_delete_mgmtdev(name)?;
        let mut notes = Vec::new();
        let devices = self.registry.made_by(name);
        let of_config = self
            .registry
            .devices()
            .any(|device| device.entry.mgmtdev == *name && device.origin == Origin::Config);
        // Its functions first: what stands on them is gone at once.
        let by_port = self.revoke_ports(name, &format!("{name} was removed"));
        let of_config = self.forget_ports(name, &by_port) || of_config;
        let gone: Vec<String> = by_port.into_iter().flat_map(|(_, devices)| devices).collect();
        notes.extend(gone_with_it(&gone));
        if let (true, Some(file)) = (of_config || origin == MgmtOrigin::Config, &self.config_file) {
            notes.push(format!(
                "{name} stays in {}: it comes back when ringwayd starts again",
                file.display()
            ));
        }
        // Those that could not be made as well, or they would make it anew.
        self.absent.retain(|absent| absent.entry.mgmtdev != *name);
        for device in &devices {
            // One that came by itself may have gone with another.
            if !self.registry.is_taken(device) {
                continue;
            }
            self.drop_device(device);
            self.events.push("dev.removed", Some(device), json!({}));
        }
        if self.registry.has_mgmtdev(name) {
            self.drop_mgmtdev(name);
        }
        self.forget_absent(name);
        self.keep()?;
        self.events.push("mgmtdev.removed", None, json!({ "mgmtdev": name, "devices": devices }));
        Ok(MgmtdevDeleted { deleted: name.clone(), devices, notes })
    }
}

/// The core that is asked for.
fn wanted_core(attributes: &BTreeMap<String, String>) -> Result<Option<usize>, Fault> {
    let Some(core) = attributes.get("core") else { return Ok(None) };
    let number = core.parse().map_err(|_| Fault::usage(format!("core {core} is not a number")).at("core"))?;
    Ok(Some(number))
}
