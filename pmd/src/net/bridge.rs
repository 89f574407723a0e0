//! The pump of a learning bridge (IEEE 802.1Q, without VLAN awareness): owns every running queue of every port and
//! carries each frame to the port behind which its destination was last seen, or to all others.
//!
//! ```text
//!   port 0  TX --+                               +--> RX  port 0
//!   port 1  TX --+--> inspect, learn, look up ---+--> RX  port 1      one copy for each receiver
//!   netdev  -----+            [ fdb ]            +--> netdev
//! ```
//!
//! A bridge presses nobody back: what a port cannot take at once is dropped and counted there, so that a slow port costs
//! the others nothing. Frames to groups and to unknown addresses are bounded for each sending port. One bridge is one
//! pump on one core; several bridges may be on several.
//!
//! Lives on one worker. Budget: no allocation, no lock that is waited for, no panic; no system call but the calls that
//! drivers asked for, and one a burst for a kernel netdev.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringway_engine::{Armed, Budget, Polled, Pump};
use ringway_ring::chain::Burst;

use super::Mac;
use super::announce::{self, Announcement};
use super::fdb::{Fdb, Learned};
use super::frame::{Frames, addresses, prefetch};
use super::rate::RateLimit;
use super::receive::Desk;
use super::side::{Load, Sink, Source};
use super::stations::Stations;
use crate::counters::DropReason;

/// One port's running queues, as the pump has them.
#[derive(Debug)]
pub struct BridgePort {
    /// Its number in the forwarding database: it stays when the pump is made anew.
    pub slot: u16,
    /// Transmit queues, each with its number.
    pub sources: Vec<(u16, Source)>,
    /// Enabled receive queues, each with its number.
    pub sinks: Vec<(u16, Sink)>,
    /// What it may send to everybody.
    pub flood: Option<RateLimit>,
    /// What its session has announced.
    pub announcement: Arc<Announcement>,
}

/// The pump.
#[derive(Debug)]
pub struct Bridge {
    ports: Vec<Lane>,
    /// Index in `ports` by slot.
    by_slot: Vec<Option<u16>>,
    fdb: Box<Fdb>,
    stations: Arc<Stations>,
    /// One of the ports may have something to announce.
    news: Arc<AtomicBool>,
    /// Which port is asked first in the next poll.
    first: usize,
    frames: Box<Frames>,
    desk: Desk,
    /// Cycles between two looks at the table for those who ask.
    view_every: u64,
    next_view: u64,
    now: u64,
    /// A netdev has not finished with frames that it was given.
    is_held: bool,
    is_stopping: bool,
}

/// A port, and what the pump knows of it beside.
#[derive(Debug)]
struct Lane {
    port: BridgePort,
    /// By source: frames done with whose receivers still read their memory.
    held: Vec<usize>,
}

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// To one port, by its index.
    Port(u16),
    /// To all others.
    Flood,
    /// Nowhere.
    Drop(DropReason),
}

impl Bridge {
    /// Binds what runs. The desk is one with room if any source may leave more to be done than any sink takes.
    pub(super) fn new(
        ports: Vec<BridgePort>,
        fdb: Box<Fdb>,
        stations: Arc<Stations>,
        news: Arc<AtomicBool>,
        hertz: u64,
        desk: Desk,
    ) -> Bridge {
        // What waited for a port to run may be sent now.
        news.store(true, Ordering::Relaxed);
        let slots = ports.iter().map(|port| usize::from(port.slot) + 1).max().unwrap_or(0);
        let mut by_slot = vec![None; slots];
        for (index, port) in ports.iter().enumerate() {
            by_slot[usize::from(port.slot)] = Some(index as u16);
        }
        let lane = |port: BridgePort| Lane { held: vec![0; port.sources.len()], port };
        Bridge {
            ports: ports.into_iter().map(lane).collect(),
            by_slot,
            fdb,
            stations,
            news,
            first: 0,
            frames: Frames::new(true),
            desk,
            view_every: hertz / 2,
            next_view: 0,
            now: 0,
            is_held: false,
            is_stopping: false,
        }
    }

    /// Takes it apart again.
    pub fn into_parts(self) -> (Vec<BridgePort>, Box<Fdb>) {
        (self.ports.into_iter().map(|lane| lane.port).collect(), self.fdb)
    }

