//! Disks on an NVMe controller and its virtual functions.

use super::CONFLICT;
use crate::ensure;
use crate::error::Result;
use crate::hardware::{Machine, NVME, NVME_VFS};

/// The controller itself: two guests, each on queue pairs of its own, under load; the controller is reset, one function is taken away.
pub(super) fn queue_pairs(machine: &mut Machine<'_>) -> Result<()> {
    machine.give_to_vfio(NVME)?;
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(NVME)?;
    for (device, number, pairs) in [("vm0", 1, 1), ("vm1", 2, 2)] {
        let function = machine.nvme_port(&mgmtdev, number, number, pairs)?;
        machine.ringway(&["dev", "add", "name", device, "mgmtdev", &function])?;
        machine.start_disk(device, number == 1)?;
    }
    let words = ["dev", "add", "name", "vm2", "mgmtdev", &mgmtdev, "namespace", "1"];
    machine.refused(&words, CONFLICT, "device vm0")?;
    machine.step("somebody resets the controller", |machine| {
        machine.sh(&format!("echo 1 > /sys/bus/pci/devices/{NVME}/reset")).map(|_| ())
    })?;
    for device in ["vm0", "vm1"] {
        machine.disk_goes_on(device, 100)?;
        machine.tell_front(device, "check")?;
    }
    let shown = machine.ringway(&["mgmtdev", "show", &mgmtdev])?;
    let counted = |name: &str| shown.lines().find(|line| line.contains(name)).unwrap_or_default().trim();
    machine.say(format_args!("{}, {}", counted("controller_resets"), counted("aborts")));
    ensure!(counted("controller_resets") == "setting controller_resets 1", "{shown}");
    machine.ringway(&["port", "del", &format!("{mgmtdev}/1")])?;
    machine.disk_has_ended("vm0")?;
    machine.disk_goes_on("vm1", 100)?;
    // What the first wrote is another's, who has the namespace now as the controller's own.
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.ringway(&["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev, "namespace", "1"])?;
    machine.start_disk("vm0", false)?;
    for device in ["vm0", "vm1"] {
        machine.stop_front(device)?;
        machine.ringway(&["dev", "del", device])?;
    }
    machine.stop_ringwayd()
}

/// Virtual functions: a disk on queue pairs of one, while the other is led astray, which the IOMMU stops; then both are taken away
/// under load, and come back.
pub(super) fn virtual_functions(machine: &mut Machine<'_>) -> Result<()> {
    machine.nvme_vfs_online()?;
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(NVME_VFS[0])?;
    machine.function_is_shown(NVME_VFS[1])?;
    let function = machine.nvme_port(&mgmtdev, 1, 1, 1)?;
    machine.ringway(&["dev", "add", "name", "vm0", "mgmtdev", &function])?;
    machine.start_disk("vm0", true)?;
    let log = machine.kernel_log()?;
    machine.step("the kernel's log is clean", |_| log.clean())?;

    machine.lead_controller_astray(NVME_VFS[1])?;
    let log = machine.kernel_log()?;
    machine.step("the kernel's log names the function, and no other", |_| log.faults_only_of(NVME_VFS[1]))?;
    machine.disk_goes_on("vm0", 50)?;
    machine.tell_front("vm0", "check")?;

    machine.remove_vfs(NVME)?;
    for function in NVME_VFS {
        machine.function_is_gone(function)?;
    }
    machine.disk_has_ended("vm0")?;
    machine.nvme_vfs_online()?;
    machine.function_is_shown(NVME_VFS[0])?;
    machine.start_disk("vm0", false)?;
    machine.stop_front("vm0")?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.stop_ringwayd()?;
    machine.remove_vfs(NVME)
}
