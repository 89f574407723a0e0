//! Devices that are joined with others: the ports of a link or a bridge, as far as they are the same.
//!
//! A device owns its port of the [`Fabric`](crate::net::fabric::Fabric); its session starts and stops its queues there.
//! The management device knows its devices by name, for as long as they live.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ringway_ring::features::Features;

use super::bridge::{FLOOD, VLAN, flood, vlans};
use super::link::CHECK;
use crate::net::fabric::{Fabric, Port};
use crate::net::nic::Nic;
use crate::net::plan::{Plan, switch, word};
use crate::net::{Mac, NIC, NetConfig, OFFLOADS};
use crate::vdpa::{
    ClassOps, ConfigSpace, DeviceSpec, DriverError, Ended, Facts, Kept, NetOps, Placer, QueueBinding, Queues,
    ServeError, ServedBy, Stopped, Stuck, VdpaDevice,
};

/// What a joined device offers.
pub(super) const FEATURES: Features = Features(NIC.0 | OFFLOADS.0);

/// Queue pairs of a joined device at most.
pub(super) const MAX_PAIRS: u16 = 16;

const MAX_VQ_SIZE: u16 = 32768;

/// The devices of one management device, by name.
#[derive(Debug, Default)]
pub(super) struct Members(Vec<Member>);

#[derive(Debug)]
struct Member {
    name: String,
    slot: u16,
    is_leaving: Weak<AtomicBool>,
}

impl Members {
    /// Takes note of a device.
    pub(super) fn add(&mut self, name: &str, port: &Port) {
        // One of the same name gives way: it is made anew.
        self.leave(name);
        self.0.retain(|member| member.is_leaving.strong_count() > 0);
        self.0.push(Member {
            name: name.to_owned(),
            slot: port.slot(),
            is_leaving: Arc::downgrade(&port.leaving()),
        });
    }

    /// A device was removed: it is nobody's peer any more, even while its session winds up.
    pub(super) fn leave(&self, name: &str) {
        for member in self.0.iter().filter(|member| member.name == name) {
            if let Some(is_leaving) = member.is_leaving.upgrade() {
                // Relaxed: it publishes nothing else.
                is_leaving.store(true, Ordering::Relaxed);
            }
        }
    }

    /// The device at a slot.
    pub(super) fn at(&self, slot: u16) -> Option<&str> {
        let lives = |member: &&Member| member.slot == slot && member.is_leaving.strong_count() > 0;
        self.0.iter().rev().find(lives).map(|member| member.name.as_str())
    }
}

/// A device.
#[derive(Debug)]
pub(super) struct JoinedDevice {
    port: Port,
    nic: Nic,
    attributes: BTreeMap<String, String>,
    kept: Kept,
}

impl JoinedDevice {
    /// A device on a port. `attributes` are its own, as they are in force.
    pub(super) fn new(port: Port, plan: Plan, attributes: BTreeMap<String, String>) -> JoinedDevice {
        JoinedDevice {
            port: port.of_address(plan.config.mac),
            nic: Nic::new(plan, MAX_VQ_SIZE),
            attributes,
            kept: Kept::default(),
        }
    }
}

impl VdpaDevice for JoinedDevice {
    fn facts(&self) -> Facts {
        self.nic.facts()
    }

    fn config(&mut self) -> &mut dyn ConfigSpace {
        &mut self.nic
    }

    fn queues(&mut self) -> &mut dyn Queues {
        self
    }

    fn class(&mut self) -> ClassOps<'_> {
        ClassOps::Net(self)
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        self.attributes.clone().into_iter().chain(port_words(&self.port)).collect()
    }

    fn set(&mut self, attributes: &BTreeMap<String, String>, within: Duration) -> Result<(), Stuck> {
        for (name, word) in &mut self.attributes {
            if let Some(other) = attributes.get(name) {
                word.clone_from(other);
            }
        }
        set_port(&mut self.port, attributes, within)
    }

    fn reset(&mut self, _within: Duration) -> Result<(), Stuck> {
        self.nic.reset();
        Ok(())
    }
}

