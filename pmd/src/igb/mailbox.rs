//! The mailbox: what a virtual function asks of its PF, whose driver is the host's (Linux's igb), and what that says unasked.
//!
//! ```text
//!   take the buffer --> message --> REQ --> PF reads (PFACK) --> PF answers (PFSTS) --> take the buffer, read, ACK
//! ```
//!
//! One request at a time; some milliseconds each, and a second if nobody answers: for threads that may wait. Several bits of its
//! register vanish when they are read, so all reads go through `Mailbox::look`, which keeps them.

use std::time::{Duration, Instant};

use super::registers::{Registers, VfFault};
use crate::bus::pci::View;
use crate::net::Mac;

/// See the module's head.
#[derive(Debug)]
pub struct Mailbox {
    bar: View,
    /// Bits that were read, and not used yet.
    kept: u32,
}

/// What a PF said unasked, or did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// Nothing.
    None,
    /// The link may have changed.
    Link,
    /// It is being reset, or was: the function has to begin anew.
    Lost,
}

impl Mailbox {
    /// That of a function, which nobody else uses.
    pub fn new(registers: &Registers) -> Mailbox {
        let bar = registers.bar().clone();
        // A predecessor may have died with the buffer taken.
        bar.write32(MAILBOX, 0);
        Mailbox { bar, kept: 0 }
    }

    /// Reads the register, and keeps what vanishes by that.
    fn look(&mut self) -> Result<u32, VfFault> {
        let now = self.bar.read32(MAILBOX);
        if now == u32::MAX {
            return Err(VfFault::Gone);
        }
        self.kept |= now & VANISHING;
        Ok(now | self.kept)
    }

    /// True if a bit that vanishes was there, which it is no more.
    fn take(&mut self, bit: u32) -> Result<bool, VfFault> {
        let is_set = self.look()? & bit != 0;
        self.kept &= !bit;
        Ok(is_set)
    }

    /// Takes the buffer, unless the PF has it.
    fn try_lock(&mut self) -> Result<bool, VfFault> {
        self.bar.write32(MAILBOX, TAKEN);
        Ok(self.look()? & TAKEN != 0)
    }

    /// Takes the buffer, which the PF may have for a moment.
    fn lock(&mut self) -> Result<(), VfFault> {
        for _ in 0..LOCK_TRIES {
            if self.try_lock()? {
                return Ok(());
            }
            std::thread::sleep(LOCK_PAUSE);
        }
        Err(VfFault::NoPf("it keeps the mailbox to itself"))
    }

    /// Waits for a bit that the PF sets, until so long after the request began.
    fn wait_for(&mut self, bit: u32, begun: Instant, what: &'static str) -> Result<(), VfFault> {
        while !self.take(bit)? {
            if self.look()? & PF_IN_RESET != 0 {
                return Err(VfFault::NoPf("it is in reset"));
            }
            if begun.elapsed() >= ANSWER_WITHIN {
                return Err(VfFault::NoPf(what));
            }
            std::thread::sleep(POLL);
        }
        Ok(())
    }

    /// Says something, and reads the first words of the answer.
    fn request(&mut self, message: &[u32]) -> Result<[u32; 3], VfFault> {
        let begun = Instant::now();
        self.lock()?;
        self.kept &= !(PF_READ | PF_WROTE);
        for (at, word) in (MESSAGE..).step_by(4).zip(message.iter().chain(&[0; 3]).take(MESSAGE_WORDS)) {
            self.bar.write32(at, *word);
        }
        self.bar.write32(MAILBOX, REQUEST);
        self.wait_for(PF_READ, begun, "it does not read a message")?;
        let asked = message.first().copied().unwrap_or(0) & ID;
        for _ in 0..UNASKED {
            self.wait_for(PF_WROTE, begun, "it does not answer a message")?;
            self.lock()?;
            let words = self.read_message();
            let [first, ..] = words;
            if first & ID == asked && first & (DONE | REFUSED) != 0 {
                return Ok(words);
            }
            // It speaks of something else, or knows us no more.
            if first & CLEAR_TO_SEND == 0 {
                return Err(VfFault::NoPf("it was reset"));
            }
        }
        Err(VfFault::NoPf("it speaks of everything but what it was asked"))
    }

