//! What is proved of virtual functions of the igb.

use std::net::{IpAddr, Ipv4Addr};

use super::ground::IGB_VF_MACS;
use super::{HERE, THERE};
use crate::ensure;
use crate::error::Result;
use crate::hardware::{Answerer, Echoer, Front, IGB, IGB_VFS, Machine};
use crate::lab::wait_for;
use crate::pace::WATCHDOG;

/// The PF up, with its virtual functions, of which the first is vfio-pci's; gives the PF's interface.
pub(super) fn ground(machine: &mut Machine<'_>) -> Result<String> {
    let pf = machine.pf_up(IGB)?;
    machine.make_vfs(IGB, IGB_VFS.len(), &IGB_VFS)?;
    machine.set_vf_mac(&pf, 0, IGB_VF_MACS[0])?;
    machine.link_is_back(&pf)?;
    machine.give_to_vfio(IGB_VFS[0])?;
    machine.set_address(&pf, &format!("{HERE}/24"))?;
    Ok(pf)
}

/// Linux on the PF pings what testpmd and the lab's front-end answer through Ringway on a virtual function of it.
pub(super) fn relayed(machine: &mut Machine<'_>) -> Result<()> {
    let pf = ground(machine)?;
    machine.set_mtu(&pf, 9000)?;
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(IGB_VFS[0])?;
    for packed in [false, true] {
        for mtu in ["1500", "9000"] {
            machine.ringway(&["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev, "mtu", mtu, "vlans", "7"])?;
            let who = if mtu == "1500" {
                Answerer::Front(Front { packed, ..Front::new("vm0") })
            } else {
                Answerer::Testpmd(Echoer { mac: Some(IGB_VF_MACS[0].into()), ..Echoer::new("vm0", packed) })
            };
            machine.start_answerer(&who)?;
            machine.pings_of_all_sizes(THERE, mtu.parse().unwrap_or(1500))?;
            machine.make_vlan(&pf, 7, "10.9.7.1/24")?;
            machine.pings_of_all_sizes(IpAddr::V4(Ipv4Addr::new(10, 9, 7, 2)), 1500)?;
            machine.ip(&format!("link delete {pf}.7"))?;
            machine.stop_answerer(&who)?;
            machine.ringway(&["dev", "del", "vm0"])?;
        }
    }
    machine.stop_ringwayd()?;
    machine.set_mtu(&pf, 1500)
}

/// The PF goes down and comes up, resets itself, and has its virtual functions taken away: the guest goes on each time.
pub(super) fn pf(machine: &mut Machine<'_>) -> Result<()> {
    let pf = ground(machine)?;
    machine.start_ringwayd()?;
    let mgmtdev = machine.function_is_shown(IGB_VFS[0])?;
    machine.ringway(&["dev", "add", "name", "vm0", "mgmtdev", &mgmtdev])?;
    machine.start_front(&Front::new("vm0"))?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.ip(&format!("link set {pf} down"))?;
    pf_is(machine, &mgmtdev, "does not serve")?;
    machine.ip(&format!("link set {pf} up"))?;
    pf_is(machine, &mgmtdev, "serves")?;
    machine.link_is_back(&pf)?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    // A reset of the hardware underneath.
    machine.set_mtu(&pf, 1400)?;
    machine.set_mtu(&pf, 1500)?;
    pf_is(machine, &mgmtdev, "serves")?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    let shown = machine.ringway_json(&["mgmtdev", "show", &mgmtdev])?;
    let resets = shown["mgmtdev"][&mgmtdev]["settings"]["pf_resets"].clone();
    ensure!(resets.as_str().is_some_and(|resets| resets != "0"), "no reset was seen: {shown}");
    machine.say(format_args!("resets of the PF that were seen: {resets}"));
    machine.remove_vfs(IGB)?;
    machine.function_is_gone(IGB_VFS[0])?;
    machine.kill_front("vm0")?;
    ground(machine)?;
    machine.function_is_shown(IGB_VFS[0])?;
    machine.start_front(&Front { packed: true, ..Front::new("vm0") })?;
    machine.pings_of_all_sizes(THERE, 1500)?;
    machine.stop_front("vm0")?;
    machine.ringway(&["dev", "del", "vm0"])?;
    machine.stop_ringwayd()
}

/// Waits until a function is shown to stand so with its PF.
fn pf_is(machine: &mut Machine<'_>, mgmtdev: &str, word: &str) -> Result<()> {
    machine.step(&format!("the PF of {mgmtdev} {word}"), |machine| {
        wait_for("that word", WATCHDOG, || {
            let shown = machine.ringway_json(&["mgmtdev", "show", mgmtdev])?;
            Ok((shown["mgmtdev"][mgmtdev]["settings"]["pf"] == word).then_some(()))
        })
    })
}
