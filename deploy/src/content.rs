//! Bytes that follow from a number: whoever knows it can make them again, so that nothing need be kept to compare with.

/// An endless content.
#[derive(Debug, Clone)]
pub struct Content {
    state: u64,
}

impl Content {
    /// The content that follows from `seed`.
    pub fn new(seed: u64) -> Content {
        Content { state: seed }
    }

    /// Writes what comes next. Words are begun anew with each call, so two sides agree when their calls' lengths do, or
    /// when all but the last are multiples of eight.
    pub fn fill(&mut self, into: &mut [u8]) {
        let mut words = into.chunks_exact_mut(size_of::<u64>());
        for word in &mut words {
            word.copy_from_slice(&self.next_word().to_le_bytes());
        }
        let rest = words.into_remainder();
        if !rest.is_empty() {
            let word = self.next_word().to_le_bytes();
            rest.copy_from_slice(&word[..rest.len()]);
        }
    }

    /// splitmix64: each word differs from its neighbours in about half of its bits.
    fn next_word(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_is_the_same_in_whole_words_and_at_once() {
        let (mut at_once, mut in_steps) = ([0; 77], [0; 77]);
        Content::new(5).fill(&mut at_once);
        let mut content = Content::new(5);
        let (first, rest) = in_steps.split_at_mut(64);
        content.fill(first);
        content.fill(rest);
        assert_eq!(at_once, in_steps);
        Content::new(6).fill(&mut in_steps);
        assert_ne!(at_once, in_steps);
    }
}
