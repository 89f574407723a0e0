//! A back-end that does as little as can be: it gives every frame back, or says that every request is done, without a daemon,
//! counters or checks. What a generator reaches against it is what the generator can do; a back-end that is measured to be faster is not.
//!
//! That of frames can also do wrong on purpose, one frame in so many, which shows that the suite notices; that of requests
//! touches no data ([`crate::disk::null`]).
//!
//! Runs in this process, on a worker of its own that is pinned to the back-end's core and polls; vhost-user is
//! spoken by the same session that `ringwayd` has.

use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use ringway_control::frontends::session::{self, DeviceShared, SessionSetup};
use ringway_engine::{Armed, Budget, Clock, Engine, EngineConfig, IdlePolicy, Polled, Pump};
use ringway_pmd::drivers::sim_net::SimNet;
use ringway_pmd::net::header_len;
use ringway_pmd::vdpa::{
    ClassOps, ConfigSpace, DeviceHost, DeviceSpec, DriverError, Facts, MakePump, ManagementDevice, NetSpec,
    OwnPumps, QueueBinding, Queues, VdpaDevice,
};
use ringway_ring::chain::{Burst, Chain};
use ringway_ring::packed::device::PackedDevice;
use ringway_ring::position::PositionPage;
use ringway_ring::queue::{DeviceRing, Format};
use ringway_ring::split::device::SplitDevice;
use ringway_ring::tsc;
use serde::{Deserialize, Serialize};

use crate::error::BenchError;

// Where no frame is touched.
mod bare;

use bare::BarePump;

/// What it does wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Wrong {
    /// The frame does not come back.
    Drop,
    /// It comes back twice.
    Duplicate,
    /// It comes back behind the one after it.
    Reorder,
    /// A bit in its head is another.
    CorruptHead,
    /// A bit in its payload is another.
    CorruptPayload,
}

/// How it behaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NullOptions {
    /// Give the whole frame back, not just its first line.
    pub copies_payload: bool,
    /// Touch no frame at all: only descriptors come back.
    pub bare: bool,
    /// What to do wrong, and to one frame in how many.
    pub wrong: Option<(Wrong, u64)>,
}

/// A running one. Ends when dropped.
#[derive(Debug)]
pub struct NullBackend {
    folder: tempfile::TempDir,
    stop: Arc<AtomicBool>,
    done_wrong: Arc<AtomicU64>,
    acceptor: Option<JoinHandle<()>>,
}

impl NullBackend {
    /// Starts one that gives frames back, with its worker on `core`.
    pub fn start(core: usize, options: NullOptions) -> Result<NullBackend, BenchError> {
        let done_wrong = Arc::new(AtomicU64::new(0));
        let counted = Arc::clone(&done_wrong);
        let make = move |name: String| -> Result<Box<dyn VdpaDevice>, DriverError> {
            let net = NetSpec { mtu: Some(9000), max_vqp: Some(16), ..NetSpec::default() };
            let model = SimNet::new().create(&DeviceSpec::net(name, net), DeviceHost::unheard())?;
            let pumps = OwnPumps::new(NullPumps { options, done_wrong: Arc::clone(&counted) });
            Ok(Box::new(NullDevice { model, pumps }))
        };
        NullBackend::serve(core, done_wrong, make)
    }

    /// Starts one whose devices `make` makes.
    pub(crate) fn serve(
        core: usize,
        done_wrong: Arc<AtomicU64>,
        make: impl Fn(String) -> Result<Box<dyn VdpaDevice>, DriverError> + Send + 'static,
    ) -> Result<NullBackend, BenchError> {
        let folder = tempfile::tempdir().map_err(BenchError::system("cannot make a directory"))?;
        let clock = Clock { cycles: tsc::cycles, hertz: tsc::hertz() };
        let engine = Engine::start(EngineConfig { cores: vec![core], idle: IdlePolicy::Poll, clock })
            .map_err(|error| BenchError::Usage(format!("core {core}: {error}")))?;
        let path = socket_in(folder.path());
        let listener = UnixListener::bind(path).map_err(BenchError::system("cannot bind a socket"))?;
        listener.set_nonblocking(true).map_err(BenchError::system("cannot listen"))?;
        let stop = Arc::new(AtomicBool::new(false));
        let acceptor = std::thread::spawn({
            let stop = Arc::clone(&stop);
            move || accept(&listener, &engine, core, &stop, make)
        });
        Ok(NullBackend { folder, stop, done_wrong, acceptor: Some(acceptor) })
    }

    /// Its socket. Each connection gets a device of its own.
    pub fn socket(&self) -> PathBuf {
        socket_in(self.folder.path())
    }

    /// How many frames it has done wrong.
    pub fn done_wrong(&self) -> u64 {
        self.done_wrong.load(Ordering::Relaxed)
    }
}

