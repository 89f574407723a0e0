//! One device of the registry: what was asked for, what the driver made of it, who is connected, what happened.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ringway_pmd::later;
use ringway_pmd::vdpa::{
    Class, DataPath, DeviceHost, Health, HostEnd, NetdevChange, QueueLimits, VdpaDevice,
};
use ringway_ring::features::Features;
use serde_json::{Value, json};

use crate::devices::life::Life;
use crate::frontends::cures::REFUSED_CURE;
use crate::frontends::session::{Command, DeviceConfig, DeviceShared, RingReport, SessionHandle};
use crate::host::endpoint::{self, Listening};
use crate::host::peer::Caller;
use crate::host::watch::Awaited;
use crate::operator::api::{DeviceEntry, History, Mode};

/// Who asked for a device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Origin {
    /// An operator, by the socket: kept in the state directory.
    Operator,
    /// The configuration file.
    Config,
    /// Another device of its management device: comes and goes with that.
    Implied,
}

impl Origin {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Origin::Operator => "operator",
            Origin::Config => "config",
            Origin::Implied => "implied",
        }
    }
}

/// What a driver says of a device it made: read once, since the device itself is with the session while somebody is
/// connected.
#[derive(Debug, Clone)]
pub(crate) struct DeviceFacts {
    pub(crate) class: Class,
    pub(crate) data_path: DataPath,
    /// Its function reaches guests' memory by itself.
    pub(crate) dma: bool,
    pub(crate) features: Features,
    pub(crate) limits: QueueLimits,
    pub(crate) config: DeviceConfig,
    pub(crate) vendor_id: u32,
    pub(crate) attributes: BTreeMap<String, String>,
    /// Groups of queues.
    pub(crate) groups: usize,
}

impl DeviceFacts {
    pub(crate) fn of(device: &mut dyn VdpaDevice) -> DeviceFacts {
        let facts = device.facts();
        DeviceFacts {
            class: facts.class,
            data_path: facts.data_path,
            dma: facts.dma,
            features: facts.features,
            limits: facts.limits,
            config: DeviceConfig::of(device),
            vendor_id: facts.vendor_id,
            attributes: device.attributes(),
            groups: facts.groups().into(),
        }
    }
}

/// A connected front-end.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) handle: SessionHandle,
    pub(crate) caller: Caller,
    pub(crate) since: Instant,
    pub(crate) negotiated: Option<Features>,
    pub(crate) protocol: Option<u64>,
    pub(crate) status: Option<u8>,
    pub(crate) rings: Vec<RingReport>,
    /// What an operator is to know of how they are served.
    pub(crate) note: Option<String>,
    pub(crate) regions: usize,
    pub(crate) bytes: u64,
    pub(crate) mtu: Option<u16>,
    /// The last breach of the protocol.
    pub(crate) breach: Option<Told>,
    /// That breach may be why nothing runs: none of its rings ran when it came, none has run since, and its guest's driver has not
    /// begun anew.
    pub(crate) breach_stands: bool,
    /// What this host lacked last that it asked for, until one of its rings runs.
    pub(crate) host_failure: Option<Told>,
    /// One of its rings has run.
    pub(crate) has_run: bool,
}

/// What a session told that went wrong.
#[derive(Debug, Clone)]
pub(crate) struct Told {
    /// Stable short name.
    pub(crate) what: &'static str,
    /// Details for people.
    pub(crate) detail: String,
}

impl Told {
    /// Whether a session that ended for this reason ended for this.
    fn is(&self, reason: &str) -> bool {
        let rest = reason.strip_prefix(self.what);
        reason == self.detail || rest.is_some_and(|rest| rest.starts_with(": "))
    }
}

impl Connection {
    pub(crate) fn new(handle: SessionHandle, caller: Caller) -> Connection {
        Connection {
            handle,
            caller,
            since: Instant::now(),
            negotiated: None,
            protocol: None,
            status: None,
            rings: Vec::new(),
            note: None,
            regions: 0,
            bytes: 0,
            mtu: None,
            breach: None,
            breach_stands: false,
            host_failure: None,
            has_run: false,
        }
    }

