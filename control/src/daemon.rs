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

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam::channel::{Receiver, Sender, unbounded};
use ringway_engine::{Clock, Engine, EngineConfig};
use ringway_pmd::driver::Attachments;
use ringway_pmd::later;
use ringway_pmd::notify::EventFd;
use ringway_pmd::vdpa::{DeviceHost, Health, ManagementDevice};
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use serde_json::Value;

use crate::devices::addresses::{self, Addresses};
use crate::devices::checks::uplink_of;
use crate::devices::device::Origin;
use crate::devices::life::LifeEvent;
use crate::devices::placement::{Placement, allowed_cores, choose_cores, list};
use crate::devices::ports::Port;
use crate::devices::registry::{MgmtOrigin, Registry};
use crate::devices::state::StateDir;
use crate::devices::workers::Loads;
use crate::fault::{Fault, Kind};
use crate::frontends::budget::Budget;
use crate::frontends::reports::Reports;
use crate::frontends::session::{Command, Reporter};
use crate::host::accounts::{A_WHILE, Account};
use crate::host::claims::Claims;
use crate::host::endpoint::{Inherited, Listening, unreachable_for};
use crate::host::gap;
use crate::host::guard::Guard;
use crate::host::look::{LOOK_EVERY, Looks, Missing};
use crate::host::manager::Heartbeat;
use crate::host::peer::Caller;
use crate::host::program::Program;
use crate::host::share::Shares;
use crate::host::topology::Topology;
use crate::host::watch::Watch;
use crate::host::watchdog::Watchdog;
use crate::operator::api::{DeviceEntry, MgmtEntry, PortEntry};
use crate::operator::capture::{Captures, End};
use crate::operator::events::Events;
use crate::operator::methods::Asker;
use crate::operator::metrics::{Scraped, Scrapers};
use crate::operator::role::Role;
use crate::operator::rpc::Clients;
use crate::settings::{Options, Settings, View};

/// What reaches the control thread from other threads.
pub(crate) enum Message {
    /// A session that had told nothing has told something.
    News(u64),
    /// A device that had told nothing has told something.
    Upcall(u64),
    /// A request from within the process.
    Call { method: String, params: Value, reply: Sender<Result<Value, Fault>> },
    /// A driver within the process brings a management device.
    Register { mgmtdev: Box<dyn ManagementDevice>, reply: Sender<Result<(), Fault>> },
    /// It takes it back.
    Unregister { name: String, why: String, reply: Sender<Result<(), Fault>> },
    /// Make a device on a socket that came with the process.
    Adopt { entry: DeviceEntry, socket: Inherited, reply: Sender<Result<(), Fault>> },
    /// A scraper asks for what is measured.
    Metrics { reply: crate::operator::metrics::Reply },
    /// A capture has ended.
    CaptureEnded { id: u64, end: End },
    /// Stop.
    Stop,
}

/// How other threads reach the control thread. What waits there is bounded by who sends: one word of news from each
/// session, one call from each thread that waits for its answer.
#[derive(Clone)]
pub(crate) struct Remote {
    sender: Sender<Message>,
    wake: Arc<EventFd>,
}

impl Remote {
    /// How a session that is about to start reports, and where its reports are taken from.
    pub(crate) fn reports(&self) -> (Reporter, Arc<Reports>) {
        let (remote, reports) = (self.clone(), Arc::<Reports>::default());
        let pending = Arc::clone(&reports);
        let reporter = move |session, report| {
            if pending.put(report) {
                remote.send(Message::News(session));
            }
        };
        (Arc::new(reporter), reports)
    }

    /// The line on which device `id` tells what it has to tell.
    pub(crate) fn device_host(&self, id: u64) -> DeviceHost {
        let remote = self.clone();
        DeviceHost::new(move || {
            remote.send(Message::Upcall(id));
        })
    }

    /// Never waits. False: the control thread is gone.
    pub(crate) fn send(&self, message: Message) -> bool {
        let sent = self.sender.send(message).is_ok();
        self.wake.signal();
        sent
    }
}

