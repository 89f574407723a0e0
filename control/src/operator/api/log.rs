//! What is logged.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Named;

/// Parameters of `log.set`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct LogSet {
    /// A level, or filters; of a device: `debug`, `trace`, or `default` for what everybody has.
    pub level: String,
    /// The device; everybody without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dev: Option<String>,
}

/// Answer of `log.show` and `log.set`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogShow {
    /// What is logged of everybody.
    pub level: String,
    /// Where it goes.
    pub to: String,
    /// Devices of which more is logged.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub dev: Named<String>,
    /// Lines that were lost, since whoever reads them was too slow.
    pub lost_lines: u64,
}
