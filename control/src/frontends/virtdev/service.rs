//! Rings in and out of service: which of them make queues, their pumps, their faults, and what is reported of them.

use std::time::{Duration, Instant};

use ringway_pmd::interrupt;
use ringway_pmd::net::F_MRG_RXBUF;
use ringway_pmd::notify::CallFd;
use ringway_pmd::vdpa::{Class, Ended, FaultReporter, QueueBinding, QueueEnds};
use ringway_ring::queue::{Format, RingFault};
use ringway_ring::resume;

use super::VirtDev;
use super::plane::{Plane, PlaneError};
use super::records::goes_on;
use super::refusal::Refusal;
use super::ring::{Call, Kick, Ring, format_of};
use crate::frontends::life::{RingEvent, State, Status};
use crate::frontends::report::{Lack, Report, RingReport};

impl VirtDev {
    pub(super) fn all_groups(&self) -> std::ops::Range<u16> {
        0..self.groups.iter().max().map_or(0, |last| last + 1)
    }

    pub(super) fn members(&self, group: u16) -> impl Iterator<Item = usize> + '_ {
        self.groups.iter().enumerate().filter(move |(_, of)| **of == group).map(|(index, _)| index)
    }

    /// Makes something happen to every ring, and serves those that are to be served.
    pub(super) fn for_every_ring(&mut self, plane: &mut dyn Plane, event: RingEvent) -> Result<(), Refusal> {
        for group in self.all_groups() {
            let mut changed = false;
            for index in self.members(group).collect::<Vec<_>>() {
                let ring = &mut self.rings[index];
                let next = ring.state.life.after(event)?;
                changed |= next != ring.state.life;
                ring.state.life = next;
                ring.state.enable_told = true;
            }
            if changed {
                self.refresh(plane, group)?;
            }
        }
        Ok(())
    }

    /// True if a ring is to be served as far as the connection and the device go.
    pub(super) fn is_served(&self, index: usize) -> bool {
        let ring = &self.rings[index];
        self.state.features.is_some()
            && self.map.is_some()
            && (!self.state.status_used || self.state.status == Status::DriverOk)
            && ring.state.life.is_started()
            // What a NIC sends on a disabled ring is to be dropped; a disk's is to be left alone.
            && (ring.state.life.is_enabled() || (ring.state.enable_told && self.class == Class::Net))
    }

    /// Something about a ring changed.
    pub(super) fn refresh_ring(&mut self, plane: &mut dyn Plane, index: usize) -> Result<(), Refusal> {
        if self.rings[index].placed || self.is_served(index) || !plane.is_placed(self.groups[index]) {
            self.refresh(plane, self.groups[index])?;
        }
        Ok(())
    }

    /// A ring's descriptors changed, or it was enabled or disabled: who serves it goes on with that, if it can.
    pub(super) fn adjust_ring(&mut self, plane: &mut dyn Plane, index: usize) -> Result<(), Refusal> {
        let ring = &self.rings[index];
        let is_sound = ring.reporter.as_ref().is_none_or(|reporter| reporter.reported().is_none());
        let ends = QueueEnds {
            index: index as u16,
            enabled: ring.state.life.is_enabled(),
            kick: ring.fds.kick.source(),
            call: ring.fds.call.sink(),
        };
        if !(ring.placed && is_sound && self.is_served(index) && plane.adjust(&ends)) {
            return self.refresh_ring(plane, index);
        }
        self.cost += COST_OF_PLACING;
        if !self.pay_call(plane, index) {
            self.fault(plane, index, RingFault::CallBlocked.name());
            self.refresh(plane, self.groups[index])?;
        }
        Ok(())
    }

    /// What the pump of a group had to tell of its rings, once it was taken back: nothing is forgotten before, or who
    /// leaves in time pays for nothing.
    pub(super) fn take_reported(&mut self, plane: &mut dyn Plane, group: u16) {
        for index in self.members(group).collect::<Vec<_>>() {
            let reported = self.rings[index].reporter.take().and_then(|reporter| reporter.reported());
            if let Some(fault) = reported {
                self.fault(plane, index, fault.name());
            }
        }
    }

    /// Takes the pump of a group back and places one for what its rings are now.
    pub(super) fn refresh(&mut self, plane: &mut dyn Plane, group: u16) -> Result<(), PlaneError> {
        if plane.is_placed(group) {
            self.cost += cost_of_placing(plane.running());
            plane.retire(group)?;
        }
        self.take_reported(plane, group);
        let mut queues = Vec::new();
        for index in self.members(group).collect::<Vec<_>>() {
            self.rings[index].placed = false;
            match self.bind(plane, index) {
                Ok(Some(binding)) if self.pay_call(plane, index) => queues.push(binding),
                Ok(Some(_)) => self.fault(plane, index, RingFault::CallBlocked.name()),
                Ok(None) => {}
                Err(name) => self.cannot_run(plane, index, name),
            }
        }
        if queues.is_empty() {
            return Ok(());
        }
        self.cost += cost_of_placing(plane.running());
        let indexes: Vec<usize> = queues.iter().map(|queue| queue.index.into()).collect();
        if !self.state.told {
            // They were accepted before; a driver that refuses them now refuses the pump.
            let _ = self.tell_features(plane);
        }
        match plane.place(group, queues) {
            Ok(()) => indexes.into_iter().for_each(|index| self.rings[index].placed = true),
            Err(error) => {
                tracing::debug!(group, %error, "pump not placed");
                match &error {
                    PlaneError::Engine(why) if self.breaches.take(Instant::now()) => {
                        plane.report(Report::PumpEnded { group, how: Ended::NotPlaced(why.clone()) });
                    }
                    PlaneError::Driver(why) => {
                        self.host_failed(plane, error.name(), why.clone(), Instant::now());
                    }
                    _ => {}
                }
                indexes.into_iter().for_each(|index| self.cannot_run(plane, index, error.name()));
            }
        }
        Ok(())
    }

    /// Calls the driver of a ring that is about to be served, if it is owed a call: one too many does no harm. No pump has
    /// the ring, so that its counters are this thread's. False: the call blocked, and the watchdog ended it.
    fn pay_call(&mut self, plane: &dyn Plane, index: usize) -> bool {
        let ring = &mut self.rings[index];
        let (true, Some(call)) = (ring.state.owes_call, ring.fds.call.sink()) else { return true };
        ring.state.owes_call = false;
        let counters = plane.counters(index as u16);
        counters.add_call();
        match interrupt::as_writer(|| call.call_as_session()) {
            Some(true) => true,
            Some(false) => {
                counters.add_fault(RingFault::CallBlocked);
                false
            }
            None => {
                self.put_off(&call);
                true
            }
        }
    }

    /// Leaves a call to a later look: too many threads write to what their peers made block.
    fn put_off(&mut self, call: &CallFd) {
        call.put_off();
        self.write_again_soon();
    }

    fn write_again_soon(&mut self) {
        self.write_at.get_or_insert_with(|| Instant::now() + WRITERS_FULL);
    }

    /// Makes the calls, and tells the errors, that found no place among the writers.
    pub(super) fn write_again(&mut self, plane: &mut dyn Plane) -> Result<(), PlaneError> {
        self.write_at = None;
        for index in 0..self.rings.len() {
            if std::mem::take(&mut self.rings[index].state.owes_error) {
                self.signal_error(index);
            }
        }
        self.make_owed_calls(plane)
    }

    /// The queue of a ring, if it is to be served.
    pub(super) fn bind(
        &mut self,
        plane: &dyn Plane,
        index: usize,
    ) -> Result<Option<QueueBinding>, &'static str> {
        let (true, Some(map)) = (self.is_served(index), &self.map) else { return Ok(None) };
        let features = self.agreed();
        // Transmit queues of a network device complete everything with length 0.
        let skip_used = self.class == Class::Net && index % 2 == 1;
        let format = format_of(features);
        let kept = self.rings[index].slot.load();
        let Some(mut config) = self.rings[index].configure(features, map, skip_used)? else {
            return Ok(None);
        };
        let is_same = self.rings[index].state.begun || goes_on(kept, config.position);
        let record = self.record_of(plane, index, format, &config, is_same)?;
        let ring = &mut self.rings[index];
        let spans_chains =
            self.class == Class::Net && index.is_multiple_of(2) && features.contains(F_MRG_RXBUF);
        if !ring.state.begun && spans_chains && format == Format::Packed {
            config.give_back_torn();
        }
        let fault = FaultReporter::new(plane.attention());
        // Kept from now on: if the process dies before the first burst, its successor finds the true position. Halves of a
        // base that differ name chains that were taken and not given back; in the slot they would be a burst under way.
        ring.slot.store(resume::rewound(config.position));
        ring.state.begun = true;
        ring.reporter = Some(fault.clone());
        ring.state.fault = None;
        Ok(Some(QueueBinding {
            index: index as u16,
            enabled: ring.state.life.is_enabled(),
            format,
            config,
            record,
            kick: ring.fds.kick.source(),
            call: ring.fds.call.sink(),
            counters: plane.counters(index as u16),
            fault,
        }))
    }

    /// A ring that cannot run as it is set up. It may be set up better; until then it waits, and its fault is shown.
    pub(super) fn cannot_run(&mut self, plane: &mut dyn Plane, index: usize, name: &'static str) {
        if self.rings[index].state.fault != Some(name) {
            self.rings[index].state.fault = Some(name);
            self.signal_error(index);
            // A front-end can make a ring fail and recover with two messages: told as often as other breaches are.
            if self.breaches.take(Instant::now()) {
                plane.report(Report::RingFault { queue: index as u16, fault: name });
            } else {
                self.untold += 1;
            }
        }
    }

    /// A ring that broke the rules: stopped until it is started anew. The driver is told that the device needs a
    /// reset; the other rings go on.
    pub(super) fn fault(&mut self, plane: &mut dyn Plane, index: usize, name: &'static str) {
        let ring = &mut self.rings[index];
        let Ok(next) = ring.state.life.after(RingEvent::Fault) else { return };
        ring.state.life = next;
        ring.state.fault = Some(name);
        if name == RingFault::CallBlocked.name() {
            // It held a core that others share for as long as a watchdog takes: not at once again.
            ring.fds.call = Call::Never;
            self.pay_for_blocking();
        }
        self.signal_error(index);
        if !std::mem::replace(&mut self.state.needs_reset, true) {
            self.notices.config_changed = true;
        }
        plane.report(Report::RingFault { queue: index as u16, fault: name });
        plane.report(Report::Status(self.status_now()));
    }

    /// One of its descriptors blocked who wrote to it: paid for once.
    fn pay_for_blocking(&mut self) {
        if !std::mem::replace(&mut self.paid_for_blocking, true) {
            self.cost += COST_OF_BLOCKING;
        }
    }

    /// Makes the calls that workers left to the session. Its descriptor was made non-blocking a moment before: a ring whose
    /// call blocks all the same is stopped like one that blocked a worker. Nobody but this peer waits for that.
    pub(super) fn make_owed_calls(&mut self, plane: &mut dyn Plane) -> Result<(), PlaneError> {
        for index in 0..self.rings.len() {
            let Some(call) = self.rings[index].fds.call.sink().filter(|call| call.take_owed()) else {
                continue;
            };
            match interrupt::as_writer(|| call.call_as_session()) {
                Some(true) => {}
                Some(false) => {
                    let Some(reporter) = &self.rings[index].reporter else {
                        // No pump has it: there is nothing to stop.
                        self.rings[index].fds.call = Call::Never;
                        self.pay_for_blocking();
                        continue;
                    };
                    reporter.report(RingFault::CallBlocked);
                    self.refresh(plane, self.groups[index])?;
                    // Its pump was taken back, so nobody else counts.
                    plane.counters(index as u16).add_fault(RingFault::CallBlocked);
                }
                None => self.put_off(&call),
            }
        }
        Ok(())
    }

    /// Tells the front-end of a ring's error by descriptor, else as the front-end's protocol can.
    pub(super) fn signal_error(&mut self, index: usize) {
        match &self.rings[index].fds.err {
            Some(fd) => match interrupt::as_writer(|| fd.call()) {
                Some(true) => {}
                // The watchdog ended the write. Who made it block is told of no error any more.
                Some(false) => {
                    self.hears_no_errors = true;
                    self.rings.iter_mut().for_each(|ring| ring.fds.err = None);
                    self.pay_for_blocking();
                }
                None => {
                    self.rings[index].state.owes_error = true;
                    self.write_again_soon();
                }
            },
            // Indexes are below 64: see `VirtDev::new`.
            None => self.notices.ring_errors |= 1 << (index % 64),
        }
    }

    /// Reports what this host lacked, unless there was too much lately: what a peer asks for in a loop may be lacking
    /// in a loop.
    pub fn host_failed(&mut self, plane: &mut dyn Plane, what: &'static str, detail: String, now: Instant) {
        if self.breaches.take(now) {
            plane.report(Report::HostFailed { what, detail });
        } else {
            self.untold += 1;
        }
    }

    /// Reports a breach, unless there were too many lately.
    pub fn misbehaved(&mut self, plane: &mut dyn Plane, what: &'static str, detail: String, now: Instant) {
        self.report_breach(plane, now, detail, |detail| Report::PeerMisbehaved { what, detail });
    }

    /// Reports why a request was not obeyed, unless there were too many such lately.
    pub(super) fn report_breach(
        &mut self,
        plane: &mut dyn Plane,
        now: Instant,
        mut detail: String,
        report: impl FnOnce(String) -> Report,
    ) {
        if !self.breaches.take(now) {
            self.untold += 1;
            return;
        }
        let untold = std::mem::take(&mut self.untold);
        if untold > 0 {
            detail.push_str(&format!(" (and {untold} others since the last that was told)"));
        }
        plane.report(report(detail));
    }

    /// What a ring lacks, once it has lacked it for long enough; sets when to look again.
    fn lacks(&mut self, plane: &mut dyn Plane, index: usize, now: Instant) -> Option<Lack> {
        let has_memory = self.map.as_ref().is_some_and(|map| !map.regions().is_empty());
        let format = format_of(self.agreed());
        // virtio 1.3 §5.1.2: even is receive.
        let is_receive = self.class == Class::Net && index.is_multiple_of(2);
        let ring = &mut self.rings[index];
        let lack = if !ring.state.life.is_started() || ring.state.fault.is_some() {
            None
        } else if !has_memory {
            // Before the driver is ready it needs none.
            (!self.state.status_used || self.state.status == Status::DriverOk).then_some(Lack::Memory)
        } else {
            let serves = is_receive && ring.placed && ring.state.life.is_enabled();
            let lacks = serves && !self.map.as_ref().is_some_and(|map| ring.has_posted(format, map));
            lacks.then_some(Lack::Buffers)
        };
        let Some(lack) = lack else {
            ring.lacks_since = None;
            return None;
        };
        // Once its driver is ready, it will not get any.
        let is_certain = lack == Lack::Memory && self.state.status_used;
        let since = now.saturating_duration_since(*ring.lacks_since.get_or_insert(now));
        let (is_shown, is_long) = match is_certain {
            true => (true, true),
            false => {
                (since >= LACKS_AFTER, since >= if lack == Lack::Memory { LACKS_AFTER } else { LACKS_LONG })
            }
        };
        if !is_certain {
            let next = now + LACKS_AFTER;
            self.look_at = Some(self.look_at.map_or(next, |at| at.min(next)));
        }
        if is_long && !self.lacks_told.contains(&lack) {
            self.lacks_told.push(lack);
            plane.report(Report::Lacks { queue: index as u16, lack });
        }
        is_shown.then_some(lack)
    }

    /// Reports the rings if they are not what was last reported: after what was said of them, and when a core changed.
    pub fn report_rings(&mut self, plane: &mut dyn Plane) {
        let now = Instant::now();
        self.look_at = None;
        let lacks: Vec<Option<Lack>> =
            (0..self.rings.len()).map(|index| self.lacks(plane, index, now)).collect();
        let report = |((index, ring), lacks): ((usize, &Ring), Option<Lack>)| RingReport {
            index: index as u16,
            // Bounded by the device's largest size when it was set.
            size: ring.state.size.unwrap_or(0) as u16,
            started: ring.state.life.is_started(),
            enabled: ring.state.life.is_enabled(),
            kicks: !matches!(ring.fds.kick, Kick::Polled),
            fault: ring.state.fault,
            runs: ring.placed && ring.state.life.is_started() && ring.state.life.is_enabled(),
            lacks,
            served_by: plane.served_by(self.groups[index]).filter(|_| ring.placed),
        };
        let rings: Vec<RingReport> = self.rings.iter().enumerate().zip(lacks).map(report).collect();
        if rings != self.reported {
            plane.report(Report::Rings(rings.clone()));
            self.reported = rings;
        }
        let note = plane.device().note();
        if note != self.noted {
            plane.report(Report::Note(note.clone()));
            self.noted = note;
        }
    }
}

