//! How much may pass in a second, with bursts: token buckets that many cores may share, and that can be changed at any time. No
//! lock.
//!
//! Each limit is one word, the time at which what was let pass is paid for; something passes while that lies at most a burst
//! ahead of now, and moves it on. So what is larger than a burst passes too, and is paid for afterwards.
//!
//! Budget of what a pump calls: no allocation, no lock, no panic; where there is no limit, one load.

use std::sync::atomic::{AtomicU64, Ordering};

use ringway_ring::tsc;

/// Two limits that hold together: on how many, and on how much they are.
#[derive(Debug, Default)]
pub struct Limits {
    /// Requests, or frames.
    pub count: Limit,
    /// Bytes, or bits.
    pub amount: Limit,
}

/// One limit. Times are in cycles.
#[derive(Debug, Default)]
pub struct Limit {
    /// Units a second; 0: no limit.
    per_second: AtomicU64,
    /// What may come at once, in cycles of the rate.
    burst: AtomicU64,
    paid_until: AtomicU64,
}

impl Limits {
    /// Neither is there.
    #[inline]
    pub fn are_none(&self) -> bool {
        self.count.per_second() | self.amount.per_second() == 0
    }

    /// Whether something may pass, or how many cycles it has to wait.
    ///
    /// # Errors
    /// So many.
    #[inline]
    pub fn room(&self, now: u64) -> Result<(), u64> {
        self.count.room(now)?;
        self.amount.room(now)
    }

    /// Something of that much passed.
    #[inline]
    pub fn charge(&self, amount: u64, now: u64) {
        self.count.charge(1, now);
        self.amount.charge(amount, now);
    }

    /// How many of them pass now, from the first on, each of so much.
    pub fn admit(&self, amounts: impl Iterator<Item = u64>, now: u64) -> usize {
        let passes = |amount: &u64| {
            let is_room = self.room(now).is_ok();
            if is_room {
                self.charge(*amount, now);
            }
            is_room
        };
        amounts.take_while(passes).count()
    }
}

impl Limit {
    /// So many units a second, and so many at once; 0 a second: no limit. At any time.
    pub fn set(&self, per_second: u64, burst: u64) {
        let cycles = if per_second == 0 { 0 } else { cycles_of(burst, per_second, tsc::hertz()) };
        // What each of them is rounded up by.
        let burst = cycles.saturating_add(burst.min(cycles / 1000));
        self.burst.store(burst, Ordering::Relaxed);
        // What was let pass under another rate is forgiven.
        self.paid_until.store(0, Ordering::Relaxed);
        self.per_second.store(per_second, Ordering::Relaxed);
    }

    /// Units a second; 0: no limit.
    #[inline]
    pub fn per_second(&self) -> u64 {
        self.per_second.load(Ordering::Relaxed)
    }

    /// Whether something may pass, or how many cycles it has to wait.
    ///
    /// # Errors
    /// So many.
    #[inline]
    pub fn room(&self, now: u64) -> Result<(), u64> {
        if self.per_second() == 0 {
            return Ok(());
        }
        let paid_until = self.paid_until.load(Ordering::Relaxed);
        let until = now.saturating_add(self.burst.load(Ordering::Relaxed));
        if paid_until <= until { Ok(()) } else { Err(paid_until - until) }
    }

    /// Cores that let something pass at the same time each add theirs: it may be a request more than allowed, which is paid for.
    #[inline]
    pub fn charge(&self, units: u64, now: u64) {
        let per_second = self.per_second();
        if per_second > 0 {
            self.paid_until.fetch_max(now, Ordering::Relaxed);
            self.paid_until.fetch_add(cycles_of(units, per_second, tsc::hertz()), Ordering::Relaxed);
        }
    }

    /// One unit passes if it may.
    #[inline]
    pub fn take(&self, now: u64) -> bool {
        let is_room = self.room(now).is_ok();
        if is_room {
            self.charge(1, now);
        }
        is_room
    }
}

