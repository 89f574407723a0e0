//! What a configuration file changes of what runs: foretold (`config.diff`), and done (`config.apply`, SIGHUP).
//!
//! A plan is made from the file and from what runs, and changes nothing. Applying does its steps in their order: what goes first,
//! then management devices and ports, then devices; each that was done can be undone, and is, in reverse, if a later one fails.
//! So either what runs is what the file says, or it is as it was. Devices that operators added stay, unless the file names them.
//! However many steps there are, the state directory is written twice: before anything is done, and behind the last step; once where
//! all that was done is undone.
//!
//! Thread: control.

pub(crate) mod plan;

use std::collections::BTreeMap;
use std::fs::Permissions;
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::json;
use tempfile::NamedTempFile;

use crate::daemon::Daemon;
use crate::devices::absent::{Absent, RETRY_ABSENT};
use crate::devices::apply::plan::{LOG, Plan, Work, named, unset_of};
use crate::devices::device::{Device, Origin};
use crate::devices::registry::MgmtOrigin;
use crate::fault::{Fault, Kind};
use crate::host::logging::{self, Filters};
use crate::operator::api::{
    ConfigAction, ConfigApply, ConfigPlan, ConfigStep, ConfigText, DevSet, DeviceEntry, MgmtEntry, PortEntry,
    PortSet, Target,
};
use crate::operator::config;
use crate::operator::role::Role;
use crate::operator::show::in_force;

/// What runs until a file is applied is kept under this name in the state directory.
const PREVIOUS: &str = "previous.toml";

/// How a step is undone.
enum Undo {
    Log(Filters),
    Absent(Absent),
    AddDevice(Gone),
    RemoveDevice(String),
    /// Its settings, then what it was.
    SetDevice(DevSet, Was),
    RemakeDevice(Was),
    Entry(Was),
    AddPort(PortEntry, MgmtOrigin),
    RemovePort(String),
    SetPort(PortSet),
    OriginOfPort(String, MgmtOrigin),
    AddMgmtdev(MgmtEntry, MgmtOrigin),
    RemoveMgmtdev(String),
    /// Its settings, and which of them were asked for.
    SetMgmtdev(MgmtEntry, BTreeMap<String, String>),
    OriginOfMgmtdev(String, MgmtOrigin),
}

/// A device that was removed.
struct Gone {
    entry: DeviceEntry,
    origin: Origin,
    /// Somebody was connected, and has lost it.
    was_in_use: bool,
}

/// What a device was that stayed.
struct Was {
    entry: DeviceEntry,
    origin: Origin,
    deferred: Vec<String>,
}

impl Gone {
    fn of(device: &Device) -> Gone {
        let (entry, origin) = (device.entry.clone(), device.origin);
        Gone { entry, origin, was_in_use: device.connection.is_some() }
    }
}

impl Was {
    fn of(device: &Device) -> Was {
        let deferred = device.deferred.iter().cloned().collect();
        Was { entry: device.entry.clone(), origin: device.origin, deferred }
    }
}

impl Daemon {
    /// Foretells what applying a file would do.
    pub(crate) fn diff(&mut self, given: &ConfigText, role: Role) -> Result<ConfigPlan, Fault> {
        role.may_diff(&given.text)?;
        let mut plan = self.plan_of(&given.text, &given.file)?;
        if let Err(fault) = plan.check_loss(&given.file) {
            plan.told.notes.push(format!("it is not applied without --force: {}", fault.message));
        }
        Ok(plan.told)
    }

    /// What `config.apply` would do.
    pub(crate) fn plan_apply(&mut self, given: &ConfigApply) -> Result<ConfigPlan, Fault> {
        let plan = self.plan_of(&given.text, &given.file)?;
        if !given.force {
            plan.check_loss(&given.file)?;
        }
        Ok(plan.told)
    }

    fn plan_of(&mut self, text: &str, file: &str) -> Result<Plan, Fault> {
        let desired = config::parse(text, file, &crate::devices::drivers::known())?;
        self.plan(&desired)
    }

