//! The two formats of rings.

/// Ring layout.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Split virtqueue (virtio 1.3 §2.7).
    Split,
    /// Packed virtqueue (virtio 1.3 §2.8).
    Packed,
}
