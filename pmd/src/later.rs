//! Work that may wait, for threads that may not: control drops a device whose fabric is being changed, or whose interface
//! has to be taken away by the kernel, and leaves that to a thread of its own, one for the process, which is started when it
//! is needed first.
//!
//! It does one thing after the other, in the order given; what cannot be done yet is tried again. An attempt may wait for a worker: of a bridge
//! in parts for a second and a half, where one is found held. What is asked for its result ([`within`]) has a thread of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Something to do; true once it is done.
type Job = Box<dyn FnMut() -> bool + Send>;

/// What was given, and the thread that does it.
static LINE: Line = Line::new();
/// What is let go of: apart, since one that hangs in the kernel must not keep others' queues from being served.
static DISPOSALS: Line = Line::new();

/// Has something done, now and then until it says that it is. Never waits.
pub fn run_until(job: impl FnMut() -> bool + Send + 'static) {
    LINE.give(Box::new(job), || spawn("rw-later", &LINE));
}

/// Has something let go of that may take the kernel or hardware its time, once. Never waits, and holds up nothing but what is
/// let go of after it.
pub fn dispose(job: impl FnOnce() + Send + 'static) {
    let mut job = Some(job);
    let job = move || {
        if let Some(job) = job.take() {
            job();
        }
        true
    };
    DISPOSALS.give(Box::new(job), || spawn("rw-dispose", &DISPOSALS));
}

/// Has something done on a thread of its own, and waits so long for it. None: it is not done yet; what comes of it is
/// dropped on that thread.
pub fn within<T: Send + 'static>(time: Duration, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    within_by(time, job, |work| std::thread::Builder::new().name("rw-within".to_owned()).spawn(work).is_ok())
}

/// See [`within`]. `spawn` tells whether the host gave a thread; without one the job waits its turn like any other, and is
/// neither done nor dropped on the caller's. It goes to the line of what is let go of: a job that hangs holds up
/// others there, and no fabric.
fn within_by<T: Send + 'static>(
    time: Duration,
    job: impl FnOnce() -> T + Send + 'static,
    spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> bool,
) -> Option<T> {
    let (told, done) = channel();
    // Where both can take it: who gives no thread drops what it was given.
    let job = Arc::new(Mutex::new(Some(move || drop(told.send(job())))));
    let again = Arc::clone(&job);
    let take = |job: &Mutex<Option<_>>| job.lock().unwrap_or_else(PoisonError::into_inner).take();
    let work = move || {
        if let Some(job) = take(&job) {
            job();
        }
    };
    if !spawn(Box::new(work))
        && let Some(job) = take(&again)
    {
        dispose(job);
    }
    done.recv_timeout(time).ok()
}

/// Waits until all that was given is done, for a process that ends. False: not in time.
pub fn settle(within: Duration) -> bool {
    let begun = Instant::now();
    while [&LINE, &DISPOSALS].iter().any(|line| line.left.load(Ordering::Relaxed) > 0) {
        if begun.elapsed() >= within {
            return false;
        }
        std::thread::sleep(STEP);
    }
    true
}

/// Jobs on their way to the thread.
struct Line {
    waiting: Mutex<Waiting>,
    news: Condvar,
    /// What was given and is not done.
    left: AtomicUsize,
}

struct Waiting {
    jobs: Vec<Job>,
    has_thread: bool,
}

impl Line {
    const fn new() -> Line {
        let waiting = Waiting { jobs: Vec::new(), has_thread: false };
        Line { waiting: Mutex::new(waiting), news: Condvar::new(), left: AtomicUsize::new(0) }
    }

    /// Hands a job over. `start` starts the thread and tells whether the host gave one; else the job waits for the next that
    /// is given, which tries again.
    fn give(&self, job: Job, start: impl FnOnce() -> bool) {
        self.left.fetch_add(1, Ordering::Relaxed);
        let mut waiting = self.lock();
        waiting.jobs.push(job);
        waiting.has_thread = waiting.has_thread || start();
        self.news.notify_one();
    }

    /// The thread's: what was given since, once there is any or the time has come.
    fn take(&self, due: Option<Instant>) -> Vec<Job> {
        let mut waiting = self.lock();
        while waiting.jobs.is_empty() {
            waiting = match due.map(|due| due.saturating_duration_since(Instant::now())) {
                Some(Duration::ZERO) => break,
                Some(left) => self.news.wait_timeout(waiting, left).unwrap_or_else(PoisonError::into_inner).0,
                None => self.news.wait(waiting).unwrap_or_else(PoisonError::into_inner),
            };
        }
        std::mem::take(&mut waiting.jobs)
    }

