//! How front-ends come to devices and leave them: accepting, connecting, refusing, and what sessions report.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_pmd::vdpa::{Class, Ended, NetdevChange, VdpaDevice};
use rustix::event::epoll::EventFlags;
use serde_json::json;

use crate::daemon::{Daemon, Token};
use crate::devices::apply::plan::unset_of;
use crate::devices::checks::check_entry;
use crate::devices::device::{Away, Connection, Device, DeviceFacts, Held, Refused, Told};
use crate::devices::life::{Life, LifeEvent};
use crate::fault::{Fault, reason};
use crate::frontends::budget::{Lease, Short};
use crate::frontends::cures::{REPEATED_CURE, breach_cure, host_cure};
use crate::frontends::session::{self, NetdevSetup, Report, SessionSetup};
use crate::host::endpoint;
use crate::host::peer::Caller;
use crate::operator::api::Mode;
use crate::operator::names::feature_names;

/// How long a further front-end is kept waiting for the connected one to end, since its process may just have died.
const GRACE: Duration = Duration::from_millis(100);
/// A session shorter than this does not reset the wait before the next.
const SHORT_SESSION: Duration = Duration::from_millis(100);
/// How long after it went away a kernel's interface is opened or made again.
const REOPEN_AFTER: Duration = Duration::from_millis(300);
/// How often a device whose driver failed is made anew.
const REMAKE_AFTER: Duration = Duration::from_secs(1);
/// How long a front-end waits that cannot be accepted for want of something.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);
/// Connections looked at in one go for one whose peer is still there.
const ACCEPTED_AT_ONCE: usize = 64;
/// Front-ends refused in one go.
const REFUSED_AT_ONCE: usize = 32;
/// A look at a missing socket that no event announced, though its directory is watched.
const LOOK_ANYWAY: Duration = Duration::from_secs(10);
/// The same, if its directory cannot be watched.
const LOOK_UNWATCHED: Duration = Duration::from_millis(250);

impl Daemon {
    /// Something waits on a device's listening socket.
    pub(crate) fn device_ready(&mut self, id: u64) {
        let now = Instant::now();
        let Some(device) = self.registry.by_id(id) else { return };
        let Some(listening) = &device.listening else { return };
        let wait_until = match device.life {
            Life::Waiting => device.retry_at.filter(|at| *at > now),
            Life::Connected => Some(now + GRACE),
            _ => Some(now + REMAKE_AFTER),
        };
        if let Some(at) = wait_until {
            if device.life == Life::Connected {
                device.refuse_at = Some(at);
            }
            self.timers.push(std::cmp::Reverse((at, id)));
            self.arm_listener(id, false);
            return;
        }
        // Whom there is nothing left for waits, and is served once others left.
        let (class, rings) = (device.facts.class, device.shared.counters.len());
        let lease = match self.budget.admit(self.next_session, device.name(), class, rings) {
            Ok(lease) => lease,
            Err(short) => return self.has_to_wait(id, short),
        };
        for _ in 0..ACCEPTED_AT_ONCE {
            match listening.socket.accept() {
                // Who has left already needs no session.
                Ok((stream, _)) if endpoint::has_left(&stream) => device.history.left += 1,
                Ok((stream, _)) => return self.start_session(id, stream, lease),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return,
                // It waits there and stays readable, while this process cannot take it (no descriptor is left).
                Err(error) => {
                    device.history.last_failure = Some(format!("cannot accept: {}", reason(&error)));
                    self.arm_listener(id, false);
                    return self.retry_after(id, ACCEPT_AGAIN);
                }
            }
        }
    }

    fn has_to_wait(&mut self, id: u64, short: Short) {
        let Some(device) = self.registry.by_id(id) else { return };
        let why = format!("a front-end has to wait: {short}");
        let is_new = device.history.last_failure.as_ref() != Some(&why);
        device.history.last_failure = Some(why.clone());
        if is_new && device.quota.take("session.host_failed") {
            let name = device.name().to_owned();
            self.events.push(
                "session.host_failed",
                Some(&name),
                json!({ "what": "share_exceeded", "detail": why }),
            );
        }
        if self.registry.by_id(id).is_some_and(|device| device.mode == Mode::Server) {
            self.arm_listener(id, false);
        }
        self.retry_after(id, ACCEPT_AGAIN);
    }

