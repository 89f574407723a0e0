//! A virtio device under a front-end, whatever protocol that speaks: its status, its features, the life of its rings, the
//! guest's memory, and what is reported of them.
//!
//! A pure state machine: it neither reads a socket nor waits for one. A front-end's protocol decodes what it is told and calls
//! the verbs here ([`VirtDev::set_features`], [`VirtDev::set_status`], [`VirtDev::set_ring`], [`VirtDev::start_ring`],
//! [`VirtDev::stop_ring`], [`VirtDev::enable`], [`VirtDev::set_call`], [`VirtDev::set_map`], [`VirtDev::reset`]); what it is
//! to be told unasked, it fetches by [`VirtDev::take_notices`]. What moves descriptors is reached through [`Plane`].
//! Everything a front-end says is a claim, checked where it is used.
//!
//! - A ring is *served* once it is started, size, addresses, memory and features are there, and, if the front-end tells the
//!   status, DRIVER_OK. What changes while it is served retires the pump of its group, changes, and places a new one.
//! - A ring that is started and *disabled* is served too: the driver drops what it sends. One that the front-end has
//!   not yet called enabled or disabled waits for that word, so that a reconnect costs no frame.
//! - A ring whose addresses, size or base cannot be fails alone, by name; the connection stays.
//! - A device reset stops and disables the rings; the guest's memory and the features stay until they are set anew, as
//!   front-ends expect.
//!
//! What it is not: no messages, no acknowledgements, no socket. Thread and owner: the session.

mod device;
mod memory;
mod plane;
mod records;
mod refusal;
mod ring;
mod rings;
mod service;

use std::sync::Arc;
use std::time::Instant;

use ringway_pmd::notify::CallGate;
use ringway_pmd::vdpa::{Class, Ended, FaultReporter};
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::position::PositionPage;
use ringway_vhost_user::bucket::Bucket;

pub use self::memory::MAX_REGIONS;
use self::plane::NOT_PLACED;
pub use self::plane::{Plane, PlaneError};
use self::records::Records;
pub use self::records::RecordsClaim;
pub use self::refusal::{Kind, Refusal};
use self::ring::{Call, Kick, Ring};
pub use self::rings::{CallTo, Setting};
use super::life::Status;
use super::report::{Lack, Report, RingReport};

/// What is known of a device beside its rings: plain data, as a successor of this process would need it. The guest's memory
/// is its descriptors ([`GuestMap::regions`] keep them), each ring has a state of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct DevState {
    status: Status,
    /// As the front-end set them.
    status_bits: u8,
    /// The front-end told the status since the last reset, so that DRIVER_OK is waited for.
    status_used: bool,
    needs_reset: bool,
    /// As agreed on.
    features: Option<Features>,
    /// What the front-end's own protocol agreed on.
    protocol: u64,
    /// The device knows the features.
    told: bool,
}

impl DevState {
    /// Nothing was said yet.
    const FRESH: DevState = DevState {
        status: Status::Reset,
        status_bits: 0,
        status_used: false,
        needs_reset: false,
        features: None,
        protocol: 0,
        told: false,
    };
}

/// A device under a front-end.
#[derive(Debug)]
pub struct VirtDev {
    class: Class,
    /// Virtio features offered.
    offered: Features,
    max_vq_size: u16,
    state: DevState,
    rings: Vec<Ring>,
    /// Group by ring.
    groups: Vec<u16>,
    map: Option<Arc<GuestMap>>,
    /// The front-end's region for what is in flight.
    records: Option<Records>,
    /// What was last reported of the rings.
    reported: Vec<RingReport>,
    /// What was last reported of how they are served.
    noted: Option<String>,
    /// When to look at the rings again, without being told anything.
    look_at: Option<Instant>,
    /// What rings lack for long, as far as it was told.
    lacks_told: Vec<Lack>,
    /// Bounds reports of misbehaviour; those beyond are counted and told with the next.
    breaches: Bucket,
    untold: u64,
    /// What the last request cost beyond its reading.
    cost: u32,
    /// What its call descriptors have in common.
    gate: Arc<CallGate>,
    /// It has paid for a descriptor that blocked a core, or its session: it can make none block a core again.
    paid_for_blocking: bool,
    /// An error descriptor of it blocked: none is written to any more.
    hears_no_errors: bool,
    /// When to write again to those descriptors for which there were too many writers.
    write_at: Option<Instant>,
    notices: Notices,
}

/// What the front-end is to be told unasked, if its protocol can.
#[derive(Debug, Default)]
pub struct Notices {
    /// Configuration space, or the status, changed.
    pub config_changed: bool,
    /// Rings that broke and have no descriptor to say so, by bit.
    pub ring_errors: u64,
}

