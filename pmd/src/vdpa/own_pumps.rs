//! A pump a group: the common way to serve queues. A driver makes the pump, this places it, moves it and takes it back.

use std::time::Duration;

use ringway_engine::{HowEnded, PlaceError, Placed, Pump};

use super::{DriverError, Ended, Kept, Placer, QueueBinding, Queues, ServeError, ServedBy, Stopped, Stuck};

/// Makes pumps: what a driver brings.
pub trait MakePump {
    /// The pump of a group, for those of its queues that are started. Called anew, after the old one was taken back,
    /// whenever one of them starts, stops or changes.
    ///
    /// # Errors
    /// The queues cannot be served so.
    fn pump(&mut self, group: u16, queues: Vec<QueueBinding>) -> Result<Box<dyn Pump>, DriverError>;
    /// The cores that workers poll on, told before a pump is made.
    fn polled(&mut self, cores: &[usize]) {
        let _ = cores;
    }
}

/// See the module's head.
pub struct OwnPumps<M> {
    /// By group. Before what they are made of, so that they go first.
    running: Vec<Option<Running>>,
    /// What the pumps are made from.
    pub maker: M,
    kept: Kept,
}

struct Running {
    placed: Placed,
    placer: Placer,
}

impl<M: std::fmt::Debug> std::fmt::Debug for OwnPumps<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnPumps").field("maker", &self.maker).finish_non_exhaustive()
    }
}

impl<M: MakePump> OwnPumps<M> {
    /// No queue is in service.
    pub fn new(maker: M) -> OwnPumps<M> {
        OwnPumps { maker, running: Vec::new(), kept: Kept::default() }
    }

    /// Takes the pump of a group back, if there is one; what it panicked with, if it did.
    fn take_back(&mut self, group: u16, within: Duration) -> Result<Option<String>, Stuck> {
        let Some(slot) = self.running.get_mut(usize::from(group)) else { return Ok(None) };
        let Some(running) = slot else { return Ok(None) };
        let end = match running.placed.retire(within) {
            Ok(retired) => retired.end,
            Err(error @ PlaceError::Timeout { .. }) => return Err(Stuck::Worker(error.to_string())),
            // The pump is gone with its engine.
            Err(_) => HowEnded::Retired,
        };
        *slot = None;
        match end {
            HowEnded::Panicked(message) => Ok(Some(message)),
            HowEnded::Retired => Ok(None),
        }
    }
}

impl<M: MakePump> Queues for OwnPumps<M> {
    fn start(
        &mut self,
        group: u16,
        queues: Vec<QueueBinding>,
        placer: &Placer,
        within: Duration,
    ) -> Result<(), ServeError> {
        // One that was not given back in time may still work on the rings: two on one ring would destroy it.
        self.take_back(group, within).map_err(|_| {
            ServeError::Refused(
                "what served this queue before has not ended yet: it has requests under way".into(),
            )
        })?;
        self.kept.note(group, &queues);
        self.maker.polled(placer.engine.cores());
        let pump = self.maker.pump(group, queues).map_err(|error| ServeError::Refused(error.to_string()))?;
        let name = format!("{}.{group}", placer.name);
        let placed = placer.engine.place((placer.core_of)(group), &name, pump, placer.watcher.clone());
        let placed = placed.map_err(|error| ServeError::NotPlaced(error.to_string()))?;
        let at = usize::from(group);
        if self.running.len() <= at {
            self.running.resize_with(at + 1, || None);
        }
        self.running[at] = Some(Running { placed, placer: placer.clone() });
        Ok(())
    }

    fn stop(&mut self, group: u16, within: Duration) -> Result<Stopped, Stuck> {
        let panicked = self.take_back(group, within)?;
        Ok(Stopped { positions: self.kept.take(group), ended: panicked.map(Ended::Panicked) })
    }

    fn served_by(&self, group: u16) -> Option<ServedBy> {
        let running = self.running.get(usize::from(group))?.as_ref()?;
        Some(ServedBy::Core(Some(running.placed.core())))
    }

    fn follow(&mut self, within: Duration) -> Result<(), ServeError> {
        let mut outcome = Ok(());
        for (group, running) in (0u16..).zip(&mut self.running) {
            let Some(running) = running else { continue };
            let core = (running.placer.core_of)(group);
            if running.placed.core() == core {
                continue;
            }
            match running.placed.move_to(core, within) {
                Ok(()) => {}
                Err(error @ PlaceError::Timeout { .. }) => {
                    return Err(Stuck::Worker(error.to_string()).into());
                }
                Err(error) => outcome = Err(ServeError::NotPlaced(format!("group {group}: {error}"))),
            }
        }
        outcome
    }

    fn take_ended(&mut self, within: Duration) -> Vec<(u16, Ended)> {
        let ended = |running: &Option<Running>| running.as_ref().is_some_and(|own| own.placed.has_ended());
        let groups: Vec<u16> =
            (0u16..).zip(&self.running).filter(|(_, own)| ended(own)).map(|(group, _)| group).collect();
        let taken = groups.into_iter().filter_map(|group| Some((group, self.take_back(group, within).ok()?)));
        taken.map(|(group, message)| (group, Ended::Panicked(message.unwrap_or_default()))).collect()
    }
}
