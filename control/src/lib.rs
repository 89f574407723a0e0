//! The vDPA subsystem: device life, front-end protocols, the operator's socket and configuration.
#![forbid(unsafe_code)]

/// The built-in guest: rings and traffic of our own, over a real socket.
pub mod guest;
/// One front-end's connection to one device, on a thread of its own.
pub mod session;
/// The vhost-user protocol: messages, framing, both sides.
pub mod vhost_user;
