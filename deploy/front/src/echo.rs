//! The front-end: a guest whose rings lie in one region of its memory and whose buffers in another, `memfd:payload`.
//!
//! By its input it is told:
//!
//! ```text
//! stray      name an address outside its memory in the transmit ring of the first pair
//! ask IP     send an ARP request for an address
//! pairs N    use so many queue pairs from now on
//! quit       stop the rings in order, and end
//! ```

use std::io::Read;
use std::net::Ipv4Addr;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_pmd::notify::EventFd;
use ringway_ring::features::Features;
use ringway_ring::guest::GuestMap;
use ringway_ring::layout::{Areas, DriverConfig, Layout};
use ringway_ring::memory::{HostMemory, PageKind};
use ringway_ring::position::Position;
use ringway_ring::queue::{Completion, DriverBuffer, DriverRing, Format, RingSize};
use ringway_vhost_user::frontend::{Frontend, MemoryRegion, VringAddr};
use rustix::event::{PollFd, PollFlags};

use crate::Result;
use crate::answer::{Us, answer};

/// What it is to be like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Options {
    format: Format,
    pairs: u16,
    /// At least so much memory, in MiB, on huge pages; 0: what its buffers need.
    memory: u64,
    /// What it answers for; None: whatever is asked for.
    address: Option<Ipv4Addr>,
    /// Bytes of a buffer, header and all.
    buffer: u32,
    /// It connects again, with its rings as they stand, when the connection is lost.
    reconnect: bool,
}

impl Options {
    pub(crate) fn parse(words: &[&str]) -> Result<Options> {
        let mut options = Options {
            format: Format::Split,
            pairs: 1,
            memory: 0,
            address: None,
            buffer: 2048,
            reconnect: false,
        };
        for word in words {
            match word.split_once('=') {
                None if *word == "packed" => options.format = Format::Packed,
                None if *word == "reconnect" => options.reconnect = true,
                Some(("pairs", pairs)) => options.pairs = pairs.parse()?,
                Some(("memory", memory)) => options.memory = memory.parse()?,
                Some(("address", address)) => options.address = Some(address.parse()?),
                Some(("buffer", buffer)) => options.buffer = buffer.parse()?,
                _ => return Err(format!("`{word}` is no option").into()),
            }
        }
        Ok(options)
    }
}

/// Serves until it is told to quit.
pub(crate) fn run(socket: &str, options: Options) -> Result<()> {
    let mut front = Front::connect(Path::new(socket), options)?;
    println!("ready");
    let (mut input, mut told) = (std::io::stdin(), Vec::new());
    loop {
        let mut fds =
            vec![PollFd::new(&input, PollFlags::IN), PollFd::new(front.frontend.stream(), PollFlags::IN)];
        fds.extend(front.lanes.iter().map(|lane| PollFd::new(&lane.call, PollFlags::IN)));
        rustix::event::poll(&mut fds, None)?;
        let [is_told, is_closed] = [0, 1].map(|at: usize| !fds[at].revents().is_empty());
        if is_closed {
            if !options.reconnect {
                return Err("the device has closed the connection".into());
            }
            front.connect_again(Path::new(socket))?;
            println!("connected again");
        }
        if is_told {
            let mut bytes = [0; 256];
            let count = input.read(&mut bytes)?;
            told.extend_from_slice(&bytes[..count]);
            if count == 0 {
                return front.quit();
            }
        }
        while let Some(end) = told.iter().position(|byte| *byte == b'\n') {
            let line: Vec<u8> = told.drain(..=end).collect();
            let line = String::from_utf8_lossy(&line);
            match line.split_whitespace().collect::<Vec<_>>().as_slice() {
                ["stray"] => front.stray()?,
                ["pairs", pairs] => front.use_pairs(pairs.parse()?)?,
                ["ask", address] => front.ask(address.parse()?)?,
                ["quit"] => return front.quit(),
                _ => return Err(format!("`{}` is no command", line.trim()).into()),
            }
            println!("done: {}", line.trim());
        }
        front.work()?;
    }
}

struct Front {
    frontend: Frontend,
    lanes: Vec<Lane>,
    /// Pairs in use: answers go through one after the other.
    pairs: usize,
    next: usize,
    map: Arc<GuestMap>,
    us: Us,
    features: Features,
    /// Bytes of a buffer.
    buffer: u32,
    /// Rings, and payload.
    memory: [HostMemory; 2],
}

/// A queue pair.
struct Lane {
    rx: Queue,
    tx: Queue,
    call: EventFd,
    /// Where its transmit buffers are that are free.
    free: Vec<u32>,
}

struct Queue {
    ring: Box<dyn DriverRing>,
    /// By the guest's addresses.
    areas: Areas<u64>,
    kick: EventFd,
    /// Where its first buffer is, and the bytes of each.
    buffers: u64,
    bytes: u64,
}

impl Queue {
    fn buffer(&self, slot: u32) -> u64 {
        self.buffers + u64::from(slot) * self.bytes
    }

