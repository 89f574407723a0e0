//! What the generator of a disk's load shall be like: the parameters of every measurement, as they stand in its result.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use clap::ValueEnum;
use ringway_guest::block::BlockOptions;
use ringway_guest::block::lane::Mix;
use ringway_guest::block::stamp;
use ringway_ring::memory::PageKind;
use serde::{Deserialize, Serialize};

use crate::options::Ring;

/// What is asked of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// Reads.
    Read,
    /// Writes.
    Write,
    /// Reads and writes.
    Mix,
    /// Flushes.
    Flush,
    /// Discards.
    Discard,
    /// Writes of zeroes.
    Zeroes,
}

impl fmt::Display for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Op::Read => "read",
            Op::Write => "write",
            Op::Mix => "mix",
            Op::Flush => "flush",
            Op::Discard => "discard",
            Op::Zeroes => "zeroes",
        })
    }
}

/// Whose rings the load goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Driver {
    /// Ours
    Ringway,
    /// The crate `virtio-driver`, libblkio's: one queue, split rings, reads and writes, nothing checked
    VirtioDriver,
}

/// What the generator reads and writes of each block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Touch {
    /// Nothing: the disk need not move any byte, and nothing is checked
    None,
    /// Number, generation and check of each block of 4 KiB
    Head,
    /// Every byte: written before it is sent, compared when it comes
    All,
}

impl fmt::Display for Touch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Touch::None => "none",
            Touch::Head => "head",
            Touch::All => "all",
        })
    }
}

impl Touch {
    /// As the guest has it.
    pub fn stamped(self) -> stamp::Touch {
        match self {
            Touch::None => stamp::Touch::Nothing,
            Touch::Head => stamp::Touch::Head,
            Touch::All => stamp::Touch::All,
        }
    }
}

/// A number of bytes, as people write it: `512`, `4K`, `1M`, `2G`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Bytes(pub u64);

impl FromStr for Bytes {
    type Err = String;

