//! A limit on how often something may happen: a token bucket, in cycles of the caller's clock.
//!
//! Not a shaper: nothing waits, what finds no token is refused. Owned by whoever counts; one thread.
//!
//! Budget of [`RateLimit::take`]: one multiplication; no division, no allocation, no lock, no panic.

/// A token bucket.
///
/// Credit is kept in units of which one token costs `hertz` and each cycle brings `rate`, so no rounding is lost.
/// Every quantity is a product of two 64-bit numbers, so none overflows 128 bits.
#[derive(Debug, Clone)]
pub struct RateLimit {
    credit: u128,
    most_credit: u128,
    credit_per_cycle: u64,
    token_credit: u64,
    /// The latest time seen, in cycles.
    last: u64,
}

impl RateLimit {
    /// A full bucket of `burst` tokens, filled at `rate` tokens per second of a clock of `hertz` cycles per second.
    /// With a rate of 0, or a burst of 0, nothing passes. A clock of 0 cycles per second is taken as one of 1.
    pub fn new(rate: u64, burst: u64, hertz: u64) -> RateLimit {
        let token_credit = hertz.max(1);
        let most_credit = if rate == 0 { 0 } else { u128::from(burst) * u128::from(token_credit) };
        RateLimit { credit: most_credit, most_credit, credit_per_cycle: rate, token_credit, last: 0 }
    }

    /// Takes a token, at the time `now` in cycles; false if there is none. A clock that goes back brings nothing and
    /// takes nothing.
    #[inline]
    pub fn take(&mut self, now: u64) -> bool {
        let elapsed = now.saturating_sub(self.last);
        self.last = self.last.max(now);
        let earned = u128::from(elapsed) * u128::from(self.credit_per_cycle);
        self.credit = self.credit.saturating_add(earned).min(self.most_credit);
        match self.credit.checked_sub(u128::from(self.token_credit)) {
            Some(left) => {
                self.credit = left;
                true
            }
            None => false,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "what fails here fails the test")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn passed(limit: &mut RateLimit, now: u64, tries: usize) -> usize {
        (0..tries).filter(|_| limit.take(now)).count()
    }

    #[test]
    fn burst_passes_at_once_and_then_nothing_until_time_passes() {
        let mut limit = RateLimit::new(10, 5, 1000);
        assert_eq!(passed(&mut limit, 0, 20), 5);
        assert_eq!(passed(&mut limit, 99, 20), 0);
        assert_eq!(passed(&mut limit, 100, 20), 1);
        assert_eq!(passed(&mut limit, 350, 20), 2);
        assert_eq!(passed(&mut limit, 399, 20), 0);
        assert_eq!(passed(&mut limit, 400, 20), 1);
    }

    #[test]
    fn long_silence_fills_no_more_than_the_burst() {
        let mut limit = RateLimit::new(10, 5, 1000);
        assert_eq!(passed(&mut limit, 0, 20), 5);
        assert_eq!(passed(&mut limit, u64::MAX, 20), 5);
    }

    #[test]
    fn rate_zero_passes_nothing_and_so_does_burst_zero() {
        assert_eq!(passed(&mut RateLimit::new(0, 5, 1000), u64::MAX, 9), 0);
        assert_eq!(passed(&mut RateLimit::new(5, 0, 1000), u64::MAX, 9), 0);
    }

    #[test]
    fn clock_that_goes_back_brings_nothing() {
        let mut limit = RateLimit::new(1000, 1, 1000);
        assert!(limit.take(1_000_000));
        assert!(!limit.take(0));
        assert!(!limit.take(1_000_000));
        assert!(limit.take(1_000_001));
    }

    #[test]
    fn rate_that_does_not_divide_the_clock_loses_no_token_in_the_long_run() {
        let mut limit = RateLimit::new(3, 1, 1_000_000_007);
        assert!(limit.take(0));
        let seconds = 100;
        let total = (1..=seconds * 1000).filter(|step| limit.take(step * 1_000_000_007 / 1000)).count();
        assert!((299..=300).contains(&total), "{total}");
    }

    proptest! {
        #[test]
        fn any_inputs_pass_at_most_the_burst_and_what_the_time_brings(
            rate: u64, burst: u64, hertz: u64, times in prop::collection::vec(any::<u64>(), 0..50),
        ) {
            let mut limit = RateLimit::new(rate, burst, hertz);
            let passed = times.iter().filter(|&&now| limit.take(now)).count() as u128;
            let latest = u128::from(times.iter().copied().max().unwrap_or(0));
            let earned = latest.saturating_mul(u128::from(rate)) / u128::from(hertz.max(1));
            prop_assert!(passed <= u128::from(burst).saturating_add(earned));
            if rate == 0 {
                prop_assert_eq!(passed, 0);
            }
        }
    }
}
