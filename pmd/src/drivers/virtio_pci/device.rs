//! A guest's NIC on a virtio function: its rings are relayed, or the function consumes them itself.
//!
//! The function is opened when a front-end's memory comes first, and closed when the device goes. It is *up* while queues are in
//! service: reset, driven with what the guest agreed on, all its rings begun. A queue that goes out of service leaves buffers of
//! the guest's with the function, which no register takes back one by one. Where it can reset one queue (RING_RESET), the
//! others do not notice; else all of it is reset, and what else was in service begins anew, at the places where its rings stand.
//!
//! ```text
//!   group started ----> begins at 0, and hardware is wanted? --yes--> in hardware: the function has the guest's ring, kick, call
//!                                        | no                             |  stopped, disabled, or `datapath relay`
//!                                        v                                v
//!                       relayed, from where the ring stands <-- its used index, and what is outstanding
//! ```
//!
//! No register of virtio's has a function begin elsewhere than at 0, so that the way back to hardware is the guest's next fresh
//! start; but for functions that have such registers beside ([`crate::virtio::migration`]).
//!
//! Owned by the session's thread. What the function tells unasked comes by the thread that listens to all functions.

mod queues;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_engine::{HowEnded, PlaceError, Placed};
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::layout::Areas;
use ringway_ring::position::Position;
use ringway_ring::queue::Format;
use ringway_ring::resume::{ask_for_kicks, outstanding, rewound, used_position};

use super::function::{GuestRing, Open, Up};
use super::{DATAPATH, DataPathWanted, RESET, Seen};
use crate::bus::pci::Opener;
use crate::dma::{Cancel, MapError};
use crate::net::guest_queue::PortRules;
use crate::net::nic::Nic;
use crate::net::plan::Plan;
use crate::net::relay::{Pair, Relay};
use crate::net::{Mac, NetConfig};
use crate::vdpa::{
    ClassOps, ConfigSpace, DataPath, DeviceHost, DriverError, Ended, Facts, Kept, NetOps, Placer,
    QueueBinding, Queues, ServeError, Stuck, VdpaDevice,
};

/// The device.
pub(super) struct VirtioNic {
    name: String,
    opener: Opener,
    seen: Seen,
    nic: Nic,
    /// The address that an operator gave it, if it is not the function's.
    mac: Option<Mac>,
    host: DeviceHost,
    /// What the guest agreed on.
    negotiated: Features,
    // In this order, once it was brought down: its rings, then the function.
    up: Option<Up>,
    open: Option<Open>,
    groups: Vec<Option<Running>>,
    kept: Kept,
    /// How an operator wants it.
    wanted: DataPathWanted,
    /// Why queues are relayed that were to be in hardware.
    relayed_because: Option<String>,
    /// Queues whose rings the function consumed: where they stand is what it left.
    consumed: BTreeSet<u16>,
    /// Of these, those that it may consume still, until it is quiet.
    unsettled: Vec<QueueBinding>,
    /// Out of service until the function begins anew.
    waiting: Vec<Group>,
    /// Out of service until the other queue of the pair is there, for so long.
    resting: Vec<(Group, Instant)>,
    /// Out of service unasked, and not told yet.
    ended: Vec<(u16, Ended)>,
    /// The function has buffers that are not to be its any more.
    is_stale: bool,
    /// What was to be sent when a queue stopped last did not go in time.
    does_not_send: bool,
}

/// A group of queues as it was given.
struct Group {
    number: u16,
    placer: Placer,
    queues: Vec<QueueBinding>,
}

/// A group in service.
struct Running {
    by: By,
    group: Group,
}

/// Who serves a group.
enum By {
    /// A worker.
    Relay(Placed),
    /// The function.
    Hardware,
}

impl Running {
    fn placed(&self) -> Option<&Placed> {
        match &self.by {
            By::Relay(placed) => Some(placed),
            By::Hardware => None,
        }
    }
}

impl fmt::Debug for VirtioNic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioNic").field("name", &self.name).finish_non_exhaustive()
    }
}

