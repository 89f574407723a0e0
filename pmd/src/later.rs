//! Work that may wait, for threads that may not: control drops a device whose fabric is being changed, or whose interface
//! has to be taken away by the kernel, and leaves that to a thread of its own, one for the process, which is started when it
//! is needed first.
//!
//! It does one thing after the other, in the order given; what cannot be done yet is tried again, and holds up nothing.
//! What is asked for its result ([`within`]) has a thread of its own.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Something to do; true once it is done.
type Job = Box<dyn FnMut() -> bool + Send>;

/// The way to the thread, once it runs.
static THREAD: Mutex<Option<Sender<Job>>> = Mutex::new(None);

/// What was given and is not done.
static LEFT: AtomicUsize = AtomicUsize::new(0);

/// Has something done, now and then until it says that it is. Never waits.
pub fn run_until(job: impl FnMut() -> bool + Send + 'static) {
    LEFT.fetch_add(1, Ordering::Relaxed);
    let mut thread = THREAD.lock().unwrap_or_else(PoisonError::into_inner);
    if thread.is_none() {
        let (sender, receiver) = channel();
        let started = std::thread::Builder::new().name("rw-later".to_owned()).spawn(move || work(&receiver));
        // Without a thread, what is given waits for the next attempt to start one.
        *thread = started.is_ok().then_some(sender);
    }
    match &*thread {
        Some(sender) => {
            let _ = sender.send(Box::new(job));
        }
        // The host gives no thread: it is left undone, as the process is about to fail anyway.
        None => {
            LEFT.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Has something done once. Never waits.
pub fn run(job: impl FnOnce() + Send + 'static) {
    let mut job = Some(job);
    run_until(move || {
        if let Some(job) = job.take() {
            job();
        }
        true
    });
}

/// Has something done on a thread of its own, and waits so long for it. None: it is not done yet; what comes of it is
/// dropped on that thread.
pub fn within<T: Send + 'static>(time: Duration, job: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let (told, done) = channel();
    let thread = std::thread::Builder::new().name("rw-within".to_owned());
    thread.spawn(move || drop(told.send(job()))).ok()?;
    done.recv_timeout(time).ok()
}

/// Waits until all that was given is done, for a process that ends. False: not in time.
pub fn settle(within: Duration) -> bool {
    let begun = Instant::now();
    while LEFT.load(Ordering::Relaxed) > 0 {
        if begun.elapsed() >= within {
            return false;
        }
        std::thread::sleep(STEP);
    }
    true
}

/// The thread.
fn work(jobs: &Receiver<Job>) {
    let mut again: Vec<Job> = Vec::new();
    loop {
        let next = if again.is_empty() {
            jobs.recv().map_err(|_| RecvTimeoutError::Disconnected)
        } else {
            jobs.recv_timeout(RETRY)
        };
        match next {
            Ok(job) => again.extend(attempt(job)),
            Err(RecvTimeoutError::Timeout) => {
                again = std::mem::take(&mut again).into_iter().filter_map(attempt).collect();
            }
            Err(RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Does a job; it comes back if it is not done. One that panics is.
fn attempt(mut job: Job) -> Option<Job> {
    let is_done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let is_done = job();
        (is_done, job)
    }));
    match is_done {
        Ok((false, job)) => Some(job),
        Ok((true, _)) | Err(_) => {
            LEFT.fetch_sub(1, Ordering::Relaxed);
            None
        }
    }
}

/// Between two attempts at what could not be done.
const RETRY: Duration = Duration::from_millis(200);
const STEP: Duration = Duration::from_millis(1);

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_cannot_be_done_yet_is_tried_again_and_holds_up_nothing() {
        let (tries, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let begun = Instant::now();
        {
            let tries = Arc::clone(&tries);
            run_until(move || tries.fetch_add(1, Ordering::SeqCst) == 2);
        }
        run(|| panic!("planted"));
        {
            let done = Arc::clone(&done);
            run(move || {
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        assert!(begun.elapsed() < RETRY, "the caller did not wait");
        assert!(settle(Duration::from_secs(20)));
        assert_eq!((tries.load(Ordering::SeqCst), done.load(Ordering::SeqCst)), (3, 1));
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
    }
}
