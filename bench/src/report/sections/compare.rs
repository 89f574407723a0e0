//! Ours beside a peer's: ratios and shares of the floor as bars.

use serde_json::Value;

use super::super::axis::short;
use super::super::chart::{Bars, told};
use super::super::html::Html;
use super::super::reading::Sourced;
use super::super::reading::{parameters, plain, series, spread_of};
use super::super::tables::table;
use super::super::targets::{LATENCY_TARGET, driver_path, ratio_target};
use crate::compare::BusyAt;
use crate::linux::Shape;
use crate::record::Record;
use crate::stats::Spread;
use crate::turns::State;

/// What a comparison found.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) name: String,
    pub(crate) peer: String,
    pub(crate) ratio: Spread,
    pub(crate) of_limit: Option<f64>,
    /// Latencies at half of the peer's peak beside the peer's: median, and 99th percentile.
    pub(crate) latency: Option<[Spread; 2]>,
    /// Of networks: what the generator alone did, in millions of packets a second, and whether it is the generator that was
    /// measured.
    pub(crate) ceiling: Option<f64>,
    pub(crate) generator_bound: bool,
    /// Frames of ours that came damaged, twice, or long after: what is wrong is not fast.
    pub(crate) wrong: u64,
    /// What each spent on a packet.
    pub(crate) busy: Vec<BusyAt>,
    /// States of the machine, that which counts first.
    pub(crate) states: Vec<State>,
    /// The path of DPDK's driver, if that drove.
    pub(crate) driver_path: Option<String>,
    /// Of disks: medians of latency at the same depth beside the peer's, and whether the generator was the limit.
    pub(crate) disk: Option<Disk>,
    ours: Option<Spread>,
    theirs: Option<Spread>,
}

/// What a comparison of disks has beside that.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Disk {
    /// Medians of latency, ours to the peer's.
    pub(crate) p50_ratio: Spread,
    /// The median of ours, in microseconds.
    pub(crate) p50_us: f64,
    /// It is the generator that was measured.
    pub(crate) generator_bound: bool,
    /// Of files: requests a second, ours to those of fio's io_uring.
    pub(crate) of_fio: Option<Spread>,
}

/// Frames of a series that came damaged, twice, or long after.
fn wrong(series: &Value) -> u64 {
    let of = |round: &Value| {
        let count = |name: &str| round.get("counts")?.get(name)?.as_u64();
        ["corrupt", "duplicated", "stale"].into_iter().filter_map(count).sum::<u64>()
    };
    rounds(series).unwrap_or_default().into_iter().map(of).sum()
}

/// Reads a comparison.
pub(crate) fn comparison(record: &Record) -> Option<Comparison> {
    let result = &record.result;
    let peer = result.get("peer")?;
    let word = |name: &str| peer.get(name).and_then(Value::as_str);
    let parameters = parameters(record);
    let parameter = |name: &str| parameters.get(name).map(plain);
    let job = [
        parameter("job"),
        parameter("ports").map(|ports| format!("{ports} ports")),
        parameter("backing"),
        parameter("op"),
        parameter("ring"),
        parameter("size").map(|size| format!("{size} B")),
        parameter("depth").map(|depth| format!("depth {depth}")),
    ];
    let touch = parameter("touch").map(|touch| format!("touch {touch}"));
    let driver_path = driver_path(&parameters).map(str::to_owned);
    let driver = driver_path.as_ref().map(|path| {
        format!("DPDK's driver {path}, rings of {}", parameter("queue_size").unwrap_or_default())
    });
    let touch = if driver.is_some() { driver } else { touch };
    let flood = parameter("flood").filter(|flood| !matches!(flood.as_str(), "0" | "0.0"));
    let flood = flood.map(|flood| format!("{flood} % flooded"));
    let talk = parameter("talk").filter(|talk| talk == "one").map(|_| "one port sends".to_owned());
    let name: Vec<String> = job.into_iter().chain([touch, talk, flood]).flatten().collect();
    let disk = || {
        let p50 = |round: &Value| round.get("latency")?.get("p50")?.as_f64();
        Some(Disk {
            p50_ratio: serde_json::from_value(result.get("p50_ratio")?.clone()).ok()?,
            p50_us: spread_of(&rounds(result.get("ours")?)?, p50)?.median / 1e3,
            generator_bound: result.get("generator_bound")?.as_bool()?,
            of_fio: result.get("fio").and_then(|fio| serde_json::from_value(fio.get("ratio")?.clone()).ok()),
        })
    };
    Some(Comparison {
        name: if name.is_empty() { record.words.join(" ") } else { name.join(", ") },
        peer: [word("name"), word("version")].into_iter().flatten().collect::<Vec<_>>().join(" "),
        ratio: serde_json::from_value(result.get("ratio")?.clone()).ok()?,
        of_limit: result.get("of_limit").and_then(Value::as_f64),
        latency: result.get("latency_ratio").and_then(|ratio| {
            let of = |name: &str| serde_json::from_value(ratio.get(name)?.clone()).ok();
            Some([of("p50")?, of("p99")?])
        }),
        ceiling: result.get("ceiling_mpps").and_then(Value::as_f64),
        generator_bound: result.get("generator_bound").and_then(Value::as_bool).unwrap_or_default(),
        wrong: result.get("ours").map(wrong).unwrap_or_default(),
        busy: part(result, "busy"),
        states: part(result, "states"),
        driver_path,
        disk: disk(),
        ours: result.get("ours").and_then(rate),
        theirs: rate(peer),
    })
}

