//! A pump a group: the common way to serve queues. A driver makes the pump, this places it, moves it and takes it back.

use std::sync::Arc;
use std::time::Duration;

use ringway_engine::{HowEnded, PlaceError, Placed, Pump, Retired};

use super::{DriverError, Ended, Kept, Placer, QueueBinding, Queues, ServeError, ServedBy, Stopped, Stuck};

/// Makes pumps: what a driver brings.
pub trait MakePump {
    /// The pump of a group, for those of its queues that are started. Called anew, after the old one was taken back,
    /// whenever one of them starts, stops or changes.
    ///
    /// # Errors
    /// The queues cannot be served so.
    fn pump(&mut self, group: u16, queues: Vec<QueueBinding>) -> Result<Box<dyn Pump>, DriverError>;
    /// The cores that workers poll on, told before a pump is made.
    fn polled(&mut self, cores: &[usize]) {
        let _ = cores;
    }
}

/// See the module's head.
pub struct OwnPumps<M> {
    /// By group. Before what they are made of, so that they go first.
    running: Vec<Option<Running>>,
    /// What the pumps are made from.
    pub maker: M,
    kept: Kept,
}

struct Running {
    group: u16,
    placed: Placed,
    placer: Placer,
    /// It only stops, and leaves the guest's memory alone.
    is_given_up: bool,
    /// No worker took it then: what it works on is never freed, and its group serves nobody any more.
    is_lost: bool,
}

impl Running {
    /// Has a pump whose requests are under way stop where it was: what it has under way may be bound to that thread. False: it
    /// has stopped by now.
    fn give_up(&mut self, mut pump: Box<dyn Pump>) -> bool {
        pump.give_up();
        self.is_given_up = true;
        let Placer { name, engine, watcher, .. } = &self.placer;
        let name = format!("{name}.{}", self.group);
        match engine.place(self.placed.core(), &name, pump, Arc::clone(watcher)) {
            Ok(placed) => {
                self.placed = placed;
                self.placed.retire(Duration::ZERO).is_err()
            }
            Err(_) => {
                self.is_lost = true;
                true
            }
        }
    }
}

impl Drop for Running {
    /// A pump that was given back to nobody in time.
    fn drop(&mut self) {
        if let Ok(Retired { pump, end: HowEnded::Retired, in_flight: true }) =
            self.placed.retire(Duration::ZERO)
        {
            self.give_up(pump);
        }
    }
}

impl<M: std::fmt::Debug> std::fmt::Debug for OwnPumps<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OwnPumps").field("maker", &self.maker).finish_non_exhaustive()
    }
}

impl<M: MakePump> OwnPumps<M> {
    /// No queue is in service.
    pub fn new(maker: M) -> OwnPumps<M> {
        OwnPumps { maker, running: Vec::new(), kept: Kept::default() }
    }

    /// Takes the pump of a group back, if there is one; what it panicked with, if it did. One whose requests do not end in time
    /// is given up: it goes on until they have, and leaves the guest's memory alone.
    fn take_back(&mut self, group: u16, within: Duration) -> Result<Option<String>, Stuck> {
        let Some(slot) = self.running.get_mut(usize::from(group)) else { return Ok(None) };
        let Some(running) = slot else { return Ok(None) };
        if running.is_lost {
            return Err(Stuck::Device("requests under way did not end, and no worker took them".to_owned()));
        }
        // One that was given up before is not waited for again.
        let (within, is_given_up) =
            if running.is_given_up { (Duration::ZERO, true) } else { (within, false) };
        let retired = match running.placed.retire(within) {
            Err(PlaceError::Timeout { .. }) if !is_given_up => {
                running.placed.revoke(within.min(LET_GO_WITHIN))
            }
            retired => retired,
        };
        let end = match retired {
            Ok(Retired { pump, end: HowEnded::Retired, in_flight: true }) => {
                if running.give_up(pump) {
                    return Err(Stuck::Device(format!("requests under way did not end within {within:?}")));
                }
                HowEnded::Retired
            }
            Ok(retired) => retired.end,
            Err(PlaceError::Timeout { .. }) if is_given_up => {
                return Err(Stuck::Device("requests under way have not ended yet".to_owned()));
            }
            Err(error @ PlaceError::Timeout { .. }) => return Err(Stuck::Worker(error.to_string())),
            // The pump is gone with its engine.
            Err(_) => HowEnded::Retired,
        };
        *slot = None;
        match end {
            HowEnded::Panicked(message) => Ok(Some(message)),
            HowEnded::Retired => Ok(None),
        }
    }
}

impl<M: MakePump> Queues for OwnPumps<M> {
    fn start(
        &mut self,
        group: u16,
        queues: Vec<QueueBinding>,
        placer: &Placer,
        within: Duration,
    ) -> Result<(), ServeError> {
        // One that was not given back in time may still work on the rings: two on one ring would destroy it.
        self.take_back(group, within).map_err(|_| {
            ServeError::Refused(
                "what served this queue before has not ended yet: it has requests under way".into(),
            )
        })?;
        self.kept.note(group, &queues);
        self.maker.polled(&placer.engine.cores());
        let pump = self.maker.pump(group, queues).map_err(|error| ServeError::Refused(error.to_string()))?;
        let name = format!("{}.{group}", placer.name);
        let placed = placer.engine.place((placer.core_of)(group), &name, pump, placer.watcher.clone());
        let placed = placed.map_err(|error| ServeError::NotPlaced(error.to_string()))?;
        let at = usize::from(group);
        if self.running.len() <= at {
            self.running.resize_with(at + 1, || None);
        }
        self.running[at] =
            Some(Running { group, placed, placer: placer.clone(), is_given_up: false, is_lost: false });
        Ok(())
    }

