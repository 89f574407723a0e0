//! Intended times: when each frame of an open loop is to be sent, whatever became of the ones before.
//!
//! Frame k of a lane is due at `start + k / rate`. Its latency counts from then, not from when it could be sent: a stall
//! of the back-end makes every frame late that was due meanwhile, and each is recorded as late as it was.

/// When the frames of one lane are due, in cycles.
#[derive(Debug, Clone)]
pub struct Pace {
    start: u64,
    /// Cycles between two frames, in 2^-32 cycles.
    period: u128,
    /// Frames that were sent.
    sent: u64,
    /// When the next one is due.
    next_at: u64,
}

impl Pace {
    /// Frames at `rate` a second from `start` on, on a clock of `hertz`.
    pub fn new(start: u64, rate: f64, hertz: u64) -> Pace {
        let period = (hertz as f64 / rate.max(1e-3) * FRACTION as f64) as u128;
        Pace { start, period: period.max(1), sent: 0, next_at: start }
    }

    /// When frame `number` is due.
    #[inline]
    pub fn at(&self, number: u64) -> u64 {
        self.start + ((u128::from(number) * self.period) >> 32) as u64
    }

    /// When the next frame is due.
    #[inline]
    pub fn next_at(&self) -> u64 {
        self.next_at
    }

    /// Takes the next frame if it is due at `now`; its intended time.
    #[inline]
    pub fn take(&mut self, now: u64) -> Option<u64> {
        let due = self.next_at;
        if due > now {
            return None;
        }
        self.sent += 1;
        self.next_at = self.at(self.sent);
        Some(due)
    }

    /// Frames that were due before `end` and were not taken.
    pub fn missed(&self, end: u64) -> u64 {
        if end <= self.start {
            return 0;
        }
        let span = u128::from(end - self.start) << 32;
        let due = span.div_ceil(self.period) as u64;
        due.saturating_sub(self.sent)
    }
}

const FRACTION: u64 = 1 << 32;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_due_at_equal_distances_from_the_start() {
        // 2.5 GHz, 1 million a second: every 2,500 cycles.
        let pace = Pace::new(1000, 1e6, 2_500_000_000);
        assert_eq!([0, 1, 2, 1_000_000].map(|k| pace.at(k)), [1000, 3500, 6000, 2_500_001_000]);
    }

    #[test]
    fn odd_rates_do_not_drift() {
        // 3 frames in 10 cycles: after 3 million frames exactly 10 million cycles.
        let pace = Pace::new(0, 3.0, 10);
        assert!((9_999_999..=10_000_000).contains(&pace.at(3_000_000)), "{}", pace.at(3_000_000));
    }

    #[test]
    fn intended_times_after_a_stall_are_those_from_before_it() {
        let mut pace = Pace::new(0, 1.0, 100);
        assert_eq!(pace.take(0), Some(0));
        assert_eq!(pace.take(99), None);
        // Nothing could be sent until 350: three are due, each at its own time.
        assert_eq!(
            [pace.take(350), pace.take(350), pace.take(350), pace.take(350)],
            [Some(100), Some(200), Some(300), None]
        );
    }

    #[test]
    fn frames_due_and_not_sent_are_missed() {
        let mut pace = Pace::new(50, 1.0, 100);
        assert_eq!(pace.missed(50), 0);
        assert_eq!(pace.missed(51), 1);
        assert_eq!(pace.missed(250), 2);
        assert_eq!(pace.missed(251), 3);
        pace.take(60);
        assert_eq!(pace.missed(251), 2);
    }
}
