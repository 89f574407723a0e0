//! Devices, and what they are configured to.

use std::fmt::Write as _;

use super::features;
use super::mgmtdevs::meaning;
use crate::frontends::cures;
use crate::operator::api::{ConfigShow, DevInfo, DevShow, History, Provisioned};

/// `dev show`: one line of Ringway's own per device, or everything.
pub(crate) fn devices(answer: &DevShow, is_full: bool) -> String {
    let mut text = String::new();
    for (name, info) in &answer.dev.0 {
        let _ = writeln!(
            text,
            "{name}: type {} mgmtdev {} vendor_id {} max_vqs {} max_vq_size {}",
            info.kind, info.mgmtdev, info.vendor_id, info.max_vqs, info.max_vq_size
        );
        let peer = match &info.front_end {
            Some(peer) => format!(" front_end {} (pid {}, uid {})", peer.comm, peer.pid, peer.uid),
            None => String::new(),
        };
        let other_side = match (&info.netdev, &info.uplink) {
            (Some(ifname), _) => format!("netdev {ifname}"),
            (None, Some(function)) => format!("uplink {function}"),
            (None, None) => format!("socket {} mode {}", info.socket.display(), info.mode.name()),
        };
        let _ = writeln!(text, "  state {} {other_side}{peer}", info.state);
        if is_full {
            device_details(&mut text, name, info);
        }
        for capture in &info.captures {
            let _ = writeln!(
                text,
                "  captured by {} for {} s: {} frames, {} missed",
                capture.by,
                capture.up_ms / 1000,
                capture.captured,
                capture.missed
            );
            if let Some(waits_for) = &capture.waits_for {
                let _ = writeln!(text, "    {waits_for}");
            }
        }
        for note in &info.notes {
            let _ = writeln!(text, "  note: {note}");
        }
    }
    for (name, why) in &answer.absent.0 {
        let _ = writeln!(text, "{name}: not made: {why}");
    }
    for (name, what) in &answer.draining.0 {
        let _ = writeln!(text, "{name}: let go of, draining: {what}");
    }
    text
}

fn device_details(text: &mut String, name: &str, info: &DevInfo) {
    let _ = write!(text, "  origin {} data_path {}", info.origin, info.data_path);
    for (key, value) in [("owner", &info.owner), ("group", &info.group)] {
        if let Some(value) = value {
            let _ = write!(text, " {key} {value}");
        }
    }
    text.push('\n');
    let _ = writeln!(text, "  device_features {}", features(&info.device_features));
    let _ = writeln!(text, "  provisioned {}", provisioned(&info.provisioned));
    if !info.attributes.is_empty() {
        let list: Vec<String> = info.attributes.iter().map(|(key, value)| format!("{key} {value}")).collect();
        let _ = writeln!(text, "  attributes {}", list.join(" "));
    }
    if info.netdev.is_none() && info.uplink.is_none() {
        let _ = writeln!(text, "  mode {}: {}", info.mode.name(), meaning(info.mode.name()));
    }
    let cores: Vec<String> = info.cores.iter().map(usize::to_string).collect();
    let _ = writeln!(text, "  cores {}", cores.join(" "));
    if let Some(peer) = &info.front_end {
        let _ = writeln!(
            text,
            "  connected {}.{:03} s, memory {} regions, {} bytes",
            peer.connected_ms / 1000,
            peer.connected_ms % 1000,
            peer.memory_regions,
            peer.memory_bytes
        );
        if let Some(names) = &peer.negotiated_features {
            let _ = writeln!(text, "  negotiated_features {}", features(names));
        }
        if let Some(names) = &peer.protocol_features {
            let _ = writeln!(text, "  protocol_features {}", names.join(" "));
        }
        if let Some(names) = &peer.status {
            let _ = writeln!(text, "  status {}", names.join(" "));
        }
        if let Some(mtu) = peer.mtu {
            let _ = writeln!(text, "  guest_mtu {mtu}");
        }
    }
    if let Some(access) = &info.access {
        let _ = writeln!(
            text,
            "  socket_access owner {} group {} mode {}: a VMM of another user cannot open it; try: ringway dev del {name}, then add it with owner or group as the VMM's",
            access.owner, access.group, access.mode
        );
    }
    for ring in &info.rings {
        if !ring.started && ring.fault.is_none() {
            let _ = writeln!(text, "  queue {} stopped", ring.qidx);
            continue;
        }
        let _ = write!(text, "  queue {} size {}", ring.qidx, ring.size);
        for (is, yes, no) in [
            (ring.started, "started", "stopped"),
            (ring.enabled, "enabled", "disabled"),
            (ring.kicks, "kicks", "polls"),
        ] {
            let _ = write!(text, " {}", if is { yes } else { no });
        }
        if ring.started && ring.enabled && !ring.runs && ring.fault.is_none() {
            text.push_str(" not running");
        }
        if let Some(core) = ring.core {
            let _ = write!(text, " core {core}");
        }
        if let Some(fault) = &ring.fault {
            let _ = write!(text, " fault {fault}");
        }
        text.push('\n');
    }
    history(text, &info.history);
}

