//! `link/NAME`: two devices joined, each the other's wire. On no bus: it comes to be by being named.
//!
//! What one sends, the other receives, by one copy from buffer to buffer, on the core of the receiving queue; offloads
//! that both sides agreed on pass through untouched. A receiver without buffers holds its sender back for 10 ms, then
//! loses frames, which are counted.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::host_port::{HostPort, NETNS, TAP};
use super::joined::{FEATURES, MAX_PAIRS, Members, guest_port};
use crate::net::fabric::Fabric;
use crate::net::plan::{Offer, switch};
use crate::vdpa::{
    AttributeInfo, Class, DeviceHost, DeviceSpec, DriverError, Live, ManagementDevice, MgmtInfo, MgmtKind,
    MgmtKindInfo, Unfit, VdpaDevice,
};

/// The kind.
#[derive(Debug, Default)]
pub struct LinkKind;

impl MgmtKind for LinkKind {
    fn info(&self) -> MgmtKindInfo {
        MgmtKindInfo {
            name: "link",
            attributes: Vec::new(),
            shares_core: false,
            takes_cores: false,
            device: describe(String::new()),
            check: |_, _| Ok(()),
        }
    }

    fn make(
        &mut self,
        name: &str,
        _attributes: &BTreeMap<String, String>,
        _core: usize,
    ) -> Result<Box<dyn ManagementDevice>, DriverError> {
        let name = format!("link/{name}");
        Ok(Box::new(LinkMgmtdev { fabric: Fabric::link(&name), name, members: Members::default() }))
    }
}

/// One link.
#[derive(Debug)]
struct LinkMgmtdev {
    name: String,
    fabric: Arc<Fabric>,
    members: Members,
}

impl ManagementDevice for LinkMgmtdev {
    fn info(&self) -> MgmtInfo {
        describe(self.name.clone())
    }

    fn create(&mut self, spec: &DeviceSpec, _host: DeviceHost) -> Result<Box<dyn VdpaDevice>, DriverError> {
        if let Some(host) = HostPort::join(&self.fabric, &mut self.members, spec)? {
            return Ok(Box::new(host));
        }
        let plan = Offer { mgmtdev: "link", features: FEATURES, max_pairs: MAX_PAIRS }.plan(spec)?;
        Ok(Box::new(guest_port(&self.fabric, &mut self.members, plan, spec)?))
    }

    fn removed(&mut self, name: &str) {
        self.members.leave(name);
    }
}

fn describe(name: String) -> MgmtInfo {
    MgmtInfo {
        name,
        class: Class::Net,
        max_supported_vqs: u32::from(MAX_PAIRS) * 2,
        max_devices: Some(2),
        features: FEATURES,
        attributes: vec![CHECK, TAP, NETNS],
        functions: None,
        summary: "two devices joined, each the other's wire",
        check,
    }
}

/// What a port of a link can be: a guest's, or the host's.
pub(super) fn check(_name: &str, spec: &DeviceSpec) -> Result<(), Unfit> {
    if HostPort::asked(spec)?.is_none() {
        switch(spec, CHECK.name)?;
    }
    Ok(())
}

/// Named as the kernel's attribute of a VF.
pub(super) const CHECK: AttributeInfo = AttributeInfo {
    name: "spoofchk",
    value: "on|off",
    help: "drop what the guest sends from an address other than the device's mac (default off); in force at once",
    live: Some(Live::or("off")),
};