    /// Makes what runs what a file says.
    pub(crate) fn apply(&mut self, given: &ConfigApply) -> Result<ConfigPlan, Fault> {
        let plan = self.plan_of(&given.text, &given.file)?;
        if !given.force {
            plan.check_loss(&given.file)?;
        }
        let Plan { mut told, work, .. } = plan;
        let mut previous = None;
        if !work.is_empty() {
            // What cannot be kept is found out before anything is done.
            self.keep()?;
            previous = self.write_previous(&self.asked_by_file())?;
        }
        let mut undo = Vec::new();
        if let Err((step, fault)) = self.work_all(work, &mut told, &mut undo) {
            return Err(self.undo_all(fault, told.steps.get(step), undo));
        }
        if let Err(fault) = self.keep() {
            return Err(self.undo_all(fault, None, undo));
        }
        told.previous = previous.map(|(beside, path)| keep_as(beside, &path)).transpose()?;
        match &self.config_file {
            Some(file) if Path::new(&given.file) == std::path::absolute(file).unwrap_or_default() => {}
            Some(file) => told.notes.push(format!(
                "ringwayd starts with {}: what is to be there then has to stand there too",
                file.display()
            )),
            None => told.notes.push(format!(
                "ringwayd was started without a configuration file: --config {} for this to be there when it starts again",
                given.file
            )),
        }
        let count = |action| told.steps.iter().filter(|step| step.action == action).count();
        let details = json!({
            "file": given.file,
            "added": count(ConfigAction::Add),
            "changed": count(ConfigAction::Set),
            "remade": count(ConfigAction::Remake),
            "removed": count(ConfigAction::Del),
            "deferred": told.not_in_force().count(),
            "restart": told.waiting_for_a_start().count(),
        });
        self.events.push("config.applied", None, details);
        Ok(told)
    }

    /// Applies the daemon's own file, as it is now.
    pub(crate) fn reload(&mut self) {
        let Some(file) = self.config_file.clone() else {
            tracing::warn!(
                "SIGHUP: ringwayd was started without a configuration file (--config FILE), so there is none to apply"
            );
            return;
        };
        let file = std::path::absolute(&file).unwrap_or(file);
        let shown = file.display().to_string();
        let given =
            config::text_of(&file).map(|text| ConfigApply { file: shown.clone(), text, force: false });
        match given.and_then(|given| self.apply(&given)) {
            Ok(plan) => {
                let (steps, unchanged) = (plan.steps.len(), plan.unchanged);
                let (deferred, restart) = (plan.not_in_force().count(), plan.waiting_for_a_start().count());
                tracing::info!(steps, unchanged, deferred, restart, "{shown} is applied");
            }
            Err(fault) => {
                tracing::error!(
                    held_by = fault.held_by,
                    hint = fault.hint,
                    "{shown} is not applied: {}",
                    fault.message
                );
                let details = json!({ "file": shown, "why": fault.message, "try": fault.hint });
                self.events.push("config.refused", None, details);
            }
        }
    }

    /// Does all parts of all steps. The error has the number of the step at which it came.
    ///
    /// There may be thousands: the disk is not waited for after each, and the service manager's watchdog is fed between them.
    fn work_all(
        &mut self,
        work: Vec<(usize, Work)>,
        told: &mut ConfigPlan,
        undo: &mut Vec<Undo>,
    ) -> Result<(), (usize, Fault)> {
        self.is_applying = true;
        let mut done = Ok(());
        for (step, work) in work {
            self.beat(Instant::now());
            match self.work(work, undo) {
                Ok(notes) => {
                    if let Some(step) = told.steps.get_mut(step) {
                        step.notes.extend(notes);
                    }
                }
                Err(fault) => {
                    done = Err((step, fault));
                    break;
                }
            }
        }
        self.is_applying = false;
        done
    }

