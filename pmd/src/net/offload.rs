//! Offloads of virtio-net (virtio 1.3 §5.1.6.2, §5.1.6.4): what a sender leaves to be done to its frame, checked against
//! the frame, and done here where its receiver did not agree to do it.
//!
//! ```text
//!   sender's header --copy--> NetHeader --check(frame)--> Offload --to_header--> receiver that agreed to it
//!                                                            |
//!                                                            +--> complete_checksum, Segments: receiver that did not
//! ```
//!
//! What a sender says is a claim. Of it, only what was negotiated and fits the frame's own headers becomes an
//! [`Offload`]; what is passed on is made of that, never of the sender's words. All work is on private copies: neither
//! I/O nor shared memory here.
//!
//! Budget of everything: no allocation, no lock, no system call, no panic.

mod checksum;
mod hardware;
mod packet;
mod segment;
#[cfg(test)]
mod tests;

use ringway_ring::features::Features;

pub use checksum::complete_checksum;
pub use hardware::{Headers, headers_of, prepare_cut};
use packet::{Packet, Transport};
pub use segment::{Finish, Piece, Segments};

use super::{
    ETHERNET_HEADER, F_CSUM, F_GUEST_CSUM, F_GUEST_ECN, F_GUEST_TSO4, F_GUEST_TSO6, F_GUEST_USO4,
    F_GUEST_USO6, F_HOST_ECN, F_HOST_TSO4, F_HOST_TSO6, F_HOST_USO,
};

/// The most bytes of a frame's beginning that are looked at, and so of all its headers together: Ethernet, two VLAN tags,
/// IPv4 with options or IPv6 with 64 bytes of extension headers, TCP with options.
pub const HEAD_BYTES: usize = 192;

/// `struct virtio_net_hdr_mrg_rxbuf` (virtio 1.3 §5.1.6), copied once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct NetHeader {
    flags: u8,
    gso_type: u8,
    hdr_len: u16,
    gso_size: u16,
    csum_start: u16,
    csum_offset: u16,
}

/// Kinds of work that may be left to the other side.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Offloads(u8);

impl Offloads {
    /// None.
    pub const NONE: Offloads = Offloads(0);
    /// A partial checksum.
    pub const CHECKSUM: Offloads = Offloads(1);
    /// TCP over IPv4, to be cut up.
    pub const TSO4: Offloads = Offloads(2);
    /// TCP over IPv6.
    pub const TSO6: Offloads = Offloads(4);
    /// TCP with CWR set, to be cut up.
    pub const ECN: Offloads = Offloads(8);
    /// UDP over IPv4.
    pub const USO4: Offloads = Offloads(16);
    /// UDP over IPv6.
    pub const USO6: Offloads = Offloads(32);
    /// All.
    pub const ALL: Offloads = Offloads(63);

    /// What a driver that agreed on these features may leave to the device. Segmentation presupposes checksums
    /// (virtio 1.3 §5.1.3.1).
    pub fn sent(features: Features) -> Offloads {
        Offloads::of(
            features,
            F_CSUM,
            &[
                (F_HOST_TSO4, Offloads::TSO4),
                (F_HOST_TSO6, Offloads::TSO6),
                (F_HOST_ECN, Offloads::ECN),
                (F_HOST_USO, Offloads::USO4.with(Offloads::USO6)),
            ],
        )
    }

    /// What a driver that agreed on these features takes from the device.
    pub fn received(features: Features) -> Offloads {
        Offloads::of(
            features,
            F_GUEST_CSUM,
            &[
                (F_GUEST_TSO4, Offloads::TSO4),
                (F_GUEST_TSO6, Offloads::TSO6),
                (F_GUEST_ECN, Offloads::ECN),
                (F_GUEST_USO4, Offloads::USO4),
                (F_GUEST_USO6, Offloads::USO6),
            ],
        )
    }