    /// Which of what it told its end comes of, for scripts.
    pub(crate) fn ended_by(&self, reason: &str) -> Option<&'static str> {
        let is_it = |told: &Option<Told>| told.as_ref().is_some_and(|told| told.is(reason));
        match (is_it(&self.breach), is_it(&self.host_failure)) {
            (true, _) => Some("breach"),
            (false, true) => Some("host_failure"),
            (false, false) => None,
        }
    }

    /// True unless the front-end says that its guest's driver is not ready.
    pub(crate) fn is_ready(&self) -> bool {
        self.status.is_none_or(|status| status & DRIVER_OK != 0)
    }
}

/// Front-ends that were refused while another one was connected: each is told once, and then counted.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    pub(crate) caller: Caller,
    pub(crate) holder: String,
    /// When the last of them came.
    last: Instant,
    /// Refusals, and how many of them were told.
    pub(crate) times: u64,
    pub(crate) told: u64,
    /// Processes that were told of.
    pids: Vec<i32>,
}

impl Refused {
    /// Processes told of one by one, as long as one front-end holds the device.
    const MOST: usize = 8;

    /// One more refusal; what is to be told of it.
    pub(crate) fn again(refused: &mut Option<Refused>, caller: Caller, holder: &Caller) -> Option<Value> {
        let known = refused.get_or_insert_with(|| Refused {
            caller: caller.clone(),
            holder: holder.to_string(),
            last: Instant::now(),
            times: 0,
            told: 0,
            pids: Vec::new(),
        });
        known.times += 1;
        known.last = Instant::now();
        let is_news = known.pids.len() < Refused::MOST && !known.pids.contains(&caller.pid);
        known.caller = caller;
        is_news.then(|| {
            known.pids.push(known.caller.pid);
            known.told = known.times;
            known.details()
        })
    }

    /// It asks again and again: what it wants now.
    pub(crate) fn is_on(&self) -> bool {
        self.last.elapsed() < ASKS_AGAIN_WITHIN
    }

    pub(crate) fn details(&self) -> Value {
        json!({
            "front_end": self.caller.to_string(),
            "held_by": self.holder,
            "times": self.times,
            "try": REFUSED_CURE,
        })
    }
}

/// Who has not come again for so long has given up: VMMs that connect again do so every few seconds at most.
const ASKS_AGAIN_WITHIN: Duration = Duration::from_secs(30);

/// Connections that ended one after another, soon and at the same request.
#[derive(Debug, Default)]
pub(crate) struct Repeated {
    pub(crate) at: Option<&'static str>,
    pub(crate) reason: String,
    pub(crate) times: u64,
    /// When the last one ended.
    last: Option<Instant>,
}

impl Repeated {
    /// A connection ended soon; how many did so in the same way, this one included.
    pub(crate) fn again(&mut self, at: Option<&'static str>, reason: &str) -> u64 {
        if (self.at, self.reason.as_str()) != (at, reason) {
            *self = Repeated { at, reason: reason.to_owned(), times: 0, last: None };
        }
        self.times += 1;
        self.last = Some(Instant::now());
        self.times
    }
    /// A connection lasted; how many had not before it.
    pub(crate) fn end(&mut self) -> u64 {
        std::mem::take(self).times
    }
    /// It goes on: none has lasted, and the front-end has not given up.
    pub(crate) fn goes_on(&self) -> bool {
        self.is_on() && self.last.is_some_and(|last| last.elapsed() < ASKS_AGAIN_WITHIN)
    }
    /// More than one ended in the same way, and none has lasted since.
    pub(crate) fn is_on(&self) -> bool {
        self.times > 1
    }
}

/// DRIVER_OK (virtio 1.3 §2.1).
const DRIVER_OK: u8 = 4;

/// Waits between attempts to connect: 1, 2, 4 … 64 ms, and once a second after many. Between a front-end that left
/// as soon as it came and the next that is let in: 1, 2, 4, 8 ms, so that one that does so in a loop keeps others
/// waiting only briefly.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Backoff {
    tries: u32,
}

impl Backoff {
    /// The wait before the next attempt.
    pub(crate) fn next(&mut self) -> Duration {
        let wait = match self.tries {
            tries @ 0..=6 => Duration::from_millis(1 << tries),
            7..=70 => Duration::from_millis(64),
            _ => Duration::from_secs(1),
        };
        self.tries = self.tries.saturating_add(1);
        wait
    }
    /// The wait before the next front-end is let in.
    pub(crate) fn next_accept(&mut self) -> Duration {
        self.next().min(Duration::from_millis(8))
    }
    pub(crate) fn reset(&mut self) {
        self.tries = 0;
    }
}

