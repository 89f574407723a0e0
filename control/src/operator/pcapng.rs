//! pcapng (draft-ietf-opsawg-pcapng), as far as captures are written in it: one section, an interface, packets, and at the end
//! what was missed. Written into memory; whole blocks, little-endian, times in nanoseconds since 1970.

/// A packet as it is written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Packet<'a> {
    pub(crate) time_ns: u64,
    /// Its bytes on the wire, and its beginning.
    pub(crate) len: u32,
    pub(crate) bytes: &'a [u8],
    pub(crate) queue: u32,
    pub(crate) is_inbound: bool,
    /// Packets of its queue that were missed between the one before and this one.
    pub(crate) missed: u64,
    pub(crate) comment: Option<&'a str>,
}

/// What became of a capture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Totals<'a> {
    pub(crate) time_ns: u64,
    /// Packets that were wanted, and of those the ones that were missed.
    pub(crate) received: u64,
    pub(crate) missed: u64,
    pub(crate) comment: &'a str,
}

/// Type of a block of totals.
const INTERFACE_STATISTICS: u32 = 5;
/// Type of a packet's block.
pub(crate) const ENHANCED_PACKET: u32 = 6;

/// Begins a file.
pub(crate) fn begin(out: &mut Vec<u8>, application: &str) {
    block(out, SECTION_HEADER, |out| {
        words(out, &[BYTE_ORDER]);
        // Version 1.0; how long it is nobody knows.
        out.extend([1, 0, 0, 0]);
        out.extend(u64::MAX.to_le_bytes());
        option(out, 4, application.as_bytes());
        end_of_options(out);
    });
}

/// The interface of all packets that follow: Ethernet.
pub(crate) fn interface(out: &mut Vec<u8>, name: &str, description: &str, snaplen: u32) {
    block(out, INTERFACE_DESCRIPTION, |out| {
        words(out, &[ETHERNET, snaplen]);
        option(out, 2, name.as_bytes());
        option(out, 3, description.as_bytes());
        // Times are in 10^-9 s.
        option(out, 9, &[9]);
        end_of_options(out);
    });
}

/// A packet.
pub(crate) fn packet(out: &mut Vec<u8>, packet: &Packet<'_>) {
    block(out, ENHANCED_PACKET, |out| {
        words(out, &[0]);
        time(out, packet.time_ns);
        words(out, &[packet.bytes.len() as u32, packet.len]);
        padded(out, packet.bytes);
        if let Some(comment) = packet.comment {
            option(out, COMMENT, comment.as_bytes());
        }
        let direction: u32 = if packet.is_inbound { 1 } else { 2 };
        option(out, 2, &direction.to_le_bytes());
        if packet.missed > 0 {
            option(out, 4, &packet.missed.to_le_bytes());
        }
        option(out, 6, &packet.queue.to_le_bytes());
        end_of_options(out);
    });
}

/// Ends a file.
pub(crate) fn end(out: &mut Vec<u8>, totals: &Totals<'_>) {
    block(out, INTERFACE_STATISTICS, |out| {
        words(out, &[0]);
        time(out, totals.time_ns);
        option(out, COMMENT, totals.comment.as_bytes());
        option(out, RECEIVED, &totals.received.to_le_bytes());
        option(out, MISSED, &totals.missed.to_le_bytes());
        end_of_options(out);
    });
}

/// A block at the beginning of what came: its type and its bytes. None: it is not whole yet.
///
/// # Errors
/// It is no block.
pub(crate) fn first_block(bytes: &[u8]) -> Result<Option<(u32, &[u8])>, NoBlock> {
    let word = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk::<4>()?));
    let (Some(kind), Some(len)) = (word(0), word(4)) else { return Ok(None) };
    let len = len as usize;
    if !(12..=LONGEST_BLOCK).contains(&len) || !len.is_multiple_of(4) {
        return Err(NoBlock);
    }
    let Some(block) = bytes.get(..len) else { return Ok(None) };
    Ok(Some((kind, block)))
}

/// What came is not pcapng.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("what came is no capture")]
pub(crate) struct NoBlock;

/// What a block says of a capture's end. None: it is another block.
pub(crate) fn totals(kind: u32, block: &[u8]) -> Option<Totals<'_>> {
    if kind != INTERFACE_STATISTICS {
        return None;
    }
    let word = |at: usize| Some(u32::from_le_bytes(*block.get(at..)?.first_chunk::<4>()?));
    let time_ns = u64::from(word(12)?) << 32 | u64::from(word(16)?);
    let mut totals = Totals { time_ns, received: 0, missed: 0, comment: "" };
    let mut rest = block.get(20..block.len().checked_sub(4)?)?;
    while let Some((head, behind)) = rest.split_first_chunk::<4>() {
        let [code, len] = [[head[0], head[1]], [head[2], head[3]]].map(u16::from_le_bytes);
        let value = behind.get(..len.into())?;
        let number = || value.first_chunk::<8>().map(|value| u64::from_le_bytes(*value));
        match code {
            COMMENT => totals.comment = std::str::from_utf8(value).ok()?,
            RECEIVED => totals.received = number()?,
            MISSED => totals.missed = number()?,
            _ => {}
        }
        rest = behind.get(usize::from(len).next_multiple_of(4)..)?;
    }
    Some(totals)
}

