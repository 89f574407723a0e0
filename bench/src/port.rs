//! A port of the generator: a vhost-user front-end with its own memory, rings and buffers, over any back-end's socket.
//!
//! ```text
//!   memory:  | rings of pair 0 | rings of pair 1 | .. | RX buffers | TX buffers | of pair 0, then of pair 1, .. |
//! ```
//! It does what a driver in a guest does, with the features that [`PortOptions`] name and no others: no offloads, no
//! control queue, no calls (it polls). Made on the thread that measures; its lanes may be driven by others.

use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use ringway_pmd::net::{F_MRG_RXBUF, header_len};
use ringway_pmd::notify::EventFd;
use ringway_ring::features::Features;
use ringway_ring::layout::{Areas, Layout};
use ringway_ring::memory::{HostMemory, PageKind};
use ringway_ring::position::Position;
use ringway_ring::queue::RingSize;
use ringway_vhost_user::frontend::{Frontend, FrontendError, MemoryRegion, VringAddr};

use crate::error::BenchError;
use crate::lane::{Lane, LaneSetup};
use crate::options::{PortOptions, Ring};

/// A connected port with running rings.
#[derive(Debug)]
pub(crate) struct Port {
    frontend: Frontend,
    socket: String,
    pub(crate) lanes: Vec<Lane>,
    page_kind: PageKind,
    /// Outlives the rings in it.
    _memory: HostMemory,
}

impl Port {
    /// Connects, or waits for the back-end, and starts every ring. `number` counts the ports of a job from 0.
    pub(crate) fn open(
        number: u16,
        socket: &Path,
        options: &PortOptions,
        progress: &Arc<[AtomicU64]>,
    ) -> Result<Port, BenchError> {
        let name = socket.display().to_string();
        let failed = |source: FrontendError| BenchError::Frontend { socket: name.clone(), source };
        let mut frontend = if options.listen {
            Frontend::listen(socket, options.patience)
        } else {
            Frontend::connect(socket, options.patience)
        }
        .map_err(failed)?;
        let features = wanted(options);
        let offered = frontend.handshake().map_err(failed)?;
        if !offered.contains(features) {
            let missing = features.without(offered).0;
            return Err(unsupported(&name, format!("does not offer feature bits {missing:#x}")));
        }
        if options.pairs > 1 {
            let queues = frontend.queue_num().map_err(failed)?;
            if queues < u64::from(options.pairs) {
                return Err(unsupported(&name, format!("has {queues} queue pairs, not {}", options.pairs)));
            }
        }
        frontend.set_features(features).map_err(failed)?;

        let size = RingSize::new(options.ring.format(), options.queue_size.into())?;
        let plan = Plan::new(options, size, features);
        let memory = match options.pages {
            Some(kind) => HostMemory::allocate_on(kind, "ringway-bench", plan.total),
            // Regions begin on base pages.
            None if options.regions > 1 => {
                HostMemory::allocate_on(PageKind::Base, "ringway-bench", plan.total)
            }
            None => HostMemory::allocate("ringway-bench", plan.total),
        }
        .map_err(|source| BenchError::Memory { bytes: plan.total, source })?;
        let map = Arc::new(memory.guest_map(GPA)?);
        let regions: Vec<MemoryRegion<'_>> = cut(memory.size(), options.regions)
            .map(|(start, end)| MemoryRegion {
                gpa: GPA + start,
                size: end - start,
                user_addr: memory.address() + start,
                file_offset: start,
                file: memory.file(),
            })
            .collect();
        let (table, more) = regions.split_at(regions.len().min(TABLE_REGIONS));
        frontend.set_mem_table(table).map_err(failed)?;
        for region in more {
            frontend.add_mem_reg(region).map_err(failed)?;
        }

        let event_fd = || EventFd::new().map(Arc::new).map_err(BenchError::system("cannot make an eventfd"));
        let mut lanes = Vec::with_capacity(options.pairs.into());
        let base = Position::START.to_vhost_base(options.ring.format());
        for pair in 0..options.pairs {
            let kick = [event_fd()?, event_fd()?];
            lanes.push(Lane::new(LaneSetup {
                port: number,
                pair,
                flow: number * options.pairs + pair,
                progress: Arc::clone(progress),
                ring: options.ring,
                size,
                features,
                header_len: plan.header_len as usize,
                mergeable: options.mergeable,
                map: Arc::clone(&map),
                rings: [0, 1].map(|direction| plan.ring(pair, direction, GPA)),
                rx_buffers: plan.rx_buffers(pair),
                rx_buffer_bytes: plan.rx_buffer_bytes,
                tx_buffers: plan.tx_buffers(pair),
                sizes: options.size,
                touch: options.touch,
                sampled: options.sampled,
                kick: [Arc::clone(&kick[0]), Arc::clone(&kick[1])],
            })?);
            for (direction, kick) in kick.iter().enumerate() {
                let Areas { desc, driver, device } = plan.ring(pair, direction as u64, memory.address());
                let index = u32::from(pair) * 2 + direction as u32;
                let address = VringAddr { desc, driver, device, log: None };
                frontend
                    .start_ring(index, size.get().into(), base, address, Some(kick.as_fd()), None)
                    .map_err(failed)?;
            }
        }
        frontend.set_status(DRIVER_OK).map_err(failed)?;
        for queue in 0..u32::from(options.pairs) * 2 {
            frontend.enable_ring(queue, true).map_err(failed)?;
        }
        lanes.iter().for_each(Lane::kick);
        Ok(Port { frontend, socket: name, lanes, page_kind: memory.kind(), _memory: memory })
    }

