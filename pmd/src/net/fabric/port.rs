//! A device's place on a fabric, by which its session has its queues served.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use super::bridge::set_flood_limit;
use super::ends::{EndKey, PortState};
use super::placing::{LATER_WITHIN, Running};
use super::{Fabric, Side, State, lock};
use crate::later;
use crate::limit::Limit;
use crate::net::Mac;
use crate::net::announce::Announcement;
use crate::net::guest_queue::PortRules;
use crate::net::rates::PortRates;
use crate::net::side::{receive_queue, transmit_queue};
use crate::net::vlan::Vlans;
use crate::vdpa::{Ended, Placer, QueueBinding, ServeError, Stuck};

/// See the module's head. It is let go when dropped, whatever still runs there.
pub struct Port {
    fabric: Arc<Fabric>,
    id: u64,
    /// Its number among the fabric's places.
    slot: u16,
    /// Its device was removed: it is nobody's peer any more.
    is_leaving: Arc<AtomicBool>,
    flood: Arc<Limit>,
    rates: Arc<PortRates>,
    announcement: Arc<Announcement>,
    reflects: bool,
    /// The VLANs that it carries, if it was given any.
    vlans: Option<Arc<Vlans>>,
    /// The address of its device, for those beside it.
    mac: Option<Mac>,
    /// It may send from that address only.
    is_checked: bool,
}

impl Port {
    /// At a slot that is taken for it.
    pub(super) fn new(fabric: &Arc<Fabric>, slot: u16, flood_pps: Option<u64>) -> Port {
        let flood = Limit::default();
        set_flood_limit(&flood, flood_pps);
        Port {
            fabric: Arc::clone(fabric),
            id: fabric.next_port.fetch_add(1, Ordering::Relaxed),
            slot,
            is_leaving: Arc::default(),
            flood: Arc::new(flood),
            rates: Arc::default(),
            announcement: Arc::new(Announcement::new(Arc::clone(&fabric.news))),
            reflects: false,
            vlans: None,
            mac: None,
            is_checked: false,
        }
    }

    /// What is sent there may come back from there: on a bridge, a frame whose source is known to be behind another port is
    /// dropped.
    #[must_use]
    pub fn reflecting(mut self) -> Port {
        self.reflects = true;
        self
    }

    /// How much it may send and is given.
    pub fn rates(&self) -> &PortRates {
        &self.rates
    }

    /// How many frames a second it may send to groups and unknown addresses, at once; None: as many as it likes. No pump is made
    /// anew for it.
    pub fn set_flood(&self, pps: Option<u64>) {
        set_flood_limit(&self.flood, pps);
    }

    /// It may send from its device's address only, or from any.
    #[must_use]
    pub fn checked(mut self, is_checked: bool) -> Port {
        self.is_checked = is_checked;
        self
    }

    /// It may send from its device's address only.
    pub fn is_checked(&self) -> bool {
        self.is_checked
    }

    /// It may send from its device's address only, or from any, from now on. Once it may not, other addresses that were learned behind it
    /// are forgotten, and not announced any more. In force when this returns Ok, if there was any time; without, which is for a port that no
    /// session has, it begins with what runs next, and what is known is forgotten once nobody else is changing the fabric.
    ///
    /// # Errors
    /// A worker did not let go in time.
    pub fn set_checked(&mut self, is_checked: bool, within: Duration) -> Result<(), ServeError> {
        let is_same = self.is_checked == is_checked;
        self.is_checked = is_checked;
        let held_to = self.mac.filter(|_| is_checked && !is_same);
        held_to.into_iter().for_each(|mac| self.announcement.hold_to(mac));
        // Whoever has no time has no session either: what runs next begins with it.
        let state = if within.is_zero() { self.fabric.try_lock() } else { Some(self.fabric.lock()) };
        let Some(mut locked) = state else {
            held_to.into_iter().for_each(|mac| self.hold_later(mac));
            return Ok(());
        };
        let state = &mut *locked;
        if let Some(port) = state.ends.ports.get_mut(&self.id) {
            port.is_checked = is_checked;
        }
        held_to.into_iter().for_each(|mac| state.kind.port_is_held(self.slot, mac));
        let of_it = |end: &EndKey| end.port == self.id && state.ends.is_source(*end);
        let own = state.pumps.values_mut().filter(|running| running.members.iter().any(of_it));
        // The same again is what could not be put in force before, if anything.
        own.for_each(|running| running.is_outdated |= !is_same);
        if !state.pumps.values().any(|running| running.is_outdated) {
            return Ok(());
        }
        if within.is_zero() {
            self.fabric.settle_later(state);
            return Ok(());
        }
        self.fabric.withdraw(locked, Some(self.id), within).1
    }

