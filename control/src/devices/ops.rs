//! What operators change: adding, removing and setting devices. Each change is kept on disk before it is answered.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::SystemTime;

use ringway_pmd::counters::QueueCounters;
use ringway_pmd::vdpa::{Class, ClassSpec, DataPath, DeviceSpec, QueueLimits};
use ringway_ring::inflight::OwnRecords;
use ringway_ring::position::PositionPage;
use rustix::event::epoll;
use serde_json::{Value, json};

use crate::daemon::{Daemon, Token};
use crate::devices::apply::plan::is_unset;
use crate::devices::checks::{check_attributes, check_entry, check_mac, host_interface, uplink_of};
use crate::devices::deferral::Taking;
use crate::devices::device::{Backoff, Device, DeviceFacts, Held, Origin, Quota, Repeated};
use crate::devices::known::Known;
use crate::devices::life::{Life, LifeEvent};
use crate::devices::registry::MgmtOrigin;
use crate::devices::state::{Kept, StateDir};
use crate::devices::upkeep::standing_of;
use crate::fault::{Fault, Kind};
use crate::frontends::session::{Command, DeviceShared, MessageLog};
use crate::host::accounts::{A_MOMENT, Account};
use crate::host::endpoint::{self, Inherited, Listening};
use crate::host::look::Finding;
use crate::host::standing::Standing;
use crate::host::topology::node_of_function;
use crate::operator::api::{DevAdded, DevChanged, DevDeleted, DevSet, DeviceEntry, MgmtEntry, Mode, Target};
use crate::operator::capture::End;

/// A device that can be made, as far as can be told.
pub(crate) struct NewDevice {
    spec: DeviceSpec,
    pub(crate) mode: Mode,
    pub(crate) socket: PathBuf,
    owner: Option<u32>,
    group: Option<u32>,
}

/// A change of a device that can be made, and what it comes to.
pub(crate) struct DeviceChange {
    pub(crate) id: u64,
    pub(crate) before: DeviceEntry,
    /// What it is to be.
    pub(crate) entry: DeviceEntry,
    pub(crate) life: Life,
    /// When it is in force.
    pub(crate) taking: Taking,
}

/// Positions kept of devices that are gone: 4 MiB.
const KEPT_POSITIONS: usize = 1024;

impl Daemon {
    pub(crate) fn add(&mut self, entry: DeviceEntry) -> Result<DevAdded, Fault> {
        let name = entry.name.clone();
        self.make_device(entry, Origin::Operator)?;
        // One that could not be made at the start gives way to the one that could.
        self.absent.retain(|absent| absent.entry.name != name);
        if let Err(fault) = self.keep() {
            self.drop_device(&name);
            return Err(fault);
        }
        self.tell_added(&name);
        let device = self.registry.find(&name)?;
        Ok(DevAdded {
            added: name.clone(),
            socket: device.socket.clone(),
            mode: device.mode,
            cores: device.cores(),
            notes: device.closed_to_its_owner().into_iter().collect(),
        })
    }

    /// Tells those who follow that a device is there.
    pub(crate) fn tell_added(&mut self, name: &str) {
        let Ok(device) = self.registry.find(name) else { return };
        let details = json!({
            "mgmtdev": device.entry.mgmtdev, "socket": device.socket, "cores": device.cores() });
        self.events.push("dev.added", Some(name), details);
    }

    /// Checks what stays as it is for as long as this process runs: a device that fails here need not be tried again.
    pub(crate) fn check_for_good(&self, entry: &DeviceEntry) -> Result<DeviceSpec, Fault> {
        self.check_for_good_by(entry, &self.registry.known())
    }

    /// The same, of one of many: what there is to make devices with is put together once for all of them.
    pub(crate) fn check_for_good_by(&self, entry: &DeviceEntry, known: &Known) -> Result<DeviceSpec, Fault> {
        let spec = check_entry(entry, known)?;
        if let Some(core) = entry.core {
            self.placement.check(core)?;
        }
        if !entry.attributes.contains_key("tap") && uplink_of(entry).is_none() {
            endpoint::check_path(entry.socket.as_ref().unwrap_or(&self.default_socket(&entry.name)))?;
        }
        Ok(spec)
    }

