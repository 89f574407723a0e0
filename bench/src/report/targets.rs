//! The targets that results are held against.

use serde_json::{Map, Value};

/// The least ratio to the peer that a comparison aims at, by its parameters.
pub(crate) fn ratio_target(parameters: &Map<String, Value>) -> Option<f64> {
    if parameters.get("job").and_then(Value::as_str) == Some("blk") {
        return disk_target(parameters);
    }
    if parameters.get("job").and_then(Value::as_str) == Some("bridge") {
        let is_aimed = matches!(size(parameters)?, 64 | 1518)
            && matches!(parameters.get("touch")?.as_str()?, "header" | "none")
            && parameters.get("peer").is_none_or(|peer| peer == "ovs");
        return is_aimed.then_some(BRIDGE_RATIO);
    }
    if driver_path(parameters).is_some() {
        return matches!(size(parameters)?, 64 | 1518).then_some(DRIVER_EACH);
    }
    match (size(parameters)?, parameters.get("touch")?.as_str()?) {
        (64 | 1518, "header" | "none") => Some(1.5),
        (1518, "all") => Some(1.2),
        _ => None,
    }
}

/// The same of disks: requests of 4 KiB, 32 of them under way, beside QEMU's storage daemon.
fn disk_target(parameters: &Map<String, Value>) -> Option<f64> {
    let word = |name: &str| parameters.get(name).and_then(Value::as_str);
    let number = |name: &str| parameters.get(name).and_then(Value::as_u64);
    if (word("peer"), number("size"), number("depth")) != (Some("qsd"), Some(4096), Some(32)) {
        return None;
    }
    match word("backing")? {
        "memory" => Some(4.0),
        "cached" | "direct" => Some(1.3),
        _ => None,
    }
}

/// The path of DPDK's driver that drove, if it did: of a result of the suite's own guest, a list of what was asked for stands there.
pub(crate) fn driver_path(parameters: &Map<String, Value>) -> Option<&str> {
    parameters.get("driver_path")?.as_str()
}

/// The most of the busy cycles a packet beside the peer's.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct BusyTarget {
    /// At this share of the slower one's peak; none at saturation.
    pub(crate) share: Option<f64>,
    /// Ours to the peer's.
    pub(crate) ratio: f64,
}

/// What a comparison aims at: beside DPDK at nine tenths of the slower one's peak, and a bridge beside a link at saturation.
pub(crate) fn busy_target(parameters: &Map<String, Value>) -> Option<BusyTarget> {
    let word = |name: &str| parameters.get(name).and_then(Value::as_str);
    if !matches!(size(parameters)?, 64 | 1518) || driver_path(parameters).is_some() {
        return None;
    }
    match (word("job")?, word("peer")?) {
        ("bridge", "link") => Some(BusyTarget { share: None, ratio: 1.5 }),
        ("net" | "link", _) if word("touch") != Some("all") => {
            Some(BusyTarget { share: Some(0.9), ratio: 0.67 })
        }
        _ => None,
    }
}

/// The least of what DPDK's driver moves, beside DPDK: by each of its paths, and in the median over them.
const DRIVER_EACH: f64 = 1.3;
pub(crate) const DRIVER_MEDIAN: f64 = 1.5;

/// The most of a packet's cycles with a memory map of 509 regions beside those with one of 1.
pub(crate) const REGIONS: f64 = 1.05;

/// The most of a packet's cycles while the device's daemon is watched beside those while it is not.
pub(crate) const WATCHED: f64 = 1.01;

/// The least of what a bridge on two workers moves in a busy cycle beside one worker.
pub(crate) const KEPT: f64 = 0.85;

/// The least of a learning switch beside Open vSwitch.
const BRIDGE_RATIO: f64 = 4.0;

/// The most of a disk's median latency with one request under way, in microseconds, and beside the peer's.
pub(crate) const DISK_P50: (f64, f64) = (2.0, 0.2);

/// The least of a disk's requests a second on a file beside fio's io_uring.
pub(crate) const OF_FIO: f64 = 0.95;

/// The most of a core that an idle disk on a file takes under `adaptive`, in per cent.
pub(crate) const DISK_IDLE: f64 = 0.1;

/// The least of a disk's thousands of requests a second over four queues on one core, where no byte is moved.
pub(crate) const DISK_QUEUES_KIOPS: f64 = 2000.0;

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
        // As `compare net` writes it, by the suite's own guest and by DPDK's driver.
        let driven = |path: Value| {
            let parameters =
                json!({"job": "net", "driver": "x", "driver_path": path, "size": "64", "touch": "none"});
            ratio_target(parameters.as_object().unwrap())
        };
        assert_eq!((driven(json!([])), driven(json!("plain"))), (Some(1.5), Some(1.3)));
        assert_eq!(target(json!("imix"), "header"), None);
        assert_eq!(ratio_target(&Map::new()), None);
        let bridge = json!({"job": "bridge", "size": "64", "touch": "header", "ports": 64});
        assert_eq!(ratio_target(bridge.as_object().unwrap()), Some(4.0));
        let disk = |backing: &str, depth: u64, peer: &str| {
            let disk = json!({"job": "blk", "size": 4096, "touch": "all", "backing": backing, "depth": depth, "peer": peer});
            ratio_target(disk.as_object().unwrap())
        };
        assert_eq!((disk("memory", 32, "qsd"), disk("direct", 32, "qsd")), (Some(4.0), Some(1.3)));
        assert_eq!(
            (disk("memory", 1, "qsd"), disk("memory", 32, "/s"), disk("none", 32, "qsd")),
            (None, None, None)
        );
    }
}