impl VirtioNic {
    pub(super) fn new(
        name: String,
        opener: Opener,
        seen: Seen,
        plan: Plan,
        wanted: DataPathWanted,
        host: DeviceHost,
    ) -> VirtioNic {
        let mac = Some(plan.config.mac).filter(|mac| Some(*mac) != seen.mac);
        let nic = Nic::new(plan, MAX_VQ_SIZE);
        VirtioNic {
            name,
            opener,
            seen,
            nic,
            mac,
            host,
            negotiated: Features::NONE,
            up: None,
            open: None,
            groups: Vec::new(),
            kept: Kept::default(),
            wanted,
            relayed_because: None,
            consumed: BTreeSet::new(),
            unsettled: Vec::new(),
            waiting: Vec::new(),
            resting: Vec::new(),
            ended: Vec::new(),
            is_stale: false,
            does_not_send: false,
        }
    }

    /// The function, opened now if it was not. Takes some 100 ms then.
    fn opened(&mut self) -> Result<&mut Open, DriverError> {
        if self.open.is_none() {
            let function = (self.opener)()?;
            let pairs = self.nic.config().max_vq_pairs;
            self.open = Some(Open::new(function, &self.name, pairs, &self.seen, &self.host)?);
        }
        self.open.as_mut().ok_or_else(|| DriverError::NotFound(format!("{} is not open", self.name)))
    }

    /// What the function is driven with, for this guest.
    fn driven(&self) -> Features {
        match self.unfit_for_hardware() {
            None => self.seen.driven_in_hardware(self.negotiated),
            Some(_) => self.seen.driven(self.negotiated),
        }
    }

    /// Why the function cannot consume any ring of this guest's, or is not to.
    fn unfit_for_hardware(&self) -> Option<String> {
        let missing = self.negotiated.without(self.seen.offered);
        let pairs = self.nic.config().max_vq_pairs;
        if self.wanted == DataPathWanted::Relay {
            Some("an operator wants it so".to_owned())
        } else if self.negotiated.contains(Features::RING_PACKED) {
            Some("the guest uses packed rings, and the function does not tell where one stands".to_owned())
        } else if missing != Features::NONE {
            Some(format!("the guest uses features that the function does not have: {missing:?}"))
        } else if self.negotiated.contains(Features::NOTIFICATION_DATA) {
            Some("the guest says more with its kicks than the host can pass on".to_owned())
        } else if self.open.as_ref().is_some_and(|open| !open.has_vectors_for(pairs)) {
            let needed = pairs * 2 + 1;
            Some(format!("the function has fewer than {needed} interrupt vectors: one a queue, and one"))
        } else {
            None
        }
    }

    /// Why the function cannot consume the rings of this group just now.
    fn unfit(&self, group: &Group) -> Option<String> {
        let Group { number, queues, .. } = group;
        let are_enabled = queues.iter().filter(|queue| queue.enabled).count();
        if let Some(why) = self.unfit_for_hardware() {
            return Some(why);
        }
        if queues.len() != 2 {
            Some(format!("pair {number} has one queue that is started"))
        } else if !self.seen.begins_anywhere
            && queues.iter().any(|queue| queue.config.position != Position::START)
        {
            Some(USED_BEFORE.to_owned())
        } else if queues.iter().any(|queue| queue.kick.is_none()) {
            Some("the front-end polls and gives no kicks".to_owned())
        } else if are_enabled != 2 && (*number == 0 || are_enabled == 1) {
            Some(format!("a queue of pair {number} is disabled"))
        } else if queues.iter().any(|queue| self.is_out_of_order(queue)) {
            Some(format!("the function completed buffers of pair {number} out of order"))
        } else if queues.iter().any(|queue| queue.fault.reported().is_some()) {
            Some(format!("a ring of pair {number} is broken"))
        } else {
            None
        }
    }

    /// What is outstanding of a ring is not what follows the place where it stands: only a relay can go on with it.
    fn is_out_of_order(&self, queue: &QueueBinding) -> bool {
        let left = self.consumed.contains(&queue.index).then(|| outstanding(&queue.config));
        left.is_some_and(|left| left.map_or(true, |left| !left.first.is_empty()))
    }

    /// Its other queue is about to be started: it is not served before, so that it is in hardware then.
    fn rests(&self, group: &Group) -> bool {
        let mut queues = group.queues.iter();
        group.queues.len() < 2
            && self.unfit_for_hardware().is_none()
            && queues.all(|queue| queue.config.position == Position::START)
    }

