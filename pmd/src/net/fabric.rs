//! What joins network devices: the running queues of several ports, and the pumps that carry frames between them.
//!
//! ```text
//!   link:     port A  RX 0 <--[pump]-- TX 0, TX 1 ..  port B      one pump for each receive queue; sender's pair i
//!             port A  TX 0 --[pump]--> RX 0           port B      feeds receiver's queue i mod n
//!   bridge:   every queue of every port in one [pump]
//! ```
//!
//! A pump holds rings of several devices, so that a change at one of them takes the pump back, takes it apart, and makes
//! a new one of what runs then. Each device's session does this for its own queues, under one lock for the fabric. The
//! lock is held while a worker lets go of a pump and never while a peer is waited for; who shares a fabric shares its
//! pumps anyway. Control never waits for it: what it decides, it leaves in atomics, and what a port that it drops has left
//! is taken out by a thread that may wait ([`crate::later`]).
//!
//! A change that fails costs whoever asked for it alone: a pump that no worker takes comes back, is taken apart, and what
//! ran before is placed again; if that fails as well, it is tried again for a second before its sessions are told. A pump
//! that its worker was told to give back and has not given back in time is polled by nobody from the moment the worker
//! turns again: it is unsettled, and left to the same thread, which takes it back then and has what still runs served,
//! whether or not anybody asks for another change.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use ringway_engine::{End as HowEnded, NotPlaced, PlaceError, Placed, Pump, Watcher};
use ringway_ring::tsc;

use super::Mac;
use super::announce::Announcement;
use super::bridge::{Bridge, BridgePort};
use super::end::PortRules;
use super::fdb::{Fdb, FdbOptions};
use super::offload::Offloads;
use super::rate::RateLimit;
use super::receive::Desk;
use super::side::{Sink, Source};
use super::stations::Stations;
use super::transfer::{Transfer, TransferOptions};
use crate::counters::DropReason;
use crate::later;
use crate::vdpa::{Berth, DriverError, Ended, QueueBinding, ServiceError};

/// How the ports of a fabric are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Two ports, each the other's wire.
    Link,
    /// Any number of ports.
    Bridge,
}

/// See the module's head.
pub struct Fabric {
    name: String,
    kind: Kind,
    /// The core of a bridge's pump, decided by control.
    core: AtomicUsize,
    stations: Arc<Stations>,
    /// One of the ports may have something to announce.
    news: Arc<AtomicBool>,
    slots: Mutex<BTreeSet<u16>>,
    next_port: AtomicU64,
    state: Mutex<State>,
}

/// A port: a device's place on a fabric. It is let go when dropped, whatever still runs there.
pub struct Port {
    fabric: Arc<Fabric>,
    id: u64,
    /// Its number in the forwarding database, below the bridge's ports.
    slot: u16,
    /// Its device was removed: it is nobody's peer any more.
    is_leaving: Arc<AtomicBool>,
    flood_pps: Option<u64>,
    announcement: Arc<Announcement>,
}

/// One side of one running queue.
#[derive(Debug)]
pub enum Side {
    /// Frames come from it.
    Source(Source),
    /// Frames go to it.
    Sink(Sink),
}

#[derive(Default)]
struct State {
    ports: BTreeMap<u64, PortState>,
    ends: BTreeMap<EndKey, Member>,
    pumps: BTreeMap<PumpKey, Running>,
    /// The bridge's, while no pump has it.
    fdb: Option<Box<Fdb>>,
    /// Until when what no worker takes is tried again, if something is.
    give_up_at: Option<Instant>,
    /// Slots whose stations are to be forgotten once the database is here.
    forget: Vec<u16>,
    /// What is unsettled was left to [`later`].
    is_settling: bool,
}

struct PortState {
    slot: u16,
    is_leaving: Arc<AtomicBool>,
    berth: Berth,
    flood_pps: Option<u64>,
    /// A bridge's, while no pump has it. One that went with a pump that panicked is made anew.
    flood: Option<RateLimit>,
    announcement: Arc<Announcement>,
    /// Groups whose pump ended without being asked to, and why, until the session takes note.
    ended: Vec<(u16, Ended)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct EndKey {
    port: u64,
    queue: u16,
}

/// A running queue.
struct Member {
    is_sink: bool,
    /// A sink that frames may be delivered to.
    is_enabled: bool,
    /// It is to be out of service; it stays here for as long as a worker has it.
    is_leaving: bool,
    place: Place,
    /// Of a source that no pump has: what its frame in line came to.
    half: Option<Half>,
}

/// A frame that was cut while it was carried, of which a receiver has got the first segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Half {
    sink: EndKey,
    /// How it was cut depends on it.
    takes: Offloads,
    segments: u32,
}

enum Place {
    Free(Side),
    In(PumpKey),
}

