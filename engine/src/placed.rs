//! A pump on a worker, as whoever placed it holds it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::berth::{LET_GO, RETIRE};
use crate::desk::Desk;
use crate::error::PlaceError;
use crate::pump::Pump;
use crate::stats::PumpStats;
use crate::tenant::{Ending, Seat, Tenant};
use crate::workers::Workers;

/// How a pump ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HowEnded {
    /// It was retired.
    Retired,
    /// It panicked with this message (shortened) and was taken out.
    Panicked(String),
}

/// A pump given back by its worker, which touches neither it nor its memory any more.
pub struct Retired {
    /// The pump.
    pub pump: Box<dyn Pump>,
    /// How it ended.
    pub end: HowEnded,
    /// It was given back before it had stopped ([`Pump::stopped`]): DMA or other work may still be out, and whoever
    /// has the pump must end that before the memory goes.
    pub in_flight: bool,
}

/// A pump on a worker. Dropping it begins the retirement without waiting; the pump itself is then dropped on a thread
/// that is not a worker.
pub struct Placed {
    pub(crate) workers: Arc<Workers>,
    pub(crate) desk: Arc<Desk>,
    /// None once the pump was given back.
    pub(crate) slot: Option<u32>,
    pub(crate) seat: Arc<Seat>,
}

impl Placed {
    /// Takes the pump back: once this returns Ok, the worker touches neither it nor its memory any more. The handle
    /// stays usable after a timeout.
    ///
    /// # Errors
    /// [`PlaceError::Timeout`]: the worker has not reached its quiescent point, or the pump has work in flight;
    /// [`PlaceError::Gone`]: it was given back before.
    pub fn retire(&mut self, within: Duration) -> Result<Retired, PlaceError> {
        self.take_back(RETIRE, within)
    }

    /// Takes the pump back even though it has work in flight, at the worker's next quiescent point:
    /// [`Retired::in_flight`] then tells that the work must be ended by other means (a reset of the function).
    ///
    /// # Errors
    /// As [`Placed::retire`].
    pub fn revoke(&mut self, within: Duration) -> Result<Retired, PlaceError> {
        self.take_back(RETIRE | LET_GO, within)
    }

    /// Moves the pump to another core: retired there, placed here, under traffic. Its statistics go with it.
    ///
    /// # Errors
    /// The pump stays where it is; after a [`PlaceError::Timeout`] it may have stopped, and goes on once it is moved.
    pub fn move_to(&mut self, core: usize, within: Duration) -> Result<(), PlaceError> {
        let new = self.workers.desk_of(core)?;
        let slot = self.slot.ok_or(PlaceError::Gone)?;
        if self.seat.has_ended() {
            return Err(PlaceError::Ended);
        }
        if Arc::ptr_eq(&new, &self.desk) {
            return Ok(());
        }
        // All that can fail on the other core comes before the pump leaves this one.
        let new_slot = new.reserve(&self.seat)?;
        let old = &self.desk;
        let mut tenant = match old.recall(slot, RETIRE, within) {
            Ok(tenant) => tenant,
            Err(error) => {
                new.release(new_slot, &self.seat);
                return Err(error);
            }
        };
        // What it has under way may be bound to the thread that it was on.
        if !matches!(tenant.ending, Ending::Stopped) {
            new.release(new_slot, &self.seat);
            old.keep(slot, tenant);
            return Err(PlaceError::Ended);
        }
        tenant.renew();
        if let Err(tenant) = new.deliver(new_slot, tenant) {
            old.keep(slot, tenant);
            return Err(PlaceError::Full(core));
        }
        old.release(slot, &self.seat);
        (self.desk, self.slot) = (new, Some(new_slot));
        Ok(())
    }

    /// Has the pump polled, should it sleep: its owner left it something to do. What was written before is seen by that
    /// poll.
    pub fn wake(&self) {
        if let Some(slot) = self.slot {
            self.desk.wake(slot);
        }
    }

    /// The core it is on.
    pub fn core(&self) -> usize {
        self.desk.core
    }

    /// True once the pump was taken out because it panicked.
    pub fn has_ended(&self) -> bool {
        self.seat.has_ended()
    }

    /// What it cost and did.
    pub fn stats(&self) -> PumpStats {
        self.seat.account.read(&self.seat.name)
    }

    fn take_back(&mut self, order: u32, within: Duration) -> Result<Retired, PlaceError> {
        let slot = self.slot.ok_or(PlaceError::Gone)?;
        let tenant = self.desk.recall(slot, order, within)?;
        self.desk.release(slot, &self.seat);
        self.slot = None;
        self.seat.close_sources();
        let Tenant { pump, ending, .. } = *tenant;
        let (end, in_flight) = match ending {
            Ending::Stopped => (HowEnded::Retired, false),
            Ending::InFlight => (HowEnded::Retired, true),
            Ending::Panicked(caught) => (HowEnded::Panicked(caught.message()), true),
        };
        Ok(Retired { pump, end, in_flight })
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.desk.abandon(slot);
        }
    }
}

impl fmt::Debug for Placed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Placed")
            .field("name", &self.seat.name)
            .field("core", &self.core())
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Retired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Retired")
            .field("end", &self.end)
            .field("in_flight", &self.in_flight)
            .finish_non_exhaustive()
    }
}
