//! The frames of one burst, looked at before any of them goes on: their length, what their sender asks to be done to
//! them, and those that are dropped for their sender's fault.
//!
//! A guest can change its frame at any time. So what anything is decided by is read once, into a [`Head`] of ours: checked
//! there, learned and looked up there, and what goes on to the receiver begins with these very bytes. The rest of the
//! frame, by which nothing is decided, is read when it is copied.
//!
//! Works on the private copies that a burst and a header are; nothing of it is shared. Lives in the pump that peeked.
//!
//! Budget: no allocation, no lock, no system call, no panic.

use ringway_ring::chain::{Burst, Chain};
use ringway_ring::queue::RingFault;

use super::cursor::Cursor;
use super::offload::{HEAD_BYTES, NetHeader, Offload, Offloads, check};
use super::vlan::LOOKED_AT;
use super::{ETHERNET_HEADER, Mac, VLAN_TAG};
use crate::counters::{DropReason, Example};

/// What frames that come from one end must obey.
#[derive(Debug, Clone, Copy)]
pub struct Ingress {
    /// Bytes of the virtio header before each frame.
    pub header_len: usize,
    /// Longest frame on the wire, Ethernet header and VLAN tag included.
    pub max_frame: u32,
    /// What its sender may leave to be done.
    pub may: Offloads,
    /// The only source address that may be sent from; None for any.
    pub only: Option<Mac>,
    /// Whoever carries them looks at their VLANs, and may put in a tag.
    pub by_vlan: bool,
}

/// The longest frame at an MTU: with its Ethernet header and one VLAN tag.
pub fn longest_frame(mtu: u16) -> u32 {
    u32::from(mtu) + ETHERNET_HEADER + VLAN_TAG
}

/// One frame of a burst: its chain is the one of the same number.
#[derive(Debug, Clone, Copy)]
pub struct Frame {
    /// Bytes, without the virtio header.
    pub len: u32,
    /// What is to be done to it before it is on the wire.
    pub offload: Offload,
    /// Why it goes no further.
    pub dropped: Option<DropReason>,
    /// How many bytes of its [`Head`] were read: 0 where nothing was decided by them.
    pub looked_at: u8,
}

impl Frame {
    /// What the frame is an example of, dropped for this reason.
    #[cold]
    pub fn example(&self, reason: DropReason, head: &Head) -> Option<Example> {
        let is_known = usize::from(self.looked_at) >= ADDRESSES;
        match reason {
            DropReason::SpoofedMac | DropReason::Reflected if is_known => {
                Some(Example::Address(addresses(head).source))
            }
            DropReason::FloodLimit | DropReason::ReservedAddress | DropReason::SamePort if is_known => {
                Some(Example::Address(addresses(head).destination))
            }
            DropReason::Oversize
            | DropReason::Runt
            | DropReason::RxOversize
            | DropReason::RxBufferTooSmall => Some(Example::Bytes(self.offload.longest_frame(self.len))),
            _ => None,
        }
    }
}

/// The beginning of a frame, read once: as many bytes as [`Frame::looked_at`] says. They are the frame's from then on.
pub type Head = [u8; HEAD_BYTES];

/// The frames of a burst, in its order.
#[derive(Debug)]
pub struct Frames {
    frames: [Frame; Burst::CHAINS],
    heads: [Head; Burst::CHAINS],
    count: usize,
    has_dropped: bool,
    /// Whoever carries them decides by their addresses.
    by_address: bool,
    /// What the chain behind the last frame did wrong.
    pub fault: Option<RingFault>,
}

impl Frames {
    /// A frame of nothing.
    pub const EMPTY: Frame = Frame { len: 0, offload: Offload::None, dropped: None, looked_at: 0 };
    /// The beginning of a frame that nobody looked at.
    pub(super) const NO_HEAD: Head = [0; HEAD_BYTES];

    /// None yet. `by_address`: their addresses decide where they go.
    pub fn new(by_address: bool) -> Box<Frames> {
        Box::new(Frames {
            frames: [Frames::EMPTY; Burst::CHAINS],
            heads: [[0; HEAD_BYTES]; Burst::CHAINS],
            count: 0,
            has_dropped: false,
            by_address,
            fault: None,
        })
    }

    /// The frames, one for each chain from the first on.
    #[inline]
    pub fn as_slice(&self) -> &[Frame] {
        self.frames.get(..self.count).unwrap_or_default()
    }

    /// Their beginnings, one for each frame.
    #[inline]
    pub fn heads(&self) -> &[Head] {
        self.heads.get(..self.count).unwrap_or_default()
    }

    /// True if one of them is dropped.
    #[inline]
    pub fn has_dropped(&self) -> bool {
        self.has_dropped
    }

    /// Forgets them.
    pub fn clear(&mut self) {
        (self.count, self.fault) = (0, None);
    }

