//! `why NAME`: what keeps packets or requests from a device, found in what the daemon shows of it, from its socket to its guest.
//!
//! Two looks a moment apart tell what goes on from what was once. The first cause from the outside in is the answer: what lies
//! behind it cannot work before it is mended; what else was found follows.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::operator::api::{
    CoreInfo, CoreShow, DevInfo, DevShow, Explained, FrontEnd, Mode, Named, QueueInfo, Vstats,
};

/// Answer of `why`.
#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Why {
    /// By the device's name: the causes, the first of them first.
    pub(super) why: Named<Vec<Cause>>,
}

/// One thing that keeps packets from a device, or that nothing does.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Cause {
    /// A word for it, for scripts.
    pub(super) cause: String,
    /// What it is, in a sentence.
    pub(super) says: String,
    /// The next step. Absent: none is needed.
    #[serde(rename = "try", skip_serializing_if = "Option::is_none")]
    pub(super) cure: Option<String>,
}

/// What is shown of a device: now, and a moment before.
pub(super) struct Looks<'a> {
    pub(super) shown: &'a DevShow,
    pub(super) before: &'a [QueueInfo],
    pub(super) after: &'a [QueueInfo],
    pub(super) cores_before: &'a CoreShow,
    pub(super) cores: &'a CoreShow,
}