impl NetOps for JoinedDevice {
    fn net_config(&self) -> NetConfig {
        self.nic.config()
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DriverError> {
        self.nic.set_mtu(mtu)
    }

    fn announce(&mut self, mac: Option<Mac>) -> Result<(), DriverError> {
        let own = self.nic.config().mac;
        if let Some(other) = mac.filter(|mac| self.port.is_checked() && *mac != own) {
            return Err(DriverError::PeerMisbehaved(format!(
                "announced {other}, and spoofchk holds the device to {own}"
            )));
        }
        self.port.announce(mac);
        Ok(())
    }
}

/// The attributes of a bridge's port that can be set at any time, as they are in force.
pub(super) fn port_words(port: &Port) -> impl Iterator<Item = (String, String)> {
    let vlan = port.vlans().map(|vlans| (VLAN.name.to_owned(), vlans.to_string()));
    port.rates().words().chain(vlan)
}

/// A guest's port of a link, or of what has no policies of its own but that, with what can be set of it at any time.
pub(super) fn guest_port(
    fabric: &Arc<Fabric>,
    members: &mut Members,
    plan: Plan,
    spec: &DeviceSpec,
) -> Result<JoinedDevice, DriverError> {
    let is_checked = switch(spec, CHECK.name)?;
    let attributes = BTreeMap::from([(CHECK.name.to_owned(), word(is_checked))]);
    let port = fabric.port(None)?.checked(is_checked);
    members.add(&spec.name, &port);
    Ok(JoinedDevice::new(port, plan, attributes))
}

/// A port of a bridge, with what can be set of it at any time.
pub(super) fn bridge_port(
    fabric: &Arc<Fabric>,
    flood_pps: Option<u64>,
    attributes: &BTreeMap<String, String>,
) -> Result<Port, DriverError> {
    let port = fabric.port(flood_pps)?.in_vlans(vlans(attributes)?);
    port.rates().set(attributes)?;
    Ok(port)
}

/// Sets what can be set of a port at any time.
pub(super) fn set_port(
    port: &mut Port,
    attributes: &BTreeMap<String, String>,
    within: Duration,
) -> Result<(), Stuck> {
    // Checked before it was asked for.
    let _ = port.rates().set(attributes);
    if attributes.contains_key(FLOOD.name)
        && let Ok(pps) = flood(attributes)
    {
        port.set_flood(pps);
    }
    if let Some(word) = attributes.get(CHECK.name)
        && let Err(ServeError::Stuck(stuck)) = port.set_checked(word == "on", within)
    {
        return Err(stuck);
    }
    if attributes.contains_key(VLAN.name)
        && let Ok(vlans) = vlans(attributes)
        && let Err(ServeError::Stuck(stuck)) = port.set_vlans(vlans, within)
    {
        return Err(stuck);
    }
    Ok(())
}

/// Who serves a group of a port's queues.
pub(super) fn served_by(port: &Port, group: u16) -> Option<ServedBy> {
    port.is_started(group).then(|| ServedBy::Core(port.core(group)))
}

/// The port's, with where the queues stand.
impl Queues for JoinedDevice {
    fn start(
        &mut self,
        group: u16,
        queues: Vec<QueueBinding>,
        placer: &Placer,
        within: Duration,
    ) -> Result<(), ServeError> {
        self.kept.note(group, &queues);
        self.port.start(queues, self.nic.mtu(), placer, within)
    }

    fn stop(&mut self, group: u16, within: Duration) -> Result<Stopped, Stuck> {
        self.port.stop(group, within)?;
        Ok(Stopped { positions: self.kept.take(group), ended: None })
    }

    fn served_by(&self, group: u16) -> Option<ServedBy> {
        served_by(&self.port, group)
    }

    fn beside(&self) -> usize {
        self.port.running()
    }

    fn follow(&mut self, within: Duration) -> Result<(), ServeError> {
        self.port.follow_cores(within)
    }

    fn take_ended(&mut self, within: Duration) -> Vec<(u16, Ended)> {
        self.port.take_ended(within)
    }
}
