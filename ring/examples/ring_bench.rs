//! Cost of the device's side of a ring, without any work on the buffers: nanoseconds for each descriptor, in bursts of
//! 32, beside rust-vmm's `virtio-queue` on the same memory.
//!
//! The driver's side fills the whole ring; then the device's side takes it burst by burst: peek (read,
//! check, translate), consume, complete, publish. Prints the median and the fastest of the rounds; both ends run on one
//! core, so this is the cost of instructions, not of cache lines that travel between cores.
//!
//! `cargo run --release -p ringway-ring --example ring_bench [ROUNDS]`
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot run has nothing to say")]

use std::fs::File;
use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ringway_ring::chain::Burst;
use ringway_ring::features::Features;
use ringway_ring::guest::{GuestMap, Region, RegionSpec};
use ringway_ring::layout::{DriverConfig, Layout};
use ringway_ring::position::{Position, PositionPage};
use ringway_ring::queue::{Completion, DeviceRing, DriverBuffer, DriverRing, Format, QueueConfig, RingSize};
use rustix::fs::MemfdFlags;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemory, GuestMemoryMmap, Permissions};

const SIZE: u16 = 256;
const BURST: usize = 32;
const GPA: u64 = 0x10_0000;
const BUFFERS: u64 = GPA + 0x10_0000;
const MEMORY: u64 = 0x40_0000;
const BUFFER_BYTES: u32 = 2048;

/// Memory that both implementations map, and the buffers of the driver.
struct Bench {
    file: File,
    map: Arc<GuestMap>,
    buffers: Vec<DriverBuffer>,
    rounds: usize,
}

impl Bench {
    fn new(rounds: usize) -> Bench {
        let file = File::from(rustix::fs::memfd_create("ring-bench", MemfdFlags::CLOEXEC).unwrap());
        file.set_len(MEMORY).unwrap();
        let region = Region::map(RegionSpec {
            gpa: GPA,
            size: MEMORY,
            user_addr: GPA,
            file_offset: 0,
            file: file.try_clone().unwrap().into(),
        })
        .unwrap();
        let buffers = (0..u64::from(SIZE))
            .map(|nth| DriverBuffer {
                gpa: BUFFERS + nth * u64::from(BUFFER_BYTES),
                len: BUFFER_BYTES,
                writable: true,
            })
            .collect();
        Bench { file, map: Arc::new(GuestMap::new(vec![region]).unwrap()), buffers, rounds }
    }

    fn driver(&self, format: Format, features: Features) -> DriverConfig {
        let size = RingSize::new(format, SIZE.into()).unwrap();
        DriverConfig {
            size,
            features,
            map: Arc::clone(&self.map),
            areas: Layout::new(format, size).at(GPA),
            position: Position::START,
        }
    }

    fn config(&self, format: Format, features: Features) -> QueueConfig {
        let size = RingSize::new(format, SIZE.into()).unwrap();
        let areas = Layout::new(format, size).at(GPA);
        QueueConfig {
            size,
            features,
            map: Arc::clone(&self.map),
            desc_user_addr: areas.desc,
            driver_user_addr: areas.driver,
            device_user_addr: areas.device,
            position: Position::START,
            keeper: PositionPage::anonymous().unwrap().slot(0).unwrap(),
            skip_used: false,
        }
    }

    /// Fills the ring with chains of `per_chain` buffers, has `device` take all, and collects them.
    fn rounds(&self, driver: &mut impl DriverRing, per_chain: usize, mut device: impl FnMut(usize)) -> Costs {
        driver.disable_calls();
        let mut completions = vec![Completion::default(); SIZE.into()];
        let mut costs = Costs::default();
        for _ in 0..self.rounds {
            let start = Instant::now();
            let mut chains = 0;
            for burst in self.buffers.chunks(BURST) {
                for buffers in burst.chunks_exact(per_chain) {
                    driver.add(buffers, chains as u32).unwrap();
                    chains += 1;
                }
                black_box(driver.publish());
            }
            let added = start.elapsed();
            device(chains);
            let taken = start.elapsed();
            let mut collected = 0;
            for burst in completions.chunks_mut(BURST) {
                collected += driver.collect(burst).unwrap();
            }
            let collect = start.elapsed() - taken;
            assert_eq!(collected, chains);
            let each_ns = |time: Duration| time.as_nanos() as f64 / (chains * per_chain) as f64;
            costs.device.push(each_ns(taken - added));
            costs.add.push(each_ns(added));
            costs.collect.push(each_ns(collect));
        }
        for series in [&mut costs.device, &mut costs.add, &mut costs.collect] {
            series.sort_by(f64::total_cmp);
        }
        costs
    }

