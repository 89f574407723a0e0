//! Any number of ports, joined by a learning bridge: every queue of every port in one pump; or in one for each core on which ports
//! are placed, a part of the bridge, joined with the others by lanes.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ringway_engine::Pump;
use ringway_ring::tsc;

use super::MOST_PORTS;
use super::ends::{EndKey, Ends, PortState, PumpKey, Side};
use super::kind::{Foreign, Kind};
use crate::limit::Limit;
use crate::net::Mac;
use crate::net::bridge::{BridgePort, BridgePump, Knowledge, Part, PartPort};
use crate::net::fdb::{Fdb, FdbOptions, ticks};
use crate::net::stations::{Stations, View};
use crate::net::vlan::Vlans;

/// See the module's head.
#[derive(Debug)]
pub(super) struct Bridge {
    settings: Arc<BridgeSettings>,
    /// Those that no pump has, and what each knows.
    known: Vec<Fdb>,
    /// What the pumps that are about to be made are made with.
    ready: BTreeMap<PumpKey, Ready>,
    /// By slot whose stations were forgotten: which time that was. What a pump knows that was made before, and comes back whenever, is
    /// forgotten as well.
    forgotten: BTreeMap<u16, u64>,
    /// Likewise, by slot of which all stations but one were.
    held: BTreeMap<u16, (Mac, u64)>,
    /// How often slots were.
    times: u64,
}

/// What a pump that is about to be made is made with.
#[derive(Debug)]
struct Ready {
    fdb: Box<Fdb>,
    view: Arc<View>,
    /// Of several.
    part: Option<Box<Part>>,
}

/// What control decides of a bridge and reads of it, without waiting for anybody.
#[derive(Debug)]
pub struct BridgeSettings {
    /// The core of those of its ports that were given none.
    core: AtomicUsize,
    stations: Arc<Stations>,
}

impl BridgeSettings {
    /// What it has learned.
    pub fn stations(&self) -> &Stations {
        &self.stations
    }

    /// The core of those of its ports that were given none.
    pub fn core(&self) -> usize {
        self.core.load(Ordering::Relaxed)
    }

    /// The same from now on. What counts is where each port's [placer](crate::vdpa::Placer) says that it belongs; sessions follow
    /// when they are told to.
    pub fn set_core(&self, core: usize) {
        self.core.store(core, Ordering::Relaxed);
    }

    /// Changes how long stations are kept; in force within half a second of traffic.
    pub fn set_ageing(&self, ageing: Duration) {
        self.stations.set_ageing(ticks_of(ageing));
    }
}

impl Bridge {
    /// One whose database keeps a station for `ageing` after it was last heard of. `seed`: random bits that no guest can
    /// know.
    pub(super) fn new(core: usize, ageing: Duration, seed: [u64; 2]) -> Bridge {
        let (capacity, ports, per_port) = (STATIONS, MOST_PORTS, STATIONS_PER_PORT);
        let options = FdbOptions { capacity, ports, per_port, ageing: ticks_of(ageing), seed };
        let stations = Arc::new(Stations::new(options));
        let settings = Arc::new(BridgeSettings { core: AtomicUsize::new(core), stations });
        Bridge {
            settings,
            known: Vec::new(),
            ready: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            held: BTreeMap::new(),
            times: 0,
        }
    }

    pub(super) fn settings(&self) -> Arc<BridgeSettings> {
        Arc::clone(&self.settings)
    }
}

impl Kind for Bridge {
    fn plan(&self, ends: &Ends) -> BTreeMap<PumpKey, Vec<EndKey>> {
        let mut parts: BTreeMap<usize, Vec<EndKey>> = BTreeMap::new();
        for end in ends.sources().chain(ends.sinks()) {
            parts.entry(core_of(ends, end)).or_default().push(end);
        }
        if ends.sources().next().is_none() {
            return BTreeMap::new();
        }
        // One that is not given back keeps its key, and so out whoever is to be on the core where it is, and nobody else.
        let held: Vec<(PumpKey, usize)> = ends.held().collect();
        let held_on = |core: usize| held.iter().find(|(_, on)| *on == core).map(|(pump, _)| *pump);
        let has_all = held.iter().any(|(pump, _)| *pump == ALL);
        let is_one = parts.len() == 1 && !has_all;
        let key_on = |core| held_on(core).unwrap_or(if is_one { ALL } else { part_on(core) });
        parts.into_iter().map(|(core, members)| (key_on(core), members)).collect()
    }