    /// Does a job; it comes back if it is not done. One that panics is.
    fn attempt(&self, mut job: Job) -> Option<Job> {
        let is_done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            let is_done = job();
            (is_done, job)
        }));
        match is_done {
            Ok((false, job)) => Some(job),
            Ok((true, _)) | Err(_) => {
                self.left.fetch_sub(1, Ordering::Relaxed);
                None
            }
        }
    }

    /// The thread. However many new jobs there are, those that could not be done are tried again when they are due.
    fn work(&self) {
        let (mut again, mut due) = (Vec::new(), Instant::now());
        loop {
            let was_empty = again.is_empty();
            again.extend(
                self.take((!was_empty).then_some(due)).into_iter().filter_map(|job| self.attempt(job)),
            );
            if was_empty {
                due = Instant::now() + RETRY;
            } else if Instant::now() >= due {
                again = again.into_iter().filter_map(|job| self.attempt(job)).collect();
                due = Instant::now() + RETRY;
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Starts a line's thread. False: the host gives none.
fn spawn(name: &str, line: &'static Line) -> bool {
    std::thread::Builder::new().name(name.to_owned()).spawn(|| line.work()).is_ok()
}

/// Between two attempts at what could not be done.
const RETRY: Duration = Duration::from_millis(200);
const STEP: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;

    use super::*;

    fn run(job: impl FnOnce() + Send + 'static) {
        let mut job = Some(job);
        run_until(move || {
            if let Some(job) = job.take() {
                job();
            }
            true
        });
    }

    #[test]
    fn what_cannot_be_done_yet_is_tried_again_and_holds_up_nothing() {
        let (tries, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let may_end = Arc::new(AtomicBool::new(false));
        {
            let (tries, may_end) = (Arc::clone(&tries), Arc::clone(&may_end));
            run_until(move || tries.fetch_add(1, Ordering::SeqCst) >= 2 && may_end.load(Ordering::SeqCst));
        }
        run(|| panic!("planted"));
        {
            let done = Arc::clone(&done);
            run(move || {
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        // A caller that waited would wait for ever.
        may_end.store(true, Ordering::SeqCst);
        assert!(settle(Duration::from_secs(20)));
        assert!(tries.load(Ordering::SeqCst) >= 3 && done.load(Ordering::SeqCst) == 1);
    }

    #[test]
    fn what_cannot_be_done_yet_is_tried_again_however_much_is_given() {
        let tries = Arc::new(AtomicUsize::new(0));
        let told = Arc::clone(&tries);
        run_until(move || told.fetch_add(1, Ordering::SeqCst) == 3);
        let begun = Instant::now();
        // Always sooner than the next attempt would be if each put it off.
        while tries.load(Ordering::SeqCst) < 4 {
            assert!(begun.elapsed() < RETRY * 100, "{tries:?}");
            run(|| {});
            std::thread::sleep(RETRY / 20);
        }
    }

    #[test]
    fn what_is_given_while_there_is_no_thread_waits_for_one() {
        let line = Line::new();
        let done = Arc::new(AtomicUsize::new(0));
        for has_thread in [false, false, true] {
            let done = Arc::clone(&done);
            let job = move || done.fetch_add(1, Ordering::SeqCst) < 9;
            line.give(Box::new(job), || has_thread);
        }
        let jobs = line.take(None);
        assert_eq!((jobs.len(), line.left.load(Ordering::SeqCst)), (3, 3));
        assert!(jobs.into_iter().all(|job| line.attempt(job).is_none()));
        assert_eq!((done.load(Ordering::SeqCst), line.left.load(Ordering::SeqCst)), (3, 0));
        // It has one from now on.
        line.give(Box::new(|| true), || panic!("a second thread"));
    }

    #[test]
    fn what_is_not_done_in_time_is_waited_for_no_longer() {
        assert_eq!(within(Duration::from_secs(20), || 7), Some(7));
        let (release, held) = channel::<()>();
        let (told, done) = channel();
        let late = within(Duration::from_millis(20), move || {
            let _ = held.recv();
            told.send(()).unwrap();
        });
        assert_eq!(late, None);
        drop(release);
        done.recv_timeout(Duration::from_secs(20)).unwrap();
        // Nor on the caller's thread where the host gives none.
        let caller = std::thread::current().id();
        let by = within_by(Duration::from_secs(20), || std::thread::current().id(), |_| false);
        assert!(by.is_some_and(|by| by != caller));
    }
}
