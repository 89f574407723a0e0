//! Commands as a controller reads them, and the status with which it ends each.

use std::fmt;

/// A command without its identifier and its data: eight little-endian words of 64 bits, as they lie in a submission queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Command(pub(super) [u64; 8]);

impl Command {
    fn new(opcode: u8, namespace: u32) -> Command {
        Command([u64::from(opcode) | u64::from(namespace) << 32, 0, 0, 0, 0, 0, 0, 0])
    }

    /// With dwords 10 and 11.
    fn with(mut self, dword_10: u32, dword_11: u32) -> Command {
        self.0[5] = u64::from(dword_10) | u64::from(dword_11) << 32;
        self
    }

    /// With dword 12.
    fn and(mut self, dword_12: u32) -> Command {
        self.0[6] = dword_12.into();
        self
    }

    /// With its data in one page or two, which the caller keeps.
    pub(super) fn at(mut self, first: u64, second: u64) -> Command {
        (self.0[3], self.0[4]) = (first, second);
        self
    }

    /// As it is submitted. `is_sgl`: its data are described by a scatter-gather list.
    pub(super) fn words(mut self, id: u16, is_sgl: bool) -> [u64; 8] {
        self.0[0] |= u64::from(id) << 16 | if is_sgl { SGL } else { 0 };
        self.0
    }

    /// Says who somebody is: 4096 bytes. `what`: see [`CONTROLLER`] and the like.
    pub fn identify(what: u8, namespace: u32) -> Command {
        Command::new(0x06, namespace).with(what.into(), 0)
    }

    /// Asks for so many queues of either kind.
    pub fn set_queues(count: u16) -> Command {
        let count = u32::from(count.saturating_sub(1));
        Command::new(0x09, 0).with(NUMBER_OF_QUEUES, count << 16 | count)
    }

    /// Whether its write cache is on.
    pub fn write_cache() -> Command {
        Command::new(0x0a, 0).with(WRITE_CACHE, 0)
    }

    /// Turns its write cache on or off.
    pub fn set_write_cache(is_on: bool) -> Command {
        Command::new(0x09, 0).with(WRITE_CACHE, is_on.into())
    }

    /// A completion queue. `vector`: it interrupts by that one.
    pub(super) fn create_completions(id: u16, size: u16, at: u64, vector: Option<u16>) -> Command {
        let interrupt = vector.map_or(0, |vector| 2 | u32::from(vector) << 16);
        Command::new(0x05, 0).with(u32::from(id) | u32::from(size - 1) << 16, 1 | interrupt).at(at, 0)
    }

    /// A submission queue, whose commands complete in the completion queue of the same number.
    pub(super) fn create_submissions(id: u16, size: u16, at: u64) -> Command {
        let (first, second) = (u32::from(id) | u32::from(size - 1) << 16, 1 | u32::from(id) << 16);
        Command::new(0x01, 0).with(first, second).at(at, 0)
    }

    /// That submission queue goes, and what is outstanding on it ends.
    pub(super) fn delete_submissions(id: u16) -> Command {
        Command::new(0x00, 0).with(id.into(), 0)
    }

    /// That completion queue goes.
    pub(super) fn delete_completions(id: u16) -> Command {
        Command::new(0x04, 0).with(id.into(), 0)
    }

    /// A command that is outstanding is to end.
    pub(super) fn abort(queue: u16, id: u16) -> Command {
        Command::new(0x08, 0).with(u32::from(queue) | u32::from(id) << 16, 0)
    }

    /// Ends once something happened.
    pub(super) fn event() -> Command {
        Command::new(0x0c, 0)
    }

    /// The first bytes of a log: a multiple of 4. That it was read lets its event happen again.
    pub(super) fn log(page: u8, bytes: u32) -> Command {
        Command::new(0x02, u32::MAX).with(u32::from(page) | (bytes / 4).saturating_sub(1) << 16, 0)
    }

    /// Reads so many blocks, 1 to 65536, from one on.
    #[inline]
    pub fn read(namespace: u32, first: u64, blocks: u32) -> Command {
        Command::blocks(0x02, namespace, first, blocks)
    }

    /// Writes likewise.
    #[inline]
    pub fn write(namespace: u32, first: u64, blocks: u32) -> Command {
        Command::blocks(0x01, namespace, first, blocks)
    }

    /// Has blocks read as zeros, likewise. `may_deallocate`: their storage may go.
    #[inline]
    pub fn write_zeroes(namespace: u32, first: u64, blocks: u32, may_deallocate: bool) -> Command {
        let mut command = Command::blocks(0x08, namespace, first, blocks);
        command.0[6] |= u64::from(may_deallocate) << 25;
        command
    }

    #[inline]
    fn blocks(opcode: u8, namespace: u32, first: u64, blocks: u32) -> Command {
        let mut command = Command::new(opcode, namespace);
        (command.0[5], command.0[6]) = (first, u64::from(blocks.saturating_sub(1) & 0xffff));
        command
    }

    /// What was written before, and has completed, is to last.
    #[inline]
    pub fn flush(namespace: u32) -> Command {
        Command::new(0x00, namespace)
    }

    /// So many ranges, 1 to [`MOST_RANGES`], are not needed any more; they are its data.
    #[inline]
    pub fn deallocate(namespace: u32, ranges: u16) -> Command {
        Command::new(0x09, namespace).with(u32::from(ranges.saturating_sub(1)) & 0xff, 1 << 2).and(0)
    }
}

