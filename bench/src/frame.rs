//! The frames that the generator makes, and how they are told apart.
//!
//! ```text
//!   0     6     12   14     16      18    20     22         30        38      46            len
//!   | dst | src | type | flow | filler | len | 0 | sequence | sent at | check | filler ..    |
//! ```
//! Numbers are big-endian. `type` is 0x88b5, the IEEE's for local experiments. `flow` says which port and pair sent the
//! frame, `filler` where in the [`Filler`] its payload begins, `sent at` is the cycle counter at the *intended* time of
//! sending. `check` is a hash of all of them: a frame whose head was damaged, cut or made by somebody else fails it.
//! Lengths are those of Ethernet frames without frame check sequence, in bytes.

use std::fmt;
use std::str::FromStr;

/// Bytes of a frame's head: addresses, type and stamp.
pub const HEAD_BYTES: usize = 46;

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
    /// The head of the frame that carries the stamp.
    #[inline]
    pub fn to_head(self) -> [u8; HEAD_BYTES] {
        let mut head = [0u8; HEAD_BYTES];
        head[0..6].copy_from_slice(&DESTINATION);
        head[6..12].copy_from_slice(&SOURCE);
        head[12..14].copy_from_slice(&ETHER_TYPE);
        head[14..16].copy_from_slice(&self.flow.to_be_bytes());
        head[16..18].copy_from_slice(&self.filler.to_be_bytes());
        head[18..20].copy_from_slice(&self.len.to_be_bytes());
        head[22..30].copy_from_slice(&self.sequence.to_be_bytes());
        head[30..38].copy_from_slice(&self.sent_at.to_be_bytes());
        head[38..46].copy_from_slice(&self.check().to_be_bytes());
        head
    }

    /// Reads it back, with whether the addresses came exchanged; None for any other frame and for any damage.
    #[inline]
    pub fn from_head(head: &[u8; HEAD_BYTES]) -> Option<(Stamp, bool)> {
        let stamp = Stamp {
            flow: u16_at(head, 14),
            filler: u16_at(head, 16),
            len: u16_at(head, 18),
            sequence: u64_at(head, 22),
            sent_at: u64_at(head, 30),
        };
        let as_sent = head[0..6] == DESTINATION && head[6..12] == SOURCE;
        let exchanged = head[0..6] == SOURCE && head[6..12] == DESTINATION;
        let intact = stamp.check() == u64_at(head, 38)
            && head[12..14] == ETHER_TYPE
            && head[20..22] == [0, 0]
            && (as_sent || exchanged);
        intact.then_some((stamp, exchanged))
    }

    /// Rounds of multiply and fold: any single changed bit changes it.
    #[inline]
    fn check(self) -> u64 {
        let small = u64::from(self.flow) | u64::from(self.filler) << 16 | u64::from(self.len) << 32;
        let mixed = (self.sequence ^ SEED).wrapping_mul(PRIME).rotate_left(29) ^ self.sent_at;
        (mixed.wrapping_mul(PRIME).rotate_left(31) ^ small).wrapping_mul(PRIME) ^ self.sequence
    }
}

#[inline(always)]
fn u16_at(head: &[u8; HEAD_BYTES], at: usize) -> u16 {
    u16::from_be_bytes([head[at], head[at + 1]])
}

#[inline(always)]
fn u64_at(head: &[u8; HEAD_BYTES], at: usize) -> u64 {
    let mut word = [0u8; 8];
    word.copy_from_slice(&head[at..at + 8]);
    u64::from_be_bytes(word)
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

/// Two local addresses: of nobody, to nobody.
const DESTINATION: [u8; 6] = [0x52, 0x57, 0, 0, 0, 2];
const SOURCE: [u8; 6] = [0x52, 0x57, 0, 0, 0, 1];
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

    #[test]
    fn stamp_survives_the_way_with_addresses_exchanged_or_not() {
        let mut head = STAMP.to_head();
        assert_eq!(Stamp::from_head(&head), Some((STAMP, false)));
        head[0..12].rotate_left(6);
        assert_eq!(Stamp::from_head(&head), Some((STAMP, true)));
    }

    #[test]
    fn head_with_any_bit_flipped_is_no_stamp() {
        let head = STAMP.to_head();
        for bit in 0..HEAD_BYTES * 8 {
            let mut bad = head;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Stamp::from_head(&bad), None, "bit {bit}");
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
