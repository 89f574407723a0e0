//! Why a request is not obeyed, and what that means for the connection.

use std::fmt::Display;
use std::io;

use ringway_pmd::dma::MapError as DmaError;
use ringway_ring::guest::MapError;
use rustix::io::Errno;

use super::super::life::Illegal;
use super::memory::MemoryError;
use super::plane::PlaneError;
use crate::frontends::budget::Short;
use ringway_vhost_user::message::Malformed;

/// A request that is not obeyed.
#[derive(Debug)]
pub(super) struct Refusal {
    /// Stable short name.
    pub(super) what: &'static str,
    /// For people.
    pub(super) detail: String,
    pub(super) kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
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
    pub(super) fn breach(what: &'static str, detail: impl Into<String>) -> Refusal {
        Refusal { what, detail: detail.into(), kind: Kind::Breach }
    }
    pub(super) fn soft(what: &'static str, detail: impl Into<String>) -> Refusal {
        Refusal { what, detail: detail.into(), kind: Kind::Soft }
    }
}

impl Refusal {
    /// What the system refused: for want of something, else for what the peer gave.
    pub(super) fn system(what: &'static str, detail: String, error: &io::Error) -> Refusal {
        match Errno::from_io_error(error) {
            Some(Errno::MFILE | Errno::NFILE) => Refusal::no_descriptor(detail),
            Some(Errno::NOMEM | Errno::AGAIN) => Refusal::short("memory_short", detail),
            _ => Refusal::breach(what, detail),
        }
    }
    pub(super) fn short(what: &'static str, detail: impl Into<String>) -> Refusal {
        Refusal { what, detail: detail.into(), kind: Kind::Host }
    }
    pub(super) fn no_descriptor(detail: impl Display) -> Refusal {
        let cure = "raise LimitNOFILE= of ringwayd's unit (ulimit -n)";
        Refusal::short("descriptors_short", format!("{detail}: no descriptor is left in the process; {cure}"))
    }
}

impl From<Short> for Refusal {
    fn from(short: Short) -> Refusal {
        Refusal::short("share_exceeded", short.to_string())
    }
}

impl From<Malformed> for Refusal {
    fn from(malformed: Malformed) -> Refusal {
        Refusal::breach(malformed.name(), malformed.to_string())
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
