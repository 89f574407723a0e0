//! How much was moved at a time: counts by size, written by one thread and read by any.
//!
//! A bucket for each power of two, which it includes: 1, 2, up to 4, up to 8. Counts only grow, and no reader takes anything from
//! another.

use crate::account::Counter;

/// Counts of bursts by how many units each moved.
#[derive(Debug, Default)]
pub struct Sizes([Counter; BUCKETS]);

impl Sizes {
    /// Adds a burst. Called by one thread: no locked instruction.
    #[inline]
    pub fn add(&self, units: u64) {
        if let Some(bucket) = self.0.get(bucket_of(units)) {
            bucket.add(1);
        }
    }

    /// How many bursts there were.
    pub fn count(&self) -> u64 {
        self.0.iter().map(Counter::read).sum()
    }

    /// A copy.
    pub fn snapshot(&self) -> BurstSizes {
        BurstSizes(self.0.each_ref().map(Counter::read))
    }
}

/// What [`Sizes`] stood at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BurstSizes([u64; BUCKETS]);

impl BurstSizes {
    /// How many bursts.
    pub fn count(&self) -> u64 {
        self.0.iter().sum()
    }

    /// Of each bucket its largest size, and how many bursts are in it or a smaller one. The last has no bound: it holds all that is
    /// larger, too.
    pub fn at_most(&self) -> impl Iterator<Item = (u64, u64)> {
        let mut seen = 0;
        self.0.iter().enumerate().map(move |(bucket, count)| {
            seen += count;
            (1 << bucket, seen)
        })
    }

    /// So many thousandths moved at most this many units, up to the next power of two; 0 of nothing.
    pub fn per_mille(&self, thousandths: u64) -> u64 {
        let rank = (u128::from(self.count()) * u128::from(thousandths)).div_ceil(1000);
        if rank == 0 {
            return 0;
        }
        self.at_most().find(|(_, seen)| u128::from(*seen) >= rank).map_or(0, |(size, _)| size)
    }
}

/// The bucket of a size: the least power of two that is as large.
#[inline]
fn bucket_of(units: u64) -> usize {
    let bits = u64::BITS - units.saturating_sub(1).leading_zeros();
    (bits as usize).min(BUCKETS - 1)
}

/// Up to 1,024, and more.
const BUCKETS: usize = 12;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_is_counted_with_the_least_power_of_two_that_is_as_large() {
        let bucket = |units| bucket_of(units);
        assert_eq!([0, 1, 2, 3, 4, 5, 8, 9, 32, 33].map(bucket), [0, 0, 1, 2, 2, 3, 3, 4, 5, 6]);
        assert_eq!([1024, 1025, u64::MAX].map(bucket), [10, 11, 11]);
    }

    #[test]
    fn what_is_told_of_sizes_is_never_too_small() {
        let sizes = Sizes::default();
        assert_eq!(sizes.snapshot().per_mille(500), 0);
        for units in [1, 1, 20, 32, 64] {
            sizes.add(units);
        }
        let told = sizes.snapshot();
        assert_eq!((told.count(), sizes.count()), (5, 5));
        assert_eq!((told.per_mille(400), told.per_mille(500), told.per_mille(1000)), (1, 32, 64));
        let up_to_32: Vec<_> = told.at_most().take(6).collect();
        assert_eq!(up_to_32, [(1, 2), (2, 2), (4, 2), (8, 2), (16, 2), (32, 4)]);
    }
}
