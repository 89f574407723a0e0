//! A daemon's beginning: locks, workers, sockets, and what state directory and configuration name.

use std::collections::{BinaryHeap, HashMap};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;
use std::{fs, io};

use crossbeam::channel::unbounded;
use ringway_engine::{Clock, Engine, EngineConfig};
use ringway_pmd::notify::EventFd;
use rustix::event::epoll::{self, CreateFlags};

use super::{Daemon, Remote, Token};
use crate::devices::addresses::{self, Addresses};
use crate::devices::device::Origin;
use crate::devices::placement::{Placement, allowed_cores, choose_cores, list};
use crate::devices::registry::{MgmtOrigin, Registry};
use crate::devices::state::StateDir;
use crate::devices::workers::Loads;
use crate::fault::{Fault, Kind};
use crate::frontends::budget::Budget;
use crate::host::accounts::{A_WHILE, Account};
use crate::host::claims::Claims;
use crate::host::endpoint::{Listening, unreachable_for};
use crate::host::gap;
use crate::host::guard::Guard;
use crate::host::look::{LOOK_EVERY, Looks};
use crate::host::program::Program;
use crate::host::share::Shares;
use crate::host::topology::Topology;
use crate::host::watch::Watch;
use crate::host::watchdog::Watchdog;
use crate::operator::capture::Captures;
use crate::operator::events::Events;
use crate::operator::metrics::{Scraped, ScrapersTime};
use crate::operator::rpc::Clients;
use crate::settings::{Options, Settings, View};

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
                if addresses.is_copied() {
                    tracing::warn!(
                        "{} was made on another machine, whose devices may have the same addresses as those of this one; where this \
                         host was made of an image: write {{}} into that file, restart ringwayd, and give the VMs the new addresses",
                        state.path().join(addresses::FILE).display()
                    );
                }
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
            is_applying: false,
            settings,
            config_file: options.config_file,
            overrides: options.overrides,
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
            status_line: options.status_line,
            ctl: None,
            ctl_path: options.ctl.clone(),
            view: None,
            view_asked: options.view.clone(),
            metrics_asked: options.metrics.clone(),
            scraped: options.metrics.as_deref().map(Scraped::open).transpose()?,
            scrapers: Arc::default(),
            scrapers_time: ScrapersTime::default(),
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
}

fn start_engine(settings: &Settings) -> Result<Engine, Fault> {
    let clock = Clock { cycles: ringway_ring::tsc::cycles, hertz: ringway_ring::tsc::hertz() };
    Engine::start(EngineConfig { cores: settings.cores.clone(), idle: settings.idle, clock })
        .map_err(|error| Fault::new(Kind::Runtime, error.to_string()).at("cores"))
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
