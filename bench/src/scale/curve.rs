//! A rate over a count: what each point came to, in absolute terms and beside the first.

use serde::{Deserialize, Serialize};

use super::ScaleError;
use super::load::Round;
use crate::stats::{Spread, quantile};

/// A curve.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Curve {
    /// What is counted: `idle devices`, `regions`, ..
    pub over: String,
    /// By count, ascending; the others are related to the first.
    pub points: Vec<Point>,
}

/// One count.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Point {
    /// How many there were.
    pub count: usize,
    /// Its rounds.
    pub rounds: Vec<Round>,
    /// Throughput over that of the first point in the same pass over all counts, since the host's moods change between
    /// passes: median and quartiles.
    pub ratio: Option<Spread>,
    /// The worker's cycles for each packet over those at the first point, likewise. It tells of a cost that throughput
    /// hides as long as the guests are the slower side.
    pub cost_ratio: Option<Spread>,
    /// Frames lost, damaged or doubled in all rounds.
    pub lost: i64,
}

impl Point {
    /// Throughput over its rounds.
    pub fn mpps(&self) -> Option<Spread> {
        self.spread(|round| round.mpps)
    }

    /// Anything of its rounds.
    pub fn spread(&self, of: impl Fn(&Round) -> f64) -> Option<Spread> {
        Spread::of(&self.rounds.iter().map(of).collect::<Vec<_>>())
    }

    /// Slices that counted, and those that were discarded.
    pub fn slices(&self) -> (usize, usize) {
        self.rounds
            .iter()
            .fold((0, 0), |(kept, discarded), round| (kept + round.slices, discarded + round.discarded))
    }
}

impl Curve {
    /// Measures every count in turns, there and back, `rounds` times. `round` is given the count's place in the list.
    pub fn measure(
        over: &str,
        counts: &[usize],
        rounds: u32,
        mut round: impl FnMut(usize) -> Result<Round, ScaleError>,
    ) -> Result<Curve, ScaleError> {
        let mut series = vec![Vec::new(); counts.len()];
        for place in turns(counts.len(), rounds) {
            series[place].push(round(place)?);
        }
        let mut points: Vec<Point> = counts
            .iter()
            .zip(series)
            .map(|(count, rounds)| Point { count: *count, rounds, ratio: None, cost_ratio: None, lost: 0 })
            .collect();
        let first = points.first().map(|point| point.rounds.clone()).unwrap_or_default();
        for point in &mut points {
            point.ratio = paired(&point.rounds, &first, |round| round.mpps);
            point.cost_ratio = paired(&point.rounds, &first, |round| round.cycles_per_packet);
        }
        Ok(Curve { over: over.to_owned(), points })
    }
}

/// Ratios of the rounds of two points, each to the other's round of the same pass: median and quartiles, so that a pass
/// in which the mood changed does not stand for the others.
fn paired(rounds: &[Round], first: &[Round], of: impl Fn(&Round) -> f64) -> Option<Spread> {
    let pairs = rounds.iter().zip(first).filter(|(_, first)| of(first) > 0.0);
    let ratios: Vec<f64> = pairs.map(|(round, first)| of(round) / of(first)).collect();
    let (low, high) = (quantile(&ratios, 0.25)?, quantile(&ratios, 0.75)?);
    Spread::of(&ratios).map(|spread| Spread { low, high, ..spread })
}

/// The order of measuring: 0 1 2, 2 1 0, 0 1 2, ..
pub(crate) fn turns(places: usize, rounds: u32) -> impl Iterator<Item = usize> {
    (0..rounds).flat_map(move |round| {
        (0..places).map(move |place| if round % 2 == 0 { place } else { places - 1 - place })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_pass_of_another_mood_is_outside_the_quartiles() {
        let round =
            |mpps| Round { mpps, cycles_per_packet: 1.0, packets_per_burst: 1.0, slices: 1, discarded: 0 };
        let first = [1.0; 5].map(round);
        let other = [1.0, 9.0, 1.0, 2.0, 2.0].map(round);
        let spread = paired(&other, &first, |round| round.mpps).unwrap();
        assert_eq!(spread, Spread { median: 2.0, low: 1.0, high: 2.0 });
    }

    #[test]
    fn turns_go_there_and_back() {
        assert_eq!(turns(3, 3).collect::<Vec<_>>(), [0, 1, 2, 2, 1, 0, 0, 1, 2]);
        assert_eq!(turns(2, 2).collect::<Vec<_>>(), [0, 1, 1, 0]);
    }

    #[test]
    fn points_are_related_to_the_first_of_the_same_pass() {
        let mut calls = Vec::new();
        let curve = Curve::measure("things", &[1, 10], 3, |place| {
            // The host is three times as fast in the last pass.
            let mood = if calls.len() >= 4 { 3.0 } else { 1.0 };
            calls.push(place);
            let mpps = if place == 0 { 10.0 * mood } else { 5.0 * mood };
            let cycles_per_packet = if place == 0 { 100.0 / mood } else { 150.0 / mood };
            Ok(Round { mpps, cycles_per_packet, packets_per_burst: 1.0, slices: 9, discarded: 1 })
        })
        .unwrap();
        assert_eq!(calls, [0, 1, 1, 0, 0, 1]);
        assert_eq!(curve.points[0].ratio, Some(Spread { median: 1.0, low: 1.0, high: 1.0 }));
        assert_eq!(curve.points[1].ratio, Some(Spread { median: 0.5, low: 0.5, high: 0.5 }));
        assert_eq!(curve.points[1].cost_ratio, Some(Spread { median: 1.5, low: 1.5, high: 1.5 }));
        assert_eq!(curve.points[1].slices(), (27, 3));
        assert_eq!(curve.points[1].count, 10);
    }
}