fn block(out: &mut Vec<u8>, kind: u32, body: impl FnOnce(&mut Vec<u8>)) {
    let begin = out.len();
    words(out, &[kind, 0]);
    body(out);
    let len = (out.len() - begin + 4) as u32;
    words(out, &[len]);
    if let Some(room) = out.get_mut(begin + 4..begin + 8) {
        room.copy_from_slice(&len.to_le_bytes());
    }
}

fn words(out: &mut Vec<u8>, words: &[u32]) {
    words.iter().for_each(|word| out.extend(word.to_le_bytes()));
}

/// The higher half first, whatever the byte order.
fn time(out: &mut Vec<u8>, time_ns: u64) {
    words(out, &[(time_ns >> 32) as u32, time_ns as u32]);
}

fn option(out: &mut Vec<u8>, code: u16, value: &[u8]) {
    let value = value.get(..u16::MAX.into()).unwrap_or(value);
    out.extend(code.to_le_bytes());
    out.extend((value.len() as u16).to_le_bytes());
    padded(out, value);
}

fn end_of_options(out: &mut Vec<u8>) {
    out.extend([0; 4]);
}

fn padded(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend_from_slice(bytes);
    let filling = bytes.len().next_multiple_of(4) - bytes.len();
    out.extend(std::iter::repeat_n(0, filling));
}

const SECTION_HEADER: u32 = 0x0a0d_0d0a;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const INTERFACE_DESCRIPTION: u32 = 1;
/// `LINKTYPE_ETHERNET`.
const ETHERNET: u32 = 1;
const COMMENT: u16 = 1;
const RECEIVED: u16 = 4;
const MISSED: u16 = 5;
/// Bytes of a block at most: the longest frame, and what is said of it.
pub(crate) const LONGEST_BLOCK: usize = 512 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_and_their_totals_are_read_again() {
        let mut file = Vec::new();
        begin(&mut file, "ringway test");
        interface(&mut file, "vm0", "bridge/b", 262_144);
        let bytes = [7; 61];
        let of = Packet {
            time_ns: 0x1234_5678_9abc_def0,
            len: 1500,
            bytes: &bytes,
            queue: 3,
            is_inbound: true,
            missed: 5,
            comment: Some("dropped: vlan"),
        };
        packet(&mut file, &of);
        end(&mut file, &Totals { time_ns: 1 << 40, received: 9, missed: 5, comment: "stopped: by whoever" });
        let mut rest = file.as_slice();
        let mut kinds = Vec::new();
        while let Some((kind, block)) = first_block(rest).unwrap() {
            assert_eq!(block[block.len() - 4..], (block.len() as u32).to_le_bytes());
            kinds.push(kind);
            if kind == ENHANCED_PACKET {
                assert_eq!(block[12..20], [0x78, 0x56, 0x34, 0x12, 0xf0, 0xde, 0xbc, 0x9a]);
                assert_eq!(block[20..28], [61, 0, 0, 0, 0xdc, 5, 0, 0]);
                assert_eq!(block[28..28 + 61], bytes);
                let options = [
                    &[1, 0, 13, 0][..],
                    b"dropped: vlan\0\0\0",
                    &[2, 0, 4, 0, 1, 0, 0, 0],
                    &[4, 0, 8, 0, 5, 0, 0, 0, 0, 0, 0, 0],
                    &[6, 0, 4, 0, 3, 0, 0, 0],
                    &[0; 4],
                ];
                assert_eq!(block[28 + 64..block.len() - 4], options.concat());
            }
            let told = totals(kind, block);
            assert_eq!(told.is_some(), kind == INTERFACE_STATISTICS);
            if let Some(told) = told {
                let expected =
                    Totals { time_ns: 1 << 40, received: 9, missed: 5, comment: "stopped: by whoever" };
                assert_eq!(told, expected);
                (0..block.len() - 8).for_each(|len| assert_ne!(totals(kind, &block[..len]), Some(expected)));
            }
            rest = &rest[block.len()..];
        }
        assert!(rest.is_empty());
        assert_eq!(kinds, [SECTION_HEADER, INTERFACE_DESCRIPTION, ENHANCED_PACKET, INTERFACE_STATISTICS]);
    }

    #[test]
    fn block_that_is_not_whole_is_waited_for_and_what_is_none_is_refused() {
        let mut file = Vec::new();
        begin(&mut file, "x");
        assert!((0..file.len()).all(|len| first_block(&file[..len]) == Ok(None)));
        for len in [0, 8, 13, LONGEST_BLOCK as u32 + 4] {
            let bytes = [6u32.to_le_bytes(), len.to_le_bytes()].concat();
            assert_eq!(first_block(&bytes), Err(NoBlock), "{len}");
        }
        let bytes = [6u32.to_le_bytes(), (LONGEST_BLOCK as u32).to_le_bytes()].concat();
        assert_eq!(first_block(&bytes), Ok(None));
    }
}
