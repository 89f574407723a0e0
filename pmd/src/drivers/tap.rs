//! `tap/IFNAME`: a guest joined with a kernel TAP interface. A link whose other end is the host, which comes and goes with
//! the guest's device.

use std::collections::BTreeMap;

use super::host_port::{HostPort, NETNS, TAP, netns};
use super::link::{CHECK, LinkKind};
use crate::net::plan::switch;
use crate::net::tap::check_ifname;
use crate::vdpa::{
    AttributeInfo, ClassSpec, DeviceHost, DeviceSpec, DriverError, ManagementDevice, MgmtInfo, MgmtKind,
    MgmtKindInfo, NetSpec, Unfit, VdpaDevice,
};

/// The kind.
#[derive(Debug, Default)]
pub struct TapKind;

impl MgmtKind for TapKind {
    fn info(&self) -> MgmtKindInfo {
        let link = LinkKind.info();
        let check = |name: &str, _: &BTreeMap<String, String>| check_bus_name(name);
        MgmtKindInfo { name: "tap", attributes: Vec::new(), device: describe(link.device), check, ..link }
    }

    fn make(
        &mut self,
        name: &str,
        attributes: &BTreeMap<String, String>,
        core: usize,
    ) -> Result<Box<dyn ManagementDevice>, DriverError> {
        check_bus_name(name)?;
        let link = LinkKind.make(name, attributes, core)?;
        Ok(Box::new(TapMgmtdev { ifname: name.to_owned(), link }))
    }
}

fn describe(link: MgmtInfo) -> MgmtInfo {
    let host = AttributeInfo { help: "the host's own side, which comes by itself", ..TAP };
    let attributes = vec![CHECK, NETNS, host];
    let summary = "a guest joined with the kernel's TAP interface of that name";
    MgmtInfo { attributes, summary, check, ..link }
}

/// The name behind `tap/` is that of an interface.
fn check_bus_name(name: &str) -> Result<(), Unfit> {
    check_ifname(name).map_err(|why| Unfit::new("name", why))
}

/// The guest's side may say where the interface is; the host's is of the interface's name.
fn check(name: &str, spec: &DeviceSpec) -> Result<(), Unfit> {
    let own = name.strip_prefix("tap/").unwrap_or(name);
    check_ifname(own).map_err(|why| Unfit::new("mgmtdev", why))?;
    match spec.attributes.get(TAP.name) {
        None if spec.name == own => Err(Unfit::new(
            "name",
            format!("{own} is the name of the host's device, which comes with the guest's"),
        )),
        None => {
            netns(spec)?;
            switch(spec, CHECK.name).map(drop)
        }
        Some(ifname) if *ifname == own && spec.name == own => HostPort::asked(spec).map(drop),
        Some(_) => {
            let why = format!("tap: {name} joins a guest with {own}, whose device comes by itself");
            Err(Unfit::new(TAP.name, why))
        }
    }
}

/// One of them.
struct TapMgmtdev {
    ifname: String,
    link: Box<dyn ManagementDevice>,
}

impl ManagementDevice for TapMgmtdev {
    fn info(&self) -> MgmtInfo {
        let link = self.link.info();
        MgmtInfo { name: format!("tap/{}", self.ifname), ..describe(link) }
    }

    /// The guest's side, or the host's.
    fn create(&mut self, spec: &DeviceSpec, host: DeviceHost) -> Result<Box<dyn VdpaDevice>, DriverError> {
        check(&self.ifname, spec)?;
        let mut spec = spec.clone();
        if !spec.attributes.contains_key(TAP.name) {
            // Of the other side.
            spec.attributes.remove(NETNS.name);
        }
        self.link.create(&spec, host)
    }

    fn implied(&self, spec: &DeviceSpec) -> Option<DeviceSpec> {
        let mut attributes = BTreeMap::from([(TAP.name.to_owned(), self.ifname.clone())]);
        if let Some(netns) = spec.attributes.get(NETNS.name) {
            attributes.insert(NETNS.name.to_owned(), netns.clone());
        }
        let ClassSpec::Net(net) = spec.class else { return None };
        let class = ClassSpec::Net(NetSpec { mac: None, ..net });
        Some(DeviceSpec { name: self.ifname.clone(), features: None, class, attributes })
    }

    fn removed(&mut self, name: &str) {
        self.link.removed(name);
    }
}
