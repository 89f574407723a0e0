//! The frames that the built-in guest makes, and how they are told apart.
//!
//! ```text
//!   0         6         12     14          22          30         38        frame_len
//!   | dst MAC | src MAC | type | sequence | sent at  | check    | filler .. |
//! ```
//! All numbers big-endian. `type` is 0x88b5, the IEEE's for local experiments. `sent at` is the cycle counter. `check`
//! is a hash of sequence, time and length: a frame that was cut, mixed up or made by somebody else fails it.

/// Bytes of a frame that differ from one to the next.
pub const STAMP_BYTES: usize = 24;

/// Where they start in a frame.
pub const STAMP_AT: usize = 14;

/// What tells one frame from another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stamp {
    /// Counts from 0 on each pair.
    pub sequence: u64,
    /// Cycle counter when it was sent.
    pub sent_at: u64,
}

impl Stamp {
    /// As it stands in a frame of `frame_len` bytes.
    #[inline]
    pub fn to_bytes(self, frame_len: u16) -> [u8; STAMP_BYTES] {
        let mut bytes = [0u8; STAMP_BYTES];
        bytes[0..8].copy_from_slice(&self.sequence.to_be_bytes());
        bytes[8..16].copy_from_slice(&self.sent_at.to_be_bytes());
        bytes[16..24].copy_from_slice(&self.check(frame_len).to_be_bytes());
        bytes
    }

    /// Reads it back; None if the check fails.
    #[inline]
    pub fn from_bytes(bytes: &[u8; STAMP_BYTES], frame_len: u16) -> Option<Stamp> {
        let word = |at: usize| {
            let mut word = [0u8; 8];
            word.copy_from_slice(&bytes[at..at + 8]);
            u64::from_be_bytes(word)
        };
        let stamp = Stamp { sequence: word(0), sent_at: word(8) };
        (stamp.check(frame_len) == word(16)).then_some(stamp)
    }

    /// Two rounds of multiply and fold: any single changed bit changes it.
    #[inline]
    fn check(self, frame_len: u16) -> u64 {
        let mixed = (self.sequence ^ SEED).wrapping_mul(PRIME).rotate_left(29) ^ self.sent_at;
        (mixed ^ u64::from(frame_len)).wrapping_mul(PRIME).rotate_left(31) ^ self.sequence
    }
}

/// Where frames go unless told otherwise: to everybody.
pub const BROADCAST: [u8; 6] = [0xff; 6];

/// Where frames come from unless told otherwise.
pub const SOURCE: [u8; 6] = [0x52, 0x57, 0x00, 0x00, 0x00, 0x01];

/// Their type.
pub const ETHER_TYPE: [u8; 2] = [0x88, 0xb5];

const SEED: u64 = 0x5269_6e67_7761_7921;

/// 2^64 divided by the golden ratio, odd.
const PRIME: u64 = 0x9e37_79b9_7f4a_7c15;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamp_survives_a_round_trip() {
        let stamp = Stamp { sequence: 77, sent_at: 1 << 60 };
        assert_eq!(Stamp::from_bytes(&stamp.to_bytes(64), 64), Some(stamp));
    }

    #[test]
    fn stamp_with_any_bit_flipped_fails_its_check() {
        let bytes = Stamp { sequence: 123_456, sent_at: 987_654_321 }.to_bytes(64);
        for bit in 0..STAMP_BYTES * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(Stamp::from_bytes(&bad, 64), None, "bit {bit}");
        }
    }

    #[test]
    fn stamp_of_a_frame_of_other_length_fails_its_check() {
        let bytes = Stamp { sequence: 1, sent_at: 2 }.to_bytes(64);
        assert_eq!(Stamp::from_bytes(&bytes, 65), None);
    }
}
