//! The Internet checksum (RFC 1071).

/// A sum of 16-bit big-endian words, not yet folded: adding is associative, so parts can be summed apart, as long as
/// each but the last has an even number of bytes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Sum(u64);

impl Sum {
    /// Adds bytes.
    #[must_use]
    pub(super) fn add(self, bytes: &[u8]) -> Sum {
        // Eight bytes at a time as two halves: ones' complement addition does not mind where words begin, as long as
        // byte order is the same throughout.
        let mut sum = self.0;
        let mut chunks = bytes.chunks_exact(8);
        for chunk in &mut chunks {
            let mut word = [0; 8];
            word.copy_from_slice(chunk);
            let word = u64::from_be_bytes(word);
            // No overflow: a frame has fewer than 2^14 such words of less than 2^33 in sum.
            sum += (word >> 32) + (word & 0xffff_ffff);
        }
        for pair in chunks.remainder().chunks(2) {
            let low = pair.get(1).copied().unwrap_or(0);
            sum += u64::from(u16::from_be_bytes([pair.first().copied().unwrap_or(0), low]));
        }
        Sum(sum)
    }

    /// Adds one number of 32 bits.
    #[must_use]
    pub(super) fn add_u32(self, number: u32) -> Sum {
        Sum(self.0 + u64::from(number))
    }

    /// Folded to 16 bits, not complemented.
    pub(super) fn folded(self) -> u16 {
        let mut sum = self.0;
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        sum as u16
    }

    /// The checksum.
    pub(super) fn checksum(self) -> u16 {
        !self.folded()
    }
}

/// Completes a partial checksum: sums everything from `start` on, the pseudo header's sum that stands at the checksum's
/// place included, and puts the result there. A result of 0 is written as 0xffff, which is the same number and, to UDP
/// (RFC 768), not the absence of a checksum. Does nothing where the place is not inside the frame.
pub fn complete_checksum(frame: &mut [u8], start: u16, offset: u16) {
    let (start, at) = (usize::from(start), usize::from(start) + usize::from(offset));
    let Some(covered) = frame.get(start..).filter(|_| at + 2 <= frame.len()) else { return };
    let checksum = match Sum::default().add(covered).checksum() {
        0 => 0xffff,
        other => other,
    };
    if let Some(place) = frame.get_mut(at..at + 2) {
        place.copy_from_slice(&checksum.to_be_bytes());
    }
}