    fn name(&self, fabric: &str, key: PumpKey, _ends: &Ends) -> String {
        if key == ALL { fabric.to_owned() } else { format!("{fabric}@{}", key.port) }
    }

    fn core(&self, key: PumpKey, members: &[EndKey], ends: &Ends) -> usize {
        match part_of(key) {
            // As planned, whatever control decided since.
            Some(core) => core,
            None => members.first().map_or_else(|| self.settings.core(), |end| core_of(ends, *end)),
        }
    }

    fn is_together(&self) -> bool {
        true
    }

    fn prepare(&mut self, ends: &Ends, pumps: &[(PumpKey, Vec<EndKey>)]) -> io::Result<()> {
        // What is left of the last time was made into nothing: whoever has lanes to it is told.
        self.ready.clear();
        let stations = &self.settings.stations;
        let now = tsc::cycles();
        let parts: Vec<Option<Box<Part>>> = if pumps.len() > 1 {
            let ports: Vec<Vec<PartPort>> =
                pumps.iter().map(|(_, members)| part_ports(ends, members)).collect();
            Part::all(&ports)?.into_iter().map(|part| Some(Box::new(part))).collect()
        } else {
            pumps.iter().map(|_| None).collect()
        };
        // The first time, or they went with pumps that panicked.
        let mut first = match self.known.first_mut() {
            Some(known) => std::mem::replace(known, *stations.empty_fdb()?),
            None => *stations.empty_fdb()?,
        };
        let copies = (1..pumps.len()).map(|_| stations.empty_fdb()).collect::<io::Result<Vec<_>>>();
        let mut copies = match copies {
            Ok(copies) => copies,
            Err(error) => {
                self.known.insert(0, first);
                return Err(error);
            }
        };
        for known in std::mem::take(&mut self.known) {
            first.merge(&known, ticks(now));
        }
        copies.iter_mut().for_each(|copy| copy.copy_from(&first));
        let knows = std::iter::once(Box::new(first)).chain(copies);
        let views = stations.views(pumps.len().max(1));
        for ((((key, _), part), fdb), view) in pumps.iter().zip(parts).zip(knows).zip(views) {
            if let Some(part) = &part {
                view.show(&fdb, now, |slot| part.is_own(slot));
            }
            self.ready.insert(*key, Ready { fdb, view, part });
        }
        Ok(())
    }

    fn make(&mut self, ends: &mut Ends, key: PumpKey, members: &[EndKey]) -> io::Result<Box<dyn Pump>> {
        let Some(Ready { fdb, view, part }) = self.ready.remove(&key) else {
            return Err(io::ErrorKind::NotFound.into());
        };
        // What can fail comes first: nothing is taken then.
        let scratch = match ends.scratch(members, part.is_some()) {
            Ok(scratch) => scratch,
            Err(error) => {
                self.known.push(*fdb);
                return Err(error);
            }
        };
        let mut ports: BTreeMap<u64, BridgePort> = BTreeMap::new();
        // Once: a port that comes or goes meanwhile has the pump made anew.
        let looks_at_vlans = ends.in_vlans.load(Ordering::Relaxed) > 0;
        for end in members {
            let Some((side, _)) = ends.take(*end) else { continue };
            let Some(known) = ends.ports.get(&end.port) else { continue };
            let port = ports.entry(end.port).or_insert_with(|| BridgePort {
                slot: known.slot,
                sources: Vec::new(),
                sinks: Vec::new(),
                flood: Some(Arc::clone(&known.flood)),
                rates: Arc::clone(&known.rates),
                announcement: Arc::clone(&known.announcement),
                reflects: known.reflects,
                vlans: looks_at_vlans.then(|| vlans_of(known)),
            });
            match side {
                Side::Source(source) => port.sources.push((end.queue, source)),
                Side::Sink(sink) => port.sinks.push((end.queue, sink)),
            }
        }
        let ports = ports.into_values().collect();
        let (stations, news) = (Arc::clone(&self.settings.stations), Arc::clone(&ends.news));
        let held = ends.held_slots();
        let knowledge = Knowledge { fdb, since: self.times, stations, view, news, held };
        Ok(match part {
            None => Box::new(BridgePump::<false>::new(ports, knowledge, tsc::hertz(), scratch, None)),
            part => Box::new(BridgePump::<true>::new(ports, knowledge, tsc::hertz(), scratch, part)),
        })
    }