/// Which descriptor became ready: the kind in the highest byte, a number below.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Token {
    Control,
    View,
    Client(u64),
    Device(u64),
    Watch,
    Inbox,
    Signals,
    Reload,
    Metrics,
    Bus(usize),
}

impl Token {
    pub(crate) fn data(self) -> EventData {
        let (kind, id) = match self {
            Token::Control => (0, 0),
            Token::Client(id) => (1, id),
            Token::Device(id) => (2, id),
            Token::Watch => (3, 0),
            Token::Inbox => (4, 0),
            Token::Signals => (5, 0),
            Token::Bus(at) => (6, at as u64),
            Token::Reload => (7, 0),
            Token::Metrics => (8, 0),
            Token::View => (9, 0),
        };
        EventData::new_u64(kind << 56 | id)
    }

    fn of(data: EventData) -> Token {
        let (kind, id) = (data.u64() >> 56, data.u64() & ((1 << 56) - 1));
        match kind {
            1 => Token::Client(id),
            2 => Token::Device(id),
            3 => Token::Watch,
            4 => Token::Inbox,
            5 => Token::Signals,
            6 => Token::Bus(id as usize),
            7 => Token::Reload,
            8 => Token::Metrics,
            9 => Token::View,
            _ => Token::Control,
        }
    }
}

/// A device that was asked for and could not be made: kept, and tried again now and then where that may help.
#[derive(Debug)]
pub(crate) struct Absent {
    pub(crate) entry: DeviceEntry,
    pub(crate) origin: Origin,
    pub(crate) why: String,
    /// It fails as it is, for as long as this process runs.
    pub(crate) is_final: bool,
}

/// A management device that could not be made at the start as it was asked for: kept, for the next one.
#[derive(Debug)]
pub(crate) struct AbsentMgmtdev {
    pub(crate) entry: MgmtEntry,
    pub(crate) origin: MgmtOrigin,
    pub(crate) why: String,
}

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
    pub(crate) settings: Settings,
    pub(crate) config_file: Option<PathBuf>,
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
    pub(crate) ctl: Option<Listening>,
    pub(crate) ctl_path: Option<PathBuf>,
    /// The view-only socket.
    pub(crate) view: Option<Listening>,
    pub(crate) view_asked: Option<View>,
    pub(crate) metrics_asked: Option<String>,
    pub(crate) scraped: Option<Scraped>,
    pub(crate) scrapers: Arc<Scrapers>,
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
/// How often a device that could not be made is tried again.
pub(crate) const RETRY_ABSENT: Duration = Duration::from_secs(2);
/// The same, the first time.
const RETRY_SOON: Duration = Duration::from_millis(300);
/// Sessions' news and calls taken in one turn.
const MESSAGES_PER_TURN: usize = 256;

