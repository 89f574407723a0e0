//! What a device under a front-end needs of the data plane.

use std::io;
use std::sync::Arc;

use ringway_pmd::counters::QueueCounters;
use ringway_pmd::dma::MapError;
use ringway_pmd::notify::EventFd;
use ringway_pmd::vdpa::{QueueBinding, QueueEnds, ServedBy, VdpaDevice};
use ringway_ring::guest::GuestMap;
use ringway_ring::inflight::Part;
use ringway_ring::position::PositionSlot;
use ringway_ring::queue::Format;

use crate::frontends::budget::Lease;
use crate::frontends::report::Report;

/// What a device under a front-end needs of the data plane. The session has one over the engine.
pub trait Plane {
    /// The device.
    fn device(&mut self) -> &mut dyn VdpaDevice;
    /// The counters of a queue.
    fn counters(&self, index: u16) -> Arc<QueueCounters>;
    /// Where the position of a queue is kept.
    fn slot(&self, index: u16) -> Option<PositionSlot>;
    /// Where a queue's requests in flight are recorded for which its front-end has no place. None: nowhere.
    ///
    /// # Errors
    /// There is no room for them.
    fn record(&self, index: u16, format: Format) -> io::Result<Option<Part>>;
    /// Signalled when the session shall look after its rings ([`super::VirtDev::attend`]).
    fn attention(&self) -> Arc<EventFd>;
    /// Makes the pump of a group and places it. None exists.
    fn place(&mut self, group: u16, queues: Vec<QueueBinding>) -> Result<(), PlaneError>;
    /// Takes the pump of a group back, if there is one: once this returns Ok nobody touches its rings.
    fn retire(&mut self, group: u16) -> Result<(), PlaneError>;
    /// A pump of the group is placed.
    fn is_placed(&mut self, group: u16) -> bool;
    /// Queues, of other devices too, that are out of service for a moment when those of one group change.
    fn running(&mut self) -> usize;
    /// Puts a guest's memory in force for the device; None: there is none any more. No pump is placed.
    ///
    /// # Errors
    /// See there; what was in force is still, but where it says otherwise.
    fn set_map(&mut self, map: Option<&Arc<GuestMap>>) -> Result<(), MapError>;
    /// Brings the device back to what it was. No pump is placed.
    fn reset(&mut self) -> Result<(), PlaneError>;
    /// Who serves a group.
    fn served_by(&mut self, group: u16) -> Option<ServedBy>;
    /// Goes on with a queue whose descriptors are others now, or that is enabled or not any more. False: its group has to be
    /// retired and placed.
    fn adjust(&mut self, queue: &QueueEnds) -> bool;
    /// What the front-end may take of the process.
    fn lease(&self) -> &Arc<Lease>;
    /// The device is being removed: give up what takes long.
    fn is_revoked(&self) -> bool;
    /// Tells control.
    fn report(&mut self, report: Report);
}

/// Why a pump was not placed or not taken back.
#[derive(Debug, thiserror::Error)]
pub enum PlaneError {
    /// The driver did not make it.
    #[error("the driver refused: {0}")]
    Driver(String),
    /// The engine did not take it.
    #[error("no worker took it: {0}")]
    Engine(String),
    /// The worker did not give it back in time; its memory is still in use.
    #[error("a worker did not let go: {0}")]
    Stuck(String),
    /// The device did not come back in time.
    #[error("the device did not come back: {0}")]
    Device(String),
}

/// The name of a ring's fault when no worker took its pump.
pub(super) const NOT_PLACED: &str = "worker_refused";

impl PlaneError {
    /// A stable short name.
    pub fn name(&self) -> &'static str {
        match self {
            PlaneError::Driver(_) => "driver_refused",
            PlaneError::Engine(_) => NOT_PLACED,
            PlaneError::Stuck(_) => "worker_stuck",
            PlaneError::Device(_) => "device_stuck",
        }
    }
}
