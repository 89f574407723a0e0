//! Which cores the workers have: whether they are theirs, and what they are worth.

use std::time::Duration;

use super::files::{Host, ONLINE};
use super::{Check, Finding, Found, Look, ranges};
use crate::devices::placement::choose_cores;
use crate::fault::Fault;
use crate::host::topology::Topology;

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "core_0",
        why: "core 0 boots the host and keeps work that no setting moves: a worker that polls there and that work hold each other up",
        look: core_0,
    },
    Check {
        name: "isolated",
        why: "where the scheduler may put other tasks on a worker's core, each takes the core from it for milliseconds",
        look: isolated,
    },
    Check {
        name: "nohz_full",
        why: "the timer's tick interrupts a worker some hundred times a second, though it is alone on its core",
        look: nohz_full,
    },
    Check {
        name: "smt",
        why: "two threads of one physical core share its execution units and caches: each is slowed down by what the other does",
        look: siblings,
    },
    Check {
        name: "numa",
        why: "memory and functions of another node are reached over the link between the nodes, at a multiple of the latency",
        look: numa,
    },
    Check {
        name: "governor",
        why: "a frequency that follows the load is low when a burst comes, and the first packets wait for it to rise",
        look: governor,
    },
    Check {
        name: "steal",
        why: "a core that the hypervisor takes away is a gap in every guest's traffic",
        look: steal,
    },
    Check {
        name: "scheduling",
        why: "nothing else runs on the core of a real-time thread that polls: the kernel's own work there waits, and with it whoever \
              waits for that anywhere on the host. Such a worker is made to rest in small steps, which costs it a twentieth",
        look: scheduling,
    },
    Check {
        name: "claimed",
        why: "two that poll one core have half of it each, in turns of milliseconds",
        look: claimed,
    },
];

/// The core that a daemon would take.
pub(super) fn default(host: &Host) -> Result<Vec<usize>, Fault> {
    let untold = |why: String| {
        Fault::not_found(format!("cannot tell which cores there are: {why}"))
            .hint("ringway doctor --cores LIST")
    };
    let status = host.text("/proc/self/status").map_err(untold)?;
    let list = status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
    let allowed = list.and_then(|list| super::files::cores_of(list.trim()));
    let allowed = allowed.ok_or_else(|| untold("/proc/self/status names none".to_owned()))?;
    choose_cores(&allowed, &[], &Topology::below(&host.path("/")))
}

fn core_0(look: &Look<'_>) -> Found {
    let online = look.host.cores(ONLINE)?;
    if !look.cores.contains(&0) {
        return Ok(Finding::ok("no worker is on core 0"));
    }
    if online.len() == 1 {
        return Ok(Finding::ok("core 0 is the only one"));
    }
    let others: Vec<usize> = online.into_iter().filter(|core| *core != 0).collect();
    Ok(Finding::warning(
        "a worker is on core 0, and there are others",
        format!(
            "ringway core add another of {}, then ringway core drain 0 and core del 0; for good: cores in the configuration file",
            ranges(&others)
        ),
    ))
}

/// The cores that the scheduler leaves alone: those of the command line, and those of cgroups.
fn kept_free(look: &Look<'_>) -> Result<Vec<usize>, String> {
    let mut free = look.host.cores("/sys/devices/system/cpu/isolated")?;
    if let Ok(of_cgroups) = look.host.cores("/sys/fs/cgroup/cpuset.cpus.isolated") {
        free.extend(of_cgroups);
    }
    Ok(free)
}

fn isolated(look: &Look<'_>) -> Found {
    let free = kept_free(look)?;
    let shared: Vec<usize> = look.cores.iter().copied().filter(|core| !free.contains(core)).collect();
    if shared.is_empty() {
        return Ok(Finding::ok(format!("cores {} are isolated", ranges(look.cores))));
    }
    let all = ranges(look.cores);
    Ok(Finding::warning(
        format!("the scheduler may put other tasks on {}", cores_text(&shared)),
        format!(
            "isolcpus=managed_irq,domain,{all} on the kernel's command line; without a reboot: a cgroup with cpuset.cpus={all} and cpuset.cpus.partition=isolated"
        ),
    ))
}

