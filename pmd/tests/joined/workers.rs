//! Engines, what holds their workers, and limits under which nothing can be placed on them.

use std::cell::RefCell;
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::*;

/// Tests of one worker run beside each other; those of several, which poll on every core that there may be, run alone. Held to the end of the
/// thread that a test has.
static TURN: RwLock<()> = RwLock::new(());

enum Turn {
    Beside(#[expect(dead_code, reason = "held")] RwLockReadGuard<'static, ()>),
    Alone(#[expect(dead_code, reason = "held")] RwLockWriteGuard<'static, ()>),
}

thread_local! {
    static HELD: RefCell<Option<Turn>> = const { RefCell::new(None) };
}

/// From now on this test runs alone.
pub(super) fn alone() {
    HELD.with_borrow_mut(|held| {
        if !matches!(held, Some(Turn::Alone(_))) {
            *held = None;
            *held = Some(Turn::Alone(TURN.write().unwrap_or_else(PoisonError::into_inner)));
        }
    });
}

fn beside() {
    HELD.with_borrow_mut(|held| {
        held.get_or_insert_with(|| Turn::Beside(TURN.read().unwrap_or_else(PoisonError::into_inner)));
    });
}

pub(super) fn engine(cores: usize) -> Engine {
    beside();
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let cores = cores.max(parts::parts());
    let cores = (0..1024).rev().filter(|core| allowed.is_set(*core)).take(cores).collect();
    let clock = Clock { cycles: tsc::cycles, hertz: tsc::hertz() };
    Engine::start(EngineConfig { cores, idle: IdlePolicy::Adaptive, clock }).unwrap()
}

/// One whose clock runs 256 times slower than the real one: a sender waits for 2.56 s, so that a test that is held up
/// on a busy machine still brings its buffers in time, and a worker that has no core for a second or two is not taken for held.
pub(super) fn patient_engine() -> Engine {
    patient_engine_of(parts::parts())
}

/// The same with as many workers, if there are cores.
pub(super) fn patient_engine_of(cores: usize) -> Engine {
    slow_engine(cores, IdlePolicy::Poll)
}

/// The same, of which idle workers sleep.
pub(super) fn patient_sleeping_engine() -> Engine {
    slow_engine(parts::parts(), IdlePolicy::Adaptive)
}

fn slow_engine(cores: usize, idle: IdlePolicy) -> Engine {
    beside();
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let cores = (0..1024).rev().filter(|core| allowed.is_set(*core)).take(cores).collect();
    let clock = Clock { cycles: || tsc::cycles() >> 8, hertz: tsc::hertz() >> 8 };
    Engine::start(EngineConfig { cores, idle, clock }).unwrap()
}

/// Hears nothing.
pub(super) struct Deaf;

impl Watcher for Deaf {
    fn pump_ended(&self) {}
}

/// A pump that holds its worker for as long as it is told to.
pub(super) struct Holder(Arc<std::sync::atomic::AtomicBool>);

impl ringway_engine::Pump for Holder {
    fn poll(&mut self, _: &ringway_engine::Budget, _: u64) -> ringway_engine::Polled {
        while self.0.load(std::sync::atomic::Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        ringway_engine::Polled::Idle
    }
    fn arm(&mut self) -> ringway_engine::Armed {
        ringway_engine::Armed::Sleep { within_ns: None }
    }
    fn disarm(&mut self) {}
    fn wake_sources(&self) -> Vec<std::os::fd::BorrowedFd<'_>> {
        Vec::new()
    }
}

/// Has the first worker held until the switch is off.
pub(super) fn hold(engine: &Engine) -> (Arc<std::sync::atomic::AtomicBool>, ringway_engine::Placed) {
    let holds = Arc::new(std::sync::atomic::AtomicBool::new(true));
    let pump = Box::new(Holder(Arc::clone(&holds)));
    let placed = engine.place(engine.cores()[0], "holder", pump, Arc::new(Deaf)).unwrap();
    let begun = Instant::now();
    // Another pump's worker may be without a CPU for as long.
    while !engine.stuck(Duration::from_millis(2)).iter().any(|stuck| stuck.pump == "holder") {
        assert!(begun.elapsed() < SOON);
    }
    (holds, placed)
}

/// Runs a test of this file in a process of its own, whose limits it may change. True: this is that process.
pub(super) fn is_alone(test: &str) -> bool {
    if std::env::var_os("RINGWAY_ALONE").is_some() {
        return true;
    }
    let mut command = std::process::Command::new(std::env::current_exe().unwrap());
    let output = command.args(["--exact", test]).env("RINGWAY_ALONE", "1").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    false
}

/// Lets this process open `more` descriptors, and does something then.
pub(super) fn with_descriptors<T>(more: u64, what: impl FnOnce() -> T) -> T {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let before = getrlimit(Resource::Nofile);
    let open = |fd: &u64| std::path::Path::new(&format!("/proc/self/fd/{fd}")).symlink_metadata().is_ok();
    // The number below which so many are free.
    let limit = (0..).filter(|fd| !open(fd)).nth(more as usize).unwrap();
    setrlimit(Resource::Nofile, Rlimit { current: Some(limit), maximum: before.maximum }).unwrap();
    let done = what();
    setrlimit(Resource::Nofile, before).unwrap();
    done
}
