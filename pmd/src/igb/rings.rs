//! Descriptor rings, in memory of our own that the function reaches.
//!
//! ```text
//!   receive:   post(buffer) ... ring() --> function fills --> next(): how long, of what kind
//!   transmit:  put(descriptor) ... ring() --> function sends --> is_done(): the last descriptor of a frame
//! ```
//!
//! Owned by one pump. What the function writes back is read once, as one word, and is a claim. Budget: no allocation, no lock, no
//! system call, no panic.

use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use ringway_ring::guest::{GuestMap, HostSlice};

use super::registers::{Doorbell, Place, Registers};

/// A descriptor: two words, little-endian.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Descriptor(pub u64, pub u64);

/// The descriptors of a ring.
#[derive(Debug)]
struct Table {
    /// Of our own memory, by the addresses that the function has for it.
    map: Arc<GuestMap>,
    place: Place,
}

impl Table {
    fn slot(&self, index: u16) -> Option<HostSlice<'_>> {
        self.map.resolve(self.place.at + u64::from(index) * BYTES, BYTES).ok()
    }

    fn write(&self, index: u16, Descriptor(first, second): Descriptor) {
        if let Some(slot) = self.slot(index) {
            slot.put_word(0, first);
            slot.put_word(8, second);
        }
    }

    /// The word that the function writes back.
    fn written(&self, index: u16) -> u64 {
        self.slot(index).map_or(0, |slot| slot.word(8))
    }

    fn after(&self, index: u16) -> u16 {
        if index + 1 < self.place.size { index + 1 } else { 0 }
    }
}

/// What the function says of a buffer that it filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes in it.
    pub len: u16,
    /// The frame ends in it; what follows is valid only then.
    pub is_last: bool,
    /// The tag that was taken out of the frame.
    pub vlan: Option<u16>,
    /// The transport's checksum was looked at, and is right.
    pub is_verified: bool,
    /// The frame was damaged.
    pub is_damaged: bool,
}

/// The receive ring: its buffers come back in the order in which they were posted.
#[derive(Debug)]
pub struct RxRing {
    table: Table,
    doorbell: Doorbell,
    /// Next to come back.
    head: u16,
    /// Next to be posted.
    tail: u16,
    posted: u16,
}

impl RxRing {
    /// Empty; the function does not work on it yet.
    pub fn new(registers: &Registers, map: Arc<GuestMap>, place: Place) -> RxRing {
        RxRing { table: Table { map, place }, doorbell: registers.rx_tail(), head: 0, tail: 0, posted: 0 }
    }

    /// Buffers that can be posted.
    #[inline]
    pub fn room(&self) -> usize {
        // A tail that caught up with the head would mean that there is none.
        usize::from((self.table.place.size - 1).saturating_sub(self.posted))
    }

    /// Buffers that are posted.
    #[inline]
    pub fn posted(&self) -> usize {
        self.posted.into()
    }

    /// Where the next buffer is posted.
    #[inline]
    pub fn tail(&self) -> u16 {
        self.tail
    }

    /// Where the next buffer comes back.
    #[inline]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// Posts a buffer at an even address; not before there is room.
    #[inline]
    pub fn post(&mut self, at: u64) {
        // The second word's lowest bit is what says that it came back.
        self.table.write(self.tail, Descriptor(at, 0));
        self.tail = self.table.after(self.tail);
        self.posted += 1;
    }

    /// Tells the function of what was posted.
    #[inline]
    pub fn ring(&self) {
        self.doorbell.ring(self.tail);
    }

    /// What is said of the next buffer, if it came back.
    #[inline]
    pub fn next(&self) -> Option<Received> {
        if self.posted == 0 {
            return None;
        }
        let word = self.table.written(self.head);
        if word & RX_DONE == 0 {
            return None;
        }
        // What the function wrote before is read behind this.
        fence(Ordering::Acquire);
        let checked = word & RX_CHECKED != 0;
        Some(Received {
            len: (word >> 32) as u16,
            is_last: word & RX_LAST != 0,
            vlan: (word & RX_VLAN != 0).then_some((word >> 48) as u16),
            is_verified: checked && word & RX_CHECKSUM_ERROR == 0,
            is_damaged: word & RX_DAMAGED != 0,
        })
    }

    /// The next buffer is done with.
    #[inline]
    pub fn advance(&mut self) {
        self.head = self.table.after(self.head);
        self.posted = self.posted.saturating_sub(1);
    }
}

/// The transmit ring.
#[derive(Debug)]
pub struct TxRing {
    table: Table,
    doorbell: Doorbell,
    /// Next to be put.
    tail: u16,
    used: u16,
}

impl TxRing {
    /// Empty; the function does not work on it yet.
    pub fn new(registers: &Registers, map: Arc<GuestMap>, place: Place) -> TxRing {
        TxRing { table: Table { map, place }, doorbell: registers.tx_tail(), tail: 0, used: 0 }
    }

    /// Descriptors that can be put.
    #[inline]
    pub fn room(&self) -> usize {
        usize::from((self.table.place.size - 1).saturating_sub(self.used))
    }

    /// Where the next descriptor is put.
    #[inline]
    pub fn tail(&self) -> u16 {
        self.tail
    }

