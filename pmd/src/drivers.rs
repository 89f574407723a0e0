//! The drivers, one file each.

// Any number of devices joined by a learning bridge.
pub mod bridge;
// Files and block devices as disks.
pub mod file;
// What there is for functions of the PCI bus.
pub mod functions;
// The host as a port.
mod host_port;
// Network functions of Intel's IFC cards.
pub mod ifc;
// Virtual functions of an Intel 82576.
pub mod igbvf;
// What joined devices have in common.
mod joined;
// Two devices joined.
pub mod link;
// NVMe controllers on the PCI bus.
pub mod nvme;
// A guest joined with a kernel TAP.
pub mod tap;
// A disk in memory.
pub mod sim_blk;
// A NIC of many functions.
pub mod sim_nic;
// A function of the host's as a bridge's way out.
mod uplink;
// A network device whose wire is a loop.
pub mod sim_net;
// Virtio network functions on the PCI bus.
pub mod virtio_pci;
