//! Which cores are one physical core, and which memory is near to which: as the kernel tells in `/sys`.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use crate::devices::placement::parse_cores;

/// The host's cores. Where the kernel does not tell, each is a physical core of its own, and all memory is as near.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Topology {
    /// The other threads of each core's physical core.
    siblings: BTreeMap<usize, Vec<usize>>,
    /// The memory node of each core.
    nodes: BTreeMap<usize, usize>,
}

impl Topology {
    /// Of the host that this process runs on.
    pub fn of_host() -> Topology {
        Topology::below(Path::new("/"))
    }

    /// Of the host whose `/sys` is below `root`.
    pub fn below(root: &Path) -> Topology {
        let mut topology = Topology::default();
        let cores = |path: &Path| parse_cores(fs::read_to_string(path).ok()?.trim()).ok();
        for (core, folder) in numbered(&root.join("sys/devices/system/cpu"), "cpu") {
            let mut siblings = cores(&folder.join("topology/thread_siblings_list")).unwrap_or_default();
            siblings.retain(|other| *other != core);
            if !siblings.is_empty() {
                topology.siblings.insert(core, siblings);
            }
        }
        for (node, folder) in numbered(&root.join("sys/devices/system/node"), "node") {
            for core in cores(&folder.join("cpulist")).unwrap_or_default() {
                topology.nodes.insert(core, node);
            }
        }
        topology
    }

    /// The other threads of a core's physical core.
    pub fn siblings(&self, core: usize) -> &[usize] {
        self.siblings.get(&core).map_or(&[], Vec::as_slice)
    }

    /// The memory node of a core, if the kernel tells.
    pub fn node(&self, core: usize) -> Option<usize> {
        self.nodes.get(&core).copied()
    }
}

/// The memory node of a PCI function, by the name of its management device (`pci/0000:01:00.0`); None: it is none, or the firmware
/// does not say.
pub(crate) fn node_of_function(mgmtdev: &str) -> Option<usize> {
    let address = mgmtdev.strip_prefix("pci/")?;
    // An address has no path in it.
    if address.contains('/') {
        return None;
    }
    fs::read_to_string(format!("/sys/bus/pci/devices/{address}/numa_node")).ok()?.trim().parse().ok()
}

/// The folders `NAMEN` of a directory, with their numbers.
fn numbered(folder: &Path, name: &str) -> Vec<(usize, std::path::PathBuf)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let number = entry.file_name().to_str()?.strip_prefix(name)?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_and_nodes_are_read_and_what_is_not_told_is_apart() {
        let dir = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = dir.path().join("sys/devices/system").join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("cpu/cpu1/topology/thread_siblings_list", "1,5\n");
        write("cpu/cpu5/topology/thread_siblings_list", "1,5\n");
        write("cpu/cpu2/topology/thread_siblings_list", "2\n");
        write("cpu/cpufreq/x", "");
        write("node/node1/cpulist", "4-5\n");
        let topology = Topology::below(dir.path());
        assert_eq!((topology.siblings(1), topology.siblings(5)), (&[5][..], &[1][..]));
        assert!(topology.siblings(2).is_empty() && topology.siblings(9).is_empty());
        assert_eq!((topology.node(4), topology.node(0)), (Some(1), None));
        assert_eq!(Topology::below(Path::new("/nonexistent")), Topology::default());
    }
}