    /// Brings the function up for this guest, with these of its rings in hardware.
    fn bring_up(&mut self, guests: &BTreeMap<u16, GuestRing>) -> Result<(), ServeError> {
        if !self.negotiated.contains(Features::VERSION_1) {
            let why = format!("{}: the guest did not accept VERSION_1, which the function needs", self.name);
            return Err(ServeError::Refused(why));
        }
        let (seen, pairs, mac, driven) = (self.seen, self.nic.config().max_vq_pairs, self.mac, self.driven());
        let name = self.name.clone();
        let open = self.opened().map_err(|error| ServeError::Refused(error.to_string()))?;
        let up = open.bring_up(&seen, driven, pairs, mac, guests);
        self.up = Some(up.map_err(|why| ServeError::Refused(format!("{name}: {why}")))?);
        Ok(())
    }

    /// Puts groups into service, on a function that is up or not; those that are not then, and why.
    fn serve(&mut self, groups: Vec<Group>) -> Vec<(Group, ServeError)> {
        if let (Some(open), Some(group)) = (&self.open, groups.first()) {
            open.tell(Arc::clone(&group.placer.watcher));
        }
        let (mut relayed, mut fit) = (Vec::new(), Vec::new());
        for group in groups {
            for queue in group.queues.iter().filter(|queue| queue.config.position == Position::START) {
                self.consumed.remove(&queue.index);
            }
            match self.unfit(&group) {
                None => match group.queues.iter().map(guest_ring).collect::<Option<Vec<_>>>() {
                    Some(rings) => fit.push((group, rings)),
                    None => relayed.push(group),
                },
                Some(why) => {
                    self.relayed_because = Some(why);
                    relayed.push(group);
                }
            }
        }
        if self.up.is_none() {
            let guests: BTreeMap<u16, GuestRing> =
                fit.iter_mut().flat_map(|(_, rings)| rings.drain(..)).collect();
            // It may have had something of theirs, whatever comes of it.
            self.consumed.extend(guests.keys());
            let mut outcome = self.bring_up(&guests);
            if let (Err(why), false) = (&outcome, guests.is_empty()) {
                self.relayed_because = Some(why.to_string());
                for (mut group, _) in fit.drain(..) {
                    group.queues.iter_mut().for_each(settle);
                    relayed.push(group);
                }
                outcome = self.bring_up(&BTreeMap::new());
            }
            if let Err(why) = outcome {
                let why = why.to_string();
                if self.open.as_ref().is_some_and(|open| open.quiet(RESET).is_err()) {
                    // As where it does not stop: it may have what it was given.
                    self.host.gone(format!("the function does not stop: {why}"));
                }
                return relayed.into_iter().map(|group| (group, ServeError::Refused(why.clone()))).collect();
            }
        } else {
            for (mut group, rings) in std::mem::take(&mut fit) {
                match self.give(&mut group, &rings) {
                    Ok(()) => fit.push((group, Vec::new())),
                    Err(why) => {
                        self.relayed_because = Some(why);
                        // Until the function is reset it may have the rings.
                        let to = if self.is_stale { &mut self.waiting } else { &mut relayed };
                        to.push(group);
                    }
                }
            }
        }
        for (group, _) in fit {
            self.note_running(Running { by: By::Hardware, group });
        }
        let mut failed = Vec::new();
        for group in relayed {
            match self.relay(&group) {
                Ok(placed) => self.note_running(Running { by: By::Relay(placed), group }),
                Err(why) => {
                    // What it was given of the function's is not there any more.
                    self.is_stale = true;
                    failed.push((group, why));
                }
            }
        }
        failed
    }

    /// The function that is at work consumes these rings of a group, too; else why it does not, and none of them, unless it is
    /// stale then.
    fn give(&mut self, group: &mut Group, rings: &[(u16, GuestRing)]) -> Result<(), String> {
        let (Some(open), Some(up)) = (self.open.as_ref(), self.up.as_mut()) else {
            return Err("the function is not up".to_owned());
        };
        if !up.can_reset_queues() {
            let why = "other queues of the function are at work, and it cannot begin one alone (RING_RESET)";
            return Err(why.to_owned());
        }
        for (at, (queue, ring)) in rings.iter().enumerate() {
            self.consumed.insert(*queue);
            let Err(why) = open.give(up, *queue, ring) else { continue };
            for own in &mut group.queues {
                if !rings.iter().take(at + 1).any(|(given, _)| *given == own.index) {
                    continue;
                }
                match open.take_away(up, own.index) {
                    Ok(()) => settle(own),
                    Err(_) => {
                        self.is_stale = true;
                        self.unsettled.push(own.clone());
                    }
                }
            }
            return Err(why.to_string());
        }
        Ok(())
    }

