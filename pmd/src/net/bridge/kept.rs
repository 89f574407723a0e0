//! Frames that came through a lane and are for a sink that finishes later: copied into memory of the part's own, so that the lane goes
//! on. Entries of a lane are finished in order: a sink that takes its time would hold up all who send to its core.
//!
//! Part of a pump. Budget of all but making: no allocation, no lock, no panic; system calls as the sink's own.

use std::io;
use std::sync::Arc;

use ringway_ring::chain::Burst;

use super::copies::Copies;
use super::crossed::show_lost;
use crate::counters::DropReason;
use crate::net::frame::{Frame, Frames, Head};
use crate::net::offload::HEAD_BYTES;
use crate::net::scratch::Scratch;
use crate::net::side::{Load, Passage, Sink};

/// See the module's head.
#[derive(Debug)]
pub(super) struct Kept {
    /// By sink, so that one that finishes nothing takes nothing of the others.
    copies: Vec<Copies>,
    /// Frames that are being given to a sink, and their places.
    burst: Burst,
    frames: [Frame; Burst::CHAINS],
    heads: [Head; Burst::CHAINS],
    places: [u16; Burst::CHAINS],
}

impl Kept {
    /// For so many sinks.
    ///
    /// # Errors
    /// There is no memory.
    pub(super) fn new(sinks: usize) -> io::Result<Box<Kept>> {
        let copies = (0..sinks).map(|_| Copies::new(PLACES, 1)).collect::<io::Result<Vec<_>>>()?;
        let map = copies.first().map(|copies| Arc::clone(copies.map())).ok_or(io::ErrorKind::InvalidInput)?;
        let burst = Burst::try_new(map)?;
        Ok(Box::new(Kept {
            copies,
            burst,
            frames: [Frames::EMPTY; Burst::CHAINS],
            heads: [[0; HEAD_BYTES]; Burst::CHAINS],
            places: [0; Burst::CHAINS],
        }))
    }

    /// Gives frames to a sink, by its number, which keeps what it can.
    pub(super) fn give(
        &mut self,
        number: usize,
        sink: &mut dyn Sink,
        load: &Load<'_>,
        scratch: &mut Scratch,
    ) {
        let mut done = 0;
        while done < load.frames.len() {
            let mut count = self.copy(number, load, done);
            if count == 0 {
                // What it was given goes on its way, and mostly is finished then.
                sink.publish();
                self.finished(number, sink.finished());
                count = self.copy(number, load, done);
            }
            if count == 0 {
                self.release(number);
                sink.count_drops(DropReason::NoRxBuffer, (load.frames.len() - done) as u64);
                show_lost(sink.counters(), load.behind(done), DropReason::NoRxBuffer);
                return;
            }
            let ours = Load {
                burst: &self.burst,
                chains: self.burst.chains().get(..count).unwrap_or_default(),
                skip: 0,
                frames: self.frames.get(..count).unwrap_or_default(),
                heads: self.heads.get(..count).unwrap_or_default(),
            };
            let carried = sink.carry_or_drop(ours, scratch);
            let Some(copies) = self.copies.get_mut(number) else { return };
            for (nth, (place, mark)) in self.places.iter().zip(&scratch.marks).take(count).enumerate() {
                if nth < carried {
                    copies.keep(0, *mark, *place);
                }
            }
            copies.release();
            done += count;
        }
    }

    /// Copies frames from the one at `from` on, as many as there is room for; how many.
    fn copy(&mut self, number: usize, load: &Load<'_>, from: usize) -> usize {
        let Kept { copies, burst, frames, heads, places } = self;
        let Some(copies) = copies.get_mut(number) else { return 0 };
        burst.restart(copies.map());
        let mut count = 0;
        let frames_of = load.chains.iter().zip(load.frames).zip(load.heads).skip(from);
        let ours = frames.iter_mut().zip(heads).zip(places);
        for (((chain, frame), head), ((to, to_head), to_place)) in frames_of.zip(ours) {
            let passage =
                Passage { burst: load.burst, chain, skip: load.skip, frame, beginning: head, swap: false };
            let Some((at, place)) = copies.copy(count, &passage) else { break };
            if !burst.push_own(place, at, frame.len) {
                break;
            }
            (*to, *to_head, *to_place) = (*frame, *head, place);
            count += 1;
        }
        count
    }

    /// What was copied for a sink and is not kept is free again.
    fn release(&mut self, number: usize) {
        self.copies.get_mut(number).into_iter().for_each(Copies::release);
    }

    /// A sink is finished with all up to a mark.
    pub(super) fn finished(&mut self, number: usize, mark: u64) {
        if let Some(copies) = self.copies.get_mut(number) {
            copies.finished(0, mark);
        }
    }

    /// True if a sink still reads something.
    pub(super) fn is_out(&self) -> bool {
        !self.copies.iter().all(Copies::is_idle)
    }
}

/// Frames that are kept for one sink at a time.
const PLACES: u16 = 16;
