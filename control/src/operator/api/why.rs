//! What keeps packets or requests from a device.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Counts, Named};

/// Parameters of `dev.why`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Why {
    /// The device.
    pub name: String,
    /// `look` of an answer of a moment before (100 ms at least): what goes on just now is told by what is otherwise since.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub before: Option<Look>,
}

/// Answer of `dev.why`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WhyShow {
    /// By the device's name: the causes, the first of them first. Never empty.
    pub why: Named<Vec<Cause>>,
    /// What the next request may have as `before`. Absent: a second look would tell no more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub look: Option<Look>,
}

/// One thing that keeps packets or requests from a device, or that nothing does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Cause {
    /// A word for it, for scripts.
    pub cause: String,
    /// What it is, in a sentence.
    pub says: String,
    /// The next step. Absent: none is needed.
    #[serde(rename = "try", default, skip_serializing_if = "Option::is_none")]
    pub cure: Option<String>,
}

/// What a device stood at, and the workers that serve it. The daemon keeps none of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Look {
    /// The start of the daemon that it is of; of another one, nothing is told by it.
    pub instance: String,
    /// Which device of this daemon's it is: one that is made anew has another, and counts from 0.
    pub id: u64,
    /// How long the daemon had run, in nanoseconds.
    pub up_ns: u64,
    /// The device's queues.
    pub queues: Vec<QueueLook>,
    /// The workers that serve it, by their core.
    pub cores: BTreeMap<String, CoreLook>,
}

/// What a queue stood at, as `dev.vstats.show` has it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct QueueLook {
    /// Which queue.
    pub qidx: u32,
    /// Chains taken from the ring.
    pub received_desc: u64,
    /// Chains given back.
    pub completed_desc: u64,
    /// Frames or requests.
    pub packets: u64,
    /// How often frames or requests had to stay for a rate.
    pub held: u64,
    /// Drops and faults by name, those that there were.
    #[serde(default, skip_serializing_if = "Counts::is_empty")]
    pub drops: Counts,
}

/// What a worker stood at, as `core.show` has it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CoreLook {
    /// Cycles in turns that moved something.
    pub busy_cycles: u64,
    /// Cycles in turns that moved nothing.
    pub idle_cycles: u64,
    /// Cycles asleep.
    pub sleep_cycles: u64,
    /// Turns of its loop.
    pub turns: u64,
    /// Times the kernel took the core away while the worker wanted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preemptions: Option<u64>,
    /// For how long it had to wait for the core while it wanted to run, in nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_delay_ns: Option<u64>,
    /// Its thread ran, or waited for the core.
    pub wants_core: bool,
}