impl Drop for NullBackend {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn socket_in(folder: &Path) -> PathBuf {
    folder.join("null.sock")
}

/// Gives every connection a session with a device of its own.
fn accept(
    listener: &UnixListener,
    engine: &Engine,
    core: usize,
    stop: &AtomicBool,
    make: impl Fn(String) -> Result<Box<dyn VdpaDevice>, DriverError>,
) {
    let mut id = 0;
    while !stop.load(Ordering::Relaxed) {
        let Ok((stream, _)) = listener.accept() else {
            std::thread::sleep(Duration::from_millis(2));
            continue;
        };
        id += 1;
        let name = format!("null{id}");
        let (Ok(device), Ok(positions)) = (make(name.clone()), PositionPage::anonymous()) else {
            continue;
        };
        let queues = usize::from(device.facts().limits.max_vqs);
        let shared = DeviceShared {
            name,
            counters: (0..queues).map(|_| Arc::default()).collect(),
            positions,
            records: None,
            lease: None,
            cores: (0..queues).map(|_| AtomicUsize::new(core)).collect(),
            log: Default::default(),
        };
        // A front-end that cannot be served finds its socket closed.
        let _ = session::spawn(SessionSetup {
            id,
            device,
            shared: Arc::new(shared),
            stream,
            engine: engine.clone(),
            lease: ringway_control::frontends::budget::Lease::alone(),
            reports: Arc::new(|_, _| {}),
        });
    }
}

/// Looks like its model to a front-end.
pub(crate) struct NullDevice<P> {
    pub(crate) model: Box<dyn VdpaDevice>,
    pub(crate) pumps: OwnPumps<P>,
}

/// What its pumps are made from.
#[derive(Debug)]
struct NullPumps {
    options: NullOptions,
    done_wrong: Arc<AtomicU64>,
}

impl<P: MakePump + Send> VdpaDevice for NullDevice<P> {
    fn facts(&self) -> Facts {
        self.model.facts()
    }
    fn config(&mut self) -> &mut dyn ConfigSpace {
        self.model.config()
    }
    fn queues(&mut self) -> &mut dyn Queues {
        &mut self.pumps
    }
    fn class(&mut self) -> ClassOps<'_> {
        self.model.class()
    }
}

impl MakePump for NullPumps {
    fn pump(&mut self, _group: u16, queues: Vec<QueueBinding>) -> Result<Box<dyn Pump>, DriverError> {
        let (mut rx, mut tx) = (None, None);
        for queue in queues {
            if queue.index % 2 == 0 { rx = Some(queue) } else { tx = Some(queue) }
        }
        let (Some(rx), Some(tx)) = (rx, tx) else { return Ok(Box::new(Rest)) };
        Ok(match rx.format {
            Format::Split if self.options.bare => Box::new(BarePump::<bare::Split>::new(rx, tx)?),
            Format::Packed if self.options.bare => Box::new(BarePump::<bare::Packed>::new(rx, tx)?),
            Format::Split => {
                Box::new(NullPump::<SplitDevice>::new(rx, tx, self, |queue| queue.config.activate_split())?)
            }
            Format::Packed => {
                Box::new(NullPump::<PackedDevice>::new(rx, tx, self, |queue| queue.config.activate_packed())?)
            }
        })
    }
}

/// What a pair of which only one queue runs has for a pump.
struct Rest;

impl Pump for Rest {
    fn poll(&mut self, _: &Budget, _: u64) -> Polled {
        Polled::Idle
    }
    fn arm(&mut self) -> Armed {
        Armed::CannotSleep
    }
    fn disarm(&mut self) {}
    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

/// A queue and what was peeked of it.
struct Queue<Q> {
    ring: Q,
    burst: Burst,
}

/// Gives frames back.
struct NullPump<Q> {
    rx: Queue<Q>,
    tx: Queue<Q>,
    header_len: usize,
    options: NullOptions,
    /// Frames until the next is done wrong.
    left: u64,
    done_wrong: Arc<AtomicU64>,
}

impl<Q: DeviceRing> NullPump<Q> {
    fn new(
        rx: QueueBinding,
        tx: QueueBinding,
        device: &NullPumps,
        activate: fn(QueueBinding) -> Result<Q, ringway_ring::queue::SetupError>,
    ) -> Result<NullPump<Q>, DriverError> {
        let header_len = header_len(rx.config.features);
        let queue = |binding: QueueBinding| -> Result<Queue<Q>, DriverError> {
            let burst = Burst::new(Arc::clone(&binding.config.map));
            let mut ring = activate(binding)
                .map_err(|error| DriverError::PeerMisbehaved(format!("ring set-up: {error}")))?;
            ring.disable_kicks();
            Ok(Queue { ring, burst })
        };
        let every = device.options.wrong.map_or(u64::MAX, |(_, every)| every.max(2));
        Ok(NullPump {
            rx: queue(rx)?,
            tx: queue(tx)?,
            header_len,
            options: device.options,
            left: every,
            done_wrong: Arc::clone(&device.done_wrong),
        })
    }

