//! Ringway's lab: real guests and other people's peers, driven as an operator would drive them.
//!
//! Tests of this crate boot QEMU guests and DPDK's testpmd against the built `ringwayd`. They are ignored by a plain `cargo
//! test`, with what they need named; `deploy/test` installs that and runs them. Nothing here reaches into
//! Ringway's crates: sockets and commands are all it uses.
//!
//! | module | is |
//! | --- | --- |
//! | [`lab`] | one test's folder, its turn on the machine, its logs when it fails |
//! | [`process`] | a program that ends with its owner |
//! | [`image`] | the guest's kernel, modules and initramfs |
//! | [`agent`] | what harness and agent say to each other |
//! | [`pace`] | limits of time, as multiples of what the machine takes undisturbed |
//! | [`content`] | bytes that follow from a number |
//! | [`frame`] | the frames that guests send and recognise |
//! | [`station`] | one end of the traffic: an agent, in a guest or in a namespace |
//! | [`qemu`] | a Linux guest as a vhost-user front-end |
//! | [`system`] | a small system on a disk that a firmware boots from |
//! | [`document`] | the commands of a document, to be run as they are written, and what they print |
//! | [`host`] | a machine of an operator's own, for a document's commands |
//! | [`console`] | the serial console of a guest that was booted from a disk |
//! | [`disk`] | a guest's disk, and what it is worked on with |
//! | [`exchange`] | what two stations exchange, checked at both ends |
//! | [`netns`] | a network namespace of the host |
//! | [`testpmd`] | DPDK's testpmd as a front-end, and as a back-end to prove this lab against |
//! | [`daemon`] | `ringwayd` and `ringway` |
//! | [`hardware`] | a machine with network hardware behind an IOMMU, emulated, and Ringway inside |
//! | [`debian`] | a Debian with systemd as its first process |
//! | [`pollers`] | a machine whose workers poll while its kernel writes to a disk |
//! | [`volumes`] | a machine whose volumes fail, wait and hang, and Ringway inside |
//! | [`walk`] | a walk through a document, with its guests |
//! | [`error`] | the error, a sentence |

#![forbid(unsafe_code)]

pub mod agent;
pub mod console;
pub mod content;
pub mod daemon;
pub mod debian;
pub mod disk;
pub mod document;
pub mod error;
pub mod exchange;
pub mod frame;
pub mod hardware;
pub mod host;
pub mod image;
pub mod lab;
pub mod netns;
pub mod pace;
pub mod pollers;
pub mod process;
pub mod qemu;
pub mod station;
pub mod system;
pub mod testpmd;
mod tree;
pub mod volumes;
pub mod walk;
