//! Throughput over sizes and queues, latency over percentiles: of frames, and of a disk's requests.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::super::axis::{Scale, short};
use super::super::chart::{Line, Lines, told};
use super::super::html::Html;
use super::super::reading::Sourced;
use super::super::reading::{number, parameters, plain, spread_of};
use super::super::tables::table;
use crate::record::Record;
use crate::stats::Spread;

/// One back-end's rounds with one kind of load.
#[derive(Debug)]
pub(crate) struct Run<'a> {
    parameters: Map<String, Value>,
    rounds: Vec<&'a Value>,
    /// The highest rate without loss, if that was searched.
    lossless_mpps: Option<f64>,
}

/// Reads the runs of a record: its `series`, or one run for each ring format.
pub(crate) fn runs(record: &Record) -> Option<Vec<Run<'_>>> {
    let parameters = parameters(record);
    if let Some(series) = record.result.get("series") {
        let rounds = series.as_array()?.iter().collect();
        return Some(vec![Run { parameters, rounds, lossless_mpps: None }]);
    }
    let outcome = |outcome: &'_ Value| {
        let mut parameters = parameters.clone();
        parameters.insert("ring".to_owned(), outcome.get("ring")?.clone());
        // Whose they are, unless ours.
        if let Some(name) =
            outcome.get("backend").and_then(|backend| backend.get("name")).filter(|name| *name != "ringway")
        {
            parameters.insert("backend".to_owned(), name.clone());
        }
        Some(parameters)
    };
    let runs: Vec<Run<'_>> = record
        .result
        .get("runs")?
        .as_array()?
        .iter()
        .filter_map(|value| {
            let rounds = value.get("series").and_then(|series| series.get("rounds")?.as_array());
            let lossless_mpps = value.get("search").and_then(|search| search.get("mpps")?.as_f64());
            let rounds = rounds.into_iter().flatten().collect::<Vec<_>>();
            (!rounds.is_empty() || lossless_mpps.is_some())
                .then(|| Some(Run { parameters: outcome(value)?, rounds, lossless_mpps }))?
        })
        .collect();
    (!runs.is_empty()).then_some(runs)
}

/// Fields, and what a column of each is called.
type Columns = &'static [(&'static str, &'static str)];

/// What runs are of.
#[derive(Debug)]
pub(crate) struct Form {
    /// The field of a round that says how many there were, and the same in words.
    rate: (&'static str, &'static str),
    /// Parameters that a chart can be over.
    varied: &'static [(&'static str, &'static str, &'static str)],
    /// One of them.
    each: &'static str,
    /// Beside rate and latencies, fields of a round, and what is counted of each.
    columns: (Columns, Columns),
    /// The highest rate without loss may have been searched.
    searched: bool,
}

/// Of a network back-end.
pub(crate) static FRAMES: Form = Form {
    rate: ("mpps", "million packets a second"),
    varied: &[
        ("size", "Throughput by frame size", "frame size, bytes"),
        ("burst", "Throughput by burst", "frames in a burst"),
        ("queue_size", "Throughput by queue size", "entries in a ring"),
        ("pairs", "Throughput by queue pairs", "queue pairs"),
    ],
    each: "frames",
    columns: (
        &[("gbps", "Gbit/s")],
        &[("lost", "lost"), ("duplicated", "doubled"), ("reordered", "reordered"), ("corrupt", "damaged")],
    ),
    searched: true,
};

/// Of a disk.
pub(crate) static REQUESTS: Form = Form {
    rate: ("kiops", "thousand requests a second"),
    varied: &[
        ("depth", "Throughput by depth", "requests under way, a queue"),
        ("size", "Throughput by request size", "request size, bytes"),
        ("queues", "Throughput by queues", "queues"),
    ],
    each: "requests",
    columns: (
        &[("mbps", "MB/s")],
        &[
            ("errors", "failed"),
            ("malformed", "malformed"),
            ("stale", "stale"),
            ("torn", "torn"),
            ("misplaced", "misplaced"),
            ("damaged", "damaged"),
        ],
    ),
    searched: false,
};