impl Daemon {
    /// Takes the locks, starts the workers, opens the operator socket and makes the devices that state and
    /// configuration name.
    pub(crate) fn new(options: Options) -> Result<Daemon, Fault> {
        let epoll = epoll::create(CreateFlags::CLOEXEC)
            .map_err(|error| Fault::system("cannot make an epoll", error))?;
        let (sender, inbox) = unbounded();
        let wake = Arc::new(EventFd::new().map_err(|error| Fault::system("cannot make an eventfd", error))?);
        let watch = Watch::new().map_err(|error| Fault::system("cannot watch directories", error))?;

        let mut guards = Vec::new();
        if let Some(ctl) = &options.ctl {
            crate::host::endpoint::check_path(ctl)?;
            if ctl.is_dir() {
                return Err(Fault::conflict(format!("{} is a directory", ctl.display()))
                    .at("ctl")
                    .hint(format!("--ctl {}", ctl.join("ctl.sock").display())));
            }
        }
        make_dir(&options.runtime_dir)?;
        if let Some(ctl) = &options.ctl {
            let lock = PathBuf::from(format!("{}.lock", ctl.display()));
            guards.push(Guard::take(&lock, "operator socket", &ctl.display().to_string())?);
        }
        make_dir(&options.runtime_dir.join("dev"))?;
        make_dir(&options.runtime_dir.join("positions"))?;
        make_dir(&options.runtime_dir.join("inflight"))?;
        // Two that share it would write the positions of different guests' rings into one page.
        let lock = options.runtime_dir.join("ringwayd.lock");
        let shown = options.runtime_dir.display().to_string();
        guards.push(Guard::take(&lock, "runtime directory", &shown)?);
        let (mut state, kept) = match options.state_dir.as_deref().map(StateDir::open).transpose()? {
            Some((state, kept)) => (Some(state), kept),
            None => (None, Default::default()),
        };

        let allowed = allowed_cores().map_err(|error| Fault::system("cannot read the cpuset", error))?;
        let mut settings = options.settings;
        let topology = Topology::of_host();
        settings.cores = choose_cores(&allowed, &settings.cores, &topology)?;
        let claims = match options.claims_cores {
            true => Claims::take(&settings.cores, settings.idle)?,
            false => Claims::default(),
        };
        let addresses = match &mut state {
            Some(state) => {
                let addresses = Addresses::open(state.path(), &kept.devices)?;
                state.also(addresses::FILE)?;
                addresses
            }
            None => Addresses::of_machine(),
        };
        let buses = options.attachments.iter().map(|bus| bus.info()).collect();
        let registry = Registry::new(options.mgmtdevs, options.kinds, buses, addresses)?;
        let engine = start_engine(&settings)?;
        if settings.cores.contains(&0) && allowed.len() > 1 {
            tracing::warn!(
                "a worker is on core 0, where the kernel has work that no setting moves; others: {}",
                list(&allowed)
            );
        }
        let watchdog = Watchdog::start(engine.clone())
            .map_err(|error| Fault::system("cannot start the watchdog of the workers", error))?;

        let instance = random_id();
        let events = match &state {
            Some(state) => Events::kept_in(state.path(), &instance),
            None => Events::new(&instance),
        };
        let mut daemon = Daemon {
            registry,
            attachments: options.attachments,
            absent: Vec::new(),
            absent_mgmtdevs: Vec::new(),
            ports: Vec::new(),
            kept_ports: Vec::new(),
            placement: Placement::new(&settings.cores, topology),
            claims,
            shares: Shares::default(),
            loads: Loads::default(),
            engine,
            budget: Budget::of_process(),
            _watchdog: watchdog,
            events,
            state,
            generation: kept.generation,
            settings,
            config_file: options.config_file,
            runtime_dir: options.runtime_dir,
            instance,
            program: Program::of_process(),
            started: Instant::now(),
            gap: None,
            epoll,
            watch,
            clients: Clients::default(),
            captures: Captures::default(),
            sessions: HashMap::new(),
            next_session: 1,
            leaving: HashMap::new(),
            draining: Vec::new(),
            ends_with: None,
            timers: BinaryHeap::new(),
            remote: Remote { sender, wake: wake.clone() },
            inbox,
            signals: options.signals,
            reload: options.reload,
            heartbeat: options.heartbeat,
            ctl: None,
            ctl_path: options.ctl.clone(),
            view: None,
            view_asked: options.view.clone(),
            metrics_asked: options.metrics.clone(),
            scraped: options.metrics.as_deref().map(Scraped::open).transpose()?,
            scrapers: Arc::default(),
            retry_absent_at: None,
            accept_again_at: None,
            accept_failed: false,
            missing: Vec::new(),
            looks: Looks::default(),
            look_again_at: Instant::now() + LOOK_EVERY,
            stop_by: None,
            stopped_at: None,
            guards,
        };
        daemon.epoll_add(&*wake, Token::Inbox)?;
        daemon.epoll_add(&daemon.watch, Token::Watch)?;
        if let Some(scraped) = &daemon.scraped {
            daemon.epoll_add(scraped, Token::Metrics)?;
        }
        if let Some(signals) = &daemon.signals {
            daemon.epoll_add(signals, Token::Signals)?;
        }
        if let Some(reload) = &daemon.reload {
            daemon.epoll_add(reload, Token::Reload)?;
        }
        for at in 0..daemon.attachments.len() {
            if let Some(news) = daemon.attachments.get(at).and_then(|bus| bus.news()) {
                daemon.epoll_add(news, Token::Bus(at))?;
            }
            daemon.take_bus_changes(at);
        }
        daemon.make_mgmtdevs(options.named, MgmtOrigin::Config);
        daemon.make_mgmtdevs(kept.mgmtdevs, MgmtOrigin::Operator);
        daemon.make_ports(options.ports, MgmtOrigin::Config);
        daemon.make_ports(kept.ports, MgmtOrigin::Operator);
        daemon.make_devices(options.devices, Origin::Config);
        daemon.make_devices(kept.devices, Origin::Operator);
        if let Some(path) = options.ctl {
            let ctl = match options.ctl_socket {
                Some(socket) => Listening::inherited(socket)?,
                None => Listening::open(&path, None, None)?,
            };
            daemon.epoll_add(&ctl.socket, Token::Control)?;
            daemon.ctl = Some(ctl);
        }
        if let Some(View { path, group }) = options.view {
            let group = group.map(|name| Account::Group.id(&name, A_WHILE)).transpose()?;
            let view = Listening::open(&path, None, group)?;
            for closed in unreachable_for(&path, None, group) {
                let hint = format!("chmod o+x {}", closed.display());
                tracing::warn!(hint, "viewers cannot pass {} to {}", closed.display(), path.display());
            }
            daemon.epoll_add(&view.socket, Token::View)?;
            daemon.view = Some(view);
        }
        let unserved_since = gap::take(&daemon.runtime_dir);
        daemon.gap = unserved_since.map(|since| gap::now().saturating_sub(since));
        Ok(daemon)
    }