    /// Checks what can be told of a new device before anything is made.
    pub(crate) fn check_new(&self, entry: &DeviceEntry) -> Result<NewDevice, Fault> {
        let spec = self.check_for_good(entry)?;
        let most = self.registry.known().find(&entry.mgmtdev).and_then(|info| info.max_devices);
        let made = self.registry.made_by(&entry.mgmtdev);
        if self.registry.is_taken(&entry.name) {
            return Err(Fault::conflict(format!("device {} is there already", entry.name))
                .at("name")
                .hint(format!("another name, or {}", self.how_to_remove(&entry.name))));
        }
        // What hardware serves is not handed over before it is quiet.
        let leaving = self.leaving.values().filter(|mgmtdev| **mgmtdev == entry.mgmtdev).count();
        if leaving > 0 && most.is_some_and(|most| made.len() < most && made.len() + leaving >= most) {
            let why = format!("{} still lets go of a device that was removed", entry.mgmtdev);
            return Err(Fault::conflict(why).at("mgmtdev").hint("try again in a moment").passing());
        }
        if most.is_some_and(|most| made.len() >= most) {
            return Err(Fault::conflict(format!(
                "{} has as many devices as it can: {}",
                entry.mgmtdev,
                made.len()
            ))
            .at("mgmtdev")
            .held_by(made.join(", "))
            .hint("another management device, or ringway dev del of one of these"));
        }
        self.check_function(entry)?;
        let owner = entry.owner.as_deref().map(|name| Account::User.id(name, A_MOMENT)).transpose()?;
        let group = entry.group.as_deref().map(|name| Account::Group.id(name, A_MOMENT)).transpose()?;
        let mode = entry.mode.unwrap_or_default();
        let socket = entry.socket.clone().unwrap_or_else(|| self.default_socket(&entry.name));
        if let Some(other) =
            self.registry.devices().find(|device| device.socket == socket && device.netdev.is_none())
        {
            return Err(Fault::conflict(format!("socket {} is taken", socket.display()))
                .at("socket")
                .held_by(format!("device {}", other.name())));
        }
        if let Some((ifname, namespace)) = host_interface(entry) {
            self.check_interface(ifname, &namespace)?;
        }
        Ok(NewDevice { spec, mode, socket, owner, group })
    }

    /// Makes a device and opens its endpoint. Nothing is left behind if it fails.
    pub(crate) fn make_device(&mut self, entry: DeviceEntry, origin: Origin) -> Result<(), Fault> {
        let NewDevice { spec, mode, socket, owner, group } = self.check_new(&entry)?;
        let is_first = !self.registry.has_mgmtdev(&entry.mgmtdev);
        if is_first {
            // By its name: it comes with its first device.
            self.make_mgmtdev(&entry.mgmtdev, &BTreeMap::new(), MgmtOrigin::Device)?;
        }
        let mgmtdev = entry.mgmtdev.clone();
        let mut outcome = self.make_of_mgmtdev(entry, origin, &spec, mode, socket, owner, group);
        let implied = (origin != Origin::Implied)
            .then(|| self.registry.mgmtdev(&mgmtdev).ok()?.device.implied(&spec))
            .flatten();
        if let (Ok(()), Some(implied)) = (&outcome, implied) {
            let net = match implied.class {
                ClassSpec::Net(net) => Some(net),
                ClassSpec::Block => None,
            };
            let entry = DeviceEntry {
                name: implied.name,
                mgmtdev: mgmtdev.clone(),
                mtu: net.and_then(|net| net.mtu),
                max_vqp: net.and_then(|net| net.max_vqp),
                attributes: implied.attributes,
                ..DeviceEntry::default()
            };
            let name = entry.name.clone();
            outcome = self.make_device(entry, Origin::Implied);
            match outcome {
                Ok(()) => self.tell_added(&name),
                Err(_) => self.drop_device(&spec.name),
            }
        }
        if outcome.is_ok() {
            // Whoever waited for it to be made waits no more.
            self.absent.retain(|absent| absent.entry.name != spec.name || absent.origin != origin);
        }
        if outcome.is_ok() && is_first {
            self.make_waiting_ports(&mgmtdev);
        }
        if outcome.is_err() {
            if let Ok(mgmtdev) = self.registry.mgmtdev(&mgmtdev) {
                mgmtdev.device.removed(&spec.name);
            }
            self.drop_empty_mgmtdev(&mgmtdev);
        }
        outcome
    }

