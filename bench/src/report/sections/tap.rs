//! The host's network behind a guest: ratios as bars, rates, cycles and losses as a table.

use serde_json::Value;

use super::super::axis::short;
use super::super::chart::{Bars, told};
use super::super::html::Html;
use super::super::reading::Sourced;
use super::super::tables::table;
use crate::record::Record;
use crate::tap::{Comparison, Protocol, Row};

/// Reads a comparison.
pub(crate) fn compared(record: &Record) -> Option<Comparison> {
    serde_json::from_value(record.result.clone()).ok()
}

/// Draws the comparisons, all of them together.
pub(crate) fn draw(html: &mut Html, records: &[&Sourced]) {
    let found: Vec<(Comparison, String)> = records
        .iter()
        .filter_map(|sourced| {
            let parameters = &sourced.record.parameters;
            let ring = parameters.get("ring").and_then(Value::as_str).unwrap_or("split");
            // What was damaged on purpose shows that it is noticed, and is no measurement.
            let is_whole = parameters.get("wrong").is_none_or(Value::is_null);
            is_whole.then(|| Some((compared(&sourced.record)?, ring.to_owned())))?
        })
        .collect();
    let rows = || {
        found.iter().flat_map(|(one, ring)| {
            one.rows.iter().map(move |row| (format!("{}, {ring}, {}", row.job, one.peer.name), row))
        })
    };
    Bars {
        title: "Bytes a second beside other ways to a TAP".to_owned(),
        name: "ratio to the peer (times)".to_owned(),
        bars: rows().map(|(name, row)| (name, row.ratio, None)).collect(),
        mark: Some((1.0, "the peer".to_owned())),
    }
    .draw(html);
    Bars {
        title: "Busy cycles a frame beside other ways to a TAP".to_owned(),
        name: "ratio to the peer (times), lower is better".to_owned(),
        bars: rows().filter_map(|(name, row)| Some((name, row.cycles_ratio?, None))).collect(),
        mark: Some((1.0, "the peer".to_owned())),
    }
    .draw(html);
    let cells: Vec<Vec<String>> = rows().map(|(name, row)| cells(name, row)).collect();
    if !cells.is_empty() {
        let heads = [
            "job, rings, peer",
            "ours, Gbit/s",
            "peer's, Gbit/s",
            "ratio",
            "million frames/s, ours / the peer's",
            "busy cycles a frame, ours / the peer's",
            "lost, ours / the peer's",
            "damaged, ours / the peer's",
        ];
        table(html, &heads, &cells);
    }
    for (one, _) in &found {
        html.leaf("p", &[], &format!("Beside {} ({}): {}.", one.peer.name, one.peer.version, one.placed));
    }
}

fn cells(name: String, row: &Row) -> Vec<String> {
    let sides = [&row.ours, &row.peer];
    let both = |of: &dyn Fn(&crate::tap::Side) -> String| sides.map(of).join(" / ");
    let unit = match row.job.protocol {
        Protocol::Tcp => " B",
        Protocol::Udp => "",
    };
    vec![
        name,
        told(row.ours.gbps),
        told(row.peer.gbps),
        told(row.ratio),
        both(&|side| short(side.mpps.median)),
        both(&|side| side.cycles_per_frame.map_or("-".to_owned(), |cycles| short(cycles.median))),
        both(&|side| format!("{}{unit}", side.books.lost)),
        both(&|side| format!("{}{unit}", side.books.corrupt)),
    ]
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::tests::record;
    use super::*;

    #[test]
    fn what_was_found_is_drawn_and_what_was_damaged_on_purpose_is_not() {
        let spread = json!({"median": 8.5, "low": 8.0, "high": 9.0});
        let books = json!({"sent": 10, "received": 9, "lost": 1, "corrupt": 0, "out_of_order": 0});
        let side =
            json!({"gbps": spread, "mpps": spread, "cycles_per_frame": null, "books": books, "rounds": []});
        let who = |name: &str| json!({"name": name, "version": "1", "flags": []});
        let result = json!({
            "ours": who("ringway"), "peer": who("vhost-net"), "placed": "here and there",
            "rows": [{"protocol": "udp", "direction": "to-host", "size": 64, "ours": side, "peer": side, "ratio": spread,
                "cycles_ratio": null, "discarded": 0, "noisy": false, "states": []}],
        });
        let draw_one = |parameters: Value| {
            let record = record("tap", parameters, result.clone());
            assert!(super::super::knows(&record));
            let mut html = Html::document();
            draw(&mut html, &[&Sourced { source: "a".to_owned(), record }]);
            html.into_string()
        };
        let page = draw_one(json!({"ring": "packed", "wrong": null}));
        for part in ["UDP, guest to host, 64 B, packed, vhost-net", "1 / 1", "here and there"] {
            assert!(page.contains(part), "{part}: {page}");
        }
        assert!(!draw_one(json!({"wrong": 7})).contains("vhost-net"));
    }
}
