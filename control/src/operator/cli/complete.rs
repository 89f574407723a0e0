//! What completes a command line: called by the shell's completion with the line up to the cursor, it prints a word and what it
//! is on each line, or `:files` or `:directories` where a path stands.
//!
//! Commands, options and their values are those of the definition that the parser is made from; devices, management devices,
//! attributes, ports, cores and queues are asked of the daemon. Without one that answers within [`WITHIN`], nothing is said of them and
//! nothing is waited for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use clap::{Command, ValueHint};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::devices::drivers;
use crate::host::paths;
use crate::operator::api::{
    AttributeHelp, CoreShow, DevShow, KindInfo, MgmtdevShow, PortShow, Queue, Select, Vstats, VstatsShow,
};
use crate::operator::cli::grammar;
use crate::operator::cli::keywords::{KEYWORDS, PORT_KEYWORDS, STATE};
use crate::operator::cli::ringway;
use crate::operator::client::Client;

/// How long the daemon may take with all that is asked for one word.
const WITHIN: Duration = Duration::from_millis(300);

/// What may stand where the cursor is.
#[derive(Debug, PartialEq, Eq)]
enum Offer {
    Files,
    Directories,
    /// Each with what it is.
    Words(Vec<(String, String)>),
}

/// Prints what completes a line, its last word unfinished.
pub(super) fn text(line: &str, ctl: &Path) -> String {
    let words = split(line);
    let named = words.iter().position(|word| word == "--ctl").and_then(|at| words.get(at + 1));
    let ctl = named.map_or_else(|| ctl.to_owned(), |named| paths::ctl(Some(Path::new(named))));
    let line = line.to_owned();
    let (sender, told) = mpsc::channel();
    // Whatever the daemon does, the shell has its prompt again in time.
    let ask = move || drop(sender.send(offer(&line, &Facts { ctl, until: Instant::now() + WITHIN })));
    let offered = match std::thread::Builder::new().spawn(ask) {
        Ok(_) => told.recv_timeout(WITHIN + SLACK).unwrap_or(Offer::Words(Vec::new())),
        Err(_) => Offer::Words(Vec::new()),
    };
    match offered {
        Offer::Files => ":files\n".to_owned(),
        Offer::Directories => ":directories\n".to_owned(),
        Offer::Words(words) => words
            .into_iter()
            .map(|(word, about)| match about.is_empty() {
                true => format!("{word}\n"),
                false => format!("{word}\t{}\n", crate::fault::visible(&about).replace('\n', " ")),
            })
            .collect(),
    }
}

/// A moment more for what was asked to come to an end by itself.
const SLACK: Duration = Duration::from_millis(20);

/// What completes a line.
fn offer(line: &str, facts: &Facts) -> Offer {
    let mut words = split(line);
    let current = words.pop().unwrap_or_default();
    let mut command = ringway::command();
    command.build();
    let mut command = &command;
    let (mut path, mut given): (Vec<String>, Vec<String>) = (Vec::new(), Vec::new());
    let mut option = None;
    let full = grammar::normalise(words.iter().map(Into::into).collect());
    let full: Vec<String> = match full {
        Ok(full) => full.into_iter().map(|word| word.to_string_lossy().into_owned()).collect(),
        Err(_) => words,
    };
    for word in full.iter().skip(1) {
        if option.take().is_some() {
            continue;
        }
        if word.starts_with('-') {
            option = Some(word).filter(|word| grammar::takes_value(word));
        } else if let (true, Some(sub)) = (given.is_empty(), command.find_subcommand(word)) {
            path.push(sub.get_name().to_owned());
            command = sub;
        } else {
            given.push(word.clone());
        }
    }
    let offered = match option {
        Some(option) => of_option(command, option),
        None if current.starts_with('-') => options(command),
        None if given.is_empty() && command.has_subcommands() => subcommands(command),
        None => {
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            of_words(command, &path, &given, &current, facts)
        }
    };
    match offered {
        Offer::Words(words) => {
            let mut known = BTreeSet::new();
            let is_wanted =
                |(word, _): &(String, String)| word.starts_with(&current) && known.insert(word.clone());
            Offer::Words(words.into_iter().filter(is_wanted).collect())
        }
        path => path,
    }
}

fn subcommands(command: &Command) -> Offer {
    let subs = command.get_subcommands().filter(|sub| !sub.is_hide_set());
    Offer::Words(subs.map(|sub| (sub.get_name().to_owned(), about(sub.get_about()))).collect())
}

