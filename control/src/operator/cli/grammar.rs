//! What the words of a command line mean: the shortened words of `vdpa(8)`, and keywords with values.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::Duration;

use crate::fault::{Fault, nearest};
use crate::operator::api::{
    DevSet, DeviceEntry, FLAVOUR, MgmtEntry, Mode, PortEntry, PortSet, PortState, Select, VlanChange,
};

/// A keyword of `dev add` or `dev set`.
#[derive(Debug, Clone, Copy)]
pub struct Keyword {
    /// The word.
    pub name: &'static str,
    /// What its value looks like.
    pub value: &'static str,
    /// One line of help.
    pub help: &'static str,
    /// Whether `dev set` takes it too.
    pub is_settable: bool,
    /// Whether it may be shortened, as `vdpa(8)` does.
    is_short: bool,
}

const fn word(name: &'static str, value: &'static str, help: &'static str) -> Keyword {
    Keyword { name, value, help, is_settable: false, is_short: false }
}

/// Every keyword, those of `vdpa(8)` first and in its order.
pub const KEYWORDS: [Keyword; 11] = [
    Keyword {
        is_short: true,
        ..word("name", "NAME", "the device's name: ASCII letters, digits, `.`, `_`, `-`")
    },
    Keyword {
        is_short: true,
        ..word("mgmtdev", "MGMTDEV", "the management device that makes it: KIND/NAME, BUS/ADDRESS or NAME")
    },
    Keyword {
        is_settable: true,
        ..word(
            "mac",
            "MAC",
            "Ethernet address [default: made of the name and a random number of this host's]",
        )
    },
    Keyword { is_settable: true, ..word("mtu", "N", MTU_HELP) },
    Keyword { is_short: true, ..word("max_vqp", "N", "pairs of queues [default: 1]") },
    word(
        "device_features",
        "MASK|NAMES",
        "features offered at most: a hexadecimal mask, or names joined by commas",
    ),
    word("socket", "PATH", "its socket [default: dev/NAME.sock beside the operator socket]"),
    word("mode", "server|client", "who owns the socket: Ringway, or the VMM [default: server]"),
    Keyword {
        is_settable: true,
        ..word("core", "N", "the core for all its queues [default: the least loaded worker]")
    },
    word("owner", "USER", "owner of the socket: a name or a number"),
    word("group", "GROUP", "group of the socket: a name or a number"),
];

/// Its bounds are those of the drivers: a test holds it to them.
const MTU_HELP: &str = "largest packet without its Ethernet header, 68 to 9000";

/// The keywords as help text.
fn keyword_help(is_wanted: impl Fn(&Keyword) -> bool) -> String {
    let lines = KEYWORDS
        .iter()
        .filter(|keyword| is_wanted(keyword))
        .map(|keyword| format!("  {:<28} {}", format!("{} {}", keyword.name, keyword.value), keyword.help));
    lines.collect::<Vec<_>>().join("\n")
}

/// What stands below the help of `dev add`.
pub(crate) fn add_help() -> String {
    let words = keyword_help(|_| true);
    format!(
        "Keywords:\n{words}\n  Attributes of the driver's own, as `ringway mgmtdev show` lists them: `swap on`.\n\n\
         Example: ringway dev add name vm0 mgmtdev sim/net max_vqp 4 mtu 9000"
    )
}

/// What stands below the help of `dev set`.
pub(crate) fn set_help() -> String {
    let words = keyword_help(|keyword| keyword.is_settable || keyword.name == "name");
    format!("Keywords:\n{words}\n  Attributes of the driver's own, as `ringway mgmtdev show` lists them.")
}

/// Words of `dev show`, and what they mean.
pub(crate) const SHOWN: [(&str, &str); 11] = [
    ("data_path", "pumped: cores move the descriptors; hardware: the device reads the guest's rings itself"),
    ("state", "waiting for a front-end, connected, or on the way between the two"),
    ("server", "Ringway makes the socket and listens; the VMM connects"),
    ("client", "the VMM makes the socket and listens; Ringway connects"),
    (
        "origin",
        "who asked for it: operator (kept in the state directory), config (the file), implied (it came with another)",
    ),
    ("provisioned", "its configuration as it was given, whatever the guest has read of it"),
    (
        "device_features",
        "what it offers; with -j and in events those without a name in vdpa(8) are numbers: 54 is GUEST_USO4, 55 GUEST_USO6, 56 HOST_USO",
    ),
    ("connections", "front-ends that were let in since the device was added"),
    ("refused", "further front-ends that were turned away because one was connected"),
    ("left", "front-ends that were gone again before they were let in"),
    ("breach", "what a front-end did against the vhost-user protocol, by name"),
];

