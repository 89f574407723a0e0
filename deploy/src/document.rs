//! The commands of a document, to be run as they are written there, and what it shows of what they print.
//!
//! | block begins with | has |
//! | --- | --- |
//! | ```` ```sh ```` | commands for the host |
//! | ```` ```sh guest ```` | commands for the guest, on its console |
//! | ```` ```console ```` | commands behind a prompt, each with what it prints: `$ ` on the host, `NAME# ` on the console of the guest `NAME` |
//! | ```` ``` ```` | nothing to be run |
//!
//! What is printed is compared with what is shown without regard to numbers, times and addresses, which differ from run to run
//! ([`missing`]).

use std::fmt;

use crate::error::{Error, Result};

/// What a block has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Commands for the host.
    Host,
    /// Commands for the guest.
    Guest,
    /// Commands behind prompts, with what they print.
    Console,
    /// Nothing to be run.
    Shown,
}

/// Lines that stand together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// What it has.
    pub kind: Kind,
    /// The first one's line in the document, from 1.
    pub line: usize,
    /// The lines.
    pub text: String,
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} ({:?}):\n{}", self.line, self.kind, self.text)
    }
}

/// One command, with what is shown of what it prints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Step {
    /// Its line in the document, from 1.
    pub line: usize,
    /// Where it is typed: [`HOST`], or the name of a guest.
    pub place: String,
    /// The command; of several lines where it is written so.
    pub command: String,
    /// What it prints, a line each.
    pub shown: Vec<String>,
}

impl Step {
    /// Whether what is shown says that the command fails.
    pub fn fails(&self) -> bool {
        let is_failure = |line: &String| {
            line.starts_with("error: ")
                || line.starts_with("{\"error\":")
                || line.contains(" 100% packet loss")
        };
        self.shown.iter().any(is_failure)
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {} ({}): {}", self.line, self.place, self.command)
    }
}

/// The place of a step on the host.
pub const HOST: &str = "$";

impl Block {
    /// Its commands one by one; one that ends in a backslash goes on. Of a block for the guest, the guest is called `guest`;
    /// one with nothing to be run has none.
    pub fn steps(&self) -> Vec<Step> {
        let mut steps: Vec<Step> = Vec::new();
        let mut goes_on = false;
        for (idx, line) in self.text.lines().enumerate() {
            if goes_on && let Some(step) = steps.last_mut() {
                step.command.push('\n');
                step.command.push_str(line);
                goes_on = line.ends_with('\\');
                continue;
            }
            let place = match self.kind {
                Kind::Shown => return steps,
                Kind::Host => Some((HOST, line)),
                Kind::Guest => Some(("guest", line)),
                Kind::Console => prompted(line),
            };
            match (place, steps.last_mut()) {
                (Some((place, command)), _) => {
                    goes_on = command.ends_with('\\');
                    let line = self.line + idx;
                    let (place, command) = (place.to_string(), command.to_string());
                    steps.push(Step { line, place, command, shown: Vec::new() });
                }
                (None, Some(step)) => step.shown.push(line.to_string()),
                // Nobody typed what stands before the first prompt.
                (None, None) => {}
            }
        }
        steps
    }
}

/// The place and the command of a line that begins with a prompt.
fn prompted(line: &str) -> Option<(&str, &str)> {
    if let Some(command) = line.strip_prefix("$ ") {
        return Some((HOST, command));
    }
    let (name, command) = line.split_once("# ")?;
    let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit());
    is_name.then_some((name, command))
}

/// The blocks of a document, in their order.
pub fn blocks(document: &str) -> Result<Vec<Block>> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (idx, line) in document.lines().enumerate() {
        let Some(mark) = line.strip_prefix("```") else {
            if let Some(block) = &mut open {
                block.text.push_str(line);
                block.text.push('\n');
            }
            continue;
        };
        let begin = |kind| Some(Block { kind, line: idx + 2, text: String::new() });
        open = match (open.take(), mark) {
            (Some(block), "") => {
                found.push(block);
                None
            }
            (None, "") => begin(Kind::Shown),
            (None, "sh") => begin(Kind::Host),
            (None, "sh guest") => begin(Kind::Guest),
            (None, "console") => begin(Kind::Console),
            _ => return Err(Error::new(format!("line {}: a block of an unknown kind: {line}", idx + 1))),
        };
    }
    match open {
        Some(block) => Err(Error::new(format!("the block that begins at line {} has no end", block.line))),
        None => Ok(found),
    }
}

/// The first line that is shown and was not printed; `None`: all of them were.
///
/// More may be printed than is shown, and in another order. Numbers, times and addresses may differ, and what a name's number is may
/// not. A line `...` or `…` stands for lines that are left out, and `…` at a line's end for the rest of it.
pub fn missing<'s>(shown: &'s [String], printed: &str) -> Option<&'s str> {
    let mut printed: Vec<String> = printed.lines().map(shape).collect();
    let mut is_there = |line: &str| {
        let begin = line.strip_suffix('…').map(shape);
        let wanted = shape(line);
        let is_it = |said: &String| match &begin {
            Some(begin) => said.starts_with(begin),
            None => *said == wanted,
        };
        // Each for one of those that are shown.
        printed.iter().position(is_it).map(|at| printed.swap_remove(at)).is_some()
    };
    let told = shown.iter().filter(|line| !matches!(line.trim(), "" | "..." | "…"));
    told.map(String::as_str).find(|line| !is_there(line))
}