impl Looks<'_> {
    /// Why. Never empty.
    pub(super) fn why(&self, name: &str) -> Vec<Cause> {
        let named = |cause: Cause| Cause { cure: cause.cure.map(|cure| cure.replace("NAME", name)), ..cause };
        self.causes(name).into_iter().map(named).collect()
    }

    fn causes(&self, name: &str) -> Vec<Cause> {
        let shown = self.shown.dev.find(name);
        if let (None, Some(why)) = (shown, self.shown.absent.find(name)) {
            let says = format!("{name} is asked for and could not be made: {why}");
            let cure = "mend that: ringway dev show NAME says whether it is tried again; ringway dev del NAME removes it";
            return vec![cause("not_made", says, cure)];
        }
        if let (None, Some(what)) = (shown, self.shown.draining.find(name)) {
            let says = format!("{name} was removed, and what it has under way is not done yet: {what}");
            return vec![cause("draining", says, "see what is wrong with the disk on the host")];
        }
        let Some(info) = shown else { return Vec::new() };
        let mut causes = Vec::new();
        causes.extend(reaches(name, info));
        if causes.is_empty() {
            causes.extend(is_set_up(info));
            causes.extend(self.stopped(info));
        }
        causes.extend(self.lost(true));
        causes.extend(self.cores_of(info));
        causes.extend(self.held());
        if causes.is_empty() {
            causes.push(self.moves(name, info));
            causes.extend(self.lost(false));
        }
        causes
    }

    /// Rings that a fault stopped, and those that lack something though they are started.
    fn stopped(&self, info: &DevInfo) -> Vec<Cause> {
        let mut causes = Vec::new();
        for ring in info.rings.iter().filter(|ring| ring.fault.is_some()) {
            let fault = ring.fault.as_deref().unwrap_or_default();
            let queue = self.after.iter().find(|queue| queue.qidx == u32::from(ring.qidx));
            let said = queue.and_then(|queue| queue.explain.iter().find(|said| said.name == fault));
            let says = match said {
                Some(said) => format!("queue {} is stopped by a fault, {fault}: {}", ring.qidx, said.meaning),
                None => format!("queue {} is stopped by a fault, {fault}", ring.qidx),
            };
            let cure =
                said.map_or("reset the device in the guest (reload its driver)", |said| said.cure.as_str());
            causes.push(cause("ring_fault", says, cure));
        }
        for queue in self.after {
            let Some(text) = &queue.not_run else { continue };
            let (says, cure) = text.split_once("; try: ").unwrap_or((text, "ringway dev show has its rings"));
            causes.push(cause("not_run", format!("queue {}: {says}", queue.qidx), cure));
        }
        // A guest of fewer queues than there are has some that it never enables.
        let of_way = |way: u16| info.rings.iter().filter(move |ring| ring.started && ring.qidx % 2 == way);
        let is_disabled = |way: &u16| {
            of_way(*way).count() > 0 && of_way(*way).all(|ring| !ring.enabled && ring.fault.is_none())
        };
        let ways = [0, 1].into_iter().filter(is_disabled);
        let disabled: Vec<String> = ways.flat_map(of_way).map(|ring| ring.qidx.to_string()).collect();
        if !disabled.is_empty() {
            let says =
                format!("the guest started queue {} and the VMM has not enabled it", disabled.join(", "));
            causes.push(cause(
                "not_enabled",
                says,
                "bring the interface up in the guest; link on in the VMM (QEMU: set_link ... on)",
            ));
        }
        causes
    }

    /// Drops: those that came between the looks, or those that there ever were.
    fn lost(&self, is_now: bool) -> Vec<Cause> {
        let mut found: Vec<(u64, Cause)> = Vec::new();
        for queue in self.after {
            let earlier = self.before.iter().find(|before| before.qidx == queue.qidx);
            let count = |queue: &QueueInfo, name: &str| {
                queue.drops.get(name).and_then(serde_json::Value::as_u64).unwrap_or_default()
            };
            for said in queue.explain.iter().filter(|said| queue.drops.contains_key(&said.name)) {
                let new =
                    said.count.saturating_sub(earlier.map_or(said.count, |before| count(before, &said.name)));
                let Explained { name, meaning, cure, example, .. } = said;
                let example = example.as_ref().map_or_else(String::new, |example| format!(" ({example})"));
                let (many, says) = match is_now {
                    true => (
                        new,
                        format!("queue {} loses frames, {new} just now: {meaning}{example}", queue.qidx),
                    ),
                    false => (
                        said.count,
                        format!(
                            "queue {} lost {} before, and none just now: {meaning}{example}",
                            queue.qidx, said.count
                        ),
                    ),
                };
                if many > 0 {
                    found.push((many, cause(name, says, cure)));
                }
            }
        }
        // The most first.
        found.sort_by_key(|(many, _)| std::cmp::Reverse(*many));
        found.into_iter().map(|(_, cause)| cause).collect()
    }

    /// The cores that serve it: at their limit, or taken away.
    fn cores_of(&self, info: &DevInfo) -> Vec<Cause> {
        let mut numbers = info.cores.clone();
        numbers.sort_unstable();
        numbers.dedup();
        let look = |number: &usize| {
            let name = number.to_string();
            let (before, now) = (self.cores_before.core.find(&name)?, self.cores.core.find(&name)?);
            core_cause(*number, before, now)
        };
        numbers.iter().filter_map(look).collect()
    }

    /// Rates that hold frames back.
    fn held(&self) -> Option<Cause> {
        let held = |queues: &[QueueInfo]| queues.iter().map(|queue| queue.held).sum::<u64>();
        let new = held(self.after).saturating_sub(held(self.before));
        (new > 0).then(|| {
            let says = "its guest sends as much as it may, and what is more waits in its queue (max_tx_pps, max_tx_rate)".to_owned();
            cause("rate", says, "raise them with ringway dev set, if it may have more")
        })
    }

    /// Nothing keeps them.
    fn moves(&self, name: &str, info: &DevInfo) -> Cause {
        let what = if info.kind == "block" { "requests" } else { "frames" };
        let packets = |queues: &[QueueInfo], kind: &str| -> u64 {
            queues.iter().filter(|queue| queue.queue_type == kind).map(|queue| queue.packets).sum()
        };
        let new = |kind| packets(self.after, kind).saturating_sub(packets(self.before, kind));
        let by_kind: BTreeMap<&str, u64> =
            ["rx", "tx", "request"].into_iter().map(|kind| (kind, new(kind))).collect();
        let total: u64 = by_kind.values().sum();
        if total == 0 {
            let says = match info.kind.as_str() {
                "block" => format!("nothing keeps requests from {name}: its guest asks for nothing just now"),
                _ => format!(
                    "nothing keeps frames from {name}: its guest sends nothing, and nobody sends to it just now"
                ),
            };
            let cure = match info.kind.as_str() {
                "block" => "read from the disk in the guest",
                _ => {
                    "send something: see that the guest's interface is up and has an address, and its route leads there"
                }
            };
            return cause("idle", says, cure);
        }
        let shown = match info.kind.as_str() {
            "block" => format!("{total} {what}"),
            _ => format!("{} {what} to its guest and {} from it", by_kind["rx"], by_kind["tx"]),
        };
        Cause {
            cause: "none".to_owned(),
            says: format!("nothing keeps {what} from {name}: {shown} just now"),
            cure: None,
        }
    }
}

