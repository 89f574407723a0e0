//! The machine that a result was made on.

use std::fmt;
use std::fs;

use serde::{Deserialize, Serialize};

/// What a reader must know of a machine to judge a number from it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Host {
    /// Processor, as the kernel names it.
    pub cpu: String,
    /// Processors that this process may use.
    pub cpus: usize,
    /// Hardware threads of a core share it: `on`, `off`, or what the kernel says.
    pub smt: String,
    /// Kernel release.
    pub kernel: String,
    /// Running under a hypervisor.
    pub virtual_machine: bool,
    /// Frequency governor of processor 0, if there is one.
    pub governor: Option<String>,
    /// 1 GiB pages reserved.
    pub hugepages_1g: u64,
    /// 2 MiB pages reserved.
    pub hugepages_2m: u64,
    /// Share of all processors' time that other machines took while it was measured, in per cent.
    pub steal_percent: f64,
    /// Version of the suite.
    pub version: String,
    /// Revision of the tree that the suite was built from.
    pub revision: String,
}

/// A measurement under way: notes what else the machine did meanwhile.
#[derive(Debug)]
pub struct Watch {
    begun: Ticks,
}

impl Watch {
    /// Begins to watch.
    pub fn begin() -> Watch {
        Watch { begun: Ticks::read() }
    }

    /// The machine, with what other machines took of it since the beginning.
    pub fn end(&self) -> Host {
        let now = Ticks::read();
        let (stolen, all) = (now.stolen - self.begun.stolen, now.all - self.begun.all);
        Host { steal_percent: if all > 0.0 { stolen / all * 100.0 } else { 0.0 }, ..Host::read() }
    }
}

impl Host {
    /// Reads it off this machine.
    pub fn read() -> Host {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let field = |name: &str| {
            let line = cpuinfo.lines().find(|line| line.starts_with(name))?;
            Some(line.split_once(':')?.1.trim().to_owned())
        };
        let trimmed = |path: &str| fs::read_to_string(path).ok().map(|text| text.trim().to_owned());
        let pages = |size: &str| {
            trimmed(&format!("/sys/kernel/mm/hugepages/hugepages-{size}kB/nr_hugepages"))
                .and_then(|text| text.parse().ok())
                .unwrap_or(0)
        };
        Host {
            cpu: field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            smt: trimmed("/sys/devices/system/cpu/smt/control").unwrap_or_else(|| "unknown".to_owned()),
            kernel: trimmed("/proc/sys/kernel/osrelease").unwrap_or_default(),
            virtual_machine: field("flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            governor: trimmed("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            hugepages_1g: pages("1048576"),
            hugepages_2m: pages("2048"),
            steal_percent: 0.0,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            revision: env!("RINGWAY_REVISION").to_owned(),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.virtual_machine { "virtual machine" } else { "bare metal" };
        write!(
            f,
            "{}, {} cpus ({kind}), Linux {}, {} 2 MiB pages, ringway-bench {} ({})",
            self.cpu, self.cpus, self.kernel, self.hugepages_2m, self.version, self.revision
        )
    }
}

/// The kernel's account of all processors' time, in clock ticks.
#[derive(Debug, Clone, Copy)]
struct Ticks {
    stolen: f64,
    all: f64,
}

impl Ticks {
    fn read() -> Ticks {
        let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
        Ticks::parse(&stat)
    }

    /// The first line: `cpu user nice system idle iowait irq softirq steal guest guest_nice`; guest time is in user's.
    fn parse(stat: &str) -> Ticks {
        let line = stat.lines().next().unwrap_or_default();
        let fields: Vec<f64> =
            line.split_whitespace().skip(1).take(8).filter_map(|field| field.parse().ok()).collect();
        Ticks { stolen: fields.get(7).copied().unwrap_or(0.0), all: fields.iter().sum() }
    }
}

/// Pins this thread to a core; false if that did not take.
pub fn pin(core: usize) -> bool {
    use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
    let mut wanted = CpuSet::new();
    wanted.set(core);
    sched_setaffinity(None, &wanted).is_ok() && sched_getaffinity(None).is_ok_and(|found| found == wanted)
}

/// Raises the limit of open descriptors to the most that this process may have.
pub fn raise_descriptor_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    let _ = setrlimit(Resource::Nofile, limit);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stolen_time_is_the_eighth_field() {
        let ticks = Ticks::parse("cpu  10 20 30 40 5 6 7 82 1000 1000\ncpu0 1 2 3\n");
        assert!((ticks.stolen - 82.0).abs() < 1e-9 && (ticks.all - 200.0).abs() < 1e-9, "{ticks:?}");
        assert!(Ticks::parse("").all.abs() < 1e-9);
    }
}
