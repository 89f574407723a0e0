//! Has the pumps be what the running queues ask for: taken back from their workers, made anew, and placed.

use std::any::Any;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, MutexGuard};
use std::time::{Duration, Instant};

use ringway_engine::{HowEnded, NotPlaced, PlaceError, Placed, Pump, Retired, Watcher};

use super::ends::{EndKey, PumpKey};
use super::{Fabric, State};
use crate::later;
use crate::vdpa::{Ended, ServeError, Stuck};

/// A pump that was placed.
pub(super) struct Running {
    pub(super) members: Vec<EndKey>,
    pub(super) placed: Placed,
    /// Its worker was told to give it back, and had not when that was last waited for: what is to be said of that.
    pub(super) stuck: Option<String>,
    /// It is to be made anew, of the same ends.
    pub(super) is_outdated: bool,
}

/// Tells every session whose queues a pump had that it was taken out.
struct Everybody(Vec<Arc<dyn Watcher>>);

impl Watcher for Everybody {
    fn pump_ended(&self) {
        self.0.iter().for_each(|watcher| watcher.pump_ended());
    }
}

impl Fabric {
    /// Has the pumps be what the running queues ask for. A worker that holds a pump keeps nobody else: what it holds is left out, the
    /// others are served, and only if the port `of` has something there is it waited for longer, without the lock. The state comes back, locked:
    /// others may have changed it meanwhile.
    ///
    /// # Errors
    /// A worker holds something of the port's (of anybody's, where it is for none), or took none: what is free and in no pump then is
    /// [given up](State::give_up), or reconciled once more without whom it failed for.
    pub(super) fn reconcile<'a>(
        self: &'a Arc<Fabric>,
        mut state: MutexGuard<'a, State>,
        of: Option<u64>,
        within: Duration,
    ) -> (MutexGuard<'a, State>, Result<(), ServeError>) {
        let begun = Instant::now();
        let deadline = begun + within;
        // Pumps that are apart wait for nobody, and nobody for them. Of others, what is held is known after the first time and not waited for
        // again; so all have their time, whatever the caller has: one that is slow is not held.
        let prompt = if state.kind.is_together() { PROMPT } else { within };
        let mut placed = self.attempt(&mut state, begun + prompt);
        while of.is_some()
            && state.kind.is_together()
            && state.stuck(of).is_some()
            && Instant::now() < deadline
        {
            let before = state.keys(|running| running.stuck.is_some());
            drop(state);
            std::thread::sleep(LOOK_AGAIN.min(deadline.saturating_duration_since(Instant::now())));
            state = self.lock();
            // Nothing is tried again, and nobody taken from the others for it, until a worker has given something back.
            let held = state.keys(|running| running.stuck.is_some());
            self.take_down(&mut state, held, Instant::now());
            let after = state.keys(|running| running.stuck.is_some());
            if after != before || state.stuck(of).is_none() {
                placed = self.attempt(&mut state, Instant::now() + prompt);
            }
        }
        let outcome = match state.stuck(of) {
            // Whoever asks for nobody tries again, or gives up what no worker takes, whoever else is held.
            Some(why) if of.is_some() || placed.is_ok() => Err(Stuck::Worker(why).into()),
            _ => placed.map_err(ServeError::NotPlaced),
        };
        (state, outcome)
    }

    /// Has the pumps be what the running queues ask for, without those that are not given back in time. The text says why one could not
    /// be placed.
    fn attempt(self: &Arc<Fabric>, state: &mut State, deadline: Instant) -> Result<(), String> {
        let is_together = state.kind.is_together();
        // Those first that nobody polls any more: others may wait for them. One that was waited for already may have been given back.
        let was_held = |running: &Running| is_together && running.stuck.is_some();
        let (held, over): (Vec<_>, Vec<_>) = state
            .keys(Running::is_over)
            .into_iter()
            .partition(|key| state.pumps.get(key).is_some_and(was_held));
        self.take_down(state, held, Instant::now());
        self.take_down(state, over, deadline);
        state.ends.drop_leaving();
        let plan = state.kind.plan(&state.ends);
        let is_outdated = |key: &PumpKey, running: &Running| {
            running.is_outdated || running.is_over() || plan.get(key) != Some(&running.members)
        };
        let running = state.keys(|running| !was_held(running));
        let mut outdated = running.clone();
        outdated.retain(|key| state.pumps.get(key).is_some_and(|running| is_outdated(key, running)));
        if is_together {
            let is_to_be_made = plan.iter().any(|(key, members)| state.is_unplaced(*key, members));
            // What goes on beside one that ended has lanes to it that nobody reads.
            let is_less = running.len() < state.together;
            if !outdated.is_empty() || is_to_be_made || is_less {
                outdated = running;
            }
        }
        self.take_down(state, outdated, deadline);
        state.ends.drop_leaving();
        // A pump that panicked took its ends with it, and one that is held keeps them: planned anew.
        let mut plan: Vec<_> = state.kind.plan(&state.ends).into_iter().collect();
        plan.retain(|(key, members)| state.is_unplaced(*key, members));
        if plan.is_empty() {
            return Ok(());
        }
        let prepared = state.kind.prepare(&state.ends, &plan).map_err(no_memory);
        state.together = 0;
        let mut outcome = Ok(());
        for (key, members) in plan {
            match prepared.clone().and_then(|()| state.set_up(&self.name, key, members)) {
                Ok(()) => state.together += 1,
                Err(why) if outcome.is_ok() => outcome = Err(why),
                Err(_) => {}
            }
        }
        outcome
    }

    /// Takes what is marked as leaving out, and has the others served as before: at once, or as soon as a worker takes them.
    /// The state comes back as from [`Fabric::reconcile`].
    pub(super) fn withdraw<'a>(
        self: &'a Arc<Fabric>,
        state: MutexGuard<'a, State>,
        of: Option<u64>,
        within: Duration,
    ) -> (MutexGuard<'a, State>, Result<(), ServeError>) {
        let (mut state, mut outcome) = self.reconcile(state, of, within);
        if let Err(ServeError::NotPlaced(_)) = outcome {
            self.persist(&mut state);
            outcome = Ok(());
        }
        (state, outcome)
    }

    /// What no worker takes now (there is no descriptor, no memory) may be taken soon: tried again for a while, and only
    /// then [given up](State::give_up).
    fn persist(self: &Arc<Fabric>, state: &mut State) {
        if state.give_up_at.is_some() {
            return;
        }
        state.give_up_at = Some(Instant::now() + PLACE_WITHIN);
        let fabric = Arc::clone(self);
        later::run_until(move || fabric.is_settled());
    }

    /// Tries once more to have served what waits for a worker. True: there is nothing more to try.
    fn is_settled(self: &Arc<Fabric>) -> bool {
        let Some(state) = self.try_lock() else { return false };
        let Some(at) = state.give_up_at else { return true };
        let (mut state, outcome) = self.reconcile(state, None, LATER_WITHIN);
        let why = match outcome {
            Ok(()) => None,
            Err(_) if Instant::now() < at => return false,
            Err(error) => Some(error),
        };
        state.give_up_at = None;
        if let Some(ServeError::NotPlaced(why)) = why {
            state.give_up(&why);
        }
        true
    }

    /// Takes pumps back from their workers, and apart. All are told before one is waited for, since each may wait for the others to
    /// stop. One that its worker holds is nobody's until it is given back.
    fn take_down(self: &Arc<Fabric>, state: &mut State, keys: Vec<PumpKey>, deadline: Instant) {
        let mut told = Vec::with_capacity(keys.len());
        for key in keys {
            if let Some(mut running) = state.pumps.remove(&key) {
                let retired = running.placed.retire(Duration::ZERO);
                told.push((key, running, retired));
            }
        }
        for (key, mut running, retired) in told {
            let retired = match retired {
                Err(PlaceError::Timeout { .. }) => {
                    running.placed.retire(deadline.saturating_duration_since(Instant::now()))
                }
                at_once => at_once,
            };
            match retired {
                Ok(Retired { end: HowEnded::Panicked(message), .. }) => {
                    state.ends.lose(&running.members, &Ended::Panicked(message));
                }
                Ok(retired) => state.take_apart(&running.members, retired.pump),
                Err(error @ PlaceError::Timeout { .. }) => {
                    running.stuck.get_or_insert_with(|| error.to_string());
                    if state.kind.is_together() {
                        state.ends.hold(&running.members, running.placed.core());
                    }
                    state.pumps.insert(key, running);
                    self.settle_later(state);
                }
                Err(error) => state.ends.lose(&running.members, &Ended::NotPlaced(error.to_string())),
            }
        }
    }

    /// Moves the pumps to the cores that control decided on.
    ///
    /// # Errors
    /// A worker did not let go in time.
    pub(super) fn follow_cores(self: &Arc<Fabric>, of: u64, within: Duration) -> Result<(), ServeError> {
        let mut state = self.lock();
        let is_running = |(key, members): (&PumpKey, &Vec<EndKey>)| {
            state.pumps.get(key).is_some_and(|running| running.members == *members)
        };
        let is_as_planned = state.kind.plan(&state.ends).iter().all(is_running);
        if state.kind.is_together() && (!is_as_planned || state.stuck(None).is_some()) {
            // Ports are with others than before.
            return self.withdraw(state, Some(of), within).1;
        }
        let keys: Vec<PumpKey> = state.pumps.keys().copied().collect();
        for key in keys {
            let Some(running) = state.pumps.get(&key) else { continue };
            let core = state.kind.core(key, &running.members, &state.ends);
            let Some(running) = state.pumps.get_mut(&key) else { continue };
            if running.placed.core() == core {
                continue;
            }
            if let Err(error @ PlaceError::Timeout { .. }) = running.placed.move_to(core, within) {
                running.stuck = Some(error.to_string());
                self.settle_later(&mut state);
                return Err(Stuck::Worker(error.to_string()).into());
            }
        }
        Ok(())
    }

    /// Has what is unsettled settled once its worker turns again, and what is outdated made anew.
    pub(super) fn settle_later(self: &Arc<Fabric>, state: &mut State) {
        if !std::mem::replace(&mut state.is_settling, true) {
            let fabric = Arc::clone(self);
            later::run_until(move || fabric.settle());
        }
    }

    /// Has the pumps be what the running queues ask for, if nobody is changing them just now. False: a worker has not let
    /// go yet.
    fn settle(self: &Arc<Fabric>) -> bool {
        let Some(state) = self.try_lock() else { return false };
        let (mut state, _) = self.withdraw(state, None, LATER_WITHIN);
        state.is_settling =
            state.pumps.values().any(|running| running.stuck.is_some() || running.is_outdated);
        !state.is_settling
    }
}

