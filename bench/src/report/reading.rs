//! Lenient readers of what records hold.

use serde_json::{Map, Value};

use crate::record::Record;
use crate::stats::Spread;

/// A result and where it stood.
#[derive(Debug, Clone, PartialEq)]
pub struct Sourced {
    /// The file's name, and the line in it if there are several.
    pub source: String,
    /// The result.
    pub record: Record,
}

/// A record's parameters, those of nested groups among the others; what stands outside of groups goes before.
pub(crate) fn parameters(record: &Record) -> Map<String, Value> {
    fn into(flat: &mut Map<String, Value>, value: &Value) {
        let fields = || value.as_object().into_iter().flatten();
        for (name, value) in fields().filter(|(_, value)| !value.is_object()) {
            flat.entry(name.clone()).or_insert_with(|| value.clone());
        }
        fields().filter(|(_, value)| value.is_object()).for_each(|(_, group)| into(flat, group));
    }
    let mut flat = Map::new();
    into(&mut flat, &record.parameters);
    flat
}

/// A scalar as it is written on a command line.
pub(crate) fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

pub(crate) fn number(value: &Value) -> Option<f64> {
    value.as_f64().or_else(|| value.as_str()?.parse().ok())
}

/// The spread of an array of numbers under a name.
pub(crate) fn series(value: &Value, name: &str) -> Option<Spread> {
    let numbers: Vec<f64> = value.get(name)?.as_array()?.iter().filter_map(Value::as_f64).collect();
    Spread::of(&numbers)
}

pub(crate) fn spread_of(series: &[&Value], of: impl Fn(&Value) -> Option<f64>) -> Option<Spread> {
    Spread::of(&series.iter().filter_map(|round| of(round)).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::sections::tests::record;
    use super::*;

    #[test]
    fn parameters_outside_of_groups_go_before() {
        let flat = parameters(&record(
            "net",
            json!({"port": {"ring": "both", "size": 64}, "ring": "split"}),
            json!({}),
        ));
        assert_eq!((flat.get("ring"), flat.get("size")), (Some(&json!("split")), Some(&json!(64))));
    }
}
