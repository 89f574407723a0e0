//! What block devices have in common (virtio 1.3 §5.2): feature bits, configuration space, requests, and the pump that serves a
//! queue of them.
//!
//! ```text
//!   guest's ring --peek--> Request, checked --submit--> backing (memory, a file, an NVMe queue pair)
//!   guest's ring <--status, complete-- in any order <--turn-- backing
//! ```
//!
//! A driver brings a [`disk::Disk`]; [`disk::BlockDevice`] makes a whole device of it.

// What a queue's requests go to.
pub mod backing;
// Configuration space.
mod config;
// What block devices have in common as devices.
pub mod disk;
// A file or block device as a backing.
pub mod file;
// Memory as a backing.
pub mod memory;
// What operators ask of a block device, checked.
pub mod plan;
// The pump.
mod queue;
// What a guest asks, checked.
mod request;

use ringway_ring::features::Features;

pub use self::config::{BlockConfig, RangeLimits};
pub use self::plan::Rates;

/// `VIRTIO_BLK_F_SEG_MAX`.
pub const F_SEG_MAX: Features = Features(1 << 2);
/// `VIRTIO_BLK_F_RO`.
pub const F_RO: Features = Features(1 << 5);
/// `VIRTIO_BLK_F_BLK_SIZE`.
pub const F_BLK_SIZE: Features = Features(1 << 6);
/// `VIRTIO_BLK_F_FLUSH`.
pub const F_FLUSH: Features = Features(1 << 9);
/// `VIRTIO_BLK_F_TOPOLOGY`.
pub const F_TOPOLOGY: Features = Features(1 << 10);
/// `VIRTIO_BLK_F_CONFIG_WCE`: the driver may switch the write cache.
pub const F_CONFIG_WCE: Features = Features(1 << 11);
/// `VIRTIO_BLK_F_MQ`.
pub const F_MQ: Features = Features(1 << 12);
/// `VIRTIO_BLK_F_DISCARD`.
pub const F_DISCARD: Features = Features(1 << 13);
/// `VIRTIO_BLK_F_WRITE_ZEROES`.
pub const F_WRITE_ZEROES: Features = Features(1 << 14);

/// What every block device can offer; which of discard, write zeroes and read-only a device does is its disk's.
pub const BLOCK: Features = Features(
    Features::INDIRECT_DESC.0
        | Features::EVENT_IDX.0
        | Features::VERSION_1.0
        | Features::RING_PACKED.0
        | F_SEG_MAX.0
        | F_RO.0
        | F_BLK_SIZE.0
        | F_FLUSH.0
        | F_TOPOLOGY.0
        | F_CONFIG_WCE.0
        | F_MQ.0
        | F_DISCARD.0
        | F_WRITE_ZEROES.0,
);

/// Bytes of a sector, the unit of virtio-blk whatever a disk's block size (virtio 1.3 §5.2.4).
pub const SECTOR: u64 = 512;
