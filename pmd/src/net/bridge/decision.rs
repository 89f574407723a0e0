//! Where each frame of a burst goes: its sender is learned, its receiver looked up.
//!
//! Part of the pump. Budget: no allocation, no lock, no system call, no panic.

use super::part::Part;
use super::port::{BridgePort, Member, carries};
use crate::counters::DropReason;
use crate::net::Mac;
use crate::net::fdb::{Address, Fdb, Learned};
use crate::net::frame::Addresses;
use crate::net::stations::Stations;
use crate::net::vlan::Tag;

/// Where a frame goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// To one port, by its index; or, from [`AWAY`] on, by its slot, where it is another part's.
    Port(u16),
    /// To all others.
    Flood,
    /// To all others from which it cannot come back: its sender is not known to be here, so that what came back of it would be
    /// taken for somebody's of the network.
    FloodHere,
    /// Nowhere.
    Drop(DropReason),
}

/// What a burst's frames are looked up in, and the port that they come from.
pub(super) struct Table<'a, const PARTS: bool> {
    pub(super) by_slot: &'a [Option<u16>],
    pub(super) fdb: &'a mut Fdb,
    pub(super) stations: &'a Stations,
    pub(super) at: usize,
    pub(super) port: &'a BridgePort,
    /// In ticks.
    pub(super) now: u64,
    /// The frame was not learned from before: not one that waited for room in a lane.
    pub(super) learns: bool,
    /// Where there are others.
    pub(super) part: Option<&'a mut Part>,
}

impl<const PARTS: bool> Table<'_, PARTS> {
    /// Learns where the sender of a frame is, and says where the frame goes.
    #[inline]
    pub(super) fn decide(&mut self, ends: Addresses, vid: u16) -> Decision {
        let Table { by_slot, fdb, stations, port, now, learns, part, .. } = self;
        let source = Address::of(ends.source, vid);
        let is_elsewhere = |slot: u16| slot != port.slot && is_there(by_slot, slot);
        if port.reflects && fdb.find(source, *now).is_some_and(is_elsewhere) {
            // Learned, the guest would be cut off: it would be behind the port that reflects.
            return Decision::Drop(DropReason::Reflected);
        }
        if PARTS && !*learns {
            let is_known = fdb.find(source, *now) == Some(port.slot);
            return self.look_up(ends, vid, is_known);
        }
        let learned = fdb.learn(source, port.slot, *now);
        if let Learned::PortFull | Learned::Full = learned {
            stations.count_refused();
        }
        if PARTS
            && let Learned::New | Learned::Moved = learned
            && let Some(part) = part
        {
            // A move may be noted as later than now.
            part.tell_station(source, port.slot, fdb.seen_at(source).unwrap_or(*now));
        }
        let is_known = matches!(learned, Learned::Known | Learned::New | Learned::Moved);
        self.look_up(ends, vid, is_known)
    }

    /// Where a frame goes whose sender is known to be here, or is not.
    #[inline(always)]
    fn look_up(&self, ends: Addresses, vid: u16, is_known: bool) -> Decision {
        let behind = self
            .fdb
            .find(Address::of(ends.destination, vid), self.now)
            .and_then(|slot| self.by_slot.get(usize::from(slot)).copied().flatten());
        match decide(ends.destination, behind, self.at) {
            Decision::Flood if !is_known => Decision::FloodHere,
            decision => decision,
        }
    }

    /// A port, of whichever part, carries frames of a VLAN.
    pub(super) fn carries(&self, ports: &[Member], index: u16, tag: Tag) -> bool {
        if PARTS && index & AWAY != 0 {
            return self.part.as_deref().is_some_and(|part| part.carries(index & !AWAY, tag));
        }
        // What is for a port that is held is told so.
        index == HELD || carries(ports, index, tag)
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

/// The number of a port of another part is its slot and this, which is more than there are ports.
pub(super) const AWAY: u16 = 1 << 15;

/// In place of the number of a port that a worker holds: of none that there is.
pub(super) const HELD: u16 = AWAY - 1;
