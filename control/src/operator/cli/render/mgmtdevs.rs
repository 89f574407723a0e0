//! Management devices, their ports and VLANs.

use std::fmt::Write as _;

use super::features;
use crate::operator::api::{AttributeHelp, MgmtdevShow, PortInfo, PortShow, VlanShow};
use crate::operator::cli::keywords::SHOWN;

/// `mgmtdev show`.
pub(crate) fn mgmtdevs(answer: &MgmtdevShow) -> String {
    let mut text = String::new();
    for (name, info) in &answer.mgmtdev.0 {
        let _ = writeln!(text, "{name}: ");
        let _ = writeln!(text, "  supported_classes {}", info.supported_classes.join(" "));
        let _ = writeln!(text, "  max_supported_vqs {}", info.max_supported_vqs);
        let _ = writeln!(text, "  dev_features {}", features(&info.dev_features));
        let _ = writeln!(text, "  summary {}", info.summary);
        for attribute in &info.attributes {
            let _ = writeln!(text, "  attribute {} {}: {}", attribute.name, attribute.value, attribute.help);
        }
        let _ = write!(text, "  devices {}", info.devices);
        if let Some(most) = info.max_devices {
            let _ = write!(text, " of {most}");
        }
        if !info.joined.is_empty() {
            let _ = write!(text, ": {}", info.joined.join(" "));
        }
        text.push('\n');
        for (name, value) in &info.settings {
            let _ = writeln!(text, "  setting {name} {value}");
        }
        functions(&mut text, &info.functions);
        if !info.ports.is_empty() {
            let _ = writeln!(text, "  ports {}", info.ports.join(" "));
        }
        if let Some(learned) = &info.learned {
            let _ = writeln!(text, "  stations {} refused {}", learned.stations.len(), learned.refused);
            for station in &learned.stations {
                let _ = write!(text, "  station {} ", station.mac);
                if let Some(vid) = station.vlan {
                    let _ = write!(text, "vlan {vid} ");
                }
                let _ = writeln!(text, "dev {} age {} s", station.dev, station.age_s);
            }
        }
    }
    for (name, why) in &answer.absent.0 {
        let _ = writeln!(text, "{name}: not made as it was asked for: {why}");
    }
    for (name, why) in &answer.unusable.0 {
        let _ = writeln!(text, "{name}: cannot be used: {why}");
    }
    for (name, kind) in &answer.kinds.0 {
        let _ = writeln!(text, "{name}: {}; one comes to be by being named", kind.summary);
        let _ = writeln!(text, "  add {}", kind.add);
        if let Some(most) = kind.max_devices {
            let _ = writeln!(text, "  devices {most} at most");
        }
        for (what, list) in [("attribute", &kind.attributes), ("setting", &kind.settings)] {
            for attribute in list {
                let _ = writeln!(text, "  {what} {} {}: {}", attribute.name, attribute.value, attribute.help);
            }
        }
        functions(&mut text, &kind.functions);
    }
    text
}

/// Attributes of functions that can be made of a management device.
fn functions(text: &mut String, attributes: &[AttributeHelp]) {
    for attribute in attributes {
        let _ = writeln!(text, "  function {} {}: {}", attribute.name, attribute.value, attribute.help);
    }
}

/// `bridge vlan show`, as bridge(8) has it.
pub(crate) fn vlans(answer: &VlanShow) -> String {
    let mut text = String::new();
    for (name, port) in &answer.vlan.0 {
        if text.is_empty() {
            let _ = writeln!(text, "{:<17} vlan-id", "port");
        }
        let mut name = name.as_str();
        for vlan in &port.vlans {
            let range = vlan.vlan_end.map_or_else(String::new, |last| format!("-{last}"));
            let flags: String = vlan.flags.iter().map(|flag| format!(" {flag}")).collect();
            let _ = writeln!(text, "{name:<17} {}{range}{flags}", vlan.vlan);
            name = "";
        }
        if port.vlans.is_empty() {
            let _ = writeln!(text, "{name:<17} none");
        }
    }
    text
}

/// `port show`, as devlink(8) has it, then what the function is here.
pub(crate) fn ports(answer: &PortShow) -> String {
    let mut text = String::new();
    for (name, port) in &answer.port.0 {
        let PortInfo { flavour, pfnum, sfnum, function, mgmtdev, devices, origin } = port;
        let _ = writeln!(text, "{name}: flavour {flavour} pfnum {pfnum} sfnum {sfnum}");
        let _ = write!(text, "  function:\n    state {} opstate {}", function.state.name(), function.opstate);
        for (attribute, value) in &function.attributes.0 {
            let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            let _ = write!(text, " {attribute} {value}");
        }
        let _ = write!(text, "\n  mgmtdev {mgmtdev} origin {origin}");
        if !devices.is_empty() {
            let _ = write!(text, " devices {}", devices.join(" "));
        }
        text.push('\n');
    }
    for (name, why) in &answer.absent.0 {
        let _ = writeln!(text, "{name}: not made: {why}");
    }
    text
}

/// What a word of `dev show` means.
pub(super) fn meaning(word: &str) -> &'static str {
    SHOWN.iter().find(|(name, _)| *name == word).map_or("", |(_, meaning)| *meaning)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::api::{MgmtdevInfo, Named};
    use crate::operator::names::FeatureName;

    fn named<T>(name: &str, value: T) -> Named<T> {
        Named(vec![(name.to_owned(), value)])
    }

    #[test]
    fn mgmtdev_lines_are_those_of_vdpa() {
        let info = MgmtdevInfo {
            supported_classes: vec!["net".into()],
            max_supported_vqs: 257,
            dev_features: vec![FeatureName::Name("CSUM".into()), FeatureName::Bit(52)],
            attributes: Vec::new(),
            summary: "a card".into(),
            devices: 0,
            max_devices: None,
            joined: Vec::new(),
            settings: Default::default(),
            functions: Vec::new(),
            ports: Vec::new(),
            learned: None,
        };
        let mgmtdev = named("pci/0000:3b:00.1", info);
        let answer = MgmtdevShow {
            mgmtdev,
            absent: Named::default(),
            unusable: Named::default(),
            kinds: Named::default(),
        };
        let expected = "pci/0000:3b:00.1: \n  supported_classes net\n  max_supported_vqs 257\n  dev_features CSUM bit_52\n";
        assert!(mgmtdevs(&answer).starts_with(expected));
        let expected = "{\"mgmtdev\":{\"pci/0000:3b:00.1\":{\"supported_classes\":[\"net\"],\
                        \"max_supported_vqs\":257,\"dev_features\":[\"CSUM\",52]";
        assert!(serde_json::to_string(&answer).unwrap().starts_with(expected));
    }
}
