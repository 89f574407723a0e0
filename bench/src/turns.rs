//! Two back-ends measured in turns, and which of the turns count.

use crate::error::BenchError;
use crate::rounds::{Rounds, Timed, most_tries};
use crate::stats::{self, Spread};

use serde::{Deserialize, Serialize};

/// A round of each, one right after the other.
#[derive(Debug, Clone)]
pub struct Turn<R> {
    /// Ours and the peer's.
    pub rounds: [R; 2],
    /// What a line each way cost before the first, between them and after the second, in nanoseconds.
    pub line: [f64; 3],
}

impl<R: Timed> Turn<R> {
    /// What a line each way cost meanwhile, in nanoseconds.
    pub fn line_ns(&self) -> f64 {
        self.line.iter().sum::<f64>() / self.line.len() as f64
    }

    /// By how much the cost of a line changed, from 1 on.
    fn change(&self) -> f64 {
        let (low, high) = self
            .line
            .iter()
            .fold((f64::INFINITY, 0f64), |(low, high), line| (low.min(*line), high.max(*line)));
        high / low
    }

    fn gap_us(&self) -> f64 {
        self.rounds.iter().fold(0.0, |gap, round| gap.max(round.gap_us()))
    }

    /// How disturbed it was: it counts up to 1.
    fn disturbance(&self, max_gap_us: f64) -> f64 {
        (self.gap_us() / max_gap_us).max((self.change() - 1.0) / (MOST_CHANGE - 1.0))
    }
}

/// Turns that count, and what else was seen.
#[derive(Debug)]
pub struct Turns<R> {
    /// Those of the state of the machine in which most were taken, in the order in which they were made.
    pub turns: Vec<Turn<R>>,
    /// Those of other states that were not disturbed, a state each.
    pub others: Vec<Vec<Turn<R>>>,
    /// Those left out.
    pub discarded: u32,
    /// Too many were disturbed, so that the least disturbed of those count.
    pub noisy: bool,
}

impl<R: Timed + Clone> Turns<R> {
    /// Those that were not disturbed, by states; those of the largest filled up to `wanted` with the least disturbed of the
    /// others that are of the same state.
    fn choose(made: Vec<Turn<R>>, wanted: u32, max_gap_us: f64) -> Turns<R> {
        let all = made.len();
        let is_quiet = |turn: &Turn<R>| turn.disturbance(max_gap_us) <= 1.0;
        let (quiet, mut disturbed): (Vec<Turn<R>>, Vec<Turn<R>>) = made.into_iter().partition(is_quiet);
        disturbed.sort_by(|a, b| a.disturbance(max_gap_us).total_cmp(&b.disturbance(max_gap_us)));
        let mut states = by_state(quiet, Turn::line_ns);
        let largest = (0..states.len()).rev().max_by_key(|state| states[*state].len());
        let mut turns = match largest {
            Some(state) => states.remove(state),
            None => disturbed.drain(..disturbed.len().min(1)).collect(),
        };
        let mut noisy = largest.is_none();
        for turn in disturbed {
            if turns.len() >= wanted as usize {
                break;
            }
            let lowest = turns.iter().map(Turn::line_ns).fold(turn.line_ns(), f64::min);
            if turns.iter().map(Turn::line_ns).fold(turn.line_ns(), f64::max) <= lowest * OF_STATE {
                turns.push(turn);
                noisy = true;
            }
        }
        noisy |= turns.len() < wanted as usize;
        let counted = turns.len() + states.iter().map(Vec::len).sum::<usize>();
        Turns { turns, others: states, discarded: (all - counted) as u32, noisy }
    }

    /// The rounds of one side: 0 ours, 1 the peer's.
    pub fn side(&self, who: usize) -> Vec<R> {
        self.turns.iter().filter_map(|turn| turn.rounds.get(who).cloned()).collect()
    }

    /// Ours to the peer's.
    pub fn ratio(&self, of: fn(&R) -> f64) -> Option<Spread> {
        paired(&self.turns, of)
    }

