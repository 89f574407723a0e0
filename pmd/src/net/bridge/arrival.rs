//! Guests that have arrived at a bridge's ports: what their sessions announced is sent as if they had sent it themselves.
//!
//! Part of the pump. Budget: no allocation, no lock, no system call, no panic.

use super::BridgePump;
use super::port::{Member, is_heard, receiver, take_floods};
use crate::counters::DropReason;
use crate::net::Mac;
use crate::net::announce;
use crate::net::fdb::{Address, Learned, ticks};
use crate::net::vlan::Tag;

impl<const PARTS: bool> BridgePump<PARTS> {
    /// One of the ports may have something to announce.
    #[inline(always)]
    pub(super) fn has_news(&self) -> bool {
        match self.part.as_deref().filter(|_| PARTS) {
            Some(part) => part.seen_news != Some(self.news.count()),
            None => self.news.is_there(),
        }
    }

    /// Sends what the ports have to announce; how many copies that came to.
    #[cold]
    pub(super) fn announce(&mut self) -> u32 {
        match self.part.as_deref_mut().filter(|_| PARTS) {
            Some(part) => part.seen_news = Some(self.news.count()),
            None => self.news.take(),
        }
        (0..self.ports.len()).map(|at| self.announce_from(at)).sum()
    }

    /// Sends what one port has to announce as if its guest had, under the same limit. It waits while the port sends nothing.
    fn announce_from(&mut self, at: usize) -> u32 {
        let Some(member) = self.ports.get_mut(at) else { return 0 };
        let Some(nth) = member.port.sources.iter().position(|(_, source)| source.is_usable()) else {
            return 0;
        };
        let Some(mac) = member.port.announcement.take() else { return 0 };
        member.has_announced = true;
        let queue = member.port.sources.get(nth).map_or(0, |(queue, _)| *queue);
        let tag = member.port.vlans.as_ref().and_then(|vlans| vlans.own());
        let is_in_one = member.port.vlans.is_none() || tag.is_some();
        let learned = if is_in_one {
            let vid = tag.map_or(0, |tag| tag.vid);
            self.fdb.learn(Address::of(mac, vid), member.port.slot, ticks(self.now))
        } else {
            Learned::Invalid
        };
        if let Learned::PortFull | Learned::Full = learned {
            self.stations.count_refused();
        }
        if PARTS
            && let Learned::New | Learned::Moved = learned
            && let Some(part) = &mut self.part
        {
            let address = Address::of(mac, tag.map_or(0, |tag| tag.vid));
            let at = self.fdb.seen_at(address).unwrap_or(ticks(self.now));
            part.tell_station(address, member.port.slot, at);
        }
        let is_known = matches!(learned, Learned::Known | Learned::New | Learned::Moved);
        let has_other = |tag: Tag| {
            let own = self.ports.get(at)?.port.vlans.as_ref()?;
            Some(self.dresser.as_ref()?.has_other(tag, own))
        };
        let is_nobodys = tag.is_some_and(|tag| has_other(tag) == Some(false));
        let is_heard_away = PARTS && self.part.as_ref().is_some_and(|part| part.is_heard(tag));
        let lost = if !is_in_one || is_nobodys {
            DropReason::Vlan
        } else if !is_heard(&self.ports, at, queue, tag) && !is_heard_away {
            DropReason::PeerDown
        } else if take_floods(self.ports.get(at), 1, self.now) == 0 {
            DropReason::FloodLimit
        } else {
            let mut copies = give(&mut self.ports, Some(at), !is_known, mac, tag, queue);
            if PARTS && let Some(part) = &mut self.part {
                let (heard, lost) = part.announce(mac, tag, !is_known, queue);
                copies += heard;
                let source = self.ports.get_mut(at).and_then(|member| member.port.sources.get_mut(nth));
                if let Some((_, source)) = source.filter(|_| lost > 0) {
                    source.count_drops(DropReason::LaneFull, lost);
                }
            }
            return copies;
        };
        if let Some((_, source)) = self.ports.get_mut(at).and_then(|member| member.port.sources.get_mut(nth))
        {
            source.count_drops(lost, 1);
        }
        1
    }
}

/// Gives a guest's announcement to everybody of these but port `at`, or to those only from which it cannot come back. How many had it.
pub(super) fn give(
    ports: &mut [Member],
    at: Option<usize>,
    is_here: bool,
    mac: Mac,
    tag: Option<Tag>,
    queue: u16,
) -> u32 {
    let (frame, mut copies) = (announce::frame(mac), 0);
    for (index, member) in ports.iter_mut().enumerate() {
        if Some(index) == at || (member.port.reflects && is_here) {
            continue;
        }
        let Some(with_tag) = tag.map_or(Some(false), |tag| member.carries(tag)) else { continue };
        if let Some((_, sink)) = receiver(member, queue) {
            match tag.filter(|_| with_tag) {
                Some(tag) => sink.give(&announce::tagged(frame, tag.vid)),
                None => sink.give(&frame),
            }
            copies += 1;
        }
    }
    copies
}