/// The receiver that a pump serves: for a bridge, all; for what is sent to nobody, the sender with queue `NOBODY`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct PumpKey {
    port: u64,
    queue: u16,
}

const NOBODY: u16 = u16::MAX;
const BRIDGE: PumpKey = PumpKey { port: 0, queue: 0 };

struct Running {
    members: Vec<EndKey>,
    placed: Placed,
    /// Its worker was told to give it back, and had not when that was last waited for.
    is_unsettled: bool,
}

/// Tells every session whose queues a pump had that it was taken out.
struct Everybody(Vec<Arc<dyn Watcher>>);

impl Watcher for Everybody {
    fn pump_ended(&self) {
        self.0.iter().for_each(|watcher| watcher.pump_ended());
    }
}

impl Fabric {
    /// A link without ends.
    pub fn link(name: &str) -> Arc<Fabric> {
        let nothing = FdbOptions { capacity: 0, ports: 0, per_port: 0, ageing: 0, seed: [0; 2] };
        Fabric::new(name, Kind::Link, nothing)
    }

    /// A bridge without ports, whose database keeps a station for `ageing` after it was last heard of. `seed`: random
    /// bits that no guest can know.
    pub fn bridge(name: &str, ageing: Duration, seed: [u64; 2]) -> Arc<Fabric> {
        let (capacity, ports, per_port) = (STATIONS, MOST_PORTS, STATIONS_PER_PORT);
        let options = FdbOptions { capacity, ports, per_port, ageing: cycles_of(ageing), seed };
        Fabric::new(name, Kind::Bridge, options)
    }

    fn new(name: &str, kind: Kind, options: FdbOptions) -> Arc<Fabric> {
        Arc::new(Fabric {
            name: name.to_owned(),
            kind,
            core: AtomicUsize::new(usize::MAX),
            stations: Arc::new(Stations::new(options)),
            news: Arc::default(),
            slots: Mutex::default(),
            next_port: AtomicU64::new(1),
            state: Mutex::default(),
        })
    }

    /// What a bridge has learned.
    pub fn stations(&self) -> &Stations {
        &self.stations
    }

    /// The core of a bridge's pump from now on; sessions follow when they are told to.
    pub fn set_core(&self, core: usize) {
        self.core.store(core, Ordering::Relaxed);
    }

    /// Changes how long a bridge keeps stations; in force within half a second of traffic.
    pub fn set_ageing(&self, ageing: Duration) {
        self.stations.set_ageing(cycles_of(ageing));
    }

    /// A place on it. `flood_pps`: frames a second to groups and unknown addresses, for a port of a bridge.
    ///
    /// # Errors
    /// Every place is taken, also by devices that were removed and have not ended.
    pub fn port(self: &Arc<Fabric>, flood_pps: Option<u64>) -> Result<Port, DriverError> {
        let slot = {
            let mut slots = lock(&self.slots);
            let Some(slot) = (0..MOST_PORTS).find(|slot| !slots.contains(slot)) else {
                let why = format!(
                    "all {MOST_PORTS} are taken, some by devices that were removed and whose sessions have not ended: \
                     try again, or another one"
                );
                let what = format!("no place on {}", self.name);
                return Err(DriverError::Resource { what, source: std::io::Error::other(why) });
            };
            slots.insert(slot);
            slot
        };
        Ok(Port {
            fabric: Arc::clone(self),
            id: self.next_port.fetch_add(1, Ordering::Relaxed),
            slot,
            is_leaving: Arc::default(),
            flood_pps,
            announcement: Arc::new(Announcement::new(Arc::clone(&self.news))),
        })
    }

    /// The pumps that what runs makes.
    fn plan(&self, state: &State) -> BTreeMap<PumpKey, Vec<EndKey>> {
        let stays = |key: &EndKey, member: &Member| {
            !member.is_leaving && state.ports.get(&key.port).is_some_and(|port| !port.is_leaving())
        };
        let ends = state.ends.iter().filter(|(key, member)| stays(key, member));
        let sinks = ends.clone().filter(|(_, member)| member.is_sink && member.is_enabled);
        let sources: Vec<EndKey> = ends.filter(|(_, member)| !member.is_sink).map(|(key, _)| *key).collect();
        let mut plan: BTreeMap<PumpKey, Vec<EndKey>> = BTreeMap::new();
        match self.kind {
            Kind::Bridge if sources.is_empty() => {}
            Kind::Bridge => {
                plan.insert(BRIDGE, sources.into_iter().chain(sinks.map(|(key, _)| *key)).collect());
            }
            Kind::Link => {
                let sinks: Vec<EndKey> = sinks.map(|(key, _)| *key).collect();
                for source in sources {
                    // The latest to come is the peer, should one that leaves still be there.
                    let peer =
                        state.ports.iter().rev().find(|(id, port)| **id != source.port && !port.is_leaving());
                    let theirs: Vec<&EndKey> =
                        sinks.iter().filter(|sink| peer.is_some_and(|(id, _)| *id == sink.port)).collect();
                    let pair = usize::from(source.queue / 2);
                    match pair.checked_rem(theirs.len()).and_then(|nth| theirs.get(nth)) {
                        Some(sink) => {
                            let key = PumpKey { port: sink.port, queue: sink.queue };
                            plan.entry(key).or_insert_with(|| vec![**sink]).push(source);
                        }
                        None => {
                            plan.entry(PumpKey { port: source.port, queue: NOBODY }).or_default().push(source)
                        }
                    }
                }
            }
        }
        plan
    }

