//! The mailbox of a thread that polls: one bit per letter, and the protocol by which its owner falls asleep without
//! missing one.
//!
//! What it is not: it carries no values. A bit says "look at letter N"; what there is to see lies beside it, in a cell
//! that only one side at a time fills. So posting the same letter twice is harmless, the box is never full, and the
//! owner never waits for a poster that was preempted half-way, as it would at the slot of a bounded queue.
//!
//! ```text
//!   any thread                               the owner
//!   ----------                               ---------
//!   set the letter's bit                     asleep = 1
//!   pending = 1                              fence (SeqCst)
//!   fence (SeqCst)          <--- pairs --->  pending? then asleep = 0, do not sleep
//!   asleep? then ring the bell               sleep until the bell rings; asleep = 0
//! ```
//!
//! Of the two fences one comes first; whoever comes second sees what the other wrote before its own. So either the
//! owner sees `pending`, or the poster sees `asleep`. `tests/loom.rs` checks this and that each half is needed.

use crate::sync::{AtomicU32, AtomicU64, Ordering, fence};

/// A mailbox. `FAULT` plants a fault for the model check and is [`SOUND`] everywhere else.
#[derive(Debug)]
pub struct Mailbox<const FAULT: u8 = SOUND> {
    /// One bit per letter: who of them wants to be looked at.
    words: Box<[AtomicU64]>,
    /// Set when any bit may be set, or something outside the bits changed. The one word that the owner reads each turn.
    pending: AtomicU32,
    /// Set while the owner sleeps or is about to: posters must ring its bell.
    asleep: AtomicU32,
}

impl<const FAULT: u8> Mailbox<FAULT> {
    /// A mailbox for letters `0..letters`.
    pub fn new(letters: usize) -> Mailbox<FAULT> {
        Mailbox {
            words: (0..letters.div_ceil(64)).map(|_| AtomicU64::new(0)).collect(),
            pending: AtomicU32::new(0),
            asleep: AtomicU32::new(0),
        }
    }

    /// Asks the owner to look at `letter`. Any thread. True: the owner may be asleep, the caller must ring its bell.
    #[must_use = "a sleeping owner must be woken"]
    pub fn post(&self, letter: usize) -> bool {
        // Release: whoever takes the bit (`collect`, Acquire) sees what the poster wrote before.
        self.words[letter / 64].fetch_or(1 << (letter % 64), Ordering::Release);
        self.knock()
    }

    /// Asks the owner to look around: something outside the letters changed. Any thread. True: ring its bell.
    #[must_use = "a sleeping owner must be woken"]
    pub fn knock(&self) -> bool {
        // A read-modify-write, Release: it continues the release sequence of every earlier poster, so that the owner,
        // who sees the last one's value, sees the bits of all. A plain store would hide an earlier poster's bit.
        if FAULT == PLAIN_PENDING {
            self.pending.store(1, Ordering::Release);
        } else {
            self.pending.swap(1, Ordering::Release);
        }
        // SeqCst: pairs with the fence in `fall_asleep`.
        if FAULT != NO_POSTER_FENCE {
            fence(Ordering::SeqCst);
        }
        // Not cleared here: a poster that is preempted before it rings must not keep the next one from ringing.
        self.asleep.load(Ordering::Relaxed) != 0
    }

    /// True when `collect` may find something. Owner only; one relaxed load.
    #[inline]
    pub fn has_mail(&self) -> bool {
        self.pending.load(Ordering::Relaxed) != 0
    }

    /// Takes every letter and opens it. Owner only. No allocation, no waiting.
    pub fn collect(&self, mut open: impl FnMut(usize)) {
        // Acquire: pairs with the Release of every `knock` since the last collection.
        self.pending.swap(0, Ordering::Acquire);
        for (index, word) in self.words.iter().enumerate() {
            if word.load(Ordering::Relaxed) == 0 {
                continue;
            }
            // Acquire: pairs with the Release in `post`.
            let mut bits = word.swap(0, Ordering::Acquire);
            while bits != 0 {
                open(index * 64 + bits.trailing_zeros() as usize);
                bits &= bits - 1;
            }
        }
    }

    /// Announces that the owner is about to sleep. False: there is mail, it must not. Owner only.
    #[must_use = "with mail in the box the owner must not sleep"]
    pub fn fall_asleep(&self) -> bool {
        self.asleep.store(1, Ordering::Relaxed);
        // SeqCst: pairs with the fence in `knock`.
        if FAULT != NO_OWNER_FENCE {
            fence(Ordering::SeqCst);
        }
        if FAULT != NO_RECHECK && self.has_mail() {
            self.wake_up();
            return false;
        }
        true
    }

    /// The owner is awake again: posters need not ring. Owner only.
    pub fn wake_up(&self) {
        self.asleep.store(0, Ordering::Relaxed);
    }
}

/// No planted fault.
pub const SOUND: u8 = 0;
/// Planted: the poster does not fence between announcing its letter and looking whether the owner sleeps.
pub const NO_POSTER_FENCE: u8 = 1;
/// Planted: the owner does not fence between announcing its sleep and looking for mail.
pub const NO_OWNER_FENCE: u8 = 2;
/// Planted: the owner does not look for mail after announcing its sleep.
pub const NO_RECHECK: u8 = 3;
/// Planted: posters announce by a plain store.
pub const PLAIN_PENDING: u8 = 4;

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;

    #[test]
    fn letters_posted_twice_are_opened_once_in_order() {
        let mailbox: Mailbox = Mailbox::new(130);
        for letter in [129, 3, 64, 3] {
            assert!(!mailbox.post(letter));
        }
        assert!(mailbox.has_mail());
        let mut opened = Vec::new();
        mailbox.collect(|letter| opened.push(letter));
        assert_eq!(opened, [3, 64, 129]);
        assert!(!mailbox.has_mail());
    }

    #[test]
    fn owner_with_mail_does_not_fall_asleep_and_without_is_rung_for() {
        let mailbox: Mailbox = Mailbox::new(1);
        assert!(!mailbox.knock());
        assert!(!mailbox.fall_asleep());
        mailbox.collect(|_| panic!("a knock is no letter"));
        assert!(mailbox.fall_asleep());
        assert!(mailbox.post(0));
        assert!(mailbox.knock(), "a second poster rings too");
        mailbox.wake_up();
        assert!(!mailbox.knock());
    }
}
