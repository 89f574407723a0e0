//! The vhost-user protocol: messages, their framing on a stream socket, how much a peer may ask for, and the front-end's
//! side.
//!
//! What it is not: a back-end's rules are the daemon's, as are devices and sessions, of which nothing is known here.
#![forbid(unsafe_code)]

// How much a peer may ask for.
pub mod bucket;
// Framing of messages on a stream socket.
pub mod connection;
// A front-end: what a VMM speaks.
pub mod frontend;
// Requests, flags and payloads.
pub mod message;
