//! Cutting a large TCP or UDP frame up into those that its receiver takes.

use std::ops::Range;

use super::checksum::Sum;
use super::packet::{Packet, u16_at};
use super::{HEAD_BYTES, Kind, Offload};

/// How far the checksums of the segments are brought.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// Complete.
    Full,
    /// The pseudo header's sum, for a receiver that completes them itself.
    Partial,
}

/// One segment: headers of our own, and a part of the frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    /// Bytes of headers.
    pub head_len: usize,
    /// Which part of the frame follows them.
    pub payload: Range<usize>,
    /// What is left to be done to it.
    pub offload: Offload,
}

/// The segments of one frame, one after the other.
#[derive(Debug)]
pub struct Segments<'a> {
    frame: &'a [u8],
    packet: Option<Packet>,
    kind: Kind,
    mss: usize,
    finish: Finish,
    /// Where the next one's payload begins.
    at: usize,
    /// How many there were.
    count: u16,
}

impl<'a> Segments<'a> {
    /// `frame` is a private copy of the whole frame, and `offload` what [`super::check`] made of its sender's claim. The
    /// copy may be another one than was checked: if its headers are not what they were, there are no segments. None but
    /// a `Segment` has any.
    pub fn new(frame: &'a [u8], offload: Offload, finish: Finish) -> Segments<'a> {
        let (kind, mss, header) = match offload {
            Offload::Segment { kind, mss, header, .. } => (kind, usize::from(mss).max(1), header),
            _ => (Kind::Tcp4, 1, 0),
        };
        let head = frame.get(..HEAD_BYTES.min(frame.len())).unwrap_or_default();
        let packet = Packet::parse(head, u32::try_from(frame.len()).unwrap_or(u32::MAX))
            .filter(|packet| packet.header == header && header > 0);
        Segments { frame, packet, kind, mss, finish, at: header.into(), count: 0 }
    }

    /// Writes the headers of the next segment into `head`. None: there are no more.
    pub fn next(&mut self, head: &mut [u8; HEAD_BYTES]) -> Option<Piece> {
        let packet = self.packet?;
        let len = self.frame.len();
        if self.at >= len {
            return None;
        }
        let payload = self.at..len.min(self.at + self.mss);
        let (header, network, transport) =
            (usize::from(packet.header), usize::from(packet.network_at), usize::from(packet.transport_at));
        let bytes = head.get_mut(..header)?;
        bytes.copy_from_slice(self.frame.get(..header)?);

        let is_first = self.count == 0;
        let is_last = payload.end == len;
        let size = header + payload.len();
        if packet.is_v6 {
            put_u16(bytes, network + 4, (size - network - 40) as u16)?;
        } else {
            put_u16(bytes, network + 2, (size - network) as u16)?;
            let id = u16_at(bytes, network + 4)?.wrapping_add(self.count);
            put_u16(bytes, network + 4, id)?;
            put_u16(bytes, network + 10, 0)?;
            let sum = Sum::default().add(bytes.get(network..transport)?);
            put_u16(bytes, network + 10, sum.checksum())?;
        }
        match self.kind {
            Kind::Tcp4 | Kind::Tcp6 => {
                let sequence = bytes.get_mut(transport + 4..transport + 8)?;
                let mut first = [0; 4];
                first.copy_from_slice(sequence);
                let offset = (payload.start - header) as u32;
                sequence.copy_from_slice(&u32::from_be_bytes(first).wrapping_add(offset).to_be_bytes());
                let flags = bytes.get_mut(transport + 13)?;
                if !is_first {
                    *flags &= !CWR;
                }
                if !is_last {
                    *flags &= !(FIN | PSH);
                }
            }
            Kind::Udp4 | Kind::Udp6 => put_u16(bytes, transport + 4, (size - transport) as u16)?,
        }

        let offset = self.kind.checksum_offset();
        let at = transport + usize::from(offset);
        let pseudo = pseudo_header(bytes, &packet, self.kind, (size - transport) as u32)?;
        let offload = match self.finish {
            Finish::Partial => {
                put_u16(bytes, at, pseudo.folded())?;
                Offload::Checksum { start: packet.transport_at, offset }
            }
            Finish::Full => {
                put_u16(bytes, at, 0)?;
                // TCP headers have whole words, so the payload begins at an even place.
                let sum = pseudo.add(bytes.get(transport..)?).add(self.frame.get(payload.clone())?);
                // RFC 768: 0 would be no checksum.
                put_u16(bytes, at, Some(sum.checksum()).filter(|sum| *sum != 0).unwrap_or(0xffff))?;
                Offload::None
            }
        };
        self.at = payload.end;
        self.count += 1;
        Some(Piece { head_len: header, payload, offload })
    }
}

/// The sum of the pseudo header (RFC 9293 §3.1, RFC 8200 §8.1) for a segment of `len` bytes from the transport header on.
pub(super) fn pseudo_header(bytes: &[u8], packet: &Packet, kind: Kind, len: u32) -> Option<Sum> {
    let (source_at, bytes_of_one) = if packet.is_v6 { (8, 16) } else { (12, 4) };
    let source = usize::from(packet.network_at) + source_at;
    let destination = usize::from(packet.destination_at);
    let protocol = match kind {
        Kind::Tcp4 | Kind::Tcp6 => 6,
        Kind::Udp4 | Kind::Udp6 => 17,
    };
    let source = bytes.get(source..source + bytes_of_one)?;
    let destination = bytes.get(destination..destination + bytes_of_one)?;
    Some(Sum::default().add(source).add(destination).add_u32(protocol).add_u32(len))
}

pub(super) fn put_u16(bytes: &mut [u8], at: usize, number: u16) -> Option<()> {
    bytes.get_mut(at..at + 2)?.copy_from_slice(&number.to_be_bytes());
    Some(())
}

const FIN: u8 = 0x01;
const PSH: u8 = 0x08;
const CWR: u8 = 0x80;
