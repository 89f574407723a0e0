//! The workers of an engine, as those see them who are none: what their pumps are placed on.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError, RwLock};

use crate::alarm::Alarm;
use crate::config::Clock;
use crate::desk::Desk;
use crate::error::PlaceError;
use crate::scheduled::Scheduled;
use crate::stats::WorkerStats;

/// See the module's head.
pub(crate) struct Workers {
    /// In the order in which they were started. Written only when a worker is started or ended; no worker reads it.
    desks: RwLock<Vec<Arc<Desk>>>,
    pub(crate) alarm: Arc<Alarm>,
    pub(crate) clock: Clock,
}

impl Workers {
    pub(crate) fn new(desks: Vec<Arc<Desk>>, alarm: Arc<Alarm>, clock: Clock) -> Workers {
        Workers { desks: RwLock::new(desks), alarm, clock }
    }

    /// Those that there are at this moment.
    pub(crate) fn desks(&self) -> Vec<Arc<Desk>> {
        self.desks.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(crate) fn desk_of(&self, core: usize) -> Result<Arc<Desk>, PlaceError> {
        let desks = self.desks.read().unwrap_or_else(PoisonError::into_inner);
        desks.iter().find(|desk| desk.core == core).cloned().ok_or(PlaceError::NoSuchCore(core))
    }

    pub(crate) fn add(&self, desk: Arc<Desk>) {
        self.desks.write().unwrap_or_else(PoisonError::into_inner).push(desk);
    }

    pub(crate) fn remove(&self, core: usize) {
        self.desks.write().unwrap_or_else(PoisonError::into_inner).retain(|desk| desk.core != core);
    }

    pub(crate) fn read(&self, desk: &Desk) -> WorkerStats {
        let window = crate::pace::Pace::of(self.clock).longest_turn_window;
        let snapshot = desk.account.read((self.clock.cycles)(), window);
        let tid = desk.tid.load(Ordering::Relaxed) as i32;
        let current = desk.account.current().and_then(|(slot, since)| Some((desk.seat(slot)?, since)));
        WorkerStats {
            core: desk.core,
            tid,
            idle: desk.idle(),
            busy_cycles: snapshot.busy.cycles(),
            idle_cycles: snapshot.idle_cycles,
            sleep_cycles: snapshot.sleep_cycles,
            turns: snapshot.turns,
            bursts: snapshot.bursts.count(),
            items: snapshot.items,
            burst_sizes: snapshot.bursts,
            busy_turns: snapshot.busy,
            wakeups: snapshot.wakeups,
            longest_turn_cycles: snapshot.longest_turn,
            panics: snapshot.panics,
            gives_way: desk.gives_way(),
            rests: snapshot.rests,
            rest_cycles: snapshot.rest_cycles,
            scheduled: Scheduled::of(tid),
            current_pump: current.as_ref().map(|(seat, _)| seat.name.clone()),
            stuck_since: current.map(|(_, since)| since),
            pumps: desk.seats().iter().map(|seat| seat.account.read(&seat.name)).collect(),
        }
    }
}
