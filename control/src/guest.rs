//! The built-in guest: a vhost-user front-end with driver-side rings of its own, which makes, sends, receives and
//! checks Ethernet frames.
//!
//! It stands in for a VM's NIC in `ringway demo`, in tests and in the benchmark suite, and goes through the device's
//! real socket and real rings. One thread owns it. It polls: it asks for no calls.
//!
//! ```text
//!   memory:  | rings of pair 0 | rings of pair 1 | .. | buffers of pair 0 | buffers of pair 1 | .. |
//! ```

// The frames that it makes, and how they are told apart.
pub mod frame;
// Load over a span of time.
pub mod load;
// One queue pair and its traffic.
pub mod pair;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ringway_pmd::net::{F_MRG_RXBUF, header_len};
use ringway_pmd::notify::EventFd;
use ringway_ring::features::Features;
use ringway_ring::guest::MapError;
use ringway_ring::memory::{HostMemory, PageKind};
use ringway_ring::position::Position;
use ringway_ring::queue::{Format, RingSize, SetupError};

use pair::{Pair, PairSetup, PairStats};
use ringway_vhost_user::frontend::{Frontend, FrontendError, MemoryRegion, VringAddr};

/// What the guest shall be like.
#[derive(Debug, Clone, Copy)]
pub struct GuestOptions {
    /// Ring layout.
    pub format: Format,
    /// Queue pairs.
    pub pairs: u16,
    /// Entries in each ring.
    pub queue_size: u16,
    /// Bytes of each frame, from the Ethernet header on, without frame check sequence.
    pub frame_len: u16,
    /// Frames under way at most, a ring's worth without it. Two guests that send to each other count what comes as
    /// answers to what went: half a ring each, so that all of it fits into one of them.
    pub window: Option<u16>,
    /// Negotiate MRG_RXBUF.
    pub mergeable: bool,
    /// Negotiate IN_ORDER.
    pub in_order: bool,
    /// Address that its frames go to.
    pub destination: [u8; 6],
    /// Address that its frames come from.
    pub source: [u8; 6],
    /// The pages of its memory; the largest there are without it. On base pages, what a back-end touches of its guests
    /// is told apart from its own memory to the page.
    pub pages: Option<PageKind>,
    /// Scatter the buffers, each on base pages of its own, so that neighbours in a ring are in different ones of this
    /// many regions of memory; without it, the buffers are side by side in one region.
    pub regions: Option<u16>,
    /// How long the back-end may take for an answer.
    pub patience: Duration,
    /// How long nothing may come before all that is under way counts as lost; what comes later is stale. Longer than any
    /// thread is without a processor, where nothing is lost.
    pub give_up: Duration,
}

impl Default for GuestOptions {
    fn default() -> Self {
        GuestOptions {
            format: Format::Split,
            pairs: 1,
            queue_size: 256,
            frame_len: 64,
            window: None,
            mergeable: true,
            in_order: false,
            destination: frame::BROADCAST,
            source: frame::SOURCE,
            pages: None,
            regions: None,
            patience: Duration::from_secs(5),
            give_up: Duration::from_millis(500),
        }
    }
}

