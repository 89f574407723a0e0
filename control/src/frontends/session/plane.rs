//! The data plane of one session: its device, whose queues are served on the engine's workers or by the device itself.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use ringway_engine::{Engine, Watcher};
use ringway_pmd::counters::QueueCounters;
use ringway_pmd::dma::{Cancel, MapError};
use ringway_pmd::notify::EventFd;
use ringway_pmd::vdpa::{
    Class, Ended, Placer, QueueBinding, QueueEnds, ServeError, ServedBy, Stuck, VdpaDevice,
};
use ringway_ring::guest::GuestMap;
use ringway_ring::inflight::Part;
use ringway_ring::position::PositionSlot;
use ringway_ring::queue::Format;

use super::{DeviceShared, Inbox, Report, Reporter};
use crate::frontends::budget::Lease;
use crate::frontends::virtdev::{Plane, PlaneError};

/// See the module's head.
pub(super) struct EnginePlane<'session> {
    id: u64,
    pub(super) device: Box<dyn VdpaDevice>,
    pub(super) shared: Arc<DeviceShared>,
    engine: Engine,
    inbox: &'session Inbox,
    pub(super) lease: Arc<Lease>,
    reports: Reporter,
    /// Somebody did not let go in time: the next ones get little time.
    stuck: bool,
}

/// Wakes the session when a pump was taken out.
struct Attention(Arc<EventFd>);

impl Watcher for Attention {
    fn pump_ended(&self) {
        self.0.signal();
    }
}

impl<'session> EnginePlane<'session> {
    pub(super) fn new(
        id: u64,
        device: Box<dyn VdpaDevice>,
        shared: Arc<DeviceShared>,
        engine: Engine,
        lease: Arc<Lease>,
        reports: Reporter,
        inbox: &'session Inbox,
    ) -> EnginePlane<'session> {
        EnginePlane { id, device, shared, engine, inbox, lease, reports, stuck: false }
    }

    /// Takes note of the groups that were taken out unasked; returns them, and how each ended.
    pub(super) fn take_ended(&mut self) -> Vec<(u16, Ended)> {
        let ended = self.device.queues().take_ended(RETIRE_WITHIN);
        for (group, how) in &ended {
            (self.reports)(self.id, Report::PumpEnded { group: *group, how: how.clone() });
        }
        ended
    }

    /// Moves what serves the queues to the cores that control decided on.
    ///
    /// # Errors
    /// A worker did not let go in time. It will, and then nobody polls the pump: the session cannot go on.
    pub(super) fn follow_cores(&mut self) -> Result<(), PlaneError> {
        match self.device.queues().follow(RETIRE_WITHIN) {
            Ok(()) => Ok(()),
            Err(error @ ServeError::Stuck(_)) => {
                self.stuck = true;
                Err(error.into())
            }
            Err(error) => {
                tracing::warn!(device = self.shared.name, %error, "queues stay on the core where they are");
                Ok(())
            }
        }
    }

    /// Sets attributes of the device.
    ///
    /// # Errors
    /// Somebody did not let go in time: the session cannot go on.
    pub(super) fn set(&mut self, attributes: &BTreeMap<String, String>) -> Result<(), PlaneError> {
        self.device.set(attributes, RETIRE_WITHIN).map_err(|stuck| {
            self.stuck = true;
            PlaneError::from(stuck)
        })
    }

    /// Opens the host's end of a device without front-end, and has it served.
    pub(super) fn open_host_end(&mut self) -> Result<(), String> {
        let (placer, wake) = (self.placer(), Arc::clone(&self.inbox.wake));
        let Some(end) = self.device.host_end() else { return Err("bug: it has no host end".to_owned()) };
        end.open(&self.shared.counters, wake, &placer, RETIRE_WITHIN).map_err(|error| error.to_string())
    }

    /// Where pumps are placed.
    fn placer(&self) -> Placer {
        let shared = Arc::clone(&self.shared);
        let first = self.engine.cores().first().copied().unwrap_or(0);
        Placer {
            name: self.shared.name.clone(),
            engine: self.engine.clone(),
            core_of: Arc::new(move |group| shared.core_of(group).unwrap_or(first)),
            watcher: Arc::new(Attention(Arc::clone(&self.inbox.wake))),
        }
    }

    /// How long to wait for whoever is to let go.
    fn patience(&self) -> Duration {
        match self.device.facts().class {
            _ if self.stuck => RETIRE_WITHIN_AFTER_STUCK,
            Class::Net => RETIRE_WITHIN,
            Class::Block => DRAINED_WITHIN,
        }
    }
}

