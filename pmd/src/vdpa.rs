//! What a driver must offer, and what it is given: the contract between a driver and the vDPA subsystem.
//!
//! ```text
//!   driver --register--> ManagementDevice --create--> VdpaDevice --pump--> Pump (placed on a worker)
//! ```
//!
//! | operation | called by | in which state | pairs with |
//! | --- | --- | --- | --- |
//! | [`ManagementDevice::create`] | control thread | any; must not wait for a peer | dropping the device |
//! | [`VdpaDevice::features`], `config`, `limits` | any holder | any; never changes state | |
//! | [`VdpaDevice::negotiated`] | session thread | features settled, before the first pump | [`VdpaDevice::reset`] |
//! | [`VdpaDevice::pump`] | session thread | no pump of that group exists | the pump's retirement |
//! | [`VdpaDevice::set_mtu`] | session thread | any | |
//! | [`VdpaDevice::reset`] | session thread | no pump exists | |
//!
//! A device is an owned value: control holds it while nobody is connected, the session while somebody is. Dropping it
//! ends it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use ringway_engine::Pump;
use ringway_ring::features::Features;
use ringway_ring::queue::{Format, QueueConfig};

use crate::counters::QueueCounters;
use crate::net::{Mac, NetConfig};
use crate::notify::EventFd;

/// What kind of virtio device (virtio 1.3 §5).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Network device, id 1.
    Net,
    /// Block device, id 2.
    Block,
}

impl Class {
    /// The name of `vdpa mgmtdev show`.
    pub fn class_name(self) -> &'static str {
        match self {
            Class::Net => "net",
            Class::Block => "block",
        }
    }
    /// The name of `vdpa dev show`.
    pub fn type_name(self) -> &'static str {
        match self {
            Class::Net => "network",
            Class::Block => "block",
        }
    }
}

/// How a device's rings are served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPath {
    /// The hardware consumes the guest's rings itself.
    Hardware,
    /// Cores move the descriptors.
    Pumped,
}

/// What a management device says of itself.
#[derive(Debug, Clone)]
pub struct MgmtInfo {
    /// `BUS/NAME` or a bare name; what operators write behind `mgmtdev`.
    pub name: String,
    /// What it can make.
    pub class: Class,
    /// The most virtqueues one device may have.
    pub max_supported_vqs: u32,
    /// Features it can offer.
    pub features: Features,
    /// Attributes of its own that `dev add` takes beside those of every device.
    pub attributes: Vec<AttributeInfo>,
    /// One line for operators.
    pub summary: &'static str,
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
}

/// What an operator asked of a new device. Absent values are the driver's to choose.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DeviceSpec {
    /// The device's name, unique in the process.
    pub name: String,
    /// Its Ethernet address.
    pub mac: Option<Mac>,
    /// Its MTU.
    pub mtu: Option<u16>,
    /// Its queue pairs.
    pub max_vqp: Option<u16>,
    /// The features it may offer at most.
    pub device_features: Option<Features>,
    /// The driver's own attributes: only names that it declared.
    pub attributes: BTreeMap<String, String>,
}

/// Why a driver refused, named by whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The operator asked for something that cannot be.
    #[error("{0}")]
    Misconfigured(String),
    /// The front-end asked for something that cannot be.
    #[error("front-end: {0}")]
    PeerMisbehaved(String),
    /// The host lacks something.
    #[error("{what}: {source}")]
    Resource {
        /// What was attempted.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// Limits of a device's queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Virtqueues, without a control queue.
    pub max_vqs: u16,
    /// Entries.
    pub max_vq_size: u16,
}

/// The configuration space by class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceConfig {
    /// A network device's.
    Net(NetConfig),
}

impl DeviceConfig {
    /// As the driver reads it.
    pub fn to_bytes(&self) -> Vec<u8> {
        match self {
            DeviceConfig::Net(config) => config.to_bytes().to_vec(),
        }
    }
}

/// Makes devices: what a driver registers.
pub trait ManagementDevice: Send {
    /// What it is.
    fn info(&self) -> MgmtInfo;
    /// Makes a device. Must not wait for a peer.
    fn create(&mut self, spec: &DeviceSpec) -> Result<Box<dyn VdpaDevice>, DriverError>;
}

