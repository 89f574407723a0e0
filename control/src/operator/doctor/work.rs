//! What else the kernel does on the workers' cores: interrupts, workqueues, received packets.

use super::cores::cores_text;
use super::files::{ONLINE, mask_text};
use super::{Check, Finding, Found, Look, ranges};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "irq",
        why: "an interrupt takes the core from its worker for microseconds, and brings softirqs with it",
        look: interrupts,
    },
    Check {
        name: "workqueue",
        why: "the kernel runs what is queued for any core on a worker's: it waits for the worker, and the worker for it",
        look: workqueues,
    },
    Check {
        name: "rps",
        why: "received packets of the host's own network are worked on on a worker's core, in softirqs",
        look: received,
    },
];

/// The cores that run, without the workers'.
fn rest(look: &Look<'_>) -> Result<Vec<usize>, String> {
    let online = look.host.cores(ONLINE)?;
    Ok(online.into_iter().filter(|core| !look.cores.contains(core)).collect())
}

/// Those of `cores` that are workers'.
fn hit(look: &Look<'_>, cores: &[usize]) -> Vec<usize> {
    look.cores.iter().copied().filter(|core| cores.contains(core)).collect()
}

fn interrupts(look: &Look<'_>) -> Found {
    let (mut landing, mut count) = (Vec::new(), 0);
    for irq in look.host.names("/proc/irq")? {
        let folder = format!("/proc/irq/{irq}");
        if irq.parse::<u32>().is_err() {
            continue;
        }
        // Whoever handles it has a folder there; without one nobody does.
        let handlers: Vec<String> = look.host.names(&folder).unwrap_or_default();
        let handlers: Vec<String> =
            handlers.into_iter().filter(|name| look.host.is_dir(&format!("{folder}/{name}"))).collect();
        if handlers.is_empty() {
            continue;
        }
        count += 1;
        // Where it goes; a kernel that does not tell sends it to any that it may.
        let effective = look.host.cores(&format!("{folder}/effective_affinity_list")).ok();
        let goes = match effective.filter(|cores| !cores.is_empty()) {
            Some(cores) => cores,
            None => look.host.cores(&format!("{folder}/smp_affinity_list"))?,
        };
        let hit = hit(look, &goes);
        if !hit.is_empty() {
            landing.push(format!("{irq} ({}): {}", handlers.join(", "), cores_text(&hit)));
        }
    }
    if landing.is_empty() {
        return Ok(Finding::ok(format!("none of {count} interrupts goes to a worker's core")));
    }
    let rest = ranges(&rest(look)?);
    Ok(Finding::warning(
        format!("{} of {count} interrupts go to workers' cores", landing.len()),
        format!(
            "echo {rest} > /proc/irq/N/smp_affinity_list for each; at the start: irqaffinity={rest} on the kernel's command line; \
             irqbalance: IRQBALANCE_BANNED_CPULIST={}. One that refuses (EIO) is managed by its driver: isolcpus=managed_irq,{0}",
            ranges(look.cores)
        ),
    )
    .of(landing))
}

fn workqueues(look: &Look<'_>) -> Found {
    const FOLDER: &str = "/sys/devices/virtual/workqueue";
    let mut landing = Vec::new();
    let all = hit(look, &look.host.mask(&format!("{FOLDER}/cpumask"))?);
    if !all.is_empty() {
        landing.push(format!("{FOLDER}/cpumask, of all unbound queues: {}", cores_text(&all)));
    }
    for name in look.host.names(FOLDER)? {
        // Narrowed by the mask of all; what is not bound to one has no file.
        let path = format!("{FOLDER}/{name}/cpumask");
        if let Ok(mask) = look.host.mask(&path) {
            let hit: Vec<usize> = hit(look, &mask).into_iter().filter(|core| all.contains(core)).collect();
            if !hit.is_empty() {
                landing.push(format!("{path}: {}", cores_text(&hit)));
            }
        }
    }
    if landing.is_empty() {
        return Ok(Finding::ok("no unbound workqueue may use a worker's core"));
    }
    let mask = mask_text(&rest(look)?);
    Ok(Finding::warning(
        format!("unbound workqueues may use {}", cores_text(&all)),
        format!(
            "echo {mask} > {FOLDER}/cpumask (from each boot on: Environment=MASK={mask} by systemctl edit ringway-workqueue.service, which \
             the package has, then systemctl enable ringway-workqueue.service and systemctl restart ringway-workqueue.service); what is \
             bound to every core stays, and has its time there"
        ),
    )
    .of(landing))
}

fn received(look: &Look<'_>) -> Found {
    const FOLDER: &str = "/sys/class/net";
    let mut landing = Vec::new();
    for name in look.host.names(FOLDER)? {
        let queues = format!("{FOLDER}/{name}/queues");
        for queue in look.host.names(&queues).unwrap_or_default() {
            let path = format!("{queues}/{queue}/rps_cpus");
            let Some(text) = look.host.text_if_there(&path)? else { continue };
            let mask =
                super::files::mask_of(&text).ok_or_else(|| format!("{path} is no mask of cores: {text}"))?;
            let hit = hit(look, &mask);
            if !hit.is_empty() {
                landing.push(format!("{path}: {}", cores_text(&hit)));
            }
        }
    }
    if landing.is_empty() {
        return Ok(Finding::ok("no received packets are steered to a worker's core"));
    }
    let mask = mask_text(&rest(look)?);
    let cure = format!(
        "echo {mask} > each of these, or 0 for none; net.core.rps_default_mask for interfaces to come"
    );
    Ok(Finding::warning("received packets are steered to workers' cores", cure).of(landing))
}
