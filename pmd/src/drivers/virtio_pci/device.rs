//! A guest's NIC on a virtio function, relayed.
//!
//! The function is opened when a front-end's memory comes first, and closed when the device goes. It is *up* while queues are in
//! service: reset, driven with what the guest agreed on, all its rings begun. A queue that goes out of service leaves buffers of
//! the guest's with the function, which no register takes back one by one: the function is reset, and what else was in service
//! begins anew, at the places where its rings stand.
//!
//! Owned by the session's thread. What the function tells unasked comes by the thread that listens to all functions.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use ringway_engine::{HowEnded, PlaceError, Placed};
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;

use super::function::{Open, Up};
use super::{RESET, Seen};
use crate::bus::pci::Opener;
use crate::dma::{Cancel, MapError};
use crate::net::guest_queue::PortRules;
use crate::net::nic::Nic;
use crate::net::plan::Plan;
use crate::net::relay::{Pair, Relay};
use crate::net::{Mac, NetConfig};
use crate::vdpa::{
    ClassOps, ConfigSpace, DeviceHost, DriverError, Ended, Facts, Kept, NetOps, Placer, QueueBinding, Queues,
    ServeError, ServedBy, Stopped, Stuck, VdpaDevice,
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
    /// Out of service until the function begins anew.
    waiting: Vec<(u16, Placer, Vec<QueueBinding>)>,
    /// Out of service unasked, and not told yet.
    ended: Vec<(u16, Ended)>,
    /// The function has buffers that are not to be its any more.
    is_stale: bool,
    /// What was to be sent when a queue stopped last did not go in time.
    does_not_send: bool,
}

/// A group in service.
struct Running {
    placed: Placed,
    placer: Placer,
    /// Its queues as they were given, to begin anew with.
    queues: Vec<QueueBinding>,
}

impl fmt::Debug for VirtioNic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VirtioNic").field("name", &self.name).finish_non_exhaustive()
    }
}

