//! The drivers that this build has: what `ringwayd` registers.

use ringway_pmd::vdpa::{ManagementDevice, MgmtInfo};

/// Every driver's management device.
pub fn all() -> Vec<Box<dyn ManagementDevice>> {
    vec![Box::new(ringway_pmd::drivers::sim_net::SimNet::new())]
}

/// What they say of themselves, for checks without a daemon.
pub fn infos() -> Vec<MgmtInfo> {
    all().iter().map(|mgmtdev| mgmtdev.info()).collect()
}
