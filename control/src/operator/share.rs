//! A part of the control thread's time, for all together who have no claim to more: viewers, scrapers.
//!
//! What was done for them has to be made up for by so many times as long in which nothing is, once that comes to more than what may
//! come at once. Thread: control.

use std::time::{Duration, Instant};

/// What may be owed before anybody waits.
const AT_ONCE: Duration = Duration::from_millis(30);

/// One part of so many and one.
#[derive(Debug)]
pub(crate) struct Share {
    other_parts: u32,
    /// When what was taken is made up for.
    even_at: Option<Instant>,
}

impl Share {
    /// One part, for which there are so many others.
    pub(crate) fn new(other_parts: u32) -> Share {
        Share { other_parts, even_at: None }
    }

    /// Something for them took so long.
    pub(crate) fn took(&mut self, time: Duration, now: Instant) {
        let begun = now.checked_sub(time).unwrap_or(now);
        let from = self.even_at.map_or(begun, |at| at.max(begun));
        self.even_at = Some(from + time.saturating_mul(self.other_parts + 1));
    }

    /// Until when nothing is done for them. None: now.
    pub(crate) fn served_at(&self, now: Instant) -> Option<Instant> {
        self.even_at?.checked_sub(AT_ONCE).filter(|at| *at > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn part_of_the_time_is_kept_beyond_what_may_come_at_once() {
        for other_parts in [3, 9] {
            let (mut share, begin) = (Share::new(other_parts), Instant::now());
            let request = Duration::from_millis(5);
            let (mut now, mut served) = (begin, 0u32);
            while now < begin + Duration::from_secs(10) {
                now = share.served_at(now).unwrap_or(now) + request;
                share.took(request, now);
                served += 1;
            }
            let (taken, part) = (request * served, Duration::from_secs(10) / (other_parts + 1));
            let (least, most) = (part - Duration::from_millis(100), part + Duration::from_millis(50));
            assert!(taken >= least && taken <= most, "{other_parts}: {taken:?}");
            // What is cheap is never waited for.
            let (mut share, mut now) = (Share::new(other_parts), begin);
            for _ in 0..100 {
                now += Duration::from_millis(1) * (other_parts + 1);
                share.took(Duration::from_millis(1), now);
                assert_eq!(share.served_at(now), None);
            }
        }
    }
}
