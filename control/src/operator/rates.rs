//! What happened between two looks at what moves, a second of it: of queues, devices, workers and their pumps.
//!
//! Part of the command. Counters only grow; one that is smaller than before is another's, made anew, and all that it has came
//! since.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::operator::api::{CoreInfo, Counts, DeviceSample, Named, PumpInfo, QueueSample, Sample};

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct Rates {
    /// Between the two looks.
    pub(crate) interval_ms: u64,
    pub(crate) dev: Named<DeviceRates>,
    pub(crate) core: Named<CoreRates>,
}

/// A device's queues together, and each.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct DeviceRates {
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) mgmtdev: String,
    pub(crate) state: String,
    pub(crate) cores: Vec<usize>,
    /// Frames that the guest was given, or requests.
    pub(crate) rx: Flow,
    /// Frames that the guest sent; nothing of a disk.
    pub(crate) tx: Flow,
    pub(crate) drops_per_s: f64,
    /// Faults of its rings since it was added.
    pub(crate) faults: u64,
    pub(crate) queues: Vec<QueueRates>,
}

/// What flows one way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub(crate) struct Flow {
    pub(crate) packets_per_s: f64,
    pub(crate) bits_per_s: f64,
}

/// A queue's.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct QueueRates {
    pub(crate) qidx: u32,
    #[serde(rename = "type")]
    pub(crate) queue_type: String,
    #[serde(flatten)]
    pub(crate) flow: Flow,
    pub(crate) calls_per_s: f64,
    pub(crate) bursts_per_s: f64,
    /// Chains of a burst; absent where there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) burst: Option<f64>,
    /// Since the device was added: 99 of 100 bursts took so long at most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) p99_ns: Option<u64>,
    /// By reason, those that occurred since the device was added.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) drops_per_s: BTreeMap<String, f64>,
    /// By reason, since the device was added.
    #[serde(skip_serializing_if = "Counts::is_empty")]
    pub(crate) drops: Counts,
    /// By name, since the device was added.
    #[serde(skip_serializing_if = "Counts::is_empty")]
    pub(crate) faults: Counts,
}

/// A worker's.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct CoreRates {
    /// Shares of the time, in hundredths.
    pub(crate) busy_pct: f64,
    pub(crate) idle_pct: f64,
    pub(crate) sleep_pct: f64,
    pub(crate) turns_per_s: f64,
    pub(crate) packets_per_s: f64,
    pub(crate) bursts_per_s: f64,
    /// Absent where no packet came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cycles_per_packet: Option<f64>,
    /// Packets of a burst; absent where there was none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) burst: Option<f64>,
    pub(crate) wakeups_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) preemptions_per_s: Option<f64>,
    pub(crate) pumps: Vec<PumpRates>,
}

/// A pump's.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub(crate) struct PumpRates {
    pub(crate) name: String,
    /// `awake`, `asleep` or `cannot sleep`.
    pub(crate) state: &'static str,
    /// Share of its core's time.
    pub(crate) busy_pct: f64,
    pub(crate) packets_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) cycles_per_packet: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) burst: Option<f64>,
}

impl Rates {
    /// Of two looks at the same daemon; what came between them counts from its making.
    pub(crate) fn between(before: &Sample, now: &Sample) -> Rates {
        let passed = Duration::from_nanos(now.up_ns.saturating_sub(before.up_ns));
        let earlier: BTreeMap<&str, &DeviceSample> =
            before.dev.0.iter().map(|(name, device)| (name.as_str(), device)).collect();
        let device = |(name, device): &(String, DeviceSample)| {
            let earlier = earlier.get(name.as_str()).filter(|earlier| earlier.id == device.id);
            (name.clone(), DeviceRates::between(earlier.copied(), device, passed))
        };
        Rates {
            interval_ms: u64::try_from(passed.as_millis()).unwrap_or(u64::MAX),
            dev: now.dev.0.iter().map(device).collect(),
            core: cores_between(&before.core, &now.core),
        }
    }
}

/// Of workers; one that was not there before is left out.
pub(crate) fn cores_between(before: &Named<CoreInfo>, now: &Named<CoreInfo>) -> Named<CoreRates> {
    let core = |(name, core): &(String, CoreInfo)| {
        before.find(name).map(|earlier| (name.clone(), CoreRates::between(earlier, core)))
    };
    now.0.iter().filter_map(core).collect()
}

impl DeviceRates {
    fn between(before: Option<&DeviceSample>, now: &DeviceSample, passed: Duration) -> DeviceRates {
        let earlier = before.map_or(&[][..], |before| before.queues.as_slice());
        let queues = queues_between(earlier, &now.queues, passed);
        let (mut rx, mut tx) = (Flow::default(), Flow::default());
        for queue in &queues {
            let way = if queue.queue_type == "tx" { &mut tx } else { &mut rx };
            way.packets_per_s += queue.flow.packets_per_s;
            way.bits_per_s += queue.flow.bits_per_s;
        }
        DeviceRates {
            kind: now.kind.clone(),
            mgmtdev: now.mgmtdev.clone(),
            state: now.state.clone(),
            cores: now.cores.clone(),
            rx,
            tx,
            drops_per_s: queues.iter().flat_map(|queue| queue.drops_per_s.values()).sum(),
            faults: queues.iter().map(QueueRates::all_faults).sum(),
            queues,
        }
    }
}