fn about(text: Option<&clap::builder::StyledStr>) -> String {
    text.map(ToString::to_string).unwrap_or_default()
}

fn options(command: &Command) -> Offer {
    let args = command.get_arguments().filter(|arg| !arg.is_hide_set());
    let long = args.filter_map(|arg| Some((format!("--{}", arg.get_long()?), about(arg.get_help()))));
    Offer::Words(long.collect())
}

fn of_option(command: &Command, option: &str) -> Offer {
    let name = option.trim_start_matches('-');
    let mut args = command.get_arguments();
    let is_it = |arg: &&clap::Arg| {
        arg.get_long() == Some(name) || arg.get_short().is_some_and(|short| name == short.to_string())
    };
    match args.find(is_it) {
        Some(_) if name == "type" => events(),
        Some(arg) => of_arg(arg),
        None => Offer::Words(Vec::new()),
    }
}

fn events() -> Offer {
    let types = crate::operator::events::TYPES.into_iter();
    Offer::Words(types.map(|kind| (kind.to_owned(), String::new())).collect())
}

/// What the definition itself knows of an argument.
fn of_arg(arg: &clap::Arg) -> Offer {
    match arg.get_value_hint() {
        ValueHint::FilePath => return Offer::Files,
        ValueHint::DirPath => return Offer::Directories,
        _ => {}
    }
    let values = arg.get_possible_values();
    Offer::Words(values.iter().map(|value| (value.get_name().to_owned(), about(value.get_help()))).collect())
}

/// What stands behind the words of a command.
fn of_words(command: &Command, path: &[&str], given: &[String], current: &str, facts: &Facts) -> Offer {
    let nothing = || Offer::Words(Vec::new());
    let words = |words: Vec<(String, String)>| Offer::Words(words);
    let pairs =
        |keywords: Vec<AttributeHelp>, given: &[String]| of_pairs(path, &keywords, given, current, facts);
    match (path, given.len()) {
        (["dev", "show" | "del"] | ["dev", "config" | "vstats", "show"] | ["why" | "wait"], 0) => {
            words(facts.devices())
        }
        (["dev", "vstats", "show"], _) => {
            let more = [("qidx", "N", "one queue"), INTERVAL, COUNT];
            match given.last().map(String::as_str) {
                Some("qidx") if given.len() > 1 => words(facts.queues(&given[0])),
                _ => pairs(keywords(&more), &given[1..]),
            }
        }
        (["inspect"], 0) => {
            let parts = crate::operator::inspect::PARTS.into_iter();
            words(parts.map(|part| (format!("{part}/"), String::new())).collect())
        }
        (["core", "show"], _) => pairs(keywords(&[INTERVAL, COUNT]), given),
        (["top"], _) => pairs(keywords(&[INTERVAL]), given),
        (["dev", "add" | "set"], _) => pairs(device_keywords(path[1] == "set", given, facts), given),
        (["mgmtdev", "show" | "del"], 0) => words(facts.mgmtdevs()),
        (["mgmtdev", "add" | "set"], _) => {
            let name = keyword("name", "KIND/NAME", "the management device");
            let settings = facts.attributes(value_of(given, "name"), |kind| &kind.settings);
            pairs([vec![name], settings].concat(), given)
        }
        (["port", "show" | "del"] | ["port", "function", "set"], 0) => words(facts.ports()),
        (["port", "function", "set"], _) => {
            let parent = given[0].rsplit_once('/').map(|(parent, _)| parent);
            let state = keyword(STATE.name, STATE.value, STATE.help);
            let own = facts.attributes(parent, |kind| &kind.functions);
            pairs([vec![state], own].concat(), &given[1..])
        }
        (["port", "add"], 0) => words(facts.parents()),
        (["port", "add"], _) => {
            let keywords = PORT_KEYWORDS.iter().map(|word| keyword(word.name, word.value, word.help));
            pairs(keywords.collect(), &given[1..])
        }
        (["bridge", "vlan", "show"], 0) => words(vec![("dev".to_owned(), "one port".to_owned())]),
        (["bridge", "vlan", "show"], 1) => words(facts.ports_of_bridges()),
        (["bridge", "vlan", verb], _) => match given.last().map(String::as_str) {
            Some("dev") => words(facts.ports_of_bridges()),
            Some("vid") => nothing(),
            _ => {
                let all = [
                    ("dev", "the port"),
                    ("vid", "VID or VID-VID"),
                    ("pvid", "what comes without a VLAN is in this one"),
                    ("untagged", "its frames go to the port without a tag"),
                ];
                let most = if *verb == "add" { 4 } else { 2 };
                let left = all[..most].iter().filter(|(word, _)| given.iter().all(|other| other != word));
                words(left.map(|(word, about)| ((*word).to_owned(), (*about).to_owned())).collect())
            }
        },
        (_, at) => command.get_positionals().nth(at).map_or_else(nothing, of_arg),
    }
}