impl From<ServeError> for PlaneError {
    fn from(error: ServeError) -> PlaneError {
        match error {
            ServeError::Refused(why) => PlaneError::Driver(why),
            ServeError::NotPlaced(why) => PlaneError::Engine(why),
            ServeError::Stuck(stuck) => stuck.into(),
        }
    }
}

impl From<Stuck> for PlaneError {
    fn from(stuck: Stuck) -> PlaneError {
        match stuck {
            Stuck::Worker(why) => PlaneError::Stuck(why),
            Stuck::Device(why) => PlaneError::Device(why),
        }
    }
}

impl Plane for EnginePlane<'_> {
    fn device(&mut self) -> &mut dyn VdpaDevice {
        &mut *self.device
    }

    fn counters(&self, index: u16) -> Arc<QueueCounters> {
        // Control makes one a queue; a device with more queues than that counts beside the books.
        self.shared.counters.get(usize::from(index)).map(Arc::clone).unwrap_or_default()
    }

    fn slot(&self, index: u16) -> Option<PositionSlot> {
        self.shared.positions.slot(index.into())
    }

    fn record(&self, index: u16, format: Format) -> io::Result<Option<Part>> {
        self.shared.records.as_ref().map_or(Ok(None), |records| records.part(format, index))
    }

    fn attention(&self) -> Arc<EventFd> {
        Arc::clone(&self.inbox.wake)
    }

    fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    fn place(&mut self, group: u16, queues: Vec<QueueBinding>) -> Result<(), PlaneError> {
        let placer = self.placer();
        Ok(self.device.queues().start(group, queues, &placer, RETIRE_WITHIN)?)
    }

    fn retire(&mut self, group: u16) -> Result<(), PlaneError> {
        let patience = self.patience();
        let stopped = self.device.queues().stop(group, patience).map_err(|stuck| {
            self.stuck = true;
            PlaneError::from(stuck)
        })?;
        // Where cores serve them, they are kept there already.
        for (index, position) in stopped.positions {
            if let Some(slot) = self.slot(index).filter(|slot| slot.load() != Some(position)) {
                slot.store(position);
            }
        }
        if let Some(how) = stopped.ended {
            (self.reports)(self.id, Report::PumpEnded { group, how });
        }
        Ok(())
    }

    fn is_placed(&mut self, group: u16) -> bool {
        self.device.queues().served_by(group).is_some()
    }

    fn running(&mut self) -> usize {
        self.device.queues().beside()
    }

    fn set_map(&mut self, map: Option<&Arc<GuestMap>>) -> Result<(), MapError> {
        self.device.set_map(map, Cancel::on(&self.inbox.leave))
    }

    fn reset(&mut self) -> Result<(), PlaneError> {
        let patience = self.patience();
        self.device.reset(patience).map_err(|stuck| {
            self.stuck = true;
            PlaneError::from(stuck)
        })
    }

    fn served_by(&mut self, group: u16) -> Option<ServedBy> {
        self.device.queues().served_by(group)
    }

    fn adjust(&mut self, queue: &QueueEnds) -> bool {
        self.device.queues().adjust(queue)
    }

    fn is_revoked(&self) -> bool {
        self.inbox.leave.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn report(&mut self, report: Report) {
        (self.reports)(self.id, report);
    }
}

/// How long a worker may take to let go of a pump, or a device to come back from a reset. A turn takes microseconds; only a worker that hangs takes so long.
const RETIRE_WITHIN: Duration = Duration::from_secs(2);
/// How long a disk may take to end what it has under way: a flush of much that was written takes seconds.
const DRAINED_WITHIN: Duration = Duration::from_secs(20);
const RETIRE_WITHIN_AFTER_STUCK: Duration = Duration::from_millis(10);
