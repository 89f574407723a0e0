//! The queues of a fabric's ports that run, and where each is: free, or in a pump.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use ringway_ring::guest::GuestMap;

use crate::limit::Limit;
use crate::net::Mac;
use crate::net::announce::{Announcement, News};
use crate::net::in_flight::MOST;
use crate::net::offload::Offloads;
use crate::net::rates::PortRates;
use crate::net::scratch::Scratch;
use crate::net::side::{Sink, Source};
use crate::net::vlan::Vlans;
use crate::vdpa::{Ended, Placer};

/// One side of one running queue.
#[derive(Debug)]
pub enum Side {
    /// Frames come from it.
    Source(Box<dyn Source>),
    /// Frames go to it.
    Sink(Box<dyn Sink>),
}

/// See the module's head.
#[derive(Default)]
pub(super) struct Ends {
    pub(super) ports: BTreeMap<u64, PortState>,
    pub(super) running: BTreeMap<EndKey, End>,
    /// One of the ports may have something to announce.
    pub(super) news: Arc<News>,
    /// How many of the fabric's ports were given VLANs, whether or not they run.
    pub(super) in_vlans: Arc<AtomicUsize>,
}

/// What is known of a port whose queues were started.
pub(super) struct PortState {
    /// Its number, below that of the fabric's places.
    pub(super) slot: u16,
    /// Its device was removed: it is nobody's peer any more.
    pub(super) is_leaving: Arc<AtomicBool>,
    pub(super) placer: Placer,
    /// What it may send to everybody.
    pub(super) flood: Arc<Limit>,
    /// It may send from its device's address only.
    pub(super) is_checked: bool,
    /// What it may send at all, and is given.
    pub(super) rates: Arc<PortRates>,
    pub(super) announcement: Arc<Announcement>,
    /// What is sent there may come back from there.
    pub(super) reflects: bool,
    /// The VLANs that it carries, if it was given any.
    pub(super) vlans: Option<Arc<Vlans>>,
    /// The address that its device has.
    pub(super) mac: Option<Mac>,
    /// Groups whose pump ended without being asked to, and why, until the session takes note.
    pub(super) ended: Vec<(u16, Ended)>,
}

/// A queue of a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EndKey {
    pub(super) port: u64,
    pub(super) queue: u16,
}

/// A pump of a fabric, as its kind numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct PumpKey {
    pub(super) port: u64,
    pub(super) queue: u16,
}

/// A running queue.
pub(super) struct End {
    pub(super) is_sink: bool,
    /// A sink that frames may be delivered to.
    pub(super) is_enabled: bool,
    /// It is to be out of service; it stays here for as long as a worker has it.
    pub(super) is_leaving: bool,
    /// The worker of this core does not give back the pump that it is in: others go on without it meanwhile.
    held_on: Option<usize>,
    place: Place,
    /// Of a source that no pump has: what its frame in line came to.
    half: Option<Half>,
}

/// A frame that was cut while it was carried, of which a receiver has got the first segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Half {
    pub(super) sink: EndKey,
    /// How it was cut depends on it.
    pub(super) takes: Offloads,
    pub(super) segments: u32,
}

enum Place {
    Free(Side),
    /// Whoever took it says what becomes of it.
    Taken,
    In(PumpKey),
}

impl Ends {
    /// The queues that go on and are not held by a worker, in the order of their keys.
    pub(super) fn staying(&self) -> impl Iterator<Item = (&EndKey, &End)> + Clone {
        self.running.iter().filter(|(key, end)| {
            !end.is_leaving
                && end.held_on.is_none()
                && self.ports.get(&key.port).is_some_and(|port| !port.is_leaving())
        })
    }

    /// The sources among those that go on.
    pub(super) fn sources(&self) -> impl Iterator<Item = EndKey> {
        self.staying().filter(|(_, end)| !end.is_sink).map(|(key, _)| *key)
    }