    pub(crate) fn remote(&self) -> Remote {
        self.remote.clone()
    }

    pub(crate) fn epoll_add(&self, source: impl AsFd, token: Token) -> Result<(), Fault> {
        epoll::add(&self.epoll, source, token.data(), EventFlags::IN)
            .map_err(|error| Fault::system("cannot watch a descriptor", error))
    }

    /// Makes the devices of a list at the start; what cannot be made is kept and tried again.
    fn make_devices(&mut self, entries: Vec<DeviceEntry>, origin: Origin) {
        // By what was asked for: some devices bring another one.
        let (wanted, mut made) = (entries.len(), 0);
        for entry in entries {
            if origin == Origin::Operator && self.registry.is_taken(&entry.name) {
                tracing::warn!(dev = entry.name, "also in the configuration file, which goes first");
                self.absent.push(Absent {
                    entry,
                    origin,
                    why: "a device of this name is in the configuration file".to_owned(),
                    is_final: false,
                });
                continue;
            }
            match self.make_device(entry.clone(), origin) {
                Ok(()) => made += 1,
                Err(fault) => {
                    let (held_by, hint) = (fault.held_by.as_deref(), fault.hint.as_deref());
                    let is_final = !self.may_come(&entry.mgmtdev)
                        && (fault.kind == Kind::Usage || self.check_for_good(&entry).is_err());
                    let again = if is_final {
                        "it is kept and not tried again".to_owned()
                    } else {
                        format!("it is tried again every {} s", RETRY_ABSENT.as_secs())
                    };
                    let why = &fault.message;
                    if self.may_come(&entry.mgmtdev) {
                        // A bus tells what it has once it has looked.
                        tracing::info!(dev = entry.name, "device waits for {}", entry.mgmtdev);
                    } else {
                        tracing::error!(
                            dev = entry.name,
                            held_by,
                            hint,
                            "device cannot be made, {again}: {why}"
                        );
                    }
                    self.absent.push(Absent { entry, origin, why: fault.message, is_final });
                    if !is_final {
                        // Soon at first: a process that is just dying may hold what it needs.
                        self.retry_absent_at = Some(Instant::now() + RETRY_SOON);
                    }
                }
            }
        }
        if wanted > 0 {
            tracing::info!(origin = origin.name(), "{made} of {wanted} devices made at the start");
        }
    }

