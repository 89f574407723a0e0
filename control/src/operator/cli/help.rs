//! What stands below the options of a command's help and in its manual: made of the tables that the command is parsed by.

use super::keywords::{CORE_SHOWN, KEYWORDS, Keyword, PORT_KEYWORDS, PORT_SHOWN, SHOWN, STATE};
use crate::operator::api::FLAVOUR;

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
         Where a device that was removed a moment ago is still being let go of, it waits, as long as an answer may take \
         (--timeout).\n\n\
         Example: ringway dev add name vm0 mgmtdev sim/net max_vqp 4 mtu 9000"
    )
}

/// What stands below the help of `dev set`.
pub(crate) fn set_help() -> String {
    let words = keyword_help(|keyword| keyword.is_settable || keyword.name == "name");
    format!("Keywords:\n{words}\n  Attributes of the driver's own, as `ringway mgmtdev show` lists them.")
}

/// What stands below the help of `dev show`.
pub(crate) fn show_help() -> String {
    let lines = SHOWN.iter().map(|(word, meaning)| format!("  {word:<12} {meaning}"));
    format!("Words of it:\n{}", lines.collect::<Vec<_>>().join("\n"))
}

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

/// What the help of `status` ends with.
pub(crate) const STATUS_HELP: &str = "Exit codes: 0 running with all that it was asked for, 6 not running, 8 degraded: something \
of its configuration or state could not be made, and is named, 9 it runs from an older file than is installed: restart it \
when its guests can spare it. Where both are so, 8.";

/// What the help of `top` ends with.
pub(crate) const TOP_HELP: &str = "With -j, a line of JSON for each look, for scripts. Keys: d devices, u queues, c cores and \
their pumps, x drops and faults; s and S sort by the next or the last column, r turns the order round; / filters by name; \
space pauses; + and - change the interval; arrows, PgUp and PgDn move; q ends. Without a daemon it says so and looks again. \
NO_COLOR and TERM=dumb are heeded.";

/// What the help of `inspect` ends with.
pub(crate) const INSPECT_HELP: &str = "Parts: daemon, mgmtdevs, kinds, ports, devices, cores, absent, draining. It has what show and -j have of them: \
the type State of the protocol (ringway-reference(7)). An answer has 4 MiB at most, and once 100 ms are over nothing more is begun for it: what is left out is \
told, with a path that has it.

Examples: ringway inspect 'devices/vm0/queues/*/drops'
          ringway inspect 'cores/*/busy_cycles'
          ringway -j inspect 'devices/*/front_end/pid'";

/// What the help of `core balance` ends with.
pub(crate) const BALANCE_HELP: &str = "What goes: pairs of queues, or a whole bridge or simnic. What was given a core (core N) stays there, and \
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
pub(crate) const WAIT_HELP: &str = "Waits for the daemon, too, where none runs yet. Exit codes: 0 it is so far, 7 not within the \
time: the error says how far it is.";

/// What stands below the help of `bridge vlan add`.
pub(crate) const VLAN_HELP: &str = "\
  pvid      what the port sends without a VLAN is in this one, which one alone can be
  untagged  its frames go to the port without a tag; else with it

A port that was given VLANs is in these and no others, and its bridge looks at tags; a port that was given none is in
VLAN 1 there, without a tag. The same as the attribute vlan of dev add and dev set: vlan '100 pvid untagged,200-210'.

Examples: ringway bridge vlan add dev vm0 vid 100 pvid untagged
          ringway bridge vlan add dev up0 vid 100-110";
