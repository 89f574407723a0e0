//! What the engine's tests share: a clock in nanoseconds, and pumps that tell what happens to them.
#![allow(dead_code, reason = "each test binary uses its part")]
#![allow(clippy::panic, reason = "test pumps panic on demand")]

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use ringway_engine::{Armed, Budget, Clock, Engine, EngineConfig, IdlePolicy, Polled, Pump, Watcher};
use rustix::event::{EventfdFlags, eventfd};

/// Generous: it bounds how long a broken engine hangs a test, and is never waited for by a sound one.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) fn clock() -> Clock {
    fn nanoseconds() -> u64 {
        static START: OnceLock<Instant> = OnceLock::new();
        START.get_or_init(Instant::now).elapsed().as_nanos() as u64 + 1
    }
    Clock { cycles: nanoseconds, hertz: 1_000_000_000 }
}

/// The cores that this process may use, two at most.
pub(crate) fn cores() -> Vec<usize> {
    let mask = rustix::thread::sched_getaffinity(None).expect("affinity");
    (0..rustix::thread::CpuSet::MAX_CPU).filter(|&core| mask.is_set(core)).take(2).collect()
}

pub(crate) fn engine(cores: &[usize], idle: IdlePolicy) -> Engine {
    Engine::start(EngineConfig { cores: cores.to_vec(), idle, clock: clock() }).expect("starts")
}

/// Waits for a condition, for long; then fails with what was waited for.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < LONG, "waited in vain until {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// Tells a background thread of a test to end, also when the test fails.
#[derive(Default)]
pub(crate) struct Stop(pub(crate) AtomicBool);

impl Stop {
    pub(crate) fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    pub(crate) fn when_dropped(&self) -> impl Drop + '_ {
        struct Guard<'a>(&'a Stop);
        impl Drop for Guard<'_> {
            fn drop(&mut self) {
                self.0.0.store(true, Ordering::SeqCst);
            }
        }
        Guard(self)
    }
}

pub(crate) fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).expect("eventfd")
}

pub(crate) fn kick(fd: &OwnedFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).expect("eventfd takes it");
}

/// What a test pump and its test share: a queue that is only a number, and notes of all calls.
#[derive(Default)]
pub(crate) struct Queue {
    /// Work that waits.
    pub(crate) work: AtomicU64,
    /// Whether the pump wants kicks.
    pub(crate) wants_kick: AtomicBool,
    pub(crate) kick: OnceLock<OwnedFd>,
    pub(crate) done: AtomicU64,
    pub(crate) polls: AtomicU64,
    pub(crate) arms: AtomicU64,
    pub(crate) disarms: AtomicU64,
    pub(crate) stops: AtomicU64,
    /// Set by the test once the pump was given back: any call from then on is counted as misuse.
    pub(crate) given_back: AtomicBool,
    pub(crate) misused: AtomicU32,
    /// The thread that dropped the pump.
    pub(crate) dropped_on: OnceLock<String>,
    pub(crate) ended: AtomicBool,
    /// Which call panics.
    pub(crate) panics_in: AtomicU32,
    pub(crate) in_flight: AtomicBool,
    pub(crate) blocked: AtomicBool,
    pub(crate) within_ns: AtomicU64,
    pub(crate) cannot_sleep: AtomicBool,
}

pub(crate) const IN_POLL: u32 = 1;
pub(crate) const IN_ARM: u32 = 2;
pub(crate) const IN_DISARM: u32 = 3;
pub(crate) const IN_BEGIN_STOP: u32 = 4;
pub(crate) const IN_DROP: u32 = 5;

impl Queue {
    pub(crate) fn new() -> Arc<Queue> {
        Arc::new(Queue::default())
    }

    pub(crate) fn with_kick() -> Arc<Queue> {
        let queue = Queue::new();
        queue.kick.set(event()).expect("first");
        queue
    }

    /// As a guest does: publish, fence, kick if it is asked for.
    pub(crate) fn send(&self, n: u64) {
        self.work.fetch_add(n, Ordering::Release);
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.wants_kick.load(Ordering::Relaxed) {
            kick(self.kick.get().expect("it was given a kick"));
        }
    }

    pub(crate) fn done(&self) -> u64 {
        self.done.load(Ordering::Acquire)
    }

    pub(crate) fn read(&self, counter: impl Fn(&Queue) -> &AtomicU64) -> u64 {
        counter(self).load(Ordering::Relaxed)
    }

    fn called(&self, place: u32) {
        if self.given_back.load(Ordering::SeqCst) {
            self.misused.fetch_add(1, Ordering::SeqCst);
        }
        if self.panics_in.load(Ordering::Relaxed) == place {
            panic!("planted in call {place}");
        }
    }
}

impl Watcher for Queue {
    fn pump_ended(&self) {
        self.ended.store(true, Ordering::SeqCst);
    }
}

pub(crate) struct TestPump(pub(crate) Arc<Queue>);

impl TestPump {
    pub(crate) fn new(queue: &Arc<Queue>) -> Box<TestPump> {
        Box::new(TestPump(Arc::clone(queue)))
    }
}

impl Pump for TestPump {
    fn poll(&mut self, budget: &Budget, _now: u64) -> Polled {
        self.0.called(IN_POLL);
        self.0.polls.fetch_add(1, Ordering::Relaxed);
        let waiting = self.0.work.load(Ordering::Acquire);
        if waiting == 0 {
            return Polled::Idle;
        }
        if self.0.blocked.load(Ordering::Relaxed) {
            return Polled::Blocked;
        }
        let taken = waiting.min(u64::from(budget.chains));
        self.0.work.fetch_sub(taken, Ordering::Relaxed);
        self.0.done.fetch_add(taken, Ordering::Release);
        Polled::Moved(taken as u32)
    }

    fn arm(&mut self) -> Armed {
        self.0.called(IN_ARM);
        self.0.arms.fetch_add(1, Ordering::Relaxed);
        if self.0.cannot_sleep.load(Ordering::Relaxed) {
            return Armed::CannotSleep;
        }
        self.0.wants_kick.store(true, Ordering::Relaxed);
        std::sync::atomic::fence(Ordering::SeqCst);
        if self.0.work.load(Ordering::Acquire) != 0 && !self.0.blocked.load(Ordering::Relaxed) {
            self.0.wants_kick.store(false, Ordering::Relaxed);
            return Armed::HasWork;
        }
        let within_ns = self.0.within_ns.load(Ordering::Relaxed);
        Armed::Sleep { within_ns: (within_ns != 0).then_some(within_ns) }
    }

    fn disarm(&mut self) {
        self.0.called(IN_DISARM);
        self.0.disarms.fetch_add(1, Ordering::Relaxed);
        self.0.wants_kick.store(false, Ordering::Relaxed);
    }

    fn begin_stop(&mut self) -> bool {
        self.0.called(IN_BEGIN_STOP);
        self.0.stops.fetch_add(1, Ordering::Relaxed);
        !self.0.in_flight.load(Ordering::Acquire)
    }

    fn stopped(&mut self) -> bool {
        self.0.called(u32::MAX);
        !self.0.in_flight.load(Ordering::Acquire)
    }

    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        self.0.kick.get().map(AsFd::as_fd).into_iter().collect()
    }
}

impl Drop for TestPump {
    fn drop(&mut self) {
        let thread = std::thread::current();
        let _ = self.0.dropped_on.set(thread.name().unwrap_or("unnamed").to_owned());
        if self.0.panics_in.load(Ordering::Relaxed) == IN_DROP {
            panic!("planted in drop");
        }
    }
}
