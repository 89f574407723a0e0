//! What a descriptor costs on each path, by batch, and beside rust-vmm's virtio-queue.

use serde_json::Value;

use super::super::axis::Scale;
use super::super::chart::{Bars, Line, Lines, told};
use super::super::html::Html;
use super::super::reading::Sourced;
use super::super::reading::series;
use super::super::tables::{spread, table};
use crate::record::Record;
use crate::stats::Spread;

/// Beside whom.
pub(crate) const PEER: &str = "virtio-queue";

/// A path that was measured.
#[derive(Debug)]
pub(crate) struct Path {
    pub(crate) name: String,
    /// Its name up to the batch: whose ring, which layout, which side.
    pub(crate) group: String,
    /// Chains in a batch.
    pub(crate) batch: Option<u64>,
    /// Descriptors in a chain.
    chain: Option<u64>,
    /// What was counted.
    pub(crate) counted: &'static str,
    /// That, for each descriptor or frame.
    each: Spread,
    /// The peer's beside ours.
    pub(crate) ratio: Option<Spread>,
}

/// Reads the paths of a run: their nanoseconds, or their instructions.
pub(crate) fn paths(record: &Record) -> Option<Vec<Path>> {
    let timed = record.result.get("times").and_then(Value::as_array);
    let counted = || record.result.get("counts")?.as_array();
    let paths: Vec<Path> = timed.or_else(counted)?.iter().filter_map(path).collect();
    (!paths.is_empty()).then_some(paths)
}

fn path(value: &Value) -> Option<Path> {
    let exactly = |value: f64| Spread { median: value, low: value, high: value };
    let name = value.get("name")?.as_str()?.to_owned();
    let (counted, each) = match series(value, "ns") {
        Some(ns) => ("nanoseconds", ns),
        None => ("instructions", exactly(value.get("each")?.as_f64()?)),
    };
    let ratio = value.get("ratio").and_then(|ratio| spread(ratio).or_else(|| ratio.as_f64().map(exactly)));
    let words: Vec<&str> = name.split(' ').collect();
    let number = |of: &str| words.iter().skip_while(|word| **word != of).nth(1)?.parse().ok();
    Some(Path {
        group: words.iter().copied().take_while(|word| *word != "batch").collect::<Vec<_>>().join(" "),
        batch: number("batch"),
        chain: number("chain"),
        name,
        counted,
        each,
        ratio,
    })
}

/// Draws one run.
pub(crate) fn draw(html: &mut Html, sourced: &Sourced) {
    let Some(paths) = paths(&sourced.record) else { return };
    let counted = paths.first().map_or("", |path| path.counted);
    let mut chains: Vec<u64> = paths.iter().filter_map(|path| path.chain).collect();
    chains.sort_unstable();
    chains.dedup();
    for chain in chains {
        let mut lines: Vec<Line> = Vec::new();
        for path in paths.iter().filter(|path| path.chain == Some(chain)) {
            let Some(batch) = path.batch else { continue };
            let point = (batch as f64, path.each);
            match lines.iter_mut().find(|line| line.name == path.group) {
                Some(line) => line.points.push(point),
                None => lines.push(Line { name: path.group.clone(), points: vec![point] }),
            }
        }
        Lines {
            title: format!("{}: cost by batch, chains of {chain}", sourced.source),
            x_name: "chains in a batch".to_owned(),
            y_name: format!("{counted} a descriptor"),
            x: Scale::Log,
            y: Scale::Linear,
            lines,
            mark: None,
        }
        .draw(html);
    }
    Bars {
        title: format!("{PEER} beside ours, {counted}"),
        name: "times ours".to_owned(),
        bars: paths.iter().filter_map(|path| Some((path.name.clone(), path.ratio?, None))).collect(),
        mark: Some((1.0, "ours".to_owned())),
    }
    .draw(html);
    let rows: Vec<Vec<String>> = paths
        .iter()
        .map(|path| vec![path.name.clone(), told(path.each), path.ratio.map_or("-".to_owned(), told)])
        .collect();
    table(html, &["path", &format!("{counted} each"), &format!("{PEER} / ours")], &rows);
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::record;
    use super::*;

    #[test]
    fn times_and_instructions_are_read_by_their_names() {
        let name = "ringway split device batch 32 chain 2";
        let ratio = json!({"median": 4.0, "low": 3.0, "high": 5.0});
        let timed = paths(&record(
            "ring",
            json!({}),
            json!({"times": [{"name": name, "ns": [3.0, 1.0, 2.0], "ratio": ratio}]}),
        ));
        let timed = &timed.unwrap()[0];
        assert_eq!(
            (timed.group.as_str(), timed.batch, timed.chain),
            ("ringway split device", Some(32), Some(2))
        );
        assert_eq!((timed.each.median, timed.ratio.map(|ratio| ratio.median)), (2.0, Some(4.0)));
        let counts =
            json!({"key": "k", "counts": [{"name": "ringway net split batch 32 frame 64", "each": 90.5}]});
        let counted = paths(&record("ring", json!({}), counts)).unwrap();
        assert_eq!((counted[0].counted, counted[0].each.median), ("instructions", 90.5));
        assert!(counted[0].chain.is_none() && counted[0].ratio.is_none());
    }
}