const INTERVAL: (&str, &str, &str) = ("interval", "SECONDS", "rates, again and again");
const COUNT: (&str, &str, &str) = ("count", "N", "so often");

fn keywords(all: &[(&str, &str, &str)]) -> Vec<AttributeHelp> {
    all.iter().map(|(name, value, help)| keyword(name, value, help)).collect()
}

fn keyword(name: &str, value: &str, help: &str) -> AttributeHelp {
    AttributeHelp { name: name.to_owned(), value: value.to_owned(), help: help.to_owned() }
}

/// The value that was given to a keyword.
fn value_of<'w>(given: &'w [String], wanted: &str) -> Option<&'w str> {
    let pair = given.chunks_exact(2).find(|pair| grammar::keyword(&pair[0]) == wanted)?;
    Some(&pair[1])
}

/// The keywords of `dev add` or `dev set`, with the attributes of the management device that was named.
fn device_keywords(is_set: bool, given: &[String], facts: &Facts) -> Vec<AttributeHelp> {
    let own = KEYWORDS.iter().filter(|word| !is_set || word.is_settable || word.name == "name");
    let own = own.map(|word| keyword(word.name, word.value, word.help));
    let mgmtdev = match is_set {
        false => value_of(given, "mgmtdev").map(str::to_owned),
        true => value_of(given, "name").and_then(|name| facts.mgmtdev_of(name)),
    };
    own.chain(facts.attributes(mgmtdev.as_deref(), |kind| &kind.attributes)).collect()
}

/// Keywords and their values.
fn of_pairs(
    path: &[&str],
    keywords: &[AttributeHelp],
    given: &[String],
    current: &str,
    facts: &Facts,
) -> Offer {
    if given.len().is_multiple_of(2) {
        let is_given = |word: &&AttributeHelp| value_of(given, &word.name).is_none();
        let left = keywords.iter().filter(is_given);
        return Offer::Words(
            left.map(|word| (word.name.clone(), format!("{}: {}", word.value, word.help))).collect(),
        );
    }
    let key = given.last().map(|word| grammar::keyword(word)).unwrap_or_default();
    let known = keywords.iter().find(|word| word.name == key);
    match (path, key.as_str()) {
        (["dev", "set"], "name") => Offer::Words(facts.devices()),
        (["mgmtdev", _], "name") => Offer::Words(facts.mgmtdevs_of_kinds()),
        (_, "mgmtdev") => Offer::Words(facts.mgmtdevs()),
        (_, "core") => Offer::Words(facts.cores()),
        (_, "socket") => Offer::Files,
        (_, "uplink") => {
            let all = facts.mgmtdevs().into_iter();
            Offer::Words(all.filter(|(name, _)| name.starts_with("pci/")).collect())
        }
        (_, "device_features") => {
            // Names joined by commas: the last of them is completed.
            let before = current.rfind(',').map_or("", |at| &current[..=at]);
            let names = facts.features(value_of(given, "mgmtdev")).into_iter();
            Offer::Words(names.map(|name| (format!("{before}{name}"), String::new())).collect())
        }
        _ => match known {
            Some(word) if word.value == "PATH" || word.value == "FILE" => Offer::Files,
            Some(word) => {
                // `on|off`; what stands for something else is in capitals.
                let is_word = |value: &&str| !value.is_empty() && value.chars().all(|c| !c.is_uppercase());
                let values = word.value.split('|').filter(is_word).filter(|_| word.value.contains('|'));
                Offer::Words(values.map(|value| (value.to_owned(), word.help.clone())).collect())
            }
            None => Offer::Words(Vec::new()),
        },
    }
}

/// What the daemon knows; nothing, if it does not say so in time.
struct Facts {
    ctl: PathBuf,
    until: Instant,
}

impl Facts {
    fn ask<R: DeserializeOwned>(&self, method: &str, params: &impl Serialize) -> Option<R> {
        let left = self.until.checked_duration_since(Instant::now()).filter(|left| !left.is_zero())?;
        Client::connect(&self.ctl, left).ok()?.call(method, params).ok()
    }

