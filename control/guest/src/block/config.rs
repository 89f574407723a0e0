//! The configuration space of a block device, as a driver reads it (virtio 1.3 §5.2.4).

use ringway_ring::features::Features;

/// What the configuration space says. A field that belongs to a feature which is not offered is 0.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct BlockConfig {
    /// Sectors of 512 bytes.
    pub capacity: u64,
    /// Data segments in a request at most.
    pub seg_max: u32,
    /// Bytes in a logical block.
    pub blk_size: u32,
    /// 1: completed writes may be in a cache until they are flushed.
    pub writeback: u8,
    /// Virtqueues.
    pub num_queues: u16,
    /// Sectors that one range of a DISCARD has at most.
    pub max_discard_sectors: u32,
    /// Ranges of a DISCARD at most.
    pub max_discard_seg: u32,
    /// What a discard is aligned to, in sectors.
    pub discard_sector_alignment: u32,
    /// Sectors that one range of a WRITE_ZEROES has at most.
    pub max_write_zeroes_sectors: u32,
    /// Ranges of a WRITE_ZEROES at most.
    pub max_write_zeroes_seg: u32,
}

impl BlockConfig {
    /// Bytes that are asked for: up to the fields of WRITE_ZEROES, as Linux's and others' front-ends do.
    pub const BYTES: u32 = 60;

    /// Where the byte is by which a driver switches the cache of writes on and off.
    pub const WRITEBACK_AT: u32 = 32;

    /// Reads what a device that offers `features` answered.
    pub fn read(bytes: &[u8], features: Features) -> BlockConfig {
        let field = |at: usize, len: usize, of: Features| {
            let mut word = [0; 8];
            if let Some(field) = bytes.get(at..at + len).filter(|_| features.contains(of)) {
                word[..len].copy_from_slice(field);
            }
            u64::from_le_bytes(word)
        };
        BlockConfig {
            capacity: field(0, 8, Features::NONE),
            seg_max: field(12, 4, F_SEG_MAX) as u32,
            blk_size: field(20, 4, F_BLK_SIZE) as u32,
            writeback: field(BlockConfig::WRITEBACK_AT as usize, 1, F_CONFIG_WCE) as u8,
            num_queues: field(34, 2, F_MQ) as u16,
            max_discard_sectors: field(36, 4, F_DISCARD) as u32,
            max_discard_seg: field(40, 4, F_DISCARD) as u32,
            discard_sector_alignment: field(44, 4, F_DISCARD) as u32,
            max_write_zeroes_sectors: field(48, 4, F_WRITE_ZEROES) as u32,
            max_write_zeroes_seg: field(52, 4, F_WRITE_ZEROES) as u32,
        }
    }

    /// Bytes of the device.
    pub fn bytes(&self) -> u64 {
        self.capacity.saturating_mul(SECTOR)
    }

    /// Bytes in a logical block.
    pub fn block_bytes(&self) -> u64 {
        u64::from(self.blk_size).max(SECTOR)
    }
}

/// Bytes in a sector, which is what requests count in.
pub const SECTOR: u64 = 512;

/// `VIRTIO_BLK_F_SEG_MAX` (virtio 1.3 §5.2.3).
pub const F_SEG_MAX: Features = Features(1 << 2);
/// `VIRTIO_BLK_F_RO`.
pub const F_RO: Features = Features(1 << 5);
/// `VIRTIO_BLK_F_BLK_SIZE`.
pub const F_BLK_SIZE: Features = Features(1 << 6);
/// `VIRTIO_BLK_F_FLUSH`.
pub const F_FLUSH: Features = Features(1 << 9);
/// `VIRTIO_BLK_F_TOPOLOGY`.
pub const F_TOPOLOGY: Features = Features(1 << 10);
/// `VIRTIO_BLK_F_CONFIG_WCE`.
pub const F_CONFIG_WCE: Features = Features(1 << 11);
/// `VIRTIO_BLK_F_MQ`.
pub const F_MQ: Features = Features(1 << 12);
/// `VIRTIO_BLK_F_DISCARD`.
pub const F_DISCARD: Features = Features(1 << 13);
/// `VIRTIO_BLK_F_WRITE_ZEROES`.
pub const F_WRITE_ZEROES: Features = Features(1 << 14);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_of_features_that_are_not_offered_are_nothing() {
        let mut bytes = vec![0xff; 60];
        bytes[..8].copy_from_slice(&2048u64.to_le_bytes());
        bytes[34..36].copy_from_slice(&4u16.to_le_bytes());
        let config = BlockConfig::read(&bytes, F_MQ);
        assert_eq!(config, BlockConfig { capacity: 2048, num_queues: 4, ..BlockConfig::default() });
        assert_eq!((config.bytes(), config.block_bytes()), (1 << 20, 512));
    }

    #[test]
    fn what_was_not_answered_is_nothing() {
        let config = BlockConfig::read(&[1, 0, 0, 0, 0, 0, 0, 0, 9, 9], Features(u64::MAX));
        assert_eq!(config, BlockConfig { capacity: 1, ..BlockConfig::default() });
    }
}
