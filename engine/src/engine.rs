//! The engine: starts the workers, places pumps on them, moves and retires pumps, and reads the workers' accounts.
//!
//! Any thread but a worker may call it; none of its methods waits for anything but a worker's quiescent point, which a
//! worker reaches once per turn. It owns the workers' threads and the reaper's.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::alarm::Alarm;
use crate::config::{Clock, EngineConfig, IdlePolicy};
use crate::desk::Desk;
use crate::error::{NotPlaced, PlaceError, StartError};
use crate::pace::{to_cycles, to_nanoseconds};
use crate::pin::pin_to;
use crate::placed::Placed;
use crate::pump::{Pump, Watcher};
use crate::reaper;
use crate::scheduled::Scheduled;
use crate::stats::{StuckWorker, WorkerStats};
use crate::tenant::{Seat, Tenant};
use crate::worker::Worker;
use crate::workers::Workers;

/// The workers. Cheap to clone; the workers stop when [`Engine::shutdown`] is called or the last clone is dropped.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

/// What ends with the last clone.
struct Inner {
    workers: Arc<Workers>,
    /// Each with its core.
    threads: Mutex<Vec<(usize, JoinHandle<()>)>>,
    reaper: Mutex<Option<JoinHandle<()>>>,
    /// Nothing is started any more.
    is_stopped: AtomicBool,
}