    fn devices(&self) -> Vec<(String, String)> {
        let shown: Option<DevShow> = self.ask("dev.show", &Select::default());
        let shown = shown.unwrap_or_default();
        let made =
            shown.dev.0.into_iter().map(|(name, info)| (name, format!("{}, {}", info.mgmtdev, info.state)));
        made.chain(shown.absent.0.into_iter().map(|(name, _)| (name, "not made".to_owned()))).collect()
    }

    fn mgmtdev_of(&self, device: &str) -> Option<String> {
        let shown: DevShow = self.ask("dev.show", &Select { name: Some(device.to_owned()) })?;
        Some(shown.dev.find(device)?.mgmtdev.clone())
    }

    fn ports_of_bridges(&self) -> Vec<(String, String)> {
        let devices = self.devices().into_iter();
        devices.filter(|(_, about)| about.starts_with("bridge/")).collect()
    }

    /// Those of the daemon; without one, what this build has.
    fn shown(&self) -> MgmtdevShow {
        self.ask("mgmtdev.show", &Select::default()).unwrap_or_else(|| MgmtdevShow {
            kinds: drivers::known()
                .kinds
                .iter()
                .map(|kind| (format!("{}/NAME", kind.name), KindInfo::of(kind)))
                .collect(),
            ..MgmtdevShow::default()
        })
    }

    /// Those that there are, and the beginnings of those that come to be by being named.
    fn mgmtdevs(&self) -> Vec<(String, String)> {
        let MgmtdevShow { mgmtdev, kinds, .. } = self.shown();
        let there = mgmtdev.0.into_iter().map(|(name, info)| (name, info.summary));
        let kinds = kinds.0.into_iter().map(|(name, kind)| (name.replace("NAME", ""), kind.summary));
        there.chain(kinds).collect()
    }

    fn mgmtdevs_of_kinds(&self) -> Vec<(String, String)> {
        let MgmtdevShow { kinds, .. } = self.shown();
        let begins = kinds.0.into_iter().map(|(name, _)| name.replace("NAME", "")).collect::<Vec<_>>();
        let all = self.mgmtdevs().into_iter();
        all.filter(|(name, _)| begins.iter().any(|kind| name.starts_with(kind))).collect()
    }

    /// Those whose hardware can be divided.
    fn parents(&self) -> Vec<(String, String)> {
        let there = self.shown().mgmtdev.0.into_iter();
        there
            .filter(|(_, info)| !info.functions.is_empty())
            .map(|(name, info)| (name, info.summary))
            .collect()
    }

    /// Attributes of one that is there, or of its kind.
    fn attributes(
        &self,
        mgmtdev: Option<&str>,
        which: impl Fn(&KindInfo) -> &Vec<AttributeHelp>,
    ) -> Vec<AttributeHelp> {
        let Some(name) = mgmtdev else { return Vec::new() };
        let MgmtdevShow { mgmtdev, kinds, .. } = self.shown();
        let is_of = |kind: &str| kind.strip_suffix("NAME").is_some_and(|begin| name.starts_with(begin));
        if let Some((_, kind)) = kinds.0.iter().find(|(kind, _)| is_of(kind)) {
            return which(kind).clone();
        }
        let Some(info) = mgmtdev.find(name) else { return Vec::new() };
        which(&KindInfo {
            summary: info.summary.clone(),
            add: String::new(),
            max_devices: info.max_devices,
            attributes: info.attributes.clone(),
            settings: Vec::new(),
            functions: info.functions.clone(),
        })
        .clone()
    }

    fn features(&self, mgmtdev: Option<&str>) -> Vec<String> {
        let Some(name) = mgmtdev else { return Vec::new() };
        let shown = self.shown();
        let features = shown.mgmtdev.find(name).map(|info| info.dev_features.clone()).unwrap_or_default();
        features.iter().map(|feature| feature.shown()).collect()
    }

    fn ports(&self) -> Vec<(String, String)> {
        let shown: Option<PortShow> = self.ask("port.show", &Select::default());
        let ports = shown.unwrap_or_default().port.0.into_iter();
        ports.map(|(name, info)| (name, info.function.state.name().to_owned())).collect()
    }

    fn cores(&self) -> Vec<(String, String)> {
        let shown: Option<CoreShow> = self.ask("core.show", &json!({}));
        let cores = shown.unwrap_or_default().core.0.into_iter();
        cores.map(|(core, info)| (core, format!("groups {}", info.groups))).collect()
    }

    fn queues(&self, device: &str) -> Vec<(String, String)> {
        let queue = Queue { name: device.to_owned(), qidx: None };
        let shown: Option<VstatsShow> = self.ask("dev.vstats.show", &queue);
        match shown.as_ref().and_then(|shown| shown.vstats.find(device)) {
            Some(Vstats::All { queues }) => {
                queues.iter().map(|queue| (queue.qidx.to_string(), queue.queue_type.clone())).collect()
            }
            _ => Vec::new(),
        }
    }
}

