//! Devices that are joined with others: the ports of a link or a bridge, as far as they are the same.
//!
//! A device owns its port of the [`Fabric`](crate::net::fabric::Fabric); its session starts and stops its queues there.
//! The management device knows its devices by name, for as long as they live.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use ringway_ring::features::Features;

use crate::net::end::PortRules;
use crate::net::fabric::Port;
use crate::net::plan::Plan;
use crate::net::{Mac, NIC, OFFLOADS};
use crate::vdpa::{
    Berth, Class, DataPath, DeviceConfig, DriverError, Ended, QueueBinding, QueueLimits, Service,
    ServiceError, VdpaDevice,
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
    plan: Plan,
    /// What the front-end told, at most what the operator gave.
    mtu_in_use: u16,
    /// It may send from its own address only.
    is_checked: bool,
    attributes: BTreeMap<String, String>,
}

impl JoinedDevice {
    /// A device on a port. `attributes` are its own, as they are in force.
    pub(super) fn new(
        port: Port,
        plan: Plan,
        is_checked: bool,
        attributes: BTreeMap<String, String>,
    ) -> JoinedDevice {
        JoinedDevice { port, mtu_in_use: plan.config.mtu, plan, is_checked, attributes }
    }
}

impl VdpaDevice for JoinedDevice {
    fn class(&self) -> Class {
        Class::Net
    }

    fn data_path(&self) -> DataPath {
        DataPath::Pumped
    }

    fn features(&self) -> Features {
        self.plan.features
    }

    fn limits(&self) -> QueueLimits {
        QueueLimits { max_vqs: self.plan.config.max_vq_pairs * 2, max_vq_size: MAX_VQ_SIZE }
    }

    fn config(&self) -> DeviceConfig {
        DeviceConfig::Net(self.plan.config)
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        self.attributes.clone()
    }

    fn set_mtu(&mut self, mtu: u16) -> Result<(), DriverError> {
        self.mtu_in_use = self.plan.checked_mtu(mtu)?;
        Ok(())
    }

    fn announce(&mut self, mac: Option<Mac>) -> Result<(), DriverError> {
        let own = self.plan.config.mac;
        if let Some(other) = mac.filter(|mac| self.is_checked && *mac != own) {
            return Err(DriverError::PeerMisbehaved(format!(
                "announced {other}, and spoofchk holds the device to {own}"
            )));
        }
        self.port.announce(mac);
        Ok(())
    }

    fn group_of(&self, index: u16) -> u16 {
        index / 2
    }

    fn service(&mut self) -> Option<&mut dyn Service> {
        Some(self)
    }

    fn reset(&mut self) {
        self.mtu_in_use = self.plan.config.mtu;
    }
}

impl Service for JoinedDevice {
    fn start(
        &mut self,
        _group: u16,
        queues: Vec<QueueBinding>,
        berth: &Berth,
        within: Duration,
    ) -> Result<(), ServiceError> {
        let only = self.is_checked.then_some(self.plan.config.mac);
        self.port.start(queues, PortRules { mtu: self.mtu_in_use, only }, berth, within)
    }

    fn stop(&mut self, group: u16, within: Duration) -> Result<(), ServiceError> {
        self.port.stop(group, within)
    }

    fn is_started(&self, group: u16) -> bool {
        self.port.is_started(group)
    }

    fn running(&self) -> usize {
        self.port.running()
    }

    fn core(&self, group: u16) -> Option<usize> {
        self.port.core(group)
    }

    fn follow_cores(&mut self, within: Duration) -> Result<(), ServiceError> {
        self.port.follow_cores(within)
    }

    fn take_ended(&mut self, within: Duration) -> Vec<(u16, Ended)> {
        self.port.take_ended(within)
    }
}
