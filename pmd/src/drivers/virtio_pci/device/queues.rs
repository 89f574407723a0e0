//! The queues of a guest's NIC on a virtio function: started and stopped a group at a time, changed while they run, moved to
//! another core. What the function has of them is [`super`]'s to bring up and down. Owned by the session's thread.

use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_engine::PlaceError;

use super::{By, DRAIN, Group, Running, VirtioNic};
use crate::later;
use crate::vdpa::{Ended, Placer, QueueBinding, QueueEnds, Queues, ServeError, ServedBy, Stopped, Stuck};

impl Queues for VirtioNic {
    fn start(
        &mut self,
        group: u16,
        queues: Vec<QueueBinding>,
        placer: &Placer,
        within: Duration,
    ) -> Result<(), ServeError> {
        self.forget(group);
        self.does_not_send = false;
        self.kept.note(group, &queues);
        let group = Group { number: group, placer: placer.clone(), queues };
        let number = group.number;
        if self.rests(&group) {
            let (until, watcher) = (Instant::now() + REST, Arc::clone(&placer.watcher));
            self.resting.push((group, until));
            later::run_until(move || {
                let is_over = Instant::now() >= until;
                if is_over {
                    watcher.pump_ended();
                }
                is_over
            });
            return Ok(());
        }
        let driven = self.driven();
        if let Some(up) = &self.up {
            // Without a reset of its own for each queue, all begin together: nobody has had anything of theirs yet.
            let can_begin = self.seen.begins_anywhere || self.are_fresh();
            let all_anew = !up.can_reset_queues() && self.unfit(&group).is_none() && can_begin;
            self.is_stale |= up.driven != driven || all_anew;
        }
        let failed = if self.is_stale {
            self.waiting.push(group);
            self.renew(within)?;
            self.take_failure(number)
        } else {
            let mut failed = self.serve(vec![group]).pop().map(|(_, why)| why);
            if self.waiting.is_empty() {
                self.tell_pairs();
            } else {
                self.renew(within)?;
                failed = failed.or_else(|| self.take_failure(number));
            }
            failed
        };
        failed.map_or(Ok(()), Err)
    }

    fn stop(&mut self, group: u16, within: Duration) -> Result<Stopped, Stuck> {
        self.forget(group);
        let taken = self.take_back(group, within)?;
        if let Some(message) = taken.and_then(|(_, panicked)| panicked) {
            self.ended.push((group, Ended::Panicked(message)));
        }
        self.renew(within)?;
        self.tell_pairs();
        let at = self.ended.iter().position(|(ended, _)| *ended == group);
        let ended = at.map(|at| self.ended.swap_remove(at).1);
        Ok(Stopped { positions: self.kept.take(group), ended })
    }

    fn adjust(&mut self, queue: &QueueEnds) -> bool {
        let at = usize::from(queue.index / 2);
        let (Some(open), Some(up)) = (self.open.as_ref(), self.up.as_ref()) else { return false };
        let Some(Running { by: By::Hardware, group }) = self.groups.get_mut(at).and_then(Option::as_mut)
        else {
            return false;
        };
        let Some(own) = group.queues.iter_mut().find(|own| own.index == queue.index) else { return false };
        let Some(kick) = &queue.kick else { return false };
        // The first pair is always used by the function.
        if (own.enabled != queue.enabled && at == 0)
            || open.rebind(up, queue.index, kick, queue.call.as_deref()).is_err()
        {
            return false;
        }
        let is_enabled = std::mem::replace(&mut own.enabled, queue.enabled);
        (own.kick, own.call) = (queue.kick.clone(), queue.call.clone());
        if is_enabled != queue.enabled {
            self.tell_pairs();
        }
        true
    }

    fn served_by(&self, group: u16) -> Option<ServedBy> {
        let mut resting = self.resting.iter().map(|(resting, _)| resting).chain(&self.waiting);
        if resting.any(|waiting| waiting.number == group) {
            return Some(ServedBy::Core(None));
        }
        let running = self.groups.get(usize::from(group))?.as_ref()?;
        Some(running.placed().map_or(ServedBy::Hardware, |placed| ServedBy::Core(Some(placed.core()))))
    }

    fn follow(&mut self, within: Duration) -> Result<(), ServeError> {
        let (mut outcome, mut is_held) = (Ok(()), false);
        for (number, running) in (0u16..).zip(&mut self.groups) {
            let Some(Running { by: By::Relay(placed), group }) = running else { continue };
            let placer = &group.placer;
            match placed.move_to((placer.core_of)(number), within.min(DRAIN)) {
                Ok(()) => {}
                // What it sent does not go.
                Err(PlaceError::Timeout { .. }) => is_held = true,
                Err(error) => outcome = Err(ServeError::NotPlaced(format!("group {number}: {error}"))),
            }
        }
        if is_held {
            (self.does_not_send, self.is_stale) = (true, true);
            self.renew(within)?;
        }
        outcome
    }

    fn take_ended(&mut self, within: Duration) -> Vec<(u16, Ended)> {
        let has_ended = |running: &Option<Running>| {
            running.as_ref().and_then(Running::placed).is_some_and(|placed| placed.has_ended())
        };
        let groups: Vec<u16> =
            (0u16..).zip(&self.groups).filter(|(_, own)| has_ended(own)).map(|(group, _)| group).collect();
        for group in groups {
            if let Ok(Some((_, message))) = self.take_back(group, within) {
                self.ended.push((group, Ended::Panicked(message.unwrap_or_default())));
            }
        }
        // Stuck: tried again when the next queue stops.
        let is_at_work = self.renew(within).is_ok();
        let now = Instant::now();
        if is_at_work && self.resting.iter().any(|(_, until)| *until <= now) {
            self.waiting.extend(self.resting.drain(..).map(|(group, _)| group));
            self.go_on();
            let _ = self.renew(within);
        }
        std::mem::take(&mut self.ended)
    }
}

impl VirtioNic {
    /// Why a group that was to be served by now is not, if it is not.
    fn take_failure(&mut self, group: u16) -> Option<ServeError> {
        let at = self.ended.iter().position(|(ended, _)| *ended == group)?;
        match self.ended.swap_remove(at).1 {
            Ended::Panicked(why) | Ended::NotPlaced(why) | Ended::DeviceLost(why) => {
                Some(ServeError::Refused(why))
            }
        }
    }

    /// A group that is out of service for a moment is so for good.
    fn forget(&mut self, group: u16) {
        self.waiting.retain(|waiting| waiting.number != group);
        self.resting.retain(|(resting, _)| resting.number != group);
    }
}

/// How long one queue of a pair is not served because the other is about to be started.
const REST: Duration = Duration::from_millis(100);
