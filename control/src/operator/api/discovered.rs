//! The description of the protocol that it gives of itself, in the words of OpenRPC, and what an error carries.

use std::collections::BTreeMap;
use std::num::NonZeroU16;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::fault::Kind;

/// Answer of `rpc.discover`: an OpenRPC document.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Discovered {
    /// The version of OpenRPC.
    pub openrpc: String,
    /// Which protocol it is.
    pub info: DiscoveredInfo,
    /// Every method, by name.
    pub methods: Vec<DiscoveredMethod>,
    /// What methods refer to.
    pub components: DiscoveredComponents,
    /// Notifications that the daemon sends to who follows, and the schema of each one's parameters.
    #[serde(rename = "x-notifications")]
    pub notifications: BTreeMap<String, Value>,
}

/// Which protocol it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiscoveredInfo {
    /// Who speaks it.
    pub title: String,
    /// Its version, as in `hello`.
    pub version: String,
    /// How it is spoken.
    pub description: String,
}

/// A method.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DiscoveredMethod {
    /// Its name.
    pub name: String,
    /// What it is for.
    pub summary: String,
    /// `by-name`.
    pub param_structure: String,
    /// Its parameters: those that must be there first.
    pub params: Vec<ContentDescriptor>,
    /// Its answer.
    pub result: ContentDescriptor,
    /// It changes something.
    #[serde(rename = "x-changes")]
    pub is_change: bool,
}

/// A parameter or an answer.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct ContentDescriptor {
    /// Its name.
    pub name: String,
    /// What it means.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// It must be there.
    #[serde(default)]
    pub required: bool,
    /// Its JSON Schema, of draft 7.
    pub schema: Value,
}

/// What methods refer to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DiscoveredComponents {
    /// JSON Schemas by name. `ErrorData` is that of `data` in every error.
    pub schemas: Map<String, Value>,
    /// The errors that any method may answer with, by their `kind`.
    pub errors: BTreeMap<String, DiscoveredError>,
}

/// An error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DiscoveredError {
    /// The code of JSON-RPC.
    pub code: i64,
    /// What it means.
    pub message: String,
}

/// What an error carries beside its code and its message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorData {
    /// What sort of error it is; it decides the exit code of `ringway`.
    pub kind: Kind,
    /// Who holds what was asked for.
    pub held_by: Option<String>,
    /// What to do.
    pub hint: Option<String>,
    /// The parameter, file or key that is at fault.
    pub path: Option<String>,
    /// The word that is wrong, as it was given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<String>,
    /// What would have been right: words, or what one has to look like.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<String>,
    /// The same request may succeed later.
    #[serde(default)]
    pub retryable: bool,
    /// What keeps it passes by itself: worth asking again after so many milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<NonZeroU16>,
}
