//! Frames that were taken from sources and that sinks still read: which of them their sources get back, each source's in the
//! order in which it gave them, as sinks finish.
//!
//! ```text
//!   source 0:  [ 0 ][ 2 ][ 0 ][ 1 ]       how many sinks read each; the first goes back, the third waits for the second
//!   sink 0:    (mark 7: source 0, second) (mark 9: source 0, fourth)        goes on from the left as it finishes
//! ```
//!
//! Part of a pump. Budget of all but making: no allocation, no lock, no system call, no panic.

use std::collections::VecDeque;

use super::side::Source;

/// See the module's head.
#[derive(Debug)]
pub(super) struct InFlight {
    sources: Vec<Taken>,
    sinks: Vec<VecDeque<Wait>>,
    /// Frames of all sources.
    frames: usize,
    /// The time of the present poll: frames that are taken now were first seen then.
    now: u64,
}

/// What is taken of one source.
#[derive(Debug)]
struct Taken {
    /// The number of the frame in front.
    first: u64,
    /// Each, from the front on.
    readers: VecDeque<Readers>,
    /// How long the first of those that were given back last had been seen.
    waited: u64,
}

/// A frame that is taken.
#[derive(Debug, Clone, Copy)]
struct Readers {
    /// How many sinks read it.
    count: u16,
    /// When it was first seen.
    since: u64,
}

/// What a sink reads.
#[derive(Debug, Clone, Copy)]
struct Wait {
    /// It is finished with it once it is finished with so much.
    mark: u64,
    source: usize,
    frame: u64,
}

impl InFlight {
    /// Of so many sources, and so many sinks that finish later.
    pub(super) fn new(sources: usize, sinks: usize) -> InFlight {
        let most = if sinks == 0 { 0 } else { MOST };
        let taken = |_| Taken { first: 0, readers: VecDeque::with_capacity(most), waited: 0 };
        InFlight {
            sources: (0..sources).map(taken).collect(),
            sinks: (0..sinks).map(|_| VecDeque::with_capacity(MOST)).collect(),
            frames: 0,
            now: 0,
        }
    }

    /// A poll begins, at this time.
    #[inline]
    pub(super) fn begin(&mut self, now: u64) {
        self.now = now;
    }

    /// True if nothing is taken.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        self.frames == 0
    }

    /// True if frames of a source are taken.
    #[inline]
    pub(super) fn holds(&self, source: usize) -> bool {
        self.frames > 0 && self.sources.get(source).is_some_and(|taken| !taken.readers.is_empty())
    }

    /// How many more may be taken of a source.
    #[inline]
    pub(super) fn room(&self, source: usize) -> usize {
        self.sources.get(source).map_or(0, |taken| MOST - taken.readers.len().min(MOST))
    }

    /// How many more a sink may be given to read.
    pub(super) fn room_at(&self, sink: usize) -> usize {
        self.sinks.get(sink).map_or(0, |waits| MOST - waits.len().min(MOST))
    }

    /// A sink reads something.
    #[inline]
    pub(super) fn is_read_at(&self, sink: usize) -> bool {
        self.sinks.get(sink).is_some_and(|waits| !waits.is_empty())
    }

    /// The number of the next frame that is taken of a source.
    pub(super) fn next(&self, source: usize) -> u64 {
        self.sources.get(source).map_or(0, |taken| taken.first + taken.readers.len() as u64)
    }

    /// A sink reads a frame until it is finished with `mark`: one that is taken, or is about to be.
    pub(super) fn read_by(&mut self, sink: usize, mark: u64, source: usize, frame: u64) {
        self.take_up_to(source, frame + 1);
        let Some(waits) = self.sinks.get_mut(sink) else { return };
        let Some(taken) = self.sources.get_mut(source) else { return };
        if let Some(readers) = taken.readers.get_mut(frame.saturating_sub(taken.first) as usize) {
            readers.count += 1;
            waits.push_back(Wait { mark, source, frame });
        }
    }

    /// Every frame of a source below a number is taken.
    pub(super) fn take_up_to(&mut self, source: usize, end: u64) {
        let Some(taken) = self.sources.get_mut(source) else { return };
        let more = end.saturating_sub(taken.first + taken.readers.len() as u64) as usize;
        taken.readers.extend(std::iter::repeat_n(Readers { count: 0, since: self.now }, more));
        self.frames += more;
    }

    /// The first `frames` of what was peeked of a source, numbered from `first` on, are done with: given back at once, or,
    /// where some are read or come after such, when it is their turn.
    #[inline]
    pub(super) fn settle(&mut self, at: usize, first: u64, source: &mut dyn Source, frames: usize) {
        if self.holds(at) {
            self.take_up_to(at, first + frames as u64);
            source.take(frames);
        } else {
            source.finish(frames);
        }
    }

    /// A sink is finished with all up to a mark.
    pub(super) fn finished(&mut self, sink: usize, mark: u64) {
        let Some(waits) = self.sinks.get_mut(sink) else { return };
        while let Some(wait) = waits.front().copied().filter(|wait| wait.mark <= mark) {
            waits.pop_front();
            if let Some(taken) = self.sources.get_mut(wait.source)
                && let Some(readers) = taken.readers.get_mut(wait.frame.saturating_sub(taken.first) as usize)
            {
                readers.count = readers.count.saturating_sub(1);
            }
        }
    }

    /// A sink does not read what it was given beyond a mark, and it is waited for no longer: the source of each such frame is told.
    pub(super) fn take_back(&mut self, sink: usize, mark: u64, mut of: impl FnMut(usize)) {
        let Some(waits) = self.sinks.get_mut(sink) else { return };
        while let Some(wait) = waits.pop_back_if(|wait| wait.mark > mark) {
            if let Some(taken) = self.sources.get_mut(wait.source)
                && let Some(readers) = taken.readers.get_mut(wait.frame.saturating_sub(taken.first) as usize)
            {
                readers.count = readers.count.saturating_sub(1);
            }
            of(wait.source);
        }
    }

    /// The source of each frame with which a sink is not finished when it is finished with all up to a mark.
    pub(super) fn beyond(&self, sink: usize, mark: u64) -> impl Iterator<Item = usize> {
        let waits = self.sinks.get(sink).into_iter().flatten();
        waits.filter(move |wait| wait.mark > mark).map(|wait| wait.source)
    }

    /// How many frames of a source are not read any more, from the oldest on: they are no longer counted as taken.
    pub(super) fn give_back(&mut self, source: usize) -> usize {
        let Some(taken) = self.sources.get_mut(source) else { return 0 };
        let done = taken.readers.iter().take_while(|readers| readers.count == 0).count();
        if let Some(first) = taken.readers.front().filter(|_| done > 0) {
            taken.waited = self.now.saturating_sub(first.since);
        }
        taken.readers.drain(..done);
        taken.first += done as u64;
        self.frames -= done.min(self.frames);
        done
    }

    /// How long before the present poll the first of what was given back last had been seen; it is told once.
    pub(super) fn waited(&mut self, source: usize) -> u64 {
        self.sources.get_mut(source).map_or(0, |taken| std::mem::take(&mut taken.waited))
    }
}