    /// Reads what is in the buffer that was taken, and lets go of it.
    fn read_message(&self) -> [u32; 3] {
        let words = [0, 4, 8].map(|at| self.bar.read32(MESSAGE + at));
        self.bar.write32(MAILBOX, READ);
        words
    }

    /// Asks for something that is done or refused.
    fn ask(&mut self, what: impl FnOnce() -> String, message: &[u32]) -> Result<(), VfFault> {
        let [answer, ..] = self.request(message)?;
        if answer & DONE != 0 { Ok(()) } else { Err(VfFault::Refused(what())) }
    }

    /// What the PF said or did since the last time. Waits for nobody.
    ///
    /// # Errors
    /// The function is gone.
    pub fn news(&mut self) -> Result<News, VfFault> {
        if self.look()? & (PF_IN_RESET | PF_WAS_RESET) != 0 {
            self.kept &= !PF_WAS_RESET;
            return Ok(News::Lost);
        }
        if !self.take(PF_WROTE)? {
            return Ok(News::None);
        }
        if !self.try_lock()? {
            // Read at the next look.
            self.kept |= PF_WROTE;
            return Ok(News::None);
        }
        let [first, ..] = self.read_message();
        Ok(if first & CLEAR_TO_SEND != 0 { News::Link } else { News::Lost })
    }

    /// True while the PF cannot be asked for anything.
    ///
    /// # Errors
    /// The function is gone.
    pub fn is_pf_in_reset(&mut self) -> Result<bool, VfFault> {
        Ok(self.look()? & PF_IN_RESET != 0)
    }

    /// Makes itself known, behind [`Registers::reset`]: all that was asked for before is forgotten. The address that the PF fixed,
    /// if it did.
    ///
    /// # Errors
    /// The PF does not serve it.
    pub fn reset(&mut self) -> Result<Option<Mac>, VfFault> {
        self.look()?;
        self.kept = 0;
        if self.is_pf_in_reset()? {
            return Err(VfFault::NoPf("it is in reset or down"));
        }
        let [answer, low, high] = self.request(&[RESET])?;
        let ([a, b, c, d], [e, f, ..]) = (low.to_le_bytes(), high.to_le_bytes());
        let mac = Mac([a, b, c, d, e, f]);
        Ok(Some(mac).filter(|mac| answer & DONE != 0 && !mac.is_multicast() && *mac != Mac([0; 6])))
    }

    /// The address of the function.
    ///
    /// # Errors
    /// The PF fixed another, or does not answer.
    pub fn set_mac(&mut self, mac: Mac) -> Result<(), VfFault> {
        self.ask(|| format!("the address {mac}"), &with_mac(SET_MAC, mac))
    }

    /// One more address whose frames are received: a station behind the function. Needs `ip link set PF vf N trust on`.
    ///
    /// # Errors
    /// The PF does not trust the function, or has no room for more.
    pub fn add_filter(&mut self, mac: Mac) -> Result<(), VfFault> {
        let what = || format!("to have frames to {mac} come here (ip link set PF vf N trust on)");
        self.ask(what, &with_mac(SET_MAC | info(ADD_FILTER), mac))
    }

    /// None of those any more, which a reset of the function does not see to. `mac`: any unicast address, as the PF wants to be told one.
    ///
    /// # Errors
    /// The PF does not trust the function.
    pub fn clear_filters(&mut self, mac: Mac) -> Result<(), VfFault> {
        self.ask(|| "to clear filters".to_owned(), &with_mac(SET_MAC | info(CLEAR_FILTERS), mac))
    }