    /// Has other addresses than this forgotten once others are done with the fabric, unless the slot is another port's by then.
    fn hold_later(&self, mac: Mac) {
        let (fabric, id, slot) = (Arc::clone(&self.fabric), self.id, self.slot);
        later::run_until(move || {
            let Some(mut state) = fabric.try_lock() else { return false };
            if !state.ends.ports.iter().any(|(other, port)| port.slot == slot && *other != id) {
                state.kind.port_is_held(slot, mac);
            }
            true
        });
    }

    /// The VLANs that it carries, if it was given any.
    pub fn vlans(&self) -> Option<&Vlans> {
        self.vlans.as_deref()
    }

    /// It carries these VLANs; None: it was given none.
    #[must_use]
    pub fn in_vlans(mut self, vlans: Option<Vlans>) -> Port {
        self.note_vlans(vlans);
        self
    }

    /// It carries other VLANs from now on. The stations behind it are forgotten. In force when this returns Ok, if there was any time;
    /// without, which is for a port that no session has, it begins with what runs next, and nothing is forgotten of a port of which
    /// nothing runs while somebody is changing the fabric: with its last queue its stations went.
    ///
    /// # Errors
    /// A worker did not let go in time.
    pub fn set_vlans(&mut self, vlans: Option<Vlans>, within: Duration) -> Result<(), ServeError> {
        let is_same = self.vlans.as_deref() == vlans.as_ref();
        if !is_same {
            self.note_vlans(vlans);
        }
        // Whoever has no time has no session either: what runs next begins with them.
        let state = if within.is_zero() { self.fabric.try_lock() } else { Some(self.fabric.lock()) };
        let Some(mut state) = state else { return Ok(()) };
        // The same again is what could not be put in force before, if anything.
        if is_same && !state.pumps.values().any(|running| running.is_outdated) {
            return Ok(());
        }
        state.kind.port_stops(self.slot);
        if let Some(port) = state.ends.ports.get_mut(&self.id) {
            port.vlans.clone_from(&self.vlans);
        }
        // The others' pumps may not have looked at VLANs until now.
        state.pumps.values_mut().for_each(|running| running.is_outdated = true);
        if within.is_zero() {
            self.fabric.settle_later(&mut state);
            return Ok(());
        }
        self.fabric.withdraw(state, Some(self.id), within).1
    }

    /// Counts, too, whether it is one of the ports that were given VLANs. With the first of them a bridge begins to look at tags,
    /// with the last it ceases, whether or not that port runs.
    fn note_vlans(&mut self, vlans: Option<Vlans>) {
        let (before, now) = (self.vlans.is_some(), vlans.is_some());
        self.vlans = vlans.map(Arc::new);
        if before == now {
            return;
        }
        // Relaxed: what is made of it is made later, under the fabric's lock.
        let count = &self.fabric.in_vlans;
        let others = if now {
            count.fetch_add(1, Ordering::Relaxed)
        } else {
            count.fetch_sub(1, Ordering::Relaxed) - 1
        };
        if others > 0 {
            return;
        }
        let fabric = Arc::clone(&self.fabric);
        let tell = move || {
            let Some(mut state) = fabric.try_lock() else { return false };
            // What was known without tags is in no VLAN, and the other way round.
            let slots: Vec<u16> = state.ends.ports.values().map(|port| port.slot).collect();
            slots.into_iter().for_each(|slot| state.kind.port_stops(slot));
            state.pumps.values_mut().for_each(|running| running.is_outdated = true);
            fabric.settle_later(&mut state);
            true
        };
        // Mostly nobody has the lock, and what is learned from now on is not forgotten again.
        if !tell() {
            later::run_until(tell);
        }
    }

    /// Its device has this address.
    #[must_use]
    pub fn of_address(mut self, mac: Mac) -> Port {
        self.mac = Some(mac);
        self
    }

    /// The addresses of the devices at the other ports that run.
    pub fn others(&self) -> Vec<Mac> {
        let state = self.lock();
        let runs = |id: u64| !state.ends.of_port(id, |_| true).is_empty();
        let others = state.ends.ports.iter().filter(|(id, _)| **id != self.id && runs(**id));
        others.filter_map(|(_, port)| port.mac).collect()
    }

