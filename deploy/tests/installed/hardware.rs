//! A function of hardware under the unit: its drop-in and the rule for its group are all that the daemon's user needs.

use ringway_lab::debian::{FUNCTIONS, Machine};
use ringway_lab::ensure;
use ringway_lab::error::Result;

use crate::{AGAIN, SHARE, UNIT_D, exposed, served};

/// The host reaches a guest by a function that is bound to vfio-pci, from the other one on its wire; again after the daemon was killed.
pub(crate) fn serve(machine: &mut Machine<'_>) -> Result<()> {
    let [wire, function] = FUNCTIONS;
    let mgmtdev = format!("pci/{function}");
    // As docs/hardware.md has it.
    machine.well(&format!("cd /sys/bus/pci/devices/{function} && echo {function} > driver/unbind && echo vfio-pci > driver_override && echo {function} > /sys/bus/pci/drivers_probe && test $(basename $(readlink driver)) = vfio-pci"))?;
    let add = format!("ringway dev add name vm0 mgmtdev {mgmtdev}");
    machine.within("an error that names the drop-in", |machine| {
        let (code, said) = machine.shell(&add)?;
        ensure!(code != 0, "a function without its drop-in: {said}");
        Ok(said.contains("drop-in vfio.conf"))
    })?;

    machine.well(&format!("mkdir -p {UNIT_D} && ln -s {SHARE}/vfio.conf {UNIT_D}/ && ln -s /usr/share/ringway/60-ringway-vfio.rules /etc/udev/rules.d/"))?;
    machine.well("udevadm control --reload && udevadm trigger --subsystem-match=vfio --settle")?;
    machine.well("systemctl daemon-reload && systemctl restart ringwayd")?;
    let group = machine.well(&format!("basename $(readlink /sys/bus/pci/devices/{function}/iommu_group)"))?;
    machine.well(&format!("stat -c '%a %U %G' /dev/vfio/{group} | grep -x '660 root ringway'"))?;
    machine.well("grep -x 'CapEff:\t0000000000000000' /proc/$(pidof ringwayd)/status")?;
    exposed(machine, 1.1)?;
    is_shown(machine, &mgmtdev)?;
    let interface = machine.well(&format!("ls /sys/bus/pci/devices/{wire}/virtio*/net"))?;
    served::host_reaches_a_guest(machine, &interface, &mgmtdev)?;

    // Its user may lock as much as a guest has, and nothing of the function is held when it is killed.
    machine.well("grep -E '^Max locked memory +unlimited +unlimited' /proc/$(pidof ringwayd)/limits")?;
    machine.well("ringway dev add name vm0 mgmtdev sim/net && pidof ringwayd > /packages/pid; kill -9 $(pidof ringwayd)")?;
    machine.well(AGAIN)?;
    is_shown(machine, &mgmtdev)?;
    served::host_reaches_a_guest(machine, &interface, &mgmtdev)
}

/// The daemon has found the function, which it does some two seconds later.
fn is_shown(machine: &mut Machine<'_>, mgmtdev: &str) -> Result<()> {
    machine.within(mgmtdev, |machine| Ok(machine.shell(&format!("ringway mgmtdev show {mgmtdev}"))?.0 == 0))
}
