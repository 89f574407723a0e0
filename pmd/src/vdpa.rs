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
//! | [`VdpaDevice::announce`] | session thread | any | |
//! | [`VdpaDevice::reset`] | session thread | no pump exists | |
//!
//! A device is an owned value: control holds it while nobody is connected, the session while somebody is. Dropping it
//! ends it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ringway_engine::{Engine, Pump, Watcher};
use ringway_ring::features::Features;
use ringway_ring::queue::{Format, QueueConfig};

use crate::counters::QueueCounters;
use crate::net::{AddressSeed, Mac, NetConfig};
use crate::notify::{CallFd, EventFd};

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
    /// The most devices that it can have at a time; None for any number.
    pub max_devices: Option<usize>,
    /// Features it can offer.
    pub features: Features,
    /// Attributes of its own that `dev add` takes beside those of every device.
    pub attributes: Vec<AttributeInfo>,
    /// One line for operators.
    pub summary: &'static str,
    /// Checks of a request all that can be told without making the device: values, and what goes with what. It is given the
    /// management device's name.
    pub check: fn(&str, &DeviceSpec) -> Result<(), Unfit>,
}

/// What an operator asked for and can never be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Unfit {
    /// The attribute that is at fault.
    pub attribute: &'static str,
    /// Why, for operators.
    pub why: String,
}

impl Unfit {
    /// This attribute is at fault.
    pub fn new(attribute: &'static str, why: impl Into<String>) -> Unfit {
        Unfit { attribute, why: why.into() }
    }
}

impl From<Unfit> for DriverError {
    fn from(unfit: Unfit) -> DriverError {
        DriverError::Misconfigured(unfit.why)
    }
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
    /// What its default address is made of, beside its name. None: the name alone.
    pub seed: Option<AddressSeed>,
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
    /// What was named is not there.
    #[error("{0}")]
    NotFound(String),
    /// Another has what was asked for, or it is something else.
    #[error("{what}")]
    Conflict {
        /// What it is.
        what: String,
        /// Who has it, where that can be seen.
        held_by: Option<String>,
        /// What to do.
        hint: String,
    },
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

impl DriverError {
    /// The operator asked for something that cannot be.
    pub fn misconfigured(what: impl Into<String>) -> DriverError {
        DriverError::Misconfigured(what.into())
    }
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
    /// Changes attributes of the management device itself: only names that its bus declared. Returns true if sessions are
    /// to follow to other cores.
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
    /// What it has learned of stations, for a bridge.
    fn stations(&self) -> Option<Learned> {
        None
    }
}

/// A bus whose management devices come to be by being named: `BUS/NAME` for any NAME.
pub trait ManagementBus: Send {
    /// What it is.
    fn info(&self) -> BusInfo;
    /// Makes the management device `BUS/name`. `core` is the one that control chose for what its devices share.
    fn make(
        &mut self,
        name: &str,
        attributes: &BTreeMap<String, String>,
        core: usize,
    ) -> Result<Box<dyn ManagementDevice>, DriverError>;
}

/// What a bus says of itself.
#[derive(Debug, Clone)]
pub struct BusInfo {
    /// Its name, which comes before the `/`.
    pub name: &'static str,
    /// Attributes of its management devices.
    pub attributes: Vec<AttributeInfo>,
    /// The devices of each management device share one core.
    pub shares_core: bool,
    /// What each management device says of itself, but for its name.
    pub device: MgmtInfo,
    /// Checks the name (behind the `/`) and the attributes of a management device that is to be made or changed.
    pub check: fn(&str, &BTreeMap<String, String>) -> Result<(), Unfit>,
}

/// What a bridge has learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learned {
    /// Each station: address, device, seconds since it was last heard of.
    pub stations: Vec<(Mac, String, u64)>,
    /// Addresses that were not learned, for want of room.
    pub refused: u64,
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

