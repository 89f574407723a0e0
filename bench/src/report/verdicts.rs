//! What the results have of the targets.

use serde_json::Value;

use super::axis::short;
use super::reading::Sourced;
use super::reading::{parameters, plain};
use super::sections::{PEER, comparison, paths, scaled};
use super::targets::{
    DISK_IDLE, DISK_P50, DISK_QUEUES_KIOPS, DRIVER_MEDIAN, KEPT, LATENCY_TARGET, OF_FIO, OF_LIMIT, REGIONS,
    RING_TARGET, WATCHED, busy_target, ratio_target, size,
};
use crate::scale::bridge_cores::ALL_WITH_ALL;
use crate::stats::Spread;

/// A target and what a result has of it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Verdict {
    /// What is aimed at, in words.
    pub(crate) what: String,
    /// The bound, in words.
    pub(crate) target: String,
    /// What was measured, in words.
    pub(crate) measured: String,
    /// Reached.
    pub(crate) reached: bool,
    /// Why it is neither reached nor missed.
    pub(crate) uncounted: Option<Uncounted>,
    /// Where it stands.
    pub(crate) source: String,
}

/// What makes a measurement one of something else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Uncounted {
    /// It was the generator that was measured.
    GeneratorBound,
    /// A back-end moved less than it was offered.
    NotKeptUp,
}

impl Verdict {
    /// Whether it is reached.
    pub(crate) fn word(&self) -> &'static str {
        match (self.uncounted, self.reached) {
            (Some(Uncounted::GeneratorBound), _) => "generator-bound, not counted",
            (Some(Uncounted::NotKeptUp), _) => "the rate was not kept, not counted",
            (None, true) => "reached",
            (None, false) => "missed",
        }
    }
}

/// All that the results have of the targets.
pub(crate) fn verdicts(records: &[Sourced]) -> Vec<Verdict> {
    let mut verdicts = Vec::new();
    for sourced in records {
        let record = &sourced.record;
        match record.command.as_str() {
            "compare" => verdicts.extend(of_comparison(sourced)),
            "scale" => verdicts.extend(of_scale(sourced)),
            "ring" => verdicts.extend(of_ring(sourced)),
            "blk" => verdicts.extend(of_queues(sourced)),
            _ => {}
        }
    }
    verdicts.extend(of_drivers(records));
    verdicts
}

