//! The plan of a configuration file: from what it says and what runs, the steps from the one to the other. Changes nothing.
//!
//! Thread: control.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use ringway_pmd::vdpa::MgmtInfo;

use crate::daemon::Daemon;
use crate::devices::absent::Absent;
use crate::devices::deferral::Taking;
use crate::devices::device::{Device, Origin};
use crate::devices::placement::list;
use crate::devices::ports::Port;
use crate::devices::registry::MgmtOrigin;
use crate::fault::Fault;
use crate::host::logging::{self, Filters};
use crate::operator::api::{
    ConfigAction, ConfigChange, ConfigPlan, ConfigStep, DevSet, DeviceEntry, Disrupts, MgmtEntry, PortEntry,
    PortSet,
};
use crate::operator::config::Desired;
use crate::operator::show::in_force;
use crate::settings::Override;

/// A plan: what is told of each step, and what it does.
pub(super) struct Plan {
    pub(super) told: ConfigPlan,
    /// Each with the number of its step.
    pub(super) work: Vec<(usize, Work)>,
    /// What the file made and names no more, in words: devices, and ports and management devices where it names no other.
    lost: Vec<String>,
    /// Devices of operators' that go with those ports.
    lost_with: Vec<String>,
    /// It names no device.
    leaves_none: bool,
}

/// What a step does. Several may be of one step that is told.
pub(super) enum Work {
    SetLog(String),
    ForgetAbsent(String),
    RemoveDevice(String),
    RemovePort(String),
    RemoveMgmtdev(String),
    AddMgmtdev(MgmtEntry),
    SetMgmtdev(MgmtEntry),
    /// It is the file's, or comes and goes with its devices.
    OriginOfMgmtdev(String, MgmtOrigin),
    AddPort(PortEntry),
    SetPort(PortSet),
    OriginOfPort(String),
    AddDevice(DeviceEntry),
    SetDevice(DevSet),
    /// It is as the file says, or is about to be: its entry is the file's.
    Adopt(DeviceEntry),
}

impl Daemon {
    pub(super) fn plan(&mut self, desired: &Desired) -> Result<Plan, Fault> {
        let leaves_none = desired.devices.is_empty();
        let (told, work, lost, lost_with) = Default::default();
        let mut plan = Plan { told, work, lost, lost_with, leaves_none };
        self.plan_daemon(desired, &mut plan);
        let remade = self.plan_removals(desired, &mut plan);
        self.plan_mgmtdevs(desired, &mut plan)?;
        self.plan_ports(desired, &mut plan);
        self.plan_devices(desired, remade, &mut plan)?;
        // Whose a management device is decides whether it goes with its last device: that comes first.
        plan.work.sort_by_key(|(_, work)| match work {
            Work::OriginOfMgmtdev(_, MgmtOrigin::Config) => 0,
            Work::OriginOfMgmtdev(..) => 2,
            _ => 1,
        });
        Ok(plan)
    }

