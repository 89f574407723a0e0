//! The operator protocol's requests and answers, in one place: what travels over the socket is what `ringway -j`
//! prints.
//!
//! JSON-RPC 2.0, one message a line. Keys that `vdpa(8)` knows stand first, in its order and its spelling (two of
//! them end in a blank); what it lacks follows under keys of its own.
//!
//! | method | parameters | answer |
//! | --- | --- | --- |
//! | `hello` | | [`Hello`] |
//! | `mgmtdev.show` | [`Select`] | [`MgmtdevShow`] |
//! | `dev.add` | [`DeviceEntry`] | [`DevAdded`] |
//! | `dev.del` | [`Target`] | [`DevDeleted`] |
//! | `dev.show` | [`Select`] | [`DevShow`] |
//! | `dev.config.show` | [`Select`] | [`ConfigShow`] |
//! | `dev.vstats.show` | [`Queue`] | [`VstatsShow`] |
//! | `dev.set` | [`DevSet`] | [`DevChanged`] |
//! | `core.show` | | [`CoreShow`] |
//! | `events` | [`Follow`] | [`EventPage`], then notifications `event` with an [`Event`] each |
//! | `config.dump` | | [`Dump`] |

use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

use crate::names::FeatureName;

/// The protocol's version: the first number changes when a client must change.
pub const VERSION: &str = "1.0";

/// Every method.
pub const METHODS: [&str; 11] = [
    "hello",
    "mgmtdev.show",
    "dev.add",
    "dev.del",
    "dev.show",
    "dev.config.show",
    "dev.vstats.show",
    "dev.set",
    "core.show",
    "events",
    "config.dump",
];

/// Values by name in the order in which they were made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Named<T>(pub Vec<(String, T)>);

impl<T> Named<T> {
    /// The value of a name.
    pub fn find(&self, name: &str) -> Option<&T> {
        self.0.iter().find(|(key, _)| key == name).map(|(_, value)| value)
    }
    /// True if there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl<T> Default for Named<T> {
    fn default() -> Self {
        Named(Vec::new())
    }
}

impl<T> FromIterator<(String, T)> for Named<T> {
    fn from_iter<I: IntoIterator<Item = (String, T)>>(iter: I) -> Self {
        Named(iter.into_iter().collect())
    }
}

impl<T: Serialize> Serialize for Named<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (key, value) in &self.0 {
            map.serialize_entry(key, value)?;
        }
        map.end()
    }
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Named<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Entries<T>(PhantomData<T>);
        impl<'de, T: Deserialize<'de>> Visitor<'de> for Entries<T> {
            type Value = Named<T>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Named<T>, A::Error> {
                let mut entries = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    entries.push(entry);
                }
                Ok(Named(entries))
            }
        }
        deserializer.deserialize_map(Entries(PhantomData))
    }
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The protocol's version.
    pub api: String,
    /// Name and version of the program.
    pub build: String,
    /// Its process.
    pub pid: u32,
    /// The host's boot.
    pub boot_id: String,
    /// This start of the daemon: event numbers begin anew with it.
    pub instance: String,
    /// Counts the changes to the devices, over restarts.
    pub generation: u64,
    /// The number of the last event.
    pub seq: u64,
    /// Where device sockets are.
    pub device_dir: PathBuf,
    /// The state directory, if anything is kept.
    pub state_dir: Option<PathBuf>,
    /// Clients of this socket now.
    pub clients: usize,
    /// Clients that were dropped, by reason.
    pub dropped_clients: BTreeMap<String, u64>,
}

/// One of several things, or all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Select {
    /// The one; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Its name.
    pub name: String,
}

/// A queue of a device, or all of its queues.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// The device's name.
    pub name: String,
    /// The queue; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qidx: Option<u32>,
}

/// Answer of `mgmtdev.show`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MgmtdevShow {
    /// By name.
    pub mgmtdev: Named<MgmtdevInfo>,
}

