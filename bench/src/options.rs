//! What the generator's ports shall be like: the parameters of every measurement, as they stand in its result.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;
use ringway_guest::GuestOptions;
use ringway_guest::frame::{Addresses, Sizes};
use ringway_guest::options;
use ringway_ring::memory::PageKind;
use ringway_ring::queue::Format;
use serde::{Deserialize, Serialize};

/// Ring layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ring {
    /// Split virtqueues.
    Split,
    /// Packed virtqueues.
    Packed,
}

impl Ring {
    /// Both.
    pub const ALL: [Ring; 2] = [Ring::Split, Ring::Packed];

    /// As the rings have it.
    pub fn format(self) -> Format {
        match self {
            Ring::Split => Format::Split,
            Ring::Packed => Format::Packed,
        }
    }
}

impl fmt::Display for Ring {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Ring::Split => "split",
            Ring::Packed => "packed",
        })
    }
}

/// What the generator reads and writes of each frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Touch {
    /// Nothing: frames are written once, and what comes is counted by descriptor (and of one frame in 1,024 all is read).
    None,
    /// The first 46 bytes (and of one frame in 1,024 all, to see that they came).
    Header,
    /// Every byte: written before it is sent, compared when it comes.
    All,
}

impl fmt::Display for Touch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Touch::None => "none",
            Touch::Header => "header",
            Touch::All => "all",
        })
    }
}

/// What frames do between the ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Job {
    /// One port: what goes in comes out again, MAC addresses exchanged.
    #[value(name = "net", alias = "loopback")]
    #[serde(rename = "net")]
    Loopback,
    /// Two ports, joined untouched: what goes into one comes out of the other.
    Link,
    /// Ports of a learning switch, which talk in pairs.
    #[value(skip)]
    Bridge,
}

impl Job {
    /// Ports that it takes at least.
    pub fn ports(self) -> usize {
        match self {
            Job::Loopback => 1,
            Job::Link | Job::Bridge => 2,
        }
    }
}

impl fmt::Display for Job {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Job::Loopback => "net",
            Job::Link => "link",
            Job::Bridge => "bridge",
        })
    }
}

/// What each port is like.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PortOptions {
    /// Ring layout.
    pub ring: Ring,
    /// Frame lengths.
    #[serde(serialize_with = "as_text")]
    pub size: Sizes,
    /// What is read and written of each frame.
    pub touch: Touch,
    /// Entries in each ring.
    pub queue_size: u16,
    /// Negotiate MRG_RXBUF.
    pub mergeable: bool,
    /// Negotiate RING_EVENT_IDX, as every Linux guest does.
    pub event_idx: bool,
    /// Negotiate IN_ORDER.
    pub in_order: bool,
    /// Queue pairs.
    pub pairs: u16,
    /// Memory regions that buffers and rings are spread over.
    pub regions: u16,
    /// The pages of its memory; the largest there are without it.
    #[serde(serialize_with = "page_kind")]
    pub pages: Option<PageKind>,
    /// Of one frame in 1,024, look at every byte, also if only heads are touched.
    pub sampled: bool,
    /// Own the socket and wait for the back-end to connect.
    pub listen: bool,
    /// Frames under way at most, a ring's worth without it.
    pub window: Option<u16>,
    /// One frame in so many goes to an address that nobody has.
    pub flood: Option<u32>,
    /// How long the back-end may take for an answer, and to be there.
    #[serde(skip)]
    pub patience: Duration,
}

impl Default for PortOptions {
    fn default() -> PortOptions {
        PortOptions {
            ring: Ring::Split,
            size: Sizes::Fixed(64),
            touch: Touch::Header,
            queue_size: 256,
            mergeable: true,
            event_idx: true,
            in_order: false,
            pairs: 1,
            regions: 1,
            pages: None,
            sampled: true,
            listen: false,
            window: None,
            flood: None,
            patience: Duration::from_secs(10),
        }
    }
}

impl PortOptions {
    /// The guest that stands at the port. With mergeable buffers they are as long as a driver commonly takes, and a
    /// longer frame fills several; without them there is room for the longest frame. Ports that are joined send to each other's
    /// address, so that what learns addresses carries their frames as well.
    pub fn guest(&self, port: usize) -> GuestOptions {
        // The longest header that there is.
        let whole = 12 + u32::from(self.size.max());
        GuestOptions {
            format: self.ring.format(),
            pairs: self.pairs,
            queue_size: self.queue_size,
            sizes: self.size,
            touch: match self.touch {
                Touch::None => options::Touch::None,
                Touch::Header => options::Touch::Header,
                Touch::All => options::Touch::All,
            },
            whole_every: self.sampled.then_some(WHOLE_SAMPLE),
            window: self.window,
            flood: self.flood,
            mergeable: self.mergeable,
            event_idx: self.event_idx,
            in_order: self.in_order,
            // 0 with 1, 2 with 3, ..
            addresses: Addresses { to: address(port ^ 1), from: address(port) },
            rx_buffer: Some(if self.mergeable { MERGEABLE_BUFFER } else { whole.max(MERGEABLE_BUFFER) }),
            pages: self.pages,
            regions: (self.regions > 1).then_some(self.regions),
            patience: self.patience,
            give_up: GIVE_UP,
        }
    }
}

/// A port's own: a local address, as [`Addresses::OF_NOBODY`] has the first two.
fn address(port: usize) -> [u8; 6] {
    let [.., high, low] = (port as u32 + 1).to_be_bytes();
    [0x52, 0x57, 0, 0, high, low]
}

fn as_text<S: serde::Serializer>(value: &impl fmt::Display, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

fn page_kind<S: serde::Serializer>(value: &Option<PageKind>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(kind) => serializer.collect_str(kind),
        None => serializer.serialize_none(),
    }
}

/// Bytes of a mergeable receive buffer, header included.
const MERGEABLE_BUFFER: u32 = 2048;

/// One frame in so many is read as a whole, whatever is touched.
const WHOLE_SAMPLE: u64 = 1024;

/// Frames that are missing while nothing comes are given up after so long.
const GIVE_UP: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_talk_in_pairs_each_with_an_address_of_its_own() {
        let addresses: Vec<Addresses> =
            (0..64).map(|port| PortOptions::default().guest(port).addresses).collect();
        assert_eq!(addresses[0], Addresses::OF_NOBODY);
        for pair in addresses.chunks(2) {
            assert_eq!(pair[0].exchanged(), pair[1]);
        }
        let mut own: Vec<_> = addresses.iter().map(|addresses| addresses.from).collect();
        own.sort_unstable();
        own.dedup();
        assert_eq!(own.len(), 64);
    }
}
