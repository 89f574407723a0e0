//! Why a request of an operator failed: one type for the socket, the command and the log.
//!
//! Every fault says what is wrong, who holds it if somebody does, and what to do. Its kind decides the exit code of
//! `ringway` and the code of a JSON-RPC error.

use std::fmt;
use std::num::NonZeroU16;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use ringway_pmd::vdpa::DriverError;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What sort of failure: stable names and exit codes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Something failed while it was done.
    Runtime,
    /// The request is not one.
    Usage,
    /// What was named is not there.
    NotFound,
    /// What was asked for is already there, or held by another.
    Conflict,
    /// The operator may not.
    Permission,
    /// No daemon answers.
    Unreachable,
    /// No answer in time.
    Timeout,
    /// The daemon runs, and lacks something that it was asked for; or its host is not as it has to be.
    Degraded,
    /// The daemon runs from a file that is not the installed one any more.
    Outdated,
    /// Accepted, but not in force yet.
    NotApplied,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 10] = [
        Kind::Runtime,
        Kind::Usage,
        Kind::NotFound,
        Kind::Conflict,
        Kind::Permission,
        Kind::Unreachable,
        Kind::Timeout,
        Kind::Degraded,
        Kind::Outdated,
        Kind::NotApplied,
    ];

    /// The exit code of `ringway`.
    pub fn exit_code(self) -> u8 {
        match self {
            Kind::Runtime => 1,
            Kind::Usage => 2,
            Kind::NotFound => 3,
            Kind::Conflict => 4,
            Kind::Permission => 5,
            Kind::Unreachable => 6,
            Kind::Timeout => 7,
            Kind::Degraded => 8,
            Kind::Outdated => 9,
            Kind::NotApplied => 65,
        }
    }

    /// What the exit code means, for the manual page.
    pub fn meaning(self) -> &'static str {
        match self {
            Kind::Runtime => "something failed while it was done",
            Kind::Usage => "the command line or the request is wrong",
            Kind::NotFound => "what was named is not there",
            Kind::Conflict => "it exists already, is something else, or another holds it",
            Kind::Permission => "not permitted",
            Kind::Unreachable => "the daemon is not reachable",
            Kind::Timeout => "no answer in time",
            Kind::Degraded => {
                "the daemon runs without something that it was asked for (status), or the host harms it or is harmed (doctor)"
            }
            Kind::Outdated => "the daemon runs from another file than is installed now (status)",
            Kind::NotApplied => "accepted, but not in force yet",
        }
    }

    /// Of what the system says.
    fn of_system(kind: std::io::ErrorKind) -> Kind {
        match kind {
            std::io::ErrorKind::PermissionDenied => Kind::Permission,
            std::io::ErrorKind::NotFound => Kind::NotFound,
            std::io::ErrorKind::AlreadyExists
            | std::io::ErrorKind::IsADirectory
            | std::io::ErrorKind::NotADirectory => Kind::Conflict,
            _ => Kind::Runtime,
        }
    }

    /// The JSON-RPC error code.
    pub fn rpc_code(self) -> i64 {
        match self {
            Kind::Usage => -32602,
            other => -32000 - i64::from(other.exit_code()),
        }
    }
}

/// A failure, for people and for programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// What sort.
    pub kind: Kind,
    /// What is wrong, without a full stop.
    pub message: String,
    /// Who holds what was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub held_by: Option<String>,
    /// What to do.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
    /// The parameter, file or key that is at fault.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// The word that is wrong, and what would have been right. Apart, for most faults have none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub words: Option<Box<Words>>,
    /// True if the same request may succeed later.
    #[serde(default)]
    pub retryable: bool,
    /// What keeps it passes by itself: worth asking again after so many milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_ms: Option<NonZeroU16>,
}

/// The word of a command line or a request that is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Words {
    /// It, as it was given.
    pub given: Option<String>,
    /// What would have been right: words, or what one has to look like.
    pub expected: Vec<String>,
}

