//! Why a measurement could not be made.

use ringway_guest::GuestError;
use ringway_ring::guest::MapError;
use ringway_ring::queue::{RingFault, RingFull, SetupError};

use crate::daemon::DaemonError;

/// Why a measurement could not be made.
#[derive(Debug, thiserror::Error)]
pub enum BenchError {
    /// The guest at a port: its back-end, or its own memory.
    #[error("{socket}: {source}")]
    Guest {
        /// The back-end's socket.
        socket: String,
        /// What went wrong.
        source: GuestError,
    },
    /// A queue pair, while it sent and received.
    #[error("queue pair {flow} of the generator: {source}")]
    Flow {
        /// Its number, over all ports.
        flow: u16,
        /// What went wrong.
        source: GuestError,
    },
    /// Memory of our own.
    #[error("cannot allocate {bytes} bytes of memory: {source}")]
    Memory {
        /// Bytes asked for.
        bytes: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// Our own memory map.
    #[error("memory of the generator: {0}")]
    Map(#[from] MapError),
    /// A ring's set-up.
    #[error("ring set-up: {0}")]
    Setup(#[from] SetupError),
    /// A ring between two sides of our own.
    #[error("a ring between two sides of our own: {0}")]
    Ring(#[from] RingFault),
    /// A ring of our own that was offered too much.
    #[error("a ring of our own: {0}")]
    Full(#[from] RingFull),
    /// The system.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// A `ringwayd` of our own.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// A peer that is not there.
    #[error(
        "{program} is not here: install Debian's package `{package}`, or name in {variable} where it is (deploy/test brings it)"
    )]
    MissingPeer {
        /// What was looked for.
        program: String,
        /// What brings it.
        package: &'static str,
        /// The environment variable that names it.
        variable: &'static str,
    },
    /// A peer that did not do as it should.
    #[error("{peer}: {what}")]
    Peer {
        /// Its name.
        peer: String,
        /// What it did, with its last words.
        what: String,
    },
    /// What cannot be asked for.
    #[error("{0}")]
    Usage(String),
    /// The machine was too busy.
    #[error("{0}")]
    Noise(String),
}

impl BenchError {
    /// A failed call.
    pub fn system(what: impl Into<String>) -> impl FnOnce(std::io::Error) -> BenchError {
        let what = what.into();
        move |source| BenchError::System { what, source }
    }
}
