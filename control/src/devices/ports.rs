//! Ports: the functions that operators make of management devices whose hardware can be divided, in the words of devlink(8).
//!
//! ```text
//!   port add ---------> parent takes a share out            state inactive
//!   state active -----> child on the virtual bus, driver, mgmtdev.registered: devices of it can be made
//!   state inactive ---> child withdrawn, mgmtdev.unregistered, its devices are gone; the share stays taken
//!   port del ---------> as that, and the share is the parent's again
//!   parent goes ------> as that, for all of them
//! ```
//!
//! A port that cannot be made, for its parent is not there, stays asked for, as a device does. Thread: control.

use std::collections::BTreeMap;

use ringway_pmd::bus::virt;
use ringway_pmd::vdpa::{FunctionState, Parent};
use serde_json::{Value, json};

use crate::daemon::Daemon;
use crate::devices::checks::{check_port_beside, check_port_entry};
use crate::devices::registry::MgmtOrigin;
use crate::fault::{Fault, nearest, printable};
use crate::operator::api::{
    FunctionInfo, MgmtEntry, Named, PortDeleted, PortEntry, PortInfo, PortSet, PortShow, PortState, Select,
    Target,
};

/// A port that was asked for.
#[derive(Debug)]
pub(crate) struct Port {
    pub(crate) entry: PortEntry,
    /// By an operator or the configuration file.
    pub(crate) origin: MgmtOrigin,
    /// Why it could not be made, if it could not.
    pub(crate) why: Option<String>,
}

impl PortEntry {
    /// `PARENT/SFNUM`, by which it is known.
    pub(crate) fn handle(&self) -> String {
        format!("{}/{}", self.mgmtdev, self.sfnum)
    }

    /// The management device that its function is while it is active.
    pub(crate) fn child(&self) -> String {
        format!("{}/{}", virt::INFO.name, virt::address(&self.mgmtdev, self.sfnum))
    }
}

impl Daemon {
    /// Makes those of a list at the start.
    pub(crate) fn make_ports(&mut self, entries: Vec<PortEntry>, origin: MgmtOrigin) {
        for entry in entries {
            let handle = entry.handle();
            if self.ports.iter().any(|port| port.entry.handle() == handle) {
                tracing::warn!(port = handle, "also in the configuration file, which goes first");
                self.kept_ports.push(entry);
                continue;
            }
            let why = self.make_port(&entry).err().map(why_not);
            if let Some(why) = &why {
                tracing::error!(port = handle, "port cannot be made, it is kept: {why}");
                self.tell_port_failed(&handle, why);
            }
            self.ports.push(Port { entry, origin, why });
        }
        self.hear_buses();
    }

    /// Makes the ports that waited for their parent, which is there now, or for room on it.
    pub(crate) fn make_waiting_ports(&mut self, parent: &str) {
        let waits = |port: &Port| port.why.is_some() && port.entry.mgmtdev == parent;
        let waiting = self.ports.iter().filter(|port| waits(port));
        let waiting: Vec<(PortEntry, Option<String>)> =
            waiting.map(|port| (port.entry.clone(), port.why.clone())).collect();
        for (entry, before) in waiting {
            let handle = entry.handle();
            let why = self.make_port(&entry).err().map(why_not);
            match &why {
                None => self.tell_port_added(&entry),
                Some(why) if before.as_ref() != Some(why) => self.tell_port_failed(&handle, why),
                Some(_) => {}
            }
            if let Some(port) = self.ports.iter_mut().find(|port| port.entry.handle() == handle) {
                port.why = why;
            }
        }
        self.hear_buses();
    }

    /// Takes in what changed on a bus by what control did itself.
    fn hear_buses(&mut self) {
        for at in 0..self.attachments.len() {
            self.take_bus_changes(at);
        }
    }

    /// The parent of a port, which can be divided.
    fn parent(&mut self, name: &str) -> Result<&mut dyn Parent, Fault> {
        if !self.registry.has_mgmtdev(name) && self.registry.known().kind(name).is_ok() {
            return Err(Fault::not_found(format!("there is no management device {name}"))
                .at("mgmtdev")
                .hint(format!("ringway mgmtdev add name {name}")));
        }
        let mgmtdev = self.registry.mgmtdev(name).map_err(|fault| fault.at("mgmtdev"))?;
        mgmtdev.device.parent().ok_or_else(|| Fault::usage(format!("{name} cannot be divided")).at("mgmtdev"))
    }

