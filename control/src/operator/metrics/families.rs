//! What a scraper is told, by the name of its metric: counters and gauges as `ringway -j` has them, and histograms.
//!
//! Belongs to the scraper's thread, from when control has answered it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric as _, MetricEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Unit;
use ringway_engine::{BurstSizes, Times};
use ringway_pmd::counters::QueueStats;

use super::help;
use super::numbers::{self, Number};
use crate::operator::api::QueueInfo;

/// Numbers that go down as well.
const GAUGES: [&str; 4] = ["groups", "longest_turn_ns", "node", "tsc_hz"];
/// What identifies, or is worked out of counters and histograms that are told.
const NOT_TOLD: [&str; 11] = [
    "qidx",
    "tid",
    "cycles_per_packet",
    "packets_per_burst_x100",
    "burst_sizes",
    "latency",
    "busy_turns",
    "p50_ns",
    "p99_ns",
    "p999_ns",
    "max_ns",
];
/// The types of the protocol whose numbers are told, what of each metric's name says which, and their labels.
pub(crate) const SOURCES: [(&str, &str, &str); 5] = [
    ("QueueInfo", "queue", "dev, queue, type"),
    ("RequestInfo", "request", "dev, queue, type, kind"),
    ("History", "device", "dev"),
    ("CoreInfo", "core", "core"),
    ("PumpInfo", "pump", "core, pump"),
];
/// What is told beside: name, type, labels, meaning.
pub(crate) const OWN: [(&str, &str, &str, &str); 18] = [
    (
        "ringway_queue_latency_seconds",
        "histogram",
        "dev, queue, type",
        "From when a worker first saw a burst until its used entries were published.",
    ),
    ("ringway_queue_burst_chains", "histogram", "dev, queue, type", "Chains that a burst gave back."),
    (
        "ringway_request_latency_seconds",
        "histogram",
        "dev, queue, type, kind",
        "From when a worker first saw a request to its used entry.",
    ),
    ("ringway_core_burst_packets", "histogram", "core", "What a poll moved, of those that moved something."),
    ("ringway_core_busy_turn_seconds", "histogram", "core", "How long the turns took that moved something."),
    ("ringway_build_info", "gauge", "version", "1, for its label."),
    ("ringway_config_generation", "gauge", "", "Counts the changes to the devices, over restarts."),
    ("ringway_device_state", "gauge", "dev, mgmtdev, state", "1, for its labels."),
    (
        "ringway_device_deferred",
        "gauge",
        "dev",
        "Keys that were set and are not in force before the next front-end connects, or the device is made anew.",
    ),
    (
        "ringway_absent",
        "gauge",
        "kind",
        "What was asked for and could not be made, by kind: device, mgmtdev, port. `ringway status` names each and why.",
    ),
    ("ringway_outdated", "gauge", "", "1: the program that runs is not the installed one."),
    ("ringway_events_lost_total", "counter", "", "Events that are not kept on disk."),
    ("ringway_log_lines_lost_total", "counter", "", "Lines of the log that found no room."),
    (
        "ringway_disk_requests_under_way",
        "gauge",
        "dev",
        "Requests that a disk on a file or block device has under way.",
    ),
    (
        "ringway_disk_oldest_request_seconds",
        "gauge",
        "dev",
        "For how long the oldest of them has been under way; 0: none is.",
    ),
    ("ringway_scrapes_total", "counter", "", "Requests that were answered."),
    (
        "ringway_scrapes_refused_total",
        "counter",
        "reason",
        "Requests that were not, by reason: failed, too_many.",
    ),
    (
        "ringway_scrape_waits_total",
        "counter",
        "",
        "How often scrapers had to wait, since all together had their part of the daemon's time.",
    ),
];

/// Whether a number of these types is told as a counter or as a gauge. None: it is not told, or no number.
pub(crate) fn kind_of(field: &str, is_number: bool) -> Option<&'static str> {
    let is_told = is_number && !NOT_TOLD.contains(&field);
    is_told.then(|| if GAUGES.contains(&field) { "gauge" } else { "counter" })
}

/// The bounds of buckets of times, in nanoseconds: those of a core's work close together, those of a disk's four times apart.
const TIMES_NS: [u64; 17] = [
    250,
    500,
    1_000,
    2_000,
    4_000,
    8_000,
    16_000,
    32_000,
    64_000,
    128_000,
    256_000,
    1_000_000,
    4_000_000,
    16_000_000,
    64_000_000,
    256_000_000,
    1_000_000_000,
];