fn of_comparison(sourced: &Sourced) -> Vec<Verdict> {
    let record = &sourced.record;
    let parameters = parameters(record);
    let Some(found) = comparison(record) else { return Vec::new() };
    let mut verdicts = Vec::new();
    let mut late = Vec::new();
    let mut verdict = |what: String, target: String, measured: String, reached: bool| {
        let source = sourced.source.clone();
        verdicts.push(Verdict { what, target, measured, reached, uncounted: None, source });
    };
    if let Some(disk) = found.disk {
        if let Some(target) = ratio_target(&parameters) {
            let bound = if disk.generator_bound { ", generator-bound" } else { "" };
            verdict(
                format!("requests a second beside {}: {}", found.peer, found.name),
                format!("≥ {target} ×"),
                format!("{} ×{bound}", short(found.ratio.median)),
                found.ratio.median >= target,
            );
        }
        let at_target = ratio_target(&parameters).is_some();
        if let Some(ratio) = disk.of_fio.filter(|_| at_target) {
            verdict(
                format!("requests a second beside fio's io_uring on one core: {}", found.name),
                format!("≥ {OF_FIO} ×"),
                format!("{} ×", short(ratio.median)),
                ratio.median >= OF_FIO,
            );
        }
        let is = |name: &str, value: &str| parameters.get(name).map(plain).as_deref() == Some(value);
        if is("depth", "1") && is("backing", "memory") && is("peer", "qsd") && is("size", "4096") {
            let (most_us, most) = DISK_P50;
            verdict(
                format!("latency p50 with one request under way beside {}: {}", found.peer, found.name),
                format!("≤ {most_us} µs, and ≤ {most} ×"),
                format!("{} µs, {} ×", short(disk.p50_us), short(disk.p50_ratio.median)),
                disk.p50_us <= most_us && disk.p50_ratio.median <= most,
            );
        }
        return verdicts;
    }
    if let Some(target) = ratio_target(&parameters) {
        let touched = parameters.get("touch").map(plain).is_some_and(|touch| touch != "none");
        let small = size(&parameters) == Some(64) && found.of_limit.is_some() && touched;
        let by_limit = small && found.of_limit.is_some_and(|share| share >= OF_LIMIT);
        let limit = found.of_limit.map(|share| format!(", {} % of the floor", short(share * 100.0)));
        let bound = if found.generator_bound { ", generator-bound" } else { "" };
        verdict(
            format!("throughput beside {}: {}", found.peer, found.name),
            if small {
                format!("≥ {target} ×, or ≥ 70 % of the floor")
            } else {
                format!("≥ {target} ×")
            },
            format!("{} ×{}{bound}", short(found.ratio.median), limit.unwrap_or_default()),
            found.ratio.median >= target || by_limit,
        );
    }
    if let Some(most) = busy_target(&parameters) {
        let aimed = found.busy.iter().filter(|busy| busy.share == most.share);
        for busy in aimed {
            let at = busy.share.map_or("saturation".to_owned(), |share| {
                format!("{} % of the slower one's peak", short(share * 100.0))
            });
            let what = format!("busy cycles a packet at {at} beside {}: {}", found.peer, found.name);
            if !busy.kept_up {
                late.push(what.clone());
            }
            verdict(
                what,
                format!("≤ {} ×", most.ratio),
                format!("{} ×", short(busy.ratio.median)),
                busy.ratio.median <= most.ratio,
            );
        }
    }
    for (name, ratio) in ["p50", "p99"].into_iter().zip(found.latency.iter().flatten()) {
        verdict(
            format!("latency {name} at half of the peer's peak beside {}: {}", found.peer, found.name),
            format!("≤ {LATENCY_TARGET} ×"),
            format!("{} ×", short(ratio.median)),
            ratio.median <= LATENCY_TARGET,
        );
    }
    for verdict in verdicts.iter_mut().filter(|verdict| late.contains(&verdict.what)) {
        verdict.uncounted = Some(Uncounted::NotKeptUp);
    }
    if found.wrong > 0 {
        for verdict in &mut verdicts {
            verdict.measured = format!("{}, with {} frames wrong", verdict.measured, found.wrong);
            verdict.reached = false;
        }
    }
    if found.generator_bound {
        let of_rate = |verdict: &&mut Verdict| !verdict.what.starts_with("busy cycles");
        verdicts
            .iter_mut()
            .filter(of_rate)
            .for_each(|verdict| verdict.uncounted = Some(Uncounted::GeneratorBound));
    }
    verdicts
}

/// The median over all paths of DPDK's driver with rings of all sizes, for each job.
fn of_drivers(records: &[Sourced]) -> Vec<Verdict> {
    let mut jobs: Vec<(String, Vec<f64>)> = Vec::new();
    for sourced in records.iter().filter(|sourced| sourced.record.command == "compare") {
        let Some(found) = comparison(&sourced.record).filter(|found| found.driver_path.is_some()) else {
            continue;
        };
        let parameters = parameters(&sourced.record);
        let part = |name: &str| parameters.get(name).map(plain).unwrap_or_default();
        let job = format!("{}, {} B, beside {}", part("job"), part("size"), found.peer);
        match jobs.iter_mut().find(|(known, _)| *known == job) {
            Some((_, ratios)) => ratios.push(found.ratio.median),
            None => jobs.push((job, vec![found.ratio.median])),
        }
    }
    let verdict = |(job, ratios): (String, Vec<f64>)| {
        let median = Spread::of(&ratios)?.median;
        Some(Verdict {
            what: format!("throughput by DPDK's driver, median of {} paths and sizes: {job}", ratios.len()),
            target: format!("≥ {DRIVER_MEDIAN} ×"),
            measured: format!("{} ×", short(median)),
            reached: median >= DRIVER_MEDIAN,
            uncounted: None,
            source: "all of them".to_owned(),
        })
    };
    jobs.into_iter().filter_map(verdict).collect()
}