    /// The group addresses whose frames are received, in place of those before: the first [`MOST_GROUPS`].
    ///
    /// # Errors
    /// The PF refuses them.
    pub fn set_groups(&mut self, groups: &[Mac]) -> Result<(), VfFault> {
        let groups = groups.get(..groups.len().min(MOST_GROUPS)).unwrap_or_default();
        let mut message = vec![SET_GROUPS | info(groups.len() as u32)];
        for pair in groups.chunks(2) {
            let hashes = pair.iter().map(|mac| hash(*mac)).rev();
            message.push(hashes.fold(0, |word, hash| word << 16 | u32::from(hash)));
        }
        self.ask(|| "group addresses".to_owned(), &message)
    }

    /// Frames to every group address are received.
    ///
    /// # Errors
    /// The PF refuses it.
    pub fn set_all_groups(&mut self, is_on: bool) -> Result<(), VfFault> {
        let message = [SET_PROMISCUOUS | info(if is_on { ALL_GROUPS } else { 0 })];
        self.ask(|| "frames to every group".to_owned(), &message)
    }

    /// Frames of a VLAN are received, tagged. VLAN 0 is that of frames without tag.
    ///
    /// # Errors
    /// The PF put the function into a VLAN of its own, or has no room for more.
    pub fn add_vlan(&mut self, vlan: u16) -> Result<(), VfFault> {
        self.ask(|| format!("VLAN {vlan}"), &[SET_VLAN | info(1), vlan.into()])
    }

    /// The longest frame that is received, with its checksum (FCS).
    ///
    /// # Errors
    /// The PF refuses it.
    pub fn set_longest_frame(&mut self, bytes: u32) -> Result<(), VfFault> {
        self.ask(|| format!("frames of {bytes} bytes"), &[SET_LONGEST, bytes])
    }
}

/// By which a group address is filtered.
fn hash(mac: Mac) -> u16 {
    let [.., e, f] = mac.0;
    (u16::from(f) << 4 | u16::from(e) >> 4) & 0xfff
}

fn with_mac(id: u32, mac: Mac) -> [u32; 3] {
    let [a, b, c, d, e, f] = mac.0;
    [id, u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, 0, 0])]
}

const fn info(number: u32) -> u32 {
    number << 16
}

/// Group addresses of one message.
pub const MOST_GROUPS: usize = 30;

const MAILBOX: u64 = 0x0c40;
const MESSAGE: u64 = 0x0800;
/// Words of the buffer.
const MESSAGE_WORDS: usize = 16;

// Bits of the register.
const REQUEST: u32 = 1 << 0;
const READ: u32 = 1 << 1;
const TAKEN: u32 = 1 << 2;
const PF_WROTE: u32 = 1 << 4;
const PF_READ: u32 = 1 << 5;
const PF_IN_RESET: u32 = 1 << 6;
const PF_WAS_RESET: u32 = 1 << 7;
const VANISHING: u32 = PF_WROTE | PF_READ | PF_WAS_RESET;

// Bits of a message's first word.
const DONE: u32 = 1 << 31;
const REFUSED: u32 = 1 << 30;
const CLEAR_TO_SEND: u32 = 1 << 29;
const ID: u32 = 0xffff;

// Messages.
const RESET: u32 = 0x01;
const SET_MAC: u32 = 0x02;
const SET_GROUPS: u32 = 0x03;
const SET_VLAN: u32 = 0x04;
const SET_LONGEST: u32 = 0x05;
const SET_PROMISCUOUS: u32 = 0x06;
const CLEAR_FILTERS: u32 = 1;
const ADD_FILTER: u32 = 2;
const ALL_GROUPS: u32 = 2;

/// The PF has the buffer for a moment: so often it is asked for.
const LOCK_TRIES: u32 = 10;
const LOCK_PAUSE: Duration = Duration::from_millis(1);
/// A PF that serves reads a message and answers it within this.
const ANSWER_WITHIN: Duration = Duration::from_secs(1);
const POLL: Duration = Duration::from_micros(500);
/// Messages of the PF that come in between before its answer.
const UNASKED: usize = 8;
