//! A file or a block device as a disk, through io_uring.
//!
//! ```text
//!   dev add:      [ open, ask, lock ] on a thread that may wait, for a moment
//!   queue starts: its own open file, with the same locks; its own ring
//!   request:      checked operation -> ring -> kernel -> finished: the rest put in again, or told with its error
//! ```
//!
//! Reads and writes go to the kernel from the guest's own memory. The queue of a worker never waits for the file: what the kernel
//! cannot do at once its own threads do.

// Locks as QEMU has them.
pub(in crate::block) mod lock;
// What there is to know of a file.
mod open;
// A queue's part.
mod queue;
// How it does.
mod trouble;
// Whether its size is another.
mod watch;

pub use open::{Cache, Identity, OpenFile, Ours, Wish};
pub use queue::FileQueue;
pub(crate) use watch::watch;
