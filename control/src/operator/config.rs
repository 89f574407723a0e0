//! The configuration file: what shall run, in TOML.
//!
//! ```toml
//! [daemon]
//! cores = [2, 3]          # or "2-3"; default: the last core that the process may use
//! idle = "adaptive"       # or "poll"
//! ctl = "/run/ringway/ctl.sock"
//! state_dir = "/var/lib/ringway"
//! view = "/run/ringway/view.sock"  # for those who may see and not change
//! view_group = "ringway-view"
//! metrics = "127.0.0.1:9178"
//! log = "info"
//!
//! [[mgmtdev]]             # only for what differs from the default: naming bridge/br0 below is enough
//! name = "bridge/br0"
//! ageing = 600
//!
//! [[port]]                # a function of hardware that can be divided: the words of `ringway port`
//! mgmtdev = "simnic/nic0" # a [[mgmtdev]] of the file
//! sfnum = 88
//! state = "active"
//!
//! [[device]]
//! name = "vm0"
//! mgmtdev = "sim/net"
//! max_vqp = 4             # the words of `ringway dev add`, the driver's own among them
//! ```
//!
//! An unknown key is an error that names its line and the nearest key.

mod whole;

use std::ops::Range;
use std::path::{Path, PathBuf};

use ringway_engine::IdlePolicy;
use ringway_pmd::vdpa::MgmtInfo;
use serde_json::{Map, Value, json};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

use crate::devices::checks::{ATTRIBUTES, check_entry, check_mgmt_entry, check_port_entry, number_of};
use crate::devices::known::Known;
use crate::devices::placement::parse_cores;
use crate::fault::{Fault, nearest, printable};
use crate::operator::api::{DeviceEntry, Dump, FLAVOUR, MgmtEntry, Mode, PortEntry, PortState};
use crate::operator::config::whole::{AllPlaces, Places};
use crate::settings::Settings;

/// What a file asks for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Desired {
    /// Cores of the workers, if given.
    pub cores: Option<Vec<usize>>,
    /// Idle policy, if given.
    pub idle: Option<IdlePolicy>,
    /// Operator socket, if given.
    pub ctl: Option<PathBuf>,
    /// State directory, if given.
    pub state_dir: Option<PathBuf>,
    /// View-only operator socket, if given.
    pub view: Option<PathBuf>,
    /// Its group, if given.
    pub view_group: Option<String>,
    /// Where metrics are scraped, if anywhere.
    pub metrics: Option<String>,
    /// Log level, if given.
    pub log: Option<String>,
    /// Management devices, in the file's order.
    pub mgmtdevs: Vec<MgmtEntry>,
    /// Ports, in the file's order.
    pub ports: Vec<PortEntry>,
    /// Devices, in the file's order.
    pub devices: Vec<DeviceEntry>,
    /// Where all that stands.
    places: AllPlaces,
}

/// The longest file, in bytes: some ten thousand devices. The same wherever one is read, at the start, by SIGHUP, or sent by a command.
pub(crate) const LONGEST_FILE: usize = 1 << 20;
/// Keys of `[daemon]`.
pub const DAEMON_KEYS: [&str; 8] =
    ["cores", "idle", "ctl", "view", "view_group", "metrics", "state_dir", "log"];
/// Tables of the file.
const TABLES: [&str; 4] = ["daemon", "mgmtdev", "port", "device"];
/// Keys of `[[port]]`, beside its function's attributes.
pub const PORT_KEYS: [&str; 5] = ["mgmtdev", "flavour", "pfnum", "sfnum", "state"];

/// Reads and checks a file against the drivers that are known.
///
/// # Errors
/// The first thing that is wrong, with file and line.
pub fn read(path: &Path, known: &Known) -> Result<Desired, Fault> {
    first(read_all(path, known)?)
}

