//! The drivers that this build has: what `ringwayd` registers.

use ringway_pmd::bus::pci::host::{self, HostBus};
use ringway_pmd::bus::virt::{self, Child, VirtualBus};
use ringway_pmd::driver::{Attached, Attachments, Driver};
use ringway_pmd::drivers::bridge::BridgeKind;
use ringway_pmd::drivers::file::FileDisks;
use ringway_pmd::drivers::functions;
use ringway_pmd::drivers::link::LinkKind;
use ringway_pmd::drivers::nvme::NvmeFunction;
use ringway_pmd::drivers::sim_blk::SimBlk;
use ringway_pmd::drivers::sim_net::SimNet;
use ringway_pmd::drivers::sim_nic::{SimFunction, SimNicKind};
use ringway_pmd::drivers::tap::TapKind;
use ringway_pmd::vdpa::{ManagementDevice, MgmtKind};

use crate::devices::known::{Known, KnownBus};

/// Every driver's management device.
pub fn all() -> Vec<Box<dyn ManagementDevice>> {
    vec![Box::new(SimNet::new()), Box::new(SimBlk::new()), Box::new(FileDisks::new())]
}

/// Every kind of management devices that come to be by being named; `bus` is where those that can be divided have their children.
pub fn kinds(bus: &VirtualBus) -> Vec<Box<dyn MgmtKind>> {
    let nic = SimNicKind(bus.clone());
    vec![Box::new(LinkKind), Box::new(BridgeKind), Box::new(TapKind), Box::new(nic)]
}

/// The drivers of children on the virtual bus.
fn of_children() -> Vec<Box<dyn Driver<Child>>> {
    vec![Box::new(SimFunction), Box::new(NvmeFunction)]
}

/// Every bus with its drivers.
pub fn attachments(bus: &VirtualBus) -> Vec<Box<dyn Attachments>> {
    let mut attachments: Vec<Box<dyn Attachments>> =
        vec![Box::new(Attached::new(bus.clone(), of_children()))];
    match HostBus::start(functions::examiners()) {
        Ok(host) => attachments.push(Box::new(Attached::new(host, functions::drivers(bus)))),
        Err(error) => {
            tracing::warn!("the PCI bus is not watched, so no function of it can be used: {error}");
        }
    }
    attachments
}

/// What they say of themselves, for checks without a daemon.
pub fn known() -> Known {
    let bus = VirtualBus::default();
    Known {
        unusable: std::collections::BTreeMap::new(),
        mgmtdevs: all().iter().map(|mgmtdev| mgmtdev.info()).collect(),
        kinds: kinds(&bus).iter().map(|kind| kind.info()).collect(),
        buses: vec![
            KnownBus::with(host::INFO, &functions::drivers(&bus)),
            KnownBus::with(virt::INFO, &of_children()),
        ],
        ..Known::default()
    }
}