/// What tells the values of a metric apart; all numbers of one thing share them.
pub(super) type Labels = Arc<[(&'static str, String)]>;

/// A metric, with every value that it has.
#[derive(Debug, Default)]
struct Family {
    kind: Kind,
    values: Vec<(Labels, Measured)>,
}

#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Kind {
    #[default]
    Counter,
    Gauge,
    /// In seconds.
    Times,
    Sizes,
}

#[derive(Debug)]
enum Measured {
    Number(u64),
    Seconds(f64),
    Histogram {
        sum: f64,
        count: u64,
        /// Each bound, and how many are above the bound before it and not above this one.
        buckets: Vec<(f64, u64)>,
    },
}

/// Metrics by name.
#[derive(Debug, Default)]
pub(super) struct Families(BTreeMap<String, Family>);

impl Families {
    pub(super) fn add_counter(&mut self, name: &str, labels: Labels, value: u64) {
        self.add(name, Kind::Counter, labels, Measured::Number(value));
    }

    pub(super) fn add_gauge(&mut self, name: &str, labels: Labels, value: u64) {
        self.add(name, Kind::Gauge, labels, Measured::Number(value));
    }

    /// A gauge of a time.
    pub(super) fn add_seconds(&mut self, name: &str, labels: Labels, time: Duration) {
        self.add(name, Kind::Gauge, labels, Measured::Seconds(time.as_secs_f64()));
    }

    /// How long things took; nothing of nothing.
    pub(super) fn add_times(&mut self, name: &str, labels: Labels, times: &Times, hertz: u64) {
        if times.count() == 0 {
            return;
        }
        let cycles = |ns: u64| u128::from(ns) * u128::from(hertz) / 1_000_000_000;
        let bounds = TIMES_NS.map(|ns| u64::try_from(cycles(ns)).unwrap_or(u64::MAX));
        let seconds = TIMES_NS.iter().map(|ns| *ns as f64 / 1e9);
        let count = times.count();
        let histogram = Measured::Histogram {
            sum: times.cycles() as f64 / hertz.max(1) as f64,
            count,
            buckets: buckets(seconds.zip(times.at_most(bounds)), count),
        };
        self.add(name, Kind::Times, labels, histogram);
    }

    /// How much was moved at a time, and `units` in all; nothing of nothing.
    pub(super) fn add_sizes(&mut self, name: &str, labels: Labels, sizes: &BurstSizes, units: u64) {
        if sizes.count() == 0 {
            return;
        }
        let count = sizes.count();
        let bounded = sizes.at_most().filter(|(size, _)| *size <= LARGEST_BOUND);
        let bounded = bounded.map(|(size, seen)| (size as f64, seen));
        let histogram = Measured::Histogram { sum: units as f64, count, buckets: buckets(bounded, count) };
        self.add(name, Kind::Sizes, labels, histogram);
    }

    fn add(&mut self, name: &str, kind: Kind, labels: Labels, value: Measured) {
        if !self.0.contains_key(name) {
            self.0.insert(name.to_owned(), Family::default());
        }
        if let Some(family) = self.0.get_mut(name) {
            family.kind = kind;
            family.values.push((labels, value));
        }
    }

    /// Every number of a structure, as JSON has it; of what is counted by a name, what is at `least` so much.
    pub(super) fn add_numbers(
        &mut self,
        of: &str,
        shown: &impl serde::Serialize,
        labels: &Labels,
        least: u64,
    ) {
        let mut metric = format!("ringway_{of}_");
        let prefix = metric.len();
        numbers::each(
            shown,
            |field| !NOT_TOLD.contains(&field),
            |field, number| {
                metric.truncate(prefix);
                metric.push_str(field);
                match number {
                    Number::Alone(value) if GAUGES.contains(&field) => {
                        self.add_gauge(&metric, Arc::clone(labels), value);
                    }
                    Number::Alone(value) => self.add_counter(&metric, Arc::clone(labels), value),
                    Number::Named(name, value) if value >= least => {
                        self.add_counter(&metric, with(labels, "reason", name), value);
                    }
                    Number::Named(..) => {}
                }
            },
        );
    }

    pub(super) fn add_queue(&mut self, info: &QueueInfo, stats: &QueueStats, dev: &str, hertz: u64) {
        let labels = Labels::from([
            ("dev", dev.to_owned()),
            ("queue", info.qidx.to_string()),
            ("type", info.queue_type.clone()),
        ]);
        for (request, stats) in info.requests.iter().zip(&stats.requests) {
            let labels = with(&labels, "kind", &request.kind);
            self.add_numbers("request", request, &labels, 1);
            self.add_times("ringway_request_latency", labels, &stats.took, hertz);
        }
        self.add_times("ringway_queue_latency", Arc::clone(&labels), &stats.latency, hertz);
        let chains = stats.completed_desc;
        self.add_sizes("ringway_queue_burst_chains", Arc::clone(&labels), &stats.burst_sizes, chains);
        // A rate needs the zero before the first: told of queues that a guest has used.
        let least = if info.received_desc > 0 { 0 } else { 1 };
        self.add_numbers("queue", info, &labels, least);
    }
}

/// Labels with one more.
pub(super) fn with(labels: &Labels, key: &'static str, value: &str) -> Labels {
    labels.iter().cloned().chain([(key, value.to_owned())]).collect()
}

/// Bounds with how many are at most so much, as how many are in each bucket, the last of which has no bound.
fn buckets(at_most: impl Iterator<Item = (f64, u64)>, count: u64) -> Vec<(f64, u64)> {
    let mut before = 0;
    let all = at_most.chain([(f64::MAX, count)]);
    // Read while it is written: a reader never sees fewer in a bucket than none.
    all.map(|(bound, seen)| (bound, seen.saturating_sub(std::mem::replace(&mut before, seen)))).collect()
}

impl Kind {
    fn metric_type(self) -> MetricType {
        match self {
            Kind::Counter => MetricType::Counter,
            Kind::Gauge => MetricType::Gauge,
            Kind::Times | Kind::Sizes => MetricType::Histogram,
        }
    }
}

impl Measured {
    fn encode(&self, kind: Kind, mut metric: MetricEncoder<'_>) -> Result<(), fmt::Error> {
        match self {
            Measured::Number(value) if kind == Kind::Gauge => ConstGauge::new(*value).encode(metric),
            Measured::Seconds(value) => ConstGauge::new(*value).encode(metric),
            Measured::Number(value) => ConstCounter::new(*value).encode(metric),
            Measured::Histogram { sum, count, buckets } => {
                metric.encode_histogram::<NoLabelSet>(*sum, *count, buckets, None)
            }
        }
    }
}

impl Collector for Families {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        for (name, family) in &self.0 {
            let unit = (family.kind == Kind::Times).then_some(&Unit::Seconds);
            let kind = family.kind.metric_type();
            let mut metric = encoder.encode_descriptor(name, help::of(name).unwrap_or(name), unit, kind)?;
            if let [(labels, value)] = family.values.as_slice()
                && labels.is_empty()
            {
                value.encode(family.kind, metric)?;
                continue;
            }
            for (labels, value) in &family.values {
                value.encode(family.kind, metric.encode_family(&&**labels)?)?;
            }
        }
        Ok(())
    }
}

