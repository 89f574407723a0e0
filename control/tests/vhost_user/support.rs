//! What the tests have in common: an engine, devices, sessions on socket pairs, and what they report.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant};

use ringway_control::frontends::session::{
    Command, DeviceShared, Report, RingReport, SessionHandle, SessionSetup, spawn,
};
use ringway_engine::{Clock, Engine, EngineConfig, IdlePolicy};
use ringway_pmd::counters::QueueCounters;
use ringway_pmd::drivers::sim_blk::SimBlk;
use ringway_pmd::drivers::sim_net::SimNet;
use ringway_pmd::notify::EventFd;
use ringway_pmd::vdpa::{ClassSpec, DeviceHost, DeviceSpec, ManagementDevice, NetSpec, VdpaDevice};
use ringway_ring::features::Features;
use ringway_ring::guest::{GuestMap, Region};
use ringway_ring::layout::{DriverConfig, Layout};
use ringway_ring::memory::{HostMemory, PageKind};
use ringway_ring::position::{Position, PositionPage, PositionSlot};
use ringway_ring::queue::{Completion, DeviceRing, DriverBuffer, DriverRing, Format, QueueConfig, RingSize};
use ringway_ring::tsc;
use ringway_vhost_user::connection::{Broken, Frame, FrameReader, send_frame, wait_for};
use ringway_vhost_user::frontend::{Frontend, MemoryRegion, VringAddr};
use ringway_vhost_user::message::{FLAG_NEED_REPLY, FLAG_VERSION, Header, Request, decode_u64, protocol};
use rustix::event::PollFlags;

use crate::pace::Pace;

/// How long anything that should happen may take on a machine that is busy.
pub const SOON: Duration = Duration::from_secs(20);

/// One engine with one worker for all tests.
pub fn engine() -> Engine {
    static ENGINE: OnceLock<Engine> = OnceLock::new();
    ENGINE.get_or_init(new_engine).clone()
}

/// An engine with one worker.
pub fn new_engine() -> Engine {
    engine_on(1)
}

/// An engine with so many workers, fewer if there are not so many cores.
pub fn engine_on(cores: usize) -> Engine {
    engine_with(cores, IdlePolicy::Adaptive)
}

/// The same, whose workers do this when they are idle.
pub fn engine_with(cores: usize, idle: IdlePolicy) -> Engine {
    let allowed = rustix::thread::sched_getaffinity(None).unwrap();
    let cores = (0..1024).rev().filter(|core| allowed.is_set(*core)).take(cores).collect();
    let clock = Clock { cycles: tsc::cycles, hertz: tsc::hertz() };
    Engine::start(EngineConfig { cores, idle, clock }).unwrap()
}

/// A `sim/net` device.
pub fn sim_net(name: &str, pairs: u16) -> Box<dyn VdpaDevice> {
    let net = NetSpec { max_vqp: Some(pairs), mtu: Some(9000), ..NetSpec::default() };
    SimNet::new().create(&DeviceSpec::net(name, net), DeviceHost::unheard()).unwrap()
}

/// A `sim/blk` device of 1 MiB.
pub fn sim_blk(name: &str, queues: u16) -> Box<dyn VdpaDevice> {
    let attributes = [("size", "1M".to_owned()), ("num_queues", queues.to_string())];
    let attributes = attributes.map(|(name, value)| (name.to_owned(), value)).into();
    let spec = DeviceSpec { name: name.to_owned(), features: None, class: ClassSpec::Block, attributes };
    SimBlk::new().create(&spec, DeviceHost::unheard()).unwrap()
}