/// What stands below the help of `dev show`.
pub(crate) fn show_help() -> String {
    let lines = SHOWN.iter().map(|(word, meaning)| format!("  {word:<12} {meaning}"));
    format!("Words of it:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

/// Words of `core show`, and what they mean.
pub(crate) const CORE_SHOWN: [(&str, &str); 14] = [
    ("busy, idle, sleep", "shares of the time since ringwayd started"),
    (
        "groups",
        "what was placed on the core: each pair of queues of a device, or a whole bridge or link as one",
    ),
    ("packets, bursts", "what the core moved since ringwayd started, and in how many goes"),
    ("burst", "how much one poll of a pump moved, each up to the next power of two"),
    ("turn_us", "how long one round over all its pumps took that moved something"),
    ("wakeups", "how often it was woken from sleep"),
    ("longest_turn_us", "the longest that one round over all its pumps took"),
    ("preemptions", "how often the kernel gave the core to something else meanwhile"),
    ("run_delay_us", "for how long it had to wait for the core meanwhile"),
    (
        "gives way",
        "it rests 100 us in each 2 ms: its thread has a real-time policy, under which the kernel's own work on the core would wait for ever",
    ),
    ("node, beside", "its memory node, and the other threads of its physical core"),
    ("draining", "it takes no more groups, until ringway core add or del"),
    ("shared with", "another daemon that polls on the core"),
    (
        "pump",
        "what serves queues; its counters begin at 0 whenever it is made anew, as a bridge's is when a port comes or goes",
    ),
];

/// What stands below the help of `core show`.
pub(crate) fn core_help() -> String {
    let lines = CORE_SHOWN.iter().map(|(word, meaning)| format!("  {word:<18} {meaning}"));
    format!("Words of it:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

/// What stands below the help of `events`.
pub(crate) fn events_help() -> String {
    format!("Types: {}", crate::operator::events::TYPES.join(", "))
}

/// What stands below the help of `mgmtdev add` and `mgmtdev set`.
pub(crate) fn kinds_help() -> String {
    let mut text = String::from("Kinds, of which there is one of any name once it is named:");
    for kind in crate::devices::drivers::known().kinds {
        text.push_str(&format!("\n  {:<28} {}", format!("{}/NAME", kind.name), kind.device.summary));
        for setting in kind.attributes {
            text.push_str(&format!(
                "\n    {:<26} {}",
                format!("{} {}", setting.name, setting.value),
                setting.help
            ));
        }
    }
    text.push_str("\nAdded so, tap/NAME keeps to its interface's name from one guest's device to the next; it has no settings.");
    text
}

/// Keywords of `port add`, as devlink(8) has them.
pub const PORT_KEYWORDS: [Keyword; 3] = [
    word("flavour", FLAVOUR, "a subfunction [default: pcisf]"),
    word("pfnum", "N", "the physical function that it is a part of [default: 0]"),
    word("sfnum", "N", "its number, your choice: the port is MGMTDEV/SFNUM"),
];

/// The keyword of `port function set` that every function has.
pub const STATE: Keyword = word(
    "state",
    "active|inactive",
    "active: it is there, a management device; inactive: it is not, and what was made with it is gone",
);

/// Words of `port show`, and what they mean.
pub(crate) const PORT_SHOWN: [(&str, &str); 3] = [
    ("opstate", "attached: a driver has the function, its management device is there; else detached"),
    ("mgmtdev", "what the function is for ringway dev add, while it is active"),
    ("devices", "what was made with it"),
];

/// What stands below the help of `port show`.
pub(crate) fn port_show_help() -> String {
    let lines = PORT_SHOWN.iter().map(|(word, meaning)| format!("  {word:<12} {meaning}"));
    format!("Words of it:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

fn keyword_line(keyword: &Keyword) -> String {
    format!("  {:<28} {}", format!("{} {}", keyword.name, keyword.value), keyword.help)
}

/// What stands below the help of `port add`.
pub(crate) fn port_add_help() -> String {
    let lines: Vec<String> = PORT_KEYWORDS.iter().map(keyword_line).collect();
    format!(
        "Keywords:\n{}\n\nExample: ringway mgmtdev add name simnic/nic0\n         ringway port add simnic/nic0 flavour {FLAVOUR} \
         pfnum 0 sfnum 88\n         ringway port function set simnic/nic0/88 state active\n         ringway dev add name vm0 mgmtdev \
         auxiliary/simnic.nic0.sf.88",
        lines.join("\n")
    )
}

/// What stands below the help of `port function set`.
pub(crate) fn function_help() -> String {
    let mut text = format!("Keywords:\n{}", keyword_line(&STATE));
    let known = crate::devices::drivers::known();
    let kinds = known.kinds.iter().map(|kind| (format!("{}/NAME", kind.name), &kind.device));
    let on_buses = known.buses.iter().flat_map(|bus| {
        bus.at_most.iter().map(|info| (format!("{}/{}", bus.info.name, bus.info.shape), info))
    });
    for (name, info) in kinds.chain(on_buses) {
        for attribute in info.functions.iter().flat_map(|functions| &functions.attributes) {
            let term = format!("{} {}", attribute.name, attribute.value);
            text.push_str(&format!("\n  {term:<28} {} ({name})", attribute.help));
        }
    }
    text
}

/// The first of `known` that `word` begins; `matches()` of iproute2.
fn shortened<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known.iter().copied().find(|full| !word.is_empty() && full.starts_with(word))
}

/// Options that a value follows.
const WITH_VALUE: [&str; 16] = [
    "--cores",
    "--root",
    "--ctl",
    "--timeout",
    "--since",
    "--type",
    "--within",
    "--seconds",
    "--ring",
    "--count",
    "-n",
    "--line",
    "--batch",
    "-b",
    "--write",
    "-w",
];

/// Where the words of a command line are that are neither options nor an option's value.
pub(crate) fn words(args: &[OsString]) -> Vec<usize> {
    sorted(args).0
}

/// Where the options of a command line are.
pub(crate) fn options(args: &[OsString]) -> Vec<usize> {
    sorted(args).1
}

/// Whether a value follows an option.
pub(crate) fn takes_value(option: &str) -> bool {
    WITH_VALUE.contains(&option)
}

/// Words, then options.
fn sorted(args: &[OsString]) -> (Vec<usize>, Vec<usize>) {
    let (mut words, mut options) = (Vec::new(), Vec::new());
    let mut is_value = false;
    for (at, arg) in args.iter().enumerate().skip(1) {
        let text = arg.to_string_lossy();
        if std::mem::take(&mut is_value) {
            continue;
        }
        is_value = takes_value(&text);
        if text.starts_with('-') { options.push(at) } else { words.push(at) }
    }
    (words, options)
}

/// Writes shortened objects and commands of `vdpa(8)` in full, so that clap sees one spelling only.
///
/// # Errors
/// An object or a command that there is not.
pub fn normalise(args: Vec<OsString>) -> Result<Vec<OsString>, Fault> {
    let mut full = args;
    let places = words(&full);
    let word = |full: &[OsString], place: usize| full[place].to_string_lossy().into_owned();
    let Some(&first) = places.first() else { return Ok(full) };
    let object = resolve("Object", &word(&full, first), &["mgmtdev", "dev", "help"], OBJECTS)?;
    full[first] = object.into();
    let commands: &[&str] = match object {
        "mgmtdev" => &["help", "show", "list"],
        "dev" => &["help", "show", "list", "add", "del", "config"],
        "port" | "bridge" | "core" | "config" | "rpc" | "log" => &[],
        _ => return Ok(full),
    };
    let Some(&second) = places.get(1) else { return Ok(full) };
    let more: &[&str] = match object {
        "dev" => &["vstats", "set"],
        "mgmtdev" => &["add", "set", "del"],
        "port" => &["show", "list", "add", "del", "function", "help"],
        "bridge" => &["vlan", "help"],
        "core" => &["show", "list", "add", "drain", "del", "balance", "help"],
        "rpc" => &["discover", "help"],
        "log" => &["show", "list", "set", "help"],
        "config" => &["check", "dump", "diff", "apply", "help"],
        _ => &[],
    };
    let command = resolve("Command", &word(&full, second), commands, more)?;
    full[second] = command.into();
    if let (("dev", "config"), Some(&third)) = ((object, command), places.get(2)) {
        let command = resolve("Command", &word(&full, third), &["help", "show"], &[])?;
        full[third] = command.into();
    }
    Ok(full)
}

const OBJECTS: &[&str] = &[
    "port",
    "bridge",
    "core",
    "top",
    "events",
    "config",
    "why",
    "rpc",
    "capture",
    "log",
    "inspect",
    "doctor",
    "bundle",
    "hello",
    "status",
    "wait",
    "demo",
    "completion",
    "complete",
    "man",
];

/// What the help of `status` ends with.
pub const STATUS_HELP: &str = "Exit codes: 0 running with all that it was asked for, 6 not running, 8 degraded: something \
of its configuration or state could not be made, and is named, 9 it runs from an older file than is installed: restart it \
when its guests can spare it. Where both are so, 8.";

/// What the help of `top` ends with.
pub const TOP_HELP: &str = "With -j, a line of JSON for each look, for scripts. Keys: d devices, u queues, c cores and \
their pumps, x drops and faults; s and S sort by the next or the last column, r turns the order round; / filters by name; \
space pauses; + and - change the interval; arrows, PgUp and PgDn move; q ends. Without a daemon it says so and looks again. \
NO_COLOR and TERM=dumb are heeded.";

/// What the help of `inspect` ends with.
pub const INSPECT_HELP: &str = "Parts: daemon, mgmtdevs, kinds, ports, devices, cores, absent, draining. It has what show and -j have of them: \
the type State of the protocol (ringway-reference(7)).

Examples: ringway inspect devices/vm0/queues/*/drops
          ringway inspect cores/*/busy_cycles
          ringway -j inspect devices/*/front_end/pid";

/// What the help of `core balance` ends with.
pub const BALANCE_HELP: &str = "What goes: pairs of queues, or a whole bridge or simnic. What was given a core (core N) stays there, and \
what is near to its hardware stays near. A move under traffic loses nothing.";

/// What stands below the help of `doctor`.
pub(crate) fn doctor_help() -> String {
    let names: Vec<&str> = crate::operator::doctor::all_checks().map(|(name, _)| name).collect();
    format!(
        "Checks: {}. Each finding says what was found, why it matters and what to do; what cannot be read is said as unknown. \
         Exit codes: 0 nothing harms, 8 something does, or with --strict is not as it should be.",
        names.join(", ")
    )
}

/// What stands below the help of `bundle`.
pub(crate) fn bundle_help() -> String {
    let lines = super::bundle::CONTENTS.iter().map(|(name, what)| format!("  {name:<16} {what}"));
    format!(
        "In it:\n{}\nNot in it: anything that guests send or store, environment variables, files of the host's beyond those. There are names, \
         paths and Ethernet addresses in it.",
        lines.collect::<Vec<_>>().join("\n")
    )
}

/// What the help of `wait` ends with.
pub const WAIT_HELP: &str = "Waits for the daemon, too, where none runs yet. Exit codes: 0 it is so far, 7 not within the \
time: the error says how far it is.";

/// A word in full: `short` may be shortened, `exact` may not; what is exact goes first.
fn resolve<'a>(what: &str, word: &str, short: &[&'a str], exact: &[&'a str]) -> Result<&'a str, Fault> {
    let found = exact.iter().copied().find(|full| *full == word).or_else(|| shortened(word, short));
    found.ok_or_else(|| {
        let all: Vec<&str> =
            short.iter().chain(exact).copied().filter(|full| !["help", "complete"].contains(full)).collect();
        let fault = Fault::usage(format!("{what} \"{}\" not found", crate::fault::printable(word)))
            .given(word)
            .expected(all.iter().copied());
        match nearest(word, all.iter().copied()) {
            Some(near) => fault.hint(format!("did you mean {near}?")),
            None => fault.hint(format!("one of: {}", all.join(", "))),
        }
    })
}

/// Keywords and values, a keyword once.
fn pairs(words: &[String]) -> Result<Vec<(String, String)>, Fault> {
    let mut found: Vec<(String, String)> = Vec::new();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let key = keyword(word);
        let Some(value) = words.next() else {
            let is_number = KEYWORDS.iter().any(|keyword| keyword.name == key && keyword.value == "N");
            let expected = if is_number { "number expected" } else { "String parameter expected" };
            let hint = match KEYWORDS.iter().find(|keyword| keyword.name == key) {
                Some(keyword) => format!("{} {}", keyword.name, keyword.value),
                // Most often a name without its keyword: `dev add vm0 mgmtdev sim/net`.
                None => format!(
                    "each keyword has its value: name NAME mgmtdev MGMTDEV ...; `{}` stands last, without one",
                    crate::fault::printable(word)
                ),
            };
            let value = KEYWORDS.iter().find(|keyword| keyword.name == key).map(|keyword| keyword.value);
            return Err(Fault::usage(expected).at(key).expected(value).hint(hint));
        };
        if found.iter().any(|(other, _)| *other == key) {
            return Err(Fault::usage(format!("{key} is given twice")).at(key.clone()).given(word));
        }
        found.push((key, value.clone()));
    }
    Ok(found)
}

/// A keyword in full: exact words go first, then those that may be shortened, in the order of `vdpa(8)`.
pub(crate) fn keyword(word: &str) -> String {
    let exact = KEYWORDS.iter().find(|keyword| keyword.name == word);
    let short = KEYWORDS.iter().filter(|keyword| keyword.is_short).map(|keyword| keyword.name);
    match exact {
        Some(keyword) => keyword.name.to_owned(),
        None => shortened(word, &short.collect::<Vec<_>>()).unwrap_or(word).to_owned(),
    }
}

pub(super) fn number<T: std::str::FromStr>(key: &str, value: &str) -> Result<T, Fault> {
    value.parse().map_err(|_| {
        let shown = crate::fault::printable(value);
        let expected = crate::devices::checks::number_of(key);
        Fault::usage(format!("{key} `{shown}` is not {expected}")).at(key).given(value).expected([expected])
    })
}

/// What `dev add` asks for. Words that are no keywords are the driver's own attributes; the daemon knows them.
///
/// # Errors
/// A value that is missing or cannot be read.
pub fn add_entry(words: &[String]) -> Result<DeviceEntry, Fault> {
    let mut entry = DeviceEntry::default();
    for (key, value) in pairs(words)? {
        match key.as_str() {
            "name" => entry.name = value,
            "mgmtdev" => entry.mgmtdev = value,
            "mac" => entry.mac = Some(value),
            "mtu" => entry.mtu = Some(number(&key, &value)?),
            "max_vqp" => entry.max_vqp = Some(number(&key, &value)?),
            "device_features" => entry.device_features = Some(value),
            "socket" => {
                // The daemon's working directory is not the operator's.
                let path = std::path::absolute(&value).unwrap_or_else(|_| value.into());
                entry.socket = Some(path);
            }
            "mode" => {
                entry.mode = Some(match value.as_str() {
                    "server" => Mode::Server,
                    "client" => Mode::Client,
                    other => {
                        return Err(Fault::usage(format!("mode `{}`", crate::fault::printable(other)))
                            .at("mode")
                            .expected(["server", "client"])
                            .hint("mode server, or mode client"));
                    }
                });
            }
            "core" => entry.core = Some(number(&key, &value)?),
            "owner" => entry.owner = Some(value),
            "group" => entry.group = Some(value),
            _ => {
                entry.attributes.insert(key, value);
            }
        }
    }
    if entry.mgmtdev.is_empty() {
        return Err(Fault::usage("management device handle not set.")
            .at("mgmtdev")
            .hint("ringway mgmtdev show"));
    }
    if entry.name.is_empty() {
        return Err(Fault::usage("device name is not set.").at("name").hint("name NAME"));
    }
    Ok(entry)
}

/// What `dev set` asks for.
///
/// # Errors
/// A value that is missing or cannot be read, or a keyword that cannot be set.
pub fn set_request(words: &[String]) -> Result<DevSet, Fault> {
    let mut set = DevSet::default();
    let mut attributes = BTreeMap::new();
    for (key, value) in pairs(words)? {
        match key.as_str() {
            "name" => set.name = value,
            "mac" => set.mac = Some(value),
            "mtu" => set.mtu = Some(number(&key, &value)?),
            "core" => set.core = Some(number(&key, &value)?),
            other if KEYWORDS.iter().any(|keyword| keyword.name == other) => {
                let settable = KEYWORDS.iter().filter(|keyword| keyword.is_settable);
                return Err(Fault::usage(format!("{other} cannot be changed"))
                    .unknown_key(other, settable.map(|keyword| keyword.name))
                    .hint("remove the device and add it anew"));
            }
            _ => {
                attributes.insert(key, value);
            }
        }
    }
    set.attributes = attributes;
    if set.name.is_empty() {
        return Err(Fault::usage("device name is not set.")
            .at("name")
            .hint("the device's name behind the word name"));
    }
    Ok(set)
}

/// What `bridge vlan add` and `bridge vlan del` ask for.
///
/// # Errors
/// A word that is missing or is none of theirs.
pub fn vlan_change(words: &[String]) -> Result<VlanChange, Fault> {
    let mut change = VlanChange::default();
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let value = match word.as_str() {
            "dev" => &mut change.dev,
            "vid" => &mut change.vid,
            "pvid" | "untagged" => {
                *(if word == "pvid" { &mut change.pvid } else { &mut change.untagged }) = true;
                continue;
            }
            other => {
                let fault =
                    Fault::usage(format!("`{}` is no word of bridge vlan", crate::fault::printable(other)));
                return Err(fault
                    .unknown_key(other, ["dev", "vid", "pvid", "untagged"])
                    .hint("dev NAME vid VID[-VID] [pvid] [untagged]"));
            }
        };
        *value = words.next().cloned().unwrap_or_default();
    }
    for (value, word) in [(&change.dev, "dev NAME"), (&change.vid, "vid VID[-VID]")] {
        if value.is_empty() {
            return Err(
                Fault::usage(format!("{word} is missing")).hint("dev NAME vid VID[-VID] [pvid] [untagged]")
            );
        }
    }
    Ok(change)
}

/// Which port `bridge vlan show` is about.
///
/// # Errors
/// Words that are not its.
pub fn vlan_select(words: &[String]) -> Result<Select, Fault> {
    match words {
        [] => Ok(Select::default()),
        [word, name] if word == "dev" => Ok(Select { name: Some(name.clone()) }),
        _ => Err(Fault::usage("bridge vlan show takes `dev NAME`, or nothing")),
    }
}

/// What stands below the help of `bridge vlan add`.
pub(crate) const VLAN_HELP: &str = "\
  pvid      what the port sends without a VLAN is in this one, which one alone can be
  untagged  its frames go to the port without a tag; else with it

A port that was given VLANs is in these and no others, and its bridge looks at tags; a port that was given none is in
VLAN 1 there, without a tag. The same as the attribute vlan of dev add and dev set: vlan '100 pvid untagged,200-210'.

Examples: ringway bridge vlan add dev vm0 vid 100 pvid untagged
          ringway bridge vlan add dev up0 vid 100-110";

/// What `mgmtdev add` and `mgmtdev set` ask for.
///
/// # Errors
/// A value that is missing.
pub fn mgmt_entry(words: &[String]) -> Result<MgmtEntry, Fault> {
    let mut entry = MgmtEntry::default();
    for (key, value) in pairs(words)? {
        match key.as_str() {
            "name" => entry.name = value,
            _ => {
                entry.attributes.insert(key, value);
            }
        }
    }
    if entry.name.is_empty() {
        return Err(Fault::usage("management device handle not set.")
            .at("name")
            .hint("name KIND/NAME, as in bridge/br0"));
    }
    Ok(entry)
}

/// What `port add` asks for.
///
/// # Errors
/// A value that is missing or cannot be read, or a word that there is not.
pub fn port_entry(mgmtdev: &str, words: &[String]) -> Result<PortEntry, Fault> {
    let (mut flavour, mut pfnum, mut sfnum) = (FLAVOUR.to_owned(), 0, None);
    for (key, value) in pairs(words)? {
        match key.as_str() {
            "flavour" => flavour = value,
            "pfnum" => pfnum = number(&key, &value)?,
            "sfnum" => sfnum = Some(number(&key, &value)?),
            other => {
                let names = PORT_KEYWORDS.iter().map(|keyword| keyword.name);
                let why = format!("unknown keyword `{}`", crate::fault::printable(other));
                return Err(Fault::usage(why).unknown_key(other, names.clone()).hint(match nearest(other, names) {
                    Some(near) => format!("did you mean {near}?"),
                    None => format!(
                        "flavour {FLAVOUR} pfnum N sfnum N; what is the function's is set afterwards: ringway port function set \
                         {mgmtdev}/SFNUM"
                    ),
                }));
            }
        }
    }
    let sfnum =
        sfnum.ok_or_else(|| Fault::usage("sfnum is not set.").at("sfnum").hint("sfnum N, your choice"))?;
    let mgmtdev = mgmtdev.to_owned();
    Ok(PortEntry { mgmtdev, flavour, pfnum, sfnum, state: PortState::Inactive, attributes: BTreeMap::new() })
}

/// What `port function set` asks for.
///
/// # Errors
/// A value that is missing or cannot be read.
pub fn port_set(name: &str, words: &[String]) -> Result<PortSet, Fault> {
    let mut set = PortSet { name: name.to_owned(), ..PortSet::default() };
    for (key, value) in pairs(words)? {
        match (key.as_str(), value.as_str()) {
            ("state", "active") => set.state = Some(PortState::Active),
            ("state", "inactive") => set.state = Some(PortState::Inactive),
            ("state", other) => {
                return Err(Fault::usage(format!("state `{}`", crate::fault::printable(other)))
                    .at("state")
                    .expected(["active", "inactive"])
                    .hint("state active, or state inactive"));
            }
            _ => {
                set.attributes.insert(key, value);
            }
        }
    }
    Ok(set)
}

/// How often something is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Looks {
    /// From one look to the next.
    pub every: Duration,
    /// How often it is shown; for ever without it.
    pub count: Option<u64>,
}

/// `interval SECONDS [count N]` of the words of a command, and its other words. None: it is shown once, as it stands.
///
/// # Errors
/// A value that is missing or cannot be read, or `count` alone.
pub fn looks(words: &[String]) -> Result<(Option<Looks>, Vec<String>), Fault> {
    let (mut every, mut count, mut others) = (None, None, Vec::new());
    let mut words = words.iter();
    while let Some(word) = words.next() {
        match (word.as_str(), words.as_slice().first()) {
            ("interval" | "count", None) => {
                return Err(Fault::usage("number expected").at(word).hint("interval SECONDS count N"));
            }
            ("interval", Some(value)) => every = Some(interval(value)?),
            ("count", Some(value)) => count = Some(number::<u64>("count", value)?.max(1)),
            _ => {
                others.push(word.clone());
                continue;
            }
        }
        words.next();
    }
    match (every, count) {
        (Some(every), count) => Ok((Some(Looks { every, count }), others)),
        (None, None) => Ok((None, others)),
        (None, Some(_)) => {
            Err(Fault::usage("count without interval").at("count").hint("interval SECONDS count N"))
        }
    }
}

/// A time between two looks.
///
/// # Errors
/// It is none, or out of bounds.
pub fn interval(value: &str) -> Result<Duration, Fault> {
    let seconds = value.parse::<f64>().ok().filter(|seconds| seconds.is_finite() && *seconds > 0.0);
    let every = seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    let bounds = Duration::from_millis(LEAST_INTERVAL_MS)..=Duration::from_millis(LONGEST_INTERVAL_MS);
    every.filter(|every| bounds.contains(every)).ok_or_else(|| {
        let shown = crate::fault::printable(value);
        Fault::usage(format!("interval `{shown}` is not between 0.1 and 3600"))
            .at("interval")
            .hint("in seconds, as in 1")
    })
}

/// The shortest time between two looks: the control thread has other work.
pub const LEAST_INTERVAL_MS: u64 = 100;
/// The longest.
pub const LONGEST_INTERVAL_MS: u64 = 3_600_000;

/// What `dev vstats show NAME` asks for beyond the name.
///
/// # Errors
/// Something else than `qidx N`.
pub fn qidx(words: &[String]) -> Result<Option<u32>, Fault> {
    match words {
        [key, value] if key == "qidx" => number("qidx", value).map(Some),
        [key] if key == "qidx" => Err(Fault::usage("number expected").at("qidx").hint("qidx N")),
        others => nothing_more(others, "qidx N").map(|()| None),
    }
}

/// Refuses words that a command does not know.
///
/// # Errors
/// There is one.
pub fn nothing_more(words: &[String], hint: &str) -> Result<(), Fault> {
    let Some(word) = words.first() else { return Ok(()) };
    Err(Fault::usage(format!("Unknown option \"{}\"", crate::fault::printable(word))).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn full(line: &str) -> String {
        let args = line.split(' ').map(OsString::from).collect();
        match normalise(args) {
            Ok(args) => {
                args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect::<Vec<_>>().join(" ")
            }
            Err(fault) => fault.message,
        }
    }

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn interval_and_count_stand_anywhere_and_have_their_bounds() {
        let once = Looks { every: Duration::from_secs(1), count: None };
        assert_eq!(looks(&[]), Ok((None, vec![])));
        assert_eq!(looks(&words("interval 1")), Ok((Some(once), vec![])));
        let thrice = Looks { every: Duration::from_millis(250), count: Some(3) };
        assert_eq!(looks(&words("count 3 qidx 1 interval 0.25")), Ok((Some(thrice), words("qidx 1"))));
        assert_eq!(looks(&words("qidx 1")), Ok((None, words("qidx 1"))));
        for wrong in ["interval", "count 3", "interval 1 count", "interval 1 count x"] {
            assert!(looks(&words(wrong)).is_err(), "{wrong}");
        }
        for (seconds, is_good) in [
            ("0.1", true),
            ("0.09", false),
            ("3600", true),
            ("3601", false),
            ("-1", false),
            ("NaN", false),
            ("inf", false),
        ] {
            assert_eq!(interval(seconds).is_ok(), is_good, "{seconds}");
        }
    }

    #[test]
    fn every_option_that_takes_a_value_is_known_to_do_so() {
        fn with_value(command: &clap::Command, found: &mut std::collections::BTreeSet<String>) {
            for arg in command.get_arguments().filter(|arg| arg.get_action().takes_values()) {
                found.extend(arg.get_long().map(|long| format!("--{long}")));
                found.extend(arg.get_short().map(|short| format!("-{short}")));
            }
            command.get_subcommands().for_each(|sub| with_value(sub, found));
        }
        let mut found = std::collections::BTreeSet::new();
        with_value(&crate::operator::cli::ringway::command(), &mut found);
        let known: std::collections::BTreeSet<String> = WITH_VALUE.map(str::to_owned).into();
        assert_eq!(found, known);
    }

    #[test]
    fn words_of_vdpa_may_be_shortened_and_the_first_match_wins() {
        assert_eq!(full("ringway m s"), "ringway mgmtdev show");
        assert_eq!(full("ringway d l"), "ringway dev list");
        assert_eq!(full("ringway -j de a name x"), "ringway -j dev add name x");
        assert_eq!(full("ringway --ctl /x d c s vm0"), "ringway --ctl /x dev config show vm0");
        assert_eq!(full("ringway dev d d"), "ringway dev del d");
        assert_eq!(full("ringway h"), "ringway help");
    }

    #[test]
    fn words_that_only_ringway_has_are_written_in_full() {
        assert_eq!(full("ringway demo"), "ringway demo");
        assert_eq!(full("ringway man /x"), "ringway man /x");
        assert_eq!(full("ringway dev vs"), "Command \"vs\" not found");
        assert_eq!(full("ringway dev se"), "Command \"se\" not found");
        assert_eq!(full("ringway cor"), "Object \"cor\" not found");
        assert_eq!(full("ringway nonsense"), "Object \"nonsense\" not found");
    }

    #[test]
    fn keywords_follow_the_prefix_trap_of_vdpa() {
        assert_eq!(keyword("m"), "mgmtdev");
        assert_eq!(keyword("n"), "name");
        assert_eq!(keyword("mac"), "mac");
        assert_eq!(keyword("ma"), "max_vqp");
        assert_eq!(keyword("mtu"), "mtu");
        assert_eq!(keyword("mo"), "mo");
        assert_eq!(keyword("swap"), "swap");
    }

    #[test]
    fn add_reads_every_keyword() {
        let entry = add_entry(&words(
            "name a mgmtdev sim/net mac 52:54:00:00:00:01 mtu 1500 max_vqp 2 device_features 0x28 \
             socket /tmp/a mode client core 1 owner root group 5 swap on",
        ))
        .unwrap();
        assert_eq!(
            (entry.mtu, entry.max_vqp, entry.core, entry.mode),
            (Some(1500), Some(2), Some(1), Some(Mode::Client))
        );
        assert_eq!(entry.attributes["swap"], "on");
        assert_eq!(entry.group.as_deref(), Some("5"));
    }

    #[test]
    fn missing_and_bad_values_have_the_texts_of_vdpa() {
        let refusal = |line| add_entry(&words(line)).unwrap_err().message;
        assert_eq!(refusal("name"), "String parameter expected");
        assert_eq!(refusal("name a mgmtdev b mtu"), "number expected");
        assert_eq!(refusal("name a"), "management device handle not set.");
        assert_eq!(refusal("mgmtdev b"), "device name is not set.");
        assert_eq!(
            refusal("name a mgmtdev b mtu 70000"),
            "mtu `70000` is not a whole number from 68 to 9000"
        );
        assert_eq!(
            refusal("name a mgmtdev b core -1"),
            "core `-1` is not a whole number, the number of a core"
        );
        assert_eq!(refusal("name a name b"), "name is given twice");
    }

    #[test]
    fn help_tells_the_bounds_that_drivers_accept() {
        use ringway_pmd::net::{MAX_MTU, MIN_MTU};
        assert!(MTU_HELP.ends_with(&format!("{MIN_MTU} to {MAX_MTU}")));
    }

    #[test]
    fn set_refuses_what_cannot_change() {
        assert!(
            set_request(&words("name a socket /x")).unwrap_err().message.contains("socket cannot be changed")
        );
        assert_eq!(set_request(&words("name a mac 1")).unwrap().mac.as_deref(), Some("1"));
    }

    #[test]
    fn qidx_is_one_number_or_nothing() {
        assert_eq!(qidx(&[]), Ok(None));
        assert_eq!(qidx(&words("qidx 3")), Ok(Some(3)));
        assert!(
            qidx(&words("qidx")).is_err() && qidx(&words("q 3")).is_err() && qidx(&words("qidx x")).is_err()
        );
    }
}
