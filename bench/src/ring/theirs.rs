//! rust-vmm's `virtio-queue` at the same work: over the same memory, against the same driver.
//!
//! Used as its documentation says: one iterator a batch, each descriptor's buffer translated by `vm-memory`, each chain
//! added to the used ring, one question whether to notify.

use std::fs::File;
use std::hint::black_box;

use ringway_ring::queue::{Completion, DriverRing};
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::bed::{Bed, Chains, GPA};
use super::ours::FEATURES;
use super::{Done, RING_SIZE, Subject};
use crate::error::BenchError;
use crate::options::Ring;

/// The device's side.
struct Device {
    queue: Queue,
    memory: GuestMemoryMmap,
    driver: Box<dyn DriverRing>,
    chains: Chains,
    batch: Done,
    /// Heads and written bytes of the batch: kept here, so that none is allocated.
    taken: Vec<(u16, u32)>,
    completions: Vec<Completion>,
    _bed: Bed,
}

/// The device's side of a split ring.
pub(super) fn device(batch: u16, chain: u16) -> Result<Box<dyn Subject>, BenchError> {
    let bed = Bed::new(Ring::Split, FEATURES, Chains::bytes(batch))?;
    let file = bed.memory.file().try_clone_to_owned().map_err(BenchError::system("cannot share memory"))?;
    let offset = FileOffset::new(File::from(file), 0);
    let range = (GuestAddress(GPA), bed.memory.size() as usize, Some(offset));
    let memory = GuestMemoryMmap::from_ranges_with_files([range]).map_err(failed)?;
    let areas = bed.areas(0, GPA);
    let mut queue = Queue::new(RING_SIZE).map_err(failed)?;
    queue.try_set_desc_table_address(GuestAddress(areas.desc)).map_err(failed)?;
    queue.try_set_avail_ring_address(GuestAddress(areas.driver)).map_err(failed)?;
    queue.try_set_used_ring_address(GuestAddress(areas.device)).map_err(failed)?;
    queue.set_event_idx(true);
    queue.set_ready(true);
    let driver = bed.boxed_driver(0)?;
    if !queue.is_valid(&memory) {
        return Err(failed("refuses the ring"));
    }
    let chains = Chains::new(batch, chain);
    Ok(Box::new(Device {
        queue,
        memory,
        driver,
        batch: chains.sum(),
        taken: Vec::with_capacity(chains.count()),
        completions: vec![Completion::default(); chains.count()],
        chains,
        _bed: bed,
    }))
}

impl Subject for Device {
    fn prepare(&mut self) -> Result<(), BenchError> {
        self.driver.collect(&mut self.completions)?;
        self.chains.offer(self.driver.as_mut())
    }

    #[inline]
    fn work(&mut self) -> Result<Done, BenchError> {
        let mut done = Done::default();
        self.taken.clear();
        for chain in self.queue.iter(&self.memory).map_err(failed)?.take(self.chains.count()) {
            let head = chain.head_index();
            let mut written = 0;
            for desc in chain {
                let buffer = self.memory.get_slice(desc.addr(), desc.len() as usize).map_err(failed)?;
                black_box(buffer.ptr_guard().as_ptr());
                if desc.is_write_only() {
                    written += desc.len();
                }
                done.bytes += u64::from(desc.len());
                done.units += 1;
            }
            self.taken.push((head, written));
        }
        for &(head, written) in &self.taken {
            self.queue.add_used(&self.memory, head, written).map_err(failed)?;
        }
        black_box(self.queue.needs_notification(&self.memory).map_err(failed)?);
        Ok(done)
    }

    fn batch(&self) -> Done {
        self.batch
    }
}

fn failed(what: impl std::fmt::Display) -> BenchError {
    BenchError::Peer { peer: "virtio-queue".to_owned(), what: what.to_string() }
}