impl State {
    /// Pumps that are like this.
    fn keys(&self, is_like: impl Fn(&Running) -> bool) -> Vec<PumpKey> {
        self.pumps.iter().filter(|(_, running)| is_like(running)).map(|(key, _)| *key).collect()
    }

    /// What is to be said of a pump that its worker holds, if a port has something in it or is to have, or anybody where it is for none.
    fn stuck(&self, of: Option<u64>) -> Option<String> {
        let concerns = |ends: &[EndKey]| of.is_none_or(|port| ends.iter().any(|end| end.port == port));
        let plan = self.kind.plan(&self.ends);
        let is_of = |key: &PumpKey, running: &Running| {
            concerns(&running.members) || plan.get(key).is_some_and(|members| concerns(members))
        };
        let mut all = self.pumps.iter().filter(|(key, running)| is_of(key, running));
        all.find_map(|(_, running)| running.stuck.clone())
    }

    /// True if a pump of the plan does not run and could.
    fn is_unplaced(&self, key: PumpKey, members: &[EndKey]) -> bool {
        !self.pumps.contains_key(&key) && self.ends.are_free(members)
    }

    /// What no worker takes is out of service: its sessions are told.
    fn give_up(&mut self, why: &str) {
        for (key, members) in self.kind.plan(&self.ends) {
            if self.is_unplaced(key, &members) {
                self.ends.lose(&members, &Ended::NotPlaced(why.to_owned()));
            }
        }
    }

