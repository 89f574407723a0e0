//! One side of a comparison: a namespace that stands for the host, a TAP in it, and who moves frames between that and the wire.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use ringway_control::operator::api::CoreShow;
use ringway_control::operator::client::Client;
use ringway_pmd::net::tap::{TapNetdev, TapSpec};
use rustix::process::Signal;

use super::namespace::Namespace;
use super::port::Port;
use super::wire::{Moved, Wire};
use super::{Peer, Setup};
use crate::backend::{self, Identity};
use crate::daemon::Daemon;
use crate::error::BenchError;
use crate::host;

/// Whose side it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Who {
    /// Ringway's.
    Ours,
    /// A peer's.
    Peer(Peer),
}

/// See the head of this file.
pub(crate) struct Bed {
    /// The host.
    pub(crate) host: Namespace,
    /// What it is.
    pub(crate) identity: Identity,
    /// Where the wire's near end is to run: beside the guest, or in the back-end's place.
    pub(crate) wire_core: usize,
    /// What is counted of it.
    pub(crate) counter: Counter,
    mover: Mover,
}

enum Mover {
    Ringway(Daemon),
    /// Whoever has the wire.
    Plain,
    /// A thread of the kernel.
    VhostNet,
}

/// Tells what has been counted.
pub(crate) struct Counter {
    moved: Arc<Moved>,
    /// A line to `ringwayd`, and the core of its worker, where that tells the cycles.
    worker: Option<(Client, usize)>,
}

/// What has been counted at a time.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Seen {
    /// Frames over the wire, both ways.
    pub(crate) frames: u64,
    /// Busy cycles; None where nobody tells.
    pub(crate) cycles: Option<u64>,
}

impl Bed {
    /// Makes it; `offloads` are negotiated, and set of the TAP.
    ///
    /// # Errors
    /// What is needed is not here, or not allowed.
    pub(crate) fn new(who: Who, setup: &Setup, offloads: bool) -> Result<(Bed, Wire), BenchError> {
        let host = Namespace::new()?;
        let Setup { ring, mtu, backend_core, wrong, .. } = setup;
        let tap = || host.within(|| open_tap(HOST_TAP, *mtu, offloads));
        let (mover, identity, wire, worker) = match who {
            Who::Ours => {
                let cores = backend_core.to_string();
                let flags = ["--cores", &cores, "--idle", setup.idle];
                let daemon = Daemon::start(&flags)?;
                let (mgmtdev, netns, mtu) = (format!("tap/{HOST_TAP}"), host.path(), mtu.to_string());
                daemon.ringway(&[
                    "dev", "add", "name", DEVICE, "mgmtdev", &mgmtdev, "netns", &netns, "mtu", &mtu,
                ])?;
                let client = Client::connect(&daemon.ctl(), PATIENCE).map_err(unanswered)?;
                let port = Port::over_vhost_user(&daemon.socket(DEVICE), *ring, offloads)?;
                let version = format!("{} ({})", env!("CARGO_PKG_VERSION"), env!("RINGWAY_REVISION"));
                let identity = identity("ringway", version, &flags);
                let worker = Some((client, *backend_core));
                (Mover::Ringway(daemon), identity, Wire::ring(port, *wrong), worker)
            }
            Who::Peer(Peer::Plain) => {
                let version = "read and write, a frame each".to_owned();
                (Mover::Plain, identity("plain", version, &[]), Wire::plain(tap()?, *wrong), None)
            }
            Who::Peer(Peer::VhostNet) => {
                let tap = tap()?;
                // Its thread runs where that runs which makes it.
                let make = || {
                    host::pin(*backend_core);
                    Port::over_vhost_net(tap)
                };
                let port = host.within(make)?;
                let kernel = host::Host::read().kernel;
                let identity = identity("vhost-net", format!("of Linux {kernel}"), &[]);
                (Mover::VhostNet, identity, Wire::ring(port, *wrong), None)
            }
        };
        let wire_core = match mover {
            Mover::Plain => *backend_core,
            Mover::Ringway(_) | Mover::VhostNet => setup.guest_core(),
        };
        host.ip(&format!("addr add {HOST_ADDRESS}/24 dev {HOST_TAP}"))?;
        let counter = Counter { moved: wire.moved(), worker };
        Ok((Bed { host, identity, wire_core, counter, mover }, wire))
    }

    /// Whether whoever has the wire stands in the back-end's place.
    pub(crate) fn is_plain(&self) -> bool {
        matches!(self.mover, Mover::Plain)
    }

    /// Stops it where it is: a worker that polls has its core to itself no longer.
    pub(crate) fn pause(&self) -> Result<(), BenchError> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    pub(crate) fn proceed(&self) -> Result<(), BenchError> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<(), BenchError> {
        match &self.mover {
            Mover::Ringway(daemon) => backend::send(daemon.pid(), "ringwayd", signal),
            Mover::Plain | Mover::VhostNet => Ok(()),
        }
    }
}

impl Counter {
    /// What has been counted so far. Whoever moves frames must be running.
    ///
    /// # Errors
    /// `ringwayd` does not answer.
    pub(crate) fn seen(&mut self) -> Result<Seen, BenchError> {
        let frames = self.moved.frames();
        let Some((client, core)) = &mut self.worker else {
            return Ok(Seen { frames, cycles: self.moved.cycles() });
        };
        let show: CoreShow = client.call("core.show", &serde_json::json!({})).map_err(unanswered)?;
        let cycles = show.core.find(&core.to_string()).map(|worker| worker.busy_cycles);
        Ok(Seen { frames, cycles })
    }
}

/// Makes a TAP in this thread's namespace, up; returns its queue.
pub(crate) fn open_tap(name: &str, mtu: u16, offloads: bool) -> Result<OwnedFd, BenchError> {
    let spec = TapSpec { name: name.to_owned(), netns: None, queues: 1, mtu, seed: None };
    let failed = |why: String| BenchError::Peer { peer: format!("TAP {name}"), what: why };
    let netdev = TapNetdev::open(&spec, true).map_err(|why| failed(why.to_string()))?;
    let queues = netdev.into_descriptors(offloads).map_err(|why| failed(why.to_string()))?;
    queues.into_iter().next().ok_or_else(|| failed("it has no queue".to_owned()))
}

fn identity(name: &str, version: String, flags: &[&str]) -> Identity {
    let flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
    Identity { name: name.to_owned(), version, flags }
}

fn unanswered(why: impl std::fmt::Display) -> BenchError {
    BenchError::Peer { peer: "ringwayd".to_owned(), what: why.to_string() }
}

/// The TAP of the host.
pub(crate) const HOST_TAP: &str = "rwtap0";

/// The host's address.
pub(crate) const HOST_ADDRESS: &str = "10.77.0.1";

/// The guest's.
pub(crate) const GUEST_ADDRESS: &str = "10.77.0.2";

/// The device before it.
const DEVICE: &str = "guest";

/// How long the daemon may take for an answer.
const PATIENCE: Duration = Duration::from_secs(10);