/// From the socket to the shared memory.
fn reaches(name: &str, info: &DevInfo) -> Option<Cause> {
    if let Some(end) = info.other_side() {
        let away = info.state != "connected";
        let note = info.notes.first().cloned().unwrap_or_else(|| "it is not there".to_owned());
        let (says, cure) =
            note.split_once("; try: ").map_or((note.as_str(), None), |(says, cure)| (says, Some(cure)));
        return away.then(|| {
            cause(
                "host_down",
                format!("{name} is {end}, which does not serve: {says}"),
                cure.unwrap_or("ringway dev show has its state"),
            )
        });
    }
    let Some(front_end) = &info.front_end else { return Some(waits(name, info)) };
    let who = format!("{} (pid {})", front_end.comm, front_end.pid);
    if let Some((what, _)) = info.history.host_failures.iter().next()
        && info.rings.iter().all(|ring| !ring.runs)
    {
        let detail = info.history.last_host_failure.as_deref().unwrap_or(what);
        let says = format!("this host lacked what {who} needed: {detail}");
        return Some(cause(
            "host_failure",
            says,
            "ringway events --once --since 0 --type session has what was tried",
        ));
    }
    let nothing_runs = info.rings.iter().all(|ring| !ring.started);
    match (front_end.memory_regions, nothing_runs) {
        (_, true) => Some(not_up(&who, front_end)),
        (0, false) => {
            let says = format!("{who} started queues and shares no memory of its guest");
            Some(cause(
                "no_memory",
                says,
                "give the VM memory that can be shared: ringway dev show NAME --qemu prints it (share=on)",
            ))
        }
        (_, false) => None,
    }
}

/// Nobody is connected.
fn waits(name: &str, info: &DevInfo) -> Cause {
    let socket = info.socket.display();
    let history = &info.history;
    let last = history.last_breach.as_ref().filter(|breach| history.last_end.as_ref() == Some(*breach));
    if let Some(breach) = last {
        let says = format!(
            "no VMM is connected to {name}; the last one was disconnected since it broke the protocol: {breach}"
        );
        return cause("breach", says, "ringway dev show NAME says what clears it; then connect again");
    }
    let before = match (&history.last_end, history.connections) {
        (Some(end), _) => format!("; the last one left: {end}"),
        (None, 0) => ", and none was since it was added".to_owned(),
        (None, _) => String::new(),
    };
    if info.mode == Mode::Client {
        let why = history.last_failure.as_deref().unwrap_or("nobody listens there");
        let says = format!("{name} waits for a VMM that listens at {socket}: {why}{before}");
        return cause("waiting", says, "start the VMM, with its end of the socket as the server");
    }
    let access = info.access.as_ref().map_or_else(String::new, |access| {
        format!(" ({} {} mode {})", access.owner, access.group, access.mode)
    });
    let says = format!("no VMM is connected to {name} at {socket}{access}{before}");
    cause(
        "waiting",
        says,
        &format!(
            "start the VM with the words of: ringway dev show {name} --qemu; its user must be able to open the socket"
        ),
    )
}

