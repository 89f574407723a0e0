//! The frames that a guest makes, and how they are told apart.
//!
//! ```text
//!   0     6     12   14     16      18    20     22         30        38      46            len
//!   | dst | src | type | flow | filler | len | 0 | sequence | sent at | check | filler ..    |
//! ```
//! Numbers are big-endian. `type` is 0x88b5, the IEEE's for local experiments. `flow` says which port and pair sent the
//! frame, `filler` where in the [`Filler`] its payload begins, `sent at` is the cycle counter at the *intended* time of
//! sending. `check` is a hash of all of them: a frame whose head was damaged, cut or made by somebody else fails it. It holds
//! for any two addresses, and for the two exchanged.
//! Lengths are those of Ethernet frames without frame check sequence, in bytes.

use std::fmt;
use std::str::FromStr;

/// Bytes of a frame's head: addresses, type and stamp.
pub const HEAD_BYTES: usize = 46;

/// A head is read and written as little-endian words of 8 bytes at these places; the second overlaps the first. By words, since a processor that gathers bytes just stored in parts into wider loads waits until *all* its
/// stores are done, those to lines that the other core holds too: a third of a generator's time.
pub const WORDS_AT: [usize; 6] = [0, 6, 14, 22, 30, 38];

/// The shortest frame: what Ethernet has at least, without frame check sequence.
pub const MIN_FRAME: u16 = 60;

/// The longest frame: an MTU of 9,000 behind an Ethernet header.
pub const MAX_FRAME: u16 = 9014;

/// What tells one frame from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Which port and pair sent it.
    pub flow: u16,
    /// Where in the [`Filler`] its payload begins.
    pub filler: u16,
    /// Bytes of the frame.
    pub len: u16,
    /// Counts from 0 in each flow.
    pub sequence: u64,
    /// Cycle counter when it was to be sent.
    pub sent_at: u64,
}

impl Stamp {
    /// The words of the head that carries the stamp, at [`WORDS_AT`].
    #[inline]
    pub fn to_words(self, addresses: &Addresses) -> [u64; 6] {
        let lengths = u64::from(self.flow) << 48 | u64::from(self.filler) << 32 | u64::from(self.len) << 16;
        let [to, from] = addresses.words();
        [
            to,
            from,
            lengths.swap_bytes(),
            self.sequence.swap_bytes(),
            self.sent_at.swap_bytes(),
            self.check(hash_of_both(to, from)).swap_bytes(),
        ]
    }

    /// Reads it back; None for any other frame and for any damage.
    #[inline]
    pub fn from_words(words: [u64; 6]) -> Option<Stamp> {
        let [to, from, lengths, sequence, sent_at, check] = words;
        let lengths = lengths.swap_bytes();
        let stamp = Stamp {
            flow: (lengths >> 48) as u16,
            filler: (lengths >> 32) as u16,
            len: (lengths >> 16) as u16,
            sequence: sequence.swap_bytes(),
            sent_at: sent_at.swap_bytes(),
        };
        let intact = stamp.check(hash_of_both(to, from)) == check.swap_bytes()
            && lengths as u16 == 0
            && from >> 48 == u64::from(u16::from_le_bytes(ETHER_TYPE));
        intact.then_some(stamp)
    }

    /// Rounds of multiply and fold: any single changed bit changes it.
    #[inline]
    fn check(self, addresses: u64) -> u64 {
        let small = u64::from(self.flow) | u64::from(self.filler) << 16 | u64::from(self.len) << 32;
        let mixed = (self.sequence ^ SEED).wrapping_mul(PRIME).rotate_left(29) ^ self.sent_at;
        let mixed = (mixed.wrapping_mul(PRIME).rotate_left(31) ^ small).wrapping_mul(PRIME) ^ self.sequence;
        mixed.wrapping_add(addresses)
    }
}

