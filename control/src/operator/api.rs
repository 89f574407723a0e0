//! The operator protocol's requests and answers, in one place: what travels over the socket is what `ringway -j`
//! prints.
//!
//! JSON-RPC 2.0, one message a line. Keys that `vdpa(8)` knows stand first, in its order and its spelling (two of
//! them end in a blank); what it lacks follows under keys of its own.
//!
//! Which method takes and answers what is one table: `operator::methods`. The daemon describes it itself (`rpc.discover`).

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;
use std::marker::PhantomData;
use std::path::PathBuf;

use ringway_pmd::vdpa::{AttributeInfo, MgmtInfo, MgmtKindInfo};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{MapAccess, Visitor};
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

mod bridge;
mod capture;
mod core;
mod counts;
mod discovered;
mod info;
mod log;
mod plan;
mod port;
mod sample;
mod state;
mod why;

pub use self::core::*;
pub use bridge::*;
pub use capture::*;
pub use counts::*;
pub use discovered::*;
pub use info::*;
pub use log::*;
pub use plan::*;
pub use port::*;
pub use sample::*;
pub use state::*;
pub use why::*;

use crate::operator::names::FeatureName;

/// The protocol's version: the first number changes when a client must change.
pub const VERSION: &str = "1.6";

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

impl<T: JsonSchema> JsonSchema for Named<T> {
    fn inline_schema() -> bool {
        true
    }
    fn schema_name() -> Cow<'static, str> {
        format!("Named_{}", T::schema_name()).into()
    }
    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "object", "additionalProperties": generator.subschema_for::<T>() })
    }
}

/// Who answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// By which socket the client came that asks: `administrator` or `viewer`.
    #[serde(default)]
    pub role: String,
    /// Requests of viewers that are only the administrators'.
    #[serde(default)]
    pub refused_requests: u64,
    /// How often viewers waited, since all of them together had taken their part of the daemon's time: a quarter.
    #[serde(default)]
    pub viewer_waits: u64,
    /// Lines of the log that were lost, since whoever reads standard error was too slow.
    #[serde(default)]
    pub lost_log_lines: u64,
    /// Events that were not kept on disk: `host.missing` said why.
    #[serde(default)]
    pub lost_events: u64,
    /// What stands where the daemon was started from: the file that runs, or another one since.
    #[serde(default)]
    pub binary: Binary,
    /// How long this daemon has run, in milliseconds.
    #[serde(default)]
    pub up_ms: u64,
    /// How long nobody served before it did, in milliseconds: from the stop of the daemon before it to its own start. Absent
    /// where none was told to stop since the host was booted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap_ms: Option<u64>,
    /// The number that addresses are made of which were not given was made on another machine, which may have the same ones.
    #[serde(default)]
    pub addresses_copied: bool,
}

/// What stands where the daemon was started from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Binary {
    /// The file that runs.
    #[default]
    Installed,
    /// Another one, since.
    Replaced,
    /// Nothing any more.
    Removed,
}

/// One of several things, or all.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Select {
    /// The one; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// Its name.
    pub name: String,
}

/// A queue of a device, or all of its queues.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Queue {
    /// The device's name.
    pub name: String,
    /// The queue; all without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub qidx: Option<u32>,
}

/// Answer of `mgmtdev.show`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MgmtdevShow {
    /// By name.
    pub mgmtdev: Named<MgmtdevInfo>,
    /// Those that were asked for and could not be made at the start, and why: kept, and tried again at the next. Its devices
    /// have made one of defaults where it is among the others all the same.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub absent: Named<String>,
    /// Functions that a driver knows and cannot use, and why: tried again.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub unusable: Named<String>,
    /// Kinds of management devices that come to be by being named.
    #[serde(default, skip_serializing_if = "Named::is_empty")]
    pub kinds: Named<KindInfo>,
}

/// A kind of management devices, of which there is one of any name once it is named.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct KindInfo {
    /// What one is.
    pub summary: String,
    /// The command that makes one with its first device.
    pub add: String,
    /// The most devices that one can have; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_devices: Option<usize>,
    /// Attributes of its own that `dev add` takes.
    pub attributes: Vec<AttributeHelp>,
    /// Attributes of the management device itself: of `mgmtdev add` and `mgmtdev set`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub settings: Vec<AttributeHelp>,
    /// Attributes of the functions that can be made of it: of `port function set`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<AttributeHelp>,
}

impl KindInfo {
    /// What a kind makes.
    pub fn of(kind: &MgmtKindInfo) -> KindInfo {
        let name = if kind.name == "tap" { "IFNAME" } else { "NAME" };
        KindInfo {
            summary: kind.device.summary.to_owned(),
            add: format!("ringway dev add name DEVICE mgmtdev {}/{name}", kind.name),
            max_devices: kind.device.max_devices,
            attributes: AttributeHelp::all(&kind.device.attributes),
            settings: AttributeHelp::all(&kind.attributes),
            functions: AttributeHelp::of_functions(&kind.device),
        }
    }
}