    fn make_port(&mut self, entry: &PortEntry) -> Result<(), Fault> {
        check_port_entry(entry, &self.registry.known())?;
        let parent = self.parent(&entry.mgmtdev)?;
        parent.add(entry.pfnum, entry.sfnum, &entry.attributes)?;
        if entry.state == PortState::Active {
            parent.set_active(entry.sfnum, true)?;
        }
        // It is worth keeping, also one that came with its first device.
        // Unless it was asked for otherwise: that is kept.
        let is_asked = self.absent_mgmtdevs.iter().any(|absent| absent.entry.name == entry.mgmtdev);
        let mgmtdev = self.registry.mgmtdev(&entry.mgmtdev)?;
        if mgmtdev.origin == MgmtOrigin::Device && !is_asked {
            mgmtdev.origin = MgmtOrigin::Operator;
        }
        Ok(())
    }

    fn tell_port_added(&mut self, entry: &PortEntry) {
        let details = json!({ "port": entry.handle(), "mgmtdev": entry.child(), "state": entry.state });
        self.events.push("port.added", None, details);
    }

    fn tell_port_failed(&mut self, handle: &str, why: &str) {
        let cure = format!("ringway port del {handle}, then add it as it can be");
        self.events.push("port.failed", None, json!({ "port": handle, "why": why, "try": cure }));
    }

    /// Checks that a port can be made, as far as can be told before its share is taken.
    pub(crate) fn check_add_port(&mut self, entry: &PortEntry) -> Result<(), Fault> {
        let known = self.registry.known();
        check_port_entry(entry, &known)?;
        if self.parent(&entry.mgmtdev)?.function(entry.sfnum).is_some() {
            let handle = entry.handle();
            return Err(Fault::conflict(format!("sfnum {} of {} is taken", entry.sfnum, entry.mgmtdev))
                .at("sfnum")
                .held_by(format!("port {handle}"))
                .hint(format!("another sfnum, or ringway port del {handle}")));
        }
        let made = self.ports.iter().filter(|port| port.why.is_none()).map(|port| &port.entry);
        let parents = self.registry.mgmtdevs().filter(|mgmtdev| mgmtdev.device.info().name == entry.mgmtdev);
        let parents: Vec<MgmtEntry> = parents
            .map(|mgmtdev| MgmtEntry { name: entry.mgmtdev.clone(), attributes: mgmtdev.device.attributes() })
            .collect();
        check_port_beside(entry, made, &parents, &known)
    }

    pub(crate) fn add_port(&mut self, entry: PortEntry) -> Result<PortShow, Fault> {
        self.make_port(&entry)?;
        let handle = entry.handle();
        // One that could not be made gives way to the one that could.
        let before: Vec<Port> = self.ports.extract_if(.., |port| port.entry.handle() == handle).collect();
        let kept: Vec<PortEntry> = self.kept_ports.extract_if(.., |other| other.handle() == handle).collect();
        self.ports.push(Port { entry: entry.clone(), origin: MgmtOrigin::Operator, why: None });
        if let Err(fault) = self.keep() {
            self.ports.pop();
            self.ports.extend(before);
            self.kept_ports.extend(kept);
            let _ = self.parent(&entry.mgmtdev)?.remove(entry.sfnum);
            self.hear_buses();
            return Err(fault);
        }
        self.tell_port_added(&entry);
        self.hear_buses();
        self.show_ports(&Select { name: Some(handle) })
    }

    /// Checks a change of a port's function, as far as can be told: where the port is, and what it is to be.
    pub(crate) fn check_set_port(&self, set: &PortSet) -> Result<(usize, PortEntry), Fault> {
        let at = self.port_at(&set.name)?;
        if set.state.is_none() && set.attributes.is_empty() {
            return Err(Fault::usage("nothing to set").hint("state active, state inactive, or an attribute"));
        }
        if let Some(why) = &self.ports[at].why {
            return Err(Fault::conflict(format!("{} is not made: {why}", set.name)).at("name").hint(
                format!("it is kept and made once it can be; ringway port del {} removes it", set.name),
            ));
        }
        let mut entry = self.ports[at].entry.clone();
        entry.attributes.extend(set.attributes.clone());
        entry.state = set.state.unwrap_or(entry.state);
        check_port_entry(&entry, &self.registry.known())?;
        Ok((at, entry))
    }

