//! Limits of time. One that is asserted is a multiple of what this machine takes in the same run for the same without what
//! disturbs it: a quick machine hides nothing, and a busy one fails nothing.

use std::time::{Duration, Instant};

/// How long something undisturbed takes here and now.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace(pub(crate) Duration);

impl Pace {
    /// The slowest of several turns.
    pub(crate) fn of(mut turn: impl FnMut()) -> Pace {
        let timed = (0..TURNS).map(|_| {
            let begun = Instant::now();
            turn();
            begun.elapsed()
        });
        Pace(timed.max().unwrap_or_default())
    }

    /// Fails unless something took less than so many times as long, with what a machine may take from anybody.
    #[track_caller]
    pub(crate) fn allows(self, times: u32, took: Duration) {
        assert!(took < times * self.0 + TAKEN, "it took {took:?}; undisturbed it takes {:?}", self.0);
    }

    /// The same for what ends now.
    #[track_caller]
    pub(crate) fn allows_since(self, times: u32, begun: Instant) {
        self.allows(times, begun.elapsed());
    }
}

const TURNS: u32 = 5;
/// What takes a millisecond undisturbed may find its core with somebody else just then, for longer than any multiple of that; whoever
/// waits for what does not come waits for longer still.
const TAKEN: Duration = Duration::from_millis(250);
