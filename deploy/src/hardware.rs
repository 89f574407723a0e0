//! A machine with hardware behind an IOMMU: emulated, driven by a stock kernel, with Ringway inside.
//!
//! QEMU models an IOMMU (`intel-iommu`), an Intel 82576 with its virtual functions (`igb`), and a virtio network function, or
//! with a newer QEMU one with virtual functions of its own. All hang on one wire, so that Linux on one of them sends what
//! Ringway on another receives. Beside them is an NVMe controller with virtual functions of its own (`nvme`).
//!
//! ```text
//! the guest:  Linux -- igb PF ---+
//!             VFIO --- igb VF ---+-- the wire (QEMU's hub)
//!             VFIO --- virtio ---+
//!             VFIO --- NVMe controller, or virtual functions of Linux's
//!             ringwayd --socket-- testpmd, or a front-end of the lab's own, which answers pings
//! ```
//! [`Machine`] boots it and has a function for each step that an operator takes; each says what it did and how long it took.
//! [`scenarios`] are made of these steps.

mod front;
mod inside;
mod kernel_log;
mod machine;
mod nvme;
mod pci;
pub(crate) mod programs;
pub mod scenarios;

pub use front::{Front, Holdings};
pub use inside::{Answerer, Echoer};
pub use kernel_log::KernelLog;
pub use machine::{Machine, Model};
pub use pci::{IGB, IGB_VFS, NVME, NVME_VFS, VIRTIO, VIRTIO_VFS};
