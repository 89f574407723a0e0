//! VLANs of bridges' ports, with the words of bridge(8).

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Named;

/// VLANs of a port to be added or removed: parameters of `bridge.vlan.add` and `bridge.vlan.del`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct VlanChange {
    /// The device whose port it is.
    pub dev: String,
    /// A VLAN, or a range of them: `100`, `200-210`.
    pub vid: String,
    /// What comes without a VLAN is in this one.
    #[serde(default)]
    pub pvid: bool,
    /// Its frames go to the port without a tag.
    #[serde(default)]
    pub untagged: bool,
}

/// Answer of `bridge.vlan.show`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VlanShow {
    /// By device.
    pub vlan: Named<PortVlans>,
}

/// What a port carries.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortVlans {
    /// The bridge.
    pub mgmtdev: String,
    /// The VLANs.
    pub vlans: Vec<VlanInfo>,
}

/// A VLAN of a port, or a range of them that are alike.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VlanInfo {
    /// The first.
    pub vlan: u16,
    /// The last, of a range.
    #[serde(rename = "vlanEnd", default, skip_serializing_if = "Option::is_none")]
    pub vlan_end: Option<u16>,
    /// `PVID`, `Egress Untagged`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub flags: Vec<String>,
}
