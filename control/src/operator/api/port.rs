//! Ports: functions that are made of hardware which can be divided, with the words of devlink(8).

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Named;

/// What kinds of ports there are to add: a subfunction of a PCI function, in devlink's words.
pub const FLAVOUR: &str = "pcisf";

fn flavour() -> String {
    FLAVOUR.to_owned()
}

/// Whether a function is there for drivers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PortState {
    /// Its share is taken, and nobody sees it.
    #[default]
    Inactive,
    /// It is on the virtual bus.
    Active,
}

impl PortState {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            PortState::Inactive => "inactive",
            PortState::Active => "active",
        }
    }

    fn is_inactive(&self) -> bool {
        *self == PortState::Inactive
    }
}

/// A port as an operator asks for it: parameters of `port.add`, and what the state file and the configuration keep.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortEntry {
    /// The management device that it is a part of.
    pub mgmtdev: String,
    /// `pcisf`.
    #[serde(default = "flavour")]
    pub flavour: String,
    /// The physical function.
    #[serde(default)]
    pub pfnum: u32,
    /// The function's number, the operator's to choose.
    pub sfnum: u32,
    /// Whether it is there for drivers.
    #[serde(default, skip_serializing_if = "PortState::is_inactive")]
    pub state: PortState,
    /// Attributes of the function.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// Parameters of `port.function.set`: at least one change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PortSet {
    /// The port: `MGMTDEV/SFNUM`.
    pub name: String,
    /// Whether it is there for drivers from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<PortState>,
    /// New values of the function's attributes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// Answer of `port.show`, `port.add` and `port.function.set`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortShow {
    /// By `MGMTDEV/SFNUM`.
    pub port: Named<PortInfo>,
    /// Those that were asked for and are not made, and why: kept, and made once they can be.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub absent: Named<String>,
}

/// A port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortInfo {
    /// `pcisf`.
    pub flavour: String,
    /// The physical function.
    pub pfnum: u32,
    /// The function's number.
    pub sfnum: u32,
    /// The function.
    pub function: FunctionInfo,
    /// The management device that it is while it is active.
    pub mgmtdev: String,
    /// The devices that were made with it.
    pub devices: Vec<String>,
    /// `operator` or `config`: who asked for it.
    pub origin: String,
}

/// The function of a port.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FunctionInfo {
    /// Whether it is there for drivers.
    pub state: PortState,
    /// `attached` while a driver has it, else `detached`.
    pub opstate: String,
    /// Its attributes.
    #[serde(flatten)]
    pub attributes: Named<Value>,
}

/// Answer of `port.del`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortDeleted {
    /// The port.
    pub deleted: String,
    /// The devices that are gone with it.
    pub devices: Vec<String>,
    /// What else the operator should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}
