//! Announcements: a guest has arrived here, and the frame by which bridges and switches learn it.
//!
//! A front-end whose guest does not announce itself has its back-end do it (SEND_RARP of vhost-user). The session leaves
//! the address at the port; the pump that has the port's running transmit queues sends the frame, as if the guest had sent
//! it. Until there is such a pump, it waits; a later one takes its place.
//!
//! Budget of the pump's side: one relaxed load a poll; no allocation, no lock, no system call, no panic.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::frame::ADDRESSES;
use super::{Mac, VLAN_TAG};

/// Whether one of a fabric's ports may have something to announce, for the pumps that serve them: one that takes it back, or
/// several, each of which looks how often there was something.
#[derive(Debug, Default)]
pub struct News {
    is_there: AtomicBool,
    count: AtomicU64,
}

impl News {
    /// There may be something.
    pub fn tell(&self) {
        // Release: as below.
        self.count.fetch_add(1, Ordering::Release);
        // Release: pairs with the Acquire of a pump that looks at all its ports. The address is all that there is to see.
        self.is_there.store(true, Ordering::Release);
    }

    /// There may be something, for the only pump.
    #[inline(always)]
    pub fn is_there(&self) -> bool {
        self.is_there.load(Ordering::Relaxed)
    }

    /// Takes that back: the only pump looks now.
    pub fn take(&self) {
        // Acquire: pairs with the Release of whoever left something, which is seen from here on.
        self.is_there.swap(false, Ordering::Acquire);
    }

    /// How often there was something, for one of several pumps.
    #[inline]
    pub fn count(&self) -> u64 {
        // Acquire: as in `take`.
        self.count.load(Ordering::Acquire)
    }
}

/// What waits to be announced at one port. Written by its session, taken by its pump.
#[derive(Debug)]
pub struct Announcement {
    /// The address in the low 48 bits, [`WAITS`] or [`TOLD`] above; 0 for none.
    waiting: AtomicU64,
    /// Of the fabric's ports, one may have something to announce.
    news: Arc<News>,
}

impl Announcement {
    /// Nothing waits. `news` is shared by the ports that one pump may serve.
    pub fn new(news: Arc<News>) -> Announcement {
        Announcement { waiting: AtomicU64::new(0), news }
    }

    /// Leaves an address to be announced; None takes back what waits, and what was told.
    pub fn set(&self, mac: Option<Mac>) {
        let word = mac.map_or(0, |mac| WAITS | mac.to_bits());
        self.waiting.store(word, Ordering::Relaxed);
        self.news.tell();
    }

    /// Takes back what waits, and what was told, unless it is this address.
    pub fn hold_to(&self, mac: Mac) {
        let is_other = |word| (word != 0 && Mac::from_bits(word) != mac).then_some(0);
        // Relaxed: the word is all that there is.
        let _ = self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, is_other);
    }

    /// Something waits.
    #[inline]
    pub fn is_waiting(&self) -> bool {
        self.waiting.load(Ordering::Relaxed) & WAITS != 0
    }

    /// Takes what waits: it is told.
    pub fn take(&self) -> Option<Mac> {
        self.turn(WAITS).map(Mac::from_bits)
    }

    /// What was told waits once more: not everybody heard of it. Not if something newer waits, or it was taken back.
    pub fn tell_again(&self) {
        if self.turn(TOLD).is_some() {
            self.news.tell();
        }
    }

    /// What waits is told from now on, or the other way round, if it is so: the word before.
    fn turn(&self, from: u64) -> Option<u64> {
        let turned = |word| (word & from != 0).then_some(word ^ (WAITS | TOLD));
        // Relaxed: the word is all that there is.
        self.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, turned).ok()
    }
}