/// How long a ring may lack something before it is shown: front-ends without a status start rings before they tell the
/// memory, and drivers fill a ring after it was started. Also between two looks at a ring that lacks it.
const LACKS_AFTER: Duration = Duration::from_secs(1);
/// How long it may before an event tells of it: a guest that boots brings its interface up some seconds after its driver.
const LACKS_LONG: Duration = Duration::from_secs(10);

/// What retiring or placing a pump costs, in messages: it takes time of a worker that others share, and of every queue that
/// runs beside it on a bridge or link.
fn cost_of_placing(running: usize) -> u32 {
    COST_OF_PLACING.saturating_add(COST_OF_A_QUEUE.saturating_mul(u32::try_from(running).unwrap_or(u32::MAX)))
}

/// See [`cost_of_placing`]: a pump by itself.
const COST_OF_PLACING: u32 = 12;
/// See [`cost_of_placing`]: some times as long as one queue is out of service for it, so that who starts and stops without
/// end leaves the others most of the time.
const COST_OF_A_QUEUE: u32 = 2;
/// What a call that blocked costs, in messages: beyond any burst, so that the peer is not heard for two seconds at least.
/// A worker is held for some 10 ms by one, once a connection: its session makes those that follow.
const COST_OF_BLOCKING: u32 = 100_000;
/// When a session that found no place among those who write to peers' descriptors tries again.
const WRITERS_FULL: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn placing_costs_what_it_takes_of_all_that_run_beside() {
        for (running, cost) in [(0, 12), (1, 14), (1024, 2060), (usize::MAX, u32::MAX)] {
            assert_eq!(cost_of_placing(running), cost, "{running}");
        }
    }
}
