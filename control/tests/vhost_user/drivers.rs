//! Drivers that fail: what becomes of the rings, the session and the device.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use ringway_control::frontends::life::status;
use ringway_control::frontends::session::{Command, Report};
use ringway_engine::{Armed, Budget, Engine, Polled, Pump};
use ringway_pmd::dma::{Cancel, MapError};
use ringway_pmd::net::nic::Nic;
use ringway_pmd::net::plan::Plan;
use ringway_pmd::net::{Mac, NetConfig};
use ringway_pmd::vdpa::{
    ClassOps, ConfigSpace, DriverError, Ended, Facts, MakePump, OwnPumps, QueueBinding, Queues, Stuck,
    VdpaDevice,
};
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::queue::Format;
use ringway_vhost_user::frontend::{Frontend, FrontendError};

use crate::support::*;

/// What fails.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// Every other pump panics at its first poll.
    Panics,
    /// Its pump does not come back from a poll for three seconds.
    Hangs,
    /// It makes no pump.
    NoPump,
    /// It accepts no features.
    NoFeatures,
    /// The host maps no memory for it.
    NoMemory,
    /// It does not come back from a reset.
    NoReset,
}

struct Flawed {
    flaw: Flaw,
    made: u32,
}

struct FlawedPump {
    flaw: Flaw,
    held: bool,
    // Kept, as a real pump keeps its rings.
    _queues: Vec<QueueBinding>,
}

impl Pump for FlawedPump {
    fn poll(&mut self, _: &Budget, _: u64) -> Polled {
        match self.flaw {
            Flaw::Panics => panic!("flawed"),
            Flaw::Hangs if !std::mem::replace(&mut self.held, true) => {
                // Much longer than it is waited for, also where the waiting takes its time.
                std::thread::sleep(Duration::from_secs(6));
                Polled::Idle
            }
            _ => Polled::Idle,
        }
    }
    fn arm(&mut self) -> Armed {
        Armed::Sleep { within_ns: None }
    }
    fn disarm(&mut self) {}
    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

impl MakePump for Flawed {
    fn pump(&mut self, _: u16, queues: Vec<QueueBinding>) -> Result<Box<dyn Pump>, DriverError> {
        self.made += 1;
        let flaw = match self.flaw {
            Flaw::NoPump => return Err(DriverError::Misconfigured("no pump today".into())),
            Flaw::Panics if self.made.is_multiple_of(2) => Flaw::NoFeatures,
            flaw => flaw,
        };
        Ok(Box::new(FlawedPump { flaw, held: false, _queues: queues }))
    }
}

struct FlawedDevice {
    nic: Nic,
    pumps: OwnPumps<Flawed>,
}

impl VdpaDevice for FlawedDevice {
    fn facts(&self) -> Facts {
        self.nic.facts()
    }
    fn config(&mut self) -> &mut dyn ConfigSpace {
        &mut self.nic
    }
    fn queues(&mut self) -> &mut dyn Queues {
        &mut self.pumps
    }
    fn class(&mut self) -> ClassOps<'_> {
        ClassOps::Net(&mut self.nic)
    }
    fn negotiated(&mut self, _: Features) -> Result<(), DriverError> {
        if self.pumps.maker.flaw == Flaw::NoFeatures {
            return Err(DriverError::PeerMisbehaved("not these".into()));
        }
        Ok(())
    }
    fn set_map(&mut self, map: Option<&Arc<GuestMap>>, _: Cancel<'_>) -> Result<(), MapError> {
        match map.and_then(|map| map.regions().first().map(|region| (region.gpa(), region.size()))) {
            Some((gpa, len)) if self.pumps.maker.flaw == Flaw::NoMemory => {
                Err(MapError::Host { gpa, len, source: std::io::Error::other("nothing can be pinned") })
            }
            _ => Ok(()),
        }
    }
    fn reset(&mut self, _: Duration) -> Result<(), Stuck> {
        if self.pumps.maker.flaw == Flaw::NoReset {
            return Err(Stuck::Device("the device does not come back".to_owned()));
        }
        Ok(())
    }
}