impl VirtDev {
    /// A device to which nothing was said yet.
    pub fn new(plane: &mut dyn Plane, now: Instant) -> VirtDev {
        let attention = plane.attention();
        let facts = plane.device().facts();
        let (class, limits) = (facts.class, facts.limits);
        let offered = facts.features;
        // The bits of `Notices` and the slots of a page bound the rings of one session.
        let count = limits.max_vqs.min(PositionPage::QUEUES as u16);
        let groups: Vec<u16> = (0..count).map(|index| facts.group_of(index)).collect();
        let rings = (0..count).map_while(|index| plane.slot(index)).map(Ring::new).collect();
        VirtDev {
            class,
            offered,
            max_vq_size: limits.max_vq_size,
            state: DevState::FRESH,
            rings,
            groups,
            map: None,
            records: None,
            reported: Vec::new(),
            noted: None,
            look_at: None,
            lacks_told: Vec::new(),
            breaches: Bucket::new(BREACH_BURST, BREACHES_PER_SECOND, now),
            untold: 0,
            cost: 0,
            gate: CallGate::new(attention),
            paid_for_blocking: false,
            hears_no_errors: false,
            write_at: None,
            notices: Notices::default(),
        }
    }

    /// Its class.
    pub fn class(&self) -> Class {
        self.class
    }

    /// Virtio features that it offers.
    pub fn offered(&self) -> Features {
        self.offered
    }

    /// How many rings it has.
    pub fn queues(&self) -> usize {
        self.rings.len()
    }

    /// What the last requests cost beyond their reading, in tokens of the session's bucket; reading it resets it.
    pub fn take_cost(&mut self) -> u32 {
        std::mem::take(&mut self.cost)
    }

    /// What the front-end is to be told, since it was last asked.
    pub fn take_notices(&mut self) -> Notices {
        std::mem::take(&mut self.notices)
    }

    /// Looks after the rings: the attention descriptor was signalled.
    pub fn attend(&mut self, plane: &mut dyn Plane) -> Result<(), PlaneError> {
        for group in self.all_groups() {
            let faulty = |ring: &Ring| ring.reporter.as_ref().and_then(FaultReporter::reported).is_some();
            if self.members(group).map(|index| &self.rings[index]).any(faulty) {
                self.refresh(plane, group)?;
            }
        }
        self.make_owed_calls(plane)?;
        self.report_rings(plane);
        Ok(())
    }

    /// A pump ended by itself. The rings of one that panicked are stopped; those of one that could not be placed wait, and
    /// run when the front-end next touches them.
    pub fn pump_ended(&mut self, plane: &mut dyn Plane, group: u16, how: &Ended) {
        for index in self.members(group).collect::<Vec<_>>() {
            if !std::mem::take(&mut self.rings[index].placed) {
                continue;
            }
            match how {
                Ended::Panicked(_) => self.fault(plane, index, "pump_panicked"),
                Ended::DeviceLost(_) => self.fault(plane, index, "device_lost"),
                Ended::NotPlaced(_) => self.cannot_run(plane, index, NOT_PLACED),
            }
        }
        self.report_rings(plane);
    }

    /// When [`VirtDev::look`] is to be called; None while nothing waits for the time.
    pub fn look_at(&self) -> Option<Instant> {
        [self.look_at, self.write_at].into_iter().flatten().min()
    }

    /// Looks whether rings have got what they lacked, or lack it for too long, and writes what found no writer.
    ///
    /// # Errors
    /// As [`VirtDev::attend`].
    pub fn look(&mut self, plane: &mut dyn Plane, now: Instant) -> Result<(), PlaneError> {
        if self.write_at.is_some_and(|at| at <= now) {
            self.write_again(plane)?;
        }
        self.report_rings(plane);
        Ok(())
    }

    /// The device works no more until the driver resets it (virtio 1.3 §2.1.2).
    pub fn device_needs_reset(&mut self, plane: &mut dyn Plane) {
        if !std::mem::replace(&mut self.state.needs_reset, true) {
            self.notices.config_changed = true;
            plane.report(Report::Status(self.status_now()));
        }
    }

