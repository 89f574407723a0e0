//! What only the whole of a file tells: what is there twice, what there is too much of, and what this host lacks for it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::{Path, PathBuf};

use ringway_pmd::vdpa::Class;

use super::Desired;
use crate::devices::checks::{check_port_beside, host_interface, implied_name, no_parent, uplink_of};
use crate::devices::known::Known;
use crate::devices::placement::{allowed_cores, choose_cores, list};
use crate::fault::{Fault, Kind};
use crate::host::accounts::{A_WHILE, Account};
use crate::host::endpoint;
use crate::host::topology::Topology;
use crate::operator::api::DeviceEntry;

/// Where the keys of a table stand, as `FILE:LINE`; the table itself stands under the empty key.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Places(pub(super) BTreeMap<String, String>);

impl Places {
    /// Puts the place of a key, or of its table, before what is wrong.
    fn fault(&self, key: &str, fault: Fault) -> Fault {
        match self.0.get(key).or_else(|| self.0.get("")) {
            Some(place) => {
                Fault { message: format!("{place}: {}", fault.message), path: Some(place.clone()), ..fault }
            }
            None => fault,
        }
    }
}

/// The places of everything in a file, in its order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct AllPlaces {
    pub(super) daemon: Places,
    pub(super) mgmtdevs: Vec<Places>,
    pub(super) ports: Vec<Places>,
    pub(super) devices: Vec<Places>,
}

impl Desired {
    fn placed(&self) -> impl Iterator<Item = (&DeviceEntry, &Places)> {
        self.devices.iter().zip(&self.places.devices)
    }

    /// What is there twice, or more often than it can be.
    pub(super) fn check_whole(&self, known: &Known) -> Vec<Fault> {
        let of_daemon = |key: &str, fault: Fault| self.places.daemon.fault(key, fault);
        let mut faults = Vec::new();
        if let Some(Err(fault)) = self.log.as_deref().map(crate::host::logging::filter) {
            faults.push(of_daemon("log", fault));
        }
        let cores = self.cores.as_deref().unwrap_or_default();
        if let Some((_, core)) = cores.iter().enumerate().find(|(n, core)| cores[..*n].contains(core)) {
            faults.push(of_daemon("cores", Fault::usage(format!("core {core} is named twice"))));
        }
        let mut names = HashSet::new();
        for (entry, places) in self.mgmtdevs.iter().zip(&self.places.mgmtdevs) {
            if !names.insert(entry.name.as_str()) {
                let why = format!("a second management device is named {}", entry.name);
                faults.push(places.fault("name", Fault::conflict(why)));
            }
        }
        let mut handles = HashSet::new();
        for (entry, places) in self.ports.iter().zip(&self.places.ports) {
            if !handles.insert(entry.handle()) {
                let why = format!("a second port is {}", entry.handle());
                faults.push(places.fault("sfnum", Fault::conflict(why)));
            }
            let is_made = known.kind(&entry.mgmtdev).is_err();
            if !is_made && !names.contains(entry.mgmtdev.as_str()) {
                faults.push(places.fault("mgmtdev", no_parent(&entry.mgmtdev)));
            }
        }
        let mut before = Before::default();
        for (entry, places) in self.placed() {
            let beside = before.add(entry, known);
            faults.extend(beside.err().map(|(key, fault)| places.fault(key, fault)));
            if let Some(core) = entry.core.filter(|core| !cores.is_empty() && !cores.contains(core)) {
                let why = format!("no worker runs on core {core}: [daemon] cores is {}", list(cores));
                let fault = Fault::not_found(why).hint("one of these cores, or add it to them");
                faults.push(places.fault("core", fault));
            }
        }
        faults
    }

    /// Checks what a daemon with this operator socket and these cores (empty: the default) finds on this host.
    ///
    /// # Errors
    /// The first thing that can never succeed, with file and line.
    pub(crate) fn check_start(&self, ctl: &Path, cores: &[usize]) -> Result<(), Fault> {
        let mut faults = self.check_sockets(ctl);
        faults.extend(self.check_cores(cores));
        faults.into_iter().next().map_or(Ok(()), Err)
    }

    /// Checks what a daemon that is given this file alone would find on this host, who is to own its sockets, and what a
    /// daemon takes and is a mistake all the same. Returns all that is wrong, and what may be otherwise where it runs.
    pub(crate) fn check_host(&self) -> (Vec<Fault>, Vec<String>) {
        let mut faults = self.check_sockets(&crate::host::paths::ctl(self.ctl.as_deref()));
        for (entry, places) in self.placed() {
            let owner = entry.owner.as_deref().map(|name| Account::User.id(name, A_WHILE)).transpose();
            faults.extend(owner.err().map(|fault| places.fault("owner", fault)));
            let group = entry.group.as_deref().map(|name| Account::Group.id(name, A_WHILE)).transpose();
            faults.extend(group.err().map(|fault| places.fault("group", fault)));
        }
        faults.extend(self.check_addresses());
        faults.extend(self.check_shares());
        match &self.cores {
            Some(cores) => {
                faults.extend(self.check_cores(cores));
                (faults, Vec::new())
            }
            // The daemon's own choice, which its unit may narrow.
            None => (faults, self.check_cores(&[]).into_iter().map(|fault| fault.message).collect()),
        }
    }