    /// Does a part of a step; what it adds to what is told.
    fn work(&mut self, work: Work, undo: &mut Vec<Undo>) -> Result<Vec<String>, Fault> {
        let mut notes = Vec::new();
        match work {
            Work::ForgetAbsent(name) => {
                let gone = self
                    .absent
                    .extract_if(.., |absent| absent.entry.name == name && absent.origin == Origin::Config);
                undo.extend(gone.map(Undo::Absent));
            }
            Work::RemoveDevice(name) => {
                // It may be gone with its port, or with another that brought it.
                if let Ok(gone) = self.registry.find(&name).map(Gone::of) {
                    self.drop_device(&name);
                    self.events.push("dev.removed", Some(&name), json!({}));
                    undo.push(Undo::AddDevice(gone));
                }
            }
            Work::RemovePort(handle) => {
                let Some(port) = self.ports.iter().find(|port| port.entry.handle() == handle) else {
                    return Ok(notes);
                };
                let (entry, origin) = (port.entry.clone(), port.origin);
                let child = entry.child();
                let lost = self.registry.devices().filter(|device| device.entry.mgmtdev == child);
                let lost: Vec<Gone> = lost.map(Gone::of).collect();
                self.delete_port(&Target { name: handle })?;
                undo.extend(lost.into_iter().map(Undo::AddDevice));
                undo.push(Undo::AddPort(entry, origin));
            }
            Work::RemoveMgmtdev(name) => {
                let mgmtdev = self.registry.mgmtdev(&name)?;
                let entry = MgmtEntry { name: name.clone(), attributes: mgmtdev.asked.clone() };
                let origin = mgmtdev.origin;
                self.delete_mgmtdev(&Target { name })?;
                undo.push(Undo::AddMgmtdev(entry, origin));
            }
            Work::AddMgmtdev(entry) => {
                let name = entry.name.clone();
                self.add_mgmtdev(entry)?;
                self.registry.mgmtdev(&name)?.origin = MgmtOrigin::Config;
                undo.push(Undo::RemoveMgmtdev(name));
            }
            Work::SetLog(wanted) => {
                undo.extend(logging::filters().map(Undo::Log));
                logging::replace(Filters { said: wanted.clone(), now: wanted })?;
            }
            Work::SetMgmtdev(entry) => {
                let mgmtdev = self.registry.mgmtdev(&entry.name)?;
                let (now, asked) = (mgmtdev.device.attributes(), mgmtdev.asked.clone());
                let attributes = entry
                    .attributes
                    .keys()
                    .filter_map(|key| Some((key.clone(), now.get(key)?.clone())))
                    .collect();
                let back = MgmtEntry { name: entry.name.clone(), attributes };
                self.set_mgmtdev(&entry)?;
                undo.push(Undo::SetMgmtdev(back, asked));
            }
            Work::OriginOfMgmtdev(name, origin) => {
                // One that came with its devices may have gone with the last of them.
                if !self.registry.has_mgmtdev(&name) {
                    return Ok(notes);
                }
                let mgmtdev = self.registry.mgmtdev(&name)?;
                undo.push(Undo::OriginOfMgmtdev(name, std::mem::replace(&mut mgmtdev.origin, origin)));
            }
            Work::AddPort(entry) => {
                let handle = entry.handle();
                self.add_port(entry)?;
                undo.push(Undo::RemovePort(handle.clone()));
                self.set_origin_of_port(&handle, MgmtOrigin::Config);
            }
            Work::SetPort(set) => {
                let port = self.ports.iter().find(|port| port.entry.handle() == set.name);
                let back = port.map(|port| PortSet {
                    name: set.name.clone(),
                    state: set.state.and(Some(port.entry.state)),
                    attributes: set
                        .attributes
                        .keys()
                        .filter_map(|key| Some((key.clone(), port.entry.attributes.get(key)?.clone())))
                        .collect(),
                });
                self.set_port(&set)?;
                undo.extend(back.map(Undo::SetPort));
            }
            Work::OriginOfPort(handle) => {
                if let Some(before) = self.set_origin_of_port(&handle, MgmtOrigin::Config) {
                    undo.push(Undo::OriginOfPort(handle, before));
                }
            }
            Work::AddDevice(entry) => {
                let name = entry.name.clone();
                match self.make_device(entry.clone(), Origin::Config) {
                    Ok(()) => {
                        undo.push(Undo::RemoveDevice(name.clone()));
                        let is_stale = |absent: &mut Absent| {
                            absent.entry.name == name && absent.origin == Origin::Config
                        };
                        let stale = self.absent.extract_if(.., is_stale);
                        undo.extend(stale.map(Undo::Absent));
                        self.tell_added(&name);
                    }
                    // What hardware serves is handed over once it is quiet, and an interface once its session has closed it.
                    Err(fault) if fault.retryable || self.lets_go_of(&entry, &fault) => {
                        notes.push(format!("in a moment: {}", fault.message));
                        self.make_later(entry, Origin::Config, fault.message);
                        undo.push(Undo::RemoveDevice(name));
                    }
                    Err(fault) => return Err(fault),
                }
            }
            Work::SetDevice(set) => {
                let device = self.registry.find(&set.name)?;
                let (was, facts) = (Was::of(device), &device.facts);
                let now = in_force(device);
                let info = self.registry.known().find(&was.entry.mgmtdev);
                let before = |key: &String| {
                    let unset = unset_of(info.as_ref(), key).map(str::to_owned);
                    facts.attributes.get(key).cloned().or(unset)
                };
                let mut back = DevSet {
                    name: set.name.clone(),
                    mac: set.mac.as_ref().and(now.mac),
                    mtu: set.mtu.and(now.mtu),
                    core: set.core.and_then(|_| device.cores().first().copied()),
                    attributes: set
                        .attributes
                        .keys()
                        .filter_map(|key| Some((key.clone(), before(key)?)))
                        .collect(),
                };
                // When it is in force was foretold.
                let (taking, more) = self.set_entry(&set)?;
                notes.extend(more);
                // What is deferred is not in the device: its entry alone goes back.
                let is_in_it = |key: &str| taking.deferred().iter().all(|other| other != key);
                back.mac = back.mac.filter(|_| is_in_it("mac"));
                back.mtu = back.mtu.filter(|_| is_in_it("mtu"));
                back.attributes.retain(|key, _| is_in_it(key));
                let mut to_undo = set.attributes.keys().filter(|key| is_in_it(key));
                undo.push(match to_undo.all(|key| back.attributes.contains_key(key)) {
                    true => Undo::SetDevice(back, was),
                    // Only a new device has what nobody asked for.
                    false => Undo::RemakeDevice(was),
                });
            }
            Work::Adopt(entry) => {
                let id = self.registry.id_of(&entry.name)?;
                if let Some(device) = self.registry.by_id(id) {
                    undo.push(Undo::Entry(Was::of(device)));
                    (device.entry, device.origin) = (entry, Origin::Config);
                }
            }
        }
        Ok(notes)
    }

