//! What one part of a bridge tells another, an entry of a lane each: a frame that is to cross, where a station is, or a guest's
//! arrival.
//!
//! ```text
//!   word   0: kind, bytes looked at, receiver, source, tag     1-3: two pieces of memory at most     4: what is left to be done
//!          5-7: the first 18 bytes that were looked at; of more, all of them on the lines behind
//! ```
//!
//! An entry says where something is and points nowhere: its reader finds it again, or does not, in the map that it has of that source.
//! What it is in words is this module's matter alone.

use ringway_ring::lane::{LINE_WORDS, WORDS};

use crate::net::Mac;
use crate::net::fdb::Address;
use crate::net::frame::{Frame, Frames, Head};
use crate::net::offload::{HEAD_BYTES, Kind, Offload};
use crate::net::vlan::Tag;

/// Whom something is for, of the ports of the part that reads it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum To {
    /// The port at a slot.
    Slot(u16),
    /// All of them.
    All,
    /// All from which it cannot come back.
    Here,
}

/// Where a frame lies, in bytes from an address on: two pieces at most, the second of which is empty if there is one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pieces(pub(super) [(u64, u32); 2]);

/// A frame that crosses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Crossing {
    pub(super) to: To,
    /// The number of its source, among those of the part that it comes from.
    pub(super) source: u16,
    /// It lies in memory of that part's own, and not in its source's.
    pub(super) is_copied: bool,
    /// Where the bridge looks at VLANs.
    pub(super) tag: Option<Tag>,
    pub(super) pieces: Pieces,
}

/// An entry, as far as its first line tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Frame(Crossing),
    /// A station was heard of behind the port at a slot, then.
    Station {
        address: Address,
        slot: u16,
        /// In ticks.
        at: u64,
    },
    /// A guest has arrived.
    Announcement {
        mac: Mac,
        tag: Option<Tag>,
        to: To,
        /// The number of its queue pair.
        queue: u16,
    },
    /// Nothing that any part says.
    Unknown,
}

/// The words of an entry.
pub(super) type Words = [u64; WORDS];

/// The words of its first line.
pub(super) type Line = [u64; LINE_WORDS];

/// Writes a frame; how many words that are.
#[inline]
pub(super) fn put_frame(words: &mut Words, crossing: &Crossing, frame: &Frame, head: &Head) -> usize {
    let Crossing { to, source, is_copied, tag, pieces: Pieces([(first, len), (second, more)]) } = *crossing;
    let kind = if is_copied { COPIED } else { FRAME };
    let [w0, w1, w2, w3, w4, rest @ ..] = words;
    *w0 = first_word(kind, frame.looked_at, to.to_bits(), source, tag);
    (*w1, *w2, *w3) = (first, u64::from(len) | u64::from(more) << 32, second);
    *w4 = offload_bits(frame.offload);
    let looked_at = usize::from(frame.looked_at);
    if looked_at > SHORT {
        let lines = rest.get_mut(LINE_WORDS - 5..).unwrap_or_default();
        put_bytes(lines, head.get(..looked_at).unwrap_or_default());
        return LINE_WORDS + looked_at.div_ceil(8);
    }
    put_bytes(rest, head.first_chunk::<{ LINE_BYTES }>().map_or(&[], |bytes| bytes));
    LINE_WORDS
}

/// What is known of the frame of an entry, and into `head` those of the bytes looked at that are on its first line. True: there are
/// more, on the lines behind.
#[inline]
pub(super) fn frame_of(line: &Line, head: &mut Head) -> (Frame, bool) {
    let [w0, _, lens, _, offload, rest @ ..] = line;
    let looked_at = (w0 >> 8) as u8;
    let len = (*lens as u32).saturating_add((lens >> 32) as u32);
    let frame = Frame { len, offload: offload_of(*offload), looked_at, ..Frames::EMPTY };
    for (to, word) in head.chunks_exact_mut(8).zip(rest) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    (frame, usize::from(looked_at) > SHORT)
}

/// The bytes that were looked at of a frame of which there are more than on its first line.
#[cold]
pub(super) fn head_of(words: &Words, head: &mut Head) {
    for (to, word) in head.chunks_exact_mut(8).zip(words.iter().skip(LINE_WORDS)) {
        to.copy_from_slice(&word.to_le_bytes());
    }
}

