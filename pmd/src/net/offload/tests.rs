//! Against `etherparse`, which builds packets and reads them back with checksums of its own.

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone, Copy)]
struct Shape {
    is_v6: bool,
    is_udp: bool,
    vlan: bool,
    options: bool,
}

fn shapes() -> impl Strategy<Value = Shape> {
    (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>())
        .prop_map(|(is_v6, is_udp, vlan, options)| Shape { is_v6, is_udp, vlan, options })
}

/// A frame whose checksum is that of the pseudo header, as a driver leaves it, and its claim.
fn large(shape: Shape, payload: &[u8], mss: u16, cwr: bool) -> (Vec<u8>, NetHeader) {
    let mut frame = Vec::new();
    macro_rules! finish {
        ($builder:expr) => {{
            let builder = $builder;
            if shape.is_udp {
                builder.udp(4000, 5000).write(&mut frame, payload).unwrap();
            } else {
                let mut tcp = etherparse::TcpHeader::new(4000, 5000, 0xffff_ff00, 1000);
                (tcp.ack, tcp.psh, tcp.fin, tcp.cwr) = (true, true, true, cwr);
                if shape.options {
                    tcp.set_options(&[etherparse::TcpOptionElement::Timestamp(1, 2)]).unwrap();
                }
                builder.tcp_header(tcp).write(&mut frame, payload).unwrap();
            }
        }};
    }
    macro_rules! network {
        ($builder:expr) => {
            if shape.is_v6 {
                finish!($builder.ipv6([1; 16], [2; 16], 64))
            } else {
                finish!($builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64))
            }
        };
    }
    let ethernet = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
    if shape.vlan {
        network!(ethernet.single_vlan(etherparse::VlanId::try_new(7).unwrap()))
    } else {
        network!(ethernet)
    }
    let claim = leave_to_device(&mut frame, shape, mss, cwr);
    (frame, claim)
}

/// Leaves a whole frame's checksum to the device, as a driver does: that of the pseudo header alone stays; and the claim.
fn leave_to_device(frame: &mut [u8], shape: Shape, mss: u16, cwr: bool) -> NetHeader {
    let head = &frame[..frame.len().min(HEAD_BYTES)];
    let packet = Packet::parse(head, frame.len() as u32).unwrap();
    let kind = match (shape.is_udp, shape.is_v6) {
        (false, false) => Kind::Tcp4,
        (false, true) => Kind::Tcp6,
        (true, false) => Kind::Udp4,
        (true, true) => Kind::Udp6,
    };
    let start = usize::from(packet.transport_at);
    let at = start + usize::from(kind.checksum_offset());
    // The pseudo header's sum: what is missing between the whole checksum and that of the segment alone.
    let whole = u16::from_be_bytes([frame[at], frame[at + 1]]);
    frame[at..at + 2].fill(0);
    let segment = Sum16::of(&frame[start..]);
    let pseudo = Sum16::minus(!whole, segment);
    frame[at..at + 2].copy_from_slice(&pseudo.to_be_bytes());
    let offload = Offload::Segment {
        kind,
        ecn: cwr && !shape.is_udp,
        mss,
        header: packet.header,
        start: packet.transport_at,
    };
    offload.to_header()
}

/// Ones' complement arithmetic, one word at a time: slow and plain.
struct Sum16;

