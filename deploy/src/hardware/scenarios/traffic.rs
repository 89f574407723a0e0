//! What happens to a function while traffic goes through it.

use super::{HERE, NOT_FOUND, PULSE_MS, THERE, VIRTIO_MAC, virtual_functions_of_virtio};
use crate::ensure;
use crate::error::Result;
use crate::hardware::programs::RINGWAY;
use crate::hardware::{Front, IGB, Machine, VIRTIO, VIRTIO_VFS};

/// `dev del` under traffic answers soon, before the host has reset and closed the function, and leaves nothing behind.
pub(super) fn removed(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    machine.give_to_vfio(VIRTIO)?;
    let group = machine.group_of_its_own(VIRTIO)?;
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(VIRTIO)?;
    let (mut before, mut was_first) = (None, false);
    for memory_mib in [0, 512, 0] {
        machine.ringway(&["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev])?;
        machine.start_front(&Front { memory_mib, packed: true, ..Front::new("vm0") })?;
        machine.linux().start_pulse(THERE, PULSE_MS)?;
        machine.pulse_goes_on(THERE)?;
        was_first |= machine.remove("vm0", group)?;
        machine.pulse_stands(THERE)?;
        machine.linux().stop_pulse(THERE)?;
        machine.kill_front("vm0")?;
        match before {
            // What a first use leaves for the next ones is there from now on.
            None => before = Some(machine.holdings()?),
            Some(before) => machine.holds_again(before)?,
        }
    }
    ensure!(was_first, "no answer of dev del was seen before the group was open again");
    // Removed under traffic and made anew in one go, while its front-end only waits to come back: that is there before the host has
    // closed the function, and is served once that is done.
    machine.ringway(&["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev])?;
    machine.start_front(&Front { memory_mib: 512, reconnect: true, ..Front::new("vm0") })?;
    machine.linux().start_pulse(THERE, PULSE_MS)?;
    let line = format!("printf 'dev del vm0\\ndev add name vm0 mgmtdev {mgmtdev}\\n' | {RINGWAY} -b -");
    machine.pulse_goes_on(THERE)?;
    for _ in 0..10 {
        machine.step("vm0 removed, and made anew at once", |machine| machine.sh(&line).map(drop))?;
        machine.pulse_goes_on(THERE)?;
    }
    machine.linux().stop_pulse(THERE)?;
    machine.kill_front("vm0")?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.stop_ringwayd()
}

/// Links go down and come up, on either side, and the front-end is killed: the pulse goes on each time, and nothing is left.
pub(super) fn disturbed(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    machine.give_to_vfio(VIRTIO)?;
    let group = machine.group_of_its_own(VIRTIO)?;
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(VIRTIO)?;
    let words = ["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev];
    machine.ringway(&words)?;
    machine.start_front(&Front::new("vm0"))?;
    machine.linux().start_pulse(THERE, PULSE_MS)?;
    machine.pulse_goes_on(THERE)?;
    let before = machine.holdings()?;

    machine.step("the other side's link goes down", |machine| machine.linux().link_down(&pf))?;
    machine.pulse_stands(THERE)?;
    machine.step("and up", |machine| machine.linux().set_up(&pf))?;
    machine.pulse_goes_on(THERE)?;

    // Nobody sends meanwhile: QEMU's function, driven with packed rings, does not survive a frame that it has to throw away for want
    // of a link ("Virtqueue size exceeded").
    machine.linux().stop_pulse(THERE)?;
    machine.set_cable(1, false)?;
    machine.device_link("vm0", "down")?;
    machine.set_cable(1, true)?;
    machine.device_link("vm0", "up")?;
    machine.linux().start_pulse(THERE, PULSE_MS)?;
    machine.pulse_goes_on(THERE)?;

    machine.kill_front("vm0")?;
    machine.pulse_stands(THERE)?;
    machine.start_front(&Front::new("vm0"))?;
    machine.pulse_goes_on(THERE)?;
    machine.holds_again(before)?;

    machine.linux().stop_pulse(THERE)?;
    machine.stop_front("vm0")?;
    machine.remove("vm0", group)?;
    machine.stop_ringwayd()
}

/// The function is pulled out of its slot under traffic, and another one put in.
pub(super) fn unplugged(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    machine.give_to_vfio(VIRTIO)?;
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(VIRTIO)?;
    let words = ["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev];
    machine.ringway(&words)?;
    machine.start_front(&Front::new("vm0"))?;
    machine.linux().start_pulse(THERE, PULSE_MS)?;
    machine.pulse_goes_on(THERE)?;
    machine.unplug_function()?;
    machine.pulse_stands(THERE)?;
    machine.function_is_gone(VIRTIO)?;
    machine.refused(&["dev", "add", "name", "vm1", "mgmtdev", &mgmtdev], NOT_FOUND, VIRTIO)?;
    machine.kill_front("vm0")?;
    machine.plug_function(None)?;
    machine.give_to_vfio(VIRTIO)?;
    machine.function_is_shown(VIRTIO)?;
    machine.start_front(&Front::new("vm0"))?;
    machine.pulse_goes_on(THERE)?;
    machine.linux().stop_pulse(THERE)?;
    machine.stop_front("vm0")?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.stop_ringwayd()
}

/// Somebody resets the function under traffic, relayed and in hardware: it begins anew, and its guest goes on.
pub(super) fn reset(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    machine.start_ringwayd()?;
    for path in ["relay", "hardware"] {
        served(machine, path)?;
        machine.step("somebody resets the function", |machine| {
            machine.sh(&format!("echo 1 > /sys/bus/pci/devices/{VIRTIO}/reset")).map(|_| ())
        })?;
        machine.pulse_goes_on(THERE)?;
        machine.data_path_is("vm0", "relay")?;
        machine.linux().stop_pulse(THERE)?;
        machine.stop_front("vm0")?;
        machine.ringway(&["dev", "del", "vm0"])?;
    }
    machine.stop_ringwayd()
}

/// A guest on the function, served so, whose pulse is answered.
fn served(machine: &mut Machine<'_>, path: &str) -> Result<String> {
    machine.give_to_vfio(VIRTIO)?;
    let mgmtdev = machine.function_is_shown(VIRTIO)?;
    machine.ringway(&["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev, "datapath", path])?;
    machine.start_front(&Front::new("vm0"))?;
    machine.data_path_is("vm0", path)?;
    machine.linux().start_pulse(THERE, PULSE_MS)?;
    machine.pulse_goes_on(THERE)?;
    Ok(mgmtdev)
}

/// The host takes its virtual functions back while a guest uses one, and makes fewer.
pub(super) fn taken(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    virtual_functions_of_virtio(machine)?;
    machine.give_to_vfio(VIRTIO_VFS[0])?;
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(VIRTIO_VFS[0])?;
    machine.ringway(&["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev, "mac", VIRTIO_MAC])?;
    machine.start_front(&Front::new("vm0"))?;
    machine.linux().start_pulse(THERE, PULSE_MS)?;
    machine.pulse_goes_on(THERE)?;
    machine.give_to_vfio(VIRTIO_VFS[1])?;
    let other = machine.function_is_shown(VIRTIO_VFS[1])?;
    machine.ringway(&["dev", "add", "name", "vm1", "mgmtdev", &other])?;
    // Linux lets nobody change how many there are but to none.
    let changed = machine.sh(&format!("echo 1 > /sys/bus/pci/devices/{VIRTIO}/sriov_numvfs"));
    ensure!(changed.is_err(), "one of two virtual functions was taken away");
    machine.pulse_goes_on(THERE)?;
    machine.remove_vfs(VIRTIO)?;
    machine.pulse_stands(THERE)?;
    machine.linux().stop_pulse(THERE)?;
    for function in VIRTIO_VFS {
        machine.function_is_gone(function)?;
    }
    machine.refused(&["dev", "add", "name", "vm2", "mgmtdev", &mgmtdev], NOT_FOUND, VIRTIO_VFS[0])?;
    machine.kill_front("vm0")?;
    machine.make_vfs(VIRTIO, 1, &VIRTIO_VFS)?;
    machine.give_to_vfio(VIRTIO_VFS[0])?;
    machine.function_is_shown(VIRTIO_VFS[0])?;
    machine.start_front(&Front::new("vm0"))?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    let left = machine.ringway(&["dev", "show"])?;
    ensure!(
        left.contains(&format!("vm1: not made: {other} is gone")) && left.contains("vm0: type"),
        "{left}"
    );
    machine.say(left.trim());
    machine.stop_front("vm0")?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.ringway(&["dev", "del", "vm1"])?;
    machine.stop_ringwayd()
}
