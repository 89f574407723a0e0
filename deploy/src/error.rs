//! The lab's one error: a sentence for whoever reads the test's output.

use std::fmt;

/// What went wrong, in words; the causes are part of the text.
#[derive(thiserror::Error)]
#[error("{0}")]
pub struct Error(String);

impl Error {
    /// An error that says `text`.
    pub fn new(text: impl Into<String>) -> Error {
        Error(text.into())
    }
}

/// A failed test prints its error with `Debug`; the text is all there is to it.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<std::io::Error> for Error {
    fn from(cause: std::io::Error) -> Error {
        Error(cause.to_string())
    }
}

impl From<serde_json::Error> for Error {
    fn from(cause: serde_json::Error) -> Error {
        Error(format!("not the JSON that was expected: {cause}"))
    }
}

/// The lab's results.
pub type Result<T> = std::result::Result<T, Error>;

/// Says what was being done when something failed.
pub trait Context<T> {
    /// Puts `doing` before the cause.
    fn context(self, doing: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn context(self, doing: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| Error(format!("{}: {cause}", doing())))
    }
}

/// Leaves the function with an [`Error`] of the given format.
#[macro_export]
macro_rules! fail {
    ($($word:tt)*) => { return Err($crate::error::Error::new(format!($($word)*))) };
}

/// Leaves the function with an [`Error`] of the given format unless the condition holds.
#[macro_export]
macro_rules! ensure {
    ($condition:expr, $($word:tt)*) => {
        if !$condition { $crate::fail!($($word)*); }
    };
}
