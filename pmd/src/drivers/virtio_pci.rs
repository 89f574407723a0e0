//! `pci/DDDD:BB:DD.F`: a modern virtio network function, or a VF of one (virtio 1.3 §4.1, §5.1). Its vendor does not matter.
//!
//! A guest's rings are *relayed*: the function is driven by rings of our own, a core forwards descriptors between the two, and
//! the function reaches the guest's memory by itself. Or, where that is wanted and can be, they are *in hardware*: the function
//! consumes the guest's rings, kicks and interrupts pass it and the guest by, and no core is spent.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ringway_ring::features::Features;

use super::functions;
use crate::bus::pci::{self, Examiner, Function, Id, Opener};
use crate::driver::Driver;
use crate::net::plan::Offer;
use crate::net::uplink::UplinkFunction;
use crate::net::{
    F_CTRL_RX, F_CTRL_VQ, F_MAC, F_MQ, F_MRG_RXBUF, F_MTU, F_STATUS, MAX_MTU, MIN_MTU, Mac, NIC, OFFLOADS,
};
use crate::vdpa::{
    AttributeInfo, Class, ClassSpec, DeviceHost, DeviceSpec, DriverError, Live, ManagementDevice, MgmtInfo,
    Unfit, VdpaDevice,
};
use crate::virtio::control::F_CTRL_MAC_ADDR;
use crate::virtio::migration::MigrationBlock;
use crate::virtio::transport::{FunctionFault, Transport};

// A guest's NIC on it.
mod device;
// It, at work.
mod function;
// It as a bridge's uplink.
mod uplink;

use device::VirtioNic;
use uplink::VirtioUplink;

/// The driver.
#[derive(Debug, Default)]
pub struct VirtioPci;

impl Driver<pci::Device<functions::Seen>> for VirtioPci {
    fn name(&self) -> &'static str {
        "virtio-pci"
    }

    fn at_most(&self) -> MgmtInfo {
        at_most()
    }

    fn matches(&self, device: &pci::Device<functions::Seen>) -> bool {
        is_net(device.id)
    }

    fn probe(
        &mut self,
        name: &str,
        device: pci::Device<functions::Seen>,
    ) -> Result<Box<dyn ManagementDevice>, DriverError> {
        let pci::Device { numa_node, opener, seen, .. } = device;
        let functions::Seen::Virtio(seen) = seen? else {
            return Err(DriverError::Misconfigured(format!("{name} was looked at as something else")));
        };
        Ok(Box::new(VirtioFunction { name: name.to_owned(), opener, seen, numa_node }))
    }
}

/// How its functions are looked at.
pub const EXAMINER: Examiner<functions::Seen> = Examiner {
    wants: is_net,
    look: |function| Seen::look(&**function).map(functions::Seen::Virtio).map_err(|fault| fault.to_string()),
};

/// Looks at one that has registers by which its rings begin anywhere, and has to have them.
pub(super) fn look_at_movable(function: &dyn Function) -> Result<functions::Seen, String> {
    if MigrationBlock::find(function).is_none() {
        return Err("it has no live-migration block, which is in BAR 4 of a VF".to_owned());
    }
    let seen = Seen::look(function).map_err(|fault| fault.to_string())?;
    Ok(functions::Seen::Virtio(Seen { begins_anywhere: true, ..seen }))
}

fn at_most() -> MgmtInfo {
    MgmtInfo {
        name: String::new(),
        class: Class::Net,
        max_supported_vqs: u32::from(MAX_PAIRS) * 2,
        max_devices: Some(1),
        features: NIC | OFFLOADS,
        attributes: vec![DATAPATH],
        functions: None,
        summary: SUMMARY,
        check: |_, spec| DataPathWanted::of(&spec.attributes).map(drop),
    }
}

/// A virtio network function: modern, or transitional, which has the modern registers too (virtio 1.3 §4.1.2).
fn is_net(id: Id) -> bool {
    id.vendor == VIRTIO && (id.device == MODERN_NET || (id.device == TRANSITIONAL_NET && id.subsystem == NET))
}

/// What a function was like when its driver looked at it.
#[derive(Debug, Clone, Copy)]
pub struct Seen {
    /// What it offers.
    offered: Features,
    /// Its address, if it has one of its own.
    mac: Option<Mac>,
    /// The largest MTU that it says it has.
    mtu: Option<u16>,
    /// Queue pairs that can be used.
    pairs: u16,
    /// Pairs that it numbers its control queue behind.
    numbered_pairs: u16,
    /// Its rings begin anywhere: it has a [`MigrationBlock`].
    begins_anywhere: bool,
}

