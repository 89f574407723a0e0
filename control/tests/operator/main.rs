//! The operator's side, with the real programs: commands and their texts, exit codes, the socket's protocol, what a
//! restart keeps, and how front-ends come to devices and leave them.

// What fails in a helper of a test fails the test.
#![allow(clippy::unwrap_used, clippy::panic)]

mod apply;
mod batches;
mod bundle;
mod captures;
mod clients;
mod commands;
mod completion;
mod config;
mod cores;
mod deaths;
mod discover;
mod disk_deaths;
mod doctor;
mod documents;
mod dry_runs;
mod errors;
mod exits;
mod front_ends;
mod inspect;
mod joined;
mod logs;
#[path = "../shared/cores.rs"]
mod machine_cores;
mod metrics;
#[path = "../shared/pace.rs"]
mod pace;
mod policies;
mod ports;
mod programs;
mod restarts;
mod scarce;
mod support;
mod taken;
mod taps;
mod top;
mod why;