fn nohz_full(look: &Look<'_>) -> Found {
    let without = look.host.cores("/sys/devices/system/cpu/nohz_full")?;
    let ticking: Vec<usize> = look.cores.iter().copied().filter(|core| !without.contains(core)).collect();
    if ticking.is_empty() {
        return Ok(Finding::ok(format!("cores {} have no tick while one task runs", ranges(look.cores))));
    }
    let all = ranges(look.cores);
    Ok(Finding::warning(
        format!("the timer ticks on {}", cores_text(&ticking)),
        format!("nohz_full={all} rcu_nocbs={all} on the kernel's command line"),
    ))
}

fn siblings(look: &Look<'_>) -> Found {
    let free = kept_free(look).unwrap_or_default();
    let mut shared = Vec::new();
    for &core in look.cores {
        let path = format!("/sys/devices/system/cpu/cpu{core}/topology/thread_siblings_list");
        let others: Vec<usize> = look.host.cores(&path)?.into_iter().filter(|other| *other != core).collect();
        for other in others {
            if look.cores.contains(&other) {
                if core < other {
                    shared.push(format!(
                        "core {core} and core {other}, both with workers, are one physical core"
                    ));
                }
            } else if !free.contains(&other) {
                shared.push(format!(
                    "core {core} is one physical core with core {other}, on which anything may run"
                ));
            }
        }
    }
    if shared.is_empty() {
        return Ok(Finding::ok("every worker has its physical core alone, or its sibling is kept free"));
    }
    Ok(Finding::warning(
        format!("{} of the workers' physical cores are shared", shared.len()),
        "a worker for each physical core only, and its sibling kept free: echo 0 > /sys/devices/system/cpu/cpuN/online, or isolcpus= with both",
    )
    .of(shared))
}

fn numa(look: &Look<'_>) -> Found {
    let nodes = nodes(look.host)?;
    let of = |core: usize| nodes.iter().find(|(_, cores)| cores.contains(&core)).map(|(node, _)| *node);
    let mut used: Vec<usize> = look.cores.iter().filter_map(|core| of(*core)).collect();
    used.sort_unstable();
    used.dedup();
    let mut far = Vec::new();
    for function in super::functions::bound(look.host)? {
        let node = look.host.text(&format!("/sys/bus/pci/devices/{function}/numa_node")).unwrap_or_default();
        // -1: the firmware does not say.
        if let Ok(node) = node.parse::<usize>()
            && !used.contains(&node)
        {
            far.push(format!("{function} is of node {node}, where no worker is"));
        }
    }
    let shown: Vec<String> = used.iter().map(usize::to_string).collect();
    if !far.is_empty() {
        let cure = "a worker on the function's node: ringway core add N; ringway dev set name NAME core N";
        return Ok(Finding::warning("functions are of other nodes than the workers", cure).of(far));
    }
    match nodes.len() {
        0 | 1 => Ok(Finding::ok("there is one memory node")),
        count => Ok(Finding::ok(format!("workers are on node {}, of {count}", shown.join(" and ")))),
    }
}

/// Each memory node with its cores. None: the kernel knows no nodes.
pub(super) fn nodes(host: &Host) -> Result<Vec<(usize, Vec<usize>)>, String> {
    const NODES: &str = "/sys/devices/system/node";
    let mut nodes = Vec::new();
    for name in host.names(NODES)? {
        let Some(node) = name.strip_prefix("node").and_then(|number| number.parse().ok()) else { continue };
        nodes.push((node, host.cores(&format!("{NODES}/{name}/cpulist"))?));
    }
    Ok(nodes)
}

fn governor(look: &Look<'_>) -> Found {
    let mut slow = Vec::new();
    for &core in look.cores {
        let path = format!("/sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor");
        let Some(governor) = look.host.text_if_there(&path)? else {
            return Err(format!(
                "{path} is not there: the hypervisor or the firmware decides on the frequency"
            ));
        };
        if governor != "performance" {
            slow.push(format!("core {core}: {governor}"));
        }
    }
    if slow.is_empty() {
        return Ok(Finding::ok("the governor is performance"));
    }
    let cure = format!("cpupower -c {} frequency-set -g performance", ranges(look.cores));
    Ok(Finding::warning("the frequency follows the load", cure).of(slow))
}

