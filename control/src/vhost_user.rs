//! The vhost-user protocol: messages and their framing, the back-end's rules, and a front-end for the demo, the tests
//! and the benchmark suite.

/// Framing of messages on a stream socket.
pub mod connection;
/// A front-end: what a VMM speaks.
pub mod frontend;
/// Requests, flags and payloads.
pub mod message;
