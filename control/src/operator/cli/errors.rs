//! How an error is told: to people in up to three lines, with `-j` as an object on one line of standard error, to those who
//! called the program `vdpa` in the words of `vdpa(8)`.

use std::ffi::OsString;
use std::io::Write as _;

use clap::CommandFactory as _;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::fault::{Fault, Kind};
use crate::operator::cli::ringway::Cli;
use crate::operator::cli::{compat, grammar};

/// What `-j` prints of an error.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorLine {
    /// The error.
    pub error: ErrorObject,
}

/// An error as data. A key is there where there is something to say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorObject {
    /// What sort of error it is.
    pub kind: Kind,
    /// The exit code of that kind. In a batch that goes on (`--force`), the program ends with that of the first.
    pub exit_code: u8,
    /// What is wrong.
    pub message: String,
    /// The keyword, option, parameter, or FILE:LINE that it is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The word that is wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub given: Option<String>,
    /// Which word of the command line that is: the program's name is 0. Of a line of a batch, its first word is 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub word: Option<usize>,
    /// The batch that the command line stands in.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub file: Option<String>,
    /// On which line, counted from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<usize>,
    /// What would have been right: words, or what one has to look like.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub expected: Vec<String>,
    /// Who holds what was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The same command may succeed later.
    pub retryable: bool,
}

/// What `-j` prints of what else the operator should know.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NoteLine {
    /// It, in one sentence.
    pub note: String,
}

/// Who is spoken to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Voice {
    Text,
    Json,
    Vdpa,
}

impl Voice {
    /// As far as can be told of a command line that may be wrong.
    pub(super) fn of(args: &[OsString]) -> Voice {
        let is_json = |at: usize| {
            let arg = args.get(at).map(|arg| arg.to_string_lossy()).unwrap_or_default();
            let cluster = arg.strip_prefix('-').filter(|rest| !rest.starts_with('-')).unwrap_or_default();
            arg == "--json" || cluster.split('b').next().unwrap_or_default().contains('j')
        };
        match compat::is_vdpa(args) {
            true => Voice::Vdpa,
            false if grammar::options(args).into_iter().any(is_json) => Voice::Json,
            false => Voice::Text,
        }
    }

    /// Tells an error of a command line, which may be one of a batch.
    pub(super) fn tell(self, fault: &Fault, args: &[OsString], batch: Option<(&str, usize)>) {
        let text = match (self, batch) {
            (Voice::Vdpa, _) => compat::fault(fault),
            (Voice::Text, None) => fault.to_string(),
            (Voice::Text, Some((file, line))) => {
                Fault { message: format!("{file}:{line}: {}", fault.message), ..fault.clone() }.to_string()
            }
            (Voice::Json, _) => json_line(&ErrorLine { error: ErrorObject::of(fault, args, batch) }),
        };
        let _ = writeln!(std::io::stderr(), "{text}");
    }

    /// Tells what else the operator should know.
    pub(super) fn note(self, note: &str) {
        let text = match self {
            Voice::Vdpa => return,
            Voice::Text => format!("note: {note}"),
            Voice::Json => json_line(&NoteLine { note: note.to_owned() }),
        };
        let _ = writeln!(std::io::stderr(), "{text}");
    }
}

fn json_line(told: &impl Serialize) -> String {
    serde_json::to_string(told).unwrap_or_else(|error| error.to_string())
}

impl ErrorObject {
    fn of(fault: &Fault, args: &[OsString], batch: Option<(&str, usize)>) -> ErrorObject {
        let word = place(fault, args);
        let given = || Some(args.get(word?)?.to_string_lossy().into_owned());
        ErrorObject {
            kind: fault.kind,
            exit_code: fault.kind.exit_code(),
            message: fault.message.clone(),
            path: fault.path.clone(),
            given: fault.given_word().map(str::to_owned).or_else(given),
            word,
            file: batch.map(|(file, _)| file.to_owned()),
            line: batch.map(|(_, line)| line),
            expected: fault.expected_words().to_vec(),
            held_by: fault.held_by.clone(),
            hint: fault.hint.clone(),
            retryable: fault.retryable,
        }
    }
}