    /// The pages that its memory stands on.
    pub(crate) fn page_kind(&self) -> PageKind {
        self.page_kind
    }

    /// Stops every ring in order and leaves.
    pub(crate) fn close(mut self) -> Result<(), BenchError> {
        for queue in 0..self.lanes.len() as u32 * 2 {
            self.frontend
                .stop_ring(queue)
                .map_err(|source| BenchError::Frontend { socket: self.socket.clone(), source })?;
        }
        Ok(())
    }
}

fn unsupported(socket: &str, what: String) -> BenchError {
    BenchError::Unsupported { socket: socket.to_owned(), what }
}

/// The features that a port negotiates: all of them must be offered.
fn wanted(options: &PortOptions) -> Features {
    let mut features = Features::VERSION_1;
    if options.event_idx {
        features |= Features::EVENT_IDX;
    }
    if options.ring == Ring::Packed {
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

/// Where `regions` regions begin and end in a memory of `bytes`: as even as whole base pages allow.
fn cut(bytes: u64, regions: u16) -> impl Iterator<Item = (u64, u64)> {
    let regions = u64::from(regions.max(1));
    let pages = bytes / PAGE;
    let at = move |number: u64| {
        if number == regions { bytes } else { pages * number / regions * PAGE }
    };
    (0..regions).map(move |number| (at(number), at(number + 1))).filter(|(start, end)| start < end)
}

/// Where things are in a port's memory, in bytes from its start.
#[derive(Debug)]
struct Plan {
    layout: Layout,
    header_len: u64,
    /// One ring.
    ring_bytes: u64,
    /// What a receive buffer tells the device it has.
    rx_buffer_bytes: u32,
    /// Room of a receive and of a transmit buffer.
    slots: [u64; 2],
    /// Entries in each ring, and buffers for it.
    entries: u64,
    pairs: u64,
    total: u64,
}

impl Plan {
    fn new(options: &PortOptions, size: RingSize, features: Features) -> Plan {
        let layout = Layout::new(options.ring.format(), size);
        let header_len = header_len(features) as u64;
        let rx_buffer_bytes = options.rx_buffer_bytes(header_len as u32);
        let (entries, pairs) = (u64::from(size.get()), u64::from(options.pairs));
        let slots = [u64::from(rx_buffer_bytes), header_len + u64::from(options.size.max())].map(|bytes| {
            if options.regions > 1 {
                bytes.next_multiple_of(PAGE)
            } else {
                // Odd multiples of a cache line, so that buffers spread over all sets of the caches.
                bytes.next_multiple_of(LINE) | LINE
            }
        });
        let ring_bytes = layout.total.next_multiple_of(PAGE);
        let total = pairs * (2 * ring_bytes + entries * (slots[0] + slots[1]));
        Plan {
            layout,
            header_len,
            ring_bytes,
            rx_buffer_bytes,
            slots,
            entries,
            pairs,
            total: total.next_multiple_of(PAGE),
        }
    }

    /// The areas of a ring in a memory that starts at `base`: 0 receive, 1 transmit.
    fn ring(&self, pair: u16, direction: u64, base: u64) -> Areas<u64> {
        self.layout.at(base + (u64::from(pair) * 2 + direction) * self.ring_bytes)
    }

    fn rx_buffers(&self, pair: u16) -> Box<[u64]> {
        self.buffers(pair, 0, self.slots[0])
    }

    fn tx_buffers(&self, pair: u16) -> Box<[u64]> {
        self.buffers(pair, self.entries * self.slots[0], self.slots[1])
    }

    fn buffers(&self, pair: u16, at: u64, slot: u64) -> Box<[u64]> {
        let of_pair = self.entries * (self.slots[0] + self.slots[1]);
        let first = GPA + self.pairs * 2 * self.ring_bytes + u64::from(pair) * of_pair + at;
        (0..self.entries).map(|number| first + number * slot).collect()
    }
}

/// Regions that one memory table message holds.
const TABLE_REGIONS: usize = 8;

/// Where the memory starts in the guest's physical addresses.
const GPA: u64 = 0x1_0000_0000;
const PAGE: u64 = 4096;
const LINE: u64 = 64;

/// `ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK` (virtio 1.3 §2.1).
const DRIVER_OK: u8 = 1 | 2 | 8 | 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::Sizes;

    #[test]
    fn regions_cover_all_of_the_memory_once() {
        for regions in [1, 2, 7, 509] {
            let cuts: Vec<_> = cut(600 * PAGE, regions).collect();
            assert_eq!(cuts.len(), usize::from(regions));
            assert_eq!((cuts[0].0, cuts[cuts.len() - 1].1), (0, 600 * PAGE));
            assert!(cuts.windows(2).all(|pair| pair[0].1 == pair[1].0));
        }
    }

    #[test]
    fn rings_and_buffers_do_not_overlap() {
        for (ring, mergeable, size) in [(Ring::Split, true, 64), (Ring::Packed, false, 9014)] {
            let options =
                PortOptions { ring, mergeable, size: Sizes::Fixed(size), pairs: 3, ..Default::default() };
            let size = RingSize::new(ring.format(), 256).unwrap();
            let plan = Plan::new(&options, size, wanted(&options));
            let mut spans: Vec<(u64, u64)> = Vec::new();
            for pair in 0..3 {
                for direction in 0..2 {
                    let start = plan.ring(pair, direction, GPA).desc;
                    spans.push((start, start + plan.layout.total));
                }
                let room = [u64::from(plan.rx_buffer_bytes), plan.header_len + u64::from(options.size.max())];
                for (buffers, room) in [plan.rx_buffers(pair), plan.tx_buffers(pair)].iter().zip(room) {
                    spans.extend(buffers.iter().map(|at| (*at, at + room)));
                }
            }
            spans.sort_unstable();
            assert!(spans.windows(2).all(|pair| pair[0].1 <= pair[1].0));
            assert!(spans.last().unwrap().1 <= GPA + plan.total);
        }
    }
}