/// A management device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// The most that it can have; absent: any number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_devices: Option<usize>,
    /// Their names, where they are joined with each other.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub joined: Vec<String>,
    /// Attributes of the management device itself.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub settings: BTreeMap<String, String>,
    /// Attributes of the functions that can be made of it: of `port function set`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub functions: Vec<AttributeHelp>,
    /// Its functions, as `port show` has them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<String>,
    /// What it has learned, for a bridge.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub learned: Option<LearnedInfo>,
}

/// What a bridge has learned. While there is traffic, it is half a second old at most.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LearnedInfo {
    /// The stations.
    pub stations: Vec<StationInfo>,
    /// Addresses that were not learned, for want of room: a guest that makes up addresses.
    pub refused: u64,
}

/// A station behind a device of a bridge.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StationInfo {
    /// Its address.
    pub mac: String,
    /// The VLAN in which it was heard of, where the bridge looks at them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vlan: Option<u16>,
    /// The device.
    pub dev: String,
    /// Seconds since it was last heard of.
    pub age_s: u64,
}

/// A management device as an operator asks for it, or changes to one: parameters of `mgmtdev.add` and `mgmtdev.set`, and
/// what the state file and the configuration keep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct MgmtEntry {
    /// `KIND/NAME`.
    pub name: String,
    /// Its attributes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub attributes: BTreeMap<String, String>,
}

/// Answer of `mgmtdev.add` and `mgmtdev.set`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MgmtdevChanged {
    /// The management device.
    pub changed: String,
    /// Its attributes as they are now.
    pub settings: BTreeMap<String, String>,
}

/// Answer of `mgmtdev.del`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MgmtdevDeleted {
    /// The management device.
    pub deleted: String,
    /// The devices that were removed with it.
    pub devices: Vec<String>,
    /// What else the operator should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// An attribute of a driver's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AttributeHelp {
    /// The keyword.
    pub name: String,
    /// What a value looks like.
    pub value: String,
    /// One line of help.
    pub help: String,
}

impl AttributeHelp {
    /// What a driver declares.
    pub fn all(declared: &[AttributeInfo]) -> Vec<AttributeHelp> {
        let help = |attribute: &AttributeInfo| AttributeHelp {
            name: attribute.name.to_owned(),
            value: attribute.value.to_owned(),
            help: attribute.help.to_owned(),
        };
        declared.iter().map(help).collect()
    }

    /// What a management device declares of its functions.
    pub fn of_functions(info: &MgmtInfo) -> Vec<AttributeHelp> {
        info.functions.as_ref().map(|functions| AttributeHelp::all(&functions.attributes)).unwrap_or_default()
    }
}

/// Who owns a device's socket.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Ringway listens, the VMM connects.
    #[default]
    Server,
    /// The VMM listens, Ringway connects.
    Client,
    /// There is none: the other side is a kernel's interface. Not to be asked for.
    Netdev,
    /// There is none: the other side is a network, by a function of the host's. Not to be asked for.
    Uplink,
}

impl Mode {
    /// The word for it.
    pub fn name(self) -> &'static str {
        match self {
            Mode::Server => "server",
            Mode::Client => "client",
            Mode::Netdev => "netdev",
            Mode::Uplink => "uplink",
        }
    }
}

/// A device as an operator asks for it: parameters of `dev.add`, and what the state file and the configuration keep.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DevAdded {
    /// The device.
    pub added: String,
    /// Its socket; absent for a device of the host's.
    #[serde(default, skip_serializing_if = "is_none")]
    pub socket: PathBuf,
    /// Who owns the socket.
    pub mode: Mode,
    /// The core of each group of its queues.
    pub cores: Vec<usize>,
    /// What else the operator should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// True for the path of no socket.
fn is_none(path: &std::path::Path) -> bool {
    path.as_os_str().is_empty()
}

/// Answer of `dev.del`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DevDeleted {
    /// The device.
    pub deleted: String,
    /// What else the operator should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Parameters of `dev.set`: at least one change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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

impl DevSet {
    /// What a device is to be that is to be changed so.
    pub(crate) fn applied_to(&self, entry: &DeviceEntry) -> DeviceEntry {
        let mut entry = entry.clone();
        entry.mac = self.mac.clone().or(entry.mac);
        entry.mtu = self.mtu.or(entry.mtu);
        entry.core = self.core.or(entry.core);
        entry.attributes.extend(self.attributes.clone());
        entry
    }
}

/// Answer of `dev.set`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DevChanged {
    /// The device.
    pub changed: String,
    /// False: accepted, and in force when the notes say.
    pub applied: bool,
    /// What else the operator should know.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Parameters of `events`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Follow {
    /// The last event that the client has seen. Without it: from now on. 0 without an instance: all that are kept, those of
    /// earlier instances included.
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
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
    /// The daemon's instance, of an event that an earlier one told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// What is particular to this event.
    #[serde(flatten)]
    pub details: Map<String, Value>,
}

/// Answer of `metrics.show`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MetricsText {
    /// What is scraped, in the text format of OpenMetrics.
    pub text: String,
}

/// Answer of `config.dump`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
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
