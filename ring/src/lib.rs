//! Memory and virtqueues.
//!
//! Hugepage memory ([`memory`]), maps of a guest's memory ([`guest`]), split and packed virtqueues from the device's
//! side and from the driver's, notification suppression, and the page that keeps each queue's position.
//! No sockets, no threads, no device knowledge.

// Atomics and fences: the process's own, or loom's under `cfg(loom)`.
pub mod sync;
// Cycle counter.
pub mod tsc;

// Copies from, to and between memory that a peer writes at the same time.
pub mod copy;
// Maps of a guest's memory, made from file descriptors.
pub mod guest;
// An address range that shows a part of a shared file.
mod mapping;
// Memory of our own, on the largest pages there are.
pub mod memory;
// Where each queue stands, in memory that outlives the process.
pub mod position;
// Containment of faults in memory that a peer truncated.
pub mod sigbus;

// Descriptor chains, checked and translated.
pub mod chain;
// Virtio transport features.
pub mod features;
// The two formats of rings.
mod format;
// Where the areas of a ring lie; the driver side's configuration.
pub mod layout;
// Packed virtqueues (virtio 1.3 §2.8).
pub mod packed;
// Where a ring goes on after its front-end, or this process, was lost.
pub mod resume;
// What both ring formats have in common: configuration, traits, faults.
pub mod queue;
// Split virtqueues (virtio 1.3 §2.7).
pub mod split;
// What is recorded of chains that complete in any order, for a successor of this process.
pub mod inflight;
// What is kept of the chains that a device has.
pub mod track;
// Entries from one worker to another.
pub mod lane;
// Gathering one chain.
mod walk;
// Access to the words of a ring.
pub mod words;

#[cfg(test)]
#[cfg(not(loom))]
mod counts;
#[cfg(test)]
#[cfg(not(loom))]
mod mortal;