impl VirtioNic {
    pub(super) fn new(name: String, opener: Opener, seen: Seen, plan: Plan, host: DeviceHost) -> VirtioNic {
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
            waiting: Vec::new(),
            ended: Vec::new(),
            is_stale: false,
            does_not_send: false,
        }
    }

    /// The function, opened now if it was not. Takes some 100 ms then.
    fn opened(&mut self) -> Result<&mut Open, DriverError> {
        if self.open.is_none() {
            let function = (self.opener)()?;
            self.open = Some(Open::new(function, &self.name, self.nic.config().max_vq_pairs, &self.host)?);
        }
        self.open.as_mut().ok_or_else(|| DriverError::NotFound(format!("{} is not open", self.name)))
    }

    /// Brings the function up for this guest, if it is not.
    fn bring_up(&mut self) -> Result<(), ServeError> {
        if self.up.is_some() {
            return Ok(());
        }
        if !self.negotiated.contains(Features::VERSION_1) {
            let why = format!("{}: the guest did not accept VERSION_1, which the function needs", self.name);
            return Err(ServeError::Refused(why));
        }
        let (seen, pairs, mac) = (self.seen, self.nic.config().max_vq_pairs, self.mac);
        let driven = seen.driven(self.negotiated);
        let name = self.name.clone();
        let open = self.opened().map_err(|error| ServeError::Refused(error.to_string()))?;
        let up = open.bring_up(&seen, driven, pairs, mac);
        self.up = Some(up.map_err(|why| ServeError::Refused(format!("{name}: {why}")))?);
        Ok(())
    }

    /// Puts a group into service on a function that is up.
    fn place(&mut self, group: u16, queues: Vec<QueueBinding>, placer: &Placer) -> Result<(), ServeError> {
        let placed = self.try_place(group, queues, placer);
        // What it was given of the function's is not there any more.
        self.is_stale |= placed.is_err();
        placed
    }

    fn try_place(
        &mut self,
        group: u16,
        queues: Vec<QueueBinding>,
        placer: &Placer,
    ) -> Result<(), ServeError> {
        let refused = |why: String| ServeError::Refused(format!("{}: {why}", self.name));
        let rules = PortRules { mtu: self.nic.mtu(), only: None };
        let up = self.up.as_mut().ok_or_else(|| refused("the function is not up".to_owned()))?;
        let mut pairs = Vec::new();
        for guest in &queues {
            // One that broke the rules is left alone.
            if guest.fault.reported().is_some() {
                continue;
            }
            let index = guest.index;
            let idle = up.idle.get_mut(usize::from(index)).and_then(Option::take);
            let function =
                idle.ok_or_else(|| refused(format!("queue {index} of the function is not there")))?;
            pairs.push(Pair { guest: guest.clone(), function });
        }
        let relay = Relay::new(pairs, rules).map_err(|why| refused(format!("pair {group}: {why}")))?;
        let name = format!("{}.{group}", placer.name);
        let placed =
            placer.engine.place((placer.core_of)(group), &name, Box::new(relay), placer.watcher.clone());
        let placed = placed.map_err(|error| ServeError::NotPlaced(error.to_string()))?;
        let at = usize::from(group);
        if self.groups.len() <= at {
            self.groups.resize_with(at + 1, || None);
        }
        if let Some(slot) = self.groups.get_mut(at) {
            *slot = Some(Running { placed, placer: placer.clone(), queues });
        }
        Ok(())
    }

    /// The function is used by as many pairs as have an enabled queue, counted from the first. Should it refuse, what it has for
    /// others is lost as if they had no buffers.
    fn tell_pairs(&mut self) {
        let is_used = |running: &Option<Running>| {
            let mut queues = running.iter().flat_map(|running| &running.queues);
            queues.any(|queue| queue.enabled)
        };
        let pairs = self.groups.iter().rposition(is_used).map_or(1, |last| last as u16 + 1);
        let control = self.up.as_mut().and_then(|up| up.control.as_mut());
        if let Some(control) = control.filter(|_| self.seen.pairs > 1) {
            let _ = control.set_pairs(pairs, RESET);
        }
    }

    /// Takes a group's pump back, if there is one, and what it panicked with, if it did. What was to be sent has gone by then,
    /// unless the function does not send; the rest the function still has.
    fn take_back(
        &mut self,
        group: u16,
        within: Duration,
    ) -> Result<Option<(Running, Option<String>)>, Stuck> {
        let Some(slot) = self.groups.get_mut(usize::from(group)) else { return Ok(None) };
        let Some(running) = slot else { return Ok(None) };
        // One that did not send before is not waited for once more.
        let patience = if self.does_not_send { Duration::ZERO } else { within.min(DRAIN) };
        let retired = match running.placed.retire(patience) {
            Err(PlaceError::Timeout { .. }) => {
                self.does_not_send = true;
                running.placed.revoke(within)
            }
            retired => retired,
        };
        let panicked = match retired.map(|retired| retired.end) {
            Err(error @ PlaceError::Timeout { .. }) => return Err(Stuck(error.to_string())),
            Ok(HowEnded::Panicked(message)) => Some(message),
            // Err: the pump is gone with its engine.
            Ok(HowEnded::Retired) | Err(_) => None,
        };
        self.is_stale = true;
        Ok(slot.take().map(|running| (running, panicked)))
    }

    /// The function touches no memory once this returns Ok.
    fn bring_down(&mut self, within: Duration) -> Result<(), Stuck> {
        if let Some(open) = self.up.as_ref().and(self.open.as_ref())
            && let Err(why) = open.quiet(within)
        {
            // Nobody is given it as it is: the host resets what is closed.
            self.host.gone(format!("the function does not stop: {why}"));
            return Err(Stuck(format!("{}: {why}", self.name)));
        }
        self.up = None;
        self.is_stale = false;
        Ok(())
    }

    /// The function begins anew, with all that is in service, if it has buffers of a guest's that are not to be its any more.
    fn renew(&mut self, within: Duration) -> Result<(), Stuck> {
        if !self.is_stale {
            return Ok(());
        }
        for group in 0..self.groups.len() as u16 {
            let Some((running, panicked)) = self.take_back(group, within)? else { continue };
            match panicked {
                None => self.waiting.push((group, running.placer, running.queues)),
                Some(message) => self.ended.push((group, Ended::Panicked(message))),
            }
        }
        self.bring_down(within)?;
        for (group, placer, mut queues) in std::mem::take(&mut self.waiting) {
            for queue in &mut queues {
                let config = &mut queue.config;
                config.position = config.keeper.load().unwrap_or(config.position);
            }
            if let Err(why) = self.bring_up().and_then(|()| self.place(group, queues, &placer)) {
                self.ended.push((group, Ended::DeviceLost(why.to_string())));
                placer.watcher.pump_ended();
            }
        }
        self.tell_pairs();
        self.does_not_send = false;
        Ok(())
    }
}