impl Sum16 {
    fn of(bytes: &[u8]) -> u16 {
        let words =
            bytes.chunks(2).map(|pair| u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
        words.fold(0, Sum16::plus)
    }
    fn plus(a: u16, b: u16) -> u16 {
        let (sum, carry) = a.overflowing_add(b);
        sum + u16::from(carry)
    }
    fn minus(a: u16, b: u16) -> u16 {
        Sum16::plus(a, !b)
    }
}

/// Reads a frame strictly; its payload, after every checksum was found right.
fn verified(frame: &[u8]) -> (Vec<u8>, Option<etherparse::TcpHeader>) {
    let packet = SlicedPacket::from_ethernet(frame).unwrap();
    match packet.net.clone().unwrap() {
        etherparse::NetSlice::Ipv4(ip) => {
            let header = ip.header().to_header();
            assert_eq!(header.header_checksum, header.calc_header_checksum());
            check_transport(
                &packet,
                |tcp, payload| tcp.calc_checksum_ipv4(&header, payload).unwrap(),
                |udp, payload| udp.calc_checksum_ipv4(&header, payload).unwrap(),
            )
        }
        etherparse::NetSlice::Ipv6(ip) => {
            let header = ip.header().to_header();
            check_transport(
                &packet,
                |tcp, payload| tcp.calc_checksum_ipv6(&header, payload).unwrap(),
                |udp, payload| udp.calc_checksum_ipv6(&header, payload).unwrap(),
            )
        }
        other => panic!("{other:?}"),
    }
}

fn check_transport(
    packet: &SlicedPacket<'_>,
    tcp_sum: impl Fn(&etherparse::TcpHeader, &[u8]) -> u16,
    udp_sum: impl Fn(&etherparse::UdpHeader, &[u8]) -> u16,
) -> (Vec<u8>, Option<etherparse::TcpHeader>) {
    match packet.transport.clone().unwrap() {
        TransportSlice::Tcp(tcp) => {
            let header = tcp.to_header();
            let expected = tcp_sum(&header, tcp.payload());
            // 0 and 0xffff are the same number.
            assert!(header.checksum == expected || (header.checksum, expected) == (0xffff, 0), "TCP");
            (tcp.payload().to_vec(), Some(header))
        }
        TransportSlice::Udp(udp) => {
            let header = udp.to_header();
            assert_eq!(usize::from(header.length), udp.payload().len() + 8);
            assert_eq!(header.checksum, udp_sum(&header, udp.payload()), "UDP");
            (udp.payload().to_vec(), None)
        }
        other => panic!("{other:?}"),
    }
}

fn head(frame: &[u8]) -> &[u8] {
    &frame[..frame.len().min(HEAD_BYTES)]
}

/// Options of IPv4 that do not change where the packet goes: at most 40 bytes, padded to whole words.
fn ipv4_options() -> impl Strategy<Value = Vec<u8>> {
    // Record route, timestamp, security, stream, router alert, and one that nobody knows.
    let kinds = prop_oneof![Just(7u8), Just(68), Just(130), Just(136), Just(148), Just(222)];
    let option = prop_oneof![
        Just(vec![1]),
        (kinds, prop::collection::vec(any::<u8>(), 0..12))
            .prop_map(|(kind, body)| { [&[kind, body.len() as u8 + 2][..], &body].concat() }),
    ];
    prop::collection::vec(option, 0..6).prop_map(|options| {
        let mut all = Vec::new();
        for option in options {
            if all.len() + option.len() <= 40 {
                all.extend(option);
            }
        }
        all.resize(all.len().next_multiple_of(4), 0);
        all
    })
}

proptest! {
    /// Behind no, one or two VLAN tags and whatever options of IPv4: tags and options are those of the frame, lengths and
    /// checksums right (`etherparse` computes them anew), and no two segments have one identification, so that fragments
    /// of one are not taken for the other's (RFC 791 §3.2; RFC 6864 §4.1 asks for nothing where DF is set).
    #[test]
    fn segments_of_ipv4_keep_tags_and_options_and_have_identifications_of_their_own(
        options in ipv4_options(),
        tags in prop::collection::vec((prop_oneof![Just(0x8100u16), Just(0x88a8)], any::<u16>()), 0..=2),
        first in prop_oneof![any::<u16>(), Just(0xffff), Just(0xfffe)],
        dont_fragment in any::<bool>(),
        ecn in 0..4u8,
        is_udp in any::<bool>(),
        payload in prop::collection::vec(any::<u8>(), 1000..6000),
        mss in 60u16..999,
    ) {
        let protocol = if is_udp { etherparse::IpNumber::UDP } else { etherparse::IpNumber::TCP };
        let mut header = etherparse::Ipv4Header::new(0, 64, protocol, [10, 0, 0, 1], [10, 0, 0, 2]).unwrap();
        header.options = etherparse::Ipv4Options::try_from(&options[..]).unwrap();
        (header.identification, header.dont_fragment) = (first, dont_fragment);
        header.ecn = etherparse::IpEcn::try_new(ecn).unwrap();
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ip(etherparse::IpHeaders::Ipv4(header, Default::default()));
        let mut frame = Vec::new();
        if is_udp {
            builder.udp(4000, 5000).write(&mut frame, &payload).unwrap();
        } else {
            builder.tcp(4000, 5000, 7, 1000).write(&mut frame, &payload).unwrap();
        }
        let tagged: Vec<u8> =
            tags.iter().flat_map(|(kind, tag)| [kind.to_be_bytes(), tag.to_be_bytes()].concat()).collect();
        frame.splice(12..12, tagged.iter().copied());
        let shape = Shape { is_v6: false, is_udp, vlan: false, options: false };
        let claim = leave_to_device(&mut frame, shape, mss, false);
        let offload = check(claim, Offloads::ALL, frame.len() as u32, head(&frame)).unwrap();
        let network = 14 + tagged.len();
        let (mut bytes, mut all, mut known) = ([0; HEAD_BYTES], Vec::new(), std::collections::BTreeSet::new());
        let mut segments = Segments::new(&frame, offload, Finish::Full);
        let mut expected = first;
        while let Some(piece) = segments.next(&mut bytes) {
            let mut out = bytes[..piece.head_len].to_vec();
            out.extend_from_slice(&frame[piece.payload.clone()]);
            prop_assert_eq!(&out[..network + 2], &frame[..network + 2]);
            prop_assert_eq!(&out[network + 6..network + 10], &frame[network + 6..network + 10]);
            prop_assert_eq!(&out[network + 12..network + 20 + options.len()], &frame[network + 12..network + 20 + options.len()]);
            // As on a wire without tags, so that whatever their kinds are the rest is looked at.
            out.drain(12..12 + tagged.len());
            all.extend(verified(&out).0);
            let packet = SlicedPacket::from_ethernet(&out).unwrap();
            let Some(etherparse::NetSlice::Ipv4(ip)) = packet.net else { panic!() };
            let ip = ip.header().to_header();
            prop_assert_eq!(usize::from(ip.total_len), out.len() - 14);
            prop_assert_eq!((ip.dont_fragment, ip.more_fragments), (dont_fragment, false));
            prop_assert_eq!(ip.identification, expected);
            prop_assert!(known.insert(ip.identification));
            expected = expected.wrapping_add(1);
        }
        prop_assert_eq!(all, payload);
    }

    #[test]
    fn segments_carry_the_payload_with_right_checksums(
        shape in shapes(),
        payload in prop::collection::vec(any::<u8>(), 200..9000),
        mss in 100u16..3000,
        cwr in any::<bool>(),
        partial in any::<bool>(),
    ) {
        let (frame, claim) = large(shape, &payload, mss, cwr);
        let offload = check(claim, Offloads::ALL, frame.len() as u32, head(&frame)).unwrap();
        if payload.len() <= usize::from(mss) {
            let is_checksum = matches!(offload, Offload::Checksum { .. });
            prop_assert!(is_checksum, "{:?}", offload);
            return Ok(());
        }
        let is_same = matches!(offload, Offload::Segment { mss: found, .. } if found == mss);
        prop_assert!(is_same, "{:?}", offload);
        prop_assert_eq!(check(offload.to_header(), Offloads::ALL, frame.len() as u32, head(&frame)), Ok(offload));
        let finish = if partial { Finish::Partial } else { Finish::Full };
        let mut segments = Segments::new(&frame, offload, finish);
        let mut bytes = [0; HEAD_BYTES];
        let mut all = Vec::new();
        let mut sequence = 0xffff_ff00u32;
        let mut count = 0;
        while let Some(piece) = segments.next(&mut bytes) {
            let mut out = bytes[..piece.head_len].to_vec();
            out.extend_from_slice(&frame[piece.payload.clone()]);
            prop_assert!(out.len() as u32 <= offload.longest_frame(frame.len() as u32));
            match piece.offload {
                Offload::Checksum { start, offset } if partial => complete_checksum(&mut out, start, offset),
                Offload::None if !partial => {}
                other => panic!("{other:?}"),
            }
            let (part, tcp) = verified(&out);
            if let Some(tcp) = tcp {
                prop_assert_eq!(tcp.sequence_number, sequence);
                sequence = sequence.wrapping_add(part.len() as u32);
                let is_last = piece.payload.end == frame.len();
                prop_assert_eq!((tcp.fin, tcp.psh), (is_last, is_last));
                prop_assert_eq!(tcp.cwr, cwr && count == 0);
            }
            all.extend(part);
            count += 1;
        }
        prop_assert_eq!(all, payload);
    }

    #[test]
    fn partial_checksum_completed_is_the_right_one(
        shape in shapes(),
        payload in prop::collection::vec(any::<u8>(), 1..2000),
    ) {
        let (mut frame, claim) = large(shape, &payload, u16::MAX, false);
        let Ok(Offload::Checksum { start, offset }) =
            check(claim, Offloads::ALL, frame.len() as u32, head(&frame)) else { panic!() };
        complete_checksum(&mut frame, start, offset);
        prop_assert_eq!(verified(&frame).0, payload);
    }

    #[test]
    fn header_is_the_same_in_bytes_and_in_words(mut bytes in any::<[u8; 12]>()) {
        bytes[10..].fill(0);
        let header = NetHeader::from_bytes(&bytes);
        let (low, high) = header.to_words();
        prop_assert_eq!(header.to_bytes(), bytes);
        prop_assert_eq!((low.to_le_bytes(), high.to_le_bytes()), (bytes[..8].try_into().unwrap(), [bytes[8], bytes[9]]));
    }

    #[test]
    fn whatever_is_claimed_of_whatever_bytes_stays_inside_the_frame(
        claim in any::<[u8; 12]>(),
        gso_type in prop_oneof![Just(0u8), Just(1), Just(4), Just(5), Just(0x81), any::<u8>()],
        bytes in prop::collection::vec(any::<u8>(), 14..400),
        shape in shapes(),
        forged in any::<bool>(),
        at in any::<prop::sample::Index>(),
    ) {
        // Half of them are good packets of which one byte was changed.
        let mut frame = if forged { large(shape, &bytes, 100, false).0 } else { bytes };
        let place = at.index(frame.len());
        frame[place] ^= claim[11];
        let mut claim = NetHeader::from_bytes(&claim);
        claim.gso_type = gso_type;
        let len = frame.len() as u32;
        if let Ok(offload) = check(claim, Offloads::ALL, len, head(&frame)) {
            match offload {
                Offload::None => {}
                Offload::Checksum { start, offset } => {
                    prop_assert!(start >= 14 && u32::from(start) + u32::from(offset) + 2 <= len);
                }
                Offload::Segment { mss, header, start, .. } => {
                    prop_assert!(mss > 0 && header > start && u32::from(header) < len);
                }
            }
            let mut copy = frame.clone();
            if let Offload::Checksum { start, offset } = offload {
                complete_checksum(&mut copy, start, offset);
            }
            let mut segments = Segments::new(&frame, offload, Finish::Full);
            let mut count = 0;
            while segments.next(&mut [0; HEAD_BYTES]).is_some() {
                count += 1;
            }
            prop_assert!(count <= MOST_SEGMENTS);
        }
    }
}

fn tcp4() -> (Vec<u8>, NetHeader) {
    let shape = Shape { is_v6: false, is_udp: false, vlan: false, options: false };
    large(shape, &[7; 4000], 1400, false)
}

fn verdict(claim: NetHeader, may: Offloads, frame: &[u8]) -> Result<Offload, BadOffload> {
    check(claim, may, frame.len() as u32, head(frame))
}

#[test]
fn checksum_sweep_lets_no_place_outside_the_frame_through() {
    for start in 0..=u16::MAX {
        for offset in [0, 6, 16, 100, 1000, u16::MAX] {
            let claim = NetHeader {
                flags: NEEDS_CSUM,
                csum_start: start,
                csum_offset: offset,
                ..NetHeader::default()
            };
            let is_inside = start >= 14 && usize::from(start) + usize::from(offset) + 2 <= 1000;
            assert_eq!(check(claim, Offloads::CHECKSUM, 1000, &[]).is_ok(), is_inside, "{start} {offset}");
        }
    }
}

#[test]
fn what_was_not_negotiated_is_ignored_or_refused() {
    let (frame, claim) = tcp4();
    assert!(matches!(verdict(claim, Offloads::ALL, &frame), Ok(Offload::Segment { .. })));
    assert_eq!(verdict(claim, Offloads::CHECKSUM, &frame), Err(BadOffload::Kind));
    assert_eq!(verdict(claim, Offloads::CHECKSUM.with(Offloads::TSO6), &frame), Err(BadOffload::Kind));
    let checksum = NetHeader { gso_type: 0, ..claim };
    assert_eq!(verdict(checksum, Offloads::NONE, &frame), Ok(Offload::None));
    // DATA_VALID is nothing that is passed on.
    let valid = NetHeader { flags: 2, ..NetHeader::default() };
    assert!(valid.is_plain());
    assert_eq!(verdict(valid, Offloads::ALL, &frame), Ok(Offload::None));
}

#[test]
fn contradictions_are_refused() {
    let (frame, claim) = tcp4();
    let with = |change: fn(&mut NetHeader)| {
        let mut claim = claim;
        change(&mut claim);
        verdict(claim, Offloads::ALL, &frame)
    };
    assert_eq!(with(|claim| claim.gso_size = 0), Err(BadOffload::Size));
    assert_eq!(with(|claim| claim.gso_size = 1), Err(BadOffload::Size));
    assert_eq!(with(|claim| claim.gso_type = 4), Err(BadOffload::Headers));
    assert_eq!(with(|claim| claim.gso_type = 5), Err(BadOffload::Headers));
    assert_eq!(with(|claim| claim.gso_type = 3), Err(BadOffload::Kind));
    assert_eq!(with(|claim| claim.csum_start += 2), Err(BadOffload::Checksum));
    assert_eq!(with(|claim| claim.flags = 0), Err(BadOffload::Checksum));
    // The header length that is claimed means nothing.
    assert_eq!(with(|claim| claim.hdr_len = 9), verdict(claim, Offloads::ALL, &frame));
    // A fragment; a total length that is not the frame's.
    let mut fragment = frame.clone();
    fragment[20] |= 0x20;
    assert_eq!(verdict(claim, Offloads::ALL, &fragment), Err(BadOffload::Headers));
    let mut short = frame.clone();
    short[17] ^= 1;
    assert_eq!(verdict(claim, Offloads::ALL, &short), Err(BadOffload::Headers));
    assert_eq!(verdict(claim, Offloads::ALL, &frame[..30]), Err(BadOffload::Headers));
}

#[test]
fn segmentation_without_checksums_is_not_agreed_on() {
    assert_eq!(Offloads::sent(F_HOST_TSO4), Offloads::NONE);
    assert_eq!(Offloads::sent(F_CSUM | F_HOST_TSO4), Offloads::CHECKSUM.with(Offloads::TSO4));
    assert_eq!(Offloads::received(F_GUEST_CSUM | F_GUEST_USO6), Offloads::CHECKSUM.with(Offloads::USO6));
    assert_eq!(Offloads::received(F_CSUM), Offloads::NONE);
}

/// An extension header of IPv6, but for its first byte, and whether it takes the final destination away from the header.
#[derive(Debug, Clone)]
enum Extension {
    HopByHop,
    Options,
    /// Type 0, so many addresses of which so many are left, with what was used up before.
    Type0 {
        addresses: u8,
        left: u8,
    },
    Type2 {
        left: u8,
    },
    /// Segment routing: addresses, those left, words of options behind them.
    Segments {
        addresses: u8,
        left: u8,
        options: u8,
    },
}

fn extensions() -> impl Strategy<Value = Vec<Extension>> {
    let route = prop_oneof![
        (1..4u8)
            .prop_flat_map(|addresses| (Just(addresses), 0..=addresses))
            .prop_map(|(addresses, left)| Extension::Type0 { addresses, left }),
        (0..=1u8).prop_map(|left| Extension::Type2 { left }),
        (1..4u8, 0..3u8)
            .prop_flat_map(|(addresses, options)| (Just(addresses), 0..=addresses, Just(options)))
            .prop_map(|(addresses, left, options)| Extension::Segments { addresses, left, options }),
    ];
    (any::<bool>(), prop::option::of(route), any::<bool>()).prop_map(|(hop, route, options)| {
        hop.then_some(Extension::HopByHop)
            .into_iter()
            .chain(route)
            .chain(options.then_some(Extension::Options))
            .collect()
    })
}

const FINAL: [u8; 16] = [0xfd, 0, 0, 9, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];
const NEXT_HOP: [u8; 16] = [0xfd, 0, 0, 2, 0xff, 0xee, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12];

impl Extension {
    fn number(&self) -> u8 {
        match self {
            Extension::HopByHop => 0,
            Extension::Options => 60,
            _ => 43,
        }
    }

