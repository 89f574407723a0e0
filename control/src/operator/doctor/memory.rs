//! Memory: hugepages, and how much of what the process may have.

use super::cores::nodes;
use super::{Check, Finding, Found, Look};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "hugepages",
        why: "rings and buffers of our own stand on ordinary pages: more misses of the TLB, and more to pin for functions. Guests' memory \
              is their VMM's to place",
        look: hugepages,
    },
    Check {
        name: "memlock",
        why: "a function reaches memory that is pinned: ours, and all of each guest that uses one. Beyond the limit such a guest is refused",
        look: memlock,
    },
    Check {
        name: "nofile",
        why: "each queue in service takes descriptors: beyond the limit front-ends are refused, by name",
        look: nofile,
    },
];

fn hugepages(look: &Look<'_>) -> Found {
    let mut free = Vec::new();
    let nodes = nodes(look.host).unwrap_or_default();
    let used = nodes.iter().filter(|(_, cores)| look.cores.iter().any(|core| cores.contains(core)));
    let folders: Vec<(String, String)> = match nodes.is_empty() {
        true => vec![("the host".to_owned(), "/sys/kernel/mm/hugepages".to_owned())],
        false => used
            .map(|(node, _)| {
                (format!("node {node}"), format!("/sys/devices/system/node/node{node}/hugepages"))
            })
            .collect(),
    };
    let mut lacking = Vec::new();
    for (place, folder) in folders {
        let mut some = false;
        for size in look.host.names(&folder)? {
            let Some(kib) = size.strip_prefix("hugepages-").and_then(|size| size.strip_suffix("kB")) else {
                continue;
            };
            let count = look.host.number(&format!("{folder}/{size}/free_hugepages"))?;
            let of = look.host.number(&format!("{folder}/{size}/nr_hugepages"))?;
            some |= count > 0;
            if of > 0 {
                let mib = kib.parse::<u64>().unwrap_or(0) / 1024;
                free.push(format!("{place}: {count} of {of} pages of {mib} MiB are free"));
            }
        }
        if !some {
            lacking.push(place);
        }
    }
    if lacking.is_empty() {
        return Ok(Finding::ok(free.join("; ")));
    }
    Ok(Finding::warning(
        format!("no hugepage is free on {}", lacking.join(" and ")),
        "echo N > /sys/devices/system/node/nodeN/hugepages/hugepages-2048kB/nr_hugepages, or hugepages=N on the kernel's command line \
         (docs: installing)",
    )
    .of(free))
}

/// The soft and the hard limit of that name; None: unlimited.
fn limit(look: &Look<'_>, name: &str) -> Result<[Option<u64>; 2], String> {
    let path =
        look.told.pid.map_or_else(|| "/proc/self/limits".to_owned(), |pid| format!("/proc/{pid}/limits"));
    let text = look.host.text(&path)?;
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .ok_or_else(|| format!("{path} has no {name}"))?;
    let mut words = line.split_whitespace();
    let mut number = || match words.next() {
        Some("unlimited") => Ok(None),
        Some(word) => word.parse().map(Some).map_err(|_| format!("{path}: {name} is no number: {word}")),
        None => Err(format!("{path}: {name} has no number")),
    };
    Ok([number()?, number()?])
}

fn memlock(look: &Look<'_>) -> Found {
    let [soft, _] = limit(look, "Max locked memory")?;
    let functions = super::functions::bound(look.host)?;
    let Some(bytes) = soft else { return Ok(Finding::ok("as much memory as there is may be pinned")) };
    let mib = bytes >> 20;
    if functions.is_empty() {
        return Ok(Finding::ok(format!("{mib} MiB may be pinned; no function needs any")));
    }
    if may_lock(look)? {
        return Ok(Finding::ok("CAP_IPC_LOCK: as much memory as there is may be pinned"));
    }
    Ok(Finding::warning(
        format!("{mib} MiB may be pinned, and {} functions are given to vfio-pci", functions.len()),
        "LimitMEMLOCK=infinity in the unit (its drop-in vfio.conf has it), or ulimit -l unlimited",
    ))
}

/// Whether the process has CAP_IPC_LOCK.
fn may_lock(look: &Look<'_>) -> Result<bool, String> {
    let path =
        look.told.pid.map_or_else(|| "/proc/self/status".to_owned(), |pid| format!("/proc/{pid}/status"));
    let text = look.host.text(&path)?;
    let mask = text.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap_or_default();
    let mask =
        u64::from_str_radix(mask.trim(), 16).map_err(|_| format!("{path} does not tell its capabilities"))?;
    Ok(mask >> CAP_IPC_LOCK & 1 == 1)
}

fn nofile(look: &Look<'_>) -> Found {
    // The daemon raises the first to the second.
    let [_, hard] = limit(look, "Max open files")?;
    match hard {
        Some(files) if files < FEW_FILES => Ok(Finding::warning(
            format!("{files} descriptors at most"),
            "LimitNOFILE=65536 in the unit, or ulimit -Hn 65536",
        )),
        Some(files) => Ok(Finding::ok(format!("{files} descriptors at most"))),
        None => Ok(Finding::ok("as many descriptors as there are")),
    }
}

const CAP_IPC_LOCK: u32 = 14;
/// Less than this is used up by some hundred devices.
const FEW_FILES: u64 = 4096;