/// Rounded up: no more than allowed passes in the long run.
fn cycles_of(units: u64, per_second: u64, hertz: u64) -> u64 {
    let cycles = (u128::from(units) * u128::from(hertz)).div_ceil(u128::from(per_second.max(1)));
    u64::try_from(cycles).unwrap_or(u64::MAX >> 1)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pass(limits: &Limits, bytes: u64, now: u64) -> Result<(), u64> {
        limits.room(now)?;
        limits.charge(bytes, now);
        Ok(())
    }

    /// How many requests of so many bytes pass in a second of tries every microsecond.
    fn passed(limits: &Limits, bytes: u64, from: u64) -> u64 {
        let hertz = tsc::hertz();
        let step = hertz / 1_000_000;
        (0..1_000_000).filter(|nth| pass(limits, bytes, from + nth * step).is_ok()).count() as u64
    }

    #[test]
    fn requests_and_bytes_pass_at_their_rate_and_a_burst_at_once() {
        let limits = Limits::default();
        assert!(limits.are_none());
        assert_eq!(passed(&limits, 4096, 0), 1_000_000, "no limit");
        limits.count.set(1000, 50);
        assert!(!limits.are_none());
        assert!((1049..=1053).contains(&passed(&limits, 4096, 1 << 40)));
        limits.count.set(0, 0);
        limits.amount.set(4096 * 500, 4096 * 10);
        assert!((509..=513).contains(&passed(&limits, 4096, 1 << 41)));
        // Larger than a burst: passes, and is paid for.
        assert!((4..=6).contains(&passed(&limits, 4096 * 100, 1 << 42)));
        limits.amount.set(0, 0);
        assert_eq!(passed(&limits, 4096, 1 << 43), 1_000_000);
    }

    #[test]
    fn who_has_to_wait_is_told_how_long() {
        let limits = Limits::default();
        limits.count.set(10, 0);
        assert_eq!(pass(&limits, 1, 1000), Ok(()));
        let wait = pass(&limits, 1, 1000).unwrap_err();
        assert!(wait.abs_diff(tsc::hertz() / 10) <= 1, "{wait}");
        assert_eq!(pass(&limits, 1, 1000 + wait), Ok(()));
    }

    #[test]
    fn of_many_as_many_are_admitted_as_pass_one_by_one() {
        let limits = Limits::default();
        assert_eq!(limits.admit([9; 7].into_iter(), 1), 7);
        limits.count.set(10, 4);
        assert_eq!(limits.admit([1; 7].into_iter(), 1), 5);
        assert_eq!(limits.admit([1; 7].into_iter(), 1), 0);
        limits.count.set(0, 0);
        limits.amount.set(100, 10);
        // The third begins a burst ahead, and ends beyond it.
        assert_eq!(limits.admit([5, 5, 5, 5].into_iter(), 1 << 50), 3);
    }

    #[test]
    fn clock_that_goes_back_brings_nothing() {
        let limit = Limit::default();
        limit.set(tsc::hertz(), 0);
        assert!(limit.take(1_000_000));
        assert!(!limit.take(0) && !limit.take(1_000_000));
        assert!(limit.take(1_000_001));
    }

    proptest! {
        #[test]
        fn any_inputs_pass_at_most_the_burst_and_what_the_time_brings(
            rate in 1..u64::MAX, burst in 0..u64::from(u32::MAX), times in prop::collection::vec(0..u64::MAX >> 2, 0..50),
        ) {
            let limit = Limit::default();
            limit.set(rate, burst);
            let passed = times.iter().filter(|&&now| limit.take(now)).count() as u128;
            let latest = u128::from(times.iter().copied().max().unwrap_or(0));
            let earned = latest * u128::from(rate) / u128::from(tsc::hertz());
            // One more may begin when all is paid for, and a cycle is not divided.
            let rounded = u128::from(burst / 1000 + 2 * (rate / tsc::hertz()));
            prop_assert!(passed <= u128::from(burst) + earned + 2 + rounded);
        }
    }
}
