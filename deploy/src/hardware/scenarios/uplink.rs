//! A function as a bridge's uplink: two guests behind it, and Linux beyond it.

use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use super::{CONFLICT, HERE, PULSE_MS, THERE, VIRTIO_MAC, virtual_functions_of_virtio};
use crate::ensure;
use crate::error::Result;
use crate::hardware::{Front, IGB, IGB_VFS, Machine, VIRTIO, VIRTIO_VFS};
use crate::lab::wait_for;
use crate::pace::WATCHDOG;

pub(super) fn of_function(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_mtu(&pf, 9000)?;
    machine.give_to_vfio(VIRTIO)?;
    switch(machine, &pf, VIRTIO)?;
    reaches(machine, VIRTIO)?;
    let mgmtdev = format!("pci/{VIRTIO}");
    machine.refused(
        &["dev", "add", "name", "vm9", "mgmtdev", &mgmtdev, "mac", VIRTIO_MAC],
        CONFLICT,
        "device up0",
    )?;
    machine.pings_of_all_sizes(THERE, 9000)?;
    machine.pings_of_all_sizes(ALSO_THERE, 9000)?;
    machine.make_vlan(&pf, 7, "10.9.7.1/24")?;
    knows(machine, &format!("{pf}.7"), IN_VLAN, GUESTS[1].1)?;
    machine.pings_of_all_sizes(IN_VLAN, 1500)?;
    machine.ip(&format!("link delete {pf}.7"))?;
    end(machine)?;
    machine.set_mtu(&pf, 1500)
}

pub(super) fn of_virtual_function(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    virtual_functions_of_virtio(machine)?;
    machine.give_to_vfio(VIRTIO_VFS[0])?;
    switch(machine, &pf, VIRTIO_VFS[0])?;
    reaches(machine, VIRTIO_VFS[0])?;
    machine.linux().start_pulse(THERE, PULSE_MS)?;
    machine.step("a pulse is answered", |machine| {
        machine.linux().pulse_resumed(THERE, 20, Instant::now()).map(|_| ())
    })?;
    machine.remove_vfs(VIRTIO)?;
    let before =
        machine.step("the pulse is answered no more", |machine| machine.linux().pulse_stalled(THERE))?;
    machine.function_is_gone(VIRTIO_VFS[0])?;
    let left = machine.ringway(&["dev", "show"])?;
    ensure!(left.contains("up0: not made: ") && left.contains("vm0: type network"), "{left}");
    virtual_functions_of_virtio(machine)?;
    machine.give_to_vfio(VIRTIO_VFS[0])?;
    machine.step("the pulse is answered again", |machine| {
        machine.linux().pulse_resumed(THERE, before.received + 20, Instant::now())?;
        machine.linux().stop_pulse(THERE).map(|_| ())
    })?;
    machine.pings_of_all_sizes(ALSO_THERE, 1500)?;
    end(machine)
}

pub(super) fn of_igb(machine: &mut Machine<'_>) -> Result<()> {
    let pf = super::igbvf::ground(machine)?;
    switch(machine, &pf, IGB_VFS[0])?;
    says_of_filters(machine, true)?;
    machine.step(&format!("{pf}: virtual function 0 is trusted"), |machine| {
        machine.ip(&format!("link set {pf} vf 0 trust on")).map(|_| ())
    })?;
    // Once its PF was reset it asks anew at once, and not only after half a minute.
    machine.set_mtu(&pf, 1400)?;
    machine.set_mtu(&pf, 1500)?;
    machine.device_link("up0", "up")?;
    says_of_filters(machine, false)?;
    // What it says may be of before the last reset: it serves again once both are reached.
    for to in [THERE, ALSO_THERE] {
        machine.linux().start_pulse(to, PULSE_MS)?;
        machine.pulse_goes_on(to)?;
        machine.linux().stop_pulse(to)?;
    }
    reaches(machine, IGB_VFS[0])?;
    end(machine)
}

/// Waits until the uplink says that its PF has to trust it, or says so no more.
fn says_of_filters(machine: &mut Machine<'_>, is_missing: bool) -> Result<()> {
    let what = if is_missing { "up0 says that its PF does not trust it" } else { "up0 has its filters" };
    machine.step(what, |machine| {
        wait_for("its notes", WATCHDOG, || {
            let shown = machine.ringway_json(&["dev", "show", "up0"])?;
            let says = shown["dev"]["up0"]["notes"].to_string().contains("trust on");
            Ok((says == is_missing).then_some(()))
        })
    })
}

/// A bridge with two guests and the function.
fn switch(machine: &mut Machine<'_>, pf: &str, function: &str) -> Result<()> {
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(function)?;
    for (name, mac) in GUESTS {
        // Each echoes whatever it hears, in the name of whom it was for.
        let words = [
            "dev",
            "add",
            "name",
            name,
            "mgmtdev",
            "bridge/br0",
            "mac",
            mac,
            "mtu",
            "9000",
            "spoofchk",
            "on",
        ];
        machine.ringway(&words)?;
        machine.start_front(&Front { packed: name == "vm1", ..Front::new(name).jumbo() })?;
    }
    machine.ringway(&[
        "dev",
        "add",
        "name",
        "up0",
        "mgmtdev",
        "bridge/br0",
        "uplink",
        &mgmtdev,
        "mtu",
        "9000",
    ])?;
    machine.device_link("up0", "up")?;
    machine.set_address(pf, &format!("{HERE}/24"))?;
    knows(machine, pf, THERE, GUESTS[0].1)?;
    knows(machine, pf, ALSO_THERE, GUESTS[1].1)
}

/// Linux reaches both guests.
fn reaches(machine: &mut Machine<'_>, function: &str) -> Result<()> {
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.pings_of_all_sizes(ALSO_THERE, 1500)?;
    let shown = machine.ringway(&["dev", "show", "up0"])?;
    ensure!(shown.contains(&format!("uplink pci/{function}")) && shown.contains("link up"), "{shown}");
    machine.say(shown.trim());
    let counted = machine.ringway(&["dev", "vstats", "show", "up0"])?;
    machine.say(counted.trim());
    Ok(())
}

/// Both guests would answer a question for anybody's address.
fn knows(machine: &mut Machine<'_>, interface: &str, address: IpAddr, mac: &str) -> Result<()> {
    machine.ip(&format!("neigh replace {address} lladdr {mac} nud permanent dev {interface}")).map(|_| ())
}

fn end(machine: &mut Machine<'_>) -> Result<()> {
    for (name, _) in GUESTS {
        machine.stop_front(name)?;
    }
    machine.ringway(&["mgmtdev", "del", "bridge/br0"])?;
    machine.stop_ringwayd()
}

/// Devices, and their addresses.
const GUESTS: [(&str, &str); 2] = [("vm0", "52:54:00:00:03:01"), ("vm1", "52:54:00:00:03:02")];
const ALSO_THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 0, 3));
const IN_VLAN: IpAddr = IpAddr::V4(Ipv4Addr::new(10, 9, 7, 3));
