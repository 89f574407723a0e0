//! Offloads that hardware carries out which wants to be told where a frame's headers are.

use super::packet::{Layers, Packet, Transport};
use super::segment::{pseudo_header, put_u16};
use super::{HEAD_BYTES, Kind, Offload};

/// Where the headers of a frame are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Headers {
    /// Bytes of the Ethernet header, tags included.
    pub mac_len: u16,
    /// Of the IP header, extension headers included.
    pub ip_len: u16,
    /// Of the transport header; 0 where it does not matter.
    pub transport_len: u8,
    /// IPv4.
    pub is_v4: bool,
    /// TCP, else UDP.
    pub is_tcp: bool,
}

/// Where the headers are of a frame that begins with `head` and whose transport's checksum is to be completed. None: what is
/// asked for is another sum than that of its outermost TCP or UDP.
pub fn headers_of(head: &[u8], start: u16, offset: u16) -> Option<Headers> {
    let layers = Layers::parse(head)?;
    let is_tcp = layers.transport == Transport::Tcp;
    let its_offset = if is_tcp { Kind::Tcp4 } else { Kind::Udp4 }.checksum_offset();
    (layers.transport_at == start && its_offset == offset).then_some(Headers {
        mac_len: layers.network_at,
        ip_len: layers.transport_at - layers.network_at,
        transport_len: 0,
        is_v4: !layers.is_v6,
        is_tcp,
    })
}

/// Makes the headers of a frame of `len` bytes those that hardware cuts it up by: lengths and the IP checksum are 0, and the
/// transport's checksum is that of the pseudo header without a length. `head` is all its headers, and `offload` what
/// [`check`](super::check) made of its sender's claim. None: they are not what was checked.
pub fn prepare_cut(head: &mut [u8], len: u32, offload: Offload) -> Option<Headers> {
    let Offload::Segment { kind, header, .. } = offload else { return None };
    let packet = Packet::parse(head.get(..HEAD_BYTES.min(head.len()))?, len)?;
    if packet.header != header {
        return None;
    }
    let (network, transport) = (usize::from(packet.network_at), usize::from(packet.transport_at));
    if packet.is_v6 {
        put_u16(head, network + 4, 0)?;
    } else {
        put_u16(head, network + 2, 0)?;
        put_u16(head, network + 10, 0)?;
    }
    let seed = pseudo_header(head, &packet, kind, 0)?.folded();
    put_u16(head, transport + usize::from(kind.checksum_offset()), seed)?;
    Some(Headers {
        mac_len: packet.network_at,
        ip_len: packet.transport_at - packet.network_at,
        transport_len: (packet.header - packet.transport_at) as u8,
        is_v4: !packet.is_v6,
        is_tcp: matches!(kind, Kind::Tcp4 | Kind::Tcp6),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A TCP frame over IPv4 with 20 bytes of either header and so much payload.
    fn tcp4(payload: usize) -> Vec<u8> {
        let total = (40 + payload) as u16;
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0];
        frame.extend([0x45, 0, (total >> 8) as u8, total as u8, 0, 1, 0, 0, 64, 6, 0xaa, 0xbb]);
        frame.extend([10, 0, 0, 1, 10, 0, 0, 2]);
        frame.extend([0, 80, 0, 81, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, 0x10, 1, 0, 0x12, 0x34, 0, 0]);
        frame.resize(frame.len() + payload, 7);
        frame
    }

    #[test]
    fn headers_of_a_frame_to_be_cut_are_as_hardware_wants_them() {
        let frame = tcp4(3000);
        let offload = Offload::Segment { kind: Kind::Tcp4, ecn: false, mss: 1000, header: 54, start: 34 };
        let mut head = frame[..54].to_vec();
        let headers = prepare_cut(&mut head, frame.len() as u32, offload).unwrap();
        let wanted = Headers { mac_len: 14, ip_len: 20, transport_len: 20, is_v4: true, is_tcp: true };
        assert_eq!(headers, wanted);
        assert_eq!((&head[16..18], &head[24..26]), (&[0, 0][..], &[0, 0][..]));
        // 0a00 + 0001 + 0a00 + 0002 + 6, folded and not complemented.
        assert_eq!(head[50..52], [0x14, 0x09]);
        // All else is as it was.
        let others = |bytes: &[u8]| [&bytes[..16], &bytes[18..24], &bytes[26..50], &bytes[52..54]].concat();
        assert_eq!(others(&head), others(&frame[..54]));
    }

    #[test]
    fn headers_that_were_changed_since_they_were_checked_are_not_prepared() {
        let offload = Offload::Segment { kind: Kind::Tcp4, ecn: false, mss: 1000, header: 54, start: 34 };
        let mut head = tcp4(3000)[..54].to_vec();
        head[46] = 0x60;
        assert_eq!(prepare_cut(&mut head, 3054, offload), None);
        assert_eq!(prepare_cut(&mut [0; 54], 3054, offload), None);
    }

    #[test]
    fn checksum_is_left_to_hardware_where_it_is_that_of_the_frames_own_transport() {
        let mut frame = tcp4(100);
        assert!(headers_of(&frame, 34, 16).is_some_and(|headers| headers.is_tcp && headers.mac_len == 14));
        assert_eq!((headers_of(&frame, 34, 6), headers_of(&frame, 54, 16)), (None, None));
        assert_eq!(headers_of(&frame[..23], 34, 16), None);
        // Headers that overlap: no hardware is asked what it makes of them.
        for words in 0..5 {
            frame[14] = 0x40 | words;
            assert_eq!(headers_of(&frame, 14 + u16::from(words) * 4, 16), None, "{words}");
        }
        frame[14] = 0x45;
        // A fragment.
        frame[20] = 0x20;
        assert_eq!(headers_of(&frame, 34, 16), None);
        frame.splice(12..12, [0x81, 0, 0, 7]);
        frame[24] = 0;
        assert!(headers_of(&frame, 38, 16).is_some_and(|headers| headers.mac_len == 18));
    }
}
