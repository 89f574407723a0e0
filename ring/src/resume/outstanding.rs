//! What a device that is not ours has left of a split ring: hardware that was stopped and cannot say.
//!
//! The ring bears it alone: outstanding is what was made available less what was used (virtio 1.3 §2.7.8). Where chains
//! complete in the order in which they were made available, that is all from the used index on. Where they do not, some of
//! those are done, and others before them are not: these are found by their heads, among the entries that the rings still
//! hold. That is inference: it is made only where the older half of these shows that the device went in order until then, so that
//! a chain which it left behind for that long is not found. Where the rings do not bear it out, nothing is taken at all.
//!
//! A packed ring does not bear it: a chain that was used is marked at its first descriptor alone, and does not say how long it
//! was.
//!
//! Not for the data path: it allocates. Thread: the session's, once nobody touches the used ring any more.

use crate::features::Features;
use crate::guest::GuestMap;
use crate::position::Position;
use crate::queue::QueueConfig;
use crate::split::{FLAGS, avail_at, used_at};
use crate::sync::{Ordering, fence};

/// Where a successor goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outstanding {
    /// Where the ring stands: at its used index.
    pub position: Position,
    /// The first entries from there on, where they are others than the available ring has. Empty: they are not.
    pub first: Vec<u16>,
}