    fn arm_listener(&mut self, id: u64, is_on: bool) {
        let flags = if is_on { EventFlags::IN } else { EventFlags::empty() };
        let Daemon { registry, epoll, .. } = self;
        if let Some(listening) = registry.by_id(id).and_then(|device| device.listening.as_ref()) {
            let _ = rustix::event::epoll::modify(epoll, &listening.socket, Token::Device(id).data(), flags);
        }
    }

    /// A device's time has come.
    pub(crate) fn device_timer(&mut self, id: u64, now: Instant) {
        if self.is_stopping() {
            return;
        }
        let Some(device) = self.registry.by_id(id) else { return };
        if device.refuse_at.is_some_and(|at| at <= now) {
            device.refuse_at = None;
            if device.life == Life::Connected {
                self.refuse_waiting(id);
            }
        }
        self.loop_is_over(id, now);
        let Some(device) = self.registry.by_id(id) else { return };
        if device.life == Life::Failed {
            self.remake(id);
        }
        let Some(device) = self.registry.by_id(id) else { return };
        let is_due = device.retry_at.is_some_and(|at| at <= now);
        if is_due {
            device.retry_at = None;
        }
        match device.mode {
            Mode::Server => self.arm_listener(id, true),
            Mode::Client if is_due => self.connect_to_vmm(id),
            Mode::Netdev | Mode::Uplink if is_due => self.open_netdev(id),
            Mode::Client | Mode::Netdev | Mode::Uplink => {}
        }
    }

    /// A connection that came after many short ones and lasts is told, with what it has come to by now.
    fn loop_is_over(&mut self, id: u64, now: Instant) {
        let Some(device) = self.registry.by_id(id) else { return };
        let Some(connection) = &device.connection else { return };
        if !device.repeated.is_on() || now.saturating_duration_since(connection.since) < SHORT_SESSION {
            return;
        }
        let running = connection.rings.iter().filter(|ring| ring.runs).count();
        let caller = connection.caller.to_string();
        let times = device.repeated.end();
        let name = device.name().to_owned();
        let details = json!({ "front_end": caller, "after_short_ones": times });
        self.events.push("session.connected", Some(&name), details);
        if running > 0 {
            self.events.push("session.rings", Some(&name), json!({ "running": running }));
        }
    }

    /// Closes the front-ends that wait while another one is connected.
    fn refuse_waiting(&mut self, id: u64) {
        let Some(device) = self.registry.by_id(id) else { return };
        let Some(listening) = &device.listening else { return };
        let mut refused = Vec::new();
        while refused.len() < REFUSED_AT_ONCE
            && let Ok((stream, _)) = listening.socket.accept()
        {
            refused.push(Caller::of(&stream));
        }
        device.history.refused += refused.len() as u64;
        let Some(holder) = device.connection.as_ref().map(|connection| connection.caller.clone()) else {
            return;
        };
        let name = device.name().to_owned();
        let mut told = Vec::new();
        for caller in refused {
            told.extend(Refused::again(&mut device.refused, caller, &holder));
        }
        for details in told {
            self.events.push("session.refused", Some(&name), details);
        }
    }