    fn of(features: Features, checksum: Features, rest: &[(Features, Offloads)]) -> Offloads {
        if !features.contains(checksum) {
            return Offloads::NONE;
        }
        let agreed = rest.iter().filter(|(feature, _)| features.contains(*feature));
        agreed.fold(Offloads::CHECKSUM, |all, (_, one)| all.with(*one))
    }

    /// These and those.
    #[must_use]
    pub const fn with(self, other: Offloads) -> Offloads {
        Offloads(self.0 | other.0)
    }

    /// Those of them that are among `other`.
    #[must_use]
    pub const fn only(self, other: Offloads) -> Offloads {
        Offloads(self.0 & other.0)
    }

    /// True if all of `other` are among them.
    #[inline]
    pub const fn contains(self, other: Offloads) -> bool {
        self.0 & other.0 == other.0
    }

    /// True for none.
    #[inline]
    pub const fn is_empty(self) -> bool {
        self.0 == 0
    }
}

/// What is cut up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// TCP over IPv4.
    Tcp4,
    /// TCP over IPv6.
    Tcp6,
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6.
    Udp6,
}

/// What is left to be done to a frame: a claim that was found to fit it. All numbers in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offload {
    /// Nothing.
    None,
    /// The checksum of all from `start` on, to be put at `start + offset`, where that of the pseudo header is now.
    Checksum {
        /// Where the transport header begins in the frame.
        start: u16,
        /// Where in that header the checksum stands.
        offset: u16,
    },
    /// To be cut up into frames of at most `mss` bytes of payload, each with a checksum of its own.
    Segment {
        /// What it is.
        kind: Kind,
        /// TCP with CWR set: only the first of the frames keeps it.
        ecn: bool,
        /// Payload of each but the last. Not 0.
        mss: u16,
        /// All headers, from the first byte of the frame on.
        header: u16,
        /// Where the transport header begins.
        start: u16,
    },
}

/// A claim that does not fit its frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadOffload {
    /// The checksum would stand outside the frame, or in its Ethernet header.
    #[error("checksum outside the frame")]
    Checksum,
    /// A kind of segmentation that does not exist or was not negotiated.
    #[error("kind of segmentation that was not negotiated")]
    Kind,
    /// Segments without payload.
    #[error("segments without payload")]
    Size,
    /// The frame's own headers are not those of the kind that is claimed, or contradict themselves.
    #[error("headers that do not fit the claim")]
    Headers,
}

impl NetHeader {
    /// Reads it as it stands before a frame.
    #[inline]
    pub fn from_bytes(bytes: &[u8; 12]) -> NetHeader {
        let [flags, gso_type, a, b, c, d, e, f, g, h, _, _] = *bytes;
        NetHeader {
            flags,
            gso_type,
            hdr_len: u16::from_le_bytes([a, b]),
            gso_size: u16::from_le_bytes([c, d]),
            csum_start: u16::from_le_bytes([e, f]),
            csum_offset: u16::from_le_bytes([g, h]),
        }
    }

    /// As it stands before a frame; the number of buffers is 0, for whoever knows it to fill in.
    #[inline]
    pub fn to_bytes(self) -> [u8; 12] {
        let [a, b] = self.hdr_len.to_le_bytes();
        let [c, d] = self.gso_size.to_le_bytes();
        let [e, f] = self.csum_start.to_le_bytes();
        let [g, h] = self.csum_offset.to_le_bytes();
        [self.flags, self.gso_type, a, b, c, d, e, f, g, h, 0, 0]
    }

    /// The same as a number of the first eight bytes and one of the next two.
    #[inline]
    pub fn to_words(self) -> (u64, u16) {
        let low = u64::from(self.flags)
            | u64::from(self.gso_type) << 8
            | u64::from(self.hdr_len) << 16
            | u64::from(self.gso_size) << 32
            | u64::from(self.csum_start) << 48;
        (low, self.csum_offset)
    }

    /// Nothing is to be done, and its transport's checksum was found right by hardware, or was not looked at.
    pub fn of_received(is_verified: bool) -> NetHeader {
        NetHeader { flags: if is_verified { DATA_VALID } else { 0 }, ..NetHeader::default() }
    }

