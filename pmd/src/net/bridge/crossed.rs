//! What a part of a bridge does with its lanes in a turn: gives what came through them to its ports, sees what others are finished with,
//! and tells what it is.
//!
//! Part of the pump, and of none that is all of a bridge. Budget: no allocation, no lock that is waited for, no panic; one system call
//! to wake another part that sleeps.

use ringway_engine::{Budget, Polled};
use ringway_ring::tsc;

use super::entry::To;
use super::kept::Kept;
use super::part::{Come, Next, Part};
use super::port::{Member, Origin, as_for, hand_over, receiver, what_may};
use super::{BURST, BridgePump, arrival};
use crate::counters::{DropReason, QueueCounters};
use crate::net::capture;
use crate::net::fdb::{Address, ticks};
use crate::net::frame::{addresses, prefetch};
use crate::net::scratch::Scratch;
use crate::net::side::Load;

impl<const PARTS: bool> BridgePump<PARTS> {
    /// Lanes from others.
    #[inline]
    pub(super) fn lanes(&self) -> usize {
        self.part.as_ref().map_or(0, |part| part.lanes())
    }

    /// One of the parts was told to stop.
    #[inline]
    pub(super) fn is_ending(&self) -> bool {
        self.part.as_ref().is_some_and(|part| part.is_ending())
    }

    /// Shows those who ask what it knows first.
    pub(super) fn show(&self, now: u64) {
        match self.part.as_ref().filter(|_| PARTS) {
            Some(part) => self.view.show(&self.fdb, now, |slot| part.is_own(slot)),
            None => self.view.show(&self.fdb, now, |_| true),
        }
    }

    /// A burst of what came through a lane; how many copies that came to. Its writer is told at once what of it is done with: it waits for that,
    /// and this worker may be held by what it serves next.
    pub(super) fn serve_lane(&mut self, nth: usize, budget: &Budget) -> u32 {
        // Taken out while it is served, so that the ports can be reached beside it.
        let Some(mut part) = self.part.take() else { return 0 };
        let number = self.sources + nth;
        let (mut cost, mut left) = (0, part.look(nth).min(BURST));
        while left > 0 && cost < budget.chains {
            let first = self.in_flight.next(number);
            let most = left.min(self.in_flight.room(number));
            let next =
                if most > 0 { part.take(nth, most, &mut self.fdb, ticks(self.now)) } else { Next::Nothing };
            let count = match next {
                Next::Nothing => break,
                Next::Done => 1,
                Next::TakenBack(entries) => entries as usize,
                Next::Announcement { mac, tag, to, queue } => {
                    cost += arrival::give(&mut self.ports, None, to == To::Here, mac, tag, queue);
                    1
                }
                Next::Frames => {
                    let origin = Origin { source: number, first };
                    let Part { come, kept, .. } = &mut *part;
                    cost += self.give(come, kept, origin);
                    come.count
                }
            };
            cost += 1;
            left -= count.min(left);
            if self.in_flight.holds(number) {
                self.in_flight.take_up_to(number, first + count as u64);
            } else {
                part.finish(nth, count as u64);
            }
        }
        if cost > 0 && !self.in_flight.holds(number) {
            // Receivers before senders.
            self.publish_sinks();
            part.tell(nth);
        }
        self.part = Some(part);
        cost
    }