impl Fault {
    /// A fault of this kind.
    pub fn new(kind: Kind, message: impl Into<String>) -> Fault {
        Fault {
            kind,
            message: message.into(),
            held_by: None,
            hint: None,
            path: None,
            words: None,
            retryable: false,
            retry_after_ms: None,
        }
    }
    /// The request is not one.
    pub fn usage(message: impl Into<String>) -> Fault {
        Fault::new(Kind::Usage, message)
    }
    /// What was named is not there.
    pub fn not_found(message: impl Into<String>) -> Fault {
        Fault::new(Kind::NotFound, message)
    }
    /// It is already there.
    pub fn conflict(message: impl Into<String>) -> Fault {
        Fault::new(Kind::Conflict, message)
    }
    /// The system refused: its reason decides the kind, so that one cause has one exit code, whoever met it.
    pub fn system(what: impl fmt::Display, error: impl Into<std::io::Error>) -> Fault {
        let error = error.into();
        Fault::new(Kind::of_system(error.kind()), format!("{what}: {}", reason(&error)))
    }
    /// What clap found wrong with the command line of `program`.
    pub(crate) fn of_clap(error: &clap::Error, program: &str) -> Fault {
        let text = error.render().to_string();
        if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
            // The text is the whole help of what has no command.
            let lines = text.lines().skip_while(|line| *line != "Commands:").skip(1);
            let words = lines.take_while(|line| !line.is_empty()).filter_map(|line| {
                let word = line.strip_prefix("  ")?.split(' ').next()?;
                (!word.is_empty() && word != "help").then_some(word)
            });
            let words: Vec<&str> = words.collect();
            let hint = format!("one of: {}", words.join(", "));
            return Fault::usage("a command is missing").hint(hint).expected(words);
        }
        let text = text.strip_prefix("error: ").unwrap_or(&text);
        let mut parts = text.splitn(2, "\n\n");
        let message: Vec<&str> = parts.next().unwrap_or_default().lines().map(str::trim).collect();
        let rest = parts.next().unwrap_or_default();
        // That what was taken for an option may be a value is seldom so, and never the cure.
        let lines = rest.lines().map(str::trim).filter(|line| !line.contains("use '-- "));
        let hint = lines
            .filter_map(|line| line.strip_prefix("tip: ").or_else(|| line.strip_prefix("Usage: ")))
            .next()
            .map(str::to_owned);
        let mut fault =
            Fault::usage(message.join(" ")).hint(hint.unwrap_or_else(|| format!("{program} --help")));
        let context = |kind| -> Vec<String> {
            match error.get(kind) {
                Some(ContextValue::String(text)) if !text.is_empty() => vec![text.clone()],
                Some(ContextValue::Strings(all)) => all.clone(),
                _ => Vec::new(),
            }
        };
        let arg = context(ContextKind::InvalidArg).into_iter().next();
        let value = context(ContextKind::InvalidValue).into_iter().next();
        let command = context(ContextKind::InvalidSubcommand).into_iter().next();
        let expected = [ContextKind::ValidValue, ContextKind::ValidSubcommand].map(context).concat();
        let is_unknown = error.kind() == ErrorKind::UnknownArgument;
        let given = value.or(command).or_else(|| arg.clone().filter(|_| is_unknown));
        fault.words = Some(Box::new(Words { given, expected }));
        // As the usage has it: `--timeout <SECONDS>`, `[UNTIL]`.
        fault.path = arg.filter(|_| !is_unknown).map(|arg| {
            let name = arg.split([' ', '=']).next().unwrap_or_default();
            name.trim_matches(|c: char| !c.is_alphanumeric()).to_lowercase()
        });
        fault
    }
    /// Adds what to do.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Fault {
        self.hint = Some(hint.into());
        self
    }
    /// Adds who holds it.
    #[must_use]
    pub fn held_by(mut self, holder: impl Into<String>) -> Fault {
        self.held_by = Some(holder.into());
        self
    }
    /// Adds the parameter, file or key at fault.
    #[must_use]
    pub fn at(mut self, path: impl Into<String>) -> Fault {
        self.path = Some(path.into());
        self
    }
    /// Adds the word that is wrong, as it was given.
    #[must_use]
    pub fn given(mut self, word: impl Into<String>) -> Fault {
        self.words.get_or_insert_default().given = Some(word.into());
        self
    }
    /// Adds what would have been right.
    #[must_use]
    pub fn expected(mut self, words: impl IntoIterator<Item = impl Into<String>>) -> Fault {
        self.words.get_or_insert_default().expected = words.into_iter().map(Into::into).collect();
        self
    }
    /// The word that is wrong, if it was told.
    pub fn given_word(&self) -> Option<&str> {
        self.words.as_ref()?.given.as_deref()
    }
    /// What would have been right, as far as that was told.
    pub fn expected_words(&self) -> &[String] {
        self.words.as_ref().map_or(&[], |words| &words.expected)
    }
    /// The key itself is unknown; `known` are those that there are.
    #[must_use]
    pub fn unknown_key<'a>(self, key: &str, known: impl IntoIterator<Item = &'a str>) -> Fault {
        self.at(key).given(key).expected(known)
    }
    /// What keeps it passes by itself, soon.
    #[must_use]
    pub fn passing(self) -> Fault {
        Fault { retry_after_ms: NonZeroU16::new(PASSES_AFTER_MS), ..self.retryable() }
    }
    /// The same request may succeed later.
    #[must_use]
    pub fn retryable(mut self) -> Fault {
        self.retryable = true;
        self
    }
}

/// What passes by itself has done so within a few of these.
const PASSES_AFTER_MS: u16 = 20;

/// What a driver's refusal is to an operator.
impl From<DriverError> for Fault {
    fn from(error: DriverError) -> Fault {
        match error {
            DriverError::Misconfigured(why) => Fault::usage(why),
            DriverError::NotFound(why) => Fault::not_found(why),
            DriverError::Conflict { what, held_by, hint } => {
                let fault = Fault::conflict(what).hint(hint);
                match held_by {
                    Some(holder) => fault.held_by(holder),
                    None => fault,
                }
            }
            DriverError::PeerMisbehaved(why) => Fault::new(Kind::Runtime, why),
            DriverError::Resource { what, source } => Fault::system(what, source),
            DriverError::Unready { what, hint, kind } => Fault::new(Kind::of_system(kind), what).hint(hint),
        }
    }
}