    /// What is logged; what only a start brings, and what not even that does.
    fn plan_daemon(&self, desired: &Desired, plan: &mut Plan) {
        let path = |path: &Path| std::path::absolute(path).as_deref().unwrap_or(path).display().to_string();
        let running = self.places();
        // What was said before, where an operator has set just what the file says.
        let log = logging::filters();
        let log =
            log.map(|Filters { said, now }| if desired.log.as_ref() == Some(&now) { said } else { now });
        let place = |key: &'static str, after: Option<String>| {
            let before = running.iter().find(|(known, _)| *known == key).map(|(_, value)| value.clone());
            (key, after, before)
        };
        let pairs = [
            ("cores", desired.cores.as_deref().map(list), Some(list(&self.settings.cores))),
            (
                "idle",
                desired.idle.map(|idle| idle.name().to_owned()),
                Some(self.settings.idle.name().to_owned()),
            ),
            place("ctl", desired.ctl.as_deref().map(path)),
            place("view", desired.view.as_deref().map(path)),
            place("view_group", desired.view_group.clone()),
            place("metrics", desired.metrics.clone()),
            place("state_dir", desired.state_dir.as_deref().map(path)),
            // A process whose log is somebody else's has none to set.
            (LOG, desired.log.clone().filter(|_| log.is_some()), log),
        ];
        let mut changes = Vec::new();
        for (key, after, before) in pairs {
            let Some(wanted) = &after else { continue };
            match self.overrides.iter().find(|other| other.key == key) {
                None if after != before => {
                    changes.push(ConfigChange { key: key.to_owned(), before, after });
                }
                // What runs may be another: cores are added and taken away, and what is logged is set.
                Some(Override { value, by, .. }) if wanted != value => plan.told.notes.push(format!(
                    "daemon: {key} is {value} after each start: the file's {wanted} is overridden by {by}"
                )),
                _ => {}
            }
        }
        if let Some(at) = changes.iter().position(|change| change.key == LOG) {
            let changes = vec![changes.remove(at)];
            let step = step("daemon", "", ConfigAction::Set, Disrupts::Nothing, changes);
            plan.step(step, desired.log.clone().map(Work::SetLog));
        }
        if !changes.is_empty() {
            let step = ConfigStep {
                notes: vec!["in force when ringwayd starts again".to_owned()],
                ..step("daemon", "", ConfigAction::Restart, Disrupts::Daemon, changes)
            };
            plan.told.steps.push(step);
        }
    }

    /// What goes: devices and ports of the file that it does not name any more, and those that are made anew. Returns the latter.
    fn plan_removals(
        &self,
        desired: &Desired,
        plan: &mut Plan,
    ) -> BTreeMap<String, (ConfigStep, DeviceEntry)> {
        let by_name: HashMap<&str, &DeviceEntry> =
            desired.devices.iter().map(|entry| (entry.name.as_str(), entry)).collect();
        let wanted = |name: &str| by_name.get(name).copied();
        let known = self.registry.known();
        let mut remade = BTreeMap::new();
        for absent in self.absent.iter().filter(|absent| absent.origin == Origin::Config) {
            if wanted(&absent.entry.name) != Some(&absent.entry)
                && !self.registry.is_taken(&absent.entry.name)
            {
                let told =
                    step("device", &absent.entry.name, ConfigAction::Del, Disrupts::Nothing, Vec::new());
                let work = Work::ForgetAbsent(absent.entry.name.clone());
                match wanted(&absent.entry.name) {
                    // It is made as it is wanted now.
                    Some(_) => plan.work.push((plan.told.steps.len(), work)),
                    None => {
                        plan.lost.push(absent.entry.name.clone());
                        plan.step(told, Some(work));
                    }
                }
            }
        }
        for device in self.registry.devices() {
            match wanted(device.name()) {
                None if device.origin == Origin::Config => {
                    let told = step("device", device.name(), ConfigAction::Del, loss(device), Vec::new());
                    plan.step(told, Some(Work::RemoveDevice(device.name().to_owned())));
                    plan.lost.push(device.name().to_owned());
                }
                None if device.origin == Origin::Operator => plan.told.beside.push(device.name().to_owned()),
                Some(entry) if device.origin != Origin::Implied => {
                    let mut changes = changes(device, entry);
                    changes.extend(left_waiting(device, entry, &changes));
                    // It is gone with its port by then, and made anew.
                    let is_of_port = self.ports.iter().any(|port| {
                        port.entry.child() == device.entry.mgmtdev && self.is_removed(port, desired)
                    });
                    let info = known.find(&entry.mgmtdev);
                    let is_anew = |change| !is_settable(change, info.as_ref(), device, entry);
                    if is_of_port || changes.iter().any(is_anew) {
                        let told = step("device", device.name(), ConfigAction::Remake, loss(device), changes);
                        let told = told.adopting(device.origin == Origin::Operator);
                        plan.work.push((plan.told.steps.len(), Work::RemoveDevice(device.name().to_owned())));
                        remade.insert(entry.name.clone(), (told, entry.clone()));
                    }
                }
                _ => {}
            }
        }
        for port in &self.ports {
            let handle = port.entry.handle();
            let wanted = desired.ports.iter().find(|entry| entry.handle() == handle);
            let is_other = wanted.is_some();
            if self.is_removed(port, desired) {
                let gone = self.registry.made_by(&port.entry.child());
                if desired.ports.is_empty() {
                    plan.lost.push(format!("port {handle}"));
                    let is_operators = |name: &&String| {
                        self.registry.find(name).is_ok_and(|device| device.origin == Origin::Operator)
                    };
                    plan.lost_with.extend(gone.iter().filter(is_operators).cloned());
                }
                let disrupts = if gone.is_empty() { Disrupts::Nothing } else { Disrupts::Device };
                let action = if is_other { ConfigAction::Remake } else { ConfigAction::Del };
                let notes = crate::devices::ports::gone_with_it(&gone).into_iter().collect();
                let told = ConfigStep { notes, ..step("port", &handle, action, disrupts, Vec::new()) };
                plan.step(told, Some(Work::RemovePort(handle)));
            }
        }
        remade
    }

    /// A port of the file that it names no more, or that only a new one can be as it says.
    fn is_removed(&self, port: &Port, desired: &Desired) -> bool {
        let handle = port.entry.handle();
        match desired.ports.iter().find(|entry| entry.handle() == handle) {
            None => port.origin == MgmtOrigin::Config,
            Some(entry) => {
                let lacks = port.entry.attributes.keys().any(|key| !entry.attributes.contains_key(key));
                let is_absent = port.why.is_some() && *entry != port.entry;
                lacks || is_absent || entry.flavour != port.entry.flavour || entry.pfnum != port.entry.pfnum
            }
        }
    }

    fn plan_mgmtdevs(&mut self, desired: &Desired, plan: &mut Plan) -> Result<(), Fault> {
        let ours: Vec<(String, MgmtOrigin)> =
            self.registry.mgmtdevs().map(|mgmtdev| (mgmtdev.device.info().name, mgmtdev.origin)).collect();
        for (name, origin) in &ours {
            // One that stayed for its devices when the file named it no more comes and goes with them, and has its settings still.
            let has_stayed = *origin == MgmtOrigin::Device;
            let is_named = desired.mgmtdevs.iter().any(|entry| entry.name == *name);
            if !(has_stayed || *origin == MgmtOrigin::Config) || is_named {
                continue;
            }
            let stays =
                |device: &Device| match desired.devices.iter().find(|entry| entry.name == device.name()) {
                    Some(entry) => entry.mgmtdev == *name,
                    None => device.origin == Origin::Operator,
                };
            let is_used =
                self.registry.devices().any(|device| device.entry.mgmtdev == *name && stays(device))
                    || desired.devices.iter().any(|entry| entry.mgmtdev == *name)
                    || self
                        .absent
                        .iter()
                        .any(|absent| absent.entry.mgmtdev == *name && absent.origin == Origin::Operator)
                    || self.kept_ports.iter().any(|port| port.mgmtdev == *name)
                    || self
                        .ports
                        .iter()
                        .any(|port| port.entry.mgmtdev == *name && port.origin == MgmtOrigin::Operator);
            if desired.mgmtdevs.is_empty() && !has_stayed {
                let stays = if is_used { " (its devices stay)" } else { "" };
                plan.lost.push(format!("management device {name}{stays}"));
            }
            if is_used {
                let asked = self.registry.mgmtdevs().find(|mgmtdev| mgmtdev.device.info().name == *name);
                let asked = asked.map(|mgmtdev| mgmtdev.asked.clone()).unwrap_or_default();
                if !asked.is_empty() {
                    let changes = asked.iter().map(|(key, value)| change(key, Some(value), None)).collect();
                    let note = "its devices stay, and its defaults are in force when ringwayd starts again"
                        .to_owned();
                    let told = step("mgmtdev", name, ConfigAction::Restart, Disrupts::Daemon, changes);
                    plan.told.steps.push(ConfigStep { notes: vec![note], ..told });
                }
                // As one that came with its first device.
                let work = Work::OriginOfMgmtdev(name.clone(), MgmtOrigin::Device);
                plan.work.extend((!has_stayed).then_some((plan.told.steps.len(), work)));
            } else if !has_stayed {
                let told = step("mgmtdev", name, ConfigAction::Del, Disrupts::Nothing, Vec::new());
                plan.step(told, Some(Work::RemoveMgmtdev(name.clone())));
            }
        }
        for entry in &desired.mgmtdevs {
            let Some((_, origin)) = ours.iter().find(|(name, _)| *name == entry.name) else {
                let changes =
                    entry.attributes.iter().map(|(key, value)| change(key, None, Some(value))).collect();
                let told = step("mgmtdev", &entry.name, ConfigAction::Add, Disrupts::Nothing, changes);
                plan.step(told, Some(Work::AddMgmtdev(entry.clone())));
                continue;
            };
            let mgmtdev = self.registry.mgmtdev(&entry.name)?;
            let now = mgmtdev.device.attributes();
            let is_other = |(key, value): &(&String, &String)| now.get(*key) != Some(*value);
            let set: BTreeMap<String, String> = entry
                .attributes
                .iter()
                .filter(is_other)
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            let unset: Vec<String> =
                mgmtdev.asked.keys().filter(|key| !entry.attributes.contains_key(*key)).cloned().collect();
            let changes: Vec<ConfigChange> =
                set.iter().map(|(key, value)| change(key, now.get(key), Some(value))).collect();
            let is_operators = *origin == MgmtOrigin::Operator;
            if is_operators || *origin == MgmtOrigin::Device {
                let work = Work::OriginOfMgmtdev(entry.name.clone(), MgmtOrigin::Config);
                plan.work.push((plan.told.steps.len(), work));
            }
            if is_operators && set.is_empty() {
                let told = step("mgmtdev", &entry.name, ConfigAction::Adopt, Disrupts::Nothing, Vec::new());
                plan.told.steps.push(told);
            }
            if !set.is_empty() {
                let disrupts = if set.contains_key("core") { Disrupts::Queue } else { Disrupts::Nothing };
                let told = step("mgmtdev", &entry.name, ConfigAction::Set, disrupts, changes);
                let told = told.adopting(is_operators);
                plan.step(
                    told,
                    Some(Work::SetMgmtdev(MgmtEntry { name: entry.name.clone(), attributes: set })),
                );
            }
            if !unset.is_empty() {
                let changes = unset.iter().map(|key| change(key, now.get(key), None)).collect();
                let note = "its default is in force when ringwayd starts again".to_owned();
                let told = step("mgmtdev", &entry.name, ConfigAction::Restart, Disrupts::Daemon, changes);
                plan.told.steps.push(ConfigStep { notes: vec![note], ..told });
            }
        }
        Ok(())
    }

    fn plan_ports(&self, desired: &Desired, plan: &mut Plan) {
        for entry in &desired.ports {
            let handle = entry.handle();
            let is_removed =
                plan.work.iter().any(|(_, work)| matches!(work, Work::RemovePort(gone) if *gone == handle));
            let port = self.ports.iter().find(|port| port.entry.handle() == handle).filter(|_| !is_removed);
            let Some(port) = port else {
                let told = step("port", &handle, ConfigAction::Add, Disrupts::Nothing, Vec::new());
                match is_removed {
                    true => {
                        let told = plan.told.steps.iter().position(|step| step.name == handle);
                        plan.work.push((told.unwrap_or_default(), Work::AddPort(entry.clone())));
                    }
                    false => plan.step(told, Some(Work::AddPort(entry.clone()))),
                }
                continue;
            };
            if port.origin != MgmtOrigin::Config {
                plan.work.push((plan.told.steps.len(), Work::OriginOfPort(handle.clone())));
            }
            let is_other =
                |(key, value): &(&String, &String)| port.entry.attributes.get(*key) != Some(*value);
            let attributes: BTreeMap<String, String> = entry
                .attributes
                .iter()
                .filter(is_other)
                .map(|(key, value)| (key.clone(), value.clone()))
                .collect();
            let state = (entry.state != port.entry.state).then_some(entry.state);
            let is_operators = port.origin == MgmtOrigin::Operator;
            if attributes.is_empty() && state.is_none() {
                if is_operators {
                    let told = step("port", &handle, ConfigAction::Adopt, Disrupts::Nothing, Vec::new());
                    plan.told.steps.push(told);
                }
                continue;
            }
            let mut changes: Vec<ConfigChange> = attributes
                .iter()
                .map(|(key, value)| change(key, port.entry.attributes.get(key), Some(value)))
                .collect();
            if let Some(state) = state {
                let (before, after) = (port.entry.state.name().to_owned(), state.name().to_owned());
                changes.push(ConfigChange {
                    key: "state".to_owned(),
                    before: Some(before),
                    after: Some(after),
                });
            }
            let gone = self.registry.made_by(&port.entry.child());
            let disrupts = if gone.is_empty() { Disrupts::Nothing } else { Disrupts::Device };
            let told = step("port", &handle, ConfigAction::Set, disrupts, changes).adopting(is_operators);
            plan.step(told, Some(Work::SetPort(PortSet { name: handle, state, attributes })));
        }
    }

    fn plan_devices(
        &self,
        desired: &Desired,
        mut remade: BTreeMap<String, (ConfigStep, DeviceEntry)>,
        plan: &mut Plan,
    ) -> Result<(), Fault> {
        let known = self.registry.known();
        let there: HashSet<&str> = known.mgmtdevs.iter().map(|info| info.name.as_str()).collect();
        let made: HashMap<&str, &Device> =
            self.registry.devices().map(|device| (device.name(), device)).collect();
        for entry in &desired.devices {
            // What can never be is told before anything is done; of what is not there yet, when it is made.
            if there.contains(entry.mgmtdev.as_str()) {
                self.check_for_good_by(entry, &known)?;
            }
            if let Some((told, entry)) = remade.remove(&entry.name) {
                plan.step(told, Some(Work::AddDevice(entry)));
                continue;
            }
            let Some(device) = made.get(entry.name.as_str()).copied() else {
                let is_kept = |absent: &Absent| absent.entry == *entry && absent.origin == Origin::Config;
                if let Some(absent) = self.absent.iter().find(|absent| is_kept(absent)) {
                    plan.told.notes.push(format!("{} still cannot be made: {}", entry.name, absent.why));
                    plan.told.unchanged += 1;
                    continue;
                }
                let told = step("device", &entry.name, ConfigAction::Add, Disrupts::Nothing, Vec::new());
                plan.step(told, Some(Work::AddDevice(entry.clone())));
                continue;
            };
            if device.origin == Origin::Implied {
                return Err(Fault::conflict(format!(
                    "device {} comes with another, and cannot be made",
                    entry.name
                )));
            }
            let changes = changes(device, entry);
            if changes.is_empty() {
                if !device.deferred.is_empty() {
                    let keys = device.deferred.iter().cloned().collect();
                    plan.told.deferred.0.push((entry.name.clone(), keys));
                }
                match device.origin {
                    Origin::Config => plan.told.unchanged += 1,
                    _ => plan.told.steps.push(step(
                        "device",
                        &entry.name,
                        ConfigAction::Adopt,
                        Disrupts::Nothing,
                        changes,
                    )),
                }
                if device.entry != *entry || device.origin != Origin::Config {
                    let at = plan.told.steps.len().saturating_sub(1);
                    plan.work.push((at, Work::Adopt(entry.clone())));
                }
                continue;
            }
            let after = |key: &str| changes.iter().find(|change| change.key == key)?.after.clone();
            let own = ["mac", "mtu", "core"];
            let info = known.find(&entry.mgmtdev);
            let set = DevSet {
                name: entry.name.clone(),
                mac: after("mac"),
                mtu: after("mtu").and(entry.mtu),
                core: after("core").and(entry.core),
                attributes: changes
                    .iter()
                    .filter(|change| !own.contains(&change.key.as_str()))
                    .filter_map(|change| {
                        let unset = || unset_of(info.as_ref(), &change.key).map(str::to_owned);
                        Some((change.key.clone(), change.after.clone().or_else(unset)?))
                    })
                    .collect(),
            };
            let disrupts = if set.core.is_some() { Disrupts::Queue } else { Disrupts::Nothing };
            // A core that is not asked for any more is kept: nothing is done for it.
            let is_set =
                set.mac.is_some() || set.mtu.is_some() || set.core.is_some() || !set.attributes.is_empty();
            let mut told = step("device", &entry.name, ConfigAction::Set, disrupts, changes);
            let taking = Taking::of(device, &set.applied_to(&device.entry), info.as_ref());
            told.notes.extend(taking.waits_for());
            told.notes.extend(taking.deferral());
            told.deferred = taking.not_in_force();
            let told = told.adopting(device.origin == Origin::Operator);
            plan.step(told, is_set.then_some(Work::SetDevice(set)));
            plan.work.push((plan.told.steps.len() - 1, Work::Adopt(entry.clone())));
        }
        Ok(())
    }
}

