//! Which cores become workers, and which group of queues goes to which core.
//!
//! Default: one worker, on the last core that this process may use, and not on core 0 if there is another. A group of
//! queues goes to the worker with the fewest groups; ties go to the worker named first.

use std::collections::BTreeMap;
use std::path::Path;

use crate::fault::Fault;

/// How many groups stand on each worker. Owned by the control thread.
#[derive(Debug, Clone)]
pub struct Placement {
    cores: Vec<usize>,
    groups: BTreeMap<usize, usize>,
}

impl Placement {
    /// No groups yet on these workers' cores, in the order of preference.
    pub fn new(cores: &[usize]) -> Placement {
        Placement { cores: cores.to_vec(), groups: cores.iter().map(|core| (*core, 0)).collect() }
    }

    /// Places `groups` groups: all on `wanted`, or each on the least loaded worker.
    ///
    /// # Errors
    /// No worker runs on the core that was wanted.
    pub fn place(&mut self, groups: usize, wanted: Option<usize>) -> Result<Vec<usize>, Fault> {
        if let Some(core) = wanted {
            self.check(core)?;
        }
        Ok((0..groups)
            .map(|_| {
                let core = wanted.or_else(|| self.least_loaded()).unwrap_or(0);
                *self.groups.entry(core).or_default() += 1;
                core
            })
            .collect())
    }

    /// Takes groups away again.
    pub fn release(&mut self, cores: &[usize]) {
        for core in cores {
            if let Some(count) = self.groups.get_mut(core) {
                *count = count.saturating_sub(1);
            }
        }
    }

    /// Groups on a core.
    pub fn groups_on(&self, core: usize) -> usize {
        self.groups.get(&core).copied().unwrap_or(0)
    }

    /// Whether a worker runs on this core.
    ///
    /// # Errors
    /// None does; the fault names those that there are.
    pub fn check(&self, core: usize) -> Result<(), Fault> {
        if self.cores.contains(&core) {
            return Ok(());
        }
        Err(Fault::not_found(format!("no worker runs on core {core}"))
            .at("core")
            .held_by(format!("workers run on cores {}", list(&self.cores)))
            .hint("one of these cores, or restart ringwayd with --cores to change them"))
    }

    fn least_loaded(&self) -> Option<usize> {
        self.cores.iter().copied().min_by_key(|core| self.groups_on(*core))
    }
}

/// The cores that become workers: those asked for, or the default of this module. `allowed` is what the process may
/// run on, ascending.
///
/// # Errors
/// A core was asked for twice, is not there, or the process may not run on it.
pub fn choose_cores(allowed: &[usize], wanted: &[usize]) -> Result<Vec<usize>, Fault> {
    for (n, core) in wanted.iter().enumerate() {
        if wanted[..n].contains(core) {
            return Err(Fault::usage(format!("core {core} is named twice")).at("cores"));
        }
        if !allowed.contains(core) && !Path::new(CORES).join(format!("cpu{core}")).exists() {
            return Err(Fault::not_found(format!("there is no core {core}"))
                .at("cores")
                .held_by(format!("this process may run on {}", list(allowed)))
                .hint("a core of those"));
        }
        if !allowed.contains(core) {
            return Err(Fault::not_found(format!("this process may not run on core {core}"))
                .at("cores")
                .held_by(format!("its cpuset is {}", list(allowed)))
                .hint("a core of that set, or a wider cpuset (AllowedCPUs= in the unit)"));
        }
    }
    if !wanted.is_empty() {
        return Ok(wanted.to_vec());
    }
    let best = allowed.iter().rev().find(|core| **core != 0).or(allowed.first());
    Ok(best.map(|core| vec![*core]).unwrap_or_default())
}

/// Where the kernel tells of the cores that there are.
const CORES: &str = "/sys/devices/system/cpu";

/// The cores that this process may run on, ascending.
///
/// # Errors
/// The kernel did not tell.
pub fn allowed_cores() -> std::io::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    Ok((0..rustix::thread::CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
}

/// Reads a list of cores as in `1,3-5`.
///
/// # Errors
/// A sentence that names what is not understood.
pub fn parse_cores(text: &str) -> Result<Vec<usize>, String> {
    let mut cores = Vec::new();
    for part in text.split(',') {
        let bad = || format!("`{part}` is not a core or a range of cores: write a list as in 1,3-5");
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        let first: usize = first.trim().parse().map_err(|_| bad())?;
        let last: usize = last.trim().parse().map_err(|_| bad())?;
        if last < first || last > 65_535 {
            return Err(bad());
        }
        cores.extend(first..=last);
    }
    Ok(cores)
}

/// `1, 2, 3`, or `none`.
pub(crate) fn list(cores: &[usize]) -> String {
    if cores.is_empty() {
        return "none".to_owned();
    }
    cores.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fault::Kind;

    #[test]
    fn default_is_the_last_core_and_core_0_only_alone() {
        assert_eq!(choose_cores(&[0, 1, 2, 3], &[]).unwrap(), [3]);
        assert_eq!(choose_cores(&[0], &[]).unwrap(), [0]);
        assert_eq!(choose_cores(&[5], &[]).unwrap(), [5]);
    }

    #[test]
    fn forbidden_and_doubled_cores_are_named() {
        assert!(choose_cores(&[0, 1], &[7]).unwrap_err().to_string().contains("core 7"));
        assert!(choose_cores(&[0, 1], &[1, 1]).unwrap_err().to_string().contains("core 1 is named twice"));
        assert_eq!(choose_cores(&[0, 1], &[1, 0]).unwrap(), [1, 0]);
    }

    #[test]
    fn groups_spread_over_workers_and_leave_again() {
        let mut placement = Placement::new(&[2, 3]);
        assert_eq!(placement.place(3, None).unwrap(), [2, 3, 2]);
        assert_eq!(placement.place(1, None).unwrap(), [3]);
        placement.release(&[2, 3, 2]);
        assert_eq!((placement.groups_on(2), placement.groups_on(3)), (0, 1));
        assert_eq!(placement.place(1, None).unwrap(), [2]);
    }

    #[test]
    fn wanted_core_takes_all_groups_or_names_the_workers() {
        let mut placement = Placement::new(&[2, 3]);
        assert_eq!(placement.place(2, Some(3)).unwrap(), [3, 3]);
        let fault = placement.place(1, Some(9)).unwrap_err();
        assert_eq!(fault.kind, Kind::NotFound);
        assert!(fault.to_string().contains("2, 3"));
    }

    #[test]
    fn lists_and_ranges_of_cores_are_read() {
        assert_eq!(parse_cores("1,3-5"), Ok(vec![1, 3, 4, 5]));
        for bad in ["", "a", "3-1", "1,,2", "0-99999999"] {
            assert!(parse_cores(bad).is_err(), "{bad}");
        }
    }
}