    /// The header, and whether the packet has yet to travel to its final destination.
    fn bytes(&self, next: u8) -> (Vec<u8>, bool) {
        let route = |kind: u8, left: u8, last: u8, list: Vec<[u8; 16]>, options: u8| {
            let len = list.len() as u8 * 2 + options;
            let mut bytes = vec![next, len, kind, left, last, 0, 0, 0];
            list.iter().for_each(|address| bytes.extend(address));
            bytes.extend(vec![0; usize::from(options) * 8]);
            (bytes, left > 0)
        };
        // Some address that is neither.
        let other = |n: u8| [n ^ 0x5a; 16];
        match *self {
            // Padding: PadN of four bytes.
            Extension::HopByHop | Extension::Options => (vec![next, 0, 1, 4, 0, 0, 0, 0], false),
            Extension::Type0 { addresses, left } => {
                let mut list: Vec<_> = (0..addresses).map(other).collect();
                if left > 0 {
                    list[usize::from(addresses) - 1] = FINAL;
                }
                route(0, left, 0, list, 0)
            }
            Extension::Type2 { left } => route(2, left, 0, vec![if left > 0 { FINAL } else { other(1) }], 0),
            Extension::Segments { addresses, left, options } => {
                let mut list: Vec<_> = (0..addresses).map(other).collect();
                if left > 0 {
                    list[0] = FINAL;
                }
                route(4, left, addresses - 1, list, options)
            }
        }
    }
}

/// The sum of 16-bit words, folded, as RFC 1071 has it, word by word.
fn naive_sum(parts: &[&[u8]]) -> u16 {
    let mut sum = 0u32;
    for part in parts {
        for pair in part.chunks(2) {
            sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
            sum = (sum & 0xffff) + (sum >> 16);
        }
    }
    sum as u16
}

/// Ethernet, IPv6 with these extension headers, TCP or UDP, payload: with the pseudo header's sum where the checksum
/// goes; and where the transport header begins.
fn extended(extensions: &[Extension], is_udp: bool, payload: &[u8]) -> (Vec<u8>, usize) {
    let protocol = if is_udp { 17u8 } else { 6 };
    let mut chain = Vec::new();
    let mut has_route = false;
    for (at, extension) in extensions.iter().enumerate() {
        let (bytes, is_on_its_way) =
            extension.bytes(extensions.get(at + 1).map_or(protocol, Extension::number));
        chain.extend(bytes);
        has_route |= is_on_its_way;
    }
    let mut transport = if is_udp {
        let len = (8 + payload.len()) as u16;
        [&[0x0f, 0xa0, 0x13, 0x88][..], &len.to_be_bytes(), &[0, 0]].concat()
    } else {
        vec![0x0f, 0xa0, 0x13, 0x88, 0, 0, 1, 0, 0, 0, 2, 0, 0x50, 0x18, 0x20, 0, 0, 0, 0, 0]
    };
    transport.extend(payload);
    let source = [3u8; 16];
    let sum = naive_sum(&[&source, &FINAL, &(transport.len() as u32).to_be_bytes(), &[0, protocol]]);
    let at = if is_udp { 6 } else { 16 };
    transport[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x86, 0xdd, 0x60, 0, 0, 0];
    frame.extend(((chain.len() + transport.len()) as u16).to_be_bytes());
    frame.extend([extensions.first().map_or(protocol, Extension::number), 64]);
    frame.extend(source);
    frame.extend(if has_route { NEXT_HOP } else { FINAL });
    frame.extend(chain);
    let transport_at = frame.len();
    frame.extend(transport);
    (frame, transport_at)
}

proptest! {
    /// Whatever stands between the IPv6 header and the transport: the segments' checksums are over the final destination.
    #[test]
    fn segments_behind_extension_headers_have_the_checksum_of_the_final_destination(
        extensions in extensions(),
        is_udp in any::<bool>(),
        payload in prop::collection::vec(any::<u8>(), 200..4000),
        mss in 100..1500u16,
    ) {
        let (frame, transport_at) = extended(&extensions, is_udp, &payload);
        let (kind, gso, offset) = if is_udp { (Kind::Udp6, 5, 6) } else { (Kind::Tcp6, 4, 16) };
        let claim = NetHeader {
            flags: 1,
            gso_type: gso,
            hdr_len: 0,
            gso_size: mss,
            csum_start: transport_at as u16,
            csum_offset: offset,
        };
        let offload = check(claim, Offloads::ALL, frame.len() as u32, head(&frame)).unwrap();
        if payload.len() <= usize::from(mss) {
            let is_one = matches!(offload, Offload::Checksum { .. });
            prop_assert!(is_one);
            return Ok(());
        }
        let is_cut = matches!(offload, Offload::Segment { kind: k, .. } if k == kind);
        prop_assert!(is_cut);
        for finish in [Finish::Full, Finish::Partial] {
            let mut segments = Segments::new(&frame, offload, finish);
            let (mut bytes, mut got) = ([0; HEAD_BYTES], Vec::<u8>::new());
            while let Some(piece) = segments.next(&mut bytes) {
                let mut segment = bytes[..piece.head_len].to_vec();
                segment.extend(&frame[piece.payload.clone()]);
                if let Offload::Checksum { start, offset } = piece.offload {
                    complete_checksum(&mut segment, start, offset);
                }
                // All headers before the transport but for the length are those of the frame.
                prop_assert_eq!(&segment[..18], &frame[..18]);
                prop_assert_eq!(&segment[20..transport_at], &frame[20..transport_at]);
                let len = (segment.len() - transport_at) as u32;
                let protocol = if is_udp { 17 } else { 6 };
                let sum = naive_sum(&[&[3; 16], &FINAL, &len.to_be_bytes(), &[0, protocol], &segment[transport_at..]]);
                prop_assert_eq!(sum, 0xffff, "{:?}", extensions);
                got.extend(&segment[piece.head_len..]);
            }
            prop_assert_eq!(&got, &payload);
        }
    }
}

#[test]
fn headers_that_hide_which_addresses_the_checksum_covers_are_refused() {
    let payload = [1; 3000];
    let claim = |at: usize| NetHeader {
        flags: 1,
        gso_type: 4,
        hdr_len: 0,
        gso_size: 1000,
        csum_start: at as u16,
        csum_offset: 16,
    };
    let refused = |change: &dyn Fn(&mut [u8])| {
        let route = Extension::Segments { addresses: 2, left: 1, options: 0 };
        let (mut frame, at) = extended(&[route, Extension::Options], false, &payload);
        // Byte 54 is where the routing header begins, 54 + 40 the options behind it.
        change(&mut frame);
        check(claim(at), Offloads::ALL, frame.len() as u32, head(&frame)) == Err(BadOffload::Headers)
    };
    assert!(!refused(&|_| {}));
    assert!(refused(&|frame| frame[56] = 3), "a type that is not known (RPL)");
    assert!(refused(&|frame| frame[56] = 77), "a type that there is not");
    assert!(!refused(&|frame| (frame[56], frame[57]) = (77, 0)), "whose route is used up");
    assert!(refused(&|frame| frame[57] = 3), "more segments left than there are");
    assert!(refused(&|frame| frame[58] = 2), "a last entry that is not there");
    assert!(refused(&|frame| (frame[56], frame[57]) = (0, 3)), "type 0 with more left than it has");
    assert!(refused(&|frame| frame[96] = 201), "a home address");
    assert!(refused(&|frame| frame[97] = 200), "an option that is longer than its header");
    // IPv4: a source route, and what its length hides.
    let (plain, good) = tcp4();
    for (options, is_good) in [
        (&[1u8, 1, 1, 0][..], true),
        (&[7, 4, 4, 0], true),
        (&[131, 4, 4, 0], false),
        (&[137, 4, 4, 0], false),
        (&[1, 131, 3, 4], false),
        (&[7, 0, 0, 0], false),
        (&[7, 9, 0, 0], false),
        (&[1, 1, 1, 7], false),
        // Behind the end of options nothing counts.
        (&[0, 131, 3, 4], true),
    ] {
        let mut frame = plain.clone();
        frame[14] = 0x46;
        frame.splice(34..34, options.iter().copied());
        let total = (frame.len() - 14) as u16;
        frame[16..18].copy_from_slice(&total.to_be_bytes());
        let claim = NetHeader { csum_start: good.csum_start + 4, ..good };
        let verdict = check(claim, Offloads::ALL, frame.len() as u32, head(&frame));
        assert_eq!(verdict.is_ok(), is_good, "{options:?}: {verdict:?}");
    }
}

#[test]
fn frame_is_cut_into_as_many_as_may_be_and_one_more_is_refused() {
    let shape = Shape { is_v6: false, is_udp: false, vlan: false, options: false };
    let most = MOST_SEGMENTS as usize;
    for (payload, is_good) in [(most * 10 - 10, true), (most * 10, true), (most * 10 + 1, false)] {
        let (frame, claim) = large(shape, &vec![7; payload], 10, false);
        match verdict(claim, Offloads::ALL, &frame) {
            Ok(offload) => {
                assert!(is_good, "{payload}");
                let mut segments = Segments::new(&frame, offload, Finish::Full);
                let count = std::iter::from_fn(|| segments.next(&mut [0; HEAD_BYTES])).count();
                assert_eq!(count, payload / 10);
            }
            Err(why) => assert_eq!((why, is_good), (BadOffload::Size, false), "{payload}"),
        }
    }
}

#[test]
fn headers_are_understood_as_far_as_they_are_looked_at() {
    // Headers begin behind the 14 bytes of Ethernet and have whole words, so that all together have two more than a number
    // of words: 190 is the last that fits, 194 the first that does not.
    for (vlan, options, headers, is_good) in
        [(false, 120, 182, true), (false, 128, 190, true), (true, 128, 194, false), (false, 136, 198, false)]
    {
        let shape = Shape { is_v6: true, is_udp: true, vlan, options: false };
        let (mut frame, claim) = large(shape, &[7; 3000], 1000, false);
        let network = 14 + if vlan { 4 } else { 0 };
        // Destination options of padding alone, in one header.
        let mut extension = vec![17, (options / 8 - 1) as u8, 1, (options - 4) as u8];
        extension.resize(options, 0);
        frame[network + 6] = 60;
        frame.splice(network + 40..network + 40, extension);
        let payload = (frame.len() - network - 40) as u16;
        frame[network + 4..network + 6].copy_from_slice(&payload.to_be_bytes());
        let claim = NetHeader { csum_start: claim.csum_start + options as u16, ..claim };
        let found = verdict(claim, Offloads::ALL, &frame);
        match found {
            Ok(Offload::Segment { header, .. }) => assert_eq!((header, is_good), (headers, true)),
            other => assert_eq!((other, is_good), (Err(BadOffload::Headers), false), "{headers}"),
        }
    }
}