    /// Set once the device was removed: from then on it is nobody's peer, though its session may have to wind up.
    pub fn leaving(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_leaving)
    }

    /// Its number among the ports of its fabric, as [`crate::net::stations::Station::slot`] has it.
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// Puts started queues of a front-end into service. `mtu`: of the device.
    ///
    /// # Errors
    /// See [`ServeError`]; none of them is in service then.
    pub fn start(
        &self,
        queues: Vec<QueueBinding>,
        mtu: u16,
        placer: &Placer,
        within: Duration,
    ) -> Result<(), ServeError> {
        let rules = PortRules { mtu, only: self.mac.filter(|_| self.is_checked) };
        let mut sides = Vec::with_capacity(queues.len());
        for queue in queues {
            let (index, is_enabled) = (queue.index, queue.enabled);
            // virtio 1.3 §5.1.2: even is receive, odd is transmit.
            let side = if index % 2 == 0 {
                receive_queue(queue, rules).map(Side::Sink)
            } else {
                transmit_queue(queue, rules).map(Side::Source)
            };
            let side = side.map_err(|why| ServeError::Refused(format!("queue {index}: {why}")))?;
            sides.push((index, is_enabled, side));
        }
        self.attach(sides, placer, within)
    }

    /// Puts sides into service, whatever they are: queue number, whether frames may be delivered to it, side.
    ///
    /// # Errors
    /// See [`ServeError`]; none of them is in service then, and the other ports are as they were.
    pub fn attach(
        &self,
        sides: Vec<(u16, bool, Side)>,
        placer: &Placer,
        within: Duration,
    ) -> Result<(), ServeError> {
        let mut state = self.lock();
        for (queue, ..) in &sides {
            if state.ends.running.contains_key(&EndKey { port: self.id, queue: *queue }) {
                return Err(Stuck::Worker(format!("queue {queue} is still with one")).into());
            }
        }
        let (slot, is_leaving) = (self.slot, &self.is_leaving);
        let port = state.ends.ports.entry(self.id).or_insert_with(|| PortState {
            slot,
            is_leaving: Arc::clone(is_leaving),
            placer: placer.clone(),
            flood: Arc::clone(&self.flood),
            is_checked: self.is_checked,
            rates: Arc::clone(&self.rates),
            announcement: Arc::clone(&self.announcement),
            reflects: self.reflects,
            vlans: self.vlans.clone(),
            mac: self.mac,
            ended: Vec::new(),
        });
        port.placer = placer.clone();
        port.vlans.clone_from(&self.vlans);
        port.is_checked = self.is_checked;
        // How the group ended before has not been told yet: not to be taken for the end of what starts now.
        let of = |group: u16| sides.iter().any(|(queue, ..)| queue / 2 == group);
        if let Some((group, _)) = port.ended.iter().find(|(group, _)| of(*group)) {
            return Err(ServeError::Refused(format!("group {group} has just ended")));
        }
        let mut keys = Vec::with_capacity(sides.len());
        for (queue, is_enabled, side) in sides {
            let key = EndKey { port: self.id, queue };
            keys.push(key);
            state.ends.add(key, is_enabled, side);
        }
        let (mut state, outcome) = self.fabric.reconcile(state, Some(self.id), within);
        if outcome.is_err() {
            state.ends.mark(&keys);
            // It tells of the same worker, or of none.
            drop(self.fabric.withdraw(state, Some(self.id), within));
        }
        outcome
    }

    /// Takes the queues of a group out of service: once it returns Ok, no worker touches them or their memory.
    ///
    /// # Errors
    /// A worker did not let go in time.
    pub fn stop(&self, group: u16, within: Duration) -> Result<(), ServeError> {
        self.detach(|queue| queue / 2 == group, within)
    }

    fn detach(&self, which: impl Fn(u16) -> bool, within: Duration) -> Result<(), ServeError> {
        let mut state = self.lock();
        let keys = state.ends.of_port(self.id, which);
        if keys.is_empty() {
            return Ok(());
        }
        state.leave(self.id, self.slot, &keys);
        self.fabric.withdraw(state, Some(self.id), within).1
    }

    /// Has the network told that this address is behind the port, once the port's transmit queues run. None: what waits is
    /// not sent any more.
    pub fn announce(&self, mac: Option<Mac>) {
        self.announcement.set(mac);
        if mac.is_none() {
            return;
        }
        let state = self.lock();
        let of_port = |running: &&Running| running.members.iter().any(|end| end.port == self.id);
        state.pumps.values().filter(of_port).for_each(|running| running.placed.wake());
    }

    /// True if a queue of the group is in service.
    pub fn is_started(&self, group: u16) -> bool {
        let state = self.lock();
        !state.ends.of_port(self.id, |queue| queue / 2 == group).is_empty()
    }

    /// Queues in service on the fabric, which are taken out and put back when those of one group change.
    pub fn running(&self) -> usize {
        self.lock().ends.running.len()
    }

    /// The core on which frames for a group are delivered; else the one on which they are taken.
    pub fn core(&self, group: u16) -> Option<usize> {
        let state = self.lock();
        let of = |queue: u16| {
            let pump = state.ends.pump_of(EndKey { port: self.id, queue })?;
            state.pumps.get(&pump).map(|running| running.placed.core())
        };
        of(group * 2).or_else(|| of(group * 2 + 1))
    }

    /// Moves the fabric's pumps to the cores that control decided on.
    ///
    /// # Errors
    /// A worker did not let go in time.
    pub fn follow_cores(&self, within: Duration) -> Result<(), ServeError> {
        self.fabric.follow_cores(self.id, within)
    }

    /// The groups of this port whose pump ended without being asked to, and why, once. Puts what else ran there back into
    /// service.
    pub fn take_ended(&self, within: Duration) -> Vec<(u16, Ended)> {
        let mut state = self.lock();
        if state.pumps.values().any(|running| running.placed.has_ended()) {
            (state, _) = self.fabric.withdraw(state, Some(self.id), within);
        }
        state.ends.ports.get_mut(&self.id).map(|port| std::mem::take(&mut port.ended)).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.fabric.lock()
    }
}

