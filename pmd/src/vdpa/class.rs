//! Kinds of virtio devices, and the operations that only one kind has: nothing of a class is in the common part.

use super::DriverError;
use crate::block::BlockConfig;
use crate::net::{Mac, NetConfig};

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

/// A device's operations by its class.
pub enum ClassOps<'device> {
    /// Of a network device.
    Net(&'device mut dyn NetOps),
    /// Of a block device.
    Block(&'device mut dyn BlockOps),
}

impl std::fmt::Debug for ClassOps<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            ClassOps::Net(_) => "Net",
            ClassOps::Block(_) => "Block",
        })
    }
}

impl<'device> ClassOps<'device> {
    /// The operations of a network device, if it is one.
    pub fn net(self) -> Option<&'device mut dyn NetOps> {
        match self {
            ClassOps::Net(net) => Some(net),
            ClassOps::Block(_) => None,
        }
    }
}

/// What only network devices do. Called by the session; [`NetOps::net_config`] also by control, while no session has the
/// device: it must not wait.
pub trait NetOps {
    /// Its configuration, as the driver of the guest reads it from configuration space.
    fn net_config(&self) -> NetConfig;
    /// The front-end told the MTU that the guest will use (NET_SET_MTU).
    ///
    /// # Errors
    /// The device cannot have it.
    fn set_mtu(&mut self, mtu: u16) -> Result<(), DriverError>;
    /// The front-end says that the guest with this address has arrived here (SEND_RARP): the network is told, once the
    /// device sends. None: what was not told yet is not told any more. A device without a network does nothing.
    ///
    /// # Errors
    /// The guest may not have this address.
    fn announce(&mut self, mac: Option<Mac>) -> Result<(), DriverError> {
        let _ = mac;
        Ok(())
    }
}

/// What only block devices do. Called by the session, and by control while no session has the device: it must not wait.
pub trait BlockOps {
    /// Its configuration, as the driver of the guest reads it from configuration space.
    fn block_config(&self) -> BlockConfig;
}

/// What only management devices do that forward between network devices. Called by the control thread.
pub trait NetMgmt {
    /// What it has learned of stations.
    fn stations(&self) -> Learned;
}

/// What a bridge has learned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Learned {
    /// The stations.
    pub stations: Vec<LearnedStation>,
    /// Addresses that were not learned, for want of room.
    pub refused: u64,
}

/// A station behind a device of a bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LearnedStation {
    /// Its address.
    pub mac: Mac,
    /// The VLAN in which it was heard of, where the bridge looks at them.
    pub vid: Option<u16>,
    /// The device.
    pub device: String,
    /// Seconds since it was last heard of.
    pub age: u64,
}

/// Ringway's virtio vendor id, as `dev show` prints it ("RW").
pub const VENDOR_ID: u32 = 0x5257;
