//! What goes over the wire: plain frames, and large ones that leave their checksum and their cutting to the device.

use super::*;

/// A frame between two stations.
pub(super) fn frame(to: Mac, from: Mac, len: usize, seed: u8) -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..len).map(|at| (at as u8).wrapping_mul(13).wrapping_add(seed)).collect();
    bytes[..6].copy_from_slice(&to.0);
    bytes[6..12].copy_from_slice(&from.0);
    bytes
}

/// A TCP frame as a driver sends it that leaves checksum and segmentation to the device, and its claim.
pub(super) fn large(to: Mac, from: Mac, payload: usize, mss: u16) -> (Vec<u8>, NetHeader) {
    let payload: Vec<u8> = (0..payload).map(|at| (at * 7) as u8).collect();
    let mut frame = Vec::new();
    etherparse::PacketBuilder::ethernet2(from.0, to.0)
        .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        .tcp(1, 2, 1000, 500)
        .ack(7)
        .write(&mut frame, &payload)
        .unwrap();
    // The pseudo header's sum in the checksum's place.
    let mut sum = 6 + (frame.len() - 34) as u32;
    for pair in frame[26..34].chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair[1]]));
    }
    let folded = (sum & 0xffff) + (sum >> 16);
    frame[50..52].copy_from_slice(&(folded as u16).to_be_bytes());
    let claim = NetHeader::from_bytes(&[1, 1, 54, 0, mss as u8, (mss >> 8) as u8, 34, 0, 16, 0, 0, 0]);
    (frame, claim)
}

/// The TCP payload of a frame whose checksums were found right.
pub(super) fn payload(frame: &[u8]) -> Vec<u8> {
    let packet = etherparse::SlicedPacket::from_ethernet(frame).unwrap();
    let Some(etherparse::NetSlice::Ipv4(ip)) = &packet.net else { panic!("{packet:?}") };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    let Some(etherparse::TransportSlice::Tcp(tcp)) = &packet.transport else { panic!("{packet:?}") };
    assert_eq!(tcp.checksum(), tcp.to_header().calc_checksum_ipv4(&header, tcp.payload()).unwrap());
    tcp.payload().to_vec()
}

/// A plain frame goes from one to the other, once.
pub(super) fn passes(from: &mut Nic, to: &mut Nic, seed: u8) {
    to.post(0, 1);
    let bytes = frame(to.mac, from.mac, 100, seed);
    from.send_plain(0, &bytes);
    assert_eq!(to.expect(0, 1)[0].1, bytes);
}