/// What control keeps of a device.
pub fn shared(name: &str, device: &dyn VdpaDevice) -> Arc<DeviceShared> {
    let queues = device.facts().limits.max_vqs;
    let core = engine().cores()[0];
    Arc::new(DeviceShared {
        name: name.to_owned(),
        counters: (0..queues).map(|_| Arc::new(QueueCounters::default())).collect(),
        positions: PositionPage::anonymous().unwrap(),
        records: None,
        lease: None,
        cores: (0..queues).map(|_| AtomicUsize::new(core)).collect(),
        log: Default::default(),
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
    start_with(device, shared, stream, engine())
}

/// Starts a session on a connected socket, its pumps on this engine.
pub fn start_with(
    device: Box<dyn VdpaDevice>,
    shared: Arc<DeviceShared>,
    stream: UnixStream,
    engine: Engine,
) -> Running {
    let (sender, receiver) = channel();
    let sender = Mutex::new(sender);
    let handle = spawn(SessionSetup {
        id: 1,
        device,
        shared: Arc::clone(&shared),
        stream,
        engine,
        lease: ringway_control::frontends::budget::Lease::alone(),
        reports: Arc::new(move |_, report| {
            // Nobody listens any more once a test is over.
            let _ = sender.lock().unwrap().send(report);
        }),
    })
    .unwrap();
    Running { handle, shared, receiver, seen: Vec::new() }
}

/// A session for a fresh `sim/net`.
pub fn start_sim(name: &str, pairs: u16) -> (Running, UnixStream) {
    let device = sim_net(name, pairs);
    let shared = shared(name, &*device);
    start(device, shared)
}

/// A session for a fresh `sim/net` with a front-end of ours.
pub fn sim_with_frontend(name: &str, pairs: u16) -> (Running, Frontend) {
    let (running, stream) = start_sim(name, pairs);
    (running, Frontend::from_stream(stream))
}

/// How long it takes to remove a device that nobody disturbs.
pub fn pace_of_revoking() -> Pace {
    Pace::of(|| {
        let (running, mut frontend) = sim_with_frontend("plain", 1);
        frontend.handshake().unwrap();
        assert!(running.handle.send(Command::Revoke));
        assert!(running.wait_for_end().0.is_none());
    })
}

/// So many times as long as that a removal may take.
pub const REVOKED_WITHIN: u32 = 50;

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
                Ok(Report::Ended { device, reason, .. }) => return (device, reason),
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

/// A guest's memory, as its front-end has it: one region.
pub struct RigMemory(Arc<Region>);

impl RigMemory {
    pub fn size(&self) -> u64 {
        self.0.size()
    }
    /// Where it is for the guest.
    pub fn gpa(&self) -> u64 {
        self.0.gpa()
    }
    /// Where it is for the front-end.
    pub fn address(&self) -> u64 {
        self.0.user_addr()
    }
    pub fn file(&self) -> BorrowedFd<'_> {
        self.0.file()
    }
}

/// Memory with rings and buffers of a guest that the tests drive by hand.
pub struct Rig {
    pub memory: RigMemory,
    pub map: Arc<GuestMap>,
    pub format: Format,
    pub features: Features,
    size: RingSize,
    queues: u64,
}

impl Rig {
    /// Where the guest's memory begins, as it sees it, unless it is elsewhere.
    pub const GPA: u64 = 0x4000_0000;
    /// Entries of each ring.
    pub const SIZE: u16 = 64;
    /// Bytes of each buffer.
    pub const BUFFER: u32 = 2048;
    const RING_ROOM: u64 = 16384;

    pub fn new(format: Format, queues: u16) -> Rig {
        Rig::within(format, queues, |bytes| {
            let memory = HostMemory::allocate_on(PageKind::Base, "rig", bytes).unwrap();
            Arc::clone(&memory.guest_map(Rig::GPA).unwrap().regions()[0])
        })
    }

    /// One in memory that others have, of so many bytes.
    pub fn within(format: Format, queues: u16, place: impl FnOnce(u64) -> Arc<Region>) -> Rig {
        let packed = if format == Format::Packed { Features::RING_PACKED } else { Features::NONE };
        let features = Features::VERSION_1 | packed;
        let queues = u64::from(queues);
        let size = RingSize::new(format, Rig::SIZE.into()).unwrap();
        let bytes = queues * (Rig::RING_ROOM + u64::from(Rig::SIZE) * u64::from(Rig::BUFFER));
        let region = place(bytes);
        let map = Arc::new(GuestMap::new(vec![Arc::clone(&region)]).unwrap());
        Rig { memory: RigMemory(region), map, format, features, size, queues }
    }

    /// The one region that holds it all.
    pub fn region(&self) -> MemoryRegion<'_> {
        MemoryRegion {
            gpa: self.memory.gpa(),
            size: self.memory.size(),
            user_addr: self.memory.address(),
            file_offset: self.memory.0.file_offset(),
            file: self.memory.file(),
        }
    }

    /// Addresses of a ring as the front-end names them.
    pub fn addr(&self, index: u32) -> VringAddr {
        let at = self.memory.address() + u64::from(index) * Rig::RING_ROOM;
        let areas = Layout::new(self.format, self.size).at(at);
        VringAddr { desc: areas.desc, driver: areas.driver, device: areas.device, log: None }
    }

    /// A fresh driver's side of a ring that starts at `position`.
    pub fn driver(&self, index: u32, position: Position) -> Box<dyn DriverRing> {
        let config = DriverConfig {
            size: self.size,
            features: self.features,
            map: Arc::clone(&self.map),
            areas: Layout::new(self.format, self.size)
                .at(self.memory.gpa() + u64::from(index) * Rig::RING_ROOM),
            position,
        };
        match self.format {
            Format::Split => Box::new(config.start_split().unwrap()),
            Format::Packed => Box::new(config.start_packed().unwrap()),
        }
    }

    /// The device's side of a ring, as a predecessor of the session had it that kept its position in `keeper`.
    pub fn predecessor(&self, index: u32, keeper: PositionSlot) -> Box<dyn DeviceRing> {
        let addr = self.addr(index);
        let config = QueueConfig {
            size: self.size,
            features: self.features,
            map: Arc::clone(&self.map),
            desc_user_addr: addr.desc,
            driver_user_addr: addr.driver,
            device_user_addr: addr.device,
            position: Position::START,
            keeper,
            skip_used: false,
        };
        match self.format {
            Format::Split => Box::new(config.activate_split().unwrap()),
            Format::Packed => Box::new(config.activate_packed().unwrap()),
        }
    }

    /// Guest address of a buffer.
    pub fn buffer(&self, queue: u32, n: u32) -> u64 {
        let buffers = u64::from(queue) * u64::from(Rig::SIZE) + u64::from(n % u32::from(Rig::SIZE));
        self.memory.gpa() + self.queues * Rig::RING_ROOM + buffers * u64::from(Rig::BUFFER)
    }

    /// Handshake, features, memory: all that comes before rings.
    pub fn introduce(&self, frontend: &mut Frontend) {
        frontend.handshake().unwrap();
        frontend.set_features(self.features).unwrap();
        frontend.set_mem_table(&[self.region()]).unwrap();
    }

    /// Starts a ring at a base; no descriptors: it is polled and never calls.
    pub fn start_ring(&self, frontend: &mut Frontend, index: u32, base: u32) {
        frontend.start_ring(index, Rig::SIZE.into(), base, self.addr(index), None, None).unwrap();
    }

    /// The base of a fresh ring.
    pub fn fresh(&self) -> u32 {
        Position::START.to_vhost_base(self.format)
    }
}

