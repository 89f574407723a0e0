//! The registry: management devices that drivers registered, and the devices made by them.

use std::collections::{BTreeMap, HashMap};
use std::fmt;

use ringway_pmd::bus::BusInfo;
use ringway_pmd::vdpa::{DeviceHost, DeviceSpec, ManagementDevice, MgmtKind, VdpaDevice};

use crate::devices::addresses::Addresses;
use crate::devices::checks::uplink_of;
use crate::devices::device::Device;
use crate::devices::known::{Known, KnownBus, no_such_mgmtdev};
use crate::fault::{Fault, nearest, printable};
use crate::operator::api::DeviceEntry;

/// Who asked for a management device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MgmtOrigin {
    /// A driver registered it.
    Driver,
    /// Its first device: it goes with its last.
    Device,
    /// An operator: kept in the state directory.
    Operator,
    /// The configuration file.
    Config,
}

/// A management device.
pub(crate) struct Mgmtdev {
    pub(crate) device: Box<dyn ManagementDevice>,
    pub(crate) origin: MgmtOrigin,
    /// Attributes that were asked for.
    pub(crate) asked: BTreeMap<String, String>,
}

/// Management devices and devices. Owned by the control thread; no lock.
pub(crate) struct Registry {
    mgmtdevs: Vec<Mgmtdev>,
    kinds: Vec<Box<dyn MgmtKind>>,
    buses: Vec<BusInfo>,
    /// By name, those that a driver could not make of what a bus has, and why.
    unusable: BTreeMap<String, Fault>,
    addresses: Addresses,
    devices: BTreeMap<u64, Device>,
    by_name: HashMap<String, u64>,
    next: u64,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").field("devices", &self.by_name.len()).finish_non_exhaustive()
    }
}

impl Registry {
    /// With what drivers register. Two of one name are the program's error and refused.
    pub(crate) fn new(
        mgmtdevs: Vec<Box<dyn ManagementDevice>>,
        kinds: Vec<Box<dyn MgmtKind>>,
        buses: Vec<BusInfo>,
        addresses: Addresses,
    ) -> Result<Registry, Fault> {
        let mut registry = Registry {
            mgmtdevs: Vec::new(),
            kinds,
            buses,
            unusable: BTreeMap::new(),
            addresses,
            devices: BTreeMap::new(),
            by_name: HashMap::new(),
            next: 1,
        };
        for device in mgmtdevs {
            registry.register(device).map_err(|(_, fault)| fault)?;
        }
        Ok(registry)
    }

    /// A driver's management device comes in; one of a name that there is comes back.
    #[expect(clippy::result_large_err, reason = "once for each that a bus announces")]
    pub(crate) fn register(
        &mut self,
        device: Box<dyn ManagementDevice>,
    ) -> Result<(), (Box<dyn ManagementDevice>, Fault)> {
        let name = device.info().name;
        if self.has_mgmtdev(&name) {
            let fault = Fault::conflict(format!("two drivers register a management device {name}"));
            return Err((device, fault));
        }
        self.unusable.remove(&name);
        self.mgmtdevs.push(Mgmtdev { device, origin: MgmtOrigin::Driver, asked: BTreeMap::new() });
        Ok(())
    }

    /// A driver could not make one of what a bus has; None: the bus has that no more.
    pub(crate) fn note_unusable(&mut self, name: &str, why: Option<Fault>) {
        match why {
            Some(why) => self.unusable.insert(name.to_owned(), why),
            None => self.unusable.remove(name),
        };
    }

    /// Those that a driver could not make, and why.
    pub(crate) fn unusable(&self) -> &BTreeMap<String, Fault> {
        &self.unusable
    }

