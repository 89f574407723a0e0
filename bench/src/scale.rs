//! How cost grows: with idle devices beside a busy one, with busy devices, with disks, with regions of memory, with ports of a
//! bridge; and what waits for what: adding, connecting, starting, waking.
//!
//! ```text
//!   this process, core A                     ringwayd, core B
//!   | guests that are driven | idle ones |   | worker |   control and sessions on any
//! ```
//! What is compared is measured in one run, in turns there and back (A B C C B A ..). Only ratios count.

// A bridge on one core and on two.
pub mod bridge_cores;
// What `adaptive` costs when idle, and takes to wake.
pub mod adaptive;
// A rate over a count.
pub mod curve;
// Curves of throughput.
pub mod curves;
// Disks, busy and idle.
pub mod disks;
// Guests and workers on the same cores, one after the other.
mod in_turns;
// Driving guests, and which parts of the time were quiet.
pub mod load;
// From the start of a process to its first packet.
pub mod start;
// Adding devices and connecting front-ends.
pub mod times;
// What looking costs.
pub mod watched;

use std::path::PathBuf;
use std::time::Duration;

use ringway_control::fault::Fault;
use ringway_control::operator::api::{CoreInfo, CoreShow, DeviceEntry};
use ringway_control::operator::client::Client;
use ringway_guest::frame::Sizes;
use ringway_guest::{Guest, GuestError, GuestOptions};
use ringway_ring::queue::Format;
use serde_json::{Value, json};

use crate::daemon::{Daemon, DaemonError};
use crate::host;
use crate::idle::IdleError;

/// How to measure.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Core of the guests.
    pub guest_core: usize,
    /// Core of the daemon's one worker.
    pub worker_core: usize,
    /// Core of a second worker, where there is one.
    pub second_core: Option<usize>,
    /// Rings of the guests that are driven.
    pub format: Format,
    /// Bytes of their frames.
    pub frame_len: u16,
    /// Rounds of each point.
    pub rounds: u32,
    /// How long each takes.
    pub round: Duration,
}

/// Why it could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum ScaleError {
    /// The daemon.
    #[error(transparent)]
    Daemon(#[from] DaemonError),
    /// What the daemon answered.
    #[error("ringwayd: {0}")]
    Fault(#[from] Fault),
    /// A guest.
    #[error("guest of {device}: {source}")]
    Guest {
        /// Its device.
        device: String,
        /// What it says.
        source: GuestError,
    },
    /// Idle devices.
    #[error(transparent)]
    Idle(#[from] IdleError),
    /// A core that cannot be had.
    #[error("cannot run the guests on core {0}: name another one that this process may use by --core")]
    Core(usize),
    /// No worker's counters where they should be.
    #[error("ringwayd shows no worker on core {0}")]
    NoWorker(usize),
    /// Never a quiet moment.
    #[error(
        "for {within:?}, all {discarded} slices of 10 ms had a gap above 1 ms: both cores must be free; end what else runs on them, or name others by --core and --worker-core"
    )]
    Noise {
        /// How long it was tried.
        within: Duration,
        /// Slices in that time.
        discarded: usize,
    },
    /// Those who were to look did not.
    #[error("not everybody who was to look did so within {0:?}: give a round more --seconds")]
    NobodyLooked(Duration),
    /// Nothing came back.
    #[error("no frame came back through {device} within {within:?}")]
    NoFrame {
        /// The device.
        device: String,
        /// How long it was waited for.
        within: Duration,
    },
    /// The system.
    #[error("{what}: {source}")]
    System {
        /// What was attempted.
        what: String,
        /// What the system said.
        source: std::io::Error,
    },
}

impl ScaleError {
    /// For `map_err`: a guest's.
    pub(crate) fn guest(device: &str) -> impl FnOnce(GuestError) -> ScaleError {
        let device = device.to_owned();
        |source| ScaleError::Guest { device, source }
    }

    /// For `map_err`: the system's.
    pub(crate) fn system(what: &str) -> impl FnOnce(std::io::Error) -> ScaleError {
        let what = what.to_owned();
        |source| ScaleError::System { what, source }
    }
}

