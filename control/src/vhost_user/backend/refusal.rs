//! Why a request is not obeyed, and what that means for the connection.

use super::super::life::Illegal;
use super::super::message::Malformed;
use super::memory::MemoryError;
use super::plane::PlaneError;

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
    pub(super) fn host(what: &'static str, detail: impl Into<String>) -> Refusal {
        Refusal { what, detail: detail.into(), kind: Kind::Host }
    }
    pub(super) fn soft(what: &'static str, detail: impl Into<String>) -> Refusal {
        Refusal { what, detail: detail.into(), kind: Kind::Soft }
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
        let kind = if error.is_of_host() { Kind::Host } else { Kind::Breach };
        Refusal { what: error.name(), detail: error.to_string(), kind }
    }
}

impl From<PlaneError> for Refusal {
    fn from(error: PlaneError) -> Refusal {
        Refusal { what: error.name(), detail: error.to_string(), kind: Kind::HostFatal }
    }
}
