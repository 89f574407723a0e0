//! Why a driver refuses, named by whose fault it is.

/// What an operator asked for and can never be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{why}")]
pub struct Unfit {
    /// The attribute that is at fault.
    pub attribute: &'static str,
    /// Why, for operators.
    pub why: String,
}

impl Unfit {
    /// This attribute is at fault.
    pub fn new(attribute: &'static str, why: impl Into<String>) -> Unfit {
        Unfit { attribute, why: why.into() }
    }
}

impl From<Unfit> for DriverError {
    fn from(unfit: Unfit) -> DriverError {
        DriverError::Misconfigured(unfit.why)
    }
}

/// Why a driver refused, named by whose fault it is.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The operator asked for something that cannot be.
    #[error("{0}")]
    Misconfigured(String),
    /// What was named is not there.
    #[error("{0}")]
    NotFound(String),
    /// Another has what was asked for, or it is something else.
    #[error("{what}")]
    Conflict {
        /// What it is.
        what: String,
        /// Who has it, where that can be seen.
        held_by: Option<String>,
        /// What to do.
        hint: String,
    },
    /// The front-end asked for something that cannot be.
    #[error("front-end: {0}")]
    PeerMisbehaved(String),
    /// The host lacks something.
    #[error("{what}: {source}")]
    Resource {
        /// What was attempted.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The host is not set up for it, or it is not fit for that.
    #[error("{what}: {hint}")]
    Unready {
        /// What is missing.
        what: String,
        /// What to do.
        hint: String,
        /// How the system would say it.
        kind: std::io::ErrorKind,
    },
}

impl DriverError {
    /// The operator asked for something that cannot be.
    pub fn misconfigured(what: impl Into<String>) -> DriverError {
        DriverError::Misconfigured(what.into())
    }
}
