//! The worker: one thread, pinned to one core, that polls the pumps placed on it.
//!
//! ```text
//!   turn:  mail? -> poll every active pump once -> deadlines due -> look at the epoll (every 20 us, if anybody
//!          sleeps) -> account; adaptive and nobody active: sleep in the epoll
//! ```
//!
//! A turn costs what its active pumps cost: sleeping ones are in no list that it walks. Everything it uses is
//! allocated before it runs; the loop neither allocates, locks, logs nor panics, and makes a system call only for a
//! sleeper's sake (to look at the epoll, or to sleep), at hand-overs, and to rest where it was told to give way to
//! what else has to run on its core. Times are cycles of its clock.

use std::sync::Arc;

use rustix::event::epoll;
use rustix::time::Timespec;

use crate::berth::{LET_GO, RETIRE};
use crate::config::{Clock, IdlePolicy};
use crate::contain::{Caught, contained};
use crate::deadlines::Deadlines;
use crate::desk::{BELL, Desk, SLOTS};
use crate::pace::{Pace, REST_NS};
use crate::pump::{Armed, Budget, Polled};
use crate::tenant::{Ending, State, Tenant};

/// A worker's own state.
pub(crate) struct Worker {
    desk: Arc<Desk>,
    clock: Clock,
    pace: Pace,
    /// By slot.
    tenants: Box<[Option<Box<Tenant>>]>,
    /// The slots of those that are polled.
    active: Vec<u32>,
    deadlines: Deadlines,
    events: Box<[epoll::Event]>,
    budget: Budget,
    /// How many are armed and have a wake source: with any, the epoll is looked at.
    listening: usize,
    /// How many nap.
    napping: u64,
    /// The last reading of the clock: the end of what was done last is the start of what comes next.
    now: u64,
    /// When the epoll is looked at next.
    next_look: u64,
    /// Since when nothing has moved and nobody was woken from outside.
    quiet_since: u64,
    /// Set once it was asked to stop: when it lets go of pumps that have not stopped.
    last_moment: Option<u64>,
    /// It rests now and then, to leave the core to others.
    gives_way: bool,
    /// When it rests next, if it does.
    rest_at: u64,
}

/// What the worker does after a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// Another turn.
    Turn,
    /// Sleep, until this time at the latest.
    Sleep {
        /// In cycles; `u64::MAX` is for ever.
        until: u64,
    },
    /// It was asked to stop and has given everything back.
    Stop,
}

impl Worker {
    pub(crate) fn new(desk: Arc<Desk>, clock: Clock) -> Worker {
        let now = (clock.cycles)();
        Worker {
            desk,
            clock,
            pace: Pace::of(clock),
            tenants: (0..SLOTS).map(|_| None).collect(),
            active: Vec::with_capacity(SLOTS),
            deadlines: Deadlines::new(SLOTS + 1),
            events: vec![NO_EVENT; EVENTS].into_boxed_slice(),
            budget: Budget::default(),
            listening: 0,
            napping: 0,
            now,
            next_look: now,
            quiet_since: now,
            last_moment: None,
            gives_way: false,
            rest_at: u64::MAX,
        }
    }

    /// The thread's loop.
    pub(crate) fn run(&mut self) {
        loop {
            match self.turn() {
                Next::Turn => {}
                Next::Sleep { until } => self.sleep(until),
                Next::Stop => return,
            }
        }
    }

    /// One turn.
    pub(crate) fn turn(&mut self) -> Next {
        let mut began = self.now;
        if self.desk.mailbox.has_mail() {
            self.open_mail();
        }
        let items = self.poll_active();
        if items == 0 {
            // The end of a turn without polls; also a hint to the core's other thread.
            std::hint::spin_loop();
            self.tell_time();
        } else {
            self.quiet_since = self.now;
        }
        if self.deadlines.earliest() <= self.now {
            // What it rested is no part of the turn.
            began = began.saturating_add(self.wake_expired());
        }
        if self.listening > 0 && self.now >= self.next_look {
            self.look(Some(&NOW));
        }
        let cycles = self.now.saturating_sub(began);
        self.desk.account.turn(self.now, self.pace.longest_turn_window, cycles, items);
        self.next()
    }

