//! What a controller and its namespaces say they are. Read once, checked, and used as read.

use super::command::Status;
use super::data::{MOST_BYTES, Scatter};
use super::{NvmeFault, PAGE};

/// The answer to a question of identity.
pub(super) type Answer = [u8; PAGE as usize];

/// A controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ControllerInfo {
    /// Its serial number.
    pub serial: String,
    /// What it is.
    pub model: String,
    /// Its firmware.
    pub firmware: String,
    /// Its number in its subsystem.
    pub id: u16,
    /// Bytes of one command's data.
    pub most_bytes: u64,
    /// Scatter-gather lists that it takes.
    pub scatter: Scatter,
    /// It has a write cache that may lose what was not flushed.
    pub has_cache: bool,
    /// Deallocation.
    pub can_deallocate: bool,
    /// Writing zeros.
    pub can_zero: bool,
    /// It tells of namespaces that changed.
    pub tells_changes: bool,
    /// Numbers of namespaces go up to this.
    pub namespaces: u32,
}

impl ControllerInfo {
    pub(super) fn parse(answer: &Answer) -> Result<ControllerInfo, NvmeFault> {
        let sizes = (answer[512], answer[513]);
        let takes = |size: u8, own: u8| (size & 0xf..=size >> 4).contains(&own);
        if !takes(sizes.0, 6) || !takes(sizes.1, 4) {
            let why = format!(
                "its queues' entries have sizes {:#04x} and {:#04x}, not 64 and 16",
                sizes.0, sizes.1
            );
            return Err(NvmeFault::NotOne(why));
        }
        let most = match answer[77] {
            0 => MOST_BYTES,
            log => PAGE.checked_shl(log.into()).filter(|most| most >> log == PAGE).unwrap_or(MOST_BYTES),
        };
        let (oncs, lists) = (word(answer, 520), dword(answer, 536));
        Ok(ControllerInfo {
            serial: text(answer, 4..24),
            model: text(answer, 24..64),
            firmware: text(answer, 64..72),
            id: word(answer, 78) as u16,
            most_bytes: most.min(MOST_BYTES),
            scatter: match lists & 3 {
                1 => Scatter::Bytes,
                2 => Scatter::Dwords,
                _ => Scatter::No,
            },
            has_cache: answer[525] & 1 != 0,
            can_deallocate: oncs & 1 << 2 != 0,
            can_zero: oncs & 1 << 3 != 0,
            tells_changes: dword(answer, 92) & 1 << 8 != 0,
            namespaces: dword(answer, 516),
        })
    }
}

/// What a controller can do at most of some commands: in blocks and ranges.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one command that writes zeros. None: as many as it can name.
    pub most_zeroed: Option<u64>,
    /// Ranges of one deallocation.
    pub most_ranges: Option<u8>,
    /// Blocks of one range.
    pub most_in_range: Option<u32>,
}

impl Limits {
    /// Such a controller has none, or has no such answer.
    pub(super) const NONE: Limits = Limits { most_zeroed: None, most_ranges: None, most_in_range: None };

    pub(super) fn parse(answer: &Answer) -> Limits {
        let some = |log: u8| (1..32).contains(&log).then(|| PAGE << log);
        Limits {
            most_zeroed: some(answer[1]),
            most_ranges: Some(answer[3]).filter(|most| *most > 0),
            most_in_range: Some(dword(answer, 4)).filter(|most| *most > 0),
        }
    }
}

/// A namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NamespaceInfo {
    /// Its number.
    pub id: u32,
    /// Its blocks.
    pub blocks: u64,
    /// Bytes of a block, as a power of two: 9 to 16.
    pub block_log: u8,
    /// It cannot be written.
    pub is_read_only: bool,
    /// What was deallocated reads as zeros.
    pub reads_zeros: bool,
    /// Blocks that deallocation is best a multiple of.
    pub deallocated_together: u32,
    /// Blocks that a write is best a multiple of.
    pub written_together: u32,
}

impl NamespaceInfo {
    /// Bytes of a block.
    pub fn block(&self) -> u64 {
        1 << self.block_log
    }

    /// Bytes of it.
    pub fn bytes(&self) -> u64 {
        self.blocks << self.block_log
    }