    fn note_running(&mut self, running: Running) {
        let at = usize::from(running.group.number);
        if self.groups.len() <= at {
            self.groups.resize_with(at + 1, || None);
        }
        if let Some(slot) = self.groups.get_mut(at) {
            *slot = Some(running);
        }
    }

    /// Has a worker relay a group, on a function that is up.
    fn relay(&mut self, group: &Group) -> Result<Placed, ServeError> {
        let Group { number, placer, queues } = group;
        let refused = |why: String| ServeError::Refused(format!("{}: {why}", self.name));
        let rules = PortRules { mtu: self.nic.mtu(), only: None };
        let up = self.up.as_mut().ok_or_else(|| refused("the function is not up".to_owned()))?;
        let mut pairs = Vec::new();
        for guest in queues {
            // One that broke the rules is left alone.
            if guest.fault.reported().is_some() {
                continue;
            }
            let (index, mut guest, mut first) = (guest.index, guest.clone(), Vec::new());
            // A function may have completed out of order, also in a life before this one.
            let was_its = self.consumed.contains(&index);
            let stands = guest.format == Format::Split && guest.config.position != Position::START;
            if was_its || (stands && used_position(&guest.config) == Some(guest.config.position)) {
                match outstanding(&guest.config) {
                    Ok(left) => (guest.config.position, first) = (left.position, left.first),
                    Err(why) if was_its => return Err(refused(format!("queue {index}: {why}"))),
                    Err(_) => {}
                }
            }
            let idle = up.idle.get_mut(usize::from(index)).and_then(Option::take);
            let function =
                idle.ok_or_else(|| refused(format!("queue {index} of the function is not there")))?;
            pairs.push(Pair { guest, function, first });
        }
        let relay = Relay::new(pairs, rules).map_err(|why| refused(format!("pair {number}: {why}")))?;
        let name = format!("{}.{number}", placer.name);
        let placed =
            placer.engine.place((placer.core_of)(*number), &name, Box::new(relay), placer.watcher.clone());
        placed.map_err(|error| ServeError::NotPlaced(error.to_string()))
    }

    /// The function is used by as many pairs as have an enabled queue, counted from the first. Should it refuse, what it has for
    /// others is lost as if they had no buffers.
    fn tell_pairs(&mut self) {
        let is_used = |running: &Option<Running>| {
            let mut queues = running.iter().flat_map(|running| &running.group.queues);
            queues.any(|queue| queue.enabled)
        };
        let pairs = self.groups.iter().rposition(is_used).map_or(1, |last| last as u16 + 1);
        let control = self.up.as_mut().and_then(|up| up.control.as_mut());
        if let Some(control) = control.filter(|_| self.seen.pairs > 1) {
            let _ = control.set_pairs(pairs, RESET);
        }
    }

    /// Takes a group out of service, if it is, and what its pump panicked with, if it did. What was to be sent has gone by then,
    /// unless the function does not send. The function may have the rest still, and the rings: it is stale then.
    fn take_back(&mut self, group: u16, within: Duration) -> Result<Option<(Group, Option<String>)>, Stuck> {
        let Some(slot) = self.groups.get_mut(usize::from(group)) else { return Ok(None) };
        let Some(running) = slot else { return Ok(None) };
        let mut panicked = None;
        if let By::Relay(placed) = &mut running.by {
            // One that did not send before is not waited for once more.
            let patience = if self.does_not_send { Duration::ZERO } else { within.min(DRAIN) };
            let retired = match placed.retire(patience) {
                Err(PlaceError::Timeout { .. }) => {
                    self.does_not_send = true;
                    placed.revoke(within)
                }
                retired => retired,
            };
            match retired.map(|retired| retired.end) {
                Err(error @ PlaceError::Timeout { .. }) => return Err(Stuck::Worker(error.to_string())),
                Ok(HowEnded::Panicked(message)) => panicked = Some(message),
                // Err: the pump is gone with its engine.
                Ok(HowEnded::Retired) | Err(_) => {}
            }
        }
        let Some(Running { by, group }) = slot.take() else { return Ok(None) };
        let mut group = group;
        for queue in &mut group.queues {
            let (open, up) = (self.open.as_ref(), self.up.as_mut());
            let resettable = open.zip(up.filter(|up| up.can_reset_queues() && !self.is_stale));
            let is_in_hardware = matches!(by, By::Hardware);
            let is_its_no_more = resettable.is_some_and(|(open, up)| match is_in_hardware {
                true => open.take_away(up, queue.index).is_ok(),
                false => open.begin_anew(up, queue.index).is_ok(),
            });
            self.is_stale |= !is_its_no_more;
            match (is_in_hardware, is_its_no_more) {
                (true, true) => settle(queue),
                (true, false) => self.unsettled.push(queue.clone()),
                (false, _) => {}
            }
        }
        Ok(Some((group, panicked)))
    }

