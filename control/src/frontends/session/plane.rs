//! The data plane of one session: its device, and the device's pumps on the engine's workers.

use std::sync::Arc;
use std::time::Duration;

use ringway_engine::{End, Engine, PlaceError, Placed, Watcher};
use ringway_pmd::counters::QueueCounters;
use ringway_pmd::notify::EventFd;
use ringway_pmd::vdpa::{Berth, Ended, QueueBinding, ServiceError, VdpaDevice};
use ringway_ring::position::PositionSlot;

use super::{DeviceShared, Inbox, Report, Reporter};
use crate::frontends::budget::Lease;
use crate::frontends::vhost_user::backend::{Plane, PlaneError};

/// See the module's head.
pub(super) struct EnginePlane<'session> {
    id: u64,
    pub(super) device: Box<dyn VdpaDevice>,
    shared: Arc<DeviceShared>,
    engine: Engine,
    inbox: &'session Inbox,
    pub(super) lease: Arc<Lease>,
    reports: Reporter,
    /// By group.
    placed: Vec<Option<Placed>>,
    /// A worker did not let go in time: the next ones get little time.
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
        EnginePlane { id, device, shared, engine, inbox, lease, reports, placed: Vec::new(), stuck: false }
    }

    /// Takes out the pumps that ended by themselves; returns their groups, and how each ended.
    pub(super) fn take_ended(&mut self) -> Vec<(u16, Ended)> {
        if let Some(service) = self.device.service() {
            let ended = service.take_ended(RETIRE_WITHIN);
            for (group, how) in &ended {
                let (group, how) = (*group, how.clone());
                (self.reports)(self.id, Report::PumpEnded { group, how });
            }
            return ended;
        }
        let ended = |placed: &Option<Placed>| placed.as_ref().is_some_and(Placed::has_ended);
        let groups: Vec<u16> =
            (0u16..).zip(&self.placed).filter(|(_, placed)| ended(placed)).map(|(group, _)| group).collect();
        // Told as they are taken back.
        let taken = groups.into_iter().filter(|group| self.retire(*group).is_ok());
        taken.map(|group| (group, Ended::Panicked(String::new()))).collect()
    }

    /// Moves the pump of a group to the core that control decided on.
    ///
    /// # Errors
    /// The worker did not let go in time. It will, and then nobody polls the pump: the session cannot go on.
    pub(super) fn follow_core(&mut self, group: u16) -> Result<(), PlaneError> {
        if let Some(service) = self.device.service() {
            return service.follow_cores(RETIRE_WITHIN).map_err(|error| {
                self.stuck = true;
                error.into()
            });
        }
        let Some(core) = self.shared.core_of(group) else { return Ok(()) };
        let Some(Some(placed)) = self.placed.get_mut(usize::from(group)) else { return Ok(()) };
        if placed.core() == core {
            return Ok(());
        }
        match placed.move_to(core, RETIRE_WITHIN) {
            Ok(()) => Ok(()),
            Err(error @ PlaceError::Timeout { .. }) => {
                self.stuck = true;
                Err(PlaneError::Stuck(error.to_string()))
            }
            Err(error) => {
                tracing::warn!(device = self.shared.name, group, core, %error, "pump not moved");
                Ok(())
            }
        }
    }
}

impl EnginePlane<'_> {
    /// Opens the interface of a device without front-end, and has it served.
    pub(super) fn open_netdev(&mut self) -> Result<(), String> {
        let (berth, wake) = (self.berth(), Arc::clone(&self.inbox.wake));
        let Some(netdev) = self.device.netdev() else { return Err("bug: it has no interface".to_owned()) };
        netdev.open(&self.shared.counters, wake, &berth, RETIRE_WITHIN).map_err(|error| error.to_string())
    }

    /// Where a service places its pumps.
    fn berth(&self) -> Berth {
        let shared = Arc::clone(&self.shared);
        let first = self.engine.cores().first().copied().unwrap_or(0);
        Berth {
            name: self.shared.name.clone(),
            engine: self.engine.clone(),
            core_of: Arc::new(move |group| shared.core_of(group).unwrap_or(first)),
            watcher: Arc::new(Attention(Arc::clone(&self.inbox.wake))),
        }
    }
}