fn of_ring(sourced: &Sourced) -> Vec<Verdict> {
    let found = paths(&sourced.record).into_iter().flatten();
    let aimed = found.filter(|path| path.group == "ringway split device" && path.batch == Some(32));
    aimed
        .filter_map(|path| {
            let ratio = path.ratio?.median;
            Some(Verdict {
                what: format!("{} beside {PEER}, {}", path.name, path.counted),
                target: format!("≥ {RING_TARGET} ×"),
                measured: format!("{} ×", short(ratio)),
                reached: ratio >= RING_TARGET,
                uncounted: None,
                source: sourced.source.clone(),
            })
        })
        .collect()
}

/// Four queues of a disk that moves no byte, on one core.
fn of_queues(sourced: &Sourced) -> Vec<Verdict> {
    let parameters = parameters(&sourced.record);
    let aimed = [("no_data", "true"), ("queues", "4"), ("depth", "32"), ("size", "4096")];
    if aimed.iter().any(|(name, value)| parameters.get(*name).map(plain).as_deref() != Some(value)) {
        return Vec::new();
    }
    let runs = sourced.record.result.get("runs").and_then(Value::as_array).into_iter().flatten();
    let verdict = |run: &Value| {
        let kiops = run.get("series")?.get("kiops")?.get("median")?.as_f64()?;
        let is_bound = run.get("generator_bound")?.as_bool()?;
        let bound = if is_bound { ", generator-bound" } else { "" };
        Some(Verdict {
            what: format!("4 queues on one core, no byte moved: {} rings", run.get("ring").map(plain)?),
            target: format!("≥ {} M requests/s, or generator-bound", DISK_QUEUES_KIOPS / 1e3),
            measured: format!("{} M requests/s{bound}", short(kiops / 1e3)),
            reached: kiops >= DISK_QUEUES_KIOPS || is_bound,
            uncounted: None,
            source: sourced.source.clone(),
        })
    };
    runs.filter_map(verdict).collect()
}

