//! Two back-ends measured in turns, and which of the turns count.

use crate::error::BenchError;
use crate::limits::Gauge;
use crate::rounds::{Rounds, Timed, most_tries};
use crate::stats::{self, Spread};

/// A round of each, one right after the other.
#[derive(Debug, Clone)]
pub struct Turn<R> {
    /// Ours and the peer's.
    pub rounds: [R; 2],
    /// What a line each way cost before and after, in nanoseconds.
    pub line: [f64; 2],
}

impl<R: Timed> Turn<R> {
    /// What a line each way cost meanwhile, in nanoseconds.
    pub fn line_ns(&self) -> f64 {
        self.line.iter().sum::<f64>() / 2.0
    }

    /// By how much the cost of a line changed, from 1 on.
    fn change(&self) -> f64 {
        let [before, after] = self.line;
        (before / after).max(after / before)
    }

    fn gap_us(&self) -> f64 {
        self.rounds.iter().fold(0.0, |gap, round| gap.max(round.gap_us()))
    }

    /// How disturbed it was: it counts up to 1.
    fn disturbance(&self, max_gap_us: f64) -> f64 {
        (self.gap_us() / max_gap_us).max((self.change() - 1.0) / (MOST_CHANGE - 1.0))
    }
}

/// Turns that count.
#[derive(Debug)]
pub struct Turns<R> {
    /// In the order in which they were made.
    pub turns: Vec<Turn<R>>,
    /// Those left out.
    pub discarded: u32,
    /// Too many were disturbed, so that the least disturbed of those count.
    pub noisy: bool,
}

impl<R: Timed + Clone> Turns<R> {
    /// Those that were not disturbed, filled up to `wanted` with the least disturbed of the others.
    fn choose(made: Vec<Turn<R>>, wanted: u32, max_gap_us: f64) -> Turns<R> {
        let is_quiet = |turn: &Turn<R>| turn.disturbance(max_gap_us) <= 1.0;
        let (mut turns, mut disturbed): (Vec<Turn<R>>, Vec<Turn<R>>) = made.into_iter().partition(is_quiet);
        let lacking = (wanted as usize).saturating_sub(turns.len()).min(disturbed.len());
        disturbed.sort_by(|a, b| a.disturbance(max_gap_us).total_cmp(&b.disturbance(max_gap_us)));
        let discarded = (disturbed.len() - lacking) as u32;
        turns.extend(disturbed.drain(..lacking));
        Turns { turns, discarded, noisy: lacking > 0 }
    }

    /// The rounds of one side: 0 ours, 1 the peer's.
    pub fn side(&self, who: usize) -> Vec<R> {
        self.turns.iter().filter_map(|turn| turn.rounds.get(who).cloned()).collect()
    }

    /// Ours to the peer's.
    pub fn ratio(&self, of: fn(&R) -> f64) -> Option<Spread> {
        stats::paired_ratio(self.turns.iter().map(|turn| (of(&turn.rounds[0]), of(&turn.rounds[1]))))
    }
}

/// Rounds of both in turns A B B A, until enough of them count: `round` makes one of ours (0) or of the peer's (1), and leaves
/// neither back-end running. Tells `progress` how many count.
///
/// # Errors
/// A round could not be made.
pub fn in_turns<R: Timed + Clone>(
    how: Rounds,
    gauge: &Gauge,
    mut round: impl FnMut(usize) -> Result<R, BenchError>,
    mut progress: impl FnMut(u32),
) -> Result<Turns<R>, BenchError> {
    let mut turns: Vec<Turn<R>> = Vec::new();
    let mut before = gauge.line_ns();
    for number in 0..most_tries(how.rounds) {
        let kept = turns.iter().filter(|turn| turn.disturbance(how.max_gap_us) <= 1.0).count() as u32;
        progress(kept);
        // In whole pairs of turns, so that neither comes first more often.
        if number % 2 == 0 && kept >= how.rounds {
            break;
        }
        let rounds = if comes_first(number) == 0 {
            let ours = round(0)?;
            [ours, round(1)?]
        } else {
            let peer = round(1)?;
            [round(0)?, peer]
        };
        let after = gauge.line_ns();
        turns.push(Turn { rounds, line: [before, after] });
        before = after;
    }
    Ok(Turns::choose(turns, how.rounds, how.max_gap_us))
}

/// Who comes first in a turn: A B, B A, A B, ..
fn comes_first(turn: u32) -> usize {
    (turn % 2) as usize
}

/// A pair of rounds counts if a line cost no more than so many times as much after it as before, or the other way round.
const MOST_CHANGE: f64 = 1.3;

#[cfg(test)]
mod tests {
    use super::*;
    /// What was measured, and the gap.
    #[derive(Debug, Clone)]
    struct Made(f64, f64);

    impl Timed for Made {
        fn gap_us(&self) -> f64 {
            self.1
        }
    }

    fn turn(ours: f64, peer: f64, gap_us: f64, line: [f64; 2]) -> Turn<Made> {
        Turn { rounds: [Made(ours, 0.0), Made(peer, gap_us)], line }
    }

    #[test]
    fn turns_are_a_b_b_a() {
        assert_eq!([0, 1, 2, 3].map(comes_first), [0, 1, 0, 1]);
    }

    #[test]
    fn pair_counts_unless_the_machine_changed_or_was_away() {
        let made = vec![
            turn(3.0, 1.0, 0.0, [10.0, 12.0]),
            turn(9.0, 1.0, 0.0, [10.0, 40.0]),
            turn(1.0, 9.0, 0.0, [40.0, 10.0]),
            turn(9.0, 1.0, 2000.0, [10.0, 10.0]),
            turn(5.0, 1.0, 100.0, [40.0, 41.0]),
            turn(4.0, 1.0, 0.0, [40.0, 36.0]),
        ];
        let turns = Turns::choose(made, 3, 1000.0);
        assert_eq!((turns.turns.len(), turns.discarded, turns.noisy), (3, 3, false));
        let ratio = turns.ratio(|round| round.0).unwrap();
        assert!((ratio.median - 4.0).abs() < 1e-9, "{ratio:?}");
    }

    #[test]
    fn too_few_are_filled_up_with_the_least_disturbed_and_said() {
        let made = vec![turn(9.0, 1.0, 0.0, [10.0, 40.0]), turn(2.0, 1.0, 0.0, [10.0, 14.0])];
        let turns = Turns::choose(made, 1, 1000.0);
        assert_eq!((turns.turns.len(), turns.discarded, turns.noisy), (1, 1, true));
        assert!((turns.side(0)[0].0 - 2.0).abs() < 1e-9);
    }
}
