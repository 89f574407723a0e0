//! What the words behind a command ask of the daemon.

use std::collections::BTreeMap;
use std::time::Duration;

use super::grammar::keyword;
use super::keywords::{KEYWORDS, PORT_KEYWORDS};
use crate::fault::{Fault, nearest};
use crate::operator::api::{
    DevSet, DeviceEntry, FLAVOUR, MgmtEntry, Mode, PortEntry, PortSet, PortState, Select, VlanChange,
};

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
pub(crate) fn add_entry(words: &[String]) -> Result<DeviceEntry, Fault> {
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
pub(crate) fn set_request(words: &[String]) -> Result<DevSet, Fault> {
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
pub(crate) fn vlan_change(words: &[String]) -> Result<VlanChange, Fault> {
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
pub(crate) fn vlan_select(words: &[String]) -> Result<Select, Fault> {
    match words {
        [] => Ok(Select::default()),
        [word, name] if word == "dev" => Ok(Select { name: Some(name.clone()) }),
        _ => Err(Fault::usage("bridge vlan show takes `dev NAME`, or nothing")),
    }
}

/// What `mgmtdev add` and `mgmtdev set` ask for.
///
/// # Errors
/// A value that is missing.
pub(crate) fn mgmt_entry(words: &[String]) -> Result<MgmtEntry, Fault> {
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
pub(crate) fn port_entry(mgmtdev: &str, words: &[String]) -> Result<PortEntry, Fault> {
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
pub(crate) fn port_set(name: &str, words: &[String]) -> Result<PortSet, Fault> {
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
pub(crate) struct Looks {
    /// From one look to the next.
    pub(crate) every: Duration,
    /// How often it is shown; for ever without it.
    pub(crate) count: Option<u64>,
}

/// `interval SECONDS [count N]` of the words of a command, and its other words. None: it is shown once, as it stands.
///
/// # Errors
/// A value that is missing or cannot be read, or `count` alone.
pub(crate) fn looks(words: &[String]) -> Result<(Option<Looks>, Vec<String>), Fault> {
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
pub(crate) fn interval(value: &str) -> Result<Duration, Fault> {
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
pub(crate) const LEAST_INTERVAL_MS: u64 = 100;
/// The longest.
pub(crate) const LONGEST_INTERVAL_MS: u64 = 3_600_000;

/// What `dev vstats show NAME` asks for beyond the name.
///
/// # Errors
/// Something else than `qidx N`.
pub(crate) fn qidx(words: &[String]) -> Result<Option<u32>, Fault> {
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
pub(crate) fn nothing_more(words: &[String], hint: &str) -> Result<(), Fault> {
    let Some(word) = words.first() else { return Ok(()) };
    Err(Fault::usage(format!("Unknown option \"{}\"", crate::fault::printable(word))).hint(hint))
}

#[cfg(test)]
mod tests {
    use super::*;

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
