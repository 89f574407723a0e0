//! A guest's NIC without a guest: one queue pair whose frames are copied in and out, with virtio's header before each, its far
//! side a vhost-user back-end or the kernel's vhost-net. Who owns it sleeps by the calls that it asks for.
//!
//! Receive buffers are of a page and mergeable, as Linux's driver has them; a frame is sent from one buffer.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ringway_guest::GuestError;
use ringway_pmd::net::tap::HEADER_BYTES;
use ringway_pmd::net::{F_CSUM, F_GUEST_CSUM, F_GUEST_TSO4, F_HOST_TSO4, F_MRG_RXBUF};
use ringway_pmd::notify::EventFd;
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::layout::{Areas, DriverConfig, Layout};
use ringway_ring::memory::HostMemory;
use ringway_ring::position::Position;
use ringway_ring::queue::{Completion, DriverBuffer, DriverRing, RingSize};
use ringway_vhost_user::frontend::{Frontend, MemoryRegion, VringAddr};

use super::vhost_net::{Handles, VhostNet};
use crate::error::BenchError;
use crate::options::Ring;

/// See the head of this file.
pub(crate) struct Port {
    rx: Box<dyn DriverRing>,
    tx: Box<dyn DriverRing>,
    /// Transmit buffers that the device does not hold.
    free: Vec<u32>,
    done: Box<[Completion]>,
    /// Receive buffers that came, from the first that was not looked at on.
    came: Vec<Completion>,
    looked_at: usize,
    /// The frame that was put together last, or is being.
    frame: Box<[u8]>,
    filled: usize,
    /// Buffers still to come of it.
    left: u16,
    /// Made available and not visible yet.
    unpublished: [bool; 2],
    kick: [EventFd; 2],
    call: [EventFd; 2],
    behind: Behind,
    map: Arc<GuestMap>,
    _memory: HostMemory,
}

/// The far side.
enum Behind {
    VhostUser(Box<Frontend>),
    Kernel(VhostNet),
}

/// What both far sides are told.
struct Rings {
    memory: HostMemory,
    map: Arc<GuestMap>,
    layout: Layout,
    kick: [EventFd; 2],
    call: [EventFd; 2],
}

impl Port {
    /// Over a device's socket; checksums and TCP segmentation are negotiated if `offloads` are.
    ///
    /// # Errors
    /// The back-end is not there or does not offer that, or there is no memory.
    pub(crate) fn over_vhost_user(socket: &Path, ring: Ring, offloads: bool) -> Result<Port, BenchError> {
        let of_socket =
            |source: GuestError| BenchError::Guest { socket: socket.display().to_string(), source };
        let mut frontend = Frontend::connect(socket, PATIENCE).map_err(|why| of_socket(why.into()))?;
        let offered = frontend.handshake().map_err(|why| of_socket(why.into()))?;
        let wanted = wanted(ring, offloads);
        if !offered.contains(wanted) {
            return Err(of_socket(GuestError::Features { missing: wanted.without(offered).0 }));
        }
        let rings = Rings::new(ring, [event_fd()?, event_fd()?], [event_fd()?, event_fd()?])?;
        let mut introduce = || -> Result<(), GuestError> {
            frontend.set_features(wanted)?;
            frontend.set_mem_table(&[MemoryRegion {
                gpa: GPA,
                size: rings.memory.size(),
                user_addr: rings.memory.address(),
                file_offset: 0,
                file: rings.memory.file(),
            }])?;
            for (queue, (kick, call)) in rings.kick.iter().zip(&rings.call).enumerate() {
                let Areas { desc, driver, device } = rings.areas(queue, rings.memory.address());
                let address = VringAddr { desc, driver, device, log: None };
                let base = Position::START.to_vhost_base(ring.format());
                let (kick, call) = (Some(kick.as_fd()), Some(call.as_fd()));
                frontend.start_ring(queue as u32, ENTRIES.into(), base, address, kick, call)?;
            }
            frontend.set_status(DRIVER_OK)?;
            (0..2).try_for_each(|queue| frontend.enable_ring(queue, true))?;
            Ok(())
        };
        // The rings are whole before a device looks at them.
        let made = rings.driver(ring, wanted)?;
        introduce().map_err(of_socket)?;
        Ok(Port::new(rings, made, Behind::VhostUser(Box::new(frontend))))
    }

    /// Over the kernel's vhost-net, whose thread moves frames to and from this queue of a TAP; it runs where the calling thread
    /// may. Offloads are as they are set of the TAP.
    ///
    /// # Errors
    /// There is no vhost-net, or no memory.
    pub(crate) fn over_vhost_net(tap: OwnedFd) -> Result<Port, BenchError> {
        let Handles { kick, call, events } = Handles::new()?;
        let rings = Rings::new(Ring::Split, kick, call)?;
        let made = rings.driver(Ring::Split, wanted(Ring::Split, false))?;
        let features = wanted(Ring::Split, false);
        let areas = [0, 1].map(|queue| rings.areas(queue, GPA));
        let net = VhostNet::start(&rings.memory, GPA, features, areas, ENTRIES, events, tap)?;
        Ok(Port::new(rings, made, Behind::Kernel(net)))
    }

