//! The pump of a learning bridge (IEEE 802.1Q): owns every running queue of every port and
//! carries each frame to the port behind which its destination was last seen, or to all others.
//!
//! ```text
//!   port 0  TX --+                               +--> RX  port 0
//!   port 1  TX --+--> inspect, learn, look up ---+--> RX  port 1      one copy for each receiver
//!   netdev  -----+            [ fdb ]            +--> netdev
//! ```
//!
//! Where one of the ports is given VLANs, each frame is in one ([`super::vlan`]): addresses are known in each by itself, and
//! only ports that carry it hear of it. Where none is, tags are not looked at.
//!
//! A bridge presses nobody back: what a port cannot take at once is dropped and counted there, so that a slow port costs
//! the others nothing. Frames to groups and to unknown addresses are bounded for each sending port. One bridge is one
//! pump on one core; several bridges may be on several.
//!
//! A sink may read frames for longer than one poll (io_uring, DMA): they go back to their sources in order as it finishes,
//! and the pump goes on meanwhile.
//!
//! Lives on one worker. Budget: no allocation, no lock that is waited for, no panic; no system call but the calls that
//! drivers asked for, and one a burst for a kernel netdev.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ringway_engine::{Armed, Budget, Polled, Pump};
use ringway_ring::chain::Burst;
use ringway_ring::tsc;

use super::Mac;
use super::announce::{self, Announcement};
use super::fdb::{Address, Fdb, FdbOptions, Learned, ticks};
use super::frame::{Addresses, Ends, Frame, Frames, Ingress, addresses, prefetch};
use super::in_flight::InFlight;
use super::rates::PortRates;
use super::scratch::Scratch;
use super::side::{Load, Sink, Source};
use super::stations::Stations;
use super::vlan::{Carriers, Dresser, Tag, Vlans};
use crate::counters::DropReason;
use crate::limit::{Limit, Limits};

/// One port's running queues, as the pump has them.
#[derive(Debug)]
pub struct BridgePort {
    /// Its number in the forwarding database: it stays when the pump is made anew.
    pub slot: u16,
    /// Transmit queues, each with its number.
    pub sources: Vec<(u16, Box<dyn Source>)>,
    /// Enabled receive queues, each with its number.
    pub sinks: Vec<(u16, Box<dyn Sink>)>,
    /// What it may send to everybody.
    pub flood: Option<Arc<Limit>>,
    /// What it may send at all, and is given.
    pub rates: Arc<PortRates>,
    /// What its session has announced.
    pub announcement: Arc<Announcement>,
    /// What is sent there may come back from there.
    pub reflects: bool,
    /// The VLANs that it carries; None on all ports of a bridge that does not look at them.
    pub vlans: Option<Arc<Vlans>>,
}

/// The pump.
#[derive(Debug)]
pub struct BridgePump {
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
    /// Where the bridge looks at VLANs.
    dresser: Option<Box<Dresser>>,
    scratch: Scratch,
    /// What sinks still read that finish later.
    in_flight: InFlight,
    /// One of the sinks does.
    is_later: bool,
    /// Cycles between two looks at the table for those who ask.
    view_every: u64,
    next_view: u64,
    now: u64,
    is_stopping: bool,
}

/// A port, and what the pump knows of it beside.
#[derive(Debug)]
struct Lane {
    port: BridgePort,
    /// The number of its first source among those of all ports.
    first_source: usize,
    /// By sink: its number among those that finish later, if it is one.
    later: Vec<Option<usize>>,
    /// Frames of its sources are done with that are not published yet.
    is_served: bool,
    /// Its sinks were given frames that are not published yet.
    is_given: bool,
    /// Something was published of which it was not told how long it took.
    is_untimed: bool,
}

/// Frames of one source, which are numbered from `first` on.
#[derive(Clone, Copy)]
struct Origin {
    source: usize,
    first: u64,
}

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decision {
    /// To one port, by its index.
    Port(u16),
    /// To all others.
    Flood,
    /// To all others from which it cannot come back: its sender is not known to be here, so that what came back of it would be
    /// taken for somebody's of the network.
    FloodHere,
    /// Nowhere.
    Drop(DropReason),
}