    /// The sinks among those that go on that frames may be delivered to.
    pub(super) fn sinks(&self) -> impl Iterator<Item = EndKey> {
        self.staying().filter(|(_, end)| end.is_sink && end.is_enabled).map(|(key, _)| *key)
    }

    /// Adds a queue that no pump has yet.
    pub(super) fn add(&mut self, key: EndKey, is_enabled: bool, side: Side) {
        let is_sink = matches!(side, Side::Sink(_));
        let end = End {
            is_sink,
            is_enabled,
            is_leaving: false,
            held_on: None,
            place: Place::Free(side),
            half: None,
        };
        self.running.insert(key, end);
    }

    /// The queues of a port that `which` says.
    pub(super) fn of_port(&self, port: u64, which: impl Fn(u16) -> bool) -> Vec<EndKey> {
        self.running.keys().filter(|key| key.port == port && which(key.queue)).copied().collect()
    }

    /// These are to be out of service. True: one of them was not before.
    pub(super) fn mark(&mut self, leaving: &[EndKey]) -> bool {
        let mut is_new = false;
        for (_, end) in self.running.iter_mut().filter(|(key, _)| leaving.contains(key)) {
            is_new |= !std::mem::replace(&mut end.is_leaving, true);
        }
        is_new
    }

    /// All queues of a port are to be out of service.
    pub(super) fn are_leaving(&self, port: u64) -> bool {
        self.running.iter().filter(|(key, _)| key.port == port).all(|(_, end)| end.is_leaving)
    }

    /// A worker does not give back something of a port.
    pub(super) fn is_held(&self, port: u64) -> bool {
        self.running.iter().any(|(key, end)| key.port == port && end.held_on.is_some())
    }

    /// Drops what is to be out of service and in no pump.
    pub(super) fn drop_leaving(&mut self) {
        for end in self.running.values_mut().filter(|end| end.is_leaving) {
            if let Place::Free(Side::Source(source)) = &mut end.place
                && end.half.take().is_some()
            {
                source.abandon();
            }
        }
        self.running.retain(|_, end| !(end.is_leaving && matches!(end.place, Place::Free(_))));
    }

    /// True if no pump has any of them.
    pub(super) fn are_free(&self, keys: &[EndKey]) -> bool {
        let is_free =
            |key: &EndKey| self.running.get(key).is_some_and(|end| matches!(end.place, Place::Free(_)));
        keys.iter().all(is_free)
    }

    /// The pump that has a queue.
    pub(super) fn pump_of(&self, key: EndKey) -> Option<PumpKey> {
        match self.running.get(&key)?.place {
            Place::In(pump) => Some(pump),
            Place::Free(_) | Place::Taken => None,
        }
    }

    /// They are in a pump from now on.
    pub(super) fn put_in(&mut self, keys: &[EndKey], pump: PumpKey) {
        for key in keys {
            if let Some(end) = self.running.get_mut(key) {
                end.place = Place::In(pump);
            }
        }
    }

    /// The worker of a core does not give their pump back: they are with nobody else until it does.
    pub(super) fn hold(&mut self, keys: &[EndKey], core: usize) {
        for (_, end) in self.running.iter_mut().filter(|(key, _)| keys.contains(key)) {
            end.held_on = Some(core);
        }
    }

    /// The pumps that are not given back, each with its core: where it is, whatever control decided of its ports since.
    pub(super) fn held(&self) -> impl Iterator<Item = (PumpKey, usize)> {
        self.running.values().filter_map(|end| match end.place {
            Place::In(pump) => Some((pump, end.held_on?)),
            Place::Free(_) | Place::Taken => None,
        })
    }

    /// Slots of ports that go on and have something in a pump which is not given back.
    pub(super) fn held_slots(&self) -> Vec<u16> {
        let held = self.running.iter().filter(|(_, end)| end.held_on.is_some() && !end.is_leaving);
        let ports = held.filter_map(|(key, _)| self.ports.get(&key.port));
        let mut slots: Vec<u16> = ports.filter(|port| !port.is_leaving()).map(|port| port.slot).collect();
        slots.dedup();
        slots
    }

