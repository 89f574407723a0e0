//! `bridge/NAME`: any number of devices joined by a learning bridge. On no bus: it comes to be by being named.
//!
//! A frame goes to the port behind which its destination was last heard of, else to all others; one copy for each
//! receiver. What a port cannot take at once is dropped and counted there. A bridge is served by one core, but for those devices that
//! were given one of their own.

use std::collections::BTreeMap;
use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::sync::Arc;
use std::time::Duration;

use ringway_ring::tsc;

use super::host_port::{HostPort, NETNS, TAP};
use super::joined::{FEATURES, JoinedDevice, MAX_PAIRS, Members, bridge_port};
use super::link::{self, CHECK};
use super::uplink::{UPLINK, UplinkPort};
use crate::net::fabric::{BridgeSettings, Fabric, MOST_PORTS};
use crate::net::fdb::cycles;
use crate::net::plan::{Offer, Plan, switch, word};
use crate::net::rates::{self, PortRates};
use crate::net::uplink::UplinkFunction;
use crate::net::vlan::Vlans;
use crate::vdpa::{
    AttributeInfo, Class, DeviceHost, DeviceSpec, DriverError, Learned, LearnedStation, Live,
    ManagementDevice, MgmtInfo, MgmtKind, MgmtKindInfo, NetMgmt, Unfit, VdpaDevice,
};

/// The kind.
#[derive(Debug, Default)]
pub struct BridgeKind;

impl MgmtKind for BridgeKind {
    fn info(&self) -> MgmtKindInfo {
        MgmtKindInfo {
            name: "bridge",
            attributes: vec![AGEING, CORE],
            shares_core: true,
            takes_cores: true,
            device: describe(String::new()),
            check: |_, attributes| {
                ageing(attributes)?;
                core(attributes).map(drop)
            },
        }
    }

    fn make(
        &mut self,
        name: &str,
        attributes: &BTreeMap<String, String>,
        core: usize,
    ) -> Result<Box<dyn ManagementDevice>, DriverError> {
        let ageing = ageing(attributes)?.unwrap_or(DEFAULT_AGEING);
        let name = format!("bridge/{name}");
        let (fabric, settings) = Fabric::bridge(&name, core, Duration::from_secs(ageing), seed());
        Ok(Box::new(BridgeMgmtdev { name, fabric, settings, ageing, core, members: Members::default() }))
    }
}

/// One bridge.
#[derive(Debug)]
struct BridgeMgmtdev {
    name: String,
    fabric: Arc<Fabric>,
    settings: Arc<BridgeSettings>,
    /// In seconds.
    ageing: u64,
    core: usize,
    members: Members,
}

impl ManagementDevice for BridgeMgmtdev {
    fn info(&self) -> MgmtInfo {
        describe(self.name.clone())
    }

    fn create(&mut self, spec: &DeviceSpec, _host: DeviceHost) -> Result<Box<dyn VdpaDevice>, DriverError> {
        if let Some(host) = HostPort::join(&self.fabric, &mut self.members, spec)? {
            return Ok(Box::new(host));
        }
        let plan = Offer { mgmtdev: "bridge", features: FEATURES, max_pairs: MAX_PAIRS }.plan(spec)?;
        Ok(Box::new(join(&self.fabric, &mut self.members, plan, spec)?))
    }

    fn create_uplink(
        &mut self,
        spec: &DeviceSpec,
        function: Arc<dyn UplinkFunction>,
        host: DeviceHost,
    ) -> Result<Box<dyn VdpaDevice>, DriverError> {
        Ok(Box::new(UplinkPort::join(&self.fabric, &self.settings, &mut self.members, spec, function, host)?))
    }

    fn removed(&mut self, name: &str) {
        self.members.leave(name);
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        BTreeMap::from([
            (AGEING.name.to_owned(), self.ageing.to_string()),
            (CORE.name.to_owned(), self.core.to_string()),
        ])
    }

    fn set(&mut self, attributes: &BTreeMap<String, String>) -> Result<bool, DriverError> {
        if let Some(ageing) = ageing(attributes)? {
            self.ageing = ageing;
            self.settings.set_ageing(Duration::from_secs(ageing));
        }
        // Control knows whether there is a worker on it.
        let core = core(attributes)?;
        if let Some(core) = core {
            self.core = core;
            self.settings.set_core(core);
        }
        Ok(core.is_some())
    }

    fn shared_core(&self) -> Option<usize> {
        Some(self.core)
    }

    fn takes_cores(&self) -> bool {
        true
    }

    fn net(&self) -> Option<&dyn NetMgmt> {
        Some(self)
    }
}

impl NetMgmt for BridgeMgmtdev {
    fn stations(&self) -> Learned {
        learned(&self.settings, &self.members)
    }
}

/// Two independent numbers that no guest can know: the standard library's keys are random.
pub(super) fn seed() -> [u64; 2] {
    [0u8, 1].map(|nth| RandomState::new().hash_one(nth))
}

