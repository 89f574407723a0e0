//! The program `ringwayd`: its options, its start, and what it says of the host.

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Parser as _;
use ringway_engine::IdlePolicy;
use ringway_pmd::bus::virt::VirtualBus;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::devices::placement::parse_cores;
use crate::fault::Fault;
use crate::host::log::Log;
use crate::host::logging;
use crate::host::manager::{self, Manager};
use crate::operator::api::{DevShow, MgmtdevShow, PortShow, Select};
use crate::operator::cli::ringwayd::{Idle, Ringwayd};
use crate::operator::config::{self, Desired};
use crate::settings::{Options, Settings, View};
use crate::subsystem::Subsystem;
use crate::{devices::drivers, host::paths, operator::single};

/// Runs the program with these arguments, its name first, and returns the exit code.
pub fn main(args: impl IntoIterator<Item = OsString>) -> u8 {
    let args = match Ringwayd::try_parse_from(args) {
        Ok(args) => args,
        Err(error) if !error.use_stderr() => {
            let _ = error.print();
            return 0;
        }
        Err(error) => {
            let fault = Fault::of_clap(&error, "ringwayd");
            let _ = writeln!(io::stderr(), "{fault}");
            return fault.kind.exit_code();
        }
    };
    let mut log = None;
    let outcome = run(args, &mut log);
    if let Err(fault) = &outcome {
        match &log {
            // Nobody may read standard error any more.
            Some(log) => log.add_text(&fault.to_string()),
            None => drop(writeln!(io::stderr(), "{fault}")),
        }
    }
    if let Some(log) = log {
        log.flush(FLUSH_WITHIN);
    }
    outcome.map_or_else(|fault| fault.kind.exit_code(), |()| 0)
}

