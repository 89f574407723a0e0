//! What viewers together take of the control thread's time: a part of it, however many there are and whatever they ask for.
//! Administrators, guests and timers have the rest.
//!
//! After whatever is done for one of them, its coming included, all of them wait for so many times as long as it took, once that comes to
//! more than what may come at once. A client that waits is not read from; what was made for it before is written all the same. None
//! is let in meanwhile. Thread: control.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::operator::share::Share;

/// Viewers take one part of so many and one.
const OTHER_PARTS: u32 = 3;

/// The time of all viewers.
#[derive(Debug)]
pub(crate) struct ViewersTime {
    share: Share,
    /// Those that wait, and whose they are, the first of them first.
    waiting: Vec<(u64, u32)>,
    /// Nobody is let in.
    is_shut: bool,
    /// Whether those who were inside came first when somebody was last let in.
    is_doors_turn: bool,
    /// How often one had to.
    pub(crate) waits: u64,
}

impl Default for ViewersTime {
    fn default() -> ViewersTime {
        ViewersTime {
            share: Share::new(OTHER_PARTS),
            waiting: Vec::new(),
            is_shut: false,
            is_doors_turn: false,
            waits: 0,
        }
    }
}

impl ViewersTime {
    /// Something for one of them took so long.
    pub(crate) fn took(&mut self, time: Duration, now: Instant) {
        self.share.took(time, now);
    }

    /// Until when no viewer is served. None: now.
    pub(crate) fn served_at(&self, now: Instant) -> Option<Instant> {
        self.share.served_at(now)
    }

    /// A client of this user waits until then.
    pub(crate) fn wait(&mut self, client: u64, uid: u32) {
        if !self.is_waiting(client) {
            self.waits += 1;
            self.waiting.push((client, uid));
        }
    }

    /// Those who come wait until then, if it is not now.
    pub(crate) fn wait_outside(&mut self, now: Instant) -> bool {
        let is_shut = self.served_at(now).is_some();
        if is_shut && !std::mem::replace(&mut self.is_shut, true) {
            self.waits += 1;
        }
        is_shut
    }

    /// Whether those who waited outside are let in from now on.
    pub(crate) fn opens(&mut self, now: Instant) -> bool {
        self.is_shut && self.served_at(now).is_none() && std::mem::take(&mut self.is_shut)
    }

    /// Whether those who waited outside come before those inside this time: every second one.
    pub(crate) fn is_doors_turn(&mut self) -> bool {
        self.is_doors_turn = !self.is_doors_turn;
        self.is_doors_turn
    }

    /// Whether a client waits: it is then neither silent nor slow.
    pub(crate) fn is_waiting(&self, client: u64) -> bool {
        self.waiting.iter().any(|(waiting, _)| *waiting == client)
    }

    /// When those that wait are served. None: none does.
    pub(crate) fn next(&self, now: Instant) -> Option<Instant> {
        (self.is_shut || !self.waiting.is_empty()).then(|| self.served_at(now).unwrap_or(now))
    }

    /// Those that have waited long enough: one of each user before a second one of any.
    pub(crate) fn rested(&mut self, now: Instant) -> Vec<u64> {
        if self.served_at(now).is_some() {
            return Vec::new();
        }
        let mut of_user: HashMap<u32, usize> = HashMap::new();
        let turn = |(client, uid): (u64, u32)| {
            let nth = of_user.entry(uid).or_default();
            *nth += 1;
            (*nth, client)
        };
        let mut turns: Vec<(usize, u64)> = std::mem::take(&mut self.waiting).into_iter().map(turn).collect();
        turns.sort_by_key(|(nth, _)| *nth);
        turns.into_iter().map(|(_, client)| client).collect()
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
        [7, 3, 7].into_iter().for_each(|client| viewers.wait(client, 0));
        assert_eq!((viewers.next(now), viewers.rested(now), viewers.waits), (Some(at), vec![], 2));
        assert!(viewers.is_waiting(3) && !viewers.is_waiting(4));
        assert_eq!((viewers.rested(at), viewers.rested(at), viewers.next(at)), (vec![7, 3], vec![], None));
        // Whoever has many waits with all of them for the one of another.
        for (client, uid) in [(1, 0), (2, 0), (3, 0), (4, 7), (5, 0), (6, 8), (8, 7)] {
            viewers.wait(client, uid);
        }
        assert_eq!(viewers.rested(at), [1, 4, 6, 2, 8, 3, 5]);
    }

    #[test]
    fn nobody_is_let_in_before_what_was_taken_is_made_up_for() {
        let (mut viewers, now) = (ViewersTime::default(), Instant::now());
        assert!(!viewers.wait_outside(now) && !viewers.opens(now) && viewers.next(now).is_none());
        viewers.took(Duration::from_millis(100), now);
        let at = viewers.served_at(now).unwrap();
        assert!(viewers.wait_outside(now) && viewers.wait_outside(now) && !viewers.opens(now));
        assert_eq!((viewers.next(now), viewers.waits), (Some(at), 1));
        assert!(viewers.opens(at) && !viewers.opens(at) && !viewers.wait_outside(at));
        assert_eq!(viewers.next(at), None);
    }
}
