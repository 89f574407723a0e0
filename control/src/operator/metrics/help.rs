//! What each metric tells, in a sentence. Of a number that is a field of what `ringway -j` prints, it is the documentation of that
//! field: nothing is described twice.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use schemars::{Schema, schema_for};
use serde_json::Value;

use crate::operator::api::{CoreInfo, History, PumpInfo, QueueInfo, RequestInfo};

/// Those that are no field.
const OWN: [(&str, &str); 18] = [
    ("ringway_build_info", "The version that runs, as a label; always 1"),
    ("ringway_config_generation", "Changes to the devices, counted over restarts"),
    ("ringway_absent", "What was asked for and could not be made, by kind"),
    ("ringway_outdated", "Whether the program that runs is another than the installed one"),
    ("ringway_events_lost", "Events that are not kept on disk"),
    ("ringway_log_lines_lost", "Lines of the log that found no room"),
    ("ringway_disk_requests_under_way", "Requests that a disk on a file or block device has under way"),
    ("ringway_disk_oldest_request_seconds", "For how long the oldest request of a disk has been under way"),
    ("ringway_scrapes", "Scrapes that were answered"),
    (
        "ringway_scrape_waits",
        "How often scrapers had to wait, since all together had their part of the daemon's time",
    ),
    (
        "ringway_scrapes_refused",
        "Scrapers that were turned away, by reason: all places were taken, or what they sent was nothing that is answered, or too slow",
    ),
    (
        "ringway_device_deferred",
        "Keys that were set and are not in force before the next front-end connects, or the device is made anew",
    ),
    ("ringway_device_state", "Who made a device and where it is in its life, as labels; always 1"),
    (
        "ringway_queue_latency",
        "From when a worker first saw a burst of a network device until its used entries were published",
    ),
    (
        "ringway_request_latency",
        "From when a worker first saw a request of a disk until its used entry was published",
    ),
    ("ringway_queue_burst_chains", "Chains that a burst gave back"),
    ("ringway_core_burst_packets", "Packets or requests that one poll of a pump moved"),
    ("ringway_core_busy_turn", "How long a round over all pumps took that moved something"),
];

/// The sentence of a metric, by its name without unit and suffix.
pub(super) fn of(metric: &str) -> Option<&'static str> {
    static KNOWN: OnceLock<BTreeMap<String, String>> = OnceLock::new();
    KNOWN.get_or_init(known).get(metric).map(String::as_str)
}

fn known() -> BTreeMap<String, String> {
    let own = OWN.iter().map(|(name, help)| ((*name).to_owned(), (*help).to_owned()));
    let mut known: BTreeMap<String, String> = own.collect();
    for (of, schema) in [
        ("queue", schema_for!(QueueInfo)),
        ("request", schema_for!(RequestInfo)),
        ("device", schema_for!(History)),
        ("core", schema_for!(CoreInfo)),
        ("pump", schema_for!(PumpInfo)),
    ] {
        known.extend(fields(&schema).map(|(field, help)| (format!("ringway_{of}_{field}"), help)));
    }
    known
}

/// The fields of a structure, and what is said of each, on one line.
fn fields(schema: &Schema) -> impl Iterator<Item = (&str, String)> {
    let properties = schema.get("properties").and_then(Value::as_object).into_iter().flatten();
    properties.filter_map(|(field, schema)| {
        let words: Vec<&str> = schema.get("description")?.as_str()?.split_whitespace().collect();
        Some((field.as_str(), words.join(" ").trim_end_matches('.').to_owned()))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn number_is_described_as_its_field_is() {
        assert_eq!(of("ringway_queue_bursts"), Some("Bursts that moved something"));
        assert_eq!(of("ringway_core_wakeups"), Some("Times it woke from sleep"));
        assert!(of("ringway_queue_drops").unwrap().starts_with("Dropped frames by reason, every reason"));
        assert_eq!(of("ringway_queue_nothing"), None);
        assert!(known().values().all(|help| !help.is_empty() && !help.contains('\n')));
    }
}
