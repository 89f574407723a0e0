//! The frame that a guest sends through Ringway and recognises when it returns.
//!
//! Ethernet, IPv4 and UDP, so that a guest's kernel spreads flows over its queues; then a mark, the run, the sequence
//! number and bytes that follow from both. Whoever knows run, number and length can make the whole frame
//! again, so a returned one is compared with what was sent to the last byte and nothing need be kept.
//!
//! ```text
//! 0        14         34      42     46    50         58
//! | eth    | ipv4     | udp   | mark | run | sequence | content …
//! ```

use crate::content::Content;

/// The shortest frame: what Ethernet asks for, without its checksum.
pub const SHORTEST: usize = 60;

/// The longest: an MTU of 65,535 would not fit the length fields of IPv4 with its Ethernet header.
pub const LONGEST: usize = 14 + 65_000;

/// An Ethernet address.
pub type Mac = [u8; 6];

/// The address to which frames go: unicast, locally administered, nobody's.
pub const NOBODY: Mac = [0x02, 0, 0, 0, 0, 0xfe];

/// One frame's identity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Tells the frames of one test from late ones of the last.
    pub run: u32,
    /// Counts from 0.
    pub sequence: u64,
    /// The UDP source port is `1024 + flow`.
    pub flow: u16,
    /// The whole length, Ethernet header included.
    pub length: usize,
}

impl Frame {
    /// Writes the frame into `into`, which is resized to fit.
    ///
    /// The length is brought into `SHORTEST..=LONGEST`.
    pub fn write(&self, destination: Mac, source: Mac, into: &mut Vec<u8>) {
        let length = self.length.clamp(SHORTEST, LONGEST);
        into.clear();
        into.extend_from_slice(&destination);
        into.extend_from_slice(&source);
        into.extend_from_slice(&[0x08, 0x00]);
        let ip_length = (length - ETH_BYTES) as u16;
        let mut ip = [0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0, 198, 18, 0, 1, 198, 18, 0, 2];
        ip[2..4].copy_from_slice(&ip_length.to_be_bytes());
        let checksum = internet_checksum(&ip);
        ip[10..12].copy_from_slice(&checksum.to_be_bytes());
        into.extend_from_slice(&ip);
        into.extend_from_slice(&(FIRST_PORT.wrapping_add(self.flow)).to_be_bytes());
        into.extend_from_slice(&DISCARD_PORT.to_be_bytes());
        into.extend_from_slice(&(ip_length - IP_BYTES).to_be_bytes());
        into.extend_from_slice(&[0, 0]);
        into.extend_from_slice(&MARK);
        into.extend_from_slice(&self.run.to_be_bytes());
        into.extend_from_slice(&self.sequence.to_be_bytes());
        let start = into.len();
        into.resize(length, 0);
        Content::new((u64::from(self.run) << 32) ^ self.sequence).fill(&mut into[start..]);
    }

    /// Reads who a received frame claims to be; `None` when it is not one of ours.
    pub fn claimed(bytes: &[u8]) -> Option<Frame> {
        if bytes.len() < SHORTEST || bytes[MARK_AT..MARK_AT + 4] != MARK {
            return None;
        }
        let port = u16::from_be_bytes(bytes[34..36].try_into().ok()?);
        Some(Frame {
            run: u32::from_be_bytes(bytes[46..50].try_into().ok()?),
            sequence: u64::from_be_bytes(bytes[50..58].try_into().ok()?),
            flow: port.wrapping_sub(FIRST_PORT),
            length: bytes.len(),
        })
    }
}

/// Writes an Ethernet address as `02:00:00:00:00:fe`.
pub fn mac_text(mac: Mac) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

/// Reads an Ethernet address; `None` when it is not six hexadecimal bytes with colons between.
pub fn mac_from_text(text: &str) -> Option<Mac> {
    let mut mac = [0; 6];
    let mut parts = text.trim().split(':');
    for byte in &mut mac {
        *byte = u8::from_str_radix(parts.next()?, 16).ok()?;
    }
    parts.next().is_none().then_some(mac)
}

/// RFC 1071, over an even number of bytes whose checksum field is 0.
fn internet_checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 =
        bytes.chunks_exact(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]]))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

const ETH_BYTES: usize = 14;
const IP_BYTES: u16 = 20;
const MARK_AT: usize = 42;
const MARK: [u8; 4] = *b"RWfr";
const FIRST_PORT: u16 = 1024;
const DISCARD_PORT: u16 = 9;

#[cfg(test)]
mod tests {
    use super::*;

    const ME: Mac = [0x52, 0x54, 0, 0, 0, 1];

    #[test]
    fn every_length_is_written_and_claimed_back() {
        let mut bytes = Vec::new();
        for length in SHORTEST..=9014 {
            let frame = Frame { run: 7, sequence: length as u64 * 3, flow: 5, length };
            frame.write(NOBODY, ME, &mut bytes);
            assert_eq!(bytes.len(), length);
            assert_eq!(Frame::claimed(&bytes), Some(frame));
        }
    }

    #[test]
    fn the_ip_header_sums_to_zero() {
        let mut bytes = Vec::new();
        Frame { run: 1, sequence: 2, flow: 3, length: 1514 }.write(NOBODY, ME, &mut bytes);
        assert_eq!(internet_checksum(&bytes[14..34]), 0);
    }

    #[test]
    fn content_differs_between_neighbours_and_runs() {
        let (mut one, mut two) = (Vec::new(), Vec::new());
        Frame { run: 1, sequence: 9, flow: 0, length: 200 }.write(NOBODY, ME, &mut one);
        Frame { run: 1, sequence: 10, flow: 0, length: 200 }.write(NOBODY, ME, &mut two);
        assert_ne!(one[58..], two[58..]);
        Frame { run: 2, sequence: 9, flow: 0, length: 200 }.write(NOBODY, ME, &mut two);
        assert_ne!(one[58..], two[58..]);
    }

    #[test]
    fn foreign_and_short_frames_are_not_claimed() {
        assert_eq!(Frame::claimed(&[0; 1514]), None);
        assert_eq!(Frame::claimed(&[0; 20]), None);
    }

    #[test]
    fn addresses_round_trip_and_wrong_ones_are_refused() {
        assert_eq!(mac_from_text(&mac_text(ME)), Some(ME));
        for wrong in ["", "1:2:3:4:5", "1:2:3:4:5:6:7", "xx:0:0:0:0:0"] {
            assert_eq!(mac_from_text(wrong), None, "{wrong}");
        }
    }
}
