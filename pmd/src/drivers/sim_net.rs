//! `sim/net`: a network device whose wire is a loop, on no bus.
//!
//! What the guest sends on queue pair i comes back on queue pair i, as it was sent or with its MAC addresses swapped.
//! It needs no hardware and no privilege, and makes two-way traffic with anything that drives a virtio NIC.

use std::collections::BTreeMap;
use std::time::Duration;

use ringway_engine::Pump;
use ringway_ring::features::Features;
use ringway_ring::tsc;

use crate::counters::DropReason;
use crate::net::NIC;
use crate::net::end::PortRules;
use crate::net::nic::Nic;
use crate::net::plan::{Offer, switch, word};
use crate::net::side::{receive_queue, transmit_queue};
use crate::net::transfer::{Transfer, TransferOptions};
use crate::vdpa::{
    AttributeInfo, Class, ClassOps, ConfigSpace, DeviceHost, DeviceSpec, DriverError, Facts, MakePump,
    ManagementDevice, MgmtInfo, OwnPumps, QueueBinding, Queues, Stuck, Unfit, VdpaDevice,
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

    fn create(&mut self, spec: &DeviceSpec, _host: DeviceHost) -> Result<Box<dyn VdpaDevice>, DriverError> {
        Ok(Box::new(SimNetDevice(OwnPumps::new(Loop::new(spec)?))))
    }
}

fn check(_name: &str, spec: &DeviceSpec) -> Result<(), Unfit> {
    switch(spec, SWAP).map(drop)
}

/// A device.
#[derive(Debug)]
struct SimNetDevice(OwnPumps<Loop>);

/// What its pumps are made from.
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

impl VdpaDevice for SimNetDevice {
    fn facts(&self) -> Facts {
        self.0.maker.nic.facts()
    }

    fn config(&mut self) -> &mut dyn ConfigSpace {
        &mut self.0.maker.nic
    }

    fn queues(&mut self) -> &mut dyn Queues {
        &mut self.0
    }

    fn class(&mut self) -> ClassOps<'_> {
        ClassOps::Net(&mut self.0.maker.nic)
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(SWAP.to_owned(), word(self.0.maker.swap_mac))])
    }

    fn reset(&mut self, _within: Duration) -> Result<(), Stuck> {
        self.0.maker.nic.reset();
        Ok(())
    }
}

/// The one attribute of its own.
const SWAP: &str = "swap";

const MAX_PAIRS: u16 = 16;

const MAX_VQ_SIZE: u16 = 32768;

const FEATURES: Features = NIC;
