//! The registry: management devices that drivers registered, and the devices made by them; and the checks that a
//! request for a new device must pass, in the order of the kernel's vDPA.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use ringway_pmd::net::tap::namespace_path;
use ringway_pmd::net::{F_MAC, F_MQ, F_MTU, MAX_MTU, MIN_MTU, Mac};
use ringway_pmd::vdpa::{
    Class, ClassSpec, DeviceSpec, ManagementDevice, MgmtInfo, MgmtKind, MgmtKindInfo, NetSpec, Unfit,
};
use ringway_ring::features::Features;

use crate::devices::addresses::Addresses;
use crate::devices::device::Device;
use crate::fault::{Fault, nearest, printable};
use crate::operator::api::{DeviceEntry, MgmtEntry, Mode};
use crate::operator::names::{feature_names, parse_features};

/// The longest name of a device, in bytes.
pub const LONGEST_NAME: usize = 64;

/// What there is to make devices with.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Management devices that are there.
    pub mgmtdevs: Vec<MgmtInfo>,
    /// Kinds, of which any name makes one.
    pub kinds: Vec<MgmtKindInfo>,
    /// What addresses are made of that are not given.
    pub addresses: Addresses,
}

impl Known {
    /// The management device of this name: one that is there, or one that would be.
    pub fn find(&self, name: &str) -> Option<MgmtInfo> {
        let there = self.mgmtdevs.iter().find(|info| info.name == name).cloned();
        there.or_else(|| {
            let (kind, _) = self.kind(name).ok()?;
            Some(MgmtInfo { name: name.to_owned(), ..kind.device.clone() })
        })
    }