/// Reads a file and tells all that is wrong with it.
///
/// # Errors
/// It cannot be read.
pub(crate) fn read_all(path: &Path, known: &Known) -> Result<(Desired, Vec<Fault>), Fault> {
    Ok(parse_all(&text_of(path)?, &path.display().to_string(), known))
}

/// The text of a file, whether the daemon reads it or a command that sends it.
///
/// # Errors
/// It cannot be read, is longer than [`LONGEST_FILE`], or is no text.
pub(crate) fn text_of(path: &Path) -> Result<String, Fault> {
    let shown = path.display().to_string();
    let text = crate::host::input::read(path)
        .map_err(|error| Fault::system(format!("cannot read {shown}"), error))?;
    check_length(text.len(), &shown)?;
    String::from_utf8(text).map_err(|error| {
        let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
        let place = format!("{shown}:{}", before.iter().filter(|byte| **byte == b'\n').count() + 1);
        Fault::usage(format!("{place}: this is not UTF-8")).at(place)
    })
}

fn check_length(bytes: usize, file: &str) -> Result<(), Fault> {
    if bytes <= LONGEST_FILE {
        return Ok(());
    }
    let why = format!("{file} has {bytes} bytes: a configuration file has {LONGEST_FILE} at most");
    Err(Fault::usage(why).at(file).hint("what operators add (ringway dev add) is kept beside the file"))
}

/// Whether a text names a network namespace by the path of a file. One that cannot be read names none.
pub(crate) fn names_namespaces_by_path(text: &str) -> bool {
    let Ok(table) = DeTable::parse(text) else { return false };
    let tables = table.get_ref().values().filter_map(|value| value.get_ref().as_array()).flatten();
    let named = tables.filter_map(|table| table.get_ref().as_table()?.get("netns")?.get_ref().as_str());
    named.into_iter().any(|netns| netns.contains('/'))
}

/// Reads and checks a file's text; `file` is what it is called in faults.
///
/// # Errors
/// The first thing that is wrong, with file and line.
pub fn parse(text: &str, file: &str, known: &Known) -> Result<Desired, Fault> {
    first(parse_all(text, file, known))
}

fn first((desired, faults): (Desired, Vec<Fault>)) -> Result<Desired, Fault> {
    match faults.into_iter().next() {
        None => Ok(desired),
        Some(fault) => Err(fault),
    }
}

/// What a text asks for, as far as it is good, and all that is wrong with it.
fn parse_all(text: &str, file: &str, known: &Known) -> (Desired, Vec<Fault>) {
    if let Err(fault) = check_length(text.len(), file) {
        return (Desired::default(), vec![fault]);
    }
    let source = Source::new(text, file);
    let (mut desired, mut faults) = (Desired::default(), Vec::new());
    let table = match DeTable::parse(text) {
        Ok(table) => table,
        Err(error) => {
            let at = error.span().unwrap_or(0..0);
            return (desired, vec![source.fault(at, error.message().to_owned())]);
        }
    };
    for (key, value) in table.get_ref() {
        match (key.get_ref().as_ref(), value.get_ref()) {
            ("daemon", DeValue::Table(table)) => {
                desired.places.daemon = source.places(key.span(), table);
                source.daemon(table, &mut desired, &mut faults);
            }
            ("device", DeValue::Array(devices)) => {
                for device in devices.iter() {
                    let DeValue::Table(table) = device.get_ref() else {
                        faults.push(source.fault(device.span(), "a device is a table: [[device]]"));
                        continue;
                    };
                    if let Some(entry) = source.device(device.span(), table, known, &mut faults) {
                        desired.devices.push(entry);
                        desired.places.devices.push(source.places(device.span(), table));
                    }
                }
            }
            ("mgmtdev", DeValue::Array(mgmtdevs)) => {
                for mgmtdev in mgmtdevs.iter() {
                    let DeValue::Table(table) = mgmtdev.get_ref() else {
                        let why = "a management device is a table: [[mgmtdev]]";
                        faults.push(source.fault(mgmtdev.span(), why));
                        continue;
                    };
                    match source.mgmtdev(mgmtdev.span(), table, known) {
                        Ok(entry) => {
                            desired.mgmtdevs.push(entry);
                            desired.places.mgmtdevs.push(source.places(mgmtdev.span(), table));
                        }
                        Err(fault) => faults.push(fault),
                    }
                }
            }
            ("port", DeValue::Array(ports)) => {
                for port in ports.iter() {
                    let DeValue::Table(table) = port.get_ref() else {
                        faults.push(source.fault(port.span(), "a port is a table: [[port]]"));
                        continue;
                    };
                    match source.port(port.span(), table, known) {
                        Ok(entry) => {
                            desired.ports.push(entry);
                            desired.places.ports.push(source.places(port.span(), table));
                        }
                        Err(fault) => faults.push(fault),
                    }
                }
            }
            ("port", _) => faults.push(source.fault(key.span(), "`port` is a list of tables: [[port]]")),
            ("mgmtdev", _) => {
                faults.push(source.fault(key.span(), "`mgmtdev` is a list of tables: [[mgmtdev]]"));
            }
            ("daemon", _) => faults.push(source.fault(key.span(), "`daemon` is a table: [daemon]")),
            ("device", _) => {
                faults.push(source.fault(key.span(), "`device` is a list of tables: [[device]]"));
            }
            (other, _) => faults.push(source.unknown(key.span(), other, TABLES)),
        }
    }
    // The order of tables is free, so this waits for the last.
    faults.extend(desired.check_whole(known));
    (desired, faults)
}

