//! `sim/net`: a network device whose wire is a loop, on no bus.
//!
//! What the guest sends on queue pair i comes back on queue pair i, as it was sent or with its MAC addresses swapped.
//! It needs no hardware and no privilege, and makes two-way traffic with anything that drives a virtio NIC.

use std::collections::BTreeMap;

use ringway_engine::Pump;
use ringway_ring::features::Features;
use ringway_ring::tsc;

use crate::counters::DropReason;
use crate::net::NIC;
use crate::net::end::PortRules;
use crate::net::plan::{Offer, Plan, switch, word};
use crate::net::side::{receive_queue, transmit_queue};
use crate::net::transfer::{Transfer, TransferOptions};
use crate::vdpa::{
    AttributeInfo, Class, DataPath, DeviceConfig, DeviceSpec, DriverError, ManagementDevice, MgmtInfo,
    QueueBinding, QueueLimits, Unfit, VdpaDevice,
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
            max_devices: None,
            features: FEATURES,
            attributes: vec![AttributeInfo {
                name: SWAP,
                value: "on|off",
                help: "exchange the MAC addresses of each frame that comes back (default off)",
            }],
            summary: "network device whose wire is a loop",
            check,
        }
    }

    fn create(&mut self, spec: &DeviceSpec) -> Result<Box<dyn VdpaDevice>, DriverError> {
        let plan = Offer { mgmtdev: "sim/net", features: FEATURES, max_pairs: MAX_PAIRS }.plan(spec)?;
        let swap_mac = switch(spec, SWAP)?;
        Ok(Box::new(SimNetDevice { mtu_in_use: plan.config.mtu, plan, swap_mac }))
    }
}

fn check(_name: &str, spec: &DeviceSpec) -> Result<(), Unfit> {
    switch(spec, SWAP).map(drop)
}

/// A device.
#[derive(Debug)]
struct SimNetDevice {
    plan: Plan,
    /// What the front-end told, at most what the operator gave.
    mtu_in_use: u16,
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
        self.plan.features
    }

    fn limits(&self) -> QueueLimits {
        QueueLimits { max_vqs: self.plan.config.max_vq_pairs * 2, max_vq_size: MAX_VQ_SIZE }
    }

    fn config(&self) -> DeviceConfig {
        DeviceConfig::Net(self.plan.config)
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(SWAP.to_owned(), word(self.swap_mac))])
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DriverError> {
        self.mtu_in_use = self.plan.checked_mtu(mtu)?;
        Ok(())
    }

    fn group_of(&self, index: u16) -> u16 {
        index / 2
    }

    /// Binds the receive and the transmit queue of one pair, as far as they are started (virtio 1.3 §5.1.2: even is
    /// receive, odd is transmit).
    fn pump(&mut self, _group: u16, queues: Vec<QueueBinding>) -> Result<Box<dyn Pump>, DriverError> {
        let rules = PortRules { mtu: self.mtu_in_use, only: None };
        let (mut sink, mut source) = (None, None);
        for queue in queues {
            let index = queue.index;
            let refused = |why| DriverError::PeerMisbehaved(format!("queue {index}: {why}"));
            if index % 2 == 0 {
                sink = Some(receive_queue(queue, rules).map_err(refused)?);
            } else {
                source = Some(transmit_queue(queue, rules).map_err(refused)?);
            }
        }
        let options =
            TransferOptions { swap_mac: self.swap_mac, absent: DropReason::RxDisabled, hertz: tsc::hertz() };
        let transfer = Transfer::new(sink, source.into_iter().collect(), options);
        let what = || "memory of the pump".to_owned();
        Ok(Box::new(transfer.map_err(|source| DriverError::Resource { what: what(), source })?))
    }

    fn reset(&mut self) {
        self.mtu_in_use = self.plan.config.mtu;
    }
}

/// The one attribute of its own.
const SWAP: &str = "swap";

const MAX_PAIRS: u16 = 16;

const MAX_VQ_SIZE: u16 = 32768;

const FEATURES: Features = NIC;
