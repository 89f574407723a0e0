//! What became of the frames of one flow: each counted once as received, lost, doubled or out of order.
//!
//! ```text
//!        next - WINDOW                                  next
//!   ... |  1 1 1 0 1 1 1 1 ............... 1 1 0 1 1 1  |  not seen yet
//!               \_ missing                       \_ missing so far
//! ```
//! A frame *reordered* came after one with a higher number (RFC 4737); one *duplicated* had come before; one *stale* is
//! so much older than the newest that it can no longer be told which. What has not come in the end is lost.

/// Counts the frames of one flow at the place where they arrive.
#[derive(Debug, Clone)]
pub struct Ledger {
    /// One more than the highest number seen.
    next: u64,
    /// One bit for each of the last [`WINDOW`] numbers below `next`: seen.
    seen: Box<[u64]>,
    /// Different frames received.
    pub unique: u64,
    /// Of them, those that came after a later one.
    pub reordered: u64,
    /// Frames that had come before.
    pub duplicated: u64,
    /// Frames older than the window.
    pub stale: u64,
}

impl Default for Ledger {
    fn default() -> Ledger {
        let seen = vec![0; WORDS as usize].into();
        Ledger { next: 0, seen, unique: 0, reordered: 0, duplicated: 0, stale: 0 }
    }
}

impl Ledger {
    /// One more than the highest number seen.
    #[inline]
    pub fn next(&self) -> u64 {
        self.next
    }

    /// Enters a frame.
    #[inline]
    pub fn enter(&mut self, sequence: u64) {
        let (word, bit) = (((sequence / 64) % WORDS) as usize, 1u64 << (sequence % 64));
        if sequence == self.next {
            if bit == 1 {
                // Its word held numbers of a window ago.
                self.seen[word] = 0;
            }
            self.seen[word] |= bit;
            self.next += 1;
            self.unique += 1;
            return;
        }
        self.enter_out_of_line(sequence, word, bit);
    }

    #[cold]
    fn enter_out_of_line(&mut self, sequence: u64, word: usize, bit: u64) {
        if sequence > self.next {
            let (first, last) = (self.next.div_ceil(64), sequence / 64);
            if last >= first {
                for passed in first..=last.min(first + WORDS - 1) {
                    self.seen[(passed % WORDS) as usize] = 0;
                }
                self.seen[word] = 0;
            }
            self.seen[word] |= bit;
            self.next = sequence + 1;
            self.unique += 1;
        } else if sequence + WINDOW < self.next {
            self.stale += 1;
        } else if self.seen[word] & bit != 0 {
            self.duplicated += 1;
        } else {
            self.seen[word] |= bit;
            self.unique += 1;
            self.reordered += 1;
        }
    }
}

/// What became of all frames of a run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Frames given to transmit queues.
    pub sent: u64,
    /// Different frames that came back intact.
    pub received: u64,
    /// Their bytes, from the Ethernet header on.
    pub bytes: u64,
    /// Frames that did not come back at all.
    pub lost: u64,
    /// Frames that came again.
    pub duplicated: u64,
    /// Frames that came after a later one.
    pub reordered: u64,
    /// Frames that failed their check.
    pub corrupt: u64,
    /// Frames too old to be told whether they are late or doubled.
    pub stale: u64,
    /// Frames that came with their MAC addresses exchanged.
    pub exchanged: u64,
    /// Frames that were sent to others, and came here since a switch did not know where those are.
    #[serde(default)]
    pub flooded: u64,
}

impl Counts {
    /// Closes the books: what was sent and neither received nor damaged is lost.
    #[must_use]
    pub fn closed(mut self) -> Counts {
        self.lost = self.sent.saturating_sub(self.received + self.corrupt);
        self
    }

    /// Frames with which something went wrong.
    pub fn faults(&self) -> u64 {
        self.lost + self.duplicated + self.reordered + self.corrupt + self.stale
    }

    /// Both, added up.
    #[must_use]
    pub fn plus(self, other: &Counts) -> Counts {
        self.combined(other, |a, b| a + b)
    }

    /// What came since `before`.
    #[must_use]
    pub fn since(self, before: &Counts) -> Counts {
        self.combined(before, u64::saturating_sub)
    }

