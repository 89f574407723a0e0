//! What functions tell by interrupts that are no queue's: that their configuration changed, that the host wants them back; and
//! what is looked for now and then where none tells it. One thread of the process waits for all of it, started when it is needed
//! first.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};

/// Somebody who is told. Not told any more once it is dropped; may be told a last time meanwhile.
pub struct Listening {
    id: u64,
    fd: Arc<OwnedFd>,
}

impl fmt::Debug for Listening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Listening").field("id", &self.id).finish_non_exhaustive()
    }
}

type Told = Arc<dyn Fn() + Send + Sync>;

struct Listener {
    epoll: OwnedFd,
    all: Mutex<All>,
}

#[derive(Default)]
struct All {
    /// The id of the next.
    next: u64,
    /// By id: what signals, and who is told.
    told: BTreeMap<u64, (Arc<OwnedFd>, Told)>,
}

static LISTENER: OnceLock<Option<Listener>> = OnceLock::new();

impl Listening {
    /// Has `told` called, on the thread for all, whenever the descriptor that comes with it is signalled; it must not wait.
    ///
    /// # Errors
    /// The host has no thread or no descriptor for it.
    pub fn start(told: impl Fn() + Send + Sync + 'static) -> io::Result<Listening> {
        Listening::on(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?, told)
    }

    /// Has `told` called so each time that a period, below a second, has gone by.
    ///
    /// # Errors
    /// As for [`Listening::start`].
    pub fn every(period: Duration, told: impl Fn() + Send + Sync + 'static) -> io::Result<Listening> {
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
        let period = Timespec { tv_sec: 0, tv_nsec: period.subsec_nanos().into() };
        let times = Itimerspec { it_interval: period, it_value: period };
        timerfd_settime(&timer, TimerfdTimerFlags::empty(), &times)?;
        Listening::on(timer, told)
    }

    fn on(fd: OwnedFd, told: impl Fn() + Send + Sync + 'static) -> io::Result<Listening> {
        let listener = LISTENER.get_or_init(Listener::start).as_ref();
        let listener =
            listener.ok_or_else(|| io::Error::other("the thread that waits for interrupts is missing"))?;
        let fd = Arc::new(fd);
        let mut all = listener.all.lock().unwrap_or_else(PoisonError::into_inner);
        let id = all.next;
        epoll::add(&listener.epoll, &fd, epoll::EventData::new_u64(id), epoll::EventFlags::IN)?;
        all.next += 1;
        all.told.insert(id, (Arc::clone(&fd), Arc::new(told)));
        Ok(Listening { id, fd })
    }

    /// What an interrupt has to signal.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let Some(Some(listener)) = LISTENER.get() else { return };
        // It was added, and is open.
        let _ = epoll::delete(&listener.epoll, &self.fd);
        let mut all = listener.all.lock().unwrap_or_else(PoisonError::into_inner);
        let told = all.told.remove(&self.id);
        drop(all);
        // What it holds may take its time to go.
        drop(told);
    }
}

impl Listener {
    fn start() -> Option<Listener> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC).ok()?;
        let thread = std::thread::Builder::new().name("rw-pci-events".to_owned());
        thread.spawn(|| LISTENER.wait().iter().for_each(Listener::listen)).ok()?;
        Some(Listener { epoll, all: Mutex::default() })
    }

    fn listen(&self) {
        let mut events = Vec::with_capacity(EVENTS);
        loop {
            events.clear();
            if epoll::wait(&self.epoll, rustix::buffer::spare_capacity(&mut events), None).is_err() {
                // Interrupted.
                continue;
            }
            for event in &events {
                let told = {
                    let all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
                    let Some((fd, told)) = all.told.get(&event.data.u64()) else { continue };
                    let _ = rustix::io::read(fd, &mut [0u8; 8]);
                    Arc::clone(told)
                };
                told();
            }
            // One that interrupts for ever is heard as often.
            std::thread::sleep(PAUSE);
        }
    }
}

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);
/// Events that are taken at once.
const EVENTS: usize = 16;

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::time::Instant;

    use super::*;

    #[test]
    fn who_looks_now_and_then_is_told_each_time_and_not_once_it_is_gone() {
        let count = Arc::new(AtomicU32::new(0));
        let theirs = Arc::clone(&count);
        let told = move || {
            theirs.fetch_add(1, Ordering::SeqCst);
        };
        let begun = Instant::now();
        let looking = Listening::every(Duration::from_millis(20), told).unwrap();
        while count.load(Ordering::SeqCst) < 3 {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::yield_now();
        }
        assert!(begun.elapsed() >= Duration::from_millis(60));
        drop(looking);
        // A last time, maybe.
        let last = count.load(Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(110));
        assert!(count.load(Ordering::SeqCst) <= last + 1);
    }

    #[test]
    fn who_listens_is_told_each_time_and_not_once_it_is_gone() {
        let counts = [Arc::new(AtomicU32::new(0)), Arc::new(AtomicU32::new(0))];
        let [one, other] = counts.clone().map(|count| {
            let told = move || {
                count.fetch_add(1, Ordering::SeqCst);
            };
            Listening::start(told).unwrap()
        });
        let signal = |listening: &Listening| rustix::io::write(&*listening.fd, &1u64.to_ne_bytes()).unwrap();
        let wait = |count: &AtomicU32, wanted| {
            let begun = Instant::now();
            while count.load(Ordering::SeqCst) < wanted {
                assert!(begun.elapsed() < Duration::from_secs(20));
                std::thread::yield_now();
            }
        };
        for wanted in 1..=3 {
            signal(&one);
            wait(&counts[0], wanted);
        }
        let fd = Arc::clone(&one.fd);
        drop(one);
        rustix::io::write(&*fd, &1u64.to_ne_bytes()).unwrap();
        signal(&other);
        wait(&counts[1], 1);
        assert_eq!(counts[0].load(Ordering::SeqCst), 3);
    }

    #[test]
    fn who_is_interrupted_again_and_again_is_told_now_and_then() {
        let count = Arc::new(AtomicU32::new(0));
        let counted = Arc::clone(&count);
        let told = move || {
            counted.fetch_add(1, Ordering::SeqCst);
        };
        let listening = Listening::start(told).unwrap();
        let begun = Instant::now();
        while begun.elapsed() < 20 * PAUSE || count.load(Ordering::SeqCst) == 0 {
            assert!(begun.elapsed() < Duration::from_secs(20));
            rustix::io::write(&*listening.fd, &1u64.to_ne_bytes()).unwrap();
        }
        let told = count.load(Ordering::SeqCst);
        let most = begun.elapsed().as_millis() / PAUSE.as_millis() + 2;
        assert!(u128::from(told) <= most, "{told} of {most}");
    }
}
