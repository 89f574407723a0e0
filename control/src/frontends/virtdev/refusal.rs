//! Why a request is not obeyed, and what that means for the connection.

use std::fmt::Display;
use std::io;

use ringway_pmd::dma::MapError as DmaError;
use ringway_ring::guest::MapError;
use rustix::io::Errno;

use super::memory::MemoryError;
use super::plane::PlaneError;
use crate::frontends::budget::Short;
use crate::frontends::life::Illegal;

/// A request that is not obeyed.
#[derive(Debug)]
pub struct Refusal {
    /// Stable short name.
    pub what: &'static str,
    /// For people.
    pub detail: String,
    /// What it means for the connection.
    pub kind: Kind,
}

/// What a refusal means for the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// The peer broke the protocol: refused, else closed.
    Breach,
    /// It asked for something that is not to be had, and can go on without: refused, else ignored.
    Soft,
    /// This host lacks something, for which the peer cannot help: refused, else closed.
    Host,
    /// The same, and nothing can go on.
    HostFatal,
    /// The peer did what nothing can go on after.
    Fatal,
}

impl Refusal {
    /// The peer broke the protocol.
    pub fn breach(what: &'static str, detail: impl Into<String>) -> Refusal {
        Refusal { what, detail: detail.into(), kind: Kind::Breach }
    }
    /// Not to be had.
    pub fn soft(what: &'static str, detail: impl Into<String>) -> Refusal {
        Refusal { what, detail: detail.into(), kind: Kind::Soft }
    }
}

impl Refusal {
    /// What the system refused: for want of something, else for what the peer gave.
    pub fn system(what: &'static str, detail: String, error: &io::Error) -> Refusal {
        match Errno::from_io_error(error) {
            Some(Errno::MFILE | Errno::NFILE) => Refusal::no_descriptor(detail),
            Some(Errno::NOMEM | Errno::AGAIN) => Refusal::short("memory_short", detail),
            _ => Refusal::breach(what, detail),
        }
    }
    /// This host lacks something.
    pub fn short(what: &'static str, detail: impl Into<String>) -> Refusal {
        Refusal { what, detail: detail.into(), kind: Kind::Host }
    }
    /// The process has no descriptor left.
    pub fn no_descriptor(detail: impl Display) -> Refusal {
        let cure = "raise LimitNOFILE= of ringwayd's unit (ulimit -n)";
        Refusal::short("descriptors_short", format!("{detail}: no descriptor is left in the process; {cure}"))
    }
}

impl From<Short> for Refusal {
    fn from(short: Short) -> Refusal {
        Refusal::short("share_exceeded", short.to_string())
    }
}

impl From<Illegal> for Refusal {
    fn from(illegal: Illegal) -> Refusal {
        Refusal::breach("illegal_event", illegal.to_string())
    }
}

impl From<MemoryError> for Refusal {
    fn from(error: MemoryError) -> Refusal {
        let (name, detail) = (error.name(), error.to_string());
        match &error {
            MemoryError::Map(MapError::Map(io) | MapError::Stat(io)) => Refusal::system(name, detail, io),
            MemoryError::Short(_) => Refusal::short(name, detail),
            MemoryError::Device(DmaError::Lost(_)) => Refusal { what: name, detail, kind: Kind::HostFatal },
            _ => {
                let kind = if error.is_of_host() { Kind::Host } else { Kind::Breach };
                Refusal { what: name, detail, kind }
            }
        }
    }
}

impl From<PlaneError> for Refusal {
    fn from(error: PlaneError) -> Refusal {
        Refusal { what: error.name(), detail: error.to_string(), kind: Kind::HostFatal }
    }
}
