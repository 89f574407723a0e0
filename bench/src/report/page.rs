//! The page: what it is made from, the machines, the targets, a section for each command, and every record in full.

use serde_json::Value;

use super::Report;
use super::axis::short;
use super::html::Html;
use super::reading::Sourced;
use super::sections::{draw, knows, words};
use super::tables::{any, table};
use super::verdicts::verdicts;
use crate::host::Host;

/// The page of a report.
pub(crate) fn page(report: &Report) -> String {
    let commands = commands(&report.records);
    let mut html = Html::document();
    html.element("html", &[("lang", "en")], |html| {
        html.element("head", &[], |html| {
            html.void("meta", &[("charset", "utf-8")]);
            // Nothing runs and nothing is fetched, whatever a file holds.
            html.void("meta", &[("http-equiv", "Content-Security-Policy"), ("content", POLICY)]);
            html.void("meta", &[("name", "viewport"), ("content", "width=device-width, initial-scale=1")]);
            html.void("meta", &[("name", "color-scheme"), ("content", "light dark")]);
            html.leaf("title", &[], "Ringway, measured");
            html.style(include_str!("style.css"));
        });
        html.element("body", &[], |html| {
            html.leaf("h1", &[], "Ringway, measured");
            html.leaf("p", &[("class", "lead")], &lead(report));
            html.leaf("p", &[], HOW_TO_READ);
            problems(html, report);
            contents(html, &commands);
            targets(html, &report.records);
            machines(html, &report.records);
            for command in &commands {
                let records: Vec<&Sourced> =
                    report.records.iter().filter(|sourced| sourced.record.command == *command).collect();
                section(html, command, &records);
            }
        });
    });
    html.into_string()
}

/// The commands in the records' order, each once.
fn commands(records: &[Sourced]) -> Vec<String> {
    let mut commands: Vec<String> = records.iter().map(|sourced| sourced.record.command.clone()).collect();
    commands.dedup();
    commands
}

fn lead(report: &Report) -> String {
    let times = || report.records.iter().map(|sourced| sourced.record.at);
    match (times().min(), times().max()) {
        (Some(first), Some(last)) => format!(
            "{} of ringway-bench, made from {} to {}.",
            counted(report.records.len(), "result"),
            utc(first),
            utc(last)
        ),
        _ => "No results.".to_owned(),
    }
}

fn problems(html: &mut Html, report: &Report) {
    if report.problems.is_empty() {
        return;
    }
    html.element("section", &[("class", "problems")], |html| {
        html.leaf("h2", &[], "Not read");
        html.element("ul", &[], |html| {
            for problem in &report.problems {
                html.element("li", &[], |html| {
                    html.leaf("code", &[], &problem.source);
                    html.text(": ");
                    html.text(&problem.why);
                });
            }
        });
    });
}

fn contents(html: &mut Html, commands: &[String]) {
    html.element("nav", &[], |html| {
        for command in commands {
            html.leaf("a", &[("href", &format!("#{}", anchor(command)))], command);
            html.text(" ");
        }
    });
}

fn targets(html: &mut Html, records: &[Sourced]) {
    let rows: Vec<Vec<String>> = verdicts(records)
        .into_iter()
        .map(|verdict| {
            let word = verdict.word();
            let reached = match word {
                "reached" => format!("✓ {word}"),
                "missed" => format!("✗ {word}"),
                _ => word.to_owned(),
            };
            vec![verdict.what, verdict.target, verdict.measured, reached, verdict.source]
        })
        .collect();
    if rows.is_empty() {
        return;
    }
    html.element("section", &[], |html| {
        html.leaf("h2", &[], "Targets");
        table(html, &["what", "target", "measured", "", "from"], &rows);
    });
}

/// Each machine once, whatever was stolen of it in one run or another.
fn machines(html: &mut Html, records: &[Sourced]) {
    let mut hosts: Vec<(Host, Vec<f64>)> = Vec::new();
    for sourced in records {
        let host = Host { steal_percent: 0.0, ..sourced.record.host.clone() };
        let steal = sourced.record.host.steal_percent;
        match hosts.iter_mut().find(|(known, _)| *known == host) {
            Some((_, steals)) => steals.push(steal),
            None => hosts.push((host, vec![steal])),
        }
    }
    if hosts.is_empty() {
        return;
    }
    let rows: Vec<Vec<String>> = hosts
        .iter()
        .map(|(host, steals)| {
            let most = steals.iter().copied().fold(0.0, f64::max);
            vec![
                host.cpu.clone(),
                format!("{} ({})", host.cpus, if host.virtual_machine { "virtual" } else { "bare metal" }),
                host.smt.clone(),
                host.governor.clone().unwrap_or_else(|| "-".to_owned()),
                host.kernel.clone(),
                format!("{} / {}", host.hugepages_2m, host.hugepages_1g),
                format!("{} ({})", host.version, host.revision),
                steals.len().to_string(),
                format!("{} %", short(most)),
            ]
        })
        .collect();
    html.element("section", &[], |html| {
        html.leaf("h2", &[], "Machines");
        let heads = [
            "processor",
            "cpus",
            "SMT",
            "governor",
            "Linux",
            "pages of 2 MiB / 1 GiB",
            "suite (revision)",
            "results",
            "most time stolen",
        ];
        table(html, &heads, &rows);
    });
}

