//! Which cores become workers, and which group of queues goes to which core.
//!
//! Default: one worker, on the last core that this process may use; not on core 0, nor on the other thread of its physical core, if
//! there is another. A group of queues goes to a worker of the memory node of its hardware, if there is one; among these to
//! the one with the fewest groups, then to the one whose physical core's other workers have the fewest; ties go to the worker
//! named first.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use crate::fault::Fault;
use crate::host::topology::Topology;

/// How many groups stand on each worker. Owned by the control thread.
#[derive(Debug, Clone)]
pub struct Placement {
    cores: Vec<usize>,
    groups: BTreeMap<usize, usize>,
    /// Those that take no more groups.
    draining: BTreeSet<usize>,
    topology: Topology,
}

impl Placement {
    /// No groups yet on these workers' cores, in the order of preference.
    pub fn new(cores: &[usize], topology: Topology) -> Placement {
        Placement {
            cores: cores.to_vec(),
            groups: cores.iter().map(|core| (*core, 0)).collect(),
            draining: BTreeSet::new(),
            topology,
        }
    }

    /// Places `groups` groups: all on `wanted`, or each on the least loaded worker, one of memory node `near` if there is one.
    ///
    /// # Errors
    /// No worker runs on the core that was wanted, or it takes no more.
    pub fn place(
        &mut self,
        groups: usize,
        wanted: Option<usize>,
        near: Option<usize>,
    ) -> Result<Vec<usize>, Fault> {
        if let Some(core) = wanted {
            self.check(core)?;
        }
        Ok((0..groups)
            .map(|_| {
                let core = wanted.or_else(|| self.least_loaded(near)).unwrap_or(0);
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

    /// Whether a worker runs on this core and takes groups.
    ///
    /// # Errors
    /// None does; the fault names those that there are.
    pub fn check(&self, core: usize) -> Result<(), Fault> {
        if self.draining.contains(&core) {
            return Err(Fault::conflict(format!(
                "the worker of core {core} is being drained and takes nothing more"
            ))
            .at("core")
            .hint(format!("ringway core add {core} has it take groups again; or another core")));
        }
        self.find(core)
    }

    /// Whether a worker runs on this core.
    ///
    /// # Errors
    /// None does; the fault names those that there are.
    pub fn find(&self, core: usize) -> Result<(), Fault> {
        if self.cores.contains(&core) {
            return Ok(());
        }
        Err(Fault::not_found(format!("no worker runs on core {core}"))
            .at("core")
            .held_by(format!("workers run on cores {}", list(&self.cores)))
            .hint(format!("one of these cores, or ringway core add {core} first")))
    }

    /// A worker runs on one more core, or takes groups again.
    pub fn add(&mut self, core: usize) {
        self.draining.remove(&core);
        if !self.cores.contains(&core) {
            self.cores.push(core);
        }
        self.groups.entry(core).or_default();
    }

    /// A core takes no more groups. Those that it has are still its.
    ///
    /// # Errors
    /// It has no worker, or no other one takes groups.
    pub fn drain(&mut self, core: usize) -> Result<(), Fault> {
        self.find(core)?;
        if !self.open().any(|other| other != core) {
            return Err(Fault::conflict(format!("core {core} has the only worker that takes groups"))
                .at("core")
                .hint("ringway core add another core first"));
        }
        self.draining.insert(core);
        Ok(())
    }

    /// Whether a core takes no more groups.
    pub fn is_draining(&self, core: usize) -> bool {
        self.draining.contains(&core)
    }

    /// A core has no worker any more.
    pub fn remove(&mut self, core: usize) {
        self.draining.remove(&core);
        self.cores.retain(|known| *known != core);
        self.groups.remove(&core);
    }

    /// The cores whose workers take groups, in the order of preference.
    pub fn open(&self) -> impl Iterator<Item = usize> + '_ {
        self.cores.iter().copied().filter(|core| !self.draining.contains(core))
    }

    /// What is known of the host's cores.
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    fn least_loaded(&self, near: Option<usize>) -> Option<usize> {
        let is_near = |core: &usize| near.is_some() && self.topology.node(*core) == near;
        let beside = |core: usize| -> usize {
            self.topology.siblings(core).iter().map(|other| self.groups_on(*other)).sum()
        };
        let load = |core: &usize| (self.groups_on(*core), beside(*core));
        self.open().filter(is_near).min_by_key(load).or_else(|| self.open().min_by_key(load))
    }
}

/// The cores that become workers: those asked for, or the default of this module. `allowed` is what the process may
/// run on, ascending.
///
/// # Errors
/// A core was asked for twice, is not there, or the process may not run on it.
pub fn choose_cores(allowed: &[usize], wanted: &[usize], topology: &Topology) -> Result<Vec<usize>, Fault> {
    for (n, core) in wanted.iter().enumerate() {
        if wanted[..n].contains(core) {
            return Err(Fault::usage(format!("core {core} is named twice")).at("cores"));
        }
        check_allowed(allowed, *core)?;
    }
    if !wanted.is_empty() {
        return Ok(wanted.to_vec());
    }
    let others = || allowed.iter().rev().filter(|core| **core != 0);
    let apart = others().find(|core| !topology.siblings(0).contains(core));
    let best = apart.or_else(|| others().next()).or(allowed.first());
    Ok(best.map(|core| vec![*core]).unwrap_or_default())
}

/// Whether this process, which may run on `allowed`, may on that core.
///
/// # Errors
/// There is no such core, or it may not.
pub(crate) fn check_allowed(allowed: &[usize], core: usize) -> Result<(), Fault> {
    if allowed.contains(&core) {
        return Ok(());
    }
    if !Path::new(CORES).join(format!("cpu{core}")).exists() {
        return Err(Fault::not_found(format!("there is no core {core}"))
            .at("cores")
            .held_by(format!("this process may run on {}", list(allowed)))
            .hint("a core of those"));
    }
    Err(Fault::not_found(format!("this process may not run on core {core}"))
        .at("cores")
        .held_by(format!("its cpuset is {}", list(allowed)))
        .hint("a core of that set, or a wider cpuset (AllowedCPUs= in the unit; CPUAffinity=, or taskset, for one that isolcpus= has)"))
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

    fn choose(allowed: &[usize], wanted: &[usize]) -> Result<Vec<usize>, Fault> {
        choose_cores(allowed, wanted, &Topology::default())
    }

    /// Cores 0 and 1 on node 0, 2 and 3 on node 1; 0 and 2 are threads of one physical core, and 1 and 3.
    fn threads_of_two() -> Topology {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join("sys/devices/system").join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        for core in 0..4 {
            let text = if core % 2 == 0 { "0,2" } else { "1,3" };
            write(&format!("cpu/cpu{core}/topology/thread_siblings_list"), text);
        }
        write("node/node0/cpulist", "0-1");
        write("node/node1/cpulist", "2-3");
        Topology::below(dir.path())
    }

    #[test]
    fn groups_go_to_physical_cores_that_are_free_and_to_the_memory_of_their_hardware() {
        let mut placement = Placement::new(&[0, 2, 1, 3], threads_of_two());
        assert_eq!(placement.place(4, None, None).unwrap(), [0, 1, 2, 3]);
        let mut placement = Placement::new(&[0, 1, 2], threads_of_two());
        assert_eq!(placement.place(2, None, Some(1)).unwrap(), [2, 2]);
        // No worker is of that node.
        assert_eq!(placement.place(1, None, Some(7)).unwrap(), [1]);
    }

    #[test]
    fn drained_core_takes_nothing_and_the_last_one_stays() {
        let mut placement = Placement::new(&[2, 3], Topology::default());
        placement.place(2, None, None).unwrap();
        placement.drain(2).unwrap();
        assert_eq!(placement.place(2, None, None).unwrap(), [3, 3]);
        assert_eq!(placement.place(1, Some(2), None).unwrap_err().kind, Kind::Conflict);
        assert_eq!(placement.drain(3).unwrap_err().kind, Kind::Conflict);
        assert_eq!(placement.drain(9).unwrap_err().kind, Kind::NotFound);
        assert_eq!(placement.groups_on(2), 1);
        placement.add(2);
        assert_eq!(placement.place(1, None, None).unwrap(), [2]);
        placement.drain(2).unwrap();
        placement.remove(2);
        assert_eq!((placement.open().collect::<Vec<_>>(), placement.groups_on(2)), (vec![3], 0));
    }

    #[test]
    fn default_is_the_last_core_and_core_0_only_alone() {
        assert_eq!(choose(&[0, 1, 2, 3], &[]).unwrap(), [3]);
        assert_eq!(choose(&[0], &[]).unwrap(), [0]);
        assert_eq!(choose(&[5], &[]).unwrap(), [5]);
        // 0 and 2 are one physical core, 1 and 3.
        let topology = threads_of_two();
        assert_eq!(choose_cores(&[0, 1, 2], &[], &topology).unwrap(), [1]);
        assert_eq!(choose_cores(&[0, 2], &[], &topology).unwrap(), [2]);
    }

    #[test]
    fn forbidden_and_doubled_cores_are_named() {
        assert!(choose(&[0, 1], &[7]).unwrap_err().to_string().contains("core 7"));
        assert!(choose(&[0, 1], &[1, 1]).unwrap_err().to_string().contains("core 1 is named twice"));
        assert_eq!(choose(&[0, 1], &[1, 0]).unwrap(), [1, 0]);
    }

    #[test]
    fn groups_spread_over_workers_and_leave_again() {
        let mut placement = Placement::new(&[2, 3], Topology::default());
        assert_eq!(placement.place(3, None, None).unwrap(), [2, 3, 2]);
        assert_eq!(placement.place(1, None, None).unwrap(), [3]);
        placement.release(&[2, 3, 2]);
        assert_eq!((placement.groups_on(2), placement.groups_on(3)), (0, 1));
        assert_eq!(placement.place(1, None, None).unwrap(), [2]);
    }

    #[test]
    fn wanted_core_takes_all_groups_or_names_the_workers() {
        let mut placement = Placement::new(&[2, 3], Topology::default());
        assert_eq!(placement.place(2, Some(3), None).unwrap(), [3, 3]);
        let fault = placement.place(1, Some(9), None).unwrap_err();
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
