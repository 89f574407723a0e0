//! A part that its worker does not let turn: how the others know it, and what becomes of what is in the lanes to it.
//!
//! A lane whose reader is done with nothing for a while has a reader that is held: its worker has no CPU, or is in a pump that does not
//! come back. Whoever has frames out in it then, however few, or ends, takes back what the reader has not begun
//! to read. Those frames are dropped as what finds a lane full is, and until the reader turns nothing more is put in. What it has begun
//! to read, frames of one burst of one lane, is waited for: somebody's memory is being read.
//!
//! Part of a pump. Budget: no allocation, no lock, no system call, no panic.

use ringway_ring::tsc;

use super::{Lane, Part};

/// How far the reader of a lane had come, and how long it has been there.
#[derive(Debug, Clone, Copy)]
pub(super) struct Still {
    finished: u64,
    waited: Waited,
}

/// How long somebody has waited, by what he saw himself: a while in which he did not turn is no sign that the other did not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Waited {
    /// In cycles.
    total: u64,
    /// When that was.
    at: u64,
}

impl Waited {
    fn from(now: u64) -> Waited {
        Waited { total: 0, at: now }
    }

    /// True once it was for as long as anybody waits. Between two turns he may have had no CPU, or have slept until he was to look again:
    /// several times what either takes is counted, so that a host that has much to do makes it hardly longer.
    fn until(&mut self, now: u64, has_slept: bool, looks: u64) -> bool {
        let most = if has_slept { look_after() * 5 } else { look_after() / 2 };
        self.total += now.saturating_sub(self.at).min(most);
        self.at = now;
        self.total >= look_after() * looks
    }
}

impl Part {
    /// A turn begins: of the lanes in which frames are out, as `is_out` says of each by its index, those that are still are taken back.
    pub(in super::super) fn watch(&mut self, now: u64, is_out: impl Fn(usize) -> bool) {
        let has_slept = std::mem::take(&mut self.has_slept);
        for (_, lane) in self.lanes.iter_mut().enumerate().filter(|(nth, _)| is_out(*nth)) {
            lane.watch(now, has_slept);
            self.is_to_take_back |= lane.is_held;
        }
    }

    /// There is such a lane that was not taken back.
    pub(in super::super) fn watches(&self, is_out: impl Fn(usize) -> bool) -> bool {
        self.lanes.iter().enumerate().any(|(nth, lane)| lane.writer.is_open() && is_out(nth))
    }

    /// It ends, and is polled now: once it has waited for the others for long enough, all that they have not begun to read is taken
    /// back, and what they still say is waited for no longer.
    pub(in super::super) fn waits_from(&mut self, now: u64) {
        let has_slept = std::mem::take(&mut self.has_slept);
        if !self.ends.get_or_insert(Waited::from(now)).until(now, has_slept, LOOKS_TO_END) {
            return;
        }
        self.is_late = true;
        for lane in self.lanes.iter_mut().filter(|lane| lane.writer.is_open() && lane.writer.left() > 0) {
            (lane.is_held, self.is_to_take_back) = (true, true);
        }
    }

    /// There is a lane that is to be taken back; told once.
    #[inline]
    pub(in super::super) fn is_to_take_back(&mut self) -> bool {
        std::mem::take(&mut self.is_to_take_back)
    }

    /// Takes a lane back if it is to be: up to where it is read.
    pub(in super::super) fn take_back(&mut self, nth: usize) -> Option<u64> {
        let lane = self.lanes.get_mut(nth).filter(|lane| lane.is_held)?;
        lane.is_held = false;
        let still = lane.still.take();
        let finished = lane.writer.finished();
        // Nobody reads it, or it has moved since: what is behind may be read soon, and whoever ends does not wait for that.
        let has_moved = still.is_some_and(|still| still.finished != finished) && !self.is_late;
        if lane.writer.left() == 0 || lane.writer.is_closed() || has_moved {
            return None;
        }
        let claimed = lane.writer.take_back();
        if lane.writer.is_closed() {
            // What was in it is counted as of one that is gone.
            return None;
        }
        // Stations were among it, and guests that have arrived.
        lane.missed = Some(0);
        lane.arrivals.take_back(claimed);
        self.copies.take_back(nth, claimed);
        Some(claimed)
    }
}

impl Lane {
    /// Looks whether it moves.
    fn watch(&mut self, now: u64, has_slept: bool) {
        let finished = self.writer.given() - self.writer.left();
        match self.still.as_mut().filter(|still| still.finished == finished) {
            _ if self.writer.left() == 0 || !self.writer.is_open() => self.still = None,
            Some(still) => self.is_held |= still.waited.until(now, has_slept, LOOKS_TO_SEND),
            None => self.still = Some(Still { finished, waited: Waited::from(now) }),
        }
    }
}

/// Cycles after which whoever waits for a part that does not move looks again, at the latest.
pub(in super::super) fn look_after() -> u64 {
    tsc::hertz() / LOOK_AFTER
}

/// The part of a second after which whoever waits looks again: ten milliseconds.
const LOOK_AFTER: u64 = 100;

/// So often, before a part that does not move is held: a second. Who shares a core with too many others was seen without it for two: what
/// is for him is dropped by name then.
const LOOKS_TO_SEND: u64 = 100;
const LOOKS_TO_END: u64 = 100;