    /// A port has its share of what its parent has in the file. A daemon keeps one that has none until there is room.
    fn check_shares(&self) -> Vec<Fault> {
        let known = crate::devices::drivers::known();
        let mut faults = Vec::new();
        for (n, (entry, places)) in self.ports.iter().zip(&self.places.ports).enumerate() {
            let has_parent = self.mgmtdevs.iter().any(|mgmtdev| mgmtdev.name == entry.mgmtdev);
            let beside = check_port_beside(entry, &self.ports[..n], &self.mgmtdevs, &known);
            if let Some(fault) = beside.err().filter(|_| has_parent) {
                let key = fault.path.clone().unwrap_or_default();
                faults.push(places.fault(&key, fault));
            }
        }
        faults
    }

    /// One address is one device's of those that are joined. A daemon takes it: a guest that moves from one device to the
    /// other has both for a while.
    fn check_addresses(&self) -> Vec<Fault> {
        let mut taken = BTreeMap::new();
        let mut faults = Vec::new();
        for (entry, places) in self.placed() {
            let kind = entry.mgmtdev.split('/').next().unwrap_or_default();
            let is_joined = crate::devices::drivers::known().kinds.iter().any(|known| known.name == kind);
            let Some(mac) = entry.mac.as_ref().filter(|_| is_joined) else { continue };
            if let Some(other) = taken.insert((&entry.mgmtdev, mac.to_ascii_lowercase()), &entry.name) {
                let why = format!("{} has the mac of {other}, and both are on {}", entry.name, entry.mgmtdev);
                let fault = Fault::conflict(why).held_by(format!("device {other}"));
                faults.push(places.fault("mac", fault.hint("another mac, or none: one is then made")));
            }
        }
        faults
    }

    fn check_cores(&self, wanted: &[usize]) -> Vec<Fault> {
        let is_of_file = self.cores.as_deref() == Some(wanted);
        let allowed = allowed_cores().map_err(|error| Fault::system("cannot read the cpuset", error));
        let workers = match allowed.and_then(|allowed| choose_cores(&allowed, wanted, &Topology::of_host())) {
            Ok(workers) => workers,
            Err(fault) if is_of_file => return vec![self.places.daemon.fault("cores", fault)],
            Err(fault) => return vec![fault],
        };
        let of_devices = self.placed().map(|(entry, places)| (entry.core, places));
        let of_mgmtdevs =
            self.mgmtdevs.iter().zip(&self.places.mgmtdevs).map(|(entry, places)| {
                (entry.attributes.get("core").and_then(|core| core.parse().ok()), places)
            });
        let without = of_mgmtdevs.chain(of_devices).filter_map(|(core, places)| {
            let core = core.filter(|core| !workers.contains(core))?;
            let fault = Fault::not_found(format!("no worker runs on core {core}"))
                .held_by(format!("workers run on cores {}", list(&workers)))
                .hint("one of these cores, or [daemon] cores with it among them");
            Some(places.fault("core", fault))
        });
        without.collect()
    }

    /// One socket is one device's, and none is the daemon's own.
    fn check_sockets(&self, ctl: &Path) -> Vec<Fault> {
        let mut faults = Vec::new();
        if let Err(fault) = endpoint::check_path(ctl) {
            faults.push(if self.ctl.is_some() { self.places.daemon.fault("ctl", fault) } else { fault });
        }
        let runtime_dir = ctl.parent().unwrap_or(Path::new("/"));
        let mut taken = BTreeMap::from([(real(ctl), "the operator socket".to_owned())]);
        for (entry, places) in self
            .placed()
            .filter(|(entry, _)| !entry.attributes.contains_key("tap") && uplink_of(entry).is_none())
        {
            let key = if entry.socket.is_some() { "socket" } else { "name" };
            let socket =
                entry.socket.clone().unwrap_or_else(|| endpoint::default_path(runtime_dir, &entry.name));
            if let Err(fault) = endpoint::check_path(&socket) {
                faults.push(places.fault(key, fault));
            } else if let Some(holder) = taken.insert(real(&socket), format!("device {}", entry.name)) {
                let fault = Fault::new(Kind::Conflict, format!("socket {} is taken", socket.display()));
                faults.push(places.fault(key, fault.held_by(holder).hint("another path")));
            }
        }
        faults
    }
}

/// The devices of a file so far, by what only one of them may have: each further one costs the same, however many there are.
#[derive(Default)]
struct Before<'a> {
    names: HashMap<&'a str, &'a DeviceEntry>,
    /// Of a file, the first that is on it, and the first that writes to it.
    files: HashMap<&'a Path, (&'a DeviceEntry, Option<&'a DeviceEntry>)>,
    interfaces: HashMap<(&'a str, PathBuf), &'a DeviceEntry>,
    /// By the function that is their uplink.
    uplinks: HashMap<&'a str, &'a DeviceEntry>,
    /// By their management device: the first, and the names of all.
    mgmtdevs: HashMap<&'a str, (&'a DeviceEntry, Vec<&'a str>)>,
    /// By the name of the device that comes with them.
    implied: HashMap<&'a str, &'a DeviceEntry>,
}

