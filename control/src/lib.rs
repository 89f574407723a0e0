//! The vDPA subsystem: device life, front-end protocols, the operator's socket and configuration.
#![forbid(unsafe_code)]

// Why a request of an operator failed.
pub mod fault;
// With what the subsystem is started.
pub mod settings;
// The subsystem as a value.
pub mod subsystem;
// Management devices and devices: their life, what is asked of them, where they run, what is kept of them.
pub mod devices;
// Front-ends of devices: a session each, the protocol it speaks, what it may take.
pub mod frontends;
// What an operator sees and says: protocol, command, configuration, answers, events.
pub mod operator;

// What the process takes of its host: files, sockets, locks, cores, accounts, its log.
mod host;
// The control thread: its loop, and everything that it owns.
mod daemon;