/// A line's words, with a letter in place of each number, time and address. What `ping` lost is not another time another number.
fn shape(line: &str) -> String {
    if line.contains(" packet loss") {
        return line.trim().to_string();
    }
    let words: Vec<String> = line.split_whitespace().map(shape_of_word).collect();
    words.join(" ")
}

fn shape_of_word(word: &str) -> String {
    if is_time(word) {
        return "T".into();
    }
    if word.contains("::") {
        return "A".into();
    }
    let mut shape = String::new();
    let mut rest = word;
    while let Some(next) = rest.chars().next() {
        if !shape.ends_with(|c: char| c.is_ascii_alphanumeric()) && is_ethernet_address(rest) {
            shape.push('A');
            rest = &rest[ETHERNET_ADDRESS..];
            continue;
        }
        let digits = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        // A number behind a letter is part of a name.
        let is_of_name = shape.ends_with(|c: char| c.is_alphabetic() || c == '_');
        match digits {
            0 => {
                shape.push(next);
                rest = &rest[next.len_utf8()..];
            }
            digits if is_of_name => {
                shape.push_str(&rest[..digits]);
                rest = &rest[digits..];
            }
            digits => {
                rest = &rest[digits..];
                let behind =
                    rest.strip_prefix('.').filter(|rest| rest.starts_with(|c: char| c.is_ascii_digit()));
                rest = behind.map_or(rest, |rest| rest.trim_start_matches(|c: char| c.is_ascii_digit()));
                shape.push('0');
            }
        }
    }
    shape
}

/// `2026-11-29T07:38:49.218318Z`.
fn is_time(word: &str) -> bool {
    let is_of_time = |c: char| c.is_ascii_digit() || "-T:.Z".contains(c);
    word.len() > "2026-11-29T".len() && word.ends_with('Z') && word.chars().all(is_of_time)
}

/// Whether a text begins with an Ethernet address.
fn is_ethernet_address(text: &str) -> bool {
    let Some(address) = text.as_bytes().get(..ETHERNET_ADDRESS) else { return false };
    address.iter().enumerate().all(|(idx, byte)| match idx % 3 {
        2 => *byte == b':',
        _ => byte.is_ascii_hexdigit(),
    })
}

/// `52:54:00:00:00:01`.
const ETHERNET_ADDRESS: usize = 17;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_told_from_what_is_only_shown() {
        let text = "# A\n\n```sh\none\ntwo\n```\n\n```\nshown\n```\n```sh guest\nthree\n```\n";
        let block = |kind, line, text: &str| Block { kind, line, text: text.into() };
        let wanted = vec![
            block(Kind::Host, 4, "one\ntwo\n"),
            block(Kind::Shown, 9, "shown\n"),
            block(Kind::Guest, 12, "three\n"),
        ];
        assert_eq!(blocks(text).unwrap(), wanted);
        assert!(blocks("```sh\none\n").is_err());
        assert!(blocks("```perl\none\n```\n").is_err());
    }

    #[test]
    fn steps_are_commands_with_what_they_print() {
        let step = |line, place: &str, command: &str, shown: &[&str]| Step {
            line,
            place: place.into(),
            command: command.into(),
            shown: shown.iter().map(|line| (*line).to_string()).collect(),
        };
        let console = "```console\n$ a \\\n  b\none\n# two\nvm0# c\n$ d\n```\n";
        let wanted =
            [step(2, "$", "a \\\n  b", &["one", "# two"]), step(6, "vm0", "c", &[]), step(7, "$", "d", &[])];
        assert_eq!(blocks(console).unwrap()[0].steps(), wanted);
        let script = "```sh\na \\\n  b\n# c\n```\n";
        assert_eq!(
            blocks(script).unwrap()[0].steps(),
            [step(2, "$", "a \\\n  b", &[]), step(4, "$", "# c", &[])]
        );
        assert!(blocks("```\n$ a\n```\n").unwrap()[0].steps().is_empty());
    }

    #[test]
    fn shown_lines_are_looked_for_without_their_numbers() {
        let lines = |text: &str| text.lines().map(str::to_string).collect::<Vec<_>>();
        let printed = "vm0: up 12.5 s, mac 52:54:00:aa:00:01\n  more\n2026-11-29T07:38:49.2Z rings running=2\nlast 7 words\n";
        for shown in [
            "vm0: up 3 s,   mac 52:57:11:22:33:44\n...\n2026-01-01T00:00:00Z rings running=1\n",
            "last 1 …\n",
            "",
        ] {
            assert_eq!(missing(&lines(shown), printed), None, "{shown}");
        }
        for (shown, line) in [
            ("vm1: up 3 s, mac 52:57:11:22:33:44\n", "vm1: up 3 s, mac 52:57:11:22:33:44"),
            ("more\n  more\n", "  more"),
            ("last 7\n", "last 7"),
            ("vm0: down 3 s, …\n", "vm0: down 3 s, …"),
        ] {
            assert_eq!(missing(&lines(shown), printed), Some(line), "{shown}");
        }
    }
}