    fn from_str(text: &str) -> Result<Bytes, String> {
        let digits = text.trim_end_matches(|last: char| !last.is_ascii_digit());
        let shift = match &text[digits.len()..] {
            "" => 0,
            "k" | "K" => 10,
            "m" | "M" => 20,
            "g" | "G" => 30,
            other => return Err(format!("{other:?} is no unit: K, M, G, or none for bytes")),
        };
        let number: u64 = digits.parse().map_err(|_| format!("{text:?} is no number of bytes"))?;
        number.checked_mul(1 << shift).map(Bytes).ok_or_else(|| format!("{text:?} is too large"))
    }
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(30, "G"), (20, "M"), (10, "K")];
        match units.into_iter().find(|(shift, _)| self.0 > 0 && self.0.is_multiple_of(1 << shift)) {
            Some((shift, unit)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

/// What the generator is like.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DiskOptions {
    /// Whose rings.
    pub driver: Driver,
    /// Ring layout.
    pub ring: Ring,
    /// What is asked.
    pub op: Op,
    /// Percent of reads in a mix.
    pub reads: u32,
    /// One request in so many is a flush.
    pub flush_every: Option<u32>,
    /// Bytes of each request.
    pub size: Bytes,
    /// Requests under way, a queue.
    pub depth: u16,
    /// Queues.
    pub queues: u16,
    /// Entries of each ring; as many as the depth needs without.
    pub queue_size: Option<u16>,
    /// What is read and written of each block.
    pub touch: Touch,
    /// One request after the other in place of any.
    pub sequential: bool,
    /// Requests in tables of descriptors.
    pub indirect: bool,
    /// Data cut into descriptors of so many bytes.
    pub segment: Option<Bytes>,
    /// Negotiate RING_EVENT_IDX, as every Linux guest does.
    pub event_idx: bool,
    /// How much of the disk is used, from its beginning; all of it at most.
    pub span: Bytes,
    /// The device makes writes durable before they are completed: it need not while every block is written before a measurement.
    #[serde(skip)]
    pub durable: bool,
    /// The pages of its memory; the largest there are without it.
    #[serde(skip)]
    pub pages: Option<PageKind>,
    /// How long the back-end may take for an answer, and to be there; and for a request.
    #[serde(skip)]
    pub patience: Duration,
}

impl Default for DiskOptions {
    fn default() -> DiskOptions {
        DiskOptions {
            driver: Driver::Ringway,
            ring: Ring::Split,
            op: Op::Read,
            reads: 70,
            flush_every: None,
            size: Bytes(4096),
            depth: 32,
            queues: 1,
            queue_size: None,
            touch: Touch::Head,
            sequential: false,
            indirect: false,
            segment: None,
            event_idx: true,
            span: Bytes(256 << 20),
            durable: false,
            pages: None,
            patience: Duration::from_secs(10),
        }
    }
}

impl DiskOptions {
    /// Of so many requests, how many are of each kind.
    pub fn mix(&self) -> Mix {
        let (flush, others) = match self.flush_every {
            Some(every) => (1, every.saturating_sub(1)),
            None => (0, 1),
        };
        let none = Mix { flush: flush * PERCENT, ..Mix::default() };
        let reads = self.reads.min(PERCENT);
        match self.op {
            Op::Read => Mix { read: others * PERCENT, ..none },
            Op::Write => Mix { write: others * PERCENT, ..none },
            Op::Mix => Mix { read: others * reads, write: others * (PERCENT - reads), ..none },
            Op::Discard => Mix { discard: others * PERCENT, ..none },
            Op::Zeroes => Mix { zeroes: others * PERCENT, ..none },
            Op::Flush => Mix { flush: 1, ..Mix::default() },
        }
    }

    /// Bytes that are stamped as one block.
    pub fn block_bytes(&self) -> u32 {
        if self.size.0.is_multiple_of(BLOCK) { BLOCK as u32 } else { SECTOR as u32 }
    }

    /// Descriptors of a request in the ring.
    fn descriptors(&self) -> u64 {
        if self.indirect {
            1
        } else {
            2 + self.segment.map_or(1, |segment| self.size.0.div_ceil(segment.0.max(1)))
        }
    }

    /// Entries of each ring.
    pub fn ring_size(&self) -> u16 {
        let needed = (u64::from(self.depth) * self.descriptors()).next_power_of_two();
        self.queue_size.unwrap_or_else(|| needed.clamp(LEAST_RING, MOST_RING) as u16)
    }

    /// The port.
    pub fn port(&self) -> BlockOptions {
        BlockOptions {
            format: self.ring.format(),
            queues: self.queues,
            queue_size: self.ring_size(),
            depth: self.depth,
            max_bytes: self.size.0.min(u64::from(u32::MAX)) as u32,
            segment_bytes: self.segment.map(|segment| segment.0.min(u64::from(u32::MAX)) as u32),
            indirect: self.indirect,
            event_idx: self.event_idx,
            pages: self.pages,
            patience: self.patience,
            ..BlockOptions::default()
        }
    }

    /// The load changes what is on the disk.
    pub fn writes(&self) -> bool {
        self.touch != Touch::None || !matches!(self.op, Op::Read | Op::Flush)
    }
}

const PERCENT: u32 = 100;
const BLOCK: u64 = 4096;
const SECTOR: u64 = 512;
const LEAST_RING: u64 = 128;
const MOST_RING: u64 = 32768;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_as_people_write_them() {
        for (text, bytes) in [("512", 512), ("4K", 4096), ("1m", 1 << 20), ("2G", 2 << 30), ("0", 0)] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
            assert_eq!(Bytes(bytes).to_string().to_lowercase(), text.to_lowercase());
        }
        for text in ["", "K", "4T", "4 K", "-1", "99999999999G", "4.5K", "4KiB"] {
            assert!(text.parse::<Bytes>().is_err(), "{text}");
        }
    }

    #[test]
    fn mixes_have_their_shares() {
        let mix = |op, flush_every| DiskOptions { op, flush_every, ..DiskOptions::default() }.mix();
        assert_eq!(mix(Op::Read, None), Mix { read: 100, ..Mix::default() });
        assert_eq!(mix(Op::Mix, Some(11)), Mix { read: 700, write: 300, flush: 100, ..Mix::default() });
        assert_eq!(mix(Op::Flush, Some(5)), Mix { flush: 1, ..Mix::default() });
        assert_eq!(mix(Op::Zeroes, None).zeroes, 100);
    }

    #[test]
    fn ring_has_room_for_the_depth() {
        let size = |depth, indirect, segment: Option<u64>| {
            DiskOptions { depth, indirect, segment: segment.map(Bytes), ..DiskOptions::default() }.ring_size()
        };
        assert_eq!((size(1, false, None), size(32, false, None), size(128, false, None)), (128, 128, 512));
        assert_eq!((size(256, true, None), size(32, false, Some(512))), (256, 512));
    }
}