    /// Tries to connect to the VMM of a device in client mode, and sees to it that it is tried again.
    pub(crate) fn connect_to_vmm(&mut self, id: u64) {
        let Some(device) = self.registry.by_id(id) else { return };
        if device.life != Life::Waiting || device.mode != Mode::Client {
            return;
        }
        // Watched before it is looked at, so that nothing appears unseen in between.
        if let Some(awaited) = device.awaited.take() {
            self.watch.forget(&awaited);
        }
        let path = device.socket.clone();
        device.awaited = self.watch.await_path(&path).ok();
        let (class, rings) = (device.facts.class, device.shared.counters.len());
        let lease = match self.budget.admit(self.next_session, device.name(), class, rings) {
            Ok(lease) => lease,
            Err(short) => return self.has_to_wait(id, short),
        };
        match endpoint::connect(&path) {
            Ok(stream) => self.start_session(id, stream, lease),
            Err(error) => {
                device.history.last_failure =
                    Some(format!("cannot connect to {}: {}", path.display(), reason(&error)));
                let wait = if error.kind() == std::io::ErrorKind::NotFound {
                    device.backoff.reset();
                    if device.awaited.is_some() { LOOK_ANYWAY } else { LOOK_UNWATCHED }
                } else {
                    device.backoff.next()
                };
                self.retry_after(id, wait);
            }
        }
    }

    pub(crate) fn retry_after(&mut self, id: u64, wait: Duration) {
        let at = Instant::now() + wait;
        if let Some(device) = self.registry.by_id(id) {
            device.retry_at = Some(at);
            self.timers.push(std::cmp::Reverse((at, id)));
        }
    }

    /// Something happened in the watched directories.
    pub(crate) fn sockets_appeared(&mut self) {
        let seen = self.watch.take();
        let mut due = Vec::new();
        for id in self.registry.ids() {
            let Some(device) = self.registry.by_id(id) else { continue };
            let is_awaited = device.awaited.as_ref().is_some_and(|awaited| seen.names.contains(awaited));
            if seen.all || is_awaited {
                if let Some(awaited) = device.awaited.take() {
                    self.watch.forget(&awaited);
                }
                device.backoff.reset();
                due.push(id);
            }
        }
        for id in due {
            self.connect_to_vmm(id);
        }
    }

    /// Hands a device of the host's over to a session that opens its interface.
    pub(crate) fn open_netdev(&mut self, id: u64) {
        if self.registry.by_id(id).is_some_and(|device| device.is_outdated || device.needs_reset) {
            self.remake(id);
        }
        let session = self.next_session;
        let ((reporter, reports), engine) = (self.remote.reports(), self.engine.clone());
        let Some(device) = self.registry.by_id(id) else { return };
        if device.held.is_none() || device.life.apply(LifeEvent::Connect).is_err() {
            return;
        }
        let Some(held) = device.held.take().and_then(Held::into_device) else { return };
        self.next_session += 1;
        device.retry_at = None;
        device.history.connections += 1;
        let setup = NetdevSetup {
            id: session,
            device: held,
            shared: Arc::clone(&device.shared),
            engine,
            reports: reporter,
        };
        match session::spawn_netdev(setup) {
            Ok(handle) => {
                device.connection = Some(Connection::new(handle, Caller::own()));
                self.sessions.insert(session, (id, reports));
            }
            Err(error) => {
                self.session_over(id, None, format!("cannot start a session: {error}"), None);
            }
        }
    }

    /// Hands the device over to a session of its own.
    pub(crate) fn start_session(&mut self, id: u64, stream: std::os::unix::net::UnixStream, lease: Lease) {
        let caller = Caller::of(&stream);
        if self.registry.by_id(id).is_some_and(|device| device.is_outdated || device.needs_reset) {
            self.remake(id);
        }
        let session = self.next_session;
        let ((reporter, reports), engine) = (self.remote.reports(), self.engine.clone());
        let Some(device) = self.registry.by_id(id) else { return };
        if device.held.is_none() {
            return;
        }
        if let Err(error) = device.life.apply(LifeEvent::Connect) {
            tracing::error!(dev = device.name(), %error, "front-end turned away");
            return;
        }
        let Some(held) = device.held.take().and_then(Held::into_device) else { return };
        self.next_session += 1;
        device.retry_at = None;
        device.history.connections += 1;
        device.history.last_failure = None;
        let name = device.name().to_owned();
        let setup = SessionSetup {
            id: session,
            device: held,
            shared: Arc::clone(&device.shared),
            stream,
            engine,
            lease,
            reports: reporter,
        };
        match session::spawn(setup) {
            Ok(handle) => {
                let details = json!({ "front_end": caller.to_string() });
                device.connection = Some(Connection::new(handle, caller));
                let is_loop = device.repeated.is_on();
                let is_told = !is_loop && device.quota.take("session.connected");
                self.sessions.insert(session, (id, reports));
                if is_told {
                    self.events.push("session.connected", Some(&name), details);
                }
                if is_loop {
                    // If it lasts longer than the others did, it is told then.
                    let at = Instant::now() + SHORT_SESSION;
                    self.timers.push(std::cmp::Reverse((at, id)));
                }
            }
            Err(error) => {
                device.history.last_failure = Some(format!("cannot start a session: {}", reason(&error)));
                self.session_over(id, None, format!("cannot start a session: {error}"), None);
            }
        }
    }

