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
//! the others nothing. Frames to groups and to unknown addresses are bounded for each sending port.
//!
//! One bridge is one pump on one core, or several, each with the ports on a core: parts (`part`), between which frames cross by
//! lanes. A pump that is all of a bridge is another type, which has nothing of that.
//!
//! A sink may read frames for longer than one poll (io_uring, DMA): they go back to their sources in order as it finishes,
//! and the pump goes on meanwhile.
//!
//! Lives on one worker. Budget: no allocation, no lock that is waited for, no panic; no system call but the calls that
//! drivers asked for, and one a burst for a kernel netdev.

// Frames in many pieces, copied together to cross to another part.
mod copies;
// What a port's announcement becomes.
mod arrival;
// What came through lanes from other parts.
mod crossed;
// Where each frame of a burst goes.
mod decision;
// What goes through a lane.
mod entry;
// One of several parts: the ends of the lanes to the others.
mod part;
// Frames that came from other parts, for sinks that finish later.
mod kept;
// The ports.
mod port;

use std::os::fd::BorrowedFd;
use std::sync::Arc;

use ringway_engine::{Armed, Budget, Polled, Pump};
use ringway_ring::chain::Burst;
use ringway_ring::tsc;

use super::Mac;
use super::announce::News;
use super::capture;
use super::fdb::{Fdb, FdbOptions, ticks};
use super::frame::{Ends, Frames, Ingress, addresses, prefetch};
use super::in_flight::InFlight;
use super::scratch::Scratch;
use super::side::{Load, Sink, Source};
use super::stations::{Stations, View};
use super::vlan::{Carriers, Dresser, Vlans};
use crate::counters::DropReason;

use decision::{AWAY, Decision, HELD, Table};
pub(crate) use part::{Part, PartPort};
pub use port::BridgePort;
use port::{Member, Origin, as_for, bits_of, flood, hand_over, is_heard, take_floods};

/// The pump: all of a bridge, or one part of several, which is another type so that the former costs nothing for it.
#[derive(Debug)]
pub struct BridgePump<const PARTS: bool = false> {
    ports: Vec<Member>,
    /// Index in `ports` by slot; of a port of another part, what [`AWAY`] says; and [`HELD`].
    by_slot: Vec<Option<u16>>,
    fdb: Box<Fdb>,
    /// As [`Knowledge`] has it.
    since: u64,
    stations: Arc<Stations>,
    view: Arc<View>,
    /// One of the ports may have something to announce.
    news: Arc<News>,
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
    /// Sources of its ports; those behind are lanes.
    sources: usize,
    /// Sinks of its ports that finish later; those behind are lanes.
    sinks: usize,
    /// Where there are others.
    part: Option<Box<Part>>,
    /// It was made while a worker held ports, which hear of no guest that arrives.
    is_partial: bool,
    /// Cycles between two looks at the table for those who ask.
    view_every: u64,
    next_view: u64,
    now: u64,
    is_stopping: bool,
}

/// What a bridge's pump learns and tells.
pub(crate) struct Knowledge {
    pub(crate) fdb: Box<Fdb>,
    /// How often ports had been forgotten when it was made.
    pub(crate) since: u64,
    pub(crate) stations: Arc<Stations>,
    pub(crate) view: Arc<View>,
    /// One of the ports may have something to announce.
    pub(crate) news: Arc<News>,
    /// Slots of ports that are with a worker which does not let go of them, and so in no pump that turns.
    pub(crate) held: Vec<u16>,
}

impl BridgePump {
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
        let view = stations.views(1).remove(0);
        let mut fdb = stations.empty_fdb()?;
        for (mac, slot) in known {
            fdb.learn(*mac, *slot, 0);
        }
        let knowledge = Knowledge { fdb, since: 0, stations, view, news: Arc::default(), held: Vec::new() };
        Ok(BridgePump::new(ports, knowledge, hertz, Scratch::new(false)?, None))
    }
}