    fn ringway(&self, ring: &mut impl DeviceRing, driver: &mut impl DriverRing, per_chain: usize) -> Costs {
        let mut burst = Burst::new(Arc::clone(&self.map));
        ring.disable_kicks();
        self.rounds(driver, per_chain, |chains| {
            let mut done = 0;
            while done < chains {
                done += take(ring, &mut burst);
            }
        })
    }

    fn virtio_queue(&self, driver: &mut impl DriverRing, per_chain: usize, features: Features) -> Costs {
        let range =
            (GuestAddress(GPA), MEMORY as usize, Some(FileOffset::new(self.file.try_clone().unwrap(), 0)));
        let memory = GuestMemoryMmap::<()>::from_ranges_with_files([range]).unwrap();
        let areas = Layout::new(Format::Split, RingSize::new(Format::Split, SIZE.into()).unwrap()).at(GPA);
        let mut queue = Queue::new(SIZE).unwrap();
        queue.try_set_desc_table_address(GuestAddress(areas.desc)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(areas.driver)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(areas.device)).unwrap();
        queue.set_event_idx(features.contains(Features::EVENT_IDX));
        queue.set_ready(true);
        self.rounds(driver, per_chain, |chains| {
            let mut done = 0;
            while done < chains {
                let mut used = [(0, 0); BURST];
                let mut count = 0;
                for chain in queue.iter(&memory).unwrap().take(BURST) {
                    let head = chain.head_index();
                    let mut bytes = 0;
                    for desc in chain {
                        let slice =
                            memory.get_slices(desc.addr(), desc.len() as usize, Permissions::ReadWrite);
                        bytes +=
                            black_box(slice.unwrap().map(|slice| slice.unwrap().len()).sum::<usize>()) as u32;
                    }
                    used[count] = (head, bytes);
                    count += 1;
                }
                for (head, bytes) in &used[..count] {
                    queue.add_used(&memory, *head, *bytes).unwrap();
                }
                black_box(queue.needs_notification(&memory).unwrap());
                done += count;
            }
        })
    }
}

/// One burst.
#[inline(never)]
fn take(ring: &mut impl DeviceRing, burst: &mut Burst) -> usize {
    let count = ring.peek(burst, BURST).unwrap();
    let chains = burst.chains();
    ring.consume(chains);
    for chain in chains {
        ring.complete(chain, chain.writable_bytes);
    }
    black_box(ring.publish());
    count
}

/// Nanoseconds for each descriptor, one number a round, sorted.
#[derive(Default)]
struct Costs {
    device: Vec<f64>,
    add: Vec<f64>,
    collect: Vec<f64>,
}

fn main() {
    let rounds = std::env::args().nth(1).map_or(20_000, |rounds| rounds.parse().unwrap());
    let bench = Bench::new(rounds);
    println!("ns per descriptor, bursts of {BURST}, ring of {SIZE}, {rounds} rounds; driver's side: median");
    println!(
        "{:<38} {:>8} {:>8} {:>9} | {:>8} {:>8}",
        "device's side", "median", "fastest", "Mdesc/s", "add", "collect"
    );
    let show = |name: String, costs: Costs| {
        let middle = rounds / 2;
        let median = costs.device[middle];
        println!(
            "{name:<38} {median:>8.2} {:>8.2} {:>9.1} | {:>8.2} {:>8.2}",
            costs.device[0],
            1000.0 / median,
            costs.add[middle],
            costs.collect[middle]
        );
        median
    };
    for (event, features) in [("", Features::VERSION_1), (", event idx", Features::EVENT_IDX)] {
        for per_chain in [1, 2] {
            let name = |what| format!("{what}, {per_chain} a chain{event}");
            let mut driver = bench.driver(Format::Split, features).start_split().unwrap();
            let mut ring = bench.config(Format::Split, features).activate_split().unwrap();
            let split = show(name("split"), bench.ringway(&mut ring, &mut driver, per_chain));
            let mut driver = bench.driver(Format::Packed, features).start_packed().unwrap();
            let mut ring = bench.config(Format::Packed, features).activate_packed().unwrap();
            show(name("packed"), bench.ringway(&mut ring, &mut driver, per_chain));
            let mut driver = bench.driver(Format::Split, features).start_split().unwrap();
            let peer = show(name("virtio-queue split"), bench.virtio_queue(&mut driver, per_chain, features));
            println!("{:<38} {:>8.1} times", "virtio-queue / split", peer / split);
        }
    }
}
