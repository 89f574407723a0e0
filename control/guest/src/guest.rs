//! A guest: a vhost-user front-end with its own memory, rings and buffers, over any back-end's socket.
//!
//! It does what a driver in a guest does, with the features that [`GuestOptions`] name and no others: no offloads, no
//! control queue, no calls (it polls). One thread owns it; its lanes may be driven by others.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use hdrhistogram::Histogram;
use ringway_pmd::net::F_MRG_RXBUF;
use ringway_pmd::notify::EventFd;
use ringway_ring::features::Features;
use ringway_ring::layout::Areas;
use ringway_ring::memory::{HostMemory, PageKind};
use ringway_ring::position::Position;
use ringway_ring::queue::{Format, RingSize};
use ringway_vhost_user::frontend::{Frontend, MemoryRegion, VringAddr};

use crate::error::GuestError;
use crate::frame::{MAX_FRAME, MIN_FRAME};
use crate::lane::{Lane, LaneSetup, Offer, Stats, histogram};
use crate::options::GuestOptions;
use crate::plan::Plan;
use crate::presence::Presence;

/// A guest that is connected, with its rings started and its receive buffers posted.
#[derive(Debug)]
pub struct Guest {
    frontend: Frontend,
    lanes: Vec<Lane>,
    features: Features,
    options: GuestOptions,
    plan: Plan,
    /// The memory outlives the rings in it.
    memory: HostMemory,
}

/// The flows of guests that send to each other, of which each knows how far all have come.
#[derive(Debug, Clone)]
pub struct Flows {
    /// How far the flow of each number has come.
    pub progress: Arc<[AtomicU64]>,
    /// The number of the guest's first queue pair; the others follow.
    pub first: u16,
}

impl Flows {
    /// Flows of as many numbers, from the first on.
    pub fn new(count: usize) -> Flows {
        Flows { progress: (0..count).map(|_| AtomicU64::new(0)).collect(), first: 0 }
    }
}

impl Guest {
    /// Connects to the device behind the socket and starts its rings.
    ///
    /// # Errors
    /// The back-end is not there, cannot do what is asked for, or there is no memory.
    pub fn connect(socket: &Path, options: GuestOptions) -> Result<Guest, GuestError> {
        let frontend = Frontend::connect(socket, options.patience)?;
        Guest::start(frontend, options)
    }

    /// Starts the rings over a connection that stands.
    ///
    /// # Errors
    /// As [`Guest::connect`].
    pub fn start(frontend: Frontend, options: GuestOptions) -> Result<Guest, GuestError> {
        Guest::start_among(frontend, options, &Flows::new(options.pairs.into()))
    }

    /// The same, of several guests that know of each other's flows.
    ///
    /// # Errors
    /// As [`Guest::connect`].
    pub fn start_among(
        mut frontend: Frontend,
        options: GuestOptions,
        flows: &Flows,
    ) -> Result<Guest, GuestError> {
        let longest = options.sizes.max();
        if !(MIN_FRAME..=MAX_FRAME).contains(&longest) {
            return Err(GuestError::FrameLen(longest));
        }
        let features = wanted(&options);
        check_offer(&mut frontend, features)?;
        if options.pairs > 1 {
            let queues = frontend.queue_num()?;
            if queues < u64::from(options.pairs) {
                return Err(GuestError::Pairs { queues, wanted: options.pairs });
            }
        }

        let size = RingSize::new(options.format, options.queue_size.into())?;
        let plan = Plan::new(&options, size, features)?;
        let bytes = plan.total();
        let memory = match options.pages {
            Some(kind) => HostMemory::allocate_on(kind, "ringway-guest", bytes),
            // Regions begin on base pages.
            None if options.regions.is_some_and(|regions| regions > 1) => {
                HostMemory::allocate_on(PageKind::Base, "ringway-guest", bytes)
            }
            None => HostMemory::allocate("ringway-guest", bytes),
        }
        .map_err(|source| GuestError::Memory { bytes, source })?;
        let map = Arc::new(memory.guest_map(GPA)?);
        let mut lanes = Vec::with_capacity(options.pairs.into());
        for pair in 0..options.pairs {
            lanes.push(Lane::new(LaneSetup {
                options: &options,
                pair,
                flow: flows.first + pair,
                progress: Arc::clone(&flows.progress),
                size,
                features,
                header_len: plan.header_len as usize,
                map: Arc::clone(&map),
                rings: [0, 1].map(|direction| plan.ring(pair, direction, GPA)),
                rx_buffers: plan.rx_buffers(pair, GPA),
                rx_buffer_bytes: plan.rx_buffer_bytes,
                tx_buffers: plan.tx_buffers(pair, GPA),
                kick: [event_fd()?, event_fd()?],
            })?);
        }
        let mut guest = Guest { frontend, lanes, features, options, plan, memory };
        let base = Position::START.to_vhost_base(options.format);
        guest.introduce(|_| base)?;
        guest.lanes.iter().for_each(Lane::kick);
        Ok(guest)
    }