/// Of queues of one device.
pub(crate) fn queues_between(
    before: &[QueueSample],
    now: &[QueueSample],
    passed: Duration,
) -> Vec<QueueRates> {
    let zero = QueueSample::default();
    let queue = |queue: &QueueSample| {
        let earlier = before.iter().find(|earlier| earlier.qidx == queue.qidx);
        QueueRates::between(earlier.unwrap_or(&zero), queue, passed)
    };
    now.iter().map(queue).collect()
}

impl QueueRates {
    fn between(before: &QueueSample, now: &QueueSample, passed: Duration) -> QueueRates {
        let rate = |before, now| per_second(since(before, now), passed);
        let drops = now.drops.iter();
        let drops = drops.map(|(reason, count)| (reason.to_owned(), rate(before.drops.of(reason), count)));
        QueueRates {
            qidx: now.qidx,
            queue_type: now.queue_type.clone(),
            flow: Flow {
                packets_per_s: rate(before.packets, now.packets),
                bits_per_s: 8.0 * rate(before.bytes, now.bytes),
            },
            calls_per_s: rate(before.calls, now.calls),
            bursts_per_s: rate(before.bursts, now.bursts),
            burst: ratio(since(before.completed_desc, now.completed_desc), since(before.bursts, now.bursts)),
            p99_ns: now.latency.map(|latency| latency.p99_ns),
            drops_per_s: drops.collect(),
            drops: now.drops.clone(),
            faults: now.faults.clone(),
        }
    }

    /// Of all reasons.
    pub(crate) fn all_drops_per_s(&self) -> f64 {
        self.drops_per_s.values().sum()
    }

    /// Of all names.
    pub(crate) fn all_faults(&self) -> u64 {
        self.faults.total()
    }
}

impl CoreRates {
    /// The time that passed is the worker's own account of it.
    fn between(before: &CoreInfo, now: &CoreInfo) -> CoreRates {
        let busy = since(before.busy_cycles, now.busy_cycles);
        let idle = since(before.idle_cycles, now.idle_cycles);
        let sleep = since(before.sleep_cycles, now.sleep_cycles);
        let all = busy + idle + sleep;
        let passed = Duration::from_secs_f64(all as f64 / now.tsc_hz.max(1) as f64);
        let share = |cycles: u64| 100.0 * cycles as f64 / all.max(1) as f64;
        let rate = |before, now| per_second(since(before, now), passed);
        let packets = since(before.packets, now.packets);
        let pump = |pump: &PumpInfo| {
            let earlier = before.pumps.iter().find(|earlier| earlier.name == pump.name);
            let of = |what: fn(&PumpInfo) -> u64| since(earlier.map_or(0, what), what(pump));
            let (busy, packets) = (of(|pump| pump.busy_cycles), of(|pump| pump.packets));
            PumpRates {
                name: pump.name.clone(),
                state: pump_state(pump),
                busy_pct: share(busy),
                packets_per_s: per_second(packets, passed),
                cycles_per_packet: ratio(busy, packets),
                burst: ratio(packets, of(|pump| pump.bursts)),
            }
        };
        let preemptions = before.preemptions.zip(now.preemptions);
        CoreRates {
            busy_pct: share(busy),
            idle_pct: share(idle),
            sleep_pct: share(sleep),
            turns_per_s: rate(before.turns, now.turns),
            packets_per_s: per_second(packets, passed),
            bursts_per_s: rate(before.bursts, now.bursts),
            cycles_per_packet: ratio(busy, packets),
            burst: ratio(packets, since(before.bursts, now.bursts)),
            wakeups_per_s: rate(before.wakeups, now.wakeups),
            preemptions_per_s: preemptions.map(|(before, now)| rate(before, now)),
            pumps: now.pumps.iter().map(pump).collect(),
        }
    }
}

/// Whether a pump sleeps.
pub(crate) fn pump_state(pump: &PumpInfo) -> &'static str {
    match (pump.cannot_sleep, pump.asleep) {
        (true, _) => "cannot sleep",
        (_, true) => "asleep",
        _ => "awake",
    }
}

/// What a counter grew by.
fn since(before: u64, now: u64) -> u64 {
    now.checked_sub(before).unwrap_or(now)
}

fn per_second(count: u64, passed: Duration) -> f64 {
    if passed.is_zero() { 0.0 } else { count as f64 / passed.as_secs_f64() }
}

