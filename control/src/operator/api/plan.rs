//! What a configuration file would change of what runs, and what it has changed.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::Named;

/// Parameters of `config.diff`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigText {
    /// What the file is called in errors; its absolute path.
    pub file: String,
    /// What stands in it.
    pub text: String,
}

/// Parameters of `config.apply`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ConfigApply {
    /// What the file is called in errors; its absolute path.
    pub file: String,
    /// What stands in it.
    pub text: String,
    /// Also where it names no device, so that all go that it made, or its ports and management devices.
    #[serde(default)]
    pub force: bool,
}

/// Parameters of `dry_run`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct DryRun {
    /// A method that changes something.
    pub method: String,
    /// Its parameters.
    pub params: Value,
}

/// Answer of `config.diff`, `config.apply` and `dry_run`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigPlan {
    /// What changes, in the order in which it is done.
    pub steps: Vec<ConfigStep>,
    /// How many devices of the file are as it says.
    pub unchanged: usize,
    /// Of devices that are as the file says: keys that were set before, and are not in force yet.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub deferred: Named<Vec<String>>,
    /// Devices that operators added and the file does not name: they stay.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<String>,
    /// Of `config.apply`: where what was asked for before is kept, as a configuration file.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<String>,
    /// What else the operator should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

impl ConfigPlan {
    /// Devices of the file of which something is not in force once all is done, and what.
    pub fn not_in_force(&self) -> impl Iterator<Item = (&str, &[String])> {
        let steps = self.steps.iter().map(|step| (step.name.as_str(), step.deferred.as_slice()));
        let before = self.deferred.0.iter().map(|(name, keys)| (name.as_str(), keys.as_slice()));
        steps.chain(before).filter(|(_, keys)| !keys.is_empty())
    }

    /// Steps that are not in force before ringwayd starts again.
    pub fn waiting_for_a_start(&self) -> impl Iterator<Item = &ConfigStep> {
        self.steps.iter().filter(|step| step.action == ConfigAction::Restart)
    }
}

/// A change to one thing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigStep {
    /// `device`, `mgmtdev`, `port` or `daemon`.
    pub what: String,
    /// Its name; that of the daemon is empty.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// What is done.
    pub action: ConfigAction,
    /// What is disrupted.
    pub disrupts: Disrupts,
    /// What is otherwise than before.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub changes: Vec<ConfigChange>,
    /// Keys that are not in force once it is done: the notes say when.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deferred: Vec<String>,
    /// When it is in force, and what it brings about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What is done to one thing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ConfigAction {
    /// It is made.
    Add,
    /// It stays, and is changed.
    Set,
    /// It is removed and made anew.
    Remake,
    /// It is removed.
    Del,
    /// It stays as it is, and is the file's from now on, not an operator's.
    Adopt,
    /// Nothing now: it is in force when ringwayd starts again.
    Restart,
}

/// How far guests notice a change.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Disrupts {
    /// They do not.
    Nothing,
    /// Queues stand for a moment.
    Queue,
    /// A device goes from its guest, and comes again unless it is removed.
    Device,
    /// All devices do, while the daemon is started again.
    Daemon,
}

impl Disrupts {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Disrupts::Nothing => "nothing",
            Disrupts::Queue => "queue",
            Disrupts::Device => "device",
            Disrupts::Daemon => "daemon",
        }
    }
}

/// One key that is otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigChange {
    /// The key of the file.
    pub key: String,
    /// What it was; absent: not set.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<String>,
    /// What it is to be; absent: not set, so that the default holds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}