    /// The connection is over: takes every pump back and lets go of the guest's memory. Positions stay kept, so that
    /// the next connection can go on from them.
    ///
    /// # Errors
    /// A worker did not give a ring back.
    pub fn close(&mut self, plane: &mut dyn Plane) -> Result<(), PlaneError> {
        let mut outcome = Ok(());
        for group in self.all_groups() {
            match plane.retire(group) {
                Ok(()) => self.take_reported(plane, group),
                Err(error) => outcome = Err(error),
            }
        }
        // The next guest is another one. To take back what waits is never refused.
        if let Some(net) = plane.device().class().net() {
            let _ = net.announce(None);
        }
        if outcome.is_ok() {
            outcome = plane.set_map(None).map_err(|error| PlaneError::Device(error.to_string()));
        }
        for ring in &mut self.rings {
            ring.placed = false;
            ring.fds.kick = Kick::Polled;
            ring.fds.call = Call::Never;
            ring.fds.err = None;
        }
        self.state.features = None;
        self.map = None;
        self.records = None;
        outcome
    }
}

/// Misbehaviour reported at once, and per second in the long run.
const BREACH_BURST: u32 = 32;
const BREACHES_PER_SECOND: u32 = 4;

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ringway_pmd::counters::QueueCounters;
    use ringway_pmd::dma::MapError;
    use ringway_pmd::drivers::sim_net::SimNet;
    use ringway_pmd::notify::EventFd;
    use ringway_pmd::vdpa::{
        DeviceHost, DeviceSpec, ManagementDevice, NetSpec, QueueBinding, QueueEnds, ServedBy, VdpaDevice,
    };
    use ringway_ring::position::PositionSlot;

    use super::*;
    use crate::frontends::budget::Lease;

    /// A data plane that serves nothing and keeps what was told.
    struct Silent {
        device: Box<dyn VdpaDevice>,
        lease: Arc<Lease>,
        told: Vec<String>,
    }

    impl Plane for Silent {
        fn device(&mut self) -> &mut dyn VdpaDevice {
            &mut *self.device
        }
        fn counters(&self, _: u16) -> Arc<QueueCounters> {
            Arc::default()
        }
        fn record(
            &self,
            _: u16,
            _: ringway_ring::queue::Format,
        ) -> std::io::Result<Option<ringway_ring::inflight::Part>> {
            Ok(None)
        }
        fn slot(&self, _: u16) -> Option<PositionSlot> {
            None
        }
        fn attention(&self) -> Arc<EventFd> {
            Arc::new(EventFd::new().unwrap())
        }
        fn place(&mut self, _: u16, _: Vec<QueueBinding>) -> Result<(), PlaneError> {
            Ok(())
        }
        fn retire(&mut self, _: u16) -> Result<(), PlaneError> {
            Ok(())
        }
        fn is_placed(&mut self, _: u16) -> bool {
            false
        }
        fn running(&mut self) -> usize {
            0
        }
        fn set_map(&mut self, _: Option<&Arc<GuestMap>>) -> Result<(), MapError> {
            Ok(())
        }
        fn reset(&mut self) -> Result<(), PlaneError> {
            Ok(())
        }
        fn served_by(&mut self, _: u16) -> Option<ServedBy> {
            None
        }
        fn adjust(&mut self, _: &QueueEnds) -> bool {
            false
        }
        fn lease(&self) -> &Arc<Lease> {
            &self.lease
        }
        fn is_revoked(&self) -> bool {
            false
        }
        fn report(&mut self, report: Report) {
            if let Report::PeerMisbehaved { detail, .. } = report {
                self.told.push(detail);
            }
        }
    }

    #[test]
    fn breaches_are_told_up_to_the_burst_then_at_the_rate_and_the_others_counted() {
        let spec = DeviceSpec::net("a", NetSpec::default());
        let device = SimNet::new().create(&spec, DeviceHost::unheard()).unwrap();
        let mut plane = Silent { device, lease: Arc::new(Lease::alone()), told: Vec::new() };
        let start = Instant::now();
        let mut dev = VirtDev::new(&mut plane, start);
        let mut breach = |breaches: u32, ms: u64| {
            for _ in 0..breaches {
                dev.misbehaved(&mut plane, "x", "y".into(), start + Duration::from_millis(ms));
            }
            std::mem::take(&mut plane.told)
        };
        assert_eq!(breach(BREACH_BURST, 0), vec!["y"; BREACH_BURST as usize]);
        assert!(breach(1, 0).is_empty(), "one beyond the burst");
        let each = 1000 / u64::from(BREACHES_PER_SECOND);
        assert!(breach(1, each - 1).is_empty(), "not yet");
        // The next of them is told when its time has come, with those that were not; one, and no more.
        assert_eq!(breach(2, each + 1), ["y (and 2 others since the last that was told)"]);
        assert_eq!(breach(1, 2 * each + 2), ["y (and 1 others since the last that was told)"]);
        // However long nothing was wrong, it is a burst and no more.
        assert_eq!(breach(BREACH_BURST + 1, 1_000_000).len(), BREACH_BURST as usize);
    }
}
