//! Where in a map to look for an address: a table of equal parts of the guest's address space, each with the region that
//! stands at its first byte. Made with its map by a session, read by workers.
//!
//! ```text
//!   parts:     |    0    |    1    |    2    |    3    |  ..
//!   regions:   |-- 0 --|--- 1 ---|- 2 -|    |------- 3 ---
//!   stands at: 0         1         2         2 (a gap)    ..
//! ```
//!
//! Parts are so small that few regions begin in one. A front-end that crowds regions into one part makes its own lookups
//! there as slow as a search through them, which is what each would cost without a table.

/// The table. Never changes.
#[derive(Debug)]
pub(super) struct Directory {
    /// Of the first region.
    base: u64,
    /// A part has this many address bits.
    shift: u32,
    /// For each part the last region that begins at or before its first byte, and one more: the last region.
    stands: Box<[u16]>,
}

impl Directory {
    /// Of regions `(first address, size)` in order of their addresses, none empty and none over another.
    pub(super) fn new(regions: &[(u64, u64)]) -> Directory {
        let (Some(&(base, _)), Some(&(last, size))) = (regions.first(), regions.last()) else {
            return Directory { base: 0, shift: 0, stands: Box::new([]) };
        };
        // The last byte has an address; one past it may not.
        let span = last - base + (size - 1);
        let bits = (regions.len() * PARTS_PER_REGION).next_power_of_two().ilog2();
        let shift = (u64::BITS - span.leading_zeros()).saturating_sub(bits);
        let parts = (span >> shift) + 1;
        let starts = |part: u64| {
            let first = base + (part << shift);
            regions.partition_point(|&(start, _)| start <= first) - 1
        };
        let stands = (0..parts).map(starts).chain([regions.len() - 1]).map(|at| at as u16).collect();
        Directory { base, shift, stands }
    }

    /// The first and the last region that an address may be in; `None`: in none.
    #[inline(always)]
    pub(super) fn regions_near(&self, address: u64) -> Option<(usize, usize)> {
        let part = (address.wrapping_sub(self.base) >> self.shift) as usize;
        let next = self.stands.get(part.wrapping_add(1))?;
        Some((usize::from(*self.stands.get(part)?), usize::from(*next)))
    }
}

/// With so many, most parts have one region or two wherever regions are of one size. Two bytes each.
const PARTS_PER_REGION: usize = 4;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    /// As the map does it.
    fn found(directory: &Directory, regions: &[(u64, u64)], address: u64) -> Option<usize> {
        let (first, last) = directory.regions_near(address)?;
        let at = first + regions[first + 1..=last].partition_point(|&(start, _)| start <= address);
        (address.wrapping_sub(regions[at].0) < regions[at].1).then_some(at)
    }

    fn all(regions: &[(u64, u64)]) {
        let directory = Directory::new(regions);
        let bytes = directory.stands.len() * size_of::<u16>();
        assert!(bytes <= 16 * PARTS_PER_REGION * regions.len().max(1), "{bytes} bytes for {}", regions.len());
        let edges = regions.iter().flat_map(|&(start, size)| {
            let end = start.wrapping_add(size);
            [start, end, start.wrapping_sub(1), end.wrapping_sub(1), start + size / 2]
        });
        for address in edges.chain([0, u64::MAX, 1 << 63]) {
            let wanted = regions.iter().position(|&(start, size)| start <= address && address - start < size);
            assert_eq!(found(&directory, regions, address), wanted, "{address:#x} in {regions:x?}");
        }
    }

    #[test]
    fn every_edge_of_every_layout_is_found_where_it_is() {
        all(&[]);
        all(&[(0, 1)]);
        all(&[(u64::MAX, 1)]);
        all(&[(0, 1), (u64::MAX, 1)]);
        all(&[(0, 0xc000_0000), (1 << 32, 1 << 32)]);
        // Crowded into one part by one far away.
        let crowded: Vec<_> = (0..500).map(|at| (at * 4096, 4096)).chain([(1 << 60, 1 << 60)]).collect();
        all(&crowded);
        // By chance: sizes and gaps of every magnitude, which no guest of today has.
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let mut chance = move || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state
        };
        for _ in 0..2_000 {
            let mut regions = Vec::new();
            let mut at = chance() >> (chance() % 64);
            for _ in 0..chance() % 24 {
                let size = (chance() >> (16 + chance() % 48)).max(1);
                if at.checked_add(size).is_none() {
                    break;
                }
                regions.push((at, size));
                let gap = if chance() % 2 == 0 { 0 } else { chance() >> (16 + chance() % 48) };
                let Some(next) = at.checked_add(size).and_then(|end| end.checked_add(gap)) else { break };
                at = next;
            }
            all(&regions);
        }
    }

    #[test]
    fn regions_of_one_size_are_told_apart_without_a_search() {
        let regions: Vec<_> = (0..509).map(|at| (at << 21, 1 << 21)).collect();
        let directory = Directory::new(&regions);
        for (start, size) in regions {
            let (first, last) = directory.regions_near(start + size / 2).expect("inside");
            assert!(last - first <= 1, "{first} to {last}");
        }
    }
}
