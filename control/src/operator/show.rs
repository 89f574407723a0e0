//! What operators read: the registry, the devices, their queues, the workers and the events, as the protocol's
//! answers. Nothing here changes anything.

use std::path::Path;

use ringway_pmd::block::SECTOR;
use ringway_pmd::counters::{DropReason, Example, QueueStats, RequestStats};
use ringway_pmd::net::{F_MAC, F_MQ, F_MTU, F_STATUS};
use ringway_pmd::vdpa::{Class, DataPath, ServedBy};
use ringway_ring::features::Features;
use ringway_ring::queue::RingFault;
use serde_json::{Map, Value};

use crate::daemon::Daemon;
use crate::devices::checks::{check_port_beside, uplink_of};
use crate::devices::device::{Connection, Device, Origin};
use crate::devices::known::{KnownBus, no_such_mgmtdev};
use crate::devices::life::Life;
use crate::devices::registry::MgmtOrigin;
use crate::fault::Fault;
use crate::frontends::cures::{REFUSED_CURE, REPEATED_CURE};
use crate::frontends::session::{DeviceConfig, Lack, RingReport};
use crate::host::endpoint;
use crate::host::look::Missing;
use crate::operator::api::{
    AttributeHelp, ConfigInfo, ConfigShow, DevInfo, DevShow, DeviceEntry, Dump, Explained, FrontEnd, Hello,
    KindInfo, LearnedInfo, MgmtEntry, MgmtdevInfo, MgmtdevShow, Mode, Named, PortEntry, Provisioned, Queue,
    QueueInfo, RequestInfo, Ring, Select, StationInfo, VERSION, Vstats, VstatsShow,
};
use crate::operator::config;
use crate::operator::names::feature_names;
use crate::operator::role::Role;
use crate::operator::sample::{nanoseconds, sizes, times};
use ringway_vhost_user::message::protocol;

/// Devices that a hint names at most.
const MOST_NAMED: usize = 8;

/// `VIRTIO_NET_F_RSS`.
const F_RSS: Features = Features(1 << 60);

fn millis(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}

impl Daemon {
    pub(crate) fn hello(&self, role: Role) -> Hello {
        Hello {
            api: VERSION.to_owned(),
            build: format!("ringway {}", env!("CARGO_PKG_VERSION")),
            pid: std::process::id(),
            boot_id: crate::host::gap::boot_id(),
            instance: self.instance.clone(),
            generation: self.generation,
            seq: self.events.last(),
            device_dir: self.runtime_dir.join("dev"),
            state_dir: self.state.as_ref().map(|state| state.path().to_owned()),
            clients: self.clients.len(),
            dropped_clients: self.clients.dropped.clone(),
            role: role.name().to_owned(),
            refused_requests: self.clients.refused,
            lost_log_lines: crate::host::log::lost(),
            lost_events: self.events.lost_on_disk(),
            binary: self.program.standing(),
            up_ms: millis(self.started.elapsed()),
            gap_ms: self.gap.map(millis),
        }
    }

