//! What there is: devices, their front-ends, rings and queues, and workers, as the protocol shows them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{CaptureInfo, Counts, Mode, Named};
use crate::operator::names::FeatureName;

/// Answer of `dev.show`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DevShow {
    /// By name.
    pub dev: Named<DevInfo>,
    /// Devices that were asked for and could not be made, and why: kept, and tried again.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub absent: Named<String>,
    /// Devices that were removed, and what of theirs is under way still.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub draining: Named<String>,
}

/// A device as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DevInfo {
    /// `network` or `block`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Who made it.
    pub mgmtdev: String,
    /// Virtio vendor id.
    pub vendor_id: u32,
    /// Virtqueues.
    pub max_vqs: u16,
    /// Entries of a queue at most.
    pub max_vq_size: u16,
    /// Where it is in its life.
    pub state: String,
    /// Its socket; absent for a device of the host's.
    #[serde(default, skip_serializing_if = "super::is_none")]
    pub socket: PathBuf,
    /// The kernel's interface that is its other side, in place of a front-end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub netdev: Option<String>,
    /// The function that is its other side, in place of a front-end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// Who owns the socket.
    pub mode: Mode,
    /// Owner of the socket, if one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Group of the socket, if one was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// `operator` or `config`: who asked for it.
    pub origin: String,
    /// `pumped` or `hardware`.
    pub data_path: String,
    /// Features that it offers.
    pub device_features: Vec<FeatureName>,
    /// Its configuration.
    pub provisioned: Provisioned,
    /// The driver's own attributes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
    /// Keys that were set and are not in force yet: they are when the next front-end connects, or, where the host's interface or
    /// function is the other side, when the device is made anew.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub deferred: Vec<String>,
    /// The core of each group of queues.
    pub cores: Vec<usize>,
    /// The connected front-end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub front_end: Option<FrontEnd>,
    /// The rings of the connected front-end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rings: Vec<Ring>,
    /// Who may open the socket, while it waits for a front-end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub access: Option<SocketAccess>,
    /// What happened on this device since it was added.
    pub history: History,
    /// Who captures its frames.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub captures: Vec<CaptureInfo>,
    /// What a disk has under way, the oldest by name and age.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub under_way: Option<String>,
    /// What keeps frames or requests from it just now, beside its front-end and its guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub findings: Vec<Finding>,
    /// What the operator should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Something that keeps frames or requests from a device just now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Finding {
    /// A word for it, for scripts: `socket_missing`, `host_down`, `not_answering`, `failing`.
    pub finding: String,
    /// What it is.
    pub says: String,
    /// What clears it.
    #[serde(rename = "try")]
    pub cure: String,
}

impl DevInfo {
    /// What is there in place of a front-end, in words.
    pub(crate) fn other_side(&self) -> Option<String> {
        let netdev = self.netdev.as_ref().map(|ifname| format!("the host's interface {ifname}"));
        netdev.or_else(|| Some(format!("the bridge's uplink {}", self.uplink.as_ref()?)))
    }
}

/// A device's configuration as it was provisioned, whether or not a guest has asked for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Provisioned {
    /// Ethernet address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// `up` or `down`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Queue pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_vq_pairs: Option<u16>,
    /// MTU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Bytes of a disk.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// Bytes of its logical block.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blk_size: Option<u32>,
    /// Its request queues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub num_queues: Option<u16>,
    /// Data segments of one request.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seg_max: Option<u32>,
    /// `on`: what is written lasts once it was flushed; `off`: before it is answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub write_cache: Option<String>,
}

/// A connected front-end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FrontEnd {
    /// Its process, as the kernel says.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Its program.
    pub comm: String,
    /// How long it has been connected, in milliseconds.
    pub connected_ms: u64,
    /// The virtio status, by names; absent if the front-end does not tell it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Vec<String>>,
    /// Features agreed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negotiated_features: Option<Vec<FeatureName>>,
    /// vhost-user protocol features agreed on, by names.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub protocol_features: Option<Vec<String>>,
    /// Regions of shared memory.
    pub memory_regions: usize,
    /// Their bytes.
    pub memory_bytes: u64,
    /// The MTU that the front-end says its guest uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// What this host lacked last that the front-end asked for, until one of its queues runs: `name: details`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_failure: Option<String>,
    /// What it did last against the protocol, until one of its queues runs or its guest's driver begins anew: `name: details`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub breach: Option<String>,
    /// One of its queues has run since it connected.
    #[serde(default)]
    pub has_run: bool,
}

/// Who may open a device's socket: as in the file system, now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SocketAccess {
    /// The user whose it is: a name, or a number without one.
    pub owner: String,
    /// The group whose it is.
    pub group: String,
    /// Permissions, as in `0660`.
    pub mode: String,
}