    /// What each state of the machine had, that which counts first.
    pub fn states(&self, of: fn(&R) -> f64) -> Vec<State> {
        let all = std::iter::once(&self.turns).chain(&self.others);
        all.filter_map(|turns| State::of(turns, of)).collect()
    }
}

fn paired<R>(turns: &[Turn<R>], of: fn(&R) -> f64) -> Option<Spread> {
    stats::paired_ratio(turns.iter().map(|turn| (of(&turn.rounds[0]), of(&turn.rounds[1]))))
}

/// A state of the machine, by what a cache line costs from one core to the other, and what was measured in it.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct State {
    /// A line each way, in nanoseconds.
    pub line_ns: Spread,
    /// Pairs of rounds.
    pub pairs: usize,
    /// Ours.
    pub ours: Spread,
    /// The peer's.
    pub peer: Spread,
    /// Ours to the peer's.
    pub ratio: Spread,
}

impl State {
    fn of<R: Timed>(turns: &[Turn<R>], of: fn(&R) -> f64) -> Option<State> {
        let spread =
            |value: &dyn Fn(&Turn<R>) -> f64| Spread::of(&turns.iter().map(value).collect::<Vec<_>>());
        Some(State {
            line_ns: spread(&|turn| turn.line_ns())?,
            pairs: turns.len(),
            ours: spread(&|turn| of(&turn.rounds[0]))?,
            peer: spread(&|turn| of(&turn.rounds[1]))?,
            ratio: paired(turns, of)?,
        })
    }
}

/// What was taken while a line cost about the same, for each such cost, the lowest first; each in its order.
fn by_state<T>(taken: Vec<T>, line_ns: impl Fn(&T) -> f64) -> Vec<Vec<T>> {
    let mut costs: Vec<f64> = taken.iter().map(&line_ns).collect();
    costs.sort_by(f64::total_cmp);
    let mut lowest: Vec<f64> = Vec::new();
    for cost in costs {
        if lowest.last().is_none_or(|lowest| cost > lowest * OF_STATE) {
            lowest.push(cost);
        }
    }
    let mut states: Vec<Vec<T>> = lowest.iter().map(|_| Vec::new()).collect();
    for one in taken {
        let state = lowest.iter().rposition(|lowest| line_ns(&one) >= *lowest).unwrap_or_default();
        if let Some(state) = states.get_mut(state) {
            state.push(one);
        }
    }
    states
}

/// Two costs of a line are of one state of the machine.
pub(crate) fn is_same_state(a: f64, b: f64) -> bool {
    a.max(b) <= a.min(b) * OF_STATE
}

/// Rounds of both in turns A B B A, until enough of one state of the machine count: `round` makes one of ours (0) or of the
/// peer's (1), and leaves neither back-end running; `line_ns` tells what a line each way costs now. Tells `progress` how many
/// count.
///
/// # Errors
/// A round could not be made.
pub fn in_turns<R: Timed + Clone>(
    how: Rounds,
    line_ns: impl Fn() -> f64,
    mut round: impl FnMut(usize) -> Result<R, BenchError>,
    mut progress: impl FnMut(u32),
) -> Result<Turns<R>, BenchError> {
    let mut turns: Vec<Turn<R>> = Vec::new();
    let mut before = line_ns();
    for number in 0..most_tries(how.rounds) {
        let quiet = turns.iter().filter(|turn| turn.disturbance(how.max_gap_us) <= 1.0);
        let states = by_state(quiet.collect(), |turn| turn.line_ns());
        let kept = states.iter().map(Vec::len).max().unwrap_or_default() as u32;
        progress(kept);
        // In whole pairs of turns, so that neither comes first more often.
        if number % 2 == 0 && kept >= how.rounds {
            break;
        }
        let first = comes_first(number);
        let one = round(first)?;
        let between = line_ns();
        let two = round(1 - first)?;
        let after = line_ns();
        let rounds = if first == 0 { [one, two] } else { [two, one] };
        turns.push(Turn { rounds, line: [before, between, after] });
        before = after;
    }
    Ok(Turns::choose(turns, how.rounds, how.max_gap_us))
}