impl Entry {
    /// Reads the first line of one.
    #[inline]
    pub(super) fn of(line: &Line) -> Entry {
        let [w0, w1, w2, w3, ..] = *line;
        let (to, source, tag) = (To::from_bits((w0 >> 16) as u16), (w0 >> 32) as u16, (w0 >> 48) as u16);
        let tag = Tag::from_bits(tag);
        match w0 as u8 {
            kind @ (FRAME | COPIED) => Entry::Frame(Crossing {
                to,
                source,
                is_copied: kind == COPIED,
                tag,
                pieces: Pieces([(w1, w2 as u32), (w3, (w2 >> 32) as u32)]),
            }),
            STATION => Entry::Station { address: Address::from_bits(w1), slot: source, at: w2 },
            ANNOUNCEMENT => Entry::Announcement { mac: Mac::from_bits(w1), tag, to, queue: source },
            _ => Entry::Unknown,
        }
    }

    /// The words of one that is no frame.
    pub(super) fn words(&self) -> Line {
        let (kind, to, number, tag, w1, w2) = match *self {
            Entry::Station { address, slot, at } => (STATION, To::All, slot, None, address.to_bits(), at),
            Entry::Announcement { mac, tag, to, queue } => (ANNOUNCEMENT, to, queue, tag, mac.to_bits(), 0),
            Entry::Frame(_) | Entry::Unknown => (0, To::All, 0, None, 0, 0),
        };
        [first_word(kind, 0, to.to_bits(), number, tag), w1, w2, 0, 0, 0, 0, 0]
    }
}

impl Pieces {
    /// Those that there are.
    #[inline]
    pub(super) fn as_slice(&self) -> &[(u64, u32)] {
        let [_, (_, more)] = self.0;
        self.0.get(..if more == 0 { 1 } else { 2 }).unwrap_or_default()
    }
}

impl To {
    #[inline]
    fn to_bits(self) -> u16 {
        match self {
            To::Slot(slot) => slot,
            To::All => ALL,
            To::Here => HERE,
        }
    }

    #[inline]
    fn from_bits(bits: u16) -> To {
        match bits {
            ALL => To::All,
            HERE => To::Here,
            slot => To::Slot(slot),
        }
    }
}

#[inline]
fn first_word(kind: u8, looked_at: u8, to: u16, number: u16, tag: Option<Tag>) -> u64 {
    let tag = tag.map_or(0, Tag::to_bits);
    u64::from(kind)
        | u64::from(looked_at) << 8
        | u64::from(to) << 16
        | u64::from(number) << 32
        | u64::from(tag) << 48
}

/// Puts bytes into words, the last of which is filled up with zeros.
#[inline]
fn put_bytes(words: &mut [u64], bytes: &[u8]) {
    let (whole, rest) = bytes.as_chunks::<8>();
    for (word, bytes) in words.iter_mut().zip(whole) {
        *word = u64::from_le_bytes(*bytes);
    }
    if let Some(word) = words.get_mut(whole.len()).filter(|_| !rest.is_empty()) {
        let mut last = [0; 8];
        last.iter_mut().zip(rest).for_each(|(to, byte)| *to = *byte);
        *word = u64::from_le_bytes(last);
    }
}

/// A kind of offload in the lowest bits, and its numbers above.
#[inline]
fn offload_bits(offload: Offload) -> u64 {
    match offload {
        Offload::None => 0,
        Offload::Checksum { start, offset } => 1 | u64::from(start) << 16 | u64::from(offset) << 32,
        Offload::Segment { kind, ecn, mss, header, start } => {
            let kind = match kind {
                Kind::Tcp4 => 2,
                Kind::Tcp6 => 3,
                Kind::Udp4 => 4,
                Kind::Udp6 => 5,
            };
            let numbers = u64::from(mss) << 16 | u64::from(header) << 32 | u64::from(start) << 48;
            kind | u64::from(ecn) << 8 | numbers
        }
    }
}

#[inline]
fn offload_of(bits: u64) -> Offload {
    let [first, second, third] = [16, 32, 48].map(|by| (bits >> by) as u16);
    let kind = match bits as u8 {
        0 => return Offload::None,
        1 => return Offload::Checksum { start: first, offset: second },
        2 => Kind::Tcp4,
        3 => Kind::Tcp6,
        4 => Kind::Udp4,
        _ => Kind::Udp6,
    };
    Offload::Segment { kind, ecn: bits >> 8 & 1 != 0, mss: first, header: second, start: third }
}