    /// Has the pumps be what the running queues ask for.
    ///
    /// # Errors
    /// A worker did not let go, or took none: what is free and in no pump then is [given up](Fabric::give_up), or
    /// reconciled once more without whom it failed for.
    fn reconcile(self: &Arc<Fabric>, state: &mut State, within: Duration) -> Result<(), ServiceError> {
        let plan = self.plan(state);
        let outdated: Vec<PumpKey> = state
            .pumps
            .iter()
            .filter(|(key, running)| running.is_over() || plan.get(key) != Some(&running.members))
            .map(|(key, _)| *key)
            .collect();
        let mut outcome = Ok(());
        for key in outdated {
            if let Err(error) = self.take_down(state, key, within) {
                outcome = Err(error);
            }
        }
        for member in state.ends.values_mut().filter(|member| member.is_leaving) {
            if let Place::Free(Side::Source(source)) = &mut member.place
                && member.half.take().is_some()
            {
                source.abandon();
            }
        }
        state.ends.retain(|_, member| !(member.is_leaving && matches!(member.place, Place::Free(_))));
        if let Some(fdb) = &mut state.fdb {
            state.forget.drain(..).for_each(|slot| fdb.forget_port(slot));
        }
        // A pump that panicked took its ends with it: planned anew.
        for (key, members) in self.plan(state) {
            if state.is_unplaced(key, &members)
                && let Err(why) = self.set_up(state, key, members)
                && outcome.is_ok()
            {
                outcome = Err(ServiceError::NotPlaced(why));
            }
        }
        outcome
    }

