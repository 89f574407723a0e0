//! The control thread: one loop over the operator socket and its clients, the devices' sockets, the reports of
//! sessions, signals and time.
//!
//! It owns the registry and every device's life. It waits for nobody: each descriptor is non-blocking, each turn takes
//! a bounded amount from each, and what takes long is done by sessions.
//!
//! ```text
//!   clients --requests--> [ control ] --commands--> sessions
//!   devices' sockets ---> [         ] <--reports---
//!   signals, timers ----> [         ] --decisions-> placement, state directory, events
//! ```

mod remote;
mod start;
mod token;

pub(crate) use remote::{Message, Remote};
pub(crate) use start::make_dir;
pub(crate) use token::Token;

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::Receiver;
use ringway_engine::Engine;
use ringway_pmd::driver::Attachments;
use ringway_pmd::later;
use ringway_pmd::vdpa::Health;
use rustix::event::epoll::{self, EventFlags};

use crate::devices::absent::{Absent, AbsentMgmtdev};
use crate::devices::life::LifeEvent;
use crate::devices::placement::Placement;
use crate::devices::ports::Port;
use crate::devices::registry::Registry;
use crate::devices::state::StateDir;
use crate::devices::workers::Loads;
use crate::fault::Fault;
use crate::frontends::budget::Budget;
use crate::frontends::reports::Reports;
use crate::frontends::session::Command;
use crate::host::claims::Claims;
use crate::host::endpoint::Listening;
use crate::host::gap;
use crate::host::guard::Guard;
use crate::host::look::{LOOK_EVERY, Looks, Missing};
use crate::host::manager::{Heartbeat, StatusLine};
use crate::host::peer::Caller;
use crate::host::program::Program;
use crate::host::share::Shares;
use crate::host::watch::Watch;
use crate::host::watchdog::Watchdog;
use crate::operator::api::PortEntry;
use crate::operator::capture::{Captures, End};
use crate::operator::events::Events;
use crate::operator::methods::Asker;
use crate::operator::metrics::{Scraped, Scrapers, ScrapersTime};
use crate::operator::role::Role;
use crate::operator::rpc::Clients;
use crate::settings::{Override, Settings, View};

/// Everything that the control thread owns.
pub(crate) struct Daemon {
    pub(crate) registry: Registry,
    /// Buses, each with its drivers.
    pub(crate) attachments: Vec<Box<dyn Attachments>>,
    pub(crate) absent: Vec<Absent>,
    /// Management devices that do not run as they were asked for: the state directory keeps its own on.
    pub(crate) absent_mgmtdevs: Vec<AbsentMgmtdev>,
    /// Functions that were asked for of management devices whose hardware can be divided.
    pub(crate) ports: Vec<Port>,
    /// Ports of the state directory that are in the configuration file as well: kept, for the next start.
    pub(crate) kept_ports: Vec<PortEntry>,
    pub(crate) placement: Placement,
    pub(crate) claims: Claims,
    pub(crate) shares: Shares,
    pub(crate) loads: Loads,
    pub(crate) engine: Engine,
    pub(crate) budget: Budget,
    /// Held for as long as the workers run.
    _watchdog: Watchdog,
    pub(crate) events: Events,
    pub(crate) state: Option<StateDir>,
    pub(crate) generation: u64,
    /// A file is being applied: what its steps change is kept once, behind the last of them.
    pub(crate) is_applying: bool,
    pub(crate) settings: Settings,
    pub(crate) config_file: Option<PathBuf>,
    /// Keys of its `[daemon]` that were given beside it.
    pub(crate) overrides: Vec<Override>,
    pub(crate) runtime_dir: PathBuf,
    pub(crate) instance: String,
    pub(crate) program: Program,
    pub(crate) started: Instant,
    /// How long nobody served before this daemon did, where its predecessor was told to stop.
    pub(crate) gap: Option<Duration>,
    pub(crate) epoll: rustix::fd::OwnedFd,
    pub(crate) watch: Watch,
    pub(crate) clients: Clients,
    pub(crate) captures: Captures,
    /// Which device each session has, and what it told; a device that was removed is not in the registry any more.
    pub(crate) sessions: HashMap<u64, (u64, Arc<Reports>)>,
    pub(crate) next_session: u64,
    /// Devices that were removed, by number, whose function their session still has: their management devices.
    pub(crate) leaving: HashMap<u64, String>,
    /// Devices that were removed, and of which something may be under way still.
    pub(crate) draining: Vec<(String, Arc<dyn Health>)>,
    /// The process ends with this device's session.
    pub(crate) ends_with: Option<u64>,
    pub(crate) timers: BinaryHeap<Reverse<(Instant, u64)>>,
    pub(crate) remote: Remote,
    inbox: Receiver<Message>,
    signals: Option<UnixStream>,
    reload: Option<UnixStream>,
    heartbeat: Option<Heartbeat>,
    pub(crate) status_line: Option<StatusLine>,
    pub(crate) ctl: Option<Listening>,
    pub(crate) ctl_path: Option<PathBuf>,
    /// The view-only socket.
    pub(crate) view: Option<Listening>,
    pub(crate) view_asked: Option<View>,
    pub(crate) metrics_asked: Option<String>,
    pub(crate) scraped: Option<Scraped>,
    pub(crate) scrapers: Arc<Scrapers>,
    pub(crate) scrapers_time: ScrapersTime,
    pub(crate) retry_absent_at: Option<Instant>,
    /// Clients wait until then, for want of a descriptor.
    pub(crate) accept_again_at: Option<Instant>,
    /// It was logged that clients cannot be accepted; until one is.
    pub(crate) accept_failed: bool,
    /// What somebody took away and cannot be made again as things are.
    pub(crate) missing: Vec<Missing>,
    pub(crate) looks: Looks,
    look_again_at: Instant,
    /// Once stopping: until when sessions may take to end.
    stop_by: Option<Instant>,
    /// Once stopping: since when.
    stopped_at: Option<Duration>,
    pub(crate) guards: Vec<Guard>,
}

