//! Results of any form as tables: what no section knows is shown all the same.

use serde_json::{Map, Value};

use super::axis::short;
use super::chart::told;
use super::html::Html;
use crate::stats::Spread;

/// A table of columns, each with its head.
pub(crate) fn table(html: &mut Html, heads: &[&str], rows: &[Vec<String>]) {
    html.element("div", &[("class", "wide")], |html| {
        html.element("table", &[], |html| {
            html.element("tr", &[], |html| heads.iter().for_each(|head| html.leaf("th", &[], head)));
            for row in rows {
                html.element("tr", &[], |html| {
                    for cell in row {
                        let whole = is_number(cell) || cell.chars().count() <= SHORT;
                        let class = if whole { "whole" } else { "words" };
                        html.leaf("td", &[("class", class)], cell);
                    }
                });
            }
        });
    });
}

/// Any value: scalars in one table, lists and objects below it under their names.
pub(crate) fn any(html: &mut Html, value: &Value) {
    nested(html, "", value);
}

fn nested(html: &mut Html, path: &str, value: &Value) {
    match value {
        Value::Object(fields) => object(html, path, fields),
        Value::Array(items) if !items.is_empty() && items.iter().all(Value::is_object) => {
            list(html, path, items);
        }
        other => table(html, &["name", "value"], &[vec![path.to_owned(), told_value(other)]]),
    }
}

fn object(html: &mut Html, path: &str, fields: &Map<String, Value>) {
    let simple = |value: &Value| !is_nested(value);
    let rows: Vec<Vec<String>> = fields
        .iter()
        .filter(|(_, value)| simple(value))
        .map(|(name, value)| vec![name.clone(), told_value(value)])
        .collect();
    if !rows.is_empty() {
        if !path.is_empty() {
            html.leaf("p", &[("class", "path")], path);
        }
        table(html, &["name", "value"], &rows);
    }
    for (name, value) in fields.iter().filter(|(_, value)| !simple(value)) {
        let path = if path.is_empty() { name.clone() } else { format!("{path} · {name}") };
        nested(html, &path, value);
    }
}

/// Objects as rows: a column for each name that any of them has; what is nested deeper is told in the cell.
fn list(html: &mut Html, path: &str, items: &[Value]) {
    let mut heads: Vec<&str> = Vec::new();
    for name in items.iter().filter_map(Value::as_object).flat_map(Map::keys) {
        if !heads.contains(&name.as_str()) {
            heads.push(name);
        }
    }
    let cell = |item: &Value, head: &str| item.get(head).map(told_value).unwrap_or_default();
    let rows: Vec<Vec<String>> =
        items.iter().map(|item| heads.iter().map(|head| cell(item, head)).collect()).collect();
    html.leaf("p", &[("class", "path")], path);
    table(html, &heads, &rows);
}

fn is_nested(value: &Value) -> bool {
    match value {
        Value::Object(_) => spread(value).is_none(),
        Value::Array(items) => items.iter().any(Value::is_object),
        _ => false,
    }
}

/// A value in words.
fn told_value(value: &Value) -> String {
    if let Some(spread) = spread(value) {
        return told(spread);
    }
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => short(float),
            _ => number.to_string(),
        },
        Value::String(text) => text.clone(),
        Value::Array(items) => {
            let each: Vec<String> = items.iter().map(told_value).collect();
            each.join(", ")
        }
        Value::Object(fields) => {
            let each: Vec<String> =
                fields.iter().map(|(name, value)| format!("{name} {}", told_value(value))).collect();
            each.join("; ")
        }
    }
}

/// An object that is nothing but median, low and high.
pub(crate) fn spread(value: &Value) -> Option<Spread> {
    let fields = value.as_object().filter(|fields| fields.len() == 3)?;
    let field = |name: &str| fields.get(name)?.as_f64();
    Some(Spread { median: field("median")?, low: field("low")?, high: field("high")? })
}

/// Characters of a cell that is not broken into lines.
const SHORT: usize = 16;

fn is_number(cell: &str) -> bool {
    cell == "-" || cell.starts_with(|first: char| first.is_ascii_digit() || first == '-')
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn nothing_of_a_value_is_dropped() {
        let value = json!({
            "plain": 17, "text": "<b>", "none": null, "yes": true,
            "series": [1.5, 2.5],
            "ratio": {"median": 2.0, "low": 1.0, "high": 3.0},
            "rows": [{"a": 101}, {"b": {"deep": [{"deeper": 202}]}}],
            "nested": {"inner": {"leaf": 303}},
        });
        let mut html = Html::default();
        any(&mut html, &value);
        let text = html.into_string();
        for part in [
            "17",
            "&lt;b&gt;",
            "1.5, 2.5",
            "2 (1 to 3)",
            "101",
            "deep deeper 202",
            "nested · inner",
            "303",
            "yes",
        ] {
            assert!(text.contains(part), "{part} is not in {text}");
        }
    }

    #[test]
    fn a_value_that_is_no_object_is_shown_too() {
        let mut html = Html::default();
        any(&mut html, &json!([1, 2, 3]));
        assert!(html.into_string().contains("1, 2, 3"));
    }
}