fn history(text: &mut String, history: &History) {
    let _ = writeln!(
        text,
        "  connections {} refused {} left {}",
        history.connections, history.refused, history.left
    );
    for (word, count) in [("refused", history.refused), ("left", history.left)] {
        if count > 0 {
            let _ = writeln!(text, "    {word} {count}: {}", meaning(word));
        }
    }
    for (what, count) in &history.breaches {
        let _ = writeln!(text, "  breach {what} {count}: {}", cures::breach_meaning(what));
        let _ = writeln!(text, "    try: {}", cures::breach_cure(what));
    }
    if let Some(detail) = &history.last_breach {
        let _ = writeln!(text, "    last: {detail}");
    }
    for (what, count) in &history.host_failures {
        let _ =
            writeln!(text, "  host_failure {what} {count}: this host lacked something, not the front-end");
        let _ = writeln!(text, "    try: {}", cures::host_cure(what));
    }
    if let Some(detail) = &history.last_host_failure {
        let _ = writeln!(text, "    last: {detail}");
    }
    for (fault, count) in &history.ring_faults {
        let _ = writeln!(
            text,
            "  ring_fault {fault} {count}: ringway dev vstats show tells its meaning and its cure"
        );
    }
    if history.pump_panics > 0 {
        let _ = writeln!(
            text,
            "  pump_panics {}: a fault of Ringway's own; please report it",
            history.pump_panics
        );
    }
    for (key, value) in [("last_end", &history.last_end), ("last_failure", &history.last_failure)] {
        if let Some(value) = value {
            let _ = writeln!(text, "  {key} {value}");
        }
    }
}

fn provisioned(provisioned: &Provisioned) -> String {
    let mut parts = Vec::new();
    if let Some(mac) = &provisioned.mac {
        parts.push(format!("mac {mac}"));
    }
    if let Some(link) = &provisioned.link {
        parts.push(format!("link {link}"));
    }
    if let Some(pairs) = provisioned.max_vq_pairs {
        parts.push(format!("max_vq_pairs {pairs}"));
    }
    if let Some(mtu) = provisioned.mtu {
        parts.push(format!("mtu {mtu}"));
    }
    if let Some(bytes) = provisioned.size {
        parts.push(format!("size {bytes}"));
    }
    if let Some(bytes) = provisioned.blk_size {
        parts.push(format!("blk_size {bytes}"));
    }
    if let Some(queues) = provisioned.num_queues {
        parts.push(format!("num_queues {queues}"));
    }
    if let Some(segments) = provisioned.seg_max {
        parts.push(format!("seg_max {segments}"));
    }
    if let Some(cache) = &provisioned.write_cache {
        parts.push(format!("write_cache {cache}"));
    }
    parts.join(" ")
}

/// `dev config show`.
pub(crate) fn config(answer: &ConfigShow) -> String {
    let mut text = String::new();
    for (name, info) in &answer.config.0 {
        let _ = write!(text, "{name}: ");
        if let Some(mac) = &info.mac {
            let _ = write!(text, "mac {mac} ");
        }
        if let Some(link) = &info.link {
            let _ = write!(text, "link {link} ");
        }
        if let Some(announce) = info.link_announce {
            let _ = write!(text, "link_announce {announce} ");
        }
        if let Some(pairs) = info.max_vq_pairs {
            let _ = write!(text, "max_vq_pairs {pairs} ");
        }
        if let Some(mtu) = info.mtu {
            let _ = write!(text, "mtu {mtu} ");
        }
        text.push('\n');
        if let Some(names) = &info.negotiated_features {
            let _ = writeln!(text, "  negotiated_features {}", features(names));
        }
        let _ = writeln!(text, "  provisioned {}", provisioned(&info.provisioned));
        if let Some(mtu) = info.guest_mtu {
            let _ = writeln!(text, "  guest_mtu {mtu}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::api::{ConfigInfo, Named};
    use crate::operator::names::FeatureName;

    fn names(list: &[&str]) -> Vec<FeatureName> {
        list.iter().map(|name| FeatureName::Name((*name).to_owned())).collect()
    }

    fn named<T>(name: &str, value: T) -> Named<T> {
        Named(vec![(name.to_owned(), value)])
    }

    #[test]
    fn config_line_is_that_of_vdpa_once_features_are_agreed_on() {
        let info = ConfigInfo {
            mac: Some("00:11:22:33:44:55".into()),
            link: Some("up".into()),
            link_announce: Some(false),
            max_vq_pairs: Some(8),
            mtu: Some(1500),
            negotiated_features: Some(names(&["CSUM", "GUEST_CSUM", "MTU", "MAC", "RING_PACKED"])),
            ..ConfigInfo::default()
        };
        let answer = ConfigShow { config: named("vdpa0", info) };
        let expected = "vdpa0: mac 00:11:22:33:44:55 link up link_announce false max_vq_pairs 8 mtu 1500 \n  \
                        negotiated_features CSUM GUEST_CSUM MTU MAC RING_PACKED\n";
        assert!(config(&answer).starts_with(expected), "{}", config(&answer));
        let expected = "{\"config\":{\"vdpa0\":{\"mac\":\"00:11:22:33:44:55\",\"link \":\"up\",\
                        \"link_announce \":false,\"max_vq_pairs\":8,\"mtu\":1500,\"negotiated_features\":[\"CSUM\"";
        assert!(serde_json::to_string(&answer).unwrap().starts_with(expected));
    }
}
