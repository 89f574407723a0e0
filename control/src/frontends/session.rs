//! One front-end's connection to one device, on a thread of its own.
//!
//! The session owns its socket, the device's operations and the negotiation; it maps the guest's memory and has the
//! device's pumps made, placed and retired. It touches no other device and holds no lock that others need. What
//! happens to it is told to the control thread by [`Report`]s; what control wants of it comes as [`Command`]s.
//!
//! ```text
//!   control --Command--> [inbox, eventfd] --+
//!   front-end ----------> [socket] ---------+--> session thread: poll, obey one message, answer
//!   worker, pump -------> [same eventfd] ---+        |                     |
//!                                                    +--Report--> control  +--pumps--> engine
//! ```
//!
//! The thread waits in one place, for all of these at once, and never for the peer alone: a front-end that is stopped
//! in the middle of a message, or never reads an answer, delays neither a command nor its own removal.

mod messages;
mod netdev;
mod plane;
mod run;

pub use self::messages::MessageLog;
pub use super::report::{DeviceConfig, Lack, Report, Reporter, RingReport};

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use crossbeam::queue::SegQueue;
use ringway_engine::Engine;
use ringway_pmd::counters::QueueCounters;
use ringway_pmd::notify::EventFd;
use ringway_pmd::vdpa::VdpaDevice;
use ringway_ring::inflight::OwnRecords;
use ringway_ring::position::PositionPage;
use tracing::Level;

use crate::frontends::budget::Lease;

/// What control and session both see of a device; but for what is logged, without a lock.
#[derive(Debug)]
pub struct DeviceShared {
    /// The device's name.
    pub name: String,
    /// Counters by queue; they live as long as the device.
    pub counters: Vec<Arc<QueueCounters>>,
    /// Where each queue stands.
    pub positions: Arc<PositionPage>,
    /// What its queues have in flight, for front-ends that have no place for it. None: its class needs none.
    pub records: Option<OwnRecords>,
    /// What a device without front-end holds of the process, until its last session has ended.
    pub lease: Option<Lease>,
    /// The core of each group of queues, decided by control. Read when a pump is placed.
    pub cores: Vec<AtomicUsize>,
    /// What is logged of its messages.
    pub log: MessageLog,
}

impl DeviceShared {
    /// The level of its own log; None: everybody's.
    pub fn log_level(&self) -> Option<Level> {
        self.log.level()
    }

    /// Gives it a level of its own.
    pub fn set_log_level(&self, level: Option<Level>) {
        self.log.set_level(level);
    }

    /// The core that control decided on for a group.
    pub fn core_of(&self, group: u16) -> Option<usize> {
        self.cores.get(usize::from(group)).map(|core| core.load(Ordering::Relaxed))
    }
}

/// What a session needs to run.
pub struct SessionSetup {
    /// Identifies the session in reports; never reused within a process.
    pub id: u64,
    /// The device, handed over for as long as the session lasts.
    pub device: Box<dyn VdpaDevice>,
    /// What is shared with control.
    pub shared: Arc<DeviceShared>,
    /// The connected socket.
    pub stream: UnixStream,
    /// Where pumps run.
    pub engine: Engine,
    /// What it may take of the process.
    pub lease: Lease,
    /// Where reports go; must not block.
    pub reports: Reporter,
}

impl fmt::Debug for SessionSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SessionSetup")
            .field("id", &self.id)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

/// What the session of a device without front-end needs: see [`SessionSetup`].
pub struct NetdevSetup {
    /// Identifies the session in reports.
    pub id: u64,
    /// The device, which has a [`ringway_pmd::vdpa::HostEnd`].
    pub device: Box<dyn VdpaDevice>,
    /// What is shared with control.
    pub shared: Arc<DeviceShared>,
    /// Where pumps run.
    pub engine: Engine,
    /// Where reports go; must not block.
    pub reports: Reporter,
}

impl fmt::Debug for NetdevSetup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NetdevSetup")
            .field("id", &self.id)
            .field("shared", &self.shared)
            .finish_non_exhaustive()
    }
}

/// What control asks of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// The device is gone: retire the pumps, close the socket, unmap, end. The device is dropped by the session.
    Revoke,
    /// The process stops: as `Revoke`, but the device is given back.
    Close,
    /// Have the queues served by the cores that `DeviceShared::cores` now says.
    Move,
    /// Attributes of the device are otherwise from now on.
    Set(BTreeMap<String, String>),
    /// The configuration space changed: tell the front-end (CONFIG_CHANGE_MSG), if it can be told.
    ConfigChanged,
    /// The device does not work until it is reset: tell the front-end (DEVICE_NEEDS_RESET).
    NeedsReset,
}