    /// Undoes what was done, the last first, and tells of a fault with which step it came.
    fn undo_all(&mut self, fault: Fault, step: Option<&ConfigStep>, undo: Vec<Undo>) -> Fault {
        let (mut kept, mut lost) = (Vec::new(), Vec::new());
        self.is_applying = true;
        for undo in undo.into_iter().rev() {
            self.beat(Instant::now());
            let made_anew = self.lost_by(&undo);
            match self.undo(undo) {
                Ok(()) => lost.extend(made_anew),
                Err(again) => kept.push(again.message),
            }
        }
        self.is_applying = false;
        // Where all is undone, that is what is on disk: it was written before the first step.
        if !kept.is_empty()
            && let Err(again) = self.keep()
        {
            kept.push(again.message);
        }
        for why in &kept {
            tracing::error!("a file that could not be applied could not be undone as a whole: {why}");
        }
        let at = step.map_or_else(String::new, |step| format!("{} {}: ", step.what, step.name));
        let mut end = match kept.is_empty() {
            true => "nothing is changed".to_owned(),
            false => format!("not all is as it was: {}", kept.join("; ")),
        };
        if !lost.is_empty() {
            end += &format!("; gone for a moment, and made anew: {}", named(&lost));
        }
        Fault { message: format!("{at}{}; {end}", fault.message), ..fault }
    }

    /// Whether it may be for a session of a removed device, which has not ended yet, that an interface is taken.
    fn lets_go_of(&self, entry: &DeviceEntry, fault: &Fault) -> bool {
        let is_leaving = self.leaving.values().any(|mgmtdev| *mgmtdev == entry.mgmtdev);
        fault.kind == Kind::Conflict && entry.attributes.contains_key("tap") && is_leaving
    }