    /// One interface is the other side of one device.
    fn check_interface(&self, ifname: &str, namespace: &Path) -> Result<(), Fault> {
        // One namespace may have several names.
        let same = |other: &Path| {
            let place = |path: &Path| std::fs::metadata(path).map(|facts| (facts.dev(), facts.ino())).ok();
            other == namespace || place(other).is_some_and(|other| Some(other) == place(namespace))
        };
        let has_it = |device: &&Device| {
            device.netdev.is_some()
                && host_interface(&device.entry).is_some_and(|(name, other)| name == ifname && same(&other))
        };
        let Some(holder) = self.registry.devices().find(has_it) else { return Ok(()) };
        Err(Fault::conflict(format!("interface {ifname} is taken"))
            .at("tap")
            .held_by(format!("device {}", holder.name()))
            .hint(format!("another interface, or {}", self.how_to_remove(holder.name()))))
    }

    /// One function is of one device: its own, or a bridge's uplink.
    fn check_function(&self, entry: &DeviceEntry) -> Result<(), Fault> {
        let (function, at) = match uplink_of(entry) {
            Some(function) => (function, "uplink"),
            None => (entry.mgmtdev.as_str(), "mgmtdev"),
        };
        let own = if at == "uplink" { self.registry.made_by(function) } else { Vec::new() };
        let Some(holder) = own.into_iter().chain(self.registry.uplinks_by(function)).next() else {
            return Ok(());
        };
        Err(Fault::conflict(format!("function {function} is taken"))
            .at(at)
            .held_by(format!("device {holder}"))
            .hint(format!("another function, or {}", self.how_to_remove(&holder))))
    }