    /// Takes a free end out of its place, and what its frame in line came to. A source is held to what its port may send.
    pub(super) fn take(&mut self, key: EndKey) -> Option<(Side, Option<Half>)> {
        let only = self.ports.get(&key.port).and_then(PortState::only);
        let end = self.running.get_mut(&key)?;
        match std::mem::replace(&mut end.place, Place::Taken) {
            Place::Free(mut side) => {
                if let Side::Source(source) = &mut side {
                    source.hold_to(only);
                }
                Some((side, end.half.take()))
            }
            elsewhere => {
                end.place = elsewhere;
                None
            }
        }
    }

    /// Frames come from it.
    pub(super) fn is_source(&self, key: EndKey) -> bool {
        self.running.get(&key).is_some_and(|end| !end.is_sink)
    }

    /// The map that frames of a source lie in which is free.
    pub(super) fn map_of(&self, key: EndKey) -> Option<Arc<GuestMap>> {
        match &self.running.get(&key)?.place {
            Place::Free(Side::Source(source)) => Some(Arc::clone(source.burst().map())),
            _ => None,
        }
    }

    /// A sink which is free finishes later.
    pub(super) fn defers(&self, key: EndKey) -> bool {
        let place = self.running.get(&key).map(|end| &end.place);
        matches!(place, Some(Place::Free(Side::Sink(sink))) if sink.defers())
    }

    /// An end is free again.
    pub(super) fn put_back(&mut self, key: EndKey, mut side: Side, half: Option<Half>) {
        // Who leaves takes its memory along.
        if let Side::Sink(sink) = &mut side {
            sink.let_go();
        }
        if let Some(end) = self.running.get_mut(&key) {
            end.place = Place::Free(side);
            end.held_on = None;
            end.half = half;
        }
    }

    /// What a pump of ends that are free works with, which it is all that can fail about making one: the sources are ready
    /// for a sink that finishes later. `is_part`: frames go to others as well, which finish later, and come from others, whatever is
    /// left to be done to them.
    pub(super) fn scratch(&mut self, members: &[EndKey], is_part: bool) -> io::Result<Scratch> {
        let (mut may, mut takes, mut is_later) = (Vec::new(), Vec::new(), is_part);
        for key in members {
            match self.running.get(key).map(|end| &end.place) {
                Some(Place::Free(Side::Source(source))) => may.push(source.ingress().may),
                Some(Place::Free(Side::Sink(sink))) => {
                    takes.push(sink.takes());
                    is_later |= sink.defers();
                }
                _ => {}
            }
        }
        for key in members.iter().filter(|_| is_later) {
            if let Some(Place::Free(Side::Source(source))) =
                self.running.get_mut(key).map(|end| &mut end.place)
            {
                source.reserve(MOST)?;
            }
        }
        Scratch::new(is_part || may.iter().any(|may| takes.iter().any(|takes| !takes.contains(*may))))
    }

    /// The core that control decided on for a group of a port.
    pub(super) fn core_of(&self, port: u64, group: u16) -> usize {
        self.ports.get(&port).map_or(0, |port| (port.placer.core_of)(group))
    }

    /// These are gone with their pump: their sessions are told.
    pub(super) fn lose(&mut self, keys: &[EndKey], why: &Ended) {
        for key in keys {
            self.running.remove(key);
            let Some(port) = self.ports.get_mut(&key.port) else { continue };
            let group = key.queue / 2;
            if !port.ended.iter().any(|(known, _)| *known == group) {
                port.ended.push((group, why.clone()));
            }
            port.placer.watcher.pump_ended();
        }
    }
}

impl PortState {
    /// The only address that it may send from; None for any.
    fn only(&self) -> Option<Mac> {
        self.mac.filter(|_| self.is_checked)
    }

    /// True once its device was removed.
    pub(super) fn is_leaving(&self) -> bool {
        // Relaxed: it publishes nothing else.
        self.is_leaving.load(Ordering::Relaxed)
    }
}
