//! The watchdog: frees a thread that hangs in a write to a peer's eventfd (see [`ringway_pmd::interrupt`]): a worker in a
//! call, a session that tells of an error.
//!
//! One thread with a small stack, which looks at the workers a hundred times a second: a look costs some loads and no
//! lock, so an idle daemon does not feel it. A worker that was merely held up by another task is interrupted to no
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
