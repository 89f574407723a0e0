//! What a change would do: checked as the change itself is, as far as that can be told without doing it, and said in the
//! steps of a plan. Changes nothing.
//!
//! What is found out only by doing (that a file opens, that hardware takes a command, that the disk has room for the state) is
//! not foretold. Thread: control.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use crate::daemon::Daemon;
use crate::devices::apply::plan::{change, changes, loss, step};
use crate::devices::checks::implied_name;
use crate::devices::device::Origin;
use crate::devices::ops::DeviceChange;
use crate::devices::ports::gone_with_it;
use crate::devices::registry::MgmtOrigin;
use crate::fault::Fault;
use crate::operator::api::{
    ConfigAction, ConfigChange, ConfigPlan, ConfigStep, DevSet, DeviceEntry, Disrupts, MgmtEntry, PortEntry,
    PortSet, PortState, Target,
};

impl Daemon {
    /// `dev add`.
    pub(crate) fn plan_add(&self, entry: &DeviceEntry) -> Result<ConfigPlan, Fault> {
        let new = self.check_new(entry)?;
        let mut plan = ConfigPlan::default();
        if !self.registry.has_mgmtdev(&entry.mgmtdev) {
            self.registry.known().kind(&entry.mgmtdev)?;
            plan.steps.push(step(
                "mgmtdev",
                &entry.mgmtdev,
                ConfigAction::Add,
                Disrupts::Nothing,
                Vec::new(),
            ));
        }
        let mut told = step("device", &entry.name, ConfigAction::Add, Disrupts::Nothing, asked(entry));
        let has_socket = !entry.attributes.contains_key("tap") && !entry.attributes.contains_key("uplink");
        if has_socket {
            told.notes.push(format!("its socket: {} (mode {})", new.socket.display(), new.mode.name()));
        }
        if let Some(absent) = self.absent.iter().find(|absent| absent.entry.name == entry.name) {
            told.notes.push(format!("in the place of one that could not be made: {}", absent.why));
        }
        plan.steps.push(told);
        if let Some(implied) = implied_name(entry) {
            plan.steps.push(step("device", implied, ConfigAction::Add, Disrupts::Nothing, Vec::new()));
        }
        Ok(plan)
    }

    /// `dev del`.
    pub(crate) fn plan_delete(&mut self, target: &Target) -> Result<ConfigPlan, Fault> {
        let notes = self.check_delete(&target.name)?;
        let mut plan = ConfigPlan { notes, ..ConfigPlan::default() };
        let Ok(device) = self.registry.find(&target.name) else {
            let told = step("device", &target.name, ConfigAction::Del, Disrupts::Nothing, Vec::new());
            plan.steps
                .push(ConfigStep { notes: vec!["it is not made; no more is it tried".to_owned()], ..told });
            return Ok(plan);
        };
        let mgmtdev = device.entry.mgmtdev.clone();
        plan.steps.push(step("device", &target.name, ConfigAction::Del, loss(device), Vec::new()));
        let others = self.registry.devices().filter(|other| other.entry.mgmtdev == mgmtdev);
        let others: Vec<_> = others.filter(|other| other.name() != target.name).collect();
        if others.iter().any(|other| other.origin != Origin::Implied) {
            return Ok(plan);
        }
        let with_it = others
            .iter()
            .map(|other| step("device", other.name(), ConfigAction::Del, Disrupts::Nothing, Vec::new()));
        plan.steps.extend(with_it);
        let is_divided = self.ports.iter().any(|port| port.entry.mgmtdev == mgmtdev && port.why.is_none());
        if !is_divided && self.registry.mgmtdev(&mgmtdev)?.origin == MgmtOrigin::Device {
            plan.steps.push(step("mgmtdev", &mgmtdev, ConfigAction::Del, Disrupts::Nothing, Vec::new()));
        }
        Ok(plan)
    }

