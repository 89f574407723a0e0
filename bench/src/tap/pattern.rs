//! What is sent, so that each byte tells where it belongs: a repeated table of a prime length, which no frame, buffer or page is
//! a multiple of.

/// See the head of this file.
#[derive(Debug)]
pub(crate) struct Pattern {
    /// The table, and behind it its beginning again, so that every slice is whole.
    bytes: Box<[u8]>,
}

impl Pattern {
    pub(crate) fn new() -> Pattern {
        let mut state = 0x9e37_79b9_7f4a_7c15u64;
        let mut table = Vec::with_capacity(PERIOD + LONGEST);
        while table.len() < PERIOD {
            // Xorshift: no two words of the table are alike, but by chance.
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            table.push((state >> 32) as u8);
        }
        table.extend_from_within(..LONGEST);
        Pattern { bytes: table.into() }
    }

    /// The bytes from an offset of the stream on, [`LONGEST`] at most.
    pub(crate) fn at(&self, offset: u64, len: usize) -> &[u8] {
        let start = (offset % PERIOD as u64) as usize;
        self.bytes.get(start..start + len.min(LONGEST)).unwrap_or_default()
    }

    /// Bytes that are not what belongs at `offset`.
    pub(crate) fn differing(&self, offset: u64, found: &[u8]) -> u64 {
        let wanted = self.at(offset, found.len());
        if wanted == found {
            return 0;
        }
        let differing = wanted.iter().zip(found).filter(|(wanted, found)| wanted != found).count();
        (differing + found.len().abs_diff(wanted.len())) as u64
    }
}

/// Bytes of a slice at most.
pub(crate) const LONGEST: usize = 60 << 10;

/// Bytes after which it begins anew; a prime.
const PERIOD: usize = 65_521;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_byte_tells_where_it_belongs() {
        let pattern = Pattern::new();
        for offset in [0, 1, 65_520, 65_521, 1 << 40] {
            assert_eq!(pattern.at(offset, LONGEST).len(), LONGEST);
            assert_eq!(pattern.differing(offset, pattern.at(offset, LONGEST)), 0);
            // A page later is something else.
            assert!(pattern.differing(offset, pattern.at(offset + 4096, 1000)) > 900);
        }
        assert_eq!(pattern.at(65_521 + 7, 100), pattern.at(7, 100));
        let mut found = pattern.at(5, 100).to_vec();
        found[50] ^= 1;
        assert_eq!(pattern.differing(5, &found), 1);
    }
}
