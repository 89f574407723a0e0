//! A device that a driver made: what control and a session hold, one at a time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;

use super::{Class, ClassOps, ConfigSpace, DriverError, HostEnd, Queues, Stuck};
use crate::dma::{Cancel, MapError};

/// How a device's rings are served, unless [`super::Queues::served_by`] says otherwise of some just now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DataPath {
    /// The hardware consumes the guest's rings itself.
    Hardware,
    /// Cores forward the guest's descriptors to rings of the same kind, which are the hardware's.
    Relay,
    /// Cores move what the descriptors are of.
    Pumped,
}

impl DataPath {
    /// As operators read it.
    pub fn name(self) -> &'static str {
        match self {
            DataPath::Hardware => "hardware",
            DataPath::Relay => "relay",
            DataPath::Pumped => "pumped",
        }
    }
}

/// Limits of a device's queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct QueueLimits {
    /// Virtqueues, without a control queue.
    pub max_vqs: u16,
    /// Entries at most.
    pub max_vq_size: u16,
}

/// What a device is. It never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Facts {
    /// What kind of device.
    pub class: Class,
    /// Virtio vendor id.
    pub vendor_id: u32,
    /// How its rings are served.
    pub data_path: DataPath,
    /// The device reaches the guest's memory by itself, so that a queue which it did not give back is not over with a core.
    pub dma: bool,
    /// What it offers to the guest, transport features included, a front-end protocol's own not. How a function is driven
    /// is the driver's own matter.
    pub features: Features,
    /// Its queues.
    pub limits: QueueLimits,
    /// So many queues, one after the other, make a group: they are started and stopped together. 2 for a network device, whose
    /// pairs are groups.
    pub queues_per_group: u16,
}

impl Facts {
    /// The group of a queue. Groups are numbered from 0 without gaps.
    pub fn group_of(&self, index: u16) -> u16 {
        index / self.queues_per_group.max(1)
    }

    /// How many groups there are.
    pub fn groups(&self) -> u16 {
        self.limits.max_vqs.div_ceil(self.queues_per_group.max(1))
    }
}

/// What keeps a guest's requests from being done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Condition {
    /// A word for it, for scripts.
    pub name: &'static str,
    /// What it is.
    pub says: String,
    /// What clears it.
    pub cure: String,
}

/// What is known of how a device does, for any thread, at any time: also while a session has the device, or nobody has it any
/// more. Never waits.
pub trait Health: Send + Sync {
    /// What an operator is to know of what goes wrong, if anything does.
    fn words(&self) -> Option<String>;
    /// What of it keeps its guest's requests from being done just now.
    fn conditions(&self) -> Vec<Condition>;
    /// Requests that failed so far.
    fn failures(&self) -> u64;
    /// What is under way still, the oldest by name and age, if anything is.
    fn under_way(&self) -> Option<String>;
    /// How many requests are under way, and for how long the oldest of them has been.
    fn requests(&self) -> (usize, Duration);
    /// Nothing of it is in use any more.
    fn is_over(&self) -> bool;
}

/// A device that a driver made.
pub trait VdpaDevice: Send {
    /// What it is.
    fn facts(&self) -> Facts;
    /// Its configuration space.
    fn config(&mut self) -> &mut dyn ConfigSpace;
    /// Its queues.
    fn queues(&mut self) -> &mut dyn Queues;
    /// What its class does beside that.
    fn class(&mut self) -> ClassOps<'_>;

    /// The driver's own attributes as they are in force, for `config dump`.
    fn attributes(&self) -> BTreeMap<String, String> {
        BTreeMap::new()
    }

    /// The features that guest and device agreed on, a subset of what was offered; told again after each `reset`, before
    /// queues start.
    ///
    /// # Errors
    /// The device cannot work with these. Where they are told again nobody hears it: `start` has to refuse then.
    fn negotiated(&mut self, features: Features) -> Result<(), DriverError> {
        let _ = features;
        Ok(())
    }

    /// Attributes that are to be otherwise from now on, while queues may be in service: only those that were declared to be
    /// [live](super::AttributeInfo::live), with values that the management device's check lets pass.
    fn set(&mut self, attributes: &BTreeMap<String, String>, within: Duration) -> Result<(), Stuck> {
        let _ = (attributes, within);
        Ok(())
    }

    /// What an operator is to know of how its queues are served, if anything.
    fn note(&self) -> Option<String> {
        None
    }

    /// How what is behind it does, where the driver can tell.
    fn health(&self) -> Option<Arc<dyn Health>> {
        None
    }

    /// The guest's memory from now on; None: there is none any more. What was mapped for the device stays mapped until this
    /// returns Ok, and as it was if it does not. Looks at `cancel` at least once a GiB. A device that reaches the guest's
    /// memory by cores alone has nothing to do; for others there is [`crate::dma::Window`].
    ///
    /// # Errors
    /// It was cancelled, or the host does not map it.
    fn set_map(&mut self, map: Option<&Arc<GuestMap>>, cancel: Cancel<'_>) -> Result<(), MapError> {
        let _ = (map, cancel);
        Ok(())
    }

    /// The host's end that is in place of a front-end, for a device that has one.
    fn host_end(&mut self) -> Option<&mut dyn HostEnd> {
        None
    }

    /// Back to the state after creation, but for its map. Every queue is out of service.
    ///
    /// # Errors
    /// The device did not come back within that time: it is of no use, and is made anew.
    fn reset(&mut self, within: Duration) -> Result<(), Stuck> {
        let _ = within;
        Ok(())
    }

    /// The device does not come back: what was made for it on the host goes, too. Called last, with every queue out of
    /// service, by the session or by a thread that may wait, where it is dropped too; not if the session could not take its
    /// queues out.
    fn removed(&mut self) {}
}