    /// The function touches no memory once this returns Ok.
    fn bring_down(&mut self, within: Duration) -> Result<(), Stuck> {
        if let Some((up, open)) = self.up.as_mut().zip(self.open.as_ref())
            && let Err(why) = open.bring_down(up, within)
        {
            // Nobody is given it as it is: the host resets what is closed.
            self.host.gone(format!("the function does not stop: {why}"));
            return Err(Stuck::Device(format!("{}: {why}", self.name)));
        }
        self.unsettled.drain(..).for_each(|mut queue| settle(&mut queue));
        self.up = None;
        self.is_stale = false;
        Ok(())
    }

    /// The function begins anew, with all that is in service, if it has buffers of a guest's that are not to be its any more.
    fn renew(&mut self, within: Duration) -> Result<(), Stuck> {
        self.is_stale |= self.open.as_ref().is_some_and(Open::was_reset);
        if !self.is_stale {
            return Ok(());
        }
        for number in 0..self.groups.len() as u16 {
            self.set_aside(number, within)?;
        }
        self.bring_down(within)?;
        self.go_on();
        self.does_not_send = false;
        Ok(())
    }

    /// Takes a group out of service that is to go on.
    fn set_aside(&mut self, number: u16, within: Duration) -> Result<(), Stuck> {
        match self.take_back(number, within)? {
            None => {}
            Some((group, None)) => self.waiting.push(group),
            Some((_, Some(message))) => self.ended.push((number, Ended::Panicked(message))),
        }
        Ok(())
    }

    /// What was set aside goes on where it stands.
    fn go_on(&mut self) {
        let mut groups = std::mem::take(&mut self.waiting);
        for queue in groups.iter_mut().flat_map(|group| &mut group.queues) {
            let config = &mut queue.config;
            config.position = config.keeper.load().map_or(config.position, rewound);
        }
        if !groups.is_empty() {
            for (group, why) in self.serve(groups) {
                self.ended.push((group.number, Ended::DeviceLost(why.to_string())));
                group.placer.watcher.pump_ended();
            }
        }
        self.tell_pairs();
    }

    /// All groups that are in service are in hardware, and no driver has had anything from them yet.
    fn are_fresh(&self) -> bool {
        self.groups.iter().flatten().all(|running| {
            let mut queues = running.group.queues.iter();
            matches!(running.by, By::Hardware)
                && queues.all(|queue| used_position(&queue.config) == Some(Position::START))
        })
    }
}

/// A guest's ring that the function consumed and does not any more: where it stands is kept, and its driver told, who may not
/// have heard of the last buffers that were used.
fn settle(queue: &mut QueueBinding) {
    if let Some(position) = used_position(&queue.config) {
        queue.config.keeper.store(position);
        queue.config.position = position;
    }
    if let Some(call) = &queue.call {
        call.owe();
    }
}

/// A ring as the function is to consume it; None: it does not lie in the guest's memory, or nobody kicks.
fn guest_ring(queue: &QueueBinding) -> Option<(u16, GuestRing)> {
    let config = &queue.config;
    let claims = Areas {
        desc: config.desc_user_addr,
        driver: config.driver_user_addr,
        device: config.device_user_addr,
    };
    let [desc, driver, device] = claims.of(queue.format, config.size).map(|area| {
        let gpa = config.map.gpa_of_user(area.address, area.len).ok();
        // The front-end's address was looked at; the function has the guest's.
        gpa.filter(|gpa| gpa.is_multiple_of(area.align))
    });
    let areas = Areas { desc: desc?, driver: driver?, device: device? };
    let (kick, call) = (queue.kick.clone()?, queue.call.clone());
    // Whoever served it before may have needed none.
    ask_for_kicks(config);
    Some((queue.index, GuestRing { size: config.size, areas, kick, call, begin: config.position.used_idx }))
}

