//! Where a ring goes on after the connection was lost: at the front-end's base, or where we know that it stands.
//!
//! A ring that is stopped in order (GET_VRING_BASE, a reset) has its kept position cleared; the front-end was told it
//! and repeats it. A kept position that is there when a ring starts means that the previous session ended otherwise:
//! the socket broke, or this process was killed. Then
//!
//! - for a split ring, QEMU sends the used index that it finds in the ring;
//! - for a packed ring, it can only repeat what it was told when *it* set the ring up, which is long past.
//!
//! The kept position is trusted over the base only where the ring itself, which the guest and nobody else has had in
//! its hands since, bears witness to it. A guest that set its ring up anew meanwhile, another guest with the same
//! device, a ring at another place or of another size: none of them shows the traces that are looked for, and the
//! front-end's base holds.
//!
//! A process that was killed while it published a burst kept two places: where the ring stood without the burst, and where
//! it stands with it. Of a split ring, `used.idx` is one of them. Of a packed ring, the burst is unpublished if the
//! descriptor at the first place is still available in its lap; used, made available again, or completed by the VMM
//! meanwhile, the ring stands at the second one.
//!
//! | format | witness |
//! | --- | --- |
//! | split | `used.idx` is the kept used index, or that after the burst under way |
//! | packed | the descriptor *at* the position is not used in this lap; going back from it, each was written by a driver and carries its lap's AVAIL bit, until one that this device marked used in that lap, or until one that was made available again, in which case all from the position to there are available |
//!
//! Of a ring that hardware consumed the kept position says where it began, for as long as it did: the front-end's base holds,
//! unless it is 0, which is where QEMU finds its used index.
//!
//! Beside that, DPDK's front-end says base 0 for every split ring that it connects again, and counts on the back-end
//! to look: a split ring whose base is 0 starts at its `used.idx`, if the driver's index fits that.
//!
//! Going back passes over the tails of chains and over buffers that an in-order batch left unmarked. A receive ring is
//! often full, without one used descriptor; then its laps meet at the position and nowhere else. A zeroed ring has no
//! addresses, and a freshly filled one has no used descriptor and its laps meet at its start, so that neither passes
//! for a ring that ran.
//!
//! While no back-end is there, QEMU completes what a guest sends itself, from the place on where it set the ring up. Such
//! descriptors lie ahead of the position, in its lap or the next, and count as available; the ring passes over them when
//! it comes to them.
//!
//! One position cannot be told: that of a full ring in a lap with wrap counter 1 whose last chain (or batch in order)
//! crossed the ring's end, so that nothing before the position was marked used. Its flags are those of a ring that was
//! filled for the first time, and all else in it is the driver's choice. The base holds; it is right for the latter, which
//! is met at each boot of a guest.
//!
//! What a process that was killed had written of a burst behind a first descriptor that it had not is seen by the driver
//! with the successor's first burst, which takes it along. On a receive ring whose frames may span buffers that would put
//! another frame before the rest of one: there the whole of it is given back empty, and the senders' buffers, which are given
//! back after the receiver's, still hold the frames.

pub use self::outstanding::{Outstanding, Untold, ask_for_kicks, outstanding, used_position};

mod outstanding;

use crate::guest::GuestMap;
use crate::layout::Areas;
use crate::position::Position;
use crate::queue::{Format, RingSize};

/// The position at which everything taken is also given back: what was taken and not completed is taken anew.
pub fn rewound(kept: Position) -> Position {
    Position { avail_idx: kept.used_idx, avail_wrap: kept.used_wrap, ..kept }
}

/// Where to start a ring whose front-end says `base`. Areas are by the front-end's addresses.
pub fn decide(
    format: Format,
    size: RingSize,
    map: &GuestMap,
    areas: &Areas<u64>,
    base: Position,
    kept: Option<Position>,
) -> Position {
    match format {
        Format::Split => match (idx(map, areas.driver), idx(map, areas.device)) {
            (Some(avail), Some(used)) => split(size, avail, used, base, kept),
            _ => base,
        },
        Format::Packed => packed(size, kept, |index| descriptor(map, areas.desc, index)).unwrap_or(base),
    }
}

/// True unless a ring that stands here is as one that no driver has put anything into yet.
pub fn is_used(format: Format, map: &GuestMap, areas: &Areas<u64>, at: Position) -> bool {
    if at != Position::START {
        return true;
    }
    match format {
        Format::Split => idx(map, areas.driver) != Some(0),
        Format::Packed => descriptor(map, areas.desc, 0).is_none_or(|first| first.avail),
    }
}

/// Where a split ring starts whose indexes in memory are `avail` and `used`.
fn split(size: RingSize, avail: u16, used: u16, base: Position, kept: Option<Position>) -> Position {
    let restarted = base.used_idx == 0 && avail.wrapping_sub(used) <= size.get();
    if restarted || kept.is_some_and(|kept| kept.used_idx == used || kept.avail_idx == used) {
        Position { avail_idx: used, used_idx: used, ..Position::START }
    } else {
        base
    }
}

