//! VLANs of bridges' ports: an attribute of their devices, changed one VLAN at a time, in the words of bridge(8).

use std::collections::BTreeMap;

use ringway_pmd::net::vlan::{Vlans, range};

use crate::daemon::Daemon;
use crate::fault::{Fault, printable};
use crate::operator::api::{
    DevChanged, DevSet, DeviceEntry, Named, PortVlans, Select, VlanChange, VlanInfo, VlanShow,
};

impl Daemon {
    /// `bridge vlan add`, or `del`.
    pub(crate) fn change_vlans(&mut self, change: &VlanChange, is_added: bool) -> Result<DevChanged, Fault> {
        let set = self.vlans_to_set(change, is_added)?;
        self.set(&set)
    }

    /// The change of a device that a change of its VLANs is.
    pub(crate) fn vlans_to_set(&self, change: &VlanChange, is_added: bool) -> Result<DevSet, Fault> {
        let entry = &self.find(&change.dev)?.entry;
        if !is_port(entry) {
            let why = format!("{} is no port of a bridge: its mgmtdev is {}", change.dev, entry.mgmtdev);
            return Err(Fault::usage(why).at("dev"));
        }
        let (first, last) = range(&change.vid).ok_or_else(|| {
            let why = format!("vid `{}` is no VLAN: 1 to 4094, or a range of them", printable(&change.vid));
            Fault::usage(why).at("vid")
        })?;
        if change.pvid && first != last {
            return Err(Fault::usage("only one VLAN can be the pvid").at("vid"));
        }
        let mut vlans = given(entry)?.unwrap_or(Vlans::NONE);
        if is_added {
            vlans.add(first, last, change.pvid, change.untagged);
        } else if !vlans.remove(first, last) {
            let why = format!("{} was given no VLAN {}", change.dev, change.vid);
            let hint = match given(entry)? {
                // What is shown of it then, it was not given.
                None => format!(
                    "a port that was given none is in VLAN 1 without a tag: give it others, or none at all (ringway dev set name {} \
                     vlan none)",
                    change.dev
                ),
                Some(vlans) => format!("it has {vlans}"),
            };
            return Err(Fault::not_found(why).at("vid").hint(hint));
        }
        let attributes = BTreeMap::from([(ATTRIBUTE.to_owned(), vlans.to_string())]);
        Ok(DevSet { name: change.dev.clone(), attributes, ..DevSet::default() })
    }

    /// `bridge vlan show`: the ports of bridges that look at VLANs.
    pub(crate) fn show_vlans(&self, select: &Select) -> Result<VlanShow, Fault> {
        if let Some(name) = &select.name {
            self.find(name)?;
        }
        let ports = || self.registry.devices().map(|device| &device.entry).filter(|entry| is_port(entry));
        let looks = |bridge: &str| {
            ports().any(|entry| entry.mgmtdev == bridge && given(entry).is_ok_and(|vlans| vlans.is_some()))
        };
        let mut shown = Vec::new();
        for entry in ports().filter(|entry| select.name.as_ref().is_none_or(|name| *name == entry.name)) {
            if looks(&entry.mgmtdev) {
                let vlans = given(entry)?.unwrap_or_else(Vlans::default_of_a_port);
                let vlans = vlans.runs().into_iter().map(info).collect();
                shown.push((entry.name.clone(), PortVlans { mgmtdev: entry.mgmtdev.clone(), vlans }));
            }
        }
        Ok(VlanShow { vlan: Named(shown) })
    }
}

fn is_port(entry: &DeviceEntry) -> bool {
    entry.mgmtdev.starts_with("bridge/")
}

/// The VLANs that a device's port was given.
fn given(entry: &DeviceEntry) -> Result<Option<Vlans>, Fault> {
    match entry.attributes.get(ATTRIBUTE).map(String::as_str) {
        None | Some("off") => Ok(None),
        Some(text) => Vlans::parse(text).map(Some).map_err(|why| Fault::usage(why).at(ATTRIBUTE)),
    }
}

fn info((first, last, pvid, untagged): (u16, u16, bool, bool)) -> VlanInfo {
    let flags = [(pvid, "PVID"), (untagged, "Egress Untagged")];
    VlanInfo {
        vlan: first,
        vlan_end: Some(last).filter(|last| *last != first),
        flags: flags.into_iter().filter(|(is_so, _)| *is_so).map(|(_, flag)| flag.to_owned()).collect(),
    }
}

/// The attribute.
const ATTRIBUTE: &str = "vlan";
