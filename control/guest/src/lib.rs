//! A guest's port, as load and as a check: a vhost-user front-end with memory, rings and buffers of its own. A network
//! port makes, sends, receives and checks Ethernet frames, and accounts for every one; a block port reads and writes
//! blocks, and knows what each must hold.
//!
//! It stands in for a VM's NIC or disk in `ringway demo`, in tests and in the benchmark suite, and goes through a device's
//! real socket and real rings; it knows nothing of what is behind the socket.
#![forbid(unsafe_code)]

// One queue pair whose frames nobody touches.
mod bare;
// A block port.
pub mod block;
// Why a guest could not start or go on.
pub mod error;
// The frames that it makes, and how they are told apart.
pub mod frame;
// A guest: its front-end, its memory and its queue pairs.
pub mod guest;
// One queue pair and its traffic.
pub mod lane;
// What became of the frames of one flow.
pub mod ledger;
// Load over a span of time.
pub mod load;
// What a guest shall be like.
pub mod options;
// When the frames of an open loop are due.
pub mod pace;
// When the thread that drives a guest was off its core.
pub mod presence;

// Where things are in a guest's memory.
mod plan;
// Rings whose buffers stand where they are.
mod standing;

pub use error::GuestError;
pub use guest::Guest;
pub use options::GuestOptions;
