//! When sleeping pumps must be looked at again: a binary heap over those few that have a deadline, indexed by slot so
//! that one can be taken out early. Allocated once; owned by one worker; times in cycles.

/// The deadlines of slots `0..slots`, at most one each.
#[derive(Debug)]
pub(crate) struct Deadlines {
    /// The heap: the earliest first. Never more entries than slots, so it never grows beyond its first allocation.
    heap: Vec<(u64, u32)>,
    /// Where in the heap each slot's entry is, or `NONE`.
    place: Box<[u32]>,
}

impl Deadlines {
    pub(crate) fn new(slots: usize) -> Deadlines {
        Deadlines { heap: Vec::with_capacity(slots), place: vec![NONE; slots].into_boxed_slice() }
    }

    /// Sets the deadline of a slot, in place of the one it had.
    pub(crate) fn set(&mut self, slot: u32, at: u64) {
        self.clear(slot);
        let index = self.heap.len();
        self.heap.push((at, slot));
        self.place[slot as usize] = index as u32;
        self.rise(index);
    }

    /// Takes the deadline of a slot back, if it has one.
    pub(crate) fn clear(&mut self, slot: u32) {
        let index = self.place[slot as usize];
        if index == NONE {
            return;
        }
        self.place[slot as usize] = NONE;
        let index = index as usize;
        self.heap.swap_remove(index);
        if index < self.heap.len() {
            self.place[self.heap[index].1 as usize] = index as u32;
            self.rise(index);
            self.sink(index);
        }
    }

    /// Takes a slot whose deadline is `now` or earlier.
    pub(crate) fn expired(&mut self, now: u64) -> Option<u32> {
        let (at, slot) = *self.heap.first()?;
        if at > now {
            return None;
        }
        self.clear(slot);
        Some(slot)
    }

    /// The earliest deadline, `u64::MAX` without any.
    #[inline]
    pub(crate) fn earliest(&self) -> u64 {
        self.heap.first().map_or(u64::MAX, |entry| entry.0)
    }

    fn rise(&mut self, mut index: usize) {
        while index > 0 {
            let parent = (index - 1) / 2;
            if self.heap[parent].0 <= self.heap[index].0 {
                return;
            }
            self.swap(index, parent);
            index = parent;
        }
    }

    fn sink(&mut self, mut index: usize) {
        loop {
            let mut least = index;
            for child in [2 * index + 1, 2 * index + 2] {
                if child < self.heap.len() && self.heap[child].0 < self.heap[least].0 {
                    least = child;
                }
            }
            if least == index {
                return;
            }
            self.swap(index, least);
            index = least;
        }
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        for index in [a, b] {
            self.place[self.heap[index].1 as usize] = index as u32;
        }
    }
}

const NONE: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeMap;

    const SLOTS: u32 = 24;

    #[derive(Debug, Clone)]
    enum Op {
        Set(u32, u64),
        Clear(u32),
        Expire(u64),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            (0..SLOTS, 0..100u64).prop_map(|(slot, at)| Op::Set(slot, at)),
            (0..SLOTS).prop_map(Op::Clear),
            (0..100u64).prop_map(Op::Expire),
        ]
    }

    proptest! {
        #[test]
        fn any_sequence_agrees_with_a_map(ops in prop::collection::vec(op(), 0..200)) {
            let mut deadlines = Deadlines::new(SLOTS as usize);
            let capacity = deadlines.heap.capacity();
            let mut oracle: BTreeMap<u32, u64> = BTreeMap::new();
            for op in ops {
                match op {
                    Op::Set(slot, at) => {
                        deadlines.set(slot, at);
                        oracle.insert(slot, at);
                    }
                    Op::Clear(slot) => {
                        deadlines.clear(slot);
                        oracle.remove(&slot);
                    }
                    Op::Expire(now) => {
                        let mut last = 0;
                        while let Some(slot) = deadlines.expired(now) {
                            let at = oracle.remove(&slot);
                            prop_assert!(at.is_some_and(|at| at <= now && at >= last));
                            last = at.unwrap_or(0);
                        }
                        prop_assert!(oracle.values().all(|at| *at > now));
                    }
                }
                prop_assert_eq!(deadlines.earliest(), oracle.values().copied().min().unwrap_or(u64::MAX));
                prop_assert_eq!(deadlines.heap.capacity(), capacity);
            }
        }
    }
}
