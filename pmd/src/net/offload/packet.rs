//! The headers of a frame that is to be cut up: Ethernet, at most two VLAN tags, IPv4 or IPv6, TCP or UDP.
//!
//! Reads a private copy of the frame's beginning. Every bound is checked; what is not understood is nothing.

/// Which transport.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Transport {
    Tcp,
    Udp,
}

/// Where things are in a frame. All offsets from its first byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Packet {
    pub(super) is_v6: bool,
    pub(super) transport: Transport,
    /// The IP header.
    pub(super) network_at: u16,
    /// The TCP or UDP header.
    pub(super) transport_at: u16,
    /// Bytes of all headers.
    pub(super) header: u16,
    /// TCP with CWR set.
    pub(super) has_cwr: bool,
}

impl Packet {
    /// Reads the headers of a frame of `len` bytes that begins with `head`. None: not TCP or UDP over IP, a fragment, with
    /// options beyond `head`, or with lengths that are not the frame's.
    pub(super) fn parse(head: &[u8], len: u32) -> Option<Packet> {
        let mut at = 12;
        let mut ether_type = u16_at(head, at)?;
        for _ in 0..2 {
            if !matches!(ether_type, VLAN | SERVICE_VLAN) {
                break;
            }
            at += 4;
            ether_type = u16_at(head, at)?;
        }
        let network_at = at + 2;
        let (is_v6, protocol, transport_at) = match ether_type {
            IPV4 => {
                let first = *head.get(network_at)?;
                let words = usize::from(first & 15);
                let total = u32::from(u16_at(head, network_at + 2)?);
                // More fragments, or an offset: a fragment.
                let is_fragment = u16_at(head, network_at + 6)? & 0x3fff != 0;
                if first >> 4 != 4
                    || words < 5
                    || is_fragment
                    || total != len.checked_sub(network_at as u32)?
                {
                    return None;
                }
                (false, *head.get(network_at + 9)?, network_at + words * 4)
            }
            IPV6 => {
                let payload = u32::from(u16_at(head, network_at + 4)?);
                if head.get(network_at)? >> 4 != 6 || payload != len.checked_sub(network_at as u32 + 40)? {
                    return None;
                }
                let mut next = *head.get(network_at + 6)?;
                let mut at = network_at + 40;
                // Hop-by-hop, routing and destination options; a fragment header is not looked behind.
                for _ in 0..4 {
                    if !matches!(next, 0 | 43 | 60) {
                        break;
                    }
                    next = *head.get(at)?;
                    at += (usize::from(*head.get(at + 1)?) + 1) * 8;
                }
                (true, next, at)
            }
            _ => return None,
        };
        let (transport, header, has_cwr) = match protocol {
            TCP => {
                let words = usize::from(*head.get(transport_at + 12)? >> 4);
                if words < 5 {
                    return None;
                }
                let flags = *head.get(transport_at + 13)?;
                // SYN and RST go with what is not a stream of data.
                if flags & 0x06 != 0 {
                    return None;
                }
                (Transport::Tcp, transport_at + words * 4, flags & 0x80 != 0)
            }
            UDP => {
                let datagram = u32::from(u16_at(head, transport_at + 4)?);
                if datagram != len.checked_sub(transport_at as u32)? {
                    return None;
                }
                (Transport::Udp, transport_at + 8, false)
            }
            _ => return None,
        };
        // All headers are in `head`, and there is something behind them.
        if header > head.len() || header as u32 >= len {
            return None;
        }
        let small = |at: usize| u16::try_from(at).ok();
        Some(Packet {
            is_v6,
            transport,
            network_at: small(network_at)?,
            transport_at: small(transport_at)?,
            header: small(header)?,
            has_cwr,
        })
    }
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const TCP: u8 = 6;
const UDP: u8 = 17;
