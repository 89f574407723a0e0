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
use crate::net::guest_queue::PortRules;
use crate::net::nic::{Nic, PumpedNic};
use crate::net::plan::{Offer, switch, word};
use crate::net::side::{receive_queue, transmit_queue};
use crate::net::transfer::{Transfer, TransferOptions};
use crate::vdpa::{
    AttributeInfo, Class, DeviceHost, DeviceSpec, DriverError, MakePump, ManagementDevice, MgmtInfo,
    OwnPumps, QueueBinding, VdpaDevice,
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
                live: None,
            }],
            functions: None,
            summary: "network device whose wire is a loop",
            check: |_, spec| switch(spec, SWAP).map(drop),
        }
    }

    fn create(&mut self, spec: &DeviceSpec, _host: DeviceHost) -> Result<Box<dyn VdpaDevice>, DriverError> {
        Ok(Box::new(OwnPumps::new(Loop::new(spec)?)))
    }
}

/// A device: what its pumps are made from. The rest of it is every NIC's.
#[derive(Debug)]
pub struct Loop {
    nic: Nic,
    swap_mac: bool,
}

impl Loop {
    /// As an operator asks for it.
    ///
    /// # Errors
    /// Something was asked for that cannot be.
    pub fn new(spec: &DeviceSpec) -> Result<Loop, DriverError> {
        let plan = Offer { mgmtdev: "sim/net", features: FEATURES, max_pairs: MAX_PAIRS }.plan(spec)?;
        Ok(Loop { nic: Nic::new(plan, MAX_VQ_SIZE), swap_mac: switch(spec, SWAP)? })
    }
}

impl MakePump for Loop {
    /// Binds the receive and the transmit queue of one pair, as far as they are started (virtio 1.3 §5.1.2: even is
    /// receive, odd is transmit).
    fn pump(&mut self, _group: u16, queues: Vec<QueueBinding>) -> Result<Box<dyn Pump>, DriverError> {
        let rules = PortRules { mtu: self.nic.mtu(), only: None };
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
}

impl PumpedNic for Loop {
    fn nic(&self) -> &Nic {
        &self.nic
    }

    fn nic_mut(&mut self) -> &mut Nic {
        &mut self.nic
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(SWAP.to_owned(), word(self.swap_mac))])
    }
}

/// The one attribute of its own.
const SWAP: &str = "swap";

const MAX_PAIRS: u16 = 16;
const MAX_VQ_SIZE: u16 = 32768;
const FEATURES: Features = NIC;