    /// The front-end says that the guest with this address has arrived here (SEND_RARP): the network is told, once the
    /// device sends. None: what was not told yet is not told any more. A device without a network does nothing.
    fn announce(&mut self, mac: Option<Mac>) -> Result<(), DriverError> {
        let _ = mac;
        Ok(())
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
    /// retired, whenever one of them starts, stops or changes. Never called for a device with a [`Service`].
    fn pump(&mut self, group: u16, queues: Vec<QueueBinding>) -> Result<Box<dyn Pump>, DriverError> {
        let _ = queues;
        Err(DriverError::Misconfigured(format!("group {group} is not served by a pump of its own")))
    }

    /// The kernel's interface that is its other side, for a device that has no front-end.
    fn netdev(&mut self) -> Option<&mut dyn Netdev> {
        None
    }

    /// An operator removed the device: what was made for it on the host goes, too. Every queue is out of service. Called
    /// by its last holder, which may be control.
    fn removed(&mut self) {}

    /// What serves its queues, for a device whose pumps hold queues of other devices too. None: each of its groups has a
    /// pump of its own.
    fn service(&mut self) -> Option<&mut dyn Service> {
        None
    }

    /// Back to the state after creation. Every pump was retired.
    fn reset(&mut self) {}
}

/// Serves the queues of a device together with those of others. Called by the session's thread; what it waits for are
/// workers, never peers.
pub trait Service {
    /// Puts the started queues of a group into service; none of the group is.
    fn start(
        &mut self,
        group: u16,
        queues: Vec<QueueBinding>,
        berth: &Berth,
        within: Duration,
    ) -> Result<(), ServiceError>;
    /// Takes the queues of a group out of service: once this returns Ok, no worker touches them or their memory.
    fn stop(&mut self, group: u16, within: Duration) -> Result<(), ServiceError>;
    /// A queue of the group is in service.
    fn is_started(&self, group: u16) -> bool;
    /// Queues, of other devices too, that are out of service for a moment when those of one group change.
    fn running(&self) -> usize;
    /// The core on which the group is served.
    fn core(&self, group: u16) -> Option<usize>;
    /// Moves what serves the queues to the cores that control decided on.
    fn follow_cores(&mut self, within: Duration) -> Result<(), ServiceError>;
    /// The groups that were taken out without being asked for, and why, once.
    fn take_ended(&mut self, within: Duration) -> Vec<(u16, Ended)>;
}

/// A device whose other side is a kernel's interface. Called by its session, which has no socket.
pub trait Netdev {
    /// The interface.
    fn ifname(&self) -> &str;
    /// Opens it, if it is not open, and puts its queues into service. `attention` is signalled when it is gone.
    fn open(
        &mut self,
        counters: &[Arc<QueueCounters>],
        attention: Arc<EventFd>,
        berth: &Berth,
        within: Duration,
    ) -> Result<(), DriverError>;
    /// Ringway made it, and makes it again if it is gone.
    fn is_own(&self) -> bool;
    /// It is gone.
    fn is_gone(&self) -> bool;
    /// What somebody set otherwise since it was opened, as it is now. Asks the kernel.
    fn changes(&mut self) -> Vec<NetdevChange>;
}

/// Something of a kernel's interface that somebody else changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetdevChange {
    /// What was changed, and of which interface.
    pub what: String,
    /// What sets it back.
    pub cure: String,
}

/// Where a service places its pumps.
#[derive(Clone)]
pub struct Berth {
    /// The device's name, for the names of pumps.
    pub name: String,
    /// The workers.
    pub engine: Engine,
    /// The core that control decided on for a group.
    pub core_of: Arc<dyn Fn(u16) -> usize + Send + Sync>,
    /// Told when a pump was taken out.
    pub watcher: Arc<dyn Watcher>,
}

impl fmt::Debug for Berth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Berth").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How a group of queues was taken out of service without being asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Its pump panicked with this message.
    Panicked(String),
    /// The pump that was to go on with it could not be placed, for this reason.
    NotPlaced(String),
}

/// Why queues are not in service, or not out of it.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// They cannot be served so.
    #[error("{0}")]
    Refused(String),
    /// No worker took them.
    #[error("no worker took them: {0}")]
    NotPlaced(String),
    /// A worker did not let go in time; their memory is still in use.
    #[error("a worker did not let go: {0}")]
    Stuck(String),
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
    pub call: Option<Arc<CallFd>>,
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