/// The largest size of bursts that has a bucket by itself.
const LARGEST_BOUND: u64 = 1024;

#[cfg(test)]
mod tests {
    use ringway_engine::{Histogram, Sizes};

    use super::*;

    #[test]
    fn buckets_of_a_histogram_are_told_with_bounds_that_are_the_same_on_every_host() {
        let (times, sizes) = (Histogram::default(), Sizes::default());
        let hertz = 2_000_000_000;
        // 100 ns, 3 us, and 5 s.
        [200, 6_000, 10_000_000_000].into_iter().for_each(|cycles| times.add(cycles, 1));
        [1, 32, 4096].into_iter().for_each(|units| sizes.add(units));
        let mut families = Families::default();
        let labels = Labels::from([("dev", "vm0".to_owned())]);
        families.add_times("t", Arc::clone(&labels), &times.snapshot(), hertz);
        families.add_sizes("s", labels, &sizes.snapshot(), 4129);
        let mut registry = prometheus_client::registry::Registry::default();
        registry.register_collector(Box::new(families));
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for line in [
            "# TYPE t_seconds histogram",
            "# UNIT t_seconds seconds",
            "t_seconds_sum{dev=\"vm0\"} 5.0000031",
            "t_seconds_count{dev=\"vm0\"} 3",
            "t_seconds_bucket{le=\"2.5e-7\",dev=\"vm0\"} 1",
            "t_seconds_bucket{le=\"0.000002\",dev=\"vm0\"} 1",
            "t_seconds_bucket{le=\"0.000004\",dev=\"vm0\"} 2",
            "t_seconds_bucket{le=\"1.0\",dev=\"vm0\"} 2",
            "t_seconds_bucket{le=\"+Inf\",dev=\"vm0\"} 3",
            "# TYPE s histogram",
            "s_sum{dev=\"vm0\"} 4129.0",
            "s_bucket{le=\"1.0\",dev=\"vm0\"} 1",
            "s_bucket{le=\"16.0\",dev=\"vm0\"} 1",
            "s_bucket{le=\"32.0\",dev=\"vm0\"} 2",
            "s_bucket{le=\"1024.0\",dev=\"vm0\"} 2",
            "s_bucket{le=\"+Inf\",dev=\"vm0\"} 3",
        ] {
            assert!(text.lines().any(|known| known == line), "{line} is not in\n{text}");
        }
    }
}