/// Who comes first in a turn: A B, B A, A B, ..
fn comes_first(turn: u32) -> usize {
    (turn % 2) as usize
}

/// A pair of rounds counts if a line cost no more than so many times as much at one time as at another.
const MOST_CHANGE: f64 = 1.3;

/// Rounds are of one state of the machine while a line costs no more than so many times as much as it did at least.
const OF_STATE: f64 = MOST_CHANGE;

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

    fn turn(ours: f64, peer: f64, gap_us: f64, [before, after]: [f64; 2]) -> Turn<Made> {
        Turn { rounds: [Made(ours, 0.0), Made(peer, gap_us)], line: [before, before, after] }
    }

    #[test]
    fn turns_are_a_b_b_a() {
        assert_eq!([0, 1, 2, 3].map(comes_first), [0, 1, 0, 1]);
    }

    #[test]
    fn pair_counts_unless_the_machine_changed_or_was_away() {
        let made = vec![
            turn(3.0, 1.0, 0.0, [40.0, 42.0]),
            turn(9.0, 1.0, 0.0, [10.0, 40.0]),
            turn(1.0, 9.0, 0.0, [40.0, 10.0]),
            turn(9.0, 1.0, 2000.0, [40.0, 40.0]),
            turn(5.0, 1.0, 100.0, [40.0, 41.0]),
            turn(4.0, 1.0, 0.0, [40.0, 36.0]),
        ];
        let turns = Turns::choose(made, 3, 1000.0);
        assert_eq!((turns.turns.len(), turns.discarded, turns.noisy), (3, 3, false));
        let ratio = turns.ratio(|round| round.0).unwrap();
        assert!((ratio.median - 4.0).abs() < 1e-9, "{ratio:?}");
        // Changed between the two rounds of a pair, and back.
        let back = Turn { rounds: [Made(1.0, 0.0), Made(1.0, 0.0)], line: [10.0, 40.0, 10.0] };
        assert!(back.disturbance(1000.0) > 1.0);
    }

    #[test]
    fn pairs_of_two_states_are_kept_apart_and_those_of_the_longer_one_count() {
        let mut made = vec![turn(2.0, 1.0, 0.0, [10.0, 10.5]), turn(2.2, 1.1, 0.0, [12.0, 12.0])];
        made.extend([41.0, 43.0, 39.0].map(|line| turn(1.5, 1.0, 0.0, [line, line])));
        let turns = Turns::choose(made, 3, 1000.0);
        assert_eq!((turns.turns.len(), turns.others.len(), turns.discarded), (3, 1, 0));
        assert!(!turns.noisy);
        let states = turns.states(|round| round.0);
        let told: Vec<(usize, f64, f64)> =
            states.iter().map(|state| (state.pairs, state.ratio.median, state.line_ns.median)).collect();
        assert_eq!(told[0], (3, 1.5, 41.0));
        assert_eq!((told[1].0, told[1].1), (2, 2.0));
        assert!((turns.ratio(|round| round.0).unwrap().median - 1.5).abs() < 1e-9);
    }

    #[test]
    fn too_few_are_filled_up_with_the_least_disturbed_of_the_state_and_said() {
        let made = vec![turn(9.0, 1.0, 0.0, [10.0, 40.0]), turn(2.0, 1.0, 0.0, [10.0, 14.0])];
        let turns = Turns::choose(made, 1, 1000.0);
        assert_eq!((turns.turns.len(), turns.discarded, turns.noisy), (1, 1, true));
        assert!((turns.side(0)[0].0 - 2.0).abs() < 1e-9);
        // One of another state does not fill up.
        let made = vec![turn(3.0, 1.0, 0.0, [10.0, 10.0]), turn(9.0, 1.0, 5000.0, [40.0, 40.0])];
        let turns = Turns::choose(made, 2, 1000.0);
        assert_eq!((turns.turns.len(), turns.discarded, turns.noisy), (1, 1, true));
    }
}