    /// A bus may announce it.
    fn may_come(&self, mgmtdev: &str) -> bool {
        let bus = mgmtdev.split_once('/').map(|(bus, _)| bus);
        !self.registry.has_mgmtdev(mgmtdev)
            && self.attachments.iter().any(|known| Some(known.info().name) == bus)
    }

    fn retry_absent(&mut self) {
        self.retry_absent_at = None;
        for absent in std::mem::take(&mut self.absent) {
            if absent.is_final {
                self.absent.push(absent);
                continue;
            }
            let is_taken = self.registry.is_taken(&absent.entry.name);
            match if is_taken {
                Err(Fault::conflict(absent.why.clone()))
            } else {
                self.make_device(absent.entry.clone(), absent.origin)
            } {
                Ok(()) => self.tell_added(&absent.entry.name),
                Err(fault) => {
                    // While its function is away, why that went says more than that it is not there.
                    let function = uplink_of(&absent.entry).unwrap_or(&absent.entry.mgmtdev);
                    let why = if self.may_come(function) { absent.why.clone() } else { fault.message };
                    self.absent.push(Absent { why, ..absent });
                    self.retry_absent_at = Some(Instant::now() + RETRY_ABSENT);
                }
            }
        }
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
        [beat, next, tick, self.retry_absent_at, self.accept_again_at, self.stop_by, look]
            .into_iter()
            .flatten()
            .min()
            // Rounded up: epoll counts in milliseconds, and waking too early would only be a turn for nothing.
            .map(|at| at.saturating_duration_since(now) + Duration::from_micros(100))
    }

    fn take_time(&mut self) {
        let now = Instant::now();
        if let Some(heartbeat) = &mut self.heartbeat {
            heartbeat.beat(now);
        }
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
                Ok(Message::Metrics { reply }) => drop(reply.send(self.reading())),
                Ok(Message::CaptureEnded { id, end }) => self.capture_ended(id, end),
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

fn start_engine(settings: &Settings) -> Result<Engine, Fault> {
    let clock = Clock { cycles: ringway_ring::tsc::cycles, hertz: ringway_ring::tsc::hertz() };
    Engine::start(EngineConfig { cores: settings.cores.clone(), idle: settings.idle, clock })
        .map_err(|error| Fault::new(crate::fault::Kind::Runtime, error.to_string()).at("cores"))
}

/// Makes a directory of mode 0750 if it is not there; one that another user owns is refused.
pub(crate) fn make_dir(path: &Path) -> Result<(), Fault> {
    let shown = path.display();
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(path)
        .map_err(|error| Fault::system(format!("cannot make the directory {shown}"), error))
        .map_err(|fault| fault.hint("ringwayd --ctl PATH in a directory that you may write to"))?;
    let meta: io::Result<fs::Metadata> = fs::metadata(path);
    let meta = meta.map_err(|error| Fault::system(format!("cannot look at {shown}"), error))?;
    let uid = rustix::process::getuid().as_raw();
    if meta.uid() != uid && meta.uid() != 0 {
        return Err(Fault::conflict(format!("the directory {shown} belongs to another user"))
            .held_by(format!("uid {}", meta.uid()))
            .hint("ringwayd --ctl PATH in a directory of your own"));
    }
    Ok(())
}

fn since_1970() -> u128 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default().as_nanos()
}

fn random_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/uuid")
        .map(|id| id.trim().to_owned())
        .unwrap_or_else(|_| format!("{:08x}-{:032x}", std::process::id(), since_1970()))
}
