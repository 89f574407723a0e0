//! The watchdog: frees a thread that hangs in a write to a peer's eventfd (see [`ringway_pmd::interrupt`]): a worker in a
//! call, a session that tells of an error.
//!
//! One thread with a small stack, which looks at the workers a hundred times a second: a look costs some loads, and a lock that
//! no worker takes, so an idle daemon does not feel it. A worker that was merely held up by another task is interrupted to no
//! effect: only a write that blocks can be.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ringway_engine::Engine;
use ringway_pmd::interrupt::{self, Interrupter};

/// A running watchdog. Stopped when dropped.
#[derive(Debug)]
pub(crate) struct Watchdog {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Watchdog {
    /// Watches the workers of `engine`.
    pub(crate) fn start(engine: Engine) -> std::io::Result<Watchdog> {
        let interrupter = Interrupter::install()?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&stop);
        let thread = std::thread::Builder::new()
            .name("rw-watchdog".to_owned())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let mut before = interrupt::writers();
                while !told.load(Ordering::Relaxed) {
                    std::thread::sleep(EVERY);
                    for stuck in engine.stuck(LONGEST_CALL) {
                        interrupter.interrupt(stuck.tid);
                    }
                    // Sessions that wrote at the last look too: their peers make them wait.
                    let now = interrupt::writers();
                    for tid in now.iter().zip(&before).filter(|(now, before)| now == before && **now != 0) {
                        interrupter.interrupt(*tid.0);
                    }
                    before = now;
                }
            })?;
        Ok(Watchdog { stop, thread: Some(thread) })
    }
}

impl Drop for Watchdog {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It panics nowhere; if it did, there is nothing to do about it here.
            let _ = thread.join();
        }
    }
}

/// Between two looks.
const EVERY: Duration = Duration::from_millis(10);

/// A pump's poll takes microseconds.
const LONGEST_CALL: Duration = Duration::from_millis(1);

const STACK_BYTES: usize = 128 * 1024;

#[cfg(test)]
mod tests {
    use std::os::fd::{BorrowedFd, OwnedFd};
    use std::time::Instant;

    use ringway_engine::{Armed, Budget, Clock, EngineConfig, IdlePolicy, Polled, Pump, Watcher};
    use ringway_ring::tsc;
    use rustix::event::{EventfdFlags, eventfd};

    use super::*;

    /// Writes once, in one of its methods, to a counter that is full.
    struct Blocks {
        method: &'static str,
        counter: OwnedFd,
        interrupted: Arc<AtomicBool>,
    }

    impl Blocks {
        fn at(&self, method: &str) {
            if method == self.method && !self.interrupted.load(Ordering::Acquire) {
                let written = rustix::io::write(&self.counter, &1u64.to_ne_bytes());
                assert_eq!(written, Err(rustix::io::Errno::INTR), "{method}");
                self.interrupted.store(true, Ordering::Release);
            }
        }
    }

    impl Pump for Blocks {
        fn poll(&mut self, _: &Budget, _: u64) -> Polled {
            self.at("poll");
            Polled::Idle
        }
        fn arm(&mut self) -> Armed {
            self.at("arm");
            Armed::Sleep { within_ns: Some(1_000_000) }
        }
        fn disarm(&mut self) {
            self.at("disarm");
        }
        fn begin_stop(&mut self) -> bool {
            self.at("begin_stop");
            false
        }
        fn stopped(&mut self) -> bool {
            self.at("stopped");
            true
        }
        fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
            Vec::new()
        }
    }

    struct Nobody;

    impl Watcher for Nobody {
        fn pump_ended(&self) {}
    }

    #[test]
    fn write_that_blocks_is_ended_in_every_method_of_a_pump() {
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        let core = (0..1024).find(|core| allowed.is_set(*core)).unwrap();
        let clock = Clock { cycles: tsc::cycles, hertz: tsc::hertz() };
        let config = EngineConfig { cores: vec![core], idle: IdlePolicy::Adaptive, clock };
        let engine = Engine::start(config).unwrap();
        let _watchdog = Watchdog::start(engine.clone()).unwrap();
        for method in ["poll", "arm", "disarm", "begin_stop", "stopped"] {
            let counter = eventfd(0, EventfdFlags::empty()).unwrap();
            rustix::io::write(&counter, &(u64::MAX - 1).to_ne_bytes()).unwrap();
            let interrupted = Arc::new(AtomicBool::new(false));
            let pump = Box::new(Blocks { method, counter, interrupted: Arc::clone(&interrupted) });
            let placed = engine.place(core, method, pump, Arc::new(Nobody));
            let Ok(mut placed) = placed else { unreachable!("{method}: not placed") };
            let begun = Instant::now();
            while !method.contains("stop") && !interrupted.load(Ordering::Acquire) {
                assert!(begun.elapsed() < Duration::from_secs(20), "{method} was not interrupted");
                std::thread::sleep(Duration::from_millis(1));
            }
            placed.retire(Duration::from_secs(20)).unwrap();
            assert!(interrupted.load(Ordering::Acquire), "{method}");
        }
    }
}
