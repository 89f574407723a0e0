//! Requests and answers about workers: started, drained and ended while the daemon runs, and what they serve spread anew.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Named;

/// Parameters of `core.add`, `core.drain` and `core.del`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CoreTarget {
    /// The core.
    pub core: usize,
}

/// Answer of `core.add`, `core.drain` and `core.del`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CoreChanged {
    /// The core.
    pub core: usize,
    /// What was told to go elsewhere; each goes when its session has it moved.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub moved: Vec<CoreMove>,
    /// What else the operator should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Something that goes from one worker to another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CoreMove {
    /// The device, or the management device whose devices share a core.
    pub name: String,
    /// Which group of the device's queues: for a NIC, the number of the pair. None: all of a management device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<u16>,
    /// The core that it leaves.
    pub from: usize,
    /// The core that it goes to.
    pub to: usize,
    /// Of the time of the core that it leaves, what it was busy for, in hundredths of a per cent.
    pub busy_x100: u64,
}

/// Answer of `core.plan` and `core.balance`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CorePlan {
    /// It was done.
    pub applied: bool,
    /// Over how long the loads were taken, in milliseconds: since this was last asked. 0: it was not asked before.
    pub over_ms: u64,
    /// How busy each core was, and would be, in hundredths of a per cent.
    pub core: Named<CoreLoad>,
    /// What goes where.
    pub moves: Vec<CoreMove>,
    /// What stays although it would go, and why.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What a core has to do.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CoreLoad {
    /// As it is.
    pub before_x100: u64,
    /// As it would be.
    pub after_x100: u64,
    /// Groups of queues as they are placed.
    pub groups_before: usize,
    /// As they would be.
    pub groups_after: usize,
}