impl Seen {
    /// Looks at one that nobody drives.
    fn look(function: &dyn Function) -> Result<Seen, FunctionFault> {
        enough_vectors(function)?;
        let transport = Transport::find(function)?;
        transport.reset(RESET)?;
        let mut offered = transport.features();
        if !transport.can_reset_queues() {
            offered = offered.without(Features::RING_RESET);
        }
        if !offered.contains(Features::VERSION_1) {
            return Err(FunctionFault::NotVirtio("it does not offer VERSION_1".to_owned()));
        }
        let [a, b, c, d, e, f, _, _, pairs_low, pairs_high, mtu_low, mtu_high] = transport.config()?;
        if !offered.contains(Features::ACCESS_PLATFORM) {
            // It would take our addresses for the host's.
            let why =
                "it does not offer ACCESS_PLATFORM, so no IOMMU stands behind it (QEMU: iommu_platform=on)";
            return Err(FunctionFault::NotVirtio(why.to_owned()));
        }
        let has_control = offered.contains(F_CTRL_VQ);
        let numbered_pairs = match u16::from_le_bytes([pairs_low, pairs_high]) {
            pairs if offered.contains(F_MQ) && has_control && pairs > 0 => pairs,
            _ => 1,
        };
        if numbered_pairs > 1 {
            // QEMU's function counts the queues of one pair alone until its driver has accepted MQ.
            let several =
                Features(Features::VERSION_1.0 | Features::ACCESS_PLATFORM.0 | F_CTRL_VQ.0 | F_MQ.0);
            transport.negotiate(several)?;
        }
        let queues = transport.queues().saturating_sub(has_control.into());
        transport.reset(RESET)?;
        let pairs = numbered_pairs.min(queues / 2).min(MAX_PAIRS);
        if pairs == 0 {
            return Err(FunctionFault::NotVirtio(format!("it has {queues} queues: no pair")));
        }
        if u32::from(numbered_pairs) * 2 > queues.into() {
            let why = format!("it has {queues} queues and says that it has {numbered_pairs} pairs");
            return Err(FunctionFault::NotVirtio(why));
        }
        Ok(Seen {
            offered,
            mac: offered.contains(F_MAC).then_some(Mac([a, b, c, d, e, f])),
            mtu: Some(u16::from_le_bytes([mtu_low, mtu_high]))
                .filter(|mtu| offered.contains(F_MTU) && *mtu >= MIN_MTU),
            pairs,
            numbered_pairs,
            begins_anywhere: false,
        })
    }

    /// What a guest is offered: what is about frames as the function has it, all else as every NIC of ours.
    fn features(&self) -> Features {
        let missing = FRAMES.without(self.offered);
        let pairs = if self.pairs > 1 { Features::NONE } else { F_MQ };
        (NIC | OFFLOADS).without(missing | pairs | Features::IN_ORDER)
    }

    /// What a guest is offered whose rings the function shall consume: what it has, but for packed rings, of which it does not
    /// tell where they stand.
    fn features_in_hardware(&self) -> Features {
        (self.features() & self.offered).without(Features::RING_PACKED)
    }

    /// How the function is driven that consumes the rings of a guest with these; all of them are its own.
    fn driven_in_hardware(&self, guest: Features) -> Features {
        let ours = self.driven(guest).without(Features::EVENT_IDX | Features::RING_PACKED);
        ours | (guest & self.offered)
    }

    /// How the function is driven for a guest with these.
    fn driven(&self, guest: Features) -> Features {
        let by_control = Features(F_MQ.0 | F_CTRL_RX.0 | F_CTRL_MAC_ADDR.0);
        let without = if self.offered.contains(F_CTRL_VQ) { Features::NONE } else { by_control };
        (guest & FRAMES) | (self.offered & OURS).without(without)
    }
}

/// Whether it can tell of its queues, and of its configuration.
fn enough_vectors(function: &dyn Function) -> Result<(), FunctionFault> {
    match function.vectors() {
        count @ 0..2 => Err(FunctionFault::Host(format!(
            "it has {count} interrupt vectors, and needs one for its queues and one for its configuration (QEMU: vectors=)"
        ))),
        _ => Ok(()),
    }
}

/// The management device.
struct VirtioFunction {
    name: String,
    opener: Opener,
    seen: Seen,
    numa_node: Option<u32>,
}