/// A ring as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Ring {
    /// Which queue.
    pub qidx: u16,
    /// Entries.
    pub size: u16,
    /// Started by the front-end.
    pub started: bool,
    /// Enabled by the front-end.
    pub enabled: bool,
    /// The front-end kicks; false: it polls, and the core cannot sleep.
    pub kicks: bool,
    /// A core serves it: it is started and enabled, and nothing that it needs is missing.
    #[serde(default)]
    pub runs: bool,
    /// The core that serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core: Option<usize>,
    /// The name of the fault that stopped it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// What happened on a device since it was added.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct History {
    /// Front-ends that connected.
    pub connections: u64,
    /// Further front-ends that were refused because one was connected.
    pub refused: u64,
    /// Connections whose peer had left before they were looked at.
    pub left: u64,
    /// Breaches of the protocol by front-ends, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub breaches: BTreeMap<String, u64>,
    /// Details of the last breach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_breach: Option<String>,
    /// What this host lacked when a session needed it, by name: no fault of a front-end's.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub host_failures: BTreeMap<String, u64>,
    /// Details of the last of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_host_failure: Option<String>,
    /// Rings stopped by a fault of the guest, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ring_faults: BTreeMap<String, u64>,
    /// Pumps that panicked.
    pub pump_panics: u64,
    /// Why the last front-end's session ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_end: Option<String>,
    /// What that came of, where it is one of these: `breach` (of the protocol, by the front-end), `host_failure`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_end_by: Option<String>,
    /// Why the last attempt to connect (client mode) or to make the device failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
}

/// Answer of `dev.config.show`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigShow {
    /// By name.
    pub config: Named<ConfigInfo>,
}

/// A device's configuration space. What `vdpa(8)` shows is there only once the features that carry it were
/// negotiated; `provisioned` is always there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ConfigInfo {
    /// With MAC.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// With STATUS. The key's blank is that of `vdpa(8)`.
    #[serde(default, rename = "link ", skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// With STATUS. The key's blank is that of `vdpa(8)`.
    #[serde(default, rename = "link_announce ", skip_serializing_if = "Option::is_none")]
    pub link_announce: Option<bool>,
    /// With MQ or RSS.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_vq_pairs: Option<u16>,
    /// With MTU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Once features were agreed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub negotiated_features: Option<Vec<FeatureName>>,
    /// As provisioned.
    pub provisioned: Provisioned,
    /// The MTU that the front-end says its guest uses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mtu: Option<u16>,
}

/// Answer of `dev.vstats.show`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VstatsShow {
    /// By name.
    pub vstats: Named<Vstats>,
}

/// One queue's statistics, or those of all queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum Vstats {
    /// All queues.
    All {
        /// In order of their index.
        queues: Vec<QueueInfo>,
    },
    /// The queue asked for.
    One(Box<QueueInfo>),
}

impl Vstats {
    /// The queues that it has.
    pub fn into_queues(self) -> Vec<QueueInfo> {
        match self {
            Vstats::All { queues } => queues,
            Vstats::One(queue) => vec![*queue],
        }
    }
}

/// A queue's statistics since the device was added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct QueueInfo {
    /// `rx` or `tx`, as the guest sees it; `request` for block.
    pub queue_type: String,
    /// Chains taken from the ring; of a disk, with those that are under way still.
    pub received_desc: u64,
    /// Chains given back.
    pub completed_desc: u64,
    /// Which queue.
    pub qidx: u32,
    /// Frames or requests.
    pub packets: u64,
    /// Bytes of frames or requests, without virtio headers.
    pub bytes: u64,
    /// Notifications sent to the driver.
    pub calls: u64,
    /// Bursts that moved something.
    pub bursts: u64,
    /// How many chains the bursts gave back; absent before the first. Of a receive queue of a bridge on several cores, what comes from
    /// another core in a turn is a burst by itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_sizes: Option<SizeInfo>,
    /// How long bursts took from when a worker first saw them until their used entries were published, of a network device's queue
    /// that a core serves; absent before the first. One a turn of the core, whatever has come from other cores in it, and until its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latency: Option<TimeInfo>,
    /// Frames whose checksum was completed for the guest, which does not do it.
    #[serde(default)]
    pub sw_checksums: u64,
    /// Frames that were cut up for the guest, which takes none so large.
    #[serde(default)]
    pub sw_segmented: u64,
    /// What they were cut up into; `packets` counts these.
    #[serde(default)]
    pub sw_segments: u64,
    /// System calls that moved frames to or from the kernel's interface: `packets` by these is the size of its batches.
    /// 0 for a guest's queue.
    #[serde(default)]
    pub netdev_calls: u64,
    /// Requests that a process before this one had and did not complete, which were done again; of a disk.
    #[serde(default)]
    pub resubmitted: u64,
    /// How often frames of a bridge's port had to stay in the queue, since it sent as much as it may (`max_tx_pps`, `max_tx_rate`), or
    /// a disk's requests, since its guest asked for as much as it may (`iops`, `bps`).
    #[serde(default)]
    pub held: u64,
    /// Dropped frames by reason, every reason. Of what a front-end has announced for its guest (SEND_RARP), which came from no
    /// ring, that which reaches nobody is here, and nothing in any other counter.
    pub drops: Counts,
    /// Faults of the ring by name, every name.
    pub faults: Counts,
    /// Requests of a disk's queue that succeeded, by kind; none before it was first started.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub requests: Vec<RequestInfo>,
    /// What it lacks to be of use though it is started, and what to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_run: Option<String>,
    /// What the drops and faults that occurred mean and what clears them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub explain: Vec<Explained>,
}