impl Drop for VirtioNic {
    fn drop(&mut self) {
        // What it does not do by itself, the host's reset does when the function is closed.
        let _ = self.bring_down(RESET);
    }
}

impl VdpaDevice for VirtioNic {
    fn facts(&self) -> Facts {
        self.nic.facts()
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

    fn negotiated(&mut self, features: Features) -> Result<(), DriverError> {
        self.is_stale |= self.up.is_some() && features != self.negotiated;
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

impl Queues for VirtioNic {
    fn start(
        &mut self,
        group: u16,
        queues: Vec<QueueBinding>,
        placer: &Placer,
        within: Duration,
    ) -> Result<(), ServeError> {
        self.waiting.retain(|(waiting, _, _)| *waiting != group);
        self.does_not_send = false;
        self.renew(within)?;
        self.kept.note(group, &queues);
        self.bring_up()?;
        self.place(group, queues, placer)?;
        self.tell_pairs();
        Ok(())
    }

    fn stop(&mut self, group: u16, within: Duration) -> Result<Stopped, Stuck> {
        self.waiting.retain(|(waiting, _, _)| *waiting != group);
        let taken = self.take_back(group, within)?;
        if let Some(message) = taken.and_then(|(_, panicked)| panicked) {
            self.ended.push((group, Ended::Panicked(message)));
        }
        self.renew(within)?;
        let at = self.ended.iter().position(|(ended, _)| *ended == group);
        let ended = at.map(|at| self.ended.swap_remove(at).1);
        Ok(Stopped { positions: self.kept.take(group), ended })
    }

    fn served_by(&self, group: u16) -> Option<ServedBy> {
        if self.waiting.iter().any(|(waiting, _, _)| *waiting == group) {
            return Some(ServedBy::Core(None));
        }
        let running = self.groups.get(usize::from(group))?.as_ref()?;
        Some(ServedBy::Core(Some(running.placed.core())))
    }

    fn follow(&mut self, within: Duration) -> Result<(), ServeError> {
        let (mut outcome, mut is_held) = (Ok(()), false);
        for (group, running) in (0u16..).zip(&mut self.groups) {
            let Some(running) = running else { continue };
            let core = (running.placer.core_of)(group);
            match running.placed.move_to(core, within.min(DRAIN)) {
                Ok(()) => {}
                // What it sent does not go.
                Err(PlaceError::Timeout { .. }) => is_held = true,
                Err(error) => outcome = Err(ServeError::NotPlaced(format!("group {group}: {error}"))),
            }
        }
        if is_held {
            (self.does_not_send, self.is_stale) = (true, true);
            self.renew(within)?;
        }
        outcome
    }

    fn take_ended(&mut self, within: Duration) -> Vec<(u16, Ended)> {
        let ended = |running: &Option<Running>| running.as_ref().is_some_and(|own| own.placed.has_ended());
        let groups: Vec<u16> =
            (0u16..).zip(&self.groups).filter(|(_, own)| ended(own)).map(|(group, _)| group).collect();
        for group in groups {
            if let Ok(Some((_, message))) = self.take_back(group, within) {
                self.ended.push((group, Ended::Panicked(message.unwrap_or_default())));
            }
        }
        // Stuck: tried again when the next queue stops.
        let _ = self.renew(within);
        std::mem::take(&mut self.ended)
    }
}

/// Entries of a guest's ring at most.
const MAX_VQ_SIZE: u16 = 32768;
/// What a guest sent has gone within this, or waits for a link.
const DRAIN: Duration = Duration::from_millis(100);
