//! What everything that moves stands at, at one time: what rates are worked out of.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CoreInfo, Counts, Named, QueueInfo, TimeInfo};

/// Answer of `sample`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Sample {
    /// This start of the daemon: with another one, counters begin anew.
    pub instance: String,
    /// How long this daemon has run, in nanoseconds.
    pub up_ns: u64,
    /// By name.
    pub dev: Named<DeviceSample>,
    /// By the core's number.
    pub core: Named<CoreInfo>,
}

/// What a device's queues stand at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DeviceSample {
    /// Which device of this daemon's it is: one that is made anew has another, and counts from 0.
    pub id: u64,
    /// `network` or `block`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Who made it.
    pub mgmtdev: String,
    /// Where it is in its life.
    pub state: String,
    /// The core of each group of queues.
    pub cores: Vec<usize>,
    /// In order of their index.
    pub queues: Vec<QueueSample>,
}

/// What a queue stands at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QueueSample {
    /// Which queue.
    pub qidx: u32,
    /// `rx` or `tx`, as the guest sees it; `request` for block.
    pub queue_type: String,
    /// Frames or requests.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Chains given back.
    pub completed_desc: u64,
    /// Notifications sent to the driver.
    pub calls: u64,
    /// Bursts that moved something.
    pub bursts: u64,
    /// How long bursts took since the device was added; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<TimeInfo>,
    /// Dropped frames or requests by reason, reasons that occurred.
    #[serde(default, skip_serializing_if = "Counts::is_empty")]
    pub drops: Counts,
    /// Faults of the ring by name, those that occurred.
    #[serde(default, skip_serializing_if = "Counts::is_empty")]
    pub faults: Counts,
}

impl From<QueueInfo> for QueueSample {
    fn from(info: QueueInfo) -> QueueSample {
        QueueSample {
            qidx: info.qidx,
            queue_type: info.queue_type,
            packets: info.packets,
            bytes: info.bytes,
            completed_desc: info.completed_desc,
            calls: info.calls,
            bursts: info.bursts,
            latency: info.latency,
            drops: info.drops.occurred(),
            faults: info.faults.occurred(),
        }
    }
}
