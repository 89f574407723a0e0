//! The vDPA subsystem: device life, front-end protocols, the operator's socket and configuration.
#![forbid(unsafe_code)]

// The operator protocol's requests and answers.
pub mod api;
// The command `ringway`: grammar, texts, manual.
pub mod cli;
// A client of the operator socket.
pub mod client;
// The configuration file.
pub mod config;
// The main job on an embedded default.
pub mod demo;
// The drivers that this build has.
pub mod drivers;
// Why a request of an operator failed.
pub mod fault;
// The life of a device.
pub mod life;
// Names of virtio feature bits.
pub mod names;
// Where things are unless told otherwise.
pub mod paths;
// Which cores become workers, and what goes where.
pub mod placement;
// Management devices, devices, and the checks of a new one.
pub mod registry;
// The program `ringwayd`.
pub mod serve;
// The subsystem as a value.
pub mod subsystem;

// What front-ends may take of the process's descriptors and address space.
pub mod budget;
// One front-end's connection to one device, on a thread of its own.
pub mod session;
// The vhost-user protocol: messages, framing, both sides.
pub mod vhost_user;

mod accounts;
mod addresses;
mod claims;
mod clients;
mod connect;
mod daemon;
mod device;
mod endpoint;
mod events;
mod guard;
mod input;
mod log;
mod mgmtdevs;
mod ops;
mod peer;
mod reports;
mod rpc;
mod show;
mod single;
mod standing;
mod state;
mod upkeep;
mod watch;
mod watchdog;