/// Frames of one source, and for one sink, that are out at a time.
pub(super) const MOST: usize = 256;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_go_back_in_order_whichever_sink_is_finished_first() {
        let mut out = InFlight::new(2, 2);
        assert_eq!(out.next(0), 0);
        // Of four frames the second goes to both sinks, the fourth to one; the others to nobody who keeps them.
        out.read_by(0, 7, 0, 1);
        out.read_by(1, 1, 0, 1);
        out.read_by(0, 9, 0, 3);
        out.take_up_to(0, 4);
        // Another source is nobody's hindrance.
        out.read_by(1, 2, 1, 0);
        assert_eq!((out.give_back(0), out.give_back(1)), (1, 0));
        out.finished(1, 2);
        assert_eq!((out.give_back(0), out.give_back(1)), (0, 1));
        assert!(out.holds(0) && !out.holds(1) && !out.is_empty());
        assert_eq!((out.beyond(0, 7).count(), out.beyond(0, 9).count()), (1, 0));
        out.finished(0, 8);
        assert_eq!(out.give_back(0), 2);
        out.begin(50);
        out.finished(0, 9);
        assert_eq!(out.give_back(0), 1);
        assert_eq!((out.waited(0), out.waited(0), out.waited(1)), (50, 0, 0));
        assert!(out.is_empty());
        assert_eq!(out.next(0), 4);
    }

    #[test]
    fn what_a_sink_does_not_read_is_taken_back_and_what_it_reads_is_waited_for() {
        let mut out = InFlight::new(2, 2);
        out.read_by(0, 1, 0, 0);
        out.read_by(0, 2, 1, 0);
        out.read_by(0, 4, 1, 1);
        out.read_by(0, 5, 0, 1);
        // Another sink reads one of them as well.
        out.read_by(1, 1, 1, 1);
        let mut of = Vec::new();
        out.take_back(0, 1, |source| of.push(source));
        of.sort_unstable();
        assert_eq!(of, [0, 1, 1]);
        assert_eq!((out.give_back(0), out.give_back(1)), (0, 1));
        out.finished(0, 1);
        out.finished(1, 1);
        assert_eq!((out.give_back(0), out.give_back(1)), (2, 1));
        assert!(out.is_empty() && out.room_at(0) == MOST);
    }

    #[test]
    fn as_many_frames_are_out_as_may_be() {
        let mut out = InFlight::new(1, 1);
        for frame in 0..MOST as u64 {
            assert!(out.room(0) > 0 && out.room_at(0) > 0, "{frame}");
            out.read_by(0, frame + 1, 0, frame);
        }
        assert_eq!((out.room(0), out.room_at(0)), (0, 0));
        out.finished(0, 1);
        assert_eq!((out.give_back(0), out.room(0), out.room_at(0)), (1, 1, 1));
    }
}