fn flawed(flaw: Flaw) -> Box<dyn VdpaDevice> {
    let config = NetConfig { mac: Mac([2; 6]), mtu: 1500, max_vq_pairs: 2, link_up: true };
    let nic = Nic::new(Plan { config, features: Features::VERSION_1 }, 64);
    Box::new(FlawedDevice { nic, pumps: OwnPumps::new(Flawed { flaw, made: 0 }) })
}

fn session_of(flaw: Flaw) -> (Running, Frontend) {
    // Its own worker: what hangs here must not hold up other tests.
    session_on(new_engine(), flaw)
}

/// Waits until the engine's worker is in a pump that hangs.
fn hangs(engine: &Engine) {
    eventually(|| !engine.stuck(Duration::from_millis(20)).is_empty());
}

fn session_on(engine: Engine, flaw: Flaw) -> (Running, Frontend) {
    let device = flawed(flaw);
    let shared = shared("flawed", &*device);
    let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
    let running = start_with(device, shared, ours, engine);
    (running, Frontend::from_stream(theirs))
}

#[test]
fn pump_that_panics_stops_its_rings_and_no_others() {
    let (mut running, mut frontend) = session_of(Flaw::Panics);
    let rig = Rig::new(Format::Split, 4);
    rig.introduce(&mut frontend);
    frontend.enable_ring(0, true).unwrap();
    rig.start_ring(&mut frontend, 0, 0);
    let message = running.wait_for(|report| match report {
        Report::PumpEnded { group: 0, how: Ended::Panicked(message) } => Some(message.clone()),
        _ => None,
    });
    assert!(message.starts_with("flawed"), "{message}");
    running.wait_for_rings(|rings| rings[0].fault == Some("pump_panicked") && !rings[0].started);
    assert_eq!(frontend.status().unwrap() & status::NEEDS_RESET, status::NEEDS_RESET);
    // Another group's pump, and after a reset the same group's.
    frontend.enable_ring(2, true).unwrap();
    rig.start_ring(&mut frontend, 2, 0);
    running.wait_for_rings(|rings| rings[2].core().is_some());
    frontend.reset_device().unwrap();
    assert_eq!(frontend.status().unwrap(), 0);
    assert!(running.close().facts().limits.max_vqs == 4);
}

#[test]
fn worker_that_hangs_costs_the_session_and_not_the_process() {
    let engine = new_engine();
    let (mut running, mut frontend) = session_on(engine.clone(), Flaw::Hangs);
    let rig = Rig::new(Format::Split, 4);
    rig.introduce(&mut frontend);
    frontend.enable_ring(0, true).unwrap();
    rig.start_ring(&mut frontend, 0, 0);
    running.wait_for_rings(|rings| rings[0].core().is_some());
    hangs(&engine);
    // The ring cannot be stopped, so its stop must not be answered.
    assert!(matches!(frontend.stop_ring(0), Err(FrontendError::Io(_))));
    // A host without a core to spare is no breach of the front-end's.
    let what = running.wait_for(|report| match report {
        Report::HostFailed { what, .. } => Some(*what),
        Report::PeerMisbehaved { what, .. } => Some(*what),
        _ => None,
    });
    assert_eq!(what, "worker_stuck");
    assert!(!running.seen.iter().any(|report| matches!(report, Report::PeerMisbehaved { .. })));
    let (_, reason) = running.wait_for_end();
    assert!(reason.starts_with("worker_stuck"), "{reason}");
}