    fn next(&mut self) -> Next {
        if let Some(last_moment) = self.last_moment {
            return self.wind_up(last_moment);
        }
        if !self.active.is_empty() || self.desk.idle() == IdlePolicy::Poll {
            return Next::Turn;
        }
        if self.now.saturating_sub(self.quiet_since) < self.pace.spin {
            return Next::Turn;
        }
        // Asleep it is in nobody's way.
        self.deadlines.clear(REST);
        let until = self.deadlines.earliest();
        if until.saturating_sub(self.now) >= self.pace.least_sleep {
            return Next::Sleep { until };
        }
        self.plan_rest(self.rest_at);
        Next::Turn
    }

    /// Has it rest at a time, if it rests at all. Of the deadlines, since those are looked at in every turn anyway.
    fn plan_rest(&mut self, at: u64) {
        self.rest_at = at;
        if self.gives_way {
            self.deadlines.set(REST, at);
        }
    }

    /// Leaves the core for a moment to whatever else is to run there; for how long, in cycles.
    #[cold]
    fn rest(&mut self) -> u64 {
        let began = self.now;
        // Interrupted it was shorter; the next one comes.
        let _ = rustix::thread::nanosleep(&Timespec { tv_sec: 0, tv_nsec: REST_NS as _ });
        self.tell_time();
        let cycles = self.now.saturating_sub(began);
        self.desk.account.rested(cycles);
        self.plan_rest(self.now.saturating_add(self.pace.rest_every));
        cycles
    }

    /// Sleeps until a wake source, the bell, or `until`.
    fn sleep(&mut self, until: u64) {
        if !self.desk.mailbox.fall_asleep() {
            self.plan_rest(self.rest_at);
            return;
        }
        let began = self.now;
        self.desk.account.falls_asleep(began);
        if until == u64::MAX {
            self.look(None);
        } else {
            let ns = self.pace.nanoseconds(until.saturating_sub(began));
            let timeout = Timespec {
                tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
                tv_nsec: (ns % 1_000_000_000) as _,
            };
            self.look(Some(&timeout));
        }
        self.desk.mailbox.wake_up();
        self.desk.account.woke_up(self.now.saturating_sub(began));
        self.plan_rest(self.now.saturating_add(self.pace.rest_every));
    }

    /// Polls each active pump once; how much they moved.
    fn poll_active(&mut self) -> u64 {
        let (mut items, mut index) = (0, 0);
        while let Some(&slot) = self.active.get(index) {
            let Some(tenant) = self.tenants[slot as usize].as_deref_mut() else {
                // Not reached: the list names tenants only.
                self.active.swap_remove(index);
                continue;
            };
            let began = self.now;
            let mut now = began;
            let polled = watched(&self.desk, slot, began, || {
                let polled = tenant.pump.poll(&self.budget, began);
                now = (self.clock.cycles)();
                if let Polled::Moved(_) = polled {
                    tenant.pump.took(now.saturating_sub(began));
                }
                polled
            });
            self.now = now;
            match polled {
                Ok(Polled::Moved(count)) => {
                    tenant.seat.account.moved(u64::from(count), now.saturating_sub(began));
                    self.desk.account.moved(u64::from(count));
                    tenant.idle_since = now;
                    if tenant.nap != 0 {
                        tenant.nap = 0;
                        self.napping -= 1;
                    }
                    items += u64::from(count);
                    if tenant.stopping {
                        self.try_finish(slot);
                    }
                }
                Ok(Polled::Idle | Polled::Blocked) => {
                    let is_rested =
                        tenant.nap != 0 || now.saturating_sub(tenant.idle_since) >= self.pace.arm_after;
                    let has_left = tenant.stopping && self.try_finish(slot);
                    // A worker that ends polls whom it still has until it lets go of them.
                    if is_rested && !has_left && self.last_moment.is_none() {
                        self.arm(slot);
                    }
                }
                Err(caught) => {
                    self.tell_time();
                    self.evict(slot, caught);
                }
            }
            // Whoever left the list was replaced by its last, which has not been polled yet.
            if self.active.get(index) == Some(&slot) {
                index += 1;
            }
        }
        items
    }