    pub(crate) fn show_mgmtdevs(&self, select: Select) -> Result<MgmtdevShow, Fault> {
        let wanted = select.name.as_deref();
        let uses = |device: &Device, name: &str| {
            device.entry.mgmtdev == name || uplink_of(&device.entry) == Some(name)
        };
        let count = |name: &str| self.registry.devices().filter(|device| uses(device, name)).count();
        let ports = |name: &str| -> Vec<String> {
            let of_it = self.ports.iter().filter(|port| port.entry.mgmtdev == name && port.why.is_none());
            of_it.map(|port| port.entry.handle()).collect()
        };
        let mgmtdev: Named<MgmtdevInfo> = self
            .registry
            .mgmtdevs()
            .map(|mgmtdev| (mgmtdev, mgmtdev.device.info()))
            .filter(|(_, info)| wanted.is_none_or(|name| info.name == name))
            .map(|(mgmtdev, info)| {
                let is_joined = mgmtdev.origin != MgmtOrigin::Driver;
                let shown = MgmtdevInfo {
                    supported_classes: vec![info.class.class_name().to_owned()],
                    max_supported_vqs: info.max_supported_vqs,
                    dev_features: feature_names(info.class, info.features),
                    attributes: AttributeHelp::all(&info.attributes),
                    summary: info.summary.to_owned(),
                    devices: count(&info.name),
                    max_devices: info.max_devices,
                    joined: if is_joined { self.registry.made_by(&info.name) } else { Vec::new() },
                    settings: mgmtdev.device.attributes(),
                    functions: AttributeHelp::of_functions(&info),
                    ports: ports(&info.name),
                    learned: mgmtdev.device.net().map(|net| learned(net.stations())),
                };
                (info.name, shown)
            })
            .collect();
        // One is asked for by its kind's name alone.
        let is_wanted = |name: &str| wanted.is_none_or(|wanted| wanted.trim_end_matches('/') == name);
        let kinds = self.registry.known().kinds.into_iter().filter(|kind| is_wanted(kind.name));
        let kinds: Named<KindInfo> =
            kinds.map(|kind| (format!("{}/NAME", kind.name), KindInfo::of(&kind))).collect();
        let absent =
            self.absent_mgmtdevs.iter().filter(|absent| wanted.is_none_or(|name| absent.entry.name == name));
        let absent: Named<String> =
            absent.map(|absent| (absent.entry.name.clone(), absent.why.clone())).collect();
        // One is asked for by its name: why it is not there is the answer then.
        let unusable = self.registry.unusable().iter().filter(|_| wanted.is_none());
        let unusable = unusable.map(|(name, fault)| (name.clone(), with_cure(fault))).collect();
        match wanted {
            Some(name) if mgmtdev.0.is_empty() && kinds.0.is_empty() && absent.0.is_empty() => {
                let known = self.registry.known();
                let is_on = |bus: &KnownBus| {
                    name.strip_prefix(bus.info.name).is_some_and(|rest| rest.starts_with('/'))
                };
                if known.buses.iter().any(is_on) {
                    return Err(no_such_mgmtdev(name, &known));
                }
                let known = known.mgmtdevs;
                let known: Vec<String> = known.into_iter().map(|info| info.name).collect();
                let fault = Fault::not_found(format!(
                    "there is no management device `{}`",
                    crate::fault::printable(name)
                ));
                Err(match crate::fault::nearest(name, known.iter().map(String::as_str)) {
                    Some(near) => fault.hint(format!("did you mean {near}?")),
                    None => fault.hint("ringway mgmtdev show"),
                })
            }
            _ => Ok(MgmtdevShow { mgmtdev, absent, unusable, kinds }),
        }
    }

    /// A device by its name; of one that could not be made, why.
    pub(crate) fn find(&self, name: &str) -> Result<&Device, Fault> {
        self.registry.find(name).map_err(|fault| self.if_absent(name, fault))
    }

    /// The fault of a device that is not there: if it was asked for, why it could not be made.
    pub(crate) fn if_absent(&self, name: &str, fault: Fault) -> Fault {
        let Some(absent) = self.absent.iter().find(|absent| absent.entry.name == name) else { return fault };
        let cure = if absent.is_final {
            format!("it is kept and not tried again: ringway dev del {name}, then add it as it can be")
        } else {
            format!("it is kept and tried again every 2 s; ringway dev del {name} removes it")
        };
        Fault { message: format!("{name}: not made: {}", absent.why), ..fault }.hint(cure)
    }

    /// The devices asked for: one, or all.
    fn selected(&self, select: &Select) -> Result<Vec<&Device>, Fault> {
        match &select.name {
            Some(name) => Ok(vec![self.find(name)?]),
            None => Ok(self.registry.devices().collect()),
        }
    }