/// What the system said, without Rust's `(os error N)`.
pub(crate) fn reason(error: &std::io::Error) -> String {
    let text = error.to_string();
    match text.find(" (os error") {
        Some(end) => text[..end].to_owned(),
        None => text,
    }
}

/// What an operator wrote, safe to print: short, without characters that do something to a terminal or to the text
/// around them.
pub(crate) fn printable(text: &str) -> String {
    let mut shown: String =
        text.chars().take(LONGEST_SHOWN).map(|c| if is_invisible(c) { '?' } else { c }).collect();
    if text.chars().nth(LONGEST_SHOWN).is_some() {
        shown.push('…');
    }
    shown
}

/// One more than a name may have: whoever wrote a longer one sees that it is.
const LONGEST_SHOWN: usize = 65;

/// A text that somebody else may have written, as a terminal can be given it: control characters, and those that change
/// how the text around them is shown (direction, joining, invisible ones), are written as `\u{N}`. Lines stay lines.
pub(crate) fn visible(text: &str) -> std::borrow::Cow<'_, str> {
    if !text.chars().any(|c| is_invisible(c) && c != '\n') {
        return text.into();
    }
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_invisible(c) && c != '\n' { shown.extend(c.escape_unicode()) } else { shown.push(c) }
    }
    shown.into()
}

/// Control characters (Unicode's Cc) and format characters (Cf), line and paragraph separators among them.
pub(crate) fn is_invisible(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}' | '\u{890}' | '\u{891}' | '\u{8e2}'
            | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}' | '\u{13430}'..='\u{1343f}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e007f}')
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Exit code 65: what was asked for is done, and no error.
        let word = if self.kind == Kind::NotApplied { "note" } else { "error" };
        write!(f, "{word}: {}", visible(&self.message))?;
        if let Some(holder) = &self.held_by {
            write!(f, "\n  held by: {}", visible(holder))?;
        }
        if let Some(hint) = &self.hint {
            write!(f, "\n  try: {}", visible(hint))?;
        }
        Ok(())
    }
}

impl std::error::Error for Fault {}

/// The one of `known` that is nearest to `word`, if it is near enough to have been meant. Never `word` itself: that was
/// given, so it is something else that is wrong.
pub fn nearest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .filter(|candidate| *candidate != word)
        .map(|candidate| (strsim::jaro_winkler(word, candidate), candidate))
        .filter(|(likeness, _)| *likeness >= 0.7)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fault_prints_what_who_and_what_to_do_on_a_line_each() {
        let fault =
            Fault::conflict("cannot listen on /a: in use").held_by("qemu (pid 7)").hint("ringway dev show");
        assert_eq!(
            fault.to_string(),
            "error: cannot listen on /a: in use\n  held by: qemu (pid 7)\n  try: ringway dev show"
        );
    }

    #[test]
    fn exit_codes_and_rpc_codes_are_unique() {
        for (n, a) in Kind::ALL.iter().enumerate() {
            for b in &Kind::ALL[n + 1..] {
                assert_ne!(a.exit_code(), b.exit_code());
                assert_ne!(a.rpc_code(), b.rpc_code());
            }
        }
    }

    #[test]
    fn nearest_finds_a_slip_and_leaves_strangers_alone() {
        assert_eq!(nearest("sokcet", ["socket", "mode"]), Some("socket"));
        assert_eq!(nearest("zzz", ["socket", "mode"]), None);
    }

    #[test]
    fn nearest_is_never_the_word_that_was_given() {
        assert_eq!(nearest("sim/net", ["sim/net", "sim/blk"]), Some("sim/blk"));
        assert_eq!(nearest("bridge", ["bridge", "tap"]), None);
    }

    #[test]
    fn what_others_wrote_cannot_change_how_the_rest_is_shown() {
        let fault = Fault::usage("`a\u{202e}b\u{7}c\u{200b}d\u{2028}e` is no name\nnext")
            .held_by("x\u{9b}1m")
            .hint("\u{feff}");
        let text = fault.to_string();
        assert_eq!(
            text,
            "error: `a\\u{202e}b\\u{7}c\\u{200b}d\\u{2028}e` is no name\nnext\n  held by: x\\u{9b}1m\n  try: \\u{feff}"
        );
        assert!(text.chars().all(|c| c == '\n' || !is_invisible(c)));
        assert_eq!(visible("naïve 日本 é"), "naïve 日本 é");
    }

    #[test]
    fn what_is_accepted_and_not_in_force_yet_is_a_note_and_no_error() {
        let fault = Fault::new(Kind::NotApplied, "vm0 is changed, but not in force yet");
        assert_eq!(fault.to_string(), "note: vm0 is changed, but not in force yet");
    }

    #[test]
    fn system_fault_names_permission_and_drops_the_number() {
        let fault = Fault::system("cannot open /x", std::io::Error::from_raw_os_error(13));
        assert_eq!(fault.kind, Kind::Permission);
        assert_eq!(fault.message, "cannot open /x: Permission denied");
    }
}
