//! `ringway-front`: the lab's own front-end. It answers pings as DPDK's testpmd does, and does what neither testpmd nor a VMM does
//! on request: has its payload in a region of its own, has as much memory as is asked for, names an address that its guest does
//! not have, changes how many queue pairs it uses.
//!
//! ```text
//! ringway-front echo SOCKET [packed] [pairs=N] [memory=MIB] [address=IP] [buffer=BYTES] [reconnect]
//!                                      until `quit`; what it is told by its input, see [`echo`]
//! ringway-front ask SOCKET [packed]    asks a disk for what it is told by its input, see [`ask`]
//! ringway-front disk SOCKET [packed]   a disk's load, until `quit`; what it is told by its input, see [`disk`]
//! ringway-front removal DEVICE GROUP   removes a device, see [`removal`]
//! ringway-front stray [ADDRESS]        drives a virtio function or an NVMe controller that is bound to vfio-pci, see [`stray`]
//! ```
#![forbid(unsafe_code)]

mod answer;
mod ask;
mod disk;
mod echo;
mod removal;
mod stray;

use std::process::ExitCode;

use ringway_ring::queue::Format;

use crate::echo::Options;

/// Whatever went wrong: it is only told.
type Result<T, E = Box<dyn std::error::Error>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let done = match words.as_slice() {
        ["echo", socket, options @ ..] => {
            Options::parse(options).and_then(|options| echo::run(socket, options))
        }
        ["ask", socket] => ask::run(socket, Format::Split),
        ["ask", socket, "packed"] => ask::run(socket, Format::Packed),
        ["disk", socket] => disk::run(socket, Format::Split),
        ["disk", socket, "packed"] => disk::run(socket, Format::Packed),
        ["stray"] => stray::run(None),
        ["stray", address] => stray::run(Some(address)),
        ["removal", device, group] => removal::run(device, group),
        _ => Err(
            "`echo SOCKET [packed] [pairs=N] [memory=MIB] [address=IP] [buffer=BYTES] [reconnect]`, `ask SOCKET \
             [packed]`, `disk SOCKET [packed]`, `stray [ADDRESS]`, or `removal DEVICE GROUP`"
                .into(),
        ),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            println!("ringway-front: {error}");
            ExitCode::FAILURE
        }
    }
}