/// Sizes of bursts, each up to the next power of two.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SizeInfo {
    /// Half of the bursts were of this size at most.
    pub p50: u64,
    /// 99 of 100 were.
    pub p99: u64,
    /// All of them were; what is more than 1,024 is shown as 2,048.
    pub max: u64,
}

/// How long things took, in nanoseconds; all but the longest are at most an eighth too long.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct TimeInfo {
    /// Half of them took so long at most.
    pub p50_ns: u64,
    /// 99 of 100 did.
    pub p99_ns: u64,
    /// 999 of 1,000 did.
    pub p999_ns: u64,
    /// The longest.
    pub max_ns: u64,
}

/// Requests of one kind. Each time is from when a worker first saw the request to its used entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RequestInfo {
    /// `read`, `write`, `flush`, `discard`, `write_zeroes`.
    pub kind: String,
    /// Requests of the kind.
    pub count: u64,
    /// Bytes of data.
    pub bytes: u64,
    /// Half of them took so many nanoseconds at most.
    pub p50_ns: u64,
    /// 99 of 100 did.
    pub p99_ns: u64,
    /// 999 of 1,000 did.
    pub p999_ns: u64,
    /// All of them did.
    pub max_ns: u64,
}

/// A counter that is not 0, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Explained {
    /// Its name.
    pub name: String,
    /// What it stands at.
    pub count: u64,
    /// What it means.
    pub meaning: String,
    /// What the last one was like, where that tells more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub example: Option<String>,
    /// What clears it.
    pub cure: String,
}

/// Answer of `core.show`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CoreShow {
    /// By the core's number.
    pub core: Named<CoreInfo>,
}

/// A worker since its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CoreInfo {
    /// Its thread.
    pub tid: i32,
    /// `poll` or `adaptive`.
    pub idle_policy: String,
    /// Cycles per second of the counters.
    pub tsc_hz: u64,
    /// Cycles in turns that moved something.
    pub busy_cycles: u64,
    /// Cycles in turns that moved nothing.
    pub idle_cycles: u64,
    /// Cycles asleep.
    pub sleep_cycles: u64,
    /// Turns of its loop.
    pub turns: u64,
    /// Packets or requests.
    pub packets: u64,
    /// Polls that moved something.
    pub bursts: u64,
    /// How much the polls moved that moved something; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub burst_sizes: Option<SizeInfo>,
    /// How long the turns took that moved something; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub busy_turns: Option<TimeInfo>,
    /// Busy cycles per packet; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cycles_per_packet: Option<u64>,
    /// Packets per burst in hundredths; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_per_burst_x100: Option<u64>,
    /// Times it woke from sleep.
    pub wakeups: u64,
    /// The longest turn of the last 10 to 20 seconds, in nanoseconds; the same for every reader.
    pub longest_turn_ns: u64,
    /// Times the kernel took the core away while the worker wanted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preemptions: Option<u64>,
    /// For how long it had to wait for the core while it wanted to run, in nanoseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub run_delay_ns: Option<u64>,
    /// Its thread runs just now, or waits for the core.
    #[serde(default)]
    pub wants_core: bool,
    /// How the kernel schedules its thread: `other`, or a real-time policy (`fifo`, `rr`, `deadline`).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scheduling: Option<String>,
    /// It rests 100 us in each 2 ms, since nothing else would run on its core.
    #[serde(default)]
    pub gives_way: bool,
    /// How often it rested so.
    #[serde(default)]
    pub rests: u64,
    /// For how long, in nanoseconds.
    #[serde(default)]
    pub rest_ns: u64,
    /// Pumps that panicked on it.
    pub panics: u64,
    /// Other processes that are seen to work on this core, and how.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub others: Vec<String>,
    /// Groups of queues placed on it by control, connected or not.
    pub groups: usize,
    /// It takes no more groups.
    #[serde(default)]
    pub draining: bool,
    /// Its memory node, where the kernel tells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<usize>,
    /// The other threads of its physical core.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub siblings: Vec<usize>,
    /// What runs on it.
    pub pumps: Vec<PumpInfo>,
}

/// A pump on a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PumpInfo {
    /// What it was placed as.
    pub name: String,
    /// Cycles in polls that moved something.
    pub busy_cycles: u64,
    /// Polls that moved something.
    pub bursts: u64,
    /// Packets or requests.
    pub packets: u64,
    /// Asleep on its wake sources.
    pub asleep: bool,
    /// Nobody can wake it: its worker naps instead of sleeping.
    pub cannot_sleep: bool,
}