    /// The device that somebody used who has lost it, or does by its being undone.
    fn lost_by(&self, undo: &Undo) -> Option<String> {
        let (name, is_lost) = match undo {
            Undo::AddDevice(gone) => (&gone.entry.name, gone.was_in_use),
            Undo::RemakeDevice(was) => {
                let device = self.registry.find(&was.entry.name);
                (&was.entry.name, device.is_ok_and(|device| device.connection.is_some()))
            }
            _ => return None,
        };
        is_lost.then(|| name.clone())
    }

    fn undo(&mut self, undo: Undo) -> Result<(), Fault> {
        match undo {
            Undo::Absent(absent) => self.make_later(absent.entry, absent.origin, absent.why),
            Undo::AddDevice(Gone { entry, origin, .. }) => {
                let name = entry.name.clone();
                match self.make_device(entry.clone(), origin) {
                    Ok(()) => self.tell_added(&name),
                    // It is tried again, as one that could not be made at the start.
                    Err(fault) => {
                        let why = fault.message.clone();
                        self.make_later(entry, origin, fault.message);
                        return Err(Fault::new(Kind::Runtime, format!("{name} is tried again: {why}")));
                    }
                }
            }
            Undo::RemoveDevice(name) => {
                self.absent.retain(|absent| absent.entry.name != name || absent.origin != Origin::Config);
                self.drop_device(&name);
                self.events.push("dev.removed", Some(&name), json!({}));
            }
            Undo::RemakeDevice(Was { entry, origin, .. }) => {
                self.drop_device(&entry.name);
                self.undo(Undo::AddDevice(Gone { entry, origin, was_in_use: false }))?;
            }
            Undo::SetDevice(set, was) => {
                let is_some = set.mac.is_some()
                    || set.mtu.is_some()
                    || set.core.is_some()
                    || !set.attributes.is_empty();
                let done = is_some.then(|| self.set_entry(&set));
                let id = self.registry.id_of(&was.entry.name);
                self.undo(Undo::Entry(was))?;
                id.into_iter().for_each(|id| self.share_core(id));
                done.transpose()?;
            }
            Undo::Entry(Was { entry, origin, deferred }) => {
                let id = self.registry.id_of(&entry.name)?;
                if let Some(device) = self.registry.by_id(id) {
                    (device.entry, device.origin) = (entry, origin);
                    // What was, and nothing that was to be.
                    device.defer(&deferred);
                }
            }
            Undo::Log(filters) => logging::replace(filters)?,
            Undo::AddPort(entry, origin) => {
                let handle = entry.handle();
                self.add_port(entry)?;
                self.set_origin_of_port(&handle, origin);
            }
            Undo::RemovePort(name) => drop(self.delete_port(&Target { name })?),
            Undo::SetPort(set) => drop(self.set_port(&set)?),
            Undo::OriginOfPort(handle, origin) => drop(self.set_origin_of_port(&handle, origin)),
            Undo::AddMgmtdev(entry, origin) => {
                let name = entry.name.clone();
                self.add_mgmtdev(entry)?;
                self.registry.mgmtdev(&name)?.origin = origin;
            }
            Undo::RemoveMgmtdev(name) => drop(self.delete_mgmtdev(&Target { name })?),
            Undo::SetMgmtdev(entry, asked) => {
                self.set_mgmtdev(&entry)?;
                self.registry.mgmtdev(&entry.name)?.asked = asked;
            }
            Undo::OriginOfMgmtdev(name, origin) => self.registry.mgmtdev(&name)?.origin = origin,
        }
        Ok(())
    }

    fn set_origin_of_port(&mut self, handle: &str, origin: MgmtOrigin) -> Option<MgmtOrigin> {
        let port = self.ports.iter_mut().find(|port| port.entry.handle() == handle)?;
        Some(std::mem::replace(&mut port.origin, origin))
    }

    /// A device that cannot be made now is tried again, as one at the start is.
    fn make_later(&mut self, entry: DeviceEntry, origin: Origin, why: String) {
        self.absent.push(Absent { entry, origin, why, is_final: false });
        self.retry_absent_at.get_or_insert(Instant::now() + RETRY_ABSENT);
    }