    /// `dev set`.
    pub(crate) fn plan_set(&mut self, set: &DevSet) -> Result<ConfigPlan, Fault> {
        let DeviceChange { before, entry, taking, .. } = self.check_set(set)?;
        let device = self.registry.find(&set.name)?;
        let changes = changes(device, &entry);
        if changes.is_empty() && before == entry {
            return Ok(ConfigPlan { unchanged: 1, ..ConfigPlan::default() });
        }
        let moves = set.core.is_some_and(|core| device.cores().iter().any(|old| *old != core));
        let disrupts = if moves && device.connection.is_some() { Disrupts::Queue } else { Disrupts::Nothing };
        let mut told = step("device", &set.name, ConfigAction::Set, disrupts, changes);
        told.notes.extend(taking.waits_for());
        told.notes.extend(taking.deferral());
        told.deferred = taking.not_in_force();
        if let (Origin::Config, Some(file)) = (device.origin, &self.config_file) {
            told.notes.push(format!(
                "{} still says otherwise and goes first when ringwayd starts again",
                file.display()
            ));
        }
        Ok(ConfigPlan { steps: vec![told], ..ConfigPlan::default() })
    }

    /// `mgmtdev add`.
    pub(crate) fn plan_add_mgmtdev(&self, entry: &MgmtEntry) -> Result<ConfigPlan, Fault> {
        self.check_add_mgmtdev(entry)?;
        let told = step("mgmtdev", &entry.name, ConfigAction::Add, Disrupts::Nothing, asked(entry));
        Ok(ConfigPlan { steps: vec![told], ..ConfigPlan::default() })
    }

    /// `mgmtdev set`.
    pub(crate) fn plan_set_mgmtdev(&mut self, entry: &MgmtEntry) -> Result<ConfigPlan, Fault> {
        let core = self.check_set_mgmtdev(entry)?;
        let device = &self.registry.mgmtdev(&entry.name)?.device;
        let (now, core_now) = (device.attributes(), device.shared_core());
        let changes = of_attributes(&now, &entry.attributes);
        if changes.is_empty() {
            return Ok(ConfigPlan { unchanged: 1, ..ConfigPlan::default() });
        }
        let moves = core.is_some() && core_now.is_some() && core != core_now;
        let disrupts = if moves { Disrupts::Queue } else { Disrupts::Nothing };
        let told = step("mgmtdev", &entry.name, ConfigAction::Set, disrupts, changes);
        Ok(ConfigPlan { steps: vec![told], ..ConfigPlan::default() })
    }

    /// `mgmtdev del`.
    pub(crate) fn plan_delete_mgmtdev(&mut self, target: &Target) -> Result<ConfigPlan, Fault> {
        let origin = self.check_delete_mgmtdev(&target.name)?;
        let mut plan = ConfigPlan::default();
        let ports = self.ports.iter().filter(|port| port.entry.mgmtdev == target.name);
        let ports: Vec<PortEntry> = ports.map(|port| port.entry.clone()).collect();
        for port in &ports {
            plan.steps.push(self.plan_gone(port));
        }
        for name in self.registry.made_by(&target.name) {
            let device = self.registry.find(&name)?;
            plan.steps.push(step("device", &name, ConfigAction::Del, loss(device), Vec::new()));
        }
        plan.steps.push(step("mgmtdev", &target.name, ConfigAction::Del, Disrupts::Nothing, Vec::new()));
        if let (MgmtOrigin::Config, Some(file)) = (origin, &self.config_file) {
            plan.notes.push(format!(
                "{} stays in {}: it comes back when ringwayd starts again",
                target.name,
                file.display()
            ));
        }
        Ok(plan)
    }

    /// `port add`.
    pub(crate) fn plan_add_port(&mut self, entry: &PortEntry) -> Result<ConfigPlan, Fault> {
        self.check_add_port(entry)?;
        let told = step("port", &entry.handle(), ConfigAction::Add, Disrupts::Nothing, asked(entry));
        Ok(ConfigPlan { steps: vec![told], ..ConfigPlan::default() })
    }

