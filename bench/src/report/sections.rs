//! Results of commands that have a form of their own: what they found, as charts and tables.
//!
//! Forms are read leniently: what a result lacks is left out here, and all of it stands in its tables.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde_json::Value;

use super::Sourced;
use super::axis::{Scale, short};
use super::chart::{Bars, Line, Lines, told};
use super::html::Html;
use super::tables::table;
use super::targets::ratio_target;
use crate::record::Record;
use crate::scale::adaptive::Adaptive;
use crate::scale::curve::{Curve, Point};
use crate::scale::start::{Start, packet_ms};
use crate::scale::times::Times;
use crate::stats::Spread;

/// What a command measures, in words.
pub(crate) fn words(command: &str) -> &'static str {
    match command {
        "compare" => {
            "The same job by Ringway and by a peer: one port whose frames go back with their addresses exchanged \
             (loopback, net), or two ports joined untouched (link). Rounds were taken in turns on the same cores with the same load; the \
             ratio is that of the medians of packets a second, its whiskers those of the quartiles. Touch: the load reads and \
             writes only headers, or every byte."
        }
        "net" => {
            "A load generator as a guest's driver over a device's socket. Throughput counts frames that came back intact; \
             latency is from the intended time of sending to receipt, so that a stall counts for every frame that it delayed. \
             Whiskers: lowest and highest round."
        }
        "scale" => {
            "How cost grows. Every count is measured in passes there and back, and related to the first count within the same \
             pass (median and quartiles); slices of time in which a core was away are discarded. Cycles a packet are the worker's own: they tell of a \
             cost that throughput hides while the guests are the slower side."
        }
        "ring" => "What one descriptor costs in each ring format, on either side, by the size of a batch.",
        "limits" => "What this machine could do at best: the floor that results are held against.",
        "idle" => "What connected devices cost while nobody uses them.",
        _ => "A command that this report knows no form of.",
    }
}

/// Draws what the records of one command found; false: it has no form of its own.
pub(crate) fn draw(html: &mut Html, command: &str, records: &[&Sourced]) -> bool {
    match command {
        "compare" => compare(html, records),
        "net" => net(html, records),
        "scale" => records.iter().for_each(|sourced| draw_scale(html, sourced)),
        _ => return false,
    }
    true
}

// ------------------------------------------------------------------------------------------------ compare

/// What a comparison found.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) name: String,
    pub(crate) peer: String,
    pub(crate) ratio: Spread,
    pub(crate) of_limit: Option<f64>,
    ours: Option<Spread>,
    theirs: Option<Spread>,
}

/// Reads a comparison.
pub(crate) fn comparison(record: &Record) -> Option<Comparison> {
    let result = &record.result;
    let peer = result.get("peer")?;
    let word = |name: &str| peer.get(name).and_then(Value::as_str);
    let parameter = |name: &str| record.parameters.get(name).map(plain);
    let job = [parameter("job"), parameter("ring"), parameter("size").map(|size| format!("{size} B"))];
    let touch = parameter("touch").map(|touch| format!("touch {touch}"));
    let name: Vec<String> = job.into_iter().chain([touch]).flatten().collect();
    Some(Comparison {
        name: if name.is_empty() { record.words.join(" ") } else { name.join(", ") },
        peer: [word("name"), word("version")].into_iter().flatten().collect::<Vec<_>>().join(" "),
        ratio: serde_json::from_value(result.get("ratio")?.clone()).ok()?,
        of_limit: result.get("of_limit").and_then(Value::as_f64),
        ours: result.get("ours").and_then(|ours| series(ours, "mpps")),
        theirs: series(peer, "mpps"),
    })
}

fn compare(html: &mut Html, records: &[&Sourced]) {
    let found: Vec<(Comparison, Option<f64>)> = records
        .iter()
        .filter_map(|sourced| Some((comparison(&sourced.record)?, ratio_target(&sourced.record.parameters))))
        .collect();
    Bars {
        title: "Packets a second beside the peer".to_owned(),
        name: "ratio to the peer (times)".to_owned(),
        bars: found.iter().map(|(one, target)| (one.name.clone(), one.ratio, *target)).collect(),
        mark: Some((1.0, "the peer".to_owned())),
    }
    .draw(html);
    Bars {
        title: "Share of what this machine could do at best".to_owned(),
        name: "of the measured floor (%)".to_owned(),
        bars: found
            .iter()
            .filter_map(|(one, _)| {
                let percent = one.of_limit? * 100.0;
                Some((one.name.clone(), Spread { median: percent, low: percent, high: percent }, None))
            })
            .collect(),
        mark: None,
    }
    .draw(html);
    let rows: Vec<Vec<String>> = found
        .iter()
        .map(|(one, target)| {
            let spread = |of: Option<Spread>| of.map_or("-".to_owned(), told);
            vec![
                one.name.clone(),
                one.peer.clone(),
                spread(one.ours),
                spread(one.theirs),
                told(one.ratio),
                target.map_or("-".to_owned(), |target| format!("≥ {target}")),
                one.of_limit.map_or("-".to_owned(), |share| format!("{} %", short(share * 100.0))),
            ]
        })
        .collect();
    if !rows.is_empty() {
        let heads = ["job", "peer", "ours, Mpps", "peer's, Mpps", "ratio", "target", "of the floor"];
        table(html, &heads, &rows);
    }
}