impl Drop for VirtioNic {
    fn drop(&mut self) {
        // What it does not do by itself, the host's reset does when the function is closed.
        let _ = self.bring_down(RESET);
    }
}

impl VdpaDevice for VirtioNic {
    fn facts(&self) -> Facts {
        Facts { data_path: DataPath::Relay, dma: true, ..self.nic.facts() }
    }

    fn config(&mut self) -> &mut dyn ConfigSpace {
        if let Some(open) = &self.open {
            self.nic.set_link(open.has_link(&self.seen));
        }
        &mut self.nic
    }

    fn queues(&mut self) -> &mut dyn Queues {
        self
    }

    fn class(&mut self) -> ClassOps<'_> {
        ClassOps::Net(self)
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        BTreeMap::from([(DATAPATH.name.to_owned(), self.wanted.name().to_owned())])
    }

    fn set(&mut self, attributes: &BTreeMap<String, String>, within: Duration) -> Result<(), Stuck> {
        // It was checked before.
        self.wanted = DataPathWanted::of(attributes).unwrap_or(self.wanted);
        let is_to_be_relayed = self.wanted == DataPathWanted::Relay;
        if !is_to_be_relayed && !self.seen.begins_anywhere {
            self.relayed_because = Some(self.unfit_for_hardware().unwrap_or_else(|| USED_BEFORE.to_owned()));
            return Ok(());
        }
        // What hardware is driven with is the guest's choice.
        self.is_stale |= !is_to_be_relayed && self.up.as_ref().is_some_and(|up| up.driven != self.driven());
        for number in 0..self.groups.len() as u16 {
            let running = self.groups.get(usize::from(number)).and_then(Option::as_ref);
            if running.is_some_and(|running| running.placed().is_none() == is_to_be_relayed) {
                self.set_aside(number, within)?;
            }
        }
        self.waiting.extend(self.resting.drain(..).map(|(group, _)| group));
        if self.is_stale {
            return self.renew(within);
        }
        if !self.waiting.is_empty() {
            self.go_on();
        }
        self.renew(within)
    }

    fn note(&self) -> Option<String> {
        let is_relayed = self.groups.iter().flatten().any(|running| running.placed().is_some());
        let why = self.relayed_because.as_ref();
        why.filter(|_| is_relayed && self.wanted == DataPathWanted::Hardware)
            .map(|why| format!("datapath hardware is not in force: {why}"))
    }

    fn negotiated(&mut self, features: Features) -> Result<(), DriverError> {
        if features != self.negotiated {
            self.is_stale |= self.up.is_some();
            self.consumed.clear();
        }
        self.negotiated = features;
        Ok(())
    }

    fn set_map(&mut self, map: Option<&Arc<GuestMap>>, cancel: Cancel<'_>) -> Result<(), MapError> {
        if map.is_none() && self.open.is_none() {
            return Ok(());
        }
        let open = self.opened().map_err(|error| MapError::NoDevice(error.to_string()))?;
        open.window.set_map(map.map(|map| &**map), cancel)
    }

    fn reset(&mut self, within: Duration) -> Result<(), Stuck> {
        self.bring_down(within)?;
        self.consumed.clear();
        self.relayed_because = None;
        self.negotiated = Features::NONE;
        self.nic.reset();
        Ok(())
    }
}

impl NetOps for VirtioNic {
    fn net_config(&self) -> NetConfig {
        let link_up = self.open.as_ref().is_none_or(|open| open.has_link(&self.seen));
        NetConfig { link_up, ..self.nic.config() }
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DriverError> {
        self.nic.set_mtu(mtu)
    }
}

const USED_BEFORE: &str = "its rings were in use before; it is, once the guest's driver starts them anew";
/// Entries of a guest's ring at most.
const MAX_VQ_SIZE: u16 = 32768;
/// What a guest sent has gone within this, or waits for a link.
const DRAIN: Duration = Duration::from_millis(100);