/// How long sessions may take to end when the process stops.
const STOP_WITHIN: Duration = Duration::from_millis(700);
/// How long a process that ends waits for what it left for later.
const LATER_WITHIN: Duration = Duration::from_millis(500);
/// How long a process that ends waits for the disk to have its last events.
const EVENTS_WITHIN: Duration = Duration::from_millis(300);
/// Sessions' news and calls taken in one turn.
const MESSAGES_PER_TURN: usize = 256;

impl Daemon {
    pub(crate) fn remote(&self) -> Remote {
        self.remote.clone()
    }

    pub(crate) fn epoll_add(&self, source: impl AsFd, token: Token) -> Result<(), Fault> {
        epoll::add(&self.epoll, source, token.data(), EventFlags::IN)
            .map_err(|error| Fault::system("cannot watch a descriptor", error))
    }

    /// Runs until told to stop. Every session is closed and every socket file removed when this returns.
    pub(crate) fn run(mut self) {
        let mut ready = Vec::with_capacity(128);
        let mut busy_clients: Vec<u64> = Vec::new();
        loop {
            let timeout = self.timeout(!busy_clients.is_empty() || !self.inbox.is_empty());
            ready.clear();
            let waited = epoll::wait(
                &self.epoll,
                rustix::buffer::spare_capacity(&mut ready),
                timeout
                    .as_ref()
                    .map(|wait| rustix::event::Timespec {
                        tv_sec: wait.as_secs() as i64,
                        tv_nsec: i64::from(wait.subsec_nanos()),
                    })
                    .as_ref(),
            );
            if let Err(error) = waited
                && error != rustix::io::Errno::INTR
            {
                tracing::error!(%error, "cannot wait for events");
                self.begin_stop();
            }
            let mut turn = std::mem::take(&mut busy_clients);
            for event in ready.drain(..) {
                match Token::of(event.data) {
                    Token::Control => self.accept_clients(Role::Administrator),
                    Token::View => self.accept_clients(Role::Viewer),
                    Token::Metrics => self.accept_scrapers(),
                    Token::Client(id) => {
                        if !turn.contains(&id) {
                            turn.push(id);
                        }
                    }
                    Token::Device(id) => self.device_ready(id),
                    Token::Watch => self.sockets_appeared(),
                    Token::Inbox => {
                        self.remote.wake.clear();
                    }
                    Token::Signals => self.take_signals(),
                    Token::Reload => self.take_reload(),
                    Token::Bus(at) => self.take_bus_changes(at),
                }
            }
            self.take_messages();
            turn.extend(self.rested_viewers());
            for id in turn {
                if self.serve_client(id) {
                    busy_clients.push(id);
                }
            }
            self.take_time();
            self.feed_subscribers();
            if let Some(by) = self.stop_by
                && ((self.sessions.is_empty() && self.captures.is_empty()) || Instant::now() >= by)
            {
                break;
            }
        }
        self.finish();
    }

    fn timeout(&self, is_busy: bool) -> Option<Duration> {
        if is_busy {
            return Some(Duration::ZERO);
        }
        let now = Instant::now();
        let next = self.timers.peek().map(|Reverse((at, _))| *at);
        let tick = self.clients.any_waiting().then(|| now + Duration::from_secs(1));
        let look = self.stop_by.is_none().then_some(self.look_again_at);
        let beat = self.heartbeat.as_ref().map(Heartbeat::next);
        let viewers = self.clients.viewers.next(now);
        let scrapers = self.scrapers_time.shut_until;
        [beat, next, tick, self.retry_absent_at, self.accept_again_at, self.stop_by, look, viewers, scrapers]
            .into_iter()
            .flatten()
            .min()
            // Rounded up: epoll counts in milliseconds, and waking too early would only be a turn for nothing.
            .map(|at| at.saturating_duration_since(now) + Duration::from_micros(100))
    }