    /// Looks at every chain of a burst, up to the first that no transmit queue can have.
    #[inline]
    pub fn inspect(&mut self, burst: &Burst, ingress: &Ingress) {
        (self.count, self.fault, self.has_dropped) = (0, None, false);
        let by_address = self.by_address || ingress.only.is_some();
        let is_plain = ingress.may.is_empty() && !by_address;
        for (chain, frame) in burst.chains().iter().zip(&mut self.frames) {
            if chain.writable_bytes != 0 {
                self.fault = Some(RingFault::Direction);
                return;
            }
            let Some(len) = chain.readable_bytes.checked_sub(ingress.header_len as u32) else {
                self.fault = Some(RingFault::TooShort);
                return;
            };
            *frame = Frame { len, ..Frames::EMPTY };
            if len < ETHERNET_HEADER {
                (frame.dropped, self.has_dropped) = (Some(DropReason::Runt), true);
            } else if is_plain {
                // What a sender says that agreed on nothing is not even read.
                if len > ingress.max_frame {
                    (frame.dropped, self.has_dropped) = (Some(DropReason::Oversize), true);
                }
            } else if let Some(head) = self.heads.get_mut(self.count)
                && let Err(reason) = look(burst, chain, ingress, by_address, frame, head)
            {
                (frame.dropped, self.has_dropped) = (Some(reason), true);
            }
            self.count += 1;
        }
    }
}

/// Looks at what a frame's sender asks for and claims to be. Everything is read here, once.
#[inline]
fn look(
    burst: &Burst,
    chain: &Chain,
    ingress: &Ingress,
    by_address: bool,
    frame: &mut Frame,
    head: &mut Head,
) -> Result<(), DropReason> {
    if !ingress.may.is_empty() {
        let mut bytes = [0; 12];
        let claimed = bytes.get_mut(..ingress.header_len).unwrap_or_default();
        copy_out(burst, chain, 0, claimed);
        let claim = NetHeader::from_bytes(&bytes);
        if !claim.is_plain() {
            frame.offload = if claim.needs_head() {
                // A tag that is put in has room beside them.
                let most = if ingress.by_vlan { HEAD_BYTES - VLAN_TAG as usize } else { HEAD_BYTES };
                let head = head.get_mut(..most.min(frame.len as usize)).unwrap_or_default();
                copy_out(burst, chain, ingress.header_len, head);
                frame.looked_at = head.len() as u8;
                check(claim, ingress.may, frame.len, head)
            } else {
                check(claim, ingress.may, frame.len, &[])
            }
            .map_err(|_| DropReason::BadOffload)?;
        }
    }
    if frame.offload.longest_frame(frame.len) > ingress.max_frame {
        return Err(DropReason::Oversize);
    }
    if by_address {
        if frame.looked_at == 0 {
            let bytes = if ingress.by_vlan { LOOKED_AT.min(frame.len as usize) } else { ADDRESSES };
            let whole =
                burst.single_readable(chain).and_then(|piece| piece.get(ingress.header_len, ADDRESSES));
            match whole.filter(|_| !ingress.by_vlan) {
                // In the words in which they are read again: see [`Ends`].
                Some(both) => Ends { low: both.word(0), high: (both.word(4) >> 32) as u32 }.put(head),
                None => {
                    copy_out(burst, chain, ingress.header_len, head.get_mut(..bytes).unwrap_or_default());
                }
            }
            frame.looked_at = bytes as u8;
        }
        if ingress.only.is_some_and(|only| addresses(head).source != only) {
            return Err(DropReason::SpoofedMac);
        }
    }
    Ok(())
}

/// Bytes of the two addresses of a frame.
pub const ADDRESSES: usize = 12;
// `Frame::looked_at` holds the length of a head.
const _: () = assert!(HEAD_BYTES <= u8::MAX as usize);

/// The two addresses of a frame as numbers, in which they are kept and compared: what is stored in one piece and loaded in the
/// same waits for no other store, those to a peer's lines among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    low: u64,
    high: u32,
}

impl Ends {
    /// Those with which a frame begins.
    #[inline(always)]
    pub fn of(head: &Head) -> Ends {
        // A load each: a number that is put together of single bytes would be so byte by byte.
        let (low, rest) = head.split_first_chunk::<8>().unwrap_or((&[0; 8], &[]));
        let high = rest.first_chunk::<4>().unwrap_or(&[0; 4]);
        Ends { low: u64::from_le_bytes(*low), high: u32::from_le_bytes(*high) }
    }

    #[inline(always)]
    fn put(self, head: &mut Head) {
        if let Some((low, rest)) = head.split_first_chunk_mut::<8>() {
            *low = self.low.to_le_bytes();
            if let Some(high) = rest.first_chunk_mut::<4>() {
                *high = self.high.to_le_bytes();
            }
        }
    }

    /// The first eight bytes of the twelve as a number, and the last.
    #[inline(always)]
    pub fn words(self) -> (u64, u64) {
        (self.low, self.low >> 32 | u64::from(self.high) << 32)
    }
}

/// The two addresses of an Ethernet frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Addresses {
    /// To whom.
    pub destination: Mac,
    /// From whom.
    pub source: Mac,
}

/// The addresses with which a frame begins.
#[inline]
pub fn addresses(head: &Head) -> Addresses {
    let [a, b, c, d, e, f, g, h, i, j, k, l, ..] = *head;
    Addresses { destination: Mac([a, b, c, d, e, f]), source: Mac([g, h, i, j, k, l]) }
}

/// Copies the bytes of a chain from `at` on out, as many as there are.
#[inline]
pub fn copy_out(burst: &Burst, chain: &Chain, at: usize, into: &mut [u8]) {
    if let Some(first) = burst.readable(chain).next()
        && first.len() >= at + into.len()
    {
        first.part(at, into.len()).read(into);
        return;
    }
    let mut from = Cursor::new(burst.readable(chain));
    from.skip(at);
    from.read(into);
}

/// Asks for the first lines of every piece of every peeked frame before the first is touched.
#[inline]
pub fn prefetch(burst: &Burst) {
    for piece in burst.all_segments() {
        piece.prefetch_read(0);
        piece.prefetch_read(64);
    }
}
