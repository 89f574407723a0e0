//! The engine: starts the workers, places pumps on them, moves and retires pumps, and reads the workers' accounts.
//!
//! Any thread but a worker may call it; none of its methods waits for anything but a worker's quiescent point, which a
//! worker reaches once per turn. It owns the workers' threads and the reaper's.

use std::fmt;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::berth::{LET_GO, RETIRE};
use crate::desk::Desk;
use crate::pace::{to_cycles, to_nanoseconds};
use crate::pin::pin_to;
use crate::pump::{MAX_WAKE_SOURCES, Pump};
use crate::reaper::{self, Alarm};
use crate::stats::{PumpStats, Stuck, WorkerStats};
use crate::tenant::{Ending, Seat, Tenant};
use crate::worker::Worker;

/// How workers tell time: a cycle counter and its rate. Given from outside, since reading it is not this crate's
/// business; tests give one of their own.
#[derive(Debug, Clone, Copy)]
pub struct Clock {
    /// Reads the counter.
    pub cycles: fn() -> u64,
    /// Cycles per second.
    pub hertz: u64,
}

/// What a worker does when none of its pumps has work.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum IdlePolicy {
    /// Spins.
    Poll,
    /// Spins for a while, then sleeps until a wake source or the mailbox wakes it.
    Adaptive,
}

/// How to start an engine.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// The cores that become workers, one worker each.
    pub cores: Vec<usize>,
    /// What idle workers do.
    pub idle: IdlePolicy,
    /// How they tell time.
    pub clock: Clock,
}

/// Why an engine did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// No core was given.
    #[error("no core was given to work on")]
    NoCores,
    /// A core was named twice.
    #[error("core {0} is named twice")]
    Duplicate(usize),
    /// The pin did not take: read back after setting it.
    #[error("cannot pin a worker to core {core}: {why}")]
    Pin {
        /// The core.
        core: usize,
        /// What was found instead.
        why: String,
    },
    /// The system refused a thread or a descriptor.
    #[error("cannot start the worker of core {core}: {source}")]
    System {
        /// The core.
        core: usize,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A pump that was not placed: it comes back as it was, for whoever made it to take apart or to place elsewhere.
#[derive(thiserror::Error)]
#[error("{why}")]
pub struct NotPlaced {
    /// Why.
    pub why: PlaceError,
    /// The pump.
    pub pump: Box<dyn Pump>,
}

/// Why a pump was not placed, moved or retired.
#[derive(Debug, thiserror::Error)]
pub enum PlaceError {
    /// No worker runs on that core.
    #[error("no worker runs on core {0}")]
    NoSuchCore(usize),
    /// The worker's tables are full, or the engine is shutting down.
    #[error(
        "the worker of core {0} takes no more pumps: it has as many as it can, or ringwayd is stopping; serve the device by \
         another core"
    )]
    Full(usize),
    /// A wake source could not be watched.
    #[error(
        "no worker can watch its kicks: {0}; each running queue takes descriptors of ringwayd: raise its limit (LimitNOFILE, \
         ulimit -n) or run fewer queues"
    )]
    WakeSource(std::io::Error),
    /// More wake sources than one pump may have.
    #[error(
        "its {0} queues with kicks are more than one worker's pump can have, {MAX_WAKE_SOURCES}: run fewer queues"
    )]
    TooManySources(usize),
    /// The worker did not acknowledge in time. The pump stays where it is and takes no new work; ask again.
    #[error("the worker of core {core} did not acknowledge within {waited:?}")]
    Timeout {
        /// The core.
        core: usize,
        /// How long it was given.
        waited: Duration,
    },
    /// No pump is placed by this handle any more: it was given back.
    #[error("the pump was given back before")]
    Gone,
    /// The pump panicked and was taken out, so it cannot be moved; [`Placed::retire`] gives it back with the reason.
    #[error("the pump was taken out because it panicked")]
    Ended,
}

/// Told by a worker, on its thread, that a pump was taken out because it panicked. Must keep the worker's rules: no
/// lock, no allocation, no waiting (write an eventfd).
pub trait Watcher: Send + Sync {
    /// The pump has been taken out; [`Placed::retire`] gives the reason.
    fn pump_ended(&self);
}