impl From<ServiceError> for PlaneError {
    fn from(error: ServiceError) -> PlaneError {
        match error {
            ServiceError::Refused(why) => PlaneError::Driver(why),
            ServiceError::NotPlaced(why) => PlaneError::Engine(why),
            ServiceError::Stuck(why) => PlaneError::Stuck(why),
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

    fn attention(&self) -> Arc<EventFd> {
        Arc::clone(&self.inbox.wake)
    }

    fn lease(&self) -> &Arc<Lease> {
        &self.lease
    }

    fn place(&mut self, group: u16, queues: Vec<QueueBinding>) -> Result<(), PlaneError> {
        let berth = self.berth();
        if let Some(service) = self.device.service() {
            return Ok(service.start(group, queues, &berth, RETIRE_WITHIN)?);
        }
        let pump = self.device.pump(group, queues).map_err(|e| PlaneError::Driver(e.to_string()))?;
        let core = self.shared.core_of(group).or_else(|| self.engine.cores().first().copied()).unwrap_or(0);
        let name = format!("{}.{group}", self.shared.name);
        let watcher = Arc::new(Attention(Arc::clone(&self.inbox.wake)));
        let placed =
            self.engine.place(core, &name, pump, watcher).map_err(|e| PlaneError::Engine(e.to_string()))?;
        let at = usize::from(group);
        if self.placed.len() <= at {
            self.placed.resize_with(at + 1, || None);
        }
        self.placed[at] = Some(placed);
        Ok(())
    }

    fn retire(&mut self, group: u16) -> Result<(), PlaneError> {
        let within = if self.stuck { RETIRE_WITHIN_AFTER_STUCK } else { RETIRE_WITHIN };
        if let Some(service) = self.device.service() {
            return service.stop(group, within).map_err(|error| {
                self.stuck = true;
                error.into()
            });
        }
        let Some(slot) = self.placed.get_mut(usize::from(group)) else { return Ok(()) };
        let Some(placed) = slot else { return Ok(()) };
        match placed.retire(within) {
            Ok(retired) => {
                *slot = None;
                if let End::Panicked(message) = retired.end {
                    (self.reports)(self.id, Report::PumpEnded { group, how: Ended::Panicked(message) });
                }
                Ok(())
            }
            Err(error @ PlaceError::Timeout { .. }) => {
                self.stuck = true;
                Err(PlaneError::Stuck(error.to_string()))
            }
            // The pump is gone with its engine.
            Err(_) => {
                *slot = None;
                Ok(())
            }
        }
    }

    fn is_placed(&mut self, group: u16) -> bool {
        if let Some(service) = self.device.service() {
            return service.is_started(group);
        }
        self.placed.get(usize::from(group)).is_some_and(Option::is_some)
    }

    fn running(&mut self) -> usize {
        // Any other pump has its own queues alone.
        self.device.service().map_or(0, |service| service.running())
    }

    fn core(&mut self, group: u16) -> Option<usize> {
        if let Some(service) = self.device.service() {
            return service.core(group);
        }
        self.placed.get(usize::from(group))?.as_ref().map(Placed::core)
    }

    fn is_revoked(&self) -> bool {
        self.inbox.leave.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn report(&mut self, report: Report) {
        (self.reports)(self.id, report);
    }
}

/// How long a worker may take to let go of a pump. A turn takes microseconds; only a worker that hangs takes so long.
const RETIRE_WITHIN: Duration = Duration::from_secs(2);
const RETIRE_WITHIN_AFTER_STUCK: Duration = Duration::from_millis(10);