/// A daemon with one worker, and a line to it.
#[derive(Debug)]
pub(crate) struct Subject {
    pub(crate) daemon: Daemon,
    client: Client,
    worker_core: usize,
    cores: Vec<usize>,
}

/// What all workers of a daemon did together.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Busy {
    pub(crate) cycles: u64,
    pub(crate) bursts: u64,
}

impl Subject {
    /// Starts it. Before this thread is pinned: the daemon inherits where it may run.
    pub(crate) fn start(options: &Options, more: &[&str]) -> Result<Subject, ScaleError> {
        Subject::start_on(&[options.worker_core], more)
    }

    /// The same with workers on these cores; the first is the one that [`Subject::worker`] tells of.
    pub(crate) fn start_on(cores: &[usize], more: &[&str]) -> Result<Subject, ScaleError> {
        let list = cores.iter().map(usize::to_string).collect::<Vec<_>>().join(",");
        let arguments: Vec<&str> = ["--cores", &list].into_iter().chain(more.iter().copied()).collect();
        let daemon = Daemon::start(&arguments)?;
        let client = Client::connect(&daemon.ctl(), PATIENCE)?;
        let worker_core = cores.first().copied().unwrap_or(0);
        Ok(Subject { daemon, client, worker_core, cores: cores.to_vec() })
    }

    /// Adds a device that is served by a core of its own.
    pub(crate) fn add_on(&mut self, name: &str, mgmtdev: &str, core: usize) -> Result<PathBuf, ScaleError> {
        let (name_of, mgmtdev) = (name.to_owned(), mgmtdev.to_owned());
        let entry = DeviceEntry { name: name_of, mgmtdev, core: Some(core), ..DeviceEntry::default() };
        let _: Value = self.client.call("dev.add", &entry)?;
        Ok(self.daemon.socket(name))
    }

    /// What all its workers did.
    pub(crate) fn busy(&mut self) -> Result<Busy, ScaleError> {
        let show: CoreShow = self.client.call("core.show", &json!({}))?;
        let mut busy = Busy::default();
        for core in &self.cores {
            let info = show.core.find(&core.to_string()).ok_or(ScaleError::NoWorker(*core))?;
            busy.cycles += info.busy_cycles;
            busy.bursts += info.bursts;
        }
        Ok(busy)
    }

    /// Adds a device.
    pub(crate) fn add(&mut self, name: &str, mgmtdev: &str) -> Result<PathBuf, ScaleError> {
        self.add_with(name, mgmtdev, &[])
    }

    /// Adds a device with words of its own.
    pub(crate) fn add_with(
        &mut self,
        name: &str,
        mgmtdev: &str,
        words: &[(&str, String)],
    ) -> Result<PathBuf, ScaleError> {
        let attributes = words.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect();
        let entry = DeviceEntry {
            name: name.to_owned(),
            mgmtdev: mgmtdev.to_owned(),
            attributes,
            ..DeviceEntry::default()
        };
        let _: Value = self.client.call("dev.add", &entry)?;
        Ok(self.daemon.socket(name))
    }

    /// Adds a device and connects a guest to it.
    pub(crate) fn guest(
        &mut self,
        name: &str,
        mgmtdev: &str,
        options: GuestOptions,
    ) -> Result<Guest, ScaleError> {
        let socket = self.add(name, mgmtdev)?;
        Guest::connect(&socket, options).map_err(ScaleError::guest(name))
    }

    /// The worker's counters.
    pub(crate) fn worker(&mut self) -> Result<CoreInfo, ScaleError> {
        let show: CoreShow = self.client.call("core.show", &json!({}))?;
        let core = self.worker_core;
        show.core.find(&core.to_string()).cloned().ok_or(ScaleError::NoWorker(core))
    }
}

/// What a driven guest is like.
pub(crate) fn driven(options: &Options) -> GuestOptions {
    GuestOptions { format: options.format, sizes: Sizes::Fixed(options.frame_len), ..GuestOptions::default() }
}

/// Does the work on a thread pinned to a core, so that what is started later does not inherit the pin.
pub(crate) fn on_core<T: Send>(
    core: usize,
    work: impl FnOnce() -> Result<T, ScaleError> + Send,
) -> Result<T, ScaleError> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| if host::pin(core) { work() } else { Err(ScaleError::Core(core)) });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// How long the daemon may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