/// `idx` of either ring of a split queue.
fn idx(map: &GuestMap, ring_user_addr: u64) -> Option<u16> {
    let mut idx = [0; 2];
    let slice = map.resolve_user(ring_user_addr.checked_add(2)?, 2).ok()?;
    (slice.read(&mut idx) == 2).then(|| u16::from_le_bytes(idx))
}

/// What matters here of a packed descriptor.
#[derive(Debug, Clone, Copy)]
struct Descriptor {
    addr: u64,
    avail: bool,
    used: bool,
}

fn descriptor(map: &GuestMap, ring_user_addr: u64, index: u16) -> Option<Descriptor> {
    let mut bytes = [0; 16];
    let slice = map.resolve_user(ring_user_addr.checked_add(u64::from(index) * 16)?, 16).ok()?;
    if slice.read(&mut bytes) != 16 {
        return None;
    }
    let [a, b, c, d, e, f, g, h, .., low, high] = bytes;
    let flags = u16::from_le_bytes([low, high]);
    Some(Descriptor {
        addr: u64::from_le_bytes([a, b, c, d, e, f, g, h]),
        avail: flags & (1 << 7) != 0,
        used: flags & (1 << 15) != 0,
    })
}

/// Where a packed ring stands, if what was kept of it is witnessed.
fn packed(
    size: RingSize,
    kept: Option<Position>,
    read: impl Fn(u16) -> Option<Descriptor>,
) -> Option<Position> {
    let kept = kept.filter(|kept| kept.used_idx < size.get())?;
    let without = rewound(kept);
    let with = Position { used_idx: kept.avail_idx, used_wrap: kept.avail_wrap, ..kept };
    let first = read(without.used_idx)?;
    let unpublished = first.avail == without.used_wrap && first.used != without.used_wrap;
    Some(if unpublished { without } else { with }).filter(|position| packed_agrees(size, *position, read))
}

/// See the table at the head.
fn packed_agrees(size: RingSize, kept: Position, read: impl Fn(u16) -> Option<Descriptor>) -> bool {
    let size = size.get();
    let Position { used_idx: mut index, used_wrap: mut wrap, .. } = kept;
    if index >= size {
        return false;
    }
    match read(index) {
        Some(next) if !(next.avail == wrap && next.used == wrap) => {}
        _ => return false,
    }
    let mut ran = false;
    for back in 1..=size {
        if index == 0 {
            (index, wrap) = (size, !wrap);
        }
        index -= 1;
        match read(index) {
            // Written by a driver in that lap: used, or a tail.
            Some(past) if past.addr != 0 && past.avail == wrap => {
                if past.used == wrap {
                    return true;
                }
                ran |= !wrap;
            }
            // Made available again, and perhaps completed by the VMM since: what lies ahead must be available up to
            // here, and something must be of a lap that a ring filled for the first time has not.
            Some(past) if past.addr != 0 => {
                let (count, second_lap) = available_from(size, kept, read);
                return (ran || second_lap) && count > size - back;
            }
            _ => return false,
        }
    }
    false
}

/// How many descriptors were made available from a position on, without a gap, and whether one of them was so in a lap
/// whose wrap counter is 0.
fn available_from(size: u16, at: Position, read: impl Fn(u16) -> Option<Descriptor>) -> (u16, bool) {
    let Position { used_idx: mut index, used_wrap: mut wrap, .. } = at;
    let mut second_lap = false;
    for count in 0..size {
        match read(index) {
            Some(next) if next.addr != 0 && next.avail == wrap => second_lap |= !wrap,
            _ => return (count, second_lap),
        }
        index += 1;
        if index == size {
            (index, wrap) = (0, !wrap);
        }
    }
    (size, second_lap)
}

