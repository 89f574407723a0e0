//! Answers as text: the lines of `vdpa(8)` first, byte for byte, then what it lacks, indented.

use std::fmt::Write as _;

use crate::frontends::cures;
use crate::operator::api::{
    AttributeHelp, ConfigAction, ConfigPlan, ConfigShow, CoreChanged, CoreInfo, CoreMove, CorePlan, CoreShow,
    DevInfo, DevShow, Disrupts, Event, EventPage, Explained, Hello, History, MgmtdevShow, PortInfo, PortShow,
    Provisioned, QueueInfo, RequestInfo, SizeInfo, TimeInfo, VlanShow, Vstats, VstatsShow,
};
use crate::operator::cli::grammar::SHOWN;
use crate::operator::doctor::ranges;
use crate::operator::names::FeatureName;
use crate::operator::rates::pump_state;

fn features(names: &[FeatureName]) -> String {
    names.iter().map(FeatureName::shown).collect::<Vec<_>>().join(" ")
}

/// `mgmtdev show`.
pub(super) fn mgmtdevs(answer: &MgmtdevShow) -> String {
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
pub(super) fn vlans(answer: &VlanShow) -> String {
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
pub(super) fn ports(answer: &PortShow) -> String {
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
fn meaning(word: &str) -> &'static str {
    SHOWN.iter().find(|(name, _)| *name == word).map_or("", |(_, meaning)| *meaning)
}

/// `dev show`: one line of Ringway's own per device, or everything.
pub(super) fn devices(answer: &DevShow, is_full: bool) -> String {
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
pub(super) fn config(answer: &ConfigShow) -> String {
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

/// `dev vstats show`.
pub(super) fn vstats(answer: &VstatsShow) -> String {
    let mut text = String::new();
    for (name, vstats) in &answer.vstats.0 {
        match vstats {
            Vstats::One(queue) => {
                let _ = writeln!(
                    text,
                    "{name}: queue_type {} received_desc {} completed_desc {} ",
                    queue.queue_type, queue.received_desc, queue.completed_desc
                );
                let _ = writeln!(
                    text,
                    "  qidx {} packets {} bytes {} calls {} bursts {}",
                    queue.qidx, queue.packets, queue.bytes, queue.calls, queue.bursts
                );
                not_run(&mut text, queue);
                bursts(&mut text, queue);
                finished(&mut text, queue);
                batches(&mut text, queue);
                requests(&mut text, queue);
                again(&mut text, queue);
                held(&mut text, queue);
                explained(&mut text, queue);
            }
            Vstats::All { queues } => {
                let _ = writeln!(text, "{name}: ");
                let _ = writeln!(
                    text,
                    "  {:>4} {:<7} {:>14} {:>14} {:>14} {:>16} {:>12} {:>12} {:>10} {:>6}",
                    "qidx",
                    "type",
                    "received_desc",
                    "completed_desc",
                    "packets",
                    "bytes",
                    "calls",
                    "bursts",
                    "drops",
                    "faults"
                );
                for queue in queues {
                    let _ = writeln!(
                        text,
                        "  {:>4} {:<7} {:>14} {:>14} {:>14} {:>16} {:>12} {:>12} {:>10} {:>6}",
                        queue.qidx,
                        queue.queue_type,
                        queue.received_desc,
                        queue.completed_desc,
                        queue.packets,
                        queue.bytes,
                        queue.calls,
                        queue.bursts,
                        sum(&queue.drops),
                        sum(&queue.faults)
                    );
                }
                for queue in queues {
                    not_run(&mut text, queue);
                    bursts(&mut text, queue);
                    finished(&mut text, queue);
                    batches(&mut text, queue);
                    requests(&mut text, queue);
                    again(&mut text, queue);
                    held(&mut text, queue);
                    explained(&mut text, queue);
                }
            }
        }
    }
    text
}

fn sum(counters: &serde_json::Map<String, serde_json::Value>) -> u64 {
    counters.values().filter_map(serde_json::Value::as_u64).sum()
}

/// Why it is not served.
fn not_run(text: &mut String, queue: &QueueInfo) {
    if let Some(why) = &queue.not_run {
        let _ = writeln!(text, "  queue {} {why}", queue.qidx);
    }
}

/// How large bursts were, and how long they took.
fn bursts(text: &mut String, queue: &QueueInfo) {
    let Some(sizes) = &queue.burst_sizes else { return };
    let _ = write!(text, "  queue {} burst {}", queue.qidx, sizes_text(sizes));
    if let Some(latency) = &queue.latency {
        let _ = write!(text, " latency_us {}", times_text(latency));
    }
    text.push('\n');
}

fn sizes_text(sizes: &SizeInfo) -> String {
    format!("p50 {} p99 {} max {}", sizes.p50, sizes.p99, sizes.max)
}

/// In microseconds, with a tenth.
fn times_text(times: &TimeInfo) -> String {
    let TimeInfo { p50_ns, p99_ns, p999_ns, max_ns } = *times;
    format!("p50 {} p99 {} p99.9 {} max {}", us(p50_ns), us(p99_ns), us(p999_ns), us(max_ns))
}

fn us(ns: u64) -> String {
    format!("{}.{}", ns / 1000, ns % 1000 / 100)
}

/// What was done for a guest that did not agree to do it.
fn finished(text: &mut String, queue: &QueueInfo) {
    if queue.sw_checksums | queue.sw_segmented != 0 {
        let _ = writeln!(
            text,
            "  queue {} done for the guest: {} checksums, {} large frames cut into {}",
            queue.qidx, queue.sw_checksums, queue.sw_segmented, queue.sw_segments
        );
    }
}

/// What was done again of what another process began.
fn again(text: &mut String, queue: &QueueInfo) {
    if queue.resubmitted != 0 {
        let _ = writeln!(
            text,
            "  queue {} {} requests were done again that a process before this one had not completed",
            queue.qidx, queue.resubmitted
        );
    }
}

/// How often frames had to stay.
fn held(text: &mut String, queue: &QueueInfo) {
    if queue.held != 0 {
        let _ = writeln!(
            text,
            "  queue {} held {} times: it sends as much as max_tx_pps and max_tx_rate let it",
            queue.qidx, queue.held
        );
    }
}

/// How many frames a system call moved, of a queue whose other side is the kernel.
fn batches(text: &mut String, queue: &QueueInfo) {
    if let Some(tenths) = queue.packets.saturating_mul(10).checked_div(queue.netdev_calls) {
        let _ = writeln!(
            text,
            "  queue {} kernel: {} system calls, {}.{} frames each",
            queue.qidx,
            queue.netdev_calls,
            tenths / 10,
            tenths % 10
        );
    }
}

/// How many requests of each kind a disk's queue did, and how long they took.
fn requests(text: &mut String, queue: &QueueInfo) {
    for &RequestInfo { ref kind, count, bytes, p50_ns, p99_ns, p999_ns, max_ns } in
        queue.requests.iter().filter(|requests| requests.count > 0)
    {
        let times = times_text(&TimeInfo { p50_ns, p99_ns, p999_ns, max_ns });
        let _ = writeln!(text, "  queue {} {kind} {count} bytes {bytes} us {times}", queue.qidx);
    }
}

fn explained(text: &mut String, queue: &QueueInfo) {
    for Explained { name, count, meaning, example, cure } in &queue.explain {
        let _ = write!(text, "  queue {} {name} {count}: {meaning}", queue.qidx);
        let _ = writeln!(text, "{}", example.as_ref().map(|last| format!("; {last}")).unwrap_or_default());
        let _ = writeln!(text, "    try: {cure}");
    }
}

/// `core show`.
pub(super) fn cores(answer: &CoreShow) -> String {
    let mut text = String::new();
    for (core, info) in &answer.core.0 {
        let all = (info.busy_cycles + info.idle_cycles + info.sleep_cycles).max(1);
        let share = |cycles: u64| cycles as f64 * 100.0 / all as f64;
        let _ = writeln!(
            text,
            "core {core}: busy {:.1}% idle {:.1}% sleep {:.1}% policy {} tid {} groups {}",
            share(info.busy_cycles),
            share(info.idle_cycles),
            share(info.sleep_cycles),
            info.idle_policy,
            info.tid,
            info.groups
        );
        work(&mut text, info);
        place(&mut text, info);
        for other in &info.others {
            let _ = writeln!(text, "  shared with {other}");
        }
        for pump in &info.pumps {
            let _ = writeln!(
                text,
                "  pump {}: {} packets {} bursts {} busy_cycles {}",
                pump.name,
                pump_state(pump),
                pump.packets,
                pump.bursts,
                pump.busy_cycles
            );
        }
    }
    text
}

/// Where a core is, where there is something to say of it.
fn place(text: &mut String, info: &CoreInfo) {
    let mut words = Vec::new();
    words.extend(info.node.map(|node| format!("node {node}")));
    if !info.siblings.is_empty() {
        words.push(format!("beside {}", ranges(&info.siblings)));
    }
    if info.draining {
        words.push("draining".to_owned());
    }
    if !words.is_empty() {
        let _ = writeln!(text, "  {}", words.join(" "));
    }
}

/// `core add`, `core drain`, `core del`.
pub(super) fn core_changed(changed: &CoreChanged) -> String {
    changed
        .moved
        .iter()
        .map(|step| format!("{} goes from core {} to core {}\n", moved(step), step.from, step.to))
        .collect()
}

/// `core balance`.
pub(super) fn core_plan(plan: &CorePlan) -> String {
    let mut text = String::new();
    let percent = |x100: u64| format!("{}.{} %", x100 / 100, x100 / 10 % 10);
    for (core, load) in &plan.core.0 {
        let _ =
            write!(text, "core {core}: busy {}, groups {}", percent(load.before_x100), load.groups_before);
        if load.before_x100 != load.after_x100 || load.groups_before != load.groups_after {
            let _ = write!(text, "; then busy {}, groups {}", percent(load.after_x100), load.groups_after);
        }
        text.push('\n');
    }
    let goes = if plan.applied { "goes" } else { "would go" };
    for step in &plan.moves {
        let _ = writeln!(
            text,
            "{} {goes} from core {} to core {} (busy {})",
            moved(step),
            step.from,
            step.to,
            percent(step.busy_x100)
        );
    }
    match (plan.moves.is_empty(), plan.applied) {
        (true, _) => text += "nothing to move\n",
        (false, false) => text += "nothing is done yet: ringway core balance --apply\n",
        (false, true) => {}
    }
    text
}

fn moved(step: &CoreMove) -> String {
    match step.group {
        Some(group) => format!("{} group {group}", step.name),
        None => step.name.clone(),
    }
}

fn work(text: &mut String, info: &CoreInfo) {
    let _ = write!(text, "  packets {} bursts {}", info.packets, info.bursts);
    if let Some(cycles) = info.cycles_per_packet {
        let _ = write!(text, " cycles_per_packet {cycles}");
    }
    if let Some(packets) = info.packets_per_burst_x100 {
        let _ = write!(text, " packets_per_burst {}.{:02}", packets / 100, packets % 100);
    }
    let _ = write!(text, " wakeups {} longest_turn_us {}", info.wakeups, info.longest_turn_ns / 1000);
    if let Some(preemptions) = info.preemptions {
        let _ = write!(text, " preemptions {preemptions}");
    }
    if let Some(ns) = info.run_delay_ns {
        let _ = write!(text, " run_delay_us {}", ns / 1000);
    }
    text.push('\n');
    if let (Some(sizes), Some(turns)) = (&info.burst_sizes, &info.busy_turns) {
        let _ = writeln!(text, "  burst {} turn_us {}", sizes_text(sizes), times_text(turns));
    }
    if info.gives_way || info.rests > 0 {
        let now = if info.gives_way { "gives way" } else { "gave way" };
        let policy = info.scheduling.as_deref().unwrap_or("unknown");
        let _ = writeln!(
            text,
            "  {now}: rests {} rest_us {} scheduling {policy}",
            info.rests,
            info.rest_ns / 1000
        );
    }
    if info.panics > 0 {
        let _ = writeln!(text, "  panics {}: a pump was taken out; ringway events tells which", info.panics);
    }
}

/// `config diff`, or `config apply` if it is done.
pub(super) fn plan(plan: &ConfigPlan, is_done: bool) -> String {
    let mut text = String::new();
    for step in &plan.steps {
        let (sign, done, to_do) = match step.action {
            ConfigAction::Add => ('+', "added", "is added"),
            ConfigAction::Set => ('~', "changed", "is changed"),
            ConfigAction::Remake => ('!', "removed and made anew", "is removed and made anew"),
            ConfigAction::Del => ('-', "removed", "is removed"),
            ConfigAction::Adopt => {
                ('=', "the file's now, not an operator's", "becomes the file's, not an operator's")
            }
            ConfigAction::Restart => {
                ('*', "waits for a restart of ringwayd", "waits for a restart of ringwayd")
            }
        };
        let name = if step.name.is_empty() { String::new() } else { format!(" {}", step.name) };
        let disrupts = match step.disrupts {
            Disrupts::Nothing => String::new(),
            Disrupts::Queue => "; its queues stand for a moment".to_owned(),
            Disrupts::Device => {
                "; its guest loses the device".to_owned()
                    + if step.action == ConfigAction::Del { "" } else { " for a moment" }
            }
            Disrupts::Daemon => "; that disrupts all devices for a moment".to_owned(),
        };
        let word = if is_done { done } else { to_do };
        let _ = writeln!(text, "{sign} {}{name}: {word}{disrupts}", step.what);
        for change in &step.changes {
            let word = |value: &Option<String>| value.clone().unwrap_or_else(|| "default".to_owned());
            let _ = writeln!(text, "    {} {} -> {}", change.key, word(&change.before), word(&change.after));
        }
        for note in &step.notes {
            let _ = writeln!(text, "    {note}");
        }
    }
    let devices = |count: usize| if count == 1 { "1 device".to_owned() } else { format!("{count} devices") };
    let _ = match (plan.steps.is_empty(), plan.unchanged) {
        (true, unchanged) => writeln!(text, "nothing to change: {} as the file says", devices(unchanged)),
        (false, 0) => Ok(()),
        (false, unchanged) => writeln!(text, "{} more as the file says", devices(unchanged)),
    };
    if !plan.beside.is_empty() {
        let _ = writeln!(text, "added by operators, and not in the file: {}", plan.beside.join(", "));
    }
    if let Some(previous) = &plan.previous {
        let _ = writeln!(text, "what was asked for before is kept in {previous}");
    }
    text
}

/// `hello`.
pub(super) fn hello(hello: &Hello) -> String {
    let mut text = format!("{} (pid {}), api {}\n", hello.build, hello.pid, hello.api);
    let _ = writeln!(text, "  instance {} generation {} seq {}", hello.instance, hello.generation, hello.seq);
    let _ = writeln!(text, "  device sockets in {}", hello.device_dir.display());
    match &hello.state_dir {
        Some(dir) => {
            let _ = writeln!(text, "  devices are kept in {}", dir.display());
        }
        None => text.push_str("  devices are not kept over a restart\n"),
    }
    let _ = writeln!(text, "  clients {}", hello.clients);
    for (reason, count) in &hello.dropped_clients {
        let _ = writeln!(text, "  dropped clients: {reason} {count}");
    }
    if hello.role == "viewer" {
        text.push_str("  this socket is view-only\n");
    }
    if hello.refused_requests > 0 {
        let _ = writeln!(text, "  refused requests of viewers {}", hello.refused_requests);
    }
    if hello.lost_log_lines > 0 {
        let _ = writeln!(
            text,
            "  lost lines of the log: {} (whoever reads ringwayd's standard error is too slow)",
            hello.lost_log_lines
        );
    }
    if hello.lost_events > 0 {
        let _ = writeln!(text, "  events that are not kept on disk: {}", hello.lost_events);
    }
    text
}

/// The first line of `events`: what there is.
pub(super) fn snapshot(page: &EventPage) -> String {
    let mut text = format!("{} snapshot", page.seq);
    for (name, state) in page.snapshot.iter().flat_map(|snapshot| &snapshot.0) {
        let _ = write!(text, " {name}={state}");
    }
    text.push('\n');
    text
}

/// An event as a line.
pub(super) fn event(event: &Event) -> String {
    // Of an earlier daemon: the beginning of its instance tells it from others.
    let instance = event.instance.as_deref().and_then(|instance| instance.get(..8));
    let whose = instance.map(|instance| format!("{instance}:")).unwrap_or_default();
    let mut text = format!("{whose}{} {} {}", event.seq, timestamp(event.time_ns), event.kind);
    if let Some(dev) = &event.dev {
        let _ = write!(text, " {dev}");
    }
    for (key, value) in &event.details {
        match (key.as_str(), serde_json::from_value::<Vec<FeatureName>>(value.clone())) {
            ("features", Ok(names)) => {
                let names: Vec<String> = names.iter().map(FeatureName::shown).collect();
                let _ = write!(text, " {key}={}", serde_json::json!(names));
            }
            _ => drop(write!(text, " {key}={value}")),
        }
    }
    text.push('\n');
    text
}

/// Nanoseconds since 1970 as RFC 3339, in UTC, to the millisecond.
fn timestamp(time_ns: u64) -> String {
    let (seconds, millis) = (time_ns / 1_000_000_000, time_ns / 1_000_000 % 1000);
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    // Days to year, month and day in the Gregorian calendar, counted in eras of 400 years from March 1st of year 0.
    let z = days + 719_468;
    let (era, doe) = (z / 146_097, z % 146_097);
    let yoe = (doe - doe / 1460 + doe / 36_524 - doe / 146_096) / 365;
    let doy = doe - (365 * yoe + yoe / 4 - yoe / 100);
    let mp = (5 * doy + 2) / 153;
    let day = doy - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    let year = yoe + era * 400 + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::operator::api::{ConfigInfo, MgmtdevInfo, Named};

    fn named<T>(name: &str, value: T) -> Named<T> {
        Named(vec![(name.to_owned(), value)])
    }

    fn names(list: &[&str]) -> Vec<FeatureName> {
        list.iter().map(|name| FeatureName::Name((*name).to_owned())).collect()
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

    #[test]
    fn batches_of_the_kernels_side_are_shown_and_a_guests_queue_has_none() {
        let queue = |packets: u64, netdev_calls: u64| {
            serde_json::from_value(serde_json::json!({
                "queue_type": "rx", "received_desc": 0, "completed_desc": 0, "qidx": 0, "packets": packets, "bytes": 0,
                "calls": 0, "bursts": 0, "netdev_calls": netdev_calls, "drops": {}, "faults": {},
            }))
            .unwrap()
        };
        for (packets, calls, line) in [
            (640, 20, Some("  queue 0 kernel: 20 system calls, 32.0 frames each\n")),
            (33, 2, Some("  queue 0 kernel: 2 system calls, 16.5 frames each\n")),
            (0, 1, Some("  queue 0 kernel: 1 system calls, 0.0 frames each\n")),
            (640, 0, None),
        ] {
            let answer = VstatsShow { vstats: named("h0", Vstats::One(queue(packets, calls))) };
            let shown = vstats(&answer);
            assert!(line.map_or(!shown.contains("kernel:"), |line| shown.contains(line)), "{shown}");
        }
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

    #[test]
    fn time_is_printed_as_rfc_3339() {
        assert_eq!(timestamp(0), "1970-01-01T00:00:00.000Z");
        assert_eq!(timestamp(1_709_210_096_789_000_000), "2024-02-29T12:34:56.789Z");
        assert_eq!(timestamp(4_102_444_800_000_000_000), "2100-01-01T00:00:00.000Z");
    }
}