    pub(crate) fn set_port(&mut self, set: &PortSet) -> Result<PortShow, Fault> {
        let (at, entry) = self.check_set_port(set)?;
        let before = self.ports[at].entry.clone();
        let (number, was) = (entry.sfnum, before.state == PortState::Active);
        let parent = self.parent(&entry.mgmtdev)?;
        let in_force = parent.function(number);
        let changed = apply(parent, &entry, &set.attributes).map_err(Fault::from);
        let kept = changed.and_then(|()| {
            self.ports[at].entry = entry.clone();
            self.keep()
        });
        if let Err(fault) = kept {
            self.ports[at].entry = before;
            let parent = self.parent(&entry.mgmtdev)?;
            let attributes = in_force.map(|state| state.attributes).unwrap_or_default();
            // As it was: what it had is its still. Nobody has heard yet of a function that was taken out meanwhile.
            if !was {
                let _ = parent.set_active(number, false);
            }
            if !set.attributes.is_empty() && !parent.function(number).is_some_and(|state| state.is_active) {
                let _ = parent.set(number, &attributes);
            }
            let _ = parent.set_active(number, was);
            self.hear_buses();
            return Err(fault);
        }
        let mut details = json!({ "port": set.name, "set": set.attributes });
        if let Some(state) = set.state {
            details["state"] = json!(state);
        }
        self.events.push("port.changed", None, details);
        self.hear_buses();
        self.show_ports(&Select { name: Some(set.name.clone()) })
    }

    pub(crate) fn delete_port(&mut self, target: &Target) -> Result<PortDeleted, Fault> {
        let at = self.port_at(&target.name)?;
        // On disk first: what is answered as gone does not come back.
        let port = self.ports.remove(at);
        let kept: Vec<PortEntry> =
            self.kept_ports.extract_if(.., |entry| entry.handle() == target.name).collect();
        if let Err(fault) = self.keep() {
            self.ports.insert(at, port);
            self.kept_ports.extend(kept);
            return Err(fault);
        }
        let (entry, mut notes) = (&port.entry, Vec::new());
        let devices = self.registry.made_by(&entry.child());
        if port.why.is_none() {
            self.parent(&entry.mgmtdev)?.remove(entry.sfnum)?;
            self.hear_buses();
        }
        notes.extend(gone_with_it(&devices));
        if let (MgmtOrigin::Config, Some(file)) = (port.origin, &self.config_file) {
            notes.push(format!(
                "{} stays in {}: it comes back when ringwayd starts again",
                target.name,
                file.display()
            ));
        }
        self.events.push("port.removed", None, json!({ "port": target.name, "devices": devices }));
        self.make_waiting_ports(&entry.mgmtdev);
        self.drop_empty_mgmtdev(&entry.mgmtdev);
        Ok(PortDeleted { deleted: target.name.clone(), devices, notes })
    }

    /// A parent goes, and its children with it: their devices are gone at once. Returns those, by port.
    pub(crate) fn revoke_ports(&mut self, name: &str, why: &str) -> Vec<(String, Vec<String>)> {
        let Ok(mgmtdev) = self.registry.mgmtdev(name) else { return Vec::new() };
        let Some(parent) = mgmtdev.device.parent() else { return Vec::new() };
        parent.revoke(why);
        let of_it = self.ports.iter_mut().filter(|port| port.entry.mgmtdev == name && port.why.is_none());
        let mut devices = Vec::new();
        for port in of_it {
            port.why = Some(why.to_owned());
            let its = self.registry.made_by(&port.entry.child());
            devices.push((port.entry.handle(), its));
        }
        self.hear_buses();
        devices
    }

    /// Forgets the ports of a parent that an operator removed, with these devices. True if one of them is the configuration file's.
    pub(crate) fn forget_ports(&mut self, name: &str, devices: &[(String, Vec<String>)]) -> bool {
        let gone: Vec<Port> = self.ports.extract_if(.., |port| port.entry.mgmtdev == name).collect();
        self.kept_ports.retain(|entry| entry.mgmtdev != name);
        for port in &gone {
            let handle = port.entry.handle();
            let its = devices.iter().find(|(of, _)| *of == handle).map_or(&[][..], |(_, its)| its);
            self.events.push("port.removed", None, json!({ "port": handle, "devices": its }));
        }
        gone.iter().any(|port| port.origin == MgmtOrigin::Config)
    }