/// Blocks that are not needed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// The first.
    pub first: u64,
    /// How many.
    pub blocks: u32,
}

impl Range {
    /// As it lies in memory.
    pub(super) fn words(self) -> [u64; 2] {
        [u64::from(self.blocks) << 32, self.first]
    }
}

/// How a command ended: status code type and code, and whether it is of use to try again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Status(u16);

impl Status {
    /// By the upper half of a completion's last dword, without the phase.
    pub(super) fn new(bits: u16) -> Status {
        Status(bits)
    }

    /// It did what it was to do.
    pub fn is_ok(self) -> bool {
        self.code() == 0
    }

    /// Type in bits 10 to 8, code below.
    pub fn code(self) -> u16 {
        self.0 & 0x7ff
    }

    /// It would end so again.
    pub fn is_final(self) -> bool {
        self.0 & 1 << 14 != 0
    }

    /// The controller does not know such a command.
    pub fn is_unknown(self) -> bool {
        self.code() == 0x001
    }

    /// What it means, where that is known.
    fn meaning(self) -> &'static str {
        let code = self.code();
        MEANINGS.iter().find(|(known, _)| *known == code).map_or("", |(_, meaning)| meaning)
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.meaning() {
            "" => write!(f, "status {:#05x}", self.code()),
            meaning => write!(f, "{meaning} (status {:#05x})", self.code()),
        }
    }
}

const MEANINGS: [(u16, &str); 24] = [
    (0x000, "success"),
    (0x001, "invalid opcode"),
    (0x002, "invalid field"),
    (0x004, "data transfer error"),
    (0x006, "internal error"),
    (0x007, "aborted by request"),
    (0x008, "aborted, its queue was deleted"),
    (0x00b, "invalid namespace"),
    (0x00c, "command sequence error"),
    (0x00f, "wrong length of a scatter-gather list"),
    (0x013, "wrong offset of a page"),
    (0x020, "namespace is write protected"),
    (0x080, "block out of range"),
    (0x081, "capacity exceeded"),
    (0x082, "namespace not ready"),
    (0x084, "format in progress"),
    (0x100, "no such completion queue"),
    (0x101, "no such queue number"),
    (0x102, "queue size not possible"),
    (0x108, "no such interrupt vector"),
    (0x10c, "order of queue deletion"),
    (0x280, "write fault"),
    (0x281, "unrecovered read error"),
    (0x286, "access denied"),
];

/// [`Command::identify`]: a namespace.
pub const NAMESPACE: u8 = 0;
/// The controller.
pub const CONTROLLER: u8 = 1;
/// The namespaces that are attached to it, above the number that is asked with.
pub const ACTIVE: u8 = 2;
/// What the controller can do at most with the NVM command set.
pub const NVM_LIMITS: u8 = 6;

/// Ranges of one deallocation.
pub const MOST_RANGES: usize = 256;
/// Blocks of one command.
pub const MOST_BLOCKS: u32 = 1 << 16;

const SGL: u64 = 1 << 14;

const WRITE_CACHE: u32 = 0x06;
const NUMBER_OF_QUEUES: u32 = 0x07;

#[cfg(test)]
mod tests {
    use super::*;

    fn dwords(command: Command, id: u16, is_sgl: bool) -> Vec<u32> {
        command.words(id, is_sgl).iter().flat_map(|word| [*word as u32, (*word >> 32) as u32]).collect()
    }

    #[test]
    fn commands_are_what_a_controller_reads() {
        let read = dwords(Command::read(7, 0x1_2345_6789, 0x1_0000).at(0x1000, 0x2000), 0xabcd, true);
        assert_eq!(&read[..4], [0xabcd_4002, 7, 0, 0]);
        assert_eq!(&read[6..14], [0x1000, 0, 0x2000, 0, 0x2345_6789, 1, 0xffff, 0]);
        let zeroes = dwords(Command::write_zeroes(1, 8, 1, true), 1, false);
        assert_eq!((zeroes[0], zeroes[10], zeroes[12]), (0x1_0008, 8, 1 << 25));
        let deallocate = dwords(Command::deallocate(1, 256), 0, false);
        assert_eq!((deallocate[0], deallocate[10], deallocate[11]), (9, 255, 4));
        assert_eq!(Range { first: 5, blocks: 9 }.words(), [9 << 32, 5]);
        let create = dwords(Command::create_completions(3, 64, 0x4000, Some(2)), 0, false);
        assert_eq!((create[0], create[6], create[10], create[11]), (5, 0x4000, 63 << 16 | 3, 2 << 16 | 3));
        let create = dwords(Command::create_submissions(3, 64, 0x4000), 0, false);
        assert_eq!((create[0], create[10], create[11]), (1, 63 << 16 | 3, 3 << 16 | 1));
        let queues = dwords(Command::set_queues(4), 0, false);
        assert_eq!((queues[0], queues[10], queues[11]), (9, 7, 3 << 16 | 3));
        assert_eq!(dwords(Command::log(4, 4096), 0, false)[10], 1023 << 16 | 4);
        assert_eq!(dwords(Command::abort(2, 0x55), 0, false)[10], 0x55 << 16 | 2);
    }

    #[test]
    fn status_is_told_with_what_it_means() {
        let status = Status::new(0x4000 | 0x080);
        assert!(!status.is_ok() && status.is_final());
        assert_eq!(status.to_string(), "block out of range (status 0x080)");
        assert_eq!(Status::new(0x3ff).to_string(), "status 0x3ff");
    }
}