impl ConfigStep {
    /// The same, of what an operator added and the file names, if it is that.
    fn adopting(mut self, is_operators: bool) -> ConfigStep {
        if is_operators {
            self.notes.push("it is the file's from now on, not an operator's".to_owned());
        }
        self
    }
}

impl Plan {
    /// Refuses a file that names no device, and no other either of what it made: mostly one that was cut short, or is another's.
    pub(super) fn check_loss(&self, file: &str) -> Result<(), Fault> {
        if self.lost.is_empty() || !self.leaves_none {
            return Ok(());
        }
        let mut why =
            format!("{file} names no device, and of what it made this would go: {}", named(&self.lost));
        if !self.lost_with.is_empty() {
            why += &format!("; with that, of what operators added: {}", named(&self.lost_with));
        }
        let hint = format!("ringway config apply {file} --force, if that is what you want");
        Err(Fault::conflict(why).at("device").hint(hint))
    }

    fn step(&mut self, told: ConfigStep, work: Option<Work>) {
        self.work.extend(work.map(|work| (self.told.steps.len(), work)));
        self.told.steps.push(told);
    }
}

/// The one key of the daemon's own that is in force without a start.
pub(super) const LOG: &str = "log";

pub(crate) fn step(
    what: &str,
    name: &str,
    action: ConfigAction,
    disrupts: Disrupts,
    changes: Vec<ConfigChange>,
) -> ConfigStep {
    let (deferred, notes) = (Vec::new(), Vec::new());
    ConfigStep { what: what.to_owned(), name: name.to_owned(), action, disrupts, changes, deferred, notes }
}

