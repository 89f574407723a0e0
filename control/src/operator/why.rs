//! `dev.why`: what keeps packets or requests from a device, found in what is shown of it, from its socket to its guest.
//!
//! Two looks a moment apart tell what goes on from what was once: the first one is handed out, and comes back with the request for the
//! second, so that nothing of it is kept. What state there is and what was found wrong is of the second look alone, of the same moment
//! as its counters. The first cause from the outside in is the answer: what lies behind it cannot work before it is mended; what else was
//! found follows. On the control thread; changes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::daemon::Daemon;
use crate::fault::Fault;
use crate::frontends::cures::{breach_cure, host_cure};
use crate::operator::api::{
    Cause, CoreInfo, CoreLook, DevInfo, Explained, Finding, FrontEnd, Look, Mode, Named, Queue, QueueInfo,
    QueueLook, Select, Why, WhyShow,
};

impl Daemon {
    /// What keeps packets or requests from a device.
    pub(crate) fn why(&self, asked: Why) -> Result<WhyShow, Fault> {
        let Why { name, before } = asked;
        let Ok(device) = self.registry.find(&name) else { return self.why_not_there(&name) };
        let gone = || Fault::not_found("the device is gone");
        let shown = self.show_devices(Select { name: Some(name.clone()) })?.dev;
        let info = shown.find(&name).ok_or_else(gone)?;
        let stats = self.show_vstats(Queue { name: name.clone(), qidx: None })?.vstats;
        let queues: Vec<QueueInfo> = stats.0.into_iter().flat_map(|(_, stats)| stats.into_queues()).collect();
        // Once, where several groups are on one.
        let numbers: BTreeSet<usize> = info.cores.iter().copied().collect();
        let workers = numbers.into_iter().filter_map(|core| self.engine.worker(core));
        let cores: BTreeMap<usize, CoreInfo> =
            workers.map(|worker| (worker.core, self.core_info(worker))).collect();
        let now = Look {
            instance: self.instance.clone(),
            id: device.id,
            up_ns: u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX),
            queues: queues.iter().map(queue_look).collect(),
            cores: cores.iter().map(|(number, core)| (number.to_string(), core_look(core))).collect(),
        };
        let before = before.filter(|before| is_same(before, &now));
        let between = before.as_ref().map_or(Duration::MAX, |before| passed(before, &now));
        // Nothing is told by so short a time, and time enough by a later request with the same look.
        let is_too_young = between < LEAST_BETWEEN;
        let looks = Looks {
            info,
            queues: &queues,
            cores: &cores,
            before: before.as_ref().filter(|_| !is_too_young),
            between,
        };
        let causes = looks.why(&name);
        let look = if is_too_young { before } else { Some(now) };
        Ok(WhyShow { why: Named(vec![(name, causes)]), look })
    }

    /// What there is to say of a device that is not there: it could not be made, or was removed and is not done.
    fn why_not_there(&self, name: &str) -> Result<WhyShow, Fault> {
        let absent = self.absent.iter().find(|absent| absent.entry.name == name);
        let mut draining = self.draining.iter().filter(|(drained, _)| *drained == name);
        let found = if let Some(absent) = absent {
            let says = format!("{name} is asked for and could not be made: {}", absent.why);
            let cure = "mend that: ringway dev show NAME says whether it is tried again; ringway dev del NAME removes it";
            cause("not_made", says, cure)
        } else if let Some(what) = draining.find_map(|(_, health)| health.under_way()) {
            let says = format!("{name} was removed, and what it has under way is not done yet: {what}");
            cause("draining", says, "see what is wrong with the disk on the host")
        } else {
            // In the words that everybody has for it.
            return self.find(name).and(Err(Fault::not_found("the device is gone")));
        };
        let why = vec![(name.to_owned(), vec![named(found, name)])];
        Ok(WhyShow { why: Named(why), look: None })
    }
}

/// Whether two looks are of the same device of the same start.
fn is_same(before: &Look, now: &Look) -> bool {
    (&before.instance, before.id) == (&now.instance, now.id)
}

/// From one look to the other; nothing, where they are the wrong way round.
fn passed(before: &Look, now: &Look) -> Duration {
    Duration::from_nanos(now.up_ns.saturating_sub(before.up_ns))
}

fn queue_look(queue: &QueueInfo) -> QueueLook {
    QueueLook {
        qidx: queue.qidx,
        received_desc: queue.received_desc,
        completed_desc: queue.completed_desc,
        packets: queue.packets,
        held: queue.held,
        drops: queue.explain.iter().map(|said| (said.name.clone(), said.count)).collect(),
    }
}

