//! `pci/DDDD:BB:DD.F`: a virtual function of an Intel 82576 (8086:10ca), whose PF the host's own driver has (Linux's igb).
//!
//! A guest's rings are *relayed*: a core makes the function's descriptors of the guest's, and the function reaches the guest's
//! memory by itself.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use ringway_ring::features::Features;

use super::functions;
use crate::bus::pci::{self, Examiner, Function, Id, Opener};
use crate::driver::Driver;
use crate::igb::mailbox::Mailbox;
use crate::igb::registers::{Registers, VfFault};
use crate::net::plan::Offer;
use crate::net::uplink::UplinkFunction;
use crate::net::{F_CSUM, F_GUEST_CSUM, F_HOST_TSO4, F_HOST_TSO6, F_MQ, Mac, NIC};
use crate::vdpa::{
    AttributeInfo, Class, ClassSpec, DeviceHost, DeviceSpec, DriverError, ManagementDevice, MgmtInfo, Unfit,
    VdpaDevice,
};

mod device;
mod function;
// It as a bridge's uplink.
mod uplink;
use device::IgbvfNic;
use function::Standing;
use uplink::IgbvfUplink;

/// The driver.
#[derive(Debug, Default)]
pub struct Igbvf;

impl Driver<pci::Device<functions::Seen>> for Igbvf {
    fn name(&self) -> &'static str {
        "igbvf"
    }

    fn at_most(&self) -> MgmtInfo {
        at_most()
    }

    fn matches(&self, device: &pci::Device<functions::Seen>) -> bool {
        is_vf(device.id)
    }

    fn probe(
        &mut self,
        name: &str,
        device: pci::Device<functions::Seen>,
    ) -> Result<Box<dyn ManagementDevice>, DriverError> {
        let pci::Device { numa_node, opener, seen, .. } = device;
        let functions::Seen::Igbvf(seen) = seen? else {
            return Err(DriverError::Misconfigured(format!("{name} was looked at as something else")));
        };
        let standing = Arc::new(Standing::new(seen.is_served));
        Ok(Box::new(IgbvfFunction { name: name.to_owned(), opener, seen, numa_node, standing }))
    }
}

/// How its functions are looked at.
pub const EXAMINER: Examiner<functions::Seen> = Examiner {
    wants: is_vf,
    look: |function| Seen::look(&**function).map(functions::Seen::Igbvf).map_err(|fault| fault.to_string()),
};

fn is_vf(id: Id) -> bool {
    (id.vendor, id.device) == (INTEL, VF_OF_82576)
}

/// What a function was like when its driver looked at it.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// The address that its PF fixed, if it did.
    mac: Option<Mac>,
    /// Its PF answered.
    is_served: bool,
}

impl Seen {
    /// Looks at one that nobody drives. One whose PF is down is one for later.
    fn look(function: &dyn Function) -> Result<Seen, VfFault> {
        let registers = Registers::find(function)?;
        registers.reset()?;
        match Mailbox::new(&registers).reset() {
            Ok(mac) => Ok(Seen { mac, is_served: true }),
            Err(VfFault::NoPf(_)) => Ok(Seen { mac: None, is_served: false }),
            Err(fault) => Err(fault),
        }
    }
}

/// The management device.
struct IgbvfFunction {
    name: String,
    opener: Opener,
    seen: Seen,
    numa_node: Option<u32>,
    standing: Arc<Standing>,
}

impl ManagementDevice for IgbvfFunction {
    fn info(&self) -> MgmtInfo {
        MgmtInfo { name: self.name.clone(), ..at_most() }
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let known = [
            ("data_paths", Some("pumped".to_owned())),
            ("mac", self.seen.mac.map(|mac| mac.to_string())),
            ("numa_node", self.numa_node.map(|node| node.to_string())),
            ("pf", Some(self.standing.word().to_owned())),
            ("pf_resets", Some(self.standing.resets().to_string())),
        ];
        known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    fn uplink(&self) -> Result<Arc<dyn UplinkFunction>, DriverError> {
        Ok(Arc::new(IgbvfUplink {
            name: self.name.clone(),
            opener: Arc::clone(&self.opener),
            mac: self.seen.mac,
            standing: Arc::clone(&self.standing),
        }))
    }

    fn create(&mut self, spec: &DeviceSpec, host: DeviceHost) -> Result<Box<dyn VdpaDevice>, DriverError> {
        let mut spec = spec.clone();
        let name = &self.name;
        if let ClassSpec::Net(net) = &mut spec.class {
            if let (Some(wanted), Some(fixed)) = (net.mac, self.seen.mac)
                && wanted != fixed
            {
                return Err(DriverError::Misconfigured(format!(
                    "mac {wanted}: {name} was given {fixed} by its PF, which wins; give it another there (ip link set PF vf N mac \
                     {wanted}) and bind it anew, or leave mac out"
                )));
            }
            net.mac = net.mac.or(self.seen.mac);
        }
        let vlans = vlans(&spec)?;
        let plan = Offer { mgmtdev: "this function", features: FEATURES, max_pairs: 1 }.plan(&spec)?;
        let standing = Arc::clone(&self.standing);
        Ok(Box::new(IgbvfNic::new(name.clone(), self.opener.clone(), plan, vlans, standing, host)))
    }
}

fn at_most() -> MgmtInfo {
    MgmtInfo {
        name: String::new(),
        class: Class::Net,
        max_supported_vqs: 2,
        max_devices: Some(1),
        features: FEATURES,
        attributes: vec![AttributeInfo {
            name: VLANS,
            value: "ID[,ID...]",
            live: None,
            help: "VLANs of which an 82576 VF's guest gets and sends tagged frames (default none)",
        }],
        functions: None,
        summary: SUMMARY,
        check: |_, spec| vlans(spec).map(drop),
    }
}

fn vlans(spec: &DeviceSpec) -> Result<Vec<u16>, Unfit> {
    let Some(text) = spec.attributes.get(VLANS) else { return Ok(Vec::new()) };
    let id = |word: &str| {
        let id = word.parse().ok().filter(|id| (1..=MAX_VLAN).contains(id));
        let why = || format!("{VLANS}: `{}` is not a VLAN: 1 to {MAX_VLAN}", word.escape_debug());
        id.ok_or_else(|| Unfit::new(VLANS, why()))
    };
    let ids: BTreeSet<u16> = text.split(',').map(id).collect::<Result<_, Unfit>>()?;
    if ids.len() > MOST_VLANS {
        let why = format!("{VLANS}: {} are more than the {MOST_VLANS} that a PF has room for", ids.len());
        return Err(Unfit::new(VLANS, why));
    }
    Ok(ids.into_iter().collect())
}

const SUMMARY: &str = "virtual function of an Intel 82576; a core relays the guest's descriptors to it";

/// What a guest is offered.
const FEATURES: Features = Features(
    (NIC.0 & !(F_MQ.0 | Features::IN_ORDER.0)) | F_CSUM.0 | F_GUEST_CSUM.0 | F_HOST_TSO4.0 | F_HOST_TSO6.0,
);

// PCI ids.
const INTEL: u16 = 0x8086;
const VF_OF_82576: u16 = 0x10ca;

const VLANS: &str = "vlans";
/// The last that IEEE 802.1Q leaves free.
const MAX_VLAN: u16 = 4094;
/// VLANs of one device: a PF filters 32 for all its functions, of which one is that of frames without tag.
const MOST_VLANS: usize = 31;