    /// One burst of every source of a port; how many copies that came to.
    fn serve(&mut self, at: usize, budget: &Budget) -> u32 {
        // Taken out while they are served, so that the receivers can be reached beside them. Nothing is allocated.
        let Some(lane) = self.ports.get_mut(at) else { return 0 };
        let mut sources = std::mem::take(&mut lane.port.sources);
        let mut cost = 0;
        for (nth, (queue, source)) in sources.iter_mut().enumerate() {
            let (copies, frames) = self.step(at, *queue, source, budget);
            cost += copies;
            if frames == 0 {
                continue;
            }
            // A netdev reads the frames when it is told to, and is told before they are given back.
            let is_held = self.submit();
            if let Some(held) =
                self.ports.get_mut(at).and_then(|lane| lane.held.get_mut(nth)).filter(|_| is_held)
            {
                *held = frames;
                self.is_held = true;
                break;
            }
            source.finish(frames);
            if let Some(fault) = self.frames.fault {
                source.publish();
                source.fail(fault);
            } else {
                source.publish();
            }
        }
        if let Some(lane) = self.ports.get_mut(at) {
            lane.port.sources = sources;
        }
        cost
    }

    /// One burst of one source; how many copies were made, and how many frames are done with.
    fn step(&mut self, at: usize, queue: u16, source: &mut Source, budget: &Budget) -> (u32, usize) {
        if source.is_faulted() {
            return (0, 0);
        }
        let peeked = source.peek((budget.chains as usize).min(BURST));
        if peeked == 0 {
            return (0, 0);
        }
        if !source.is_enabled() {
            source.count_drops(DropReason::TxDisabled, peeked as u64);
            self.frames.clear();
            return (peeked as u32, peeked);
        }
        let ingress = source.ingress();
        prefetch(source.burst());
        self.frames.inspect(source.burst(), &ingress);
        if self.frames.as_slice().is_empty() {
            // The first chain is at fault.
            if let Some(fault) = self.frames.fault {
                source.fail(fault);
            }
            return (0, 0);
        }
        let mut ways = [Way::Flood; Burst::CHAINS];
        self.choose_ways(at, &mut ways);

        let mut cost = 0;
        let mut drops = [0u64; DropReason::ALL.len()];
        let (mut sent, mut bytes) = (0u64, 0u64);
        let mut begin = 0;
        let burst = source.burst();
        let all = self.frames.as_slice();
        while begin < all.len() {
            // A run of frames that go the same way.
            let Some(&way) = ways.get(begin) else { break };
            let run = ways.get(begin..all.len()).unwrap_or_default().iter().take_while(|next| **next == way);
            let mut end = begin + run.count();
            // What nobody would get takes nothing of the bound, which is on the others' rings.
            if way == Way::Flood && is_heard(&self.ports, at, queue) {
                let granted = take_floods(self.ports.get_mut(at), end - begin, self.now);
                if granted == 0 {
                    if let Some(frame) = all.get(begin) {
                        source.note_drop(DropReason::FloodLimit, frame, self.frames.heads().get(begin));
                    }
                    drops[DropReason::FloodLimit as usize] += (end - begin) as u64;
                    begin = end;
                    continue;
                }
                end = begin + granted;
            }
            let load = Load {
                burst,
                chains: burst.chains().get(begin..end).unwrap_or_default(),
                skip: ingress.header_len,
                frames: all.get(begin..end).unwrap_or_default(),
                heads: self.frames.heads().get(begin..end).unwrap_or_default(),
            };
            let count = end - begin;
            begin = end;
            let reached = match way {
                Way::Drop(reason) => {
                    drops[reason as usize] += count as u64;
                    if let Some(frame) = load.frames.last() {
                        source.note_drop(reason, frame, load.heads.last());
                    }
                    continue;
                }
                Way::Port(index) => {
                    let to = self.ports.get_mut(usize::from(index));
                    to.map_or(0, |to| u32::from(hand_over(to, queue, load, &mut self.desk)))
                }
                Way::Flood => {
                    let desk = &mut self.desk;
                    let others = self.ports.iter_mut().enumerate().filter(|(index, _)| *index != at);
                    others.map(|(_, to)| u32::from(hand_over(to, queue, load, desk))).sum()
                }
            };
            cost += count as u32 * reached.max(1);
            if reached == 0 {
                drops[DropReason::PeerDown as usize] += count as u64;
            } else {
                sent += count as u64;
                bytes += load.frames.iter().map(|frame| u64::from(frame.len)).sum::<u64>();
            }
        }
        let done = all.len();
        for (reason, frames) in DropReason::ALL.into_iter().zip(drops) {
            if frames > 0 {
                source.count_drops(reason, frames);
            }
        }
        let tally = source.tally();
        tally.packets += sent;
        tally.bytes += bytes;
        (cost.max(1), done)
    }

