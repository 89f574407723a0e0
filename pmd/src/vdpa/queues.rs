//! Queues in and out of service, by whatever means: a pump a group, a fabric, a relay, the hardware itself.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ringway_engine::{Engine, Watcher};
use ringway_ring::inflight::Part;
use ringway_ring::position::{Position, PositionSlot};
use ringway_ring::queue::{Format, QueueConfig};

use super::FaultReporter;
use crate::counters::QueueCounters;
use crate::notify::{CallFd, EventFd};

/// Puts the queues of a device into service and takes them out of it. Called by the session's thread; what it waits for
/// are workers or the device, never a peer.
pub trait Queues {
    /// Puts the started queues of a group into service; none of the group is.
    ///
    /// # Errors
    /// They are not in service then.
    fn start(
        &mut self,
        group: u16,
        queues: Vec<QueueBinding>,
        placer: &Placer,
        within: Duration,
    ) -> Result<(), ServeError>;
    /// Takes the queues of a group out of service, if they are in it. Once this returns Ok, nobody touches them or their
    /// memory.
    ///
    /// # Errors
    /// Somebody still has them.
    fn stop(&mut self, group: u16, within: Duration) -> Result<Stopped, Stuck>;
    /// Goes on with a queue in service whose descriptors are others now, or that is enabled or not any more. False: it cannot, and
    /// is as it was; the group is then stopped and started.
    fn adjust(&mut self, queue: &QueueEnds) -> bool {
        let _ = queue;
        false
    }
    /// Who serves the group; None: it is not in service.
    fn served_by(&self, group: u16) -> Option<ServedBy>;
    /// Queues, of other devices too, that are out of service for a moment when those of one group change.
    fn beside(&self) -> usize {
        0
    }
    /// Moves what serves the queues to the cores that control decided on, by the placer that they were started with.
    ///
    /// # Errors
    /// Not placed: some stay where they were. Stuck: somebody still has some who is not to have them any more, and then
    /// nobody serves them.
    fn follow(&mut self, within: Duration) -> Result<(), ServeError>;
    /// The groups that were taken out without being asked for, and why, once.
    fn take_ended(&mut self, within: Duration) -> Vec<(u16, Ended)>;
}

/// What became of the queues of a group that is out of service.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Stopped {
    /// Where each of them stands.
    pub positions: Vec<(u16, Position)>,
    /// It had been taken out before, unasked, and this was not told yet.
    pub ended: Option<Ended>,
}

/// Who serves a group of queues.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServedBy {
    /// The worker of this core. None: no worker has it just now, though it is in service.
    Core(Option<usize>),
    /// The device itself.
    Hardware,
}

impl ServedBy {
    /// The core, if one serves it.
    pub fn core(self) -> Option<usize> {
        match self {
            ServedBy::Core(core) => core,
            ServedBy::Hardware => None,
        }
    }
}

/// What places the pumps of a device.
#[derive(Clone)]
pub struct Placer {
    /// The device's name, for the names of pumps.
    pub name: String,
    /// The workers.
    pub engine: Engine,
    /// The core that control decided on for a group.
    pub core_of: Arc<dyn Fn(u16) -> usize + Send + Sync>,
    /// Told when a pump was taken out.
    pub watcher: Arc<dyn Watcher>,
}

impl fmt::Debug for Placer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Placer").field("name", &self.name).finish_non_exhaustive()
    }
}

/// How a group of queues was taken out of service without being asked to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ended {
    /// Its pump panicked with this message.
    Panicked(String),
    /// The pump that was to go on with it could not be placed, for this reason.
    NotPlaced(String),
    /// The device lost it, for this reason.
    DeviceLost(String),
}

/// Why queues are not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// They cannot be served so.
    #[error("{0}")]
    Refused(String),
    /// No worker took them.
    #[error("no worker took them: {0}")]
    NotPlaced(String),
    /// Somebody did not let go of others in time.
    #[error(transparent)]
    Stuck(#[from] Stuck),
}

/// Somebody did not let go in time, and the memory of queues is still in use.
#[derive(Debug, thiserror::Error)]
pub enum Stuck {
    /// A worker: the host has no time for it.
    #[error("a worker did not let go: {0}")]
    Worker(String),
    /// The device, of what it was doing.
    #[error("{0}")]
    Device(String),
}

/// To take queues out of service fails in one way.
impl From<ServeError> for Stuck {
    fn from(error: ServeError) -> Stuck {
        match error {
            ServeError::Refused(why) | ServeError::NotPlaced(why) => Stuck::Device(why),
            ServeError::Stuck(stuck) => stuck,
        }
    }
}

/// A started queue, as a driver gets it. One that serves it by several rings after each other keeps a copy.
#[derive(Debug, Clone)]
pub struct QueueBinding {
    /// Which queue.
    pub index: u16,
    /// False: started but disabled; net must not deliver to it, and consumes and drops what it sends.
    pub enabled: bool,
    /// Its layout.
    pub format: Format,
    /// Its ring, ready to activate.
    pub config: QueueConfig,
    /// Where the chains of its ring are recorded that the device has, for a successor of this process. None: it completes them
    /// in order, or nobody knows them afterwards.
    pub record: Option<Part>,
    /// Becomes readable when the driver kicks. None: the front-end polls and never kicks.
    pub kick: Option<Arc<EventFd>>,
    /// To be signalled when the driver asked for it. None: never.
    pub call: Option<Arc<CallFd>>,
    /// Its counters.
    pub counters: Arc<QueueCounters>,
    /// Where a fault of the ring is told.
    pub fault: FaultReporter,
}

/// What of a queue may change while it is in service: see [`QueueBinding`].
#[derive(Debug, Clone)]
pub struct QueueEnds {
    /// Which queue.
    pub index: u16,
    /// It is enabled.
    pub enabled: bool,
    /// Its kick.
    pub kick: Option<Arc<EventFd>>,
    /// Its call.
    pub call: Option<Arc<CallFd>>,
}

/// Where the queues in service keep their positions: what [`Queues::stop`] tells of queues whose rings a core works on.
#[derive(Debug, Default)]
pub struct Kept(BTreeMap<u16, Vec<(u16, PositionSlot)>>);

impl Kept {
    /// These come into service.
    pub fn note(&mut self, group: u16, queues: &[QueueBinding]) {
        let slots = queues.iter().map(|queue| (queue.index, queue.config.keeper.clone()));
        self.0.insert(group, slots.collect());
    }

    /// The group is out of service: where its queues stand.
    pub fn take(&mut self, group: u16) -> Vec<(u16, Position)> {
        let slots = self.0.remove(&group).unwrap_or_default();
        slots.into_iter().filter_map(|(index, slot)| Some((index, slot.load()?))).collect()
    }
}
