//! Configuration space of a block device (virtio 1.3 §5.2.4).

/// Limits of requests that carry ranges: discard, write zeroes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RangeLimits {
    /// Sectors of one range.
    pub max_sectors: u32,
    /// Ranges of one request.
    pub max_ranges: u32,
}

/// What a driver reads of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlockConfig {
    /// Sectors of 512 bytes.
    pub capacity: u64,
    /// Data segments of one request.
    pub seg_max: u32,
    /// Bytes of a logical block.
    pub blk_size: u32,
    /// Logical blocks of a physical one, as a power of two.
    pub physical_block_exp: u8,
    /// Bytes of the best transfers are a multiple of so many logical blocks; 0: not known.
    pub min_io_size: u16,
    /// The best transfers are of so many logical blocks; 0: not known.
    pub opt_io_size: u32,
    /// There is a write cache: what was written lasts once it was flushed.
    pub writeback: bool,
    /// Request queues.
    pub num_queues: u16,
    /// Of discards, if there are any, and the alignment of their ranges in sectors.
    pub discard: Option<(RangeLimits, u32)>,
    /// Of writes of zeroes, if there are any, and whether they may give the space back.
    pub write_zeroes: Option<(RangeLimits, bool)>,
}

impl BlockConfig {
    /// Bytes of it.
    pub const LEN: usize = 60;
    /// Where the one byte is that a driver may write.
    pub const WRITEBACK_AT: usize = 32;

    /// As a driver reads it.
    pub fn to_bytes(&self) -> [u8; BlockConfig::LEN] {
        let mut bytes = [0; BlockConfig::LEN];
        let mut put = |at: usize, field: &[u8]| {
            bytes.iter_mut().skip(at).zip(field).for_each(|(to, from)| *to = *from);
        };
        put(0, &self.capacity.to_le_bytes());
        put(12, &self.seg_max.to_le_bytes());
        put(20, &self.blk_size.to_le_bytes());
        put(24, &[self.physical_block_exp, 0]);
        put(26, &self.min_io_size.to_le_bytes());
        put(28, &self.opt_io_size.to_le_bytes());
        put(BlockConfig::WRITEBACK_AT, &[u8::from(self.writeback)]);
        put(34, &self.num_queues.to_le_bytes());
        if let Some((limits, alignment)) = self.discard {
            put(36, &limits.max_sectors.to_le_bytes());
            put(40, &limits.max_ranges.to_le_bytes());
            put(44, &alignment.to_le_bytes());
        }
        if let Some((limits, may_unmap)) = self.write_zeroes {
            put(48, &limits.max_sectors.to_le_bytes());
            put(52, &limits.max_ranges.to_le_bytes());
            put(56, &[u8::from(may_unmap)]);
        }
        bytes
    }
}