/// A device that a driver made.
pub trait VdpaDevice: Send {
    /// What it is.
    fn class(&self) -> Class;
    /// How its rings are served.
    fn data_path(&self) -> DataPath;
    /// What it offers, transport features included, vhost-user's own not.
    fn features(&self) -> Features;
    /// Its queues.
    fn limits(&self) -> QueueLimits;
    /// Its configuration space.
    fn config(&self) -> DeviceConfig;
    /// Virtio vendor id.
    fn vendor_id(&self) -> u32 {
        VENDOR_ID
    }
    /// The driver's own attributes as they are in force, for `config dump`.
    fn attributes(&self) -> BTreeMap<String, String>;

    /// The front-end told the MTU that the guest will use (NET_SET_MTU).
    fn set_mtu(&mut self, mtu: u16) -> Result<(), DriverError> {
        Err(DriverError::PeerMisbehaved(format!("set MTU {mtu}: this device has none")))
    }

    /// The features that guest and device agreed on. A subset of what was offered.
    fn negotiated(&mut self, features: Features) -> Result<(), DriverError> {
        let _ = features;
        Ok(())
    }

    /// Which group queue `index` belongs to: the queues of one group are served by one pump. Groups are numbered from
    /// 0 without gaps.
    fn group_of(&self, index: u16) -> u16;

    /// Makes the pump of a group for those of its queues that are started. Called anew, after the old pump was
    /// retired, whenever one of them starts, stops or changes.
    fn pump(&mut self, group: u16, queues: Vec<QueueBinding>) -> Result<Box<dyn Pump>, DriverError>;

    /// Back to the state after creation. Every pump was retired.
    fn reset(&mut self) {}
}

/// A started queue, as a driver gets it to build a pump.
#[derive(Debug)]
pub struct QueueBinding {
    /// Which queue.
    pub index: u16,
    /// False: started but disabled; net must not deliver to it, and consumes and drops what it sends.
    pub enabled: bool,
    /// Its layout.
    pub format: Format,
    /// Its ring, ready to activate.
    pub config: QueueConfig,
    /// Becomes readable when the driver kicks. None: the front-end polls and never kicks.
    pub kick: Option<Arc<EventFd>>,
    /// To be signalled when the driver asked for it. None: never.
    pub call: Option<Arc<EventFd>>,
    /// Its counters.
    pub counters: Arc<QueueCounters>,
    /// Where a fault of the ring is told.
    pub fault: FaultReporter,
}

/// Tells the session of a ring's fault without waiting: the pump calls it once and leaves the ring alone from then on.
#[derive(Clone)]
pub struct FaultReporter(Arc<FaultCell>);

struct FaultCell {
    fault: std::sync::atomic::AtomicU8,
    attention: Arc<EventFd>,
}

impl fmt::Debug for FaultReporter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("FaultReporter").field(&self.reported()).finish()
    }
}

impl FaultReporter {
    /// A reporter that wakes its session by `attention`.
    pub fn new(attention: Arc<EventFd>) -> FaultReporter {
        FaultReporter(Arc::new(FaultCell { fault: std::sync::atomic::AtomicU8::new(0), attention }))
    }
    /// Reports a fault: one store and one write to an eventfd of our own.
    pub fn report(&self, fault: ringway_ring::queue::RingFault) {
        // Release: pairs with the Acquire in `reported`; what the pump wrote before is visible to the session.
        self.0.fault.store(fault as u8, std::sync::atomic::Ordering::Release);
        self.0.attention.signal();
    }
    /// The fault reported, if any.
    pub fn reported(&self) -> Option<ringway_ring::queue::RingFault> {
        // Acquire: pairs with the Release in `report`.
        let number = self.0.fault.load(std::sync::atomic::Ordering::Acquire);
        ringway_ring::queue::RingFault::ALL.into_iter().find(|fault| *fault as u8 == number)
    }
}

/// Ringway's virtio vendor id, as `dev show` prints it ("RW").
pub const VENDOR_ID: u32 = 0x5257;
