//! Frames that do not go on as they are: a private copy of each, whose checksum is completed or which is cut into segments.
//!
//! Part of the pump that carries them. Budget: no allocation, no lock, no system call, no panic.

use memmap2::MmapMut;
use ringway_ring::chain::Burst;

use super::offload::{Finish, HEAD_BYTES, Offload, Offloads, Segments, complete_checksum};
use super::side::{Passage, Refused, Sink};
use crate::counters::DropReason;

/// Where frames are worked on whose receiver does not take them as they are. One a pump.
#[derive(Debug)]
pub struct Scratch {
    /// Pages of its own, which are not there before they are touched; None where it is never needed.
    frame: Option<MmapMut>,
    /// Segments of the frame in line that were delivered before its receiver ran out of buffers.
    pub(super) resume: u32,
    /// Of a sink that finishes frames later: what it had been [given](Sink::given) after each of those that it took last.
    pub(super) marks: [u64; Burst::CHAINS],
}

impl Scratch {
    /// With room for a frame if `is_needed`.
    pub(super) fn new(is_needed: bool) -> std::io::Result<Scratch> {
        let frame = is_needed.then(|| MmapMut::map_anon(FRAME_BYTES)).transpose()?;
        Ok(Scratch { frame, resume: 0, marks: [0; Burst::CHAINS] })
    }
}

/// Finishes what a sink did not agree to finish, on a copy, and delivers what came of it.
///
/// # Errors
/// What the sink answered.
#[inline(never)]
pub fn finish<S: Sink>(
    to: &mut S,
    from: Passage<'_>,
    offload: Offload,
    scratch: &mut Scratch,
) -> Result<(), Refused> {
    let Scratch { frame: room, resume, .. } = scratch;
    let frame = from.copy(room.as_deref_mut().unwrap_or_default());
    if frame.len() < from.frame.len as usize {
        // Not reached: a pump whose sources may leave more to be done than its sinks take has room.
        return Err(Refused::Drop(DropReason::BadOffload));
    }
    match offload {
        Offload::None => to.put_bytes(frame, &[], Offload::None),
        Offload::Checksum { start, offset } => {
            complete_checksum(frame, start, offset);
            to.put_bytes(frame, &[], Offload::None)?;
            to.tally().checksums += 1;
            Ok(())
        }
        Offload::Segment { .. } => {
            let finish = if to.takes().contains(Offloads::CHECKSUM) { Finish::Partial } else { Finish::Full };
            let mut segments = Segments::new(frame, offload, finish);
            let mut head = [0; HEAD_BYTES];
            let mut done = 0;
            while let Some(piece) = segments.next(&mut head) {
                done += 1;
                // Those before were delivered when the frame was in line before.
                if done <= *resume {
                    continue;
                }
                let bytes = head.get(..piece.head_len).unwrap_or_default();
                let payload = frame.get(piece.payload.clone()).unwrap_or_default();
                match to.put_bytes(bytes, payload, piece.offload) {
                    Ok(()) => to.tally().segments += 1,
                    Err(Refused::Starved) => {
                        *resume = done - 1;
                        return Err(Refused::Starved);
                    }
                    Err(other) => {
                        *resume = 0;
                        return Err(other);
                    }
                }
            }
            *resume = 0;
            to.tally().segmented += 1;
            Ok(())
        }
    }
}

/// Room for the largest frame that passes the checks, in bytes: an IP packet of 64 KiB with an Ethernet header and tags.
const FRAME_BYTES: usize = (64 << 10) + 4096;
