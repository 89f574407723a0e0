//! A virtio function that is driven from here: the driver's side of virtio, for whoever has a PCI function with the standard
//! registers. A library of drivers: it knows no management device and no bus.

// The control queue of a network function.
pub mod control;
// Registers of Intel's by which a ring begins anywhere.
pub mod migration;
// A function's rings, in memory of our own.
pub mod rings;
// Registers of a function: status, features, queues, configuration.
pub mod transport;
