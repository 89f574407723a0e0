//! When a change of a device is in force: at once, when something happens, when the next front-end connects, or, where the
//! host itself is the other side and nobody connects anew, when the device is made anew.
//!
//! What a connected guest was told of its device, as its address and its MTU, stays as it is for as long as its front-end is
//! connected: such a change is accepted, and deferred. Of each device it is known which keys that are ([`Device::deferred`]).
//! Thread: control.

use std::collections::BTreeMap;

use ringway_pmd::vdpa::{Class, MgmtInfo};

use crate::devices::device::{Device, Origin};
use crate::devices::life::Life;
use crate::operator::api::{DevChanged, DeviceEntry};

/// What a change of a device comes to.
#[derive(Debug, Default)]
pub(crate) struct Taking {
    /// What changes in the device that there is.
    pub(crate) live: BTreeMap<String, String>,
    /// Of it, what waits for something, and for what.
    pub(crate) waits: Vec<(String, &'static str)>,
    /// What only a new device has: at once, or when the front-end that is connected is gone.
    pub(crate) of_a_new_device: Vec<String>,
    is_connected: bool,
    /// An interface or a function of the host's is its other side.
    pub(crate) is_host: bool,
    /// The configuration file asks for it.
    is_of_file: bool,
}

impl Taking {
    /// What it comes to that a device is to be so. `info`: of its management device.
    pub(crate) fn of(device: &Device, entry: &DeviceEntry, info: Option<&MgmtInfo>) -> Taking {
        let (before, life) = (&device.entry, device.life);
        // A disk is not made anew for them: what is behind it may be another by then.
        let is_kept = |info: &&MgmtInfo| {
            life == Life::Connected || (life == Life::Waiting && info.class == Class::Block)
        };
        let live_of = |name: &str| {
            let info = info.filter(is_kept)?;
            info.attributes.iter().find(|attribute| attribute.name == name)?.live
        };
        let mut taking = Taking {
            is_connected: life == Life::Connected,
            is_host: device.netdev.is_some(),
            is_of_file: device.origin == Origin::Config,
            ..Taking::default()
        };
        let own = [("mac", entry.mac != before.mac), ("mtu", entry.mtu != before.mtu)];
        let own = own.into_iter().filter(|(key, is_other)| *is_other && !device.has(entry, key));
        taking.of_a_new_device.extend(own.map(|(key, _)| key.to_owned()));
        for (name, value) in &entry.attributes {
            if before.attributes.get(name) == Some(value) {
                continue;
            }
            let Some(live) = live_of(name) else {
                if !device.has(entry, name) {
                    taking.of_a_new_device.push(name.clone());
                }
                continue;
            };
            taking.live.insert(name.clone(), value.clone());
            taking.waits.extend((live.waits)(value).map(|what| (name.clone(), what)));
        }
        taking
    }

    /// The keys that are not in force before somebody else connects, or before the device is made anew.
    pub(crate) fn deferred(&self) -> &[String] {
        if self.is_connected { &self.of_a_new_device } else { &[] }
    }

    /// The keys that are accepted, and not in force now.
    pub(crate) fn not_in_force(&self) -> Vec<String> {
        let waits = self.waits.iter().map(|(key, _)| key.clone());
        self.deferred().iter().cloned().chain(waits).collect()
    }

    /// What is answered to whoever set it, with what else is to be said.
    pub(crate) fn answer(&self, name: &str, others: Vec<String>) -> DevChanged {
        let next = (!self.deferred().is_empty()).then(|| self.until().to_owned());
        let notes = self.waits_for().chain(next).chain(others).collect();
        DevChanged { changed: name.to_owned(), applied: self.not_in_force().is_empty(), notes }
    }

    /// What of it is deferred, and until when, for an operator.
    pub(crate) fn deferral(&self) -> Option<String> {
        let keys = self.deferred().join(", ");
        (!keys.is_empty()).then(|| format!("{keys}: {}", self.until()))
    }

    /// When what is deferred is in force.
    fn until(&self) -> &'static str {
        match (self.is_host, self.is_of_file) {
            (false, _) => "a front-end is connected: in force when the next one connects",
            (true, true) => UNTIL_OF_FILE,
            (true, false) => UNTIL_ANEW,
        }
    }

    /// What of it waits for something, for an operator.
    pub(crate) fn waits_for(&self) -> impl Iterator<Item = String> {
        self.waits.iter().map(|(_, what)| format!("in force {what}"))
    }
}

impl Device {
    /// What is asked for of a key is what the device that there is has. What is not asked for it has in any case.
    pub(crate) fn has(&self, entry: &DeviceEntry, key: &str) -> bool {
        let net = self.facts.config.net();
        match key {
            "mac" => entry
                .mac
                .as_ref()
                .is_none_or(|mac| net.is_some_and(|config| config.mac.to_string().eq_ignore_ascii_case(mac))),
            "mtu" => entry.mtu.is_none_or(|mtu| net.is_some_and(|config| config.mtu == mtu)),
            key => {
                let asked = entry.attributes.get(key);
                asked.is_none_or(|asked| self.facts.attributes.get(key) == Some(asked))
            }
        }
    }

    /// What the device that there is has of a key, whatever was asked for since.
    pub(crate) fn now(&self, key: &str) -> Option<String> {
        let net = self.facts.config.net();
        match key {
            "mac" => net.map(|config| config.mac.to_string()),
            "mtu" => net.map(|config| config.mtu.to_string()),
            key => self.facts.attributes.get(key).cloned(),
        }
    }

    /// What of it is deferred, and until when, for an operator.
    pub(crate) fn deferral(&self) -> Option<String> {
        let keys: Vec<&str> = self.deferred.iter().map(String::as_str).collect();
        let when = match (self.netdev.is_some(), self.origin) {
            (false, _) => "in force when the next front-end connects",
            (true, Origin::Config) => UNTIL_OF_FILE,
            (true, _) => UNTIL_ANEW,
        };
        self.is_outdated.then(|| format!("{} changed: {when}", keys.join(", ")))
    }

    /// These were set while a front-end is connected: they are deferred, until what is asked for is what there is.
    pub(crate) fn defer(&mut self, keys: &[String]) {
        let mut deferred = std::mem::take(&mut self.deferred);
        deferred.extend(keys.iter().cloned());
        deferred.retain(|key| !self.has(&self.entry, key));
        self.is_outdated = !deferred.is_empty();
        self.deferred = deferred;
    }
}

/// When what is deferred of an operator's device is in force whose other side is the host's: it stays connected for good.
const UNTIL_ANEW: &str =
    "in force once the device is made anew: ringway dev del and dev add, or a restart of ringwayd";
/// The same of a device of the configuration file: a restart makes it as the file says, whatever was set.
const UNTIL_OF_FILE: &str =
    "in force once the file says so too and the device is made anew: ringway config apply FILE";