impl ManagementDevice for VirtioFunction {
    fn info(&self) -> MgmtInfo {
        MgmtInfo {
            name: self.name.clone(),
            max_supported_vqs: u32::from(self.seen.pairs) * 2,
            features: self.seen.features(),
            attributes: vec![if self.seen.begins_anywhere { DATAPATH_AT_ONCE } else { DATAPATH }],
            ..at_most()
        }
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let Seen { mac, mtu, .. } = self.seen;
        let known = [
            ("data_paths", Some("relay,hardware".to_owned())),
            ("mac", mac.map(|mac| mac.to_string())),
            ("mtu", mtu.map(|mtu| mtu.to_string())),
            ("numa_node", self.numa_node.map(|node| node.to_string())),
        ];
        known.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))).collect()
    }

    fn uplink(&self) -> Result<Arc<dyn UplinkFunction>, DriverError> {
        Ok(Arc::new(VirtioUplink::new(&self.name, &self.opener, self.seen)?))
    }

    fn create(&mut self, spec: &DeviceSpec, host: DeviceHost) -> Result<Box<dyn VdpaDevice>, DriverError> {
        let mut spec = spec.clone();
        let name = &self.name;
        if let ClassSpec::Net(net) = &mut spec.class {
            let own = self.seen.mac;
            let can_set = self.seen.offered.contains(F_CTRL_MAC_ADDR);
            if let (Some(wanted), Some(own)) = (net.mac, own)
                && wanted != own
                && !can_set
            {
                let why = format!(
                    "mac {wanted}: {name} has {own}, and cannot be given another from here; a VF is given its own by its PF \
                     (ip link set PF vf N mac {wanted})"
                );
                return Err(DriverError::Misconfigured(why));
            }
            net.mac = net.mac.or(own);
            let most = self.seen.mtu.unwrap_or(MAX_MTU).min(MAX_MTU);
            if let Some(mtu) = net.mtu.filter(|mtu| *mtu > most) {
                return Err(DriverError::Misconfigured(format!("mtu {mtu}: {name} has at most {most}")));
            }
            net.mtu = net.mtu.or(self.seen.mtu.filter(|mtu| *mtu <= MAX_MTU));
        }
        let wanted = DataPathWanted::of(&spec.attributes)?;
        let features = match wanted {
            DataPathWanted::Relay => self.seen.features(),
            DataPathWanted::Hardware => self.seen.features_in_hardware(),
        };
        let plan = Offer { mgmtdev: "this function", features, max_pairs: self.seen.pairs }.plan(&spec)?;
        Ok(Box::new(VirtioNic::new(name.clone(), self.opener.clone(), self.seen, plan, wanted, host)))
    }
}

/// How an operator wants a guest's rings served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum DataPathWanted {
    /// By cores.
    Relay,
    /// By the function, whenever its rings begin where it can.
    Hardware,
}

impl DataPathWanted {
    fn of(attributes: &BTreeMap<String, String>) -> Result<DataPathWanted, Unfit> {
        match attributes.get(DATAPATH.name).map(String::as_str) {
            None | Some("relay") => Ok(DataPathWanted::Relay),
            Some("hardware") => Ok(DataPathWanted::Hardware),
            Some(other) => {
                let why = format!("datapath {}: must be relay or hardware", other.escape_debug());
                Err(Unfit::new(DATAPATH.name, why))
            }
        }
    }

    fn name(self) -> &'static str {
        match self {
            DataPathWanted::Relay => "relay",
            DataPathWanted::Hardware => "hardware",
        }
    }
}

const DATAPATH: AttributeInfo = AttributeInfo {
    name: "datapath",
    value: "relay|hardware",
    help: "who serves the guest's rings: a core (default), or the function itself wherever they begin anew",
    live: Some(Live {
        waits: |value| {
            (value == "hardware").then_some(
                "when the guest's driver starts its rings anew (reload it, or reboot the guest) with nothing that a device added \
                 with datapath hardware would not offer, as packed rings; dev show has the data path in use, and why",
            )
        },
        unset: Some("relay"),
        is_told: true,
    }),
};

/// The same of a function whose rings begin anywhere.
const DATAPATH_AT_ONCE: AttributeInfo = AttributeInfo {
    help: "who serves the guest's rings: a core (default), or the function itself",
    live: Some(Live::or("relay")),
    ..DATAPATH
};

/// What both sides have to agree on, since it is about what lies in frames' headers.
const FRAMES: Features = Features(OFFLOADS.0 | F_MRG_RXBUF.0);

/// What we drive a function with whatever its guest has, if it is offered.
const OURS: Features = Features(
    Features::VERSION_1.0
        | Features::ACCESS_PLATFORM.0
        | Features::EVENT_IDX.0
        | Features::RING_PACKED.0
        | Features::RING_RESET.0
        | F_MAC.0
        | F_MTU.0
        | F_STATUS.0
        | F_CTRL_VQ.0
        | F_CTRL_RX.0
        | F_CTRL_MAC_ADDR.0
        | F_MQ.0,
);

const SUMMARY: &str =
    "virtio network function; a core relays the guest's descriptors to it, or it consumes the guest's rings";

// PCI ids (virtio 1.3 §4.1.2).
const VIRTIO: u16 = 0x1af4;
const MODERN_NET: u16 = 0x1041;
const TRANSITIONAL_NET: u16 = 0x1000;
const NET: u16 = 1;

/// Queue pairs of one device at most.
const MAX_PAIRS: u16 = 16;
/// A function is reset within this, or it is of no use.
const RESET: Duration = Duration::from_secs(1);
