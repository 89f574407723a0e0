//! What an operator sees and says: protocol, command, configuration, answers, events.

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
// What of a host keeps workers from their cores.
pub mod doctor;
// Names of virtio feature bits.
pub mod names;
// Every counter, event, setting and method, as a page.
pub mod reference;
// The program `ringwayd`.
pub mod serve;

// Frames of devices, as pcapng.
pub(crate) mod capture;
// Clients of the operator socket.
pub(crate) mod clients;
// The protocol described by itself.
pub(crate) mod discover;
// The history of events.
pub(crate) mod events;
// All that there is, read by path.
pub(crate) mod inspect;
// The table of the protocol's methods.
pub(crate) mod methods;
// What is logged, as operators see it.
pub(crate) mod logs;
// What Prometheus scrapes.
pub(crate) mod metrics;
// What happened in a second.
pub(crate) mod rates;
// What captures are written in.
pub(crate) mod pcapng;
// What a client may do.
pub(crate) mod role;
// Lines of JSON-RPC.
pub(crate) mod rpc;
// What moves.
pub(crate) mod sample;
// A part of control's time.
pub(crate) mod share;
// What is shown.
pub(crate) mod show;
// What viewers take of control's time.
pub(crate) mod viewers;
// What keeps packets from a device.
pub(crate) mod why;
// One device, without an operator.
pub(crate) mod single;