// ------------------------------------------------------------------------------------------------ net

fn net(html: &mut Html, records: &[&Sourced]) {
    let found: Vec<(&Record, Vec<&Value>)> = records
        .iter()
        .filter_map(|sourced| {
            let series = sourced.record.result.get("series")?.as_array()?;
            Some((&sourced.record, series.iter().collect()))
        })
        .collect();
    let names = telling(&found.iter().map(|(record, _)| *record).collect::<Vec<_>>());
    let rate = |series: &[&Value]| spread_of(series, |round| round.get("mpps")?.as_f64());
    for (parameter, title, unit) in VARIED {
        let mut lines: BTreeMap<String, Vec<(f64, Spread)>> = BTreeMap::new();
        for (record, series) in &found {
            let at = record.parameters.get(parameter).and_then(number);
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
    for record in records {
        let fields = record.parameters.as_object().into_iter().flatten();
        for (name, value) in fields.filter(|(name, _)| !["seconds", "rounds"].contains(&name.as_str())) {
            let differs = |other: &&Record| other.parameters.get(name) != Some(value);
            if !names.contains(name) && records.iter().any(differs) {
                names.push(name.clone());
            }
        }
    }
    names
}

/// A record's name by the parameters that tell it apart, but one.
fn name_of(record: &Record, names: &[String], but: Option<&str>) -> String {
    let told = |name: &String| {
        let value = record.parameters.get(name).filter(|value| !value.is_null())?;
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

// ------------------------------------------------------------------------------------------------ scale

/// What `scale` found; what was not measured, or has another form, is None.
#[derive(Debug)]
pub(crate) struct Scaled {
    pub(crate) idle: Option<Curve>,
    busy: Option<Curve>,
    regions: Option<Curve>,
    ports: Option<Curve>,
    times: Option<Times>,
    pub(crate) start: Option<Start>,
    pub(crate) adaptive: Option<Adaptive>,
}

/// Reads it.
pub(crate) fn scale(record: &Record) -> Scaled {
    fn part<T: DeserializeOwned>(record: &Record, name: &str) -> Option<T> {
        serde_json::from_value(record.result.get(name)?.clone()).ok()
    }
    Scaled {
        idle: part(record, "idle"),
        busy: part(record, "busy"),
        regions: part(record, "regions"),
        ports: part(record, "ports"),
        times: part(record, "times"),
        start: part(record, "start"),
        adaptive: part(record, "adaptive"),
    }
}

fn draw_scale(html: &mut Html, sourced: &Sourced) {
    let found = scale(&sourced.record);
    let ring = sourced.record.parameters.get("ring").map(plain).unwrap_or_default();
    let size = sourced.record.parameters.get("size").map(plain).unwrap_or_default();
    html.leaf("h3", &[], &format!("{}: {ring} rings, {size} bytes", sourced.source));
    for (title, curve) in [
        ("One busy device beside idle ones", &found.idle),
        ("Busy devices on one core, all together", &found.busy),
        ("Buffers scattered over regions of memory", &found.regions),
        ("Ports of a bridge that talk in pairs, all together", &found.ports),
    ] {
        if let Some(curve) = curve {
            draw_curve(html, title, curve);
        }
    }
    if let Some(start) = &found.start {
        draw_start(html, start);
    }
    if let Some(times) = &found.times {
        let row = |what: &str, spread: Spread| vec![what.to_owned(), told(spread)];
        let rows = [
            row("dev.add, the first 100 devices", times.add_us[0]),
            row("dev.add, the last 100 of 1,000", times.add_us[1]),
            row("the command `ringway dev add` beside 1,000 devices", times.command_us),
            row("connecting a front-end, the first 100", times.connect_us[0]),
            row("connecting a front-end, the last 100 of 1,000", times.connect_us[1]),
            row("the first frame there and back, the first 100", times.first_frame_us[0]),
            row("the first frame there and back, the last 100 of 1,000", times.first_frame_us[1]),
        ];
        table(html, &["what", "microseconds"], &rows);
    }
    if let Some(adaptive) = &found.adaptive {
        draw_adaptive(html, adaptive);
    }
}

fn draw_curve(html: &mut Html, title: &str, curve: &Curve) {
    let counts: Vec<f64> = curve.points.iter().map(|point| point.count as f64).collect();
    let line = |name: &str, of: fn(&Point) -> Option<Spread>| Line {
        name: name.to_owned(),
        points: curve.points.iter().filter_map(|point| Some((point.count as f64, of(point)?))).collect(),
    };
    Lines {
        title: title.to_owned(),
        x_name: curve.over.clone(),
        y_name: "beside the first (times)".to_owned(),
        x: Scale::Steps(counts),
        y: Scale::Linear,
        lines: vec![
            line("throughput", |point| point.ratio),
            line("the worker's cycles a packet", |point| point.cost_ratio),
        ],
        mark: Some((1.0, String::new())),
    }
    .draw(html);
    let rows: Vec<Vec<String>> =
        curve.points.iter().map(|point| row(point.count.to_string(), point)).collect();
    let heads = [curve.over.as_str()].into_iter().chain(POINT_HEADS).collect::<Vec<_>>();
    table(html, &heads, &rows);
}

const POINT_HEADS: [&str; 6] =
    ["Mpps", "beside the first", "cycles a packet", "beside the first", "slices discarded", "lost"];

fn row(name: String, point: &Point) -> Vec<String> {
    let spread = |of: Option<Spread>| of.map_or("-".to_owned(), told);
    let (kept, discarded) = point.slices();
    vec![
        name,
        spread(point.mpps()),
        spread(point.ratio),
        spread(point.spread(|round| round.cycles_per_packet)),
        spread(point.cost_ratio),
        format!("{discarded} of {}", kept + discarded),
        point.lost.to_string(),
    ]
}

fn draw_start(html: &mut Html, start: &Start) {
    let mut bars = Vec::new();
    let mut rows = Vec::new();
    let peer = start.peer.iter().map(|peer| (peer.version.clone(), &peer.launches));
    for (name, launches) in [("ringwayd".to_owned(), &start.ours)].into_iter().chain(peer) {
        let Some(packet) = packet_ms(launches) else { continue };
        let part = |of: fn(&crate::scale::start::Launch) -> f64| {
            Spread::of(&launches.iter().map(of).collect::<Vec<_>>()).map_or("-".to_owned(), told)
        };
        rows.push(vec![
            name.clone(),
            part(|launch| launch.socket_ms),
            part(|launch| launch.rings_ms),
            told(packet),
            launches.len().to_string(),
        ]);
        bars.push((name, packet, None));
    }
    let title = "From the start of the process to the first packet".to_owned();
    Bars { title, name: "milliseconds".to_owned(), bars, mark: Some((100.0, "target".to_owned())) }
        .draw(html);
    table(html, &["process", "socket, ms", "rings, ms", "first packet, ms", "starts"], &rows);
}

fn draw_adaptive(html: &mut Html, adaptive: &Adaptive) {
    let wake = &adaptive.wake;
    let us = |ns: u64| short(ns as f64 / 1e3);
    let latency = |name: &str, of: &crate::stats::Latency| {
        let parts = [of.p50, of.p90, of.p99, of.p999, of.p9999, of.max].map(us);
        [vec![name.to_owned(), of.count.to_string()], parts.to_vec()].concat()
    };
    html.leaf(
        "p",
        &[],
        &format!(
            "Under adaptive, {} idle devices take {} % of a core. A frame through a worker that slept, {} µs after the last \
             one: {} of {} were discarded because the guest's own core was away for more than {} µs; the worker woke {} times.",
            adaptive.idle_devices,
            short(adaptive.idle_cpu_percent),
            wake.pause_us,
            wake.discarded,
            wake.samples,
            wake.bound_us,
            wake.wakeups,
        ),
    );
    let heads = ["waking, µs", "frames", "p50", "p90", "p99", "p99.9", "p99.99", "slowest"];
    table(html, &heads, &[latency("kept", &wake.latency), latency("all", &wake.unfiltered)]);
    let policies = crate::scale::adaptive::POLICIES.iter().zip(&adaptive.busy);
    let rows: Vec<Vec<String>> = policies.map(|(policy, point)| row((*policy).to_owned(), point)).collect();
    let heads = ["busy under"].into_iter().chain(POINT_HEADS).collect::<Vec<_>>();
    table(html, &heads, &rows);
}

// ------------------------------------------------------------------------------------------------ values

/// A scalar as it is written on a command line.
fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

/// The spread of an array of numbers under a name.
fn series(value: &Value, name: &str) -> Option<Spread> {
    let numbers: Vec<f64> = value.get(name)?.as_array()?.iter().filter_map(Value::as_f64).collect();
    Spread::of(&numbers)
}

fn spread_of(series: &[&Value], of: impl Fn(&Value) -> Option<f64>) -> Option<Spread> {
    Spread::of(&series.iter().filter_map(|round| of(round)).collect::<Vec<_>>())
}