    pub(crate) fn show_devices(&self, select: Select) -> Result<DevShow, Fault> {
        let info = |device: &Device| {
            let mut info = dev_info(device, &self.missing);
            info.captures = self.captures.of(device.id);
            (device.name().to_owned(), info)
        };
        let dev = self.selected(&select)?.into_iter().map(info);
        let absent = self.absent.iter().map(|absent| (absent.entry.name.clone(), absent.why.clone()));
        let absent = if select.name.is_none() { absent.collect() } else { Named::default() };
        let draining =
            self.draining.iter().filter_map(|(name, health)| Some((name.clone(), health.under_way()?)));
        let draining = if select.name.is_none() { draining.collect() } else { Named::default() };
        Ok(DevShow { dev: dev.collect(), absent, draining })
    }

    pub(crate) fn show_config(&self, select: Select) -> Result<ConfigShow, Fault> {
        let config =
            self.selected(&select)?.into_iter().map(|device| (device.name().to_owned(), config_info(device)));
        Ok(ConfigShow { config: config.collect() })
    }

    pub(crate) fn show_vstats(&self, queue: Queue) -> Result<VstatsShow, Fault> {
        let device = self.find(&queue.name)?;
        let all = || device.shared.counters.iter().enumerate();
        let info = |(index, counters): (usize, &std::sync::Arc<ringway_pmd::counters::QueueCounters>)| {
            let facts = &device.facts;
            let mut info = queue_info(facts.class, &facts.config, index as u32, &counters.snapshot());
            let ring = device.connection.as_ref().and_then(|connection| connection.rings.get(index));
            info.not_run = ring.and_then(|ring| ring.lacks).map(lack_text);
            let is_alone = |why: &&mut Explained| why.name == DropReason::PeerDown.name();
            if let Some(why) = info.explain.iter_mut().find(is_alone) {
                why.cure = self.peers(device);
            }
            info
        };
        let vstats = match queue.qidx {
            None => Vstats::All { queues: all().map(info).collect() },
            Some(qidx) => match all().find(|(index, _)| *index as u32 == qidx) {
                Some(found) => Vstats::One(Box::new(info(found))),
                None => {
                    return Err(Fault::not_found(format!(
                        "{} has no queue {qidx}: it has {} queues, counted from 0",
                        queue.name, device.facts.limits.max_vqs
                    ))
                    .at("qidx"));
                }
            },
        };
        Ok(VstatsShow { vstats: Named(vec![(queue.name, vstats)]) })
    }

    /// Who is at the other end of a device, as far as nothing can be delivered there.
    fn peers(&self, device: &Device) -> String {
        let mgmtdev = &device.entry.mgmtdev;
        let family = self.family(mgmtdev);
        let others = self.registry.devices().filter(|other| family.contains(&other.entry.mgmtdev));
        let mut others = others.filter(|other| other.id != device.id).peekable();
        if others.peek().is_none() {
            return format!("{mgmtdev} has no other device: ringway dev add name NAME mgmtdev {mgmtdev}");
        }
        let down: Vec<String> =
            others.filter_map(|other| Some(format!("{}: {}", other.name(), not_reached(other)?))).collect();
        match down.get(MOST_NAMED..) {
            None | Some([]) if down.is_empty() => "none: by now every device there receives".to_owned(),
            None | Some([]) => down.join("; "),
            Some(more) => format!("{}; and {} more", down[..MOST_NAMED].join("; "), more.len()),
        }
    }

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

fn learned(learned: ringway_pmd::vdpa::Learned) -> LearnedInfo {
    let stations = learned.stations.into_iter();
    let station = |station: ringway_pmd::vdpa::LearnedStation| StationInfo {
        mac: station.mac.to_string(),
        vlan: station.vid,
        dev: station.device,
        age_s: station.age,
    };
    LearnedInfo { stations: stations.map(station).collect(), refused: learned.refused }
}

/// Why something is not there, and what to do.
fn with_cure(fault: &Fault) -> String {
    match &fault.hint {
        Some(cure) => format!("{}; try: {cure}", fault.message),
        None => fault.message.clone(),
    }
}

fn dev_info(device: &Device, missing: &[Missing]) -> DevInfo {
    let facts = &device.facts;
    let connection = device.connection.as_ref();
    let mut notes: Vec<String> = device.closed_to_its_owner().into_iter().collect();
    if device.is_outdated {
        notes.push(format!(
            "{} changed by dev set: in force when the next front-end connects",
            device.deferred.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
        ));
    }
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
            let example = example(*reason, &stats, &facts.config).unwrap_or_default();
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
        cores: device.cores(),
        front_end: connection
            .filter(|_| device.netdev.is_none())
            .map(|connection| front_end(facts.class, connection)),
        rings: connection.map(|connection| connection.rings.iter().map(ring).collect()).unwrap_or_default(),
        access: (device.life == Life::Waiting).then(|| endpoint::access(&device.socket)).flatten(),
        history: device.history.clone(),
        captures: Vec::new(),
        notes,
    }
}