    /// Learns where the senders are and looks up where the receivers are.
    fn choose_ways(&mut self, at: usize, ways: &mut [Way; Burst::CHAINS]) {
        let Bridge { ports, by_slot, fdb, stations, frames, now, .. } = self;
        let Some(lane) = ports.get(at) else { return };
        let mut last = None;
        for ((frame, head), way) in frames.as_slice().iter().zip(frames.heads()).zip(ways) {
            if let Some(reason) = frame.dropped {
                *way = Way::Drop(reason);
                continue;
            }
            let ends = addresses(head);
            *way = match last {
                // A stream: the same two stations as before.
                Some((before, way)) if before == ends => way,
                _ => {
                    if let Learned::PortFull | Learned::Full = fdb.learn(ends.source, lane.port.slot, *now) {
                        stations.count_refused();
                    }
                    let behind = fdb
                        .find(ends.destination, *now)
                        .and_then(|slot| by_slot.get(usize::from(slot)).copied().flatten());
                    let way = choose(ends.destination, behind, at);
                    last = Some((ends, way));
                    way
                }
            };
        }
    }

    /// Sends what the ports have to announce; how many copies that came to.
    #[cold]
    fn announce(&mut self) -> u32 {
        // Acquire: pairs with the Release of whoever left something, which is seen below.
        self.news.swap(false, Ordering::Acquire);
        let cost = (0..self.ports.len()).map(|at| self.announce_from(at)).sum();
        self.is_held |= self.submit();
        cost
    }

    /// Sends what one port has to announce as if its guest had, under the same limit. It waits while the port sends nothing.
    fn announce_from(&mut self, at: usize) -> u32 {
        let Some(lane) = self.ports.get_mut(at) else { return 0 };
        let Some(nth) = lane.port.sources.iter().position(|(_, source)| source.is_usable()) else { return 0 };
        let Some(mac) = lane.port.announcement.take() else { return 0 };
        if let Learned::PortFull | Learned::Full = self.fdb.learn(mac, lane.port.slot, self.now) {
            self.stations.count_refused();
        }
        let queue = lane.port.sources.get(nth).map_or(0, |(queue, _)| *queue);
        let lost = if !is_heard(&self.ports, at, queue) {
            DropReason::PeerDown
        } else if take_floods(self.ports.get_mut(at), 1, self.now) == 0 {
            DropReason::FloodLimit
        } else {
            let (frame, mut copies) = (announce::frame(mac), 0);
            for (_, lane) in self.ports.iter_mut().enumerate().filter(|(index, _)| *index != at) {
                if let Some(sink) = receiver(lane, queue) {
                    sink.give(&frame);
                    copies += 1;
                }
            }
            return copies;
        };
        if let Some((_, source)) = self.ports.get_mut(at).and_then(|lane| lane.port.sources.get_mut(nth)) {
            source.count_drops(lost, 1);
        }
        1
    }

    /// Has the netdevs take what they were given. True: one has not finished.
    fn submit(&mut self) -> bool {
        let mut is_out = false;
        for (_, sink) in self.ports.iter_mut().flat_map(|lane| &mut lane.port.sinks) {
            if sink.outstanding() > 0 {
                sink.publish();
                is_out |= sink.outstanding() > 0;
            }
        }
        is_out
    }

    /// Gives back what netdevs have finished with. False: one still reads.
    fn release(&mut self) -> bool {
        if !self.is_held {
            return true;
        }
        for (_, sink) in self.ports.iter_mut().flat_map(|lane| &mut lane.port.sinks) {
            sink.reap();
            if sink.outstanding() > 0 {
                return false;
            }
        }
        for lane in &mut self.ports {
            for (held, (_, source)) in lane.held.iter_mut().zip(&mut lane.port.sources) {
                let held = std::mem::take(held);
                if held > 0 {
                    source.finish(held);
                    source.publish();
                }
            }
        }
        self.is_held = false;
        true
    }

    fn sources(&mut self) -> impl Iterator<Item = &mut Source> {
        self.ports.iter_mut().flat_map(|lane| &mut lane.port.sources).map(|(_, source)| source)
    }

    fn sinks(&mut self) -> impl Iterator<Item = &mut Sink> {
        self.ports.iter_mut().flat_map(|lane| &mut lane.port.sinks).map(|(_, sink)| sink)
    }
}