    fn publish(&mut self) {
        if self.ring.publish() {
            self.kick.signal();
        }
    }
}

impl Front {
    fn connect(socket: &Path, options: Options) -> Result<Front> {
        let mut frontend = Frontend::connect(socket, PATIENCE)?;
        frontend.set_timeout(PATIENCE);
        let offered = frontend.handshake()?;
        let wanted = Features::VERSION_1 | Features::EVENT_IDX | Features::ACCESS_PLATFORM;
        let format = if options.format == Format::Packed { Features::RING_PACKED } else { Features::NONE };
        let features = (wanted | format) & offered;
        if !features.contains(Features::VERSION_1 | format) {
            return Err(format!("the device offers {offered:?}").into());
        }
        let mac = frontend.config(0, 6)?;
        let size = RingSize::new(options.format, ENTRIES)?;
        let layout = Layout::new(options.format, size);
        let queues = u64::from(options.pairs) * 2;
        let (slots, bytes) = (u64::from(size.get()), u64::from(options.buffer));
        let rings =
            HostMemory::allocate_on(PageKind::Base, "rings", (layout.total * queues).next_multiple_of(PAGE))?;
        let payload = (slots * bytes * queues).max(options.memory << 20).next_multiple_of(PAGE);
        // As a guest that is given so much is.
        let pages = if options.memory > 0 { PageKind::Hugetlb2M } else { PageKind::Base };
        let payload = HostMemory::allocate_on(pages, "payload", payload)?;
        let mut map = rings.guest_map(RINGS)?;
        for region in payload.guest_map(PAYLOAD)?.regions() {
            map = map.with(Arc::clone(region))?;
        }
        let map = Arc::new(map);
        let mut lanes = Vec::new();
        for pair in 0..u64::from(options.pairs) {
            let queue = |number: u64| -> Result<Queue> {
                let areas = layout.at(RINGS + layout.total * number);
                let config =
                    DriverConfig { size, features, map: Arc::clone(&map), areas, position: Position::START };
                let ring: Box<dyn DriverRing> = match options.format {
                    Format::Split => Box::new(config.start_split()?),
                    Format::Packed => Box::new(config.start_packed()?),
                };
                let buffers = PAYLOAD + number * slots * bytes;
                Ok(Queue { ring, areas, kick: EventFd::new()?, buffers, bytes })
            };
            let (mut rx, mut tx) = (queue(pair * 2)?, queue(pair * 2 + 1)?);
            tx.ring.disable_calls();
            for slot in 0..u32::from(size.get()) {
                rx.ring.add(
                    &[DriverBuffer { gpa: rx.buffer(slot), len: options.buffer, writable: true }],
                    slot,
                )?;
            }
            rx.publish();
            rx.ring.enable_calls();
            lanes.push(Lane { rx, tx, call: EventFd::new()?, free: (0..u32::from(size.get())).collect() });
        }
        let us =
            Us { mac: mac.as_slice().try_into()?, address: options.address.map(|address| address.octets()) };
        let (pairs, buffer) = (options.pairs.into(), options.buffer);
        let memory = [rings, payload];
        let mut front = Front { frontend, lanes, pairs, next: 0, map, us, features, buffer, memory };
        let base = Position::START.to_vhost_base(options.format);
        front.introduce(|_| Ok(base))?;
        Ok(front)
    }

    /// Gives the device all that it serves, each ring from its base on.
    fn introduce(&mut self, base: impl Fn(&Queue) -> Result<u32>) -> Result<()> {
        let Front { frontend, lanes, features, memory, .. } = self;
        frontend.set_features(*features)?;
        let table = [RINGS, PAYLOAD].into_iter().zip(&*memory).map(|(gpa, memory)| MemoryRegion {
            gpa,
            size: memory.size(),
            user_addr: memory.address(),
            file_offset: 0,
            file: memory.file(),
        });
        frontend.set_mem_table(&table.collect::<Vec<_>>())?;
        let at = |gpa: u64| memory[0].address() + (gpa - RINGS);
        for (number, Lane { rx, tx, call, .. }) in (0u32..).step_by(2).zip(lanes) {
            for (index, queue, call) in [(number, rx, Some(call.as_fd())), (number + 1, tx, None)] {
                let Areas { desc, driver, device } = queue.areas;
                let address = VringAddr { desc: at(desc), driver: at(driver), device: at(device), log: None };
                frontend.start_ring(index, ENTRIES, base(queue)?, address, Some(queue.kick.as_fd()), call)?;
            }
        }
        frontend.set_status(DRIVER_OK)?;
        self.use_pairs(self.pairs)
    }

