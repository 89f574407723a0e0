//! What an operator has not set up as it must be: a message with cause and cure, and the documented exit code.

use super::{CONFLICT, HERE, NOT_FOUND, RUNTIME, THERE, VIRTIO_MAC};
use crate::ensure;
use crate::error::Result;
use crate::hardware::{Front, IGB, Machine, VIRTIO};

/// The group of a function is another process's.
pub(super) fn busy(machine: &mut Machine<'_>) -> Result<()> {
    machine.pf_up(IGB)?;
    machine.give_to_vfio(VIRTIO)?;
    let group = machine.group_of_its_own(VIRTIO)?;
    let holder = machine.step(&format!("another process opens group {group}"), |machine| {
        let line = format!("exec 5<>/dev/vfio/{group}; echo held; exec /bin/sleep 1000");
        machine.hold(&line)
    })?;
    machine.start_ringwayd()?;
    let why = format!("is in use by process {holder} (");
    machine.log_says("ringwayd", &why)?;
    let mgmtdev = format!("pci/{VIRTIO}");
    machine.refused(&["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev], CONFLICT, &why)?;
    machine.release()?;
    machine.function_is_shown(VIRTIO)?;
    machine.stop_ringwayd()
}

/// The function has fewer interrupt vectors than it takes.
pub(super) fn few_vectors(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    machine.start_ringwayd()?;
    let mgmtdev = format!("pci/{VIRTIO}");
    let add = ["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev, "datapath", "hardware"];
    for vectors in [0, 1] {
        machine.unplug_function()?;
        machine.plug_function(Some(vectors))?;
        machine.give_to_vfio(VIRTIO)?;
        let why = format!("it has {vectors} interrupt vectors");
        machine.log_says("ringwayd", &why)?;
        machine.refused(&add, RUNTIME, &why)?;
        machine.refused(&["mgmtdev", "show", &mgmtdev], RUNTIME, &why)?;
        let shown = machine.ringway(&["mgmtdev", "show"])?;
        ensure!(shown.contains(&format!("{mgmtdev}: cannot be used: ")), "{shown}");
    }
    // Enough to be relayed, and too few for hardware.
    machine.unplug_function()?;
    machine.plug_function(Some(2))?;
    machine.give_to_vfio(VIRTIO)?;
    machine.function_is_shown(VIRTIO)?;
    machine.ringway(&add)?;
    machine.start_front(&Front::new("vm0"))?;
    machine.data_path_is("vm0", "relay")?;
    let shown = machine.ringway(&["dev", "show", "vm0"])?;
    ensure!(shown.contains("the function has fewer than 3 interrupt vectors"), "{shown}");
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.stop_front("vm0")?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.stop_ringwayd()?;
    machine.unplug_function()?;
    machine.plug_function(None)
}

/// There is no IOMMU: vfio-pci does not take a function, and Ringway says what to switch on.
pub(super) fn no_iommu(machine: &mut Machine<'_>) -> Result<()> {
    machine.start_ringwayd()?;
    let refused = machine.bind_to_vfio(VIRTIO);
    ensure!(refused.is_err(), "vfio-pci took a function without an IOMMU");
    let mgmtdev = format!("pci/{VIRTIO}");
    let cure = "it has no IOMMU group: start the kernel with intel_iommu=on";
    machine.refused(&["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev], NOT_FOUND, cure)?;
    machine.refused(&["mgmtdev", "show", &mgmtdev], NOT_FOUND, cure)?;
    machine.stop_ringwayd()
}

/// Access to the group is all that a daemon needs, with memory that it may lock.
pub(super) fn unprivileged(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    machine.give_to_linux(VIRTIO, "virtio-pci")?;
    machine.start_ringwayd()?;
    let mgmtdev = format!("pci/{VIRTIO}");
    let words = ["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev, "mac", VIRTIO_MAC];
    machine.refused(&words, NOT_FOUND, "driver_override")?;
    machine.stop_ringwayd()?;
    machine.give_to_vfio(VIRTIO)?;
    machine.start_ringwayd_unprivileged(VIRTIO, "8192")?;
    machine.function_is_shown(VIRTIO)?;
    machine.ringway(&words)?;
    machine.begin_front(&Front { memory_mib: 16, ..Front::new("vm0") })?;
    machine.log_says("ringwayd", "RLIMIT_MEMLOCK")?;
    machine.kill_front("vm0")?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.stop_ringwayd()?;
    machine.start_ringwayd_unprivileged(VIRTIO, "unlimited")?;
    machine.function_is_shown(VIRTIO)?;
    machine.ringway(&words)?;
    machine.start_front(&Front { memory_mib: 16, ..Front::new("vm0") })?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.stop_front("vm0")?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.stop_ringwayd()
}
