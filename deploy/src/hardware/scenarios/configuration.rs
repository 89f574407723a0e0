//! What an operator has not set up as it must be: a message with cause and cure, and the documented exit code.

use super::{HERE, NOT_FOUND, THERE, VIRTIO_MAC};
use crate::error::Result;
use crate::hardware::{Echoer, IGB, Machine, VIRTIO};

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
    machine.log_says("ringwayd", &format!("is in use by process {holder} ("))?;
    machine.release()?;
    machine.function_is_shown(VIRTIO)?;
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
    let echoer = Echoer { mac: Some(VIRTIO_MAC.into()), ..Echoer::new("vm0", false) };
    machine.start_ringwayd_unprivileged(VIRTIO, "8192")?;
    machine.function_is_shown(VIRTIO)?;
    machine.ringway(&words)?;
    machine.begin_testpmd(&echoer)?;
    machine.log_says("ringwayd", "RLIMIT_MEMLOCK")?;
    machine.kill_testpmd()?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.stop_ringwayd()?;
    machine.start_ringwayd_unprivileged(VIRTIO, "unlimited")?;
    machine.function_is_shown(VIRTIO)?;
    machine.ringway(&words)?;
    machine.start_testpmd(&echoer)?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.stop_testpmd()?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.stop_ringwayd()
}