/// Draws the runs, all of them together.
pub(crate) fn draw(html: &mut Html, records: &[&Sourced], form: &Form) {
    let found: Vec<Run<'_>> = records.iter().filter_map(|sourced| runs(&sourced.record)).flatten().collect();
    let names = telling(&found);
    let of = |run: &Run<'_>, field: &str| spread_of(&run.rounds, |round| round.get(field)?.as_f64());
    let rate = |run: &Run<'_>| of(run, form.rate.0);
    for &(parameter, title, unit) in form.varied {
        let mut lines: BTreeMap<String, Vec<(f64, Spread)>> = BTreeMap::new();
        for run in &found {
            if let (Some(at), Some(spread)) = (run.parameters.get(parameter).and_then(number), rate(run)) {
                lines.entry(name_of(run, &names, Some(parameter))).or_default().push((at, spread));
            }
        }
        // A line of one point tells nothing of what the parameter does.
        lines.retain(|_, points| {
            points.sort_by(|a, b| a.0.total_cmp(&b.0));
            points.first().map(|(at, _)| *at) < points.last().map(|(at, _)| *at)
        });
        Lines {
            title: title.to_owned(),
            x_name: unit.to_owned(),
            y_name: form.rate.1.to_owned(),
            x: Scale::Log,
            y: Scale::Linear,
            lines: lines.into_iter().map(|(name, points)| Line { name, points }).collect(),
            mark: None,
        }
        .draw(html);
    }
    let latencies: Vec<Line> = found
        .iter()
        .filter_map(|run| {
            let points: Vec<(f64, Spread)> = PERCENTILES
                .into_iter()
                .filter_map(|(share, name)| {
                    let us = |round: &Value| Some(round.get("latency")?.get(name)?.as_f64()? / 1e3);
                    Some((share, spread_of(&run.rounds, us).filter(|us| us.median > 0.0)?))
                })
                .collect();
            (!points.is_empty()).then(|| Line { name: name_of(run, &names, None), points })
        })
        .collect();
    // More than a few lines in one chart cannot be told apart.
    let charts = latencies.chunks(LINES_MOST);
    let count = charts.len();
    for (number, lines) in charts.enumerate() {
        let part = if count > 1 { format!(" ({} of {count})", number + 1) } else { String::new() };
        Lines {
            title: format!("Latency by percentile{part}"),
            x_name: format!("share of {} that were as fast", form.each),
            y_name: "microseconds".to_owned(),
            x: Scale::Nines,
            y: Scale::Log,
            lines: lines.to_vec(),
            mark: None,
        }
        .draw(html);
    }
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|run| {
            let latency = |name: &str| {
                let us =
                    spread_of(&run.rounds, |round| Some(round.get("latency")?.get(name)?.as_f64()? / 1e3));
                us.map_or("-".to_owned(), |us| short(us.median))
            };
            let count = |name: &str| {
                let each = run.rounds.iter().filter_map(|round| round.get("counts")?.get(name)?.as_u64());
                each.sum::<u64>().to_string()
            };
            let (fields, counts) = form.columns;
            let mut row = vec![name_of(run, &names, None), rate(run).map_or("-".to_owned(), told)];
            row.extend(form.searched.then(|| run.lossless_mpps.map_or("-".to_owned(), short)));
            row.extend(fields.iter().map(|(field, _)| of(run, field).map_or("-".to_owned(), told)));
            row.extend(["p50", "p99", "p999"].map(latency));
            row.extend(counts.iter().map(|(name, _)| count(name)));
            row
        })
        .collect();
    if !rows.is_empty() {
        let (fields, counts) = form.columns;
        let mut heads = vec!["run", if form.searched { "Mpps" } else { "k requests/s" }];
        heads.extend(form.searched.then_some("without loss, Mpps"));
        heads.extend(fields.iter().map(|(_, head)| *head));
        heads.extend(["p50, µs", "p99, µs", "p99.9, µs"]);
        heads.extend(counts.iter().map(|(_, head)| *head));
        table(html, &heads, &rows);
    }
}

/// Lines in one chart of latencies.
const LINES_MOST: usize = 6;

const PERCENTILES: [(f64, &str); 5] =
    [(0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p999"), (0.9999, "p9999")];

/// The parameters that differ between these runs: they tell them apart.
fn telling(runs: &[Run<'_>]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let named = runs.iter().flat_map(|run| &run.parameters);
    for (name, value) in named.filter(|(name, _)| !NOT_TELLING.contains(&name.as_str())) {
        let differs = |other: &Run<'_>| other.parameters.get(name) != Some(value);
        if !names.contains(name) && runs.iter().any(differs) {
            names.push(name.clone());
        }
    }
    names
}

/// How it was measured, not what.
const NOT_TELLING: [&str; 5] = ["seconds", "rounds", "search", "socket", "max_gap_us"];

/// A run's name by the parameters that tell it apart, but one.
fn name_of(run: &Run<'_>, names: &[String], but: Option<&str>) -> String {
    let told = |name: &String| {
        let value = run.parameters.get(name)?;
        let spaced = name.replace('_', " ");
        Some(match (name.as_str(), value) {
            (_, Value::Null | Value::Bool(false)) => return None,
            (_, Value::Bool(true)) => spaced,
            ("ring" | "job" | "backend" | "op", _) => plain(value),
            ("size", Value::String(mix)) if mix.parse::<u64>().is_err() => mix.clone(),
            ("size", _) => format!("{} B", plain(value)),
            ("rate", _) => format!("{} M/s offered", short(number(value)? / 1e6)),
            _ => format!("{spaced} {}", plain(value)),
        })
    };
    let parts: Vec<String> =
        names.iter().filter(|name| Some(name.as_str()) != but).filter_map(told).collect();
    if parts.is_empty() { "as many as go".to_owned() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::record;
    use super::*;

    #[test]
    fn runs_are_named_by_what_tells_them_apart() {
        let records = [64, 1518].map(|size| {
            let parameters =
                json!({"port": {"ring": "split", "size": size, "touch": "all"}, "seconds": size});
            record("net", parameters, json!({"series": []}))
        });
        let runs: Vec<Run<'_>> = records.iter().filter_map(runs).flatten().collect();
        let names = telling(&runs);
        assert_eq!(names, ["size"]);
        assert_eq!(name_of(&runs[1], &names, None), "1518 B");
        assert_eq!(name_of(&runs[1], &names, Some("size")), "as many as go");
    }

    #[test]
    fn a_record_of_both_formats_is_two_runs() {
        let record = record(
            "net",
            json!({"port": {"ring": "both", "size": "64"}, "rate": 1e6}),
            json!({"runs": [
                {"ring": "split", "backend": {"name": "ringway"}, "series": {"rounds": [{"mpps": 1.0}, {"mpps": 3.0}]}},
                {"ring": "packed", "backend": {"name": "null"}, "search": {"mpps": 7.0}},
                {"ring": "split", "backend": {}},
            ]}),
        );
        let runs = runs(&record).unwrap();
        assert_eq!((runs.len(), runs[0].rounds.len(), runs[1].lossless_mpps), (2, 2, Some(7.0)));
        let names = telling(&runs);
        assert_eq!(name_of(&runs[0], &names, None), "split");
        assert_eq!(name_of(&runs[1], &names, None), "packed, null");
    }
}
