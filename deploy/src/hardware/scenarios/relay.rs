//! A virtio function whose guest is relayed to it: what passes, and that it goes on after either side was killed.

use std::net::{IpAddr, Ipv4Addr};

use super::{HERE, THERE};
use crate::error::Result;
use crate::hardware::{Echoer, Front, IGB, Machine};

/// Linux on the igb pings what testpmd answers through Ringway on a virtio function.
pub(super) fn relayed(machine: &mut Machine<'_>, function: &str, mac: &str) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_mtu(&pf, 9000)?;
    machine.give_to_vfio(function)?;
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(function)?;
    for packed in [false, true] {
        let words = ["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev, "mac", mac, "mtu", "9000"];
        machine.ringway(&words)?;
        machine.start_testpmd(&Echoer { mac: Some(mac.into()), ..Echoer::new("vm0", packed) })?;
        machine.set_address(&pf, &format!("{HERE}/24"))?;
        machine.pings_of_all_sizes(THERE, 1500)?;
        machine.pings_of_all_sizes(THERE, 9000)?;
        machine.make_vlan(&pf, 7, "10.9.7.1/24")?;
        machine.pings_of_all_sizes(IpAddr::V4(Ipv4Addr::new(10, 9, 7, 2)), 1500)?;
        machine.ip(&format!("link delete {pf}.7"))?;
        machine.stop_testpmd()?;
        machine.ringway(&["dev", "del", "vm0"])?;
    }
    machine.stop_ringwayd()?;
    machine.set_mtu(&pf, 1500)
}

/// A relayed function serves again after either side was killed.
pub(super) fn restarted(machine: &mut Machine<'_>, function: &str, mac: &str) -> Result<()> {
    let pf = machine.pf_up(IGB)?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    machine.give_to_vfio(function)?;
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(function)?;
    machine.ringway(&["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev, "mac", mac])?;
    let echoer = Echoer { mac: Some(mac.into()), ..Echoer::new("vm0", true) };
    machine.start_testpmd(&echoer)?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.kill_testpmd()?;
    let front = Front { packed: true, ..Front::new("vm0") };
    machine.start_front(&front)?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.kill_ringwayd()?;
    machine.kill_front("vm0")?;
    machine.start_ringwayd()?;
    // Its device waits for the function.
    machine.function_is_shown(function)?;
    machine.start_front(&front)?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.stop_front("vm0")?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.stop_ringwayd()
}
