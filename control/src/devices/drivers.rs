//! The drivers that this build has: what `ringwayd` registers.

use ringway_pmd::drivers::bridge::BridgeBus;
use ringway_pmd::drivers::link::LinkBus;
use ringway_pmd::drivers::sim_net::SimNet;
use ringway_pmd::drivers::tap::TapBus;
use ringway_pmd::vdpa::{ManagementBus, ManagementDevice};

use crate::devices::registry::Known;

/// Every driver's management device.
pub fn all() -> Vec<Box<dyn ManagementDevice>> {
    vec![Box::new(SimNet::new())]
}

/// Every bus whose management devices come to be by being named.
pub fn buses() -> Vec<Box<dyn ManagementBus>> {
    vec![Box::new(LinkBus), Box::new(BridgeBus), Box::new(TapBus)]
}

/// What they say of themselves, for checks without a daemon.
pub fn known() -> Known {
    Known {
        mgmtdevs: all().iter().map(|mgmtdev| mgmtdev.info()).collect(),
        buses: buses().iter().map(|bus| bus.info()).collect(),
        ..Known::default()
    }
}