/// Lets a few events of each kind a second through, so that a hostile front-end cannot flood the history, and what there is
/// much of does not keep what tells its cause out of it. The others are told together, with their number.
#[derive(Debug)]
pub(crate) struct Quota {
    second: Instant,
    /// How many of a kind were told in this second. There are a dozen kinds.
    told: Vec<(&'static str, u32)>,
    /// By kind, those that are to be told together.
    held: Vec<(&'static str, u64)>,
    /// When some were told together last.
    told_together: Option<Instant>,
    pub(crate) suppressed: u64,
}

impl Quota {
    const PER_SECOND: u32 = 10;

    pub(crate) fn new() -> Quota {
        Quota {
            second: Instant::now(),
            told: Vec::new(),
            held: Vec::new(),
            told_together: None,
            suppressed: 0,
        }
    }
    pub(crate) fn take(&mut self, kind: &'static str) -> bool {
        if self.second.elapsed() >= Duration::from_secs(1) {
            self.second = Instant::now();
            self.told.clear();
        }
        let at = self.told.iter().position(|(known, _)| *known == kind).unwrap_or_else(|| {
            self.told.push((kind, 0));
            self.told.len() - 1
        });
        let told = &mut self.told[at].1;
        if *told >= Quota::PER_SECOND {
            self.suppressed += 1;
            match self.held.iter_mut().find(|(known, _)| *known == kind) {
                Some((_, times)) => *times += 1,
                None => self.held.push((kind, 1)),
            }
            return false;
        }
        *told += 1;
        true
    }

    /// What is to be told together now, by kind and how often: at once the first time, then every ten seconds.
    pub(crate) fn take_held(&mut self) -> Vec<(&'static str, u64)> {
        let is_early = self.told_together.is_some_and(|last| last.elapsed() < TELL_TOGETHER_EVERY);
        if is_early || self.held.is_empty() {
            return Vec::new();
        }
        self.told_together = Some(Instant::now());
        std::mem::take(&mut self.held)
    }
}

/// Between two times that events of a device are told together.
const TELL_TOGETHER_EVERY: Duration = Duration::from_secs(10);

/// A kernel's interface that is not there, or not to be had, until it is open again.
#[derive(Debug, Clone)]
pub(crate) struct Away {
    /// Ringway makes it again.
    pub(crate) is_own: bool,
    /// Why it cannot be opened, once that was tried.
    pub(crate) why: Option<String>,
    /// What to do about that.
    pub(crate) cure: String,
}

/// A driver's device while no session has it. Whoever drops one waits for nothing: what it has on the host is let go of by
/// the kernel, which may take its time.
pub(crate) struct Held(Option<Box<dyn VdpaDevice>>);

impl Held {
    pub(crate) fn new(device: Box<dyn VdpaDevice>) -> Held {
        Held(Some(device))
    }

    /// For a session.
    pub(crate) fn into_device(mut self) -> Option<Box<dyn VdpaDevice>> {
        self.0.take()
    }

    /// Its interface, if it is a device of the host's.
    pub(crate) fn host_end(&mut self) -> Option<&mut dyn HostEnd> {
        self.0.as_mut()?.host_end()
    }

    /// Changes attributes that can be changed at any time; waits for nothing.
    pub(crate) fn set(&mut self, attributes: &BTreeMap<String, String>) {
        if let Some(device) = self.0.as_mut() {
            // It has no time to be stuck in.
            let _ = device.set(attributes, Duration::ZERO);
        }
    }

    /// What it is, read anew.
    pub(crate) fn facts(&mut self) -> Option<DeviceFacts> {
        Some(DeviceFacts::of(&mut **self.0.as_mut()?))
    }

    /// Lets go of it, and waits for that a little: the driver may be unable to make a second one while it lives.
    pub(crate) fn let_go(self) {
        let device = self.into_device();
        later::within(LET_GO_WITHIN, move || drop(device));
    }

    /// Takes away what it has on the host, as a device that does not come back.
    pub(crate) fn remove(self) {
        if let Some(mut device) = self.into_device() {
            later::dispose(move || device.removed());
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(device) = self.0.take() {
            later::dispose(move || drop(device));
        }
    }
}

/// How long control waits for a device that is made anew to let go of what it has on the host; what takes longer is tried
/// again like any device that cannot be made.
const LET_GO_WITHIN: Duration = Duration::from_secs(1);

/// A device. Owned by the registry, on the control thread.
pub(crate) struct Device {
    /// Its number in this process; never reused.
    pub(crate) id: u64,
    /// As asked for, changes included.
    pub(crate) entry: DeviceEntry,
    pub(crate) origin: Origin,
    pub(crate) facts: DeviceFacts,
    pub(crate) life: Life,
    /// It is served by the core of its management device.
    pub(crate) shares_core: bool,
    /// The driver's device, unless a session has it.
    pub(crate) held: Option<Held>,
    /// On which it tells what it has to tell.
    pub(crate) host: DeviceHost,
    /// How what is behind it does.
    pub(crate) health: Option<Arc<dyn Health>>,
    /// The failures of it that were told, and when.
    pub(crate) failures: (u64, Option<Instant>),
    /// The sectors of a disk that were told.
    pub(crate) capacity: Option<u64>,
    /// The driver's device said that it needs a reset, and had none since: it is made anew before the next front-end.
    pub(crate) needs_reset: bool,
    /// True if the driver's device must be made anew before the next front-end, to bring changes into force.
    pub(crate) is_outdated: bool,
    /// What that was.
    pub(crate) deferred: BTreeSet<String>,
    pub(crate) shared: Arc<DeviceShared>,
    /// Empty for a netdev.
    pub(crate) socket: std::path::PathBuf,
    pub(crate) mode: Mode,
    /// The kernel's interface or the function that is its other side.
    pub(crate) netdev: Option<String>,
    /// What somebody changed of it.
    pub(crate) netdev_changes: Vec<NetdevChange>,
    /// It is not there.
    pub(crate) netdev_away: Option<Away>,
    /// Server mode: the listening socket.
    pub(crate) listening: Option<Listening>,
    /// Client mode: what it waits for.
    pub(crate) awaited: Option<Awaited>,
    pub(crate) backoff: Backoff,
    /// When to look at the socket again.
    pub(crate) retry_at: Option<Instant>,
    /// Until when a further front-end is kept waiting for the connected one to end.
    pub(crate) refuse_at: Option<Instant>,
    pub(crate) connection: Option<Connection>,
    /// Who was refused while it was connected.
    pub(crate) refused: Option<Refused>,
    /// The short connections before it.
    pub(crate) repeated: Repeated,
    pub(crate) history: History,
    pub(crate) quota: Quota,
}

impl fmt::Debug for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Device").field("id", &self.id).field("entry", &self.entry).finish_non_exhaustive()
    }
}

impl Device {
    pub(crate) fn name(&self) -> &str {
        &self.entry.name
    }

