//! The workers of an engine, as those see them who are none: what their pumps are placed on.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use crate::alarm::Alarm;
use crate::config::Clock;
use crate::desk::Desk;
use crate::error::PlaceError;
use crate::stats::WorkerStats;
use crate::tenant::{Seat, Tenant};

/// See the module's head.
pub(crate) struct Workers {
    pub(crate) desks: Vec<Arc<Desk>>,
    pub(crate) cores: Vec<usize>,
    pub(crate) alarm: Arc<Alarm>,
    pub(crate) clock: Clock,
}

impl Workers {
    pub(crate) fn index_of(&self, core: usize) -> Result<usize, PlaceError> {
        self.cores.iter().position(|&known| known == core).ok_or(PlaceError::NoSuchCore(core))
    }

    /// Reserves a slot and has the worker's epoll watch the wake sources.
    pub(crate) fn reserve(&self, index: usize, seat: &Seat) -> Result<u32, PlaceError> {
        let desk = &self.desks[index];
        let slot = desk.admit()?;
        if let Err(error) = seat.watch(&desk.epoll, slot) {
            desk.release(slot, seat);
            return Err(error);
        }
        Ok(slot)
    }

    /// Hands a tenant to a worker. It comes back from one that is stopping.
    pub(crate) fn deliver(&self, index: usize, slot: u32, tenant: Box<Tenant>) -> Result<(), Box<Tenant>> {
        let seat = Arc::clone(&tenant.seat);
        let desk = &self.desks[index];
        desk.deliver(slot, tenant).inspect_err(|_| desk.release(slot, &seat))
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
            preemptions: preemptions(tid),
            current_pump: current.as_ref().map(|(seat, _)| seat.name.clone()),
            stuck_since: current.map(|(_, since)| since),
            pumps: desk.seats().iter().map(|seat| seat.account.read(&seat.name)).collect(),
        }
    }
}

/// How often the kernel took the core away from a thread of this process.
fn preemptions(tid: i32) -> u64 {
    let Ok(status) = std::fs::read_to_string(format!("/proc/self/task/{tid}/status")) else { return 0 };
    status
        .lines()
        .find_map(|line| line.strip_prefix("nonvoluntary_ctxt_switches:"))
        .and_then(|count| count.trim().parse().ok())
        .unwrap_or(0)
}
