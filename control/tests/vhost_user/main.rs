//! vhost-user over real sockets: the back-end and its sessions against a front-end of ours, hostile peers, a model,
//! and rust-vmm's front-end.

#![allow(unreachable_pub, reason = "modules of one test program")]

mod support;
mod traffic;
