//! The counters that workers write: each by one thread, with relaxed stores; read by any.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crossbeam::utils::CachePadded;

use crate::histogram::{Histogram, Times};
use crate::sizes::{BurstSizes, Sizes};
use crate::stats::PumpStats;

/// A counter that one thread writes. No locked instruction.
#[derive(Debug, Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    #[inline]
    pub(crate) fn add(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn read(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// What one pump cost and did. Written by the worker that has the pump; a move hands the pen over with the pump.
#[derive(Debug, Default)]
pub(crate) struct PumpAccount(CachePadded<PumpFields>);

#[derive(Debug, Default)]
struct PumpFields {
    busy_cycles: Counter,
    bursts: Counter,
    items: Counter,
    asleep: AtomicBool,
    cannot_sleep: AtomicBool,
}

impl PumpAccount {
    /// Books a poll that moved something.
    #[inline]
    pub(crate) fn moved(&self, items: u64, cycles: u64) {
        self.0.busy_cycles.add(cycles);
        self.0.bursts.add(1);
        self.0.items.add(items);
    }

    pub(crate) fn set_asleep(&self, asleep: bool) {
        self.0.asleep.store(asleep, Ordering::Relaxed);
    }

    pub(crate) fn set_cannot_sleep(&self, cannot_sleep: bool) {
        self.0.cannot_sleep.store(cannot_sleep, Ordering::Relaxed);
    }

    pub(crate) fn read(&self, name: &str) -> PumpStats {
        PumpStats {
            name: name.to_owned(),
            busy_cycles: self.0.busy_cycles.read(),
            bursts: self.0.bursts.read(),
            items: self.0.items.read(),
            asleep: self.0.asleep.load(Ordering::Relaxed),
            cannot_sleep: self.0.cannot_sleep.load(Ordering::Relaxed),
        }
    }
}

/// What one worker did. Written by its thread, but for the two that say otherwise.
#[derive(Debug, Default)]
pub(crate) struct WorkerAccount(CachePadded<WorkerFields>);

#[derive(Debug, Default)]
struct WorkerFields {
    idle_cycles: Counter,
    sleep_cycles: Counter,
    turns: Counter,
    items: Counter,
    wakeups: Counter,
    panics: Counter,
    rests: Counter,
    rest_cycles: Counter,
    /// In the present window of time.
    longest_turn: AtomicU64,
    /// In the window before.
    longest_before: AtomicU64,
    /// When the present window ends.
    window_ends: AtomicU64,
    /// When the call into the current pump began.
    call_began: AtomicU64,
    /// The slot of the pump it is inside of, plus one.
    current: AtomicU32,
    /// When it fell asleep; 0 while awake.
    asleep_since: AtomicU64,
    /// What each poll moved that moved something.
    bursts: Sizes,
    /// How long the turns took that moved something: the sum is the busy cycles.
    busy: Histogram,
}

/// A copy of a worker's counters.
#[derive(Debug, Clone)]
pub(crate) struct WorkerSnapshot {
    pub(crate) busy: Times,
    pub(crate) idle_cycles: u64,
    pub(crate) sleep_cycles: u64,
    pub(crate) turns: u64,
    pub(crate) bursts: BurstSizes,
    pub(crate) items: u64,
    pub(crate) wakeups: u64,
    pub(crate) panics: u64,
    pub(crate) rests: u64,
    pub(crate) rest_cycles: u64,
    pub(crate) longest_turn: u64,
}

impl WorkerAccount {
    /// Books a poll that moved something, in the present turn.
    #[inline]
    pub(crate) fn moved(&self, items: u64) {
        self.0.bursts.add(items);
    }

    /// Books a turn that ends at `now` and whose polls moved `items`. `window` is that of [`WorkerAccount::read`].
    #[inline]
    pub(crate) fn turn(&self, now: u64, window: u64, cycles: u64, items: u64) {
        self.0.turns.add(1);
        if items > 0 {
            self.0.busy.add(cycles, 1);
            self.0.items.add(items);
        } else {
            self.0.idle_cycles.add(cycles);
        }
        if now >= self.0.window_ends.load(Ordering::Relaxed) {
            self.next_window(now, window);
        }
        if cycles > self.0.longest_turn.load(Ordering::Relaxed) {
            self.0.longest_turn.store(cycles, Ordering::Relaxed);
        }
    }

    /// Begins a window. A reader that comes between sees a turn twice, or one window's too few.
    #[cold]
    fn next_window(&self, now: u64, window: u64) {
        let fields = &self.0;
        let follows = now < fields.window_ends.load(Ordering::Relaxed).saturating_add(window);
        let before = if follows { fields.longest_turn.load(Ordering::Relaxed) } else { 0 };
        fields.longest_before.store(before, Ordering::Relaxed);
        fields.longest_turn.store(0, Ordering::Relaxed);
        fields.window_ends.store(now.saturating_add(window), Ordering::Relaxed);
    }

    /// The longest turn in the present window and the one before. Reading changes nothing: every reader sees it.
    fn longest_turn(&self, now: u64, window: u64) -> u64 {
        let fields = &self.0;
        let ends = fields.window_ends.load(Ordering::Relaxed);
        let (present, before) =
            (fields.longest_turn.load(Ordering::Relaxed), fields.longest_before.load(Ordering::Relaxed));
        // A worker that sleeps begins no window; then time alone makes what it did the past.
        match now {
            _ if now < ends => present.max(before),
            _ if now < ends.saturating_add(window) => present,
            _ => 0,
        }
    }

    pub(crate) fn panicked(&self) {
        self.0.panics.add(1);
    }

    /// It left the core to others for so many cycles.
    pub(crate) fn rested(&self, cycles: u64) {
        self.0.rests.add(1);
        self.0.rest_cycles.add(cycles);
    }

    /// A call into the pump of `slot` begins at `now`.
    #[inline]
    pub(crate) fn enter(&self, slot: u32, now: u64) {
        self.0.call_began.store(now, Ordering::Relaxed);
        self.0.current.store(slot + 1, Ordering::Relaxed);
    }

    /// No pump is being called.
    #[inline]
    pub(crate) fn leave(&self) {
        self.0.current.store(0, Ordering::Relaxed);
    }

    pub(crate) fn falls_asleep(&self, now: u64) {
        self.0.asleep_since.store(now, Ordering::Release);
    }

    pub(crate) fn woke_up(&self, cycles: u64) {
        // Before the sum: a reader that saw the new sum sees that this sleep is no longer to be added.
        self.0.asleep_since.store(0, Ordering::Release);
        self.0.wakeups.add(1);
        self.0.sleep_cycles.0.store(self.0.sleep_cycles.read().wrapping_add(cycles), Ordering::Release);
    }

    /// The slot of the pump it is inside of and since when, if it did not change while it was read.
    pub(crate) fn current(&self) -> Option<(u32, u64)> {
        let began = self.0.call_began.load(Ordering::Acquire);
        let current = self.0.current.load(Ordering::Acquire);
        let still = self.0.call_began.load(Ordering::Acquire);
        (current != 0 && began == still).then(|| (current - 1, began))
    }

    /// A copy; a sleep that goes on at `now` is counted up to it. The longest turn is that of the present `window` of
    /// so many cycles and the one before.
    pub(crate) fn read(&self, now: u64, window: u64) -> WorkerSnapshot {
        let fields = &self.0;
        let sleep_cycles = loop {
            let since = fields.asleep_since.load(Ordering::Acquire);
            let sum = fields.sleep_cycles.0.load(Ordering::Acquire);
            if fields.asleep_since.load(Ordering::Acquire) == since {
                break sum + if since == 0 { 0 } else { now.saturating_sub(since) };
            }
        };
        WorkerSnapshot {
            busy: fields.busy.snapshot(),
            idle_cycles: fields.idle_cycles.read(),
            sleep_cycles,
            turns: fields.turns.read(),
            bursts: fields.bursts.snapshot(),
            items: fields.items.read(),
            wakeups: fields.wakeups.read(),
            panics: fields.panics.read(),
            rests: fields.rests.read(),
            rest_cycles: fields.rest_cycles.read(),
            longest_turn: self.longest_turn(now, window),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn turn_is_busy_or_idle() {
        let account = WorkerAccount::default();
        account.turn(10, 100, 10, 0);
        account.moved(32);
        account.moved(32);
        account.turn(50, 100, 40, 64);
        account.moved(1);
        account.turn(70, 100, 20, 1);
        let read = account.read(70, 100);
        assert_eq!((read.idle_cycles, read.busy.cycles(), read.turns), (10, 60, 3));
        assert_eq!((read.bursts.count(), read.items, read.longest_turn), (3, 65, 40));
        assert_eq!((read.busy.count(), read.busy.longest()), (2, 40));
        assert_eq!((read.bursts.per_mille(333), read.bursts.per_mille(1000)), (1, 32));
    }

    #[test]
    fn longest_turn_is_the_same_for_every_reader_and_passes_with_time() {
        let account = WorkerAccount::default();
        let longest = |now| account.read(now, 100).longest_turn;
        account.turn(1_000, 100, 40, 0);
        assert_eq!((longest(1_000), longest(1_000), longest(1_099)), (40, 40, 40));
        // The next window: what was in the one before still counts.
        account.turn(1_100, 100, 7, 0);
        assert_eq!((longest(1_100), longest(1_199)), (40, 40));
        // The one after it.
        account.turn(1_200, 100, 5, 0);
        assert_eq!(longest(1_200), 7);
        // Asleep: nothing begins a window, and the past passes all the same.
        assert_eq!((longest(1_299), longest(1_300), longest(1_399), longest(1_400)), (7, 5, 5, 0));
        // After a long sleep nothing of before it counts.
        account.turn(9_000, 100, 3, 0);
        assert_eq!(longest(9_000), 3);
    }

    #[test]
    fn sleep_that_goes_on_is_counted_up_to_now() {
        let account = WorkerAccount::default();
        account.falls_asleep(100);
        assert_eq!(account.read(150, 100).sleep_cycles, 50);
        account.woke_up(80);
        assert_eq!(account.read(1_000, 100).sleep_cycles, 80);
    }
}