/// Runs until told to stop. `log` is set once there is one.
fn run(args: Ringwayd, log: &mut Option<Log>) -> Result<(), Fault> {
    if args.print_capabilities {
        return writeln!(io::stdout(), "{}", single::CAPABILITIES)
            .map_err(|error| Fault::system("cannot write", error));
    }
    // Before there is a second thread: what is handed over is taken out of the environment.
    let ctl_socket = manager::handed_over()?;
    let desired = match &args.config {
        Some(file) => config::read(file, &drivers::known())?,
        None => Desired::default(),
    };
    *log = Some(start_log(args.log.as_deref().or(desired.log.as_deref()))?);
    // Nothing that this process makes is for others, not even for a moment.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o007));
    let descriptors = raise_descriptors();
    if descriptors < LEAST_DESCRIPTORS {
        tracing::warn!(
            "{descriptors} file descriptors are few: some guests will have to wait; raise LimitNOFILE= of the unit (ulimit -n) \
             to {LEAST_DESCRIPTORS} or more"
        );
    }
    // Where each setting came from is said at the start: of several sources the operator may have forgotten one.
    let file = args.config.as_ref().map_or_else(String::new, |file| file.display().to_string());
    let from = |is_option: bool, is_in_file: bool| match (is_option, is_in_file) {
        (true, _) => "from the command line",
        (false, true) => file.as_str(),
        (false, false) => "default",
    };
    let idle_from = from(args.idle.is_some(), desired.idle.is_some());
    let settings = Settings {
        cores: match &args.cores {
            Some(text) => parse_cores(text).map_err(|why| Fault::usage(why).at("cores"))?,
            None => desired.cores.clone().unwrap_or_default(),
        },
        idle: match args.idle {
            Some(Idle::Poll) => IdlePolicy::Poll,
            Some(Idle::Adaptive) => IdlePolicy::Adaptive,
            None => desired.idle.unwrap_or(IdlePolicy::Adaptive),
        },
    };
    let idle = settings.idle.name();
    let (signals, reload) = catch_signals().map_err(|error| Fault::system("cannot catch signals", error))?;
    if args.socket_path.is_some() || args.fd.is_some() {
        return single::serve(args.socket_path.as_deref(), args.fd, settings, signals);
    }

    let variable = std::env::var_os("RINGWAY_CTL").filter(|path| !path.is_empty());
    let overrides = args.overrides(variable.as_deref());
    let handed = match &ctl_socket {
        Some(socket) => Some(path_of(socket)?),
        None => None,
    };
    let (ctl, ctl_from) = match (&args.ctl, variable, &desired.ctl) {
        (Some(path), ..) => (paths::ctl(Some(path)), "from the command line"),
        (None, Some(_), in_file) => {
            let ctl = paths::ctl(None);
            if in_file.as_ref().is_some_and(|path| *path != ctl) {
                tracing::warn!("RINGWAY_CTL goes before `ctl` in {file}: unset it for the file's to count");
            }
            (ctl, "from RINGWAY_CTL")
        }
        (None, None, Some(path)) => (paths::ctl(Some(path)), file.as_str()),
        (None, None, None) => match &handed {
            Some(path) => (path.clone(), "from the service manager"),
            None => (paths::ctl(None), "default"),
        },
    };
    if let Some(handed) = handed.filter(|handed| *handed != ctl) {
        let (ctl, handed) = (ctl.display(), handed.display());
        return Err(Fault::usage(format!(
            "the operator socket is to be {ctl}, and the service manager handed over {handed}"
        ))
        .at("ctl")
        .hint("the same path in both, or no --ctl, RINGWAY_CTL or `ctl`"));
    }
    let state_from = from(args.state_dir.is_some(), desired.state_dir.is_some());
    let state_dir = paths::state_dir(args.state_dir.as_deref().or(desired.state_dir.as_deref()));
    desired.check_start(&ctl, &settings.cores)?;
    let view = args.view.or(desired.view).map(|path| View {
        path: std::path::absolute(&path).unwrap_or(path),
        group: args.view_group.clone().or(desired.view_group.clone()),
    });
    if view.is_none() && (args.view_group.is_some() || desired.view_group.is_some()) {
        return Err(Fault::usage("view_group is whose the view-only socket is, and there is none")
            .at("view_group")
            .hint("view = \"/run/ringway/view.sock\""));
    }
    let runtime_dir = ctl.parent().unwrap_or(Path::new("/")).to_owned();
    let bus = VirtualBus::default();
    let manager = Manager::of_environment();
    let subsystem = Subsystem::start(Options {
        ctl: Some(ctl.clone()),
        view,
        metrics: args.metrics.or(desired.metrics),
        ctl_socket,
        runtime_dir,
        state_dir: Some(state_dir.clone()),
        settings,
        claims_cores: true,
        devices: desired.devices,
        config_file: args.config,
        overrides,
        mgmtdevs: drivers::all(),
        kinds: drivers::kinds(&bus),
        attachments: drivers::attachments(&bus),
        named: desired.mgmtdevs,
        ports: desired.ports,
        signals: Some(signals),
        reload: Some(reload),
        heartbeat: manager.as_ref().and_then(Manager::heartbeat),
        status_line: manager.as_ref().and_then(Manager::status_line),
    })?;
    let workers = workers(&subsystem.engine().cores());
    tracing::info!(descriptors, "{}; {workers}; idle policy {idle} ({idle_from})", host());
    tracing::info!("devices are kept in {} ({state_from})", state_dir.display());
    tracing::info!("ringwayd {} ready at {} ({ctl_from})", env!("CARGO_PKG_VERSION"), ctl.display());
    if let Some(manager) = &manager {
        let status = status(&subsystem)?;
        let is_taken = manager.tell(&format!("READY=1\nSTATUS={status}"), READY_WITHIN);
        // What has changed since is told behind it.
        subsystem.ready(if is_taken { status } else { String::new() });
    }
    subsystem.wait();
    if let Some(manager) = &manager {
        manager.tell("STOPPING=1", STOPPING_WITHIN);
    }
    Ok(())
}

/// Where a socket that was handed over lies.
fn path_of(socket: &UnixListener) -> Result<PathBuf, Fault> {
    let address = socket.local_addr().ok();
    address.and_then(|address| address.as_pathname().map(Path::to_owned)).ok_or_else(|| {
        Fault::usage("the service manager's socket has no path")
            .at("LISTEN_FDS")
            .hint("ListenStream= with a path")
    })
}

fn start_log(wanted: Option<&str>) -> Result<Log, Fault> {
    let variable = std::env::var("RINGWAY_LOG").ok().filter(|text| !text.is_empty());
    let wanted = wanted.map(str::to_owned).or(variable).unwrap_or_else(|| "info".to_owned());
    logging::start(&wanted)
}

/// With fewer descriptors than this not even some guests of many queues are served beside operators.
const LEAST_DESCRIPTORS: u64 = 1024;
/// How long a process that ends waits for the reader of its log.
const FLUSH_WITHIN: Duration = Duration::from_millis(500);
/// How long the service manager is waited for: it ends a service that never says that it is ready.
const READY_WITHIN: Duration = Duration::from_secs(2);
const STOPPING_WITHIN: Duration = Duration::from_millis(200);

