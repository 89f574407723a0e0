//! Requests of a block device, and what it says of them (virtio 1.3 §5.2.6).

use super::config::SECTOR;

/// What a device is asked to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    /// Read sectors.
    Read,
    /// Write sectors.
    Write,
    /// Make what was completed before durable.
    Flush,
    /// Say its name.
    GetId,
    /// Forget sectors.
    Discard,
    /// Write zeroes to sectors.
    WriteZeroes {
        /// The device may also forget them, if they then read as zeroes.
        unmap: bool,
    },
    /// A type by its number, with data that the device reads.
    Other(u32),
}

impl Operation {
    /// `type` in a request's header.
    pub fn number(self) -> u32 {
        match self {
            Operation::Read => 0,
            Operation::Write => 1,
            Operation::Flush => 4,
            Operation::GetId => 8,
            Operation::Discard => 11,
            Operation::WriteZeroes { .. } => 13,
            Operation::Other(number) => number,
        }
    }

    /// The device writes the request's data.
    pub fn is_to_guest(self) -> bool {
        matches!(self, Operation::Read | Operation::GetId)
    }
}

/// One request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// What to do.
    pub operation: Operation,
    /// From which sector on.
    pub sector: u64,
    /// With how many bytes of the device.
    pub bytes: u32,
}

impl Request {
    /// Reads.
    pub fn read(sector: u64, bytes: u32) -> Request {
        Request { operation: Operation::Read, sector, bytes }
    }

    /// Writes.
    pub fn write(sector: u64, bytes: u32) -> Request {
        Request { operation: Operation::Write, sector, bytes }
    }

    /// A flush.
    pub const FLUSH: Request = Request { operation: Operation::Flush, sector: 0, bytes: 0 };

    /// Asks for the name.
    pub const GET_ID: Request = Request { operation: Operation::GetId, sector: 0, bytes: ID_BYTES };

    /// Bytes of data that go with it.
    pub(crate) fn data_bytes(&self) -> u32 {
        match self.operation {
            Operation::Read | Operation::Write | Operation::GetId | Operation::Other(_) => self.bytes,
            Operation::Flush => 0,
            Operation::Discard | Operation::WriteZeroes { .. } => RANGE_BYTES,
        }
    }

    /// Its header: type, a reserved word, sector.
    pub(crate) fn header(&self) -> [u64; 2] {
        let sector = match self.operation {
            Operation::Read | Operation::Write | Operation::Other(_) => self.sector,
            _ => 0,
        };
        [self.operation.number().into(), sector]
    }

    /// The range that a DISCARD or WRITE_ZEROES has for data.
    pub(crate) fn range(&self) -> Option<[u64; 2]> {
        let flags = match self.operation {
            Operation::Discard => 0,
            Operation::WriteZeroes { unmap } => u64::from(unmap),
            _ => return None,
        };
        Some([self.sector, (u64::from(self.bytes) / SECTOR) | (flags << 32)])
    }
}

/// What a device says of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Status {
    /// Done.
    Ok,
    /// It failed.
    IoError,
    /// The device does not do that.
    Unsupported,
    /// None that the specification has, or none at all.
    Wrong(u8),
}

impl From<u8> for Status {
    fn from(byte: u8) -> Status {
        match byte {
            0 => Status::Ok,
            1 => Status::IoError,
            2 => Status::Unsupported,
            other => Status::Wrong(other),
        }
    }
}

/// Bytes of a header.
pub(crate) const HEADER_BYTES: u32 = 16;

/// Bytes of a range of DISCARD and WRITE_ZEROES.
const RANGE_BYTES: u32 = 16;

/// Bytes of a device's name.
pub const ID_BYTES: u32 = 20;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_count_sectors_and_say_whether_to_unmap() {
        let zeroes = |unmap| Request { operation: Operation::WriteZeroes { unmap }, sector: 9, bytes: 4096 };
        assert_eq!(zeroes(true).range(), Some([9, 8 | 1 << 32]));
        assert_eq!(zeroes(false).range(), Some([9, 8]));
        assert_eq!((zeroes(true).header(), zeroes(true).data_bytes()), ([13, 0], 16));
        assert_eq!(Request::read(9, 512).range(), None);
        assert_eq!(Request::write(9, 512).header(), [1, 9]);
        assert_eq!(Request::FLUSH.data_bytes(), 0);
    }
}