/// A management device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MgmtdevInfo {
    /// What it can make.
    pub supported_classes: Vec<String>,
    /// The most virtqueues of one device.
    pub max_supported_vqs: u32,
    /// Features that its devices can offer.
    pub dev_features: Vec<FeatureName>,
    /// Attributes of its own that `dev add` takes.
    pub attributes: Vec<AttributeHelp>,
    /// What it is.
    pub summary: String,
    /// Devices it has made.
    pub devices: usize,
}

/// An attribute of a driver's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttributeHelp {
    /// The keyword.
    pub name: String,
    /// What a value looks like.
    pub value: String,
    /// One line of help.
    pub help: String,
}

/// Who owns a device's socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Ringway listens, the VMM connects.
    #[default]
    Server,
    /// The VMM listens, Ringway connects.
    Client,
}

impl Mode {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Server => "server",
            Mode::Client => "client",
        }
    }
}

/// A device as an operator asks for it: parameters of `dev.add`, and what the state file and the configuration keep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DeviceEntry {
    /// Its name.
    pub name: String,
    /// Who makes it.
    pub mgmtdev: String,
    /// Ethernet address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// MTU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Queue pairs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_vqp: Option<u16>,
    /// The features that it may offer at most: a hexadecimal mask, or names joined by commas.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_features: Option<String>,
    /// Where its socket is, instead of the directory of device sockets.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub socket: Option<PathBuf>,
    /// Who owns the socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<Mode>,
    /// The core for all its queues, instead of the least loaded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core: Option<usize>,
    /// Owner of the socket: a name or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<String>,
    /// Group of the socket: a name or a number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// The driver's own attributes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// Answer of `dev.add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevAdded {
    /// The device.
    pub added: String,
    /// Its socket.
    pub socket: PathBuf,
    /// Who owns the socket.
    pub mode: Mode,
    /// The core of each group of its queues.
    pub cores: Vec<usize>,
}

/// Answer of `dev.del`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevDeleted {
    /// The device.
    pub deleted: String,
    /// What else the operator should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Parameters of `dev.set`: at least one change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DevSet {
    /// The device.
    pub name: String,
    /// New Ethernet address.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mac: Option<String>,
    /// New MTU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// New core for all its queues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core: Option<usize>,
    /// New values of the driver's own attributes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// Answer of `dev.set`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevChanged {
    /// The device.
    pub changed: String,
    /// False: accepted, and in force when the notes say.
    pub applied: bool,
    /// What else the operator should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Answer of `dev.show`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevShow {
    /// By name.
    pub dev: Named<DevInfo>,
    /// Devices that were asked for and could not be made, and why: kept, and tried again.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub absent: Named<String>,
}

/// A device as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Its socket.
    pub socket: PathBuf,
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
    /// The core of each group of queues.
    pub cores: Vec<usize>,
    /// The connected front-end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub front_end: Option<FrontEnd>,
    /// The rings of the connected front-end.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub rings: Vec<Ring>,
    /// What happened on this device since it was added.
    pub history: History,
    /// What the operator should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// A device's configuration as it was provisioned, whether or not a guest has asked for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// A connected front-end.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
}

/// A ring as it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The core that serves it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub core: Option<usize>,
    /// The name of the fault that stopped it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<String>,
}

/// What happened on a device since it was added.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Rings stopped by a fault of the guest, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub ring_faults: BTreeMap<String, u64>,
    /// Pumps that panicked.
    pub pump_panics: u64,
    /// Why the last front-end's session ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_end: Option<String>,
    /// Why the last attempt to connect (client mode) or to make the device failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_failure: Option<String>,
}

/// Answer of `dev.config.show`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigShow {
    /// By name.
    pub config: Named<ConfigInfo>,
}

/// A device's configuration space. What `vdpa(8)` shows is there only once the features that carry it were
/// negotiated; `provisioned` is always there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VstatsShow {
    /// By name.
    pub vstats: Named<Vstats>,
}

