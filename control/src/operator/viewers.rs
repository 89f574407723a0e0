//! What viewers together take of the control thread's time: a part of it, however many there are and whatever they ask for.
//! Administrators, guests and timers have the rest.
//!
//! After each of their requests all of them wait for so many times as long as it took, once that comes to more than what may
//! come at once. A client that waits is not read from and not watched. Thread: control.

use std::time::{Duration, Instant};

use crate::operator::share::Share;

/// Viewers take one part of so many and one.
const OTHER_PARTS: u32 = 3;

/// The time of all viewers.
#[derive(Debug)]
pub(crate) struct ViewersTime {
    share: Share,
    /// Those that wait, the first of them first.
    waiting: Vec<u64>,
    /// How often one had to.
    pub(crate) waits: u64,
}

impl Default for ViewersTime {
    fn default() -> ViewersTime {
        ViewersTime { share: Share::new(OTHER_PARTS), waiting: Vec::new(), waits: 0 }
    }
}

impl ViewersTime {
    /// A request took so long.
    pub(crate) fn took(&mut self, time: Duration, now: Instant) {
        self.share.took(time, now);
    }

    /// Until when no viewer is served. None: now.
    pub(crate) fn served_at(&self, now: Instant) -> Option<Instant> {
        self.share.served_at(now)
    }

    /// A client waits until then.
    pub(crate) fn wait(&mut self, client: u64) {
        if !self.waiting.contains(&client) {
            self.waits += 1;
            self.waiting.push(client);
        }
    }

    /// Whether a client waits: it is then neither silent nor slow.
    pub(crate) fn is_waiting(&self, client: u64) -> bool {
        self.waiting.contains(&client)
    }

    /// When those that wait are served. None: none does.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        (!self.waiting.is_empty()).then(|| self.served_at(now).unwrap_or(now))
    }

    /// Those that have waited long enough.
    pub(crate) fn rested(&mut self, now: Instant) -> Vec<u64> {
        match self.served_at(now) {
            None => std::mem::take(&mut self.waiting),
            Some(_) => Vec::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn viewers_have_a_quarter_of_the_time_beyond_what_may_come_at_once() {
        let (mut viewers, begin) = (ViewersTime::default(), Instant::now());
        let request = Duration::from_millis(5);
        let (mut now, mut served) = (begin, 0u32);
        while now < begin + Duration::from_secs(10) {
            now = viewers.served_at(now).unwrap_or(now) + request;
            viewers.took(request, now);
            served += 1;
        }
        let share = request * served;
        assert!(share <= Duration::from_millis(2550) && share >= Duration::from_millis(2400), "{share:?}");
        // What is cheap is never waited for.
        let (mut viewers, mut now) = (ViewersTime::default(), begin);
        for _ in 0..100 {
            now += Duration::from_millis(4);
            viewers.took(Duration::from_millis(1), now);
            assert_eq!(viewers.served_at(now), None);
        }
    }

    #[test]
    fn whoever_waits_is_served_in_turn_once_what_was_taken_is_made_up_for() {
        let (mut viewers, now) = (ViewersTime::default(), Instant::now());
        assert_eq!(viewers.next(now), None);
        viewers.took(Duration::from_millis(100), now);
        let at = viewers.served_at(now).unwrap();
        assert_eq!(at, now + Duration::from_millis(270));
        [7, 3, 7].into_iter().for_each(|client| viewers.wait(client));
        assert_eq!((viewers.next(now), viewers.rested(now), viewers.waits), (Some(at), vec![], 2));
        assert_eq!((viewers.rested(at), viewers.rested(at), viewers.next(at)), (vec![7, 3], vec![], None));
    }
}
