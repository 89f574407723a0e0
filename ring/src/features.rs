//! Virtio feature bits of the transport (virtio 1.3 §6), which are the same for every device type.

use std::fmt;
use std::ops::{BitAnd, BitOr, BitOrAssign, Not};

/// A set of virtio feature bits, offered or negotiated.
#[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Features(pub u64);

impl Features {
    /// No features.
    pub const NONE: Features = Features(0);
    /// `VIRTIO_F_NOTIFY_ON_EMPTY` (legacy).
    pub const NOTIFY_ON_EMPTY: Features = Features(1 << 24);
    /// `VIRTIO_F_ANY_LAYOUT` (legacy).
    pub const ANY_LAYOUT: Features = Features(1 << 27);
    /// `VHOST_F_LOG_ALL`: vhost's own.
    pub const LOG_ALL: Features = Features(1 << 26);
    /// `VHOST_USER_F_PROTOCOL_FEATURES`: vhost-user's own.
    pub const PROTOCOL_FEATURES: Features = Features(1 << 30);
    /// `VIRTIO_F_INDIRECT_DESC`.
    pub const INDIRECT_DESC: Features = Features(1 << 28);
    /// `VIRTIO_F_EVENT_IDX`.
    pub const EVENT_IDX: Features = Features(1 << 29);
    /// `VIRTIO_F_VERSION_1`.
    pub const VERSION_1: Features = Features(1 << 32);
    /// `VIRTIO_F_ACCESS_PLATFORM`.
    pub const ACCESS_PLATFORM: Features = Features(1 << 33);
    /// `VIRTIO_F_RING_PACKED`.
    pub const RING_PACKED: Features = Features(1 << 34);
    /// `VIRTIO_F_IN_ORDER`.
    pub const IN_ORDER: Features = Features(1 << 35);
    /// `VIRTIO_F_NOTIFICATION_DATA`.
    pub const NOTIFICATION_DATA: Features = Features(1 << 38);
    /// `VIRTIO_F_RING_RESET`.
    pub const RING_RESET: Features = Features(1 << 40);

    /// True if every bit of `other` is set.
    #[inline]
    pub const fn contains(self, other: Features) -> bool {
        self.0 & other.0 == other.0
    }

    /// These bits without those of `other`.
    #[inline]
    #[must_use]
    pub const fn without(self, other: Features) -> Features {
        Features(self.0 & !other.0)
    }

    /// The numbers of the bits that are set, ascending.
    pub fn bits(self) -> impl Iterator<Item = u32> {
        (0..64).filter(move |bit| self.0 & (1 << bit) != 0)
    }
}

impl BitOr for Features {
    type Output = Features;
    fn bitor(self, other: Features) -> Features {
        Features(self.0 | other.0)
    }
}

impl BitOrAssign for Features {
    fn bitor_assign(&mut self, other: Features) {
        self.0 |= other.0;
    }
}

impl BitAnd for Features {
    type Output = Features;
    fn bitand(self, other: Features) -> Features {
        Features(self.0 & other.0)
    }
}

impl Not for Features {
    type Output = Features;
    fn not(self) -> Features {
        Features(!self.0)
    }
}

impl fmt::Debug for Features {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Features({:#x})", self.0)
    }
}
