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
    /// What was found, raw series included: an object, whose fields stand beside these.
    #[serde(flatten)]
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_found_stands_beside_what_it_was_found_with() {
        let found = json!({"ratio": {"median": 1.5, "low": 1.25, "high": 2.0}, "of_limit": 0.75});
        let record = Record::new("compare", Host::read(), &json!({"size": 64}), &found).unwrap();
        let printed = serde_json::to_value(&record).unwrap();
        assert_eq!(printed["ratio"]["median"], 1.5);
        assert_eq!(printed["of_limit"], 0.75);
        assert_eq!(printed["parameters"]["size"], 64);
        let read: Record = serde_json::from_value(printed).unwrap();
        assert_eq!(read, record);
        assert_eq!(read.result, found);
    }
}
