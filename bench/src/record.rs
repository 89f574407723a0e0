//! One result: what was measured, how, and on which machine. This is what `-j` prints, one to a line, and what `report`
//! reads.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::host::Host;

/// A result with everything that is needed to judge it and to make it again.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Record {
    /// Always [`SUITE`].
    pub suite: String,
    /// Version of this form: [`SCHEMA`].
    pub schema: u32,
    /// The command that made it: `net`, `compare`, `ring`, ..
    pub command: String,
    /// The words of the command line behind the program's name.
    pub words: Vec<String>,
    /// When it was finished, in seconds since 1970 began (UTC).
    pub at: u64,
    /// The machine.
    pub host: Host,
    /// Every parameter, also those left at their defaults.
    pub parameters: Value,
    /// What was found, raw series included.
    pub result: Value,
}

impl Record {
    /// A result of `command`, finished now.
    pub fn new(
        command: &str,
        host: Host,
        parameters: &impl Serialize,
        result: &impl Serialize,
    ) -> Result<Record, serde_json::Error> {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        Ok(Record {
            suite: SUITE.to_owned(),
            schema: SCHEMA,
            command: command.to_owned(),
            words: std::env::args().skip(1).collect(),
            at: since_1970.as_secs(),
            host,
            parameters: serde_json::to_value(parameters)?,
            result: serde_json::to_value(result)?,
        })
    }
}

/// What every record calls its suite.
pub const SUITE: &str = "ringway-bench";

/// The form's version; it grows when a reader of the old one would be misled.
pub const SCHEMA: u32 = 1;
