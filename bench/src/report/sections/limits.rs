//! What a machine could do at best: the floor of each job.

use serde_json::Value;

use super::super::chart::Bars;
use super::super::html::Html;
use super::super::reading::Sourced;
use super::super::reading::plain;
use crate::stats::Spread;

/// Draws the floors of one run; what they follow from stands in its tables.
pub(crate) fn draw(html: &mut Html, sourced: &Sourced) {
    let floors = sourced.record.result.get("floors").and_then(Value::as_array);
    let bar = |floor: &Value| {
        let part = |name: &str| floor.get(name).map(plain);
        let name = [
            part("job")?,
            part("ring")?,
            format!("{} B", part("size")?),
            format!("touch {}", part("touch")?),
        ];
        let mpps = floor.get("mpps")?.as_f64()?;
        Some((name.join(", "), Spread { median: mpps, low: mpps, high: mpps }, None))
    };
    Bars {
        title: format!("{}: the most that the memory lets through", sourced.source),
        name: "million packets a second".to_owned(),
        bars: floors.into_iter().flatten().filter_map(bar).collect(),
        mark: None,
    }
    .draw(html);
}
