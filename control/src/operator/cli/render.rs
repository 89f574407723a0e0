//! Answers as text: the lines of `vdpa(8)` first, byte for byte, then what it lacks, indented.
//!
//! One file for each noun; here what no other file has.

mod cores;
mod devices;
mod mgmtdevs;
mod queues;

pub(crate) use cores::{core_changed, core_plan, cores};
pub(crate) use devices::{config, devices};
pub(crate) use mgmtdevs::{mgmtdevs, ports, vlans};
pub(crate) use queues::vstats;

use std::fmt::Write as _;

use crate::operator::api::{ConfigAction, ConfigPlan, Disrupts, Event, EventPage, Hello};
use crate::operator::names::FeatureName;

fn features(names: &[FeatureName]) -> String {
    names.iter().map(FeatureName::shown).collect::<Vec<_>>().join(" ")
}

/// `config diff`, or `config apply` if it is done.
pub(crate) fn plan(plan: &ConfigPlan, is_done: bool) -> String {
    let mut text = String::new();
    for step in &plan.steps {
        let (sign, done, to_do) = match step.action {
            ConfigAction::Add => ('+', "added", "is added"),
            ConfigAction::Set => ('~', "changed", "is changed"),
            ConfigAction::Remake => ('!', "removed and made anew", "is removed and made anew"),
            ConfigAction::Del => ('-', "removed", "is removed"),
            ConfigAction::Adopt => {
                ('=', "the file's now, not an operator's", "becomes the file's, not an operator's")
            }
            ConfigAction::Restart => {
                ('*', "waits for a restart of ringwayd", "waits for a restart of ringwayd")
            }
        };
        let name = if step.name.is_empty() { String::new() } else { format!(" {}", step.name) };
        let disrupts = match step.disrupts {
            Disrupts::Nothing => String::new(),
            Disrupts::Queue => "; its queues stand for a moment".to_owned(),
            Disrupts::Device => {
                "; its guest loses the device".to_owned()
                    + if step.action == ConfigAction::Del { "" } else { " for a moment" }
            }
            Disrupts::Daemon => "; that disrupts all devices for a moment".to_owned(),
        };
        let word = if is_done { done } else { to_do };
        let _ = writeln!(text, "{sign} {}{name}: {word}{disrupts}", step.what);
        for change in &step.changes {
            let word = |value: &Option<String>| value.clone().unwrap_or_else(|| "default".to_owned());
            let _ = writeln!(text, "    {} {} -> {}", change.key, word(&change.before), word(&change.after));
        }
        for note in &step.notes {
            let _ = writeln!(text, "    {note}");
        }
    }
    let devices = |count: usize| if count == 1 { "1 device".to_owned() } else { format!("{count} devices") };
    let _ = match (plan.steps.is_empty(), plan.unchanged) {
        (true, unchanged) => writeln!(text, "nothing to change: {} as the file says", devices(unchanged)),
        (false, 0) => Ok(()),
        (false, unchanged) => writeln!(text, "{} more as the file says", devices(unchanged)),
    };
    for (name, keys) in &plan.deferred.0 {
        let _ = writeln!(
            text,
            "{name}: {} set before: in force when its next front-end connects",
            keys.join(", ")
        );
    }
    if !plan.beside.is_empty() {
        let _ = writeln!(text, "added by operators, and not in the file: {}", plan.beside.join(", "));
    }
    if let Some(previous) = &plan.previous {
        let _ = writeln!(text, "what was asked for before is kept in {previous}");
    }
    text
}

/// `hello`.
pub(crate) fn hello(hello: &Hello) -> String {
    let mut text = format!("{} (pid {}), api {}\n", hello.build, hello.pid, hello.api);
    let _ = writeln!(text, "  instance {} generation {} seq {}", hello.instance, hello.generation, hello.seq);
    let _ = writeln!(text, "  device sockets in {}", hello.device_dir.display());
    match &hello.state_dir {
        Some(dir) => {
            let _ = writeln!(text, "  devices are kept in {}", dir.display());
        }
        None => text.push_str("  devices are not kept over a restart\n"),
    }
    let _ = writeln!(text, "  clients {}", hello.clients);
    for (reason, count) in &hello.dropped_clients {
        let _ = writeln!(text, "  dropped clients: {reason} {count}");
    }
    if hello.role == "viewer" {
        text.push_str("  this socket is view-only\n");
    }
    if hello.refused_requests > 0 {
        let _ = writeln!(text, "  refused requests of viewers {}", hello.refused_requests);
    }
    if hello.viewer_waits > 0 {
        let _ = writeln!(text, "  waits of viewers for their part of the time {}", hello.viewer_waits);
    }
    if hello.lost_log_lines > 0 {
        let _ = writeln!(
            text,
            "  lost lines of the log: {} (whoever reads ringwayd's standard error is too slow)",
            hello.lost_log_lines
        );
    }
    if hello.lost_events > 0 {
        let _ = writeln!(text, "  events that are not kept on disk: {}", hello.lost_events);
    }
    text
}

/// The first line of `events`: what there is.
pub(crate) fn snapshot(page: &EventPage) -> String {
    let mut text = format!("{} snapshot", page.seq);
    for (name, state) in page.snapshot.iter().flat_map(|snapshot| &snapshot.0) {
        let _ = write!(text, " {name}={state}");
    }
    text.push('\n');
    text
}

/// An event as a line.
pub(crate) fn event(event: &Event) -> String {
    // Of an earlier daemon: the beginning of its instance tells it from others.
    let instance = event.instance.as_deref().and_then(|instance| instance.get(..8));
    let whose = instance.map(|instance| format!("{instance}:")).unwrap_or_default();
    let mut text = format!("{whose}{} {} {}", event.seq, timestamp(event.time_ns), event.kind);
    if let Some(dev) = &event.dev {
        let _ = write!(text, " {dev}");
    }
    for (key, value) in &event.details {
        match (key.as_str(), serde_json::from_value::<Vec<FeatureName>>(value.clone())) {
            ("features", Ok(names)) => {
                let names: Vec<String> = names.iter().map(FeatureName::shown).collect();
                let _ = write!(text, " {key}={}", serde_json::json!(names));
            }
            _ => drop(write!(text, " {key}={value}")),
        }
    }
    text.push('\n');
    text
}

/// Nanoseconds since 1970 as RFC 3339, in UTC, to the millisecond.
fn timestamp(time_ns: u64) -> String {
    let (seconds, millis) = (time_ns / 1_000_000_000, time_ns / 1_000_000 % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days to year, month and day in the Gregorian calendar, counted in eras of 400 years from March 1st of year 0.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_printed_as_rfc_3339() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(1_709_210_096_789_000_000), "2024-02-29T12:34:56.789Z");
        assert_eq!(timestamp(4_102_444_800_000_000_000), "2100-01-01T00:00:00.000Z");
    }
}