    fn take_apart(
        &mut self,
        ends: &mut Ends,
        _members: &[EndKey],
        pump: Box<dyn Any>,
    ) -> Result<(), Foreign> {
        let (ports, mut fdb, since) = match pump.downcast::<BridgePump<false>>() {
            Ok(all) => all.into_parts(),
            Err(pump) => pump.downcast::<BridgePump<true>>().map_err(|_| Foreign)?.into_parts(),
        };
        if self.times > since {
            let (forgotten, held) = (&self.forgotten, &self.held);
            fdb.forget_where(|slot, mac| {
                let is_other = |(own, time): &(Mac, u64)| *time > since && mac != *own;
                forgotten.get(&slot).is_some_and(|time| *time > since)
                    || held.get(&slot).is_some_and(is_other)
            });
        }
        self.known.push(*fdb);
        let ids: BTreeMap<u16, u64> = ends.ports.iter().map(|(id, known)| (known.slot, *id)).collect();
        for port in ports {
            let Some(&id) = ids.get(&port.slot) else { continue };
            for (queue, source) in port.sources {
                ends.put_back(EndKey { port: id, queue }, Side::Source(source), None);
            }
            for (queue, sink) in port.sinks {
                ends.put_back(EndKey { port: id, queue }, Side::Sink(sink), None);
            }
        }
        Ok(())
    }

    fn port_stops(&mut self, slot: u16) {
        self.times += 1;
        self.forgotten.insert(slot, self.times);
        self.known.iter_mut().for_each(|known| known.forget_port(slot));
    }

    fn port_is_held(&mut self, slot: u16, to: Mac) {
        self.times += 1;
        self.held.insert(slot, (to, self.times));
        self.known.iter_mut().for_each(|known| known.forget_others(slot, to));
    }

    fn port_leaves(&mut self, slot: u16) {
        self.port_stops(slot);
        self.held.remove(&slot);
    }
}

/// Where a port is to be served: all its queues by one core.
fn core_of(ends: &Ends, end: EndKey) -> usize {
    ends.core_of(end.port, 0)
}

/// What a port carries where the bridge looks at VLANs.
fn vlans_of(port: &PortState) -> Arc<Vlans> {
    port.vlans.clone().unwrap_or_else(|| Arc::new(Vlans::default_of_a_port()))
}

/// What others are told of the ports that these free ends are of: in the order in which their pump has them and their sources.
fn part_ports(ends: &Ends, members: &[EndKey]) -> Vec<PartPort> {
    let mut ports: BTreeMap<u64, PartPort> = BTreeMap::new();
    let looks_at_vlans = ends.in_vlans.load(Ordering::Relaxed) > 0;
    for end in members {
        let Some(known) = ends.ports.get(&end.port) else { continue };
        let port = ports.entry(end.port).or_insert_with(|| PartPort {
            slot: known.slot,
            sources: Vec::new(),
            has_sinks: false,
            later: 0,
            vlans: looks_at_vlans.then(|| vlans_of(known)),
        });
        match ends.map_of(*end) {
            Some(map) => port.sources.push((end.queue, map)),
            None => {
                port.has_sinks = true;
                port.later += usize::from(ends.defers(*end));
            }
        }
    }
    ports.into_values().collect()
}

fn ticks_of(time: Duration) -> u64 {
    let cycles = time.as_nanos() * u128::from(tsc::hertz()) / 1_000_000_000;
    ticks(u64::try_from(cycles).unwrap_or(u64::MAX))
}

/// Bounds what a port sends to everybody, from now on; None: nothing does.
pub(super) fn set_flood_limit(limit: &Limit, pps: Option<u64>) {
    match pps {
        // One more begins when all that may come at once did.
        Some(pps) => limit.set(pps, burst_of(pps) - 1),
        None => limit.set(0, 0),
    }
}

/// Frames that may be flooded at once: a second's worth, within bounds.
fn burst_of(pps: u64) -> u64 {
    pps.clamp(BURST_LEAST, BURST_MOST)
}