    /// Makes the driver's device anew: after it was lost, or to bring changes into force.
    /// Returns what stood against it.
    pub(crate) fn remake(&mut self, id: u64) -> Option<Fault> {
        let host = self.remote.device_host(id);
        let known = self.registry.known();
        let device = self.registry.by_id(id)?;
        let entry = device.entry.clone();
        if let Some(before) = device.held.take() {
            before.let_go();
        }
        let made =
            check_entry(&entry, &known).and_then(|spec| self.registry.create(&entry, &spec, host.clone()));
        let device = self.registry.by_id(id)?;
        match made {
            Ok(mut made) => {
                // What hangs under the one before is shown until it is over.
                self.draining.extend(device.health.take().map(|health| (entry.name.clone(), health)));
                device.facts = DeviceFacts::of(&mut *made);
                device.host = host;
                (device.health, device.failures) = (made.health(), (0, None));
                device.held = Some(Held::new(made));
                (device.is_outdated, device.needs_reset) = (false, false);
                device.deferred.clear();
                if device.life == Life::Failed {
                    let _ = device.life.apply(LifeEvent::Remade);
                    device.history.last_failure = None;
                }
                None
            }
            Err(fault) => {
                device.history.last_failure = Some(fault.message.clone());
                let _ = device.life.apply(LifeEvent::Lost);
                self.retry_after(id, REMAKE_AFTER);
                Some(fault)
            }
        }
    }

    /// A session told something.
    pub(crate) fn take_reports(&mut self, session: u64) {
        let Some((id, reports)) = self.sessions.get(&session) else { return };
        let id = *id;
        for (report, times) in reports.take() {
            self.take_report(session, id, report, times);
        }
    }

