//! A token bucket: what a peer may ask in bursts and in the long run.

use std::time::{Duration, Instant};

/// Tokens that refill over time. Time is given from outside.
#[derive(Debug)]
pub struct Bucket {
    capacity: u32,
    per_second: u32,
    tokens: f64,
    at: Instant,
}

impl Bucket {
    /// A full bucket.
    pub fn new(capacity: u32, per_second: u32, now: Instant) -> Bucket {
        Bucket { capacity, per_second, tokens: capacity.into(), at: now }
    }

    /// Takes tokens, into debt if need be: what was asked is done, what comes next waits.
    pub fn spend(&mut self, tokens: u32, now: Instant) {
        self.refill(now);
        self.tokens -= f64::from(tokens);
    }

    /// Takes one token if there is one.
    pub fn take(&mut self, now: Instant) -> bool {
        self.refill(now);
        let there = self.tokens >= 1.0;
        if there {
            self.tokens -= 1.0;
        }
        there
    }

    /// How long until a token is there; None if one is.
    pub fn wait(&mut self, now: Instant) -> Option<Duration> {
        self.refill(now);
        (self.tokens < 1.0).then(|| Duration::from_secs_f64((1.0 - self.tokens) / f64::from(self.per_second)))
    }

    fn refill(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.at = self.at.max(now);
        self.tokens = (self.tokens + passed * f64::from(self.per_second)).min(self.capacity.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn burst_then_rate() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 100, start);
        assert!((0..10).all(|_| bucket.take(start)));
        assert!(!bucket.take(start));
        let wait = bucket.wait(start).expect("empty");
        assert!(wait <= Duration::from_millis(10), "{wait:?}");
        assert!(bucket.take(start + Duration::from_millis(11)));
        assert_eq!(bucket.wait(start + Duration::from_secs(60)), None);
    }

    #[test]
    fn debt_is_paid_before_the_next() {
        let start = Instant::now();
        let mut bucket = Bucket::new(10, 100, start);
        bucket.spend(110, start);
        let wait = bucket.wait(start).expect("in debt");
        assert!((Duration::from_millis(1000)..Duration::from_millis(1020)).contains(&wait), "{wait:?}");
    }
}
