//! The vhost-user protocol: messages and their framing, the back-end's rules, and a front-end for the demo, the tests
//! and the benchmark suite.

/// A front-end: what a VMM speaks.
pub mod frontend;
