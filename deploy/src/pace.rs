//! Limits of time. One that is asserted is a multiple of what this machine takes in the same run for the same without what
//! disturbs it: a quick machine hides nothing, and a busy one fails nothing.

use std::time::Duration;

use crate::ensure;
use crate::error::Result;

/// Nothing is measured by it: it ends a test that waits for what does not happen, far longer than any machine needs.
pub const WATCHDOG: Duration = Duration::from_secs(60);

/// The slowest of what went on undisturbed in this run.
#[derive(Debug, Clone, Copy, Default)]
pub struct Pace(Duration);

impl Pace {
    /// The slowest of several turns; each tells how long it took.
    pub fn of(mut turn: impl FnMut() -> Result<Duration>) -> Result<Pace> {
        let mut pace = Pace::default();
        for _ in 0..TURNS {
            pace.saw(turn()?);
        }
        Ok(pace)
    }

    /// Something else that nothing disturbed took so long.
    pub fn saw(&mut self, took: Duration) {
        self.0 = self.0.max(took);
    }

    /// Fails unless what was disturbed took less than so many times as long.
    pub fn allows(&self, what: &str, times: u32, took: Duration) -> Result<()> {
        ensure!(took < times * self.0, "{what} took {took:?}; undisturbed at most {:?}", self.0);
        Ok(())
    }
}

const TURNS: u32 = 5;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_disturbed_is_measured_by_the_slowest_that_is_not() {
        let mut turns = [3, 7, 5, 1, 2].map(Duration::from_millis).into_iter();
        let mut pace = Pace::of(|| Ok(turns.next().unwrap_or_default())).unwrap();
        assert!(pace.allows("it", 10, Duration::from_millis(69)).is_ok());
        let error = pace.allows("it", 10, Duration::from_millis(70)).unwrap_err().to_string();
        assert_eq!(error, "it took 70ms; undisturbed at most 7ms");
        pace.saw(Duration::from_millis(8));
        assert!(pace.allows("it", 10, Duration::from_millis(70)).is_ok());
    }
}
