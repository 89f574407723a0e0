//! What the tests have in common: an engine, devices, sessions on socket pairs, and what they report.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use ringway_control::session::{
    Command, DeviceShared, Report, RingReport, SessionHandle, SessionSetup, spawn,
};
use ringway_control::vhost_user::frontend::Frontend;
use ringway_engine::{Clock, Engine, EngineConfig, IdlePolicy};
use ringway_pmd::counters::QueueCounters;
use ringway_pmd::drivers::sim_net::SimNet;
use ringway_pmd::vdpa::{DeviceSpec, ManagementDevice, VdpaDevice};
use ringway_ring::position::PositionPage;
use ringway_ring::tsc;

/// How long anything that should happen may take on a machine that is busy.
pub const SOON: Duration = Duration::from_secs(20);

/// One engine with one worker for all tests.
pub fn engine() -> Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    let start = || {
        let allowed = rustix::thread::sched_getaffinity(None).unwrap();
        let core = (0..1024).rev().find(|core| allowed.is_set(*core)).unwrap();
        let clock = Clock { cycles: tsc::cycles, hertz: tsc::hertz() };
        Engine::start(EngineConfig { cores: vec![core], idle: IdlePolicy::Adaptive, clock }).unwrap()
    };
    ENGINE.get_or_init(start).clone()
}

/// A `sim/net` device.
pub fn sim_net(name: &str, pairs: u16) -> Box<dyn VdpaDevice> {
    let spec =
        DeviceSpec { name: name.to_owned(), max_vqp: Some(pairs), mtu: Some(9000), ..DeviceSpec::default() };
    SimNet::new().create(&spec).unwrap()
}

/// What control keeps of a device.
pub fn shared(name: &str, device: &dyn VdpaDevice) -> Arc<DeviceShared> {
    let queues = device.limits().max_vqs;
    let core = engine().cores()[0];
    Arc::new(DeviceShared {
        name: name.to_owned(),
        counters: (0..queues).map(|_| Arc::new(QueueCounters::default())).collect(),
        positions: PositionPage::anonymous().unwrap(),
        cores: (0..queues).map(|_| AtomicUsize::new(core)).collect(),
    })
}

/// A session and what it said.
pub struct Running {
    pub handle: SessionHandle,
    pub shared: Arc<DeviceShared>,
    receiver: Receiver<Report>,
    /// Everything reported so far.
    pub seen: Vec<Report>,
}

/// Starts a session for `device`; returns it and the peer's end of its socket.
pub fn start(device: Box<dyn VdpaDevice>, shared: Arc<DeviceShared>) -> (Running, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    (start_on(device, shared, ours), theirs)
}

/// Starts a session on a connected socket.
pub fn start_on(device: Box<dyn VdpaDevice>, shared: Arc<DeviceShared>, stream: UnixStream) -> Running {
    let (sender, receiver) = channel();
    let sender = Mutex::new(sender);
    let handle = spawn(SessionSetup {
        id: 1,
        device,
        shared: Arc::clone(&shared),
        stream,
        engine: engine(),
        reports: Arc::new(move |_, report| {
            // Nobody listens any more once a test is over.
            let _ = sender.lock().unwrap().send(report);
        }),
    })
    .unwrap();
    Running { handle, shared, receiver, seen: Vec::new() }
}

/// A session for a fresh `sim/net` with a front-end of ours.
pub fn sim_with_frontend(name: &str, pairs: u16) -> (Running, Frontend) {
    let device = sim_net(name, pairs);
    let shared = shared(name, &*device);
    let (running, stream) = start(device, shared);
    (running, Frontend::from_stream(stream))
}

/// A folder for sockets, removed with the value.
pub fn folder() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("v.sock");
    (folder, path)
}

impl Running {
    /// Waits for a report.
    pub fn wait_for<T>(&mut self, mut wanted: impl FnMut(&Report) -> Option<T>) -> T {
        let deadline = Instant::now() + SOON;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receiver.recv_timeout(left) {
                Ok(report) => {
                    let found = wanted(&report);
                    self.seen.push(report);
                    if let Some(found) = found {
                        return found;
                    }
                }
                Err(_) => panic!("did not come; reported: {:#?}", self.seen),
            }
        }
    }

    /// Waits until the rings are as wanted.
    pub fn wait_for_rings(&mut self, wanted: impl Fn(&[RingReport]) -> bool) -> Vec<RingReport> {
        self.wait_for(|report| match report {
            Report::Rings(rings) if wanted(rings) => Some(rings.clone()),
            _ => None,
        })
    }

    /// Waits for the next breach of the peer; returns its name.
    pub fn wait_for_breach(&mut self) -> &'static str {
        self.wait_for(|report| match report {
            Report::PeerMisbehaved { what, .. } => Some(*what),
            _ => None,
        })
    }

    /// Takes in what was reported meanwhile.
    pub fn collect(&mut self) {
        self.seen.extend(self.receiver.try_iter());
    }

    /// Waits for the end; returns the device and the reason.
    pub fn wait_for_end(mut self) -> (Option<Box<dyn VdpaDevice>>, String) {
        let deadline = Instant::now() + SOON;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.receiver.recv_timeout(left) {
                Ok(Report::Ended { device, reason }) => return (device, reason),
                Ok(report) => self.seen.push(report),
                Err(_) => panic!("did not end; reported: {:#?}", self.seen),
            }
        }
    }

    /// Closes it, and hands its device out.
    pub fn close(self) -> Box<dyn VdpaDevice> {
        assert!(self.handle.send(Command::Close));
        self.wait_for_end().0.expect("the device comes back")
    }
}