impl BridgePump {
    /// Binds what runs. The scratch is one with room if any source may leave more to be done than any sink takes.
    pub(super) fn new(
        ports: Vec<BridgePort>,
        fdb: Box<Fdb>,
        stations: Arc<Stations>,
        news: Arc<AtomicBool>,
        hertz: u64,
        scratch: Scratch,
    ) -> BridgePump {
        // What waited for a port to run may be sent now.
        news.store(true, Ordering::Relaxed);
        let slots = ports.iter().map(|port| usize::from(port.slot) + 1).max().unwrap_or(0);
        let mut by_slot = vec![None; slots];
        for (index, port) in ports.iter().enumerate() {
            by_slot[usize::from(port.slot)] = Some(index as u16);
        }
        let (mut sources, mut sinks) = (0, 0);
        let mut lane = |port: BridgePort| {
            let first_source = sources;
            sources += port.sources.len();
            let number = |(_, sink): &(u16, Box<dyn Sink>)| {
                sink.defers().then(|| {
                    sinks += 1;
                    sinks - 1
                })
            };
            let later = port.sinks.iter().map(number).collect();
            Lane { port, first_source, later, is_served: false, is_given: false, is_untimed: false }
        };
        let ports: Vec<Lane> = ports.into_iter().map(&mut lane).collect();
        let looks_at_vlans = ports.iter().any(|lane| lane.port.vlans.is_some());
        let given = ports.iter().filter_map(|lane| lane.port.vlans.as_deref());
        let dresser = looks_at_vlans.then(|| Dresser::new(Carriers::new(given)));
        BridgePump {
            ports,
            by_slot,
            fdb,
            stations,
            news,
            first: 0,
            frames: Frames::new(true),
            dresser,
            scratch,
            in_flight: InFlight::new(sources, sinks),
            is_later: sinks > 0,
            view_every: hertz / 2,
            next_view: 0,
            now: 0,
            is_stopping: false,
        }
    }

    /// Binds ports of which no fabric knows, with where stations are, by slot: to count what it costs, without a worker. Frames are
    /// as guests send them that offload nothing.
    ///
    /// # Errors
    /// The system has no memory for what it learns.
    pub fn alone(ports: Vec<BridgePort>, known: &[(Mac, u16)], hertz: u64) -> std::io::Result<BridgePump> {
        let slots = ports.iter().map(|port| port.slot + 1).max().unwrap_or(0);
        let options = FdbOptions {
            capacity: 8192,
            ports: slots,
            per_port: 1024,
            ageing: ticks(u64::MAX),
            seed: [0; 2],
        };
        let stations = Arc::new(Stations::new(options));
        let mut fdb = stations.empty_fdb()?;
        for (mac, slot) in known {
            fdb.learn(*mac, *slot, 0);
        }
        Ok(BridgePump::new(ports, fdb, stations, Arc::default(), hertz, Scratch::new(false)?))
    }

    /// Takes it apart again.
    pub fn into_parts(self) -> (Vec<BridgePort>, Box<Fdb>) {
        (self.ports.into_iter().map(|lane| lane.port).collect(), self.fdb)
    }

    /// One burst of every source of a port, published by [`BridgePump::publish`]; how many copies that came to.
    fn serve(&mut self, at: usize, budget: &Budget) -> u32 {
        // Taken out while they are served, so that the receivers can be reached beside them. Nothing is allocated.
        let Some(lane) = self.ports.get_mut(at) else { return 0 };
        let first_source = lane.first_source;
        let mut sources = std::mem::take(&mut lane.port.sources);
        let (mut cost, mut is_served) = (0, false);
        for (nth, (queue, source)) in sources.iter_mut().enumerate() {
            let number = first_source + nth;
            let from = Origin { source: number, first: self.in_flight.next(number) };
            let (copies, frames) = self.step(at, from, *queue, &mut **source, budget);
            cost += copies;
            if frames > 0 {
                self.in_flight.settle(number, from.first, &mut **source, frames);
                is_served = true;
            }
        }
        if let Some(lane) = self.ports.get_mut(at) {
            lane.port.sources = sources;
            lane.is_served = is_served;
        }
        cost
    }