    /// A note if those whom its socket was given to cannot come to it, as the directories above are now.
    pub(crate) fn closed_to_its_owner(&self) -> Option<String> {
        let (owner, group) = (self.entry.owner.is_some(), self.entry.group.is_some());
        if !owner && !group {
            return None;
        }
        let socket = std::fs::symlink_metadata(&self.socket).ok()?;
        let (owner, group) = (owner.then(|| socket.uid()), group.then(|| socket.gid()));
        let closed = endpoint::unreachable_for(&self.socket, owner, group);
        let closed: Vec<String> = closed.iter().map(|dir| dir.display().to_string()).collect();
        (!closed.is_empty()).then(|| {
            format!(
                "the socket's owner or group cannot pass {}: chmod o+x {}, or choose another socket path",
                closed.join(" and "),
                closed.join(" ")
            )
        })
    }

    /// Has every group served by this core, under traffic if there is any. The cores before.
    pub(crate) fn serve_by(&self, core: usize) -> Vec<usize> {
        let before = self.cores();
        self.shared.cores.iter().for_each(|slot| slot.store(core, Ordering::Relaxed));
        if let Some(connection) = self.connection.as_ref().filter(|_| before.iter().any(|old| *old != core)) {
            connection.handle.send(Command::Move);
        }
        before
    }