/// How a pump ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
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
    pub end: End,
    /// It was given back before it had stopped ([`Pump::stopped`]): DMA or other work may still be out, and whoever
    /// has the pump must end that before the memory goes.
    pub in_flight: bool,
}

/// The workers. Cheap to clone; the workers stop when [`Engine::shutdown`] is called or the last clone is dropped.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

/// What ends with the last clone.
struct Inner {
    plant: Arc<Plant>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    reaper: Mutex<Option<JoinHandle<()>>>,
}

/// What the holders of placed pumps keep as well.
struct Plant {
    desks: Vec<Arc<Desk>>,
    cores: Vec<usize>,
    alarm: Arc<Alarm>,
    clock: Clock,
}

impl Engine {
    /// Starts and pins one worker per core. With an error, none is left running.
    ///
    /// # Errors
    /// See [`StartError`]; a pin that did not take names the core.
    pub fn start(config: EngineConfig) -> Result<Engine, StartError> {
        if config.cores.is_empty() {
            return Err(StartError::NoCores);
        }
        for (index, core) in config.cores.iter().enumerate() {
            if config.cores[..index].contains(core) {
                return Err(StartError::Duplicate(*core));
            }
        }
        crate::contain::install_hook();
        let alarm = Arc::new(Alarm::new());
        let desks = config
            .cores
            .iter()
            .map(|&core| {
                Desk::new(core, config.idle, Arc::clone(&alarm))
                    .map_err(|source| StartError::System { core, source })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let plant = Arc::new(Plant { desks, cores: config.cores, alarm, clock: config.clock });
        // From here on, dropping it ends what was started.
        let inner = Inner { plant: Arc::clone(&plant), threads: Mutex::default(), reaper: Mutex::default() };
        for desk in &plant.desks {
            let thread = start_worker(desk, config.clock)?;
            lock(&inner.threads).push(thread);
        }
        let first = plant.cores[0];
        let reaper = {
            let plant = Arc::clone(&plant);
            std::thread::Builder::new()
                .name("rw-reaper".to_owned())
                .stack_size(REAPER_STACK_BYTES)
                .spawn(move || reaper::run(&plant.alarm, &plant.desks))
                .map_err(|source| StartError::System { core: first, source })?
        };
        *lock(&inner.reaper) = Some(reaper);
        Ok(Engine { inner: Arc::new(inner) })
    }

    /// The cores that have workers, in the order given.
    pub fn cores(&self) -> &[usize] {
        &self.inner.plant.cores
    }

    /// Hands a pump to the worker of `core`. Returns once it is in the mailbox.
    ///
    /// # Errors
    /// See [`PlaceError`]; the pump comes back with it.
    pub fn place(
        &self,
        core: usize,
        name: &str,
        pump: Box<dyn Pump>,
        watcher: Arc<dyn Watcher>,
    ) -> Result<Placed, NotPlaced> {
        let plant = &self.inner.plant;
        let reserved = plant.index_of(core).and_then(|index| {
            let seat = Seat::new(name, pump.as_ref())?;
            let slot = plant.reserve(index, &seat)?;
            Ok((index, seat, slot))
        });
        let (index, seat, slot) = match reserved {
            Ok(reserved) => reserved,
            Err(why) => return Err(NotPlaced { why, pump }),
        };
        let tenant = Tenant::new(pump, watcher, Arc::clone(&seat));
        match plant.deliver(index, slot, tenant) {
            Ok(()) => Ok(Placed { plant: Arc::clone(plant), index, slot: Some(slot), seat }),
            Err(tenant) => Err(NotPlaced { why: PlaceError::Full(core), pump: tenant.pump }),
        }
    }

    /// What every worker did. Reading changes nothing.
    pub fn workers(&self) -> Vec<WorkerStats> {
        self.inner.plant.desks.iter().map(|desk| self.inner.plant.read(desk)).collect()
    }

    /// The workers that have been inside one call of one pump for longer than `longer_than`. A pump's only system call
    /// is the write to a peer's eventfd, which a hostile peer can make block: whoever watches then interrupts the
    /// thread with a signal and faults the ring. Cheap enough to call every millisecond.
    pub fn stuck(&self, longer_than: Duration) -> Vec<Stuck> {
        let clock = self.inner.plant.clock;
        let bound = to_cycles(u64::try_from(longer_than.as_nanos()).unwrap_or(u64::MAX), clock.hertz);
        let mut found = Vec::new();
        for desk in &self.inner.plant.desks {
            let Some((slot, since)) = desk.account.current() else { continue };
            let cycles = (clock.cycles)().saturating_sub(since);
            if cycles > bound
                && let Some(seat) = desk.seat(slot)
            {
                found.push(Stuck {
                    core: desk.core,
                    tid: desk.tid.load(Ordering::Relaxed) as i32,
                    pump: seat.name.clone(),
                    since: Duration::from_nanos(to_nanoseconds(cycles, clock.hertz)),
                });
            }
        }
        found
    }

    /// Changes the idle policy of every worker.
    pub fn set_idle(&self, idle: IdlePolicy) {
        for desk in &self.inner.plant.desks {
            desk.set_idle(idle);
        }
    }

    /// Stops every worker and waits for its thread. Each gives back the pumps that it still has; those with work in
    /// flight after half a second, as they are. A pump whose [`Placed`] is still held waits there for
    /// [`Placed::retire`], or is dropped with it; nothing is placed any more.
    ///
    /// A worker that a pump holds (a peer can make its eventfd block) is left behind after two seconds: its pumps
    /// are not given back, and it ends when it is let go.
    pub fn shutdown(&self) {
        self.inner.stop();
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").field("cores", &self.inner.plant.cores).finish_non_exhaustive()
    }
}

impl Inner {
    fn stop(&self) {
        // Held while it waits, so that a second caller returns when all is done, too.
        let mut threads = lock(&self.threads);
        for desk in &self.plant.desks {
            desk.close();
        }
        let asked = Instant::now();
        for thread in threads.drain(..) {
            while !thread.is_finished() && asked.elapsed() < SHUTDOWN_WAIT {
                std::thread::sleep(SHUTDOWN_STEP);
            }
            if thread.is_finished() {
                // A worker's loop does not panic; one that did has nothing more to give back.
                let _ = thread.join();
            }
        }
        self.plant.alarm.stop();
        match lock(&self.reaper).take() {
            Some(reaper) => {
                let _ = reaper.join();
            }
            // Started half-way, or stopped before.
            None => self.plant.desks.iter().for_each(|desk| desk.set_reaperless()),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Plant {
    fn index_of(&self, core: usize) -> Result<usize, PlaceError> {
        self.cores.iter().position(|&known| known == core).ok_or(PlaceError::NoSuchCore(core))
    }

    /// Reserves a slot and has the worker's epoll watch the wake sources.
    fn reserve(&self, index: usize, seat: &Seat) -> Result<u32, PlaceError> {
        let desk = &self.desks[index];
        let slot = desk.admit()?;
        if let Err(error) = seat.watch(&desk.epoll, slot) {
            desk.release(slot, seat);
            return Err(error);
        }
        Ok(slot)
    }

    /// Hands a tenant to a worker. It comes back from one that is stopping.
    fn deliver(&self, index: usize, slot: u32, tenant: Box<Tenant>) -> Result<(), Box<Tenant>> {
        let seat = Arc::clone(&tenant.seat);
        let desk = &self.desks[index];
        desk.deliver(slot, tenant).inspect_err(|_| desk.release(slot, &seat))
    }

    fn read(&self, desk: &Desk) -> WorkerStats {
        let window = crate::pace::Pace::of(self.clock).longest_turn_window;
        let snapshot = desk.account.read((self.clock.cycles)(), window);
        let tid = desk.tid.load(Ordering::Relaxed) as i32;
        let current = desk.account.current().and_then(|(slot, since)| Some((desk.seat(slot)?, since)));
        WorkerStats {
            core: desk.core,
            tid,
            idle: desk.idle(),
            busy_cycles: snapshot.busy_cycles,
            idle_cycles: snapshot.idle_cycles,
            sleep_cycles: snapshot.sleep_cycles,
            turns: snapshot.turns,
            bursts: snapshot.bursts,
            items: snapshot.items,
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

/// A pump on a worker. Dropping it begins the retirement without waiting; the pump itself is then dropped on a thread
/// that is not a worker.
pub struct Placed {
    plant: Arc<Plant>,
    index: usize,
    /// None once the pump was given back.
    slot: Option<u32>,
    seat: Arc<Seat>,
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
        let index = self.plant.index_of(core)?;
        let slot = self.slot.ok_or(PlaceError::Gone)?;
        if self.seat.has_ended() {
            return Err(PlaceError::Ended);
        }
        if index == self.index {
            return Ok(());
        }
        // All that can fail on the other core comes before the pump leaves this one.
        let new_slot = self.plant.reserve(index, &self.seat)?;
        let (old, new) = (&self.plant.desks[self.index], &self.plant.desks[index]);
        let mut tenant = match old.recall(slot, RETIRE, within) {
            Ok(tenant) => tenant,
            Err(error) => {
                new.release(new_slot, &self.seat);
                return Err(error);
            }
        };
        if matches!(tenant.ending, Ending::Panicked(_)) {
            new.release(new_slot, &self.seat);
            old.keep(slot, tenant);
            return Err(PlaceError::Ended);
        }
        tenant.renew();
        if let Err(tenant) = self.plant.deliver(index, new_slot, tenant) {
            old.keep(slot, tenant);
            return Err(PlaceError::Full(core));
        }
        old.release(slot, &self.seat);
        (self.index, self.slot) = (index, Some(new_slot));
        Ok(())
    }

    /// Has the pump polled, should it sleep: its owner left it something to do. What was written before is seen by that
    /// poll.
    pub fn wake(&self) {
        if let Some(slot) = self.slot {
            self.plant.desks[self.index].wake(slot);
        }
    }

    /// The core it is on.
    pub fn core(&self) -> usize {
        self.plant.cores[self.index]
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
        let desk = &self.plant.desks[self.index];
        let tenant = desk.recall(slot, order, within)?;
        desk.release(slot, &self.seat);
        self.slot = None;
        self.seat.close_sources();
        let Tenant { pump, ending, .. } = *tenant;
        let (end, in_flight) = match ending {
            Ending::Stopped => (End::Retired, false),
            Ending::InFlight => (End::Retired, true),
            Ending::Panicked(caught) => (End::Panicked(caught.message()), true),
        };
        Ok(Retired { pump, end, in_flight })
    }
}

impl Drop for Placed {
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            self.plant.desks[self.index].abandon(slot);
        }
    }
}

impl fmt::Debug for NotPlaced {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NotPlaced").field("why", &self.why).finish_non_exhaustive()
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

/// Starts the worker of a desk and waits until it is pinned.
fn start_worker(desk: &Arc<Desk>, clock: Clock) -> Result<JoinHandle<()>, StartError> {
    let core = desk.core;
    let (tell, told) = std::sync::mpsc::sync_channel(1);
    let desk = Arc::clone(desk);
    let thread = std::thread::Builder::new()
        .name(format!("rw-core-{core}"))
        .stack_size(WORKER_STACK_BYTES)
        .spawn(move || {
            let pinned = pin_to(core);
            let failed = pinned.is_err();
            desk.tid.store(rustix::thread::gettid().as_raw_nonzero().get() as u32, Ordering::Relaxed);
            // Naps are shorter than the 50 us by which the kernel may else put a timer off. Where it refuses, they are
            // longer than meant.
            let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(TIMER_SLACK_NS));
            // Allocated on the pinned thread, so that its pages are of this core's memory node.
            let mut worker = Worker::new(desk, clock);
            let _ = tell.send(pinned);
            drop(tell);
            if !failed {
                worker.run();
            }
        })
        .map_err(|source| StartError::System { core, source })?;
    match told.recv() {
        Ok(Ok(())) => Ok(thread),
        Ok(Err(error)) => {
            let _ = thread.join();
            Err(error)
        }
        Err(_) => {
            Err(StartError::System { core, source: std::io::Error::other("the thread ended at its start") })
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

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Address space for a worker's stack; only what is used is ever backed by memory.
const WORKER_STACK_BYTES: usize = 512 << 10;
/// How long a shutdown waits for the workers, and how often it looks. Beyond the grace that they give their pumps.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(2);
const SHUTDOWN_STEP: Duration = Duration::from_micros(200);
const TIMER_SLACK_NS: u64 = 1_000;
const REAPER_STACK_BYTES: usize = 256 << 10;