/// Kinds of entries.
const FRAME: u8 = 1;
const COPIED: u8 = 2;
const STATION: u8 = 3;
const ANNOUNCEMENT: u8 = 4;

/// Receivers that are no slot: those are below [`MOST_PORTS`](crate::net::fabric::MOST_PORTS).
const ALL: u16 = u16::MAX;
const HERE: u16 = u16::MAX - 1;

/// Bytes looked at that the first line has room for, and those of its words.
const SHORT: usize = 18;
const LINE_BYTES: usize = 24;

// What was looked at of any frame has room on the lines behind the first.
const _: () = assert!(HEAD_BYTES <= (WORDS - LINE_WORDS) * 8);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tag() -> impl Strategy<Value = Option<Tag>> {
        any::<u16>().prop_map(Tag::from_bits)
    }

    fn to() -> impl Strategy<Value = To> {
        prop_oneof![(0..1024u16).prop_map(To::Slot), Just(To::All), Just(To::Here)]
    }

    fn offload() -> impl Strategy<Value = Offload> {
        let kind = prop_oneof![Just(Kind::Tcp4), Just(Kind::Tcp6), Just(Kind::Udp4), Just(Kind::Udp6)];
        let segment = (kind, any::<(bool, u16, u16, u16)>())
            .prop_map(|(kind, (ecn, mss, header, start))| Offload::Segment { kind, ecn, mss, header, start });
        let checksum = any::<(u16, u16)>().prop_map(|(start, offset)| Offload::Checksum { start, offset });
        prop_oneof![Just(Offload::None), checksum, segment]
    }

    proptest! {
        #[test]
        fn frame_is_read_back_as_it_was_written(
            (to, tag, offload) in (to(), tag(), offload()),
            (source, is_copied) in any::<(u16, bool)>(),
            (first, second) in any::<((u64, u16), (u64, u16))>(),
            head in prop::collection::vec(any::<u8>(), 12..=HEAD_BYTES),
        ) {
            let pieces = Pieces([(first.0, first.1.into()), (second.0, second.1.into())]);
            let crossing = Crossing { to, source, is_copied, tag, pieces };
            let mut before: Head = [0; HEAD_BYTES];
            before[..head.len()].copy_from_slice(&head);
            let looked_at = head.len() as u8;
            let len = u32::from(first.1) + u32::from(second.1);
            let frame = Frame { len, offload, looked_at, ..Frames::EMPTY };
            let mut words = [u64::MAX; WORDS];
            let count = put_frame(&mut words, &crossing, &frame, &before);
            prop_assert_eq!(count > LINE_WORDS, head.len() > 18);
            let line: Line = words[..LINE_WORDS].try_into().unwrap();
            prop_assert_eq!(Entry::of(&line), Entry::Frame(crossing));
            prop_assert_eq!(pieces.as_slice().len(), if second.1 == 0 { 1 } else { 2 });
            let mut after: Head = [0; HEAD_BYTES];
            let (read, has_more) = frame_of(&line, &mut after);
            prop_assert_eq!(has_more, count > LINE_WORDS);
            if has_more {
                let mut all = [0; WORDS];
                all[..count].copy_from_slice(&words[..count]);
                head_of(&all, &mut after);
            }
            prop_assert_eq!((read.len, read.offload, read.dropped), (len, offload, None));
            prop_assert_eq!(&after[..usize::from(read.looked_at)], &head[..]);
        }

        #[test]
        fn what_is_no_frame_is_read_back_as_it_was_written(
            (to, tag) in (to(), tag()),
            (mac, address, at) in any::<([u8; 6], u64, u64)>(),
            (slot, queue) in any::<(u16, u16)>(),
        ) {
            let station = Entry::Station { address: Address::from_bits(address), slot, at };
            prop_assert_eq!(Entry::of(&station.words()), station);
            let announcement = Entry::Announcement { mac: Mac(mac), tag, to, queue };
            prop_assert_eq!(Entry::of(&announcement.words()), announcement);
            prop_assert_eq!(Entry::of(&[0; LINE_WORDS]), Entry::Unknown);
        }
    }
}
