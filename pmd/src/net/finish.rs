//! Frames that do not go on as they are: a private copy of each, whose checksum is completed or which is cut into segments.
//!
//! Part of the pump that carries them. Budget: no allocation, no lock, no system call, no panic.

use super::offload::{Finish, HEAD_BYTES, Offload, Offloads, Segments, complete_checksum};
use super::scratch::Scratch;
use super::side::{Passage, Refused, Sink};
use crate::counters::DropReason;

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