    /// The kind of `KIND/NAME`, and the name.
    ///
    /// # Errors
    /// No kind makes it, or the name cannot be one.
    pub fn kind<'n>(&self, name: &'n str) -> Result<(&MgmtKindInfo, &'n str), Fault> {
        let found = name.split_once('/');
        let found =
            found.and_then(|(kind, rest)| Some((self.kinds.iter().find(|info| info.name == kind)?, rest)));
        let (kind, rest) = found.ok_or_else(|| no_such_mgmtdev(name, self))?;
        if rest.is_empty() {
            return Err(Fault::usage(format!("{name} lacks a name behind the slash"))
                .at("mgmtdev")
                .hint(format!("{}/NAME, a name of your choice", kind.name)));
        }
        check_name_of("a management device", rest).map_err(|fault| fault.at("mgmtdev"))?;
        Ok((kind, rest))
    }
}

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
        addresses: Addresses,
    ) -> Result<Registry, Fault> {
        let mut registry = Registry {
            mgmtdevs: Vec::new(),
            kinds,
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
    pub(crate) fn register(
        &mut self,
        device: Box<dyn ManagementDevice>,
    ) -> Result<(), (Box<dyn ManagementDevice>, Fault)> {
        let name = device.info().name;
        if self.has_mgmtdev(&name) {
            let fault = Fault::conflict(format!("two drivers register a management device {name}"));
            return Err((device, fault));
        }
        self.mgmtdevs.push(Mgmtdev { device, origin: MgmtOrigin::Driver, asked: BTreeMap::new() });
        Ok(())
    }

    pub(crate) fn mgmtdevs(&self) -> impl Iterator<Item = &Mgmtdev> + '_ {
        self.mgmtdevs.iter()
    }

    pub(crate) fn known(&self) -> Known {
        Known {
            mgmtdevs: self.mgmtdevs.iter().map(|mgmtdev| mgmtdev.device.info()).collect(),
            kinds: self.kinds.iter().map(|kind| kind.info()).collect(),
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

    /// The names of the devices of a management device, in the order in which they were added.
    pub(crate) fn made_by(&self, mgmtdev: &str) -> Vec<String> {
        let made = self.devices.values().filter(|device| device.entry.mgmtdev == mgmtdev);
        made.map(|device| device.entry.name.clone()).collect()
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

fn no_such_mgmtdev(name: &str, known: &Known) -> Fault {
    let fault = Fault::not_found(format!(
        "Fail to find the specified management device: there is no `{}`",
        printable(name)
    ))
    .at("mgmtdev");
    // A kind that was written wrong.
    let (kind, rest) = name.split_once('/').unwrap_or((name, ""));
    let is_kind = known.kinds.iter().any(|info| info.name == kind);
    if let Some(near) = nearest(kind, known.kinds.iter().map(|info| info.name))
        .filter(|near| !is_kind && check_name_of(near, rest).is_ok())
    {
        return fault.hint(format!("did you mean {near}/{rest}?"));
    }
    if is_kind {
        return fault.hint("ringway mgmtdev show");
    }
    match nearest(name, known.mgmtdevs.iter().map(|info| info.name.as_str())) {
        Some(near) => fault.hint(format!("did you mean {near}?")),
        None => fault.hint("ringway mgmtdev show"),
    }
}

/// What the number of an attribute must be, in words.
pub(crate) fn number_of(key: &str) -> String {
    match key {
        "mtu" => format!("a whole number from {MIN_MTU} to {MAX_MTU}"),
        "max_vqp" => "a whole number, 1 or more: the pairs of queues".to_owned(),
        "core" | "cores" => "a whole number, the number of a core".to_owned(),
        "qidx" => "a whole number, the number of a queue".to_owned(),
        _ => "a whole number".to_owned(),
    }
}

/// Checks a device's name: it becomes the name of a socket and of a file.
///
/// # Errors
/// It is empty, too long, or has characters other than ASCII letters, digits, `.`, `_` and `-`; or it begins with one
/// of the last two or with a point.
pub fn check_name(name: &str) -> Result<(), Fault> {
    if name.is_empty() {
        return Err(Fault::usage("device name is not set.").at("name"));
    }
    check_name_of("a device", name)
}

/// Checks the name of `what` ("a device"), which is not empty.
fn check_name_of(what: &str, name: &str) -> Result<(), Fault> {
    if name.len() > LONGEST_NAME {
        return Err(Fault::usage(format!(
            "{what}'s name has at most {LONGEST_NAME} bytes, this has {}",
            name.len()
        ))
        .at("name"));
    }
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if name.is_empty() || !name.bytes().all(legal) || name.starts_with(['.', '-']) {
        return Err(Fault::usage(format!("`{}` cannot be {what}'s name", printable(name)))
            .at("name")
            .hint("ASCII letters, digits, `.`, `_` and `-`, beginning with a letter, a digit or `_`"));
    }
    Ok(())
}

/// Checks a request for a device against what its management device says of itself, without making anything.
///
/// # Errors
/// The first check that fails, in the order of the kernel's vDPA.
pub fn check_entry(entry: &DeviceEntry, known: &Known) -> Result<DeviceSpec, Fault> {
    check_name(&entry.name)?;
    let mac = entry.mac.as_deref().map(check_mac).transpose()?;
    if let Some(mtu) = entry.mtu.filter(|mtu| !(MIN_MTU..=MAX_MTU).contains(mtu)) {
        return Err(Fault::usage(format!("mtu {mtu} is not {}", number_of("mtu"))).at("mtu"));
    }
    if entry.max_vqp == Some(0) {
        return Err(Fault::usage("At least one pair of VQs is required").at("max_vqp"));
    }
    // The class decides how features are named; an unknown management device is told after the features, as in the
    // kernel, unless the features need it to be understood.
    let info = known.find(&entry.mgmtdev);
    let class = info.as_ref().map_or(Class::Net, |info| info.class);
    let features = entry
        .device_features
        .as_deref()
        .map(|text| parse_features(class, text))
        .transpose()
        .map_err(|why| Fault::usage(why).at("device_features"))?;
    if let Some(features) = features {
        let needs = |given: bool, bit: Features| if given { bit } else { Features::NONE };
        let needed = needs(mac.is_some(), F_MAC)
            | needs(entry.mtu.is_some(), F_MTU)
            | needs(entry.max_vqp.is_some_and(|pairs| pairs > 1), F_MQ);
        let missing = needed.without(features);
        if missing != Features::NONE {
            return Err(Fault::usage(format!("Missing features {:#x} for provided attributes", missing.0))
                .at("device_features")
                .hint(format!("add {} to device_features", joined(class, missing))));
        }
    }
    let slashes = entry.mgmtdev.matches('/').count();
    if entry.mgmtdev.is_empty() {
        return Err(Fault::usage("management device handle not set.")
            .at("mgmtdev")
            .hint("ringway mgmtdev show"));
    }
    if slashes > 1 {
        return Err(Fault::usage("Wrong vdpa mgmtdev identification string format")
            .at("mgmtdev")
            .hint("\"mgmtdev_bus_name/mgmtdev_name\" or \"mgmtdev_name\""));
    }
    let info = match info {
        Some(info) => &info.clone(),
        // The kind may be there and the name be none.
        None => {
            return Err(known
                .kind(&entry.mgmtdev)
                .err()
                .unwrap_or_else(|| no_such_mgmtdev(&entry.mgmtdev, known)));
        }
    };
    let shares_core = known.kind(&entry.mgmtdev).is_ok_and(|(kind, _)| kind.shares_core);
    if let Some(core) = entry.core.filter(|_| shares_core) {
        return Err(Fault::usage(format!("{} serves all its devices on one core", info.name))
            .at("core")
            .hint(format!("ringway mgmtdev set name {} core {core}", info.name)));
    }
    if info.class != Class::Net && (mac.is_some() || entry.mtu.is_some() || entry.max_vqp.is_some()) {
        return Err(Fault::usage("All provided attributes are not supported").at("mac").hint(format!(
            "{} makes {} devices: mac, mtu and max_vqp are for net",
            info.name,
            info.class.class_name()
        )));
    }
    if let Some(extra) =
        features.map(|wanted| wanted.without(info.features)).filter(|extra| *extra != Features::NONE)
    {
        return Err(Fault::usage(format!("{} does not offer {}", info.name, joined(class, extra)))
            .at("device_features")
            .hint("ringway mgmtdev show"));
    }
    if let Some(pairs) = entry.max_vqp.filter(|pairs| u32::from(*pairs) * 2 > info.max_supported_vqs) {
        return Err(Fault::usage(format!(
            "max_vqp {pairs} needs {} queues; {} supports {}",
            u32::from(pairs) * 2,
            info.name,
            info.max_supported_vqs
        ))
        .at("max_vqp"));
    }
    check_attributes(entry.attributes.keys().map(String::as_str), info)?;
    check_socket(entry)?;
    let class = match info.class {
        Class::Net => {
            let seed = known.addresses.seed_of(&entry.name);
            ClassSpec::Net(NetSpec { mac, seed, mtu: entry.mtu, max_vqp: entry.max_vqp })
        }
        Class::Block => ClassSpec::Block,
    };
    let spec = DeviceSpec { name: entry.name.clone(), features, class, attributes: entry.attributes.clone() };
    (info.check)(&info.name, &spec).map_err(unfit)?;
    Ok(spec)
}

/// What a driver says can never be.
fn unfit(unfit: Unfit) -> Fault {
    Fault::usage(unfit.why).at(unfit.attribute)
}

/// Checks a request for a management device, or changes to one, against what its kind says of itself.
///
/// # Errors
/// There is no such kind, the name cannot be one, or the kind has no such attribute or does not take its value.
pub fn check_mgmt_entry(entry: &MgmtEntry, known: &Known) -> Result<(), Fault> {
    if entry.name.is_empty() {
        return Err(Fault::usage("management device handle not set.")
            .at("name")
            .hint("name KIND/NAME, as in bridge/br0"));
    }
    if known.mgmtdevs.iter().any(|info| info.name == entry.name) && known.kind(&entry.name).is_err() {
        return Err(Fault::usage(format!("{} is a driver's own and has no settings", entry.name)).at("name"));
    }
    let (kind, rest) = known.kind(&entry.name).map_err(|fault| fault.at("name"))?;
    for name in entry.attributes.keys() {
        let own = kind.attributes.iter().map(|attribute| attribute.name);
        if own.clone().any(|attribute| attribute == name) {
            continue;
        }
        let fault = Fault::usage(format!("{} has no attribute `{}`", entry.name, printable(name))).at(name);
        return Err(match nearest(name, own.clone()) {
            Some(near) => fault.hint(format!("did you mean {near}?")),
            None if own.clone().next().is_none() => fault.hint(format!("{} has none", entry.name)),
            None => fault.hint(format!("one of: {}", own.collect::<Vec<_>>().join(", "))),
        });
    }
    (kind.check)(rest, &entry.attributes).map_err(unfit)
}

/// Checks that the driver declared these attributes.
pub(crate) fn check_attributes<'a>(
    names: impl IntoIterator<Item = &'a str>,
    info: &MgmtInfo,
) -> Result<(), Fault> {
    for name in names {
        if info.attributes.iter().any(|attribute| attribute.name == name) {
            continue;
        }
        let own = info.attributes.iter().map(|attribute| attribute.name);
        let fault = Fault::usage(format!("{} has no attribute `{}`", info.name, printable(name))).at(name);
        return Err(match nearest(name, own.chain(ATTRIBUTES)) {
            Some(near) => fault.hint(format!("did you mean {near}?")),
            None => fault.hint(format!("ringway mgmtdev show {}", info.name)),
        });
    }
    Ok(())
}

/// The kernel interface that a device is to be the other side of, or to bring with it: its name, and the file of its network
/// namespace.
pub(crate) fn host_interface(entry: &DeviceEntry) -> Option<(&str, PathBuf)> {
    let ifname = entry.attributes.get("tap").map(String::as_str).or(entry.mgmtdev.strip_prefix("tap/"))?;
    Some((ifname, namespace_path(entry.attributes.get("netns").map(String::as_str))))
}

/// The device that comes by itself with a guest's, of the interface that joins the two.
pub(crate) fn implied_name(entry: &DeviceEntry) -> Option<&str> {
    entry.mgmtdev.strip_prefix("tap/").filter(|_| !entry.attributes.contains_key("tap"))
}

fn check_socket(entry: &DeviceEntry) -> Result<(), Fault> {
    let words = [
        (entry.socket.is_some(), "socket"),
        (entry.mode.is_some(), "mode"),
        (entry.owner.is_some(), "owner"),
        (entry.group.is_some(), "group"),
    ];
    let given = words.iter().find(|(is_given, _)| *is_given).map(|(_, word)| *word);
    if let (Some(ifname), Some(word)) = (entry.attributes.get("tap"), given) {
        let why = format!("{word}: {ifname} is the host's interface and has no socket");
        return Err(Fault::usage(why).at(word));
    }
    if entry.mode == Some(Mode::Netdev) {
        return Err(Fault::usage("mode netdev is that of a device with tap IFNAME").at("mode"));
    }
    if entry.mode == Some(Mode::Client) && (entry.owner.is_some() || entry.group.is_some()) {
        let why = "owner and group are of a socket that Ringway makes; in client mode the VMM does";
        return Err(Fault::usage(why).at("mode"));
    }
    if let Some(path) = &entry.socket {
        crate::host::endpoint::check_path(path)?;
        if path.as_os_str().as_bytes().ends_with(b"/") {
            return Err(Fault::usage("the socket's path names a directory").at("socket"));
        }
    }
    Ok(())
}

/// Reads an Ethernet address that a device may have.
pub(crate) fn check_mac(text: &str) -> Result<Mac, Fault> {
    let mac: Mac = text.parse().map_err(|_| {
        Fault::usage(format!("`{}` is not a MAC address", printable(text)))
            .at("mac")
            .hint("six pairs of hex digits, as in 52:54:00:12:34:56")
    })?;
    if mac.is_multicast() || mac == Mac([0; 6]) {
        return Err(Fault::usage(format!("{mac} is not an address that one device can have"))
            .at("mac")
            .hint("an address whose first byte is even, and not all zeros"));
    }
    Ok(mac)
}

fn joined(class: Class, features: Features) -> String {
    feature_names(class, features).iter().map(|name| name.text()).collect::<Vec<_>>().join(",")
}

/// The attributes that every device takes.
pub(crate) const ATTRIBUTES: [&str; 11] = [
    "name",
    "mgmtdev",
    "mac",
    "mtu",
    "max_vqp",
    "device_features",
    "socket",
    "mode",
    "core",
    "owner",
    "group",
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Kind;
    use ringway_pmd::vdpa::AttributeInfo;

    fn known() -> Known {
        let mgmtdevs = vec![MgmtInfo {
            name: "sim/net".into(),
            class: Class::Net,
            max_supported_vqs: 32,
            max_devices: None,
            features: Features::VERSION_1 | F_MAC | F_MTU | F_MQ,
            attributes: vec![AttributeInfo { name: "swap", value: "on|off", help: "" }],
            summary: "",
            check: |_, _| Ok(()),
        }];
        Known { mgmtdevs, ..crate::devices::drivers::known() }
    }

    fn entry() -> DeviceEntry {
        DeviceEntry { name: "vm0".into(), mgmtdev: "sim/net".into(), ..DeviceEntry::default() }
    }

    fn refusal(entry: DeviceEntry) -> String {
        let fault = check_entry(&entry, &known()).unwrap_err();
        format!("{}: {}", fault.path.unwrap_or_default(), fault.message)
    }

    #[test]
    fn names_that_could_leave_the_directory_or_confuse_a_shell_are_refused() {
        let long = "x".repeat(65);
        for name in
            ["", "../x", "a/b", ".", "..", ".hidden", "-rf", "a b", "vm\n0", "naïve", "日本", long.as_str()]
        {
            assert_eq!(check_name(name).unwrap_err().kind, Kind::Usage, "{name:?}");
        }
        for name in ["vm0", "_x", "0", "a.b-c_d", &long[..64]] {
            check_name(name).unwrap();
        }
    }

    #[test]
    fn management_devices_are_named_as_what_they_are() {
        let refusal = |mgmtdev: &str| {
            let fault =
                check_entry(&DeviceEntry { mgmtdev: mgmtdev.into(), ..entry() }, &known()).unwrap_err();
            format!("{} / {}", fault.message, fault.hint.unwrap_or_default())
        };
        assert_eq!(
            refusal("bridge/"),
            "bridge/ lacks a name behind the slash / bridge/NAME, a name of your choice"
        );
        assert!(
            refusal(&format!("link/{}", "x".repeat(65)))
                .starts_with("a management device's name has at most")
        );
        assert!(refusal("link/a b").starts_with("`a b` cannot be a management device's name"));
        assert!(refusal("brigde/br0").ends_with("did you mean bridge/br0?"));
        // A name that could not be one either is no advice.
        assert!(!refusal("brigde/br 0").contains("did you mean"));
    }

    #[test]
    fn what_was_given_is_never_advised() {
        let set = |name: &str| {
            let entry = MgmtEntry { name: name.into(), attributes: [("core".into(), "1".into())].into() };
            check_mgmt_entry(&entry, &known()).unwrap_err().to_string()
        };
        assert_eq!(set("sim/net"), "error: sim/net is a driver's own and has no settings");
        let fault = no_such_mgmtdev("bridge/nosuch", &known());
        assert_eq!(fault.hint.as_deref(), Some("ringway mgmtdev show"));
    }

    #[test]
    fn good_entry_becomes_a_spec() {
        let spec = check_entry(
            &DeviceEntry {
                mac: Some("52:54:00:00:00:01".into()),
                mtu: Some(1500),
                max_vqp: Some(4),
                device_features: Some("MAC,MTU,MQ,VERSION_1".into()),
                attributes: [("swap".into(), "on".into())].into(),
                ..entry()
            },
            &known(),
        )
        .unwrap();
        let ClassSpec::Net(net) = spec.class else { panic!("{spec:?}") };
        assert_eq!((net.mtu, net.max_vqp), (Some(1500), Some(4)));
        assert_eq!(spec.features, Some(Features::VERSION_1 | F_MAC | F_MTU | F_MQ));
    }

    #[test]
    fn each_check_names_the_attribute_at_fault() {
        let with = |change: fn(&mut DeviceEntry)| {
            let mut entry = entry();
            change(&mut entry);
            refusal(entry)
        };
        assert_eq!(with(|e| e.mac = Some("1:2".into())), "mac: `1:2` is not a MAC address");
        assert!(
            with(|e| e.mac = Some("01:00:5e:00:00:01".into())).contains("not an address that one device")
        );
        for mtu in [0, 67, 9001, 65535] {
            let refused = refusal(DeviceEntry { mtu: Some(mtu), ..entry() });
            assert_eq!(refused, format!("mtu: mtu {mtu} is not a whole number from 68 to 9000"));
        }
        for mtu in [68, 69, 8999, 9000] {
            check_entry(&DeviceEntry { mtu: Some(mtu), ..entry() }, &known()).unwrap();
        }
        assert_eq!(with(|e| e.max_vqp = Some(0)), "max_vqp: At least one pair of VQs is required");
        assert_eq!(
            with(|e| e.max_vqp = Some(17)),
            "max_vqp: max_vqp 17 needs 34 queues; sim/net supports 32"
        );
        assert!(with(|e| e.mgmtdev = "a/b/c".into()).contains("identification string"));
        assert!(
            with(|e| e.mgmtdev = "sim/ner".into()).contains("Fail to find the specified management device")
        );
        assert_eq!(with(|e| e.mgmtdev = String::new()), "mgmtdev: management device handle not set.");
        assert!(with(|e| e.device_features = Some("CSUM".into())).contains("sim/net does not offer CSUM"));
        assert!(with(|e| e.socket = Some("rel".into())).contains("not absolute"));
        assert!(with(|e| e.socket = Some("/tmp/x/".into())).contains("directory"));
    }

    #[test]
    fn features_must_carry_the_attributes_given() {
        let mut asked = entry();
        asked.mtu = Some(1500);
        asked.device_features = Some("MAC".into());
        assert_eq!(refusal(asked), "device_features: Missing features 0x8 for provided attributes");
    }

    #[test]
    fn unknown_attribute_names_the_nearest() {
        let mut asked = entry();
        asked.attributes.insert("swab".into(), "on".into());
        let fault = check_entry(&asked, &known()).unwrap_err();
        assert_eq!(fault.hint.as_deref(), Some("did you mean swap?"));
    }
}