    /// A report that stands for so many of its kind.
    fn take_report(&mut self, session: u64, id: u64, report: Report, times: u64) {
        if let Report::Ended { device, reason, last } = report {
            self.sessions.remove(&session);
            self.session_over(id, device, reason, last);
            return;
        }
        if let Report::Netdev(changes) = report {
            return self.netdev_changed(id, changes);
        }
        let Some(device) = self.registry.by_id(id) else { return };
        let Some(connection) = &mut device.connection else { return };
        let connection_lasts = connection.since.elapsed() >= SHORT_SESSION;
        let (mut event, mut back) = (None, None);
        match report {
            Report::Negotiated { features, protocol } => {
                connection.negotiated = Some(features);
                connection.protocol = Some(protocol);
                let names = feature_names(device.facts.class, features);
                event = Some(("session.negotiated", json!({ "features": names })));
            }
            Report::Status(status) => {
                connection.status = Some(status);
                if status == 0 {
                    connection.negotiated = None;
                    connection.breach_stands = false;
                    device.needs_reset = false;
                }
            }
            Report::Rings(rings) => {
                let count = |rings: &[session::RingReport]| rings.iter().filter(|ring| ring.runs).count();
                let (before, after) = (count(&connection.rings), count(&rings));
                connection.rings = rings;
                if after > 0 {
                    connection.host_failure = None;
                    connection.breach_stands = false;
                    connection.has_run = true;
                }
                if before != after {
                    event = Some(("session.rings", json!({ "running": after })));
                }
                if let Some(away) = device.netdev_away.take() {
                    back = Some((away.is_own, device.mode, device.netdev.clone()));
                }
            }
            Report::Note(note) => connection.note = note,
            Report::Lacks { queue, lack } => {
                let details = json!({ "qidx": queue, "why": lack.what(), "try": lack.cure() });
                event = Some((lack.event(), details));
            }
            Report::Config(config) => device.facts.config = config,
            Report::Memory { regions, bytes } => {
                (connection.regions, connection.bytes) = (regions, bytes);
            }
            Report::RingFault { queue, fault } => {
                *device.history.ring_faults.entry(fault.to_owned()).or_default() += times;
                event = Some(("ring.fault", json!({ "qidx": queue, "fault": fault })));
            }
            Report::PeerMisbehaved { what, detail } => {
                *device.history.breaches.entry(what.to_owned()).or_default() += times;
                let detail = tame(&detail);
                let details = json!({ "what": what, "detail": detail, "try": breach_cure(what) });
                event = Some(("session.breach", details));
                connection.breach = Some(Told { what, detail: detail.clone() });
                // While rings run it keeps nothing from running; what stops them later is something else.
                connection.breach_stands = connection.rings.iter().all(|ring| !ring.runs);
                device.history.last_breach = Some(detail);
            }
            Report::HostFailed { what, detail } => {
                *device.history.host_failures.entry(what.to_owned()).or_default() += times;
                let detail = tame(&detail);
                event = Some((
                    "session.host_failed",
                    json!({ "what": what, "detail": detail.clone(), "try": host_cure(what) }),
                ));
                connection.host_failure = Some(Told { what, detail: detail.clone() });
                device.history.last_host_failure = Some(detail);
            }
            Report::Mtu(mtu) => {
                connection.mtu = Some(mtu);
                event = Some(("session.mtu", json!({ "mtu": mtu })));
            }
            Report::PumpEnded { group, how: Ended::Panicked(message) } => {
                device.history.pump_panics += times;
                event = Some(("pump.panicked", json!({ "group": group, "message": tame(&message) })));
            }
            Report::PumpEnded { group, how: Ended::NotPlaced(why) } => {
                let why = tame(&why);
                device.history.last_failure = Some(format!("pair {group} is not served: {why}"));
                event = Some(("pump.not_placed", json!({ "group": group, "why": why })));
            }
            Report::PumpEnded { group, how: Ended::DeviceLost(why) } => {
                let why = tame(&why);
                device.history.last_failure = Some(format!("pair {group} is not served: {why}"));
                event = Some(("queues.lost", json!({ "group": group, "why": why })));
            }
            Report::Netdev(_) | Report::Ended { .. } => {}
        }
        // In a loop of short connections, what each says is not told; one that lasts is told with what it has come to.
        let event = event.filter(|(kind, _)| {
            *kind == "session.host_failed" || !device.repeated.is_on() || connection_lasts
        });
        let told = event.filter(|(kind, _)| device.quota.take(kind));
        let name = device.name().to_owned();
        match back {
            Some((_, Mode::Uplink, function)) => {
                self.events.push("uplink.restored", Some(&name), json!({ "uplink": function }));
            }
            Some((true, mode, ifname)) => {
                let details = json!({ "what": the_end(mode), "path": ifname });
                self.events.push("host.remade", Some(&name), details);
            }
            Some((false, _, ifname)) => {
                self.events.push("netdev.restored", Some(&name), json!({ "netdev": ifname }));
            }
            None => {}
        }
        if let Some((kind, details)) = told {
            self.events.push(kind, Some(&name), details);
        }
    }

    /// What others changed of a device's interface, or an uplink's function lacks: told once by name.
    fn netdev_changed(&mut self, id: u64, changes: Vec<NetdevChange>) {
        let Some(device) = self.registry.by_id(id) else { return };
        let (name, ifname) = (device.name().to_owned(), device.netdev.clone());
        let (key, changed, restored) = match device.mode {
            Mode::Uplink => ("uplink", "uplink.limited", "uplink.restored"),
            _ => ("netdev", "netdev.changed", "netdev.restored"),
        };
        let before = std::mem::replace(&mut device.netdev_changes, changes.clone());
        let mut told = Vec::new();
        for change in changes.iter().filter(|change| !before.contains(change)) {
            if device.quota.take(changed) {
                let details = json!({ key: ifname, "what": change.what, "try": change.cure });
                told.push((changed, details));
            }
        }
        if changes.is_empty() && device.quota.take(restored) {
            told.push((restored, json!({ key: ifname })));
        }
        for (kind, details) in told {
            self.events.push(kind, Some(&name), details);
        }
    }

