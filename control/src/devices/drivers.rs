//! The drivers that this build has: what `ringwayd` registers.

use ringway_pmd::bus::pci::host::HostBus;
use ringway_pmd::driver::{Attached, Attachments};
use ringway_pmd::drivers::bridge::BridgeKind;
use ringway_pmd::drivers::link::LinkKind;
use ringway_pmd::drivers::sim_net::SimNet;
use ringway_pmd::drivers::tap::TapKind;
use ringway_pmd::drivers::virtio_pci::{self, VirtioPci};
use ringway_pmd::vdpa::{ManagementDevice, MgmtKind};

use crate::devices::known::Known;

/// Every driver's management device.
pub fn all() -> Vec<Box<dyn ManagementDevice>> {
    vec![Box::new(SimNet::new())]
}

/// Every kind of management devices that come to be by being named.
pub fn kinds() -> Vec<Box<dyn MgmtKind>> {
    vec![Box::new(LinkKind), Box::new(BridgeKind), Box::new(TapKind)]
}

/// Every bus of the host's with its drivers.
pub fn attachments() -> Vec<Box<dyn Attachments>> {
    match HostBus::start(virtio_pci::EXAMINER) {
        Ok(bus) => vec![Box::new(Attached::new(bus, vec![Box::new(VirtioPci)]))],
        Err(error) => {
            tracing::warn!("the PCI bus is not watched, so no function of it can be used: {error}");
            Vec::new()
        }
    }
}

/// What they say of themselves, for checks without a daemon.
pub fn known() -> Known {
    Known {
        mgmtdevs: all().iter().map(|mgmtdev| mgmtdev.info()).collect(),
        kinds: kinds().iter().map(|kind| kind.info()).collect(),
        function: Some(virtio_pci::at_most()),
        ..Known::default()
    }
}