/// Why the guest could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum GuestError {
    /// The back-end.
    #[error(transparent)]
    Frontend(#[from] FrontendError),
    /// Memory of our own.
    #[error("cannot allocate {bytes} bytes of guest memory: {source}")]
    Memory {
        /// Bytes asked for.
        bytes: u64,
        /// What the system said.
        source: std::io::Error,
    },
    /// An event descriptor.
    #[error("cannot make an eventfd: {0}")]
    EventFd(std::io::Error),
    /// Its own memory map.
    #[error("guest memory: {0}")]
    Map(#[from] MapError),
    /// A ring's set-up.
    #[error("ring set-up: {0}")]
    Setup(#[from] SetupError),
    /// The device lacks a feature.
    #[error("the device does not offer what the guest needs: feature bits {missing:#x}")]
    Features {
        /// The bits.
        missing: u64,
    },
    /// The device broke the rules of a ring.
    #[error("the device broke the rules of queue {queue}: {fault}")]
    Device {
        /// The queue.
        queue: u16,
        /// How.
        fault: ringway_ring::queue::RingFault,
    },
    /// An option that cannot be.
    #[error("frame of {0} bytes: must be 60 to 9018")]
    FrameLen(u16),
    /// More regions than there are buffers to scatter, or none.
    #[error("{regions} regions: must be 1 to {most}, the number of buffers")]
    Regions {
        /// Regions asked for.
        regions: u16,
        /// The most there can be.
        most: u64,
    },
}

/// A guest that is connected, with its rings started and its receive buffers posted.
#[derive(Debug)]
pub struct Guest {
    frontend: Frontend,
    pairs: Vec<Pair>,
    page_kind: PageKind,
    features: Features,
    options: GuestOptions,
    /// Where each region of its memory begins and ends.
    regions: Vec<(u64, u64)>,
    /// The memory outlives the rings in it.
    memory: HostMemory,
}

impl Guest {
    /// Connects to the device behind the socket and starts its rings.
    pub fn connect(socket: &Path, options: GuestOptions) -> Result<Guest, GuestError> {
        let frontend = Frontend::connect(socket, options.patience)?;
        Guest::start(frontend, options)
    }

    /// Starts the rings over a connection that stands.
    pub fn start(mut frontend: Frontend, options: GuestOptions) -> Result<Guest, GuestError> {
        if !(60..=9018).contains(&options.frame_len) {
            return Err(GuestError::FrameLen(options.frame_len));
        }
        let offered = frontend.handshake()?;
        let mut features = Features::VERSION_1;
        if options.format == Format::Packed {
            features |= Features::RING_PACKED;
        }
        if options.mergeable {
            features |= F_MRG_RXBUF;
        }
        if options.in_order {
            features |= Features::IN_ORDER;
        }
        if !offered.contains(features) {
            return Err(GuestError::Features { missing: features.without(offered).0 });
        }

        let size = RingSize::new(options.format, options.queue_size.into())?;
        let plan = Plan::new(&options, size, features)?;
        let bytes = plan.total(options.pairs);
        let memory = match options.pages {
            Some(kind) => HostMemory::allocate_on(kind, "ringway-guest", bytes),
            None => HostMemory::allocate("ringway-guest", bytes),
        }
        .map_err(|source| GuestError::Memory { bytes, source })?;
        let map = Arc::new(memory.guest_map(GPA)?);
        let mut pairs = Vec::with_capacity(options.pairs.into());
        for index in 0..options.pairs {
            pairs.push(Pair::new(PairSetup {
                index,
                format: options.format,
                size,
                features,
                map: Arc::clone(&map),
                user_addr: memory.address(),
                gpa: GPA,
                rings_at: plan.rings_at(index),
                buffers_at: plan.buffers_at(options.pairs, index),
                buffer_bytes: plan.buffer_bytes,
                slot_bytes: plan.slot_bytes,
                frame_len: options.frame_len,
                window: options.window.unwrap_or(size.get()).min(size.get()),
                give_up: options.give_up,
                addresses: [options.destination, options.source],
                kick: [event_fd()?, event_fd()?],
            })?);
        }
        let regions = plan.regions(options.pairs, memory.size());
        let mut guest =
            Guest { frontend, pairs, page_kind: memory.kind(), features, options, regions, memory };
        let base = Position::START.to_vhost_base(options.format);
        guest.introduce(|_| base)?;
        Ok(guest)
    }

    /// Connects again after the back-end was lost, as a VMM does whose guest has gone on: with the rings as they are.
    pub fn reconnect(&mut self, socket: &Path) -> Result<(), GuestError> {
        self.frontend = Frontend::connect(socket, self.options.patience)?;
        let offered = self.frontend.handshake()?;
        if !offered.contains(self.features) {
            return Err(GuestError::Features { missing: self.features.without(offered).0 });
        }
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
        for (number, &(start, end)) in self.regions.iter().enumerate() {
            let region = MemoryRegion {
                gpa: GPA + start,
                size: end - start,
                user_addr: self.memory.address() + start,
                file_offset: start,
                file: self.memory.file(),
            };
            match number {
                0 => self.frontend.set_mem_table(&[region])?,
                _ => self.frontend.add_mem_reg(&region)?,
            }
        }
        for pair in &self.pairs {
            for (direction, address) in pair.ring_addresses().into_iter().enumerate() {
                let queue = u32::from(pair.index()) * 2 + direction as u32;
                let base = base(pair.used_idx(direction));
                let address = VringAddr {
                    desc: address.desc,
                    driver: address.driver,
                    device: address.device,
                    log: None,
                };
                let (size, kick) = (self.options.queue_size.into(), pair.kick(direction));
                self.frontend.start_ring(queue, size, base, address, Some(kick), None)?;
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
        self.page_kind
    }

    /// The features that it negotiated.
    pub fn features(&self) -> Features {
        self.features
    }

    /// One round over all pairs: collects what came, checks it, and sends as much as `send` frames a pair. Returns how
    /// many frames were received.
    pub fn turn(&mut self, send: u32) -> Result<u32, GuestError> {
        let mut received = 0;
        for pair in &mut self.pairs {
            received += pair.turn(send)?;
        }
        Ok(received)
    }

    /// What all pairs counted, added up.
    pub fn stats(&self) -> PairStats {
        self.pairs.iter().fold(PairStats::default(), |sum, pair| sum.plus(pair.stats()))
    }

    /// The pairs.
    pub fn pairs_mut(&mut self) -> &mut [Pair] {
        &mut self.pairs
    }

    /// Stops every ring in order and leaves.
    pub fn stop(mut self) -> Result<PairStats, GuestError> {
        for queue in 0..self.pairs.len() as u32 * 2 {
            self.frontend.stop_ring(queue)?;
        }
        Ok(self.stats())
    }
}

fn event_fd() -> Result<Arc<EventFd>, GuestError> {
    EventFd::new().map(Arc::new).map_err(GuestError::EventFd)
}

/// Where things are in the guest's memory, in bytes from its start.
#[derive(Debug)]
struct Plan {
    /// Both rings of one pair.
    ring_bytes: u64,
    /// One buffer, header included.
    buffer_bytes: u32,
    /// Room that each buffer has.
    slot_bytes: u64,
    /// Room for so many buffers of one pair: a ring's worth for each direction at least.
    buffers: u64,
    /// Regions that the buffers are scattered over.
    regions: u64,
}

impl Plan {
    fn new(options: &GuestOptions, size: RingSize, features: Features) -> Result<Plan, GuestError> {
        let header = header_len(features) as u32;
        // Odd multiples of a cache line, so that buffers spread over all sets of the caches.
        let buffer_bytes = (header + u32::from(options.frame_len)).next_multiple_of(LINE) | LINE;
        let buffers = match options.regions {
            Some(_) => pair::scattered_slots(size.get().into()),
            None => u64::from(size.get()) * 2,
        };
        let most = buffers * u64::from(options.pairs);
        if let Some(regions) = options.regions.filter(|regions| *regions == 0 || u64::from(*regions) > most) {
            return Err(GuestError::Regions { regions, most });
        }
        Ok(Plan {
            ring_bytes: pair::ring_bytes(options.format, size) * 2,
            buffer_bytes,
            slot_bytes: match options.regions {
                Some(_) => u64::from(buffer_bytes).next_multiple_of(PageKind::Base.bytes()),
                None => buffer_bytes.into(),
            },
            buffers,
            regions: options.regions.map_or(1, u64::from),
        })
    }

    fn rings_at(&self, pair: u16) -> u64 {
        u64::from(pair) * self.ring_bytes
    }

    fn buffers_at(&self, pairs: u16, pair: u16) -> u64 {
        self.rings_at(pairs) + u64::from(pair) * self.buffers * self.slot_bytes
    }

    fn total(&self, pairs: u16) -> u64 {
        self.buffers_at(pairs, pairs)
    }

    /// Where each region begins and ends in a memory of `bytes`. The rings are in the first; the buffers' room is cut as
    /// evenly as whole buffers allow.
    fn regions(&self, pairs: u16, bytes: u64) -> Vec<(u64, u64)> {
        let slots = self.buffers * u64::from(pairs);
        let cut = |number: u64| match number {
            0 => 0,
            last if last == self.regions => bytes,
            _ => self.buffers_at(pairs, 0) + slots * number / self.regions * self.slot_bytes,
        };
        (0..self.regions).map(|number| (cut(number), cut(number + 1))).collect()
    }
}

/// A cache line, in bytes.
const LINE: u32 = 64;

/// Where the guest's memory starts in its own physical addresses.
const GPA: u64 = 0x1_0000_0000;

/// `ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK` (virtio 1.3 §2.1).
const DRIVER_OK: u8 = 1 | 2 | 8 | 4;

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(regions: Option<u16>) -> Result<Plan, GuestError> {
        let options = GuestOptions { regions, ..GuestOptions::default() };
        Plan::new(&options, RingSize::new(Format::Split, 256).unwrap(), F_MRG_RXBUF)
    }

    #[test]
    fn regions_cover_the_memory_without_gap_and_whole_buffers_each() {
        for count in [1u16, 2, 8, 509, 512] {
            let plan = plan(Some(count)).unwrap();
            let bytes = plan.total(1);
            let regions = plan.regions(1, bytes);
            assert_eq!(regions.len(), usize::from(count));
            assert_eq!((regions[0].0, regions[regions.len() - 1].1), (0, bytes));
            for pair in regions.windows(2) {
                assert_eq!(pair[0].1, pair[1].0);
                assert_eq!((pair[0].1 - plan.buffers_at(1, 0)) % plan.slot_bytes, 0);
                assert!(pair[0].0 < pair[0].1 && pair[1].0 < pair[1].1);
            }
        }
    }

    #[test]
    fn regions_without_a_buffer_are_refused() {
        assert!(matches!(plan(Some(513)), Err(GuestError::Regions { regions: 513, most: 512 })));
        assert!(matches!(plan(Some(0)), Err(GuestError::Regions { .. })));
    }

    #[test]
    fn one_region_is_all_of_the_memory() {
        assert_eq!(plan(None).unwrap().regions(1, 1 << 21), [(0, 1 << 21)]);
    }
}