/// A stream on which a byte arrives for SIGTERM and SIGINT, and one for SIGHUP. SIGPIPE, SIGUSR1, SIGUSR2 and SIGXFSZ do nothing: those who
/// send them out of habit (rotators of logs, supervisors) must not stop a host's guests.
fn catch_signals() -> io::Result<(UnixStream, UnixStream)> {
    let (ours, handlers) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    let (reload, handler) = UnixStream::pair()?;
    reload.set_nonblocking(true)?;
    signal_hook::low_level::pipe::register(signal_hook::consts::SIGHUP, handler)?;
    for signal in [signal_hook::consts::SIGTERM, signal_hook::consts::SIGINT] {
        signal_hook::low_level::pipe::register(signal, handlers.try_clone()?)?;
    }
    let ignored = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for signal in [
        signal_hook::consts::SIGUSR1,
        signal_hook::consts::SIGUSR2,
        // A file at its largest (RLIMIT_FSIZE): the write fails instead, and is told by name.
        signal_hook::consts::SIGXFSZ,
    ] {
        signal_hook::flag::register(signal, ignored.clone())?;
    }
    Ok((ours, reload))
}

/// Raises the limit of open descriptors as far as it goes; returns it.
fn raise_descriptors() -> u64 {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum });
    getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX)
}

/// What this host gives: who we are, and on which pages memory of our own will stand.
fn host() -> String {
    let uid = rustix::process::getuid();
    let pages = free_hugepages(Path::new("/sys/kernel/mm/hugepages"));
    format!("uid {}{}; {pages}", uid.as_raw(), if uid.is_root() { "" } else { " (unprivileged)" })
}

/// The free hugepages that the kernel tells of in `folder`, in words.
fn free_hugepages(folder: &Path) -> String {
    if !folder.is_dir() {
        return format!("free hugepages: cannot tell, {} is not there", folder.display());
    }
    let free = |size: &str| -> u64 {
        let path = folder.join(format!("hugepages-{size}kB/free_hugepages"));
        std::fs::read_to_string(path).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
    };
    match (free("1048576"), free("2048")) {
        (0, 0) => "no free hugepages: memory of our own stands on ordinary pages".to_owned(),
        (gigantic, huge) => format!("free hugepages: {gigantic} of 1 GiB, {huge} of 2 MiB"),
    }
}

/// How many of the cores that this process may use have a worker, and how there are more.
fn workers(cores: &[usize]) -> String {
    let usable = crate::devices::placement::allowed_cores().map_or(cores.len(), |allowed| allowed.len());
    let list = crate::devices::placement::list(cores);
    let noun = if cores.len() == 1 { "worker on core" } else { "workers on cores" };
    let more = if usable > cores.len() + 1 { " (--cores for more)" } else { "" };
    format!("{} {noun} {list}, of {usable} usable cores{more}", cores.len())
}

/// In words what it made: all that was asked for was made, or is named here.
fn status(subsystem: &Subsystem) -> Result<String, Fault> {
    let shown: DevShow = subsystem.call("dev.show", &Select::default())?;
    let mgmtdevs: MgmtdevShow = subsystem.call("mgmtdev.show", &Select::default())?;
    let ports: PortShow = subsystem.call("port.show", &Select::default())?;
    let absent = [mgmtdevs.absent.0, ports.absent.0, shown.absent.0].concat();
    let absent: Vec<String> = absent.into_iter().map(|(name, _)| name).collect();
    Ok(manager::status_of(shown.dev.0.len(), &absent))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hugepages_are_counted_only_where_the_kernel_tells() {
        let dir = tempfile::tempdir().unwrap();
        let nowhere = dir.path().join("none");
        assert!(free_hugepages(&nowhere).starts_with("free hugepages: cannot tell, "));
        assert!(free_hugepages(dir.path()).starts_with("no free hugepages"));
        std::fs::create_dir(dir.path().join("hugepages-2048kB")).unwrap();
        std::fs::write(dir.path().join("hugepages-2048kB/free_hugepages"), "512\n").unwrap();
        assert_eq!(free_hugepages(dir.path()), "free hugepages: 0 of 1 GiB, 512 of 2 MiB");
    }
}