    /// Nothing is asked for. A claim of a verified checksum is none that anybody asks to be believed.
    #[inline]
    pub fn is_plain(self) -> bool {
        self.flags & NEEDS_CSUM == 0 && self.gso_type == GSO_NONE
    }

    /// [`check`] looks at the frame's headers.
    #[inline]
    pub fn needs_head(self) -> bool {
        self.gso_type != GSO_NONE
    }
}

/// Checks what a sender asks for. `may` is what was negotiated with it, `len` the frame's length, `head` a private copy of
/// its first `len` or [`HEAD_BYTES`] bytes, whichever is less; it may be empty unless [`NetHeader::needs_head`].
///
/// # Errors
/// The claim does not fit the frame: it is not to be passed on.
pub fn check(claim: NetHeader, may: Offloads, len: u32, head: &[u8]) -> Result<Offload, BadOffload> {
    if claim.gso_type != GSO_NONE {
        return check_segment(claim, may, len, head);
    }
    if claim.flags & NEEDS_CSUM == 0 || !may.contains(Offloads::CHECKSUM) {
        return Ok(Offload::None);
    }
    let (start, offset) = (claim.csum_start, claim.csum_offset);
    // virtio 1.3 §5.1.6.2: the checksum is put at csum_start + csum_offset. It has two bytes, and what it covers begins
    // behind the Ethernet header.
    let end = u32::from(start) + u32::from(offset) + 2;
    if u32::from(start) < ETHERNET_HEADER || end > len {
        return Err(BadOffload::Checksum);
    }
    Ok(Offload::Checksum { start, offset })
}

/// Checks a frame that is to be cut up. Not inlined: such frames are large, and few.
#[inline(never)]
fn check_segment(claim: NetHeader, may: Offloads, len: u32, head: &[u8]) -> Result<Offload, BadOffload> {
    let ecn = claim.gso_type & GSO_ECN != 0;
    let packet = Packet::parse(head, len).ok_or(BadOffload::Headers)?;
    let kind = match (claim.gso_type & !GSO_ECN, packet.transport, packet.is_v6) {
        (GSO_TCPV4, Transport::Tcp, false) => Kind::Tcp4,
        (GSO_TCPV6, Transport::Tcp, true) => Kind::Tcp6,
        (GSO_UDP_L4, Transport::Udp, false) if !ecn => Kind::Udp4,
        (GSO_UDP_L4, Transport::Udp, true) if !ecn => Kind::Udp6,
        (GSO_TCPV4 | GSO_TCPV6 | GSO_UDP_L4, ..) => return Err(BadOffload::Headers),
        _ => return Err(BadOffload::Kind),
    };
    // Without CWR in the header, what ECN asks for is what happens anyway.
    let ecn = ecn && packet.has_cwr;
    let offload = Offload::Segment {
        kind,
        ecn,
        mss: claim.gso_size,
        header: packet.header,
        start: packet.transport_at,
    };
    if !may.contains(offload.needs()) {
        return Err(BadOffload::Kind);
    }
    if claim.gso_size == 0 {
        return Err(BadOffload::Size);
    }
    // virtio 1.3 §5.1.6.2: a driver that asks for segmentation sets NEEDS_CSUM too, for the transport's checksum.
    if claim.flags & NEEDS_CSUM == 0
        || claim.csum_start != packet.transport_at
        || claim.csum_offset != kind.checksum_offset()
    {
        return Err(BadOffload::Checksum);
    }
    let payload = len - u32::from(packet.header);
    if payload <= u32::from(claim.gso_size) {
        // One segment: the frame as it is.
        return Ok(Offload::Checksum { start: packet.transport_at, offset: kind.checksum_offset() });
    }
    if payload.div_ceil(u32::from(claim.gso_size)) > MOST_SEGMENTS {
        return Err(BadOffload::Size);
    }
    Ok(offload)
}