/// Its one pump.
const ALL: PumpKey = PumpKey { port: 0, queue: 0 };

/// Its part on a core, one of several, or beside one that was all of it.
fn part_on(core: usize) -> PumpKey {
    PumpKey { port: core as u64, queue: 1 }
}

/// The core of such a part.
fn part_of(key: PumpKey) -> Option<usize> {
    usize::try_from(key.port).ok().filter(|_| key.queue == 1)
}

/// Stations that a bridge knows at most, and behind one port, so that no guest fills the table for the others.
pub const STATIONS: u32 = 8192;
/// See [`STATIONS`].
pub const STATIONS_PER_PORT: u32 = 1024;

/// See [`burst_of`].
const BURST_LEAST: u64 = 32;
const BURST_MOST: u64 = 1024;

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "what fails here fails the test")]
mod tests {
    use super::super::Fabric;
    use super::super::port::Port;
    use super::*;
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
        let bridge = Bridge::new(0, Duration::from_secs(300), [1, 2]);
        let mut fdb = bridge.settings.stations.empty_fdb().unwrap();
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
    fn stations_of_a_port_that_has_gone_do_not_come_back_with_a_pump_that_was_held_meanwhile() {
        let mut bridge = Bridge::new(0, Duration::from_secs(300), [1, 2]);
        let stations = Arc::clone(&bridge.settings.stations);
        let mac = |last| Mac([2, 0, 0, 0, 0, last]);
        let now = ticks(tsc::cycles());
        let come_back = |bridge: &mut Bridge, since: u64, known: &[(u8, u16)]| {
            let mut fdb = stations.empty_fdb().unwrap();
            known.iter().for_each(|(last, slot)| _ = fdb.learn(mac(*last), *slot, now));
            let (view, stations) = (stations.views(1).remove(0), Arc::clone(&stations));
            let knowledge = Knowledge { fdb, since, stations, view, news: Arc::default(), held: Vec::new() };
            let scratch = crate::net::scratch::Scratch::new(false).unwrap();
            let pump = BridgePump::<false>::new(Vec::new(), knowledge, tsc::hertz(), scratch, None);
            bridge.take_apart(&mut Ends::default(), &[], Box::new(pump)).unwrap();
        };
        come_back(&mut bridge, 0, &[(1, 3), (2, 4)]);
        let held = bridge.times;
        bridge.port_leaves(3);
        // The slot is another guest's, of whom is heard before the one that was held comes back.
        let others = bridge.times;
        come_back(&mut bridge, others, &[(5, 3)]);
        come_back(&mut bridge, held, &[(1, 3), (6, 4)]);
        let mut all = stations.empty_fdb().unwrap();
        bridge.known.iter().for_each(|known| all.merge(known, now));
        let found = [1, 2, 5, 6].map(|last| all.find(mac(last), now));
        assert_eq!(found, [None, Some(4), Some(3), Some(4)]);
    }

    #[test]
    fn floods_at_once_are_as_many_as_may_be_and_not_one_more() {
        for (pps, burst) in [(1, 32), (20_000, 1024)] {
            let flood = Limit::default();
            set_flood_limit(&flood, Some(pps));
            let now = 1 << 40;
            assert_eq!((0..2000).filter(|_| flood.take(now)).count(), burst);
            assert!(!flood.take(now + tsc::hertz() / (2 * pps)) && flood.take(now + tsc::hertz() / pps + 1));
        }
    }

    #[test]
    fn every_port_that_a_bridge_takes_is_learned_from_and_one_more_is_refused() {
        let (fabric, settings) = Fabric::bridge("b", 0, Duration::from_secs(300), [1, 2]);
        let mut ports: Vec<Port> = (0..MOST_PORTS).map(|_| fabric.port(None).unwrap()).collect();
        let mut fdb = settings.stations.empty_fdb().unwrap();
        for port in &ports {
            let [high, low] = port.slot().to_be_bytes();
            let learned = fdb.learn(Mac([2, 0, 0, 0, high, low]), port.slot(), 1);
            assert_eq!(learned, Learned::New, "{}", port.slot());
        }
        assert!(fabric.port(None).is_err());
        let freed = ports.swap_remove(7).slot();
        assert_eq!(fabric.port(None).unwrap().slot(), freed);
    }
}