    fn new(rings: Rings, made: [Box<dyn DriverRing>; 2], behind: Behind) -> Port {
        let [rx, tx] = made;
        let Rings { memory, map, kick, call, .. } = rings;
        let port = Port {
            rx,
            tx,
            free: (0..u32::from(ENTRIES)).rev().collect(),
            done: vec![Completion::default(); usize::from(ENTRIES)].into(),
            came: Vec::with_capacity(ENTRIES.into()),
            looked_at: 0,
            frame: vec![0; TX_BYTES as usize + RX_BYTES as usize].into(),
            filled: 0,
            left: 0,
            unpublished: [false; 2],
            kick,
            call,
            behind,
            map,
            _memory: memory,
        };
        // What was posted before the device came.
        port.kick.iter().for_each(|kick| {
            kick.signal();
        });
        port
    }

    /// Gives a frame to the device, which sees it after [`Port::flush`]. False: there is no room now.
    ///
    /// # Errors
    /// The device broke the rules of the ring.
    pub(crate) fn send(&mut self, frame: &[u8]) -> Result<bool, BenchError> {
        if self.free.is_empty() {
            let count = self.tx.collect(&mut self.done)?;
            self.free.extend(self.done.iter().take(count).map(|completion| completion.token));
        }
        let Some(slot) = self.free.pop() else { return Ok(false) };
        let gpa = tx_buffer(slot);
        let buffer = place(&self.map, gpa, frame.len() as u64)?;
        buffer.write(frame);
        self.tx.add(&[DriverBuffer { gpa, len: frame.len() as u32, writable: false }], slot)?;
        self.unpublished[1] = true;
        Ok(true)
    }

    /// The next frame that came, header included.
    ///
    /// # Errors
    /// The device broke the rules of the ring.
    pub(crate) fn receive(&mut self) -> Result<Option<&[u8]>, BenchError> {
        loop {
            if self.looked_at == self.came.len() {
                self.came.clear();
                self.looked_at = 0;
                let count = self.rx.collect(&mut self.done)?;
                self.came.extend(self.done.iter().take(count));
            }
            let Some(Completion { token, written }) = self.came.get(self.looked_at).copied() else {
                return Ok(None);
            };
            self.looked_at += 1;
            let gpa = rx_buffer(token);
            let begins = self.left == 0;
            if begins {
                self.filled = 0;
            }
            let buffer = place(&self.map, gpa, u64::from(written.min(RX_BYTES)))?;
            self.filled += buffer.read(self.frame.get_mut(self.filled..).unwrap_or_default());
            // num_buffers, the header's last field (virtio 1.3 §5.1.6.4).
            let buffers = match self.frame.get(HEADER_BYTES - 2..HEADER_BYTES) {
                Some(&[low, high]) if begins => u16::from_le_bytes([low, high]).max(1),
                _ => self.left,
            };
            self.left = buffers - 1;
            self.rx.add(&[DriverBuffer { gpa, len: RX_BYTES, writable: true }], token)?;
            self.unpublished[0] = true;
            if self.left == 0 {
                return Ok(self.frame.get(..self.filled));
            }
        }
    }

    /// Makes visible to the device what was given to it, and kicks it where it asked for that.
    pub(crate) fn flush(&mut self) {
        let rings = [&mut self.rx, &mut self.tx];
        for ((ring, unpublished), kick) in rings.into_iter().zip(&mut self.unpublished).zip(&self.kick) {
            if std::mem::take(unpublished) && ring.publish() {
                kick.signal();
            }
        }
    }

    /// Asks for calls: of frames that come, and of room where there is none. True: there is something already.
    pub(crate) fn arm(&mut self) -> bool {
        let has_come = self.looked_at < self.came.len() || self.rx.enable_calls();
        let has_room = self.free.is_empty() && self.tx.enable_calls();
        has_come || has_room
    }

    /// Needs no calls.
    pub(crate) fn disarm(&mut self) {
        self.rx.disable_calls();
        self.tx.disable_calls();
        self.call.iter().for_each(|call| {
            call.clear();
        });
    }

    /// What becomes readable by a call.
    pub(crate) fn calls(&self) -> [BorrowedFd<'_>; 2] {
        self.call.each_ref().map(|call| call.as_fd())
    }

    /// Where the kernel tells what its thread has spent (`schedstat`), where one is the far side.
    pub(crate) fn kernel_thread(&self) -> Option<PathBuf> {
        match &self.behind {
            Behind::VhostUser(_) => None,
            Behind::Kernel(net) => net.worker.clone(),
        }
    }