impl Kind {
    /// Where in the transport header the checksum stands.
    fn checksum_offset(self) -> u16 {
        match self {
            Kind::Tcp4 | Kind::Tcp6 => 16,
            Kind::Udp4 | Kind::Udp6 => 6,
        }
    }
}

impl Offload {
    /// What its receiver must have agreed to, to be given it as it is.
    #[inline]
    pub fn needs(self) -> Offloads {
        match self {
            Offload::None => Offloads::NONE,
            Offload::Checksum { .. } => Offloads::CHECKSUM,
            Offload::Segment { kind, ecn, .. } => {
                let kind = match kind {
                    Kind::Tcp4 => Offloads::TSO4,
                    Kind::Tcp6 => Offloads::TSO6,
                    Kind::Udp4 => Offloads::USO4,
                    Kind::Udp6 => Offloads::USO6,
                };
                let with_ecn = if ecn { Offloads::ECN } else { Offloads::NONE };
                Offloads::CHECKSUM.with(kind).with(with_ecn)
            }
        }
    }

    /// What its receiver is told.
    #[inline]
    pub fn to_header(self) -> NetHeader {
        match self {
            Offload::None => NetHeader::default(),
            Offload::Checksum { start, offset } => NetHeader {
                flags: NEEDS_CSUM,
                csum_start: start,
                csum_offset: offset,
                ..NetHeader::default()
            },
            Offload::Segment { kind, ecn, mss, header, start } => {
                let gso_type = match kind {
                    Kind::Tcp4 => GSO_TCPV4,
                    Kind::Tcp6 => GSO_TCPV6,
                    Kind::Udp4 | Kind::Udp6 => GSO_UDP_L4,
                };
                NetHeader {
                    flags: NEEDS_CSUM,
                    gso_type: gso_type | if ecn { GSO_ECN } else { 0 },
                    hdr_len: header,
                    gso_size: mss,
                    csum_start: start,
                    csum_offset: kind.checksum_offset(),
                }
            }
        }
    }

    /// The same for a frame before which so many bytes more stand, or less, in front of what it is of.
    #[inline]
    #[must_use]
    pub fn moved(self, by: i16) -> Offload {
        let moved = |at: u16| at.saturating_add_signed(by);
        match self {
            Offload::None => Offload::None,
            Offload::Checksum { start, offset } => Offload::Checksum { start: moved(start), offset },
            Offload::Segment { kind, ecn, mss, header, start } => {
                Offload::Segment { kind, ecn, mss, header: moved(header), start: moved(start) }
            }
        }
    }

    /// The longest frame that it comes to on the wire, for a frame of `len` bytes.
    #[inline]
    pub fn longest_frame(self, len: u32) -> u32 {
        match self {
            Offload::None | Offload::Checksum { .. } => len,
            Offload::Segment { mss, header, .. } => len.min(u32::from(header) + u32::from(mss)),
        }
    }
}

/// Frames that one is cut up into at most: 64 KiB in segments of 88 bytes, the least that TCP's minimum of 536 and a
/// tolerant receiver leave room for many times over. It bounds what one frame of a hostile sender can cost.
const MOST_SEGMENTS: u32 = 768;

/// `VIRTIO_NET_HDR_F_NEEDS_CSUM`.
const NEEDS_CSUM: u8 = 1;
/// `VIRTIO_NET_HDR_F_DATA_VALID`.
const DATA_VALID: u8 = 2;
/// `VIRTIO_NET_HDR_GSO_NONE`.
const GSO_NONE: u8 = 0;
/// `VIRTIO_NET_HDR_GSO_TCPV4`.
const GSO_TCPV4: u8 = 1;
/// `VIRTIO_NET_HDR_GSO_TCPV6`.
const GSO_TCPV6: u8 = 4;
/// `VIRTIO_NET_HDR_GSO_UDP_L4`.
const GSO_UDP_L4: u8 = 5;
/// `VIRTIO_NET_HDR_GSO_ECN`.
const GSO_ECN: u8 = 0x80;