fn ratio(of: u64, by: u64) -> Option<f64> {
    (by > 0).then(|| of as f64 / by as f64)
}

/// A number in as few places as tell it: `0`, `1.24`, `12.4`, `124`, `1.24k`, `12.4M`.
pub(crate) fn short(number: f64) -> String {
    let (mut number, mut unit) = (number.max(0.0), 0);
    while number >= 999.5 && unit + 1 < UNITS.len() {
        number /= 1000.0;
        unit += 1;
    }
    let digits = match number {
        n if n < 0.005 => return "0".to_owned(),
        n if n < 9.995 => 2,
        n if n < 99.95 => 1,
        _ => 0,
    };
    format!("{number:.digits$}{}", UNITS[unit])
}

const UNITS: [&str; 6] = ["", "k", "M", "G", "T", "P"];

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn sample(up_ns: u64, id: u64, packets: u64, drops: u64) -> Sample {
        let queue = |qidx: u32, queue_type: &str| {
            json!({
                "qidx": qidx, "queue_type": queue_type, "packets": packets, "bytes": packets * 100, "calls": 0,
                "completed_desc": packets, "bursts": packets / 10, "drops": { "runt": drops },
            })
        };
        let device = json!({
            "id": id, "type": "network", "mgmtdev": "sim/net", "state": "connected", "cores": [1],
            "queues": [queue(0, "rx"), queue(1, "tx")],
        });
        let pump = json!({
            "name": "vm0 rx", "busy_cycles": packets * 100, "bursts": packets / 10, "packets": packets, "asleep": false,
            "cannot_sleep": false,
        });
        let core = json!({
            "tid": 1, "idle_policy": "poll", "tsc_hz": 1_000_000, "busy_cycles": packets * 100,
            "idle_cycles": up_ns / 1000 - packets * 100, "sleep_cycles": 0, "turns": 7, "packets": packets,
            "bursts": packets / 10, "wakeups": 0, "longest_turn_ns": 0, "preemptions": 3, "panics": 0, "groups": 1,
            "pumps": [pump],
        });
        let all = json!({ "instance": "i", "up_ns": up_ns, "dev": { "vm0": device }, "core": { "1": core } });
        serde_json::from_value(all).unwrap()
    }

    #[test]
    fn rates_are_what_grew_in_a_second() {
        let (before, now) = (sample(1_000_000_000, 1, 1000, 1), sample(3_000_000_000, 1, 5000, 5));
        let rates = Rates::between(&before, &now);
        assert_eq!(rates.interval_ms, 2000);
        let device = rates.dev.find("vm0").unwrap();
        assert_eq!((device.rx.packets_per_s, device.tx.bits_per_s), (2000.0, 1_600_000.0));
        assert_eq!((device.drops_per_s, device.queues[0].drops_per_s["runt"]), (4.0, 2.0));
        assert_eq!((device.queues[1].burst, device.queues[1].bursts_per_s), (Some(10.0), 200.0));
        let core = rates.core.find("1").unwrap();
        assert_eq!((core.busy_pct, core.idle_pct, core.sleep_pct), (20.0, 80.0, 0.0));
        assert_eq!((core.packets_per_s, core.cycles_per_packet), (2000.0, Some(100.0)));
        assert_eq!((core.preemptions_per_s, core.turns_per_s, core.burst), (Some(0.0), 0.0, Some(10.0)));
        let pump = &core.pumps[0];
        assert_eq!((pump.busy_pct, pump.cycles_per_packet, pump.burst), (20.0, Some(100.0), Some(10.0)));
    }

    #[test]
    fn what_was_made_anew_counts_from_its_making() {
        let (before, now) = (sample(1_000_000_000, 1, 5000, 5), sample(2_000_000_000, 2, 6000, 0));
        let rates = Rates::between(&before, &now);
        assert_eq!(rates.dev.find("vm0").unwrap().rx.packets_per_s, 6000.0);
        // A pump that is made anew has the same name, and counts from 0.
        let (before, now) = (sample(1_000_000_000, 1, 5000, 5), sample(2_000_000_000, 1, 400, 0));
        let rates = Rates::between(&before, &now);
        assert_eq!(rates.core.find("1").unwrap().pumps[0].burst, Some(10.0));
        // Two looks at once are no division by nothing.
        let rates = Rates::between(&now, &now);
        assert_eq!(rates.dev.find("vm0").unwrap().rx.packets_per_s, 0.0);
        assert_eq!(rates.core.find("1").unwrap().cycles_per_packet, None);
    }

    #[test]
    fn numbers_are_told_in_three_places() {
        for (number, text) in [
            (0.0, "0"),
            (0.004, "0"),
            (0.5, "0.50"),
            (9.994, "9.99"),
            (9.996, "10.0"),
            (99.96, "100"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (12_345.0, "12.3k"),
            (14_880_952.0, "14.9M"),
            (9.9e18, "9900P"),
        ] {
            assert_eq!(short(number), text);
        }
    }
}