/// A text and what it is called.
struct Source<'a> {
    file: &'a str,
    /// Where its lines end.
    lines: Vec<usize>,
}

impl<'a> Source<'a> {
    fn new(text: &'a str, file: &'a str) -> Source<'a> {
        Source { file, lines: text.match_indices('\n').map(|(at, _)| at).collect() }
    }

    fn place(&self, at: &Range<usize>) -> String {
        let line = self.lines.partition_point(|end| *end < at.start) + 1;
        format!("{}:{line}", self.file)
    }

    fn fault(&self, at: Range<usize>, why: impl Into<String>) -> Fault {
        let place = self.place(&at);
        Fault::usage(format!("{place}: {}", why.into())).at(place)
    }

    fn unknown<'k>(
        &self,
        at: Range<usize>,
        key: &str,
        known: impl IntoIterator<Item = &'k str> + Clone,
    ) -> Fault {
        let fault = self.fault(at, format!("unknown key `{}`", printable(key)));
        match nearest(key, known.clone()) {
            Some(near) => fault.hint(format!("did you mean {near}?")),
            None => fault.hint(format!("one of: {}", known.into_iter().collect::<Vec<_>>().join(", "))),
        }
    }

    fn places(&self, at: Range<usize>, table: &DeTable<'_>) -> Places {
        let keys = table.iter().map(|(key, _)| (key.get_ref().to_string(), self.place(&key.span())));
        Places(keys.chain([(String::new(), self.place(&at))]).collect())
    }

    fn key_span(&self, table: &DeTable<'_>, key: &str, otherwise: Range<usize>) -> Range<usize> {
        table.iter().find(|(name, _)| name.get_ref() == key).map_or(otherwise, |(name, _)| name.span())
    }

    fn daemon(&self, table: &DeTable<'_>, desired: &mut Desired, faults: &mut Vec<Fault>) {
        for (key, value) in table {
            faults.extend(self.daemon_key(key, value, desired).err());
        }
    }

    fn daemon_key(
        &self,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
        desired: &mut Desired,
    ) -> Result<(), Fault> {
        match key.get_ref().as_ref() {
            "cores" => desired.cores = Some(self.cores(value)?),
            "idle" => {
                desired.idle = Some(match self.string(value)?.as_str() {
                    "poll" => IdlePolicy::Poll,
                    "adaptive" => IdlePolicy::Adaptive,
                    _ => return Err(self.fault(value.span(), "idle is \"adaptive\" or \"poll\"")),
                });
            }
            "ctl" => desired.ctl = Some(self.path(value)?),
            "state_dir" => desired.state_dir = Some(self.path(value)?),
            "view" => desired.view = Some(self.path(value)?),
            "view_group" => desired.view_group = Some(self.string(value)?),
            "metrics" => desired.metrics = Some(self.string(value)?),
            "log" => desired.log = Some(self.string(value)?),
            other => return Err(self.unknown(key.span(), other, DAEMON_KEYS)),
        }
        Ok(())
    }

    /// A device, if it is good in itself.
    fn device(
        &self,
        at: Range<usize>,
        table: &DeTable<'_>,
        known: &Known,
        faults: &mut Vec<Fault>,
    ) -> Option<DeviceEntry> {
        let mut entry = DeviceEntry::default();
        let mgmtdev = table.get("mgmtdev").and_then(|value| value.get_ref().as_str()).unwrap_or_default();
        let info = known.find(mgmtdev);
        let before = faults.len();
        for (key, value) in table {
            faults.extend(self.device_key(key, value, info.as_ref(), &mut entry).err());
        }
        if faults.len() > before {
            return None;
        }
        let checked = check_entry(&entry, known).map_err(|fault| {
            let key = fault.path.clone().unwrap_or_default();
            let place = self.place(&self.key_span(table, &key, at));
            Fault { message: format!("{place}: {}", fault.message), path: Some(place), ..fault }
        });
        faults.extend(checked.err());
        (faults.len() == before).then_some(entry)
    }

    fn device_key(
        &self,
        key: &Spanned<std::borrow::Cow<'_, str>>,
        value: &Spanned<DeValue<'_>>,
        info: Option<&MgmtInfo>,
        entry: &mut DeviceEntry,
    ) -> Result<(), Fault> {
        let own = info.map(|info| info.attributes.as_slice()).unwrap_or_default();
        match key.get_ref().as_ref() {
            "name" => entry.name = self.string(value)?,
            "mgmtdev" => entry.mgmtdev = self.string(value)?,
            "mac" => entry.mac = Some(self.string(value)?),
            "mtu" => entry.mtu = Some(self.number("mtu", value)?),
            "max_vqp" => entry.max_vqp = Some(self.number("max_vqp", value)?),
            "device_features" => entry.device_features = Some(self.words(value)?),
            "socket" => entry.socket = Some(self.path(value)?),
            "mode" => {
                entry.mode = Some(match self.string(value)?.as_str() {
                    "server" => Mode::Server,
                    "client" => Mode::Client,
                    _ => return Err(self.fault(value.span(), "mode is \"server\" or \"client\"")),
                });
            }
            "core" => entry.core = Some(self.number("core", value)?),
            "owner" => entry.owner = Some(self.scalar("owner", value)?),
            "group" => entry.group = Some(self.scalar("group", value)?),
            other if own.iter().any(|attribute| attribute.name == other) => {
                entry.attributes.insert(other.to_owned(), self.scalar(other, value)?);
            }
            // Without its driver, no telling which words are right: the driver's name is the error then.
            _ if info.is_none() => {}
            other => {
                let own = own.iter().map(|attribute| attribute.name);
                let words: Vec<&str> = ATTRIBUTES.into_iter().chain(own).collect();
                return Err(self.unknown(key.span(), other, words));
            }
        }
        Ok(())
    }

    fn mgmtdev(&self, at: Range<usize>, table: &DeTable<'_>, known: &Known) -> Result<MgmtEntry, Fault> {
        let mut entry = MgmtEntry::default();
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "name" => entry.name = self.string(value)?,
                other => {
                    entry.attributes.insert(other.to_owned(), self.scalar(other, value)?);
                }
            }
        }
        check_mgmt_entry(&entry, known).map_err(|fault| {
            let key = fault.path.clone().unwrap_or_default();
            let place = self.place(&self.key_span(table, &key, at));
            Fault { message: format!("{place}: {}", fault.message), path: Some(place), ..fault }
        })?;
        Ok(entry)
    }

    fn port(&self, at: Range<usize>, table: &DeTable<'_>, known: &Known) -> Result<PortEntry, Fault> {
        let mut entry = PortEntry {
            mgmtdev: String::new(),
            flavour: FLAVOUR.to_owned(),
            pfnum: 0,
            sfnum: 0,
            state: PortState::default(),
            attributes: Default::default(),
        };
        for (key, value) in table {
            match key.get_ref().as_ref() {
                "mgmtdev" => entry.mgmtdev = self.string(value)?,
                "flavour" => entry.flavour = self.string(value)?,
                "pfnum" => entry.pfnum = self.number("pfnum", value)?,
                "sfnum" => entry.sfnum = self.number("sfnum", value)?,
                "state" => {
                    entry.state = match self.string(value)?.as_str() {
                        "active" => PortState::Active,
                        "inactive" => PortState::Inactive,
                        _ => return Err(self.fault(value.span(), "state is \"active\" or \"inactive\"")),
                    };
                }
                other => {
                    entry.attributes.insert(other.to_owned(), self.scalar(other, value)?);
                }
            }
        }
        let checked = match table.get("sfnum") {
            None => Err(Fault::usage("a port has an sfnum: a number of your choice")),
            Some(_) => check_port_entry(&entry, known),
        };
        checked.map_err(|fault| {
            let key = fault.path.clone().unwrap_or_default();
            let place = self.place(&self.key_span(table, &key, at));
            Fault { message: format!("{place}: {}", fault.message), path: Some(place), ..fault }
        })?;
        Ok(entry)
    }

    fn string(&self, value: &Spanned<DeValue<'_>>) -> Result<String, Fault> {
        let text = value.get_ref().as_str();
        text.map(str::to_owned).ok_or_else(|| self.fault(value.span(), "this must be a string"))
    }

    fn path(&self, value: &Spanned<DeValue<'_>>) -> Result<PathBuf, Fault> {
        let path = self.string(value)?;
        if path.is_empty() {
            return Err(self.fault(value.span(), "a path cannot be empty: leave the key out for the default"));
        }
        Ok(PathBuf::from(path))
    }

    fn number<T: TryFrom<u64>>(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<T, Fault> {
        let number = value.get_ref().as_integer();
        let number = number.and_then(|number| u64::from_str_radix(number.as_str(), number.radix()).ok());
        number
            .and_then(|number| T::try_from(number).ok())
            .ok_or_else(|| self.fault(value.span(), format!("{key} must be {}", number_of(key))))
    }

    /// A string, a number, or a switch: `true` is `on`.
    fn scalar(&self, key: &str, value: &Spanned<DeValue<'_>>) -> Result<String, Fault> {
        match value.get_ref() {
            DeValue::Boolean(is_on) => Ok(if *is_on { "on" } else { "off" }.to_owned()),
            // One that is no good is refused by whoever knows what would be.
            DeValue::Integer(text) => {
                let number = u64::from_str_radix(text.as_str(), text.radix());
                Ok(number.map_or_else(|_| text.as_str().to_owned(), |number| number.to_string()))
            }
            _ => self.string(value).map_err(|_| {
                self.fault(value.span(), format!("{key} must be a string, a number or a switch"))
            }),
        }
    }

    /// A string, or a list of strings that are joined by commas.
    fn words(&self, value: &Spanned<DeValue<'_>>) -> Result<String, Fault> {
        match value.get_ref() {
            DeValue::Array(words) => {
                let words: Result<Vec<String>, Fault> = words.iter().map(|word| self.string(word)).collect();
                Ok(words?.join(","))
            }
            _ => self.string(value),
        }
    }

    fn cores(&self, value: &Spanned<DeValue<'_>>) -> Result<Vec<usize>, Fault> {
        match value.get_ref() {
            DeValue::Array(cores) if cores.is_empty() => {
                Err(self.fault(value.span(), "cores names no core: leave the key out for the default"))
            }
            DeValue::Array(cores) => cores.iter().map(|core| self.number("cores", core)).collect(),
            _ => parse_cores(&self.string(value)?).map_err(|why| self.fault(value.span(), why)),
        }
    }
}

