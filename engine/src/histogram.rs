//! How long things took: counts by length of time, written by one thread and read by any.
//!
//! Eight buckets an octave: what is read of it is at most an eighth too long. Counts only grow, and no reader takes anything from
//! another. It knows no unit of time but its writer's cycles: whoever shows it turns these into seconds.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::account::Counter;

/// Counts by cycles of a worker's clock.
pub struct Histogram {
    buckets: [Counter; BUCKETS],
    /// Of all of them together.
    cycles: Counter,
    /// The longest.
    longest: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram {
            buckets: std::array::from_fn(|_| Counter::default()),
            cycles: Counter::default(),
            longest: AtomicU64::new(0),
        }
    }
}

impl fmt::Debug for Histogram {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let times = self.snapshot();
        let (count, longest) = (times.count(), times.longest);
        f.debug_struct("Histogram").field("count", &count).field("longest", &longest).finish_non_exhaustive()
    }
}

impl Histogram {
    /// Adds `count` things that each took so many cycles. Called by one thread: no locked instruction.
    #[inline]
    pub fn add(&self, cycles: u64, count: u64) {
        if let Some(bucket) = self.buckets.get(bucket_of(cycles)) {
            bucket.add(count);
        }
        self.cycles.add(cycles.wrapping_mul(count));
        if cycles > self.longest.load(Ordering::Relaxed) {
            self.longest.store(cycles, Ordering::Relaxed);
        }
    }

    /// What it says.
    pub fn snapshot(&self) -> Times {
        Times {
            buckets: self.buckets.iter().map(Counter::read).collect(),
            cycles: self.cycles.read(),
            longest: self.longest.load(Ordering::Relaxed),
        }
    }
}

/// What a [`Histogram`] stood at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Times {
    buckets: Vec<u64>,
    cycles: u64,
    longest: u64,
}

impl Times {
    /// How many things.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// All of them together, in cycles.
    pub fn cycles(&self) -> u64 {
        self.cycles
    }

    /// For each of some lengths of time, in cycles and ascending, how many things are known to have taken at most so long. One
    /// that took less than an eighth less may be counted with the next.
    pub fn at_most<'a>(
        &'a self,
        bounds: impl IntoIterator<Item = u64> + 'a,
    ) -> impl Iterator<Item = u64> + 'a {
        let mut buckets = self.buckets.iter().enumerate().peekable();
        let mut seen = 0;
        bounds.into_iter().map(move |bound| {
            while let Some((_, count)) = buckets.next_if(|(bucket, _)| end_of(*bucket) <= bound) {
                seen += count;
            }
            seen
        })
    }

    /// The longest, in cycles.
    pub fn longest(&self) -> u64 {
        self.longest
    }

    /// So many thousandths took at most this many cycles; 0 of nothing.
    pub fn per_mille(&self, thousandths: u64) -> u64 {
        let rank = (u128::from(self.count()) * u128::from(thousandths)).div_ceil(1000);
        let mut seen = 0u128;
        for (bucket, count) in self.buckets.iter().enumerate() {
            seen += u128::from(*count);
            if *count > 0 && seen >= rank {
                return end_of(bucket).min(self.longest);
            }
        }
        0
    }
}

/// The bucket of a time: its octave, and which eighth of it.
#[inline]
fn bucket_of(cycles: u64) -> usize {
    let cycles = cycles.clamp(FIRST, LAST);
    let octave = cycles.ilog2();
    let eighth = cycles >> (octave - EIGHTHS) & (PER_OCTAVE as u64 - 1);
    (octave - FIRST.ilog2()) as usize * PER_OCTAVE + eighth as usize
}

/// The longest time of a bucket.
fn end_of(bucket: usize) -> u64 {
    let octave = bucket / PER_OCTAVE + FIRST.ilog2() as usize;
    let eighth = (bucket % PER_OCTAVE) as u64;
    (1 << octave) + ((eighth + 1) << (octave - EIGHTHS as usize)) - 1
}

const EIGHTHS: u32 = 3;
const PER_OCTAVE: usize = 1 << EIGHTHS;
/// Less counts as this: some 20 ns.
const FIRST: u64 = 1 << 6;
/// More counts as this: some minutes.
const LAST: u64 = (1 << 39) - 1;
const BUCKETS: usize = (39 - 6) * PER_OCTAVE;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_is_in_the_bucket_that_holds_it() {
        for cycles in (6..39).flat_map(|octave| [0, 1, 7, 100].map(|more| (1u64 << octave) + more)) {
            let bucket = bucket_of(cycles);
            assert!(end_of(bucket) >= cycles && end_of(bucket) - cycles <= cycles / 8, "{cycles}");
            assert!(bucket == 0 || end_of(bucket - 1) < cycles, "{cycles}");
        }
        assert_eq!((bucket_of(0), bucket_of(u64::MAX)), (0, BUCKETS - 1));
    }

    #[test]
    fn percentiles_are_an_eighth_too_long_at_most() {
        let histogram = Histogram::default();
        assert_eq!(histogram.snapshot().per_mille(500), 0);
        for cycles in 1..=1000 {
            histogram.add(cycles * 1000, 1);
        }
        let times = histogram.snapshot();
        assert_eq!((times.count(), times.longest()), (1000, 1_000_000));
        assert_eq!(times.cycles(), (1..=1000).map(|cycles| cycles * 1000).sum::<u64>());
        for (bound, told) in [900, 500_000, 1_000_000, 2_000_000]
            .into_iter()
            .zip(times.at_most([900, 500_000, 1_000_000, 2_000_000]))
        {
            let exact = (bound / 1000).min(1000);
            assert!((exact - exact / 8..=exact).contains(&told), "{bound}: {told}");
        }
        for (thousandths, exact) in [(500, 500_000), (990, 990_000), (999, 999_000), (1000, 1_000_000)] {
            let told = times.per_mille(thousandths);
            assert!((exact..=exact + exact / 8).contains(&told), "{thousandths}: {told}");
        }
    }
}
