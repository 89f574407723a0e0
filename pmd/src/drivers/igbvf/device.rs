//! A guest's NIC on a virtual function of an 82576, relayed.
//!
//! The function is opened when a front-end's memory comes first, and closed when the device goes. It is *up* while its queues are
//! in service. A queue that goes out of service leaves buffers of the guest's with the function: it is stopped and reset, and what
//! goes on begins anew, at the places where its rings stand. So it does when it, or its PF, was reset underneath; while the PF does
//! not serve, the queues wait, and nothing passes.
//!
//! Owned by the session's thread.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_engine::{HowEnded, PlaceError, Placed};
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;

use super::VLANS;
use super::function::{Open, Standing, Up, Wanted};
use crate::bus::pci::Opener;
use crate::dma::{Cancel, MapError};
use crate::igb::registers::VfFault;
use crate::net::NetConfig;
use crate::net::guest_queue::PortRules;
use crate::net::igb_relay;
use crate::net::nic::Nic;
use crate::net::plan::Plan;
use crate::vdpa::{
    ClassOps, ConfigSpace, DeviceHost, DriverError, Ended, Facts, Kept, NetOps, Placer, QueueBinding, Queues,
    ServeError, ServedBy, Stopped, Stuck, VdpaDevice,
};

/// The device.
pub(super) struct IgbvfNic {
    name: String,
    opener: Opener,
    nic: Nic,
    vlans: Vec<u16>,
    standing: Arc<Standing>,
    host: DeviceHost,
    // In this order, once it was brought down: its rings, then the function.
    up: Option<Up>,
    open: Option<Open>,
    running: Option<(Placed, InService)>,
    kept: Kept,
    /// In service, though the function does not work: until it does.
    waiting: Option<InService>,
    /// When it is tried next.
    try_at: Option<Instant>,
    /// Out of service unasked, and not told yet.
    ended: Option<Ended>,
    /// The function has buffers that are not to be its any more.
    is_stale: bool,
    /// What was to be sent when the queues stopped last did not go in time.
    does_not_send: bool,
}

/// The queues as they were given, to begin anew with.
struct InService {
    placer: Placer,
    queues: Vec<QueueBinding>,
}

impl fmt::Debug for IgbvfNic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IgbvfNic").field("name", &self.name).finish_non_exhaustive()
    }
}

impl IgbvfNic {
    pub(super) fn new(
        name: String,
        opener: Opener,
        plan: Plan,
        vlans: Vec<u16>,
        standing: Arc<Standing>,
        host: DeviceHost,
    ) -> IgbvfNic {
        IgbvfNic {
            name,
            opener,
            nic: Nic::new(plan, MAX_VQ_SIZE),
            vlans,
            standing,
            host,
            up: None,
            open: None,
            running: None,
            kept: Kept::default(),
            waiting: None,
            try_at: None,
            ended: None,
            is_stale: false,
            does_not_send: false,
        }
    }

    /// The function, opened now if it was not. Takes some 100 ms then.
    fn opened(&mut self) -> Result<&mut Open, DriverError> {
        if self.open.is_none() {
            let function = (self.opener)()?;
            self.open = Some(Open::new(function, &self.name, Arc::clone(&self.standing), &self.host)?);
        }
        self.open.as_mut().ok_or_else(|| DriverError::NotFound(format!("{} is not open", self.name)))
    }

    /// Has what waits served, if the function can be brought up. As long as its PF does not serve it, it waits.
    fn serve(&mut self) -> Result<(), ServeError> {
        let is_early = self.try_at.is_some_and(|at| Instant::now() < at);
        let Some(wanted) = self.waiting.take() else { return Ok(()) };
        if is_early {
            self.waiting = Some(wanted);
            return Ok(());
        }
        let name = self.name.clone();
        let (config, vlans) = (self.nic.config(), self.vlans.clone());
        let open = self.opened().map_err(|error| ServeError::Refused(error.to_string()))?;
        open.port.tell(Some(wanted.placer.watcher.clone()));
        match open.bring_up(&Wanted { config, vlans: &vlans }) {
            Ok(up) => {
                (self.up, self.try_at) = (Some(up), None);
                self.place(wanted)
            }
            Err(VfFault::NoPf(_)) => {
                (self.waiting, self.try_at) = (Some(wanted), Some(Instant::now() + RETRY_AFTER));
                Ok(())
            }
            Err(fault) => Err(ServeError::Refused(format!("{name}: {fault}"))),
        }
    }