    /// The management devices that are one piece of hardware: a parent and its children.
    pub(crate) fn family(&self, mgmtdev: &str) -> Vec<String> {
        let parent = self.ports.iter().find(|port| port.entry.child() == mgmtdev);
        let parent = parent.map_or(mgmtdev, |port| port.entry.mgmtdev.as_str());
        let children = self.ports.iter().filter(|port| port.entry.mgmtdev == parent);
        std::iter::once(parent.to_owned()).chain(children.map(|port| port.entry.child())).collect()
    }

    pub(crate) fn port_at(&self, handle: &str) -> Result<usize, Fault> {
        let at = self.ports.iter().position(|port| port.entry.handle() == handle);
        at.ok_or_else(|| {
            let fault = Fault::not_found(format!("there is no port `{}`", printable(handle))).at("name");
            let known: Vec<String> = self.ports.iter().map(|port| port.entry.handle()).collect();
            match nearest(handle, known.iter().map(String::as_str)) {
                Some(near) => fault.hint(format!("did you mean {near}?")),
                None => fault.hint("ringway port show"),
            }
        })
    }

    /// A port, those of one parent, or all.
    pub(crate) fn show_ports(&mut self, select: &Select) -> Result<PortShow, Fault> {
        let wanted = select.name.as_deref();
        let is_wanted = |entry: &PortEntry| {
            wanted.is_none_or(|wanted| wanted == entry.handle() || wanted == entry.mgmtdev)
        };
        let mut shown = PortShow::default();
        for at in 0..self.ports.len() {
            let port = &self.ports[at];
            if !is_wanted(&port.entry) {
                continue;
            }
            let handle = port.entry.handle();
            match &port.why {
                Some(why) => shown.absent.0.push((handle, why.clone())),
                None => {
                    let info = self.port_info(at)?;
                    shown.port.0.push((handle, info));
                }
            }
        }
        match wanted {
            Some(name) if shown == PortShow::default() && !self.registry.has_mgmtdev(name) => {
                self.port_at(name).map(|_| shown)
            }
            _ => Ok(shown),
        }
    }

    /// A port that is made, by its place.
    pub(crate) fn port_info(&mut self, at: usize) -> Result<PortInfo, Fault> {
        let port = self.ports.get(at).ok_or_else(|| Fault::not_found("the port is gone"))?;
        let (entry, origin) = (port.entry.clone(), port.origin);
        let child = entry.child();
        let function = self.parent(&entry.mgmtdev)?.function(entry.sfnum);
        Ok(PortInfo {
            flavour: entry.flavour.clone(),
            pfnum: entry.pfnum,
            sfnum: entry.sfnum,
            function: function_info(function, self.registry.has_mgmtdev(&child)),
            devices: self.registry.made_by(&child),
            mgmtdev: child,
            origin: if origin == MgmtOrigin::Config { "config" } else { "operator" }.to_owned(),
        })
    }
}

/// Makes a function what is asked for: what takes it out comes first, what brings it back last.
fn apply(
    parent: &mut dyn Parent,
    entry: &PortEntry,
    attributes: &BTreeMap<String, String>,
) -> Result<(), ringway_pmd::vdpa::DriverError> {
    let is_active = entry.state == PortState::Active;
    if !is_active {
        parent.set_active(entry.sfnum, false)?;
    }
    if !attributes.is_empty() {
        parent.set(entry.sfnum, attributes)?;
    }
    parent.set_active(entry.sfnum, is_active)
}

/// Why a port is not made, with its cure.
fn why_not(fault: Fault) -> String {
    match fault.hint {
        Some(cure) => format!("{}; try: {cure}", fault.message),
        None => fault.message,
    }
}

/// What is said of devices whose function is gone.
pub(crate) fn gone_with_it(devices: &[String]) -> Option<String> {
    let (first, named) = (devices.first()?, devices.join(", "));
    Some(format!(
        "gone with it: {named}; made again should it come back, unless removed (ringway dev del {first})"
    ))
}

fn function_info(function: Option<FunctionState>, is_attached: bool) -> FunctionInfo {
    let FunctionState { attributes, is_active } =
        function.unwrap_or(FunctionState { attributes: BTreeMap::new(), is_active: false });
    // Numbers as numbers, as devlink has them.
    let value = |text: String| text.parse::<u64>().map_or_else(|_| Value::from(text), Value::from);
    FunctionInfo {
        state: if is_active { PortState::Active } else { PortState::Inactive },
        opstate: if is_attached { "attached" } else { "detached" }.to_owned(),
        attributes: Named(attributes.into_iter().map(|(name, text)| (name, value(text))).collect()),
    }
}
