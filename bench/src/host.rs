//! The machine that a result was made on.

use std::fmt;
use std::fs;

use serde::Serialize;

/// What a reader must know of a machine to judge a number from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Host {
    /// Processor, as the kernel names it.
    pub cpu: String,
    /// Processors that this process may use.
    pub cpus: usize,
    /// Kernel release.
    pub kernel: String,
    /// Running under a hypervisor.
    pub virtual_machine: bool,
    /// Frequency governor of processor 0, if there is one.
    pub governor: Option<String>,
    /// 2 MiB pages reserved.
    pub hugepages_2m: u64,
    /// Version of the suite.
    pub version: &'static str,
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
        Host {
            cpu: field("model name").unwrap_or_else(|| std::env::consts::ARCH.to_owned()),
            cpus: std::thread::available_parallelism().map_or(1, usize::from),
            kernel: trimmed("/proc/sys/kernel/osrelease").unwrap_or_default(),
            virtual_machine: field("flags")
                .is_some_and(|flags| flags.split(' ').any(|flag| flag == "hypervisor")),
            governor: trimmed("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
            hugepages_2m: trimmed("/proc/sys/vm/nr_hugepages")
                .and_then(|text| text.parse().ok())
                .unwrap_or(0),
            version: env!("CARGO_PKG_VERSION"),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.virtual_machine { "virtual machine" } else { "bare metal" };
        write!(
            f,
            "{}, {} cpus ({kind}), Linux {}, {} 2 MiB pages, ringway-bench {}",
            self.cpu, self.cpus, self.kernel, self.hugepages_2m, self.version
        )
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