    /// Puts the queues into service on a function that is up.
    fn place(&mut self, service: InService) -> Result<(), ServeError> {
        let rules = PortRules { mtu: self.nic.mtu(), only: None };
        // What it is given of the function's is not there any more, should it fail.
        self.is_stale = true;
        let (mut receive, mut transmit) = (None, None);
        let up = self.up.as_mut();
        let (rx, tx) = up.map_or((None, None), |up| (up.receive.take(), up.transmit.take()));
        let (mut rx, mut tx) = (rx, tx);
        for guest in &service.queues {
            // One that broke the rules is left alone.
            if guest.fault.reported().is_some() {
                continue;
            }
            match guest.index {
                0 => receive = rx.take().map(|far| (guest.clone(), far)),
                _ => transmit = tx.take().map(|far| (guest.clone(), far)),
            }
        }
        let relay = igb_relay::relay(receive, transmit, rules);
        let relay = relay.map_err(|why| ServeError::Refused(format!("{}: {why}", self.name)))?;
        let InService { placer, .. } = &service;
        let name = format!("{}.0", placer.name);
        let placed = placer.engine.place((placer.core_of)(0), &name, Box::new(relay), placer.watcher.clone());
        let placed = placed.map_err(|error| ServeError::NotPlaced(error.to_string()))?;
        (self.running, self.is_stale) = (Some((placed, service)), false);
        Ok(())
    }

    /// Takes the pump back, if there is one, and what it panicked with, if it did. What was to be sent has gone by then, unless the
    /// function does not send; the rest the function still has.
    fn take_back(&mut self, within: Duration) -> Result<Option<(InService, Option<String>)>, Stuck> {
        let is_lost = self.is_lost();
        let Some((placed, _)) = &mut self.running else { return Ok(None) };
        // One that did not send before is not waited for once more.
        let patience = if self.does_not_send || is_lost { Duration::ZERO } else { within.min(DRAIN) };
        let retired = match placed.retire(patience) {
            Err(PlaceError::Timeout { .. }) => {
                // It is quiet first, so that it sends nothing more behind the pump's last look at what has gone: that would be sent
                // once more by the next one.
                (self.does_not_send, self.is_stale) = (true, true);
                if let Some(open) = &self.open {
                    quiet(open, &self.name, &self.host)?;
                }
                placed.revoke(within)
            }
            retired => retired,
        };
        let panicked = match retired.map(|retired| retired.end) {
            Err(error @ PlaceError::Timeout { .. }) => return Err(Stuck::Worker(error.to_string())),
            Ok(HowEnded::Panicked(message)) => Some(message),
            // Err: the pump is gone with its engine.
            Ok(HowEnded::Retired) | Err(_) => None,
        };
        self.is_stale = true;
        Ok(self.running.take().map(|(_, service)| (service, panicked)))
    }

    fn is_lost(&self) -> bool {
        self.open.as_ref().is_some_and(|open| open.port.is_lost())
    }

    /// The function touches no memory once this returns Ok.
    fn bring_down(&mut self) -> Result<(), Stuck> {
        if let Some(open) = self.up.as_ref().and(self.open.as_ref()) {
            quiet(open, &self.name, &self.host)?;
        }
        self.up = None;
        self.is_stale = false;
        Ok(())
    }

    /// The function begins anew, with what is in service, if it has buffers of the guest's that are not to be its any more, or was
    /// reset underneath.
    fn renew(&mut self, within: Duration) -> Result<(), Stuck> {
        if self.is_stale || self.is_lost() {
            match self.take_back(within)? {
                Some((service, None)) => self.waiting = Some(service),
                Some((_, Some(message))) => self.ended = Some(Ended::Panicked(message)),
                None => {}
            }
            self.bring_down()?;
            self.does_not_send = false;
        }
        let Some(waiting) = &mut self.waiting else { return Ok(()) };
        let watcher = waiting.placer.watcher.clone();
        for queue in &mut waiting.queues {
            let config = &mut queue.config;
            config.position = config.keeper.load().unwrap_or(config.position);
        }
        if let Err(why) = self.serve() {
            self.ended = Some(Ended::DeviceLost(why.to_string()));
            watcher.pump_ended();
        }
        Ok(())
    }
}

/// The function touches no memory once this returns Ok.
fn quiet(open: &Open, name: &str, host: &DeviceHost) -> Result<(), Stuck> {
    open.quiet().map_err(|why| {
        // Nobody is given it as it is: the host resets what is closed.
        host.gone(format!("the function does not stop: {why}"));
        Stuck::Device(format!("{name}: {why}"))
    })
}

