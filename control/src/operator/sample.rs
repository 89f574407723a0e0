//! What moves, as operators read it: queues and workers, and what they stand at together at one time.
//!
//! On the control thread. Reading takes nothing from a counter: any number of readers see the same.

use ringway_engine::{BurstSizes, Times, WorkerStats};
use ringway_pmd::counters::QueueCounters;

use crate::daemon::Daemon;
use crate::devices::device::Device;
use crate::operator::api::{CoreInfo, CoreShow, DeviceSample, PumpInfo, Sample, SizeInfo, TimeInfo};
use crate::operator::show;

impl Daemon {
    pub(crate) fn show_cores(&self) -> CoreShow {
        let core = self.engine.workers().into_iter();
        CoreShow { core: core.map(|worker| (worker.core.to_string(), self.core_info(worker))).collect() }
    }

    /// What everything that moves stands at.
    pub(crate) fn sample(&self) -> Sample {
        let queue = |device: &Device, index: usize, counters: &QueueCounters| {
            let facts = &device.facts;
            show::queue_info(facts.class, &facts.config, index as u32, &counters.snapshot()).into()
        };
        let device = |device: &Device| {
            let queues = device.shared.counters.iter().enumerate();
            let sample = DeviceSample {
                id: device.id,
                kind: device.facts.class.type_name().to_owned(),
                mgmtdev: device.entry.mgmtdev.clone(),
                state: device.life.name().to_owned(),
                cores: device.cores(),
                queues: queues.map(|(index, counters)| queue(device, index, counters)).collect(),
            };
            (device.name().to_owned(), sample)
        };
        Sample {
            instance: self.instance.clone(),
            up_ns: u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX),
            dev: self.registry.devices().map(device).collect(),
            core: self.show_cores().core,
        }
    }

    pub(crate) fn core_info(&self, worker: WorkerStats) -> CoreInfo {
        let hertz = ringway_ring::tsc::hertz();
        CoreInfo {
            tid: worker.tid,
            idle_policy: worker.idle.name().to_owned(),
            tsc_hz: hertz,
            busy_cycles: worker.busy_cycles,
            idle_cycles: worker.idle_cycles,
            sleep_cycles: worker.sleep_cycles,
            turns: worker.turns,
            packets: worker.items,
            bursts: worker.bursts,
            burst_sizes: sizes(&worker.burst_sizes),
            busy_turns: times(&worker.busy_turns),
            cycles_per_packet: worker.busy_cycles.checked_div(worker.items),
            packets_per_burst_x100: worker.items.saturating_mul(100).checked_div(worker.bursts),
            wakeups: worker.wakeups,
            longest_turn_ns: nanoseconds(worker.longest_turn_cycles, hertz),
            preemptions: worker.scheduled.map(|scheduled| scheduled.preemptions),
            run_delay_ns: worker.scheduled.map(|scheduled| scheduled.run_delay_ns),
            wants_core: worker.scheduled.is_some_and(|scheduled| scheduled.is_runnable),
            scheduling: worker.scheduled.map(|scheduled| scheduled.policy.name().to_owned()),
            gives_way: worker.gives_way,
            rests: worker.rests,
            rest_ns: nanoseconds(worker.rest_cycles, hertz),
            panics: worker.panics,
            others: self.claims.others(worker.core),
            groups: self.placement.groups_on(worker.core),
            draining: self.placement.is_draining(worker.core),
            node: self.placement.topology().node(worker.core),
            siblings: self.placement.topology().siblings(worker.core).to_vec(),
            pumps: worker
                .pumps
                .into_iter()
                .map(|pump| PumpInfo {
                    name: pump.name,
                    busy_cycles: pump.busy_cycles,
                    bursts: pump.bursts,
                    packets: pump.items,
                    asleep: pump.asleep,
                    cannot_sleep: pump.cannot_sleep,
                })
                .collect(),
        }
    }
}

/// Sizes of bursts in three numbers; None before the first.
pub(crate) fn sizes(sizes: &BurstSizes) -> Option<SizeInfo> {
    let up_to = |thousandths| sizes.per_mille(thousandths);
    (sizes.count() > 0).then(|| SizeInfo { p50: up_to(500), p99: up_to(990), max: up_to(1000) })
}

/// How long things took in four numbers; None before the first.
pub(crate) fn times(times: &Times) -> Option<TimeInfo> {
    let hertz = ringway_ring::tsc::hertz();
    let took = |thousandths| nanoseconds(times.per_mille(thousandths), hertz);
    (times.count() > 0).then(|| TimeInfo {
        p50_ns: took(500),
        p99_ns: took(990),
        p999_ns: took(999),
        max_ns: nanoseconds(times.longest(), hertz),
    })
}

/// Cycles of a clock in nanoseconds; saturates.
pub(crate) fn nanoseconds(cycles: u64, hertz: u64) -> u64 {
    let ns = u128::from(cycles) * 1_000_000_000 / u128::from(hertz.max(1));
    u64::try_from(ns).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_become_nanoseconds_without_overflow() {
        assert_eq!(nanoseconds(3_000_000_000, 3_000_000_000), 1_000_000_000);
        assert_eq!(nanoseconds(u64::MAX, 0), u64::MAX);
    }
}
