//! `ringway log`: its words, and what it prints.

use std::fmt::Write as _;

use crate::fault::Fault;
use crate::operator::api::{LogSet, LogShow};

/// Levels of the log, and what they mean.
pub(crate) const LEVELS: [(&str, &str); 6] = [
    ("off", "nothing"),
    ("error", "something failed that somebody has to see to"),
    ("warn", "something is wrong; the line says what to do"),
    ("info", "what happened, and what operators changed"),
    ("debug", "each vhost-user message of a device, and what was answered"),
    ("trace", "their bytes as well"),
];

/// What stands below the help of `log`.
pub(crate) fn log_help() -> String {
    let lines = LEVELS.iter().map(|(word, meaning)| format!("  {word:<6} {meaning}"));
    format!(
        "Levels, each with those above it:\n{}\n\nExample: ringway log set debug device vm0",
        lines.collect::<Vec<_>>().join("\n")
    )
}

/// What `log set` asks for.
///
/// # Errors
/// Words that are not its.
pub(super) fn log_set(level: &str, words: &[String]) -> Result<LogSet, Fault> {
    let dev = match words {
        [] => None,
        [word, name] if word == "device" || word == "dev" => Some(name.clone()),
        _ => return Err(Fault::usage("log set takes a level, then `device NAME`, or nothing")),
    };
    Ok(LogSet { level: level.to_owned(), dev })
}

/// What is logged.
pub(super) fn text(answer: &LogShow) -> String {
    let mut text = format!("level {} to {}\n", answer.level, answer.to);
    for (name, level) in &answer.dev.0 {
        let _ = writeln!(text, "  device {name} level {level}");
    }
    if answer.lost_lines > 0 {
        let _ = writeln!(text, "  lost_lines {}", answer.lost_lines);
    }
    text
}