    /// As a VMM does whose device's daemon has come back: the rings go on behind what was used of them, which of a packed ring
    /// nobody knows.
    fn connect_again(&mut self, socket: &Path) -> Result<()> {
        let by = Instant::now() + PATIENCE;
        let (frontend, offered) = loop {
            let mut frontend = Frontend::connect(socket, PATIENCE)?;
            frontend.set_timeout(PATIENCE);
            match frontend.handshake() {
                Ok(offered) => break (frontend, offered),
                // A process that is just dying may have closed what it had, and listen still. A VMM tries again, too.
                Err(error) if Instant::now() > by => return Err(error.into()),
                Err(_) => std::thread::sleep(Duration::from_millis(50)),
            }
        };
        if !offered.contains(self.features) || self.features.contains(Features::RING_PACKED) {
            return Err(format!("it cannot go on: the device offers {offered:?}").into());
        }
        self.frontend = frontend;
        let map = Arc::clone(&self.map);
        self.introduce(|queue| {
            let mut index = [0; 2];
            // virtio 1.3 §2.7.8: the flags come first.
            map.resolve(queue.areas.device + 2, 2)?.read(&mut index);
            Ok(u16::from_le_bytes(index).into())
        })
    }

    /// Enables the rings of so many pairs, as a VMM does when its guest wants them.
    fn use_pairs(&mut self, pairs: usize) -> Result<()> {
        for number in 0..self.lanes.len() {
            for queue in [number * 2, number * 2 + 1] {
                self.frontend.enable_ring(queue as u32, number < pairs)?;
            }
        }
        self.pairs = pairs;
        Ok(())
    }

    /// Answers what has come.
    fn work(&mut self) -> Result<()> {
        for pair in 0..self.lanes.len() {
            self.lanes[pair].call.clear();
            while self.receive(pair)? > 0 || self.lanes[pair].rx.ring.enable_calls() {}
        }
        Ok(())
    }

    fn receive(&mut self, pair: usize) -> Result<usize> {
        let mut done = [Completion::default(); 32];
        let count = self.lanes[pair].rx.ring.collect(&mut done)?;
        for Completion { token, written } in &done[..count] {
            let gpa = self.lanes[pair].rx.buffer(*token);
            let mut frame = vec![0; (*written as usize).saturating_sub(HEADER)];
            self.map.resolve(gpa, self.buffer.into())?.part(HEADER, frame.len()).read(&mut frame);
            if answer(&mut frame, self.us) {
                self.send(&frame)?;
            }
            let rx = &mut self.lanes[pair].rx;
            rx.ring.add(&[DriverBuffer { gpa, len: self.buffer, writable: true }], *token)?;
        }
        self.lanes[pair].rx.publish();
        Ok(count)
    }

    /// Sends a frame, if its pair has room.
    fn send(&mut self, frame: &[u8]) -> Result<()> {
        self.next = (self.next + 1) % self.pairs.max(1);
        let Lane { tx, free, .. } = &mut self.lanes[self.next];
        let mut done = [Completion::default(); ENTRIES as usize];
        let count = tx.ring.collect(&mut done)?;
        free.extend(done[..count].iter().map(|done| done.token));
        let Some(slot) = free.pop() else { return Ok(()) };
        let gpa = tx.buffer(slot);
        let buffer = self.map.resolve(gpa, self.buffer.into())?;
        buffer.write(&[0; HEADER]);
        buffer.part(HEADER, frame.len()).write(frame);
        tx.ring.add(&[DriverBuffer { gpa, len: (HEADER + frame.len()) as u32, writable: false }], slot)?;
        tx.publish();
        Ok(())
    }

    fn ask(&mut self, address: Ipv4Addr) -> Result<()> {
        let Us { mac, .. } = self.us;
        let head = [&[0xff; 6][..], &mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
        let frame = [&head[..], &mac, &[0; 4], &[0; 6], &address.octets(), &[0; 18]].concat();
        self.send(&frame)
    }

    fn stray(&mut self) -> Result<()> {
        let Some(lane) = self.lanes.first_mut() else { return Ok(()) };
        let slot = lane.free.pop().ok_or("no room in the ring")?;
        lane.tx.ring.add(&[DriverBuffer { gpa: OUTSIDE, len: 100, writable: false }], slot)?;
        lane.tx.publish();
        Ok(())
    }

    fn quit(mut self) -> Result<()> {
        for queue in 0..self.lanes.len() * 2 {
            self.frontend.stop_ring(queue as u32)?;
        }
        println!("quit");
        Ok(())
    }
}

// Addresses of its memory, and one that it does not have.
const RINGS: u64 = 0x1_0000_0000;
const PAYLOAD: u64 = 0x2_0000_0000;
const OUTSIDE: u64 = 0x9_0000_0000;
/// Of virtio's header without MRG_RXBUF, as VERSION_1 has it (virtio 1.3 §5.1.6.1).
const HEADER: usize = 12;
const ENTRIES: u32 = 256;
const PAGE: u64 = 4096;
/// The device may have to open its function first, and to have its memory locked.
const PATIENCE: Duration = Duration::from_secs(60);
/// `ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK` (virtio 1.3 §2.1).
const DRIVER_OK: u8 = 1 | 2 | 8 | 4;
