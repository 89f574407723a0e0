//! How much a guest may ask of its disk: requests and bytes a second, with bursts. One budget for all queues of a device, which
//! lives on many cores: no lock.
//!
//! Each limit is one word, the time at which what was let pass is paid for; a request passes while that lies at most a burst
//! ahead of now, and moves it on. So a request larger than a burst passes too, and is paid for afterwards.

use std::sync::atomic::{AtomicU64, Ordering};

use ringway_ring::tsc;

/// Both limits of a device.
#[derive(Debug, Default)]
pub(super) struct Limits {
    requests: Limit,
    bytes: Limit,
}

/// One limit. Times are in cycles.
#[derive(Debug, Default)]
struct Limit {
    /// Units a second; 0: no limit.
    per_second: AtomicU64,
    /// What may come at once, in cycles of the rate.
    burst: AtomicU64,
    paid_until: AtomicU64,
}

/// What an operator allows; 0: no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rates {
    /// Requests a second.
    pub iops: u64,
    /// Requests at once.
    pub iops_burst: u64,
    /// Bytes a second.
    pub bps: u64,
    /// Bytes at once.
    pub bps_burst: u64,
}

impl Limits {
    /// Sets them, at any time.
    pub(super) fn set(&self, rates: Rates) {
        self.requests.set(rates.iops, rates.iops_burst);
        self.bytes.set(rates.bps, rates.bps_burst);
    }

    /// Whether a request may pass, or how many cycles it has to wait.
    #[inline]
    pub(super) fn room(&self, now: u64) -> Result<(), u64> {
        self.requests.room(now)?;
        self.bytes.room(now)
    }

    /// A request of so many bytes passed.
    #[inline]
    pub(super) fn charge(&self, bytes: u64, now: u64) {
        self.requests.charge(1, now);
        self.bytes.charge(bytes, now);
    }
}

impl Limit {
    fn set(&self, per_second: u64, burst: u64) {
        let burst = if per_second == 0 { 0 } else { cycles_of(burst, per_second, tsc::hertz()) };
        self.burst.store(burst, Ordering::Relaxed);
        // What was let pass under another rate is forgiven.
        self.paid_until.store(0, Ordering::Relaxed);
        self.per_second.store(per_second, Ordering::Relaxed);
    }

    #[inline]
    fn room(&self, now: u64) -> Result<(), u64> {
        if self.per_second.load(Ordering::Relaxed) == 0 {
            return Ok(());
        }
        let paid_until = self.paid_until.load(Ordering::Relaxed);
        let until = now.saturating_add(self.burst.load(Ordering::Relaxed));
        if paid_until <= until { Ok(()) } else { Err(paid_until - until) }
    }

    /// Cores that let something pass at the same time each add theirs: it may be a request more than allowed, which is paid for.
    #[inline]
    fn charge(&self, units: u64, now: u64) {
        let per_second = self.per_second.load(Ordering::Relaxed);
        if per_second > 0 {
            self.paid_until.fetch_max(now, Ordering::Relaxed);
            self.paid_until.fetch_add(cycles_of(units, per_second, tsc::hertz()), Ordering::Relaxed);
        }
    }
}

fn cycles_of(units: u64, per_second: u64, hertz: u64) -> u64 {
    let cycles = u128::from(units) * u128::from(hertz) / u128::from(per_second.max(1));
    u64::try_from(cycles).unwrap_or(u64::MAX >> 1)
}

#[cfg(test)]
mod tests {
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
        assert_eq!(passed(&limits, 4096, 0), 1_000_000, "no limit");
        limits.set(Rates { iops: 1000, iops_burst: 50, ..Rates::default() });
        assert!((1049..=1053).contains(&passed(&limits, 4096, 1 << 40)));
        limits.set(Rates { bps: 4096 * 500, bps_burst: 4096 * 10, ..Rates::default() });
        assert!((509..=513).contains(&passed(&limits, 4096, 1 << 41)));
        // Larger than a burst: passes, and is paid for.
        assert!((4..=6).contains(&passed(&limits, 4096 * 100, 1 << 42)));
        limits.set(Rates::default());
        assert_eq!(passed(&limits, 4096, 1 << 43), 1_000_000);
    }

    #[test]
    fn who_has_to_wait_is_told_how_long() {
        let limits = Limits::default();
        limits.set(Rates { iops: 10, iops_burst: 0, ..Rates::default() });
        assert_eq!(pass(&limits, 1, 1000), Ok(()));
        let wait = pass(&limits, 1, 1000).unwrap_err();
        assert!(wait.abs_diff(tsc::hertz() / 10) <= 1, "{wait}");
        assert_eq!(pass(&limits, 1, 1000 + wait), Ok(()));
    }
}