fn core_look(core: &CoreInfo) -> CoreLook {
    CoreLook {
        busy_cycles: core.busy_cycles,
        idle_cycles: core.idle_cycles,
        sleep_cycles: core.sleep_cycles,
        turns: core.turns,
        preemptions: core.preemptions,
        run_delay_ns: core.run_delay_ns,
        wants_core: core.wants_core,
    }
}

/// A cause, with the device's name in what is to be done.
fn named(cause: Cause, name: &str) -> Cause {
    Cause { cure: cause.cure.map(|cure| cure.replace("NAME", name)), ..cause }
}

/// What is shown of a device now, and what it stood at a moment before.
struct Looks<'a> {
    info: &'a DevInfo,
    queues: &'a [QueueInfo],
    /// The workers that serve it.
    cores: &'a BTreeMap<usize, CoreInfo>,
    /// None: nothing is known of just now.
    before: Option<&'a Look>,
    /// From the look before to now.
    between: Duration,
}

impl Looks<'_> {
    /// Why. Never empty.
    fn why(&self, name: &str) -> Vec<Cause> {
        let info = self.info;
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
        causes.extend(self.cores_of());
        causes.extend(self.held(info));
        if causes.is_empty() {
            causes.push(self.moves(name, info));
            causes.extend(self.lost(false));
        }
        causes.into_iter().map(|cause| named(cause, name)).collect()
    }

    /// How much more there is of something in all queues than there was before; none, if nothing is known of before.
    fn grew(&self, kind: Option<&str>, now: fn(&QueueInfo) -> u64, before: fn(&QueueLook) -> u64) -> u64 {
        let queues = self.queues.iter().filter(|queue| kind.is_none_or(|kind| queue.queue_type == kind));
        let grew =
            |queue: &QueueInfo| Some(now(queue).saturating_sub(before(self.queue_before(queue.qidx)?)));
        queues.filter_map(grew).sum()
    }

    /// What a queue stood at before.
    fn queue_before(&self, qidx: u32) -> Option<&QueueLook> {
        self.before?.queues.iter().find(|queue| queue.qidx == qidx)
    }

    /// Rings that a fault stopped, and those that lack something though they are started.
    fn stopped(&self, info: &DevInfo) -> Vec<Cause> {
        let mut causes = Vec::new();
        for ring in info.rings.iter().filter(|ring| ring.fault.is_some()) {
            let fault = ring.fault.as_deref().unwrap_or_default();
            let queue = self.queues.iter().find(|queue| queue.qidx == u32::from(ring.qidx));
            let said = queue.and_then(|queue| queue.explain.iter().find(|said| said.name == fault));
            let says = match said {
                Some(said) => format!("queue {} is stopped by a fault, {fault}: {}", ring.qidx, said.meaning),
                None => format!("queue {} is stopped by a fault, {fault}", ring.qidx),
            };
            let cure =
                said.map_or("reset the device in the guest (reload its driver)", |said| said.cure.as_str());
            causes.push(cause("ring_fault", says, cure));
        }
        for queue in self.queues {
            let Some(text) = &queue.not_run else { continue };
            let (says, cure) = text.split_once("; try: ").unwrap_or((text, "ringway dev show has its rings"));
            causes.push(cause("no_buffers", format!("queue {}: {says}", queue.qidx), cure));
        }
        // Of a guest with fewer queues than there are some are never enabled.
        let of_way = |way: u16| info.rings.iter().filter(move |ring| ring.started && ring.qidx % 2 == way);
        let is_disabled = |way: &u16| {
            of_way(*way).count() > 0 && of_way(*way).all(|ring| !ring.enabled && ring.fault.is_none())
        };
        let ways = [0, 1].into_iter().filter(is_disabled);
        let disabled: Vec<String> = ways.flat_map(of_way).map(|ring| ring.qidx.to_string()).collect();
        if !disabled.is_empty() {
            let says = format!("the front-end started queue {} and has not enabled it", disabled.join(", "));
            causes.push(cause(
                "not_enabled",
                says,
                "QEMU and DPDK enable what they start at once: see whether the VMM stands still (its log, its process), and restart the VM",
            ));
        }
        causes
    }

    /// Drops: those that came between the looks, or those that there ever were.
    fn lost(&self, is_now: bool) -> Vec<Cause> {
        let mut found: Vec<(u64, Cause)> = Vec::new();
        for queue in self.queues {
            let before = self.queue_before(queue.qidx);
            for said in queue.explain.iter().filter(|said| queue.drops.has(&said.name)) {
                let Explained { name, count, meaning, cure, example } = said;
                let known = before.map(|before| before.drops.of(name));
                let new = known.map_or(0, |known| count.saturating_sub(known));
                let example = example.as_ref().map_or_else(String::new, |example| format!(" ({example})"));
                let (loses, lost) = match queue.queue_type.as_str() {
                    REQUEST => ("fails requests", "failed"),
                    _ => ("loses frames", "lost"),
                };
                let qidx = queue.qidx;
                let (many, says) = match (is_now, before) {
                    (true, _) => (new, format!("queue {qidx} {loses}, {new} just now: {meaning}{example}")),
                    (false, Some(_)) => (
                        *count,
                        format!("queue {qidx} {lost} {count} before, and none just now: {meaning}{example}"),
                    ),
                    (false, None) => (
                        *count,
                        format!("queue {qidx} {lost} {count} since it was added: {meaning}{example}"),
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
    fn cores_of(&self) -> Vec<Cause> {
        let look = |(number, now): (&usize, &CoreInfo)| {
            let before = self.before.and_then(|before| before.cores.get(&number.to_string()).copied());
            core_causes(*number, before, now, self.between)
        };
        self.cores.iter().flat_map(look).collect()
    }

    /// Rates that hold frames or requests back.
    fn held(&self, info: &DevInfo) -> Option<Cause> {
        let new = self.grew(None, |queue| queue.held, |queue| queue.held);
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
        if self.before.is_none() {
            let says = format!(
                "nothing keeps {what} from {name} that one look shows: a second one tells whether they flow"
            );
            return Cause { cause: "none".to_owned(), says, cure: None };
        }
        let new = |kind| self.grew(Some(kind), |queue| queue.packets, |queue| queue.packets);
        let by_kind: BTreeMap<&str, u64> =
            ["rx", "tx", REQUEST].into_iter().map(|kind| (kind, new(kind))).collect();
        let total: u64 = by_kind.values().sum();
        // Of a disk, what its host was asked for before, or has taken meanwhile, and gave nothing back of.
        let taken = self.grew(None, |queue| queue.received_desc, |queue| queue.received_desc);
        let given_back = self.grew(None, |queue| queue.completed_desc, |queue| queue.completed_desc);
        if info.kind == BLOCK && given_back == 0 && (taken > 0 || info.under_way.is_some()) {
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
fn reaches(name: &str, info: &DevInfo) -> Vec<Cause> {
    let finding = |word: &str| info.findings.iter().find(|found| found.finding == word);
    if let Some(end) = info.other_side() {
        let (says, cure) = match finding(HOST_DOWN) {
            Some(found) => (found.says.clone(), found.cure.as_str()),
            None if info.state == "connected" => return Vec::new(),
            None => (
                format!("its state is {}", info.state),
                "ringway events --once --since 0 says what became of it",
            ),
        };
        return vec![cause(HOST_DOWN, format!("{name} is {end}, which does not serve: {says}"), cure)];
    }
    let Some(front_end) = &info.front_end else {
        return vec![finding(SOCKET_MISSING).map_or_else(|| waits(name, info), found)];
    };
    let who = format!("{} (pid {})", front_end.comm, front_end.pid);
    if let Some(lacked) = front_end.host_failure.as_ref().filter(|_| info.rings.iter().all(|ring| !ring.runs))
    {
        let says = format!("this host lacked what {who} needed: {lacked}");
        return vec![cause(HOST_FAILURE, says, cure_of(lacked))];
    }
    // One that a fault stopped is none that nobody started.
    if info.rings.iter().all(|ring| !ring.started && ring.fault.is_none()) {
        let refused = front_end.breach.iter().map(|breach| {
            let says = format!("{who} is connected, and something that it asked for was refused: {breach}");
            cause(BREACH, says, breach_cure(name_of(breach)))
        });
        return refused.chain([not_up(&who, front_end, &info.kind)]).collect();
    }
    if front_end.memory_regions == 0 {
        let says = format!("{who} started queues and shares no memory of its guest");
        let cure = "give the VM memory that can be shared: ringway dev show NAME --qemu prints it (share=on)";
        return vec![cause("no_memory", says, cure)];
    }
    Vec::new()
}

/// Nobody is connected.
fn waits(name: &str, info: &DevInfo) -> Cause {
    let socket = info.socket.display();
    let history = &info.history;
    let end = history.last_end.as_deref().unwrap_or_default();
    match history.last_end_by.as_deref() {
        Some(BREACH) => {
            let says = format!(
                "no VMM is connected to {name}; the last one was disconnected since it broke the protocol: {end}"
            );
            return cause(BREACH, says, "ringway dev show NAME says what clears it; then connect again");
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
fn not_up(who: &str, front_end: &FrontEnd, kind: &str) -> Cause {
    let status = front_end.status.as_ref().map(|words| words.join(" ")).filter(|words| !words.is_empty());
    let (driver, link) = match kind {
        BLOCK => ("virtio_blk is loaded", ""),
        _ => ("virtio_net is loaded and the interface up", ", and its link on (QEMU: set_link ID on)"),
    };
    let stopped = match kind {
        BLOCK => "its queues ran, and were stopped: its driver left or begins anew, or the VM is paused",
        _ => {
            "its queues ran, and were stopped: its driver left or begins anew, the VM is paused, or its link is off"
        }
    };
    let stage = match (status, &front_end.negotiated_features) {
        (Some(status), _) => format!("its guest's driver is at {status}"),
        (None, _) if front_end.has_run => stopped.to_owned(),
        (None, Some(_)) => "features are agreed on, and no queue is started".to_owned(),
        (None, None) => "its guest has not begun".to_owned(),
    };
    let memory = if front_end.memory_regions == 0 { " and shares no memory yet" } else { "" };
    let says = format!("{who} is connected{memory}, and no driver runs the device: {stage}");
    let cure = match front_end.has_run {
        true => format!("see that the VM is not paused (QEMU: cont){link}, and in the guest that {driver}"),
        false => {
            format!(
                "wait for the guest to boot; then see in it that {driver}, and that the VM is not paused (QEMU: cont){link}"
            )
        }
    };
    cause("driver_not_up", says, &cure)
}

/// What is agreed on, and cannot carry anything: the wire of the function that it stands on is away.
fn is_set_up(info: &DevInfo) -> Option<Cause> {
    let is_down = info.provisioned.link.as_deref() == Some("down");
    is_down.then(|| {
        // An uplink has no guest: who is on the bridge has a link to that.
        let says = match info.uplink.as_deref() {
            Some(uplink) => format!("{uplink} has no link: nothing comes from its wire or goes there"),
            None => {
                format!("{} has no link: its guest sees that, and nothing comes or goes there", info.mgmtdev)
            }
        };
        let cure = "see the port's cable and its switch; of a virtual function, its physical one's interface (ip link show) and the state that it gives it (ip link set PF vf N state auto)";
        cause("link_down", says, cure)
    })
}

/// What is wrong with one core, as its worker is concerned.
fn core_causes(number: usize, before: Option<CoreLook>, now: &CoreInfo, between: Duration) -> Vec<Cause> {
    let mut causes = Vec::new();
    if let Some(says) = before.and_then(|before| taken_away(number, before, now, between)) {
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
    if now.gives_way {
        let policy = now.scheduling.as_deref().unwrap_or("real-time");
        let says = format!(
            "its worker on core {number} rests 100 us in each 2 ms, since its thread's policy {policy} keeps the kernel's own work from the core"
        );
        causes.push(cause("core_gives_way", says, crate::host::share::CURE));
    }
    let Some(before) = before else { return causes };
    let busy = now.busy_cycles.saturating_sub(before.busy_cycles);
    let idle = now.idle_cycles.saturating_sub(before.idle_cycles);
    let sleep = now.sleep_cycles.saturating_sub(before.sleep_cycles);
    let all = busy.saturating_add(idle).saturating_add(sleep);
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
fn taken_away(number: usize, before: CoreLook, now: &CoreInfo, between: Duration) -> Option<String> {
    let ms = between.as_millis();
    if before.wants_core && now.wants_core && now.turns == before.turns {
        return Some(format!(
            "its worker on core {number} wanted to run and had no turn in the {ms} ms that it was looked at"
        ));
    }
    // Where the kernel did not tell one of both times, nothing is known.
    let grew = |before: Option<u64>, now: Option<u64>| {
        now.zip(before).map_or(0, |(now, before)| now.saturating_sub(before))
    };
    let waited = Duration::from_nanos(grew(before.run_delay_ns, now.run_delay_ns));
    if waited > between / WAITS_OF {
        let waited = waited.as_millis();
        return Some(format!("its worker on core {number} waited {waited} ms for it in the last {ms} ms"));
    }
    let times = grew(before.preemptions, now.preemptions);
    (times > PREEMPTED)
        .then(|| format!("its worker on core {number} was put aside by the kernel {times} times just now"))
}

/// What to do about what this host lacked: `name: details`.
fn cure_of(lacked: &str) -> &'static str {
    host_cure(name_of(lacked))
}

/// Of `name: details`.
fn name_of(told: &str) -> &str {
    told.split_once(": ").map_or(told, |(name, _)| name)
}

/// A finding of the daemon's, as a cause.
fn found(found: &Finding) -> Cause {
    cause(&found.finding, found.says.clone(), &found.cure)
}

fn cause(word: &str, says: String, cure: &str) -> Cause {
    Cause { cause: word.to_owned(), says, cure: Some(cure.to_owned()) }
}

/// Between two looks: in less time a worker has no turn, or a disk gives nothing back, for no reason.
const LEAST_BETWEEN: Duration = Duration::from_millis(100);
/// A device's type.
const BLOCK: &str = "block";
/// A queue's type.
const REQUEST: &str = "request";
/// Words of causes that the daemon finds, or that are found in more than one way.
const HOST_DOWN: &str = "host_down";
const BREACH: &str = "breach";
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