#[test]
fn pump_that_a_hanging_worker_keeps_from_moving_ends_the_session() {
    let engine = engine_on(2);
    let Some(&other) = engine.cores().get(1) else {
        println!("left out: this needs two cores");
        return;
    };
    let (mut running, mut frontend) = session_on(engine.clone(), Flaw::Hangs);
    let rig = Rig::new(Format::Split, 4);
    rig.introduce(&mut frontend);
    frontend.enable_ring(0, true).unwrap();
    rig.start_ring(&mut frontend, 0, 0);
    running.wait_for_rings(|rings| rings[0].core().is_some());
    hangs(&engine);
    running.shared.cores[0].store(other, Ordering::Relaxed);
    assert!(running.handle.send(Command::Move));
    // Once it hangs no more, the worker lets go of the pump, and nobody would poll it.
    let (_, reason) = running.wait_for_end();
    assert!(reason.contains("did not let go"), "{reason}");
}

#[test]
fn session_of_a_hanging_worker_is_revoked_within_bounds() {
    let revoked_in = |queues: &[u32]| {
        let engine = new_engine();
        let (mut running, mut frontend) = session_on(engine.clone(), Flaw::Hangs);
        let rig = Rig::new(Format::Split, 4);
        rig.introduce(&mut frontend);
        for &queue in queues {
            frontend.enable_ring(queue, true).unwrap();
            rig.start_ring(&mut frontend, queue, 0);
        }
        running.wait_for_rings(|rings| queues.iter().all(|&queue| rings[queue as usize].core().is_some()));
        hangs(&engine);
        let began = Instant::now();
        assert!(running.handle.send(Command::Revoke));
        let (device, reason) = running.wait_for_end();
        assert!(device.is_none() && reason.contains("did not let go"), "{reason}");
        began.elapsed()
    };
    // A worker is waited for once, however many rings it has.
    let (one, two) = (revoked_in(&[0]), revoked_in(&[0, 2]));
    assert!(4 * two < 5 * one, "{two:?}, with one ring {one:?}");
}

#[test]
fn driver_without_pump_or_features_refuses_by_name() {
    let (mut running, mut frontend) = session_of(Flaw::NoPump);
    let rig = Rig::new(Format::Split, 4);
    rig.introduce(&mut frontend);
    frontend.enable_ring(1, true).unwrap();
    rig.start_ring(&mut frontend, 1, 0);
    running.wait_for_rings(|rings| rings[1].fault == Some("driver_refused") && rings[1].core().is_none());
    let (mut running, mut frontend) = session_of(Flaw::NoFeatures);
    frontend.handshake().unwrap();
    let refused = frontend.set_features(Features::VERSION_1);
    assert!(matches!(refused, Err(FrontendError::Refused { .. })), "{refused:?}");
    assert_eq!(running.wait_for_breach(), "features");
}

#[test]
fn memory_that_the_host_does_not_map_for_a_device_is_refused_and_the_host_named() {
    let (mut running, mut frontend) = session_of(Flaw::NoMemory);
    let rig = Rig::new(Format::Split, 4);
    frontend.handshake().unwrap();
    frontend.set_features(Features::VERSION_1).unwrap();
    let refused = frontend.set_mem_table(&[rig.region()]);
    assert!(matches!(refused, Err(FrontendError::Refused { .. })), "{refused:?}");
    let what = running.wait_for(|report| match report {
        Report::HostFailed { what, detail } => Some((*what, detail.clone())),
        _ => None,
    });
    assert!(what.0 == "memory_not_mapped" && what.1.contains("nothing can be pinned"), "{what:?}");
}

#[test]
fn device_that_does_not_come_back_from_a_reset_ends_its_session_and_is_not_given_back() {
    let (mut running, mut frontend) = session_of(Flaw::NoReset);
    frontend.handshake().unwrap();
    frontend.set_features(Features::VERSION_1).unwrap();
    let _ = frontend.reset_device();
    let what = running.wait_for(|report| match report {
        Report::HostFailed { what, .. } => Some(*what),
        _ => None,
    });
    assert_eq!(what, "device_stuck");
    let (device, reason) = running.wait_for_end();
    assert!(device.is_none() && reason.contains("does not come back"), "{reason}");
}
