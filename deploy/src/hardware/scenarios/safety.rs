//! What a guest's memory is safe from, and what is done with it.

use super::{HERE, NEIGHBOUR, PULSE_MS, THERE, virtual_functions_of_virtio};
use crate::ensure;
use crate::error::Result;
use crate::hardware::{Front, IGB, Machine, VIRTIO, VIRTIO_VFS};

/// What a clean log of the kernel's is worth: a function that is led astray is in it.
pub(super) fn led_astray(machine: &mut Machine<'_>) -> Result<()> {
    machine.pf_up(IGB)?;
    machine.give_to_vfio(VIRTIO)?;
    machine.lead_astray()?;
    let log = machine.kernel_log()?;
    machine.step("the kernel's log names the function, and no other", |_| log.faults_only_of(VIRTIO))
}

/// Two guests on virtual functions of one function: what one of them does, or what becomes of it, is nothing to the other.
pub(super) fn neighbours(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    virtual_functions_of_virtio(machine)?;
    for function in VIRTIO_VFS {
        machine.give_to_vfio(function)?;
    }
    machine.start_ringwayd()?;
    let guests = [("vm0", VIRTIO_VFS[0], THERE), ("vm1", VIRTIO_VFS[1], NEIGHBOUR)];
    for (device, function, address) in guests {
        let mgmtdev = machine.function_is_shown(function)?;
        machine.ringway(&["dev", "add", "name", device, "mgmtdev", &mgmtdev])?;
        machine.start_front(&Front::new(device).of(address))?;
        machine.linux().start_pulse(address, PULSE_MS)?;
        machine.pulse_goes_on(address)?;
    }

    machine.forget_references()?;
    machine.pulse_goes_on(THERE)?;
    machine.pulse_goes_on(NEIGHBOUR)?;
    let touched = machine.referenced()?;
    machine.say(format_args!("  of the guests' payload ringwayd has touched {touched:?} KiB"));
    ensure!(touched == [0, 0], "ringwayd has touched payload of guests that are relayed: {touched:?} KiB");

    machine.freeze_front("vm0")?;
    machine.pulse_stands(THERE)?;
    machine.pulse_goes_on(NEIGHBOUR)?;
    machine.ringway(&["dev", "show", "vm0"])?;
    machine.thaw_front("vm0")?;
    machine.pulse_goes_on(THERE)?;

    for (_, _, address) in guests {
        machine.linux().stop_pulse(address)?;
    }
    let received = machine.nothing_more_comes(&pf)?;
    machine.tell_front("vm0", "stray")?;
    machine.fault_is_counted("vm0", "unmapped")?;
    let after = machine.nothing_more_comes(&pf)?;
    ensure!(after == received, "{} frames came of an address that the guest does not have", after - received);
    machine.linux().start_pulse(NEIGHBOUR, PULSE_MS)?;
    machine.pulse_goes_on(NEIGHBOUR)?;
    machine.linux().stop_pulse(NEIGHBOUR)?;

    for (device, ..) in guests {
        machine.kill_front(device)?;
        machine.ringway(&["dev", "del", device])?;
    }
    copied(machine)?;
    machine.stop_ringwayd()
}

/// Two guests whose rings are in hardware: an address that is not in the memory of one of them is stopped by the IOMMU, which says
/// whose function it was, and the other goes on.
pub(super) fn astray_in_hardware(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    virtual_functions_of_virtio(machine)?;
    machine.start_ringwayd()?;
    let guests = [("vm0", VIRTIO_VFS[0], THERE), ("vm1", VIRTIO_VFS[1], NEIGHBOUR)];
    for (device, function, address) in guests {
        machine.give_to_vfio(function)?;
        let mgmtdev = machine.function_is_shown(function)?;
        machine.ringway(&["dev", "add", "name", device, "mgmtdev", &mgmtdev, "datapath", "hardware"])?;
        machine.start_front(&Front::new(device).of(address))?;
        machine.data_path_is(device, "hardware")?;
        machine.linux().start_pulse(address, PULSE_MS)?;
        machine.pulse_goes_on(address)?;
    }
    for (_, _, address) in guests {
        machine.linux().stop_pulse(address)?;
    }
    let received = machine.nothing_more_comes(&pf)?;
    machine.tell_front("vm0", "stray")?;
    let after = machine.nothing_more_comes(&pf)?;
    // QEMU's function sends a frame in place of what it may not read.
    ensure!(after - received <= 1, "{} frames came of one address", after - received);
    let log = machine.kernel_log()?;
    machine.say(log.end());
    machine
        .step("the kernel's log names the function, and no other", |_| log.faults_only_of(VIRTIO_VFS[0]))?;
    for (device, _, address) in guests {
        // The other, and mostly its own guest, too, as if nothing had been.
        machine.linux().start_pulse(address, PULSE_MS)?;
        machine.pulse_goes_on(address)?;
        machine.linux().stop_pulse(address)?;
        machine.stop_front(device)?;
        machine.ringway(&["dev", "del", device])?;
    }
    machine.stop_ringwayd()
}

/// The positive control: of two guests on a link the payload is copied, and that is seen.
fn copied(machine: &mut Machine<'_>) -> Result<()> {
    for (device, address) in [("vm0", THERE), ("vm1", NEIGHBOUR)] {
        machine.ringway(&["dev", "add", "name", device, "mgmtdev", "link/wire"])?;
        machine.start_front(&Front::new(device).of(address))?;
    }
    machine.forget_references()?;
    machine.tell_front("vm0", &format!("ask {NEIGHBOUR}"))?;
    machine.step("a link's copies are seen", |machine| machine.payload_is_touched())?;
    for device in ["vm0", "vm1"] {
        machine.kill_front(device)?;
        machine.ringway(&["dev", "del", device])?;
    }
    Ok(())
}