/// Control's hold on a session. Dropping it does not end the session.
#[derive(Debug)]
pub struct SessionHandle {
    /// As in the set-up.
    pub id: u64,
    /// The peer's process, as the kernel reports it.
    pub peer: Peer,
    inbox: Arc<Inbox>,
}

/// Who is connected, by SO_PEERCRED.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Process.
    pub pid: i32,
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

impl SessionHandle {
    /// Asks the session to do something; never waits. False if it is over.
    pub fn send(&self, command: Command) -> bool {
        self.inbox.send(command)
    }
}

/// Starts a session on a thread of its own.
///
/// # Errors
/// Those of the system: no thread, no descriptor, no credentials of the peer. The device is dropped then.
pub fn spawn(setup: SessionSetup) -> std::io::Result<SessionHandle> {
    let peer = peer_of(&setup.stream)?;
    let id = setup.id;
    let inbox = Arc::new(Inbox::new()?);
    let name = format!("rw-{}", setup.shared.name);
    let theirs = Arc::clone(&inbox);
    let thread = std::thread::Builder::new().name(name).stack_size(STACK_BYTES);
    thread.spawn(move || run::run(setup, &theirs)).map_err(no_thread)?;
    Ok(SessionHandle { id, peer, inbox })
}

/// Starts the session of a device without front-end.
///
/// # Errors
/// Those of the system: no thread, no descriptor. The device is dropped then.
pub fn spawn_netdev(setup: NetdevSetup) -> std::io::Result<SessionHandle> {
    let (id, inbox) = (setup.id, Arc::new(Inbox::new()?));
    let name = format!("rw-{}", setup.shared.name);
    let theirs = Arc::clone(&inbox);
    std::thread::Builder::new()
        .name(name)
        .stack_size(STACK_BYTES)
        .spawn(move || netdev::run(setup, &theirs))
        .map_err(no_thread)?;
    let own = Peer {
        pid: rustix::process::getpid().as_raw_nonzero().get(),
        uid: rustix::process::getuid().as_raw(),
        gid: rustix::process::getgid().as_raw(),
    };
    Ok(SessionHandle { id, peer: own, inbox })
}

/// Says what a thread takes: the system's own word is that something is temporarily unavailable.
fn no_thread(error: std::io::Error) -> std::io::Error {
    let cure = "raise TasksMax= of ringwayd's unit (ulimit -u, pids.max), or see who holds its memory";
    std::io::Error::new(
        error.kind(),
        format!("no thread can be had: {}; {cure}", crate::fault::reason(&error)),
    )
}

/// The peer's process, as the kernel knows it.
fn peer_of(stream: &UnixStream) -> std::io::Result<Peer> {
    let credentials = rustix::net::sockopt::socket_peercred(stream)?;
    Ok(Peer {
        pid: credentials.pid.as_raw_nonzero().get(),
        uid: credentials.uid.as_raw(),
        gid: credentials.gid.as_raw(),
    })
}

/// Commands on their way to a session, and what wakes it.
#[derive(Debug)]
struct Inbox {
    /// Also signalled by workers and pumps that want attention.
    wake: Arc<EventFd>,
    commands: SegQueue<Command>,
    /// Set with `Revoke` or `Close`, for the session to see in the midst of long work.
    leave: AtomicBool,
    /// The session takes no more commands.
    over: AtomicBool,
}

impl Inbox {
    fn new() -> std::io::Result<Inbox> {
        Ok(Inbox {
            wake: Arc::new(EventFd::new()?),
            commands: SegQueue::new(),
            leave: AtomicBool::new(false),
            over: AtomicBool::new(false),
        })
    }

    fn send(&self, command: Command) -> bool {
        // Relaxed, here and below: flags that publish nothing else; the queue orders the commands.
        if self.over.load(Ordering::Relaxed) {
            return false;
        }
        if matches!(command, Command::Revoke | Command::Close) {
            self.leave.store(true, Ordering::Relaxed);
        }
        self.commands.push(command);
        self.wake.signal();
        true
    }
}

/// The stack of a session's thread. Address space, not memory: an idle session has touched two or three pages of it. Its
/// deepest calls map a region and make a pump, which in builds without optimisation pass large values on it; an
/// overflow would end the process, so there is room to spare.
const STACK_BYTES: usize = 512 * 1024;