/// The frame: a request of RFC 903 by which nothing is asked and everybody learns where the address is, as QEMU and the
/// kernel send it when a guest has moved. Padded to the shortest Ethernet frame.
pub fn frame(mac: Mac) -> [u8; FRAME_BYTES] {
    let mut frame = [0; FRAME_BYTES];
    let parts: [(usize, &[u8]); 6] = [
        (0, &[0xff; 6]),
        (6, &mac.0),
        // EtherType RARP; Ethernet, IPv4, the lengths of their addresses, request reverse.
        (12, &[0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]),
        // Sender, its IPv4 address 0.0.0.0 behind it.
        (22, &mac.0),
        // Target, the same.
        (32, &mac.0),
        (38, &[0; 4]),
    ];
    for (at, part) in parts {
        if let Some(to) = frame.get_mut(at..at + part.len()) {
            to.copy_from_slice(part);
        }
    }
    frame
}

/// The frame with the tag of a VLAN.
pub fn tagged(frame: [u8; FRAME_BYTES], vid: u16) -> [u8; FRAME_BYTES + VLAN_TAG as usize] {
    let mut tagged = [0; FRAME_BYTES + VLAN_TAG as usize];
    let [high, low] = vid.to_be_bytes();
    let tag = [0x81, 0, high, low];
    let bytes = frame.iter().take(ADDRESSES).chain(&tag).chain(frame.iter().skip(ADDRESSES));
    tagged.iter_mut().zip(bytes).for_each(|(to, byte)| *to = *byte);
    tagged
}

/// Bytes of an announcement: the shortest Ethernet frame, without its checksum.
pub const FRAME_BYTES: usize = 60;

/// An address waits.
const WAITS: u64 = 1 << 63;

/// It was told.
const TOLD: u64 = 1 << 62;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frame_is_that_of_rfc_903() {
        let mac = Mac([0x52, 0x54, 0, 1, 2, 3]);
        let frame = frame(mac);
        assert_eq!(frame[..6], [0xff; 6]);
        assert_eq!(frame[6..12], mac.0);
        assert_eq!(frame[12..22], [0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3]);
        assert_eq!((&frame[22..28], &frame[32..38]), (&mac.0[..], &mac.0[..]));
        assert_eq!((&frame[28..32], &frame[38..42]), (&[0; 4][..], &[0; 4][..]));
        assert!(frame[42..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn latest_waits_until_it_is_taken_once_or_taken_back() {
        let news = Arc::<News>::default();
        let announcement = Announcement::new(Arc::clone(&news));
        assert!(!announcement.is_waiting() && announcement.take().is_none());
        for last in [2, 1] {
            announcement.set(Some(Mac([0, 0, 0, 0, 0, last])));
        }
        assert!(news.is_there() && news.count() == 2 && announcement.is_waiting());
        assert_eq!(announcement.take(), Some(Mac([0, 0, 0, 0, 0, 1])));
        assert!(announcement.take().is_none());
        announcement.set(Some(Mac([0; 6])));
        assert!(announcement.is_waiting(), "an address of zeros is one");
        announcement.set(None);
        assert!(!announcement.is_waiting());
    }

    #[test]
    fn what_was_told_waits_once_more_unless_it_was_taken_back_or_something_newer_waits() {
        let announcement = Announcement::new(Arc::default());
        let [one, other] = [1, 2].map(|last| Mac([0xff, 0xff, 0, 0, 0, last]));
        announcement.tell_again();
        assert!(!announcement.is_waiting());
        let tell = |mac| {
            announcement.set(Some(mac));
            assert_eq!(announcement.take(), Some(mac));
            assert!(!announcement.is_waiting() && announcement.take().is_none());
        };
        for _ in 0..2 {
            tell(one);
            announcement.tell_again();
            announcement.tell_again();
            assert_eq!(announcement.take(), Some(one));
        }
        announcement.hold_to(one);
        announcement.tell_again();
        assert_eq!(announcement.take(), Some(one));
        announcement.hold_to(other);
        announcement.tell_again();
        assert!(!announcement.is_waiting());
        tell(one);
        announcement.set(None);
        announcement.tell_again();
        assert!(!announcement.is_waiting());
        tell(one);
        announcement.set(Some(other));
        announcement.tell_again();
        assert_eq!(announcement.take(), Some(other));
    }
}