fn front_end(class: Class, connection: &Connection) -> FrontEnd {
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
fn in_use(mostly: DataPath, connection: &Connection) -> DataPath {
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

fn lack_text(lack: Lack) -> String {
    format!("{}; try: {}", lack.what(), lack.cure())
}

/// Why nothing can be delivered to a device, if nothing can.
fn not_reached(device: &Device) -> Option<String> {
    let Some(connection) = &device.connection else {
        return Some(
            if device.life == Life::Waiting { "no front-end" } else { device.life.name() }.to_owned(),
        );
    };
    let mut receives = connection.rings.iter().filter(|ring| ring.index.is_multiple_of(2));
    if receives.clone().any(|ring| ring.runs && ring.lacks.is_none()) {
        return None;
    }
    let why = receives.clone().find_map(|ring| ring.fault.map(|fault| format!("fault {fault}")));
    let lack = || receives.find_map(|ring| ring.lacks).map(|lack| lack.what().to_owned());
    Some(why.or_else(lack).unwrap_or_else(|| {
        if connection.is_ready() { "no receive queue runs" } else { "driver not up" }.to_owned()
    }))
}

/// What the last frame was like that was dropped for a reason.
fn example(reason: DropReason, stats: &QueueStats, config: &DeviceConfig) -> Option<String> {
    let config = config.net()?;
    let (_, example) = stats.examples.iter().find(|(known, _)| *known == reason)?;
    Some(match (reason, example) {
        (DropReason::SpoofedMac, Example::Address(from)) => {
            format!("last from {from}, the device's is {}", config.mac)
        }
        (_, Example::Address(to)) => format!("last to {to}"),
        (_, Example::Bytes(bytes)) => format!("last of {bytes} bytes"),
    })
}

pub(crate) fn queue_info(class: Class, config: &DeviceConfig, qidx: u32, stats: &QueueStats) -> QueueInfo {
    let queue_type = match class {
        Class::Net if qidx.is_multiple_of(2) => "rx",
        Class::Net => "tx",
        Class::Block => "request",
    };
    let drops: Map<String, Value> =
        drops_of(class, stats).map(|(reason, count)| (reason.name().to_owned(), count.into())).collect();
    let faults: Map<String, Value> =
        stats.faults.iter().map(|(fault, count)| (fault.name().to_owned(), (*count).into())).collect();
    // Nothing was ever taken from the ring.
    let never = |reason: DropReason| {
        (reason == DropReason::NoRxBuffer && stats.received_desc == 0 && queue_type == "rx")
            .then_some(Lack::Buffers)
    };
    let dropped = stats.drops.iter().filter(|(_, count)| *count > 0).map(|(reason, count)| Explained {
        name: reason.name().to_owned(),
        count: *count,
        meaning: never(*reason).map_or(drop_meaning(*reason), Lack::what).to_owned(),
        example: example(*reason, stats, config),
        cure: never(*reason).map_or(reason.cure(), Lack::cure).to_owned(),
    });
    let faulted = stats.faults.iter().filter(|(_, count)| *count > 0).map(|(fault, count)| Explained {
        name: fault.name().to_owned(),
        count: *count,
        meaning: fault.to_string(),
        example: None,
        cure: fault_cure(*fault).to_owned(),
    });
    QueueInfo {
        queue_type: queue_type.to_owned(),
        received_desc: stats.received_desc,
        completed_desc: stats.completed_desc,
        qidx,
        packets: stats.packets,
        bytes: stats.bytes,
        calls: stats.calls,
        bursts: stats.bursts,
        burst_sizes: sizes(&stats.burst_sizes),
        latency: times(&stats.latency),
        sw_checksums: stats.checksums,
        sw_segmented: stats.segmented,
        sw_segments: stats.segments,
        netdev_calls: stats.netdev_calls,
        resubmitted: stats.resubmitted,
        held: stats.held,
        drops,
        faults,
        requests: stats.requests.iter().map(request_info).collect(),
        not_run: None,
        explain: dropped.chain(faulted).collect(),
    }
}

/// What a drop means, in few words.
pub(crate) fn drop_meaning(reason: DropReason) -> &'static str {
    match reason {
        DropReason::NoRxBuffer => "no receive buffer for longer than the bounded wait",
        DropReason::RxDisabled => "the receiving queue is stopped or disabled",
        DropReason::RxBufferTooSmall => "the frame does not fit the receive buffers",
        DropReason::Oversize => "the frame is longer than the MTU allows",
        DropReason::Runt => "the frame is shorter than an Ethernet header",
        DropReason::TxDisabled => "the sending queue is disabled",
        DropReason::BadOffload => "what the sender asks to be done to its frame does not fit it",
        DropReason::SpoofedMac => "the source address is not the device's",
        DropReason::PeerDown => "no device at the other end has a running receive queue",
        DropReason::RxOversize => "the frame is longer than the receiver's MTU allows",
        DropReason::FloodLimit => "more frames to everybody than the port may send",
        DropReason::NetdevDown => "the kernel's interface is down",
        DropReason::NetdevRefused => "the kernel did not take the frame",
        DropReason::ReservedAddress => "the frame is to an address that a bridge does not pass on",
        DropReason::SamePort => "sender and receiver are behind the same port",
        DropReason::UplinkFull => "the uplink had no room for the frame",
        DropReason::Reflected => "the function gave back a frame that was sent from here",
        DropReason::Vlan => "the port, or the one that it is for, does not carry the frame's VLAN",
        DropReason::RateLimit => "more than the port is given in a second",
        DropReason::LaneFull => "the core that serves the receiver did not take the frame in time",
        DropReason::Damaged => "the function received the frame damaged",
        DropReason::BeyondEnd => "the request is for sectors beyond the disk's end",
        DropReason::Misaligned => "the request is for less than whole blocks",
        DropReason::ReadOnly => "the disk is read-only",
        DropReason::Unsupported => "the disk does no such thing",
        DropReason::TooManySegments => "the request is in more pieces than the disk takes",
        DropReason::BadRange => "ranges are more or longer than the disk takes",
        DropReason::GuestMemory => "the guest's memory for the request is not there",
        DropReason::BackingFailed => "what is behind the disk failed",
    }
}

fn request_info(stats: &RequestStats) -> RequestInfo {
    let hertz = ringway_ring::tsc::hertz();
    let took = |thousandths| nanoseconds(stats.took.per_mille(thousandths), hertz);
    RequestInfo {
        kind: stats.kind.name().to_owned(),
        count: stats.took.count(),
        bytes: stats.bytes,
        p50_ns: took(500),
        p99_ns: took(990),
        p999_ns: took(999),
        max_ns: nanoseconds(stats.took.longest(), hertz),
    }
}

/// The reasons that a device of this class can have, and how often each was.
fn drops_of(class: Class, stats: &QueueStats) -> impl Iterator<Item = (DropReason, u64)> {
    let is_its = move |(reason, _): &&(DropReason, u64)| DropReason::of(class).contains(reason);
    stats.drops.iter().filter(is_its).copied()
}

/// What clears a fault of a ring.
pub(crate) fn fault_cure(fault: RingFault) -> &'static str {
    match fault {
        RingFault::Poisoned => {
            "the VMM shrank the memory it shares: restart the VM, with memory-backend-memfd (sealed) and share=on"
        }
        RingFault::Unmapped => {
            "the guest's address is outside the memory its VMM shares: see that all of it is share=on; then reset the device in the guest"
        }
        RingFault::Direction | RingFault::TooShort => {
            "the guest's driver built a buffer that this queue cannot have: reset the device in the guest; if it comes again, its driver is broken or hostile"
        }
        RingFault::CallBlocked => {
            "the VMM filled the descriptor by which its guest is interrupted and made it block: restart the VM; if it comes again, its VMM is hostile"
        }
        RingFault::UsedIndex | RingFault::UsedId | RingFault::UsedLength => {
            "the function that the device stands on broke the rules of its own rings: reset the device in the guest; if it comes again, take another function"
        }
        _ => {
            "the guest's driver broke the rules of its ring: reset the device in the guest (reload its driver); if it comes again, the driver is broken or hostile"
        }
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

#[cfg(test)]
mod tests {
    use ringway_pmd::net::{Mac, NetConfig};

    use super::*;

    #[test]
    fn what_was_dropped_or_faulted_is_explained_and_nothing_else() {
        let counters = ringway_pmd::counters::QueueCounters::default();
        counters.add_drops(DropReason::NoRxBuffer, 3);
        counters.add_fault(RingFault::Unmapped);
        let config = NetConfig { mac: Mac([2; 6]), mtu: 1500, max_vq_pairs: 1, link_up: true };
        let config = DeviceConfig::Net(config);
        let info = queue_info(Class::Net, &config, 1, &counters.snapshot());
        let names: Vec<_> = info.explain.iter().map(|e| (e.name.as_str(), e.count)).collect();
        assert_eq!(names, [("no_rx_buffer", 3), ("unmapped", 1)]);
        assert!(info.explain.iter().all(|e| !e.meaning.is_empty() && !e.cure.is_empty()));
        assert_eq!((info.queue_type.as_str(), &info.drops["runt"]), ("tx", &Value::from(0)));
        // The last one stands for all.
        for (reason, example, text) in [
            (
                DropReason::SpoofedMac,
                Example::Address(Mac([6; 6])),
                "last from 06:06:06:06:06:06, the device's is 02:02:02:02:02:02",
            ),
            (DropReason::SamePort, Example::Address(Mac([0; 6])), "last to 00:00:00:00:00:00"),
            (DropReason::Oversize, Example::Bytes(9019), "last of 9019 bytes"),
        ] {
            counters.add_drops(reason, 1);
            counters.set_example(reason, Example::Bytes(1));
            counters.set_example(reason, example);
            let info = queue_info(Class::Net, &config, 1, &counters.snapshot());
            let shown = info.explain.iter().find(|why| why.name == reason.name()).unwrap();
            assert_eq!(shown.example.as_deref(), Some(text));
        }
    }

    #[test]
    fn status_is_shown_by_name() {
        assert_eq!(status_names(0x0f), ["ACKNOWLEDGE", "DRIVER", "FEATURES_OK", "DRIVER_OK"]);
        assert!(status_names(0).is_empty());
    }
}
