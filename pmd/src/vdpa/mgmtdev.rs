//! Management devices: what makes devices, and what operators are told of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use ringway_ring::features::Features;

use super::{Class, DeviceHost, DeviceSpec, DriverError, Functions, NetMgmt, Parent, Unfit, VdpaDevice};
use crate::net::uplink::UplinkFunction;

/// What a management device says of itself.
#[derive(Debug, Clone)]
pub struct MgmtInfo {
    /// `BUS/ADDRESS`, `KIND/NAME` or a bare name; what operators write behind `mgmtdev`.
    pub name: String,
    /// What it can make.
    pub class: Class,
    /// The most virtqueues one device may have.
    pub max_supported_vqs: u32,
    /// The most devices that it can have at a time; None for any number.
    pub max_devices: Option<usize>,
    /// Features it can offer.
    pub features: Features,
    /// Attributes of its own that `dev add` takes beside those of every device.
    pub attributes: Vec<AttributeInfo>,
    /// What can be made of it, for one whose hardware can be divided.
    pub functions: Option<Functions>,
    /// One line for operators.
    pub summary: &'static str,
    /// Checks of a request all that can be told without making the device: values, and what goes with what. It is given the
    /// management device's name.
    pub check: fn(&str, &DeviceSpec) -> Result<(), Unfit>,
}

/// An attribute of a driver's own.
#[derive(Debug, Clone, Copy)]
pub struct AttributeInfo {
    /// The keyword.
    pub name: &'static str,
    /// What a value looks like, as in `on|off`.
    pub value: &'static str,
    /// One line of help, with the default.
    pub help: &'static str,
    /// It can be changed while a front-end is connected ([`VdpaDevice::set`]). None: it is in force when the next one connects.
    pub live: Option<Live>,
}

/// How an attribute changes while a front-end is connected.
#[derive(Debug, Clone, Copy)]
pub struct Live {
    /// What a value waits for. None: nothing.
    pub waits: fn(&str) -> Option<&'static str>,
    /// The value that is as good as not asking for it. None: there is none, and only a new device has the default.
    pub unset: Option<&'static str>,
    /// The device tells of it also where it is `unset`.
    pub is_told: bool,
}

impl Live {
    /// In force at once.
    pub const AT_ONCE: Live = Live { waits: |_| None, unset: None, is_told: true };

    /// The same, and `unset` is as good as not asking for it.
    pub const fn or(unset: &'static str) -> Live {
        Live { unset: Some(unset), ..Live::AT_ONCE }
    }

    /// The same, of what a device has only where it is not `unset`, as a limit.
    pub const fn unless(unset: &'static str) -> Live {
        Live { is_told: false, ..Live::or(unset) }
    }
}

/// Makes devices: what is registered. Called by the control thread; waits for nobody.
pub trait ManagementDevice: Send {
    /// What it is.
    fn info(&self) -> MgmtInfo;
    /// Makes a device, which tells by `host` what it has to tell.
    ///
    /// # Errors
    /// It cannot be made; nothing of it is left.
    fn create(&mut self, spec: &DeviceSpec, host: DeviceHost) -> Result<Box<dyn VdpaDevice>, DriverError>;
    /// What it is to a bridge whose way out it is to be, in place of a device of its own.
    ///
    /// # Errors
    /// It cannot be one.
    fn uplink(&self) -> Result<Arc<dyn UplinkFunction>, DriverError> {
        let name = self.info().name;
        Err(DriverError::Misconfigured(format!("{name} is no function of the host's that can be an uplink")))
    }
    /// Makes a device of an uplink's function: it has no guest.
    ///
    /// # Errors
    /// As for [`ManagementDevice::create`].
    fn create_uplink(
        &mut self,
        spec: &DeviceSpec,
        function: Arc<dyn UplinkFunction>,
        host: DeviceHost,
    ) -> Result<Box<dyn VdpaDevice>, DriverError> {
        let _ = (spec, function, host);
        Err(DriverError::Misconfigured(format!("{} has no uplink", self.info().name)))
    }
    /// The device that comes with this one, and goes with it: the host's end of what joins the two.
    fn implied(&self, spec: &DeviceSpec) -> Option<DeviceSpec> {
        let _ = spec;
        None
    }
    /// A device of this name was removed. Its session may still hold it.
    fn removed(&mut self, name: &str) {
        let _ = name;
    }
    /// Attributes of the management device itself as they are in force.
    fn attributes(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }
    /// Changes attributes of the management device itself: only names that its kind declared. Returns true if sessions are
    /// to follow to other cores.
    ///
    /// # Errors
    /// It cannot be so; nothing is changed.
    fn set(&mut self, attributes: &BTreeMap<String, String>) -> Result<bool, DriverError> {
        match attributes.keys().next() {
            Some(name) => Err(DriverError::Misconfigured(format!("{name}: cannot be changed"))),
            None => Ok(false),
        }
    }
    /// The core on which all its devices are served, decided by control; None: each device is placed alone.
    fn shared_core(&self) -> Option<usize> {
        None
    }
    /// A device may be given a core of its own: it is served where its placer says, and the others by the shared one.
    fn takes_cores(&self) -> bool {
        false
    }
    /// How it is divided, for one whose hardware can be: where it says so in [`MgmtInfo::functions`].
    fn parent(&mut self) -> Option<&mut dyn Parent> {
        None
    }
    /// What it does beside that as a network, for one that forwards between its devices.
    fn net(&self) -> Option<&dyn NetMgmt> {
        None
    }
}

/// A kind of management devices that come to be by being named, on no bus: `KIND/NAME` for any NAME.
pub trait MgmtKind: Send {
    /// What it is.
    fn info(&self) -> MgmtKindInfo;
    /// Makes the management device `KIND/name`. `core` is the one that control chose for what its devices share.
    ///
    /// # Errors
    /// It cannot be made.
    fn make(
        &mut self,
        name: &str,
        attributes: &BTreeMap<String, String>,
        core: usize,
    ) -> Result<Box<dyn ManagementDevice>, DriverError>;
}

/// What a kind of management devices says of itself.
#[derive(Debug, Clone)]
pub struct MgmtKindInfo {
    /// Its name, which comes before the `/`.
    pub name: &'static str,
    /// Attributes of its management devices.
    pub attributes: Vec<AttributeInfo>,
    /// The devices of each management device share one core.
    pub shares_core: bool,
    /// A device may be given a core of its own all the same: [`ManagementDevice::takes_cores`].
    pub takes_cores: bool,
    /// What each management device says of itself, but for its name.
    pub device: MgmtInfo,
    /// Checks the name (behind the `/`) and the attributes of a management device that is to be made or changed.
    pub check: fn(&str, &BTreeMap<String, String>) -> Result<(), Unfit>,
}