    /// Stops the rings and leaves.
    ///
    /// # Errors
    /// The far side did not answer.
    pub(crate) fn stop(self) -> Result<(), BenchError> {
        match self.behind {
            Behind::VhostUser(mut frontend) => (0..2).try_for_each(|queue| {
                let stopped = frontend.stop_ring(queue).map(drop);
                stopped.map_err(|why| BenchError::Guest { socket: "ringwayd".to_owned(), source: why.into() })
            }),
            Behind::Kernel(net) => net.stop(),
        }
    }
}

impl Rings {
    fn new(ring: Ring, kick: [EventFd; 2], call: [EventFd; 2]) -> Result<Rings, BenchError> {
        let layout = Layout::new(ring.format(), RingSize::new(ring.format(), ENTRIES.into())?);
        let bytes = tx_buffer(ENTRIES.into()) - GPA;
        let memory = HostMemory::allocate("ringway-bench-tap", bytes)
            .map_err(|source| BenchError::Memory { bytes, source })?;
        let map = Arc::new(memory.guest_map(GPA)?);
        Ok(Rings { memory, map, layout, kick, call })
    }

    /// Where a queue's areas are in a memory that starts at `base`.
    fn areas(&self, queue: usize, base: u64) -> Areas<u64> {
        self.layout.at(base + queue as u64 * RING_BYTES)
    }

    /// The driver's side of both, every receive buffer posted.
    fn driver(&self, ring: Ring, features: Features) -> Result<[Box<dyn DriverRing>; 2], BenchError> {
        let make = |queue: usize| -> Result<Box<dyn DriverRing>, BenchError> {
            let config = DriverConfig {
                size: RingSize::new(ring.format(), ENTRIES.into())?,
                features,
                map: Arc::clone(&self.map),
                areas: self.areas(queue, GPA),
                position: Position::START,
            };
            let mut made: Box<dyn DriverRing> = match ring {
                Ring::Split => Box::new(config.start_split()?),
                Ring::Packed => Box::new(config.start_packed()?),
            };
            made.disable_calls();
            Ok(made)
        };
        let mut rings = [make(0)?, make(1)?];
        for token in 0..u32::from(ENTRIES) {
            rings[0].add(&[DriverBuffer { gpa: rx_buffer(token), len: RX_BYTES, writable: true }], token)?;
        }
        rings[0].publish();
        Ok(rings)
    }
}

/// What is negotiated.
fn wanted(ring: Ring, offloads: bool) -> Features {
    let mut features = Features::VERSION_1 | Features::EVENT_IDX | F_MRG_RXBUF;
    if ring == Ring::Packed {
        features |= Features::RING_PACKED;
    }
    if offloads {
        features |= F_CSUM | F_GUEST_CSUM | F_HOST_TSO4 | F_GUEST_TSO4;
    }
    features
}

/// A place in memory of ours.
fn place(map: &GuestMap, gpa: u64, len: u64) -> Result<ringway_ring::guest::HostSlice<'_>, BenchError> {
    map.resolve(gpa, len).map_err(|_| {
        BenchError::Usage(format!("a frame of {len} bytes, or a buffer that was never given to the device"))
    })
}

fn event_fd() -> Result<EventFd, BenchError> {
    EventFd::new().map_err(BenchError::system("cannot make an eventfd"))
}

/// Waits until one of these can be read, or `within` has passed.
///
/// # Errors
/// The system does not let it wait.
pub(crate) fn wait(fds: &[BorrowedFd<'_>], within: Duration) -> Result<(), BenchError> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds: Vec<PollFd<'_>> =
        fds.iter().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
    let within = Timespec { tv_sec: within.as_secs() as i64, tv_nsec: within.subsec_nanos().into() };
    match poll(&mut fds, Some(&within)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(errno) => Err(BenchError::system("cannot wait for frames")(io::Error::from(errno))),
    }
}

/// Where a receive buffer is.
fn rx_buffer(number: u32) -> u64 {
    GPA + 2 * RING_BYTES + u64::from(number) * u64::from(RX_BYTES)
}

/// Where a transmit buffer is.
fn tx_buffer(number: u32) -> u64 {
    rx_buffer(ENTRIES.into()) + u64::from(number) * u64::from(TX_BYTES)
}

/// Entries in each ring.
pub(crate) const ENTRIES: u16 = 256;

/// Bytes of a receive buffer.
const RX_BYTES: u32 = 4096;

/// Bytes of a transmit buffer: 64 KiB of IP packet and its headers.
pub(crate) const TX_BYTES: u32 = (64 << 10) + 4096;

/// Room for a ring of either format, in bytes.
const RING_BYTES: u64 = 16 << 10;

/// Where the memory starts in the guest's physical addresses.
const GPA: u64 = 0x1_0000_0000;

/// `ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK` (virtio 1.3 §2.1).
const DRIVER_OK: u8 = 1 | 2 | 8 | 4;

/// How long a back-end may take to be there.
const PATIENCE: Duration = Duration::from_secs(5);
