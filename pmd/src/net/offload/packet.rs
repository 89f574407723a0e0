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
    /// The address of the final destination, which the transport's checksum covers (RFC 8200 §8.1): that of the IP
    /// header, or the last one of a routing header that has segments left.
    pub(super) destination_at: u16,
}

impl Packet {
    /// Reads the headers of a frame of `len` bytes that begins with `head`. None: not TCP or UDP over IP, a fragment, with
    /// options beyond `head`, with lengths that are not the frame's, or with options or extension headers that change
    /// which addresses the transport's checksum covers and are not known here: a source route of IPv4, a routing header
    /// of an unknown type with segments left, a home address.
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
        let (is_v6, protocol, transport_at, destination_at) = match ether_type {
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
                let transport_at = network_at + words * 4;
                if has_source_route(head.get(network_at + 20..transport_at)?) {
                    return None;
                }
                (false, *head.get(network_at + 9)?, transport_at, network_at + 16)
            }
            IPV6 => {
                let payload = u32::from(u16_at(head, network_at + 4)?);
                if head.get(network_at)? >> 4 != 6 || payload != len.checked_sub(network_at as u32 + 40)? {
                    return None;
                }
                let mut next = *head.get(network_at + 6)?;
                let mut at = network_at + 40;
                let mut destination_at = network_at + 24;
                // A fragment header is not looked behind.
                for _ in 0..4 {
                    if !matches!(next, HOP_BY_HOP | ROUTING | DESTINATION_OPTIONS) {
                        break;
                    }
                    let end = at + (usize::from(*head.get(at + 1)?) + 1) * 8;
                    let header = head.get(at..end)?;
                    match next {
                        ROUTING => {
                            if let Some(last) = last_of_route(header)? {
                                // A second one that is not used up either: nobody says which goes first.
                                if destination_at != network_at + 24 {
                                    return None;
                                }
                                destination_at = at + last;
                            }
                        }
                        DESTINATION_OPTIONS if has_home_address(header)? => return None,
                        _ => {}
                    }
                    next = *header.first()?;
                    at = end;
                }
                (true, next, at, destination_at)
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
            destination_at: small(destination_at)?,
        })
    }
}

/// Where the transport header of a frame is whose headers say so plainly: TCP or UDP right behind IPv4, or IPv6 without extension
/// headers; no fragment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layers {
    pub(super) is_v6: bool,
    pub(super) transport: Transport,
    pub(super) network_at: u16,
    pub(super) transport_at: u16,
}

impl Layers {
    /// Reads the headers of a frame that begins with `head`.
    pub(super) fn parse(head: &[u8]) -> Option<Layers> {
        let mut at = 12;
        for _ in 0..2 {
            if !matches!(u16_at(head, at)?, VLAN | SERVICE_VLAN) {
                break;
            }
            at += 4;
        }
        let network_at = at + 2;
        let first = *head.get(network_at)?;
        let (is_v6, protocol, bytes) = match (u16_at(head, at)?, first >> 4) {
            (IPV4, 4) if first & 15 >= 5 && u16_at(head, network_at + 6)? & 0x3fff == 0 => {
                (false, *head.get(network_at + 9)?, usize::from(first & 15) * 4)
            }
            (IPV6, 6) => (true, *head.get(network_at + 6)?, 40),
            _ => return None,
        };
        let transport = match protocol {
            TCP => Transport::Tcp,
            UDP => Transport::Udp,
            _ => return None,
        };
        let (network_at, transport_at) = (network_at as u16, (network_at + bytes) as u16);
        Some(Layers { is_v6, transport, network_at, transport_at })
    }
}

/// Where in a routing header (RFC 8200 §4.4) the last address of its route is; Some(None) if the route is used up, so that
/// it stands in the IPv6 header. None: not known here, or it contradicts itself.
fn last_of_route(header: &[u8]) -> Option<Option<usize>> {
    let (kind, segments_left) = (*header.get(2)?, *header.get(3)?);
    if segments_left == 0 {
        return Some(None);
    }
    let addresses = header.len().checked_sub(8)? / 16;
    let last = match kind {
        // RFC 2460 §4.4, deprecated, and RFC 6275 §6.4 with one address: in the order of the way.
        0 | 2 if header.len() == 8 + 16 * addresses && usize::from(segments_left) <= addresses => {
            addresses - 1
        }
        // RFC 8754 §2: in reverse, with options behind them. A reduced list leaves the first segment out.
        4 => {
            let listed = usize::from(*header.get(4)?) + 1;
            if listed > addresses || usize::from(segments_left) > listed {
                return None;
            }
            0
        }
        _ => return None,
    };
    Some(Some(8 + 16 * last))
}

/// Whether destination options carry a home address (RFC 6275 §6.3), which stands for the source. None: they contradict
/// themselves.
fn has_home_address(header: &[u8]) -> Option<bool> {
    let mut options = header.get(2..)?;
    while let Some(&kind) = options.first() {
        match kind {
            // One byte of padding.
            0 => options = options.get(1..)?,
            HOME_ADDRESS => return Some(true),
            _ => options = options.get(2 + usize::from(*options.get(1)?)..)?,
        }
    }
    Some(false)
}

/// Whether options of IPv4 (RFC 791 §3.1) carry a source route, with which the header's destination is not the final one.
/// What contradicts itself is taken for one.
fn has_source_route(mut options: &[u8]) -> bool {
    while let Some(&kind) = options.first() {
        options = match (kind, options.get(1)) {
            // The end, and one byte of padding.
            (0, _) => return false,
            (1, _) => options.get(1..).unwrap_or_default(),
            (LOOSE_ROUTE | STRICT_ROUTE, _) | (_, None | Some(0 | 1)) => return true,
            (_, Some(&len)) => match options.get(usize::from(len)..) {
                Some(rest) => rest,
                None => return true,
            },
        };
    }
    false
}

pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

const VLAN: u16 = 0x8100;
const SERVICE_VLAN: u16 = 0x88a8;
const IPV4: u16 = 0x0800;
const IPV6: u16 = 0x86dd;
const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const DESTINATION_OPTIONS: u8 = 60;
const HOME_ADDRESS: u8 = 201;
const LOOSE_ROUTE: u8 = 131;
const STRICT_ROUTE: u8 = 137;
const TCP: u8 = 6;
const UDP: u8 = 17;
