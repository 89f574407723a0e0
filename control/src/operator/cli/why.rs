//! `why NAME`: what keeps packets or requests from a device, found in what the daemon shows of it, from its socket to its guest.
//!
//! Two looks a moment apart tell what goes on from what was once. The first cause from the outside in is the answer: what lies
//! behind it cannot work before it is mended; what else was found follows.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::json;

use crate::fault::{Fault, Kind};
use crate::frontends::cures::host_cure;
use crate::operator::api::{
    CoreInfo, CoreShow, DevInfo, DevShow, Explained, Finding, FrontEnd, Mode, Named, Queue, QueueInfo,
    Select, Vstats, VstatsShow,
};
use crate::operator::client::Client;

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
struct Looks<'a> {
    shown: &'a DevShow,
    before: &'a [QueueInfo],
    after: &'a [QueueInfo],
    cores_before: &'a CoreShow,
    cores: &'a CoreShow,
    /// From the look before to now.
    between: Duration,
}

impl Looks<'_> {
    /// Why. Never empty.
    fn why(&self, name: &str) -> Vec<Cause> {
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
        // A disk that does not do what it is asked needs its operator, whoever is connected.
        let of_disk =
            info.findings.iter().filter(|found| [NOT_ANSWERING, FAILING].contains(&&*found.finding));
        causes.extend(of_disk.map(found));
        causes.extend(self.lost(true));
        causes.extend(self.cores_of(info));
        causes.extend(self.held(info));
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
                let (loses, lost) = match queue.queue_type.as_str() {
                    REQUEST => ("fails requests", "failed"),
                    _ => ("loses frames", "lost"),
                };
                let (qidx, count) = (queue.qidx, said.count);
                let (many, says) = match is_now {
                    true => (new, format!("queue {qidx} {loses}, {new} just now: {meaning}{example}")),
                    false => (
                        count,
                        format!("queue {qidx} {lost} {count} before, and none just now: {meaning}{example}"),
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
            Some(core_causes(*number, before, now, self.between))
        };
        numbers.iter().filter_map(look).flatten().collect()
    }

    /// Rates that hold frames or requests back.
    fn held(&self, info: &DevInfo) -> Option<Cause> {
        let held = |queues: &[QueueInfo]| queues.iter().map(|queue| queue.held).sum::<u64>();
        let new = held(self.after).saturating_sub(held(self.before));
        (new > 0).then(|| {
            let says = match info.kind.as_str() {
                BLOCK => "its guest asks for as much as it may, and what is more waits in its queue (iops, bps)",
                _ => "its guest sends as much as it may, and what is more waits in its queue (max_tx_pps, max_tx_rate)",
            };
            cause("rate", says.to_owned(), "raise them with ringway dev set, if it may have more")
        })
    }

    /// Nothing keeps them.
    fn moves(&self, name: &str, info: &DevInfo) -> Cause {
        let what = if info.kind == BLOCK { "requests" } else { "frames" };
        let packets = |queues: &[QueueInfo], kind: &str| -> u64 {
            queues.iter().filter(|queue| queue.queue_type == kind).map(|queue| queue.packets).sum()
        };
        let new = |kind| packets(self.after, kind).saturating_sub(packets(self.before, kind));
        let by_kind: BTreeMap<&str, u64> =
            ["rx", "tx", REQUEST].into_iter().map(|kind| (kind, new(kind))).collect();
        let total: u64 = by_kind.values().sum();
        // Of a disk, what its host was asked for before, or has taken meanwhile, and gave nothing back of.
        let sum = |queues: &[QueueInfo], of: fn(&QueueInfo) -> u64| queues.iter().map(of).sum::<u64>();
        let grew = |of: fn(&QueueInfo) -> u64| sum(self.after, of).saturating_sub(sum(self.before, of));
        let taken = grew(|queue| queue.received_desc);
        if info.kind == BLOCK
            && grew(|queue| queue.completed_desc) == 0
            && (taken > 0 || info.under_way.is_some())
        {
            let asked = match &info.under_way {
                Some(under_way) => under_way.clone(),
                None => format!("{taken} requests taken just now"),
            };
            let says = format!("{name} gives no request back: {asked}");
            return cause(
                NOT_ANSWERING,
                says,
                "ask again in a few seconds; then see what is wrong with what the disk is on",
            );
        }
        if total == 0 {
            let says = match info.kind.as_str() {
                BLOCK => format!("nothing keeps requests from {name}: its guest asks for nothing just now"),
                _ => format!(
                    "nothing keeps frames from {name}: its guest sends nothing, and nobody sends to it just now"
                ),
            };
            let cure = match info.kind.as_str() {
                BLOCK => "read from the disk in the guest",
                _ => {
                    "send something: see that the guest's interface is up and has an address, and its route leads there"
                }
            };
            return cause("idle", says, cure);
        }
        let shown = match info.kind.as_str() {
            BLOCK => format!("{total} {what}"),
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
    let finding = |word: &str| info.findings.iter().find(|found| found.finding == word);
    if let Some(end) = info.other_side() {
        let (says, cure) = match finding(HOST_DOWN) {
            Some(found) => (found.says.clone(), found.cure.as_str()),
            None if info.state == "connected" => return None,
            None => (
                format!("its state is {}", info.state),
                "ringway events --once --since 0 says what became of it",
            ),
        };
        return Some(cause(HOST_DOWN, format!("{name} is {end}, which does not serve: {says}"), cure));
    }
    let Some(front_end) = &info.front_end else {
        return Some(finding(SOCKET_MISSING).map_or_else(|| waits(name, info), found));
    };
    let who = format!("{} (pid {})", front_end.comm, front_end.pid);
    if let Some(lacked) = front_end.host_failure.as_ref().filter(|_| info.rings.iter().all(|ring| !ring.runs))
    {
        let says = format!("this host lacked what {who} needed: {lacked}");
        return Some(cause(HOST_FAILURE, says, cure_of(lacked)));
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
    let end = history.last_end.as_deref().unwrap_or_default();
    match history.last_end_by.as_deref() {
        Some("breach") => {
            let says = format!(
                "no VMM is connected to {name}; the last one was disconnected since it broke the protocol: {end}"
            );
            return cause("breach", says, "ringway dev show NAME says what clears it; then connect again");
        }
        Some(HOST_FAILURE) => {
            let says = format!(
                "no VMM is connected to {name}; the last one was disconnected since this host lacked what it needed: {end}"
            );
            return cause(HOST_FAILURE, says, cure_of(end));
        }
        _ => {}
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

/// What is wrong with one core, as its worker is concerned.
fn core_causes(number: usize, before: &CoreInfo, now: &CoreInfo, between: Duration) -> Vec<Cause> {
    let mut causes = Vec::new();
    let [busy, idle, sleep] = [
        now.busy_cycles.saturating_sub(before.busy_cycles),
        now.idle_cycles.saturating_sub(before.idle_cycles),
        now.sleep_cycles.saturating_sub(before.sleep_cycles),
    ];
    if let Some(says) = taken_away(number, before, now, between) {
        let others = match now.others.is_empty() {
            true => String::new(),
            false => format!(" ({})", now.others.join(", ")),
        };
        causes.push(cause(
            "core_taken",
            format!("{says}: something else runs there{others}"),
            "keep the core to the worker (isolcpus, cpusets, IRQ affinity, no CPU quota for the unit), or ringwayd --cores others",
        ));
    }
    let all = busy + idle + sleep;
    if now.gives_way {
        let policy = now.scheduling.as_deref().unwrap_or("real-time");
        let says = format!(
            "its worker on core {number} rests 100 us in each 2 ms, since its thread's policy {policy} keeps the kernel's own work from the core"
        );
        causes.push(cause("core_gives_way", says, crate::host::share::CURE));
    }
    if all > 0 && busy / (all / 100).max(1) >= AT_LIMIT {
        let says = format!(
            "core {number}, which serves it, is busy all of the time, with {} pumps",
            now.pumps.len()
        );
        causes.push(cause("core_at_limit", says, "ringway core show: give it another core (ringway dev set name NAME core N), or ringwayd more of them"));
    }
    causes
}

/// How the kernel took a core away from its worker between two looks, if it did. One that takes it whole does so in one switch, and
/// the kernel adds up a wait once it is over.
fn taken_away(number: usize, before: &CoreInfo, now: &CoreInfo, between: Duration) -> Option<String> {
    let grew = |of: fn(&CoreInfo) -> Option<u64>| {
        of(now).unwrap_or_default().saturating_sub(of(before).unwrap_or_default())
    };
    let ms = between.as_millis();
    if before.wants_core && now.wants_core && now.turns == before.turns {
        return Some(format!(
            "its worker on core {number} wanted to run and had no turn in the {ms} ms that it was looked at"
        ));
    }
    let waited = Duration::from_nanos(grew(|core| core.run_delay_ns));
    if waited > between / WAITS_OF {
        let waited = waited.as_millis();
        return Some(format!("its worker on core {number} waited {waited} ms for it in the last {ms} ms"));
    }
    let times = grew(|core| core.preemptions);
    (times > PREEMPTED)
        .then(|| format!("its worker on core {number} was put aside by the kernel {times} times just now"))
}

/// What to do about what this host lacked: `name: details`.
fn cure_of(lacked: &str) -> &'static str {
    host_cure(lacked.split_once(": ").map_or(lacked, |(what, _)| what))
}

/// A finding of the daemon's, as a cause.
fn found(found: &Finding) -> Cause {
    cause(&found.finding, found.says.clone(), &found.cure)
}

fn cause(word: &str, says: String, cure: &str) -> Cause {
    Cause { cause: word.to_owned(), says, cure: Some(cure.to_owned()) }
}

/// Looks at devices twice, a moment apart.
///
/// # Errors
/// The daemon does not answer, or there is no such device.
pub(super) fn ask(client: &mut Client, names: &[&str]) -> Result<Why, Fault> {
    let mut shown: DevShow = client.call("dev.show", &Select::default())?;
    let is_known = |name: &str| shown.absent.find(name).is_some() || shown.draining.find(name).is_some();
    if let Some(unknown) = names.iter().find(|name| shown.dev.find(name).is_none() && !is_known(name)) {
        // In the daemon's words.
        shown = client.call("dev.show", &Select { name: Some((*unknown).to_owned()) })?;
    }
    let queues = |client: &mut Client| -> Result<BTreeMap<String, Vec<QueueInfo>>, Fault> {
        let mut all = BTreeMap::new();
        for name in names.iter().filter(|name| shown.dev.find(name).is_some()) {
            match client
                .call::<_, VstatsShow>("dev.vstats.show", &Queue { name: (*name).to_owned(), qidx: None })
            {
                Ok(stats) => drop(all.insert((*name).to_owned(), queues_of(stats.vstats.find(name)))),
                // Removed meanwhile: nothing is said of its queues.
                Err(fault) if fault.kind == Kind::NotFound => {}
                Err(fault) => return Err(fault),
            }
        }
        Ok(all)
    };
    let cores = |client: &mut Client| -> Result<CoreShow, Fault> { client.call("core.show", &json!({})) };
    let (before, cores_before) = (queues(client)?, cores(client)?);
    let looked = Instant::now();
    std::thread::sleep(BETWEEN_LOOKS);
    let between = looked.elapsed();
    let (after, cores) = (queues(client)?, cores(client)?);
    let of =
        |queues: &BTreeMap<String, Vec<QueueInfo>>, name: &str| queues.get(name).cloned().unwrap_or_default();
    let why = names.iter().map(|name| {
        let (before, after) = (of(&before, name), of(&after, name));
        let looks = Looks {
            shown: &shown,
            before: &before,
            after: &after,
            cores_before: &cores_before,
            cores: &cores,
            between,
        };
        ((*name).to_owned(), looks.why(name))
    });
    Ok(Why { why: Named(why.collect()) })
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

/// Between two looks: long enough for a second's rates to show.
const BETWEEN_LOOKS: Duration = Duration::from_millis(500);
/// A device's type.
const BLOCK: &str = "block";
/// A queue's type.
const REQUEST: &str = "request";
/// Words of causes that the daemon finds, or that are found in more than one way.
const HOST_DOWN: &str = "host_down";
const HOST_FAILURE: &str = "host_failure";
const SOCKET_MISSING: &str = "socket_missing";
const NOT_ANSWERING: &str = "not_answering";
const FAILING: &str = "failing";
/// The part of the time that a worker may wait for its core.
const WAITS_OF: u32 = 10;
/// Between two looks: more than a timer's now and then.
const PREEMPTED: u64 = 20;
/// Of 100 parts of its time.
const AT_LIMIT: u64 = 98;

#[cfg(test)]
mod tests;
