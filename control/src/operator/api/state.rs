//! The one document of all that there is, which `inspect` reads by path.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{ConfigInfo, CoreInfo, DevInfo, Hello, KindInfo, MgmtdevInfo, Named, PortInfo, QueueInfo};

/// Parameters of `inspect`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Inspect {
    /// Keys of the document joined by `/`; in a key, `*` stands for anything. All of it without.
    #[serde(default)]
    pub path: String,
}

/// Answer of `inspect`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Inspected {
    /// What stands at each path that was asked for: parts of [`State`].
    pub state: Map<String, Value>,
    /// What is not in it, since an answer has its bounds, and the path that has it: each part once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// All that there is: what `show`, `-j` and metrics have of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct State {
    /// Who answers, as `hello` has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub daemon: Option<Hello>,
    /// Management devices, as `mgmtdev show` has them.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub mgmtdevs: Named<MgmtdevInfo>,
    /// Kinds of management devices that come to be by being named.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub kinds: Named<KindInfo>,
    /// Ports, as `port show` has them.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub ports: Named<PortInfo>,
    /// Devices.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub devices: Named<DeviceState>,
    /// Workers, as `core show` has them.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub cores: Named<CoreInfo>,
    /// What was asked for and is not made, and why: devices, management devices and ports.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub absent: Named<String>,
    /// Devices that were removed, and what of theirs is under way still.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub draining: Named<String>,
}

/// A device with all that there is of it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceState {
    /// As `dev show` has it.
    #[serde(flatten)]
    pub info: DevInfo,
    /// As `dev config show` has it.
    pub config: ConfigInfo,
    /// As `dev vstats show` has them, by their index.
    pub queues: Named<QueueInfo>,
}