    /// Arms a pump that has been idle, and takes it off the active list if it can sleep or must nap.
    fn arm(&mut self, slot: u32) {
        let Some(tenant) = self.tenants[slot as usize].as_deref_mut() else { return };
        let armed = watched(&self.desk, slot, self.now, || tenant.pump.arm());
        let now = (self.clock.cycles)();
        self.now = now;
        let was_napping = tenant.nap != 0;
        let deadline = match armed {
            Ok(Armed::HasWork) => {
                tenant.idle_since = now;
                tenant.nap = 0;
                self.napping -= u64::from(was_napping);
                return;
            }
            Ok(Armed::Sleep { within_ns }) => {
                tenant.nap = 0;
                self.napping -= u64::from(was_napping);
                tenant.seat.account.set_cannot_sleep(false);
                within_ns.map(|ns| now.saturating_add(self.pace.cycles(ns)))
            }
            Ok(Armed::CannotSleep) => {
                self.napping += u64::from(!was_napping);
                let longest = self.pace.longest_nap + self.pace.nap_per_napper * (self.napping - 1);
                tenant.nap = (tenant.nap * 2).clamp(self.pace.least_nap, longest);
                tenant.seat.account.set_cannot_sleep(true);
                Some(now.saturating_add(tenant.nap))
            }
            Err(caught) => return self.evict(slot, caught),
        };
        // One that stops need not be woken by what it waits for.
        let stops_by = tenant.stopping.then(|| now.saturating_add(self.pace.stop_look));
        let deadline = deadline.into_iter().chain(stops_by).min();
        tenant.seat.account.set_asleep(true);
        if tenant.has_sources {
            if self.listening == 0 {
                self.next_look = now.saturating_add(self.pace.look_every);
            }
            self.listening += 1;
        }
        self.deactivate(slot, State::Asleep);
        if let Some(deadline) = deadline {
            self.deadlines.set(slot, deadline);
        }
    }

    /// Disarms a sleeping pump and takes it back on the active list. False: it was not asleep, or is gone.
    fn rouse(&mut self, slot: u32) -> bool {
        let Some(tenant) = self.tenants.get_mut(slot as usize).and_then(Option::as_deref_mut) else {
            return false;
        };
        if tenant.state != State::Asleep {
            return false;
        }
        let now = self.now;
        let disarmed = watched(&self.desk, slot, now, || tenant.pump.disarm());
        self.deadlines.clear(slot);
        self.listening -= usize::from(tenant.has_sources);
        tenant.seat.account.set_asleep(false);
        tenant.idle_since = now;
        self.activate(slot);
        match disarmed {
            Ok(()) => true,
            Err(caught) => {
                self.evict(slot, caught);
                false
            }
        }
    }

    /// Wakes whom it is time to wake, and rests if it is time to; for how long it rested, in cycles.
    fn wake_expired(&mut self) -> u64 {
        let mut rested = 0;
        while let Some(slot) = self.deadlines.expired(self.now) {
            if slot == REST {
                rested = self.rest();
            } else {
                self.rouse(slot);
            }
        }
        self.tell_time();
        rested
    }

    /// Looks at the epoll and rouses whom it names.
    fn look(&mut self, timeout: Option<&Timespec>) {
        // An interrupted wait finds nothing, as a timeout does.
        let count = epoll::wait(&self.desk.epoll, &mut self.events[..], timeout).unwrap_or(0);
        self.tell_time();
        for index in 0..count {
            let token = self.events[index].data.u64();
            if token == BELL || self.rouse(u32::try_from(token).unwrap_or(u32::MAX)) {
                self.quiet_since = self.now;
            }
        }
        let pause = if count == self.events.len() {
            0
        } else if self.active.is_empty() {
            self.pace.look_idle
        } else {
            self.pace.look_every
        };
        self.next_look = self.now.saturating_add(pause);
    }

    /// Takes in what was delivered and does what was ordered.
    fn open_mail(&mut self) {
        // Counted up and down again, so that the mailbox can be read while the rest of the worker is changed.
        let desk = Arc::clone(&self.desk);
        desk.mailbox.collect(|letter| self.open_letter(letter as u32));
        if self.gives_way != desk.gives_way() {
            self.gives_way = !self.gives_way;
            self.deadlines.clear(REST);
            self.plan_rest(self.now.saturating_add(self.pace.rest_every));
        }
        if self.last_moment.is_none() && desk.must_stop() {
            self.last_moment = Some(self.now.saturating_add(self.pace.shutdown_grace));
            for slot in 0..SLOTS as u32 {
                self.open_letter(slot);
                self.retire(slot, false);
            }
        }
        self.quiet_since = self.now;
        self.tell_time();
    }

    fn open_letter(&mut self, slot: u32) {
        if self.tenants[slot as usize].is_none()
            && let Some(mut tenant) = self.desk.take_delivery(slot)
        {
            tenant.idle_since = self.now;
            self.tenants[slot as usize] = Some(tenant);
            self.activate(slot);
        }
        let orders = self.desk.orders(slot);
        if orders & (RETIRE | LET_GO) != 0 {
            self.retire(slot, orders & LET_GO != 0);
        } else {
            self.rouse(slot);
        }
    }