    pub(crate) fn mgmtdevs(&self) -> impl Iterator<Item = &Mgmtdev> + '_ {
        self.mgmtdevs.iter()
    }

    /// What addresses are made of that were not given is another machine's as well.
    pub(crate) fn has_copied_addresses(&self) -> bool {
        self.addresses.is_copied()
    }

    pub(crate) fn known(&self) -> Known {
        Known {
            mgmtdevs: self.mgmtdevs.iter().map(|mgmtdev| mgmtdev.device.info()).collect(),
            kinds: self.kinds.iter().map(|kind| kind.info()).collect(),
            buses: self.buses.iter().copied().map(KnownBus::bare).collect(),
            unusable: self.unusable.clone(),
            addresses: self.addresses.clone(),
        }
    }

    pub(crate) fn has_mgmtdev(&self, name: &str) -> bool {
        self.mgmtdevs.iter().any(|mgmtdev| mgmtdev.device.info().name == name)
    }

    /// The management device of this name.
    pub(crate) fn mgmtdev(&mut self, name: &str) -> Result<&mut Mgmtdev, Fault> {
        let at = self.mgmtdevs.iter().position(|mgmtdev| mgmtdev.device.info().name == name);
        match at {
            Some(at) => Ok(&mut self.mgmtdevs[at]),
            None => Err(no_such_mgmtdev(name, &self.known())),
        }
    }

    /// Makes `KIND/NAME`.
    pub(crate) fn make_mgmtdev(
        &mut self,
        name: &str,
        attributes: &BTreeMap<String, String>,
        core: usize,
        origin: MgmtOrigin,
    ) -> Result<(), Fault> {
        let known = self.known();
        let (info, rest) = known.kind(name)?;
        let Some(kind) = self.kinds.iter_mut().find(|kind| kind.info().name == info.name) else {
            return Err(no_such_mgmtdev(name, &known));
        };
        let device = kind.make(rest, attributes, core).map_err(Fault::from)?;
        self.mgmtdevs.push(Mgmtdev { device, origin, asked: attributes.clone() });
        Ok(())
    }

    /// Takes one out.
    pub(crate) fn take_mgmtdev(&mut self, name: &str) -> Option<Mgmtdev> {
        let at = self.mgmtdevs.iter().position(|mgmtdev| mgmtdev.device.info().name == name)?;
        Some(self.mgmtdevs.remove(at))
    }

    pub(crate) fn remove_mgmtdev(&mut self, name: &str) {
        self.mgmtdevs.retain(|mgmtdev| mgmtdev.device.info().name != name);
    }

    /// The names of all management devices.
    pub(crate) fn mgmtdev_names(&self) -> Vec<String> {
        self.mgmtdevs.iter().map(|mgmtdev| mgmtdev.device.info().name).collect()
    }

    /// The names of the devices of a management device, in the order in which they were added.
    pub(crate) fn made_by(&self, mgmtdev: &str) -> Vec<String> {
        let made = self.devices.values().filter(|device| device.entry.mgmtdev == mgmtdev);
        made.map(|device| device.entry.name.clone()).collect()
    }

    /// The names of the devices whose uplink a management device is: one at most.
    pub(crate) fn uplinks_by(&self, mgmtdev: &str) -> Vec<String> {
        let uplinks = self.devices.values().filter(|device| uplink_of(&device.entry) == Some(mgmtdev));
        uplinks.map(|device| device.entry.name.clone()).collect()
    }

    /// Makes the driver's device for an entry that was checked.
    pub(crate) fn create(
        &mut self,
        entry: &DeviceEntry,
        spec: &DeviceSpec,
        host: DeviceHost,
    ) -> Result<Box<dyn VdpaDevice>, Fault> {
        let function = match uplink_of(entry) {
            None => None,
            Some(name) => {
                let mgmtdev = self.mgmtdev(name).map_err(|fault| fault.at("uplink"))?;
                Some(mgmtdev.device.uplink().map_err(|error| Fault::from(error).at("uplink"))?)
            }
        };
        let mgmtdev = &mut self.mgmtdev(&entry.mgmtdev)?.device;
        let made = match function {
            None => mgmtdev.create(spec, host),
            Some(function) => mgmtdev.create_uplink(spec, function, host),
        };
        made.map_err(Fault::from)
    }

    pub(crate) fn is_taken(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The number under which the next device goes in.
    pub(crate) fn next_id(&mut self) -> u64 {
        self.next += 1;
        self.next - 1
    }

    pub(crate) fn insert(&mut self, device: Device) {
        self.by_name.insert(device.entry.name.clone(), device.id);
        self.devices.insert(device.id, device);
    }

    pub(crate) fn remove(&mut self, id: u64) -> Option<Device> {
        let device = self.devices.remove(&id)?;
        self.by_name.remove(&device.entry.name);
        Some(device)
    }

    pub(crate) fn id_of(&self, name: &str) -> Result<u64, Fault> {
        self.by_name.get(name).copied().ok_or_else(|| {
            let fault = Fault::not_found(format!("there is no device `{}`", printable(name))).at("name");
            match nearest(name, self.by_name.keys().map(String::as_str)) {
                Some(near) => fault.hint(format!("did you mean {near}?")),
                None => fault.hint("ringway dev show"),
            }
        })
    }

    pub(crate) fn find(&self, name: &str) -> Result<&Device, Fault> {
        let id = self.id_of(name)?;
        self.devices.get(&id).ok_or_else(|| Fault::not_found("the device is gone"))
    }

    pub(crate) fn by_id(&mut self, id: u64) -> Option<&mut Device> {
        self.devices.get_mut(&id)
    }

    /// Every device in the order in which they were added.
    pub(crate) fn devices(&self) -> impl Iterator<Item = &Device> {
        self.devices.values()
    }

    pub(crate) fn ids(&self) -> Vec<u64> {
        self.devices.keys().copied().collect()
    }
}
