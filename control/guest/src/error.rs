//! Why a guest could not start or go on.

use ringway_ring::guest::MapError;
use ringway_ring::queue::{RingFault, SetupError};
use ringway_vhost_user::frontend::FrontendError;

use crate::frame::{MAX_FRAME, MIN_FRAME};

/// Why a guest could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The back-end.
    #[error(transparent)]
    Frontend(#[from] FrontendError),
    /// Memory of our own.
    #[error("cannot allocate {bytes} bytes of guest memory: {source}")]
    Memory {
        /// Bytes asked for.
        bytes: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// An event descriptor.
    #[error("cannot make an eventfd: {0}")]
    EventFd(std::io::Error),
    /// Its own memory map.
    #[error("guest memory: {0}")]
    Map(#[from] MapError),
    /// A ring's set-up.
    #[error("ring set-up: {0}")]
    Setup(#[from] SetupError),
    /// The device lacks a feature.
    #[error("the device does not offer what the guest needs: feature bits {missing:#x}")]
    Features {
        /// The bits.
        missing: u64,
    },
    /// The device lacks queues.
    #[error("the device has {queues} queue pairs, not {wanted}")]
    Pairs {
        /// What it has.
        queues: u64,
        /// What was asked for.
        wanted: u16,
    },
    /// The device broke the rules of a ring.
    #[error("the device broke the rules of queue {queue}: {fault}")]
    Device {
        /// The queue.
        queue: u16,
        /// How.
        fault: RingFault,
    },
    /// The device lacks virtqueues.
    #[error("the device has {queues} virtqueues, not {wanted}")]
    Queues {
        /// What it has.
        queues: u64,
        /// What was asked for.
        wanted: u16,
    },
    /// More requests than the ring has room for, or none.
    #[error(
        "{depth} requests under way: must be 1 to {most} in a ring of {queue_size} entries, of which a request takes {descriptors}"
    )]
    Depth {
        /// Requests asked for.
        depth: u16,
        /// The most there can be.
        most: u32,
        /// Descriptors that a request takes.
        descriptors: u32,
        /// Entries of the ring.
        queue_size: u16,
    },
    /// A request that cannot be.
    #[error("request of {bytes} bytes: must be 1 to {most}")]
    RequestLen {
        /// Bytes asked for.
        bytes: u32,
        /// The most.
        most: u32,
    },
    /// Load that the device has no room for.
    #[error("{what}")]
    Load {
        /// What does not fit.
        what: String,
    },
    /// Requests that were not completed in time.
    #[error("queue {queue}: {under_way} requests under way, and none was completed for {within:?}")]
    Stalled {
        /// The queue.
        queue: u16,
        /// Requests.
        under_way: usize,
        /// How long it was waited.
        within: std::time::Duration,
    },
    /// An option that cannot be.
    #[error("frame of {0} bytes: must be {MIN_FRAME} to {MAX_FRAME}")]
    FrameLen(u16),
    /// More regions than there are buffers to scatter, or none.
    #[error("{regions} regions: must be 1 to {most}, the number of buffers")]
    Regions {
        /// Regions asked for.
        regions: u16,
        /// The most there can be.
        most: u64,
    },
}