    /// Begins to stop a pump, and gives it back if it has stopped or must be let go of.
    fn retire(&mut self, slot: u32, let_go: bool) {
        self.rouse(slot);
        let Some(tenant) = self.tenants[slot as usize].as_deref_mut() else { return };
        if !tenant.stopping {
            tenant.stopping = true;
            let begun = watched(&self.desk, slot, self.now, || tenant.pump.begin_stop());
            match begun {
                Ok(true) => return self.give_back(slot, Ending::Stopped),
                Ok(false) => {}
                Err(caught) => return self.evict(slot, caught),
            }
        }
        if !self.try_finish(slot) && let_go {
            self.give_back(slot, Ending::InFlight);
        }
    }

    /// Gives a stopping pump back if it has stopped. True: it has left.
    fn try_finish(&mut self, slot: u32) -> bool {
        let Some(tenant) = self.tenants[slot as usize].as_deref_mut() else { return true };
        match watched(&self.desk, slot, self.now, || tenant.pump.stopped()) {
            Ok(true) => self.give_back(slot, Ending::Stopped),
            Ok(false) => return false,
            Err(caught) => self.evict(slot, caught),
        }
        true
    }

    /// After it was asked to stop: gives back what has not stopped by the last moment.
    fn wind_up(&mut self, last_moment: u64) -> Next {
        if self.now >= last_moment {
            while let Some(&slot) = self.active.last() {
                self.give_back(slot, Ending::InFlight);
            }
        }
        if self.active.is_empty() { Next::Stop } else { Next::Turn }
    }

    /// Takes out a pump that panicked.
    fn evict(&mut self, slot: u32, caught: Caught) {
        self.desk.account.panicked();
        if let Some(tenant) = self.tenants[slot as usize].as_deref() {
            tenant.seat.set_ended();
            // A watcher that panics has been told all the same. Its panic is not worth keeping beside the pump's, and
            // must not be dropped here.
            if let Err(second) = contained(|| tenant.watcher.pump_ended()) {
                std::mem::forget(second);
            }
        }
        self.give_back(slot, Ending::Panicked(caught));
    }

    fn give_back(&mut self, slot: u32, ending: Ending) {
        self.deactivate(slot, State::Outside);
        let Some(mut tenant) = self.tenants[slot as usize].take() else { return };
        if tenant.nap != 0 {
            self.napping -= 1;
        }
        tenant.ending = ending;
        self.desk.give_back(slot, tenant);
    }

    fn activate(&mut self, slot: u32) {
        if let Some(tenant) = self.tenants[slot as usize].as_deref_mut() {
            tenant.state = State::Active(self.active.len() as u32);
            self.active.push(slot);
        }
    }

    fn deactivate(&mut self, slot: u32, state: State) {
        let Some(tenant) = self.tenants[slot as usize].as_deref_mut() else { return };
        let State::Active(place) = std::mem::replace(&mut tenant.state, state) else { return };
        self.active.swap_remove(place as usize);
        if let Some(&moved) = self.active.get(place as usize)
            && let Some(tenant) = self.tenants[moved as usize].as_deref_mut()
        {
            tenant.state = State::Active(place);
        }
    }

    #[inline]
    fn tell_time(&mut self) {
        self.now = (self.clock.cycles)();
    }
}

/// Every call into a pump goes through here: [`crate::Engine::stuck`] tells of one that does not come back, and what it
/// panics with is contained.
#[inline]
fn watched<T>(desk: &Desk, slot: u32, now: u64, call: impl FnOnce() -> T) -> Result<T, Caught> {
    desk.account.enter(slot, now);
    let outcome = contained(call);
    desk.account.leave();
    outcome
}

/// Among the deadlines: when it rests. No slot's number.
const REST: u32 = SLOTS as u32;

/// How many events one look takes; when there are more, the next turn looks again.
const EVENTS: usize = 128;

const NOW: Timespec = Timespec { tv_sec: 0, tv_nsec: 0 };

const NO_EVENT: epoll::Event =
    epoll::Event { flags: epoll::EventFlags::empty(), data: epoll::EventData::new_u64(0) };

#[cfg(test)]
#[cfg(not(loom))]
mod tests;
