//! What the daemon does with the vhost-user protocol: the back-end's rules, and the life cycles under them.

// The back-end's rules.
pub mod backend;
// The life cycles of a connection, the device's status and a ring.
pub mod life;