/// A front-end is there, and no driver behind it.
fn not_up(who: &str, front_end: &FrontEnd) -> Cause {
    let status = front_end.status.as_ref().map(|words| words.join(" ")).filter(|words| !words.is_empty());
    let stage = match (&front_end.negotiated_features, status) {
        (_, Some(status)) => format!("its guest's driver is at {status}"),
        (Some(_), None) => "features are agreed on, and no queue is started".to_owned(),
        (None, None) => "its guest has not begun".to_owned(),
    };
    let memory = if front_end.memory_regions == 0 { " and shares no memory yet" } else { "" };
    let says = format!("{who} is connected{memory}, and no driver runs the device: {stage}");
    let cure = "wait for the guest to boot; then see in it that virtio_net or virtio_blk is loaded and the interface up (VMM: share=on)";
    cause("driver_not_up", says, cure)
}

/// What is agreed on, and cannot carry anything.
fn is_set_up(info: &DevInfo) -> Option<Cause> {
    let is_down = info.provisioned.link.as_deref() == Some("down");
    is_down.then(|| {
        let says = format!(
            "the other end of {} is not there or not up, so that the guest sees its link down",
            info.mgmtdev
        );
        cause(
            "peer_down",
            says,
            &format!(
                "ringway dev show: add or start the other device of {}, or bring the host's interface up",
                info.mgmtdev
            ),
        )
    })
}

fn core_cause(number: usize, before: &CoreInfo, now: &CoreInfo) -> Option<Cause> {
    let [busy, idle, sleep] = [
        now.busy_cycles.saturating_sub(before.busy_cycles),
        now.idle_cycles.saturating_sub(before.idle_cycles),
        now.sleep_cycles.saturating_sub(before.sleep_cycles),
    ];
    let taken = now.preemptions.unwrap_or_default().saturating_sub(before.preemptions.unwrap_or_default());
    if taken > PREEMPTED {
        let others = match now.others.is_empty() {
            true => String::new(),
            false => format!(" ({})", now.others.join(", ")),
        };
        let says = format!(
            "its worker on core {number} was put aside by the kernel {taken} times just now: something else runs there{others}"
        );
        return Some(cause(
            "core_taken",
            says,
            "keep the core to the worker (isolcpus, cpusets, IRQ affinity), or ringwayd --cores others",
        ));
    }
    let all = busy + idle + sleep;
    if now.gives_way {
        let policy = now.scheduling.as_deref().unwrap_or("real-time");
        let says = format!(
            "its worker on core {number} rests 100 us in each 2 ms, since its thread's policy {policy} keeps the kernel's own work from the core"
        );
        return Some(cause("core_gives_way", says, crate::host::share::CURE));
    }
    (all > 0 && busy / (all / 100).max(1) >= AT_LIMIT).then(|| {
        let says = format!("core {number}, which serves it, is busy all of the time, with {} pumps", now.pumps.len());
        cause("core_at_limit", says, "ringway core show: give it another core (ringway dev set name NAME core N), or ringwayd more of them")
    })
}

fn cause(word: &str, says: String, cure: &str) -> Cause {
    Cause { cause: word.to_owned(), says, cure: Some(cure.to_owned()) }
}

/// The queues of one device.
pub(super) fn queues_of(stats: Option<&Vstats>) -> Vec<QueueInfo> {
    match stats {
        Some(Vstats::All { queues }) => queues.clone(),
        Some(Vstats::One(queue)) => vec![(**queue).clone()],
        None => Vec::new(),
    }
}

/// The text of it.
pub(super) fn text(why: &Why) -> String {
    let mut text = String::new();
    for (name, causes) in &why.why.0 {
        for (nth, cause) in causes.iter().enumerate() {
            let head = if nth == 0 { format!("{name}: ") } else { "  also: ".to_owned() };
            text.push_str(&format!("{head}{}\n", cause.says));
            if let Some(cure) = &cause.cure {
                text.push_str(&format!("  try: {cure}\n"));
            }
        }
    }
    text
}

/// Between two looks: more than a timer's now and then.
const PREEMPTED: u64 = 20;
/// Of 100 parts of its time.
const AT_LIMIT: u64 = 98;
