//! When the thread that drives a guest was off its core: an interrupt, another process, the hypervisor.
//!
//! A frame that was due, under way or back meanwhile is late through the thread, and its latency says nothing of the
//! back-end; those are set aside and counted. A back-end that stalls is not mistaken for that: the thread goes on
//! asking meanwhile, and what it then has to do at once is allowed for. Owned by one thread.

use ringway_ring::tsc;

/// What one thread knows of its absences.
#[derive(Debug, Clone, Copy)]
pub struct Presence {
    /// When it last looked at the clock.
    looked_at: u64,
    /// Frames that it sent or received since.
    handled: u64,
    /// When the latest absence ended.
    absent_until: u64,
    /// Absences.
    absences: u64,
    /// What it may take to look at the clock again, in cycles: at all, and for each frame.
    allowance: [u64; 2],
}

impl Presence {
    /// Present from `now` on, on a clock of `hertz`.
    pub fn new(now: u64, hertz: u64) -> Presence {
        let cycles = |ns: u64| (u128::from(ns) * u128::from(hertz) / 1_000_000_000) as u64;
        Presence {
            looked_at: now,
            handled: 0,
            absent_until: 0,
            absences: 0,
            allowance: [cycles(ALLOWED_NS), cycles(ALLOWED_NS_PER_FRAME)],
        }
    }

    /// Present from now on.
    pub fn begin() -> Presence {
        Presence::new(tsc::cycles(), tsc::hertz())
    }

    /// Present however late it looks: for a thread that does other things between two turns.
    pub const ASSUMED: Presence =
        Presence { looked_at: 0, handled: 0, absent_until: 0, absences: 0, allowance: [u64::MAX, 0] };

    /// Looks at the clock, which says `now`; until when it was absent last.
    #[inline]
    pub fn look(&mut self, now: u64) -> u64 {
        let allowed = self.allowance[0] + self.allowance[1] * self.handled;
        if now.saturating_sub(self.looked_at) > allowed {
            self.absent_until = now;
            self.absences += 1;
        }
        (self.looked_at, self.handled) = (now, 0);
        self.absent_until
    }

    /// Takes note of frames that were sent or received.
    #[inline]
    pub fn handle(&mut self, frames: u32) {
        self.handled += u64::from(frames);
    }

    /// Absences so far.
    pub fn absences(&self) -> u64 {
        self.absences
    }
}

/// A look at the clock and the next one are no further apart while the thread runs and has nothing to do.
const ALLOWED_NS: u64 = 10_000;

/// So much longer for each frame in between: several times what a large one takes whose lines are all on another core.
const ALLOWED_NS_PER_FRAME: u64 = 1_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longer_than_its_work_takes_is_an_absence() {
        // 2 GHz: 20,000 cycles, and 2,000 for each frame.
        let mut presence = Presence::new(1_000, 2_000_000_000);
        assert_eq!(presence.look(21_000), 0);
        assert_eq!(presence.look(41_001), 41_001);
        // What was due before then is late through it, also much later.
        assert_eq!(presence.look(41_002), 41_001);
        assert_eq!(presence.absences(), 1);
    }

    #[test]
    fn much_to_do_at_once_is_none() {
        let mut presence = Presence::new(0, 1_000_000_000);
        presence.handle(32);
        presence.handle(32);
        assert_eq!(presence.look(74_000), 0);
        // Allowed for once.
        assert_eq!(presence.look(74_000 + 10_001), 84_001);
    }

    #[test]
    fn a_stall_of_the_back_end_is_none() {
        let mut presence = Presence::new(0, 1_000_000_000);
        // Nothing comes for a millisecond, asked for every 100 ns; then a whole queue at once.
        (1..=10_000).for_each(|turn| assert_eq!(presence.look(turn * 100), 0));
        presence.handle(256);
        assert_eq!(presence.look(1_000_000 + 100_000), 0);
        assert_eq!(presence.absences(), 0);
    }
}