/// A device or port that was asked for and could not be made.
pub(crate) struct NotMade<'a> {
    pub(crate) entry: Asked<'a>,
    pub(crate) why: &'a str,
    /// As it is, it never can be.
    pub(crate) is_final: bool,
}

/// What was asked for.
pub(crate) enum Asked<'a> {
    Port(&'a PortEntry),
    Device(&'a DeviceEntry),
}

/// Writes what runs as a file that makes it, and as data. What could not be made follows; what never can be, as a comment.
pub(crate) fn dump(
    settings: &Settings,
    places: &[(&str, String)],
    mgmtdevs: &[MgmtEntry],
    ports: &[PortEntry],
    devices: &[DeviceEntry],
    not_made: &[NotMade<'_>],
) -> Dump {
    let mut daemon = Map::new();
    daemon.insert("cores".into(), json!(settings.cores));
    daemon.insert("idle".into(), json!(settings.idle.name()));
    daemon.extend(places.iter().map(|(key, value)| ((*key).to_owned(), json!(value))));
    let mgmtdevs: Vec<Map<String, Value>> = mgmtdevs.iter().map(flat).collect();
    let ports: Vec<Map<String, Value>> = ports.iter().map(flat).collect();
    let devices: Vec<Map<String, Value>> = devices.iter().map(flat).collect();
    let mut toml = String::from("[daemon]\n");
    write_table(&mut toml, &daemon);
    for mgmtdev in &mgmtdevs {
        toml.push_str("\n[[mgmtdev]]\n");
        write_table(&mut toml, mgmtdev);
    }
    for port in &ports {
        toml.push_str("\n[[port]]\n");
        write_table(&mut toml, port);
    }
    for device in &devices {
        toml.push_str("\n[[device]]\n");
        write_table(&mut toml, device);
    }
    let mut config = json!({ "daemon": daemon, "mgmtdev": mgmtdevs, "device": devices });
    if !ports.is_empty() {
        config["port"] = json!(ports);
    }
    for NotMade { entry, why, is_final } in not_made {
        let why: String = why.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        toml.push_str(&format!("\n# not made: {why}\n"));
        let (kind, name, keys) = match entry {
            Asked::Port(entry) => ("port", entry.handle(), flat(entry)),
            Asked::Device(entry) => ("device", entry.name.clone(), flat(entry)),
        };
        let mut table = format!("[[{kind}]]\n");
        write_table(&mut table, &keys);
        for line in table.lines() {
            // Else no daemon would start with the file.
            toml.push_str(if *is_final { "# " } else { "" });
            toml.push_str(line);
            toml.push('\n');
        }
        config["not_made"][&name] = json!(why);
        if !is_final {
            match &mut config[kind] {
                Value::Array(all) => all.push(keys.into()),
                none => *none = json!([keys]),
            }
        }
    }
    Dump { toml, config }
}

/// A device's keys side by side, the driver's own last.
fn flat<T: serde::Serialize>(entry: &T) -> Map<String, Value> {
    let Ok(Value::Object(mut keys)) = serde_json::to_value(entry) else { return Map::new() };
    if let Some(Value::Object(own)) = keys.remove("attributes") {
        keys.extend(own);
    }
    keys
}

fn write_table(toml: &mut String, table: &Map<String, Value>) {
    for (key, value) in table {
        // Strings, numbers and lists of numbers are written alike in JSON and TOML but for a string's escapes.
        let text = match value {
            Value::String(text) => toml::Value::String(text.clone()).to_string(),
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(Value::to_string).collect();
                format!("[{}]", items.join(", "))
            }
            other => other.to_string(),
        };
        toml.push_str(&format!("{key} = {text}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::devices::known::tests::known;

    #[test]
    fn management_devices_by_name_need_no_table_and_may_have_one() {
        let text = "[[device]]\nname = \"a\"\nmgmtdev = \"bridge/br0\"\nspoofchk = true\nflood_pps = 5\n";
        let desired = parse(text, "f.toml", &known()).unwrap();
        assert_eq!(desired.devices[0].attributes["spoofchk"], "on");
        let text = "[[mgmtdev]]\nname = \"bridge/br0\"\nageing = 60\n";
        let desired = parse(text, "f.toml", &known()).unwrap();
        assert_eq!(desired.mgmtdevs[0].attributes["ageing"], "60");
        assert!(refusal("[[mgmtdev]]\nname = \"bridge/br0\"\nagein = 60\n").contains("f.toml:3"));
        assert!(refusal("[[mgmtdev]]\nname = \"brigde/br0\"\n").contains("did you mean bridge/br0?"));
        assert!(refusal("[[device]]\nname = \"a\"\nmgmtdev = \"bridge/br 0\"\n").contains("cannot be"));
        let text = "[[device]]\nname = \"a\"\nmgmtdev = \"bridge/br0\"\ncore = 1\n";
        assert_eq!(parse(text, "f.toml", &known()).unwrap().devices[0].core, Some(1));
        let text = "[[device]]\nname = \"a\"\nmgmtdev = \"simnic/n0\"\ncore = 1\n";
        assert!(refusal(text).contains("serves all its devices on one core"));
    }

    fn refusal(text: &str) -> String {
        parse(text, "f.toml", &known()).unwrap_err().to_string()
    }

    #[test]
    fn whole_file_is_read() {
        let text = r#"
            [daemon]
            cores = "1-2"
            idle = "poll"
            log = "debug"
            [[device]]
            name = "vm0"
            mgmtdev = "sim/net"
            mtu = 9000
            device_features = ["MTU", "VERSION_1"]
            mode = "server"
            socket = "/tmp/a.sock"
            group = 107
            swap = true
            [[device]]
            name = "vm1"
            mgmtdev = "sim/net"
        "#;
        let desired = parse(text, "f.toml", &known()).unwrap();
        assert_eq!(desired.cores.as_deref(), Some(&[1, 2][..]));
        assert_eq!(desired.idle, Some(IdlePolicy::Poll));
        let vm0 = &desired.devices[0];
        assert_eq!(vm0.device_features.as_deref(), Some("MTU,VERSION_1"));
        assert_eq!((vm0.mode, vm0.group.as_deref(), vm0.mtu), (Some(Mode::Server), Some("107"), Some(9000)));
        assert_eq!(vm0.attributes["swap"], "on");
        assert_eq!(desired.devices.len(), 2);
    }

    #[test]
    fn unknown_keys_name_line_and_nearest() {
        assert_eq!(
            refusal("[daemon]\ncors = [1]\n"),
            "error: f.toml:2: unknown key `cors`\n  try: did you mean cores?"
        );
        assert!(
            refusal("\n\n[devise]\n").contains("f.toml:3: unknown key `devise`\n  try: did you mean device?")
        );
        let text = "[[device]]\nname = \"a\"\nmgmtdev = \"sim/net\"\nmax_vpq = 2\n";
        assert!(refusal(text).contains("f.toml:4: unknown key `max_vpq`\n  try: did you mean max_vqp?"));
        let text = "[[device]]\nname = \"a\"\nmgmtdev = \"sim/net\"\nswab = \"on\"\n";
        assert!(refusal(text).contains("did you mean swap?"));
    }

    #[test]
    fn what_cannot_be_names_its_line() {
        assert!(
            refusal("[[device]]\nname = \"a\"\nmgmtdev = \"sim/nut\"\nswap = 1")
                .starts_with("error: f.toml:3: Fail")
        );
        assert!(
            refusal("[[device]]\nname = \"../a\"\nmgmtdev = \"sim/net\"").starts_with("error: f.toml:2:")
        );
        assert!(refusal("[[device]]\nmgmtdev = \"sim/net\"").contains("f.toml:1: device name is not set"));
        assert!(
            refusal("[[device]]\nname = \"a\"\nmgmtdev = \"sim/net\"\nmtu = 70000").contains("f.toml:4:")
        );
        assert!(
            refusal("[[device]]\nname = \"a\"\nmgmtdev = \"sim/net\"\nmtu = -1")
                .contains("f.toml:4: mtu must be a whole number from 68 to 9000")
        );
        let twice = "[[device]]\nname = \"a\"\nmgmtdev = \"sim/net\"\n".repeat(2);
        assert!(refusal(&twice).contains("f.toml:5: a second device is named a"));
        assert!(refusal("[daemon]\nidle = \"lazy\"").contains("f.toml:2: idle is"));
        assert!(refusal("[daemon\n").contains("f.toml:1:"));
        assert!(refusal("daemon = 3").contains("f.toml:1: `daemon` is a table"));
    }

    #[test]
    fn dump_reads_back_as_what_was_dumped() {
        let devices = vec![
            DeviceEntry {
                name: "vm0".into(),
                mgmtdev: "sim/net".into(),
                mac: Some("52:54:00:00:00:01".into()),
                mtu: Some(1500),
                max_vqp: Some(2),
                socket: Some("/tmp/with \"quotes\" and \\.sock".into()),
                mode: Some(Mode::Server),
                core: Some(3),
                owner: Some("root".into()),
                attributes: [("swap".into(), "on".into())].into(),
                ..DeviceEntry::default()
            },
            DeviceEntry {
                name: "vm1".into(),
                mgmtdev: "sim/net".into(),
                mode: Some(Mode::Client),
                ..DeviceEntry::default()
            },
        ];
        let settings = Settings { cores: vec![1, 3], idle: IdlePolicy::Poll };
        let bridge =
            MgmtEntry { name: "bridge/b".into(), attributes: [("ageing".into(), "9".into())].into() };
        let nic = MgmtEntry { name: "simnic/n".into(), attributes: Default::default() };
        let mgmtdevs = [bridge, nic];
        let port = PortEntry {
            mgmtdev: "simnic/n".into(),
            flavour: FLAVOUR.into(),
            pfnum: 0,
            sfnum: 88,
            state: PortState::Active,
            attributes: [("max_io_eqs".into(), "2".into())].into(),
        };
        let ports = [port.clone(), PortEntry { sfnum: 7, state: PortState::Inactive, ..port }];
        let places =
            [("ctl", "/run/c.sock"), ("view", "/run/v.sock"), ("view_group", "g"), ("metrics", "[::1]:9")];
        let places = places.map(|(key, value)| (key, value.to_owned()));
        let dump = dump(&settings, &places, &mgmtdevs, &ports, &devices, &[]);
        let read = parse(&dump.toml, "dump", &known()).unwrap();
        assert_eq!((&read.devices[..], &read.mgmtdevs[..]), (&devices[..], &mgmtdevs[..]));
        assert_eq!(read.ports, ports);
        assert_eq!((read.cores, read.idle), (Some(vec![1, 3]), Some(IdlePolicy::Poll)));
        assert_eq!(read.ctl.as_deref(), Some(Path::new("/run/c.sock")));
        assert_eq!(read.view.as_deref(), Some(Path::new("/run/v.sock")));
        assert_eq!((read.view_group.as_deref(), read.metrics.as_deref()), (Some("g"), Some("[::1]:9")));
        assert_eq!(dump.config["device"][0]["swap"], "on");
    }
}
