//! The suite's arithmetic on series: medians, percentiles, ratios.

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};

/// Lowest, median and highest of a series.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Spread {
    /// Median: of an even number the mean of the middle two.
    pub median: f64,
    /// Lowest.
    pub low: f64,
    /// Highest.
    pub high: f64,
}

impl Spread {
    /// Of a series; None of an empty one.
    pub fn of(series: &[f64]) -> Option<Spread> {
        let mut sorted = series.to_vec();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        let upper = *sorted.get(middle)?;
        let median = match sorted.get(middle.wrapping_sub(1)) {
            Some(lower) if sorted.len().is_multiple_of(2) => (lower + upper) / 2.0,
            _ => upper,
        };
        Some(Spread { median, low: *sorted.first()?, high: *sorted.last()? })
    }

    /// All three by a factor.
    #[must_use]
    pub fn times(self, factor: f64) -> Spread {
        Spread { median: self.median * factor, low: self.low * factor, high: self.high * factor }
    }
}

/// Ours to the peer's, from series of rounds taken in turns: the ratio of the medians, and between which bounds it lies
/// when any half of either series is left out (the ratios of lower to upper quartile and of upper to lower).
pub fn ratio(ours: &[f64], peer: &[f64]) -> Option<Spread> {
    let (a, b) = (Spread::of(ours)?, Spread::of(peer)?);
    if b.median <= 0.0 {
        return None;
    }
    let bound = |over: f64, under: f64| if under > 0.0 { over / under } else { f64::INFINITY };
    Some(Spread {
        median: a.median / b.median,
        low: bound(quantile(ours, 0.25)?, quantile(peer, 0.75)?),
        high: bound(quantile(ours, 0.75)?, quantile(peer, 0.25)?),
    })
}

/// Ours to the peer's, from pairs measured right after each other: the median of their ratios, and its quartiles. None
/// if the peer came to nothing in any of them, or there are none.
pub fn paired_ratio(pairs: impl Iterator<Item = (f64, f64)>) -> Option<Spread> {
    let ratios = pairs.map(|(ours, peer)| (peer > 0.0).then(|| ours / peer)).collect::<Option<Vec<f64>>>()?;
    Some(Spread {
        median: quantile(&ratios, 0.5)?,
        low: quantile(&ratios, 0.25)?,
        high: quantile(&ratios, 0.75)?,
    })
}

/// A quantile of a series from 0 to 1, linear between neighbours.
pub fn quantile(series: &[f64], q: f64) -> Option<f64> {
    let mut sorted = series.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = q.clamp(0.0, 1.0) * (sorted.len().checked_sub(1)?) as f64;
    let (below, above) = (*sorted.get(at.floor() as usize)?, *sorted.get(at.ceil() as usize)?);
    Some(below + (above - below) * at.fract())
}

/// Percentiles of a latency, in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latency {
    /// Frames measured.
    pub count: u64,
    /// Half were as fast.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// 99.9 %.
    pub p999: u64,
    /// 99.99 %.
    pub p9999: u64,
    /// The slowest.
    pub max: u64,
}

impl Latency {
    /// Of a histogram in cycles of a clock of `hertz`.
    pub fn of(cycles: &Histogram<u64>, hertz: u64) -> Latency {
        let ns = |cycles: u64| (u128::from(cycles) * 1_000_000_000 / u128::from(hertz.max(1))) as u64;
        let at = |quantile| ns(cycles.value_at_quantile(quantile));
        Latency {
            count: cycles.len(),
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: ns(cycles.max()),
        }
    }
}

#[cfg(test)]
mod tests {
    use ringway_guest::lane::histogram;

    use super::*;

    #[test]
    fn median_of_odd_and_even_series() {
        assert_eq!(Spread::of(&[3.0, 1.0, 2.0]), Some(Spread { median: 2.0, low: 1.0, high: 3.0 }));
        assert_eq!(Spread::of(&[4.0, 1.0, 2.0, 3.0]).map(|spread| spread.median), Some(2.5));
        assert_eq!(Spread::of(&[7.0]), Some(Spread { median: 7.0, low: 7.0, high: 7.0 }));
        assert_eq!(Spread::of(&[]), None);
    }

    #[test]
    fn ratio_is_that_of_the_medians() {
        let ratio = ratio(&[30.0, 10.0, 20.0], &[10.0, 9.0, 11.0]).unwrap();
        assert!((ratio.median - 2.0).abs() < 1e-12);
        // Quartiles 15 and 25 over 10.5 and 9.5.
        assert!((ratio.low - 15.0 / 10.5).abs() < 1e-12 && (ratio.high - 25.0 / 9.5).abs() < 1e-12);
    }

    #[test]
    fn paired_ratio_is_the_median_of_ratios_not_the_ratio_of_medians() {
        // The machine became four times slower for both: 1.5, 1.5, 2.0, 1.0, 1.5.
        let pairs = [(15.0, 10.0), (12.0, 8.0), (4.0, 2.0), (2.0, 2.0), (3.0, 2.0)];
        let ratio = paired_ratio(pairs.into_iter()).unwrap();
        assert_eq!((ratio.median, ratio.low, ratio.high), (1.5, 1.5, 1.5));
        assert_eq!(paired_ratio([(1.0, 0.0)].into_iter()), None);
        assert_eq!(paired_ratio([].into_iter()), None);
    }

    #[test]
    fn ratio_to_nothing_is_none() {
        assert_eq!(ratio(&[1.0], &[]), None);
        assert_eq!(ratio(&[], &[1.0]), None);
        assert_eq!(ratio(&[1.0], &[0.0]), None);
    }

    #[test]
    fn quantiles_of_a_known_series() {
        let series: Vec<f64> = (0..=100).map(f64::from).collect();
        assert_eq!(quantile(&series, 0.99), Some(99.0));
        assert_eq!(quantile(&[1.0, 2.0], 0.5), Some(1.5));
        assert_eq!(quantile(&[], 0.5), None);
    }

    #[test]
    fn percentiles_of_a_known_histogram() {
        let mut cycles = histogram();
        (1..=10_000u64).for_each(|value| cycles.record(value * 10).unwrap());
        // 10 cycles a nanosecond: 1 to 10,000 ns, to three digits.
        let latency = Latency::of(&cycles, 10_000_000_000);
        let near = |found: u64, wanted: u64| found.abs_diff(wanted) * 1000 <= wanted;
        assert_eq!(latency.count, 10_000);
        assert!(near(latency.p50, 5000) && near(latency.p90, 9000) && near(latency.p99, 9900), "{latency:?}");
        assert!(near(latency.p999, 9990) && near(latency.max, 10_000), "{latency:?}");
    }
}
