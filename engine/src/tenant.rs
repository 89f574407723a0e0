//! A placed pump in its two halves: the [`Tenant`], which belongs to the worker while it polls, and the [`Seat`],
//! which its holder and the statistics share.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::account::PumpAccount;
use crate::contain::Caught;
use crate::error::PlaceError;
use crate::pump::{MAX_WAKE_SOURCES, Pump, Watcher};

/// What a worker has of a pump. Allocated by the placer, dropped by whoever took it back; on the worker only moved.
pub(crate) struct Tenant {
    pub(crate) pump: Box<dyn Pump>,
    pub(crate) watcher: Arc<dyn Watcher>,
    pub(crate) seat: Arc<Seat>,
    /// Whether its epoll can wake it at all.
    pub(crate) has_sources: bool,
    pub(crate) state: State,
    /// Since when it has moved nothing, in cycles.
    pub(crate) idle_since: u64,
    /// The length of its last nap in cycles; 0 unless it naps.
    pub(crate) nap: u64,
    /// It was asked to stop and has work in flight.
    pub(crate) stopping: bool,
    /// Set when it is given back.
    pub(crate) ending: Ending,
}

/// Where a tenant is on its worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum State {
    /// On its way to the worker or from it.
    Outside,
    /// In the active list, at this place.
    Active(u32),
    /// Armed.
    Asleep,
}

/// How a tenant came back.
#[derive(Debug)]
pub(crate) enum Ending {
    /// Not yet, or it had stopped.
    Stopped,
    /// The worker let go while it had work in flight.
    InFlight,
    /// It panicked.
    Panicked(Caught),
}

/// What the holder of a placed pump and the statistics know of it. The worker only writes its counters.
pub(crate) struct Seat {
    pub(crate) name: String,
    pub(crate) account: PumpAccount,
    /// Set by the worker when the pump panicked.
    ended: AtomicBool,
    /// Duplicates of the pump's wake sources, so that what was added to an epoll can be removed from it whatever
    /// became of the pump. Never touched by a worker.
    sources: Mutex<Vec<OwnedFd>>,
}

impl Tenant {
    pub(crate) fn new(pump: Box<dyn Pump>, watcher: Arc<dyn Watcher>, seat: Arc<Seat>) -> Box<Tenant> {
        let has_sources = seat.with_sources(|sources| !sources.is_empty());
        Box::new(Tenant {
            pump,
            watcher,
            seat,
            has_sources,
            state: State::Outside,
            idle_since: 0,
            nap: 0,
            stopping: false,
            ending: Ending::Stopped,
        })
    }

    /// As it was before its first placement, for the next one.
    pub(crate) fn renew(&mut self) {
        self.state = State::Outside;
        self.nap = 0;
        self.stopping = false;
        self.ending = Ending::Stopped;
    }
}

impl Seat {
    /// Takes note of a pump before it is placed.
    pub(crate) fn new(name: &str, pump: &dyn Pump) -> Result<Arc<Seat>, PlaceError> {
        let sources = pump.wake_sources();
        if sources.len() > MAX_WAKE_SOURCES {
            return Err(PlaceError::TooManySources(sources.len()));
        }
        let sources = sources
            .iter()
            .map(|source| rustix::io::fcntl_dupfd_cloexec(source, 0))
            .collect::<Result<Vec<OwnedFd>, _>>()
            .map_err(|error| PlaceError::WakeSource(error.into()))?;
        Ok(Arc::new(Seat {
            name: name.to_owned(),
            account: PumpAccount::default(),
            ended: AtomicBool::new(false),
            sources: Mutex::new(sources),
        }))
    }

    /// Adds the wake sources to a worker's epoll, all or none, under the token `slot`.
    pub(crate) fn watch(&self, epoll: &OwnedFd, slot: u32) -> Result<(), PlaceError> {
        use rustix::event::epoll::{EventData, EventFlags, add, delete};
        self.with_sources(|sources| {
            for (index, source) in sources.iter().enumerate() {
                let added = add(
                    epoll,
                    source.as_fd(),
                    EventData::new_u64(u64::from(slot)),
                    EventFlags::IN | EventFlags::ET,
                );
                if let Err(error) = added {
                    for source in &sources[..index] {
                        let _ = delete(epoll, source.as_fd());
                    }
                    return Err(PlaceError::WakeSource(error.into()));
                }
            }
            Ok(())
        })
    }

    /// Removes the wake sources from a worker's epoll. Not on the worker.
    pub(crate) fn unwatch(&self, epoll: &OwnedFd) {
        self.with_sources(|sources| {
            for source in sources {
                // It fails only for what was not added.
                let _ = rustix::event::epoll::delete(epoll, source.as_fd());
            }
        });
    }

    /// Closes the duplicates: the pump was given back for good.
    pub(crate) fn close_sources(&self) {
        let sources = std::mem::take(&mut *self.sources.lock().unwrap_or_else(PoisonError::into_inner));
        drop(sources);
    }

    pub(crate) fn set_ended(&self) {
        // Release: pairs with the Acquire in `has_ended`.
        self.ended.store(true, Ordering::Release);
    }

    pub(crate) fn has_ended(&self) -> bool {
        // Acquire: pairs with the Release in `set_ended`.
        self.ended.load(Ordering::Acquire)
    }

    fn with_sources<R>(&self, with: impl FnOnce(&[OwnedFd]) -> R) -> R {
        with(&self.sources.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