/// Which word of a command line a fault is about: a keyword that is unknown, or the value that follows the one that is at
/// fault, or the thing that was named.
fn place(fault: &Fault, args: &[OsString]) -> Option<usize> {
    let text: Vec<String> = args.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();
    let given = fault.given_word();
    let words = behind_commands(args);
    if let Some(path) = fault.path.as_deref() {
        // Written in full, or shortened where it is nowhere in full.
        let is_whole = words.iter().any(|at| text[*at] == path);
        let is_path = |at: usize| text[at] == path || (!is_whole && grammar::keyword(&text[at]) == path);
        let mut keys = words.iter().enumerate().filter(|(_, at)| is_path(**at));
        let is_key = given.is_some_and(|given| grammar::keyword(given) == path);
        let key = if is_key { keys.next_back() } else { keys.next() };
        if let Some((n, key)) = key {
            return Some(if is_key { *key } else { *words.get(n + 1).unwrap_or(key) });
        }
        let long = format!("--{path}");
        if let Some(at) = text.iter().position(|arg| *arg == long) {
            return Some(if at + 1 < text.len() { at + 1 } else { at });
        }
        let with_value = format!("{long}=");
        if let Some(at) = text.iter().position(|arg| arg.starts_with(&with_value)) {
            return Some(at);
        }
    }
    if let Some(given) = given {
        return (1..text.len()).find(|at| text[*at] == given);
    }
    // A thing that is named without a keyword stands first.
    let is_named = matches!(fault.path.as_deref(), Some("name" | "mgmtdev" | "dev"));
    words.first().copied().filter(|_| is_named)
}

/// Where the words of a command line are that follow its commands and are no options.
fn behind_commands(args: &[OsString]) -> Vec<usize> {
    let full = grammar::normalise(args.to_vec()).unwrap_or_else(|_| args.to_vec());
    let mut command = &Cli::command();
    let mut words = grammar::words(&full);
    while let Some(sub) = words.first().and_then(|at| command.find_subcommand(&full[*at])) {
        command = sub;
        words.remove(0);
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    fn word(fault: &Fault, line: &str) -> Option<String> {
        let args = args(line);
        place(fault, &args).map(|at| args[at].to_string_lossy().into_owned())
    }

    #[test]
    fn place_is_the_value_of_the_keyword_or_the_keyword_that_is_unknown() {
        let line = "ringway -j dev add name vm0 --timeout 5 mgmtdev sim/net mtu 7 swpa on";
        assert_eq!(word(&Fault::usage("x").at("mtu"), line).as_deref(), Some("7"));
        assert_eq!(word(&Fault::usage("x").at("timeout"), line).as_deref(), Some("5"));
        assert_eq!(word(&Fault::usage("x").at("swpa"), line).as_deref(), Some("on"));
        assert_eq!(word(&Fault::usage("x").unknown_key("swpa", ["swap"]), line).as_deref(), Some("swpa"));
        assert_eq!(word(&Fault::usage("x").at("mac"), line), None);
        assert_eq!(place(&Fault::usage("x").at("mtu"), &args(line)), Some(11));
        // Shortened, and without its value.
        assert_eq!(word(&Fault::usage("x").at("mgmtdev"), "ringway d a n a m b").as_deref(), Some("b"));
        assert_eq!(word(&Fault::usage("x").at("core"), "ringway dev add core").as_deref(), Some("core"));
    }

    #[test]
    fn place_is_what_was_named_or_the_word_that_was_given() {
        assert_eq!(word(&Fault::not_found("x").at("name"), "ringway dev del vm9").as_deref(), Some("vm9"));
        assert_eq!(word(&Fault::usage("x").given("shwo"), "ringway dev shwo").as_deref(), Some("shwo"));
        assert_eq!(word(&Fault::usage("x").given("nope"), "ringway dev shwo"), None);
        let twice = Fault::usage("x").at("mtu").given("mtu");
        assert_eq!(place(&twice, &args("ringway dev add mtu 1 mtu 2")), Some(5));
    }

    #[test]
    fn voice_is_told_by_options_alone() {
        assert_eq!(Voice::of(&args("ringway -pj dev shwo")), Voice::Json);
        assert_eq!(Voice::of(&args("ringway dev shwo --json")), Voice::Json);
        assert_eq!(Voice::of(&args("ringway dev add name -p")), Voice::Text);
        assert_eq!(Voice::of(&args("ringway --ctl -j dev")), Voice::Text);
        assert_eq!(Voice::of(&args("ringway -bj")), Voice::Text);
        assert_eq!(Voice::of(&args("/usr/sbin/vdpa -j dev shwo")), Voice::Vdpa);
    }
}
