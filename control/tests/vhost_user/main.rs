//! vhost-user over real sockets: the back-end and its sessions against a front-end of ours, hostile peers, a model,
//! and rust-vmm's front-end.

#![allow(clippy::unwrap_used, clippy::panic, reason = "what fails here fails the test")]
#![allow(unreachable_pub, reason = "modules of one test program")]

mod checklist;
mod drivers;
mod hostile;
mod inflight;
mod model;
#[path = "../shared/pace.rs"]
mod pace;
mod peer;
mod support;
mod traffic;