/// One queue's statistics, or those of all queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// A queue's statistics since the device was added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueInfo {
    /// `rx` or `tx`, as the guest sees it; `request` for block.
    pub queue_type: String,
    /// Chains taken from the ring.
    pub received_desc: u64,
    /// Chains given back.
    pub completed_desc: u64,
    /// Which queue.
    pub qidx: u32,
    /// Frames or requests.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Notifications sent to the driver.
    pub calls: u64,
    /// Bursts that moved something.
    pub bursts: u64,
    /// Dropped frames by reason, every reason.
    pub drops: Map<String, Value>,
    /// Faults of the ring by name, every name.
    pub faults: Map<String, Value>,
    /// What the drops and faults that occurred mean and what clears them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub explain: Vec<Explained>,
}

/// A counter that is not 0, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// Its name.
    pub name: String,
    /// What it stands at.
    pub count: u64,
    /// What it means.
    pub meaning: String,
    /// What clears it.
    pub cure: String,
}

/// Answer of `core.show`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CoreShow {
    /// By the core's number.
    pub core: Named<CoreInfo>,
}

/// A worker since its start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Busy cycles per packet; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cycles_per_packet: Option<u64>,
    /// Packets per burst in hundredths; absent before the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub packets_per_burst_x100: Option<u64>,
    /// Times it woke from sleep.
    pub wakeups: u64,
    /// The longest turn since the last reading, in nanoseconds.
    pub longest_turn_ns: u64,
    /// Times the kernel took the core away while the worker wanted it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub preemptions: Option<u64>,
    /// Pumps that panicked on it.
    pub panics: u64,
    /// Groups of queues placed on it by control, connected or not.
    pub groups: usize,
    /// What runs on it.
    pub pumps: Vec<PumpInfo>,
}

/// A pump on a worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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

/// Parameters of `events`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Follow {
    /// The last event that the client has seen. Without it: from now on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<u64>,
    /// The daemon's instance that `since` belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// Types of events wanted, as in `dev` or `dev.added`; all without it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub types: Vec<String>,
    /// False: only what is there already.
    #[serde(default)]
    pub follow: bool,
}

/// Answer of `events`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EventPage {
    /// The daemon's instance.
    pub instance: String,
    /// The number of the last event.
    pub seq: u64,
    /// The devices there are and their states, if the client did not say where it stood.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub snapshot: Option<Named<String>>,
    /// Events after `since`, if the client does not follow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub events: Vec<Event>,
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    /// Its number: 1, 2, 3 … within an instance.
    pub seq: u64,
    /// Nanoseconds since 1970.
    pub time_ns: u64,
    /// What, as in `dev.added`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub dev: Option<String>,
    /// What is particular to this event.
    #[serde(flatten)]
    pub details: Map<String, Value>,
}

/// Answer of `config.dump`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Dump {
    /// A configuration file that makes what runs.
    pub toml: String,
    /// The same as data.
    pub config: Value,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn named_values_keep_their_order_both_ways() {
        let text = r#"{"zeta":1,"alpha":2}"#;
        let named: Named<u32> = serde_json::from_str(text).unwrap();
        assert_eq!(named.find("alpha"), Some(&2));
        assert_eq!(serde_json::to_string(&named).unwrap(), text);
    }

    #[test]
    fn unknown_parameter_is_refused_by_name() {
        let error =
            serde_json::from_str::<DeviceEntry>(r#"{"name":"a","mgmtdev":"b","socet":"/x"}"#).unwrap_err();
        assert!(error.to_string().contains("socet"), "{error}");
    }

    #[test]
    fn entry_says_only_what_was_asked_for() {
        let entry = DeviceEntry { name: "a".into(), mgmtdev: "b".into(), ..DeviceEntry::default() };
        assert_eq!(serde_json::to_string(&entry).unwrap(), r#"{"name":"a","mgmtdev":"b"}"#);
    }
}
