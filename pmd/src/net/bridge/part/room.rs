//! How much of a burst finds room in the lanes that it is for, and how long the rest waits in its source.
//!
//! A lane that moves presses back whoever it has no room for. Whoever finds none first is next: the others leave a burst's worth to
//! it, so that nobody who is asked earlier can keep it out. A lane that has not moved for a moment drops what is for it, and a source
//! whose first frame has waited for as long drops what finds no room: one part that is held is nobody's hindrance for longer. Places
//! for frames in many pieces are waited for alike.
//!
//! Part of a pump. Budget: no allocation, no lock, no system call, no panic.

use ringway_ring::chain::Burst;
use ringway_ring::tsc;

use super::super::decision::{AWAY, Decision};
use super::{Lane, Part};
use crate::net::in_flight::InFlight;

/// What a source waits for.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Waiting {
    /// Since when its first frame has, in cycles.
    since: Option<u64>,
    /// Frames in front of it that were learned from already.
    decided: usize,
}

/// The source to which others leave room in a lane.
#[derive(Debug, Clone, Copy)]
pub(super) struct Next {
    source: usize,
    /// When it found none last, in cycles.
    at: u64,
}

impl Part {
    /// How many of the first frames of a burst find room in the lanes that they are for, or have waited long enough: the others stay
    /// in their source. What chains of the burst are in decides what has to be copied.
    pub(in super::super) fn fit(
        &mut self,
        decisions: &[Decision],
        burst: &Burst,
        source: usize,
        (in_flight, first_sink): (&InFlight, usize),
        now: u64,
    ) -> usize {
        for (sink, lane) in (first_sink..).zip(&mut self.lanes) {
            // As many as may be out: what was finished since the poll began is not given back yet.
            lane.look_for_room(in_flight.room_at(sink), source, now);
        }
        let mut copies = self.copies.room();
        if copies > 0 {
            self.copies_full_since = None;
        } else {
            self.copies_full_since.get_or_insert(now);
        }
        let no_places = is_long(self.copies_full_since, now);
        let is_late = is_long(self.waiting.get(source).and_then(|waiting| waiting.since), now);
        let mut fit = decisions.len();
        for (nth, (decision, chain)) in decisions.iter().zip(burst.chains()).enumerate() {
            // Or not, where one of the pieces is a header alone.
            let is_copied = chain.segments() > 2;
            let has_place = !is_copied || copies > 0;
            let mut is_put = false;
            let mut fits = |lane: &mut Lane| {
                if !lane.has_sinks || !lane.writer.is_open() {
                    return true;
                }
                if lane.room == 0 {
                    lane.next.get_or_insert(Next { source, at: now });
                    return is_late || is_long(lane.full_since, now);
                }
                if !has_place {
                    return is_late || no_places;
                }
                lane.room -= 1;
                is_put = true;
                true
            };
            let all = match *decision {
                Decision::Port(index) if index & AWAY != 0 => {
                    let away = self.away.get(usize::from(index & !AWAY)).and_then(Option::as_ref);
                    let lane = away.and_then(|away| self.lanes.get_mut(usize::from(away.lane)));
                    lane.is_none_or(&mut fits)
                }
                Decision::Flood | Decision::FloodHere => self.lanes.iter_mut().all(&mut fits),
                Decision::Port(_) | Decision::Drop(_) => true,
            };
            if !all {
                fit = nth;
                break;
            }
            // One place, whichever lanes it goes through.
            copies -= usize::from(is_copied && is_put);
        }
        self.is_short |= fit < decisions.len();
        if let Some(waiting) = self.waiting.get_mut(source) {
            if fit > 0 {
                waiting.since = None;
            } else {
                waiting.since.get_or_insert(now);
            }
        }
        fit
    }

    /// A burst in this turn found no room for all of its frames; told once.
    #[inline]
    pub(in super::super) fn was_short(&mut self) -> bool {
        std::mem::take(&mut self.is_short)
    }

    /// Frames in front of a source that were learned from already.
    #[inline]
    pub(in super::super) fn decided(&self, source: usize) -> usize {
        self.waiting.get(source).map_or(0, |waiting| waiting.decided)
    }

    /// Of frames of a source that were learned from, so many do not stay.
    #[inline]
    pub(in super::super) fn settle(&mut self, source: usize, frames: usize, done: usize) {
        if let Some(waiting) = self.waiting.get_mut(source) {
            waiting.decided = frames.max(waiting.decided).saturating_sub(done);
        }
    }

    /// So many more of them stay.
    pub(in super::super) fn stay(&mut self, source: usize, frames: usize) {
        self.waiting.get_mut(source).into_iter().for_each(|waiting| waiting.decided += frames);
    }
}

impl Lane {
    /// Looks how many entries it takes, before a burst of them.
    fn look_for_room(&mut self, may_be_out: usize, source: usize, now: u64) {
        self.room = self.writer.room();
        if self.room < Burst::CHAINS {
            self.writer.finished();
            self.room = self.writer.room();
        }
        self.room = self.room.min(may_be_out.saturating_sub(RESERVED));
        if self.room > 0 {
            self.full_since = None;
        } else {
            self.full_since.get_or_insert(now);
        }
        if let Some(next) = self.next {
            if next.source == source || is_long(Some(next.at), now) {
                self.next = None;
            } else {
                self.room = self.room.saturating_sub(Burst::CHAINS);
            }
        }
    }
}

/// It has been so for as long as anybody waits.
pub(super) fn is_long(since: Option<u64>, now: u64) -> bool {
    since.is_some_and(|since| now.saturating_sub(since) >= tsc::hertz() / FULL_WITHIN)
}

/// Entries of a lane that no frame takes: for stations, without which frames go to the wrong port. A source has as many frames fewer
/// out, so that one alone is pressed back by what it has out, and not by the lane.
pub(in super::super) const RESERVED: usize = 16;

/// The part of a second that a source waits for a full lane: a millisecond.
const FULL_WITHIN: u64 = 1000;