    /// The part of making a device that changes something.
    #[expect(clippy::too_many_arguments, reason = "what was checked before, one by one")]
    fn make_of_mgmtdev(
        &mut self,
        entry: DeviceEntry,
        origin: Origin,
        spec: &DeviceSpec,
        mode: Mode,
        socket: PathBuf,
        owner: Option<u32>,
        group: Option<u32>,
    ) -> Result<(), Fault> {
        let lease = match host_interface(&entry) {
            None => None,
            Some(_) => {
                self.next_session += 1;
                let queues = entry.max_vqp.unwrap_or(1).into();
                let admitted = self.budget.admit_interface(self.next_session - 1, &entry.name, queues);
                Some(admitted.map_err(|short| Fault::new(Kind::Runtime, short.to_string()))?)
            }
        };
        let id = self.registry.next_id();
        let host = self.remote.device_host(id);
        let mgmtdev = &self.registry.mgmtdev(&entry.mgmtdev)?.device;
        let (shared_core, takes_cores) = (mgmtdev.shared_core(), mgmtdev.takes_cores());
        let shared_core = shared_core.filter(|_| !takes_cores || entry.core.is_none());
        if let (Some(_), Some(core)) = (shared_core, entry.core) {
            let family = self.family(&entry.mgmtdev);
            let parent = family.first().map_or(entry.mgmtdev.as_str(), String::as_str);
            return Err(Fault::usage(format!("{parent} serves all its functions on one core"))
                .at("core")
                .hint(format!("ringway mgmtdev set name {parent} core {core}")));
        }
        let mut made = self.registry.create(&entry, spec, host.clone())?;
        let facts = DeviceFacts::of(&mut *made);
        let netdev = made.host_end().map(|end| end.name().to_owned());
        let health = made.health();
        let made = Held::new(made);
        let (mode, socket) = match &netdev {
            Some(_) if uplink_of(&entry).is_some() => (Mode::Uplink, PathBuf::new()),
            Some(_) => (Mode::Netdev, PathBuf::new()),
            None => (mode, socket),
        };
        let listening = match mode {
            Mode::Server => Some(Listening::open(&socket, owner, group)?),
            Mode::Client | Mode::Netdev | Mode::Uplink => None,
        };
        let positions = PositionPage::open(&self.positions_file(&entry.name))
            .map_err(|error| Fault::system(format!("cannot keep positions for {}", entry.name), error))?;
        let records = match facts.class {
            Class::Net => None,
            Class::Block => {
                let QueueLimits { max_vqs, max_vq_size } = facts.limits;
                let records = OwnRecords::open(&self.records_file(&entry.name), max_vqs, max_vq_size);
                Some(records.map_err(|error| {
                    Fault::system(format!("cannot record what {} has in flight", entry.name), error)
                })?)
            }
        };
        if let Some(listening) = &listening {
            self.epoll_add(&listening.socket, Token::Device(id))?;
        }
        let cores = match shared_core {
            Some(core) => vec![core; facts.groups],
            None => self.placement.place(facts.groups, entry.core, node_of_function(&entry.mgmtdev))?,
        };
        let shared = Arc::new(DeviceShared {
            name: entry.name.clone(),
            counters: (0..facts.limits.max_vqs).map(|_| Arc::new(QueueCounters::default())).collect(),
            positions,
            records,
            lease,
            cores: cores.into_iter().map(AtomicUsize::new).collect(),
            log: MessageLog::default(),
        });
        self.registry.insert(Device {
            id,
            capacity: facts.config.block().map(|config| config.capacity),
            entry,
            origin,
            facts,
            life: Life::Waiting,
            shares_core: shared_core.is_some(),
            held: Some(made),
            host,
            health,
            failures: (0, None),
            needs_reset: false,
            is_outdated: false,
            deferred: BTreeSet::new(),
            shared,
            socket,
            mode,
            netdev,
            netdev_changes: Vec::new(),
            netdev_away: None,
            listening,
            awaited: None,
            backoff: Backoff::default(),
            retry_at: None,
            refuse_at: None,
            connection: None,
            history: Default::default(),
            refused: None,
            repeated: Repeated::default(),
            quota: Quota::new(),
        });
        match mode {
            Mode::Server => {}
            Mode::Client => self.connect_to_vmm(id),
            Mode::Netdev | Mode::Uplink => self.open_netdev(id),
        }
        Ok(())
    }

    /// Makes a device on a socket that came with the process. With a connected one, the process ends with it.
    pub(crate) fn adopt(&mut self, entry: DeviceEntry, socket: Inherited) -> Result<(), Fault> {
        let name = entry.name.clone();
        self.make_device(entry, Origin::Config)?;
        let id = self.registry.id_of(&name)?;
        let own = self.registry.by_id(id).and_then(|device| device.listening.take());
        if let Some(own) = own {
            let _ = epoll::delete(&self.epoll, &own.socket);
        }
        match socket {
            Inherited::Listening(listener) => {
                let listening = Listening::inherited(listener)?;
                self.epoll_add(&listening.socket, Token::Device(id))?;
                if let Some(device) = self.registry.by_id(id) {
                    device.listening = Some(listening);
                }
            }
            Inherited::Connected(stream) => {
                let device = self.registry.by_id(id);
                let (class, rings) = device
                    .map_or((Class::Net, 0), |device| (device.facts.class, device.shared.counters.len()));
                let admitted = self.budget.admit(self.next_session, &name, class, rings);
                let lease = admitted.map_err(|short| Fault::new(Kind::Runtime, short.to_string()))?;
                self.ends_with = Some(id);
                self.start_session(id, stream, lease);
            }
        }
        Ok(())
    }

