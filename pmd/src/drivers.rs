//! The drivers, one file each.

// Any number of devices joined by a learning bridge.
pub mod bridge;
// What joined devices have in common.
mod joined;
// Two devices joined.
pub mod link;
// A network device whose wire is a loop.
pub mod sim_net;
