//! Hardware: the IOMMU, groups of VFIO, and who holds them.

use std::path::Path;

use super::files::Host;
use super::{Check, Finding, Found, Look, Standing};

pub(super) const CHECKS: &[Check] = &[
    Check {
        name: "iommu",
        why: "without an IOMMU a function would reach all of the host's memory: the kernel gives it to nobody",
        look: iommu,
    },
    Check {
        name: "vfio",
        why: "a group is given to one process whole: one of its functions with a driver of the host's, or with another holder, keeps all",
        look: groups,
    },
];

const DRIVER: &str = "/sys/bus/pci/drivers/vfio-pci";

/// The functions that vfio-pci has.
pub(super) fn bound(host: &Host) -> Result<Vec<String>, String> {
    if !host.is_dir("/sys/bus") {
        return Err("/sys/bus is not there".to_owned());
    }
    if !host.is_dir(DRIVER) {
        return Ok(Vec::new());
    }
    // Among its other files, addresses have colons.
    Ok(host.names(DRIVER)?.into_iter().filter(|name| name.contains(':')).collect())
}

fn iommu(look: &Look<'_>) -> Found {
    let functions = bound(look.host)?;
    let units = look.host.names("/sys/class/iommu").unwrap_or_default();
    if !units.is_empty() {
        return Ok(Finding::ok(format!("an IOMMU is on: {}", units.join(", "))));
    }
    if functions.is_empty() {
        return Ok(Finding::ok(
            "no IOMMU is on, and no function is given to vfio-pci: only hardware needs one",
        ));
    }
    let cure =
        "intel_iommu=on or amd_iommu=on on the kernel's command line, and VT-d or AMD-Vi in the firmware";
    Ok(Finding::failure("functions are given to vfio-pci, and no IOMMU is on", cure).of(functions))
}

fn groups(look: &Look<'_>) -> Found {
    let functions = bound(look.host)?;
    if functions.is_empty() {
        return Ok(Finding::ok("no function is given to vfio-pci"));
    }
    let (mut shown, mut worst) = (Vec::new(), Standing::Ok);
    let mut cures: Vec<String> = Vec::new();
    for function in functions {
        let folder = format!("/sys/bus/pci/devices/{function}");
        let Some(group) = look.host.link(&format!("{folder}/iommu_group")) else {
            shown.push(format!("{function}: is in no group"));
            worst = Standing::Failure;
            cures.push("see iommu".to_owned());
            continue;
        };
        let mut says = format!("{function}: group {group}");
        for other in look.host.names(&format!("{folder}/iommu_group/devices")).unwrap_or_default() {
            let path = format!("/sys/bus/pci/devices/{other}");
            // A bridge between buses (class 06) keeps nobody from the group.
            let is_bridge =
                look.host.text(&format!("{path}/class")).is_ok_and(|class| class.starts_with("0x06"));
            if let Some(driver) = look.host.link(&format!("{path}/driver"))
                && driver != "vfio-pci"
                && !is_bridge
            {
                says += &format!(", with {other}, which {driver} has");
                worst = Standing::Failure;
                cures.push(format!("echo {other} > /sys/bus/pci/devices/{other}/driver/unbind"));
            }
        }
        let node = format!("/dev/vfio/{group}");
        match std::fs::metadata(look.host.path(&node)) {
            Ok(_) => {}
            Err(_) if look.host.is_own() => {
                says += &format!(", {node} is not there");
                worst = Standing::Failure;
                cures.push("modprobe vfio-pci".to_owned());
            }
            Err(_) => {}
        }
        match holders(look.host, Path::new(&node)) {
            Ok(holders) => {
                for (pid, comm) in holders {
                    if Some(pid) == look.told.pid {
                        says += ", held by this daemon";
                    } else {
                        says += &format!(", held by {comm} (pid {pid})");
                        worst = worst.max(Standing::Warning);
                        cures.push(format!("end {comm} (pid {pid}), if the function is for ringwayd"));
                    }
                }
            }
            Err(why) => says += &format!(", holders not told: {why}"),
        }
        shown.push(says);
    }
    cures.dedup();
    let cure = (!cures.is_empty()).then(|| cures.join("; "));
    let found = match worst {
        Standing::Ok => format!("{} functions are given to vfio-pci", shown.len()),
        _ => "a function cannot be taken as things are".to_owned(),
    };
    Ok(Finding { standing: worst, cure, ..Finding::ok(found) }.of(shown))
}

/// The processes that have a file open.
fn holders(host: &Host, file: &Path) -> Result<Vec<(u32, String)>, String> {
    let (mut holders, mut hidden) = (Vec::new(), 0);
    for name in host.names("/proc")? {
        let Ok(pid) = name.parse::<u32>() else { continue };
        let folder = format!("/proc/{pid}/fd");
        let Ok(descriptors) = host.names(&folder) else {
            hidden += 1;
            continue;
        };
        let has = |name: &String| host.whole_link(&format!("{folder}/{name}")).as_deref() == Some(file);
        if descriptors.iter().any(has) {
            holders.push((pid, host.text(&format!("/proc/{pid}/comm")).unwrap_or_default()));
        }
    }
    match (holders.is_empty(), hidden) {
        (true, 1..) => Err(format!("{hidden} processes of others are hidden (run it as root)")),
        _ => Ok(holders),
    }
}