impl<const PARTS: bool> BridgePump<PARTS> {
    /// Binds what runs. The scratch is one with room if any source may leave more to be done than any sink takes. `part`: of several,
    /// whose sources are all ready for sinks that finish later; [`Pump::poll`] of any other pump passes it by.
    pub(super) fn new(
        ports: Vec<BridgePort>,
        knowledge: Knowledge,
        hertz: u64,
        scratch: Scratch,
        part: Option<Box<Part>>,
    ) -> BridgePump<PARTS> {
        let Knowledge { fdb, since, stations, view, news, held } = knowledge;
        // What waited for a port to run may be sent now.
        news.tell();
        let slots = ports.iter().map(|port| usize::from(port.slot) + 1).max().unwrap_or(0);
        let mut by_slot = vec![None; slots];
        for (index, port) in ports.iter().enumerate() {
            by_slot[usize::from(port.slot)] = Some(index as u16);
        }
        let (mut sources, mut sinks) = (0, 0);
        let mut member = |port: BridgePort| {
            let first_source = sources;
            sources += port.sources.len();
            let number = |(_, sink): &(u16, Box<dyn Sink>)| {
                sink.defers().then(|| {
                    sinks += 1;
                    sinks - 1
                })
            };
            let later = port.sinks.iter().map(number).collect();
            Member {
                port,
                first_source,
                later,
                is_served: false,
                is_given: false,
                is_untimed: false,
                has_announced: false,
            }
        };
        let ports: Vec<Member> = ports.into_iter().map(&mut member).collect();
        let looks_at_vlans = ports.iter().any(|member| member.port.vlans.is_some());
        let given = || Carriers::new(ports.iter().filter_map(|member| member.port.vlans.as_deref()));
        let of_all = |part: &Part| part.carriers().unwrap_or_else(given);
        let carriers = || part.as_deref().map_or_else(given, of_all);
        let dresser = looks_at_vlans.then(|| Dresser::new(carriers()));
        let is_partial = !held.is_empty();
        let held = held.into_iter().map(|slot| (usize::from(slot), HELD));
        for (slot, number) in part.iter().flat_map(|part| part.away()).chain(held) {
            if by_slot.len() <= slot {
                by_slot.resize(slot + 1, None);
            }
            by_slot[slot].get_or_insert(number);
        }
        let lanes = part.as_deref().map_or(0, Part::lanes);
        BridgePump {
            ports,
            by_slot,
            fdb,
            since,
            stations,
            view,
            news,
            first: 0,
            frames: Frames::new(true),
            dresser,
            scratch,
            in_flight: InFlight::new(sources + lanes, sinks + lanes),
            is_later: sinks + lanes > 0,
            sources,
            sinks,
            part,
            is_partial,
            view_every: hertz / 2,
            next_view: 0,
            now: 0,
            is_stopping: false,
        }
    }

    /// Takes it apart again: its ports, what it knows, and [since when](Knowledge::since). What others have in lanes to it goes back to
    /// them. Of guests that have arrived, where not everybody heard of it, whoever has those ports next tells all once more.
    pub(crate) fn into_parts(self) -> (Vec<BridgePort>, Box<Fdb>, u64) {
        let is_untold = self.is_partial || self.part.as_ref().is_some_and(|part| part.is_untold());
        let arrived = self.ports.iter().filter(|member| is_untold && member.has_announced);
        arrived.for_each(|member| member.port.announcement.tell_again());
        (self.ports.into_iter().map(|member| member.port).collect(), self.fdb, self.since)
    }

    /// One burst of every source of a port, published by [`BridgePump::publish`]; how many copies that came to.
    fn serve(&mut self, at: usize, budget: &Budget) -> u32 {
        // Taken out while they are served, so that the receivers can be reached beside them. Nothing is allocated.
        let Some(member) = self.ports.get_mut(at) else { return 0 };
        let first_source = member.first_source;
        let mut sources = std::mem::take(&mut member.port.sources);
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
        if let Some(member) = self.ports.get_mut(at) {
            member.port.sources = sources;
            member.is_served = is_served;
        }
        cost
    }