    /// Connects again after the back-end was lost, as a VMM does whose guest has gone on: with the rings as they are.
    ///
    /// # Errors
    /// As [`Guest::connect`].
    pub fn reconnect(&mut self, socket: &Path) -> Result<(), GuestError> {
        self.frontend = Frontend::connect(socket, self.options.patience)?;
        check_offer(&mut self.frontend, self.features)?;
        // QEMU's bases: it reads those of split rings in the rings, and repeats those of packed ones from their start.
        let format = self.options.format;
        self.introduce(|used_idx| match format {
            Format::Split => used_idx.into(),
            Format::Packed => Position::START.to_vhost_base(format),
        })
    }

    /// Tells the back-end everything, and starts every ring at the base that belongs to the used index in it.
    fn introduce(&mut self, base: impl Fn(u16) -> u32) -> Result<(), GuestError> {
        self.frontend.set_features(self.features)?;
        let cuts = self.plan.regions(self.memory.size());
        let regions: Vec<MemoryRegion<'_>> = cuts
            .into_iter()
            .map(|(start, end)| MemoryRegion {
                gpa: GPA + start,
                size: end - start,
                user_addr: self.memory.address() + start,
                file_offset: start,
                file: self.memory.file(),
            })
            .collect();
        let (table, more) = regions.split_at(regions.len().min(TABLE_REGIONS));
        self.frontend.set_mem_table(table)?;
        for region in more {
            self.frontend.add_mem_reg(region)?;
        }
        for (pair, lane) in self.lanes.iter().enumerate() {
            for direction in 0..2 {
                let areas = self.plan.ring(pair as u16, direction as u64, self.memory.address());
                let Areas { desc, driver, device } = areas;
                let address = VringAddr { desc, driver, device, log: None };
                let (size, base) = (self.options.queue_size.into(), base(lane.used_idx(direction)));
                let queue = (pair * 2 + direction) as u32;
                self.frontend.start_ring(queue, size, base, address, Some(lane.kick_of(direction)), None)?;
            }
        }
        self.frontend.set_status(DRIVER_OK)?;
        for queue in 0..u32::from(self.options.pairs) * 2 {
            self.frontend.enable_ring(queue, true)?;
        }
        Ok(())
    }

    /// The pages that its memory stands on.
    pub fn page_kind(&self) -> PageKind {
        self.memory.kind()
    }

    /// The features that it negotiated.
    pub fn features(&self) -> Features {
        self.features
    }

    /// One round over all pairs: collects what came, checks it, and sends as much as `send` frames a pair. Returns how
    /// many frames were received.
    ///
    /// # Errors
    /// The device broke the rules of a ring.
    pub fn turn(&mut self, send: u32) -> Result<u32, GuestError> {
        let (mut received, mut presence) = (0, Presence::ASSUMED);
        for lane in &mut self.lanes {
            received += lane.turn(Offer::AtMost(send), &mut presence)?;
        }
        Ok(received)
    }

    /// What all pairs counted, added up.
    pub fn stats(&self) -> Stats {
        self.lanes.iter().fold(Stats::default(), |sum, lane| sum.plus(&lane.stats()))
    }

    /// The latencies of all pairs, in cycles.
    pub fn latency(&self) -> Histogram<u64> {
        let mut sum = histogram();
        for lane in &self.lanes {
            // Same bounds and precision: adding cannot fail.
            let _ = sum.add(lane.latency());
        }
        sum
    }

    /// Its queue pairs.
    pub fn lanes(&self) -> &[Lane] {
        &self.lanes
    }

    /// Its queue pairs, to be driven.
    pub fn lanes_mut(&mut self) -> &mut [Lane] {
        &mut self.lanes
    }

    /// Stops every ring in order and leaves.
    ///
    /// # Errors
    /// The back-end did not answer.
    pub fn stop(mut self) -> Result<Stats, GuestError> {
        for queue in 0..self.lanes.len() as u32 * 2 {
            self.frontend.stop_ring(queue)?;
        }
        Ok(self.stats())
    }
}

/// The features that a guest negotiates: all of them must be offered.
fn wanted(options: &GuestOptions) -> Features {
    let mut features = Features::VERSION_1;
    if options.event_idx {
        features |= Features::EVENT_IDX;
    }
    if options.format == Format::Packed {
        features |= Features::RING_PACKED;
    }
    if options.mergeable {
        features |= F_MRG_RXBUF;
    }
    if options.in_order {
        features |= Features::IN_ORDER;
    }
    features
}

fn check_offer(frontend: &mut Frontend, features: Features) -> Result<(), GuestError> {
    let offered = frontend.handshake()?;
    if offered.contains(features) {
        return Ok(());
    }
    Err(GuestError::Features { missing: features.without(offered).0 })
}

fn event_fd() -> Result<Arc<EventFd>, GuestError> {
    EventFd::new().map(Arc::new).map_err(GuestError::EventFd)
}

/// Regions that one memory table message holds.
const TABLE_REGIONS: usize = 8;

/// Where the guest's memory starts in its own physical addresses.
const GPA: u64 = 0x1_0000_0000;

/// `ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK` (virtio 1.3 §2.1).
const DRIVER_OK: u8 = 1 | 2 | 8 | 4;
