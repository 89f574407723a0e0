//! `inspect` as text: a line for each value, its path first.

use std::fmt::Write as _;

use serde_json::Value;

use crate::fault::visible;
use crate::operator::api::Inspected;

/// Each value with its path; lists of plain values on one line.
pub(super) fn text(answer: &Inspected) -> String {
    let mut text = String::new();
    for (path, value) in &answer.state {
        lines(&mut text, path, value);
    }
    text
}

fn lines(text: &mut String, path: &str, value: &Value) {
    match value {
        Value::Object(fields) => {
            for (key, value) in fields {
                lines(text, &format!("{path}/{key}"), value);
            }
        }
        Value::Array(values) if values.iter().any(|value| value.is_object() || value.is_array()) => {
            for (index, value) in values.iter().enumerate() {
                lines(text, &format!("{path}/{index}"), value);
            }
        }
        Value::Array(values) => {
            let values: Vec<String> = values.iter().map(plain).collect();
            let _ = writeln!(text, "{path} {}", visible(&values.join(" ")));
        }
        value => drop(writeln!(text, "{path} {}", visible(&plain(value)))),
    }
}

/// A value without its quotes.
fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), |text| text.replace('\n', " "))
}