pub(crate) fn change(key: &str, before: Option<&String>, after: Option<&String>) -> ConfigChange {
    ConfigChange { key: key.to_owned(), before: before.cloned(), after: after.cloned() }
}

/// Names in a sentence: some, and how many more.
pub(super) fn named(names: &[String]) -> String {
    let (named, more) = names.split_at(names.len().min(MOST_NAMED));
    let more = if more.is_empty() { String::new() } else { format!(" and {} more", more.len()) };
    format!("{}{more}", named.join(", "))
}

/// Devices that a refusal names.
const MOST_NAMED: usize = 4;

/// What goes with a device that is removed, or made anew.
pub(crate) fn loss(device: &Device) -> Disrupts {
    if device.connection.is_some() { Disrupts::Device } else { Disrupts::Nothing }
}

/// What a key has: nothing, if nobody asked for it.
type Value = Option<String>;

/// What of a device is otherwise than a file has it. A key that the file lacks is otherwise only where somebody asked for it.
pub(crate) fn changes(device: &Device, wanted: &DeviceEntry) -> Vec<ConfigChange> {
    let (now, asked) = (in_force(device), &device.entry);
    let path = |path: &Path| path.display().to_string();
    let number = |number: Option<u16>| number.map(|number| number.to_string());
    let core = |core: Option<usize>| core.map(|core| core.to_string());
    let rows: [(&str, Value, Value, Value); 10] = [
        ("mgmtdev", Some(now.mgmtdev.clone()), None, Some(wanted.mgmtdev.clone())),
        ("mac", now.mac.clone(), asked.mac.clone(), wanted.mac.clone()),
        ("mtu", number(now.mtu), number(asked.mtu), number(wanted.mtu)),
        ("max_vqp", number(now.max_vqp), number(asked.max_vqp), number(wanted.max_vqp)),
        (
            "device_features",
            asked.device_features.clone(),
            asked.device_features.clone(),
            wanted.device_features.clone(),
        ),
        (
            "socket",
            Some(path(&device.socket)),
            asked.socket.as_deref().map(path),
            wanted.socket.as_deref().map(path),
        ),
        (
            "mode",
            Some(device.mode.name().to_owned()),
            asked.mode.map(|mode| mode.name().to_owned()),
            wanted.mode.map(|mode| mode.name().to_owned()),
        ),
        (
            "core",
            core(asked.core.or_else(|| device.cores().first().copied())),
            core(asked.core),
            core(wanted.core),
        ),
        ("owner", asked.owner.clone(), asked.owner.clone(), wanted.owner.clone()),
        ("group", asked.group.clone(), asked.group.clone(), wanted.group.clone()),
    ];
    let mut changes = Vec::new();
    for (key, now, asked, wanted) in rows {
        let is_same_address = key == "mac"
            && matches!((&now, &wanted), (Some(now), Some(wanted)) if now.eq_ignore_ascii_case(wanted));
        let is_other = match &wanted {
            Some(_) => now != wanted && !is_same_address,
            None => asked.is_some(),
        };
        // What only the kernel's side has is no matter of the file's.
        if is_other {
            changes.push(ConfigChange { key: key.to_owned(), before: now, after: wanted });
        }
    }
    for (key, value) in &wanted.attributes {
        let before = now.attributes.get(key).or_else(|| asked.attributes.get(key));
        if before != Some(value) && asked.attributes.get(key) != Some(value) {
            changes.push(change(key, before, Some(value)));
        }
    }
    for (key, value) in asked.attributes.iter().filter(|(key, _)| !wanted.attributes.contains_key(*key)) {
        changes.push(change(key, Some(value), None));
    }
    changes
}

