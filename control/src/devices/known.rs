//! What there is to make devices with, for checks that need no daemon.

use std::collections::BTreeMap;

use ringway_pmd::bus::BusInfo;
use ringway_pmd::driver::Driver;
use ringway_pmd::vdpa::{AttributeInfo, MgmtInfo, MgmtKindInfo};

use crate::devices::addresses::Addresses;
use crate::devices::naming::check_name_of;
use crate::fault::{Fault, nearest, printable};

/// What there is to make devices with.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Management devices that are there.
    pub mgmtdevs: Vec<MgmtInfo>,
    /// Kinds, of which any name makes one.
    pub kinds: Vec<MgmtKindInfo>,
    /// Buses, whose devices come and go.
    pub buses: Vec<KnownBus>,
    /// By name, those that a driver could not make of what a bus has, and why.
    pub unusable: BTreeMap<String, Fault>,
    /// What addresses are made of that are not given.
    pub addresses: Addresses,
}

/// A bus, and what may come on it.
#[derive(Debug, Clone)]
pub struct KnownBus {
    /// What it says of itself.
    pub info: BusInfo,
    /// For checks without a daemon: what each of its drivers' management devices can be at most, whatever its address, but for what
    /// its name begins with. Empty: those that are there are known.
    pub at_most: Vec<MgmtInfo>,
}

impl KnownBus {
    /// A bus of which nothing counts but what is there.
    pub fn bare(info: BusInfo) -> KnownBus {
        KnownBus { info, at_most: Vec::new() }
    }

    /// A bus with its drivers.
    pub fn with<D>(info: BusInfo, drivers: &[Box<dyn Driver<D>>]) -> KnownBus {
        KnownBus { info, at_most: drivers.iter().map(|driver| driver.at_most()).collect() }
    }

    /// What the device of this name can be at most, if it can be one of this bus's: which driver it gets is not known, so all that
    /// one of them takes is good.
    fn may_be(&self, name: &str) -> Option<MgmtInfo> {
        let address = name.strip_prefix(self.info.name)?.strip_prefix('/')?;
        (self.info.check)(address).ok()?;
        let mut others = self.at_most.iter().filter(|other| name.starts_with(&other.name));
        let mut info = MgmtInfo { name: name.to_owned(), ..others.next()?.clone() };
        for other in others {
            // A disk's queues are no NIC's.
            if other.class == info.class {
                info.max_supported_vqs = info.max_supported_vqs.max(other.max_supported_vqs);
            }
            info.max_devices = info.max_devices.zip(other.max_devices).map(|(a, b)| a.max(b));
            info.features |= other.features;
            info.check = |_, _| Ok(());
            let is_new =
                |attribute: &&AttributeInfo| info.attributes.iter().all(|own| own.name != attribute.name);
            let new: Vec<AttributeInfo> = other.attributes.iter().filter(is_new).copied().collect();
            info.attributes.extend(new);
            info.functions = info.functions.or_else(|| other.functions.clone());
        }
        Some(info)
    }
}

impl Known {
    /// The management device of this name: one that is there, or one that would be.
    pub fn find(&self, name: &str) -> Option<MgmtInfo> {
        let there = self.mgmtdevs.iter().find(|info| info.name == name).cloned();
        let made = || {
            let (kind, _) = self.kind(name).ok()?;
            Some(MgmtInfo { name: name.to_owned(), ..kind.device.clone() })
        };
        there.or_else(made).or_else(|| self.buses.iter().find_map(|bus| bus.may_be(name)))
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

/// There is no management device of this name, and none can be made by it.
pub(crate) fn no_such_mgmtdev(name: &str, known: &Known) -> Fault {
    if let Some(why) = known.unusable.get(name) {
        let message = format!("{name} cannot be used: {}", why.message);
        return Fault { message, ..why.clone() }.at("mgmtdev").retryable();
    }
    let fault = Fault::not_found(format!(
        "Fail to find the specified management device: there is no `{}`",
        printable(name)
    ))
    .at("mgmtdev");
    let of_bus = name.split_once('/').and_then(|(bus, address)| {
        let bus = known.buses.iter().find(|known| known.info.name == bus)?;
        Some((bus.info, address))
    });
    if let Some((bus, address)) = of_bus {
        return match (bus.check)(address) {
            Ok(()) => fault.hint((bus.missing)(address)),
            Err(why) => fault.hint(why),
        };
    }
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

#[cfg(test)]
pub(crate) mod tests {
    use ringway_pmd::net::{F_MAC, F_MQ, F_MTU};
    use ringway_pmd::vdpa::Class;
    use ringway_ring::features::Features;

    use super::*;

    /// What this build has, with a `sim/net` whose attribute is `swap`.
    pub(crate) fn known() -> Known {
        let mgmtdevs = vec![MgmtInfo {
            name: "sim/net".into(),
            class: Class::Net,
            max_supported_vqs: 32,
            max_devices: None,
            features: Features::VERSION_1 | F_MAC | F_MTU | F_MQ,
            attributes: vec![AttributeInfo { name: "swap", value: "on|off", help: "", live: None }],
            functions: None,
            summary: "",
            check: |_, _| Ok(()),
        }];
        Known { mgmtdevs, ..crate::devices::drivers::known() }
    }

    #[test]
    fn bus_that_several_drivers_share_may_have_what_one_of_them_takes() {
        let attribute = |name| AttributeInfo { name, value: "", help: "", live: None };
        let sim = MgmtInfo { name: String::new(), ..known().mgmtdevs.remove(0) };
        let elsewhere =
            MgmtInfo { name: "model/card".into(), attributes: vec![attribute("not")], ..sim.clone() };
        let other = MgmtInfo {
            max_supported_vqs: 64,
            features: F_MAC | Features::RING_PACKED,
            attributes: vec![attribute("swap"), attribute("other")],
            check: |_, _| Err(ringway_pmd::vdpa::Unfit::new("other", "no")),
            ..sim.clone()
        };
        let info = BusInfo {
            name: "model",
            shape: "SLOT",
            check: |text| if text == "slot0" { Ok(()) } else { Err("slot0 is all there is".to_owned()) },
            missing: |slot| format!("plug a card into {slot}"),
        };
        let mut known =
            Known { buses: vec![KnownBus { info, at_most: vec![sim, elsewhere, other] }], ..known() };
        let may = known.find("model/slot0").unwrap();
        assert_eq!((may.name.as_str(), may.max_supported_vqs, may.max_devices), ("model/slot0", 64, None));
        assert_eq!(may.features, Features::VERSION_1 | Features::RING_PACKED | F_MAC | F_MTU | F_MQ);
        assert_eq!(may.attributes.iter().map(|own| own.name).collect::<Vec<_>>(), ["swap", "other"]);
        let spec = ringway_pmd::vdpa::DeviceSpec::net("a", Default::default());
        assert_eq!((may.check)(&may.name, &spec), Ok(()), "which driver it gets is not known");
        let hint = |known: &Known, name: &str| no_such_mgmtdev(name, known).hint.unwrap();
        assert!(known.find("model/slot1").is_none() && known.find("models/slot0").is_none());
        assert_eq!(hint(&known, "model/slot1"), "slot0 is all there is");
        // With a daemon those count that are there.
        known.buses = vec![KnownBus::bare(info)];
        assert!(known.find("model/slot0").is_none());
        assert_eq!(hint(&known, "model/slot0"), "plug a card into slot0");
    }
}