    /// Gives frames that came through a lane to the ports that they are for; how many copies that came to.
    fn give(&mut self, come: &mut Come, kept: &mut Option<Box<Kept>>, from: Origin) -> u32 {
        prefetch(&come.burst);
        let (count, queue) = (come.count, come.queue);
        if let Some(dresser) = &mut self.dresser {
            for (nth, tag) in come.tags.iter().take(count).enumerate() {
                if let Some(tag) = tag {
                    dresser.note(nth, *tag);
                }
            }
        }
        self.keep_here(come);
        let (mut cost, mut begin) = (0, 0);
        while begin < count {
            // A run of frames that go the same way.
            let Some(&to) = come.to.get(begin) else { break };
            let run = come.to.get(begin..count).unwrap_or_default().iter().take_while(|next| **next == to);
            let mut end = begin + run.count();
            let mut tag = None;
            if let Some((its, until)) = self.dresser.as_mut().and_then(|dresser| dresser.take_up(begin, end))
            {
                (tag, end) = (Some(its), until);
            }
            let burst = &come.burst;
            let load = Load {
                burst,
                chains: burst.chains().get(begin..end).unwrap_or_default(),
                skip: 0,
                frames: come.frames.get(begin..end).unwrap_or_default(),
                heads: come.heads.get(begin..end).unwrap_or_default(),
            };
            let run = Origin { first: from.first + begin as u64, ..from };
            let frames = (end - begin) as u32;
            begin = end;
            let BridgePump { ports, by_slot, dresser, scratch, in_flight, now, .. } = self;
            let mut hand = |to: &mut Member| {
                let Some(load) = as_for(to, load, tag, dresser) else { return false };
                match kept.as_deref_mut() {
                    Some(kept) if to.finishes_later(queue) => keep(to, queue, &load, *now, scratch, kept),
                    _ => hand_over(to, queue, load, run, *now, (scratch, in_flight)),
                }
            };
            let reached = match to {
                To::Slot(slot) => {
                    let index = by_slot.get(usize::from(slot)).copied().flatten();
                    let to = index.and_then(|index| ports.get_mut(usize::from(index)));
                    // Not reached without it: all parts were made of the same ports.
                    if let Some(to) = to
                        && !hand(to)
                    {
                        lose(to, queue, load);
                    }
                    1
                }
                To::All | To::Here => {
                    let is_for = |member: &&mut Member| to == To::All || !member.port.reflects;
                    ports.iter_mut().filter(is_for).map(|member| u32::from(hand(member))).sum()
                }
            };
            cost += frames * reached.max(1);
        }
        cost
    }

    /// What came for everybody does not go where it would come back from if its sender is not known here: taken for somebody's of the
    /// network, he would be cut off.
    fn keep_here(&self, come: &mut Come) {
        if !self.ports.iter().any(|member| member.port.reflects) {
            return;
        }
        let (count, now) = (come.count, ticks(self.now));
        let sent = come.heads.iter().zip(&come.tags).zip(&mut come.to).take(count);
        for ((head, tag), to) in sent.filter(|(_, to)| **to == To::All) {
            let source = Address::of(addresses(head).source, tag.map_or(0, |tag| tag.vid));
            if self.fdb.find(source, now).is_none() {
                *to = To::Here;
            }
        }
    }

    /// A sink has frames that came through a lane and are kept for it.
    #[inline]
    pub(super) fn keeps(&self) -> bool {
        self.part.as_ref().is_some_and(|part| part.kept.as_ref().is_some_and(|kept| kept.is_out()))
    }

    /// Looks with what the others are finished. What was in a lane that was closed is counted with its senders, and what is taken back of
    /// one whose reader is held.
    pub(super) fn look_at_lanes(&mut self) {
        let BridgePump { ports, in_flight, part, sinks, .. } = self;
        let Some(part) = part else { return };
        for nth in 0..part.lanes() {
            let (finished, closed) = part.finished(nth);
            if let Some(done) = closed {
                in_flight.beyond(*sinks + nth, done).for_each(|number| lose_of(ports, number));
            }
            in_flight.finished(*sinks + nth, finished);
        }
        if part.is_to_take_back() {
            self.take_back();
        }
    }

    /// Takes back what is in lanes whose readers are held.
    #[cold]
    fn take_back(&mut self) {
        let BridgePump { ports, in_flight, part, sinks, .. } = self;
        let Some(part) = part else { return };
        for nth in 0..part.lanes() {
            if let Some(claimed) = part.take_back(nth) {
                in_flight.take_back(*sinks + nth, claimed, |number| lose_of(ports, number));
            }
        }
    }

    /// A turn begins. Looks whether the lanes move in which something is out, however little that is: a source has it back in order, and may
    /// have nothing more to send until it does.
    #[inline]
    pub(super) fn watch_lanes(&mut self) {
        let BridgePump { in_flight, part, sinks, now, .. } = self;
        if let Some(part) = part.as_mut().filter(|_| !in_flight.is_empty()) {
            part.watch(*now, |nth| in_flight.is_read_at(*sinks + nth));
        }
    }

    /// Frames are out in a lane that would be taken back if it did not move.
    pub(super) fn watches_lanes(&self) -> bool {
        let is_out = |nth| self.in_flight.is_read_at(self.sinks + nth);
        !self.in_flight.is_empty() && self.part.as_ref().is_some_and(|part| part.watches(is_out))
    }

