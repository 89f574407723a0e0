//! Rounds of a measurement: how they are made, and which of them count.

use serde::{Deserialize, Serialize};

/// How rounds are made.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Rounds {
    /// Rounds that count.
    pub rounds: u32,
    /// Seconds of each.
    pub seconds: f64,
    /// A round in which the generator was off its core for longer is left out, in microseconds.
    pub max_gap_us: f64,
}

/// A round that may have been disturbed.
pub trait Timed {
    /// The longest time in which the generator was not running, in microseconds.
    fn gap_us(&self) -> f64;
}

/// The rounds that count.
#[derive(Debug, Clone, PartialEq)]
pub struct Chosen<R> {
    /// In the order in which they were made.
    pub rounds: Vec<R>,
    /// Rounds left out for a gap.
    pub discarded: u32,
    /// The machine was too busy: too many were left out, so that the quietest of those count.
    pub noisy: bool,
}

/// Makes rounds until enough of them count. `round` is told how many do.
///
/// # Errors
/// A round could not be made.
pub fn choose<R: Timed, E>(how: Rounds, mut round: impl FnMut(u32) -> Result<R, E>) -> Result<Chosen<R>, E> {
    let mut collector = Collector { kept: Vec::new(), disturbed: Vec::new() };
    while collector.kept() < how.rounds && collector.made() < most_tries(how.rounds) {
        let made = round(collector.kept())?;
        collector.take(made, how.max_gap_us);
    }
    Ok(collector.finish(how.rounds))
}

/// Collects rounds, and tells which count.
#[derive(Debug)]
struct Collector<R> {
    kept: Vec<R>,
    disturbed: Vec<R>,
}

impl<R: Timed> Collector<R> {
    fn take(&mut self, round: R, max_gap_us: f64) {
        let is_quiet = round.gap_us() <= max_gap_us;
        if is_quiet { &mut self.kept } else { &mut self.disturbed }.push(round);
    }

    fn kept(&self) -> u32 {
        self.kept.len() as u32
    }

    fn made(&self) -> u32 {
        (self.kept.len() + self.disturbed.len()) as u32
    }

    /// The rounds that count, filled up to `wanted` with the quietest of the others.
    fn finish(mut self, wanted: u32) -> Chosen<R> {
        let lacking = (wanted as usize).saturating_sub(self.kept.len()).min(self.disturbed.len());
        self.disturbed.sort_by(|a, b| a.gap_us().total_cmp(&b.gap_us()));
        let discarded = (self.disturbed.len() - lacking) as u32;
        self.kept.extend(self.disturbed.drain(..lacking));
        Chosen { rounds: self.kept, discarded, noisy: lacking > 0 }
    }
}

/// So many rounds are made at most to have `rounds` that count.
pub fn most_tries(rounds: u32) -> u32 {
    rounds * 4 + 4
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Timed for (f64, f64) {
        fn gap_us(&self) -> f64 {
            self.1
        }
    }

    fn chosen(rounds: u32, made: &[(f64, f64)]) -> (Vec<f64>, u32, bool) {
        let mut made = made.iter().copied();
        let how = Rounds { rounds, seconds: 1.0, max_gap_us: 100.0 };
        let next = |_| made.next().ok_or(());
        let Chosen { rounds, discarded, noisy } = choose(how, next).unwrap();
        (rounds.into_iter().map(|(value, _)| value).collect(), discarded, noisy)
    }

    #[test]
    fn disturbed_rounds_do_not_count() {
        let made = [(1.0, 10.0), (9.0, 900.0), (3.0, 20.0), (2.0, 30.0)];
        assert_eq!(chosen(3, &made), (vec![1.0, 3.0, 2.0], 1, false));
    }

    #[test]
    fn too_few_quiet_rounds_are_filled_up_with_the_quietest_and_said() {
        let mut made = vec![(9.0, 900.0); most_tries(2) as usize];
        (made[1], made[4]) = ((1.0, 10.0), (3.0, 200.0));
        assert_eq!(chosen(2, &made), (vec![1.0, 3.0], most_tries(2) - 2, true));
    }

    #[test]
    fn round_that_cannot_be_made_ends_it() {
        let how = Rounds { rounds: 1, seconds: 1.0, max_gap_us: 1.0 };
        assert_eq!(choose::<(f64, f64), &str>(how, |_| Err("gone")), Err("gone"));
    }
}
