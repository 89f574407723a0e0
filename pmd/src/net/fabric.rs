//! What joins network devices: the running queues of several ports, and the pumps that carry frames between them.
//!
//! ```text
//!   link:     port A  RX 0 <--[pump]-- TX 0, TX 1 ..  port B      one pump for each receive queue; sender's pair i
//!             port A  TX 0 --[pump]--> RX 0           port B      feeds receiver's queue i mod n
//!   bridge:   every queue of every port in one [pump], or of every port on a core in one for each core
//! ```
//!
//! What pumps there are is its kind's to decide, which is a trait with an implementation a file: another way to join ports
//! is one more. Everything else is the same for all: ports come and go, pumps are placed and taken back.
//!
//! A pump holds rings of several devices, so that a change at one of them takes the pump back, takes it apart, and makes
//! a new one of what runs then. Each device's session does this for its own queues, under one lock for the fabric. The
//! lock is held while a worker lets go of a pump and never while a peer is waited for, nor while a session waits for a
//! worker that is known to hold its port; who shares a fabric shares its pumps anyway. Control never waits for it: what it
//! decides, it leaves in atomics, and what a port that it drops has left is taken out by a thread that may wait
//! ([`crate::later`]).
//!
//! A change that fails costs whoever asked for it alone: a pump that no worker takes comes back, is taken apart, and what
//! ran before is placed again; if that fails as well, it is tried again for a second before its sessions are told. A pump
//! that its worker was told to give back and has not given back in time is polled by nobody from the moment the worker
//! turns again: it is unsettled, and left to the same thread, which takes it back then and has what still runs served,
//! whether or not anybody asks for another change.

// Any number of ports, joined by a learning bridge.
mod bridge;
// Running queues, and where each is.
mod ends;
// What a kind of fabric decides.
mod kind;
// Two ports, each the other's wire.
mod link;
// Pumps placed on workers, and taken back.
mod placing;
// A device's place.
mod port;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::{Duration, Instant};

use crate::net::announce::News;
use crate::vdpa::DriverError;

use bridge::Bridge;
pub use bridge::{BridgeSettings, STATIONS, STATIONS_PER_PORT};
pub use ends::Side;
use ends::{Ends, PumpKey};
use kind::Kind;
use link::Link;
use placing::Running;
pub use port::Port;

/// See the module's head.
pub struct Fabric {
    name: String,
    /// One of the ports may have something to announce.
    news: Arc<News>,
    /// How many of its ports were given VLANs.
    in_vlans: Arc<AtomicUsize>,
    slots: Mutex<BTreeSet<u16>>,
    next_port: AtomicU64,
    state: Mutex<State>,
}

struct State {
    kind: Box<dyn Kind>,
    ends: Ends,
    pumps: BTreeMap<PumpKey, Running>,
    /// Until when what no worker takes is tried again, if something is.
    give_up_at: Option<Instant>,
    /// What is unsettled was left to [`crate::later`].
    is_settling: bool,
    /// How many pumps were made together the last time that some were.
    together: usize,
}

impl Fabric {
    /// A link without ends.
    pub fn link(name: &str) -> Arc<Fabric> {
        Fabric::new(name, Box::new(Link))
    }

    /// A bridge without ports, whose pump is on `core` and whose database keeps a station for `ageing` after it was last
    /// heard of; and what control may set of it. `seed`: random bits that no guest can know.
    pub fn bridge(
        name: &str,
        core: usize,
        ageing: Duration,
        seed: [u64; 2],
    ) -> (Arc<Fabric>, Arc<BridgeSettings>) {
        let bridge = Bridge::new(core, ageing, seed);
        let settings = bridge.settings();
        (Fabric::new(name, Box::new(bridge)), settings)
    }

    fn new(name: &str, kind: Box<dyn Kind>) -> Arc<Fabric> {
        let ends = Ends::default();
        Arc::new(Fabric {
            name: name.to_owned(),
            news: Arc::clone(&ends.news),
            in_vlans: Arc::clone(&ends.in_vlans),
            slots: Mutex::default(),
            next_port: AtomicU64::new(1),
            state: Mutex::new(State {
                kind,
                ends,
                pumps: BTreeMap::new(),
                give_up_at: None,
                is_settling: false,
                together: 0,
            }),
        })
    }

    /// A place on it. `flood_pps`: frames a second to groups and unknown addresses, for a port of a bridge.
    ///
    /// # Errors
    /// Every place is taken, also by devices that were removed and have not ended.
    pub fn port(self: &Arc<Fabric>, flood_pps: Option<u64>) -> Result<Port, DriverError> {
        let slot = {
            let mut slots = lock(&self.slots);
            let Some(slot) = (0..MOST_PORTS).find(|slot| !slots.contains(slot)) else {
                let why = format!(
                    "all {MOST_PORTS} are taken, some by devices that were removed and whose sessions have not ended: \
                     try again, or another one"
                );
                let what = format!("no place on {}", self.name);
                return Err(DriverError::Resource { what, source: std::io::Error::other(why) });
            };
            slots.insert(slot);
            slot
        };
        Ok(Port::new(self, slot, flood_pps))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// The state, unless somebody changes it, who may wait for a worker: no work that was left to the same thread waits with
    /// it.
    fn try_lock(&self) -> Option<MutexGuard<'_, State>> {
        match self.state.try_lock() {
            Ok(state) => Some(state),
            Err(TryLockError::Poisoned(poisoned)) => Some(poisoned.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }
}

impl fmt::Debug for Fabric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Fabric").field("name", &self.name).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ports of a fabric at most.
pub const MOST_PORTS: u16 = 1024;