impl Drop for Port {
    /// Never waits: its holder may be control.
    fn drop(&mut self) {
        self.is_leaving.store(true, Ordering::Relaxed);
        self.note_vlans(None);
        let departure = Departure { fabric: Arc::clone(&self.fabric), id: self.id, slot: self.slot };
        // Mostly nothing runs any more, and nobody has the lock.
        let is_out = self.fabric.try_lock().is_some_and(|mut state| departure.forget(&mut state));
        if !is_out {
            // Its session ended badly, or others change the fabric just now.
            later::run_until(move || departure.is_over());
        }
    }
}

impl State {
    /// These queues of a port are to be out of service. With the last of them, what is known behind it is forgotten: of one that a worker
    /// holds, by the others at once, for whom it is there until they are made anew.
    fn leave(&mut self, port: u64, slot: u16, keys: &[EndKey]) {
        let is_new = self.ends.mark(keys);
        if !is_new || !self.ends.are_leaving(port) {
            return;
        }
        self.kind.port_stops(slot);
        if self.ends.is_held(port) {
            self.pumps.values_mut().for_each(|running| running.is_outdated = true);
        }
    }
}

/// A port that was dropped, and what it may have left.
struct Departure {
    fabric: Arc<Fabric>,
    id: u64,
    slot: u16,
}

impl Departure {
    /// Takes out what is left of it. False: a worker has not let go yet.
    fn is_over(&self) -> bool {
        let Some(mut state) = self.fabric.try_lock() else { return false };
        let keys = state.ends.of_port(self.id, |_| true);
        if !keys.is_empty() {
            state.leave(self.id, self.slot, &keys);
            (state, _) = self.fabric.withdraw(state, None, LATER_WITHIN);
        }
        self.forget(&mut state)
    }

    /// Forgets the port, if nothing of it is left. Its place is free from then on.
    fn forget(&self, state: &mut State) -> bool {
        if !state.ends.of_port(self.id, |_| true).is_empty() {
            return false;
        }
        if state.ends.ports.remove(&self.id).is_some() {
            state.kind.port_leaves(self.slot);
        }
        lock(&self.fabric.slots).remove(&self.slot);
        true
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("fabric", &self.fabric).field("id", &self.id).finish_non_exhaustive()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "what fails here fails the test")]
mod tests {
    use super::*;

    #[test]
    fn port_that_is_held_to_its_address_while_others_have_its_bridge_announces_no_other() {
        let (fabric, _) = Fabric::bridge("b", 0, Duration::from_secs(300), [1, 2]);
        let mut port = fabric.port(None).unwrap().of_address(Mac([2, 0, 0, 0, 0, 1]));
        port.announce(Some(Mac([2, 0, 0, 0, 0, 2])));
        let others = fabric.lock();
        port.set_checked(true, Duration::ZERO).unwrap();
        assert!(!port.announcement.is_waiting());
        drop(others);
        assert!(later::settle(Duration::from_secs(20)));
    }
}
