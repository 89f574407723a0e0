//! Devices, their front-ends and rings, and what they are configured to.

use std::collections::HashSet;

use ringway_pmd::block::SECTOR;
use ringway_pmd::counters::DropReason;
use ringway_pmd::net::{F_MAC, F_MQ, F_MTU, F_STATUS};
use ringway_pmd::vdpa::{Class, DataPath, ServedBy};
use ringway_ring::features::Features;
use ringway_vhost_user::message::protocol;

use super::queues::example;
use crate::daemon::Daemon;
use crate::devices::device::{Connection, Device, Told};
use crate::devices::life::Life;
use crate::fault::Fault;
use crate::frontends::cures::{REFUSED_CURE, REPEATED_CURE};
use crate::frontends::session::{DeviceConfig, Lack, RingReport};
use crate::host::endpoint;
use crate::host::look::Missing;
use crate::operator::api::{
    ConfigInfo, ConfigShow, DevInfo, DevShow, Finding, FrontEnd, Mode, Named, Provisioned, Ring, Select,
};
use crate::operator::names::feature_names;

/// `VIRTIO_NET_F_RSS`.
const F_RSS: Features = Features(1 << 60);

impl Daemon {
    pub(crate) fn show_devices(&self, select: Select) -> Result<DevShow, Fault> {
        let info = |device: &Device| {
            let mut info = dev_info(device, &self.missing);
            info.captures = self.captures.of(device.id);
            (device.name().to_owned(), info)
        };
        let dev = self.selected(&select)?.into_iter().map(info);
        let absent = self.absent.iter().map(|absent| (absent.entry.name.clone(), absent.why.clone()));
        let absent = if select.name.is_none() { by_name(absent) } else { Named::default() };
        let draining =
            self.draining.iter().filter_map(|(name, health)| Some((name.clone(), health.under_way()?)));
        let draining = if select.name.is_none() { by_name(draining) } else { Named::default() };
        Ok(DevShow { dev: dev.collect(), absent, draining })
    }

    pub(crate) fn show_config(&self, select: Select) -> Result<ConfigShow, Fault> {
        let config =
            self.selected(&select)?.into_iter().map(|device| (device.name().to_owned(), config_info(device)));
        Ok(ConfigShow { config: config.collect() })
    }
}

/// Of several with one name the first: a device of an operator's and one of the configuration file's may both be absent, and a
/// disk that is let go of may have had its name before. A start tries the file's first, and what was let go of first is first.
fn by_name<T>(all: impl Iterator<Item = (String, T)>) -> Named<T> {
    let mut names = HashSet::new();
    all.filter(|(name, _)| names.insert(name.clone())).collect()
}

fn dev_info(device: &Device, missing: &[Missing]) -> DevInfo {
    let facts = &device.facts;
    let connection = device.connection.as_ref();
    DevInfo {
        kind: facts.class.type_name().to_owned(),
        mgmtdev: device.entry.mgmtdev.clone(),
        vendor_id: facts.vendor_id,
        max_vqs: facts.limits.max_vqs,
        max_vq_size: facts.limits.max_vq_size,
        state: device.life.name().to_owned(),
        socket: device.socket.clone(),
        netdev: device.netdev.clone().filter(|_| device.mode == Mode::Netdev),
        uplink: device.netdev.clone().filter(|_| device.mode == Mode::Uplink),
        mode: device.mode,
        owner: device.entry.owner.clone(),
        group: device.entry.group.clone(),
        origin: device.origin.name().to_owned(),
        data_path: connection
            .map_or(facts.data_path, |connection| in_use(facts.data_path, connection))
            .name()
            .to_owned(),
        device_features: feature_names(facts.class, facts.features),
        provisioned: provisioned(device),
        attributes: facts.attributes.clone(),
        deferred: device.deferred.iter().cloned().collect(),
        cores: device.cores(),
        front_end: connection
            .filter(|_| device.netdev.is_none())
            .map(|connection| front_end(facts.class, connection)),
        rings: connection.map(|connection| connection.rings.iter().map(ring).collect()).unwrap_or_default(),
        access: (device.life == Life::Waiting).then(|| endpoint::access(&device.socket)).flatten(),
        history: device.history.clone(),
        captures: Vec::new(),
        under_way: device.health.as_ref().and_then(|health| health.under_way()),
        findings: findings(device, missing),
        notes: notes(device, missing),
    }
}