/// The words of a line as a shell has them, the last one unfinished: empty behind a blank.
fn split(line: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let (mut quote, mut escaped) = (None, false);
    for c in line.chars() {
        let mut push = |c| {
            if let Some(word) = words.last_mut() {
                word.push(c);
            }
        };
        match (quote, c) {
            _ if std::mem::take(&mut escaped) => push(c),
            (None | Some('"'), '\\') => escaped = true,
            (Some(open), c) if open == c => quote = None,
            (Some(_), c) => push(c),
            (None, '\'' | '"') => quote = Some(c),
            (None, c) if c.is_whitespace() => {
                if words.last().is_some_and(|word| !word.is_empty()) {
                    words.push(String::new());
                }
            }
            (None, c) => push(c),
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is offered without a daemon.
    fn offered(line: &str) -> Vec<String> {
        let facts = Facts { ctl: "/nowhere/ctl.sock".into(), until: Instant::now() + WITHIN };
        match offer(line, &facts) {
            Offer::Words(words) => words.into_iter().map(|(word, _)| word).collect(),
            path => vec![format!("{path:?}")],
        }
    }

    #[test]
    fn commands_options_and_their_values_are_those_of_the_definition() {
        assert_eq!(offered("ringway mg"), ["mgmtdev"]);
        assert_eq!(offered("ringway dev s"), ["show", "set"]);
        assert_eq!(offered("ringway d v"), ["vstats"]);
        assert!(offered("ringway --").contains(&"--timeout".to_owned()));
        assert!(offered("ringway dev show --q").contains(&"--qemu".to_owned()));
        assert_eq!(offered("ringway --ctl "), ["Files"]);
        assert_eq!(offered("ringway -b "), ["Files"]);
        assert_eq!(offered("ringway --ctl x -j config check "), ["Files"]);
        assert_eq!(offered("ringway man "), ["Directories"]);
        assert_eq!(offered("ringway demo --ring p"), ["packed"]);
        assert_eq!(offered("ringway events --type session.no"), ["session.no_buffers", "session.not_run"]);
        assert!(offered("ringway completion ").contains(&"bash".to_owned()));
        assert_eq!(offered("ringway wait vm0 c"), ["connected"]);
        assert!(!offered("ringway ").contains(&"complete".to_owned()));
    }

    #[test]
    fn keywords_follow_each_other_and_their_values_stand_behind_them() {
        assert!(offered("ringway dev add ").starts_with(&["name".to_owned(), "mgmtdev".to_owned()]));
        assert!(offered("ringway dev add name ").is_empty());
        assert!(offered("ringway dev add name a mgmtdev br").contains(&"bridge/".to_owned()));
        let words = offered("ringway dev add name a mgmtdev bridge/br0 m");
        assert_eq!(
            words,
            ["mac", "mtu", "max_vqp", "mode", "max_tx_pps", "max_tx_rate", "max_rx_pps", "max_rx_rate"]
        );
        assert_eq!(offered("ringway dev add name a mgmtdev bridge/br0 spoofchk "), ["on", "off"]);
        assert_eq!(offered("ringway dev add name a mode "), ["server", "client"]);
        assert_eq!(offered("ringway dev add socket "), ["Files"]);
        assert_eq!(offered("ringway mgmtdev add name bridge/br0 ag"), ["ageing"]);
        assert_eq!(offered("ringway port function set simnic/nic0/7 state "), ["active", "inactive"]);
        assert_eq!(offered("ringway port add simnic/nic0 s"), ["sfnum"]);
        assert_eq!(offered("ringway bridge vlan add dev a vid 5 "), ["pvid", "untagged"]);
        assert_eq!(offered("ringway bridge vlan del dev a vid 5 "), Vec::<String>::new());
        assert!(!offered("ringway dev set name a ").contains(&"socket".to_owned()));
    }

    #[test]
    fn line_is_split_as_a_shell_does_and_its_last_word_is_unfinished() {
        assert_eq!(split("a b"), ["a", "b"]);
        assert_eq!(split("a  b "), ["a", "b", ""]);
        assert_eq!(split("a 'b c"), ["a", "b c"]);
        assert_eq!(split(r#"a "b\" c" d\ e"#), ["a", "b\" c", "d e"]);
        assert_eq!(split(""), [""]);
    }
}