    /// Puts a descriptor; not before there is room. Where it is.
    #[inline]
    pub fn put(&mut self, descriptor: Descriptor) -> u16 {
        let at = self.tail;
        self.table.write(at, descriptor);
        self.tail = self.table.after(at);
        self.used += 1;
        at
    }

    /// Tells the function of what was put.
    #[inline]
    pub fn ring(&self) {
        self.doorbell.ring(self.tail);
    }

    /// The function has done a descriptor that asked for its report, and all before.
    #[inline]
    pub fn is_done(&self, at: u16) -> bool {
        let is_done = self.table.written(at) & TX_DONE != 0;
        // What was sent may be written again behind this.
        fence(Ordering::Acquire);
        is_done
    }

    /// So many descriptors, the oldest, are free again.
    #[inline]
    pub fn free(&mut self, count: u16) {
        self.used = self.used.saturating_sub(count);
    }
}

/// What the function does to a frame on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Work {
    /// It uses the context that was put last: a transport's checksum.
    pub checksum: bool,
    /// Cuts the frame up.
    pub cut: bool,
    /// The checksum of the IPv4 header.
    pub ip_checksum: bool,
    /// Bytes of the frame; of one to be cut up, those behind its headers.
    pub bytes: u32,
}

/// A piece of a frame, `len` bytes at `at`. The last asks for a report.
pub fn data(at: u64, len: u16, is_last: bool, work: Work) -> Descriptor {
    let mut command = u64::from(len) | TX_DATA | TX_EXTENDED | TX_FCS;
    if is_last {
        command |= TX_LAST | TX_REPORT;
    }
    if work.cut {
        command |= TX_CUT;
    }
    let mut options = u64::from(work.bytes) << 14;
    if work.checksum {
        options |= TX_TRANSPORT_CHECKSUM;
    }
    if work.ip_checksum {
        options |= TX_IP_CHECKSUM;
    }
    Descriptor(at, command | options << 32)
}

/// Where a frame's headers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Context {
    /// Bytes of its Ethernet header, tags included: below 128.
    pub mac_len: u16,
    /// Of its IP header: below 512.
    pub ip_len: u16,
    /// Of its transport header.
    pub transport_len: u8,
    /// IPv4.
    pub is_v4: bool,
    /// TCP, else UDP.
    pub is_tcp: bool,
    /// Payload of each frame that it is cut up into.
    pub mss: u16,
}

impl Context {
    /// What tells the function.
    pub fn descriptor(self) -> Descriptor {
        let lengths = u64::from(self.ip_len & 0x1ff) | u64::from(self.mac_len & 0x7f) << 9;
        let mut kind = TX_CONTEXT | TX_EXTENDED;
        if self.is_v4 {
            kind |= CONTEXT_V4;
        }
        if self.is_tcp {
            kind |= CONTEXT_TCP;
        }
        let cut = u64::from(self.transport_len) << 8 | u64::from(self.mss) << 16;
        Descriptor(lengths, kind | cut << 32)
    }
}

/// Bytes of a descriptor.
pub const BYTES: u64 = 16;
/// Bytes of one piece of a frame at most: what drivers of this hardware have always kept to.
pub const MOST_OF_A_PIECE: u32 = 16384;

const RX_DONE: u64 = 1 << 0;
const RX_LAST: u64 = 1 << 1;
const RX_VLAN: u64 = 1 << 3;
/// Of UDP, or of TCP and UDP.
const RX_CHECKED: u64 = 1 << 4 | 1 << 5;
const RX_CHECKSUM_ERROR: u64 = 1 << 29 | 1 << 30;
const RX_DAMAGED: u64 = 1 << 31;

const TX_DONE: u64 = 1 << 32;
const TX_CONTEXT: u64 = 2 << 20;
const TX_DATA: u64 = 3 << 20;
const TX_LAST: u64 = 1 << 24;
const TX_FCS: u64 = 1 << 25;
const TX_REPORT: u64 = 1 << 27;
const TX_EXTENDED: u64 = 1 << 29;
const TX_CUT: u64 = 1 << 31;
const TX_IP_CHECKSUM: u64 = 1 << 8;
const TX_TRANSPORT_CHECKSUM: u64 = 1 << 9;
const CONTEXT_V4: u64 = 1 << 10;
const CONTEXT_TCP: u64 = 1 << 11;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptors_are_what_the_hardware_reads() {
        let work = Work { bytes: 60, ..Work::default() };
        assert_eq!(data(0x1234, 60, true, work), Descriptor(0x1234, (60 << 14) << 32 | 0x2b30_0000 | 60));
        let work = Work { checksum: true, cut: true, ip_checksum: true, bytes: 3000 };
        let cut = (3000u64 << 14 | 0x300) << 32 | 0xa230_0000 | 54;
        assert_eq!(data(2, 54, false, work), Descriptor(2, cut));
        let context =
            Context { mac_len: 14, ip_len: 20, transport_len: 20, is_v4: true, is_tcp: true, mss: 1000 };
        let words = Descriptor(14 << 9 | 20, (1000u64 << 16 | 20 << 8) << 32 | 0x2020_0c00);
        assert_eq!(context.descriptor(), words);
    }
}