/// Where a frame to `destination` goes that came from port `at`; `behind` is the port where it was last seen.
fn choose(destination: Mac, behind: Option<u16>, at: usize) -> Way {
    // IEEE 802.1Q §8.6.3: frames to these are for the bridge itself and go no further.
    if matches!(destination.0, [0x01, 0x80, 0xc2, 0x00, 0x00, last] if last < 0x10) {
        return Way::Drop(DropReason::ReservedAddress);
    }
    match behind {
        Some(index) if usize::from(index) == at => Way::Drop(DropReason::SamePort),
        Some(index) if !destination.is_multicast() => Way::Port(index),
        _ => Way::Flood,
    }
}

/// True if a frame of port `at` to everybody would reach somebody.
fn is_heard(ports: &[Lane], at: usize, queue: u16) -> bool {
    let mut others = ports.iter().enumerate().filter(|(index, _)| *index != at);
    others.any(|(_, to)| {
        let nth = usize::from(queue).checked_rem(to.port.sinks.len());
        nth.and_then(|nth| to.port.sinks.get(nth)).is_some_and(|(_, sink)| sink.is_usable())
    })
}

/// How many of so many frames a port may send to everybody now.
fn take_floods(from: Option<&mut Lane>, frames: usize, now: u64) -> usize {
    let flood = from.and_then(|lane| lane.port.flood.as_mut());
    flood.map_or(frames, |flood| (0..frames).take_while(|_| flood.take(now)).count())
}

/// Gives frames to a port, which keeps what it can. False: nothing there runs.
fn hand_over(to: &mut Lane, queue: u16, load: Load<'_>, desk: &mut Desk) -> bool {
    let Some(sink) = receiver(to, queue) else { return false };
    sink.carry_or_drop(load, desk);
    true
}

/// The receive queue of a port that a sender's queue feeds, if it runs: queue i feeds queue i mod n.
#[inline]
fn receiver(to: &mut Lane, queue: u16) -> Option<&mut Sink> {
    let nth = usize::from(queue).checked_rem(to.port.sinks.len())?;
    let (_, sink) = to.port.sinks.get_mut(nth)?;
    Some(sink).filter(|sink| sink.is_usable())
}

impl Pump for Bridge {
    fn poll(&mut self, budget: &Budget, now: u64) -> Polled {
        self.now = now;
        if !self.release() {
            return Polled::Blocked;
        }
        if self.is_stopping {
            return Polled::Idle;
        }
        let mut cost = 0;
        if self.news.load(Ordering::Relaxed) {
            cost = self.announce();
        }
        let count = if self.is_held { 0 } else { self.ports.len() };
        for turn in 0..count {
            let at = (self.first + turn) % count;
            cost += self.serve(at, budget);
            if cost >= budget.chains || self.is_held {
                self.first = (at + 1) % count;
                break;
            }
        }
        if cost == 0 {
            return Polled::Idle;
        }
        self.sinks().for_each(Sink::publish);
        if now >= self.next_view {
            self.next_view = now.saturating_add(self.view_every);
            self.fdb.set_ageing(self.stations.ageing());
            self.fdb.sweep(now, SWEEP);
            self.stations.show(&self.fdb, now);
        }
        Polled::Moved(cost)
    }

    fn arm(&mut self) -> Armed {
        if self.is_held {
            return Armed::CannotSleep;
        }
        let now = self.now;
        self.stations.show(&self.fdb, now);
        let (mut has_work, mut cannot) = (false, false);
        for source in self.sources() {
            match source.arm() {
                Some(true) => has_work = true,
                Some(false) => {}
                None => cannot = true,
            }
        }
        if has_work {
            self.disarm();
            return Armed::HasWork;
        }
        if cannot { Armed::CannotSleep } else { Armed::Sleep { within_ns: None } }
    }

    fn disarm(&mut self) {
        self.sources().for_each(Source::disarm);
    }

    fn begin_stop(&mut self) -> bool {
        self.is_stopping = true;
        self.stopped()
    }

    fn stopped(&mut self) -> bool {
        let is_stopped = self.release();
        // It may be placed again.
        self.is_stopping = !is_stopped;
        is_stopped
    }

    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        let sources = self.ports.iter().flat_map(|lane| &lane.port.sources);
        sources.filter_map(|(_, source)| source.wake_source()).collect()
    }
}

/// Buckets looked through for what has aged, twice a second.
const SWEEP: usize = 256;

/// Frames in one burst: as many as a transfer's.
const BURST: usize = 32;
