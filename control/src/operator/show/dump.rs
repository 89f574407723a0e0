//! What there is, as the configuration that would make it again.

use std::path::Path;

use ringway_pmd::net::{F_MAC, F_MQ, F_MTU};
use ringway_ring::features::Features;

use crate::daemon::Daemon;
use crate::devices::checks::check_port_beside;
use crate::devices::device::{Device, Origin};
use crate::devices::registry::MgmtOrigin;
use crate::fault::Fault;
use crate::operator::api::{DeviceEntry, Dump, MgmtEntry, PortEntry};
use crate::operator::config;

impl Daemon {
    pub(crate) fn dump(&self) -> Result<Dump, Fault> {
        let own = self.registry.devices().filter(|device| device.origin != Origin::Implied);
        let devices: Vec<DeviceEntry> = own.map(in_force).collect();
        // What could not be made is asked for all the same. One name stands once.
        let not_made = self.absent.iter().filter(|absent| !self.registry.is_taken(&absent.entry.name));
        let not_made: Vec<config::NotMade<'_>> = not_made
            .map(|absent| config::NotMade {
                entry: config::Asked::Device(&absent.entry),
                why: &absent.why,
                is_final: absent.is_final,
            })
            .collect();
        let named = self.registry.mgmtdevs().filter(|mgmtdev| mgmtdev.origin != MgmtOrigin::Driver);
        let mgmtdevs: Vec<MgmtEntry> = named
            .map(|mgmtdev| MgmtEntry { name: mgmtdev.device.info().name, attributes: mgmtdev.asked.clone() })
            .collect();
        let made = self.ports.iter().filter(|port| port.why.is_none());
        let ports: Vec<PortEntry> = made.map(|port| port.entry.clone()).collect();
        let known = self.registry.known();
        let mut beside: Vec<&PortEntry> = ports.iter().collect();
        // Before devices: one of them may be on a port that is not made.
        let mut all_not_made = Vec::new();
        for port in &self.ports {
            let Some(why) = &port.why else { continue };
            let is_final = check_port_beside(&port.entry, beside.iter().copied(), &mgmtdevs, &known).is_err();
            if !is_final {
                beside.push(&port.entry);
            }
            all_not_made.push(config::NotMade { entry: config::Asked::Port(&port.entry), why, is_final });
        }
        all_not_made.extend(not_made);
        Ok(config::dump(&self.settings, &self.places(), &mgmtdevs, &ports, &devices, &all_not_made))
    }

    /// Where it is reached and where it keeps things: keys of `[daemon]`, and their values, of what there is.
    pub(crate) fn places(&self) -> Vec<(&'static str, String)> {
        let shown = |path: &Path| path.display().to_string();
        let view = self.view_asked.as_ref();
        let all = [
            ("ctl", self.ctl_path.as_deref().map(shown)),
            ("view", view.map(|view| shown(&view.path))),
            ("view_group", view.and_then(|view| view.group.clone())),
            ("metrics", self.metrics_asked.clone()),
            ("state_dir", self.state.as_ref().map(|state| shown(state.path()))),
        ];
        all.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }
}

/// A device as an entry that makes the same again: what is in force, what was asked for where that says more.
pub(crate) fn in_force(device: &Device) -> DeviceEntry {
    let mut entry = device.entry.clone();
    if !device.is_outdated {
        if let Some(config) = device.facts.config.net() {
            let offers = |feature: Features| device.facts.features.contains(feature);
            if offers(F_MAC) && device.netdev.is_none() {
                entry.mac = Some(config.mac.to_string());
            }
            if offers(F_MTU) {
                entry.mtu = Some(config.mtu);
            }
            if offers(F_MQ) || config.max_vq_pairs == 1 {
                entry.max_vqp = Some(config.max_vq_pairs);
            }
        }
        entry.attributes = device.facts.attributes.clone();
    }
    entry
}
