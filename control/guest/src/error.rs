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
