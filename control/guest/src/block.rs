//! A guest's block port, as load and as a check: a vhost-user-blk front-end with memory, rings and buffers of its own, which
//! knows what each block of the device must hold.
//!
//! ```text
//!   Port          connection, memory, configuration space; connects again to a successor
//!    └ Queue      one virtqueue: requests in, statuses out, of any kind and shape
//!       └ Lane    the load on it: which requests, stamped and checked, by a ledger of every block's generations
//! ```

// The device's configuration space.
pub mod config;
// Which requests, and what came of them.
pub mod lane;
// What every block must hold.
pub mod ledger;
// What a port shall be like.
pub mod options;
// A port: its connection, its memory and its queues.
pub mod port;
// One virtqueue.
pub mod queue;
// Requests and their statuses.
pub mod request;
// What is written to blocks, and read from them.
pub mod stamp;

// Where things are in a port's memory.
mod plan;

pub use config::BlockConfig;
pub use lane::Lane;
pub use options::BlockOptions;
pub use port::Port;
pub use queue::Queue;
pub use request::{Operation, Request, Status};