    /// A session is over; its device is back, or was lost with it.
    fn session_over(
        &mut self,
        id: u64,
        held: Option<Box<dyn VdpaDevice>>,
        reason: String,
        last: Option<&'static str>,
    ) {
        let is_stopping = self.is_stopping();
        let held = held.map(Held::new);
        let Some(device) = self.registry.by_id(id) else {
            // It was removed meanwhile.
            held.into_iter().for_each(Held::remove);
            if self.leaving.remove(&id).is_some() && self.retry_absent_at.is_some() {
                // It may be what one of them waits for.
                self.retry_absent_at = Some(Instant::now());
            }
            return;
        };
        let event = if held.is_some() { LifeEvent::Ended } else { LifeEvent::Lost };
        if let Err(error) = device.life.apply(event) {
            tracing::error!(dev = device.name(), %error, "unexpected end of a session");
        }
        let ended = device.connection.take();
        let was_short = ended.as_ref().is_none_or(|c| c.since.elapsed() < SHORT_SESSION);
        device.held = held;
        device.refuse_at = None;
        device.netdev_changes.clear();
        let reason = tame(&reason);
        let was_open = ended.as_ref().is_some_and(|connection| !connection.rings.is_empty());
        let missing = match device.mode {
            Mode::Netdev | Mode::Uplink if !is_stopping => netdev_lost(device, was_open, &reason),
            _ => None,
        };
        // What was set while the session was opening or ending, it has not done.
        let is_net = device.facts.class == Class::Net;
        let now = device.held.as_mut().and_then(Held::facts).map(|now| now.attributes).unwrap_or_default();
        let facts = &device.facts.attributes;
        let unset: Vec<String> = now.into_keys().filter(|name| !facts.contains_key(name)).collect();
        let mgmtdev = device.entry.mgmtdev.clone();
        let unset: BTreeMap<String, String> = match unset.is_empty() {
            true => BTreeMap::new(),
            false => {
                let info = self.registry.known().find(&mgmtdev);
                let value = |name: String| Some((unset_of(info.as_ref(), &name)?.to_owned(), name));
                unset.into_iter().filter_map(value).map(|(value, name)| (name, value)).collect()
            }
        };
        let Some(device) = self.registry.by_id(id) else { return };
        if let Some(held) = device.held.as_mut()
            && let Some(now) = held.facts()
        {
            let is_new = |(name, value): &(&String, &String)| now.attributes.get(*name) != Some(*value);
            let missed = device.facts.attributes.iter().filter(is_new);
            let missed = missed.map(|(name, value)| (name.clone(), value.clone()));
            let missed: BTreeMap<_, _> = missed.chain(unset).collect();
            if !missed.is_empty() && is_net {
                held.set(&missed);
                if let Some(facts) = held.facts() {
                    device.facts.attributes = facts.attributes;
                }
            } else if !missed.is_empty() {
                device.is_outdated = true;
                device.deferred.extend(missed.into_keys());
            }
        }
        // An interface that stays away is looked for again and again, and told of once.
        let is_of_host = matches!(device.mode, Mode::Netdev | Mode::Uplink);
        if let Some(facts) = device.held.as_mut().filter(|_| is_of_host).and_then(Held::facts) {
            // It has no link while it is closed.
            device.facts = facts;
        }
        let is_known = is_of_host && device.history.last_end.as_deref() == Some(&reason);
        let ended_by = ended.as_ref().and_then(|connection| connection.ended_by(&reason));
        device.history.last_end_by = ended_by.map(str::to_owned);
        device.history.last_end = Some(reason.clone());
        let name = device.name().to_owned();
        let refused = device.refused.take().filter(|refused| refused.told < refused.times);
        let counts = was_short && !is_of_host;
        let times = if counts { device.repeated.again(last, &reason) } else { device.repeated.end() };
        let is_repeated = counts && times > 1;
        if let Some(refused) = refused {
            self.events.push("session.refused", Some(&name), refused.details());
        }
        let is_told = missing.is_some();
        if let Some(details) = missing {
            self.events.push("host.missing", Some(&name), details);
        }
        let mut details = json!({ "reason": reason });
        if let Some(last) = last {
            details["at"] = last.into();
        }
        if is_repeated {
            // Told at 10, 100, 1000: what a loop says more often than that is no news.
            if times.ilog10() > (times - 1).ilog10() {
                details["times"] = times.into();
                details["try"] = REPEATED_CURE.into();
                self.events.push("session.repeated", Some(&name), details);
            }
        } else if !is_known
            && !is_told
            && let Some(device) = self.registry.by_id(id)
            && device.quota.take("session.ended")
        {
            self.events.push("session.ended", Some(&name), details);
        }
        let Some(device) = self.registry.by_id(id) else { return };
        if !was_short {
            device.backoff.reset();
        }
        // Who took an interface away may want to put another one in its place.
        let wait = (was_short || is_of_host).then(|| match device.mode {
            Mode::Server => device.backoff.next_accept(),
            Mode::Client => device.backoff.next(),
            Mode::Netdev | Mode::Uplink => REOPEN_AFTER,
        });
        if self.ends_with == Some(id) {
            self.begin_stop();
        }
        if self.is_stopping() {
            return;
        }
        let Some(device) = self.registry.by_id(id) else { return };
        if device.life == Life::Failed || device.is_outdated || device.needs_reset {
            self.remake(id);
        }
        let mode = self.registry.by_id(id).map(|device| device.mode);
        match (wait, mode) {
            (Some(wait), _) => {
                self.retry_after(id, wait);
            }
            (None, Some(Mode::Server)) => self.arm_listener(id, true),
            (None, Some(Mode::Client)) => self.connect_to_vmm(id),
            (None, Some(Mode::Netdev | Mode::Uplink) | None) => {}
        }
    }
}