    /// Takes what is marked as leaving out, and has the others served as before: at once, or as soon as a worker takes them.
    fn withdraw(self: &Arc<Fabric>, state: &mut State, within: Duration) -> Result<(), ServiceError> {
        match self.reconcile(state, within) {
            Err(ServiceError::NotPlaced(_)) => {
                self.persist(state);
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// What no worker takes now (there is no descriptor, no memory) may be taken soon: tried again for a while, and only
    /// then [given up](Fabric::give_up).
    fn persist(self: &Arc<Fabric>, state: &mut State) {
        if state.give_up_at.is_some() {
            return;
        }
        state.give_up_at = Some(Instant::now() + PLACE_WITHIN);
        let fabric = Arc::clone(self);
        later::run_until(move || fabric.is_settled());
    }

    /// Tries once more to have served what waits for a worker. True: there is nothing more to try.
    fn is_settled(self: &Arc<Fabric>) -> bool {
        let mut state = match self.state.try_lock() {
            Ok(state) => state,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let Some(at) = state.give_up_at else { return true };
        let why = match self.reconcile(&mut state, LATER_WITHIN) {
            Ok(()) => None,
            Err(_) if Instant::now() < at => return false,
            Err(error) => Some(error),
        };
        state.give_up_at = None;
        if let Some(ServiceError::NotPlaced(why)) = why {
            self.give_up(&mut state, &why);
        }
        true
    }

    /// What no worker takes is out of service: its sessions are told.
    fn give_up(&self, state: &mut State, why: &str) {
        for (key, members) in self.plan(state) {
            if state.is_unplaced(key, &members) {
                self.lose(state, &members, &Ended::NotPlaced(why.to_owned()));
            }
        }
    }

    /// Takes a pump back from its worker, and apart.
    fn take_down(
        self: &Arc<Fabric>,
        state: &mut State,
        key: PumpKey,
        within: Duration,
    ) -> Result<(), ServiceError> {
        let Some(mut running) = state.pumps.remove(&key) else { return Ok(()) };
        let retired = match running.placed.retire(within) {
            Ok(retired) => retired,
            Err(error @ PlaceError::Timeout { .. }) => {
                running.is_unsettled = true;
                state.pumps.insert(key, running);
                self.settle_later(state);
                return Err(ServiceError::Stuck(error.to_string()));
            }
            Err(error) => {
                self.lose(state, &running.members, &Ended::NotPlaced(error.to_string()));
                return Ok(());
            }
        };
        if let HowEnded::Panicked(message) = retired.end {
            self.lose(state, &running.members, &Ended::Panicked(message));
            return Ok(());
        }
        self.take_apart(state, &running.members, retired.pump);
        Ok(())
    }

    /// Has what is unsettled settled once its worker turns again.
    fn settle_later(self: &Arc<Fabric>, state: &mut State) {
        if !std::mem::replace(&mut state.is_settling, true) {
            let fabric = Arc::clone(self);
            later::run_until(move || fabric.settle());
        }
    }

    /// Has the pumps be what the running queues ask for, if nobody is changing them just now. False: a worker has not let
    /// go yet.
    fn settle(self: &Arc<Fabric>) -> bool {
        let Some(mut state) = self.try_lock() else { return false };
        let _ = self.withdraw(&mut state, LATER_WITHIN);
        state.is_settling = state.pumps.values().any(|running| running.is_unsettled);
        !state.is_settling
    }

    /// The state, unless somebody changes it, who may wait for a worker: no work that was left to the same thread waits with
    /// it.
    fn try_lock(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Puts the ends of a pump back, each where it came from.
    fn take_apart(&self, state: &mut State, members: &[EndKey], pump: Box<dyn Pump>) {
        let pump: Box<dyn Any> = pump;
        let bug = Ended::NotPlaced("bug: not a pump of this fabric".to_owned());
        match self.kind {
            Kind::Link => match pump.downcast::<Transfer>() {
                Ok(transfer) => {
                    let (sink, sources) = transfer.into_sides();
                    let to = sink.as_ref().map(Sink::takes).zip(members.first().copied());
                    let sources = sources.into_iter().map(|(source, segments)| {
                        let half = to.filter(|_| segments > 0);
                        (Side::Source(source), half.map(|(takes, sink)| Half { sink, takes, segments }))
                    });
                    let sides = sink.map(|sink| (Side::Sink(sink), None)).into_iter().chain(sources);
                    for (end, (side, half)) in members.iter().zip(sides) {
                        state.put_back(*end, side, half);
                    }
                }
                Err(_) => self.lose(state, members, &bug),
            },
            Kind::Bridge => match pump.downcast::<Bridge>() {
                Ok(bridge) => {
                    let (ports, fdb) = bridge.into_parts();
                    state.fdb = Some(fdb);
                    let ids: BTreeMap<u16, u64> =
                        state.ports.iter().map(|(id, known)| (known.slot, *id)).collect();
                    for port in ports {
                        let Some(&id) = ids.get(&port.slot) else { continue };
                        if let Some(known) = state.ports.get_mut(&id) {
                            known.flood = port.flood;
                        }
                        for (queue, source) in port.sources {
                            state.put_back(EndKey { port: id, queue }, Side::Source(source), None);
                        }
                        for (queue, sink) in port.sinks {
                            state.put_back(EndKey { port: id, queue }, Side::Sink(sink), None);
                        }
                    }
                }
                Err(_) => self.lose(state, members, &bug),
            },
        }
    }

    /// The queues of a pump are gone with it: their sessions are told.
    fn lose(&self, state: &mut State, members: &[EndKey], why: &Ended) {
        for end in members {
            state.ends.remove(end);
            let Some(port) = state.ports.get_mut(&end.port) else { continue };
            let group = end.queue / 2;
            if !port.ended.iter().any(|(known, _)| *known == group) {
                port.ended.push((group, why.clone()));
            }
            port.berth.watcher.pump_ended();
        }
    }

    /// Makes a pump of ends that are free, and places it. They are free again if that fails; the text says why.
    fn set_up(&self, state: &mut State, key: PumpKey, members: Vec<EndKey>) -> Result<(), String> {
        let Some(port) = members.first().and_then(|end| state.ports.get(&end.port)) else { return Ok(()) };
        let berth = port.berth.clone();
        let core = self.core_of(state, key, &members);
        let watchers: BTreeMap<u64, Arc<dyn Watcher>> = members
            .iter()
            .filter_map(|end| Some((end.port, Arc::clone(&state.ports.get(&end.port)?.berth.watcher))))
            .collect();
        let name = match self.kind {
            Kind::Bridge => self.name.clone(),
            Kind::Link => {
                let owner = state.ports.get(&key.port).map_or("", |port| port.berth.name.as_str());
                if key.queue == NOBODY {
                    format!("{owner}.out")
                } else {
                    format!("{owner}.{}", key.queue / 2)
                }
            }
        };
        let made = match self.kind {
            Kind::Link => state.take_transfer(&members),
            Kind::Bridge => state.take_bridge(&members, &self.stations, &self.news),
        };
        let pump =
            made.map_err(|error| format!("no memory for the pump: {error}; free some, or run fewer queues"))?;
        let watcher = Arc::new(Everybody(watchers.into_values().collect()));
        match berth.engine.place(core, &name, pump, watcher) {
            Ok(placed) => {
                for end in &members {
                    if let Some(member) = state.ends.get_mut(end) {
                        member.place = Place::In(key);
                    }
                }
                state.pumps.insert(key, Running { members, placed, is_unsettled: false });
                Ok(())
            }
            Err(NotPlaced { why, pump }) => {
                self.take_apart(state, &members, pump);
                Err(why.to_string())
            }
        }
    }

    /// The core that control decided on for a pump.
    fn core_of(&self, state: &State, key: PumpKey, members: &[EndKey]) -> usize {
        let core = self.core.load(Ordering::Relaxed);
        if self.kind == Kind::Bridge && core != usize::MAX {
            return core;
        }
        let owner = members.first().map_or(key.port, |end| end.port);
        let group = if key.queue == NOBODY { 0 } else { key.queue / 2 };
        state.ports.get(&owner).map_or(0, |port| (port.berth.core_of)(group))
    }
}

impl State {
    fn put_back(&mut self, end: EndKey, mut side: Side, half: Option<Half>) {
        // Who leaves takes its memory along.
        if let Side::Sink(sink) = &mut side {
            sink.let_go();
        }
        if let Some(member) = self.ends.get_mut(&end) {
            member.place = Place::Free(side);
            member.half = half;
        }
    }

    /// These are to be out of service.
    fn mark(&mut self, leaving: &[EndKey]) {
        for (_, member) in self.ends.iter_mut().filter(|(key, _)| leaving.contains(key)) {
            member.is_leaving = true;
        }
    }

    /// True if a pump of the plan does not run and could.
    fn is_unplaced(&self, key: PumpKey, members: &[EndKey]) -> bool {
        let is_free =
            |end: &EndKey| self.ends.get(end).is_some_and(|end| matches!(end.place, Place::Free(_)));
        !self.pumps.contains_key(&key) && members.iter().all(is_free)
    }

    /// A desk for a pump of ends that are free.
    fn desk(&self, members: &[EndKey]) -> std::io::Result<Desk> {
        let free = |end: &EndKey| match &self.ends.get(end)?.place {
            Place::Free(side) => Some(side),
            Place::In(_) => None,
        };
        let (mut may, mut takes) = (Vec::new(), Vec::new());
        for side in members.iter().filter_map(free) {
            match side {
                Side::Source(source) => may.push(source.ingress().may),
                Side::Sink(sink) => takes.push(sink.takes()),
            }
        }
        Desk::new(may.iter().any(|may| takes.iter().any(|takes| !takes.contains(*may))))
    }

    /// Takes a free end out of its place, which is filled again by who asks.
    fn take(&mut self, end: EndKey) -> Option<Side> {
        let member = self.ends.get_mut(&end)?;
        match std::mem::replace(&mut member.place, Place::In(BRIDGE)) {
            Place::Free(side) => Some(side),
            elsewhere @ Place::In(_) => {
                member.place = elsewhere;
                None
            }
        }
    }

    fn take_transfer(&mut self, members: &[EndKey]) -> std::io::Result<Box<dyn Pump>> {
        let desk = self.desk(members)?;
        let (mut sink, mut sources) = (None, Vec::new());
        // The sources are of one port, and stand behind the sink.
        let from = members.last().and_then(|end| self.ports.get(&end.port));
        let announcement = from.map(|port| Arc::clone(&port.announcement));
        for end in members {
            let half = self.ends.get_mut(end).and_then(|member| member.half.take());
            match self.take(*end) {
                Some(Side::Sink(side)) => sink = Some((*end, side.takes(), side)),
                Some(Side::Source(side)) => {
                    // To another receiver the frame goes from its start.
                    let is_same = |half: &Half| {
                        sink.as_ref().is_some_and(|(end, takes, _)| (half.sink, half.takes) == (*end, *takes))
                    };
                    sources.push((side, half.filter(is_same).map_or(0, |half| half.segments)));
                }
                None => {}
            }
        }
        let options = TransferOptions { swap_mac: false, absent: DropReason::PeerDown, hertz: tsc::hertz() };
        let sink = sink.map(|(_, _, sink)| sink);
        Ok(Box::new(Transfer::resumed(sink, sources, options, desk, announcement)))
    }

    fn take_bridge(
        &mut self,
        members: &[EndKey],
        stations: &Arc<Stations>,
        news: &Arc<AtomicBool>,
    ) -> std::io::Result<Box<dyn Pump>> {
        // What can fail comes first: nothing is taken then.
        let desk = self.desk(members)?;
        // The first time, or it went with a pump that panicked.
        let fdb = self.fdb.take().map_or_else(|| stations.empty_fdb(), Ok)?;
        let mut ports: BTreeMap<u64, BridgePort> = BTreeMap::new();
        for end in members {
            let Some(side) = self.take(*end) else { continue };
            let Some(known) = self.ports.get_mut(&end.port) else { continue };
            let port = ports.entry(end.port).or_insert_with(|| BridgePort {
                slot: known.slot,
                sources: Vec::new(),
                sinks: Vec::new(),
                flood: known.take_flood(),
                announcement: Arc::clone(&known.announcement),
            });
            match side {
                Side::Source(source) => port.sources.push((end.queue, source)),
                Side::Sink(sink) => port.sinks.push((end.queue, sink)),
            }
        }
        let ports = ports.into_values().collect();
        let (stations, news) = (Arc::clone(stations), Arc::clone(news));
        Ok(Box::new(Bridge::new(ports, fdb, stations, news, tsc::hertz(), desk)))
    }
}

impl Running {
    /// No worker polls it any more, or will for long.
    fn is_over(&self) -> bool {
        self.is_unsettled || self.placed.has_ended()
    }
}

impl PortState {
    fn is_leaving(&self) -> bool {
        // Relaxed: it publishes nothing else.
        self.is_leaving.load(Ordering::Relaxed)
    }

    /// The bound on its floods, for a pump.
    fn take_flood(&mut self) -> Option<RateLimit> {
        let anew = || Some(self.flood_pps?).map(|pps| RateLimit::new(pps, burst_of(pps), tsc::hertz()));
        self.flood.take().or_else(anew)
    }
}

impl Port {
    /// Set once the device was removed: from then on it is nobody's peer, though its session may have to wind up.
    pub fn leaving(&self) -> Arc<AtomicBool> {
        Arc::clone(&self.is_leaving)
    }

    /// Its number among the ports of its fabric, as [`super::stations::Station::slot`] has it.
    pub fn slot(&self) -> u16 {
        self.slot
    }

    /// Puts started queues of a front-end into service.
    ///
    /// # Errors
    /// See [`ServiceError`]; none of them is in service then.
    pub fn start(
        &self,
        queues: Vec<QueueBinding>,
        rules: PortRules,
        berth: &Berth,
        within: Duration,
    ) -> Result<(), ServiceError> {
        let mut sides = Vec::with_capacity(queues.len());
        for queue in queues {
            let (index, is_enabled) = (queue.index, queue.enabled);
            // virtio 1.3 §5.1.2: even is receive, odd is transmit.
            let side = if index % 2 == 0 {
                Sink::queue(queue, rules).map(Side::Sink)
            } else {
                Source::queue(queue, rules).map(Side::Source)
            };
            let side = side.map_err(|why| ServiceError::Refused(format!("queue {index}: {why}")))?;
            sides.push((index, is_enabled, side));
        }
        self.attach(sides, berth, within)
    }

    /// Puts sides into service, whatever they are: queue number, whether frames may be delivered to it, side.
    ///
    /// # Errors
    /// See [`ServiceError`]; none of them is in service then, and the other ports are as they were.
    pub fn attach(
        &self,
        sides: Vec<(u16, bool, Side)>,
        berth: &Berth,
        within: Duration,
    ) -> Result<(), ServiceError> {
        let mut state = self.lock();
        for (queue, ..) in &sides {
            if state.ends.contains_key(&EndKey { port: self.id, queue: *queue }) {
                return Err(ServiceError::Stuck(format!("queue {queue} is still with one")));
            }
        }
        let (slot, is_leaving) = (self.slot, &self.is_leaving);
        let port = state.ports.entry(self.id).or_insert_with(|| PortState {
            slot,
            is_leaving: Arc::clone(is_leaving),
            berth: berth.clone(),
            flood_pps: self.flood_pps,
            flood: None,
            announcement: Arc::clone(&self.announcement),
            ended: Vec::new(),
        });
        port.berth = berth.clone();
        // How the group ended before has not been told yet: not to be taken for the end of what starts now.
        let of = |group: u16| sides.iter().any(|(queue, ..)| queue / 2 == group);
        if let Some((group, _)) = port.ended.iter().find(|(group, _)| of(*group)) {
            return Err(ServiceError::Refused(format!("group {group} has just ended")));
        }
        let mut keys = Vec::with_capacity(sides.len());
        for (queue, is_enabled, side) in sides {
            let key = EndKey { port: self.id, queue };
            keys.push(key);
            let is_sink = matches!(side, Side::Sink(_));
            let place = Place::Free(side);
            state.ends.insert(key, Member { is_sink, is_enabled, is_leaving: false, place, half: None });
        }
        let Err(error) = self.fabric.reconcile(&mut state, within) else { return Ok(()) };
        state.mark(&keys);
        // It tells of the same worker, or of none.
        let _ = self.fabric.withdraw(&mut state, within);
        Err(error)
    }

    /// Takes the queues of a group out of service: once it returns Ok, no worker touches them or their memory.
    ///
    /// # Errors
    /// A worker did not let go in time.
    pub fn stop(&self, group: u16, within: Duration) -> Result<(), ServiceError> {
        self.detach(|queue| queue / 2 == group, within)
    }

    fn detach(&self, which: impl Fn(u16) -> bool, within: Duration) -> Result<(), ServiceError> {
        let mut state = self.lock();
        let keys: Vec<EndKey> =
            state.ends.keys().filter(|key| key.port == self.id && which(key.queue)).copied().collect();
        if keys.is_empty() {
            return Ok(());
        }
        let is_last = !state.ends.keys().any(|key| key.port == self.id && !keys.contains(key));
        if is_last && self.fabric.kind == Kind::Bridge {
            state.forget.push(self.slot);
        }
        state.mark(&keys);
        self.fabric.withdraw(&mut state, within)
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
        state.ends.keys().any(|key| key.port == self.id && key.queue / 2 == group)
    }

    /// Queues in service on the fabric, which are taken out and put back when those of one group change.
    pub fn running(&self) -> usize {
        self.lock().ends.len()
    }

    /// The core on which frames for a group are delivered; else the one on which they are taken.
    pub fn core(&self, group: u16) -> Option<usize> {
        let state = self.lock();
        let of = |queue: u16| {
            let Place::In(key) = state.ends.get(&EndKey { port: self.id, queue })?.place else { return None };
            state.pumps.get(&key).map(|running| running.placed.core())
        };
        of(group * 2).or_else(|| of(group * 2 + 1))
    }

    /// Moves the fabric's pumps to the cores that control decided on.
    ///
    /// # Errors
    /// A worker did not let go in time.
    pub fn follow_cores(&self, within: Duration) -> Result<(), ServiceError> {
        let mut state = self.lock();
        let keys: Vec<PumpKey> = state.pumps.keys().copied().collect();
        for key in keys {
            let Some(running) = state.pumps.get(&key) else { continue };
            let core = self.fabric.core_of(&state, key, &running.members);
            let Some(running) = state.pumps.get_mut(&key) else { continue };
            if running.placed.core() == core {
                continue;
            }
            if let Err(error @ PlaceError::Timeout { .. }) = running.placed.move_to(core, within) {
                running.is_unsettled = true;
                self.fabric.settle_later(&mut state);
                return Err(ServiceError::Stuck(error.to_string()));
            }
        }
        Ok(())
    }

    /// The groups of this port whose pump ended without being asked to, and why, once. Puts what else ran there back into
    /// service.
    pub fn take_ended(&self, within: Duration) -> Vec<(u16, Ended)> {
        let mut state = self.lock();
        if state.pumps.values().any(|running| running.placed.has_ended()) {
            let _ = self.fabric.withdraw(&mut state, within);
        }
        state.ports.get_mut(&self.id).map(|port| std::mem::take(&mut port.ended)).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.fabric.state)
    }
}

impl Drop for Port {
    /// Never waits: its holder may be control.
    fn drop(&mut self) {
        self.is_leaving.store(true, Ordering::Relaxed);
        let departure = Departure { fabric: Arc::clone(&self.fabric), id: self.id, slot: self.slot };
        // Mostly nothing runs any more, and nobody has the lock.
        let is_out = self.fabric.try_lock().is_some_and(|mut state| departure.forget(&mut state));
        if !is_out {
            // Its session ended badly, or others change the fabric just now.
            later::run_until(move || departure.is_over());
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
        let keys: Vec<EndKey> = state.ends.keys().filter(|key| key.port == self.id).copied().collect();
        if !keys.is_empty() {
            state.mark(&keys);
            let _ = self.fabric.withdraw(&mut state, LATER_WITHIN);
        }
        self.forget(&mut state)
    }

    /// Forgets the port, if nothing of it is left. Its place is free from then on.
    fn forget(&self, state: &mut State) -> bool {
        if state.ends.keys().any(|key| key.port == self.id) {
            return false;
        }
        if state.ports.remove(&self.id).is_some() && self.fabric.kind == Kind::Bridge {
            state.forget.push(self.slot);
        }
        lock(&self.fabric.slots).remove(&self.slot);
        true
    }
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fabric").field("name", &self.name).field("kind", &self.kind).finish_non_exhaustive()
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Port").field("fabric", &self.fabric).field("id", &self.id).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn cycles_of(time: Duration) -> u64 {
    u64::try_from(time.as_nanos() * u128::from(tsc::hertz()) / 1_000_000_000).unwrap_or(u64::MAX)
}

/// Frames that may be flooded at once: a second's worth, within bounds.
fn burst_of(pps: u64) -> u64 {
    pps.clamp(BURST_LEAST, BURST_MOST)
}

/// How long one attempt at what was left to [`later`] waits for a worker, under the fabric's lock: long for a worker that
/// turns, short for the sessions that wait for the lock while it does not.
const LATER_WITHIN: Duration = Duration::from_millis(20);
/// How long it is tried to have pumps served that ran before, until their sessions are told that they are not.
const PLACE_WITHIN: Duration = Duration::from_secs(1);
/// Stations that a bridge knows at most, and behind one port, so that no guest fills the table for the others.
pub const STATIONS: u32 = 8192;
/// See [`STATIONS`].
pub const STATIONS_PER_PORT: u32 = 1024;
/// Ports of a bridge at most.
pub const MOST_PORTS: u16 = 1024;

/// See [`burst_of`].
const BURST_LEAST: u64 = 32;
const BURST_MOST: u64 = 1024;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "what fails here fails the test")]
mod tests {
    use super::*;
    use crate::net::Mac;
    use crate::net::fdb::Learned;

    #[test]
    fn floods_at_once_are_a_second_of_them_within_bounds() {
        let cases =
            [(0, 32), (1, 32), (31, 32), (32, 32), (33, 33), (1023, 1023), (1024, 1024), (1025, 1024)];
        for (pps, burst) in cases.into_iter().chain([(u64::MAX, 1024)]) {
            assert_eq!(burst_of(pps), burst, "{pps}");
        }
    }

    #[test]
    fn address_beyond_a_ports_share_or_the_tables_is_refused() {
        let stations = Fabric::bridge("b", Duration::from_secs(300), [1, 2]);
        let mut fdb = stations.stations.empty_fdb().unwrap();
        let mac = |port: u32, station: u32| {
            let [.., a, b, c] = (port << 16 | station).to_be_bytes();
            Mac([2, 0, 0, a, b, c])
        };
        let ports = STATIONS / STATIONS_PER_PORT;
        for port in 0..ports {
            for station in 0..STATIONS_PER_PORT {
                let learned = fdb.learn(mac(port, station), port as u16, 1);
                assert_eq!(learned, Learned::New, "{port} {station}");
            }
            let beyond = fdb.learn(mac(port, STATIONS_PER_PORT), port as u16, 1);
            let full = if port + 1 == ports { Learned::Full } else { Learned::PortFull };
            assert!([full, Learned::PortFull].contains(&beyond), "{port}: {beyond:?}");
        }
        // The table is full for a port that has nothing yet, and has a place again once another forgets.
        let late = ports as u16;
        assert_eq!(fdb.learn(mac(late.into(), 0), late, 1), Learned::Full);
        fdb.forget_port(0);
        assert_eq!(fdb.learn(mac(late.into(), 0), late, 1), Learned::New);
    }

    #[test]
    fn bound_on_floods_outlives_the_pump_that_had_it() {
        let mut port = PortState {
            slot: 0,
            is_leaving: Arc::default(),
            berth: berth(),
            flood_pps: Some(1),
            flood: None,
            announcement: Arc::new(Announcement::new(Arc::default())),
            ended: Vec::new(),
        };
        let mut flood = port.take_flood().unwrap();
        (0..BURST_LEAST).for_each(|_| assert!(flood.take(1)));
        // Given back, it is as it was.
        port.flood = Some(flood);
        assert!(!port.take_flood().unwrap().take(1));
        // Gone with a pump that panicked, there is a new one.
        let mut flood = port.take_flood().unwrap();
        (0..BURST_LEAST).for_each(|_| assert!(flood.take(1)));
        assert!(!flood.take(1));
        port.flood_pps = None;
        assert!(port.take_flood().is_none());
    }

    fn berth() -> Berth {
        struct Deaf;
        impl Watcher for Deaf {
            fn pump_ended(&self) {}
        }
        let clock = ringway_engine::Clock { cycles: tsc::cycles, hertz: tsc::hertz() };
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        let core = (0..1024).find(|core| allowed.is_set(*core)).unwrap();
        let idle = ringway_engine::IdlePolicy::Adaptive;
        let config = ringway_engine::EngineConfig { cores: vec![core], idle, clock };
        let engine = ringway_engine::Engine::start(config).unwrap();
        Berth { name: "p".to_owned(), engine, core_of: Arc::new(move |_| core), watcher: Arc::new(Deaf) }
    }

    #[test]
    fn every_port_that_a_bridge_takes_is_learned_from_and_one_more_is_refused() {
        let fabric = Fabric::bridge("b", Duration::from_secs(300), [1, 2]);
        let mut ports: Vec<Port> = (0..MOST_PORTS).map(|_| fabric.port(None).unwrap()).collect();
        let mut fdb = fabric.stations.empty_fdb().unwrap();
        for port in &ports {
            let [high, low] = port.slot.to_be_bytes();
            let learned = fdb.learn(Mac([2, 0, 0, 0, high, low]), port.slot, 1);
            assert_eq!(learned, Learned::New, "{}", port.slot);
        }
        assert!(fabric.port(None).is_err());
        let freed = ports.swap_remove(7).slot;
        assert_eq!(fabric.port(None).unwrap().slot, freed);
    }
}
