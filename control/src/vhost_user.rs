//! The vhost-user protocol: messages and their framing, the back-end's rules, and a front-end for the demo, the tests
//! and the benchmark suite.

// The back-end's rules.
pub mod backend;
// How much a peer may ask for.
mod bucket;
// Framing of messages on a stream socket.
pub mod connection;
// A front-end: what a VMM speaks.
pub mod frontend;
// The life cycles of a connection, the device's status and a ring.
pub mod life;
// Requests, flags and payloads.
pub mod message;

pub(crate) use bucket::Bucket;
