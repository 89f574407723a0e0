//! What a frame is answered with: ARP and ICMP echo requests over IPv4, for whatever address or for one, behind a VLAN's tag or not.

/// Whose requests are answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Us {
    pub(crate) mac: [u8; 6],
    /// None: whatever is asked for.
    pub(crate) address: Option<[u8; 4]>,
}

/// Turns a request into its answer, in place; false: it is none that is answered.
pub(crate) fn answer(frame: &mut [u8], us: Us) -> bool {
    let Some(ether_type) = frame.get(12..14) else { return false };
    let at = if ether_type == VLAN { 18 } else { 14 };
    let Some((head, packet)) = frame.split_at_mut_checked(at) else { return false };
    // What a bridge floods is somebody else's.
    if head[..6] != us.mac && head[0] & GROUP == 0 {
        return false;
    }
    let is_answered = match head.get(at - 2..) {
        Some(ether_type) if ether_type == ARP => answer_arp(packet, us),
        Some(ether_type) if ether_type == IPV4 => answer_echo(packet, us),
        _ => false,
    };
    if is_answered {
        head.copy_within(6..12, 0);
        head[6..12].copy_from_slice(&us.mac);
    }
    is_answered
}

impl Us {
    fn has(self, address: &[u8]) -> bool {
        self.address.is_none_or(|own| own == address)
    }
}

/// RFC 826.
fn answer_arp(packet: &mut [u8], us: Us) -> bool {
    if packet.len() < 28 || packet[6..8] != [0, 1] || !us.has(&packet[24..28]) {
        return false;
    }
    packet[7] = 2;
    let (asker, asked): ([u8; 10], [u8; 4]) =
        (std::array::from_fn(|at| packet[8 + at]), std::array::from_fn(|at| packet[24 + at]));
    packet[8..14].copy_from_slice(&us.mac);
    packet[14..18].copy_from_slice(&asked);
    packet[18..28].copy_from_slice(&asker);
    true
}

/// RFC 792; the two addresses exchanged change no sum, the type's does.
fn answer_echo(packet: &mut [u8], us: Us) -> bool {
    let header = packet.first().map_or(0, |first| usize::from(first & 0xf) * 4);
    if header < 20
        || packet.len() < header + 8
        || packet[9] != ICMP
        || packet[header] != ECHO_REQUEST
        || !us.has(&packet[16..20])
    {
        return false;
    }
    let (source, destination) = packet[12..20].split_at_mut(4);
    source.swap_with_slice(destination);
    packet[header] = 0;
    let sum = u32::from(u16::from_be_bytes([packet[header + 2], packet[header + 3]]))
        + (u32::from(ECHO_REQUEST) << 8);
    let sum = (sum & 0xffff) + (sum >> 16);
    packet[header + 2..header + 4].copy_from_slice(&(sum as u16).to_be_bytes());
    true
}

/// In the first byte of an Ethernet address.
const GROUP: u8 = 1;
const ARP: [u8; 2] = [0x08, 0x06];
const IPV4: [u8; 2] = [0x08, 0x00];
const VLAN: [u8; 2] = [0x81, 0x00];
const ICMP: u8 = 1;
const ECHO_REQUEST: u8 = 8;

#[cfg(test)]
mod tests {
    use super::*;

    const OURS: [u8; 6] = [2, 0, 0, 0, 0, 9];
    const US: Us = Us { mac: OURS, address: Some([10, 0, 0, 2]) };
    const OTHER: Us = Us { address: Some([10, 0, 0, 3]), ..US };

    fn sum(bytes: &[u8]) -> u16 {
        let sum: u32 = bytes.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
        !((sum & 0xffff) + (sum >> 16)) as u16
    }

    #[test]
    fn an_echo_request_becomes_its_reply() {
        let mut frame = [&[1; 6][..], &[2; 6], &IPV4].concat();
        let mut ip = vec![0x45, 0, 0, 30, 0, 0, 0, 0, 64, ICMP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
        let mut icmp = vec![ECHO_REQUEST, 0, 0, 0, 0, 7, 0, 1, 0xab, 0xcd];
        let check = sum(&icmp);
        icmp[2..4].copy_from_slice(&check.to_be_bytes());
        ip.append(&mut icmp);
        frame.append(&mut ip);
        assert!(!answer(&mut frame, OTHER), "another address");
        frame[..6].copy_from_slice(&[2; 6]);
        assert!(!answer(&mut frame, US), "another station");
        frame[..6].copy_from_slice(&OURS);
        assert!(answer(&mut frame, US));
        assert_eq!((&frame[..6], &frame[6..12]), (&[2; 6][..], &OURS[..]));
        assert_eq!((&frame[26..30], &frame[30..34]), (&[10, 0, 0, 2][..], &[10, 0, 0, 1][..]));
        assert_eq!((frame[34], sum(&frame[34..])), (0, 0), "a reply with a right sum");
        assert!(!answer(&mut frame, US), "a reply is not answered");
    }

    #[test]
    fn who_asks_for_an_address_by_arp_is_told_ours_behind_a_tag_too() {
        let packet =
            [&[0, 1, 8, 0, 6, 4, 0, 1][..], &[2; 6], &[10, 0, 0, 1], &[0; 6], &[10, 0, 0, 2]].concat();
        for tag in [&[][..], &[0x81, 0, 0, 7]] {
            let mut frame = [&[0xff; 6][..], &[2; 6], tag, &ARP, &packet].concat();
            assert!(!answer(&mut frame, OTHER), "another address");
            assert!(answer(&mut frame, US));
            let told = &frame[14 + tag.len()..];
            assert_eq!((told[7], &told[8..14], &told[14..18]), (2, &OURS[..], &[10, 0, 0, 2][..]));
            assert_eq!((&told[18..24], &told[24..28]), (&[2; 6][..], &[10, 0, 0, 1][..]));
        }
    }

    #[test]
    fn what_is_too_short_or_something_else_is_not_answered() {
        for len in 0..20 {
            assert!(!answer(&mut vec![0; len], US));
        }
        let mut cut = [&[1; 12][..], &IPV4, &[0x4f, 0, 0]].concat();
        assert!(!answer(&mut cut, US));
    }
}
