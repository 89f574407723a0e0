//! The targets that results are held against.

use serde_json::{Map, Value};

/// The least ratio to the peer that a comparison aims at, by its parameters.
pub(crate) fn ratio_target(parameters: &Map<String, Value>) -> Option<f64> {
    match (size(parameters)?, parameters.get("touch")?.as_str()?) {
        (64 | 1518, "header") => Some(1.5),
        (1518, "all") => Some(1.2),
        _ => None,
    }
}

/// The most of a latency beside the peer's.
pub(crate) const LATENCY_TARGET: f64 = 0.8;

/// The least of virtio-queue's cost beside ours: split rings, device side, batches of 32.
pub(super) const RING_TARGET: f64 = 4.0;

/// The frame size, if all frames have one.
pub(super) fn size(parameters: &Map<String, Value>) -> Option<u64> {
    let size = parameters.get("size")?;
    size.as_u64().or_else(|| size.as_str()?.parse().ok())
}

/// Share of the floor that does in place of the ratio, at 64 bytes.
pub(super) const OF_LIMIT: f64 = 0.7;

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn targets_go_by_size_and_touch() {
        let target = |size: Value, touch: &str| {
            let parameters = json!({"size": size, "touch": touch});
            ratio_target(parameters.as_object().unwrap())
        };
        assert_eq!(target(json!(64), "header"), Some(1.5));
        assert_eq!(target(json!("1518"), "all"), Some(1.2));
        assert_eq!(target(json!(64), "all"), None);
        assert_eq!(target(json!("imix"), "header"), None);
        assert_eq!(ratio_target(&Map::new()), None);
    }
}