#[cfg(test)]
#[cfg(not(loom))]
mod deaths;

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u16 = 8;

    fn size() -> RingSize {
        RingSize::new(Format::Packed, SIZE.into()).unwrap()
    }

    fn at(index: u16, wrap: bool) -> Position {
        Position { avail_idx: index, avail_wrap: wrap, used_idx: index, used_wrap: wrap }
    }

    /// A ring after `done` chains of `len` descriptors were completed and `ready` more made available.
    fn ring(done: u32, ready: u32, len: u32) -> (Vec<Descriptor>, Position) {
        let mut ring = vec![Descriptor { addr: 0, avail: false, used: false }; SIZE.into()];
        let size = u32::from(SIZE);
        for slot in 0..(done + ready) * len {
            let lap = (slot / size).is_multiple_of(2);
            let used = if slot < done * len && slot.is_multiple_of(len) { lap } else { !lap };
            ring[(slot % size) as usize] = Descriptor { addr: 0x1000, avail: lap, used };
        }
        let slot = done * len;
        (ring, at((slot % size) as u16, (slot / size).is_multiple_of(2)))
    }

    fn agrees(ring: &[Descriptor], kept: Position) -> bool {
        packed_agrees(size(), kept, |index| ring.get(usize::from(index)).copied())
    }

    #[test]
    fn true_position_is_witnessed_and_no_other() {
        for len in 1..=3 {
            for done in 1..40 {
                for ready in 0..=u32::from(SIZE) / len {
                    let (ring, kept) = ring(done, ready, len);
                    // A full one may look as when it was filled first, without a trace of another lap.
                    let as_at_first = ring.iter().all(|slot| slot.avail && !slot.used);
                    assert_eq!(
                        agrees(&ring, kept),
                        !as_at_first,
                        "{done} done, {ready} ready of {len}: {kept:?}"
                    );
                    // Positions behind the true one (a page that lagged) or of another lap are refused. One ahead of
                    // it, in the midst of what is available, would pass; none is ever kept there.
                    let slots = u32::from(SIZE) * 2;
                    let of = |slot: u32| {
                        at((slot % u32::from(SIZE)) as u16, (slot / u32::from(SIZE)).is_multiple_of(2))
                    };
                    for behind in 1..slots - ready * len {
                        let other = of((done * len + slots - behind) % slots);
                        assert!(len > 1 || !agrees(&ring, other), "{done} done, {ready} ready: {other:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn fresh_ring_witnesses_nothing() {
        for ready in 0..=u32::from(SIZE) {
            let (ring, _) = ring(0, ready, 1);
            for index in 0..SIZE {
                for wrap in [false, true] {
                    // The start of a full one is where its laps meet, and its base.
                    let position = at(index, wrap);
                    assert!(
                        position == Position::START || !agrees(&ring, position),
                        "{ready} ready: {position:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn ring_without_one_used_descriptor_is_witnessed_where_its_laps_meet() {
        for done in 1..40 {
            let (ring, kept) = ring(done, u32::from(SIZE), 1);
            assert!(ring.iter().all(|slot| slot.avail != slot.used), "nothing is used");
            // At the start of a lap with wrap counter 1 it looks as when it was filled first: there, so is its base.
            assert_eq!(agrees(&ring, kept), kept != Position::START, "{done} done");
        }
    }

    #[test]
    fn position_is_witnessed_though_the_vmm_completed_what_lies_ahead() {
        for done in 1..40 {
            for ready in 1..=u32::from(SIZE) {
                for from in 0..SIZE {
                    for lap in [true, false] {
                        let (mut ring, kept) = ring(done, ready, 1);
                        let (mut index, mut wrap, mut completed) = (from, lap, 0);
                        while ring[usize::from(index)].avail == wrap && ring[usize::from(index)].used != wrap
                        {
                            ring[usize::from(index)].used = wrap;
                            completed += 1;
                            index += 1;
                            if index == SIZE {
                                (index, wrap) = (0, !wrap);
                            }
                        }
                        let fresh = ring.iter().all(|slot| slot.avail);
                        // Where it began at the position itself, it knows better.
                        let known = (from, lap) == (kept.used_idx, kept.used_wrap);
                        assert!(
                            agrees(&ring, kept) || fresh || known && completed > 0,
                            "{done} done, {ready} ready, {completed} completed from {from}: {kept:?} {ring:?}"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn position_beyond_the_ring_or_unreadable_is_not_witnessed() {
        let (ring, _) = ring(3, 1, 1);
        assert!(!agrees(&ring, at(SIZE, true)));
        assert!(!packed_agrees(size(), at(3, true), |_| None));
    }

    #[test]
    fn split_ring_starts_at_its_base_unless_the_ring_knows_better() {
        let size = RingSize::new(Format::Split, 8).unwrap();
        let to = |idx| Position { avail_idx: idx, used_idx: idx, ..Position::START };
        // As the front-end says, whatever was kept of another life.
        assert_eq!(split(size, 5, 0, to(5), None), to(5));
        assert_eq!(split(size, 5, 0, to(5), Some(to(3))), to(5));
        // A fresh ring.
        assert_eq!(split(size, 0, 0, to(0), Some(to(3))), to(0));
        // Kept and witnessed.
        assert_eq!(split(size, 9, 7, to(3), Some(to(7))), to(7));
        // Connected again with base 0, also across the wrap; and a used index that cannot be.
        assert_eq!(split(size, 3, 65535, to(0), None), to(65535));
        assert_eq!(split(size, 3, 100, to(0), None), to(0));
    }

    #[test]
    fn rewound_position_takes_again_what_was_not_completed() {
        let kept = Position { avail_idx: 9, avail_wrap: false, used_idx: 7, used_wrap: true };
        assert_eq!(rewound(kept), at(7, true));
    }
}