/// A list, if it is there and of that form.
fn part<T: serde::de::DeserializeOwned>(result: &Value, name: &str) -> Vec<T> {
    result.get(name).and_then(|list| serde_json::from_value(list.clone()).ok()).unwrap_or_default()
}

/// Packets or requests a second of one side, in millions or thousands: a plain series, or that of its rounds.
fn rate(side: &Value) -> Option<Spread> {
    let of_rounds = |name: &str| spread_of(&rounds(side)?, |round| round.get(name)?.as_f64());
    series(side, "mpps").or_else(|| of_rounds("mpps")).or_else(|| of_rounds("kiops"))
}

/// The rounds of one side.
fn rounds(side: &Value) -> Option<Vec<&Value>> {
    Some(side.get("throughput")?.get("rounds")?.as_array()?.iter().collect())
}

/// Reads what back-ends did with a Linux guest's frames.
pub(crate) fn shape(record: &Record) -> Option<Shape> {
    serde_json::from_value(record.result.get("shape")?.clone()).ok()
}

/// Draws what Linux guests' frames came to.
fn draw_shapes(html: &mut Html, records: &[&Sourced]) {
    let found: Vec<(Shape, String)> = records
        .iter()
        .filter_map(|sourced| {
            let parameters = parameters(&sourced.record);
            let part = |name: &str| parameters.get(name).map(plain).unwrap_or_default();
            let job = format!("{}, {}, {} B", part("job"), part("ring"), part("size"));
            Some((shape(&sourced.record)?, job))
        })
        .collect();
    let Some((first, _)) = found.first() else { return };
    html.leaf("h3", &[], "A Linux guest as the load, for shape");
    html.leaf("p", &[], &format!("These are {}.", first.reading));
    let rows: Vec<Vec<String>> = found
        .iter()
        .flat_map(|(shape, job)| [&shape.ours, &shape.peer].map(|served| (served, job)))
        .flat_map(|(served, job)| served.ways.iter().map(move |way| (served, job, way)))
        .map(|(served, job, way)| {
            vec![
                job.clone(),
                format!("{} {}", served.identity.name, served.identity.version),
                served.kernel.clone(),
                way.sent.to_string(),
                way.received.to_string(),
                way.lost.to_string(),
                way.duplicated.to_string(),
                way.corrupt.map_or("not looked at".to_owned(), |corrupt| corrupt.to_string()),
            ]
        })
        .collect();
    let heads = ["job", "back-end", "guest's kernel", "sent", "came", "lost", "twice", "damaged"];
    table(html, &heads, &rows);
}

/// Draws the comparisons.
pub(crate) fn draw(html: &mut Html, records: &[&Sourced]) {
    let found = records.iter().filter_map(|sourced| {
        Some((comparison(&sourced.record)?, ratio_target(&parameters(&sourced.record))))
    });
    let (disks, networks): (Vec<_>, Vec<_>) = found.partition(|(one, _)| one.disk.is_some());
    draw_networks(html, &networks);
    draw_disks(html, &disks);
    draw_shapes(html, records);
}