    fn combined(self, other: &Counts, f: impl Fn(u64, u64) -> u64) -> Counts {
        Counts {
            sent: f(self.sent, other.sent),
            received: f(self.received, other.received),
            bytes: f(self.bytes, other.bytes),
            lost: f(self.lost, other.lost),
            duplicated: f(self.duplicated, other.duplicated),
            reordered: f(self.reordered, other.reordered),
            corrupt: f(self.corrupt, other.corrupt),
            stale: f(self.stale, other.stale),
            exchanged: f(self.exchanged, other.exchanged),
            flooded: f(self.flooded, other.flooded),
        }
    }
}

/// Numbers that are remembered: more than can be under way in any ring, many times over.
pub const WINDOW: u64 = WORDS * 64 - 64;
const WORDS: u64 = 2048;

#[cfg(test)]
mod tests {
    use super::*;

    /// (unique, reordered, duplicated, stale) after these frames.
    fn entered(sequences: impl IntoIterator<Item = u64>) -> (u64, u64, u64, u64) {
        let mut ledger = Ledger::default();
        sequences.into_iter().for_each(|sequence| ledger.enter(sequence));
        (ledger.unique, ledger.reordered, ledger.duplicated, ledger.stale)
    }

    #[test]
    fn frames_in_order_are_all_unique() {
        assert_eq!(entered(0..1_000_000), (1_000_000, 0, 0, 0));
    }

    #[test]
    fn missing_frames_are_neither_reordered_nor_doubled() {
        assert_eq!(entered((0..1_000_000).filter(|s| s % 1000 != 7)), (999_000, 0, 0, 0));
    }

    #[test]
    fn two_frames_exchanged_are_one_reordered() {
        assert_eq!(entered([0, 2, 1, 3]), (4, 1, 0, 0));
        // A late one after three: RFC 4737 counts the late one alone.
        assert_eq!(entered([0, 2, 3, 4, 1, 5]), (6, 1, 0, 0));
    }

    #[test]
    fn frame_that_comes_again_is_doubled_at_once_or_late() {
        assert_eq!(entered([0, 1, 1, 2]), (3, 0, 1, 0));
        assert_eq!(entered((0..WINDOW).chain([0])), (WINDOW, 0, 1, 0));
        assert_eq!(entered([5, 6, 5, 4]), (3, 1, 1, 0));
    }

    #[test]
    fn frame_older_than_the_window_is_stale() {
        assert_eq!(entered((0..=WINDOW).chain([0])), (WINDOW + 1, 0, 0, 1));
        assert_eq!(entered([0, 10 * WINDOW, 1]), (2, 0, 0, 1));
    }

    #[test]
    fn jumps_forget_what_the_window_held_before() {
        // Every number of the first window was seen; after a jump of exactly one lap none of the second was.
        let lap = WORDS * 64;
        for jump in [lap, lap + 1, lap + 63, lap - 1, 2 * lap, 65, 64, 63] {
            let ahead = lap + jump;
            let (unique, reordered, duplicated, stale) = entered((0..lap).chain([ahead, ahead - 1]));
            assert_eq!((unique, reordered, duplicated, stale), (lap + 2, 1, 0, 0), "jump {jump}");
        }
    }

    #[test]
    fn agrees_with_a_set_on_random_traffic() {
        let mut seen = std::collections::HashSet::new();
        let (mut ledger, mut state, mut base) = (Ledger::default(), 1u64, 0u64);
        let (mut duplicated, mut highest, mut reordered) = (0, None, 0);
        for _ in 0..200_000 {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            base += state >> 63;
            let sequence = base + (state >> 40) % 300;
            ledger.enter(sequence);
            if !seen.insert(sequence) {
                duplicated += 1;
            } else if highest.is_some_and(|highest| sequence < highest) {
                reordered += 1;
            }
            highest = highest.max(Some(sequence));
        }
        let unique = seen.len() as u64;
        assert_eq!(
            (ledger.unique, ledger.reordered, ledger.duplicated, ledger.stale),
            (unique, reordered, duplicated, 0)
        );
    }

    #[test]
    fn books_close_with_what_did_not_come() {
        let counts = Counts { sent: 100, received: 90, corrupt: 3, duplicated: 2, ..Counts::default() };
        assert_eq!(counts.closed().lost, 7);
        assert_eq!(counts.closed().faults(), 12);
        let none = Counts { sent: 5, received: 5, ..Counts::default() }.closed();
        assert_eq!(none.faults(), 0);
    }
}