    /// Publishes what was done since the last time: receivers before senders, so that what a process had on the way when it
    /// died is sent once more by the next.
    fn publish(&mut self) {
        for lane in self.ports.iter_mut().filter(|lane| lane.is_given) {
            lane.is_given = false;
            lane.is_untimed = true;
            lane.port.sinks.iter_mut().for_each(|(_, sink)| sink.publish());
        }
        for lane in self.ports.iter_mut().filter(|lane| lane.is_served) {
            lane.is_served = false;
            lane.is_untimed = true;
            lane.port.sources.iter_mut().for_each(|(_, source)| source.publish());
        }
    }

    /// One burst of one source; how many copies were made, and how many frames are done with.
    fn step(
        &mut self,
        at: usize,
        from: Origin,
        queue: u16,
        source: &mut dyn Source,
        budget: &Budget,
    ) -> (u32, usize) {
        if source.is_faulted() {
            return (0, 0);
        }
        let mut most = (budget.chains as usize).min(BURST);
        let sent = self.ports.get(at).map(|lane| &lane.port.rates.sent);
        let sent = sent.filter(|sent| !sent.are_none());
        if sent.is_some_and(|sent| sent.room(self.now).is_err()) {
            // It stays where it is.
            return (0, 0);
        }
        if self.is_later {
            // As many as may be out; none, while all of those are.
            most = most.min(self.in_flight.room(from.source));
            if most == 0 {
                return (0, 0);
            }
        }
        let peeked = source.peek(most);
        if peeked == 0 {
            return (0, 0);
        }
        if !source.is_enabled() {
            source.count_drops(DropReason::TxDisabled, peeked as u64);
            self.frames.clear();
            return (peeked as u32, peeked);
        }
        let ingress = Ingress { by_vlan: self.dresser.is_some(), ..source.ingress() };
        prefetch(source.burst());
        self.frames.inspect(source.burst(), &ingress);
        if self.frames.as_slice().is_empty() {
            // The first chain is at fault. One that follows frames is found again once they are published.
            if let Some(fault) = self.frames.fault.filter(|_| !self.in_flight.holds(from.source)) {
                source.fail(fault);
            }
            return (0, 0);
        }
        let mut decisions = [Decision::Flood; Burst::CHAINS];
        self.decide_all(at, &mut decisions);

        let mut all = self.frames.as_slice();
        let sent = self.ports.get(at).map(|lane| &lane.port.rates.sent);
        if let Some(sent) = sent.filter(|sent| !sent.are_none()) {
            let may = sent.admit(all.iter().map(bits_of), self.now);
            if may < all.len() {
                source.count_held();
                all = all.get(..may).unwrap_or_default();
            }
        }
        let mut cost = 0;
        let (mut drops, mut has_dropped) = ([0u64; DropReason::ALL.len()], false);
        let (mut sent, mut bytes) = (0u64, 0u64);
        let mut begin = 0;
        let burst = source.burst();
        while begin < all.len() {
            // A run of frames that go the same way.
            let Some(&decision) = decisions.get(begin) else { break };
            let run = decisions
                .get(begin..all.len())
                .unwrap_or_default()
                .iter()
                .take_while(|next| **next == decision);
            let mut end = begin + run.count();
            let mut tag = None;
            if let Some((its, until)) = self.dresser.as_mut().and_then(|dresser| dresser.take_up(begin, end))
            {
                (tag, end) = (Some(its), until);
            }
            // What nobody would get takes nothing of the bound, which is on the others' rings.
            let is_flood = matches!(decision, Decision::Flood | Decision::FloodHere);
            if is_flood && is_heard(&self.ports, at, queue, tag) {
                let granted = take_floods(self.ports.get(at), end - begin, self.now);
                if granted == 0 {
                    if let Some(frame) = all.get(begin) {
                        source.note_drop(DropReason::FloodLimit, frame, self.frames.heads().get(begin));
                    }
                    drops[DropReason::FloodLimit as usize] += (end - begin) as u64;
                    has_dropped = true;
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
            let run = Origin { first: from.first + begin as u64, ..from };
            begin = end;
            let reached = match decision {
                Decision::Drop(reason) => {
                    drops[reason as usize] += count as u64;
                    has_dropped = true;
                    if let Some(frame) = load.frames.last() {
                        source.note_drop(reason, frame, load.heads.last());
                    }
                    continue;
                }
                Decision::Port(index) => {
                    let to = self.ports.get_mut(usize::from(index));
                    let load = to.as_deref().and_then(|to| as_for(to, load, tag, &mut self.dresser));
                    to.zip(load).map_or(0, |(to, load)| {
                        u32::from(hand_over(
                            to,
                            queue,
                            load,
                            run,
                            self.now,
                            (&mut self.scratch, &mut self.in_flight),
                        ))
                    })
                }
                Decision::Flood | Decision::FloodHere => {
                    let (scratch, out) = (&mut self.scratch, &mut self.in_flight);
                    let is_for = |(index, to): &(usize, &mut Lane)| {
                        *index != at && (decision == Decision::Flood || !to.port.reflects)
                    };
                    let mut reached = 0;
                    for (_, to) in self.ports.iter_mut().enumerate().filter(is_for) {
                        if let Some(load) = as_for(to, load, tag, &mut self.dresser) {
                            reached += u32::from(hand_over(to, queue, load, run, self.now, (scratch, out)));
                        }
                    }
                    reached
                }
            };
            cost += count as u32 * reached.max(1);
            if reached == 0 {
                let is_kept_here = decision == Decision::FloodHere;
                let why = if is_kept_here { DropReason::FloodLimit } else { DropReason::PeerDown };
                drops[why as usize] += count as u64;
                has_dropped = true;
            } else {
                sent += count as u64;
                bytes += load.frames.iter().map(|frame| u64::from(frame.len)).sum::<u64>();
            }
        }
        let done = all.len();
        if has_dropped {
            for (reason, frames) in DropReason::ALL.into_iter().zip(drops).filter(|(_, frames)| *frames > 0) {
                source.count_drops(reason, frames);
            }
        }
        let tally = source.tally();
        tally.packets += sent;
        tally.bytes += bytes;
        (cost.max(1), done)
    }

    /// Learns where the senders are and looks up where the receivers are.
    fn decide_all(&mut self, at: usize, decisions: &mut [Decision; Burst::CHAINS]) {
        let BridgePump { ports, by_slot, fdb, stations, frames, now, dresser, .. } = self;
        let Some(lane) = ports.get(at) else { return };
        let mut table = Table { by_slot, fdb, stations, at, port: &lane.port, now: ticks(*now) };
        let looked_at = frames.as_slice().iter().zip(frames.heads()).zip(decisions);
        if let Some(dresser) = dresser {
            let vlans = lane.port.vlans.as_deref().unwrap_or(&Vlans::NONE);
            let mut last = None;
            for (nth, ((frame, head), decision)) in looked_at.enumerate() {
                let admitted = frame.dropped.map_or_else(|| vlans.admit(frame, head), Err);
                *decision = match admitted {
                    Err(reason) => Decision::Drop(reason),
                    Ok(tag) => {
                        dresser.note(nth, tag);
                        let way = (Ends::of(head), tag);
                        match last {
                            Some((before, decision)) if before == way => decision,
                            _ => {
                                let decision = match table.decide(addresses(head), tag.vid) {
                                    Decision::Port(index) if !carries(ports, index, tag) => {
                                        Decision::Drop(DropReason::Vlan)
                                    }
                                    Decision::Flood | Decision::FloodHere
                                        if !dresser.has_other(tag, vlans) =>
                                    {
                                        Decision::Drop(DropReason::Vlan)
                                    }
                                    decision => decision,
                                };
                                last = Some((way, decision));
                                decision
                            }
                        }
                    }
                };
            }
            return;
        }
        let mut last = None;
        for ((frame, head), decision) in looked_at {
            if let Some(reason) = frame.dropped {
                *decision = Decision::Drop(reason);
                continue;
            }
            let ends = Ends::of(head);
            *decision = match last {
                // A stream: the same two stations as before.
                Some((before, decision)) if before == ends => decision,
                _ => {
                    let decision = table.decide(addresses(head), 0);
                    last = Some((ends, decision));
                    decision
                }
            };
        }
    }

    /// Sends what the ports have to announce; how many copies that came to.
    #[cold]
    fn announce(&mut self) -> u32 {
        // Acquire: pairs with the Release of whoever left something, which is seen below.
        self.news.swap(false, Ordering::Acquire);
        (0..self.ports.len()).map(|at| self.announce_from(at)).sum()
    }

    /// Sends what one port has to announce as if its guest had, under the same limit. It waits while the port sends nothing.
    fn announce_from(&mut self, at: usize) -> u32 {
        let Some(lane) = self.ports.get_mut(at) else { return 0 };
        let Some(nth) = lane.port.sources.iter().position(|(_, source)| source.is_usable()) else { return 0 };
        let Some(mac) = lane.port.announcement.take() else { return 0 };
        let queue = lane.port.sources.get(nth).map_or(0, |(queue, _)| *queue);
        let tag = lane.port.vlans.as_ref().and_then(|vlans| vlans.own());
        let is_in_one = lane.port.vlans.is_none() || tag.is_some();
        let learned = if is_in_one {
            let vid = tag.map_or(0, |tag| tag.vid);
            self.fdb.learn(Address::of(mac, vid), lane.port.slot, ticks(self.now))
        } else {
            Learned::Invalid
        };
        if let Learned::PortFull | Learned::Full = learned {
            self.stations.count_refused();
        }
        let is_known = matches!(learned, Learned::Known | Learned::New | Learned::Moved);
        let has_other = |tag: Tag| {
            let own = self.ports.get(at)?.port.vlans.as_ref()?;
            Some(self.dresser.as_ref()?.has_other(tag, own))
        };
        let is_nobodys = tag.is_some_and(|tag| has_other(tag) == Some(false));
        let lost = if !is_in_one || is_nobodys {
            DropReason::Vlan
        } else if !is_heard(&self.ports, at, queue, tag) {
            DropReason::PeerDown
        } else if take_floods(self.ports.get(at), 1, self.now) == 0 {
            DropReason::FloodLimit
        } else {
            let (frame, mut copies) = (announce::frame(mac), 0);
            for (index, lane) in self.ports.iter_mut().enumerate() {
                if index == at || (lane.port.reflects && !is_known) {
                    continue;
                }
                let Some(with_tag) = tag.map_or(Some(false), |tag| lane.carries(tag)) else { continue };
                if let Some((_, sink)) = receiver(lane, queue) {
                    match tag.filter(|_| with_tag) {
                        Some(tag) => sink.give(&announce::tagged(frame, tag.vid)),
                        None => sink.give(&frame),
                    }
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

    /// Gives back what sinks have finished with. How many frames that are.
    fn give_back(&mut self) -> u32 {
        if self.in_flight.is_empty() {
            return 0;
        }
        let mut count = 0;
        for lane in &mut self.ports {
            for (number, (_, sink)) in lane.later.iter().zip(&mut lane.port.sinks) {
                if let Some(number) = number {
                    self.in_flight.finished(*number, sink.finished());
                }
            }
        }
        for lane in &mut self.ports {
            for (number, (_, source)) in (lane.first_source..).zip(&mut lane.port.sources) {
                let done = self.in_flight.give_back(number);
                if done > 0 {
                    source.give_back(done);
                    source.publish();
                    lane.is_untimed = true;
                    count += done as u32;
                }
            }
        }
        count
    }

    /// Those of its sinks that have not finished with what they were given.
    fn out(&mut self) -> impl Iterator<Item = &mut Box<dyn Sink>> {
        let lanes = self.ports.iter_mut().filter(|_| self.is_later);
        let sinks = lanes.flat_map(|lane| lane.later.iter().zip(&mut lane.port.sinks));
        let later = sinks.filter_map(|(number, (_, sink))| number.map(|_| sink));
        later.filter_map(|sink| (sink.finished() < sink.given()).then_some(sink))
    }
}

/// What a burst's frames are looked up in, and the port that they come from.
struct Table<'a> {
    by_slot: &'a [Option<u16>],
    fdb: &'a mut Fdb,
    stations: &'a Stations,
    at: usize,
    port: &'a BridgePort,
    /// In ticks.
    now: u64,
}

impl Table<'_> {
    /// Learns where the sender of a frame is, and says where the frame goes.
    #[inline]
    fn decide(&mut self, ends: Addresses, vid: u16) -> Decision {
        let Table { by_slot, fdb, stations, at, port, now } = self;
        let source = Address::of(ends.source, vid);
        let is_elsewhere = |slot: u16| slot != port.slot && is_there(by_slot, slot);
        if port.reflects && fdb.find(source, *now).is_some_and(is_elsewhere) {
            // Learned, the guest would be cut off: it would be behind the port that reflects.
            return Decision::Drop(DropReason::Reflected);
        }
        let learned = fdb.learn(source, port.slot, *now);
        if let Learned::PortFull | Learned::Full = learned {
            stations.count_refused();
        }
        let behind = fdb
            .find(Address::of(ends.destination, vid), *now)
            .and_then(|slot| by_slot.get(usize::from(slot)).copied().flatten());
        let is_known = matches!(learned, Learned::Known | Learned::New | Learned::Moved);
        match decide(ends.destination, behind, *at) {
            Decision::Flood if !is_known => Decision::FloodHere,
            decision => decision,
        }
    }
}

/// The port of this slot runs.
fn is_there(by_slot: &[Option<u16>], slot: u16) -> bool {
    by_slot.get(usize::from(slot)).is_some_and(Option::is_some)
}

/// Where a frame to `destination` goes that came from port `at`; `behind` is the port where it was last seen.
fn decide(destination: Mac, behind: Option<u16>, at: usize) -> Decision {
    // IEEE 802.1Q §8.6.3: frames to these are for the bridge itself and go no further.
    if matches!(destination.0, [0x01, 0x80, 0xc2, 0x00, 0x00, last] if last < 0x10) {
        return Decision::Drop(DropReason::ReservedAddress);
    }
    match behind {
        Some(index) if usize::from(index) == at => Decision::Drop(DropReason::SamePort),
        Some(index) if !destination.is_multicast() => Decision::Port(index),
        _ => Decision::Flood,
    }
}

impl Lane {
    /// Whether frames of a VLAN go there, and with a tag.
    fn carries(&self, tag: Tag) -> Option<bool> {
        self.port.vlans.as_ref()?.carries(tag)
    }
}

/// A port carries frames of a VLAN.
fn carries(ports: &[Lane], index: u16, tag: Tag) -> bool {
    ports.get(usize::from(index)).is_some_and(|lane| lane.carries(tag).is_some())
}

/// Frames as a port gets them; None: it does not carry their VLAN. Without a tag, they are as they are.
#[inline(always)]
fn as_for<'a>(
    to: &Lane,
    load: Load<'a>,
    tag: Option<Tag>,
    dresser: &'a mut Option<Box<Dresser>>,
) -> Option<Load<'a>> {
    let Some(tag) = tag else { return Some(load) };
    let with_tag = to.carries(tag)?;
    Some(dresser.as_mut()?.dress(load, tag, with_tag))
}

/// True if a frame of port `at` to everybody would reach somebody.
fn is_heard(ports: &[Lane], at: usize, queue: u16, tag: Option<Tag>) -> bool {
    let is_other =
        |(index, to): &(usize, &Lane)| *index != at && tag.is_none_or(|tag| to.carries(tag).is_some());
    let mut others = ports.iter().enumerate().filter(is_other);
    others.any(|(_, to)| {
        let nth = usize::from(queue).checked_rem(to.port.sinks.len());
        nth.and_then(|nth| to.port.sinks.get(nth)).is_some_and(|(_, sink)| sink.is_usable())
    })
}

/// How many of so many frames a port may send to everybody now.
fn take_floods(from: Option<&Lane>, frames: usize, now: u64) -> usize {
    let flood = from.and_then(|lane| lane.port.flood.as_ref());
    flood.map_or(frames, |flood| (0..frames).take_while(|_| flood.take(now)).count())
}

/// How many of these frames a port may be given now.
#[inline(always)]
fn what_may(received: &Limits, frames: &[Frame], now: u64) -> usize {
    if received.are_none() { frames.len() } else { received.admit(frames.iter().map(bits_of), now) }
}

fn bits_of(frame: &Frame) -> u64 {
    u64::from(frame.len) * 8
}

/// Gives frames to a port, which keeps what it can. False: nothing there runs.
fn hand_over(
    to: &mut Lane,
    queue: u16,
    load: Load<'_>,
    from: Origin,
    now: u64,
    (scratch, in_flight): (&mut Scratch, &mut InFlight),
) -> bool {
    let may = what_may(&to.port.rates.received, load.frames, now);
    let Some((later, sink)) = receiver(to, queue) else { return false };
    if may < load.frames.len() {
        sink.count_drops(DropReason::RateLimit, (load.frames.len() - may) as u64);
    }
    let load = Load { frames: load.frames.get(..may).unwrap_or_default(), ..load };
    let Some(number) = later else {
        sink.carry_or_drop(load, scratch);
        return true;
    };
    // As many as may be out at one sink.
    let room = in_flight.room_at(number).min(load.frames.len());
    let (now, lost) = load.frames.split_at_checked(room).unwrap_or_default();
    let carried = sink.carry_or_drop(Load { frames: now, ..load }, scratch);
    let lost = lost.iter().filter(|frame| frame.dropped.is_none()).count();
    if lost > 0 {
        sink.count_drops(DropReason::NoRxBuffer, lost as u64);
    }
    for (mark, frame) in scratch.marks.iter().take(carried).zip(from.first..) {
        in_flight.read_by(number, *mark, from.source, frame);
    }
    true
}

/// The receive queue of a port that a sender's queue feeds, if it runs: queue i feeds queue i mod n. With its number, if it
/// finishes later. It is to be published then.
#[inline]
fn receiver(to: &mut Lane, queue: u16) -> Option<(Option<usize>, &mut dyn Sink)> {
    let nth = usize::from(queue).checked_rem(to.port.sinks.len())?;
    to.is_given = true;
    let later = to.later.get(nth).copied().flatten();
    let (_, sink) = to.port.sinks.get_mut(nth)?;
    sink.is_usable().then_some((later, &mut **sink))
}

impl Pump for BridgePump {
    fn poll(&mut self, budget: &Budget, now: u64) -> Polled {
        self.now = now;
        self.in_flight.begin(now);
        let back = self.give_back();
        if self.is_stopping {
            return Polled::Idle;
        }
        let mut cost = 0;
        if self.news.load(Ordering::Relaxed) {
            cost = self.announce();
        }
        let count = self.ports.len();
        for turn in 0..count {
            let at = (self.first + turn) % count;
            cost += self.serve(at, budget);
            if cost >= budget.chains {
                self.first = (at + 1) % count;
                break;
            }
        }
        if cost == 0 {
            return if back > 0 { Polled::Moved(back) } else { Polled::Idle };
        }
        self.publish();
        self.give_back();
        if now >= self.next_view {
            self.next_view = now.saturating_add(self.view_every);
            self.fdb.set_ageing(self.stations.ageing());
            self.fdb.sweep(ticks(now), SWEEP);
            self.stations.show(&self.fdb, now);
        }
        Polled::Moved(cost)
    }

    fn took(&mut self, cycles: u64) {
        for lane in self.ports.iter_mut().filter(|lane| lane.is_untimed) {
            lane.is_untimed = false;
            lane.port.sinks.iter_mut().for_each(|(_, sink)| sink.took(cycles));
            for (number, (_, source)) in (lane.first_source..).zip(&mut lane.port.sources) {
                let waited = if self.is_later { self.in_flight.waited(number) } else { 0 };
                source.took(cycles + waited);
            }
        }
    }

    fn arm(&mut self) -> Armed {
        let now = self.now;
        self.stations.show(&self.fdb, now);
        let (mut has_work, mut cannot) = (false, false);
        let mut note = |armed: Option<bool>| match armed {
            Some(true) => has_work = true,
            Some(false) => {}
            None => cannot = true,
        };
        let mut wait = None;
        for lane in &mut self.ports {
            if let Err(cycles) = lane.port.rates.sent.room(now) {
                // What it has stays there for so long.
                wait = Some(wait.map_or(cycles, |wait| cycles.min(wait)));
                continue;
            }
            for (number, (_, source)) in (lane.first_source..).zip(&mut lane.port.sources) {
                // Of one that has as many out as may be, it is the sinks that bring news.
                if self.in_flight.room(number) > 0 {
                    note(source.arm());
                }
            }
        }
        self.out().for_each(|sink| note(sink.arm()));
        if has_work {
            self.disarm();
            return Armed::HasWork;
        }
        if cannot {
            return Armed::CannotSleep;
        }
        let ns = |cycles: u64| u128::from(cycles) * 1_000_000_000 / u128::from(tsc::hertz());
        // It looks now and then: the limit may be another by then.
        let within = |cycles| u64::try_from(ns(cycles)).unwrap_or(u64::MAX).min(LOOK_AGAIN_NS);
        Armed::Sleep { within_ns: wait.map(within) }
    }

    fn disarm(&mut self) {
        for lane in &mut self.ports {
            lane.port.sources.iter_mut().for_each(|(_, source)| source.disarm());
            let sinks = lane.later.iter().zip(&mut lane.port.sinks).filter(|(number, _)| number.is_some());
            sinks.for_each(|(_, (_, sink))| sink.disarm());
        }
    }

    fn begin_stop(&mut self) -> bool {
        self.is_stopping = true;
        self.stopped()
    }

    fn stopped(&mut self) -> bool {
        self.give_back();
        let mut is_stopped = self.in_flight.is_empty() && self.out().next().is_none();
        let sources = self.ports.iter_mut().flat_map(|lane| &mut lane.port.sources);
        sources.for_each(|(_, source)| is_stopped &= source.rest());
        // It may be placed again.
        self.is_stopping = !is_stopped;
        is_stopped
    }

    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        let sources = self.ports.iter().flat_map(|lane| &lane.port.sources);
        let sinks = self.ports.iter().flat_map(|lane| lane.later.iter().zip(&lane.port.sinks));
        let later =
            sinks.filter(|(number, _)| number.is_some()).filter_map(|(_, (_, sink))| sink.wake_source());
        sources.filter_map(|(_, source)| source.wake_source()).chain(later).collect()
    }
}

/// How long a bridge sleeps at most of which a port is at its limit.
const LOOK_AGAIN_NS: u64 = 100_000_000;

/// Buckets looked through for what has aged, twice a second.
const SWEEP: usize = 256;

/// Frames in one burst: as many as a transfer's.
const BURST: usize = 32;