    /// The core of each group.
    pub(crate) fn cores(&self) -> Vec<usize> {
        self.shared.cores.iter().map(|core| core.load(Ordering::Relaxed)).collect()
    }
}

#[cfg(test)]
mod tests {
    use ringway_pmd::vdpa::{ClassOps, ConfigSpace, Queues};

    use super::*;

    /// A device that takes its time to let go of what it has on the host.
    struct Slow(std::sync::mpsc::Receiver<()>, std::sync::mpsc::Sender<std::thread::ThreadId>);

    impl VdpaDevice for Slow {
        fn facts(&self) -> ringway_pmd::vdpa::Facts {
            unreachable!("nobody asks")
        }
        fn config(&mut self) -> &mut dyn ConfigSpace {
            unreachable!("nobody asks")
        }
        fn queues(&mut self) -> &mut dyn Queues {
            unreachable!("nobody asks")
        }
        fn class(&mut self) -> ClassOps<'_> {
            unreachable!("nobody asks")
        }
    }

    impl Drop for Slow {
        fn drop(&mut self) {
            let _ = self.0.recv();
            let _ = self.1.send(std::thread::current().id());
        }
    }

    #[test]
    fn device_is_let_go_of_on_another_thread_however_long_that_takes() {
        let ways: [(fn(Held), Duration); 3] =
            [(drop, Duration::ZERO), (Held::remove, Duration::ZERO), (Held::let_go, LET_GO_WITHIN)];
        for (way, at_most) in ways {
            let (release, held) = std::sync::mpsc::channel();
            let (told, by) = std::sync::mpsc::channel();
            let begun = Instant::now();
            way(Held::new(Box::new(Slow(held, told))));
            assert!(by.try_recv().is_err(), "it was not waited for");
            assert!(begun.elapsed() < at_most + Duration::from_secs(5));
            release.send(()).unwrap();
            assert_ne!(by.recv_timeout(Duration::from_secs(20)).unwrap(), std::thread::current().id());
        }
    }

    #[test]
    fn backoff_doubles_to_64_ms_and_slows_down_in_the_end() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..8).map(|_| backoff.next().as_millis()).collect();
        assert_eq!(waits, [1, 2, 4, 8, 16, 32, 64, 64]);
        let last = (0..100).map(|_| backoff.next()).last().unwrap();
        assert_eq!(last, Duration::from_secs(1));
        backoff.reset();
        assert_eq!(backoff.next(), Duration::from_millis(1));
        let longest = (0..100).map(|_| backoff.next_accept()).max().unwrap();
        assert_eq!(longest, Duration::from_millis(8));
    }

    #[test]
    fn quota_lets_few_through_and_counts_the_rest() {
        let mut quota = Quota::new();
        // Always within one second of its clock.
        quota.second = Instant::now() + Duration::from_secs(3600);
        let told = (0..25).filter(|_| quota.take("session.connected")).count();
        assert_eq!((told, quota.suppressed), (10, 15));
        // What there is much of hides nothing else.
        let told = (0..11).filter(|_| quota.take("session.breach")).count();
        assert_eq!((told, quota.suppressed), (10, 16));
        quota.second = Instant::now().checked_sub(Duration::from_secs(1)).expect("it runs for longer");
        assert!(quota.take("session.connected"));
        assert_eq!(quota.suppressed, 16);
    }

    #[test]
    fn events_beyond_the_quota_are_told_together_with_their_number() {
        let mut quota = Quota::new();
        quota.second = Instant::now() + Duration::from_secs(3600);
        assert!(quota.take_held().is_empty());
        assert_eq!((0..25).filter(|_| quota.take("session.connected")).count(), 10);
        assert_eq!((0..11).filter(|_| quota.take("session.breach")).count(), 10);
        assert_eq!(quota.take_held(), [("session.connected", 15), ("session.breach", 1)]);
        quota.take("session.breach");
        assert!(quota.take_held().is_empty(), "not so soon again");
        let ago = TELL_TOGETHER_EVERY - Duration::from_millis(100);
        quota.told_together = Instant::now().checked_sub(ago);
        assert!(quota.take_held().is_empty());
        quota.told_together = Instant::now().checked_sub(TELL_TOGETHER_EVERY);
        assert_eq!(quota.take_held(), [("session.breach", 1)]);
    }
}