/// A comparison and the ratio that it aims at.
type Aimed = (Comparison, Option<f64>);

/// Rates beside the peer's.
fn draw_ratios(html: &mut Html, title: &str, found: &[Aimed]) {
    Bars {
        title: title.to_owned(),
        name: "ratio to the peer (times)".to_owned(),
        bars: found.iter().map(|(one, target)| (one.name.clone(), one.ratio, *target)).collect(),
        mark: Some((1.0, "the peer".to_owned())),
    }
    .draw(html);
}

fn draw_disks(html: &mut Html, found: &[Aimed]) {
    draw_ratios(html, "Requests a second beside the peer", found);
    let rows: Vec<Vec<String>> = found
        .iter()
        .filter_map(|(one, target)| {
            let disk = one.disk?;
            let spread = |of: Option<Spread>| of.map_or("-".to_owned(), told);
            Some(vec![
                one.name.clone(),
                one.peer.clone(),
                spread(one.ours),
                spread(one.theirs),
                told(one.ratio),
                target.map_or("-".to_owned(), |target| format!("≥ {target}")),
                short(disk.p50_us),
                told(disk.p50_ratio),
                spread(disk.of_fio),
                if disk.generator_bound { "yes" } else { "no" }.to_owned(),
            ])
        })
        .collect();
    if !rows.is_empty() {
        let heads = [
            "job",
            "peer",
            "ours, k requests/s",
            "peer's, k requests/s",
            "ratio",
            "target",
            "our p50, µs",
            "ratio of p50",
            "ratio to fio",
            "generator-bound",
        ];
        table(html, &heads, &rows);
    }
}

fn draw_networks(html: &mut Html, found: &[Aimed]) {
    draw_ratios(html, "Packets a second beside the peer", found);
    let latencies = found.iter().filter_map(|(one, _)| Some((one, one.latency?)));
    Bars {
        title: "Latency beside the peer, at half of the peer's peak rate".to_owned(),
        name: "ratio to the peer (times), lower is better".to_owned(),
        bars: latencies
            .flat_map(|(one, [p50, p99])| {
                [(format!("{}, p50", one.name), p50, None), (format!("{}, p99", one.name), p99, None)]
            })
            .collect(),
        mark: Some((LATENCY_TARGET, format!("target {LATENCY_TARGET}"))),
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
                match (one.ceiling, one.generator_bound) {
                    (Some(ceiling), false) => short(ceiling),
                    (Some(ceiling), true) => format!("{}: generator-bound", short(ceiling)),
                    (None, true) => "not measured: generator-bound".to_owned(),
                    (None, false) => "-".to_owned(),
                },
            ]
        })
        .collect();
    if !rows.is_empty() {
        let heads = [
            "job",
            "peer",
            "ours, Mpps",
            "peer's, Mpps",
            "ratio",
            "target",
            "of the floor",
            "generator alone, Mpps",
        ];
        table(html, &heads, &rows);
    }
    draw_busy(html, found);
    draw_states(html, found);
}

/// What each spent on a packet, at which rate.
fn draw_busy(html: &mut Html, found: &[Aimed]) {
    let at = |busy: &BusyAt| {
        let rate = busy.share.map_or("saturation".to_owned(), |share| format!("{} %", short(share * 100.0)));
        // Then one of them had another job.
        if busy.kept_up { rate } else { format!("{rate}, not kept") }
    };
    let all = || found.iter().flat_map(|(one, _)| one.busy.iter().map(move |busy| (one, busy)));
    Bars {
        title: "Busy cycles a packet beside the peer".to_owned(),
        name: "ratio to the peer (times), lower is better".to_owned(),
        bars: all().map(|(one, busy)| (format!("{}, {}", one.name, at(busy)), busy.ratio, None)).collect(),
        mark: Some((1.0, "the peer".to_owned())),
    }
    .draw(html);
    let rows: Vec<Vec<String>> = all()
        .map(|(one, busy)| {
            let BusyAt { ours, peer, ratio, .. } = busy;
            vec![
                one.name.clone(),
                at(busy),
                told(ours.cycles_per_packet),
                told(peer.cycles_per_packet),
                told(*ratio),
                format!(
                    "{} / {}",
                    short(ours.packets_per_burst.median),
                    short(peer.packets_per_burst.median)
                ),
                format!("{} / {}", short(ours.mpps.median), short(peer.mpps.median)),
            ]
        })
        .collect();
    if !rows.is_empty() {
        html.leaf("h3", &[], "Busy cycles a packet, by each one's own count");
        let heads = [
            "job",
            "rate, of the slower one's peak",
            "ours",
            "the peer's",
            "ratio",
            "packets a burst, ours / the peer's",
            "Mpps, ours / the peer's",
        ];
        table(html, &heads, &rows);
    }
}