fn steal(look: &Look<'_>) -> Found {
    let times = || -> Result<Vec<Times>, String> {
        let stat = look.host.text("/proc/stat")?;
        look.cores.iter().map(|core| Times::of(&stat, *core)).collect()
    };
    let ok = || Ok(Finding::ok("no hypervisor takes the cores away"));
    let before = times()?;
    if before.iter().all(|core| core.stolen == 0) {
        return ok();
    }
    // What it did since the host started says little of what it does.
    std::thread::sleep(STEAL_OVER);
    let now = times()?;
    let mut stolen = Vec::new();
    for ((core, before), now) in look.cores.iter().zip(before).zip(now) {
        let (lately, of) = (now.stolen.saturating_sub(before.stolen), now.all.saturating_sub(before.all));
        if lately * 1000 > STOLEN_PER_1000 * of {
            let percent = |part: u64, all: u64| part as f64 * 100.0 / all.max(1) as f64;
            stolen.push(format!(
                "core {core}: {:.1} % in the last second, {:.1} % since the host started",
                percent(lately, of),
                percent(now.stolen, now.all)
            ));
        }
    }
    if stolen.is_empty() {
        return ok();
    }
    let cure = "have the hypervisor give this machine's processors cores of their own (pinned, dedicated)";
    Ok(Finding::warning("a hypervisor takes cores away", cure).of(stolen))
}

/// What a core's time went to since the host started, in ticks.
struct Times {
    stolen: u64,
    all: u64,
}

impl Times {
    /// As `/proc/stat` has it.
    fn of(stat: &str, core: usize) -> Result<Times, String> {
        let name = format!("cpu{core}");
        let line = stat.lines().find(|line| line.split_whitespace().next() == Some(name.as_str()));
        let words = line.unwrap_or_default().split_whitespace().skip(1).take(STEAL + 1);
        let numbers: Vec<u64> = words.filter_map(|number| number.parse().ok()).collect();
        match numbers.get(STEAL) {
            Some(stolen) => Ok(Times { stolen: *stolen, all: numbers.iter().sum() }),
            None => Err(format!("/proc/stat does not tell of core {core}")),
        }
    }
}

fn scheduling(look: &Look<'_>) -> Found {
    if look.told.workers.is_empty() {
        return Ok(Finding::ok("no worker runs"));
    }
    let real_time: Vec<String> = look
        .told
        .workers
        .iter()
        .filter_map(|worker| Some((worker.core, worker.scheduling.as_deref()?)))
        .filter(|(_, policy)| ["fifo", "rr", "deadline"].contains(policy))
        .map(|(core, policy)| format!("core {core}: {policy}"))
        .collect();
    if real_time.is_empty() {
        return Ok(Finding::ok("no worker has a real-time policy"));
    }
    Ok(Finding::failure("workers have a real-time policy", crate::host::share::CURE).of(real_time))
}

fn claimed(look: &Look<'_>) -> Found {
    let mut others: Vec<String> = Vec::new();
    for worker in &look.told.workers {
        others.extend(worker.others.iter().map(|other| format!("core {}: {other}", worker.core)));
    }
    // Others than daemons of ours, and all of them where none of ours is asked: by the locks of this host.
    if look.host.is_own() {
        for &core in look.cores {
            let own = look.told.pid.and_then(|pid| i32::try_from(pid).ok());
            for (pid, other) in crate::host::claims::seen_on(core, own) {
                let of_core = format!("core {core}: ");
                let is_told =
                    |known: &String| known.starts_with(&of_core) && known.contains(&format!("(pid {pid})"));
                if !others.iter().any(is_told) {
                    others.push(format!("{of_core}{other}"));
                }
            }
        }
    }
    others.sort();
    others.dedup();
    if others.is_empty() {
        return Ok(Finding::ok("no other poller is seen on the workers' cores"));
    }
    Ok(Finding::warning(
        "others work on the workers' cores",
        "another core: ringway core add N, then ringway core drain and del; or have the other one move",
    )
    .of(others))
}

/// `core 3`, `cores 2-3`.
pub(super) fn cores_text(cores: &[usize]) -> String {
    format!("core{} {}", if cores.len() == 1 { "" } else { "s" }, ranges(cores))
}

/// Of the numbers behind `cpuN` in `/proc/stat`, from 0.
const STEAL: usize = 7;
/// More than this share of a core's time is worth a word.
const STOLEN_PER_1000: u64 = 5;
/// How long is looked at what a hypervisor takes.
const STEAL_OVER: Duration = Duration::from_secs(1);