/// What the holders of placed pumps keep as well.
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
        let workers = Arc::new(Workers::new(desks, alarm, config.clock));
        // From here on, dropping it ends what was started.
        let inner = Inner {
            workers: Arc::clone(&workers),
            threads: Mutex::default(),
            reaper: Mutex::default(),
            is_stopped: AtomicBool::new(false),
        };
        for desk in &workers.desks() {
            let thread = start_worker(desk, config.clock)?;
            lock(&inner.threads).push((desk.core, thread));
        }
        let first = config.cores[0];
        let reaper = {
            let workers = Arc::clone(&workers);
            std::thread::Builder::new()
                .name("rw-reaper".to_owned())
                .stack_size(REAPER_STACK_BYTES)
                .spawn(move || reaper::run(&workers))
                .map_err(|source| StartError::System { core: first, source })?
        };
        *lock(&inner.reaper) = Some(reaper);
        Ok(Engine { inner: Arc::new(inner) })
    }

    /// The cores that have workers, in the order in which those were started.
    pub fn cores(&self) -> Vec<usize> {
        self.inner.workers.desks().iter().map(|desk| desk.core).collect()
    }

    /// Starts and pins a worker on one more core, beside those that run.
    ///
    /// # Errors
    /// See [`StartError`]; [`StartError::Duplicate`] where the core has a worker.
    pub fn add_worker(&self, core: usize, idle: IdlePolicy) -> Result<(), StartError> {
        let workers = &self.inner.workers;
        // Held throughout: one at a time, and none while the engine stops.
        let mut threads = lock(&self.inner.threads);
        if self.inner.is_stopped.load(Ordering::Acquire) {
            let source = std::io::Error::other("the workers are stopping");
            return Err(StartError::System { core, source });
        }
        if workers.desk_of(core).is_ok() {
            return Err(StartError::Duplicate(core));
        }
        let desk = Desk::new(core, idle, Arc::clone(&workers.alarm))
            .map_err(|source| StartError::System { core, source })?;
        threads.push((core, start_worker(&desk, workers.clock)?));
        workers.add(desk);
        Ok(())
    }

    /// Ends the worker of a core that has no pumps, and waits for its thread.
    ///
    /// # Errors
    /// [`PlaceError::NoSuchCore`]; [`PlaceError::InUse`] while a pump is on it, or on its way there or back.
    pub fn remove_worker(&self, core: usize) -> Result<(), PlaceError> {
        let workers = &self.inner.workers;
        let mut threads = lock(&self.inner.threads);
        let desk = workers.desk_of(core)?;
        if !desk.close_if_empty() {
            return Err(PlaceError::InUse { core, pumps: desk.seats().len() });
        }
        workers.remove(core);
        if let Some(at) = threads.iter().position(|(of, _)| *of == core) {
            // It has no pump that could hold it: it ends with its turn.
            let _ = threads.swap_remove(at).1.join();
        }
        Ok(())
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
        let workers = &self.inner.workers;
        let reserved = workers.desk_of(core).and_then(|desk| {
            let seat = Seat::new(name, pump.as_ref())?;
            let slot = desk.reserve(&seat)?;
            Ok((desk, seat, slot))
        });
        let (desk, seat, slot) = match reserved {
            Ok(reserved) => reserved,
            Err(why) => return Err(NotPlaced { why, pump }),
        };
        let tenant = Tenant::new(pump, watcher, Arc::clone(&seat));
        match desk.deliver(slot, tenant) {
            Ok(()) => Ok(Placed { workers: Arc::clone(workers), desk, slot: Some(slot), seat }),
            Err(tenant) => Err(NotPlaced { why: PlaceError::Full(core), pump: tenant.pump }),
        }
    }

    /// What the worker of a core did. None: it has none. Reading changes nothing.
    pub fn worker(&self, core: usize) -> Option<WorkerStats> {
        let workers = &self.inner.workers;
        workers.desk_of(core).ok().map(|desk| workers.read(&desk))
    }

    /// What every worker did. Reading changes nothing.
    pub fn workers(&self) -> Vec<WorkerStats> {
        self.inner.workers.desks().iter().map(|desk| self.inner.workers.read(desk)).collect()
    }

    /// The workers that have been inside one call of one pump for longer than `longer_than`. A pump's only system call
    /// is the write to a peer's eventfd, which a hostile peer can make block: whoever watches then interrupts the
    /// thread with a signal and faults the ring. Cheap enough to call every millisecond.
    pub fn stuck(&self, longer_than: Duration) -> Vec<StuckWorker> {
        let clock = self.inner.workers.clock;
        let bound = to_cycles(u64::try_from(longer_than.as_nanos()).unwrap_or(u64::MAX), clock.hertz);
        let mut found = Vec::new();
        for desk in self.inner.workers.desks() {
            let Some((slot, since)) = desk.account.current() else { continue };
            let cycles = (clock.cycles)().saturating_sub(since);
            if cycles > bound
                && let Some(seat) = desk.seat(slot)
            {
                found.push(StuckWorker {
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
        for desk in self.inner.workers.desks() {
            desk.set_idle(idle);
        }
    }

    /// How the kernel schedules each core's worker, where it tells. Reads files of `/proc`, three for each.
    pub fn scheduled(&self) -> Vec<(usize, Option<Scheduled>)> {
        let of = |desk: &Arc<Desk>| (desk.core, Scheduled::of(desk.tid.load(Ordering::Relaxed) as i32));
        self.inner.workers.desks().iter().map(of).collect()
    }

    /// Has the worker of a core rest 100 us in each 2 ms that it is awake, so that whatever else has to run there does,
    /// however the kernel schedules the two; or no longer. Counted in [`WorkerStats::rests`].
    ///
    /// # Errors
    /// [`PlaceError::NoSuchCore`].
    pub fn set_gives_way(&self, core: usize, gives_way: bool) -> Result<(), PlaceError> {
        self.inner.workers.desk_of(core)?.set_gives_way(gives_way);
        Ok(())
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
        f.debug_struct("Engine").field("cores", &self.cores()).finish_non_exhaustive()
    }
}

impl Inner {
    fn stop(&self) {
        // Held while it waits, so that a second caller returns when all is done, too.
        let mut threads = lock(&self.threads);
        self.is_stopped.store(true, Ordering::Release);
        for desk in self.workers.desks() {
            desk.close();
        }
        let asked = Instant::now();
        for (_, thread) in threads.drain(..) {
            while !thread.is_finished() && asked.elapsed() < SHUTDOWN_WAIT {
                std::thread::sleep(SHUTDOWN_STEP);
            }
            if thread.is_finished() {
                // A worker's loop does not panic; one that did has nothing more to give back.
                let _ = thread.join();
            }
        }
        self.workers.alarm.stop();
        match lock(&self.reaper).take() {
            Some(reaper) => {
                let _ = reaper.join();
            }
            // Started half-way, or stopped before.
            None => self.workers.desks().iter().for_each(|desk| desk.set_reaperless()),
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
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
