//! A kernel TAP netdev (Linux, `Documentation/networking/tuntap.rst`): its opening, and its two directions, each by an
//! io_uring of its own.
//!
//! ```text
//!   kernel --> [ netdev ] --read, batches--> TapReader: frames in buffers of ours
//!   kernel <-- [ netdev ] <-writev, batches- TapWriter: straight from guest memory
//! ```
//!
//! Every frame is behind a `struct virtio_net_hdr_mrg_rxbuf` of 12 bytes, so that offloads pass. Opening belongs to control
//! and sessions; a reader and a writer belong to the pump that has them.

// What the kernel says of an interface.
mod link;
// Opening, making and removing the interface.
mod netdev;
// Frames from the kernel.
mod reader;
// A namespace for tests.
#[cfg(test)]
mod scene;
// ioctls.
mod sys;
// Frames to the kernel.
mod writer;

pub use netdev::{TapNetdev, TapSpec, check_ifname, check_namespace, namespace_path};
pub use reader::TapReader;
pub use writer::{TapWriter, Written};

/// The interface is gone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the kernel's interface is gone")]
pub struct Gone;

/// Bytes of the header before each frame, on either side.
pub const HEADER_BYTES: usize = 12;

/// Room for the largest frame, with its header: 64 KiB of IP packet, Ethernet header and tags.
const BUFFER_BYTES: usize = (64 << 10) + 4096;