/// It cannot be told what is outstanding.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the ring does not tell which of its buffers were not used yet: {0}")]
pub struct Untold(&'static str);

/// See the module's head. `config` is that of the split ring, whatever its position says.
///
/// # Errors
/// The ring's memory is gone, its indexes are no ring's, or the device completed farther out of order than it bears witness to.
pub fn outstanding(config: &QueueConfig) -> Result<Outstanding, Untold> {
    let (map, size) = (&config.map, config.size.get());
    let (made, avail) = made_available(config)?;
    let used = words(map, config.device_user_addr, used_at(size) as u64)?;
    let word = |bytes: &[u8], at: usize| {
        let bytes = bytes.get(at..at + 2).and_then(|bytes| bytes.try_into().ok());
        bytes.map_or(0, u16::from_le_bytes)
    };
    let done = word(&used, 2);
    let avail_of = |index: u16| word(&avail, avail_at(index % size));
    let used_of = |index: u16| word(&used, used_at(index % size));
    let position = Position { avail_idx: done, used_idx: done, ..Position::START };
    let count = made.wrapping_sub(done);
    if count > size {
        return Err(Untold("its used index is not one of its driver's"));
    }
    if count == 0 || config.features.contains(Features::IN_ORDER) {
        // In order, entries of the used ring may be left out (virtio 1.3 §2.7.9).
        return Ok(Outstanding { position, first: Vec::new() });
    }
    // As far back as there are entries. A ring that never came round has none before its first; where its driver zeroed it, these
    // are alike.
    let begin = made.wrapping_sub(size);
    let known = done.wrapping_sub(begin);
    let alike = |nth: &u16| avail_of(begin.wrapping_add(*nth)) == used_of(begin.wrapping_add(*nth));
    let in_order = (0..known).take_while(alike).count() as u16;
    if in_order == known {
        return Ok(Outstanding { position, first: Vec::new() });
    }
    // Its driver zeroed it, and has not come round.
    let is_first_lap =
        || done <= made && made <= size && (made..size).all(|at| avail_of(at) == 0 && used_of(at) == 0);
    // Since when it is out of order, if it was in order before; or since the ring's first entry.
    let since = match in_order >= known / 2 {
        true => begin.wrapping_add(in_order),
        false if is_first_lap() => 0,
        false => return Err(OUT_OF_ORDER),
    };
    let made_since = (0..made.wrapping_sub(since)).map(|nth| avail_of(since.wrapping_add(nth)));
    let done_since = (0..done.wrapping_sub(since)).map(|nth| used_of(since.wrapping_add(nth)));
    let mut heads = less(size, made_since, done_since).ok_or(OUT_OF_ORDER)?;
    // Mostly they are what the ring has; else from the last one on that was completed out of order.
    let differs = |(nth, head): &(u16, u16)| avail_of(done.wrapping_add(*nth)) != *head;
    let last = (0u16..).zip(heads.iter().copied()).filter(differs).last();
    heads.truncate(last.map_or(0, |(nth, _)| usize::from(nth) + 1));
    Ok(Outstanding { position, first: heads })
}

/// The driver's index, and its ring as it was then: the driver may go on meanwhile. Nothing completes, so that it comes to an end
/// within a ring's size.
fn made_available(config: &QueueConfig) -> Result<(u16, Vec<u8>), Untold> {
    let (map, size) = (&config.map, config.size.get());
    let index = || super::idx(map, config.driver_user_addr).ok_or(GONE);
    let mut made = index()?;
    for _ in 0..=size {
        // Acquire: pairs with the Release of a driver before it stores its index.
        fence(Ordering::Acquire);
        let avail = words(map, config.driver_user_addr, avail_at(size) as u64)?;
        // Acquire: the entries were read before the index is read again.
        fence(Ordering::Acquire);
        let before = std::mem::replace(&mut made, index()?);
        if made == before {
            return Ok((made, avail));
        }
    }
    Err(Untold("its driver's index runs on"))
}

/// Where a split ring stands: at its used index, which its device alone writes. None: its memory is gone.
pub fn used_position(config: &QueueConfig) -> Option<Position> {
    let used = super::idx(&config.map, config.device_user_addr)?;
    Some(Position { avail_idx: used, used_idx: used, ..Position::START })
}

/// Has the driver of a split ring kick for whatever it makes available next, for a device that is not ours and begins at its
/// position: whoever served it before may have said that none are needed. Nobody uses the ring just now.
pub fn ask_for_kicks(config: &QueueConfig) {
    let device = |at: usize, word: u16| {
        let slice = config.map.resolve_user(config.device_user_addr.saturating_add(at as u64), 2);
        // Memory that is gone has no driver.
        let _ = slice.map(|slice| slice.write(&word.to_le_bytes()));
    };
    device(FLAGS, 0);
    if config.features.contains(Features::EVENT_IDX) {
        device(used_at(config.size.get()), config.position.used_idx);
    }
}

/// The heads of `made` that are not in `done`, in order; None: there are others in `done`, or what is left has one twice.
fn less(size: u16, made: impl Iterator<Item = u16>, done: impl Iterator<Item = u16>) -> Option<Vec<u16>> {
    let mut uses = vec![0u16; size.into()];
    for head in done {
        *uses.get_mut(usize::from(head))? += 1;
    }
    let (mut left, mut is_left) = (Vec::new(), vec![false; size.into()]);
    for head in made {
        let (uses, is_left) = (uses.get_mut(usize::from(head))?, is_left.get_mut(usize::from(head))?);
        if *uses > 0 {
            *uses -= 1;
        } else if std::mem::replace(is_left, true) {
            return None;
        } else {
            left.push(head);
        }
    }
    uses.iter().all(|uses| *uses == 0).then_some(left)
}

const OUT_OF_ORDER: Untold = Untold("it completed buffers far out of order, or some that it did not have");
const GONE: Untold = Untold("its memory is gone");

fn words(map: &GuestMap, user_addr: u64, len: u64) -> Result<Vec<u8>, Untold> {
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    let slice = map.resolve_user(user_addr, len).map_err(|_| Untold("it is not in the guest's memory"))?;
    if slice.read(&mut bytes) != bytes.len() || map.is_poisoned() {
        return Err(GONE);
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::chain::Burst;
    use crate::layout::{Areas, Layout};
    use crate::memory::{HostMemory, PageKind};
    use crate::position::PositionPage;
    use crate::queue::{DeviceRing as _, Format, RingSize};

    const SIZE: u16 = 16;

    /// A split ring of a driver and a device that live in the test.
    struct Model {
        config: QueueConfig,
        areas: Areas<u64>,
        made: u16,
        used: u16,
        free: VecDeque<u16>,
        /// Made available and not used, in that order.
        out: Vec<u16>,
        /// How often each of them was overtaken.
        overtaken: Vec<usize>,
    }

    impl Model {
        fn new() -> Model {
            let size = RingSize::new(Format::Split, SIZE.into()).unwrap();
            let layout = Layout::new(Format::Split, size);
            let memory = HostMemory::allocate_on(PageKind::Base, "ring", layout.total.next_multiple_of(4096));
            let memory = memory.unwrap();
            let map = Arc::new(memory.guest_map(0).unwrap());
            let areas = layout.at(memory.address());
            let config = QueueConfig {
                size,
                features: Features::VERSION_1,
                map,
                desc_user_addr: areas.desc,
                driver_user_addr: areas.driver,
                device_user_addr: areas.device,
                position: Position::START,
                keeper: PositionPage::anonymous().unwrap().slot(0).unwrap(),
                skip_used: false,
            };
            Model {
                config,
                areas,
                made: 0,
                used: 0,
                free: (0..SIZE).collect(),
                out: Vec::new(),
                overtaken: Vec::new(),
            }
        }

        fn write(&self, at: u64, word: u16) {
            self.config.map.resolve_user(at, 2).unwrap().write(&word.to_le_bytes());
        }

        /// In order, as far as this.
        fn go_on(&mut self, to: u16) {
            (self.made, self.used) = (to.saturating_sub(100), to.saturating_sub(100));
            while self.made != to {
                self.make();
                self.complete(0, false);
            }
        }

        fn make(&mut self) {
            let Some(head) = self.free.pop_front() else { return };
            // An empty buffer at address 0 is one for this ring's purposes.
            self.write(self.areas.driver + avail_at(self.made % SIZE) as u64, head);
            self.made = self.made.wrapping_add(1);
            self.write(self.areas.driver + 2, self.made);
            self.out.push(head);
            self.overtaken.push(0);
        }

        /// The device completes one of the oldest.
        fn complete(&mut self, ahead: usize, lifo: bool) {
            if self.out.is_empty() {
                return;
            }
            // None is left behind for long.
            let ahead = if self.overtaken[0] >= 3 { 0 } else { ahead.min(self.out.len() - 1) };
            self.overtaken[..ahead].iter_mut().for_each(|times| *times += 1);
            self.overtaken.remove(ahead);
            let head = self.out.remove(ahead);
            self.write(self.areas.device + used_at(self.used % SIZE) as u64, head);
            self.used = self.used.wrapping_add(1);
            self.write(self.areas.device + 2, self.used);
            if lifo { self.free.push_front(head) } else { self.free.push_back(head) }
        }

        /// What a successor takes, in its order.
        fn resumed(&self) -> Result<Vec<u16>, Untold> {
            let Outstanding { position, first } = outstanding(&self.config)?;
            assert_eq!(position.used_idx, self.used);
            let config = QueueConfig { position, ..self.config.clone() };
            let mut ring = config.activate_split().unwrap().with_first(&first).unwrap();
            let mut burst = Burst::new(Arc::clone(&self.config.map));
            let mut taken = Vec::new();
            while ring.peek(&mut burst, 5).unwrap() > 0 {
                let chains = burst.chains().to_vec();
                taken.extend(chains.iter().map(|chain| chain.id));
                ring.consume(&chains);
            }
            Ok(taken)
        }
    }

    proptest! {
        /// A driver that makes anything available at any time, a device that completes a little out of order: the successor
        /// takes exactly what is outstanding, or nothing, also around the ends of the ring and of its indexes.
        #[test]
        fn what_is_outstanding_is_taken_and_nothing_else(
            steps in proptest::collection::vec((any::<bool>(), 0usize..3), 1..300),
            start in prop_oneof![Just(0u16), Just(65_500)],
        ) {
            let mut model = Model::new();
            model.go_on(start);
            for (makes, ahead) in steps {
                // So many are always left behind that the rings hold what went out of order.
                if makes && model.out.len() < usize::from(SIZE) / 2 { model.make() } else { model.complete(ahead, false) }
            }
            if let Ok(taken) = model.resumed() {
                prop_assert_eq!(taken, model.out);
            } else {
                prop_assert!(!model.out.is_empty());
            }
        }

        #[test]
        fn device_that_goes_in_order_can_always_be_followed(
            steps in proptest::collection::vec((any::<bool>(), any::<bool>()), 1..300),
            start in prop_oneof![Just(0u16), Just(65_500)],
        ) {
            let mut model = Model::new();
            model.go_on(start);
            for (makes, lifo) in steps {
                if makes { model.make() } else { model.complete(0, lifo) }
            }
            prop_assert_eq!(model.resumed(), Ok(model.out));
        }
    }

    #[test]
    fn ring_that_cannot_be_is_refused() {
        let mut model = Model::new();
        (0..4).for_each(|_| model.make());
        model.write(model.areas.device + 2, 9);
        assert!(outstanding(&model.config).is_err(), "more used than made available");
        model.write(model.areas.device + 2, 1);
        model.write(model.areas.device + used_at(0) as u64, SIZE);
        assert!(outstanding(&model.config).is_err(), "a head beyond the ring");
        model.write(model.areas.device + used_at(0) as u64, 7);
        assert!(outstanding(&model.config).is_err(), "used and never made available");
        let many = vec![0; usize::from(SIZE) + 1];
        assert!(model.config.clone().activate_split().unwrap().with_first(&many).is_err());
    }
}
