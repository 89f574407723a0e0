//! Ours beside a peer's: ratios and shares of the floor as bars.

use serde_json::Value;

use super::super::axis::short;
use super::super::chart::{Bars, told};
use super::super::html::Html;
use super::super::reading::Sourced;
use super::super::reading::{parameters, plain, series, spread_of};
use super::super::tables::table;
use super::super::targets::{LATENCY_TARGET, ratio_target};
use crate::record::Record;
use crate::stats::Spread;

/// What a comparison found.
#[derive(Debug)]
pub(crate) struct Comparison {
    pub(crate) name: String,
    pub(crate) peer: String,
    pub(crate) ratio: Spread,
    pub(crate) of_limit: Option<f64>,
    /// Latencies at half of the peer's peak beside the peer's: median, and 99th percentile.
    pub(crate) latency: Option<[Spread; 2]>,
    ours: Option<Spread>,
    theirs: Option<Spread>,
}

/// Reads a comparison.
pub(crate) fn comparison(record: &Record) -> Option<Comparison> {
    let result = &record.result;
    let peer = result.get("peer")?;
    let word = |name: &str| peer.get(name).and_then(Value::as_str);
    let parameters = parameters(record);
    let parameter = |name: &str| parameters.get(name).map(plain);
    let job = [parameter("job"), parameter("ring"), parameter("size").map(|size| format!("{size} B"))];
    let touch = parameter("touch").map(|touch| format!("touch {touch}"));
    let name: Vec<String> = job.into_iter().chain([touch]).flatten().collect();
    Some(Comparison {
        name: if name.is_empty() { record.words.join(" ") } else { name.join(", ") },
        peer: [word("name"), word("version")].into_iter().flatten().collect::<Vec<_>>().join(" "),
        ratio: serde_json::from_value(result.get("ratio")?.clone()).ok()?,
        of_limit: result.get("of_limit").and_then(Value::as_f64),
        latency: result.get("latency_ratio").and_then(|ratio| {
            let of = |name: &str| serde_json::from_value(ratio.get(name)?.clone()).ok();
            Some([of("p50")?, of("p99")?])
        }),
        ours: result.get("ours").and_then(mpps),
        theirs: mpps(peer),
    })
}

/// Packets a second of one side: a plain series, or that of its rounds.
fn mpps(side: &Value) -> Option<Spread> {
    let of_rounds = || {
        let rounds: Vec<&Value> = side.get("throughput")?.get("rounds")?.as_array()?.iter().collect();
        spread_of(&rounds, |round| round.get("mpps")?.as_f64())
    };
    series(side, "mpps").or_else(of_rounds)
}

/// Draws the comparisons.
pub(crate) fn draw(html: &mut Html, records: &[&Sourced]) {
    let found: Vec<(Comparison, Option<f64>)> = records
        .iter()
        .filter_map(|sourced| {
            Some((comparison(&sourced.record)?, ratio_target(&parameters(&sourced.record))))
        })
        .collect();
    Bars {
        title: "Packets a second beside the peer".to_owned(),
        name: "ratio to the peer (times)".to_owned(),
        bars: found.iter().map(|(one, target)| (one.name.clone(), one.ratio, *target)).collect(),
        mark: Some((1.0, "the peer".to_owned())),
    }
    .draw(html);
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
            ]
        })
        .collect();
    if !rows.is_empty() {
        let heads = ["job", "peer", "ours, Mpps", "peer's, Mpps", "ratio", "target", "of the floor"];
        table(html, &heads, &rows);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::record;
    use super::*;

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
}
