//! The drivers: one file or folder each.

// A network device whose wire is a loop.
pub mod sim_net;
