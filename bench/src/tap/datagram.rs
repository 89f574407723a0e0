//! UDP over IPv4 over Ethernet, behind virtio's header, made and checked as a whole without any offload: what a guest's stack
//! would put into a frame, and what it would look for in one.

use ringway_pmd::net::tap::HEADER_BYTES;

use super::pattern::Pattern;

/// Frames of one size between two ends.
#[derive(Debug)]
pub(crate) struct Frames {
    /// One for each place where its filler may begin, whole but for the sequence number and the checksum.
    templates: Vec<Template>,
    /// From the other end: addresses and ports exchanged.
    from_other: Vec<u8>,
    size: usize,
}

#[derive(Debug)]
struct Template {
    frame: Vec<u8>,
    /// Of all that UDP's checksum is over, without the sequence number.
    sum: u64,
}

/// Where a flow goes from and to: Ethernet addresses, IPv4 addresses, UDP ports.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Flow {
    pub(crate) macs: [[u8; 6]; 2],
    pub(crate) addresses: [[u8; 4]; 2],
    pub(crate) ports: [u16; 2],
}

impl Flow {
    fn turned(self) -> Flow {
        let Flow { macs: [a, b], addresses: [c, d], ports: [e, f] } = self;
        Flow { macs: [b, a], addresses: [d, c], ports: [f, e] }
    }
}

impl Frames {
    /// Of `size` bytes from the Ethernet header on, at least [`SMALLEST`].
    pub(crate) fn new(flow: Flow, size: u16, pattern: &Pattern) -> Frames {
        let size = usize::from(size.max(SMALLEST));
        let templates = (0..PLACES)
            .map(|place| {
                let frame = head(flow, size);
                let mut frame = [vec![0; HEADER_BYTES], frame].concat();
                frame.resize(HEADER_BYTES + PAYLOAD_AT + SEQUENCE_BYTES, 0);
                frame.extend_from_slice(filler(pattern, place, size - PAYLOAD_AT - SEQUENCE_BYTES));
                let sum = udp_sum(&frame[HEADER_BYTES..]);
                Template { frame, sum }
            })
            .collect();
        Frames { templates, from_other: head(flow.turned(), size), size }
    }

    /// The frame of a sequence number, behind virtio's header. It stays until the next is asked for.
    pub(crate) fn make(&mut self, sequence: u64) -> &[u8] {
        let nth = (sequence % PLACES) as usize;
        let Some(Template { frame, sum }) = self.templates.get_mut(nth) else { return &[] };
        let bytes = sequence.to_be_bytes();
        let checksum = match !fold(*sum + sum_of(&bytes)) {
            // 0 would say that there is none.
            0 => 0xffff,
            checksum => checksum,
        };
        let udp = HEADER_BYTES + UDP_AT;
        if let Some(place) = frame.get_mut(udp + 6..udp + 8) {
            place.copy_from_slice(&checksum.to_be_bytes());
        }
        let payload = HEADER_BYTES + PAYLOAD_AT;
        if let Some(place) = frame.get_mut(payload..payload + SEQUENCE_BYTES) {
            place.copy_from_slice(&bytes);
        }
        frame
    }

    /// What a frame that came is; virtio's header before it.
    pub(crate) fn check(&self, frame: &[u8], pattern: &Pattern) -> Found {
        let Some(frame) = frame.get(HEADER_BYTES..) else { return Found::Other };
        let (ip, udp) = (ETHERNET_BYTES, UDP_AT);
        // What the kernel says beside the flow (ARP, multicast) is nobody's.
        let is_flow = |at: usize, len: usize| {
            frame.get(at..at + len).is_some_and(|found| self.from_other.get(at..at + len) == Some(found))
        };
        let is_ours = is_flow(12, 2) && is_flow(ip + 9, 1) && is_flow(ip + 12, 8) && is_flow(udp, 4);
        if !is_ours {
            return Found::Other;
        }
        let addressed = is_flow(0, 12);
        let ip_header = frame.get(ip..udp).unwrap_or_default();
        let is_whole = frame.len() == self.size
            && addressed
            && fold(sum_of(ip_header)) == 0xffff
            && fold(udp_sum(frame)) == 0xffff;
        match frame.get(PAYLOAD_AT..) {
            Some(payload) if is_whole => self.check_payload(payload, pattern),
            _ => Found::Corrupt,
        }
    }

    /// What the payload of a datagram is, as a socket gives it.
    pub(crate) fn check_payload(&self, payload: &[u8], pattern: &Pattern) -> Found {
        let Some((sequence, rest)) = payload.split_first_chunk::<SEQUENCE_BYTES>() else {
            return Found::Corrupt;
        };
        let sequence = u64::from_be_bytes(*sequence);
        let wanted = filler(pattern, sequence % PLACES, self.size - PAYLOAD_AT - SEQUENCE_BYTES);
        if rest == wanted { Found::Intact(sequence) } else { Found::Corrupt }
    }

    /// The payload of a sequence number, for a socket to send.
    pub(crate) fn payload(&mut self, sequence: u64) -> &[u8] {
        self.make(sequence).get(HEADER_BYTES + PAYLOAD_AT..).unwrap_or_default()
    }