    /// Feeds the service manager's watchdog, if it is due: in each turn, and between the steps of a turn that has many.
    pub(crate) fn beat(&mut self, now: Instant) {
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.beat(now);
        }
    }

    fn take_time(&mut self) {
        let now = Instant::now();
        self.beat(now);
        while let Some(Reverse((at, id))) = self.timers.peek().copied() {
            if at > now {
                break;
            }
            self.timers.pop();
            self.device_timer(id, now);
        }
        if self.retry_absent_at.is_some_and(|at| at <= now) && self.stop_by.is_none() {
            self.retry_absent();
        }
        if self.accept_again_at.is_some_and(|at| at <= now) {
            self.accept_again();
        }
        if self.scrapers_time.shut_until.is_some_and(|at| at <= now) {
            self.admit_scrapers();
        }
        self.clients.drop_stalled();
        if self.look_again_at <= now && self.stop_by.is_none() {
            self.look_after();
            self.look_again_at = now + LOOK_EVERY;
        }
    }

    fn take_messages(&mut self) {
        for _ in 0..MESSAGES_PER_TURN {
            match self.inbox.try_recv() {
                Ok(Message::News(session)) => self.take_reports(session),
                Ok(Message::Upcall(id)) => self.take_upcalls(id),
                Ok(Message::Register { mgmtdev, reply }) => {
                    let _ = reply.send(self.register(mgmtdev));
                }
                Ok(Message::Unregister { name, why, reply }) => {
                    let _ = reply.send(self.unregister(&name, &why));
                }
                Ok(Message::Call { method, params, reply }) => {
                    let asker = Asker { caller: Caller::own(), client: None, role: Role::Administrator };
                    let result = self.call(&method, params, &asker);
                    let _ = reply
                        .send(result.unwrap_or_else(|| Err(Fault::usage(format!("no method {method}")))));
                }
                Ok(Message::Adopt { entry, socket, reply }) => {
                    let _ = reply.send(self.adopt(entry, socket));
                }
                Ok(Message::Ready { status }) => {
                    if let Some(line) = &mut self.status_line {
                        line.begin(status);
                    }
                }
                Ok(Message::Metrics { reply }) => self.answer_scraper(&reply),
                Ok(Message::CaptureBegun { id }) => self.capture_begun(id),
                Ok(Message::CaptureEnded { id, outcome }) => self.capture_ended(id, outcome),
                Ok(Message::Stop) => self.begin_stop(),
                Err(_) => break,
            }
        }
    }

    fn take_signals(&mut self) {
        use std::io::Read as _;
        let mut bytes = [0u8; 64];
        if let Some(mut signals) = self.signals.as_ref()
            && signals.read(&mut bytes).is_ok_and(|n| n > 0)
        {
            self.begin_stop();
        }
    }

    /// Several that came at once are one.
    fn take_reload(&mut self) {
        use std::io::Read as _;
        let mut bytes = [0u8; 64];
        if let Some(mut reload) = self.reload.as_ref()
            && reload.read(&mut bytes).is_ok_and(|n| n > 0)
            && !self.is_stopping()
        {
            self.reload();
        }
    }

    /// Starts to stop: no new front-ends, every session told to close.
    pub(crate) fn begin_stop(&mut self) {
        if self.stop_by.is_some() {
            return;
        }
        self.events.push("daemon.stopping", None, serde_json::json!({}));
        self.stop_by = Some(Instant::now() + STOP_WITHIN);
        self.stopped_at = Some(gap::now());
        self.captures.end(None, End::DaemonStopping);
        for id in self.registry.ids() {
            let Some(device) = self.registry.by_id(id) else { continue };
            if let Some(listening) = device.listening.take() {
                let _ = epoll::delete(&self.epoll, &listening.socket);
            }
            let _ = device.life.apply(LifeEvent::Close);
            if let Some(connection) = &device.connection {
                connection.handle.send(Command::Close);
            }
        }
    }

    pub(crate) fn is_stopping(&self) -> bool {
        self.stop_by.is_some()
    }

    fn finish(mut self) {
        if !self.sessions.is_empty() {
            tracing::warn!(
                sessions = self.sessions.len(),
                "sessions did not end in time and are left behind"
            );
        }
        for id in self.clients.ids() {
            self.settle_client(id);
        }
        self.ctl = None;
        self.events.flush(EVENTS_WITHIN);
        self.view = None;
        if let Some(since) = self.stopped_at {
            gap::leave(&self.runtime_dir, since);
        }
        self.engine.shutdown();
        // Interfaces of devices that were removed a moment ago go, too.
        later::settle(LATER_WITHIN);
    }
}