fn of_scale(sourced: &Sourced) -> Vec<Verdict> {
    let found = scaled(&sourced.record);
    let mut verdicts = Vec::new();
    let mut verdict = |what: &str, target: &str, measured: String, reached: bool| {
        let source = sourced.source.clone();
        verdicts.push(Verdict {
            what: what.to_owned(),
            target: target.to_owned(),
            measured,
            reached,
            uncounted: None,
            source,
        });
    };
    let thousand =
        found.idle.as_ref().and_then(|curve| curve.points.iter().find(|point| point.count == 1000));
    if let Some(ratio) = thousand.and_then(|point| point.ratio) {
        let parameters = parameters(&sourced.record);
        let part = |name: &str| parameters.get(name).map(plain).unwrap_or_default();
        let (ring, size) = (part("ring"), part("size"));
        verdict(
            &format!("one busy device beside 1,000 idle ones, of its throughput alone: {ring}, {size} B"),
            "≥ 0.95",
            short(ratio.median),
            ratio.median >= 0.95,
        );
    }
    let most_regions =
        found.regions.as_ref().and_then(|curve| curve.points.iter().find(|point| point.count == 509));
    if let Some(ratio) = most_regions.and_then(|point| point.cost_ratio) {
        verdict(
            "memory map of 509 regions, cycles a packet beside 1",
            &format!("≤ {REGIONS} ×"),
            format!("{} ×", short(ratio.median)),
            ratio.median <= REGIONS,
        );
    }
    let watched =
        found.watched.as_ref().and_then(|curve| curve.points.last().filter(|point| point.count > 0));
    if let Some(ratio) = watched.and_then(|point| point.cost_ratio) {
        verdict(
            "2 scrapers, 3 tops and a capture of another device, cycles a packet beside nobody",
            &format!("≤ {WATCHED} ×"),
            format!("{} ×", short(ratio.median)),
            ratio.median <= WATCHED,
        );
    }
    if let Some(kept) = found.bridge_cores.as_ref().and_then(|found| found.kept(ALL_WITH_ALL)) {
        verdict(
            "a bridge on two workers, half of the frames across, frames a busy cycle beside one worker",
            &format!("≥ {KEPT} ×"),
            format!("{} ×", short(kept.median)),
            kept.median >= KEPT,
        );
    }
    if let Some(scrape) = &found.scrape {
        verdict(
            &format!("one scrape of {} idle devices", scrape.devices),
            &format!("< {} ms", scrape.at_most_ms),
            format!("{} ms", short(scrape.ms.median)),
            scrape.is_met(),
        );
    }
    if let Some(start) = &found.start
        && let Some(ours) = crate::scale::start::packet_ms(&start.ours)
    {
        let peer = start.peer.as_ref().and_then(|peer| {
            let ms = crate::scale::start::packet_ms(&peer.launches)?;
            Some(format!("; {}: {} ms", peer.version, short(ms.median)))
        });
        verdict(
            "start of ringwayd to the first packet",
            "≤ 100 ms",
            format!("{} ms{}", short(ours.median), peer.unwrap_or_default()),
            ours.median <= 100.0,
        );
    }
    if let Some(idle) = found.idle_disks.as_ref().and_then(|counts| counts.last()) {
        verdict(
            &format!(
                "adaptive: processor time of an idle disk on a file, of a core, {} of them",
                idle.devices
            ),
            &format!("< {DISK_IDLE} %"),
            format!("{} %", short(idle.each_percent)),
            idle.each_percent < DISK_IDLE,
        );
    }
    if let Some(adaptive) = &found.adaptive {
        verdict(
            "adaptive: processor time with 100 idle devices, of a core",
            "< 1 %",
            format!("{} %", short(adaptive.idle_cpu_percent)),
            adaptive.idle_cpu_percent < 1.0,
        );
        let p99_us = adaptive.wake.latency.p99 as f64 / 1e3;
        verdict(
            "adaptive: waking, 99th percentile",
            "< 100 µs",
            format!(
                "{} µs (a bare eventfd: {} µs)",
                short(p99_us),
                short(adaptive.wake.bare.p99 as f64 / 1e3)
            ),
            p99_us < 100.0,
        );
        if let Some(ratio) = adaptive.busy[1].ratio {
            verdict(
                "adaptive: throughput when busy, of that under poll",
                "≥ 0.98",
                short(ratio.median),
                ratio.median >= 0.98,
            );
        }
    }
    verdicts
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn at_64_bytes_the_share_of_the_floor_does_too() {
        let verdict = |size: &str, ratio: f64, of_limit: f64| {
            let record = serde_json::from_value(json!({
                "suite": "s", "schema": 1, "command": "compare", "words": [], "at": 0, "host": crate::host::Host::read(),
                "parameters": {"size": size, "touch": "header"},
                "peer": {}, "ratio": {"median": ratio, "low": ratio, "high": ratio}, "of_limit": of_limit,
            }));
            of_comparison(&Sourced { source: "f".into(), record: record.unwrap() })[0].reached
        };
        assert!(verdict("64", 1.5, 0.1) && verdict("64", 1.1, 0.7) && verdict("1518", 1.6, 0.1));
        assert!(!verdict("64", 1.4, 0.69) && !verdict("1518", 1.4, 0.9));
    }

    /// A comparison of networks: ratio, ceiling and whether the generator was the limit, and cycles at nine tenths.
    fn network(parameters: Value, ratio: f64, bound: bool, cycles: f64) -> Sourced {
        let spread = |median: f64| json!({"median": median, "low": median, "high": median});
        let spent = json!({"mpps": spread(1.0), "cycles_per_packet": spread(100.0), "packets_per_burst": spread(30.0)});
        let busy = |share: Value, ratio: f64| json!({"share": share, "ours": spent, "peer": spent, "ratio": spread(ratio)});
        sourced(
            "compare",
            &parameters,
            &json!({
                "peer": {}, "ratio": spread(ratio), "ceiling_mpps": 40.0, "generator_bound": bound,
                "busy": [busy(Value::Null, 9.0), busy(json!(0.9), cycles)],
            }),
        )
    }

    #[test]
    fn where_the_generator_is_the_limit_nothing_is_met_or_missed_but_cycles() {
        let told = |ratio: f64, bound: bool, cycles: f64| {
            let parameters = json!({"job": "net", "peer": "dpdk", "size": "64", "touch": "none"});
            let found = of_comparison(&network(parameters, ratio, bound, cycles));
            found.into_iter().map(|one| (one.reached, one.uncounted.is_some())).collect::<Vec<_>>()
        };
        assert_eq!(told(1.6, false, 0.6), [(true, false), (true, false)]);
        assert_eq!(told(1.4, false, 0.7), [(false, false), (false, false)]);
        assert_eq!(told(1.0, true, 0.6), [(false, true), (true, false)]);
        assert_eq!(told(1.6, true, 0.7), [(true, true), (false, false)]);
    }

    #[test]
    fn cycles_at_a_rate_that_one_did_not_keep_are_not_counted() {
        let parameters = json!({"job": "net", "peer": "dpdk", "size": "64", "touch": "none"});
        let words = |kept_up: bool| {
            let mut one = network(parameters.clone(), 1.6, false, 0.6);
            one.record.result["busy"][1]["kept_up"] = json!(kept_up);
            of_comparison(&one).iter().map(Verdict::word).collect::<Vec<_>>()
        };
        assert_eq!(words(true), ["reached", "reached"]);
        assert_eq!(words(false), ["reached", "the rate was not kept, not counted"]);
    }

    #[test]
    fn dpdks_driver_is_held_to_each_path_and_to_their_median() {
        let one = |path: &str, ratio: f64| {
            let parameters = json!({"job": "link", "peer": "dpdk", "driver": "testpmd", "driver_path": path,
                                    "queue_size": 256, "size": "64", "touch": "header"});
            network(parameters, ratio, false, 2.0)
        };
        let records = [one("plain", 1.2), one("in-order", 1.5), one("vectorised", 1.6)];
        let found: Vec<(String, bool)> =
            verdicts(&records).into_iter().map(|one| (one.target, one.reached)).collect();
        let each = |reached| ("≥ 1.3 ×".to_owned(), reached);
        assert_eq!(found, [each(false), each(true), each(true), ("≥ 1.5 ×".to_owned(), true)]);
    }

    #[test]
    fn a_bridge_is_held_to_its_cycles_beside_a_link() {
        let parameters =
            json!({"job": "bridge", "peer": "link", "ports": 2, "size": "64", "touch": "header"});
        let found = of_comparison(&network(parameters, 0.7, false, 1.4));
        // Those at saturation: 9.
        assert_eq!(found.iter().map(|one| one.reached).collect::<Vec<_>>(), [false]);
        assert_eq!(found[0].target, "≤ 1.5 ×");
    }

    #[test]
    fn many_regions_are_held_to_one() {
        let reached = |cost: f64| {
            let spread = |median: f64| json!({"median": median, "low": median, "high": median});
            let point = |count: u64, cost: f64| json!({"count": count, "rounds": [], "ratio": spread(1.0), "cost_ratio": spread(cost), "lost": 0});
            let regions = json!({"over": "regions", "points": [point(1, 1.0), point(509, cost)]});
            of_scale(&sourced("scale", &json!({}), &json!({"regions": regions})))[0].reached
        };
        assert!(reached(1.05) && !reached(1.06));
    }

    #[test]
    fn who_looks_may_cost_a_hundredth() {
        let reached = |cost: f64| {
            let spread = |median: f64| json!({"median": median, "low": median, "high": median});
            let point = |count: u64, cost: f64| json!({"count": count, "rounds": [], "ratio": spread(1.0), "cost_ratio": spread(cost), "lost": 0});
            let watched = json!({"over": "watchers", "points": [point(0, 1.0), point(6, cost)]});
            of_scale(&sourced("scale", &json!({}), &json!({"watched": watched})))[0].reached
        };
        assert!(reached(1.01) && !reached(1.02));
    }

    #[test]
    fn scrape_is_held_to_its_median() {
        let reached = |ms: f64| {
            let scrape =
                json!({"devices": 1000, "ms": {"median": ms, "low": 1.0, "high": 99.0}, "at_most_ms": 50.0});
            of_scale(&sourced("scale", &json!({}), &json!({"scrape": scrape})))[0].reached
        };
        assert!(reached(49.0) && !reached(50.0));
    }

    #[test]
    fn bridge_on_two_workers_is_held_where_all_talk_with_all() {
        let reached = |cost: f64| {
            let spread = |median: f64| json!({"median": median, "low": median, "high": median});
            let point = |cost: f64| json!({"count": 2, "rounds": [], "ratio": spread(1.0), "cost_ratio": spread(cost), "lost": 0});
            let curve =
                json!({"over": "workers", "points": [point(1.0), point(9.0), point(cost), point(9.0)]});
            let found = json!({"bridge_cores": {"curve": curve, "in_turns": true}});
            of_scale(&sourced("scale", &json!({}), &found))[0].reached
        };
        assert!(reached(1.17) && !reached(1.18));
    }

    fn sourced(command: &str, parameters: &Value, result: &Value) -> Sourced {
        let record = super::super::sections::tests::record(command, parameters.clone(), result.clone());
        Sourced { source: "f".into(), record }
    }

    #[test]
    fn queues_that_reach_the_generators_ceiling_do_too() {
        let reached = |queues: u64, kiops: f64, is_bound: bool| {
            let parameters = json!({"no_data": true, "disk": {"queues": queues, "depth": 32, "size": 4096}});
            let run =
                json!({"ring": "split", "series": {"kiops": {"median": kiops}}, "generator_bound": is_bound});
            let found = of_queues(&sourced("blk", &parameters, &json!({"runs": [run]})));
            found.iter().map(|one| one.reached).collect::<Vec<_>>()
        };
        assert_eq!((reached(4, 2100.0, false), reached(4, 1500.0, true)), (vec![true], vec![true]));
        assert_eq!((reached(4, 1900.0, false), reached(1, 1900.0, false)), (vec![false], vec![]));
    }

    #[test]
    fn idle_disks_are_held_to_what_a_device_costs() {
        let reached = |percent: f64| {
            let of = |devices: u64, each: f64| json!({"devices": devices, "cpu_percent": 1.0, "each_percent": each});
            let idle = [of(0, 0.0), of(1, 0.2), of(64, percent)];
            of_scale(&sourced("scale", &json!({}), &json!({"idle_disks": idle})))[0].reached
        };
        assert!(reached(0.09) && !reached(0.11));
    }

    #[test]
    fn disks_on_files_are_held_to_fio_too() {
        let reached = |fio: f64, depth: u64| {
            let rounds = json!({"rounds": [{"kiops": 700.0, "latency": {"p50": 9000}}]});
            let spread = |median: f64| json!({"median": median, "low": median, "high": median});
            let record = serde_json::from_value(json!({
                "suite": "s", "schema": 1, "command": "compare", "words": [], "at": 0, "host": crate::host::Host::read(),
                "parameters": {"job": "blk", "backing": "cached", "peer": "qsd", "size": 4096, "depth": depth},
                "ours": {"throughput": rounds}, "peer": {"throughput": rounds}, "generator_bound": false,
                "ratio": spread(1.4), "p50_ratio": spread(0.5), "fio": {"ratio": spread(fio)},
            }));
            let found = of_comparison(&Sourced { source: "f".into(), record: record.unwrap() });
            found.iter().map(|one| one.reached).collect::<Vec<_>>()
        };
        assert_eq!((reached(0.96, 32), reached(0.94, 32)), (vec![true, true], vec![true, false]));
        assert_eq!(reached(0.96, 8), [] as [bool; 0]);
    }

    #[test]
    fn disks_are_held_to_their_ratio_and_to_their_latency_with_one_request() {
        let verdicts = |depth: u64, p50: u64| {
            let rounds = json!({"rounds": [{"kiops": 700.0, "latency": {"p50": p50}}]});
            let record = serde_json::from_value(json!({
                "suite": "s", "schema": 1, "command": "compare", "words": [], "at": 0, "host": crate::host::Host::read(),
                "parameters": {"job": "blk", "backing": "memory", "peer": "qsd", "size": 4096, "depth": depth},
                "ours": {"throughput": rounds}, "peer": {"throughput": rounds}, "generator_bound": false,
                "ratio": {"median": 4.1, "low": 4.0, "high": 5.0}, "p50_ratio": {"median": 0.1, "low": 0.1, "high": 0.1},
            }));
            of_comparison(&Sourced { source: "f".into(), record: record.unwrap() })
        };
        let reached = |verdicts: Vec<Verdict>| verdicts.iter().map(|one| one.reached).collect::<Vec<_>>();
        assert_eq!(reached(verdicts(32, 9000)), [true]);
        assert_eq!(reached(verdicts(1, 1900)), [true]);
        assert_eq!(reached(verdicts(1, 2100)), [false]);
        assert_eq!(reached(verdicts(8, 2100)), [] as [bool; 0]);
    }
}