    pub(crate) fn default_socket(&self, name: &str) -> PathBuf {
        endpoint::default_path(&self.runtime_dir, name)
    }

    /// Where what a device has in flight is recorded.
    fn records_file(&self, name: &str) -> PathBuf {
        self.runtime_dir.join("inflight").join(name)
    }

    pub(crate) fn positions_file(&self, name: &str) -> PathBuf {
        self.runtime_dir.join("positions").join(name)
    }

    /// Checks that a device can be removed; what the operator should know then.
    pub(crate) fn check_delete(&self, name: &str) -> Result<Vec<String>, Fault> {
        let absent = self.absent.iter().find(|absent| absent.entry.name == *name).map(|absent| absent.origin);
        let origin = match (self.registry.find(name), absent) {
            (Ok(device), _) => device.origin,
            (Err(_), Some(origin)) => origin,
            (Err(fault), None) => return Err(fault),
        };
        if origin == Origin::Implied {
            return Err(self.comes_with(name));
        }
        let file = self.config_file.as_ref().filter(|_| origin == Origin::Config);
        let stays = file.map(|file| {
            format!("{name} stays in {}: it comes back when ringwayd starts again", file.display())
        });
        Ok(stays.into_iter().collect())
    }

    pub(crate) fn delete(&mut self, target: &Target) -> Result<DevDeleted, Fault> {
        let name = &target.name;
        let notes = self.check_delete(name)?;
        // On disk first: what is answered as gone does not come back.
        self.keep_without(Some(name))?;
        self.absent.retain(|absent| absent.entry.name != *name);
        self.drop_device(name);
        self.events.push("dev.removed", Some(name), json!({}));
        Ok(DevDeleted { deleted: name.clone(), notes })
    }

    /// The fault of changing a device that another one brought.
    fn comes_with(&self, name: &str) -> Fault {
        let others = self.brought_by(name);
        Fault::conflict(format!("{name} comes and goes with {others}"))
            .at("name")
            .hint(format!("ringway dev del {others}"))
    }

    /// Who brought a device that came by itself.
    fn brought_by(&self, name: &str) -> String {
        let mgmtdev = self.registry.find(name).map(|device| device.entry.mgmtdev.clone()).unwrap_or_default();
        let others = self.registry.made_by(&mgmtdev).into_iter().filter(|other| other != name);
        others.collect::<Vec<_>>().join(", ")
    }

    /// The command after which a device is gone.
    fn how_to_remove(&self, name: &str) -> String {
        let comes_by_itself = self.registry.find(name).is_ok_and(|device| device.origin == Origin::Implied);
        let name = if comes_by_itself { self.brought_by(name) } else { name.to_owned() };
        format!("ringway dev del {name}")
    }

