//! Buses and hardware drivers: what stands behind a virtio device.
//!
//! A [`bus`] announces devices, a [`driver`] takes one over and registers a [`vdpa::ManagementDevice`]; that makes
//! [`vdpa::VdpaDevice`]s, whose queues the subsystem has served. No operator, no socket to a VMM lives here.

// What block devices have in common: requests, queues, what they go to.
pub mod block;
// Access to hardware.
pub mod bus;
// Counters of queues, written by one thread and read by any.
pub mod counters;
// How devices reach a guest's memory.
pub mod dma;
// Who drives what a bus announces.
pub mod driver;
// The drivers.
pub mod drivers;
// A virtual function of an Intel 82576 that is driven from here.
pub mod igb;
// Work that may wait, for threads that may not.
pub mod later;
// How much may pass in a second.
pub mod limit;
// What network devices have in common: features, configuration, headers.
pub mod net;
// Ends a worker's write to a peer that blocks.
pub mod interrupt;
// Kick, call and error descriptors of a queue.
pub mod notify;
// An NVMe controller that is driven from here.
pub mod nvme;
// What a driver must offer, and what it is given.
pub mod vdpa;
// A virtio function that is driven from here.
pub mod virtio;
// Memory that the kernel works on.
mod uring;
