//! Throughput over sizes and queues, latency over percentiles.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::super::Sourced;
use super::super::axis::{Scale, short};
use super::super::chart::{Line, Lines, told};
use super::super::html::Html;
use super::super::tables::table;
use super::{number, parameters, plain, spread_of};
use crate::record::Record;
use crate::stats::Spread;

/// Draws the runs, all of them together.
pub(crate) fn draw(html: &mut Html, records: &[&Sourced]) {
    let found: Vec<(&Record, Vec<&Value>)> =
        records.iter().filter_map(|sourced| Some((&sourced.record, rounds(&sourced.record)?))).collect();
    let names = telling(&found.iter().map(|(record, _)| *record).collect::<Vec<_>>());
    let rate = |series: &[&Value]| spread_of(series, |round| round.get("mpps")?.as_f64());
    for (parameter, title, unit) in VARIED {
        let mut lines: BTreeMap<String, Vec<(f64, Spread)>> = BTreeMap::new();
        for (record, series) in &found {
            let at = parameters(record).get(parameter).and_then(number);
            if let (Some(at), Some(spread)) = (at, rate(series)) {
                lines.entry(name_of(record, &names, Some(parameter))).or_default().push((at, spread));
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
            y_name: "million packets a second".to_owned(),
            x: Scale::Log,
            y: Scale::Linear,
            lines: lines.into_iter().map(|(name, points)| Line { name, points }).collect(),
            mark: None,
        }
        .draw(html);
    }
    let latencies: Vec<Line> = found
        .iter()
        .filter_map(|(record, series)| {
            let points: Vec<(f64, Spread)> = PERCENTILES
                .into_iter()
                .filter_map(|(share, name)| {
                    let us = |round: &Value| Some(round.get("latency")?.get(name)?.as_f64()? / 1e3);
                    Some((share, spread_of(series, us).filter(|us| us.median > 0.0)?))
                })
                .collect();
            (!points.is_empty()).then(|| Line { name: name_of(record, &names, None), points })
        })
        .collect();
    // More than a few lines in one chart cannot be told apart.
    let charts = latencies.chunks(LINES_MOST);
    let count = charts.len();
    for (number, lines) in charts.enumerate() {
        let part = if count > 1 { format!(" ({} of {count})", number + 1) } else { String::new() };
        Lines {
            title: format!("Latency by percentile{part}"),
            x_name: "share of frames that were as fast".to_owned(),
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
        .map(|(record, series)| {
            let latency = |name: &str| {
                let us = spread_of(series, |round| Some(round.get("latency")?.get(name)?.as_f64()? / 1e3));
                us.map_or("-".to_owned(), |us| short(us.median))
            };
            let count = |name: &str| {
                let each = series.iter().filter_map(|round| round.get("counts")?.get(name)?.as_u64());
                each.sum::<u64>().to_string()
            };
            vec![
                name_of(record, &names, None),
                rate(series).map_or("-".to_owned(), told),
                spread_of(series, |round| round.get("gbps")?.as_f64()).map_or("-".to_owned(), told),
                latency("p50"),
                latency("p99"),
                latency("p999"),
                count("lost"),
                count("duplicated"),
                count("reordered"),
                count("corrupt"),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let heads = [
            "run",
            "Mpps",
            "Gbit/s",
            "p50, µs",
            "p99, µs",
            "p99.9, µs",
            "lost",
            "doubled",
            "reordered",
            "damaged",
        ];
        table(html, &heads, &rows);
    }
}

/// The rounds of a run of `net`.
pub(crate) fn rounds(record: &Record) -> Option<Vec<&Value>> {
    Some(record.result.get("series")?.as_array()?.iter().collect())
}

/// Parameters that a chart can be over.
const VARIED: [(&str, &str, &str); 4] = [
    ("size", "Throughput by frame size", "frame size, bytes"),
    ("burst", "Throughput by burst", "frames in a burst"),
    ("queue_size", "Throughput by queue size", "entries in a ring"),
    ("pairs", "Throughput by queue pairs", "queue pairs"),
];

/// Lines in one chart of latencies.
const LINES_MOST: usize = 6;

const PERCENTILES: [(f64, &str); 5] =
    [(0.5, "p50"), (0.9, "p90"), (0.99, "p99"), (0.999, "p999"), (0.9999, "p9999")];

/// The parameters that differ between these records: they tell them apart.
fn telling(records: &[&Record]) -> Vec<String> {
    let mut names: Vec<String> = Vec::new();
    let all: Vec<Map<String, Value>> = records.iter().map(|record| parameters(record)).collect();
    for (name, value) in
        all.iter().flatten().filter(|(name, _)| !["seconds", "rounds"].contains(&name.as_str()))
    {
        let differs = |other: &Map<String, Value>| other.get(name) != Some(value);
        if !names.contains(name) && all.iter().any(differs) {
            names.push(name.clone());
        }
    }
    names
}

/// A record's name by the parameters that tell it apart, but one.
fn name_of(record: &Record, names: &[String], but: Option<&str>) -> String {
    let parameters = parameters(record);
    let told = |name: &String| {
        let value = parameters.get(name).filter(|value| !value.is_null())?;
        Some(match name.as_str() {
            "ring" | "job" => plain(value),
            "size" => format!("{} B", plain(value)),
            _ => format!("{} {}", name.replace('_', " "), plain(value)),
        })
    };
    let parts: Vec<String> =
        names.iter().filter(|name| Some(name.as_str()) != but).filter_map(told).collect();
    if parts.is_empty() { record.command.clone() } else { parts.join(", ") }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::record;
    use super::*;

    #[test]
    fn runs_are_named_by_what_tells_them_apart() {
        let runs = [64, 1518].map(|size| {
            let parameters =
                json!({"port": {"ring": "split", "size": size, "touch": "all"}, "seconds": size});
            record("net", parameters, json!({"series": []}))
        });
        let names = telling(&runs.iter().collect::<Vec<_>>());
        assert_eq!(names, ["size"]);
        assert_eq!(name_of(&runs[1], &names, None), "1518 B");
        assert_eq!(name_of(&runs[1], &names, Some("size")), "net");
    }
}