    /// Finishes with what came through lanes and is not read any more; how many entries that are.
    pub(super) fn finish_lanes(&mut self) -> u32 {
        let Some(part) = &mut self.part else { return 0 };
        let mut count = 0;
        for nth in 0..part.lanes() {
            let done = self.in_flight.give_back(self.sources + nth);
            part.finish(nth, done as u64);
            count += done as u32;
        }
        count
    }

    /// Tells the others of stations, now and then.
    #[inline]
    pub(super) fn tell_stations(&mut self) {
        if let Some(part) = &mut self.part {
            part.tell_again(&self.fdb, self.stations.ageing(), self.now);
        }
    }

    /// A burst of this turn found no room for all of its frames.
    #[inline]
    pub(super) fn was_short(&mut self) -> bool {
        self.part.as_mut().is_some_and(|part| part.was_short())
    }

    /// Shows the others what was put into lanes and what is finished.
    #[inline]
    pub(super) fn publish_lanes(&mut self) {
        if let Some(part) = &mut self.part {
            part.publish();
        }
    }

    /// A turn of one that ends: takes nothing from its sources, and delivers what is in lanes.
    #[cold]
    pub(super) fn drain(&mut self, lanes: usize, budget: &Budget) -> Polled {
        if let Some(part) = &mut self.part {
            part.end();
            part.waits_from(self.now);
        }
        let cost = (0..lanes).map(|nth| self.serve_lane(nth, budget)).sum::<u32>();
        self.publish();
        let back = self.give_back();
        self.publish_lanes();
        if cost + back == 0 { Polled::Idle } else { Polled::Moved(cost + back) }
    }

    /// Asks to be woken by the others. True: there is something to be done already.
    pub(super) fn arm_lanes(&mut self) -> bool {
        let Some(part) = &mut self.part else { return false };
        let has_come = part.arm();
        // Whoever finishes with something from here on sees that it sleeps.
        let is_back = self.give_back() > 0;
        self.publish_lanes();
        has_come || is_back
    }

    /// All is finished with, what it put into lanes as well as what came through them, `is_done` with the rest: it reads nothing any
    /// more.
    pub(super) fn has_left(&mut self, is_done: bool) -> bool {
        self.publish_lanes();
        let Some(part) = &mut self.part else { return true };
        if is_done && part.is_drained() {
            part.close();
            return true;
        }
        false
    }
}

/// Gives frames to a port whose sink finishes later, out of memory of the part's own. False: nothing there runs.
fn keep(
    to: &mut Member,
    queue: u16,
    load: &Load<'_>,
    now: u64,
    scratch: &mut Scratch,
    kept: &mut Kept,
) -> bool {
    let may = what_may(&to.port.rates.received, load.frames, now);
    let Some((Some(number), sink)) = receiver(to, queue) else { return false };
    if may < load.frames.len() {
        sink.count_drops(DropReason::RateLimit, (load.frames.len() - may) as u64);
        show_lost(sink.counters(), load.behind(may), DropReason::RateLimit);
    }
    let frames = load.frames.get(..may).unwrap_or_default();
    kept.give(number, sink, &Load { frames, ..*load }, scratch);
    true
}

/// A frame of a source, by its number, did not get through its lane.
#[cold]
fn lose_of(ports: &mut [Member], number: usize) {
    let of = ports.iter_mut().rev().find(|member| member.first_source <= number);
    let source = of.and_then(|member| member.port.sources.get_mut(number - member.first_source));
    if let Some((_, source)) = source {
        source.count_drops(DropReason::LaneFull, 1);
    }
}

/// Frames for a port whose receive queue does not run are dropped there.
#[cold]
fn lose(to: &mut Member, queue: u16, load: Load<'_>) {
    let nth = usize::from(queue).checked_rem(to.port.sinks.len());
    if let Some((_, sink)) = nth.and_then(|nth| to.port.sinks.get_mut(nth)) {
        sink.count_drops(DropReason::RxDisabled, load.frames.len() as u64);
        show_lost(sink.counters(), load, DropReason::RxDisabled);
    }
}

/// Shows whoever looks on at a queue frames that were for it and came no further than here.
#[cold]
pub(super) fn show_lost(counters: &QueueCounters, load: Load<'_>, why: DropReason) {
    if counters.is_captured() {
        capture::show(counters, load, Some(why), tsc::cycles());
    }
}