/// Where frames go, and where they come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// Destination.
    pub to: [u8; 6],
    /// Source.
    pub from: [u8; 6],
}

impl Addresses {
    /// Two local addresses: of nobody, to nobody.
    pub const OF_NOBODY: Addresses =
        Addresses { to: [0x52, 0x57, 0, 0, 0, 2], from: [0x52, 0x57, 0, 0, 0, 1] };

    /// From a local address to everybody.
    pub const TO_ALL: Addresses = Addresses { to: [0xff; 6], from: [0x52, 0x57, 0, 0, 0, 1] };

    /// The way back.
    #[must_use]
    pub const fn exchanged(self) -> Addresses {
        Addresses { to: self.from, from: self.to }
    }

    /// The first two words of a frame, with its type.
    #[inline]
    pub(crate) const fn words(&self) -> [u64; 2] {
        let Addresses { to, from } = self;
        let [kind, of_kind] = ETHER_TYPE;
        [
            u64::from_le_bytes([to[0], to[1], to[2], to[3], to[4], to[5], from[0], from[1]]),
            u64::from_le_bytes([from[0], from[1], from[2], from[3], from[4], from[5], kind, of_kind]),
        ]
    }
}

/// A hash of the two addresses in a frame's first two words, whichever is which.
#[inline]
const fn hash_of_both(to: u64, from: u64) -> u64 {
    const fn hash(word: u64) -> u64 {
        let mixed = (word << 16).wrapping_mul(PRIME);
        mixed ^ mixed >> 32
    }
    hash(to).wrapping_add(hash(from))
}

/// Bytes without a pattern that a copy could get right by chance; payloads are cuts of it.
#[derive(Debug, Clone)]
pub struct Filler(Vec<u8>);

impl Filler {
    /// Places in it at which a payload can begin: a prime, so that neighbours in any ring differ.
    pub const PLACES: u16 = 251;

    /// The filler: always the same.
    pub fn new() -> Filler {
        let mut state = SEED;
        let bytes = (0..usize::from(MAX_FRAME) + usize::from(Filler::PLACES)).map(|_| {
            // xorshift64*: spread is all that is needed.
            state ^= state >> 12;
            state ^= state << 25;
            state ^= state >> 27;
            (state.wrapping_mul(PRIME) >> 56) as u8
        });
        Filler(bytes.collect())
    }

    /// What follows the head in a frame of `len` bytes.
    #[inline]
    pub fn payload(&self, place: u16, len: u16) -> &[u8] {
        let start = usize::from(place % Filler::PLACES);
        let bytes = usize::from(len).saturating_sub(HEAD_BYTES);
        self.0.get(start..start + bytes).unwrap_or_default()
    }
}

impl Default for Filler {
    fn default() -> Filler {
        Filler::new()
    }
}

/// The lengths of the frames of a flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sizes {
    /// All of one length.
    Fixed(u16),
    /// The simple Internet mix: of 12 frames 7 have 64 bytes, 4 have 594 and 1 has 1,518.
    Imix,
}

impl Sizes {
    /// The length of a flow's frame of this number.
    #[inline]
    pub fn of(self, sequence: u64) -> u16 {
        match self {
            Sizes::Fixed(len) => len,
            Sizes::Imix => IMIX[(sequence % IMIX.len() as u64) as usize],
        }
    }

    /// The longest.
    pub fn max(self) -> u16 {
        match self {
            Sizes::Fixed(len) => len,
            Sizes::Imix => 1518,
        }
    }

    /// The mean, in bytes.
    pub fn mean(self) -> f64 {
        match self {
            Sizes::Fixed(len) => len.into(),
            Sizes::Imix => IMIX.iter().map(|len| f64::from(*len)).sum::<f64>() / IMIX.len() as f64,
        }
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Sizes::Fixed(len) => write!(f, "{len}"),
            Sizes::Imix => f.write_str("imix"),
        }
    }
}