/// The value of a live attribute that is as good as not asking for it.
pub(crate) fn unset_of(info: Option<&MgmtInfo>, key: &str) -> Option<&'static str> {
    info?.attributes.iter().find(|attribute| attribute.name == key)?.live?.unset
}

/// Such a value of which a device tells nothing.
pub(crate) fn is_unset(info: Option<&MgmtInfo>, key: &str, value: &str) -> bool {
    let attribute = info.and_then(|info| info.attributes.iter().find(|attribute| attribute.name == key));
    attribute
        .and_then(|attribute| attribute.live)
        .is_some_and(|live| !live.is_told && live.unset == Some(value))
}

/// What was set before of a device whose other side is the host's, stands in the file as well, and waits for a new device: the
/// file makes one.
fn left_waiting(device: &Device, wanted: &DeviceEntry, changes: &[ConfigChange]) -> Vec<ConfigChange> {
    let is_left = |key: &&String| device.netdev.is_some() && changes.iter().all(|change| change.key != **key);
    let wanted = |key: &str| match key {
        "mac" => wanted.mac.clone(),
        "mtu" => wanted.mtu.map(|mtu| mtu.to_string()),
        key => wanted.attributes.get(key).cloned(),
    };
    let left = device.deferred.iter().filter(is_left);
    left.map(|key| change(key, device.now(key).as_ref(), wanted(key).as_ref())).collect()
}

/// `dev set` does it, so that it is in force at once or when the next front-end connects: where the host is the other side, nobody
/// connects anew. A key that is to go back to its default needs a new device, unless a value says the same.
fn is_settable(
    change: &ConfigChange,
    info: Option<&MgmtInfo>,
    device: &Device,
    wanted: &DeviceEntry,
) -> bool {
    let attribute =
        info.and_then(|info| info.attributes.iter().find(|attribute| attribute.name == change.key));
    let live = attribute.and_then(|attribute| attribute.live);
    let is_own = attribute.is_some() || ["mac", "mtu"].contains(&change.key.as_str());
    if device.netdev.is_some() && is_own && live.is_none() {
        return change.after.is_some() && device.has(wanted, &change.key);
    }
    let unset = live.and_then(|live| live.unset);
    let fixed = ["mgmtdev", "max_vqp", "device_features", "socket", "mode", "owner", "group"];
    match change.key.as_str() {
        // Without a core of its own it stays where it is.
        "core" => true,
        key => (change.after.is_some() || unset.is_some()) && !fixed.contains(&key),
    }
}