    /// Publishes what was done since the last time: receivers before senders, so that what a process had on the way when it
    /// died is sent once more by the next.
    fn publish(&mut self) {
        self.publish_sinks();
        for member in self.ports.iter_mut().filter(|member| member.is_served) {
            member.is_served = false;
            member.is_untimed = true;
            member.port.sources.iter_mut().for_each(|(_, source)| source.publish());
        }
    }

    /// Shows receivers what they were given since the last time.
    fn publish_sinks(&mut self) {
        for member in self.ports.iter_mut().filter(|member| member.is_given) {
            member.is_given = false;
            member.is_untimed = true;
            member.port.sinks.iter_mut().for_each(|(_, sink)| sink.publish());
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
        let sent = self.ports.get(at).map(|member| &member.port.rates.sent);
        let sent = sent.filter(|sent| !sent.are_none());
        if sent.is_some_and(|sent| sent.room(self.now).is_err()) {
            // It stays where it is.
            return (0, 0);
        }
        if self.is_later {
            // As many as may be out; none, while all of those are.
            most = most.min(self.room_of(from.source));
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
            if source.counters().is_captured() {
                let skip = source.ingress().header_len;
                capture::show_waiting(
                    source.counters(),
                    source.burst(),
                    skip,
                    peeked,
                    DropReason::TxDisabled,
                );
            }
            self.frames.clear();
            if PARTS && let Some(part) = &mut self.part {
                part.settle(from.source, 0, peeked);
            }
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
        self.decide_all(at, from.source, &mut decisions);

        let mut all = self.frames.as_slice();
        if PARTS && let Some(part) = &mut self.part {
            let decisions = decisions.get(..all.len()).unwrap_or_default();
            let sinks = (&self.in_flight, self.sinks);
            let fits = part.fit(decisions, source.burst(), from.source, sinks, self.now);
            // Those that stay are not learned from once more.
            part.settle(from.source, all.len(), fits);
            all = all.get(..fits).unwrap_or_default();
            if fits == 0 {
                return (0, 0);
            }
        }
        let sent = self.ports.get(at).map(|member| &member.port.rates.sent);
        if let Some(sent) = sent.filter(|sent| !sent.are_none()) {
            let may = sent.admit(all.iter().map(bits_of), self.now);
            if may < all.len() {
                source.count_held();
                if PARTS && let Some(part) = &mut self.part {
                    part.stay(from.source, all.len() - may);
                }
                all = all.get(..may).unwrap_or_default();
            }
        }
        let seen_at = source.counters().is_captured().then(tsc::cycles);
        let mut cost = 0;
        let (mut drops, mut has_dropped) = ([0u64; DropReason::ALL.len()], false);
        let (mut sent, mut bytes) = (0u64, 0u64);
        let mut begin = 0;
        let burst = source.burst();
        let heads = self.frames.heads();
        let whole = Load { burst, chains: burst.chains(), skip: ingress.header_len, frames: all, heads };
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
            let is_heard_away =
                || PARTS && is_flood && self.part.as_ref().is_some_and(|part| part.is_heard(tag));
            if is_flood && (is_heard(&self.ports, at, queue, tag) || is_heard_away()) {
                let granted = take_floods(self.ports.get(at), end - begin, self.now);
                if granted == 0 {
                    if let Some(frame) = all.get(begin) {
                        source.note_drop(DropReason::FloodLimit, frame, self.frames.heads().get(begin));
                    }
                    drops[DropReason::FloodLimit as usize] += (end - begin) as u64;
                    has_dropped = true;
                    if let Some(at) = seen_at {
                        let over = whole.part(begin, end);
                        capture::show(source.counters(), over, Some(DropReason::FloodLimit), at);
                    }
                    begin = end;
                    continue;
                }
                end = begin + granted;
            }
            let load = whole.part(begin, end);
            let count = end - begin;
            let run = Origin { first: from.first + begin as u64, ..from };
            begin = end;
            // Of those that reach somebody, entries that found a lane full.
            let mut lost = 0;
            let reached = match decision {
                Decision::Drop(reason) => {
                    drops[reason as usize] += count as u64;
                    has_dropped = true;
                    if let Some(frame) = load.frames.last() {
                        source.note_drop(reason, frame, load.heads.last());
                    }
                    if let Some(at) = seen_at {
                        capture::show(source.counters(), load, Some(reason), at);
                    }
                    continue;
                }
                Decision::Port(index) if PARTS && index & AWAY != 0 => {
                    let (first, of) = (self.sinks, (from.source as u16, tag));
                    let part = self.part.as_mut();
                    let missed = part.and_then(|part| {
                        part.send(index & !AWAY, &load, of, run, &mut self.in_flight, first)
                    });
                    lost = missed.unwrap_or(0);
                    u32::from(missed.is_some())
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
                    let is_here = decision == Decision::FloodHere;
                    let here = (&mut self.ports[..], &mut self.dresser);
                    let mut reached = flood(
                        here,
                        at,
                        is_here,
                        (queue, tag),
                        load,
                        run,
                        self.now,
                        (&mut self.scratch, &mut self.in_flight),
                    );
                    if PARTS && let Some(part) = &mut self.part {
                        let of = (from.source as u16, tag);
                        let (lanes, missed) =
                            part.flood(is_here, &load, of, run, &mut self.in_flight, self.sinks);
                        (reached, lost) = (reached + lanes, missed);
                    }
                    reached
                }
            };
            cost += count as u32 * reached.max(1);
            let why = || match decision {
                Decision::FloodHere => DropReason::FloodLimit,
                // Known to be there, and not to be given to everybody.
                Decision::Port(HELD) => DropReason::LaneFull,
                _ => DropReason::PeerDown,
            };
            if let Some(at) = seen_at {
                // What a lane had no room for comes last, and was for nobody else.
                let gone = if PARTS && !is_flood { count - lost.min(count) } else { count };
                capture::show(source.counters(), load.part(0, gone), (reached == 0).then(why), at);
                capture::show(source.counters(), load.behind(gone), Some(DropReason::LaneFull), at);
            }
            if reached == 0 {
                drops[why() as usize] += count as u64;
                has_dropped = true;
            } else {
                if PARTS && lost > 0 {
                    drops[DropReason::LaneFull as usize] += lost as u64;
                    has_dropped = true;
                }
                let mut gone = load.frames;
                if PARTS && !is_flood {
                    // What a lane had no room for was for nobody else.
                    gone = gone.get(..count - lost.min(count)).unwrap_or_default();
                }
                sent += gone.len() as u64;
                bytes += gone.iter().map(|frame| u64::from(frame.len)).sum::<u64>();
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

    /// How many more frames of a source may be out.
    #[inline]
    fn room_of(&self, source: usize) -> usize {
        let reserved = if PARTS { part::RESERVED } else { 0 };
        self.in_flight.room(source).saturating_sub(reserved)
    }

    /// Learns where the senders are and looks up where the receivers are.
    fn decide_all(&mut self, at: usize, of: usize, decisions: &mut [Decision; Burst::CHAINS]) {
        let BridgePump { ports, by_slot, fdb, stations, frames, now, dresser, part, .. } = self;
        let Some(member) = ports.get(at) else { return };
        let (port, now) = (&member.port, ticks(*now));
        let part = if PARTS { part.as_deref_mut() } else { None };
        let decided = part.as_deref().map_or(0, |part| part.decided(of));
        let mut table = Table::<PARTS> { by_slot, fdb, stations, at, port, now, learns: decided == 0, part };
        let looked_at = frames.as_slice().iter().zip(frames.heads()).zip(decisions);
        if let Some(dresser) = dresser {
            let vlans = member.port.vlans.as_deref().unwrap_or(&Vlans::NONE);
            let mut last = None;
            for (nth, ((frame, head), decision)) in looked_at.enumerate() {
                if PARTS && nth == decided {
                    (table.learns, last) = (true, None);
                }
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
                                    Decision::Port(index) if !table.carries(ports, index, tag) => {
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
        for (nth, ((frame, head), decision)) in looked_at.enumerate() {
            if PARTS && nth == decided {
                (table.learns, last) = (true, None);
            }
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

    /// Gives back what sinks have finished with. How many frames that are.
    fn give_back(&mut self) -> u32 {
        if PARTS {
            self.look_at_lanes();
        }
        if self.in_flight.is_empty() && !(PARTS && self.keeps()) {
            return 0;
        }
        let mut count = 0;
        let mut kept = self.part.as_deref_mut().filter(|_| PARTS).and_then(|part| part.kept.as_deref_mut());
        for member in &mut self.ports {
            for (number, (_, sink)) in member.later.iter().zip(&mut member.port.sinks) {
                if let Some(number) = number {
                    let finished = sink.finished();
                    self.in_flight.finished(*number, finished);
                    if PARTS && let Some(kept) = &mut kept {
                        kept.finished(*number, finished);
                    }
                }
            }
        }
        for member in &mut self.ports {
            for (number, (_, source)) in (member.first_source..).zip(&mut member.port.sources) {
                let done = self.in_flight.give_back(number);
                if done > 0 {
                    source.give_back(done);
                    source.publish();
                    member.is_untimed = true;
                    count += done as u32;
                }
            }
        }
        if PARTS {
            count += self.finish_lanes();
        }
        count
    }

    /// Those of its sinks that have not finished with what they were given.
    fn out(&mut self) -> impl Iterator<Item = &mut Box<dyn Sink>> {
        let members = self.ports.iter_mut().filter(|_| self.is_later);
        let sinks = members.flat_map(|member| member.later.iter().zip(&mut member.port.sinks));
        let later = sinks.filter_map(|(number, (_, sink))| number.map(|_| sink));
        later.filter_map(|sink| (sink.finished() < sink.given()).then_some(sink))
    }
}

impl<const PARTS: bool> Pump for BridgePump<PARTS> {
    fn poll(&mut self, budget: &Budget, now: u64) -> Polled {
        self.now = now;
        self.in_flight.begin(now);
        let back = self.give_back();
        let lanes = if PARTS { self.lanes() } else { 0 };
        if PARTS && (self.is_stopping || self.is_ending()) {
            return self.drain(lanes, budget);
        }
        if self.is_stopping {
            return Polled::Idle;
        }
        if PARTS {
            self.watch_lanes();
            self.tell_stations();
        }
        let mut cost = 0;
        if self.has_news() {
            cost = self.announce();
        }
        let count = self.ports.len() + lanes;
        for turn in 0..count {
            let at = (self.first + turn) % count;
            cost += if PARTS && at >= self.ports.len() {
                self.serve_lane(at - self.ports.len(), budget)
            } else {
                self.serve(at, budget)
            };
            if cost >= budget.chains {
                self.first = (at + 1) % count;
                break;
            }
        }
        if PARTS && self.was_short() {
            // Another one is asked first where there is room.
            self.first = (self.first + 1) % count;
        }
        if cost == 0 {
            if PARTS {
                self.publish_lanes();
            }
            return if back > 0 { Polled::Moved(back) } else { Polled::Idle };
        }
        self.publish();
        self.give_back();
        if PARTS {
            self.publish_lanes();
        }
        if now >= self.next_view {
            self.next_view = now.saturating_add(self.view_every);
            self.fdb.set_ageing(self.stations.ageing());
            self.fdb.sweep(ticks(now), SWEEP);
            self.show(now);
        }
        Polled::Moved(cost)
    }

    fn took(&mut self, cycles: u64) {
        for member in self.ports.iter_mut().filter(|member| member.is_untimed) {
            member.is_untimed = false;
            member.port.sinks.iter_mut().for_each(|(_, sink)| sink.took(cycles));
            for (number, (_, source)) in (member.first_source..).zip(&mut member.port.sources) {
                let waited = if self.is_later { self.in_flight.waited(number) } else { 0 };
                source.took(cycles + waited);
            }
        }
    }

    fn arm(&mut self) -> Armed {
        let now = self.now;
        self.show(now);
        let is_ending = PARTS && (self.is_stopping || self.is_ending());
        let (mut has_work, mut cannot) = (false, false);
        let mut note = |armed: Option<bool>| match armed {
            Some(true) => has_work = true,
            Some(false) => {}
            None => cannot = true,
        };
        let mut wait = None;
        for member in self.ports.iter_mut().filter(|_| !is_ending) {
            if let Err(cycles) = member.port.rates.sent.room(now) {
                // What it has stays there for so long.
                wait = Some(wait.map_or(cycles, |wait| cycles.min(wait)));
                continue;
            }
            for (number, (_, source)) in (member.first_source..).zip(&mut member.port.sources) {
                // Of one that has as many out as may be, it is the sinks that bring news.
                let reserved = if PARTS { part::RESERVED } else { 0 };
                if self.in_flight.room(number) > reserved {
                    note(source.arm());
                }
            }
        }
        self.out().for_each(|sink| note(sink.arm()));
        if PARTS {
            has_work |= self.arm_lanes();
        }
        if has_work {
            self.disarm();
            return Armed::HasWork;
        }
        if cannot {
            return Armed::CannotSleep;
        }
        if PARTS && self.watches_lanes() {
            // Whoever reads them brings news, or nobody, where he is held.
            wait = Some(wait.map_or(part::look_after(), |wait: u64| wait.min(part::look_after())));
        }
        let ns = |cycles: u64| u128::from(cycles) * 1_000_000_000 / u128::from(tsc::hertz());
        // It looks now and then: the limit may be another by then.
        let within = |cycles| u64::try_from(ns(cycles)).unwrap_or(u64::MAX).min(LOOK_AGAIN_NS);
        Armed::Sleep { within_ns: wait.map(within) }
    }

    fn disarm(&mut self) {
        for member in &mut self.ports {
            member.port.sources.iter_mut().for_each(|(_, source)| source.disarm());
            let sinks =
                member.later.iter().zip(&mut member.port.sinks).filter(|(number, _)| number.is_some());
            sinks.for_each(|(_, (_, sink))| sink.disarm());
        }
        if PARTS && let Some(part) = &mut self.part {
            part.disarm();
        }
    }

    fn begin_stop(&mut self) -> bool {
        self.is_stopping = true;
        if PARTS && let Some(part) = &mut self.part {
            part.end();
        }
        self.stopped()
    }

    fn stopped(&mut self) -> bool {
        self.give_back();
        let mut is_stopped = self.in_flight.is_empty() && self.out().next().is_none();
        let sources = self.ports.iter_mut().flat_map(|member| &mut member.port.sources);
        sources.for_each(|(_, source)| is_stopped &= source.rest());
        if PARTS {
            is_stopped &= self.has_left(is_stopped);
        }
        // It may be placed again.
        self.is_stopping = !is_stopped;
        is_stopped
    }

    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        let sources = self.ports.iter().flat_map(|member| &member.port.sources);
        let sinks = self.ports.iter().flat_map(|member| member.later.iter().zip(&member.port.sinks));
        let later =
            sinks.filter(|(number, _)| number.is_some()).filter_map(|(_, (_, sink))| sink.wake_source());
        let lanes = self.part.iter().map(|part| part.wake_source());
        sources.filter_map(|(_, source)| source.wake_source()).chain(later).chain(lanes).collect()
    }
}

/// How long a bridge sleeps at most of which a port is at its limit.
const LOOK_AGAIN_NS: u64 = 100_000_000;

/// Buckets looked through for what has aged, twice a second.
const SWEEP: usize = 256;

/// Frames in one burst: as many as a transfer's.
const BURST: usize = 32;

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]
mod tests;
