//! What an operator asks of a new device.

use std::collections::BTreeMap;

use ringway_ring::features::Features;

use crate::net::{AddressSeed, Mac};

/// What an operator asked of a new device. Absent values are the driver's to choose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceSpec {
    /// The device's name, unique in the process.
    pub name: String,
    /// The features it may offer at most.
    pub features: Option<Features>,
    /// What its class has.
    pub class: ClassSpec,
    /// The driver's own attributes: only names that it declared.
    pub attributes: BTreeMap<String, String>,
}

impl DeviceSpec {
    /// A network device of this name, everything else the driver's to choose.
    pub fn net(name: impl Into<String>, net: NetSpec) -> DeviceSpec {
        let class = ClassSpec::Net(net);
        DeviceSpec { name: name.into(), features: None, class, attributes: BTreeMap::new() }
    }
}

/// What is asked of a device of one class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ClassSpec {
    /// Of a network device.
    Net(NetSpec),
    /// Of a block device.
    Block,
}

/// What is asked of a network device.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct NetSpec {
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// What its default address is made of, beside its name. None: the name alone.
    pub seed: Option<AddressSeed>,
    /// Its MTU.
    pub mtu: Option<u16>,
    /// Its queue pairs.
    pub max_vqp: Option<u16>,
}
