//! `tap/IFNAME`: a guest joined with a kernel TAP interface. A link whose other end is the host, which comes and goes with
//! the guest's device.

use std::collections::BTreeMap;

use super::host_port::{NETNS, TAP};
use super::link::{CHECK, LinkBus};
use crate::net::tap::check_ifname;
use crate::vdpa::{
    AttributeInfo, BusInfo, DeviceSpec, DriverError, ManagementBus, ManagementDevice, MgmtInfo, VdpaDevice,
};

/// The bus.
#[derive(Debug, Default)]
pub struct TapBus;

impl ManagementBus for TapBus {
    fn info(&self) -> BusInfo {
        let link = LinkBus.info();
        BusInfo { name: "tap", attributes: Vec::new(), device: describe(link.device), ..link }
    }

    fn make(
        &mut self,
        name: &str,
        attributes: &BTreeMap<String, String>,
        core: usize,
    ) -> Result<Box<dyn ManagementDevice>, DriverError> {
        check_ifname(name).map_err(DriverError::Misconfigured)?;
        let link = LinkBus.make(name, attributes, core)?;
        Ok(Box::new(Tap { ifname: name.to_owned(), link }))
    }
}

fn describe(link: MgmtInfo) -> MgmtInfo {
    let host = AttributeInfo { help: "the host's own side, which comes by itself", ..TAP };
    let attributes = vec![CHECK, NETNS, host];
    MgmtInfo { attributes, summary: "a guest joined with the kernel's TAP interface of that name", ..link }
}

/// One of them.
struct Tap {
    ifname: String,
    link: Box<dyn ManagementDevice>,
}

impl ManagementDevice for Tap {
    fn info(&self) -> MgmtInfo {
        let link = self.link.info();
        MgmtInfo { name: format!("tap/{}", self.ifname), ..describe(link) }
    }

    /// The guest's side, or the host's.
    fn create(&mut self, spec: &DeviceSpec) -> Result<Box<dyn VdpaDevice>, DriverError> {
        let mut spec = spec.clone();
        match spec.attributes.get(TAP.name) {
            Some(ifname) if *ifname != self.ifname => {
                let why = format!("tap {ifname}: this joins a guest with {}", self.ifname);
                return Err(DriverError::misconfigured(why));
            }
            Some(_) => {}
            // Of the other side.
            None => drop(spec.attributes.remove(NETNS.name)),
        }
        self.link.create(&spec)
    }

    fn implied(&self, spec: &DeviceSpec) -> Option<DeviceSpec> {
        let mut attributes = BTreeMap::from([(TAP.name.to_owned(), self.ifname.clone())]);
        if let Some(netns) = spec.attributes.get(NETNS.name) {
            attributes.insert(NETNS.name.to_owned(), netns.clone());
        }
        Some(DeviceSpec {
            name: self.ifname.clone(),
            mac: None,
            device_features: None,
            attributes,
            ..spec.clone()
        })
    }

    fn removed(&mut self, name: &str) {
        self.link.removed(name);
    }
}
