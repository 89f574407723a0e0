//! Front-ends of devices: a session each, the protocol it speaks, what it may take.

// What front-ends may take of the process's descriptors and address space.
pub mod budget;
// One front-end's connection to one device, on a thread of its own.
pub mod session;
// vhost-user, as a back-end speaks it.
pub mod vhost_user;
// A device under a front-end, whatever protocol that speaks.
pub mod virtdev;
// The life cycles of a connection, the device's status and a ring.
pub mod life;
// What a session tells control.
pub mod report;

// What to do about what they told.
pub(crate) mod cures;
// What sessions told and control has not taken yet.
pub(crate) mod reports;