impl<'a> Before<'a> {
    /// Checks a device beside those before it and adds it to them; a fault comes with the key that is at fault.
    #[expect(clippy::result_large_err, reason = "once for each device of a file")]
    fn add(&mut self, entry: &'a DeviceEntry, known: &Known) -> Result<(), (&'static str, Fault)> {
        let info = known.find(&entry.mgmtdev);
        let is_disk = info.as_ref().is_some_and(|info| info.class == Class::Block);
        let file = entry.attributes.get("path").filter(|_| is_disk).map(Path::new);
        let most = info.and_then(|info| info.max_devices);
        let checked = self.check(entry, file, most);

        self.names.entry(&entry.name).or_insert(entry);
        if let Some(file) = file {
            let writer = (!is_read_only(entry)).then_some(entry);
            let (_, writers) = self.files.entry(file).or_insert((entry, None));
            *writers = writers.or(writer);
        }
        if let Some(interface) = host_interface(entry) {
            self.interfaces.entry(interface).or_insert(entry);
        }
        if let Some(function) = uplink_of(entry) {
            self.uplinks.entry(function).or_insert(entry);
        }
        let (_, names) = self.mgmtdevs.entry(&entry.mgmtdev).or_insert((entry, Vec::new()));
        names.extend([Some(entry.name.as_str()), implied_name(entry)].into_iter().flatten());
        if let Some(name) = implied_name(entry) {
            self.implied.entry(name).or_insert(entry);
        }
        checked
    }

    #[expect(clippy::result_large_err, reason = "once for each device of a file")]
    fn check(
        &self,
        entry: &DeviceEntry,
        file: Option<&Path>,
        most: Option<usize>,
    ) -> Result<(), (&'static str, Fault)> {
        let twin = |fault: String, other: &DeviceEntry| {
            Fault::conflict(fault).held_by(format!("device {}", other.name))
        };
        if self.names.contains_key(entry.name.as_str()) {
            return Err(("name", Fault::conflict(format!("a second device is named {}", entry.name))));
        }
        if let Some((first, writer)) = file.and_then(|file| self.files.get(file))
            && let Some(other) = if is_read_only(entry) { *writer } else { Some(*first) }
        {
            let why = format!("{} is on the same file as {}", entry.name, other.name);
            let hint = "give each a file of its own: two that write to one file destroy what is on it";
            return Err(("path", twin(why, other).hint(hint)));
        }
        if let Some(other) = host_interface(entry).and_then(|interface| self.interfaces.get(&interface)) {
            let key = if entry.attributes.contains_key("tap") { "tap" } else { "mgmtdev" };
            let why = format!("{} has the same interface as {}", entry.name, other.name);
            return Err((key, twin(why, other)));
        }
        // One function is of one device: its own, or a bridge's uplink.
        let uplink = uplink_of(entry);
        let function = uplink.unwrap_or(&entry.mgmtdev);
        let of_function = self.mgmtdevs.get(function).filter(|_| uplink.is_some()).map(|(first, _)| first);
        if let Some(other) = self.uplinks.get(function).or(of_function) {
            let key = if uplink.is_some() { "uplink" } else { "mgmtdev" };
            let why = format!("{} has the same function as {}", entry.name, other.name);
            return Err((key, twin(why, other)));
        }
        // A device that comes by itself takes a name, too.
        if let Some(other) = self.implied.get(entry.name.as_str()) {
            let why =
                format!("{} is the name of the host's device, which comes with {}", entry.name, other.name);
            return Err(("name", twin(why, other)));
        }
        if let Some((name, other)) = implied_name(entry).and_then(|name| Some((name, self.names.get(name)?)))
        {
            let why =
                format!("{name}, the host's device that comes with {}, is the name of another", entry.name);
            return Err(("mgmtdev", twin(why, other)));
        }
        if let Some(most) = most {
            let others = self.mgmtdevs.get(entry.mgmtdev.as_str()).map_or(&[][..], |(_, names)| names);
            if others.len() + 1 + usize::from(implied_name(entry).is_some()) > most {
                let why = format!("{} has as many devices as it can: {most}", entry.mgmtdev);
                let fault = Fault::conflict(why).held_by(others.join(", ")).hint("another management device");
                return Err(("mgmtdev", fault));
            }
        }
        Ok(())
    }
}

/// A socket's path without detours, as far as its directory is there.
fn real(path: &Path) -> PathBuf {
    match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(dir)), Some(name)) => dir.join(name),
        _ => path.to_owned(),
    }
}

/// Nothing is written to the device's disk.
fn is_read_only(entry: &DeviceEntry) -> bool {
    entry.attributes.get("ro").is_some_and(|value| value == "on")
}