fn section(html: &mut Html, command: &str, records: &[&Sourced]) {
    html.element("section", &[("id", &anchor(command))], |html| {
        html.leaf("h2", &[], command);
        html.leaf("p", &[], words(command));
        draw(html, command, records);
        html.leaf("h3", &[], "Runs");
        let rows: Vec<Vec<String>> = records.iter().map(|sourced| run(sourced)).collect();
        table(html, &["file", "finished", "command line", "stolen", "discarded", "lost"], &rows);
        // What has no form of its own is not folded away.
        let (folded, open): (Vec<&Sourced>, Vec<&Sourced>) =
            records.iter().partition(|sourced| knows(&sourced.record));
        open.iter().for_each(|sourced| whole(html, sourced));
        if !folded.is_empty() {
            html.element("details", &[], |html| {
                html.leaf("summary", &[], "Everything in these files");
                folded.iter().for_each(|sourced| whole(html, sourced));
            });
        }
    });
}

fn whole(html: &mut Html, sourced: &Sourced) {
    html.leaf("h3", &[], &sourced.source);
    for (name, value) in [("Parameters", &sourced.record.parameters), ("Result", &sourced.record.result)] {
        html.leaf("h4", &[], name);
        any(html, value);
    }
}

/// A run's row: the noise in it too.
fn run(sourced: &Sourced) -> Vec<String> {
    let record = &sourced.record;
    let sum = |name: &str| sum_of(&record.result, name).map_or("-".to_owned(), |sum| sum.to_string());
    vec![
        sourced.source.clone(),
        utc(record.at),
        format!("ringway-bench {}", record.words.join(" ")),
        format!("{} %", short(record.host.steal_percent)),
        sum("discarded"),
        sum("lost"),
    ]
}

/// The sum of all numbers under a name, at any depth; None if there are none.
fn sum_of(value: &Value, name: &str) -> Option<i64> {
    let of = |(key, value): (&str, &Value)| match value.as_i64() {
        Some(number) if key == name => Some(number),
        _ => sum_of(value, name),
    };
    let found: Vec<i64> = match value {
        Value::Object(fields) => fields.iter().filter_map(|(key, value)| of((key, value))).collect(),
        Value::Array(items) => items.iter().filter_map(|item| sum_of(item, name)).collect(),
        _ => Vec::new(),
    };
    (!found.is_empty()).then(|| found.into_iter().fold(0, i64::saturating_add))
}

/// A name for a link's aim.
fn anchor(command: &str) -> String {
    let letters = command.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '-' });
    ["of-"].into_iter().flat_map(str::chars).chain(letters).collect()
}

fn counted(count: usize, what: &str) -> String {
    if count == 1 { format!("1 {what}") } else { format!("{count} {what}s") }
}

/// A time since 1970 began, as date and time of day.
fn utc(at: u64) -> String {
    let (days, seconds) = (at / 86_400, at % 86_400);
    // Days are counted from 1 March of the year 0, in eras of 400 years, so that leap days come last (the proleptic
    // Gregorian calendar).
    let days = days + 719_468;
    let (era, day) = (days / 146_097, days % 146_097);
    let year = (day - day / 1460 + day / 36_524 - day / 146_096) / 365;
    let day = day - (365 * year + year / 4 - year / 100);
    let month = (5 * day + 2) / 153;
    let day = day - (153 * month + 2) / 5 + 1;
    let (year, month) = (era * 400 + year + month / 10, (month + 2) % 12 + 1);
    format!("{year}-{month:02}-{day:02} {:02}:{:02} UTC", seconds / 3600, seconds / 60 % 60)
}

const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'";

const HOW_TO_READ: &str = "Only ratios within one run say something of the program; absolute numbers say more of the \
                           machine. Numbers in brackets, and whiskers, go from lowest to highest, those of ratios between \
                           the quartiles. Time that other machines \
                           took of the processors (stolen), and what was discarded for gaps, stand with each run.";

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_told_as_dates() {
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(utc(1_767_225_599), "2025-12-31 23:59 UTC");
        assert_eq!(utc(1_767_225_600), "2026-01-01 00:00 UTC");
    }

    #[test]
    fn noise_is_summed_at_any_depth() {
        let result = json!({"a": [{"discarded": 2}, {"b": {"discarded": 3, "lost": -1}}], "discarded": 1});
        assert_eq!((sum_of(&result, "discarded"), sum_of(&result, "lost")), (Some(6), Some(-1)));
        assert_eq!(sum_of(&result, "stolen"), None);
    }

    #[test]
    fn anchors_are_plain() {
        assert_eq!(anchor("<x y>"), "of--x-y-");
    }
}