    /// Writes what ran as a file beside what operators added, not in its place yet. None: nothing is kept by this daemon.
    fn write_previous(&self, toml: &str) -> Result<Option<(NamedTempFile, PathBuf)>, Fault> {
        let Some(state) = &self.state else { return Ok(None) };
        let path = state.path().join(PREVIOUS);
        let write = || -> std::io::Result<NamedTempFile> {
            let mut beside = tempfile::Builder::new()
                .prefix(PREVIOUS)
                .permissions(Permissions::from_mode(0o640))
                .tempfile_in(state.path())?;
            beside.write_all(toml.as_bytes())?;
            beside.as_file().sync_all()?;
            Ok(beside)
        };
        let beside = write()
            .map_err(|error| Fault::system(format!("cannot keep what runs in {}", path.display()), error))?;
        Ok(Some((beside, path)))
    }

    /// What is the file's of what runs, as it was asked for: applied again, it makes the same.
    fn asked_by_file(&self) -> String {
        let of_file = self.registry.mgmtdevs().filter(|mgmtdev| mgmtdev.origin == MgmtOrigin::Config);
        let mgmtdevs: Vec<MgmtEntry> = of_file
            .map(|mgmtdev| MgmtEntry { name: mgmtdev.device.info().name, attributes: mgmtdev.asked.clone() })
            .collect();
        let ports = self.ports.iter().filter(|port| port.origin == MgmtOrigin::Config);
        let ports: Vec<PortEntry> = ports.map(|port| port.entry.clone()).collect();
        let made = self.registry.devices().filter(|device| device.origin == Origin::Config);
        let absent = self.absent.iter().filter(|absent| absent.origin == Origin::Config);
        let devices: Vec<DeviceEntry> =
            made.map(|device| &device.entry).chain(absent.map(|absent| &absent.entry)).cloned().collect();
        let mut places = self.places();
        places.extend(logging::filters().map(|filters| (LOG, filters.said)));
        config::dump(&self.settings, &places, &mgmtdevs, &ports, &devices, &[]).toml
    }
}

/// Puts what ran before in its place.
fn keep_as(beside: NamedTempFile, path: &Path) -> Result<String, Fault> {
    let kept = beside.persist(path);
    kept.map_err(|error| Fault::system(format!("cannot keep what ran in {}", path.display()), error.error))?;
    Ok(path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::settings::Options;

    #[test]
    fn what_is_said_of_an_undoing_is_what_it_has_come_to() {
        let dir = tempfile::tempdir().unwrap();
        let state_dir = dir.path().join("state");
        let options = Options { state_dir: Some(state_dir.clone()), ..Options::embedded(dir.path()) };
        let mut daemon = Daemon::new(options).unwrap();
        let entry = |mgmtdev: &str| DeviceEntry {
            name: "vm0".to_owned(),
            mgmtdev: mgmtdev.to_owned(),
            ..DeviceEntry::default()
        };
        let lost = |mgmtdev| {
            Undo::AddDevice(Gone { entry: entry(mgmtdev), origin: Origin::Config, was_in_use: true })
        };
        let full = || Fault::new(Kind::Runtime, "the disk is full");
        // Nothing can be kept from here on.
        std::fs::write(state_dir.join("devices.json"), "another's").unwrap();
        assert!(daemon.keep().is_err());
        // All is as it was, and stands on disk as before the first step.
        let told = daemon.undo_all(full(), None, vec![lost("sim/net")]).message;
        assert_eq!(told, "the disk is full; nothing is changed; gone for a moment, and made anew: vm0");
        // It is not: that it cannot be kept either is told as well, and who is still gone is not said to be back.
        daemon.drop_device("vm0");
        let told = daemon.undo_all(full(), None, vec![lost("sim/none")]).message;
        let parts = ["; not all is as it was: vm0 is tried again: ", "; somebody else wrote "];
        assert!(parts.iter().all(|part| told.contains(part)) && !told.contains("made anew"), "{told}");
    }
}
