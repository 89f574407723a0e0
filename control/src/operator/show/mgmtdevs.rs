//! Management devices, and what their bridges have learned.

use ringway_pmd::vdpa::{MgmtInfo, MgmtKindInfo};

use crate::daemon::Daemon;
use crate::devices::checks::uplink_of;
use crate::devices::device::Device;
use crate::devices::known::{KnownBus, no_such_mgmtdev};
use crate::devices::registry::{MgmtOrigin, Mgmtdev};
use crate::fault::Fault;
use crate::operator::api::{
    AttributeHelp, KindInfo, LearnedInfo, MgmtdevInfo, MgmtdevShow, Named, Select, StationInfo,
};
use crate::operator::names::feature_names;

impl Daemon {
    pub(crate) fn show_mgmtdevs(&self, select: Select) -> Result<MgmtdevShow, Fault> {
        let wanted = select.name.as_deref();
        let all = self.registry.mgmtdevs().map(|mgmtdev| (mgmtdev, mgmtdev.device.info()));
        let mgmtdev = all.filter(|(_, info)| wanted.is_none_or(|name| info.name == name));
        let mgmtdev: Named<MgmtdevInfo> = mgmtdev
            .map(|(mgmtdev, info)| {
                let shown = self.mgmtdev_info(mgmtdev, &info);
                (info.name, shown)
            })
            .collect();
        // One is asked for by its kind's name alone.
        let is_wanted = |name: &str| wanted.is_none_or(|wanted| wanted.trim_end_matches('/') == name);
        let kinds = self.registry.known().kinds.into_iter().filter(|kind| is_wanted(kind.name));
        let kinds: Named<KindInfo> = kinds.map(|kind| kind_info(&kind)).collect();
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

    /// One management device: what its bridge has learned and who uses it are looked up anew.
    pub(crate) fn mgmtdev_info(&self, mgmtdev: &Mgmtdev, info: &MgmtInfo) -> MgmtdevInfo {
        let name = info.name.as_str();
        let uses = |device: &&Device| device.entry.mgmtdev == name || uplink_of(&device.entry) == Some(name);
        let ports = self.ports.iter().filter(|port| port.entry.mgmtdev == name && port.why.is_none());
        let is_joined = mgmtdev.origin != MgmtOrigin::Driver;
        MgmtdevInfo {
            supported_classes: vec![info.class.class_name().to_owned()],
            max_supported_vqs: info.max_supported_vqs,
            dev_features: feature_names(info.class, info.features),
            attributes: AttributeHelp::all(&info.attributes),
            summary: info.summary.to_owned(),
            devices: self.registry.devices().filter(uses).count(),
            max_devices: info.max_devices,
            joined: if is_joined { self.registry.made_by(name) } else { Vec::new() },
            settings: mgmtdev.device.attributes(),
            functions: AttributeHelp::of_functions(info),
            ports: ports.map(|port| port.entry.handle()).collect(),
            learned: mgmtdev.device.net().map(|net| learned(net.stations())),
        }
    }
}

/// A kind of management devices, by what one of them is called.
pub(crate) fn kind_info(kind: &MgmtKindInfo) -> (String, KindInfo) {
    (format!("{}/NAME", kind.name), KindInfo::of(kind))
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