    /// Takes a device out: its name and its socket are free at once, its session is told and not waited for.
    pub(crate) fn drop_device(&mut self, name: &str) {
        let Ok(id) = self.registry.id_of(name) else { return };
        let Some(mut device) = self.registry.remove(id) else { return };
        self.captures.end(Some(id), End::DeviceRemoved);
        let _ = device.life.apply(LifeEvent::Remove);
        if let Some(connection) = &device.connection {
            connection.handle.send(Command::Revoke);
            if device.facts.data_path == DataPath::Hardware || device.entry.attributes.contains_key("tap") {
                self.leaving.insert(id, device.entry.mgmtdev.clone());
            }
        }
        // Its last session may have ended and left something under way.
        self.draining.extend(device.health.take().map(|health| (name.to_owned(), health)));
        if let Some(held) = device.held.take() {
            held.remove();
        }
        if let Some(listening) = device.listening.take() {
            let _ = epoll::delete(&self.epoll, &listening.socket);
        }
        if let Some(awaited) = device.awaited.take() {
            self.watch.forget(&awaited);
        }
        if !device.shares_core {
            self.placement.release(&device.cores());
        }
        if let Ok(mgmtdev) = self.registry.mgmtdev(&device.entry.mgmtdev) {
            mgmtdev.device.removed(name);
        }
        self.drop_empty_mgmtdev(&device.entry.mgmtdev);
        // Its positions stay: a guest that waits for a device of this name goes on where it was, also on packed rings,
        // whose position no front-end can tell. They are used only where the ring's own memory bears them out.
        let positions = &device.shared.positions;
        let has_none = || {
            (0..PositionPage::QUEUES)
                .filter_map(|queue| positions.slot(queue))
                .all(|slot| slot.load().is_none())
        };
        let file = self.positions_file(name);
        if !matches!(standing_of(positions, &file), Standing::Ours) {
            // Somebody else's, or taken away.
        } else if device.connection.is_none() && has_none() {
            let _ = std::fs::remove_file(&file);
            let _ = std::fs::remove_file(self.records_file(name));
        } else {
            // A store into the mapped page does not count as a change of the file.
            let _ =
                File::options().write(true).open(&file).and_then(|file| file.set_modified(SystemTime::now()));
        }
        self.forget_old_positions();
    }

    /// Positions of devices that are gone stay for the last [`KEPT_POSITIONS`] of them: names may never come again.
    fn forget_old_positions(&self) {
        let Ok(files) = std::fs::read_dir(self.runtime_dir.join("positions")) else { return };
        let is_gone = |name: &str| {
            !self.registry.is_taken(name) && !self.absent.iter().any(|absent| absent.entry.name == name)
        };
        let files = files.flatten().filter(|file| file.file_name().to_str().is_some_and(is_gone));
        let mut files: Vec<_> = files.map(|file| file.path()).collect();
        let Some(excess) = files.len().checked_sub(KEPT_POSITIONS) else { return };
        files.sort_by_cached_key(|file| std::fs::metadata(file).and_then(|facts| facts.modified()).ok());
        for file in files.iter().take(excess) {
            let _ = std::fs::remove_file(file);
            // Nothing is in flight of a queue without a position.
            if let Some(name) = file.file_name().and_then(|name| name.to_str()) {
                let _ = std::fs::remove_file(self.records_file(name));
            }
        }
    }

    pub(crate) fn set(&mut self, set: &DevSet) -> Result<DevChanged, Fault> {
        let (taking, notes) = self.set_entry(set)?;
        let mut changed = taking.answer(&set.name, notes);
        let origin = self.registry.find(&set.name).map(|device| device.origin);
        if let (Ok(Origin::Config), Some(file)) = (origin, &self.config_file) {
            changed.notes.push(format!(
                "{} still says otherwise and goes first when ringwayd starts again",
                file.display()
            ));
        }
        Ok(changed)
    }