/// What keeps frames or requests from a device just now, as far as it is not its front-end's or its guest's.
fn findings(device: &Device, missing: &[Missing]) -> Vec<Finding> {
    let finding = |name: &str, says: &str, cure: &str| Finding {
        finding: name.to_owned(),
        says: says.to_owned(),
        cure: cure.to_owned(),
    };
    let mut findings = Vec::new();
    let of_it = missing.iter().filter(|missing| missing.dev.as_deref() == Some(device.name()));
    let sockets = of_it.filter(|missing| missing.path == device.socket);
    findings.extend(sockets.map(|missing| finding("socket_missing", &missing.why, &missing.cure)));
    if let Some((away, why)) = device.netdev_away.as_ref().and_then(|away| Some((away, away.why.as_ref()?))) {
        findings.push(finding("host_down", why, &away.cure));
    }
    let stops = device.netdev_changes.iter().filter(|change| change.stops);
    findings.extend(stops.map(|change| finding("host_down", &change.what, &change.cure)));
    let conditions = device.health.as_ref().map(|health| health.conditions()).unwrap_or_default();
    findings
        .extend(conditions.iter().map(|condition| finding(condition.name, &condition.says, &condition.cure)));
    findings
}

/// What the operator should know of a device, each with what to do.
fn notes(device: &Device, missing: &[Missing]) -> Vec<String> {
    let connection = device.connection.as_ref();
    let mut notes: Vec<String> = device.closed_to_its_owner().into_iter().collect();
    notes.extend(device.deferral());
    notes.extend(connection.and_then(|connection| connection.note.clone()));
    notes.extend(device.health.as_ref().and_then(|health| health.words()));
    let of_it = missing.iter().filter(|missing| missing.dev.as_deref() == Some(device.name()));
    notes.extend(of_it.map(|missing| format!("{}; try: {}", missing.why, missing.cure)));
    if let Some((away, why)) = device.netdev_away.as_ref().and_then(|away| Some((away, away.why.as_ref()?))) {
        notes.push(format!("{why}; try: {}", away.cure));
    }
    notes.extend(device.netdev_changes.iter().map(|change| format!("{}; try: {}", change.what, change.cure)));
    if let Some(ring) = connection.and_then(|c| c.rings.iter().find(|ring| ring.started && !ring.kicks)) {
        notes
            .push(format!("the front-end polls queue {} and never kicks: its core cannot sleep", ring.index));
    }
    let lacks = |what: Lack| {
        connection.and_then(|connection| connection.rings.iter().find(|ring| ring.lacks == Some(what)))
    };
    if lacks(Lack::Memory).is_some() {
        notes.push(lack_text(Lack::Memory));
    } else if let Some(ring) = lacks(Lack::Buffers) {
        notes.push(format!("queue {}: {}", ring.index, lack_text(Lack::Buffers)));
    }
    for (index, counters) in device.shared.counters.iter().enumerate() {
        let stats = counters.snapshot();
        let spoofed = stats.drops.iter().find(|(reason, _)| *reason == DropReason::SpoofedMac);
        if let Some((reason, times)) = spoofed.filter(|(_, times)| *times > 0) {
            let example = example(*reason, &stats, &device.facts.config).unwrap_or_default();
            notes.push(format!("queue {index} {} {times}: {example}; try: {}", reason.name(), reason.cure()));
        }
    }
    if let Some(refused) = device.refused.as_ref().filter(|refused| refused.is_on()) {
        notes.push(format!(
            "refused {} times: {} wants it, {} holds it; try: {REFUSED_CURE}",
            refused.times, refused.caller, refused.holder
        ));
    }
    if device.repeated.goes_on() {
        notes.push(format!(
            "{} connections ended one after another, each at {}: {}; try: {REPEATED_CURE}",
            device.repeated.times,
            device.repeated.at.unwrap_or("no request"),
            device.repeated.reason
        ));
    }
    if device.quota.suppressed > 0 {
        notes.push(format!(
            "{} events of this device were told together: too many a second",
            device.quota.suppressed
        ));
    }
    notes
}

