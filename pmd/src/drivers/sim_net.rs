//! `sim/net`: a network device whose wire is a loop, on no bus.
//!
//! What the guest sends on queue pair i comes back on queue pair i, as it was sent or with its MAC addresses swapped.
//! It needs no hardware and no privilege, and makes two-way traffic with anything that drives a virtio NIC.

use std::collections::BTreeMap;

use ringway_engine::Pump;
use ringway_ring::features::Features;
use ringway_ring::queue::{Format, SetupError};
use ringway_ring::tsc;

use crate::net::end::End;
use crate::net::transfer::{Transfer, TransferOptions};
use crate::net::{
    self, F_CTRL_RX, F_CTRL_VQ, F_GUEST_ANNOUNCE, F_MAC, F_MQ, F_MRG_RXBUF, F_MTU, F_STATUS, Mac, NetConfig,
};
use crate::vdpa::{
    AttributeInfo, Class, DataPath, DeviceConfig, DeviceSpec, DriverError, ManagementDevice, MgmtInfo,
    QueueBinding, QueueLimits, VdpaDevice,
};

/// The management device.
#[derive(Debug, Default)]
pub struct SimNet;

impl SimNet {
    /// Ready to make devices.
    pub fn new() -> SimNet {
        SimNet
    }
}

impl ManagementDevice for SimNet {
    fn info(&self) -> MgmtInfo {
        MgmtInfo {
            name: "sim/net".to_owned(),
            class: Class::Net,
            max_supported_vqs: u32::from(MAX_PAIRS) * 2,
            features: FEATURES,
            attributes: vec![AttributeInfo {
                name: SWAP,
                value: "on|off",
                help: "exchange the MAC addresses of each frame that comes back (default off)",
            }],
            summary: "network device whose wire is a loop",
        }
    }

    fn create(&mut self, spec: &DeviceSpec) -> Result<Box<dyn VdpaDevice>, DriverError> {
        let pairs = spec.max_vqp.unwrap_or(1);
        if !(1..=MAX_PAIRS).contains(&pairs) {
            return Err(misconfigured(format!("max_vqp {pairs}: sim/net has 1 to {MAX_PAIRS} queue pairs")));
        }
        let mtu = spec.mtu.unwrap_or(DEFAULT_MTU);
        if !(net::MIN_MTU..=net::MAX_MTU).contains(&mtu) {
            let (min, max) = (net::MIN_MTU, net::MAX_MTU);
            return Err(misconfigured(format!("mtu {mtu}: must be {min} to {max}")));
        }
        let mac = spec.mac.unwrap_or_else(|| Mac::from_name(&spec.name));
        if mac.is_multicast() {
            return Err(misconfigured(format!(
                "mac {mac}: is a group address, a device needs a unicast one"
            )));
        }
        let features = match spec.device_features {
            None => FEATURES,
            Some(wanted) if FEATURES.contains(wanted) => wanted,
            Some(wanted) => {
                let bits: Vec<String> = wanted.without(FEATURES).bits().map(|bit| bit.to_string()).collect();
                let bits = bits.join(", ");
                return Err(misconfigured(format!("device_features: sim/net does not offer bits {bits}")));
            }
        };
        let swap_mac = match spec.attributes.get(SWAP).map(String::as_str) {
            None | Some("off") => false,
            Some("on") => true,
            Some(other) => return Err(misconfigured(format!("swap {other}: must be on or off"))),
        };
        let config = NetConfig { mac, mtu, max_vq_pairs: pairs, link_up: true };
        Ok(Box::new(SimNetDevice { config, mtu_in_use: mtu, features, swap_mac }))
    }
}

/// A device.
#[derive(Debug)]
struct SimNetDevice {
    config: NetConfig,
    /// What the front-end told, at most what the operator gave.
    mtu_in_use: u16,
    features: Features,
    swap_mac: bool,
}

impl VdpaDevice for SimNetDevice {
    fn class(&self) -> Class {
        Class::Net
    }

    fn data_path(&self) -> DataPath {
        DataPath::Pumped
    }

    fn features(&self) -> Features {
        self.features
    }

    fn limits(&self) -> QueueLimits {
        QueueLimits { max_vqs: self.config.max_vq_pairs * 2, max_vq_size: MAX_VQ_SIZE }
    }

    fn config(&self) -> DeviceConfig {
        DeviceConfig::Net(self.config)
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        let swap = if self.swap_mac { "on" } else { "off" };
        BTreeMap::from([(SWAP.to_owned(), swap.to_owned())])
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DriverError> {
        let max = self.config.mtu;
        if (net::MIN_MTU..=max).contains(&mtu) {
            self.mtu_in_use = mtu;
            Ok(())
        } else {
            Err(DriverError::PeerMisbehaved(format!(
                "set MTU {mtu}, the device has {max}: add it with mtu {mtu}"
            )))
        }
    }

    fn group_of(&self, index: u16) -> u16 {
        index / 2
    }

    fn pump(&mut self, _group: u16, queues: Vec<QueueBinding>) -> Result<Box<dyn Pump>, DriverError> {
        let options = TransferOptions { mtu: self.mtu_in_use, swap_mac: self.swap_mac, hertz: tsc::hertz() };
        let packed = queues.iter().any(|queue| queue.format == Format::Packed);
        if packed { bind(queues, options, End::packed) } else { bind(queues, options, End::split) }
    }

    fn reset(&mut self) {
        self.mtu_in_use = self.config.mtu;
    }
}

/// Binds the receive and the transmit queue of one pair, as far as they are started (virtio 1.3 §5.1.2: even is
/// receive, odd is transmit). Not inlined: a session's stack keeps what it touched once, and this passes whole rings.
#[inline(never)]
fn bind<Q: ringway_ring::queue::DeviceRing + 'static>(
    queues: Vec<QueueBinding>,
    options: TransferOptions,
    end: fn(QueueBinding) -> Result<Box<End<Q>>, SetupError>,
) -> Result<Box<dyn Pump>, DriverError> {
    let (mut rx, mut tx) = (None, None);
    for mut queue in queues {
        let index = queue.index;
        queue.config.skip_used = index % 2 == 1;
        let bound = end(queue).map_err(|why| DriverError::PeerMisbehaved(format!("queue {index}: {why}")))?;
        *(if index % 2 == 0 { &mut rx } else { &mut tx }) = Some(bound);
    }
    Ok(Box::new(Transfer::new(rx, tx, options)))
}

fn misconfigured(what: String) -> DriverError {
    DriverError::Misconfigured(what)
}

/// The one attribute of its own.
const SWAP: &str = "swap";

const MAX_PAIRS: u16 = 16;

const DEFAULT_MTU: u16 = 1500;

const MAX_VQ_SIZE: u16 = 32768;

const FEATURES: Features = Features(
    Features::INDIRECT_DESC.0
        | Features::EVENT_IDX.0
        | Features::VERSION_1.0
        | Features::RING_PACKED.0
        | Features::IN_ORDER.0
        | Features::ANY_LAYOUT.0
        | F_MTU.0
        | F_MAC.0
        | F_MRG_RXBUF.0
        | F_STATUS.0
        | F_CTRL_VQ.0
        | F_CTRL_RX.0
        | F_GUEST_ANNOUNCE.0
        | F_MQ.0,
);