/// A queue pair driven by hand.
pub struct HandPair<'rig> {
    pub rig: &'rig Rig,
    pub rx: Box<dyn DriverRing>,
    pub tx: Box<dyn DriverRing>,
    /// Signalled when the device asks for a kick.
    pub kick: Option<Arc<EventFd>>,
    queue: u32,
    posted: u32,
    sent: u32,
}

impl<'rig> HandPair<'rig> {
    /// Fresh rings of pair `pair`, at `position`.
    pub fn new(rig: &'rig Rig, pair: u32, position: Position) -> HandPair<'rig> {
        let queue = pair * 2;
        HandPair {
            rig,
            rx: rig.driver(queue, position),
            tx: rig.driver(queue + 1, position),
            kick: None,
            queue,
            posted: 0,
            sent: 0,
        }
    }

    /// Starts and enables both rings at a base.
    pub fn start(&self, frontend: &mut Frontend, base: u32) {
        for queue in [self.queue, self.queue + 1] {
            self.rig.start_ring(frontend, queue, base);
            frontend.enable_ring(queue, true).unwrap();
        }
    }

    /// Posts receive buffers.
    pub fn post(&mut self, buffers: u32) {
        for _ in 0..buffers {
            let gpa = self.rig.buffer(self.queue, self.posted);
            let buffer = DriverBuffer { gpa, len: Rig::BUFFER, writable: true };
            self.rx.add(&[buffer], self.posted).unwrap();
            self.posted += 1;
        }
        let wanted = self.rx.publish();
        self.kick_if(wanted);
    }

    fn kick_if(&self, wanted: bool) {
        if wanted && let Some(kick) = &self.kick {
            kick.signal();
        }
    }

    /// Sends frames.
    pub fn send(&mut self, frames: u32) {
        for _ in 0..frames {
            let gpa = self.rig.buffer(self.queue + 1, self.sent);
            // A header of zeros and a frame whose first byte is its number.
            let bytes = [&[0; 12][..], &[self.sent as u8; 64]].concat();
            self.rig.map.resolve(gpa, bytes.len() as u64).unwrap().write(&bytes);
            let buffer = DriverBuffer { gpa, len: bytes.len() as u32, writable: false };
            self.tx.add(&[buffer], self.sent).unwrap();
            self.sent += 1;
        }
        let wanted = self.tx.publish();
        self.kick_if(wanted);
    }

    /// Waits for `frames` frames sent to be taken and, if `back`, to come back.
    pub fn settle(&mut self, frames: u32, back: bool) {
        let (mut taken, mut came) = (0, 0);
        eventually(|| {
            let mut done = [Completion::default(); 16];
            taken += self.tx.collect(&mut done).unwrap() as u32;
            came += self.rx.collect(&mut done).unwrap() as u32;
            taken >= frames && (!back || came >= frames)
        });
        assert_eq!((taken, came), (frames, if back { frames } else { 0 }));
    }

    /// A frame there and back, `times` times.
    pub fn exchange(&mut self, times: u32) {
        for _ in 0..times {
            self.post(1);
            self.send(1);
            self.settle(1, true);
        }
    }

    /// Nothing is taken and nothing comes for a while, though frames and buffers are there.
    pub fn rests(&mut self) {
        std::thread::sleep(Duration::from_millis(30));
        let mut done = [Completion::default(); 1];
        assert_eq!((self.tx.collect(&mut done), self.rx.collect(&mut done)), (Ok(0), Ok(0)));
    }
}

/// Waits until something is so.
#[track_caller]
pub fn eventually(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + SOON;
    while !is_so() {
        assert!(Instant::now() < deadline, "it did not become so within {SOON:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A peer that speaks as it likes.
pub struct Raw {
    pub stream: UnixStream,
    reader: FrameReader,
}

/// What a peer hears.
#[derive(Debug)]
pub enum Heard {
    /// An answer.
    Answer(Box<Frame>),
    /// The end of the connection.
    Closed,
}

impl Raw {
    pub fn new(stream: UnixStream) -> Raw {
        Raw { stream, reader: FrameReader::default() }
    }

    /// Sends a message; false if the connection is closed.
    pub fn send(&self, request: u32, flags: u32, payload: &[u8], fds: &[BorrowedFd<'_>]) -> bool {
        let header = Header { request, flags: flags | FLAG_VERSION, size: 0 };
        send_frame(&self.stream, header, payload, fds, Instant::now() + SOON).is_ok()
    }

    /// Waits for an answer or the end.
    pub fn hear(&mut self) -> Heard {
        let deadline = Instant::now() + SOON;
        loop {
            match self.reader.read(&self.stream, Instant::now()) {
                Ok(Some(frame)) => return Heard::Answer(Box::new(frame)),
                Ok(None) => wait_for(&self.stream, PollFlags::IN, deadline).expect("an answer or the end"),
                Err(Broken::Closed) => return Heard::Closed,
                Err(other) => panic!("{other}"),
            }
        }
    }

    /// Sends a request with need_reply and returns its acknowledgement; None if the connection was closed.
    pub fn ask(&mut self, request: Request, payload: &[u8], fds: &[BorrowedFd<'_>]) -> Option<u64> {
        if !self.send(request as u32, FLAG_NEED_REPLY, payload, fds) {
            return None;
        }
        match self.hear() {
            Heard::Answer(frame) => {
                assert_eq!(frame.header.request, request as u32);
                assert!(frame.header.is_reply());
                Some(decode_u64(frame.payload().unwrap()))
            }
            Heard::Closed => None,
        }
    }

    /// Agrees on every protocol feature offered.
    pub fn agree(&mut self) {
        assert_eq!(self.ask(Request::SetProtocolFeatures, &protocol::OFFERED.to_ne_bytes(), &[]), Some(0));
    }
}