    /// Copies a frame; returns its bytes, header included.
    #[inline]
    fn copy(&self, from: &Chain, to: &Chain) -> u32 {
        let (Some(from_bytes), Some(to_bytes)) =
            (self.tx.burst.readable(from).next(), self.rx.burst.writable(to).next())
        else {
            return 0;
        };
        let len = from.readable_bytes.min(to.writable_bytes) as usize;
        let bytes = if self.options.copies_payload { len } else { len.min(LINE) };
        let header = [0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0];
        to_bytes.write(header.get(..self.header_len).unwrap_or_default());
        let frame = bytes.saturating_sub(self.header_len);
        to_bytes.part(self.header_len, frame).copy_from(from_bytes.part(self.header_len, frame));
        len as u32
    }

    /// The frame at `at` of `count` is in turn to be done wrong. Returns the order in which frames come back instead
    /// of `at` (and of `at + 1`, if two are named), or None if it cannot be done now.
    #[cold]
    fn wrong(&self, at: usize, count: usize, room: usize) -> Option<(Wrong, &'static [usize])> {
        let (wrong, _) = self.options.wrong?;
        match wrong {
            Wrong::Drop => Some((wrong, &[])),
            Wrong::Duplicate => (room > count).then_some((wrong, &[0, 0])),
            Wrong::Reorder => (at + 1 < count).then_some((wrong, &[1, 0])),
            Wrong::CorruptHead | Wrong::CorruptPayload => Some((wrong, &[0])),
        }
    }
}

impl<Q: DeviceRing + 'static> Pump for NullPump<Q> {
    fn poll(&mut self, _: &Budget, _: u64) -> Polled {
        let Ok(frames) = self.tx.ring.peek(&mut self.tx.burst, BURST) else { return Polled::Idle };
        if frames == 0 {
            return Polled::Idle;
        }
        for chain in self.tx.burst.chains() {
            if let Some(bytes) = self.tx.burst.readable(chain).next() {
                bytes.prefetch_read(0);
            }
        }
        let Ok(room) = self.rx.ring.peek(&mut self.rx.burst, BURST + 1) else { return Polled::Idle };
        for chain in self.rx.burst.chains() {
            if let Some(bytes) = self.rx.burst.writable(chain).next() {
                bytes.prefetch_write(0);
            }
        }
        let count = frames.min(room);
        let (from, to) = (self.tx.burst.chains(), self.rx.burst.chains());
        let (mut at, mut filled) = (0, 0);
        let mut done_wrong = 0;
        while at < count && filled < room {
            self.left -= u64::from(self.left > 0);
            let wrong = if self.left == 0 { self.wrong(at, count, room) } else { None };
            let (order, step): (&[usize], _) = match wrong {
                None => (&[0], 1),
                Some((Wrong::Reorder, order)) => (order, 2),
                Some((_, order)) => (order, 1),
            };
            for ahead in order {
                let (Some(from), Some(to)) = (from.get(at + ahead), to.get(filled)) else { break };
                let len = self.copy(from, to);
                let place = match wrong {
                    Some((Wrong::CorruptHead, _)) => Some(self.header_len + 24),
                    Some((Wrong::CorruptPayload, _)) => Some(len as usize - 1),
                    _ => None,
                };
                if let (Some(place), Some(bytes)) = (place, self.rx.burst.writable(to).next()) {
                    let mut byte = [0];
                    bytes.part(place, 1).read(&mut byte);
                    bytes.part(place, 1).write(&[byte[0] ^ 4]);
                }
                self.rx.ring.consume(std::slice::from_ref(to));
                self.rx.ring.complete(to, len);
                filled += 1;
            }
            if wrong.is_some() {
                done_wrong += 1;
                self.left = self.options.wrong.map_or(u64::MAX, |(_, every)| every);
            }
            at += step;
        }
        let done = from.get(..at.min(frames)).unwrap_or_default();
        self.tx.ring.consume(done);
        for chain in done {
            self.tx.ring.complete(chain, 0);
        }
        // The generator polls: it never asks to be called.
        self.rx.ring.publish();
        self.tx.ring.publish();
        if done_wrong > 0 {
            self.done_wrong.fetch_add(done_wrong, Ordering::Relaxed);
        }
        Polled::Moved(at as u32)
    }
    fn arm(&mut self) -> Armed {
        Armed::CannotSleep
    }
    fn disarm(&mut self) {}
    fn wake_sources(&self) -> Vec<BorrowedFd<'_>> {
        Vec::new()
    }
}

const BURST: usize = 32;
const LINE: usize = 64;