/// What is at the host's end of a device, where it is told that it is gone, or there again.
fn the_end(mode: Mode) -> &'static str {
    if mode == Mode::Uplink { "the function" } else { "the interface" }
}

/// The session of an interface is over: what is to be told if that cannot be had, once.
fn netdev_lost(device: &mut Device, was_open: bool, reason: &str) -> Option<serde_json::Value> {
    let end = device.held.as_mut().and_then(Held::host_end);
    let (is_own, is_gone) =
        end.map_or((true, false), |end| (end.is_own(), end.gone().as_deref() == Some(reason)));
    // An uplink whose function was reset under it begins anew: that it is back is told as well.
    if was_open && !is_gone && device.mode != Mode::Uplink {
        return None;
    }
    let ifname = device.netdev.clone().unwrap_or_default();
    let cure = match (is_own, device.entry.attributes.get("netns")) {
        _ if device.mode == Mode::Uplink => "it is opened again and again until it can be".to_owned(),
        (true, _) => "it is made again as soon as it can be".to_owned(),
        (false, Some(netns)) if !netns.starts_with('/') => {
            format!("ip -n {netns} tuntap add dev {ifname} mode tap multi_queue")
        }
        (false, _) => format!("ip tuntap add dev {ifname} mode tap multi_queue"),
    };
    let why = (!was_open).then(|| reason.to_owned());
    let before = device.netdev_away.replace(Away { is_own, why: why.clone(), cure: cure.clone() });
    let is_news = why != before.and_then(|away| away.why);
    why.filter(|_| is_news)
        .map(|why| json!({ "what": the_end(device.mode), "path": ifname, "why": why, "try": cure }))
}

/// What a session says for people, which a peer may have had a part in: short and without control characters.
fn tame(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(400).collect()
}