    pub(super) fn parse(id: u32, answer: &Answer) -> Result<NamespaceInfo, NvmeFault> {
        let unfit = |why: String| NvmeFault::NotOne(format!("its namespace {id} {why}"));
        let blocks = quad(answer, 0);
        if blocks == 0 {
            return Err(unfit("is not there".to_owned()));
        }
        let (features, format) = (answer[24], answer[26]);
        // Bits 6 and 5 are of more than 16 formats.
        let format = usize::from(format & 0xf | (format & 0x60) >> 1);
        let format = dword(answer, 128 + 4 * format.min(63));
        let (metadata, block_log) = (format & 0xffff, (format >> 16) as u8);
        if !(9..=16).contains(&block_log) {
            return Err(unfit(format!(
                "has blocks of 2 to the {block_log} bytes: 512 to 65536 can be driven"
            )));
        }
        if metadata != 0 {
            return Err(unfit(format!(
                "has {metadata} bytes of metadata a block: format it without (nvme format --lbaf)"
            )));
        }
        if blocks > (u64::MAX >> 1) >> block_log {
            return Err(NvmeFault::Lied(format!(
                "its namespace {id} has {blocks} blocks of 2 to the {block_log} bytes"
            )));
        }
        let optimal = features & 1 << 4 != 0;
        let together = |at: usize| if optimal { word(answer, at) + 1 } else { 1 };
        Ok(NamespaceInfo {
            id,
            blocks,
            block_log,
            is_read_only: answer[99] & 1 != 0,
            reads_zeros: answer[33] & 7 == 1,
            deallocated_together: together(68),
            written_together: together(64),
        })
    }
}

/// The numbers in a list of namespaces, and whether there may be more: sorted, none twice.
///
/// # Errors
/// It is no such list.
pub(super) fn active(answer: &Answer, above: u32) -> Result<(Vec<u32>, bool), NvmeFault> {
    let (mut ids, mut last) = (Vec::new(), above);
    for at in (0..answer.len()).step_by(4) {
        let id = dword(answer, at);
        if id == 0 {
            return Ok((ids, false));
        }
        if id <= last || id == u32::MAX {
            return Err(NvmeFault::Lied(format!("its list of namespaces has {id} behind {last}")));
        }
        ids.push(id);
        last = id;
    }
    Ok((ids, true))
}

/// Text that is padded with blanks; what is no printable ASCII is a question mark.
fn text(answer: &Answer, range: std::ops::Range<usize>) -> String {
    let bytes = answer.get(range).unwrap_or_default();
    let printable = |byte: &u8| if matches!(byte, 0x20..=0x7e) { char::from(*byte) } else { '?' };
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.iter().take(end).map(printable).collect::<String>().trim().to_owned()
}

fn word(answer: &Answer, at: usize) -> u32 {
    answer.get(at..at + 2).and_then(|bytes| bytes.try_into().ok()).map_or(0, u16::from_le_bytes).into()
}

fn dword(answer: &Answer, at: usize) -> u32 {
    answer.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map_or(0, u32::from_le_bytes)
}

fn quad(answer: &Answer, at: usize) -> u64 {
    answer.get(at..at + 8).and_then(|bytes| bytes.try_into().ok()).map_or(0, u64::from_le_bytes)
}

/// That a command was refused.
pub(super) fn refused(what: &'static str, status: Status) -> NvmeFault {
    NvmeFault::Refused { what, status }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn namespace(change: impl FnOnce(&mut Answer)) -> Result<NamespaceInfo, NvmeFault> {
        let mut answer = [0; PAGE as usize];
        answer[..8].copy_from_slice(&131072u64.to_le_bytes());
        answer[24] = 1 << 4;
        answer[68] = 7;
        answer[130] = 9;
        answer[134] = 12;
        change(&mut answer);
        NamespaceInfo::parse(1, &answer)
    }

    #[test]
    fn namespaces_that_cannot_be_driven_are_told_of() {
        let info = namespace(|_| ()).unwrap();
        assert_eq!((info.bytes(), info.block(), info.deallocated_together), (64 << 20, 512, 8));
        assert_eq!(namespace(|answer| answer[26] = 1).unwrap().block(), 4096);
        let refusal = |change: fn(&mut Answer)| namespace(change).unwrap_err().to_string();
        assert!(refusal(|answer| answer[..8].fill(0)).contains("is not there"));
        assert!(refusal(|answer| answer[130] = 8).contains("blocks of 2 to the 8 bytes"));
        assert!(refusal(|answer| answer[128] = 8).contains("8 bytes of metadata"));
        assert!(refusal(|answer| answer[..8].fill(0x7f)).contains("cannot be"));
    }

    #[test]
    fn lists_of_namespaces_are_sorted_or_refused() {
        let list = |ids: &[u32]| {
            let mut answer = [0; PAGE as usize];
            for (at, id) in ids.iter().enumerate() {
                answer[at * 4..at * 4 + 4].copy_from_slice(&id.to_le_bytes());
            }
            active(&answer, 0)
        };
        assert_eq!(list(&[1, 5]), Ok((vec![1, 5], false)));
        assert_eq!(list(&[]), Ok((vec![], false)));
        assert!(list(&(1..=1024).collect::<Vec<_>>()).unwrap().1);
        assert!(matches!(list(&[5, 1]), Err(NvmeFault::Lied(_))));
        assert!(matches!(list(&[1, 1]), Err(NvmeFault::Lied(_))));
    }
}