    /// `port function set`.
    pub(crate) fn plan_set_port(&self, set: &PortSet) -> Result<ConfigPlan, Fault> {
        let (at, entry) = self.check_set_port(set)?;
        let before = &self.ports[at].entry;
        let (was_active, is_active) = (before.state == PortState::Active, entry.state == PortState::Active);
        let mut changes = of_attributes(&before.attributes, &set.attributes);
        if was_active && is_active && !changes.is_empty() {
            return Err(Fault::conflict(format!("the function of port {} is active", set.name))
                .held_by(entry.child())
                .hint(format!(
                    "ringway port function set {} state inactive, which takes its device out; then again",
                    set.name
                )));
        }
        if was_active != is_active {
            let (old, new) = (before.state.name().to_owned(), entry.state.name().to_owned());
            changes.push(change("state", Some(&old), Some(&new)));
        }
        if changes.is_empty() {
            return Ok(ConfigPlan { unchanged: 1, ..ConfigPlan::default() });
        }
        let lost = self.registry.made_by(&entry.child());
        let disrupts = if was_active && !is_active { self.loss_of(&lost) } else { Disrupts::Nothing };
        let mut told = step("port", &set.name, ConfigAction::Set, disrupts, changes);
        if was_active && !is_active {
            told.notes.extend(gone_with_it(&lost));
        }
        Ok(ConfigPlan { steps: vec![told], ..ConfigPlan::default() })
    }

    /// `port del`.
    pub(crate) fn plan_delete_port(&self, target: &Target) -> Result<ConfigPlan, Fault> {
        let at = self.port_at(&target.name)?;
        let (entry, origin) = (self.ports[at].entry.clone(), self.ports[at].origin);
        let mut plan = ConfigPlan { steps: vec![self.plan_gone(&entry)], ..ConfigPlan::default() };
        if let (MgmtOrigin::Config, Some(file)) = (origin, &self.config_file) {
            plan.notes.push(format!(
                "{} stays in {}: it comes back when ringwayd starts again",
                target.name,
                file.display()
            ));
        }
        Ok(plan)
    }

    /// A port goes, and what was made with its function.
    fn plan_gone(&self, port: &PortEntry) -> ConfigStep {
        let lost = self.registry.made_by(&port.child());
        let told = step("port", &port.handle(), ConfigAction::Del, self.loss_of(&lost), Vec::new());
        ConfigStep { notes: gone_with_it(&lost).into_iter().collect(), ..told }
    }

    /// How far guests notice that these devices go.
    fn loss_of(&self, devices: &[String]) -> Disrupts {
        let devices = devices.iter().filter_map(|name| self.registry.find(name).ok());
        devices.map(loss).max().unwrap_or(Disrupts::Nothing)
    }
}

/// What of some attributes is otherwise than it is.
fn of_attributes(now: &BTreeMap<String, String>, wanted: &BTreeMap<String, String>) -> Vec<ConfigChange> {
    let is_other = |(key, value): &(&String, &String)| now.get(*key) != Some(*value);
    wanted.iter().filter(is_other).map(|(key, value)| change(key, now.get(key), Some(value))).collect()
}

/// All that a request asks for, but its name.
fn asked(entry: &impl Serialize) -> Vec<ConfigChange> {
    let Ok(Value::Object(fields)) = serde_json::to_value(entry) else { return Vec::new() };
    let mut asked = Vec::new();
    for (key, value) in fields.iter().filter(|(key, _)| *key != "name") {
        match value {
            Value::Object(attributes) => {
                let told = |(key, value): (&String, &Value)| change(key, None, Some(&plain(value)));
                asked.extend(attributes.iter().map(told));
            }
            value => asked.push(change(key, None, Some(&plain(value)))),
        }
    }
    asked
}

/// A value without its quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