    /// Bytes of each, from the Ethernet header on.
    pub(crate) fn size(&self) -> u64 {
        self.size as u64
    }
}

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// As it was sent, with this sequence number.
    Intact(u64),
    /// Of the flow, and not as it was sent.
    Corrupt,
    /// Of nobody here.
    Other,
}

/// The headers of a frame, UDP's checksum left out.
fn head(flow: Flow, size: usize) -> Vec<u8> {
    let Flow { macs: [from, to], addresses: [source, destination], ports: [own, other] } = flow;
    let ip_len = (size - ETHERNET_BYTES) as u16;
    let mut ip = Vec::with_capacity(IP_BYTES);
    // Version and length, service; total length; identification; don't fragment; 64 hops, UDP; checksum.
    ip.extend([0x45, 0]);
    ip.extend(ip_len.to_be_bytes());
    ip.extend([0, 0, 0x40, 0, 64, UDP, 0, 0]);
    ip.extend(source);
    ip.extend(destination);
    let checksum = !fold(sum_of(&ip));
    if let Some(place) = ip.get_mut(10..12) {
        place.copy_from_slice(&checksum.to_be_bytes());
    }
    let udp_len = ip_len - IP_BYTES as u16;
    let mut frame = [to, from].concat();
    frame.extend([0x08, 0x00]);
    frame.extend(ip);
    frame.extend(own.to_be_bytes());
    frame.extend(other.to_be_bytes());
    frame.extend(udp_len.to_be_bytes());
    frame.extend([0, 0]);
    frame
}

fn filler(pattern: &Pattern, place: u64, len: usize) -> &[u8] {
    pattern.at(place * STEP, len)
}

/// Of the pseudo header, the header as it stands, and the payload (RFC 768).
fn udp_sum(frame: &[u8]) -> u64 {
    let addresses = frame.get(ETHERNET_BYTES + 12..UDP_AT).unwrap_or_default();
    let datagram = frame.get(UDP_AT..).unwrap_or_default();
    sum_of(addresses) + u64::from(UDP) + datagram.len() as u64 + sum_of(datagram)
}

/// Of 16-bit words, the last one filled up with zero.
fn sum_of(bytes: &[u8]) -> u64 {
    let (words, rest) = bytes.as_chunks::<2>();
    let sum: u64 = words.iter().map(|word| u64::from(u16::from_be_bytes(*word))).sum();
    sum + rest.first().map_or(0, |last| u64::from(*last) << 8)
}

/// The ones' complement sum of 16 bits (RFC 1071).
fn fold(mut sum: u64) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// The smallest frame, in bytes from the Ethernet header on.
pub(crate) const SMALLEST: u16 = 64;

const ETHERNET_BYTES: usize = 14;
const IP_BYTES: usize = 20;
const UDP_AT: usize = ETHERNET_BYTES + IP_BYTES;
const PAYLOAD_AT: usize = UDP_AT + 8;
const SEQUENCE_BYTES: usize = 8;

/// UDP's number in IP.
const UDP: u8 = 17;

/// Places where a filler may begin: a buffer that was not written anew is noticed.
const PLACES: u64 = 64;

/// From one place to the next, in bytes.
const STEP: u64 = 997;

#[cfg(test)]
mod tests {
    use super::*;

    fn frames(size: u16) -> (Frames, Frames, Pattern) {
        let pattern = Pattern::new();
        let flow = Flow {
            macs: [[2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]],
            addresses: [[10, 0, 0, 1], [10, 0, 0, 2]],
            ports: [1000, 2000],
        };
        (Frames::new(flow, size, &pattern), Frames::new(flow.turned(), size, &pattern), pattern)
    }

    #[test]
    fn what_one_end_makes_the_other_finds_intact() {
        for size in [64, 65, 1514] {
            let (mut ours, theirs, pattern) = frames(size);
            for sequence in [0, 1, 63, 64, 0xffff_ffff_ffff] {
                let frame = ours.make(sequence);
                assert_eq!(frame.len(), HEADER_BYTES + usize::from(size));
                assert_eq!(theirs.check(frame, &pattern), Found::Intact(sequence));
            }
            let payload = ours.payload(7).to_vec();
            assert_eq!(theirs.check_payload(&payload, &pattern), Found::Intact(7));
        }
    }

    #[test]
    fn every_byte_counts() {
        let (mut ours, theirs, pattern) = frames(200);
        let whole = ours.make(5).to_vec();
        for at in HEADER_BYTES..whole.len() {
            let mut damaged = whole.clone();
            damaged[at] ^= 0x10;
            assert_ne!(theirs.check(&damaged, &pattern), Found::Intact(5), "byte {at}");
        }
        // The addresses of the flow itself make it somebody else's.
        assert_eq!(theirs.check(&whole[..whole.len() - 1], &pattern), Found::Corrupt);
        assert_eq!(theirs.check(&whole[..20], &pattern), Found::Other);
        // Words exchanged, so that every checksum holds.
        let mut exchanged = whole.clone();
        let end = exchanged.len();
        exchanged[end - 4..].rotate_left(2);
        assert_eq!(theirs.check(&exchanged, &pattern), Found::Corrupt);
    }

    /// RFC 1071, section 3.
    #[test]
    fn sum_is_that_of_the_rfc() {
        assert_eq!(fold(sum_of(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7])), 0xddf2);
    }
}