impl Drop for IgbvfNic {
    fn drop(&mut self) {
        // What it does not do by itself, the host's reset does when the function is closed.
        let _ = self.bring_down();
    }
}

impl VdpaDevice for IgbvfNic {
    fn facts(&self) -> Facts {
        Facts { dma: true, ..self.nic.facts() }
    }

    fn config(&mut self) -> &mut dyn ConfigSpace {
        if let Some(open) = &self.open {
            self.nic.set_link(open.port.has_link());
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
        if self.vlans.is_empty() {
            return BTreeMap::new();
        }
        let vlans: Vec<String> = self.vlans.iter().map(u16::to_string).collect();
        BTreeMap::from([(VLANS.to_owned(), vlans.join(","))])
    }

    fn negotiated(&mut self, _features: Features) -> Result<(), DriverError> {
        Ok(())
    }

    fn set_map(&mut self, map: Option<&Arc<GuestMap>>, cancel: Cancel<'_>) -> Result<(), MapError> {
        if map.is_none() && self.open.is_none() {
            return Ok(());
        }
        let open = self.opened().map_err(|error| MapError::NoDevice(error.to_string()))?;
        open.window.set_map(map.map(|map| &**map), cancel)
    }

    fn reset(&mut self, _within: Duration) -> Result<(), Stuck> {
        self.bring_down()?;
        if let Some(open) = &self.open {
            open.port.tell(None);
        }
        self.nic.reset();
        Ok(())
    }
}

impl NetOps for IgbvfNic {
    fn net_config(&self) -> NetConfig {
        let link_up = self.open.as_ref().is_none_or(|open| open.port.has_link());
        NetConfig { link_up, ..self.nic.config() }
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DriverError> {
        self.nic.set_mtu(mtu)
    }
}

impl Queues for IgbvfNic {
    fn start(
        &mut self,
        group: u16,
        queues: Vec<QueueBinding>,
        placer: &Placer,
        within: Duration,
    ) -> Result<(), ServeError> {
        (self.waiting, self.try_at, self.does_not_send) = (None, None, false);
        self.renew(within)?;
        // One that could not be had when the queues stopped: it rings the function still.
        self.take_back(within)?;
        if self.up.is_some() {
            // Its rings are with a pump that is not there any more.
            self.bring_down()?;
        }
        self.kept.note(group, &queues);
        self.waiting = Some(InService { placer: placer.clone(), queues });
        self.serve()
    }

    fn stop(&mut self, group: u16, within: Duration) -> Result<Stopped, Stuck> {
        self.waiting = None;
        let taken = self.take_back(within)?;
        if let Some(message) = taken.and_then(|(_, panicked)| panicked) {
            self.ended = Some(Ended::Panicked(message));
        }
        self.renew(within)?;
        Ok(Stopped { positions: self.kept.take(group), ended: self.ended.take() })
    }

    fn served_by(&self, _group: u16) -> Option<ServedBy> {
        if self.waiting.is_some() {
            return Some(ServedBy::Core(None));
        }
        self.running.as_ref().map(|(placed, _)| ServedBy::Core(Some(placed.core())))
    }

    fn follow(&mut self, within: Duration) -> Result<(), ServeError> {
        let Some((placed, service)) = &mut self.running else { return Ok(()) };
        match placed.move_to((service.placer.core_of)(0), within.min(DRAIN)) {
            Ok(()) => Ok(()),
            // What it sent does not go.
            Err(PlaceError::Timeout { .. }) => {
                (self.does_not_send, self.is_stale) = (true, true);
                self.renew(within)?;
                Ok(())
            }
            Err(error) => Err(ServeError::NotPlaced(format!("group 0: {error}"))),
        }
    }

    fn take_ended(&mut self, within: Duration) -> Vec<(u16, Ended)> {
        if self.running.as_ref().is_some_and(|(placed, _)| placed.has_ended())
            && let Ok(Some((_, message))) = self.take_back(within)
        {
            self.ended = Some(Ended::Panicked(message.unwrap_or_default()));
        }
        // Stuck: tried again when the queues stop.
        let _ = self.renew(within);
        self.ended.take().map(|ended| (0, ended)).into_iter().collect()
    }
}

/// Entries of a guest's ring at most.
const MAX_VQ_SIZE: u16 = 32768;
/// What a guest sent has gone within this, or waits for a link.
const DRAIN: Duration = Duration::from_millis(100);
/// A PF that did not serve is asked again.
const RETRY_AFTER: Duration = Duration::from_secs(1);