/// What was measured in each state of the machine, where there was more than one.
fn draw_states(html: &mut Html, found: &[Aimed]) {
    let rows: Vec<Vec<String>> = found
        .iter()
        .filter(|(one, _)| one.states.len() > 1)
        .flat_map(|(one, _)| one.states.iter().enumerate().map(move |(nth, state)| (one, nth, state)))
        .map(|(one, nth, state)| {
            vec![
                one.name.clone(),
                told(state.line_ns),
                state.pairs.to_string(),
                told(state.ours),
                told(state.peer),
                told(state.ratio),
                if nth == 0 { "yes" } else { "no" }.to_owned(),
            ]
        })
        .collect();
    if !rows.is_empty() {
        html.leaf("h3", &[], "States of the machine, by the cost of a cache line from one core to the other");
        let heads = ["job", "a line each way, ns", "pairs", "ours, Mpps", "peer's, Mpps", "ratio", "counts"];
        table(html, &heads, &rows);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::record;
    use super::*;

    #[test]
    fn a_comparison_of_disks_is_read_with_its_load() {
        let rounds = json!({"rounds": [{"kiops": 700.0, "latency": {"p50": 1500}}]});
        let found = comparison(&record(
            "compare",
            json!({"job": "blk", "ring": "split", "backing": "memory", "disk": {"size": 4096, "depth": 32, "op": "read"}}),
            json!({
                "ours": {"throughput": rounds}, "peer": {"name": "qsd", "version": "10", "throughput": rounds},
                "ratio": {"median": 4.5, "low": 4.0, "high": 5.0}, "p50_ratio": {"median": 0.2, "low": 0.1, "high": 0.3},
                "generator_bound": true, "fio": {"ratio": {"median": 0.97, "low": 0.9, "high": 1.0}},
            }),
        ))
        .unwrap();
        assert_eq!(found.name, "blk, memory, read, split, 4096 B, depth 32");
        assert_eq!(found.ours.map(|spread| spread.median), Some(700.0));
        let disk = found.disk.unwrap();
        assert!(disk.generator_bound && (disk.p50_us - 1.5).abs() < 1e-9, "{disk:?}");
        assert_eq!(disk.of_fio, Some(Spread { median: 0.97, low: 0.9, high: 1.0 }));
    }

    #[test]
    fn a_comparison_is_read_with_its_job_and_peer() {
        let found = comparison(&record(
            "compare",
            json!({"job": "link", "ring": "packed", "size": "64", "touch": "header"}),
            json!({
                "ours": {"mpps": [3.0, 1.0, 2.0]}, "peer": {"name": "p", "version": "1", "mpps": [1.0]},
                "ratio": {"median": 2.0, "low": 1.0, "high": 3.0}, "of_limit": null,
            }),
        ))
        .unwrap();
        assert_eq!((found.name.as_str(), found.peer.as_str()), ("link, packed, 64 B, touch header", "p 1"));
        assert_eq!(found.ours, Some(Spread { median: 2.0, low: 1.0, high: 3.0 }));
        assert!(found.of_limit.is_none());
    }

    #[test]
    fn frames_that_came_wrong_are_counted_over_all_rounds_and_lost_ones_are_not() {
        let round = |corrupt: u64, lost: u64| serde_json::json!({ "counts": { "corrupt": corrupt, "duplicated": 2, "stale": 0, "lost": lost } });
        let series = serde_json::json!({ "throughput": { "rounds": [round(0, 7), round(3, 0)] } });
        assert_eq!((wrong(&series), wrong(&serde_json::json!({}))), (7, 0));
    }
}
