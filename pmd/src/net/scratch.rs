//! Where a pump works on frames that do not go on as they are.

use memmap2::MmapMut;
use ringway_ring::chain::Burst;

/// Where frames are worked on whose receiver does not take them as they are. One a pump.
#[derive(Debug)]
pub struct Scratch {
    /// Pages of its own, which are not there before they are touched; None where it is never needed.
    pub(super) frame: Option<MmapMut>,
    /// Segments of the frame in line that were delivered before its receiver ran out of buffers.
    pub(super) resume: u32,
    /// Of a sink that finishes frames later: what it had been [given](super::side::Sink::given) after each of those that it took last.
    pub(super) marks: [u64; Burst::CHAINS],
}

impl Scratch {
    /// With room for a frame if `is_needed`.
    pub(super) fn new(is_needed: bool) -> std::io::Result<Scratch> {
        let frame = is_needed.then(|| MmapMut::map_anon(FRAME_BYTES)).transpose()?;
        Ok(Scratch { frame, resume: 0, marks: [0; Burst::CHAINS] })
    }
}

/// Room for the largest frame that passes the checks, in bytes: an IP packet of 64 KiB with an Ethernet header and tags.
const FRAME_BYTES: usize = (64 << 10) + 4096;
