//! The checks that a request for a device or a management device must pass, in the order of the kernel's vDPA, and what it
//! asks for.

use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

use ringway_pmd::net::tap::namespace_path;
use ringway_pmd::net::{F_MAC, F_MQ, F_MTU, MAX_MTU, MIN_MTU, Mac};
use ringway_pmd::vdpa::{AttributeInfo, Class, ClassSpec, DeviceSpec, MgmtInfo, NetSpec, Planned, Unfit};
use ringway_ring::features::Features;

use crate::devices::known::{Known, no_such_mgmtdev};
use crate::devices::naming::check_name;
use crate::fault::{Fault, Kind, nearest, printable};
use crate::operator::api::{DeviceEntry, FLAVOUR, MgmtEntry, Mode, PortEntry};
use crate::operator::names::{feature_names, parse_features};

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

/// Checks a request for a device against what its management device says of itself, without making anything.
///
/// # Errors
/// The first check that fails, in the order of the kernel's vDPA.
pub fn check_entry(entry: &DeviceEntry, known: &Known) -> Result<DeviceSpec, Fault> {
    check_name(&entry.name)?;
    let mac = entry.mac.as_deref().map(check_mac).transpose()?;
    if let Some(mtu) = entry.mtu.filter(|mtu| !(MIN_MTU..=MAX_MTU).contains(mtu)) {
        let fault = Fault::usage(format!("mtu {mtu} is not {}", number_of("mtu")));
        return Err(fault.at("mtu").expected([number_of("mtu")]));
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
            .expected(["BUS/NAME", "NAME"])
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
    let shares_core = known.kind(&entry.mgmtdev).is_ok_and(|(kind, _)| kind.shares_core && !kind.takes_cores);
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
    (info.check)(&info.name, &spec).map_err(|why| with_values(unfit(why), &info.attributes))?;
    Ok(spec)
}

/// What a driver says can never be.
fn unfit(unfit: Unfit) -> Fault {
    Fault::usage(unfit.why).at(unfit.attribute)
}

/// Adds what the value of the attribute at fault has to look like, as it is declared.
fn with_values(fault: Fault, declared: &[AttributeInfo]) -> Fault {
    let value = declared.iter().find(|own| Some(own.name) == fault.path.as_deref()).map(|own| own.value);
    match value {
        Some(value) if fault.expected_words().is_empty() => fault.expected(value.split('|')),
        _ => fault,
    }
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
        let fault = Fault::usage(format!("{} has no attribute `{}`", entry.name, printable(name)))
            .unknown_key(name, own.clone());
        return Err(match nearest(name, own.clone()) {
            Some(near) => fault.hint(format!("did you mean {near}?")),
            None if own.clone().next().is_none() => fault.hint(format!("{} has none", entry.name)),
            None => fault.hint(format!("one of: {}", own.collect::<Vec<_>>().join(", "))),
        });
    }
    (kind.check)(rest, &entry.attributes).map_err(|why| with_values(unfit(why), &kind.attributes))
}

/// Checks a request for a port against what its parent says of itself, without making anything.
///
/// # Errors
/// The first check that fails.
pub fn check_port_entry(entry: &PortEntry, known: &Known) -> Result<(), Fault> {
    let name = &entry.mgmtdev;
    if name.is_empty() {
        let can = known.kinds.iter().filter(|kind| kind.device.functions.is_some());
        let can: Vec<String> = can.map(|kind| format!("{}/NAME", kind.name)).collect();
        return Err(Fault::usage("management device handle not set.").at("mgmtdev").hint(can.join(", ")));
    }
    if entry.flavour != FLAVOUR {
        let why = format!("flavour {} cannot be added", printable(&entry.flavour));
        let fault = Fault::usage(why).at("flavour").expected([FLAVOUR]);
        return Err(fault.hint(format!("flavour {FLAVOUR}")));
    }
    let info = known.find(name);
    let info = info.ok_or_else(|| no_such_mgmtdev(name, known).at("mgmtdev"))?;
    let Some(functions) = &info.functions else {
        return Err(Fault::usage(format!("{name} cannot be divided"))
            .at("mgmtdev")
            .hint("ringway mgmtdev show: those that can list attributes of a function"));
    };
    for attribute in entry.attributes.keys() {
        let own = || functions.attributes.iter().map(|own| own.name);
        if own().any(|own| own == attribute) {
            continue;
        }
        let why = format!("a function of {name} has no attribute `{}`", printable(attribute));
        let fault = Fault::usage(why).unknown_key(attribute, own().chain(["state"]));
        return Err(fault.hint(match nearest(attribute, own()) {
            Some(near) => format!("did you mean {near}?"),
            None => format!("one of: state, {}", own().collect::<Vec<_>>().join(", ")),
        }));
    }
    (functions.check)(&entry.attributes).map_err(|why| with_values(unfit(why), &functions.attributes))
}

/// The management device of a port is not in its file.
pub(crate) fn no_parent(name: &str) -> Fault {
    let why = format!("no [[mgmtdev]] of this file is named {name}");
    Fault::not_found(why).hint(format!("[[mgmtdev]] with name = \"{name}\""))
}

/// Checks a port beside others that are made before it, on management devices of kinds that are made with these.
pub(crate) fn check_port_beside<'a>(
    entry: &PortEntry,
    before: impl IntoIterator<Item = &'a PortEntry>,
    mgmtdevs: &[MgmtEntry],
    known: &Known,
) -> Result<(), Fault> {
    // A driver's own says what is left once it is there.
    if known.kind(&entry.mgmtdev).is_err() {
        return Ok(());
    }
    let Some(parent) = mgmtdevs.iter().find(|mgmtdev| mgmtdev.name == entry.mgmtdev) else {
        return Err(no_parent(&entry.mgmtdev).at("mgmtdev"));
    };
    let Some(functions) = known.find(&entry.mgmtdev).and_then(|info| info.functions) else { return Ok(()) };
    let others = before.into_iter().filter(|other| other.mgmtdev == entry.mgmtdev);
    let others = others.map(|other| &other.attributes).collect();
    let planned = Planned { parent: &parent.attributes, others, last: (entry.pfnum, &entry.attributes) };
    (functions.fit)(&planned).map_err(|why| Fault { kind: Kind::Conflict, ..unfit(why) })
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
        let fault = Fault::usage(format!("{} has no attribute `{}`", info.name, printable(name)))
            .unknown_key(name, own.clone().chain(ATTRIBUTES));
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

/// The management device that a device is to be the uplink of, in place of a socket.
pub(crate) fn uplink_of(entry: &DeviceEntry) -> Option<&str> {
    entry.attributes.get("uplink").map(String::as_str)
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
    if let (Some(function), Some(word)) = (uplink_of(entry), given) {
        let why = format!("{word}: {function} is the bridge's uplink and has no socket");
        return Err(Fault::usage(why).at(word));
    }
    if entry.mode == Some(Mode::Netdev) {
        return Err(Fault::usage("mode netdev is that of a device with tap IFNAME").at("mode"));
    }
    if entry.mode == Some(Mode::Uplink) {
        return Err(Fault::usage("mode uplink is that of a device with uplink pci/ADDRESS").at("mode"));
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
            .expected(["an Ethernet address"])
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
    use crate::devices::known::tests::known;

    fn entry() -> DeviceEntry {
        DeviceEntry { name: "vm0".into(), mgmtdev: "sim/net".into(), ..DeviceEntry::default() }
    }

    fn refusal(entry: DeviceEntry) -> String {
        let fault = check_entry(&entry, &known()).unwrap_err();
        format!("{}: {}", fault.path.unwrap_or_default(), fault.message)
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