    fn stop(&mut self, group: u16, within: Duration) -> Result<Stopped, Stuck> {
        let panicked = self.take_back(group, within)?;
        Ok(Stopped { positions: self.kept.take(group), ended: panicked.map(Ended::Panicked) })
    }

    fn served_by(&self, group: u16) -> Option<ServedBy> {
        let running = self.running.get(usize::from(group))?.as_ref()?;
        Some(ServedBy::Core(Some(running.placed.core())))
    }

    fn follow(&mut self, within: Duration) -> Result<(), ServeError> {
        let mut outcome = Ok(());
        for (group, running) in (0u16..).zip(&mut self.running) {
            let Some(running) = running else { continue };
            let core = (running.placer.core_of)(group);
            // What only stops is bound to where it is.
            if running.is_given_up || running.placed.core() == core {
                continue;
            }
            match running.placed.move_to(core, within) {
                Ok(()) => {}
                Err(error @ PlaceError::Timeout { .. }) => {
                    return Err(Stuck::Worker(error.to_string()).into());
                }
                Err(error) => outcome = Err(ServeError::NotPlaced(format!("group {group}: {error}"))),
            }
        }
        outcome
    }

    fn take_ended(&mut self, within: Duration) -> Vec<(u16, Ended)> {
        let ended = |running: &Option<Running>| running.as_ref().is_some_and(|own| own.placed.has_ended());
        let groups: Vec<u16> =
            (0u16..).zip(&self.running).filter(|(_, own)| ended(own)).map(|(group, _)| group).collect();
        let taken = groups.into_iter().filter_map(|group| Some((group, self.take_back(group, within).ok()?)));
        taken.map(|(group, message)| (group, Ended::Panicked(message.unwrap_or_default()))).collect()
    }
}

/// How long a worker may take to let go of a pump whose requests do not end.
const LET_GO_WITHIN: Duration = Duration::from_millis(500);

#[cfg(test)]
mod tests {
    use std::os::fd::BorrowedFd;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::Instant;

    use ringway_engine::{Armed, Budget, Clock, Engine, EngineConfig, IdlePolicy, Polled, Watcher};
    use ringway_ring::tsc;
    use rustix::thread::CpuSet;

    use super::*;

    /// What a pump is told, and tells.
    #[derive(Default)]
    struct Told {
        is_out: AtomicBool,
        is_given_up: AtomicBool,
        is_dropped: AtomicBool,
    }

    /// A pump with something under way that ends when it is told.
    struct Hung(Arc<Told>);

    impl Pump for Hung {
        fn poll(&mut self, _: &Budget, _: u64) -> Polled {
            Polled::Idle
        }
        fn arm(&mut self) -> Armed {
            Armed::Sleep { within_ns: Some(1_000_000) }
        }
        fn disarm(&mut self) {}
        fn begin_stop(&mut self) -> bool {
            self.stopped()
        }
        fn stopped(&mut self) -> bool {
            !self.0.is_out.load(Ordering::Relaxed)
        }
        fn give_up(&mut self) {
            self.0.is_given_up.store(true, Ordering::Relaxed);
        }
        fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
            Vec::new()
        }
    }

    impl Drop for Hung {
        fn drop(&mut self) {
            self.0.is_dropped.store(true, Ordering::Relaxed);
        }
    }

    struct Nobody;

    impl Watcher for Nobody {
        fn pump_ended(&self) {}
    }

    impl MakePump for Arc<Told> {
        fn pump(&mut self, _: u16, _: Vec<QueueBinding>) -> Result<Box<dyn Pump>, DriverError> {
            Ok(Box::new(Hung(Arc::clone(self))))
        }
    }

    #[test]
    fn pump_whose_requests_do_not_end_is_given_up_and_its_group_waits_until_they_have() {
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        let core = (0..CpuSet::MAX_CPU).find(|core| allowed.is_set(*core)).unwrap();
        let clock = Clock { cycles: tsc::cycles, hertz: tsc::hertz() };
        let engine =
            Engine::start(EngineConfig { cores: vec![core], idle: IdlePolicy::Adaptive, clock }).unwrap();
        let placer = Placer {
            name: "d0".to_owned(),
            engine: engine.clone(),
            core_of: Arc::new(move |_| core),
            watcher: Arc::new(Nobody),
        };
        let told = Arc::new(Told::default());
        told.is_out.store(true, Ordering::Relaxed);
        let mut pumps = OwnPumps::new(Arc::clone(&told));
        // Long for a worker to turn, on whatever machine.
        let moment = Duration::from_secs(2);
        pumps.start(0, Vec::new(), &placer, Duration::from_secs(20)).unwrap();
        let why = pumps.stop(0, moment).unwrap_err();
        assert!(matches!(&why, Stuck::Device(why) if why.contains("did not end within 2s")), "{why}");
        assert!(told.is_given_up.load(Ordering::Relaxed));
        // It is where it was, and nothing new is served before it has stopped.
        assert_eq!(pumps.served_by(0), Some(ServedBy::Core(Some(core))));
        let why = pumps.start(0, Vec::new(), &placer, moment).unwrap_err();
        assert!(why.to_string().contains("has not ended yet"), "{why}");
        assert!(!told.is_dropped.load(Ordering::Relaxed));
        told.is_out.store(false, Ordering::Relaxed);
        let begun = Instant::now();
        // Whoever asks is answered at once: it is not waited for again.
        while pumps.stop(0, Duration::from_secs(20)).is_err() {
            assert!(begun.elapsed() < Duration::from_secs(20));
            std::thread::sleep(Duration::from_millis(10));
        }
        while !told.is_dropped.load(Ordering::Relaxed) {
            assert!(begun.elapsed() < Duration::from_secs(20));
        }
        engine.shutdown();
    }
}