    /// Checks a change of a device, and says what it comes to.
    pub(crate) fn check_set(&mut self, set: &DevSet) -> Result<DeviceChange, Fault> {
        let id = self.registry.id_of(&set.name).map_err(|fault| self.if_absent(&set.name, fault))?;
        if set.mac.is_none() && set.mtu.is_none() && set.core.is_none() && set.attributes.is_empty() {
            return Err(
                Fault::usage("nothing to set").hint("mac MAC, mtu N, core N, or an attribute of the driver")
            );
        }
        let known = self.registry.known();
        let Some(device) = self.registry.by_id(id) else {
            return Err(Fault::not_found("the device is gone"));
        };
        let (before, life, origin) = (device.entry.clone(), device.life, device.origin);
        if origin == Origin::Implied && (set.mac.is_some() || set.mtu.is_some() || !set.attributes.is_empty())
        {
            return Err(self.comes_with(&set.name));
        }
        let mut entry = set.applied_to(&before);
        if let Some(mac) = &set.mac {
            entry.mac = Some(check_mac(mac)?.to_string());
        }
        if let Some(info) = known.find(&entry.mgmtdev) {
            check_attributes(set.attributes.keys().map(String::as_str), &info)?;
        }
        check_entry(&entry, &known)?;
        if let Some(core) = set.core {
            self.placement.check(core)?;
        }

        let in_use = self.mtu_in_use(id);
        if let (Some(mtu), Some((used, holder))) = (set.mtu, in_use)
            && mtu < used
        {
            return Err(Fault::conflict(format!(
                "the VM of {} uses MTU {used}: with a device of {mtu} its VMM would be refused when it connects again, and the \
                 guest have no network",
                set.name
            ))
            .at("mtu")
            .held_by(holder)
            .hint(format!("end that VM, ringway dev set name {} mtu {mtu}, start it with host_mtu={mtu}", set.name)));
        }
        let info = known.find(&entry.mgmtdev);
        let device = self.registry.by_id(id).ok_or_else(|| Fault::not_found("the device is gone"))?;
        let taking = Taking::of(device, &entry, info.as_ref());
        Ok(DeviceChange { id, before, entry, life, taking })
    }

    /// The same, whatever stands in a file: when it is in force, and what is to be said beside.
    pub(crate) fn set_entry(&mut self, set: &DevSet) -> Result<(Taking, Vec<String>), Fault> {
        let DeviceChange { id, before, entry, life, taking } = self.check_set(set)?;
        let is_new_device = !taking.of_a_new_device.is_empty();
        // The host's own interface takes whatever is set.
        let device = self.registry.by_id(id).filter(|device| device.netdev.is_none());
        let net = device.and_then(|device| device.facts.config.net());
        let mtu_before = net.map(|config| before.mtu.unwrap_or(config.mtu));
        let put_back = |daemon: &mut Daemon| {
            if let Some(device) = daemon.registry.by_id(id) {
                device.entry = before.clone();
            }
            if is_new_device && life != Life::Connected {
                daemon.remake(id);
            }
        };
        if let Some(device) = self.registry.by_id(id) {
            device.entry = entry.clone();
        }
        if is_new_device
            && life != Life::Connected
            && let Some(fault) = self.remake(id)
        {
            put_back(self);
            return Err(fault);
        }
        if let Err(fault) = self.keep() {
            put_back(self);
            return Err(fault);
        }

        let mut notes = Vec::new();
        if let Some(core) = set.core {
            self.move_device(id, core);
        }
        let info = self.registry.known().find(&entry.mgmtdev);
        let live = taking.live.clone();
        if !live.is_empty()
            && let Some(device) = self.registry.by_id(id)
        {
            device.facts.attributes.extend(live.clone());
            device.facts.attributes.retain(|name, value| !is_unset(info.as_ref(), name, value));
            if let Some(connection) = &device.connection {
                connection.handle.send(Command::Set(live));
            } else if let Some(held) = &mut device.held {
                held.set(&live);
                device.facts = held.facts().unwrap_or_else(|| device.facts.clone());
            }
        }
        if let Some(device) = self.registry.by_id(id).filter(|_| life == Life::Connected) {
            device.defer(taking.deferred());
        }
        if !taking.deferred().is_empty() && !taking.is_host {
            // The driver's own attributes are no matter of the VMM's.
            if set.mac.is_some() || set.mtu.is_some() {
                notes.push(
                    "QEMU gives its guest the mac and host_mtu of its own -device virtio-net-pci: change them there \
                     too"
                        .to_owned(),
                );
            }
        }
        if let Some(mtu) = set.mtu.filter(|mtu| Some(*mtu) < mtu_before) {
            notes.push(format!(
                "a VMM that asks for a larger MTU than {mtu} (QEMU: host_mtu) is refused when it connects next, and its guest has \
                 no network: start it with host_mtu={mtu}"
            ));
        }
        let mut changed = json!(set);
        if let Value::Object(changed) = &mut changed {
            changed.remove("name");
        }
        let applied = taking.not_in_force().is_empty();
        let details = json!({ "applied": applied, "set": changed });
        self.events.push("dev.changed", Some(&set.name), details);
        Ok((taking, notes))
    }