/// A guest's port on a bridge, as it is asked for.
pub(super) fn join(
    fabric: &Arc<Fabric>,
    members: &mut Members,
    plan: Plan,
    spec: &DeviceSpec,
) -> Result<JoinedDevice, DriverError> {
    let is_checked = switch(spec, CHECK.name)?;
    let flood = flood(&spec.attributes)?;
    let attributes = BTreeMap::from([
        (CHECK.name.to_owned(), word(is_checked)),
        (FLOOD.name.to_owned(), flood.map_or_else(|| "off".to_owned(), |pps| pps.to_string())),
    ]);
    let port = bridge_port(fabric, flood, &spec.attributes)?.checked(is_checked);
    members.add(&spec.name, &port);
    Ok(JoinedDevice::new(port, plan, attributes))
}

/// What a bridge has learned of its members.
pub(super) fn learned(settings: &BridgeSettings, members: &Members) -> Learned {
    let stations = settings.stations();
    let seen = stations.seen().into_iter().map(|station| {
        let device = members.at(station.slot).unwrap_or("?").to_owned();
        let vid = Some(station.vid).filter(|vid| *vid != 0);
        LearnedStation { mac: station.mac, vid, device, age: cycles(station.age) / tsc::hertz().max(1) }
    });
    Learned { stations: seen.collect(), refused: stations.refused() }
}

fn describe(name: String) -> MgmtInfo {
    MgmtInfo {
        name,
        class: Class::Net,
        max_supported_vqs: u32::from(MAX_PAIRS) * 2,
        max_devices: Some(MOST_PORTS.into()),
        features: FEATURES,
        attributes: [CHECK, FLOOD, VLAN]
            .into_iter()
            .chain(rates::ATTRIBUTES)
            .chain([TAP, NETNS, UPLINK])
            .collect(),
        functions: None,
        summary: "any number of devices joined by a learning bridge",
        check,
    }
}

pub(super) fn check(name: &str, spec: &DeviceSpec) -> Result<(), Unfit> {
    vlans(&spec.attributes)?;
    PortRates::default().set(&spec.attributes)?;
    if UplinkPort::asked(spec)?.is_some() {
        return Ok(());
    }
    link::check(name, spec)?;
    flood(&spec.attributes).map(drop)
}

/// How many frames a second may go to everybody; None for any number.
pub(super) fn flood(attributes: &BTreeMap<String, String>) -> Result<Option<u64>, Unfit> {
    match attributes.get(FLOOD.name).map(String::as_str) {
        None => Ok(Some(DEFAULT_FLOOD)),
        Some("off") => Ok(None),
        Some(text) => match text.parse() {
            Ok(pps @ 1..) => Ok(Some(pps)),
            _ => {
                let why = "must be a number of frames, or off";
                Err(Unfit::new(FLOOD.name, format!("flood_pps {}: {why}", text.escape_debug())))
            }
        },
    }
}

/// The VLANs that are asked for; None: nothing is said of them.
pub(super) fn vlans(attributes: &BTreeMap<String, String>) -> Result<Option<Vlans>, Unfit> {
    match attributes.get(VLAN.name).map(String::as_str) {
        None | Some("off") => Ok(None),
        Some(text) => {
            let vlans = Vlans::parse(text);
            vlans.map(Some).map_err(|why| Unfit::new(VLAN.name, format!("vlan: {why}")))
        }
    }
}

/// The core that is asked for.
pub(super) fn core(attributes: &BTreeMap<String, String>) -> Result<Option<usize>, Unfit> {
    let Some(text) = attributes.get(CORE.name) else { return Ok(None) };
    match text.parse() {
        Ok(core) => Ok(Some(core)),
        Err(_) => {
            let why = format!("core {}: must be the number of a core", text.escape_debug());
            Err(Unfit::new(CORE.name, why))
        }
    }
}

/// The ageing time that is asked for, in seconds.
fn ageing(attributes: &BTreeMap<String, String>) -> Result<Option<u64>, Unfit> {
    let Some(text) = attributes.get(AGEING.name) else { return Ok(None) };
    // IEEE 802.1Q §8.8.3, table 8-10.
    match text.parse() {
        Ok(seconds @ 1..=1_000_000) => Ok(Some(seconds)),
        _ => {
            let why = format!("ageing {}: must be 1 to 1000000 seconds", text.escape_debug());
            Err(Unfit::new(AGEING.name, why))
        }
    }
}

const AGEING: AttributeInfo = AttributeInfo {
    name: "ageing",
    value: "SECONDS",
    help: "how long a station is remembered after it was last heard of (default 300)",
    live: None,
};

pub(super) const CORE: AttributeInfo = AttributeInfo {
    name: "core",
    value: "N",
    help: "the core that serves the devices that were given none of their own (default: chosen)",
    live: None,
};

pub(super) const VLAN: AttributeInfo = AttributeInfo {
    name: "vlan",
    value: "off|none|VID[-VID] [pvid] [untagged],...",
    help: "the VLANs that the port carries, in the words of `bridge vlan` (default off: VLAN 1, where other ports have some)",
    live: Some(Live::unless("off")),
};

pub(super) const FLOOD: AttributeInfo = AttributeInfo {
    name: "flood_pps",
    value: "N|off",
    help: "frames a second that the guest may send to groups and unknown addresses (default 20000); in force at once",
    live: Some(Live::or("20000")),
};

/// IEEE 802.1Q §8.8.3: the recommended default, in seconds.
pub(super) const DEFAULT_AGEING: u64 = 300;

/// Far above what ARP, neighbour discovery and multicast of a guest come to, far below what would keep a core busy that
/// copies each of them to every port.
const DEFAULT_FLOOD: u64 = 20_000;
