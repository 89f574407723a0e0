//! The ports of a bridge's pump, as it has them, and what gives frames to one.
//!
//! Part of the pump. Budget: no allocation, no lock, no system call, no panic.

use std::sync::Arc;

use ringway_ring::tsc;

use crate::counters::DropReason;
use crate::limit::{Limit, Limits};
use crate::net::announce::Announcement;
use crate::net::capture;
use crate::net::frame::Frame;
use crate::net::in_flight::InFlight;
use crate::net::rates::PortRates;
use crate::net::scratch::Scratch;
use crate::net::side::{Load, Sink, Source};
use crate::net::vlan::{Dresser, Tag, Vlans};

/// One port's running queues, as the pump has them.
#[derive(Debug)]
pub struct BridgePort {
    /// Its number in the forwarding database: it stays when the pump is made anew.
    pub slot: u16,
    /// Transmit queues, each with its number.
    pub sources: Vec<(u16, Box<dyn Source>)>,
    /// Enabled receive queues, each with its number.
    pub sinks: Vec<(u16, Box<dyn Sink>)>,
    /// What it may send to everybody; None: nothing bounds it.
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

/// A port, and what the pump knows of it beside.
#[derive(Debug)]
pub(super) struct Member {
    pub(super) port: BridgePort,
    /// The number of its first source among those of all ports.
    pub(super) first_source: usize,
    /// By sink: its number among those that finish later, if it is one.
    pub(super) later: Vec<Option<usize>>,
    /// Frames of its sources are done with that are not published yet.
    pub(super) is_served: bool,
    /// Its sinks were given frames that are not published yet.
    pub(super) is_given: bool,
    /// Something was published of which it was not told how long it took.
    pub(super) is_untimed: bool,
    /// It was told that its guest has arrived.
    pub(super) has_announced: bool,
}

/// Frames of one source, which are numbered from `first` on.
#[derive(Clone, Copy)]
pub(super) struct Origin {
    pub(super) source: usize,
    pub(super) first: u64,
}

impl Member {
    /// What a sender's queue feeds finishes later.
    pub(super) fn finishes_later(&self, queue: u16) -> bool {
        let nth = usize::from(queue).checked_rem(self.port.sinks.len());
        nth.and_then(|nth| self.later.get(nth).copied().flatten()).is_some()
    }

    /// Whether frames of a VLAN go there, and with a tag.
    pub(super) fn carries(&self, tag: Tag) -> Option<bool> {
        self.port.vlans.as_ref()?.carries(tag)
    }
}

/// A port carries frames of a VLAN.
pub(super) fn carries(ports: &[Member], index: u16, tag: Tag) -> bool {
    ports.get(usize::from(index)).is_some_and(|member| member.carries(tag).is_some())
}

/// Frames as a port gets them; None: it does not carry their VLAN. Without a tag, they are as they are.
#[inline(always)]
pub(super) fn as_for<'a>(
    to: &Member,
    load: Load<'a>,
    tag: Option<Tag>,
    dresser: &'a mut Option<Box<Dresser>>,
) -> Option<Load<'a>> {
    let Some(tag) = tag else { return Some(load) };
    let with_tag = to.carries(tag)?;
    Some(dresser.as_mut()?.dress(load, tag, with_tag))
}

/// True if a frame of port `at` to everybody would reach somebody of these.
pub(super) fn is_heard(ports: &[Member], at: usize, queue: u16, tag: Option<Tag>) -> bool {
    let is_other =
        |(index, to): &(usize, &Member)| *index != at && tag.is_none_or(|tag| to.carries(tag).is_some());
    let mut others = ports.iter().enumerate().filter(is_other);
    others.any(|(_, to)| {
        let nth = usize::from(queue).checked_rem(to.port.sinks.len());
        nth.and_then(|nth| to.port.sinks.get(nth)).is_some_and(|(_, sink)| sink.is_usable())
    })
}

/// How many of so many frames a port may send to everybody now.
pub(super) fn take_floods(from: Option<&Member>, frames: usize, now: u64) -> usize {
    let flood = from.and_then(|member| member.port.flood.as_ref()).filter(|flood| flood.per_second() > 0);
    flood.map_or(frames, |flood| (0..frames).take_while(|_| flood.take(now)).count())
}

/// How many of these frames a port may be given now.
#[inline(always)]
pub(super) fn what_may(received: &Limits, frames: &[Frame], now: u64) -> usize {
    if received.are_none() { frames.len() } else { received.admit(frames.iter().map(bits_of), now) }
}

pub(super) fn bits_of(frame: &Frame) -> u64 {
    u64::from(frame.len) * 8
}

/// Gives frames to a port, which keeps what it can. False: nothing there runs.
pub(super) fn hand_over(
    to: &mut Member,
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
        if sink.counters().is_captured() {
            capture::show(sink.counters(), load.behind(may), Some(DropReason::RateLimit), tsc::cycles());
        }
    }
    let load = Load { frames: load.frames.get(..may).unwrap_or_default(), ..load };
    let Some(number) = later else {
        sink.carry_or_drop(load, scratch);
        return true;
    };
    // As many as may be out at one sink.
    let room = in_flight.room_at(number).min(load.frames.len());
    let (now, beyond) = load.frames.split_at_checked(room).unwrap_or_default();
    let carried = sink.carry_or_drop(Load { frames: now, ..load }, scratch);
    let lost = beyond.iter().filter(|frame| frame.dropped.is_none()).count();
    if lost > 0 {
        sink.count_drops(DropReason::NoRxBuffer, lost as u64);
        if sink.counters().is_captured() {
            capture::show(sink.counters(), load.behind(room), Some(DropReason::NoRxBuffer), tsc::cycles());
        }
    }
    for (mark, frame) in scratch.marks.iter().take(carried).zip(from.first..) {
        in_flight.read_by(number, *mark, from.source, frame);
    }
    true
}

/// Gives frames to everybody of these but port `at`, or to those only from which they cannot come back. How many had them.
#[inline(always)]
#[expect(clippy::too_many_arguments, reason = "what a pump has apart while it carries a burst")]
pub(super) fn flood(
    (ports, dresser): (&mut [Member], &mut Option<Box<Dresser>>),
    at: usize,
    is_here: bool,
    (queue, tag): (u16, Option<Tag>),
    load: Load<'_>,
    from: Origin,
    now: u64,
    (scratch, out): (&mut Scratch, &mut InFlight),
) -> u32 {
    let is_for = |(index, to): &(usize, &mut Member)| *index != at && (!is_here || !to.port.reflects);
    let mut reached = 0;
    for (_, to) in ports.iter_mut().enumerate().filter(is_for) {
        if let Some(load) = as_for(to, load, tag, dresser) {
            reached += u32::from(hand_over(to, queue, load, from, now, (scratch, out)));
        }
    }
    reached
}

/// The receive queue of a port that a sender's queue feeds, if it runs: queue i feeds queue i mod n. With its number, if it
/// finishes later. It is to be published then.
#[inline]
pub(super) fn receiver(to: &mut Member, queue: u16) -> Option<(Option<usize>, &mut dyn Sink)> {
    let nth = usize::from(queue).checked_rem(to.port.sinks.len())?;
    to.is_given = true;
    let later = to.later.get(nth).copied().flatten();
    let (_, sink) = to.port.sinks.get_mut(nth)?;
    sink.is_usable().then_some((later, &mut **sink))
}
