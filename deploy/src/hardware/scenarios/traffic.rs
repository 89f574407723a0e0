//! What happens to a function while traffic goes through it.

use std::time::Instant;

use super::{HERE, PULSE_MS, THERE, VIRTIO_MAC, virtual_functions_of_virtio};
use crate::error::Result;
use crate::hardware::{Echoer, IGB, Machine, VIRTIO, VIRTIO_VFS};

pub(super) fn removed(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    machine.give_to_vfio(VIRTIO)?;
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(VIRTIO)?;
    let words = ["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev, "mac", VIRTIO_MAC];
    let echoer = Echoer { mac: Some(VIRTIO_MAC.into()), ..Echoer::new("vm0", true) };
    machine.ringway(&words)?;
    machine.start_testpmd(&echoer)?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.linux().start_pulse(THERE, PULSE_MS)?;
    machine.step("a pulse is answered", |machine| {
        machine.linux().pulse_resumed(THERE, 20, Instant::now()).map(|_| ())
    })?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.step("the pulse is answered no more", |machine| {
        machine.linux().pulse_stalled(THERE)?;
        machine.linux().stop_pulse(THERE).map(|_| ())
    })?;
    machine.kill_testpmd()?;
    machine.ringway(&words)?;
    machine.start_testpmd(&echoer)?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.stop_testpmd()?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.stop_ringwayd()
}

pub(super) fn taken(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    virtual_functions_of_virtio(machine)?;
    machine.give_to_vfio(VIRTIO_VFS[0])?;
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(VIRTIO_VFS[0])?;
    machine.ringway(&["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev, "mac", VIRTIO_MAC])?;
    let echoer = Echoer { mac: Some(VIRTIO_MAC.into()), ..Echoer::new("vm0", false) };
    machine.start_testpmd(&echoer)?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.linux().start_pulse(THERE, PULSE_MS)?;
    machine.step("a pulse is answered", |machine| {
        machine.linux().pulse_resumed(THERE, 20, Instant::now()).map(|_| ())
    })?;
    machine.remove_vfs(VIRTIO)?;
    machine.step("the pulse is answered no more", |machine| {
        machine.linux().pulse_stalled(THERE)?;
        machine.linux().stop_pulse(THERE).map(|_| ())
    })?;
    machine.function_is_gone(VIRTIO_VFS[0])?;
    machine.ringway(&["dev", "show"])?;
    machine.kill_testpmd()?;
    virtual_functions_of_virtio(machine)?;
    machine.give_to_vfio(VIRTIO_VFS[0])?;
    machine.function_is_shown(VIRTIO_VFS[0])?;
    machine.start_testpmd(&echoer)?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.stop_testpmd()?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.stop_ringwayd()
}