    /// The MTU that the connected front-end has set or will set, as far as that is known, and who it is.
    fn mtu_in_use(&mut self, id: u64) -> Option<(u16, String)> {
        let device = self.registry.by_id(id)?;
        let connection = device.connection.as_ref().filter(|_| device.netdev.is_none())?;
        Some((connection.mtu?, connection.caller.to_string()))
    }

    /// Moves every group of a device to one core, under traffic if there is any.
    fn move_device(&mut self, id: u64, core: usize) {
        let Some(device) = self.registry.by_id(id) else { return };
        let before = device.serve_by(core);
        // Its own from now on, if it had that of its management device.
        let had_own = !std::mem::replace(&mut device.shares_core, false);
        if had_own {
            self.placement.release(&before);
        }
        let _ = self.placement.place(before.len(), Some(core), None);
    }

    /// A device that was given no core is served by that of its management device, if its devices share one.
    pub(crate) fn share_core(&mut self, id: u64) {
        let Some(device) = self.registry.by_id(id) else { return };
        let (mgmtdev, has_own) = (device.entry.mgmtdev.clone(), device.entry.core.is_some());
        if has_own || device.shares_core {
            return;
        }
        let shared = self.registry.mgmtdev(&mgmtdev).ok().and_then(|mgmtdev| mgmtdev.device.shared_core());
        let Some(core) = shared else { return };
        if let Some(device) = self.registry.by_id(id) {
            device.shares_core = true;
            let before = device.serve_by(core);
            self.placement.release(&before);
        }
    }

    /// Keeps what operators added, as it is now. While a file is applied, nothing is written: that is done behind it.
    pub(crate) fn keep(&mut self) -> Result<(), Fault> {
        self.keep_without(None)
    }

    pub(crate) fn keep_without(&mut self, name: Option<&str>) -> Result<(), Fault> {
        if self.is_applying {
            return Ok(());
        }
        let generation = self.generation + 1;
        // A directory that was just taken away is no reason to refuse a change.
        for finding in self.state.as_mut().map(StateDir::look_after).unwrap_or_default() {
            if let Finding::Remade { what, path } = finding {
                self.tell_remade(None, what, &path);
            }
        }
        if let Some(state) = &mut self.state {
            let made = self.registry.devices().filter(|device| device.origin == Origin::Operator);
            let absent = self.absent.iter().filter(|absent| absent.origin == Origin::Operator);
            let devices = made
                .map(|device| &device.entry)
                .chain(absent.map(|absent| &absent.entry))
                .filter(|entry| Some(entry.name.as_str()) != name)
                .cloned()
                .collect();
            let mgmtdevs = self.registry.mgmtdevs().filter(|mgmtdev| mgmtdev.origin == MgmtOrigin::Operator);
            let mut mgmtdevs: Vec<MgmtEntry> = mgmtdevs
                .map(|mgmtdev| MgmtEntry {
                    name: mgmtdev.device.info().name,
                    attributes: mgmtdev.asked.clone(),
                })
                .collect();
            let absent = self.absent_mgmtdevs.iter().filter(|absent| absent.origin == MgmtOrigin::Operator);
            let absent = absent.map(|absent| &absent.entry);
            let absent = absent.filter(|entry| mgmtdevs.iter().all(|other| other.name != entry.name));
            let absent: Vec<MgmtEntry> = absent.cloned().collect();
            mgmtdevs.extend(absent);
            let ports = self.ports.iter().filter(|port| port.origin == MgmtOrigin::Operator);
            let ports = ports.map(|port| &port.entry).chain(&self.kept_ports).cloned().collect();
            state.write(&Kept::new(generation, mgmtdevs, ports, devices))?;
        }
        self.generation = generation;
        Ok(())
    }
}
