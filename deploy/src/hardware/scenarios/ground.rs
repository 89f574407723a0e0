//! The machine itself, before anything of Ringway is on it, and Ringway without hardware.

use std::net::{IpAddr, Ipv4Addr};

use super::{HERE, THERE, virtual_functions_of_virtio};
use crate::ensure;
use crate::error::Result;
use crate::hardware::{Answerer, Echoer, Front, IGB, IGB_VFS, Machine, VIRTIO, VIRTIO_VFS};

pub(super) fn ground(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.make_vfs(IGB, IGB_VFS.len(), &IGB_VFS)?;
    for (number, mac) in IGB_VF_MACS.iter().enumerate() {
        machine.set_vf_mac(&pf, number, mac)?;
    }
    machine.link_is_back(&pf)?;
    linux_answers_linux(machine, &pf, VIRTIO)?;
    let functions = [IGB_VFS[0], IGB_VFS[1], VIRTIO];
    bound_and_unbound(machine, &functions)?;
    machine.give_to_linux(VIRTIO, "virtio-pci")?;
    machine.interface_of(VIRTIO).map(|_| ())
}

pub(super) fn virtio_vf_ground(machine: &mut Machine<'_>) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    virtual_functions_of_virtio(machine)?;
    machine.give_to_linux(VIRTIO_VFS[0], "virtio-pci")?;
    linux_answers_linux(machine, &pf, VIRTIO_VFS[0])?;
    bound_and_unbound(machine, &VIRTIO_VFS)?;
    machine.remove_vfs(VIRTIO)
}

/// Every function has a group of its own, can be given to vfio-pci, and taken from it.
fn bound_and_unbound(machine: &mut Machine<'_>, functions: &[&str]) -> Result<()> {
    let mut groups = Vec::new();
    for function in functions {
        groups.push(machine.group_of_its_own(function)?);
        machine.give_to_vfio(function)?;
    }
    groups.dedup();
    ensure!(groups.len() == functions.len(), "functions share groups: {groups:?}");
    for function in functions {
        machine.take_from_vfio(function)?;
    }
    Ok(())
}

/// Linux's own drivers on both sides of the wire: when this fails, look at the machine first.
fn linux_answers_linux(machine: &mut Machine<'_>, pf: &str, function: &str) -> Result<()> {
    let other = machine.interface_of(function)?;
    machine.step(&format!("{other} of {function} is in a namespace of its own, up"), |machine| {
        machine.ip("netns add other")?;
        machine.ip(&format!("link set {other} netns other"))?;
        machine.ip(&format!("-n other address add {THERE}/24 dev {other}"))?;
        machine.ip(&format!("-n other link set {other} up")).map(|_| ())
    })?;
    machine.set_address(pf, &format!("{HERE}/24"))?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.step("the namespace is gone", |machine| {
        machine.ip(&format!("-n other link set {other} netns 1"))?;
        machine.ip("netns delete other").map(|_| ())
    })
}

pub(super) fn tap(machine: &mut Machine<'_>) -> Result<()> {
    machine.start_ringwayd()?;
    for packed in [false, true] {
        machine.ringway(&["dev", "add", "name", "vm0", "mgmtdev", "tap/rwt0", "mtu", "9000"])?;
        let who = if packed {
            Answerer::Testpmd(Echoer::new("vm0", true))
        } else {
            Answerer::Front(Front::new("vm0").jumbo())
        };
        machine.start_answerer(&who)?;
        machine.set_address("rwt0", &format!("{HERE}/24"))?;
        machine.ip("link set rwt0 up")?;
        machine.link_is_back("rwt0")?;
        machine.pings_of_all_sizes(THERE, 1500)?;
        machine.pings_of_all_sizes(THERE, 9000)?;
        machine.make_vlan("rwt0", 7, "10.9.7.1/24")?;
        machine.pings_of_all_sizes(IpAddr::V4(Ipv4Addr::new(10, 9, 7, 2)), 1500)?;
        machine.stop_answerer(&who)?;
        machine.ringway(&["dev", "del", "vm0"])?;
    }
    machine.stop_ringwayd()
}

pub(super) const IGB_VF_MACS: [&str; 2] = ["52:54:00:00:01:01", "52:54:00:00:01:02"];