fn front_end(class: Class, connection: &Connection) -> FrontEnd {
    let words = |told: &Told| format!("{}: {}", told.what, told.detail);
    FrontEnd {
        pid: connection.caller.pid,
        uid: connection.caller.uid,
        comm: connection.caller.comm.clone(),
        connected_ms: u64::try_from(connection.since.elapsed().as_millis()).unwrap_or(u64::MAX),
        status: connection.status.map(status_names),
        negotiated_features: connection.negotiated.map(|features| feature_names(class, features)),
        protocol_features: connection.protocol.map(|bits| protocol::names(bits).map(str::to_owned).collect()),
        memory_regions: connection.regions,
        memory_bytes: connection.bytes,
        mtu: connection.mtu,
        host_failure: connection.host_failure.as_ref().map(words),
        breach: connection.breach.as_ref().filter(|_| connection.breach_stands).map(words),
        has_run: connection.has_run,
    }
}

/// Names of the virtio device status (virtio 1.3 §2.1).
fn status_names(status: u8) -> Vec<String> {
    let names: [(u8, &str); 6] = [
        (1, "ACKNOWLEDGE"),
        (2, "DRIVER"),
        (8, "FEATURES_OK"),
        (4, "DRIVER_OK"),
        (64, "DEVICE_NEEDS_RESET"),
        (128, "FAILED"),
    ];
    names.iter().filter(|(bit, _)| status & bit != 0).map(|(_, name)| (*name).to_owned()).collect()
}

/// How the rings of a connection are served just now.
pub(crate) fn in_use(mostly: DataPath, connection: &Connection) -> DataPath {
    let by_hardware = |ring: &RingReport| ring.served_by == Some(ServedBy::Hardware);
    if connection.rings.iter().any(by_hardware) { DataPath::Hardware } else { mostly }
}

fn ring(ring: &RingReport) -> Ring {
    Ring {
        qidx: ring.index,
        size: ring.size,
        started: ring.started,
        enabled: ring.enabled,
        kicks: ring.kicks,
        runs: ring.runs,
        core: ring.core(),
        fault: ring.fault.map(str::to_owned),
    }
}

fn provisioned(device: &Device) -> Provisioned {
    match &device.facts.config {
        DeviceConfig::Net(config) => Provisioned {
            mac: Some(config.mac.to_string()),
            link: Some(link(config.link_up).to_owned()),
            max_vq_pairs: Some(config.max_vq_pairs),
            mtu: Some(config.mtu),
            ..Provisioned::default()
        },
        DeviceConfig::Block(config) => Provisioned {
            size: Some(config.capacity * SECTOR),
            blk_size: Some(config.blk_size),
            num_queues: Some(config.num_queues),
            seg_max: Some(config.seg_max),
            write_cache: Some(if config.writeback { "on" } else { "off" }.to_owned()),
            ..Provisioned::default()
        },
    }
}

fn link(is_up: bool) -> &'static str {
    if is_up { "up" } else { "down" }
}

fn config_info(device: &Device) -> ConfigInfo {
    let connection = device.connection.as_ref();
    let mut info = ConfigInfo {
        provisioned: provisioned(device),
        guest_mtu: connection.and_then(|connection| connection.mtu),
        ..ConfigInfo::default()
    };
    if let Some(negotiated) = connection.and_then(|connection| connection.negotiated) {
        if let Some(config) = device.facts.config.net() {
            let with = |feature: Features| negotiated.contains(feature);
            info.mac = with(F_MAC).then(|| config.mac.to_string());
            info.link = with(F_STATUS).then(|| link(config.link_up).to_owned());
            info.link_announce = with(F_STATUS).then_some(false);
            info.max_vq_pairs = (with(F_MQ) || with(F_RSS)).then_some(config.max_vq_pairs);
            info.mtu = with(F_MTU).then_some(config.mtu);
        }
        info.negotiated_features = Some(feature_names(device.facts.class, negotiated));
    }
    info
}

pub(super) fn lack_text(lack: Lack) -> String {
    format!("{}; try: {}", lack.what(), lack.cure())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_told_once_by_what_came_first() {
        let all = [("b", 1), ("a", 2), ("b", 3)].map(|(name, value)| (name.to_owned(), value));
        let told = serde_json::to_string(&by_name(all.into_iter())).unwrap();
        assert_eq!(told, r#"{"b":1,"a":2}"#);
    }

    #[test]
    fn status_is_shown_by_name() {
        assert_eq!(status_names(0x0f), ["ACKNOWLEDGE", "DRIVER", "FEATURES_OK", "DRIVER_OK"]);
        assert!(status_names(0).is_empty());
    }
}