    /// Puts the ends of a pump back, each where it came from.
    fn take_apart(&mut self, members: &[EndKey], pump: Box<dyn Pump>) {
        let pump: Box<dyn Any> = pump;
        if let Err(bug) = self.kind.take_apart(&mut self.ends, members, pump) {
            self.ends.lose(members, &Ended::NotPlaced(bug.to_string()));
        }
    }

    /// Makes a pump of ends that are free, and places it. They are free again if that fails; the text says why.
    fn set_up(&mut self, fabric: &str, key: PumpKey, members: Vec<EndKey>) -> Result<(), String> {
        let Some(port) = members.first().and_then(|end| self.ends.ports.get(&end.port)) else {
            return Ok(());
        };
        let engine = port.placer.engine.clone();
        let core = self.kind.core(key, &members, &self.ends);
        let name = self.kind.name(fabric, key, &self.ends);
        let watchers: BTreeMap<u64, Arc<dyn Watcher>> = members
            .iter()
            .filter_map(|end| Some((end.port, Arc::clone(&self.ends.ports.get(&end.port)?.placer.watcher))))
            .collect();
        let pump = self.kind.make(&mut self.ends, key, &members).map_err(no_memory)?;
        let watcher = Arc::new(Everybody(watchers.into_values().collect()));
        match engine.place(core, &name, pump, watcher) {
            Ok(placed) => {
                self.ends.put_in(&members, key);
                self.pumps.insert(key, Running { members, placed, stuck: None, is_outdated: false });
                Ok(())
            }
            Err(NotPlaced { why, pump }) => {
                self.take_apart(&members, pump);
                Err(why.to_string())
            }
        }
    }
}

/// Why a pump cannot be made, and what helps.
fn no_memory(error: io::Error) -> String {
    format!("no memory for the pump: {error}; free some, or run fewer queues")
}

impl Running {
    /// No worker polls it any more, or will for long.
    fn is_over(&self) -> bool {
        self.stuck.is_some() || self.placed.has_ended()
    }
}

/// How long those of a kind that are made together are waited for before the others are served without them: several times what they take
/// that do not wait for a worker that is held.
const PROMPT: Duration = Duration::from_millis(1500);
/// How often whoever waits for a worker that holds his port looks whether it does still.
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// How long one attempt at what was left to [`later`] waits for a worker, under the fabric's lock, where pumps are not made together: long
/// for a worker that turns, short for the sessions that wait for the lock while it does not.
pub(super) const LATER_WITHIN: Duration = Duration::from_millis(20);
/// How long it is tried to have pumps served that ran before, until their sessions are told that they are not.
const PLACE_WITHIN: Duration = Duration::from_secs(1);
