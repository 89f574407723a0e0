//! What the words of a command line mean: the shortened words of `vdpa(8)`, and keywords with values.

use std::ffi::OsString;

use super::keywords::KEYWORDS;
use crate::fault::{Fault, nearest};

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
pub(super) fn normalise(args: Vec<OsString>) -> Result<Vec<OsString>, Fault> {
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

/// A keyword in full: exact words go first, then those that may be shortened, in the order of `vdpa(8)`.
pub(crate) fn keyword(word: &str) -> String {
    let exact = KEYWORDS.iter().find(|keyword| keyword.name == word);
    let short = KEYWORDS.iter().filter(|keyword| keyword.is_short).map(|keyword| keyword.name);
    match exact {
        Some(keyword) => keyword.name.to_owned(),
        None => shortened(word, &short.collect::<Vec<_>>()).unwrap_or(word).to_owned(),
    }
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
}
