//! Keywords of the command line, and what `show` calls what it shows: one table each, from which parser, help, manual,
//! completion and reference are made.

use crate::operator::api::FLAVOUR;

/// A keyword of `dev add` or `dev set`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Keyword {
    /// The word.
    pub(crate) name: &'static str,
    /// What its value looks like.
    pub(crate) value: &'static str,
    /// One line of help.
    pub(crate) help: &'static str,
    /// Whether `dev set` takes it too.
    pub(crate) is_settable: bool,
    /// Whether it may be shortened, as `vdpa(8)` does.
    pub(crate) is_short: bool,
}

const fn word(name: &'static str, value: &'static str, help: &'static str) -> Keyword {
    Keyword { name, value, help, is_settable: false, is_short: false }
}

/// Every keyword, those of `vdpa(8)` first and in its order.
pub(crate) const KEYWORDS: [Keyword; 11] = [
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

/// Keywords of `port add`, as devlink(8) has them.
pub(crate) const PORT_KEYWORDS: [Keyword; 3] = [
    word("flavour", FLAVOUR, "a subfunction [default: pcisf]"),
    word("pfnum", "N", "the physical function that it is a part of [default: 0]"),
    word("sfnum", "N", "its number, your choice: the port is MGMTDEV/SFNUM"),
];

/// The keyword of `port function set` that every function has.
pub(crate) const STATE: Keyword = word(
    "state",
    "active|inactive",
    "active: it is there, a management device; inactive: it is not, and what was made with it is gone",
);

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

/// Words of `port show`, and what they mean.
pub(crate) const PORT_SHOWN: [(&str, &str); 3] = [
    ("opstate", "attached: a driver has the function, its management device is there; else detached"),
    ("mgmtdev", "what the function is for ringway dev add, while it is active"),
    ("devices", "what was made with it"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn help_tells_the_bounds_that_drivers_accept() {
        use ringway_pmd::net::{MAX_MTU, MIN_MTU};
        assert!(MTU_HELP.ends_with(&format!("{MIN_MTU} to {MAX_MTU}")));
    }
}