/// Text that is no frame size.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "frame size `{0}`: must be {MIN_FRAME} to {MAX_FRAME} bytes (without frame check sequence), or `imix`"
)]
pub struct BadSizes(String);

impl FromStr for Sizes {
    type Err = BadSizes;
    fn from_str(text: &str) -> Result<Sizes, BadSizes> {
        if text == "imix" {
            return Ok(Sizes::Imix);
        }
        let len = text.parse().ok().filter(|len| (MIN_FRAME..=MAX_FRAME).contains(len));
        len.map(Sizes::Fixed).ok_or_else(|| BadSizes(text.to_owned()))
    }
}

/// Their type, the IEEE's for local experiments.
const ETHER_TYPE: [u8; 2] = [0x88, 0xb5];

/// In an order that spreads the long ones.
const IMIX: [u16; 12] = [64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 64, 594];

const SEED: u64 = 0x5269_6e67_7761_7921;

/// 2^64 divided by the golden ratio, odd.
const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    const STAMP: Stamp = Stamp { flow: 3, filler: 17, len: 64, sequence: 123_456, sent_at: 1 << 60 };

    fn head(stamp: Stamp) -> [u8; HEAD_BYTES] {
        let mut head = [0; HEAD_BYTES];
        for (at, word) in WORDS_AT.into_iter().zip(stamp.to_words(&Addresses::OF_NOBODY)) {
            head[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
        head
    }

    fn read(head: &[u8; HEAD_BYTES]) -> Option<Stamp> {
        Stamp::from_words(WORDS_AT.map(|at| u64::from_le_bytes(head[at..at + 8].try_into().unwrap())))
    }

    #[test]
    fn stamp_survives_the_way_with_addresses_exchanged_or_not() {
        let mut head = head(STAMP);
        assert_eq!(read(&head), Some(STAMP));
        head[0..12].rotate_left(6);
        assert_eq!(read(&head), Some(STAMP));
    }

    #[test]
    fn head_lies_as_drawn() {
        let head = head(Stamp { flow: 0x0102, filler: 0x0304, len: 0x0506, sequence: 7, sent_at: 8 });
        assert_eq!(head[..14], *b"RW\0\0\0\x02RW\0\0\0\x01\x88\xb5");
        assert_eq!(head[14..38], *b"\x01\x02\x03\x04\x05\x06\0\0\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0\x08");
    }

    #[test]
    fn head_with_any_bit_flipped_is_no_stamp() {
        let head = head(STAMP);
        for bit in 0..HEAD_BYTES * 8 {
            let mut bad = head;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(read(&bad), None, "bit {bit}");
        }
    }

    #[test]
    fn imix_is_seven_four_one() {
        let count = |len| (0..12).filter(|sequence| Sizes::Imix.of(*sequence) == len).count();
        assert_eq!((count(64), count(594), count(1518)), (7, 4, 1));
        assert!((Sizes::Imix.mean() - (7.0 * 64.0 + 4.0 * 594.0 + 1518.0) / 12.0).abs() < 1e-9);
    }

    #[test]
    fn sizes_are_read_and_refused() {
        assert_eq!("1518".parse(), Ok(Sizes::Fixed(1518)));
        assert_eq!("imix".parse(), Ok(Sizes::Imix));
        assert!(["59", "9015", "big", "-1"].iter().all(|text| text.parse::<Sizes>().is_err()));
    }

    #[test]
    fn payloads_at_other_places_differ_in_every_stretch() {
        let filler = Filler::new();
        let (a, b) = (filler.payload(3, 1518), filler.payload(4, 1518));
        assert_eq!((a.len(), b.len()), (1472, 1472));
        assert!(a.chunks(16).zip(b.chunks(16)).all(|(a, b)| a != b));
        assert_eq!(filler.payload(250, MAX_FRAME).len(), usize::from(MAX_FRAME) - HEAD_BYTES);
    }
}
